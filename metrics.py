"""What a prediction is worth: pure functions on arrays, all in float64.

Scores are in the set's own unit. A metric that does not exist for its input (a correlation with a constant)
is NaN with a warning that names it; input that is wrong (NaN, other lengths) is a `ValueError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

POSITIVE_EMOTIONS = ("amusement", "awe", "contentment", "excitement")  # after Mikels et al. 2005
CALIBRATION_BINS = 15
SMALLEST_PROBABILITY = 1e-12  # a softmax in float32 can give an exact 0, whose logarithm is no number
ROW_SUM_TOLERANCE = 1e-3  # ten bins printed with four digits are off by up to 5e-4
ROUNDING = 1e-13  # values that differ by less, in relation to the largest, are one value
NOT_ESTIMATED = ("n", "pairs", "series", "threshold", "chance", "log_loss_prior")  # these have no interval


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
    if _undefined("PLCC", predicted, rated):
        return np.nan
    return _correlation(predicted, rated)


def krcc(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Kendall's rank correlation (tau-b, corrected for ties) of (n,) with (n,), in [-1, 1]."""
    predicted, rated = _pair(predicted, rated)
    if _undefined("KRCC", predicted, rated):
        return np.nan
    # The method only concerns the p-value, which is thrown away: take the cheap one, which needs n > 2.
    method = "asymptotic" if len(predicted) > 2 else "auto"
    return float(stats.kendalltau(predicted, rated, method=method).statistic)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = _standard(x), _standard(y)
    return float(np.clip(x @ y, -1, 1))


