"""FI (Flickr and Instagram): pictures in folders named by emotion."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from eamb.files import encodable
from eamb.network.outputs import EMOTIONS
from eamb.readers.decoding import PICTURE_ENDINGS
from eamb.readers.rated import SPLIT_WORDS, SPLITS, DataOptions, emotion_name
from eamb.readers.table import NO_RATING, Read, Table, one_hot

FI_TEST_SHARE = 0.15
FI_DEPTH = 2  # levels of folders below the root that are searched for the classes
NUMBERED = re.compile(r"(.*?)[ _-]*\(?\d*\)?", re.DOTALL)  # amusement12, amusement_12, amusement (12)


def parse_fi(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """`<emotion>/*.jpg` or `<emotion><n>.jpg` in root, a folder below it, or train/, val/ and test/ there."""
    folder = _fi_folder(root)
    prefixes = [(split, f"{place.name}/") for split, place in _fi_splits(folder, splits)] or [("", "")]
    rows = [(split, *picture) for split, prefix in prefixes for picture in _fi_pictures(folder, prefix)]
    split, names, emotions = (list(column) for column in zip(*rows, strict=True))
    classes = tuple(emotion for emotion in EMOTIONS if emotion in emotions)
    if len(classes) < 2:
        raise ValueError(
            f"datasets: {folder} has pictures of {classes[0]} only; an emotion set needs two classes or more "
            f"of {', '.join(EMOTIONS)}."
        )
    missing = [emotion for emotion in EMOTIONS if emotion not in classes]
    lacks = f"; it has no {' and no '.join(missing)}" if missing else ""
    ids = [encodable(name) for name in names]  # as text: a byte that is not UTF-8 becomes \xff
    if len(set(ids)) < len(ids):
        twice = next(i for i, name in zip(ids, names, strict=True) if i != name and ids.count(i) > 1)
        raise ValueError(f"datasets: {folder} has two files whose names are written '{twice}'; rename one.")
    where = encodable(folder.resolve().name)
    return Table(
        name="fi",
        ids=ids,
        names=names,
        places=[folder],
        split=np.array(split, dtype="<U5"),
        protocol=dict.fromkeys(SPLITS, f"folder {where} (emotions by name{lacks})"),
        scores=np.full(len(names), np.nan),
        rating=NO_RATING,
        emotions=one_hot(emotions, classes),
        emotion_classes=classes,
        test_share=FI_TEST_SHARE,
    )


def _fi_folder(root: Path) -> Path:
    """The one folder with the classes, or with train/, val/ and test/ above them, on the highest level."""
    level = [root]
    for _ in range(FI_DEPTH + 1):
        candidates = [
            f for f in level if _has_emotions(f) or any(_has_emotions(p) for _, p in _split_folders(f))
        ]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise ValueError(
                f"datasets: {candidates[0]} and {candidates[1]} both have pictures by emotion; "
                "--data-root must name one of them."
            )
        level = [folder for parent in level for folder in _list(parent)[1]]
    files, folders = _list(root)
    names = [folder.name for folder in folders] + [name for name in files if _is_picture(name)]
    raise ValueError(
        f"datasets: {root} should hold a folder per emotion ({', '.join(EMOTIONS)}) or pictures named "
        f"<emotion><number>.jpg; found {', '.join(names[:8]) or 'nothing'}{', ...' if names[8:] else ''}."
    )


def _fi_splits(folder: Path, splits: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(split, its folder); none if the pictures are not split."""
    places = [(split, place) for split, place in _split_folders(folder) if _has_emotions(place)]
    if places and _has_emotions(folder):
        raise ValueError(
            f"datasets: {folder} has pictures by emotion, and so has its folder {places[0][1].name}; "
            "which are meant? Move the others away."
        )
    there = {split for split, _ in places}
    needed = {"train" if split == "val" and "val" not in there else split for split in splits}
    absent = [split for split in SPLITS if split in needed - there]
    if places and absent:
        raise FileNotFoundError(
            f"datasets: the {absent[0]} split is asked for and {folder} has only folders of "
            f"{' and '.join(sorted(there))}."
        )
    return places


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    return [(SPLIT_WORDS[f.name.lower()], f) for f in _list(folder)[1] if f.name.lower() in SPLIT_WORDS]


def _has_emotions(folder: Path) -> bool:
    files, folders = _list(folder)
    named = (emotion_name(each.name) for each in folders)
    numbered = (_numbered_emotion(name) for name in files if _is_picture(name))
    return any(emotion in EMOTIONS for emotion in (*named, *numbered))


def _fi_pictures(folder: Path, prefix: str) -> list[tuple[str, str]]:
    """Path relative to `folder`, and emotion, of each picture in folder/prefix and in its class folders."""
    files, class_folders = _list(folder / prefix)
    pictures = [(prefix + name, _numbered_emotion(name)) for name in files if _is_picture(name)]
    for each in class_folders:
        emotion = emotion_name(each.name)
        names = [name for name in _list(each)[0] if _is_picture(name)]
        if not names and emotion in EMOTIONS:
            raise ValueError(
                f"datasets: {each} has no picture: {emotion} is an empty class. Fill the folder or remove it."
            )
        pictures += [(f"{prefix}{each.name}/{name}", emotion) for name in names]
    for name, emotion in pictures:
        if emotion not in EMOTIONS:
            raise ValueError(
                f"datasets: {folder / name}: '{emotion}' is not an emotion of this set, which are "
                f"{', '.join(EMOTIONS)}. Rename it or move it away."
            )
    return pictures


def _list(folder: Path) -> tuple[list[str], list[Path]]:
    """Names of the files and the folders of a folder, sorted; hidden and unreadable ones are left out."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link to itself or into a closed folder: its name decides
                    is_folder = not _is_picture(entry.name)
                if not entry.name.startswith("."):
                    (folders if is_folder else files).append(entry.name)
    except OSError:
        return [], []
    return sorted(files), [folder / name for name in sorted(folders)]


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_ENDINGS)


def _numbered_emotion(name: str) -> str:
    """The emotion that a file is named for: "Sad (12).jpg" -> "sadness"."""
    return emotion_name(NUMBERED.fullmatch(name.rpartition(".")[0])[1])
