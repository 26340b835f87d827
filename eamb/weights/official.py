"""State dicts of the official code: their names and ours."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

_RESNET_STEM = {"0": "conv1", "1": "bn1", "4": "layer1"}

OFFICIAL_NAMES = {  # beginning of an official name -> beginning of ours
    **{f"feature1_x.{i}": f"detail.{name}" for i, name in _RESNET_STEM.items()},
    **{f"feature1_s.{i}": f"context.{name}" for i, name in _RESNET_STEM.items()},
    **{f"emotion_model.backbone.feature1.{i}": f"emotion.pyramid.{name}" for i, name in _RESNET_STEM.items()},
    "feature2_x": "detail.layer2",
    **{f"feature{i}_s": f"context.layer{i}" for i in (2, 3, 4)},
    **{f"emotion_model.backbone.feature{i}": f"emotion.pyramid.layer{i}" for i in (2, 3)},
    **{f"model_x.{name}": f"detail.{name}" for name in ("conv1", "bn1", "layer1", "layer2")},
    **{
        f"model_s.{name}": f"context.{name}"
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    },
    "emotion_model.emotion_module.conv1": "emotion.coarse",
    "emotion_model.emotion_module.conv2": "emotion.middle",
    "emotion_model.emotion_module.conv3": "emotion.fine",
    "emotion_model.emotion_module.fc_layer": "emotion.classifier",
    **{
        f"{official}.{part}": f"{ours}.{i}"
        for official, ours in {
            "CBR1": "fusion.context_fine",
            "CBR2": "fusion.detail",
            "CBR3": "fusion.context_middle",
            "CBR5": "fusion.expand",
            "CBR6": "fusion.merge",
            "CBR7": "emotion_merge",
        }.items()
        for i, part in enumerate(("conv", "bn"))
    },
    "up1.conv": "fusion.semantic_conv",
    "up1.bn": "fusion.semantic_norm",
    "SADEM1.f_x": "fusion.guide_fine.key",
    "SADEM1.f_y": "fusion.guide_fine.query",
    "SADEM2.f_x": "fusion.guide_middle.key",
    "SADEM2.f_y": "fusion.guide_middle.query",
    "CBAM": "attention",
    "head": "head",
}

OFFICIAL_UNUSED = (  # registered there, never run
    "model_x.layer3",
    "model_x.layer4",
    "model_x.fc",
    "model_s.fc",
    "CBR4",
    "emotion_model.backbone.feature4",
)


def looks_official(content: dict) -> bool:
    """Whether names like the official code's are in it; a file of ours has none."""
    state = unwrapped(content)
    return is_emotion_file(state) or any(
        key.startswith(("emotion_model.", "feature", "CBR")) for key in state
    )


def is_emotion_file(state: dict) -> bool:
    """Whether it is the official emotion branch on its own."""
    return any(key.startswith(("emotion_module.", "backbone.feature")) for key in state)


def unwrapped(content: dict) -> dict:
    """The state dict inside a checkpoint: the entry "model" if there is one, without "module." prefixes."""
    state = content["model"] if isinstance(content.get("model"), dict) else content
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def translate_official(content: dict) -> tuple[Tensors, list[str]]:
    """Official names -> ours, without the unused layers.

    Returns:
        The tensors, and in words what is wrong: unknown names and unequal copies of one tensor.
    """
    state = unwrapped(content)
    beginning = "emotion_model." if is_emotion_file(state) else ""
    tensors, origin, problems = {}, {}, []
    for name, tensor in state.items():
        if begins(beginning + name, OFFICIAL_UNUSED):
            continue
        ours = our_name(beginning + name)
        if ours is None:
            problems.append(f"unknown {name}")
        elif ours in tensors and not equal(tensors[ours], tensor):
            problems.append(f"{origin[ours]} and {name} are copies of one tensor, but differ")
        else:
            tensors[ours], origin[ours] = tensor, name
    return tensors, problems


def equal(a, b) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)


def begins(name: str, beginnings: Iterable[str]) -> bool:
    """Whether one of the dotted beginnings is the name or stands before one of its dots."""
    return any(name == beginning or name.startswith(f"{beginning}.") for beginning in beginnings)


def our_name(official: str) -> str | None:
    for beginning, ours in OFFICIAL_NAMES.items():
        if begins(official, (beginning,)):
            return ours + official[len(beginning) :]
    return None


def official_name(ours: str) -> str:
    for official, beginning in OFFICIAL_NAMES.items():
        if begins(ours, (beginning,)):
            return official + ours[len(beginning) :]
    return ours
