"""The folder of pictures and arrays that explain each score."""

# Paths are plain texts here: names that are no UTF-8, and folders of any depth, stay as they came.
# ruff: noqa: PTH119
from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from eamb.files import printable, written_whole
from eamb.inference.photographs import Found
from eamb.inference.scorer import Scored, Scorer
from eamb.readers.decoding import decode

LONGEST_NAME = 230  # bytes; an ending and a temporary name come on top, and file systems take 255

DEEPEST = 100  # folders; Python makes and searches them by calling itself for each level, up to 1,000

UNTRAINED = "the emotion branch of these weights was never trained on emotions"

UNTRAINED_MAP = "map of an emotion branch never trained on emotions"


class MapFolder:
    """Writes what explains scores, in sub-folders like the pictures' own.

    Per picture a panel as PNG; with `raw` also the maps at feature resolution, `<name>.eam.npy` (h, w) and
    `<name>.cam.npy` (E, h, w), float32, and once `emotions.txt`, the names of the E classes.
    """

    def __init__(self, folder: Path, scorer: Scorer, raw: bool):
        self.folder, self.scorer, self.raw = folder, scorer, raw
        self.names: set[str] = set()

    def skip(self, found: Found) -> None:
        """Passes over a picture whose maps an interrupted run wrote.

        Raises:
            ValueError: it did not.
        """
        name = self.name(found)
        for path in (self.folder / f"{name}.png", self.folder / f"{name}.eam.npy")[: 1 + self.raw]:
            if not path.is_file():
                raise ValueError(
                    f"predict: {path} is missing, though its picture has a row; --resume needs the --maps "
                    "and --maps-raw of the interrupted run"
                )

    def remove_unfinished(self) -> None:
        """Removes what a killed run was writing."""
        for ending in ("png", "npy", "emotions.txt"):
            for path in self.folder.rglob(f".*{ending}.*.tmp"):
                path.unlink()

    def write(self, scored: Scored, found: Found) -> None:
        from eamb.inference.panels import Explanation, save_panel  # matplotlib takes a second to load

        name = self.name(found)
        explanation = Explanation(
            title=printable(os.path.basename(found.path)),
            score=describe_score(scored),
            value=scored.score,
            ends=self.scorer.ends,
            emotion_map=scored.emotion_map,
            map_title="emotion-aware map" if self.scorer.emotions_trained else UNTRAINED_MAP,
            emotions=scored.emotions,
            class_maps=scored.class_maps,
            training_ratings=self.scorer.quantiles,
            distribution=scored.distribution,
        )
        save_panel(self.folder / f"{name}.png", decode(found.path, exif=self.scorer.exif), explanation)
        if self.raw:
            self.write_arrays(scored, name)

    def write_arrays(self, scored: Scored, name: str) -> None:
        write_array(self.folder / f"{name}.eam.npy", scored.emotion_map)
        if scored.class_maps is None:
            return
        write_array(self.folder / f"{name}.cam.npy", scored.class_maps)
        if len(self.names) == 1:  # the first picture
            with written_whole(self.folder / "emotions.txt") as unfinished:
                unfinished.write_text(
                    "".join(f"{emotion}\n" for emotion in scored.emotions), encoding="utf-8"
                )

    def name(self, found: Found) -> str:
        """`sub/a.jpg`; a second picture of that name, from another folder, gets `sub/a.jpg.2`.

        Of more than DEEPEST nested folders the last are kept.
        """
        stem = os.path.relpath(found.path, found.folder or ".")
        stem = str(Path(*Path(stem).parts[-DEEPEST:]))
        while len(os.fsencode(os.path.basename(stem))) > LONGEST_NAME:
            stem = stem[:-1]
        name, number = stem, 1
        while name in self.names:
            number += 1
            name = f"{stem}.{number}"
        self.names.add(name)
        return name


def write_array(path: Path, values: np.ndarray) -> None:
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, values)


def describe_score(scored: Scored) -> str:
    """As in "3.72 of 1 to 5, above 81 % of the training ratings"."""
    text = f"{scored.score:.2f} of {scored.score_min:g} to {scored.score_max:g}"
    if scored.percentile is None:
        return text
    return f"{text}, above {scored.percentile:.0f} % of the training ratings"
