"""Averages the weights of networks that started from one file: their mean is one network ("model soup").

    python main.py train ... --weights first.pt train.seed=1 --output runs/1      # and likewise 2 and 3
    python scripts/average_weights.py runs/1/best.pt runs/2/best.pt runs/3/best.pt \
        --output averaged.safetensors --data-root PARA

BatchNorm's statistics are not averaged but measured anew on training pictures, as the mean over batches
(torch.optim.swa_utils.update_bn does the same). Those that the training kept stay: of a frozen emotion
branch, and of backbones that were frozen in all epochs or had train.fixed_batchnorm=true. Of a single file
only the statistics change. A network without BatchNorm to measure needs no pictures.

The output is read like any checkpoint. Its description names the files (origin.averaged), and it has the
hashes of all their training pictures. (Wortsman et al., "Model soups", ICML 2022)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import TrainOrder, make_loader
from eamb.evaluation.predicting import as_trained
from eamb.files import file_hash
from eamb.network import backbones
from eamb.network.vit import blocks_taken
from eamb.readers.rated import RatedSet
from eamb.runtime import distributed, engine
from eamb.runtime.command import check_output, guarded
from eamb.runtime.config import Config, from_settings, read_settings
from eamb.runtime.progress import progress
from eamb.training.tasks import choose_task
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Weights
from eamb.weights.official import Tensors
from scripts.export_weights import halved

# What descriptions must share, and what it is where an older file does not say it.
ALIKE = {"task": None, "network": "eambnet", "scale": None, "dataset": None, "image_size": None, "exif": None}
ALIKE |= {"crop": False, "icc": False, "class_shift": {}}
START = ("weights_sha256", "emotion_checkpoint_sha256", "new_layer_seed")  # in a description's origin
RANDOM = "random layers of its own"


class Input(NamedTuple):
    path: Path
    sha256: str  # of the file
    weights: Weights


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    words = "best.pt of runs, or exported weights; and settings as key=value (data.workers=4)"
    add("words", nargs="+", metavar="FILE", help=words)
    add("--output", type=Path, metavar="FILE.safetensors", required=True)
    add("--data-root", metavar="DIR", action="append", help="of the set they were trained on; of each set")
    add("--pictures", type=int, default=2048, help="how many to measure BatchNorm's statistics on")
    add("--half", action="store_true", help="store float16 instead of float32")
    add("--force", action="store_true", help="overwrite an existing file")
    return guarded(average, parser.parse_intermixed_args(arguments))


def average(options: argparse.Namespace) -> int:
    output, settings = options.output, [word for word in options.words if "=" in word]
    paths = [Path(word) for word in options.words if "=" not in word]
    if output.suffix != ".safetensors" or options.pictures < 1 or not paths:
        raise ValueError(
            "average_weights: needs files of weights, an --output that ends in .safetensors, and --pictures "
            f"of 1 or more; got {len(paths)} files, {output.name} and {options.pictures}"
        )
    check_output("average_weights", output.parent, [output.name], options.force)
    read = [(path, checkpoint.load_weights(path)) for path in paths]
    inputs = [Input(path, file_hash(path), weights) for path, weights in read]
    check_alike(inputs)
    weights, words = merged(inputs), "no BatchNorm to measure"
    if options.half:  # before the statistics are measured
        weights = replace(weights, tensors=halved(weights.tensors, output))
    network = weights.build()
    if layers := changing_layers(network, inputs[0].weights.description):
        config = read_config(weights, settings, options.data_root or [], options.pictures)
        pictures = measure_on_set(network, layers, config, weights.training_ids)
        tensors = network.state_dict()
        weights = replace(weights, tensors=halved(tensors, output) if options.half else tensors)
        words = f"BatchNorm's statistics from {pictures:,} training pictures"
    checkpoint.export_weights(output, weights)
    networks = f"mean of {len(inputs)} networks" if len(inputs) > 1 else "one network"
    print(f"{output}: {networks}, {words}, {output.stat().st_size / 1e6:.1f} MB")
    print(f"weights sha256 {weights.sha256}")
    return 0


# ---- What may be averaged


def check_alike(inputs: list[Input]) -> None:
    """Refuses networks of different shape, task or scale, or that did not start from the same weights."""
    first, *others = inputs
    needed = facts(first.weights)
    for each in others:
        theirs = facts(each.weights)
        if other := [name for name in needed if needed[name] != theirs.get(name)]:
            name = other[0]
            raise ValueError(
                f"average_weights: {each.path} has {name} {theirs.get(name)} and {first.path} "
                f"{needed[name]}; only networks of one shape, task, scale and data set can be averaged"
            )
        if start_of(each.weights) != start_of(first.weights) or start_of(first.weights) == RANDOM:
            raise ValueError(
                f"average_weights: {each.path} started from {start_of(each.weights)} and {first.path} from "
                f"{start_of(first.weights)}; the mean of networks is a network only if all started from "
                "one file, as with --weights FILE"
            )


def facts(weights: Weights) -> dict:
    """What the networks must share, by name. Dropout may differ: it does nothing after the training."""
    network, description = weights.build(), weights.description
    arguments = network.arguments
    arguments = arguments | {"depth": blocks_taken(arguments["backbone"], arguments["depth"])}
    for name in ("dropout", "drop_path"):
        arguments.pop(name, None)
    arguments = {f"model.{name}": value for name, value in arguments.items()}
    arguments["layers with kept BatchNorm statistics"] = len(kept_layers(network, description))
    return {name: description.get(name, default) for name, default in ALIKE.items()} | arguments


def start_of(weights: Weights) -> str:
    """What a network started from, in words: hashes of files, the seed of a last layer that was replaced."""
    origin = weights.description.get("origin", {})
    if "weights_sha256" not in origin:
        return RANDOM
    return ", ".join(f"{name} {origin[name]}" for name in START if name in origin)


# ---- The mean


def merged(inputs: list[Input]) -> Weights:
    """The mean of the weights, what the descriptions share, and the hashes of all training pictures."""
    every = [each.weights for each in inputs]
    description = shared([weights.description for weights in every])
    description.pop("best", None)  # of an epoch that this is not
    averaged = [
        {"file": each.path.name, "sha256": each.sha256, "weights_sha256": each.weights.sha256}
        | differing(each.weights.description, description)
        for each in inputs
    ]
    description["origin"] = description.get("origin", {}) | {"averaged": averaged}
    ids = reduce(np.union1d, [weights.training_ids for weights in every])
    emotion_ids = reduce(np.union1d, [weights.emotion_training_ids for weights in every])
    return Weights(mean_of([weights.tensors for weights in every]), description, ids, emotion_ids)


def mean_of(states: list[Tensors]) -> Tensors:
    """Means of the floats, computed in float64, as float32; other tensors are the first's."""
    means = {}
    for name, value in states[0].items():
        if value.is_floating_point():
            value = torch.stack([state[name].double() for state in states]).mean(dim=0).float()
        means[name] = value
    return means


