"""The three tasks. `choose_task(config)` chooses one; nothing else reads the setting `task`.

From top to bottom: what a task is; aesthetics, emotion and series; what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import losses
from datasets import (
    Batch,
    PairPictures,
    PictureSet,
    SetReader,
    check_classes,
    load_datasets,
    training_pictures,
)
from eamb.evaluation.emotions import evaluate_emotions, measure_emotions
from eamb.evaluation.predicting import labelled
from eamb.evaluation.preferences import evaluate_pairs, measure_pairs
from eamb.evaluation.ratings import evaluate_scores, measure_scores
from eamb.evaluation.report import Report
from eamb.network.names import NETWORKS, PAIR_NETWORKS
from eamb.network.outputs import Output, Scale
from eamb.network.pair_networks import SeriesNetwork
from eamb.network.vit import check_side, plain_vit
from eamb.readers.distilled import read_targets
from eamb.readers.pairs import PairedSet, describe_pairs, load_pairs
from eamb.readers.rated import RatedSet, describe
from eamb.readers.registry import DATASETS, PAIRED, SINGLE
from eamb.runtime.config import Config, Loss
from eamb.runtime.engine import Predictions
from eamb.runtime.networks import Ensemble
from eamb.weights.checkpoint import Source, load_tensors
from eamb.weights.registry import Network, kind_of
from EAMBNet import EmotionNetwork, LinearNetwork, build_model

LossFunction = Callable[[Output, Batch], Tensor]
Evaluated = tuple[Report, Predictions]


class Task:
    """What the program needs to know about a run's task: Aesthetics, Emotion or Series.

    Each of these defines
        build(scale, emotions): the network, with random weights.
        loss(rated): the training loss, a function of the network's output and the batch.
        best_measure(scale): the validation metric that chooses the weights to keep.
        validate(predictions, rated, description): metrics without intervals; description is the network's.
        evaluate(network, rated): predicts each picture of a set once; the report, the predictions.

    name: the value of the setting `task`.
    unit, draws: what a batch size counts, and the class of what an epoch draws from.
    trained_on, evaluated_on: the data sets that the task takes; several at once only if it `unites` them.
    networks: those of `model.network` that it takes.
    meaningless: settings without effect, which must keep their defaults.
    starts_from, shapes: the tasks whose weights can start a training (--weights), and the `model.` settings
        that must then equal those of the weights.
    has_emotion_branch, learns_emotions: whether the network has the branch, and whether the run trains it.
    takes_branch: whether the branch may get weights of its own (--emotion-checkpoint).
    """

    name: str
    unit, draws = "pictures", PictureSet
    trained_on = evaluated_on = SINGLE
    unites = takes_branch = False
    networks = tuple(name for name in NETWORKS if name not in PAIR_NETWORKS)
    meaningless: tuple[str, ...] = ("data.crop", "model.symmetric", "loss.preference")
    starts_from: tuple[str, ...]
    shapes: tuple[str, ...]
    has_emotion_branch = learns_emotions = True

    def __init__(self, config: Config):
        self.config = config

    def check(self) -> None:
        """Refuses settings, sets and networks that do not go with this task."""
        config, network, names = self.config, self.config.model.network, self.config.data.names
        several = len(names) > 1
        if not set(names) <= set(self.trained_on) or network not in self.networks or several > self.unites:
            raise ValueError(
                f"training: --task {self.name} takes {'sets' if self.unites else 'one set'} of "
                f"{', '.join(self.trained_on)} (--dataset) and a network of {', '.join(self.networks)} "
                f"(--network); got {config.data.dataset} and {network}"
            )
        unused = list(self.meaningless)
        unused += ["train.validate_on"] if several else []
        only_eambnet = ["model.without", "model.shortcut", "model.share_backbone"]
        only_eambnet += ["model.emotion_backbone", "model.emotion_levels", "model.emotion_width"]
        unused += only_eambnet if network != "eambnet" else []
        unused += [] if self.learns_emotions else ["loss.class_weights"]
        unused += [] if self.has_emotion_branch else ["loss.emotion_weight"]
        changes = self.learns_emotions or config.model.emotion_batchnorm == "official"
        unused += ["train.emotion_maps"] if changes else []  # only a frozen branch's maps can be kept
        for section, name in (key.split(".") for key in unused):
            given, default = (getattr(getattr(each, section), name) for each in (config, Config()))
            if given != default:
                raise ValueError(
                    f"training: {section}.{name}={given} means nothing for this run of the task {self.name}; "
                    "leave it out"
                )
        self.check_backbones()

    def check_backbones(self) -> None:
        """Refuses a size that a ViT would resize where it may not, and rates by block for other backbones."""
        config, decay = self.config, self.config.optimizer.layer_decay
        if decay != 1 and not plain_vit(config.model.backbone):
            raise ValueError(
                f"training: optimizer.layer_decay={decay} is for ViTs only, unlike {config.model.backbone}; "
                "for others there is optimizer.backbone_factor"
            )
        if not config.model.resize_input:
            for scale, backbone in sorted(self.views()):
                check_side(backbone, config.data.size, scale)

    def views(self) -> set[tuple[float, str]]:
        """The backbones, each with the factor by which the pictures that it sees are made smaller."""
        return {(1.0, self.config.model.backbone)}

    @cached_property
    def reader(self) -> SetReader:
        """The reader of the data set, for runs on one set."""
        data = self.config.data
        return SetReader(data.dataset, data.root, data.options())

    def load(self, splits: tuple[str, ...]) -> dict[str, RatedSet]:
        """The splits for training, with the labels that the task needs; several sets are joined.

        If a run validates on test, as the official code does on PARA, nothing is held out of training.
        """
        data, held_out = self.config.data, self.config.train.validate_on == "val"
        limit = data.limit if held_out else 0
        readers = [self.reader] if len(data.names) == 1 else ()
        loaded = load_datasets(data.names, data.roots, splits, data.options(), limit, readers)
        loaded = {split: labelled(rated, self.name) for split, rated in loaded.items()}
        if not held_out:
            train, val, columns = loaded["train"], loaded.pop("val"), {}
            for name in ("scores", "distributions", "emotions"):
                parts = [getattr(rated, name) for rated in (train, val)]
                columns[name] = None if any(part is None for part in parts) else np.concatenate(parts)
            for name in ("ids", "paths", "left_out"):
                columns[name] = [*getattr(train, name), *getattr(val, name)]
            train = replace(train, protocol=f"{train.protocol}; and {val.protocol}", **columns)
            loaded["train"] = training_pictures(train, data.only_with_votes, data.limit)
        train = loaded["train"]
        if self.learns_emotions and train.emotions is None:
            raise ValueError(f"training: {train.name} train has no emotions; loss.emotion_weight needs them")
        if self.learns_emotions:
            check_classes(train)
        return loaded

    def load_split(self, split: str) -> RatedSet:
        """One split of one set, for an evaluation."""
        data = self.config.data
        if data.dataset not in self.evaluated_on:
            raise ValueError(
                f"evaluation: {data.dataset} and weights for the task {self.name} do not go together; these "
                f"weights are evaluated on {', '.join(self.evaluated_on)}"
            )
        if data.dataset in PAIRED:
            return load_pairs(data.dataset, data.root, (split,), data.options())[split]
        return labelled(self.reader.load((split,))[split], self.name)

    def describe(self, rated: RatedSet) -> str:
        """One line on a split that was loaded."""
        return describe_pairs(rated) if isinstance(rated, PairedSet) else describe(rated)

    def pictures(self, rated: RatedSet) -> PictureSet:
        """The pictures, or pairs, that an epoch draws from, randomly mirrored if data.flip."""
        data = self.config.data
        flips = self.config.train.seed if data.flip else None
        return self.draws(rated, data.size, data.exif, flips, data.skip_broken, data.crop, icc=data.icc)

    def start_from(self, network: Network, source: Source, scale: Scale, other_branch: bool) -> str:
        """Loads given weights into the network, except the emotion branch if it has weights of its own.

        Returns:
            A sentence on the layers that keep their random values, or "".
        """
        load_tensors(network, source.weights.tensors, str(source.path))
        return ""


def choose_task(config: Config) -> Task:
    return {task.name: task for task in (Aesthetics, Emotion, Series)}[config.task](config)


def recipe(task: str | None, dataset: str) -> str:
    """The config in configs/, without .yaml, for a task (None: the set's usual one) on a data set."""
    recipes = DATASETS[dataset]
    return {"emotion": recipes.emotion_recipe, "series": "series"}.get(task, recipes.recipe)


# ---------------------------------------------------------------------------------------------------
# The three tasks


class Aesthetics(Task):
    """Scores of pictures, learned from ratings."""

    name = "aesthetics"
    evaluated_on = tuple(DATASETS)
    starts_from = ("aesthetics",)
    shapes = ("backbone", "width", "guided_width", "guided_hidden", "head_width", "network", "without")
    shapes += ("shortcut", "share_backbone", "emotion_backbone", "emotion_levels", "emotion_width", "depth")

    def __init__(self, config: Config):
        super().__init__(config)
        eambnet = config.model.network == "eambnet"
        self.has_emotion_branch = eambnet and "emotion" not in left_out_parts(config)
        self.takes_branch = self.has_emotion_branch
        self.learns_emotions = config.loss.emotion_weight > 0

    def views(self) -> set[tuple[float, str]]:
        model, without = self.config.model, left_out_parts(self.config)
        if model.network != "eambnet":
            return super().views()
        seen = {"detail": (1.0, model.backbone), "context": (model.context_scale, model.backbone)}
        seen["emotion"] = (model.emotion_scale, model.emotion_backbone or model.backbone)
        return {view for part, view in seen.items() if part not in without}

    def check(self) -> None:
        super().check()
        file, weight = self.config.data.distill, self.config.loss.distill_weight
        if bool(file) != (weight > 0):
            raise ValueError(
                "training: data.distill=FILE and loss.distill_weight, above 0, need each other; got "
                f"'{file}' and {weight}"
            )

    def load(self, splits: tuple[str, ...]) -> dict[str, RatedSet]:
        loaded = super().load(splits)
        self.check_votes(loaded["train"])
        if file := self.config.data.distill:
            loaded["train"] = replace(loaded["train"], distilled=read_targets(Path(file), loaded["train"]))
        return loaded

    def build(self, scale: Scale, emotions: tuple[str, ...]) -> Network:
        settings = asdict(self.config.model)
        if settings["network"] == "linear":
            shape = (settings[name] for name in ("dropout", "depth", "drop_path"))
            return LinearNetwork(settings["backbone"], scale.outputs, *shape)
        for name in ("network", "imagenet", "emotion_weights", "symmetric", "resize_input"):
            del settings[name]
        settings |= {"without": left_out_parts(self.config), "emotions": emotions}
        return build_model(outputs=scale.outputs, train_emotion=self.learns_emotions, **settings)

    def check_votes(self, train: RatedSet) -> None:
        """Refuses weights of the loss that mean nothing for this network, or for some of its pictures."""
        loss, kind, lacking = self.config.loss, train.scale.kind, int((~train.with_votes).sum())
        given = f"loss.emd_weight={loss.emd_weight:g} and loss.mean_weight={loss.mean_weight:g}"
        if kind != "distribution" and (loss.emd_weight, loss.mean_weight) != (1, 0):
            raise ValueError(
                f"training: {given} are for networks that predict distributions, and this one predicts a "
                f"{kind}; set loss.emd_weight=1 loss.mean_weight=0, or data.target=distribution"
            )
        if kind == "distribution" and not (loss.emd_weight or loss.mean_weight):
            raise ValueError(f"training: with {given} nothing is learned from ratings; raise one of them")
        if kind == "distribution" and self.config.data.distill and not loss.mean_weight:
            raise ValueError("training: data.distill is for scores, or means with loss.mean_weight above 0")
        if kind == "distribution" and lacking and not loss.mean_weight:
            raise ValueError(
                f"training: the votes of {lacking:,} of {len(train):,} training pictures of {train.name} are "
                "not known; loss.mean_weight=1 learns the mean ratings of all, and data.only_with_votes=true "
                "leaves those pictures out"
            )

    def start_from(self, network: Network, source: Source, scale: Scale, other_branch: bool) -> str:
        """If the weights are for another kind of rating, the last layer keeps its random values.

        A score's begins as `layer_of_mean` where the weights predict distributions.
        """
        last, start = kind_of(network).last_layer, source.weights
        tensors, theirs = dict(start.tensors), start.scale
        outputs = tensors[last + "bias"].numel()  # an official file says no more
        same = outputs == scale.outputs and (theirs is None or theirs.kind == scale.kind)
        if scale.outputs == 1 and theirs is not None and theirs.kind == "distribution":
            layer = layer_of_mean(tensors[last + "weight"], tensors[last + "bias"], theirs)
            tensors[last + "weight"], tensors[last + "bias"], same = *layer, True
        leave = (*(() if same else (last,)), *(("emotion.",) if other_branch else ()))
        load_tensors(network, tensors, str(source.path), leave=leave)
        if same:
            return ""
        return f"{source.path} predicts another kind of rating than this run; its last layer is replaced."

    def loss(self, rated: RatedSet) -> LossFunction:
        settings, scale = self.config.loss, rated.scale
        emotions = emotion_loss(settings, rated) if self.learns_emotions else None
        distilled = None if rated.distilled is None else torch.from_numpy(rated.distilled).float()  # (n,)
        bins = torch.tensor(scale.bins)  # (K,)

        def score_terms(p: Tensor, batch: Batch) -> Tensor:
            target = batch.scores  # (N,)
            if distilled is not None:
                predicted = distilled[batch.index].to(target, non_blocking=True)  # a GPU need not wait
                target = target.lerp(predicted, settings.distill_weight)
            target = scale.probability(target)
            value = losses.score_loss(p, target)
            if settings.correlation_weight:
                value = value + settings.correlation_weight * losses.correlation_loss(p, target)
            return value

        def loss(output: Output, batch: Batch) -> Tensor:
            p = output.prediction
            if scale.kind == "distribution":
                emd = losses.emd_loss(p, batch.distributions, settings.emd_r, settings.emd_reduction)
                value = settings.emd_weight * emd
                if settings.mean_weight:
                    mean = scale.probability(losses.expected_rating(p, bins))  # (N, 1)
                    value = value + settings.mean_weight * score_terms(mean, batch)
            elif scale.kind == "label":
                value = losses.label_loss(p, scale.is_high(batch.scores).float())
            else:
                value = score_terms(p, batch)
            return value + settings.emotion_weight * emotions(output, batch) if emotions else value

        return loss

    def best_measure(self, scale: Scale) -> str:
        return "accuracy" if scale.kind == "label" else "srcc"

    def validate(self, predictions: Predictions, rated: RatedSet, description: dict) -> dict[str, float]:
        report = measure_scores(predictions, rated, description=description if self.learns_emotions else None)
        emotions = report.emotions.metrics if report.emotions else {}
        return report.metrics | {f"emotion_{name}": emotions[name] for name in ("kl", "accuracy") if emotions}

    def evaluate(self, network: Ensemble, rated: RatedSet) -> Evaluated:
        if isinstance(rated, PairedSet):
            return evaluate_pairs(network, rated, self.config)
        return evaluate_scores(network, rated, self.config, self.reader)


def layer_of_mean(weight: Tensor, bias: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """A layer whose sigmoid is about the mean, from 0 to 1, of the distributions of a layer with a softmax.

    With ratings t_k from 0 to 1 and logits a_k, d logit(mean) / d a_k = q_k (t_k - mean) / (mean (1 - mean)),
    taken at q, a bell in the middle of the scale. On PARA's test pictures the two means of a trained network
    had a rank correlation of .99.

    Args:
        weight, bias: (K, H) and (K,), of a layer for the K bins of `scale`.

    Returns:
        (1, H) and (1,).
    """
    if weight.dtype == torch.half:  # as files may hold it
        weight, bias = weight.float(), bias.float()
    t = scale.probability(torch.tensor(scale.bins, dtype=weight.dtype))  # (K,)
    q = torch.softmax(-((t - 0.5) ** 2) / (2 * 0.2**2), dim=0)  # (K,)
    mean = q @ t
    slope = q * (t - mean) / (mean * (1 - mean))  # (K,)
    return (slope @ weight)[None], (torch.logit(mean) + slope @ (bias - q.log()))[None]


class Emotion(Task):
    """The emotion branch alone, learned from emotion labels or votes."""

    name = "emotion"
    networks = ("eambnet",)
    unites = True
    meaningless = (*Task.meaningless, "loss.emotion_weight", "data.distill", "loss.distill_weight")
    meaningless += ("model.emotion_backbone",)
    starts_from, shapes = ("emotion", "aesthetics"), ("backbone", "width", "emotion_levels", "depth")

    def build(self, scale: Scale, emotions: tuple[str, ...]) -> Network:
        model = self.config.model
        shape = model.emotion_width or model.width, model.emotion_levels, model.depth, model.drop_path
        return EmotionNetwork(model.backbone, emotions, model.emotion_scale, *shape)

    def views(self) -> set[tuple[float, str]]:
        return {(self.config.model.emotion_scale, self.config.model.backbone)}

    def start_from(self, network: Network, source: Source, scale: Scale, other_branch: bool) -> str:
        """Takes the emotion branch; a classifier of other emotions gets the rows of those that both know."""
        theirs, ours = source.weights.emotions, network.arguments["emotions"]
        tensors = {n: value for n, value in source.weights.tensors.items() if n.startswith("emotion.")}
        for name in tensors:
            if theirs != ours and name.startswith(kind_of(network).last_layer):
                old, rows = tensors[name], zip(ours, network.state_dict()[name], strict=True)
                tensors[name] = torch.stack([old[theirs.index(e)] if e in theirs else row for e, row in rows])
        load_tensors(network, tensors, str(source.path))
        note = f"{source.path} knows other emotions than this run; its last layer keeps what both know."
        return "" if theirs == ours else note

    def loss(self, rated: RatedSet) -> LossFunction:
        return emotion_loss(self.config.loss, rated)

    def best_measure(self, scale: Scale) -> str:
        return "kl"

    def validate(self, predictions: Predictions, rated: RatedSet, description: dict) -> dict[str, float]:
        return measure_emotions(predictions, rated, description).metrics

    def evaluate(self, network: Ensemble, rated: RatedSet) -> Evaluated:
        return evaluate_emotions(network, rated, self.config)


class Series(Task):
    """Which photograph of a series people prefer, learned from pairs."""

    name, unit, draws = "series", "pairs", PairPictures
    trained_on = evaluated_on = PAIRED
    networks = PAIR_NETWORKS
    meaningless = ("data.folds", "train.emotion_maps", "train.validate_on", "data.distill")
    meaningless += ("loss.distill_weight",)
    starts_from, shapes = ("series",), ("backbone", "network", "symmetric", "depth")
    has_emotion_branch = learns_emotions = False

    def load(self, splits: tuple[str, ...]) -> dict[str, RatedSet]:
        data = self.config.data
        return load_pairs(data.dataset, data.root, splits, data.options(), data.limit)

    def build(self, scale: Scale, emotions: tuple[str, ...]) -> Network:
        model = self.config.model
        return SeriesNetwork(model.backbone, model.network, model.symmetric, model.depth, model.drop_path)

    def loss(self, rated: RatedSet) -> LossFunction:
        """Learns which photograph the majority prefers (ties: 0.5), or the share of people who prefer it."""

        def loss(output: Output, batch: Batch) -> Tensor:
            target = batch.scores  # (n,) shares of people, of n pairs
            if self.config.loss.preference == "majority":
                target = 0.5 + 0.5 * (target - 0.5).sign()
            return losses.pair_loss(output.prediction, target)

        return loss

    def best_measure(self, scale: Scale) -> str:
        return "log_loss"  # accuracies often tie

    def validate(self, predictions: Predictions, rated: RatedSet, description: dict) -> dict[str, float]:
        return measure_pairs(predictions, rated).metrics

    def evaluate(self, network: Ensemble, rated: RatedSet) -> Evaluated:
        return evaluate_pairs(network, rated, self.config)


# ---------------------------------------------------------------------------------------------------
# What they share


def left_out_parts(config: Config) -> tuple[str, ...]:
    """The parts of the network that the config leaves out, in alphabetical order."""
    return tuple(sorted(name.strip() for name in config.model.without.split(",") if name.strip()))


def emotion_loss(settings: Loss, rated: RatedSet) -> LossFunction:
    """Soft cross-entropy with the votes."""
    weights = None
    if settings.class_weights == "balanced":  # votes for rare emotions count more
        votes = np.nansum(rated.emotions, axis=0)  # (E,), none is 0
        weights = torch.from_numpy(votes.sum() / votes / len(votes)).float()
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
