"""Copies the publishable files of a run to results/: settings, log, metrics, predictions; no labels.

    python scripts/keep_run.py runs/para_lite results/para_lite

Keeps config.yaml (without the data folders' paths), metrics.jsonl, metrics.json, cross_validation.json and
predictions.csv, compressed (ids and what the network predicted, nothing of the set's own ratings). A run on
several sets has each set's report in a folder of its name, a cross-validation each fold's log, and a trial
(train.score_test=false) only settings and log. An earlier copy in DIR is replaced.

Of several networks, or of averaged weights, RUN is the first one's run, and --evaluation that of all.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from pathlib import Path

import yaml

COPIED = ("metrics.jsonl", "metrics.json", "cross_validation.json")
KEPT = ("config.yaml", *COPIED, "predictions.csv.gz")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--evaluation", type=Path, help="the evaluation's folder; default: RUN/test")
    options = parser.parse_args(arguments)
    run, output = options.run, options.output
    evaluation = options.evaluation or run / "test"
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    trial = settings.get("train", {}).get("score_test") is False  # has no test on purpose
    places = (evaluation, *evaluation.glob("*"), run)
    if not trial and not any((place / "predictions.csv").is_file() for place in places):
        parser.error(f"{evaluation} holds no predictions.csv; has the run been evaluated?")
    existing = names(output)
    others = [name for name in existing if Path(name).name not in KEPT]
    if others or (existing and not any(name in KEPT for name in existing)):
        shown = others[0] if others else f"only {existing[0]} and other files in folders"
        parser.error(f"{output} holds {shown}, and is not a run that was kept; choose another folder")
    keep(run, evaluation, output)
    print(f"{output}: {', '.join(names(output))}")
    return 0


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def keep(run: Path, evaluation: Path, output: Path) -> None:
    """Copies a run, its folds if any, and its evaluation, which may have a sub-folder for each set.

    The copy replaces an earlier one, and exists whole or not at all.
    """
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    sources = {source: partial / source.relative_to(run) for source in (run, *run.glob("fold_*"))}
    reports = (evaluation, *(path for path in evaluation.glob("*") if path.is_dir()))
    sources |= {source: partial / source.relative_to(evaluation) for source in reports}
    for source, target in sources.items():
        target.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        if (source / "config.yaml").is_file():
            settings = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))
            settings["data"]["root"] = ""
            for part, name in (("data", "distill"), ("model", "imagenet")):  # files, without where they lay
                if settings.get(part, {}).get(name):
                    settings[part][name] = Path(settings[part][name]).name
            if settings.get("train", {}).get("emotion_maps"):
                settings["train"]["emotion_maps"] = "kept"  # where they lay does not matter
            text = yaml.safe_dump(settings, sort_keys=False)
            (target / "config.yaml").write_text(text, encoding="utf-8")
        if (source / "predictions.csv").is_file():
            packed = gzip.compress((source / "predictions.csv").read_bytes(), mtime=0)  # no time in it
            (target / "predictions.csv.gz").write_bytes(packed)
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


if __name__ == "__main__":
    sys.exit(main())
