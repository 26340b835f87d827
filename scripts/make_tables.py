"""Writes the README's tables and results/tables/*.csv from results/: saved predictions, figures of others.

    python scripts/make_tables.py --data-root para=PARA    # measures again; needs the set with its ratings
    python scripts/make_tables.py                          # writes the tables from what was measured

results/tables.yaml names the tables and their rows. With --data-root every metric of every run on that set is
computed from its predictions, compared with its metrics.json, and kept in results/measured.json with the
SHA-256 of the predictions: figures only, so that the tables can be written without the ratings.

All runs are measured on the same resamples of the pictures. A row of several seeds is the mean of their
metrics. A difference of two rows counts if its paired 95 % interval does not hold 0 and it is larger than the
seed spread: SPREADS times the root of the sum of both rows' variances over their seeds. That is a rule of
thumb: 2 deviations, of so few seeds, are a rough guard and no test. A row of one seed is given the largest
known deviation of its table; if none is known, no difference counts.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from datasets import SetReader
from eamb.evaluation.evaluate import compare, labelled, truth, with_emotions
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.report import without_nan
from eamb.files import file_hash, original, written_whole
from eamb.readers.rated import DataOptions, RatedSet
from eamb.readers.table import Sheet
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config
from eamb.training.run import changed_settings
from eamb.training.tasks import has_emotion_branch

ROOT = Path(__file__).resolve().parent.parent
MEASURES = ("srcc", "plcc", "rmse", "mae", "accuracy", "accuracy_inclusive")  # that have an interval
# The measure whose differences are told, by what the set's ratings are; chosen before anything was measured.
# Those of the others stand in the csv.
DECISIVE = {"score": "srcc", "distribution": "srcc", "label": "accuracy"}
SPREADS = 2  # a rule of thumb, as if the deviations of the seeds were known
TOLERANCE = 1e-8  # of metrics.json against the predictions: some were rounded after they were measured
NEEDED = ("metrics", "dataset", "split", "split_sha256")  # in metrics.json
TRAINED_ON = {  # in metrics.json -> its column in the csv, and what a row is called that has any
    "test_pictures_trained_on": ("trained_on", "contaminated"),
    "test_pictures_that_the_emotion_branch_was_trained_on": (
        "emotion_branch_trained_on",
        "emotion branch contaminated",
    ),
}
FIGURES = {"srcc": "SRCC", "plcc": "PLCC", "accuracy": "accuracy"}  # columns of published.csv
PUBLISHED = ("block", "method", *FIGURES, "source", "note")
WIDTH = 118  # of a line of prose in the README


def main(arguments: list[str] | None = None) -> int:
    return guarded(run, parse(arguments))


def run(options: argparse.Namespace) -> int:
    roots = data_roots(options.data_root)
    tables = read_tables(options.results / "tables.yaml")
    runs = read_runs(tables, options.results)
    path = options.results / "measured.json"
    measured = read_json(path, "delete it and measure again, with --data-root") if path.is_file() else {}
    if roots:
        measured = measure_tables(tables, runs, roots, measured, options.resamples)
    texts = written_tables(tables, runs, measured, options.results, options.readme)
    texts = {path: json.dumps(measured, indent=1, allow_nan=False) + "\n"} | texts
    for target, text in texts.items():
        with written_whole(target) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    print("\n".join(map(str, texts)))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data-root", metavar="SET=DIR", action="append", default=[], help="para=PARA, ...")
    parser.add_argument("--results", type=Path, metavar="DIR", default=ROOT / "results")
    parser.add_argument("--readme", type=Path, metavar="FILE", default=ROOT / "README.md")
    parser.add_argument("--resamples", type=int, default=1000, help="of the pictures, for the intervals")
    return parser.parse_args(arguments)


def data_roots(words: list[str]) -> dict[str, Path]:
    """Set -> folder, from SET=DIR."""
    pairs = [word.partition("=") for word in words]
    for word, (name, _, folder) in zip(words, pairs, strict=True):
        if not name or not folder:
            raise ValueError(f"make_tables: --data-root is SET=DIR, as in para=PARA, not '{word}'")
    return {name.lower(): Path(folder) for name, _, folder in pairs}


def read_json(path: Path, remedy: str) -> dict:
    """Raises ValueError for a file that is cut or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"make_tables: {path} is no whole JSON file ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"make_tables: {path} holds no {{...}} but {str(content)[:40]}; {remedy}")
    return content


