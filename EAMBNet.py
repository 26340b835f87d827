"""EAMB-Net: image aesthetics assessment with an emotion-aware multi-branch network.

The whole network in the paper's order: blocks, emotion branch, fusion, EAMBNet (IEEE TIM 2024,
doi 10.1109/TIM.2024.3365174). Sizes in comments are the paper's: ResNet-50, context and emotion at half size;
N pictures, E emotions, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eamb.network.backbones import Renormalise, Tail, build_pyramid
from eamb.network.hub import HubNetwork
from eamb.network.outputs import EMOTIONS, Output, as_prediction, check_size, no_emotions
from eamb.network.vit import ViTPyramid

PARTS = ("emotion", "detail", "context", "guided_fusion", "attention")  # an ablation leaves some of them out


# ---- Blocks


class ConvBNReLU(nn.Sequential):
    """Convolution, BatchNorm, ReLU; keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, bias: bool = True):
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Plain bilinear interpolation without antialiasing; (N, C, h, w) -> (N, C, *size)."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def shrink(images: Tensor, scale: float) -> Tensor:
    """(N, 3, H, W) -> (N, 3, ceil(scale * H), ceil(scale * W)), the paper's `half` for scale = 1/2."""
    size = (ceil(images.shape[2] * scale), ceil(images.shape[3] * scale))
    return resize(images, size, align_corners=True)


class GuidedFusion(nn.Module):
    """The paper's SADEM: adds a coarse map y to a fine map x where the two agree.

    a = sigmoid(sum_c k * q), k from x, q from y;  result = a * x + a * y + x.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.key = ConvBNReLU(channels, hidden, kernel=1, bias=False)
        self.query = ConvBNReLU(channels, hidden, kernel=1, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        size = x.shape[2:]
        query = resize(self.query(y), size, align_corners=False)  # (N, hidden, h, w)
        agreement = torch.sigmoid((self.key(x) * query).sum(dim=1, keepdim=True))  # (N, 1, h, w)
        y = resize(y, size, align_corners=False)  # (N, channels, h, w)
        return agreement * x + agreement * y + x


class CBAM(nn.Module):
    """Channel gate, then spatial gate (Woo et al. 2018); keeps the shape."""

    def __init__(self, channels: int, reduction: int = 16, window: int = 7):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )
        self.conv = nn.Conv2d(2, 1, window, padding=window // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        peak, mean = x.amax(dim=(2, 3), keepdim=True), x.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
        x = x * torch.sigmoid(self.mlp(peak) + self.mlp(mean))
        summary = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)  # (N, 2, h, w)
        return x * torch.sigmoid(self.conv(summary))


class Head(nn.Sequential):
    """Pooled features (N, width) -> logits (N, K). The first PReLU leaves the output of a ReLU as it is."""

    def __init__(self, width: int, hidden: int, outputs: int, dropout: float):
        first, second = nn.Linear(width, hidden), nn.Linear(hidden, outputs)
        super().__init__(nn.PReLU(), nn.Dropout(dropout), first, nn.PReLU(), nn.Dropout(dropout), second)


# ---- Emotion branch


class EmotionBranch(nn.Module):
    """A top-down pyramid whose pooled features are classified into emotions.

    For ResNet-50 the widths are the paper's, 1024 -> 512 -> 256 -> 256. Where a pyramid's finest level is
    narrower than `width`, and for ViTs, 1x1 lateral convolutions give the whole path that width.

    With 4 levels, which is not the paper's, the path is one level further down, from stride 32 to stride 8,
    and always `width` wide. It begins with a linear view of the map that the backbone's own classifier pools,
    and this view is also added at its end: the branch can be a linear classifier of that map, and more.
    """

    def __init__(
        self,
        backbone: str,
        emotions: int,
        width: int,
        levels: int = 3,
        depth: int = 0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.pyramid = build_pyramid(backbone, levels, first=levels - 2, depth=depth, drop_path=drop_path)
        fine, middle, coarse = self.pyramid.channels[-3:]
        self.tail = Tail(backbone) if levels == 4 else None
        self.lateral_fine, self.lateral_middle = nn.Identity(), nn.Identity()
        if fine < width or self.tail or isinstance(self.pyramid, ViTPyramid):
            self.lateral_fine, self.lateral_middle = nn.Conv2d(fine, width, 1), nn.Conv2d(middle, width, 1)
            fine = middle = width
        if self.tail:
            self.coarse = nn.Conv2d(self.tail.channels, middle, 1)
        else:
            self.coarse = ConvBNReLU(coarse, middle)
        self.middle = ConvBNReLU(middle, fine)
        self.fine = ConvBNReLU(fine, fine)
        self.classifier = nn.Linear(fine, emotions)
        for conv in (self.coarse if self.tail else self.coarse[0], self.middle[0], self.fine[0]):
            nn.init.xavier_normal_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Resized pictures -> logits (N, E) and features z (N, C, h, w), h = ceil(H / 4); of 4, H / 8."""
        levels = self.pyramid(images)  # (N, 256, h, w), (N, 512, h/2, w/2), (N, 1024, h/4, w/4)
        fine, middle = self.lateral_fine(levels[-3]), self.lateral_middle(levels[-2])
        deepest = self.tail.last_map(levels[-1]) if self.tail else levels[-1]  # (N, 1024, h/4, w/4)
        coarse = self.coarse(deepest)  # (N, 512, h/4, w/4)
        x = resize(coarse, middle.shape[2:], align_corners=True) + middle  # (N, 512, h/2, w/2)
        x = resize(self.middle(x), fine.shape[2:], align_corners=True) + fine  # (N, 256, h, w)
        features = self.fine(x)  # (N, 256, h, w)
        if self.tail:  # the classifier stays linear in z, so the maps stay exact
            features = features + resize(coarse, features.shape[2:], align_corners=True)
        return self.classifier(features.mean(dim=(2, 3))), features

    def class_activation_maps(self, features: Tensor) -> Tensor:
        """z (N, C, h, w) -> (N, E, h, w), each map scaled to [0, 1] by itself. Always float32.

        CAM_k = (M_k - min M_k) / (max M_k - min M_k + 1e-12), M_k = sum_c W[k, c] z[c].
        """
        with torch.autocast(features.device.type, enabled=False):  # 1e-12 would vanish in float16
            weight = self.classifier.weight.float()
            maps = torch.einsum("ec,nchw->nehw", weight, features.float())  # (N, E, h, w)
            maps = maps - maps.amin(dim=(2, 3), keepdim=True)
            return maps / (maps.amax(dim=(2, 3), keepdim=True) + 1e-12)

    def emotion_map(self, logits: Tensor, features: Tensor) -> Tensor:
        """The emotion-aware map (N, 1, h, w) in [0, 1]: EAM = sum_k p_k CAM_k, p = softmax(logits)."""
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            probability = logits.float().softmax(dim=1)[:, :, None, None]  # (N, E, 1, 1)
            maps = self.class_activation_maps(features)  # (N, E, h, w)
            return (probability * maps).sum(dim=1, keepdim=True).clamp(max=1)  # rounding may give more


