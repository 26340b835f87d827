"""The page on which to look through the picks and change them, with its thumbnails."""

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
from eamb.readers.exif import describe_time
from eamb.selection.grouping import CAMERAS, Photograph

TEMPLATE = Path(__file__).with_name("picks.html")
LONGEST_SIDE = 320  # of thumbnails, pixels
SHOWN = re.compile(
    r'src="(thumbnails/\d{6,}\.jpg|maps/\d{6,}\.png)"'
)  # in a page: files of `write_thumbnail`


def shrink(picture: Image.Image) -> Image.Image:
    """A picture at thumbnail size."""
    scale = min(1, LONGEST_SIDE / max(picture.size))
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def write_thumbnail(
    page: Path, number: int, jpeg: bytes, size: tuple[int, int], emotion_map: np.ndarray | None
) -> dict:
    """Writes a JPEG file and a map, (h, w) in [0, 1]; returns the `Photograph.thumbnail`."""
    names = {"picture": f"thumbnails/{number:06d}.jpg", "map": None}
    (page / "thumbnails").mkdir(parents=True, exist_ok=True)
    (page / names["picture"]).write_bytes(jpeg)
    if emotion_map is not None:
        from eamb.evaluation.figures import MAP_COLOURS, colormaps  # matplotlib takes a second to load

        names["map"] = f"maps/{number:06d}.png"
        (page / "maps").mkdir(exist_ok=True)
        colours = np.rint(255 * colormaps[MAP_COLOURS](emotion_map)[..., :3])  # the browser scales it
        Image.fromarray(colours.astype(np.uint8)).save(page / names["map"])
    return {**names, "width": size[0], "height": size[1]}


def write_page(page: Path, photographs: Sequence[Photograph], settings: str, table: dict) -> None:
    """Writes index.html beside its thumbnails, and removes those that only an earlier page there used.

    Args:
        table: from `as_table`; the page saves these lines, so it needs no csv code of its own.
    """
    series = defaultdict(list)
    for row, photograph in enumerate(photographs):
        if photograph.series:
            series[photograph.series].append(describe(photograph, page, row))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["printable"] = printable
    whole = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        settings=settings,
        series=[(number, summarise(cards), cards) for number, cards in series.items()],
        failed=[photograph for photograph in photographs if not photograph.series],
        maps=any(photograph.thumbnail["map"] for photograph in photographs if photograph.thumbnail),
        table=table,
    )
    index = page / "index.html"
    earlier = index.read_text(encoding="utf-8", errors="replace") if index.exists() else ""
    with written_whole(index) as unfinished:
        unfinished.write_text(whole, encoding="utf-8")
    for name in set(SHOWN.findall(earlier)) - set(SHOWN.findall(whole)):
        (page / name).unlink(missing_ok=True)


def describe(photograph: Photograph, page: Path, row: int) -> dict:
    """What the page shows of a photograph; `row` is its line in the table.

    "place" is as in "14:03:22 · +0.4 s · similarity 0.93".
    """
    scored, time = photograph.scored, photograph.taken.time
    words = [f"{time:%H:%M:%S}"] if time else []
    if photograph.gap is not None:
        words.append(f"+{photograph.gap:.6g} s")
    if photograph.similarity is not None:
        words.append(f"similarity {photograph.similarity:.2f}")
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
    """A series in words: how many photographs, their times, cameras and notes."""
    members = [card["photograph"] for card in cards]
    words = [f"{len(members)} photographs"] if len(members) > 1 else []
    times = [describe_time(member.taken.time) for member in members if member.taken.time]
    words += [" to ".join(sorted({min(times), max(times)}))] if times else []
    words += Counter(member.taken.camera for member in members)
    words += Counter(note for member in members for note in member.notes if CAMERAS not in note)
    return " · ".join(filter(None, words))
