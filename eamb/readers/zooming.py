"""Random parts of training pictures: an augmentation that keeps networks from learning pictures by heart."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Zoom(NamedTuple):
    """Which part of each picture an epoch shows; a function of (seed, epoch, index).

    largest: the sides of the part are at least 1 - largest of the picture's; drawn evenly, as its place is.
    """

    seed: int
    largest: float

    def part(self, epoch: int, index: int) -> tuple[float, float, float]:
        """(top, left, side) as shares of the picture's height and width."""
        size, down, right = (uniform(self.seed, epoch, index, k) for k in range(1, 4))
        side = 1 - self.largest
        return (1 - side) * down, (1 - side) * right, side


def cut(image: Tensor, part: tuple[float, float, float]) -> Tensor:
    """A part of (C, H, W), uint8 or float, in the same size (bilinear); a map of the picture is cut alike."""
    top, left, side = part
    if not image.is_floating_point():
        height, width = image.shape[1:]
        y, x = round(top * height), round(left * width)
        return image[:, y : y + round(side * height), x : x + round(side * width)]
    theta = torch.tensor([[[side, 0, 2 * left + side - 1], [0, side, 2 * top + side - 1]]])
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=False)  # (1, H, W, 2), -1 to 1
    found = F.grid_sample(image[None].float(), grid, padding_mode="border", align_corners=False)[0]
    return found if image.is_floating_point() else found.round().to(image.dtype)


def uniform(*numbers: int) -> float:
    """Evenly from [0, 1), a function of its arguments: splitmix64, in a microsecond, without a generator."""
    mask = (1 << 64) - 1
    bits = 0
    for number in numbers:
        bits = (bits + number + 1) * 0x9E3779B97F4A7C15 & mask
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        bits ^= bits >> 31
    return bits / (1 << 64)
