"""Images per second on this machine: each way of computing beside the reference path, in alternating runs.

    python scripts/benchmark.py [--quick] [--only forward,step,...] [--output benchmark.json]
    python scripts/benchmark.py --tables benchmark.json [--readme README.md]      # those of an earlier run

The parts: forward, step (training), loader, predict (files to scores), start (of `main.py predict`), engines
(OpenVINO beside ONNX Runtime), scaled (what scaled decoding does to scores), table (a set of AVA's size).

The reference path is our code in the published order of operations: float32, channels first, 1x1 convolution
behind the resize, nothing folded, the emotion branch run in every training step, each picture decoded and
resized by Pillow and normalised as float32 in the loader (`predict`'s reference: the network alone).
Rows with a + add one step each to the last such row. Every way runs in a process of its own, so that its peak
memory is its own; the processes take turns, one run each, and the median over the rounds is given with the
range as a share of it. Of many ways a few at a time run beside the reference, which then has a row for each
time: ratios are to the one above. The ceiling is what a 3x3 convolution of 256 channels at 64x64 reaches, in
turn with the rest. Differences of prediction, logits and map (`predict`: of scores) are from the reference's.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datasets import PictureSet
from eamb.files import written_whole
from eamb.inference.scorer import SHIPPED, Scorer
from eamb.network import backbones
from eamb.network.backbones import DepthwiseConv2d, convolve, recompute_blocks
from eamb.network.fast import prepare_for_inference
from eamb.network.outputs import PRECISIONS, Output, Scale
from eamb.readers.decoding import PICTURE_ENDINGS, decode, normalise
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.readers.rated import RatedSet
from eamb.runtime import engine
from eamb.runtime.command import guarded, refuse_existing
from eamb.weights import checkpoint
from EAMBNet import EAMBNet, Fusion, build_model, resize
from losses import emd_loss

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------------------------------
# Networks and the reference path


class ReferenceFusion(Fusion):
    """The published order: the coarsest map is resized first and convolved at 64 times as many positions."""

    def forward(self, detail: Tensor, context: list[Tensor]) -> Tensor:
        fine, middle, coarse = context
        guided = self.guide_fine(self.detail(detail), self.context_fine(fine))  # (N, 56, H/8, W/8)
        guided = self.expand(self.guide_middle(guided, self.context_middle(middle)))  # (N, 256, H/8, W/8)
        semantic = resize(coarse, guided.shape[2:], align_corners=True)  # (N, 2048, H/8, W/8)
        semantic = F.relu(self.semantic_norm(self.semantic_conv(semantic)))  # (N, 256, H/8, W/8)
        return self.merge(torch.cat([guided, semantic], dim=1))


class PlainDepthwise(DepthwiseConv2d):
    """With torch's own gradients in bfloat16 too."""

    def forward(self, images: Tensor) -> Tensor:
        return convolve(images, self.weight, self.bias, self.stride[0], self.pads(*images.shape[2:]))


class ChannelsFirst(nn.Module):
    """A network that is given its pictures channels first, however they lie in memory."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Output:
        return self.network(images.contiguous())


def as_reference(network: EAMBNet) -> EAMBNet:
    network = copy.deepcopy(network)
    network.fusion.__class__ = ReferenceFusion
    return network


def with_plain_gradients(network: nn.Module) -> nn.Module:
    """The network itself, its depthwise convolutions without ways of their own for gradients."""
    for layer in network.modules():
        if isinstance(layer, DepthwiseConv2d):
            layer.__class__ = PlainDepthwise
    return network


def build(name: str) -> EAMBNet:
    """The paper's network with random weights and lively statistics, or Lite with the shipped weights."""
    if name == "lite":
        return checkpoint.load_weights(SHIPPED).build()
    torch.manual_seed(0)
    network = build_model()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.75, 1.25)
            nn.init.normal_(layer.bias, std=0.1)
    return network.eval()


def flops(network: EAMBNet, side: int) -> float:
    """Of one picture's way through the network, 2 for a multiplication and an addition."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    return counter.get_total_flops()


def step_flops(network: EAMBNet, side: int) -> float:
    """Of one picture's training step with known emotion maps: three times its way forward.

    Not counted by running it: the counter takes a depthwise convolution's gradient for a dense one's.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side), known_emotions(1, side))
    return 3 * counter.get_total_flops()


