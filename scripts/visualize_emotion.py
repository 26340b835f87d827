"""Draws which pictures a network finds beautiful, and their maps: two figures of a set or a folder.

    python scripts/visualize_emotion.py --dataset para --data-root DIR --output DIR
    python scripts/visualize_emotion.py --folder DIR --count 5 --output DIR

most_least.png: the pictures with the highest and the lowest predicted scores (or ratings), each above its
emotion-aware map. page.png: a figure as in papers, one row per picture, at evenly spaced ranks from the
highest to the lowest. pictures.csv: the numbers of the pictures shown. Files that cannot be decoded are
named on standard error and left out; the exit code is 1 then, and 2 for bad input.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import first_by_hash, load_dataset
from eamb.evaluation import figures
from eamb.evaluation.figures import BLUE, FAINT, INK, ORANGE, overlay, write
from eamb.evaluation.predicting import as_trained, is_cross_set
from eamb.files import as_cell, encodable, printable, write_csv
from eamb.inference.panels import Box, draw_shares, finish_chart, fit, resize_image, show
from eamb.inference.photographs import find_pictures
from eamb.inference.scorer import Scored, Scorer, check_scores
from eamb.readers.decoding import decode_views
from eamb.readers.endings import RAW_CHOICES, RAW_HELP
from eamb.readers.rated import SPLITS, RatedSet, describe
from eamb.runtime.command import check_output, guarded
from eamb.runtime.config import load_config
from eamb.runtime.progress import progress
from eamb.weights import shipped
from eamb.weights.checkpoint import Weights

FILES = ("most_least.png", "page.png", "pictures.csv")
WIDTH, MARGIN, GAP, LINE = 1800, 40, 22, 25  # pixels
FULL_WIDTH = WIDTH - 2 * MARGIN
PER_ROW, CELL, BETWEEN = 8, 195, 6  # of most_least.png: a picture's longer side; between it and its map
PAGE_ROWS, PAGE_EMOTIONS = 6, 3
SCORE, CHART = 120, 56  # heights on page.png: of a score, and of its bars
TITLE, HEADING, TEXT = 18, 15, 13  # points


class Entry(NamedTuple):
    """A picture that is shown, with its numbers and maps.

    rank: 1 is the highest.
    scores: the predicted and, if known, the rated one; each as text, as a number, with the ends of its scale
        and the share of each rating (empty if unknown).
    image: (H, W, 3) uint8, no larger than the figures need.
    emotion_map: (h, w) in [0, 1].
    class_maps: emotion -> (h, w) in [0, 1], strongest first; empty if the branch was never trained.
    aspect: width / height of the part in the middle of the picture that maps cover; None: they cover all.
    """

    rank: int
    id: str
    scored: Scored
    scores: list[tuple[str, float, tuple[float, float], Mapping[float, float]]]
    image: np.ndarray
    emotion_map: np.ndarray
    class_maps: Mapping[str, np.ndarray]
    aspect: float | None = None

    def fit(self, widest: int, tallest: int) -> tuple[int, int]:
        return fit(self.image.shape[1] / self.image.shape[0], widest, tallest)


class Subject(NamedTuple):
    """What the figures show; `ranked` as in "3,000 pictures by rating", `notes` on numbers and maps."""

    name: str
    ranked: str
    map_title: str
    notes: list[str]


def describe_subject(name: str, rated: RatedSet, count: int, by: str, scorer: Scorer) -> Subject:
    weights, has_ratings = scorer.network.weights, not np.isnan(rated.scores).all()
    words = "Predicted: {:g} to {:g}".format(*weights.scale.ends)
    if not has_ratings or is_cross_set(weights, rated):
        words += f", in the network's own unit (trained on {weights.description['dataset'].upper()})"
    if has_ratings:
        words += f". Rated: {rated.scale.minimum:g} to {rated.scale.maximum:g}"
    ranked = f"{count:,} pictures by {'rating' if by == 'rating' else 'predicted score'}"
    if scorer.emotions_trained:
        return Subject(name, ranked, "emotion-aware map", [f"{words}."])
    untrained = "The emotion branch was never trained on emotions: the map shows where it responds."
    return Subject(name, ranked, "map", [f"{words}.", untrained])


# ---- scoring and choosing


def read_set(options: argparse.Namespace, weights: Weights) -> tuple[str, RatedSet]:
    """The name and at most `limit` pictures of a rated set, or of a folder, whose ratings are unknown.

    Raises:
        ValueError, OSError: no such set or folder.
    """
    if options.folder:
        paths = [picture.path for picture in find_pictures([str(options.folder)], raw=options.raw)]
        ids = [encodable(str(Path(path).relative_to(options.folder))) for path in paths]
        name, unknown = printable(options.folder.resolve().name), np.full(len(ids), np.nan)
        rated = RatedSet(name, "", "a folder", ids, paths, unknown, weights.scale)
    else:
        words = [*options.settings, f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
        data_options = as_trained(load_config((), words), weights).data.options()
        splits = load_dataset(options.dataset, options.data_root, (options.split,), data_options)
        rated = splits[options.split]
        name = f"{rated.name.upper()} {rated.split}"
        print(describe(rated), file=sys.stderr)
    sample = first_by_hash(rated, options.limit or len(rated))
    return name if sample is rated else f"{name}, a sample", sample


def rank(rated: RatedSet, scored: Sequence[Scored], by: str) -> list[int]:
    """Indices of the set from the highest to the lowest score or rating; ties by id.

    Pictures without one are left out.

    Raises:
        ValueError: none is left.
    """
    values = rated.scores if by == "rating" else [row.score for row in scored]
    places = [i for i, row in enumerate(scored) if row.error is None and not math.isnan(values[i])]
    if not places:
        words = f"no picture of {rated.name} can be ranked, as none has a {by}"
        raise ValueError(f"visualize_emotion: {words}" + ("; use --by score" if by == "rating" else ""))
    return sorted(places, key=lambda place: (-values[place], rated.ids[place]))


def make_entry(rank: int, place: int, rated: RatedSet, all_scored: Sequence[Scored], scorer: Scorer) -> Entry:
    """The picture at index `place` of the set, with its maps and pixels; `rank` counts from 0."""
    scorer.with_class_maps = scorer.emotions_trained
    scored = all_scored[place]
    maps = scorer.score(scored.path)
    view = scorer.network.views[0]
    picture = Image.fromarray(decode_views(scored.path, [view._replace(size=None)])[0])
    picture.thumbnail((600, 600), Image.Resampling.LANCZOS)  # a camera's picture takes 70 MB
    strongest = sorted(scored.emotions, key=scored.emotions.get, reverse=True)[:PAGE_EMOTIONS]
    sample = rated[place]
    scores = [(f"predicted {scored.score:.2f}", scored.score, scorer.scale.ends, scored.distribution)]
    if not math.isnan(sample.score):
        has_votes = sample.distribution is not None and not np.isnan(sample.distribution).any()
        shares = dict(zip(rated.bins, sample.distribution, strict=True)) if has_votes else {}
        ends = (rated.scale.minimum, rated.scale.maximum)
        scores.append((f"rated {sample.score:.2f}", sample.score, ends, shares))
    class_maps = {name: maps.class_maps[scorer.emotions.index(name)] for name in strongest}
    shown = (np.asarray(picture), maps.emotion_map, class_maps, view.aspect)
    return Entry(rank + 1, sample.id, scored, scores, *shown)


def write_numbers(path: Path, entries: Iterable[Entry]) -> None:
    """One row per picture; cells are empty where nothing is known."""
    rows = [("rank", "id", "prediction", "rating", "emotion", "emotion_probability")]
    for entry in entries:
        scored, rating = entry.scored, entry.scores[1][1] if len(entry.scores) > 1 else None
        values = (entry.id, scored.score, rating, scored.emotion, scored.emotion_probability)
        rows.append((entry.rank, *map(as_cell, values)))
    write_csv(path, rows)


# ---- the two figures


def new_sheet(subject: Subject, words: str, height: int) -> tuple[Figure, int]:
    """A figure with its header and colour bar; the top of `height` pixels for its content."""
    lines = [words, *subject.notes]
    top = MARGIN + LINE * (len(lines) + 1) + GAP
    figure = figures.new_figure(WIDTH, top + height + MARGIN)
    write(figure, MARGIN, MARGIN + 16, subject.name, size=TITLE, weight="bold")
    for number, line in enumerate(lines, start=1):
        write(figure, MARGIN, MARGIN + 20 + LINE * number, line, size=TEXT, color=FAINT)
    box = Box(WIDTH - MARGIN - 180, MARGIN, 160, 14)
    show(figure, box, figures.colour_ramp(box.height, box.width), "colour bar")
    for right, text in ((box.left - 10, "maps over the grey picture:  0"), (WIDTH - MARGIN, "1")):
        write(figure, right, box.bottom, text, size=TEXT, color=FAINT, horizontalalignment="right")
    return figure, top


def draw_sheet(most: Sequence[Entry], least: Sequence[Entry], subject: Subject) -> Figure:
    """The highest and the lowest of the ranking in rows, each above its map and numbers."""
    rows = []  # heading, entries, height of the tallest
    for word, entries in (("Highest", most), ("Lowest", least)):
        for start in range(0, len(entries), PER_ROW):
            row = entries[start : start + PER_ROW]
            heading = "" if start else word
            rows.append((heading, row, max(entry.fit(CELL, CELL)[1] for entry in row)))
    below = BETWEEN + 3 * LINE + 2 * GAP
    height = sum(2 * LINE * bool(heading) + 2 * tall + below for heading, _, tall in rows)
    numbers = f"The {len(most)} highest" + (f" and the {len(least)} lowest" if least else "")
    words = f"{numbers} of {subject.ranked}, each above its {subject.map_title}."
    figure, top = new_sheet(subject, words, height)
    for heading, row, tall in rows:
        if heading:
            write(figure, MARGIN, top + LINE, heading, size=HEADING, weight="bold")
            top += 2 * LINE
        for number, entry in enumerate(row):
            size = entry.fit(CELL, CELL)
            box = Box(MARGIN + number * (CELL + GAP), top + tall - size[1], *size)
            picture = resize_image(entry.image, box)
            show(figure, box, picture, f"picture {entry.rank}")
            box = box._replace(top=top + tall + BETWEEN)
            show(figure, box, overlay(picture, entry.emotion_map, entry.aspect), f"map {entry.rank}")
            lines = [words for words, *_ in entry.scores]
            if entry.scored.emotion:
                lines.append(f"{entry.scored.emotion} {100 * entry.scored.emotion_probability:.0f} %")
            for line, text in enumerate(lines, start=1):
                colour = FAINT if line > 1 else INK
                write(figure, box.left, box.bottom + LINE * line, text, size=TEXT, color=colour)
        top += 2 * tall + below
    return figure


def draw_page(entries: Sequence[Entry], subject: Subject) -> Figure:
    """One row per picture: itself, its map, its strongest emotions' maps, predicted and rated score."""
    emotions = ("strongest emotion", "second", "third")[: len(entries[0].class_maps)]
    names = ["picture", subject.map_title, *emotions, "scores"]
    column = (FULL_WIDTH - (len(names) - 1) * GAP) // len(names)  # width of a column
    lefts = [MARGIN + number * (column + GAP) for number in range(len(names))]
    sizes = [entry.fit(column, column) for entry in entries]
    heights = [max(tall + 2 * LINE, 2 * SCORE) for _, tall in sizes]
    words = f"{len(entries)} of {subject.ranked}, at evenly spaced ranks. Bars: share of each rating."
    figure, top = new_sheet(subject, words, 2 * LINE + sum(heights))
    for left, name in zip(lefts, names, strict=True):
        write(figure, left, top + LINE, name, size=TEXT, weight="bold")
    top += LINE + GAP
    for entry, size, height in zip(entries, sizes, heights, strict=True):
        box = Box(0, top, *size)
        picture = resize_image(entry.image, box)
        shown = [("picture", picture, f"rank {entry.rank:,}")]
        shown.append(("map", overlay(picture, entry.emotion_map, entry.aspect), ""))
        for name, class_map in entry.class_maps.items():
            caption = f"{name} {100 * entry.scored.emotions[name]:.0f} %"
            shown.append((f"map of {name}", overlay(picture, class_map, entry.aspect), caption))
        for left, (label, pixels, caption) in zip(lefts, shown, strict=False):
            show(figure, box._replace(left=left), pixels, f"{label} {entry.rank}")
            write(figure, left, box.bottom + LINE - 4, caption, size=TEXT, color=FAINT)
        most = max((share for *_, shares in entry.scores for share in shares.values()), default=1.0)
        for number, (score, colour) in enumerate(zip(entry.scores, (BLUE, ORANGE), strict=False)):
            box = Box(lefts[-1], top + number * SCORE + LINE, column, CHART)
            draw_score(figure, box, *score, most, colour)
        top += height
    return figure


