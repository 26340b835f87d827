"""Scores photographs with a network and its weights.

from eamb.inference.scorer import Scorer
scorer = Scorer()
print(scorer.score("photo.jpg").score)
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eamb.inference.exported import ENDINGS, Exported
from eamb.network.outputs import Scale
from eamb.readers.decoding import DecodeError, decode_views, stack
from eamb.runtime.config import Data
from eamb.runtime.distributed import choose_device
from eamb.runtime.networks import Ensemble, TorchNetwork, check_averaged, disagreement
from eamb.weights.checkpoint import Weights, load_weights
from eamb.weights.shipped import DEFAULT, checkpoint_files

ODDS = Scale("score", -np.inf, np.inf, 0.0)  # for pair networks, which have no scale


@dataclass(frozen=True)
class Scored:
    """The result for one picture; only `path` and `error` if it cannot be decoded.

    path: as it was given.
    score: in the unit of the training set's ratings, whose scale runs from score_min to score_max; for a
        network of high/low labels the probability of "high", 0 to 1.
    score_std: standard deviation of the predicted rating distribution, same unit; None for other networks.
    score_model_std: standard deviation over several networks of their scores, whose mean `score` is, same
        unit; None for a single network, and for pair networks, of which only differences of scores compare.
    percentile: share of the training ratings below the score, 0 to 100; None if the weights lack them.
    emotion, emotion_probability: the strongest emotion and its probability, 0 to 1; None if the network's
        emotion branch was never trained on emotions.
    error: why there is no score.
    note: what is wrong with a file that was scored all the same.
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
    score_model_std: float | None = None
    percentile: float | None = None
    emotion: str | None = None
    emotion_probability: float | None = None
    error: str | None = None
    note: str | None = None
    emotions: dict[str, float] = field(default_factory=dict, repr=False)
    distribution: dict[float, float] = field(default_factory=dict, repr=False)
    emotion_map: np.ndarray | None = field(default=None, repr=False, compare=False)
    class_maps: np.ndarray | None = field(default=None, repr=False, compare=False)


