"""The page of `main.py select` in a real browser: keys, overlay, override, and the csv that it saves.

Needs Debian's chromium and chromium-driver (or Chrome and chromedriver), and is run by hand: -m slow. The
browser is spoken to by the WebDriver protocol over plain http, so that no package is needed.
"""

import csv
import io
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from test_picks import OrderScorer

from eamb.readers.exif import CHANGED
from eamb.selection import picks
from main import main

pytestmark = pytest.mark.slow

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --window-size=1300,900"
LEFT, UP, RIGHT, DOWN, ENTER, SPACE, TAB = "\ue012", "\ue013", "\ue014", "\ue015", "\ue007", " ", "\ue004"
NASTY = 'a,"b" <script>alert(1)<!-- & \'\n😀 \udcff.jpg'
PICKED = "return cards.filter(isPicked).map((card) => Number(card.dataset.row))"
CURRENT = "return Number(document.activeElement.dataset.row ?? -1)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page and the picks.csv that was written with it: three series of 3, 1 and 2 photographs."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    for number, name in enumerate(["1.jpg", "2.jpg", NASTY, "b.jpg", "c.jpg", "d.jpg"]):
        scene = (0, 0, 0, 1, 2, 2)[number]
        colours = np.random.default_rng(scene).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[CHANGED] = f"2024:05:03 12:0{scene}:0{number}"
        picture = Image.fromarray(colours).resize((600, 800 if scene else 400), Image.Resampling.BICUBIC)
        picture.save(folder / "photos" / name, exif=exif)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picks, "Scorer", lambda *settings, **named: OrderScorer(emotions_trained=True))
        words = ["--output", str(folder / "picks.csv"), "--page", str(folder / "page")]
        assert main(["select", str(folder / "photos"), *words]) == 0
    return folder


class Browser:
    """A window of Chromium, spoken to by WebDriver commands."""

    def __init__(self, driver, folder):
        self.address, self.downloads = driver, folder / "downloads"
        options = {"args": [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]}
        options["prefs"] = {"download.default_directory": str(self.downloads)}
        if chromium := shutil.which("chromium"):
            options["binary"] = chromium
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.address += "/session/" + self.ask("/session", capabilities={"alwaysMatch": wanted})["sessionId"]

    def ask(self, command, method="POST", **values):
        data = json.dumps(values).encode() if method == "POST" else None
        asked = urllib.request.Request(self.address + command, data, method=method)  # noqa: S310
        with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
            return json.load(answer)["value"]

    def script(self, words):
        return self.ask("/execute/sync", script=words, args=[])

    def press(self, *keys):
        for key in keys:
            strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
            self.ask("/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def saved(self):
        """Presses s and returns what was downloaded."""
        target = self.downloads / "picks.csv"
        target.unlink(missing_ok=True)
        self.press("s")
        for _ in range(100):
            if target.exists():
                return target.read_bytes().decode()
            time.sleep(0.1)
        raise AssertionError("nothing was saved within ten seconds")


@pytest.fixture
def browser(folder, tmp_path):
    program = shutil.which("chromedriver")
    assert program, "this test needs chromedriver: apt-get install chromium chromium-driver"
    process = subprocess.Popen([program, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        found = (re.search(r"successfully on port (\d+)", line) for line in process.stdout)
        window = Browser(f"http://127.0.0.1:{next(filter(None, found))[1]}", tmp_path)
        window.ask("/url", url=(folder / "page" / "index.html").as_uri())
        yield window
        window.ask("", method="DELETE")
    finally:
        process.terminate()
        process.communicate()


def test_keys_lead_through_the_page_and_change_picks(browser):
    assert browser.script(PICKED) == [0, 3, 4]
    places = []
    for key in (RIGHT, RIGHT, RIGHT, DOWN, DOWN, RIGHT, DOWN, UP, UP, UP, LEFT):
        browser.press(key)
        places.append(browser.script(CURRENT))
    #               right  2  stays down      right stays up       stays stays
    assert places == [1, 2, 2, 3, 4, 5, 5, 3, 0, 0, 0]
    for keys, picked in (((RIGHT, ENTER), [0, 1, 3, 4]), ((LEFT, SPACE), [1, 3, 4]), (SPACE, [0, 1, 3, 4])):
        browser.press(*keys)
        assert browser.script(PICKED) == picked
    assert browser.script("return document.getElementById('status').textContent") == "4 picked, 1 changed"
    browser.script("cards[2].click()")
    assert browser.script(PICKED) == [0, 1, 2, 3, 4]


def test_one_stop_of_the_tab_key_leads_to_the_pictures_and_the_focus_is_visible(browser):
    browser.press(DOWN, TAB)
    assert browser.script(CURRENT) == -1
    assert browser.script("return cards.map((card) => card.tabIndex)") == [-1, -1, -1, 0, -1, -1]
    browser.script("document.body.tabIndex = -1; document.body.focus()")
    browser.press(TAB, TAB, TAB)
    assert browser.script(CURRENT) == 3
    assert browser.script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_what_is_saved_is_the_csv_with_the_other_picks(browser, folder):
    written = (folder / "picks.csv").read_bytes().decode()
    assert browser.saved() == written
    browser.press(RIGHT, ENTER, DOWN, ENTER)
    expected = list(csv.reader(io.StringIO(written, newline="")))
    picked, note = (expected[0].index(name) for name in ("picked", "note"))
    changed = list(csv.reader(io.StringIO(browser.saved(), newline="")))
    assert [changed[2][picked], changed[4][picked]] == ["1", "0"]
    assert changed[4][note] == f"{expected[4][note]}; changed by hand"
    for row in (2, 4):
        for column in (picked, note):
            changed[row][column] = expected[row][column]
    assert changed == expected


def test_the_map_lies_over_its_picture(browser):
    sides = """return [...document.querySelectorAll('.thumbnail, .map')].map((image) => {
        const box = image.getBoundingClientRect();
        return [image.naturalWidth > 0, box.left, box.top, box.width, box.height];
    })"""
    assert {map_[3] for map_ in browser.script(sides)[1::2]} == {0}
    browser.press("m")
    browser.script("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    time.sleep(1)
    images = browser.script(sides)
    assert all(image[0] for image in images)
    np.testing.assert_allclose(images[::2], images[1::2], atol=0.1)  # pixels
    assert [round(image[3] / image[4], 2) for image in images[::2]] == [1.5, 1.5, 1.5, 0.75, 0.75, 0.75]
    browser.press("m")
    assert {map_[3] for map_ in browser.script(sides)[1::2]} == {0}


def test_names_are_text_nothing_is_complained_about_and_the_original_opens(browser):
    with pytest.raises(urllib.error.HTTPError):  # there is no alert
        browser.ask("/alert/text", method="GET")
    names = browser.script("return [...document.querySelectorAll('.thumbnail')].map((image) => image.alt)")
    assert names[0] == NASTY.replace("\n", r"\n").replace("\udcff", r"\xff")
    assert browser.ask("/se/log", type="browser") == []
    browser.ask("/url", url=browser.script("return document.querySelector('.original').href"))
    assert browser.script("return document.images[0].naturalWidth") == 600
