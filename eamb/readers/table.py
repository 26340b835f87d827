"""Tables of labels: read with checks, joined, and their pictures found.

From top to bottom: what a reader returns; a file as a Sheet of checked columns; joining tables; finding the
pictures that they name.
"""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from eamb.readers.rated import ANY_CASE_ENDINGS, SPLITS, Copies, LeftOut, take_rows


@dataclass(frozen=True)
class Rating:
    """How a set rates: a picture is high above `threshold`, and at it too if `inclusive`.

    target: what "auto" trains on. scored: False if the scores are only the labels 0 and 1.
    """

    minimum: float
    maximum: float
    threshold: float
    inclusive: bool = False
    target: str = "score"
    scored: bool = True

    def is_high(self, scores: np.ndarray) -> np.ndarray:
        """(n,) ratings -> (n,) bool, by exact comparison."""
        return scores >= self.threshold if self.inclusive else scores > self.threshold


# For sets of emotions only, which have no ratings.
NO_RATING = Rating(0.0, 1.0, threshold=0.5)


@dataclass
class Table:
    """The rows of a set's label files, before pictures are looked for and validation is split off.

    names: each picture's path, relative to one of `places`.
    split: (n,) of "train", "val", "test", or "" where the hash of the id is to decide.
    protocol: split -> where its rows come from, in words.
    votes: (n, K) counts per rating of `bins`; emotions: (n, E) counts. Rows of NaN where a file has none.
    twins: groups of ids that the set lists as the same picture; None if they are to be found by content.
    test_share: of the rows whose split is "".
    copies: what prepared copies the pictures are, if any; sources: then the hash of each original, n.
    """

    name: str
    ids: list[str]
    names: list[str]
    split: np.ndarray
    scores: np.ndarray
    rating: Rating
    places: list[Path] = field(default_factory=list)
    protocol: dict[str, str] = field(default_factory=dict)
    votes: np.ndarray | None = None
    bins: tuple[float, ...] = ()
    emotions: np.ndarray | None = None
    emotion_classes: tuple[str, ...] = ()
    twins: list[list[str]] | None = None
    left_out: dict[str, list[LeftOut]] = field(default_factory=dict)
    test_share: float = 0.10
    copies: tuple[Copies, ...] = ()
    sources: list[str] = field(default_factory=list)

    @property
    def has_own_split(self) -> bool:
        return not (self.split == "").any()

    def take(self, indices: np.ndarray) -> Table:
        return replace(
            self,
            ids=[self.ids[i] for i in indices],
            names=[self.names[i] for i in indices],
            split=self.split[indices],
            scores=self.scores[indices],
            votes=take_rows(self.votes, indices),
            emotions=take_rows(self.emotions, indices),
        )


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LARGEST = 1e15  # larger than any rating or prediction; squares and sums of such numbers are still finite

Read = Callable  # what `read_once` returns


def read_once() -> Read:
    """A function read(kind, path, ...) that gives kind(path, ...), as in read(Sheet, path), and keeps it, so
    that no file is opened twice."""
    return functools.cache(lambda kind, path, *arguments: kind(path, *arguments))


def read_text(path: Path) -> str:
    """A file's text, unpacked if it is a .gz, without a byte order mark.

    Raises:
        ValueError, FileNotFoundError: no such file; a damaged .gz; not UTF-8, with the row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"datasets: there is no file {path}; is --data-root right?")
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, str(error)) from error
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, f"row {row} is not UTF-8; save it in this encoding") from error
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise _unreadable(path, f"row {row} has a zero byte; save it as plain text in UTF-8")
    return text


def read_json(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"datasets: there is no file {path}; is --data-root right?")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"datasets: {path.name} is not readable JSON: {error}.") from error


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"datasets: {path.name} is not a readable table: {reason}.")


def as_number(text: str) -> float:
    """NaN for all but plain decimals: Python's float also takes 1_0 and the digits of other scripts."""
    text = text.strip()
    return float(text) if NUMBER.fullmatch(text) else np.nan


def read_records(path: Path, separated: bool) -> list[tuple[int, list[str]]]:
    """(row, cells) of each record that is not blank; a cell in quotes may span several rows.

    Args:
        separated: by comma, semicolon or tab, whichever is most frequent in the first line; else by blanks.

    Raises:
        ValueError, FileNotFoundError: as `Sheet`.
    """
    if not separated:
        lines = enumerate(io.StringIO(read_text(path), newline=None), 1)
        return [(row, words) for row, line in lines if (words := line.split())]
    lines = io.StringIO(read_text(path), newline="")
    header = next((line for line in lines if line.strip()), "")
    lines.seek(0)
    reader = csv.reader(lines, delimiter=max(",;\t", key=header.count), strict=True)
    records, row = [], 1
    try:
        for cells in reader:
            if "".join(cells).strip():
                records.append((row, cells))
            row = reader.line_num + 1
    except csv.Error as error:
        raise _unreadable(path, f"row {row}: {error}") from error
    return records


