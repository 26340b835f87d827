"""The losses: EMD for rating distributions, and those for scores, labels, pairs and emotions.

All compute in float32 at least, under autocast too: cumulative sums and logarithms of half-precision
probabilities are wrong from the second digit on. Predictions are probabilities, as the network gives them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def emd(p: Tensor, q: Tensor, r: float = 2) -> Tensor:
    """Earth mover's distance between rating distributions, one value per image.

    ((1/K) * sum_k |P_k - Q_k|^r)^(1/r) over cumulative distributions P, Q; 0 for equal ones, 1 at most
    (Talebi & Milanfar 2018, eq. 1). Its gradient where p equals q is 0, a valid subgradient.

    Args:
        p, q: (N, K), rows sum to 1.

    Returns:
        (N,), in [0, 1].
    """
    gap = cumulative_gap(p, q)  # (N, K)
    # The root's gradient is infinite at 0; vector_norm's is 0 there, without an epsilon that biases the rest.
    return torch.linalg.vector_norm(gap, ord=r, dim=1) / gap.shape[1] ** (1 / r)  # (N,)


def emd_loss(p: Tensor, q: Tensor, r: float = 2, reduction: str = "image") -> Tensor:
    """EMD of a batch (N, K), whose rows sum to 1; a scalar, 0 if no picture has votes.

    Args:
        q: a row of NaN is a picture without votes, which counts for nothing.
        reduction: "image" takes the root per image, then the mean over images. "batch" takes the mean over
            images and bins, then the root, as the official code does; an image's weight depends on its batch.
    """
    check_shapes(p, q, "(N, K)", p.ndim == 2 and p.shape == q.shape)
    has_votes = ~q.isnan().any(dim=1, keepdim=True)  # (N, 1)
    count = has_votes.sum().clamp(min=1)
    q = torch.where(has_votes, q, p.detach())  # a distance of 0; choosing rows would make a GPU wait
    if reduction == "image":
        return emd(p, q, r).sum() / count
    if reduction == "batch":
        gap = cumulative_gap(p, q)  # (N, K)
        return torch.linalg.vector_norm(gap, ord=r) / (count * gap.shape[1]) ** (1 / r)
    raise ValueError(f"losses: reduction must be 'image' or 'batch', not {reduction!r}.")


def expected_rating(p: Tensor, ratings: Tensor) -> Tensor:
    """Means (N, 1) of distributions (N, K), whose rows sum to 1, over the K ratings."""
    check_shapes(p, ratings, "(N, K) and (K,)", p.shape[1:] == ratings.shape)
    # No matrix product, which autocast would round to half precision.
    return (at_least_float32(p) * ratings.to(p.device, non_blocking=True)).sum(dim=1, keepdim=True)


def score_loss(p: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of probabilities (N, 1) and scores (N,), as `Scale.probability` gives them."""
    return functional.mse_loss(*one_column(p, target))


def correlation_loss(p: Tensor, target: Tensor) -> Tensor:
    """1 - PLCC of a batch, (N, 1) and (N,), a scalar from 0 to 2; 1 if one side does not vary."""
    p, target = one_column(p, target)
    p, target = p - p.mean(), target - target.mean()
    # The product of the norms is not differentiable at 0, which it is for a batch of one picture.
    norms = (p.square().sum() * target.square().sum()).clamp(min=1e-12).sqrt()
    return 1 - (p * target).sum() / norms


def label_loss(p: Tensor, high: Tensor) -> Tensor:
    """Binary cross-entropy of the probability (N, 1) of "high" and labels (N,), 0 or 1 (high); a scalar.

    Takes probabilities, which `functional.binary_cross_entropy` refuses under autocast.
    """
    # The gradient of log(p) is 1/p, in p's own type: float16 overflows above 65,504.
    smallest = 2.0**-15 if p.dtype == torch.float16 else 1e-12
    p, high = one_column(p, high)
    log_high = p.clamp(min=smallest).log()
    log_low = (1 - p).clamp(min=smallest).log()
    return -(high * log_high + (1 - high) * log_low).mean()


