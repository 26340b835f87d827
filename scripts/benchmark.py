"""Images per second on this machine: each way of computing beside the reference path, in alternating runs.

    python scripts/benchmark.py [--quick] [--only forward,step,loader,predict] [--output benchmark.json]

The reference path is our code in the published order of operations: float32, channels first, 1x1 convolution
behind the resize, nothing folded, the emotion branch run in every training step, each picture decoded and
resized by Pillow and normalised as float32 in the loader. Every way runs in a process of its own, so that its
peak memory is its own; the processes take turns, one run each, and the median over the rounds is given with
the range as a share of it. The ceiling is what a 3x3 convolution of 256 channels at 64x64 reaches, in turn
with the rest. Differences are the largest ones of prediction, logits and map from the reference path's.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import backbones
import checkpoint
import engine
from decoding import decode, normalise
from EAMBNet import PRECISIONS, EAMBNet, Fusion, Output, build_model, prepare_for_inference, resize
from losses import emd_loss
from main import guarded, refuse_existing
from predict import SHIPPED, Scorer
from recompute import recompute_blocks

CPU = torch.device("cpu")

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

    job: what is done, as in "forward, paper's network, 512 px, batch 4"; ways of one job are compared.
    name: "reference" or what is different.
    make: its name in MAKERS; arguments: what that takes.
    images: pictures in one run.
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


Run = Callable[[], Output | None]


def photographs(side: int, batch: int) -> Tensor:
    """(batch, 3, side, side) uint8, those of the demo set in turn."""
    from scripts.export import embedded_pictures

    pictures = embedded_pictures(side)
    return pictures[torch.arange(batch) % len(pictures)].contiguous()


def make_exported(name: str, side: int, batch: int, precision: str) -> Run:
    """What scripts/export.py writes; int8 calibrated on the demo set's photographs, for its speed alone."""
    import engines
    from scripts import export

    network = build(name)
    images = photographs(side, batch)
    whole = export.Whole(network, network.arguments["backbone"]).eval()
    content = export.onnx_packer(export.trace(whole, images))("{}")
    if precision == "int8":
        content = export.int8_packer(content, images)("{}")
    core = engines.openvino().Core()
    compiled = engines.compile_model(core, engines.read_model(core, content, Path(name)))
    values = images.numpy()

    def run() -> Output:
        found = compiled(values)
        return Output(*(torch.from_numpy(found[field].copy()) for field in Output._fields))

    return run


def make_forward(name: str, side: int, batch: int, way: str) -> Run:
    network = build(name)
    images = normalise(photographs(side, batch), *backbones.normalisation(network.arguments["backbone"]))
    images = images.contiguous()
    if way == "reference":
        network = as_reference(network)
    elif way == "channels last":
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        engine.keep_memory(CPU)
        network = prepare_for_inference(network, way)

    def run() -> Output:
        with torch.inference_mode():
            return network(images)

    return run


def make_step(name: str, side: int, batch: int, way: str) -> Run:
    network = build(name).train()
    images, known = torch.randn(batch, 3, side, side), (known_emotions(batch, side),)
    if way == "reference":
        network, known = as_reference(network), ()
    else:
        engine.keep_memory(CPU)
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if way.endswith("recomputed"):
        recompute_blocks(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=way != "reference")
    outputs = network.arguments["outputs"]
    target = torch.full((batch, outputs), 1 / outputs)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=way.startswith("bf16")):
            prediction = network(images, *known).prediction
        loss = emd_loss(prediction, target) if outputs > 1 else F.mse_loss(prediction, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def make_loader(path: str, side: int, count: int, way: str) -> Run:
    """Decoding in one process, one file again and again: what a loader's worker does."""
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.5)

    def reference() -> Tensor:
        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
        return (torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255 - mean) / std

    def ours() -> Tensor:
        return torch.from_numpy(decode(path, side, exact=way != "scaled"))

    one = reference if way == "reference" else ours

    def run() -> None:
        for _ in range(count):
            one()

    return run


def make_predict(folder: str, way: str) -> Run:
    """`main.py predict` without its start: files to scores, as many threads as torch has."""
    scorer = Scorer(
        precision="bf16" if way.startswith("bf16") else "fp32", workers=-1, exact=way == "reference"
    )
    if way == "reference":
        scorer.network.model = ChannelsFirst(as_reference(build("lite")))
    paths = sorted(Path(folder).iterdir())

    def run() -> None:
        if [scored for scored in scorer.score_all(paths) if scored.error]:
            raise ValueError(f"benchmark: not every picture in {folder} could be scored")

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
    "exported": make_exported,
    "forward": make_forward,
    "step": make_step,
    "loader": make_loader,
    "predict": make_predict,
    "ceiling": make_ceiling,
}

