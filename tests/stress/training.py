"""Kills a training at random moments, resumes it each time, and compares it with one that was left alone.

    python -m tests.stress.training   # 50 kills: half of one process, half of two gloo processes
    python -m tests.stress.training --kills 1000 --seed 1

A tiny network trains on the demo set, with a process that decodes, and writes a checkpoint after every step.
SIGKILL comes at a random moment of the start, of the training, or of the writing of a file. Of two processes
either both get it, or one alone, and then the other must end by itself. A run that has reached its end must
equal the one that was never killed, bit for bit: weights, optimizer state, progress, metrics.jsonl and
predictions. Exit code 1: something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from eamb.readers.demo import make_demo
from eamb.weights import checkpoint
from main import main as eambnet
from tests.small import UNTRAINED, WORDS, plain, without_drawing, without_versions

SETTINGS = [*WORDS, "data.workers=1", "data.limit=64", "train.batch_size=16", "train.checkpoint_minutes=0"]
SETTINGS += ["train.clip=0.5", "optimizer.schedule=one_cycle", "evaluate.batch_size=64", UNTRAINED]
# Imported once for all trainings, which then start at once.
LOADED = ["main", "eamb.training.run", "eamb.readers.demo", "eamb.evaluation.figures", "torch._dynamo"]
LOADED += ["timm", "torchvision", "torch.utils.tensorboard"]
END = 60  # seconds within which a process must end whose partner has died


def forkserver() -> BaseContext:
    """Starts processes that have imported LOADED already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


class Trainings:
    """Trainings of `count` processes on a demo set in `folder`; what they print is in logs beside it."""

    def __init__(self, folder: Path, count: int, settings: list[str]):
        self.folder, self.count = folder, count
        self.words = ["train", "--dataset", "demo", "--data-root", str(folder / "demo"), *SETTINGS]
        self.words += [*settings, "--resume"]
        if not (folder / "demo").exists():
            make_demo(folder / "demo")

    def start(self, output: Path) -> list[BaseProcess]:
        """A training's processes, begun or resumed."""
        context = forkserver()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
        variables |= {"WORLD_SIZE": self.count, "LOCAL_WORLD_SIZE": self.count}
        words, processes = [*self.words, "--output", str(output)], []
        for rank in range(self.count):
            variables |= {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(context.Process(target=train, args=(words, Path(f"{output}.log"), variables)))
            processes[-1].start()
        return processes


def train(words: list[str], log: Path, variables: dict[str, object]) -> None:
    """One process of a training."""
    gc.freeze()  # what was imported
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # decoding processes start in the usual way
    if variables["WORLD_SIZE"] > 1:
        os.environ |= {name: str(value) for name, value in variables.items()}
    with (
        log.open("a") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        without_drawing(),
    ):
        sys.exit(eambnet(words))


def finish(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RuntimeError(f"stress: a training ended by itself, exit codes {codes}; see its log")


def wait_until_written(processes: list[BaseProcess], path: Path) -> bool:
    """Waits until the file has been written again; False: the training ended before."""
    before = path.exists() and path.stat().st_mtime_ns
    while (path.exists() and path.stat().st_mtime_ns) == before:
        if not all(process.is_alive() for process in processes):
            return False
        time.sleep(0.001)
    return True


def kill(processes: list[BaseProcess], output: Path, seconds: float, chance: random.Random) -> list[str]:
    """Kills a training at a random moment; returns what kind of kill that was; empty: it had ended before."""
    moment = chance.choice(("start", "training", "training", "writing", "writing"))
    if moment == "start" or (wait_until_written(processes, output / "last.pt") and moment == "training"):
        time.sleep(chance.uniform(0, seconds / 4))
    elif moment == "writing":
        unfinished = f".{chance.choice(('last.pt', 'last.pt', 'metrics.jsonl', 'best.pt'))}*"
        while all(process.is_alive() for process in processes) and not any(output.glob(unfinished)):
            pass
        time.sleep(chance.uniform(0, 0.003))
    alone = moment != "start" and len(processes) > 1 and chance.random() < 0.5
    for process in [chance.choice(processes)] if alone else processes:
        process.kill()
    for process in processes:
        process.join(END)
    if any(process.is_alive() for process in processes):
        raise RuntimeError(f"stress: a process lived on for {END} s after its partner was killed")
    if not any(process.exitcode == -signal.SIGKILL for process in processes):
        finish(processes)
        return []
    writing = any(output.rglob(f".*.{processes[0].pid}.tmp"))
    return ["kills"] + ["of one process alone"] * alone + ["while writing"] * writing


def kill_and_compare(trainings: Trainings, kills: int, chance: random.Random) -> list[str]:
    """Kills trainings `kills` times; returns what differs from an undisturbed one."""
    whole, started = trainings.folder / f"{trainings.count}_undisturbed", time.monotonic()
    finish(trainings.start(whole))
    seconds = time.monotonic() - started
    counts, different = Counter(), []
    while counts["kills"] < kills:
        counts["trainings"] += 1
        output = trainings.folder / f"{trainings.count}_killed_{counts['trainings']}"
        while counts["kills"] < kills and (kinds := kill(trainings.start(output), output, seconds, chance)):
            counts.update(kinds)
        finish(trainings.start(output))
        different += differences(whole, output)
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{trainings.count} process(es): {summary}, {len(different)} differences", flush=True)
    return different


def differences(first: Path, second: Path) -> list[str]:
    """The files in which two finished runs differ, to the last bit."""

    def read(path: Path) -> str | bytes | None:
        if path.suffix != ".pt":
            return path.read_bytes() if path.exists() else None
        weights, state = checkpoint.load_training(path)
        ids = weights.training_ids.tolist(), weights.emotion_training_ids.tolist()
        return repr([plain(weights.tensors), without_versions(weights.description), ids, plain(state)])

    names = ("last.pt", "best.pt", "metrics.jsonl", "test/predictions.csv")
    return [str(second / name) for name in names if read(first / name) != read(second / name)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=50, help="in all (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--epochs", type=int, default=6, help="of each training (default 6)")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="of the training, as for main.py")
    options = parser.parse_intermixed_args(arguments)
    different, share = [], -(-options.kills // len(options.processes))
    with tempfile.TemporaryDirectory() as folder:
        for count in options.processes:
            trainings = Trainings(Path(folder), count, [f"train.epochs={options.epochs}", *options.settings])
            different += kill_and_compare(trainings, share, random.Random(options.seed + count))
    print("\n".join([*different, f"differences: {len(different)}"]))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
