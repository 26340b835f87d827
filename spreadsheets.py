"""Rows of csv files that spreadsheets open as they are meant: no text is a formula, none is cut in two.

Every text can be written: bytes of file names that are not UTF-8 are spelt out.

write = row_writer(file)
write(["id", "prediction"])
write([safe("=1+1.jpg"), 3.2])  # '=1+1.jpg
original("'=1+1.jpg")  # =1+1.jpg
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from typing import TextIO

# A spreadsheet takes a cell that begins so for a formula, and a formula may start programs.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MARK = "'"
MARKED = re.compile(f"{MARK}*[{re.escape(''.join(FORMULA))}]")
SEPARATORS = (";", "\t")  # of tables in other countries


def row_writer(file: TextIO) -> Callable[[Sequence], object]:
    """A function that writes a row; texts in quotes wherever a program that guesses might cut one."""
    plain, quoted = csv.writer(file), csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)

    def write(cells: Sequence) -> object:
        texts = [cell for cell in cells if isinstance(cell, str)]
        risky = any(separator in text for text in texts for separator in SEPARATORS)
        return (quoted if risky else plain).writerow(cells)

    return write


def safe(text: str) -> str:
    """The text, `encodable`, marked if it would be a formula; `original` takes the mark off."""
    text = encodable(text)
    return MARK + text if MARKED.match(text) else text


def original(text: str) -> str:
    return text[len(MARK) :] if text.startswith(MARK) and MARKED.match(text) else text


def encodable(text: str) -> str:
    r"""The text with what UTF-8 has no place for written out: a byte of a file name like \xff, half a letter,
    which JSON may have, like \ud800."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
