"""A person's own stars against our scores: how well they agree, and where they do not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from eamb.evaluation.intervals import bootstrap_intervals
from eamb.files import printable
from metrics import srcc

FEWEST = 10  # photographs for a correlation
LISTED = 10  # disagreements


def compare_ratings(scores: Mapping[str, float], stars: Mapping[str, float]) -> str:
    """A report: the rank correlation with its 95 % bootstrap interval, and the largest disagreements.

    Args:
        scores: by path.
        stars: by path, of the photographs that the person has rated: 1 to 5, or -1 for rejected.
    """
    count = f"{len(stars)} of {len(scores)} photographs have stars of yours"
    if len(stars) < FEWEST or len({*stars.values()}) < 2:
        return f"{count}; to compare, {FEWEST} are needed that don't all have equally many"
    rated = np.array(list(stars.values()))  # (n,)
    scored = np.array([scores[path] for path in stars])  # (n,)
    correlation = srcc(scored, rated)
    [(low, high)] = bootstrap_intervals(lambda *pair: {"srcc": srcc(*pair)}, (scored, rated)).values()
    ranks = np.stack([rankdata(-rated), rankdata(-scored)], axis=1)  # (n, 2), 1 is the best
    difference = np.abs(ranks[:, 0] - ranks[:, 1])  # (n,)
    order = np.argsort(-difference, kind="stable")[:LISTED]
    lines = [
        f"{count}; SRCC of score and stars {correlation:.2f} (95 % interval {low:.2f} to {high:.2f})",
        "The largest differences between the place by stars and the place by score, 1 is the best:",
        "      stars        score     by stars     by score  path",
    ]
    for i, path in zip(order, np.array(list(stars), dtype=object)[order], strict=True):
        yours, ours = ranks[i]
        lines.append(f"{rated[i]:11g}  {scored[i]:11.2f}  {yours:11g}  {ours:11g}  {printable(path)}")
    return "\n".join(lines)
