"""The optimizer of a run; learning rate and weight decay depend on the part of the network."""

from __future__ import annotations

import torch
from torch import nn

from eamb.runtime.config import Config
from eamb.weights import checkpoint


def make_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; AdamW decays no biases or BatchNorm; SGD and Adam decay all, as the official code.

    The backbones come first, in groups whose rate is `optimizer.backbone_factor` times that of the rest.
    """
    settings = config.optimizer
    slow = (*checkpoint.pyramids(network), *getattr(network, "slow_prefixes", ()))
    fused = next(network.parameters()).device.type in ("cpu", "cuda")  # one kernel for all weights
    groups = []
    for factor, in_backbone in ((settings.backbone_factor, True), (1.0, False)):
        named = [(n, p) for n, p in network.named_parameters() if n.startswith(slow) == in_backbone]
        groups.append({"params": [p for _, p in named if p.requires_grad], "factor": factor})
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
