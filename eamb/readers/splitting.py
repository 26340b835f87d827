"""Splits by hash, also into folds; identical pictures stay on one side."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eamb.readers.rated import DataOptions, hash_fractions
from eamb.readers.table import Table

# Asking 255,530 files for their size takes a second from memory, and minutes from a cold or a network disk.
TWIN_LIMIT = 100_000

# Sizes shared by more files than this are placeholders or uncompressed pictures; they are not compared.
SAME_SIZE_LIMIT = 10_000


def split_by_hash(table: Table, paths: list[str], splits: Sequence[str], options: DataOptions) -> None:
    """Gives rows a split, in place: all rows of a set without one, else a validation part of training."""
    if not table.has_own_split:
        test = 1 / options.folds if options.folds else table.test_share
        pool, shares = "", {"test": test, "val": options.validation}
    elif {"train", "val"} & set(splits) and not (table.split == "val").any():
        pool, shares = "train", {"val": options.validation}
    else:
        return
    rows = np.flatnonzero(table.split == pool)
    ids = [table.ids[i] for i in rows]
    searched = options.twins and (table.twins is not None or len(rows) <= TWIN_LIMIT)
    # Every picture is tested in one of the folds, so all twins matter.
    share = 1.0 if options.folds else sum(shares.values())
    twins = find_twins(table, [paths[i] for i in rows], ids, _candidates(ids, share)) if searched else []
    how = "by hash of the id" + ("" if searched else ", identical pictures not looked for")
    table.split = table.split.astype("<U5")
    if options.folds:
        _describe_fold(table, options, how)
        table.split[rows] = fold_split(ids, _main_emotions(table)[rows], options, twins)
    else:
        _describe_split(table, shares, how)
        table.split[rows] = hash_split(ids, shares, twins)
    for row in table.left_out.pop(pool, []):
        side = str(_sides(hash_fractions([row.id]), shares)[0])
        table.left_out.setdefault(side, []).append(row)


def _describe_split(table: Table, shares: dict[str, float], how: str) -> None:
    """Puts into the protocol which share of which files each split is."""
    percent = {split: f"{100 * share:g} %" for split, share in shares.items()}
    source = table.protocol["train"]
    for split in shares:
        table.protocol[split] = f"{percent[split]} of {source}, {how}"
    table.protocol["train"] = f"{source} without {' and '.join(percent.values())}, {how}"


def _describe_fold(table: Table, options: DataOptions, how: str) -> None:
    how = f"by emotion and {how}" if table.emotions is not None else how
    fold, source = f"fold {options.fold + 1} of {options.folds}", table.protocol["train"]
    percent = f"{100 * options.validation:g} %"
    table.protocol = {
        "train": f"{source} without {fold} and {percent} of the rest, {how}",
        "val": f"{percent} of {source} without {fold}, {how}",
        "test": f"{fold} of {source}, {how}",
    }


def _main_emotions(table: Table) -> np.ndarray:
    """(n,) position of the emotion with most votes; 0 where there is none."""
    if table.emotions is None:
        return np.zeros(len(table.ids), dtype=int)
    return np.nan_to_num(table.emotions).argmax(1)


def hash_split(
    ids: Sequence[str], shares: dict[str, float], twins: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """(n,) split names: each of `shares` takes its part by the hash of the id, "train" the rest.

    A group of twins goes where its smallest id goes. A split that would get nothing, as happens with a few
    pictures, takes the picture (or group) with the smallest hash.
    """
    fractions = hash_fractions(ids)[twin_leaders(ids, twins, sum(shares.values()))]
    split = _sides(fractions, shares)
    for name in shares:
        rest = fractions[split == "train"]
        if not (split == name).any() and len(np.unique(rest)) > 1:
            split[(fractions == rest.min()) & (split == "train")] = name
    return split


def fold_split(
    ids: Sequence[str], classes: np.ndarray, options: DataOptions, twins: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """(n,) split names: "test" is one fold, "val" a share of the rest by hash.

    The pictures of each class, sorted by hash, go to the folds in turn, so that the counts of a class differ
    by at most one between folds. A group of twins goes with its smallest id.

    Args:
        classes: (n,) of integers.
    """
    leaders = twin_leaders(ids, twins, 1 / options.folds)
    dealt = np.unique(leaders)
    dealt = dealt[np.lexsort((hash_fractions(ids)[dealt], classes[dealt]))]
    folds = np.empty(len(ids), dtype=int)
    folds[dealt] = np.arange(len(dealt)) % options.folds
    rest = np.flatnonzero(folds[leaders] != options.fold)
    position = {int(row): i for i, row in enumerate(rest)}
    groups = [[position[i] for i in group if i in position] for group in twins]
    split = np.full(len(ids), "test", dtype="<U5")
    split[rest] = hash_split(
        [ids[i] for i in rest], {"val": options.validation}, [group for group in groups if group]
    )
    return split


def twin_leaders(ids: Sequence[str], twins: Sequence[Sequence[int]], share: float) -> np.ndarray:
    """(n,) position of each picture's twin with the smallest id; its own where it has none."""
    leaders = np.arange(len(ids))
    limit = max(10, share * len(ids))
    for group in twins:
        # More of them than are held out are one placeholder for many pictures, which are not the same.
        if len(group) <= limit:
            leaders[list(group)] = leaders[min(group, key=lambda i: ids[i])]
    return leaders


