"""Where the time of a training step goes on 1, 2, 4 processes, and what many GPUs would add to it.

    python scripts/scaling.py --output scaling.json       # the paper's network and EAMB-Net Lite
    python scripts/scaling.py --quick                     # Lite on 1 and 2 processes
    python scripts/scaling.py --processes 1 8 --pictures 24 --precision bf16     # a machine with eight GPUs

The loader decodes 800x600 JPEGs in the measured process. Forward and backward are those of a network alone;
all-reduce is what the backward takes longer when gradients are averaged: what could not be hidden behind it.
"sum alone" is the same bytes summed with nothing else to do. All kinds of step take turns in one run, and
processes wait for each other before each part. Medians over the rounds, averaged over the processes.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import PictureSet, TrainOrder, load_dataset, make_loader
from eamb.files import written_whole
from eamb.network import backbones
from eamb.network.outputs import PRECISIONS
from eamb.readers.rated import DataOptions
from eamb.runtime import distributed, engine
from eamb.runtime.command import guarded
from EAMBNet import build_model
from losses import score_loss

NETWORKS = {
    "paper": {"backbone": backbones.RESNET50},
    "lite": {"backbone": backbones.LITE0, "width": 128, "context_scale": 1.0},
}
SIZES = {"paper": 512, "lite": 224}  # pixels
SENT = {"fp32": torch.float32, "bf16": torch.bfloat16}  # train.gradient_precision
LINKS = (  # processes, what joins them, bytes a second that each can send while it receives as much: assumed
    (8, "NVLink", 200e9),
    (8, "PCIe 4", 20e9),
    (64, "8 nodes, 400 Gbit/s a GPU", 40e9),
    (64, "8 nodes, 100 Gbit/s a node", 10e9),
)


def all_reduce_seconds(size: float, processes: int, bandwidth: float) -> float:
    """What summing `size` bytes takes on a ring: every process sends 2 (n - 1) / n of them."""
    return size * 2 * (processes - 1) / processes / bandwidth


def write_set(root: Path, count: int) -> None:
    """A set for --dataset csv: 800x600 JPEGs, smooth, with the noise of a sensor; one more is validation."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count + 1):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((800, 600), Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{number}.jpg", quality=90)
    rows = [f"{number}.jpg,train,{number / count}" for number in range(count)]
    (root / "ratings.csv").write_text("\n".join(["path,split,score", *rows, f"{count}.jpg,val,0.5"]))


