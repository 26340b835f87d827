"""The settings of a run: frozen dataclasses, filled from YAML files, then from key=value words.

Later sources win, key by key. A wrong key or value is an error before anything is built.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from eamb.files import home
from eamb.network.names import NETWORKS, SMALLEST_SIDE, TASKS
from eamb.readers.options import DataOptions, limited, one_of


@dataclass(frozen=True)
class Data(DataOptions):
    """Which pictures and ratings, and how they are read. `DataOptions` explains targets, splits and columns.

    Several sets are written "para+fi", and their roots one per line, or separated as in PATH: "PARA:FI".
    """

    dataset: str = ""
    root: str = ""
    size: int = limited(512, least=SMALLEST_SIDE)  # pixels; squashed to size x size (the paper's input)
    exif: bool = True  # turn pictures as their EXIF orientation says; false is the official code's behaviour
    icc: bool = True  # convert to sRGB by embedded colour profiles; the official code ignores them
    flip: bool = True  # in training mirror half of the pictures, at random
    crop: bool = False  # keep the aspect ratio and cut out the middle instead of squashing
    workers: int = limited(-1, least=-1)  # decoding processes; -1: one per spare core, at most 8
    timeout: int = limited(600, least=0)  # seconds without a batch after which a run ends; 0: never
    skip_broken: bool = False
    limit: int = limited(0, least=0)  # training pictures per set, those with the smallest id hashes; 0: all
    distill: str = ""  # a csv of predictions for the training pictures, as scripts/out_of_fold.py writes it

    def __post_init__(self):
        pass  # left to `options`, after all sources are read, because keys depend on each other

    @property
    def names(self) -> list[str]:
        """The names of the sets, one or several."""
        return self.dataset.lower().split("+")

    @property
    def roots(self) -> list[str]:
        """The folder of each set; a single set's may contain any character."""
        if len(self.names) == 1:
            return [self.root]
        return self.root.split("\n" if "\n" in self.root else os.pathsep)

    def options(self) -> DataOptions:
        """The part of these settings that readers of data sets take."""
        return DataOptions(**{f.name: getattr(self, f.name) for f in fields(DataOptions)})

    def worker_count(self) -> int:
        """Decoding processes per training process: the spare cores, at most 8; none on a single core."""
        if self.workers >= 0:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


@dataclass(frozen=True)
class Model:
    """The network's shape (`EAMBNet.build_model`) and where its first weights come from."""

    network: str = one_of(*NETWORKS)  # "linear": backbone and one layer; "resnet", "paunit": for pairs
    backbone: str = "resnet50"
    width: int = 256
    guided_width: int = 56
    guided_hidden: int = 16
    head_width: int = 128
    dropout: float = 0.75
    context_scale: float = 0.5  # factor by which the two small branches resize their input
    emotion_scale: float = 0.5
    emotion_batchnorm: str = one_of("frozen", "official")
    without: str = ""  # parts that an ablation leaves out, as in "emotion,attention" (`EAMBNet.PARTS`)
    shortcut: bool = False  # not the paper's: the context branch's deepest map enters the head too
    share_backbone: bool = False  # one backbone for detail and context; needs context_scale=1
    emotion_backbone: str = ""  # of the emotion branch; "": the same as `backbone`
    emotion_levels: int = 3  # not the paper's: 4 gives it the backbone's last map too (`EmotionBranch`)
    emotion_width: int = limited(0, least=0)  # channels of the emotion path; 0: `width`
    depth: int = limited(0, least=0)  # take a ViT's first so many blocks; 0: all
    drop_path: float = limited(0.0, least=0, below=1)  # leave out blocks in training (`build_pyramid`)
    resize_input: bool = True  # a ViT resizes pictures to multiples of its patch; false: train refuses others
    symmetric: bool = True  # P(A over B) + P(B over A) = 1; false is the published behaviour of pair networks
    emotions: str = ""  # class names, in order, for an official emotion file whose list is not the usual one
    emotion_weights: str = one_of("required", "none")  # "none" allows a branch never trained on emotions
    imagenet: str = "auto"  # "auto", "none" or a local file


