"""Series by time and likeness as plain functions; rows, notes and the page; no file of the user's changes."""

import codecs
import csv
import io
import itertools
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
from lively import SIZE, STARS, blotches, build_lively, write_weights
from PIL import Image
from test_page import Page

from eamb.files import encodable
from eamb.inference.scorer import Scored
from eamb.readers import demo
from eamb.readers.decoding import View, decode
from eamb.readers.exif import CHANGED, DETAILS, Taken, describe_time, parse_time, read_taken
from eamb.selection import picks
from eamb.selection.grouping import Photograph, choose, group, similarity, sketch
from eamb.selection.page import write_page
from eamb.selection.picks import as_table
from main import main

GAP, SIMILARITY = 30.0, 0.6  # the defaults of main.py
NOON = datetime(2024, 5, 3, 12)
MAKE, MODEL, SERIAL, EXPOSED, FRACTION = 0x010F, 0x0110, 0xA431, 0x9003, 0x9291
LATER = "2024:05:03 13:00:00"  # when the file was changed
SKETCHES = [sketch(blotches(seed)) for seed in range(6)]


def shot(name, seconds=None, scene=0, camera="Canon EOS R5"):
    time = None if seconds is None else NOON + timedelta(seconds=seconds)
    return Photograph(name, Taken(time, camera), SKETCHES[scene])


def series(shots, gap=GAP, least=SIMILARITY):
    """The names by series, each sorted."""
    group(shots, gap, least)
    found = {}
    for one in shots:
        found.setdefault(one.series, []).append(one.path)
    return [sorted(found[number]) for number in sorted(found)]


# ---- how alike two pictures are


def test_the_similarity_of_pictures():
    for one, other in itertools.combinations(SKETCHES, 2):
        assert 0 <= similarity(one, other) < 1
        assert similarity(one, other) == pytest.approx(similarity(other, one), abs=1e-12)
    assert [similarity(one, one) for one in SKETCHES] == pytest.approx([1] * 6)
    # Exposure and a small shift cost little, a large shift much.
    assert similarity(SKETCHES[0], (SKETCHES[0] * 0.5 + 20).astype(np.uint8)) > 0.99
    wide = blotches(0, 320, 320)
    here, near, far = (sketch(wide.crop((left, 0, left + 160, 160))) for left in (0, 20, 140))
    assert similarity(here, near) > 0.85 > 0.6 > similarity(here, far)
    black, white = (np.full((16, 16, 3), level, np.uint8) for level in (0, 255))
    assert [similarity(black, other) for other in (black, white, SKETCHES[0])] == [1, 0, 0]


# ---- when and with what


@pytest.mark.parametrize(
    ("text", "fraction", "expected"),
    [
        ("2024:05:03 12:00:00", None, NOON),
        ("2024:05:03 12:00:00\0", "45 ", NOON.replace(microsecond=450_000)),
        (b"2024:05:03 12:00:00", "0012345678", NOON.replace(microsecond=1234)),
        ("2024-05-03T12:00", "x", NOON),
        ("0000:00:00 00:00:00", None, None),
        ("2024:02:31 12:00:00", b"\xff", None),
        ("", None, None),
        ((2024, 5), None, None),
    ],
)
def test_times_are_read_and_garbage_is_none(text, fraction, expected):
    assert parse_time(text, fraction) == expected


def exif_of(tags, details):
    exif = Image.Exif()
    exif.update(tags)
    exif.get_ifd(DETAILS).update(details)
    return exif


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif", "sixteen bits.png"])
def test_the_exif_of_a_file_is_read_as_it_is_decoded(name, tmp_path):
    exif = exif_of({MAKE: "Canon", CHANGED: LATER}, {EXPOSED: "2024:05:03 12:00:00", FRACTION: "5"})
    picture = Image.new("I;16" if name == "sixteen bits.png" else "RGB", (90, 60))
    picture.save(tmp_path / name, exif=exif.tobytes())
    decoded = []
    decode(tmp_path / name, 32, True, True, lambda *both: decoded.append(both))
    [(picture, exif)] = decoded
    assert (picture.mode, picture.size) == ("RGB", (90, 60))
    assert read_taken(exif) == Taken(NOON.replace(microsecond=500_000), "Canon")


