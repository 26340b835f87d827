"""One picture explained: the map over it, its score among the training ratings, the strongest emotions' maps.

A panel is laid out by hand, in pixels from its upper left corner, because the picture's shape decides where
there is room for the rest.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image

from eamb.evaluation import figures
from eamb.evaluation.figures import BLUE, FAINT, GRID, INK, add_axes, overlay, write

# In pixels, like everything here except font sizes, which are in points.
PANEL_WIDTH, MARGIN, BETWEEN = 1200, 24, 12
CAPTION = 30  # a line of text above a picture or a chart
CHART, CHART_LABELS = 72, 26  # heights
COLOUR_BAR_ROOM = 64
WIDEST, TALLEST = 538, 560  # of the picture; its map lies beside it
SHOWN_EMOTIONS = 3


@dataclass(frozen=True)
class Explanation:
    """What a panel shows about a picture.

    title: usually the file's name.
    score: in words, with its scale: "3.72 of 1 to 5, above 81 % of the training ratings".
    value, ends: the score itself, and the two ends of its scale.
    emotion_map: (h, w), in [0, 1].
    aspect: width / height of the part in the middle of the picture that maps cover; None: they cover all.
    map_title: what this map is.
    emotions: probability of every emotion by name.
    class_maps: (E, h, w), in [0, 1], in the order of `emotions`; None: no emotion is shown.
    training_ratings: (Q,) quantiles, ascending, evenly spaced in share; None: unknown.
    distribution: predicted share of each rating; empty for networks that give a score only.
    deviation: standard deviation of that distribution; None without one.
    """

    title: str
    score: str
    value: float
    ends: tuple[float, float]
    emotion_map: np.ndarray
    aspect: float | None = None
    map_title: str = "emotion-aware map"
    emotions: Mapping[str, float] = field(default_factory=dict)
    class_maps: np.ndarray | None = None
    training_ratings: np.ndarray | None = None
    distribution: Mapping[float, float] = field(default_factory=dict)
    deviation: float | None = None


class Box(NamedTuple):
    """A part of a figure, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def bottom(self) -> int:
        return self.top + self.height


def save_panel(path: Path, image: np.ndarray, explanation: Explanation) -> None:
    """Write `panel` as a PNG with run-length compression: a quarter of zlib's usual time, 5 % larger."""
    figures.write_figure(panel(image, explanation), path, compress_type=zlib.Z_RLE)


def shrink(picture: Image.Image) -> np.ndarray:
    """An RGB picture at the size that a panel shows, (h, w, 3) uint8."""
    size = fit(picture.width / picture.height, WIDEST, TALLEST)
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def panel(image: np.ndarray, explanation: Explanation) -> Figure:
    """Draw a picture, PANEL_WIDTH pixels wide, with everything that explains its score.

    Args:
        image: (H, W, 3) uint8, of any size; its aspect ratio is kept.

    Raises:
        ValueError: a map has another shape or range.
    """
    charts = [draw_training_ratings] if explanation.training_ratings is not None else []
    charts += [draw_predicted_ratings] if explanation.distribution else []
    shown = 0 if explanation.class_maps is None else min(SHOWN_EMOTIONS, len(explanation.emotions))

    aspect = image.shape[1] / image.shape[0]
    size = fit(aspect, WIDEST, TALLEST)
    content = max(2 * size[0] + BETWEEN, 740)  # leaves room for text beside a narrow picture
    left = (PANEL_WIDTH - content - COLOUR_BAR_ROOM) // 2
    box = Box(left, 100, *size)
    bottom = box.bottom
    if charts:
        chart_width = (content - MARGIN * (len(charts) - 1)) // len(charts)
        chart_top = bottom + MARGIN + CAPTION
        bottom = chart_top + CHART + CHART_LABELS
    if shown:
        cell = (content - BETWEEN * (SHOWN_EMOTIONS - 1)) // SHOWN_EMOTIONS
        emotion_box = Box(left, bottom + MARGIN + 2 * CAPTION, *fit(aspect, cell, 300))
        bottom = emotion_box.bottom

    figure = figures.new_figure(PANEL_WIDTH, bottom + MARGIN)
    write(figure, left, 34, explanation.title, size=15, weight="bold")
    write(figure, left, 62, explanation.score, size=13)
    picture = resize_image(image, box)  # once, because photographs are large; the rest uses this copy
    show(figure, box, picture, "picture")
    map_box = box._replace(left=box.left + box.width + BETWEEN)
    show(figure, map_box, overlay(picture, explanation.emotion_map, explanation.aspect), "map")
    write(figure, map_box.left, map_box.top - 10, explanation.map_title, size=10, color=FAINT)
    bar = map_box._replace(left=map_box.left + map_box.width + BETWEEN, width=14, height=max(box.height, 40))
    colours = figures.colour_ramp(bar.width, bar.height).transpose(1, 0, 2)[::-1]  # 1 at the top
    show(figure, bar, colours, "colour bar")
    write(figure, bar.left + 20, bar.top + 12, "1", size=11)
    write(figure, bar.left + 20, bar.bottom, "0", size=11)
    for number, draw in enumerate(charts):
        draw(figure, Box(left + number * (chart_width + MARGIN), chart_top, chart_width, CHART), explanation)
    if shown:
        words = "strongest emotions (the map above is the sum of all emotions' maps times their probability)"
        write(figure, left, emotion_box.top - 10 - CAPTION, words, size=10, color=FAINT)
        named = zip(explanation.emotions.items(), explanation.class_maps, strict=True)
        strongest = sorted(named, key=lambda emotion: -emotion[0][1])[:shown]
        for number, ((name, probability), class_map) in enumerate(strongest):
            box = emotion_box._replace(left=left + number * (cell + BETWEEN))
            write(figure, box.left, box.top - 10, f"{name} {100 * probability:.0f} %", size=12)
            laid = overlay(resize_image(picture, box), class_map, explanation.aspect)
            show(figure, box, laid, f"map of {name}")
    return figure


