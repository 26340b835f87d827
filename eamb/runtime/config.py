"""The settings of a run: frozen dataclasses, filled from YAML files, then from key=value words.

Later sources win, key by key. An unknown key, a wrong type or a value that is not among the choices is an
error before anything is built.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from yaml.constructor import SafeConstructor

CHOICES = {
    "task": ("aesthetics", "emotion", "series"),
    "data.target": ("auto", "distribution", "score", "label"),
    "data.score_range": ("sound", "official"),
    "model.network": ("eambnet", "linear", "resnet", "paunit"),
    "model.emotion_weights": ("required", "none"),
    "model.emotion_batchnorm": ("frozen", "official"),
    "loss.emd_reduction": ("image", "batch"),
    "loss.class_weights": ("none", "balanced"),
    "loss.class_shift": ("sets", "none"),
    "loss.preference": ("majority", "share"),
    "optimizer.name": ("adam", "adamw", "sgd"),
    "optimizer.schedule": ("constant", "ava", "para", "series", "one_cycle"),
    "train.precision": ("fp32", "bf16", "fp16"),
    "train.gradient_precision": ("fp32", "bf16"),
    "train.validate_on": ("val", "test"),
}

SMALLEST = {  # values that are numbers but below what can work; the networks check their own
    "data.size": 64,  # pixels, EAMBNet.SMALLEST_SIDE
    "data.workers": -1,
    "data.limit": 0,
    "data.folds": 0,
    "data.fold": 0,
    "loss.emd_r": 1,
    "loss.emotion_weight": 0,
    "loss.correlation_weight": 0,
    "optimizer.learning_rate": 0,
    "optimizer.backbone_factor": 0,
    "optimizer.weight_decay": 0,
    "train.epochs": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.clip": 0,
    "train.seed": 0,
    "train.average": 0,
    "train.checkpoint_minutes": 0,
    "train.log_every": 1,
    "evaluate.batch_size": 1,
    "evaluate.bootstrap": 0,
}

BELOW = {"train.average": 1}


@dataclass(frozen=True)
class Data:
    """Which pictures and ratings, and how they are read. `datasets.DataOptions` explains the column keys.

    Several sets, for the task emotion, are written "para+fi", and their roots as in PATH: "PARA:FI".
    """

    dataset: str = ""
    root: str = ""
    size: int = 512  # pixels; pictures are resized to size x size, aspect not kept (the paper's input)
    exif: bool = True  # turn pictures as their EXIF orientation says; false is the official code's behaviour
    flip: bool = True  # in training mirror every other picture, by chance
    crop: bool = False  # keep the aspect and cut out the middle instead of squashing
    validation: float = 0.05  # share of the training pool, where a set has no validation split of its own
    workers: int = -1  # decoding processes; -1: one per spare core, at most 8
    skip_broken: bool = False
    limit: int = 0  # first so many training pictures of each set in the order of their ids' hashes; 0: all
    repeat: str = ""  # with several sets: how often an epoch shows each one's training pictures, as in "1,10"
    folds: int = 0  # cross-validation of sets without a split of their own: test is fold `fold` of `folds`
    fold: int = 0  # from 0
    target: str = "auto"
    score_range: str = "sound"
    twins: bool = True
    table: str = ""
    images: str = ""
    path_column: str = ""
    score_column: str = ""
    count_columns: str = ""
    emotion_columns: str = ""
    split_column: str = ""
    minimum: float | None = None
    maximum: float | None = None
    threshold: float | None = None

    @property
    def names(self) -> list[str]:
        """Of the sets, one or several."""
        return self.dataset.lower().split("+")

    @property
    def roots(self) -> list[str]:
        """The folder of each set; one of a single set may have any name."""
        return self.root.split(os.pathsep) if len(self.names) > 1 else [self.root]

    def options(self, cls: type) -> Any:
        """The part of these settings that a dataclass of the same field names takes."""
        return cls(**{f.name: getattr(self, f.name) for f in fields(cls)})

    def worker_count(self) -> int:
        """Decoding processes of each training process: the spare cores, at most 8; none on a single core."""
        if self.workers >= 0:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


@dataclass(frozen=True)
class Model:
    """The network's shape (`EAMBNet.build_model`) and where its first weights come from.

    network: "eambnet", or "linear", the field's baseline: the whole backbone and one linear layer. For the
        task series "resnet" or "paunit" (`series.py`), on any backbone.
    symmetric: of the pair networks: P(A over B) + P(B over A) = 1; false is the published behaviour.
    without: parts that an ablation leaves out, as in "emotion,attention" (`EAMBNet.PARTS`).
    shortcut: not the paper's: the context branch's deepest map enters the head too.
    """

    network: str = "eambnet"
    backbone: str = "resnet50"
    width: int = 256
    guided_width: int = 56
    guided_hidden: int = 16
    head_width: int = 128
    dropout: float = 0.75
    context_scale: float = 0.5  # how much the two small branches shrink their input
    emotion_scale: float = 0.5
    emotion_batchnorm: str = "frozen"
    without: str = ""
    shortcut: bool = False
    symmetric: bool = True
    emotions: str = ""  # class names, in order, for an official emotion file whose list is not the usual one
    emotion_weights: str = "required"  # "none" allows an emotion branch that was never trained on emotions
    imagenet: str = "auto"  # "auto", "none" or a local file


@dataclass(frozen=True)
class Loss:
    """How the distance of rating distributions becomes one number (`losses.emd_loss`), and what emotions add.

    class_weights: "balanced" lets every emotion count alike, however rare its votes are. Sets are lopsided
        (58 % of PARA's votes are "neutral"), so that a network may never name a rare emotion first; balanced
        weights mend this, and make the predicted shares of votes wrong. None by default, for right shares.
    class_shift: "sets" takes into account, of several sets, how often each shows a class
        (`losses.class_shift`); "none" lets the network learn this choice as if pictures showed it.
    emotion_weight: above 0 the emotion branch of an aesthetic network is trained too, and its loss is added
        with this weight. The paper freezes it.
    correlation_weight: above 0 the loss of scores gets 1 - PLCC of each batch, times this (not the paper's).
    preference: of pairs: "majority" learns which photograph most people prefer, as published; "share" learns
        how many do.
    """

    emd_r: float = 2.0
    emd_reduction: str = "image"
    class_weights: str = "none"
    class_shift: str = "sets"
    emotion_weight: float = 0.0
    correlation_weight: float = 0.0
    preference: str = "majority"


@dataclass(frozen=True)
class Optimizer:
    """`engine.learning_rate` explains the schedules; sgd has a momentum of 0.9."""

    name: str = "adam"
    learning_rate: float = 3e-5
    backbone_factor: float = 1.0  # times this for the backbones, which start from ImageNet's weights
    weight_decay: float = 0.0
    schedule: str = "constant"


@dataclass(frozen=True)
class Train:
    """How long, how fast, and what is kept.

    average: above 0, what is validated and kept is a moving average of the weights, in which those before a
        step count this much (as in 0.999) and those after it the rest (Polyak averaging).
    emotion_maps: a folder where the frozen emotion branch's maps are kept (`emotion_maps.py`), computed once
        and not in every epoch and run; empty: not kept.
    gradient_precision: of what several processes send each other; "bf16" halves the bytes and rounds each
        gradient to 8 bits.
    sync_batchnorm: BatchNorm over the pictures of all processes, not of each; CUDA only, not measured by us.
    log_every: optimizer steps between two readings of the loss on CUDA, where each makes the GPU wait; then
        several processes also agree on signals and checkpoints. The figures do not depend on it.
    compile: run the training step through torch.compile. Minutes at the start; on a CPU it was no faster; on
        CUDA in bf16 Lite's gradients were no numbers with torch 2.11.
    recompute: compute the inner maps of the backbones' blocks again for the gradient instead of keeping them:
        three quarters to four fifths of the memory, a fifth to two fifths more time, the same numbers
        (`recompute.py`).
    """

    epochs: int = 30
    batch_size: int = 24  # over all processes together
    accumulate: int = 1  # batches per optimizer step
    clip: float = 0.0  # largest gradient norm; 0: no clipping
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    checkpoint_minutes: float = 10.0
    log_every: int = 10
    validate_on: str = "val"  # "test" scores the test set each epoch, as the official PARA code does
    score_test: bool = True
    average: float = 0.0
    emotion_maps: str = ""
    gradient_precision: str = "fp32"
    sync_batchnorm: bool = False
    compile: bool = False
    recompute: bool = False


@dataclass(frozen=True)
class Evaluate:
    """Validation and test, always in fp32."""

    batch_size: int = 32  # of each process
    bootstrap: int = 1000  # resamples for the 95 % intervals; 0: none


@dataclass(frozen=True)
class Config:
    """All settings of a run; a key is `section.name`, or `task`."""

    task: str = "aesthetics"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def as_dict(self) -> dict:
        return asdict(self)

    def without_root(self) -> dict:
        """As `as_dict`, to be published: folders of the machine it ran on say nothing elsewhere."""
        maps = "kept" if self.train.emotion_maps else ""
        data, train = replace(self.data, root=""), replace(self.train, emotion_maps=maps)
        return replace(self, data=data, train=train).as_dict()


SECTIONS = {f.name: f.default_factory for f in fields(Config) if f.name != "task"}

KEYS = {"task": str} | {
    f"{section}.{name}": kind
    for section, cls in SECTIONS.items()
    for name, kind in get_type_hints(cls).items()
}


def load_config(files: Iterable[Path | str] = (), words: Iterable[str] = ()) -> Config:
    """The defaults, changed by YAML files and then by `key=value` words, in their order.

    Raises:
        ValueError: an unknown key (with the nearest name), a wrong type, a value not among the choices; with
            the line, if it stands in a file.
        FileNotFoundError: no such file.
    """
    settings: dict[str, Any] = {}
    for file in files:
        content, lines = read_yaml(Path(file))
        settings |= flatten(content, str(file), lines)
    for word in words:
        settings |= parse_word(word)
    return from_settings(settings)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What a file says, as {section: {key: value}}, and where, as {"section.key": line}, from 1.

    Each may be there once. Only YAML's nodes are read, and nothing is made of them but text, numbers, true,
    false and null.
    """
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path}; the shipped ones are in configs/")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"config: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode | None):
        where = place(path, line_of(node))
        raise ValueError(
            f"config: {where}: a config holds 'section:' with 'key: value' lines below, got a {node.id}"
        )
    lines: dict[str, int] = {}
    return (members(node, path, lines) if node else {}), lines