@pytest.mark.parametrize(
    ("tags", "details", "time", "camera"),
    [
        ({CHANGED: LATER}, {EXPOSED: "0000:00:00 00:00:00"}, "2024-05-03 13:00:00", ""),
        ({CHANGED: LATER}, {}, "2024-05-03 13:00:00", ""),
        ({}, None, None, ""),  # damaged
        ({MAKE: "Canon", MODEL: "Canon EOS R5"}, {SERIAL: "012345"}, None, "Canon EOS R5, no. 012345"),
        ({MAKE: "NIKON CORPORATION", MODEL: "NIKON D500\0\0"}, {}, None, "NIKON D500"),
        ({MAKE: "Apple ", MODEL: "iPhone SE"}, {}, None, "Apple iPhone SE"),
        ({}, {SERIAL: "7"}, None, ""),
        ({MAKE: 5, MODEL: b"X-T1"}, {}, None, "X-T1"),
        ({MODEL: "<x>\n" * 10_000}, {}, None, r"<x>\n" * 16),
    ],
)
def test_the_last_change_is_second_best_and_a_camera_is_make_model_number(tags, details, time, camera):
    exif = SimpleNamespace(get=tags.get, get_ifd=(lambda tag: details) if details is not None else None)
    taken = read_taken(exif)
    assert (describe_time(taken.time), taken.camera) == (time, camera)


def test_the_time_of_digitization_counts_before_that_of_the_last_change():
    details = {0x9003: None, 0x9004: "2024:05:03 12:00:00", 0x9292: "25"}
    exif = SimpleNamespace(get={CHANGED: "2024:05:03 13:00:00"}.get, get_ifd=lambda tag: details)
    assert describe_time(read_taken(exif).time) == "2024-05-03 12:00:00.250"
    details[0x9003] = "2024:05:03 11:00:00"
    assert describe_time(read_taken(exif).time) == "2024-05-03 11:00:00"


# ---- grouping


@pytest.mark.parametrize(
    ("shots", "expected"),
    [
        ([("1", 0), ("2", 30), ("3", 60.5), ("4", 61)], [["1", "2"], ["3", "4"]]),  # a pause
        ([("1", 0), ("2", 1), ("3", 2, 1), ("4", 3, 1)], [["1", "2"], ["3", "4"]]),  # another view
        ([("1", 0), ("2", 1, 0, "NIKON"), ("3", 2), ("sub/4", 3)], [["1", "3"], ["2"], ["sub/4"]]),
        # Without time neighbours by name count.
        ([("1",), ("2",), ("3", None, 1), ("10", None, 1), ("11",)], [["1", "2"], ["10", "3"], ["11"]]),
        ([("1", 0), ("1_edited",), ("2", 500, 1)], [["1", "1_edited"], ["2"]]),
        ([("1", 0), ("1_edited", None, 1), ("2", 500, 1)], [["1"], ["1_edited", "2"]]),
    ],
)
def test_what_belongs_to_one_series(shots, expected):
    assert series([shot(*values) for values in shots]) == expected


def test_time_decides_and_not_names_but_within_a_second_names_as_people_sort_them():
    shots = [shot("a10.jpg", 5), shot("a9.jpg", 5), shot("z.jpg", 0), shot("a1.jpg", 40, scene=1)]
    alike = similarity(SKETCHES[0], SKETCHES[1])
    counts = [len(series(shots, *limits)) for limits in ((30, 0), (35, 0), (35, alike), (35, alike + 0.01))]
    assert counts == [2, 1, 1, 2]
    assert [one.gap for one in shots] == [0, 5, None, 35]
    assert [one.similarity for one in shots] == pytest.approx([1, 1, None, alike])


# ---- a whole run


NASTY = 'x <script>alert("1")<!-- &\'\n😀 \udcff.jpg'
CANON, NIKON = ("Canon", "Canon EOS R5"), ("NIKON CORPORATION", "NIKON D500")


def save(path, seed, seconds=None, camera=CANON):
    path.parent.mkdir(parents=True, exist_ok=True)
    details = {} if seconds is None else {EXPOSED: f"{NOON + timedelta(seconds=seconds):%Y:%m:%d %H:%M:%S}"}
    exif = exif_of(dict(zip((MAKE, MODEL), camera, strict=True)), details)
    demo.expose(blotches(seed, 480, 400), 0.1 * len(path.name)).save(path, exif=exif)