# ---------------------------------------------------------------------------------------------------
# Which are measured


def ceilings() -> list[Way]:
    return [
        Way("ceiling", kind, "ceiling", (kind,), 4 * 10, 2 * 256 * 256 * 9 * 64 * 64, kind)
        for kind in ("fp32", "bf16")
    ]


def forward_ways(quick: bool) -> list[Way]:
    ways = []
    networks = (("lite", 224, 8),) if quick else (("paper", 512, 4), ("lite", 224, 16))
    for name, side, batch in networks:
        job, need = f"forward, {name}, {side} px, batch {batch}", flops(build(name), side)
        for way in ("reference", "bf16") if quick else ("reference", "channels last", "fp32", "bf16"):
            kind = "bf16" if way == "bf16" else "fp32"
            ways.append(Way(job, way, "forward", (name, side, batch, way), batch, need, kind))
        if not quick and find_spec("openvino") and find_spec("nncf"):
            for kind in ("fp32", "int8"):
                exported = ("exported", (name, side, batch, kind))
                ways.append(Way(job, f"OpenVINO {kind}", *exported, batch, need, kind))
    return ways


STEPS = ("reference", "fp32", "fp32, recomputed", "bf16", "bf16, recomputed")


def step_ways(quick: bool) -> list[Way]:
    networks = (("lite", 224, 8),) if quick else (("paper", 512, 4), ("lite", 224, 32))
    return [
        Way(
            *(f"training step, {name}, {side} px, batch {batch}, known maps", way),
            *(
                "step",
                (name, side, batch, way),
                batch,
                step_flops(build(name), side),
                "bf16" if way.startswith("bf16") else "fp32",
            ),
        )
        for name, side, batch in networks
        for way in STEPS[:: 3 if quick else 1]
    ]


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
    kinds = [("800x600", 800, 600, 64 if quick else 256)] + (
        [] if quick else [("24 megapixels", 6000, 4000, 24)]
    )
    for name, width, height, count in kinds:
        pictures = folder / f"{name} to predict"
        pictures.mkdir()
        image = photograph(width, height)
        image.save(pictures / "0.jpg", quality=95)
        for number in range(1, count):
            (pictures / f"{number}.jpg").symlink_to(pictures / "0.jpg")
        size = (pictures / "0.jpg").stat().st_size / 1e6
        job = f"predict, lite, {name} JPEG of {size:.1f} MB, files to scores"
        ways += [
            Way(job, way, "predict", (str(pictures), way), count)
            for way in (("reference", "bf16") if quick else ("reference", "fp32", "bf16"))
        ]
    return ways


PARTS = {
    "forward": lambda quick, folder: forward_ways(quick),
    "step": lambda quick, folder: step_ways(quick),
    "loader": loader_ways,
    "predict": predict_ways,
}


def photograph(width: int, height: int) -> Image.Image:
    """An embedded photograph, enlarged, with noise like a sensor's, so that its JPEG is long enough."""
    from skimage.data import astronaut

    image = np.asarray(
        Image.fromarray(astronaut()).resize((width, height), Image.Resampling.BICUBIC), np.int16
    )
    noise = np.random.default_rng(0).normal(0, 5, image.shape).astype(np.int16)
    return Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Result:
    """What was measured of one way; all of one run.

    seconds: of each round. memory: peak of the process in GB. differences: prediction, logits, map.
    """

    way: Way
    seconds: list[float] = field(default_factory=list)
    memory: float = 0.0
    differences: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.way.images / median(self.seconds)

    @property
    def spread(self) -> float:
        return (max(self.seconds) - min(self.seconds)) / median(self.seconds)


def serve(way: Way, threads: int, pipe) -> None:
    """A process of its own: builds the way, runs it once to warm up, then once for each word that comes."""
    torch.set_num_threads(threads)
    run = MAKERS[way.make](*way.arguments)
    output = run()
    pipe.send([np.asarray(value, np.float64) for value in output] if output else [])
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
    finally:
        process.join(5)
        process.kill()


