"""Writes the tables of docs/results.md and results/tables/*.csv from saved predictions and published figures.

    python scripts/make_tables.py --data-root para=PARA    # measures again; needs the set and its ratings
    python scripts/make_tables.py                          # writes the tables from what was measured

results/tables.yaml names the tables and their rows. With --data-root the figures of every run on that set are
computed from its predictions, compared with its metrics.json, and kept in results/measured.json with the
SHA-256 of the predictions. Later the tables can be written without the ratings.

All runs are measured on the same resamples of the pictures. A row of several seeds has the mean of their
metrics. Below each table it says which differences count, by a rule of thumb, not a test.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
import textwrap
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from datasets import SetReader
from eamb.evaluation.external import match_ids
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.report import without_nan
from eamb.files import file_hash, original, written_whole
from eamb.readers.rated import DataOptions, RatedSet
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config

FUNCTIONS = ("srcc", "plcc", "rmse", "mae")  # functions of metrics.py
MEASURES = (*FUNCTIONS, "accuracy", "accuracy_inclusive")
PRINTED = ("srcc", "plcc", "accuracy", "accuracy_inclusive")  # the others are only in the csv
SHAPES = ("emd2", "std_srcc", "std_mae", "coverage_50", "coverage_80")  # of runs that predict distributions
SPREADS = 2  # a 95 % interval if standard deviations over seeds were known exactly
TRAINED_ON = {  # key of metrics.json -> column in the csv, mark of rows with such pictures
    "test_pictures_trained_on": ("trained_on", "contaminated"),
    "test_pictures_that_the_emotion_branch_was_trained_on": (
        "emotion_branch_trained_on",
        "emotion branch contaminated",
    ),
}
FIGURES = {"srcc": "SRCC", "plcc": "PLCC", "accuracy": "accuracy"}
PUBLISHED = ["block", "method", *FIGURES, "source", "note"]  # columns of published.csv


def main(arguments: list[str] | None = None) -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data-root", metavar="SET=DIR", action="append", default=[], help="para=PARA, ...")
    parser.add_argument("--results", type=Path, metavar="DIR", default=root / "results")
    parser.add_argument("--readme", type=Path, metavar="FILE", default=root / "docs" / "results.md")
    parser.add_argument("--resamples", type=int, default=1000, help="of the pictures, for the intervals")
    return guarded(make_tables, parser.parse_args(arguments))


def make_tables(options: argparse.Namespace) -> int:
    tables, path = read_tables(options.results / "tables.yaml"), options.results / "measured.json"
    runs = {name: read_run(options.results / name) for table in tables for name in table.runs}
    sets = {table.name: runs[table.runs[0]].facts["dataset"] for table in tables if table.rows}
    measured = read_json(path) if path.is_file() else {}
    for word in options.data_root:
        name, _, root = word.partition("=")
        if name.lower() not in sets.values() or not root:
            raise ValueError(
                f"make_tables: --data-root is SET=DIR with the set of a table, as in para=PARA, not '{word}'"
            )
        for table in tables:
            if sets.get(table.name) == name.lower():
                measured[table.name] = measure_table(table, runs, Path(root), options.resamples)
    measured = {name: measured[name] for name in sets if name in measured}
    texts = {path: json.dumps(measured, indent=1, allow_nan=False) + "\n"}
    texts |= written_tables(tables, runs, measured, options.results, options.readme)
    for target, text in texts.items():
        with written_whole(target) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        print(target)
    return 0


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"make_tables: {path} is not a complete JSON file: {error}") from error


# ---- What tables.yaml and the folders of results/ say


@dataclass(frozen=True)
class Table:
    """A table of our runs, or of a block of published.csv.

    rows: name -> folders of its runs, one per seed. reference: the row that others are compared with.
    """

    name: str
    title: str
    rows: dict[str, list[str]] = field(default_factory=dict)
    reference: str = ""
    block: str = ""

    @property
    def runs(self) -> list[str]:
        return [run for names in self.rows.values() for run in names]


def measures(table: Table, runs: dict[str, Run]) -> tuple[str, ...]:
    """What is measured of every run of a table; NaN for a run that has none of it."""
    return MEASURES + SHAPES * any(runs[name].has_shapes for name in table.runs)


def read_tables(path: Path) -> list[Table]:
    """Raises ValueError: a table lacks something or has an unknown key."""
    tables = []
    try:
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            rows = {row["name"]: [*map(str, row["runs"])] for row in entry.get("rows", [])}
            table = Table(**entry | {"rows": rows})
            filled = bool(rows) != bool(table.block) and all(rows.values())
            if not filled or table.reference not in ("", *rows):
                raise ValueError(
                    f"table {table.name} needs either a block or rows, each with runs, and as reference a row"
                )
            tables.append(table)
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"make_tables: {path} is not a list of tables as its head describes: {text}"
        ) from error
    return tables


@dataclass(frozen=True)
class Run:
    """A folder of results/.

    facts: metrics.json. config: None for another program's predictions. sha256: of the predictions.
    budget: pictures in an epoch x epochs, of several networks x their number; "" if these had different
        ones, and for another program's.
    """

    folder: Path
    facts: dict
    config: Config | None
    sha256: str
    budget: str

    @property
    def has_shapes(self) -> bool:
        """Whether distributions were predicted and compared with votes."""
        return "emd2" in self.facts["metrics"]


def read_run(folder: Path) -> Run:
    """Raises ValueError, FileNotFoundError: something is missing."""
    facts = read_json(folder / "metrics.json")
    config, needed = None, ["metrics", "dataset", "split", "split_sha256"]
    if "predictions_file" not in facts:  # `main.py evaluate --predictions` writes it
        config = load_config([folder / "config.yaml"])
        with (folder / "metrics.jsonl").open(encoding="utf-8") as log:
            facts = json.loads(next(log, "{}")) | facts
        branch = config.model.network == "eambnet" and "emotion" not in config.model.without
        needed += ["train_pictures", *list(TRAINED_ON)[: 1 + branch]]
    if missing := [key for key in needed if key not in facts]:
        raise ValueError(
            f"make_tables: {folder}: metrics.json and the head of metrics.jsonl have no '{missing[0]}'; "
            "evaluate the run again and keep it"
        )
    budget, several = "", facts.get("checkpoints") or facts.get("origin", {}).get("averaged", ())
    if config and len({learned_from(network) for network in several}) <= 1:
        budget = f"{facts['train_pictures']:,} x {config.train.epochs}"
        budget += f" x {len(several)}" if len(several) > 1 else ""
    return Run(folder, facts, config, file_hash(folder / "predictions.csv.gz"), budget)


def learned_from(network: dict) -> tuple:
    """The pictures, epochs and first weights of one of several networks, as metrics.json has them."""
    settings = network.get("training") or network.get("config", {})  # of averaged weights: what differs
    data, names = settings.get("data", {}), ("dataset", "validation", "folds", "limit", "only_with_votes")
    pictures = tuple(data.get(name) or 0 for name in names)  # older weights lack some of them
    epochs, start = settings.get("train", {}).get("epochs"), network.get("origin", {}).get("weights_sha256")
    return pictures, epochs, start


# ---- Measuring: needs the ratings


def measure_table(table: Table, runs: dict[str, Run], root: Path, resamples: int) -> dict:
    """What measured.json has for a table: figures on all pictures, and on those without twins in training.

    Raises:
        ValueError: a run was evaluated on other pictures.
    """
    facts = runs[table.runs[0]].facts
    name, split = facts["dataset"], facts["split"]
    # The set is read with the options of our first run, one with distributions if there is one, or else with
    # those in metrics.json.
    order = sorted(table.runs, key=lambda run: not runs[run].has_shapes)
    configs = [runs[run].config for run in order if runs[run].config]
    options = configs[0].data.options() if configs else DataOptions(**facts.get("data", {}))
    reader = SetReader(name, root, options)
    rated = reader.load((split,))[split]
    rated = rated.take(~np.isnan(rated.scores))
    for run in table.runs:
        pictures = [runs[run].facts[key] for key in ("dataset", "split", "split_sha256")]
        if pictures != [name, split, rated.sha256]:
            raise ValueError(
                f"make_tables: table {table.name}: {runs[run].folder} predicts other pictures than {name} "
                f"{split} in {root}, by dataset, split or split_sha256 in its metrics.json"
            )
    broken = [picture for run in table.runs for picture, _ in runs[run].facts.get("broken", ())]
    rated = rated.take(~np.isin(rated.ids, broken))
    twins = np.isin(rated.ids, list(reader.twins_in_training() if split == "test" else ()))  # (n,)
    labels = rated.scale.kind == "label"
    truth = rated.high().astype(np.float64) if labels else rated.scores  # (n,)
    threshold = 0.5 if labels else rated.scale.threshold
    predicted = [(runs[name], read_predictions(runs[name].folder, rated)) for name in table.runs]
    for run, columns in predicted:
        if run.has_shapes and (not rated.bins or f"p_{rated.bins[0]:g}" not in columns):
            raise ValueError(
                f"make_tables: {run.folder} was measured on votes, and {rated.name} {rated.split} has none "
                f"in {root}, or its predictions no columns p_<rating>; give the label files with votes, or "
                "evaluate it again"
            )
    arrays = [truth, *(columns["prediction"].to_numpy() for _, columns in predicted)]
    shares = [columns.filter(regex="^p_").to_numpy() for run, columns in predicted if run.has_shapes]
    arrays += [metrics.compare_distributions(p, rated.distributions, rated.bins) for p in shares]
    content = {"threshold": threshold, "twins": int(twins.sum()), "resamples": resamples}
    # The measure whose differences are printed was chosen before measuring.
    content |= {"decisive": "accuracy" if labels else "srcc", "reference": table.reference}
    content["rows"] = sources(table, runs)
    for subset, rows in (("all", ~np.zeros_like(twins)), ("without_twins", ~twins)):
        part = [values[rows] for values in arrays]
        content[subset] = figures(table, runs, part, threshold, resamples)
    return without_nan(content)


def sources(table: Table, runs: dict[str, Run]) -> dict[str, dict[str, str]]:
    """Row -> run -> SHA-256 of the predictions that its figures come from."""
    return {row: {name: runs[name].sha256 for name in names} for row, names in table.rows.items()}


def read_predictions(folder: Path, rated: RatedSet) -> pd.DataFrame:
    """The columns "prediction" and, if the set has votes, "p_<rating>", (n,) each, in the order of the set.
    Raises ValueError unless each picture has one finite number."""
    path = folder / "predictions.csv.gz"
    table, misfits = match_ids(path, rated)
    if wrong := [picture.id for pictures in misfits.values() for picture in pictures]:
        raise ValueError(
            f"make_tables: {path} must have each picture of {rated.name} {rated.split} once; {len(wrong)} "
            f"are missing, unknown or there twice, e.g. {wrong[:3]}"
        )
    return table


def figures(
    table: Table, runs: dict[str, Run], arrays: list[np.ndarray], threshold: float, resamples: int
) -> dict:
    """Metrics of each run; of each row, with intervals; differences from the reference, and which count.

    Args:
        arrays: truth and the predictions of each run, (n,) each; then, of each run that predicts
            distributions, how they compare with the votes, (n, 6). Metrics that a metrics.json lacks are NaN.

    Returns:
        {"n": pictures, "runs": run -> metric -> value,
        "rows": row -> metric -> {"mean", "sd", "low", "high"},
        "differences": row -> metric -> {"difference", "low", "high", "seed_spread", "borrowed", "counts"}}
    """
    others = [row for row in table.rows if table.reference not in ("", row)]
    shaped, wanted = [name for name in table.runs if runs[name].has_shapes], measures(table, runs)

    def measured(truth: np.ndarray, *arrays: np.ndarray) -> dict[tuple[str, str, str], float]:
        values, count = {}, len(table.runs)
        shapes = dict(zip(shaped, map(metrics.distribution_metrics, arrays[count:]), strict=True))
        for name, predicted in zip(table.runs, arrays[:count], strict=True):
            # Not aesthetic_metrics, whose Kendall's tau takes longer than all the rest.
            found = {m: getattr(metrics, m)(predicted, truth) for m in FUNCTIONS}
            found["accuracy"] = metrics.accuracy(predicted, truth, threshold)
            found["accuracy_inclusive"] = metrics.accuracy(predicted, truth, threshold, inclusive=True)
            found |= shapes.get(name, {})
            known = runs[name].facts["metrics"]
            values |= {("runs", name, m): found[m] if m in known else math.nan for m in wanted}
        for (row, names), m in product(table.rows.items(), wanted):
            values["rows", row, m] = float(np.mean([values["runs", name, m] for name in names]))
        for row, m in product(others, wanted):
            values["differences", row, m] = values["rows", row, m] - values["rows", table.reference, m]
        return values

    values, intervals = measured(*arrays), bootstrap_intervals(measured, tuple(arrays), resamples)
    content = {"n": len(arrays[0]), "runs": {}, "rows": {}, "differences": {}}
    for name, m in product(table.runs, wanted):
        content["runs"].setdefault(name, {})[m] = values["runs", name, m]
    for m in wanted:
        deviations = {}
        for row, names in table.rows.items():
            seeds = [values["runs", name, m] for name in names]
            deviations[row] = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else math.nan
            low, high = intervals["rows", row, m]
            entry = {"mean": values["rows", row, m], "sd": deviations[row], "low": low, "high": high}
            content["rows"].setdefault(row, {})[m] = entry
        one_seed = {row for row, names in table.rows.items() if len(names) == 1}
        lent = dict.fromkeys(one_seed, float(np.fmax.reduce([*deviations.values()])))  # NaN if all have one
        for row in others:
            difference, (low, high) = values["differences", row, m], intervals["differences", row, m]
            spread = SPREADS * math.hypot(*((deviations | lent)[name] for name in (row, table.reference)))
            entry = {"difference": difference, "low": low, "high": high, "seed_spread": spread}
            entry["borrowed"] = bool(one_seed & {row, table.reference})
            # False if anything is NaN.
            entry["counts"] = abs(difference) > spread and (low > 0 or high < 0)
            content["differences"].setdefault(row, {})[m] = entry
    return content


# ---- Writing: needs results/ only


def written_tables(
    tables: list[Table], runs: dict[str, Run], measured: dict, results: Path, readme: Path
) -> dict[Path, str]:
    """Every file with tables -> its text; writes nothing.

    Raises:
        ValueError: figures are not those of the runs; the page lacks markers for a table, or has others; a
            block is not in published.csv.
    """
    page, parts, texts = readme.read_text(encoding="utf-8"), {}, {}
    for table in tables:
        if table.block:
            lines = read_published(results / "published.csv", table.block)
            shown = lines.loc[:, (lines != "").any()].rename(columns=FIGURES)
            if "accuracy" in shown:
                shown["accuracy"] = shown["accuracy"].where(shown["accuracy"] == "", shown["accuracy"] + " %")
            parts[table.name] = f"{table.title}\n\n{as_markdown([[*shown], *shown.to_numpy().tolist()])}"
        else:
            check_measured(table, runs, measured)
            parts[table.name] = our_table(table, runs, measured[table.name])
            lines = csv_lines(table, runs, measured[table.name])
        # As objects: None would turn a column of whole numbers into decimals.
        text = pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")
        texts[results / "tables" / f"{table.name}.csv"] = text
    place = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table \2 -->)", re.DOTALL)
    if sorted(found[2] for found in place.finditer(page)) != sorted(parts):
        raise ValueError(
            f"make_tables: {readme} must hold <!-- table NAME --> and <!-- end of table NAME --> once for "
            f"each of {', '.join(parts)}, and for no other"
        )
    return {readme: place.sub(lambda found: f"{found[1]}{parts[found[2]]}\n{found[3]}", page)} | texts


def read_published(path: Path, block: str) -> pd.DataFrame:
    """A block of published.csv, with cells as printed there; unknown figures are empty.

    Raises:
        ValueError: other columns than PUBLISHED; a row of another length, or without a source; no such block.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [[original(cell) for cell in cells] for cells in csv.reader(file)]
    for number, cells in enumerate(rows, 1):
        filled = len(cells) == len(PUBLISHED) and cells[0] and cells[1] and cells[-2].strip()
        if not filled or (number == 1 and cells != PUBLISHED):
            raise ValueError(
                f"make_tables: {path} row {number} must have the cells {', '.join(PUBLISHED)}; only figures "
                "and note may be empty; quote texts with commas"
            )
    table = pd.DataFrame(rows, columns=PUBLISHED)
    if block not in table["block"].tolist():
        raise ValueError(f"make_tables: {path} has no row of block '{block}'")
    return table[table["block"] == block].drop(columns="block")


