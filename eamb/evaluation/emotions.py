"""Predicted emotions against people's votes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import metrics
from datasets import over_classes
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import has_votes, is_cross_set, predict_set
from eamb.evaluation.report import Report, rounded
from eamb.readers.rated import RatedSet
from eamb.runtime import engine
from eamb.runtime.config import Config
from eamb.runtime.networks import Ensemble
from eamb.weights.checkpoint import Weights


def evaluate_emotions(
    network: Ensemble, rated: RatedSet, config: Config
) -> tuple[Report, engine.Predictions]:
    """The report on an emotion network, and its predictions; raises as `with_emotions`."""
    weights, rated = network.weights, with_emotions(rated, network.weights.emotions)
    predictions = predict_set(network, rated, config, show=True)
    report = measure_emotions(predictions, rated, weights.description, config.evaluate.bootstrap)
    if is_cross_set(weights, rated):
        report.title += f" (cross-set: trained on {weights.description['dataset']})"
    return report, predictions


def measure_emotions(
    predictions: engine.Predictions, rated: RatedSet, description: dict, bootstrap: int = 0
) -> Report:
    """The report on predicted emotions against votes, among the classes that the set has. Each set's
    `losses.class_shift` is applied, as in training.

    Args:
        description: that of the network.
        bootstrap: resamples for the intervals; 0: none.
    """
    rated = with_emotions(rated.take(predictions.index), description["architecture"]["emotions"])
    shifts = description.get("class_shift", {})  # set -> class -> added to its logit; missing ones: 0
    shares = predictions.emotion * np.exp(rated.per_set(shifts))  # (n, E)
    offered = ~np.isnan(rated.emotions).all(axis=0)  # (E,)
    classes = [name for name, there in zip(rated.emotion_classes, offered, strict=True) if there]
    votes, shares = rated.emotions[:, offered], shares[:, offered]  # (n, C) each
    shares = rounded(shares / shares.sum(axis=1, keepdims=True))
    voted = has_votes(rated)
    arrays = (shares[voted], votes[voted])

    def figures(probabilities: np.ndarray, votes: np.ndarray) -> dict[str, float]:
        return metrics.emotion_metrics(probabilities, votes, classes)

    strongest = np.array(classes)[shares.argmax(axis=1)]  # (n,)
    columns = {"id": np.array(rated.ids), "prediction": strongest}
    columns |= {f"emotion_{name}": shares[:, i] for i, name in enumerate(classes)}
    report = Report(f"{rated.name} {rated.split}, emotions", figures(*arrays), columns)
    counts = metrics.confusion_matrix(*arrays, classes)  # (C, C)
    report.facts |= {"emotions": classes, "confusion": counts.tolist()}
    words = "{}: accuracy {accuracy:.3f}, macro F1 {macro_f1:.3f}, n = {n:,}"
    title = words.format(report.title, **report.metrics)
    report.plots["confusion.png"] = {"counts": counts, "classes": classes, "title": title}
    if bootstrap:
        report.intervals = bootstrap_intervals(figures, arrays, bootstrap)
    return report


def count_high_and_low(report: Report, rated: RatedSet, high: np.ndarray) -> None:
    """Counts high and low pictures of each emotion, by labels and by predictions (`high`, (n,))."""
    voted, classes = has_votes(rated), report.emotions.facts["emotions"]
    votes = np.nan_to_num(rated.emotions[voted], nan=-1.0)  # (m, E); -1: never the strongest
    true = np.array(rated.emotion_classes)[votes.argmax(axis=1)]  # (m,)
    predicted = report.emotions.predictions["prediction"][voted]  # (m,)
    panels = {"labels": (true, rated.high()[voted]), "predictions": (predicted, high[voted])}
    groups = {
        panel: [[int((names[side] == name).sum()) for name in classes] for side in (upper, ~upper)]
        for panel, (names, upper) in panels.items()
    }
    report.emotions.facts["high_and_low"] = groups
    title = f"{report.title}: high and low pictures by emotion"
    report.plots["emotion_bars.png"] = {"groups": groups, "classes": classes, "title": title}


def why_not_measured(weights: Weights, rated: RatedSet) -> str:
    """Why the emotions of this network cannot be measured on a set; "" if they can, or if it has none."""
    if rated.emotions is None:
        return ""
    if not weights.emotions:
        return "emotions not measured: the network has no emotion branch"
    if weights.emotion_branch != "trained":
        return "emotions not measured: the emotion branch was never trained"
    unknown = [name for name in rated.emotion_classes if name not in weights.emotions]
    return f"emotions not measured: the network does not know {', '.join(unknown)}" if unknown else ""


def with_emotions(rated: RatedSet, emotions: tuple[str, ...]) -> RatedSet:
    """The set with its emotions in the network's order, matched by name; NaN for those it lacks. Raises
    ValueError if it has one that the network does not know."""
    unknown = [name for name in rated.emotion_classes if name not in emotions]
    if unknown:
        raise ValueError(
            f"evaluation: the network knows {', '.join(emotions)}; {rated.name} has {', '.join(unknown)} too"
        )
    return replace(rated, emotions=over_classes(rated, emotions), emotion_classes=tuple(emotions))
