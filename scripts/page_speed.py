"""A page of thousands of photographs, opened in Chromium: for scripts/benchmark.py and the tests of the page.

Needs the package playwright and a Chromium or Chrome that is installed; playwright's own is not downloaded.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from eamb.inference.page import PageFolder, preview, shrink
from eamb.inference.photographs import PictureFile
from eamb.inference.rows import column_names
from eamb.inference.scorer import Scored, Scorer
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.readers.exif import Taken

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def find_browser() -> str | None:
    """The first browser that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def write_large_page(folder: Path, count: int, scorer: Scorer) -> None:
    """A page of `count` photographs: the demo set's in turn, with random scores and emotions."""
    pictures = [PictureFile(f"photographs/{number:05d}.jpg", "photographs") for number in range(count)]
    page = PageFolder(folder, scorer, pictures, column_names(scorer.scale, scorer.emotions, several=False))
    previews = [preview(shrink(open_photograph(one).convert("RGB")), Taken()) for one in PHOTOGRAPHS]
    chance = np.random.default_rng(0)

    def results() -> Iterator[Scored]:
        for number, picture in enumerate(pictures):
            page.previews[picture.path] = previews[number % len(previews)]
            emotions = dict(
                zip(scorer.emotions, chance.dirichlet(np.ones(len(scorer.emotions))).tolist(), strict=True)
            )
            low, high = scorer.scale.ends
            score = float(np.clip(chance.normal((low + high) / 2, (high - low) / 8), low, high))
            yield Scored(
                picture.path,
                score=score,
                percentile=float(chance.uniform(0, 100)),
                emotion=max(emotions, key=emotions.get),
                emotions=emotions,
                emotion_map=chance.random((28, 28)),
            )

    for _ in page.write_all(results()):
        pass


def memory_by_process(browser: Browser) -> dict[str, float]:
    """GB of memory by kind of process, as "renderer", which has the page; what processes share is divided
    among them. Linux only."""
    total = Counter()
    for process in browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]:
        lines = Path(f"/proc/{process['id']}/smaps_rollup").read_text().splitlines()
        kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        total[process["type"]] += kilobytes * 1024 / 1e9
    return dict(total)


def open_page(browser: Browser, index: Path) -> Page:
    """A new window with the page; returns when the photographs in view have been loaded."""
    page = browser.new_page(viewport={"width": 1366, "height": 850})
    page.goto(index.as_uri(), wait_until="load")
    return page
