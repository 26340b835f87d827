"""Evaluates predictions of other programs, with the same metrics, split check and intervals as our own.

    python main.py evaluate --predictions scores.csv --dataset para --data-root DIR

The file is a table separated by commas, semicolons or tabs, gzipped or not. Its columns are id and prediction
(or path and score, as predict writes them), and for a distribution p_<rating>.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eamb.evaluation.evaluate import about, publish, report_folder
from eamb.evaluation.ratings import compare_scores, find_twins
from eamb.evaluation.report import Report
from eamb.files import file_hash, nfc, original, told_apart, write_csv
from eamb.readers.endings import PICTURE_ENDINGS
from eamb.readers.rated import DataOptions, LeftOut, RatedSet
from eamb.readers.table import Sheet

if TYPE_CHECKING:
    from eamb.training.tasks import Task

ID_CHECK = "id_check.csv"


def evaluate_predictions(
    path: Path, task: Task, split: str, output: Path | None = None, force: bool = False
) -> Report:
    """Compares a file of predictions with one split of a set; prints and writes the report, and a list of
    missing, extra and duplicate ids.

    Raises:
        ValueError, FileNotFoundError: no such file or data, or they don't fit each other; in one sentence.
    """
    if task.name != "aesthetics":
        raise ValueError(
            f"evaluation: predicted scores are compared with ratings; task={task.name} has none. "
            "Emotions are evaluated from a --checkpoint only"
        )
    rated = task.load_split(split)
    predictions, misfits = match_ids(path, rated)
    sha256 = file_hash(path)
    folder = report_folder(output, rated, sha256, force)
    if (folder / "predictions.csv").resolve() == path.resolve():
        raise ValueError(f"evaluation: {path} would be overwritten; choose another --output than {folder}")
    part = rated.take(predictions["position"].to_numpy())
    columns = {name: predictions[name].to_numpy() for name in predictions if name not in ("row", "position")}
    columns["id"] = np.array(part.ids)
    unit = why_correlations_only(columns["prediction"], rated)
    labels = rated.scale.kind == "label" and not unit
    twins, notes = find_twins(rated, task.reader)
    report = compare_scores(columns, part, task.config.evaluate.bootstrap, labels, bool(unit), twins)
    report.title += f" ({len(part):,} of {len(rated):,}: incomplete)" if misfits["missing"] else ""
    notes += [unit] if unit else []
    notes += [f"{kind} ids: {len(r):,}, e.g. {r[0].id}; see {ID_CHECK}" for kind, r in misfits.items() if r]
    report.notes += notes
    usual, options = asdict(DataOptions()), asdict(task.config.data.options())
    report.facts |= about(rated, task.name) | {
        # Only what differs from the defaults; make_tables reads the set again with these options.
        "data": {name: value for name, value in options.items() if value != usual[name]},
        **{f"{kind}_ids": len(rows) for kind, rows in misfits.items()},
        "predictions_file": path.name,
        "predictions_sha256": sha256,
    }
    (folder / ID_CHECK).unlink(missing_ok=True)
    if rows := [row for kind in misfits.values() for row in kind]:
        write_csv(folder / ID_CHECK, [("id", "reason"), *rows])
    publish(report, rated, task, folder)
    return report


def read_predictions(path: Path, rated: RatedSet) -> pd.DataFrame:
    """The columns "row" (line number in an editor), "id", "prediction" and, if the file has it, "p_<rating>"
    for each rating of the set. Numbers must be finite and shares must sum to 1.

    Raises:
        ValueError, FileNotFoundError: one sentence that names file, row and column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"evaluation: there is no file {path}; give a csv of id and prediction")
    sheet = Sheet(path)
    ids = "path" if "path" in sheet.columns and "id" not in sheet.columns else "id"
    scores = "score" if "score" in sheet.columns and "prediction" not in sheet.columns else "prediction"
    sheet.need([ids, scores])
    columns = {"id": [original(text) for text in sheet.texts(ids)], "prediction": sheet.numbers(scores)}
    bins = [f"p_{value:g}" for value in rated.bins]
    if set(bins) & set(sheet.columns):
        sheet.need(bins)
        columns |= {name: sheet.numbers(name) for name in bins}
        shares = np.stack([columns[name] for name in bins], axis=1)  # (n, K)
        wrong = (shares < 0).any(axis=1) | (abs(shares.sum(axis=1) - 1) > 1e-3)
        if wrong.any():
            raise sheet.error(wrong, bins[0], f"shares, 0 or more, that sum to 1 up to {bins[-1]}")
    return pd.DataFrame({"row": sheet.rows, **columns})


