"""Settings: what the shipped files hold, how sources are laid over each other, what is refused and how."""

import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import yaml

from eamb.network.names import SMALLEST_SIDE
from eamb.readers.options import DataOptions
from eamb.runtime.config import LIMITS, Config, Data, as_yaml, from_dict, load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
OFFICIAL = next(path for path in CONFIGS if path.name == "official.yaml")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- the shipped files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_opens_with_its_command(path):
    dataset = load_config([path]).data.dataset
    comment = [line for line in path.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    [command] = [line for line in comment[1:] if line.startswith("#   python main.py train ")]
    assert f"--dataset {dataset} " in command or not dataset


def test_official_changes_its_four_settings_and_leaves_the_rest():
    before, after = (load_config([OFFICIAL.with_name("para.yaml"), *more]) for more in ([], [OFFICIAL]))
    assert after == replace(
        before,
        data=replace(before.data, exif=False, score_range="official"),
        model=replace(before.model, emotion_batchnorm="official"),
        loss=replace(before.loss, emd_reduction="batch"),
    )


@pytest.mark.parametrize(
    "name, epochs, schedule", [("ava", 30, "ava"), ("para", 100, "para"), ("iae", 30, "ava")]
)
def test_published_recipes(name, epochs, schedule):
    config = load_config([OFFICIAL.with_name(f"{name}.yaml")])
    assert (config.data.size, config.model.backbone) == (512, "resnet50")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 3e-5, 0)
    assert (config.train.epochs, config.train.batch_size, optimizer.schedule) == (epochs, 24, schedule)


# ---- sources


def test_words_win_over_files_and_later_over_earlier(tmp_path):
    first = write(tmp_path / "1.yaml", "train: {epochs: 3, batch_size: 5, seed: 8}")
    second = write(tmp_path / "2.yaml", "train: {epochs: 4, batch_size: 6}")
    train = load_config([first, second], ["train.epochs=7", "train.epochs=9"]).train
    assert (train.epochs, train.batch_size, train.seed) == (9, 6, 8)
    assert load_config([second, first]).train.epochs == 3


@pytest.mark.parametrize(
    "word, expected",
    [
        ("optimizer.learning_rate=1e-3", 1e-3),  # YAML 1.1 reads it as text
        ("optimizer.learning_rate=3", 3.0),
        ("data.threshold=null", None),
        ("data.exif=false", False),
        ("data.score_column=123", "123"),
        ("data.count_columns=a=1,b=2", "a=1,b=2"),
        ("data.root=", ""),
        ("data.path_column=yes", "yes"),
        ("task=emotion", "emotion"),
        ("data.workers=-1", -1),
    ],
)
def test_words_are_read_as_their_keys_type(word, expected):
    config = load_config(words=[word])
    section, _, name = word.partition("=")[0].rpartition(".")
    value = getattr(getattr(config, section) if section else config, name)
    assert value == expected
    assert type(value) is type(expected)


def test_a_config_stays_the_same_through_a_dictionary_and_through_yaml(tmp_path):
    words = ["task=emotion", "data.threshold=3", "optimizer.learning_rate=0.1", "data.maximum=1e300"]
    config = load_config([OFFICIAL], [*words, "data.root=a:b\nc"])
    assert config != Config()
    assert from_dict(config.as_dict()) == config
    assert load_config([write(tmp_path / "saved.yaml", as_yaml(config))]) == config
    assert from_dict(yaml.safe_load(as_yaml(config))) == config
    assert load_config([write(tmp_path / "empty.yaml", "# nothing\n")]) == Config()
    with pytest.raises(FrozenInstanceError):
        config.task = "series"


# ---- what is refused


