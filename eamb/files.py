"""Paths with ~ and accents, atomic writing, hashes, and csv files that are safe to open in a spreadsheet."""

# Paths are plain texts here: Path("./~") would be "~", and a Path for each of 250,000 pictures takes seconds.
# ruff: noqa: PTH111, PTH112, PTH113, PTH118, PTH122

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Spreadsheets read a cell that begins with one of these as a formula, which may start programs.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MARK = "'"
MARKED = re.compile(f"{MARK}*[{re.escape(''.join(FORMULA))}]")


def home(path: str) -> str:
    """The path with ~ or ~name at its start replaced by that home folder; ~name stays if no such user exists.

    Raises:
        ValueError: no such home folder is known.
    """
    expanded = os.path.expanduser(path)
    if re.match(r"~[^/\\]*[/\\]|~$", expanded) and not os.path.lexists(path):
        raise ValueError(f"files: {path}: this home folder is not known; write the path without ~")
    return expanded


def home_in_row(path: str) -> str:
    """A path in a list or table: `home` for ~/ alone; an unknown one stays, and costs only its row."""
    return os.path.expanduser(path) if path.startswith("~/") else path


def nfc(text: str) -> str:
    """The text in composed form (NFC): macOS and its archives store the accent of é as another character."""
    return unicodedata.normalize("NFC", text)


def list_folder(folder: str) -> dict[str, list[str]]:
    """A folder's files by the `nfc` of their names without the ending, its folders by that of name and slash.

    Broken links are left out; a folder that cannot be listed counts as empty.
    """
    names = defaultdict(list)
    with suppress(OSError, ValueError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) or os.path.isfile(entry):
                names[os.path.splitext(nfc(entry.name))[0]].append(entry.name)
            elif os.path.isdir(entry):
                names[f"{nfc(entry.name)}/"].append(entry.name)
    return names


def on_disk(path: str, listed: Callable[[str], dict[str, list[str]]]) -> str:
    """The path as the disk spells it, if just one there has the same `nfc`; `listed` is `list_folder`."""
    folder, name = os.path.split(path)
    if path.isascii() or not name or os.path.lexists(path):
        return path
    folder, composed = on_disk(folder, listed), nfc(name)
    keys = os.path.splitext(composed)[0], f"{composed}/"
    fitting = [each for key in keys for each in listed(folder).get(key, ()) if nfc(each) == composed]
    return os.path.join(folder, *fitting) if len(fitting) == 1 else path


def told_apart(names: Collection[str]) -> list[str]:
    """The names in quotes for a message, escaped if two of them look the same."""
    alike = len({nfc(name) for name in names}) < len(names)
    return [ascii(name) if alike else f"'{name}'" for name in names]


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
                os.fsync(folder)  # so that the renaming survives a power cut
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
    r"""The text with what UTF-8 cannot encode escaped: a stray byte of a file name as \xff, a lone surrogate
    from JSON as \ud800."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    r"""`encodable`, on one line: control characters are written like \n."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in encodable(text))
