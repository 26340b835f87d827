"""Scores shards on the machines of a Ray cluster, or on this machine, where it starts Ray itself."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
from ray.data import ActorPoolStrategy, DataContext

from eamb.inference.collection import Picture, Shard, decode_pictures
from eamb.inference.scored_shards import Scoring, ShardScorer
from eamb.inference.scorer import Decoded
from eamb.readers.decoding import View

ROOT = Path(__file__).parents[2]
RETRIES = 5  # of a shard, or a batch to decode, whose process has died
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
        options |= {"num_cpus": len(os.sched_getaffinity(0)), "num_gpus": gpus}
        options |= {"object_store_memory": None if gpus else SMALL}
        options |= {"runtime_env": {"env_vars": {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}}}
    else:  # our code travels with the job
        unused = [".git", ".venv", "checkpoints", "docs", "results", "runs", "tests", "data"]
        code = {"working_dir": str(ROOT), "excludes": unused}
        options = {**options, "runtime_env": {**code, "env_vars": ENVIRONMENT}, "address": address}
        del options["include_dashboard"]
    try:
        ray.init(**options)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        where = f"join a Ray cluster at {address}" if address else "start Ray"
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"collection: cannot {where} ({reason})") from error
    try:
        yield
    finally:
        ray.shutdown()


@ray.remote(num_cpus=1, max_retries=RETRIES)
def decode_remotely(pictures: Sequence[Picture], views: Sequence[View], exact: bool) -> Decoded:
    torch.set_num_threads(1)
    return decode_pictures(pictures, views, exact)


def decode_on_cluster(pictures: Sequence[Picture], views: Sequence[View], exact: bool) -> Decoded:
    return ray.get(decode_remotely.remote(pictures, views, exact))


def score_shards(shards: Sequence[Shard], scoring: Scoring, cores: int | None = None) -> Iterator[dict]:
    """What `ShardScorer` returns for each shard, as they are finished.

    One actor runs the network on each GPU, and batches are decoded on the cluster's CPUs; without a GPU there
    is an actor for every `cores` cores, whose threads decode and score. A shard whose actor dies is scored
    again, by another; after RETRIES times it is left out.

    Args:
        cores: of an actor without a GPU; None: all of the smallest node, but at most 8.
    """
    cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    gpus = 0 if scoring.options.get("device") == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    if gpus:
        actors, needs = gpus, {"num_cpus": 1, "num_gpus": 1}
        threads = max(1, int(sum(cpus) - gpus) // gpus)
    else:
        threads = cores or int(min(8, *[count for count in cpus if count], 8))
        actors, needs = max(1, sum(int(count // threads) for count in cpus)), {"num_cpus": threads}
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a shard that is left out ends up in the report
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    items = [{"shard": pickle.dumps(shard)} for shard in shards]
    arguments = {"scoring": scoring._replace(threads=threads), "decode": decode_on_cluster if gpus else None}
    pool = ActorPoolStrategy(size=min(actors, len(shards)))
    retries = {"max_restarts": -1, "max_task_retries": RETRIES}
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map(
        ShardScorer, fn_constructor_kwargs=arguments, compute=pool, **needs, **retries
    )
    yield from rows.iter_rows()
