"""Pairs of photographs of a series, and how often people preferred the first: Photo Triage, and your own csv.

    splits = load_pairs("phototriage", "/data/PhotoTriage", ("train", "val"))
    pictures = datasets.PairPictures(splits["train"], size=224, crop=True)

A split is a RatedSet of photographs, each once, and the pairs of them: each photograph is predicted once,
however many pairs it is in. From top to bottom: what a split is; loading one; reading the two kinds of set;
splitting by series.
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
from eamb.readers.own_csv import native_path
from eamb.readers.prepared import read_manifest
from eamb.readers.rated import SPLITS, DataOptions, LeftOut, RatedSet, hash_fractions
from eamb.readers.registry import DATASETS, PAIRED
from eamb.readers.table import Read, Sheet, find_files, read_once

NO_SCORES = Scale("label", 0.0, 1.0, 0.5)  # nobody rated single photographs
PAIR_COLUMNS = ("series", "first", "second", "preference")
# Photo Triage has photographs and lists in train_val/; in some copies they are in the root.
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
        """Samples of a training epoch: the pairs."""
        return len(self.pairs)

    @property
    def pair_series(self) -> np.ndarray:
        """(m,) the name of each pair's series."""
        return self.series[self.pairs[:, 0]]

    @property
    def sha256(self) -> str:
        """Hash of the sorted pairs and their preferences: equal for equal splits, whatever their order."""
        rows = [
            f"{self.ids[a]},{self.ids[b]},{p!r}\n"
            for (a, b), p in zip(self.pairs, self.preference.tolist(), strict=True)
        ]
        return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> PairedSet:
        """The photographs at `indices`, in that order, and the pairs of two of them."""
        indices = np.arange(len(self))[np.asarray(indices)]
        place = np.full(len(self), -1)
        place[indices] = np.arange(len(indices))
        pairs = place[self.pairs]  # (m, 2), -1: not among them
        complete = (pairs >= 0).all(axis=1)
        return replace(
            super().take(indices),
            series=self.series[indices],
            pairs=pairs[complete],
            preference=self.preference[complete],
        )

    def take_pairs(self, rows: np.ndarray) -> PairedSet:
        """The pairs at `rows` (m',), in that order, and the photographs that are in them."""
        chosen = replace(self, pairs=self.pairs[rows], preference=self.preference[rows])
        return chosen.take(np.unique(chosen.pairs))


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
    """The pairs of a list: m rows of series, first and second (names of photographs) and preference.

    places: the folders that the names are relative to.
    """

    rows: pd.DataFrame
    protocol: str
    places: list[Path]


def load_pairs(
    name: str,
    root: str | Path,
    splits: Sequence[str] = SPLITS,
    options: DataOptions | None = None,
    limit: int = 0,
    read: Read | None = None,
) -> dict[str, PairedSet]:
    """Reads and checks the given splits: split -> PairedSet.

    Args:
        name: phototriage or pairs, in any case.
        root: the set's folder. phototriage: train_pairlist.txt and val_pairlist.txt and the photographs.
            pairs: train.csv, val.csv and test.csv with the columns series, first, second and preference;
            first and second are paths below the folder.
        limit: about this many training pairs, of whole series, the first by hash; 0: all.
        read: from `read_once`, so that several calls open each file only once.

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
    loaded = {split: find_pairs(name, split, table) for split, table in tables.items()}
    if limit and "train" in loaded:
        loaded["train"] = first_series(loaded["train"], limit)
    return loaded


def find_pairs(name: str, split: str, table: PairTable) -> PairedSet:
    """The pairs whose photographs both exist; the photographs that do not are listed as left out.

    Raises:
        FileNotFoundError: no photograph exists, so the folder is wrong.
        ValueError: no pair is left; two names lead to one file.
    """
    names = table.rows[["first", "second"]].to_numpy().ravel()
    pairs, photographs = pd.factorize(names)  # (2m,) positions, (n,) each name once
    pairs = pairs.reshape(-1, 2).astype(np.int64)
    paths = find_files(photographs, table.places, f"photographs of {name}", area="pairs")
    files = pd.Series(paths, photographs, dtype=object).dropna()
    if files.duplicated().any():  # one photograph might be compared with itself, or a pair be there twice
        path = files[files.duplicated()].iloc[0]
        first, second = files.index[files == path][:2]
        raise ValueError(
            f"pairs: {name} {split} names the file {path} '{first}' and '{second}'; name each photograph in "
            "one way"
        )
    complete = np.array([path is not None for path in paths])[pairs].all(axis=1)  # (m,)
    if not complete.any():
        raise ValueError(f"pairs: the {split} split of {name} has no pair whose two photographs exist")
    used = np.unique(pairs[complete])
    left_out = [LeftOut(p, f"no picture file {p}") for p in photographs if p not in files]
    unused = set(files.index) - set(photographs[used])
    left_out += [LeftOut(p, "no pair that it is in is left") for p in files.index if p in unused]
    incomplete = int((~complete).sum())
    lost = f", {incomplete} of its pairs lost with missing photographs" if incomplete else ""
    series_of = dict(zip(names, np.repeat(table.rows["series"], 2), strict=True))
    rated = PairedSet(
        name=name,
        split=split,
        protocol=table.protocol + lost,
        ids=list(photographs),
        paths=paths,
        scores=np.full(len(paths), np.nan),
        scale=NO_SCORES,
        left_out=left_out,
        series=np.array([series_of[photograph] for photograph in photographs]),
        pairs=pairs[complete],
        preference=table.rows["preference"].to_numpy()[complete],
    )
    return rated.take(used)


def read_phototriage(
    root: Path, splits: tuple[str, ...], options: DataOptions, read: Read
) -> dict[str, PairTable]:
    """The published training list, of which whole series are held out by hash as "val"; the published
    validation list is "test", because the set's own test labels were never public."""
    tables = {}
    for split in ("test", "train"):
        if not (split in splits or (split == "train" and "val" in splits)):
            continue
        listed = PHOTO_TRIAGE_LISTS[split]
        paths = [path for folder in ("", "train_val") if (path := root / folder / listed).is_file()]
        if not paths:
            raise FileNotFoundError(f"pairs: there is no {listed} in {root} or {root / 'train_val'}")
        sheet, columns = read(Sheet, paths[0], PHOTO_TRIAGE_COLUMNS), {}
        for column in PAIR_COLUMNS[:3]:
            values = sheet.numbers(column, 0, 999_999)
            if (values % 1 != 0).any():
                raise sheet.error(values % 1 != 0, column, "a whole number")
            columns[column] = values.astype(int).tolist()
        series, *both = columns.values()
        both = [[f"{s:06d}-{p:02d}.JPG" for s, p in zip(series, column, strict=True)] for column in both]
        places = [root / folder for folder in PHOTO_TRIAGE_FOLDERS]
        table = _pair_table(sheet, [str(s) for s in series], *both, f"the published {listed}", places)
        tables |= {split: table} if split == "test" else hold_out_series(table, options.validation)
    return {split: table for split, table in tables.items() if split in splits}


