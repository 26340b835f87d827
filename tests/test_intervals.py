"""Bootstrap intervals: normal theory, pairs and groups that stay together, what is undefined."""

import warnings

import numpy as np
import pytest

from eamb.evaluation.intervals import bootstrap_intervals
from metrics import aesthetic_metrics, compare_distributions, distribution_metrics, srcc

RANDOM = np.random.default_rng(0)
RATED = RANDOM.integers(10, 50, 60) / 10
PREDICTED = np.round(RATED + RANDOM.normal(0, 0.5, 60), 1)


def mean(values):
    return {"mean": float(values.mean())}


def test_interval_of_a_mean_is_that_of_normal_theory():
    values = np.random.default_rng(0).normal(5, 2, 500)
    half = 1.96 * values.std() / np.sqrt(500)
    interval = bootstrap_intervals(mean, (values,), repeats=4000)["mean"]
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def test_intervals_of_all_metrics_hold_them_and_are_the_same_for_the_same_seed():
    p, q = (np.random.default_rng(seed).dirichlet(np.ones(10), 60) for seed in (0, 1))
    arrays = (PREDICTED, RATED, compare_distributions(p, q, range(1, 11)))

    def figures(a, b, c):
        return aesthetic_metrics(a, b, 3.05) | distribution_metrics(c)

    values = figures(*arrays)
    intervals = bootstrap_intervals(figures, arrays, repeats=60)
    assert set(intervals) == set(values) - {"n", "threshold"}
    assert all(low < values[name] < high for name, (low, high) in intervals.items())
    assert intervals == bootstrap_intervals(figures, arrays, repeats=60)
    assert intervals != bootstrap_intervals(figures, arrays, repeats=60, seed=1)


def test_resamples_without_any_votes_are_left_out():
    p, q = np.full((40, 2), 0.5), np.full((40, 2), np.nan)
    q[0] = 1, 0  # about a third of the resamples lack it
    compared = compare_distributions(p, q, (1, 2))
    intervals = bootstrap_intervals(distribution_metrics, (compared,), repeats=50)
    assert intervals["coverage_50"] == (0.5, 0.5) and intervals["emd1"] == (0.25, 0.25)
    assert np.isnan(intervals["std_srcc"]).all()


def test_rows_stay_together_so_that_differences_are_paired():
    def difference(a, b, truth):
        return {"srcc": srcc(a, truth) - srcc(b, truth)}

    # A monotone curve does not change the ranks, in any resample of the same pictures.
    arrays = (PREDICTED, np.exp(PREDICTED), RATED)
    assert bootstrap_intervals(difference, arrays, 50)["srcc"] == (0, 0)


def test_groups_stay_together():
    values = np.repeat([0.0, 1.0], 50)
    alone = bootstrap_intervals(mean, (values,), 400)["mean"]
    together = bootstrap_intervals(mean, (values,), 400, groups=np.repeat(["a", "b"], 50))["mean"]
    assert together == (0.0, 1.0)  # of two groups one is drawn twice in half of the resamples
    assert 0.35 < alone[0] < alone[1] < 0.65
    each = bootstrap_intervals(mean, (values,), 50, groups=np.arange(100))["mean"]
    assert each == bootstrap_intervals(mean, (values,), 50)["mean"]


def test_resamples_warn_of_nothing_and_leave_out_what_is_undefined():
    # One of five pictures differs: a third of the resamples are constant.
    predicted, rated = np.array([1.0, 1, 1, 1, 2]), np.array([1.0, 2, 3, 4, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_intervals(lambda p, r: {"srcc": srcc(p, r)}, (predicted, rated), 200)["srcc"]
    assert 0 < low < high <= 1


@pytest.mark.parametrize("values, groups", [(np.ones(1), None), (np.ones(9), np.zeros(9))])
def test_one_picture_and_one_group_have_no_interval(values, groups):
    with pytest.warns(UserWarning, match="one picture or group can't be resampled"):
        assert np.isnan(bootstrap_intervals(mean, (values,), 10, groups=groups)["mean"]).all()


@pytest.mark.parametrize("lengths, groups", [((3, 4), None), ((), None), ((9,), [1, 2, 3])])
def test_what_cannot_be_resampled_is_refused(lengths, groups):
    with pytest.raises(ValueError, match="metrics: intervals need one row per picture"):
        bootstrap_intervals(lambda *a: {}, tuple(map(np.ones, lengths)), groups=groups)
