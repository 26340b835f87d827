"""Predicted preferences between two photographs of a series, compared with people's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import metrics
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import predict_set
from eamb.evaluation.report import Report, rounded
from eamb.readers.pairs import PairedSet, load_pairs
from eamb.runtime import engine
from eamb.runtime.config import Config
from eamb.runtime.networks import Ensemble


def evaluate_pairs(network: Ensemble, rated: PairedSet, config: Config) -> tuple[Report, engine.Predictions]:
    """The report on a pair network, or on one that scores single photographs, and its predictions.

    For scores, the slope from their difference to a preference is fitted to the validation pairs.
    """
    data, scale, bootstrap = config.data, network.weights.scale, config.evaluate.bootstrap
    predictions = predict_set(network, rated, config, show=True)
    if not scale:
        return measure_pairs(predictions, rated, bootstrap), predictions
    steepness, words = 0.0, "no validation pair says that people prefer the higher score"
    try:
        validation = load_pairs(data.dataset, data.root, ("val",), data.options())["val"]
    except (ValueError, OSError) as error:  # a test split can be scored without the files of the others
        words = str(error)
    else:
        fitted = predict_set(network, validation, config, show=True)
        validation = validation.take(fitted.index)
        if len(validation.pairs):
            first, second = scale.value(fitted.prediction)[validation.pairs.T]  # (m,) each
            steepness = metrics.fit_steepness(first - second, validation.preference)
    if steepness > 0:
        words = f"fitted to {len(validation.pairs)} validation pairs; accuracy and ranks do not depend on it"
    else:
        steepness, words = 1.0, f"not fitted ({words}): log-loss and calibration mean nothing"
    odds = steepness * scale.value(predictions.prediction)[:, None]  # (n, 1)
    report = measure_pairs(replace(predictions, prediction=odds), rated, bootstrap)
    report.title += ", by the score of single photographs"
    report.facts["odds_of_a_point"] = steepness
    report.notes.append(f"a difference of 1 in the score counts as odds of exp({steepness:.3g}), {words}")
    return report, predictions


def measure_pairs(predictions: engine.Predictions, rated: PairedSet, bootstrap: int = 0) -> Report:
    """The report on predicted preferences; ValueError if no pair has both photographs decoded."""
    rated = rated.take(predictions.index)
    if not len(rated.pairs):
        raise ValueError(
            f"evaluation: of no pair of {rated.name} {rated.split} can both photographs be decoded, "
            f"e.g. {predictions.broken[0].reason}"
        )
    probability = metrics.pair_probability(predictions.prediction, rated.pairs)  # (m,)
    low = rounded(np.minimum(probability, 1 - probability))  # the smaller share: 1 - 2e-9 must not become 1
    probability = np.where(probability > 0.5, 1 - low, low)
    ids = np.array(rated.ids)[rated.pairs]  # (m, 2)
    columns = {"series": rated.pair_series, "first": ids[:, 0], "second": ids[:, 1]}
    columns |= {"preference": rated.preference, "prediction": probability}
    report = compare_pairs(f"{rated.name} {rated.split}", columns, bootstrap)
    title = "{}\naccuracy {accuracy:.3f}, {pairs:,} pairs".format(report.title, **report.metrics)
    arguments = {"probability": probability, "preference": rated.preference, "title": title}
    report.plots["reliability.png"] = arguments
    return report


def compare_pairs(title: str, columns: dict[str, np.ndarray], bootstrap: int = 0) -> Report:
    """The report on predicted preferences, from the columns of predictions.csv alone.

    Args:
        columns: series, first, second, preference and prediction, (m,) each.
        bootstrap: resamples for the intervals, of whole series.
    """
    series, arrays = columns["series"], (columns["prediction"], columns["preference"])
    report = Report(title, metrics.pair_metrics(*arrays), columns)
    names, places = np.unique(np.stack([columns["first"], columns["second"]], axis=1), return_inverse=True)
    ranks = metrics.series_ranks(series, places.reshape(-1, 2), *arrays)
    kept = ~np.isnan(ranks["krcc"])  # (S,) False where people prefer no photograph
    ranks = (ranks["krcc"][kept], ranks["best"][kept])

    def series_metrics(krcc: np.ndarray, best: np.ndarray) -> dict[str, float]:
        return {"series_krcc": float(krcc.mean()), "series_best": float(best.mean())}

    report.facts["photographs"] = len(names)
    report.metrics |= {"series": int(kept.sum())} | (series_metrics(*ranks) if kept.any() else {})
    if bootstrap:
        report.intervals = bootstrap_intervals(metrics.pair_metrics, arrays, bootstrap, groups=series)
        if kept.any():
            report.intervals |= bootstrap_intervals(series_metrics, ranks, bootstrap)
    return report