def _standard(values: np.ndarray) -> np.ndarray:
    """(n,) with mean 0 and length 1. Scaled between: squares of very small or large values leave float64."""
    values = values - values.mean()
    values = values / np.abs(values).max()
    return values / np.sqrt(values @ values)


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
        inclusive: at the threshold counts as high too.
    """
    # Thresholds compare exact means: float32(3.0 / 5) is above 0.6 and would flip 48 of PARA's 3,000 labels.
    if np.asarray(rated).dtype in (np.float16, np.float32):
        raise ValueError(
            f"metrics: accuracy needs ratings as they were read, in float64, not {np.asarray(rated).dtype}: "
            "rounding moves pictures across the threshold. Take RatedSet.scores, not a float32 copy."
        )
    predicted, rated = _pair(predicted, rated)
    high = np.greater_equal if inclusive else np.greater
    return _mean("accuracy", high(predicted, threshold) == high(rated, threshold))


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
    return _emd_of_gap(_cumulative_gap(predicted, rated), r)


def _cumulative_gap(predicted: ArrayLike, rated: ArrayLike) -> np.ndarray:
    """Absolute difference of the cumulative distributions, (n, K)."""
    predicted, rated = _distribution_pair(predicted, rated)
    return np.abs((predicted - rated).cumsum(axis=1))


def _emd_of_gap(gap: np.ndarray, r: float) -> np.ndarray:
    return gap.mean(axis=1) if r == 1 else (gap**r).mean(axis=1) ** (1 / r)


def aesthetic_metrics(
    predicted: ArrayLike,
    rated: ArrayLike,
    threshold: float,
    predicted_distributions: ArrayLike | None = None,
    rated_distributions: ArrayLike | None = None,
) -> dict[str, float]:
    """All figures this field reports for predicted scores.

    Args:
        predicted: (n,), in the set's own unit; for high/low labels the probability of "high".
        rated: (n,) exact means, in the same unit; for labels 0 or 1.
        threshold: above it a picture counts as high.
        predicted_distributions, rated_distributions: (n, K), rows sum to 1; both or neither.

    Returns:
        n, srcc, plcc, krcc, rmse, mae, accuracy (high is > threshold), accuracy_inclusive (>= threshold),
        threshold; emd1 and emd2, means over images, if there are distributions; auc, if all ratings are 0
        or 1 and the threshold lies between: labels, whose rmse is the root of the Brier score.
    """
    predicted, rated = np.asarray(predicted), np.asarray(rated)
    found = {
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
    if _are_labels(rated, threshold):
        found["auc"] = auc(predicted, rated)
    if predicted_distributions is None and rated_distributions is None:
        return found
    if predicted_distributions is None or rated_distributions is None:
        raise ValueError("metrics: EMD needs predicted and rated distributions; only one of them was given.")
    _same_count(predicted, predicted_distributions, "predicted scores", "predicted distributions")
    gap = _cumulative_gap(predicted_distributions, rated_distributions)  # (n, K)
    return found | {f"emd{r}": _mean("EMD", _emd_of_gap(gap, r)) for r in (1, 2)}


def _are_labels(rated: np.ndarray, threshold: float) -> bool:
    return len(rated) > 0 and 0 < threshold < 1 and bool(((rated == 0) | (rated == 1)).all())


# ---- Emotions ----------------------------------------------------------------------------------------------


def emotion_metrics(probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """All figures for predicted emotions.

    A class that was not offered for a picture does not compete there: the prediction is divided by the sum of
    the others, as if it had been left out of the softmax.

    Args:
        probabilities: (n, E), rows sum to 1.
        votes: (n, E), shares or counts, each row with at least one vote; NaN: a class that was not offered.
        classes: E names, in the order of the columns.

    Returns:
        n, accuracy (top-1, see `top_classes`), macro_f1 (over the classes that occur as truth or prediction),
        recall_<class> (NaN for a class without pictures; none for a class never offered), kl = mean
        KL(votes || prediction) in nats, kl_prior = the same for the constant mean vote of these pictures (of
        those that were offered the same classes), kl_ratio = kl / kl_prior, cross_entropy in nats,
        calibration_error (expected, 15 equal bins of the top probability), and the accuracies of always
        naming the commonest class (majority) and of guessing (chance).
    """
    probabilities, votes, offered = offered_shares(probabilities, votes, classes)
    predicted, truth = top_classes(probabilities, votes)  # (n,) each
    correct = predicted == truth
    named = offered.any(axis=0)  # (E,)
    found = {"n": len(votes), "accuracy": float(correct.mean())}
    found |= {
        name: value
        for name, value in _class_metrics(predicted, truth, classes).items()
        if name == "macro_f1" or named[list(classes).index(name.removeprefix("recall_"))]
    }
    found |= _divergences(probabilities, votes, offered)
    found["calibration_error"] = _calibration_error(probabilities.max(axis=1), correct)
    found["majority"] = float(_leading(votes).mean(axis=0).max())
    found["chance"] = float((1 / offered.sum(axis=1)).mean())
    return found


def offered_shares(
    probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions and votes as shares among the classes that were offered for each picture, checked.

    Args:
        probabilities, votes, classes: as `emotion_metrics` takes them.

    Returns:
        Probabilities and vote shares (n, E), whose rows sum to 1, 0 where a class was not offered; and
        whether it was, (n, E) bool.
    """
    votes = np.asarray(votes, dtype=np.float64)
    offered = ~np.isnan(votes)
    probabilities, votes = _emotion_pair(probabilities, np.where(offered, votes, 0.0), classes)
    some = ~offered.all(axis=1)  # (n,) pictures for which a class is left out
    # A row in which nothing is left would be divided by 0; a floor makes it even among the offered.
    rest = np.where(offered[some], np.maximum(probabilities[some], SMALLEST_PROBABILITY), 0.0)
    probabilities = probabilities.copy()
    probabilities[some] = rest / rest.sum(axis=1, keepdims=True)
    return probabilities, votes, offered


