"""Scores whole shards of a collection, and the folder or bucket prefix that keeps the scores.

OUTPUT/collection.json             the source, the weights and the settings that the scores belong to
OUTPUT/scores/<shard>.parquet      one row a picture; a file is there if its shard is whole
OUTPUT/report.json                 what the last run did, and which shards could not be read
OUTPUT/kept.parquet                shard and path of the pictures that --filter keeps
"""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from eamb.files import encodable, printable, written_whole
from eamb.inference.collection import (
    BadShardError,
    Picture,
    Shard,
    decode_pictures,
    find_system,
    is_url,
    listing,
    opened,
    read_shard,
    reason_of,
)
from eamb.inference.rows import NOTE, as_row, column_names
from eamb.inference.scorer import Decoded, Scored, Scorer, in_threads
from eamb.network.hub import CONFIG, WEIGHTS

TEXTS = ("shard", "path", "emotion", "error")
DESCRIPTION, SCORES, REPORT, KEPT = "collection.json", "scores", "report.json", "kept.parquet"


def schema_of(scorer: Scorer, emotions: bool) -> pa.Schema:
    """The columns of `predict`, after the shard's name; numbers are float64, null where there is no value."""
    several = len(scorer.network.networks) > 1
    columns = column_names(scorer.scale, scorer.emotions if emotions else (), several)
    return pa.schema([(name, pa.string() if name in TEXTS else pa.float64()) for name in ("shard", *columns)])


class Scoring(NamedTuple):
    """How pictures are scored; plain values, which travel to other machines.

    files: of `read_weights`.
    options: of `Scorer`.
    threads: on a CPU as many decode and score, with one core each; for a GPU so many batches are decoded
        ahead.
    emotions: a column for each emotion.
    """

    files: dict[str, bytes]
    options: dict[str, Any]
    threads: int = 1
    emotions: bool = False

    def scorer(self) -> Scorer:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                Path(folder, name).parent.mkdir(exist_ok=True)
                Path(folder, name).write_bytes(content)
            networks = dict.fromkeys(Path(folder, name.partition("/")[0]) for name in self.files)
            return Scorer([*networks], workers=self.threads, **self.options)


