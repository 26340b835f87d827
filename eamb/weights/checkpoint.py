"""The only module that loads or saves weights: ours, the official code's, and ImageNet's.

Nothing in a file is ever executed (`weights_only=True` or safetensors), and a file is either written whole or
not at all. A file of ours holds tensors and one plain description: which network, what its output means, what
it was trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eamb.files import written_whole
from eamb.network import backbones
from eamb.network.outputs import EMOTIONS, Scale
from eamb.weights.official import Tensors, looks_official, official_name, translate_official, unwrapped
from eamb.weights.registry import Network, build_network, kind_of, name_of
from EAMBNet import EmotionNetwork

FORMAT = 1  # of our own files
IDS = "training_ids"
EMOTION_IDS = "emotion_training_ids"


@dataclass(frozen=True)
class Weights:
    """A network's tensors and everything that must travel with them.

    tensors: by our names.
    description: plain values; "task", "architecture" (arguments of the constructor) and "scale" always, and
        what training adds (image_size, dataset, splits, config ...).
    training_ids, emotion_training_ids: int64, sorted 64-bit hashes of the ids of every picture trained on.
    """

    tensors: Tensors
    description: dict
    training_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    emotion_training_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @cached_property
    def sha256(self) -> str:
        """`weights_hash` of the tensors; for weights that are no longer trained."""
        return weights_hash(self.tensors)

    @property
    def task(self) -> str:
        return self.description["task"]

    @property
    def scale(self) -> Scale | None:
        values = self.description.get("scale")
        return Scale.from_dict(values) if values else None

    @property
    def emotions(self) -> tuple[str, ...]:
        return tuple(self.description["architecture"]["emotions"])

    @property
    def emotion_branch(self) -> str:
        """Whether the emotion branch was "trained" on emotions, or "never trained"."""
        if self.task == "emotion":  # whatever it was started from
            return "trained"
        return self.description.get("origin", {}).get("emotion_branch", "trained")

    @property
    def size_and_exif(self) -> tuple[int, bool]:
        """The side of the pictures in pixels, and whether they are turned by their EXIF orientation.

        Raises:
            ValueError: a hand-made description lacks them.
        """
        size, exif = self.description.get("image_size"), self.description.get("exif")
        if not (type(size) is int and size > 0 and type(exif) is bool):
            raise ValueError(
                "checkpoint: the description of these weights must say which pictures they are for, "
                f'"image_size" in pixels and "exif" true or false; found {size} and {exif}'
            )
        return size, exif

    def build(self) -> Network:
        """The network with these weights, in evaluation mode."""
        name = self.description.get("network", "eambnet")
        network = build_network(self.task, name, self.description["architecture"])
        load_tensors(network, self.tensors, "the set of tensors")
        return network.eval()


def describe(network: Network, scale: Scale | None) -> dict:
    """The part of a description that every file of ours has."""
    return {
        "format": FORMAT,
        "task": kind_of(network).task,
        "network": name_of(network),
        "architecture": {n: list(v) if isinstance(v, tuple) else v for n, v in network.arguments.items()},
        "scale": scale.as_dict() if scale else None,
    }


def weights_hash(tensors: Tensors) -> str:
    """SHA-256 over names, shapes and values, the same for any file that holds them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------
# Files


class File(NamedTuple):
    """A file of weights, as it was read.

    content: what torch.save wrote, or the tensors of safetensors by name.
    metadata: of safetensors.
    sha256: of the bytes, if it was asked for.
    """

    path: Path
    content: dict
    metadata: dict[str, str]
    sha256: str = ""


