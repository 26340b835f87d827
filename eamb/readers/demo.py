"""The embedded data set: photographs inside installed packages, degraded in known ways, with computed labels.

Nobody rated these pictures. Every vote and every emotion is computed from the kind and the severity of the
degradation, so that the demo and the tests run anywhere, offline, with a known truth.

    python -m eamb.readers.demo [--root data/demo]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import zlib
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy.special import ndtr

from eamb.network.outputs import EMOTIONS
from eamb.readers.ava import ava_table
from eamb.readers.rated import SPLITS, DataOptions
from eamb.readers.table import Read, Sheet, Table

SCORE_COLUMNS = [f"score{rating}" for rating in range(1, 11)]


class Photograph(NamedTuple):
    """A photograph inside an installed package; all pictures made from it share its split.

    focus: centre of the close view, as fractions of width and height from 0.3 to 0.7.
    """

    name: str
    package: str
    file: str
    split: str
    focus: tuple[float, float]
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


# Kind of damage -> function, its strength at severity 1 to 4, the rating lost per step of severity, the
# emotion at severity 1 and 2 (a pleasant one), and at 3 and 4 (an unpleasant one).
KINDS = {
    "blur": (blur, (1.0, 2.0, 3.5, 6.0), 1.30, "contentment", "sadness"),
    "noise": (add_noise, (14, 28, 48, 80), 1.05, "excitement", "anger"),
    "overexposure": (expose, (0.7, 1.4, 2.2, 3.2), 1.10, "amusement", "disgust"),
    "underexposure": (expose, (-1.0, -2.0, -3.0, -4.2), 0.90, "awe", "fear"),
    # Bad fluorescent light: more green, less red and blue, at about equal brightness.
    "cast": (lambda p, s: expose(p, -s, 0.4 * s, -s), (0.4, 0.8, 1.3, 2.0), 0.80, "amusement", "disgust"),
    "compression": (compress, (24, 12, 6, 3), 1.20, "contentment", "anger"),
}


def open_photograph(photograph: Photograph) -> Image.Image:
    """Read a photograph from its package's folder; never downloads, as skimage.data may."""
    with Image.open(Path(find_spec(photograph.package).origin).parent / photograph.file) as picture:
        return picture.convert("RGB")


def degrade(picture: Image.Image, kind: str, severity: int) -> tuple[Image.Image, str, list[int]]:
    """The damaged picture, its emotion and its 100 votes, normally distributed around its mean rating."""
    mean, deviation, emotion = 8.0, 1.4, "awe"  # of the undamaged picture, on the scale 1 to 10
    if severity:
        apply, strengths, loss, mild, severe = KINDS[kind]
        picture, mean = apply(picture, strengths[severity - 1]), mean - loss * severity
        emotion = mild if severity <= 2 else severe
    edges = np.array([-np.inf, *np.arange(1.5, 10), np.inf])  # of the ratings; the two ends take the tails
    # Rounded, so that two machines' last bits cannot break a tie differently.
    exact = np.round(100 * np.diff(ndtr((edges - mean) / deviation)), 9)
    counts = np.floor(exact).astype(int)
    largest_remainders = np.argsort(counts - exact, kind="stable")  # lower rating first among equals
    counts[largest_remainders[: 100 - counts.sum()]] += 1
    return picture, emotion, counts.tolist()


def make_demo(root: Path) -> Path:
    """Make the data set at `root`, unless it is there: labels.csv, images/, contact_sheet.png and README.txt.

    An interrupted run leaves nothing half-made, and several processes may call this at once.
    """
    root = Path(root)
    if (root / "labels.csv").is_file():
        return root
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"demo: {root} exists and holds something else; name a new folder with --root")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
        write_data_set(Path(folder, "fresh"))
        try:
            Path(folder, "fresh").rename(root)
        except OSError:
            if not (root / "labels.csv").is_file():  # otherwise another process was faster
                raise
    return root


def write_data_set(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    rows, sheet = [], Image.new("RGB", (13 * 132, 8 * 100), "white")  # the sheet: photographs by degradations
    for photograph, (view, severities) in product(PHOTOGRAPHS, (("whole", (1, 2, 3, 4)), ("close", (2, 4)))):
        picture = open_photograph(photograph)
        if view == "close":
            width, height = (round(0.6 * side) for side in picture.size)
            left = round(photograph.focus[0] * picture.width - width / 2)
            top = round(photograph.focus[1] * picture.height - height / 2)
            picture = picture.crop((left, top, left + width, top + height))
        picture = ImageOps.contain(picture, (320, 320), Image.Resampling.LANCZOS)
        for column, (kind, severity) in enumerate([("none", 0), *product(KINDS, severities)]):
            image = f"{photograph.name}_{view}_{kind}_{severity}.jpg"
            damaged, emotion, votes = degrade(picture, kind, severity)
            damaged.save(folder / "images" / image, quality=92)
            rows.append([image, photograph.split, photograph.name, kind, severity, emotion, *votes])
            if view == "whole" and severity % 2 == 0:
                cell = ImageOps.fit(damaged, (128, 96), centering=photograph.focus)
                text = f"{kind} {severity}\nmean {np.average(np.arange(1, 11), weights=votes):.2f}\n{emotion}"
                ImageDraw.Draw(cell).text((4, 4), text, "white", stroke_width=1, stroke_fill="black")
                sheet.paste(cell, (132 * (column // 2), 100 * PHOTOGRAPHS.index(photograph)))
    columns = ["image", "split", "source", "degradation", "severity", "emotion", *SCORE_COLUMNS]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "labels.csv", index=False, lineterminator="\n")
    sheet.save(folder / "contact_sheet.png")
    credits = "\n".join(f"  {p.name:<11} {p.split:<6} {p.credit} (in {p.package})" for p in PHOTOGRAPHS)
    text = f"""EAMB-Net demo data set, version 1

THE LABELS ARE SYNTHETIC. Nobody rated these {len(rows)} pictures. The 100 votes (score1 to score10) and the
emotion of each are computed from the kind and the severity of its degradation, equal for every photograph.
A network trained on them has learned to see blur, noise and the like, and nothing about beauty.

Photographs, as they ship inside the packages scikit-image (skimage) and scikit-learn (sklearn):
{credits}
All were cropped, resized and degraded.
"""
    (folder / "README.txt").write_text(text, encoding="utf-8")


def parse_demo(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """labels.csv; the set is made first if it is not there."""
    sheet = read(Sheet, make_demo(root) / "labels.csv")
    sheet.need(["image", "split", "emotion", *SCORE_COLUMNS], " Delete the folder to make it again.")
    split = np.array(SPLITS)[sheet.codes("split", SPLITS).argmax(1)]
    return replace(
        ava_table(sheet.ids("image"), sheet.counts(SCORE_COLUMNS), split),
        name="demo",
        places=[root / "images"],
        protocol=dict.fromkeys(SPLITS, "synthetic labels, split by source photograph"),
        emotions=sheet.codes("emotion", EMOTIONS),
        emotion_classes=EMOTIONS,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded demo data set (synthetic labels).")
    parser.add_argument("--root", type=Path, default="data/demo", help="folder to make (default: data/demo)")
    try:
        root = make_demo(parser.parse_args().root)
    except OSError as error:
        parser.exit(2, f"{error}\n")
    print(f"{root}: labels.csv, images, contact_sheet.png and README.txt; the labels are synthetic")


if __name__ == "__main__":
    main()
