"""Picks the best photographs of each series in a folder: a table, and a page to look through and overrule.

    python main.py select PHOTOS --keep 1 --output picks.csv --page page

A series is what somebody took of one thing: photographs of one camera that follow each other in time and look
alike. No photograph is moved, renamed, changed or deleted.

From top to bottom: how alike two pictures are; when and with what they were taken; grouping; ranking; looking
at all pictures once; rows; the page; the command.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from eamb.inference.photographs import find_pictures
from eamb.inference.scorer import Scorer
from eamb.selection.grouping import Photograph, as_row, choose, look_at, write_rows
from eamb.selection.page import write_page


def run(options: argparse.Namespace) -> int:
    """`main.py select`: 0 if every picture was scored, 1 if some could not be.

    Raises:
        ValueError, OSError: bad arguments, in one sentence; nothing was written then.
    """
    check_options(options)
    pictures = find_pictures(options.paths, maps=[options.page] if options.page else ())
    scorer = open_scorer(options)
    with tqdm(total=len(pictures), desc="select", unit=" images", mininterval=0.5) as bar:
        photographs = []
        for photograph in look_at(pictures, scorer, options.page):
            photographs.append(photograph)
            bar.update()
    photographs = choose(photographs, options.keep, options.gap, options.similarity)
    write_rows(map(as_row, photographs), options.output)
    if options.page:
        write_page(options.page, photographs, describe_settings(options))
    print(summary(photographs, options), file=sys.stderr)
    return 1 if any(photograph.scored.error for photograph in photographs) else 0


def open_scorer(options: argparse.Namespace) -> Scorer:
    """What gives each photograph the number that `rank` goes by."""
    common = (options.checkpoint, options.device, options.precision, options.batch_size, options.workers)
    return Scorer(*common, pairs=True)


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


def describe_settings(options: argparse.Namespace) -> str:
    return (
        f"Series end at pauses over {options.gap:g} s (--gap) and similarities below {options.similarity:g} "
        f"(--similarity); best {options.keep} of each picked."
    )


def summary(photographs: Sequence[Photograph], options: argparse.Namespace) -> str:
    count = Counter(photograph.place.series for photograph in photographs if photograph.place)
    failed = sum(bool(photograph.scored.error) for photograph in photographs)
    picked = sum(photograph.picked for photograph in photographs)
    alone = sum(size == 1 for size in count.values())
    words = (
        f"{picked} of {len(photographs)} photographs picked from {len(count)} series ({alone} of only one)"
    )
    words += f", {failed} could not be scored" if failed else ""
    return words + "".join(f", {target} written" for target in (options.output, options.page) if target)