# ---------------------------------------------------------------------------------------------------
# What tables there are


@dataclass(frozen=True)
class Row:
    """A line of a table: a network, trained once for each seed; runs are names of folders."""

    name: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of ours, or a block of published.csv."""

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    reference: str = ""
    block: str = ""

    @property
    def runs(self) -> list[str]:
        return [name for row in self.rows for name in row.runs]


def read_tables(path: Path) -> list[Table]:
    """Checked: every name once, no unknown key, the reference is a row.

    Raises:
        ValueError: one sentence that names table and row.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"make_tables: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"make_tables: {path} must be a list of tables")
    tables = [as_table(entry, path) for entry in entries]
    refuse_repeats([table.name for table in tables], f"{path}: two tables are named")
    return tables


TABLE_KEYS = {"name": str, "title": str, "rows": list, "reference": str, "block": str}
ROW_KEYS = {"name": str, "runs": list}
KINDS = {str: "text", list: "list, as in [one, two]"}


def as_table(entry: dict, path: Path) -> Table:
    where = f"{path}: table {named(entry)}"
    check_keys(entry, ("name", "title"), TABLE_KEYS, where)
    if ("rows" in entry) == ("block" in entry):
        raise ValueError(f"make_tables: {where} needs either rows (ours) or block (of published.csv)")
    check_keys(entry, ("rows",) if "rows" in entry else ("block",), TABLE_KEYS, where)
    rows = []
    for row in entry.get("rows", ()):
        check_keys(row, tuple(ROW_KEYS), ROW_KEYS, f"{where}, row {named(row)}")
        rows.append(Row(row["name"], tuple(map(str, row["runs"]))))
    table = Table(**(entry | {"rows": tuple(rows), "reference": entry.get("reference") or ""}))
    names = [row.name for row in rows]
    refuse_repeats(names, f"{where}: two rows are named")
    refuse_repeats(table.runs, f"{where}: two rows or seeds are the run")
    if table.reference and table.reference not in names:
        raise ValueError(
            f"make_tables: {where}: its reference '{table.reference}' is none of its rows: {names}"
        )
    return table


def named(entry: object) -> str:
    return str(entry.get("name", "?") if isinstance(entry, dict) else entry)


def check_keys(entry: object, needed: tuple[str, ...], kinds: dict[str, type], where: str) -> None:
    """Raises ValueError unless the entry has what is needed, and only keys and values as in `kinds`."""
    if not isinstance(entry, dict):
        raise ValueError(f"make_tables: {where} is a {type(entry).__name__}; it takes {', '.join(kinds)}")
    missing = [key for key in needed if not entry.get(key)]
    unknown = [str(key) for key in entry if key not in kinds]
    mistaken = [key for key in kinds if entry.get(key) and not isinstance(entry[key], kinds[key])]
    if missing or unknown or mistaken:
        wrong = f"has {mistaken[0]} that are no {KINDS[kinds[mistaken[0]]]}" if mistaken else ""
        wrong = f"has the unknown key '{unknown[0]}'" if unknown else wrong
        wrong = f"has no {missing[0]}" if missing else wrong
        raise ValueError(f"make_tables: {where} {wrong}; it takes {', '.join(kinds)}")


def refuse_repeats(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"make_tables: {what} '{name}'; give each its own name")


def read_published(path: Path) -> dict[str, list[dict[str, str]]]:
    """Block -> rows of published.csv, with their cells as they were printed; an unknown one is empty.

    Raises:
        ValueError: a row without a source or that is there twice, a cell that is no figure.
    """
    blocks: dict[str, list[dict[str, str]]] = {}
    lines: dict[tuple[str, str], int] = {}
    sheet = Sheet(path, rows=False)
    if tuple(sheet.columns) != PUBLISHED:
        raise ValueError(f"make_tables: {path}: its columns must be {', '.join(PUBLISHED)}")
    for line, *cells in zip(sheet.rows, *sheet.cells.values(), strict=True):
        row = dict(zip(PUBLISHED, map(original, cells), strict=True))
        where = f"{path} row {line}: {row['block']}, {row['method']}"
        check_published(row, where)
        first = lines.setdefault((row["block"], row["method"]), line)
        if first != line:
            raise ValueError(f"make_tables: {where} is in row {first} too; give each row its own name")
        blocks.setdefault(row["block"], []).append(row)
    return blocks


