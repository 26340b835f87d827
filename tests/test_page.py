"""The page of `main.py predict`: complete after any run, true to the table, and no name becomes markup."""

import base64
import hashlib
import html.parser
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from lively import SIZE, blotches, build_lively, write_weights
from PIL import Image
from small import contents, read_csv, scorers_built_once

from eamb.files import csv_line, encodable, printable
from eamb.inference import page as page_module
from eamb.inference import panels
from eamb.inference import predict as predict_module
from eamb.inference import scorer as scorer_module
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers.decoding import decode_views
from eamb.readers.exif import CHANGED
from main import main

NASTY = "x </script><b onload=alert(1)>\"'&<!-- {{ 1 }}\n😀 \udcff.jpg"
ALBUM = ["1.jpg", "a b#1 50%25?.jpg", "broken.jpg", "ä.png", "sub/wide.jpg", NASTY]
VOTES = Scale("distribution", 1.0, 4.0, 2.5, bins=(1.0, 2.0, 3.0, 4.0))


built_once = scorers_built_once(predict_module)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder, exif = tmp_path_factory.mktemp("photos"), Image.Exif()
    exif[CHANGED] = "2024:05:03 14:03:22"
    for seed, name in enumerate(ALBUM):
        (folder / name).parent.mkdir(exist_ok=True)
        size = (64, 8) if "wide" in name else (400, 300)
        blotches(seed, *size).save(folder / name, exif=exif if seed == 0 else Image.Exif())
    (folder / "broken.jpg").write_text("<html>")
    return folder


def call(paths, weights, *options):
    """`main.py predict`; returns the exit code."""
    fixed = ["--device", "cpu", "--batch-size", "2", "--workers", "0"]
    return main(["predict", *map(str, paths), "--checkpoint", str(weights), *fixed, *map(str, options)])


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and the data for the script."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.tags, self.texts = folder, [], {}
        self.text = (folder / "index.html").read_text(encoding="utf-8")
        self.feed(self.text)
        data = json.loads(self.texts["data"])
        self.rows, self.settings = data["rows"], data["settings"]

    def handle_starttag(self, tag, attributes):
        self.tags.append({"tag": tag, **dict(attributes)})

    def handle_data(self, data):
        if self.lasttag in ("script", "style"):
            self.texts.setdefault(self.tags[-1].get("id", self.lasttag), data)

    def original(self, row):
        return os.path.realpath(self.folder / unquote(row["link"], "utf-8", "surrogateescape"))


@pytest.fixture(scope="module")
def written(album, lively_weights, tmp_path_factory):
    """A run's exit code, its folder with scores.csv and page, and the page."""
    folder = tmp_path_factory.mktemp("out")
    words = ("--output", folder / "scores.csv", "--page", folder / "page", "--emotions")
    return call([album], lively_weights, *words), folder, Page(folder / "page")


def test_every_picture_is_on_the_page_with_the_numbers_of_its_row(written, album):
    code, folder, page = written
    table = read_csv(folder / "scores.csv")
    assert code == 1 and len(page.rows) == len(table) == len(ALBUM)
    for row, cells, name in zip(page.rows, table, ALBUM, strict=True):
        assert row["path"] == printable(f"{album}/{name}")
        if name == "broken.jpg":
            assert "web page" in row["error"] and "picture" not in row
            continue
        assert (row["name"], row["error"]) == (printable(Path(name).name), "")
        assert page.original(row) == os.path.realpath(album / name)
        assert [row["score"], row["percentile"]] == [float(cells[key]) for key in ("score", "percentile")]
        assert row["emotions"] == pytest.approx([float(cells[f"emotion_{e}"]) for e in EMOTIONS], abs=1e-4)
        assert row["shares"] == []
    assert [row.get("time") for row in page.rows] == ["2024-05-03 14:03:22"] + [None] * 5
    assert page.settings["emotions"] == list(EMOTIONS) and page.settings["ends"] == [1, 5]


def test_what_the_page_saves_are_the_lines_of_the_table(written):
    _, folder, page = written
    lines = page.settings["header"] + "".join(row["line"] for row in page.rows)
    assert lines.encode() == (folder / "scores.csv").read_bytes()


def test_thumbnails_and_maps_are_those_of_their_pictures(written, album, lively_scorer):
    _, folder, page = written
    for row, name in zip(page.rows, ALBUM, strict=True):
        if "picture" not in row:
            continue
        with Image.open(folder / "page" / row["picture"]) as picture, Image.open(album / name) as original:
            expected = original.convert("RGB").resize(picture.size, Image.Resampling.BILINEAR)
            assert (
                picture.size == (row["width"], row["height"]) == ((64, 8) if "wide" in name else (256, 192))
            )
            assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).mean() < 8
        with Image.open(folder / "page" / row["map"]) as colours:
            emotion_map = lively_scorer.score(album / name).emotion_map
            light = np.asarray(colours.convert("L"), float)  # grows with the value
            assert colours.size == emotion_map.shape[::-1]
            assert np.corrcoef(light.ravel(), emotion_map.ravel())[0, 1] > 0.95


def test_names_stay_text_and_nothing_but_the_pages_own_script_may_run(written):
    _, _, page = written
    assert [values["tag"] for values in page.tags].count("script") == 2
    assert not [values for values in page.tags if any(key.startswith("on") for key in values)]
    [policy] = [values["content"] for values in page.tags if "http-equiv" in values]
    hashes = {
        part: base64.b64encode(hashlib.sha256(page.texts[part].encode()).digest()).decode()
        for part in ("style", "script")
    }
    expected = f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'"
    assert policy == f"default-src 'none'; img-src 'self' file:; {expected}"
    assert not [values for values in page.tags if {"src", "href"} & values.keys()]
    assert not re.search(r"https?://", page.text)
    assert encodable(NASTY) in read_csv(written[1] / "scores.csv")[-1]["path"]


