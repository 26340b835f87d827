"""The frozen emotion branch's output for each picture and its mirror image, computed once and kept in files.

The maps are exact, in float32: in fp32, training with them equals training that computes them. In bf16 and
fp16 it does not, because there the branch itself runs in that precision (in bf16 a map changes by up to .03).

The folder has a subfolder for each branch, named by the hash of its weights and input, with files of up to
CHUNK pictures. A picture is identified by its set, id, file size and modification time.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import PictureSet, TestOrder, make_loader
from eamb.files import written_whole
from eamb.network import backbones
from eamb.readers.decoding import View
from eamb.readers.rated import RatedSet
from eamb.runtime import distributed
from eamb.runtime.command import check_output
from eamb.runtime.config import Config
from eamb.runtime.engine import Compute, allow_tf32, filled_up
from eamb.runtime.progress import progress
from eamb.weights import checkpoint
from EAMBNet import EAMBNet

CHUNK = 1024  # pictures in a file


class EmotionMaps:
    """Logits and maps of the pictures of a set, from the files in `folder`.

    missing: (m,) indices of the pictures that are in no file. Maps in a damaged file are computed again.
    """

    def __init__(self, folder: Path, rated: RatedSet):
        self.folder, self.rated, places = folder, rated, {}
        for path in sorted(folder.glob("*.npy")):
            with suppress(Exception):  # a damaged header may raise anything: SyntaxError, TokenError ...
                records = np.lib.format.open_memmap(path, mode="r")
                if records.dtype.names != ("key", "check", "logits", "maps"):
                    continue
                places |= {key: (records, row) for row, key in enumerate(records["key"].tolist())}
        self.places = [places.get(picture_key(rated, index)) for index in range(len(rated))]
        self.missing = np.array([i for i, place in enumerate(self.places) if place is None], np.int64)

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Emotion logits (N, E) and maps (N, 1, h, w), float32, of N pictures or their mirror images.

        Raises:
            ValueError: a picture has no map, or the file with its map was damaged after it was written.
        """
        logits, maps = [], []
        for i, turned in zip(index, mirrored, strict=True):
            if self.places[i] is None:
                raise ValueError(
                    f"emotion_maps: there is no map of {self.rated.ids[i]} ({self.rated.paths[i]}) in "
                    f"{self.folder}: it could not be decoded, or the processes do not share the folder"
                )
            records, row = self.places[i]
            record = records[row]
            if checksum(record["logits"], record["maps"]) != record["check"]:
                raise ValueError(f"emotion_maps: {records.filename} is damaged; delete it and start again")
            logits.append(record["logits"][int(turned)])
            maps.append(record["maps"][int(turned)])
        return torch.from_numpy(np.stack(logits)), torch.from_numpy(np.stack(maps))[:, None]


def prepare(config: Config, network: EAMBNet, rated: RatedSet, compute: Compute) -> EmotionMaps:
    """The maps of a set; those not yet in `train.emotion_maps` are computed first, by all processes together.

    Pictures that cannot be decoded have no map.

    Raises:
        OSError: the maps cannot be written.
    """
    data, batch_size = config.data, config.evaluate.batch_size
    view = View(data.size, data.exif, icc=data.icc)
    folder = Path(config.train.emotion_maps) / branch_key(network, view, compute)
    chunks = []
    try:
        if distributed.is_main():
            check_output("emotion_maps", folder)
            folder.mkdir(parents=True, exist_ok=True)
            missing = EmotionMaps(folder, rated).missing
            chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
        # One list for all: a process that listed the folder later would see new files of another.
        share = distributed.broadcast(chunks)[distributed.rank() :: distributed.world()]
        hidden = not (share and distributed.is_main())
        allow_tf32(False, compute.device)  # kept maps are exact on every device
        for chunk in progress(share, desc="emotion maps", unit=f" x {CHUNK} pictures", disable=hidden):
            pictures = PictureSet(rated.take(chunk), view.size, view.exif, skip_broken=True, icc=view.icc)
            order, on_gpu = TestOrder(len(pictures), batch_size), compute.device.type == "cuda"
            keys, rows = [picture_key(rated, index) for index in chunk], []
            for batch in make_loader(pictures, order, data.worker_count(), on_gpu, data.timeout):
                sides = []
                for images in (batch.images, batch.images.flip(3)):
                    filled = filled_up(batch._replace(images=images), batch_size)
                    logits, maps = run_branch(network, compute.images(filled))
                    sides.append((logits[: len(images)], maps[: len(images), 0]))  # (n, E), (n, h, w)
                logits, maps = (torch.stack(values, dim=1).numpy() for values in zip(*sides, strict=True))
                for index, *values in zip(batch.index.tolist(), logits, maps, strict=True):
                    rows.append((keys[index], checksum(*values), *values))
            if rows:
                shapes = [("logits", "<f4", logits.shape[1:]), ("maps", "<f4", maps.shape[1:])]
                records = np.array(rows, np.dtype([("key", "S32"), ("check", "<u4"), *shapes]))
                name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
                with written_whole(folder / f"{name}.npy") as path, path.open("wb") as file:
                    np.save(file, records)
    except ChildProcessError:  # of the loader
        raise
    except OSError as error:
        raise OSError(f"emotion_maps: {error}; make room, or leave out train.emotion_maps") from error
    distributed.wait_for_all()  # until all have written
    return EmotionMaps(folder, rated)


@torch.inference_mode()
def run_branch(network: EAMBNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """The branch's output in evaluation, in float32: logits (N, E) and maps (N, 1, h, w), on the CPU."""
    logits, maps = network.emotions(images)
    return logits.float().cpu(), maps.float().cpu()


def checksum(logits: np.ndarray, maps: np.ndarray) -> int:
    return zlib.crc32(maps.tobytes(), zlib.crc32(logits.tobytes()))


def picture_key(rated: RatedSet, index: int) -> bytes:
    """32 hexadecimal digits that change when the picture file does."""
    try:
        status = Path(rated.paths[index]).stat()
        state = f"{status.st_size}/{status.st_mtime_ns}"
    except OSError:
        state = "none"
    return hashlib.sha256(f"{rated.name}/{rated.ids[index]}/{state}".encode()).hexdigest()[:32].encode()


def branch_key(network: EAMBNet, view: View, compute: Compute) -> str:
    """Hash of everything but the picture that decides the branch's output.

    With conversion to sRGB it is another one than before that existed, so that older maps are not used.
    """
    tensors = {name: value for name, value in network.state_dict().items() if name.startswith("emotion.")}
    hashed = checkpoint.weights_hash(tensors)
    inputs = [hashed, network.emotion_scale, view.size, view.exif, compute.mean, compute.std]
    inputs += ["icc"] if view.icc else []
    if network.renormalise.needed:
        inputs += backbones.normalisation(checkpoint.emotion_backbone(network.arguments))
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
