"""Anyone's csv of pictures and ratings."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eamb.network.outputs import EMOTIONS
from eamb.readers.rated import SPLIT_WORDS, SPLITS, DataOptions, emotion_name
from eamb.readers.table import Rating, Sheet, Table, as_number, joined, means, one_hot, split_files

PATH_COLUMNS = (
    *("path", "image", "file", "name", "picture", "photo", "img", "filename", "filepath", "imagename"),
    *("file_name", "file_path", "image_name", "image_path", "image_file", "image_id", "img_name", "img_path"),
)

SCORE_COLUMNS = (
    *("score", "mos", "mean", "rating", "average", "aesthetics", "mean_score", "score_mean", "mean_rating"),
    *("average_score", "aesthetic_score", "aesthetic_mean"),
)

SPLIT_COLUMNS = ("split", "set", "subset")

COUNT_COLUMN = re.compile(r"(scores?|counts?|votes?|ratings?|bin|c|n|p)[_ ]?(\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class CsvColumns:
    """Which columns of a csv mean what; "" or nothing for what it does not have. counts: column -> rating."""

    path: str
    score: str
    split: str
    counts: dict[str, float]
    emotions: list[str]
    emotion_classes: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        single = [name for name in (self.path, self.score, self.split) if name]
        return [*single, *self.counts, *self.emotions]


def parse_csv(root: Path, splits: tuple[str, ...], options: DataOptions) -> Table:
    """A table of paths and ratings, or one per split; columns found by their usual names, or by options."""
    files = _csv_files(root, splits, options)
    sheets = {split: Sheet(path) for split, path in files.items()}
    columns = _csv_columns(list(sheets.values()), options)
    if len(columns.emotions) == 1:
        columns = replace(columns, emotion_classes=_named_classes(files, columns.emotions[0]))
    table = joined([_csv_part(sheet, split, columns) for split, sheet in sheets.items()])
    table.rating = _csv_rating(table, columns, sheets.values(), options)
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
        found = ", ".join(path.name for path in tables) or "none"
        raise FileNotFoundError(
            f"datasets: {root} should hold one csv, or train.csv and test.csv; found {found}. "
            "Choose with data.table=NAME."
        )
    return {"": tables[0]}


def _csv_columns(sheets: list[Sheet], options: DataOptions) -> CsvColumns:
    """Found in the first table by option or by name; all tables must have them."""
    sheet = sheets[0]
    chosen = [name.strip() for name in options.emotion_columns.split(",") if name.strip()]
    usual = [c for c in sheet.columns if c == "emotion"] or [
        c for c in sheet.columns if c.startswith("emotion_")
    ]
    columns = CsvColumns(
        path=_find_column(sheet, options.path_column, PATH_COLUMNS, "path"),
        score=_find_column(sheet, options.score_column, SCORE_COLUMNS, "score", needed=False),
        split=_find_column(sheet, options.split_column, SPLIT_COLUMNS, "split", needed=False),
        counts=_count_columns(sheet, options),
        emotions=chosen or usual,
        emotion_classes=(),
    )
    if not columns.score and not columns.counts and not columns.emotions:
        _find_column(sheet, "", SCORE_COLUMNS, "score")
    for each in sheets:
        each.need(columns.used)
    return replace(columns, emotion_classes=_emotion_classes(sheet, columns.emotions))


def _find_column(sheet: Sheet, chosen: str, usual: Sequence[str], what: str, needed: bool = True) -> str:
    """The column an option names, or the only one with a usual name, or "" where none is needed."""
    if chosen:
        sheet.need([chosen], f" data.{what}_column asks for it.")
        return chosen
    found = [column for column in sheet.columns if column.lower() in usual]
    if len(found) == 1 or not (found or needed):
        return (found or [""])[0]
    saw = f"{' and '.join(found)} could be" if found else f"found {', '.join(sheet.columns[:12])}"
    raise ValueError(
        f"datasets: {sheet.path.name}: which column is the {what}? ({saw}.) Say data.{what}_column=NAME."
    )


def _count_columns(sheet: Sheet, options: DataOptions) -> dict[str, float]:
    """Column -> rating, in ascending order; as chosen, or columns like score1, score2, ..."""
    if options.count_columns:
        return _chosen_counts(options.count_columns)
    if options.score_column:
        return {}
    families = defaultdict(dict)
    for column in sheet.columns:
        match = COUNT_COLUMN.fullmatch(column)
        if match:
            families[match[1].lower()][column] = float(match[2])
    families = {name: columns for name, columns in families.items() if len(columns) > 1}
    if len(families) > 1:
        raise ValueError(
            f"datasets: {sheet.path.name} has columns numbered after {' and '.join(families)}; "
            "say which are vote counts with data.count_columns=a,b,c (or data.score_column=NAME)."
        )
    columns = dict(sorted(next(iter(families.values()), {}).items(), key=lambda item: item[1]))
    steps = np.diff(list(columns.values()))
    if not np.allclose(steps, steps[:1]):
        raise ValueError(
            f"datasets: {sheet.path.name} has columns {', '.join(columns)}: is one missing between them? "
            "If not, name them with data.count_columns=a,b,c."
        )
    return columns


def _chosen_counts(text: str) -> dict[str, float]:
    """From "a1,a2" or "low=1,high=5": column -> rating, in ascending order."""
    columns = {}
    for part in text.split(","):
        column, _, rating = part.strip().partition("=")
        rating = rating or (re.search(r"\d+(\.\d+)?$", column) or [""])[0]
        columns[column] = as_number(rating)
        if not np.isfinite(columns[column]):
            raise ValueError(f"datasets: data.count_columns: '{part}' has no rating; write {column}=RATING.")
    if len(columns) < 2 or len(set(columns.values())) < len(columns):
        raise ValueError(
            f"datasets: data.count_columns needs two columns or more, each of another rating; got {text}."
        )
    return dict(sorted(columns.items(), key=lambda item: item[1]))


def _emotion_classes(sheet: Sheet, columns: list[str]) -> tuple[str, ...]:
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


def _named_classes(files: dict[str, Path], column: str) -> tuple[str, ...]:
    """The emotions in a column of names, whichever splits are asked for: the files beside are read too.

    Without training pictures nobody knows which classes a set has: the eight common ones, if it names no
    other.
    """
    paths = set(files.values())
    if "" not in files:
        folder = next(iter(paths)).parent
        paths |= {folder / f"{split}.csv" for split in SPLITS if (folder / f"{split}.csv").is_file()}
    sheets = [Sheet(path) for path in sorted(paths)]
    texts = [text for sheet in sheets if column in sheet.columns for text in sheet.texts(column)]
    found = {emotion_name(text) for text in texts}
    complete = "" in files or any(path.name == "train.csv" for path in paths)
    if not complete and found <= set(EMOTIONS):
        return EMOTIONS
    return (*(name for name in EMOTIONS if name in found), *sorted(found - set(EMOTIONS)))


def _csv_part(sheet: Sheet, split: str, columns: CsvColumns) -> Table:
    ids = sheet.ids(columns.path)
    votes = sheet.counts(list(columns.counts)) if columns.counts else None
    bins = tuple(columns.counts.values())
    if votes is not None:
        scores, used = means(votes, bins), f"votes in {', '.join(columns.counts)}"
    elif columns.score:
        scores, used = sheet.numbers(columns.score), f"scores in {columns.score}"
    else:
        scores, used = np.full(len(ids), np.nan), "emotions only"
    return Table(
        name="csv",
        ids=ids,
        names=[native(name) for name in ids],
        split=np.full(len(ids), split, dtype="<U5")
        if split or not columns.split
        else _splits(sheet, columns),
        protocol=dict.fromkeys([split] if split else SPLITS, f"{sheet.path.name} ({used})"),
        scores=scores,
        rating=Rating(0, 1, 0.5, target="score" if votes is None else "distribution"),
        votes=votes,
        bins=bins,
        emotions=_csv_emotions(sheet, columns),
        emotion_classes=columns.emotion_classes,
    )


def _csv_emotions(sheet: Sheet, columns: CsvColumns) -> np.ndarray | None:
    """(n, E) votes or one-hot."""
    if len(columns.emotions) == 1:
        names = [emotion_name(text) for text in sheet.texts(columns.emotions[0])]
        return one_hot(names, columns.emotion_classes)
    return sheet.counts(columns.emotions) if columns.emotions else None


def _splits(sheet: Sheet, columns: CsvColumns) -> np.ndarray:
    """(n,) of train, val and test, from the words that people use for them."""
    found = np.array([SPLIT_WORDS.get(word.lower(), "") for word in sheet.texts(columns.split)])
    if (found == "").any():
        raise sheet.error(found == "", columns.split, "train, val or test")
    return found


def _csv_rating(table: Table, columns: CsvColumns, sheets: Iterable[Sheet], options: DataOptions) -> Rating:
    """Ends and middle of the ratings: as given, else of the bins, else the data's range rounded outwards."""
    known = table.scores[~np.isnan(table.scores)]
    low, high = (table.bins[0], table.bins[-1]) if table.bins else round_outwards(known)
    low = low if options.minimum is None else options.minimum
    high = high if options.maximum is None else options.maximum
    if not low < high:
        raise ValueError(f"datasets: data.minimum must be below data.maximum, got {low:g} and {high:g}.")
    for sheet in sheets if columns.score and not columns.counts else ():
        sheet.numbers(columns.score, low, high)
    return replace(table.rating, minimum=low, maximum=high, threshold=(low + high) / 2)


def round_outwards(scores: np.ndarray) -> tuple[float, float]:
    """The likely ends of the scale of (n,) scores: 1.3 to 4.8 -> 1 to 5, 4 to 88 -> 0 to 90."""
    if not scores.size:
        return 0.0, 1.0
    low, high = float(scores.min()), float(scores.max())
    digits = 0 if low == high else int(-np.floor(np.log10(max(high - low, 1e-12) / 2)))
    step = 10.0**-digits
    low, high = round(np.floor(low / step) * step, 12), round(np.ceil(high / step) * step, 12)
    return low, high if high > low else low + step


def native(name: str) -> str:
    """A path as this system writes it: home folders, and the separators of tables made on Windows."""
    name = name.replace("\\", "/")
    return Path(name).expanduser().as_posix() if name.startswith("~/") else name