def known_emotions(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Logits (N, 8) and maps (N, 1, h, w), as they come from the cache."""
    return torch.zeros(count, 8), torch.ones(count, 1, side // 8, side // 8)


# ---------------------------------------------------------------------------------------------------
# The ways of computing. Each is built in its own process and gives the function that is timed.


@dataclass(frozen=True)
class Way:
    """One way of doing a job.

    job: what is done, as in "forward, paper, 512 px, batch 4"; ways of one job are compared with its first.
    name: "reference" or what is different.
    make: its name in MAKERS; arguments: what that takes.
    images: pictures in one run; 0 where none are counted, and seconds are told.
    flops: of one picture; 0 where they don't count.
    kind: whose ceiling it is measured by; there is none for int8.
    """

    job: str
    name: str
    make: str
    arguments: tuple
    images: int
    flops: float = 0.0
    kind: str = "fp32"


class Scores(NamedTuple):
    score: Tensor  # (n,), of n pictures


Run = Callable[[], Output | Scores | None]
Steps = tuple[str, ...]  # away from the reference path, switched on

FORWARD_STEPS = ("channels last", "early 1x1 convolution", "folding", "kept memory", "bf16")
TRAINING_STEPS = (
    *("known maps", "channels last", "early 1x1 convolution", "kept memory", "fused optimizer", "bf16"),
    *("fast depthwise gradients", "recomputed blocks"),
)
PREDICT_STEPS = ("fast network", "scaled decoding", "bf16")


def cumulative(steps: Steps) -> list[tuple[str, Steps]]:
    """("reference", ()), ("+ a", (a,)), ("+ b", (a, b)): a row's name and what is switched on in it."""
    return [("reference", ()), *((f"+ {step}", steps[: i + 1]) for i, step in enumerate(steps))]


def precision_of(on: Steps) -> str:
    return "bf16" if "bf16" in on else "fp32"


def photographs(side: int, batch: int) -> Tensor:
    """(batch, 3, side, side) uint8, those of the demo set in turn."""
    from scripts.export import embedded_pictures

    pictures = embedded_pictures(side)
    return pictures[torch.arange(batch) % len(pictures)].contiguous()


def make_forward(name: str, side: int, batch: int, on: Steps) -> Run:
    network = build(name)
    images = normalise(photographs(side, batch), *backbones.normalisation(network.arguments["backbone"]))
    images = images.contiguous()
    if "kept memory" in on:
        engine.keep_memory(CPU)
    if "early 1x1 convolution" not in on:
        network = as_reference(network)
    if "folding" in on:
        network = prepare_for_inference(network, precision_of(on))
    elif "channels last" in on:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def run() -> Output:
        with torch.inference_mode():
            return network(images)

    return run


def export_onnx(name: str, side: int, folder: Path) -> Path:
    """The network in a file as scripts/export.py writes it in fp32."""
    from scripts import export

    path = folder / f"{name}.onnx"
    if not path.is_file():
        network = build(name)
        whole = export.Whole(network, network.arguments["backbone"]).eval()
        path.write_bytes(export.onnx_packer(export.trace(whole, photographs(side, 2)))("{}"))
    return path


def make_openvino(path: str, side: int, batch: int, precision: str) -> Run:
    """int8 is calibrated on the demo set's photographs, for its speed alone."""
    from eamb.inference import exported as engines
    from scripts import export

    images, content = photographs(side, batch), Path(path).read_bytes()
    if precision == "int8":
        content = export.int8_packer(content, images)("{}")
    core = engines.openvino().Core()
    compiled = engines.compile_model(core, engines.read_model(core, content, Path(path)))
    values = images.numpy()

    def run() -> Output:
        found = compiled(values)
        return Output(*(torch.from_numpy(found[name].copy()) for name in Output._fields))

    return run


def make_onnxruntime(path: str, side: int, batch: int) -> Run:
    import onnxruntime

    from eamb.inference.exported import INPUT

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    values = {INPUT: photographs(side, batch).numpy()}

    def run() -> Output:
        return Output(*map(torch.from_numpy, session.run(list(Output._fields), values)))

    return run


def make_step(name: str, side: int, batch: int, on: Steps) -> Run:
    network = build(name).train()
    images, known = torch.randn(batch, 3, side, side), ()
    if "kept memory" in on:
        engine.keep_memory(CPU)
    if "early 1x1 convolution" not in on:
        network = as_reference(network)
    if "fast depthwise gradients" not in on:
        network = with_plain_gradients(network)
    if "known maps" in on:
        known = (known_emotions(batch, side),)
    if "channels last" in on:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if "recomputed blocks" in on:
        recompute_blocks(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused="fused optimizer" in on)
    outputs = network.arguments["outputs"]
    target = torch.full((batch, outputs), 1 / outputs)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in on):
            prediction = network(images, *known).prediction
        loss = emd_loss(prediction, target) if outputs > 1 else F.mse_loss(prediction, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def make_loader(path: str, side: int, count: int, way: str) -> Run:
    """What a loader's worker does, in one process: one file again and again, in batches of 10."""
    torch.set_num_threads(1)  # as torch gives a worker
    if way != "reference":
        engine.keep_memory(CPU)  # as in a training on a CPU, from which workers are forked
    rated = RatedSet("one", "train", "", [path], [path], np.zeros(1), Scale("score", 0.0, 1.0, 0.5))
    pictures = PictureSet(rated, side)
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.5)

    def reference() -> Tensor:
        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
        return (torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255 - mean) / std

    def batch(size: int) -> object:
        if way == "reference":
            return torch.stack([reference() for _ in range(size)])
        if way == "scaled":  # as `predict` decodes; no loader does
            return np.stack([decode(path, side, exact=False) for _ in range(size)])
        return pictures.collate(pictures.__getitems__([0] * size))

    def run() -> None:
        for start in range(0, count, 10):
            batch(min(10, count - start))

    return run


