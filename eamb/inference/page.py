"""A page to look through scored photographs: one HTML file with their thumbnails and maps beside it.

`predict --page` writes it with `PageFolder`; `select --page` is the same page with series and picks.
"""

# Paths of photographs are plain strings, so that names that are not UTF-8 stay unchanged.
# ruff: noqa: PTH100, PTH119
from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

from eamb.files import csv_line, printable, safe_path, written_whole
from eamb.inference.rows import as_row, column_names, open_rows, read_rows
from eamb.readers.exif import Taken, describe_time, read_taken

if TYPE_CHECKING:
    from eamb.inference.photographs import PictureFile
    from eamb.inference.scorer import Scored, Scorer

FOLDER = Path(__file__).parent
LONGEST_SIDE = 256  # of thumbnails, pixels
# In a page: the files of `write_thumbnail`.
SHOWN = re.compile(r'"(thumbnails/\d{6,}\.jpg|maps/\d{6,}\.png)"')
JOURNAL = "scores.jsonl"
# A photograph's columns in the journal beside its scores.
NOT_SHOWN = dict.fromkeys(("time", "camera", "picture", "map", "width", "height"))


class Preview(NamedTuple):
    """What is kept of a decoded picture until it is scored; `jpeg` is its thumbnail's file."""

    taken: Taken
    jpeg: bytes
    size: tuple[int, int]


def shrink(picture: Image.Image, longest: int = LONGEST_SIDE) -> Image.Image:
    """A picture at thumbnail size, or with another longest side, in pixels; never enlarged."""
    scale = min(1, longest / max(picture.size))
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def preview(small: Image.Image, taken: Taken) -> Preview:
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return Preview(taken, file.getvalue(), small.size)


def write_thumbnail(page: Path, number: int, shown: Preview, emotion_map: np.ndarray | None) -> dict:
    """Writes a thumbnail and a map, (h, w) in [0, 1]; returns the columns of NOT_SHOWN."""
    names = {"picture": f"thumbnails/{number:06d}.jpg", "map": None}
    (page / "thumbnails").mkdir(parents=True, exist_ok=True)
    (page / names["picture"]).write_bytes(shown.jpeg)
    if emotion_map is not None:
        from eamb.evaluation.figures import MAP_COLOURS, colormaps  # matplotlib takes a second to load

        names["map"] = f"maps/{number:06d}.png"
        (page / "maps").mkdir(exist_ok=True)
        colours = np.rint(255 * colormaps[MAP_COLOURS](emotion_map)[..., :3])  # the browser scales it
        Image.fromarray(colours.astype(np.uint8)).save(page / names["map"])
    time, camera = describe_time(shown.taken.time), shown.taken.camera
    return {**names, "width": shown.size[0], "height": shown.size[1], "time": time, "camera": camera}


def describe(row: Mapping, path: str, page: Path, line: str) -> dict:
    """A photograph as page.js wants it: a row of the journal, short.

    Args:
        row: of `rows.as_row` with all emotions, and the columns of NOT_SHOWN.
        path: of the photograph, with the bytes that UTF-8 cannot encode.
        line: what the page saves of it in a csv.
    """
    card = {"path": printable(path), "line": line, "error": printable(row["error"] or "")}
    if not row["picture"]:
        return card
    place = os.path.abspath(path)
    try:
        link = quote(os.fsencode(os.path.relpath(place, page).replace(os.sep, "/")))
    except ValueError:  # another drive of Windows
        link = Path(place).as_uri()
    parts = {"emotions": "emotion_", "shares": "p_"}
    shares = {
        part: [round(row[name], 4) for name in row if is_share(name, start) and row[name] is not None]
        for part, start in parts.items()
    }
    known = {name: row[name] for name in ("score", "percentile", *NOT_SHOWN)}
    spreads = {"std": row["score_std"], "models": row.get("score_model_std")}
    return card | known | spreads | shares | {"name": printable(os.path.basename(path)), "link": link}


def is_share(name: str, start: str) -> bool:
    return name.startswith(start) and name != "emotion_probability"


