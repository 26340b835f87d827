"""Compares several networks on pairs of photographs: how well each predicts which one people prefer.

    python main.py evaluate --dataset pairs --data-root SERIES/graded --checkpoint A --output runs/graded/a
    python main.py evaluate --dataset pairs --data-root SERIES/graded --checkpoint B --output runs/graded/b
    python scripts/series_table.py runs/graded/a runs/graded/b --output results/series.json

Folders with the same parent form one block of the table and must have the same pairs. In brackets are 95 %
intervals; differences from the block's first network use the same resamples of whole series. The kind of a
series is the last word in its name that is not a number, as "blurred" in test-00012-blurred.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.preferences import compare_pairs
from eamb.evaluation.report import without_nan
from eamb.files import original, written_whole
from eamb.runtime.command import check_output, guarded

PAIR = ["series", "first", "second", "preference"]  # columns of evaluate's predictions.csv, and "prediction"
SHOWN = {  # metric -> column title, format
    "accuracy": ("accuracy", "{:.1%}"),
    "auc": ("AUC", "{:.3f}"),
    "log_loss": ("log-loss", "{:.3f}"),
    "calibration_error": ("calibration error", "{:.3f}"),
    "series_krcc": ("KRCC within a series", "{:.3f}"),
    "series_best": ("best of a series found", "{:.1%}"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="written by evaluate")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the figures as json")
    parser.add_argument("--resamples", type=int, default=1000, help="of the series (default 1000)")
    parser.add_argument("--force", action="store_true", help="overwrite --output")
    return guarded(write_table, parser.parse_args(arguments))


def write_table(options: argparse.Namespace) -> int:
    if options.output:
        check_output("series_table", options.output.parent, [options.output.name], options.force)
    firsts: dict[str, tuple[str, pd.DataFrame]] = {}  # block -> name and pairs of its first network
    figures: dict[str, dict[str, dict]] = {}  # block -> network -> figures
    for folder in (folder.resolve() for folder in options.folders):
        block, pairs = folder.parent.name, read_pairs(folder / "predictions.csv")
        networks = figures.setdefault(block, {})
        name, first = firsts.setdefault(block, (folder.name, pairs))
        if folder.name in networks or not pairs[PAIR].equals(first[PAIR]):
            raise ValueError(
                f"series_table: {block}/{folder.name} is named twice or is not of the same pairs as "
                f"{block}/{name}; evaluate them on one folder, or put them into folders of their own"
            )
        networks[folder.name] = compare_with_first(pairs, first, options.resamples)
    for block, networks in figures.items():
        print(as_table(block, networks), end="\n\n")
    if options.output:
        with written_whole(options.output) as path:
            text = json.dumps(without_nan(figures), indent=1, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")
    return 0


def read_pairs(path: Path) -> pd.DataFrame:
    """One row for each pair; preference and prediction are in [0, 1]."""
    try:
        pairs = pd.read_csv(path, usecols=[*PAIR, "prediction"], dtype=str, keep_default_na=False)
        pairs[PAIR[:3]] = pairs[PAIR[:3]].apply(lambda names: names.map(original))
        pairs = pairs.astype({"preference": float, "prediction": float})
    except ValueError as error:
        raise ValueError(f"series_table: {path} is not a report on pairs: {error}") from error
    if pairs.empty or not pairs[["preference", "prediction"]].stack().between(0, 1).all():
        raise ValueError(f"series_table: {path} must have pairs, with preference and prediction from 0 to 1")
    return pairs


def compare_with_first(pairs: pd.DataFrame, first: pd.DataFrame, resamples: int) -> dict:
    """A network's figures, their intervals, and by how much its accuracy differs from the first network's."""
    report = compare_pairs("", {name: column.to_numpy() for name, column in pairs.items()}, resamples)
    result = {"metrics": report.metrics | report.facts, "intervals_95": report.intervals}
    words = [[word for word in name.split("-") if not word.isdecimal()] for name in pairs["series"]]
    kinds = pairs.groupby([parts[-1] if parts else "" for parts in words])
    result["accuracy_by_kind"] = {
        kind: metrics.pair_accuracy(rows["prediction"], rows["preference"]) for kind, rows in kinds
    }
    if pairs is not first:
        arrays = (first["prediction"], pairs["prediction"], pairs["preference"])

        def difference(first, other, preference) -> dict[str, float]:
            accuracies = [metrics.pair_accuracy(predicted, preference) for predicted in (first, other)]
            return {"accuracy": accuracies[1] - accuracies[0]}

        result["accuracy_difference"] = difference(*arrays)["accuracy"]
        intervals = bootstrap_intervals(difference, arrays, resamples, groups=pairs["series"])
        result["accuracy_difference_95"] = intervals["accuracy"]
    return result


def as_table(block: str, networks: dict[str, dict]) -> str:
    """A block in Markdown."""
    first = next(iter(networks.values()))
    heads = [head for head, _ in SHOWN.values()]
    lines = ["{}: {pairs:,} pairs of {photographs:,} photographs".format(block, **first["metrics"]), ""]
    lines += [f"| | {' | '.join(heads)} | accuracy minus the first's |", "|" + "---|" * (len(SHOWN) + 2)]
    for name, network in networks.items():
        cells = [name]
        for metric, (_, form) in SHOWN.items():
            value, (low, high) = network["metrics"][metric], network["intervals_95"][metric]
            cells.append(f"{form.format(value)} ({form.format(low)} to {form.format(high)})")
        difference = ""
        if "accuracy_difference" in network:
            low, high = network["accuracy_difference_95"]
            difference = f"{network['accuracy_difference']:+.1%} ({low:+.1%} to {high:+.1%})"
        lines.append(f"| {' | '.join(cells)} | {difference} |")
    kinds = first["accuracy_by_kind"]
    lines += ["", f"| accuracy | {' | '.join(kinds)} |", "|" + "---|" * (len(kinds) + 1)]
    for name, network in networks.items():
        cells = [name, *(f"{value:.1%}" for value in network["accuracy_by_kind"].values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