def match_ids(path: Path, rated: RatedSet) -> tuple[pd.DataFrame, dict[str, list[LeftOut]]]:
    """The predictions of a file for the pictures of a set, and the ids that do not fit.

    Returns:
        The table of `read_predictions`, one row per picture, in the order of the set, with the picture's
        "position" in the set; and the ids that are "missing" from the file, "extra" (not in the set) or
        "duplicate" (repeated with the same values), each with the reason.

    Raises:
        ValueError, FileNotFoundError: as `read_predictions`; a picture has two values, or most have none.
    """
    table, split = read_predictions(path, rated), f"{rated.name} {rated.split}"
    table["position"] = find_pictures(table["id"], rated.ids)
    extra, matched = table[table["position"] < 0], table[table["position"] >= 0]
    predictions = matched.drop_duplicates("position").sort_values("position")
    missing = sorted(set(range(len(rated))) - set(predictions["position"]))
    if 2 * len(predictions) < len(rated):
        first, lacking = told_apart([table["id"].iloc[0], rated.ids[missing[0]]])
        raise ValueError(
            f"evaluation: {path.name} predicts {len(predictions):,} of the {len(rated):,} pictures of "
            f"{split}: another --split? It has {first}, and lacks {lacking}"
        )
    lost = [LeftOut(rated.ids[position], "missing: no prediction") for position in missing]
    rows = [LeftOut(i, f"extra: not in {split}, row {row}") for row, i in extra[["row", "id"]].values]
    misfits = {"missing": lost, "extra": rows, "duplicate": []}
    for position, rows in matched[matched.duplicated("position", keep=False)].groupby("position"):
        name, numbers = rated.ids[position], " and ".join(map(str, rows["row"]))
        if len(rows.drop(columns=["row", "id"]).drop_duplicates()) > 1:
            raise ValueError(
                f"evaluation: {path.name} rows {numbers}: '{name}' has several predictions; keep one of them"
            )
        misfits["duplicate"].append(LeftOut(name, f"duplicate: rows {numbers}"))
    return predictions, misfits


def find_pictures(texts: Iterable[str], ids: Sequence[str]) -> list[int]:
    """For each text, the position in `ids` of the picture that it names; -1 if none fits, or several do.

    A text may be the id, the file name alone or a longer path, with any picture ending or none: `1` and
    `/data/a/1.png` name the id `a/1.jpg`, `b/1.jpg` does not. How accents are composed does not matter.
    """

    def without_ending(path: str) -> str:
        stem, _, ending = path.rpartition(".")
        return stem if f".{ending.lower()}" in PICTURE_ENDINGS else path

    whole = {name: position for position, name in enumerate(ids)}
    composed, named = defaultdict(list), defaultdict(list)
    for name, position in whole.items():
        composed[nfc(name)].append(position)
        path = without_ending(f"/{nfc(name)}")
        named[path.rpartition("/")[2]].append((path, position))
    positions = []
    for text in (text.replace("\\", "/") for text in texts):
        path = without_ending(f"/{nfc(text)}")
        others = named.get(path.rpartition("/")[2], ())
        fitting = composed.get(nfc(text)) or [
            k for other, k in others if path.endswith(other) or other.endswith(path)
        ]
        positions.append(whole.get(text, fitting[0] if len(fitting) == 1 else -1))
    return positions


def why_correlations_only(predicted: np.ndarray, rated: RatedSet) -> str:
    """A note if predictions (m,) lie outside the set's range, so in another unit; "" if all are inside."""
    low, high = rated.scale.ends
    outside = (predicted < low) | (predicted > high)
    unit = "the ratings of the set"
    if rated.scale.kind == "label":
        unit = "a probability (or say data.target=score, if they are ratings)"
    counts = f"{outside.sum():,} of {len(predicted):,} predictions are outside {low:g} to {high:g}"
    words = f"correlations only: {counts}; for accuracy and errors give them in the unit of {unit}"
    return words if outside.any() else ""
