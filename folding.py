"""BatchNorm folded into the convolution before it, for networks that are only evaluated.

In evaluation mode BatchNorm is a factor and a shift per channel, which the convolution's weight and bias can
take over: the same numbers up to rounding, without reading and writing each map once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

NORMS = ("BatchNorm2d", "SyncBatchNorm")
TIMM_NORMS = ("BatchNormAct2d", "SyncBatchNormAct")  # with an activation inside


def fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """The convolution takes over what BatchNorm does; returns what is left: its activation, if it has one."""
    conv.weight, conv.bias = fuse_conv_bn_weights(
        *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    )
    return getattr(norm, "act", nn.Identity())


def fold_batchnorm(network: nn.Module, images: Tensor) -> None:
    """Folds every BatchNorm whose input is a convolution's output and goes nowhere else, in place.

    Args:
        images: (N, 3, H, W), a small example; which layer feeds which is seen by running it.
    """
    convs = {id(norm): conv for conv, norm in folding_pairs(network, images)}
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if id(child) in convs:
                setattr(parent, name, fold(convs[id(child)], child))


def folding_pairs(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.Module]]:
    """The convolutions, each with the BatchNorm that alone reads its output. Both must run just once."""
    made: dict[int, nn.Conv2d] = {}  # by the id of the result
    pairs, runs = [], Counter()

    def watch(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        runs[layer] += 1
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = layer
        elif type(layer).__name__ in NORMS + TIMM_NORMS and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], layer, id(inputs[0])))

    hooks = [layer.register_forward_hook(watch) for layer in network.modules()]
    try:
        with torch.no_grad(), Readers() as readers:
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (conv, norm)
        for conv, norm, tensor in pairs
        if readers.count[tensor] == 1 and runs[conv] == 1 and runs[norm] == 1
    ]


class Readers(TorchFunctionMode):
    """Counts, by a tensor's id, the operations that read it; asking for its shape or type is none."""

    def __init__(self):
        super().__init__()
        self.count: Counter[int] = Counter()
        self.kept: list[Tensor] = []  # no id is given twice

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        result = function(*arguments, **options)
        if results := tensors([result]):
            self.kept += results
            self.count.update(id(tensor) for tensor in tensors((*arguments, *options.values())))
        return result


def tensors(values: Iterable) -> list[Tensor]:
    """Those among the values, and in lists and tuples among them."""
    flat = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return [value for value in flat if isinstance(value, Tensor)]
