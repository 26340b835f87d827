"""The outcome of one evaluation: its table, predictions.csv, metrics.json and plots."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np

import metrics
from eamb.files import write_csv, written_whole

# File -> the function of eamb.evaluation.figures that draws it, and what its title adds to the report's.
PLOTS = {
    "scatter.png": ("save_scatter", "\nSRCC {srcc:.3f}, PLCC {plcc:.3f}, n = {n:,}"),
    "confusion.png": ("save_confusion", ": accuracy {accuracy:.3f}, macro F1 {macro_f1:.3f}, n = {n:,}"),
    "emotion_bars.png": ("save_emotion_bars", ": high and low pictures by emotion"),
    "reliability.png": ("save_reliability", "\naccuracy {accuracy:.3f}, {pairs:,} pairs"),
}
FILES = ("predictions.csv", "metrics.json", *PLOTS)


@dataclass
class Report:
    """The outcome of one evaluation; `str()` gives the table, `write` writes the files.

    predictions: columns of predictions.csv, each (n,), in the order of the set.
    facts: everything in metrics.json except metrics, intervals and notes.
    plots: file name -> arguments of its function in PLOTS, except path and title.
    high: (n,) bool, the pictures predicted to be high; None where no threshold applies.
    emotions: the report on the emotions that an aesthetic network predicts, if the set has emotion labels.
    """

    title: str
    metrics: dict[str, float]
    predictions: dict[str, np.ndarray]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    plots: dict[str, dict] = field(default_factory=dict)
    high: np.ndarray | None = None
    emotions: Report | None = None

    def __str__(self) -> str:
        text = "\n".join([self.title, table(self.metrics, self.intervals), *self.notes])
        return f"{text}\n\n{self.emotions}" if self.emotions else text

    @property
    def drawn(self) -> list[tuple[str, Report]]:
        """(file, report) of the plots of this report and of that on emotions, in the order of FILES."""
        reports = [self, self.emotions] if self.emotions else [self]
        return [(name, report) for name in PLOTS for report in reports if name in report.plots]

    @property
    def files(self) -> str:
        return " ".join(["predictions.csv", "metrics.json", *(name for name, _ in self.drawn)])

    def content(self) -> dict:
        """What metrics.json holds."""
        content = {"metrics": self.metrics, "intervals_95": self.intervals, **self.facts, "notes": self.notes}
        return content | ({"emotions": self.emotions.content()} if self.emotions else {})

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        columns = self.predictions
        if self.emotions:
            emotions = dict(self.emotions.predictions)
            columns = columns | {"emotion": emotions.pop("prediction")} | emotions
        write_columns(folder / "predictions.csv", columns)
        text = json.dumps(without_nan(self.content()), indent=1, allow_nan=False)
        with written_whole(folder / "metrics.json") as path:
            path.write_text(text + "\n", encoding="utf-8")
        for name, report in self.drawn:
            from eamb.evaluation import figures  # matplotlib takes a second to load

            function, words = PLOTS[name]
            title = report.title + words.format(**report.metrics)
            getattr(figures, function)(**report.plots[name], path=folder / name, title=title)


def without_nan(value):
    """The same value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_columns(path: Path, columns: dict[str, Sequence]) -> None:
    """Writes columns of equal length as a csv: numbers in full, texts `safe` as in `eamb.files`."""
    write_csv(path, chain([columns], zip(*columns.values(), strict=True)))


def rounded(values: np.ndarray) -> np.ndarray:
    """(...) float64 with eight significant digits; a float32 has fewer.

    Predictions are rounded before anything is measured, not when they are written, so that the metrics are
    exactly those of predictions.csv; rounding halves the file.
    """
    return np.array([float(f"{value:.8g}") for value in values.ravel()]).reshape(values.shape)


def table(values: dict[str, float], intervals: dict[str, tuple[float, float]] | None = None) -> str:
    """Metrics as aligned text, one a line, followed by the interval if there is one."""
    intervals, threshold = intervals or {}, values.get("threshold")
    rows = [("", "", "95 % interval")] if intervals else []
    for name, value in values.items():
        kind, _, rest = name.partition("_")
        term = metrics.TERMS.get(name, name)
        if name == "threshold":  # it stands in the names of the accuracies
            continue
        if kind == "recall":
            term = f"recall of {rest}"
        elif kind == "accuracy" and rest in ("", "inclusive") and threshold is not None:
            term = f"accuracy ({'>=' if rest else '>'} {threshold:g})"
        elif kind == "accuracy" and rest:
            low, high = rest.split("_")
            term = f"accuracy, {float(low):.0%} to {float(high):.0%} agree"
        number = f"{value:d}" if name in ("n", "pairs", "series") else f"{value:.4f}"
        rows.append((term, number, "{:.4f} to {:.4f}".format(*intervals[name]) if name in intervals else ""))
    name_width, number_width = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return "\n".join(f"{a:<{name_width}}  {b:>{number_width}}  {c}".rstrip() for a, b, c in rows)


def versions(folder: Path = Path(__file__).parents[2]) -> dict[str, str | bool]:
    """Versions of the packages that can change a metric, and the program's git revision.

    The revision is "unknown" if `folder` is no git checkout. `dirty`: tracked files have changed since.
    """
    result = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")}
    # Naming .git: a repository further up is not the program's.
    command = ["git", f"--git-dir={folder / '.git'}", f"--work-tree={folder}"]
    options = {"capture_output": True, "text": True, "check": True}
    try:
        revision = subprocess.run([*command, "rev-parse", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run([*command, "status", "--porcelain", "--untracked-files=no"], **options).stdout
    except (OSError, subprocess.CalledProcessError):  # there is no git, or no checkout
        return {**result, "revision": "unknown"}
    return {**result, "revision": revision, "dirty": bool(dirty)}
