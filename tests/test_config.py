"""Settings: what the shipped files hold, how sources are laid over each other, what is refused and how."""

import math
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import yaml

from eamb.network.outputs import SMALLEST_SIDE
from eamb.readers.rated import DataOptions
from eamb.runtime.config import CHOICES, KEYS, SMALLEST, Config, Data, as_yaml, from_dict, load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
OFFICIAL = next(path for path in CONFIGS if path.name == "official.yaml")
COMPLETE = [path for path in CONFIGS if path != OFFICIAL]
OF_ONE_SET = [path for path in COMPLETE if load_config([path]).data.dataset]


def message(*words: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_config(words=words)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- the shipped files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_opens_with_its_command(path):
    load_config([path])
    comment = [line for line in path.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    commands = [line for line in comment[1:] if line.startswith("#   python main.py train ")]
    assert comment[0].startswith("# ")
    assert len(commands) == 1


@pytest.mark.parametrize("path", OF_ONE_SET, ids=lambda path: path.name)
def test_a_config_names_the_set_of_its_own_command(path):
    [command] = [line for line in path.read_text().splitlines() if line.startswith("#   python main.py")]
    assert f"--dataset {load_config([path]).data.dataset} " in command


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.name)
def test_official_lays_its_quirks_over_any_config_and_leaves_the_rest(path):
    before, after = load_config([path]), load_config([path, OFFICIAL])
    assert (after.data.exif, after.data.score_range) == (False, "official")
    assert (after.model.emotion_batchnorm, after.loss.emd_reduction) == ("official", "batch")
    restored = replace(
        after,
        data=replace(after.data, exif=before.data.exif, score_range=before.data.score_range),
        model=replace(after.model, emotion_batchnorm=before.model.emotion_batchnorm),
        loss=replace(after.loss, emd_reduction=before.loss.emd_reduction),
    )
    assert restored == before


@pytest.mark.parametrize(
    "name, epochs, schedule", [("ava", 30, "ava"), ("para", 100, "para"), ("iae", 30, "ava")]
)
def test_published_recipes(name, epochs, schedule):
    config = load_config([OFFICIAL.with_name(f"{name}.yaml")])
    assert (config.data.size, config.model.backbone) == (512, "resnet50")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 3e-5, 0)
    assert (config.train.epochs, config.train.batch_size, optimizer.schedule) == (epochs, 24, schedule)


@pytest.mark.parametrize("name", ["para_lite", "emotion_para_lite"])
def test_lite_is_efficientnet_lite0_at_224(name):
    config = load_config([OFFICIAL.with_name(f"{name}.yaml")])
    assert (config.model.backbone, config.model.width, config.data.size) == (
        "tf_efficientnet_lite0",
        128,
        224,
    )


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
        ("data.threshold=2.5", 2.5),
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


def test_an_empty_file_changes_nothing(tmp_path):
    assert load_config([write(tmp_path / "empty.yaml", "# nothing\n")]) == Config()


def test_a_config_survives_the_way_through_a_dictionary_and_through_yaml(tmp_path):
    words = ["task=emotion", "data.threshold=3", "optimizer.learning_rate=1e-3", "train.seed=7"]
    config = load_config([OFFICIAL], words)
    assert config != Config()
    assert from_dict(config.as_dict()) == config
    assert load_config([write(tmp_path / "saved.yaml", as_yaml(config))]) == config
    assert from_dict(yaml.safe_load(as_yaml(config))) == config


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Config().train.epochs = 3


# ---- what is refused


