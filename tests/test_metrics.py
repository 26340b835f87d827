"""Metrics: closed forms, invariances, independent routes (brute force, scipy, scikit-learn), error texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from metrics import (
    accuracy,
    aesthetic_metrics,
    auc,
    bradley_terry,
    central_share,
    compare_distributions,
    confusion_matrix,
    distribution_metrics,
    emd,
    emotion_metrics,
    fit_steepness,
    krcc,
    mae,
    pair_metrics,
    plcc,
    positive_emotion_accuracy,
    rmse,
    series_ranks,
    spread,
    srcc,
    top_classes,
)

CLASSES = ("amusement", "awe", "fear")


def scores(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and rated (n,), with ties in both."""
    random = np.random.default_rng(seed)
    rated = random.integers(10, 50, count) / 10
    return np.round(rated + random.normal(0, 0.5, count), 1), rated


def random_distributions(count: int, bins: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(bins), count)


def brute_force_tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """From the definition, over all n^2 pairs."""
    x_order, y_order = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    return (x_order * y_order).sum() / np.sqrt((x_order**2).sum() * (y_order**2).sum())


of_any = settings(deadline=None, max_examples=40)
few_levels = arrays(np.float64, 12, elements=st.integers(0, 5).map(float)).filter(lambda x: np.ptp(x) > 0)


@of_any
@given(few_levels, few_levels)
def test_correlations_with_many_ties_agree_with_other_routes(predicted, rated):
    assert krcc(predicted, rated) == pytest.approx(brute_force_tau_b(predicted, rated), abs=1e-12)
    assert srcc(predicted, rated) == pytest.approx(stats.spearmanr(predicted, rated).statistic, abs=1e-12)
    assert plcc(predicted, rated) == pytest.approx(np.corrcoef(predicted, rated)[0, 1], abs=1e-12)


@pytest.mark.parametrize(("correlation", "name"), [(srcc, "SRCC"), (plcc, "PLCC"), (krcc, "KRCC")])
def test_a_constant_has_no_correlation_and_the_warning_names_it(correlation, name):
    predicted, rated = scores()
    almost = np.full(60, 5.1)
    almost[7] = np.nextafter(5.1, 6)  # a rounding error is no difference
    for x, y in ((np.full(60, 3.0), rated), (predicted, np.full(60, 4.0)), (almost, rated), ([1.0], [1.0])):
        with pytest.warns(UserWarning, match=rf"metrics: {name} is undefined \(NaN\): it needs two pictures"):
            assert np.isnan(correlation(x, y))


def test_errors_are_in_the_unit_of_the_scores():
    assert rmse([10, 20, 30], [13, 20, 26]) == pytest.approx(np.sqrt(25 / 3))
    assert mae([10, 20, 30], [13, 20, 26]) == pytest.approx(7 / 3)


def test_accuracy_at_the_threshold_itself_is_a_matter_of_the_rule():
    predicted, rated = [3.5, 3.5, 2.5, 3.0], [3.0, 4.0, 3.0, 2.9]
    assert accuracy(predicted, rated, 3) == 0.75  # 3.0 is low: only the first is wrong
    assert accuracy(predicted, rated, 3, inclusive=True) == 0.5  # 3.0 is high: the last two are wrong


def test_auc_agrees_with_scikit_learn_and_has_the_closed_form_of_a_coin():
    predicted, rated = scores()
    assert auc(predicted, rated > 3) == pytest.approx(roc_auc_score(rated > 3, predicted))
    assert auc(np.ones(60), rated > 3) == 0.5
    with pytest.warns(UserWarning, match=r"AUC is undefined \(NaN\): .* here are 60 and 0"):
        assert np.isnan(auc(predicted, np.ones(60)))


