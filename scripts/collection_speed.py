"""How fast and how large scripts/score_collection.py is beside `predict`, on the same files.

    python scripts/collection_speed.py --pictures DIR [--count 20000] --output results/collection_speed.json \
        --readme docs/scale.md
    python scripts/collection_speed.py --tables results/collection_speed.json --readme docs/scale.md

The files are links to the pictures below DIR, over and over. Both programs run as a user would start them, in
turn; processor time is that of all their processes. Beside it stands what a model of a cluster makes of the
rates of one core. On a quiet machine; needs requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import psutil
import torch

from eamb.files import written_whole
from eamb.inference.collection import Picture, decode_pictures
from eamb.inference.photographs import find_pictures
from eamb.inference.scorer import Scorer
from eamb.runtime.command import guarded
from scripts.samples import photograph

ROOT = Path(__file__).resolve().parents[1]
COUNT, GPUS, CORES, STORE = (
    100e6,
    64,
    16,
    25e9,
)  # of the model: pictures, GPUs, cores a GPU, bytes/s of the store
GPU = 31220 / 17  # pictures/s of `predict` on one H100, in bf16 (docs/performance.md#on-one-h100)


def run_watched(*words: str) -> dict:
    """Runs one of our programs to its end.

    Returns:
        seconds: of the wall clock. processor: seconds of all its processes. others: of these, the seconds of
        all but the busiest process. memory: MB of its largest process, after a quarter, a half, three
        quarters and all of the time.
    """
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    seconds: dict[int, float] = {}
    largest = []
    while process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        sizes = [0.0]
        for each in family:
            try:
                times = each.cpu_times()
                seconds[each.pid] = times.user + times.system
                sizes.append(each.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                continue
        largest.append(max(sizes) or largest[-1])  # 0: it has just ended
        time.sleep(1)
    wall = time.perf_counter() - begun
    if process.returncode:
        raise ChildProcessError(f"collection_speed: {' '.join(words)} ended with {process.returncode}")
    quarters = [largest[len(largest) * part // 4 - 1] for part in (1, 2, 3, 4)]
    spent = sum(seconds.values())
    others = spent - max(seconds.values())
    return {"seconds": wall, "processor": spent, "others": others, "memory": quarters}


def compare(pictures: list[str], count: int, rounds: int) -> dict:
    """Both programs on `count` links to the pictures: the medians of `rounds`, and how much scores differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "links").mkdir()
        for number, path in enumerate(itertools.islice(itertools.cycle(pictures), count)):
            (folder / "links" / f"{number:06d}{Path(path).suffix}").symlink_to(Path(path).resolve())
        runs: dict[str, list[dict]] = {"predict": [], "score_collection": []}
        for number in range(rounds):
            table, output = folder / f"{number}.csv", folder / f"out{number}"
            runs["predict"].append(
                run_watched("main.py", "predict", f"{folder}/links", "--output", f"{table}")
            )
            words = ("scripts/score_collection.py", f"{folder}/links", f"{output}")
            runs["score_collection"].append(run_watched(*words))
        theirs, ours = pd.read_csv(table), pd.read_parquet(output / "scores")
        if theirs["path"].tolist() != ours["path"].tolist():
            raise ValueError("collection_speed: the two programs scored other pictures")
        difference = float(np.abs(theirs["score"].to_numpy() - ours["score"].to_numpy()).max())
    rows = {}
    for program, several in runs.items():
        keys = ("seconds", "processor", "others")
        median = {key: float(np.median([run[key] for run in several])) for key in keys}
        rows[program] = median | {"memory": several[-1]["memory"]}
    return {"count": count, "rounds": rounds, "rows": rows, "difference": difference}


def core_rates(pictures: list[str]) -> dict:
    """What one core does in a second: pictures decoded, those given and 800x600 JPEGs, and scored."""
    torch.set_num_threads(1)
    scorer, large = Scorer(device="cpu"), io.BytesIO()
    photograph(800, 600).save(large, "JPEG", quality=90)
    given = [Picture(path, path) for path in pictures[:256]]
    batch = decode_pictures(given[:16], scorer.network.views, False)
    jobs = {
        "decode": (len(given), lambda: decode_pictures(given, scorer.network.views, False)),
        "decode_800x600": (
            64,
            lambda: decode_pictures(
                [Picture("large.jpg", content=large.getvalue())] * 64, scorer.network.views, False
            ),
        ),
        "network": (16, lambda: next(scorer.network.outputs([batch], 16))),
    }
    rates = {}
    for name, (count, job) in jobs.items():
        seconds = []
        for _ in range(6):
            begun = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - begun)
        rates[name] = count / float(np.median(seconds[1:]))
    return rates | {"bytes_800x600": len(large.getvalue())}


