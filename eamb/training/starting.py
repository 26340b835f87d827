"""The first weights of a run, and where they came from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eamb.files import file_hash
from eamb.network import backbones
from eamb.network.outputs import Scale
from eamb.network.pair_networks import SeriesNetwork
from eamb.readers.rated import RatedSet
from eamb.runtime import distributed
from eamb.runtime.config import Config
from eamb.training.tasks import (
    UNTRAINED_BRANCH,
    check_losses,
    check_parts,
    check_task,
    choose_emotions,
    has_emotion_branch,
    learns_emotions,
    left_out_parts,
    named_emotions,
    needs_no_branch,
    new_network,
)
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Network, Weights
from eamb.weights.official import looks_official, translate_official
from EAMBNet import EmotionNetwork

LAST_LAYER, CLASSIFIER = "head.5.", "emotion.classifier."  # beginnings of names

SHAPES = {  # settings that decide the shapes of a task's network
    "emotion": ("backbone", "width"),
    "aesthetics": (
        *("backbone", "width", "guided_width", "guided_hidden", "head_width"),
        *("network", "without", "shortcut"),
    ),
    "series": ("backbone", "network", "symmetric"),
}


def check_sources(config: Config, emotion_checkpoint: str | None, weights: str | None) -> None:
    """Whether the files of first weights are there and are enough, before anything is built or downloaded."""
    for file in (weights, emotion_checkpoint):
        if file and not Path(file).is_file():
            raise FileNotFoundError(f"training: there is no weights file {file}")
    check_task(config)
    check_losses(config)
    check_parts(config, emotion_checkpoint)
    if emotion_checkpoint:
        checkpoint.emotions_in(emotion_checkpoint, named_emotions(config))
    if config.task == "emotion":
        if emotion_checkpoint:
            raise ValueError(
                "training: --emotion-checkpoint is for --task aesthetics; "
                "an emotion training starts from given weights with --weights FILE"
            )
    elif not (weights or emotion_checkpoint or needs_no_branch(config)):
        raise ValueError(UNTRAINED_BRANCH)


def build_network(
    config: Config, rated: RatedSet, emotion_checkpoint: str | None, weights: str | None
) -> tuple[Network, dict]:
    """The network with its first weights, and in words and hashes where they came from."""
    torch.manual_seed(config.train.seed)
    start = read_start(Path(weights), named_emotions(config)) if weights else None
    if start:
        check_start(config, start, str(weights))
    model = new_network(config, rated.scale, choose_emotions(config, rated, start, emotion_checkpoint))
    none = np.empty(0, np.int64)
    origin = {"imagenet": config.model.imagenet, "training_ids": none, "emotion_training_ids": none}
    if start:
        start_from(model, start, str(weights), rated.scale, other_branch=bool(emotion_checkpoint))
        origin = describe_file("weights", Path(weights), start)
        origin["emotion_branch"] = start.emotion_branch
        origin["training_ids"], origin["emotion_training_ids"] = trained_ids(config.task, start)
    elif config.model.imagenet != "none":
        checkpoint.load_imagenet(model, config.model.imagenet)
        origin["imagenet"] = Path(config.model.imagenet).name  # a folder says nothing on another machine
    if emotion_checkpoint:
        branch = checkpoint.load_emotion_branch(model, emotion_checkpoint, named_emotions(config))
        origin |= describe_file("emotion_checkpoint", Path(emotion_checkpoint), branch)
        ids = branch.emotion_training_ids
        origin |= {"emotion_branch": branch.emotion_branch, "emotion_training_ids": ids}
    if learns_emotions(config):
        origin["emotion_branch"] = "trained"
    elif not has_emotion_branch(config):
        origin["emotion_branch"] = "none"
    elif origin.setdefault("emotion_branch", "never trained") != "trained" and not needs_no_branch(config):
        raise ValueError(UNTRAINED_BRANCH)
    return model.to(memory_format=torch.channels_last), origin


def rebuild_network(stopped: Weights) -> tuple[Network, dict]:
    """The network of a run that is resumed, and where its first weights came from."""
    origin = {**stopped.description["origin"], "training_ids": stopped.training_ids}
    origin["emotion_training_ids"] = stopped.emotion_training_ids
    return stopped.build().to(memory_format=torch.channels_last), origin


def read_start(path: Path, named: tuple[str, ...]) -> Weights:
    """The weights to start from; of the official code's we know only what their names and shapes tell."""
    content = checkpoint.read(path)
    if not looks_official(content):
        return checkpoint.load_weights(path)
    tensors, problems = translate_official(content)
    if problems:
        raise ValueError(f"training: {path} is not of the official network: {'; '.join(problems[:12])}")
    task = "aesthetics" if LAST_LAYER + "bias" in tensors else "emotion"
    emotions = checkpoint.official_emotions(tensors, path, named)
    architecture = {"backbone": backbones.RESNET50, "width": 256, "emotions": list(emotions)}
    return Weights(tensors, {"task": task, "architecture": architecture})


