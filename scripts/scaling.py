"""Where the time of a training step goes on 1, 2 and 4 processes.

    python scripts/scaling.py --output scaling.json       # the paper's network and EAMB-Net Lite
    python scripts/scaling.py --quick                     # Lite on 1 and 2 processes
    python scripts/scaling.py --processes 1 8 --pictures 24 --precision bf16     # a machine with eight GPUs

The loader decodes an 800x600 JPEG in the measured process. Forward and backward are without averaging
gradients; all-reduce is how much longer the backward pass takes when they are averaged. "sum alone" sums as
many bytes without computing anything else. Medians over the rounds, averaged over the processes.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from eamb.files import written_whole
from eamb.network import backbones
from eamb.network.outputs import PRECISIONS
from eamb.runtime import distributed, engine
from eamb.runtime.command import check_output, guarded
from EAMBNet import build_model
from losses import score_loss
from scripts.benchmark import picture_set
from scripts.samples import photograph

NETWORKS = {
    "paper": {"backbone": backbones.RESNET50},
    "lite": {"backbone": backbones.LITE0, "width": 128, "context_scale": 1.0},
}
SIZES = {"paper": 512, "lite": 224}  # pixels
SENT = {"fp32": torch.float32, "bf16": torch.bfloat16}  # train.gradient_precision


def measure_steps(name: str, size: int, path: str, options: argparse.Namespace) -> dict:
    """Seconds of each part and the gradients' bytes, for one network."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with distributed.session(options.device) as device:
        engine.keep_memory(device)

        @contextmanager
        def clock(part: str) -> Iterator[None]:
            distributed.gather(None)  # processes wait for each other here, not in the measured part
            start = time.perf_counter()
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[part].append(time.perf_counter() - start)

        pictures, seconds = picture_set(path, size), defaultdict(list)
        network = build_model(outputs=1, **NETWORKS[name]).train()
        models = {"alone": network.to(device, memory_format=torch.channels_last)}
        if distributed.world() > 1:
            models |= {kind: distributed.wrap(copy.deepcopy(network), device, kind) for kind in SENT}
        compute = engine.Compute(device, options.precision, *backbones.normalisation(backbones.RESNET50))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        count = sum(map(torch.numel, trained))
        optimizer = torch.optim.Adam(trained, lr=1e-9, fused=device.type != "mps")
        for number in range(options.rounds + 1):
            if number == 1:  # the first round was a warm-up
                seconds.clear()
            with clock("loader"):
                batch = pictures.collate([pictures[0] for _ in range(options.pictures)])
            for kind, model in models.items():
                model.zero_grad(set_to_none=True)
                with clock(f"forward_{kind}"):
                    moved = engine.to_device(batch, device)
                    with compute.autocast():
                        loss = score_loss(model(compute.images(moved)).prediction, moved.scores)
                with clock(f"backward_{kind}"):
                    loss.backward()
            with clock("optimizer"):
                optimizer.step()
            for kind in models.keys() & SENT:
                gradient = torch.zeros(count, dtype=SENT[kind], device=device)
                with clock(f"sum_{kind}"):
                    distributed.total(gradient)
        return {"gradient_bytes": 4 * count, **summary(distributed.gather(dict(seconds)))}


def summary(every: list[dict[str, list[float]]]) -> dict[str, float]:
    """Seconds of each part from the rounds of all processes."""
    seconds = {part.removesuffix("_alone"): [p[part] for p in every] for part in every[0]}
    for kind in SENT if len(every) > 1 else ():
        del seconds[f"forward_{kind}"]
        pairs = zip(seconds.pop(f"backward_{kind}"), seconds["backward"], strict=True)
        seconds[f"all_reduce_{kind}"] = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
    return {part: mean(map(median, rounds)) for part, rounds in seconds.items()}


def as_table(rows: list[dict]) -> str:
    """In milliseconds; "-" where there is nothing to average."""
    names = ("loader", "forward", "backward", "optimizer", "all-reduce fp32", "all-reduce bf16")
    names += ("sum alone fp32", "sum alone bf16")
    parts = [name.replace("sum alone", "sum").replace("-", "_").replace(" ", "_") for name in names]
    lines = [("network", "px", "processes", *names, "pictures/s")]
    lines.append(("---",) * len(lines[0]))
    for row in rows:
        times = [f"{1000 * row[part]:.0f}" if part in row else "-" for part in parts]
        rate = row["processes"] * row["pictures"] / sum(row.get(part, 0) for part in parts[1:5])
        lines.append((row["network"], str(row["size"]), str(row["processes"]), *times, f"{rate:.2f}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scaling(options: argparse.Namespace) -> int:
    if options.output:
        check_output("scaling", options.output.parent, [options.output.name])
    distributed.choose_device(options.device, "--device")  # refuses a wrong one here, not in each process
    once = {"run_id": "scaling", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/800x600.jpg"
        photograph(800, 600).save(path, quality=90)
        for name, processes in product(options.networks, options.processes):
            config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, **once)
            row = {"network": name, "processes": processes, "pictures": options.pictures}
            row |= {"size": options.size or SIZES[name], "threads": options.threads}
            rows.append(row | elastic_launch(config, measure_steps)(name, row["size"], path, options)[0])
    each = f"{options.threads} thread(s) and {options.pictures} picture(s) a process"
    print(f"{platform.processor() or platform.machine()}, {each}, milliseconds")
    print(as_table(rows))
    if options.output:
        with written_whole(options.output) as temporary:
            report = {"torch": torch.__version__, "rows": rows}
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--processes", nargs="+", type=int, default=[1, 2, 4], metavar="N")
    add("--threads", type=int, default=1, help="of each process, on a CPU")
    add("--pictures", type=int, default=2, help="in a step of each process")
    add("--size", type=int, help=f"pixels; default: {SIZES}")
    add("--rounds", type=int, default=7)
    add("--device", default="auto")
    add("--precision", default="fp32", choices=list(PRECISIONS))
    add("--quick", action="store_true", help="Lite on 1 and 2 processes, 3 rounds")
    add("--output", type=Path, help="write the rows as json too")
    options = parser.parse_args(words)
    for name in ("threads", "pictures", "rounds", "processes"):
        if (least := min(np.atleast_1d(getattr(options, name)))) < 1:
            parser.error(f"--{name} must be at least 1, got {least}")
    if options.quick:
        options.networks, options.processes, options.rounds = ["lite"], [1, 2], 3
    return guarded(scaling, options)


if __name__ == "__main__":
    sys.exit(main())
