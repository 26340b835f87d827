"""Plain vision transformers of timm (DINOv2, DINOv3, CLIP, SigLIP ...) as pyramids of maps."""

from __future__ import annotations

import importlib
from functools import cache
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADDED = "maps."  # names of the layers that no file of pretrained weights has


class Shape(NamedTuple):
    """A ViT's number of blocks, channels of a token, and side of a patch in pixels."""

    depth: int
    width: int
    patch: int


@cache
def plain_vit(name: str) -> Shape | None:
    """The shape of timm's ViT of this name; None if the name is that of another kind of network, or of none.

    Plain is a ViT whose tokens are square patches and whose blocks all see all tokens.
    """
    import timm
    from timm.layers import PatchEmbed

    if not timm.models.is_model_in_modules(name, ("vision_transformer", "deit", "eva")):
        return None
    with torch.device("meta"):  # without memory for weights
        body = create_timm(name)
    if type(body).__name__ not in ("VisionTransformer", "Eva") or type(body.patch_embed) is not PatchEmbed:
        return None
    return Shape(len(body.blocks), body.embed_dim, body.patch_embed.patch_size[0])


def blocks_taken(name: str, depth: int) -> int:
    """How many blocks `depth` takes of the ViT of this name (0: all of them); 0 for other networks."""
    shape = plain_vit(name)
    return depth or shape.depth if shape else 0


def create_timm(name: str, **options) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, **options)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"backbones: timm cannot build '{name}': {' '.join(str(error).split())}") from error