class Clock:
    """Seconds of each named part, one entry a round."""

    def __init__(self, device: torch.device):
        self.device, self.parts = device, {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        distributed.gather(None)  # one that is early must not wait inside the part that is measured
        start = self.now()
        yield
        self.parts.setdefault(part, []).append(self.now() - start)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measure(options: argparse.Namespace) -> int:
    """Writes one row, on the processes that torchrun started."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with distributed.session(options.device) as device:
        engine.keep_memory(device)
        clock = Clock(device)
        network = build_model(outputs=1, **NETWORKS[options.network])
        network = network.to(device, memory_format=torch.channels_last)
        models = {"alone": network}
        if distributed.world() > 1:
            models |= {kind: distributed.wrap(copy.deepcopy(network), device, kind) for kind in SENT}
        batches = read_batches(options, clock)
        settings = engine.Compute(device, options.precision, *backbones.normalisation(backbones.RESNET50))
        parameters = [p for p in network.parameters() if p.requires_grad]
        count = sum(p.numel() for p in parameters)
        optimizer = torch.optim.Adam(parameters, lr=1e-9, fused=device.type != "mps")
        for batch in batches:
            for kind, model in models.items():
                step(model, kind, batch, settings, clock)
            with clock("optimizer"):
                optimizer.step()
            for kind in SENT if len(models) > 1 else ():
                gradient = torch.zeros(count, dtype=SENT[kind], device=device)
                with clock(f"sum_{kind}"):
                    distributed.total(gradient)
        found = {"gradient_bytes": 4 * count, **summary(distributed.gather(clock.parts))}
        if distributed.is_main():
            write(options.output, found)
    return 0


def read_batches(options: argparse.Namespace, clock: Clock) -> Iterator:
    """A batch for each round and one to warm up, after which the clock starts anew."""
    rated = load_dataset("csv", options.folder, ("train",), DataOptions(twins=False))["train"]
    world = distributed.world()
    order = TrainOrder(len(rated), options.pictures * world, 0, 0, rank=distributed.rank(), world=world)
    loader = iter(make_loader(PictureSet(rated, options.size, flip_seed=0), order, workers=0))
    for number in range(options.rounds + 1):
        if number == 1:
            clock.parts.clear()
        with clock("loader"):
            batch = next(loader)
        yield batch


def step(model: nn.Module, kind: str, batch, compute: engine.Compute, clock: Clock) -> None:
    """Forward and backward of one batch, as in `engine.train_one_epoch`; the gradients are left there."""
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    with clock(f"forward_{kind}"):
        loss = loss_of(model, batch, compute)
    with clock(f"backward_{kind}"):
        loss.backward()


def loss_of(model: nn.Module, batch, compute: engine.Compute) -> Tensor:
    batch = engine.to_device(batch, compute.device)
    with compute.autocast():
        return score_loss(model(compute.images(batch)).prediction, batch.scores)


def summary(every: list[dict[str, list[float]]]) -> dict[str, float]:
    """Seconds of each part from the rounds of all processes.

    all_reduce_<kind>: the median over rounds of what the backward of `kind` took longer than that alone.
    """

    def of(value: Callable[[dict], list[float]]) -> float:
        return mean(median(value(parts)) for parts in every)

    names = ("loader", "forward_alone", "backward_alone", "optimizer")
    found = {name.removesuffix("_alone"): of(lambda parts, name=name: parts[name]) for name in names}
    for kind in SENT if len(every) > 1 else ():
        found[f"all_reduce_{kind}"] = of(lambda parts, kind=kind: longer(parts, f"backward_{kind}"))
        found[f"sum_{kind}"] = of(lambda parts, kind=kind: parts[f"sum_{kind}"])
    return found


def longer(parts: dict[str, list[float]], name: str) -> list[float]:
    return [a - b for a, b in zip(parts[name], parts["backward_alone"], strict=True)]


# ---------------------------------------------------------------------------------------------------
# All rows


def launch(network: str, processes: int, options: argparse.Namespace, folder: Path) -> dict:
    """Measures one row in processes of its own."""
    output = folder / f"{network}_{processes}.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", __file__]
    passed = ("device", "precision", "threads", "rounds", "pictures")
    words = [word for name in passed for word in (f"--{name}", str(getattr(options, name)))]
    size = options.size or SIZES[network]
    words += [
        "--size",
        str(size),
        "--worker",
        network,
        "--folder",
        str(folder / "set"),
        "--output",
        str(output),
    ]
    done = subprocess.run([sys.executable, *launcher, *words], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"scaling: {network} on {processes} processes failed:\n{done.stderr[-2000:]}")
    same = {"network": network, "processes": processes, "pictures": options.pictures, "size": size}
    return {**same, "threads": options.threads, **json.loads(output.read_text())}


def as_table(rows: list[dict]) -> str:
    """In milliseconds; "-" where there is nothing to average."""
    parts = ("loader", "forward", "backward", "optimizer", "all_reduce_fp32", "all_reduce_bf16")
    parts += ("sum_fp32", "sum_bf16")
    names = [part.replace("all_reduce", "all-reduce").replace("sum", "sum alone") for part in parts]
    lines = [("network", "px", "processes", *(name.replace("_", " ") for name in names), "pictures/s")]
    for row in rows:
        times = [f"{1000 * row[part]:.0f}" if part in row else "-" for part in parts]
        seconds = sum(row.get(part, 0) for part in parts[1:5])
        rate = row["processes"] * row["pictures"] / seconds
        lines.append((row["network"], str(row["size"]), str(row["processes"]), *times, f"{rate:.2f}"))
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def expectation(network: str, size: float) -> str:
    """All-reduce times that assumed links would give for `size` bytes of float32 gradients."""
    lines = [f"{network}: {size / 1e6:.0f} MB of fp32 gradients, {size / 2e6:.0f} MB as bf16"]
    for processes, link, bandwidth in LINKS:
        full, half = (1000 * all_reduce_seconds(s, processes, bandwidth) for s in (size, size / 2))
        speed = f"{bandwidth / 1e9:.0f} GB/s assumed"
        lines.append(f"  {processes} GPUs, {link} ({speed}): {full:.2f} ms, bf16 {half:.2f} ms")
    return "\n".join(lines)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4], metavar="N")
    parser.add_argument("--threads", type=int, default=1, help="of each process, on a CPU")
    parser.add_argument("--pictures", type=int, default=2, help="in a step of each process")
    parser.add_argument("--size", type=int, help=f"pixels; default: {SIZES}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--quick", action="store_true", help="Lite on 1 and 2 processes, 3 rounds")
    parser.add_argument("--output", type=Path, help="also writes the rows as json")
    parser.add_argument("--worker", choices=list(NETWORKS), dest="network", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    counts = {name: [getattr(options, name)] for name in ("threads", "pictures", "rounds")}
    for name, values in {**counts, "processes": options.processes}.items():
        if min(values) < 1:
            parser.error(f"--{name} must be at least 1, got {min(values)}")
    if options.quick:
        options.networks, options.processes, options.rounds = ["lite"], [1, 2], 3
    return options


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    return guarded(measure if options.network else run, options)


def run(options: argparse.Namespace) -> int:
    distributed.choose_device(options.device)  # refused here, not in each of the processes
    with tempfile.TemporaryDirectory() as folder:
        count = (options.rounds + 1) * options.pictures * max(options.processes)
        write_set(Path(folder) / "set", count)
        every = [(network, n) for network in options.networks for n in options.processes]
        rows = [launch(network, n, options, Path(folder)) for network, n in every]
    each = f"{options.threads} thread(s) and {options.pictures} picture(s) a process"
    print(f"{platform.processor() or platform.machine()}, {each}, milliseconds")
    print(as_table(rows))
    for row in {row["network"]: row for row in rows}.values():
        print(expectation(row["network"], row["gradient_bytes"]))
    if options.output:
        write(options.output, {"torch": torch.__version__, "rows": rows})
    return 0


def write(path: Path, content: dict) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
