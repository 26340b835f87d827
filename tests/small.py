"""What the tests of whole runs share: a network and sets so small that a run takes a second."""

import contextlib
import csv
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets import Batch
from eamb.network.outputs import Output
from main import main

ROOT = Path(__file__).parents[1]
BACKBONE = "test_efficientnet"  # timm's own for tests: 0.1 M parameters, maps at strides 4 to 32
WORDS = [
    *("data.size=64", "data.workers=0", "train.batch_size=8", "train.epochs=1", "evaluate.bootstrap=0"),
    *(f"model.backbone={BACKBONE}", "model.width=16", "model.guided_width=8", "model.guided_hidden=4"),
    *("model.head_width=8", "model.imagenet=none", "train.checkpoint_minutes=1000", "train.device=cpu"),
]
UNTRAINED = "model.emotion_weights=none"


def train(dataset: str, root: Path, output: Path, *words: str) -> int:
    """One tiny training through main.py, options and key=value words in any order; its exit code."""
    options = ["--dataset", dataset, "--data-root", str(root), "--output", str(output)]
    return main(["train", *WORDS, *options, *map(str, words)])


def evaluate(checkpoint: Path, dataset: str, root: Path, output: Path, *words: str) -> int:
    options = ["--dataset", dataset, "--data-root", str(root), "--checkpoint", str(checkpoint)]
    fixed = ["data.workers=0", "evaluate.bootstrap=0", "train.device=cpu"]
    return main(["evaluate", *options, "--output", str(output), "--force", *fixed, *map(str, words)])


class Toy(torch.nn.Module):
    """A linear network without BatchNorm, whose pictures do not know of each other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, images: torch.Tensor) -> Output:
        pooled = images.mean(dim=(2, 3))  # (N, 3)
        return Output(self.linear(pooled), pooled, pooled)


def squared_error(output: Output, batch: Batch) -> torch.Tensor:
    return (output.prediction[:, 0] - batch.scores).square().mean()


def command(*words: object, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python WORDS...` in a process of its own, one thread, warnings shown."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    arguments = [sys.executable, *map(str, words)]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Here root too may read only what permissions allow, in this thread and those that it starts."""
    if os.geteuid():
        yield
        return
    system, thread, powers = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert system.capget(thread, powers) == 0
    before = powers[0]
    powers[0] &= ~0b110  # the effective CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert system.capset(thread, powers) == 0
    try:
        yield
    finally:
        powers[0] = before
        assert system.capset(thread, powers) == 0


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Smooth random pictures of 64 x 64 pixels; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{seed}_{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        colours = np.random.default_rng((seed, number)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC).save(folder / name)
    return names


def write_csv(root: Path, columns: dict[str, list], count: int = 24, seed: int = 0) -> Path:
    """A set for --dataset csv: pictures and a table of them with the given columns; two thirds are train."""
    names = write_pictures(root / "images", count, seed)
    splits = ["train" if i % 6 < 4 else "val" if i % 6 == 4 else "test" for i in range(count)]
    table = {"path": names, "split": splits, **columns}
    with (root / "ratings.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return root


def write_pairs(root: Path, series: int = 12) -> Path:
    """A set for --dataset pairs: series of three photographs, the brighter the better; a third a split."""
    tables = {split: [] for split in ("train", "val", "test")}
    (root / "p").mkdir(parents=True)
    for number in range(series):
        chance = np.random.default_rng(number)
        names = [f"p/{number:02d}_{letter}.png" for letter in "abc"]
        for name, light in zip(names, chance.permutation([40, 110, 180]), strict=True):
            pixels = (chance.integers(0, 60, (16, 16, 3)) + light).astype(np.uint8)
            Image.fromarray(pixels).resize((96, 64)).save(root / name)
        means = [np.asarray(Image.open(root / name)).mean() for name in names]
        rows = [(a, b, int(means[a] > means[b])) for a in range(3) for b in range(a + 1, 3)]
        split = ("train", "val", "test")[number % 3]
        tables[split] += [(f"s{number}", names[a], names[b], better) for a, b, better in rows]
    for split, rows in tables.items():
        with (root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("series", "first", "second", "preference"), *rows])
    return root


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict:
    def refuse(word: str):
        raise AssertionError(f"{path} holds {word}, which is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def read_log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def grey_image(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def spot_map(row: int, column: int, shape: tuple[int, int] = (28, 28)) -> np.ndarray:
    """A map that is 1 in one cell and 0 elsewhere."""
    emotion_map = np.zeros(shape)
    emotion_map[row, column] = 1
    return emotion_map