class Sheet:
    """One table file as columns of text, checked as they are read. Rows are numbered as an editor shows them.

    Every row must have as many cells as the header, because a lost or doubled cell would shift the others.
    That is why csv.reader reads it: pandas fills up short rows and ignores misplaced quotes.

    Args:
        names: of the columns, for a file without a header whose cells are separated by blanks.

    Raises:
        ValueError, FileNotFoundError: no such file; no table in UTF-8, with the row that is wrong; no rows.
    """

    def __init__(self, path: Path, names: Sequence[str] = ()):
        self.path = path
        records = read_records(path, separated=not names)
        if not (names or records):
            raise _unreadable(path, "it is empty")
        self.columns = [*names] or [name.strip() for name in records.pop(0)[1]]
        twice = [name for name in self.columns if name and self.columns.count(name) > 1]
        if twice:
            raise _unreadable(path, f"its header has '{twice[0]}' twice")
        header = None if names else self.columns
        for row, cells in records:
            if len(cells) != len(self.columns):
                raise _unreadable(path, f"row {row} has {len(cells)} cells, expected {len(self.columns)}")
            if header and cells[0].strip() == header[0] and [cell.strip() for cell in cells] == header:
                raise _unreadable(path, f"row {row} is the header again")
        if not records:
            raise ValueError(f"datasets: {path.name} has no rows.")
        self.rows = [row for row, _ in records]
        self.cells = dict(zip(self.columns, zip(*(cells for _, cells in records), strict=True), strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def need(self, columns: Iterable[str], hint: str = "") -> None:
        missing = [column for column in columns if column not in self.columns]
        if missing:
            present = ", ".join(self.columns[:12]) + (", ..." if len(self.columns) > 12 else "")
            raise ValueError(
                f"datasets: {self.path.name} has no column '{missing[0]}' (found: {present}).{hint}"
            )

    def error(self, bad: np.ndarray, column: str, expected: str) -> ValueError:
        """About the first row of the mask `bad` (n,)."""
        first, more = int(np.flatnonzero(bad)[0]), int(bad.sum()) - 1
        cell = " ".join(self.cells[column][first].split())[:80]
        cell = f"'{cell}'" if cell else "empty"
        others = f" ({more} more like it)" if more else ""
        return ValueError(
            f"datasets: {self.path.name} row {self.rows[first]}: '{column}' is {cell}, expected "
            f"{expected}{others}."
        )

    def numbers(self, column: str, minimum: float = -LARGEST, maximum: float = LARGEST) -> np.ndarray:
        """(n,) float64, each finite and in [minimum, maximum]."""
        value_of = {cell: as_number(cell) for cell in set(self.cells[column])}
        values = np.fromiter(map(value_of.__getitem__, self.cells[column]), np.float64)
        if not np.isfinite(values).all():
            raise self.error(~np.isfinite(values), column, "a number")
        outside = (values < minimum) | (values > maximum)
        if outside.any():
            raise self.error(outside, column, f"a value from {minimum:g} to {maximum:g}")
        return values

    def counts(self, columns: Sequence[str], most: int = 0) -> np.ndarray:
        """(n, K) numbers of votes, none negative, at least one in each row.

        Args:
            most: votes in a row, and each number must be whole; 0: no limit, and shares are fine too.
        """
        votes = np.stack([self.numbers(column) for column in columns], axis=1)
        wrong = (votes < 0) | (votes % 1 != 0) if most else votes < 0
        for k in np.flatnonzero(wrong.any(0)):
            whole = "whole " if most else ""
            raise self.error(wrong[:, k], columns[k], f"a {whole}number of votes, 0 or more")
        total, between = votes.sum(1), f"in {columns[0]} to {columns[-1]}"
        if (total == 0).any():
            raise self.error(total == 0, columns[0], f"at least one vote {between}")
        if most and (total > most).any():
            largest = columns[int(votes[np.argmax(total > most)].argmax())]
            raise self.error(total > most, largest, f"at most {most} votes {between}")
        return votes

    def counts_if_there(self, columns: Sequence[str], most: int) -> np.ndarray | None:
        """As `counts`; None if the table has none of the columns. Having only some of them is an error."""
        if not set(columns) & set(self.columns):
            return None
        self.need(columns)
        return self.counts(columns, most)

    def texts(self, column: str) -> list[str]:
        """n strings without surrounding blanks, none empty."""
        values = [cell.strip() for cell in self.cells[column]]
        if "" in values:
            raise self.error(np.array([not value for value in values]), column, "a text")
        return values

    def ids(self, column: str, ending: str = "") -> list[str]:
        """n different strings, as `texts`, with `ending` removed."""
        ids = [text.removesuffix(ending) for text in self.texts(column)]
        if len(set(ids)) < len(ids):
            repeated = pd.Series(ids).duplicated().to_numpy()
            first = self.rows[ids.index(ids[int(np.argmax(repeated))])]
            raise self.error(repeated, column, f"each picture once, but row {first} has it too")
        return ids

    def codes(self, column: str, names: Sequence[str]) -> np.ndarray:
        """(n, E) one-hot of a column of `names`."""
        positions = pd.Index(names).get_indexer(self.texts(column))
        if (positions < 0).any():
            raise self.error(positions < 0, column, f"one of {', '.join(names)}")
        return np.eye(len(names))[positions]


def split_files(folder: Path, splits: Sequence[str], ending: str = ".csv") -> dict[str, Path]:
    """split -> its file; without a val.csv the training csv also serves validation."""
    wanted = set(splits)
    if "val" in wanted and not (folder / f"val{ending}").is_file():
        wanted = wanted - {"val"} | {"train"}
    files = {split: folder / f"{split}{ending}" for split in SPLITS if split in wanted}
    for split, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f"datasets: the {split} split is asked for and {path} does not exist.")
    return files


def one_hot(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """n of the `classes` -> (n, E)."""
    return np.eye(len(classes))[pd.Index(classes).get_indexer(names)]


def means(votes: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """(n, K) counts -> (n,) mean ratings. Integer sums are exact, so a mean of 5 is exactly 5."""
    return (votes @ np.asarray(bins, dtype=np.float64)) / votes.sum(1)


def joined(parts: list[Table]) -> Table:
    """The tables of several files as one; a picture may be in only one of them."""
    ids = pd.Series([i for part in parts for i in part.ids])
    twice = ids[ids.duplicated()]
    if len(twice):
        files = " and ".join(words for part in parts for words in part.protocol.values())
        raise ValueError(
            f"datasets: {len(twice)} pictures are in more than one of {files}, first '{twice.iloc[0]}'."
        )
    counts = {}
    for name in ("votes", "emotions"):
        columns = [getattr(part, name) for part in parts]
        width = next((votes.shape[1] for votes in columns if votes is not None), 0)
        filled = [
            np.full((len(part.ids), width), np.nan) if votes is None else votes
            for part, votes in zip(parts, columns, strict=True)
        ]
        counts[name] = np.concatenate(filled) if width else None
    return replace(
        parts[0],
        ids=ids.tolist(),
        names=[name for part in parts for name in part.names],
        split=np.concatenate([part.split for part in parts]),
        protocol={split: words for part in parts for split, words in part.protocol.items()},
        scores=np.concatenate([part.scores for part in parts]),
        **counts,
    )


def find_files(
    names: Sequence[str], places: Sequence[Path], what: str, area: str = "datasets"
) -> list[str | None]:
    """The path of each file, by its name below one of `places`, as written or with a picture ending added.

    Each folder is listed once; asking about each file would take long.

    Args:
        what, area: for the error: "pictures of ava", and its first word.

    Raises:
        FileNotFoundError: not one of them exists, so the folder is wrong.
    """
    listed: dict[str, list[tuple[str, set[str]]]] = {}  # "folder/" of a name -> folders and the files in them
    endings = ("", *ANY_CASE_ENDINGS)

    def find(name: str) -> str | None:
        file = name.rpartition("/")[2]
        head = name.removesuffix(file)  # "" or "folder/" or "/absolute/folder/"
        if head not in listed:
            folders = dict.fromkeys(os.path.join(place, head, "") for place in places)  # noqa: PTH118
            listed[head] = [(folder, file_names(folder)) for folder in folders]
        for folder, files in listed[head]:
            for ending in endings if files else ():
                if file + ending in files:
                    return folder + file + ending
        return None

    paths = [find(name) for name in names]
    if paths and not any(paths):
        raise FileNotFoundError(
            f"{area}: none of the {len(paths):,} {what} exists, e.g. '{names[0]}'; "
            f"looked in {' and '.join(dict.fromkeys(map(str, places)))}. Is --data-root right?"
        )
    return paths


def file_names(folder: str) -> set[str]:
    """The files in a folder, without broken links; none if there is no such folder."""
    names = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        names.add(entry.name)
                except OSError:
                    continue
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return set()
    return names


def find_pictures(table: Table) -> tuple[Table, list[str]]:
    """The table without the pictures that have no file, and the paths of the others.

    Raises:
        FileNotFoundError: not one of the pictures exists, so the folder is wrong.
    """
    paths = find_files(table.names, table.places, f"pictures of {table.name}")
    present = table.take(np.flatnonzero([path is not None for path in paths]))
    present.left_out = {split: list(rows) for split, rows in table.left_out.items()}
    for i in np.flatnonzero([path is None for path in paths]):
        row = LeftOut(table.ids[i], f"no picture file {table.names[i]}")
        present.left_out.setdefault(str(table.split[i]), []).append(row)
    return present, [path for path in paths if path is not None]
