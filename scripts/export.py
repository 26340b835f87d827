"""Writes a network for OpenVINO, in fp32 as ONNX or in int8, compared at once with PyTorch.

    python scripts/export.py checkpoints/eambnet_lite_para.safetensors lite.onnx
    python scripts/export.py CHECKPOINT lite.int8 --int8 --calibrate PHOTOS

In: uint8 RGB (N, 3, H, W) of the checkpoint's size, any N. Out: prediction, emotion_logits, emotion_map.
Needs pip install onnx openvino, and nncf for --int8.

Int8 is in OpenVINO's own form: of the same network as int8 ONNX (by NNCF) it computed something else, .71 of
SRCC on PARA in the place of .86.

Nothing is written that gives what is not a number, or that differs from PyTorch on a picture of --check by
more than
  fp32  1e-4 in any number;
  int8  a tenth of its scale in the score (of a pair network .1 of a pair's probability), .2 in an emotion's
        probability, .1 on the mean in the maps, which are from 0 to 1. Of an emotion branch that was never
        trained only the score counts.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from eamb.files import written_whole
from eamb.inference import exported
from eamb.inference.exported import ENDINGS, INPUT, KEY, Exported, metadata, openvino
from eamb.network import backbones
from eamb.network.outputs import Output
from eamb.readers.decoding import decode, normalise
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.runtime.command import guarded
from eamb.weights import checkpoint

TOLERANCE = 1e-4  # fp32: largest difference of prediction, logits and map
INT8_LIMITS = {  # largest differences
    "score": 0.1,  # as a share of its scale; the worst of 3,000 PARA pictures has .07
    "emotion_probability": 0.2,  # the shipped network has .02 on the photographs in scikit-image
    "mean_map": 0.1,  # maps are from 0 to 1; the shipped network has .04
}


class Whole(nn.Module):
    """The network with its normalisation inside: uint8 (N, 3, H, W) -> the fields of Output."""

    def __init__(self, model: nn.Module, backbone: str):
        super().__init__()
        self.model = model
        self.mean, self.std = backbones.normalisation(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(normalise(images, self.mean, self.std)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add, photos = parser.add_argument, {"nargs": "+", "metavar": "PHOTO", "type": Path, "default": []}
    add("checkpoint", type=Path, metavar="CHECKPOINT")
    add("output", type=Path, metavar="OUT", help="OUT.onnx; with --int8 OUT.int8")
    add("--int8", action="store_true", help="8-bit convolutions; needs --calibrate")
    add("--calibrate", **photos, help="about 300 training pictures")
    add("--check", **photos, help="default: those in scikit-image")
    add("--force", action="store_true", help="overwrite an existing file")
    return guarded(export, parser.parse_args(arguments))


def export(options: argparse.Namespace) -> int:
    ending = ENDINGS["int8" if options.int8 else "fp32"]
    if options.output.suffix != ending:
        raise ValueError(f"export: the output must end in {ending}, got {options.output.name}")
    if options.output.exists() and not options.force:
        raise FileExistsError(f"export: {options.output} exists; --force overwrites it")
    if options.int8 != bool(options.calibrate):
        raise ValueError("export: --int8 and --calibrate PHOTOS belong together; about 300 training pictures")
    weights = checkpoint.load_weights(options.checkpoint)
    whole = Whole(weights.build(), weights.description["architecture"]["backbone"]).eval()
    size, exif = weights.pictures
    pictures = read_pictures(options.check, size, exif) if options.check else embedded_pictures(size)
    graph, precision = trace(whole, pictures), "fp32"
    if options.int8:
        network, precision = quantize(graph, read_pictures(options.calibrate, size, exif)), "int8"

    def content(about: dict) -> bytes:
        text = metadata(weights, about)
        if options.int8:
            return exported.pack(network, text)
        del graph.metadata_props[:]
        graph.metadata_props.add(key=KEY, value=text)
        return graph.SerializeToString()

    about = {"precision": precision, "pictures": len(pictures)}
    draft = Exported(content(about), name=str(options.output))
    about["differences"] = largest_differences(draft, whole, pictures)
    refuse_different(about["differences"], precision, weights.emotion_branch == "trained")
    with written_whole(options.output) as temporary:
        temporary.write_bytes(content(about))
    listed = ", ".join(f"{name} {value:.1e}" for name, value in about["differences"].items())
    print(f"{options.output}: {precision}, {options.output.stat().st_size / 1e6:.1f} MB")
    print(f"largest differences from PyTorch on {len(pictures)} pictures: {listed}")
    return 0


def read_pictures(paths: list[Path], size: int | tuple[int, int], exif: bool) -> Tensor:
    """Files -> (n, 3, H, W) uint8."""
    return torch.stack([torch.from_numpy(decode(path, size, exif)).permute(2, 0, 1) for path in paths])


def embedded_pictures(size: int | tuple[int, int]) -> Tensor:
    """The photographs inside installed packages, (n, 3, H, W) uint8."""
    height, width = (size, size) if isinstance(size, int) else size
    pictures = [np.array(open_photograph(one).resize((width, height))) for one in PHOTOGRAPHS]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def needed(name: str, packages: str):
    """A package that only exporting needs."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"export: {name} is not installed; pip install {packages}") from error


