"""Tables of labels: what a reader returns; files as checked columns; joining them; finding their pictures."""

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

from eamb.files import list_folder, nfc, on_disk, told_apart
from eamb.readers.endings import extra_shots
from eamb.readers.rated import ANY_CASE_ENDINGS, SPLITS, Copies, LeftOut, take_rows


@dataclass(frozen=True)
class Rating:
    """How a set is rated: a picture is high above `threshold`, and at it too if `inclusive`.

    target: what "auto" trains on. scored: False if the scores are only the labels 0 and 1.
    """

    minimum: float
    maximum: float
    threshold: float
    inclusive: bool = False
    target: str = "score"
    scored: bool = True

    def is_high(self, scores: np.ndarray) -> np.ndarray:
        """(n,) -> (n,) bool, by exact comparison."""
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
    test_share: share of the rows with split "" that becomes "test".
    copies: if the pictures are prepared copies, which ones; sources: then the n hashes of their originals.
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

SPREADSHEETS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")  # how files of .xlsx and .ods begin, and of .xls
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Read = Callable  # what `read_once` returns


def read_once() -> Read:
    """A function read(kind, path, ...) that gives kind(path, ...), as in read(Sheet, path), and keeps it."""
    return functools.cache(lambda kind, path, *arguments: kind(path, *arguments))


def read_text(path: Path) -> str:
    """A file's text, unpacked if it is a .gz, without a byte order mark.

    Raises:
        ValueError, FileNotFoundError: no such file; a damaged .gz; neither UTF-8 nor marked as UTF-16.
    """
    if not path.is_file():
        raise FileNotFoundError(f"datasets: there is no file {path}; is --data-root right?")
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        if content.startswith(SPREADSHEETS):
            raise ValueError("it is a spreadsheet")
        text = content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has zero bytes, as UTF-16 has")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _unreadable(path, f"{error}; save it as text in UTF-8 (CSV UTF-8 in Excel)") from error
    return text


def read_json(path: Path) -> object:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"datasets: {path.name} is not readable JSON: {error}.") from error


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"datasets: {path.name} is not a readable table: {reason}.")


@functools.lru_cache(10_000)
def as_number(text: str) -> float:
    """A number; NaN if not a plain decimal: Python's float also takes 1_0 and the digits of other scripts."""
    text = text.strip()
    return float(text) if NUMBER.fullmatch(text) else np.nan


