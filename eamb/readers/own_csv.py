"""Your own csv of pictures and ratings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eamb.files import home, home_in_row
from eamb.network.outputs import EMOTIONS
from eamb.readers.rated import SPLIT_WORDS, SPLITS, DataOptions, emotion_name
from eamb.readers.table import Rating, Read, Sheet, Table, as_number, joined, means, one_hot, split_files

PATH_COLUMNS = ("path", "image", "image_name", "image_id", "name", "file", "filename", "picture", "photo")
SCORE_COLUMNS = ("score", "mos", "mean", "rating", "average", "mean_score", "mean_rating", "average_score")
SPLIT_COLUMNS = ("split", "set", "subset")
COUNT_COLUMN = re.compile(r"(scores?|counts?|votes?|ratings?|bin|c|n|p)[_ ]?(\d+(\.\d+)?)", re.IGNORECASE)


def parse_csv(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """A table of paths and ratings, or one per split; columns found by their usual names, or by options.

    The ends of the rating scale are those given, else the bins', else the data's range rounded outwards.
    """
    files = _csv_files(root, splits, options)
    sheets = {split: read(Sheet, path) for split, path in files.items()}
    first = next(iter(sheets.values()))
    bins = _count_columns(first, options)
    emotions = [name.strip() for name in options.emotion_columns.split(",") if name.strip()]
    counted = [name for name in first.columns if name.startswith("emotion_")]
    emotions = emotions or (["emotion"] if "emotion" in first.columns else counted)
    columns = {
        "path": _find_column(first, options.path_column, PATH_COLUMNS, "path"),
        "score": _find_column(first, options.score_column, SCORE_COLUMNS, "score", not (bins or emotions)),
        "split": _find_column(first, options.split_column, SPLIT_COLUMNS, "split", needed=False),
    }
    classes = _emotion_classes(files, emotions, read)
    parts = [_csv_part(*part, columns, bins, emotions, classes) for part in sheets.items()]
    table = joined(parts)
    low, high = (table.bins[0], table.bins[-1]) if bins else round_outwards(table.scores)
    low = low if options.minimum is None else options.minimum
    high = high if options.maximum is None else options.maximum
    if not low < high:
        raise ValueError(f"datasets: data.minimum must be below data.maximum, got {low:g} and {high:g}.")
    for sheet in sheets.values() if columns["score"] and not bins else ():
        sheet.numbers(columns["score"], low, high)
    table.rating = Rating(low, high, threshold=(low + high) / 2, target="distribution" if bins else "score")
    folders = [root, next(iter(files.values())).parent, root / "images", root / "imgs"]
    table.places = [root / options.images] if options.images else folders
    return table


def _csv_files(root: Path, splits: tuple[str, ...], options: DataOptions) -> dict[str, Path]:
    """split -> file, or "" -> the one file for all splits."""
    if options.table:
        return {"": root / home(options.table)}
    if any((root / f"{split}.csv").is_file() for split in SPLITS):
        return split_files(root, splits)
    files = sorted(root.iterdir())
    tables = [path for path in files if path.suffix.lower() in (".csv", ".tsv")]
    tables = tables or [path for path in files if path.suffix.lower() in (".xlsx", ".xls", ".ods")]
    if len(tables) != 1:
        raise FileNotFoundError(
            f"datasets: {root} should hold one csv, or train.csv and test.csv; found "
            f"{', '.join(path.name for path in tables) or 'none'}. Choose with data.table=NAME."
        )
    return {"": tables[0]}


def _find_column(sheet: Sheet, chosen: str, usual: Sequence[str], what: str, needed: bool = True) -> str:
    """The column that an option names, or the only one with a usual name, or "" if there is none."""
    if chosen:
        sheet.need([chosen], f" data.{what}_column asks for it.")
        return chosen
    fitting = [column for column in sheet.columns if column.lower() in usual]
    if len(fitting) == 1 or not (fitting or needed):
        return (fitting or [""])[0]
    why = f"{' and '.join(fitting)} could be" if fitting else f"found {', '.join(sheet.columns[:12])}"
    raise ValueError(
        f"datasets: {sheet.path.name}: which column is the {what}? ({why}.) Set data.{what}_column=NAME."
    )


def _count_columns(sheet: Sheet, options: DataOptions) -> dict[str, float]:
    """Column -> rating, in ascending order; as chosen ("a1,a2" or "low=1,high=5"), or score1, score2, ..."""
    columns = {}
    if options.count_columns:
        for part in options.count_columns.split(","):
            column, _, rating = part.strip().partition("=")
            columns[column] = as_number(rating or re.search(r"(\d+(\.\d+)?)?$", column)[0])
        if (
            len(columns) < 2
            or len(set(columns.values())) < len(columns)
            or np.isnan([*columns.values()]).any()
        ):
            raise ValueError(
                "datasets: data.count_columns is two columns or more, each with another rating, as c1,c2 or "
                f"low=1,high=5; got {options.count_columns}."
            )
    elif not options.score_column:
        matches = {column: COUNT_COLUMN.fullmatch(column) for column in sheet.columns}
        columns = {column: float(match[2]) for column, match in matches.items() if match}
        columns = columns if len(columns) > 1 else {}
        steps = np.diff(sorted(columns.values()))
        if (steps == 0).any() or not np.allclose(steps, steps[:1]):
            raise ValueError(
                f"datasets: {sheet.path.name}: which columns are the counts of votes? ({', '.join(columns)} "
                "could be.) Set data.count_columns=a,b,c or data.score_column=NAME."
            )
    return dict(sorted(columns.items(), key=lambda item: item[1]))


def _emotion_classes(files: dict[str, Path], columns: list[str], read: Read) -> tuple[str, ...]:
    """For one column, the names in the files of all splits, requested or not; else those of the columns."""
    path = next(iter(files.values()))
    if len(columns) == 1:
        others = [path] if "" in files else [path.with_name(f"{split}.csv") for split in SPLITS]
        sheets = [read(Sheet, other) for other in others if other.is_file()]
        texts = [text for sheet in sheets if columns[0] in sheet.columns for text in sheet.texts(columns[0])]
        names = {emotion_name(text) for text in texts}
        return (*(name for name in EMOTIONS if name in names), *sorted(names - set(EMOTIONS)))
    names = [emotion_name(column.removeprefix("emotion_")) for column in columns]
    if len(set(names)) < len(names):
        raise ValueError(
            f"datasets: {path.name}: two of the columns {', '.join(columns)} are one emotion. Choose one "
            "column per emotion with data.emotion_columns=a,b,c."
        )
    return tuple(names)


def _csv_part(
    split: str, sheet: Sheet, columns: dict, bins: dict, emotions: list[str], classes: tuple
) -> Table:
    """The rows of one file, without their Rating. split: that of all rows, "" if the file has several."""
    sheet.need([*filter(None, columns.values()), *bins, *emotions])
    ids = sheet.ids(columns["path"])
    votes, scores, words = None, np.full(len(ids), np.nan), "emotions only"
    if bins:
        votes, words = sheet.counts(list(bins)), f"votes in {', '.join(bins)}"
        scores = means(votes, list(bins.values()))
    elif columns["score"]:
        scores, words = sheet.numbers(columns["score"]), f"scores in {columns['score']}"
    splits = np.full(len(ids), split, dtype="<U5")
    if columns["split"] and not split:
        splits = np.array([SPLIT_WORDS.get(word.lower(), "") for word in sheet.texts(columns["split"])])
        if (splits == "").any():
            raise sheet.error(splits == "", columns["split"], "train, val or test")
    counts = None
    if len(emotions) == 1:
        counts = one_hot([emotion_name(text) for text in sheet.texts(emotions[0])], classes)
    elif emotions:
        counts = sheet.counts(emotions)
    return Table(
        name="csv",
        ids=ids,
        names=[native_path(name) for name in ids],
        split=splits,
        protocol=dict.fromkeys([split] if split else SPLITS, f"{sheet.path.name} ({words})"),
        scores=scores,
        rating=Rating(0, 1, 0.5),
        votes=votes,
        bins=tuple(bins.values()),
        emotions=counts,
        emotion_classes=classes,
    )


def round_outwards(scores: np.ndarray) -> tuple[float, float]:
    """The likely ends of the scale of (n,) scores: 1.3 to 4.8 -> 1 to 5, 4 to 88 -> 0 to 90."""
    if np.isnan(scores).all():
        return 0.0, 1.0
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    step = 10.0 ** int(np.floor(np.log10(max(high - low, 1e-12) / 2))) if low < high else 1.0
    low, high = round(np.floor(low / step) * step, 12), round(np.ceil(high / step) * step, 12)
    return low, high if high > low else low + step


def native_path(name: str) -> str:
    """A path as this system writes it: ~ is expanded, and the backslashes of Windows become slashes."""
    return home_in_row(name.replace("\\", "/"))
