"""Figures: maps over photographs, training curves, predictions against ratings, preferences, emotions.

Uses matplotlib's Figure without pyplot: no global state changes and no display is needed. `path` is the PNG
to write; every file is written whole or not at all.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from eamb.files import written_whole
from metrics import TERMS

DOTS_PER_INCH = 100
INK, FAINT, GRID = "#202124", "#70757d", "#e3e5e8"
BLUE, ORANGE = "#2f6db5", "#d9822b"
MAP_COLOURS = "inferno"  # perceptually uniform: equal steps in a map look equal
TITLE = {"fontsize": 13, "color": INK, "parse_math": False}  # "$" is a plain character
NAMES = {"fontsize": 11, "color": INK, "parse_math": False}
SLANTED = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
LEGEND = {"frameon": False, "loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "borderaxespad": 0}
# Metrics that show no progress, so no curve.
NO_CURVE = {"n", "pictures", "broken", "threshold", "majority", "chance", "kl_prior", "pairs", "series"}
NO_CURVE |= {"log_loss_prior", "agreement"}


def resize_map(emotion_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map (h, w) in [0, 1] bilinearly, pixel centres aligned: (height, width) float32 in [0, 1].
    Raises ValueError for another shape or range."""
    values = np.asarray(emotion_map, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if values.ndim != 2 or not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN fails this too
        spans = f"{values.shape} with values from {low:.3g} to {high:.3g}"
        raise ValueError(f"figures: an emotion map is (h, w) in [0, 1]; this one is {spans}")
    resized = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0, 1)


def overlay(image: np.ndarray, emotion_map: np.ndarray, aspect: float | None = None) -> np.ndarray:
    """Lay a map over the grey version of a picture, so that all colour comes from the map.

    Args:
        image: (H, W, 3) uint8.
        emotion_map: (h, w), in [0, 1]; resized to the picture.
        aspect: width / height of the part in the middle of the picture that the map covers, and outside of
            which the picture is grey only (`View.aspect`); None: the map covers all.

    Returns:
        (H, W, 3) uint8.
    """
    height, width, _ = image.shape
    aspect = aspect or width / height
    rows, columns = max(1, round(min(height, width / aspect))), max(1, round(min(width, height * aspect)))
    top, left = (height - rows) // 2, (width - columns) // 2
    part = np.s_[top : top + rows, left : left + columns]
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None].repeat(3, axis=2)  # (H, W, 3)
    colours = colormaps[MAP_COLOURS](resize_map(emotion_map, rows, columns))[..., :3]  # in [0, 1]
    laid = grey.copy()
    laid[part] = np.rint(255 * (0.6 * colours + 0.4 * (grey[part] / 255)))
    return laid