def pair_loss(odds: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of preferences in pairs, a scalar: the mean over the pairs.

    Args:
        odds: (2n, 2) predictions of a `SeriesNetwork`, for the first photographs of n pairs, then for the
            second ones; column 0 is a photograph's odds as the first of a pair, column 1 as the second.
        target: (n,), in [0, 1]: P(the first is preferred), or labels 0 and 1.
    """
    check_shapes(odds, target, "(2n, 2) and (n,)", target.ndim == 1 and odds.shape == (2 * len(target), 2))
    first, second = at_least_float32(odds).chunk(2)  # (n, 2) each
    logits = first[:, 0] - second[:, 1]  # (n,)
    return functional.binary_cross_entropy_with_logits(logits, at_least_float32(target).to(logits))


def emotion_loss(logits: Tensor, votes: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy against vote shares, a scalar: the mean over the pictures that have votes, 0 if none has.

    A class that was not offered to a picture's raters is left out of its softmax, and its logit gets no
    gradient: nobody could choose it.

    Args:
        logits: (N, E).
        votes: (N, E), shares or counts; each row is divided by its sum. NaN: a class that was not offered.
            A row of only zeros or only NaN is a picture without votes.
        class_weights: (E,), the weight of a vote for each class; the mean is then weighted too.
    """
    check_shapes(logits, votes, "(N, E)", logits.ndim == 2 and logits.shape == votes.shape)
    logits, votes = at_least_float32(logits), at_least_float32(votes)
    counts = votes.nan_to_num(nan=0.0)
    total = counts.sum(dim=1, keepdim=True)  # (N, 1)
    has_votes = total > 0  # (N, 1)
    shares = torch.where(has_votes, counts / total, 0.0)
    if class_weights is not None:
        shares = shares * class_weights.to(shares, non_blocking=True)
    absent = votes.isnan() & has_votes
    # Masked twice, because 0 votes * log(0) is NaN.
    log_p = functional.log_softmax(logits.masked_fill(absent, -torch.inf), dim=1).masked_fill(absent, 0.0)
    weight = shares.sum() if class_weights is not None else has_votes.sum().clamp(min=1)
    return -(shares * log_p).sum() / weight.clamp(min=torch.finfo(log_p.dtype).tiny)


def class_shift(shares: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """The shift of a network's logits, by class, that allows for the class shares of a data set.

    How often a set shows sad pictures says nothing about how sad one of them is. With log(share in the set /
    share in the reference) added to each logit, the network learns what the pictures themselves show, at the
    reference's shares (Saerens et al. 2002; logit adjustment, Menon et al. 2021). A class without votes in
    the set or in the reference gets the mean shift of the others.

    Args:
        shares, reference: share of the votes of each class; 0, or no entry: no votes.

    Returns:
        A finite number for each class of `shares`; all 0 for the reference itself.
    """
    in_both = [name for name, share in shares.items() if share > 0 and reference.get(name, 0) > 0]
    shift = {name: math.log(shares[name] / reference[name]) for name in in_both}
    average = sum(shift.values()) / len(shift) if shift else 0.0
    return {name: shift.get(name, average) for name in shares}


def cumulative_gap(p: Tensor, q: Tensor) -> Tensor:
    """Difference of the two cumulative distributions, (N, K)."""
    check_shapes(p, q, "(N, K)", p.ndim == 2 and p.shape == q.shape)
    return (at_least_float32(p) - at_least_float32(q)).cumsum(dim=1)


def one_column(p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N,). An (N, 1) against an (N,) would silently broadcast to (N, N)."""
    check_shapes(p, target, "(N, 1) and (N,)", p.shape == (*target.shape, 1) and target.ndim == 1)
    return at_least_float32(p[:, 0]), at_least_float32(target)


def check_shapes(predicted: Tensor, target: Tensor, expected: str, right: bool) -> None:
    if not right:
        raise ValueError(
            f"losses: predictions and targets must be {expected}, got {tuple(predicted.shape)} and "
            f"{tuple(target.shape)}; the network and the data set must have the same outputs."
        )


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision, integers and booleans become float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
