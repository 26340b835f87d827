"""Predicting a rated set and reporting it: one table, predictions.csv, metrics.json."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

import metrics
from datasets import PictureSet, TestOrder, load_dataset, make_loader, over_classes, twins_in_training
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.report import (
    CROSS_SET,
    Report,
    draw_bars,
    draw_confusion,
    draw_reliability,
    draw_scatter,
    rounded,
    versions,
)
from eamb.network import backbones
from eamb.network.fast import prepare_for_inference
from eamb.network.outputs import Scale
from eamb.readers.pairs import PAIRED, PairedSet, describe_pairs, load_pairs
from eamb.readers.rated import DataOptions, LeftOut, RatedSet, describe, write_left_out
from eamb.runtime import distributed, engine
from eamb.runtime.config import Config
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Weights

CSV_KEYS = (  # how a csv is read need not be said again for the set that was trained on
    *("table", "images", "path_column", "score_column", "count_columns", "emotion_columns", "split_column"),
)

FOLD_KEYS = ("folds", "fold")  # nor which part of a set was held out, where it has no split of its own


def evaluate_checkpoint(path: Path, config: Config, split: str, output: Path | None) -> Report:
    """`main.py evaluate`: the network of a checkpoint on one split of a set; prints and writes the report.

    Raises:
        ValueError, FileNotFoundError: no such weights or data, or they don't go together; in one sentence.
    """
    weights = checkpoint.load_weights(path)
    config = as_trained(config, weights)
    rated = load_split(config, split)
    with distributed.session(config.train.device) as device:
        network = weights.build().to(device)
        mean, std = backbones.normalisation(config.model.backbone)
        engine.keep_memory(device)
        report = evaluate(network, weights, rated, config, engine.Compute(device, "fp32", mean, std))
        if distributed.is_main():
            publish(report, rated, output or default_folder(rated, report.facts["weights_sha256"]))
    return report


def load_split(config: Config, split: str) -> RatedSet:
    """The pictures of a split that have what the task needs.

    Raises:
        ValueError, FileNotFoundError: there is no such set, or the config names several.
    """
    if len(config.data.names) > 1:
        raise ValueError(f"evaluation: one data set at a time, please, not {' and '.join(config.data.names)}")
    options = config.data.options(DataOptions)
    if config.data.dataset in PAIRED and config.task != "emotion":
        return load_pairs(config.data.dataset, config.data.root, (split,), options)[split]
    if config.task == "series" or config.data.dataset in PAIRED:
        raise ValueError(
            f"evaluation: {config.data.dataset} and weights for the task {config.task} do not go together: "
            f"pairs ({', '.join(PAIRED)}) are for pair networks and for networks that score pictures"
        )
    loaded = load_dataset(config.data.dataset, config.data.root, (split,), options)
    return labelled(loaded[split], config.task)


def default_folder(rated: RatedSet, sha256: str) -> Path:
    """For the report on what has this hash: weights, or a file of predictions."""
    return Path("runs") / f"evaluate_{rated.name}_{rated.split}_{sha256[:8]}"


def publish(report: Report, rated: RatedSet, folder: Path) -> None:
    """Leaves the report's files in the folder and prints it."""
    report.write(folder)
    if rated.left_out:
        write_left_out(folder / "left_out.csv", rated)
    words = describe_pairs(rated) if isinstance(rated, PairedSet) else describe(rated)
    print(f"{words}\n\n{report}\n\n{folder}: {report.files}")


def as_trained(config: Config, weights: Weights) -> Config:
    """The config with all that the weights decide: task, backbone, picture size, and the set's threshold."""
    known = weights.description
    crop = known.get("crop", False)
    size, exif = weights.pictures
    data = replace(config.data, size=size, exif=exif, crop=crop)
    if weights.scale and known["dataset"] == data.dataset and data.threshold is None:
        data = replace(data, threshold=weights.scale.threshold)
    before = known.get("config", {}).get("data", {})
    keys = CSV_KEYS if data.dataset == "csv" and "csv" in known["dataset"].split("+") else ()
    keys += FOLD_KEYS if data.dataset in known.get("dealt", ()) and not data.folds else ()
    data = replace(data, **{key: before[key] for key in keys if key in before and not getattr(data, key)})
    model = replace(config.model, backbone=known["architecture"]["backbone"])
    return replace(config, task=weights.task, data=data, model=model)


