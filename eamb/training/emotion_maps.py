"""The frozen emotion branch's output for each picture and its mirror image, computed once and kept in files.

The branch never changes while the rest is trained, so its logits and maps need not be computed in every epoch
of every run. They are computed and kept in float32, so that in fp32 a training which reads them equals one
that computes them. In bf16 and fp16 it does not: a training that computes them runs the branch in that
precision too, which moves a map by up to .03 (bf16, .004 on average); the maps in files are exact.

The folder has a subfolder for each branch, named by the hash of its weights and input, with files of up to
CHUNK pictures, each written whole or not at all. A picture is known by its set, id, file size and time of
change: a changed file is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import Batch, PictureSet, TestOrder, make_loader
from eamb.files import written_whole
from eamb.readers.rated import RatedSet
from eamb.runtime import distributed
from eamb.runtime.engine import Compute, allow_tf32, filled_up
from eamb.weights import checkpoint
from EAMBNet import EAMBNet

CHUNK = 1024  # pictures in a file


class EmotionMaps:
    """Logits and maps of the pictures of a set, from the files in `folder`.

    missing: (m,) indices of the pictures that are in no file.
    """

    def __init__(self, folder: Path, rated: RatedSet):
        self.rated, self.files, places = rated, {}, {}
        for path in sorted(folder.glob("*.npy")):
            records = read_records(path)
            if records is not None:
                self.files[path] = records
                places |= {key: (path, row) for row, key in enumerate(records["key"].tolist())}
        self.places = [places.get(picture_key(rated, index)) for index in range(len(rated))]
        self.missing = np.array([i for i, place in enumerate(self.places) if place is None], np.int64)

    def read(self, index: Sequence[int], mirrored: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Emotion logits (N, E) and maps (N, 1, h, w), float32, of N pictures or their mirror images.

        Raises:
            ValueError: a picture has no map, or its file was damaged after it had been written.
        """
        records = []
        for i in index:
            if self.places[i] is None:
                raise ValueError(
                    f"emotion_maps: there is no map of {self.rated.ids[i]} ({self.rated.paths[i]}); it could "
                    "not be decoded when the maps were computed. Start again to try it once more"
                )
            path, row = self.places[i]
            records.append(self.files[path][row])
            if checksum(records[-1]["logits"], records[-1]["maps"]) != records[-1]["check"]:
                raise ValueError(
                    f"emotion_maps: {path} is damaged; delete it, and its maps are computed again"
                )
        sides = [(r["logits"][int(m)], r["maps"][int(m)]) for r, m in zip(records, mirrored, strict=True)]
        logits, maps = (np.stack(values) for values in zip(*sides, strict=True))
        return torch.from_numpy(logits), torch.from_numpy(maps)[:, None]  # (N, E), (N, 1, h, w)


def prepare(
    folder: Path,
    network: EAMBNet,
    rated: RatedSet,
    compute: Compute,
    *,
    size: int,
    exif: bool,
    workers: int,
    batch_size: int,
) -> EmotionMaps:
    """The maps of a set, after computing those that `folder` does not hold yet; shared by all processes.

    Pictures that cannot be decoded have none.

    Raises:
        OSError: they cannot be written.
        ValueError: the processes do not share the folder.
    """
    folder /= branch_key(network, size, exif, compute)
    maps, chunks = None, []
    try:
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            maps = EmotionMaps(folder, rated)
            chunks = [maps.missing[i : i + CHUNK] for i in range(0, len(maps.missing), CHUNK)]
        # One list for all: a process that looked later would see what another has written since.
        chunks = distributed.broadcast(chunks)
        share = chunks[distributed.rank() :: distributed.world()]
        count, hidden = sum(map(len, share)), not (share and distributed.is_main())
        with tqdm(total=count, desc="emotion maps", unit="picture", mininterval=2, disable=hidden) as bar:
            for chunk in share:
                pictures = PictureSet(rated.take(chunk), size, exif, skip_broken=True)
                order, on_gpu = TestOrder(len(pictures), batch_size), compute.device.type == "cuda"
                loader = make_loader(pictures, order, workers, pin_memory=on_gpu)
                keys = [picture_key(rated, index) for index in chunk]
                write_records(folder, network, loader, keys, compute, batch_size)
                bar.update(len(chunk))
    except OSError as error:
        raise OSError(f"emotion_maps: {error}; make room, or leave out train.emotion_maps") from error
    distributed.gather(None)  # all have written
    maps = maps if maps and not chunks else EmotionMaps(folder, rated)
    if len(set(distributed.gather(maps.missing.tobytes()))) > 1:
        raise ValueError(
            f"emotion_maps: {folder} holds different maps for different processes; train.emotion_maps must "
            "be a folder that all machines share"
        )
    return maps


def write_records(
    folder: Path,
    network: EAMBNet,
    loader: Iterable[Batch],
    keys: Sequence[bytes],
    compute: Compute,
    size: int,
) -> None:
    """Computes the maps of a loader's pictures, one per key, in batches of `size`, and writes one file."""
    allow_tf32(False, compute.device)  # kept maps are exact, whatever computes them
    rows = []
    for batch in loader:
        sides = []
        for images in (batch.images, batch.images.flip(3)):
            filled = filled_up(batch._replace(images=images), size)
            logits, maps = run_branch(network, compute.images(filled))
            sides.append((logits[: len(images)], maps[: len(images), 0]))  # (n, E), (n, h, w)
        logits, maps = (torch.stack(values, dim=1).numpy() for values in zip(*sides, strict=True))
        rows += [
            (keys[index], checksum(*values), *values)
            for index, *values in zip(batch.index.tolist(), logits, maps, strict=True)
        ]
    if not rows:
        return
    logits, maps = rows[0][2:]  # (2, E), (2, h, w)
    columns = [("key", "S32"), ("check", "<u4"), ("logits", "<f4", logits.shape), ("maps", "<f4", maps.shape)]
    records = np.array(rows, np.dtype(columns))
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
    with written_whole(folder / f"{name}.npy") as path, path.open("wb") as file:
        np.save(file, records)


@torch.inference_mode()
def run_branch(network: EAMBNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """The branch's output in evaluation, in float32: logits (N, E) and maps (N, 1, h, w), on the CPU."""
    logits, maps = network.emotions(images)
    return logits.float().cpu(), maps.float().cpu()


def checksum(logits: np.ndarray, maps: np.ndarray) -> int:
    return zlib.crc32(maps.tobytes(), zlib.crc32(logits.tobytes()))


def read_records(path: Path) -> np.ndarray | None:
    """A file's records, memory-mapped; None if it is damaged, and then its maps are computed again."""
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    return records if records.dtype.names == ("key", "check", "logits", "maps") else None


def picture_key(rated: RatedSet, index: int) -> bytes:
    """32 hexadecimal digits that change when the file does."""
    path = rated.paths[index]
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of 250,000 pictures takes seconds
        state = f"{status.st_size}/{status.st_mtime_ns}"
    except OSError:
        state = "none"
    return hashlib.sha256(f"{rated.name}/{rated.ids[index]}/{state}".encode()).hexdigest()[:32].encode()


def branch_key(network: EAMBNet, size: int, exif: bool, compute: Compute) -> str:
    """Hash of everything on which the branch's output for a picture file depends."""
    tensors = {name: value for name, value in network.state_dict().items() if name.startswith("emotion.")}
    inputs = [checkpoint.weights_hash(tensors), network.emotion_scale, size, exif, compute.mean, compute.std]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
