"""The settings for reading rated pictures, and how a setting declares the values that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TARGETS = ("auto", "distribution", "score", "label")
SCORE_RANGES = ("sound", "official")


def one_of(*choices: str) -> Any:
    """A setting that is one of these words; the first is its default."""
    return field(default=choices[0], metadata={"choices": choices})


def limited(default: float, *, least: float, below: float | None = None, most: float | None = None) -> Any:
    """A number from `least` up; less than `below`, or at most `most`, if that is given."""
    return field(default=default, metadata={"least": least, "below": below, "most": most})


@dataclass(frozen=True)
class DataOptions:
    """Choices about targets and splits; those from `table` on are for `csv`.

    validation: share of the training pictures held out where the set has no validation split of its own.
    target: "distribution", "score" or "label"; "auto" is what the set is usually trained on.
    only_with_votes: train only on pictures whose votes are known; validation and test stay whole.
    score_range: what p in [0, 1] means: "sound" from minimum to maximum, "official" maximum * p.
    twins: keep byte-identical pictures in one split when splitting by hash, in sets of up to TWIN_LIMIT.
    folds, fold: cross-validation of a set without a split of its own: its test split is number `fold`, from
        0, of `folds` equal parts with equal shares of each emotion. 0: none.
    repeat: of several sets, how often an epoch shows each one's training pictures, as "1,10"; "" is once.
    table: the csv file, relative to the root. images: the folder its paths are relative to, of `pairs` too.
    count_columns: comma separated, `name=value` where the name does not end in its rating.
    emotion_columns: one column of names, or several of counts, comma separated.
    minimum, maximum: of the ratings. threshold: above it a rating is high; for any set, not only `csv`.
    """

    validation: float = 0.05
    target: str = one_of(*TARGETS)
    only_with_votes: bool = False
    score_range: str = one_of(*SCORE_RANGES)
    twins: bool = True
    folds: int = limited(0, least=0)
    fold: int = limited(0, least=0)
    repeat: str = ""
    table: str = ""
    images: str = ""
    path_column: str = ""
    score_column: str = ""
    count_columns: str = ""
    emotion_columns: str = ""
    split_column: str = ""
    minimum: float | None = None
    maximum: float | None = None
    threshold: float | None = None

    def __post_init__(self):
        if not 0 < self.validation < 1:
            raise ValueError(f"datasets: data.validation is a share between 0 and 1, got {self.validation}.")
        if self.target not in TARGETS or self.score_range not in SCORE_RANGES:
            raise ValueError(
                f"datasets: data.target is one of {', '.join(TARGETS)} and data.score_range one of "
                f"{', '.join(SCORE_RANGES)}; got '{self.target}' and '{self.score_range}'."
            )
        if self.folds < 0 or self.folds == 1 or not 0 <= self.fold < max(1, self.folds):
            raise ValueError(
                "datasets: data.folds is 2 or more, or 0 for none, and data.fold from 0 to one less; got "
                f"{self.folds} and {self.fold}."
            )
