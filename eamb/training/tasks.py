"""The three tasks. `choose_task(config)` chooses one; nothing else reads the setting `task`.

From top to bottom: what a task is; aesthetics, emotion and series; data and settings; losses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

import losses
from datasets import Batch, PairPictures, PictureSet, SetReader, check_classes, first_by_hash, load_datasets
from eamb.evaluation.emotions import evaluate_emotions, measure_emotions
from eamb.evaluation.predicting import labelled
from eamb.evaluation.preferences import evaluate_pairs, measure_pairs
from eamb.evaluation.ratings import evaluate_scores, measure_scores
from eamb.evaluation.report import Report
from eamb.network.names import PAIR_NETWORKS
from eamb.network.outputs import Output, Scale
from eamb.network.pair_networks import SeriesNetwork
from eamb.readers.pairs import PairedSet, load_pairs
from eamb.readers.rated import RatedSet
from eamb.readers.registry import DATASETS, PAIRED
from eamb.runtime.config import Config, Loss
from eamb.runtime.engine import Compute, Predictions
from eamb.weights.checkpoint import Source, Weights, load_tensors
from eamb.weights.registry import Network, kind_of
from EAMBNet import EmotionNetwork, LinearNetwork, build_model

LossFunction = Callable[[Output, Batch], Tensor]
Evaluated = tuple[Report, Predictions]


class Task(ABC):
    """What the rest of the program asks about the task of a run: one of Aesthetics, Emotion and Series.

    name: the value of the setting `task`.
    unit: what a batch counts, "pictures" or "pairs".
    shapes: the settings of `model.` that must be equal for weights to start a run.
    has_emotion_branch, learns_emotions: whether the network has the branch, and whether the run trains it.
    """

    name: str
    unit = "pictures"
    shapes: tuple[str, ...]
    has_emotion_branch = learns_emotions = True

    def __init__(self, config: Config):
        self.config = config

    @property
    @abstractmethod
    def recipe(self) -> str:
        """The config in configs/ to start from, without .yaml, unless others are given."""

    def check(self) -> None:
        """Refuses settings, sets and networks that do not go with this task."""
        config, network, paired = self.config, self.config.model.network, self.unit == "pairs"
        if paired != (config.data.dataset in PAIRED) or paired != (network in PAIR_NETWORKS):
            raise ValueError(
                f"training: --task series goes with a set of pairs (--dataset {' or '.join(PAIRED)}) and a "
                f"network for them (--network {' or '.join(PAIR_NETWORKS)}), and they with it; got --task "
                f"{self.name}, --dataset {config.data.dataset} and --network {network}"
            )
        several, weight = len(config.data.names) > 1, config.loss.emotion_weight
        sets = config.data.dataset if several and self.name != "emotion" else ""
        parts = network != "eambnet" and (config.model.without or config.model.shortcut)
        balanced = config.loss.class_weights != "none" and not self.learns_emotions
        changes = self.learns_emotions or config.model.emotion_batchnorm == "official"
        maps, test = config.train.emotion_maps, config.train.validate_on == "test"
        nothing = f"means nothing for the task {self.name}; leave it out"
        refused = [
            (paired and config.data.folds, f"data.folds {nothing}"),
            (paired and maps, f"train.emotion_maps {nothing}"),
            (not paired and config.data.crop, "data.crop is for the task series; others see whole pictures"),
            (not paired and not config.model.symmetric, f"model.symmetric {nothing}"),
            (not paired and config.loss.preference != "majority", f"loss.preference {nothing}"),
            (parts, f"model.without and model.shortcut are for model.network=eambnet, not {network}"),
            (weight and self.name == "emotion", "loss.emotion_weight is for --task aesthetics alone"),
            (
                weight and not self.has_emotion_branch,
                "loss.emotion_weight is given, but this network has no emotion branch",
            ),
            (balanced, "loss.class_weights is for emotions, which this run does not learn"),
            (maps and changes, "train.emotion_maps keeps the maps of a frozen branch; this run's changes"),
            (sets, f"several sets ({sets}) are for --task emotion; ratings cannot be united"),
            (test and paired, "train.validate_on=test is for ratings, not for pairs"),
            (test and several, "train.validate_on=test is for one data set, not for several together"),
        ]
        for holds, sentence in refused:
            if holds:
                raise ValueError(f"training: {sentence}")

    @cached_property
    def reader(self) -> SetReader:
        """The reader of the only data set."""
        data = self.config.data
        return SetReader(data.dataset, data.root, data.options())

    def load(self, splits: tuple[str, ...]) -> dict[str, RatedSet]:
        """The splits of a training, with the labels that the task needs; several sets are united.

        Under the official PARA protocol, which validates on test, nothing is held out of training.
        """
        data, held_out = self.config.data, self.config.train.validate_on == "val"
        limit = data.limit if held_out else 0
        readers = [self.reader] if len(data.names) == 1 else ()
        loaded = load_datasets(data.names, data.roots, splits, data.options(), limit, readers)
        loaded = {split: labelled(rated, self.name) for split, rated in loaded.items()}
        if not held_out:
            train = with_validation(loaded["train"], loaded.pop("val"))
            loaded["train"] = first_by_hash(train, data.limit or len(train))
        train = loaded["train"]
        if self.learns_emotions and train.emotions is None:
            raise ValueError(f"training: {train.name} train has no emotions; loss.emotion_weight needs them")
        if self.learns_emotions:
            check_classes(train)
        return loaded

    def load_split(self, split: str) -> RatedSet:
        """One split of one set, for an evaluation; networks that score pictures take a set of pairs too."""
        data, paired = self.config.data, self.config.data.dataset in PAIRED
        if (paired and self.name == "emotion") or (not paired and self.unit == "pairs"):
            raise ValueError(
                f"evaluation: {data.dataset} and weights for the task {self.name} do not go together: "
                f"pairs ({', '.join(PAIRED)}) are for pair networks and for networks that score pictures"
            )
        if paired:
            return load_pairs(data.dataset, data.root, (split,), data.options())[split]
        return labelled(self.reader.load((split,))[split], self.name)

    def pictures(self, rated: RatedSet) -> PictureSet:
        """What an epoch draws from, pictures or pairs of them, mirrored at random."""
        data, kind = self.config.data, PairPictures if self.unit == "pairs" else PictureSet
        flips = self.config.train.seed if data.flip else None
        return kind(rated, data.size, data.exif, flips, data.skip_broken, data.crop)

    @abstractmethod
    def build(self, scale: Scale, emotions: tuple[str, ...]) -> Network:
        """The network, with random weights."""

    def start_from(self, network: Network, source: Source, scale: Scale, other_branch: bool) -> str:
        """Fills the network from given weights; returns a note on what keeps its random values, or "".

        Args:
            other_branch: the emotion branch gets other weights.

        Raises:
            ValueError: the weights are of another network.
        """
        load_tensors(network, source.weights.tensors, str(source.path))
        return ""

    @abstractmethod
    def loss(self, rated: RatedSet) -> LossFunction:
        """The training loss, of the network's output and the batch."""

    @abstractmethod
    def best_measure(self, scale: Scale) -> str:
        """The validation metric that chooses the weights to keep."""

    @abstractmethod
    def validate(self, predictions: Predictions, rated: RatedSet, description: dict) -> dict[str, float]:
        """Metrics without intervals; `description` is the network's."""

    @abstractmethod
    def evaluate(self, network: nn.Module, weights: Weights, rated: RatedSet, compute: Compute) -> Evaluated:
        """Predicts each picture of a set once, and reports."""


