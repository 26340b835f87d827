"""How alike two photographs are, and which belong to one series."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from eamb.selection.exif import Taken

if TYPE_CHECKING:
    from eamb.inference.scorer import Scored

GAP = 30.0  # seconds
SIMILARITY = 0.6
SKETCH = 16  # side of the tiny picture that is compared
SHIFT = 2  # of its pixels: a hand moves by an eighth of the view between two shots
CELLS, DIRECTIONS = 4, 8  # where edges are counted, and in how many directions
FLAT = 1.0  # levels; what varies less shows nothing
CAMERAS = "cameras in the folder: series are per camera"  # their clocks may differ


@dataclass
class Photograph:
    """A picture file and all that is known about it; the fields from `place` on are filled by `choose`.

    sketch: (16, 16, 3) uint8, see `sketch`; None if the file could not be scored.
    """

    path: str
    taken: Taken
    sketch: np.ndarray | None = None
    scored: Scored | None = None
    thumbnail: Thumbnail | None = None
    place: Place | None = None
    size: int = 0  # of its series
    rank: int = 0  # from 1
    picked: bool = False
    notes: list[str] = field(default_factory=list)


class Thumbnail(NamedTuple):
    """Paths from the page, "/" between folders; the map is None for weights without one."""

    picture: str
    map: str | None
    width: int
    height: int


class Place(NamedTuple):
    """Where a photograph belongs.

    series: its number, from 1.
    gap: seconds since the photograph before it, of the same folder and camera; None for the first, or without
        time.
    similarity: to that photograph, in [0, 1]; without time, to the more similar neighbour by file name.
    """

    series: int
    gap: float | None
    similarity: float | None


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
    colours = max(
        correlation(one[down, right], other[up, left]) for down, up in parts for right, left in parts
    )
    edges = float(np.dot(edge_directions(one), edge_directions(other)))
    return min(1.0, (max(0.0, colours) + edges) / 2)


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


def group(photographs: Sequence[Photograph], gap: float = GAP, least: float = SIMILARITY) -> list[Place]:
    """Finds the series: what one camera took within a folder without a pause or a change of the view.

    A photograph continues the series of the one before it unless more than `gap` seconds passed or they are
    less alike than `least`. One without time joins a neighbour by file name that is alike enough. The order
    of `photographs` is of no importance.

    Returns:
        One place per photograph. Series are numbered by folder and the file name of their first.
    """
    folders = defaultdict(list)
    for number, photograph in enumerate(photographs):
        folders[folder_of(photograph)].append(number)
    links = [link for folder in folders.values() for link in find_links(photographs, folder)]
    first: dict[int, int] = {}  # of a photograph, another one that stands for its series
    for number, before, passed, alike in links:
        joined = before is not None and (passed is None or passed <= gap) and alike >= least
        first[number] = first[before] if joined else number
    by_name = sorted(range(len(photographs)), key=lambda number: name_key(photographs[number].path))
    series = {number: place for place, number in enumerate(dict.fromkeys(first[n] for n in by_name), 1)}
    places = {number: Place(series[first[number]], passed, alike) for number, _, passed, alike in links}
    return [places[number] for number in range(len(photographs))]


def find_links(photographs: Sequence[Photograph], folder: Sequence[int]) -> Iterator[tuple]:
    """With which other each photograph of a folder is compared; that one always comes first.

    Yields:
        The numbers of the photograph and of the other, the seconds between them and their similarity; None
        for what there is not.
    """
    cameras = defaultdict(list)
    by_name = sorted(folder, key=lambda number: name_key(photographs[number].path))
    for number in by_name:
        if photographs[number].taken.time:
            cameras[photographs[number].taken.camera].append(number)
    for taken in cameras.values():
        taken.sort(key=lambda number: photographs[number].taken.time)  # stable: names decide within a second
        yield taken[0], None, None, None
        for before, number in pairwise(taken):
            passed = (photographs[number].taken.time - photographs[before].taken.time) / timedelta(seconds=1)
            yield number, before, passed, similarity(photographs[before].sketch, photographs[number].sketch)
    for place, number in enumerate(by_name):
        if not photographs[number].taken.time:
            neighbours = by_name[max(0, place - 1) : place]
            neighbours += [n for n in by_name[place + 1 : place + 2] if photographs[n].taken.time]
            alike = {n: similarity(photographs[n].sketch, photographs[number].sketch) for n in neighbours}
            best = max(alike, key=alike.get, default=None)
            yield number, best, None, alike.get(best)


def name_key(path: str) -> tuple:
    """Sorts IMG_9 before IMG_10, as people do."""
    words = re.split(r"(\d+)", path)
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words], path


def folder_of(photograph: Photograph) -> str:
    return os.path.dirname(photograph.path)  # noqa: PTH120 - a name may hold what Path would change


# ---- the best of each


def choose(photographs: Sequence[Photograph], keep: int, gap: float, least: float) -> list[Photograph]:
    """Groups and ranks the photographs, picks `keep` of each series, and notes what was unusual.

    A larger score is better, in any unit: only scores of one series are compared.

    Returns:
        The photographs by series and rank, equal scores by name; those without a score at the end.
    """
    good = sorted((p for p in photographs if not p.scored.error), key=lambda p: name_key(p.path))
    for photograph, place in zip(good, group(good, gap, least), strict=True):
        photograph.place = place
    good.sort(key=lambda p: (p.place.series, -p.scored.score))  # stable
    series, cameras = defaultdict(list), defaultdict(set)
    for photograph in good:
        series[photograph.place.series].append(photograph)
        if photograph.taken.time:
            cameras[folder_of(photograph)].add(photograph.taken.camera)
    for members in series.values():
        for rank, photograph in enumerate(members, 1):
            photograph.size, photograph.rank, photograph.picked = len(members), rank, rank <= keep
            mixed = len(cameras[folder_of(photograph)])
            if len(members) == 1:
                photograph.notes.append("only one")
            if not photograph.taken.time:
                photograph.notes.append("no time: grouped by similarity")
            elif not photograph.taken.exposed:
                photograph.notes.append("no time of exposure: that of the last change counts")
            if photograph.taken.time and mixed > 1:
                photograph.notes.append(f"{mixed} {CAMERAS}")
    return good + [photograph for photograph in photographs if photograph.scored.error]
