"""IAE: labels, or ratings, and eight emotions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

from eamb.readers.rated import SPLITS, DataOptions
from eamb.readers.table import Rating, Read, Sheet, Table, joined, means

# In the order of the codes 0 to 7 of the emotion lists.
IAE_EMOTIONS = ("amusement", "excitement", "awe", "contentment", "disgust", "anger", "fear", "sadness")
IAE_CODES = tuple(str(code) for code in range(8))
IAE_COLUMNS = ("id", "label")
IAE_BINS = (1.0, 4.0, 7.0, 10.0)
IAE_LABELS = Rating(0.0, 1.0, threshold=0.5, target="label", scored=False)
IAE_RATINGS = Rating(1.0, 10.0, threshold=5.0, inclusive=True, target="label")

H5_ROWS = 1_000_000  # at most; a damaged table may claim any number


def parse_iae(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """The lists, one `ID LABEL` per line, and scores.h5, ten ratings per picture, if h5py is installed.

    Scores are mean ratings (high from 5 on) where the lists or scores.h5 have them, else the 0/1 labels.
    """
    table = joined([_iae_part(root, split, read) for split in SPLITS if split in splits])
    table.places = [root / "images"]
    only_labels = np.isin(table.scores[~np.isnan(table.scores)], (0, 1)).all()
    table.rating = IAE_LABELS if only_labels else IAE_RATINGS
    if (root / "scores.h5").is_file():
        note = _use_ratings(table, root / "scores.h5", read)
        table.protocol = {split: f"{words}, {note}" for split, words in table.protocol.items()}
    return table


def _iae_part(root: Path, split: str, read: Read) -> Table:
    """One split; without its aesthetic list the scores are NaN, which is enough for the emotion task."""
    lists = [root / f"{split}_aes_list.txt", root / f"{split}_emo_list.txt"]
    sheets = [read(Sheet, path, IAE_COLUMNS) if path.is_file() else None for path in lists]
    if sheets == [None, None]:
        raise FileNotFoundError(
            f"datasets: neither {lists[0]} nor {lists[1].name} exists; is --data-root right?"
        )
    aesthetic, emotion = sheets
    ids = (aesthetic or emotion).ids("id", ending=".jpg")
    scores, emotions = np.full(len(ids), np.nan), None
    if aesthetic:
        scores = aesthetic.numbers("label", 0, 10)
        rated = ~np.isin(scores, (0, 1))
        if rated.any() and (scores < 1).any():  # a list that mixes labels and means would be misread
            raise aesthetic.error(rated, "label", "0 or 1, or in the whole list means from 1 to 10")
    if emotion:
        listed = emotion.ids("id", ending=".jpg")
        different = set(ids) ^ set(listed)
        if different:
            raise ValueError(
                f"datasets: {emotion.path.name} and the aesthetic list of its split must name the same "
                f"pictures; {len(different)} are in one of them only, first '{min(different)}'."
            )
        emotions = emotion.codes("label", IAE_CODES)[pd.Index(listed).get_indexer(ids)]
    return Table(
        name="iae",
        ids=ids,
        names=ids,
        split=np.full(len(ids), split),
        protocol={split: " and ".join(sheet.path.name for sheet in sheets if sheet)},
        scores=scores,
        rating=IAE_LABELS,
        emotions=emotions,
        emotion_classes=IAE_EMOTIONS,
    )


def _use_ratings(table: Table, path: Path, read: Read) -> str:
    """Puts each picture's ratings and their mean into the table; returns a note for the protocol."""
    if importlib.util.find_spec("h5py") is None:
        return f"{path.name} not read (it needs h5py)"
    ratings = read(_read_ratings, path)
    rows = pd.to_numeric(pd.Series(table.ids), errors="coerce").to_numpy(np.float64)
    if not ((rows >= 0) & (rows < len(ratings))).all():
        raise ValueError(f"datasets: {path.name} has {len(ratings)} rows, too few for the ids of the lists.")
    table.votes = (ratings[rows.astype(int)][:, :, None] == np.array(IAE_BINS)).sum(1).astype(np.float64)
    table.scores, table.bins, table.rating = means(table.votes, IAE_BINS), IAE_BINS, IAE_RATINGS
    return f"mean ratings of {path.name}"


def _read_ratings(path: Path) -> np.ndarray:
    """(pictures, 10) ratings from the one table in the file that has 10 columns, or 11 with their total."""
    import h5py

    try:
        with h5py.File(path) as file:
            items = []
            file.visititems(lambda name, item: items.append(item) if isinstance(item, h5py.Dataset) else None)
            wide = [item for item in items if item.ndim == 2 and item.shape[1] in (10, 11)]
            tables = [item[...].astype(np.float64) for item in wide if item.shape[0] <= H5_ROWS]
            shapes = ", ".join(f"{item.name} {item.shape}" for item in items) or "nothing"
    except Exception as error:  # h5py raises nearly anything about a damaged file
        raise ValueError(f"datasets: {path.name} cannot be read: {' '.join(str(error).split())}.") from error
    if len(tables) != 1:
        raise ValueError(
            f"datasets: {path.name} should hold one table of pictures x 10 ratings; found {shapes}."
        )
    ratings, total = tables[0][:, :10], tables[0][:, 10:]
    wrong = ~np.isin(ratings, IAE_BINS).all(1) | (total != ratings.sum(1, keepdims=True)).any(1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"datasets: {path.name} row {row} should be ten ratings of 1, 4, 7 or 10, or with their total; "
            f"found {tables[0][row].tolist()}."
        )
    return ratings
