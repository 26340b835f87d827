"""Rated pictures: AVA, PARA, IAE, FI, EmoSet, your own csv and the demo set, as columns; batches.

    splits = load_dataset("para", "/data/PARA", splits=("train", "val"))
    splits = load_datasets(["para", "fi"], ["/data/PARA", "/data/FI"], ("train", "val"))  # emotions of both
    pictures = PictureSet(splits["train"], size=224, flip_seed=0)
    loader = make_loader(pictures, TrainOrder(len(pictures), batch_size=32, seed=0, epoch=0), workers=2)

From top to bottom: names of emotions; what a split is; loading one set; uniting several; reading tables
with checks; one parse function per set; looking the pictures up; prepared copies; splitting by hash, in
folds too; pictures and batches; orders; loaders. Emotions are mapped by name, never by index.
"""

from __future__ import annotations

import codecs
import csv
import ctypes
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from decoding import PICTURE_ENDINGS, DecodeError, decode, stack
from EAMBNet import EMOTIONS, Scale
from spreadsheets import encodable, row_writer, safe

SPLITS = ("train", "val", "test")
ANY_CASE_ENDINGS = (*PICTURE_ENDINGS, *(ending.upper() for ending in PICTURE_ENDINGS))

# ---------------------------------------------------------------------------------------------------
# Names of emotions


# Only words of the same emotion: joy is not amusement, and surprise is none of them.
EMOTION_WORDS = {
    "amusement": ("amused", "amusing"),
    "awe": ("awed", "awestruck"),
    "contentment": ("content", "contented"),
    "excitement": ("excited", "exciting"),
    "anger": ("angry", "angered"),
    "disgust": ("disgusted", "disgusting"),
    "fear": ("fearful", "afraid", "scared", "frightened"),
    "sadness": ("sad",),
}
EMOTION_OF_WORD = {word: emotion for emotion, words in EMOTION_WORDS.items() for word in words}


def emotion_name(text: str) -> str:
    """The one name of an emotion: "Sad" -> "sadness", "Mixed feelings" -> "mixed_feelings"."""
    name = re.sub(r"[\s-]+", "_", text.strip().lower())
    return EMOTION_OF_WORD.get(name, name)


# ---------------------------------------------------------------------------------------------------
# What a split is


class Sample(NamedTuple):
    """One rated picture: score in the set's unit (NaN if unknown), distribution (K,), emotion (E,).

    A NaN in `emotion`: this class was not offered for this picture; all NaN: no emotion is known.
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


@dataclass(frozen=True)
class DataOptions:
    """Choices about targets and splits; those from `table` on are for `csv`.

    validation: share of the training pictures held out where the set has no validation split of its own.
    target: "distribution", "score" or "label"; "auto" is what the set is usually trained on.
    score_range: what p in [0, 1] means: "sound" from minimum to maximum, "official" maximum * p.
    twins: keep byte-identical pictures on one side when splitting by hash. They are found by content in sets
        of up to TWIN_LIMIT pictures; the protocol says if they were not.
    folds, fold: cross-validation of a set without a split of its own: its test split is number `fold`, from
        0, of `folds` equal parts, in each of which the emotions are as frequent as in the whole. 0: none.
    repeat: of several sets, how often an epoch shows each one's training pictures, as "1,10"; "" is once.
    table: the csv file, relative to the root. images: the folder its paths are relative to.
    count_columns: comma separated, `name=value` where the name does not end in its rating.
    emotion_columns: one column of names, or several of counts, comma separated.
    minimum, maximum, threshold: of the ratings; the threshold is taken for every set if given.
    """

    validation: float = 0.05
    target: str = "auto"
    score_range: str = "sound"
    twins: bool = True
    folds: int = 0
    fold: int = 0
    repeat: str = ""
    table: str = ""
    images: str = ""
    path_column: str = ""
    score_column: str = ""
    count_columns: str = ""
    emotion_columns: str = ""
    split_column: str = ""
    minimum: float | None = None
    maximum: float | None = None
    threshold: float | None = None

    def __post_init__(self):
        if not 0 < self.validation < 1:
            raise ValueError(f"datasets: data.validation is a share between 0 and 1, got {self.validation}.")
        if self.target not in ("auto", "distribution", "score", "label"):
            raise ValueError(
                f"datasets: data.target is auto, distribution, score or label, got '{self.target}'."
            )
        if self.score_range not in ("sound", "official"):
            raise ValueError(f"datasets: data.score_range is sound or official, got '{self.score_range}'.")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"datasets: data.folds is 2 or more, or 0 for no folds; got {self.folds}.")
        if not 0 <= self.fold < max(1, self.folds):
            allowed = f"from 0 to {self.folds - 1}" if self.folds else "0 without data.folds"
            raise ValueError(f"datasets: data.fold is {allowed}, got {self.fold}.")


class Copies(NamedTuple):
    """What `scripts/prepare_data.py` made of a set, and the command that makes it again.

    size: side in pixels. exif: whether the pictures were turned as their EXIF orientation says.
    """

    root: str
    size: int
    exif: bool
    command: str


@dataclass(frozen=True, eq=False)
class RatedSet:
    """One split of a set, or of several, as columns of equal length n; `rated[i]` is a Sample.

    protocol: in words, where the split comes from.
    ids: each once, except in a training split of several sets that shows some pictures repeatedly.
    scores: (n,) float64 in the set's unit, NaN where unknown.
    scale: what a network trained on it predicts.
    distributions: (n, K) shares of votes per rating of `bins`, rows sum to 1.
    emotions: (n, E) shares of votes or one-hot, over `emotion_classes`; what is not NaN in a row sums to 1.
        NaN: the class was not offered for this picture. A row of NaN: no emotion is known.
    dealt: the splits are folds of a set without splits of its own.
    united: made of several sets by `unite`; the ids begin with "set:".
    parts: the sets that it is made of, as they were.
    copies: which copies its pictures are, one entry per set that has them; none for the pictures themselves.
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
    left_out: list[LeftOut] = field(default_factory=list)
    dealt: bool = False
    united: bool = False
    parts: tuple[RatedSet, ...] = ()
    copies: tuple[Copies, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def draws(self) -> int:
        """How many training draws an epoch, here its pictures."""
        return len(self)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            self.ids[index],
            self.paths[index],
            float(self.scores[index]),
            _rows(self.distributions, index),
            _rows(self.emotions, index),
        )

    def take(self, indices: Sequence[int] | np.ndarray) -> RatedSet:
        """The pictures at `indices` (positions, or a mask of length n), in that order; without `parts`."""
        indices = np.arange(len(self))[np.asarray(indices)]
        return replace(
            self,
            ids=[self.ids[i] for i in indices],
            paths=[self.paths[i] for i in indices],
            scores=self.scores[indices],
            distributions=_rows(self.distributions, indices),
            emotions=_rows(self.emotions, indices),
            parts=(),
        )

    def high(self) -> np.ndarray:
        """(n,) bool: rated high, by exact comparison of the scores with the scale's threshold."""
        return self.scale.is_high(self.scores)

    @property
    def sha256(self) -> str:
        """Of the sorted ids, each once, one per line: equal for equal splits, whatever their order."""
        return hashlib.sha256("".join(f"{i}\n" for i in sorted(set(self.ids))).encode()).hexdigest()

    @property
    def labels_sha256(self) -> str:
        """Of the ratings in the order of the ids: in float32, for a last digit may be another elsewhere."""
        order, digest = np.argsort(self.ids, kind="stable"), hashlib.sha256()
        for values in (self.scores, self.distributions, self.emotions):
            if values is not None:
                digest.update(np.where(np.isnan(values), -1, values)[order].astype("<f4").tobytes())
        return digest.hexdigest()

    def per_set(self, values: dict[str, dict[str, float]]) -> np.ndarray:
        """(n, E) what `values` (set -> class -> number) has for each picture, 0 where it has nothing."""
        sets = [i.partition(":")[0] for i in self.ids] if self.united else [self.name] * len(self)
        rows = {name: [values.get(name, {}).get(c, 0.0) for c in self.emotion_classes] for name in set(sets)}
        return np.array([rows[name] for name in sets], dtype=np.float64)

    @property
    def id_hashes(self) -> np.ndarray:
        """(distinct ids,) int64, sorted: first 64 bits of the SHA-256 of "set:id", to find trained pictures
        again, by themselves or among others."""
        texts = self.ids if self.united else [f"{self.name}:{i}" for i in self.ids]
        return np.unique(_hash64(texts).view(np.int64))


def describe(rated: RatedSet) -> str:
    """One line for the log: what was loaded, by which protocol, what was left out."""
    known = rated.scores[~np.isnan(rated.scores)]
    parts = [f"{rated.name} {rated.split}: {len(rated):,} pictures ({rated.protocol})"]
    if known.size:
        parts.append(f"scores {known.min():.4g} to {known.max():.4g}, mean {known.mean():.4g}")
    if rated.emotions is not None:
        parts.append(f"{len(rated.emotion_classes)} emotions")
    parts += [f"prepared copies of {copies.size} px" for copies in rated.copies]
    parts.append(f"{len(rated.left_out):,} left out")
    return ", ".join(parts) + f", ids sha256 {rated.sha256[:12]}"


def write_left_out(path: str | Path, rated: RatedSet) -> None:
    """Writes one row `id,reason` for each picture of the split that is not used."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        write = row_writer(file)
        for row in (LeftOut._fields, *rated.left_out):
            write([safe(text) for text in row])


def _rows(values: np.ndarray | None, index) -> np.ndarray | None:
    return None if values is None else values[index]


def _hash64(texts: Iterable[str]) -> np.ndarray:
    """(n,) uint64: the first 64 bits of each text's SHA-256."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


# ---------------------------------------------------------------------------------------------------
# Loading: parse, look the pictures up, split


@dataclass(frozen=True)
class Rating:
    """How a set rates: a picture is high above `threshold`, and at it too if `inclusive`.

    target: what "auto" trains on. scored: False if the scores are only the labels 0 and 1.
    """

    minimum: float
    maximum: float
    threshold: float
    inclusive: bool = False
    target: str = "score"
    scored: bool = True

    def is_high(self, scores: np.ndarray) -> np.ndarray:
        """(n,) ratings -> (n,) bool, by exact comparison."""
        return scores >= self.threshold if self.inclusive else scores > self.threshold


@dataclass
class Table:
    """The rows of a set as its files have them: pictures not looked up, validation perhaps not split off.

    names: each picture's path, relative to one of `places`.
    split: (n,) of "train", "val", "test", or "" where the hash of the id is to decide.
    protocol: split -> where its rows come from, in words.
    votes: (n, K) counts per rating of `bins`; emotions: (n, E) counts. Rows of NaN where a file has none.
    twins: groups of ids known to be the same picture; None if they are to be found by content.
    test_share: of the rows whose split is "".
    copies: none, or that all pictures are these; sources: n hashes of the files that they are copies of.
    """

    name: str
    ids: list[str]
    names: list[str]
    split: np.ndarray
    scores: np.ndarray
    rating: Rating
    places: list[Path] = field(default_factory=list)
    protocol: dict[str, str] = field(default_factory=dict)
    votes: np.ndarray | None = None
    bins: tuple[float, ...] = ()
    emotions: np.ndarray | None = None
    emotion_classes: tuple[str, ...] = ()
    twins: list[list[str]] | None = None
    left_out: dict[str, list[LeftOut]] = field(default_factory=dict)
    test_share: float = 0.10
    copies: tuple[Copies, ...] = ()
    sources: list[str] = field(default_factory=list)

    @property
    def has_own_split(self) -> bool:
        return not (self.split == "").any()

    def take(self, indices: np.ndarray) -> Table:
        return replace(
            self,
            ids=[self.ids[i] for i in indices],
            names=[self.names[i] for i in indices],
            split=self.split[indices],
            scores=self.scores[indices],
            votes=_rows(self.votes, indices),
            emotions=_rows(self.emotions, indices),
        )