def test_emd1_is_the_transport_cost_in_bins():
    p, q = random_distributions(5), random_distributions(5, seed=1)
    costs = [stats.wasserstein_distance(range(10), range(10), a, b) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(emd(p, q, 1), np.divide(costs, 10))


def test_aesthetic_metrics_are_the_functions_of_the_same_names():
    predicted, rated = scores()
    expected = {"n": 60, "threshold": 3.0}
    expected |= {each.__name__: each(predicted, rated) for each in (srcc, plcc, krcc, rmse, mae)}
    expected |= {"accuracy": accuracy(predicted, rated, 3)}
    expected |= {"accuracy_inclusive": accuracy(predicted, rated, 3, inclusive=True)}
    assert aesthetic_metrics(predicted, rated, 3) == expected


def test_labels_get_an_auc_and_scores_do_not():
    predicted, rated = scores()
    found = aesthetic_metrics(predicted / 5, rated > 3, 0.5)
    assert found["auc"] == auc(predicted, rated > 3)
    assert found["accuracy"] == found["accuracy_inclusive"] == np.mean((predicted > 2.5) == (rated > 3))
    assert found["rmse"] ** 2 == pytest.approx(np.mean((predicted / 5 - (rated > 3)) ** 2))
    assert "auc" not in aesthetic_metrics(predicted, rated, 3)
    assert "auc" not in aesthetic_metrics(predicted, rated > 3, 3)  # ratings that all are 0 or 1 of 5


# ---- distributions


def of_distributions(predicted, rated, ratings) -> dict[str, float]:
    return distribution_metrics(compare_distributions(predicted, rated, ratings))


def test_spread_is_the_standard_deviation_of_the_single_votes():
    counts = np.random.default_rng(0).integers(1, 9, (5, 4))
    ratings = np.array([1.0, 1.5, 2.0, 5.0])
    single = [np.repeat(ratings, row).std() for row in counts]
    assert spread(counts / counts.sum(1, keepdims=True), ratings) == pytest.approx(single)
    assert spread([[0, 1, 0, 0], [0.5, 0, 0, 0.5]], ratings).tolist() == [0, 2]


BARS = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0], [0, 0.5, 0, 0.5]])
# How much of a vote for each rating lies in the central half, from .25 to .75 of the cumulative shares.
CENTRAL_HALF = np.array([[0, 1, 1, 0], [0, 0.25, 1, 0.375], [0, 0.5, 0, 0], [0, 0.5, 1, 0.5]])


def test_central_share_by_hand():
    for rating, vote in enumerate(np.eye(4)):
        shares = central_share(BARS, np.tile(vote, (4, 1)), 0.5)
        assert shares == pytest.approx(CENTRAL_HALF[:, rating]), rating
    assert central_share([[0.25] * 4], [[0.1, 0.2, 0.3, 0.4]], 0.8) == pytest.approx(0.5 * 0.6 + 0.5)


@of_any
@given(arrays(np.float64, (3, 5), elements=st.floats(0, 1)), st.floats(0.01, 0.99))
def test_votes_that_are_as_predicted_have_the_central_share_asked_for(values, central):
    shares = (values + 1e-3) / (values + 1e-3).sum(1, keepdims=True)
    assert central_share(shares, shares, central) == pytest.approx(central, abs=1e-9)


def test_calibrated_too_wide_and_too_narrow_predictions_differ_in_their_central_shares():
    random, ratings = np.random.default_rng(0), np.arange(1.0, 6.0, 0.5)[:9]
    middle = random.uniform(2.5, 3.5, (4000, 1))
    bells = {sd: np.exp(-(((ratings - middle) / sd) ** 2) / 2) for sd in (0.4, 0.7, 1.1)}
    predicted = {sd: bell / bell.sum(1, keepdims=True) for sd, bell in bells.items()}
    votes = random.multinomial(25, predicted[0.7]) / 25
    narrow, right, wide = (of_distributions(shares, votes, ratings) for shares in predicted.values())
    for name, central in (("coverage_50", 0.5), ("coverage_80", 0.8)):
        assert right[name] == pytest.approx(central, abs=0.005)
        assert narrow[name] + 0.1 < central < wide[name] - 0.1
    assert right["std_mae"] < min(narrow["std_mae"], wide["std_mae"])
    assert right["emd2"] < min(narrow["emd2"], wide["emd2"])


