"""State dicts of the official code: their names and ours."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

OFFICIAL_NAMES = {  # beginning of an official name -> beginning of ours
    **{
        f"{official}.{i}": f"{ours}.{name}"
        for official, ours in (
            ("feature1_x", "detail"),
            ("feature1_s", "context"),
            ("emotion_model.backbone.feature1", "emotion.pyramid"),
        )
        for i, name in ((0, "conv1"), (1, "bn1"), (4, "layer1"))
    },
    "feature2_x": "detail.layer2",
    **{f"feature{i}_s": f"context.layer{i}" for i in (2, 3, 4)},
    **{f"emotion_model.backbone.feature{i}": f"emotion.pyramid.layer{i}" for i in (2, 3)},
    "model_x": "detail",  # the same tensors once more
    "model_s": "context",
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

EMOTION_FILE = ("emotion_module.", "backbone.feature")  # names begin so in a file of the emotion branch alone


def looks_official(content: dict) -> bool:
    """Whether names like the official code's are in it; a file of ours has none."""
    beginnings = (*EMOTION_FILE, "emotion_model.", "feature", "CBR")
    return any(key.startswith(beginnings) for key in unwrapped(content))


def unwrapped(content: dict) -> dict:
    """The state dict inside a checkpoint: the entry "model" if there is one, without "module." prefixes."""
    state = content["model"] if isinstance(content.get("model"), dict) else content
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def translate_official(content: dict) -> tuple[Tensors, str, list[str]]:
    """Official names -> ours, without the unused layers.

    Returns:
        The tensors; what the file's names leave out at their beginning; and in words what is wrong: unknown
        names and unequal copies of one tensor.
    """
    state = unwrapped(content)
    left_out = "emotion_model." if any(key.startswith(EMOTION_FILE) for key in state) else ""
    tensors, origin, problems = {}, {}, []
    for name, tensor in state.items():
        if any(begins(left_out + name, unused) for unused in OFFICIAL_UNUSED):
            continue
        ours = renamed(left_out + name, OFFICIAL_NAMES.items())
        if ours is None:
            problems.append(f"unknown {name}")
        elif ours in tensors and not equal(tensors[ours], tensor):
            problems.append(f"{origin[ours]} and {name} are copies of one tensor, but differ")
        else:
            tensors[ours], origin[ours] = tensor, name
    return tensors, left_out, problems


def official_name(ours: str) -> str:
    return renamed(ours, ((new, old) for old, new in OFFICIAL_NAMES.items())) or ours


def equal(a, b) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)


def begins(name: str, beginning: str) -> bool:
    """Whether the dotted beginning is the name or stands before one of its dots."""
    return f"{name}.".startswith(f"{beginning}.")


def renamed(name: str, beginnings: Iterable[tuple[str, str]]) -> str | None:
    for old, new in beginnings:
        if begins(name, old):
            return new + name[len(old) :]
    return None