def shared(dictionaries: list[dict]) -> dict:
    """The entries that are equal in all of them, also within the dictionaries that they hold."""
    first, *others = dictionaries
    result = {}
    for name, value in first.items():
        theirs = [other.get(name) for other in others]
        if isinstance(value, dict) and all(isinstance(each, dict) for each in theirs):
            result[name] = shared([value, *theirs])
        elif all(each == value for each in theirs):
            result[name] = value
    return result


def differing(values: dict, common: dict) -> dict:
    """The entries of `values` that `common`, made by `shared`, lacks."""
    result = {}
    for name, value in values.items():
        if name not in common:
            result[name] = value
        elif isinstance(value, dict) and (rest := differing(value, common[name])):
            result[name] = rest
    return result


# ---- BatchNorm


def changing_layers(network: nn.Module, description: dict) -> list[_BatchNorm]:
    """The BatchNorm layers whose statistics changed in the training; those of a frozen branch do not."""
    network.train()
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    network.eval()
    kept = kept_layers(network, description)
    return [layer for layer in layers if layer not in kept]


def kept_layers(network: nn.Module, description: dict) -> set[_BatchNorm]:
    """The BatchNorm layers of backbones that learn, if the training kept the statistics of these."""
    train = description.get("config", {}).get("train", {})
    frozen = train.get("freeze_backbone", 0) >= train.get("epochs", 1)
    parts = checkpoint.learning_pyramids(network) if frozen or train.get("fixed_batchnorm") else ()
    return {layer for part in parts for layer in part.modules() if isinstance(layer, _BatchNorm)}


def measure_on_set(network: nn.Module, layers: list[_BatchNorm], config: Config, ids: np.ndarray) -> int:
    """Measures the statistics on those training pictures whose hashes are in `ids`; returns their number."""
    rated = choose_task(config).load(("train",))["train"]
    rated = rated.take(np.isin(rated.row_hashes, ids))
    if not rated.draws:
        raise ValueError(
            f"average_weights: these networks were trained on no picture of the {rated.name} in --data-root"
        )
    device = distributed.choose_device(config.train.device)
    engine.allow_tf32(False, device)
    batches = training_batches(rated, config, device)
    pictures = measure_statistics(network.to(device), layers, batches)
    network.cpu()
    if not pictures:
        raise ValueError(
            f"average_weights: no batch of {rated.name} has two pictures that can be decoded, and "
            "BatchNorm's statistics need them; raise --pictures or train.batch_size"
        )
    return pictures


def training_batches(rated: RatedSet, config: Config, device: torch.device) -> Iterator[Tensor]:
    """Batches (N, 3, H, W) of an epoch of training, normalised, on the device."""
    compute = engine.Compute(device, "fp32", *backbones.normalisation(config.model.backbone))
    order = TrainOrder(rated.draws, config.train.batch_size, config.train.seed, epoch=0)
    workers, timeout = config.data.worker_count(), config.data.timeout
    loader = make_loader(choose_task(config).pictures(rated), order, workers, timeout=timeout)
    for batch in progress(loader, desc="BatchNorm", unit="batch"):
        if len(batch.images) > 1:  # one picture may have no variance
            yield compute.images(batch)


@torch.no_grad()
def measure_statistics(network: nn.Module, layers: list[_BatchNorm], batches: Iterable[Tensor]) -> int:
    """Sets the running mean and variance of the layers to the means of those of the batches (N, 3, H, W), the
    rest of the network being in evaluation mode; returns the number of pictures."""
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum, layer.training = None, True  # None: every batch counts the same
    pictures = 0
    for images in batches:
        network(images)
        pictures += len(images)
    network.eval()
    return pictures


def read_config(weights: Weights, settings: list[str], roots: list[str], pictures: int) -> Config:
    """The settings that read the data set that the weights were trained on."""
    dataset = weights.description["dataset"]
    if not roots:
        raise ValueError(
            "average_weights: BatchNorm's statistics are measured on training pictures; name the folder of "
            f"{dataset} with --data-root DIR"
        )
    words = ["data.skip_broken=true", *settings, f"data.dataset={dataset}", f"data.limit={pictures}"]
    if weights.scale and weights.scale.kind == "distribution":
        words.append("loss.mean_weight=1")  # pictures without votes will do
    given = read_settings((), [*words, "data.root=" + "\n".join(roots)])
    return as_trained(from_settings(given), weights, given)


if __name__ == "__main__":
    sys.exit(main())
