"""Writes a network for OpenVINO, as ONNX in fp32 or in int8, and compares it with PyTorch.

    python scripts/export.py checkpoints/eambnet_lite_para.safetensors lite.onnx
    python scripts/export.py CHECKPOINT lite.int8 --int8 --calibrate PHOTOS

In: uint8 RGB (N, 3, H, W) of the checkpoint's size, any N. Out: prediction, emotion_logits, emotion_map.
Needs pip install onnx openvino, and nncf for --int8.

Int8 networks are in OpenVINO's own format, because OpenVINO computed wrong values from the int8 ONNX file
that NNCF made of the same network (SRCC on PARA .71 instead of .86).

The file is not written if any output is not finite or differs from PyTorch's on the pictures of --check by
more than 1e-4 (fp32) or INT8_LIMITS. In int8, if the emotion branch was never trained, only the score is
compared.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from eamb.files import written_whole
from eamb.inference.exported import ENDINGS, INPUT, KEY, Exported, metadata, openvino, pack
from eamb.network import backbones, vit
from eamb.network.outputs import Output
from eamb.readers.decoding import View, decode_views, normalise
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.runtime.command import check_output, guarded
from eamb.weights import checkpoint

TOLERANCE = 1e-4  # fp32: largest difference of prediction, logits and map
INT8_LIMITS = {  # largest differences
    "score": 0.1,  # share of the scale; pairs: a probability. The worst of 3,000 PARA pictures has .07
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
    precision = "int8" if options.int8 else "fp32"
    if options.output.suffix != ENDINGS[precision]:
        raise ValueError(f"export: the output must end in {ENDINGS[precision]}, got {options.output.name}")
    check_output("export", options.output.parent, [options.output.name], options.force)
    if options.int8 != bool(options.calibrate):
        raise ValueError("export: --int8 and --calibrate PHOTOS belong together; about 300 training pictures")
    if find_spec("onnx") is None or (options.int8 and find_spec("nncf") is None):
        raise ValueError("export: a package is missing; pip install onnx openvino nncf")
    weights = checkpoint.load_weights(options.checkpoint)
    whole = Whole(weights.build(), weights.description["architecture"]["backbone"]).eval()
    size = weights.view.size
    pictures = read_pictures(options.check, weights.view) if options.check else embedded_pictures(size)
    graph = trace(whole, pictures)
    if options.int8:
        os.environ.setdefault("NNCF_CI", "1")  # or it reports its use to its developers
        import nncf

        batches = read_pictures(options.calibrate, weights.view).contiguous().split(4)
        model, ranges = openvino().Core().read_model(graph.SerializeToString()), [b.numpy() for b in batches]
        network = nncf.quantize(model, nncf.Dataset(ranges), subset_size=len(ranges))

    def write(path: Path, about: dict) -> None:
        if options.int8:
            pack(path, network, metadata(weights, about))
            return
        del graph.metadata_props[:]
        graph.metadata_props.add(key=KEY, value=metadata(weights, about))
        path.write_bytes(graph.SerializeToString())

    about = {"precision": precision, "pictures": len(pictures)}
    with written_whole(options.output) as temporary:
        write(temporary, about)
        batches = [batch for size in (1, 2, 5) for batch in pictures.split(size)]  # any batch size must work
        with torch.inference_mode():
            expected, output = (
                Output(*map(torch.cat, zip(*map(run, batches), strict=True)))
                for run in (whole, Exported(temporary).run)
            )
        about["differences"] = differences(weights, expected, output, precision)
        write(temporary, about)
    listed = ", ".join(f"{name} {value:.1e}" for name, value in about["differences"].items())
    print(f"{options.output}: {precision}, {options.output.stat().st_size / 1e6:.1f} MB")
    print(f"largest differences from PyTorch on {len(pictures)} pictures: {listed}")
    return 0


def read_pictures(paths: list[Path], view: View) -> Tensor:
    """Files -> (n, 3, size, size) uint8."""
    return torch.stack([torch.from_numpy(decode_views(path, [view])[0]).permute(2, 0, 1) for path in paths])


def embedded_pictures(size: int) -> Tensor:
    """The photographs that come with installed packages, (n, 3, size, size) uint8."""
    pictures = [np.array(open_photograph(one).resize((size, size))) for one in PHOTOGRAPHS]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def trace(whole: nn.Module, pictures: Tensor):
    """The network as an ONNX graph (onnx.ModelProto), for pictures of one size and any number."""
    import onnx

    file, fields = io.BytesIO(), list(Output._fields)
    vit.fix_positions(whole, pictures[:2])
    with warnings.catch_warnings(), torch.no_grad():
        # Warnings: sizes become constants, as intended; the newer exporter needs one more package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            whole,
            (pictures[:2],),
            file,
            input_names=[INPUT],
            output_names=fields,
            dynamic_axes={name: {0: "N"} for name in (INPUT, *fields)},
            opset_version=17,
            dynamo=False,
        )
    return onnx.load_model_from_string(file.getvalue())


def differences(weights: checkpoint.Weights, expected: Output, output: Output, precision: str) -> dict:
    """The largest difference, by name, in each field of Output and in values computed from them.

    "score" is a share of the scale (emotion networks: a probability; pair networks: that of a pair),
    "emotion_probability" that of any emotion, "mean_map" a mean, because single positions say little.

    Raises:
        ValueError: a difference is above its limit, a value is not finite, or shapes differ.
    """
    values = {name: list(pair) for name, *pair in zip(Output._fields, expected, output, strict=True)}
    values["score"] = values["prediction"]
    if weights.task == "series":  # odds off by d change a pair's probability by at most 2d / 4
        values["score"] = [odds / 2 for odds in values["prediction"]]
    elif weights.scale:
        low, high = weights.scale.ends
        scores = [torch.from_numpy(weights.scale.value(one.numpy())) for one in values["prediction"]]
        values["score"] = [score / (high - low) for score in scores]
    values["emotion_probability"] = [logits.softmax(dim=1) for logits in values["emotion_logits"]]
    values["mean_map"] = values["emotion_map"]
    limits = dict.fromkeys(Output._fields, TOLERANCE) if precision == "fp32" else INT8_LIMITS
    if precision == "int8" and weights.emotion_branch != "trained":  # `predict` shows none of its emotions
        limits = {"score": INT8_LIMITS["score"]}
    result = {}
    for name, (ours, theirs) in values.items():
        different = math.inf
        if ours.shape == theirs.shape and ours.isfinite().all() and theirs.isfinite().all():
            reduce = torch.mean if name == "mean_map" else torch.max
            different = reduce((ours - theirs).abs()).item() if ours.numel() else 0.0
        limit = limits.get(name, sys.float_info.max)
        if different > limit:
            raise ValueError(
                f"export: the exported network's {name} differs from PyTorch's by {different:.1e}, allowed "
                f"is {limit:.0e} (inf: no number, or another shape); nothing was written. Check that the "
                "checkpoint scores with PyTorch; for int8 --calibrate with more pictures"
            )
        result[name] = different
    return result


if __name__ == "__main__":
    sys.exit(main())