def make_predict(folder: str, on: Steps) -> Run:
    """`main.py predict` without its start: files to scores, as many threads as torch has."""
    scorer = Scorer(precision=precision_of(on), workers=-1, exact="scaled decoding" not in on)
    if "fast network" not in on:
        scorer.network.model = ChannelsFirst(as_reference(build("lite")))
    paths = sorted(Path(folder).iterdir())

    def run() -> Scores:
        found = list(scorer.score_all(paths))
        if any(scored.error for scored in found):
            raise ValueError(f"benchmark: not every picture in {folder} could be scored")
        return Scores(torch.tensor([scored.score for scored in found]))

    return run


def make_command(*words: str) -> Run:
    """A new Python, from its start to its end."""

    def run() -> None:
        found = subprocess.run([sys.executable, *words], capture_output=True, text=True)  # noqa: S603
        if found.returncode:
            raise ValueError(f"benchmark: python {' '.join(words)} failed: {found.stderr.strip()}")

    return run


def make_table(folder: str) -> Run:
    from datasets import load_dataset

    def run() -> None:
        load_dataset("ava", folder)

    return run


def make_ceiling(kind: str) -> Run:
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    images = torch.randn(4, 256, 64, 64)
    kinds = {"dtype": PRECISIONS[kind], "memory_format": torch.channels_last}
    conv, images = conv.to(**kinds), images.to(**kinds)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(10):
                conv(images)

    return run


MAKERS = {
    "forward": make_forward,
    "openvino": make_openvino,
    "onnxruntime": make_onnxruntime,
    "step": make_step,
    "loader": make_loader,
    "predict": make_predict,
    "command": make_command,
    "table": make_table,
    "ceiling": make_ceiling,
}

# ---------------------------------------------------------------------------------------------------
# Which are measured


# By whether it is quick: name, side, batch.
NETWORKS = {False: (("paper", 512, 4), ("lite", 224, 16)), True: (("lite", 224, 4),)}


def ceilings() -> list[Way]:
    return [
        Way("ceiling", kind, "ceiling", (kind,), 4 * 10, 2 * 256 * 256 * 9 * 64 * 64, kind)
        for kind in ("fp32", "bf16")
    ]