def check_published(row: dict[str, str], where: str) -> None:
    if not row["block"].strip() or not row["method"].strip():
        raise ValueError(f"make_tables: {where} has no block or no method; say what the figures are of")
    if not row["source"].strip():
        raise ValueError(f"make_tables: {where} has no source; say where its figures are printed")
    for name, largest in (("srcc", 1), ("plcc", 1), ("accuracy", 100)):
        if row[name] and not (re.fullmatch(r"[0-9]*\.?[0-9]+", row[name]) and float(row[name]) <= largest):
            raise ValueError(f"make_tables: {where}: {name} is '{row[name]}', not a figure up to {largest}")


# ---------------------------------------------------------------------------------------------------
# Runs


@dataclass(frozen=True)
class Run:
    """A folder of results/.

    content: of metrics.json. config: None for predictions of another program. sha256: of the predictions.
    shown: pictures an epoch; None where nobody knows.
    """

    folder: Path
    content: dict
    config: Config | None
    sha256: str
    shown: int | None

    @property
    def budget(self) -> str:
        """Pictures shown in an epoch x epochs; "" for another program's run."""
        return f"{self.shown:,} x {self.config.train.epochs}" if self.config else ""


def read_runs(tables: list[Table], results: Path) -> dict[str, Run]:
    """Every run of every table, by name, checked (`read_run`, `check_same`)."""
    runs = {name: read_run(results / name, table) for table in tables for name in table.runs}
    for table in tables:
        check_same(table, runs)
    return runs