def draw_score(
    figure: Figure, box: Box, words: str, value: float, ends: tuple, shares: Mapping, most: float, colour: str
) -> None:
    """A score as a dot on its scale, above it the shares of ratings as bars; `most` is the full height."""
    axes = figures.add_axes(figure, box, f"scale of {words}")
    draw_shares(axes, shares, color=colour, alpha=0.4)
    dot = {"color": colour, "markersize": 10, "markeredgecolor": "white"}
    axes.plot(value, 0, "o", **dot, clip_on=False, zorder=3)
    room = 0.06 * (ends[1] - ends[0])
    axes.set(xlim=(ends[0] - room, ends[1] + room), ylim=(0, most), xticks=ends)
    finish_chart(axes, box, words, size=TEXT, color=colour, weight="bold")


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 success, 1 some pictures not scored, 2 bad input, 130 interrupted."""
    return guarded(visualize, parse(arguments))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", type=str.lower, metavar="SET", help="ava, para, iae, csv or demo")
    source.add_argument("--folder", type=Path, metavar="DIR", help="photographs without ratings")
    add("--raw", choices=RAW_CHOICES, default="jpeg", help=RAW_HELP)
    add("--data-root", metavar="DIR", help="the set's folder")
    add("--split", type=str.lower, choices=SPLITS, default="test")
    add("--checkpoint", metavar="FILE", action="append", help=f"{shipped.HELP}; default: {shipped.DEFAULT}")
    add("--count", metavar="N", type=int, default=8, help="at each end; default: 8")
    add("--by", choices=("score", "rating"), default="score", help="what ranks; default: score")
    add("--limit", metavar="N", type=int, help="only N pictures, by the hash of their ids")
    add("--output", metavar="DIR", type=Path, required=True, help="for the three files")
    add("--force", action="store_true", help="overwrite existing files")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--workers", metavar="N", type=int, default=-1, help="threads; -1: one per core")
    add("settings", metavar="key=value", nargs="*", help="as in data.score_column=score")
    return parser.parse_intermixed_args(arguments)


def visualize(options: argparse.Namespace) -> int:
    """Scores, chooses, draws.

    Raises:
        ValueError, OSError: bad arguments or data, in one sentence; nothing was written then.
    """
    check_options(options)
    checkpoints = tuple(options.checkpoint or [shipped.DEFAULT])
    scorer = Scorer(checkpoints, options.device, workers=options.workers, maps=True, exact=True)
    check_scores(scorer.network.weights, ("aesthetics", "series"))
    name, rated = read_set(options, scorer.network.weights)
    scored, scorer.with_class_maps = [], False
    for row in progress(scorer.score_all(rated.paths), total=len(rated), unit=" images"):
        if row.error:
            tqdm.write(f"visualize_emotion: {printable(row.path)} is left out: {row.error}", file=sys.stderr)
        scored.append(replace(row, emotion_map=None))  # the maps of a whole set would fill the memory
    places = rank(rated, scored, options.by)
    half = len(places) // 2  # so that no picture is in both
    most = range(min(options.count, len(places) - half))
    least = range(len(places) - 1, len(places) - 1 - min(options.count, half), -1)
    page = [round(place) for place in np.linspace(0, len(places) - 1, min(PAGE_ROWS, len(places)))]
    shown = sorted({*most, *least, *page})  # from 0: the highest
    entries = {number: make_entry(number, places[number], rated, scored, scorer) for number in shown}
    subject = describe_subject(name, rated, len(places), options.by, scorer)
    sheet = draw_sheet([entries[i] for i in most], [entries[i] for i in least], subject)
    figures.write_figure(sheet, options.output / FILES[0])
    figures.write_figure(draw_page([entries[i] for i in page], subject), options.output / FILES[1])
    write_numbers(options.output / FILES[2], entries.values())
    failed = sum(row.error is not None for row in scored)
    print(f"{len(rated) - failed} of {len(rated)} pictures scored; {options.output}: {', '.join(FILES)}")
    return 1 if failed else 0


def check_options(options: argparse.Namespace) -> None:
    """Refuses options that cannot work or would overwrite something, before any work is done."""
    if options.count < 1 or (options.limit is not None and options.limit < 1):
        raise ValueError(
            f"visualize_emotion: --count and --limit are at least 1, got {options.count}, {options.limit}"
        )
    if options.folder and (options.by == "rating" or options.data_root is not None or options.settings):
        words = "--by rating, --data-root and key=value words go with --dataset, not --folder"
        raise ValueError(f"visualize_emotion: {words}")
    if options.dataset and options.data_root is None:
        raise ValueError(f"visualize_emotion: where is {options.dataset}? --data-root DIR")
    check_output("visualize_emotion", options.output, FILES, options.force)


if __name__ == "__main__":
    sys.exit(main())
