"""Copies what may be published of a run to results/: settings, log, metrics, predictions; no labels.

    python scripts/keep_run.py runs/para_lite results/para_lite

Keeps config.yaml (without the data folders' paths), metrics.jsonl, metrics.json, cross_validation.json and
predictions.csv, packed (ids and what the network predicted, nothing of the set's own ratings). Of a run on
several sets each set's report is in a folder of its name, of a cross-validation each fold's log. Of a trial
(train.score_test=false) there is no more than settings and log.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path

import yaml

COPIED = ("metrics.jsonl", "metrics.json", "cross_validation.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--evaluation", type=Path, help="the evaluation's folder; default: RUN/test")
    options = parser.parse_args()
    evaluation = options.evaluation or options.run / "test"
    tested = any(path.is_file() for path in predictions(options.run, evaluation))
    if not tested and not is_trial(options.run):
        parser.error(f"{evaluation} holds no predictions.csv; has the run been evaluated?")
    keep(options.run, evaluation, options.output)
    print(f"{options.output}: {', '.join(names(options.output))}")


def predictions(run: Path, evaluation: Path) -> list[Path]:
    return [evaluation / "predictions.csv", *evaluation.glob("*/predictions.csv"), run / "predictions.csv"]


def is_trial(run: Path) -> bool:
    """Whether the run has no test on purpose."""
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return settings.get("train", {}).get("score_test") is False


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def keep(run: Path, evaluation: Path, output: Path) -> None:
    """Copies a run, its folds if it has any, and its evaluation, below which each set may have a folder."""
    for source in (run, *sorted(run.glob("fold_*"))):
        keep_folder(source, output / source.relative_to(run))
    for source in (evaluation, *(path for path in sorted(evaluation.glob("*")) if path.is_dir())):
        keep_folder(source, output / source.relative_to(evaluation))


def keep_folder(source: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if (source / "config.yaml").is_file():
        settings = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))
        settings["data"]["root"] = ""
        settings.get("train", {})["emotion_maps"] = ""
        text = yaml.safe_dump(settings, sort_keys=False)
        (output / "config.yaml").write_text(text, encoding="utf-8")
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)
    if (source / "predictions.csv").is_file():
        with gzip.GzipFile(output / "predictions.csv.gz", "wb", mtime=0) as file:  # equal input, equal bytes
            file.write((source / "predictions.csv").read_bytes())


if __name__ == "__main__":
    main()