def forward_ways(quick: bool, folder: Path) -> list[Way]:
    ways = []
    for name, side, batch in NETWORKS[quick]:
        job, need = f"forward, {name}, {side} px, batch {batch}", flops(build(name), side)
        rows = cumulative(FORWARD_STEPS)
        for row, on in (rows[0], rows[-1]) if quick else rows:
            ways.append(Way(job, row, "forward", (name, side, batch, on), batch, need, precision_of(on)))
        if not quick and not missing("onnx", "openvino", "nncf"):
            path = str(export_onnx(name, side, folder))
            for kind in ("fp32", "int8"):
                exported = ("openvino", (path, side, batch, kind))
                ways.append(Way(job, f"OpenVINO {kind}", *exported, batch, need, kind))
    return ways


def step_ways(quick: bool, folder: Path) -> list[Way]:
    ways = []
    for name, side, batch in NETWORKS[quick]:
        job, need = f"step of training, {name}, {side} px, batch {batch}", step_flops(build(name), side)
        # Only EfficientNet-Lite has depthwise convolutions.
        depthwise = "fast depthwise gradients"
        rows = cumulative(tuple(step for step in TRAINING_STEPS if name == "lite" or step != depthwise))
        in_fp32 = tuple(step for step in rows[-1][1] if step != "bf16")
        more = [("the same in fp32", in_fp32)]
        more.append(("and no memory kept", tuple(step for step in in_fp32 if step != "kept memory")))
        for row, on in (rows[0], rows[-1]) if quick else rows + more:
            ways.append(Way(job, row, "step", (name, side, batch, on), batch, need, precision_of(on)))
    return ways


def loader_ways(quick: bool, folder: Path) -> list[Way]:
    small, large, copy_ = folder / "800x600.jpg", folder / "24 megapixels.jpg", folder / "copy.jpg"
    photograph(800, 600).save(small, quality=92)
    Image.fromarray(decode(small, 512)).save(copy_, quality=95, subsampling=0)
    count = 10 if quick else 50
    job = "loader, one process, to 512 px"
    ways = [Way(job, "reference", "loader", (str(small), 512, count, "reference"), count)]
    ways.append(Way(job, "ours, bit-identical", "loader", (str(small), 512, count, "exact"), count))
    ways.append(Way(job, "from a prepared copy", "loader", (str(copy_), 512, count, "exact"), count))
    if not quick:
        photograph(6000, 4000).save(large, quality=95)
        for way in ("reference", "scaled"):
            ways.append(Way("loader, 24 megapixels, to 224 px", way, "loader", (str(large), 224, 3, way), 3))
    return ways


def predict_ways(quick: bool, folder: Path) -> list[Way]:
    ways = []
    small = tuple(step for step in PREDICT_STEPS if step != "scaled decoding")
    kinds = [("800x600", 800, 600, 32 if quick else 256, small)]
    if not quick:
        kinds.append(("24 megapixels", 6000, 4000, 24, PREDICT_STEPS))
    for name, width, height, count, steps in kinds:
        pictures = folder / f"{name} to predict"
        pictures.mkdir()
        photograph(width, height).save(pictures / "0.jpg", quality=95)
        for number in range(1, count):
            (pictures / f"{number}.jpg").symlink_to(pictures / "0.jpg")
        size = (pictures / "0.jpg").stat().st_size / 1e6
        job = f"predict, lite, {name} JPEG of {size:.1f} MB, files to scores"
        rows = cumulative(steps)
        for row, on in (rows[0], rows[-1]) if quick else rows:
            ways.append(Way(job, row, "predict", (str(pictures), on), count))
    return ways


def start_ways(quick: bool, folder: Path) -> list[Way]:
    path = folder / "one.jpg"
    photograph(800, 600).save(path, quality=92)
    job = "start, from a new process to the score of one 800x600 JPEG"
    return [
        Way(job, "python -c 'import torch, timm'", "command", ("-c", "import torch, timm"), 0),
        Way(
            job, "python main.py predict one.jpg", "command", (str(ROOT / "main.py"), "predict", str(path)), 0
        ),
    ]


