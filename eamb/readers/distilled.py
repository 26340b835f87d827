"""Targets for distillation: what other networks predict for the pictures of a training split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eamb.files import original
from eamb.readers.rated import RatedSet
from eamb.readers.table import Sheet


def read_targets(path: Path, rated: RatedSet) -> np.ndarray:
    """(n,) float64 in the unit of the scores, a target for each picture of a training split.

    The columns of the table are id and prediction, as `scripts/out_of_fold.py` writes them; it may have more.

    Raises:
        ValueError, FileNotFoundError: the split is rated by labels; no such table; a picture that is
            unknown, missing or there twice; a target outside the scale. One sentence that names file and row.
    """
    split, scale = f"{rated.name} {rated.split}", rated.scale
    if scale.kind == "label":
        raise ValueError(
            f"datasets: data.distill needs scores to learn, and from {split} this run learns a {scale.kind}; "
            "leave it out, or use data.target=score."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"datasets: there is no file {path}, data.distill; scripts/out_of_fold.py makes one."
        )
    sheet = Sheet(path)
    sheet.need(("id", "prediction"))
    ids = pd.Index(map(original, sheet.ids("id")))
    unknown = ~ids.isin(rated.ids)
    if unknown.any():
        raise sheet.error(unknown, "id", f"one of the {len(rated):,} pictures of {split}")
    rows = ids.get_indexer(rated.ids)  # (n,), -1: missing
    if missing := [name for name, row in zip(rated.ids, rows, strict=True) if row < 0]:
        raise ValueError(
            f"datasets: {path.name} lacks {len(missing):,} of the {len(rated):,} pictures of {split}, e.g. "
            f"'{missing[0]}'; make it with scripts/out_of_fold.py and the data settings of this run."
        )
    low, high = scale.ends if scale.bins else (scale.offset, scale.offset + scale.factor)
    return sheet.numbers("prediction", low, high)[rows]