def read_run(folder: Path, table: Table) -> Run:
    """Raises ValueError, FileNotFoundError, naming what is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"make_tables: table {table.name} names the run {folder.name}, but there is no folder {folder}"
        )
    file = folder / "metrics.json"
    content = read_json(file, "evaluate the run again and keep it") if file.is_file() else {}
    foreign = "predictions_file" in content  # of `main.py evaluate --predictions`
    needed = ("metrics.json", "predictions.csv.gz", *(() if foreign else ("config.yaml", "metrics.jsonl")))
    for name in needed:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"make_tables: {folder} (table {table.name}) has no {name}; scripts/keep_run.py fills it"
            )
    config = None if foreign else load_config([folder / "config.yaml"])
    known = tuple(TRAINED_ON)[: 1 + has_emotion_branch(config)] if config else ()
    if missing := [key for key in (*NEEDED, *known) if key not in content]:
        raise ValueError(f"make_tables: {file} has no '{missing[0]}'; evaluate the run again and keep it")
    shown = read_shown(folder / "metrics.jsonl") if config else None
    return Run(folder, content, config, file_hash(folder / "predictions.csv.gz"), shown)


def read_shown(log: Path) -> int:
    """Pictures in an epoch of a training."""
    try:
        return int(json.loads(log.read_text(encoding="utf-8").partition("\n")[0])["train_pictures"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"make_tables: the first line of {log} does not say train_pictures; keep the run again"
        ) from error


def check_same(table: Table, runs: dict[str, Run]) -> None:
    """All runs of a table predict the same pictures; those of a row differ in their seed and nothing else."""
    for name, key in product(table.runs, ("dataset", "split", "split_sha256")):
        first, other = (runs[i].content[key] for i in (table.runs[0], name))
        if first != other:
            raise ValueError(
                f"make_tables: table {table.name}: {key} of {name} is {other}, that of {table.runs[0]} is "
                f"{first}; all rows of a table are measured on the same pictures"
            )
    for row in table.rows:
        configs = {name: runs[name].config for name in row.runs if runs[name].config}
        settings = [reseeded(config).as_dict() for config in configs.values()]
        for name, now in zip(configs, settings, strict=True):
            if differences := changed_settings(settings[0], now):
                raise ValueError(
                    f"make_tables: table {table.name}, row {row.name}: {name} is not {next(iter(configs))} "
                    f"with another seed: {'; '.join(differences)}; make it a row of its own"
                )
        seeds = [f"train.seed={config.train.seed}" for config in configs.values()]
        refuse_repeats(seeds, f"table {table.name}, row {row.name}: two runs have")


def reseeded(config: Config) -> Config:
    return replace(config, train=replace(config.train, seed=0))


# ---------------------------------------------------------------------------------------------------
# Measuring: needs the ratings


def measure_tables(
    tables: list[Table], runs: dict[str, Run], roots: dict[str, Path], before: dict, resamples: int
) -> dict:
    """Of measured.json: table -> figures. Tables of sets whose folder is not given stay as they are.

    Raises:
        ValueError: no table is on a set that was named; predictions and set or metrics.json do not agree.
    """
    own = {table.name: table for table in tables if table.rows}
    sets = {name: runs[table.runs[0]].content["dataset"] for name, table in own.items()}
    if unused := [name for name in roots if name not in sets.values()]:
        raise ValueError(f"make_tables: --data-root {unused[0]}=...: no table is on this set")
    measured = {name: before[name] for name in own if name in before}
    for name, table in own.items():
        if sets[name] in roots:
            measured[name] = measure_table(table, runs, roots[sets[name]], resamples)
    return measured


def measure_table(table: Table, runs: dict[str, Run], root: Path, resamples: int) -> dict:
    """Figures of one table, as measured.json has them."""
    rated, twins = read_set(table, runs, root)
    scores, threshold = truth(rated, rated.scale.kind == "label")
    predictions = {}
    for name in table.runs:
        columns = read_predictions(runs[name], rated)
        check_recorded(runs[name], columns, rated, twins)
        predictions[name] = columns["prediction"]
    known = {name: set(runs[name].content["metrics"]) for name in table.runs}
    content = {"threshold": threshold, "twins": len(twins), "resamples": resamples}
    content |= {"decisive": DECISIVE[rated.scale.kind], "reference": table.reference}
    content["rows"] = sources(table, runs)
    for subset, kept in (("all", slice(None)), ("without_twins", ~np.isin(rated.ids, list(twins)))):
        arrays = {name: values[kept] for name, values in predictions.items()}
        content[subset] = figures(table, arrays, known, scores[kept], threshold, resamples)
    return without_nan(content)


def sources(table: Table, runs: dict[str, Run]) -> dict[str, dict[str, str]]:
    """Row -> run -> SHA-256 of the predictions that its figures are made from."""
    return {row.name: {name: runs[name].sha256 for name in row.runs} for row in table.rows}


def read_set(table: Table, runs: dict[str, Run], root: Path) -> tuple[RatedSet, set[str]]:
    """The pictures that the runs predict, with ratings, and the ids of those with an identical one in train.

    Raises:
        ValueError: the runs predict another split.
    """
    first = runs[table.runs[0]]
    name, split, sha256 = (first.content[key] for key in ("dataset", "split", "split_sha256"))
    options = data_options([runs[run] for run in table.runs])
    reader = SetReader(name, root, options)
    rated = labelled(reader.load((split,))[split], "aesthetics")
    if rated.sha256 != sha256:
        raise ValueError(
            f"make_tables: {first.folder} (table {table.name}) predicts another split than {name} {split} in "
            f"{root}: split_sha256 is {sha256[:12]} there and {rated.sha256[:12]} here"
        )
    unseen = {i for run in table.runs for i, _ in runs[run].content.get("broken", ())}
    rated = rated.take([i not in unseen for i in rated.ids])
    twins = reader.twins_in_training() if split == "test" else set()
    return rated, twins & set(rated.ids)


def data_options(runs: list[Run]) -> DataOptions:
    """How the set was read: as by our first run, if there is one, else as `evaluate --predictions` did."""
    if configs := [run.config for run in runs if run.config]:
        return configs[0].data.options(DataOptions)
    try:
        return DataOptions(**runs[0].content.get("data", {}))
    except TypeError as error:
        raise ValueError(f"make_tables: {runs[0].folder / 'metrics.json'}: 'data' has {error}") from error


def read_predictions(run: Run, rated: RatedSet) -> dict[str, np.ndarray]:
    """The ids and the columns of numbers, (n,) each, in the order of the set.

    Raises:
        ValueError: pictures are missing, unknown or there twice.
    """
    try:
        sheet = Sheet(run.folder / "predictions.csv.gz")
        sheet.need(["id", "prediction"])
        ids = [original(text) for text in sheet.ids("id")]
        names = [name for name in sheet.columns if name.startswith(("p_", "emotion_"))]
        columns = {name: sheet.numbers(name) for name in ("prediction", *names)}
    except ValueError as error:
        raise ValueError(f"make_tables: {run.folder}: {error}") from error
    if wrong := sorted(set(rated.ids) ^ set(ids)):
        raise ValueError(
            f"make_tables: {run.folder}: predictions.csv.gz must have each of the {len(rated)} pictures of "
            f"{rated.name} {rated.split}; {len(wrong)} are missing or unknown, e.g. {wrong[0]}"
        )
    position = {name: row for row, name in enumerate(ids)}
    order = [position[i] for i in rated.ids]
    return {"id": np.array(rated.ids)} | {name: values[order] for name, values in columns.items()}


def check_recorded(run: Run, columns: dict[str, np.ndarray], rated: RatedSet, twins: set[str]) -> None:
    """Raises ValueError unless every metric in metrics.json is what the predictions give."""
    content = run.content
    report = compare(columns, rated, labels=rated.scale.kind == "label", twins=twins)
    rest = report.facts.get("without_twins", {"metrics": {}})
    pairs = [("metrics", content, report.metrics)]
    if "without_twins" in content:
        pairs.append(("without_twins", content["without_twins"], rest["metrics"]))
    if "emotions" in content:
        found = emotion_metrics(columns, content["emotions"]["emotions"], rated)
        pairs.append(("emotions", content["emotions"], found))
    for what, part, found in pairs:
        for name, recorded in part["metrics"].items():
            now = without_nan(found.get(name))
            if recorded != now and not close(recorded, now):
                raise ValueError(
                    f"make_tables: {run.folder}: {what}, {name} is {recorded} in metrics.json and {now} by "
                    "its predictions; evaluate the run again and keep both files"
                )


def close(a: float | None, b: float | None) -> bool:
    return None not in (a, b) and math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE / 100)


def emotion_metrics(columns: dict[str, np.ndarray], classes: list[str], rated: RatedSet) -> dict[str, float]:
    votes = with_emotions(rated, tuple(classes)).emotions  # (n, E)
    known = ~np.isnan(votes).all(axis=1)  # (n,)
    shares = np.stack([columns[f"emotion_{name}"] for name in classes], axis=1)  # (n, E)
    return metrics.emotion_metrics(shares[known], votes[known], classes)


def figures(
    table: Table,
    predictions: dict[str, np.ndarray],
    known: dict[str, set[str]],
    scores: np.ndarray,
    threshold: float,
    resamples: int,
) -> dict:
    """Metrics of each run, and of each row with intervals; its differences to the reference, judged.

    Args:
        predictions: run -> (n,). known: run -> the metrics that make sense for it; the others are NaN.
        scores: (n,).

    Returns:
        {"n": pictures, "runs": run -> metric -> value,
        "rows": row -> metric -> {"mean", "sd", "low", "high"},
        "differences": row -> metric -> {"difference", "low", "high", "seed_spread", "borrowed", "counts"}}
    """

    def of_runs(scores: np.ndarray, *arrays: np.ndarray) -> dict[str, dict[str, float]]:
        found = {n: run_metrics(a, scores, threshold) for n, a in zip(predictions, arrays, strict=True)}
        return {n: {m: v if m in known[n] else math.nan for m, v in found[n].items()} for n in found}

    def of_rows(*arrays: np.ndarray) -> dict[tuple[str, str, str], float]:
        return row_metrics(table, of_runs(*arrays))

    arrays = (scores, *predictions.values())
    intervals = bootstrap_intervals(of_rows, arrays, resamples)
    by_run = of_runs(*arrays)
    seeds = {
        (row.name, m): deviation([by_run[n][m] for n in row.runs]) for row in table.rows for m in MEASURES
    }
    content = {"n": len(scores), "runs": by_run, "rows": {}, "differences": {}}
    for (kind, row, name), value in row_metrics(table, by_run).items():
        low, high = intervals[kind, row, name]
        if kind == "rows":
            entry = {"mean": value, "sd": seeds[row, name], "low": low, "high": high}
        else:
            spread, borrowed = seed_spread(table, row, name, seeds)
            counts = (low > 0 or high < 0) and abs(value) > spread  # not where anything is NaN
            entry = {"difference": value, "low": low, "high": high}
            entry |= {"seed_spread": spread, "borrowed": borrowed, "counts": counts}
        content[kind].setdefault(row, {})[name] = entry
    return content


def run_metrics(predicted: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """The MEASURES, as `metrics.aesthetic_metrics` has them; Kendall's would take longer than all others."""
    return {
        "srcc": metrics.srcc(predicted, scores),
        "plcc": metrics.plcc(predicted, scores),
        "rmse": metrics.rmse(predicted, scores),
        "mae": metrics.mae(predicted, scores),
        "accuracy": metrics.accuracy(predicted, scores, threshold),
        "accuracy_inclusive": metrics.accuracy(predicted, scores, threshold, inclusive=True),
    }


