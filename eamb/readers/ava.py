"""AVA: ratings of 1 to 10 by some 200 people per picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eamb.readers.rated import SPLITS, DataOptions, LeftOut
from eamb.readers.table import Rating, Read, Sheet, Table, joined, means, split_files

AVA_BINS = tuple(float(rating) for rating in range(1, 11))
AVA_RATING = Rating(1.0, 10.0, threshold=5.0, target="distribution")
AVA_VOTES = 1_000  # most that a picture may have; the real maximum is 549
AVA_TEXT_COLUMNS = ("row", "image_id", *(f"votes_{r}" for r in range(1, 11)), "tag1", "tag2", "challenge")
# The csv splits count from 2: score2 holds the votes for rating 1.
AVA_CSV_COLUMNS = tuple(f"score{rating + 1}" for rating in range(1, 11))


def parse_ava(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """train.csv, val.csv and test.csv in root or root/splits, else AVA.txt with the official test list."""
    folders = [f for f in (root, root / "splits") if any((f / f"{split}.csv").is_file() for split in SPLITS)]
    table = _ava_from_csv(folders[0], splits, read) if folders else _ava_from_text(root, read)
    table.places = [root / "images", root / "image", root]
    return table


def _ava_from_text(root: Path, read: Read) -> Table:
    path = root / "AVA.txt"
    lists = [root / folder / "generic_test.jpgl" for folder in (".", "aesthetics_image_lists")]
    test_list = next((file for file in lists if file.is_file()), None)
    if not path.is_file():
        raise FileNotFoundError(f"datasets: {root} has neither AVA.txt nor train.csv; is --data-root right?")
    if test_list is None:
        raise FileNotFoundError(f"datasets: {lists[1]}, the official test split, does not exist.")
    sheet = read(Sheet, path, AVA_TEXT_COLUMNS)
    ids, votes = sheet.ids("image_id"), sheet.counts(AVA_TEXT_COLUMNS[2:12], AVA_VOTES)
    test = read(Sheet, test_list, ("id",)).ids("id", ending=".jpg")
    table = ava_table(ids, votes, np.where(pd.Index(ids).isin(test), "test", "train"))
    table.protocol = {"train": "AVA.txt without the official test list", "test": "official test list"}
    unrated = sorted(set(test) - set(ids))
    table.left_out = {"test": [LeftOut(i, f"in {test_list.name} but not rated in AVA.txt") for i in unrated]}
    return table


def _ava_from_csv(folder: Path, splits: tuple[str, ...], read: Read) -> Table:
    parts = []
    for split, path in split_files(folder, splits).items():
        sheet = read(Sheet, path)
        sheet.need(["image_id", *AVA_CSV_COLUMNS], " AVA's csv splits have image_id, score2, ..., score11.")
        ids = sheet.ids("image_id", ending=".jpg")
        parts.append(ava_table(ids, sheet.counts(AVA_CSV_COLUMNS, AVA_VOTES), np.full(len(ids), split)))
        parts[-1].protocol = {split: path.name}
    return joined(parts)


def ava_table(ids: list[str], votes: np.ndarray, split: np.ndarray) -> Table:
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
