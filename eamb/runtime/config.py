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

from eamb.network.names import NETWORKS, SMALLEST_SIDE, TASKS
from eamb.readers.options import DataOptions, limited, one_of


@dataclass(frozen=True)
class Data(DataOptions):
    """Which pictures and ratings, and how they are read. `DataOptions` explains targets, splits and columns.

    Several sets, for the task emotion, are written "para+fi", and their roots each on a line of its own, or
    as in PATH: "PARA:FI".
    """

    dataset: str = ""
    root: str = ""
    size: int = limited(512, least=SMALLEST_SIDE)  # pixels; squashed to size x size (the paper's input)
    exif: bool = True  # turn pictures as their EXIF orientation says; false is the official code's behaviour
    flip: bool = True  # in training mirror every other picture, by chance
    crop: bool = False  # keep the aspect and cut out the middle instead of squashing
    workers: int = limited(-1, least=-1)  # decoding processes; -1: one per spare core, at most 8
    skip_broken: bool = False
    limit: int = limited(0, least=0)  # training pictures of each set, the first by their ids' hashes; 0: all

    def __post_init__(self):
        pass  # `options` checks what depends on other keys, when all sources are read

    @property
    def names(self) -> list[str]:
        """Of the sets, one or several."""
        return self.dataset.lower().split("+")

    @property
    def roots(self) -> list[str]:
        """The folder of each set; that of a single set may have any name."""
        if len(self.names) == 1:
            return [self.root]
        return self.root.split("\n" if "\n" in self.root else os.pathsep)

    def options(self, cls: type = DataOptions) -> Any:
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
        task series "resnet" or "paunit" (`eamb/network/pair_networks.py`), on any backbone.
    symmetric: of the pair networks: P(A over B) + P(B over A) = 1; false is the published behaviour.
    without: parts that an ablation leaves out, as in "emotion,attention" (`EAMBNet.PARTS`).
    shortcut: not the paper's: the context branch's deepest map enters the head too.
    """

    network: str = one_of(*NETWORKS)
    backbone: str = "resnet50"
    width: int = 256
    guided_width: int = 56
    guided_hidden: int = 16
    head_width: int = 128
    dropout: float = 0.75
    context_scale: float = 0.5  # how much the two small branches shrink their input
    emotion_scale: float = 0.5
    emotion_batchnorm: str = one_of("frozen", "official")
    without: str = ""
    shortcut: bool = False
    symmetric: bool = True
    emotions: str = ""  # class names, in order, for an official emotion file whose list is not the usual one
    emotion_weights: str = one_of("required", "none")  # "none" allows a branch never trained on emotions
    imagenet: str = "auto"  # "auto", "none" or a local file


@dataclass(frozen=True)
class Loss:
    """How the distance of rating distributions becomes one number (`losses.emd_loss`), and what emotions add.

    class_weights: "balanced" lets every emotion count alike, however rare its votes are. Sets are lopsided
        (58 % of PARA's votes are "neutral"), so that a network may never name a rare emotion first; balanced
        weights mend this, and make the predicted shares of votes wrong. None by default, for right shares.
    class_shift: "sets" takes into account how often each of several sets shows a class
        (`losses.class_shift`); "none" lets the network learn these frequencies as if pictures showed them.
    emotion_weight: above 0 the emotion branch of an aesthetic network is trained too, and its loss is added
        with this weight. The paper freezes it.
    correlation_weight: above 0 the loss of scores gets 1 - PLCC of each batch, times this (not the paper's).
    preference: of pairs: "majority" learns which photograph most people prefer, as published; "share" learns
        how many do.
    """

    emd_r: float = limited(2.0, least=1)
    emd_reduction: str = one_of("image", "batch")
    class_weights: str = one_of("none", "balanced")
    class_shift: str = one_of("sets", "none")
    emotion_weight: float = limited(0.0, least=0)
    correlation_weight: float = limited(0.0, least=0)
    preference: str = one_of("majority", "share")


@dataclass(frozen=True)
class Optimizer:
    """`engine.learning_rate` explains the schedules; sgd has a momentum of 0.9."""

    name: str = one_of("adam", "adamw", "sgd")
    learning_rate: float = limited(3e-5, least=0)
    backbone_factor: float = limited(1.0, least=0)  # times this for the backbones: ImageNet has trained them
    weight_decay: float = limited(0.0, least=0)
    schedule: str = one_of("constant", "ava", "para", "series", "one_cycle")


@dataclass(frozen=True)
class Train:
    """How long, how fast, and what is kept.

    average: above 0, what is validated and kept is a moving average of the weights: each step multiplies the
        average by this (as in 0.999) and adds the new weights with the rest (Polyak averaging).
    emotion_maps: a folder where the frozen emotion branch's maps are kept (`eamb/training/emotion_maps.py`),
        computed once and not in every epoch and run; empty: not kept.
    gradient_precision: of what several processes send each other; "bf16" halves the bytes and rounds each
        gradient to 8 bits.
    sync_batchnorm: BatchNorm over the pictures of all processes, not of each; CUDA only, not measured by us.
    log_every: optimizer steps between two readings of the loss on CUDA, where each makes the GPU wait; then
        several processes also agree on signals and checkpoints. The figures do not depend on it.
    compile: run the training step through torch.compile. Minutes at the start; on a CPU it was no faster; on
        CUDA in bf16 Lite's gradients became NaN with torch 2.11.
    recompute: compute the inner maps of the backbones' blocks again for the gradient instead of keeping them:
        three quarters to four fifths of the memory, a fifth to two fifths more time, the same numbers.
    """

    epochs: int = limited(30, least=1)
    batch_size: int = limited(24, least=1)  # over all processes together
    accumulate: int = limited(1, least=1)  # batches per optimizer step
    clip: float = limited(0.0, least=0)  # largest gradient norm; 0: no clipping
    seed: int = limited(0, least=0)
    device: str = "auto"
    precision: str = one_of("fp32", "bf16", "fp16")
    checkpoint_minutes: float = limited(10.0, least=0)
    log_every: int = limited(10, least=1)
    validate_on: str = one_of("val", "test")  # the official PARA code scores the test set each epoch
    score_test: bool = True
    average: float = limited(0.0, least=0, below=1)
    emotion_maps: str = ""
    gradient_precision: str = one_of("fp32", "bf16")
    sync_batchnorm: bool = False
    compile: bool = False
    recompute: bool = False


@dataclass(frozen=True)
class Evaluate:
    """Validation and test, always in fp32."""

    batch_size: int = limited(32, least=1)  # of each process
    bootstrap: int = limited(1000, least=0)  # resamples for the 95 % intervals; 0: none


@dataclass(frozen=True)
class Config:
    """All settings of a run; a key is `section.name`, or `task`."""

    task: str = one_of(*TASKS)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def as_dict(self) -> dict:
        content = asdict(self)
        content["data"] = dict.fromkeys(Data.__annotations__) | content["data"]  # its own keys come first
        return content

    def without_root(self) -> dict:
        """As `as_dict`, to be published: without folders of the machine that it ran on."""
        maps = "kept" if self.train.emotion_maps else ""
        data, train = replace(self.data, root=""), replace(self.train, emotion_maps=maps)
        return replace(self, data=data, train=train).as_dict()


SECTIONS = {f.name: f.default_factory for f in fields(Config) if f.name != "task"}
KEYS = {"task": str} | {  # and the type of each
    f"{section}.{name}": kind
    for section, cls in SECTIONS.items()
    for name, kind in get_type_hints(cls).items()
}
LIMITS = {"task": fields(Config)[0].metadata} | {
    f"{section}.{f.name}": f.metadata for section, cls in SECTIONS.items() for f in fields(cls) if f.metadata
}
CHOICES = {key: limits["choices"] for key, limits in LIMITS.items() if "choices" in limits}
SMALLEST = {key: limits["least"] for key, limits in LIMITS.items() if "least" in limits}


def load_config(files: Iterable[Path | str] = (), words: Iterable[str] = ()) -> Config:
    """The defaults, changed by YAML files and then by `key=value` words, in their order.

    Raises:
        ValueError: an unknown key (with the nearest name), a wrong type, a value not among the choices; with
            the file, if it stands in one.
        FileNotFoundError: no such file.
    """
    return from_settings(read_settings(files, words))


def read_settings(files: Iterable[Path | str], words: Iterable[str]) -> dict[str, Any]:
    """What YAML files and then words say, as flat keys ("train.epochs") with checked values."""
    settings: dict[str, Any] = {}
    for file in files:
        settings |= {key: checked(key, value, str(file)) for key, value in read_yaml(Path(file)).items()}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"config: '{word}' is neither an option nor key=value, as in train.epochs=3")
        try:
            node = None if KEYS.get(key, str) is str else yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"config: cannot read the value of '{key}': {text!r:.80}") from error
        value = plain(node) if isinstance(node, yaml.ScalarNode) else text
        settings[key] = checked(key, value, "command line")
    return settings


def read_yaml(path: Path) -> dict[str, Any]:
    """What a file says, as flat keys."""
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path}; the shipped ones are in configs/")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"config: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode | None):
        raise ValueError(
            f"config: {path}: a config holds 'section:' with 'key: value' lines below, got a {node.id}"
        )
    return read_mapping(node, path) if node else {}


def read_mapping(node: yaml.MappingNode, path: Path, section: str = "") -> dict[str, Any]:
    """A file or one section of it as flat keys, each there once.

    Made from YAML's nodes, so that nothing comes of a file but text, numbers, true, false and null.
    """
    settings, names = {}, set()
    for key, value in node.value:
        name = " ".join(key.value.split()) if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
        flat = f"{section}.{name}" if section else name
        if isinstance(value, yaml.ScalarNode):
            content = {flat: plain(value)}
        elif isinstance(value, yaml.MappingNode) and not section:
            content = read_mapping(value, path, name)
        else:
            raise ValueError(f"config: {path}: '{section or name}' takes single values, got a {value.id}")
        if twice := ({name} & names) or (content.keys() & settings):
            raise ValueError(f"config: {path}: '{min(twice)}' is there twice")
        settings |= content
        names.add(name)
    return settings


WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})", re.ASCII)
DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


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


def checked(key: str, value: Any, source: str) -> Any:
    """The value, if there is such a key and it takes such values."""
    if key in SECTIONS:
        raise ValueError(f"config: {source}: '{key}' is a section; write '{key}:' and its keys below")
    if key not in KEYS:
        near = get_close_matches(key, KEYS, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; sections are {', '.join(SECTIONS)}"
        raise ValueError(f"config: {source}: unknown key '{key}'{hint}")
    kind, limits = KEYS[key], LIMITS.get(key, {})
    must, got = f"config: {source}: '{key}' must be", f"got {value!r:.80}"
    if kind == float | None and value is None:
        return None
    if kind in (float, float | None):
        # A text too: YAML 1.1 does not read 3e-5 as a number.
        value = float(value) if DECIMAL.fullmatch(str(value)) else math.nan
        if not math.isfinite(value):
            raise ValueError(f"{must} a number, {got}")
    elif type(value) is not kind:
        name = {int: "a whole number", bool: "true or false", str: "text"}[kind]
        raise ValueError(f"{must} {name}, {got}")
    if "choices" in limits and value not in limits["choices"]:
        raise ValueError(f"{must} one of {', '.join(limits['choices'])}, {got}")
    if "least" in limits and value < limits["least"]:
        raise ValueError(f"{must} at least {limits['least']}, got {value:g}")
    if limits.get("below") is not None and value >= limits["below"]:
        raise ValueError(f"{must} below {limits['below']}, got {value:g}")
    return value


def from_settings(settings: dict[str, Any]) -> Config:
    """Builds a Config from flat keys ('train.epochs') and checked values."""
    sections = {name: {} for name in SECTIONS}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    task = sections.pop("", {})
    return Config(**task, **{name: SECTIONS[name](**values) for name, values in sections.items()})


def from_dict(content: dict) -> Config:
    """The inverse of `Config.as_dict`, for a config that was saved in a checkpoint."""
    settings = {"task": content["task"]} if "task" in content else {}
    for section in content.keys() - {"task"}:
        settings |= {f"{section}.{name}": value for name, value in content[section].items()}
    return from_settings({key: checked(key, value, "checkpoint") for key, value in settings.items()})


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(config.as_dict(), sort_keys=False)
