"""What tests share: networks and sets so small that a run takes half a second."""

import contextlib
import csv
import ctypes
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import Batch, load_dataset
from eamb.network.outputs import EMOTIONS, Output
from eamb.readers.para import PARA_EMOTIONS, PARA_TRAINING_VOTES, VOTE_COLUMNS
from eamb.readers.rated import SPLITS, DataOptions
from eamb.training import run as run_module
from eamb.training.run import Run
from eamb.weights import checkpoint
from main import main

ROOT = Path(__file__).parents[1]
BACKBONE = "test_efficientnet"  # timm's own for tests: 0.1 M parameters, maps at strides 4 to 32
WORDS = [
    *("data.size=64", "data.workers=0", "train.batch_size=8", "train.epochs=1", "evaluate.bootstrap=0"),
    *(f"model.backbone={BACKBONE}", "model.width=16", "model.guided_width=8", "model.guided_hidden=4"),
    *("model.head_width=8", "model.imagenet=none", "train.checkpoint_minutes=1000", "train.device=cpu"),
]
UNTRAINED = "model.emotion_weights=none"
SHORT = ("train.score_test=false", UNTRAINED)
STILL = ("optimizer.learning_rate=0", "train.score_test=false")  # what a run starts with is what it ends with
LONG = [  # a checkpoint after each of four steps an epoch
    *("train.epochs=2", "train.batch_size=4", "train.checkpoint_minutes=0", "train.clip=0.5"),
    *("optimizer.name=adamw", "optimizer.schedule=one_cycle", "optimizer.learning_rate=1e-2"),
]


def without_drawing():
    """Leaves empty files for figures, which would take half of a tiny run's time."""

    def touch(*arguments, **named):
        given = (*arguments, *named.values())
        next(each for each in given if isinstance(each, Path) and each.suffix == ".png").touch()

    names = ("save_curves", "save_scatter", "save_confusion", "save_emotion_bars", "save_reliability")
    return mock.patch.multiple("eamb.evaluation.figures", **dict.fromkeys(names, touch))


def train(dataset: str, root: Path, output: Path, *words: str, draw: bool = False) -> int:
    """One tiny training through main.py, options and key=value words in any order; its exit code."""
    options = ["--dataset", dataset, "--data-root", str(root), "--output", str(output)]
    with contextlib.nullcontext() if draw else without_drawing():
        return main(["train", *WORDS, *options, *map(str, words)])


def evaluate(weights: Path, dataset: str, root: Path, output: Path, *words: str) -> int:
    options = ["--dataset", dataset, "--data-root", str(root), "--checkpoint", str(weights)]
    fixed = ["data.workers=0", "evaluate.bootstrap=0", "train.device=cpu"]
    with without_drawing():
        return main(["evaluate", *options, "--output", str(output), "--force", *fixed, *map(str, words)])


