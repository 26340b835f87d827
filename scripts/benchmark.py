"""Images per second on this machine: each variant beside the reference path, in alternating runs.

    python scripts/benchmark.py [--quick] [--only forward,step,...] [--output benchmark.json]
    python scripts/benchmark.py --tables benchmark.json [--readme docs/performance.md]     # of an earlier run

The parts: forward, step (training), loader, predict (files to scores), formats (of cameras and phones), start
(of `main.py predict`), engines (PyTorch and OpenVINO), scaled (what scaled decoding does to scores), table (a
set of AVA's size), page.

docs/performance.md says what the reference path is and how to read the tables. Every variant runs in its own
process, so that its peak memory can be measured; the processes take turns, with one timed run per round.
Rates are from the median over the rounds. Long tables are measured a few rows at a time, each time together
with the reference; ratios are to the nearest one above. Differences (in prediction, logits and map; for
`predict` in scores) are from the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from datasets import PictureSet, load_dataset
from eamb.files import written_whole
from eamb.inference.scorer import Scorer
from eamb.network import backbones
from eamb.network.backbones import DepthwiseConv2d, convolve, recompute_blocks
from eamb.network.fast import prepare_for_inference
from eamb.network.outputs import PRECISIONS, Output, Scale
from eamb.readers.decoding import PICTURE_ENDINGS, decode, normalise
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.readers.rated import RatedSet
from eamb.runtime import engine
from eamb.runtime.command import check_output, guarded
from eamb.runtime.precision import computes_bf16
from eamb.weights import checkpoint
from eamb.weights.shipped import SHIPPED
from EAMBNet import EAMBNet, Fusion, build_model, resize
from losses import emd_loss
from scripts.export import embedded_pictures
from scripts.samples import noisy, photograph, write_each

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 5  # variants measured beside the reference; a training step holds gigabytes
START = "forkserver"  # how processes start; the peak memory of spawned ones would include the parent's
FORWARD_STEPS = ("channels last", "early 1x1 convolution", "folding", "kept memory", "bf16")
TRAINING_STEPS = ("known maps", "channels last", "early 1x1 convolution", "kept memory", "fused optimizer")
TRAINING_STEPS += ("bf16", "fast depthwise gradients", "recomputed blocks")
BF16_STEPS = ("bf16", "fast depthwise gradients")  # left out where the processor emulates bf16

Steps = tuple[str, ...]  # optimisations added to the reference path


class Variant(NamedTuple):
    """One way to compute what a table measures; the first variant of a table is the reference.

    make: called with the arguments in the variant's own process; returns the function that is timed.
    images: pictures in one run; 0: seconds are shown instead of a rate.
    flops: operations for one picture; 0: not counted.
    precision: that of the ceiling it is compared with; int8 has no ceiling.
    """

    name: str
    make: Callable
    arguments: tuple
    images: int = 0
    flops: float = 0.0
    precision: str = "fp32"


Turn = tuple[float, dict[str, np.ndarray], float]  # seconds, output by name, GB of peak memory
Job = tuple[str, list[Variant]]  # a table's title and its rows


def cumulative(steps: Steps) -> dict[str, Steps]:
    """The reference, and for each step a row with this step and all before it."""
    if not computes_bf16(CPU):
        steps = tuple(step for step in steps if step not in BF16_STEPS)
    return {"reference": ()} | {f"+ {step}": steps[: i + 1] for i, step in enumerate(steps)}


def with_steps(rows: dict[str, Steps], make: Callable, size: tuple, images: int, flops=0.0) -> list[Variant]:
    """A variant for each row; `make` takes the row's steps as its last argument."""
    return [
        Variant(name, make, (*size, steps), images, flops, "bf16" if "bf16" in steps else "fp32")
        for name, steps in rows.items()
    ]


class ReferenceFusion(Fusion):
    """The published order: the coarsest map is convolved after its resize, at 64 times as many positions."""

    def forward(self, detail: Tensor, context: list[Tensor]) -> Tensor:
        fine, middle, coarse = context
        guided = self.guide_fine(self.detail(detail), self.context_fine(fine))  # (N, 56, H/8, W/8)
        guided = self.expand(self.guide_middle(guided, self.context_middle(middle)))  # (N, 256, H/8, W/8)
        semantic = resize(coarse, guided.shape[2:], align_corners=True)  # (N, 2048, H/8, W/8)
        semantic = F.relu(self.semantic_norm(self.semantic_conv(semantic)))  # (N, 256, H/8, W/8)
        return self.merge(torch.cat([guided, semantic], dim=1))


