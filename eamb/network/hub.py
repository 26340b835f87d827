"""Networks in folders as Hugging Face's hub has them: `from_pretrained`, `save_pretrained`, `push_to_hub`.

A folder holds model.safetensors, the tensors, and config.json: the arguments of the network's constructor
and, under "description", plain values that travel with the weights, such as the scale of ratings, the size of
pictures, their mean and standard deviation, the data set and the licence. Nothing in them is executed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from huggingface_hub import ModelCard
from huggingface_hub.hub_mixin import ModelHubMixin
from torch import Tensor, nn

from eamb.files import written_whole
from eamb.network import backbones
from eamb.network.card import begun_card

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# Keys of config.json beside the constructor's arguments.
CLASSES, DESCRIPTION = "architectures", "description"
IDS, EMOTION_IDS = "training_ids", "emotion_training_ids"  # tensors beside the network's own
NOT_WEIGHTS = (
    "is not a weights file: it is empty, cut off, damaged, a web page or a Git LFS pointer, or holds code, "
    "which is never executed; download or copy the file itself again (networks that scripts/export.py wrote "
    "are for predict and select)"
)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Stored(NamedTuple):
    """What a folder holds.

    network: the name of the network's class; "" if config.json does not say.
    arguments: those of its constructor.
    description: what travels with the weights; empty for a network that was never trained by this program.
    tensors: name -> tensor, the network's own.
    ids: name -> int64, hashes of the pictures that it was trained on; IDS and EMOTION_IDS, or none.
    """

    network: str
    arguments: dict
    description: dict
    tensors: dict[str, Tensor]
    ids: dict[str, Tensor]


class HubNetwork(nn.Module, ModelHubMixin):
    """A network that can be loaded from a hub or a folder in one line, and saved to either.

    Attributes:
        description: what travels with the weights, plain values; empty for a network with random weights.
        ids: as in `Stored`.
    """

    def __init__(self):
        super().__init__()
        self.description: dict = {}
        self.ids: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **changes,
    ) -> Self:
        """The network of a folder, or of a model on Hugging Face's hub, in evaluation mode on the CPU.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a model, owner/name; a folder of that name
                comes first.
            revision: a branch, tag or commit of the model; by default the newest.
            changes: arguments of the constructor that replace those of config.json, as dropout.

        Raises:
            FileNotFoundError: no such folder or model, or no connection and no copy in the cache; a file is
                missing.
            ValueError: a file is damaged, the two do not fit each other, or hold another kind of network.
        """
        options = {"revision": revision, "cache_dir": cache_dir, "token": token}
        options |= {"force_download": force_download, "local_files_only": local_files_only}
        folder = find_folder(pretrained_model_name_or_path, **options)
        stored = read_folder(folder)
        if stored.network not in (cls.__name__, ""):
            raise ValueError(
                f"checkpoint: {folder} holds a network of the class {stored.network}, not {cls.__name__}; "
                f"load it with {stored.network}.from_pretrained"
            )
        arguments = stored.arguments | changes
        check_fit(lambda: cls(**arguments), stored.tensors, folder)
        network = cls(**arguments)
        network.load_state_dict(stored.tensors)
        network.description, network.ids = stored.description, stored.ids
        return network.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by `save_pretrained` and `push_to_hub`."""
        arguments = type(self).__name__, self.arguments, self.description
        write_folder(save_directory, Stored(*arguments, self.state_dict(), self.ids))

    def generate_model_card(self, **_) -> ModelCard:
        """What `save_pretrained` writes to a README.md if there is none; takes no options."""
        return ModelCard(begun_card(type(self).__name__, self.description))


def find_folder(source: str | Path, **options) -> Path:
    """The folder that is given, or one in the hub's cache with what is downloaded; options: those of
    `hf_hub_download`. Raises FileNotFoundError."""
    if os.path.isdir(source):  # noqa: PTH112 - Path's may raise
        return Path(source)
    if not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"checkpoint: there is no folder {source}; give one with {CONFIG} and {WEIGHTS}, or the id of a "
            "model on the hub, owner/name"
        )
    from huggingface_hub import hf_hub_download, utils

    try:
        config = Path(hf_hub_download(str(source), CONFIG, **options))
        # Of the same commit, even if another one has been pushed since.
        hf_hub_download(str(source), WEIGHTS, **options | {"revision": config.parent.name})
    except Exception as error:  # of the library that downloads, which is another one from version to version
        reasons = {
            utils.LocalEntryNotFoundError: "there is no connection, and no copy in the hub's cache; without "
            f"a connection give a folder with {CONFIG} and {WEIGHTS}",
            utils.EntryNotFoundError: f"it must have {CONFIG} and {WEIGHTS}",
            utils.RevisionNotFoundError: f"it has no revision {options.get('revision')}",
            utils.RepositoryNotFoundError: "the hub has no such model, or it is private and needs a token",
        }
        other = " ".join(str(error).split())[:300] or type(error).__name__
        reason = next((words for kind, words in reasons.items() if isinstance(error, kind)), other)
        raise FileNotFoundError(
            f"checkpoint: {source} is no folder here, and cannot be loaded from the hub: {reason}"
        ) from error
    return config.parent