@pytest.mark.parametrize(
    "word, near",
    [
        ("optimizer.learning_rat=1", "optimizer.learning_rate"),
        ("learning_rate=1", "optimizer.learning_rate"),
        ("train.epoch=1", "train.epochs"),
        ("tasks=emotion", "task"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(word, near):
    found = message(word)
    assert f"unknown key '{word.partition('=')[0]}'" in found
    assert f"did you mean '{near}'?" in found


def test_a_key_near_to_none_is_answered_with_the_sections():
    assert "sections are data, model, loss, optimizer, train, evaluate" in message("zzzzzz=1")


@pytest.mark.parametrize(
    "word, expected",
    [
        ("train.epochs=2.5", "'train.epochs' must be a whole number, got 2.5"),
        ("train.epochs=many", "'train.epochs' must be a whole number, got 'many'"),
        ("train.epochs=true", "'train.epochs' must be a whole number, got True"),
        ("train.epochs=", "'train.epochs' must be a whole number, got ''"),
        ("data.exif=1", "'data.exif' must be true or false, got 1"),
        ("optimizer.learning_rate=fast", "'optimizer.learning_rate' must be a number, got 'fast'"),
        ("optimizer.learning_rate=true", "'optimizer.learning_rate' must be a number, got True"),
        ("optimizer.learning_rate=null", "'optimizer.learning_rate' must be a number, got None"),
        ("optimizer.learning_rate=nan", "'optimizer.learning_rate' must be a number, got 'nan'"),
        ("train.clip=.inf", "'train.clip' must be a number, got '.inf'"),
        ("data.threshold=[1]", "'data.threshold' must be a number, got '[1]'"),
        ("data.threshold={", "cannot read the value of 'data.threshold': '{'"),
        ("train.epochs", "'train.epochs' is neither an option nor key=value"),
    ],
)
def test_a_wrong_type_names_key_expectation_and_value(word, expected):
    assert expected in message(word)


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_outside_the_choices_is_answered_with_them(key):
    assert f"'{key}' must be one of {', '.join(CHOICES[key])}, got 'nonsense'" in message(f"{key}=nonsense")
    for choice in CHOICES[key]:
        load_config(words=[f"{key}={choice}"])


@pytest.mark.parametrize("key", SMALLEST)
def test_a_number_below_what_works_is_refused(key):
    smallest = SMALLEST[key]
    load_config(words=[f"{key}={smallest}"])
    assert f"'{key}' must be at least {smallest}, got {smallest - 1}" in message(f"{key}={smallest - 1}")


def test_limits_and_choices_are_of_keys_that_exist():
    assert {*SMALLEST, *CHOICES} <= set(KEYS)
    assert SMALLEST["data.size"] == SMALLEST_SIDE
    config = Config().as_dict()
    for key, choices in CHOICES.items():
        section, _, name = key.rpartition(".")
        assert (config[section][name] if section else config[name]) in choices


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "# mine\ntrain:\n  seed: 3\n  epoch: 3",
            "mine.yaml line 4: unknown key 'train.epoch'; did you mean 'train.epochs'?",
        ),
        ("training: {epochs: 3}", "unknown key 'training.epochs'; did you mean 'train.epochs'?"),
        ("loss: {}\ntrain:\n", "mine.yaml line 2: 'train' is a section; write 'train:' and its keys below"),
        ("train: 3", "mine.yaml line 1: 'train' is a section"),
        ("task: emotion\n1: 2", "mine.yaml line 2: unknown key '1'"),
        ("train: {1: 2}", "unknown key 'train.1'"),
        ("\n- train", "mine.yaml line 2: a config holds 'section:' with 'key: value' lines below, got a seq"),
        ("train: [", "is not YAML: while parsing"),
        ("train:\n  seed: 3\ndata:\n\n  root: 12", "mine.yaml line 5: 'data.root' must be text, got 12"),
        ("train:\n  precision: half", "mine.yaml line 2: 'train.precision' must be one of fp32, bf16, fp16"),
        ("train:\n  seed: 3\n  epochs: 0", "mine.yaml line 3: 'train.epochs' must be at least 1, got 0"),
        ("train:\n  average: 1", "mine.yaml line 2: 'train.average' must be below 1, got 1"),
        ("train:\n  clip: ten", "mine.yaml line 2: 'train.clip' must be a number, got 'ten'"),
        ("train:\n  epochs: 4\n  epochs: 5", "mine.yaml line 3: 'epochs' is there twice"),
        ("train: {epochs: 4}\nloss: {}\ntrain: {seed: 5}", "mine.yaml line 3: 'train' is there twice"),
        ("train: {epochs: 4}\ntrain.epochs: 5", "mine.yaml line 2: 'train.epochs' is there twice"),
        ("train.epochs: 5\ntrain: {epochs: 4}", "mine.yaml line 2: 'train.epochs' is there twice"),
        ("train: {epochs: [1]}", "mine.yaml line 1: 'train' takes single values, got a sequence"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: {epochs: *b}", "line 1: 'a' takes single values"),
        ("train: &a {seed: *a}", "mine.yaml line 1: 'train' takes single values, got a mapping"),
        (
            "train: {epochs: 1:30}",
            "mine.yaml line 1: 'train.epochs' must be a whole number, got '1:30'",
        ),  # 90 in YAML
        ("train: {epochs: 010}", "'train.epochs' must be a whole number, got '010'"),  # 8 in YAML 1.1
        ("train: {epochs: 1_0}", "'train.epochs' must be a whole number, got '1_0'"),
        ("train: {clip: 1_0.5}", "'train.clip' must be a number, got '1_0.5'"),
        ("train: {epochs: 2024-13-45}", "must be a whole number, got '2024-13-45'"),
        ("train: {epochs: !!python/object/apply:os.getcwd []}", "'train' takes single values"),
        ("data: {exif: !!bool maybe}", "'data.exif' must be true or false, got 'maybe'"),
        ("[" * 5000, "is not YAML: "),
    ],
)
def test_a_wrong_file_is_one_sentence_that_says_what_is_wrong(tmp_path, text, expected):
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(ValueError, match=r"^config: ") as caught:
        load_config([path])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_two_files_the_one_with_the_error_is_named_and_words_have_no_line(tmp_path):
    good = write(tmp_path / "good.yaml", "train:\n  seed: 1\n  epochs: 4")
    bad = write(tmp_path / "bad.yaml", "train:\n  epochs: many")
    with pytest.raises(ValueError, match=r"^config: .*bad\.yaml line 2: 'train\.epochs' must be"):
        load_config([good, bad])
    with pytest.raises(ValueError, match=r"^config: command line: 'train\.epochs' must be"):
        load_config([good], ["train.epochs=many"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.yaml; the shipped ones are in configs/"):
        load_config([tmp_path / "none.yaml"])


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config([tmp_path / "binary.yaml"])


# ---- what others read from it


def test_data_options_take_their_part():
    data = load_config(words=["data.validation=0.2", "data.score_column=mos", "data.threshold=3"]).data
    options = data.options(DataOptions)
    assert (options.validation, options.score_column, options.threshold) == (0.2, "mos", 3.0)
    assert Data().options(DataOptions) == DataOptions()  # the defaults are the same in both files


def test_workers_take_the_spare_cores_of_a_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [Data(workers=n).worker_count() for n in (-1, 0, 3)] == [5, 0, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Data().worker_count() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert Data().worker_count() == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert Data().worker_count() == 8


def test_numbers_stay_exact_through_yaml(tmp_path):
    config = load_config(words=["optimizer.learning_rate=0.1", "data.maximum=1e300"])
    again = load_config([write(tmp_path / "saved.yaml", as_yaml(config))])
    assert again.optimizer.learning_rate == 0.1
    assert math.isclose(again.data.maximum, 1e300, rel_tol=0)
