"""Finding the photographs that files, folders, globs and lists name, and dividing them into shards."""

# Paths are plain texts here: names that are no UTF-8 stay as they came.
# ruff: noqa: PTH112, PTH114, PTH118, PTH120, PTH122
from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from eamb.files import printable
from eamb.readers.decoding import PICTURE_ENDINGS


class PictureFile(NamedTuple):
    """A picture to score, and the folder that was searched for it; its own if it was named itself."""

    path: str
    folder: str


class Search:
    """Collects pictures in the order they are named, each file once; counts what folders hold beside them."""

    def __init__(self):
        self.pictures: dict[str, PictureFile] = {}  # by where the file really lies
        self.passed_over: Counter[str] = Counter()
        self.real_folder = functools.cache(os.path.realpath)

    def add_argument(self, argument: str) -> None:
        """A word of the command line: a path, a glob, or - for the list on standard input.

        A named file is taken whatever its ending, even if it is missing: its row will say so.
        """
        paths = [argument]
        if argument == "-":
            paths = read_list(sys.stdin)
        elif is_glob(argument) and not os.path.lexists(argument):
            paths = expand_glob(argument) or [argument]
        for path in paths:
            if os.path.isdir(path):
                self.add_folder(path)
            else:
                self.add_file(path, os.path.dirname(path))

    def add_file(self, path: str, folder: str) -> None:
        parent, name = os.path.split(path)
        self.pictures.setdefault(os.path.join(self.real_folder(parent), name), PictureFile(path, folder))

    def add_folder(self, folder: str) -> None:
        """Everything below a folder that has a picture's ending, sorted; does not follow linked folders.

        A folder that cannot be listed is taken for a picture: its row will say why.
        """

        def add_unreadable(error: OSError) -> None:
            self.add_file(error.filename, folder)

        for parent, folders, files in os.walk(folder, onerror=add_unreadable):
            for name in list(folders):
                hidden = name.startswith(".")
                if hidden or os.path.islink(os.path.join(parent, name)):
                    self.passed_over["hidden" if hidden else "linked"] += 1
                    folders.remove(name)
            folders.sort()
            for name in sorted(files):
                ending = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    self.passed_over["hidden"] += 1
                elif ending in PICTURE_ENDINGS:
                    self.add_file(os.path.join(parent, name), folder)
                else:
                    self.passed_over[ending or "without an ending"] += 1

    def describe_passed_over(self) -> str:
        """As in "118 .heic, 2 .txt, 3 hidden", the most frequent first."""
        ranked = self.passed_over.most_common()
        parts = [f"{count} {printable(kind)}" for kind, count in ranked[:8]]
        more = sum(count for _, count in ranked[8:])
        return ", ".join(parts + ([f"{more} more"] if more else []))


def is_glob(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def expand_glob(pattern: str) -> list[str]:
    """The matches, sorted, without hidden ones unless the pattern names them."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    base, rest = Path(*parts[:first]), Path(*parts[first:])

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.parts)

    # Not glob.glob, whose ** follows linked folders: two links back to the top would keep it busy for ever.
    matches = sorted(base.glob(str(rest)))
    return [str(path) for path in matches if is_hidden(rest) or not is_hidden(path.relative_to(base))]


def read_list(file: TextIO) -> list[str]:
    """Paths, one a line, in whatever bytes the file system uses for them; empty lines are skipped."""
    content = file.buffer.read()
    if b"\0" in content:
        raise ValueError("predict: the list on standard input has NUL characters; one path a line, please")
    return [os.fsdecode(line) for line in content.splitlines() if line]


def is_missing(path: str) -> bool:
    """Whether nothing is there for certain: behind a path that is too long, say, there may be something."""
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError))
    return False


def find_pictures(
    arguments: Sequence[str], shard: Shard | None = None, maps: Sequence[Path] = ()
) -> list[PictureFile]:
    """The pictures that a command line names, or a part; says on standard error what folders hold beside.

    Args:
        maps: the folders that the run itself, with all its parts, writes pictures into, and perhaps did
            before it was interrupted.

    Raises:
        ValueError: nothing was named, or no picture is in it.
        FileNotFoundError: nothing of it exists.
    """
    if not arguments:
        raise ValueError(
            "predict: which pictures? Name files, folders or globs, or - for a list on standard input"
        )
    search = Search()
    for argument in arguments:
        search.add_argument(argument)
    for folder in maps:
        written = os.path.join(os.path.realpath(folder), "")
        for place in [place for place in search.pictures if place.startswith(written)]:
            del search.pictures[place]
    passed_over = search.describe_passed_over()
    pictures = list(search.pictures.values())
    if not pictures:
        named = printable(", ".join(arguments[:3]) + (" ..." if len(arguments) > 3 else ""))
        beside = f"; passed over: {passed_over}" if passed_over else ""
        raise ValueError(f"predict: no picture ({' '.join(PICTURE_ENDINGS)}) in {named}{beside}")
    if all(is_missing(picture.path) for picture in pictures):
        more = f" (nor {len(pictures) - 1} others that were named)" if len(pictures) > 1 else ""
        raise FileNotFoundError(f"predict: no such file or folder: {printable(pictures[0].path)}{more}")
    if passed_over:
        print(f"passed over in folders: {passed_over}", file=sys.stderr)
    return shard.take(search.pictures) if shard else pictures


class Shard(NamedTuple):
    """Part `number`, from 1, of `count` equal parts of the pictures."""

    number: int
    count: int

    def take(self, pictures: dict[str, PictureFile]) -> list[PictureFile]:
        """Every count-th picture in the order of where the files really lie, however they were named.

        The parts together are all pictures, each once, if all are made of the same files. They stay in the
        order in which they were named.

        Args:
            pictures: by where the file really lies.
        """
        part = set(sorted(pictures)[self.number - 1 :: self.count])
        return [picture for place, picture in pictures.items() if place in part]

    def target(self, path: Path | None) -> Path | None:
        """What this part writes where the whole would write `path`: scores.csv -> scores.1of4.csv."""
        return path and path.with_name(f"{path.stem}.{self.number}of{self.count}{path.suffix}")


def choose_shard(text: str | None) -> Shard | None:
    """From --shard, as in "2/8"; None for all pictures.

    Raises:
        ValueError: it is no such part.
    """
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"predict: --shard is i/n with i from 1 to n, as in 2/8; got '{text}'")
    return Shard(int(number), int(count))


def torchrun_shard(options: argparse.Namespace) -> Shard | None:
    """The part of a process that torchrun started among several; None for any other process.

    Raises:
        ValueError: all would do one part, or each would read a piece of one list.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return None
    if options.shard is not None:
        raise ValueError("predict: torchrun gives each process its part; leave out --shard")
    if "-" in options.paths:
        raise ValueError(
            f"predict: {count} processes cannot all read the list on standard input; name files or folders, "
            "or start each part by itself with --shard i/n"
        )
    return Shard(int(os.environ["RANK"]) + 1, count)
