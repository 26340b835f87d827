"""Anyone's csv of pictures and ratings."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eamb.network.outputs import EMOTIONS
from eamb.readers.rated import SPLIT_WORDS, SPLITS, DataOptions, emotion_name
from eamb.readers.table import Rating, Read, Sheet, Table, as_number, joined, means, one_hot, split_files

PATH_COLUMNS = ("path", "image", "file", "name", "picture", "photo", "img", "filename", "filepath",
                "imagename", "file_name", "file_path", "image_name", "image_path", "image_file", "image_id",
                "img_name", "img_path")  # fmt: skip
SCORE_COLUMNS = ("score", "mos", "mean", "rating", "average", "aesthetics", "mean_score", "score_mean",
                 "mean_rating", "average_score", "aesthetic_score", "aesthetic_mean")  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset")
COUNT_COLUMN = re.compile(r"(scores?|counts?|votes?|ratings?|bin|c|n|p)[_ ]?(\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class CsvColumns:
    """The columns of a csv; "" or empty for what it does not have. counts: column -> rating."""

    path: str
    score: str
    split: str
    counts: dict[str, float]
    emotions: list[str]


def parse_csv(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """A table of paths and ratings, or one per split; columns found by their usual names, or by options.

    The ends of the ratings are as given, else those of the bins, else the data's range rounded outwards.
    """
    files = _csv_files(root, splits, options)
    sheets = {split: read(Sheet, path) for split, path in files.items()}
    columns = _find_columns([*sheets.values()], options)
    if len(columns.emotions) == 1:
        classes = _named_classes(files, columns.emotions[0], read)
    else:
        classes = _counted_classes(next(iter(sheets.values())), columns.emotions)
    table = joined([_csv_part(sheet, split, columns, classes) for split, sheet in sheets.items()])
    scores = table.scores[~np.isnan(table.scores)]
    low, high = (table.bins[0], table.bins[-1]) if table.bins else round_outwards(scores)
    low = low if options.minimum is None else options.minimum
    high = high if options.maximum is None else options.maximum
    if not low < high:
        raise ValueError(f"datasets: data.minimum must be below data.maximum, got {low:g} and {high:g}.")
    for sheet in sheets.values() if columns.score and not columns.counts else ():
        sheet.numbers(columns.score, low, high)
    target = "distribution" if columns.counts else "score"
    table.rating = Rating(low, high, threshold=(low + high) / 2, target=target)
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
        names = ", ".join(path.name for path in tables) or "none"
        raise FileNotFoundError(
            f"datasets: {root} should hold one csv, or train.csv and test.csv; found {names}. "
            "Choose with data.table=NAME."
        )
    return {"": tables[0]}


def _find_columns(sheets: list[Sheet], options: DataOptions) -> CsvColumns:
    """Chosen by options or by their names in the first table; all tables must have them."""
    sheet = sheets[0]
    chosen = [name.strip() for name in options.emotion_columns.split(",") if name.strip()]
    emotions = [name for name in sheet.columns if name.startswith("emotion_")]
    columns = CsvColumns(
        path=_find_column(sheet, options.path_column, PATH_COLUMNS, "path"),
        score=_find_column(sheet, options.score_column, SCORE_COLUMNS, "score", needed=False),
        split=_find_column(sheet, options.split_column, SPLIT_COLUMNS, "split", needed=False),
        counts=_count_columns(sheet, options),
        emotions=chosen or (["emotion"] if "emotion" in sheet.columns else emotions),
    )
    if not (columns.score or columns.counts or columns.emotions):
        _find_column(sheet, "", SCORE_COLUMNS, "score")
    single = [name for name in (columns.path, columns.score, columns.split) if name]
    for sheet in sheets:
        sheet.need([*single, *columns.counts, *columns.emotions])
    return columns


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
            if not np.isfinite(columns[column]):
                raise ValueError(
                    f"datasets: data.count_columns: '{part}' has no rating; write {column}=RATING."
                )
        if len(columns) < 2 or len(set(columns.values())) < len(columns):
            raise ValueError(
                "datasets: data.count_columns needs two columns or more, each of another rating; got "
                f"{options.count_columns}."
            )
    elif not options.score_column:
        families = defaultdict(dict)
        for column in sheet.columns:
            if match := COUNT_COLUMN.fullmatch(column):
                families[match[1].lower()][column] = float(match[2])
        families = {name: members for name, members in families.items() if len(members) > 1}
        if len(families) > 1:
            raise ValueError(
                f"datasets: {sheet.path.name} has columns numbered after {' and '.join(families)}; "
                "choose the vote counts with data.count_columns=a,b,c (or data.score_column=NAME)."
            )
        columns = next(iter(families.values()), {})
        steps = np.diff(sorted(columns.values()))
        if not np.allclose(steps, steps[:1]):
            raise ValueError(
                f"datasets: {sheet.path.name} has columns {', '.join(sorted(columns, key=columns.get))}: is "
                "one missing between them? If not, name them with data.count_columns=a,b,c."
            )
    return dict(sorted(columns.items(), key=lambda item: item[1]))


def _counted_classes(sheet: Sheet, columns: list[str]) -> tuple[str, ...]:
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


def _named_classes(files: dict[str, Path], column: str, read: Read) -> tuple[str, ...]:
    """The emotions in a column of names, in the files of all splits, whichever are asked for.

    Without the training file not all classes may be seen: then they are EMOTIONS, if no other occurs.
    """
    paths = set(files.values())
    if "" not in files:
        folder = next(iter(paths)).parent
        paths |= {folder / f"{split}.csv" for split in SPLITS if (folder / f"{split}.csv").is_file()}
    sheets = [read(Sheet, path) for path in sorted(paths)]
    texts = {text for sheet in sheets if column in sheet.columns for text in sheet.texts(column)}
    names = {emotion_name(text) for text in texts}
    complete = "" in files or any(path.name == "train.csv" for path in paths)
    if not complete and names <= set(EMOTIONS):
        return EMOTIONS
    return (*(name for name in EMOTIONS if name in names), *sorted(names - set(EMOTIONS)))


def _csv_part(sheet: Sheet, split: str, columns: CsvColumns, classes: tuple[str, ...]) -> Table:
    """The rows of one file, without their Rating. split: of all rows, or "" for a file of several."""
    ids = sheet.ids(columns.path)
    if columns.counts:
        votes = sheet.counts(list(columns.counts))
        scores, words = means(votes, list(columns.counts.values())), f"votes in {', '.join(columns.counts)}"
    elif columns.score:
        votes, scores, words = None, sheet.numbers(columns.score), f"scores in {columns.score}"
    else:
        votes, scores, words = None, np.full(len(ids), np.nan), "emotions only"
    splits = np.full(len(ids), split, dtype="<U5")
    if columns.split and not split:
        splits = np.array([SPLIT_WORDS.get(word.lower(), "") for word in sheet.texts(columns.split)])
        if (splits == "").any():
            raise sheet.error(splits == "", columns.split, "train, val or test")
    emotions = None
    if len(columns.emotions) == 1:
        emotions = one_hot([emotion_name(text) for text in sheet.texts(columns.emotions[0])], classes)
    elif columns.emotions:
        emotions = sheet.counts(columns.emotions)
    return Table(
        name="csv",
        ids=ids,
        names=[native_path(name) for name in ids],
        split=splits,
        protocol=dict.fromkeys([split] if split else SPLITS, f"{sheet.path.name} ({words})"),
        scores=scores,
        rating=Rating(0, 1, 0.5),
        votes=votes,
        bins=tuple(columns.counts.values()),
        emotions=emotions,
        emotion_classes=classes,
    )


def round_outwards(scores: np.ndarray) -> tuple[float, float]:
    """The likely ends of the scale of (n,) scores: 1.3 to 4.8 -> 1 to 5, 4 to 88 -> 0 to 90."""
    if not scores.size:
        return 0.0, 1.0
    low, high = float(scores.min()), float(scores.max())
    digits = 0 if low == high else int(-np.floor(np.log10(max(high - low, 1e-12) / 2)))
    step = 10.0**-digits
    low, high = round(np.floor(low / step) * step, 12), round(np.ceil(high / step) * step, 12)
    return low, high if high > low else low + step


def native_path(name: str) -> str:
    """A path as this system writes it: ~ is expanded, and the backslashes of Windows become slashes."""
    name = name.replace("\\", "/")
    return Path(name).expanduser().as_posix() if name.startswith("~/") else name
