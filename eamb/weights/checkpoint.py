"""The only module that loads or saves weights: ours, the official code's, and ImageNet's.

Nothing in a file is ever executed (`weights_only=True` or safetensors), and a file is either written whole or
not at all. A file of ours holds tensors and one plain description: which network, what its output means, what
it was trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eamb.files import written_whole
from eamb.network import backbones, hub, vit
from eamb.network.hub import EMOTION_IDS, IDS, NOT_WEIGHTS
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers.decoding import View
from eamb.weights.official import Tensors, looks_official, translate_official, unwrapped
from eamb.weights.registry import Network, build_network, class_of, kind_of, name_of

FORMAT = 1  # of our own files
UNDESCRIBED = (
    "has no description, so that nothing says what its output means; give weights that this program has "
    "trained"
)


@dataclass(frozen=True)
class Weights:
    """A network's tensors and everything that must travel with them.

    tensors: name -> tensor, under our names.
    description: plain values; "task", "architecture" (arguments of the constructor) and "scale" always, and
        what training adds (image_size, dataset, splits, config ...).
    training_ids, emotion_training_ids: int64, sorted 64-bit hashes of the ids of every picture trained on.
    path: the file that they were read from, for messages.
    """

    tensors: Tensors
    description: dict
    training_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    emotion_training_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    path: str = "these weights"

    @cached_property
    def sha256(self) -> str:
        """`weights_hash` of the tensors, computed once: only for weights that are no longer trained."""
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
        """The pictures' side in pixels, and whether EXIF turns them; ValueError: not in the description."""
        size, exif = self.description.get("image_size"), self.description.get("exif")
        if isinstance(size, int) and size > 0 and isinstance(exif, bool):
            return size, exif
        raise ValueError(
            "checkpoint: the description of these weights must say which pictures they are for, "
            f'"image_size" in pixels and "exif" true or false; found {size} and {exif}'
        )

    @property
    def view(self) -> View:
        """How the network wants its pictures; raises as `size_and_exif`. `icc` is None for weights that are
        older than the setting."""
        crop, icc = self.description.get("crop", False), self.description.get("icc")
        return View(*self.size_and_exif, crop, icc)

    def build(self) -> Network:
        """The network with these weights, in evaluation mode."""
        name = self.description.get("network", "eambnet")
        network = build_network(self.task, name, self.description["architecture"])
        load_tensors(network, self.tensors, self.path)
        network.description, network.ids = self.travelling, id_tensors(self)
        return network.eval()

    @property
    def travelling(self) -> dict:
        """The description as `eamb.network.hub` has it: without the architecture, with mean and deviation."""
        rest = {key: value for key, value in self.description.items() if key != "architecture"}
        return rest | hub.normalisation(self.description["architecture"]["backbone"])


def describe(network: Network, scale: Scale | None) -> dict:
    """The part of a description that every file of ours has."""
    return {
        "format": FORMAT,
        "task": kind_of(network).task,
        "network": name_of(network),
        "architecture": architecture(network),
        "scale": scale.as_dict() if scale else None,
    }


