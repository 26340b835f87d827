"""The only file that loads or saves weights: ours, the official code's, and ImageNet's.

Nothing in a file is ever executed (`weights_only=True` or safetensors), and a file is either written whole or
not at all. A file of ours holds tensors and one plain description: which network, what its output means, what
it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eamb.files import written_whole
from eamb.network import backbones
from eamb.network.outputs import EMOTIONS, Scale
from eamb.network.pair_networks import SeriesNetwork
from eamb.weights.official import (
    Tensors,
    is_emotion_file,
    looks_official,
    official_name,
    translate_official,
    unwrapped,
)
from EAMBNet import EAMBNet, EmotionNetwork, LinearNetwork, build_model

FORMAT = 1  # of our own files

IDS = "training_ids"

EMOTION_IDS = "emotion_training_ids"

Network = EAMBNet | EmotionNetwork | LinearNetwork | SeriesNetwork


@dataclass(frozen=True)
class Weights:
    """A network's tensors and everything that must travel with them.

    tensors: by our names.
    description: plain values; "task", "architecture" (arguments of the constructor) and "scale" always, and
        what the training adds (image_size, dataset, splits, config ...).
    training_ids, emotion_training_ids: int64, sorted 64-bit hashes of the ids of every picture trained on.
    """

    tensors: Tensors
    description: dict
    training_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    emotion_training_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

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
    def pictures(self) -> tuple[int, bool]:
        """The side of the pictures in pixels, and whether they are turned as EXIF says.

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
        arguments = {**self.description["architecture"], "emotions": self.emotions}
        try:
            if self.task == "emotion":
                model = EmotionNetwork(**arguments)
            elif self.task == "series" or self.description.get("network") == "linear":
                del arguments["emotions"]
                model = (SeriesNetwork if self.task == "series" else LinearNetwork)(**arguments)
            else:
                model = build_model(**arguments)
        except TypeError as error:
            raise ValueError(f"checkpoint: the description is of no network of ours: {error}") from error
        load_tensors(model, self.tensors, "the set of tensors")
        return model.eval()


TASKS = {EmotionNetwork: "emotion", SeriesNetwork: "series"}  # all other networks are for aesthetics


def describe(model: Network, scale: Scale | None) -> dict:
    """The part of a description that every file of ours has."""
    return {
        "format": FORMAT,
        "task": TASKS.get(type(model), "aesthetics"),
        "network": model.arguments.get(
            "network", "linear" if isinstance(model, LinearNetwork) else "eambnet"
        ),
        "architecture": {n: list(v) if isinstance(v, tuple) else v for n, v in model.arguments.items()},
        "scale": scale.as_dict() if scale else None,
    }


def weights_hash(tensors: Tensors) -> str:
    """SHA-256 over names, shapes and values, whatever file they lie in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_torch(path: Path) -> dict:
    """A file of torch.save, read without executing anything in it.

    Raises:
        ValueError: it is no such file, or holds more than tensors and plain values.
    """
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles that it is going to refuse
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # damaged files fail in every way: EOFError, IndexError, struct.error ...
        raise ValueError(unreadable(path)) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"checkpoint: {path} must hold a dictionary of tensors, got {type(content).__name__}"
        )
    return content


def check_sums(path: Path) -> None:
    """Compares each part of a file of ours with the CRC-32 that is stored with it; torch does not.

    Raises:
        ValueError: a part has changed since it was written.
    """
    check_file(path)
    if not zipfile.is_zipfile(path):
        return  # cut off, or no file of ours; reading it says so
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except Exception as error:  # as many kinds as there are places for the damage
        raise ValueError(f"checkpoint: {path} is damaged: {error}") from error
    if damaged:
        raise ValueError(f"checkpoint: {path} is damaged: the checksum of {damaged} does not fit")


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(unreadable(path)) from error


def check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}")


def unreadable(path: Path) -> str:
    """One sentence on a file that could not be read, from how it begins and ends."""
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()  # some web pages begin with this mark
    if not start:
        reason = "it is empty"
    elif start.startswith(b"version https://git-lfs"):
        reason = "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    elif start.startswith(b"<"):
        reason = "it is a web page; download the file itself"
    elif start.startswith(b"PK") and not zipfile.is_zipfile(path):  # a zip file's directory is at its end
        reason = f"it is cut off after {path.stat().st_size:,} bytes; download it again"
    elif start.startswith(b"PK"):
        reason = "it is damaged, or holds more than tensors, such as code, which is never executed"
    else:
        reason = "it is cut off, damaged or something else, or holds code, which is never executed"
    return f"checkpoint: {path} is not a weights file: {reason}"


def read(path: Path) -> dict:
    """Whatever weights file, as a dictionary; tensors of safetensors by name."""
    path = Path(path)
    return read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)


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
        previous: as `written_whole`.

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
        except RuntimeError as error:  # torch's own, which hides what the disk said
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def id_tensors(weights: Weights) -> Tensors:
    ids = {IDS: weights.training_ids, EMOTION_IDS: weights.emotion_training_ids}
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in ids.items()}


def load_training(path: Path) -> tuple[Weights, dict]:
    """What `save_training` wrote.

    Raises:
        ValueError: the file is damaged, or something else.
    """
    check_sums(Path(path))
    content = read_torch(Path(path))
    if "state" not in content:
        raise ValueError(f"checkpoint: {path} holds no training state to resume from")
    return as_weights(content.get("weights"), content, content.get("description"), path), content["state"]


def load_weights(path: Path | str) -> Weights:
    """Reads a file of ours, .pt or .safetensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weights file, or not one of ours (`load_official_weights` is for official files).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        check_sums(path)
        content = read_torch(path)
        return as_weights(content.get("weights"), content, content.get("description"), path)
    tensors, metadata = read_safetensors(path)
    return as_weights(tensors, tensors, metadata.get("eambnet"), path)


