"""Runs a network that scripts/export.py wrote, with OpenVINO instead of PyTorch.

    from eamb.inference.exported import Exported
    network = Exported("eambnet_lite_para.onnx")
    [(_, output)] = network.outputs([batch], batch_size=16)  # as engine.outputs yields it

The file is ONNX (fp32) or a zip of OpenVINO's own format (int8). Its metadata hold everything that a file of
weights holds besides tensors. OpenVINO is imported only when such a file is opened.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from eamb.network.outputs import Output
from eamb.runtime.engine import filled_up
from eamb.weights import checkpoint

KEY = "eambnet"  # of the metadata
PLACE = ["framework", KEY]  # where OpenVINO keeps ONNX's metadata of that key
PARTS = ("network.xml", "network.bin")  # of a zip
ENDINGS = {"fp32": ".onnx", "int8": ".int8"}  # of the file, by precision
INPUT = "images"  # uint8 (N, 3, H, W), RGB


def metadata(weights: checkpoint.Weights, export: dict) -> str:
    """Everything but the tensors, as JSON.

    Args:
        export: what is known only of the export: "precision" and the differences from PyTorch.
    """
    ids = {checkpoint.IDS: weights.training_ids, checkpoint.EMOTION_IDS: weights.emotion_training_ids}
    texts = {name: base64.b64encode(values.astype("<i8")).decode() for name, values in ids.items()}
    return json.dumps({"description": weights.description, "export": export, **texts})


def parse_metadata(text: str, path: Path | str) -> tuple[checkpoint.Weights, dict]:
    """What `metadata` wrote: weights without tensors, and the export.

    Raises:
        ValueError: it is damaged or of another version, or the description contradicts itself.
    """
    try:
        values = json.loads(text)
        described, export = json.dumps(values["description"]), values["export"]
        ids = [
            np.frombuffer(base64.b64decode(values[name]), "<i8").astype(np.int64)
            for name in (checkpoint.IDS, checkpoint.EMOTION_IDS)
        ]
        if export["precision"] not in ENDINGS:
            raise ValueError(f"precision {export['precision']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"exported: the metadata of {path} are damaged ({error}); export it anew") from error
    description = checkpoint.read_description(described, path)
    return checkpoint.Weights({}, description, *ids, path=str(path)), export


def openvino():
    """The package, imported only here; raises ValueError if it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise ValueError(
            "exported: exported networks run on OpenVINO, which is not installed; pip install openvino"
        ) from error
    return openvino


class Exported:
    """A network in a file that scripts/export.py wrote, compiled for the CPU; used as `TorchNetwork`.

    Args:
        precision: "fp32" or "int8", which the file must have; None accepts either.
        streams: calls that may run at the same time, each with its share of torch's threads.

    Attributes:
        weights: the description stored in the file, without tensors.
        export: its precision, and how much it differed from PyTorch when it was written.
        view: how it wants its pictures. device: the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: OpenVINO is missing; the file is damaged, not from scripts/export.py, or of another
            precision; its output for a black picture is not finite or does not fit the description.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path | str, precision: str | None = None, streams: int = 1):
        if not Path(path).is_file():
            raise FileNotFoundError(f"exported: no file {path}")
        core, content = openvino().Core(), Path(path).read_bytes()
        try:
            if content.startswith(b"PK"):
                with zipfile.ZipFile(io.BytesIO(content)) as parts:
                    model = core.read_model(*(parts.read(name) for name in PARTS))
            else:
                model = core.read_model(content)
            text = model.get_rt_info(PLACE).value
        except (RuntimeError, zipfile.BadZipFile, KeyError) as error:  # whatever is wrong with the file
            raise ValueError(
                f"exported: {path} was not written by scripts/export.py, is cut off or damaged; export a "
                "checkpoint with python scripts/export.py CHECKPOINT OUT"
            ) from error
        self.weights, self.export = parse_metadata(text, path)
        self.precision = self.export["precision"]
        if precision not in (None, self.precision):
            raise ValueError(
                f"exported: {path} computes in {self.precision}, asked for was {precision}; "
                "export it anew, with --int8 for int8 and without for fp32"
            )
        for node in model.get_ops():  # activations like ReLU6 would hide NaN
            values = node.data if node.get_type_name() == "Constant" else np.empty(0)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(
                    f"exported: {node.get_friendly_name()} in {path} holds values that are NaN or infinite; "
                    "export a sound checkpoint with scripts/export.py"
                )
        settings = {
            "NUM_STREAMS": max(1, streams),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",  # on newer CPUs it would choose bf16 by itself
        }
        scale, emotions = self.weights.scale, len(self.weights.emotions)
        values = 2 if self.weights.task == "series" else scale.outputs if scale else emotions
        try:
            self.view = self.weights.view
            self.network = core.compile_model(model, "CPU", settings)
            output = self.run(torch.zeros(1, 3, self.view.size, self.view.size, dtype=torch.uint8))
            shapes = [(1, values), (1, emotions), (1, 1, *output.emotion_map.shape[-2:])]
            for name, value, shape in zip(Output._fields, output, shapes, strict=True):
                if tuple(value.shape) != shape or not value.isfinite().all():
                    raise ValueError(f"{name} is not a number, or {tuple(value.shape)} and not {shape}")
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ValueError(
                f"exported: {path} cannot score a black picture as its description says ({reason}); the file "
                "or its weights are damaged; export a sound checkpoint with scripts/export.py"
            ) from error

    def run(self, images: torch.Tensor) -> Output:
        """(N, 3, H, W) uint8, RGB -> Output, float32; any thread may call it."""
        output = self.network.create_infer_request().infer(np.ascontiguousarray(images.numpy()))
        return Output(*(torch.from_numpy(output[name].copy()) for name in Output._fields))

    def outputs(self, loader: Iterable, batch_size: int) -> Iterator[tuple]:
        """Each batch with the network's output for it, as `engine.outputs`."""
        for batch in loader:
            output = self.run(filled_up(batch, batch_size).images)
            yield batch, Output(*(value[: len(batch.images)] for value in output))


def pack(path: Path, network, metadata: str) -> None:
    """Writes OpenVINO's own format, two files, as one zip, whose checksums reveal damage."""
    network.set_rt_info(metadata, PLACE)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w") as parts:
        openvino().serialize(network, *(Path(folder, name) for name in PARTS))
        for name in PARTS:
            parts.write(Path(folder, name), name)
