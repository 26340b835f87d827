"""Collections too large for a folder on one machine: their shards, and the pictures in them.

    source = find_source("s3://bucket/tars/*.tar")
    for picture in read_shard(source.shards[0]):
        picture.name, len(picture.content)

A shard is a WebDataset tar, a Parquet file, or so many files of a folder. Places with "://" are opened by
fsspec, which knows s3, gs, hdfs, https and more; others are paths on this machine.
"""

# Paths are plain strings here, so that names that are not UTF-8 stay unchanged.
# ruff: noqa: PTH100, PTH110, PTH112, PTH118, PTH119, PTH120, PTH122
from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from eamb.files import printable
from eamb.inference.photographs import expand_glob, find_pictures, is_glob
from eamb.inference.scorer import Decoded, decode_batch, read_picture
from eamb.readers.decoding import DecodeError, View
from eamb.readers.endings import PICTURE_ENDINGS, extra_shots

ENDINGS = {"tar": (".tar", ".tar.gz", ".tgz"), "parquet": (".parquet",), "pictures": PICTURE_ENDINGS}
ROWS = 64  # of a Parquet file that are read at once


class Shard(NamedTuple):
    """The unit in which a collection is read, scored, written, and skipped by the next run.

    name: of its output, unique in the collection.
    place: the path or URL of its tar or Parquet file; "" for a list of files.
    files: paths or URLs of its pictures, if it is a list.
    column, id_column: of a Parquet file, as `find_source` takes them.
    """

    name: str
    place: str
    files: tuple[str, ...] = ()
    column: str = ""
    id_column: str | None = None


class Source(NamedTuple):
    """The shards of a collection, and the plain values that tell it from others."""

    shards: list[Shard]
    description: dict[str, object]


class Picture(NamedTuple):
    """A picture of a shard: what it is called, and its file's path or URL or its content."""

    name: str
    place: str = ""
    content: bytes | None = None


class BadShardError(ValueError):
    """A shard that cannot be read to its end; the message is a reason that follows its name."""


def is_url(place: str) -> bool:
    return "://" in place


def lies_in(place: str, folder: str) -> bool:
    """Whether a path or URL is that of a folder or of something below it."""
    place, folder = (each if is_url(each) else os.path.abspath(each) for each in (place, folder))
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")


def find_source(
    place: str, shard_size: int = 1000, column: str = "image", id_column: str | None = None
) -> Source:
    """The shards of a folder, bucket prefix, glob or single file, sorted.

    Below a folder, hidden files are left out. Of pictures on this machine the same are taken as by `predict`.

    Args:
        place: holds tar files, Parquet files or pictures, not several of these kinds.
        shard_size: how many pictures that lie in files of their own are a shard.
        column: of Parquet files, with the pictures: bytes, structs with `bytes` and `path` as Hugging Face's
            datasets have them, or paths, relative to the Parquet file's folder.
        id_column: of Parquet files, with the pictures' names; otherwise these are paths, or else row numbers.

    Raises:
        ValueError, OSError: there is nothing to score, or several kinds of it; the first Parquet file lacks a
            column.
    """
    if shard_size < 1:
        raise ValueError(f"collection: --shard-size is at least 1, got {shard_size}")
    place = place.rstrip("/") if is_url(place.rstrip("/")) else place  # one source with and without
    if not is_url(place):
        place = os.path.abspath(place)
    root, files = list_remote(place) if is_url(place) else list_local(place)
    kinds = {kind: [file for file in files if file.lower().endswith(ENDINGS[kind])] for kind in ENDINGS}
    found = [kind for kind, names in kinds.items() if names]
    if len(found) != 1:
        counts = " and ".join(f"{len(kinds[kind])} {kind}" for kind in found)
        what = f"holds {counts} files" if counts else "holds no tar files, Parquet files or pictures"
        pattern = f"{printable(place.rstrip('/'))}/*.tar"
        raise ValueError(f"collection: {printable(place)} {what}; name files of one kind, as in '{pattern}'")
    [kind] = found
    description: dict[str, object] = {"source": printable(place), "kind": kind}
    if kind == "pictures":
        files = kinds[kind]
        if is_url(place):
            extra = extra_shots(files)
            files = [file for file in files if file not in extra]
        else:
            files = [picture.path for picture in find_pictures([place])]
        starts = range(0, len(files), shard_size)
        shards = [
            Shard(f"{number:06d}", "", tuple(files[start : start + shard_size]))
            for number, start in enumerate(starts)
        ]
        names = "\0".join(files).encode("utf-8", "surrogateescape")
        listing = {"pictures": len(files), "names": hashlib.sha256(names).hexdigest()}
        return Source(shards, description | {"shard_size": shard_size} | listing)
    columns = (column, id_column) if kind == "parquet" else ("", None)
    shards = [Shard(file[len(root) :].lstrip("/"), file, (), *columns) for file in kinds[kind]]
    if kind == "parquet":
        description |= {"column": column, "id_column": id_column}
        try:
            with opened(shards[0].place) as file:
                check_columns(pq.ParquetFile(file).schema_arrow, shards[0])
        except BadShardError as error:
            raise ValueError(f"collection: {printable(shards[0].place)} {error}") from error
        except pa.ArrowException:
            pass  # a damaged one costs its own pictures only
    return Source(shards, description)