def read_file(path: Path | str, hashed: bool = False) -> File:
    """Reads any weights file once, without executing anything in it.

    Args:
        hashed: give its SHA-256 too, which takes time for a large file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a weights file, is damaged, or holds more than tensors and plain values.
    """
    path, metadata = Path(path), {}
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}")
    raw = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            content = load(raw)
            header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
            metadata = header.get("__metadata__", {})
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about pickles that it then refuses
                content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in every way: EOFError, IndexError, struct.error ...
        raise ValueError(f"checkpoint: {path} is not a weights file: {why_unreadable(raw)}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"checkpoint: {path} must hold a dictionary of tensors, got {type(content).__name__}"
        )
    if zipfile.is_zipfile(io.BytesIO(raw)) and not looks_official(content):
        try:  # torch does not check the CRC-32 that is stored with each part
            with zipfile.ZipFile(io.BytesIO(raw)) as file:
                part = file.testzip()
            damage = f"the checksum of {part} does not fit" if part else ""
        except Exception as error:  # of many kinds, depending on where the damage is
            damage = str(error) or type(error).__name__
        if damage:
            raise ValueError(f"checkpoint: {path} is damaged: {damage}")
    return File(path, content, metadata, hashlib.sha256(raw).hexdigest() if hashed else "")


def why_unreadable(raw: bytes) -> str:
    """Why a file could not be read, from how it begins and ends."""
    start = raw[:64].removeprefix(b"\xef\xbb\xbf").lstrip()  # some web pages begin with this mark
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if start.startswith(b"<"):
        return "it is a web page; download the file itself"
    if start.startswith(b"PK") and not zipfile.is_zipfile(io.BytesIO(raw)):  # its directory is at its end
        return f"it is cut off after {len(raw):,} bytes; download it again"
    return "it is cut off, damaged or something else, or holds code, which is never executed"


