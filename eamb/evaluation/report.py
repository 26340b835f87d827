"""The outcome of one evaluation: its table, predictions.csv, metrics.json and pictures."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np

import metrics
from eamb.files import write_csv, written_whole

PROGRAM = Path(__file__).parents[2]  # this program's folder
CROSS_SET = ("n", "srcc", "plcc", "krcc")
DIGITS = 8  # of a prediction; a float32 has fewer
FILES = (
    "predictions.csv",
    "metrics.json",
    "scatter.png",
    "confusion.png",
    "emotion_bars.png",
    "reliability.png",
)


@dataclass
class Report:
    """The outcome of one evaluation; `str()` is the table, `write` leaves the files.

    predictions: columns of predictions.csv, each (n,), in the order of the set.
    facts: everything in metrics.json beside metrics and intervals.
    pictures: file name -> function that draws it to the path it is given.
    high: (n,) bool, the pictures predicted to be high; None where no threshold applies.
    emotions: the report on the emotions that an aesthetic network predicts, if the set has emotion labels.
    """

    title: str
    metrics: dict[str, float]
    predictions: dict[str, np.ndarray]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    high: np.ndarray | None = None
    emotions: Report | None = None

    def __str__(self) -> str:
        text = "\n".join([self.title, table(self.metrics, self.intervals), *self.notes])
        return f"{text}\n\n{self.emotions}" if self.emotions else text

    @property
    def all_pictures(self) -> dict[str, Callable[[Path], None]]:
        return self.pictures | (self.emotions.pictures if self.emotions else {})

    @property
    def files(self) -> str:
        return " ".join(["predictions.csv", "metrics.json", *self.all_pictures])

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns of predictions.csv: the score, then the emotions."""
        if not self.emotions:
            return self.predictions
        columns = dict(self.emotions.predictions)
        del columns["id"]
        return self.predictions | {"emotion": columns.pop("prediction")} | columns

    def content(self) -> dict:
        """What metrics.json holds."""
        content = {"metrics": self.metrics, "intervals_95": self.intervals, **self.facts, "notes": self.notes}
        return content | ({"emotions": self.emotions.content()} if self.emotions else {})

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / "predictions.csv") as path:
            write_columns(path, self.columns)
        text = json.dumps(without_nan(self.content()), indent=1, allow_nan=False)
        with written_whole(folder / "metrics.json") as path:
            path.write_text(text + "\n", encoding="utf-8")
        for name, draw in self.all_pictures.items():
            draw(folder / name)


def without_nan(value):
    """The same value with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_columns(path: Path, columns: dict[str, Sequence]) -> None:
    """Writes columns of equal length as a csv.

    Numbers are written in full, so that whoever reads the file gets the same numbers; texts are made `safe`
    for spreadsheets, which `eamb.files.original` undoes.
    """
    write_csv(path, chain([columns], zip(*columns.values(), strict=True)))


def rounded(values: np.ndarray) -> np.ndarray:
    """(...) float64 with DIGITS significant digits.

    Predictions are rounded before anything is measured, not when they are written: so the figures are exactly
    those of predictions.csv, and the file is half as long as with all digits.
    """
    return np.array([float(f"{value:.{DIGITS}g}") for value in values.ravel()]).reshape(values.shape)


def table(
    values: dict[str, float], intervals: dict[str, tuple[float, float]] | None = None, level: float = 0.95
) -> str:
    """Metrics as aligned text, one a line, followed by the interval if there is one."""
    intervals = intervals or {}
    rows = [("", "", f"{100 * level:g} % interval")] if intervals else []
    for name, value in values.items():
        if name == "threshold":  # it is part of the names of the accuracies
            continue
        number = f"{value:d}" if name in ("n", "pairs", "series") else f"{value:.4f}"
        low_high = "{:.4f} to {:.4f}".format(*intervals[name]) if name in intervals else ""
        rows.append((term(name, values.get("threshold")), number, low_high))
    name_width, number_width = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return "\n".join(f"{a:<{name_width}}  {b:>{number_width}}  {c}".rstrip() for a, b, c in rows)


def term(name: str, threshold: float | None) -> str:
    """The field's word for a metric."""
    if name in ("accuracy", "accuracy_inclusive") and threshold is not None:
        return f"accuracy ({'>=' if name.endswith('inclusive') else '>'} {threshold:g})"
    if name.startswith("accuracy_0."):
        low, high = name.removeprefix("accuracy_").split("_")
        return f"accuracy, {float(low):.0%} to {float(high):.0%} agree"
    if name.startswith("recall_"):
        return f"recall of {name.removeprefix('recall_')}"
    return metrics.TERMS.get(name, name)


def draw_reliability(report: Report, path: Path) -> None:
    from eamb.evaluation.figures import save_reliability

    figures = "accuracy {accuracy:.3f}, log-loss {log_loss:.3f}, {pairs:,} pairs".format(**report.metrics)
    columns = report.predictions
    save_reliability(columns["prediction"], columns["preference"], path, f"{report.title}\n{figures}")


def draw_scatter(report: Report, rated: np.ndarray, path: Path) -> None:
    from eamb.evaluation.figures import save_scatter

    figures = "SRCC {srcc:.3f}, PLCC {plcc:.3f}, n = {n:,}".format(**report.metrics)
    save_scatter(report.predictions["prediction"], rated, path, "rating", f"{report.title}\n{figures}")


def draw_confusion(report: Report, path: Path) -> None:
    from eamb.evaluation.figures import save_confusion

    figures = "accuracy {accuracy:.3f}, macro F1 {macro_f1:.3f}, n = {n:,}".format(**report.metrics)
    counts = np.array(report.facts["confusion"])
    save_confusion(counts, report.facts["emotions"], path, f"{report.title}: {figures}")


def draw_bars(report: Report, groups: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    from eamb.evaluation.figures import save_emotion_bars

    title = f"{report.title}: high and low pictures by emotion"
    save_emotion_bars(groups, report.emotions.facts["emotions"], path, title)


def versions(folder: Path = PROGRAM) -> dict[str, str | bool]:
    """Of the packages that can change a figure, and the program's git revision.

    The revision is "unknown" unless `folder` is the top of a git checkout; one that lies somewhere inside
    another repository has nothing to do with it. `dirty` tells whether tracked files were changed since.
    """
    result = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")}
    try:
        top, revision = git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() == folder.resolve():
            dirty = bool(git(folder, "status", "--porcelain", "--untracked-files=no"))
            return {**result, "revision": revision, "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):  # there is no git, or no checkout
        pass
    return {**result, "revision": "unknown"}


def git(folder: Path, *words: str) -> str:
    """What git prints."""
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