def architecture(network: Network) -> dict:
    """The constructor's arguments as plain values."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in network.arguments.items()
    }


def weights_of(network: Network) -> Weights:
    """The weights of a network that `Weights.build` or `from_pretrained` gave, as they are now.

    Raises:
        ValueError: the network does not say what its output means, or its description is damaged.
    """
    this, description = f"this {type(network).__name__}", getattr(network, "description", None)
    if not description:
        raise ValueError(f"checkpoint: {this} {UNDESCRIBED}")
    description = read_description(json.dumps(description | {"architecture": architecture(network)}), this)
    ids = {name: value.numpy() for name, value in network.ids.items()}
    return Weights(network.state_dict(), description, **ids, path=this)


def weights_hash(tensors: Tensors) -> str:
    """SHA-256 over names, shapes and values, the same for any file that holds them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_file(path: Path | str) -> tuple[dict, bytes]:
    """Reads any weights file once, without executing anything in it: its content, and its bytes.

    A safetensors file of ours, and a folder as a hub has it, give the same entries as a file of torch.save.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a weights file, is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        file = path / hub.WEIGHTS
        raw = file.read_bytes() if file.is_file() else b""
        return read_hub_folder(path, raw), raw
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}")
    raw = path.read_bytes()
    if path.suffix == ".safetensors":
        content, metadata = hub.parse_safetensors(raw, path)
        if "eambnet" in metadata:
            ids = {name: content.pop(name, None) for name in (IDS, EMOTION_IDS)}
            return {"weights": content, "description": metadata["eambnet"], **ids}, raw
        if path.name == hub.WEIGHTS and path.with_name(hub.CONFIG).is_file():
            return read_hub_folder(path.parent, raw), raw
        return content, raw
    try:
        if raw.startswith(b"PK"):  # torch does not check the CRC-32 of each part
            with zipfile.ZipFile(io.BytesIO(raw)) as file:
                # For a part that this bit marks as a folder, torch returns uninitialised memory.
                if file.testzip() or any(part.external_attr & 0x10 for part in file.infolist()):
                    raise zipfile.BadZipFile
        content, unread = read_pickle(raw)
        state = unwrapped(content)
    except Exception as error:  # damaged files raise nearly anything: EOFError, IndexError, struct.error ...
        raise ValueError(f"checkpoint: {path} {NOT_WEIGHTS}") from error
    if unread and ("weights" in content or not any(isinstance(value, Tensor) for value in state.values())):
        keys = f" (keys found: {some(content)})" if content else ""
        raise ValueError(
            f"checkpoint: {path} holds {some(unread)}, which is code and never executed, and no tensors that "
            f"can be read without it{keys}; save those alone, with torch.save(network.state_dict(), FILE)"
        )
    return content, raw


def read_hub_folder(folder: Path, raw: bytes) -> dict:
    """The entries of a file of ours from a folder of `eamb.network.hub`, whose files must fit each other."""
    stored = hub.read_folder(folder, raw)
    if not stored.description:
        raise ValueError(f"checkpoint: {folder} {UNDESCRIBED}")
    text = json.dumps(stored.description | {"architecture": stored.arguments})
    description = read_description(text, folder / hub.CONFIG)
    kind = description["task"], description.get("network", "eambnet")
    hub.check_fit(lambda: build_network(*kind, stored.arguments), stored.tensors, folder)
    no_ids = dict.fromkeys((IDS, EMOTION_IDS), torch.empty(0, dtype=torch.int64))
    return {"weights": stored.tensors, "description": text, **no_ids, **stored.ids}


class Unread:
    """Stands for an object that is not a tensor or a plain value; nothing of it is kept or executed."""

    def __new__(cls, *_) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_):
        pass

    def __setstate__(self, _) -> None:
        pass


def read_pickle(raw: bytes) -> tuple[dict, list[str]]:
    """What torch.save wrote, with `Unread` in place of other objects, and the names of their classes.

    Raises whatever torch does for damaged files; where such an object prevents reading, the content is empty.
    """
    unread = []
    while True:
        stand_ins = [(Unread, name) for name in unread]
        safe = torch.serialization.safe_globals(stand_ins) if unread else nullcontext()
        try:
            with warnings.catch_warnings(), safe:
                warnings.simplefilter("ignore")  # torch's, about pickles that it then refuses
                content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            return {} if isinstance(content, Unread) else content, unread
        except Exception as error:
            refused = re.search(r"GLOBAL (\S+) w", str(error))  # "... was not allowed", "... whose module is"
            if refused and refused[1] not in unread and len(unread) < 50:
                unread.append(refused[1])
            elif unread:
                return {}, unread
            else:
                raise


def some(names: Iterable[str]) -> str:
    """The first of many names, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:8]) + (f" (+{len(names) - 8} more)" if len(names) > 8 else "")