def check_measured(table: Table, runs: dict[str, Run], measured: dict) -> None:
    """Raises ValueError unless the figures fit the current rows, predictions and metrics.json."""
    again = f"run scripts/make_tables.py with --data-root {runs[table.runs[0]].facts['dataset']}=DIR"
    entry = measured.get(table.name, {})
    if (entry.get("rows"), entry.get("reference")) != (sources(table, runs), table.reference):
        raise ValueError(
            f"make_tables: table {table.name}: its rows, reference or predictions are not those that were "
            f"measured; {again}"
        )
    for name, m in product(table.runs, measures(table, runs)):
        recorded, now = runs[name].facts["metrics"].get(m), entry["all"]["runs"][name][m]
        # Some metrics.json have rounded values.
        if recorded != now and not math.isclose(now or 0, recorded or 0, rel_tol=1e-8, abs_tol=1e-10):
            raise ValueError(
                f"make_tables: {runs[name].folder}: {m} is {recorded} in metrics.json and {now} by its "
                f"predictions; evaluate the run again, keep both files, and {again}"
            )


def our_table(table: Table, runs: dict[str, Run], measured: dict) -> str:
    """A table of runs in Markdown, with what its figures mean and which differences count."""
    high, twins = f"{measured['threshold']:g}", measured["twins"]
    head = ["", "pictures x epochs", "SRCC", "PLCC", f"accuracy > {high}", f"accuracy >= {high}"]
    head += [f"without the {twins} twins: SRCC, PLCC, accuracies"] if twins else []
    lines = [[*head, "folder in `results/`"]]
    for row, names in table.rows.items():
        cells, rest = [row, budgets_of(runs, names) or "-"], measured["without_twins"]["rows"][row]
        for key, (_, mark) in TRAINED_ON.items():
            count = largest_count(runs, names, key)
            cells[0] += f", **{mark} ({count:,})**" if count else ""
        if any(runs[name].config is None for name in names):
            cells[0] += ", trained on unknown pictures"
        cells += [figure(m, measured["all"]["rows"][row][m]) for m in PRINTED]
        cells += [", ".join(number(m, rest[m]["mean"]) for m in PRINTED)] if twins else []
        lines.append([*cells, ", ".join(f"`{name}`" for name in names)])
    text = f"In brackets: 95 % bootstrap intervals over the pictures, {measured['resamples']:,} resamples. "
    several = any(len(names) > 1 for names in table.rows.values())
    text += "Rows of several folders: mean ± standard deviation over seeds." if several else "One run a row."
    if twins:
        text += " Twins: test pictures with an identical one, under another name, in the training list."
    if table.reference:
        text += (
            " A difference counts if its paired interval does not contain 0 and it is larger than the seed "
            f"spread: {SPREADS} x the root of the sum of both rows' variances over seeds (a row of one seed "
            "is given the largest of the table). With so few seeds that is a rough guide, not a test."
        )
    m, sentences = measured["decisive"], []
    for row, entries in measured["all"]["differences"].items():
        entry = entries[m]
        ours, theirs = (budgets_of(runs, table.rows[name]) for name in (row, table.reference))
        budgets = f" ({ours} pictures against {theirs})" if ours and theirs and ours != theirs else ""
        verdict = "seed spread unknown"
        if entry["seed_spread"] is not None:
            verdict = "beyond" if abs(entry["difference"]) > entry["seed_spread"] else "within"
            verdict += f" the seed spread of {number(m, entry['seed_spread'])}"
            verdict += " (one seed: the table's largest)" if entry["borrowed"] else ""
        verdict += ": counts" if entry["counts"] else ": does not count"
        difference = f"{FIGURES[m]} {changed(m, entry)}, {verdict}"
        if m != "accuracy":
            difference += f"; accuracy > {high}: {changed('accuracy', entries['accuracy'])}"
        sentences.append(f"- {row} minus {table.reference}{budgets}: {difference}.")
    parts = [table.title, as_markdown(lines), shapes_table(measured["all"]["rows"])]
    parts += [textwrap.fill(text, 118), "\n".join(sentences)]
    return "\n\n".join(filter(None, parts))