class OrderScorer:
    """Any scorer will do that has these; for this one later pictures are better."""

    scale, emotions = STARS, ()
    network = SimpleNamespace(views=[View(SIZE)], weights=SimpleNamespace(task="aesthetics"))

    def __init__(self, emotions_trained):
        self.emotions_trained = emotions_trained

    def score_all(self, paths, on_decoded):
        for number, path in enumerate(paths):
            with Image.open(path) as picture:
                on_decoded(path, picture.convert("RGB"), picture.getexif())
            yield Scored(path, score=1 + number / 7, emotion_map=np.eye(4)[:3])


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "album"
    for number, (seed, seconds) in enumerate([(0, 0), (0, 1), (0, 2), (1, 3), (1, 60)]):
        save(folder / f"{'IMG_00' + 'x' * number}{number}.jpg", seed, seconds)
    save(folder / NASTY, 3, 500)
    save(folder / "mixed/a.jpg", 4, 0)
    save(folder / "mixed/b.jpg", 4, 1, NIKON)
    save(folder / "mixed/c.jpg", 4, 2)
    save(folder / "scans/=1+1.jpg", 5)
    save(folder / "scans/=1+2.jpg", 5)
    (folder / "broken.jpg").write_text("<html>")
    (folder / "empty.jpg").touch()
    return folder


def select(*words):
    return main(["select", *map(str, words), "--device", "cpu", "--workers", "0", "--batch-size", "4"])


@pytest.fixture(scope="module")
def selected(album, lively_weights, tmp_path_factory):
    """The exit code, the folder of picks.csv and page, and the album's files before."""
    folder, before = tmp_path_factory.mktemp("out"), small.contents(album)
    words = ("--checkpoint", lively_weights, "--output", folder / "picks.csv", "--page", folder / "page")
    return select(album, *words), folder, before


@pytest.fixture(scope="module")
def rows(selected):
    return {Path(row["path"]).name: row for row in small.read_csv(selected[1] / "picks.csv")}


def test_every_file_has_a_row_and_none_is_touched(album, selected, rows):
    code, folder, before = selected
    assert (code, small.contents(album), len(rows)) == (1, before, len(before))
    assert {path.name for path in folder.iterdir()} == {"page", "picks.csv"}
    documented = "path series series_size rank picked score percentile time seconds_since_previous "
    documented += "similarity_to_previous camera emotion note error"
    assert " ".join(next(iter(rows.values()))) == documented


def test_series_of_the_album_are_ranked_by_score_and_one_of_each_is_picked(rows):
    by_series = {}
    for name, row in rows.items():
        by_series.setdefault(row["series"], {})[name] = row
    assert set(by_series.pop("")) == {"broken.jpg", "empty.jpg"}
    first = ["IMG_000.jpg", "IMG_00x1.jpg", "IMG_00xx2.jpg"]
    alone = [["IMG_00xxx3.jpg"], ["IMG_00xxxx4.jpg"], [encodable(NASTY)], ["b.jpg"]]
    expected = [first, ["a.jpg", "c.jpg"], ["=1+1.jpg", "=1+2.jpg"], *alone]
    assert sorted(map(sorted, by_series.values())) == sorted(expected)
    for members in by_series.values():
        ranked = sorted(members.values(), key=lambda row: int(row["rank"]))
        scores = [float(row["score"]) for row in ranked]
        assert scores == sorted(scores, reverse=True)
        assert [row["picked"] for row in ranked] == ["1"] + ["0"] * (len(ranked) - 1)
        assert {row["series_size"] for row in ranked} == {str(len(ranked))}


def test_keep_picks_so_many_of_each_series_and_equal_scores_go_by_name():
    shots = [shot(name, 0) for name in ("10.jpg", "9.jpg", "1.jpg")] + [shot("2.jpg", 99)]
    for photograph, score in zip(shots, (1, 1, 2, 0), strict=True):
        photograph.scored = Scored(photograph.path, score=score)
    chosen = [(one.path, one.rank, one.picked) for one in choose(shots, 2, GAP, SIMILARITY)]
    assert chosen == [("1.jpg", 1, True), ("9.jpg", 2, True), ("10.jpg", 3, False), ("2.jpg", 1, True)]