def labelled(rated: RatedSet, task: str) -> RatedSet:
    """The pictures that have what the task needs: a rating, or emotion votes. The others are left out.

    Raises:
        ValueError: there is none.
    """
    if task == "aesthetics":
        known = ~np.isnan(rated.scores)
    elif rated.emotions is None:
        raise ValueError(
            f"evaluation: {rated.name} {rated.split} has no emotions; the task emotion needs them"
        )
    else:
        known = ~np.isnan(rated.emotions).all(axis=1)
    if not known.any():
        raise ValueError(
            f"evaluation: no picture of {rated.name} {rated.split} has a label for the task {task}"
        )
    ids = dict.fromkeys(rated.ids[i] for i in np.flatnonzero(~known))  # of united sets some are repeated
    unknown = [LeftOut(i, f"no label for the task {task}") for i in ids]
    parts = tuple(labelled(part, task) for part in rated.parts)
    return replace(rated.take(known), left_out=[*rated.left_out, *unknown], parts=parts)


def evaluate(
    network: nn.Module, weights: Weights, rated: RatedSet, config: Config, compute: engine.Compute
) -> Report:
    """Predicts every picture of the set once and compares; with intervals, leak check and all provenance.

    Raises:
        ValueError: the network is one for emotions, and does not know all of the set's.
    """
    how = evaluate_pairs if isinstance(rated, PairedSet) else evaluate_pictures
    report, found = how(network, weights, rated, config, compute)
    if found.broken:
        report.notes.append(f"pictures that cannot be decoded, left out: {len(found.broken)}")
    leaked = leaks(rated, weights)
    report.notes += [f"{name.replace('_', ' ')}: {count}" for name, count in leaked.items()]
    report.facts |= leaked | {
        "task": config.task,
        "dataset": rated.name,
        "split": rated.split,
        "protocol": rated.protocol,
        "split_sha256": rated.sha256,
        "weights_sha256": checkpoint.weights_hash(weights.tensors),
        "trained_on": weights.description["dataset"],
        "origin": weights.description.get("origin", {}),
        "broken": [list(entry) for entry in found.broken],
        "left_out": len(rated.left_out),
        "training": weights.description.get("config", {}),
        "versions": versions(),
    }
    return report


def evaluate_pictures(
    network: nn.Module, weights: Weights, rated: RatedSet, config: Config, compute: engine.Compute
) -> tuple[Report, engine.Predictions]:
    """Predictions and their report, on ratings or emotions."""
    branch = None
    if config.task == "emotion" or knows_emotions(weights, rated):
        branch = weights.description
        rated = with_emotions(rated, weights.emotions)
    found = predict_set(network, rated, config, compute, show=True)
    twins, unknown = find_twins(rated, config)
    report = measure(found, rated, config.task, weights, config.evaluate.bootstrap, branch, twins)
    report.notes += unknown
    if not branch and rated.emotions is not None:
        report.notes.append(why_not_measured(weights, rated))
    return report, found


def leaks(rated: RatedSet, weights: Weights) -> dict[str, int]:
    """How many of the pictures the network, or its emotion branch, was trained on, by their ids' hashes.

    Nothing of pairs and weights from a set of ratings: ids of one say nothing about the other's.
    """
    if isinstance(rated, PairedSet) and weights.task != "series":
        return {}
    trained = {"test_pictures_trained_on": weights.training_ids}
    if weights.emotions:
        trained["test_pictures_that_the_emotion_branch_was_trained_on"] = weights.emotion_training_ids
    return {name: int(np.isin(rated.id_hashes, ids).sum()) for name, ids in trained.items()}


def find_twins(rated: RatedSet, config: Config) -> tuple[set[str], list[str]]:
    """Ids of the test pictures that have an identical one in training, and a note if nobody could look."""
    if config.task != "aesthetics" or rated.split != "test":
        return set(), []
    try:
        options = config.data.options(DataOptions)
        return twins_in_training(config.data.dataset, config.data.root, options), []
    except (ValueError, OSError) as error:  # a test split can be scored without the files of the others
        return set(), [f"identical pictures in training were not looked for: {error}"]


