"""Scores photographs: files, folders, globs or a list, with any weights that this program trained.

    from predict import Scorer
    scorer = Scorer()
    print(scorer.score("photo.jpg").score)

From top to bottom: what is said about a picture; the scorer; finding pictures; parts
for several processes; writing rows; going on with interrupted ones; maps; the command.
"""

# Paths stay text here: a row repeats a path as it was given, and Path would drop a leading "./".
# ruff: noqa: PTH112, PTH114, PTH118, PTH119, PTH120, PTH122

from __future__ import annotations

import argparse
import csv
import functools
import io
import itertools
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import backbones
import checkpoint
import engine
import engines
from config import Data
from decoding import PICTURE_ENDINGS, DecodeError, decode, stack
from distributed import choose_device
from EAMBNet import Scale, prepare_for_inference
from spreadsheets import FORMULA, encodable, row_writer

ODDS = Scale("score", -np.inf, np.inf, 0.0)  # of a pair network, which knows no scale
SHIPPED = Path(__file__).parent / "checkpoints" / "eambnet_lite_para.safetensors"

# ---------------------------------------------------------------------------------------------------
# What is said about a picture


@dataclass(frozen=True)
class Scored:
    """One picture's figures; of a picture that cannot be decoded only `path` and `error`.

    path: as it was given.
    score: in the unit of the training set's ratings, whose scale runs from score_min to score_max; of a
        network for high/low labels the probability of "high", 0 to 1.
    score_std: standard deviation of the predicted rating distribution, same unit; None for other networks.
    percentile: share of the training ratings below the score, 0 to 100; None if the weights do not know it.
    emotion, emotion_probability: the strongest emotion and its probability, 0 to 1; None if the network's
        emotion branch was never trained on emotions.
    error: why there is no score.
    emotions: probability of every emotion by name; they sum to 1. Empty if the branch was never trained.
    distribution: predicted share of each rating, summing to 1; empty for networks that give a score only.
    emotion_map: (h, w) float32, the emotion-aware map in [0, 1].
    class_maps: (E, h, w) float32, one map per emotion in the order of `Scorer.emotions`, each from 0 to 1;
        None if they were not asked for, or if the branch was never trained.
    """

    path: str
    score: float | None = None
    score_min: float | None = None
    score_max: float | None = None
    score_std: float | None = None
    percentile: float | None = None
    emotion: str | None = None
    emotion_probability: float | None = None
    error: str | None = None
    emotions: dict[str, float] = field(default_factory=dict, repr=False)
    distribution: dict[float, float] = field(default_factory=dict, repr=False)
    emotion_map: np.ndarray | None = field(default=None, repr=False, compare=False)
    class_maps: np.ndarray | None = field(default=None, repr=False, compare=False)


COLUMNS = (  # of every table; fields of Scored
    *("path", "score", "score_min", "score_max", "score_std", "percentile"),
    *("emotion", "emotion_probability", "error"),
)


def percentile(value: float, quantiles: np.ndarray) -> float:
    """Share of ratings below a value, in percent, exact where several ratings are equal.

    Args:
        quantiles: (Q,) of the ratings, ascending, evenly spaced from the smallest to the largest.
    """
    last = len(quantiles) - 1
    above = int(np.searchsorted(quantiles, value))  # quantiles[above - 1] < value <= quantiles[above]
    if above in (0, last + 1):
        return 100.0 * (above > 0)
    low, high = quantiles[above - 1 : above + 1]
    return float(100 * (above - 1 + (value - low) / (high - low)) / last)


# ---------------------------------------------------------------------------------------------------
# The scorer


class Decoded(NamedTuple):
    """A batch of files.

    images: (n, 3, H, W) uint8, channels last in memory, of the files that are pictures.
    reasons: for every file None, or why it is no picture.
    """

    images: Tensor
    reasons: list[str | None]


Look = Callable[[str, Image.Image, Image.Exif], object]  # a path, its picture as RGB, its EXIF