def read_weights(networks: Sequence[Path]) -> dict[str, bytes]:
    """The files of networks, each a file or a folder as a hub has it: a number for each network, with the
    ending or with a folder's file behind a slash -> content."""
    contents = {}
    for number, path in enumerate(networks):
        folder = path.parent if path.name == WEIGHTS and path.with_name(CONFIG).is_file() else path
        if folder.is_dir():
            contents |= {f"{number}/{name}": (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        else:
            contents[f"{number}{path.suffix}"] = path.read_bytes()
    return contents


class ShardScorer:
    """Reads, decodes and scores one shard after the other.

    Memory holds the network, about two batches per thread, and the rows of one shard.

    Args:
        decode: called in other threads with pictures, views and `exact`, as `decode_pictures`; if it is
            given, the threads decode and the caller's own runs the network, on a GPU say. Otherwise each
            thread does both, as in `predict` on a CPU.
    """

    def __init__(self, scoring: Scoring, decode: Callable[..., Decoded] | None = None):
        torch.set_num_threads(1 if decode else scoring.threads)
        self.scorer, self.threads, self.decode = scoring.scorer(), scoring.threads, decode
        self.schema = schema_of(self.scorer, scoring.emotions)

    def __call__(self, row: dict) -> dict:
        """{"shard": a pickled `Shard`} -> its name, its scores as a Parquet file, and how many they are.

        A shard that cannot be read has the reason as `error` and an empty file.
        """
        shard = pickle.loads(row["shard"])  # noqa: S301 - we pickled it
        result = {"name": shard.name, "file": b"", "pictures": 0, "failed": 0, "noted": 0, "error": ""}
        try:
            rows = self.rows(shard)
        except BadShardError as error:
            return result | {"error": str(error)}
        errors = [row["error"] or "" for row in rows]
        notes = sum(error.startswith(NOTE) for error in errors)
        name = encodable(shard.name)
        table = pa.Table.from_pylist([row | {"shard": name} for row in rows], self.schema)
        counts = {"pictures": len(rows), "failed": sum(map(bool, errors)) - notes, "noted": notes}
        return result | counts | {"file": as_parquet(table)}

    def rows(self, shard: Shard) -> list[dict]:
        return [as_row(scored, self.schema.names) for scored in self.score_all(read_shard(shard))]

    def score_all(self, pictures: Iterator[Picture]) -> Iterator[Scored]:
        """The results of pictures, in order."""
        scorer, size = self.scorer, self.scorer.batch_size
        batches = iter(lambda: list(islice(pictures, size)), [])
        decode = self.decode or decode_pictures

        def decoded(batch: list[Picture]) -> Decoded:
            return decode(batch, scorer.network.views, scorer.exact)

        if self.decode:
            results = (
                scorer.score_decoded(batch, size) for batch in in_threads(decoded, batches, self.threads)
            )
        else:
            results = in_threads(
                lambda batch: scorer.score_decoded(decoded(batch), size), batches, self.threads
            )
        for batch in results:
            yield from batch


def as_parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


class Output:
    """The folder or bucket prefix in which the scores of one collection are kept.

    Args:
        description: what the scores belong to, as plain values; another one's output is refused.

    Raises:
        ValueError: the scores there are of another source, other weights or other settings.
        OSError: it holds other things, or cannot be written.
    """

    def __init__(self, place: str, description: dict):
        self.place = place.rstrip("/")
        existing = self.names("")
        if DESCRIPTION in existing:
            before = self.described()
            for name in dict.fromkeys([*description, *before]):
                ours, theirs = description.get(name), before.get(name)
                if ours != theirs:
                    raise ValueError(
                        f"collection: {printable(place)} holds scores of a run with {name} "
                        f"{json.dumps(theirs)}, and this one has {json.dumps(ours)}; choose another output"
                    )
        elif existing:
            raise FileExistsError(
                f"collection: {printable(place)} is not empty and has no {DESCRIPTION}; choose another output"
            )
        else:
            self.write(DESCRIPTION, json.dumps(description, indent=1))

    def described(self) -> dict:
        try:
            with opened(f"{self.place}/{DESCRIPTION}") as file:
                return dict(json.load(file))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"collection: {printable(self.place)}/{DESCRIPTION} is damaged or not of this program; "
                "choose another output"
            ) from error

    def names(self, folder: str) -> set[str]:
        """The files below a folder of it, relative to that."""
        place = f"{self.place}/{folder}".rstrip("/")
        if not is_url(place):
            files = (path for path in Path(place).rglob("*") if path.is_file())
            return {str(path.relative_to(place)) for path in files if not path.name.startswith(".")}
        system, path = find_system(place)
        root = path.rstrip("/") + "/"
        with listing(place):
            files = system.find(path)
        return {file[len(root) :] for file in files if "/." not in file[len(root) - 1 :]}

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to; it gets its name when it is whole."""
        place = f"{self.place}/{name}"
        if not is_url(place):
            with written_whole(Path(place)) as unfinished, unfinished.open("wb") as file:
                yield file
            return
        system, path = find_system(place)
        folder, _, last = path.rpartition("/")
        system.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{last}.tmp"
        with system.open(temporary, "wb") as file:
            yield file
        system.mv(temporary, path)

    def write(self, name: str, text: str) -> None:
        with self.writing(name) as file:
            file.write(text.encode())

    def whole(self, shards: Sequence[Shard]) -> set[str]:
        """The names of the shards that need not be scored again."""
        names = self.names(SCORES)
        return {shard.name for shard in shards if file_of(shard.name) in names}

    def write_shard(self, name: str, content: bytes) -> None:
        with self.writing(f"{SCORES}/{file_of(name)}") as file:
            file.write(content)

    def read_scores(self, name: str, schema: pa.Schema) -> pa.Table:
        place = f"{self.place}/{SCORES}/{file_of(name)}"
        try:
            with opened(place) as file:
                return pq.read_table(file, schema=schema)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"collection: {printable(place)} cannot be read ({reason_of(error)}); delete it and run again"
            ) from error

    def write_report(self, report: dict) -> None:
        self.write(REPORT, json.dumps(report, indent=1))

    def write_kept(self, shards: Iterable[str], expression: pc.Expression, schema: pa.Schema) -> int:
        """Writes shard and path of each picture with a score that matches, in order; how many they are."""
        ids = pa.schema([schema.field("shard"), schema.field("path")])
        matching = expression & pc.field("score").is_valid()
        count = 0
        with self.writing(KEPT) as file, pq.ParquetWriter(file, ids, compression="zstd") as writer:
            for name in shards:
                kept = self.read_scores(name, schema).filter(matching).select(ids.names)
                count += len(kept)
                if len(kept):
                    writer.write_table(kept)
        return count


def file_of(shard: str) -> str:
    return shard if shard.endswith(".parquet") else f"{shard}.parquet"