@dataclass(frozen=True)
class Loss:
    """What is learned from ratings (`losses`), and what emotions add.

    A network for distributions learns emd_weight * EMD from the pictures with votes, plus mean_weight * the
        loss of scores, for its expected rating, from all pictures.

    class_weights: "balanced" weights every emotion equally, however rare its votes. Rare emotions are then
        put first more often, but the predicted shares of votes become wrong.
    """

    emd_r: float = limited(2.0, least=1)
    emd_reduction: str = one_of("image", "batch")
    emd_weight: float = limited(1.0, least=0)
    mean_weight: float = limited(0.0, least=0)  # 0: only votes are learned, as the paper does
    class_weights: str = one_of("none", "balanced")
    class_shift: str = one_of("sets", "none")  # allows for each set's class shares (`losses.class_shift`)
    emotion_weight: float = limited(0.0, least=0)  # the paper freezes the branch; above 0 it is trained too
    correlation_weight: float = limited(0.0, least=0)  # not the paper's: weight of 1 - PLCC per batch
    distill_weight: float = limited(0.0, least=0, most=1)  # share of data.distill in the target of a score
    preference: str = one_of("majority", "share")  # learn which of a pair most people prefer, or how many do


@dataclass(frozen=True)
class Optimizer:
    """`engine.learning_rate` explains the schedules; sgd has a momentum of 0.9.

    layer_decay: a ViT's rate falls by this factor from each block to the one before it, and once more to the
        embedding of patches; 1: one rate for all.
    """

    name: str = one_of("adam", "adamw", "sgd")
    learning_rate: float = limited(3e-5, least=0)
    backbone_factor: float = limited(1.0, least=0)  # the backbones' learning rate is this times the above
    layer_decay: float = limited(1.0, least=0, most=1)
    weight_decay: float = limited(0.0, least=0)
    schedule: str = one_of("constant", "ava", "para", "series", "one_cycle")


@dataclass(frozen=True)
class Train:
    """How long, how fast, and what is kept.

    average: above 0, what is validated and kept is a moving average of the weights: each step multiplies the
        average by this (as in 0.999) and adds the new weights with the rest (Polyak averaging).
    log_every: optimizer steps between two readings of the loss on CUDA, where each makes the GPU wait; on
        those steps several processes also agree on signals and checkpoints. It does not change the results.
    freeze_backbone: the first epochs, in which the backbones learn nothing: they run in evaluation mode and
        their pretrained weights stay. As many as `epochs`: they never learn.
    fixed_batchnorm: BatchNorm in the backbones that learn keeps the statistics of the first weights.
    recompute: compute the inner maps of the backbones' blocks again for the gradient instead of keeping them:
        three quarters to four fifths of the memory, a fifth to two fifths more time, the same numbers.
    """

    epochs: int = limited(30, least=1)
    batch_size: int = limited(24, least=1)  # over all processes together
    accumulate: int = limited(1, least=1)  # batches per optimizer step
    clip: float = limited(0.0, least=0)  # largest gradient norm; 0: no clipping
    seed: int = limited(0, least=0)
    device: str = "auto"
    precision: str = one_of("fp32", "bf16", "fp16", "auto")  # auto: bf16 where the device computes it
    checkpoint_minutes: float = limited(10.0, least=0)
    log_every: int = limited(10, least=1)
    validate_on: str = one_of("val", "test")  # the official PARA code scores the test set each epoch
    score_test: bool = True
    average: float = limited(0.0, least=0, below=1)
    emotion_maps: str = ""  # a folder that keeps the frozen branch's maps (eamb/training/emotion_maps.py)
    gradient_precision: str = one_of("fp32", "bf16")  # of what several processes send each other
    sync_batchnorm: bool = False  # over the pictures of all processes, not of each; CUDA only, not measured
    compile: bool = False  # the training step through torch.compile; no faster on a CPU (docs/performance.md)
    recompute: bool = False
    freeze_backbone: int = limited(0, least=0)
    fixed_batchnorm: bool = False


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
        return asdict(self)

    def without_folders(self) -> dict:
        """`as_dict` for publication: without folders of the machine it ran on."""
        maps = "kept" if self.train.emotion_maps else ""
        data = replace(self.data, root="", distill=Path(self.data.distill).name)
        train = replace(self.train, emotion_maps=maps)
        return replace(self, data=data, train=train).as_dict()


