"""Scores photographs with a network and its weights.

    from eamb.inference.scorer import Scorer
    scorer = Scorer()
    print(scorer.score("photo.jpg").score)

From top to bottom: what is said about a picture; networks that run; the scorer; weights that can score.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eamb.inference.exported import ENDINGS, Exported
from eamb.network import backbones
from eamb.network.fast import prepare_for_inference
from eamb.network.outputs import Scale
from eamb.readers.decoding import DecodeError, decode, stack
from eamb.runtime import engine
from eamb.runtime.config import Data
from eamb.runtime.distributed import choose_device
from eamb.weights import checkpoint

ODDS = Scale("score", -np.inf, np.inf, 0.0)  # of a pair network, which has no scale
SHIPPED = Path(__file__).parents[2] / "checkpoints" / "eambnet_lite_para.safetensors"


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


class Decoded(NamedTuple):
    """A batch of files.

    images: (n, 3, H, W) uint8, channels last in memory, of the files that are pictures.
    reasons: for every file None, or why it is no picture.
    """

    images: Tensor
    reasons: list[str | None]


def in_threads(function: Callable, items: Iterable, threads: int) -> Iterator:
    """`function(item)` of each item, in order, by threads that work ahead, at most one item each.

    They share torch's threads equally: one batch on all cores would wait in each layer for the slowest core.
    Pillow and torch release the interpreter's lock while they compute.

    Args:
        threads: with 0 the thread of the caller does the work.
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
        torch.set_num_threads(total)  # what new threads begin with; that of the caller never changed


