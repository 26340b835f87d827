"""EmoSet: pictures with one of eight emotions each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from eamb.files import encodable
from eamb.network.outputs import EMOTIONS
from eamb.readers.rated import DataOptions, emotion_name
from eamb.readers.table import NO_RATING, Read, Table, joined, one_hot, read_json, split_files

EMOSET_ENTRY = "[label, id, picture, annotation] or [label, picture, annotation], all texts"


def parse_emoset(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """info.json with the classes, and whichever of train.json, val.json and test.json the splits need."""
    folder = next((f for f in (root, root / "EmoSet-118K") if (f / "info.json").is_file()), root)
    classes = _emoset_classes(folder / "info.json", read)
    files = split_files(folder, splits, ".json")
    table = joined([_emoset_part(path, split, classes, read) for split, path in files.items()])
    table.places = [folder]
    return table


def _emoset_classes(path: Path, read: Read) -> tuple[str, ...]:
    """The names of label2idx, in the order of EMOTIONS."""
    info = read(read_json, path)
    labels = info.get("label2idx") if isinstance(info, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"datasets: {path.name} should name its classes in 'label2idx', as {{\"awe\": 1}}.")
    names = [emotion_name(label) for label in labels]
    for label, name in zip(labels, names, strict=True):
        if name not in EMOTIONS or names.count(name) > 1:
            raise ValueError(
                f"datasets: {path.name}: label2idx: '{label}' should be, once, one of {', '.join(EMOTIONS)}."
            )
    return tuple(emotion for emotion in EMOTIONS if emotion in names)


def _emoset_part(path: Path, split: str, classes: tuple[str, ...], read: Read) -> Table:
    entries = read(read_json, path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"datasets: {path.name} should be a list of {EMOSET_ENTRY}.")

    def entry_error(number: int, expected: str) -> ValueError:
        """An error about one entry; entries are counted from 1."""
        text = json.dumps(entries[number - 1])[:200]
        return ValueError(f"datasets: {path.name} entry {number} is {text}, expected {expected}.")

    for number, entry in enumerate(entries, 1):
        if not (isinstance(entry, list) and len(entry) in (3, 4) and {*map(type, entry)} == {str}):
            raise entry_error(number, EMOSET_ENTRY)
    emotions = [emotion_name(entry[0]) for entry in entries]
    for number, emotion in enumerate(emotions, 1):
        if emotion not in classes:
            raise entry_error(number, f"a label of info.json ({', '.join(classes)})")
    # In some copies of the set an entry has an id of its own, which is the file's name without ending.
    ids = [encodable(entry[1] if len(entry) == 4 else Path(entry[1]).stem) for entry in entries]
    names = [entry[-2] for entry in entries]
    for values in (ids, names):
        repeated = pd.Series(values, dtype=object).duplicated()  # a name may hold what pyarrow refuses
        if repeated.any():
            raise entry_error(int(repeated.argmax()) + 1, "each picture once")
    return Table(
        name="emoset",
        ids=ids,
        names=names,
        split=np.full(len(ids), split),
        protocol={split: f"official {path.name}"},
        scores=np.full(len(ids), np.nan),
        rating=NO_RATING,
        emotions=one_hot(emotions, classes),
        emotion_classes=classes,
    )