def test_distribution_metrics_are_means_over_the_pictures_that_have_votes():
    p, q, ratings = random_distributions(60), random_distributions(60, seed=1), np.arange(1.0, 11)
    expected = {"emd1": emd(p, q, 1).mean(), "emd2": emd(p, q, 2).mean()}
    expected |= {"std_srcc": srcc(spread(p, ratings), spread(q, ratings))}
    expected |= {"std_mae": mae(spread(p, ratings), spread(q, ratings))}
    expected |= {f"coverage_{c}": central_share(p, q, c / 100).mean() for c in (50, 80)}
    assert of_distributions(p, q, ratings) == pytest.approx(expected)
    unknown = np.full((25, 10), np.nan)
    both = np.concatenate([p, random_distributions(25, seed=2)]), np.concatenate([q, unknown])
    assert of_distributions(*both, ratings) == of_distributions(p, q, ratings)
    assert of_distributions(p[:25], unknown, ratings) == {}
    q[3, 4] = np.nan  # of a row with numbers
    with pytest.raises(ValueError, match=r"1 of 60 rows hold NaN .* \(first: row 3"):
        compare_distributions(p, q, ratings)
    with pytest.raises(ValueError, match=r"do not fit ratings \(60, 10\)"):
        compare_distributions(p[:9], q, ratings)


def test_pictures_whose_votes_are_mirrored_or_shifted_disagree_equally():
    q, p = np.zeros((4, 9)), np.zeros((4, 9))
    q[0, :4] = q[1, 5:] = q[2, 3::-1] = np.array([8, 6, 5, 2]) / 21  # whose spreads differ by rounding
    q[3, [0, 8]] = 0.5
    for row, distance in enumerate((1, 2, 3, 4)):
        p[row, [0, distance]] = 0.5
    ties = stats.spearmanr([1, 2, 3, 4], [1, 1, 1, 2]).statistic
    assert of_distributions(p, q, np.arange(1, 5.5, 0.5))["std_srcc"] == pytest.approx(ties)


# ---- emotions


