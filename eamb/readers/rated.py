"""What a split of rated pictures is: RatedSet, its samples, its hashes and its description."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eamb.files import write_csv
from eamb.network.outputs import Scale
from eamb.readers.endings import PICTURE_ENDINGS
from eamb.readers.options import DataOptions as DataOptions  # others import it from here

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ANY_CASE_ENDINGS = (*PICTURE_ENDINGS, *(ending.upper() for ending in PICTURE_ENDINGS))

# Only words of the same emotion: joy is not amusement, and surprise is none of them.
EMOTION_OF_WORD = {
    **dict.fromkeys(("amused", "amusing"), "amusement"),
    **dict.fromkeys(("awed", "awestruck"), "awe"),
    **dict.fromkeys(("content", "contented"), "contentment"),
    **dict.fromkeys(("excited", "exciting"), "excitement"),
    **dict.fromkeys(("angry", "angered"), "anger"),
    **dict.fromkeys(("disgusted", "disgusting"), "disgust"),
    **dict.fromkeys(("fearful", "afraid", "scared", "frightened"), "fear"),
    "sad": "sadness",
}


def emotion_name(text: str) -> str:
    """The one name of an emotion: "Sad" -> "sadness", "Mixed feelings" -> "mixed_feelings"."""
    name = re.sub(r"[\s-]+", "_", text.strip().lower())
    return EMOTION_OF_WORD.get(name, name)


class Sample(NamedTuple):
    """One rated picture: score in the set's unit (NaN if unknown), distribution (K,), emotion (E,).

    A distribution of NaN: the votes are not known. A NaN in `emotion`: the raters of this picture could not
    choose this class; all NaN: no emotion is known.
    """

    id: str
    path: str
    score: float
    distribution: np.ndarray | None
    emotion: np.ndarray | None


class LeftOut(NamedTuple):
    """A picture that is not used, and why."""

    id: str
    reason: str


class Copies(NamedTuple):
    """Copies by `scripts/prepare_data.py`: folder, side in pixels, whether turned by EXIF, the command,
    whether converted to sRGB."""

    root: str
    size: int
    exif: bool
    command: str
    icc: bool = False


@dataclass(frozen=True, eq=False)
class RatedSet:
    """One split of a set, or of several, as columns of equal length n; `rated[i]` is a Sample.

    protocol: in words, where the split comes from.
    ids: each once, except in a training split of several sets that shows some pictures repeatedly.
    scores: (n,) float64 in the set's unit, NaN where unknown.
    scale: what a network trained on it predicts.
    distributions: (n, K) shares of votes per rating of `bins`, rows sum to 1; NaN where votes are unknown.
    emotions: (n, E) shares of votes or one-hot, over `emotion_classes`; what is not NaN in a row sums to 1.
        NaN: its raters could not choose this class. A row of NaN: no emotion is known.
    distilled: (n,) float64 in the unit of the scores, what other networks predict, to be learned beside them.
    dealt: the set has no splits of its own, and its pictures were dealt to folds.
    united: made of several sets by `unite`, which are `parts`; the ids begin with "set:".
    copies: an entry for each set whose pictures are prepared copies.
    """

    name: str
    split: str
    protocol: str
    ids: list[str]
    paths: list[str]
    scores: np.ndarray
    scale: Scale
    distributions: np.ndarray | None = None
    bins: tuple[float, ...] = ()
    emotions: np.ndarray | None = None
    emotion_classes: tuple[str, ...] = ()
    distilled: np.ndarray | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    dealt: bool = False
    united: bool = False
    parts: tuple[RatedSet, ...] = ()
    copies: tuple[Copies, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def draws(self) -> int:
        """Samples of a training epoch: the pictures."""
        return len(self)

    def __getitem__(self, index: int) -> Sample:
        votes, emotion = take_rows(self.distributions, index), take_rows(self.emotions, index)
        return Sample(self.ids[index], self.paths[index], float(self.scores[index]), votes, emotion)

    def take(self, indices: Sequence[int] | np.ndarray) -> RatedSet:
        """The pictures at `indices` (positions, or a mask of length n), in that order; without `parts`."""
        indices = np.arange(len(self))[np.asarray(indices)]
        return replace(
            self,
            ids=[self.ids[i] for i in indices],
            paths=[self.paths[i] for i in indices],
            scores=self.scores[indices],
            distributions=take_rows(self.distributions, indices),
            emotions=take_rows(self.emotions, indices),
            distilled=take_rows(self.distilled, indices),
            parts=(),
        )

    @property
    def with_votes(self) -> np.ndarray:
        """(n,) bool, the pictures whose rating votes are known."""
        if self.distributions is None:
            return np.zeros(len(self), dtype=bool)
        return ~np.isnan(self.distributions).all(axis=1)

    def high(self) -> np.ndarray:
        """(n,) bool, by exact comparison of the scores with the scale's threshold."""
        return self.scale.is_high(self.scores)

    @property
    def sha256(self) -> str:
        """Hash of the sorted ids, each once, one per line: equal for equal splits, whatever their order."""
        return hashlib.sha256("".join(f"{i}\n" for i in sorted(set(self.ids))).encode()).hexdigest()

    @property
    def labels_sha256(self) -> str:
        """Hash of the ratings in the order of the ids, as float32: float64 differs between machines."""
        order, digest = np.argsort(self.ids, kind="stable"), hashlib.sha256()
        for values in (self.scores, self.distributions, self.emotions):
            if values is not None:
                digest.update(np.where(np.isnan(values), -1, values)[order].astype("<f4").tobytes())
        return digest.hexdigest()

    def per_set(self, values: dict[str, dict[str, float]]) -> np.ndarray:
        """(n, E) the numbers in `values` (set -> class -> number) for each picture's set, 0 if none."""
        sets = [i.partition(":")[0] for i in self.ids] if self.united else [self.name] * len(self)
        rows = {name: [values.get(name, {}).get(c, 0.0) for c in self.emotion_classes] for name in set(sets)}
        return np.array([rows[name] for name in sets], dtype=np.float64)

    @property
    def row_hashes(self) -> np.ndarray:
        """(n,) int64: first 64 bits of the SHA-256 of "set:id", united or not."""
        texts = self.ids if self.united else [f"{self.name}:{i}" for i in self.ids]
        return hash64(texts).view(np.int64)

    @property
    def id_hashes(self) -> np.ndarray:
        """(distinct ids,) int64: the `row_hashes`, sorted, each once."""
        return np.unique(self.row_hashes)