def in_threads(function: Callable, items: Iterable, threads: int) -> Iterator:
    """`function(item)` of each item, in order, by threads that work ahead, at most one item each.

    They share torch's threads equally: one team on all cores would wait in each layer for its slowest member.
    Pillow and torch release the interpreter's lock while they compute.

    Args:
        threads: 0 leaves the work to the caller's.
    """
    if not threads:
        yield from map(function, items)
        return
    total, waiting = torch.get_num_threads(), deque()
    share = max(1, total // threads)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(total)  # what threads to come begin with; the caller's own number never changed


class TorchNetwork:
    """The network of a checkpoint, run by PyTorch; engines.Exported is its counterpart.

    Raises:
        ValueError: the precision is none of fp32, bf16, fp16.
    """

    def __init__(self, weights: checkpoint.Weights, device: str, precision: str):
        self.weights = weights
        self.compute = engine.Compute(  # the network itself is of the precision; nothing is left to autocast
            *(choose_device(device), "fp32"),
            *backbones.normalisation(weights.description["architecture"]["backbone"]),
        )
        engine.keep_memory(self.compute.device)
        self.model = prepare_for_inference(weights.build().to(self.compute.device), precision)

    def outputs(self, batches: Iterable, batch_size: int) -> Iterator[tuple]:
        """Each batch with the network's output for it, float32 on the CPU."""
        return engine.outputs(self.model, batches, self.compute, batch_size)

    def class_maps(self, batch: Decoded, batch_size: int) -> np.ndarray:
        """(n, E, h, w) float32 of the n pictures of a batch."""
        images = self.compute.images(engine.filled_up(batch, batch_size))  # (batch_size, 3, H, W)
        with torch.inference_mode():
            maps = self.model.class_activation_maps(images)
        return maps[: len(batch.images)].float().contiguous().cpu().numpy()


def open_network(
    path: Path | str | None,
    engine_name: str | None,
    device: str,
    precision: str | None,
    workers: int,
    pairs: bool = False,
) -> TorchNetwork | engines.Exported:
    """A network for scoring: of a checkpoint, or of a file that scripts/export.py wrote.

    Args:
        workers, pairs: as the Scorer's.
    """
    exported = path is not None and Path(path).suffix in engines.ENDINGS
    if engine_name == "openvino" and not exported:
        raise ValueError(
            f"predict: openvino runs what scripts/export.py writes ({', '.join(engines.ENDINGS)}), got "
            f"{path or 'no --checkpoint'}; python scripts/export.py CHECKPOINT OUT.onnx"
        )
    if engine_name == "torch" and exported:
        raise ValueError(f"predict: {path} was exported for openvino; torch runs .pt and .safetensors")
    if not exported:
        return TorchNetwork(load_aesthetics(path, pairs), device, precision or "fp32")
    if device not in ("auto", "cpu"):
        raise ValueError(f"predict: exported networks run on the CPU, not on {device}")
    network = engines.Exported(path, precision, streams=worker_threads(workers, on_cpu=True))
    check_aesthetics(network.weights, path)
    return network


class Scorer:
    """A network with its weights, ready to score pictures.

    Args:
        checkpoint: weights for aesthetics, .pt or .safetensors, or what scripts/export.py wrote; the shipped
            weights by default.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "fp32" (the default), "bf16" or "fp16"; exported files have one of their own.
        batch_size: pictures at a time in `score_all`.
        workers: threads of `score_all`. On a CPU each decodes and scores a batch with its share of the cores,
            for another device they decode ahead. 0: the caller's thread does all; -1: one per core, up to 8.
        maps: compute the maps of single emotions too, which runs the emotion branch once more.
        exact: decode large JPEGs whole, as training and evaluation do. Otherwise they are decoded smaller
            before they are resized (`decoding.decode`), several times faster.
        engine: "torch" or "openvino", which must fit the file; by default what the file is for.
        pairs: take a pair network too (`series.py`), whose score is the logarithm of odds: only
            differences between photographs of one series mean something.

    Attributes:
        scale: what a score means: its ends, its threshold, its rating bins.
        emotions: names, in the order of the network; none if it has no emotion branch.
        emotions_trained: False if the emotion branch was never trained on emotions, so that its names mean
            nothing; results leave them out.

    Raises:
        ValueError: the weights give no score, or no maps, or another argument is out of range.
        FileNotFoundError: there are no such weights.
    """

    def __init__(
        self,
        checkpoint: Path | str | None = None,
        device: str = "auto",
        precision: str | None = None,
        batch_size: int = 16,
        workers: int = 0,
        maps: bool = False,
        exact: bool = False,
        engine: str | None = None,
        pairs: bool = False,
    ):
        if batch_size < 1 or workers < -1:
            raise ValueError(
                f"predict: batch size at least 1, workers at least -1; got {batch_size}, {workers}"
            )
        self.network = open_network(checkpoint, engine, device, precision, workers, pairs)
        weights = self.network.weights
        known = weights.description
        self.scale, self.emotions = weights.scale or ODDS, weights.emotions
        self.emotions_trained = weights.emotion_branch == "trained"
        if maps and not self.emotions:
            raise ValueError("predict: these weights have no emotion branch, so there are no maps to show")
        if maps and not isinstance(self.network, TorchNetwork):
            raise ValueError(
                "predict: an exported network gives no maps of single emotions; use --engine torch"
            )
        self.ends = self.scale.ends
        (self.size, self.exif), self.exact = weights.pictures, exact
        self.crop = known.get("crop", False)
        ratings = known.get("training_ratings", ()) if self.scale.kind != "label" else ()
        self.quantiles = np.asarray(ratings) if len(ratings) > 1 else None
        self.on_cpu = not isinstance(self.network, TorchNetwork) or self.network.compute.device.type == "cpu"
        self.batch_size, self.workers = batch_size, worker_threads(workers, self.on_cpu)
        self.with_class_maps = maps and self.emotions_trained

    def score(self, path: Path | str) -> Scored:
        """Scores one picture.

        Raises:
            DecodeError: the file is no picture; `score_all` reports such files instead.
        """
        path = os.fspath(path)
        return self._measure([path], Decoded(self._read(path)[None], [None]), batch_size=1)[0]

    def score_all(
        self, paths: Iterable[Path | str], first: int = 0, look: Look | None = None
    ) -> Iterator[Scored]:
        """Scores pictures in batches, in their order; one result per path, those with an `error` included.

        Nothing but the paths and one batch per worker is held in memory, however many there are.

        Args:
            first: the number, from 0, of the first picture to give. Its batch is computed whole, so that the
                results are to the last digit those of all pictures.
            look: is shown each picture before its result is given, by the thread that decodes it, as in
                `decoding.decode`.
        """
        paths = [os.fspath(path) for path in paths]
        batch_size = max(1, min(self.batch_size, -(-len(paths) // max(1, self.workers))))
        starts = range(first - first % batch_size, len(paths), batch_size)
        batches = [paths[start : start + batch_size] for start in starts]
        threads = self.workers if len(paths) > batch_size else 0  # as for all of them, if `first` leaves one

        def score(batch_paths: list[str], batch: Decoded) -> list[Scored]:
            good = [path for path, reason in zip(batch_paths, batch.reasons, strict=True) if reason is None]
            measured = iter(self._measure(good, batch, batch_size))
            rows = zip(batch_paths, batch.reasons, strict=True)
            return [Scored(path, error=reason) if reason else next(measured) for path, reason in rows]

        if self.on_cpu:
            results = in_threads(lambda batch: score(batch, self._decode(batch, look)), batches, threads)
        else:  # one thread alone may ask another device for work, while others decode
            decoded = in_threads(lambda batch: self._decode(batch, look), batches, threads)
            results = map(score, batches, decoded)
        yield from itertools.islice(itertools.chain.from_iterable(results), first % batch_size, None)

    def _read(self, path: str, look: Look | None = None) -> Tensor:
        """A file as (3, H, W) uint8."""
        shown = functools.partial(look, path) if look else None
        pixels = decode(path, self.size, self.exif, self.exact, shown, self.crop)  # (H, W, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _decode(self, paths: list[str], look: Look | None = None) -> Decoded:
        images, reasons = [], []
        for path in paths:
            try:
                images.append(self._read(path, look))
                reasons.append(None)
            except DecodeError as error:
                reasons.append(error.reason)
        empty = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return Decoded(stack(images) if images else empty, reasons)

    def _measure(self, paths: list[str], batch: Decoded, batch_size: int) -> list[Scored]:
        """The figures of the n pictures of a batch, which lie at `paths`."""
        if not paths:
            return []
        [(_, output)] = self.network.outputs([batch], batch_size)
        prediction = output.prediction.double().numpy()  # (n, K)
        if self.scale is ODDS:  # as the first and as the second of a pair
            prediction = prediction.mean(axis=1, keepdims=True)  # (n, 1)
        values, deviations = self.scale.value(prediction), self.scale.deviation(prediction)  # (n,), (n,)
        emotions = output.emotion_logits.double().softmax(dim=1).numpy()  # (n, E)
        maps = output.emotion_map[:, 0].numpy()  # (n, h, w)
        class_maps = [None] * len(paths)
        if self.with_class_maps:
            class_maps = self.network.class_maps(batch, batch_size)
        rows = zip(paths, prediction, values, deviations, emotions, maps, class_maps, strict=True)
        return [self._scored(*row) for row in rows]

    def _scored(self, path: str, prediction, value, deviation, emotions, emotion_map, class_maps) -> Scored:
        """One picture's: prediction (K,), value and deviation (), emotions (E,), emotion_map (h, w),
        class_maps (E, h, w) or None."""
        if not (np.isfinite(value) and np.isfinite(emotions).all()):
            return Scored(
                path, error="the network's output is not a number; --precision fp32 usually mends it"
            )
        named = dict(zip(self.emotions, emotions.tolist(), strict=True)) if self.emotions_trained else {}
        strongest = max(named, key=named.get, default=None)
        return Scored(
            path,
            score=float(value),
            score_min=self.ends[0],
            score_max=self.ends[1],
            score_std=None if np.isnan(deviation) else float(deviation),
            percentile=None if self.quantiles is None else percentile(value, self.quantiles),
            emotion=strongest,
            emotion_probability=named.get(strongest),
            emotions=named,
            distribution=dict(zip(self.scale.bins, prediction.tolist(), strict=False)),  # no bins, no shares
            emotion_map=emotion_map,
            class_maps=class_maps,
        )


def worker_threads(workers: int, on_cpu: bool) -> int:
    """The threads that `workers` means: -1 are all that torch computes with, or the spare cores, up to 8."""
    if workers == -1 and on_cpu:
        return min(8, torch.get_num_threads())
    return Data(workers=workers).worker_count()


def load_aesthetics(path: Path | str | None, pairs: bool = False) -> checkpoint.Weights:
    """The weights of a network that scores.

    Args:
        pairs: a pair network will do.

    Raises:
        FileNotFoundError, ValueError: no such file; an emotion network.
    """
    if path is None and not SHIPPED.is_file():
        raise FileNotFoundError(
            f"predict: the shipped weights checkpoints/{SHIPPED.name} are missing. Name others with "
            "--checkpoint FILE, or train some: python main.py train --dataset ... --data-root DIR"
        )
    weights = checkpoint.load_weights(path or SHIPPED)
    if not (pairs and weights.task == "series"):
        check_aesthetics(weights, path)
    return weights


def check_aesthetics(weights: checkpoint.Weights, path: Path | str | None) -> None:
    if weights.task == "series":
        raise ValueError(
            f"predict: {path} compares photographs of a series and gives a single one no score; use it with "
            "python main.py select"
        )
    if weights.task != "aesthetics":
        raise ValueError(
            f"predict: {path} holds an emotion network alone, which gives no score; it needs weights trained "
            f"with --task aesthetics (--emotion-checkpoint {path} starts such a training)"
        )
    return weights


# ---------------------------------------------------------------------------------------------------
# Finding pictures


class Found(NamedTuple):
    """A picture to score, and the folder in which it was found (its own, if it was named itself)."""

    path: str
    folder: str


class Search:
    """Collects pictures in the order they are named, each file once; counts what folders hold beside them."""

    def __init__(self):
        self.pictures: dict[str, Found] = {}  # by where the file really lies
        self.passed_over: Counter[str] = Counter()
        self.real_folder = functools.cache(os.path.realpath)

    def add_argument(self, argument: str) -> None:
        """A word of the command line: a path, a glob, or - for the list on standard input."""
        if argument == "-":
            paths = read_list(sys.stdin)
        elif is_glob(argument) and not os.path.lexists(argument):
            paths = expand_glob(argument) or [argument]
        else:
            paths = [argument]
        for path in paths:
            self.add_path(path)

    def add_path(self, path: str) -> None:
        """A named file is taken whatever its ending, even if it is missing: its row will say so."""
        if os.path.isdir(path):
            self.add_folder(path)
        else:
            self.add_file(path, os.path.dirname(path))

    def add_file(self, path: str, folder: str) -> None:
        parent, name = os.path.split(path)
        self.pictures.setdefault(os.path.join(self.real_folder(parent), name), Found(path, folder))

    def add_folder(self, folder: str) -> None:
        """Everything below a folder that has a picture's ending, sorted; does not follow linked folders.

        A folder that cannot be listed is taken for a picture: its row will say why.
        """
        waiting = [folder]  # not os.walk, which calls itself for each level before Python 3.12, up to 1,000
        while waiting:
            parent = waiting.pop()
            try:
                folders, files = list_folder(parent)
            except OSError:
                self.add_file(parent, folder)
                continue
            entered = [os.path.join(parent, name) for name in folders if self.enters(parent, name)]
            waiting += reversed(entered)
            for name in files:
                ending = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    self.passed_over["hidden"] += 1
                elif ending not in PICTURE_ENDINGS:
                    self.passed_over[ending or "without an ending"] += 1
                else:
                    self.add_file(os.path.join(parent, name), folder)

    def enters(self, parent: str, name: str) -> bool:
        if name.startswith("."):
            self.passed_over["hidden"] += 1
        elif os.path.islink(os.path.join(parent, name)):
            self.passed_over["linked"] += 1
        else:
            return True
        return False

    def describe_passed_over(self) -> str:
        """As in "118 .heic, 2 .txt, 3 hidden", the most frequent first."""
        ranked = self.passed_over.most_common()
        parts = [f"{count} {printable(kind)}" for kind, count in ranked[:8]]
        more = sum(count for _, count in ranked[8:])
        return ", ".join(parts + ([f"{more} more"] if more else []))


def list_folder(folder: str) -> tuple[list[str], list[str]]:
    """The names of the folders in a folder, linked ones too, and of all else; both sorted.

    Raises:
        OSError: it cannot be listed.
    """
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                kind = folders if entry.is_dir() else files
            except OSError:  # a link that leads to itself
                kind = files
            kind.append(entry.name)
    return sorted(folders), sorted(files)


def is_glob(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def expand_glob(pattern: str) -> list[str]:
    """The matches, sorted, without hidden ones unless the pattern names them."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    base, rest = Path(*parts[:first]), Path(*parts[first:])

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.parts)

    # Not glob.glob, whose ** follows linked folders: two links back to the top would keep it busy for ever.
    try:
        matches = sorted(base.glob(str(rest)))
    except RecursionError as error:  # Python's own, before 3.12, at about 1,000 levels
        raise ValueError(
            f"predict: the folders below {printable(str(base))} are nested too deep for the pattern "
            f"{printable(pattern)}; name the folder itself"
        ) from error
    return [str(path) for path in matches if is_hidden(rest) or not is_hidden(path.relative_to(base))]


def is_missing(path: str) -> bool:
    """Whether nothing is there; where nobody can look, as behind too long a path, something may be."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def read_list(file: TextIO) -> list[str]:
    """Paths, one a line, in whatever bytes the file system uses for them; empty lines are skipped."""
    content = file.buffer.read()
    if b"\0" in content:
        raise ValueError("predict: the list on standard input has NUL characters; one path a line, please")
    return [os.fsdecode(line) for line in content.splitlines() if line]


def find_pictures(
    arguments: Sequence[str], shard: Shard | None = None, maps: Sequence[Path] = ()
) -> list[Found]:
    """The pictures that a command line names, or a part; says on standard error what folders hold beside.

    Args:
        maps: the folders that the run itself, with all its parts, writes pictures into, and perhaps did
            before it was interrupted.

    Raises:
        ValueError: nothing was named, or no picture is in it.
        FileNotFoundError: nothing of it exists.
    """
    if not arguments:
        raise ValueError(
            "predict: which pictures? Name files, folders or globs, or - for a list on standard input"
        )
    search = Search()
    for argument in arguments:
        search.add_argument(argument)
    for folder in maps:
        own = os.path.join(os.path.realpath(folder), "")
        search.pictures = {place: it for place, it in search.pictures.items() if not place.startswith(own)}
    passed_over = search.describe_passed_over()
    pictures = list(search.pictures.values())
    named = printable(", ".join(arguments[:3]) + (" ..." if len(arguments) > 3 else ""))
    if not pictures:
        raise ValueError(
            f"predict: no picture ({' '.join(PICTURE_ENDINGS)}) in {named}"
            + (f"; passed over: {passed_over}" if passed_over else "")
        )
    if all(is_missing(picture.path) for picture in pictures):
        more = f" (nor {len(pictures) - 1} others that were named)" if len(pictures) > 1 else ""
        raise FileNotFoundError(f"predict: no such file or folder: {printable(pictures[0].path)}{more}")
    if passed_over:
        print(f"passed over in folders: {passed_over}", file=sys.stderr)
    return shard.take(search.pictures) if shard else pictures


# ---------------------------------------------------------------------------------------------------
# Parts, for several processes or machines


class Shard(NamedTuple):
    """Part `number`, from 1, of `count` equal parts of the pictures."""

    number: int
    count: int

    def take(self, pictures: dict[str, Found]) -> list[Found]:
        """Every count-th picture in the order of where the files really lie, however they were named.

        The parts together are all pictures, each once, if all are made of the same files. They stay in the
        order in which they were named.

        Args:
            pictures: by where the file really lies.
        """
        own = set(sorted(pictures)[self.number - 1 :: self.count])
        return [found for place, found in pictures.items() if place in own]

    def target(self, path: Path | None) -> Path | None:
        """What this part writes where the whole would write `path`: scores.csv -> scores.1of4.csv."""
        return path and path.with_name(f"{path.stem}.{self.number}of{self.count}{path.suffix}")


def choose_shard(text: str | None) -> Shard | None:
    """From --shard, as in "2/8"; None for all pictures.

    Raises:
        ValueError: it is no such part.
    """
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"predict: --shard is i/n with i from 1 to n, as in 2/8; got '{text}'")
    return Shard(int(number), int(count))


def torchrun_shard(options: argparse.Namespace) -> Shard | None:
    """The part of a process that torchrun started among several; None for any other process.

    Raises:
        ValueError: all would do one part, or each would read a piece of one list.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return None
    if options.shard is not None:
        raise ValueError("predict: torchrun gives each process its part; leave out --shard")
    if "-" in options.paths:
        raise ValueError(
            f"predict: {count} processes cannot all read the list on standard input; name files or folders, "
            "or start each part by itself with --shard i/n"
        )
    return Shard(int(os.environ["RANK"]) + 1, count)


# ---------------------------------------------------------------------------------------------------
# Writing rows

Write = Callable[[dict], object]


def column_names(scale: Scale, emotions: Sequence[str]) -> list[str]:
    """Columns of a table: those of every table, one per emotion of `emotions`, one per rating bin."""
    return [*COLUMNS, *(f"emotion_{name}" for name in emotions), *(f"p_{value:g}" for value in scale.bins)]


def as_row(scored: Scored, columns: Sequence[str]) -> dict[str, str | float | None]:
    """The values of the columns, numbers with six significant digits, None where there is nothing to say."""
    known = {name: getattr(scored, name) for name in COLUMNS}
    known |= {f"emotion_{name}": value for name, value in scored.emotions.items()}
    known |= {f"p_{value:g}": share for value, share in scored.distribution.items()}
    return {name: as_cell(known.get(name)) for name in columns}


def as_cell(value: str | float | None) -> str | float | None:
    if isinstance(value, str):
        return encodable(value)
    return None if value is None else float(f"{value:.6g}")


def printable(text: str) -> str:
    r"""`encodable`, on one line: control characters are written like \n."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in encodable(text))


def csv_rows(file: TextIO, columns: Sequence[str]) -> Write:
    write = row_writer(file)
    if not file.tell():
        write(columns)
    return lambda row: write(list(without_formulas(row).values()))


def without_formulas(row: dict) -> dict:
    """A row whose texts no spreadsheet takes for formulas; `-x.jpg` becomes `./-x.jpg`, the same file."""
    mark = {name: "./" if name == "path" else "'" for name in row}
    return {
        name: mark[name] + value if isinstance(value, str) and value.startswith(FORMULA) else value
        for name, value in row.items()
    }


def json_rows(file: TextIO, columns: Sequence[str]) -> Write:
    return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")


def table_rows(file: TextIO, columns: Sequence[str]) -> Write:
    """Aligned columns for people; the path stands last, so that rows can be printed as they come."""
    shown = ["score", "percentile", "emotion", *(name for name in columns if name.startswith("emotion_"))]
    shown.remove("emotion_probability")

    def write_line(cells: Sequence[str], path: str) -> None:
        line = "  ".join(f"{cell:>{max(len(name), 11)}}" for name, cell in zip(shown, cells, strict=True))
        encoding = file.encoding or "utf-8"
        line = f"{line}  {path}".encode(encoding, "backslashreplace").decode(encoding)
        tqdm.write(line, file=file)  # around the progress bar, which may be on the same screen

    def write_row(row: dict) -> None:
        cells = [table_cell(name, row[name]) for name in shown]
        error = f": {printable(row['error'])}" if row["error"] else ""
        write_line(cells, printable(row["path"]) + error)

    write_line(shown, "path")
    return write_row


def table_cell(column: str, value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if column == "percentile" else f"{value:.2f}"
    return value or "-"


FORMATS = {".csv": csv_rows, ".jsonl": json_rows}


@contextmanager
def open_rows(output: Path | None, mode: str, columns: Sequence[str]) -> Iterator[Write]:
    """A function that writes a row at once and whole, to the file or as a table to standard output.

    Args:
        mode: "x" for a new file, "w" to overwrite one, "a" to go on with one.
    """
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        opened = output.open(mode, encoding="utf-8", newline="")
    else:
        opened = nullcontext(sys.stdout)
    with opened as file:
        write = (FORMATS[output.suffix.lower()] if output else table_rows)(file, columns)

        def write_now(row: dict) -> None:
            write(row)
            file.flush()

        yield write_now


# ---------------------------------------------------------------------------------------------------
# Going on where a run was interrupted

LONGEST_ROW = 1 << 16  # bytes; a path has at most 4,096 of them


class Kept(NamedTuple):
    """What an interrupted run wrote of one picture."""

    path: str
    score: float | None
    error: str | None


def read_kept(output: Path, columns: Sequence[str]) -> tuple[list[Kept], int]:
    """The whole rows of an interrupted run, and how many bytes of the file they take.

    Raises:
        ValueError: the file has other columns, or a row that is not the last is damaged.
    """
    header, parse = {".csv": (csv_line(columns), parse_csv), ".jsonl": (b"", parse_json)}[
        output.suffix.lower()
    ]
    kept, length, record = [], len(header), b""
    with output.open("rb") as file:
        start = file.read(length)
        if start != header:
            if header.startswith(start):
                return [], 0
            raise other_columns(output)
        for line in file:  # several make a row where a name has a line break
            record += line
            row = parse(record, columns)
            if row and list(row) != list(columns):
                raise other_columns(output)
            if row := as_kept(row):
                kept.append(row)
                length, record = length + len(record), b""
            elif len(record) > LONGEST_ROW or (parse is parse_json and record.endswith(b"\n")):
                raise ValueError(
                    f"predict: row {len(kept) + 1} of {output} is damaged; repair it, or write all anew with "
                    "--force"
                )
    return kept, length


def as_kept(row: dict | None) -> Kept | None:
    try:
        score = None if row["score"] in ("", None) else float(row["score"])
        return Kept(str(row["path"]), score, row["error"] or None)
    except (TypeError, ValueError):  # no row, or a damaged one
        return None


def other_columns(output: Path) -> ValueError:
    return ValueError(
        f"predict: {output} has other columns than this run would write; go on with the same --checkpoint "
        "and --emotions, or overwrite it with --force"
    )


def csv_line(cells: Sequence[str]) -> bytes:
    line = io.StringIO(newline="")
    row_writer(line)(cells)
    return line.getvalue().encode()


def parse_csv(record: bytes, columns: Sequence[str]) -> dict[str, str] | None:
    """A row by column; None if it is not whole."""
    try:
        [cells] = csv.reader([record.decode()], strict=True)
    except (ValueError, csv.Error):
        return None
    whole = record.endswith(b"\r\n") and len(cells) == len(columns)
    return dict(zip(columns, cells, strict=True)) if whole else None


def parse_json(record: bytes, columns: Sequence[str]) -> dict | None:
    """A row by column, which may be others; None if it is not whole."""
    try:
        row = json.loads(record) if record.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def check_kept(kept: Sequence[Kept], pictures: Sequence[Found], output: Path) -> None:
    """Raises ValueError where the rows are not those of the first pictures."""
    if len(kept) > len(pictures):
        raise ValueError(
            f"predict: {output} has {len(kept)} rows and there are {len(pictures)} pictures; --resume needs "
            "the pictures of the interrupted run"
        )
    for number, (row, found) in enumerate(zip(kept, pictures, strict=False), 1):
        if row.path.removeprefix("./") != encodable(found.path).removeprefix("./"):
            raise ValueError(
                f"predict: row {number} of {output} is of {printable(row.path)}, and picture {number} is "
                f"{printable(found.path)}; --resume needs the pictures of the interrupted run, in its order"
            )


def check_score(kept: Kept, scored: Scored, output: Path) -> None:
    """Raises ValueError if a picture does not get the score again that an interrupted run gave it."""
    if scored.error or abs(scored.score - kept.score) > 1e-4 * (scored.score_max - scored.score_min):
        raise ValueError(
            f"predict: {output} gives {printable(kept.path)} the score {kept.score:g}, and now it is "
            f"{scored.error or format(scored.score, 'g')}; go on with the same weights and settings, or "
            "overwrite it with --force"
        )


# ---------------------------------------------------------------------------------------------------
# Maps

LONGEST_NAME = 230  # bytes; an ending and a temporary name come on top, and file systems take 255
DEEPEST = 100  # folders; Python makes and searches them by calling itself for each level, up to 1,000
UNTRAINED = "the emotion branch of these weights was never trained on emotions"
UNTRAINED_MAP = "map of an emotion branch never trained on emotions"


class MapFolder:
    """Writes what explains scores, in sub-folders like the pictures' own.

    Per picture a panel as PNG; with `raw` also the maps at feature resolution, `<name>.eam.npy` (h, w) and
    `<name>.cam.npy` (E, h, w), float32, and once `emotions.txt`, the names of the E classes.
    """

    def __init__(self, folder: Path, scorer: Scorer, raw: bool):
        self.folder, self.scorer, self.raw = folder, scorer, raw
        self.names: set[str] = set()

    def skip(self, found: Found) -> None:
        """Passes over a picture whose maps an interrupted run wrote.

        Raises:
            ValueError: it did not.
        """
        name = self.name(found)
        for path in (self.folder / f"{name}.png", self.folder / f"{name}.eam.npy")[: 1 + self.raw]:
            if not path.is_file():
                raise ValueError(
                    f"predict: {path} is missing, though its picture has a row; --resume needs the --maps "
                    "and --maps-raw of the interrupted run"
                )

    def remove_unfinished(self) -> None:
        """Removes what a killed run was writing."""
        for ending in ("png", "npy", "emotions.txt"):
            for path in self.folder.rglob(f".*{ending}.*.tmp"):
                path.unlink()

    def write(self, scored: Scored, found: Found) -> None:
        from panels import Explanation, save_panel  # matplotlib takes a second to load

        name = self.name(found)
        explanation = Explanation(
            title=printable(os.path.basename(found.path)),
            score=describe_score(scored),
            value=scored.score,
            ends=self.scorer.ends,
            emotion_map=scored.emotion_map,
            map_title="emotion-aware map" if self.scorer.emotions_trained else UNTRAINED_MAP,
            emotions=scored.emotions,
            class_maps=scored.class_maps,
            training_ratings=self.scorer.quantiles,
            distribution=scored.distribution,
        )
        save_panel(self.folder / f"{name}.png", decode(found.path, exif=self.scorer.exif), explanation)
        if self.raw:
            self.write_arrays(scored, name)

    def write_arrays(self, scored: Scored, name: str) -> None:
        write_array(self.folder / f"{name}.eam.npy", scored.emotion_map)
        if scored.class_maps is None:
            return
        write_array(self.folder / f"{name}.cam.npy", scored.class_maps)
        if len(self.names) == 1:  # the first picture
            with checkpoint.written_whole(self.folder / "emotions.txt") as unfinished:
                unfinished.write_text(
                    "".join(f"{emotion}\n" for emotion in scored.emotions), encoding="utf-8"
                )

    def name(self, found: Found) -> str:
        """`sub/a.jpg`; a second picture of that name, from another folder, gets `sub/a.jpg.2`.

        Of more than DEEPEST nested folders the last are kept.
        """
        stem = os.path.relpath(found.path, found.folder or ".")
        stem = str(Path(*Path(stem).parts[-DEEPEST:]))
        while len(os.fsencode(os.path.basename(stem))) > LONGEST_NAME:
            stem = stem[:-1]
        name, number = stem, 1
        while name in self.names:
            number += 1
            name = f"{stem}.{number}"
        self.names.add(name)
        return name


def write_array(path: Path, values: np.ndarray) -> None:
    with checkpoint.written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, values)


def describe_score(scored: Scored) -> str:
    """As in "3.72 of 1 to 5, above 81 % of the training ratings"."""
    text = f"{scored.score:.2f} of {scored.score_min:g} to {scored.score_max:g}"
    if scored.percentile is None:
        return text
    return f"{text}, above {scored.percentile:.0f} % of the training ratings"


# ---------------------------------------------------------------------------------------------------
# The command


def run(options: argparse.Namespace) -> int:
    """`main.py predict`: 0 if every picture was scored, 1 if some could not be.

    Raises:
        ValueError, OSError: bad arguments, in one sentence; nothing was written then.
    """
    among = torchrun_shard(options)
    output, folder = options.output, options.maps
    if among:
        output, folder = among.target(output), among.target(folder)
    check_targets(output, folder, options.force, options.resume)
    if options.maps_raw and folder is None:
        raise ValueError("predict: --maps-raw writes beside the panels of --maps; add --maps DIR")
    parts = [Shard(number + 1, among.count) for number in range(among.count)] if among else []
    made = [part.target(options.maps) for part in parts] or [options.maps]
    pictures = find_pictures(options.paths, among or choose_shard(options.shard), made if folder else ())
    scorer = Scorer(
        options.checkpoint,
        options.device,
        options.precision,
        options.batch_size,
        options.workers,
        maps=folder is not None,
        exact=options.exact,
        engine=options.engine,
    )
    if scorer.emotions and not scorer.emotions_trained:
        print(f"{UNTRAINED}; its emotions are left out", file=sys.stderr)
    columns = column_names(scorer.scale, scorer.emotions if options.emotions else ())
    maps = MapFolder(folder, scorer, options.maps_raw) if folder is not None else None
    kept = []
    if options.resume and output.exists():
        kept = take_up(output, columns, pictures, maps)
    mode = "a" if options.resume else "w" if options.force else "x"
    with open_rows(output, mode, columns) as write, progress(len(pictures), len(kept), output) as bar:
        failed = 0
        for found, scored in remaining(scorer, pictures, kept, output):
            if scored.error:
                failed += 1
            elif maps:
                maps.write(scored, found)
            write(as_row(scored, columns))  # behind its maps: a picture with a row has them
            bar.update()
    failed += sum(bool(row.error) for row in kept)
    written = "".join(f", {target} written" for target in (output, folder) if target)
    print(f"{len(pictures) - failed} of {len(pictures)} pictures scored{written}", file=sys.stderr)
    # Were it 1 among others, torchrun would end those that are not ready yet.
    return 1 if failed and not among else 0


def take_up(
    output: Path, columns: Sequence[str], pictures: Sequence[Found], maps: MapFolder | None
) -> list[Kept]:
    """The rows of an interrupted run, known to be of these pictures; cuts off a half-written one.

    Raises:
        ValueError: they are others.
    """
    kept, length = read_kept(output, columns)
    check_kept(kept, pictures, output)
    if maps:
        maps.remove_unfinished()
        for row, found in zip(kept, pictures, strict=False):
            if not row.error:
                maps.skip(found)
    os.truncate(output, length)
    return kept


def remaining(
    scorer: Scorer, pictures: Sequence[Found], kept: Sequence[Kept], output: Path | None
) -> Iterator[tuple[Found, Scored]]:
    """The pictures behind those that have rows, scored.

    The last score of an interrupted run is computed once more.

    Raises:
        ValueError: it is another.
    """
    first = max((number for number, row in enumerate(kept) if row.score is not None), default=len(kept))
    results = scorer.score_all((picture.path for picture in pictures), first)
    for number, scored in enumerate(results, first):
        if number >= len(kept):
            yield pictures[number], scored
        elif number == first:
            check_score(kept[number], scored, output)


def progress(count: int, done: int, output: Path | None) -> tqdm:
    """A bar with images/s on standard error. A table's rows redraw it, so a log gets one or the other."""
    hidden = None if output is None else False  # None: where standard error is no terminal
    return tqdm(total=count, initial=done, desc="predict", unit=" images", mininterval=0.5, disable=hidden)


def check_targets(output: Path | None, maps: Path | None, force: bool, resume: bool) -> None:
    """Refuses what cannot be written, or would overwrite something, before any work is done."""
    if output is not None and output.suffix.lower() not in FORMATS:
        raise ValueError(f"predict: --output must end in {' or '.join(FORMATS)}, got {output}")
    if maps is not None and maps.exists() and not maps.is_dir():
        raise NotADirectoryError(f"predict: --maps needs a folder; {maps} is a file")
    if resume and (output is None or force):
        raise ValueError(
            "predict: --resume goes on with the rows in --output FILE, and --force overwrites them"
        )
    if force or resume:
        return
    if output is not None and output.exists():
        raise FileExistsError(
            f"predict: {output} exists; choose another name, go on behind its rows with --resume, or "
            "overwrite it with --force"
        )
    if maps is not None and maps.is_dir() and any(maps.iterdir()):
        raise FileExistsError(
            f"predict: {maps} holds files already; choose another folder, or write into it with --force"
        )
