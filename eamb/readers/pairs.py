"""Pairs of photographs of a series, and how often people preferred the first: Photo Triage, and your own csv.

    splits = load_pairs("phototriage", "/data/PhotoTriage", ("train", "val"))
    pictures = datasets.PairPictures(splits["train"], size=224, crop=True)

A split is a RatedSet of photographs, each once, with the pairs beside them: so each photograph is predicted
once however many pairs it is in. From top to bottom: what a split is; loading one; reading the two kinds of
set; splitting by series.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from eamb.network.outputs import Scale
from eamb.readers.own_csv import native
from eamb.readers.prepared import read_manifest
from eamb.readers.rated import SPLITS, DataOptions, LeftOut, RatedSet, hash_fractions
from eamb.readers.registry import DATASETS, PAIRED
from eamb.readers.table import Folders, Read, Sheet, read_once

NO_SCORES = Scale("label", 0.0, 1.0, 0.5)  # nobody rated single photographs
PAIR_COLUMNS = ("series", "first", "second", "preference")
# Photo Triage: photographs and lists lie in train_val/; copies of it in use have them in the root too.
PHOTO_TRIAGE_COLUMNS = (*PAIR_COLUMNS, "rank of first", "rank of second")
PHOTO_TRIAGE_FOLDERS = ("train_val/train_val_imgs", "train_val_imgs", "imgs", "")
PHOTO_TRIAGE_LISTS = {"train": "train_pairlist.txt", "test": "val_pairlist.txt"}


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
        return replace(
            super().take(indices),
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


@dataclass
class PairTable:
    """The pairs of a list: series, the two photographs by name, and the preference, (m,) each.

    places: the folders that the names are relative to.
    """

    series: list[str]
    first: list[str]
    second: list[str]
    preference: np.ndarray
    protocol: str
    places: list[Path]

    def take(self, rows: np.ndarray, protocol: str) -> PairTable:
        columns = [[column[i] for i in rows] for column in (self.series, self.first, self.second)]
        return PairTable(*columns, self.preference[rows], protocol, self.places)


def load_pairs(
    name: str,
    root: str | Path,
    splits: Sequence[str] = SPLITS,
    options: DataOptions | None = None,
    limit: int = 0,
    read: Read | None = None,
) -> dict[str, PairedSet]:
    """Reads the splits asked for, checked: split -> PairedSet.

    Args:
        name: phototriage or pairs, in any case.
        root: the set's folder. phototriage: train_pairlist.txt and val_pairlist.txt and the photographs.
            pairs: train.csv, val.csv and test.csv with the columns series, first, second and preference;
            first and second are paths below the folder.
        limit: training pairs, filled up to whole series, by hash; 0: all.
        read: of `read_once`, where several calls are to open each file once.

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
    tables = DATASETS[name].load_reader()(root, tuple(splits), options, read or read_once())
    loaded = {split: look_up(name, split, table) for split, table in tables.items()}
    if limit and "train" in loaded:
        loaded["train"] = first_series(loaded["train"], limit)
    return loaded


def look_up(name: str, split: str, table: PairTable) -> PairedSet:
    """The pairs whose photographs both exist; the photographs that do not are listed as left out.

    Raises:
        FileNotFoundError: no photograph exists, so the folder is wrong.
        ValueError: no pair is left; two names are of one file.
    """
    both = list(zip(table.first, table.second, strict=True))
    series_of = {p: series for pair, series in zip(both, table.series, strict=True) for p in pair}
    folders = Folders(table.places)
    paths = {photograph: folders.find(photograph) for photograph in series_of}
    there = [photograph for photograph, path in paths.items() if path]
    if paths and not there:
        raise FileNotFoundError(
            f"pairs: none of the {len(paths):,} photographs of {name} exists, e.g. '{next(iter(paths))}'; "
            f"looked in {folders}. Is --data-root right?"
        )
    _check_files(name, split, {photograph: paths[photograph] for photograph in there})
    place = {photograph: row for row, photograph in enumerate(there)}
    pairs = np.array([[place.get(photograph, -1) for photograph in pair] for pair in both])
    whole = (pairs.reshape(-1, 2) >= 0).all(axis=1)  # (m,)
    if not whole.any():
        raise ValueError(f"pairs: the {split} split of {name} has no pair whose two photographs exist")
    used = set(pairs[whole].ravel().tolist())
    left_out = [LeftOut(p, f"no picture file {p}") for p, path in paths.items() if not path]
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


def _check_files(name: str, split: str, paths: dict[str, str]) -> None:
    """Refuses two names of one file: their pairs would be of one photograph, or there twice."""
    names: dict[str, str] = {}
    for photograph, path in paths.items():
        if names.setdefault(path, photograph) != photograph:
            raise ValueError(
                f"pairs: {name} {split} names the file {path} '{names[path]}' and '{photograph}'; name each "
                "photograph in one way"
            )


