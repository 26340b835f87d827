"""Bootstrap intervals of any metrics over pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def bootstrap_intervals(
    function: Callable[..., dict[str, float]],
    arrays: tuple[ArrayLike, ...],
    repeats: int = 1000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals, over pictures, of every number that a function returns.

    The resamples depend only on the seed and the number of pictures. To compare two predictions on the same
    resamples, give a function of both: `lambda a, b, rated: {"srcc": srcc(a, rated) - srcc(b, rated)}`.
    All metrics together take about 15 s on AVA's test set, 2 s on PARA's (one core).

    Args:
        function: takes the arrays, returns a dict of numbers; called once per resample.
        arrays: each with the pictures as its n rows.
        groups: (n,) names; whole groups are drawn then, because pairs of one series are not independent.

    Returns:
        name -> (low, high), without constants (n, threshold and the like). Resamples where a metric is
        undefined are left out of its interval; with fewer than two pictures all are NaN, with a warning.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    rows = [len(array) for array in (*arrays, *([] if groups is None else [groups]))]
    if len(set(rows)) != 1:
        raise ValueError(f"metrics: intervals need one row per picture in everything, got {rows} rows.")
    units = range(rows[0])  # what is drawn: a row, or the rows of a group
    if groups is not None:
        _, numbers = np.unique(np.asarray(groups), return_inverse=True)  # (n,)
        order = np.argsort(numbers, kind="stable")
        units = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    random = np.random.default_rng(seed)
    fixed = ("n", "pairs", "series", "threshold", "chance", "log_loss_prior")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each resample would repeat the whole set's warnings
        names = [name for name in function(*arrays) if name not in fixed]
        values = np.full((repeats, len(names)), np.nan)
        for row in values if len(units) > 1 else ():
            chosen = random.integers(len(units), size=len(units))  # (units,), of single pictures (n,)
            if groups is not None:
                chosen = np.concatenate([units[number] for number in chosen])
            resampled = function(*(array[chosen] for array in arrays))
            row[:] = [resampled.get(name, np.nan) for name in names]
        low, high = np.nanquantile(values, [0.025, 0.975], axis=0)  # (names,) each
    if len(units) < 2:
        message = "metrics: intervals are undefined (NaN): one picture or group can't be resampled."
        warnings.warn(message, stacklevel=2)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