def shapes_table(rows: dict[str, dict]) -> str:
    """The table below the first, of the rows whose runs predict distributions; "" if none does."""
    nothing = {"emd2": {"mean": None}}
    shown = {row: entries for row, entries in rows.items() if (nothing | entries)["emd2"]["mean"] is not None}
    if not shown:
        return ""
    lines = [["", *(metrics.TERMS[m] for m in SHAPES)]]
    lines += [[row, *(figure(m, entries[m]) for m in SHAPES)] for row, entries in shown.items()]
    text = (
        "Rows that predict how often each rating is given, on the pictures with votes. Spread: the standard "
        "deviation of a picture's ratings. Of calibrated distributions the central 50 % and 80 % hold as "
        "many of the votes."
    )
    return f"{textwrap.fill(text, 118)}\n\n{as_markdown(lines)}"


def largest_count(runs: dict[str, Run], names: list[str], key: str) -> int | None:
    """The largest count of a row's runs; None if unknown, or without an emotion branch."""
    return max((runs[name].facts[key] for name in names if key in runs[name].facts), default=None)


def figure(measure: str, entry: dict) -> str:
    """As in ".860 ± .002 (.848 to .872)"; "" if unknown."""
    if entry["mean"] is None:
        return ""
    deviation = "" if entry["sd"] is None else f" ± {number(measure, entry['sd'], unit='')}"
    return f"{number(measure, entry['mean'])}{deviation} ({span(measure, entry)})"