def test_what_was_done_is_noted(rows):
    mixed = "2 cameras in the folder: series are per camera"
    notes = {"IMG_000.jpg": "", "IMG_00xxxx4.jpg": "only one", "a.jpg": mixed, "b.jpg": f"only one; {mixed}"}
    notes["=1+1.jpg"] = "no time: grouped by similarity"
    assert {name: rows[name]["note"] for name in notes} == notes
    assert (rows["a.jpg"]["camera"], rows["b.jpg"]["camera"]) == ("Canon EOS R5", "NIKON D500")
    second, other = rows["IMG_00x1.jpg"], rows["IMG_00xxx3.jpg"]
    assert (second["time"], second["seconds_since_previous"]) == ("2024-05-03 12:00:01", "1.0")
    assert float(second["similarity_to_previous"]) > 0.9
    assert float(other["similarity_to_previous"]) < SIMILARITY
    assert rows["=1+1.jpg"]["seconds_since_previous"] == rows["=1+1.jpg"]["time"] == ""
    assert "web page" in rows["broken.jpg"]["error"]
    assert [value for value in rows["empty.jpg"].values() if value][1:] == ["0", "the file is empty"]


def test_scores_are_those_of_predict(rows, album, lively_weights, tmp_path):
    words = ["--checkpoint", str(lively_weights), "--output", str(tmp_path / "s.csv"), "--batch-size", "4"]
    assert main(["predict", str(album), *words, "--device", "cpu", "--workers", "0"]) == 1
    for row in small.read_csv(tmp_path / "s.csv"):
        selected = rows[Path(row["path"]).name]
        for column in ("path", "score", "percentile", "error"):
            assert selected[column] == row[column]


def test_several_networks_pick_by_their_mean(album, lively_weights, tmp_path):
    other = write_weights(tmp_path / "other.safetensors", build_lively(seed=1))
    words = ["--checkpoint", str(lively_weights), "--checkpoint", str(other), "--flip", "--force"]
    photos = (str(album / "mixed"), str(album / "scans"))
    assert select(*photos, *words, "--output", tmp_path / "picks.csv") == 0
    words += ["--output", str(tmp_path / "s.csv"), "--device", "cpu", "--workers", "0", "--batch-size", "4"]
    assert main(["predict", *photos, *words]) == 0
    scores = {row["path"]: row["score"] for row in small.read_csv(tmp_path / "s.csv")}
    assert {row["path"]: row["score"] for row in small.read_csv(tmp_path / "picks.csv")} == scores
    assert len(scores) == 5 and len(set(scores.values())) == 2  # of two subjects