class Scorer:
    """A network with its weights, or several together, ready to score pictures: `score` one, or `score_all`.

    Args:
        checkpoint: weights for aesthetics, .pt or .safetensors, or what scripts/export.py wrote, or the name
            of a shipped network, as "lite". A pair network (`eamb.network.pair_networks`) works too; its
            scores are log-odds, which are comparable only within one series of photographs. Several, on one
            scale: a picture is decoded once and its score is the mean of theirs; emotions, maps and
            the training ratings for percentiles are the first's.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "fp32" (the default), "bf16", "fp16" or "auto" (bf16 where the device computes it);
            an exported file has its own.
        batch_size: pictures per batch in `score_all`.
        workers: threads of `score_all`. On a CPU each decodes and scores batches with its share of the cores;
            for other devices they only decode ahead. 0: the calling thread; -1: one per core, up to 8.
        maps: also compute a map for each emotion, which runs the emotion branch a second time.
        exact: decode large JPEGs at full size, as training and evaluation do. Otherwise they are decoded at a
            smaller size before resizing (`decoding.decode`), which is several times faster.
        flip: score each picture's mirror image too, and take the mean; the rest stays that of the picture.

    Attributes:
        scale: what a score means: its ends, its threshold, its rating bins.
        emotions: names, in the network's order; empty if it has no emotion branch.
        emotions_trained: False if the emotion branch was never trained on emotions, so that its names mean
            nothing; results leave them out.
        with_class_maps: whether results have a map for each emotion; may be changed between calls.

    Raises:
        ValueError: the weights give no score, or no maps when asked for, or are on different scales, or an
            argument is out of range.
        FileNotFoundError: there are no such weights.
    """

    def __init__(
        self,
        checkpoint: Path | str | Sequence[Path | str] | None = None,
        device: str = "auto",
        precision: str | None = None,
        batch_size: int = 16,
        workers: int = 0,
        maps: bool = False,
        exact: bool = False,
        flip: bool = False,
    ):
        if batch_size < 1 or workers < -1:
            raise ValueError(
                f"predict: batch size at least 1, workers at least -1; got {batch_size}, {workers}"
            )
        files = checkpoint_files(DEFAULT if checkpoint is None else checkpoint)
        exported = [is_exported(file) for file in files]
        if any(exported) and device not in ("auto", "cpu"):
            raise ValueError(f"predict: exported networks run on the CPU, not on {device}")
        chosen = choose_device("cpu" if any(exported) else device, "--device")
        self.on_cpu = chosen.type == "cpu"
        # Spare cores decode for another device; on a CPU all of torch's cores decode and score.
        all_cores = workers == -1 and self.on_cpu
        self.workers = min(8, torch.get_num_threads()) if all_cores else Data(workers=workers).worker_count()
        own = None if precision == "auto" else precision  # of an exported network
        networks = [
            Exported(file, own, streams=self.workers)
            if is_exported(file)
            else TorchNetwork.load(load_weights(file), chosen, precision or "fp32")
            for file in files
        ]
        check_averaged([network.weights for network in networks], flip)
        for (
            network
        ) in networks:  # weights that are older than data.icc learned from pictures of which few had
            if network.view.icc is None:  # another profile, and so want sRGB
                network.view = network.view._replace(icc=True)
        self.network = Ensemble(networks, flip)
        weights = self.network.weights
        check_scores(weights, ("aesthetics", "series"))
        self.scale, self.emotions = weights.scale or ODDS, weights.emotions
        self.emotions_trained = weights.emotion_branch == "trained"
        if maps and (exported[0] or not self.emotions):
            words = "maps need a .pt or .safetensors file with an emotion branch, the first of several"
            raise ValueError(f"predict: {words}; {files[0]} is none")
        self.with_class_maps = maps and self.emotions_trained
        self.batch_size, self.exact = batch_size, exact
        ratings = weights.description.get("training_ratings", ()) if self.scale.kind != "label" else ()
        self.quantiles = np.asarray(ratings) if len(ratings) > 1 else None

    def score(self, path: Path | str) -> Scored:
        """Scores one picture.

        Raises:
            DecodeError: the file cannot be decoded; `score_all` returns such files with an `error` instead.
        """
        path = os.fspath(path)
        notes = {}
        image, *others = (view[None] for view in self._read(path, None, notes))  # (1, 3, H, W) each
        return self._score(Decoded([path], [None], image, notes, tuple(others)), batch_size=1)[0]

    def score_all(
        self,
        paths: Iterable[Path | str],
        first: int = 0,
        on_decoded: Callable[[str, Image.Image, Image.Exif], object] | None = None,
    ) -> Iterator[Scored]:
        """Scores pictures in batches; yields one result per path, in order, also for those with an `error`.

        However many pictures there are, memory holds only the paths and about one batch per worker.

        Args:
            first: the index of the first picture to return. Its whole batch is computed, so that the results
                equal those of a run over all pictures to the last digit.
            on_decoded: called with each path, its picture as RGB and its EXIF before the result is yielded,
                in the thread that decodes it. If it raises, that becomes the picture's error.
        """
        paths = [os.fspath(path) for path in paths]
        batch_size = max(1, min(self.batch_size, -(-len(paths) // max(1, self.workers))))
        starts = range(first - first % batch_size, len(paths), batch_size)
        batches = [paths[start : start + batch_size] for start in starts]
        threads = self.workers if len(paths) > batch_size else 0  # as without `first`

        def decode_batch(batch_paths: list[str]) -> Decoded:
            images, reasons, notes = [], [], {}
            for path in batch_paths:
                try:
                    images.append(self._read(path, on_decoded, notes))
                    reasons.append(None)
                except DecodeError as error:
                    reasons.append(error.reason)
            first, *others = [stack(view) for view in zip(*images, strict=True)] or [None]
            return Decoded(batch_paths, reasons, first, notes, tuple(others))

        if self.on_cpu:
            results = in_threads(lambda batch: self._score(decode_batch(batch), batch_size), batches, threads)
        else:  # one thread alone runs the network on the device, while others decode
            decoded = in_threads(decode_batch, batches, threads)
            results = (self._score(batch, batch_size) for batch in decoded)
        yield from itertools.islice(itertools.chain.from_iterable(results), first % batch_size, None)

    def _read(self, path: str, on_decoded: Callable | None, notes: dict[str, str]) -> list[Tensor]:
        """A file as (3, H, W) uint8 for each of the networks' views; defects that did not prevent decoding
        are added to `notes`."""
        receive = functools.partial(on_decoded, path) if on_decoded else None
        said: list[str] = []
        views = decode_views(path, self.network.views, self.exact, receive, said.append)  # (H, W, 3) each
        if said:
            notes[path] = "; ".join(said)
        return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in views]

    def _score(self, batch: Decoded, batch_size: int) -> list[Scored]:
        """Results of a batch, of whose files n could be decoded."""
        results = [
            Scored(path, error=reason) for path, reason in zip(batch.paths, batch.reasons, strict=True)
        ]
        if batch.images is None:
            return results
        [(_, output)] = self.network.outputs([batch], batch_size)
        predictions, differences = output.prediction.numpy(), None  # (n, K)
        if self.scale is ODDS:  # as the first and as the second of a pair
            predictions = predictions.mean(axis=1, keepdims=True)  # (n, 1)
        else:
            differences = disagreement(output.members.numpy(), self.scale)  # (n,)
        values, deviations = self.scale.value(predictions), self.scale.deviation(predictions)  # (n,), (n,)
        emotions = output.emotion_logits.double().softmax(dim=1).numpy()  # (n, E)
        maps = output.emotion_map[:, 0].numpy()  # (n, h, w)
        class_maps = self.network.class_maps(batch, batch_size) if self.with_class_maps else None
        finite = np.isfinite(values) & np.isfinite(emotions).all(axis=1)  # (n,)
        decoded = [place for place, reason in enumerate(batch.reasons) if reason is None]
        for i, place in enumerate(decoded):
            if not finite[i]:
                error = "the network's output is not a number; --precision fp32 usually helps"
                results[place] = Scored(batch.paths[place], error=error)
                continue
            probabilities = zip(self.emotions, emotions[i].tolist(), strict=True)
            named = dict(probabilities) if self.emotions_trained else {}
            strongest = max(named, key=named.get, default=None)
            results[place] = Scored(
                batch.paths[place],
                score=float(values[i]),
                score_min=self.scale.ends[0],
                score_max=self.scale.ends[1],
                score_std=None if np.isnan(deviations[i]) else float(deviations[i]),
                score_model_std=None if differences is None else float(differences[i]),
                percentile=None if self.quantiles is None else percentile(values[i], self.quantiles),
                emotion=strongest,
                emotion_probability=named.get(strongest),
                emotions=named,
                distribution=dict(zip(self.scale.bins, predictions[i].tolist(), strict=False)),  # no bins: {}
                emotion_map=maps[i],
                class_maps=None if class_maps is None else class_maps[i],
                note=batch.notes.get(batch.paths[place]),
            )
        return results


class Decoded(NamedTuple):
    """A batch of files: their paths; for each the reason why it cannot be decoded, or None; the pictures.

    images: (n, 3, H, W) uint8, channels last in memory, those decoded; None if there are none.
    notes: path -> what is wrong with a file that could still be decoded.
    others: the pictures again, as `images`, for each further view of the networks.
    """

    paths: list[str]
    reasons: list[str | None]
    images: Tensor | None
    notes: dict[str, str]
    others: tuple[Tensor, ...] = ()


def in_threads(function: Callable, items: Iterable, threads: int) -> Iterator:
    """`function(item)` of each item, in order, by threads that work ahead by at most one item each.

    They share torch's threads equally: a batch on all cores would wait for the slowest one in each layer.
    Pillow and torch release the interpreter's lock while they compute.

    Args:
        threads: 0 means the calling thread.
    """
    if not threads:
        yield from map(function, items)
        return
    total, waiting = torch.get_num_threads(), deque()
    share = max(1, total // threads)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(share,))
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(total)  # for new threads; the caller's own number never changed


def percentile(value: float, quantiles: np.ndarray) -> float:
    """Share of ratings below a value, in percent, exact where several ratings are equal.

    Args:
        quantiles: (Q,) of the ratings, ascending, at evenly spaced shares from smallest to largest.
    """
    # Computed from the share above, because np.interp takes the last of equal quantiles.
    return float(100 - np.interp(-value, -quantiles[::-1], np.linspace(0, 100, len(quantiles))))


def is_exported(file: Path) -> bool:
    """Whether the file is one that scripts/export.py writes, by its ending."""
    return file.suffix in ENDINGS.values()


def check_scores(weights: Weights, tasks: tuple[str, ...] = ("aesthetics",)) -> None:
    """Raises ValueError unless the weights are of a task that gives a picture a score."""
    if weights.task not in tasks:
        raise ValueError(
            f"predict: {weights.path} was trained with --task {weights.task}; scoring needs weights of "
            f"--task {' or '.join(tasks)}"
        )
