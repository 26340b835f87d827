"""One table of several ways to choose from series: preferences predicted by networks, side by side.

    python main.py evaluate --dataset pairs --data-root SERIES/graded --checkpoint A --output runs/graded/a
    python main.py evaluate --dataset pairs --data-root SERIES/graded --checkpoint B --output runs/graded/b
    python scripts/series_table.py runs/graded/a runs/graded/b --output results/series.json

Folders of one parent are one block of the table: they must be of the same pairs. In brackets stand 95 %
intervals, and behind them the differences of accuracy to the block's first, on the same resamples of whole
series. Under it the accuracy by what the series are called: the last word of a name that is no number, as
"blurred" in test-00012-blurred. The json has all figures; predictions and preferences stay where they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import metrics
from eamb.evaluation.evaluate import compare_pairs
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.report import without_nan
from eamb.files import original, written_whole
from eamb.readers.table import Sheet
from eamb.runtime.command import guarded, refuse_existing

COLUMNS = ("series", "first", "second", "preference", "prediction")  # as evaluate writes them
SHOWN = {"accuracy": "{:.1%}", "auc": "{:.3f}", "log_loss": "{:.3f}", "calibration_error": "{:.3f}"}
SHOWN |= {"series_krcc": "{:.3f}", "series_best": "{:.1%}"}


class Way(NamedTuple):
    """What one network predicts for a block's pairs: the columns of predictions.csv, (m,) each."""

    block: str
    name: str
    columns: dict[str, np.ndarray]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="that evaluate wrote")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the figures as json")
    parser.add_argument("--resamples", type=int, default=1000, help="of the series (default 1000)")
    parser.add_argument("--force", action="store_true", help="overwrite --output")
    return guarded(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    if options.output and not options.force:
        refuse_existing("series_table", options.output.parent, [options.output.name])
    blocks: dict[str, list[Way]] = defaultdict(list)
    for folder in options.folders:
        way = read_way(folder.resolve())
        if way.name in [other.name for other in blocks[way.block]]:
            raise ValueError(
                f"series_table: {way.block}/{way.name} is named twice; rename one of the folders"
            )
        blocks[way.block].append(way)
    found = {}
    for block, ways in blocks.items():
        check_same_pairs(ways)
        found[block] = {way.name: measure(way, ways[0], options.resamples) for way in ways}
        print(as_table(block, found[block]), end="\n\n")
    if options.output:
        with written_whole(options.output) as path:
            text = json.dumps(without_nan(found), indent=1, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")
    return 0


def read_way(folder: Path) -> Way:
    sheet = Sheet(folder / "predictions.csv")
    sheet.need(COLUMNS, " It is no report on pairs.")
    columns = {name: np.array([original(text) for text in sheet.texts(name)]) for name in COLUMNS[:3]}
    columns |= {name: sheet.numbers(name, 0.0, 1.0) for name in COLUMNS[3:]}
    return Way(folder.parent.name, folder.name, columns)


def check_same_pairs(ways: list[Way]) -> None:
    """Raises ValueError where two ways of a block were asked about other pairs."""
    first = ways[0]
    for way in ways[1:]:
        if any(not np.array_equal(way.columns[name], first.columns[name]) for name in COLUMNS[:4]):
            raise ValueError(
                f"series_table: {way.block}/{way.name} and {first.block}/{first.name} are not of the same "
                "pairs; evaluate them on one folder, or put them into folders of their own"
            )


def measure(way: Way, first: Way, resamples: int) -> dict:
    """Figures of a way, their intervals, and by how much its accuracy differs from the first's."""
    report = compare_pairs(way.name, way.columns, resamples)
    result = {"metrics": report.metrics | report.facts, "intervals_95": report.intervals}
    result["accuracy_by_kind"] = by_kind(way)
    if way is not first:
        arrays = (first.columns["prediction"], way.columns["prediction"], way.columns["preference"])
        result["accuracy_difference"] = difference(*arrays)["accuracy"]
        result["accuracy_difference_95"] = bootstrap_intervals(
            difference, arrays, resamples, groups=way.columns["series"]
        )["accuracy"]
    return result


def difference(first: np.ndarray, other: np.ndarray, preference: np.ndarray) -> dict[str, float]:
    accuracies = [metrics.pair_accuracy(probability, preference) for probability in (first, other)]
    return {"accuracy": accuracies[1] - accuracies[0]}


def by_kind(way: Way) -> dict[str, float]:
    """Accuracy of each kind of series, by the last word of their names that is no number."""
    words = ([word for word in name.split("-") if not word.isdecimal()] for name in way.columns["series"])
    kinds = np.array([own[-1] if own else "" for own in words])  # (m,)
    prediction, preference = way.columns["prediction"], way.columns["preference"]
    return {
        str(kind): metrics.pair_accuracy(prediction[kinds == kind], preference[kinds == kind])
        for kind in np.unique(kinds)
    }


def as_table(block: str, ways: dict[str, dict]) -> str:
    """A block in Markdown."""
    first = next(iter(ways.values()))["metrics"]
    heads = [metrics.TERMS.get(name, name.replace("_", " ")) for name in SHOWN]
    lines = [f"{block}: {first['pairs']:,} pairs of {first['photographs']:,} photographs", ""]
    lines += [f"| | {' | '.join(heads)} | accuracy minus the first's |", "|" + "---|" * (len(SHOWN) + 2)]
    for name, way in ways.items():
        cells = []
        for term, form in SHOWN.items():
            low, high = (form.format(value) for value in way["intervals_95"][term])
            cells.append(f"{form.format(way['metrics'][term])} ({low} to {high})")
        apart = ""
        if "accuracy_difference" in way:
            low, high = way["accuracy_difference_95"]
            apart = f"{way['accuracy_difference']:+.1%} ({low:+.1%} to {high:+.1%})"
        lines.append(f"| {name} | {' | '.join(cells)} | {apart} |")
    kinds = next(iter(ways.values()))["accuracy_by_kind"]
    lines += ["", f"| accuracy | {' | '.join(kinds)} |", "|" + "---|" * (len(kinds) + 1)]
    for name, way in ways.items():
        lines.append(
            f"| {name} | {' | '.join(f'{value:.1%}' for value in way['accuracy_by_kind'].values())} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