def start_from(model: Network, start: Weights, path: str, scale: Scale, other_branch: bool) -> None:
    """Fills the network with given weights; a last layer of another kind stays random, and this is said.

    Args:
        other_branch: the emotion branch comes from elsewhere.

    Raises:
        ValueError: the weights are of another network.
    """
    tensors, replaced = start.tensors, ""
    if isinstance(model, EmotionNetwork):
        tensors = {name: value for name, value in tensors.items() if name.startswith("emotion.")}
        leave, ours = (), model.arguments["emotions"]
        if start.emotions != ours:
            tensors = with_classes_of(model, tensors, start.emotions)
            lists = f"{path} knows the emotions {', '.join(start.emotions)}, this run {', '.join(ours)}"
            replaced = f"{lists}; its last layer keeps what both know."
    elif isinstance(model, SeriesNetwork):
        leave = ()
    else:
        leave = () if same_kind(start, scale) else (LAST_LAYER,)
        if leave:
            kinds = f"{path} predicts {kind_of(start)}, this run {kind_of(scale)}"
            replaced = f"{kinds}; its last layer is replaced."
        leave += ("emotion.",) if other_branch else ()
    checkpoint.load_tensors(model, tensors, path, leave=leave)
    if replaced and distributed.is_main():
        print(replaced, flush=True)


def with_classes_of(
    model: EmotionNetwork, tensors: dict[str, Tensor], known: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors with a classifier for the model's emotions: known ones keep their row."""
    fitted = dict(tensors)
    for name, own in model.state_dict().items():
        if name.startswith(CLASSIFIER) and name in tensors:
            rows = zip(model.arguments["emotions"], own, strict=True)
            fitted[name] = torch.stack([tensors[name][known.index(n)] if n in known else r for n, r in rows])
    return fitted


def check_start(config: Config, start: Weights, path: str) -> None:
    """Whether weights can start this run, before its network is built."""
    if "series" in (config.task, start.task) and config.task != start.task:
        raise ValueError(
            f"training: {path} holds a network for the task {start.task}, which cannot start one for "
            f"{config.task}"
        )
    if config.task == "aesthetics" and start.task == "emotion":
        raise ValueError(
            f"training: {path} holds an emotion branch alone, which cannot score pictures; "
            f"start from it with --emotion-checkpoint {path}"
        )
    theirs, ours = dict(start.description["architecture"]), asdict(config.model)
    theirs |= {"network": start.description.get("network", "eambnet")}
    theirs |= {"without": ",".join(theirs.get("without", ()))}
    ours |= {"without": ",".join(left_out_parts(config))}
    other = [name for name in SHAPES[config.task] if theirs.get(name, ours[name]) != ours[name]]
    if other:
        has = " ".join(f"model.{name}={theirs[name]}" for name in other)
        wants = " ".join(f"model.{name}={ours[name]}" for name in other)
        raise ValueError(
            f"training: {path} has {has} and this run {wants}; give the former, or a --config that has them"
        )


def same_kind(start: Weights, scale: Scale) -> bool:
    """Whether the outputs mean what this run's will mean; of an official head only their number is known."""
    same_count = start.tensors[LAST_LAYER + "bias"].numel() == scale.outputs
    return same_count and (start.scale is None or start.scale.kind == scale.kind)


def kind_of(what: Weights | Scale) -> str:
    scale = what if isinstance(what, Scale) else what.scale
    if scale is None:
        return f"{what.tensors[LAST_LAYER + 'bias'].numel()} value(s)"
    words = {"distribution": f"shares of {scale.outputs} ratings", "label": "high or low"}
    return words.get(scale.kind, f"a score from {scale.minimum:g} to {scale.maximum:g}")


def trained_ids(task: str, start: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the pictures that the taken-over part, and its emotion branch, has seen."""
    if task == "emotion" and start.task == "aesthetics":
        return start.emotion_training_ids, start.emotion_training_ids
    return start.training_ids, start.emotion_training_ids


def describe_file(what: str, path: Path, weights: Weights | None) -> dict:
    known = weights.description if weights else {}
    return {
        what: path.name,
        f"{what}_sha256": file_hash(path),
        f"{what}_dataset": known.get("dataset", "unknown"),
    }
