"""Makes a stand-in for Photo Triage from PARA: pairs of two kinds. Photo Triage's photographs are not public.

    python scripts/make_series.py --data-root PARA --output SERIES
    python main.py train --task series --dataset pairs --data-root SERIES --network paunit
    python main.py evaluate --dataset pairs --data-root SERIES/graded --checkpoint CHECKPOINT

SERIES/graded: series of one photograph and worse versions of it, by blur, noise, exposure or compression, in
DEGREES steps, at the size of PARA's files. The less damaged one is always preferred: every preference is 1 or
0.

SERIES/rated: different photographs of PARA whose mean ratings differ by more than GAP, in disjoint groups of
GROUP. A training group is of one session (whose raters are the same people), a test group of one scene class.
A training preference is 1 or 0; a test preference is how often a vote for one is higher than a vote for the
other, from PARA's own counts (equal votes count half for each).

SERIES itself has both together. Neither is what people do when they choose among their own shots. Both keep
PARA's split: validation photographs are held out of its training list by hash of the session, test
photographs are its test list, and a photograph with an identical twin in the other list is left out. A
network trained on PARA's ratings knows most of the validation photographs, but none of the test ones.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from datasets import SetReader
from eamb.files import write_csv
from eamb.readers.decoding import decode
from eamb.readers.pairs import PAIR_COLUMNS
from eamb.readers.para import PARA_BINS, PARA_FILES
from eamb.readers.prepared import read_manifest
from eamb.readers.rated import hash_fractions
from eamb.readers.table import Sheet
from eamb.runtime.command import guarded

QUALITIES = (30, 15, 7)  # of JPEG, for the degrees of damage by compression
DEGREES = 1 + len(QUALITIES)  # of damage; 0 is the photograph itself
GAP = 0.5  # of the mean ratings of a pair, on PARA's scale from 1 to 5
GROUP = 5  # photographs
VALIDATION = 0.05  # of the training sessions


class Photograph(NamedTuple):
    """name: below PARA's imgs. group: session or scene class. votes: (9,) counts, None where not public."""

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
    names = [f"{s}/{i}" for s, i in zip(sheet.texts("sessionId"), sheet.texts("imageName"), strict=True)]
    scene_of = dict(zip(names, sheet.texts("semantic"), strict=True))
    votes = sheet.counts_if_there([f"aestheticScore_{value}" for value in PARA_BINS], most=100)
    row_of = {name: row for row, name in enumerate(names)}
    train, test = loaded["train"], loaded["test"]
    sessions = [name.partition("/")[0] for name in train.ids]
    held_out = hash_fractions(sessions) < VALIDATION  # (n,)
    parts = {"train": [], "val": []}
    for name, session, mean, val in zip(train.ids, sessions, train.scores, held_out, strict=True):
        parts["val" if val else "train"].append(Photograph(name, session, float(mean), None))
    parts["test"] = [
        Photograph(name, scene_of[name], float(mean), None if votes is None else votes[row_of[name]])
        for name, mean in zip(test.ids, test.scores, strict=True)
        if name not in twins
    ]
    return parts


def blurred(image: Image.Image, degree: int, chance: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.7 * degree))


