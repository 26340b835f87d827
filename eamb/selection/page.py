"""The page to look through picks and overrule them, with its thumbnails."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

from eamb.files import printable, written_whole
from eamb.selection.exif import describe_time
from eamb.selection.grouping import CAMERAS, Photograph, Thumbnail

TEMPLATE = Path(__file__).with_name("picks.html")
LONGEST_SIDE = 320  # of thumbnails, pixels


def shrink(picture: Image.Image) -> Image.Image:
    """A picture in the size of a thumbnail."""
    scale = min(1, LONGEST_SIDE / max(picture.size))
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def write_thumbnail(
    page: Path, number: int, jpeg: bytes, size: tuple[int, int], emotion_map: np.ndarray | None
) -> Thumbnail:
    picture, map_ = f"thumbnails/{number:06d}.jpg", f"maps/{number:06d}.png"
    (page / picture).parent.mkdir(parents=True, exist_ok=True)
    (page / picture).write_bytes(jpeg)
    if emotion_map is None:
        return Thumbnail(picture, None, *size)
    (page / map_).parent.mkdir(exist_ok=True)
    coloured(emotion_map).save(page / map_)
    return Thumbnail(picture, map_, *size)


def coloured(emotion_map: np.ndarray) -> Image.Image:
    """A map, (h, w) in [0, 1], in its colours; the browser stretches it over the thumbnail."""
    from eamb.evaluation.figures import MAP_COLOURS, colormaps  # matplotlib takes a second to load

    levels = np.rint(255 * emotion_map.clip(0, 1)).astype(np.uint8)
    image = Image.fromarray(levels)
    image.putpalette((255 * colormaps[MAP_COLOURS](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes())
    return image


def write_page(page: Path, photographs: Sequence[Photograph], settings: str, table: dict) -> None:
    """Writes index.html beside its thumbnails, and removes those of a page that was there before.

    Args:
        table: {"header": line, "rows": [[line, the line with the other pick] per photograph]} of the csv, so
            that the page needs to know nothing of csv and saves what `write_rows` would write.
    """
    series = defaultdict(list)
    for row, photograph in enumerate(photographs):
        if photograph.place:
            series[photograph.place.series].append(describe(photograph, page, row))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["printable"] = printable
    thumbnails = [photograph.thumbnail for photograph in photographs if photograph.thumbnail]
    whole = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        settings=settings,
        series=[(number, summarise(cards), cards) for number, cards in series.items()],
        failed=[photograph for photograph in photographs if not photograph.place],
        maps=any(thumbnail.map for thumbnail in thumbnails),
        table=table,
    )
    with written_whole(page / "index.html") as unfinished:
        unfinished.write_text(whole, encoding="utf-8")
    shown = {name for thumbnail in thumbnails for name in (thumbnail.picture, thumbnail.map)}
    for folder, name in (
        ("thumbnails", r"\d{6,}\.jpg"),
        ("maps", r"\d{6,}\.png"),
    ):  # files of other names stay
        for path in (page / folder).glob("*"):
            if re.fullmatch(name, path.name) and f"{folder}/{path.name}" not in shown:
                path.unlink()


def describe(photograph: Photograph, page: Path, row: int) -> dict:
    """What the page shows of a photograph, whose line in the table is `row`.

    "place" is as in "14:03:22.4 · +0.4 s · similarity 0.93".
    """
    scored, time, place = photograph.scored, photograph.taken.time, photograph.place
    words = []
    if time:
        words.append(f"{time:%H:%M:%S}" + (f".{time.microsecond // 100_000}" if time.microsecond else ""))
    if place.gap is not None:
        seconds = place.gap
        long = f"+{seconds / 60:.0f} min" if seconds < 7200 else f"+{seconds / 3600:.0f} h"
        words.append(f"+{seconds:.3g} s" if seconds < 120 else long)
    if place.similarity is not None:
        words.append(f"similarity {place.similarity:.2f}")
    return {
        "photograph": photograph,
        "row": row,
        "name": printable(os.path.basename(photograph.path)),  # noqa: PTH119
        "original": quote(os.fsencode(os.path.relpath(photograph.path, page))),
        "score": f"{scored.score:.2f}",
        "percentile": "" if scored.percentile is None else f" · above {scored.percentile:.0f} %",
        "place": " · ".join(words),
    }


def summarise(cards: Sequence[dict]) -> str:
    """A series in words: how many, when, with which camera, and what was noted.

    When is as in "2024-05-03 14:03:22 to 14:03:31".
    """
    members = [card["photograph"] for card in cards]
    words = [f"{len(members)} photographs"] if len(members) > 1 else []
    times = [member.taken.time.replace(microsecond=0) for member in members if member.taken.time]
    if times:
        first, last = describe_time(min(times)), describe_time(max(times))
        words.append(first if first == last else f"{first} to {last[-8:]}")
    words += Counter(member.taken.camera for member in members)
    words += Counter(note for member in members for note in member.notes if CAMERAS not in note)
    return " · ".join(filter(None, words))
