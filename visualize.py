"""Pictures for people: emotion-aware maps over photographs, training curves, predicted against rated.

Drawn on matplotlib's Figure object without pyplot, so nothing global changes and no display is needed. Every
file is written under a temporary name and renamed.
"""

import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

DOTS_PER_INCH = 100
INK, FAINT, GRID = "#202124", "#70757d", "#e3e5e8"
BLUE, ORANGE = "#2f6db5", "#d9822b"

# ---- emotion-aware maps --------------------------------------------------------------------------

MAP_COLOURS = "inferno"  # perceptually uniform: equal steps of the map look equally large
MAP_OPACITY = 0.5
PANEL_WIDTH = 1200  # pixels, as everything here
MARGIN, BETWEEN, HEADER, PICTURE_TOP = 24, 12, 60, 96
COLOUR_BAR_WIDTH, COLOUR_BAR_ROOM = 14, 64
TALLEST_PICTURE = 760
EMOTION_ROW, EMOTION_WIDTH, SHOWN_EMOTIONS = 24, 600, 4


def resize_map(emotion_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map bilinearly, pixel centres aligned (align_corners=False).

    Args:
        emotion_map: (h, w), in [0, 1].

    Returns:
        (height, width) float32, in [0, 1].
    """
    values = np.asarray(emotion_map, dtype=np.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"visualize: an emotion map has the shape (h, w); this one has {values.shape}")
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN fails this too
        raise ValueError(f"visualize: an emotion map lies in [0, 1]; this one spans {low:.3g} to {high:.3g}")
    resized = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0, 1)


def overlay(image: np.ndarray, emotion_map: np.ndarray, opacity: float = MAP_OPACITY) -> np.ndarray:
    """Lay a map over the grey version of a picture, so that every colour seen comes from the map.

    Args:
        image: (H, W, 3) uint8.
        emotion_map: (h, w), in [0, 1]; resized to the picture.
        opacity: share of the map's colour, in [0, 1].

    Returns:
        (H, W, 3) uint8.
    """
    values = resize_map(emotion_map, *image.shape[:2])
    colours = colormaps[MAP_COLOURS](values)[..., :3]  # (H, W, 3), in [0, 1]
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None] / 255  # (H, W, 1)
    return np.rint(255 * (opacity * colours + (1 - opacity) * grey)).astype(np.uint8)


def map_panel(
    image: np.ndarray,
    emotion_map: np.ndarray,
    title: str,
    score: str = "",
    emotions: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Draw a picture beside its emotion-aware map, PANEL_WIDTH pixels wide, aspect ratio kept.

    Args:
        image: (H, W, 3) uint8.
        emotion_map: (h, w), in [0, 1].
        title: usually the file's name.
        score: what the network says, with its scale: "6.4 of 10, better than 81 % of the training pictures".
        emotions: names and probabilities; the strongest SHOWN_EMOTIONS are drawn as bars.
    """
    image = check_image(image)
    width, height = picture_size(image)
    shown = sorted(emotions, key=lambda pair: -pair[1])[:SHOWN_EMOTIONS]
    bars_height = EMOTION_ROW * len(shown)
    panel_height = PICTURE_TOP + height + MARGIN + (bars_height + MARGIN if shown else 0)
    figure = new_figure(PANEL_WIDTH, panel_height)
    picture = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))

    left = (PANEL_WIDTH - COLOUR_BAR_ROOM - 2 * width - BETWEEN) // 2
    right = left + width + BETWEEN
    write_header(figure, left, title, score)
    write(figure, right, PICTURE_TOP - 8, "emotion-aware map", size=10, color=FAINT)
    show(figure, (left, PICTURE_TOP, width, height), picture, "picture")
    show(figure, (right, PICTURE_TOP, width, height), overlay(picture, emotion_map), "map")
    add_colour_bar(figure, (right + width + BETWEEN, PICTURE_TOP, COLOUR_BAR_WIDTH, height))
    if shown:
        bars_width = max(2 * width + BETWEEN, EMOTION_WIDTH)
        draw_emotions(figure, (left, PICTURE_TOP + height + MARGIN, bars_width, bars_height), shown)
    return figure


def save_map_panel(
    path: Path,
    image: np.ndarray,
    emotion_map: np.ndarray,
    title: str,
    score: str = "",
    emotions: Sequence[tuple[str, float]] = (),
) -> None:
    """Write `map_panel` as a PNG."""
    write_figure(map_panel(image, emotion_map, title, score, emotions), path)


