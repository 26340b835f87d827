"""Kills a training at random moments, resumes it each time, and compares it with one that was left alone.

    python scripts/torture_training.py   # 50 kills: half of one process, half of two gloo processes
    python scripts/torture_training.py --kills 1000 --seed 1

A tiny network trains on the demo set, with a process that decodes, and writes a checkpoint after every step.
SIGKILL comes at a random moment of the start, of the training, or of the writing of a file; of two processes
both get it, or one alone, and the other must then end by itself. A run that has reached its end must equal
the one that was never killed bit for bit: weights, optimizer state, progress, metrics.jsonl and predictions.
Exit code 0: equal; 1: something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eamb.runtime.command import guarded
from main import main as run_main

WORDS = [
    *("data.size=64", "data.workers=1", "data.limit=64", "train.batch_size=16", "train.device=cpu"),
    *("train.checkpoint_minutes=0", "train.clip=0.5", "evaluate.bootstrap=0", "optimizer.schedule=one_cycle"),
    *("model.backbone=test_efficientnet", "model.width=16", "model.guided_width=8", "model.guided_hidden=4"),
    *("model.head_width=8", "model.imagenet=none", "model.emotion_weights=none", "evaluate.batch_size=64"),
]
# Once for all trainings, which then start in no time.
LOADED = ["training", "demo", "visualize", "timm", "torchvision", "torch._dynamo", "torch.utils.tensorboard"]
COMPARED = ("metrics.jsonl", "test/predictions.csv")
END = 60  # seconds within which a process must end whose partner has died


def main(arguments: list[str] | None = None) -> int:
    return guarded(run, parse(arguments))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torture_training.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=50, help="in all (default 50)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--epochs", type=int, default=6, help="of each training (default 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the runs here; default: nowhere")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="of the training, as for main.py")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        folder = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        from eamb.readers.demo import make_demo

        make_demo(folder / "demo")
        found = []
        share = -(-options.kills // len(options.processes))
        for world in options.processes:
            words = [f"train.epochs={options.epochs}", *options.settings]
            torture = Torture(folder, world, words, random.Random(options.seed + world))
            found += torture.run(share)
    print(f"differences: {len(found)}")
    return 1 if found else 0


class Torture:
    """Trainings of `world` processes in `folder`."""

    def __init__(self, folder: Path, world: int, words: list[str], chance: random.Random):
        self.folder, self.world, self.chance = folder, world, chance
        self.words = ["train", "--dataset", "demo", "--data-root", str(folder / "demo"), *WORDS]
        self.words += [*words, "--resume"]
        self.kills = self.resumed = self.in_writing = self.alone = 0

    def run(self, kills: int) -> list[str]:
        """Kills so often, over as many trainings as that takes, and says what differs."""
        whole, found, rounds = self.folder / f"{self.world}_undisturbed", [], 0
        started = time.monotonic()
        self.finish(self.start(whole))
        seconds = time.monotonic() - started
        while self.kills < kills:
            rounds += 1
            output = self.folder / f"{self.world}_killed_{rounds}"
            while self.kills < kills and self.kill(self.start(output), output, seconds):
                pass
            self.finish(self.start(output))
            found += (differing := differences(whole, output))
            print("\n".join(differing), end="\n" if differing else "")
        alone = f", {self.alone} of one process alone" if self.world > 1 else ""
        print(
            f"{self.world} process(es): {self.kills} kills ({self.in_writing} while a file was "
            f"written{alone}), {self.resumed} resumes, {rounds} trainings, {len(found)} differences",
            flush=True,
        )
        return found

    def start(self, output: Path) -> list[BaseProcess]:
        """A training's processes, begun or taken up."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED)
        words, port = [*self.words, "--output", str(output)], free_port()
        log = output.with_name(f"{output.name}.log")
        arguments = [(words, log, rank, self.world, port) for rank in range(self.world)]
        processes = [context.Process(target=train, args=each) for each in arguments]
        for process in processes:
            process.start()
        return processes

    def finish(self, processes: list[BaseProcess]) -> None:
        for process in processes:
            process.join()
        self.check(processes)

    def check(self, processes: list[BaseProcess]) -> None:
        codes = [process.exitcode for process in processes]
        if any(codes):
            raise RuntimeError(
                f"torture_training: a training ended by itself, exit codes {codes}; see its log"
            )

    def kill(self, processes: list[BaseProcess], output: Path, seconds: float) -> bool:
        """Kills a training at a random moment; False: it had ended before."""
        moment = self.chance.choice(("start", "training", "training", "writing", "writing"))
        resumes = (output / "last.pt").exists()
        if moment == "start":
            time.sleep(self.chance.uniform(0, seconds / 4))
        else:
            changed = self.wait(processes, output / "last.pt")
            if changed and moment == "training":
                time.sleep(self.chance.uniform(0, seconds / 4))
            elif changed:
                self.wait_for_writing(processes, output)
        if not any(process.is_alive() for process in processes):
            self.check(processes)
            return False
        alone = moment != "start" and self.world > 1 and self.chance.random() < 0.5
        for process in [self.chance.choice(processes)] if alone else processes:
            process.kill()
        for process in processes:
            process.join(END)
        if any(process.is_alive() for process in processes):
            raise RuntimeError(
                f"torture_training: a process lived on for {END} s after its partner was killed"
            )
        if not any(process.exitcode == -signal.SIGKILL for process in processes):  # it has just ended
            self.check(processes)
            return False
        self.kills += 1
        self.resumed += resumes
        self.alone += alone
        self.in_writing += any(output.rglob(f".*.{processes[0].pid}.tmp"))
        return True

    def wait(self, processes: list[BaseProcess], path: Path) -> bool:
        """Waits until the file is written anew; False: the training ended before."""
        before = changed_at(path)
        while changed_at(path) == before:
            if not all(process.is_alive() for process in processes):
                return False
            time.sleep(0.001)
        return True

    def wait_for_writing(self, processes: list[BaseProcess], output: Path) -> None:
        unfinished = f".{self.chance.choice(('last.pt', 'last.pt', 'metrics.jsonl', 'best.pt'))}"
        while all(process.is_alive() for process in processes):
            with os.scandir(output) as entries:
                if any(entry.name.startswith(unfinished) for entry in entries):
                    time.sleep(self.chance.uniform(0, 0.003))
                    return


