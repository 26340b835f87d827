"""Copies what may be published of a run to results/: settings, log, metrics, predictions; no labels.

    python scripts/keep_run.py runs/para_lite results/para_lite

Writes config.yaml (without the data folder's path), metrics.jsonl, metrics.json and predictions.csv.gz (ids
and what the network predicted, nothing of the set's own ratings).
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path

import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--evaluation", type=Path, help="the evaluation's folder; default: RUN/test")
    options = parser.parse_args()
    evaluation = options.evaluation or options.run / "test"
    if not (evaluation / "predictions.csv").is_file():
        parser.error(f"{evaluation} holds no predictions.csv; has the run been evaluated?")
    keep(options.run, evaluation, options.output)
    print(f"{options.output}: {', '.join(sorted(path.name for path in options.output.iterdir()))}")


def keep(run: Path, evaluation: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings["data"]["root"] = ""
    (output / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    shutil.copyfile(run / "metrics.jsonl", output / "metrics.jsonl")
    shutil.copyfile(evaluation / "metrics.json", output / "metrics.json")
    with gzip.GzipFile(output / "predictions.csv.gz", "wb", mtime=0) as file:  # equal input, equal bytes
        file.write((evaluation / "predictions.csv").read_bytes())


if __name__ == "__main__":
    main()