def as_weights(tensors: Tensors | None, ids: dict, description: str | None, path: Path) -> Weights:
    """Puts together what was read from a file of ours, and refuses other files."""
    whole = isinstance(tensors, dict) and description is not None
    if not (whole and all(isinstance(ids.get(name), Tensor) for name in (IDS, EMOTION_IDS))):
        raise ValueError(
            f"checkpoint: {path} was not written by this program (it does not say what its output means). "
            "Start from an official state dict with --weights FILE or --emotion-checkpoint FILE."
        )
    plain = read_description(description, path)
    network = {name: tensor for name, tensor in tensors.items() if name not in (IDS, EMOTION_IDS)}
    return Weights(network, plain, ids[IDS].numpy(), ids[EMOTION_IDS].numpy())


def read_description(text: str, path: Path) -> dict:
    """The description of a file of ours, which must fit itself."""
    try:
        plain = json.loads(text)
        if plain.get("format") == FORMAT:
            architecture, scale = plain["architecture"], plain["scale"] and Scale.from_dict(plain["scale"])
            names = list(architecture.get("emotions", ()))
            if not isinstance(plain["task"], str):
                raise ValueError(f"the task {plain['task']} is no name")
            if not isinstance(architecture["backbone"], str):
                raise ValueError(f"the backbone {architecture['backbone']} is no name")
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
        only: the names to fill, by their beginnings; all by default.
        leave: beginnings of names that keep the values that the model has.
        shown: the name of a tensor in the file it comes from, for the error.
        problems: found before, to be listed with the others.

    Raises:
        ValueError: lists the missing, unknown and misshapen names, and tensors with values that are NaN or
            infinite.
    """
    target = model.state_dict()
    wanted = {name for name in target if name.startswith(only) and not name.startswith(leave or "\0")}
    given = {name for name in tensors if not name.startswith(leave or "\0")}
    problems = list(problems)
    problems += [f"missing {shown(name)}" for name in sorted(wanted - given)]
    problems += [f"unknown {shown(name)}" for name in sorted(given - wanted)]
    problems += [
        f"{shown(name)} is {shape_of(tensors[name])}, the network's is {shape_of(target[name])}"
        for name in sorted(wanted & given)
        if shape_of(tensors[name]) != shape_of(target[name])
    ]
    problems += [
        f"{shown(name)} holds values that are NaN or infinite"
        for name in sorted(wanted & given)
        if isinstance(tensors[name], Tensor) and not tensors[name].isfinite().all()
    ]
    if problems:
        problems = list(dict.fromkeys(problems))  # one tensor of a file may be wanted in several places
        more = f" (+{len(problems) - 12} more)" if len(problems) > 12 else ""
        raise ValueError(f"checkpoint: {source} does not fit the network: {'; '.join(problems[:12])}{more}")
    with torch.no_grad():
        for name in wanted:
            target[name].copy_(tensors[name])


def shape_of(value) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f"no tensor but {type(value).__name__}"


def load_emotion_branch(model: Network, path: Path | str, named: tuple[str, ...] = ()) -> Weights:
    """Fills the emotion branch from a file of ours (emotion or whole network) or of the official code.

    Args:
        named: the class list of an official file, which has none of its own; empty for the usual one.

    Returns:
        What is known of the branch: its description, and the hashes of the pictures it was trained on.
    """
    content = read(Path(path))
    if looks_official(content):
        fill_from_official(model, content, str(path), only="emotion.", named=named)
        return Weights({}, {"task": "emotion", "architecture": {"emotions": list(named or EMOTIONS)}})
    weights = load_weights(path)
    check_backbone(model, weights.description["architecture"]["backbone"], str(path))
    check_emotions(model, weights.emotions, str(path))
    tensors = {name: value for name, value in weights.tensors.items() if name.startswith("emotion.")}
    load_tensors(model, tensors, str(path), only="emotion.")
    ids = weights.training_ids if weights.task == "emotion" else weights.emotion_training_ids
    return replace(weights, emotion_training_ids=ids)


def check_backbone(model: Network, backbone: str, source: str) -> None:
    have = model.arguments["backbone"]
    if have != backbone:
        raise ValueError(f"checkpoint: {source} has the backbone {backbone}; the network's is {have}")


def check_emotions(model: Network, emotions: tuple[str, ...], source: str) -> None:
    have = tuple(model.arguments["emotions"])
    if have != emotions:
        raise ValueError(
            f"checkpoint: {source} knows the emotions {', '.join(emotions)}, in this order; the network's "
            f"are {', '.join(have)}"
        )


def emotions_in(path: Path | str, named: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The class names of the emotion branch in a file of ours or of the official code.

    Args:
        named: the class list of an official file, which has none of its own; empty for the usual one.

    Raises:
        ValueError: an official file has another number of classes than the list.
    """
    content = read(Path(path))
    if not looks_official(content):
        return load_weights(path).emotions
    return official_emotions(translate_official(content)[0], path, named)