def line_of(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def place(source: Path | str, line: int | None) -> str:
    """As in "configs/mine.yaml line 3"; the source alone where there are no lines."""
    return f"{source} line {line}" if line else str(source)


def members(
    node: yaml.MappingNode, path: Path, lines: dict[str, int], section: str | None = None
) -> dict[str, Any]:
    """The keys of a file, or of one section, with their values.

    Args:
        lines: gets the line of each key.
    """
    content = {}
    for key, value in node.value:
        where = f"config: {place(path, line_of(key))}"
        name = " ".join(key.value.split()) if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
        if name in content:
            raise ValueError(f"{where}: '{name}' is there twice")
        lines[name if section is None else f"{section}.{name}"] = line_of(key)
        if isinstance(value, yaml.MappingNode) and section is None:
            content[name] = members(value, path, lines, name)
        elif isinstance(value, yaml.ScalarNode):
            content[name] = plain(value)
        else:
            raise ValueError(f"{where}: '{section or name}' takes single values, got a {value.id}")
    return content


def plain(node: yaml.ScalarNode) -> Any:
    """A value as its text reads: YAML 1.1 would also take 1:30 for 90, 010 for 8 and 1_0 for 10."""
    text, kind = node.value, node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return SafeConstructor.bool_values.get(text.lower(), text)
    if kind == "int" and WHOLE.fullmatch(text):
        return int(text)
    return float(text) if kind == "float" and DECIMAL.fullmatch(text) else text


def flatten(content: dict, source: str, lines: dict[str, int] | None = None) -> dict[str, Any]:
    """{'train': {'epochs': 3}} -> {'train.epochs': 3}, every key known.

    Args:
        lines: of the keys, where the source has lines.
    """

    def where(key: str) -> str:
        return place(source, (lines or {}).get(key))

    settings = {}
    for name, value in content.items():
        if name in SECTIONS and not isinstance(value, dict):
            raise ValueError(
                f"config: {where(name)}: '{name}' is a section; write '{name}:' and its keys below"
            )
        inner = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        if twice := inner.keys() & settings:
            raise ValueError(f"config: {where(min(twice))}: '{min(twice)}' is there twice")
        settings |= {str(key): v for key, v in inner.items()}
    for key in settings:
        check_key(key, where(key))
    return {key: checked(key, value, where(key)) for key, value in settings.items()}


def parse_word(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"config: '{word}' is neither an option nor key=value, as in train.epochs=3")
    check_key(key, "command line")
    try:
        node = None if KEYS[key] is str else yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"config: cannot read the value of '{key}': {text!r:.80}") from error
    value = plain(node) if isinstance(node, yaml.ScalarNode) else text
    return {key: checked(key, value, "command line")}


