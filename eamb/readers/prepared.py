"""The copies of pictures that scripts/prepare_data.py makes, and the manifest that describes them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eamb.files import home, nfc
from eamb.readers.rated import Copies
from eamb.readers.table import read_json

if TYPE_CHECKING:
    from eamb.readers.decoding import View

MANIFEST = "prepared.json"


class Source(NamedTuple):
    """A file that was copied; error: why it has no copy, or ""; note: what is wrong with it all the same."""

    sha256: str
    bytes: int
    mtime_ns: int
    error: str = ""
    note: str = ""

    def is_unchanged(self, path: str | Path) -> bool:
        """Also true if there is no file at `path`: copies may be used without their sources."""
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path for each of 250,000 pictures takes seconds
        except OSError:
            return True
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)


@dataclass
class Manifest:
    """The content of prepared.json; labels, pictures: path relative to the root -> Source.

    words: settings as key=value, without data.icc. program: versions of the libraries that made the copies.
    icc: whether they are converted to sRGB; older ones are not.
    """

    dataset: str
    source: str
    words: list[str]
    size: int
    exif: bool
    quality: int
    program: dict[str, str]
    complete: bool = False
    icc: bool = False
    labels: dict[str, Source] = field(default_factory=dict)
    pictures: dict[str, Source] = field(default_factory=dict)

    def command(self, root: str | Path) -> str:
        ignored = [] if self.icc else ["data.icc=false"]
        words = ["python", "scripts/prepare_data.py", "--dataset", self.dataset, "--data-root", self.source]
        return shlex.join(
            [*words, "--output", str(root), "--quality", str(self.quality), *self.words, *ignored]
        )

    def check_complete(self, root: str | Path) -> None:
        if not self.complete:
            raise ValueError(f"datasets: {root} has only part of its copies; to go on: {self.command(root)}")

    def check_sources(self, root: str | Path, paths: Sequence[str]) -> tuple[tuple[Copies, ...], list[str]]:
        """The copies, and the hash of each path's source; ValueError: one is not copied or has changed."""
        spelled = {nfc(name): name for name in self.pictures}
        names = [spelled.get(nfc(name), name) for name in relative_names(root, paths)]
        command = self.command(root)
        used = self.labels | {name: self.pictures.get(name) for name in names}
        folder = os.path.join(self.source, "")  # noqa: PTH118
        wrong = [name for name, source in used.items() if not (source and source.is_unchanged(folder + name))]
        if wrong:
            raise ValueError(
                f"datasets: {root} holds copies of {self.source}, and {len(wrong)} files are not copied or "
                f"have changed there since, first '{wrong[0]}'; remove files you added and rerun: {command}"
            )
        copies = Copies(str(root), self.size, self.exif, command, self.icc)
        return (copies,), [self.pictures[name].sha256 for name in names]


def relative_names(root: str | Path, paths: Iterable[str]) -> list[str]:
    """Each path relative to the root; one that lies elsewhere is left as it is."""
    start = os.path.join(home(str(root)), "")  # noqa: PTH118
    return [path.removeprefix("./").removeprefix(start) for path in paths]


def read_manifest(root: str | Path) -> Manifest | None:
    """The manifest of prepared copies; None if the folder holds none."""
    path = Path(home(str(root))) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = Manifest(**read_json(path))
        for files in (manifest.labels, manifest.pictures):
            files.update({name: Source(**row) for name, row in files.items()})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"datasets: {path} was not made by scripts/prepare_data.py: {error}.") from error
    return manifest


def check_copies(copies: Copies, view: View) -> None:
    """Refuses copies of another size, orientation or colour than decoding the pictures would give."""

    def words(size: object, exif: bool, icc: bool) -> str:
        return f"data.size={size} data.exif={str(exif).lower()} data.icc={str(icc).lower()}"

    side = copies.size if view.size == (copies.size, copies.size) else view.size
    have, want = words(copies.size, copies.exif, copies.icc), words(side, view.exif, bool(view.icc))
    if have != want:
        only_colour = have == words(side, view.exif, copies.icc)
        hint = f"give data.icc={str(copies.icc).lower()}, " if only_colour else ""
        raise ValueError(
            f"datasets: {copies.root} holds copies made with {have}, and {want} is asked for; {hint}use the "
            f"pictures themselves, or make other copies in another folder. These came from: {copies.command}"
        )