def export_weights(path: Path, weights: Weights) -> None:
    """Writes a safetensors file: tensors, id hashes, the description as JSON in the metadata."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors.items()}
    tensors |= id_tensors(weights)
    with written_whole(Path(path)) as temporary:
        save_file(tensors, temporary, {"format": "pt", "eambnet": json.dumps(weights.description)})


def save_training(path: Path, weights: Weights, state: dict, previous: Path | None = None) -> None:
    """Writes weights and all else that a resumed training needs (`state`, plain values and tensors).

    Args:
        previous: as in `written_whole`.

    Raises:
        OSError: the disk is full, or fails otherwise; the file is as it was.
    """
    content = {
        "weights": weights.tensors,
        "description": json.dumps(weights.description),
        **id_tensors(weights),
        "state": state,
    }
    with written_whole(Path(path), previous) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, which hides the disk's error
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def id_tensors(weights: Weights) -> Tensors:
    ids = {IDS: weights.training_ids, EMOTION_IDS: weights.emotion_training_ids}
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in ids.items()}


def load_training(path: Path) -> tuple[Weights, dict]:
    """What `save_training` wrote.

    Raises:
        ValueError: the file is damaged, or is something else.
    """
    file = read_file(path)
    if "state" not in file.content:
        raise ValueError(f"checkpoint: {path} holds no training state to resume from")
    return weights_in(file), file.content["state"]


def load_weights(path: Path | str) -> Weights:
    """Reads a file of ours, .pt or .safetensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weights file, or not one of ours (`read_source` takes official files too).
    """
    return weights_in(read_file(path))


def weights_in(file: File) -> Weights:
    """The weights in a file of ours; refuses other files."""
    content, path = file.content, file.path
    if path.suffix == ".safetensors":
        tensors, description = content, file.metadata.get("eambnet")
    else:
        tensors, description = content.get("weights"), content.get("description")
    whole = isinstance(tensors, dict) and description is not None
    if not (whole and all(isinstance(content.get(name), Tensor) for name in (IDS, EMOTION_IDS))):
        raise ValueError(
            f"checkpoint: {path} was not written by this program (it does not say what its output means). "
            "Start from an official state dict with --weights FILE or --emotion-checkpoint FILE."
        )
    network = {name: tensor for name, tensor in tensors.items() if name not in (IDS, EMOTION_IDS)}
    description = read_description(description, path)
    return Weights(network, description, content[IDS].numpy(), content[EMOTION_IDS].numpy())


def read_description(text: str, path: Path) -> dict:
    """Reads the description of a file of ours and checks that it is consistent."""
    try:
        plain = json.loads(text)
        if plain.get("format") == FORMAT:
            architecture, scale = plain["architecture"], plain["scale"] and Scale.from_dict(plain["scale"])
            names = list(architecture.get("emotions", ()))
            for what, value in (("task", plain["task"]), ("backbone", architecture["backbone"])):
                if not isinstance(value, str):
                    raise ValueError(f"the {what} {value} is not a name")
            if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
                raise ValueError(f"the emotions {names} are not different names")
            if scale and scale.outputs != architecture["outputs"]:
                raise ValueError(f"{scale.outputs} ratings for {architecture['outputs']} outputs")
            return plain
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"checkpoint: the description in {path} is damaged: {error}") from error
    raise ValueError(
        f"checkpoint: {path} has format {plain.get('format')} and this program reads {FORMAT}; "
        "use the version of the program that wrote it"
    )


# ---------------------------------------------------------------------------------------------------
# Tensors into networks


def load_tensors(
    model: nn.Module,
    tensors: Tensors,
    source: str,
    only: str | tuple[str, ...] = "",
    leave: tuple[str, ...] = (),
    shown: Callable[[str], str] = str,
    problems: Iterable[str] = (),
) -> None:
    """Copies tensors into a model by name; nothing is written unless everything fits.

    Args:
        source: where the tensors come from, for the error.
        only: prefixes of the names to fill; all by default.
        leave: prefixes of names that keep the model's values.
        shown: from our name of a tensor to that in the file it comes from, for the error.
        problems: earlier ones, listed with the others.

    Raises:
        ValueError: lists missing, unknown and misshapen names, and tensors with values that are NaN or
            infinite.
    """
    target = model.state_dict()
    wanted = {name for name in target if name.startswith(only) and not name.startswith(leave or "\0")}
    given = {name for name in tensors if not name.startswith(leave or "\0")}
    problems = list(problems)
    problems += [f"missing {shown(name)}" for name in sorted(wanted - given)]
    problems += [f"unknown {shown(name)}" for name in sorted(given - wanted)]
    for name in sorted(wanted & given):
        value, shape = tensors[name], tuple(target[name].shape)
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            problems.append(f"{shown(name)} is not a tensor but {kind}, the network's is {shape}")
        elif tuple(value.shape) != shape:
            problems.append(f"{shown(name)} is {tuple(value.shape)}, the network's is {shape}")
        elif not value.isfinite().all():
            problems.append(f"{shown(name)} holds values that are NaN or infinite")
    if problems:
        problems = list(dict.fromkeys(problems))  # one tensor of a file may be wanted in several places
        more = f" (+{len(problems) - 12} more)" if len(problems) > 12 else ""
        raise ValueError(f"checkpoint: {source} does not fit the network: {'; '.join(problems[:12])}{more}")
    with torch.no_grad():
        for name in wanted:
            target[name].copy_(tensors[name])


@dataclass(frozen=True)
class Source:
    """A file to start from, of ours or of the official code, read once.

    weights: by our names. For an official file the description has only what names and shapes tell: the task,
        the backbone, the emotions.
    prefix: what the names of an official file lack at their beginning; None for a file of ours.
    problems: what is wrong with an official file's names, in words.
    """

    path: Path
    sha256: str
    weights: Weights
    prefix: str | None = None
    problems: tuple[str, ...] = ()

    def shown(self, ours: str) -> str:
        """The name that a tensor has in the file, for errors."""
        return ours if self.prefix is None else official_name(ours).removeprefix(self.prefix)


def read_source(file: Path | str | dict, named: tuple[str, ...] = ()) -> Source:
    """Reads a file to start from.

    Args:
        file: a path, or a state dict of the official code.
        named: the emotions of an official file, which does not name them; empty for EMOTIONS.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weights file, or an official file with another number of emotions.
    """
    is_dict = isinstance(file, dict)
    read = File(Path("the given state dict"), file, {}) if is_dict else read_file(file, hashed=True)
    path, content, _, sha256 = read
    if not (is_dict or looks_official(content)):
        return Source(path, sha256, weights_in(read))
    tensors, prefix, problems = translate_official(content)
    emotions, biases = named or EMOTIONS, tensors.get("emotion.classifier.bias")
    if isinstance(biases, Tensor) and biases.numel() != len(emotions):
        raise ValueError(
            f"checkpoint: {path} has {biases.numel()} emotions, and the list has {len(emotions)} "
            f"({', '.join(emotions)}); name the file's, in its order, with model.emotions=NAME,NAME,..."
        )
    task = "aesthetics" if "head.5.bias" in tensors else "emotion"
    architecture = {"backbone": backbones.RESNET50, "width": 256, "emotions": list(emotions)}
    weights = Weights(tensors, {"task": task, "architecture": architecture})
    return Source(path, sha256, weights, prefix, tuple(problems))


def load_source(network: Network, source: Source, only: str = "") -> None:
    """Fills the network, or the names that begin with `only`, from a file to start from.

    Raises:
        ValueError: another backbone, another list of emotions, or names that do not fit, listed.
    """
    architecture = source.weights.description["architecture"]
    have = network.arguments["backbone"]
    if have != architecture["backbone"]:
        raise ValueError(
            f"checkpoint: {source.path} has the backbone {architecture['backbone']}; the network's is {have}"
        )
    emotions, have = source.weights.emotions, tuple(network.arguments["emotions"])
    if have != emotions:
        raise ValueError(
            f"checkpoint: {source.path} knows the emotions {', '.join(emotions)}, in this order; the "
            f"network's are {', '.join(have)}"
        )
    tensors = {name: value for name, value in source.weights.tensors.items() if name.startswith(only)}
    load_tensors(network, tensors, str(source.path), only, shown=source.shown, problems=source.problems)


def load_emotion_branch(network: Network, source: Source) -> Weights:
    """Fills the emotion branch from a file of ours (emotion or whole network) or of the official code.

    Returns:
        The weights of the file, with the id hashes of the pictures that the branch was trained on.
    """
    load_source(network, source, only="emotion.")
    weights = source.weights
    ids = weights.training_ids if weights.task == "emotion" else weights.emotion_training_ids
    return replace(weights, emotion_training_ids=ids)


def load_official_weights(network: Network, source: Path | str | dict) -> None:
    """Loads the public emotion checkpoint into the emotion branch, or a whole official network into a model.

    Args:
        source: a path, or a dictionary: a state dict of the official code, bare or under "model", with or
            without "module." before its names. Whether it is the whole network is told from the names.

    Raises:
        ValueError: unknown, missing or misshapen names, listed; unequal copies of one tensor; another number
            of outputs or list of emotions. The model is then unchanged.
    """
    official = read_source(source if isinstance(source, dict) else read_file(source).content)
    branch_alone = all(name.startswith("emotion.") for name in official.weights.tensors)
    emotions_alone = isinstance(network, EmotionNetwork) or branch_alone
    load_source(network, official, only="emotion." if emotions_alone else "")


def load_imagenet(network: Network, source: str = "auto") -> None:
    """Fills every backbone of the network with ImageNet weights: downloaded ("auto"), or of a local file.

    Raises:
        FileNotFoundError: no such file, or no connection to download it; says which file to put where.
        ValueError: tensors of the backbone are missing or misshapen in the file; nothing is written.
    """
    name = network.arguments["backbone"]
    file = backbones.imagenet_file(name) if source == "auto" else Path(source)
    state, places = imagenet_state(name, file), pyramids(network)

    def shown(ours: str) -> str:
        place = next(place for place in places if ours.startswith(place))
        return ours.removeprefix(place).removeprefix("body.")

    names = [(place, key) for place, pyramid in places.items() for key in pyramid.state_dict()]
    tensors = {place + key: state[key] for place, key in names if key in state}
    load_tensors(network, tensors, str(file or name), only=tuple(places), shown=shown)


def imagenet_state(name: str, file: Path | None) -> Tensors:
    """The tensors of a classification network, under the names that they have in a pyramid of `name`."""
    content = unwrapped(read_file(file).content) if file is not None else {}
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return backbones.imagenet_tensors(name, state if file is not None else None)


def pyramids(model: Network) -> dict[str, nn.Module]:
    """The network's backbones, and its tail, which has ImageNet weights too, by the prefix of their names."""
    branch = getattr(model, "emotion", None)
    in_branch = {"emotion.pyramid.": branch.pyramid} if branch else {}
    parts = {f"{name}.": getattr(model, name, None) for name in ("detail", "context", "tail")}
    return in_branch | {prefix: part for prefix, part in parts.items() if part}
