"""Writes resized copies of a set's pictures, so that training and evaluation read small files.

    python scripts/prepare_data.py --dataset para --data-root DATA/para --output DATA/para512 data.size=512
    python main.py train --dataset para --data-root DATA/para512 data.size=512

The folder it writes is a data root like the one it is made from: the label files, and every picture under its
own relative path, turned and resized as decoding does, as JPEG whatever its name ends in. prepared.json says
from which files, by hash, size and time of change. Run again, it goes on where it stopped, and renews what
has changed. A picture that cannot be decoded has no copy; prepared.json has the reason.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import SetReader
from eamb.files import file_hash, written_whole
from eamb.readers.decoding import DecodeError, decode, explain_failure
from eamb.readers.prepared import MANIFEST, Manifest, Source, read_manifest, relative_names
from eamb.readers.rated import SPLITS
from eamb.readers.registry import DATASETS, SINGLE
from eamb.runtime.command import guarded
from eamb.runtime.config import load_config


class Task(NamedTuple):
    """One picture to copy. source: text, as decoding reports it."""

    source: str
    target: Path
    size: int
    exif: bool
    quality: int


def prepare(options: argparse.Namespace) -> int:
    """0 if every picture has its copy, 1 if some could not be decoded."""
    config = load_config((), [*options.settings, f"data.workers={options.workers}"])
    root, output = options.data_root.expanduser(), options.output.expanduser()
    splits = [] if options.splits == ",".join(SPLITS) else ["--splits", options.splits]
    program = {"pillow": Image.__version__, "libjpeg_turbo": features.version("libjpeg_turbo") or "none"}
    asked = Manifest(
        dataset=options.dataset,
        source=str(root.resolve()),
        words=[*splits, *options.settings],
        size=config.data.size,
        exif=config.data.exif,
        quality=options.quality,
        program=program,
    )
    manifest = start(asked, root, output)
    data = config.data.options()
    _, paths = SetReader(options.dataset, root, data).table(options.splits.split(","))
    patterns = [*DATASETS[options.dataset].label_files, *([data.table] if data.table else [])]
    names = relative_names(root, paths)
    for name in (*names, *patterns):
        if os.path.isabs(name) or os.path.normpath(name).startswith(".."):  # noqa: PTH117
            raise ValueError(
                f"prepare_data: {name} lies outside {root}, so its copy has no place; move the pictures "
                "below the root and name them relative to it"
            )
    labels = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    with saving(manifest, output, len(names)):
        copy_labels(manifest, root, output, sorted(path.relative_to(root).as_posix() for path in labels))
        forget(manifest.pictures, names, output)
        tasks = [
            Task(str(root / name), output / name, asked.size, asked.exif, asked.quality)
            for name in names
            if not is_done(manifest.pictures.get(name), root / name, output / name)
        ]
        copy_pictures(manifest, output, tasks, config.data.worker_count())
        manifest.complete = True
    broken = {name: source.error for name, source in manifest.pictures.items() if source.error}
    for name, reason in list(broken.items())[:5]:
        print(f"no copy of {name}: {reason}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} pictures have no copy; {output / MANIFEST} names them", file=sys.stderr)
    print(f"{len(manifest.pictures) - len(broken)} copies in {output}, {len(tasks)} pictures processed now")
    return 1 if broken else 0


def start(asked: Manifest, root: Path, output: Path) -> Manifest:
    """The manifest asked for, or the existing one if some of the same copies are there already.

    Raises:
        ValueError, FileExistsError: the folder holds something else, or one folder is inside the other.
    """
    source, target = root.resolve(), output.resolve()
    if source in (target, *target.parents) or target in source.parents:
        raise ValueError(
            f"prepare_data: {output} and {root} must lie beside each other, not one in the other"
        )
    if read_manifest(root):
        raise ValueError(f"prepare_data: {root} holds copies already; make copies of the pictures themselves")
    before = read_manifest(output)
    if not before:
        if output.is_dir() and any(output.iterdir()):
            raise FileExistsError(f"prepare_data: {output} holds other files; choose a new folder")
        return asked
    for key in ("dataset", "source", "size", "exif", "quality", "words"):
        have, want = getattr(before, key), getattr(asked, key)
        if have != want:
            raise ValueError(
                f"prepare_data: {output} holds copies with {key} {have}, and {want} is asked for; choose "
                "another folder, or delete this one"
            )
    remove_unfinished(output)  # of a run that was killed
    return before


def remove_unfinished(output: Path) -> None:
    for unfinished in output.rglob(".*.tmp"):
        unfinished.unlink(missing_ok=True)


def is_done(entry: Source | None, source: Path, target: Path) -> bool:
    if entry is None or not source.is_file() or not entry.is_unchanged(source):
        return False
    return bool(entry.error) or target.is_file()


def forget(entries: dict[str, Source], names: Iterable[str], output: Path) -> None:
    """Removes copies of what the set no longer has: a reader that lists folders would include them."""
    for name in entries.keys() - set(names):
        (output / name).unlink(missing_ok=True)
        del entries[name]


@contextmanager
def saving(manifest: Manifest, output: Path, count: int) -> Iterator[None]:
    """Writes the manifest before and after the work, whatever happens; on a full disk, says what is done."""
    manifest.complete = False
    try:
        save(manifest, output)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                remove_unfinished(output)  # on a full disk the manifest needs their room
            raise
        finally:
            save(manifest, output)
    except OSError as error:
        written = read_manifest(output)  # the next run will go by what is on the disk
        entered = written.pictures if written else {}
        finished = sum(entered.get(name) == source for name, source in manifest.pictures.items())
        raise OSError(
            f"prepare_data: {output}: {error.strerror or error}; {finished} of {count} pictures are done and "
            "kept. Run the same command again when that is solved"
        ) from error


def save(manifest: Manifest, output: Path) -> None:
    files = {
        kind: {name: row._asdict() for name, row in getattr(manifest, kind).items()}
        for kind in ("labels", "pictures")
    }
    with written_whole(output / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(vars(manifest) | files), "utf-8")  # as ASCII: names may not be UTF-8


def copy_labels(manifest: Manifest, root: Path, output: Path, names: list[str]) -> None:
    forget(manifest.labels, names, output)
    for name in names:
        if not is_done(manifest.labels.get(name), root / name, output / name):
            source = describe(root / name)
            with written_whole(output / name) as unfinished:
                shutil.copyfile(root / name, unfinished)
            manifest.labels[name] = source


def copy_pictures(manifest: Manifest, output: Path, tasks: list[Task], workers: int) -> None:
    """Enters each copy into the manifest, which is saved now and then."""
    saved = time.monotonic()
    with closing(results(tasks, workers)) as made:  # so that no process goes on writing, whatever happens
        for task, source in tqdm(made, total=len(tasks), unit=" pictures", disable=None):
            manifest.pictures[task.target.relative_to(output).as_posix()] = source
            if time.monotonic() - saved > 30:  # what is not in the manifest is made again
                save(manifest, output)
                saved = time.monotonic()


def results(tasks: list[Task], workers: int) -> Iterator[tuple[Task, Source]]:
    if not workers or len(tasks) < 2:
        yield from map(make_copy, tasks)
        return
    # Ctrl-C is for the main process, which ends the others.
    with multiprocessing.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(make_copy, tasks, chunksize=8)


def make_copy(task: Task) -> tuple[Task, Source]:
    """Writes the copy; the Source has an error if the picture cannot be decoded.

    Raises:
        OSError: the copy cannot be written.
    """
    source = Source("", 0, 0)
    try:
        source = describe(task.source)
        pixels = decode(task.source, task.size, task.exif)  # (size, size, 3)
    except (OSError, DecodeError) as error:
        task.target.unlink(missing_ok=True)
        reason = error.reason if isinstance(error, DecodeError) else explain_failure(task.source, error)
        return task, source._replace(error=reason)
    with written_whole(task.target) as unfinished:
        # subsampling=0: full resolution for colour too
        Image.fromarray(pixels).save(unfinished, "JPEG", quality=task.quality, subsampling=0)
    return task, source


def describe(path: str | Path) -> Source:
    """A file, described before it is copied: if it changes meanwhile, the next run notices."""
    stat = os.stat(path)  # noqa: PTH116
    return Source(file_hash(path), stat.st_size, stat.st_mtime_ns)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--dataset", type=str.lower, choices=SINGLE, required=True)
    add("--data-root", metavar="DIR", type=Path, required=True, help="the set as it is")
    add("--output", metavar="DIR", type=Path, required=True, help="folder for the copies")
    add("--quality", metavar="Q", type=int, default=95, help="of JPEG, 1 to 100; default 95")
    add("--splits", default=",".join(SPLITS), help="which to copy; default train,val,test")
    add("--workers", metavar="N", type=int, default=-1, help="processes; -1: the spare cores")
    add("settings", metavar="key=value", nargs="*", help="data.size=512, data.table=... ")
    options = parser.parse_args(arguments)
    if not 1 <= options.quality <= 100:
        parser.error(f"--quality is from 1 to 100, got {options.quality}")
    return guarded(prepare, options, interrupted="interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