def row_metrics(table: Table, by_run: dict[str, dict[str, float]]) -> dict[tuple[str, str, str], float]:
    """("rows", row, metric): mean over its runs; ("differences", row, metric): that minus the reference's."""
    rows = {
        row.name: {m: sum(by_run[n][m] for n in row.runs) / len(row.runs) for m in MEASURES}
        for row in table.rows
    }
    found = {("rows", row, m): value for row, means in rows.items() for m, value in means.items()}
    compared = [row for row in rows if table.reference and row != table.reference]
    return found | {
        ("differences", row, m): rows[row][m] - rows[table.reference][m] for row in compared for m in MEASURES
    }


def deviation(values: list[float]) -> float:
    """Standard deviation over seeds; NaN of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def seed_spread(table: Table, row: str, name: str, seeds: dict[tuple[str, str], float]) -> tuple[float, bool]:
    """How far the seeds alone may bring a row from the reference; NaN if no row of the table has several.

    Returns:
        The spread, and whether one of the two rows has a single seed, so that another's deviation is in it.
    """
    known = [seeds[other.name, name] for other in table.rows if len(other.runs) > 1]
    own = [seeds[row, name], seeds[table.reference, name]]
    taken = [max(known, default=math.nan) if math.isnan(value) else value for value in own]
    return SPREADS * math.hypot(*taken), any(map(math.isnan, own))


# ---------------------------------------------------------------------------------------------------
# Writing: needs results/ only


def written_tables(
    tables: list[Table], runs: dict[str, Run], measured: dict, results: Path, readme: Path
) -> dict[Path, str]:
    """Every file with tables -> its text. Nothing is written here."""
    blocks = read_published(results / "published.csv")
    shown = [table.block for table in tables if table.block]
    if lonely := sorted({*shown} ^ {*blocks}):
        raise ValueError(
            f"make_tables: block '{lonely[0]}' must be both in published.csv and in a table of tables.yaml"
        )
    texts, parts = {}, {}
    for table in tables:
        if table.block:
            part, lines = published_table(table, blocks[table.block])
        else:
            check_measured(table, runs, measured)
            part, lines = own_table(table, runs, measured[table.name])
        parts[table.name], texts[results / "tables" / f"{table.name}.csv"] = part, as_csv(lines)
    return {readme: filled(readme, parts)} | texts


def check_measured(table: Table, runs: dict[str, Run], measured: dict) -> None:
    """Raises ValueError unless what was measured is what tables.yaml and the folders hold now."""
    found = measured.get(table.name, {})
    known = {name: sha256 for row in found.get("rows", {}).values() for name, sha256 in row.items()}
    again = f"run scripts/make_tables.py with --data-root {runs[table.runs[0]].content['dataset']}=DIR"
    for name in table.runs:
        if known.get(name) != runs[name].sha256:
            since = "are not those that were measured" if name in known else "were not measured yet"
            raise ValueError(f"make_tables: table {table.name}: the predictions of {name} {since}; {again}")
    same = (found["rows"], found["reference"]) == (sources(table, runs), table.reference)
    if not same or "decisive" not in found:
        raise ValueError(
            f"make_tables: table {table.name}: rows or reference are not those measured; {again}"
        )
    for what, kept, value in recorded_twice(table, runs, found):
        if kept != value and not close(kept, value):
            raise ValueError(
                f"make_tables: table {table.name}: {what} is {kept} in measured.json and {value} by the "
                f"runs' metrics.json; {again}"
            )


def recorded_twice(table: Table, runs: dict[str, Run], found: dict) -> Iterator[tuple[str, float, float]]:
    """What it is, its value in measured.json, its value by the runs' own metrics.json where that has it."""
    for subset in ("all", "without_twins"):
        by_run = found[subset]["runs"]
        for name, m in product(table.runs, MEASURES):
            part = runs[name].content if subset == "all" else runs[name].content.get("without_twins", {})
            if m in part.get("metrics", {}):
                yield f"{subset}: {m} of {name}", by_run[name][m], part["metrics"][m]
        values = {n: {m: math.nan if v is None else v for m, v in by_run[n].items()} for n in table.runs}
        for (kind, row, m), value in row_metrics(table, values).items():
            kept = found[subset][kind][row][m]["mean" if kind == "rows" else "difference"]
            yield f"{subset}: {m} of {row} ({kind})", kept, without_nan(value)


