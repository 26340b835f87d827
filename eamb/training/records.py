"""The folder of a run: checkpoints, the log of its epochs, TensorBoard, lists of pictures left out.

A full or failing disk costs checkpoints, never the run: what could not be written is kept in memory and
written the next time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from eamb.evaluation.report import FILES, without_nan
from eamb.files import written_whole
from eamb.readers.rated import LeftOut, RatedSet, write_left_out
from eamb.runtime import distributed
from eamb.runtime.config import Config, as_yaml
from eamb.weights.checkpoint import Weights, save_training

PREVIOUS = "previous.pt"  # the last.pt before
NAMES = ("last.pt", PREVIOUS, "best.pt", "metrics.jsonl", "curves.png", "left_out_*.csv", "broken_*.csv")
NAMES += (
    "noted_*.csv",
    "tensorboard/events.*",
    *(f"{test}/{name}" for test in ("test", "test/*") for name in FILES),
)
LISTED = {
    "broken": "cannot be decoded and are left out",
    "noted": "have a defect and are read all the same",
}
UNFINISHED = (".*.tmp", "test/.*.tmp", "test/*/.*.tmp")


def checkpoints(output: Path) -> list[Path]:
    """Checkpoints to resume from, newest first; a run killed between two renames has no last.pt."""
    return [path for path in (output / "last.pt", output / PREVIOUS) if path.is_file()]


def clear(output: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in output.glob(pattern):
            path.unlink()


def refuse_another_run(output: Path) -> None:
    kept = [name for name in ("last.pt", PREVIOUS, "best.pt", "metrics.jsonl") if (output / name).exists()]
    if kept:
        raise ValueError(
            f"training: {output} holds a run already ({', '.join(kept)}); go on with --resume (it needs "
            f"last.pt or {PREVIOUS}), choose another --output, or start over it with --force"
        )


@contextmanager
def warn_on_failure(lost: str) -> Iterator[None]:
    """Turns a failure to write into a warning that says what was lost."""
    try:
        yield
    except OSError as error:
        print(f"warning: training: {error}: {lost}", file=sys.stderr, flush=True)


class Records:
    """The files of a run, written by the main process only.

    saved: whether the last checkpoint could be written.
    """

    def __init__(self, output: Path):
        self.output, self.last, self.best_file = output, output / "last.pt", output / "best.pt"
        self.saved = True
        self.log: list[str] = []
        self.new_best: tuple[Weights, int] | None = None  # and its epoch, not yet on the disk
        self.listed: dict[str, set[LeftOut]] = {}  # of each list of pictures, by its file's name
        self.tensorboard = None

    def open(self, config: Config, data: dict[str, RatedSet], resumed: Path | None, epoch: int) -> None:
        """Clears the folder for a new run, or continues the records of one that is resumed from the
        checkpoint `resumed` at `epoch` (from 0)."""
        from torch.utils.tensorboard import SummaryWriter

        clear(self.output, UNFINISHED if resumed else (*UNFINISHED, *NAMES))
        if resumed:
            resumed.replace(self.last)  # or the next save would keep a damaged last.pt as previous.pt
            log = self.output / "metrics.jsonl"
            self.log = log.read_text().splitlines(keepends=True)[:epoch] if log.exists() else []
            self.write_log()
        (self.output / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
        for split, rated in data.items():
            if rated.left_out:
                write_left_out(self.output / f"left_out_{split}.csv", rated)
        self.tensorboard = SummaryWriter(self.output / "tensorboard", purge_step=epoch)

    def write_log(self) -> None:
        with written_whole(self.output / "metrics.jsonl") as temporary:
            temporary.write_text("".join(self.log))

    def close(self) -> None:
        if self.tensorboard:
            with warn_on_failure("TensorBoard lacks the last epochs"):
                self.tensorboard.close()

    def add_epoch(self, epoch: int, figures: dict[str, float], best: Weights | None) -> None:
        """Adds an epoch's metrics to the log, and keeps its weights for best.pt if they are the best."""
        self.log.append(json.dumps(without_nan(figures)) + "\n")
        if best:  # a copy, because training changes the tensors
            tensors = {name: value.clone() for name, value in best.tensors.items()}
            self.new_best = replace(best, tensors=tensors), epoch
        with warn_on_failure("TensorBoard lacks this epoch"):
            for name, value in figures.items():
                self.tensorboard.add_scalar(name, value, epoch)
            self.tensorboard.flush()

    def save(self, weights: Weights, state: dict) -> None:
        """Writes the log, best.pt and last.pt, in this order: last.pt must never be ahead of the others.

        If no checkpoint exists in the end, log and best.pt are deleted: nothing can be resumed from them,
        and they would block a new start.
        """
        self.saved = False
        with warn_on_failure(f"{self.last} was not written; the one before stays"):
            try:
                self.write_log()
                if self.new_best:
                    save_training(self.best_file, self.new_best[0], {"epoch": self.new_best[1]})
                save_training(self.last, weights, state, self.output / PREVIOUS)
                self.new_best, self.saved = None, True
            finally:
                if not checkpoints(self.output):
                    clear(self.output, ("metrics.jsonl", "best.pt"))

    def list_pictures(self, kind: str, rated: RatedSet, pictures: Sequence[LeftOut]) -> None:
        """Adds to broken_<split>.csv or noted_<split>.csv, which name each picture that could not be decoded,
        or whose file has a defect (a damaged colour profile) that did not prevent it."""
        path = self.output / f"{kind}_{rated.split}.csv"
        listed = self.listed.setdefault(path.name, set())
        if not distributed.is_main() or listed.issuperset(pictures):
            return
        every = listed | set(pictures)
        with warn_on_failure(f"{path} was not written"):
            write_left_out(path, replace(rated, left_out=sorted(every)))
            listed.update(pictures)
        print(f"{len(every)} pictures of {rated.split} {LISTED[kind]}: {path}", flush=True)
