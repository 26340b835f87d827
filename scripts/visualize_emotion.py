"""Draws what a network finds beautiful and where it looks: two figures of a rated set or a folder.

    python scripts/visualize_emotion.py --dataset para --data-root DIR --output DIR
    python scripts/visualize_emotion.py --folder DIR --count 5 --output DIR

most_least.png: the pictures with the highest and the lowest predicted scores (or ratings), each above its
emotion-aware map. page.png: a figure as papers have them, one row per picture, at evenly spaced ranks from
the highest to the lowest. pictures.csv: the numbers of the pictures shown. Files that cannot be decoded are
named on standard error and left out; the exit code is 1 then, and 2 for bad input.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import first_by_hash, load_dataset
from eamb.evaluation import figures
from eamb.evaluation.figures import BLUE, FAINT, GRID, INK, ORANGE, overlay, write, write_figure
from eamb.evaluation.predicting import as_trained, is_cross_set
from eamb.files import as_cell, encodable, printable, write_csv
from eamb.inference.panels import Box, fit, resize_image, shorten, show
from eamb.inference.photographs import find_pictures
from eamb.inference.scorer import Scored, Scorer
from eamb.network.outputs import Scale
from eamb.readers.prepared import check_copies
from eamb.readers.rated import SPLITS, DataOptions, RatedSet, describe
from eamb.runtime.command import guarded, refuse_existing
from eamb.runtime.config import load_config
from eamb.weights.checkpoint import Weights

FILES = ("most_least.png", "page.png", "pictures.csv")
PAGE_ROWS, PAGE_EMOTIONS = 6, 3

# ---- what is shown


@dataclass(frozen=True)
class Entry:
    """A picture that is shown, and all that is said about it.

    rank: 1 is the highest.
    rating: in the unit of the set, NaN if unknown. shares: of the votes by rating; empty if unknown.
    image: (H, W, 3) uint8, no larger than the figures need.
    class_maps: emotion -> (h, w) in [0, 1], the strongest first; empty if the branch knows no emotions.
    """

    rank: int
    id: str
    scored: Scored
    rating: float
    shares: dict[float, float]
    image: np.ndarray
    class_maps: dict[str, np.ndarray]

    @property
    def aspect(self) -> float:
        return self.image.shape[1] / self.image.shape[0]


@dataclass(frozen=True)
class Subject:
    """What the figures are about: the pictures, and what their numbers mean.

    name: of the pictures, as in "PARA test". count: how many were ranked, `by` "score" or "rating".
    predicted, rated: what a prediction and a rating are, in words; rated is empty without ratings.
    predicted_ends, rated_ends: of the two scales. labels: the ratings are only 0 (low) and 1 (high).
    knows_emotions: whether the emotion branch was trained on emotions.
    """

    name: str
    count: int
    by: str
    predicted: str
    rated: str
    predicted_ends: tuple[float, float]
    rated_ends: tuple[float, float]
    labels: bool
    knows_emotions: bool

    @property
    def kind(self) -> str:
        return "rating" if self.by == "rating" else "predicted score"

    @property
    def map_name(self) -> str:
        return "emotion-aware map" if self.knows_emotions else "map"

    @property
    def notes(self) -> list[str]:
        """What the numbers and the maps mean, line by line."""
        lines = [f"Predicted: {self.predicted}." + (f" Rated: {self.rated}." if self.rated else "")]
        if self.predicted == self.rated:
            lines = [f"Predicted and rated: {self.rated}."]
        if not self.knows_emotions:
            lines.append(
                "The emotion branch of this network was never trained on emotions: the map shows where it "
                "responds, and no emotion is named."
            )
        return lines

    def rated_text(self, entry: Entry) -> str:
        """As in "rated 3.50"; "rated high" where there are labels only; nothing if it is unknown."""
        if math.isnan(entry.rating):
            return ""
        if self.labels:
            return "rated high" if entry.rating > 0.5 else "rated low"
        return f"rated {entry.rating:.2f}"


def describe_subject(
    name: str, rated: RatedSet, count: int, by: str, weights: Weights, knows_emotions: bool
) -> Subject:
    """What the numbers of these weights and this set mean. A folder is a set without ratings."""
    ratings = rated.scores[~np.isnan(rated.scores)]
    labels = rated.scale.kind == "label" and bool(np.isin(ratings, (0, 1)).all())
    what = "probability of a high rating" if weights.scale.kind == "label" else "mean rating"
    predicted = "{}, {:g} to {:g}".format(what, *weights.scale.ends)
    if not len(ratings) or is_cross_set(weights, rated):
        predicted += f", in the network's own unit (trained on {weights.description['dataset'].upper()})"
    rated_ends = (rated.scale.minimum, rated.scale.maximum)
    words = "high or low" if labels else "mean rating, {:g} to {:g}".format(*rated_ends)
    return Subject(
        name=name,
        count=count,
        by=by,
        predicted=predicted,
        rated=words if len(ratings) else "",
        predicted_ends=weights.scale.ends,
        rated_ends=rated_ends,
        labels=labels,
        knows_emotions=knows_emotions,
    )


# ---- scoring and choosing


def read_set(options: argparse.Namespace, weights: Weights) -> tuple[str, RatedSet]:
    """The name and the pictures of a rated set's split, or of a folder; the first `limit` of them.

    Raises:
        ValueError, OSError: no such set; prepared copies of another size than the network sees.
    """
    if options.folder:
        rated = read_folder(options.folder, weights.scale)
        name = shorten(printable(rated.name), LONGEST_NAME)
    else:
        words = [*options.settings, f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
        data_options = as_trained(load_config((), words), weights).data.options(DataOptions)
        splits = load_dataset(options.dataset, options.data_root, (options.split,), data_options)
        rated = splits[options.split]
        for copies in rated.copies:
            check_copies(copies, *weights.pictures)
        name = f"{rated.name.upper()} {rated.split}"
        print(describe(rated), file=sys.stderr)
    sample = first_by_hash(rated, options.limit or len(rated))
    return name if sample is rated else f"{name}, a sample", sample


def read_folder(folder: Path, scale: Scale) -> RatedSet:
    """The pictures in a folder and below it, as a set whose ratings are unknown; ids are relative paths."""
    if not folder.is_dir():
        raise FileNotFoundError(f"visualize_emotion: there is no folder {folder}")
    paths = [picture.path for picture in find_pictures([str(folder)])]
    ids = [encodable(str(Path(path).relative_to(folder))) for path in paths]
    return RatedSet(folder.resolve().name, "", "a folder", ids, paths, np.full(len(ids), np.nan), scale)


def score_set(scorer: Scorer, rated: RatedSet) -> list[Scored]:
    """Every picture's figures in the order of the set, without maps; a file that has none is named.

    Raises:
        ValueError: no picture can be scored.
    """
    scored, with_class_maps = [], scorer.with_class_maps
    scorer.with_class_maps = False
    for row in tqdm(scorer.score_all(rated.paths), total=len(rated), unit=" images", disable=None):
        if row.error:
            line = f"visualize_emotion: {printable(row.path)} is left out: {row.error}"
            tqdm.write(line, file=sys.stderr)
        scored.append(replace(row, emotion_map=None))  # the maps of a whole set would fill the memory
    scorer.with_class_maps = with_class_maps
    if all(row.error for row in scored):
        raise ValueError(
            f"visualize_emotion: none of the {len(scored)} pictures can be scored, e.g. "
            f"{printable(scored[0].path)}: {scored[0].error}"
        )
    return scored


def rank(rated: RatedSet, scored: Sequence[Scored], by: str) -> list[int]:
    """Places in the set from the highest to the lowest score or rating; of equals the smaller id first.

    What has no score is left out; what has no rating too, if ranked by rating.

    Raises:
        ValueError: there are no ratings to rank by.
    """
    values = rated.scores if by == "rating" else [row.score for row in scored]
    places = [i for i, row in enumerate(scored) if row.error is None and not math.isnan(values[i])]
    if not places:
        raise ValueError(
            f"visualize_emotion: no picture of {rated.name} {rated.split} has a rating to rank by; "
            "use --by score"
        )
    return sorted(places, key=lambda place: (-values[place], rated.ids[place]))


def choose_ends(ranking: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """The first `count` and the last `count`, the very last first; where they would meet, half each."""
    most = ranking[: min(count, (len(ranking) + 1) // 2)]
    least = ranking[::-1][: min(count, len(ranking) // 2)]
    return list(most), list(least)


def choose_spread(ranking: Sequence[int], rows: int = PAGE_ROWS) -> list[int]:
    """At most `rows` at evenly spaced ranks, the first and the last included."""
    spread = np.linspace(0, len(ranking) - 1, min(rows, len(ranking)))
    return [ranking[round(position)] for position in spread]


def make_entries(
    places: Sequence[int], ranking: Sequence[int], rated: RatedSet, scorer: Scorer
) -> dict[int, Entry]:
    """The pictures at some places of the set with their maps and pixels: place -> entry.

    Args:
        scorer: made with maps=True.
    """
    images, entries = {}, {}

    def keep_small(path: str, picture: Image.Image, exif: Image.Exif) -> None:
        small = picture.copy()  # no larger than the figures need: a camera's picture takes 70 MB
        small.thumbnail((FULL_WIDTH, 2 * TALLEST), Image.Resampling.LANCZOS)
        images[path] = np.asarray(small)

    rows = scorer.score_all([rated.paths[place] for place in places], on_decoded=keep_small)
    for place, scored in zip(places, rows, strict=True):
        if scored.error:
            raise ValueError(f"visualize_emotion: {scored.path} could be scored before: {scored.error}")
        sample = rated[place]
        has_votes = sample.distribution is not None and not np.isnan(sample.distribution).any()
        strongest = sorted(scored.emotions, key=scored.emotions.get, reverse=True)[:PAGE_EMOTIONS]
        entries[place] = Entry(
            rank=ranking.index(place) + 1,
            id=sample.id,
            scored=scored,
            rating=sample.score,
            shares=dict(zip(rated.bins, sample.distribution, strict=True)) if has_votes else {},
            image=images.pop(scored.path),
            class_maps={name: scored.class_maps[scorer.emotions.index(name)] for name in strongest},
        )
    return entries


def write_numbers(path: Path, entries: Iterable[Entry]) -> None:
    """One row per picture, in the order of the ranking; cells are empty where nothing is known."""
    rows = [("rank", "id", "prediction", "rating", "emotion", "emotion_probability")]
    for entry in sorted(entries, key=lambda entry: entry.rank):
        scored, rating = entry.scored, None if math.isnan(entry.rating) else entry.rating
        values = (entry.id, scored.score, rating, scored.emotion, scored.emotion_probability)
        rows.append([entry.rank, *map(as_cell, values)])
    write_csv(path, rows)


# ---- the contact sheet; sizes are pixels, those of letters points

WIDTH, MARGIN = 1800, 40
FULL_WIDTH = WIDTH - 2 * MARGIN
GAP, BETWEEN, LINE = 22, 6, 25  # between pictures; a picture and its map; lines of text
TITLE, HEADING, TEXT, SMALL = 18, 15, 13, 11
LONGEST_NAME = 44  # letters of a folder's name
LOWEST, TALLEST = 165, 300  # height of a picture on the sheet; panoramas may be lower
NARROWEST = 180  # what the text below a picture needs


def draw_sheet(most: Sequence[Entry], least: Sequence[Entry], subject: Subject) -> Figure:
    """The first and the last of the ranking in rows of equal height, each above its map and its numbers."""
    sections = {word: entries for word, entries in (("highest", most), ("lowest", least)) if entries}
    rows = {word: place_in_rows([e.aspect for e in entries]) for word, entries in sections.items()}
    # A row has pictures, their maps, the lines of text below, and the space to what follows.
    below = BETWEEN + LINE * (1 + bool(subject.rated) + subject.knows_emotions) + 2 * GAP
    heights = {word: 2 * LINE + sum(2 * row[0].height + below for row in rows[word]) for word in sections}
    top = header_height(subject)
    figure = figures.new_figure(WIDTH, top + sum(heights.values()) + MARGIN - GAP)
    numbers = " and ".join(f"the {len(entries)} {word}" for word, entries in sections.items())
    words = (
        f"T{numbers[1:]} of {subject.count:,} pictures by {subject.kind}, each above its {subject.map_name}."
    )
    write_header(figure, subject, words)
    for word, entries in sections.items():
        heading = f"{word.capitalize()} {subject.kind}"
        write(figure, MARGIN, top + LINE, heading, size=HEADING, weight="bold")
        row_top, following = top + 2 * LINE - 6, iter(entries)
        for row in rows[word]:
            for box, entry in zip(row, following, strict=False):
                box = box._replace(top=row_top)
                picture = resize_image(entry.image, box)
                show(figure, box, picture, f"picture {entry.rank}")
                box = box._replace(top=box.bottom + BETWEEN)
                show(figure, box, overlay(picture, entry.scored.emotion_map), f"map {entry.rank}")
                lines = [(f"predicted {entry.scored.score:.2f}", INK), (subject.rated_text(entry), FAINT)]
                if entry.scored.emotion:
                    room = max(box.width, NARROWEST)
                    words = with_share(entry.scored.emotion, entry.scored.emotion_probability, room)
                    lines.append((words, FAINT))
                for number, (text, colour) in enumerate((line for line in lines if line[0]), start=1):
                    write(figure, box.left, box.bottom + LINE * number, text, size=TEXT, color=colour)
            row_top += 2 * row[0].height + below
        top += heights[word]
    return figure


def place_in_rows(aspects: Sequence[float]) -> list[list[Box]]:
    """Pictures side by side in the fewest rows in which they are not too small, all of a row equally high.

    Args:
        aspects: width over height of each.

    Returns:
        Row by row the places of the pictures, as if each row began at the top.
    """
    rooms = np.maximum(np.multiply(aspects, LOWEST), NARROWEST) + GAP
    middles = (rooms.cumsum() - rooms / 2) / rooms.sum()  # (n,), in (0, 1): along one long row
    for count in range(1, len(aspects) + 1):
        row_of = (count * middles).astype(int)
        groups = [[aspects[i] for i in np.flatnonzero(row_of == row)] for row in np.unique(row_of)]
        rows = [place_in_row(group) for group in groups]
        heights = [row[0].height for row in rows]
        if np.median(heights) >= LOWEST and min(heights) > 1:  # 1: the row is too long at any height
            break
    return rows


def place_in_row(aspects: Sequence[float]) -> list[Box]:
    """One row: as high as its width allows, but not above TALLEST; then it ends before the sheet does."""

    def rooms(height: int) -> list[int]:
        return [max(round(aspect * height), NARROWEST) for aspect in aspects]

    room = FULL_WIDTH - GAP * (len(aspects) - 1)
    height = next((height for height in range(TALLEST, 1, -1) if sum(rooms(height)) <= room), 1)
    left_over = room - sum(rooms(height)) if height < TALLEST else 0
    gap = GAP + left_over / max(len(aspects) - 1, 1)
    lefts = MARGIN + np.cumsum([0, *(width + gap for width in rooms(height)[:-1])])
    widths = [max(round(aspect * height), 1) for aspect in aspects]
    return [Box(round(left), 0, width, height) for left, width in zip(lefts, widths, strict=True)]


# ---- the page

COLUMN_GAP, TALLEST_ON_PAGE, SCORES_WIDTH = 20, 380, 270
CAPTION = 30  # below a picture
BARS, SCALE, LANE_GAP = 56, 14, 14  # height of a score's axes with a distribution and without; below a score
SCALE_ROOM = 0.06  # beyond the ends of a scale, as a share of it
CENTRED = {"horizontalalignment": "center"}


class Lane(NamedTuple):
    """A score of the page: in words, on its scale, and with its distribution (empty if there is none)."""

    text: str
    value: float
    ends: tuple[float, float]
    shares: dict[float, float]
    colour: str

    @property
    def height(self) -> int:
        return 2 * LINE + (BARS if self.shares else SCALE) + LANE_GAP


def draw_page(entries: Sequence[Entry], subject: Subject) -> Figure:
    """One row per picture: itself, its map, the maps of its strongest emotions, predicted against rated."""
    emotions = ("strongest emotion", "second", "third")[: len(entries[0].class_maps)]
    names = ["picture", subject.map_name, *emotions, "predicted and rated" if subject.rated else "predicted"]
    column = (FULL_WIDTH - (len(names) - 1) * COLUMN_GAP) // len(names)  # its width
    middles = [MARGIN + number * (column + COLUMN_GAP) + column // 2 for number in range(len(names))]
    rows = []
    for entry in entries:
        size = fit(entry.aspect, column, min(column, TALLEST_ON_PAGE))
        scored, rated = entry.scored, subject.rated_text(entry)
        predicted = f"predicted {scored.score:.2f}"
        lanes = [Lane(predicted, scored.score, subject.predicted_ends, scored.distribution, BLUE)]
        if rated:
            lanes.append(Lane(rated, entry.rating, subject.rated_ends, entry.shares, ORANGE))
        rows.append((entry, size, lanes, max(size[1], sum(lane.height for lane in lanes) - LANE_GAP)))
    top = header_height(subject) + 2 * LINE + 4
    total = sum(height + CAPTION for *_, height in rows) + (len(rows) - 1) * GAP
    figure = figures.new_figure(WIDTH, top + total + MARGIN)
    words = f"{len(entries)} of {subject.count:,} pictures, at evenly spaced ranks by {subject.kind}."
    bars = any(lane.shares for _, _, lanes, _ in rows for lane in lanes)
    write_header(figure, subject, words + (" Bars: share of each rating." if bars else ""))
    for middle, name in zip(middles, names, strict=True):
        write(figure, middle, top - 18, name, size=TEXT, weight="bold", **CENTRED)
    for entry, (width, tall), lanes, height in rows:
        box = Box(0, top + height // 2 - tall // 2, width, tall)  # everything is centred on one line
        picture = resize_image(entry.image, box)
        shown = [("picture", picture, f"rank {entry.rank:,} of {subject.count:,}")]
        shown.append(("map", overlay(picture, entry.scored.emotion_map), ""))
        for name, class_map in entry.class_maps.items():
            caption = with_share(name, entry.scored.emotions[name], column)
            shown.append((f"map of {name}", overlay(picture, class_map), caption))
        for centre, (label, pixels, caption) in zip(middles, shown, strict=False):
            show(figure, box._replace(left=centre - width // 2), pixels, f"{label} {entry.rank}")
            write(figure, centre, box.bottom + CAPTION - 6, caption, size=TEXT, color=FAINT, **CENTRED)
        draw_scores(figure, middles[-1] - SCORES_WIDTH // 2, top + height // 2, lanes)
        top += height + CAPTION + GAP
    return figure


def draw_scores(figure: Figure, left: int, middle: int, lanes: Sequence[Lane]) -> None:
    """Scores below each other around a line: each a scale with its ends and a dot at the value, and above it
    the shares as bars, all to one measure."""
    most = max((share for lane in lanes for share in lane.shares.values()), default=1.0)
    top = middle - (sum(lane.height for lane in lanes) - LANE_GAP) // 2
    for lane in lanes:
        text_left = left + round(SCORES_WIDTH * SCALE_ROOM / (1 + 2 * SCALE_ROOM))
        write(figure, text_left, top + LINE - 9, lane.text, size=TEXT, color=lane.colour, weight="bold")
        box = Box(left, top + LINE, SCORES_WIDTH, lane.height - 2 * LINE - LANE_GAP)
        low, high = lane.ends
        room = SCALE_ROOM * (high - low)
        axes = figures.add_axes(figure, box, f"scale of {lane.text}")
        if lane.shares:
            step = min(np.diff(sorted(lane.shares)), default=high - low)
            bars = {"width": 0.8 * step, "color": lane.colour, "alpha": 0.4}
            axes.bar(list(lane.shares), list(lane.shares.values()), **bars)
        axes.plot(lane.ends, (0, 0), color=GRID, linewidth=2, clip_on=False, zorder=2)
        dot = {"color": lane.colour, "markersize": 10, "markeredgecolor": "white"}
        axes.plot(lane.value, 0, "o", **dot, clip_on=False, zorder=3)
        axes.set(xlim=(low - room, high + room), ylim=(0, most))
        axes.set_axis_off()
        for end in lane.ends:
            at = box.left + round(box.width * (end - low + room) / (high - low + 2 * room))
            write(figure, at, box.bottom + LINE - 5, f"{end:g}", size=SMALL, color=FAINT, **CENTRED)
        top += lane.height


# ---- what both figures have


def header_height(subject: Subject) -> int:
    return MARGIN + LINE * (2 + len(subject.notes)) + GAP


def write_header(figure: Figure, subject: Subject, words: str) -> None:
    """The title, below it what is shown and what it means, at the right the colours of the maps."""
    write(figure, MARGIN, MARGIN + 16, subject.name, size=TITLE, weight="bold")
    for number, line in enumerate([words, *subject.notes], start=1):
        write(figure, MARGIN, MARGIN + 20 + LINE * number, line, size=TEXT, color=FAINT)
    width, height = 160, 14
    box = Box(WIDTH - MARGIN - width - 20, MARGIN, width, height)
    show(figure, box, figures.colour_ramp(height, width), "colour bar")
    right = {"horizontalalignment": "right", "color": FAINT}
    write(figure, box.left - 10, box.bottom, "maps over the grey picture:  0", size=TEXT, **right)
    write(figure, WIDTH - MARGIN, box.bottom, "1", size=TEXT, **right)


def with_share(name: str, probability: float, room: int) -> str:
    """As in "awe 62 %", the name shortened to a room in pixels."""
    share = f"{100 * probability:.0f} %"
    return f"{shorten(name, room // 11 - len(share) - 1)} {share}"  # a letter is about 11 pixels wide


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """0 all well, 1 some pictures could not be scored, 2 bad input, 130 interrupted."""
    return guarded(visualize, parse(arguments))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", type=str.lower, metavar="SET", help="ava, para, iae, csv or demo")
    source.add_argument("--folder", type=Path, metavar="DIR", help="photographs without ratings")
    add("--data-root", metavar="DIR", help="the set's folder")
    add("--split", type=str.lower, choices=SPLITS, default="test")
    add("--checkpoint", metavar="FILE", type=Path, help="default: the shipped weights")
    add("--count", metavar="N", type=int, default=8, help="at each end; default: 8")
    add("--by", choices=("score", "rating"), default="score", help="what ranks; default: score")
    add("--limit", metavar="N", type=int, help="only N pictures, by the hash of their ids")
    add("--output", metavar="DIR", type=Path, required=True, help="for the three files")
    add("--force", action="store_true", help="overwrite existing files")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--workers", metavar="N", type=int, default=-1, help="decoding processes")
    add("settings", metavar="key=value", nargs="*", help="as in data.score_column=score")
    return parser.parse_intermixed_args(arguments)


def visualize(options: argparse.Namespace) -> int:
    """Scores, chooses, draws.

    Raises:
        ValueError, OSError: bad arguments or data, in one sentence; nothing was written then.
    """
    check_options(options)
    scorer = Scorer(options.checkpoint, options.device, workers=options.workers, maps=True, exact=True)
    weights = scorer.network.weights
    name, rated = read_set(options, weights)
    scored = score_set(scorer, rated)
    ranking = rank(rated, scored, options.by)
    most, least = choose_ends(ranking, options.count)
    page = choose_spread(ranking)
    entries = make_entries(sorted({*most, *least, *page}), ranking, rated, scorer)
    subject = describe_subject(name, rated, len(ranking), options.by, weights, scorer.emotions_trained)
    sheet = draw_sheet([entries[i] for i in most], [entries[i] for i in least], subject)
    write_figure(sheet, options.output / FILES[0])
    write_figure(draw_page([entries[i] for i in page], subject), options.output / FILES[1])
    write_numbers(options.output / FILES[2], entries.values())
    failed = sum(row.error is not None for row in scored)
    print(f"{len(rated) - failed} of {len(rated)} pictures scored; {options.output}: {', '.join(FILES)}")
    return 1 if failed else 0


def check_options(options: argparse.Namespace) -> None:
    """Refuses what cannot work, or would overwrite something, before any work is done."""
    if options.count < 1 or (options.limit is not None and options.limit < 1):
        raise ValueError(
            f"visualize_emotion: --count and --limit are at least 1, got {options.count}, {options.limit}"
        )
    if options.folder and options.by == "rating":
        raise ValueError("visualize_emotion: a folder has no ratings; use --by score, or --dataset")
    if options.folder and (options.data_root is not None or options.settings):
        raise ValueError("visualize_emotion: --data-root and key=value words go with --dataset, not --folder")
    if options.dataset and options.data_root is None:
        raise ValueError(f"visualize_emotion: where is {options.dataset}? --data-root DIR")
    if options.output.exists() and not options.output.is_dir():
        raise NotADirectoryError(f"visualize_emotion: --output needs a folder; {options.output} is a file")
    if not options.force:
        refuse_existing("visualize_emotion", options.output, FILES)


if __name__ == "__main__":
    sys.exit(main())