def test_no_cell_is_a_formula():
    photograph = Photograph("=1+1.jpg", Taken(NOON, "=cmd|' /C calc'!A0"), scored=Scored("", score=-1.0))
    table = as_table([photograph])
    [row] = csv.DictReader([table["header"], table["rows"][0][0]])
    assert (row.pop("score"), row["path"]) == ("-1.0", "./=1+1.jpg")  # a number may begin with a minus
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--keep 0", "picks: --keep is at least 1, --gap at least 0 seconds, and --similarity from 0 ("),
        ("--gap -1", "counts) to 1; got 1, -1 and 0.6"),
        ("--gap nan", "counts) to 1; got 1, nan and 0.6"),
        ("--similarity 1.5", "counts) to 1; got 1, 30 and 1.5"),
        ("--output picks.xlsx", "picks: --output must end in .csv, got picks.xlsx"),
        ("--output there.csv", "picks: . holds there.csv already; choose another folder, or overwrite"),
        ("--page there.csv", "picks: --page needs a new folder, or with --force"),
        ("--page full", "one that holds other files; full exists"),
    ],
)
def test_bad_arguments_are_one_sentence_and_nothing_is_written(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for name in ("there.csv", "full/mine.txt"):
        (tmp_path / name).write_text("mine")
    before = small.contents(tmp_path)
    assert select("nowhere", *words.split()) == 2
    assert said in capsys.readouterr().err
    assert small.contents(tmp_path) == before


# ---- the page


def test_for_excel_the_table_and_what_the_page_saves_begin_with_a_byte_order_mark(tmp_path, monkeypatch):
    save(tmp_path / "\u00e4.jpg", 0)
    monkeypatch.setattr(picks, "Scorer", lambda *settings, **named: OrderScorer(emotions_trained=False))
    tables, pages = [tmp_path / f"{i}.csv" for i in range(2)], [tmp_path / f"page{i}" for i in range(2)]
    for table, page, words in zip(tables, pages, ([], ["--excel"]), strict=True):
        assert select(tmp_path / "\u00e4.jpg", "--output", table, "--page", page, *words) == 0
    plain, marked = (table.read_bytes() for table in tables)
    assert marked == codecs.BOM_UTF8 + plain
    assert Page(pages[1]).settings["header"] == "\ufeff" + Page(pages[0]).settings["header"]


def test_with_force_a_page_is_written_again_and_thumbnails_go_with_their_photographs(tmp_path, monkeypatch):
    for seed, name in enumerate(["a.jpg", "bb.jpg"]):
        save(tmp_path / name, seed)
    page, words = tmp_path / "page", ("--output", tmp_path / "picks.csv", "--page", tmp_path / "page")
    monkeypatch.setattr(picks, "Scorer", lambda *settings, **named: OrderScorer(emotions_trained=True))
    assert [select(tmp_path, *words), select(tmp_path, *words)] == [0, 2]
    assert {"maps/000002.png", "thumbnails/000002.jpg"} < small.contents(page).keys()
    mine = {"maps/mine.png", "thumbnails/2.jpg", "thumbnails/000009.jpg", "000002.jpg"}
    for name in mine:
        (page / name).touch()
    (tmp_path / "bb.jpg").unlink()
    monkeypatch.setattr(picks, "Scorer", lambda *settings, **named: OrderScorer(emotions_trained=False))
    assert select(tmp_path, *words, "--force") == 0
    assert small.contents(page).keys() == {"index.html", "thumbnails/000001.jpg", *mine}
    assert len(small.read_csv(tmp_path / "picks.csv")) == 1  # a thumbnail is not a photograph
    [row] = Page(page).rows
    assert row["map"] is None  # so that the page hides its button


@pytest.fixture(scope="module")
def page(selected):
    return Page(selected[1] / "page")


def test_the_page_holds_the_lines_of_the_csv_and_what_they_are_with_the_other_pick(page, selected, rows):
    header, lines = page.settings["header"], [row["line"] for row in page.rows]
    assert (header + "".join(lines)).encode() == (selected[1] / "picks.csv").read_bytes()
    others = csv.DictReader(io.StringIO(header + "".join(row["other"] for row in page.rows), newline=""))
    for row, other, shown in zip(rows.values(), others, page.rows, strict=True):
        assert int(other.pop("picked")) == 1 - int(row["picked"]) == 1 - shown["picked"]
        assert other.pop("note") == "; ".join(filter(None, [row["note"], "changed by hand"]))
        assert other.items() <= row.items()
        assert str(shown["series"] or "") == row["series"]


def test_the_page_says_where_a_photograph_stands_and_what_its_series_is(page):
    shown = {row["name"]: row for row in page.rows if row.get("picture")}
    second, words = shown["IMG_00x1.jpg"]["where"].split(" · similarity ")
    assert (second[1:], float(words) > 0.9) == (". · 12:00:01 · +1 s", True)
    series = page.settings["series"][str(shown["IMG_000.jpg"]["series"])]
    assert series == {"size": 3, "words": "2024-05-03 12:00:00 to 2024-05-03 12:00:02 · Canon EOS R5"}
    assert page.settings["picks"] is True


def test_names_stay_text(page, tmp_path):
    assert [values["tag"] for values in page.tags].count("script") == 2
    assert NASTY.replace("\n", r"\n").replace("\udcff", r"\xff") in [row.get("name") for row in page.rows]
    failed = Photograph("a</script>/<!--.jpg", Taken(), scored=Scored("a", error="<b>no</b>"))
    write_page(tmp_path, [failed], OrderScorer(emotions_trained=True), "", as_table([failed]))
    [row] = Page(tmp_path).rows
    assert row["line"].startswith("a</script>/<!--.jpg,")
    assert (row["path"], row["error"]) == ("a</script>/<!--.jpg", "<b>no</b>")


def test_thumbnails_and_links_lead_to_the_originals(page, selected, album):
    shown = [row for row in page.rows if row.get("picture")]
    assert len(shown) == len(list((selected[1] / "page").rglob("*.jpg"))) == 11
    for row in shown:
        with Image.open(selected[1] / "page" / row["picture"]) as picture:
            assert picture.size == (row["width"], row["height"]) == (256, 214)
        with Image.open(selected[1] / "page" / row["map"]) as colours:
            assert colours.size == (8, 8)
    originals = {str(path) for path in album.rglob("*.jpg") if path.stat().st_size > 6}
    assert {page.original(row) for row in shown} == originals
