"""How good predictions are: pure functions on arrays, all in float64.

Scores are in the unit of the data set. A metric that does not exist for its input (a correlation with a
constant) is NaN with a warning that names it; wrong input (NaN, unequal lengths) is a `ValueError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

SMALLEST_PROBABILITY = 1e-12  # a softmax in float32 can give an exact 0, whose logarithm is no number
RIDGE = 1e-3  # keeps strengths finite where all people agree; moves odds of 3 to 1 by some thousandths
TERMS = {  # the field's words for metrics whose names are not those words already
    "n": "pictures",
    "srcc": "SRCC",
    "plcc": "PLCC",
    "krcc": "KRCC",
    "rmse": "RMSE",
    "mae": "MAE",
    "auc": "AUC",
    "emd1": "EMD (r = 1)",
    "emd2": "EMD (r = 2)",
    "macro_f1": "macro F1",
    "kl": "KL",
    "kl_prior": "KL of the prior",
    "kl_ratio": "KL / KL of the prior",
    "cross_entropy": "cross-entropy",
    "calibration_error": "calibration error",
    "majority": "always the majority",
    "log_loss": "log-loss",
    "log_loss_prior": "log-loss of always 0.5",
    "agreement": "agreement of people",
    "series_krcc": "KRCC within a series",
    "series_best": "best of a series found",
}


# ---- Correlations ------------------------------------------------------------------------------------------


def srcc(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Spearman's rank correlation of (n,) with (n,), in [-1, 1]; ties share their mean rank."""
    predicted, rated = _pair(predicted, rated)
    if _undefined("SRCC", predicted, rated):
        return np.nan
    return _correlation(stats.rankdata(predicted), stats.rankdata(rated))


