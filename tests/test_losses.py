"""Losses: closed forms, gradients where they could break, and that half precision changes nothing."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

import metrics
from losses import (
    class_shift,
    correlation_loss,
    emd,
    emd_loss,
    emotion_loss,
    expected_rating,
    label_loss,
    pair_loss,
    score_loss,
)


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


def random_distributions(count: int, bins: int = 10, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(count, bins, generator=generator), dim=1)


def spike(rating: int, bins: int = 10) -> torch.Tensor:
    """All votes on one rating, counted from 1; (1, K)."""
    return functional.one_hot(torch.tensor([rating - 1]), bins).float()


def gradient(loss, values: torch.Tensor) -> torch.Tensor:
    leaf = values.clone().requires_grad_()
    loss(leaf).backward()
    return leaf.grad


@pytest.mark.parametrize("r", [1, 1.5, 2, 3])
def test_emd_is_the_one_that_metrics_reports_however_the_batch_is_cut(r):
    p, q = random_distributions(24), random_distributions(24, seed=1)
    expected = metrics.emd(p.numpy(), q.numpy(), r)
    np.testing.assert_allclose(emd(p, q, r), expected, atol=1e-6)
    parts = [emd(a, b, r) for a, b in zip(p.split(7), q.split(7), strict=True)]
    np.testing.assert_allclose(torch.cat(parts), expected, atol=1e-6)
    # The cumulative distributions of two spikes differ by 1 in as many bins as the spikes are apart.
    assert emd(spike(2), spike(9), r).item() == pytest.approx((7 / 10) ** (1 / r), abs=1e-6)


@pytest.mark.parametrize("r", [1, 1.5, 2, 3])
def test_the_slope_of_emd_is_that_of_finite_differences_and_0_for_equal_distributions(r):
    # Through a softmax, as in the network: the last gap is 0 for all distributions, a kink no step may leave.
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    q = torch.softmax(torch.randn(3, 5, dtype=torch.float64), dim=1)
    assert torch.autograd.gradcheck(lambda x: emd(torch.softmax(x, dim=1), q, r), logits)
    p = random_distributions(6)
    for reduction in ("image", "batch"):
        assert emd_loss(p, p, r, reduction).item() == 0
        assert not gradient(lambda x, reduction=reduction: emd_loss(x, p, r, reduction), p).any()


def test_a_tiny_distance_is_not_lost_in_an_epsilon():
    p = spike(5).double()
    q = p.clone()
    q[0, 4:6] += torch.tensor([-1e-9, 1e-9])
    assert emd(p, q).item() == pytest.approx(1e-9 / 10**0.5, rel=1e-6)


def test_reduction_image_is_the_mean_of_roots_and_batch_the_root_of_the_mean():
    # One image is right, the other is off by one bin of ten: gaps of 0 and 1/10 under the root.
    p, q = torch.cat([spike(3), spike(7)]), torch.cat([spike(3), spike(8)])
    assert emd_loss(p, q).item() == pytest.approx((0 + 0.1**0.5) / 2)
    assert emd_loss(p, q, reduction="batch").item() == pytest.approx(((0 + 0.1) / 2) ** 0.5)


@pytest.mark.parametrize("reduction", ["image", "batch"])
def test_a_picture_without_votes_has_no_part_in_emd(reduction):
    p, q = random_distributions(6), random_distributions(6, seed=1)
    voted = torch.tensor([True, False, False, True, True, False])
    partly = torch.where(voted[:, None], q, torch.nan)
    torch.testing.assert_close(emd_loss(p, partly, 2, reduction), emd_loss(p[voted], q[voted], 2, reduction))
    slope = gradient(lambda x: emd_loss(x, partly, 2, reduction), p)
    expected = gradient(lambda x: emd_loss(x, q[voted], 2, reduction), p[voted])
    assert not slope[~voted].any()
    torch.testing.assert_close(slope[voted], expected)
    nobody = torch.full_like(q, torch.nan)
    assert emd_loss(p, nobody, 2, reduction).item() == 0
    assert not gradient(lambda x: emd_loss(x, nobody, 2, reduction), p).any()


def test_the_expected_rating_is_exact_under_autocast_too():
    p, ratings = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]), torch.tensor([1.0, 3.003, 5.0])
    with torch.autocast("cpu", torch.bfloat16):
        assert expected_rating(p, ratings).tolist() == [[pytest.approx(2.50075, abs=1e-6)], [5.0]]
    with pytest.raises(ValueError, match=r"must be \(N, K\) and \(K,\), got \(2, 3\) and \(2,\)"):
        expected_rating(p, ratings[:2])


def test_correlation_loss_is_one_minus_plcc():
    p, target = torch.rand(9, 1), torch.rand(9)
    expected = 1 - np.corrcoef(p[:, 0], target)[0, 1]
    for x, value in (
        (p, expected),
        (0.5 * p + 0.2, expected),
        (target[:, None], 0),
        (1 - target[:, None], 2),
    ):
        assert correlation_loss(x, target).item() == pytest.approx(value, abs=1e-6)
    for count in (1, 3):  # equal predictions
        p, target = torch.full((count, 1), 0.4), torch.linspace(0.1, 0.9, count)
        assert correlation_loss(p, target).item() == pytest.approx(1)
        assert gradient(lambda x, target=target: correlation_loss(x, target), p).isfinite().all()


def test_score_and_label_loss_are_torchs_picture_by_picture_whatever_type_the_target_has():
    p, high = torch.rand(40, 1), torch.arange(40) % 3 == 0
    scores = torch.rand(40)
    torch.testing.assert_close(score_loss(p, scores), functional.mse_loss(p[:, 0], scores))
    expected = functional.binary_cross_entropy(p[:, 0], high.float())
    for kind in (torch.float32, torch.bool, torch.int64):
        torch.testing.assert_close(label_loss(p, high.to(kind)), expected)


SMALLEST = [(torch.float32, 1e-38), (torch.bfloat16, 1e-38), (torch.float16, 2.0**-24)]


@pytest.mark.parametrize(("dtype", "smallest"), SMALLEST)
def test_label_loss_and_its_slope_are_finite_for_certainty_and_a_confident_mistake_still_learns(
    dtype, smallest
):
    p = torch.tensor([[0.0], [smallest], [1.0], [0.0], [1.0]], dtype=dtype)
    high = torch.tensor([0, 1, 0, 1, 1])
    assert p[1] > 0
    assert 5 < label_loss(p, high).item() < 100
    assert gradient(lambda x: label_loss(x, high), p).isfinite().all()
    # At a logit of -20 the probability is 2e-9; the loss must still push with its full slope of -1.
    logit = torch.full((1, 1), -20.0)
    slope = gradient(lambda x: label_loss(torch.sigmoid(x), torch.ones(1)), logit)
    assert slope.item() == pytest.approx(-1, rel=1e-4)


def test_emotion_loss_is_soft_label_cross_entropy_and_counts_are_as_good_as_shares():
    logits, votes = torch.randn(12, 8), random_distributions(12, 8)
    expected = functional.cross_entropy(logits, votes)
    torch.testing.assert_close(emotion_loss(logits, votes), expected)
    torch.testing.assert_close(emotion_loss(logits, 7 * votes), expected)
    labels = torch.eye(8)[torch.arange(12) % 8]
    torch.testing.assert_close(emotion_loss(logits, 5 * labels.long()), emotion_loss(logits, labels))


@pytest.mark.parametrize("nothing", [0.0, float("nan")])
def test_pictures_without_votes_are_left_out_of_the_mean(nothing):
    logits, votes = torch.randn(6, 8), random_distributions(6, 8)
    votes[[1, 4]] = nothing
    known = [0, 2, 3, 5]
    torch.testing.assert_close(emotion_loss(logits, votes), emotion_loss(logits[known], votes[known]))
    slope = gradient(lambda x: emotion_loss(x, votes), logits)
    assert torch.equal(slope[[1, 4]], torch.zeros(2, 8))
    assert (slope[known] != 0).all()
    assert emotion_loss(logits, torch.full((6, 8), nothing)).item() == 0
    assert not gradient(lambda x: emotion_loss(x, torch.full((6, 8), nothing)), logits).any()


def test_a_class_that_was_not_offered_is_left_out_of_the_softmax_and_gets_no_gradient():
    logits, votes = torch.randn(3, 4), random_distributions(3, 4)
    votes[1, 2] = float("nan")
    votes[1] /= votes[1].nansum()
    offered = [0, 1, 3]
    alone = emotion_loss(logits[1:2, offered], votes[1:2, offered])
    others = emotion_loss(logits[[0, 2]], votes[[0, 2]])
    torch.testing.assert_close(emotion_loss(logits, votes), (alone + 2 * others) / 3)
    slope = gradient(lambda x: emotion_loss(x, votes), logits)
    assert slope[1, 2] == 0
    assert (slope[1, offered] != 0).all()
    # Taken as zero votes instead, the class would be pushed down.
    assert gradient(lambda x: emotion_loss(x, votes.nan_to_num(0)), logits)[1, 2] > 0


def test_class_weights_count_votes_and_divide_by_what_they_add_up_to():
    logits, weights = torch.randn(3, 2), torch.tensor([1.0, 5.0])
    votes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    log_p = logits.log_softmax(1)
    expected = -(log_p[0, 0] + 5 * log_p[1, 1] + 0.5 * log_p[2, 0] + 2.5 * log_p[2, 1]) / (1 + 5 + 3)
    torch.testing.assert_close(emotion_loss(logits, votes, weights), expected)
    torch.testing.assert_close(emotion_loss(logits, votes, torch.ones(2)), emotion_loss(logits, votes))
    assert emotion_loss(logits, torch.zeros(3, 2), weights) == 0


def test_with_its_shift_each_set_is_fitted_best_by_the_shares_of_the_reference():
    para, fi = {"awe": 0.1, "fear": 0.2, "neutral": 0.7}, {"awe": 0.5, "fear": 0.3, "anger": 0.2}
    assert class_shift(para, para) == {"awe": 0, "fear": 0, "neutral": 0}
    shift = class_shift(fi, para)
    rarer = (
        math.log(0.5 / 0.1) + math.log(0.3 / 0.2)
    ) / 2  # the mean of the others, where there are no votes
    assert shift["anger"] == pytest.approx(rarer)
    assert class_shift(fi, {"joy": 1.0}) == {"awe": 0, "fear": 0, "anger": 0}
    assert class_shift({**fi, "anger": 0}, {**para, "anger": 0.1})["anger"] == pytest.approx(rarer)
    # What pictures say about themselves is nothing here: the logits are the reference's shares alone.
    logits = {**{name: math.log(share) for name, share in para.items()}, "anger": math.log(0.2) - rarer}
    row = torch.tensor([[logits[name] + shift[name] for name in fi]])
    votes = torch.tensor([list(fi.values())])
    assert gradient(lambda x: emotion_loss(x, votes), row).abs().max() < 1e-6


def test_the_loss_of_pairs_is_the_cross_entropy_of_two_classes():
    odds, target = torch.randn(12, 2), torch.tensor([1.0, 0.0, 0.8, 1.0, 0.5, 0.0])
    difference = odds[:6, 0] - odds[6:, 1]
    classes = torch.stack([torch.zeros(6), difference], dim=1)  # (n, 2): the second wins, the first wins
    expected = functional.cross_entropy(classes, torch.stack([1 - target, target], dim=1))
    torch.testing.assert_close(pair_loss(odds, target), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_loss_of_half_precision_is_computed_in_float32_under_autocast(dtype):
    p, q = (random_distributions(8, seed=seed).to(dtype) for seed in (0, 1))
    ratings = torch.rand(8)
    cases = [
        (emd_loss, p, (q,)),
        (partial(emd_loss, reduction="batch"), p, (q,)),
        (score_loss, p[:, :1], (ratings,)),
        (correlation_loss, p[:, :1], (ratings,)),
        (label_loss, p[:, :1], (ratings > 0.5,)),
        (emotion_loss, (torch.randn(8, 10) * 30).to(dtype), (q,)),
        (pair_loss, torch.randn(8, 2).to(dtype), (ratings[:4],)),
    ]
    for loss, values, targets in cases:
        with torch.autocast("cpu", dtype=dtype):
            found = loss(values, *targets)
            slope = gradient(lambda x, loss=loss, targets=targets: loss(x, *targets), values)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(values.float(), *targets))
        assert slope.isfinite().all() and slope.any()


COLUMNS = [((4,), (4,)), ((4, 1), (4, 1)), ((4, 10), (4,)), ((4, 1), (3,))]  # some would broadcast
SHAPES = [
    (emd, (4, 10), (4, 9), r"\(N, K\), got \(4, 10\) and \(4, 9\)"),
    (emotion_loss, (2, 8), (2, 9), r"\(N, E\), got"),
    (pair_loss, (3, 2), (2,), r"\(2n, 2\) and \(n,\), got"),
    *(
        (loss, *shapes, r"\(N, 1\) and \(N,\), got")
        for loss in (score_loss, label_loss)
        for shapes in COLUMNS
    ),
]


@pytest.mark.parametrize(("loss", "first", "second", "told"), SHAPES)
def test_shapes_that_do_not_fit_are_refused(loss, first, second, told):
    with pytest.raises(ValueError, match=f"losses: predictions and targets must be {told}"):
        loss(torch.full(first, 0.5), torch.ones(second))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="must be 'image' or 'batch', not 'mean'"):
        emd_loss(spike(1), spike(1), reduction="mean")
