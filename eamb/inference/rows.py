"""Rows of scores: csv, jsonl and the table on the terminal; and those that an interrupted run has written."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


def column_names(scale: Scale, emotions: Sequence[str]) -> list[str]:
    """Columns of a table: those of every table, one per emotion of `emotions`, one per rating bin."""
    return [*COLUMNS, *(f"emotion_{name}" for name in emotions), *(f"p_{value:g}" for value in scale.bins)]


def as_row(scored: Scored, columns: Sequence[str]) -> dict[str, str | float | None]:
    """The values of the columns, numbers with six significant digits, None where there is nothing to say."""
    values = {name: getattr(scored, name) for name in COLUMNS}
    values |= {f"emotion_{name}": value for name, value in scored.emotions.items()}
    values |= {f"p_{value:g}": share for value, share in scored.distribution.items()}
    return {name: as_cell(values.get(name)) for name in columns}


def write_table_row(file: TextIO, columns: Sequence[str], row: dict | None) -> None:
    """A row of aligned columns for people, None: the header. The path stands last, as it has any length."""
    shown = ["score", "percentile", "emotion", *(name for name in columns if name.startswith("emotion_"))]
    shown.remove("emotion_probability")
    cells, path = shown, "path"
    if row is not None:
        error = f": {printable(row['error'])}" if row["error"] else ""
        path = printable(row["path"]) + error
        forms = dict.fromkeys(shown, ".2f") | {"percentile": ".0f"}
        values = [(row[name], forms[name]) for name in shown]
        cells = [format(value, form) if isinstance(value, float) else value or "-" for value, form in values]
    line = "".join(f"{cell:>{max(len(name), 11)}}  " for name, cell in zip(shown, cells, strict=True)) + path
    encoding = file.encoding or "utf-8"
    # Around the progress bar, which may be on the same screen.
    tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding), file=file)
    file.flush()


FORMATS = (".csv", ".jsonl")


@contextmanager
def open_rows(output: Path | None, mode: str, columns: Sequence[str]) -> Iterator[Callable[[dict], None]]:
    """A function that writes a row at once and whole, to the file or as a table to standard output.

    Args:
        mode: "x" for a new file, "w" to overwrite one, "a" to go on with one.
    """
    if output is None:
        write_table_row(sys.stdout, columns, None)
        yield lambda row: write_table_row(sys.stdout, columns, row)
        return
    as_csv = output.suffix.lower() == ".csv"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open(mode, encoding="utf-8", newline="") as file:
        if as_csv and not file.tell():
            file.write(csv_line(columns))

        def write(row: dict) -> None:
            if as_csv:
                file.write(csv_line((row | {"path": safe_path(row["path"])}).values()))
            else:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield write


# ---- going on with an interrupted run


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
            if not whole and len(content) <= 1 << 16:  # a path has at most 4,096 bytes
                continue
            try:
                if as_csv:
                    [cells] = csv.reader([content.decode()], strict=True)
                    row = dict(zip(columns, cells, strict=True))
                else:
                    row = dict(json.loads(content))  # which names its columns itself
                score = None if row.get("score") in ("", None) else float(row["score"])
            except (ValueError, TypeError, csv.Error) as error:
                raise ValueError(
                    f"predict: row {len(rows) + 1} of {output} is damaged; repair it, or write all anew with "
                    "--force"
                ) from error
            if list(row) != list(columns):
                raise other_columns
            rows.append(WrittenRow(str(row["path"]), score, row["error"] or None))
            length, content = length + len(content), b""
    return rows, length


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
