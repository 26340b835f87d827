"""Pairs of photographs of a series, and how often people preferred the first: Photo Triage, and your own csv.

    splits = load_pairs("phototriage", "/data/PhotoTriage", ("train", "val"))
    pictures = datasets.PairPictures(splits["train"], size=224, crop=True)

A split is a RatedSet of photographs, each once, and the pairs of them: each photograph is predicted once,
however many pairs it is in.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from eamb.files import home, nfc
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
        """The photographs at `indices`, in that order, and the pairs with both photographs among them."""
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


# Rows of series, first and second (names of photographs) and preference; their origin, in words; the
# folders that the names are relative to.
PairTable = tuple[pd.DataFrame, str, list[Path]]


def load_pairs(
    name: str,
    root: str | Path,
    splits: Sequence[str] = SPLITS,
    options: DataOptions | None = None,
    limit: int = 0,
) -> dict[str, PairedSet]:
    """Reads and checks the given splits: split -> PairedSet.

    Without a val.csv, and for Photo Triage, training series with a hash below `data.validation` are "val".

    Args:
        name: phototriage or pairs, in any case.
        root: the set's folder. phototriage: train_pairlist.txt and val_pairlist.txt and the photographs.
            pairs: train.csv, val.csv and test.csv with the columns series, first, second and preference;
            first and second are paths below the folder.
        limit: about this many training pairs, of whole series, the first by hash; 0: all.

    Raises:
        ValueError, FileNotFoundError: one sentence that names file, row and column.
    """
    name, root, options, read = name.lower(), Path(home(str(root))), options or DataOptions(), read_once()
    if not root.is_dir():
        raise FileNotFoundError(f"pairs: there is no folder {root}; --data-root must name that of {name}")
    if name not in PAIRED or read_manifest(root):
        raise ValueError(
            f"pairs: --data-root must be the folder of a set of pairs ({' or '.join(PAIRED)}) with the "
            f"photographs themselves, not prepared copies, which are squashed; got {name} in {root}"
        )
    read_table, loaded = DATASETS[name].load_reader(), {}
    held_out = name == "phototriage" or not (root / "val.csv").is_file()
    for split in splits:
        file = "train" if split == "val" and held_out else split
        rows, protocol, places = read_table(root, file, options, read)
        if held_out and split != "test":
            in_val = hash_fractions(rows["series"]) < options.validation  # (m,)
            share = options.validation if split == "val" else 1.0 - options.validation
            rows = rows[in_val == (split == "val")]
            protocol += f", {share:.0%} of its series by hash"
        loaded[split] = find_pairs(name, split, rows, protocol, places)
    train = loaded.get("train")
    if train and 0 < limit < len(train.pairs):
        place = hash_fractions(train.pair_series.tolist())  # (m,), one for each series
        train = train.take_pairs(np.flatnonzero(place <= np.sort(place)[limit - 1]))
        words = f"{train.protocol}, {len(train.pairs)} pairs of it by hash of the series"
        loaded["train"] = replace(train, protocol=words)
    return loaded


def find_pairs(name: str, split: str, rows: pd.DataFrame, protocol: str, places: list[Path]) -> PairedSet:
    """The pairs whose photographs both exist; the photographs that do not are listed as left out."""
    pairs, photographs = pd.factorize(rows[["first", "second"]].to_numpy().ravel())  # (2m,), (n,) each once
    _, where = np.unique(pairs, return_index=True)  # (n,) where each photograph is named first
    pairs = pairs.reshape(-1, 2).astype(np.int64)
    paths, reasons = find_files(photographs, places, f"photographs of {name}", area="pairs")
    files = pd.Series(paths, photographs, dtype=object).dropna()
    complete = np.isin(pairs, np.flatnonzero([path is not None for path in paths])).all(axis=1)  # (m,)
    if not complete.any():
        raise ValueError(
            f"pairs: the {split} split of {name} has no pair of photographs that exist; if its series are "
            "too few to hold some out by hash, raise data.validation or give the set a val.csv"
        )
    used = np.unique(pairs[complete])
    reasons |= dict.fromkeys(files.index, "no pair that it is in is left")
    left_out = [LeftOut(i, reasons[i]) for i in np.delete(photographs, used)]
    lost = f", {(~complete).sum()} of its pairs lost with missing photographs" if left_out else ""
    rated = PairedSet(
        name=name,
        split=split,
        protocol=protocol + lost,
        ids=list(photographs),
        paths=paths,
        scores=np.full(len(paths), np.nan),
        scale=NO_SCORES,
        left_out=left_out,
        series=np.repeat(rows["series"].to_numpy(str), 2)[where],
        pairs=pairs[complete],
        preference=rows["preference"].to_numpy()[complete],
    )
    return rated.take(used)


def read_phototriage(root: Path, split: str, options: DataOptions, read: Read) -> PairTable:
    """The published training list, or as "test" the published validation list, because the set's own test
    labels were never public."""
    listed = PHOTO_TRIAGE_LISTS[split]
    folder = root if (root / listed).is_file() else root / "train_val"
    sheet = read(Sheet, folder / listed, PHOTO_TRIAGE_COLUMNS)
    series, *both = (sheet.numbers(name, 0, 999_999).astype(int).tolist() for name in PAIR_COLUMNS[:3])
    both = [[f"{s:06d}-{p:02d}.JPG" for s, p in zip(series, side, strict=True)] for side in both]
    places = [root / folder for folder in PHOTO_TRIAGE_FOLDERS]
    return check_pairs(sheet, list(map(str, series)), *both, f"the published {listed}", places)


def read_pairs_csv(root: Path, split: str, options: DataOptions, read: Read) -> PairTable:
    """train.csv, val.csv or test.csv."""
    sheet = read(Sheet, root / f"{split}.csv")
    sheet.need(PAIR_COLUMNS)
    sides = [sheet.texts(side) for side in ("first", "second")]
    both = [[posixpath.normpath(native_path(name)) for name in names] for names in sides]
    spelled = {nfc(name): name for names in both for name in names}  # one photograph is spelled in one way
    both = [[spelled[nfc(name)] for name in names] for names in both]
    return check_pairs(sheet, sheet.texts("series"), *both, sheet.path.name, [root / options.images])


def check_pairs(
    sheet: Sheet, series: list[str], first: list[str], second: list[str], protocol: str, places: list[Path]
) -> PairTable:
    """Refuses a pair of one photograph, a repeated pair, and a photograph in two series."""
    rows = pd.DataFrame({"series": series, "first": first, "second": second})
    both = rows[["first", "second"]]  # (m, 2)
    twice = pd.DataFrame({0: both.min(axis=1), 1: both.max(axis=1)}).duplicated()
    series_of = rows.melt("series", ["first", "second"]).drop_duplicates("value").set_index("value")["series"]
    moved = both.apply(lambda names: names.map(series_of) != rows["series"]).any(axis=1)
    for column, bad, expected in (
        ("second", both["first"] == both["second"], "another photograph than the first of its pair"),
        ("first", twice, "each pair of photographs once; let one row have the share of all votes"),
        ("series", moved, "each photograph in one series only"),
    ):
        if bad.any():
            raise sheet.error(bad, column, expected)
    return rows.assign(preference=sheet.numbers("preference", 0.0, 1.0)), protocol, places