def own_table(table: Table, runs: dict[str, Run], measured: dict) -> tuple[str, list[dict]]:
    """The table as Markdown, and the lines of its csv: one for each row, subset of pictures and metric."""
    high, twins = f"{measured['threshold']:g}", measured["twins"]
    head = ["", "pictures x epochs", "SRCC", "PLCC", f"accuracy > {high}", f"accuracy >= {high}"]
    head += [f"without the {twins} twins: SRCC, PLCC, accuracies"] if twins else []
    printed = ("srcc", "plcc", "accuracy", "accuracy_inclusive")
    lines = [(*head, "folder in `results/`")]
    for row in table.rows:
        all_pictures, rest = (measured[subset]["rows"][row.name] for subset in ("all", "without_twins"))
        cells = [row.name + marks(row, runs), runs[row.runs[0]].budget]
        cells += [estimate(name, all_pictures[name]) for name in printed]
        cells += [", ".join(number(name, rest[name]["mean"]) for name in printed)] if twins else []
        lines.append((*cells, ", ".join(f"`{name}`" for name in row.runs)))
    compared = measured["all"]["differences"].items()
    budgets = {row.name: runs[row.runs[0]].budget for row in table.rows}
    sentences = [
        sentence(row, table.reference, entries, measured["decisive"], budgets) for row, entries in compared
    ]
    parts = [table.title, as_markdown(lines), explanation(table, measured), "\n".join(sentences)]
    return "\n\n".join(filter(None, parts)), own_lines(table, runs, measured)