def engine_ways(quick: bool, folder: Path) -> list[Way]:
    if names := missing("onnx", "openvino", "onnxruntime"):
        print(f"benchmark: engines is left out: {names[0]} is not installed (pip install {' '.join(names)})")
        return []
    ways = []
    for name, side, batch in NETWORKS[quick]:
        path = str(export_onnx(name, side, folder))
        job, need = f"engines, {name}, {side} px, batch {batch}, fp32", flops(build(name), side)
        ways.append(Way(job, "OpenVINO", "openvino", (path, side, batch, "fp32"), batch, need))
        ways.append(Way(job, "ONNX Runtime", "onnxruntime", (path, side, batch), batch, need))
    return ways


def scaled_ways(quick: bool, folder: Path, pictures: Path | None = None) -> list[Way]:
    """The same network with and without scaled decoding, on different pictures: does it change scores?"""
    enlarged = folder / "enlarged"
    enlarged.mkdir()
    sources = picture_files(pictures) if pictures else PHOTOGRAPHS
    for number, source in enumerate(sources[: 2 if quick else None]):
        image = Image.fromarray(decode(source)) if pictures else open_photograph(source)
        scale = (24e6 / (image.width * image.height)) ** 0.5
        noisy(image, round(scale * image.width), round(scale * image.height)).save(
            enlarged / f"{number:05d}.jpg", quality=95
        )
    count = len(list(enlarged.iterdir()))
    job = f"scaled decoding, lite, {count} pictures enlarged to 24 megapixels"
    ways = (("exact", ("fast network",)), ("scaled", ("fast network", "scaled decoding")))
    return [Way(job, name, "predict", (str(enlarged), on), count) for name, on in ways]