def describe(rated: RatedSet) -> str:
    """One line for the log: what was loaded, by which protocol, what was left out."""
    scores = rated.scores[~np.isnan(rated.scores)]
    parts = [f"{rated.name} {rated.split}: {len(rated):,} pictures ({rated.protocol})"]
    if scores.size:
        parts.append(f"scores {scores.min():.4g} to {scores.max():.4g}, mean {scores.mean():.4g}")
    if 0 < (count := rated.with_votes.sum()) < len(rated):
        parts.append(f"votes of {count:,}")
    if rated.emotions is not None:
        parts.append(f"{len(rated.emotion_classes)} emotions")
    parts += [f"prepared copies of {copies.size} px" for copies in rated.copies]
    parts.append(f"{len(rated.left_out):,} left out")
    return ", ".join(parts) + f", ids sha256 {rated.sha256[:12]}"


def write_left_out(path: str | Path, rated: RatedSet) -> None:
    """Writes one row `id,reason` for each picture of the split that is not used."""
    write_csv(path, [LeftOut._fields, *rated.left_out])


def take_rows(values: np.ndarray | None, index) -> np.ndarray | None:
    return None if values is None else values[index]


def hash64(texts: Iterable[str]) -> np.ndarray:
    """(n,) uint64: the first 64 bits of each text's SHA-256."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def hash_fractions(ids: Sequence[str]) -> np.ndarray:
    """(n,) float64 in [0, 1]: each id's SHA-256 as a fraction, whatever the order and the other ids."""
    return hash64(ids) / 2.0**64