def model(rates: dict) -> list[tuple[str, float]]:
    """Pictures a second that each part of a cluster of GPUS could handle; the slowest decides."""
    return [
        (f"decoding, {CORES} cores a GPU", GPUS * CORES * rates["decode_800x600"]),
        ("network, as on one H100", GPUS * GPU),
        (f"store, {STORE / 1e9:g} GB/s", STORE / rates["bytes_800x600"]),
    ]


def as_tables(report: dict) -> str:
    about, compared, rates = report["machine"], report["compared"], report["rates"]
    count, rows = compared["count"], compared["rows"]
    lines = [
        f"{about['processor']}, {about['cores']} cores, {about['ray']} (`results/collection_speed.json`). "
        f"{count:,} files, median of {compared['rounds']}; scores differ by {compared['difference']:.0e} at "
        "most.",
        "",
        "| | pictures/s | seconds | processor, s | of these outside the busiest process | MB of the largest "
        "process after 1/4, 2/4, 3/4, all |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for program, row in rows.items():
        memory = ", ".join(f"{size:,.0f}" for size in row["memory"])
        spent = " | ".join(f"{row[key]:.0f}" for key in ("seconds", "processor", "others"))
        lines.append(f"| {program} | {count / row['seconds']:.1f} | {spent} | {memory} |")
    more = {key: rows["score_collection"][key] / rows["predict"][key] - 1 for key in ("seconds", "processor")}
    lines += [f"| difference | | {more['seconds']:+.0%} | {more['processor']:+.0%} | | |", ""]
    lines += [
        f"One core decodes {rates['decode']:.0f} of these files or {rates['decode_800x600']:.0f} JPEGs of "
        f"800x600 ({rates['bytes_800x600'] / 1e3:.0f} kB) a second, and scores "
        f"{rates['network']:.0f} pictures.",
        "",
        f"| {GPUS} GPUs | pictures/s | {COUNT / 1e6:g} M pictures, hours | GPU hours |",
        "|---|---:|---:|---:|",
    ]
    for part, rate in report["model"]:
        hours = COUNT / rate / 3600
        lines.append(f"| {part} | {rate:,.0f} | {hours:.2f} | {GPUS * hours:.0f} |")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict:
    import ray

    pictures = [picture.path for picture in find_pictures([options.pictures])]
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
    rates = core_rates(pictures)
    return {
        "machine": {
            "processor": processor,
            "cores": len(os.sched_getaffinity(0)),
            "ray": f"ray {ray.__version__}",
        },
        "rates": rates,
        "model": model(rates),
        "compared": compare(pictures, options.count, options.rounds),
    }


def collection_speed(options: argparse.Namespace) -> int:
    if not (options.pictures or options.tables):
        raise ValueError("collection_speed: give --pictures DIR to measure, or --tables FILE")
    report = json.loads(options.tables.read_text("utf-8")) if options.tables else measure(options)
    tables = as_tables(report)
    print(tables)
    if options.output:
        with written_whole(options.output) as path:
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.readme:
        begin, end = "<!-- collection_speed.json -->", "<!-- end of collection_speed.json -->"
        before, _, rest = options.readme.read_text(encoding="utf-8").partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"collection_speed: {options.readme} must hold {begin} and behind it {end}")
        with written_whole(options.readme) as path:
            path.write_text(f"{before}{begin}\n{tables}\n{end}{after}", encoding="utf-8")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pictures", metavar="DIR")
    add("--count", type=int, default=20000, help="links; default: 20000")
    add("--rounds", type=int, default=1)
    add("--output", type=Path, metavar="FILE", help="the figures as json")
    add("--tables", type=Path, metavar="FILE", help="measure nothing, print the tables of this json")
    add("--readme", type=Path, metavar="FILE", help="put the tables there too, between their markers")
    return guarded(collection_speed, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