def official_emotions(tensors: Tensors, path: Path | str, named: tuple[str, ...]) -> tuple[str, ...]:
    """The class names for an official file's tensors, under our names; `emotions_in` explains the rest."""
    emotions, biases = named or EMOTIONS, tensors.get("emotion.classifier.bias")
    if isinstance(biases, Tensor) and biases.numel() != len(emotions):
        raise ValueError(
            f"checkpoint: {path} tells {biases.numel()} emotions apart, and the list has {len(emotions)} "
            f"({', '.join(emotions)}); name the file's, in its order, with model.emotions=NAME,NAME,..."
        )
    return emotions


def load_imagenet(model: Network, source: str = "auto") -> None:
    """Fills every backbone of the network with ImageNet weights: the known ones, or those of a local file.

    Raises:
        FileNotFoundError: no such file, or no network to download it; says which file to put where.
        ValueError: tensors of the backbone are missing or misshapen in the file; nothing is written then.
    """
    name = model.arguments["backbone"]
    file = backbones.imagenet_file(name) if source == "auto" else Path(source)
    state = imagenet_state(name, file)
    tensors = {
        f"{place}{key}": state[key]
        for place, pyramid in pyramids(model).items()
        for key in pyramid.state_dict()
        if key in state
    }

    def shown(ours: str) -> str:
        place = next(place for place in pyramids(model) if ours.startswith(place))
        return ours.removeprefix(place).removeprefix("body.")

    load_tensors(model, tensors, str(file or name), only=tuple(pyramids(model)), shown=shown)


def imagenet_state(name: str, file: Path | None) -> Tensors:
    """The tensors of a classification network, by the names that they have in a pyramid of `name`."""
    state = None
    if file is not None:
        state = {key: value for key, value in unwrapped(read(file)).items() if isinstance(value, Tensor)}
    return backbones.imagenet_tensors(name, state)


def pyramids(model: Network) -> dict[str, nn.Module]:
    """The network's backbones, and what else has ImageNet weights, by the beginnings of their names in it."""
    branch = getattr(model, "emotion", None)
    found = {"emotion.pyramid.": branch.pyramid} if branch else {}
    parts = {f"{name}.": getattr(model, name, None) for name in ("detail", "context", "tail")}
    return found | {beginning: part for beginning, part in parts.items() if part}


def load_official_weights(model: Network, source: Path | str | dict) -> None:
    """Loads the public emotion checkpoint into the emotion branch, or a whole official network into a model.

    Args:
        source: a path, or a dictionary: a state dict of the official code, bare or under "model", with or
            without "module." before its names. Whether it is the whole network is told from the names.

    Raises:
        ValueError: unknown, missing or misshapen names, listed; unequal copies of one tensor; another number
            of outputs or list of emotions. The model is unchanged then.
    """
    name = "the given state dict" if isinstance(source, dict) else str(source)
    content = source if isinstance(source, dict) else read(Path(source))
    fill_from_official(model, content, name, only="emotion." if isinstance(model, EmotionNetwork) else "")


def fill_from_official(
    model: Network, content: dict, name: str, only: str, named: tuple[str, ...] = ()
) -> None:
    """Fills the names that begin with `only`; the emotion branch alone if the file has no more than that."""
    check_backbone(model, backbones.RESNET50, name)
    check_emotions(model, named or EMOTIONS, name)
    tensors, problems = translate_official(content)
    if only or all(key.startswith("emotion.") for key in tensors):
        only = "emotion."
        tensors = {key: value for key, value in tensors.items() if key.startswith(only)}
    beginning = "emotion_model." if is_emotion_file(unwrapped(content)) else ""

    def shown(ours: str) -> str:
        return official_name(ours).removeprefix(beginning)

    load_tensors(model, tensors, name, only=only, shown=shown, problems=problems)
