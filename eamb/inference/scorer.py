"""Scores photographs with a network and its weights (docs/python.md).

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
from torch import Tensor, nn

from eamb.inference.exported import ENDINGS, Exported
from eamb.network.outputs import Scale
from eamb.readers.decoding import DecodeError, View, decode_views, picture_views, stack
from eamb.runtime.config import Data
from eamb.runtime.distributed import choose_device
from eamb.runtime.networks import Averaged, Ensemble, TorchNetwork, check_averaged, disagreement
from eamb.weights.checkpoint import Weights, load_weights, weights_of
from eamb.weights.shipped import DEFAULT, checkpoint_files

ODDS = Scale("score", -np.inf, np.inf, 0.0)  # for pair networks, which have no scale
Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Scored:
    """The result for one picture; only `path` and `error` if it cannot be decoded.

    path: as it was given; "" for a picture that is no file.
    score: in the unit of the training set's ratings, whose scale runs from score_min to score_max; for a
        network of high/low labels the probability of "high", 0 to 1. None for a network of emotions alone.
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
    """A network with its weights, or several together, ready to score pictures: `score` one, `score_many`, or
    the files of a list, `score_all`.

    Args:
        checkpoint: weights, .pt or .safetensors, a folder as a hub has it, what scripts/export.py wrote, the
            name of a shipped network, as "lite", or a network in memory that has a description. Of pair
            networks (`eamb.network.pair_networks`) scores are log-odds, which are comparable only within one
            series of photographs; emotion networks give emotions and maps, and no score. Several, on one
            scale: a picture is decoded once and its score is the mean of theirs; emotions, maps and the
            training ratings for percentiles are the first's.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "fp32" (the default), "bf16", "fp16" or "auto" (bf16 where the device computes it);
            an exported file has its own.
        batch_size: pictures per batch in `score_many` and `score_all`.
        workers: threads of the two. On a CPU each decodes and scores batches with its share of the cores;
            for other devices they only decode ahead. 0: the calling thread; -1: one per core, up to 8.
        maps: also compute a map for each emotion, which runs the emotion branch a second time.
        exact: decode large JPEGs at full size, as training and evaluation do. Otherwise they are decoded at a
            smaller size before resizing (`decoding.decode`), which is several times faster.
        flip: score each picture's mirror image too, and take the mean; the rest stays that of the picture.

    Attributes:
        scale: what a score means: its ends, its threshold, its rating bins; None if there are no scores.
        emotions: names, in the network's order; empty if it has no emotion branch.
        emotions_trained: False if the emotion branch was never trained on emotions, so that its names mean
            nothing; results leave them out.
        with_class_maps: whether results have a map for each emotion; may be changed between calls.

    Raises:
        ValueError: the weights give no maps when asked for, or are on different scales or not described, or
            an argument is out of range.
        FileNotFoundError: there are no such weights.
    """

    def __init__(
        self,
        checkpoint: Path | str | nn.Module | Sequence[Path | str | nn.Module] | None = None,
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
        sources = sources_of(DEFAULT if checkpoint is None else checkpoint)
        exported = [isinstance(source, Path) and is_exported(source) for source in sources]
        if any(exported) and device not in ("auto", "cpu"):
            raise ValueError(f"predict: exported networks run on the CPU, not on {device}")
        chosen = choose_device("cpu" if any(exported) else device, "--device")
        self.on_cpu = chosen.type == "cpu"
        # Spare cores decode for another device; on a CPU all of torch's cores decode and score.
        all_cores = workers == -1 and self.on_cpu
        self.workers = min(8, torch.get_num_threads()) if all_cores else Data(workers=workers).worker_count()
        own = None if precision == "auto" else precision  # of an exported network
        networks = [
            Exported(source, own, streams=self.workers)
            if exports
            else TorchNetwork.load(
                source if isinstance(source, Weights) else load_weights(source), chosen, precision or "fp32"
            )
            for source, exports in zip(sources, exported, strict=True)
        ]
        check_averaged([network.weights for network in networks], flip)
        for network in networks:
            # Older than data.icc: it learned from pictures of which few had a profile, and so wants sRGB.
            if network.view.icc is None:
                network.view = network.view._replace(icc=True)
        self.network = Ensemble(networks, flip)
        weights = self.network.weights
        self.scale = ODDS if weights.task == "series" else weights.scale
        self.emotions = weights.emotions
        self.emotions_trained = weights.emotion_branch == "trained"
        if maps and (exported[0] or not self.emotions):
            words = "maps need a .pt or .safetensors file with an emotion branch, the first of several"
            raise ValueError(f"predict: {words}; {getattr(sources[0], 'path', sources[0])} is none")
        self.with_class_maps = maps and self.emotions_trained
        self.batch_size, self.exact = batch_size, exact
        rated = self.scale is not None and self.scale.kind != "label"
        ratings = weights.description.get("training_ratings", ()) if rated else ()
        self.quantiles = np.asarray(ratings) if len(ratings) > 1 else None

    def score(self, picture: Picture) -> Scored:
        """Scores one picture.

        Args:
            picture: a file; a picture of Pillow's, with its EXIF and colour profile; or sRGB pixels, (H, W),
                (H, W, 3) or (H, W, 4) uint8: grey, RGB, RGBA.

        Raises:
            DecodeError: it cannot be decoded; `score_many` returns such pictures with an `error` instead.
        """
        views, note = read_picture(picture, self.network.views, self.exact)
        image, *others = (view[None] for view in views)  # (1, 3, H, W) each
        batch = Decoded([path_of(picture)], [None], image, [note], tuple(others))
        return self.score_decoded(batch, batch_size=1)[0]

    def score_many(self, pictures: Iterable[Picture], batch_size: int | None = None) -> Iterator[Scored]:
        """Scores pictures as `score` takes them, in batches of this size or the Scorer's; yields one result
        each, in order, also for those with an `error`. Takes about one batch per worker ahead.

        Raises:
            ValueError: one picture in place of several; a batch size below 1.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        one = isinstance(pictures, str | Path | Image.Image | np.ndarray) and np.ndim(pictures) != 4
        if one or batch_size < 1:
            words = "several pictures, as an array (N, H, W, 3), and a batch size of at least 1"
            raise ValueError(f"predict: score_many takes {words}")
        left = iter(pictures)
        batches = iter(lambda: list(itertools.islice(left, batch_size)), [])
        results = self._score_batches(batches, batch_size, self.workers)
        return (scored for batch in results for scored in batch)

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
        results = self._score_batches(batches, batch_size, threads, on_decoded)
        yield from itertools.islice(itertools.chain.from_iterable(results), first % batch_size, None)

    def _score_batches(
        self,
        batches: Iterable[list[Picture]],
        batch_size: int,
        threads: int,
        on_decoded: Callable | None = None,
    ) -> Iterator[list[Scored]]:
        views = self.network.views
        read = functools.partial(read_picture, views=views, exact=self.exact, on_decoded=on_decoded)

        def decode(batch: list[Picture]) -> Decoded:
            return decode_batch([*map(path_of, batch)], batch, read)

        if self.on_cpu:
            return in_threads(lambda batch: self.score_decoded(decode(batch), batch_size), batches, threads)
        decoded = in_threads(decode, batches, threads)
        return (self.score_decoded(batch, batch_size) for batch in decoded)  # by one thread alone

    def score_decoded(self, batch: Decoded, batch_size: int) -> list[Scored]:
        """One result for each picture of a batch of at most `batch_size`, of which n could be decoded."""
        results = [
            Scored(path, error=reason) for path, reason in zip(batch.paths, batch.reasons, strict=True)
        ]
        if batch.images is None:
            return results
        [(_, output)] = self.network.outputs([batch], batch_size)
        ratings = ratings_of(output, self.scale, self.quantiles)
        emotions = output.emotion_logits.double().softmax(dim=1).numpy()  # (n, E)
        maps = output.emotion_map[:, 0].numpy()  # (n, h, w)
        class_maps = self.network.class_maps(batch, batch_size) if self.with_class_maps else None
        decoded = [place for place, reason in enumerate(batch.reasons) if reason is None]
        for i, place in enumerate(decoded):
            if not (np.isfinite(ratings[i].get("score", 0)) and np.isfinite(emotions[i]).all()):
                error = "the network's output is not a number; --precision fp32 usually helps"
                results[place] = Scored(batch.paths[place], error=error)
                continue
            probabilities = zip(self.emotions, emotions[i].tolist(), strict=True)
            named = dict(probabilities) if self.emotions_trained else {}
            strongest = max(named, key=named.get, default=None)
            results[place] = Scored(
                batch.paths[place],
                **ratings[i],
                emotion=strongest,
                emotion_probability=named.get(strongest),
                emotions=named,
                emotion_map=maps[i],
                class_maps=None if class_maps is None else class_maps[i],
                note=batch.notes[place],
            )
        return results


class Decoded(NamedTuple):
    """A batch of pictures: their paths; for each the reason why it cannot be decoded, or None; the pixels.

    images: (n, 3, H, W) uint8, channels last in memory, those decoded; None if there are none.
    notes: for each, what is wrong with it although it could be decoded, or None.
    others: the pictures again, as `images`, for each further view of the networks.
    """

    paths: list[str]
    reasons: list[str | None]
    images: Tensor | None
    notes: list[str | None]
    others: tuple[Tensor, ...] = ()


def decode_batch(names: list[str], pictures: Sequence, read: Callable) -> Decoded:
    """Pictures with their names, each read as by `read_picture`; a DecodeError costs one of them."""
    images, reasons, notes = [], [], []
    for picture in pictures:
        reason = note = None
        try:
            image, note = read(picture)
            images.append(image)
        except DecodeError as error:
            reason = error.reason
        reasons.append(reason)
        notes.append(note)
    first, *others = [stack(view) for view in zip(*images, strict=True)] or [None]
    return Decoded(names, reasons, first, notes, tuple(others))


def read_picture(
    picture: Picture, views: list[View], exact: bool, on_decoded: Callable | None = None
) -> tuple[list[Tensor], str | None]:
    """A picture as (3, H, W) uint8 for each view, and its defects that did not prevent decoding, if any."""
    said: list[str] = []
    if isinstance(picture, str | os.PathLike):
        path = os.fspath(picture)
        receive = functools.partial(on_decoded, path) if on_decoded else None
        arrays = decode_views(path, views, exact, receive, said.append)  # (H, W, 3) each
    else:
        arrays = picture_views(picture, views, said.append)
    return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in arrays], "; ".join(said) or None


def ratings_of(output: Averaged, scale: Scale | None, quantiles: np.ndarray | None) -> list[dict]:
    """The values of `Scored` that rate each picture; none without a scale, as of emotions alone."""
    predictions, differences = output.prediction.numpy(), None  # (n, K)
    if scale is None:
        return [{} for _ in predictions]
    if scale is ODDS:  # as the first and as the second of a pair
        predictions = predictions.mean(axis=1, keepdims=True)  # (n, 1)
    else:
        differences = disagreement(output.members.numpy(), scale)  # (n,)
    values, deviations = scale.value(predictions), scale.deviation(predictions)  # (n,), (n,)
    return [
        {
            "score": float(values[i]),
            "score_min": scale.ends[0],
            "score_max": scale.ends[1],
            "score_std": None if np.isnan(deviations[i]) else float(deviations[i]),
            "score_model_std": None if differences is None else float(differences[i]),
            "percentile": None if quantiles is None else percentile(values[i], quantiles),
            "distribution": dict(zip(scale.bins, prediction.tolist(), strict=False)),  # no bins: {}
        }
        for i, prediction in enumerate(predictions)
    ]


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


def path_of(picture: Picture) -> str:
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else ""


def sources_of(checkpoint: Path | str | nn.Module | Sequence[Path | str | nn.Module]) -> list[Path | Weights]:
    """The files, and the weights of networks in memory; raises as `checkpoint_files` and `weights_of`."""
    several = [checkpoint] if isinstance(checkpoint, str | Path | nn.Module) else list(checkpoint)
    given = [each for each in several if not isinstance(each, nn.Module)]
    files = iter(checkpoint_files(given) if given or not several else [])
    return [weights_of(each) if isinstance(each, nn.Module) else next(files) for each in several]


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