def write_page(page: Path, texts: Mapping[str, str], rows: Iterable[dict], settings: Mapping) -> None:
    """Writes index.html, and removes thumbnails and maps that only an earlier page there used.

    Args:
        texts: "title", "about" and "verb", the word for selecting.
        rows: from `describe`; taken one by one, so that many fit into memory.
        settings: of `settings_of`.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["hash"] = policy_hash
    template = environment.from_string((FOLDER / "page.html").read_text(encoding="utf-8"))
    parts = {"style": "page.css", "script": "page.js"}
    parts = {part: (FOLDER / name).read_text(encoding="utf-8") for part, name in parts.items()}
    index = page / "index.html"
    earlier = shown_files(index)
    with written_whole(index) as unfinished:
        stream = template.stream(**parts, **texts, rows=rows, settings=settings)
        stream.enable_buffering(100)
        stream.dump(str(unfinished), encoding="utf-8")
    for name in earlier - shown_files(index):
        (page / name).unlink(missing_ok=True)


def shown_files(index: Path) -> set[str]:
    """The thumbnails and maps that a page uses."""
    if not index.exists():
        return set()
    with index.open(encoding="utf-8", errors="replace") as lines:
        return {name for line in lines for name in SHOWN.findall(line)}


def policy_hash(text: str) -> str:
    """The word of a Content-Security-Policy that allows this text of a script or style, and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def settings_of(scorer: Scorer, page: Path, header: str, file: str) -> dict:
    """What page.js knows of all photographs.

    Returns:
        emotions: their names, in the order of each row's "emotions"; ratings: of each row's "shares".
        ends: of the scale of scores; None if it has none.
        crop: width / height of the part of a picture that its map covers; None: the whole.
        upright: whether pictures were turned by their EXIF, as a browser turns the originals.
        folder: URL of the page's folder, for links if the page alone is moved.
        header, file, list: the header line of the csv that the page saves; names of what it saves.
        picks, series: False and {}; `select` has its own.
    """
    view = scorer.network.views[0]
    return {
        "emotions": scorer.emotions if scorer.emotions_trained else (),
        "ratings": scorer.scale.bins,
        "ends": scorer.scale.ends if math.isfinite(scorer.scale.ends[0]) else None,
        "crop": view.aspect,
        "upright": view.exif,
        "folder": f"{Path(os.path.abspath(page)).as_uri()}/",
        "header": header,
        "file": file,
        "list": f"{Path(file).stem}.txt",
        "picks": False,
        "series": {},
    }


class PageFolder:
    """Writes thumbnails and maps as pictures are scored, and in the end the page.

    Each picture has a row in scores.jsonl, which a resumed run reads: that of --output lacks most of it.

    Args:
        columns: those of the csv that the page saves.
    """

    def __init__(
        self,
        folder: Path,
        scorer: Scorer,
        pictures: Sequence[PictureFile],
        columns: Sequence[str],
        excel: bool = False,
    ):
        self.folder, self.scorer, self.pictures, self.table = folder, scorer, pictures, columns
        self.mark = "\ufeff" if excel else ""
        several = "score_model_std" in columns
        self.columns = [*column_names(scorer.scale, scorer.emotions, several), *NOT_SHOWN]
        self.previews: dict[str, Preview] = {}  # of pictures that are not scored yet, by path
        self.journal, self.count = folder / JOURNAL, 0

    def keep(self, path: str, picture: Image.Image, exif: Image.Exif) -> None:
        """Takes a picture from the thread that decodes it (`on_decoded` of `Scorer.score_all`)."""
        self.previews[path] = preview(shrink(picture), read_taken(exif))

    def resume(self, count: int) -> None:
        """Goes on behind the first `count` pictures, which an interrupted run has scored.

        Raises:
            ValueError: it wrote no page here, or other pictures.
        """
        rows = read_rows(self.journal, self.columns, self.pictures)[0] if self.journal.exists() else []
        files = [self.folder / row["picture"] for row in rows[:count] if row["picture"]]
        if len(rows) < count or not all(file.is_file() for file in files):
            raise ValueError(
                f"predict: {self.folder} lacks pictures that have a row in the table; --resume needs the "
                "--page of the interrupted run"
            )
        lines = self.journal.read_bytes().splitlines(keepends=True) if rows else []
        if lines:
            os.truncate(self.journal, sum(map(len, lines[:count])))
        self.count = count

    def write_all(self, results: Iterator[Scored]) -> Iterator[Scored]:
        """Yields the scores, each once its thumbnail, map and row are written; then writes the page.

        If the run is interrupted, the page shows what was scored until then.
        """
        before, complete = self.count, False
        try:
            with open_rows(self.journal, "a" if self.count else "w", self.columns) as write:
                for scored in results:
                    write(self.row(scored))
                    self.count += 1
                    yield scored
            complete = True
        finally:
            if complete or self.count > before:
                self.write()

    def row(self, scored: Scored) -> dict:
        """A row of the journal; writes its thumbnail."""
        more, kept = NOT_SHOWN, self.previews.pop(scored.path, None)
        if kept and scored.score is not None:
            emotion_map = scored.emotion_map if self.scorer.emotions_trained else None
            more = write_thumbnail(self.folder, self.count + 1, kept, emotion_map)
        return as_row(scored, self.columns) | more

    def write(self) -> None:
        def rows() -> Iterator[dict]:
            with self.journal.open(encoding="utf-8") as lines:
                for line, picture in zip(lines, self.pictures[: self.count], strict=False):
                    row = json.loads(line)
                    cells = row | {"path": safe_path(row["path"])}
                    saved = csv_line(cells[name] for name in self.table)
                    yield describe(row, picture.path, self.folder, saved)

        networks = [Path(network.weights.path).stem for network in self.scorer.network.networks]
        texts = {"title": "Scores", "about": f"Scored by {' and '.join(networks)}", "verb": "Select"}
        settings = settings_of(self.scorer, self.folder, self.mark + csv_line(self.table), "scores.csv")
        write_page(self.folder, texts, rows(), settings)
