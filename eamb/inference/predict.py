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

import torch
from tqdm import tqdm

from eamb.inference.exported import ENDINGS
from eamb.inference.maps import MapFolder
from eamb.inference.photographs import PictureFile, Shard, choose_shard, find_pictures, torchrun_shard
from eamb.inference.rows import (
    FORMATS,
    WrittenRow,
    as_row,
    check_rows,
    check_score,
    column_names,
    open_rows,
    read_rows,
)
from eamb.inference.scorer import Scored, Scorer, check_scores, is_exported


def predict(options: argparse.Namespace) -> int:
    """`main.py predict`: 0 if every picture was scored, 1 if some could not be.

    Raises:
        ValueError, OSError: bad arguments, in one sentence; nothing was written then.
    """
    part = torchrun_shard(options)
    output, folder = options.output, options.maps
    if part:
        output, folder = part.target(output), part.target(folder)
    check_targets(output, folder, options.force, options.resume)
    check_engine(options.engine, options.checkpoint)
    if options.maps_raw and folder is None:
        raise ValueError("predict: --maps-raw writes beside the panels of --maps; add --maps DIR")
    parts = [Shard(number + 1, part.count) for number in range(part.count)] if part else []
    map_folders = [each.target(options.maps) for each in parts] or [options.maps]
    pictures = find_pictures(
        options.paths, part or choose_shard(options.shard), map_folders if folder else ()
    )
    scorer = Scorer(
        options.checkpoint,
        options.device,
        options.precision,
        options.batch_size,
        options.workers,
        maps=folder is not None,
        exact=options.exact,
    )
    check_scores(scorer.network.weights, options.checkpoint)
    if scorer.emotions and not scorer.emotions_trained:
        words = "the emotion branch of these weights was never trained on emotions; its emotions are left out"
        print(words, file=sys.stderr)
    columns = column_names(scorer.scale, scorer.emotions if options.emotions else ())
    maps = MapFolder(folder, scorer, options.maps_raw) if folder is not None else None
    rows = resume_rows(output, columns, pictures, maps) if options.resume and output.exists() else []
    results = remaining(scorer, pictures, rows, output, maps)
    if maps:
        cores = torch.get_num_threads() if options.workers == -1 else options.workers
        # Fewer than 8 panels are drawn in the time that a process takes to start.
        results = maps.write_all(results, min(cores, (len(pictures) - len(rows)) // 8))
    else:
        results = (scored for _, scored in results)
    failed = sum(bool(row.error) for row in rows)
    mode = "a" if options.resume else "w" if options.force else "x"
    hidden = None if output is None else False  # None: where standard error is no terminal but, say, a log
    words = {"desc": "predict", "unit": " images", "mininterval": 0.5, "disable": hidden}
    bar = tqdm(total=len(pictures), initial=len(rows), **words)
    with open_rows(output, mode, columns) as write, bar, closing(results):
        for scored in results:
            failed += bool(scored.error)
            write(as_row(scored, columns))  # behind its maps: a picture with a row has them
            bar.update()
    written = "".join(f", {target} written" for target in (output, folder) if target)
    print(f"{len(pictures) - failed} of {len(pictures)} pictures scored{written}", file=sys.stderr)
    # Were it 1 among others, torchrun would end those that are not ready yet.
    return 1 if failed and not part else 0


def resume_rows(
    output: Path, columns: Sequence[str], pictures: Sequence[PictureFile], maps: MapFolder | None
) -> list[WrittenRow]:
    """The rows of an interrupted run, which are of the first pictures; cuts off a half-written one.

    Raises:
        ValueError: they are of others.
    """
    rows, length = read_rows(output, columns)
    check_rows(rows, pictures, output)
    if maps:
        maps.resume([(pictures[i], row.error) for i, row in enumerate(rows) if row.score is not None])
    os.truncate(output, length)
    return rows


def remaining(
    scorer: Scorer,
    pictures: Sequence[PictureFile],
    rows: Sequence[WrittenRow],
    output: Path | None,
    maps: MapFolder | None,
) -> Iterator[tuple[PictureFile, Scored]]:
    """The pictures behind those that have rows, scored.

    The last score of an interrupted run is computed once more.

    Raises:
        ValueError: it is another.
    """
    first = max((number for number, row in enumerate(rows) if row.score is not None), default=len(rows))
    results = scorer.score_all((picture.path for picture in pictures), first, maps.keep if maps else None)
    for number, scored in enumerate(results, first):
        if number >= len(rows):
            yield pictures[number], scored
        elif number == first:
            check_score(rows[number], scored, output)


def check_engine(engine: str | None, checkpoint: Path | None) -> None:
    """Raises ValueError where --engine does not fit the file."""
    if engine == "openvino" and not is_exported(checkpoint):
        raise ValueError(
            f"predict: openvino runs what scripts/export.py writes ({', '.join(ENDINGS.values())}), got "
            f"{checkpoint or 'no --checkpoint'}; python scripts/export.py CHECKPOINT OUT.onnx"
        )
    if engine == "torch" and is_exported(checkpoint):
        raise ValueError(f"predict: {checkpoint} was exported for openvino; torch runs .pt and .safetensors")


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
