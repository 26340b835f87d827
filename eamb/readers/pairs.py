"""Pairs of photographs of a series, and how often people preferred the first: Photo Triage, and your own csv.

    splits = load_pairs("phototriage", "/data/PhotoTriage", ("train", "val"))
    pictures = PairPictures(splits["train"], size=224, crop=True)

A split is a RatedSet of photographs, each once, with the pairs beside them: so each photograph is predicted
once however many pairs it is in. From top to bottom: what a split is; reading the two kinds of set; splitting
by series; pairs of pictures.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eamb.network.outputs import Scale
from eamb.readers.own_csv import native
from eamb.readers.prepared import read_manifest
from eamb.readers.rated import SPLITS, DataOptions, LeftOut, RatedSet, hash_fractions
from eamb.readers.table import Folders, Sheet

PAIRED = ("phototriage", "pairs")  # the sets whose labels are pairs

NO_SCORES = Scale("label", 0.0, 1.0, 0.5)  # of single photographs nobody said anything


@dataclass(frozen=True, eq=False)
class PairedSet(RatedSet):
    """n photographs of one split, as a RatedSet without scores, and m pairs of them.

    series: (n,) the name of each photograph's series.
    pairs: (m, 2) int64, rows of the photographs; both of a pair are of one series.
    preference: (m,) share of the people who preferred the first, in [0, 1].
    """

    series: np.ndarray = field(default_factory=lambda: np.empty(0, str))
    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    preference: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def draws(self) -> int:
        """How many training draws an epoch: its pairs."""
        return len(self.pairs)

    @property
    def pair_series(self) -> np.ndarray:
        """(m,) the name of each pair's series."""
        return self.series[self.pairs[:, 0]]

    @property
    def sha256(self) -> str:
        """Of the sorted pairs with what people said of them: equal for equal splits, whatever their order."""
        rows = [
            f"{self.ids[a]},{self.ids[b]},{p!r}\n"
            for (a, b), p in zip(self.pairs, self.preference.tolist(), strict=True)
        ]
        return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> PairedSet:
        """The photographs at `indices`, in that order, and the pairs that have both of theirs among them."""
        indices = np.arange(len(self))[np.asarray(indices)]
        place = np.full(len(self), -1)
        place[indices] = np.arange(len(indices))
        pairs = place[self.pairs]  # (m, 2), -1: gone
        whole = (pairs >= 0).all(axis=1)
        photographs = super().take(indices)
        return replace(
            photographs,
            series=self.series[indices],
            pairs=pairs[whole],
            preference=self.preference[whole],
        )

    def take_pairs(self, rows: np.ndarray) -> PairedSet:
        """The pairs at `rows` (m',), in that order, and the photographs that are in them."""
        some = replace(self, pairs=self.pairs[rows], preference=self.preference[rows])
        return some.take(np.unique(some.pairs))


def describe_pairs(rated: PairedSet) -> str:
    """One line for the log: what was loaded, by which protocol, what was left out."""
    undecided = int((rated.preference == 0.5).sum())
    return (
        f"{rated.name} {rated.split}: {len(rated.pairs):,} pairs of {len(rated):,} photographs in "
        f"{len(set(rated.series.tolist())):,} series ({rated.protocol}), {undecided} undecided, "
        f"{len(rated.left_out):,} photographs left out, pairs sha256 {rated.sha256[:12]}"
    )


class PairTable(NamedTuple):
    """The pairs of a file: series, and the two photographs by name, (m,) each; preference (m,)."""

    series: list[str]
    first: list[str]
    second: list[str]
    preference: np.ndarray
    protocol: str


def load_pairs(
    name: str,
    root: str | Path,
    splits: Sequence[str] = SPLITS,
    options: DataOptions | None = None,
    limit: int = 0,
) -> dict[str, PairedSet]:
    """Reads the splits asked for, checked: split -> PairedSet.

    Args:
        name: phototriage or pairs, in any case.
        root: the set's folder. phototriage: train_pairlist.txt and val_pairlist.txt and the photographs.
            pairs: train.csv, val.csv and test.csv with the columns series, first, second and preference;
            first and second are paths below the folder.
        limit: training pairs, filled up to whole series, by hash; 0: all.

    Raises:
        ValueError, FileNotFoundError: one sentence that names file, row and column.
    """
    name, root, options = name.lower(), Path(root).expanduser(), options or DataOptions()
    if name not in PAIRED:
        raise ValueError(f"pairs: the sets of pairs are {' and '.join(PAIRED)}, got '{name}'")
    if not root.is_dir():
        raise FileNotFoundError(f"pairs: there is no folder {root}; --data-root must name the {name} folder")
    if read_manifest(root):
        raise ValueError(
            f"pairs: {root} holds prepared copies, which are squashed; pairs need the photographs themselves"
        )
    tables = {"phototriage": read_phototriage, "pairs": read_pairs_csv}[name](root, tuple(splits), options)
    folders = {"phototriage": PHOTO_TRIAGE_FOLDERS, "pairs": (options.images,)}[name]
    files = Folders([root / folder for folder in folders])
    loaded = {split: look_up(name, split, table, files) for split, table in tables.items()}
    if limit and "train" in loaded:
        loaded["train"] = first_series(loaded["train"], limit)
    return loaded


