"""Files are written whole or not at all; texts in csv files are never a formula, never cut, and come back."""

import csv
import errno
import gzip
import hashlib
import os
import stat
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small import ROOT, read_csv

from eamb.evaluation.external import match_ids
from eamb.evaluation.report import write_columns
from eamb.files import (
    FORMULA,
    csv_line,
    encodable,
    file_hash,
    original,
    printable,
    safe,
    safe_path,
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


def test_a_finished_file_takes_the_place_of_the_old_one_which_may_be_kept(tmp_path):
    for text in ("first", "second"):
        with written_whole(tmp_path / "sub/a.txt", previous=tmp_path / "sub/b.txt") as unfinished:
            unfinished.write_text(text)
    contents = {path.name: path.read_text() for path in (tmp_path / "sub").iterdir()}
    assert contents == {"a.txt": "second", "b.txt": "first"}


def test_the_hash_is_of_the_whole_file(tmp_path):
    content = b"x" * ((1 << 20) + 1)
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_file_written_whole_replaces_the_old_one_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with written_whole(path) as temporary:
        temporary.write_text("first")
    with path.open() as reader:
        with written_whole(path) as temporary:
            temporary.write_text("second")
            assert path.read_text() == "first"
        assert reader.read() == "first"  # renamed over, not written into: whoever was reading reads on
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_file_and_folder_are_on_the_disk_before_it_is_said(tmp_path, monkeypatch):
    path, synced = tmp_path / "file.txt", []

    def fsync(number):
        synced.append((stat.S_ISDIR(os.fstat(number).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(path) as temporary:
        temporary.write_text("text")
    assert synced == [(False, False), (True, True)]  # the file before it has its name, then its folder


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced_by_its_kind_is_no_failure(number, passes, tmp_path, monkeypatch):
    plain = os.fsync

    def fsync(opened):
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(number, "said by the file system")
        plain(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    refused = nullcontext() if passes else pytest.raises(OSError, match="said by")
    with refused, written_whole(tmp_path / "file.txt") as temporary:
        temporary.write_text("text")


# ---- cells


@given(texts)
@example("'=1")
@example("''")
def test_a_safe_text_is_no_formula_and_comes_back(text):
    assert not safe(text).startswith(FORMULA)
    assert original(safe(text)) == text


@pytest.mark.parametrize("text", ["", "a.jpg", "'a.jpg", "it's=1", "954619", "/x/-y.jpg"])
def test_ordinary_texts_stay_as_they_are(text):
    assert safe(text) == original(text) == safe_path(text) == text


@given(texts)
def test_a_safe_path_is_no_formula_and_the_same_file(path):
    assert safe(safe_path(path)) == safe_path(path)
    assert safe_path(path) in (path, f"./{path}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\udcff.jpg", "\\xff.jpg"),
        ("a\udced\udca0\udc80", "a\\xed\\xa0\\x80"),
        ("\ud800.jpg", "\\ud800.jpg"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("ä\\xff😀\n", "ä\\xff😀\n"),
    ],
)
def test_what_utf8_cannot_hold_is_written_out(text, expected):
    assert encodable(text) == safe(text) == encodable(expected) == expected
    assert printable(text) == expected.replace("\n", "\\n")


@given(st.binary(max_size=6))
def test_bytes_of_file_names_that_are_no_utf8_are_written_one_by_one(name):
    text = name.decode("utf-8", "surrogateescape")
    assert encodable(text) == name.decode("utf-8", "backslashreplace")


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

IDS = ["=1+1.jpg", "'=1+1.jpg", "-x/+y;z.jpg", "@a, b.jpg", "ä.jpg", '"q".jpg', "plain.jpg"]
NUMBERS = np.arange(len(IDS)) / 7


@pytest.fixture
def rated():
    scores = np.linspace(1, 5, len(IDS))
    return RatedSet("csv", "test", "made here", IDS, IDS, scores, Scale("score", 1.0, 5.0, 3.0))


@pytest.fixture
def predictions(tmp_path):
    write_columns(tmp_path / "predictions.csv", {"id": np.array(IDS), "prediction": NUMBERS})
    return tmp_path / "predictions.csv"


def cells(path, column):
    return [row[column] for row in read_csv(path)]


def test_ids_in_predictions_are_safe_and_read_again_by_evaluate(predictions, rated):
    assert not [cell for cell in cells(predictions, "id") if cell.startswith(FORMULA)]
    table, misfits = match_ids(predictions, rated)
    assert table["id"].tolist() == IDS
    assert table["prediction"].tolist() == NUMBERS.tolist()
    assert misfits == {"missing": [], "extra": [], "duplicate": []}


def test_the_tables_read_them_again(predictions, rated):
    predictions.with_suffix(".csv.gz").write_bytes(gzip.compress(predictions.read_bytes()))
    assert make_tables.read_predictions(predictions.parent, rated).tolist() == NUMBERS.tolist()


def test_lists_of_pictures_that_are_left_out_are_safe_whatever_files_are_called(tmp_path, rated):
    left_out = [LeftOut(i, "=no; picture") for i in IDS]
    left_out.append(LeftOut("\udcff.jpg", "decoding: \udcff.jpg cannot be decoded"))
    write_left_out(tmp_path / "left_out.csv", replace(rated, left_out=left_out))
    written = cells(tmp_path / "left_out.csv", "id")
    assert not [cell for cell in written if cell.startswith(FORMULA)]
    assert [original(cell) for cell in written] == [*IDS, "\\xff.jpg"]
    assert set(cells(tmp_path / "left_out.csv", "reason")) == {
        "'=no; picture",
        "decoding: \\xff.jpg cannot be decoded",
    }