def fit(aspect: float, widest: int, tallest: int) -> tuple[int, int]:
    """The largest width and height of an aspect ratio that fit, in whole pixels, at least 1 each."""
    width = min(widest, tallest * aspect)
    return max(round(width), 1), max(round(width / aspect), 1)


def resize_image(image: np.ndarray, box: Box) -> np.ndarray:
    """(H, W, 3) uint8 -> (box.height, box.width, 3) uint8."""
    return np.asarray(Image.fromarray(image).resize((box.width, box.height), Image.Resampling.LANCZOS))


def show(figure: Figure, box: Box, pixels: np.ndarray, label: str) -> None:
    """Show (H, W, 3) uint8 pixels unscaled, in a box of the same size."""
    axes = add_axes(figure, box, label)
    axes.set_axis_off()
    left, bottom, *_ = axes.get_window_extent().bounds
    figure.figimage(pixels, round(left), round(bottom))  # matplotlib 3.10's imshow may shift by a pixel


def draw_training_ratings(figure: Figure, box: Box, explanation: Explanation) -> None:
    """How often each rating was given in training; those below the picture's score are blue."""
    ratings, value = explanation.training_ratings, explanation.value
    low, high = min(*explanation.ends, value, ratings[0]), max(*explanation.ends, value, ratings[-1])
    # Evenly spaced quantiles are a sample of the ratings with equal weights.
    counts, edges = np.histogram(ratings, bins=40, range=(low, high))
    axes = add_axes(figure, box, "training ratings")
    axes.stairs(counts, edges, fill=True, color=GRID)
    axes.stairs(counts, np.minimum(edges, value), fill=True, color=BLUE)
    top = 1.4 * counts.max()
    axes.set(xlim=(low, high), ylim=(0, top))
    axes.axvline(value, color=INK, linewidth=1.5)  # the score, with the number at its top
    side = "left" if value < (low + high) / 2 else "right"
    axes.text(value, top, f" {value:.2f} ", ha=side, va="top", fontsize=11, weight="bold")
    finish_chart(axes, box, "training ratings; blue: below this picture")


def draw_predicted_ratings(figure: Figure, box: Box, explanation: Explanation) -> None:
    """The predicted rating distribution as bars: how much people disagree."""
    axes = add_axes(figure, box, "predicted ratings")
    bars = draw_shares(axes, explanation.distribution, color=BLUE)
    axes.bar_label(bars, fmt=lambda share: f"{100 * share:.0f}", fontsize=9, color=FAINT)
    axes.margins(x=0, y=0.2)
    axes.set_xticks(list(explanation.distribution))
    words = f"predicted ratings in %: mean {explanation.value:.2f}, SD {explanation.deviation:.2f}"
    finish_chart(axes, box, words)


def draw_shares(axes: Axes, shares: Mapping[float, float], **style: object) -> BarContainer:
    """A bar for each rating's share; the gap is a fifth of the distance between two ratings."""
    step = np.diff(sorted(shares)).min() if len(shares) > 1 else 1.0
    return axes.bar(list(shares), list(shares.values()), width=0.8 * step, **style)


def finish_chart(axes: Axes, box: Box, words: str, **style: object) -> None:
    """Puts `words` above a chart and ratings below it, without a frame."""
    write(axes.figure, box.left, box.top - 10, words, **{"size": 10, "color": FAINT} | style)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelsize=10, labelcolor=FAINT)
    axes.xaxis.set_major_formatter("{x:g}")
