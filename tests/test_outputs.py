"""What a prediction means: Scale reads distributions, scores and labels in the unit that people rated in."""

import json

import numpy as np
import pytest
import torch

from eamb.network.outputs import Scale

TEN_BINS = Scale("distribution", 1, 10, 5, bins=tuple(float(i) for i in range(1, 11)))
PARA = Scale("score", 1, 5, 3, offset=1, factor=4)
LABEL = Scale("label", 0, 1, 0.5)


def test_a_distribution_is_read_by_its_mean_and_deviation():
    half = np.zeros((2, 10))
    half[0, [0, 9]] = 0.5  # ratings 1 and 10
    half[1, 6] = 1  # all on rating 7
    np.testing.assert_allclose(TEN_BINS.value(half), [5.5, 7])
    np.testing.assert_allclose(TEN_BINS.deviation(half), [4.5, 0])
    random = np.random.default_rng(0).dirichlet(np.ones(10), 20)
    ratings = np.arange(1, 11)
    expected = np.sqrt(random @ ratings**2 - (random @ ratings) ** 2)  # E[x^2] - E[x]^2
    np.testing.assert_allclose(TEN_BINS.deviation(random), expected)
    np.testing.assert_allclose(TEN_BINS.value(torch.from_numpy(random)), random @ ratings)
    uneven = Scale("distribution", 1, 5, 3, bins=(1.0, 2.5, 5.0))
    np.testing.assert_allclose(uneven.value(np.array([[0.2, 0.4, 0.4]])), [0.2 + 1.0 + 2.0])
    assert (TEN_BINS.outputs, uneven.outputs, PARA.outputs) == (10, 3, 1)


def test_a_score_is_1_plus_4p_and_back_and_a_label_its_own_probability():
    np.testing.assert_allclose(PARA.value(np.array([[0.0], [0.25], [1.0]])), [1, 2, 5])
    ratings = torch.tensor([1.0, 2.0, 3.5, 5.0])
    p = PARA.probability(ratings)
    torch.testing.assert_close(p, torch.tensor([0, 0.25, 0.625, 1]))
    distribution = Scale("distribution", 1, 5, 3, bins=(1.0, 3.0, 5.0))  # whose mean is learned as a score is
    torch.testing.assert_close(distribution.probability(ratings[:, None]), p[:, None])
    np.testing.assert_allclose(PARA.value(p[:, None].numpy()), ratings)
    assert np.isnan(PARA.deviation(np.zeros((3, 1)))).all()
    np.testing.assert_allclose(LABEL.value(np.array([[0.2], [0.7]])), [0.2, 0.7])
    assert LABEL.is_high(np.array([0.2, 0.7])).tolist() == [False, True]


def test_exactly_at_the_threshold_counts_only_where_it_is_inclusive():
    ratings = np.array([np.nextafter(3.0, 0), 3.0, np.nextafter(3.0, 4)])
    assert PARA.is_high(ratings).tolist() == [False, False, True]
    inclusive = Scale("score", 1, 5, 3, inclusive=True, offset=1, factor=4)
    assert inclusive.is_high(ratings).tolist() == [False, True, True]


def test_ratings_are_computed_in_float64():
    # 1 + 4p is 3 - 1.2e-7 here; rounded to float32 it would be 3.0 and count as high.
    p = np.nextafter(np.float32(0.5), np.float32(0))
    scale = Scale("score", 1, 5, 3, inclusive=True, offset=1, factor=4)
    assert scale.is_high(1 + 4 * np.array([p])).tolist() == [True]
    assert scale.is_high(scale.value(np.array([[p]]))).tolist() == [False]
    assert TEN_BINS.value(np.full((1, 10), 0.1, np.float32)).dtype == np.float64


@pytest.mark.parametrize("scale", [TEN_BINS, PARA, LABEL, Scale("score", 1, 7, 4, inclusive=True)])
def test_a_scale_survives_json(scale):
    assert Scale.from_dict(json.loads(json.dumps(scale.as_dict()))) == scale


@pytest.mark.parametrize(("kind", "bins"), [("stars", ()), ("distribution", ()), ("score", (1.0, 2.0))])
def test_impossible_scales_are_refused(kind, bins):
    with pytest.raises(ValueError, match=f"Scale: .* got {kind}, "):
        Scale(kind, 1, 5, 3, bins=bins)