def trace(whole: nn.Module, pictures: Tensor):
    """The network as an ONNX graph (onnx.ModelProto), for pictures of one size and any number."""
    onnx, file = needed("onnx", "onnx"), io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Of sizes that become constants, as they should; and that there is a newer exporter, which needs one
        # more package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            whole,
            (pictures[:2],),
            file,
            input_names=[INPUT],
            output_names=list(Output._fields),
            dynamic_axes={name: {0: "N"} for name in (INPUT, *Output._fields)},
            opset_version=17,
            dynamo=False,
        )
    graph = onnx.load_model_from_string(file.getvalue())
    onnx.checker.check_model(graph)
    return graph


def quantize(graph, pictures: Tensor):
    """An ONNX graph as OpenVINO's model, whose convolutions get 8-bit weights with a scale per channel.

    Args:
        pictures: (n, 3, H, W) uint8, whose activations say their ranges.
    """
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use to its makers
    nncf = needed("nncf", "nncf")
    batches = [batch.numpy() for batch in pictures.contiguous().split(4)]
    model = openvino().Core().read_model(graph.SerializeToString())
    return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))


def largest_differences(exported: Exported, whole: nn.Module, pictures: Tensor) -> dict[str, float]:
    """The largest `differences` from PyTorch in batches of 1, 2 and 5, for the batch is dynamic."""

    def joined(run: Callable, size: int) -> Output:
        with torch.inference_mode():
            return Output(*map(torch.cat, zip(*map(run, pictures.split(size)), strict=True)))

    expected = joined(whole, 5)
    each = [differences(exported.weights, expected, joined(exported.run, size)) for size in (1, 2, 5)]
    return {name: max(one[name] for one in each) for name in each[0]}


def differences(weights: checkpoint.Weights, expected: Output, output: Output) -> dict[str, float]:
    """The largest difference in each field of Output, and in what is read from them.

    "score" is a share of its scale (of an emotion network a probability, of a pair network that of a pair),
    "emotion_probability" of any emotion; "mean_map" is no largest difference but the mean over the maps, as
    single places of a map say little. Infinite where one is not a number or the shapes differ.
    """

    def largest(ours: Tensor, theirs: Tensor) -> float:
        if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
            return math.inf
        return (ours - theirs).abs().max().item() if ours.numel() else 0.0

    values = {name: largest(*pair) for name, *pair in zip(Output._fields, expected, output, strict=True)}
    score = values["prediction"]
    if weights.task == "series":  # odds off by d change a pair's probability by at most 2d / 4
        score = values["prediction"] / 2
    elif weights.scale:
        low, high = weights.scale.ends
        scores = (torch.from_numpy(weights.scale.value(one.prediction.numpy())) for one in (expected, output))
        score = largest(*scores) / (high - low)
    probabilities = (one.emotion_logits.softmax(dim=1) for one in (expected, output))
    mean_map = math.inf
    if math.isfinite(values["emotion_map"]):
        mean_map = (expected.emotion_map - output.emotion_map).abs().mean().item()
    return values | {"score": score, "emotion_probability": largest(*probabilities), "mean_map": mean_map}


def refuse_different(values: dict[str, float], precision: str, trained: bool = True) -> None:
    """Raises if the exported network gives what is not a number, or is too far from PyTorch.

    Args:
        trained: the emotion branch was. Else int8 may give it other emotions: `predict` shows none of them,
            and what they do to the score is in the score.
    """
    limits = dict.fromkeys(Output._fields, TOLERANCE)
    if precision == "int8":
        limits = INT8_LIMITS if trained else {"score": INT8_LIMITS["score"]}
    for name, difference in values.items():
        if not math.isfinite(difference):
            raise ValueError(
                f"export: the exported network's {name} is not a number, or not of PyTorch's shape, for some "
                "picture; nothing was written. Check that the checkpoint scores with PyTorch; in int8 "
                "--calibrate with other pictures"
            )
        if difference > limits.get(name, math.inf):
            raise ValueError(
                f"export: the exported network's {name} differs from PyTorch's by {difference:.1e}, allowed "
                f"is {limits[name]:.0e}; nothing was written. In int8 --calibrate with more pictures, like "
                "those of --check, or export in fp32"
            )


if __name__ == "__main__":
    sys.exit(main())