def plcc(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Pearson's linear correlation of (n,) with (n,), in [-1, 1]; no logistic curve is fitted first."""
    predicted, rated = _pair(predicted, rated)
    return np.nan if _undefined("PLCC", predicted, rated) else _correlation(predicted, rated)


def krcc(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Kendall's rank correlation (tau-b, corrected for ties) of (n,) with (n,), in [-1, 1]."""
    predicted, rated = _pair(predicted, rated)
    if _undefined("KRCC", predicted, rated):
        return np.nan
    # The method concerns the p-value only, which is not used: take the cheap one, which needs n > 2.
    method = "asymptotic" if len(predicted) > 2 else "auto"
    return float(stats.kendalltau(predicted, rated, method=method).statistic)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    # Squares of very small or very large values leave float64.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


# ---- Errors, accuracy, distances ---------------------------------------------------------------------------


def rmse(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Root of the mean squared error, in the unit of the scores."""
    predicted, rated = _pair(predicted, rated)
    return float(np.sqrt(_mean("RMSE", (predicted - rated) ** 2)))


def mae(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Mean absolute error, in the unit of the scores."""
    predicted, rated = _pair(predicted, rated)
    return _mean("MAE", np.abs(predicted - rated))


def accuracy(predicted: ArrayLike, rated: ArrayLike, threshold: float, inclusive: bool = False) -> float:
    """Share of pictures that prediction and rating put on the same side of the threshold.

    Args:
        predicted: (n,), in the unit of the threshold.
        rated: (n,) exact means, as they were read.
        inclusive: a score at the threshold counts as high too.
    """
    # Thresholds compare exact means: float32(3.0 / 5) is above 0.6 and would flip 48 of PARA's 3,000 labels.
    predicted, rated = _pair(predicted, rated)
    high = np.greater_equal if inclusive else np.greater
    return _mean("accuracy", high(predicted, threshold) == high(rated, threshold))


def majority_accuracy(high: ArrayLike) -> float:
    """Accuracy of always predicting the more frequent of high and low; high: (n,), 0 or 1."""
    share = _mean("majority accuracy", np.asarray(high))
    return max(share, 1 - share)


def auc(predicted: ArrayLike, high: ArrayLike) -> float:
    """Area under the ROC curve: how often a high picture is scored above a low one, ties count half.

    Args:
        predicted: (n,).
        high: (n,), 1 or True where the picture is high.
    """
    predicted, high = _pair(predicted, high)
    highs = np.count_nonzero(high)
    lows = len(high) - highs
    if highs == 0 or lows == 0:
        _warn(f"AUC is undefined (NaN): it needs high and low pictures, here are {highs} and {lows}.")
        return np.nan
    rank_sum = stats.rankdata(predicted)[high != 0].sum()
    return float((rank_sum - highs * (highs + 1) / 2) / (highs * lows))


def emd(predicted: ArrayLike, rated: ArrayLike, r: float = 2) -> np.ndarray:
    """Earth mover's distance between rating distributions, one value per image: `losses.emd` in float64.

    Args:
        predicted, rated: (n, K), rows sum to 1.

    Returns:
        (n,), in [0, 1].
    """
    return (_cumulative_gap(predicted, rated) ** r).mean(axis=1) ** (1 / r)


def _cumulative_gap(predicted: ArrayLike, rated: ArrayLike) -> np.ndarray:
    """(n, K), |P_k - Q_k| between cumulative distributions."""
    predicted, rated = _distribution_pair(predicted, rated)
    return np.abs((predicted - rated).cumsum(axis=1))


def aesthetic_metrics(
    predicted: ArrayLike,
    rated: ArrayLike,
    threshold: float,
    predicted_distributions: ArrayLike | None = None,
    rated_distributions: ArrayLike | None = None,
) -> dict[str, float]:
    """All figures that the field reports for predicted scores.

    Args:
        predicted: (n,), in the unit of the data set; for high/low labels the probability of "high".
        rated: (n,) exact means, in the same unit; for labels 0 or 1.
        threshold: above it a picture counts as high.
        predicted_distributions, rated_distributions: (n, K), rows sum to 1; both or neither.

    Returns:
        n, srcc, plcc, krcc, rmse, mae, accuracy (high is > threshold), accuracy_inclusive (>= threshold),
        threshold; emd1 and emd2, means over images, if there are distributions; auc, if the ratings are
        labels (all 0 or 1, with the threshold between), whose rmse is the root of the Brier score.
    """
    predicted, rated = np.asarray(predicted), np.asarray(rated)
    values = {
        "n": predicted.size,
        "srcc": srcc(predicted, rated),
        "plcc": plcc(predicted, rated),
        "krcc": krcc(predicted, rated),
        "rmse": rmse(predicted, rated),
        "mae": mae(predicted, rated),
        "accuracy": accuracy(predicted, rated, threshold),
        "accuracy_inclusive": accuracy(predicted, rated, threshold, inclusive=True),
        "threshold": float(threshold),
    }
    if len(rated) and 0 < threshold < 1 and ((rated == 0) | (rated == 1)).all():  # labels
        values["auc"] = auc(predicted, rated)
    if predicted_distributions is not None or rated_distributions is not None:
        gap = _cumulative_gap(predicted_distributions, rated_distributions)
        if len(gap) != len(predicted):
            raise ValueError(f"metrics: {len(predicted)} predicted scores against {len(gap)} distributions.")
        values["emd1"] = _mean("EMD", gap.mean(axis=1))
        values["emd2"] = _mean("EMD", np.sqrt((gap**2).mean(axis=1)))
    return values


# ---- Emotions ----------------------------------------------------------------------------------------------


def emotion_metrics(probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """All figures for predicted emotions.

    A class that was not offered for a picture does not compete there: the predictions of the other classes
    are divided by their sum, as if it had been left out of the softmax.

    Args:
        probabilities: (n, E), rows sum to 1.
        votes: (n, E), shares or counts, each row with at least one vote; NaN: a class that was not offered.
        classes: E names, in the order of the columns.

    Returns:
        n, accuracy (top-1, see `top_classes`), macro_f1 (over the classes that occur as truth or prediction),
        recall_<class> (NaN for a class without pictures; absent for a class that was never offered), kl (mean
        KL(votes || prediction) in nats), kl_prior (the same when each picture is predicted the mean vote of
        all pictures that were offered the same classes), kl_ratio (kl / kl_prior), cross_entropy (in nats),
        calibration_error (expected, 15 equal bins of the top probability), and the accuracies of always
        predicting the most frequent class (majority) and of guessing (chance).
    """
    probabilities, votes, offered = offered_shares(probabilities, votes, classes)
    predicted, truth = top_classes(probabilities, votes)  # (n,) each
    counts = _confusion(truth, predicted, len(classes))
    hits, in_truth, either = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0) + counts.sum(axis=1)
    recall = np.divide(hits, in_truth, out=np.full(len(classes), np.nan), where=in_truth > 0)  # (E,)
    prior = np.empty_like(votes)  # (n, E), the same for all pictures that were offered the same classes
    patterns = offered @ (1 << np.arange(len(classes)))  # (n,) whole numbers
    for pattern in np.unique(patterns):
        rows = patterns == pattern
        prior[rows] = emotion_prior(votes[rows])
    cross_entropy, entropy, of_prior = (_cross_entropy(votes, q) for q in (probabilities, votes, prior))
    kl_prior = of_prior - entropy
    prior_is_exact = kl_prior < 1e-12  # of equal rows a rounding error is left instead of 0
    if prior_is_exact:
        _warn("KL ratio is undefined (NaN): all pictures have the same votes, the constant prior is exact.")
    return {
        "n": len(votes),
        "accuracy": float((predicted == truth).mean()),
        "macro_f1": float((2 * hits[either > 0] / either[either > 0]).mean()),
        **{f"recall_{classes[k]}": float(recall[k]) for k in np.flatnonzero(offered.any(axis=0))},
        "kl": cross_entropy - entropy,
        "kl_prior": kl_prior,
        "kl_ratio": np.nan if prior_is_exact else (cross_entropy - entropy) / kl_prior,
        "cross_entropy": cross_entropy,
        "calibration_error": _calibration_error(probabilities.max(axis=1), predicted == truth),
        "majority": float((votes == votes.max(axis=1, keepdims=True)).mean(axis=0).max()),
        "chance": float((1 / offered.sum(axis=1)).mean()),
    }


def offered_shares(
    probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions and votes, checked, as shares among the classes that were offered for each picture.

    Args:
        probabilities, votes, classes: as `emotion_metrics` takes them.

    Returns:
        Probabilities and vote shares (n, E), whose rows sum to 1, 0 where a class was not offered; and
        whether it was, (n, E) bool.
    """
    votes = np.asarray(votes, dtype=np.float64)
    offered = ~np.isnan(votes)
    probabilities, votes = _distribution_pair(probabilities, _shares(np.where(offered, votes, 0.0)))
    if len(classes) != votes.shape[1]:
        raise ValueError(
            f"metrics: {len(classes)} emotion classes are named, but there are {votes.shape[1]} columns."
        )
    if len(votes) == 0:
        raise ValueError("metrics: there is no picture with emotion votes to score.")
    partly = ~offered.all(axis=1)  # (n,) pictures for which a class is left out
    # A row of which nothing is left would be divided by 0; the lower bound makes its offered classes equal.
    rest = np.where(offered[partly], np.maximum(probabilities[partly], SMALLEST_PROBABILITY), 0.0)
    probabilities = probabilities.copy()
    probabilities[partly] = rest / rest.sum(axis=1, keepdims=True)
    return probabilities, votes, offered


def confusion_matrix(probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]) -> np.ndarray:
    """(E, E) numbers of pictures, true class by predicted class; arguments as for `emotion_metrics`."""
    probabilities, votes, _ = offered_shares(probabilities, votes, classes)
    predicted, truth = top_classes(probabilities, votes)  # (n,) each
    return _confusion(truth, predicted, len(classes))


def _confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(classes * truth + predicted, minlength=classes**2).reshape(classes, classes)


def top_classes(probabilities: np.ndarray, votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers predicted and true, (n,) and (n,), from (n, E) and (n, E).

    The true class is the one with the most votes. Where several classes lead together, the predicted one is
    true if it is among them, and the first of them otherwise.
    """
    predicted = probabilities.argmax(axis=1)  # (n,)
    leads = votes[np.arange(len(votes)), predicted] == votes.max(axis=1)  # (n,)
    return predicted, np.where(leads, predicted, votes.argmax(axis=1))


def _cross_entropy(votes: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over pictures of -sum(votes * log(probabilities)), (n, E) and (n or 1, E)."""
    logarithms = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return float(-(votes * logarithms).sum(axis=1).mean())


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence| per bin of confidence, weighted by its pictures."""
    bins = np.minimum((15 * confidence).astype(int), 14)  # (n,)
    return float(np.abs(np.bincount(bins, weights=confidence - correct)).sum() / len(confidence))


def emotion_prior(votes: ArrayLike) -> np.ndarray:
    """The constant prediction: the mean vote shares (E,) of votes (n, E), shares or counts."""
    return _shares(votes).mean(axis=0)


def positive_emotion_accuracy(emotions: ArrayLike, high: ArrayLike, classes: Sequence[str]) -> float:
    """Accuracy of the rule "a picture with a positive emotion is a high one", a reference for IAE.

    Args:
        emotions: (n, E), votes, one-hot labels or predicted probabilities; a picture is positive if the
            positive emotions have more than the negative ones, and neutral counts for neither.
        high: (n,), 0 or 1.
        classes: E names, in the order of the columns.
    """
    emotions = _shares(emotions)  # (n, E)
    positive = np.isin(classes, ["amusement", "awe", "contentment", "excitement"])  # (E,), Mikels et al. 2005
    negative = ~positive & ~np.isin(classes, ["neutral"])
    says_high = emotions[:, positive].sum(axis=1) > emotions[:, negative].sum(axis=1)  # (n,)
    return _mean("positive-emotion rule", says_high == np.asarray(high))


# ---- Pairs and series --------------------------------------------------------------------------------------


def pair_probability(odds: ArrayLike, pairs: np.ndarray) -> np.ndarray:
    """P(the first of each pair is preferred), (m,) in [0, 1].

    Args:
        odds: (n, 2) predictions of a pair network, or (n, 1) of anything that scores photographs.
        pairs: (m, 2) rows of `odds`.
    """
    odds = np.asarray(odds, np.float64)
    return special.expit(odds[pairs[:, 0], 0] - odds[pairs[:, 1], -1])


def pair_metrics(probability: ArrayLike, preference: ArrayLike) -> dict[str, float]:
    """All figures for predicted preferences between two photographs.

    Args:
        probability: (m,), predicted P(the first of the pair is preferred).
        preference: (m,), share of the people who preferred it. Undecided pairs (0.5) count for the log-loss
            and the calibration only.

    Returns:
        pairs, accuracy (of the majority's choice; a probability of 0.5 is half right), auc, log_loss (against
        the preferences) and log_loss_prior (of always predicting 0.5), calibration_error (|mean probability -
        mean preference| per bin of probability, weighted by its pairs), agreement (the mean share of people
        who prefer what the majority prefers: no prediction of single choices can be right more often), and
        the accuracy by agreement, `accuracy_0.50_0.60` and so on, where there are such pairs.
    """
    probability, preference = _pair(probability, preference)
    both_sides = [np.stack([share, 1 - share], axis=1) for share in (preference, probability)]  # (m, 2) each
    if len(preference) and np.min(both_sides) < 0:
        raise ValueError("metrics: probabilities and preferences of pairs are from 0 to 1")
    majority = both_sides[0].max(axis=1)  # (m,)
    decided = preference != 0.5
    values = {
        "pairs": len(preference),
        "accuracy": pair_accuracy(probability, preference),
        "auc": auc(probability[decided], preference[decided] > 0.5),
        "log_loss": _cross_entropy(*both_sides),
        "log_loss_prior": float(np.log(2)),
        "calibration_error": _calibration_error(probability, preference),
        "agreement": float(majority.mean()),
    }
    for low, high in pairwise((0.5, 0.6, 0.75, 0.9, 1.0)):
        chosen = decided & (majority > low) & (majority <= high)
        if chosen.any():
            values[f"accuracy_{low:.2f}_{high:.2f}"] = pair_accuracy(probability[chosen], preference[chosen])
    return values


def pair_accuracy(probability: np.ndarray, preference: np.ndarray) -> float:
    """Share of the decided pairs, (m,) each, whose preferred photograph is predicted; a probability of 0.5
    counts half. NaN, with a warning, if no pair is decided."""
    right = np.where(probability == 0.5, 0.5, (probability > 0.5) == (preference > 0.5))  # (m,)
    return _mean("accuracy", right[preference != 0.5])


def bradley_terry(count: int, pairs: ArrayLike, preference: ArrayLike) -> np.ndarray:
    """Strengths (count,) of photographs, mean 0, from comparisons: P(a over b) = 1 / (1 + exp(s_b - s_a)).

    Those of the highest likelihood (Bradley & Terry 1952), with a small ridge, by Newton's method: the
    logarithm of the likelihood is concave, so there is one solution.

    Args:
        pairs: (m, 2) rows of photographs. preference: (m,) share of the first of each, in [0, 1].
    """
    pairs, preference = np.asarray(pairs, np.int64).reshape(-1, 2), np.asarray(preference, np.float64)
    sides = np.eye(count)[pairs[:, 0]] - np.eye(count)[pairs[:, 1]]  # (m, count), 1 and -1

    def loss_and_slope(strengths: np.ndarray) -> tuple[float, np.ndarray]:
        odds = sides @ strengths  # (m,)
        loss = (np.logaddexp(0, odds) - preference * odds).sum() + RIDGE / 2 * strengths @ strengths
        return float(loss), sides.T @ (special.expit(odds) - preference) + RIDGE * strengths

    def curvature(strengths: np.ndarray) -> np.ndarray:
        share = special.expit(sides @ strengths)
        return sides.T @ (sides * (share * (1 - share))[:, None]) + RIDGE * np.eye(count)

    options = {"method": "trust-exact", "jac": True, "hess": curvature, "tol": 1e-10}
    best = optimize.minimize(loss_and_slope, np.zeros(count), **options).x
    return best - best.mean()


def fit_steepness(differences: ArrayLike, preference: ArrayLike) -> float:
    """The factor by which differences of scores (m,) become the log odds that fit preferences (m,) best.

    Finite even where the scores are always right, by the ridge of `bradley_terry`; below 0 where they are
    mostly wrong.
    """
    differences, preference = _pair(differences, preference)
    scale = float(np.abs(differences).max()) or 1.0

    def loss(factor: float) -> float:
        odds = factor * differences / scale
        return float((np.logaddexp(0, odds) - preference * odds).sum() + RIDGE / 2 * factor**2)

    return float(optimize.minimize_scalar(loss).x) / scale


def series_ranks(
    series: Sequence[str] | np.ndarray, pairs: np.ndarray, probability: np.ndarray, preference: np.ndarray
) -> dict[str, np.ndarray]:
    """How well each series is ranked; both rankings come from the same pairs (`bradley_terry`).

    Args:
        series: (m,) of each pair. pairs: (m, 2) photographs. probability, preference: (m,).

    Returns:
        Per series, in the order of the names, (S,) each: krcc (Kendall's tau; NaN where people rank all
        alike) and best, 1 where the photograph predicted to be the best is the best by the preferences and 0
        elsewhere; where several are predicted to be the best, the share of them that are.
    """
    names, groups = np.unique(np.asarray(series), return_inverse=True)
    ranks = np.full((len(names), 2), np.nan)
    for group in range(len(names)):
        rows = np.flatnonzero(groups == group)
        photographs, places = np.unique(pairs[rows], return_inverse=True)
        places = places.reshape(-1, 2)
        predicted, preferred = (
            bradley_terry(len(photographs), places, values[rows]).round(9)
            for values in (probability, preference)
        )
        if preferred.max() > preferred.min():
            differ = predicted.max() > predicted.min()
            ranks[group, 0] = stats.kendalltau(predicted, preferred).statistic if differ else 0.0
            ranks[group, 1] = (preferred[predicted == predicted.max()] == preferred.max()).mean()
    return {"krcc": ranks[:, 0], "best": ranks[:, 1]}


# ---- Checks ------------------------------------------------------------------------------------------------


def _pair(predicted: ArrayLike, rated: ArrayLike, dimensions: int = 1) -> tuple[np.ndarray, np.ndarray]:
    predicted, rated = _finite(predicted, "predicted", dimensions), _finite(rated, "rated", dimensions)
    if predicted.shape != rated.shape:
        raise ValueError(
            f"metrics: the predictions have the shape {predicted.shape}, the ratings {rated.shape}; both "
            "need one row per picture, in the same order, and the same bins or classes."
        )
    return predicted, rated


def _distribution_pair(predicted: ArrayLike, rated: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    pair = _pair(predicted, rated, dimensions=2)
    for name, values in zip(("predicted", "rated"), pair, strict=True):
        total = values.sum(axis=1)  # (n,)
        # Ten bins printed with four digits are off by up to 5e-4.
        bad = np.flatnonzero((values < 0).any(axis=1) | (np.abs(total - 1) > 1e-3))
        if len(bad):
            raise ValueError(
                f"metrics: {len(bad)} of {len(values)} {name} rows are no distributions; row {bad[0]}, "
                f"counted from 0, has the sum {total[bad[0]]:g} and the minimum {values[bad[0]].min():g}. "
                "Divide counts by their sum."
            )
    return pair


def _finite(values: ArrayLike, name: str, dimensions: int) -> np.ndarray:
    """As float64, checked: (n,) or (n, K), no NaN, no infinity."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != dimensions:
        expected = ("(n,)", "(n, K)")[dimensions - 1]
        raise ValueError(f"metrics: the {name} values must have the shape {expected}, not {values.shape}.")
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.flatnonzero(~finite if dimensions == 1 else ~finite.all(axis=1))
        raise ValueError(
            f"metrics: {len(bad)} of {len(values)} {name} rows are NaN or infinite (first: row {bad[0]}, "
            "counted from 0). Leave these pictures out, or find what made them."
        )
    return values


def _shares(votes: ArrayLike) -> np.ndarray:
    """Votes (n, E) with every row divided by its sum."""
    votes = _finite(votes, "vote", 2)
    total = votes.sum(axis=1, keepdims=True)  # (n, 1)
    bad = np.flatnonzero((votes < 0).any(axis=1) | (total[:, 0] <= 0))
    if len(bad):
        raise ValueError(
            f"metrics: {len(bad)} of {len(votes)} vote rows have no votes or negative ones (first: row "
            f"{bad[0]}, counted from 0). Leave these pictures out."
        )
    return votes / total


def _undefined(metric: str, predicted: np.ndarray, rated: np.ndarray) -> bool:
    """Whether a correlation does not exist for this input; then it warns."""
    if len(predicted) < 2:
        _warn(f"{metric} is undefined (NaN): it needs two pictures, here is {len(predicted)}.")
        return True
    for name, values in (("predicted", predicted), ("rated", rated)):
        # Equal distributions can have means that differ in the last bits, which would be ranked.
        if np.ptp(values) <= 1e-13 * np.abs(values).max():
            _warn(f"{metric} is undefined (NaN): all {len(values)} {name} values are {values[0]:g}.")
            return True
    return False


def _mean(metric: str, values: np.ndarray) -> float:
    if len(values) == 0:
        _warn(f"{metric} is undefined (NaN): there is no picture.")
        return np.nan
    return float(values.mean())


def _warn(message: str) -> None:
    warnings.warn(f"metrics: {message}", stacklevel=4)
