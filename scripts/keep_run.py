"""Copies what may be published of a run to results/: settings, log, metrics, predictions; no labels.

    python scripts/keep_run.py runs/para_lite results/para_lite

Keeps config.yaml (without the data folders' paths), metrics.jsonl, metrics.json, cross_validation.json and
predictions.csv, packed (ids and what the network predicted, nothing of the set's own ratings). Of a run on
several sets each set's report is in a folder of its name, of a cross-validation each fold's log. Of a trial
(train.score_test=false) there is no more than settings and log. A run that is in DIR already is replaced.
"""

from __future__ import annotations

import argparse
import gzip
import io
import shutil
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

COPIED = ("metrics.jsonl", "metrics.json", "cross_validation.json")
KEPT = ("config.yaml", *COPIED, "predictions.csv.gz")


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
    if foreign := not_of_a_run(options.output):
        parser.error(f"{options.output} holds {foreign}, and is no run that was kept; choose another folder")
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


def not_of_a_run(folder: Path) -> str:
    """What the folder of a kept run would not hold, or "": it is replaced, and must lose nothing else."""
    found = names(folder)
    if found and not any(name in KEPT for name in found):
        return f"only {found[0]} and other files in folders"
    return next((name for name in found if Path(name).name not in KEPT), "")


def keep(run: Path, evaluation: Path, output: Path) -> None:
    """Copies a run, its folds if it has any, and its evaluation, below which each set may have a folder.

    The copy is there whole or not at all, in the place of an earlier one.
    """
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for source in (run, *sorted(run.glob("fold_*"))):
        keep_folder(source, partial / source.relative_to(run))
    for source in (evaluation, *(path for path in sorted(evaluation.glob("*")) if path.is_dir())):
        keep_folder(source, partial / source.relative_to(evaluation))
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


def keep_folder(source: Path, output: Path) -> None:
    from eamb.files import written_whole  # imports torch

    output.mkdir(parents=True, exist_ok=True)
    contents = {name: (source / name).read_bytes() for name in COPIED if (source / name).is_file()}
    if (source / "config.yaml").is_file():
        contents["config.yaml"] = without_folders(source / "config.yaml").encode()
    if (source / "predictions.csv").is_file():
        contents["predictions.csv.gz"] = packed((source / "predictions.csv").read_bytes())
    for name, content in contents.items():
        with written_whole(output / name) as path:
            path.write_bytes(content)


def packed(content: bytes) -> bytes:
    """Equal input, equal bytes."""
    whole = io.BytesIO()
    with gzip.GzipFile("predictions.csv.gz", "wb", fileobj=whole, mtime=0) as file:
        file.write(content)
    return whole.getvalue()


def without_folders(config: Path) -> str:
    """The settings, not where data and emotion maps lay. That maps were kept stays: it changes figures."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["root"] = ""
    if settings.get("train", {}).get("emotion_maps"):
        settings["train"]["emotion_maps"] = "kept"
    return yaml.safe_dump(settings, sort_keys=False)


if __name__ == "__main__":
    main()