def list_local(place: str) -> tuple[str, list[str]]:
    """The folder that names of shards are relative to, and the files, sorted."""
    if os.path.isdir(place):
        files = []
        for parent, folders, names in os.walk(place, onerror=say_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            files += [os.path.join(parent, name) for name in sorted(names) if not name.startswith(".")]
        return place, files
    if is_glob(place) and not os.path.lexists(place):
        return fixed_part(place), expand_glob(place)
    if not os.path.exists(place):
        raise FileNotFoundError(f"collection: no such file or folder: {printable(place)}")
    return os.path.dirname(place), [place]


def say_unreadable(error: OSError) -> None:
    """Says on standard error that a folder is left out."""
    print(f"folder {printable(error.filename)} cannot be listed ({error.strerror})", file=sys.stderr)


def list_remote(place: str) -> tuple[str, list[str]]:
    """As `list_local`, of a URL."""
    system, path = find_system(place)
    with listing(place):
        if is_glob(path):
            root, paths = fixed_part(path), system.glob(path)
        elif system.isfile(path):
            root, paths = path.rpartition("/")[0], [path]
        else:
            root, paths = path.rstrip("/"), system.find(path)
    hidden = {file for file in paths if "/." in file[len(root) :]}
    files = [system.unstrip_protocol(file) for file in sorted(paths) if file not in hidden]
    return system.unstrip_protocol(root), files


@contextmanager
def listing(place: str) -> Iterator[None]:
    """Makes one sentence of what a bucket's library raises, which may be nearly anything."""
    try:
        yield
    except Exception as error:
        raise OSError(f"collection: {printable(place)} cannot be listed ({reason_of(error)})") from error


def fixed_part(pattern: str) -> str:
    """The folder before the first *, ? or [."""
    parts = pattern.split("/")
    return "/".join(parts[: next(place for place, part in enumerate(parts) if is_glob(part))])


def find_system(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and the path there.

    Raises:
        ValueError: its protocol is unknown, or needs a package that is not installed.
    """
    try:
        return fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise ValueError(f"collection: {place} cannot be opened ({error})") from error


def opened(place: str):
    """The file at a path or URL, for reading bytes."""
    if not is_url(place):
        return Path(place).open("rb")
    system, path = find_system(place)
    return system.open(path, "rb")


# ---- reading


def read_shard(shard: Shard) -> Iterator[Picture]:
    """The pictures of a shard, in order; memory holds few at a time.

    Raises:
        BadShardError: it cannot be read to its end, or is not what it should be.
    """
    if not shard.place:
        yield from (Picture(file, file) for file in shard.files)
        return
    read = read_parquet if shard.place.lower().endswith(ENDINGS["parquet"]) else read_tar
    try:
        with opened(shard.place) as file:
            yield from read(file, shard)
    except BadShardError:
        raise
    except (tarfile.TarError, EOFError, pa.ArrowException) as error:
        raise BadShardError(f"is cut off or damaged ({reason_of(error)}); copy it again") from error
    except Exception as error:  # damaged files, and libraries of buckets, raise nearly anything
        raise BadShardError(f"cannot be read ({reason_of(error)})") from error


def reason_of(error: Exception) -> str:
    """An error's own words on one line, for a message of ours."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split()).removeprefix("collection: ")[:200]


class CheckedHeader(tarfile.TarInfo):
    """Without it tarfile takes a damaged header, or the end of a file that was cut, for the end of a tar."""

    @classmethod
    def fromtarfile(cls, file: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(file)
        except tarfile.EOFHeaderError:  # zeros, with which every whole tar ends
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} after {file.offset:,} bytes") from error


def read_tar(file, shard: Shard) -> Iterator[Picture]:
    """The members of a tar that are pictures by their endings; hidden ones are left out."""
    count = 0
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=CheckedHeader) as tar:
        for member in tar:
            name = os.path.basename(member.name)
            if member.isfile() and name.lower().endswith(PICTURE_ENDINGS) and not name.startswith("."):
                count += 1
                yield Picture(member.name, content=tar.extractfile(member).read())
            tar.members = []  # it would keep them all
    if not count:
        raise BadShardError("holds no picture")


def read_parquet(file, shard: Shard) -> Iterator[Picture]:
    table = pq.ParquetFile(file)
    check_columns(table.schema_arrow, shard)
    columns = [name for name in (shard.column, shard.id_column) if name is not None]
    folder, number = shard.place.rpartition("/")[0], 0
    for batch in table.iter_batches(ROWS, columns=columns):
        names = batch[shard.id_column].to_pylist() if shard.id_column else [None] * len(batch)
        for cell, name in zip(batch[shard.column].to_pylist(), names, strict=True):
            content, path = cell if isinstance(cell, bytes) else None, cell if isinstance(cell, str) else None
            if isinstance(cell, dict):
                content, path = cell["bytes"], cell.get("path")
            name = str(number if name is None and path is None else path if name is None else name)
            if content is None and path:
                yield Picture(name, path if is_url(path) else os.path.join(folder, path))
            else:
                yield Picture(name, content=content or b"")
            number += 1


def check_columns(schema: pa.Schema, shard: Shard) -> None:
    """Raises BadShardError unless the columns are there, with pictures or paths."""
    has = ", ".join(f"{each.name} ({short_type(each.type)})" for each in schema)
    for name, option in ((shard.column, "--column"), (shard.id_column, "--id-column")):
        if name is not None and name not in schema.names:
            raise BadShardError(f"has no column '{printable(name)}'; name one by {option}; it has {has}")
    kind = schema.field(shard.column).type
    if pa.types.is_struct(kind) and "bytes" in [each.name for each in kind]:
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    good = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    if not any(fits(kind) for fits in good):
        raise BadShardError(
            f"has no pictures in '{printable(shard.column)}': name a column of bytes or paths by --column; "
            f"it has {has}"
        )


def short_type(kind: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)


# ---- decoding


def decode_pictures(pictures: Sequence[Picture], views: Sequence[View], exact: bool) -> Decoded:
    """A batch of pictures, decoded for each of the views as `predict` does (`decoding.decode_views`)."""

    def read(picture: Picture):
        try:
            with on_this_machine(picture) as path:
                return read_picture(path, list(views), exact)
        except DecodeError:
            raise
        except FileNotFoundError as error:
            raise DecodeError("there is no such file") from error
        except Exception as error:  # as in `read_shard`; one picture never ends the run
            raise DecodeError(f"cannot be read ({reason_of(error)})") from error

    return decode_batch([picture.name for picture in pictures], pictures, read)


@contextmanager
def on_this_machine(picture: Picture) -> Iterator[str]:
    """The path of a file with the picture; a temporary one, with its ending, unless it has a path here.

    RAW files are known by their ending, and decoders of some formats take only files.
    """
    if picture.content is None and not is_url(picture.place):
        yield picture.place
        return
    content = picture.content
    if content is None:
        with opened(picture.place) as file:
            content = file.read()
    ending = os.path.splitext(picture.place or picture.name)[1].lower()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture" + (ending if ending in PICTURE_ENDINGS else ""))
        path.write_bytes(content)
        yield str(path)
