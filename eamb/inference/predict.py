"""Scores photographs: files, folders, globs or a list, with any weights that this program trained.

    from predict import Scorer
    scorer = Scorer()
    print(scorer.score("photo.jpg").score)

From top to bottom: what is said about a picture; the scorer; finding pictures; parts
for several processes; writing rows; going on with interrupted ones; maps; the command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from eamb.inference.maps import UNTRAINED, MapFolder
from eamb.inference.photographs import Found, Shard, choose_shard, find_pictures, torchrun_shard
from eamb.inference.rows import (
    FORMATS,
    Kept,
    as_row,
    check_kept,
    check_score,
    column_names,
    open_rows,
    read_kept,
)
from eamb.inference.scorer import Scored, Scorer


def run(options: argparse.Namespace) -> int:
    """`main.py predict`: 0 if every picture was scored, 1 if some could not be.

    Raises:
        ValueError, OSError: bad arguments, in one sentence; nothing was written then.
    """
    among = torchrun_shard(options)
    output, folder = options.output, options.maps
    if among:
        output, folder = among.target(output), among.target(folder)
    check_targets(output, folder, options.force, options.resume)
    if options.maps_raw and folder is None:
        raise ValueError("predict: --maps-raw writes beside the panels of --maps; add --maps DIR")
    parts = [Shard(number + 1, among.count) for number in range(among.count)] if among else []
    made = [part.target(options.maps) for part in parts] or [options.maps]
    pictures = find_pictures(options.paths, among or choose_shard(options.shard), made if folder else ())
    scorer = Scorer(
        options.checkpoint,
        options.device,
        options.precision,
        options.batch_size,
        options.workers,
        maps=folder is not None,
        exact=options.exact,
        engine=options.engine,
    )
    if scorer.emotions and not scorer.emotions_trained:
        print(f"{UNTRAINED}; its emotions are left out", file=sys.stderr)
    columns = column_names(scorer.scale, scorer.emotions if options.emotions else ())
    maps = MapFolder(folder, scorer, options.maps_raw) if folder is not None else None
    kept = []
    if options.resume and output.exists():
        kept = take_up(output, columns, pictures, maps)
    mode = "a" if options.resume else "w" if options.force else "x"
    with open_rows(output, mode, columns) as write, progress(len(pictures), len(kept), output) as bar:
        failed = 0
        for found, scored in remaining(scorer, pictures, kept, output):
            if scored.error:
                failed += 1
            elif maps:
                maps.write(scored, found)
            write(as_row(scored, columns))  # behind its maps: a picture with a row has them
            bar.update()
    failed += sum(bool(row.error) for row in kept)
    written = "".join(f", {target} written" for target in (output, folder) if target)
    print(f"{len(pictures) - failed} of {len(pictures)} pictures scored{written}", file=sys.stderr)
    # Were it 1 among others, torchrun would end those that are not ready yet.
    return 1 if failed and not among else 0


def take_up(
    output: Path, columns: Sequence[str], pictures: Sequence[Found], maps: MapFolder | None
) -> list[Kept]:
    """The rows of an interrupted run, known to be of these pictures; cuts off a half-written one.

    Raises:
        ValueError: they are others.
    """
    kept, length = read_kept(output, columns)
    check_kept(kept, pictures, output)
    if maps:
        maps.remove_unfinished()
        for row, found in zip(kept, pictures, strict=False):
            if not row.error:
                maps.skip(found)
    os.truncate(output, length)
    return kept


def remaining(
    scorer: Scorer, pictures: Sequence[Found], kept: Sequence[Kept], output: Path | None
) -> Iterator[tuple[Found, Scored]]:
    """The pictures behind those that have rows, scored.

    The last score of an interrupted run is computed once more.

    Raises:
        ValueError: it is another.
    """
    first = max((number for number, row in enumerate(kept) if row.score is not None), default=len(kept))
    results = scorer.score_all((picture.path for picture in pictures), first)
    for number, scored in enumerate(results, first):
        if number >= len(kept):
            yield pictures[number], scored
        elif number == first:
            check_score(kept[number], scored, output)


def progress(count: int, done: int, output: Path | None) -> tqdm:
    """A bar with images/s on standard error. A table's rows redraw it, so a log gets one or the other."""
    hidden = None if output is None else False  # None: where standard error is no terminal
    return tqdm(total=count, initial=done, desc="predict", unit=" images", mininterval=0.5, disable=hidden)


def check_targets(output: Path | None, maps: Path | None, force: bool, resume: bool) -> None:
    """Refuses what cannot be written, or would overwrite something, before any work is done."""
    if output is not None and output.suffix.lower() not in FORMATS:
        raise ValueError(f"predict: --output must end in {' or '.join(FORMATS)}, got {output}")
    if maps is not None and maps.exists() and not maps.is_dir():
        raise NotADirectoryError(f"predict: --maps needs a folder; {maps} is a file")
    if resume and (output is None or force):
        raise ValueError(
            "predict: --resume goes on with the rows in --output FILE, and --force overwrites them"
        )
    if force or resume:
        return
    if output is not None and output.exists():
        raise FileExistsError(
            f"predict: {output} exists; choose another name, go on behind its rows with --resume, or "
            "overwrite it with --force"
        )
    if maps is not None and maps.is_dir() and any(maps.iterdir()):
        raise FileExistsError(
            f"predict: {maps} holds files already; choose another folder, or write into it with --force"
        )