def load_dataset(
    name: str,
    root: str | Path,
    splits: Sequence[str] = SPLITS,
    options: DataOptions | None = None,
) -> dict[str, RatedSet]:
    """Reads the splits asked for, checked and complete: split -> RatedSet.

    Args:
        name: ava, para, iae, fi, emoset, csv or demo, in any case.
        root: the set's folder. For demo it is filled if it has no labels.csv yet.

    Raises:
        ValueError, FileNotFoundError: one sentence that names file, row and column.
    """
    options = options or DataOptions()
    table, paths = read_table(name, root, splits, options)
    _check_folds([table], options)
    return _split_sets(table, paths, splits, options)


def read_table(
    name: str, root: str | Path, splits: Sequence[str], options: DataOptions
) -> tuple[Table, list[str]]:
    """The rows whose pictures exist, before they are split, and the path of each picture.

    Raises:
        ValueError, FileNotFoundError: as `load_dataset`; prepared copies that are not complete or are old.
    """
    manifest = read_manifest(root)
    if manifest:
        manifest.check_complete(root)
    table, paths = look_up(_parsed(name, root, splits, options))
    if manifest:
        table.copies, table.sources = manifest.check_sources(root, paths)
    return table, paths


def _parsed(name: str, root: str | Path, splits: Sequence[str], options: DataOptions) -> Table:
    """The rows of the set's files, whether their pictures exist or not."""
    parse = _parser(name)
    root = Path(root).expanduser()
    if name.lower() != "demo" and not root.is_dir():
        raise FileNotFoundError(
            f"datasets: there is no folder {root}; --data-root must name the {name} folder."
        )
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"datasets: splits are train, val and test; got {', '.join(unknown) or 'none'}.")
    return parse(root, tuple(splits), options)


def _check_folds(tables: list[Table], options: DataOptions) -> None:
    if options.folds and all(table.has_own_split for table in tables):
        names = " and ".join(table.name for table in tables)
        have = "have splits of their own" if len(tables) > 1 else "has a split of its own"
        raise ValueError(
            f"datasets: {names} {have} here; data.folds={options.folds} is for sets without one "
            "(fi, or a csv without a split column)."
        )


def _split_sets(
    table: Table, paths: list[str], splits: Sequence[str], options: DataOptions
) -> dict[str, RatedSet]:
    dealt = bool(options.folds) and not table.has_own_split
    split_by_hash(table, paths, splits, options)
    loaded = {split: _rated_set(table, paths, split, options) for split in splits}
    return {split: replace(rated, dealt=dealt) for split, rated in loaded.items()}


def _parser(name: str) -> Callable[[Path, tuple[str, ...], DataOptions], Table]:
    parsers = {"ava": parse_ava, "para": parse_para, "iae": parse_iae, "fi": parse_fi}
    parsers |= {"emoset": parse_emoset, "csv": parse_csv, "demo": parse_demo}
    if name.lower() not in parsers:
        raise ValueError(
            f"datasets: there is no set '{name}'; known are {', '.join(parsers)} (your own: csv)."
        )
    return parsers[name.lower()]


def _rated_set(table: Table, paths: list[str], split: str, options: DataOptions) -> RatedSet:
    """The rows of one split with the target made from them."""
    rows = np.flatnonzero(table.split == split)
    left_out = table.left_out.get(split, [])
    if not len(rows):
        reason = f": {len(left_out)} pictures are left out, {left_out[0].reason}" if left_out else ""
        raise ValueError(f"datasets: the {split} split of {table.name} is empty{reason}.")
    part = table.take(rows)
    return RatedSet(
        name=table.name,
        split=split,
        protocol=table.protocol[split],
        ids=part.ids,
        paths=[paths[i] for i in rows],
        scores=part.scores,
        scale=_scale(part, split, options),
        distributions=_shares(part.votes),
        bins=() if _shares(part.votes) is None else part.bins,
        emotions=_shares(part.emotions),
        emotion_classes=() if _shares(part.emotions) is None else part.emotion_classes,
        left_out=left_out,
        copies=table.copies,
    )


def _shares(counts: np.ndarray | None) -> np.ndarray | None:
    """(n, K) counts -> (n, K) rows that sum to 1; None where a split has no counts."""
    if counts is None or np.isnan(counts).all():
        return None
    return counts / counts.sum(1, keepdims=True)


def _scale(table: Table, split: str, options: DataOptions) -> Scale:
    """What training on this split predicts, from the set's way of rating and `data.target`."""
    rating = table.rating
    threshold = rating.threshold if options.threshold is None else options.threshold
    target = rating.target if options.target == "auto" else options.target
    common = (rating.minimum, rating.maximum, threshold, rating.inclusive)
    if target == "distribution":
        if _shares(table.votes) is None:
            raise ValueError(
                f"datasets: data.target=distribution needs vote counts and the {split} split of {table.name} "
                f"({table.protocol[split]}) has none; use data.target=score."
            )
        return Scale("distribution", *common, bins=table.bins)
    if target == "label":
        return Scale("label", *common)
    if not rating.scored:
        raise ValueError(
            f"datasets: {table.name} has high/low labels and no scores; data.target=score needs scores."
        )
    if options.score_range == "official":
        return Scale("score", *common, offset=0.0, factor=rating.maximum)
    return Scale("score", *common, offset=rating.minimum, factor=rating.maximum - rating.minimum)


def check_classes(rated: RatedSet) -> None:
    """Refuses a split in which an emotion of its list has no vote: nothing can be learned about it.

    Raises:
        ValueError: names the emotions.
    """
    votes = np.nansum(rated.emotions, axis=0)  # (E,)
    empty = [name for name, count in zip(rated.emotion_classes, votes, strict=True) if not count]
    if empty:
        raise ValueError(
            f"datasets: the {rated.split} split of {rated.name} has no picture of {' and '.join(empty)}, "
            "an empty class. Add pictures of it (or raise data.limit), or leave it out of the classes."
        )


def first_by_hash(rated: RatedSet, limit: int) -> RatedSet:
    """A fixed sample of a set, whatever the order of its files."""
    if limit >= len(rated):
        return rated
    chosen = np.sort(np.argsort(hash_fractions(rated.ids), kind="stable")[:limit])
    return replace(rated.take(chosen), protocol=f"{rated.protocol}, {limit} of it by hash of the id")


# ---------------------------------------------------------------------------------------------------
# Several sets as one, for their emotions


def load_datasets(
    names: Sequence[str],
    roots: Sequence[str | Path],
    splits: Sequence[str] = SPLITS,
    options: DataOptions | None = None,
    limit: int = 0,
) -> dict[str, RatedSet]:
    """One set as `load_dataset` reads it, or the emotions of several, united: split -> RatedSet.

    Each set keeps its own splits and validation share; `data.folds` holds for those without a split of their
    own. Byte-identical pictures are not looked for between sets.

    Args:
        names, roots: of the same length, in the same order; no set twice.
        limit: of each set, the first so many training pictures in the order of their ids' hashes; 0: all.

    Raises:
        ValueError, FileNotFoundError: one sentence that names the set, or file, row and column.
    """
    options = options or DataOptions()
    _check_names(names, roots)
    repeats = _repeats(options.repeat, names) if "train" in splits else ()
    tables = [read_table(name, root, splits, options) for name, root in zip(names, roots, strict=True)]
    _check_folds([table for table, _ in tables], options)
    loaded = []
    for table, paths in tables:
        own = replace(options, folds=0, fold=0) if table.has_own_split else options
        loaded.append(_split_sets(table, paths, splits, own))
        if limit and "train" in splits:
            loaded[-1]["train"] = first_by_hash(loaded[-1]["train"], limit)
    if len(loaded) == 1:
        return loaded[0]
    united = {split: [sets[split] for sets in loaded] for split in splits}
    return {split: unite(sets, repeats if split == "train" else ()) for split, sets in united.items()}


def _check_names(names: Sequence[str], roots: Sequence[str | Path]) -> None:
    if len(names) != len(roots) or not names:
        raise ValueError(
            "datasets: --data-root must be given once per --dataset, in the same order; got "
            f"{len(names)} of --dataset and {len(roots)} of --data-root."
        )
    known = [name.lower() for name in names]
    twice = sorted({name for name in known if known.count(name) > 1})
    if twice:
        raise ValueError(
            f"datasets: {twice[0]} is given twice; sets are united by name, so each can be given once."
        )


def _repeats(text: str, names: Sequence[str]) -> tuple[int, ...]:
    """From data.repeat, "1,10": how often each set's training pictures are shown; () for once each."""
    if not text:
        return ()
    words = [word.strip() for word in text.split(",")]
    if len(names) < 2 or len(words) != len(names):
        raise ValueError(
            "datasets: data.repeat is one number per set, of several sets; "
            f"got '{text}' for {len(names)} ({', '.join(names)})."
        )
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"datasets: data.repeat is whole numbers from 1 on, as 1,10; got '{text}'.")
    return tuple(int(word) for word in words)


def unite(sets: Sequence[RatedSet], repeats: Sequence[int] = ()) -> RatedSet:
    """One split of several sets as one set of emotions; ids become "set:id".

    Classes are united by name: those of EMOTIONS in their order, then the others as they appear. A class that
    a set does not have is NaN for its pictures. Scores are unknown: the sets rate in different units.

    Args:
        repeats: how often each set's pictures are in the result; empty for once each.

    Raises:
        ValueError: a set without emotions.
    """
    for rated in sets:
        if rated.emotions is None:
            raise ValueError(
                f"datasets: the {rated.split} split of {rated.name} has no emotions; "
                "sets are united for their emotions only. Give it alone."
            )
    repeats = tuple(repeats) or (1,) * len(sets)
    parts = list(zip(sets, repeats, strict=True))
    classes = _united_classes(sets)
    emotions = [np.tile(over_classes(rated, classes), (times, 1)) for rated, times in parts]
    ids = [f"{rated.name}:{i}" for rated, times in parts for i in rated.ids * times]
    return RatedSet(
        name="+".join(rated.name for rated in sets),
        split=sets[0].split,
        protocol="; ".join(_part_protocol(rated, times) for rated, times in parts),
        ids=ids,
        paths=[path for rated, times in parts for path in rated.paths * times],
        scores=np.full(len(ids), np.nan),
        scale=sets[0].scale,
        emotions=np.concatenate(emotions),
        emotion_classes=classes,
        left_out=[LeftOut(f"{rated.name}:{i}", reason) for rated in sets for i, reason in rated.left_out],
        united=True,
        parts=tuple(sets),
        copies=tuple(copies for rated in sets for copies in rated.copies),
    )


