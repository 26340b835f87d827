"""The page on which to look through the picks and change them: that of `eamb.inference.page`, with series."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eamb.inference import page as shared
from eamb.inference.rows import as_row, column_names
from eamb.inference.scorer import Scorer
from eamb.readers.exif import describe_time
from eamb.selection.grouping import CAMERAS, Photograph


def write_page(
    page: Path, photographs: Sequence[Photograph], scorer: Scorer, about: str, table: Mapping
) -> None:
    """Writes index.html beside its thumbnails, and removes those that only an earlier page there used.

    Args:
        table: from `as_table`; the page saves these lines.
    """
    series = defaultdict(list)
    for photograph in photographs:
        series[photograph.series or 0].append(photograph)  # 0: not scored
    about_series = {n: {"size": len(members), "words": summarise(members)} for n, members in series.items()}
    settings = shared.settings_of(scorer, page, table["header"], "picks.csv")
    settings |= {"picks": True, "series": about_series}
    columns = column_names(scorer.scale, scorer.emotions, several=True)

    def rows() -> Iterator[dict]:
        for one, (line, other) in zip(photographs, table["rows"], strict=True):
            row = as_row(one.scored, columns) | (one.thumbnail or shared.NOT_SHOWN)
            more = {"other": other, "picked": one.picked, "series": one.series, "where": place(one)}
            yield shared.describe(row, one.path, page, line) | more

    shared.write_page(page, {"title": "Picks", "about": about, "verb": "Pick"}, rows(), settings)


def place(photograph: Photograph) -> str:
    """As in "1. · 14:03:22 · +0.4 s · similarity 0.93"; the first is the rank in the series."""
    time = photograph.taken.time
    words = [f"{photograph.rank}."] if photograph.rank else []
    words += [f"{time:%H:%M:%S}"] if time else []
    if photograph.gap is not None:
        words.append(f"+{photograph.gap:.6g} s")
    if photograph.similarity is not None:
        words.append(f"similarity {photograph.similarity:.2f}")
    return " · ".join(words)


def summarise(members: Sequence[Photograph]) -> str:
    """A series in words: its times, cameras and notes."""
    times = [describe_time(member.taken.time) for member in members if member.taken.time]
    words = [" to ".join(sorted({min(times), max(times)}))] if times else []
    words += Counter(member.taken.camera for member in members)
    words += Counter(note for member in members for note in member.notes if CAMERAS not in note)
    return " · ".join(filter(None, words))