def choose_task(config: Config) -> Task:
    return {task.name: task for task in (Aesthetics, Emotion, Series)}[config.task](config)


# ---------------------------------------------------------------------------------------------------
# The three tasks


class Aesthetics(Task):
    """Scores of pictures, learned from ratings."""

    name = "aesthetics"
    shapes = ("backbone", "width", "guided_width", "guided_hidden", "head_width", "network")
    shapes += ("without", "shortcut")

    def __init__(self, config: Config):
        super().__init__(config)
        eambnet = config.model.network == "eambnet"
        self.has_emotion_branch = eambnet and "emotion" not in left_out_parts(config)
        self.learns_emotions = config.loss.emotion_weight > 0

    @property
    def recipe(self) -> str:
        return DATASETS[self.config.data.names[0]].recipe

    def build(self, scale: Scale, emotions: tuple[str, ...]) -> Network:
        settings = asdict(self.config.model)
        if settings["network"] == "linear":
            return LinearNetwork(settings["backbone"], scale.outputs, settings["dropout"])
        for name in ("network", "imagenet", "emotion_weights", "symmetric"):
            del settings[name]
        settings |= {"without": left_out_parts(self.config), "emotions": emotions}
        return build_model(outputs=scale.outputs, train_emotion=self.learns_emotions, **settings)

    def start_from(self, network: Network, source: Source, scale: Scale, other_branch: bool) -> str:
        """The last layer keeps its random values if the weights are for another kind of rating."""
        last, start = kind_of(network).last_layer, source.weights
        outputs = start.tensors[last + "bias"].numel()  # all that an official head tells
        same = outputs == scale.outputs and (start.scale is None or start.scale.kind == scale.kind)
        leave = (*(() if same else (last,)), *(("emotion.",) if other_branch else ()))
        load_tensors(network, start.tensors, str(source.path), leave=leave)
        if same:
            return ""
        theirs = describe_scale(start.scale) if start.scale else f"{outputs} value(s)"
        return (
            f"{source.path} predicts {theirs}, this run {describe_scale(scale)}; its last layer is replaced."
        )

    def loss(self, rated: RatedSet) -> LossFunction:
        ratings = rating_loss(self.config.loss, rated.scale)
        if not self.learns_emotions:
            return ratings
        emotions, weight = emotion_loss(self.config.loss, rated), self.config.loss.emotion_weight
        return lambda output, batch: ratings(output, batch) + weight * emotions(output, batch)

    def best_measure(self, scale: Scale) -> str:
        return "accuracy" if scale.kind == "label" else "srcc"

    def validate(self, predictions: Predictions, rated: RatedSet, description: dict) -> dict[str, float]:
        report = measure_scores(predictions, rated, description=description if self.learns_emotions else None)
        emotions = report.emotions.metrics if report.emotions else {}
        return report.metrics | {f"emotion_{name}": emotions[name] for name in ("kl", "accuracy") if emotions}

    def evaluate(self, network: nn.Module, weights: Weights, rated: RatedSet, compute: Compute) -> Evaluated:
        if isinstance(rated, PairedSet):
            return evaluate_pairs(network, weights, rated, self.config, compute)
        return evaluate_scores(network, weights, rated, self.config, compute, self.reader)


