"""Makes a stand-in for Photo Triage from PARA: pairs of two kinds. Photo Triage's photographs are not public.

    python scripts/make_series.py --data-root PARA --output SERIES
    python main.py train --task series --dataset pairs --data-root SERIES --network paunit
    python main.py evaluate --dataset pairs --data-root SERIES/graded --checkpoint CHECKPOINT

SERIES/graded: series of one photograph and worse versions of it, by blur, noise, exposure or compression, in
DEGREES steps, at the size of PARA's files. The less damaged one is always preferred.
SERIES/rated: different photographs of PARA whose mean ratings differ by more than GAP, in disjoint groups of
GROUP from one session (same raters) or, for test, from one scene class. A training preference is 1
or 0; a test preference is how often a vote for one is higher than a vote for the other, from PARA's own
counts. SERIES itself has both kinds together. Neither is like choosing among one's own shots.

PARA's split is kept: validation photographs are held out of its training list by hash of the session, and a
test photograph with an identical twin in the training list is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.random import Generator
from PIL import Image

from datasets import SetReader
from eamb.files import write_csv
from eamb.readers import demo
from eamb.readers.decoding import decode
from eamb.readers.pairs import PAIR_COLUMNS
from eamb.readers.para import PARA_FILES
from eamb.readers.prepared import read_manifest
from eamb.readers.rated import hash_fractions
from eamb.readers.table import Sheet
from eamb.runtime.command import check_output, guarded
from eamb.runtime.progress import progress

DAMAGES = ("blurred", "noisy", "exposed", "compressed")
QUALITIES = (30, 15, 7)  # of JPEG, for increasing degrees of compression
DEGREES = 1 + len(QUALITIES)  # of damage; 0 is the photograph itself
GAP = 0.5  # of the mean ratings of a pair, on PARA's scale from 1 to 5
GROUP = 5  # photographs
VALIDATION = 0.05  # of the training sessions


class Photograph(NamedTuple):
    """name: path below PARA's imgs. group: session or scene class. votes: (9,) shares, None if not public."""

    name: str
    group: str
    mean: float
    votes: np.ndarray | None


Pair = tuple[str, str, str, float]  # series, first, second, preference


def photographs(root: Path) -> dict[str, list[Photograph]]:
    """split -> its photographs, without those that have an identical one in the other list."""
    reader = SetReader("para", root)
    loaded, twins = reader.load(("train", "test")), reader.twins_in_training()
    sheet = reader.read(Sheet, root / "annotation" / PARA_FILES["test"])
    names = map("/".join, zip(sheet.texts("sessionId"), sheet.texts("imageName"), strict=True))
    scene_of = dict(zip(names, sheet.texts("semantic"), strict=True))
    parts = {"train": [], "val": []}
    for sample in loaded["train"]:
        session = sample.id.partition("/")[0]
        split = "val" if hash_fractions([session])[0] < VALIDATION else "train"
        parts[split].append(Photograph(sample.id, session, sample.score, None))
    tested = (sample for sample in loaded["test"] if sample.id not in twins)
    parts["test"] = [Photograph(s.id, scene_of[s.id], s.score, s.distribution) for s in tested]
    return parts