def noisy(image: Image.Image, degree: int, chance: np.random.Generator) -> Image.Image:
    values = np.asarray(image, np.float64)  # (H, W, 3)
    values = values + chance.normal(0, 9 * degree, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def exposed(image: Image.Image, degree: int, chance: np.random.Generator) -> Image.Image:
    """Too dark or too light, by .45 stops a degree, in linear light."""
    stops = 0.45 * degree * (1 if chance.random() < 0.5 else -1)
    values = (np.asarray(image, np.float64) / 255) ** 2.2 * 2**stops  # (H, W, 3)
    return Image.fromarray((values.clip(0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8))


def compressed(image: Image.Image, degree: int, chance: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITIES[degree - 1])
    return Image.open(file).convert("RGB")


DAMAGES = (blurred, noisy, exposed, compressed)


def make_graded(
    folder: Path, parts: list[Photograph], count: int, root: Path, chance: np.random.Generator
) -> list[Pair]:
    """Writes `count` series of DEGREES versions, the kinds of damage in turn; returns the pairs."""
    folder.mkdir(parents=True)
    split = folder.name
    pairs: list[Pair] = []
    for number, index in enumerate(tqdm(chance.permutation(len(parts))[:count], desc=split, mininterval=2)):
        damage = DAMAGES[number % len(DAMAGES)]
        image = Image.fromarray(decode(root / "imgs" / parts[index].name))
        letters = chance.permutation(list(ascii_lowercase[:DEGREES]))
        names = [f"{split}/{number:05d}_{letter}.jpg" for letter in letters]
        seed = int(chance.integers(1 << 32))  # so that all are too dark, or all too light
        for degree, name in enumerate(names):
            worse = damage(image, degree, np.random.default_rng(seed)) if degree else image
            worse.save(folder.parent / name, quality=95)  # as cameras do
        series = f"{split}-{number:05d}-{damage.__name__}"
        pairs += [in_random_order(series, *both, 1.0, chance) for both in combinations(names, 2)]
    return pairs


def in_random_order(
    series: str, first: str, second: str, preference: float, chance: np.random.Generator
) -> Pair:
    """The pair, swapped at random: which stands first must say nothing."""
    if chance.random() < 0.5:
        return series, first, second, preference
    return series, second, first, 1 - preference


def grouped_pairs(parts: list[Photograph], chance: np.random.Generator) -> Iterator[Pair]:
    """All pairs with ratings more than GAP apart in disjoint groups of GROUP of one session or scene."""
    for name in sorted({photograph.group for photograph in parts}):
        members = [photograph for photograph in parts if photograph.group == name]
        members = [members[i] for i in chance.permutation(len(members))]
        for start in range(0, len(members), GROUP):
            for a, b in combinations(members[start : start + GROUP], 2):
                if abs(a.mean - b.mean) > GAP:
                    series, names = f"{name}-{start // GROUP:04d}", (f"imgs/{a.name}", f"imgs/{b.name}")
                    yield in_random_order(series, *names, preference(a, b), chance)


def preference(a: Photograph, b: Photograph) -> float:
    """How often a vote for a is higher than one for b, equal ones count half; 1 or 0 without public votes."""
    if a.votes is None or b.votes is None:
        return float(a.mean > b.mean)
    shares = np.outer(a.votes / a.votes.sum(), b.votes / b.votes.sum())  # (9, 9)
    return float(np.tril(shares, -1).sum() + np.trace(shares) / 2)


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    rows = ([series, *names, f"{abs(round(share, 6)):g}"] for series, *names, share in pairs)
    write_csv(path, [PAIR_COLUMNS, *rows])
    photographs = {name for _, *both, _ in pairs for name in both}
    print(f"{path}: {len(pairs)} pairs of {len(photographs)} photographs")


def make(options: argparse.Namespace) -> int:
    if options.output.exists() and any(options.output.iterdir()):
        raise FileExistsError(f"make_series: {options.output} holds files already; choose another folder")
    if manifest := read_manifest(options.data_root):
        raise ValueError(
            f"make_series: {options.data_root} holds prepared copies, which are squashed; series need the "
            f"photographs themselves, --data-root {manifest.source}"
        )
    parts = photographs(options.data_root)
    few, pairs = (max(2, round(VALIDATION * count)) for count in (options.series, options.pairs))
    counts = {"train": options.series, "val": few, "test": options.test_series}
    most = {"train": options.pairs, "val": pairs}  # rated pairs; test has all that there are
    for split, count in counts.items():
        if count > (have := len(parts[split])):
            raise ValueError(f"make_series: {count} series are asked for and {split} has {have} photographs")
    chance = np.random.default_rng(options.seed)
    graded, rated = options.output / "graded", options.output / "rated"
    rated.mkdir(parents=True)
    (rated / "imgs").symlink_to((options.data_root / "imgs").resolve(), target_is_directory=True)
    for split, count in counts.items():
        kinds = {graded: make_graded(graded / split, parts[split], count, options.data_root, chance)}
        pairs = list(grouped_pairs(parts[split], chance))
        if split in most:
            pairs = [pairs[i] for i in np.sort(chance.permutation(len(pairs))[: most[split]])]
        kinds[rated] = pairs
        together = []
        for folder, pairs in kinds.items():
            write_pairs(folder / f"{split}.csv", pairs)
            together += [(s, f"{folder.name}/{a}", f"{folder.name}/{b}", share) for s, a, b, share in pairs]
        write_pairs(options.output / f"{split}.csv", together)
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
