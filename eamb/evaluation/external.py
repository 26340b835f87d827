"""Predictions of any other program, with the metrics, split check and intervals of our own evaluations.

    python main.py evaluate --predictions scores.csv --dataset para --data-root DIR

The file is a table with comma, semicolon or tab, gzipped or not, with a column "id" and a column "prediction"
(or usual names for them, such as path and score); a distribution may be in columns p_<rating>.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eamb.evaluation.evaluate import publish, report_folder
from eamb.evaluation.ratings import compare_scores, find_twins
from eamb.evaluation.report import Report, versions
from eamb.files import file_hash, original, write_csv
from eamb.readers.decoding import PICTURE_ENDINGS
from eamb.readers.own_csv import PATH_COLUMNS, SCORE_COLUMNS
from eamb.readers.rated import DataOptions, LeftOut, RatedSet
from eamb.readers.table import Sheet

if TYPE_CHECKING:
    from eamb.training.tasks import Task

ID_CHECK = "id_check.csv"

Misfits = dict[str, list[LeftOut]]  # "missing", "extra" and "duplicate" ids, each with the reason


def evaluate_predictions(
    path: Path, task: Task, split: str, output: Path | None = None, force: bool = False
) -> Report:
    """Compares a file of predictions with one split of a set; prints and writes the report.

    If ids are missing, extra or duplicate, it writes id_check.csv too.

    Raises:
        ValueError, FileNotFoundError: no such file or data, or they don't go together; in one sentence.
    """
    if task.name != "aesthetics":
        raise ValueError(
            f"evaluation: predicted scores are compared with ratings; task={task.name} has none. "
            "Emotions are evaluated from a --checkpoint only"
        )
    rated = task.load_split(split)
    predictions, misfits = match_ids(path, rated)
    sha256 = file_hash(path)
    if output and (output / "predictions.csv").resolve() == path.resolve():
        raise ValueError(f"evaluation: {path} would be overwritten; choose another --output than {output}")
    folder = report_folder(output, rated, sha256, force)
    report = compare_with_ratings(predictions, misfits, rated, task)
    report.facts |= {"predictions_file": path.name, "predictions_sha256": sha256}
    rows = [row for kind in misfits.values() for row in kind]
    if rows:
        write_csv(folder / ID_CHECK, [("id", "reason"), *rows])
    else:
        (folder / ID_CHECK).unlink(missing_ok=True)
    publish(report, rated, task, folder)
    return report


def read_predictions(path: Path, rated: RatedSet) -> pd.DataFrame:
    """The rows of a file, checked: finite numbers, shares that sum to 1.

    Returns:
        The columns "row" (its number, as an editor shows it), "id", "prediction", and "p_<rating>" for each
        rating of the set if the file has them.

    Raises:
        ValueError, FileNotFoundError: one sentence that names file, row and column.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"evaluation: there is no file {path}; --predictions is a csv of id and prediction"
        )
    sheet = Sheet(path)
    columns = {"prediction": sheet.numbers(find_column(sheet, "prediction"))}
    bins = [f"p_{value:g}" for value in rated.bins]
    if set(bins) & set(sheet.columns):
        sheet.need(bins)
        columns |= {name: sheet.numbers(name) for name in bins}
        shares = np.stack([columns[name] for name in bins], axis=1)  # (n, K)
        wrong = (shares < 0).any(axis=1) | (abs(shares.sum(axis=1) - 1) > 1e-3)
        if wrong.any():
            expected = f"shares, 0 or more, that sum to 1 over {bins[0]} to {bins[-1]}"
            raise sheet.error(wrong, bins[0], expected)
    ids = [original(text) for text in sheet.texts(find_column(sheet, "id"))]
    return pd.DataFrame({"row": sheet.rows, "id": ids, **columns})


def find_column(sheet: Sheet, name: str) -> str:
    """The column of this name, in upper or lower case, or the only one with a usual name for the same."""
    usual = PATH_COLUMNS if name == "id" else ("predicted", "pred", *SCORE_COLUMNS)
    exact = [column for column in sheet.columns if column.lower() == name]
    columns = exact or [column for column in sheet.columns if column.lower() in usual]
    if len(columns) == 1:
        return columns[0]
    candidates = f"{' and '.join(columns)} could be" if columns else f"found {', '.join(sheet.columns[:12])}"
    raise ValueError(
        f"evaluation: {sheet.path.name}: which column is the {name}? ({candidates}.) Call it '{name}'."
    )


