"""FI (Flickr and Instagram): pictures in folders named by emotion."""

from __future__ import annotations

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
    folder = _find_folder(root)
    parts = [(split, part) for split, part in _split_folders(folder) if _has_emotions(part)]
    if parts and _has_emotions(folder):
        raise ValueError(
            f"datasets: {folder} has pictures by emotion, and so has its folder {parts[0][1].name}; "
            "which are meant? Move the others away."
        )
    rows = [(split, *picture) for split, part in parts or [("", folder)] for picture in _pictures(part)]
    split, paths, emotions = (list(column) for column in zip(*rows, strict=True))
    for path, emotion in zip(paths, emotions, strict=True):
        if emotion not in EMOTIONS:
            raise ValueError(
                f"datasets: {path}: '{emotion}' is not an emotion of this set, which are "
                f"{', '.join(EMOTIONS)}. Rename it or move it away."
            )
    classes = tuple(emotion for emotion in EMOTIONS if emotion in emotions)
    if len(classes) < 2:
        raise ValueError(
            f"datasets: {folder} has pictures of {classes[0]} only; an emotion set needs two classes or more "
            f"of {', '.join(EMOTIONS)}."
        )
    missing = [emotion for emotion in EMOTIONS if emotion not in classes]
    lacks = f"; it has no {' and no '.join(missing)}" if missing else ""
    where = encodable(folder.resolve().name)
    names = [path.relative_to(folder).as_posix() for path in paths]
    return Table(
        name="fi",
        ids=[encodable(name) for name in names],  # as text: a byte that is not UTF-8 becomes \xff
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


def _find_folder(root: Path) -> Path:
    """The one folder with the classes, or with train/, val/ and test/ above them, on the highest level."""
    level = [root]
    for _ in range(FI_DEPTH + 1):
        found = [f for f in level if any(map(_has_emotions, [f, *(part for _, part in _split_folders(f))]))]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"datasets: {found[0]} and {found[1]} both have pictures by emotion; "
                "--data-root must name one of them."
            )
        level = [folder for parent in level for folder in _list(parent)[1]]
    files, folders = _list(root)
    names = ", ".join(path.name for path in [*folders, *files][:8])
    raise ValueError(
        f"datasets: {root} should hold a folder per emotion ({', '.join(EMOTIONS)}) or pictures named "
        f"<emotion><number>.jpg; found {names or 'nothing'}."
    )


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    return [(SPLIT_WORDS[f.name.lower()], f) for f in _list(folder)[1] if f.name.lower() in SPLIT_WORDS]


def _has_emotions(folder: Path) -> bool:
    files, folders = _list(folder)
    named = {emotion_name(each.name) for each in folders} | {_numbered_emotion(file) for file in files}
    return not named.isdisjoint(EMOTIONS)


def _pictures(folder: Path) -> list[tuple[Path, str]]:
    """Each picture in a folder and in its class folders, and its emotion."""
    files, class_folders = _list(folder)
    pictures = [(file, _numbered_emotion(file)) for file in files]
    for each in class_folders:
        emotion, files = emotion_name(each.name), _list(each)[0]
        if not files and emotion in EMOTIONS:
            raise ValueError(
                f"datasets: {each} has no picture: {emotion} is an empty class. Fill the folder or remove it."
            )
        pictures += [(file, emotion) for file in files]
    return pictures


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures and the folders in a folder, sorted by name; hidden and unreadable ones are left out."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return [], []
    files = [path for path in paths if path.suffix.lower() in PICTURE_ENDINGS]
    return files, [path for path in paths if path.suffix.lower() not in PICTURE_ENDINGS and path.is_dir()]


def _numbered_emotion(file: Path) -> str:
    """The emotion that a file is named for: "Sad (12).jpg" -> "sadness"."""
    return emotion_name(NUMBERED.fullmatch(file.stem)[1])