SECTIONS = {f.name: f.default_factory for f in fields(Config) if f.name != "task"}
KEYS = {f"{section}.{f.name}": f for section, cls in SECTIONS.items() for f in fields(cls)}  # -> its field
KEYS["task"] = fields(Config)[0]
WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})", re.ASCII)
PATHS = re.compile(rf"([\n{os.pathsep}])")
DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class Texts(yaml.BaseLoader):
    """Reads YAML as strings, lists and dictionaries only; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        content, names = super().construct_mapping(node, deep), [key.value for key, _ in node.value]
        if len(content) < len(names):
            raise yaml.YAMLError(f"'{max(names, key=names.count)}' is there twice")
        return content


def load_config(files: Iterable[Path | str] = (), words: Iterable[str] = ()) -> Config:
    """The defaults, changed by YAML files and then by `key=value` words, in their order.

    Raises:
        ValueError: an unknown key (with the nearest name) or a value that it does not take, with the file.
        FileNotFoundError: no such file.
    """
    return from_settings(read_settings(files, words))


def from_settings(settings: dict[str, Any]) -> Config:
    """The defaults, changed by flat keys with checked values."""
    sections = {name: {} for name in SECTIONS}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    task = sections.pop("", {})
    return Config(**task, **{name: SECTIONS[name](**values) for name, values in sections.items()})


def read_settings(files: Iterable[Path | str], words: Iterable[str]) -> dict[str, Any]:
    """The settings in YAML files and then in words: flat keys ("train.epochs") with checked values.

    The key, not YAML, decides what a text means: 1:30 is not read as 90.
    """
    settings: dict[str, Any] = {}
    for path in map(Path, files):
        if not path.is_file():
            raise FileNotFoundError(f"config: no file {path}; the shipped ones are in configs/")
        try:
            content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=Texts)  # noqa: S506
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"config: {path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict | None):
            raise ValueError(f"config: {path}: a config holds 'section:' with 'key: value' lines below")
        for name, value in (content or {}).items():
            for key, text in value.items() if isinstance(value, dict) else [("", value)]:
                flat = f"{name}.{key}".rstrip(".")
                settings[flat] = checked(flat, text, str(path))
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"config: '{word}' is neither an option nor key=value, as in train.epochs=3")
        settings[key] = checked(key, text, "command line")
    return settings


def checked(key: str, text: Any, source: str) -> Any:
    """The value that the text means for this key; an error if the key is unknown or does not take it."""
    if key in SECTIONS:
        raise ValueError(f"config: {source}: '{key}' is a section; write '{key}:' and its keys below")
    if key not in KEYS:
        near = get_close_matches(key, KEYS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"sections are {', '.join(SECTIONS)}"
        raise ValueError(f"config: {source}: unknown key '{' '.join(key.split()):.80}'; {hint}")
    if not isinstance(text, str):
        raise ValueError(f"config: {source}: '{key}' takes a single value, got several")
    kind, limits, value = KEYS[key].type, KEYS[key].metadata, None  # the type as it is written above
    if kind == "str":
        value = "".join(map(home, PATHS.split(text)))  # "~/PARA:~/FI"
    elif kind == "bool":
        value = yaml.SafeLoader.bool_values.get(text.lower())
    elif kind == "int":
        value = int(text) if WHOLE.fullmatch(text) else None
    elif kind == "float | None" and text.lower() in ("null", "~", ""):
        return None
    elif DECIMAL.fullmatch(text) and math.isfinite(float(text)):
        value = float(text)
    if value is None:
        must = {"bool": "true or false", "int": "a whole number"}.get(kind, "a number")
    elif value not in limits.get("choices", (value,)):
        must = f"one of {', '.join(limits['choices'])}"
    elif value < limits.get("least", value):
        must = f"at least {limits['least']}"
    elif limits.get("below") is not None and value >= limits["below"]:
        must = f"below {limits['below']}"
    elif limits.get("most") is not None and value > limits["most"]:
        must = f"at most {limits['most']}"
    else:
        return value
    raise ValueError(f"config: {source}: '{key}' must be {must}, got {text!r:.80}")


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(config.as_dict(), sort_keys=False)