def marks(row: Row, runs: dict[str, Run]) -> str:
    """What a reader must know of a row: how many of the test pictures were trained on."""
    found = ""
    for key, (_, what) in TRAINED_ON.items():
        count = trained_on(row, runs, key)
        found += f", **{what} ({count:,})**" if count else ""
    foreign = any(runs[name].config is None for name in row.runs)
    return found + (", trained on unknown pictures" if foreign else "")


def trained_on(row: Row, runs: dict[str, Run], key: str) -> int | None:
    """The most of a row's runs; None where it is not known, or there is no emotion branch."""
    return max((runs[name].content[key] for name in row.runs if key in runs[name].content), default=None)


def explanation(table: Table, measured: dict) -> str:
    text = f"In brackets: 95 % bootstrap intervals over the pictures, {measured['resamples']:,} resamples. "
    several = any(len(row.runs) > 1 for row in table.rows)
    text += (
        "Rows of several folders: mean ± standard deviation over seeds. " if several else "One seed a row. "
    )
    if measured["twins"]:
        text += "Twins: test pictures with an identical one, under another name, in the training list. "
    if table.reference:
        text += (
            "A difference counts if its paired interval does not hold 0 and it is larger than the seed "
            f"spread: {SPREADS} x the root of the sum of both rows' variances over seeds (a row of one seed "
            "is given the largest of the table). With so few seeds that is a rough guard, no test."
        )
    return textwrap.fill(text, WIDTH)


