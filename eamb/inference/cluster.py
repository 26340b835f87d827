"""Scores shards on the machines of a Ray cluster, or on this machine, where it starts Ray itself."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_worker_niceness", "0")  # as `predict`; Ray's own is 15

import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext

from eamb.files import printable
from eamb.inference.collection import BadShardError, Picture, Shard, decode_pictures
from eamb.inference.scored_shards import Scoring, ShardScorer
from eamb.inference.scorer import Decoded
from eamb.readers.decoding import View

ROOT = Path(__file__).parents[2]
TRIES = 5  # of a shard, or of a batch to decode, whose process dies
DIED = f"the process that had it died {TRIES} times, of a picture or for want of memory"
SMALL = 128 * 2**20  # bytes of Ray's object store where only rows pass through it
# glibc would give threads memory of their own, which `engine.keep_memory` cannot keep: a fifth slower.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


@contextlib.contextmanager
def started(address: str | None) -> Iterator[None]:
    """Ray: joined at that address, or started on this machine for as long as this lasts.

    Raises:
        ConnectionError: no cluster answers there.
    """
    if ray.is_initialized():
        yield
        return
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL, "include_dashboard": False}
    if address is None:
        gpus = torch.cuda.device_count()
        options |= {"address": "local", "num_cpus": torch.get_num_threads(), "num_gpus": gpus}
        options |= {"object_store_memory": None if gpus else SMALL}
        modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        options |= {"runtime_env": {"env_vars": {**ENVIRONMENT, "PYTHONPATH": modules}}}
    else:  # our code travels with the job
        unused = [".git", ".venv", "checkpoints", "docs", "results", "runs", "tests", "data"]
        code = {"working_dir": str(ROOT), "excludes": unused}
        options = {**options, "runtime_env": {**code, "env_vars": ENVIRONMENT}, "address": address}
        del options["include_dashboard"]
    try:
        if address not in (None, "auto"):
            check_answer(address)
        with without_stderr():
            ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"join the Ray cluster at {address}" if address else "start Ray"
        advice = "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if address else ""
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"collection: cannot {what} ({reason}){advice}") from error
    try:
        yield
    finally:
        ray.shutdown()


def check_answer(address: str) -> None:
    """Raises OSError or ValueError if nobody answers there; Ray itself would try for minutes, silently."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdecimal():
        raise ValueError("an address is HOST:PORT, or auto")
    socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Drops what Ray's C++ writes on standard error while it starts, whatever its level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@ray.remote(num_cpus=1, max_retries=TRIES - 1)
def decode_remotely(pictures: Sequence[Picture], views: Sequence[View], exact: bool) -> Decoded:
    torch.set_num_threads(1)
    return decode_pictures(pictures, views, exact)


def decode_on_cluster(pictures: Sequence[Picture], views: Sequence[View], exact: bool) -> Decoded:
    try:
        return ray.get(decode_remotely.remote(pictures, views, exact))
    except ray.exceptions.WorkerCrashedError as error:
        raise BadShardError(f"was given up near {printable(pictures[0].name)}: {DIED}") from error


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Attempts:
    """Counts how often each shard or actor was begun; one that kills its process would be tried for ever."""

    def __init__(self, most: int):
        self.most, self.counts = most, Counter()

    def begin(self, name: str) -> bool:
        """Counts, and says whether it may be tried."""
        self.counts[name] += 1
        return self.counts[name] <= self.most

    def forget(self, name: str) -> None:
        self.counts.pop(name, None)


class ShardActor(ShardScorer):
    """A `ShardScorer` that gives up a shard whose actors have died too often."""

    def __init__(self, scoring: Scoring, decode: Callable[..., Decoded] | None, attempts: ActorHandle):
        own = ray.get_runtime_context().get_actor_id()  # the same after Ray has started it again
        if not ray.get(attempts.begin.remote(own)):
            raise MemoryError(
                "it died while it loaded the network, again and again, perhaps for want of memory"
            )
        super().__init__(scoring, decode)
        attempts.forget.remote(own)
        self.attempts = attempts

    def rows(self, shard: Shard) -> list[dict]:
        if not ray.get(self.attempts.begin.remote(shard.name)):
            raise BadShardError(f"was given up: {DIED}")
        return super().rows(shard)


def score_shards(shards: Sequence[Shard], scoring: Scoring, cores: int | None = None) -> Iterator[dict]:
    """What `ShardScorer` returns for each shard, as they are finished.

    One actor runs the network on each GPU, and batches are decoded on the cluster's CPUs; without a GPU there
    is an actor for every `cores` cores, whose threads decode and score. A shard whose actor dies is scored
    again, by another; after TRIES times it is given up.

    Args:
        cores: of an actor without a GPU; None: all of the smallest node, but at most 8.

    Raises:
        ValueError: no machine has so many cores.
        ChildProcessError: an actor cannot be started, or fails otherwise than by dying.
    """
    cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    gpus = 0 if scoring.options.get("device") == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    if gpus:
        actors, needs = gpus, {"num_cpus": 0, "num_gpus": 1}  # a CPU less could leave none for decoding
        threads = max(1, int(sum(cpus)) // gpus)
    else:
        scoring = scoring._replace(options=scoring.options | {"device": "cpu"})
        threads = cores or int(min([8, *(count for count in cpus if count)]))
        actors, needs = sum(int(count // threads) for count in cpus), {"num_cpus": threads}
        if not actors:
            raise ValueError(
                f"collection: no machine of the cluster has {threads} cores; give fewer by --cores"
            )
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    items = [{"shard": pickle.dumps(shard)} for shard in shards]
    arguments = {"scoring": scoring._replace(threads=threads), "decode": decode_on_cluster if gpus else None}
    # One shard at a time, so that one whose actors die takes no other with it.
    pool = ActorPoolStrategy(size=min(actors, len(shards)), max_tasks_in_flight_per_actor=1)
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(
        ShardActor,
        fn_constructor_kwargs=arguments | {"attempts": Attempts.remote(TRIES)},
        compute=pool,
        **needs,
    )
    try:
        yield from results.iter_rows()
    except ray.exceptions.RayError as error:
        reason = [line for line in str(error).splitlines() if line.strip()][-1]
        raise ChildProcessError(f"collection: an actor of Ray failed ({reason.strip()})") from error