def check_key(key: str, source: str) -> None:
    if key not in KEYS:
        near = get_close_matches(key, KEYS, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; sections are {', '.join(SECTIONS)}"
        raise ValueError(f"config: {source}: unknown key '{key}'{hint}")


def from_settings(settings: dict[str, Any]) -> Config:
    """Builds a Config from flat keys ('train.epochs') and checked values."""
    config = Config()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        if not section:
            config = replace(config, **{name: value})
        else:
            config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def from_dict(content: dict) -> Config:
    """The inverse of `Config.as_dict`, for a config that was saved in a checkpoint."""
    return from_settings(flatten(content, "checkpoint"))


def checked(key: str, value: Any, source: str) -> Any:
    """The value, if its key takes such values."""
    kind, where = KEYS[key], f"config: {source}: '{key}' must be"
    if kind is float or kind == float | None:
        value = as_number(value, where, optional=kind is not float)
    elif type(value) is not kind:
        raise ValueError(f"{where} {NAMES[kind]}, got {value!r:.80}")
    if key in CHOICES and value not in CHOICES[key]:
        raise ValueError(f"{where} one of {', '.join(CHOICES[key])}, got {value!r:.80}")
    if key in SMALLEST and value < SMALLEST[key]:
        raise ValueError(f"{where} at least {SMALLEST[key]}, got {value:g}")
    if key in BELOW and value >= BELOW[key]:
        raise ValueError(f"{where} below {BELOW[key]}, got {value:g}")
    return value


NAMES = {int: "a whole number", bool: "true or false", str: "text"}

WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})", re.ASCII)

DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def as_number(value: Any, where: str, optional: bool) -> float | None:
    if value is None and optional:
        return None
    text = str(value)  # which it is too if YAML did not read 3e-5 as a number
    number = float(text) if DECIMAL.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} a number, got {value!r:.80}")
    return number


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(config.as_dict(), sort_keys=False)