def emotions(count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probabilities and vote counts (n, 3), some of the counts tied."""
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(3), count), random.multinomial(7, [0.5, 0.3, 0.2], count)


def test_emotion_metrics_by_hand():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]])
    votes = np.array([[3, 0, 0], [0, 2, 0], [0, 4, 0], [1, 1, 0]])
    found = emotion_metrics(probabilities, votes, CLASSES)
    # Predicted 0 1 2 1, true 0 1 1 and 0 or 1: the last is right, and counted as 1.
    entropy = np.log(2) / 4  # of the last picture; the others are certain
    cross_entropy = -(np.log(0.8) + np.log(0.5) + np.log(0.2) + (np.log(0.3) + np.log(0.4)) / 2) / 4
    prior = -(1.5 * np.log(3 / 8) + 2.5 * np.log(5 / 8)) / 4
    expected = {"n": 4, "accuracy": 3 / 4, "macro_f1": (1 + 2 * 2 / (3 + 2) + 0) / 3}
    expected |= {"recall_amusement": 1, "recall_awe": 2 / 3, "recall_fear": np.nan}
    expected |= {"kl": cross_entropy - entropy, "kl_prior": prior - entropy, "cross_entropy": cross_entropy}
    expected["kl_ratio"] = (cross_entropy - entropy) / (prior - entropy)
    expected["calibration_error"] = (0.2 + 0.5 + 0.6 + 0.6) / 4  # a bin for each picture
    expected |= {"majority": 3 / 4, "chance": 1 / 3}  # always awe
    assert found == pytest.approx(expected, nan_ok=True)


def test_emotion_metrics_agree_with_other_routes():
    probabilities, votes = emotions()
    predicted, truth = top_classes(probabilities, votes)
    shares = votes / votes.sum(1, keepdims=True)
    found = emotion_metrics(probabilities, votes, CLASSES)
    assert emotion_metrics(probabilities, shares, CLASSES) == pytest.approx(found)
    assert found["accuracy"] == np.mean(truth == predicted)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    recalls = [found[f"recall_{name}"] for name in CLASSES]
    assert recalls == pytest.approx(list(recall_score(truth, predicted, average=None)))
    assert found["kl"] == pytest.approx(stats.entropy(shares, probabilities, axis=1).mean())
    assert found["kl_prior"] == pytest.approx(stats.entropy(shares, shares.mean(0), axis=1).mean())


def test_the_prior_has_a_kl_ratio_of_one_and_the_votes_of_zero():
    votes = emotions()[1]
    shares = votes / votes.sum(1, keepdims=True)
    assert emotion_metrics(np.tile(shares.mean(0), (200, 1)), votes, CLASSES)["kl_ratio"] == pytest.approx(1)
    assert emotion_metrics(shares, votes, CLASSES)["kl"] == 0
    equal = emotion_metrics(emotions(20)[0], np.tile([3, 3, 4], (20, 1)), CLASSES)
    assert np.isnan(equal["kl_ratio"])  # the prior itself is exact


def test_a_class_that_no_picture_was_offered_leaves_no_trace():
    probabilities, votes = emotions()
    with_fourth = np.hstack([0.7 * probabilities, np.full((200, 1), 0.3)])
    absent = np.hstack([votes, np.full((200, 1), np.nan)])
    found = emotion_metrics(with_fourth, absent, (*CLASSES, "anger"))
    expected = emotion_metrics(probabilities, votes, CLASSES)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)
    assert confusion_matrix(with_fourth, absent, (*CLASSES, "anger"))[:, 3].sum() == 0
    nothing_left = emotion_metrics([[0.0, 0.0, 1.0]], [[1.0, 0.0, np.nan]], CLASSES)
    assert nothing_left["cross_entropy"] == pytest.approx(np.log(2))  # the offered ones are equal


def test_pictures_of_two_sets_are_measured_each_among_its_own_classes():
    probabilities, votes = emotions()
    votes = votes.astype(float)
    votes[:80, 0], votes[80:, 2] = np.nan, np.nan  # two sets, each without one of the classes
    votes[:, 1] += 1  # every picture keeps a vote
    found = emotion_metrics(probabilities, votes, CLASSES)
    parts = [emotion_metrics(probabilities[r], votes[r], CLASSES) for r in (slice(80), slice(80, None))]
    for name in ("accuracy", "kl", "kl_prior", "cross_entropy", "chance"):
        assert found[name] == pytest.approx((80 * parts[0][name] + 120 * parts[1][name]) / 200)
    assert found["chance"] == 0.5
    assert "recall_fear" not in parts[1]


def test_the_confusion_matrix_counts_true_by_predicted():
    probabilities, votes = emotions()
    counts = confusion_matrix(probabilities, votes, CLASSES)
    assert counts.sum() == 200
    assert np.trace(counts) / 200 == emotion_metrics(probabilities, votes, CLASSES)["accuracy"]
    one = confusion_matrix([[0.1, 0.2, 0.7]], [[3, 1, 0]], CLASSES)  # true amusement, predicted fear
    assert one.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    predicted, truth = top_classes(np.eye(3), np.tile([2, 2, 1], (3, 1)))  # each leading class is right
    assert (predicted.tolist(), truth.tolist()) == ([0, 1, 2], [0, 1, 0])


def test_calibration_error_is_the_weighted_gap_over_bins():
    # Votes drawn from the probabilities: confidence is too high in some bins and too low in others.
    probabilities = emotions()[0]
    votes = np.random.default_rng(1).multinomial(1, probabilities)
    predicted, truth = top_classes(probabilities, votes)
    confidence, expected = probabilities.max(1), 0
    gap = (confidence - (predicted == truth)) / len(votes)
    for low in np.arange(15) / 15:
        expected += abs(gap[(confidence >= low) & (confidence < low + 1 / 15)].sum())
    assert emotion_metrics(probabilities, votes, CLASSES)["calibration_error"] == pytest.approx(expected)
    wrong = emotion_metrics(np.eye(3), np.eye(3)[[1, 2, 0]], CLASSES)  # certainty
    assert np.isfinite(wrong["kl"])


def test_positive_emotion_rule_counts_all_positive_against_all_negative():
    classes = ("fear", "awe", "neutral", "amusement", "anger")
    votes = [[2, 0, 0, 0, 0], [3, 2, 0, 2, 0], [0, 1, 9, 0, 0], [0, 0, 9, 0, 1], [0, 1, 0, 0, 1]]
    # low, high, high, low, and a tie, which is low
    assert positive_emotion_accuracy(votes, [0, 1, 1, 0, 0], classes) == 1
    assert positive_emotion_accuracy(votes, [1, 0, 0, 1, 1], classes) == 0


# ---- pairs and series


def shares(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, 0.95, count)


def test_pairs_by_hand():
    found = pair_metrics([0.9, 0.2, 0.5, 0.7, 0.6], [0.7, 0.4, 0.8, 0.1, 0.5])
    # right, right, half right, wrong; the fifth pair is undecided and is not asked.
    assert (found["pairs"], found["accuracy"]) == (5, 2.5 / 4)
    assert found["accuracy_0.50_0.60"] == 1.0  # 0.4: six of ten agree
    assert found["accuracy_0.60_0.75"] == 1.0
    assert found["accuracy_0.75_0.90"] == 0.25  # 0.8 half right, 0.1 wrong
    assert "accuracy_0.90_1.00" not in found
    assert found["agreement"] == pytest.approx(np.mean([0.7, 0.6, 0.8, 0.9, 0.5]))
    losses = [-p * np.log(q) - (1 - p) * np.log(1 - q) for q, p in [(0.9, 0.7), (0.2, 0.4), (0.5, 0.8)]]
    losses += [-0.1 * np.log(0.7) - 0.9 * np.log(0.3), -0.5 * np.log(0.6) - 0.5 * np.log(0.4)]
    assert found["log_loss"] == pytest.approx(np.mean(losses))


def test_pairs_agree_with_scikit_learn_whatever_their_order_and_sides():
    predicted, preferred = shares(300, 0), shares(300, 1)
    found = pair_metrics(predicted, preferred)
    assert found["auc"] == pytest.approx(roc_auc_score(preferred > 0.5, predicted))
    assert pair_metrics(predicted[::-1], preferred[::-1]) == pytest.approx(found)
    turned = pair_metrics(1 - predicted, 1 - preferred)
    for name in ("accuracy", "auc", "log_loss", "agreement"):
        assert turned[name] == pytest.approx(found[name])
    assert pair_metrics(preferred, preferred)["calibration_error"] == 0
    assert pair_metrics(preferred * 0, preferred)["calibration_error"] == pytest.approx(preferred.mean())


def test_strengths_are_found_again_whatever_the_order_and_the_side_of_the_pairs():
    strengths = np.random.default_rng(0).normal(size=6)
    strengths -= strengths.mean()
    pairs = np.array([(a, b) for a in range(6) for b in range(a)])
    share = 1 / (1 + np.exp(strengths[pairs[:, 1]] - strengths[pairs[:, 0]]))
    found = bradley_terry(6, pairs, share)
    np.testing.assert_allclose(found, strengths, atol=0.02)
    np.testing.assert_allclose(bradley_terry(6, pairs[:, ::-1], 1 - share), found, atol=1e-6)
    order = np.random.default_rng(1).permutation(len(pairs))
    np.testing.assert_allclose(bradley_terry(6, pairs[order], share[order]), found, atol=1e-6)


def test_strengths_stay_finite_where_everybody_agrees_and_rank_a_circle_equal():
    sure = bradley_terry(4, [[0, 1], [1, 2], [2, 3]], [1.0, 1.0, 1.0])
    assert np.isfinite(sure).all()
    assert (np.diff(sure) < 0).all()
    np.testing.assert_allclose(bradley_terry(3, [[0, 1], [1, 2], [2, 0]], [0.9, 0.9, 0.9]), 0, atol=1e-6)
    assert bradley_terry(1, [], []).tolist() == [0.0]
    first, second = bradley_terry(2, [[0, 1]], [0.75])
    assert first - second == pytest.approx(np.log(3), abs=0.02)  # the ridge pulls a little


def test_each_series_is_ranked_by_itself():
    series = ["a"] * 3 + ["b"] * 3 + ["c"]
    pairs = np.array([(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (6, 7)])
    preferred = np.array([0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.5])  # 0 > 1 > 2, 5 > 4 > 3, all alike
    turned = np.array([0.2, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])  # 1 > 0 > 2, 3 > 4 > 5
    even = np.full(7, 0.5)  # of several photographs predicted best the share that are counts
    cases = ((preferred, [1, 1], [1, 1]), (turned, [1 / 3, -1], [0, 0]), (even, [0, 0], [1 / 3, 1 / 3]))
    for predicted, krcc_of, best in cases:
        found = series_ranks(series, pairs, predicted, preferred)
        np.testing.assert_allclose(found["krcc"], [*krcc_of, np.nan])
        np.testing.assert_allclose(found["best"], [*best, np.nan])


def test_the_fitted_steepness_is_the_one_that_made_the_preferences():
    differences = np.random.default_rng(0).normal(size=400)
    share = 1 / (1 + np.exp(-1.7 * differences))
    assert fit_steepness(differences, share) == pytest.approx(1.7, abs=1e-3)
    assert fit_steepness(differences, 1 - share) == pytest.approx(-1.7, abs=1e-3)
    assert 0 < fit_steepness([0.01, 0.5], [1.0, 1.0]) < 50  # always right: steep, not infinite
    assert fit_steepness(100 * differences, share) == pytest.approx(0.017, rel=1e-2)
    assert np.isfinite(fit_steepness([0.0, 0.0], [1.0, 0.0]))


# ---- what is refused


PREDICTED, RATED = scores()
SHARES, (PROBABILITIES, VOTES) = random_distributions(60), emotions(4)
BAD = np.where(np.isin(np.arange(60), (5, 9)), np.nan, PREDICTED)
WRONG = [*VOTES[:2], [0, 0, 0], [-1, 1, 1]]
REFUSED = {
    r"2 of 60 rows hold NaN or infinity; .* \(first: row 5,": (srcc, BAD, RATED),
    r"\(60,\) do not fit ratings \(59,\)": (rmse, PREDICTED, RATED[1:]),
    r"\(60, 1\) do not fit .* the shape \(n,\)": (krcc, PREDICTED[:, None], RATED),
    r"\(60, 10\) do not fit ratings \(60, 9\)": (emd, SHARES, random_distributions(60, 9)),
    "1 of 2 rows are no distributions.*divide.*row 1": (emd, [[1, 0]] * 2, [[0.5, 0.5], [2, 3]]),
    r"2 classes need as many columns of votes, not \(4, 3\)": (
        emotion_metrics,
        PROBABILITIES,
        VOTES,
        CLASSES[:2],
    ),
    r"columns of votes, not \(0, 3\)": (emotion_metrics, np.zeros((0, 3)), np.zeros((0, 3)), CLASSES),
    "2 of 4 vote rows have no votes, or negative.*row 2": (emotion_metrics, PROBABILITIES, WRONG, CLASSES),
    "not from 0 to 1": (pair_metrics, [0.5, 0.5], [0.5, 1.2]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_measured_is_refused_by_count_row_and_remedy(message):
    function, *arguments = REFUSED[message]
    with pytest.raises(ValueError, match=f"^metrics: .*{message}"):
        function(*arguments)
