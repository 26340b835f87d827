"""Scores photographs: files, folders, globs or a list, with any weights that this program trained.

python main.py predict PHOTOS --output scores.csv --maps maps
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from eamb.files import printable
from eamb.inference.exported import ENDINGS
from eamb.inference.maps import MapFolder
from eamb.inference.photographs import PictureFile, Shard, choose_shard, find_pictures, torchrun_shard
from eamb.inference.rows import FORMATS, NOTE, as_row, column_names, open_rows, read_rows
from eamb.inference.scorer import Scored, Scorer, check_scores, is_exported
from eamb.inference.sidecars import check_sidecar_options, finish
from eamb.runtime.command import check_output
from eamb.runtime.progress import progress
from eamb.weights.shipped import checkpoint_files

if TYPE_CHECKING:
    from eamb.inference.page import PageFolder


def predict(options: argparse.Namespace) -> int:
    """`main.py predict`: 0 if every picture was scored and has its sidecar, if asked for; 1 if not.

    Raises:
        ValueError, OSError: bad arguments, in one sentence; nothing was written then.
    """
    part = torchrun_shard(options)
    targets = (options.output, options.maps, options.page)
    output, folder, page_folder = targets = [*map(part.target, targets)] if part else targets
    check_options(options, output, folder, page_folder)
    own = own_folders(options, part)
    pictures = find_pictures(options.paths, part or choose_shard(options.shard), own, options.raw)
    networks = (tuple(options.checkpoint), options.device, options.precision)
    pace = (options.batch_size, options.workers)
    scorer = Scorer(*networks, *pace, maps=bool(folder), exact=options.exact, flip=options.flip)
    check_scores(scorer.network.weights)
    announce(scorer, options.precision)
    emotions = scorer.emotions if options.emotions else ()
    columns = column_names(scorer.scale, emotions, several=len(options.checkpoint) > 1)
    maps = MapFolder(folder, scorer, options.maps_raw) if folder else None
    page = None
    if page_folder:
        from eamb.inference.page import PageFolder  # with jinja2, which a run without it need not load

        page = PageFolder(page_folder, scorer, pictures, columns, options.excel)
    rows = []
    if options.resume and output.exists():
        rows, length = read_rows(output, columns, pictures)
        if maps:
            scored = [(pictures[i], row["error"]) for i, row in enumerate(rows) if row["score"] is not None]
            maps.resume(scored)
        if page:
            page.resume(len(rows))
        os.truncate(output, length)
    results = remaining(scorer, pictures, rows, output, [each for each in (maps, page) if each])
    if maps:
        cores = torch.get_num_threads() if options.workers == -1 else options.workers
        # Starting a process takes as long as drawing about 8 panels.
        results = maps.write_all(results, min(cores, (len(pictures) - len(rows)) // 8))
    else:
        results = (scored for _, scored in results)
    results = page.write_all(results) if page else results
    done = [(row["score"], row["error"]) for row in rows]
    mode = "a" if options.resume else "w" if options.force else "x"
    bar = progress(desc="predict", total=len(pictures), initial=len(rows), unit=" images")
    with open_rows(output, mode, columns, options.excel) as write, bar, closing(results):
        for scored in results:
            row = as_row(scored, columns)
            write(row)  # after its maps, so that every picture with a row has them
            done.append((row["score"], row["error"]))
            bar.update()
    failed = sum(not (error or NOTE).startswith(NOTE) for _, error in done)
    noted = sum((error or "").startswith(NOTE) for _, error in done)
    words = [f"{len(pictures) - failed} of {len(pictures)} pictures scored"]
    words += [f"{noted} with a note"] if noted else []
    print(", ".join([*words, *(f"{target} written" for target in targets if target)]), file=sys.stderr)
    failed += finish(options, {p.path: score for p, (score, _) in zip(pictures, done, strict=True)})
    # With exit code 1, torchrun would kill the processes that are still scoring.
    return 1 if failed and not part else 0


def announce(scorer: Scorer, precision: str | None) -> None:
    """Says on standard error what --precision auto has chosen, and which emotions mean nothing."""
    if precision == "auto":
        print(f"--precision auto: {scorer.network.precision}", file=sys.stderr)
    if scorer.emotions and not scorer.emotions_trained:
        words = "the emotion branch of these weights was never trained on emotions; its emotions are left out"
        print(words, file=sys.stderr)


def own_folders(options: argparse.Namespace, part: Shard | None) -> list[Path]:
    """The folders into which this process, and others of its torchrun, write pictures."""
    folders = [folder for folder in (options.maps, options.page) if folder]
    if not part:
        return folders
    return [Shard(n + 1, part.count).target(folder) for n in range(part.count) for folder in folders]


def check_options(
    options: argparse.Namespace, output: Path | None, folder: Path | None, page: Path | None
) -> None:
    """Refuses options that contradict each other or would overwrite something, before any work is done."""
    for file in checkpoint_files(options.checkpoint) if options.engine else ():
        if is_exported(file) != (options.engine == "openvino"):
            raise ValueError(
                f"predict: --engine {options.engine} cannot run {file}; openvino runs what scripts/export.py "
                f"writes ({', '.join(ENDINGS.values())}), torch the others"
            )
    if output is not None and output.suffix.lower() not in FORMATS:
        raise ValueError(f"predict: --output must end in {' or '.join(FORMATS)}, got {output}")
    if options.excel and (output is None or output.suffix.lower() != ".csv"):
        raise ValueError("predict: --excel is for a csv; add --output FILE.csv")
    check_sidecar_options(options)
    if options.maps_raw and folder is None:
        raise ValueError("predict: --maps-raw writes beside the panels of --maps; add --maps DIR")
    if output is not None and not output.exists():  # an existing file is opened before the first picture
        check_output("predict", output.parent)
    for path in (folder, page):
        if path is not None:
            check_output("predict", path)
    if options.resume and (output is None or options.force):
        raise ValueError("predict: --resume goes on with the rows in --output FILE, --force overwrites them")
    for path in (output, folder, page) if not (options.force or options.resume) else ():
        if path is not None and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(
                f"predict: {path} exists; choose another name, go on with the run that wrote it with "
                "--resume, or write over it with --force"
            )


def remaining(
    scorer: Scorer,
    pictures: Sequence[PictureFile],
    rows: Sequence[dict],
    output: Path | None,
    folders: Sequence[MapFolder | PageFolder],
) -> Iterator[tuple[PictureFile, Scored]]:
    """The pictures after those that have rows, with their scores.

    The last score of an interrupted run is computed again; raises ValueError if it differs, or if the
    probability of the strongest emotion does: of several networks the first gives emotions and maps.

    Args:
        folders: each `keep`s the decoded pictures.
    """

    def keep(*decoded: object) -> None:
        for each in folders:
            each.keep(*decoded)

    first = max((number for number, row in enumerate(rows) if row["score"] is not None), default=len(rows))
    results = scorer.score_all((picture.path for picture in pictures), first, keep if folders else None)
    for number, scored in enumerate(results, first):
        if number >= len(rows):
            yield pictures[number], scored
        elif number == first:
            before, likely = rows[number]["score"], rows[number]["emotion_probability"] or 0
            what = ""
            if scored.error or abs(scored.score - before) > 1e-4 * (scored.score_max - scored.score_min):
                now = scored.error or format(scored.score, "g")
                what = f"the score {before:g}, and now it is {now}; go on"
            elif abs((scored.emotion_probability or 0) - likely) > 1e-4:
                what = (
                    "another probability of its emotion than now; go on with the networks in the same order,"
                )
            if what:
                raise ValueError(
                    f"predict: {output} gives {printable(scored.path)} {what} with the same weights and "
                    "settings, or overwrite it with --force"
                )