class PlainDepthwise(DepthwiseConv2d):
    """With torch's own gradients, in bfloat16 too."""

    def forward(self, images: Tensor) -> Tensor:
        return convolve(images, self.weight, self.bias, self.stride[0], self.pads(*images.shape[2:]))


def apply_shared(network: EAMBNet, images: Tensor, steps: Steps) -> tuple[EAMBNet, Tensor]:
    """Applies the steps that forward and training have in common."""
    if "kept memory" in steps:
        engine.keep_memory(CPU)
    if "early 1x1 convolution" not in steps:
        network.fusion.__class__ = ReferenceFusion
    if "channels last" in steps:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    return network, images


def networks(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Name, picture side in pixels and batch size for forward and training."""
    return [("lite", 224, 4)] if options.quick else [("paper", 512, 4), ("lite", 224, 16)]


def build(name: str) -> EAMBNet:
    """The paper's network with random weights and BatchNorm statistics, or Lite with the shipped weights."""
    if name == "lite":
        return checkpoint.load_weights(SHIPPED["lite"]).build()
    torch.manual_seed(0)
    network = build_model()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.75, 1.25)
            nn.init.normal_(layer.bias, std=0.1)
    return network.eval()


def flops(network: nn.Module, side: int, *emotions: tuple[Tensor, Tensor]) -> float:
    """Operations of one picture's forward pass; a multiply-add counts as 2."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side), *emotions)
    return counter.get_total_flops()


def known_emotions(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Logits (N, 8) and maps (N, 1, h, w), as kept maps are given to the network."""
    return torch.zeros(count, 8), torch.ones(count, 1, side // 8, side // 8)


def batch_of(side: int, count: int) -> Tensor:
    """(count, 3, side, side) uint8: the demo set's photographs in turn."""
    pictures = embedded_pictures(side)
    return pictures[torch.arange(count) % len(pictures)].contiguous()


def picture_set(path: str, side: int) -> PictureSet:
    """A training set of one picture."""
    scale = Scale("score", 0.0, 1.0, 0.5)
    return PictureSet(RatedSet("one", "train", "", [path], [path], np.zeros(1), scale), side, flip_seed=0)


# The parts. Each yields its tables; `make_...` builds the function that a variant times.


def forward_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    for name, side, batch in networks(options):
        size, operations = (name, side, batch), flops(build(name), side)
        rows = with_steps(cumulative(FORWARD_STEPS), make_forward, size, batch, operations)
        yield f"forward, {name}, {side} px, batch {batch}", rows


def make_forward(name: str, side: int, batch: int, steps: Steps) -> Callable[[], Output]:
    network = build(name)
    mean, std = backbones.normalisation(network.arguments["backbone"])
    network, images = apply_shared(network, normalise(batch_of(side, batch), mean, std).contiguous(), steps)
    if "folding" in steps:
        network = prepare_for_inference(network, "bf16" if "bf16" in steps else "fp32")
    return torch.inference_mode()(lambda: network(images))


def engines_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    """PyTorch with and without the steps, and OpenVINO on files that scripts/export.py writes."""
    if missing := [name for name in ("onnx", "openvino", "nncf") if not find_spec(name)]:
        print(f"benchmark: engines is left out: install {' '.join(missing)}")
        return
    pictures = [str(folder / f"{number}.png") for number in range(len(PHOTOGRAPHS))]
    for one, path in zip(PHOTOGRAPHS, pictures, strict=True):
        open_photograph(one).save(path)
    export = [str(ROOT / "scripts/export.py"), str(SHIPPED["lite"])]
    lite, int8 = str(folder / "lite.onnx"), str(folder / "lite.int8")
    make_command(*export, lite)()
    make_command(*export, int8, "--int8", "--calibrate", *pictures)()
    name, side, batch = networks(options)[-1]
    operations = flops(build(name), side)
    in_torch = {"reference": (), "PyTorch fp32": FORWARD_STEPS[:-1]}
    rows = with_steps(in_torch, make_forward, (name, side, batch), batch, operations)
    rows.append(Variant("OpenVINO fp32", make_openvino, (lite, side, batch), batch, operations))
    rows.append(Variant("OpenVINO int8", make_openvino, (int8, side, batch), batch, operations, "int8"))
    yield f"engines, {name}, {side} px, batch {batch}", rows


def make_openvino(path: str, side: int, batch: int) -> Callable[[], Output]:
    from eamb.inference.exported import Exported

    return partial(Exported(path).run, batch_of(side, batch))


def step_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    for name, side, batch in networks(options):
        # Three times the forward pass: the counter would count depthwise gradients as dense ones.
        operations = 3 * flops(build(name), side, known_emotions(1, side))
        # Only EfficientNet-Lite has depthwise convolutions.
        steps = tuple(step for step in TRAINING_STEPS if name == "lite" or step != "fast depthwise gradients")
        rows = cumulative(steps)
        if computes_bf16(CPU):
            rows["the same in fp32"] = tuple(step for step in steps if step != "bf16")
        title = f"step of training, {name}, {side} px, batch {batch}"
        yield title, with_steps(rows, make_step, (name, side, batch), batch, operations)


def make_step(name: str, side: int, batch: int, steps: Steps) -> Callable[[], None]:
    network, images = apply_shared(build(name).train(), torch.randn(batch, 3, side, side), steps)
    if "fast depthwise gradients" not in steps:
        for layer in network.modules():
            if isinstance(layer, DepthwiseConv2d):
                layer.__class__ = PlainDepthwise
    emotions = (known_emotions(batch, side),) if "known maps" in steps else ()
    if "recomputed blocks" in steps:
        recompute_blocks(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused="fused optimizer" in steps)
    outputs = network.arguments["outputs"]
    target = torch.full((batch, outputs), 1 / outputs)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in steps):
            prediction = network(images, *emotions).prediction
        loss = emd_loss(prediction, target) if outputs > 1 else F.mse_loss(prediction, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def loader_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    original, prepared = folder / "original.jpg", folder / "prepared.jpg"
    photograph(800, 600).save(original, quality=92)
    Image.fromarray(decode(original, 512)).save(prepared, quality=95, subsampling=0)
    kinds = {"reference": (original, False), "ours, bit-identical": (original, True)}
    kinds["from a prepared copy"] = (prepared, True)
    rows = [Variant(name, make_loader, (512, 20, *kind), 20) for name, kind in kinds.items()]
    yield "loader, one process, to 512 px", rows


def make_loader(side: int, count: int, path: Path, ours: bool) -> Callable[[], None]:
    """What a loader's worker does, in one process: a batch that repeats one file."""
    torch.set_num_threads(1)  # as torch gives a worker
    if ours:
        engine.keep_memory(CPU)  # as in a training on a CPU, from which workers are forked
        pictures = picture_set(str(path), side)
        return lambda: pictures.collate([pictures[0] for _ in range(count)])

    def with_pillow() -> Tensor:
        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
        return (torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5

    return lambda: torch.stack([with_pillow() for _ in range(count)])


def predict_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    kinds = [("800x600", (800, 600), 32 if options.quick else 256, ("fast network", "bf16"))]
    if not options.quick:
        kinds.append(("24 megapixels", (6000, 4000), 24, ("fast network", "scaled decoding", "bf16")))
    for name, size, count, steps in kinds:
        path = folder / f"{name}.jpg"
        photograph(*size).save(path, quality=95)
        title = f"predict, lite, {name} JPEG of {path.stat().st_size / 1e6:.1f} MB, files to scores"
        yield title, with_steps(cumulative(steps), make_predict, ((path,) * count,), count)


def formats_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    count, steps = 4 if options.quick else 24, ("fast network", "scaled decoding")
    files = write_each(folder, photograph(6000, 4000))
    rows = [Variant(kind, make_predict, ((path,) * count, steps), count) for kind, path in files.items()]
    yield "predict, lite, 24 megapixels as cameras and phones store them, files to scores", rows


def make_predict(paths: tuple[Path, ...], steps: Steps) -> Callable[[], dict[str, Tensor]]:
    """`main.py predict` without start-up: files to scores, on as many threads as torch uses."""
    precision = "bf16" if "bf16" in steps else "fp32"
    scorer = Scorer(precision=precision, workers=-1, exact="scaled decoding" not in steps)
    if "fast network" not in steps:
        reference = build("lite")
        reference.fusion.__class__ = ReferenceFusion
        reference.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())  # channels first
        scorer.network.networks[0].model = reference
    return lambda: {"score": torch.tensor([one.score for one in scorer.score_all(paths)])}


def scaled_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    """The same network with and without scaled decoding, on different pictures: does it change scores?"""
    sources = [open_photograph(one) for one in PHOTOGRAPHS]
    if options.pictures:
        paths = sorted(path for path in options.pictures.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)
        sources = [Image.fromarray(decode(path)) for path in paths]
    if not sources:
        raise ValueError(f"benchmark: {options.pictures} holds no pictures ({', '.join(PICTURE_ENDINGS)})")
    paths = [folder / f"{number:05d}.jpg" for number in range(len(sources))][: 2 if options.quick else None]
    for path, image in zip(paths, sources, strict=False):
        scale = (24e6 / (image.width * image.height)) ** 0.5
        large = noisy(image, round(scale * image.width), round(scale * image.height))
        large.save(path, quality=95)
    rows = {"exact": ("fast network",), "scaled": ("fast network", "scaled decoding")}
    title = f"scaled decoding, lite, {len(paths)} pictures enlarged to 24 megapixels"
    yield title, with_steps(rows, make_predict, (tuple(paths),), len(paths))


def start_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    path = folder / "one.jpg"
    photograph(800, 600).save(path, quality=92)
    bare = Variant("python -c 'import torch, timm'", make_command, ("-c", "import torch, timm"))
    words = (str(ROOT / "main.py"), "predict", str(path))
    whole = Variant("python main.py predict one.jpg", make_command, words)
    yield "start, from a new process to the score of one 800x600 JPEG", [bare, whole]


def make_command(*words: str) -> Callable[[], None]:
    """Runs a new Python process from start to end."""

    def run() -> None:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise ValueError(f"benchmark: python {' '.join(words)} failed: {done.stderr.strip()}")

    return run


def table_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    """AVA.txt and its pictures, which are empty files: loading a set only lists them."""
    numbers = range(1, (1_000 if options.quick else 255_530) + 1)
    (folder / "images").mkdir()
    for number in numbers:
        (folder / "images" / f"{number}.jpg").touch()
    rows = (f"{number} {number} 0 1 5 17 38 36 15 6 5 1 1 22 1396" for number in numbers)
    (folder / "AVA.txt").write_text("\n".join(rows))
    (folder / "generic_test.jpgl").write_text("\n".join(map(str, numbers[: len(numbers) // 13])))
    loading = Variant("load_dataset", make_loading, (str(folder),))
    yield f"table, {len(numbers):,} rows to a ready data set", [loading]


def make_loading(folder: str) -> Callable[[], dict[str, int]]:
    return lambda: {split: len(rated) for split, rated in load_dataset("ava", folder).items()}


def page_jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    if not find_spec("playwright"):
        return print("benchmark: page is left out: install playwright, and Chromium")
    from scripts.page_speed import make_opening, write_large_page

    write_large_page(folder, count := 1_000 if options.quick else 10_000, Scorer())
    rows = [Variant(name, make_opening, (folder, name)) for name in ("open", "open, scroll to the end")]
    yield f"page, {count:,} photographs in Chromium; memory of the page's process", rows


def make_ceiling(kind: str) -> Callable[[], None]:
    """The highest speed to expect: that of a 3x3 convolution with 256 channels at 64x64."""
    placed = {"dtype": PRECISIONS[kind], "memory_format": torch.channels_last}
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(**placed)
    images = torch.randn(4, 256, 64, 64).to(**placed)
    return torch.inference_mode()(lambda: conv(images))


OPERATIONS = 2 * 256 * 256 * 9 * 64 * 64  # of the ceiling, for one picture
CEILINGS = [Variant(kind, make_ceiling, (kind,), 4, OPERATIONS, kind) for kind in ("fp32", "bf16")]
JOBS = (forward_jobs, step_jobs, loader_jobs, predict_jobs, formats_jobs, start_jobs, engines_jobs)
JOBS += (scaled_jobs, table_jobs, page_jobs)
PARTS = {jobs.__name__.removesuffix("_jobs"): jobs for jobs in JOBS}
QUICK_PARTS = ("forward", "step", "loader", "predict")


@cache
def built(variant: Variant, threads: int) -> Callable:
    """The function that is timed, made once in the variant's own process."""
    torch.set_num_threads(threads)
    return variant.make(*variant.arguments)


def take_turn(variant: Variant, threads: int) -> Turn:
    names = {"run": built(variant, threads), "outputs": []}
    timer = Timer("outputs[:] = [run()]", globals=names, num_threads=threads)
    seconds = timer.timeit(1).median  # timeit also runs it twice before, as warm-up
    [output] = names["outputs"]
    fields = output._asdict() if isinstance(output, Output) else output if isinstance(output, dict) else {}
    arrays = {name: np.asarray(value, np.float64) for name, value in fields.items()}
    return seconds, arrays, float(arrays.pop("memory_gb", engine.peak_memory(CPU)))


def measure(variants: list[Variant], rounds: int, threads: int) -> list[list[Turn]]:
    """Each variant's turns, one a round, in a process of its own."""
    turns = [[] for _ in variants]
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, get_context(START))) for _ in variants]
        wait([pool.submit(os.getpid) for pool in pools])  # all processes import in parallel
        for _ in range(rounds):  # one after the other: together they may need too much memory
            for pool, variant, own in zip(pools, variants, turns, strict=True):
                own.append(pool.submit(take_turn, variant, threads).result())
    return turns


def as_row(variant: Variant, turns: list[Turn], reference: Variant, reference_turns: list[Turn]) -> dict:
    """A variant's figures for the json; `reference_turns` are the reference's in the same rounds."""
    seconds, output, expected = [turn[0] for turn in turns], turns[-1][1], reference_turns[-1][1]
    differences = {name: np.abs(output[name] - expected[name]) for name in output if name in expected}
    rate = variant.images / median(seconds)
    ratios = [turn[0] / value for turn, value in zip(reference_turns, seconds, strict=True)]
    return {
        "variant": variant.name,
        "images_per_second": rate or None,
        "spread": (max(seconds) - min(seconds)) / median(seconds),
        "ratio": median(ratios) * (variant.images / reference.images if variant.images else 1),
        "gflop_per_second": rate * variant.flops / 1e9 or None,
        "share_of_ceiling": None,
        "memory_gb": None if variant.make is make_command else turns[-1][2],  # its child process's is unknown
        "differences": {name: float(values.max()) for name, values in differences.items()},
        "mean_differences": {name: float(values.mean()) for name, values in differences.items()},
        "seconds": seconds,
    }


def measure_job(title: str, variants: list[Variant], rounds: int, threads: int) -> dict:
    """A table for the json."""
    reference, *others = variants
    peaks, rows = {}, []
    if reference.flops:
        ceilings = [one for one in CEILINGS if one.precision == "fp32" or computes_bf16(CPU)]
        for ceiling, turns in zip(ceilings, measure(ceilings, rounds, threads), strict=True):
            seconds = median(turn[0] for turn in turns)
            peaks[ceiling.precision] = ceiling.images * ceiling.flops / seconds
    for first in range(0, max(1, len(others)), AT_ONCE):
        group = [reference, *others[first : first + AT_ONCE]]
        measured = measure(group, rounds, threads)
        for variant, turns in zip(group, measured, strict=True):
            row = as_row(variant, turns, reference, measured[0])
            if variant.precision in peaks:
                row["share_of_ceiling"] = row["gflop_per_second"] * 1e9 / peaks[variant.precision]
            rows.append(row)
    return {"job": title, "rounds": rounds, "ceiling": peaks, "rows": rows}


def as_table(job: dict) -> str:
    """A job as a Markdown table, without empty columns."""
    rows, table = job["rows"], []

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in rows:
        speed = shown(row["gflop_per_second"], ".0f"), shown(row["share_of_ceiling"], ".0%")
        first = row["variant"] == rows[0]["variant"]  # the reference
        largest, mean = (
            "" if first else ", ".join(f"{value:.0e}" for value in row[key].values())
            for key in ("differences", "mean_differences")
        )
        cells = {
            "": row["variant"],
            "images/s": shown(row["images_per_second"], ".1f"),
            "seconds": "" if row["images_per_second"] else f"{median(row['seconds']):.2f}",
            "range": f"{row['spread']:.0%}",
            "ratio": f"{row['ratio']:.2f}" if len(rows) > 1 else "",
            "GFLOP/s, of ceiling": ", ".join(filter(None, speed)),
            "GB": shown(row["memory_gb"], ".1f"),
            f"{', '.join(rows[-1]['differences'])}: largest difference": largest,
            "mean": mean,
        }
        table.append(cells)
    columns = [title for title in table[0] if any(cells[title] for cells in table)]
    ceilings = ", ".join(f"{kind} {value / 1e9:.0f} GFLOP/s" for kind, value in job["ceiling"].items())
    heading = f"{job['rounds']} rounds" + (f"; ceiling: {ceilings}" if ceilings else "")
    lines = [f"{job['job']} ({heading})", "", f"| {' | '.join(columns)} |".replace("|  |", "| |", 1)]
    lines.append("|---" * len(columns) + "|")
    return "\n".join(lines + [f"| {' | '.join(cells[title] for title in columns)} |" for cells in table])


def head(about: dict) -> str:
    """The machine that was measured; older reports do not name the instruction set."""
    text = f"{about['processor']}, {about['threads']} threads, torch {about['torch']}"
    return f"{text}, {about['instructions']}" if "instructions" in about else text


def run_parts(options: argparse.Namespace) -> dict:
    """Measures and prints; the report for the json."""
    parts = options.only.split(",") if options.only else QUICK_PARTS if options.quick else PARTS
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"benchmark: --only takes some of {', '.join(PARTS)}, got '{unknown[0]}'")
    if options.output:
        check_output("benchmark", options.output.parent, [options.output.name], options.force)
    cpuinfo, limit = Path("/proc/cpuinfo"), os.environ.get("ONEDNN_MAX_CPU_ISA")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    about = {
        "processor": named[1] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability() + (f" (oneDNN: {limit})" if limit else ""),
    }
    report = {"machine": about, "jobs": []}
    print(head(about))
    if not computes_bf16(CPU):
        print("without the rows in bf16, which this processor emulates")
    rounds = options.rounds or (2 if options.quick else 7)
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            for title, variants in PARTS[part](options, Path(folder)):
                if options.quick:  # of the rows with +, only the last, with all steps
                    steps = [one for one in variants if one.name.startswith("+ ")]
                    variants = [one for one in variants if one not in steps[:-1]]
                report["jobs"].append(measure_job(title, variants, rounds, options.threads))
                if options.output:  # after each table, so that an error in a later one loses none
                    write_report(report, options.output)
                print("\n" + as_table(report["jobs"][-1]), flush=True)
    return report


def benchmark(options: argparse.Namespace) -> int:
    report = json.loads(options.tables.read_text("utf-8")) if options.tables else run_parts(options)
    tables = "\n\n".join(map(as_table, report["jobs"]))
    if options.tables:
        print(tables)
    if options.tables and options.output:
        write_report(report, options.output)
    if options.readme:
        source = options.output or options.tables
        if not source:
            raise ValueError("benchmark: --readme needs --output or --tables, whose name is in its markers")
        begin, end = f"<!-- {source.name} -->", f"<!-- end of {source.name} -->"
        before, _, rest = options.readme.read_text(encoding="utf-8").partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"benchmark: {options.readme} must hold {begin} and behind it {end}")
        first = f"{head(report['machine'])} (`results/{source.name}`):"
        with written_whole(options.readme) as path:
            path.write_text(f"{before}{begin}\n{first}\n\n{tables}\n{end}{after}", encoding="utf-8")
    return 0


def write_report(report: dict, target: Path) -> None:
    with written_whole(target) as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"less of {', '.join(QUICK_PARTS)}, under a minute")
    add("--only", metavar="PARTS", help="some of " + ",".join(PARTS))
    add("--rounds", type=int, default=0, help="default: 7, or 2 with --quick")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--pictures", type=Path, metavar="DIR", help="of scaled; default: the embedded photographs")
    add("--output", type=Path, metavar="FILE", help="the figures as json")
    add("--force", action="store_true", help="overwrite it")
    add("--tables", type=Path, metavar="FILE", help="measure nothing, print the tables of this json")
    add("--readme", type=Path, metavar="FILE", help="put the tables there too, between its markers")
    return guarded(benchmark, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
