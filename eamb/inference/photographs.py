"""Finding the photographs that files, folders, globs and lists name, and dividing them into shards."""

# Paths are plain strings here, so that names that are not UTF-8 stay unchanged.
# ruff: noqa: PTH112, PTH114, PTH118, PTH120, PTH122
from __future__ import annotations

import argparse
import codecs
import functools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from eamb.files import home_in_row, list_folder, on_disk, printable
from eamb.readers.endings import PICTURE_ENDINGS, extra_shots


class PictureFile(NamedTuple):
    """A picture to score, and the searched folder it was found in; its own folder if it was named itself."""

    path: str
    folder: str


def find_pictures(
    arguments: Sequence[str], shard: Shard | None = None, maps: Sequence[Path] = (), raw: str = "jpeg"
) -> list[PictureFile]:
    """The pictures that a command line names, each file once, in that order; or a shard of them.

    A named file is taken whatever its ending, even if it is missing: its row will say so. A folder gives all
    files below it with a picture's ending, sorted; how many others it has is printed on standard error.

    Args:
        arguments: paths, globs, or - for the list on standard input.
        maps: folders into which this run, or another shard of it, writes pictures, perhaps already before an
            interruption; they are not searched.
        raw: what is taken of a photograph that is there as RAW and as JPEG or HEIC: "jpeg", "raw" or "both".

    Raises:
        ValueError: nothing was named, or what was named holds no picture.
        FileNotFoundError: none of the pictures exists.
    """
    if not arguments:
        raise ValueError(
            "predict: which pictures? Name files, folders or globs, or - for a list on standard input"
        )
    pictures: dict[str, PictureFile] = {}  # by real path
    passed_over: Counter[str] = Counter()
    real_folder = functools.cache(os.path.realpath)
    for path in named_paths(arguments):
        is_folder = os.path.isdir(path)
        folder = path if is_folder else os.path.dirname(path)
        for file in search_folder(path, passed_over) if is_folder else [path]:
            parent, name = os.path.split(file)
            pictures.setdefault(os.path.join(real_folder(parent), name), PictureFile(file, folder))
    written = tuple(os.path.join(os.path.realpath(folder), "") for folder in maps)
    pictures = {place: picture for place, picture in pictures.items() if not place.startswith(written)}
    extra = extra_shots(pictures, raw)
    pictures = {place: picture for place, picture in pictures.items() if place not in extra}
    beside = ", ".join(f"{count} {printable(kind)}" for kind, count in (+passed_over).most_common())
    if not pictures:
        named = f"{printable(', '.join(arguments[:3]))}; passed over: {beside or 'nothing'}"
        raise ValueError(f"predict: no picture ({' '.join(PICTURE_ENDINGS)}) in {named}")
    if not any(os.path.lexists(picture.path) for picture in pictures.values()):
        first = printable(next(iter(pictures.values())).path)
        raise FileNotFoundError(f"predict: no such file or folder: {first}")
    if beside:
        print(f"passed over in folders: {beside}", file=sys.stderr)
    if extra:
        other = "a JPEG or HEIC" if raw == "jpeg" else "a RAW"
        print(f"left out: {len(extra)} with {other} of the same name (--raw {raw})", file=sys.stderr)
    return shard.take(pictures) if shard else list(pictures.values())


def named_paths(arguments: Sequence[str]) -> Iterator[str]:
    """The paths that command-line arguments stand for."""
    listed = functools.cache(list_folder)
    for argument in arguments:
        if argument == "-":
            content = sys.stdin.buffer.read()  # in whatever bytes the file system uses for paths
            if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
                content = content.decode("utf-16", "replace").encode()
            content = content.removeprefix(codecs.BOM_UTF8)
            if b"\0" in content:
                raise ValueError(
                    "predict: the list on standard input has zero bytes, as UTF-16 and `find -print0` write "
                    "them; give one path a line, in UTF-8"
                )
            lines = [os.fsdecode(line) for line in content.splitlines() if line]
            yield from (on_disk(home_in_row(line), listed) for line in lines)
        elif is_glob(argument) and not os.path.lexists(argument):
            yield from expand_glob(argument) or [argument]
        else:
            yield on_disk(argument, listed)


def is_glob(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def expand_glob(pattern: str) -> list[str]:
    """The matches, sorted, without hidden ones unless the pattern names them."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    base, rest = Path(*parts[:first]), Path(*parts[first:])

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.parts)

    # Not glob.glob, whose ** follows linked folders: with two links to the top it would never end.
    matches = sorted(base.glob(str(rest)))
    return [str(path) for path in matches if is_hidden(rest) or not is_hidden(path.relative_to(base))]


def search_folder(folder: str, passed_over: Counter[str]) -> Iterator[str]:
    """Everything below a folder that has a picture's ending, sorted; does not follow linked folders.

    A folder that cannot be listed is returned like a picture: its row will say why.
    """
    unreadable: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(error.filename)):
        linked = {name for name in folders if os.path.islink(os.path.join(parent, name))}
        hidden = {name for name in (*folders, *files) if name.startswith(".")}
        passed_over.update({"hidden": len(hidden), "linked": len(linked - hidden)})
        folders[:] = sorted({*folders} - linked - hidden)
        for name in sorted({*files} - hidden):
            ending = os.path.splitext(name)[1].lower()
            if ending in PICTURE_ENDINGS:
                yield os.path.join(parent, name)
            else:
                passed_over[ending or "without an ending"] += 1
    yield from unreadable


class Shard(NamedTuple):
    """Part `number`, from 1, of `count` equal parts of the pictures."""

    number: int
    count: int

    def take(self, pictures: dict[str, PictureFile]) -> list[PictureFile]:
        """Every count-th of the pictures, sorted by real path (the keys).

        The shards of the same files together hold each picture once, however they were named. Within a shard
        pictures keep the order in which they were named.
        """
        part = set(sorted(pictures)[self.number - 1 :: self.count])
        return [picture for place, picture in pictures.items() if place in part]

    def target(self, path: Path | None) -> Path | None:
        """The file that this shard writes in place of `path`: scores.csv -> scores.1of4.csv."""
        return path and path.with_name(f"{path.stem}.{self.number}of{self.count}{path.suffix}")


def choose_shard(text: str | None) -> Shard | None:
    """The shard that --shard names, as in "2/8"; None: all pictures. Raises ValueError for bad text."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"predict: --shard is i/n with i from 1 to n, as in 2/8; got '{text}'")
    return Shard(int(number), int(count))


def torchrun_shard(options: argparse.Namespace) -> Shard | None:
    """The shard of this process if torchrun started several, else None.

    Raises ValueError for --shard and for a list on standard input, which several processes cannot share.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return None
    if options.shard is not None or "-" in options.paths:
        raise ValueError(
            f"predict: torchrun gives each of {count} processes its part of files or folders; leave out "
            "--shard and the list on standard input"
        )
    return Shard(int(os.environ["RANK"]) + 1, count)