def blocks_of_levels(depth: int) -> list[int]:
    """How many blocks a token has passed at each of the four levels: a third, a half, three quarters, all."""
    return [-(-depth // 3), -(-depth // 2), -(-3 * depth // 4), depth]


def nearest_multiple(side: int, patch: int) -> int:
    """The multiple of the patch, at least one, that is nearest to a side in pixels; of two the larger."""
    return max(1, (2 * side + patch) // (2 * patch)) * patch


def check_side(name: str, size: int, scale: float = 1) -> None:
    """Raises ValueError if this backbone would resize pictures of size x size that it gets at a scale."""
    shape, side = plain_vit(name), ceil(size * scale)
    if shape and side % shape.patch:
        below = side // shape.patch * shape.patch
        nearest = " and ".join(str(int(one / scale)) for one in (below, below + shape.patch) if one)
        raise ValueError(
            f"backbones: '{name}' takes sides that are multiples of its patch, {shape.patch} pixels, and "
            f"data.size={size} gives it {side}; the nearest sizes that fit are {nearest}, or let the network "
            "resize pictures with model.resize_input=true"
        )


class Level(nn.Module):
    """Tokens of a block -> a map at stride P/2 (levels 1 and 2), P (3) or 2P (4), by a learned convolution.

    It starts by handing every channel on by itself: repeated, as it is, or averaged over neighbours.
    """

    def __init__(self, width: int, number: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)  # the ViT's own last norm knows the last block only
        self.conv = nn.Identity()
        if number < 3:
            self.conv = nn.ConvTranspose2d(width, width, 2, stride=2)
            nn.init.zeros_(self.conv.bias)
            with torch.no_grad():
                self.conv.weight.copy_(torch.eye(width)[:, :, None, None])
        elif number == 4:  # by channel: the layer that reads this map mixes channels
            self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False)
            row = torch.tensor([0.25, 0.5, 0.25])
            with torch.no_grad():
                self.conv.weight.copy_(row[:, None] * row)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(N, h * w, C) and (h, w) -> (N, C, 2h, 2w), (N, C, h, w) or (N, C, h/2, w/2), rounded up."""
        return self.conv(self.norm(tokens).unflatten(1, grid).permute(0, 3, 1, 2))


class ViTPyramid(nn.Module):
    """The outputs of a ViT's blocks at a third, a half, three quarters and the end, as up to four maps.

    With P x P patches they have strides P/2, P/2, P and 2P. Pictures whose sides are no multiples of P are
    resized to the nearest ones, and positions are resampled for every size, so maps always cover the whole
    picture. Class and register tokens are seen by the patches and are not in the maps.

    Args:
        levels, first: the maps that are read, the first counted as 1; those before it are None.
        depth: the ViT's first so many blocks; 0: all.
        drop_path: share of pictures for which the last block's changes are left out in training; earlier
            blocks have less, the first none (Huang et al. 2016).

    Raises:
        ValueError: more blocks than the ViT has.
    """

    def __init__(self, name: str, levels: int, first: int = 1, depth: int = 0, drop_path: float = 0.0):
        super().__init__()
        whole = plain_vit(name)
        if depth > whole.depth:
            raise ValueError(f"backbones: '{name}' has {whole.depth} blocks, got model.depth={depth}")
        self.patch, self.first, self.depth = whole.patch, first, blocks_taken(name, depth)
        self.channels = (whole.width,) * levels
        self.body = create_timm(name, dynamic_img_size=True, depth=self.depth, drop_path_rate=drop_path)
        self.ends = [passed - 1 for passed in blocks_of_levels(self.depth)[first - 1 : levels]]
        self.body.prune_intermediate_layers(self.ends, prune_norm=True)
        self.body.blocks = nn.Sequential(*self.body.blocks)  # what `recompute_blocks` looks for
        self.maps = nn.ModuleList(Level(whole.width, number) for number in range(first, levels + 1))

    def forward(self, images: Tensor) -> list[Tensor | None]:
        images = self.fitted(images)
        grid = tuple(int(side) // self.patch for side in images.shape[2:])
        levels = zip(self.maps, self.tokens(images), strict=True)
        return [None] * (self.first - 1) + [level(tokens, grid) for level, tokens in levels]

    def fitted(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, h * P, w * P), the nearest multiples of the patch."""
        sides = tuple(map(int, images.shape[2:]))
        fit = tuple(nearest_multiple(side, self.patch) for side in sides)
        if fit == sides:
            return images
        return F.interpolate(images, size=fit, mode="bilinear", align_corners=False)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """(N, 3, h * P, w * P) -> for each map that is read the patches' tokens, (N, h * w, C)."""
        ends = sorted(set(self.ends))
        options = {"output_fmt": "NLC", "intermediates_only": True}
        of_block = dict(zip(ends, self.body.forward_intermediates(images, ends, **options), strict=True))
        return [of_block[end] for end in self.ends]

    def blocks_above(self, name: str) -> int:
        """How many of the `depth` blocks come after the one with this parameter; all, for the embedding."""
        parts = name.split(".")  # body.blocks.3.attn.qkv.weight
        return self.depth - (int(parts[2]) + 1 if parts[1] == "blocks" else 0)


def fix_positions(network: nn.Module, images: Tensor) -> None:
    """Resamples positions, in place, for pictures (N, 3, H, W) of one size, so that a forward pass of that
    size need not: ONNX has no such operation."""

    def fix(pyramid: ViTPyramid, inputs: tuple[Tensor]) -> None:
        pyramid.body.set_input_size(tuple(pyramid.fitted(inputs[0]).shape[2:]))

    pyramids = [layer for layer in network.modules() if isinstance(layer, ViTPyramid)]
    hooks = [pyramid.register_forward_pre_hook(fix) for pyramid in pyramids]
    if hooks:
        with torch.no_grad():
            network(images)
    for hook in hooks:
        hook.remove()


def pretrained_tensors(name: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A ViT's tensors under the names that they have in its pyramid; positions resampled for timm's own grid.

    Args:
        state: as in a file, under timm's names or those of the authors. None: timm downloads them.
    """
    import timm

    if state is None:
        state = timm.create_model(name, pretrained=True).state_dict()
    else:
        with torch.device("meta"):
            body = create_timm(name)
        state = importlib.import_module(type(body).__module__).checkpoint_filter_fn(state, body)
    return {f"body.{key}": value for key, value in state.items()}
