"""What differs by task: data, network, loss, and the measure that chooses the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

import losses
from datasets import Batch, PairPictures, PictureSet, check_classes, first_by_hash, load_datasets
from eamb.evaluation.evaluate import labelled
from eamb.network.outputs import EMOTIONS, Output, Scale
from eamb.network.pair_networks import NETWORKS, SeriesNetwork
from eamb.readers.pairs import PAIRED, describe_pairs, load_pairs
from eamb.readers.rated import DataOptions, RatedSet, describe, emotion_name
from eamb.runtime import distributed
from eamb.runtime.config import Config
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Network, Weights
from EAMBNet import EmotionNetwork, LinearNetwork, build_model


def load_data(config: Config) -> dict[str, RatedSet]:
    """The splits that the run uses, ready for its task; several sets are united."""
    splits = ("train", "val", "test") if needs_test(config) else ("train", "val")
    if config.task == "series":
        return load_series(config, splits)
    options, held_out = config.data.options(DataOptions), config.train.validate_on == "val"
    if not held_out and len(config.data.names) > 1:
        raise ValueError("training: train.validate_on=test is for one data set, not for several together")
    limit = config.data.limit if held_out else 0
    data = load_datasets(config.data.names, config.data.roots, splits, options, limit)
    data = {split: labelled(rated, config.task) for split, rated in data.items()}
    if not held_out:
        data["train"] = with_validation(data["train"], data.pop("val"))
        data["train"] = first_by_hash(data["train"], config.data.limit or len(data["train"]))
    if learns_emotions(config):
        check_emotion_labels(data["train"])
    if distributed.is_main():
        print("\n".join(describe(rated) for rated in data.values()), flush=True)
    return data


def load_series(config: Config, splits: tuple[str, ...]) -> dict[str, RatedSet]:
    """The splits of a set of pairs."""
    if config.train.validate_on == "test":
        raise ValueError("training: train.validate_on=test is for ratings, not for pairs")
    options = config.data.options(DataOptions)
    data = load_pairs(config.data.dataset, config.data.root, splits, options, config.data.limit)
    if distributed.is_main():
        print("\n".join(describe_pairs(rated) for rated in data.values()), flush=True)
    return data


def learns_emotions(config: Config) -> bool:
    """Whether the emotion branch is trained: on its own, or together with the rest."""
    return config.task == "emotion" or config.loss.emotion_weight > 0


def check_emotion_labels(rated: RatedSet) -> None:
    if rated.emotions is None:
        raise ValueError(
            f"training: {rated.name} {rated.split} has no emotions; loss.emotion_weight needs them"
        )
    check_classes(rated)


def needs_test(config: Config) -> bool:
    return config.train.score_test or config.train.validate_on == "test"


def with_validation(train: RatedSet, val: RatedSet) -> RatedSet:
    """Both as one training set, for the official PARA protocol, which holds nothing out."""
    columns = {}
    for name in ("scores", "distributions", "emotions"):
        parts = [getattr(rated, name) for rated in (train, val)]
        columns[name] = None if any(part is None for part in parts) else np.concatenate(parts)
    for name in ("ids", "paths", "left_out"):
        columns[name] = [*getattr(train, name), *getattr(val, name)]
    return replace(train, protocol=f"{train.protocol}; and {val.protocol}", **columns)


UNTRAINED_BRANCH = (
    "training: the emotion branch was never trained, and it stays frozen. Give it weights with "
    "--emotion-checkpoint FILE (train them with --task emotion), or accept ImageNet's features with "
    "model.emotion_weights=none"
)


def check_task(config: Config) -> None:
    """Refuses a task with a set or a network that is not for it."""
    paired, of_pairs = config.data.dataset in PAIRED, config.model.network in NETWORKS
    if (config.task == "series") != paired or (config.task == "series") != of_pairs:
        raise ValueError(
            f"training: --task series goes with a set of pairs (--dataset {' or '.join(PAIRED)}) and a "
            f"network for them (--network {' or '.join(NETWORKS)}), and they with it; got "
            f"--task {config.task}, --dataset {config.data.dataset} and --network {config.model.network}"
        )
    if config.data.crop and not paired:
        raise ValueError(
            f"training: data.crop is for the task series; networks for {config.task} see whole pictures"
        )
    unused = [
        *(["data.folds"] if paired and config.data.folds else []),
        *(["train.emotion_maps"] if paired and config.train.emotion_maps else []),
        *(["model.symmetric"] if not paired and not config.model.symmetric else []),
        *(["loss.preference"] if not paired and config.loss.preference != "majority" else []),
    ]
    if unused:
        raise ValueError(f"training: {unused[0]} means nothing for the task {config.task}; leave it out")


def check_parts(config: Config, emotion_checkpoint: str | None) -> None:
    """Refuses settings for parts of the network that this run's does not have."""
    if config.model.network != "eambnet" and (config.model.without or config.model.shortcut):
        raise ValueError(
            "training: model.without and model.shortcut are for model.network=eambnet, not "
            f"{config.model.network}"
        )
    if config.train.emotion_maps and (
        learns_emotions(config) or config.model.emotion_batchnorm == "official"
    ):
        raise ValueError("training: train.emotion_maps keeps the maps of a frozen branch; this run's changes")
    if has_emotion_branch(config):
        return
    if emotion_checkpoint or config.loss.emotion_weight:
        given = "--emotion-checkpoint" if emotion_checkpoint else "loss.emotion_weight"
        raise ValueError(f"training: {given} is given, but this network has no emotion branch")