def check_image(image: np.ndarray) -> np.ndarray:
    """Refuse anything but an (H, W, 3) uint8 picture."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"visualize: a picture is (H, W, 3) uint8; this one is {image.shape} {image.dtype}")
    return image


def picture_size(image: np.ndarray) -> tuple[int, int]:
    """Width and height in pixels at which a picture is drawn: as large as there is room, in its own shape."""
    room = (PANEL_WIDTH - 2 * MARGIN - COLOUR_BAR_ROOM - BETWEEN) / 2
    factor = min(room / image.shape[1], TALLEST_PICTURE / image.shape[0])
    return max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1)


def show(figure: Figure, box: tuple[int, int, int, int], pixels: np.ndarray, label: str) -> Axes:
    """Show (H, W, 3) uint8 pixels in a box of the same size, one to one."""
    axes = add_axes(figure, box, label)
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return axes


def write_header(figure: Figure, left: int, title: str, score: str) -> None:
    """The title, shortened in its middle to the room there is, and the score under it."""
    longest = (PANEL_WIDTH - left - MARGIN) // 15  # a bold digit is 15 pixels wide
    if len(title) > longest:
        title = f"{title[: longest // 2]}…{title[-(longest // 2 - 1) :]}"
    write(figure, left, 32, title, size=15, weight="bold")
    write(figure, left, HEADER, score, size=13)


def draw_emotions(figure: Figure, box: tuple[int, int, int, int], emotions: list[tuple[str, float]]) -> None:
    """The probabilities of some emotions as horizontal bars with their names, the first one on top."""
    axes = add_axes(figure, box, "emotions")
    names, probabilities = zip(*emotions, strict=True)
    rows = range(len(names))
    axes.barh(rows, probabilities, height=0.62, color=BLUE)
    for row, name, probability in zip(rows, names, probabilities, strict=True):
        axes.text(-0.012, row, name, ha="right", va="center", fontsize=11, color=INK, parse_math=False)
        share = f"{100 * probability:.0f} %"
        axes.text(probability + 0.008, row, share, va="center", fontsize=11, color=FAINT)
    axes.set(xlim=(-0.17, 1.08), ylim=(len(names) - 0.5, -0.5))
    axes.set_axis_off()


def add_colour_bar(figure: Figure, box: tuple[int, int, int, int]) -> None:
    """The colours of the map, from 0 to 1."""
    bar = figure.colorbar(ScalarMappable(cmap=MAP_COLOURS), cax=add_axes(figure, box, "colour bar"))
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"], fontsize=11, color=INK)
    bar.outline.set_visible(False)


# ---- training curves -----------------------------------------------------------------------------

CURVES_PER_ROW = 3
ABBREVIATIONS = {"srcc", "plcc", "krcc", "rmse", "mae", "emd", "kl"}
COLOURS = {"train": BLUE, "val": ORANGE}


def save_curves(metrics: Path, path: Path) -> None:
    """Draw every train_* and val_* number of a metrics.jsonl against the epoch, and the learning rate.

    Args:
        metrics: one JSON object a line with "epoch"; of an epoch that stands twice the last line counts.
        path: the PNG to write.
    """
    epochs = read_epochs(metrics)
    measures = list_measures(epochs)
    if not measures:
        raise ValueError(f"visualize: {metrics} has no number named train_*, val_* or learning_rate")
    columns = min(len(measures), CURVES_PER_ROW)
    rows = math.ceil(len(measures) / columns)
    figure = new_plot(400 * columns, 300 * rows)
    for index, measure in enumerate(measures):
        draw_curve(figure.add_subplot(rows, columns, index + 1), measure, epochs)
    write_figure(figure, path)


def read_epochs(metrics: Path) -> list[dict]:
    """Read the lines of a metrics.jsonl, sorted by epoch."""
    epochs = {}
    for number, line in enumerate(Path(metrics).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            epochs[record["epoch"]] = record
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'visualize: line {number} of {metrics} is no JSON object with "epoch"; found {line[:60]!r}'
            ) from error
    return [epochs[epoch] for epoch in sorted(epochs)]


# Do not depend on the network, or (recalls) would bury what does.
NOT_DRAWN = ("n", "pictures", "broken", "threshold", "majority", "chance", "kl_prior")


def list_measures(epochs: list[dict]) -> list[str]:
    """Names of what was measured, without train_ and val_, in the order of first appearance."""
    names = [key for record in epochs for key, value in record.items() if is_number(value)]
    measures = [name.split("_", 1)[1] for name in names if name.startswith(("train_", "val_"))]
    measures = [name for name in measures if name not in NOT_DRAWN and not name.startswith("recall_")]
    return list(dict.fromkeys([*measures, *(name for name in names if name == "learning_rate")]))


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def draw_curve(axes: Axes, measure: str, epochs: list[dict]) -> None:
    """One measure against the epoch: training and validation where both were measured."""
    keys = {"learning_rate": BLUE} if measure == "learning_rate" else {}
    keys |= {f"{part}_{measure}": colour for part, colour in COLOURS.items()}
    for key, colour in keys.items():
        points = [(record["epoch"], record[key]) for record in epochs if is_number(record.get(key))]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=key.split("_")[0])
    title = measure.upper() if measure in ABBREVIATIONS else measure.replace("_", " ")
    axes.set_title(title, fontsize=12, loc="left", color=INK)
    axes.set_xlabel("epoch", color=FAINT)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.04)
    if measure != "learning_rate":
        axes.legend(frameon=False)
    clean(axes)


# ---- predicted against rated ---------------------------------------------------------------------

MOST_DOTS = 1000  # beyond this dots hide each other, and a density is drawn


def save_scatter(predicted: np.ndarray, rated: np.ndarray, path: Path, unit: str, title: str) -> None:
    """Draw predictions against ratings with equal axes and the line where both are equal.

    Args:
        predicted, rated: (n,), in the set's unit; pairs with NaN are left out.
        path: the PNG to write.
        unit: what the numbers are, such as "mean rating, 1 to 5".
        title: stands above, such as "PARA test: SRCC .85, PLCC .90, n = 3,000".
    """
    predicted, rated = finite_pairs(predicted, rated)
    figure = new_plot(700, 700)
    axes = figure.add_subplot()
    draw_pairs(axes, predicted, rated)
    low, high = min(predicted.min(), rated.min()), max(predicted.max(), rated.max())
    room = 0.04 * (high - low) or 0.5
    limits = (low - room, high + room)
    axes.plot(limits, limits, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel(f"rated ({unit})", color=INK, fontsize=12, parse_math=False)
    axes.set_ylabel(f"predicted ({unit})", color=INK, fontsize=12, parse_math=False)
    axes.set_title(title, fontsize=13, loc="left", color=INK, parse_math=False)
    clean(axes)
    write_figure(figure, path)


def finite_pairs(predicted: np.ndarray, rated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays as float64 without the pairs that have no number."""
    predicted, rated = np.asarray(predicted, dtype=np.float64), np.asarray(rated, dtype=np.float64)
    if predicted.shape != rated.shape or predicted.ndim != 1:
        raise ValueError(
            f"visualize: predicted and rated are two lists of equal length; these are {predicted.shape} "
            f"and {rated.shape}"
        )
    finite = np.isfinite(predicted) & np.isfinite(rated)
    if not finite.any():
        raise ValueError(f"visualize: none of the {len(finite)} pairs has both a prediction and a rating")
    return predicted[finite], rated[finite]