def train_and_copy(dataset: str, root: Path, output: Path, *words: str) -> dict[str, Path]:
    """A training, and what would be left of it if it had died in its second epoch.

    Returns:
        "whole" -> the folder of the training; "start", "step 1", ... "validation" -> a copy of the folder as
        it was before the epoch's first step, behind a step, or before validation.
    """
    places = {"whole": output}
    train_epoch, save, validate = run_module.train_epoch, Run.save_if_due, run_module.validate

    def copy(run: Run, place: str) -> None:
        if run.epoch == 1:
            places[place] = shutil.copytree(output, output.with_name(f"{output.name}, {place}"))

    def before(function, place: str):
        return lambda run, *arguments: (copy(run, place), function(run, *arguments))[1]

    def after_step(run, *arguments):
        save(run, *arguments)
        copy(run, f"step {run.totals.step}")

    with (
        mock.patch.object(run_module, "train_epoch", before(train_epoch, "start")),
        mock.patch.object(Run, "save_if_due", after_step),
        mock.patch.object(run_module, "validate", before(validate, "validation")),
    ):
        assert train(dataset, root, output, *words) == 0
    return places


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(path).tensors


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """Without BatchNorm's statistics, which move even where nothing is learned."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in tensors(path).items() if not name.endswith(statistics)}


def same(first: dict, second: dict, only: str = "") -> bool:
    names = [name for name in first if name.startswith(only)]
    return bool(names) and all(torch.equal(first[name], second[name]) for name in names)


def assert_same_run(first: Path, second: Path) -> None:
    """Equal in every bit that matters: weights, optimizer, progress, best, log and test predictions."""
    for name in ("last.pt", "best.pt"):
        (weights, state), (others, other_state) = (
            checkpoint.load_training(run / name) for run in (first, second)
        )
        assert same(weights.tensors, others.tensors)
        assert without_versions(weights.description) == without_versions(others.description)
        assert np.array_equal(weights.training_ids, others.training_ids)
        assert np.array_equal(weights.emotion_training_ids, others.emotion_training_ids)
        assert plain(state) == plain(other_state)
    for name in ("metrics.jsonl", "test/predictions.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    metrics = [without_versions(read_json(run / "test" / "metrics.json")) for run in (first, second)]
    assert metrics[0] == metrics[1]


def plain(content):
    """With a type, a shape and bytes for each tensor, which can be compared."""
    if isinstance(content, dict):
        return {name: plain(value) for name, value in content.items()}
    if not isinstance(content, torch.Tensor):
        return content
    return content.dtype, content.shape, content.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def without_versions(content: dict) -> dict:
    """A commit may have come between."""
    return {name: value for name, value in content.items() if name != "versions"}


def scorers_built_once(module) -> Callable:
    """A fixture that spares the time in which each run of a command in `module` builds its network."""

    def built_once() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "Scorer", functools.cache(module.Scorer))
            yield

    return pytest.fixture(scope="module", autouse=True)(built_once)


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


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
    write_table(root / "ratings.csv", [list(table), *zip(*table.values(), strict=True)])
    return root


def write_table(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_pairs(root: Path, series: int = 12) -> Path:
    """A set for --dataset pairs: series of three photographs, the brighter the better; a third a split."""
    tables = {split: [("series", "first", "second", "preference")] for split in SPLITS}
    (root / "p").mkdir(parents=True)
    for number in range(series):
        chance = np.random.default_rng(number)
        names = [f"p/{number:02d}_{letter}.png" for letter in "abc"]
        lights = dict(zip(names, chance.permutation([40, 110, 180]), strict=True))
        for name, light in lights.items():
            pixels = (chance.integers(0, 60, (16, 16, 3)) + light).astype(np.uint8)
            Image.fromarray(pixels).resize((96, 64)).save(root / name)
        pairs = combinations(names, 2)
        tables[SPLITS[number % 3]] += [(f"s{number}", a, b, int(lights[a] > lights[b])) for a, b in pairs]
    for split, rows in tables.items():
        write_table(root / f"{split}.csv", rows)
    return root


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


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


def fraction(text: str) -> float:
    """What the hash of an id says, from 0 to 1."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def refused(words: str, *arguments, error: type = ValueError, load: Callable = load_dataset, **options):
    """Loading must raise one sentence that begins with the area and has these words."""
    options = {"options": DataOptions(**options)} if options else {}
    with pytest.raises(error) as caught:
        load(*arguments, **options)
    text = str(caught.value)
    assert text.startswith("datasets: ") and "\n" not in text
    assert words in text


def nfd(text: str) -> str:
    """The text as macOS writes it, with each accent as a letter of its own."""
    return unicodedata.normalize("NFD", text)