def predict_set(
    network: nn.Module, rated: RatedSet, config: Config, compute: engine.Compute, show: bool = False
) -> engine.Predictions:
    """Every picture of the set once, in the order of the set, over all processes. Always in fp32.

    The network is prepared for inference (EAMBNet.prepare_for_inference), in every process from the same
    BatchNorm statistics.
    """
    distributed.share_buffers(network)
    fast = prepare_for_inference(network)
    data = config.data
    pictures = PictureSet(rated, data.size, data.exif, skip_broken=data.skip_broken, crop=data.crop)
    order = TestOrder(len(rated), config.evaluate.batch_size, distributed.rank(), distributed.world())
    loader = make_loader(
        pictures, order, config.data.worker_count(), pin_memory=compute.device.type == "cuda"
    )
    hidden = not (show and distributed.is_main())
    batches = tqdm(loader, desc=f"{rated.name} {rated.split}", unit="batch", disable=hidden, mininterval=2)
    compute = compute._replace(precision="fp32")
    return engine.predict(fast, batches, compute, config.evaluate.batch_size)


def measure(
    found: engine.Predictions,
    rated: RatedSet,
    task: str,
    weights: Weights | None = None,
    bootstrap: int = 0,
    branch: dict | None = None,
    twins: Collection[str] = (),
) -> Report:
    """Metrics of predictions, with `bootstrap` resamples for the intervals.

    Args:
        branch: the network's description, if its emotions are to be measured.
        weights: the network's, when they may come from another set; None for the set's own.
        twins: ids of pictures that are in training too: scores are measured without them as well.

    Raises:
        ValueError: no picture could be decoded.
    """
    if not len(found.index):
        raise ValueError(
            f"evaluation: none of the {len(rated)} pictures of {rated.name} {rated.split} can be decoded, "
            f"e.g. {found.broken[0].reason}"
        )
    rated = rated.take(found.index)
    if branch:
        rated = with_emotions(rated, tuple(branch["architecture"]["emotions"]))
        found = replace(found, emotion=shifted(found.emotion, rated, branch.get("class_shift", {})))
    if task == "emotion":
        report = measure_emotions(found, rated, bootstrap)
    else:
        scale = weights.scale if weights else rated.scale
        cross = weights is not None and is_cross_set(weights, rated)
        labels = scale.kind == "label" and not cross
        report = compare(score_columns(found, rated, scale), rated, bootstrap, labels, cross, twins)
        if branch:
            add_emotions(report, found, rated, bootstrap)
    if weights and is_cross_set(weights, rated):
        kept = ", correlations only" if task == "aesthetics" else ""
        report.title += f" (cross-set: trained on {weights.description['dataset']}{kept})"
    return report


def compare(
    columns: dict[str, np.ndarray],
    rated: RatedSet,
    bootstrap: int = 0,
    labels: bool = False,
    correlations_only: bool = False,
    twins: Collection[str] = (),
) -> Report:
    """Scores against ratings, from the columns of predictions.csv alone: who has the file gets these figures.

    Args:
        columns: "id", "prediction" and, for a distribution, "p_<rating>"; (n,) each, in the order of the set.
        labels: the prediction is the probability of "high".
        correlations_only: the prediction is in another unit than the ratings.
        twins: ids of pictures that are in training too: all is measured without them as well.
    """
    predicted = columns["prediction"]
    scores, threshold = truth(rated, labels)
    arrays = [predicted, scores]
    bins = [f"p_{value:g}" for value in rated.bins]
    if bins and bins == [name for name in columns if name.startswith("p_")]:
        arrays += [np.stack([columns[name] for name in bins], axis=1), rated.distributions]  # (n, K) each

    def figures(*arrays: np.ndarray) -> dict[str, float]:
        result = metrics.aesthetic_metrics(arrays[0], arrays[1], threshold, *arrays[2:])
        return {n: value for n, value in result.items() if n in CROSS_SET} if correlations_only else result

    report = Report(f"{rated.name} {rated.split}", figures(*arrays), columns)
    if bootstrap:
        report.intervals = bootstrap_intervals(figures, tuple(arrays), bootstrap)
    if not correlations_only:
        report.high = predicted > 0.5 if labels else rated.scale.is_high(predicted)
        if not labels:
            report.pictures["scatter.png"] = partial(draw_scatter, report, scores)
        add_baselines(report, rated)
    other = ~np.isin(columns["id"], list(twins))  # (n,)
    if 0 < other.sum() < len(rated):
        rest = {name: values[other] for name, values in columns.items()}
        add_without_twins(report, compare(rest, rated.take(other), bootstrap, labels, correlations_only))
    return report


