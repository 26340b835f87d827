"""The outcome of one evaluation: its table, predictions.csv, metrics.json and pictures."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np

import metrics
from eamb.files import write_csv, written_whole

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
    emotions: of an aesthetic network on a set with emotion labels, the report on those.
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
        own = "\n".join([self.title, metrics.table(self.metrics, self.intervals), *self.notes])
        return f"{own}\n\n{self.emotions}" if self.emotions else own

    @property
    def all_pictures(self) -> dict[str, Callable[[Path], None]]:
        return self.pictures | (self.emotions.pictures if self.emotions else {})

    @property
    def files(self) -> str:
        return " ".join(["predictions.csv", "metrics.json", *self.all_pictures])

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Of predictions.csv: of a score, then of the emotions."""
        if not self.emotions:
            return self.predictions
        columns = dict(self.emotions.predictions)
        del columns["id"]
        return self.predictions | {"emotion": columns.pop("prediction")} | columns

    def content(self) -> dict:
        """Of metrics.json."""
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


def write_columns(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Numbers in full, so that who reads the file has them again exactly; `rounded` ones are short."""
    write_csv(path, chain([columns], zip(*columns.values(), strict=True)))


def rounded(values: np.ndarray) -> np.ndarray:
    """(...) float64 with DIGITS significant digits.

    Predictions are rounded before they are measured, not when they are written: so the figures are those of
    predictions.csv, to the last digit, and the file is half as long as it would be with all digits.
    """
    return np.array([float(f"{value:.{DIGITS}g}") for value in values.ravel()]).reshape(values.shape)


def draw_reliability(report: Report, path: Path) -> None:
    from eamb.evaluation.figures import save_reliability

    found = "accuracy {accuracy:.3f}, log-loss {log_loss:.3f}, {pairs:,} pairs".format(**report.metrics)
    columns = report.predictions
    save_reliability(columns["prediction"], columns["preference"], path, f"{report.title}\n{found}")


def draw_scatter(report: Report, rated: np.ndarray, path: Path) -> None:
    from eamb.evaluation.figures import save_scatter

    found = "SRCC {srcc:.3f}, PLCC {plcc:.3f}, n = {n:,}".format(**report.metrics)
    save_scatter(report.predictions["prediction"], rated, path, "rating", f"{report.title}\n{found}")


def draw_confusion(report: Report, path: Path) -> None:
    from eamb.evaluation.figures import save_confusion

    found = "accuracy {accuracy:.3f}, macro F1 {macro_f1:.3f}, n = {n:,}".format(**report.metrics)
    counts = np.array(report.facts["confusion"])
    save_confusion(counts, report.facts["emotions"], path, f"{report.title}: {found}")


def draw_bars(report: Report, groups: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    from eamb.evaluation.figures import save_emotion_bars

    title = f"{report.title}: high and low pictures by emotion"
    save_emotion_bars(groups, report.emotions.facts["emotions"], path, title)


def versions() -> dict[str, str]:
    """Of the packages that can change a figure, and of this program if it is a git checkout."""
    found = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")}
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        found["revision"] = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["revision"] = "unknown"
    return found