class Emotion(Task):
    """The emotion branch alone, learned from emotion labels or votes."""

    name = "emotion"
    shapes = ("backbone", "width")

    @property
    def recipe(self) -> str:
        return DATASETS[self.config.data.names[0]].emotion_recipe

    def build(self, scale: Scale, emotions: tuple[str, ...]) -> Network:
        model = self.config.model
        return EmotionNetwork(model.backbone, emotions, model.emotion_scale, model.width)

    def start_from(self, network: Network, source: Source, scale: Scale, other_branch: bool) -> str:
        """Takes the emotion branch; a classifier of other emotions gets the rows of those that both know."""
        theirs, ours = source.weights.emotions, network.arguments["emotions"]
        tensors = {n: value for n, value in source.weights.tensors.items() if n.startswith("emotion.")}
        if theirs == ours:
            load_tensors(network, tensors, str(source.path))
            return ""
        last_layer = kind_of(network).last_layer
        for name in [name for name in tensors if name.startswith(last_layer)]:
            old, rows = tensors[name], zip(ours, network.state_dict()[name], strict=True)
            tensors[name] = torch.stack([old[theirs.index(e)] if e in theirs else row for e, row in rows])
        load_tensors(network, tensors, str(source.path))
        lists = f"{source.path} knows the emotions {', '.join(theirs)}, this run {', '.join(ours)}"
        return f"{lists}; its last layer keeps what both know."

    def loss(self, rated: RatedSet) -> LossFunction:
        return emotion_loss(self.config.loss, rated)

    def best_measure(self, scale: Scale) -> str:
        return "kl"

    def validate(self, predictions: Predictions, rated: RatedSet, description: dict) -> dict[str, float]:
        return measure_emotions(predictions, rated, description).metrics

    def evaluate(self, network: nn.Module, weights: Weights, rated: RatedSet, compute: Compute) -> Evaluated:
        return evaluate_emotions(network, weights, rated, self.config, compute)