def check_pairs(sheet: Sheet, series: list[str], first: list[str], second: list[str]) -> None:
    """Refuses a pair of one photograph, a pair that is there twice, and a photograph of two series.

    Args:
        series, first, second: (m,) of the columns of these names.
    """
    same = np.array([a == b for a, b in zip(first, second, strict=True)])
    if same.any():
        raise sheet.error(same, "second", "another photograph than the first of its pair")
    names = pd.Series([f"{s}\n" + "\n".join(sorted(p)) for s, *p in zip(series, first, second, strict=True)])
    if names.duplicated().any():
        raise sheet.error(
            names.duplicated().to_numpy(),
            "first",
            "each pair of photographs once; let one row have the share of all votes",
        )
    known: dict[str, str] = {}
    for column, photographs in (("first", first), ("second", second)):
        other = np.array([known.setdefault(p, s) != s for p, s in zip(photographs, series, strict=True)])
        if other.any():
            raise sheet.error(other, column, "a photograph that is in one series only")


# Photo Triage: photographs and lists lie in train_val/; copies of it in use have them in the root too.
PHOTO_TRIAGE_COLUMNS = ("series", "first", "second", "preference", "rank of first", "rank of second")

PHOTO_TRIAGE_FOLDERS = ("train_val/train_val_imgs", "train_val_imgs", "imgs", "")

PHOTO_TRIAGE_LISTS = {"train": "train_pairlist.txt", "test": "val_pairlist.txt"}


def read_phototriage(root: Path, splits: tuple[str, ...], options: DataOptions) -> dict[str, PairTable]:
    """The published training list, of which whole series are held out by hash for "val"; the published
    validation list is "test", for the set's own test labels were never public."""
    tables = {}
    if "test" in splits:
        tables["test"] = read_list(root, "test")
    if {"train", "val"} & set(splits):
        parts = divide(read_list(root, "train"), {"val": options.validation})
        tables |= {split: parts[split] for split in splits if split != "test"}
    return tables


