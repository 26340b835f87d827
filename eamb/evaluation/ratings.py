"""Predicted scores, compared with people's ratings."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

import metrics
from datasets import SetReader
from eamb.evaluation import emotions
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import has_votes, is_cross_set, predict_set
from eamb.evaluation.report import Report, rounded
from eamb.readers.rated import RatedSet
from eamb.runtime import engine
from eamb.runtime.config import Config
from eamb.runtime.networks import Ensemble, disagreement
from eamb.weights.checkpoint import Weights


def evaluate_scores(
    network: Ensemble, rated: RatedSet, config: Config, reader: SetReader
) -> tuple[Report, engine.Predictions]:
    """The report on a network that scores pictures (and emotions, if it predicts them); its predictions."""
    weights = network.weights
    predictions = predict_set(network, rated, config, show=True)
    twins, notes = find_twins(rated, reader)
    reason = emotions.why_not_measured(weights, rated)
    description = None if reason else weights.description
    report = measure_scores(predictions, rated, config.evaluate.bootstrap, weights, description, twins)
    report.notes += [*notes, *([reason] if reason else [])]
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
        weights: the network's, if it may have been trained on another set; None: trained on this one.
        description: the network's, if its emotions are to be measured.
        twins: as in `compare_scores`.
    """
    kept = rated.take(predictions.index)
    scale = weights.scale if weights else rated.scale
    cross = weights is not None and is_cross_set(weights, rated)
    columns = {"id": np.array(kept.ids), "prediction": rounded(scale.value(predictions.prediction))}
    differences = None if predictions.members is None else disagreement(predictions.members, scale)  # (n,)
    if differences is not None:
        columns["score_model_std"] = rounded(differences)
    shares = rounded(predictions.prediction)  # (n, K)
    columns |= {f"p_{value:g}": shares[:, i] for i, value in enumerate(scale.bins)}
    labels = scale.kind == "label" and not cross
    report = compare_scores(columns, kept, bootstrap, labels, cross, twins)
    if description and has_votes(kept).any():
        report.emotions = emotions.measure_emotions(predictions, rated, description, bootstrap)
        if not cross:
            classes, predicted = description["architecture"]["emotions"], columns["prediction"]
            high = predicted > 0.5 if labels else kept.scale.is_high(predicted)
            emotions.count_high_and_low(report, emotions.with_emotions(kept, classes), high)
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
    """The report on scores, from the columns of predictions.csv alone, so that anyone can repeat it.

    Args:
        columns: "id", "prediction" and, for a distribution, "p_<rating>"; (n,) each, in the order of the set.
        labels: the prediction is the probability of "high".
        correlations_only: the prediction is in another unit than the ratings.
        twins: ids of pictures that are also in training: everything is measured without them too.
    """
    predicted, (scores, threshold) = columns["prediction"], truth(rated, labels)
    arrays = [predicted, scores]
    bins = [f"p_{value:g}" for value in rated.bins]
    if bins and bins == [name for name in columns if name.startswith("p_")]:
        shares = np.stack([columns[name] for name in bins], axis=1)  # (n, K)
        arrays.append(metrics.compare_distributions(shares, rated.distributions, rated.bins))

    def figures(*arrays: np.ndarray) -> dict[str, float]:
        result = metrics.aesthetic_metrics(arrays[0], arrays[1], threshold)
        if correlations_only:
            return {name: result[name] for name in ("n", "srcc", "plcc", "krcc")}
        return result | (metrics.distribution_metrics(arrays[2]) if arrays[2:] else {})

    report = Report(f"{rated.name} {rated.split}", figures(*arrays), columns)
    if bootstrap:
        report.intervals = bootstrap_intervals(figures, tuple(arrays), bootstrap)
    if not correlations_only:
        if not labels:
            title = "{}\nSRCC {srcc:.3f}, PLCC {plcc:.3f}, n = {n:,}".format(report.title, **report.metrics)
            arguments = {"predicted": predicted, "rated": scores, "unit": "rating", "title": title}
            report.plots["scatter.png"] = arguments
        if "emd2" in report.metrics and (count := rated.with_votes.sum()) < len(rated):
            report.notes.append(f"pictures with votes, for EMD, spread and central shares: {count:,}")
        high, voted = rated.high(), has_votes(rated)
        majority = report.facts["majority_accuracy"] = float(max(np.mean(high), 1 - np.mean(high)))
        report.notes.append(f"accuracy of always naming the majority: {majority:.4f}")
        if rated.name == "iae" and voted.any():
            votes = np.nan_to_num(rated.emotions[voted])
            rule = metrics.positive_emotion_accuracy(votes, high[voted], rated.emotion_classes)
            report.facts["positive_emotion_accuracy"] = rule
            report.notes.append(f"accuracy of the rule 'positive emotion = high': {rule:.4f}")
    single = ~np.isin(columns["id"], list(twins))  # (n,)
    if 0 < single.sum() < len(rated):
        rest = {name: values[single] for name, values in columns.items()}
        rest = compare_scores(rest, rated.take(single), bootstrap, labels, correlations_only)
        count, shown = int((~single).sum()), "n {n}, SRCC {srcc:.4f}, PLCC {plcc:.4f}".format(**rest.metrics)
        report.notes.append(
            f"without test pictures that have an identical one in training ({count}): {shown}"
        )
        report.facts["without_twins"] = {"count": count, "metrics": rest.metrics}
        report.facts["without_twins"]["intervals_95"] = rest.intervals
    return report


def truth(rated: RatedSet, labels: bool) -> tuple[np.ndarray, float]:
    """What predictions are compared with, (n,): ratings, or 0 and 1 for labels; and the threshold of high."""
    return (rated.high().astype(float), 0.5) if labels else (rated.scores, rated.scale.threshold)


def find_twins(rated: RatedSet, reader: SetReader) -> tuple[set[str], list[str]]:
    """Ids of test pictures that have an identical one in training, and a note if that cannot be checked."""
    if rated.split != "test":
        return set(), []
    try:
        return reader.twins_in_training(), []
    except (ValueError, OSError) as error:  # a test split can be scored without the files of the others
        return set(), [f"identical pictures in training were not looked for: {error}"]
