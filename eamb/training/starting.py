"""The first weights of a run, and where they came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from eamb.files import file_hash
from eamb.network.outputs import EMOTIONS
from eamb.network.vit import blocks_taken
from eamb.readers.rated import RatedSet, emotion_name
from eamb.runtime import distributed
from eamb.runtime.config import Config, Model
from eamb.training.tasks import Task, left_out_parts
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Source
from eamb.weights.registry import Network

SCALES = ("context_scale", "emotion_scale")  # of the pictures that two of the branches see
Sources = tuple[Source | None, Source | None]  # of the whole network, and of the emotion branch


def read_sources(task: Task, weights: str | None, emotion_checkpoint: str | None) -> Sources:
    """Reads the weights that a run starts from, each file once; refuses unfit ones before data are read.

    Raises:
        ValueError, FileNotFoundError: in one sentence.
    """
    task.check()
    if emotion_checkpoint and not task.takes_branch:
        raise ValueError(
            "training: --emotion-checkpoint is for --task aesthetics and a network with an emotion branch; "
            "an emotion training starts from given weights with --weights FILE"
        )
    named = named_emotions(task.config)
    files = {file for file in (weights, emotion_checkpoint) if file}
    read = {file: checkpoint.read_source(file, named) for file in files}
    source, branch = read.get(weights), read.get(emotion_checkpoint)
    if source and source.weights.task not in task.starts_from:
        raise ValueError(
            f"training: {source.path} holds a network for the task {source.weights.task}, which cannot start "
            f"one for {task.name}; an emotion branch alone is given with --emotion-checkpoint"
        )
    if source:
        description, architecture = source.weights.description, source.weights.description["architecture"]
        network = description.get("network", "eambnet")
        ours = asdict(task.config.model) | {"without": ",".join(left_out_parts(task.config))}
        # Older files of an EAMBNet lack newer settings; other networks do not have all of them.
        theirs = (asdict(Model()) if network == "eambnet" else ours) | architecture
        theirs |= {"network": network, "without": ",".join(architecture.get("without", ()))}
        theirs, ours = (settled(shape, task.name == "emotion") for shape in (theirs, ours))
        shapes = [name for name in task.shapes if not (branch and name.startswith("emotion_"))]
        other = [name for name in shapes if theirs[name] != ours[name]]
        if other:
            has, wants = (" ".join(f"model.{name}={d[name]}" for name in other) for d in (theirs, ours))
            raise ValueError(f"training: {source.path} has {has} and this run {wants}; give the former")
    needs_weights = task.has_emotion_branch and not task.learns_emotions
    trained = any(each.weights.emotion_branch == "trained" for each in [branch or source] if each)
    if needs_weights and not trained and task.config.model.emotion_weights != "none":
        raise ValueError(
            "training: the emotion branch was never trained, and it stays frozen. Give it weights with "
            "--emotion-checkpoint FILE (train them with --task emotion), or accept ImageNet's features with "
            "model.emotion_weights=none"
        )
    return source, branch


def changed_scales(network: Network, source: Source, names: Iterable[str]) -> list[str]:
    """A note for each scale that differs from the one which the given weights were trained at."""
    trained = source.weights.description["architecture"]
    return [
        f"note: {source.path} was trained with model.{name}={trained[name]:g}, and this run has {now:g}"
        for name in names
        if name in trained and (now := network.arguments.get(name, trained[name])) != trained[name]
    ]


def announce(*notes: str) -> None:
    if distributed.is_main():
        for note in notes:
            print(note, flush=True)


def settled(model: dict, branch_alone: bool) -> dict:
    """`model.` settings with the emotion branch's backbone and a ViT's number of blocks written out.

    Args:
        branch_alone: "backbone", "width" and "depth" become those of the emotion branch.
    """
    emotion_backbone, depth = checkpoint.emotion_backbone(model), checkpoint.emotion_depth(model)
    name = emotion_backbone if branch_alone else model["backbone"]
    depth = depth if branch_alone else blocks_taken(name, model["depth"])
    emotion_width = model["emotion_width"] or model["width"]
    width = emotion_width if branch_alone else model["width"]
    other_width = emotion_width if emotion_width != model["width"] else 0
    emotions = {"emotion_backbone": emotion_backbone, "emotion_width": other_width}
    return model | emotions | {"backbone": name, "width": width, "depth": depth}


def named_emotions(config: Config) -> tuple[str, ...]:
    """The emotions in model.emotions, used for files that do not name theirs."""
    return tuple(emotion_name(name) for name in config.model.emotions.split(",") if name.strip())


def build_network(task: Task, rated: RatedSet, sources: Sources) -> tuple[Network, dict]:
    """The network with its first weights, and a description of where they came from."""
    config, (source, branch) = task.config, sources
    torch.manual_seed(config.train.seed)
    network = task.build(rated.scale, choose_emotions(task, rated, sources))
    no_ids = np.empty(0, np.int64)
    origin = {"imagenet": config.model.imagenet, "training_ids": no_ids, "emotion_training_ids": no_ids}
    origin["emotion_branch"] = "never trained"
    if source:
        note = task.start_from(network, source, rated.scale, other_branch=bool(branch))
        known = source.weights
        ids = known.training_ids if task.name == known.task else known.emotion_training_ids
        origin = describe_file("weights", source) | {"training_ids": ids}
        origin |= {"emotion_branch": known.emotion_branch, "emotion_training_ids": known.emotion_training_ids}
        if note:
            origin["new_layer_seed"] = config.train.seed
            announce(note)
    elif config.model.imagenet != "none":
        checkpoint.load_imagenet(network, config.model.imagenet, branch_given=bool(branch))
        origin["imagenet"] = Path(config.model.imagenet).name  # not the folder, which means nothing elsewhere
    if branch:
        known = checkpoint.load_emotion_branch(network, branch)
        origin |= describe_file("emotion_checkpoint", branch)
        origin |= {"emotion_branch": known.emotion_branch, "emotion_training_ids": known.emotion_training_ids}
    if file := config.data.distill:
        origin |= {"distill": Path(file).name, "distill_sha256": file_hash(file)}
    if source:
        announce(*changed_scales(network, source, ["context_scale"] if branch else SCALES))
    if branch:
        announce(*changed_scales(network, branch, SCALES))
    if task.learns_emotions or not task.has_emotion_branch:
        origin["emotion_branch"] = "trained" if task.learns_emotions else "none"
    return network.to(memory_format=torch.channels_last), origin


def choose_emotions(task: Task, rated: RatedSet, sources: Sources) -> tuple[str, ...]:
    """The network's emotions: for aesthetics those of the given weights, if any; otherwise the data set's.

    In the latter case those that the weights know come first, in the weights' order. A branch that stays
    untrained gets model.emotions or EMOTIONS.
    """
    if not task.has_emotion_branch:
        return ()
    named, source, classes = named_emotions(task.config), sources[1] or sources[0], rated.emotion_classes
    given = source.weights.emotions if source else ()
    if not (source or task.learns_emotions):
        given = named or EMOTIONS
    if given and task.takes_branch:
        who, emotions = "the weights know", given
    else:
        who, first = f"{rated.name} has", given or named
        emotions = (*(n for n in first if n in classes), *(n for n in classes if n not in first))
    if named and set(named) != set(emotions):
        raise ValueError(f"training: model.emotions names {', '.join(named)}; {who} {', '.join(emotions)}")
    return emotions


def describe_file(what: str, source: Source) -> dict[str, str]:
    return {
        what: source.path.name,
        f"{what}_sha256": source.sha256,
        f"{what}_dataset": source.weights.description.get("dataset", "unknown"),
    }