class Sheet:
    """One table file as columns of text, checked as they are read. Rows are numbered as an editor shows them.

    Columns are separated by comma, semicolon or tab, whichever is most frequent in the header, or as a line
    before it says (sep=;). Between semicolons, decimals may have commas. csv.reader reads the file because
    pandas fills up short rows and ignores misplaced quotes.

    Args:
        names: of the columns, for a file without a header whose cells are separated by blanks.

    Raises:
        ValueError, FileNotFoundError: no such file; not a readable table; no rows.
    """

    def __init__(self, path: Path, names: Sequence[str] = ()):
        self.path, self.separator = path, ""
        if names:
            lines = io.StringIO(read_text(path), newline=None)
            records = [(row, cells) for row, line in enumerate(lines, 1) if (cells := line.split())]
        else:
            lines = io.StringIO(read_text(path), newline="")
            header = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            told = re.fullmatch(r'"?sep=([,;|\t])"?\s*', header)
            self.separator = told[1] if told else max(",;\t", key=header.count)
            reader = csv.reader(lines, delimiter=self.separator, strict=True)
            try:
                records = [(reader.line_num, cells) for cells in reader if "".join(cells).strip()]
            except csv.Error as error:
                raise _unreadable(path, f"row {reader.line_num}: {error}") from error
            records = records[1:] if told else records
            names = [name.strip() for name in records.pop(0)[1]] if records else []
        if not records:
            raise ValueError(f"datasets: {path.name} has no rows.")
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise _unreadable(path, f"its header has '{twice[0]}' twice")
        for row, cells in records:
            if len(cells) != len(names):
                cut = self.separator == "," and len(cells) > len(names)
                hint = "; decimals need a point, texts with commas quotes" if cut else ""
                raise _unreadable(path, f"row {row} has {len(cells)} cells, expected {len(names)}{hint}")
        self.columns = [*names]
        self.rows = [row for row, _ in records]
        self.cells = dict(zip(names, zip(*(cells for _, cells in records), strict=True), strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def need(self, columns: Iterable[str], hint: str = "") -> None:
        missing = [column for column in columns if column not in self.columns]
        if missing:
            found = ", ".join(self.columns[:12])
            raise ValueError(
                f"datasets: {self.path.name} has no column '{missing[0]}' (found: {found}).{hint}"
            )

    def error(self, bad: np.ndarray, column: str, expected: str) -> ValueError:
        """An error about the first row where `bad` (n,) is true."""
        first = int(np.argmax(bad))
        cell = " ".join(self.cells[column][first].split())[:80]
        row, cell = self.rows[first], f"'{cell}'" if cell else "empty"
        return ValueError(f"datasets: {self.path.name} row {row}: '{column}' is {cell}, expected {expected}.")

    def numbers(
        self, column: str, minimum: float = -LARGEST, maximum: float = LARGEST, whole: bool = False
    ) -> np.ndarray:
        """(n,) float64, each in [minimum, maximum]."""
        cells = self.cells[column]
        if self.separator == ";" and not any("." in cell for cell in cells):
            cells = [cell.replace(",", ".") for cell in cells]
        values = np.array([as_number(cell) for cell in cells])
        good = (values >= minimum) & (values <= maximum) & ~(whole & (values != np.round(values)))
        if not good.all():
            kind = "whole number" if whole else "number"
            kind += " with a decimal point" if "," in "".join(cells) and not whole else ""
            raise self.error(~good, column, f"a {kind} from {minimum:g} to {maximum:g}")
        return values

    def counts(self, columns: Sequence[str], most: int = 0) -> np.ndarray:
        """(n, K) votes: 1 to `most` in each row, whole numbers; most=0: no limit, and shares are allowed."""
        largest = most or LARGEST
        votes = np.stack([self.numbers(column, 0, largest, whole=most > 0) for column in columns], axis=1)
        bad = (votes.sum(1) == 0) | (votes.sum(1) > largest)
        if bad.any():
            number = f"1 to {most} votes" if most else "at least one vote"
            raise self.error(bad, columns[0], f"{number} in {columns[0]} to {columns[-1]}")
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
            raise self.error(np.array(values) == "", column, "a text")
        return values

    def ids(self, column: str, ending: str = "") -> list[str]:
        """n different strings, as `texts`, with `ending` removed."""
        ids = [text.removesuffix(ending) for text in self.texts(column)]
        repeated = pd.Series(ids).duplicated()
        if repeated.any():
            raise self.error(repeated, column, "each picture once")
        return ids

    def codes(self, column: str, names: Sequence[str]) -> np.ndarray:
        """(n, E) one-hot of a column of `names`."""
        known = np.isin(self.texts(column), names)
        if not known.all():
            raise self.error(~known, column, f"one of {', '.join(names)}")
        return one_hot(self.texts(column), names)


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
    """n names, each one of the E `classes` -> (n, E)."""
    return np.eye(len(classes))[pd.Index(classes).get_indexer(names)]


def means(votes: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """(n, K) counts -> (n,) mean ratings. Integer sums are exact, so a mean of 5 is exactly 5."""
    return (votes @ np.asarray(bins, dtype=np.float64)) / votes.sum(1)


def joined(parts: list[Table]) -> Table:
    """The tables of several files as one; a picture may be in only one of them."""
    protocol = {split: words for part in parts for split, words in part.protocol.items()}
    ids = pd.Series([i for part in parts for i in part.ids])
    if ids.duplicated().any():
        first = ids[ids.duplicated()].iloc[0]
        raise ValueError(f"datasets: '{first}' is in more than one of {' and '.join(protocol.values())}.")
    columns = {"split": np.concatenate([part.split for part in parts])}
    for name in ("scores", "votes", "emotions"):
        values = [getattr(part, name) for part in parts]
        shape = next((one.shape[1:] for one in values if one is not None), ())
        filled = [
            np.full((len(part.ids), *shape), np.nan) if one is None else one
            for part, one in zip(parts, values, strict=True)
        ]
        columns[name] = np.concatenate(filled) if any(one is not None for one in values) else None
    names = [name for part in parts for name in part.names]
    return replace(parts[0], ids=ids.tolist(), names=names, protocol=protocol, **columns)


def find_files(
    names: Sequence[str], places: Sequence[Path], what: str, area: str = "datasets"
) -> tuple[list[str | None], dict[str, str]]:
    """The path of each file, by its name below one of `places`, as written or with a picture ending added.

    A file whose letters are composed in another way (`nfc`) is found too, if it is the only one. Of several
    none is taken, nor is a file with another ending.

    Returns:
        The paths, None where there is none, and for such names the reason.

    Raises:
        FileNotFoundError: none of `what` ("pictures of ava") exists, so the folder is wrong.
    """
    listed = functools.cache(list_folder)  # asking the disk about each file would take long
    real_folder = functools.cache(lambda folder: on_disk(folder, listed))

    def find(name: str) -> tuple[str | None, str]:
        others = []
        for place in places:
            folder, file = os.path.split(os.path.join(place, name))  # noqa: PTH118
            folder, composed = real_folder(folder), nfc(file)
            files, (stem, ending) = listed(folder), os.path.splitext(composed)  # noqa: PTH122
            there = [one for one in files.get(stem, ()) if nfc(one) == composed]
            there = there or [one for one in files.get(composed, ()) if one.endswith(ANY_CASE_ENDINGS)]
            there = [one for one in there if one.startswith(file)] or there
            there = there if len(there) == 1 else [one for one in there if one not in extra_shots(there)]
            if len(there) == 1:
                return os.path.join(folder, there[0]), ""  # noqa: PTH118
            if there:
                which = " or ".join(told_apart(sorted(there)))
                return None, f"{name} may be {which} in {folder}; remove one, or name it in full"
            if ending in ANY_CASE_ENDINGS:
                others += [one for one in files.get(stem, ()) if one.endswith(ANY_CASE_ENDINGS)]
        hint = f"; there is {' and '.join(dict.fromkeys(others))}" if others else ""
        return None, f"no picture file {name}{hint}"

    found = [find(name) for name in names]
    paths = pd.Series([path for path, _ in found], dtype=object)
    reasons = {name: reason for name, (_, reason) in zip(names, found, strict=True) if reason}
    for i in np.flatnonzero(paths.notna() & paths.duplicated(keep=False)):
        if not paths[i].endswith(names[i]):
            reasons[names[i]] = f"{names[i]}: its file {paths[i]} is that of another row"
            paths[i] = None
    if len(names) and paths.isna().all():
        raise FileNotFoundError(
            f"{area}: none of the {len(paths):,} {what} exists ({reasons[names[0]]}); "
            f"looked in {' and '.join(dict.fromkeys(map(str, places)))}. Is --data-root right?"
        )
    return paths.tolist(), reasons


def find_pictures(table: Table) -> tuple[Table, list[str]]:
    """The table without the pictures that have no file, which are left out, and the paths of the others."""
    paths, reasons = find_files(table.names, table.places, f"pictures of {table.name}")
    there = np.array([path is not None for path in paths], dtype=bool)  # (n,)
    present = table.take(np.flatnonzero(there))
    for i in np.flatnonzero(~there):
        row = LeftOut(table.ids[i], reasons[table.names[i]])
        present.left_out.setdefault(str(table.split[i]), []).append(row)
    return present, [path for path in paths if path is not None]
