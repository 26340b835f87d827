"""The pages of `predict` and `select` in a real browser, through playwright; run by -m slow.

Needs an installed Chromium or Chrome. A message on the console, or a request for anything that is not in the
tests' own folders, fails a test.
"""

import csv
import io
import itertools
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from lively import build_lively, write_weights
from PIL import Image
from small import read_csv
from test_page import NASTY, VOTES, Page

from eamb.files import printable
from eamb.inference.scorer import Scorer
from eamb.network.outputs import EMOTIONS
from eamb.readers.exif import CHANGED
from main import main
from scripts.page_speed import chromium, find_browser, page_memory, write_large_page

pytestmark = pytest.mark.slow

NAMES = ["10.jpg", "9.jpg", "b/1 #50%25?.jpg", "b/2\n.jpg", "b/3.jpg", NASTY, "undated.jpg"]
LIGHT, DARK = {"color_scheme": "light"}, {"color_scheme": "dark"}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CARDS = "[...document.querySelectorAll('.card')]"


@pytest.fixture(scope="module")
def browser():
    assert find_browser(), "these tests need a browser: apt-get install chromium"
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs, scores.csv and picks.csv, and the pages that were written with them."""
    folder = tmp_path_factory.mktemp("out")
    for number, name in enumerate(NAMES):
        file = folder / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        scene, exif = (0, 0, 1, 2, 2, 3, 4)[number], Image.Exif()
        colours = np.random.default_rng(scene).integers(0, 256, (5, 6, 3), dtype=np.uint8) // (1 + number % 2)
        if name != "undated.jpg":
            exif[CHANGED] = f"2024:05:0{1 + scene % 2} 12:0{scene}:0{number}"
        size = (600, 800) if scene else (600, 400)
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(file, exif=exif)
    (folder / "photos/broken.jpg").write_text("<html>")
    weights = write_weights(folder / "votes.safetensors", build_lively(4), VOTES)
    words = [str(folder / "photos"), "--checkpoint", str(weights), "--device", "cpu", "--workers", "0"]
    scores, chosen = (["--output", str(folder / f"{name}.csv")] for name in ("scores", "picks"))
    assert main(["predict", *words, *scores, "--page", str(folder / "page")]) == 1
    assert main(["select", *words, *chosen, "--page", str(folder / "picks")]) == 1
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return Page(folder / "page")


@pytest.fixture(scope="module")
def rows(data):
    """The photographs on the page, best first."""
    return sorted((row for row in data.rows if "score" in row), key=lambda row: -row["score"])


@pytest.fixture
def open_page(browser, tmp_path_factory):
    """Opens a page in a new window."""
    windows, complaints = [], []
    base = tmp_path_factory.getbasetemp().as_uri()

    def watch(request):
        if not request.url.startswith((base, "blob:")):
            complaints.append(request.url)

    def open_page(page, **options):
        window = browser.new_context(**options).new_page()
        window.on("console", lambda message: complaints.append(message.text))
        window.on("pageerror", lambda error: complaints.append(str(error)))
        window.on("dialog", lambda dialog: complaints.append(dialog.message))
        window.on("request", watch)
        windows.append(window)
        window.goto((page / "index.html").as_uri(), wait_until="load")
        window.complaints = complaints
        return window

    yield open_page
    for window in windows:
        window.context.close()
    assert not complaints


@pytest.fixture
def window(open_page, folder):
    return open_page(folder / "page")


def names(window):
    return window.evaluate(f"{CARDS}.map((card) => card.querySelector('.name').textContent)")


def press(window, *keys):
    for key in keys:
        window.keyboard.press(key)


def current(window):
    """The label of the photograph that a screen reader is told to be on."""
    place = "document.querySelector('#grid').getAttribute('aria-activedescendant')"
    return window.evaluate(f"document.getElementById({place}).querySelector('.name').textContent")


def download(window, key):
    """Presses a key; the name and the bytes of what is saved."""
    with window.expect_download() as download:
        window.keyboard.press(key)
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def as_rows(text):
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


# ---- order and filters


def test_photographs_are_sorted(window, rows):
    def expect(order, key, headings=()):
        window.select_option("#order", order)
        assert names(window) == [row["name"] for row in sorted(rows, key=key)]
        assert [text.split("\n")[0] for text in window.locator(".heading").all_inner_texts()] == [*headings]

    awe = EMOTIONS.index("awe")
    strongest = [int(np.argmax(row["emotions"])) for row in rows]
    in_order = ["9.jpg", "10.jpg", *NAMES[2:5], "undated.jpg", NASTY]
    places = {printable(Path(name).name): place for place, name in enumerate(in_order)}
    expect("score", lambda row: -row["score"])
    expect("name", lambda row: places[row["name"]])
    expect("time", lambda row: row["time"] or "~", headings=["2024-05-01", "2024-05-02", "no time known"])
    expect(str(awe), lambda row: -row["emotions"][awe])
    found = [EMOTIONS[number] for number in sorted(set(strongest))]
    assert len(found) > 1
    expect("emotion", lambda row: (np.argmax(row["emotions"]), -max(row["emotions"])), headings=found)
    window.select_option("#order", "score")
    press(window, "r")
    assert names(window) == [row["name"] for row in rows[::-1]]


def test_photographs_are_found_by_emotion_and_words(window, rows):
    first = int(np.argmax(rows[0]["emotions"]))
    window.select_option("#emotion", str(first))
    assert names(window) == [row["name"] for row in rows if np.argmax(row["emotions"]) == first]
    window.click("#reset")
    for words, fits in (
        ("2024-05-02", lambda row: (row["time"] or "").startswith("2024-05-02")),
        ("PHOTOS/B 3.JPG", lambda row: row["path"].endswith("/b/3.jpg")),
        ("</script>", lambda row: "</script>" in row["path"]),
    ):
        window.fill("#find", words)
        assert names(window) == [row["name"] for row in rows if fits(row)] != []
    window.fill("#find", "no such word")
    assert names(window) == [] and window.locator("#nothing").is_visible()
    window.click("#reset")
    assert names(window) == [row["name"] for row in rows]


def test_a_range_of_scores_is_dragged_on_the_histogram_or_moved_by_keys(window, rows):
    def limits():
        return [float(window.locator(".handle").nth(i).get_attribute("aria-valuenow")) for i in range(2)]

    box = window.locator("#histogram").bounding_box()
    left, middle = box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2
    window.mouse.move(left, middle)
    window.mouse.down()
    window.mouse.move(left + 0.5 * box["width"], middle, steps=5)
    window.mouse.up()
    span = rows[0]["score"] - rows[-1]["score"]
    low, high = limits()
    assert [low, high] == pytest.approx([rows[-1]["score"] + share * span for share in (0.2, 0.7)], abs=0.02)
    inside = [row["name"] for row in rows if low - 0.005 <= row["score"] <= high + 0.005]
    assert names(window) == inside and 0 < len(inside) < len(rows)
    window.locator(".handle").nth(1).focus()
    press(window, "End")
    assert limits() == pytest.approx([low, rows[0]["score"]], abs=0.005)
    window.locator(".handle").nth(0).focus()
    press(window, "Home", "ArrowRight")
    assert limits()[0] == pytest.approx(rows[-1]["score"] + span / 48, abs=0.01)
    assert window.inner_text("#status").startswith(f"{len(names(window))} of 7 photographs shown")


# ---- pictures, maps and the panel


def boxes(window, kind):
    sides = (
        "(image) => { const b = image.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; }"
    )
    return np.array(window.evaluate(f"[...document.querySelectorAll('.card {kind}')].map({sides})"))


def test_the_map_lies_over_the_part_of_its_picture_that_the_network_saw(open_page, folder, tmp_path):
    for crop in ("null", "1.0"):
        shutil.copytree(folder / "page", tmp_path / crop)
        index = tmp_path / crop / "index.html"
        text = index.read_text(encoding="utf-8").replace('"crop": null', f'"crop": {crop}')
        index.write_text(text, encoding="utf-8")
        window = open_page(folder / "page" if crop == "null" else tmp_path / crop)
        assert not boxes(window, ".map")[:, 2:].any()
        assert not window.evaluate(f"{CARDS}.some((card) => card.querySelector('.map').naturalWidth)")
        press(window, "m")  # loads them, too
        pictures, maps = boxes(window, ".thumbnail"), boxes(window, ".map")
        loaded = "[...document.images].every((image) => image.naturalWidth > 0)"
        window.wait_for_function(loaded)
        aspects = pictures[:, 2] / pictures[:, 3]
        assert np.abs(np.minimum(abs(aspects - 1.5), abs(aspects - 0.75))).max() < 0.02
        if crop == "null":
            np.testing.assert_allclose(pictures, maps, atol=0.1)  # pixels
        else:
            side = pictures[:, 2:].min(axis=1)
            np.testing.assert_allclose(maps[:, 2:], np.stack([side, side], axis=1), atol=0.6)
            centres = [part[:, :2] + part[:, 2:] / 2 for part in (pictures, maps)]
            np.testing.assert_allclose(*centres, atol=0.6)
        press(window, "m")
        assert not boxes(window, ".map")[:, 2:].any()
        window.complaints[:] = [text for text in window.complaints if "ERR_FILE_NOT_FOUND" not in text]


def test_the_panel_has_all_numbers_and_the_original(window, rows):
    press(window, "ArrowRight", "Enter")
    panel, row = window.locator("#panel"), rows[1]
    assert panel.get_attribute("aria-label") == row["name"] == panel.locator("h2").inner_text()
    text = panel.inner_text()
    for words in (row["path"], f"{row['score']:.2f} of 1 to 4", f"vary by {row['std']:.2f}", "number 2 of 7"):
        assert words in text
    shares = panel.locator(".bars").nth(1).locator("div").all_inner_texts()
    assert [share.split("\n")[0] for share in shares] == ["1", "2", "3", "4"]
    percents = [float(share.split("\n")[1].rstrip(" %")) for share in shares]
    assert percents == pytest.approx([100 * share for share in row["shares"]], abs=0.51)
    emotions = [
        line.split("\n")[0] for line in panel.locator(".bars").nth(0).locator("div").all_inner_texts()
    ]
    assert emotions == [EMOTIONS[i] for i in np.argsort(-np.array(row["emotions"]), kind="stable")]
    window.wait_for_function("document.querySelector('.original').naturalWidth === 600")
    assert panel.locator(".original").is_visible()
    press(window, "ArrowRight")
    assert panel.locator("h2").inner_text() == rows[2]["name"] == current(window)
    press(window, "Space")
    assert panel.locator(".pane button").get_attribute("aria-pressed") == "true"
    press(window, "Escape")
    assert not panel.is_visible()
    window.wait_for_function("document.activeElement.id === 'grid'")


def test_two_are_compared_side_by_side(window, rows):
    def shown():
        return window.locator("#panel h2").all_inner_texts()

    press(window, "c")
    assert shown() == [rows[0]["name"], rows[1]["name"]]
    press(window, "Escape", "Home", "ArrowRight", "Space", "End", "Space", "c")  # the two that are selected
    assert shown() == [rows[1]["name"], rows[6]["name"]]
    press(window, "ArrowLeft", "ArrowLeft")
    assert shown() == [rows[1]["name"], rows[4]["name"]]
    press(window, "w")
    assert shown() == [rows[4]["name"], rows[1]["name"]]
    press(window, "ArrowLeft")
    assert shown() == [rows[4]["name"], rows[0]["name"]]
    left, right = (window.locator(".pane .picture").nth(i).bounding_box() for i in range(2))
    assert left["x"] + left["width"] < right["x"]


# ---- selecting and saving


def test_what_is_saved_are_lines_of_the_table_and_a_list_of_files(window, folder, rows):
    name, saved = download(window, "s")
    table = read_csv(folder / "scores.csv")
    by_score = sorted((row for row in table if row["score"]), key=lambda row: -float(row["score"]))
    assert name == "scores.csv"
    assert as_rows(saved) == by_score
    name, saved = download(window, "l")
    paths = [os.fsencode(folder / "photos" / each) for each in NAMES]
    usable = [path for path in paths if b"\n" not in path]
    assert name == "scores.txt" and sorted(saved.splitlines()) == sorted(usable)
    assert len(usable) == 5
    assert "2 with a line break in the name left out" in window.inner_text("#status")
    press(window, "ArrowRight", "Space")
    assert "1 selected" in window.inner_text("#status")
    window.locator(".card").nth(4).click(modifiers=["Shift"])  # all from there
    assert "4 selected" in window.inner_text("#status")
    press(window, "ArrowLeft", "Space")
    assert [
        row["path"] for row in csv.DictReader(io.StringIO(download(window, "s")[1].decode(), newline=""))
    ] == [row["path"] for row in by_score if row in [by_score[1], by_score[2], by_score[4]]]
    selected = window.locator(".card[aria-selected=true] .name").all_inner_texts()
    assert selected == [rows[i]["name"] for i in (1, 2, 4)]
    window.click("#clear")
    press(window, "Control+a")
    assert "7 selected" in window.inner_text("#status")


def test_the_picks_of_a_series_are_changed_and_saved(open_page, folder):
    window = open_page(folder / "picks")
    written = (folder / "picks.csv").read_bytes()
    assert download(window, "s") == ("picks.csv", written)
    picked = f"{CARDS}.map((card) => card.getAttribute('aria-selected') === 'true')"
    before = window.evaluate(picked)
    assert window.locator(".heading").first.inner_text().startswith("Series 1")
    press(window, "ArrowRight", "Enter")
    window.locator(".card").nth(0).click()
    after = window.evaluate(picked)
    assert after == [not before[0], not before[1], *before[2:]]
    assert "2 changed" in window.inner_text("#status")
    rows = [
        list(csv.DictReader(io.StringIO(text.decode(), newline="")))
        for text in (written, download(window, "s")[1])
    ]
    changed = [i for i, (one, other) in enumerate(zip(*rows, strict=True)) if one != other]
    assert len(changed) == 2
    for i in changed:
        assert int(rows[1][i]["picked"]) == 1 - int(rows[0][i]["picked"])
        assert rows[1][i]["note"].endswith("changed by hand")
    press(window, "Space", "i")
    assert "1 changed" in window.inner_text("#status")
    assert window.locator("#panel h2").inner_text() == current(window)


def test_cards_that_are_used_again_show_their_own_photographs(window):
    def thumbnails():
        window.wait_for_timeout(500)  # they are drawn
        drawn = [card.locator(".thumbnail").screenshot() for card in window.locator(".card").all()]
        pixels = [
            np.asarray(Image.open(io.BytesIO(each)).convert("RGB").resize((8, 8)), int) for each in drawn
        ]
        return dict(zip(names(window), (each[4:] for each in pixels), strict=True))  # below the tick's corner

    before = thumbnails()
    different = [abs(one - other).mean() for one, other in itertools.combinations(before.values(), 2)]
    assert len(before) == len(NAMES) and min(different) > 5
    window.fill("#find", "nothing like this")
    assert names(window) == []
    window.fill("#find", "")
    after = thumbnails()
    assert after.keys() == before.keys()
    for name, pixels in after.items():
        assert abs(pixels - before[name]).mean() < 1


# ---- names, keys, screen readers, small and dark screens


def test_names_stay_text(window):
    name = printable(Path(NASTY).name)
    window.fill("#find", "onload")
    assert names(window) == [name]
    press(window, "Tab")
    window.locator(".card").first.click()
    assert window.locator("#panel h2").inner_text() == name
    assert window.locator("#panel .thumbnail").get_attribute("alt") == name
    assert window.evaluate("document.querySelectorAll('b').length") == 0
    press(window, "Escape")
    window.locator("#failed summary").click()
    assert "broken.jpg: a web page (HTML), not a picture" in window.inner_text("#failed")


def test_keys_reach_everything_and_the_focus_is_seen(window, rows):
    stops = []
    for _ in range(20):
        press(window, "Tab")
        focused = "document.activeElement"
        stops.append(
            window.evaluate(f"{focused}.id || {focused}.getAttribute('aria-label') || {focused}.tagName")
        )
        outline = window.evaluate(f"getComputedStyle({focused}).outlineStyle")
        assert outline == "solid" or stops[-1] in ("grid", "BODY")
    expected = {
        "order",
        "reverse",
        "find",
        "emotion",
        "Lowest score",
        "Highest score",
        "grid",
        "save",
        "Keys",
    }
    assert expected <= set(stops)
    assert stops.count("grid") <= 2  # one stop for all photographs
    press(window, "/")
    window.keyboard.type("smo c")  # letters, not commands
    assert (
        window.evaluate("document.activeElement.id") == "find" and not window.locator("#panel").is_visible()
    )
    window.click("#reset")
    window.locator("#grid").focus()
    for key, place in (
        ("End", 6),
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowLeft", 0),
        ("ArrowLeft", 0),
        ("PageDown", 6),
    ):
        press(window, key)
        assert current(window) == rows[place]["name"] or key == "PageDown"
    border = "getComputedStyle(document.querySelector('.card.current')).borderTopColor"
    others = "getComputedStyle(document.querySelector('.card:not(.current)')).borderTopColor"
    assert window.evaluate(border) != window.evaluate(others)
    press(window, "?")
    assert window.locator("#help").is_visible()


@pytest.mark.parametrize("options", [LIGHT, DARK, PHONE], ids=["light", "dark", "phone"])
@pytest.mark.parametrize("page", ["page", "picks"])
def test_axe_finds_nothing_that_bars_people(open_page, folder, page, options):
    window = open_page(folder / page, **options)
    for keys in ((), ("m",), ("i",), ("Escape", "c"), ("Escape", "?")):
        press(window, *keys)
        window.wait_for_timeout(100)
        report = Axe().run(window)
        assert report.violations_count == 0, report.generate_report()


def test_screen_readers_are_told_each_photograph_and_its_place(window, rows):
    cards = window.locator("[role=listbox][aria-multiselectable=true] > [role=option]")
    assert cards.count() == 7
    for place, row in enumerate(rows):
        card = cards.nth(place)
        assert (card.get_attribute("aria-posinset"), card.get_attribute("aria-setsize")) == (
            str(place + 1),
            "7",
        )
        label = card.get_attribute("aria-label")
        assert label.startswith(f"{row['name']}, score {row['score']:.2f}, ")
    assert window.locator("#status[role=status]").inner_text() == "7 photographs"


def test_dark_is_dark_and_a_phone_shows_two_in_a_row(open_page, folder):
    colours = [
        open_page(folder / "page", **options).evaluate("getComputedStyle(document.body).backgroundColor")
        for options in (LIGHT, DARK)
    ]
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours)
    assert light > 200 > 60 > dark
    phone = open_page(folder / "page", **PHONE)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    lefts = {round(left) for left in boxes(phone, ".frame")[:, 0]}
    assert len(lefts) == 2
    phone.locator(".card").first.tap()
    assert phone.locator("#panel").is_visible()
    assert phone.evaluate("document.querySelector('.panes').scrollWidth") <= 390


# ---- moved, and large


@pytest.mark.parametrize("alone", [True, False])
def test_a_page_that_was_moved_finds_the_originals(open_page, folder, tmp_path, alone):
    moved = tmp_path / "elsewhere"
    if alone:
        shutil.copytree(folder / "page", moved / "page")
    else:
        shutil.copytree(folder, moved)
    window = open_page(moved / "page")
    window.wait_for_timeout(500)
    press(window, "Enter")
    window.wait_for_function("document.querySelector('.original').naturalWidth === 600")
    source = window.get_attribute("#panel a", "href")
    assert source.startswith((folder if alone else moved).as_uri())
    missing = [text for text in window.complaints if "ERR_FILE_NOT_FOUND" in text]
    assert len(missing) == alone  # where it looked first
    window.complaints[:] = [text for text in window.complaints if text not in missing]


def test_of_10_000_photographs_only_those_in_view_are_in_the_document(
    open_page, browser, lively_weights, tmp_path
):
    write_large_page(tmp_path, 10_000, Scorer(lively_weights, device="cpu"))
    window = open_page(tmp_path, viewport={"width": 1366, "height": 850})
    count = "document.querySelectorAll('.card').length"
    height = window.evaluate("document.documentElement.scrollHeight")
    assert height > 200_000
    for share in np.linspace(0, 1, 60):
        window.evaluate(f"scrollTo(0, {share * height})")
        window.wait_for_timeout(30)
        assert 12 <= window.evaluate(count) <= 100
    assert page_memory(browser) < 0.5  # GB
    press(window, "Home", "End")
    last = window.locator(".card.current")
    assert last.get_attribute("aria-posinset") == last.get_attribute("aria-setsize") == "10000"
    box = last.bounding_box()
    assert 0 < box["y"] < 850
    # Some browsers tell the place of a grid that became shorter only in their next frame.
    stale = f"({{ top: {-box['y'] - height} }})"
    window.evaluate(f"document.getElementById('grid').getBoundingClientRect = () => {stale}")
    window.fill("#find", "0001")
    assert window.inner_text("#status") == "11 of 10,000 photographs shown"
    assert window.evaluate(count) == 11