def export_weights(path: Path, weights: Weights) -> None:
    """Writes a safetensors file: tensors, id hashes, the description as JSON in the metadata."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors.items()}
    tensors |= id_tensors(weights)
    with written_whole(Path(path)) as temporary:
        metadata = {"format": "pt", "eambnet": json.dumps(weights.description)}
        temporary.write_bytes(save(tensors, metadata))  # what save_file writes, only its owner may read


def export_folder(folder: Path, weights: Weights) -> str:
    """Writes config.json and model.safetensors for a hub (`eamb.network.hub`); returns the network's class.

    Raises:
        ValueError: it is neither an EAMBNet nor an emotion branch.
    """
    network = class_of(weights.task, name := weights.description.get("network", "eambnet"))
    if not issubclass(network, hub.HubNetwork):
        raise ValueError(
            f"checkpoint: {weights.path} is of a '{name}' network; a hub's folder holds an eambnet"
        )
    parts = weights.description["architecture"], weights.travelling, weights.tensors, id_tensors(weights)
    hub.write_folder(folder, hub.Stored(network.__name__, *parts))
    return network.__name__


def save_training(path: Path, weights: Weights, state: dict, previous: Path | None = None) -> None:
    """Writes weights and what else a resumed training needs (`state`); `previous`: as in `written_whole`.

    Raises:
        OSError: the disk is full, or fails otherwise; the file is as it was.
    """
    content = {"weights": weights.tensors, "description": json.dumps(weights.description), "state": state}
    content |= id_tensors(weights)
    with written_whole(Path(path), previous) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, which hides the disk's error
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def id_tensors(weights: Weights) -> Tensors:
    ids = {IDS: weights.training_ids, EMOTION_IDS: weights.emotion_training_ids}
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in ids.items()}


def load_training(path: Path) -> tuple[Weights, dict]:
    """What `save_training` wrote; raises ValueError if the file is damaged or of another kind."""
    content, _ = read_file(path)
    if not isinstance(content.get("state"), dict):
        raise ValueError(f"checkpoint: {path} holds no training state to resume from")
    return weights_in(content, path), content["state"]


def load_weights(path: Path | str) -> Weights:
    """Reads a file of ours, .pt or .safetensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weights file, or not one of ours (`read_source` takes official files too).
    """
    return weights_in(read_file(path)[0], path)


def weights_in(content: dict, path: Path | str) -> Weights:
    """The weights in a file of ours; refuses other files."""
    tensors, description = content.get("weights"), content.get("description")
    ids = [content.get(name) for name in (IDS, EMOTION_IDS)]
    if not (isinstance(tensors, dict) and description and all(isinstance(each, Tensor) for each in ids)):
        if looks_official(content):
            raise ValueError(
                f"checkpoint: {path} has the official code's names and does not say what its output means; "
                "train from it, with --weights FILE or, for an emotion branch, --emotion-checkpoint FILE"
            )
        state = unwrapped(content)
        shapes = [tuple(value.shape) for value in state.values() if isinstance(value, Tensor)]
        if "conv1.weight" in state or (1000,) in shapes:  # a ResNet, or the biases of ImageNet's classes
            raise ValueError(
                f"checkpoint: {path} holds a classifier, as of ImageNet; a training takes the first weights "
                "of that backbone from it with model.imagenet=FILE"
            )
        raise ValueError(
            f"checkpoint: {path} was written neither by this program nor by the official code (keys found: "
            f"{some(content)}); give a best.pt, an exported .safetensors or an official state dict"
        )
    ids = (each.numpy() for each in ids)
    return Weights(tensors, read_description(description, path), *ids, path=str(path))


def read_description(text: str, path: Path | str) -> dict:
    """Reads the description of a file of ours and checks that it is consistent."""
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {plain['format']} and this program reads {FORMAT}")
        architecture, scale = plain["architecture"], plain["scale"] and Scale.from_dict(plain["scale"])
        names = list(architecture.get("emotions", ()))
        of_names = all(isinstance(name, str) for name in (plain["task"], architecture["backbone"], *names))
        if not of_names or len(set(names)) != len(names):
            raise ValueError("the task, the backbone and the emotions must be names, each emotion another")
        if scale and scale.outputs != architecture["outputs"]:
            raise ValueError(f"{scale.outputs} ratings for {architecture['outputs']} outputs")
        return plain
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"checkpoint: the description in {path} is damaged or of another version: {error}"
        ) from error


def load_tensors(
    model: nn.Module, tensors: Tensors, source: str, only: str = "", leave: tuple[str, ...] = ()
) -> None:
    """Copies tensors into a model by name; nothing is written unless everything fits.

    Args:
        source: where the tensors come from, for the error.
        only, leave: prefixes of the names to fill, and of those that keep the model's values.

    Raises:
        ValueError: lists missing, unknown and misshapen names, and those with values that are not finite.
    """
    target = model.state_dict()
    wanted, given = (
        {name: value for name, value in each.items() if not name.startswith(leave or "\0")}
        for each in (target, tensors)
    )
    wanted = {name: value for name, value in wanted.items() if name.startswith(only)}
    if problems := hub.misfits(wanted, given):
        raise ValueError(f"checkpoint: {source} does not fit the network: {problems}")
    with torch.no_grad():
        for name in wanted:
            target[name].copy_(tensors[name])


class Source(NamedTuple):
    """A file to start from, of ours or of the official code, read once."""

    path: Path
    sha256: str  # of its bytes
    weights: Weights  # of an official file the description has only task, backbone, width and emotions


def read_source(path: Path | str, named: tuple[str, ...] = ()) -> Source:
    """Reads a file to start from; `named`: the emotions of an official file, if they are not EMOTIONS.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weights file; an official file with unknown names, or another number of emotions.
    """
    content, raw = read_file(path)
    path, sha256 = Path(path), hashlib.sha256(raw).hexdigest()
    if not looks_official(content):
        return Source(path, sha256, weights_in(content, path))
    tensors, emotions = translate_official(content, str(path)), named or EMOTIONS
    biases = tensors.get("emotion.classifier.bias")
    if biases is not None and (count := biases.numel()) != len(emotions):
        raise ValueError(
            f"checkpoint: {path} has {count} emotions, and the list has {len(emotions)} "
            f"({', '.join(emotions)}); name the file's, in its order, with model.emotions=NAME,NAME,..."
        )
    task = "aesthetics" if "head.5.bias" in tensors else "emotion"
    architecture = {"backbone": backbones.RESNET50, "width": 256, "emotions": list(emotions)}
    return Source(path, sha256, Weights(tensors, {"task": task, "architecture": architecture}))


def load_emotion_branch(network: Network, source: Source) -> Weights:
    """Fills the emotion branch from a file of ours (emotion or whole network) or of the official code.

    Returns:
        The weights of the file, with the id hashes of the pictures that the branch was trained on.

    Raises:
        ValueError: another backbone, another list of emotions, or names that do not fit, listed.
    """
    weights = source.weights
    theirs, ours = weights.description["architecture"], network.arguments
    for what, its, wanted in (
        ("emotion backbone", emotion_backbone(theirs), emotion_backbone(ours)),
        ("emotion levels", theirs.get("emotion_levels", 3), ours["emotion_levels"]),
        ("model.depth", emotion_depth(theirs), emotion_depth(ours)),
        ("emotions", list(theirs.get("emotions", ())), list(ours["emotions"])),
    ):
        if its != wanted:
            raise ValueError(f"checkpoint: {source.path} has the {what} {its}; the network's: {wanted}")
    tensors = {name: value for name, value in weights.tensors.items() if name.startswith("emotion.")}
    width, wanted = tensors["emotion.classifier.weight"].shape[1], network.emotion.classifier.in_features
    if width != wanted:
        raise ValueError(
            f"checkpoint: {source.path} has an emotion path of {width} channels; the network's: {wanted} "
            f"(model.emotion_width={width} fits)"
        )
    load_tensors(network, tensors, str(source.path), only="emotion.")
    ids = weights.training_ids if weights.task == "emotion" else weights.emotion_training_ids
    return replace(weights, emotion_training_ids=ids)


def load_imagenet(network: Network, source: str = "auto", branch_given: bool = False) -> None:
    """Fills every backbone of the network with ImageNet weights: downloaded ("auto"), or from a local file.

    Args:
        branch_given: leave the emotion branch alone, which has weights of its own.

    Raises:
        FileNotFoundError: no such file, or no connection to download it; says which file to put where.
        ValueError: tensors of a backbone are missing or misshapen in the file; it is unchanged.
    """
    main, states = network.arguments["backbone"], {}
    for place, pyramid in pyramids(network).items():
        of_emotions = place.startswith("emotion.")
        if of_emotions and branch_given:
            continue
        name = emotion_backbone(network.arguments) if of_emotions else main
        # A local file is the main backbone's; another one of the emotion branch gets its own weights.
        file = Path(source) if source != "auto" and name == main else backbones.imagenet_file(name)
        state = states[name] = states.get(name) or imagenet_state(name, file)
        load_pyramid(pyramid, state, str(file or name))


def load_pyramid(pyramid: nn.Module, state: Tensors, source: str) -> None:
    """`load_tensors` of the part of `imagenet_state` that a pyramid has; layers added to a ViT stay."""
    tensors = {key: state[key] for key in pyramid.state_dict() if key in state}
    load_tensors(pyramid, tensors, source, leave=(vit.ADDED,))


def imagenet_state(name: str, file: Path | None) -> Tensors:
    """The tensors of a classification network, under the names that they have in a pyramid of `name`."""
    content = unwrapped(read_file(file)[0]) if file is not None else {}
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return backbones.imagenet_tensors(name, state if file is not None else None)


def emotion_backbone(arguments: dict) -> str:
    """The name of the emotion branch's backbone, from a constructor's arguments."""
    return arguments.get("emotion_backbone") or arguments["backbone"]


def emotion_depth(arguments: dict) -> int:
    """The number of blocks that the emotion branch takes of a ViT; 0 for other backbones."""
    name = emotion_backbone(arguments)
    return vit.blocks_taken(name, arguments.get("depth", 0) if name == arguments["backbone"] else 0)


def pyramids(model: Network) -> dict[str, nn.Module]:
    """The backbones, and their tails, which have ImageNet weights too, by the prefix of their names."""
    modules = dict(model.named_modules())
    places = ("emotion.pyramid", "emotion.tail", "detail", "context", "tail")
    return {f"{place}.": modules[place] for place in places if place in modules}


def learning_pyramids(model: Network) -> list[nn.Module]:
    """The backbones and tails that learn, unlike those of a frozen branch."""
    return [part for part in pyramids(model).values() if any(p.requires_grad for p in part.parameters())]