def truth(rated: RatedSet, labels: bool) -> tuple[np.ndarray, float]:
    """What predictions are compared with: (n,) ratings, or 0 and 1 for labels; a picture is high above the
    threshold."""
    if labels:
        return rated.high().astype(np.float64), 0.5
    return rated.scores, rated.scale.threshold


def add_without_twins(report: Report, rest: Report) -> None:
    """Adds the figures for the pictures that have no identical one in training."""
    count = report.metrics["n"] - rest.metrics["n"]
    report.facts["without_twins"] = {
        "count": count,
        "metrics": rest.metrics,
        "intervals_95": rest.intervals,
    }
    words = {"srcc": "SRCC", "plcc": "PLCC", "accuracy": "accuracy"}
    found = [f"{word} {rest.metrics[name]:.4f}" for name, word in words.items() if name in rest.metrics]
    report.notes.append(
        f"without test pictures that have an identical one in training ({count}): "
        f"n {rest.metrics['n']}, {', '.join(found)}"
    )


def add_baselines(report: Report, rated: RatedSet) -> None:
    """What no picture needs to be looked at for, from the labels at hand."""
    high = rated.high()
    report.facts["majority_accuracy"] = metrics.majority_accuracy(high)
    report.notes.append(f"accuracy of always naming the majority: {report.facts['majority_accuracy']:.4f}")
    votes = np.empty((len(rated), 0)) if rated.emotions is None else np.nan_to_num(rated.emotions)
    known = votes.sum(axis=1) > 0  # (n,) pictures with an emotion; classes that the set lacks have no votes
    if rated.name == "iae" and known.any():
        rule = metrics.positive_emotion_accuracy(votes[known], high[known], rated.emotion_classes)
        report.facts["positive_emotion_accuracy"] = rule
        report.notes.append(f"accuracy of the rule 'positive emotion = high': {rule:.4f}")


def is_cross_set(weights: Weights, rated: RatedSet) -> bool:
    """Whether the network was trained on another set than this one.

    Every csv is called csv: there the range of the ratings tells, which a part of the set may not fill.
    """
    known = weights.scale or rated.scale  # an emotion network has no scale
    inside = known.minimum <= rated.scale.minimum and rated.scale.maximum <= known.maximum
    return rated.name not in weights.description["dataset"].split("+") or not inside


def score_columns(found: engine.Predictions, rated: RatedSet, scale: Scale) -> dict[str, np.ndarray]:
    """Of predictions.csv; of a distribution the mean and the share of each rating."""
    shares = rounded(found.prediction)  # (n, K)
    columns = {"id": np.array(rated.ids), "prediction": rounded(scale.value(found.prediction))}
    return columns | {f"p_{value:g}": shares[:, i] for i, value in enumerate(scale.bins)}


def measure_emotions(found: engine.Predictions, rated: RatedSet, bootstrap: int) -> Report:
    """Emotions against votes, among the classes that the set offers.

    Args:
        rated: with its emotions in the network's order (`with_emotions`).
    """
    known = ~np.isnan(rated.emotions).all(axis=1)  # (n,) pictures with votes
    offered = ~np.isnan(rated.emotions).all(axis=0)  # (E,)
    classes = [name for name, there in zip(rated.emotion_classes, offered, strict=True) if there]
    votes, shares = rated.emotions[:, offered], found.emotion[:, offered]  # (n, C) each
    shares = rounded(shares / shares.sum(axis=1, keepdims=True))

    def figures(probabilities: np.ndarray, votes: np.ndarray) -> dict[str, float]:
        return metrics.emotion_metrics(probabilities, votes, classes)

    arrays = (shares[known], votes[known])
    strongest = np.array(classes)[shares.argmax(axis=1)]  # (n,)
    columns = {"id": np.array(rated.ids), "prediction": strongest}
    columns |= {f"emotion_{name}": shares[:, i] for i, name in enumerate(classes)}
    report = Report(f"{rated.name} {rated.split}, emotions", figures(*arrays), columns)
    confusion = metrics.confusion_matrix(*arrays, classes)  # (C, C)
    report.facts["emotions"], report.facts["confusion"] = classes, confusion.tolist()
    report.pictures["confusion.png"] = partial(draw_confusion, report)
    if bootstrap:
        report.intervals = bootstrap_intervals(figures, arrays, bootstrap)
    return report