class EmotionNetwork(HubNetwork):
    """The emotion branch alone, for training it on emotions; its `prediction` is the emotion distribution.

    Its tensors are named as in EAMBNet (`emotion.*`), so that the weights of one load into the other.
    """

    def __init__(
        self,
        backbone: str,
        emotions: tuple[str, ...],
        emotion_scale: float,
        width: int,
        emotion_levels: int = 3,
        depth: int = 0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        arguments = {"backbone": backbone, "emotions": tuple(emotions), "emotion_scale": emotion_scale}
        arguments |= {"width": width, "emotion_levels": emotion_levels}
        self.arguments = arguments | {"depth": depth, "drop_path": drop_path}
        check_arguments(self.arguments)
        self.emotion = EmotionBranch(backbone, len(emotions), width, emotion_levels, depth, drop_path)
        self.emotion_scale = emotion_scale

    def forward(self, images: Tensor) -> Output:
        check_size(images)
        logits, features = self.emotion(shrink(images, self.emotion_scale))
        return Output(logits.float().softmax(dim=1), logits, self.emotion.emotion_map(logits, features))

    def class_activation_maps(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, E, h, w) in [0, 1], one map per emotion."""
        check_size(images)
        _, features = self.emotion(shrink(images, self.emotion_scale))
        return self.emotion.class_activation_maps(features)


# ---- Fusion of detail, context and emotion


class PlainFusion(nn.Module):
    """Ablation of GuidedFusion: adds the coarse map y to the fine map x with the same weight everywhere."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + resize(y, x.shape[2:], align_corners=False)


class Fusion(nn.Module):
    """Merges the detail map and three context maps into one map F, `width` channels at the detail map's size.

    Without the detail map F has the finest context map's size; without context it comes from detail alone.
    """

    def __init__(
        self, detail: int, context: tuple[int, ...], width: int, guided: int, hidden: int, plain: bool
    ):
        super().__init__()
        if detail:
            self.detail = ConvBNReLU(detail, guided)
        if context:
            fine, middle, coarse = context
            self.context_fine = ConvBNReLU(fine, guided)
            self.context_middle = ConvBNReLU(middle, guided)
            if detail:
                self.guide_fine = PlainFusion() if plain else GuidedFusion(guided, hidden)
            self.guide_middle = PlainFusion() if plain else GuidedFusion(guided, hidden)
        self.expand = ConvBNReLU(guided, width)
        if context:
            self.semantic_conv = nn.Conv2d(coarse, width, 1)
            self.semantic_norm = nn.BatchNorm2d(width)
        self.merge = ConvBNReLU(2 * width if context else width, width)

    def forward(self, detail: Tensor | None, context: Sequence[Tensor]) -> Tensor:
        """(N, 512, H/8, W/8); (N, 512, H/16, W/16), (N, 1024, H/32, W/32), (N, 2048, H/64, W/64)
        -> (N, 256, H/8, W/8)."""
        if not context:
            return self.merge(self.expand(self.detail(detail)))  # (N, 256, H/8, W/8)
        fine, middle, coarse = context
        guided = self.context_fine(fine)  # (N, 56, H/16, W/16)
        if detail is not None:
            guided = self.guide_fine(self.detail(detail), guided)  # (N, 56, H/8, W/8)
        guided = self.guide_middle(guided, self.context_middle(middle))  # (N, 56, H/8, W/8)
        guided = self.expand(guided)  # (N, 256, H/8, W/8)
        # A 1x1 convolution and a resize commute (both linear, the resize's weights sum to 1), and before the
        # resize there are 64 times fewer positions. BatchNorm stays after it, or its statistics would change.
        semantic = self.semantic_conv(coarse)  # (N, 256, H/64, W/64)
        semantic = resize(semantic, guided.shape[2:], align_corners=True)  # (N, 256, H/8, W/8)
        semantic = F.relu(self.semantic_norm(semantic))
        return self.merge(torch.cat([guided, semantic], dim=1))


class EAMBNet(HubNetwork):
    """Detail, context and emotion branch; `forward(images (N, 3, H, W), normalised)` gives an `Output`.

    By default the emotion branch is frozen: it stays in evaluation mode, its parameters get no gradient.
    Ablations are built `without` some of PARTS: without "emotion" the map is 1 everywhere, without
    "guided_fusion" maps are simply added, without "attention" there is no CBAM.

    Args:
        backbone: "resnet50", a timm name with maps at strides 4, 8, 16, 32, or a plain ViT of timm.
        outputs: 1 for a sigmoid, K for a softmax over K rating bins.
        emotions: class names of the emotion branch, in the order of its logits.
        width: channels of the fused map, and of the emotion path of narrow backbones (Lite: 128).
        context_scale, emotion_scale: factors, at most 1, by which the two branches resize their input.
        emotion_batchnorm: "frozen", or "official": the emotion branch's BatchNorm statistics change in
            training, as in the released code.
        train_emotion: train the emotion branch too, through its logits; its map still carries no gradient.
        without: some of PARTS, for ablations; not both "detail" and "context".
        shortcut: the head also gets the context branch's deepest map, through the backbone's last layers.
        share_backbone: the detail map is the context branch's map at stride 8: both see the same picture. Of
            no effect without one of the two.
        emotion_backbone: of the emotion branch, if it is another one.
        emotion_levels: 3, or 4 for an emotion branch from stride 8 to 32 (`EmotionBranch`).
        emotion_width: channels of the emotion path, if other than `width`.
        depth, drop_path: as in `build_pyramid`; of the emotion branch only if it is on the same backbone.

    Raises:
        ValueError: an argument out of range or an unknown backbone.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        outputs: int = 10,
        *,
        emotions: tuple[str, ...] = EMOTIONS,
        width: int = 256,
        guided_width: int = 56,
        guided_hidden: int = 16,
        head_width: int = 128,
        dropout: float = 0.75,
        context_scale: float = 0.5,
        emotion_scale: float = 0.5,
        emotion_batchnorm: str = "frozen",
        train_emotion: bool = False,
        without: tuple[str, ...] = (),
        shortcut: bool = False,
        share_backbone: bool = False,
        emotion_backbone: str = "",
        emotion_levels: int = 3,
        emotion_width: int = 0,
        depth: int = 0,
        drop_path: float = 0.0,
    ):
        without = tuple(without)
        emotions = () if "emotion" in without else tuple(emotions)
        given = dict(locals())
        super().__init__()
        self.arguments = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        check_arguments(self.arguments)
        self.context_scale, self.emotion_scale = context_scale, emotion_scale
        self.emotion_batchnorm, self.train_emotion = emotion_batchnorm, train_emotion
        taken = {"depth": depth, "drop_path": drop_path}
        self.share_backbone = share_backbone and not {"detail", "context"} & set(without)
        alone = "detail" not in without and not self.share_backbone
        self.detail = build_pyramid(backbone, levels=2, first=2, **taken) if alone else None
        self.context = (
            build_pyramid(backbone, levels=4, first=2, **taken) if "context" not in without else None
        )
        self.emotion = None
        if "emotion" not in without:
            seeing = emotion_backbone or backbone
            if seeing != backbone:
                depth = drop_path = 0
            dropped = drop_path if train_emotion else 0
            channels = emotion_width or width
            branch = EmotionBranch(seeing, len(emotions), channels, emotion_levels, depth, dropped)
            self.emotion = branch.requires_grad_(train_emotion)
            self.renormalise = Renormalise(backbone, seeing)
        detailed = self.context if self.share_backbone else self.detail
        detail = detailed.channels[1] if detailed else 0
        context = self.context.channels[1:] if self.context else ()
        plain = "guided_fusion" in without
        self.fusion = Fusion(detail, context, width, guided_width, guided_hidden, plain)
        self.attention = CBAM(width) if "attention" not in without else nn.Identity()
        self.emotion_merge = ConvBNReLU(2 * width, width)
        self.tail = Tail(backbone) if shortcut else None
        self.head = Head(width + (self.tail.channels if shortcut else 0), head_width, outputs, dropout)
        self.train()

    def train(self, mode: bool = True) -> EAMBNet:
        super().train(mode)
        if self.emotion:
            self.emotion.train(mode and (self.train_emotion or self.emotion_batchnorm == "official"))
        return self

    def forward(self, images: Tensor, emotions: tuple[Tensor, Tensor] | None = None) -> Output:
        """(N, 3, H, W) -> Output. emotions: the frozen branch's `emotions(images)`, if computed already."""
        check_size(images)
        small = shrink(images, self.context_scale)  # (N, 3, H/2, W/2)
        logits, emotion_map = emotions or self.emotions(images)  # (N, E), (N, 1, H/8, W/8)

        context = self.context(small)[1:] if self.context else ()
        detail = self.detail(images)[1] if self.detail else None  # (N, 512, H/8, W/8)
        if self.share_backbone:
            detail = context[0]
        fused = self.fusion(detail, context)  # (N, 256, H/8, W/8)

        weight = resize(emotion_map, fused.shape[2:], align_corners=False).to(fused.dtype)  # (N, 1, H/8, W/8)
        emotional = self.attention(fused * weight)  # (N, 256, H/8, W/8)
        merged = self.emotion_merge(torch.cat([emotional, fused], dim=1))  # (N, 256, H/8, W/8)
        pooled = merged.mean(dim=(2, 3))  # (N, 256)
        if self.tail:
            pooled = torch.cat([pooled, self.tail(context[-1])], dim=1)  # (N, 256 + 2048)
        prediction = as_prediction(self.head(pooled))  # (N, K)
        return Output(prediction, logits, emotion_map)

    def emotions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The emotion branch's logits (N, E) and map (N, 1, h, w) for pictures (N, 3, H, W)."""
        if not self.emotion:
            return no_emotions(images)
        with torch.set_grad_enabled(self.train_emotion and torch.is_grad_enabled()):
            logits, features = self.emotion(self.renormalise(shrink(images, self.emotion_scale)))
        return logits, self.emotion.emotion_map(logits, features)

    def class_activation_maps(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, E, h, w) in [0, 1], one map per emotion."""
        check_size(images)
        if not self.emotion:
            return images.new_empty(len(images), 0, 1, 1)
        with torch.no_grad():
            _, features = self.emotion(self.renormalise(shrink(images, self.emotion_scale)))
            return self.emotion.class_activation_maps(features)


class LinearNetwork(nn.Module):
    """The field's baseline (NIMA, Talebi & Milanfar 2018): the whole backbone, pooled, and one linear layer.

    Gives an `Output` without emotions, as an EAMBNet without the branch does.
    """

    def __init__(self, backbone: str, outputs: int, dropout: float, depth: int = 0, drop_path: float = 0.0):
        super().__init__()
        checked = {"outputs": outputs, "dropout": dropout, "depth": depth, "drop_path": drop_path}
        self.arguments = {"backbone": backbone, **checked, "emotions": ()}
        check_arguments(checked)
        self.context = build_pyramid(backbone, levels=4, first=4, depth=depth, drop_path=drop_path)
        self.tail = Tail(backbone)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.tail.channels, outputs))

    def forward(self, images: Tensor) -> Output:
        check_size(images)
        pooled = self.tail(self.context(images)[-1])  # (N, 2048)
        return Output(as_prediction(self.head(pooled)), *no_emotions(images))


def build_model(backbone: str = "resnet50", outputs: int = 10, **arguments) -> EAMBNet:
    """EAMB-Net with random weights; reads no file. The arguments are `EAMBNet`'s, by default the paper's.

    `build_model(**model.arguments)` builds the same network again.
    """
    return EAMBNet(backbone, outputs, **arguments)


def check_arguments(arguments: dict) -> None:
    """Raises ValueError for a value out of range; serves all networks here, so checks only what is given."""
    for name, value in arguments.items():
        if name in ("context_scale", "emotion_scale") and not 0 < value <= 1:
            raise ValueError(f"EAMBNet: {name} must be above 0 and at most 1, got {value}")
        if name in ("outputs", "width", "guided_width", "guided_hidden", "head_width") and value < 1:
            raise ValueError(f"EAMBNet: {name} must be at least 1, got {value}")
        if name in ("dropout", "drop_path") and not 0 <= value < 1:
            raise ValueError(f"EAMBNet: {name} must be from 0 to below 1, got {value}")
        if name == "emotion_levels" and value not in (3, 4):
            raise ValueError(f"EAMBNet: emotion_levels must be 3 or 4, got {value}")
        if name == "depth" and value < 0:
            raise ValueError(f"EAMBNet: depth must be a number of blocks, or 0 for all, got {value}")
        if name == "emotion_width" and value < 0:
            raise ValueError(
                f"EAMBNet: emotion_width must be a number of channels, or 0 for width, got {value}"
            )
        if name == "emotion_batchnorm" and value not in ("frozen", "official"):
            raise ValueError(f"EAMBNet: emotion_batchnorm must be frozen or official, got '{value}'")
    emotions, without = arguments.get("emotions", EMOTIONS), set(arguments.get("without", ()))
    if len(set(emotions)) != len(emotions) or not (emotions or "emotion" in without):
        raise ValueError(f"EAMBNet: emotions must be different names, got {emotions}")
    if unknown := ", ".join(without - set(PARTS)):
        raise ValueError(f"EAMBNet: without must name some of {', '.join(PARTS)}, got '{unknown}'")
    if {"detail", "context"} <= without:
        raise ValueError("EAMBNet: a network needs its detail or its context branch, got without both")
    needs = {"shortcut": {"context"}, "train_emotion": {"emotion"}}
    for name, parts in needs.items():
        if arguments.get(name) and parts & without:
            raise ValueError(f"EAMBNet: {name} needs the {min(parts & without)} branch, got without it")
    if arguments.get("share_backbone") and arguments["context_scale"] != 1:
        raise ValueError(
            "EAMBNet: share_backbone needs detail and context to see the same picture: context_scale=1, got "
            f"{arguments['context_scale']}"
        )