def draw_pairs(axes: Axes, predicted: np.ndarray, rated: np.ndarray) -> None:
    """Few pairs as dots, many as a density."""
    if len(rated) <= MOST_DOTS:
        axes.scatter(rated, predicted, s=22, color=BLUE, alpha=0.5, linewidths=0)
        return
    cells = axes.hexbin(rated, predicted, gridsize=48, mincnt=1, bins="log", cmap="viridis", linewidths=0.2)
    bar = axes.figure.colorbar(cells, ax=axes, shrink=0.6, pad=0.02, format="{x:.0f}")
    bar.set_label("pictures in a cell", color=FAINT)
    bar.ax.tick_params(length=0, which="both", labelcolor=FAINT)
    bar.outline.set_visible(False)


# ---- figures and files ---------------------------------------------------------------------------


def new_figure(width: int, height: int) -> Figure:
    """An empty white figure of a size in pixels, to be laid out by hand."""
    return Figure((width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor="white")


def new_plot(width: int, height: int) -> Figure:
    """An empty white figure of a size in pixels that makes room for its own labels."""
    figure = new_figure(width, height)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    return figure


def add_axes(figure: Figure, box: tuple[int, int, int, int], label: str) -> Axes:
    """Axes at (left, top, width, height) in pixels from the figure's upper left corner."""
    left, top, width, height = box
    total_width, total_height = (side * DOTS_PER_INCH for side in figure.get_size_inches())
    bottom = total_height - top - height
    corner = (left / total_width, bottom / total_height)
    return figure.add_axes((*corner, width / total_width, height / total_height), label=label)


def write(figure: Figure, left: int, baseline: int, text: str, size: int, **style: str) -> None:
    """Write a line of text at a position in pixels from the upper left corner; "$" is a plain character."""
    width, height = (side * DOTS_PER_INCH for side in figure.get_size_inches())
    style = {"color": INK} | style
    figure.text(left / width, 1 - baseline / height, text, fontsize=size, parse_math=False, **style)


def clean(axes: Axes) -> None:
    """A light grid and no frame."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=FAINT)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all: under a temporary name, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with warnings.catch_warnings():
            # File names may hold letters that matplotlib's font lacks; they become boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            FigureCanvasAgg(figure).print_png(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
