"""Settings: what the shipped files hold, how sources are laid over each other, what is refused and how."""

import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from eamb.network.names import SMALLEST_SIDE
from eamb.readers.options import DataOptions
from eamb.runtime.config import Config, Data, as_yaml, load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
OFFICIAL = next(path for path in CONFIGS if path.name == "official.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_opens_with_its_command(path):
    dataset = load_config([path]).data.dataset
    comment = [line for line in path.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    [command] = [line for line in comment[1:] if line.startswith("#   python main.py train ")]
    assert f"--dataset {dataset} " in command or not dataset


def test_official_changes_its_five_settings_and_leaves_the_rest():
    before, after = (load_config([OFFICIAL.with_name("para.yaml"), *more]) for more in ([], [OFFICIAL]))
    assert after == replace(
        before,
        data=replace(before.data, exif=False, icc=False, score_range="official"),
        model=replace(before.model, emotion_batchnorm="official"),
        loss=replace(before.loss, emd_reduction="batch"),
    )


def test_published_recipes():
    for name, epochs, schedule in (("ava", 30, "ava"), ("para", 100, "para"), ("iae", 30, "ava")):
        config = load_config([OFFICIAL.with_name(f"{name}.yaml")])
        train, optimizer = config.train, config.optimizer
        assert (config.data.size, config.model.backbone, train.batch_size) == (512, "resnet50", 24)
        assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 3e-5, 0)
        assert (train.epochs, optimizer.schedule) == (epochs, schedule)


def test_words_win_over_files_and_later_over_earlier(tmp_path):
    (tmp_path / "1.yaml").write_text("train: {epochs: 3, batch_size: 5, seed: 8}")
    (tmp_path / "2.yaml").write_text("train: {epochs: 4, batch_size: 6}")
    files = [tmp_path / "1.yaml", tmp_path / "2.yaml"]
    train = load_config(files, ["train.epochs=7", "train.epochs=9"]).train
    assert (train.epochs, train.batch_size, train.seed) == (9, 6, 8)
    assert load_config(files[::-1]).train.epochs == 3


@pytest.mark.parametrize(
    "key, text, expected",
    [
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "3", 3.0),
        ("data.threshold", "null", None),
        ("data.exif", "no", False),
        ("data.score_column", "123", "123"),
        ("data.path_column", "yes", "yes"),
        ("data.root", "''", "''"),
        ("task", "emotion", "emotion"),
        ("data.workers", "-1", -1),  # the least
        ("train.average", "0", 0.0),
    ],
)
def test_words_and_files_are_read_as_their_keys_type(key, text, expected, tmp_path):
    section, _, name = key.rpartition(".")
    (tmp_path / "a.yaml").write_text(f'{section}:\n  {name}: "{text}"' if section else f"{name}: {text}")
    for config in (load_config(words=[f"{key}={text}"]), load_config([tmp_path / "a.yaml"])):
        value = getattr(getattr(config, section) if section else config, name)
        assert (value, type(value)) == (expected, type(expected))


def test_a_config_stays_the_same_through_yaml(tmp_path):
    words = ["task=emotion", "data.threshold=3", "optimizer.learning_rate=0.1", "data.maximum=1e300"]
    config = load_config([OFFICIAL], [*words, "data.count_columns=a=1,b=2", "data.root=a:b\nc"])
    assert config != Config()
    (tmp_path / "saved.yaml").write_text(as_yaml(config))
    assert load_config([tmp_path / "saved.yaml"]) == config
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config([tmp_path / "empty.yaml"]) == Config()
    with pytest.raises(FrozenInstanceError):
        config.task = "series"


