"""One picture explained: the map over it, its score among the training ratings, the strongest emotions' maps.

A panel is laid out by hand, in pixels from its upper left corner, because a picture's shape decides where the
rest has room.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from eamb.evaluation.figures import (
    BLUE,
    FAINT,
    GRID,
    INK,
    add_axes,
    colour_ramp,
    new_figure,
    overlay,
    write,
    write_figure,
)

# Pixels, as everything here but sizes of letters, which are points.
PANEL_WIDTH = 1200
MARGIN, BETWEEN = 24, 12
CAPTION = 30  # a line of text above a picture or a chart
COLOUR_BAR_ROOM = 64
TALLEST = 560
SHOWN_EMOTIONS, MOST_LABELS = 3, 12


@dataclass(frozen=True)
class Explanation:
    """What is said about a picture.

    title: usually the file's name.
    score: in words, with its scale: "3.72 of 1 to 5, above 81 % of the training ratings".
    value, ends: the score itself, and the two ends of its scale.
    emotion_map: (h, w), in [0, 1].
    map_title: what this map is.
    emotions: probability of every emotion by name.
    class_maps: (E, h, w), in [0, 1], in the order of `emotions`; None: no emotion is shown.
    training_ratings: (Q,) quantiles, ascending, evenly spaced in share; None: unknown.
    distribution: predicted share of each rating; empty for networks that give a score only.
    aspect: width over height of the picture, if it comes as `shrink` gives it; None: as its pixels say.
    """

    title: str
    score: str
    value: float
    ends: tuple[float, float]
    emotion_map: np.ndarray
    map_title: str = "emotion-aware map"
    emotions: Mapping[str, float] = field(default_factory=dict)
    class_maps: np.ndarray | None = None
    training_ratings: np.ndarray | None = None
    distribution: Mapping[float, float] = field(default_factory=dict)
    aspect: float | None = None


class Box(NamedTuple):
    """A part of the panel, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def bottom(self) -> int:
        return self.top + self.height


class Layout(NamedTuple):
    """Where things lie. All but a colour bar stays in `width` pixels from `left` on."""

    left: int
    width: int
    picture: Box
    map: Box
    charts: list[Box]
    class_maps: list[Box]
    height: int


def save_panel(path: Path, image: np.ndarray, explanation: Explanation) -> None:
    """Write `panel` as a PNG."""
    # Run lengths: a quarter of the time of zlib's usual search, for a file that is 5 % larger.
    write_figure(panel(image, explanation), path, compress_type=zlib.Z_RLE)


def shrink(picture: Image.Image) -> tuple[np.ndarray, float]:
    """An RGB picture as large as a panel shows it, (h, w, 3) uint8, and its `Explanation.aspect`."""
    aspect = picture.width / picture.height
    box = lay_out(aspect, 0, 0).picture
    return np.asarray(picture.resize((box.width, box.height), Image.Resampling.LANCZOS)), aspect


