"""Rows of scores: csv, jsonl and the table on the terminal; and those that an interrupted run has written."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, TextIO

from tqdm import tqdm

from eamb.files import as_cell, csv_line, encodable, printable, safe_path
from eamb.inference.photographs import PictureFile
from eamb.inference.scorer import Scored
from eamb.network.outputs import Scale

# Of every table; fields of Scored.
SCORE_COLUMNS = ("score", "score_min", "score_max", "score_std", "percentile")
COLUMNS = ("path", *SCORE_COLUMNS, "emotion", "emotion_probability", "error")

WriteRow = Callable[[dict], object]


def column_names(scale: Scale, emotions: Sequence[str]) -> list[str]:
    """Columns of a table: those of every table, one per emotion of `emotions`, one per rating bin."""
    return [*COLUMNS, *(f"emotion_{name}" for name in emotions), *(f"p_{value:g}" for value in scale.bins)]


def as_row(scored: Scored, columns: Sequence[str]) -> dict[str, str | float | None]:
    """The values of the columns, numbers with six significant digits, None where there is nothing to say."""
    values = {name: getattr(scored, name) for name in COLUMNS}
    values |= {f"emotion_{name}": value for name, value in scored.emotions.items()}
    values |= {f"p_{value:g}": share for value, share in scored.distribution.items()}
    return {name: as_cell(values.get(name)) for name in columns}


def csv_rows(file: TextIO, columns: Sequence[str]) -> WriteRow:
    if not file.tell():
        file.write(csv_line(columns))
    return lambda row: file.write(csv_line((row | {"path": safe_path(row["path"])}).values()))


def json_rows(file: TextIO, columns: Sequence[str]) -> WriteRow:
    return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")


def table_rows(file: TextIO, columns: Sequence[str]) -> WriteRow:
    """Aligned columns for people; the path stands last, so that rows can be printed as they come."""
    shown = ["score", "percentile", "emotion", *(name for name in columns if name.startswith("emotion_"))]
    shown.remove("emotion_probability")

    def write_line(cells: Sequence[str], path: str) -> None:
        line = "  ".join(f"{cell:>{max(len(name), 11)}}" for name, cell in zip(shown, cells, strict=True))
        encoding = file.encoding or "utf-8"
        line = f"{line}  {path}".encode(encoding, "backslashreplace").decode(encoding)
        tqdm.write(line, file=file)  # around the progress bar, which may be on the same screen

    def write_row(row: dict) -> None:
        error = f": {printable(row['error'])}" if row["error"] else ""
        write_line([table_cell(name, row[name]) for name in shown], printable(row["path"]) + error)

    write_line(shown, "path")
    return write_row


def table_cell(column: str, value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if column == "percentile" else f"{value:.2f}"
    return value or "-"


FORMATS = {".csv": csv_rows, ".jsonl": json_rows}


@contextmanager
def open_rows(output: Path | None, mode: str, columns: Sequence[str]) -> Iterator[WriteRow]:
    """A function that writes a row at once and whole, to the file or as a table to standard output.

    Args:
        mode: "x" for a new file, "w" to overwrite one, "a" to go on with one.
    """
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        opened = output.open(mode, encoding="utf-8", newline="")
    else:
        opened = nullcontext(sys.stdout)
    with opened as file:
        write = (FORMATS[output.suffix.lower()] if output else table_rows)(file, columns)

        def write_now(row: dict) -> None:
            write(row)
            file.flush()

        yield write_now


# ---- going on with an interrupted run

LONGEST_ROW = 1 << 16  # bytes; a path has at most 4,096 of them


class WrittenRow(NamedTuple):
    """What an interrupted run wrote of one picture."""

    path: str
    score: float | None
    error: str | None


def read_rows(output: Path, columns: Sequence[str]) -> tuple[list[WrittenRow], int]:
    """The whole rows of an interrupted run, and how many bytes of the file they take with the header.

    What follows them is a row, or a header, that was being written when the run ended.

    Raises:
        ValueError: the file has other columns, or a row is damaged.
    """
    as_csv = output.suffix.lower() == ".csv"
    header = csv_line(columns).encode() if as_csv else b""
    other_columns = ValueError(
        f"predict: {output} has other columns than this run would write; go on with the same --checkpoint "
        "and --emotions, or overwrite it with --force"
    )
    with output.open("rb") as file:
        start = file.read(len(header))
        if not header.startswith(start):
            raise other_columns
        rows, length, content = [], len(header) if start == header else 0, b""
        for line in file:
            content += line
            # A path may hold a line break, in quotes; quotes in a text are doubled, so they count for none.
            whole = content.endswith(b"\n") and not (as_csv and content.count(b'"') % 2)
            if not whole and len(content) <= LONGEST_ROW:
                continue
            row = parse_row(content, columns if as_csv else None)
            if row is None:
                raise ValueError(
                    f"predict: row {len(rows) + 1} of {output} is damaged; repair it, or write all anew with "
                    "--force"
                )
            if list(row) != list(columns):
                raise other_columns
            rows.append(WrittenRow(str(row["path"]), row["score"], row["error"] or None))
            length, content = length + len(content), b""
    return rows, length


def parse_row(content: bytes, columns: Sequence[str] | None) -> dict | None:
    """A row by column, its score a number or None; None if the row is damaged.

    Args:
        columns: of a csv file; None if the row is JSON, which names its own.
    """
    try:
        if columns is None:
            row = dict(json.loads(content))
        else:
            [cells] = csv.reader([content.decode()], strict=True)
            row = dict(zip(columns, cells, strict=True))
        return row | {"score": None if row.get("score") in ("", None) else float(row["score"])}
    except (ValueError, TypeError, csv.Error):
        return None


def check_rows(rows: Sequence[WrittenRow], pictures: Sequence[PictureFile], output: Path) -> None:
    """Raises ValueError where the rows are not those of the first pictures."""
    if len(rows) > len(pictures):
        raise ValueError(
            f"predict: {output} has {len(rows)} rows and there are {len(pictures)} pictures; --resume needs "
            "the pictures of the interrupted run"
        )
    for number, (row, picture) in enumerate(zip(rows, pictures, strict=False), 1):
        if row.path.removeprefix("./") != encodable(picture.path).removeprefix("./"):
            raise ValueError(
                f"predict: row {number} of {output} is of {printable(row.path)}, and picture {number} is "
                f"{printable(picture.path)}; --resume needs the pictures of the interrupted run, in its order"
            )


def check_score(row: WrittenRow, scored: Scored, output: Path) -> None:
    """Raises ValueError if a picture does not get the score again that an interrupted run gave it."""
    if scored.error or abs(scored.score - row.score) > 1e-4 * (scored.score_max - scored.score_min):
        raise ValueError(
            f"predict: {output} gives {printable(row.path)} the score {row.score:g}, and now it is "
            f"{scored.error or format(scored.score, 'g')}; go on with the same weights and settings, or "
            "overwrite it with --force"
        )
