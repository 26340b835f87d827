"""The page to look through picks and overrule them."""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from eamb.files import csv_line, printable, written_whole
from eamb.selection.grouping import CAMERAS, COLUMNS, Photograph, as_row, describe_time

TEMPLATE = Path(__file__).with_name("picks.html")


def write_page(page: Path, photographs: Sequence[Photograph], settings: str) -> None:
    """Writes index.html; the thumbnails lie beside it already.

    It holds each line of the csv, and what it would be with the other pick, so that the page needs to know
    nothing of csv and saves what `write_rows` would write.
    """
    lines = [[csv_line(make(each).values()) for make in (as_row, overruled)] for each in photographs]
    shown = [photograph for photograph in photographs if photograph.place]
    numbered = {id(photograph): number for number, photograph in enumerate(photographs)}
    series = defaultdict(list)
    for photograph in shown:
        series[photograph.place.series].append(photograph)
    sections = [section(members, numbered, page) for members in series.values()]
    failed = [photograph for photograph in photographs if not photograph.place]
    fill = {
        "settings": html.escape(settings),
        "series": "\n".join(sections),
        "failed": failures(failed),
        "hidden": "" if any(p.thumbnail and p.thumbnail.map for p in shown) else "hidden",
        "data": as_script({"header": csv_line(COLUMNS), "rows": lines}),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    whole = re.sub(r"\{\{(\w+)\}\}", lambda mark: fill[mark[1]], template)
    with written_whole(page / "index.html") as unfinished:
        unfinished.write_text(whole, encoding="utf-8")


def overruled(photograph: Photograph) -> dict[str, str | int | float | None]:
    """The row of a photograph whose pick somebody changed on the page."""
    note = "; ".join([*photograph.notes, "changed by hand"])
    return as_row(photograph) | {"picked": int(not photograph.picked), "note": note}


def as_script(data: object) -> str:
    """JSON that ends no script element, whatever a file is called."""
    return json.dumps(data).replace("<", r"\u003c")


def section(members: Sequence[Photograph], numbered: dict[int, int], page: Path) -> str:
    """One series as HTML."""
    number, size = members[0].place.series, len(members)
    words = [f"{size} photographs"] if size > 1 else []
    words += [describe_span([member.taken.time for member in members if member.taken.time])]
    words += Counter(member.taken.camera for member in members)
    words += Counter(note for member in members for note in member.notes if CAMERAS not in note)
    title = " · ".join(filter(None, words))
    cards = "\n".join(card(member, numbered[id(member)], page) for member in members)
    title = f"<h2>Series {number} <small>{html.escape(title)}</small></h2>"
    kind = "series" if size > 1 else "series single"
    return f'<section class="{kind}" aria-label="Series {number}">{title}\n<ul>\n{cards}\n</ul></section>'


def describe_span(times: Sequence[datetime]) -> str:
    """As in "2024-05-03 14:03:22 to 14:03:31"."""
    if not times:
        return ""
    first, last = (describe_time(time.replace(microsecond=0)) for time in (min(times), max(times)))
    return first if first == last else f"{first} to {last[-8:]}"


def card(photograph: Photograph, number: int, page: Path) -> str:
    """One photograph as HTML; `number` is its row in the table."""
    name = printable(os.path.basename(photograph.path))  # noqa: PTH119
    scored, thumbnail = photograph.scored, photograph.thumbnail
    size = f'width="{thumbnail.width}" height="{thumbnail.height}"'
    alt = html.escape(name)
    shown = f'<img class="thumbnail" src="{thumbnail.picture}" {size} alt="{alt}" loading="lazy">'
    if thumbnail.map:
        shown += f'<img class="map" src="{thumbnail.map}" alt="" loading="lazy">'
    share = "" if scored.percentile is None else f" · above {scored.percentile:.0f} %"
    lines = [f"<b>{photograph.rank}.</b> <strong>{scored.score:.2f}</strong>{share}"]
    lines += [html.escape(line) for line in (name, describe_place(photograph)) if line]
    text = "".join(f'<span class="line">{line}</span>' for line in lines)
    original = html.escape(quote(os.fsencode(os.path.relpath(photograph.path, page))))
    pressed = str(photograph.picked).lower()
    return (
        f'<li><button class="photograph" data-row="{number}" aria-pressed="{pressed}"><span class="frame">'
        f'<span class="picture">{shown}</span><span class="badge">picked</span></span>{text}</button>'
        f'<a class="original" href="{original}" target="_blank" tabindex="-1">original</a></li>'
    )


def describe_place(photograph: Photograph) -> str:
    """As in "14:03:22.4 · +0.4 s · similarity 0.93"."""
    time, place = photograph.taken.time, photograph.place
    tenth = f".{time.microsecond // 100_000}" if time and time.microsecond else ""
    words = [f"{time:%H:%M:%S}{tenth}"] if time else []
    words += [] if place.gap is None else [describe_gap(place.gap)]
    words += [] if place.similarity is None else [f"similarity {place.similarity:.2f}"]
    return " · ".join(words)


def describe_gap(seconds: float) -> str:
    if seconds < 120:
        return f"+{seconds:.3g} s"
    return f"+{seconds / 60:.0f} min" if seconds < 7200 else f"+{seconds / 3600:.0f} h"


def failures(photographs: Sequence[Photograph]) -> str:
    if not photographs:
        return ""
    lines = "".join(
        f"<li>{html.escape(printable(p.path))}: {html.escape(printable(p.scored.error))}</li>"
        for p in photographs
    )
    title = f"<h2>Not scored <small>{len(photographs)}</small></h2>"
    return f'<section class="failed">{title}<ul>{lines}</ul></section>'