def sentence(row: str, reference: str, entries: dict, name: str, budgets: dict[str, str]) -> str:
    """Whether the row's difference to the reference counts, by the measure of this name."""
    entry = entries[name]
    unequal = "" not in (budgets[row], budgets[reference]) and budgets[row] != budgets[reference]
    shown = f" ({budgets[row]} pictures against {budgets[reference]})" if unequal else ""
    value = number(name, entry["difference"], sign="+")
    text = f"- {row} minus {reference}{shown}: {metrics.TERMS.get(name, name)} {value} "
    text += f"(paired {span(name, entry)})"
    if entry["seed_spread"] is None:
        return f"{text}, seed spread unknown: does not count."
    side = "beyond" if abs(entry["difference"]) > entry["seed_spread"] else "within"
    verdict = "counts" if entry["counts"] else "does not count"
    borrowed = " (one seed: the table's largest)" if entry["borrowed"] else ""
    return f"{text}, {side} the seed spread of {number(name, entry['seed_spread'])}{borrowed}: {verdict}."


def estimate(name: str, entry: dict) -> str:
    """.860 ± .002 (.848 to .872)"""
    if entry["mean"] is None:
        return ""
    deviation = "" if entry["sd"] is None else f" ± {number(name, entry['sd'], unit='')}"
    return f"{number(name, entry['mean'])}{deviation} ({span(name, entry)})"


def span(name: str, entry: dict) -> str:
    return " to ".join(number(name, entry[side], unit="") for side in ("low", "high"))


def number(name: str, value: float | None, unit: str = " %", sign: str = "") -> str:
    """.860, or 86.8 % for an accuracy; a dash for what does not exist."""
    if value is None:
        return "-"
    if name.startswith("accuracy"):
        return f"{100 * value:{sign}.1f}{unit}"
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.3f}")


def own_lines(table: Table, runs: dict[str, Run], measured: dict) -> list[dict]:
    lines = []
    for row, subset, name in product(table.rows, ("all", "without_twins"), MEASURES):
        content = measured[subset]
        compared = content["differences"].get(row.name, {}).get(name, {})
        line = {"row": row.name, "runs": " ".join(row.runs), "pictures_x_epochs": runs[row.runs[0]].budget}
        line |= {column: trained_on(row, runs, key) for key, (column, _) in TRAINED_ON.items()}
        line |= {"subset": subset, "pictures": content["n"], "metric": name} | content["rows"][row.name][name]
        line |= {"difference": compared.get("difference")}
        line |= {f"difference_{side}": compared.get(side) for side in ("low", "high")}
        lines.append(line | {key: compared.get(key) for key in ("seed_spread", "borrowed", "counts")})
    return lines


def published_table(table: Table, rows: list[dict[str, str]]) -> tuple[str, list[dict]]:
    """The table as Markdown, in which columns without any entry are left out, and the lines of its csv."""
    shown = [name for name in PUBLISHED[1:] if any(row[name] for row in rows)]
    lines = [tuple(FIGURES.get(name, name) for name in shown)]
    for row in rows:
        percent = {"accuracy": f"{row['accuracy']} %"} if row["accuracy"] else {}
        lines.append(tuple((row | percent)[name] for name in shown))
    return f"{table.title}\n\n{as_markdown(lines)}", [
        {name: row[name] for name in PUBLISHED[1:]} for row in rows
    ]


def as_markdown(lines: list[tuple[str, ...]]) -> str:
    head, *rest = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def as_csv(lines: list[dict]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def filled(readme: Path, parts: dict[str, str]) -> str:
    """The README's text with every table between its markers.

    Raises:
        ValueError: a table has no pair of markers there, or a pair of markers no table.
    """
    text = readme.read_text(encoding="utf-8")
    named = re.findall(r"<!-- table (\S+) -->", text)
    if unknown := [name for name in named if name not in parts]:
        raise ValueError(
            f"make_tables: {readme} has markers of '{unknown[0]}', a table that tables.yaml lacks"
        )
    for name, part in parts.items():
        begin, end = f"<!-- table {name} -->", f"<!-- end of table {name} -->"
        if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
            raise ValueError(f"make_tables: {readme} must hold once, in this order, {begin} and {end}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{part}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    sys.exit(main())