def test_each_file_is_decoded_once_with_maps_and_page(album, lively_weights, tmp_path, monkeypatch):
    decoded, drawn, kept = [], [], []
    monkeypatch.setattr(panels, "save_panel", lambda *rest: drawn.append(rest))
    monkeypatch.setattr(
        scorer_module, "decode_views", lambda path, *rest: decoded.append(path) or decode_views(path, *rest)
    )
    folder = page_module.PageFolder
    monkeypatch.setattr(page_module, "PageFolder", lambda *rest: kept.append(folder(*rest)) or kept[0])
    words = ("--maps", tmp_path / "maps", "--page", tmp_path / "page", "--output", tmp_path / "s.csv")
    assert call([album], lively_weights, *words) == 1
    assert len(decoded) == len(set(decoded)) == len(ALBUM)
    assert not kept[0].previews  # nothing stays in memory
    assert len(Page(tmp_path / "page").rows) == len(drawn) + 1


# ---- interrupted runs


def stop_after(count):
    """A `page.write_thumbnail` that is interrupted before one is written."""
    whole, calls = page_module.write_thumbnail, []

    def write(*rest):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return whole(*rest)

    return write


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_interrupted_run_leaves_a_page_and_resume_completes_it(
    count, written, album, lively_weights, tmp_path, monkeypatch
):
    words = ("--output", tmp_path / "scores.csv", "--page", tmp_path / "page", "--emotions")
    with monkeypatch.context() as patch:
        patch.setattr(page_module, "write_thumbnail", stop_after(count))
        assert call([album], lively_weights, *words) == 130
    done = len(read_csv(tmp_path / "scores.csv"))
    assert done == {0: 0, 1: 1, 4: 5}[count]  # with broken.jpg, the third
    if done:
        assert [row["path"] for row in Page(tmp_path / "page").rows] == [
            row["path"] for row in written[2].rows[:done]
        ]
    with (tmp_path / "page/scores.jsonl").open("a") as journal:
        journal.write('{"path": "half a row')  # as if the power had gone
    assert call([album], lively_weights, *words, "--resume") == 1
    assert same(tmp_path) == same(written[1])
    assert call([album], lively_weights, *words, "--resume") == 1  # nothing left to do
    assert same(tmp_path) == same(written[1])


def same(folder):
    """The files, without the folders' own place."""
    place = os.path.relpath(folder.parent, folder / "page")
    files = {name: data.replace(str(folder).encode(), b"") for name, data in contents(folder).items()}
    return files if place else None


def test_rows_without_their_page_are_refused(written, album, lively_weights, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    output.write_bytes((written[1] / "scores.csv").read_bytes())
    words = ("--output", output, "--page", tmp_path / "page", "--emotions", "--resume")
    assert call([album], lively_weights, *words) == 2
    assert (
        f"predict: {tmp_path / 'page'} lacks pictures that have a row in the table" in capsys.readouterr().err
    )
    assert not (tmp_path / "page").exists()


def test_with_force_thumbnails_go_with_their_photographs_and_the_page_is_no_folder_of_pictures(
    lively_weights, tmp_path, capsys
):
    for seed, name in enumerate(["a.jpg", "b.jpg"]):
        blotches(seed).save(tmp_path / name)
    page, words = tmp_path / "page", ("--page", tmp_path / "page", "--output", tmp_path / "s.csv")
    assert call([tmp_path], lively_weights, *words) == 0
    assert call([tmp_path], lively_weights, "--page", page) == 2
    assert f"predict: {page} exists; choose another name" in capsys.readouterr().err
    (page / "thumbnails/mine.jpg").touch()
    (tmp_path / "b.jpg").unlink()
    assert call([tmp_path], lively_weights, *words, "--force") == 0
    files = {"index.html", "scores.jsonl", "thumbnails/000001.jpg", "maps/000001.png", "thumbnails/mine.jpg"}
    assert contents(page).keys() == files
    assert len(Page(page).rows) == len(read_csv(tmp_path / "s.csv")) == 1


# ---- what networks give


def test_a_distribution_its_spread_and_how_far_networks_differ(album, tmp_path):
    files = [
        write_weights(tmp_path / f"{seed}.safetensors", build_lively(4, seed), VOTES, crop=not seed)
        for seed in (0, 1)
    ]
    words = ("--checkpoint", files[1], "--page", tmp_path / "page", "--excel", "--output", tmp_path / "s.csv")
    assert call([album / "1.jpg"], files[0], *words) == 0
    page, [cells] = Page(tmp_path / "page"), read_csv(tmp_path / "s.csv")
    [row] = page.rows
    assert page.settings["ratings"] == list(VOTES.bins)
    assert row["shares"] == pytest.approx([float(cells[f"p_{v:g}"]) for v in VOTES.bins], abs=1e-4)
    assert [row["std"], row["models"]] == [float(cells["score_std"]), float(cells["score_model_std"])]
    assert page.settings["header"] == csv_line(["\ufeffpath", *list(cells)[1:]])
    assert page.settings["crop"] == 1  # the map is of the middle


def test_a_branch_that_was_never_trained_has_neither_maps_nor_emotions(album, lively_model, tmp_path):
    origin = {"emotion_branch": "never trained"}
    file = write_weights(tmp_path / "w.safetensors", lively_model, origin=origin, image_size=SIZE)
    assert call([album / "1.jpg"], file, "--page", tmp_path / "page") == 0
    page = Page(tmp_path / "page")
    [row] = page.rows
    assert (row["map"], row["emotions"], page.settings["emotions"]) == (None, [], [])
    assert not (tmp_path / "page/maps").exists()
