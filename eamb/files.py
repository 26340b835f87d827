"""Files written whole, their hashes, and csv files whose texts spreadsheets read safely."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Spreadsheets take a cell that begins so for a formula, which may start programs.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MARK = "'"
MARKED = re.compile(f"{MARK}*[{re.escape(''.join(FORMULA))}]")


@contextmanager
def written_whole(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A temporary name to write to; renamed to `path` when all is on the disk, removed if anything fails.

    The file that was there before is kept as `previous`, if that is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        if previous and path.exists():
            path.replace(previous)
        temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            with suppress(OSError):  # shared folders often cannot
                os.fsync(folder)  # so that the renaming outlasts a power cut
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_csv(path: Path, rows: Iterable[Iterable]) -> None:
    """Writes a csv file whole, row by row as `csv_line`; the first one is the header."""
    with written_whole(Path(path)) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        file.writelines(map(csv_line, rows))


def csv_line(cells: Iterable) -> str:
    """A row of a csv file with its line end; texts are `safe`, None is an empty cell.

    Texts are quoted where a program that guesses the separator might cut one at a semicolon or tab.
    """
    cells = [safe(cell) if isinstance(cell, str) else cell for cell in cells]
    ambiguous = any(isinstance(cell, str) and (";" in cell or "\t" in cell) for cell in cells)
    line = io.StringIO(newline="")
    csv.writer(line, quoting=csv.QUOTE_NONNUMERIC if ambiguous else csv.QUOTE_MINIMAL).writerow(cells)
    return line.getvalue()


def safe(text: str) -> str:
    """The text, `encodable`, marked if it would be a formula; `original` takes the mark off."""
    text = encodable(text)
    return MARK + text if MARKED.match(text) else text


def original(text: str) -> str:
    return text[len(MARK) :] if text.startswith(MARK) and MARKED.match(text) else text


def safe_path(path: str) -> str:
    """A path as a safe cell that names the same file without `original`: `-x.jpg` becomes `./-x.jpg`."""
    path = encodable(path)
    return f"./{path}" if MARKED.match(path) else path


def as_cell(value: str | float | None) -> str | float | None:
    """A number with six significant digits; a text `encodable`."""
    if isinstance(value, str):
        return encodable(value)
    return None if value is None else float(f"{value:.6g}")


def encodable(text: str) -> str:
    r"""The text with what UTF-8 has no place for written out: a byte of a file name like \xff, half a letter
    of JSON like \ud800."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    r"""`encodable`, on one line: control characters are written like \n."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in encodable(text))
