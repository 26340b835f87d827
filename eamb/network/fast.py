"""A fast copy of a network for inference: BatchNorm folded into the convolutions."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from eamb.network.names import SMALLEST_SIDE
from eamb.network.outputs import PRECISIONS, Output, check_size


def fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Folds BatchNorm into the convolution; returns the layer that remains: its activation, if it has one."""
    statistics = norm.running_mean, norm.running_var, norm.eps
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
    return getattr(norm, "act", nn.Identity())


def fold_batchnorm(network: nn.Module, images: Tensor) -> None:
    """Folds in place every BatchNorm that is the only reader of a convolution's output, if both run once.

    Args:
        images: (N, 3, H, W), a small example: running it shows which layer feeds which.
    """
    conv_of: dict[int, nn.Conv2d] = {}  # by the id of its output
    pairs, runs = [], Counter()
    norms = ("BatchNorm2d", "SyncBatchNorm", "BatchNormAct2d", "SyncBatchNormAct")  # torch's and timm's

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        runs[layer] += 1
        if isinstance(layer, nn.Conv2d):
            conv_of[id(output)] = layer
        elif type(layer).__name__ in norms and id(inputs[0]) in conv_of:
            pairs.append((conv_of[id(inputs[0])], layer, id(inputs[0])))

    with register_module_forward_hook(note), torch.no_grad(), CountReads() as reads:
        network(images)
    name_of = {layer: name for name, layer in network.named_modules()}
    for conv, norm, tensor in pairs:
        if reads.count[tensor] == runs[conv] == runs[norm] == 1:
            parent, _, name = name_of[norm].rpartition(".")
            setattr(network.get_submodule(parent), name, fold(conv, norm))


class CountReads(TorchFunctionMode):
    """Counts, by a tensor's id, the operations that read it; asking for its shape or type does not count."""

    def __init__(self):
        super().__init__()
        self.count: Counter[int] = Counter()
        self.kept: list[Tensor] = []  # so that no id is reused

    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if results := [value for value in tree_leaves(result) if isinstance(value, Tensor)]:
            self.kept += results
            self.count.update(id(value) for value in tree_leaves((arguments, options)))
        return result


class FastNetwork(nn.Module):
    """A copy of a network, made by `prepare_for_inference`, for evaluation only."""

    def __init__(self, network: nn.Module, kind: torch.dtype):
        super().__init__()
        self.network, self.kind, self.arguments = network, kind, network.arguments

    def forward(self, images: Tensor) -> Output:
        return Output(*(value.float() for value in self.network(self._converted(images))))

    def class_activation_maps(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, E, h, w) in [0, 1], one map per emotion."""
        return self.network.class_activation_maps(self._converted(images))

    def _converted(self, images: Tensor) -> Tensor:
        check_size(images)
        return images.to(self.kind, memory_format=torch.channels_last)


def prepare_for_inference(model: nn.Module, precision: str = "fp32") -> FastNetwork:
    """A fast copy of any of the networks here, for evaluation only; takes and gives float32 as they do.

    BatchNorm is folded into the convolutions and channels lie last in memory. In fp32 outputs differ by
    rounding, below 1e-4. In bf16 and fp16 all weights and maps are of that type, without autocast.

    Raises:
        ValueError: the precision is none of fp32, bf16, fp16.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"EAMBNet: precision must be {', '.join(PRECISIONS)}, got '{precision}'")
    network = copy.deepcopy(model).eval().requires_grad_(False)
    fusion = getattr(network, "fusion", None)
    if hasattr(fusion, "semantic_norm"):  # the resize between them commutes with a factor and a shift
        fusion.semantic_norm = fold(fusion.semantic_conv, fusion.semantic_norm)
    device = next(network.parameters()).device
    fold_batchnorm(network, torch.zeros(1, 3, SMALLEST_SIDE, SMALLEST_SIDE, device=device))
    kind = PRECISIONS[precision]
    return FastNetwork(network.to(kind, memory_format=torch.channels_last), kind)