def colour_ramp(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: a map from 0 at the left to 1 at the right, laid over middle grey."""
    return overlay(np.full((height, width, 3), 128, dtype=np.uint8), np.linspace(0, 1, width)[None])


def save_curves(metrics: Path, path: Path) -> None:
    """Draw the train_* and val_* numbers of a metrics.jsonl against the epoch, and the learning rate."""
    records = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    numbers = [{k: v for k, v in record.items() if isinstance(v, int | float)} for record in records]
    keys = list(dict.fromkeys(key for record in numbers for key in record))
    names = dict.fromkeys(key.split("_", 1)[1] for key in keys if key.startswith(("train_", "val_")))
    # One recall per emotion would crowd out what matters more.
    drawn = [name for name in names if name not in NO_CURVE and not name.startswith("recall_")]
    drawn += ["learning_rate"] if "learning_rate" in keys else []
    columns, rows = min(len(drawn), 3), math.ceil(len(drawn) / 3)
    figure = new_plot(400 * columns, 300 * rows)
    for place, name in enumerate(drawn, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for key, colour in ((f"train_{name}", BLUE), (f"val_{name}", ORANGE), (name, BLUE)):
            points = [(record["epoch"], record[key]) for record in numbers if key in record]
            if points:
                label = key.split("_")[0]
                axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=label)
        axes.set_title(TERMS.get(name, name.replace("_", " ")), fontsize=12, loc="left", color=INK)
        axes.set_xlabel("epoch", color=FAINT)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name != "learning_rate":
            axes.legend(**LEGEND)
        clean(axes)
    write_figure(figure, path)


def save_scatter(predicted: np.ndarray, rated: np.ndarray, path: Path, unit: str, title: str) -> None:
    """Draw predictions against ratings with equal axes and the line where both are equal.

    Args:
        predicted, rated: (n,), in the set's unit.
        unit: what the numbers are, such as "mean rating, 1 to 5".
    """
    low, high = min(np.min(predicted), np.min(rated)), max(np.max(predicted), np.max(rated))
    room = 0.04 * (high - low) or 0.5
    axes = new_square((low - room, high + room), f"rated ({unit})", f"predicted ({unit})", title)
    if len(rated) <= 1000:
        axes.scatter(rated, predicted, s=22, color=BLUE, alpha=0.5, linewidths=0)
    else:  # a density, because so many dots would overlap
        cells = axes.hexbin(rated, predicted, gridsize=48, mincnt=1, bins="log", linewidths=0.2)
        axes.figure.colorbar(cells, shrink=0.6, format="{x:.0f}", label="pictures in a cell")
    write_figure(axes.figure, path)


def save_reliability(probability: np.ndarray, preference: np.ndarray, path: Path, title: str) -> None:
    """Draw how often people preferred a photograph against how often they were predicted to. Each pair counts
    from both sides, so that it does not matter which photograph comes first.

    Args:
        probability, preference: (m,), the predicted and the real share who prefer the first, in [0, 1].
    """
    predicted = np.concatenate([probability, 1 - probability])  # (2m,)
    real = np.concatenate([preference, 1 - preference])
    bins = np.minimum((predicted * 10).astype(int), 9)
    pairs = np.bincount(bins)  # (up to 10,)
    filled = pairs > 0
    means = [np.bincount(bins, values)[filled] / pairs[filled] for values in (predicted, real)]
    across = "predicted share of people who prefer the photograph"
    axes = new_square((-0.03, 1.03), across, "real share (the larger a dot, the more pairs)", title)
    axes.plot(*means, color=BLUE, linewidth=1.5)
    axes.scatter(*means, s=20 + 400 * pairs[filled] / pairs.max(), color=BLUE, alpha=0.6, linewidths=0)
    write_figure(axes.figure, path)


def new_square(limits: tuple[float, float], across: str, up: str, title: str) -> Axes:
    """Equal axes with these limits, labelled `across` and `up`, and a dashed line where both are equal."""
    axes = new_plot(700, 700).add_subplot()
    axes.plot(limits, limits, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel(across, **NAMES)
    axes.set_ylabel(up, **NAMES)
    axes.set_title(title, loc="left", **TITLE)
    clean(axes)
    return axes


def save_confusion(counts: np.ndarray, classes: Sequence[str], path: Path, title: str) -> None:
    """Draw a confusion matrix: each cell shows its count and share of the row, and is coloured by the share.

    Args:
        counts: (E, E) pictures, rows true, columns predicted. A row of zeros stays grey.
        classes: (E,) names.
    """
    cell = 78  # pixels
    totals = counts.sum(axis=1)  # (E,)
    shares = np.divide(counts, totals[:, None], out=np.full(counts.shape, np.nan), where=totals[:, None] > 0)
    figure = new_plot(max(cell * len(classes) + 340, 700), cell * len(classes) + 220)
    axes = figure.add_subplot()
    axes.set_facecolor(GRID)
    cells = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        words = f"{100 * share:.0f} %\n{count:,.0f}" if count else "0"
        colour = "white" if share > 0.65 else INK
        axes.text(column, row, words, ha="center", va="center", fontsize=10, color=colour)
    names = [f"{name} ({total:,.0f})" for name, total in zip(classes, totals, strict=True)]
    axes.set_yticks(range(len(classes)), names, **NAMES)
    axes.set_xticks(range(len(classes)), classes, **NAMES, **SLANTED)
    axes.set_xlabel("predicted", color=FAINT)
    axes.set_ylabel("true (pictures)", color=FAINT)
    figure.suptitle(title, x=0.01, ha="left", **TITLE)
    figure.colorbar(cells, shrink=0.5, label="share of the row", format=PercentFormatter(1, decimals=0))
    write_figure(figure, path)


def save_emotion_bars(
    groups: dict[str, Sequence[Sequence[int]]], classes: Sequence[str], path: Path, title: str
) -> None:
    """Draw how many pictures of each emotion are high and low, as on the page of the IAE data set.

    Args:
        groups: for each panel, such as "labels" and "predictions", (E,) numbers of high and low pictures.
        classes: (E,) names.
    """
    figure = new_plot(max(120 * len(classes) + 80, 700), 60 + 280 * len(groups))
    rows = figure.subplots(len(groups), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, numbers) in zip(rows, groups.items(), strict=True):
        sides = ((-0.2, "high", BLUE), (0.2, "low", ORANGE))
        for values, (offset, label, colour) in zip(numbers, sides, strict=True):
            bars = axes.bar(np.arange(len(classes)) + offset, values, 0.38, color=colour, label=label)
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=9, color=FAINT, padding=2)
        axes.set_title(f"{name} ({np.sum(numbers):,} pictures)", loc="left", **NAMES)
        axes.margins(x=0.02, y=0.15)
        clean(axes)
    rows[-1].set_xticks(range(len(classes)), classes, **NAMES, **SLANTED)
    rows[0].legend(**LEGEND)
    figure.suptitle(title, x=0.01, ha="left", **TITLE)
    write_figure(figure, path)


def new_figure(width: int, height: int) -> Figure:
    """An empty white figure of a size in pixels, to be laid out by hand."""
    # matplotlib 3.10 rounds down, and 803 / 100 * 100 would be less than 803.
    inches = (width / DOTS_PER_INCH, (height + 1e-11) / DOTS_PER_INCH)
    return Figure(inches, dpi=DOTS_PER_INCH, facecolor="white")


def new_plot(width: int, height: int) -> Figure:
    """An empty white figure of a size in pixels that makes room for labels by itself."""
    figure = new_figure(width, height)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    return figure


def add_axes(figure: Figure, box: tuple[int, int, int, int], label: str) -> Axes:
    """Axes at (left, top, width, height) in pixels from the figure's upper left corner."""
    left, top, width, height = box
    across, down = figure.get_size_inches() * DOTS_PER_INCH
    shares = (left / across, 1 - (top + height) / down, width / across, height / down)
    return figure.add_axes(shares, label=label)


def write(figure: Figure, left: int, baseline: int, text: str, size: int, **style: str) -> None:
    """Write a line of text at a position in pixels from the upper left corner; "$" is a plain character."""
    across, down = figure.get_size_inches() * DOTS_PER_INCH
    style = {"color": INK, "parse_math": False, **style}
    figure.text(left / across, 1 - baseline / down, text, fontsize=size, **style)


def clean(axes: Axes) -> None:
    """A light grid and no frame."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=FAINT)


def write_figure(figure: Figure, path: Path, **settings: int) -> None:
    """Write a PNG, whole or not at all; `settings` are Pillow's, for compression."""
    with written_whole(Path(path)) as unfinished, warnings.catch_warnings():
        # Characters that matplotlib's font lacks, as in file names, become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(unfinished, pil_kwargs=settings)
