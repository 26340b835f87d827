"""Entries for torch.hub.

    network = torch.hub.load("FOLDER", "eambnet_lite_para", source="local")  # or "OWNER/NAME" on GitHub
    prediction = network(images).prediction  # (N, K), of normalised pictures (N, 3, H, W)
    scored = network.scorer(device="cpu").score("photo.jpg")

Each entry gives a network in evaluation mode on the CPU. `network.description` says which pictures it takes
(image_size, mean, std) and what its output means (scale, emotions); `network.scorer` takes the arguments of
`eamb.inference.scorer.Scorer`, but for the first.
"""

from __future__ import annotations

# Imports are inside the functions: torch.hub first says which of these packages are missing.
dependencies = ["huggingface_hub", "numpy", "PIL", "safetensors", "timm", "torch", "torchvision", "yaml"]


def eambnet_lite_para():
    """EAMB-Net Lite: ratings, mean and spread, and emotions (checkpoints/eambnet_lite_para.md)."""
    return _shipped("eambnet_lite_para")


def emotion_lite_para():
    """An emotion branch alone (checkpoints/emotion_lite_para.md); its Scorer gives no scores."""
    return _shipped("emotion_lite_para")


def eambnet_resnet50(outputs: int | None = None, weights: str | None = None):
    """The paper's network.

    Args:
        outputs: 1 for a sigmoid, K for a softmax over K rating bins; by default those of the weights, or 10.
        weights: a file of this program, a folder as a hub has it, or a state dict of the official code, which
            has no description; without it the weights are random.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a weights file, or of another network.
    """
    from eamb.weights import checkpoint
    from EAMBNet import build_model

    if weights is None:
        return _with_scorer(build_model("resnet50", 10 if outputs is None else outputs).eval())
    read = checkpoint.read_source(weights).weights
    kind = read.task, read.description.get("network", "eambnet"), read.description["architecture"]["backbone"]
    if kind != ("aesthetics", "eambnet", "resnet50"):
        raise ValueError(
            f"hubconf: {weights} must hold a whole EAMBNet on resnet50; it is of {', '.join(kind)}"
        )
    given = read.tensors["head.5.bias"].numel()
    if outputs not in (None, given):
        raise ValueError(f"hubconf: {weights} has {given} outputs, not {outputs}; leave out outputs")
    if "format" in read.description:
        return _with_scorer(read.build())
    network = build_model("resnet50", given, emotions=read.emotions)
    checkpoint.load_tensors(network, read.tensors, str(weights))
    return _with_scorer(network.eval())


def _shipped(name: str):
    from eamb.weights.checkpoint import load_weights
    from eamb.weights.shipped import FOLDER

    return _with_scorer(load_weights(FOLDER / f"{name}.safetensors").build())


def _with_scorer(network):
    from functools import partial

    from eamb.inference.scorer import Scorer

    network.scorer = partial(Scorer, network)
    return network
