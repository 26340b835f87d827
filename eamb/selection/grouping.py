"""Photographs grouped into series by time, likeness and name."""

from __future__ import annotations

import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from eamb.files import as_cell, printable, safe_path, write_csv
from eamb.inference.photographs import PictureFile
from eamb.inference.scorer import Scored, Scorer

GAP = 30.0  # seconds

SIMILARITY = 0.6

SKETCH = 16  # side of the tiny picture that is compared

SHIFT = 2  # of its pixels: a hand moves by an eighth of the view between two shots

CELLS, DIRECTIONS = 4, 8  # where edges are counted, and in how many directions

FLAT = 1.0  # levels; what varies less shows nothing


def sketch(picture: Image.Image) -> np.ndarray:
    """A picture as (16, 16, 3) uint8, all that is kept of it for `similarity`."""
    return np.asarray(picture.resize((SKETCH, SKETCH), Image.Resampling.BOX))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """How alike two sketches are: 1 the same picture, about 0.4 two of different things, 0 nothing in common.

    The mean of how their colours correlate, where a small shift lets them fit best, and how their edges run.
    Exposure hardly matters to either. Symmetric.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)  # (16, 16, 3)
    flat = [picture.std(axis=(0, 1)).max() < FLAT for picture in (one, other)]
    if any(flat):
        return float(1 - abs(one - other).mean() / 255) if all(flat) else 0.0
    edges = float(np.dot(edge_directions(one), edge_directions(other)))
    return min(1.0, (max(0.0, best_correlation(one, other)) + edges) / 2)


def best_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The largest correlation, -1 to 1, of all shifts by up to SHIFT pixels, where both overlap."""
    shifts = range(-SHIFT, SHIFT + 1)
    return max(
        correlation(shifted(one, down, right), shifted(other, -down, -right))
        for down in shifts
        for right in shifts
    )


