"""How alike two photographs are, and which belong to one series."""

# A name may hold what Path would change.
# ruff: noqa: PTH120
from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eamb.selection.exif import Taken

if TYPE_CHECKING:
    from eamb.inference.scorer import Scored

SKETCH = 16  # side of the tiny picture that is compared
SHIFT = 2  # of its pixels: a hand moves by an eighth of the view between two shots
CELLS, DIRECTIONS = 4, 8  # where edges are counted, and in how many directions
FLAT = 1.0  # levels; what varies less shows nothing
CAMERAS = "cameras in the folder: series are per camera"  # their clocks may differ


@dataclass
class Photograph:
    """A picture file and all that is known about it.

    sketch: (16, 16, 3) uint8, see `sketch`; None if the file could not be scored.
    thumbnail: of the page, its paths "picture" and "map" (None without a map), "width" and "height".
    series: its number, from 1. Filled by `group`, as are
    gap: seconds since the photograph before it, of the same folder and camera; None for the first, or without
        time.
    similarity: to that photograph, in [0, 1]; without time, to the more similar neighbour by file name.
    size, rank: of its series, and in it, from 1. Filled by `choose`, as are `picked` and `notes`.
    """

    path: str
    taken: Taken
    sketch: np.ndarray | None = None
    scored: Scored | None = None
    thumbnail: dict | None = None
    series: int | None = None
    gap: float | None = None
    similarity: float | None = None
    size: int | None = None
    rank: int | None = None
    picked: bool = False
    notes: list[str] = field(default_factory=list)


# ---- how alike two pictures are


def sketch(picture: Image.Image) -> np.ndarray:
    """A picture as (16, 16, 3) uint8, all that is kept of it for `similarity`."""
    return np.asarray(picture.resize((SKETCH, SKETCH), Image.Resampling.BOX))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """How alike two sketches are: 1 the same picture, about 0.4 two of different things, 0 nothing in common.

    The mean of two correlations: of their colours, at the small shift that fits best, and of the directions
    of their edges. Exposure hardly matters to either. Symmetric.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)  # (16, 16, 3)
    flat = [picture.std(axis=(0, 1)).max() < FLAT for picture in (one, other)]
    if any(flat):
        return float(1 - abs(one - other).mean() / 255) if all(flat) else 0.0
    # What is left of each when one is shifted over the other by up to SHIFT pixels.
    parts = [
        (slice(max(0, shift), SKETCH + min(0, shift)), slice(max(0, -shift), SKETCH - max(0, shift)))
        for shift in range(-SHIFT, SHIFT + 1)
    ]
    colours = [correlation(one[down, right], other[up, left]) for down, up in parts for right, left in parts]
    edges = float(np.dot(edge_directions(one), edge_directions(other)))
    return min(1.0, (max(0.0, *colours) + edges) / 2)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float((one * other).sum() / length) if length else 0.0


def edge_directions(picture: np.ndarray) -> np.ndarray:
    """(CELLS * CELLS * DIRECTIONS,) of length 1: how much contrast runs in which direction, by part."""
    rows, columns = np.gradient(picture.mean(axis=2))  # (16, 16) each
    turn = np.arctan2(rows, columns) % np.pi / np.pi  # an edge from dark to light is one from light to dark
    direction = (turn * DIRECTIONS).astype(int) % DIRECTIONS
    part = np.arange(SKETCH) * CELLS // SKETCH
    place = (part[:, None] * CELLS + part) * DIRECTIONS + direction  # (16, 16)
    contrast = np.bincount(place.ravel(), np.hypot(rows, columns).ravel(), CELLS * CELLS * DIRECTIONS)
    return contrast / max(np.linalg.norm(contrast), 1e-9)


# ---- series


def group(photographs: Sequence[Photograph], gap: float, least: float) -> None:
    """Finds the series: what one camera took within a folder without a pause or a change of the view.

    A photograph continues the series of the one before it unless more than `gap` seconds passed or they are
    less alike than `least`. One without time joins a neighbour by file name that is alike enough. The order
    of `photographs` is of no importance; series are numbered by folder and the file name of their first.
    """
    by_name = sorted(photographs, key=lambda photograph: name_key(photograph.path))
    folders, cameras = defaultdict(list), defaultdict(list)
    for photograph in by_name:
        folders[os.path.dirname(photograph.path)].append(photograph)
        if photograph.taken.time:
            cameras[os.path.dirname(photograph.path), photograph.taken.camera].append(photograph)
    first: dict[str, str] = {}  # path of a photograph -> path of one that stands for its series
    for members in cameras.values():
        members.sort(key=lambda photograph: photograph.taken.time)  # within a second names decide
        first[members[0].path] = members[0].path
        for before, photograph in pairwise(members):
            photograph.gap = (photograph.taken.time - before.taken.time).total_seconds()
            photograph.similarity = similarity(before.sketch, photograph.sketch)
            joins = photograph.gap <= gap and photograph.similarity >= least
            first[photograph.path] = first[before.path] if joins else photograph.path
    for members in folders.values():
        for place, photograph in enumerate(members):
            if not photograph.taken.time:
                beside = members[max(0, place - 1) : place] + members[place + 1 : place + 2]
                alike = {p.path: similarity(p.sketch, photograph.sketch) for p in beside if p.path in first}
                best = max(alike, key=alike.get, default=None)
                photograph.similarity = alike.get(best)
                first[photograph.path] = first[best] if best and alike[best] >= least else photograph.path
    numbers = {path: number for number, path in enumerate(dict.fromkeys(first[p.path] for p in by_name), 1)}
    for photograph in photographs:
        photograph.series = numbers[first[photograph.path]]


def name_key(path: str) -> tuple:
    """Sorts IMG_9 before IMG_10, as people do."""
    words = re.split(r"(\d+)", path)
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words], path


# ---- the best of each


def choose(photographs: Sequence[Photograph], keep: int, gap: float, least: float) -> list[Photograph]:
    """Groups and ranks the photographs, picks `keep` of each series, and notes what was unusual.

    A larger score is better, in any unit: only scores of one series are compared.

    Returns:
        The photographs by series and rank, equal scores by name; those without a score at the end.
    """
    good = sorted((p for p in photographs if not p.scored.error), key=lambda p: name_key(p.path))
    group(good, gap, least)
    good.sort(key=lambda p: (p.series, -p.scored.score))  # stable
    series, cameras = defaultdict(list), defaultdict(set)
    for photograph in good:
        series[photograph.series].append(photograph)
        if photograph.taken.time:
            cameras[os.path.dirname(photograph.path)].add(photograph.taken.camera)
    for members in series.values():
        for rank, photograph in enumerate(members, 1):
            photograph.size, photograph.rank, photograph.picked = len(members), rank, rank <= keep
            mixed = len(cameras[os.path.dirname(photograph.path)])
            if len(members) == 1:
                photograph.notes.append("only one")
            if not photograph.taken.time:
                photograph.notes.append("no time: grouped by similarity")
            elif mixed > 1:
                photograph.notes.append(f"{mixed} {CAMERAS}")
    return good + [photograph for photograph in photographs if photograph.scored.error]
