"""Picks the best photographs of each series in a folder: a table, and a page to review and change them.

    python main.py select PHOTOS --keep 1 --output picks.csv --page page

A series is several shots of one thing: photographs of one camera that follow each other in time and look
alike. No photograph is moved, renamed, changed or deleted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from eamb.files import as_cell, csv_line, safe_path, written_whole
from eamb.inference.page import preview, shrink, write_thumbnail
from eamb.inference.photographs import find_pictures
from eamb.inference.scorer import Scorer, check_scores
from eamb.inference.sidecars import check_sidecar_options, finish
from eamb.readers.exif import Taken, describe_time, read_taken
from eamb.runtime.command import check_output
from eamb.runtime.progress import progress
from eamb.selection.grouping import Photograph, choose, sketch
from eamb.selection.page import write_page

SKETCHED = 320  # pixels, the longest side of what sketches are made of; similarities depend on it a little


def select(options: argparse.Namespace) -> int:
    """`main.py select`: 0 if every picture was scored and has its sidecar, if asked for; 1 if not.

    Raises:
        ValueError, OSError: bad arguments, in one sentence; nothing was written then.
    """
    check_options(options)
    output, page = options.output, options.page
    pictures = find_pictures(options.paths, maps=[page] if page else (), raw=options.raw)
    networks = (tuple(options.checkpoint), options.device, options.precision)
    scorer = Scorer(*networks, options.batch_size, options.workers, flip=options.flip)
    check_scores(scorer.network.weights, ("aesthetics", "series"))
    photographs = score_photographs([picture.path for picture in pictures], scorer, page)
    bar = progress(photographs, desc="select", total=len(pictures), unit=" images")
    photographs = choose(list(bar), options.keep, options.gap, options.similarity)
    table = as_table(photographs)
    if options.excel:
        table["header"] = "\ufeff" + table["header"]  # byte order mark; what the page saves has it too
    with written_whole(output) as unfinished:
        unfinished.write_bytes("".join([table["header"], *(line for line, _ in table["rows"])]).encode())
    if page:
        words = f"--keep {options.keep}, --gap {options.gap:g}, --similarity {options.similarity:g}."
        write_page(page, photographs, scorer, words, table)
    sizes = Counter(photograph.series for photograph in photographs if photograph.series)
    alone = sum(size == 1 for size in sizes.values())
    picked = sum(photograph.picked for photograph in photographs)
    failed = len(photographs) - sizes.total()
    words = f"{picked} of {len(photographs)} photographs picked from {len(sizes)} series"
    words += f" ({alone} of only one)" + (f", {failed} could not be scored" if failed else "")
    print(words + "".join(f", {target} written" for target in (output, page) if target), file=sys.stderr)
    scores = {each.path: each.scored.score for each in photographs}
    failed += finish(options, scores, {each.path: each.picked for each in photographs})
    return 1 if failed else 0


def check_options(options: argparse.Namespace) -> None:
    """Refuses options that make no sense or would overwrite something, before any work is done."""
    output, page = options.output, options.page
    if options.keep < 1 or not options.gap >= 0 or not 0 <= options.similarity <= 1:
        raise ValueError(
            "picks: --keep is at least 1, --gap at least 0 seconds, and --similarity from 0 (time alone "
            f"counts) to 1; got {options.keep}, {options.gap:g} and {options.similarity:g}"
        )
    if output.suffix.lower() != ".csv":
        raise ValueError(f"picks: --output must end in .csv, got {output}")
    if page and (page.is_file() or (page.is_dir() and any(page.iterdir()) and not options.force)):
        words = "--page needs a new folder, or with --force one that holds other files"
        raise FileExistsError(f"picks: {words}; {page} exists")
    check_sidecar_options(options)
    check_output("picks", output.parent, [output.name], options.force)
    if page:
        check_output("picks", page)


def score_photographs(paths: Sequence[str], scorer: Scorer, page: Path | None) -> Iterator[Photograph]:
    """Scores all pictures, and writes the thumbnails as they come.

    Args:
        scorer: anything with `score_all(paths, on_decoded=...)`, which yields a Scored per path, and
            `emotions_trained`; if that is False, no map is shown.
        page: the folder of the thumbnails; None for no page.
    """
    previews = {}  # path -> its time and camera, its sketch, its thumbnail

    def keep_preview(path: str, picture: Image.Image, exif: Image.Exif) -> None:
        small, taken = shrink(picture, SKETCHED), read_taken(exif)
        previews[path] = taken, sketch(small), preview(shrink(small), taken) if page else None

    for number, scored in enumerate(scorer.score_all(paths, on_decoded=keep_preview), 1):
        taken, small, thumbnail = previews.pop(scored.path, (Taken(), None, None))
        photograph = Photograph(scored.path, taken, small)
        photograph.notes += [scored.note] if scored.note else []
        photograph.scored = replace(scored, emotion_map=None, class_maps=None)  # maps would fill the memory
        if page and not scored.error:
            emotion_map = scored.emotion_map if scorer.emotions_trained else None
            photograph.thumbnail = write_thumbnail(page, number, thumbnail, emotion_map)
        yield photograph


def as_row(photograph: Photograph) -> dict[str, str | int | float | None]:
    """The photograph's cells by column."""
    scored = photograph.scored
    return {
        "path": safe_path(photograph.path),
        "series": photograph.series,
        "series_size": photograph.size,
        "rank": photograph.rank,
        "picked": int(photograph.picked),
        "score": as_cell(scored.score),
        "percentile": as_cell(scored.percentile),
        "time": describe_time(photograph.taken.time),
        "seconds_since_previous": as_cell(photograph.gap),
        "similarity_to_previous": photograph.similarity and round(photograph.similarity, 3),
        "camera": photograph.taken.camera,
        "emotion": scored.emotion,
        "note": "; ".join(photograph.notes),
        "error": scored.error,
    }


def as_table(photographs: Sequence[Photograph]) -> dict:
    """The csv's "header", and "rows": each line as it is, and as it would be with the pick reversed."""
    lines = []
    for photograph in photographs:
        row, note = as_row(photograph), "; ".join([*photograph.notes, "changed by hand"])
        other = row | {"picked": int(not photograph.picked), "note": note}
        lines.append([csv_line(row.values()), csv_line(other.values())])
    return {"header": csv_line(as_row(photographs[0])), "rows": lines}
