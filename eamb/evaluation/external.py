"""The referee: predictions of any program, by the metrics, split check and intervals of our own evaluations.

    python main.py evaluate --predictions scores.csv --dataset para --data-root DIR

The file is a table with comma, semicolon or tab, packed as .gz or not, with a column "id" and a column
"prediction" (or one each with a usual name, as path and score); a distribution may be in columns p_<rating>.

An id is what the set calls a picture: ava 953619, para session144/iaa_pub10022_.jpg, iae 17668, csv and demo
the path in the table. A longer path that ends in it will do, and so will its end, as the name of the file
alone, with or without the picture's ending, where only one picture of the split is meant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eamb.evaluation.evaluate import compare, default_folder, find_twins, load_split, publish
from eamb.evaluation.report import Report, versions, write_columns
from eamb.files import file_hash, original, written_whole
from eamb.readers.decoding import PICTURE_ENDINGS
from eamb.readers.own_csv import PATH_COLUMNS, SCORE_COLUMNS
from eamb.readers.rated import DataOptions, LeftOut, RatedSet
from eamb.readers.table import Sheet
from eamb.runtime.config import Config

USUAL = {  # column that is looked for -> what else it may be called, if only one is
    "id": PATH_COLUMNS,
    "prediction": ("predicted", "pred", *SCORE_COLUMNS),
}

ID_CHECK = "id_check.csv"

NAMED = 3  # ids in a message


def evaluate_predictions(path: Path, config: Config, split: str, output: Path | None) -> Report:
    """`main.py evaluate --predictions`: a file of predictions against one split of a set; prints and writes.

    Beside the report's files there is id_check.csv, if ids are missing, extra or duplicate.

    Raises:
        ValueError, FileNotFoundError: no such file or data, or they don't go together; in one sentence.
    """
    if config.task != "aesthetics":
        raise ValueError(
            f"referee: predicted scores are compared with ratings; task={config.task} has none. "
            "Emotions are evaluated from a --checkpoint only"
        )
    rated = load_split(config, split)
    claims = read_claims(path, rated)
    matched = match(claims, rated)
    sha256 = file_hash(path)
    folder = output or default_folder(rated, sha256)
    if (folder / "predictions.csv").resolve() == path.resolve():
        raise ValueError(f"referee: {path} would be written over; choose another --output than {folder}")
    report = judge(claims, matched, rated, config)
    report.facts |= {"predictions_file": path.name, "predictions_sha256": sha256}
    write_id_check(folder / ID_CHECK, matched)
    publish(report, rated, folder)
    return report


def write_id_check(path: Path, matched: Matched) -> None:
    """Writes one row `id,reason` for each id that does not fit; no file if all fit."""
    rows = [*matched.missing, *matched.extra, *matched.duplicate]
    if not rows:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as part:
        ids, reasons = zip(*rows, strict=True)
        write_columns(part, {"id": ids, "reason": reasons})


@dataclass(frozen=True)
class Claims:
    """What a file says, by rows.

    ids: n names of pictures as they stand there.
    rows: (n,) numbers of the rows as an editor shows them.
    names: of the columns of `values`: "prediction" and perhaps "p_<rating>" for each rating of the set.
    values: (n, 1 + K).
    """

    file: str
    ids: list[str]
    rows: np.ndarray
    names: list[str]
    values: np.ndarray


def read_claims(path: Path, rated: RatedSet) -> Claims:
    """The predictions of a file, checked: finite numbers, shares that are a distribution.

    Raises:
        ValueError, FileNotFoundError: one sentence that names file, row and column.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"referee: there is no file {path}; --predictions is a csv of id and prediction"
        )
    sheet = Sheet(path)
    names = [column(sheet, "prediction")]
    bins = [f"p_{value:g}" for value in rated.bins]
    if set(bins) & set(sheet.columns):
        sheet.need(bins)
        names += bins
    values = np.stack([sheet.numbers(name) for name in names], axis=1)  # (n, 1 + K)
    shares = values[:, 1:]
    wrong = (shares < 0).any(axis=1) | (abs(shares.sum(axis=1) - 1) > 1e-3)
    if len(names) > 1 and wrong.any():
        raise sheet.error(wrong, bins[0], f"shares, 0 or more, that sum to 1 over {bins[0]} to {bins[-1]}")
    ids = [original(text) for text in sheet.texts(column(sheet, "id"))]
    return Claims(path.name, ids, np.array(sheet.rows), ["prediction", *names[1:]], values)


def column(sheet: Sheet, name: str) -> str:
    """The column of this name, in any case, or the only one with a usual name for the same."""
    own = [each for each in sheet.columns if each.lower() == name]
    found = own or [each for each in sheet.columns if each.lower() in USUAL[name]]
    if len(found) == 1:
        return found[0]
    saw = f"{' and '.join(found)} could be" if found else f"found {', '.join(sheet.columns[:12])}"
    raise ValueError(f"referee: {sheet.path.name}: which column is the {name}? ({saw}.) Call it '{name}'.")


class Finder:
    """Finds the picture of a set that a text means, first with endings as written, then without them."""

    def __init__(self, ids: Sequence[str]):
        self.forms = []
        for form in (with_ending, without_ending):
            ends = [end_parts(form(i)) for i in ids]
            whole = once((parts[0], k) for k, parts in enumerate(ends))
            end = once((part, k) for k, parts in enumerate(ends) for part in parts)
            self.forms.append((form, whole, end))

    def find(self, text: str) -> int | None:
        """Position of the picture; None if there is none, or if several would fit."""
        for form, whole, end in self.forms:
            parts = end_parts(form(text))
            places = whole.get(parts[0]), end.get(parts[0]), *(whole.get(part) for part in parts[1:])
            known = [place for place in places if place is not None]
            if known:
                return known[0]
        return None


