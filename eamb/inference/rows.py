"""Rows of scores: csv, jsonl and the table on the terminal; going on with a file that was interrupted."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, TextIO

from tqdm import tqdm

from eamb.files import FORMULA, encodable, printable, row_writer
from eamb.inference.photographs import Found
from eamb.inference.scorer import Scored
from eamb.network.outputs import Scale

COLUMNS = (  # of every table; fields of Scored
    *("path", "score", "score_min", "score_max", "score_std", "percentile"),
    *("emotion", "emotion_probability", "error"),
)

Write = Callable[[dict], object]


def column_names(scale: Scale, emotions: Sequence[str]) -> list[str]:
    """Columns of a table: those of every table, one per emotion of `emotions`, one per rating bin."""
    return [*COLUMNS, *(f"emotion_{name}" for name in emotions), *(f"p_{value:g}" for value in scale.bins)]


def as_row(scored: Scored, columns: Sequence[str]) -> dict[str, str | float | None]:
    """The values of the columns, numbers with six significant digits, None where there is nothing to say."""
    known = {name: getattr(scored, name) for name in COLUMNS}
    known |= {f"emotion_{name}": value for name, value in scored.emotions.items()}
    known |= {f"p_{value:g}": share for value, share in scored.distribution.items()}
    return {name: as_cell(known.get(name)) for name in columns}


def as_cell(value: str | float | None) -> str | float | None:
    if isinstance(value, str):
        return encodable(value)
    return None if value is None else float(f"{value:.6g}")


def csv_rows(file: TextIO, columns: Sequence[str]) -> Write:
    write = row_writer(file)
    if not file.tell():
        write(columns)
    return lambda row: write(list(without_formulas(row).values()))


def without_formulas(row: dict) -> dict:
    """A row whose texts no spreadsheet takes for formulas; `-x.jpg` becomes `./-x.jpg`, the same file."""
    mark = {name: "./" if name == "path" else "'" for name in row}
    return {
        name: mark[name] + value if isinstance(value, str) and value.startswith(FORMULA) else value
        for name, value in row.items()
    }


def json_rows(file: TextIO, columns: Sequence[str]) -> Write:
    return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")


def table_rows(file: TextIO, columns: Sequence[str]) -> Write:
    """Aligned columns for people; the path stands last, so that rows can be printed as they come."""
    shown = ["score", "percentile", "emotion", *(name for name in columns if name.startswith("emotion_"))]
    shown.remove("emotion_probability")

    def write_line(cells: Sequence[str], path: str) -> None:
        line = "  ".join(f"{cell:>{max(len(name), 11)}}" for name, cell in zip(shown, cells, strict=True))
        encoding = file.encoding or "utf-8"
        line = f"{line}  {path}".encode(encoding, "backslashreplace").decode(encoding)
        tqdm.write(line, file=file)  # around the progress bar, which may be on the same screen

    def write_row(row: dict) -> None:
        cells = [table_cell(name, row[name]) for name in shown]
        error = f": {printable(row['error'])}" if row["error"] else ""
        write_line(cells, printable(row["path"]) + error)

    write_line(shown, "path")
    return write_row


def table_cell(column: str, value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if column == "percentile" else f"{value:.2f}"
    return value or "-"


FORMATS = {".csv": csv_rows, ".jsonl": json_rows}


@contextmanager
def open_rows(output: Path | None, mode: str, columns: Sequence[str]) -> Iterator[Write]:
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


LONGEST_ROW = 1 << 16  # bytes; a path has at most 4,096 of them


class Kept(NamedTuple):
    """What an interrupted run wrote of one picture."""

    path: str
    score: float | None
    error: str | None


def read_kept(output: Path, columns: Sequence[str]) -> tuple[list[Kept], int]:
    """The whole rows of an interrupted run, and how many bytes of the file they take.

    Raises:
        ValueError: the file has other columns, or a row that is not the last is damaged.
    """
    header, parse = {".csv": (csv_line(columns), parse_csv), ".jsonl": (b"", parse_json)}[
        output.suffix.lower()
    ]
    kept, length, record = [], len(header), b""
    with output.open("rb") as file:
        start = file.read(length)
        if start != header:
            if header.startswith(start):
                return [], 0
            raise other_columns(output)
        for line in file:  # several make a row where a name has a line break
            record += line
            row = parse(record, columns)
            if row and list(row) != list(columns):
                raise other_columns(output)
            if row := as_kept(row):
                kept.append(row)
                length, record = length + len(record), b""
            elif len(record) > LONGEST_ROW or (parse is parse_json and record.endswith(b"\n")):
                raise ValueError(
                    f"predict: row {len(kept) + 1} of {output} is damaged; repair it, or write all anew with "
                    "--force"
                )
    return kept, length


def as_kept(row: dict | None) -> Kept | None:
    try:
        score = None if row["score"] in ("", None) else float(row["score"])
        return Kept(str(row["path"]), score, row["error"] or None)
    except (TypeError, ValueError):  # no row, or a damaged one
        return None


def other_columns(output: Path) -> ValueError:
    return ValueError(
        f"predict: {output} has other columns than this run would write; go on with the same --checkpoint "
        "and --emotions, or overwrite it with --force"
    )


def csv_line(cells: Sequence[str]) -> bytes:
    line = io.StringIO(newline="")
    row_writer(line)(cells)
    return line.getvalue().encode()


def parse_csv(record: bytes, columns: Sequence[str]) -> dict[str, str] | None:
    """A row by column; None if it is not whole."""
    try:
        [cells] = csv.reader([record.decode()], strict=True)
    except (ValueError, csv.Error):
        return None
    whole = record.endswith(b"\r\n") and len(cells) == len(columns)
    return dict(zip(columns, cells, strict=True)) if whole else None


def parse_json(record: bytes, columns: Sequence[str]) -> dict | None:
    """A row by column, which may be others; None if it is not whole."""
    try:
        row = json.loads(record) if record.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def check_kept(kept: Sequence[Kept], pictures: Sequence[Found], output: Path) -> None:
    """Raises ValueError where the rows are not those of the first pictures."""
    if len(kept) > len(pictures):
        raise ValueError(
            f"predict: {output} has {len(kept)} rows and there are {len(pictures)} pictures; --resume needs "
            "the pictures of the interrupted run"
        )
    for number, (row, found) in enumerate(zip(kept, pictures, strict=False), 1):
        if row.path.removeprefix("./") != encodable(found.path).removeprefix("./"):
            raise ValueError(
                f"predict: row {number} of {output} is of {printable(row.path)}, and picture {number} is "
                f"{printable(found.path)}; --resume needs the pictures of the interrupted run, in its order"
            )


def check_score(kept: Kept, scored: Scored, output: Path) -> None:
    """Raises ValueError if a picture does not get the score again that an interrupted run gave it."""
    if scored.error or abs(scored.score - kept.score) > 1e-4 * (scored.score_max - scored.score_min):
        raise ValueError(
            f"predict: {output} gives {printable(kept.path)} the score {kept.score:g}, and now it is "
            f"{scored.error or format(scored.score, 'g')}; go on with the same weights and settings, or "
            "overwrite it with --force"
        )