class Series(Task):
    """Which photograph of a series people prefer, learned from pairs."""

    name, unit, recipe = "series", "pairs", "series"
    shapes = ("backbone", "network", "symmetric")
    has_emotion_branch = learns_emotions = False

    def load(self, splits: tuple[str, ...]) -> dict[str, RatedSet]:
        data = self.config.data
        return load_pairs(data.dataset, data.root, splits, data.options(), data.limit)

    def build(self, scale: Scale, emotions: tuple[str, ...]) -> Network:
        model = self.config.model
        return SeriesNetwork(model.backbone, model.network, model.symmetric)

    def loss(self, rated: RatedSet) -> LossFunction:
        """Learns which photograph the majority prefers (undecided pairs: 0.5), or the share that does."""

        def loss(output: Output, batch: Batch) -> Tensor:
            target = batch.scores  # (n,) shares of people, of n pairs
            if self.config.loss.preference == "majority":
                target = 0.5 + 0.5 * (target - 0.5).sign()
            return losses.pair_loss(output.prediction, target)

        return loss

    def best_measure(self, scale: Scale) -> str:
        return "log_loss"  # many accuracies would be equal

    def validate(self, predictions: Predictions, rated: RatedSet, description: dict) -> dict[str, float]:
        return measure_pairs(predictions, rated).metrics

    def evaluate(self, network: nn.Module, weights: Weights, rated: RatedSet, compute: Compute) -> Evaluated:
        return evaluate_pairs(network, weights, rated, self.config, compute)


# ---------------------------------------------------------------------------------------------------
# Data and settings


def with_validation(train: RatedSet, val: RatedSet) -> RatedSet:
    """Both as one training set."""
    columns = {}
    for name in ("scores", "distributions", "emotions"):
        parts = [getattr(rated, name) for rated in (train, val)]
        columns[name] = None if any(part is None for part in parts) else np.concatenate(parts)
    for name in ("ids", "paths", "left_out"):
        columns[name] = [*getattr(train, name), *getattr(val, name)]
    return replace(train, protocol=f"{train.protocol}; and {val.protocol}", **columns)


def describe_scale(scale: Scale) -> str:
    words = {"distribution": f"shares of {scale.outputs} ratings", "label": "high or low"}
    return words.get(scale.kind, f"a score from {scale.minimum:g} to {scale.maximum:g}")


def left_out_parts(config: Config) -> tuple[str, ...]:
    """The parts of the network that the config leaves out, in alphabetical order."""
    return tuple(sorted(name.strip() for name in config.model.without.split(",") if name.strip()))


# ---------------------------------------------------------------------------------------------------
# Losses of ratings and emotions


def rating_loss(settings: Loss, scale: Scale) -> LossFunction:
    """The loss that fits the kind of rating."""
    if scale.kind == "distribution":
        return lambda output, batch: losses.emd_loss(
            output.prediction, batch.distributions, settings.emd_r, settings.emd_reduction
        )
    if scale.kind == "label":
        return lambda output, batch: losses.label_loss(output.prediction, scale.is_high(batch.scores).float())
    weight = settings.correlation_weight

    def score_loss(output: Output, batch: Batch) -> Tensor:
        target = scale.probability(batch.scores)  # (N,)
        loss = losses.score_loss(output.prediction, target)
        return loss + weight * losses.correlation_loss(output.prediction, target) if weight else loss

    return score_loss


def emotion_loss(settings: Loss, rated: RatedSet) -> LossFunction:
    """Soft cross-entropy with the votes."""
    weights = None
    if settings.class_weights == "balanced":  # the rarer an emotion, the more a vote for it counts
        votes = np.nansum(rated.emotions, axis=0)  # (E,)
        present = votes > 0
        weights = votes.sum() / np.where(present, votes, 1) / present.sum()
        weights = np.where(present, weights, 1.0)  # (E,), 1 where there are no votes
        weights = torch.from_numpy(weights).float()
    shifts = class_shifts(settings, rated)
    shift = torch.from_numpy(rated.per_set(shifts)).float() if shifts else None  # (n, E)

    def loss(output: Output, batch: Batch) -> Tensor:
        logits = output.emotion_logits
        if shift is not None:
            logits = logits + shift[batch.index].to(logits.device, non_blocking=True)  # (N, E)
        return losses.emotion_loss(logits, batch.emotions, weights)

    return loss


def class_shifts(settings: Loss, rated: RatedSet) -> dict[str, dict[str, float]]:
    """set -> class -> what is added to its logit; the first set is the reference. {} for a single set."""
    if settings.class_shift == "none":
        return {}
    shares = {
        part.name: dict(zip(part.emotion_classes, part.emotions.mean(axis=0).tolist(), strict=True))
        for part in rated.parts
    }
    return {name: losses.class_shift(part, shares[rated.parts[0].name]) for name, part in shares.items()}