def with_ending(text: str) -> str:
    return text.replace("\\", "/")


def without_ending(text: str) -> str:
    name, _, ending = with_ending(text).rpartition(".")
    return name if f".{ending.lower()}" in PICTURE_ENDINGS else with_ending(text)


def end_parts(path: str) -> list[str]:
    """a/b/c.jpg -> a/b/c.jpg, b/c.jpg, c.jpg"""
    words = path.split("/")
    return ["/".join(words[i:]) for i in range(len(words))]


def once(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """text -> number, of the texts that have only one."""
    found = defaultdict(set)
    for text, number in pairs:
        found[text].add(number)
    return {text: numbers.pop() for text, numbers in found.items() if len(numbers) == 1}


class Matched(NamedTuple):
    """Which rows of a file are for which pictures of a set.

    positions, rows: (m,) a picture's position in the set, ascending, and its row in `Claims`, from 0.
    missing, extra, duplicate: ids without a prediction; ids not in the set; ids given more than once with
        one value. Each with the reason.
    """

    positions: np.ndarray
    rows: np.ndarray
    missing: list[LeftOut]
    extra: list[LeftOut]
    duplicate: list[LeftOut]


def match(claims: Claims, rated: RatedSet) -> Matched:
    """Finds each row's picture.

    Raises:
        ValueError: fewer than half of the pictures are predicted, or one of them as two values.
    """
    finder, where = Finder(rated.ids), f"{rated.name} {rated.split}"
    rows_of = defaultdict(list)  # position of a picture, None for extra ids -> rows from 0
    for row, text in enumerate(claims.ids):
        rows_of[finder.find(text)].append(row)
    extra = rows_of.pop(None, [])
    if 2 * len(rows_of) < len(rated):
        unknown = claims.ids[extra[0] if extra else 0]
        unpredicted = next(i for k, i in enumerate(rated.ids) if k not in rows_of)
        raise ValueError(
            f"referee: {claims.file} predicts {len(rows_of):,} of the {len(rated):,} pictures of {where}; "
            f"are these predictions of another set, or another --split? It has '{unknown}', and lacks "
            f"'{unpredicted}'"
        )
    positions = sorted(rows_of)
    duplicate = {rated.ids[k]: rows_of[k] for k in positions if len(rows_of[k]) > 1}
    for name, rows in duplicate.items():
        check_equal(claims, name, rows)
    return Matched(
        np.array(positions),
        np.array([rows_of[k][0] for k in positions]),
        [LeftOut(i, "missing: no prediction") for k, i in enumerate(rated.ids) if k not in rows_of],
        [LeftOut(claims.ids[row], f"extra: not in {where}, row {claims.rows[row]}") for row in extra],
        [LeftOut(i, f"duplicate: rows {numbers(claims.rows[rows])}") for i, rows in duplicate.items()],
    )


def check_equal(claims: Claims, name: str, rows: list[int]) -> None:
    values = claims.values[rows]  # (rows, 1 + K)
    if (values != values[0]).any():
        raise ValueError(
            f"referee: {claims.file} rows {numbers(claims.rows[rows])}: '{name}' is predicted {len(rows)} "
            f"times, as {numbers(values[:, 0].tolist())}; keep one of them"
        )


def numbers(values: Iterable[float]) -> str:
    return " and ".join(map(str, values))


def judge(claims: Claims, matched: Matched, rated: RatedSet, config: Config) -> Report:
    """The metrics of what the file predicts for the set, and what does not fit."""
    part = rated.take(matched.positions)
    values = claims.values[matched.rows]  # (m, 1 + K)
    columns = {"id": np.array(part.ids)}
    columns |= {name: values[:, i] for i, name in enumerate(claims.names)}
    reason = why_correlations_only(columns["prediction"], rated)
    labels = rated.scale.kind == "label" and not reason
    twins, notes = find_twins(rated, config)
    report = compare(columns, part, config.evaluate.bootstrap, labels, bool(reason), twins)
    report.title += " (correlations only)" if reason else ""
    report.title += f" ({len(part):,} of {len(rated):,}: incomplete)" if matched.missing else ""
    report.notes += [*notes, *([reason] if reason else []), *id_notes(matched, rated)]
    report.facts |= {
        "task": "aesthetics",
        "dataset": rated.name,
        "split": rated.split,
        "protocol": rated.protocol,
        "split_sha256": rated.sha256,
        "data": data_options(config),
        "missing_ids": len(matched.missing),
        "extra_ids": len(matched.extra),
        "duplicate_ids": len(matched.duplicate),
        "left_out": len(rated.left_out),
        "versions": versions(),
    }
    return report


def data_options(config: Config) -> dict:
    """How the set was read, where not as usual: make_tables reads it so again."""
    usual = asdict(DataOptions())
    return {n: value for n, value in asdict(config.data.options(DataOptions)).items() if value != usual[n]}


def why_correlations_only(predicted: np.ndarray, rated: RatedSet) -> str:
    """The note on (m,) predictions in another unit than the set's; "" if they are inside its range."""
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


def id_notes(matched: Matched, rated: RatedSet) -> list[str]:
    where = f"{rated.name} {rated.split}"
    kinds = {
        f"pictures of {where} without a prediction, not in the figures": matched.missing,
        f"ids that {where} does not have, not used": matched.extra,
        "ids given more than once with one value, counted once": matched.duplicate,
    }
    notes = []
    for words, found in kinds.items():
        first = ", ".join(i for i, _ in found[:NAMED]) + (", ..." if found[NAMED:] else "")
        notes += [f"{words}: {len(found):,} ({first}; {ID_CHECK})"] if found else []
    return notes
