"""Writes resized copies of a set's pictures, so that training and evaluation read small files.

    python scripts/prepare_data.py --dataset para --data-root DATA/para --output DATA/para512 data.size=512
    python main.py train --dataset para --data-root DATA/para512 data.size=512

The folder it writes is a data root like the original: the label files, and every picture under its own
relative path, turned and resized as in decoding, a JPEG whatever its name ends in. prepared.json lists the
source files with hash, size and modification time. A second run continues where the first one stopped, and
renews what has changed. A picture that cannot be decoded has no copy; prepared.json gives the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from PIL import Image, features

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import SetReader
from eamb.files import file_hash, written_whole
from eamb.readers.decoding import DecodeError, View, decode, explain_failure
from eamb.readers.prepared import MANIFEST, Manifest, Source, read_manifest, relative_names
from eamb.readers.rated import SPLITS
from eamb.readers.registry import DATASETS, SINGLE
from eamb.runtime.command import check_output, guarded
from eamb.runtime.config import load_config
from eamb.runtime.progress import progress


def prepare(options: argparse.Namespace) -> int:
    """0 if every picture has its copy, 1 if some could not be decoded."""
    config = load_config((), [*options.settings, f"data.workers={options.workers}"])
    root, output = options.data_root, options.output
    splits = [] if options.splits == ",".join(SPLITS) else ["--splits", options.splits]
    program = {"pillow": Image.__version__, "libjpeg_turbo": features.version("libjpeg_turbo") or "none"}
    words = [*splits, *(word for word in options.settings if not word.startswith("data.icc="))]
    view = View(config.data.size, config.data.exif, icc=config.data.icc)
    given = (options.dataset, str(root.resolve()), words, view.size, view.exif, options.quality)
    asked = Manifest(*given, program=program, icc=view.icc)
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
    with saving(manifest, output):
        copy_labels(manifest, root, output, sorted(path.relative_to(root).as_posix() for path in labels))
        forget(manifest.pictures, names, output)
        pictures = manifest.pictures
        todo = [name for name in names if not is_done(pictures.get(name), root / name, output / name)]
        copy = partial(make_copy, root, output, view, options.quality)
        saved = time.monotonic()
        with closing(results(copy, todo, config.data.worker_count())) as made:  # ends the processes
            for name, source in progress(made, total=len(todo), unit=" pictures"):
                pictures[name] = source
                if time.monotonic() - saved > 30:  # pictures not in the manifest are copied again
                    save(manifest, output)
                    saved = time.monotonic()
        manifest.complete = True
    broken = [(name, source.error) for name, source in pictures.items() if source.error]
    if broken:
        first = f"no copy of {broken[0][0]}: {broken[0][1]}"
        print(f"{first}; {len(broken)} in all, named in {output / MANIFEST}", file=sys.stderr)
    if noted := sum(bool(source.note) for source in pictures.values()):
        print(f"{noted} pictures have a defect and were copied all the same; notes in {output / MANIFEST}")
    print(f"{len(pictures) - len(broken)} copies in {output}, {len(todo)} pictures processed now")
    return 1 if broken else 0


def start(asked: Manifest, root: Path, output: Path) -> Manifest:
    """The manifest asked for, or the existing one if the folder holds such copies already.

    Raises:
        ValueError, FileExistsError: the folder holds something else, or one folder is inside the other.
    """
    source, target = root.resolve(), output.resolve()
    if source in (target, *target.parents) or target in source.parents or read_manifest(root):
        raise ValueError(
            f"prepare_data: {output} and {root} must lie beside each other, not one in the other, and the "
            "second must hold the pictures themselves, not copies"
        )
    check_output("prepare_data", output)
    before = read_manifest(output)
    if not before:
        if output.is_dir() and any(output.iterdir()):
            raise FileExistsError(f"prepare_data: {output} holds other files; choose a new folder")
        return asked
    for key in ("dataset", "source", "size", "exif", "icc", "quality", "words"):
        if getattr(before, key) != getattr(asked, key):
            raise ValueError(
                f"prepare_data: {output} holds copies with {key} {getattr(before, key)}, and "
                f"{getattr(asked, key)} is asked for; choose another folder, or delete this one"
            )
    return before


def is_done(entry: Source | None, source: Path, target: Path) -> bool:
    if entry is None or not source.is_file() or not entry.is_unchanged(source):
        return False
    return bool(entry.error) or target.is_file()


def forget(entries: dict[str, Source], names: Iterable[str], output: Path) -> None:
    """Removes copies of files that the set no longer has: readers that list folders would include them."""
    for name in entries.keys() - set(names):
        (output / name).unlink(missing_ok=True)
        del entries[name]


@contextmanager
def saving(manifest: Manifest, output: Path) -> Iterator[None]:
    """Writes the manifest before and after the work, whatever happens."""
    manifest.complete = False
    try:
        save(manifest, output)
        try:
            yield
        finally:
            for unfinished in output.rglob(".*.tmp"):  # on a full disk the manifest needs their space
                unfinished.unlink(missing_ok=True)
            save(manifest, output)
    except OSError as error:
        raise OSError(
            f"prepare_data: {output}: {error.strerror or error}; the pictures that are done are kept. Run "
            "the same command again when that is solved"
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


def results(copy: Callable, names: list[str], workers: int) -> Iterator[tuple[str, Source]]:
    if not workers or len(names) < 2:
        yield from map(copy, names)
        return
    # Only the main process handles Ctrl-C; it ends the others.
    with ProcessPoolExecutor(workers, None, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield from pool.map(copy, names, chunksize=8)
        except BrokenProcessPool as error:
            words = f"one of --workers {workers} processes was ended, perhaps for want of memory"
            raise ChildProcessError(f"{words} (fewer need less)") from error  # `saving` adds the rest


def make_copy(root: Path, output: Path, view: View, quality: int, name: str) -> tuple[str, Source]:
    """Writes a picture's copy; its Source has an error if the picture cannot be decoded.

    Raises:
        OSError: the copy cannot be written.
    """
    picture, source = str(root / name), Source("", 0, 0)
    try:
        source = describe(picture)
        notes: list[str] = []
        pixels = decode(picture, view.size, view.exif, note=notes.append, icc=view.icc)  # (size, size, 3)
        source = source._replace(note="; ".join(notes))
    except (OSError, DecodeError) as error:
        (output / name).unlink(missing_ok=True)
        reason = error.reason if isinstance(error, DecodeError) else explain_failure(picture, error)
        return name, source._replace(error=reason)
    with written_whole(output / name) as unfinished:
        # subsampling=0 keeps colour at full resolution
        Image.fromarray(pixels).save(unfinished, "JPEG", quality=quality, subsampling=0)
    return name, source


def describe(path: str | Path) -> Source:
    """Hash, size and time of a file, taken before copying: if it changes meanwhile, the next run notices."""
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
