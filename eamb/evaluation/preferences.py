"""Predicted preferences between two photographs of a series against people's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

import metrics
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import predict_set
from eamb.evaluation.report import Report, rounded
from eamb.network.outputs import Scale
from eamb.readers.pairs import PairedSet, load_pairs
from eamb.readers.rated import DataOptions
from eamb.runtime import engine
from eamb.runtime.config import Config
from eamb.weights.checkpoint import Weights


def evaluate_pairs(
    network: nn.Module, rated: PairedSet, config: Config, compute: engine.Compute
) -> tuple[Report, engine.Predictions]:
    """Predictions of a pair network, and their report."""
    predictions = predict_set(network, rated, config, compute, show=True)
    return measure_pairs(predictions, rated, config.evaluate.bootstrap), predictions


def evaluate_pairs_by_score(
    network: nn.Module, weights: Weights, rated: PairedSet, config: Config, compute: engine.Compute
) -> tuple[Report, engine.Predictions]:
    """Predictions of a network that scores single photographs, and their report on pairs.

    How steeply a preference rises with the difference of two scores is fitted to the validation pairs.
    """
    predictions = predict_set(network, rated, config, compute, show=True)
    steepness, words = fit_to_validation(network, weights, config, compute)
    words += "; these are the pairs measured here" if rated.split == "val" else ""
    scored = as_scores(predictions, weights.scale)
    scored = replace(scored, prediction=steepness * scored.prediction)
    report = measure_pairs(scored, rated, config.evaluate.bootstrap)
    report.title += ", by the score of single photographs"
    report.facts["odds_of_a_point"] = steepness
    report.notes.append(f"a difference of 1 in the score counts as odds of exp({steepness:.3g}), {words}")
    return report, predictions


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


def as_scores(predictions: engine.Predictions, scale: Scale) -> engine.Predictions:
    """Predictions whose (n, 1) column is the score, in the unit of the ratings."""
    return replace(predictions, prediction=scale.value(predictions.prediction)[:, None])


def measure_pairs(predictions: engine.Predictions, rated: PairedSet, bootstrap: int = 0) -> Report:
    """The report on predicted preferences.

    Raises:
        ValueError: no pair has two photographs that could be decoded.
    """
    rated = rated.take(predictions.index)
    if not len(rated.pairs):
        raise ValueError(
            f"evaluation: of no pair of {rated.name} {rated.split} can both photographs be decoded"
            f"{', e.g. ' + predictions.broken[0].reason if predictions.broken else ''}"
        )
    probability = metrics.pair_probability(predictions.prediction, rated.pairs)  # (m,)
    low = rounded(np.minimum(probability, 1 - probability))  # the smaller side: 1 - 2e-9 must not become 1
    probability = np.where(probability > 0.5, 1 - low, low)
    ids = np.array(rated.ids)[rated.pairs]  # (m, 2)
    columns = {"series": rated.pair_series, "first": ids[:, 0], "second": ids[:, 1]}
    columns |= {"preference": rated.preference, "prediction": probability}
    report = compare_pairs(f"{rated.name} {rated.split}", columns, bootstrap)
    report.pictures["reliability.png"] = {"probability": probability, "preference": rated.preference}
    return report


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
