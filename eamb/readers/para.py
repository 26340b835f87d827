"""PARA: mean ratings from 1 to 5, and votes for eight emotions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eamb.readers.rated import DataOptions
from eamb.readers.table import Rating, Read, Sheet, Table, joined, means, read_text

PARA_BINS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
PARA_RATING = Rating(1.0, 5.0, threshold=3.0, target="score")
PARA_VOTES = 100  # most that a picture may have; the real maximum is 38
PARA_EMOTIONS = ("neutral", "disgust", "sadness", "fear", "awe", "amusement", "excitement", "contentment")
PARA_FILES = {"train": "PARA-GiaaTrain.csv", "test": "PARA-GiaaTest.csv"}
PARA_TRAINING_VOTES = "PARA-GiaaTrain-distributions.csv"  # read if the training csv itself has no votes
VOTE_COLUMNS = tuple(f"aestheticScore_{rating:.1f}" for rating in PARA_BINS)
# Means are printed with nine digits. One of PARA_VOTES votes, moved by a bin, changes a mean by 0.005.
MEAN_TOLERANCE = 1e-3


def parse_para(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """Those official csvs that the splits need, with votes and emotions where a csv has them.

    With data.target=distribution, training pictures take their votes from PARA_TRAINING_VOTES if there is
    such a file; those that are not in it have none.
    """
    needed = [split for split in PARA_FILES if split in splits or (split == "train" and "val" in splits)]
    sheets = {split: read(Sheet, root / "annotation" / PARA_FILES[split]) for split in needed}
    parts = {split: _para_part(sheet, split) for split, sheet in sheets.items()}
    more = root / "annotation" / PARA_TRAINING_VOTES
    train = parts.get("train")
    if options.target == "distribution" and train and train.votes is None:
        if more.is_file():
            train.votes = _training_votes(read(Sheet, more), train, read)
            train.protocol["train"] += f" with the votes in {more.name}"
        else:  # the error about missing votes quotes the protocol
            train.protocol["train"] += f" (there is no {more.name} beside it)"
    table = joined(list(parts.values()))
    table.places = [root / "imgs"]
    listed = root / "annotation" / "identical_images.txt"
    if listed.is_file():  # each line names the files of one picture
        by_name = {i.rpartition("/")[2]: i for i in table.ids}
        groups = [line.split() for line in read(read_text, listed).splitlines()]
        table.twins = [[by_name[name] for name in group if name in by_name] for group in groups]
    return table


def _para_part(sheet: Sheet, split: str) -> Table:
    sheet.need(
        ["imageName", "sessionId", "aestheticScore_mean"],
        " For your own columns use --dataset csv data.score_column=NAME.",
    )
    ids = _para_ids(sheet)
    return Table(
        name="para",
        ids=ids,
        names=ids,
        split=np.full(len(ids), split),
        protocol={split: f"official {sheet.path.name}"},
        scores=sheet.numbers("aestheticScore_mean", 1, 5),
        rating=PARA_RATING,
        votes=sheet.counts_if_there(VOTE_COLUMNS, PARA_VOTES),
        bins=PARA_BINS,
        emotions=sheet.counts_if_there([f"imgEmotion_{emotion}" for emotion in PARA_EMOTIONS], PARA_VOTES),
        emotion_classes=PARA_EMOTIONS,
    )


def _para_ids(sheet: Sheet) -> list[str]:
    names = sheet.ids("imageName")
    return [f"{session}/{name}" for session, name in zip(sheet.texts("sessionId"), names, strict=True)]


def _training_votes(sheet: Sheet, train: Table, read: Read) -> np.ndarray:
    """(n, K) votes for the n training pictures, NaN for those that the sheet lacks.

    Raises:
        ValueError: a row is of a test picture, of no training picture, or its votes have another mean.
    """
    sheet.need(["imageName", "sessionId", *VOTE_COLUMNS])
    ids, counts = _para_ids(sheet), sheet.counts(VOTE_COLUMNS, PARA_VOTES)  # (m, K)
    test = sheet.path.with_name(PARA_FILES["test"])
    if test.is_file():
        tested = np.isin(ids, _para_ids(read(Sheet, test)))
        if tested.any():
            raise sheet.error(tested, "imageName", f"no picture of {test.name}, which is for testing only")
    places = pd.Index(train.ids).get_indexer(ids)  # (m,)
    if (places < 0).any():
        raise sheet.error(places < 0, "imageName", f"a picture of {PARA_FILES['train']}, with its sessionId")
    voted, rated = means(counts, PARA_BINS), train.scores[places]  # (m,) each
    wrong = np.flatnonzero(np.abs(voted - rated) > MEAN_TOLERANCE)
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"datasets: {sheet.path.name} row {sheet.rows[first]}: the votes of {ids[first]} have the mean "
            f"{voted[first]:.4f}, and its mean in {PARA_FILES['train']} is {rated[first]:.4f}; "
            "correct one of the files, or remove the row."
        )
    votes = np.full((len(train.ids), len(PARA_BINS)), np.nan)
    votes[places] = counts
    return votes
