"""The optimizer of a run; learning rate and weight decay depend on the part of the network."""

from __future__ import annotations

import torch
from torch import nn

from eamb.network.vit import ADDED, ViTPyramid
from eamb.runtime.config import Config
from eamb.weights import checkpoint


def make_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; AdamW decays no biases or BatchNorm; SGD and Adam decay all, as the official code.

    The backbones come first, in groups whose rate is `optimizer.backbone_factor` times that of the rest; the
    blocks of ViTs have groups of their own if there is an `optimizer.layer_decay`.
    """
    settings = config.optimizer
    fused = next(network.parameters()).device.type in ("cpu", "cuda")  # one kernel for all weights
    members, pyramids = {(True, settings.backbone_factor): [], (False, 1.0): []}, checkpoint.pyramids(network)
    slow = tuple(getattr(network, "slow_prefixes", ()))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            in_backbone, power = placed(name, pyramids)
            factor = settings.backbone_factor * settings.layer_decay**power
            key = (True, factor) if in_backbone or name.startswith(slow) else (False, 1.0)
            members.setdefault(key, []).append(parameter)
    groups = [{"params": members[key], "factor": key[1]} for key in sorted(members, reverse=True)]
    if settings.name != "adamw":
        options = {"weight_decay": settings.weight_decay, "fused": fused}
        if settings.name == "sgd":
            return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, **options)
        return torch.optim.Adam(groups, lr=settings.learning_rate, **options)
    halves = []
    for group in groups:
        matrices = [p for p in group["params"] if p.ndim > 1]  # also convolution kernels
        vectors = [p for p in group["params"] if p.ndim <= 1]
        halves.append({**group, "params": matrices, "weight_decay": settings.weight_decay})
        halves.append({**group, "params": vectors, "weight_decay": 0.0})
    return torch.optim.AdamW(halves, lr=settings.learning_rate, fused=fused)


def placed(name: str, pyramids: dict[str, nn.Module]) -> tuple[bool, int]:
    """Whether a parameter belongs to a pretrained backbone, and how many blocks of a ViT come after it."""
    for prefix, pyramid in pyramids.items():
        rest = name.removeprefix(prefix)
        if rest != name and not rest.startswith(ADDED):
            return True, pyramid.blocks_above(rest) if isinstance(pyramid, ViTPyramid) else 0
    return False, 0
