"""Depthwise convolutions that train fast on a CPU in bfloat16, and score there without padded copies.

oneDNN's bfloat16 gradients of a depthwise convolution are fast in one case, 3x3 kernels with stride 1; others
take 2 to 9 times as long. Here those are put together from what is fast: the same sums in another order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pads = tuple[int, int, int, int]  # rows of zeros: left, right, top, bottom


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of timm, plain or with TensorFlow's SAME padding; computes as before.

    On a CPU its gradients in bfloat16 take another way, and the zeros of SAME padding where none are wanted.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> DepthwiseConv2d:
        """The same layer with the same parameters."""
        size, stride = conv.kernel_size, conv.stride
        with torch.device("meta"):  # draws no random numbers for weights that are not wanted
            new = cls(conv.in_channels, conv.out_channels, size, stride, groups=conv.groups, bias=False)
        new.padding = "same" if type(conv).__name__ == "Conv2dSame" else conv.padding
        new.weight = conv.weight
        return new

    def forward(self, images: Tensor) -> Tensor:
        pads = self.pads(*images.shape[2:])
        if torch.is_grad_enabled() and in_bfloat16_on_cpu(images) and self.bias is None:
            return Depthwise.apply(images.bfloat16(), self.weight.bfloat16(), self.stride[0], pads)
        if scores_on_cpu(images):
            return convolve_without_copy(images, self.weight, self.bias, self.stride[0], pads)
        return convolve(images, self.weight, self.bias, self.stride[0], pads)

    def pads(self, height: int, width: int) -> Pads:
        if self.padding != "same":
            return self.padding[1], self.padding[1], self.padding[0], self.padding[0]
        size, stride = self.kernel_size[0], self.stride[0]
        return *same_padding(width, size, stride), *same_padding(height, size, stride)


def scores_on_cpu(images: Tensor) -> bool:
    """Whether these are only scored, on a CPU; not while a network is traced: ONNX has no such way."""
    scoring = not (torch.is_grad_enabled() or torch.jit.is_tracing())
    return scoring and images.device.type == "cpu" and images.dtype != torch.float16


def in_bfloat16_on_cpu(images: Tensor) -> bool:
    """Whether autocast would compute a convolution of these in bfloat16 on a CPU."""
    on = images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on and torch.get_autocast_dtype("cpu") == torch.bfloat16


def same_padding(side: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind, so that ceil(side / stride) results come out; the odd one stands behind."""
    total = max(0, (-(-side // stride) - 1) * stride + size - side)
    return total // 2, total - total // 2


def improves(conv: nn.Module) -> bool:
    """Whether this is a layer that DepthwiseConv2d stands for, and is faster than."""
    return (
        type(conv).__name__ in ("Conv2d", "Conv2dSame")
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and (*conv.kernel_size, *conv.stride) in ((5, 5, 1, 1), (3, 3, 2, 2), (5, 5, 2, 2))
        and conv.dilation == (1, 1)
        and conv.bias is None
        and isinstance(conv.padding, tuple)  # torch knows words there too
        and conv.padding_mode == "zeros"
    )


def use_fast_gradients(network: nn.Module) -> None:
    """Puts DepthwiseConv2d in the place of each layer that gains by it."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if improves(child):
                setattr(parent, name, DepthwiseConv2d.like(child))


class Depthwise(torch.autograd.Function):
    """images (N, C, H, W), weight (C, 1, k, k) -> (N, C, h, w)."""

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, stride: int, pads: Pads) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.pads = stride, pads
        return convolve(images, weight, None, stride, pads)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        images, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)  # (N, C, h, w)
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = image_gradient(gradient, weight, ctx.stride, ctx.pads, images.shape)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(gradient, F.pad(images, ctx.pads), weight, ctx.stride)
        return of_images, of_weight, None, None


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pads: Pads) -> Tensor:
    left, right, top, bottom = pads
    if left == right and top == bottom:
        return F.conv2d(images, weight, bias, stride, (top, left), groups=len(weight))
    return F.conv2d(F.pad(images, pads), weight, bias, stride, groups=len(weight))


def convolve_without_copy(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pads: Pads
) -> Tensor:
    """`convolve` for scoring: the same sums, without a padded copy of the map, 77 MB of a batch's largest.

    Stride 2 needs one row of zeros more behind a picture than before it. With a row of zeros in front, the
    kernel needs as many on both sides, and those oneDNN thinks up itself.
    """
    left, right, top, bottom = pads
    if (right - left, bottom - top) != (1, 1):
        return convolve(images, weight, bias, stride, pads)
    larger = F.pad(weight, (1, 0, 1, 0))  # (C, 1, k + 1, k + 1)
    return convolve(images, larger, bias, stride, (right, right, bottom, bottom))


def image_gradient(gradient: Tensor, weight: Tensor, stride: int, pads: Pads, shape: torch.Size) -> Tensor:
    """A convolution with the turned kernel, whose forward is fast; with stride 2 zeros lie in between.

    Args:
        gradient: (N, C, h, w), of the result.
        shape: of the images, (N, C, H, W).
    """
    reach, (left, _, top, _) = weight.shape[2] - 1, pads
    turned = weight.flip(2, 3)
    if stride == 1:
        return convolve(gradient, turned, None, 1, tuple(reach - pad for pad in pads))  # (N, C, H, W)
    sides = (*shape[:2], shape[2] + reach, shape[3] + reach)
    spread = torch.empty(sides, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, reach - top :: stride, reach - left :: stride][
        :, :, : gradient.shape[2], : gradient.shape[3]
    ] = gradient
    return convolve(spread, turned, None, 1, (0, 0, 0, 0))  # (N, C, H, W)


def weight_gradient(gradient: Tensor, padded: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Four gradients of 3x3 kernels with stride 1, each for the taps of one row and column out of two.

    With stride 2 the picture's even and odd rows meet even and odd taps; with stride 1 the taps 0 to 2 and 2
    to 4 are taken in turn.

    Args:
        gradient: (N, C, h, w), of the result.
        padded: the images with their zeros, (N, C, H', W').
    """
    result, taps = torch.empty_like(weight), weight.new_empty(len(weight), 1, 3, 3)
    height, width = gradient.shape[2] + 2, gradient.shape[3] + 2  # that a 3x3 kernel needs
    starts = (0, 2) if stride == 1 else (0, 1)
    for row in starts:
        for column in starts:
            part = padded[:, :, row::stride, column::stride][:, :, :height, :width]
            part = F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]))
            part = part.contiguous(memory_format=torch.channels_last)  # (N, C, h + 2, w + 2)
            found = torch.ops.aten.convolution_backward(
                *(gradient, part, taps, None, (1, 1), (0, 0), (1, 1), False, (0, 0), len(weight)),
                output_mask=(False, True, False),
            )[1]  # (C, 1, 3, 3)
            place = result[:, :, row::stride, column::stride]
            place[:, :, :3, :3] = found[:, :, : place.shape[2], : place.shape[3]]
    return result