def check_losses(config: Config) -> None:
    """Refuses settings of a loss that this run does not have."""
    if config.task == "emotion" and config.loss.emotion_weight:
        raise ValueError(
            "training: loss.emotion_weight is for --task aesthetics; emotions are all of this loss"
        )
    if config.loss.class_weights != "none" and not learns_emotions(config):
        raise ValueError(
            "training: loss.class_weights weighs emotions, which this run does not learn; it is for --task "
            "emotion, or with loss.emotion_weight"
        )


def needs_no_branch(config: Config) -> bool:
    """Whether an untrained emotion branch will do: trained here, or not there, or asked for."""
    none = config.model.emotion_weights == "none" or not has_emotion_branch(config)
    return learns_emotions(config) or none


def choose_emotions(
    config: Config, rated: RatedSet, start: Weights | None, emotion_checkpoint: str | None
) -> tuple[str, ...]:
    """The emotions that the weights at hand know; those of the data set where these are to be learned.

    Those that both know keep the order of the weights.
    """
    known, named = (), named_emotions(config)
    if not has_emotion_branch(config):
        return ()
    if emotion_checkpoint:
        known = checkpoint.emotions_in(emotion_checkpoint, named)
    elif start:
        known = start.emotions
    elif not learns_emotions(config):
        known = named or EMOTIONS
    if named and known and named != known:
        raise ValueError(
            f"training: model.emotions names {', '.join(named)}; the weights at hand know {', '.join(known)}"
        )
    if known and config.task == "aesthetics":
        return known
    classes = rated.emotion_classes
    if named and set(named) != set(classes):
        raise ValueError(
            f"training: model.emotions names {', '.join(named)}; {rated.name} has {', '.join(classes)}"
        )
    known = known or named
    return (*(n for n in known if n in classes), *(n for n in classes if n not in known))


def named_emotions(config: Config) -> tuple[str, ...]:
    """The class list that the command line gives to a file without one."""
    return tuple(emotion_name(name) for name in config.model.emotions.split(",") if name.strip())


def new_network(config: Config, scale: Scale, emotions: tuple[str, ...]) -> Network:
    settings = asdict(config.model)
    if config.task == "series":
        return SeriesNetwork(settings["backbone"], settings["network"], settings["symmetric"])
    for name in ("network", "imagenet", "emotion_weights", "emotions", "symmetric"):
        del settings[name]
    if config.task == "emotion":
        return EmotionNetwork(settings["backbone"], emotions, settings["emotion_scale"], settings["width"])
    if config.model.network == "linear":
        return LinearNetwork(settings["backbone"], scale.outputs, settings["dropout"])
    settings["without"] = left_out_parts(config)
    joint = config.loss.emotion_weight > 0
    return build_model(outputs=scale.outputs, emotions=emotions, train_emotion=joint, **settings)