def match_ids(path: Path, rated: RatedSet) -> tuple[pd.DataFrame, Misfits]:
    """The predictions of a file for the pictures of a set, and the ids that do not fit.

    Returns:
        The table of `read_predictions`, one row a picture, in the order of the set, with the picture's
        "position" in it; and the ids without a prediction, those that the set does not have, and those given
        more than once with the same value.

    Raises:
        ValueError: fewer than half of the pictures are predicted, or one with two values; and as
            `read_predictions`.
    """
    table, split = read_predictions(path, rated), f"{rated.name} {rated.split}"
    table["position"] = find_pictures(table["id"], rated.ids)
    extra, matched = table[table["position"] < 0], table[table["position"] >= 0]
    predictions = matched.drop_duplicates("position").sort_values("position")
    missing = sorted(set(range(len(rated))) - set(predictions["position"]))
    if 2 * len(predictions) < len(rated):
        raise ValueError(
            f"evaluation: {path.name} predicts {len(predictions):,} of the {len(rated):,} pictures of "
            f"{split}; are these predictions of another set, or another --split? It has "
            f"'{(extra if len(extra) else table)['id'].iloc[0]}', and lacks '{rated.ids[missing[0]]}'"
        )
    duplicate = []
    for position, rows in matched[matched.duplicated("position", keep=False)].groupby("position"):
        name, numbers = rated.ids[position], " and ".join(map(str, rows["row"]))
        values = rows.drop(columns=["row", "id"])
        if (values != values.iloc[0]).any(axis=None):
            raise ValueError(
                f"evaluation: {path.name} rows {numbers}: '{name}' is predicted {len(rows)} times, as "
                f"{' and '.join(map(str, rows['prediction']))}; keep one of them"
            )
        duplicate.append(LeftOut(name, f"duplicate: rows {numbers}"))
    return predictions, {
        "missing": [LeftOut(rated.ids[position], "missing: no prediction") for position in missing],
        "extra": [
            LeftOut(name, f"extra: not in {split}, row {row}")
            for name, row in zip(extra["id"], extra["row"], strict=True)
        ],
        "duplicate": duplicate,
    }


def find_pictures(texts: Iterable[str], ids: Sequence[str]) -> list[int]:
    """The position in `ids` of the picture that each text means; -1 if none fits, or several do.

    A text is a whole id, or else a file name with or without the picture's ending, and perhaps with folders
    that do not contradict the id's: `a/1.jpg` may be called `1`, `1.jpg` or `/data/a/1.jpg`, not `b/1.jpg`.
    """

    def without_ending(path: str) -> str:
        stem, _, ending = path.rpartition(".")
        return stem if f".{ending.lower()}" in PICTURE_ENDINGS else path

    whole = {name: position for position, name in enumerate(ids)}
    named = defaultdict(list)  # file name, with and without ending -> paths and positions
    for position, name in enumerate(ids):
        for path in {f"/{name}", f"/{without_ending(name)}"}:
            named[path.rpartition("/")[2]].append((path, position))

    def find(text: str) -> int:
        if text in whole:
            return whole[text]
        for path in (f"/{text}", f"/{without_ending(text)}"):
            candidates = named.get(path.rpartition("/")[2], [])
            fitting = [k for other, k in candidates if path.endswith(other) or other.endswith(path)]
            if len(fitting) == 1:
                return fitting[0]
        return -1

    return [find(text.replace("\\", "/")) for text in texts]


def compare_with_ratings(predictions: pd.DataFrame, misfits: Misfits, rated: RatedSet, task: Task) -> Report:
    """The report on predictions that were matched with the set by `match_ids`."""
    part = rated.take(predictions["position"].to_numpy())
    columns = {name: predictions[name].to_numpy() for name in predictions if name not in ("row", "position")}
    columns["id"] = np.array(part.ids)
    reason = why_correlations_only(columns["prediction"], rated)
    labels = rated.scale.kind == "label" and not reason
    twins, notes = find_twins(rated, task.reader)
    report = compare_scores(columns, part, task.config.evaluate.bootstrap, labels, bool(reason), twins)
    report.title += " (correlations only)" if reason else ""
    report.title += f" ({len(part):,} of {len(rated):,}: incomplete)" if misfits["missing"] else ""
    report.notes += [*notes, *([reason] if reason else [])]
    words = {
        "missing": f"pictures of {rated.name} {rated.split} without a prediction, not in the figures",
        "extra": f"ids that {rated.name} {rated.split} does not have, not used",
        "duplicate": "ids given more than once with one value, counted once",
    }
    for kind, rows in misfits.items():
        names = ", ".join([name for name, _ in rows[:3]] + ["..."] * bool(rows[3:]))
        report.notes += [f"{words[kind]}: {len(rows):,} ({names}; {ID_CHECK})"] if rows else []
    usual, options = asdict(DataOptions()), asdict(task.config.data.options())
    report.facts |= {
        "task": "aesthetics",
        "dataset": rated.name,
        "split": rated.split,
        "protocol": rated.protocol,
        "split_sha256": rated.sha256,
        # The options that are not the defaults: make_tables reads the set again.
        "data": {name: value for name, value in options.items() if value != usual[name]},
        **{f"{kind}_ids": len(rows) for kind, rows in misfits.items()},
        "left_out": len(rated.left_out),
        "versions": versions(),
    }
    return report


def why_correlations_only(predicted: np.ndarray, rated: RatedSet) -> str:
    """The note on predictions (m,) in another unit than the set's; "" if they are inside its range."""
    low, high = rated.scale.ends
    outside = (predicted < low) | (predicted > high)
    if not outside.any():
        return ""
    labels = rated.scale.kind == "label"
    unit = "the probability of 'high' is" if labels else "the set's ratings are"
    remedy = " (or say data.target=score, if they are ratings)" if labels else ""
    return (
        f"correlations only: {outside.sum():,} of {len(predicted):,} predictions are outside {low:g} to "
        f"{high:g}, where {unit}; they go from {predicted.min():g} to {predicted.max():g}. For accuracy and "
        f"errors give them in that range{remedy}"
    )