def span(measure: str, entry: dict) -> str:
    return " to ".join(number(measure, entry[side], unit="") for side in ("low", "high"))


def changed(measure: str, entry: dict) -> str:
    """As in "+.002 (paired -.003 to .007)"."""
    return f"{number(measure, entry['difference'], sign='+')} (paired {span(measure, entry)})"


def budgets_of(runs: dict[str, Run], names: list[str]) -> str:
    """The budgets of a row's runs, each once; "" if a run has none."""
    budgets = dict.fromkeys(runs[name].budget for name in names)
    return "" if "" in budgets else " and ".join(budgets)


def number(measure: str, value: float | None, unit: str = " %", sign: str = "") -> str:
    """.860, or 86.8 % for an accuracy or a share of votes; a dash for None."""
    if value is None:
        return "-"
    if measure.startswith(("accuracy", "coverage")):
        return f"{100 * value:{sign}.1f}{unit}"
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.3f}")


def csv_lines(table: Table, runs: dict[str, Run], measured: dict) -> list[dict]:
    lines = []
    for (row, names), subset, m in product(
        table.rows.items(), ("all", "without_twins"), measures(table, runs)
    ):
        content = measured[subset]
        line = {"row": row, "runs": " ".join(names), "pictures_x_epochs": budgets_of(runs, names)}
        line |= {column: largest_count(runs, names, key) for key, (column, _) in TRAINED_ON.items()}
        line |= {"subset": subset, "pictures": content["n"], "metric": m} | content["rows"][row][m]
        compared = content["differences"].get(row, {}).get(m, {})
        line["difference"] = compared.get("difference")
        line |= {f"difference_{side}": compared.get(side) for side in ("low", "high")}
        lines.append(line | {key: compared.get(key) for key in ("seed_spread", "borrowed", "counts")})
    return lines


def as_markdown(lines: list[list[str]]) -> str:
    head, *rest = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


if __name__ == "__main__":
    sys.exit(main())