def read_pairs_csv(
    root: Path, splits: tuple[str, ...], options: DataOptions, read: Read
) -> dict[str, PairTable]:
    """train.csv, val.csv and test.csv; without a val.csv whole series of train.csv are held out by hash."""
    places = [root / options.images]
    files = SPLITS if (root / "val.csv").is_file() else ("test",)  # splits with a file of their own
    tables = {s: read_pair_sheet(read(Sheet, root / f"{s}.csv"), places) for s in files if s in splits}
    if set(splits) - set(files):
        parts = hold_out_series(read_pair_sheet(read(Sheet, root / "train.csv"), places), options.validation)
        tables |= {split: parts[split] for split in splits if split not in files}
    return tables


def read_pair_sheet(sheet: Sheet, places: list[Path]) -> PairTable:
    sheet.need(PAIR_COLUMNS)
    first, second = (
        [posixpath.normpath(native_path(name)) for name in sheet.texts(side)] for side in ("first", "second")
    )
    return _pair_table(sheet, sheet.texts("series"), first, second, sheet.path.name, places)


def _pair_table(
    sheet: Sheet, series: list[str], first: list[str], second: list[str], protocol: str, places: list[Path]
) -> PairTable:
    """Refuses a pair of one photograph, a repeated pair, and a photograph in two series."""
    rows = pd.DataFrame({"series": series, "first": first, "second": second})
    same = rows["first"] == rows["second"]
    if same.any():
        raise sheet.error(same, "second", "another photograph than the first of its pair")
    sides = [rows[["first", "second"]].min(axis=1), rows[["first", "second"]].max(axis=1), rows["series"]]
    twice = pd.concat(sides, axis=1).duplicated()
    if twice.any():
        expected = "each pair of photographs once; let one row have the share of all votes"
        raise sheet.error(twice, "first", expected)
    series_of: dict[str, str] = {}
    for column in ("first", "second"):
        pairs = zip(rows[column], rows["series"], strict=True)
        other = np.array([series_of.setdefault(photograph, name) != name for photograph, name in pairs])
        if other.any():
            raise sheet.error(other, column, "a photograph that is in one series only")
    return PairTable(rows.assign(preference=sheet.numbers("preference", 0.0, 1.0)), protocol, places)


def hold_out_series(table: PairTable, validation: float) -> dict[str, PairTable]:
    """Splits a list: "val" is the share `validation` of its series, by their hash, "train" the others.

    Raises:
        ValueError: a part would be empty.
    """
    in_val = hash_fractions(table.rows["series"]) < validation  # (m,)
    parts = {}
    for split, share, rows in (("train", 1.0 - validation, ~in_val), ("val", validation, in_val)):
        if not rows.any():
            raise ValueError(
                f"pairs: {table.rows['series'].nunique()} series are too few to hold some out for {split} by "
                "hash; raise data.validation, or give a set of your own a val.csv"
            )
        words = f"{table.protocol}, {share:.0%} of its series by hash"
        parts[split] = replace(table, rows=table.rows[rows], protocol=words)
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