def _united_classes(sets: Sequence[RatedSet]) -> tuple[str, ...]:
    found = dict.fromkeys(name for rated in sets for name in rated.emotion_classes)
    return (*(e for e in EMOTIONS if e in found), *(name for name in found if name not in EMOTIONS))


def over_classes(rated: RatedSet, classes: Sequence[str]) -> np.ndarray:
    """(n, E) the set's emotions in the columns of `classes`, NaN for those that it does not have."""
    emotions = np.full((len(rated), len(classes)), np.nan)
    emotions[:, [classes.index(name) for name in rated.emotion_classes]] = rated.emotions
    return emotions


def _part_protocol(rated: RatedSet, times: int) -> str:
    shown = f" x{times}" if times > 1 else ""
    return f"{rated.name} {len(rated):,}{shown}: {rated.protocol}"


# ---------------------------------------------------------------------------------------------------
# Reading tables: every check is vectorised, every error names file, row and column


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LARGEST = 1e15  # what nobody rates or predicts; squares and sums of such numbers are still finite
MEAN_TOLERANCE = 0.006  # of means that were rounded to two decimals


def _read_text(path: Path) -> str:
    """A file's text, unpacked if it is a .gz, without a byte order mark.

    Raises:
        ValueError, FileNotFoundError: no such file; not packed as it should be; no text, and in which row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"datasets: there is no file {path}; is --data-root right?")
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, str(error)) from error
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, f"row {row} is not UTF-8; save it in this encoding") from error
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise _unreadable(path, f"row {row} has a zero byte; save it as plain text in UTF-8")
    return text


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"datasets: {path.name} is no readable table: {reason}.")


def as_number(text: str) -> float:
    """NaN for all but plain decimals: Python's float would take 1_0 and the digits of other scripts."""
    text = text.strip()
    return float(text) if NUMBER.fullmatch(text) else np.nan


class Sheet:
    """One table file as texts, with checks on their way out. Rows are numbered as an editor shows them.

    Its cells are divided by comma, semicolon or tab, whichever the header line has most of. Every row must
    have as many cells as the header: what a lost or doubled cell would shift is never guessed.

    Args:
        names: of the columns of a file without header, whose cells are divided by blanks.
        rows: whether there must be any.

    Raises:
        ValueError, FileNotFoundError: no such file; no table in UTF-8, with the row that is not.
    """

    def __init__(self, path: Path, names: Sequence[str] = (), rows: bool = True):
        self.path = path
        text = _read_text(path)
        records = self._words(text) if names else self._records(text)
        if not (names or records):
            raise _unreadable(path, "it is empty")
        self.columns = [*names] or [name.strip() for name in records.pop(0)[1]]
        named = [name for name in self.columns if name]
        if len(set(named)) < len(named):
            twice = next(name for name in named if named.count(name) > 1)
            raise _unreadable(path, f"its header has '{twice}' twice")
        for row, cells in records:
            if len(cells) != len(self.columns):
                raise _unreadable(path, f"row {row} has {len(cells)} cells, expected {len(self.columns)}")
            if not names and [cell.strip() for cell in cells] == self.columns:
                raise _unreadable(path, f"row {row} is the header again")
        if rows and not records:
            raise ValueError(f"datasets: {path.name} has no rows.")
        self.rows = [row for row, _ in records]
        columns = zip(*(cells for _, cells in records), strict=True) if records else [()] * len(self.columns)
        self.cells = dict(zip(self.columns, columns, strict=True))

    def _words(self, text: str) -> list[tuple[int, list[str]]]:
        """(row, cells) of each line that is not blank."""
        lines = enumerate(io.StringIO(text, newline=None), 1)
        return [(row, cells) for row, line in lines if (cells := line.split())]

    def _records(self, text: str) -> list[tuple[int, list[str]]]:
        """(row, cells) of each line that is not blank; a line in quotes may go over several rows."""
        lines = io.StringIO(text, newline="")
        header = next((line for line in lines if line.strip()), "")
        lines.seek(0)
        reader = csv.reader(lines, delimiter=max(",;\t", key=header.count), strict=True)
        records, row = [], 1
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    records.append((row, cells))
                row = reader.line_num + 1
        except csv.Error as error:
            raise _unreadable(self.path, f"row {row}: {error}") from error
        return records

    def __len__(self) -> int:
        return len(self.rows)

    def need(self, columns: Iterable[str], hint: str = "") -> None:
        missing = [column for column in columns if column not in self.columns]
        if missing:
            found = ", ".join(self.columns[:12]) + (", ..." if len(self.columns) > 12 else "")
            raise ValueError(
                f"datasets: {self.path.name} has no column '{missing[0]}' (found: {found}).{hint}"
            )

    def error(self, bad: np.ndarray, column: str, expected: str) -> ValueError:
        """About the first row of the mask `bad` (n,)."""
        first, more = int(np.flatnonzero(bad)[0]), int(bad.sum()) - 1
        shown = " ".join(self.cells[column][first].split())[:80]
        shown = f"'{shown}'" if shown else "empty"
        others = f" ({more} more like it)" if more else ""
        row = self.rows[first]
        return ValueError(
            f"datasets: {self.path.name} row {row}: '{column}' is {shown}, expected {expected}{others}."
        )

    def numbers(self, column: str, minimum: float = -LARGEST, maximum: float = LARGEST) -> np.ndarray:
        """(n,) float64, each finite and in [minimum, maximum]."""
        cells = self.cells[column]
        known = {cell: as_number(cell) for cell in set(cells)}
        values = np.array([known[cell] for cell in cells])
        if not np.isfinite(values).all():
            raise self.error(~np.isfinite(values), column, "a number")
        outside = (values < minimum) | (values > maximum)
        if outside.any():
            raise self.error(outside, column, f"a value from {minimum:g} to {maximum:g}")
        return values

    def counts(self, columns: Sequence[str], most: int = 0) -> np.ndarray:
        """(n, K) numbers of votes, none negative, at least one in each row.

        Args:
            most: votes that a row can have in all, and all numbers are whole; 0: shares are fine too.
        """
        votes = np.stack([self.numbers(column) for column in columns], axis=1)
        wrong = (votes < 0) | (votes % 1 != 0) if most else votes < 0
        for k in np.flatnonzero(wrong.any(0)):
            whole = "whole " if most else ""
            raise self.error(wrong[:, k], columns[k], f"a {whole}number of votes, 0 or more")
        total, between = votes.sum(1), f"in {columns[0]} to {columns[-1]}"
        if (total == 0).any():
            raise self.error(total == 0, columns[0], f"at least one vote {between}")
        if most and (total > most).any():
            largest = columns[int(votes[np.argmax(total > most)].argmax())]
            raise self.error(total > most, largest, f"at most {most} votes {between}")
        return votes

    def counts_if_there(self, columns: Sequence[str], most: int) -> np.ndarray | None:
        """As `counts`; None if the table has not one of the columns. To have some of them is an error."""
        if not set(columns) & set(self.columns):
            return None
        self.need(columns)
        return self.counts(columns, most)

    def check_means(self, column: str, scores: np.ndarray) -> None:
        """Raises ValueError where a column of means is not that of the votes, (n,) `scores`."""
        wrong = abs(self.numbers(column) - scores) > MEAN_TOLERANCE
        if wrong.any():
            raise self.error(wrong, column, f"the mean of its votes, {scores[wrong][0]:.4g}")

    def texts(self, column: str) -> list[str]:
        """n strings without blanks around them, none empty."""
        values = [cell.strip() for cell in self.cells[column]]
        if "" in values:
            raise self.error(np.array([not value for value in values]), column, "a text")
        return values

    def ids(self, column: str, ending: str = "") -> list[str]:
        """n strings as in `texts`, `ending` removed, each of them once."""
        ids = [text.removesuffix(ending) for text in self.texts(column)]
        if len(set(ids)) < len(ids):
            repeated = pd.Series(ids).duplicated().to_numpy()
            first = self.rows[ids.index(ids[int(np.argmax(repeated))])]
            raise self.error(repeated, column, f"each picture once, but row {first} has it too")
        return ids

    def codes(self, column: str, known: Sequence[str]) -> np.ndarray:
        """(n, E) one-hot of a column of names, over `known`."""
        positions = pd.Index(known).get_indexer(self.texts(column))
        if (positions < 0).any():
            raise self.error(positions < 0, column, f"one of {', '.join(known)}")
        return np.eye(len(known))[positions]


