"""Predicted emotions against people's votes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

import metrics
from datasets import over_classes
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import decoded, is_cross_set, predict_set
from eamb.evaluation.report import Report, rounded
from eamb.readers.rated import RatedSet
from eamb.runtime import engine
from eamb.runtime.config import Config
from eamb.weights.checkpoint import Weights


def evaluate_emotions(
    network: nn.Module, weights: Weights, rated: RatedSet, config: Config, compute: engine.Compute
) -> tuple[Report, engine.Predictions]:
    """Predictions of an emotion branch on its own, and their report.

    Raises:
        ValueError: the set has an emotion that the network does not know.
    """
    rated = with_emotions(rated, weights.emotions)
    predictions = predict_set(network, rated, config, compute, show=True)
    report = measure_emotions(predictions, rated, weights.description, config.evaluate.bootstrap)
    if is_cross_set(weights, rated):
        report.title += f" (cross-set: trained on {weights.description['dataset']})"
    return report, predictions


def measure_emotions(
    predictions: engine.Predictions, rated: RatedSet, description: dict, bootstrap: int = 0
) -> Report:
    """The report on predicted emotions.

    Args:
        description: of the network.
        bootstrap: resamples for the intervals; 0: none.
    """
    rated = decoded(predictions, rated)
    return compare_emotions(*as_trained_emotions(predictions, rated, description), bootstrap)


def as_trained_emotions(
    predictions: engine.Predictions, rated: RatedSet, description: dict
) -> tuple[engine.Predictions, RatedSet]:
    """Predictions as in training, where each of several sets had its share of the classes, and the set with
    its emotions in the network's order."""
    rated = with_emotions(rated, tuple(description["architecture"]["emotions"]))
    shifts = description.get("class_shift", {})  # set -> class -> what is added to its logit
    # Other sets have no shift. Rows are divided by their sums where they are used.
    return replace(predictions, emotion=predictions.emotion * np.exp(rated.per_set(shifts))), rated


def compare_emotions(predictions: engine.Predictions, rated: RatedSet, bootstrap: int) -> Report:
    """Emotions against votes, among the classes that the set offers.

    Args:
        rated: with its emotions in the network's order (`with_emotions`).
    """
    known = ~np.isnan(rated.emotions).all(axis=1)  # (n,) pictures with votes
    offered = ~np.isnan(rated.emotions).all(axis=0)  # (E,)
    classes = [name for name, there in zip(rated.emotion_classes, offered, strict=True) if there]
    votes, shares = rated.emotions[:, offered], predictions.emotion[:, offered]  # (n, C) each
    shares = rounded(shares / shares.sum(axis=1, keepdims=True))

    def figures(probabilities: np.ndarray, votes: np.ndarray) -> dict[str, float]:
        return metrics.emotion_metrics(probabilities, votes, classes)

    arrays = (shares[known], votes[known])
    strongest = np.array(classes)[shares.argmax(axis=1)]  # (n,)
    columns = {"id": np.array(rated.ids), "prediction": strongest}
    columns |= {f"emotion_{name}": shares[:, i] for i, name in enumerate(classes)}
    report = Report(f"{rated.name} {rated.split}, emotions", figures(*arrays), columns)
    counts = metrics.confusion_matrix(*arrays, classes)  # (C, C)
    report.facts |= {"emotions": classes, "confusion": counts.tolist()}
    report.pictures["confusion.png"] = {"counts": counts, "classes": classes}
    if bootstrap:
        report.intervals = bootstrap_intervals(figures, arrays, bootstrap)
    return report


def add_emotions(report: Report, predictions: engine.Predictions, rated: RatedSet, bootstrap: int) -> None:
    """Adds the report on the emotions of the same run, and which emotions go with high scores."""
    labelled_rows = ~np.isnan(rated.emotions).all(axis=1)  # (n,)
    if not labelled_rows.any():
        return
    report.emotions = compare_emotions(predictions, rated, bootstrap)
    if report.high is None:
        return
    classes = report.emotions.facts["emotions"]
    votes = np.nan_to_num(rated.emotions[labelled_rows], nan=-1.0)  # (m, E); -1: never the strongest
    true = np.array(rated.emotion_classes)[votes.argmax(axis=1)]  # (m,)
    predicted = report.emotions.predictions["prediction"][labelled_rows]  # (m,)
    sides = {
        "labels": (true, rated.high()[labelled_rows]),
        "predictions": (predicted, report.high[labelled_rows]),
    }
    groups = {
        name: [[int((names[side] == kind).sum()) for kind in classes] for side in (high, ~high)]
        for name, (names, high) in sides.items()
    }
    report.emotions.facts["high_and_low"] = groups
    report.pictures["emotion_bars.png"] = {"groups": groups, "classes": classes}


def why_not_measured(weights: Weights, rated: RatedSet) -> str:
    """Why the emotions of this network cannot be measured on a set with emotions; "" if they can."""
    if not weights.emotions:
        return "emotions not measured: the network has no emotion branch"
    if weights.emotion_branch != "trained":
        return "emotions not measured: the emotion branch was never trained"
    unknown = [name for name in rated.emotion_classes if name not in weights.emotions]
    return f"emotions not measured: the network does not know {', '.join(unknown)}" if unknown else ""


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