class TorchNetwork:
    """The network of a checkpoint, run by PyTorch; `Exported` runs other files.

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


class Scorer:
    """A network with its weights, ready to score pictures: `score` one, or `score_all`.

    Args:
        checkpoint: weights for aesthetics, .pt or .safetensors, or what scripts/export.py wrote; the shipped
            weights by default. A pair network (`eamb.network.pair_networks`) will do too; its score is the
            logarithm of odds, of which only differences within one series of photographs mean something.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "fp32" (the default), "bf16" or "fp16"; exported files have one of their own.
        batch_size: pictures at a time in `score_all`.
        workers: threads of `score_all`. On a CPU each decodes and scores a batch with its share of the cores,
            for another device they decode ahead. 0: the caller's thread does all; -1: one per core, up to 8.
        maps: compute the maps of single emotions too, which runs the emotion branch once more.
        exact: decode large JPEGs whole, as training and evaluation do. Otherwise they are decoded smaller
            before they are resized (`decoding.decode`), several times faster.

    Attributes:
        scale: what a score means: its ends, its threshold, its rating bins.
        emotions: names, in the order of the network; none if it has no emotion branch.
        emotions_trained: False if the emotion branch was never trained on emotions, so that its names mean
            nothing; results leave them out.
        with_class_maps: whether results have maps of single emotions; may be changed between calls.

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
    ):
        if batch_size < 1 or workers < -1:
            raise ValueError(
                f"predict: batch size at least 1, workers at least -1; got {batch_size}, {workers}"
            )
        exported = is_exported(checkpoint)
        if exported and device not in ("auto", "cpu"):
            raise ValueError(f"predict: exported networks run on the CPU, not on {device}")
        if exported:
            self.network = Exported(checkpoint, precision, streams=worker_threads(workers, on_cpu=True))
            check_scores(self.network.weights, checkpoint, pairs=True)
        else:
            weights = load_aesthetics(checkpoint, pairs=True)
            self.network = TorchNetwork(weights, device, precision or "fp32")
        weights = self.network.weights
        self.scale, self.emotions = weights.scale or ODDS, weights.emotions
        self.emotions_trained = weights.emotion_branch == "trained"
        if maps and not self.emotions:
            raise ValueError("predict: these weights have no emotion branch, so there are no maps to show")
        if maps and exported:
            raise ValueError(
                "predict: an exported network gives no maps of single emotions; use --engine torch"
            )
        (self.size, self.exif), self.exact = weights.size_and_exif, exact
        self.crop = weights.description.get("crop", False)
        ratings = weights.description.get("training_ratings", ()) if self.scale.kind != "label" else ()
        self.quantiles = np.asarray(ratings) if len(ratings) > 1 else None
        self.on_cpu = exported or self.network.compute.device.type == "cpu"
        self.batch_size, self.workers = batch_size, worker_threads(workers, self.on_cpu)
        self.with_class_maps = maps and self.emotions_trained

    def score(self, path: Path | str) -> Scored:
        """Scores one picture.

        Raises:
            DecodeError: the file is no picture; `score_all` reports such files instead.
        """
        path = os.fspath(path)
        return self._score_batch([path], Decoded(self._read(path)[None], [None]), batch_size=1)[0]

    def score_all(
        self,
        paths: Iterable[Path | str],
        first: int = 0,
        on_decoded: Callable[[str, Image.Image, Image.Exif], object] | None = None,
    ) -> Iterator[Scored]:
        """Scores pictures in batches, in their order; one result per path, those with an `error` included.

        Nothing but the paths and one batch per worker is held in memory, however many there are.

        Args:
            first: the number, from 0, of the first picture to give. Its batch is computed whole, so that the
                results are to the last digit those of all pictures.
            on_decoded: is called with each path, its picture as RGB and its EXIF before the result is given,
                by the thread that decodes it. What it raises is the picture's error.
        """
        paths = [os.fspath(path) for path in paths]
        batch_size = max(1, min(self.batch_size, -(-len(paths) // max(1, self.workers))))
        starts = range(first - first % batch_size, len(paths), batch_size)
        batches = [paths[start : start + batch_size] for start in starts]
        threads = self.workers if len(paths) > batch_size else 0  # as for all of them, if `first` leaves one

        def decode_batch(batch_paths: list[str]) -> Decoded:
            images, reasons = [], []
            for path in batch_paths:
                try:
                    images.append(self._read(path, on_decoded))
                    reasons.append(None)
                except DecodeError as error:
                    reasons.append(error.reason)
            empty = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
            return Decoded(stack(images) if images else empty, reasons)

        def score_batch(batch_paths: list[str], batch: Decoded) -> list[Scored]:
            rows = list(zip(batch_paths, batch.reasons, strict=True))
            good = [path for path, reason in rows if reason is None]
            scored = iter(self._score_batch(good, batch, batch_size))
            return [Scored(path, error=reason) if reason else next(scored) for path, reason in rows]

        if self.on_cpu:
            results = in_threads(lambda batch: score_batch(batch, decode_batch(batch)), batches, threads)
        else:  # one thread alone may ask another device for work, while others decode
            results = map(score_batch, batches, in_threads(decode_batch, batches, threads))
        yield from itertools.islice(itertools.chain.from_iterable(results), first % batch_size, None)

    def _read(self, path: str, on_decoded: Callable | None = None) -> Tensor:
        """A file as (3, H, W) uint8."""
        receive = functools.partial(on_decoded, path) if on_decoded else None
        pixels = decode(path, self.size, self.exif, self.exact, receive, self.crop)  # (H, W, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _score_batch(self, paths: list[str], batch: Decoded, batch_size: int) -> list[Scored]:
        """Scores the n pictures of a batch; `paths` are theirs."""
        if not paths:
            return []
        [(_, output)] = self.network.outputs([batch], batch_size)
        predictions = output.prediction.double().numpy()  # (n, K)
        if self.scale is ODDS:  # as the first and as the second of a pair
            predictions = predictions.mean(axis=1, keepdims=True)  # (n, 1)
        values, deviations = self.scale.value(predictions), self.scale.deviation(predictions)  # (n,), (n,)
        emotions = output.emotion_logits.double().softmax(dim=1).numpy()  # (n, E)
        maps = output.emotion_map[:, 0].numpy()  # (n, h, w)
        class_maps = self.network.class_maps(batch, batch_size) if self.with_class_maps else None
        finite = np.isfinite(values) & np.isfinite(emotions).all(axis=1)  # (n,)
        results = []
        for i, path in enumerate(paths):
            if not finite[i]:
                error = "the network's output is not a number; --precision fp32 usually helps"
                results.append(Scored(path, error=error))
                continue
            probabilities = zip(self.emotions, emotions[i].tolist(), strict=True)
            named = dict(probabilities) if self.emotions_trained else {}
            strongest = max(named, key=named.get, default=None)
            scored = Scored(
                path,
                score=float(values[i]),
                score_min=self.scale.ends[0],
                score_max=self.scale.ends[1],
                score_std=None if np.isnan(deviations[i]) else float(deviations[i]),
                percentile=None if self.quantiles is None else percentile(values[i], self.quantiles),
                emotion=strongest,
                emotion_probability=named.get(strongest),
                emotions=named,
                distribution=dict(zip(self.scale.bins, predictions[i].tolist(), strict=False)),  # no bins: {}
                emotion_map=maps[i],
                class_maps=None if class_maps is None else class_maps[i],
            )
            results.append(scored)
        return results


def is_exported(checkpoint: Path | str | None) -> bool:
    """Whether scripts/export.py wrote it, by its ending."""
    return checkpoint is not None and Path(checkpoint).suffix in ENDINGS.values()


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
    check_scores(weights, path, pairs)
    return weights


def check_scores(weights: checkpoint.Weights, path: Path | str | None, pairs: bool = False) -> None:
    """Raises ValueError unless the weights give a picture a score."""
    if weights.task == "aesthetics" or (pairs and weights.task == "series"):
        return
    if weights.task == "series":
        raise ValueError(
            f"predict: {path} compares photographs of a series and gives a single one no score; use it with "
            "python main.py select"
        )
    raise ValueError(
        f"predict: {path} holds an emotion network alone, which gives no score; it needs weights trained "
        f"with --task aesthetics (--emotion-checkpoint {path} starts such a training)"
    )