def one_hot(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """n of the `classes` -> (n, E)."""
    return np.eye(len(classes))[pd.Index(classes).get_indexer(names)]


def means(votes: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """(n, K) counts -> (n,) mean ratings. Integer sums are exact, so a mean of 5 is exactly 5."""
    return (votes @ np.asarray(bins, dtype=np.float64)) / votes.sum(1)


def joined(parts: list[Table]) -> Table:
    """The tables of several files as one; a picture may be in only one of them."""
    ids = [i for part in parts for i in part.ids]
    lengths = [len(part.ids) for part in parts]
    if len(set(ids)) < len(ids):
        twice = pd.Series(ids)[pd.Series(ids).duplicated()]
        files = " and ".join(words for part in parts for words in part.protocol.values())
        raise ValueError(
            f"datasets: {len(twice)} pictures are in more than one of {files}, first '{twice.iloc[0]}'."
        )
    return replace(
        parts[0],
        ids=ids,
        names=[name for part in parts for name in part.names],
        split=np.concatenate([part.split for part in parts]),
        protocol={split: words for part in parts for split, words in part.protocol.items()},
        scores=np.concatenate([part.scores for part in parts]),
        votes=_below_each_other([part.votes for part in parts], lengths),
        emotions=_below_each_other([part.emotions for part in parts], lengths),
    )


def _below_each_other(parts: list[np.ndarray | None], lengths: list[int]) -> np.ndarray | None:
    """Counts of several files as one array, NaN where a file has none."""
    width = max((part.shape[1] for part in parts if part is not None), default=0)
    filled = [np.full((n, width), np.nan) if p is None else p for p, n in zip(parts, lengths, strict=True)]
    return np.concatenate(filled) if width else None


def split_files(folder: Path, splits: Sequence[str], ending: str = ".csv") -> dict[str, Path]:
    """split -> its file; without a val.csv the training csv also serves validation."""
    wanted = set(splits)
    if "val" in wanted and not (folder / f"val{ending}").is_file():
        wanted = wanted - {"val"} | {"train"}
    files = {split: folder / f"{split}{ending}" for split in SPLITS if split in wanted}
    for split, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f"datasets: the {split} split is asked for and {path} does not exist.")
    return files


# ---------------------------------------------------------------------------------------------------
# AVA


AVA_BINS = tuple(float(rating) for rating in range(1, 11))
AVA_RATING = Rating(1.0, 10.0, threshold=5.0, target="distribution")
AVA_MOST = 1_000  # votes for a picture; there are 549 at most
AVA_TEXT_COLUMNS = ("row", "image_id", *(f"votes_{r}" for r in range(1, 11)), "tag1", "tag2", "challenge")
# The csv splits count from 2: score2 holds the votes for rating 1.
AVA_CSV_COLUMNS = tuple(f"score{rating + 1}" for rating in range(1, 11))


def parse_ava(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """train.csv, val.csv and test.csv in root or root/splits, else AVA.txt with the official test list."""
    folders = [root, root / "splits"]
    whole = [f for f in folders if (f / "train.csv").is_file() and (f / "test.csv").is_file()]
    some = [f for f in folders if any((f / f"{split}.csv").is_file() for split in SPLITS)]
    use_text = not whole and ((root / "AVA.txt").is_file() or not some)
    table = _ava_from_text(root) if use_text else _ava_from_csv([*whole, *some][0], splits)
    table.places = [root / "images", root / "image", root]
    return table


def _ava_from_text(root: Path) -> Table:
    path = root / "AVA.txt"
    lists = [root / folder / "generic_test.jpgl" for folder in (".", "aesthetics_image_lists")]
    test_list = next((each for each in lists if each.is_file()), None)
    if not path.is_file():
        raise FileNotFoundError(f"datasets: {root} has neither AVA.txt nor train.csv; is --data-root right?")
    if test_list is None:
        raise FileNotFoundError(f"datasets: {lists[1]}, the official test split, does not exist.")
    sheet = Sheet(path, AVA_TEXT_COLUMNS)
    ids, votes = sheet.ids("image_id"), sheet.counts(AVA_TEXT_COLUMNS[2:12], AVA_MOST)
    test = Sheet(test_list, ("id",)).ids("id", ending=".jpg")
    table = _ava_table(ids, votes, np.where(pd.Index(ids).isin(test), "test", "train"))
    table.protocol = {"train": "AVA.txt without the official test list", "test": "official test list"}
    unrated = sorted(set(test) - set(ids))
    table.left_out = {"test": [LeftOut(i, f"in {test_list.name} but not rated in AVA.txt") for i in unrated]}
    return table


def _ava_from_csv(folder: Path, splits: tuple[str, ...]) -> Table:
    parts = []
    for split, path in split_files(folder, splits).items():
        sheet = Sheet(path)
        sheet.need(["image_id", *AVA_CSV_COLUMNS], " AVA's csv splits have image_id, score2, ..., score11.")
        ids = sheet.ids("image_id", ending=".jpg")
        parts.append(_ava_table(ids, sheet.counts(AVA_CSV_COLUMNS, AVA_MOST), np.full(len(ids), split)))
        if "MOS" in sheet.columns:
            sheet.check_means("MOS", parts[-1].scores)
        parts[-1].protocol = {split: path.name}
    return joined(parts)


def _ava_table(ids: list[str], votes: np.ndarray, split: np.ndarray) -> Table:
    return Table(
        name="ava",
        ids=ids,
        names=ids,
        split=split,
        scores=means(votes, AVA_BINS),
        rating=AVA_RATING,
        votes=votes,
        bins=AVA_BINS,
    )


# ---------------------------------------------------------------------------------------------------
# PARA


PARA_BINS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
PARA_RATING = Rating(1.0, 5.0, threshold=3.0, target="score")
PARA_MOST = 100  # votes for a picture; there are 38 at most
PARA_EMOTIONS = ("neutral", "disgust", "sadness", "fear", "awe", "amusement", "excitement", "contentment")
PARA_FILES = {"train": "PARA-GiaaTrain.csv", "test": "PARA-GiaaTest.csv"}


def parse_para(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """The official csvs, those that the splits need; rating bins and emotion votes where a csv has them."""
    needed = ["train"] * ("train" in splits or "val" in splits) + ["test"] * ("test" in splits)
    table = joined([_para_part(root / "annotation" / PARA_FILES[split], split) for split in needed])
    table.places = [root / "imgs"]
    table.twins = _para_twins(root / "annotation" / "identical_images.txt", table.ids)
    return table


def _para_part(path: Path, split: str) -> Table:
    sheet = Sheet(path)
    sheet.need(
        ["imageName", "sessionId", "aestheticScore_mean"],
        " For your own columns use --dataset csv data.score_column=NAME.",
    )
    names = sheet.ids("imageName")
    ids = [f"{session}/{name}" for session, name in zip(sheet.texts("sessionId"), names, strict=True)]
    return Table(
        name="para",
        ids=ids,
        names=ids,
        split=np.full(len(ids), split),
        protocol={split: f"official {path.name}"},
        scores=sheet.numbers("aestheticScore_mean", 1, 5),
        rating=PARA_RATING,
        votes=sheet.counts_if_there([f"aestheticScore_{rating:.1f}" for rating in PARA_BINS], PARA_MOST),
        bins=PARA_BINS,
        emotions=sheet.counts_if_there([f"imgEmotion_{emotion}" for emotion in PARA_EMOTIONS], PARA_MOST),
        emotion_classes=PARA_EMOTIONS,
    )


def _para_twins(path: Path, ids: list[str]) -> list[list[str]] | None:
    """Groups of ids of one picture, from lines of two or more image names; None without the file."""
    if not path.is_file():
        return None
    by_name = {i.rpartition("/")[2]: i for i in ids}
    groups = [line.split() for line in _read_text(path).splitlines()]
    for row, group in enumerate(groups, 1):
        if len(group) == 1:
            raise ValueError(
                f"datasets: {path.name} row {row} has one name, expected two or more, of one picture."
            )
    return [[by_name[name] for name in group if name in by_name] for group in groups]


# ---------------------------------------------------------------------------------------------------
# IAE


# In the order of the codes 0 to 7 of the emotion lists.
IAE_EMOTIONS = ("amusement", "excitement", "awe", "contentment", "disgust", "anger", "fear", "sadness")
IAE_COLUMNS = ("id", "label")
IAE_CODES = tuple(str(code) for code in range(8))
IAE_BINS = (1.0, 4.0, 7.0, 10.0)
# What h5py raises about damaged files, and the rows up to which a table is read: a damaged one may claim any.
H5_ERRORS = (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError)
H5_ROWS = 1_000_000
IAE_LABELS = Rating(0.0, 1.0, threshold=0.5, target="label", scored=False)
IAE_RATINGS = Rating(1.0, 10.0, threshold=5.0, inclusive=True, target="label")


def parse_iae(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """The list files, `ID LABEL` a line, and scores.h5 with ten ratings a picture where that can be read.

    Scores are mean ratings (high from 5 on) where the lists or scores.h5 have them, else the 0/1 labels.
    """
    table = joined([_iae_part(root, split) for split in SPLITS if split in splits])
    table.places = [root / "images"]
    known = table.scores[~np.isnan(table.scores)]
    table.rating = IAE_LABELS if np.isin(known, (0, 1)).all() else IAE_RATINGS
    if (root / "scores.h5").is_file():
        note = _use_ratings(table, root / "scores.h5")
        table.protocol = {split: f"{words}, {note}" for split, words in table.protocol.items()}
    return table


def _iae_part(root: Path, split: str) -> Table:
    """One split; without its aesthetic list the scores are NaN, which is enough for the emotion task."""
    lists = [root / f"{split}_aes_list.txt", root / f"{split}_emo_list.txt"]
    sheets = [Sheet(path, IAE_COLUMNS) if path.is_file() else None for path in lists]
    if sheets == [None, None]:
        raise FileNotFoundError(
            f"datasets: neither {lists[0]} nor {lists[1].name} exists; is --data-root right?"
        )
    aesthetic, emotion = sheets
    ids = (aesthetic or emotion).ids("id", ending=".jpg")
    return Table(
        name="iae",
        ids=ids,
        names=ids,
        split=np.full(len(ids), split),
        protocol={split: " and ".join(sheet.path.name for sheet in sheets if sheet)},
        scores=_iae_scores(aesthetic) if aesthetic else np.full(len(ids), np.nan),
        rating=IAE_LABELS,
        emotions=_iae_emotions(emotion, ids) if emotion else None,
        emotion_classes=IAE_EMOTIONS,
    )


def _iae_scores(sheet: Sheet) -> np.ndarray:
    """(n,) labels 0 and 1, or mean ratings from 1 to 10; a list of both would be read as one of them."""
    scores = sheet.numbers("label", 0, 10)
    rated, low = ~np.isin(scores, (0, 1)), scores < 1
    if rated.any() and low.any():
        rare = rated if rated.sum() < low.sum() else low
        raise sheet.error(rare, "label", "0 and 1 in the whole list, or means from 1 to 10")
    return scores


def _iae_emotions(sheet: Sheet, ids: list[str]) -> np.ndarray:
    """(n, 8) one-hot in the order of `ids`; the emotion list must name the same pictures."""
    own = sheet.ids("id", ending=".jpg")
    different = set(ids) ^ set(own)
    if different:
        raise ValueError(
            f"datasets: {sheet.path.name} and the aesthetic list of its split must name the same pictures; "
            f"{len(different)} are in one of them only, first '{min(different)}'."
        )
    return sheet.codes("label", IAE_CODES)[pd.Index(own).get_indexer(ids)]


def _use_ratings(table: Table, path: Path) -> str:
    """Puts each picture's ratings and their mean into the table; says in words what was done."""
    if importlib.util.find_spec("h5py") is None:
        return f"{path.name} not read (it needs h5py)"
    ratings = _read_ratings(path)
    rows = pd.to_numeric(pd.Series(table.ids), errors="coerce").to_numpy(np.float64)
    if not ((rows >= 0) & (rows < len(ratings))).all():
        raise ValueError(f"datasets: {path.name} has {len(ratings)} rows, too few for the ids of the lists.")
    high, known = table.rating.is_high(table.scores), ~np.isnan(table.scores)
    table.votes = (ratings[rows.astype(int)][:, :, None] == np.array(IAE_BINS)).sum(1).astype(np.float64)
    table.scores, table.bins, table.rating = means(table.votes, IAE_BINS), IAE_BINS, IAE_RATINGS
    contradicted = int((high != table.rating.is_high(table.scores))[known].sum())
    return f"mean ratings of {path.name}" + (f" ({contradicted} labels differ)" if contradicted else "")


def _read_ratings(path: Path) -> np.ndarray:
    """(pictures, 10) ratings from the one table in the file that has 10 columns, or 11 with their total."""
    try:
        tables, shapes = _h5_tables(path)
    except H5_ERRORS as error:
        raise ValueError(f"datasets: {path.name} cannot be read: {' '.join(str(error).split())}.") from error
    if len(tables) != 1:
        raise ValueError(
            f"datasets: {path.name} should hold one table of pictures x 10 ratings; found {shapes}."
        )
    ratings = tables[0][:, :10]
    wrong = ~np.isin(ratings, IAE_BINS).all(1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"datasets: {path.name} row {first}: ratings are 1, 4, 7 or 10, got {ratings[first].tolist()}."
        )
    unequal = (tables[0][:, 10:] != ratings.sum(1, keepdims=True)).any(1)
    if unequal.any():
        first = int(np.argmax(unequal))
        raise ValueError(
            f"datasets: {path.name} row {first}: its total is {tables[0][first, 10]:g}, its ratings are "
            f"{ratings[first].tolist()}."
        )
    return ratings


def _h5_tables(path: Path) -> tuple[list[np.ndarray], str]:
    """The tables of 10 or 11 columns, and in words the shapes of all that there are."""
    import h5py

    with h5py.File(path) as file:
        found = []
        file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        wide = [item for item in found if item.ndim == 2 and item.shape[1] in (10, 11)]
        tables = [item[...] for item in wide if item.shape[0] <= H5_ROWS]
        return tables, ", ".join(f"{item.name} {item.shape}" for item in found) or "nothing"


# ---------------------------------------------------------------------------------------------------
# FI: the class is the name of a picture's folder, or the beginning of its own


FI_TEST_SHARE = 0.15
FI_DEPTH = 2  # folders below the root that are looked through for the classes
NUMBERED = re.compile(r"(.*?)[ _-]*\(?\d*\)?", re.DOTALL)  # amusement12, amusement_12, amusement (12)
# Sets of emotions only have no ratings; the scale stands for none.
NO_RATING = Rating(0.0, 1.0, threshold=0.5)


def parse_fi(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """`<emotion>/*.jpg` or `<emotion><n>.jpg` in root or a folder in it, or so in train/, val/ and test/."""
    folder = _fi_folder(root)
    heads = [(split, f"{place.name}/") for split, place in _fi_splits(folder, splits)] or [("", "")]
    found = [(split, *picture) for split, head in heads for picture in _fi_pictures(folder, head)]
    own, names, emotions = (list(column) for column in zip(*found, strict=True))
    classes = tuple(emotion for emotion in EMOTIONS if emotion in emotions)
    if len(classes) < 2:
        raise ValueError(
            f"datasets: {folder} has pictures of {classes[0]} only; an emotion set needs two classes or more "
            f"of {', '.join(EMOTIONS)}."
        )
    missing = [emotion for emotion in EMOTIONS if emotion not in classes]
    lacks = f"; it has no {' and no '.join(missing)}" if missing else ""
    where = encodable(folder.resolve().name)
    return Table(
        name="fi",
        ids=_fi_ids(folder, names),
        names=names,
        places=[folder],
        split=np.array(own, dtype="<U5"),
        protocol=dict.fromkeys(SPLITS, f"folder {where} (emotions by name{lacks})"),
        scores=np.full(len(names), np.nan),
        rating=NO_RATING,
        emotions=one_hot(emotions, classes),
        emotion_classes=classes,
        test_share=FI_TEST_SHARE,
    )


def _fi_ids(folder: Path, names: list[str]) -> list[str]:
    r"""The names as text, which can be hashed and written: a byte that is not UTF-8 becomes \xff."""
    ids = [encodable(name) for name in names]
    if len(set(ids)) < len(ids):
        twice = next(i for i, name in zip(ids, names, strict=True) if i != name and ids.count(i) > 1)
        raise ValueError(f"datasets: {folder} has two files whose names are written '{twice}'; rename one.")
    return ids


def _fi_folder(root: Path) -> Path:
    """The one folder with the classes, or with the splits above them: root, or the first level with one."""
    level = [root]
    for _ in range(FI_DEPTH + 1):
        found = [f for f in level if _has_emotions(f) or any(_has_emotions(p) for _, p in _split_folders(f))]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"datasets: {found[0]} and {found[1]} both have pictures by emotion; "
                "--data-root must name one of them."
            )
        level = [folder for parent in level for folder in _listed(parent)[1]]
    files, folders = _listed(root)
    names = [folder.name for folder in folders] + [name for name in files if _is_picture(name)]
    raise ValueError(
        f"datasets: {root} should hold a folder per emotion ({', '.join(EMOTIONS)}) or pictures named "
        f"<emotion><number>.jpg; found {', '.join(names[:8]) or 'nothing'}{', ...' if names[8:] else ''}."
    )


def _fi_splits(folder: Path, splits: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The folders of the splits with their names; none if the pictures are not split."""
    places = [(split, place) for split, place in _split_folders(folder) if _has_emotions(place)]
    if places and _has_emotions(folder):
        raise ValueError(
            f"datasets: {folder} has pictures by emotion, and so has its folder {places[0][1].name}; "
            "which are meant? Move the others away."
        )
    there = {split for split, _ in places}
    needed = {"train" if split == "val" and "val" not in there else split for split in splits}
    absent = [split for split in SPLITS if split in needed - there]
    if places and absent:
        raise FileNotFoundError(
            f"datasets: the {absent[0]} split is asked for and {folder} has only folders of "
            f"{' and '.join(sorted(there))}."
        )
    return places


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    return [(SPLIT_WORDS[f.name.lower()], f) for f in _listed(folder)[1] if f.name.lower() in SPLIT_WORDS]


def _has_emotions(folder: Path) -> bool:
    files, folders = _listed(folder)
    named = (emotion_name(each.name) for each in folders)
    numbered = (_numbered_emotion(name) for name in files if _is_picture(name))
    return any(emotion in EMOTIONS for emotion in (*named, *numbered))


def _fi_pictures(folder: Path, head: str) -> list[tuple[str, str]]:
    """Path relative to `folder`, and emotion, of each picture in folder/head and in its class folders."""
    files, class_folders = _listed(folder / head)
    pictures = [(head + name, _numbered_emotion(name)) for name in files if _is_picture(name)]
    for each in class_folders:
        emotion = emotion_name(each.name)
        names = [name for name in _listed(each)[0] if _is_picture(name)]
        if not names and emotion in EMOTIONS:
            raise ValueError(
                f"datasets: {each} has no picture: {emotion} is an empty class. Fill the folder or remove it."
            )
        pictures += [(f"{head}{each.name}/{name}", emotion) for name in names]
    for name, emotion in pictures:
        if emotion not in EMOTIONS:
            raise ValueError(
                f"datasets: {folder / name}: '{emotion}' is no emotion of this set; known are "
                f"{', '.join(EMOTIONS)}. Rename it or move it away."
            )
    return pictures


def _listed(folder: Path) -> tuple[list[str], list[Path]]:
    """Names of the files and the folders of a folder, sorted; what is hidden or not readable is left out."""
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry.name, _is_folder(entry)) for entry in entries if entry.name[0] != ".")
    except OSError:
        seen = []
    files = [name for name, is_folder in seen if not is_folder]
    return files, [folder / name for name, is_folder in seen if is_folder]


def _is_folder(entry: os.DirEntry) -> bool:
    """By its name where a link leads in a circle or into a closed folder: it is missed later on, as a picture
    or as all pictures of a class."""
    try:
        return entry.is_dir()
    except OSError:
        return not _is_picture(entry.name)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_ENDINGS)


def _numbered_emotion(name: str) -> str:
    """The emotion that a file is named for: "Sad (12).jpg" -> "sadness"."""
    return emotion_name(NUMBERED.fullmatch(name.rpartition(".")[0])[1])


# ---------------------------------------------------------------------------------------------------
# EmoSet-118K


EMOSET_ENTRY = "[label, id, picture, annotation] or [label, picture, annotation], all texts"


def parse_emoset(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """info.json with the classes, and train.json, val.json and test.json, those that the splits need."""
    folder = next((f for f in (root, root / "EmoSet-118K") if (f / "info.json").is_file()), root)
    classes = _emoset_classes(folder / "info.json")
    files = split_files(folder, splits, ".json")
    table = joined([_emoset_part(path, split, classes) for split, path in files.items()])
    table.places = [folder]
    return table


def _emoset_classes(path: Path) -> tuple[str, ...]:
    """The names of label2idx, in the order of EMOTIONS."""
    info = _read_json(path)
    labels = info.get("label2idx") if isinstance(info, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"datasets: {path.name} should name its classes in 'label2idx', as {{\"awe\": 1}}.")
    names = [emotion_name(label) for label in labels]
    for label, name in zip(labels, names, strict=True):
        if name not in EMOTIONS or names.count(name) > 1:
            wrong = "is there twice, under two names" if name in EMOTIONS else "is no known emotion"
            raise ValueError(
                f"datasets: {path.name}: label2idx: '{label}' {wrong}; known are {', '.join(EMOTIONS)}."
            )
    return tuple(emotion for emotion in EMOTIONS if emotion in names)


def _emoset_part(path: Path, split: str, classes: tuple[str, ...]) -> Table:
    entries = _emoset_entries(path)
    emotions = [emotion_name(entry[0]) for entry in entries]
    for number, emotion in enumerate(emotions, 1):
        if emotion not in classes:
            known = ", ".join(classes)
            raise _entry_error(path, number, entries[number - 1], f"a label of info.json ({known})")
    empty = [emotion for emotion in classes if emotion not in emotions]
    if split == "train" and empty:
        raise ValueError(
            f"datasets: {path.name} has no picture of {' and '.join(empty)}, an empty class of info.json."
        )
    # Copies differ in whether an entry has an id of its own; it is the name of the file.
    ids = [encodable(entry[1] if len(entry) == 4 else Path(entry[1]).stem) for entry in entries]
    names = [entry[-2] for entry in entries]
    for values in (ids, names):
        _refuse_repeats(path, entries, values)
    return Table(
        name="emoset",
        ids=ids,
        names=names,
        split=np.full(len(ids), split),
        protocol={split: f"official {path.name}"},
        scores=np.full(len(ids), np.nan),
        rating=NO_RATING,
        emotions=one_hot(emotions, classes),
        emotion_classes=classes,
    )


def _emoset_entries(path: Path) -> list[list[str]]:
    entries = _read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"datasets: {path.name} should be a list of {EMOSET_ENTRY}.")
    for number, entry in enumerate(entries, 1):
        if not (isinstance(entry, list) and len(entry) in (3, 4) and {*map(type, entry)} == {str}):
            raise _entry_error(path, number, entry, EMOSET_ENTRY)
    return entries


def _refuse_repeats(path: Path, entries: list, values: list[str]) -> None:
    repeated = pd.Series(values).duplicated().to_numpy()
    if repeated.any():
        second = int(np.argmax(repeated))
        first = values.index(values[second]) + 1
        expected = f"each picture once, but entry {first} has '{values[second]}' too"
        raise _entry_error(path, second + 1, entries[second], expected)


def _entry_error(path: Path, number: int, entry: object, expected: str) -> ValueError:
    """About one entry of a list; they are counted from 1."""
    return ValueError(
        f"datasets: {path.name} entry {number} is {json.dumps(entry)[:200]}, expected {expected}."
    )


def _read_json(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"datasets: there is no file {path}; is --data-root right?")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"datasets: {path.name} is no readable JSON: {error}.") from error


# ---------------------------------------------------------------------------------------------------
# Your own csv


PATH_COLUMNS = (
    *("path", "image", "file", "name", "picture", "photo", "img", "filename", "filepath", "imagename"),
    *("file_name", "file_path", "image_name", "image_path", "image_file", "image_id", "img_name", "img_path"),
)
SCORE_COLUMNS = (
    *("score", "mos", "mean", "rating", "average", "aesthetics", "mean_score", "score_mean", "mean_rating"),
    *("average_score", "aesthetic_score", "aesthetic_mean"),
)
SPLIT_COLUMNS = ("split", "set", "subset")
COUNT_COLUMN = re.compile(r"(scores?|counts?|votes?|ratings?|bin|c|n|p)[_ ]?(\d+(?:\.\d+)?)", re.IGNORECASE)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class CsvColumns:
    """Which columns of a csv mean what; "" or nothing for what it does not have. counts: column -> rating."""

    path: str
    score: str
    split: str
    counts: dict[str, float]
    emotions: list[str]
    emotion_classes: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        single = [name for name in (self.path, self.score, self.split) if name]
        return [*single, *self.counts, *self.emotions]


def parse_csv(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """A table of paths and ratings, or one per split; columns found by their usual names, or by options."""
    files = _csv_files(root, splits, options)
    sheets = {split: Sheet(path) for split, path in files.items()}
    columns = _csv_columns(list(sheets.values()), options)
    if len(columns.emotions) == 1:
        columns = replace(columns, emotion_classes=_named_classes(files, columns.emotions[0]))
    table = joined([_csv_part(sheet, split, columns) for split, sheet in sheets.items()])
    table.rating = _csv_rating(table, columns, sheets.values(), options)
    folders = [root, next(iter(files.values())).parent, root / "images", root / "imgs"]
    table.places = [root / options.images] if options.images else folders
    return table


def _csv_files(root: Path, splits: tuple[str, ...], options: DataOptions) -> dict[str, Path]:
    """split -> file, or "" -> the one file for all splits."""
    if options.table:
        return {"": root / Path(options.table).expanduser()}
    if any((root / f"{split}.csv").is_file() for split in SPLITS):
        return split_files(root, splits)
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise FileNotFoundError(
            f"datasets: {root} should hold one csv, or train.csv and test.csv; found {found}. "
            "Choose with data.table=NAME."
        )
    return {"": tables[0]}


def _csv_columns(sheets: list[Sheet], options: DataOptions) -> CsvColumns:
    """Found in the first table by option or by name; all tables must have them."""
    sheet = sheets[0]
    chosen = [name.strip() for name in options.emotion_columns.split(",") if name.strip()]
    usual = [c for c in sheet.columns if c == "emotion"] or [
        c for c in sheet.columns if c.startswith("emotion_")
    ]
    columns = CsvColumns(
        path=_find_column(sheet, options.path_column, PATH_COLUMNS, "path"),
        score=_find_column(sheet, options.score_column, SCORE_COLUMNS, "score", needed=False),
        split=_find_column(sheet, options.split_column, SPLIT_COLUMNS, "split", needed=False),
        counts=_count_columns(sheet, options),
        emotions=chosen or usual,
        emotion_classes=(),
    )
    if not columns.score and not columns.counts and not columns.emotions:
        _find_column(sheet, "", SCORE_COLUMNS, "score")
    for each in sheets:
        each.need(columns.used)
    return replace(columns, emotion_classes=_emotion_classes(sheet, columns.emotions))


def _find_column(sheet: Sheet, chosen: str, usual: Sequence[str], what: str, needed: bool = True) -> str:
    """The column an option names, or the only one with a usual name, or "" where none is needed."""
    if chosen:
        sheet.need([chosen], f" data.{what}_column asks for it.")
        return chosen
    found = [column for column in sheet.columns if column.lower() in usual]
    if len(found) == 1 or not (found or needed):
        return (found or [""])[0]
    saw = f"{' and '.join(found)} could be" if found else f"found {', '.join(sheet.columns[:12])}"
    raise ValueError(
        f"datasets: {sheet.path.name}: which column is the {what}? ({saw}.) Say data.{what}_column=NAME."
    )


def _count_columns(sheet: Sheet, options: DataOptions) -> dict[str, float]:
    """Column -> rating, in ascending order; as chosen, or columns like score1, score2, ..."""
    if options.count_columns:
        return _chosen_counts(options.count_columns)
    if options.score_column:
        return {}
    families = defaultdict(dict)
    for column in sheet.columns:
        match = COUNT_COLUMN.fullmatch(column)
        if match:
            families[match[1].lower()][column] = float(match[2])
    families = {name: columns for name, columns in families.items() if len(columns) > 1}
    if len(families) > 1:
        raise ValueError(
            f"datasets: {sheet.path.name} has columns numbered after {' and '.join(families)}; "
            "say which are vote counts with data.count_columns=a,b,c (or data.score_column=NAME)."
        )
    columns = dict(sorted(next(iter(families.values()), {}).items(), key=lambda item: item[1]))
    steps = np.diff(list(columns.values()))
    if not np.allclose(steps, steps[:1]):
        raise ValueError(
            f"datasets: {sheet.path.name} has columns {', '.join(columns)}: is one missing between them? "
            "If not, name them with data.count_columns=a,b,c."
        )
    return columns


def _chosen_counts(text: str) -> dict[str, float]:
    """From "a1,a2" or "low=1,high=5": column -> rating, in ascending order."""
    columns = {}
    for part in text.split(","):
        column, _, rating = part.strip().partition("=")
        rating = rating or (re.search(r"\d+(\.\d+)?$", column) or [""])[0]
        columns[column] = as_number(rating)
        if not np.isfinite(columns[column]):
            raise ValueError(f"datasets: data.count_columns: '{part}' has no rating; write {column}=RATING.")
    if len(columns) < 2 or len(set(columns.values())) < len(columns):
        raise ValueError(
            f"datasets: data.count_columns needs two columns or more, each of another rating; got {text}."
        )
    return dict(sorted(columns.items(), key=lambda item: item[1]))


def _emotion_classes(sheet: Sheet, columns: list[str]) -> tuple[str, ...]:
    """Names of the emotions of count columns, which must be different."""
    column_of = {}
    for column in columns:
        name = emotion_name(column.removeprefix("emotion_"))
        if name in column_of:
            raise ValueError(
                f"datasets: {sheet.path.name}: the columns '{column_of[name]}' and '{column}' are both "
                f"{name}. Choose one column per emotion with data.emotion_columns=a,b,c."
            )
        column_of[name] = column
    return tuple(column_of)


def _named_classes(files: dict[str, Path], column: str) -> tuple[str, ...]:
    """The emotions in a column of names, whichever splits are asked for: the files beside are read too.

    Without training pictures nobody knows which classes a set has: the eight common ones, if it names no
    other.
    """
    paths = set(files.values())
    if "" not in files:
        folder = next(iter(paths)).parent
        paths |= {folder / f"{split}.csv" for split in SPLITS if (folder / f"{split}.csv").is_file()}
    sheets = [Sheet(path) for path in sorted(paths)]
    texts = [text for sheet in sheets if column in sheet.columns for text in sheet.texts(column)]
    found = {emotion_name(text) for text in texts}
    complete = "" in files or any(path.name == "train.csv" for path in paths)
    if not complete and found <= set(EMOTIONS):
        return EMOTIONS
    return (*(name for name in EMOTIONS if name in found), *sorted(found - set(EMOTIONS)))


def _csv_part(sheet: Sheet, split: str, columns: CsvColumns) -> Table:
    ids = sheet.ids(columns.path)
    votes = sheet.counts(list(columns.counts)) if columns.counts else None
    bins = tuple(columns.counts.values())
    if votes is not None:
        scores, used = means(votes, bins), f"votes in {', '.join(columns.counts)}"
    elif columns.score:
        scores, used = sheet.numbers(columns.score), f"scores in {columns.score}"
    else:
        scores, used = np.full(len(ids), np.nan), "emotions only"
    return Table(
        name="csv",
        ids=ids,
        names=[native(name) for name in ids],
        split=np.full(len(ids), split, dtype="<U5")
        if split or not columns.split
        else _splits(sheet, columns),
        protocol=dict.fromkeys([split] if split else SPLITS, f"{sheet.path.name} ({used})"),
        scores=scores,
        rating=Rating(0, 1, 0.5, target="score" if votes is None else "distribution"),
        votes=votes,
        bins=bins,
        emotions=_csv_emotions(sheet, columns),
        emotion_classes=columns.emotion_classes,
    )


def _csv_emotions(sheet: Sheet, columns: CsvColumns) -> np.ndarray | None:
    """(n, E) votes or one-hot."""
    if len(columns.emotions) == 1:
        names = [emotion_name(text) for text in sheet.texts(columns.emotions[0])]
        return one_hot(names, columns.emotion_classes)
    return sheet.counts(columns.emotions) if columns.emotions else None


def _splits(sheet: Sheet, columns: CsvColumns) -> np.ndarray:
    """(n,) of train, val and test, from the words that people use for them."""
    found = np.array([SPLIT_WORDS.get(word.lower(), "") for word in sheet.texts(columns.split)])
    if (found == "").any():
        raise sheet.error(found == "", columns.split, "train, val or test")
    return found


def _csv_rating(table: Table, columns: CsvColumns, sheets: Iterable[Sheet], options: DataOptions) -> Rating:
    """Ends and middle of the ratings: as given, else of the bins, else the data's range rounded outwards."""
    known = table.scores[~np.isnan(table.scores)]
    low, high = (table.bins[0], table.bins[-1]) if table.bins else round_outwards(known)
    low = low if options.minimum is None else options.minimum
    high = high if options.maximum is None else options.maximum
    if not low < high:
        raise ValueError(f"datasets: data.minimum must be below data.maximum, got {low:g} and {high:g}.")
    for sheet in sheets if columns.score and not columns.counts else ():
        sheet.numbers(columns.score, low, high)
    return replace(table.rating, minimum=low, maximum=high, threshold=(low + high) / 2)


def round_outwards(scores: np.ndarray) -> tuple[float, float]:
    """The likely ends of the scale of (n,) scores: 1.3 to 4.8 -> 1 to 5, 4 to 88 -> 0 to 90."""
    if not scores.size:
        return 0.0, 1.0
    low, high = float(scores.min()), float(scores.max())
    digits = 0 if low == high else int(-np.floor(np.log10(max(high - low, 1e-12) / 2)))
    step = 10.0**-digits
    low, high = round(np.floor(low / step) * step, 12), round(np.ceil(high / step) * step, 12)
    return low, high if high > low else low + step


def native(name: str) -> str:
    """A path as this system writes it: home folders, and the separators of tables made on Windows."""
    name = name.replace("\\", "/")
    return Path(name).expanduser().as_posix() if name.startswith("~/") else name


# ---------------------------------------------------------------------------------------------------
# The demo set


def parse_demo(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """The labels.csv of `demo.py`, which makes it if it is not there."""
    path = root / "labels.csv"
    if not path.is_file():
        from demo import make_demo

        make_demo(root)
    sheet = Sheet(path)
    columns = [f"score{rating}" for rating in range(1, 11)]
    sheet.need(["image", "split", "emotion", *columns], " Delete the folder to make it again.")
    ids, votes = sheet.ids("image"), sheet.counts(columns)
    return Table(
        name="demo",
        ids=ids,
        names=ids,
        places=[root / "images"],
        split=np.array(SPLITS)[sheet.codes("split", SPLITS).argmax(1)],
        protocol=dict.fromkeys(SPLITS, "synthetic labels, split by source photograph"),
        scores=means(votes, AVA_BINS),
        rating=AVA_RATING,
        votes=votes,
        bins=AVA_BINS,
        emotions=sheet.codes("emotion", EMOTIONS),
        emotion_classes=EMOTIONS,
    )


# ---------------------------------------------------------------------------------------------------
# Looking pictures up: each folder is listed once


class Folders:
    """Finds files below `places`, in order; lists each folder once, asks nothing about single files."""

    def __init__(self, places: Sequence[Path]):
        self.places = [str(place) for place in places]
        self.listed: dict[str, frozenset[str]] = {}
        self.choices: dict[str, list[tuple[str, frozenset[str]]]] = {}

    def find(self, name: str) -> str | None:
        """The path of a file, by its name as written or with a picture ending added."""
        file = name.rpartition("/")[2]
        head = name.removesuffix(file)  # "" or "folder/" or "/absolute/folder/"
        if head not in self.choices:
            folders = [os.path.join(place, head, "") for place in self.places]  # noqa: PTH118
            self.choices[head] = [(folder, self.names(folder)) for folder in folders]
        for folder, names in self.choices[head]:
            if file in names:
                return folder + file
            for ending in ANY_CASE_ENDINGS if names else ():
                if file + ending in names:
                    return folder + file + ending
        return None

    def names(self, folder: str) -> frozenset[str]:
        """Of the files in a folder; none if there is no such folder."""
        if folder not in self.listed:
            try:
                with os.scandir(folder) as entries:
                    self.listed[folder] = frozenset(entry.name for entry in entries if _is_file(entry))
            except (OSError, ValueError):  # the latter of a name that no file can have
                self.listed[folder] = frozenset()
        return self.listed[folder]


def _is_file(entry: os.DirEntry) -> bool:
    """Asks the disk for links only; one to nothing, in a circle or into a closed folder counts as missing."""
    try:
        return entry.is_file()
    except OSError:
        return False


def look_up(table: Table) -> tuple[Table, list[str]]:
    """The table without the pictures that have no file, and the path of each that stays.

    Raises:
        FileNotFoundError: not one of the pictures exists, so the folder is wrong.
    """
    folders = Folders(table.places)
    found = [folders.find(name) for name in table.names]
    missing = [i for i, path in enumerate(found) if path is None]
    if len(missing) == len(found):
        raise FileNotFoundError(
            f"datasets: none of the {len(found):,} pictures of {table.name} exists, e.g. '{table.names[0]}'; "
            f"looked in {' and '.join(dict.fromkeys(folders.places))}. Is --data-root right?"
        )
    kept = table.take(np.flatnonzero([path is not None for path in found]))
    kept.left_out = {split: list(rows) for split, rows in table.left_out.items()}
    for i in missing:
        row = LeftOut(table.ids[i], f"no picture file {table.names[i]}")
        kept.left_out.setdefault(str(table.split[i]), []).append(row)
    return kept, [path for path in found if path is not None]


# ---------------------------------------------------------------------------------------------------
# Prepared copies: a root that scripts/prepare_data.py wrote. Used only while they are what they say they are


MANIFEST = "prepared.json"


class Source(NamedTuple):
    """A file that was copied: its hash, bytes and time of change; error: why it has no copy, or ""."""

    sha256: str
    bytes: int
    mtime_ns: int
    error: str = ""

    def is_as(self, path: str | Path) -> bool:
        """False if the file at `path` has changed. One that is not there has not: copies may outlive it."""
        try:
            found = os.stat(path)  # noqa: PTH116 - a Path for each of 250,000 pictures takes seconds
        except OSError:
            return True
        return (found.st_size, found.st_mtime_ns) == (self.bytes, self.mtime_ns)


@dataclass
class Manifest:
    """What prepared.json says: `words` are key=value; labels and pictures go by path relative to the root.

    program: versions of what made the copies.
    complete: False while copies are made, or after that was interrupted.
    """

    dataset: str
    source: str
    words: list[str]
    size: int
    exif: bool
    quality: int
    program: dict[str, str]
    complete: bool = False
    labels: dict[str, Source] = field(default_factory=dict)
    pictures: dict[str, Source] = field(default_factory=dict)

    def command(self, root: str | Path) -> str:
        words = ["python", "scripts/prepare_data.py", "--dataset", self.dataset, "--data-root", self.source]
        return shlex.join([*words, "--output", str(root), "--quality", str(self.quality), *self.words])

    def check_complete(self, root: str | Path) -> None:
        if not self.complete:
            raise ValueError(f"datasets: {root} has only a part of its copies; go on: {self.command(root)}")

    def check_sources(self, root: str | Path, paths: Sequence[str]) -> tuple[tuple[Copies, ...], list[str]]:
        """The copies, and for each of `paths` the hash of its source, if no source has changed."""
        command, names = self.command(root), relative_names(root, paths)
        foreign = [name for name in names if name not in self.pictures]
        if foreign:
            raise ValueError(
                f"datasets: {root} holds prepared copies, and '{foreign[0]}' is none of them "
                f"({len(foreign)} in all); move it away, or make the copies anew: {command}"
            )
        used = self.labels | {name: self.pictures[name] for name in names}
        folder = os.path.join(self.source, "")  # noqa: PTH118
        changed = [name for name, source in used.items() if not source.is_as(folder + name)]
        if changed:
            raise ValueError(
                f"datasets: {root} holds copies of {self.source}, where {len(changed)} files have changed "
                f"since, first '{changed[0]}'; make those copies anew: {command}"
            )
        return (Copies(str(root), self.size, self.exif, command),), [self.pictures[n].sha256 for n in names]


def relative_names(root: str | Path, paths: Iterable[str]) -> list[str]:
    """Each path relative to the root; one that lies elsewhere as it is."""
    start = os.path.join(Path(root).expanduser(), "")  # noqa: PTH118
    return [path.removeprefix("./").removeprefix(start) for path in paths]


def read_manifest(root: str | Path) -> Manifest | None:
    """Of prepared copies; None if the root is none of copies."""
    path = Path(root).expanduser() / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = Manifest(**_read_json(path))
        for files in (manifest.labels, manifest.pictures):
            files.update({name: Source(**row) for name, row in files.items()})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"datasets: {path} is no manifest of scripts/prepare_data.py: {error}.") from error
    return manifest


def check_copies(copies: Copies, size: int | tuple[int, int] | None, exif: bool) -> None:
    """Refuses copies that are not what decoding the pictures themselves to `size` would give."""
    have, want = f"data.size={copies.size}", f"data.size={size}"
    if size in (copies.size, (copies.size, copies.size)):
        have, want = f"data.exif={copies.exif}".lower(), f"data.exif={exif}".lower()
    if have != want:
        raise ValueError(
            f"datasets: {copies.root} holds copies made with {have}, and {want} is asked for; use the "
            f"pictures themselves, or make other copies in another folder. These came from: {copies.command}"
        )


# ---------------------------------------------------------------------------------------------------
# Splitting by hash


# Asking 255,530 files for their size takes a second from memory, and minutes from a cold or a network disk.
TWIN_LIMIT = 100_000
# Sizes shared by more files than this are placeholders or uncompressed pictures; they are not compared.
SAME_SIZE_LIMIT = 10_000


def split_by_hash(table: Table, paths: list[str], splits: Sequence[str], options: DataOptions) -> None:
    """Gives rows a split, in place: all rows of a set without one, else a validation part of training."""
    if not table.has_own_split:
        test = 1 / options.folds if options.folds else table.test_share
        pool, shares = "", {"test": test, "val": options.validation}
    elif {"train", "val"} & set(splits) and not (table.split == "val").any():
        pool, shares = "train", {"val": options.validation}
    else:
        return
    rows = np.flatnonzero(table.split == pool)
    ids = [table.ids[i] for i in rows]
    searched = options.twins and (table.twins is not None or len(rows) <= TWIN_LIMIT)
    # Every picture is tested in one of the folds, so all twins matter.
    share = 1.0 if options.folds else sum(shares.values())
    twins = _twins(table, [paths[i] for i in rows], ids, _likely(ids, share)) if searched else []
    how = "by hash of the id" + ("" if searched else ", identical pictures not looked for")
    table.split = table.split.astype("<U5")
    if options.folds:
        _say_fold(table, options, how)
        table.split[rows] = fold_split(ids, _main_emotions(table)[rows], options, twins)
    else:
        _say_split(table, shares, how)
        table.split[rows] = hash_split(ids, shares, twins)
    for row in table.left_out.pop(pool, []):
        side = str(_sides(hash_fractions([row.id]), shares)[0])
        table.left_out.setdefault(side, []).append(row)


def _say_split(table: Table, shares: dict[str, float], how: str) -> None:
    """Adds to the protocol which share of which files each split is."""
    percent = {split: f"{100 * share:g} %" for split, share in shares.items()}
    source = table.protocol["train"]
    for split in shares:
        table.protocol[split] = f"{percent[split]} of {source}, {how}"
    table.protocol["train"] = f"{source} without {' and '.join(percent.values())}, {how}"


def _say_fold(table: Table, options: DataOptions, how: str) -> None:
    how = f"by emotion and {how}" if table.emotions is not None else how
    fold, source = f"fold {options.fold + 1} of {options.folds}", table.protocol["train"]
    percent = f"{100 * options.validation:g} %"
    table.protocol = {
        "train": f"{source} without {fold} and {percent} of the rest, {how}",
        "val": f"{percent} of {source} without {fold}, {how}",
        "test": f"{fold} of {source}, {how}",
    }


def _main_emotions(table: Table) -> np.ndarray:
    """(n,) position of the emotion with most votes; 0 where there is none."""
    if table.emotions is None:
        return np.zeros(len(table.ids), dtype=int)
    return np.nan_to_num(table.emotions).argmax(1)


def hash_fractions(ids: Sequence[str]) -> np.ndarray:
    """(n,) float64 in [0, 1]: each id's SHA-256 as a fraction, whatever the order and the other ids."""
    return _hash64(ids) / 2.0**64


def hash_split(
    ids: Sequence[str], shares: dict[str, float], twins: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """(n,) split names: each of `shares` takes its part by the hash of the id, "train" the rest.

    A group of twins goes where its smallest id goes. A split that would get nothing, as happens with a few
    pictures, takes the picture (or group) with the smallest hash.
    """
    fractions = hash_fractions(ids)[twin_leaders(ids, twins, sum(shares.values()))]
    split = _sides(fractions, shares)
    for name in shares:
        rest = fractions[split == "train"]
        if not (split == name).any() and len(np.unique(rest)) > 1:
            split[(fractions == rest.min()) & (split == "train")] = name
    return split


def fold_split(
    ids: Sequence[str], classes: np.ndarray, options: DataOptions, twins: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """(n,) split names: "test" is one fold, "val" a share of the rest by hash.

    The pictures of each class, sorted by hash, are dealt out in turn, so that the counts of a class differ by
    at most one between folds. A group of twins is dealt as the one with its smallest id.

    Args:
        classes: (n,) of integers.
    """
    leaders = twin_leaders(ids, twins, 1 / options.folds)
    dealt = np.unique(leaders)
    dealt = dealt[np.lexsort((hash_fractions(ids)[dealt], classes[dealt]))]
    folds = np.empty(len(ids), dtype=int)
    folds[dealt] = np.arange(len(dealt)) % options.folds
    rest = np.flatnonzero(folds[leaders] != options.fold)
    position = {int(row): i for i, row in enumerate(rest)}
    groups = [[position[i] for i in group if i in position] for group in twins]
    split = np.full(len(ids), "test", dtype="<U5")
    split[rest] = hash_split(
        [ids[i] for i in rest], {"val": options.validation}, [group for group in groups if group]
    )
    return split


def twin_leaders(ids: Sequence[str], twins: Sequence[Sequence[int]], share: float) -> np.ndarray:
    """(n,) position of each picture's twin with the smallest id; its own where it has none."""
    leaders = np.arange(len(ids))
    limit = max(10, share * len(ids))
    for group in twins:
        # More equal pictures than are held out: one placeholder for many, which says nothing about them.
        if len(group) <= limit:
            leaders[list(group)] = leaders[min(group, key=lambda i: ids[i])]
    return leaders


def _sides(fractions: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """(n,) the split that each fraction falls into."""
    edges = np.cumsum(list(shares.values()))
    return np.array([*shares, "train"])[np.searchsorted(edges, fractions, side="right")]


def twins_in_training(name: str, root: str | Path, options: DataOptions | None = None) -> set[str]:
    """Ids of the test pictures that have an identical one in the training pool, train or val.

    By the set's own list of identical pictures if it has one, else by content. Without a list they are not
    looked for in AVA and in sets above TWIN_LIMIT: none.

    Raises:
        ValueError, FileNotFoundError: as `load_dataset`, which reads the training files too.
    """
    if name.lower() == "ava":  # above the limit, and reading it all takes seconds
        return set()
    options = options or DataOptions()
    table = _parsed(name, root, SPLITS, options)
    paths = table.names
    if table.twins is None:  # a list holds for pictures that are not here too, content does not
        if len(table.ids) > TWIN_LIMIT:
            return set()
        table, paths = read_table(name, root, SPLITS, options)
    split_by_hash(table, paths, ("test",), options)
    tested = table.split == "test"  # (n,)
    groups = [np.array(group) for group in _twins(table, paths, table.ids, tested)]
    return {table.ids[i] for group in groups if not tested[group].all() for i in group[tested[group]]}


def _likely(ids: Sequence[str], share: float) -> np.ndarray:
    """(n,) bool, the pictures that splits of this share together may take."""
    fractions = hash_fractions(ids)
    likely = fractions < share
    likely[np.argsort(fractions)[:100]] = True  # in a small set a split may take those that come next
    return likely


def _twins(table: Table, paths: list[str], ids: list[str], suspects: np.ndarray) -> list[list[int]]:
    """Groups of positions in `ids` of the same picture; by content only those with a suspect, (n,) bool."""
    if table.twins is None and table.copies:
        return _same_sources(table, ids, suspects)
    if table.twins is None:
        return identical_files(paths, suspects)
    position = {name: i for i, name in enumerate(ids)}
    groups = [[position[name] for name in group if name in position] for group in table.twins]
    return [group for group in groups if len(group) > 1]


def _same_sources(table: Table, ids: list[str], suspects: np.ndarray) -> list[list[int]]:
    """As `identical_files` of what copies were made of, which may differ where the copies do not."""
    source = dict(zip(table.ids, table.sources, strict=True))
    groups = defaultdict(list)
    for i, name in enumerate(ids):
        groups[source[name]].append(i)
    return [group for group in groups.values() if len(group) > 1 and suspects[group].any()]


def identical_files(paths: Sequence[str], suspects: np.ndarray) -> list[list[int]]:
    """Groups of positions of byte-identical files, those that hold at least one of the `suspects` (n,) bool.

    Cheap: sizes first, then 4 KiB from the middle, then the whole of what is still equal; each only for
    files that share all before it with a suspect. A file that cannot be read has no twin.
    """

    def parts(group: list[int], key: Callable[[str], object]) -> list[list[int]]:
        by_key = defaultdict(list)
        for i in group:
            by_key[_key_or_path(key, paths[i])].append(i)
        return [part for part in by_key.values() if len(part) > 1 and suspects[part].any()]

    same_size = parts(list(range(len(paths))), _size_or_path)
    same_size = [group for group in same_size if len(group) <= SAME_SIZE_LIMIT]
    same_middle = [part for group in same_size for part in parts(group, _middle)]
    return [part for group in same_middle for part in parts(group, _digest)]


def _key_or_path(key: Callable[[str], object], path: str) -> object:
    try:
        return key(path)
    except OSError:
        return path


def _size_or_path(path: str) -> int | str:
    return os.stat(path).st_size or path  # noqa: PTH116 - empty files are broken, not twins


def _middle(path: str) -> bytes:
    """4 KiB from the middle: the heads of photographs from one camera are often equal."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size // 2 - 2048))
        return file.read(4096)


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


# ---------------------------------------------------------------------------------------------------
# Pictures and batches


class Draw(NamedTuple):
    """What a sampler yields; all randomness of a picture is a function of (seed, epoch, index)."""

    epoch: int
    index: int


class Picture(NamedTuple):
    """One decoded picture: image (3, H, W) uint8; score, distribution and emotion as in Sample."""

    index: int
    image: Tensor
    score: float
    distribution: np.ndarray | None
    emotion: np.ndarray | None


class Batch(NamedTuple):
    """N pictures; those that could not be decoded are in `broken` and nowhere else.

    index (N,) int64, images (N, 3, H, W) uint8, channels last in memory, scores (N,) float64 in the set's
    unit, distributions (N, K) float32, emotions (N, E) float32, NaN as in Sample.
    """

    index: Tensor
    images: Tensor
    scores: Tensor
    distributions: Tensor | None
    emotions: Tensor | None
    broken: list[LeftOut]


class PictureSet(Dataset):
    """The decoded pictures of a split, by Draw (or by plain index, as epoch 0).

    Args:
        size: side, or (height, width), that all pictures are resized to.
        exif: respect the EXIF orientation; ignoring it is the official option.
        flip_seed: mirror every other picture, by (flip_seed, epoch, index); None never does.
        skip_broken: leave out files that cannot be decoded and list them; otherwise they are errors.
        crop: keep the aspect and cut out the middle (`decoding.decode`) instead of squashing.

    Raises:
        ValueError: the pictures are copies made for another size, or with another use of EXIF.
    """

    def __init__(
        self,
        rated: RatedSet,
        size: int | tuple[int, int] | None,
        exif: bool = True,
        flip_seed: int | None = None,
        skip_broken: bool = False,
        crop: bool = False,
    ):
        for copies in rated.copies:
            check_copies(copies, size, exif)
        self.rated, self.size, self.exif, self.crop = rated, size, exif, crop
        self.flip_seed, self.skip_broken = flip_seed, skip_broken

    def __len__(self) -> int:
        return len(self.rated)

    def __getitem__(self, draw: Draw | int) -> Picture | LeftOut:
        picture = self.read(draw)
        if isinstance(picture, LeftOut) and not self.skip_broken:
            raise broken_error(picture)
        return picture

    def __getitems__(self, draws: Sequence[Draw | int]) -> list[Picture | LeftOut]:
        # Never raises: torch would wrap an error of a worker process in its traceback. The loader raises it.
        return [self.read(draw) for draw in draws]

    def read(self, draw: Draw | int) -> Picture | LeftOut:
        """The picture, or the reason why it cannot be decoded."""
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        sample = self.rated[index]
        try:
            image = decode(sample.path, self.size, self.exif, crop=self.crop)  # (H, W, 3)
        except DecodeError as error:
            return LeftOut(sample.id, str(error))
        tensor = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
        if self.flip_seed is not None and coin(self.flip_seed, epoch, index):
            tensor = tensor.flip(2)  # 30 times as fast as numpy's [:, ::-1]
        return Picture(index, tensor, sample.score, sample.distribution, sample.emotion)

    def collate(self, pictures: Sequence[Picture | LeftOut]) -> Batch:
        """Stacks what was decoded and lists what was not; a batch may come out empty."""
        good = [picture for picture in pictures if isinstance(picture, Picture)]
        index = np.array([picture.index for picture in good], dtype=np.int64)
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size or (1, 1)
        images = [picture.image for picture in good]
        return Batch(
            index=torch.from_numpy(index),
            images=stack(images) if good else torch.empty(0, 3, height, width, dtype=torch.uint8),
            scores=torch.from_numpy(self.rated.scores[index]),
            distributions=_float_tensor(_rows(self.rated.distributions, index)),
            emotions=_float_tensor(_rows(self.rated.emotions, index)),
            broken=[picture for picture in pictures if isinstance(picture, LeftOut)],
        )


def broken_error(picture: LeftOut) -> DecodeError:
    return DecodeError(f"{picture.reason} Repair it, or leave such files out with --skip-broken.")


def _float_tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values).float()


def coin(seed: int, epoch: int, index: int) -> bool:
    """A fair coin that is a function of its arguments: splitmix64, one microsecond, no generator to build."""
    mask = (1 << 64) - 1
    bits = 0
    for number in (seed, epoch, index):
        bits = (bits + number + 1) * 0x9E3779B97F4A7C15 & mask
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        bits ^= bits >> 31
    return bool(bits >> 63)


# ---------------------------------------------------------------------------------------------------
# Orders and loaders


class TrainOrder(Sampler):
    """Batches of one epoch in random order, a function of (seed, epoch).

    Each step's pictures are the same however many processes share them: rank r of `world` takes
    every world-th of the global batch. The incomplete batch at the end is dropped, unless it is the only one.

    Args:
        count: number of pictures.
        batch_size: of all processes together.
        start_step: steps of this epoch already done, for a resume. `len` is the whole epoch's steps.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        epoch: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f"datasets: a batch of {batch_size} pictures cannot be divided over {world} processes."
            )
        if count < world:
            raise ValueError(f"datasets: {count} training pictures are too few for {world} processes.")
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, epoch
        self.start_step, self.rank, self.world = start_step, rank, world

    def __len__(self) -> int:
        return max(1, self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for step in range(self.start_step, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [Draw(self.epoch, int(index)) for index in batch[self.rank :: self.world]]


class TestOrder(Sampler):
    """Every picture exactly once over all processes, in order: rank r takes r, r + world, ...

    Args:
        batch_size: of each process.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1):
        self.indices = range(rank, count, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [Draw(0, index) for index in self.indices[start : start + self.batch_size]]


class Loader(DataLoader):
    """A DataLoader of Batch that reports a broken file in one sentence, from the main process."""

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers:
            return_freed_memory()
        for batch in super().__iter__():
            if batch.broken and not self.dataset.skip_broken:
                raise broken_error(batch.broken[0])
            yield batch


def return_freed_memory() -> None:
    """Gives the kernel what `engine.keep_memory` kept. Does nothing where there is no glibc.

    Forked workers would share it, so that whatever this process writes there is copied first, page by page:
    gigabytes, and seconds, in the first step of each epoch.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def make_loader(
    picture_set: PictureSet, order: TrainOrder | TestOrder, workers: int, pin_memory: bool = False
) -> DataLoader:
    """Decoded batches in the given order; `workers` processes decode, 0 decodes in this one."""
    return Loader(
        picture_set,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=picture_set.collate,
        pin_memory=pin_memory,
        # Without its own generator the loader draws from the global one, and a resume would not be exact.
        generator=torch.Generator(),
    )