def table_ways(quick: bool, folder: Path) -> list[Way]:
    """AVA.txt and its pictures, which are empty files: until training begins they are only listed."""
    count, root = 10_000 if quick else 255_530, folder / "AVA"
    (root / "images").mkdir(parents=True)
    for number in range(1, count + 1):
        os.close(os.open(f"{root}/images/{number}.jpg", os.O_CREAT))
    rows = (f"{number} {number} 0 1 5 17 38 36 15 6 5 1 1 22 1396" for number in range(1, count + 1))
    (root / "AVA.txt").write_text("\n".join(rows))
    (root / "generic_test.jpgl").write_text("\n".join(map(str, range(1, 1 + count // 13))))
    return [Way(f"table, {count:,} rows to a ready data set", "load_dataset", "table", (str(root),), 0)]


PARTS = {
    "forward": forward_ways,
    "step": step_ways,
    "loader": loader_ways,
    "predict": predict_ways,
    "start": start_ways,
    "engines": engine_ways,
    "scaled": scaled_ways,
    "table": table_ways,
}
QUICK_PARTS = ("forward", "step", "loader", "predict")


def missing(*packages: str) -> list[str]:
    return [name for name in packages if not find_spec(name)]


def picture_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)
    if not found:
        raise ValueError(f"benchmark: {folder} holds no pictures ({', '.join(PICTURE_ENDINGS)})")
    return found


def photograph(width: int, height: int) -> Image.Image:
    return noisy(open_photograph(PHOTOGRAPHS[0]), width, height)


def noisy(image: Image.Image, width: int, height: int) -> Image.Image:
    """A picture enlarged, with noise like a sensor's, so that its JPEG is long enough."""
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = np.random.default_rng(0).normal(0, 5, pixels.shape).astype(np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Result:
    """What was measured of one way; all of one run.

    seconds: of each round. memory: peak of the process in GB. differences: largest and mean from the first
    way's output, by the output's fields.
    """

    way: Way
    seconds: list[float] = field(default_factory=list)
    memory: float = 0.0
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.way.images / median(self.seconds)

    @property
    def spread(self) -> float:
        return (max(self.seconds) - min(self.seconds)) / median(self.seconds)


WARM = 2  # runs of a process before it is timed; the first takes its memory from the system


def serve(way: Way, threads: int, pipe) -> None:
    """A process of its own: builds the way, warms up at the first word, then runs it for each that comes."""
    torch.set_num_threads(threads)
    run = MAKERS[way.make](*way.arguments)
    pipe.send(True)
    pipe.recv()
    for _ in range(WARM):
        output = run()
    pipe.send(
        {name: np.asarray(value, np.float64) for name, value in output._asdict().items()} if output else {}
    )
    del output
    while pipe.recv():
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)
    pipe.send(peak_memory())


def peak_memory() -> float:
    """Of this process, in GB. getrusage's peak would be the parent's here, from before this program began."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return engine.peak_memory(CPU)
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


@contextmanager
def served(way: Way, threads: int) -> Iterator:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(way, threads, theirs))
    process.start()
    theirs.close()  # so that a process that died is an EOFError here
    try:
        yield ours
        process.join(5)
    except (EOFError, ConnectionError) as error:  # ConnectionError: it died before its turn
        raise ValueError(f"benchmark: {way.job}: a way has failed; its own error stands above") from error
    finally:
        process.kill()


def measure(ways: list[Way], rounds: int, threads: int) -> list[Result]:
    """The ways in turns."""
    results = [Result(way) for way in ways]
    with ExitStack() as stack:
        pipes = [stack.enter_context(served(way, threads)) for way in ways]
        for pipe in pipes:
            pipe.recv()  # all are built at once, but each runs alone: together they may need too much memory
        outputs = [answer(pipe) for pipe in pipes]
        for _ in range(rounds):
            for result, pipe in zip(results, pipes, strict=True):
                result.seconds.append(answer(pipe))
        for result, pipe, output in zip(results, pipes, outputs, strict=True):
            pipe.send(False)
            result.memory = pipe.recv()
            result.differences = differences(output, outputs[0])
    return results


def answer(pipe):
    pipe.send(True)
    return pipe.recv()


def differences(output: dict, reference: dict) -> dict[str, tuple[float, float]]:
    """Largest and mean, of the fields that both have."""
    apart = {name: np.abs(output[name] - reference[name]) for name in output.keys() & reference.keys()}
    return {name: (float(apart[name].max()), float(apart[name].mean())) for name in output if name in apart}


AT_ONCE = 5  # beside the reference; each training step keeps gigabytes


def measure_job(ways: list[Way], rounds: int, threads: int) -> dict:
    """As it is written to json."""
    reference, *others = ways
    compared, speeds = [], {}  # results, each with its reference's; of the ceilings, by kind, in every round
    for start in range(0, max(1, len(others)), AT_ONCE):
        group = [reference, *others[start : start + AT_ONCE]]
        results = measure(group + (ceilings() if reference.flops else []), rounds, threads)
        for found in results[len(group) :]:
            way = found.way
            speeds.setdefault(way.kind, []).extend(way.flops * way.images / value for value in found.seconds)
        compared += [(result, results[0]) for result in results[: len(group)]]
    peaks = {kind: median(values) for kind, values in speeds.items()}
    rows = [as_row(result, first, peaks) for result, first in compared]
    return {"job": reference.job, "rounds": rounds, "ceiling": peaks, "rows": rows}


def measure_all(ways: list[Way], rounds: int, threads: int) -> list[dict]:
    """One entry a job; each is printed when it is done."""
    jobs = []
    for job in dict.fromkeys(way.job for way in ways):
        jobs.append(measure_job([way for way in ways if way.job == job], rounds, threads))
        print("\n" + as_table(jobs[-1]), flush=True)
    return jobs


def as_row(result: Result, reference: Result, peaks: dict[str, float]) -> dict:
    way, rate = result.way, result.rate
    ratios = [a / b for a, b in zip(reference.seconds, result.seconds, strict=True)]
    return {
        "way": way.name,
        "images_per_second": rate or None,
        "spread": result.spread,
        "ratio": median(ratios) * (way.images / reference.way.images if way.images else 1),
        "gflop_per_second": rate * way.flops / 1e9 or None,
        "share_of_ceiling": rate * way.flops / peaks[way.kind] if way.kind in peaks else None,
        "memory_gb": None if way.make == "command" else result.memory,  # a command's own is not known here
        "differences": {name: largest for name, (largest, _) in result.differences.items()},
        "mean_differences": {name: average for name, (_, average) in result.differences.items()},
        "seconds": result.seconds,
    }


# ---------------------------------------------------------------------------------------------------
# Tables


def as_table(job: dict) -> str:
    """A job in Markdown, with the columns that have something to say."""
    rows = job["rows"]
    names = ", ".join(rows[-1]["differences"])
    columns = {
        "images/s": [number(row["images_per_second"], ".1f") for row in rows],
        "seconds": ["" if row["images_per_second"] else f"{median(row['seconds']):.2f}" for row in rows],
        "range": [f"{row['spread']:.0%}" for row in rows],
        "ratio": [f"{row['ratio']:.2f}" if len(rows) > 1 else "" for row in rows],
        "GFLOP/s, of ceiling": [as_speed(row) for row in rows],
        "GB": [number(row["memory_gb"], ".1f") for row in rows],
        f"{names}: largest difference": listed(rows, "differences"),
        "mean": listed(rows, "mean_differences"),
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    lines = [heading(job), "", "| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    lines += [
        f"| {' | '.join([row['way'], *cells])} |" for row, *cells in zip(rows, *columns.values(), strict=True)
    ]
    return "\n".join(lines)


def heading(job: dict) -> str:
    said = ", ".join(f"{kind} {value / 1e9:.0f} GFLOP/s" for kind, value in job["ceiling"].items())
    return f"{job['job']} ({job['rounds']} rounds{f'; ceiling: {said}' if said else ''})"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def as_speed(row: dict) -> str:
    share = f", {row['share_of_ceiling']:.0%}" if row["share_of_ceiling"] else ""
    return f"{row['gflop_per_second']:.0f}{share}" if row["gflop_per_second"] else ""


def listed(rows: list[dict], key: str) -> list[str]:
    """A cell for each row, empty for those that the others are compared with."""
    cells = [", ".join(f"{value:.0e}" for value in row[key].values()) for row in rows]
    return ["" if row["way"] == rows[0]["way"] else cell for row, cell in zip(rows, cells, strict=True)]


BEGIN, END = "<!-- benchmark -->", "<!-- end of benchmark -->"


def filled(readme: Path, report: dict) -> str:
    """The README's text with the tables between their markers."""
    text = readme.read_text(encoding="utf-8")
    if (text.count(BEGIN), text.count(END)) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise ValueError(f"benchmark: {readme} must hold once, in this order, {BEGIN} and {END}")
    about = report["machine"]
    head = f"{about['processor']}, {about['threads']} threads, torch {about['torch']}"
    tables = "\n\n".join([f"{head} (`results/benchmark.json`):", *map(as_table, report["jobs"])])
    return text.partition(BEGIN)[0] + f"{BEGIN}\n{tables}\n{END}" + text.partition(END)[2]


# ---------------------------------------------------------------------------------------------------
# The command


def machine(threads: int) -> dict:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}


def run(options: argparse.Namespace) -> int:
    if options.tables:
        report = json.loads(options.tables.read_text(encoding="utf-8"))
        print("\n\n".join(map(as_table, report["jobs"])))
    else:
        report = run_parts(options)
    if options.readme:
        text = filled(options.readme, report)
        with written_whole(options.readme) as path:
            path.write_text(text, encoding="utf-8")
    return 0


def run_parts(options: argparse.Namespace) -> dict:
    parts = options.only.split(",") if options.only else QUICK_PARTS if options.quick else PARTS
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"benchmark: --only takes some of {', '.join(PARTS)}, got '{unknown[0]}'")
    if options.output and not options.force:
        refuse_existing("benchmark", options.output.parent, [options.output.name])
    rounds = options.rounds or (2 if options.quick else 7)
    about = machine(options.threads)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    jobs = []
    for part in parts:
        more = {"pictures": options.pictures} if part == "scaled" else {}
        with tempfile.TemporaryDirectory() as folder:
            jobs += measure_all(PARTS[part](options.quick, Path(folder), **more), rounds, options.threads)
    report = {"machine": about, "jobs": jobs}
    if options.output:
        with written_whole(options.output) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"less of {', '.join(QUICK_PARTS)}, under a minute"
    )
    parser.add_argument("--only", metavar="PARTS", help="some of " + ",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=0, help="default: 7, or 2 with --quick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="of scaled; default: the embedded photographs"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the figures as json")
    parser.add_argument("--force", action="store_true", help="overwrite it")
    parser.add_argument(
        "--tables", type=Path, metavar="FILE", help="measure nothing, print the tables of this json"
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="put the tables there too, between its markers"
    )
    parser.set_defaults(run=run)
    options = parser.parse_args(arguments)
    return guarded(options.run, options)


if __name__ == "__main__":
    sys.exit(main())
