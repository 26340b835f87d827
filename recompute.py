"""Training in less memory: a block's inner maps are computed again for its gradient instead of being kept.

Kept are only the inputs of the backbones' blocks. A training step takes about a quarter longer, because
each block runs forward twice; outputs, gradients and BatchNorm's statistics are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Recomputed:
    """Put before a block's own class, this runs the block again in the backward pass."""

    def forward(self, *inputs):
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs)
        contexts = lambda: (nullcontext(), unchanged_statistics(self))  # noqa: E731 - first and second run
        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=contexts)


def recompute_blocks(network: nn.Module) -> int:
    """Makes every block of the network's sequences of blocks a Recomputed one, in place; returns how many.

    The names of weights stay. A block is a layer with layers of its own, as ResNet's bottlenecks and timm's
    inverted residuals are, in an nn.Sequential of such.
    """
    # torch.compile cannot trace checkpoint's contexts; left out, it compiles what lies between and inside.
    forward = torch.compiler.disable(Recomputed.forward, recursive=False)
    found = list(blocks(network))
    for block in found:
        block.__class__ = type(block.__class__.__name__, (Recomputed, block.__class__), {"forward": forward})
    return len(found)


def blocks(layer: nn.Module) -> Iterator[nn.Module]:
    children = list(layer.children())
    if isinstance(layer, nn.Sequential) and all(is_block(child) for child in children):
        yield from children
        return
    for child in children:
        yield from blocks(child)


def is_block(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Sequential) and any(layer.children())


@contextmanager
def unchanged_statistics(block: nn.Module) -> Iterator[None]:
    """Lets BatchNorm normalise by the batch, as in training, without adding it to its statistics again."""
    norms = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