def _sides(fractions: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """(n,) the split that each fraction falls into."""
    edges = np.cumsum(list(shares.values()))
    return np.array([*shares, "train"])[np.searchsorted(edges, fractions, side="right")]


def _candidates(ids: Sequence[str], share: float) -> np.ndarray:
    """(n,) bool, the pictures that may be held out where `share` of all are."""
    fractions = hash_fractions(ids)
    chosen = fractions < share
    chosen[np.argsort(fractions)[:100]] = True  # in a small set a split may take those that come next
    return chosen


def find_twins(table: Table, paths: list[str], ids: list[str], suspects: np.ndarray) -> list[list[int]]:
    """Groups of positions in `ids` of the same picture; by content only those with a suspect, (n,) bool."""
    if table.twins is None and table.copies:
        return _same_sources(table, ids, suspects)
    if table.twins is None:
        return identical_files(paths, suspects)
    position = {name: i for i, name in enumerate(ids)}
    groups = [[position[name] for name in group if name in position] for group in table.twins]
    return [group for group in groups if len(group) > 1]


def _same_sources(table: Table, ids: list[str], suspects: np.ndarray) -> list[list[int]]:
    """As `identical_files`, of what the copies were made of: unequal pictures may have equal copies."""
    source = dict(zip(table.ids, table.sources, strict=True))
    groups = defaultdict(list)
    for i, name in enumerate(ids):
        groups[source[name]].append(i)
    return [group for group in groups.values() if len(group) > 1 and suspects[group].any()]


def identical_files(paths: Sequence[str], suspects: np.ndarray) -> list[list[int]]:
    """Groups of positions of byte-identical files, those that hold at least one of the `suspects` (n,) bool.

    Sizes are compared first, then 4 KiB from the middle, then the whole; each only of files that were equal
    to a suspect until then. A file that cannot be read has no twin.
    """

    def parts(group: list[int], key: Callable[[str], object]) -> list[list[int]]:
        by_key = defaultdict(list)
        for i in group:
            by_key[_key_or_path(key, paths[i])].append(i)
        return [part for part in by_key.values() if len(part) > 1 and suspects[part].any()]

    same_size = parts(list(range(len(paths))), _size_or_path)
    same_size = [group for group in same_size if len(group) <= SAME_SIZE_LIMIT]
    same_middle = [part for group in same_size for part in parts(group, _middle)]
    return [part for group in same_middle for part in parts(group, _digest)]


def _key_or_path(key: Callable[[str], object], path: str) -> object:
    try:
        return key(path)
    except OSError:
        return path


def _size_or_path(path: str) -> int | str:
    return os.stat(path).st_size or path  # noqa: PTH116 - empty files are broken, not twins


def _middle(path: str) -> bytes:
    """4 KiB from the middle: the heads of photographs from one camera are often equal."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size // 2 - 2048))
        return file.read(4096)


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
