"""What networks take and give: Output, Scale, the emotions, and the check of a picture's size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eamb.network.names import SMALLEST_SIDE

EMOTIONS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Output(NamedTuple):
    """A network's output for N pictures.

    prediction: (N, K), the raw probability (K = 1) or rating distribution (rows sum to 1), for `Scale`.
    emotion_logits: (N, E), before softmax; E = 0 for a network without an emotion branch.
    emotion_map: (N, 1, h, w), the emotion-aware map in [0, 1]; carries no gradient. 1 without the branch.
    """

    prediction: Tensor
    emotion_logits: Tensor
    emotion_map: Tensor


@dataclass(frozen=True)
class Scale:
    """What a raw prediction means, in the unit that people rated in; kept with the weights.

    kind: "distribution" over rating bins, "score" (value = offset + factor * p) or "label" (p = P(high)).
    minimum, maximum: the ends of the rating scale.
    threshold: a picture counts as high above it, and at it too if `inclusive`.
    bins: the rating each bin of a distribution stands for.
    """

    kind: str
    minimum: float
    maximum: float
    threshold: float
    inclusive: bool = False
    bins: tuple[float, ...] = ()
    offset: float = 0.0
    factor: float = 1.0

    def __post_init__(self):
        with_bins = self.kind == "distribution"
        if self.kind not in ("distribution", "score", "label") or with_bins != bool(self.bins):
            raise ValueError(
                f"Scale: kind is score, label or distribution (with bins), got {self.kind}, {self.bins}"
            )

    @property
    def outputs(self) -> int:
        return len(self.bins) or 1

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value of a prediction, as `value` gives it."""
        return (0.0, 1.0) if self.kind == "label" else (self.minimum, self.maximum)

    def value(self, prediction: np.ndarray) -> np.ndarray:
        """(N, K) raw predictions -> (N,) ratings: the mean, offset + factor * p, or P(high)."""
        prediction = np.asarray(prediction, np.float64)  # float32 would move ratings across the threshold
        if self.kind == "distribution":
            return prediction @ np.asarray(self.bins)
        return self.offset + self.factor * prediction[:, 0]

    def deviation(self, prediction: np.ndarray) -> np.ndarray:
        """(N, K) -> (N,) standard deviation of each rating distribution; NaN where there is none."""
        if self.kind != "distribution":
            return np.full(len(prediction), np.nan)
        prediction = np.asarray(prediction, np.float64)
        distance = np.asarray(self.bins)[None] - self.value(prediction)[:, None]  # (N, K)
        return np.sqrt((prediction * distance**2).sum(1))

    def probability(self, value: Tensor) -> Tensor:
        """Ratings -> as many numbers in [0, 1]: the p that a score network should give for them, or where
        between its ends a distribution has them."""
        if self.kind == "distribution":
            return (value - self.minimum) / (self.maximum - self.minimum)
        return (value - self.offset) / self.factor

    def is_high(self, value: np.ndarray) -> np.ndarray:
        """(N,) ratings -> (N,) bool; compares them as they are, without rounding to float32."""
        return value >= self.threshold if self.inclusive else value > self.threshold

    def as_dict(self) -> dict:
        return {**asdict(self), "bins": list(self.bins)}

    @classmethod
    def from_dict(cls, values: dict) -> Scale:
        return cls(**{**values, "bins": tuple(values["bins"])})


def no_emotions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, 0) and map (N, 1, 1, 1), which is 1, of a network without an emotion branch."""
    count = images.shape[0]  # len() would be a constant in an exported network
    return images.new_empty(count, 0), images.new_ones(count, 1, 1, 1)


def as_prediction(logit: Tensor) -> Tensor:
    """Logits (N, K) -> (N, K) in float32: a probability (K = 1), or a distribution whose rows sum to 1."""
    logit = logit.float()
    return logit.sigmoid() if logit.shape[1] == 1 else logit.softmax(dim=1)


def check_size(images: Tensor) -> None:
    three = images.ndim == 4 and images.shape[1] == 3
    if not three or min(images.shape[2:]) < SMALLEST_SIDE or not images.is_floating_point():
        raise ValueError(
            f"EAMBNet: pictures must be (N, 3, H, W) with H and W from {SMALLEST_SIDE} up, normalised by "
            f"decoding.normalise; got {tuple(images.shape)} of {images.dtype}"
        )
