"""Picks the best photographs of each series in a folder: a table, and a page to look through and overrule.

    python main.py select PHOTOS --keep 1 --output picks.csv --page page

A series is what somebody took of one thing: photographs of one camera that follow each other in time and look
alike. No photograph is moved, renamed, changed or deleted.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from eamb.files import as_cell, csv_line, safe_path, write_csv
from eamb.inference.photographs import find_pictures
from eamb.inference.scorer import Scorer
from eamb.selection.exif import Taken, describe_time, read_taken
from eamb.selection.grouping import Photograph, choose, sketch
from eamb.selection.page import shrink, write_page, write_thumbnail


def select(options: argparse.Namespace) -> int:
    """`main.py select`: 0 if every picture was scored, 1 if some could not be.

    Raises:
        ValueError, OSError: bad arguments, in one sentence; nothing was written then.
    """
    check_options(options)
    output, page = options.output, options.page
    pictures = find_pictures(options.paths, maps=[page] if page else ())
    settings = (options.checkpoint, options.device, options.precision, options.batch_size, options.workers)
    photographs = score_photographs([picture.path for picture in pictures], Scorer(*settings), page)
    bar = tqdm(photographs, "select", len(pictures), unit=" images", mininterval=0.5)
    photographs = choose(list(bar), options.keep, options.gap, options.similarity)
    write_rows(map(as_row, photographs), output)
    if page:
        words = (
            f"Series end at pauses over {options.gap:g} s (--gap) and similarities below "
            f"{options.similarity:g} (--similarity); best {options.keep} of each picked."
        )
        write_page(page, photographs, words, as_table(photographs))
    sizes = Counter(photograph.place.series for photograph in photographs if photograph.place)
    alone = sum(size == 1 for size in sizes.values())
    picked = sum(photograph.picked for photograph in photographs)
    failed = sum(bool(photograph.scored.error) for photograph in photographs)
    words = (
        f"{picked} of {len(photographs)} photographs picked from {len(sizes)} series ({alone} of only one)"
    )
    words += f", {failed} could not be scored" if failed else ""
    print(words + "".join(f", {target} written" for target in (output, page) if target), file=sys.stderr)
    return 1 if failed else 0


def check_options(options: argparse.Namespace) -> None:
    """Refuses what makes no sense, or would overwrite something, before any work is done."""
    output, page = options.output, options.page
    if options.keep < 1:
        raise ValueError(
            f"picks: --keep is how many of each series are picked, at least 1; got {options.keep}"
        )
    if not options.gap >= 0:
        raise ValueError(f"picks: --gap is a time in seconds, at least 0; got {options.gap:g}")
    if not 0 <= options.similarity <= 1:
        raise ValueError(
            f"picks: --similarity lies from 0 (time alone counts) to 1; got {options.similarity:g}"
        )
    if output.suffix.lower() != ".csv":
        raise ValueError(f"picks: --output must end in .csv, got {output}")
    if page is not None and page.exists() and not page.is_dir():
        raise NotADirectoryError(f"picks: --page needs a folder; {page} is a file")
    if options.force:
        return
    if output.exists():
        raise FileExistsError(f"picks: {output} exists; choose another name, or overwrite it with --force")
    if page is not None and page.is_dir() and any(page.iterdir()):
        raise FileExistsError(
            f"picks: {page} holds files already; choose another folder, or write into it with --force"
        )


class Preview(NamedTuple):
    """What the thread that decodes a picture keeps of it; `jpeg` is empty if there is no page to show it."""

    taken: Taken
    sketch: np.ndarray
    size: tuple[int, int]
    jpeg: bytes


def score_photographs(paths: Sequence[str], scorer: Scorer, page: Path | None) -> Iterator[Photograph]:
    """Scores all pictures, and writes the thumbnails as they come.

    Args:
        scorer: anything with `score_all(paths, on_decoded=...)` that gives a Scored per path, and
            `emotions_trained`, without which no map is shown.
        page: the folder of the thumbnails; None for no page.
    """
    previews: dict[str, Preview] = {}

    def keep_preview(path: str, picture: Image.Image, exif: Image.Exif) -> None:
        small, file = shrink(picture), io.BytesIO()
        if page is not None:
            small.save(file, "JPEG", quality=85)
        previews[path] = Preview(read_taken(exif), sketch(small), small.size, file.getvalue())

    for number, scored in enumerate(scorer.score_all(paths, on_decoded=keep_preview), 1):
        preview = previews.pop(scored.path, None)
        photograph = Photograph(scored.path, preview.taken if preview else Taken())
        photograph.scored = replace(scored, emotion_map=None, class_maps=None)  # which would fill the memory
        if not scored.error:
            photograph.sketch = preview.sketch
        if not scored.error and page is not None:
            emotion_map = scored.emotion_map if scorer.emotions_trained else None
            photograph.thumbnail = write_thumbnail(page, number, preview.jpeg, preview.size, emotion_map)
        yield photograph


def as_row(photograph: Photograph) -> dict[str, str | int | float | None]:
    """The photograph's cells by column."""
    scored, place = photograph.scored, photograph.place
    return {
        "path": safe_path(photograph.path),
        "series": place and place.series,
        "series_size": place and photograph.size,
        "rank": place and photograph.rank,
        "picked": int(photograph.picked),
        "score": as_cell(scored.score),
        "percentile": as_cell(scored.percentile),
        "time": describe_time(photograph.taken.time),
        "seconds_since_previous": place and as_cell(place.gap),
        "similarity_to_previous": place and place.similarity and round(place.similarity, 3),
        "camera": photograph.taken.camera,
        "emotion": scored.emotion,
        "note": "; ".join(photograph.notes),
        "error": scored.error,
    }


def write_rows(rows: Iterable[dict], output: Path) -> None:
    """Writes a csv of one row or more, as `as_row` gives them."""
    rows = list(rows)
    write_csv(output, [rows[0], *(row.values() for row in rows)])


def as_table(photographs: Sequence[Photograph]) -> dict:
    """The csv line by line, and each line as it would be with the other pick, for `write_page`."""
    lines = []
    for photograph in photographs:
        row, note = as_row(photograph), "; ".join([*photograph.notes, "changed by hand"])
        other = row | {"picked": int(not photograph.picked), "note": note}
        lines.append([csv_line(row.values()), csv_line(other.values())])
    return {"header": csv_line(as_row(photographs[0])), "rows": lines}