def left_out_parts(config: Config) -> tuple[str, ...]:
    """Of the network, in alphabetical order."""
    return tuple(sorted(name.strip() for name in config.model.without.split(",") if name.strip()))


def has_emotion_branch(config: Config) -> bool:
    return config.task == "emotion" or (
        config.model.network == "eambnet" and "emotion" not in left_out_parts(config)
    )


def make_loss(config: Config, rated: RatedSet) -> Callable[[Output, Batch], Tensor]:
    """The training loss that fits the task and the kind of rating."""
    if config.task == "series":
        return make_pair_loss(config.loss.preference)
    weights = class_weights(config, rated)
    shifts = class_shifts(config, rated)
    shift = torch.from_numpy(rated.per_set(shifts)).float() if shifts else None  # (n, E)

    def of_emotions(output: Output, batch: Batch) -> Tensor:
        logits = output.emotion_logits
        if shift is not None:
            logits = logits + shift[batch.index.cpu()].to(logits.device)  # (N, E)
        return losses.emotion_loss(logits, batch.emotions, weights)

    if config.task == "emotion":
        return of_emotions
    of_ratings, weight = make_rating_loss(config, rated.scale), config.loss.emotion_weight
    if not weight:
        return of_ratings
    return lambda output, batch: of_ratings(output, batch) + weight * of_emotions(output, batch)


def make_pair_loss(preference: str) -> Callable[[Output, Batch], Tensor]:
    """Learns "majority", whether more than half prefer the first (of an undecided pair half), or "share"."""

    def of_pairs(output: Output, batch: Batch) -> Tensor:
        shares = batch.scores  # (n,) of n pairs
        target = shares if preference == "share" else torch.heaviside(shares - 0.5, shares.new_tensor(0.5))
        return losses.pair_loss(output.prediction, target)

    return of_pairs


def make_rating_loss(config: Config, scale: Scale) -> Callable[[Output, Batch], Tensor]:
    if scale.kind == "distribution":
        settings = config.loss
        return lambda output, batch: losses.emd_loss(
            output.prediction, batch.distributions, settings.emd_r, settings.emd_reduction
        )
    if scale.kind == "label":
        return lambda output, batch: losses.label_loss(output.prediction, scale.is_high(batch.scores).float())
    weight = config.loss.correlation_weight

    def of_scores(output: Output, batch: Batch) -> Tensor:
        target = scale.probability(batch.scores)  # (N,)
        loss = losses.score_loss(output.prediction, target)
        return loss + weight * losses.correlation_loss(output.prediction, target) if weight else loss

    return of_scores


def class_shifts(config: Config, rated: RatedSet) -> dict[str, dict[str, float]]:
    """set -> class -> what is added to its logit; the first of several sets is the reference, of one: {}."""
    if config.loss.class_shift == "none":
        return {}
    shares = {
        part.name: dict(zip(part.emotion_classes, part.emotions.mean(axis=0).tolist(), strict=True))
        for part in rated.parts
    }
    return {name: losses.class_shift(own, shares[rated.parts[0].name]) for name, own in shares.items()}


def class_weights(config: Config, rated: RatedSet) -> Tensor | None:
    """(E,) what a vote for each emotion counts: the rarer the more, 1 where there are no votes. Or None."""
    if config.loss.class_weights == "none" or not learns_emotions(config):
        return None
    votes = np.nansum(rated.emotions, axis=0)  # (E,)
    present = votes > 0
    weights = votes.sum() / np.where(present, votes, 1) / present.sum()
    return torch.from_numpy(np.where(present, weights, 1.0)).float()


def best_measure(config: Config, scale: Scale) -> str:
    """The validation metric that chooses the weights to keep."""
    if config.task == "emotion":
        return "kl"
    if config.task == "series":
        return "log_loss"  # of accuracies many are equal
    return "accuracy" if scale.kind == "label" else "srcc"


def training_pictures(config: Config, rated: RatedSet) -> PictureSet:
    """What an epoch draws from, pictures or pairs of them, mirrored by chance."""
    kind = PairPictures if config.task == "series" else PictureSet
    data = config.data
    flips = config.train.seed if data.flip else None
    return kind(rated, data.size, data.exif, flips, data.skip_broken, data.crop)
