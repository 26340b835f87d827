"""Predicted scores against people's ratings."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import nn

import metrics
from datasets import SetReader
from eamb.evaluation.emotions import add_emotions, shift_emotions, why_not_measured
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import decoded, is_cross_set, predict_set
from eamb.evaluation.report import Report, rounded
from eamb.readers.rated import RatedSet
from eamb.runtime import engine
from eamb.runtime.config import Config
from eamb.weights.checkpoint import Weights


def evaluate_scores(
    network: nn.Module,
    weights: Weights,
    rated: RatedSet,
    config: Config,
    compute: engine.Compute,
    reader: SetReader,
) -> tuple[Report, engine.Predictions]:
    """The report on a network that scores pictures, with emotions where it predicts them; its predictions.

    Args:
        reader: the set's, to look for identical pictures in training.
    """
    has_emotions, reason = rated.emotions is not None, why_not_measured(weights, rated)
    predictions = predict_set(network, rated, config, compute, show=True)
    twins, notes = find_twins(rated, reader)
    description = weights.description if has_emotions and not reason else None
    report = measure_scores(predictions, rated, config.evaluate.bootstrap, weights, description, twins)
    report.notes += [*notes, reason] if has_emotions and reason else notes
    return report, predictions


def measure_scores(
    predictions: engine.Predictions,
    rated: RatedSet,
    bootstrap: int = 0,
    weights: Weights | None = None,
    description: dict | None = None,
    twins: Collection[str] = (),
) -> Report:
    """The report on predicted scores.

    Args:
        bootstrap: resamples for the intervals; 0: none.
        weights: the network's, if they may have been trained on another set; None if on this one.
        description: the network's, if its emotions are to be measured.
        twins: ids of pictures that are in training too: scores are measured without them as well.

    Raises:
        ValueError: no picture could be decoded.
    """
    rated = decoded(predictions, rated)
    if description:
        predictions, rated = shift_emotions(predictions, rated, description)
    scale = weights.scale if weights else rated.scale
    cross = weights is not None and is_cross_set(weights, rated)
    labels = scale.kind == "label" and not cross
    columns = {"id": np.array(rated.ids), "prediction": rounded(scale.value(predictions.prediction))}
    shares = rounded(predictions.prediction)  # (n, K)
    columns |= {f"p_{value:g}": shares[:, i] for i, value in enumerate(scale.bins)}
    report = compare_scores(columns, rated, bootstrap, labels, cross, twins)
    if description:
        add_emotions(report, predictions, rated, bootstrap)
    if cross:
        trained_on = weights.description["dataset"]
        report.title += f" (cross-set: trained on {trained_on}, correlations only)"
    return report


def compare_scores(
    columns: dict[str, np.ndarray],
    rated: RatedSet,
    bootstrap: int = 0,
    labels: bool = False,
    correlations_only: bool = False,
    twins: Collection[str] = (),
) -> Report:
    """Scores against ratings, from nothing but the columns of predictions.csv, so that anyone can repeat it.

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
        kept = ("n", "srcc", "plcc", "krcc") if correlations_only else result
        return {name: result[name] for name in kept}

    report = Report(f"{rated.name} {rated.split}", figures(*arrays), columns)
    if bootstrap:
        report.intervals = bootstrap_intervals(figures, tuple(arrays), bootstrap)
    if not correlations_only:
        report.high = predicted > 0.5 if labels else rated.scale.is_high(predicted)
        if not labels:
            report.plots["scatter.png"] = {"predicted": predicted, "rated": scores, "unit": "rating"}
        add_baselines(report, rated)
    single = ~np.isin(columns["id"], list(twins))  # (n,)
    if 0 < single.sum() < len(rated):
        rest = {name: values[single] for name, values in columns.items()}
        rest = compare_scores(rest, rated.take(single), bootstrap, labels, correlations_only)
        count, words = int((~single).sum()), {"srcc": "SRCC", "plcc": "PLCC", "accuracy": "accuracy"}
        facts = {"count": count, "metrics": rest.metrics, "intervals_95": rest.intervals}
        report.facts["without_twins"] = facts
        shown = [f"{word} {rest.metrics[name]:.4f}" for name, word in words.items() if name in rest.metrics]
        report.notes.append(
            f"without test pictures that have an identical one in training ({count}): "
            f"n {rest.metrics['n']}, {', '.join(shown)}"
        )
    return report


def truth(rated: RatedSet, labels: bool) -> tuple[np.ndarray, float]:
    """What predictions are compared with, (n,) ratings, or 0 and 1 for labels; and the threshold of high."""
    if labels:
        return rated.high().astype(np.float64), 0.5
    return rated.scores, rated.scale.threshold


def add_baselines(report: Report, rated: RatedSet) -> None:
    """Adds the accuracies of rules that use no picture."""
    high = rated.high()
    report.facts["majority_accuracy"] = float(max(np.mean(high), 1 - np.mean(high)))
    report.notes.append(f"accuracy of always naming the majority: {report.facts['majority_accuracy']:.4f}")
    votes = np.empty((len(rated), 0)) if rated.emotions is None else np.nan_to_num(rated.emotions)
    voted = votes.sum(axis=1) > 0  # (n,) pictures with an emotion; classes that the set lacks have no votes
    if rated.name == "iae" and voted.any():
        rule = metrics.positive_emotion_accuracy(votes[voted], high[voted], rated.emotion_classes)
        report.facts["positive_emotion_accuracy"] = rule
        report.notes.append(f"accuracy of the rule 'positive emotion = high': {rule:.4f}")


def find_twins(rated: RatedSet, reader: SetReader) -> tuple[set[str], list[str]]:
    """Ids of test pictures that have an identical one in training, and a note if that cannot be checked."""
    if rated.split != "test":
        return set(), []
    try:
        return reader.twins_in_training(), []
    except (ValueError, OSError) as error:  # a test split can be scored without the files of the others
        return set(), [f"identical pictures in training were not looked for: {error}"]
