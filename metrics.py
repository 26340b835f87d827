"""Metrics of predictions: pure functions on arrays, all in float64.

Scores are in the unit of the data set. A metric that is undefined for its input (a correlation with a
constant) is NaN; wrong input (NaN, unequal lengths) is a `ValueError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

SMALLEST_PROBABILITY = 1e-12  # a softmax in float32 can give an exact 0, whose logarithm is infinite
RIDGE = 1e-3  # keeps strengths finite where all people agree; moves odds of 3 to 1 by some thousandths
# The names of metrics in reports, where they differ from those in the code.
TERMS = {name: name.upper() for name in ("srcc", "plcc", "krcc", "rmse", "mae", "auc", "kl")} | {
    "n": "pictures",
    "emd1": "EMD (r = 1)",
    "emd2": "EMD (r = 2)",
    "std_srcc": "SRCC of the spread",
    "std_mae": "MAE of the spread",
    "coverage_50": "votes in the central 50 %",
    "coverage_80": "votes in the central 80 %",
    "macro_f1": "macro F1",
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


def srcc(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Spearman's rank correlation of (n,) with (n,), in [-1, 1]; ties share their mean rank."""
    return _correlation(
        "SRCC", predicted, rated, lambda x, y: np.corrcoef(stats.rankdata([x, y], axis=1))[0, 1]
    )