def read_folder(folder: Path | str, raw: bytes | None = None) -> Stored:
    """What a folder holds; executes nothing, and builds nothing.

    Args:
        raw: the content of its model.safetensors, if that was read already.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: one of them is damaged, or config.json has a backbone or normalisation that is not ours.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"checkpoint: {folder} has no {name}; a hub's folder holds {CONFIG} and {WEIGHTS}"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (network,), description = config.pop(CLASSES, [""]), config.pop(DESCRIPTION, {})
        for name in (network, config["backbone"], config.get("emotion_backbone", "")):
            if not isinstance(name, str) or ":" in name:  # timm would read a file or a page of that name
                raise ValueError(f"{name} is no name of a network")
        for key, ours in normalisation(config["backbone"]).items():
            if (theirs := description.get(key, ours)) != ours:
                raise ValueError(f"'{key}' is {theirs}, and for {config['backbone']} it must be {ours}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        words = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"checkpoint: {folder / CONFIG} is damaged, or not of a network of this program: {words}"
        ) from error
    path = folder / WEIGHTS
    tensors, _ = parse_safetensors(path.read_bytes() if raw is None else raw, path)
    ids = {name: tensors.pop(name) for name in (IDS, EMOTION_IDS) if name in tensors}
    return Stored(network, config, description, tensors, ids)


def write_folder(folder: Path, stored: Stored) -> None:
    """Writes config.json and model.safetensors, each whole or not at all; what is there is replaced."""
    from safetensors.torch import save

    description = stored.description and stored.description | normalisation(stored.arguments["backbone"])
    config = {CLASSES: [stored.network], **stored.arguments, DESCRIPTION: description}
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in (stored.tensors | stored.ids).items()
    }
    with written_whole(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))
    with written_whole(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def normalisation(backbone: str) -> dict[str, list[float]]:
    """What pictures are normalised by, per channel on values in [0, 1], as a description has it."""
    mean, std = backbones.normalisation(backbone)
    return {"mean": list(mean), "std": list(std)}


def parse_safetensors(raw: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file's content; raises ValueError if it is damaged or none."""
    from safetensors.torch import load

    try:
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        return load(raw), header.get("__metadata__", {})
    except Exception as error:
        raise ValueError(f"checkpoint: {path} {NOT_WEIGHTS}") from error


def check_fit(build: Callable[[], nn.Module], tensors: dict[str, Tensor], folder: Path | str) -> None:
    """Raises ValueError unless a folder's tensors are those of the network that its config.json describes.

    The network is built without memory, so that a size of a damaged file costs none.
    """
    import timm  # noqa: F401 - torch 2.6 cannot import it for the first time with another default device

    try:
        with torch.device("meta"):
            network = build()
        if problems := misfits(network.state_dict(), tensors):
            raise ValueError(problems)
    except Exception as error:  # wrong values raise nearly anything
        reason = str(error).removeprefix("checkpoint: ")
        raise ValueError(
            f"checkpoint: {folder}: {CONFIG} does not fit {WEIGHTS}: {reason}; take both from one model"
        ) from error


def misfits(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """What keeps tensors from taking the place of a network's: missing and unknown names, wrong shapes,
    values that are not finite. "" if nothing does."""
    problems = [f"missing {name}" for name in sorted({*wanted} - {*given})]
    problems += [f"unknown {name}" for name in sorted({*given} - {*wanted})]
    for name in sorted({*wanted} & {*given}):
        value, shape = given[name], tuple(wanted[name].shape)
        if not isinstance(value, Tensor):
            problems.append(f"{name} is not a tensor but {type(value).__name__}, the network's is {shape}")
        elif tuple(value.shape) != shape:
            problems.append(f"{name} is {tuple(value.shape)}, the network's is {shape}")
        elif not value.isfinite().all():
            problems.append(f"{name} holds values that are NaN or infinite")
    more = f" (+{len(problems) - 12} more)" if len(problems) > 12 else ""
    return "; ".join(problems[:12]) + more
