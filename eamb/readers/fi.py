"""FI (Flickr and Instagram): pictures in folders named by emotion."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from eamb.files import encodable
from eamb.network.outputs import EMOTIONS
from eamb.readers.endings import PICTURE_ENDINGS
from eamb.readers.rated import SPLIT_WORDS, SPLITS, DataOptions, LeftOut, emotion_name
from eamb.readers.table import NO_RATING, Read, Table, one_hot

FI_TEST_SHARE = 0.15
NUMBERED = re.compile(r"(.*?)[ _-]*\(?\d*\)?", re.DOTALL)  # amusement12, amusement_12, amusement (12)


def parse_fi(root: Path, splits: tuple[str, ...], options: DataOptions, read: Read) -> Table:
    """`<emotion>/*.jpg` or `<emotion><n>.jpg` in root, or in train/, val/ and test/ there."""
    parts = [(SPLIT_WORDS[f.name.lower()], f) for f in _list(root)[1] if f.name.lower() in SPLIT_WORDS]
    parts = parts or [("", root)]
    rows = [(split, *picture) for split, part in parts for picture in _pictures(part)]
    left_out: dict[str, list[LeftOut]] = {}
    for split, file in ((split, file) for split, part in parts for file in _other_files(part)):
        row = LeftOut(encodable(file.relative_to(root).as_posix()), "no picture, by its ending")
        left_out.setdefault(split, []).append(row)
    split, paths, emotions = ([row[k] for row in rows] for k in range(3))
    for path, emotion in zip(paths, emotions, strict=True):
        if emotion not in EMOTIONS:
            raise ValueError(
                f"datasets: {path}: '{emotion}' is not an emotion of this set, which are "
                f"{', '.join(EMOTIONS)}. Rename it or move it away."
            )
    classes = tuple(emotion for emotion in EMOTIONS if emotion in emotions)
    if len(classes) < 2:
        raise ValueError(
            f"datasets: {root} should hold a folder per emotion ({', '.join(EMOTIONS)}) or pictures named "
            f"<emotion><number>.jpg, of two emotions or more; it has {' and '.join(classes) or 'none'}."
        )
    missing = [emotion for emotion in EMOTIONS if emotion not in classes]
    lacks = f"; it has no {' and no '.join(missing)}" if missing else ""
    where = encodable(root.resolve().name)
    names = [path.relative_to(root).as_posix() for path in paths]
    return Table(
        name="fi",
        ids=[encodable(name) for name in names],  # as text: a byte that is not UTF-8 becomes \xff
        names=names,
        places=[root],
        split=np.array(split, dtype="<U5"),
        protocol=dict.fromkeys(SPLITS, f"folder {where} (emotions by name{lacks})"),
        scores=np.full(len(names), np.nan),
        rating=NO_RATING,
        emotions=one_hot(emotions, classes),
        emotion_classes=classes,
        left_out=left_out,
        test_share=FI_TEST_SHARE,
    )


def _pictures(folder: Path) -> list[tuple[Path, str]]:
    """Each picture in a folder and in its class folders, and its emotion."""
    files, classes, _ = _list(folder)
    in_classes = [(file, emotion_name(each.name)) for each in classes for file in _list(each)[0]]
    return [(file, _numbered_emotion(file)) for file in files] + in_classes


def _other_files(folder: Path) -> list[Path]:
    """The files in a folder's class folders that are not pictures."""
    return [
        file for each in _list(folder)[1] if emotion_name(each.name) in EMOTIONS for file in _list(each)[2]
    ]


def _list(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The pictures, folders and other files in a folder, sorted, without hidden ones; none if unreadable."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return [], [], []
    files = [path for path in paths if path.suffix.lower() in PICTURE_ENDINGS]
    others = [path for path in paths if path.suffix.lower() not in PICTURE_ENDINGS]
    return files, [path for path in others if path.is_dir()], [path for path in others if path.is_file()]


def _numbered_emotion(file: Path) -> str:
    """The emotion that a file is named for: "Sad (12).jpg" -> "sadness"."""
    return emotion_name(NUMBERED.fullmatch(file.stem)[1])
