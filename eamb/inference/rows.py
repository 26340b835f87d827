"""Rows of scores: csv, jsonl and the table on the terminal; and reading those of an interrupted run."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from eamb.files import as_cell, csv_line, printable, safe_path
from eamb.inference.photographs import PictureFile
from eamb.inference.scorer import Scored
from eamb.network.outputs import Scale

SCORE_COLUMNS = ("score", "score_min", "score_max", "score_std", "score_model_std", "percentile")
COLUMNS = ("path", *SCORE_COLUMNS, "emotion", "emotion_probability", "error")
FORMATS = (".csv", ".jsonl")
NOTE = "note: "  # begins an error cell that is only a note on a file that was scored


def column_names(scale: Scale, emotions: Sequence[str], several: bool) -> list[str]:
    """Columns of a table: COLUMNS, one per emotion of `emotions`, one per rating bin.

    Args:
        several: the scores are of several networks; otherwise score_model_std is left out.
    """
    always = [name for name in COLUMNS if several or name != "score_model_std"]
    return [*always, *(f"emotion_{name}" for name in emotions), *(f"p_{value:g}" for value in scale.bins)]


def as_row(scored: Scored, columns: Sequence[str]) -> dict[str, str | float | None]:
    """The values of the columns, numbers with six significant digits, None where there is no value."""
    values = {name: getattr(scored, name) for name in COLUMNS}
    values["error"] = scored.error or (scored.note and NOTE + scored.note)
    values |= {f"emotion_{name}": value for name, value in scored.emotions.items()}
    values |= {f"p_{value:g}": share for value, share in scored.distribution.items()}
    return {name: as_cell(values.get(name)) for name in columns}


def write_table_row(file: TextIO, columns: Sequence[str], row: dict | None) -> None:
    """Writes a row of aligned columns (None: the header). Paths vary in length, so they come last."""
    spread = ["score_std"] * any(name.startswith("p_") for name in columns)  # of predicted distributions
    spread += ["score_model_std"] * ("score_model_std" in columns)
    shown = ["score", *spread, "percentile", "emotion"]
    shown += [name for name in columns if name.startswith("emotion_")]
    shown.remove("emotion_probability")
    cells, path = shown, "path"
    if row is not None:
        error = f": {printable(row['error'])}" if row["error"] else ""
        path = printable(row["path"]) + error
        forms = dict.fromkeys(shown, ".2f") | {"percentile": ".0f"}
        values = [(row[name], forms[name]) for name in shown]
        cells = [format(value, form) if isinstance(value, float) else value or "-" for value, form in values]
    line = "".join(f"{cell:>{max(len(name), 11)}}  " for name, cell in zip(shown, cells, strict=True)) + path
    tqdm.write(line, file=file)  # does not break the progress bar on the same terminal
    file.flush()


@contextmanager
def open_rows(
    output: Path | None, mode: str, columns: Sequence[str], excel: bool = False
) -> Iterator[Callable[[dict], None]]:
    """Yields a function that writes a whole row at once, to the file or as a table to standard output.

    Args:
        mode: "x" for a new file, "w" to overwrite one, "a" to go on with one.
        excel: begin a new csv with a byte order mark.
    """
    if output is None:
        write_table_row(sys.stdout, columns, None)
        yield lambda row: write_table_row(sys.stdout, columns, row)
        return
    as_csv = output.suffix.lower() == ".csv"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open(mode, encoding="utf-8-sig" if excel else "utf-8", newline="") as file:
        if as_csv and not file.tell():
            file.write(csv_line(columns))

        def write(row: dict) -> None:
            if as_csv:
                file.write(csv_line((row | {"path": safe_path(row["path"])}).values()))
            else:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield write


def read_rows(
    output: Path, columns: Sequence[str], pictures: Sequence[PictureFile]
) -> tuple[list[dict], int]:
    """The complete rows of an interrupted run, and the bytes that they and the header take in the file.

    Any bytes after that are a row, or the header, that was being written when the run ended.

    Returns:
        Rows as dicts by column, score and emotion_probability as numbers or None; the number of bytes.

    Raises:
        ValueError: a row is damaged or has other columns, or the rows are not those of the first pictures.
    """
    content, as_csv, rows = output.read_bytes(), output.suffix.lower() == ".csv", []
    whole = content[: content.rfind(b"\n") + 1]
    while as_csv and whole.count(b'"') % 2:  # the last line break is in a quoted path
        whole = whole[: whole.rfind(b"\n", 0, -1) + 1]
    try:
        lines = io.StringIO(whole.decode("utf-8-sig"), newline="")
        records = csv.reader(lines, strict=True) if as_csv else map(json.loads, lines)
        if as_csv:
            header = csv_line(columns).encode("utf-8-sig" if content[:1] == codecs.BOM_UTF8[:1] else "utf-8")
            if not header.startswith(content[: len(header)]):
                raise ValueError("other columns")
            next(records, None)
        for record in records:
            row = dict(zip(columns, record, strict=True)) if as_csv else dict(record)
            if list(row) != list(columns):
                raise ValueError("other columns")
            for name in ("score", "emotion_probability"):
                row[name] = None if row[name] in ("", None) else float(row[name])
            rows.append(row | {"path": str(row["path"])})
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"predict: row {len(rows) + 1} of {output} is damaged or has other columns than this run would "
            "write; go on with the same --checkpoint and --emotions, or overwrite it with --force"
        ) from error
    for number, (row, picture) in enumerate(zip_longest(rows, pictures[: len(rows)]), 1):
        path = picture.path if picture else ""
        if safe_path(row["path"]) != safe_path(path):
            raise ValueError(
                f"predict: row {number} of {output} is of {printable(row['path'])}, and picture {number} is "
                f"{printable(path) or 'none'}; --resume needs the pictures of the interrupted run"
            )
    return rows, len(whole)