def panel(image: np.ndarray, explanation: Explanation) -> Figure:
    """Draw a picture, PANEL_WIDTH pixels wide, with everything that explains its score.

    Args:
        image: (H, W, 3) uint8, of any size; its aspect ratio is kept.

    Raises:
        ValueError: the picture or a map has another shape or range.
    """
    image, emotions, class_maps = np.asarray(image), explanation.emotions, explanation.class_maps
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"panels: a picture is (H, W, 3) uint8; this one is {image.shape} {image.dtype}")
    if class_maps is not None and len(class_maps) != len(emotions):
        raise ValueError(
            f"panels: one map per emotion, please; {len(class_maps)} maps came for {len(emotions)} emotions"
        )
    charts = [draw_training_ratings] if explanation.training_ratings is not None else []
    charts += [draw_predicted_ratings] if explanation.distribution else []
    shown = 0 if class_maps is None else min(SHOWN_EMOTIONS, len(emotions))
    layout = lay_out(explanation.aspect or image.shape[1] / image.shape[0], len(charts), shown)
    figure = new_figure(PANEL_WIDTH, layout.height)
    title = shorten(explanation.title, (layout.width + COLOUR_BAR_ROOM) // 15)  # pixels of a bold digit
    write(figure, layout.left, 34, title, size=15, weight="bold")
    write(figure, layout.left, 62, explanation.score, size=13)

    picture = resize_image(image, layout.picture)  # once: photographs are large, and all else is smaller
    show(figure, layout.picture, picture, "picture")
    show(figure, layout.map, overlay(picture, explanation.emotion_map), "map")
    write(figure, layout.map.left, layout.map.top - 10, explanation.map_title, size=10, color=FAINT)
    bar_left = layout.map.left + layout.map.width + BETWEEN
    add_colour_bar(figure, layout.map._replace(left=bar_left, width=14))
    for draw, box in zip(charts, layout.charts, strict=True):
        draw(figure, box, explanation)
    if shown:
        words = (
            "strongest emotions (the map above is the sum of all emotions' maps, each times its probability)"
        )
        top = layout.class_maps[0].top - 10
        write(figure, layout.left, top - CAPTION, words, size=10, color=FAINT)
        letters = share(layout.width, SHOWN_EMOTIONS, BETWEEN) // 11 - 6  # without the share at the end
        named = [(*pair, map_) for pair, map_ in zip(emotions.items(), class_maps, strict=True)]
        strongest = sorted(named, key=lambda emotion: -emotion[1])[:shown]
        for box, (name, probability, class_map) in zip(layout.class_maps, strongest, strict=True):
            write(figure, box.left, top, f"{shorten(name, letters)}  {100 * probability:.0f} %", size=12)
            show(figure, box, overlay(resize_image(picture, box), class_map), f"map of {name}")
    return figure


def lay_out(aspect: float, charts: int, class_maps: int) -> Layout:
    """Place everything for a picture of a ratio of width to height, from top to bottom."""
    stacked = aspect > 2.5  # then the map lies below the picture, not beside it
    widest = PANEL_WIDTH - 2 * MARGIN - COLOUR_BAR_ROOM
    width, height = fit(aspect, widest if stacked else (widest - BETWEEN) // 2, TALLEST)
    # Room for words and charts even if the picture is a thin strip.
    content = max(width if stacked else 2 * width + BETWEEN, 740)
    left = (PANEL_WIDTH - content - COLOUR_BAR_ROOM) // 2
    picture = Box(left, 100, width, height)
    below, beside = picture.bottom + CAPTION, left + width + BETWEEN
    map_box = picture._replace(top=below) if stacked else picture._replace(left=beside)
    bottom = map_box.bottom

    chart_width = share(content, max(charts, 1), MARGIN)
    chart_lefts = [left + number * (chart_width + MARGIN) for number in range(charts)]
    chart_boxes = [Box(x, bottom + MARGIN + CAPTION, chart_width, 72) for x in chart_lefts]
    if charts:
        bottom = chart_boxes[0].bottom + 26  # of the labels below

    cell = share(content, SHOWN_EMOTIONS, BETWEEN)
    size = fit(aspect, cell, 300)
    cell_lefts = [left + number * (cell + BETWEEN) for number in range(class_maps)]
    class_boxes = [Box(x, bottom + MARGIN + 2 * CAPTION, *size) for x in cell_lefts]
    if class_maps:
        bottom = class_boxes[0].bottom
    return Layout(left, content, picture, map_box, chart_boxes, class_boxes, bottom + MARGIN)


def share(width: int, parts: int, between: int) -> int:
    """The width of each of some equal parts with room between them."""
    return (width - between * (parts - 1)) // parts


def fit(aspect: float, widest: int, tallest: int) -> tuple[int, int]:
    """The largest width and height of a ratio that a room allows, whole pixels, at least one each."""
    width = min(widest, tallest * aspect)
    return max(round(width), 1), max(round(width / aspect), 1)


def shorten(text: str, letters: int) -> str:
    """The text, or its two ends with … between them."""
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[-(letters // 2 - 1) :]}"


def resize_image(image: np.ndarray, box: Box) -> np.ndarray:
    """(H, W, 3) uint8 -> (box.height, box.width, 3) uint8."""
    return np.asarray(Image.fromarray(image).resize((box.width, box.height), Image.Resampling.LANCZOS))


def show(figure: Figure, box: Box, pixels: np.ndarray, label: str) -> None:
    """Show (H, W, 3) uint8 pixels in a box of the same size, one to one."""
    axes = add_axes(figure, box, label)
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def add_colour_bar(figure: Figure, box: Box) -> None:
    """The colours of a map from 0 to 1, as they look over a picture's middle grey."""
    colours = colour_ramp(1, 256)[0] / 255  # (256, 3)
    axes = add_axes(figure, box._replace(height=max(box.height, 40)), "colour bar")
    bar = figure.colorbar(ScalarMappable(cmap=ListedColormap(colours)), cax=axes)
    words = ["0", "0.5", "1"] if box.height > 60 else ["0", "1"]
    bar.set_ticks([float(word) for word in words], labels=words, fontsize=11, color=INK)
    bar.outline.set_visible(False)


def draw_training_ratings(figure: Figure, box: Box, explanation: Explanation) -> None:
    """How often each rating was given in training; those below the picture's score are blue."""
    ratings, value = explanation.training_ratings, explanation.value
    low, high = min(*explanation.ends, value, ratings[0]), max(*explanation.ends, value, ratings[-1])
    # Quantiles at evenly spaced shares are a sample of the ratings in which each counts alike.
    counts, edges = np.histogram(ratings, bins=40, range=(low, high))
    axes = add_axes(figure, box, "training ratings")
    axes.stairs(counts, edges, fill=True, color=GRID)
    axes.stairs(counts, np.minimum(edges, value), fill=True, color=BLUE)
    top = 1.4 * counts.max()
    axes.set(xlim=(low, high), ylim=(0, top))
    axes.xaxis.set_major_locator(MaxNLocator(MOST_LABELS - 1, steps=[1, 2, 5, 10]))
    axes.axvline(value, color=INK, linewidth=1.5)  # the score, with the number at its top
    side, room = ("left", 4) if value < (low + high) / 2 else ("right", -4)  # points beside the line
    place = {"xytext": (room, -2), "textcoords": "offset points", "ha": side, "va": "top"}
    axes.annotate(f"{value:.2f}", (value, top), fontsize=11, weight="bold", **place)
    finish_chart(axes, box, "training ratings; blue: below this picture")


def draw_predicted_ratings(figure: Figure, box: Box, explanation: Explanation) -> None:
    """The predicted rating distribution as bars."""
    ratings, shares = np.array([*explanation.distribution.items()]).T  # (K,), (K,)
    step = np.diff(ratings).min() if len(ratings) > 1 else 1.0
    axes = add_axes(figure, box, "predicted ratings")
    axes.bar(ratings, shares, width=0.8 * step, color=BLUE)
    if len(ratings) <= MOST_LABELS:
        for rating, height in zip(ratings, shares, strict=True):
            words = f"{100 * height:.0f}"
            axes.text(rating, height, words, ha="center", va="bottom", fontsize=9, color=FAINT)
    axes.set(xlim=(ratings.min() - step / 2, ratings.max() + step / 2), ylim=(0, 1.2 * shares.max()))
    axes.set_xticks(ratings[:: math.ceil(len(ratings) / MOST_LABELS)])
    finish_chart(axes, box, f"predicted ratings in %, mean {explanation.value:.2f}")


def finish_chart(axes: Axes, box: Box, words: str) -> None:
    """Words above, ratings below, no frame."""
    write(axes.figure, box.left, box.top - 10, words, size=10, color=FAINT)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelsize=10, labelcolor=FAINT)
    axes.xaxis.set_major_formatter("{x:g}")
