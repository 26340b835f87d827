"""The folder with a panel, and arrays, that explain each score."""

# Paths are plain strings here, so that names that are not UTF-8 stay unchanged.
# ruff: noqa: PTH119
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eamb.files import printable, written_whole

if TYPE_CHECKING:
    from eamb.inference.photographs import PictureFile
    from eamb.inference.scorer import Scored, Scorer

LONGEST_NAME = 230  # bytes; endings and temporary names add to it, and file systems allow 255
UNTRAINED_MAP = "map of an emotion branch never trained on emotions"


class MapFolder:
    """Writes panels and arrays that explain scores, in sub-folders like the pictures' own.

    Each picture gets a panel (PNG); with `raw` also its maps at feature resolution, `<name>.eam.npy` (h, w)
    and `<name>.cam.npy` (E, h, w), float32. `emotions.txt` then names the E classes.
    """

    def __init__(self, folder: Path, scorer: Scorer, raw: bool):
        # Imported here: matplotlib takes a second to load, and drawing processes need no torch.
        from eamb.inference import panels

        self.folder, self.scorer, self.raw, self.panels = folder, scorer, raw, panels
        self.names: set[str] = set()
        self.pictures: dict[str, np.ndarray] = {}  # decoded and not yet drawn, by path

    def keep(self, path: str, picture: Image.Image, exif: Image.Exif) -> None:
        """Takes a picture from the thread that decodes it (`on_decoded` of `Scorer.score_all`)."""
        self.pictures[path] = self.panels.shrink(picture)

    def write_all(self, results: Iterable[tuple[PictureFile, Scored]], processes: int) -> Iterator[Scored]:
        """Writes panel and arrays of each score, and yields the scores in order, each once these are written.

        If a panel could not be drawn, its score has the reason as `error`.

        Args:
            results: pictures, which `keep` has received, with their scores.
            processes: how many draw; below 2, a thread of this process draws.
        """
        waiting: deque[tuple[Scored, Future | None]] = deque()
        with panel_drawers(processes) as drawers:
            for picture, scored in results:
                image = self.pictures.pop(picture.path, None)
                drawing = None if scored.error else self.write(picture, scored, image, drawers)
                waiting.append((scored, drawing))
                if len(waiting) > 2 * processes:
                    yield with_outcome(*waiting.popleft())
            while waiting:
                yield with_outcome(*waiting.popleft())

    def write(self, picture: PictureFile, scored: Scored, image: np.ndarray, drawers: Executor) -> Future:
        """Writes the arrays and begins to draw the panel."""
        name = self.name(picture)
        arrays = {"eam": scored.emotion_map, "cam": scored.class_maps} if self.raw else {}
        for ending, values in arrays.items():
            if values is not None:
                path = self.folder / f"{name}.{ending}.npy"
                with written_whole(path) as unfinished, unfinished.open("wb") as file:
                    np.save(file, values)
        if self.raw and scored.emotions and len(self.names) == 1:  # the first picture
            with written_whole(self.folder / "emotions.txt") as unfinished:
                unfinished.write_text("\n".join([*scored.emotions, ""]), encoding="utf-8")
        score = f"{scored.score:.2f} of {scored.score_min:g} to {scored.score_max:g}"
        if scored.percentile is not None:
            score += f", above {scored.percentile:.0f} % of the training ratings"
        explanation = self.panels.Explanation(
            title=printable(os.path.basename(picture.path)),
            score=score,
            value=scored.score,
            ends=self.scorer.scale.ends,
            emotion_map=scored.emotion_map,
            aspect=self.scorer.network.views[0].aspect,
            map_title="emotion-aware map" if self.scorer.emotions_trained else UNTRAINED_MAP,
            emotions=scored.emotions,
            class_maps=scored.class_maps,
            training_ratings=self.scorer.quantiles,
            distribution=scored.distribution,
            deviation=scored.score_std,
        )
        return drawers.submit(self.panels.save_panel, self.folder / f"{name}.png", image, explanation)

    def resume(self, written: Iterable[tuple[PictureFile, str | None]]) -> None:
        """Continues an interrupted run: removes its unfinished files, and skips what it finished.

        Args:
            written: the pictures that it scored, each with the error in its row.

        Raises:
            ValueError: a panel or an array is missing though the row has no error.
        """
        for ending in ("png", "npy", "emotions.txt"):
            for path in self.folder.rglob(f".*{ending}.*.tmp"):
                path.unlink()
        for picture, error in written:
            name = self.name(picture)
            for ending in ("png", "eam.npy") if self.raw else ("png",):
                path = self.folder / f"{name}.{ending}"
                if not (error or path.is_file()):
                    raise ValueError(
                        f"predict: {path} is missing, though its picture has a row; --resume needs the "
                        "--maps and --maps-raw of the interrupted run"
                    )

    def name(self, picture: PictureFile) -> str:
        """`sub/a.jpg`; a second picture of that name, from another folder, gets `sub/a.jpg.2`."""
        stem = os.path.relpath(picture.path, picture.folder or ".")
        while len(os.fsencode(os.path.basename(stem))) > LONGEST_NAME:
            stem = stem[:-1]
        name, number = stem, 1
        while name in self.names:
            number += 1
            name = f"{stem}.{number}"
        self.names.add(name)
        return name


def with_outcome(scored: Scored, drawing: Future | None) -> Scored:
    """Waits for the panel and returns the score, with the reason as `error` if it could not be drawn.

    Raises:
        OSError: a drawing process died, or a panel cannot be written.
    """
    try:
        if drawing:
            drawing.result()
    except BrokenProcessPool as error:
        words = "a process that draws panels was ended, perhaps for want of memory; --resume goes on"
        raise OSError(f"predict: {words}, with a smaller --workers in less memory") from error
    except ValueError as error:
        return replace(scored, error=f"its panel could not be drawn: {error}")
    return scored


def panel_drawers(processes: int) -> Executor:
    """The pool that draws panels: processes that ignore Ctrl-C, or one thread if `processes` is below 2."""
    if processes < 2:
        return ThreadPoolExecutor(1)
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(processes, spawn, start_drawing)


def start_drawing() -> None:
    """Makes a drawing process ignore Ctrl-C, and end with its parent even if that is killed."""

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