def plcc(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Pearson's linear correlation of (n,) with (n,), in [-1, 1]; no logistic curve is fitted first."""
    return _correlation("PLCC", predicted, rated, lambda x, y: np.corrcoef(x, y)[0, 1])


def krcc(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Kendall's rank correlation (tau-b, corrected for ties) of (n,) with (n,), in [-1, 1]."""
    return _correlation("KRCC", predicted, rated, lambda x, y: stats.kendalltau(x, y).statistic)


def _correlation(name: str, predicted: ArrayLike, rated: ArrayLike, function: Callable) -> float:
    predicted, rated = pair = _pair(predicted, rated)
    # Means of equal distributions can differ in the last bits; ranking those differences would be wrong.
    if len(rated) < 2 or any(np.ptp(values) <= 1e-13 * np.abs(values).max() for values in pair):
        problem = "is undefined (NaN): it needs two pictures, unequal predictions and unequal ratings"
        warnings.warn(f"metrics: {name} {problem}.", stacklevel=3)
        return np.nan
    return float(function(predicted, rated))


def rmse(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Root of the mean squared error, in the unit of the scores."""
    predicted, rated = _pair(predicted, rated)
    return float(np.sqrt(((predicted - rated) ** 2).mean()))


def mae(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Mean absolute error, in the unit of the scores."""
    predicted, rated = _pair(predicted, rated)
    return float(np.abs(predicted - rated).mean())


def accuracy(predicted: ArrayLike, rated: ArrayLike, threshold: float, inclusive: bool = False) -> float:
    """Share of pictures whose prediction and rating (n,), in one unit, lie on the same side of the threshold.

    `inclusive`: a score at the threshold counts as high too.
    """
    # Thresholds compare exact means: float32(3.0 / 5) is above 0.6 and would flip 48 of PARA's 3,000 labels.
    predicted, rated = _pair(predicted, rated)
    high = np.greater_equal if inclusive else np.greater
    return float((high(predicted, threshold) == high(rated, threshold)).mean())


def auc(predicted: ArrayLike, high: ArrayLike) -> float:
    """Area under the ROC curve of predictions (n,) for labels (n,), 1 or True where the picture is high.

    How often a high picture is scored above a low one; ties count half.
    """
    predicted, high = _pair(predicted, high)
    highs = np.count_nonzero(high)
    lows = len(high) - highs
    if min(highs, lows) == 0:
        problem = f"it needs high and low pictures, here are {highs} and {lows}"
        warnings.warn(f"metrics: AUC is undefined (NaN): {problem}.", stacklevel=2)
        return np.nan
    rank_sum = stats.rankdata(predicted)[high != 0].sum()
    return float((rank_sum - highs * (highs + 1) / 2) / (highs * lows))


def emd(predicted: ArrayLike, rated: ArrayLike, r: float = 2) -> np.ndarray:
    """Earth mover's distance between rating distributions, `losses.emd` in float64: (n, K) twice -> (n,)."""
    return (_cumulative_gap(predicted, rated) ** r).mean(axis=1) ** (1 / r)


def _cumulative_gap(predicted: ArrayLike, rated: ArrayLike) -> np.ndarray:
    """(n, K), |P_k - Q_k| between cumulative distributions."""
    predicted, rated = _distributions(predicted, rated)
    return np.abs((predicted - rated).cumsum(axis=1))


def aesthetic_metrics(predicted: ArrayLike, rated: ArrayLike, threshold: float) -> dict[str, float]:
    """All figures that the field reports for predicted scores.

    Args:
        predicted, rated: (n,), in one unit; for high/low labels the probability of "high", and 0 or 1.
        threshold: above it a picture counts as high.

    Returns:
        n, srcc, plcc, krcc, rmse, mae, accuracy (high is > threshold), accuracy_inclusive (>= threshold),
        threshold; auc, if the ratings are labels (all 0 or 1, with the threshold between), whose rmse is the
        root of the Brier score.
    """
    predicted, rated = np.asarray(predicted), np.asarray(rated)
    values = {"n": rated.size}
    values |= {measure.__name__: measure(predicted, rated) for measure in (srcc, plcc, krcc, rmse, mae)}
    values["accuracy"] = accuracy(predicted, rated, threshold)
    values["accuracy_inclusive"] = accuracy(predicted, rated, threshold, inclusive=True)
    values["threshold"] = float(threshold)
    if len(rated) and 0 < threshold < 1 and ((rated == 0) | (rated == 1)).all():  # labels
        values["auc"] = auc(predicted, rated)
    return values


def compare_distributions(predicted: ArrayLike, rated: ArrayLike, ratings: Sequence[float]) -> np.ndarray:
    """What `distribution_metrics` needs to know of each picture: (n, 6), NaN where votes are unknown.

    The columns are EMD with r = 1 and r = 2, the predicted and the real spread, and the shares of votes in
    the central 50 % and 80 %.

    Args:
        predicted: (n, K), rows sum to 1.
        rated: (n, K), shares of the votes; a row of NaN is a picture whose votes are unknown.
        ratings: the K ratings, ascending.
    """
    predicted, rated = np.asarray(predicted, np.float64), np.asarray(rated, np.float64)
    compared = np.full((len(rated), 6), np.nan)
    known = ~np.isnan(rated).all(axis=-1)  # (n,)
    if predicted.shape == rated.shape:  # otherwise `_distributions` says what is wrong
        predicted, rated = predicted[known], rated[known]
    predicted, rated = _distributions(predicted, rated)
    columns = [emd(predicted, rated, 1), emd(predicted, rated, 2)]
    # Equal spreads may differ in the last bits, which must not be ranked.
    columns += [spread(shares, ratings).round(12) for shares in (predicted, rated)]
    columns += [central_share(predicted, rated, central) for central in (0.5, 0.8)]
    compared[known] = np.stack(columns, axis=1)
    return compared


def distribution_metrics(compared: np.ndarray) -> dict[str, float]:
    """All figures for predicted rating distributions, over the pictures that have votes; {} if none has.

    Args:
        compared: (n, 6), from `compare_distributions`.

    Returns:
        emd1 and emd2, means over the pictures; std_srcc and std_mae, of the standard deviation of each
        picture's ratings (`spread`); coverage_50 and coverage_80, means over the pictures of the share of
        votes in the central 50 % and 80 % (`central_share`): 0.5 and 0.8 if the predicted distributions are
        calibrated, more if they are too wide, less if they are too narrow or lie beside the votes.
    """
    compared = compared[~np.isnan(compared[:, 0])]
    if not len(compared):
        return {}
    emd1, emd2, _, _, half, four_fifths = compared.mean(axis=0).tolist()
    spreads = compared[:, 2], compared[:, 3]
    return {
        "emd1": emd1,
        "emd2": emd2,
        "std_srcc": srcc(*spreads),
        "std_mae": mae(*spreads),
        "coverage_50": half,
        "coverage_80": four_fifths,
    }


def spread(shares: ArrayLike, ratings: Sequence[float]) -> np.ndarray:
    """(n, K) shares of the K ratings -> (n,) standard deviations, in the unit of the ratings.

    That of the votes themselves (divided by their number, not by one less), as PARA gives it.
    """
    shares, ratings = np.asarray(shares, np.float64), np.asarray(ratings, np.float64)
    distance = ratings - (shares @ ratings)[:, None]  # (n, K)
    return np.sqrt((shares * distance**2).sum(axis=1))


def central_share(predicted: ArrayLike, rated: ArrayLike, central: float) -> np.ndarray:
    """The share of each picture's votes in the middle of its predicted distribution: (n, K) twice -> (n,).

    Ratings are few, so no interval of whole ratings holds just half of a distribution. Each rating stands for
    its bin, within which votes count as evenly spread: a vote for rating k lies anywhere from P_(k-1) to P_k,
    the predicted cumulative shares, and so much of it counts as lies between (1 - central) / 2 and
    (1 + central) / 2 (the uniform version of the probability integral transform, Czado et al. 2009). Votes
    drawn from the predicted distribution itself give `central`, however few the ratings.

    Args:
        predicted, rated: rows sum to 1. A rating predicted with a share of 0 is a single point, in or out.
        central: in (0, 1), 0.5 for the half between the quartiles.
    """
    predicted, rated = _distributions(predicted, rated)
    low, high = (1 - central) / 2, (1 + central) / 2
    above = predicted.cumsum(axis=1)  # (n, K), P_k
    below = above - predicted
    within = np.minimum(above, high) - np.maximum(below, low)  # (n, K), negative outside
    part = (within / np.maximum(predicted, SMALLEST_PROBABILITY)).clip(0, 1)
    point = (below > low) & (above < high)
    return (rated * np.where(predicted > SMALLEST_PROBABILITY, part, point)).sum(axis=1)


# ---- Emotions


def emotion_metrics(probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """All figures for predicted emotions.

    A class that was not offered for a picture is ignored there: the predictions of the other classes are
    divided by their sum, as if it had been left out of the softmax.

    Args:
        probabilities: (n, E), rows sum to 1.
        votes: (n, E), shares or counts, each row with at least one vote; NaN: a class that was not offered.
        classes: E names, in the order of the columns.

    Returns:
        n, accuracy (top-1, see `top_classes`), macro_f1 (over the classes that occur as truth or prediction),
        recall_<class> (NaN for a class without pictures; absent for a class that was never offered), kl (mean
        KL(votes || prediction) in nats), kl_prior (the same when the prediction is the mean vote of all
        pictures that were offered the same classes), kl_ratio (kl / kl_prior), cross_entropy (in nats),
        calibration_error (expected, 15 equal bins of the top probability), and the accuracies of always
        predicting the most frequent class (majority) and of guessing (chance).
    """
    probabilities, votes, offered = _offered_shares(probabilities, votes, classes)
    predicted, truth = top_classes(probabilities, votes)  # (n,) each
    correct = predicted == truth  # (n,)
    groups = (truth[correct], truth, predicted)
    hits, support, named = (np.bincount(numbers, minlength=len(classes)) for numbers in groups)  # (E,) each
    with np.errstate(invalid="ignore"):  # 0 / 0 for classes that do not occur
        recall, f1 = hits / support, 2 * hits / (support + named)  # (E,) each
    prior = np.empty_like(votes)  # (n, E), the same for all pictures that were offered the same classes
    patterns = offered @ (1 << np.arange(len(classes)))  # (n,) whole numbers
    for pattern in np.unique(patterns):
        prior[patterns == pattern] = votes[patterns == pattern].mean(axis=0)
    cross_entropy, entropy = _cross_entropy(votes, probabilities), _cross_entropy(votes, votes)
    kl, kl_prior = cross_entropy - entropy, _cross_entropy(votes, prior) - entropy
    kl_ratio = kl / kl_prior if kl_prior > 1e-12 else np.nan  # equal votes leave a rounding error, not 0
    return {
        "n": len(votes),
        "accuracy": float(correct.mean()),
        "macro_f1": float(np.nanmean(f1)),
        **{f"recall_{classes[k]}": float(recall[k]) for k in np.flatnonzero(offered.any(axis=0))},
        "kl": kl,
        "kl_prior": kl_prior,
        "kl_ratio": kl_ratio,
        "cross_entropy": cross_entropy,
        "calibration_error": _calibration_error(probabilities.max(axis=1), correct),
        "majority": float((votes == votes.max(axis=1, keepdims=True)).mean(axis=0).max()),
        "chance": float((1 / offered.sum(axis=1)).mean()),
    }


def _offered_shares(
    probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks the arguments of `emotion_metrics` and normalises each row over the classes offered there.

    Returns:
        Probabilities and vote shares (n, E), rows sum to 1, 0 where not offered; offered, (n, E) bool.
    """
    votes = np.asarray(votes, dtype=np.float64)
    offered = ~np.isnan(votes)
    probabilities, votes = _distributions(probabilities, _shares(np.where(offered, votes, 0.0)))
    if votes.shape[1] != len(classes) or not len(votes):
        raise ValueError(f"metrics: {len(classes)} classes need as many columns of votes, not {votes.shape}.")
    partly = ~offered.all(axis=1)  # (n,) pictures for which a class was not offered
    # The lower bound makes the offered classes equal where all of them are 0, instead of dividing by 0.
    rest = np.where(offered[partly], np.maximum(probabilities[partly], SMALLEST_PROBABILITY), 0.0)
    probabilities = probabilities.copy()
    probabilities[partly] = rest / rest.sum(axis=1, keepdims=True)
    return probabilities, votes, offered


def confusion_matrix(probabilities: ArrayLike, votes: ArrayLike, classes: Sequence[str]) -> np.ndarray:
    """(E, E) numbers of pictures, true class by predicted class; arguments as for `emotion_metrics`."""
    probabilities, votes, _ = _offered_shares(probabilities, votes, classes)
    predicted, truth = top_classes(probabilities, votes)  # (n,) each
    numbers = len(classes) * truth + predicted  # (n,), of the cells
    return np.bincount(numbers, minlength=len(classes) ** 2).reshape(len(classes), -1)


def top_classes(probabilities: np.ndarray, votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers predicted and true, (n,) each, from (n, E) each.

    The true class has the most votes; in a tie, it is the predicted class if that is one of them, else the
    first of them.
    """
    predicted = probabilities.argmax(axis=1)  # (n,)
    leads = votes[np.arange(len(votes)), predicted] == votes.max(axis=1)  # (n,)
    return predicted, np.where(leads, predicted, votes.argmax(axis=1))


def _cross_entropy(votes: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over pictures of -sum(votes * log(probabilities)), (n, E) each."""
    return float(-(votes * np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))).sum(axis=1).mean())


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence| per bin of confidence, weighted by pictures."""
    bins = np.minimum((15 * confidence).astype(int), 14)  # (n,)
    return float(np.abs(np.bincount(bins, weights=confidence - correct)).sum() / len(confidence))


def positive_emotion_accuracy(emotions: ArrayLike, high: ArrayLike, classes: Sequence[str]) -> float:
    """Accuracy of the rule "a picture with a positive emotion is a high one", a baseline for IAE.

    A picture is positive if the positive emotions have more of its votes or probabilities (n, E) than the
    negative ones; neutral counts for neither. `high` is (n,), 0 or 1.
    """
    emotions = _shares(emotions)  # (n, E)
    positive = np.isin(classes, ["amusement", "awe", "contentment", "excitement"])  # (E,), Mikels et al. 2005
    negative = ~positive & ~np.isin(classes, ["neutral"])
    says_high = emotions[:, positive].sum(axis=1) > emotions[:, negative].sum(axis=1)  # (n,)
    return float((says_high == np.asarray(high)).mean())


# ---- Pairs and series


def pair_probability(odds: ArrayLike, pairs: np.ndarray) -> np.ndarray:
    """P(the first of each pair is preferred), (m,) in [0, 1], for pairs (m, 2) of rows of the odds.

    The odds, in logarithms, are (n, 2) from a pair network, or (n, 1) from anything that scores photographs.
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
    _refuse(np.minimum(*both_sides) < 0, "pairs have a probability or preference that is not from 0 to 1")
    majority, decided = both_sides[0].max(axis=1), preference != 0.5  # (m,) each
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
    """Share of the decided pairs whose preferred photograph is predicted; probabilities of 0.5 count half."""
    right = np.where(probability == 0.5, 0.5, (probability > 0.5) == (preference > 0.5))  # (m,)
    return float(right[preference != 0.5].mean())


def bradley_terry(count: int, pairs: ArrayLike, preference: ArrayLike) -> np.ndarray:
    """Strengths (count,) of photographs, mean 0, from comparisons: P(a over b) = 1 / (1 + exp(s_b - s_a)).

    The maximum-likelihood fit (Bradley & Terry 1952) with a small ridge. `pairs` are (m, 2) photographs,
    `preference` (m,) is the share of people who prefer the first of each, in [0, 1].
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    strengths = _fit_odds(np.eye(count)[pairs[:, 0]] - np.eye(count)[pairs[:, 1]], preference)
    return strengths - strengths.mean()


def fit_steepness(differences: ArrayLike, preference: ArrayLike) -> float:
    """The factor that turns differences of scores (m,) into the log odds that fit preferences (m,) best.

    Finite even where the scores are always right, thanks to the ridge; below 0 where they are mostly wrong.
    """
    differences, preference = _pair(differences, preference)
    scale = float(np.abs(differences).max()) or 1.0
    return float(_fit_odds(differences[:, None] / scale, preference)[0]) / scale


def _fit_odds(features: np.ndarray, share: ArrayLike) -> np.ndarray:
    """The weights (k,) with which features (m, k) give the log odds of shares (m,): a logistic regression."""
    ridge, share = RIDGE * np.eye(features.shape[1]), np.asarray(share, np.float64)

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = features @ weights  # (m,)
        loss = (np.logaddexp(0, odds) - share * odds).sum() + weights @ ridge @ weights / 2
        return loss, features.T @ (special.expit(odds) - share) + ridge @ weights

    def hessian(weights: np.ndarray) -> np.ndarray:
        p = special.expit(features @ weights)  # (m,)
        return features.T @ (features * (p * (1 - p))[:, None]) + ridge

    options = {"method": "trust-exact", "jac": True, "hess": hessian, "tol": 1e-10}
    return optimize.minimize(loss_and_gradient, np.zeros(features.shape[1]), **options).x


def series_ranks(
    series: Sequence[str] | np.ndarray, pairs: np.ndarray, probability: np.ndarray, preference: np.ndarray
) -> dict[str, np.ndarray]:
    """How well each series is ranked; both rankings come from the same pairs (`bradley_terry`).

    Args:
        series: (m,) of each pair. pairs: (m, 2) photographs. probability, preference: (m,).

    Returns:
        For each series, (S,) in the order of the names: krcc (Kendall's tau), and best: of the photographs
        that the prediction ranks first, the share that people rank first. NaN where people rank all equal.
    """
    names, groups = np.unique(np.asarray(series), return_inverse=True)
    krcc, best = np.full(len(names), np.nan), np.full(len(names), np.nan)
    for group in range(len(names)):
        rows = groups == group
        photographs, places = np.unique(pairs[rows], return_inverse=True)
        fits = (bradley_terry(len(photographs), places, shares[rows]) for shares in (probability, preference))
        predicted, preferred = (strengths.round(9) for strengths in fits)
        if np.ptp(preferred) > 0:
            krcc[group] = stats.kendalltau(predicted, preferred).statistic if np.ptp(predicted) > 0 else 0.0
            best[group] = (preferred[predicted == predicted.max()] == preferred.max()).mean()
    return {"krcc": krcc, "best": best}


# ---- Checks


def _pair(predicted: ArrayLike, rated: ArrayLike, dimensions: int = 1) -> tuple[np.ndarray, np.ndarray]:
    predicted, rated = np.asarray(predicted, np.float64), np.asarray(rated, np.float64)
    if predicted.shape != rated.shape or rated.ndim != dimensions:
        raise ValueError(
            f"metrics: predictions {predicted.shape} do not fit ratings {rated.shape}; both need the shape "
            f"{('(n,)', '(n, K)')[dimensions - 1]}, one row per picture, in the same order."
        )
    _refuse(
        ~np.isfinite(predicted) | ~np.isfinite(rated), "rows hold NaN or infinity; leave these pictures out"
    )
    return predicted, rated


def _distributions(predicted: ArrayLike, rated: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, rated = _pair(predicted, rated, dimensions=2)
    for values in (predicted, rated):
        # Ten bins printed with four digits are off by up to 5e-4.
        bad = (values < 0).any(axis=1) | (np.abs(values.sum(axis=1) - 1) > 1e-3)  # (n,)
        _refuse(bad, "rows are no distributions, from 0 up with the sum 1; divide counts by their sum")
    return predicted, rated


def _shares(votes: ArrayLike) -> np.ndarray:
    """Votes (n, E) with every row divided by its sum."""
    votes = np.asarray(votes, np.float64)
    total = votes.sum(axis=1, keepdims=True)  # (n, 1)
    good = (votes >= 0) & (total > 0) & np.isfinite(total)  # (n, E)
    _refuse(~good, "vote rows have no votes, or negative or infinite ones; leave these pictures out")
    return votes / total


def _refuse(bad: np.ndarray, problem: str) -> None:
    """Raises a ValueError if any of (n,) or (n, K) is true."""
    if bad.any():
        rows = np.unique(np.nonzero(bad)[0])
        raise ValueError(
            f"metrics: {len(rows)} of {len(bad)} {problem} (first: row {rows[0]}, counted from 0)."
        )
