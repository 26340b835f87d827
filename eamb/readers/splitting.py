"""Splits by hash, also into folds; identical pictures stay in one split."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np

from eamb.files import file_hash
from eamb.readers.rated import DataOptions, hash_fractions
from eamb.readers.table import Table

# Reading 255,530 file sizes takes a second if they are cached, minutes from a cold or a network disk.
TWIN_LIMIT = 100_000


def split_by_hash(table: Table, paths: list[str], splits: Sequence[str], options: DataOptions) -> None:
    """Assigns splits in place: to all rows if the set has none, else moves part of training to validation."""
    pool, shares, folds = "", {"test": table.test_share, "val": options.validation}, options.folds
    if table.has_own_split:
        if not {"train", "val"} & set(splits) or (table.split == "val").any():
            return
        pool, shares, folds = "train", {"val": options.validation}, 0
    rows = np.flatnonzero(table.split == pool)
    ids = [table.ids[i] for i in rows]
    twins, how = [], "by hash of the id, identical pictures not looked for"
    if options.twins and (table.twins is not None or len(rows) <= TWIN_LIMIT):
        how = "by hash of the id"
        fractions = hash_fractions(ids)
        # Every picture is tested in one of the folds, so all twins matter.
        suspects = fractions < (1.0 if folds else sum(shares.values()))
        suspects[np.argsort(fractions)[:100]] = True  # an empty split of a small set takes the smallest hash
        twins = find_twins(table, [paths[i] for i in rows], ids, suspects)
    table.split = table.split.astype("<U5")
    source = table.protocol["train"]
    percent = {split: f"{100 * share:g} %" for split, share in shares.items()}
    if folds:
        shares["test"] = 1 / folds
        top_emotion = np.zeros(len(ids), int)
        if table.emotions is not None:
            top_emotion, how = np.nan_to_num(table.emotions[rows]).argmax(1), f"by emotion and {how}"
        fold = f"fold {options.fold + 1} of {folds}"
        table.split[rows] = fold_split(ids, top_emotion, options, twins)
        table.protocol = {
            "train": f"{source} without {fold} and {percent['val']} of the rest, {how}",
            "val": f"{percent['val']} of {source} without {fold}, {how}",
            "test": f"{fold} of {source}, {how}",
        }
    else:
        table.split[rows] = hash_split(ids, shares, twins)
        table.protocol |= {split: f"{percent[split]} of {source}, {how}" for split in shares}
        table.protocol["train"] = f"{source} without {' and '.join(percent.values())}, {how}"
    for picture in table.left_out.pop(pool, []):
        [split] = _split_by_fraction(hash_fractions([picture.id]), shares)
        table.left_out.setdefault(str(split), []).append(picture)


def hash_split(
    ids: Sequence[str], shares: dict[str, float], twins: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """(n,) split names: each of `shares` takes its part by the hash of the id, "train" the rest.

    A group of twins goes where its smallest id goes. A split that would get nothing takes the picture (or
    group) with the smallest hash.
    """
    fractions = hash_fractions(ids)[twin_leaders(ids, twins, sum(shares.values()))]
    split = _split_by_fraction(fractions, shares)
    for name in shares:
        rest = fractions[split == "train"]
        if not (split == name).any() and len(np.unique(rest)) > 1:
            split[(fractions == rest.min()) & (split == "train")] = name
    return split


def fold_split(
    ids: Sequence[str], classes: np.ndarray, options: DataOptions, twins: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """(n,) split names: "test" is one of the folds (`fold_numbers`), "val" a share of the rest by hash."""
    split = np.full(len(ids), "test", dtype="<U5")
    in_rest = fold_numbers(ids, classes, options.folds, twins) != options.fold
    rest = np.flatnonzero(in_rest)
    groups = [[int(np.searchsorted(rest, i)) for i in group if in_rest[i]] for group in twins]
    split[rest] = hash_split([ids[i] for i in rest], {"val": options.validation}, list(filter(None, groups)))
    return split


def fold_numbers(
    ids: Sequence[str], classes: np.ndarray, folds: int, twins: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """(n,) the fold of each picture, from 0.

    The pictures of each of the `classes` (n,), sorted by hash, go to the folds in turn, so that the counts of
    a class differ by at most one between folds. A group of twins goes with its smallest id.
    """
    leaders = twin_leaders(ids, twins, 1 / folds)
    distinct = np.unique(leaders)
    distinct = distinct[np.lexsort((hash_fractions(ids)[distinct], classes[distinct]))]
    numbers = np.empty(len(ids), dtype=int)
    numbers[distinct] = np.arange(len(distinct)) % folds
    return numbers[leaders]


def twin_leaders(ids: Sequence[str], twins: Sequence[Sequence[int]], share: float) -> np.ndarray:
    """(n,) for each picture, the position of the smallest id among it and its twins."""
    leaders = np.arange(len(ids))
    limit = max(10, share * len(ids))
    for group in twins:
        # A group larger than the held-out share is a placeholder file for many different pictures.
        if len(group) <= limit:
            leaders[list(group)] = leaders[min(group, key=lambda i: ids[i])]
    return leaders


def _split_by_fraction(fractions: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """(n,) the split that each fraction falls into."""
    edges = np.cumsum(list(shares.values()))
    return np.array([*shares, "train"])[np.searchsorted(edges, fractions, side="right")]


def find_twins(table: Table, paths: list[str], ids: list[str], suspects: np.ndarray) -> list[list[int]]:
    """Positions in `ids` of identical pictures, in groups; if by content, only groups with a suspect (n,)."""
    if table.twins is not None:
        position = {name: i for i, name in enumerate(ids)}
        groups = [[position[name] for name in group if name in position] for group in table.twins]
        return [group for group in groups if len(group) > 1]
    if table.copies:  # by their originals: unequal pictures may have equal copies
        source = dict(zip(table.ids, table.sources, strict=True))
        return _groups(range(len(ids)), lambda i: source[ids[i]], suspects)
    return identical_files(paths, suspects)


def identical_files(paths: Sequence[str], suspects: np.ndarray) -> list[list[int]]:
    """Groups of positions of byte-identical files, those that hold at least one of the `suspects` (n,) bool.

    Sizes are compared first, then 4 KiB from the middle, then the whole; each time only of files that
    equal a suspect so far. A file that cannot be read has no twin.
    """
    groups = [range(len(paths))]
    for key in (_size, _middle, file_hash):
        parts = [_groups(group, lambda i, key=key: key(paths[i]), suspects) for group in groups]
        groups = [part for several in parts for part in several]
    return groups


def _groups(positions: Iterable[int], key: Callable[[int], object], suspects: np.ndarray) -> list[list[int]]:
    """The positions with the same key, where there are several and a suspect among them."""
    by_key = defaultdict(list)
    for i in positions:
        with suppress(OSError):
            by_key[key(i)].append(i)
    return [group for group in by_key.values() if len(group) > 1 and suspects[group].any()]


def _size(path: str) -> int | str:
    return os.stat(path).st_size or path  # noqa: PTH116 - empty files are broken, not twins


def _middle(path: str) -> bytes:
    """4 KiB from the middle: the first bytes of photographs from one camera are often equal."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        file.seek(max(0, os.fstat(file.fileno()).st_size // 2 - 2048))
        return file.read(4096)
