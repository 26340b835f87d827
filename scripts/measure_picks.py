"""How well `similarity` in eamb/selection/grouping.py tells series apart, and how fast `select` is.

    python scripts/measure_picks.py similarity --data-root PARA
    python scripts/measure_picks.py speed --count 1000 --output speed

similarity: how well pairs that belong together are told from others. Neighbours are real photographs of PARA
(results/picks/neighbours.csv); bursts are two stand-in shots of one photograph (docs/series.md).
speed: runs `main.py select` with a page in its own process, on 24-megapixel pictures in bursts of four, made
from the embedded photographs: DIFFERENT ones, and links to them.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score

from eamb.readers import demo
from eamb.readers.exif import CHANGED
from eamb.runtime.command import check_output, guarded
from eamb.selection.grouping import similarity, sketch

ROOT = Path(__file__).resolve().parent.parent
BURST, DIFFERENT, LARGE = 4, 32, (6000, 4000)


def shot(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """A simulated second shot of a picture, with random changes."""
    turned = picture.rotate(chance.uniform(-2, 2), Image.Resampling.BICUBIC)
    sides = np.array(picture.size)
    shown = np.rint(0.9 * chance.uniform(0.85, 1) * sides)  # smaller, so that the view can move
    room = (sides - shown) / 2
    corner = np.rint(room + chance.uniform(-1, 1, 2) * np.minimum(room, 0.06 * sides))
    part = demo.expose(turned.crop((*corner, *(corner + shown))), chance.uniform(-0.7, 0.7))
    if chance.random() < 0.4:
        part = demo.blur(part, chance.uniform(0.002, 0.02) * part.width)
    if chance.random() < 0.4:
        part = demo.add_noise(part, chance.uniform(5, 30))
    return demo.compress(part, int(chance.integers(50, 95)))


def report_similarity(options: argparse.Namespace) -> int:
    images = options.data_root / "imgs"

    def read(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")

    def alike(pairs: Iterable[tuple[Image.Image, Image.Image]]) -> np.ndarray:
        return np.array([similarity(sketch(one), sketch(other)) for one, other in pairs])

    pairs = pd.read_csv(ROOT / "results" / "picks" / "neighbours.csv")
    neighbours = alike([(read(images / row.first), read(images / row.second)) for row in pairs.itertuples()])
    together = pairs["same"].to_numpy(bool)
    chance = np.random.default_rng(0)
    paths = chance.choice(sorted(images.rglob("*.jpg")), options.count, replace=False)
    pictures = [read(path) for path in paths]
    shots = alike((shot(one, chance), shot(one, chance)) for one in pictures)
    kinds = {"neighbours": (neighbours[together], neighbours[~together])}
    kinds["bursts"] = (shots, alike(pairwise(pictures)))
    for name, (same, others) in kinds.items():
        print(f"{name}: {len(same)} pairs that belong together, {len(others)} that do not", end="; ")
        area = roc_auc_score([1] * len(same) + [0] * len(others), [*same, *others])
        print(f"area under the curve {area:.4f}\n  limit  torn apart  joined wrongly")
        for limit in (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8):
            print(f"  {limit:5.2f}  {np.mean(same < limit):10.3f}  {np.mean(others >= limit):14.3f}")
    for low, high in pairwise((0, 5, 10, 30, 60, 120)):
        inside = pairs["seconds"].between(low, high, inclusive="both" if high == 120 else "left")
        print(f"{low} to {high} s: {together[inside].sum()} of {inside.sum()} neighbours belong together")
    return 0


def write_large(folder: Path, count: int) -> None:
    """DIFFERENT pictures of LARGE size, in bursts, and links to them, `count` files in all."""
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number >= DIFFERENT:
            path.symlink_to(f"{number % DIFFERENT:05d}.jpg")
            continue
        photograph = demo.PHOTOGRAPHS[number // BURST % len(demo.PHOTOGRAPHS)]
        picture = shot(demo.open_photograph(photograph), np.random.default_rng(number))
        picture = demo.add_noise(picture.resize(LARGE, Image.Resampling.BICUBIC), 5)  # like sensor noise
        exif = Image.Exif()
        exif[CHANGED] = f"{datetime(2024, 5, 3, 14, number // BURST, number % BURST):%Y:%m:%d %H:%M:%S}"
        picture.save(path, quality=95, exif=exif)


def report_speed(options: argparse.Namespace) -> int:
    folder = options.output / "pictures"
    check_output("measure_picks", options.output, ("pictures", "picks.csv", "page"), force=False)
    write_large(folder, options.count)
    sizes = [path.stat().st_size / 1e6 for path in folder.iterdir()]
    words = [sys.executable, ROOT / "main.py", "select", folder, "--force", "--output"]
    words += [options.output / "picks.csv", "--page", options.output / "page"]
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
    speed.add_argument("--count", type=int, default=1000, help="pictures; default 1000")
    speed.set_defaults(run=report_speed)
    options = parser.parse_args(arguments)
    return guarded(options.run, options)


if __name__ == "__main__":
    sys.exit(main())
