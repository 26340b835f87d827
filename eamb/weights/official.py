"""State dicts of the official code: their names and ours."""

from __future__ import annotations

import re

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

OFFICIAL_NAMES = {  # prefix of an official name -> prefix of ours
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
    "model_x": "detail",  # the same tensors again, under other names
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

OFFICIAL_UNUSED = (  # layers that the official code has and never runs
    *("model_x.layer3", "model_x.layer4", "model_x.fc", "model_s.fc"),
    *("CBR4", "emotion_model.backbone.feature4"),
)

EMOTION_FILE = ("emotion_module.", "backbone.feature")  # prefixes in a file of the emotion branch alone


def looks_official(content: dict) -> bool:
    """Whether it has names like the official code's; a file of ours has none."""
    prefixes = (*EMOTION_FILE, "emotion_model.", "feature", "CBR")
    return any(key.startswith(prefixes) for key in unwrapped(content))


def unwrapped(content: dict) -> dict:
    """The state dict inside a checkpoint, without the prefixes that DataParallel and others add."""
    for key in ("state_dict", "model_state_dict", "model"):
        content = content[key] if isinstance(content.get(key), dict) else content
    return {re.sub(r"^((module|model|_orig_mod)\.)+", "", str(key)): value for key, value in content.items()}


def translate_official(content: dict, source: str) -> Tensors:
    """Official names -> ours, without the unused layers.

    Raises:
        ValueError: lists the unknown names in `source`, and copies of one tensor that differ.
    """
    state = unwrapped(content)
    before = "emotion_model." if any(key.startswith(EMOTION_FILE) for key in state) else ""
    tensors, problems = {}, []
    for name, tensor in state.items():
        official = f"{before}{name}."  # so that prefixes match whole dotted parts
        if any(official.startswith(f"{unused}.") for unused in OFFICIAL_UNUSED):
            continue
        prefix = next((prefix for prefix in OFFICIAL_NAMES if official.startswith(f"{prefix}.")), None)
        if prefix is None or not isinstance(tensor, Tensor):
            if isinstance(tensor, Tensor):
                problems.append(f"unknown {name}")
            elif prefix:
                problems.append(f"{name} is not a tensor")
            continue  # such as an epoch number
        ours = OFFICIAL_NAMES[prefix] + official[len(prefix) : -1]
        first = tensors.setdefault(ours, tensor)
        if first.dtype != tensor.dtype or not torch.equal(first, tensor):
            problems.append(f"{name} differs from another copy of {ours}")
    if problems:
        listed = "; ".join(problems[:12])
        raise ValueError(f"checkpoint: {source} does not fit the official network: {listed}")
    return tensors
