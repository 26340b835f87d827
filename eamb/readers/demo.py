"""The embedded data set: photographs inside installed packages, degraded in known ways, with computed labels.

Nobody rated these pictures. Every vote and every emotion is a formula of the kind and the severity of the
degradation, so that the demo and the tests run anywhere, offline, with a known truth. The labels say nothing
about beauty.

    python -m eamb.readers.demo [--root data/demo]
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from eamb.network.outputs import EMOTIONS
from eamb.readers.ava import AVA_BINS, AVA_RATING
from eamb.readers.rated import SPLITS, DataOptions
from eamb.readers.table import Read, Sheet, Table, means

TITLE = "EAMB-Net demo data set"
VERSION = f"{TITLE}, version 1"  # first line of README.txt; raise it whenever a picture or a label changes
VOTES = 100
LONGER_SIDE = 320  # pixels
BINS = range(1, 11)
SCORE_COLUMNS = [f"score{rating}" for rating in BINS]
CELL_WIDTH, CELL_HEIGHT, GAP, HEADER = 128, 96, 4, 190  # of the contact sheet, in pixels


class Photograph(NamedTuple):
    """A photograph that lies inside an installed package; all pictures made from it share its split."""

    name: str
    package: str
    file: str
    split: str
    focus: tuple[float, float]  # centre of the close view, as a fraction of width and height
    credit: str


PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png", "train", (0.42, 0.32), "NASA; public domain"),
    Photograph("china", "sklearn", "datasets/images/china.jpg", "train", (0.35, 0.48),
               "danielbuechele, flickr.com/photos/danielbuechele/6061409035; CC BY 2.0"),
    Photograph("coffee", "skimage", "data/coffee.png", "train", (0.52, 0.40),
               "Rachel Michetti, Pikolo Espresso Bar; CC0"),
    Photograph("hubble", "skimage", "data/hubble_deep_field.jpg", "train", (0.62, 0.60),
               "NASA, hubblesite.org; public domain"),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png", "train", (0.55, 0.52),
               "Middlebury Stereo 2014, Scharstein et al., GCPR 2014; published for research"),
    Photograph("chelsea", "skimage", "data/chelsea.png", "val", (0.55, 0.45), "Stefan van der Walt; CC0"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", "test", (0.50, 0.45),
               "vultilion, flickr.com/photos/vultilion/6056698931; CC BY 2.0"),
    Photograph("rocket", "skimage", "data/rocket.jpg", "test", (0.50, 0.62), "SpaceX; public domain"),
)  # fmt: skip

# The close view takes every other severity: 8 photographs x (25 whole + 13 close) = 304 pictures.
VIEWS = {"whole": (1, 2, 3, 4), "close": (2, 4)}


def open_photograph(photograph: Photograph) -> Image.Image:
    """Read a photograph from its package's folder; never downloads, as skimage.data may."""
    spec = find_spec(photograph.package)
    path = Path(spec.origin if spec else "").parent / photograph.file
    if not path.is_file():
        raise FileNotFoundError(
            f"demo: the photograph {photograph.file} is missing from the installed package "
            f"{photograph.package}; install the versions in requirements.txt"
        )
    with Image.open(path) as picture:
        return picture.convert("RGB")