def read_list(root: Path, split: str) -> PairTable:
    name = PHOTO_TRIAGE_LISTS[split]
    found = [path for folder in ("", "train_val") if (path := root / folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"pairs: there is no {name} in {root} or {root / 'train_val'}")
    sheet = Sheet(found[0], PHOTO_TRIAGE_COLUMNS)
    numbers = {column: whole_numbers(sheet, column) for column in PHOTO_TRIAGE_COLUMNS[:3]}
    series = numbers["series"]
    first, second = (
        [f"{s:06d}-{p:02d}.JPG" for s, p in zip(series, numbers[side], strict=True)]
        for side in ("first", "second")
    )
    names = [str(number) for number in series]
    check_pairs(sheet, names, first, second)
    return PairTable(names, first, second, sheet.numbers("preference", 0.0, 1.0), f"the published {name}")


def whole_numbers(sheet: Sheet, column: str) -> list[int]:
    values = sheet.numbers(column, 0, 999_999)
    if (values % 1 != 0).any():
        raise sheet.error(values % 1 != 0, column, "a whole number")
    return values.astype(int).tolist()


PAIR_COLUMNS = ("series", "first", "second", "preference")


def read_pairs_csv(root: Path, splits: tuple[str, ...], options: DataOptions) -> dict[str, PairTable]:
    """train.csv, val.csv and test.csv; without a val.csv whole series of train.csv are held out by hash."""
    own = ("test",) if not (root / "val.csv").is_file() else SPLITS
    tables = {split: read_pair_sheet(root / f"{split}.csv") for split in own if split in splits}
    if set(splits) - set(own):
        parts = divide(read_pair_sheet(root / "train.csv"), {"val": options.validation})
        tables |= {split: parts[split] for split in splits if split not in own}
    return tables


def read_pair_sheet(path: Path) -> PairTable:
    sheet = Sheet(path)
    sheet.need(PAIR_COLUMNS)
    series = sheet.texts("series")
    first, second = (
        [posixpath.normpath(native(name)) for name in sheet.texts(side)] for side in PAIR_COLUMNS[1:3]
    )
    check_pairs(sheet, series, first, second)
    return PairTable(series, first, second, sheet.numbers("preference", 0.0, 1.0), path.name)


def look_up(name: str, split: str, table: PairTable, files: Folders) -> PairedSet:
    """The pairs whose photographs both exist; the photographs that do not are listed as left out.

    Raises:
        FileNotFoundError: no photograph exists, so the folder is wrong.
        ValueError: no pair is left; two names are of one file.
    """
    both = list(zip(table.first, table.second, strict=True))
    names = list(dict.fromkeys(photograph for pair in both for photograph in pair))
    series_of = {p: series for pair, series in zip(both, table.series, strict=True) for p in pair}
    paths = {photograph: files.find(photograph) for photograph in names}
    there = [photograph for photograph in names if paths[photograph]]
    if names and not there:
        raise FileNotFoundError(
            f"pairs: none of the {len(names):,} photographs of {name} exists, e.g. '{names[0]}'; looked in "
            f"{' and '.join(dict.fromkeys(files.places))}. Is --data-root right?"
        )
    check_files(name, split, {photograph: paths[photograph] for photograph in there})
    place = {photograph: row for row, photograph in enumerate(there)}
    pairs = np.array([[place.get(photograph, -1) for photograph in pair] for pair in both])
    whole = (pairs.reshape(-1, 2) >= 0).all(axis=1)  # (m,)
    if not whole.any():
        raise ValueError(f"pairs: the {split} split of {name} has no pair whose two photographs exist")
    used = set(pairs[whole].ravel().tolist())
    left_out = [LeftOut(p, f"no picture file {p}") for p in names if not paths[p]]
    left_out += [LeftOut(p, "no pair is left that it is in") for p in there if place[p] not in used]
    lost = f", {int((~whole).sum())} of its pairs lost with missing photographs" if not whole.all() else ""
    photographs = PairedSet(
        name=name,
        split=split,
        protocol=table.protocol + lost,
        ids=there,
        paths=[paths[photograph] for photograph in there],
        scores=np.full(len(there), np.nan),
        scale=NO_SCORES,
        left_out=left_out,
        series=np.array([series_of[photograph] for photograph in there]),
        pairs=pairs[whole],
        preference=table.preference[whole],
    )
    return photographs.take(sorted(used))


def check_files(name: str, split: str, paths: dict[str, str]) -> None:
    """Refuses two names of one file: their pairs would be of one photograph, or there twice."""
    names: dict[str, str] = {}
    for photograph, path in paths.items():
        if path in names:
            raise ValueError(
                f"pairs: {name} {split} names the file {path} '{names[path]}' and '{photograph}'; name each "
                "photograph in one way"
            )
        names[path] = photograph


def divide(table: PairTable, shares: dict[str, float]) -> dict[str, PairTable]:
    """Parts of a list by the hash of the series, so that no series is in two: `shares`, the rest is "train".

    Raises:
        ValueError: a part would be empty.
    """
    names = sorted(set(table.series))
    fraction = dict(zip(names, hash_fractions(names).tolist(), strict=True))
    position = np.array([fraction[series] for series in table.series])  # (m,)
    parts, start = {}, 0.0
    for split, share in [*shares.items(), ("train", 1.0 - sum(shares.values()))]:
        rows = np.flatnonzero((position >= start) & (position < start + share))
        start += share
        if not len(rows):
            raise ValueError(
                f"pairs: {len(names)} series are too few to hold some out for {split} by hash; raise "
                "data.validation, or give a set of your own a val.csv"
            )
        parts[split] = pairs_at(table, rows, f"{table.protocol}, {share:.0%} of its series by hash")
    return parts


def pairs_at(table: PairTable, rows: np.ndarray, protocol: str) -> PairTable:
    columns = ([column[i] for i in rows] for column in table[:3])
    return PairTable(*columns, table.preference[rows], protocol)


def first_series(rated: PairedSet, limit: int) -> PairedSet:
    """A fixed sample: whole series in the order of their hashes, until there are `limit` pairs or more."""
    if limit >= len(rated.pairs):
        return rated
    position = hash_fractions(rated.pair_series.tolist())  # (m,), one for each series
    last = np.sort(position)[limit - 1]
    chosen = rated.take_pairs(np.flatnonzero(position <= last))
    words = f"{len(chosen.pairs)} pairs of it by hash of the series"
    return replace(chosen, protocol=f"{rated.protocol}, {words}")