@pytest.mark.parametrize(
    "word, expected",
    [
        ("optimizer.learning_rat=1", "key 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?"),
        ("learning_rate=1", "unknown key 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        ("zzzzzz=1", "'zzzzzz'; sections are data, model, loss, optimizer, train, evaluate"),
        ("train.epochs=2.5", "command line: 'train.epochs' must be a whole number, got 2.5"),
        ("train.epochs=true", "'train.epochs' must be a whole number, got True"),
        ("train.epochs=", "'train.epochs' must be a whole number, got ''"),
        ("data.exif=1", "'data.exif' must be true or false, got 1"),
        ("optimizer.learning_rate=true", "'optimizer.learning_rate' must be a number, got True"),
        ("optimizer.learning_rate=null", "'optimizer.learning_rate' must be a number, got None"),
        ("optimizer.learning_rate=nan", "'optimizer.learning_rate' must be a number, got 'nan'"),
        ("train.clip=1e999", "'train.clip' must be a number, got '1e999'"),
        ("data.threshold=[1]", "'data.threshold' must be a number, got '[1]'"),
        ("data.threshold={", "cannot read the value of 'data.threshold': '{'"),
        ("train.epochs", "'train.epochs' is neither an option nor key=value"),
        ("train.precision=half", "'train.precision' must be one of fp32, bf16, fp16, got 'half'"),
        (
            "data.target=emotion",
            "'data.target' must be one of auto, distribution, score, label, got 'emotion'",
        ),
        ("data.size=63", f"'data.size' must be at least {SMALLEST_SIDE}, got 63"),
        ("train.average=1", "'train.average' must be below 1, got 1"),
    ],
)
def test_a_wrong_word_names_key_expectation_and_value(word, expected):
    with pytest.raises(ValueError, match=r"^config: ") as caught:
        load_config(words=[word])
    assert expected in str(caught.value)


def test_the_limits_themselves_are_allowed():
    words = [f"{key}={limits['least']}" for key, limits in LIMITS.items() if "least" in limits]
    assert len(words) > 15
    assert load_config(words=words).train.average == 0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("train:\n  seed: 3\n  epoch: 3", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("loss: {}\ntrain:\n", "'train' is a section; write 'train:' and its keys below"),
        ("task: emotion\n1: 2", "unknown key '1'"),
        ("\n- train", "a config holds 'section:' with 'key: value' lines below, got a sequence"),
        ("train:\n  seed: 3\ndata:\n\n  root: 12", "'data.root' must be text, got 12"),
        ("train:\n  clip: ten", "'train.clip' must be a number, got 'ten'"),
        ("train:\n  epochs: 4\n  epochs: 5", "'epochs' is there twice"),
        ("train: {epochs: 4}\nloss: {}\ntrain: {seed: 5}", "'train' is there twice"),
        ("train.epochs: 5\ntrain: {epochs: 4}", "'train.epochs' is there twice"),
        ("train: {epochs: [1]}", "'train' takes single values, got a sequence"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: {epochs: *b}", "'a' takes single values"),
        ("train: &a {seed: *a}", "'train' takes single values, got a mapping"),
        ("train: {epochs: 1:30}", "'train.epochs' must be a whole number, got '1:30'"),  # 90 in YAML
        ("train: {epochs: 010}", "'train.epochs' must be a whole number, got '010'"),  # 8 in YAML 1.1
        ("train: {clip: 1_0.5}", "'train.clip' must be a number, got '1_0.5'"),
        ("train: {epochs: 2024-13-45}", "must be a whole number, got '2024-13-45'"),
        ("train: {epochs: !!python/object/apply:os.getcwd []}", "'train' takes single values"),
        ("data: {exif: !!bool maybe}", "'data.exif' must be true or false, got 'maybe'"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_says_what_is_wrong(tmp_path, text, expected):
    good, bad = write(tmp_path / "good.yaml", "train: {seed: 1}"), write(tmp_path / "bad.yaml", text)
    with pytest.raises(ValueError, match=r"^config: .*bad\.yaml: ") as caught:
        load_config([good, bad])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"train: [", b"[" * 5000, b"\xff\xfe\x00"])
def test_a_file_that_is_not_yaml_or_not_there_is_named(content, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"^config: .*mine\.yaml is not YAML: "):
        load_config([tmp_path / "mine.yaml"])
    with pytest.raises(FileNotFoundError, match=r"no file .*none.yaml; the shipped ones are in configs/"):
        load_config([tmp_path / "none.yaml"])


# ---- what others read from it


def test_data_options_are_a_part_of_the_settings():
    data = load_config(words=["data.validation=0.2", "data.folds=4", "data.fold=3", "data.size=128"]).data
    assert data.options() == DataOptions(validation=0.2, folds=4, fold=3)
    with pytest.raises(ValueError, match=r"^datasets: data\.folds is 2 or more, .*; got 4 and 4"):
        load_config(words=["data.fold=4", "data.folds=4"]).data.options()


@pytest.mark.parametrize(
    "root, roots",
    [
        (f"a{os.pathsep}b\n/c", [f"a{os.pathsep}b", "/c"]),  # as several --data-root are put down
        (f"a{os.pathsep}b", ["a", "b"]),  # as in PATH
    ],
)
def test_a_root_of_several_sets_may_hold_the_separator_of_paths(root, roots):
    assert load_config(words=["data.dataset=PARA+fi", f"data.root={root}"]).data.roots == roots
    assert Data(dataset="para", root=root).roots == [root]


def test_workers_take_the_spare_cores_of_a_process(monkeypatch):
    def workers(cores: int, processes: int) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        return Data().worker_count()

    assert [workers(6, 1), workers(6, 2), workers(1, 1), workers(64, 1)] == [5, 2, 0, 8]
    assert [Data(workers=n).worker_count() for n in (0, 3)] == [0, 3]