def damaged(image: Image.Image, kind: str, degree: int, chance: Generator) -> Image.Image:
    """The picture with one of DAMAGES, in degree 1 to DEGREES - 1."""
    if kind == "blurred":
        return demo.blur(image, 0.7 * degree)
    if kind == "exposed":  # too dark or too light
        return demo.expose(image, 0.45 * degree * (1 if chance.random() < 0.5 else -1))
    if kind == "compressed":
        return demo.compress(image, QUALITIES[degree - 1])
    values = np.asarray(image) + chance.normal(0, 9 * degree, (image.height, image.width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def make_graded(
    folder: Path, parts: list[Photograph], count: int, root: Path, chance: Generator
) -> list[Pair]:
    """Writes `count` series of DEGREES versions, the kinds of damage in turn; returns the pairs."""
    folder.mkdir(parents=True)
    split, pairs = folder.name, []
    for number, index in enumerate(progress(chance.permutation(len(parts))[:count], desc=split)):
        kind = DAMAGES[number % len(DAMAGES)]
        image = Image.fromarray(decode(root / "imgs" / parts[index].name))
        letters = chance.permutation(list(ascii_lowercase[:DEGREES]))
        names = [f"{split}/{number:05d}_{letter}.jpg" for letter in letters]
        seed = int(chance.integers(1 << 32))  # the same for all: all too dark, or all too light
        for degree, name in enumerate(names):
            worse = damaged(image, kind, degree, np.random.default_rng(seed)) if degree else image
            worse.save(folder.parent / name, quality=95)  # as cameras do
        series = f"{split}-{number:05d}-{kind}"
        pairs += [in_random_order((series, *two, 1.0), chance) for two in combinations(names, 2)]
    return pairs


def in_random_order(pair: Pair, chance: Generator) -> Pair:
    """The pair, swapped at random, so that the order says nothing."""
    series, first, second, share = pair
    return pair if chance.random() < 0.5 else (series, second, first, 1 - share)


def grouped_pairs(parts: list[Photograph], chance: Generator) -> Iterator[Pair]:
    """All pairs with ratings more than GAP apart in disjoint groups of GROUP of one session or scene."""
    for name in sorted({photograph.group for photograph in parts}):
        members = [photograph for photograph in parts if photograph.group == name]
        members = [members[i] for i in chance.permutation(len(members))]
        for start in range(0, len(members), GROUP):
            for a, b in combinations(members[start : start + GROUP], 2):
                if abs(a.mean - b.mean) > GAP:
                    series = f"{name}-{start // GROUP:04d}"
                    pair = (series, f"imgs/{a.name}", f"imgs/{b.name}", preference(a, b))
                    yield in_random_order(pair, chance)


def preference(a: Photograph, b: Photograph) -> float:
    """How often a vote for a is higher than one for b, ties count half; without public votes 1 or 0."""
    if a.votes is None or b.votes is None:
        return float(a.mean > b.mean)
    shares = np.outer(a.votes, b.votes)  # (9, 9)
    return float(np.tril(shares, -1).sum() + np.trace(shares) / 2)


def make(options: argparse.Namespace) -> int:
    root, output = options.data_root, options.output
    check_output("make_series", output)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"make_series: {output} holds files already; choose another folder")
    if read_manifest(root):
        raise ValueError(f"make_series: {root} holds prepared copies; series need the photographs themselves")
    parts = photographs(root)
    train = (options.series, options.pairs)  # numbers of graded series, and of rated pairs at most
    val = (max(2, round(VALIDATION * count)) for count in train)
    sizes = {"train": train, "val": tuple(val), "test": (options.test_series, None)}
    for split, (count, _) in sizes.items():
        if count > (have := len(parts[split])):
            raise ValueError(f"make_series: {count} series are asked for and {split} has {have} photographs")
    chance = np.random.default_rng(options.seed)
    (output / "rated").mkdir(parents=True)
    (output / "rated" / "imgs").symlink_to((root / "imgs").resolve(), target_is_directory=True)
    for split, (count, most) in sizes.items():
        graded = make_graded(output / "graded" / split, parts[split], count, root, chance)
        rated = list(grouped_pairs(parts[split], chance))
        rated = [rated[i] for i in np.sort(chance.permutation(len(rated))[:most])]
        together = []
        for kind, pairs in (("graded", graded), ("rated", rated)):
            together += [(series, f"{kind}/{a}", f"{kind}/{b}", share) for series, a, b, share in pairs]
        for folder, pairs in ((output / "graded", graded), (output / "rated", rated), (output, together)):
            rows = [[*names, f"{abs(round(share, 6)):g}"] for *names, share in pairs]
            write_csv(folder / f"{split}.csv", [PAIR_COLUMNS, *rows])
            names = {name for _, *both, _ in pairs for name in both}
            print(f"{folder / split}.csv: {len(pairs)} pairs of {len(names)} photographs")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data-root", metavar="DIR", type=Path, required=True, help="PARA")
    add("--output", metavar="DIR", type=Path, required=True)
    add("--series", type=int, default=1000, help="graded training series (default 1000)")
    add("--test-series", type=int, default=300, help="graded test series (default 300)")
    add("--pairs", type=int, default=8000, help="rated training pairs (default 8000)")
    add("--seed", type=int, default=0)
    return guarded(make, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
