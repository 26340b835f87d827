"""Which of two photographs of one series do people prefer? The pair networks of series photo selection.

A shared backbone sees both photographs. The baseline ("resnet") pools its deepest map, "paunit" the maps at
strides 8, 16 and 32 through parallel attention units ("Learning multi-scale attentive features for series
photo selection", ICASSP 2020). A linear layer weighs the difference of the two pooled vectors, so each
photograph can be scored alone, and the log odds of a pair are the difference of its scores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eamb.network.backbones import Tail, build_pyramid
from eamb.network.names import PAIR_NETWORKS
from eamb.network.outputs import Output, check_size, no_emotions


class PAUnit(nn.Module):
    """Parallel attention unit: (N, C, h, w) -> (N, 2C), pooled under channel and under spatial attention."""

    def __init__(self, width: int):
        super().__init__()
        hidden = max(1, width // 16)
        self.gate = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))
        down, up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.channel = nn.Sequential(down, nn.ReLU(), up)

    def forward(self, x: Tensor) -> Tensor:
        gated = x * self.gate(x)  # (N, C, h, w)
        channel = self.channel(gated.amax(dim=(2, 3)) + gated.mean(dim=(2, 3)))  # (N, C), without a sigmoid
        spatial = torch.relu(gated.mean(1, keepdim=True) + gated.amax(1, keepdim=True))  # (N, 1, h, w)
        # Channel attention is one factor for all positions, so it may be applied after the mean over them.
        pooled = channel * x.mean(dim=(2, 3)), (spatial * x).mean(dim=(2, 3))  # (N, C) each
        return torch.cat(pooled, dim=1)  # (N, 2C)


class Units(nn.Module):
    """A PAUnit for each of the maps at strides 8, 16, 32: (N, C, H/s, W/s) -> (N, 7168) for ResNet-50."""

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        self.units = nn.ModuleList(PAUnit(width) for width in channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([unit(x) for unit, x in zip(self.units, maps, strict=True)], dim=1)  # (N, 2 * sum C)


class SeriesNetwork(nn.Module):
    """A pair network, run on photographs one by one; `metrics.pair_probability` compares its predictions.

    `forward(images (N, 3, H, W), normalised)` gives an Output whose prediction is (N, 2): the odds (natural
    logarithm) of each photograph as the first and as the second of a pair.

    Args:
        backbone: as in `backbones.py`.
        network: "resnet", the baseline, or "paunit".
        symmetric: both photographs of a pair share their units, and the last layer has no bias, so that
            P(A over B) + P(B over A) = 1; the two columns are then equal. False is the published network: the
            second photograph has units of its own, and there is a bias.
    """

    def __init__(
        self, backbone: str, network: str, symmetric: bool = True, depth: int = 0, drop_path: float = 0.0
    ):
        super().__init__()
        if network not in PAIR_NETWORKS:
            raise ValueError(f"series: the pair networks are {' and '.join(PAIR_NETWORKS)}, got '{network}'")
        self.arguments = {"backbone": backbone, "network": network, "symmetric": symmetric, "emotions": ()}
        self.arguments |= {"depth": depth, "drop_path": drop_path}
        first = 4 if network == "resnet" else 2
        self.context = build_pyramid(backbone, levels=4, first=first, depth=depth, drop_path=drop_path)
        if network == "resnet":
            self.tail = Tail(backbone)
            width = self.tail.channels
        else:
            self.units = Units(self.context.channels[1:])
            self.second_units = None if symmetric else Units(self.context.channels[1:])
            width = 2 * sum(self.context.channels[1:])
        self.last = nn.Linear(width, 2, bias=not symmetric)
        nn.init.zeros_(self.last.weight)  # start at even odds: random weights give extreme ones

    @property
    def slow_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the parameters that the published recipe trains as slowly as the backbone."""
        sides = [name for name in ("units", "second_units") if getattr(self, name, None)]
        return tuple(f"{side}.units.{i}.gate." for side in sides for i in range(3))

    def forward(self, images: Tensor) -> Output:
        check_size(images)
        maps = self.context(images)
        if hasattr(self, "tail"):
            first = second = self.tail(maps[-1])  # (N, 2048)
        else:
            first = second = self.units(maps[1:])  # (N, 7168)
            if self.second_units:
                second = self.second_units(maps[1:])
        weight = self.last.weight[1] - self.last.weight[0]  # (F,); only the two classes' difference counts
        # Not a matrix product, which autocast would round: small differences of odds matter.
        odds = [(side.float() * weight.float()).sum(dim=1) for side in (first, second)]  # (N,) each
        if self.last.bias is not None:
            odds[0] = odds[0] + (self.last.bias[1] - self.last.bias[0]).float()
        return Output(torch.stack(odds, dim=1), *no_emotions(images))