def take_view(picture: Image.Image, view: str, focus: tuple[float, float]) -> Image.Image:
    """Cut the view out and shrink it to LONGER_SIDE; a crop that would leave the picture is moved inward."""
    if view == "close":
        width, height = (round(0.6 * side) for side in picture.size)
        left = min(max(round(focus[0] * picture.width - width / 2), 0), picture.width - width)
        top = min(max(round(focus[1] * picture.height - height / 2), 0), picture.height - height)
        picture = picture.crop((left, top, left + width, top + height))
    return ImageOps.contain(picture, (LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)


def blur(picture: Image.Image, radius: float) -> Image.Image:
    """Gaussian blur; the radius is its standard deviation in pixels."""
    return picture.filter(ImageFilter.GaussianBlur(radius))


def add_noise(picture: Image.Image, deviation: float) -> Image.Image:
    """Gaussian noise of the given standard deviation in grey levels, seeded by the picture itself."""
    generator = np.random.default_rng(zlib.crc32(picture.tobytes()))
    pixels = np.asarray(picture) + deviation * generator.standard_normal((picture.height, picture.width, 3))
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def expose(picture: Image.Image, *stops: float) -> Image.Image:
    """Multiply the light by 2^stops, in linear light as a camera does; one value, or one for each channel."""
    gains = [2.0**stop for stop in (stops * 3 if len(stops) == 1 else stops)]
    light = [(level / 255) ** 2.2 for level in range(256)]
    table = [round(255 * min(gain * value, 1.0) ** (1 / 2.2)) for gain in gains for value in light]
    return picture.point(table)


def compress(picture: Image.Image, quality: float) -> Image.Image:
    """Through a JPEG file of the given quality and back."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


class Degradation(NamedTuple):
    """One kind of damage. strengths are for severity 1 to 4; loss is the rating lost with each severity."""

    apply: Callable[[Image.Image, float], Image.Image]
    strengths: tuple[float, float, float, float]
    loss: float
    mild: str  # emotion at severity 1 and 2, always a pleasant one
    severe: str  # emotion at severity 3 and 4, always an unpleasant one


def cast_green(picture: Image.Image, stops: float) -> Image.Image:
    """The cast of bad fluorescent light: more green, less red and blue, at about equal brightness."""
    return expose(picture, -stops, 0.4 * stops, -stops)


KINDS = {
    "blur": Degradation(blur, (1.0, 2.0, 3.5, 6.0), 1.30, "contentment", "sadness"),
    "noise": Degradation(add_noise, (14, 28, 48, 80), 1.05, "excitement", "anger"),
    "overexposure": Degradation(expose, (0.7, 1.4, 2.2, 3.2), 1.10, "amusement", "disgust"),
    "underexposure": Degradation(expose, (-1.0, -2.0, -3.0, -4.2), 0.90, "awe", "fear"),
    "cast": Degradation(cast_green, (0.4, 0.8, 1.3, 2.0), 0.80, "amusement", "disgust"),
    "compression": Degradation(compress, (24, 12, 6, 3), 1.20, "contentment", "anger"),
}


def vote_counts(rating: float) -> list[int]:
    """Spread VOTES votes over the ten ratings, normally around `rating`; the two ends take the tails."""
    deviation = 1.4  # standard deviation of the votes, in ratings
    edges = [-math.inf, *(bin_ + 0.5 for bin_ in BINS[:-1]), math.inf]
    below = [0.5 * (1 + math.erf((edge - rating) / (deviation * math.sqrt(2)))) for edge in edges]
    # Rounded, so that two machines' last bits cannot break a tie differently.
    exact = [round(VOTES * (high - low), 9) for low, high in pairwise(below)]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: VOTES - sum(counts)]:  # largest remainders first, lower rating first among equals
        counts[i] += 1
    return counts


def label(kind: str, severity: int) -> tuple[str, list[int]]:
    """Emotion and vote counts of a picture: a formula of the degradation, equal for every photograph."""
    clean = 8.0  # mean rating of an undamaged picture, on the scale 1 to 10
    if kind == "none":
        return "awe", vote_counts(clean)
    degradation = KINDS[kind]
    emotion = degradation.mild if severity <= 2 else degradation.severe
    return emotion, vote_counts(clean - degradation.loss * severity)


class Variant(NamedTuple):
    """One picture of the data set."""

    photograph: Photograph
    view: str
    kind: str
    severity: int

    @property
    def image(self) -> str:
        """File name below images/."""
        return f"{self.photograph.name}_{self.view}_{self.kind}_{self.severity}.jpg"


def plan() -> Iterator[Variant]:
    """Every picture of the data set, in the order of labels.csv."""
    for photograph in PHOTOGRAPHS:
        for view, severities in VIEWS.items():
            yield Variant(photograph, view, "none", 0)
            for kind in KINDS:
                for severity in severities:
                    yield Variant(photograph, view, kind, severity)


def make_demo(root: Path) -> Path:
    """Make the data set at `root`, unless it is there already, complete and of this version.

    It is built in a temporary folder beside `root`, which is then renamed: an interrupted run leaves nothing
    half-made, and several processes may call this at once.

    Returns:
        root, with labels.csv, images/, contact_sheet.png and README.txt.
    """
    root = Path(root)
    if is_complete(root):
        return root
    # Only an older or damaged demo, or an empty folder, is replaced.
    if root.exists() and not (starts_with(root, TITLE) or (root.is_dir() and not any(root.iterdir()))):
        raise FileExistsError(f"demo: {root} exists and holds something else; name a new folder with --root")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
        fresh = Path(folder) / "fresh"
        write_data_set(fresh)
        try:
            if root.exists() and not is_complete(root):
                root.rename(Path(folder) / "replaced")
            fresh.rename(root)
        except OSError:
            if not is_complete(root):  # otherwise another process was faster, with the same files
                raise
    return root


def parse_demo(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """labels.csv; the set is made first if it is not there."""
    if not (root / "labels.csv").is_file():
        make_demo(root)
    sheet = read(Sheet, root / "labels.csv")
    sheet.need(["image", "split", "emotion", *SCORE_COLUMNS], " Delete the folder to make it again.")
    ids, votes = sheet.ids("image"), sheet.counts(SCORE_COLUMNS)
    return Table(
        name="demo",
        ids=ids,
        names=ids,
        places=[root / "images"],
        split=np.array(SPLITS)[sheet.codes("split", SPLITS).argmax(1)],
        protocol=dict.fromkeys(SPLITS, "synthetic labels, split by source photograph"),
        scores=means(votes, AVA_BINS),
        rating=AVA_RATING,
        votes=votes,
        bins=AVA_BINS,
        emotions=sheet.codes("emotion", EMOTIONS),
        emotion_classes=EMOTIONS,
    )


def is_complete(root: Path) -> bool:
    """Whether `root` holds this version with every file."""
    files = [root / "labels.csv", *(root / "images" / variant.image for variant in plan())]
    return starts_with(root, VERSION) and all(file.is_file() for file in files)


def starts_with(root: Path, title: str) -> bool:
    """Whether the README.txt in `root` begins with `title`."""
    readme = root / "README.txt"
    return readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(title)


def write_data_set(folder: Path) -> None:
    """Write all files of the data set into a new folder."""
    (folder / "images").mkdir(parents=True)
    rows = [["image", "split", "source", "degradation", "severity", "emotion", *SCORE_COLUMNS]]
    views: dict[tuple[str, str], Image.Image] = {}
    for variant in plan():
        photograph, view, kind, severity = variant
        if (photograph.name, view) not in views:
            views[photograph.name, view] = take_view(open_photograph(photograph), view, photograph.focus)
        picture = views[photograph.name, view]
        if severity:
            picture = KINDS[kind].apply(picture, KINDS[kind].strengths[severity - 1])
        picture.save(folder / "images" / variant.image, quality=92)
        emotion, counts = label(kind, severity)
        rows.append([variant.image, photograph.split, photograph.name, kind, severity, emotion, *counts])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    draw_contact_sheet(folder / "images").save(folder / "contact_sheet.png")
    (folder / "README.txt").write_text(readme(), encoding="utf-8")


def readme() -> str:
    """Text of README.txt; its first line marks the version."""
    splits = Counter(variant.photograph.split for variant in plan())
    shares = ", ".join(f"{count} {split}" for split, count in splits.items())
    sources = "\n".join(f"  {p.name:<11} {p.split:<6} {p.credit} (in {p.package})" for p in PHOTOGRAPHS)
    return f"""{VERSION}

THE LABELS ARE SYNTHETIC. Nobody rated these pictures. The {VOTES} votes and the emotion of each picture are
computed from the kind and the severity of its degradation, the same for every photograph.
A network trained on them has learned to see blur, noise and the like, and nothing about beauty. They are for
demonstrations and tests only.

{splits.total()} pictures ({shares}), split by photograph.
labels.csv         image, split, source (the photograph), degradation, severity 0 to 4, emotion,
                   score1 ... score10 (how many of the {VOTES} votes gave each rating)
images/            JPEG, longer side {LONGER_SIDE} pixels: the whole photograph and a close view of it
contact_sheet.png  photographs by degradations, with votes, mean rating and emotion

Photographs, as they ship inside the installed packages scikit-image (skimage) and scikit-learn (sklearn):
{sources}
All were cropped, resized and degraded.
"""


def draw_contact_sheet(images: Path) -> Image.Image:
    """A grid, photographs by degradations; above each column its votes, mean rating and emotion."""
    columns = [("none", 0), *((kind, severity) for kind in KINDS for severity in (2, 4))]
    size = (column_left(len(columns)) + 8, HEADER + len(PHOTOGRAPHS) * (CELL_HEIGHT + GAP) + 34)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    ink, faint, blue = (32, 33, 36), (120, 124, 130), (70, 110, 170)

    def write(left: int, top: int, text: str, colour: tuple[int, int, int], height: int) -> None:
        draw.text((left, top), text, colour, ImageFont.load_default(height))

    write(10, 8, TITLE, ink, 22)
    note = f"{VOTES} votes (bars, ratings 1 to 10), mean and emotion are computed, not asked."
    write(10, 38, f"Synthetic labels: {note}", faint, 15)
    for index, (kind, severity) in enumerate(columns):
        left, (emotion, counts) = column_left(index), label(kind, severity)
        write(left, HEADER - 118, "undamaged" if kind == "none" else f"{kind} {severity}", ink, 16)
        bar, bottom = CELL_WIDTH // len(counts), HEADER - 46
        for i, count in enumerate(counts):
            draw.rectangle((left + i * bar, bottom - 1.4 * count, left + (i + 1) * bar - 3, bottom), blue)
        write(left, HEADER - 43, f"mean {np.average(BINS, weights=counts):.2f}", ink, 16)
        write(left, HEADER - 23, emotion, faint, 15)
    for row, photograph in enumerate(PHOTOGRAPHS):
        top = HEADER + row * (CELL_HEIGHT + GAP)
        write(10, top + 28, photograph.name, ink, 17)
        write(10, top + 50, photograph.split, faint, 14)
        for index, (kind, severity) in enumerate(columns):
            with Image.open(images / Variant(photograph, "whole", kind, severity).image) as picture:
                cell = ImageOps.fit(picture, (CELL_WIDTH, CELL_HEIGHT), centering=photograph.focus)
            sheet.paste(cell, (column_left(index), top))
    footer = "Severity 2 and 4 of 4 are shown; the sources and licences of the photographs are in README.txt."
    write(10, size[1] - 26, footer, faint, 14)
    return sheet


def column_left(index: int) -> int:
    """Left edge of a column in pixels; the two severities of a kind stand closer together than the kinds."""
    return 124 + index * (CELL_WIDTH + GAP) + 10 * ((index + 1) // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded demo data set (synthetic labels).")
    default = Path("data/demo")
    parser.add_argument("--root", type=Path, default=default, help=f"folder to make (default: {default})")
    try:
        root = make_demo(parser.parse_args().root)
    except OSError as error:
        parser.exit(2, f"{error}\n")
    print(f"{len(list(plan()))} pictures with synthetic labels:")
    for name in ("labels.csv", "images", "contact_sheet.png", "README.txt"):
        print(f"  {root / name}")


if __name__ == "__main__":
    main()
