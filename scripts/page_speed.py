"""A page of thousands of photographs, opened in Chromium: for scripts/benchmark.py and the tests of the page.

Needs the package playwright and a Chromium or Chrome that is installed; playwright's own is not downloaded.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from playwright.sync_api import Browser, Playwright, sync_playwright

from eamb.inference.page import PageFolder, preview, shrink
from eamb.inference.photographs import PictureFile
from eamb.inference.rows import column_names
from eamb.inference.scorer import Scored, Scorer
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.readers.exif import Taken

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCROLL = """async () => {
    for (let top = 0; top < document.documentElement.scrollHeight; top += 2 * innerHeight) {
        scrollTo(0, top);
        await new Promise((done) => setTimeout(done, 50));  // pictures are loaded and drawn
    }
}"""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def find_browser() -> str | None:
    """The first browser that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
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


def page_memory(browser: Browser) -> float:
    """GB of memory of the process that shows the page, the largest of its kind; Linux only.

    What it shares with the browser's other processes is divided among them.
    """
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    files = [Path(f"/proc/{one['id']}/smaps_rollup") for one in processes if one["type"] == "renderer"]
    kilobytes = [int(re.search(r"^Pss: +(\d+) kB", file.read_text(), re.M)[1]) for file in files]
    return max(kilobytes) * 1024 / 1e9


def make_opening(folder: Path, name: str) -> Callable[[], dict[str, float]]:
    """Opens the page in a new window of a running browser, until all pictures in view are shown.

    If the name of the variant says so, it then scrolls to the end, so that every thumbnail is loaded.
    """
    browser = launch(sync_playwright().start())  # both end with this process

    def run() -> dict[str, float]:
        page = browser.new_page(viewport={"width": 1366, "height": 850})
        page.goto((folder / "index.html").as_uri(), wait_until="load")
        if "scroll" in name:
            page.evaluate(SCROLL)
        memory = page_memory(browser)
        page.close()
        return {"memory_gb": memory}

    return run
