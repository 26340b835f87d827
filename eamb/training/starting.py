"""The first weights of a run, and where they came from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eamb.network.outputs import EMOTIONS
from eamb.readers.rated import RatedSet, emotion_name
from eamb.runtime import distributed
from eamb.runtime.config import Config
from eamb.training.tasks import Task, left_out_parts
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Source
from eamb.weights.registry import Network

UNTRAINED_BRANCH = (
    "training: the emotion branch was never trained, and it stays frozen. Give it weights with "
    "--emotion-checkpoint FILE (train them with --task emotion), or accept ImageNet's features with "
    "model.emotion_weights=none"
)


class Sources(NamedTuple):
    """The files that a run starts from, each read once: of a whole network, and of the emotion branch."""

    weights: Source | None = None
    emotion_checkpoint: Source | None = None


def read_sources(task: Task, weights: str | None, emotion_checkpoint: str | None) -> Sources:
    """Reads what the run starts from and refuses what does not fit, before data or a network are built.

    Raises:
        ValueError, FileNotFoundError: in one sentence.
    """
    task.check()
    if emotion_checkpoint and not task.has_emotion_branch:
        raise ValueError("training: --emotion-checkpoint is given, but this network has no emotion branch")
    if emotion_checkpoint and task.name == "emotion":
        raise ValueError(
            "training: --emotion-checkpoint is for --task aesthetics; "
            "an emotion training starts from given weights with --weights FILE"
        )
    if not (weights or emotion_checkpoint or may_be_untrained(task)):
        raise ValueError(UNTRAINED_BRANCH)
    named = named_emotions(task.config)
    read = [checkpoint.read_source(file, named) if file else None for file in (weights, emotion_checkpoint)]
    sources = Sources(*read)
    if not (source := sources.weights):
        return sources
    learned = source.weights.task
    if learned == "emotion" and task.name == "aesthetics":
        raise ValueError(
            f"training: {source.path} holds an emotion branch alone, which cannot score pictures; "
            f"start from it with --emotion-checkpoint {source.path}"
        )
    if learned != task.name and (learned, task.name) != ("aesthetics", "emotion"):
        raise ValueError(
            f"training: {source.path} holds a network for the task {learned}, which cannot start one for "
            f"{task.name}"
        )
    description = source.weights.description
    theirs = {"network": description.get("network", "eambnet"), **description["architecture"]}
    theirs["without"] = ",".join(theirs.get("without", ()))
    ours = asdict(task.config.model) | {"without": ",".join(left_out_parts(task.config))}
    other = [name for name in task.shapes if theirs.get(name, ours[name]) != ours[name]]
    if other:
        has = " ".join(f"model.{name}={theirs[name]}" for name in other)
        wants = " ".join(f"model.{name}={ours[name]}" for name in other)
        raise ValueError(
            f"training: {source.path} has {has} and this run {wants}; give the former, or a --config that "
            "has them"
        )
    return sources


def named_emotions(config: Config) -> tuple[str, ...]:
    """The emotions in model.emotions, for a file that does not name its own."""
    return tuple(emotion_name(name) for name in config.model.emotions.split(",") if name.strip())


def may_be_untrained(task: Task) -> bool:
    """Whether the emotion branch needs no weights: it is trained here, absent, or wanted untrained."""
    asked_for = task.config.model.emotion_weights == "none"
    return task.learns_emotions or not task.has_emotion_branch or asked_for


def build_network(task: Task, rated: RatedSet, sources: Sources) -> tuple[Network, dict]:
    """The network with its first weights, and a description of where they came from."""
    config, start = task.config, sources.weights
    torch.manual_seed(config.train.seed)
    network = task.build(rated.scale, choose_emotions(task, rated, sources))
    no_ids = np.empty(0, np.int64)
    origin = {"imagenet": config.model.imagenet, "training_ids": no_ids, "emotion_training_ids": no_ids}
    if start:
        note = task.start_from(network, start, rated.scale, other_branch=bool(sources.emotion_checkpoint))
        if note and distributed.is_main():
            print(note, flush=True)
        ids, branch_ids = start.weights.training_ids, start.weights.emotion_training_ids
        origin = describe_file("weights", start)
        origin["emotion_branch"] = start.weights.emotion_branch
        origin["training_ids"] = ids if task.name == start.weights.task else branch_ids
        origin["emotion_training_ids"] = branch_ids
    elif config.model.imagenet != "none":
        checkpoint.load_imagenet(network, config.model.imagenet)
        origin["imagenet"] = Path(config.model.imagenet).name  # the folder means nothing elsewhere
    if sources.emotion_checkpoint:
        branch = checkpoint.load_emotion_branch(network, sources.emotion_checkpoint)
        origin |= describe_file("emotion_checkpoint", sources.emotion_checkpoint)
        ids = branch.emotion_training_ids
        origin |= {"emotion_branch": branch.emotion_branch, "emotion_training_ids": ids}
    if task.learns_emotions:
        origin["emotion_branch"] = "trained"
    elif not task.has_emotion_branch:
        origin["emotion_branch"] = "none"
    elif origin.setdefault("emotion_branch", "never trained") != "trained" and not may_be_untrained(task):
        raise ValueError(UNTRAINED_BRANCH)
    return network.to(memory_format=torch.channels_last), origin


def choose_emotions(task: Task, rated: RatedSet, sources: Sources) -> tuple[str, ...]:
    """The network's emotions: for aesthetics those of the weights, if there are any; else the data set's.

    Of the data set's, those that the weights know come first, in their order. A branch that stays untrained
    has model.emotions or EMOTIONS.
    """
    if not task.has_emotion_branch:
        return ()
    named, source = named_emotions(task.config), sources.emotion_checkpoint or sources.weights
    given = source.weights.emotions if source else ()
    if not (source or task.learns_emotions):
        given = named or EMOTIONS
    if named and given and named != given:
        raise ValueError(
            f"training: model.emotions names {', '.join(named)}; the weights know {', '.join(given)}"
        )
    if given and task.name == "aesthetics":
        return given
    classes = rated.emotion_classes
    if named and set(named) != set(classes):
        raise ValueError(
            f"training: model.emotions names {', '.join(named)}; {rated.name} has {', '.join(classes)}"
        )
    first = given or named
    return (*(n for n in first if n in classes), *(n for n in classes if n not in first))


def describe_file(what: str, source: Source) -> dict[str, str]:
    return {
        what: source.path.name,
        f"{what}_sha256": source.sha256,
        f"{what}_dataset": source.weights.description.get("dataset", "unknown"),
    }
