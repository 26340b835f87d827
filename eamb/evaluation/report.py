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

# File -> the function of eamb.evaluation.figures that draws it.
PLOTS = {
    "scatter.png": "save_scatter",
    "confusion.png": "save_confusion",
    "emotion_bars.png": "save_emotion_bars",
    "reliability.png": "save_reliability",
}
FILES = ("predictions.csv", "metrics.json", *PLOTS)


@dataclass
class Report:
    """The outcome of one evaluation; `str()` gives the table, `write` writes the files.

    predictions: columns of predictions.csv, each (n,), in the order of the set.
    facts: everything in metrics.json except metrics, intervals and notes.
    plots: file name -> arguments of its function in PLOTS, except path.
    emotions: the report on the emotions that an aesthetic network predicts, if the set has emotion labels.
    """

    title: str
    metrics: dict[str, float]
    predictions: dict[str, np.ndarray]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    plots: dict[str, dict] = field(default_factory=dict)
    emotions: Report | None = None

    def __str__(self) -> str:
        text = "\n".join([self.title, table(self.metrics, self.intervals), *self.notes])
        return f"{text}\n\n{self.emotions}" if self.emotions else text

    @property
    def files(self) -> str:
        plots = self.plots | (self.emotions.plots if self.emotions else {})
        return " ".join([*FILES[:2], *(name for name in PLOTS if name in plots)])

    def content(self) -> dict:
        """What metrics.json holds."""
        content = {"metrics": self.metrics, "intervals_95": self.intervals, **self.facts, "notes": self.notes}
        return content | ({"emotions": self.emotions.content()} if self.emotions else {})

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        columns, plots = self.predictions, self.plots
        if self.emotions:
            emotions = dict(self.emotions.predictions)
            columns = columns | {"emotion": emotions.pop("prediction")} | emotions
            plots = plots | self.emotions.plots
        write_columns(folder / "predictions.csv", columns)
        text = json.dumps(without_nan(self.content()), indent=1, allow_nan=False)
        with written_whole(folder / "metrics.json") as path:
            path.write_text(text + "\n", encoding="utf-8")
        for name, arguments in plots.items():
            from eamb.evaluation import figures  # matplotlib takes a second to load

            getattr(figures, PLOTS[name])(**arguments, path=folder / name)


def without_nan(value):
    """The same value with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_columns(path: Path, columns: dict[str, Sequence]) -> None:
    """Writes columns of equal length as a csv: numbers in full, texts `safe` as in `eamb.files`."""
    write_csv(path, chain([columns], zip(*columns.values(), strict=True)))


def rounded(values: np.ndarray) -> np.ndarray:
    """(...) float64 with eight significant digits; a float32 has fewer. Metrics are computed from rounded
    values, so that they are exactly those of predictions.csv."""
    return np.array([float(f"{value:.8g}") for value in values.ravel()]).reshape(values.shape)


def table(values: dict[str, float], intervals: dict[str, tuple[float, float]] | None = None) -> str:
    """Metrics as aligned text, one per line, each followed by its interval if there is one."""
    intervals, threshold = intervals or {}, values.get("threshold")
    rows = [("", "", "95 % interval")] if intervals else []
    for name, value in values.items():
        kind, _, rest = name.partition("_")
        term = metrics.TERMS.get(name, name)
        if name == "threshold":  # the names of the accuracies show it
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
    # --git-dir, because a repository in a parent folder is not the program's.
    command = ["git", f"--git-dir={folder / '.git'}", f"--work-tree={folder}"]
    options = {"capture_output": True, "text": True, "check": True}
    try:
        revision = subprocess.run([*command, "rev-parse", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run([*command, "status", "--porcelain", "--untracked-files=no"], **options).stdout
    except (OSError, subprocess.CalledProcessError):  # there is no git, or no checkout
        return {**result, "revision": "unknown"}
    return {**result, "revision": revision, "dirty": bool(dirty)}