def train(words: list[str], log: Path, rank: int, world: int, port: int) -> None:
    """One process of a training; what it says is added to the log."""
    import torch

    from eamb.evaluation import figures as visualize

    visualize.write_figure = lambda figure, path: None  # most of a tiny training's time
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # of decoding processes: the usual one, not this one's
    if world > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        values = {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in values.items()}
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = run_main(words)
    sys.exit(code)


def changed_at(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def differences(first: Path, second: Path) -> list[str]:
    """In what two finished runs differ, in words."""
    from eamb.weights import checkpoint

    found = []
    for name in ("last.pt", "best.pt"):
        parts = []
        for folder in (first, second):
            weights, state = checkpoint.load_training(folder / name)
            description = {key: value for key, value in weights.description.items() if key != "versions"}
            ids = weights.training_ids.tolist(), weights.emotion_training_ids.tolist()
            parts.append({"weights": weights.tensors, "about": description, "ids": ids, "state": state})
        found += unequal(f"{second / name}", *parts)
    for name in COMPARED:
        contents = [(folder / name).read_bytes() for folder in (first, second) if (folder / name).exists()]
        if len(contents) == 1 or contents[:1] != contents[1:]:
            found.append(f"{second / name}")
    return found


def unequal(place: str, first, second) -> list[str]:
    """The places where nested values differ, to the last bit."""
    import torch

    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [place]
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [found for key in first for found in unequal(f"{place}: {key}", first[key], second[key])]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [found for i, pair in pairs for found in unequal(f"{place}: {i}", *pair)]
    return [] if repr(first) == repr(second) else [place]


if __name__ == "__main__":
    sys.exit(main())