def measure(ways: list[Way], rounds: int, threads: int) -> list[Result]:
    """The ways of one job, and the ceilings, in turns."""
    results = [Result(way) for way in ways]
    with ExitStack() as stack:
        pipes, outputs = [], []
        for way in ways:
            pipes.append(stack.enter_context(served(way, threads)))
        outputs += [pipe.recv() for pipe in pipes]  # when each has run once
        for _ in range(rounds):
            for result, pipe in zip(results, pipes, strict=True):
                pipe.send(True)
                result.seconds.append(pipe.recv())
        for result, pipe, output in zip(results, pipes, outputs, strict=True):
            pipe.send(False)
            result.memory = pipe.recv()
            result.differences = tuple(
                float(np.abs(a - b).max()) for a, b in zip(output, outputs[0], strict=False)
            )
    return results


def measure_all(ways: list[Way], rounds: int, threads: int) -> list[dict]:
    """One entry a job, as it is written to json; each is printed when it is done."""
    jobs = []
    for job in dict.fromkeys(way.job for way in ways):
        own = [way for way in ways if way.job == job]
        results = measure(own + (ceilings() if own[0].flops else []), rounds, threads)
        peaks = {result.way.kind: result.rate * result.way.flops for result in results[len(own) :]}
        rows = [as_row(result, results[0], peaks) for result in results[: len(own)]]
        jobs.append({"job": job, "ceiling": peaks, "rows": rows})
        print("\n" + as_table(jobs[-1]), flush=True)
    return jobs


def as_row(result: Result, reference: Result, peaks: dict[str, float]) -> dict:
    way = result.way
    ratios = [a / b for a, b in zip(reference.seconds, result.seconds, strict=True)]
    return {
        "way": way.name,
        "images_per_second": result.rate,
        "spread": result.spread,
        "ratio": median(ratios) * way.images / reference.way.images,
        "gflop_per_second": result.rate * way.flops / 1e9 or None,
        "share_of_ceiling": result.rate * way.flops / peaks[way.kind] if way.kind in peaks else None,
        "memory_gb": result.memory,
        "differences": list(result.differences),
        "seconds": result.seconds,
    }


def as_table(job: dict) -> str:
    """A job in Markdown."""
    said = ", ".join(f"{kind} {value / 1e9:.0f} GFLOP/s" for kind, value in job["ceiling"].items())
    lines = [job["job"] + (f" (ceiling: {said})" if said else ""), ""]
    lines.append(
        "| | images/s | range | ratio | GFLOP/s, of ceiling | GB | prediction, logits, map differ by |"
    )
    lines.append("|---|---|---|---|---|---|---|")
    for row in job["rows"]:
        share = f", {row['share_of_ceiling']:.0%}" if row["share_of_ceiling"] else ""
        speed = f"{row['gflop_per_second']:.0f}{share}" if row["gflop_per_second"] else ""
        differences = ", ".join(f"{value:.0e}" for value in row["differences"]) if row["ratio"] != 1 else ""
        lines.append(
            f"| {row['way']} | {row['images_per_second']:.1f} | {row['spread']:.0%} | {row['ratio']:.2f} "
            f"| {speed} | {row['memory_gb']:.1f} | {differences} |"
        )
    return "\n".join(lines)


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
    parts = options.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"benchmark: --only takes some of {', '.join(PARTS)}, got '{unknown[0]}'")
    if options.output and not options.force:
        refuse_existing("benchmark", options.output.parent, [options.output.name])
    rounds = options.rounds or (2 if options.quick else 7)
    about = machine(options.threads)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    with tempfile.TemporaryDirectory() as folder:
        ways = [way for part in parts for way in PARTS[part](options.quick, Path(folder))]
        jobs = measure_all(ways, rounds, options.threads)
    if options.output:
        with checkpoint.written_whole(options.output) as path:
            path.write_text(json.dumps({"machine": about, "jobs": jobs}, indent=1) + "\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    parser.add_argument("--only", default=",".join(PARTS), help="some of forward,step,loader,predict")
    parser.add_argument("--rounds", type=int, default=0, help="default: 7, or 2 with --quick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, metavar="FILE", help="the figures as json")
    parser.add_argument("--force", action="store_true", help="overwrite it")
    parser.set_defaults(run=run)
    options = parser.parse_args(arguments)
    return guarded(options.run, options)


if __name__ == "__main__":
    sys.exit(main())