def confusion_matrix(probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]) -> np.ndarray:
    """(E, E) numbers of pictures, true class by predicted class; arguments as for `emotion_metrics`."""
    probabilities, votes, _ = offered_shares(probabilities, votes, classes)
    predicted, truth = top_classes(probabilities, votes)  # (n,) each
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def top_classes(probabilities: np.ndarray, votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers predicted and true, (n,) and (n,), from (n, E) and (n, E).

    The true class is the one with most votes. Where several share the lead each of them is right: it is the
    predicted one if that is among them, and the first otherwise.
    """
    predicted = probabilities.argmax(axis=1)  # (n,)
    correct = _leading(votes)[np.arange(len(votes)), predicted]  # (n,)
    return predicted, np.where(correct, predicted, votes.argmax(axis=1))


def _leading(votes: np.ndarray) -> np.ndarray:
    """Whether a class has the most votes of its picture, alone or with others; (n, E)."""
    return votes == votes.max(axis=1, keepdims=True)


def _emotion_pair(
    probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    probabilities, votes = _distribution_pair(probabilities, _shares(votes))
    if len(classes) != votes.shape[1]:
        raise ValueError(
            f"metrics: {len(classes)} emotion classes are named, but there are {votes.shape[1]} columns."
        )
    if len(votes) == 0:
        raise ValueError("metrics: there is no picture with emotion votes to score.")
    return probabilities, votes


def _class_metrics(predicted: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """macro_f1 and the recall of each class, from class numbers (n,) and (n,)."""
    count = len(classes)
    hits = np.bincount(truth[truth == predicted], minlength=count)  # (E,)
    true_count, predicted_count = np.bincount(truth, minlength=count), np.bincount(predicted, minlength=count)
    occurs = true_count + predicted_count > 0
    f1 = 2 * hits[occurs] / (true_count + predicted_count)[occurs]
    recall = np.divide(hits, true_count, out=np.full(count, np.nan), where=true_count > 0)
    return {"macro_f1": float(f1.mean())} | {
        f"recall_{name}": float(value) for name, value in zip(classes, recall, strict=True)
    }


def _divergences(probabilities: np.ndarray, votes: np.ndarray, offered: np.ndarray) -> dict[str, float]:
    """kl, kl_prior, kl_ratio and cross_entropy in nats, from shares (n, E) and (n, E); offered: (n, E)."""
    cross_entropy = _cross_entropy(votes, probabilities)
    entropy = _cross_entropy(votes, votes)
    kl = cross_entropy - entropy
    prior = np.empty_like(votes)  # (n, E)
    for rows in _alike(offered):
        prior[rows] = emotion_prior(votes[rows])
    kl_prior = _cross_entropy(votes, prior) - entropy
    prior_is_exact = kl_prior < 1e-12  # equal rows leave a rest of rounding instead of 0
    if prior_is_exact:
        _warn("KL ratio is undefined (NaN): all pictures have the same votes, the constant prior is exact.")
    kl_ratio = np.nan if prior_is_exact else kl / kl_prior
    return {"kl": kl, "kl_prior": kl_prior, "kl_ratio": kl_ratio, "cross_entropy": cross_entropy}


def _alike(offered: np.ndarray) -> list[np.ndarray]:
    """Masks (n,) of the pictures that were offered the same classes; offered: (n, E) bool."""
    if (offered == offered[0]).all():
        return [np.ones(len(offered), dtype=bool)]
    patterns, which = np.unique(offered, axis=0, return_inverse=True)
    return [which.ravel() == i for i in range(len(patterns))]


def _cross_entropy(votes: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over pictures of -sum(votes * log(probabilities)), (n, E) and (n or 1, E)."""
    logarithms = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return float(-(votes * logarithms).sum(axis=1).mean())


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence| per bin of confidence, weighted by its pictures."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)  # (n,)
    excess = np.bincount(bins, weights=confidence - correct, minlength=CALIBRATION_BINS)
    return float(np.abs(excess).sum() / len(confidence))


# ---- Pairs and series --------------------------------------------------------------------------------------

STRENGTHS = (0.5, 0.6, 0.75, 0.9, 1.0)  # of agreement: share of the people who are of the majority's opinion


def pair_probability(odds: ArrayLike, pairs: np.ndarray) -> np.ndarray:
    """P(the first of each pair is preferred), (m,) in [0, 1].

    Args:
        odds: (n, 2) predictions of a `series.SeriesNetwork`, or (n, 1) of anything that scores photographs.
        pairs: (m, 2) rows of `odds`.
    """
    odds = np.asarray(odds, np.float64)
    return special.expit(odds[pairs[:, 0], 0] - odds[pairs[:, 1], -1])


def pair_metrics(probability: ArrayLike, preference: ArrayLike) -> dict[str, float]:
    """What predicted preferences between two photographs are worth.

    Args:
        probability: (m,), predicted P(the first of the pair is preferred).
        preference: (m,), share of the people who preferred it. Undecided pairs (0.5) count for the log-loss
            and the calibration only.

    Returns:
        pairs, accuracy (of the majority's choice; a probability of 0.5 is half right), auc, log_loss and
        log_loss_prior (against the preferences; of saying 0.5 always), calibration_error (|mean probability
        - mean preference| per bin of probability, weighted by its pairs), agreement (accuracy against single
        people's choices that naming the majority would have: what bounds anyone), and the accuracy by
        strength of agreement, `accuracy_0.50_0.60` and so on, where there are such pairs.
    """
    probability, preference = _pair(probability, preference)
    for name, values in (("probabilities", probability), ("preferences", preference)):
        if ((values < 0) | (values > 1)).any():
            raise ValueError(
                f"metrics: {name} of pairs are from 0 to 1, got {values.min():g} to {values.max():g}"
            )
    majority = np.maximum(preference, 1 - preference)  # (m,)
    decided = preference != 0.5
    found = {
        "pairs": len(preference),
        "accuracy": pair_accuracy(probability, preference),
        "auc": auc(probability[decided], preference[decided] > 0.5),
        "log_loss": _cross_entropy(_both(preference), _both(probability)),
        "log_loss_prior": float(np.log(2)),
        "calibration_error": _calibration_error(probability, preference),
        "agreement": float(majority.mean()),
    }
    for low, high in pairwise(STRENGTHS):
        chosen = decided & (majority > low) & (majority <= high)
        if chosen.any():
            found[f"accuracy_{low:.2f}_{high:.2f}"] = pair_accuracy(probability[chosen], preference[chosen])
    return found


def pair_accuracy(probability: np.ndarray, preference: np.ndarray) -> float:
    """Share of the decided pairs, (m,) each, whose preferred photograph is predicted; half for a probability
    of 0.5. NaN, with a warning, of none."""
    right = np.where(probability == 0.5, 0.5, (probability > 0.5) == (preference > 0.5))  # (m,)
    return _mean("accuracy", right[preference != 0.5])


def _both(share: np.ndarray) -> np.ndarray:
    """(m,) -> (m, 2), the share of each of two photographs."""
    return np.stack([share, 1 - share], axis=1)


RIDGE = 1e-3  # keeps strengths finite where everybody agrees; moves odds of 3 to 1 by some thousandths


def bradley_terry(count: int, pairs: ArrayLike, preference: ArrayLike) -> np.ndarray:
    """Strengths (count,) of photographs, mean 0, from comparisons: P(a over b) = 1 / (1 + exp(s_b - s_a)).

    The most likely ones (Bradley & Terry 1952), with a little ridge, by Newton's method: the likelihood is
    concave, so there is one solution.

    Args:
        pairs: (m, 2) rows of photographs. preference: (m,) share of the first of each, in [0, 1].
    """
    pairs, preference = np.asarray(pairs, np.int64).reshape(-1, 2), np.asarray(preference, np.float64)
    sides = np.zeros((len(pairs), count))  # (m, count), +1 for the first, -1 for the second
    np.add.at(sides, (np.arange(len(pairs)), pairs[:, 0]), 1.0)
    np.add.at(sides, (np.arange(len(pairs)), pairs[:, 1]), -1.0)

    def minus_likelihood(strengths: np.ndarray) -> float:
        odds = sides @ strengths  # (m,)
        return float((np.logaddexp(0, odds) - preference * odds).sum() + RIDGE / 2 * strengths @ strengths)

    def slope(strengths: np.ndarray) -> np.ndarray:
        return sides.T @ (special.expit(sides @ strengths) - preference) + RIDGE * strengths

    def curvature(strengths: np.ndarray) -> np.ndarray:
        share = special.expit(sides @ strengths)
        return sides.T @ (sides * (share * (1 - share))[:, None]) + RIDGE * np.eye(count)

    found = optimize.minimize(
        minus_likelihood, np.zeros(count), method="trust-exact", jac=slope, hess=curvature, tol=1e-10
    )
    return found.x - found.x.mean()


def fit_steepness(differences: ArrayLike, preference: ArrayLike) -> float:
    """The factor that makes differences of scores (m,) the odds fitting preferences (m,) best.

    Finite where the scores are always right, by the ridge of `bradley_terry`; below 0 where they are mostly
    wrong.
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
    """How well each series is ranked; both rankings are made from the same pairs (`bradley_terry`).

    Args:
        series: (m,) of each pair. pairs: (m, 2) photographs. probability, preference: (m,).

    Returns:
        Per series, by name, (S,) each: krcc (Kendall's tau; NaN where people rank all alike) and best, 1
        where the photograph that is predicted to be the best is people's best, 0 elsewhere; where several
        are, the share of them.
    """
    names, groups = np.unique(np.asarray(series), return_inverse=True)
    found = np.full((len(names), 2), np.nan)
    for group in range(len(names)):
        rows = np.flatnonzero(groups == group)
        photographs, places = np.unique(pairs[rows], return_inverse=True)
        places = places.reshape(-1, 2)
        ours, theirs = (
            bradley_terry(len(photographs), places, values[rows]).round(9)
            for values in (probability, preference)
        )
        if theirs.max() > theirs.min():
            found[group] = (
                stats.kendalltau(ours, theirs).statistic if ours.max() > ours.min() else 0.0,
                (theirs[ours == ours.max()] == theirs.max()).mean(),
            )
    return {"krcc": found[:, 0], "best": found[:, 1]}


# ---- Baselines, from the labels at hand --------------------------------------------------------------------


def majority_accuracy(high: ArrayLike) -> float:
    """Accuracy of always saying the commoner of high and low; high: (n,), 0 or 1."""
    share = _mean("majority accuracy", _labels(high))
    return max(share, 1 - share)


def emotion_prior(votes: ArrayLike) -> np.ndarray:
    """The constant prediction: the mean vote shares (E,) of votes (n, E), shares or counts."""
    return _shares(votes).mean(axis=0)


def positive_emotion_accuracy(emotions: ArrayLike, high: ArrayLike, classes: Sequence[str]) -> float:
    """Accuracy of the rule "a picture with a positive emotion is a high one", a reference for IAE.

    Args:
        emotions: (n, E), votes, one-hot labels or predicted probabilities; positive is more for the positive
            than for the negative ones, and neutral counts for neither.
        high: (n,), 0 or 1.
        classes: E names, in the order of the columns.
    """
    high, emotions = _labels(high), _shares(emotions)
    _same_count(emotions, high, "emotions", "high/low labels")
    positive = np.isin(classes, POSITIVE_EMOTIONS)  # (E,)
    if len(classes) != emotions.shape[1] or not positive.any():
        raise ValueError(
            f"metrics: the positive-emotion rule needs {emotions.shape[1]} class names, some of them among "
            f"{', '.join(POSITIVE_EMOTIONS)}; got {', '.join(classes)}."
        )
    negative = ~positive & ~np.isin(classes, ["neutral"])
    says_high = emotions[:, positive].sum(axis=1) > emotions[:, negative].sum(axis=1)  # (n,)
    return _mean("positive-emotion rule", says_high == high)


# ---- Intervals ---------------------------------------------------------------------------------------------


def bootstrap_intervals(
    function: Callable[..., dict[str, float]],
    arrays: tuple[ArrayLike, ...],
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over pictures of everything a function returns.

    The resamples depend on the seed and the number of pictures only. Two predictions are compared in pairs by
    a function of both: `lambda a, b, rated: {"srcc": srcc(a, rated) - srcc(b, rated)}`.
    All metrics of AVA's test set take about 15 s on one core, PARA's 2 s.

    Args:
        function: takes the arrays, returns a dict of numbers; called once a resample.
        arrays: each with the pictures as its n rows.
        level: share of the resamples inside the interval.
        groups: (n,) names; whole groups are drawn then, as pairs of one series are not independent.

    Returns:
        name -> (low, high), without NOT_ESTIMATED. Resamples where a metric is undefined are left out of
        its interval; with fewer than two pictures all are NaN, with a warning.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    count = _row_count(arrays)
    if repeats < 1 or not 0 < level < 1:
        raise ValueError(
            f"metrics: intervals need repeats >= 1 and a level between 0 and 1, got {repeats} and {level}."
        )
    random = np.random.default_rng(seed)
    members = _members(groups, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample has nothing to say that the whole set has not
        names = [name for name in function(*arrays) if name not in NOT_ESTIMATED]
        values = np.full((repeats, len(names)), np.nan)
        for row in values if len(members) > 1 else ():
            chosen = random.integers(len(members), size=len(members))  # (groups,), by themselves (n,)
            if groups is not None:
                chosen = np.concatenate([members[group] for group in chosen])
            found = function(*(array[chosen] for array in arrays))
            row[:] = [found.get(name, np.nan) for name in names]
        tail = (1 - level) / 2
        low, high = np.nanquantile(values, [tail, 1 - tail], axis=0)  # (names,) each
    if len(members) < 2:
        what = "picture(s)" if groups is None else "group(s)"
        _warn(f"intervals are undefined (NaN): {len(members)} {what} can't be resampled.")
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def _members(groups: ArrayLike | None, count: int) -> Sequence:
    """The rows of each group; of no groups `count` rows, each by itself."""
    if groups is None:
        return range(count)
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)  # (n,)
    if len(numbers) != count:
        raise ValueError(
            f"metrics: intervals need a group for each row, got {len(numbers)} for {count} rows."
        )
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _row_count(arrays: tuple[np.ndarray, ...]) -> int:
    counts = {len(array) if array.ndim else None for array in arrays}
    if len(counts) != 1 or None in counts:
        shapes = ", ".join(str(array.shape) for array in arrays) or "none"
        raise ValueError(f"metrics: intervals need arrays with one row per picture, got the shapes {shapes}.")
    return counts.pop()


# ---- Table -------------------------------------------------------------------------------------------------

TERMS = {
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
    "series": "series",
    "series_krcc": "KRCC within a series",
    "series_best": "best of a series found",
}


def table(
    metrics: dict[str, float], intervals: dict[str, tuple[float, float]] | None = None, level: float = 0.95
) -> str:
    """The metrics as aligned text, one a line, with the interval behind each that has one."""
    intervals = intervals or {}
    rows = [("", "", f"{100 * level:g} % interval")] if intervals else []
    for name, value in metrics.items():
        if name == "threshold":  # stands in the names of the accuracies
            continue
        number = f"{value:d}" if name in ("n", "pairs", "series") else f"{value:.4f}"
        low_high = "{:.4f} to {:.4f}".format(*intervals[name]) if name in intervals else ""
        rows.append((_term(name, metrics.get("threshold")), number, low_high))
    name_width, number_width = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return "\n".join(f"{a:<{name_width}}  {b:>{number_width}}  {c}".rstrip() for a, b, c in rows)


def _term(name: str, threshold: float | None) -> str:
    """The field's word for an entry."""
    if name in ("accuracy", "accuracy_inclusive") and threshold is not None:
        return f"accuracy ({'>=' if name.endswith('inclusive') else '>'} {threshold:g})"
    if name.startswith("accuracy_0."):
        low, high = name.removeprefix("accuracy_").split("_")
        return f"accuracy, {float(low):.0%} to {float(high):.0%} agree"
    if name.startswith("recall_"):
        return f"recall of {name.removeprefix('recall_')}"
    return TERMS.get(name, name)


# ---- Checks ------------------------------------------------------------------------------------------------


def _pair(predicted: ArrayLike, rated: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, rated = _finite(predicted, "predicted", 1), _finite(rated, "rated", 1)
    _same_count(predicted, rated, "predicted", "rated values")
    return predicted, rated


def _distribution_pair(predicted: ArrayLike, rated: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, rated = _distributions(predicted, "predicted"), _distributions(rated, "rated")
    _same_count(predicted, rated, "predicted", "rated distributions")
    if predicted.shape != rated.shape:
        raise ValueError(
            f"metrics: the prediction has {predicted.shape[1]} bins or classes, the ratings have "
            f"{rated.shape[1]}; map the one to the other first."
        )
    return predicted, rated


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


def _distributions(values: ArrayLike, name: str) -> np.ndarray:
    values = _finite(values, name, 2)
    total = values.sum(axis=1)  # (n,)
    bad = np.flatnonzero((values < 0).any(axis=1) | (np.abs(total - 1) > ROW_SUM_TOLERANCE))
    if len(bad):
        raise ValueError(
            f"metrics: {len(bad)} of {len(values)} {name} rows are no distributions; row {bad[0]}, counted "
            f"from 0, has the sum {total[bad[0]]:g} and the minimum {values[bad[0]].min():g}. "
            "Divide counts by their sum."
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


def _labels(high: ArrayLike) -> np.ndarray:
    high = _finite(high, "high/low", 1)
    other = high[(high != 0) & (high != 1)]
    if len(other):
        raise ValueError(
            f"metrics: {len(other)} of {len(high)} high/low labels are neither 0 nor 1 (the first is "
            f"{other[0]:g}). Compare the scores with the threshold first."
        )
    return high


def _same_count(first: ArrayLike, second: ArrayLike, name: str, other_name: str) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"metrics: {len(first)} {name} against {len(second)} {other_name}; both need one row per "
            "picture, in the same order."
        )


def _undefined(metric: str, predicted: np.ndarray, rated: np.ndarray) -> bool:
    """Whether a correlation does not exist here; says so."""
    if len(predicted) < 2:
        _warn(f"{metric} is undefined (NaN): it needs two pictures, here is {len(predicted)}.")
        return True
    for name, values in (("predicted", predicted), ("rated", rated)):
        # Equal distributions can have means that differ in the last bit, which would be ranked.
        if np.ptp(values) <= ROUNDING * np.abs(values).max():
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