def write_noise(folder: Path, names: Iterable[str]) -> None:
    """A different picture of 8 x 6 pixels for each name, so that no two are twins by accident."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def make_csv(root: Path, header=("path", "score"), rows=None, name="ratings.csv", count=40) -> Path:
    """`count` pictures with scores from 1.2 to 4.8, or the given rows."""
    if rows is None:
        rows = [[f"pics/{i}.png", 1.2 + 3.6 * i / (count - 1)] for i in range(count)]
    write_table(root / name, [header, *rows])
    write_noise(root, [row[list(header).index("path")] for row in rows])
    return root


def make_para(
    root: Path, bins: bool = False, emotions: bool = True, twins: str = "", voted: Iterable[int] = ()
) -> Path:
    """65 pictures in two sessions with scores 1 + i/100, the last 5 for testing.

    twins: lines of the list. voted: numbers of the training pictures with votes in the csv beside; picture i
    has i votes of 2 and 100 - i of 1. The test pictures then have such votes too.
    """
    header = ["imageName", "sessionId", "aestheticScore_mean"]
    header += [*VOTE_COLUMNS] * bins
    header += [f"imgEmotion_{emotion}" for emotion in PARA_EMOTIONS] * emotions
    rows = [
        [f"p{i}_.jpg", f"session{i % 2}", f"{1 + i / 100:.2f}"]
        + [i % 3, 0, 0, 1, 2, 0, 0, 0, 0] * bins
        + [3, 0, 0, 0, 1, 0, 0, i % 2] * emotions
        for i in range(65)
    ]
    write_table(root / "annotation" / "PARA-GiaaTrain.csv", [header, *rows[:60]])
    if voted:
        header += VOTE_COLUMNS
        rows = [[*row, 100 - i, 0, i, *[0] * 6] for i, row in enumerate(rows)]
        picture = [*header[:2], *VOTE_COLUMNS]
        known = [[*rows[i][:2], *rows[i][-9:]] for i in voted]
        write_table(root / "annotation" / PARA_TRAINING_VOTES, [picture, *known])
    write_table(root / "annotation" / "PARA-GiaaTest.csv", [header, *rows[60:]])
    if twins:
        (root / "annotation" / "identical_images.txt").write_text(twins)
    write_noise(root / "imgs", [f"{session}/{name}" for name, session, *_ in rows])
    return root


AVA_ROWS = [
    "1 954184 0 0 4 8 41 56 10 3 4 0 0 0 1396",
    "2 953349 0 0 0 0 5 0 0 0 0 0 0 0 1396",
    *(f"{row} {row} 1 1 1 1 1 1 1 1 1 1 0 0 7" for row in range(3, 60)),
]


def make_ava(root: Path) -> Path:
    (root / "aesthetics_image_lists").mkdir(parents=True)
    (root / "AVA.txt").write_text("\n".join(AVA_ROWS) + "\n")
    (root / "aesthetics_image_lists" / "generic_test.jpgl").write_text("954184\n953349\n404\n")
    write_noise(root / "images", [f"{row.split()[1]}.jpg" for row in AVA_ROWS])
    return root


def make_iae(root: Path, labels=(0, 1, 1, 0)) -> Path:
    """Three splits of four pictures; the two lists of a split are not in the same order."""
    write_noise(root / "images", [f"{i}.jpg" for i in range(12)])
    for k, split in enumerate(SPLITS):
        ids = range(4 * k, 4 * k + 4)
        ratings, emotions = ([*zip(ids, values, strict=True)] for values in (labels, (3, 7, 2, 0)))
        for kind, rows in (("aes", ratings), ("emo", emotions[::-1])):
            (root / f"{split}_{kind}_list.txt").write_text("".join(f"{i} {value}\n" for i, value in rows))
    return root


def make_fi(root: Path, name="{emotion}/{i}.jpg", count=5, emotions=EMOTIONS, start=0) -> Path:
    """`count` pictures of each emotion, all different; `name` says where they lie."""
    numbers = range(start, start + count)
    write_noise(root, [name.format(emotion=emotion, i=i) for emotion in emotions for i in numbers])
    return root


def emoset_entries(start: int, count: int = 8) -> list[list[str]]:
    """[label, id, picture, annotation], the emotions in turn."""
    pairs = [(i, EMOTIONS[i % 8]) for i in range(start, start + count)]
    return [[e, f"{e}_{i}", f"image/{e}/{e}_{i}.jpg", f"annotation/{e}_{i}.json"] for i, e in pairs]


def make_emoset(root: Path) -> Path:
    """16 train, 8 val and 8 test pictures; the codes are not in the order of EMOTIONS."""
    files = {"info": {"label2idx": {label: code for code, label in enumerate(EMOTIONS[::-1])}}}
    files |= {"train": emoset_entries(0, 16), "val": emoset_entries(16), "test": emoset_entries(24)}
    write_noise(root, [entry[2] for split in SPLITS for entry in files[split]])
    for name, content in files.items():
        write_json(root / f"{name}.json", content)
    return root