def shifted(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    """What is left of (h, w, 3) when so many rows and columns leave it."""
    height, width = picture.shape[:2]
    return picture[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]


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


MAKE, MODEL, CHANGED = 0x010F, 0x0110, 0x0132  # EXIF's tags

DETAILS, TAKEN, FRACTION, SERIAL = 0x8769, 0x9003, 0x9291, 0xA431

LONGEST_TEXT = 64  # letters

TIME = re.compile(r"(\d{4})[:/.-](\d\d?)[:/.-](\d\d?)[ T](\d\d?):(\d\d)(?::(\d\d))?")


class Taken(NamedTuple):
    """What the EXIF of a photograph says.

    time: of exposure, or else of the last change; by the camera's clock, whatever its time zone.
    exposed: whether it is the time of exposure.
    camera: make, model and serial number, as far as they are there.
    """

    time: datetime | None = None
    exposed: bool = False
    camera: str = ""


def read_taken(exif: Image.Exif) -> Taken:
    try:
        details = exif.get_ifd(DETAILS)
    except Exception:  # damaged; Pillow raises nearly anything
        details = {}
    time = as_time(details.get(TAKEN), details.get(FRACTION))
    changed = as_time(exif.get(CHANGED))
    return Taken(time or changed, time is not None, as_camera(exif, details))


def as_time(text: object, fraction: object = None) -> datetime | None:
    """EXIF's "2024:05:03 14:03:22"; the fraction are the digits behind the point. None for anything else."""
    found = TIME.match(as_text(text))
    if not found:
        return None
    digits = as_text(fraction)
    microseconds = int(f"{digits:0<6.6}") if digits.isascii() and digits.isdecimal() else 0
    try:
        return datetime(*(int(part or 0) for part in found.groups()), microseconds)
    except ValueError:  # 0000:00:00, the 31st of February, second 60
        return None


def as_camera(exif: Image.Exif, details: dict) -> str:
    """As in "Canon EOS R5, no. 012345"."""
    make, model, serial = (
        printable(as_text(value)) for value in (exif.get(MAKE), exif.get(MODEL), details.get(SERIAL))
    )
    named = make and make.split()[0].casefold() in model.casefold()
    name = " ".join(model.split() if named else f"{make} {model}".split())
    return f"{name}, no. {serial}" if name and serial else name


def as_text(value: object) -> str:
    """A value of EXIF, of which a file may hold any type and length."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value.replace("\0", " ").strip()[:LONGEST_TEXT] if isinstance(value, str) else ""


class Shot(NamedTuple):
    """What grouping knows of a photograph; sketch (16, 16, 3) uint8."""

    path: str
    taken: Taken
    sketch: np.ndarray


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


class Link(NamedTuple):
    """A photograph and the one that it is compared with, if any; `near` if that is not too long before."""

    shot: int
    before: int | None = None
    gap: float | None = None
    similarity: float | None = None
    near: bool = True


def group(shots: Sequence[Shot], gap: float = GAP, least: float = SIMILARITY) -> list[Place]:
    """Finds the series: what one camera took within a folder without a pause or a change of what is seen.

    A photograph goes on with the series of the one before it unless more than `gap` seconds passed or they
    are less alike than `least`. One without time joins a neighbour by file name that is alike enough. The
    order of `shots` is of no importance.

    Returns:
        One place per shot. Series are numbered by folder and the file name of their first.
    """
    folders = defaultdict(list)
    for number, shot in enumerate(shots):
        folders[os.path.dirname(shot.path)].append(number)  # noqa: PTH120
    links = [link for folder in folders.values() for link in find_links(shots, folder, gap)]
    first: dict[int, int] = {}  # of a shot, another one that stands for its series
    for link in links:
        joined = link.before is not None and link.near and link.similarity >= least
        first[link.shot] = first[link.before] if joined else link.shot
    order = sorted(range(len(shots)), key=lambda number: name_key(shots[number].path))
    numbers = {first[shot]: None for shot in order}  # a dict keeps the order
    numbers = {shot: number for number, shot in enumerate(numbers, 1)}
    places = {link.shot: Place(numbers[first[link.shot]], link.gap, link.similarity) for link in links}
    return [places[number] for number in range(len(shots))]


def find_links(shots: Sequence[Shot], folder: Sequence[int], gap: float) -> Iterator[Link]:
    """With which other each shot of a folder is compared; that one always comes first."""
    cameras = defaultdict(list)
    by_name = sorted(folder, key=lambda number: name_key(shots[number].path))
    for number in by_name:
        if shots[number].taken.time:
            cameras[shots[number].taken.camera].append(number)
    for taken in cameras.values():
        taken.sort(key=lambda number: shots[number].taken.time)  # stable: the names decide within a second
        yield Link(taken[0])
        for before, number in pairwise(taken):
            passed = (shots[number].taken.time - shots[before].taken.time) / timedelta(seconds=1)
            alike = similarity(shots[before].sketch, shots[number].sketch)
            yield Link(number, before, passed, alike, passed <= gap)
    for place, number in enumerate(by_name):
        if not shots[number].taken.time:
            neighbours = by_name[max(0, place - 1) : place]
            neighbours += [after for after in by_name[place + 1 : place + 2] if shots[after].taken.time]
            alike = {other: similarity(shots[other].sketch, shots[number].sketch) for other in neighbours}
            best = max(alike, key=alike.get, default=None)
            yield Link(number, best, None, alike.get(best))


def name_key(path: str) -> tuple:
    """Sorts IMG_9 before IMG_10, as people do."""
    words = re.split(r"(\d+)", path)
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words], path


def rank(scores: Sequence[float]) -> list[int]:
    """The order of a series, best first, by number from 0; equal ones keep their order.

    A score is what the scorer of `look_at` gave; the larger the better, in any unit, since only scores of one
    series are compared.
    """
    return sorted(range(len(scores)), key=lambda number: -scores[number])


LONGEST_SIDE, QUALITY = 320, 85  # of thumbnails


@dataclass
class Photograph:
    """A picture file and all that is found out about it; place, rank and picked by `choose`."""

    path: str
    scored: Scored
    taken: Taken
    sketch: np.ndarray | None = None  # (16, 16, 3) uint8
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


class Seen(NamedTuple):
    """What the decoding thread keeps of a picture; `jpeg` is empty if there is no page to show it."""

    taken: Taken
    sketch: np.ndarray
    size: tuple[int, int]
    jpeg: bytes


def look_at(pictures: Sequence[PictureFile], scorer: Scorer, page: Path | None) -> Iterator[Photograph]:
    """Scores all pictures, and writes the thumbnails as they come; only what `Photograph` holds is kept.

    Args:
        scorer: anything with `score_all(paths, look=...)` that gives a Scored per path, and
            `emotions_trained`, without which no map is shown.
    """
    seen: dict[str, Seen] = {}

    def look(path: str, picture: Image.Image, exif: Image.Exif) -> None:
        seen[path] = see(picture, exif, encode=page is not None)

    results = scorer.score_all([found.path for found in pictures], look=look)
    for number, scored in enumerate(results, 1):
        kept = replace(scored, emotion_map=None, class_maps=None)
        view = seen.pop(scored.path, None)
        if scored.error:
            yield Photograph(scored.path, kept, view.taken if view else Taken())
            continue
        emotion_map = scored.emotion_map if scorer.emotions_trained else None
        thumbnail = write_thumbnail(page, number, view, emotion_map) if page is not None else None
        yield Photograph(scored.path, kept, view.taken, view.sketch, thumbnail)


def see(picture: Image.Image, exif: Image.Exif, encode: bool) -> Seen:
    scale = min(1, LONGEST_SIDE / max(picture.size))
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    jpeg = io.BytesIO()
    if encode:
        small.save(jpeg, "JPEG", quality=QUALITY)
    return Seen(read_taken(exif), sketch(small), size, jpeg.getvalue())


def write_thumbnail(page: Path, number: int, seen: Seen, emotion_map: np.ndarray | None) -> Thumbnail:
    picture = f"thumbnails/{number:06d}.jpg"
    (page / picture).parent.mkdir(parents=True, exist_ok=True)
    (page / picture).write_bytes(seen.jpeg)
    if emotion_map is None:
        return Thumbnail(picture, None, *seen.size)
    name = f"maps/{number:06d}.png"
    (page / name).parent.mkdir(exist_ok=True)
    coloured(emotion_map).save(page / name)
    return Thumbnail(picture, name, *seen.size)


def coloured(emotion_map: np.ndarray) -> Image.Image:
    """A map, (h, w) in [0, 1], in its colours; the browser stretches it over the thumbnail."""
    from eamb.evaluation.figures import MAP_COLOURS, colormaps  # matplotlib takes a second to load

    levels = np.rint(255 * emotion_map.clip(0, 1)).astype(np.uint8)
    image = Image.fromarray(levels)
    image.putpalette((255 * colormaps[MAP_COLOURS](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes())
    return image


def choose(photographs: Sequence[Photograph], keep: int, gap: float, least: float) -> list[Photograph]:
    """Groups, ranks, picks and takes notes.

    Returns:
        The photographs by series and rank, those without a score at the end.
    """
    good = [photograph for photograph in photographs if not photograph.scored.error]
    shots = [Shot(photograph.path, photograph.taken, photograph.sketch) for photograph in good]
    series = defaultdict(list)
    for photograph, place in zip(good, group(shots, gap, least), strict=True):
        photograph.place = place
        series[place.series].append(photograph)
    ordered = []
    for _, members in sorted(series.items()):
        members.sort(key=lambda photograph: name_key(photograph.path))
        for position, index in enumerate(rank([member.scored.score for member in members]), 1):
            chosen = members[index]
            chosen.size, chosen.rank, chosen.picked = len(members), position, position <= keep
            ordered.append(chosen)
    take_notes(ordered)
    return ordered + [photograph for photograph in photographs if photograph.scored.error]


CAMERAS = "cameras in the folder: series are per camera"  # their clocks may differ


def take_notes(photographs: Sequence[Photograph]) -> None:
    cameras = defaultdict(set)
    for photograph in photographs:
        if photograph.taken.time:
            cameras[os.path.dirname(photograph.path)].add(photograph.taken.camera)  # noqa: PTH120
    for photograph in photographs:
        mixed = len(cameras[os.path.dirname(photograph.path)])  # noqa: PTH120
        if photograph.size == 1:
            photograph.notes.append("only one")
        if not photograph.taken.time:
            photograph.notes.append("no time: grouped by similarity")
            continue
        if not photograph.taken.exposed:
            photograph.notes.append("no time of exposure: that of the last change counts")
        if mixed > 1:
            photograph.notes.append(f"{mixed} {CAMERAS}")


COLUMNS = (
    *("path", "series", "series_size", "rank", "picked", "score", "percentile", "time"),
    *("seconds_since_previous", "similarity_to_previous", "camera", "emotion", "note", "error"),
)


def as_row(photograph: Photograph) -> dict[str, str | int | float | None]:
    scored, place = photograph.scored, photograph.place
    row = {
        "path": safe_path(photograph.path),
        "series": place and place.series,
        "series_size": place and photograph.size,
        "rank": place and photograph.rank,
        "picked": int(photograph.picked),
        "score": as_cell(scored.score),
        "percentile": as_cell(scored.percentile),
        "time": describe_time(photograph.taken.time),
        "seconds_since_previous": place and as_cell(place.gap),
        "similarity_to_previous": place and place.similarity and round(place.similarity, 3),
        "camera": photograph.taken.camera,
        "emotion": scored.emotion,
        "note": "; ".join(photograph.notes),
        "error": scored.error,
    }
    return {name: row[name] for name in COLUMNS}


def describe_time(time: datetime | None) -> str | None:
    """As in "2024-05-03 14:03:22.450"; a fraction only if there is one."""
    return time and time.isoformat(" ", "milliseconds" if time.microsecond else "seconds")


def write_rows(rows: Iterable[dict], output: Path) -> None:
    write_csv(output, [COLUMNS, *(row.values() for row in rows)])
