"""How similar two photographs are, and which belong to one series."""

# Path would change some names.
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

from eamb.readers.exif import Taken

if TYPE_CHECKING:
    from eamb.inference.scorer import Scored

SKETCH = 16  # side in pixels of the tiny pictures that are compared
SHIFT = 2  # in pixels of a sketch, an eighth of the view: cameras move that far between shots
CELLS, DIRECTIONS = 4, 8  # edges are counted in a 4 x 4 grid, by 8 directions
FLAT = 1.0  # grey levels; a picture that varies less counts as flat
CAMERAS = "cameras in the folder: series are per camera"  # their clocks may differ


@dataclass
class Photograph:
    """A picture file and all that is known about it.

    sketch: (16, 16, 3) uint8, see `sketch`; None if the file could not be scored.
    thumbnail: on the page: from `inference.page.write_thumbnail`.
    series: its number, from 1. `group` sets series, gap and similarity.
    gap: seconds since the photograph before it, of the same folder and camera; None for the first, and
        without a time.
    similarity: to that photograph, in [0, 1]; without a time, to the more similar neighbour by file name.
    size, rank: the size of its series and its rank there, from 1; `choose` sets them, `picked` and `notes`.
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


# ---- how similar two pictures are


def sketch(picture: Image.Image) -> np.ndarray:
    """A picture shrunk to (16, 16, 3) uint8, which is all that `similarity` needs."""
    return np.asarray(picture.resize((SKETCH, SKETCH), Image.Resampling.BOX))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity of two sketches: 1 for the same picture, about 0.4 for different things, 0 for no likeness.

    The mean of two correlations: of colours, at the small shift that fits best, and of edge directions.
    Exposure hardly affects either. Symmetric.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)  # (16, 16, 3)
    flat = [picture.std(axis=(0, 1)).max() < FLAT for picture in (one, other)]
    if any(flat):
        return float(1 - abs(one - other).mean() / 255) if all(flat) else 0.0
    # The overlapping parts of both at each shift of up to SHIFT pixels.
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
    """(CELLS * CELLS * DIRECTIONS,) of length 1: contrast in each direction, by cell."""
    rows, columns = np.gradient(picture.mean(axis=2))  # (16, 16) each
    turn = np.arctan2(rows, columns) % np.pi / np.pi  # dark to light counts like light to dark
    direction = (turn * DIRECTIONS).astype(int) % DIRECTIONS
    part = np.arange(SKETCH) * CELLS // SKETCH
    place = (part[:, None] * CELLS + part) * DIRECTIONS + direction  # (16, 16)
    contrast = np.bincount(place.ravel(), np.hypot(rows, columns).ravel(), CELLS * CELLS * DIRECTIONS)
    return contrast / max(np.linalg.norm(contrast), 1e-9)


# ---- series


def group(photographs: Sequence[Photograph], gap: float, least: float) -> None:
    """Finds the series: what one camera took in one folder without a long pause or a change of view.

    A photograph continues the series of the one before it unless more than `gap` seconds passed or their
    similarity is below `least`. One without a time joins a neighbour by file name that is similar enough.
    The order of `photographs` does not matter; series are numbered by the path of their first photograph.
    """
    by_name = sorted(photographs, key=lambda photograph: name_key(photograph.path))
    folders, cameras = defaultdict(list), defaultdict(list)
    for photograph in by_name:
        folders[os.path.dirname(photograph.path)].append(photograph)
        if photograph.taken.time:
            cameras[os.path.dirname(photograph.path), photograph.taken.camera].append(photograph)
    first: dict[str, str] = {}  # path of a photograph -> path that identifies its series
    for members in cameras.values():
        members.sort(key=lambda photograph: photograph.taken.time)  # equal times: by name
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


# ---- the best of each series


def choose(photographs: Sequence[Photograph], keep: int, gap: float, least: float) -> list[Photograph]:
    """Groups and ranks the photographs, picks `keep` of each series, and notes what was unusual.

    Larger scores are better; their unit does not matter, because only scores of one series are compared.

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
