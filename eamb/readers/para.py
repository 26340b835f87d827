"""PARA: mean ratings from 1 to 5, and votes for eight emotions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eamb.readers.rated import DataOptions
from eamb.readers.table import Rating, Read, Sheet, Table, joined, read_text

PARA_BINS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
PARA_RATING = Rating(1.0, 5.0, threshold=3.0, target="score")
PARA_VOTES = 100  # most that a picture may have; the real maximum is 38
PARA_EMOTIONS = ("neutral", "disgust", "sadness", "fear", "awe", "amusement", "excitement", "contentment")
PARA_FILES = {"train": "PARA-GiaaTrain.csv", "test": "PARA-GiaaTest.csv"}


def parse_para(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """Those official csvs that the splits need, with votes and emotions where a csv has them."""
    needed = [split for split in PARA_FILES if split in splits or (split == "train" and "val" in splits)]
    sheets = {split: read(Sheet, root / "annotation" / PARA_FILES[split]) for split in needed}
    table = joined([_para_part(sheet, split) for split, sheet in sheets.items()])
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
    names = sheet.ids("imageName")
    ids = [f"{session}/{name}" for session, name in zip(sheet.texts("sessionId"), names, strict=True)]
    return Table(
        name="para",
        ids=ids,
        names=ids,
        split=np.full(len(ids), split),
        protocol={split: f"official {sheet.path.name}"},
        scores=sheet.numbers("aestheticScore_mean", 1, 5),
        rating=PARA_RATING,
        votes=sheet.counts_if_there([f"aestheticScore_{rating:.1f}" for rating in PARA_BINS], PARA_VOTES),
        bins=PARA_BINS,
        emotions=sheet.counts_if_there([f"imgEmotion_{emotion}" for emotion in PARA_EMOTIONS], PARA_VOTES),
        emotion_classes=PARA_EMOTIONS,
    )