@pytest.mark.parametrize(
    "word, expected",
    [
        ("optimizer.learning_rat=1", "key 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?"),
        ("zzzzzz=1", "'zzzzzz'; sections are data, model, loss, optimizer, train, evaluate"),
        ("train.epochs=2.5", "command line: 'train.epochs' must be a whole number, got '2.5'"),
        ("train.epochs=1:30", "'train.epochs' must be a whole number, got '1:30'"),  # 90 in YAML 1.1
        ("data.exif=1", "'data.exif' must be true or false, got '1'"),
        ("train.clip=1e999", "'train.clip' must be a number, got '1e999'"),
        ("train.epochs", "'train.epochs' is neither an option nor key=value"),
        ("train.precision=half", "'train.precision' must be one of fp32, bf16, fp16, auto, got 'half'"),
        ("data.size=63", f"'data.size' must be at least {SMALLEST_SIDE}, got '63'"),
        ("train.average=1", "'train.average' must be below 1, got '1'"),
    ],
)
def test_a_wrong_word_names_key_expectation_and_value(word, expected):
    with pytest.raises(ValueError, match=r"^config: ") as caught:
        load_config(words=[word])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("train:\n  seed: 3\n  epoch: 3", ": unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("loss: {}\ntrain:\n", ": 'train' is a section; write 'train:' and its keys below"),
        ("\n- train", ": a config holds 'section:' with 'key: value' lines below"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: {epochs: *b}", ": unknown key 'a'"),
        ("train: {epochs: !!python/object/apply:os.getcwd []}", ": 'train.epochs' takes a single value"),
        ("data: {exif: !!bool maybe}", ": 'data.exif' must be true or false, got 'maybe'"),
        ("train: {epochs: 4, epochs: 5}", " cannot be read: 'epochs' is there twice"),
        ("train: [", " cannot be read: "),
        ("[" * 5000, " cannot be read: "),
        ("\ud800", " cannot be read: "),
    ],
)
def test_a_wrong_file_is_one_sentence_that_says_what_is_wrong(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=r"^config: .*bad\.yaml") as caught:
        load_config([path])
    assert f"{path}{expected}" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no file .*none.yaml; the shipped ones are in configs/"):
        load_config([tmp_path / "none.yaml"])


def test_data_options_are_a_part_of_the_settings():
    data = load_config(words=["data.validation=0.2", "data.folds=4", "data.fold=3", "data.size=128"]).data
    assert data.options() == DataOptions(validation=0.2, folds=4, fold=3)
    with pytest.raises(ValueError, match=r"^datasets: data\.folds is 2 or more, .*; got 4 and 4"):
        load_config(words=["data.fold=4", "data.folds=4"]).data.options()


def test_a_root_of_several_sets_may_hold_the_separator_of_paths():
    several, as_in_path = f"a{os.pathsep}b\n/c", f"a{os.pathsep}b"  # several --data-root are put down so
    for root, roots in ((several, [as_in_path, "/c"]), (as_in_path, ["a", "b"])):
        assert load_config(words=["data.dataset=PARA+fi", f"data.root={root}"]).data.roots == roots
        assert Data(dataset="para", root=root).roots == [root]


def test_workers_take_the_spare_cores_of_a_process(monkeypatch):
    def workers(cores: int, processes: int) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        return Data().worker_count()

    assert [workers(6, 1), workers(6, 2), workers(1, 1), workers(64, 1)] == [5, 2, 0, 8]
    assert [Data(workers=n).worker_count() for n in (0, 3)] == [0, 3]


def test_a_tilde_in_any_path_is_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "c.yaml").write_text("train: {emotion_maps: ~/maps}\ndata: {maximum: ~, images: a~}\n")
    config = load_config([tmp_path / "c.yaml"], ["data.dataset=para+fi", f"data.root=~/P{os.pathsep}~/F"])
    assert (config.train.emotion_maps, config.data.maximum) == ("/home/me/maps", None)
    assert (config.data.roots, config.data.images) == (["/home/me/P", "/home/me/F"], "a~")
    with pytest.raises(
        ValueError, match="~nobody-here/P: this home folder is not known; write the path with"
    ):
        load_config([], ["data.root=~nobody-here/P"])
