"""Public sets whose labels are plain tables: each is a YAML in configs/sets/, read like your own csv."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import yaml

from eamb.readers.options import DataOptions
from eamb.readers.own_csv import parse_csv
from eamb.readers.table import Read, Table

USUAL = asdict(DataOptions())


def parse_named(
    description: Path, root: Path, splits: tuple[str, ...], options: DataOptions, read: Read
) -> Table:
    """The table of the set that a file describes.

    Args:
        description: a YAML of settings of DataOptions. Those that the user changed go first.
    """
    described = read_description(description)
    if options.score_column or options.count_columns:  # either replaces the other
        described = {
            key: value for key, value in described.items() if key not in ("score_column", "count_columns")
        }
    given = {key: value for key, value in asdict(options).items() if value != USUAL[key]}
    if given.keys() & {"minimum", "maximum"}:  # of another scale
        described.pop("threshold", None)
    table = parse_csv(root, splits, replace(options, **described | given), read)
    table.name = description.stem
    table.rating = replace(table.rating, threshold=described.get("threshold", table.rating.threshold))
    return table


def read_description(path: Path) -> dict[str, object]:
    """The settings in the YAML of a set. Raises ValueError for others than DataOptions has."""
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict) or not described.keys() <= USUAL.keys():
        wrong = sorted({*described} - {*USUAL}) if isinstance(described, dict) else [described]
        raise ValueError(
            f"datasets: {path} describes a set by settings such as path_column and score_column; "
            f"unknown: {', '.join(map(str, wrong))}."
        )
    return described
