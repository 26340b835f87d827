"""How well the similarity of picks.py tells series apart, and how fast `main.py select` is.

    python scripts/measure_picks.py similarity --data-root PARA
    python scripts/measure_picks.py speed --count 1000 --output speed

similarity: two kinds of pairs that belong together against two kinds that do not.
  neighbours  real photographs of PARA that, by their EXIF, one camera took within two minutes; sorted by eye,
              from small pictures, into those that one would choose between and others (doubtful ones are
              left out): results/picks/neighbours.csv.
  bursts      two stand-in shots of one PARA photograph, moved, turned, zoomed, exposed, blurred, noisy and
              compressed at random, against two different photographs.
speed: DIFFERENT pictures of 24 megapixels in bursts of four, made from the embedded photographs, and links to
them; then `main.py select` with a page, in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import time
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from eamb.readers import demo
from eamb.runtime.command import guarded, refuse_existing
from eamb.selection.exif import CHANGED
from eamb.selection.grouping import similarity, sketch

ROOT = Path(__file__).resolve().parent.parent
BURST, DIFFERENT, LARGE = 4, 32, (6000, 4000)


def shot(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """A random shot of what a picture shows, as if the shutter were pressed once more."""
    turned = picture.rotate(chance.uniform(-2, 2), Image.Resampling.BICUBIC)
    share = 0.9 * chance.uniform(0.85, 1)  # of a picture's sides, so that the shot can move
    width, height = (round(share * side) for side in picture.size)
    left, top = (
        round((side - part) / 2 + chance.uniform(-1, 1) * min((side - part) / 2, 0.06 * side))
        for side, part in zip(picture.size, (width, height), strict=True)
    )
    shown = turned.crop((left, top, left + width, top + height))
    shown = demo.expose(shown, chance.uniform(-0.7, 0.7))
    if chance.random() < 0.4:
        shown = demo.blur(shown, chance.uniform(0.002, 0.02) * width)
    if chance.random() < 0.4:
        shown = demo.add_noise(shown, chance.uniform(5, 30))
    return demo.compress(shown, int(chance.integers(50, 95)))


def similarity_of(one: Image.Image, other: Image.Image) -> float:
    return similarity(*(sketch(picture) for picture in (one, other)))


def read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def report_similarity(options: argparse.Namespace) -> int:
    images = options.data_root / "imgs"
    if not images.is_dir():
        raise FileNotFoundError(f"measure_picks: {options.data_root} has no folder imgs; is it PARA?")
    with (ROOT / "results" / "picks" / "neighbours.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    alike = [similarity_of(*(read(images / row[side]) for side in ("first", "second"))) for row in rows]
    alike, seconds = np.array(alike), np.array([float(row["seconds"]) for row in rows])
    together = np.array([row["same"] == "1" for row in rows])
    chance = np.random.default_rng(0)
    paths = chance.choice(sorted(images.rglob("*.jpg")), options.count, replace=False)
    pictures = [read(path) for path in paths]
    shots = np.array([similarity_of(shot(one, chance), shot(one, chance)) for one in pictures])
    different = np.array([similarity_of(one, other) for one, other in pairwise(pictures)])
    kinds = {"neighbours": (alike[together], alike[~together]), "bursts": (shots, different)}
    for name, (same, others) in kinds.items():
        print(f"{name}: {len(same)} pairs that belong together, {len(others)} that do not", end="; ")
        # The share of all cases in which a pair that belongs together is more alike than one that does not.
        area = (same[:, None] > others).mean() + (same[:, None] == others).mean() / 2
        print(f"area under the curve {area:.4f}")
        print("  limit  torn apart  joined wrongly")
        for limit in (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8):
            print(f"  {limit:5.2f}  {np.mean(same < limit):10.3f}  {np.mean(others >= limit):14.3f}")
    for low, high in pairwise((0, 5, 10, 30, 60, 120)):
        inside = (seconds >= low) & (seconds <= high if high == 120 else seconds < high)
        print(f"{low} to {high} s: {together[inside].sum()} of {inside.sum()} neighbours belong together")
    return 0


def write_large(folder: Path, count: int) -> None:
    """DIFFERENT pictures of LARGE size, in bursts, and links to them, `count` files in all."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(min(count, DIFFERENT)):
        photograph = demo.PHOTOGRAPHS[number // BURST % len(demo.PHOTOGRAPHS)]
        picture = shot(demo.open_photograph(photograph), np.random.default_rng(number))
        pixels = np.asarray(picture.resize(LARGE, Image.Resampling.BICUBIC), np.int16)  # (H, W, 3)
        pixels = pixels + noise.normal(0, 5, pixels.shape).astype(np.int16)  # like a sensor's
        exif = Image.Exif()
        taken = datetime(2024, 5, 3, 14) + timedelta(minutes=number // BURST, seconds=number % BURST)
        exif[CHANGED] = f"{taken:%Y:%m:%d %H:%M:%S}"
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05d}.jpg", quality=95, exif=exif)
    for number in range(DIFFERENT, count):
        (folder / f"{number:05d}.jpg").symlink_to(f"{number % DIFFERENT:05d}.jpg")


def report_speed(options: argparse.Namespace) -> int:
    folder = options.output / "pictures"
    if not options.reuse:
        refuse_existing("measure_picks", options.output, ("pictures", "picks.csv", "page"))
        write_large(folder, options.count)
    sizes = [path.stat().st_size / 1e6 for path in folder.iterdir()][: options.count]
    words = [sys.executable, ROOT / "main.py", "select", folder, "--force", "--output"]
    words += [options.output / "picks.csv", "--page", options.output / "page", *options.option]
    start = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{len(sizes)} JPEGs of {LARGE[0]} x {LARGE[1]}, {np.mean(sizes):.1f} MB: {seconds:.1f} s, "
        f"{len(sizes) / seconds:.1f} a second, {used.ru_utime + used.ru_stime:.1f} s of processor time, "
        f"peak memory {used.ru_maxrss / 1024:.0f} MiB"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    alike = commands.add_parser("similarity", help="how well pairs are told apart")
    alike.add_argument("--data-root", type=Path, metavar="PARA", required=True)
    alike.add_argument("--count", type=int, default=1000, help="of stand-in bursts; default 1000")
    alike.set_defaults(run=report_similarity)
    speed = commands.add_parser("speed", help="main.py select on large pictures")
    speed.add_argument("--output", type=Path, metavar="DIR", required=True)
    speed.add_argument("--count", type=int, default=1000)
    speed.add_argument("--reuse", action="store_true", help="take the pictures that are there")
    speed.add_argument("--option", action="append", default=[], help="one more word for main.py select")
    speed.set_defaults(run=report_speed)
    options = parser.parse_args(arguments)
    return guarded(options.run, options)


if __name__ == "__main__":
    sys.exit(main())
