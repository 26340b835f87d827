"""Files are written whole or not at all; texts in csv files are never a formula, never cut, and come back."""

import csv
import errno
import gzip
import os
import stat
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small import ROOT, nfd, read_csv

from eamb.evaluation.external import match_ids
from eamb.evaluation.report import write_columns
from eamb.files import (
    FORMULA,
    csv_line,
    encodable,
    home,
    list_folder,
    nfc,
    on_disk,
    original,
    printable,
    safe,
    safe_path,
    told_apart,
    write_csv,
    written_whole,
)
from eamb.network.outputs import Scale
from eamb.readers.rated import LeftOut, RatedSet, write_left_out

sys.path.insert(0, str(ROOT / "scripts"))

import make_tables

texts = st.text(alphabet=st.sampled_from("'=+-@\t\r\n＝;,\"a."), max_size=6)


def test_a_file_that_is_not_finished_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("new")
        raise ZeroDivisionError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_file_written_whole_replaces_the_old_one_only_at_the_end_and_may_keep_it(tmp_path):
    path, before = tmp_path / "new" / "folder" / "file.txt", tmp_path / "new" / "folder" / "before.txt"
    with written_whole(path) as temporary:
        temporary.write_text("first")
    with path.open() as reader:
        with written_whole(path, previous=before) as temporary:
            temporary.write_text("second")
            assert path.read_text() == "first"
        assert reader.read() == "first"  # renamed over, not written into: whoever was reading reads on
    assert (path.read_text(), before.read_text(), len(list(path.parent.iterdir()))) == ("second", "first", 2)


def test_file_and_folder_are_on_the_disk_before_it_is_said_if_the_folder_can_be(tmp_path, monkeypatch):
    path, synced = tmp_path / "file.txt", []

    def fsync(number):
        synced.append((stat.S_ISDIR(os.fstat(number).st_mode), path.exists()))
        if synced[-1][0]:
            raise OSError(errno.EINVAL, "some file systems cannot")

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(path) as temporary:
        temporary.write_text("text")
    assert synced == [(False, False), (True, True)]  # the file before it has its name, then its folder


# ---- cells


@given(texts)
@example("'=1")
@example("''")
def test_a_safe_text_or_path_is_no_formula_and_comes_back(text):
    assert not safe(text).startswith(FORMULA)
    assert original(safe(text)) == text
    assert safe(safe_path(text)) == safe_path(text)
    assert safe_path(text) in (text, f"./{text}")


@pytest.mark.parametrize("text", ["", "a.jpg", "'a.jpg", "it's=1", "954619", "/x/-y.jpg"])
def test_ordinary_texts_stay_as_they_are(text):
    assert safe(text) == original(text) == safe_path(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\udcff.jpg", "\\xff.jpg"),
        ("a\udced\udca0\udc80", "a\\xed\\xa0\\x80"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("ä\\xff😀\n", "ä\\xff😀\n"),
    ],
)
def test_what_utf8_cannot_hold_is_written_out(text, expected):
    assert encodable(text) == safe(text) == encodable(expected) == expected
    assert printable(text) == expected.replace("\n", "\\n")


@given(st.lists(st.one_of(texts, st.floats(0, 5), st.none()), min_size=2, max_size=4))
def test_every_row_is_read_again(cells):
    [row] = csv.reader([csv_line(cells)], strict=True)
    assert [original(cell) for cell in row] == ["" if cell is None else str(cell) for cell in cells]


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_no_reader_cuts_a_text_whatever_it_takes_for_the_separator(separator):
    line = csv_line(["a;b\tc,d.jpg", 3.5, None, "awe"])
    assert line == '"a;b\tc,d.jpg",3.5,"","awe"\r\n'
    [row] = csv.reader([line], delimiter=separator)
    assert row[0].startswith("a;b\tc,d.jpg")


def test_numbers_stay_numbers_and_plain_rows_plain(tmp_path):
    write_csv(tmp_path / "a.csv", [["path", "x", "y"], ["a.jpg", np.float64(-3.5), None]])
    assert (tmp_path / "a.csv").read_bytes() == b"path,x,y\r\na.jpg,-3.5,\r\n"


# ---- what the program writes and reads


def test_ids_in_predictions_are_safe_and_read_again_by_evaluate_and_by_the_tables(tmp_path):
    ids = ["=1+1.jpg", "'=1+1.jpg", "-x/+y;z.jpg", "@a, b.jpg", "ä.jpg", '"q".jpg', "plain.jpg"]
    rated = RatedSet("csv", "test", "", ids, ids, np.linspace(1, 5, 7), Scale("score", 1.0, 5.0, 3.0))
    numbers, path = np.arange(7) / 7, tmp_path / "predictions.csv"
    write_columns(path, {"id": np.array(ids), "prediction": numbers})
    assert not [row["id"] for row in read_csv(path) if row["id"].startswith(FORMULA)]
    table, misfits = match_ids(path, rated)
    assert (table["id"].tolist(), table["prediction"].tolist()) == (ids, numbers.tolist())
    assert misfits == {"missing": [], "extra": [], "duplicate": []}
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert make_tables.read_predictions(tmp_path, rated)["prediction"].tolist() == numbers.tolist()

    left_out = [LeftOut(i, "=no; picture") for i in [*ids, "\udcff.jpg"]]
    write_left_out(tmp_path / "left_out.csv", replace(rated, left_out=left_out))
    rows = read_csv(tmp_path / "left_out.csv")
    assert not [row for row in rows if row["id"].startswith(FORMULA)]
    assert [original(row["id"]) for row in rows] == [*ids, "\\xff.jpg"]
    assert {row["reason"] for row in rows} == {"'=no; picture"}


# ---- names: homes and accents


def test_a_tilde_is_a_home_unless_a_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    expected = {"~": "/home/me", "~/a.csv": "/home/me/a.csv", "a/~/b": "a/~/b", "~x.jpg": "~x.jpg", "": ""}
    assert {path: home(path) for path in expected} == expected
    with pytest.raises(ValueError, match=r"^files: ~nobody-here/a.csv: this home folder is not known; write"):
        home("~nobody-here/a.csv")
    (tmp_path / "~nobody-here").mkdir()
    (tmp_path / "~nobody-here" / "a.csv").touch()
    assert home("~nobody-here/a.csv") == "~nobody-here/a.csv"


def test_a_path_is_found_in_the_spelling_of_the_disk_if_one_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / nfd("Bücher")).mkdir()
    (tmp_path / nfd("Bücher/é.jpg")).touch()
    (tmp_path / nfd("ü.jpg")).touch()
    for path in ("Bücher/é.jpg", nfd("Bücher") + "/é.jpg", "ü.jpg", f"{tmp_path}/Bücher"):
        assert not os.path.lexists(path)
        assert os.path.lexists(on_disk(path, list_folder))
    for path in ("Bücher/a.jpg", "é.jpg", "none/é.jpg", "ü\0.jpg"):
        assert nfc(on_disk(path, list_folder)) == path
    two = [nfd("ế.jpg"), "ê\N{COMBINING ACUTE ACCENT}.jpg"]
    for name in two:
        (tmp_path / name).touch()
    assert [on_disk(name, list_folder) for name in (*two, "ế.jpg")] == [*two, "ế.jpg"]


def test_two_spellings_never_look_equal_in_a_message():
    assert told_apart(["ü.jpg", "ü.png"]) == ["'ü.jpg'", "'ü.png'"]
    assert told_apart(["ü.jpg", nfd("ü.jpg")]) == [r"'\xfc.jpg'", r"'u\u0308.jpg'"]