def read_phototriage(
    root: Path, splits: tuple[str, ...], options: DataOptions, read: Read
) -> dict[str, PairTable]:
    """The published training list, of which whole series are held out by hash for "val"; the published
    validation list is "test", for the set's own test labels were never public."""
    tables = {}
    if "test" in splits:
        tables["test"] = _read_list(root, "test", read)
    if {"train", "val"} & set(splits):
        parts = divide(_read_list(root, "train", read), options.validation)
        tables |= {split: parts[split] for split in splits if split != "test"}
    return tables


def _read_list(root: Path, split: str, read: Read) -> PairTable:
    name = PHOTO_TRIAGE_LISTS[split]
    paths = [path for folder in ("", "train_val") if (path := root / folder / name).is_file()]
    if not paths:
        raise FileNotFoundError(f"pairs: there is no {name} in {root} or {root / 'train_val'}")
    sheet = read(Sheet, paths[0], PHOTO_TRIAGE_COLUMNS)
    series, first, second = (_whole_numbers(sheet, column) for column in PAIR_COLUMNS[:3])
    first = [f"{s:06d}-{photograph:02d}.JPG" for s, photograph in zip(series, first, strict=True)]
    second = [f"{s:06d}-{photograph:02d}.JPG" for s, photograph in zip(series, second, strict=True)]
    places = [root / folder for folder in PHOTO_TRIAGE_FOLDERS]
    return _pair_table(sheet, [str(s) for s in series], first, second, f"the published {name}", places)


def _whole_numbers(sheet: Sheet, column: str) -> list[int]:
    values = sheet.numbers(column, 0, 999_999)
    if (values % 1 != 0).any():
        raise sheet.error(values % 1 != 0, column, "a whole number")
    return values.astype(int).tolist()


def read_pairs_csv(
    root: Path, splits: tuple[str, ...], options: DataOptions, read: Read
) -> dict[str, PairTable]:
    """train.csv, val.csv and test.csv; without a val.csv whole series of train.csv are held out by hash."""
    places = [root / options.images]
    whole = SPLITS if (root / "val.csv").is_file() else ("test",)  # splits that are a file
    tables = {s: read_pair_sheet(read(Sheet, root / f"{s}.csv"), places) for s in whole if s in splits}
    if set(splits) - set(whole):
        parts = divide(read_pair_sheet(read(Sheet, root / "train.csv"), places), options.validation)
        tables |= {split: parts[split] for split in splits if split not in whole}
    return tables


def read_pair_sheet(sheet: Sheet, places: list[Path]) -> PairTable:
    sheet.need(PAIR_COLUMNS)
    first, second = (
        [posixpath.normpath(native(name)) for name in sheet.texts(side)] for side in ("first", "second")
    )
    return _pair_table(sheet, sheet.texts("series"), first, second, sheet.path.name, places)


def _pair_table(
    sheet: Sheet, series: list[str], first: list[str], second: list[str], protocol: str, places: list[Path]
) -> PairTable:
    """The table of these columns, if no pair is of one photograph or there twice, and no photograph is in two
    series."""
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
    series_of: dict[str, str] = {}
    for column, photographs in (("first", first), ("second", second)):
        other = [series_of.setdefault(p, s) != s for p, s in zip(photographs, series, strict=True)]
        if any(other):
            raise sheet.error(np.array(other), column, "a photograph that is in one series only")
    return PairTable(series, first, second, sheet.numbers("preference", 0.0, 1.0), protocol, places)


def divide(table: PairTable, validation: float) -> dict[str, PairTable]:
    """A list as "val", the share `validation` of its series by their hash, and "train", the others.

    Raises:
        ValueError: a part would be empty.
    """
    names = sorted(set(table.series))
    held_out = dict(zip(names, hash_fractions(names) < validation, strict=True))
    in_val = np.array([held_out[series] for series in table.series])  # (m,)
    parts = {}
    for split, share, rows in (("val", validation, in_val), ("train", 1.0 - validation, ~in_val)):
        if not rows.any():
            raise ValueError(
                f"pairs: {len(names)} series are too few to hold some out for {split} by hash; raise "
                "data.validation, or give a set of your own a val.csv"
            )
        words = f"{table.protocol}, {share:.0%} of its series by hash"
        parts[split] = table.take(np.flatnonzero(rows), words)
    return parts


def first_series(rated: PairedSet, limit: int) -> PairedSet:
    """A fixed sample: whole series in the order of their hashes, until there are `limit` pairs or more."""
    if limit >= len(rated.pairs):
        return rated
    position = hash_fractions(rated.pair_series.tolist())  # (m,), one for each series
    last = np.sort(position)[limit - 1]
    chosen = rated.take_pairs(np.flatnonzero(position <= last))
    words = f"{len(chosen.pairs)} pairs of it by hash of the series"
    return replace(chosen, protocol=f"{rated.protocol}, {words}")