def add_emotions(report: Report, found: engine.Predictions, rated: RatedSet, bootstrap: int) -> None:
    """Adds the report on the emotions of the same run, and which emotions go with high scores."""
    labelled_rows = ~np.isnan(rated.emotions).all(axis=1)  # (n,)
    if not labelled_rows.any():
        return
    report.emotions = measure_emotions(found, rated, bootstrap)
    if report.high is None:
        return
    classes = report.emotions.facts["emotions"]
    votes = np.nan_to_num(rated.emotions[labelled_rows], nan=-1.0)  # (m, E); -1: never the strongest
    true = np.array(rated.emotion_classes)[votes.argmax(axis=1)]  # (m,)
    predicted = report.emotions.predictions["prediction"][labelled_rows]  # (m,)
    groups = {
        "labels": emotions_by_side(true, rated.high()[labelled_rows], classes),
        "predictions": emotions_by_side(predicted, report.high[labelled_rows], classes),
    }
    report.emotions.facts["high_and_low"] = {
        name: [side.tolist() for side in sides] for name, sides in groups.items()
    }
    report.emotions.pictures["emotion_bars.png"] = partial(draw_bars, report, groups)


def emotions_by_side(
    names: np.ndarray, high: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of each class among the high and among the low ones, (C,) and (C,); names and high: (m,)."""
    is_class = names[:, None] == np.array(classes)  # (m, C)
    return is_class[high].sum(axis=0), is_class[~high].sum(axis=0)


def shifted(probabilities: np.ndarray, rated: RatedSet, shifts: dict[str, dict[str, float]]) -> np.ndarray:
    """(n, E) probabilities, on pictures of a set that the branch was trained on with others, as in training.

    Args:
        shifts: set -> class -> what is added to its logit (`losses.class_shift`); other sets have none.
    """
    return probabilities * np.exp(rated.per_set(shifts))  # rows are divided by their sums where they are used


def knows_emotions(weights: Weights, rated: RatedSet) -> bool:
    """Whether the network's emotions can be measured on the set: it was trained on all that the set has."""
    known = rated.emotions is not None and set(rated.emotion_classes) <= set(weights.emotions)
    return known and weights.emotion_branch == "trained"


def why_not_measured(weights: Weights, rated: RatedSet) -> str:
    if not weights.emotions:
        return "emotions not measured: the network has no emotion branch"
    if weights.emotion_branch != "trained":
        return "emotions not measured: the emotion branch was never trained"
    unknown = [name for name in rated.emotion_classes if name not in weights.emotions]
    return f"emotions not measured: the network does not know {', '.join(unknown)}"


def with_emotions(rated: RatedSet, emotions: tuple[str, ...]) -> RatedSet:
    """The set with its emotions in the network's order, matched by name; NaN for those that it lacks.

    Raises:
        ValueError: the set has an emotion that the network does not know.
    """
    unknown = [name for name in rated.emotion_classes if name not in emotions]
    if unknown:
        raise ValueError(
            f"evaluation: the network knows {', '.join(emotions)}; {rated.name} has {', '.join(unknown)} too"
        )
    return replace(rated, emotions=over_classes(rated, emotions), emotion_classes=tuple(emotions))


def evaluate_pairs(
    network: nn.Module, weights: Weights, rated: PairedSet, config: Config, compute: engine.Compute
) -> tuple[Report, engine.Predictions]:
    """Predictions and their report, on pairs; of a network that scores pictures, the difference of scores.

    How steeply a preference rises with that difference is fitted to the validation pairs.
    """
    bootstrap = config.evaluate.bootstrap
    found = predict_set(network, rated, config, compute, show=True)
    if weights.task == "series":
        return measure_pairs(found, rated, bootstrap), found
    steepness, words = fit_to_validation(network, weights, config, compute)
    words += "; these are the pairs measured here" if rated.split == "val" else ""
    scored = as_scores(found, weights.scale)
    report = measure_pairs(replace(scored, prediction=steepness * scored.prediction), rated, bootstrap)
    report.title += ", by the score of single photographs"
    report.facts["odds_of_a_point"] = steepness
    report.notes.append(f"a difference of 1 in the score counts as odds of exp({steepness:.3g}), {words}")
    return report, found


def fit_to_validation(
    network: nn.Module, weights: Weights, config: Config, compute: engine.Compute
) -> tuple[float, str]:
    """What a difference of 1 in the score adds to the logarithm of the odds, above 0, and in words why.

    1 where there are no validation pairs, or where people prefer what scores less in them.
    """
    data = config.data
    try:
        held_out = load_pairs(data.dataset, data.root, ("val",), data.options(DataOptions))["val"]
    except (ValueError, OSError) as error:  # a test split can be scored without the files of the others
        return 1.0, f"not fitted ({error}): log-loss and calibration mean nothing"
    scored = as_scores(predict_set(network, held_out, config, compute, show=True), weights.scale)
    held_out = held_out.take(scored.index)
    if not len(held_out.pairs):
        return 1.0, "not fitted (no validation pair can be decoded): log-loss and calibration mean nothing"
    first, second = scored.prediction[held_out.pairs[:, 0], 0], scored.prediction[held_out.pairs[:, 1], 0]
    steepness = metrics.fit_steepness(first - second, held_out.preference)
    if steepness <= 0:
        return 1.0, "not fitted (in the validation pairs people prefer the lower score)"
    return steepness, (
        f"fitted to {len(held_out.pairs)} validation pairs; accuracy, AUC and ranks do not depend on it"
    )


def as_scores(found: engine.Predictions, scale: Scale) -> engine.Predictions:
    """Predictions whose (n, 1) column is the score, in the unit of the ratings."""
    return replace(found, prediction=scale.value(found.prediction)[:, None])


def measure_pairs(found: engine.Predictions, rated: PairedSet, bootstrap: int = 0) -> Report:
    """The report on predicted preferences.

    Raises:
        ValueError: no pair has two photographs that could be decoded.
    """
    rated = rated.take(found.index)
    if not len(rated.pairs):
        raise ValueError(
            f"evaluation: of no pair of {rated.name} {rated.split} can both photographs be decoded"
            f"{', e.g. ' + found.broken[0].reason if found.broken else ''}"
        )
    probability = rounded_sides(metrics.pair_probability(found.prediction, rated.pairs))  # (m,)
    ids = np.array(rated.ids)[rated.pairs]  # (m, 2)
    columns = {"series": rated.pair_series, "first": ids[:, 0], "second": ids[:, 1]}
    columns |= {"preference": rated.preference, "prediction": probability}
    report = compare_pairs(f"{rated.name} {rated.split}", columns, bootstrap)
    report.pictures["reliability.png"] = partial(draw_reliability, report)
    return report


def rounded_sides(probability: np.ndarray) -> np.ndarray:
    """(m,) probabilities whose smaller side, p or 1 - p, is `rounded`: one of 1 - 2e-9 must not become 1."""
    low = rounded(np.minimum(probability, 1 - probability))
    return np.where(probability > 0.5, 1 - low, low)


def compare_pairs(title: str, columns: dict[str, np.ndarray], bootstrap: int = 0) -> Report:
    """Predicted preferences against people's, from the columns of predictions.csv alone.

    Args:
        columns: series, first, second, preference and prediction, (m,) each.
        bootstrap: resamples for the intervals, of whole series.
    """
    series, arrays = columns["series"], (columns["prediction"], columns["preference"])
    report = Report(title, metrics.pair_metrics(*arrays), columns)
    names, places = np.unique(np.stack([columns["first"], columns["second"]], axis=1), return_inverse=True)
    ranks = metrics.series_ranks(series, places.reshape(-1, 2), *arrays)
    kept = ~np.isnan(ranks["krcc"])  # (S,) people rank some photographs above others
    ranks = (ranks["krcc"][kept], ranks["best"][kept])

    def of_series(krcc: np.ndarray, best: np.ndarray) -> dict[str, float]:
        return {"series_krcc": float(krcc.mean()), "series_best": float(best.mean())}

    report.facts["photographs"] = len(names)
    report.metrics |= {"series": int(kept.sum())} | (of_series(*ranks) if kept.any() else {})
    if bootstrap:
        report.intervals = bootstrap_intervals(metrics.pair_metrics, arrays, bootstrap, groups=series)
        if kept.any():
            report.intervals |= bootstrap_intervals(of_series, ranks, bootstrap)
    return report
