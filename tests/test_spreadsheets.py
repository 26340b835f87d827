"""Texts in csv files: never a formula, never cut, and the same again when they are read."""

import csv
import gzip
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small import ROOT, read_csv

from eamb.evaluation.external import match, read_claims
from eamb.evaluation.report import write_columns
from eamb.files import FORMULA, encodable, original, row_writer, safe
from eamb.inference.rows import csv_line, csv_rows, parse_csv
from eamb.network.outputs import Scale
from eamb.readers.rated import LeftOut, RatedSet, write_left_out

sys.path.insert(0, str(ROOT / "scripts"))

import make_tables

texts = st.text(alphabet=st.sampled_from("'=+-@\t\r\n＝;,\"a."), max_size=6)


@given(texts)
@example("'=1")
@example("''")
def test_a_safe_text_is_no_formula_and_has_its_way_back(text):
    assert not safe(text).startswith(FORMULA)
    assert original(safe(text)) == text


@pytest.mark.parametrize("text", ["", "a.jpg", "'a.jpg", "it's=1", "954619", "/x/-y.jpg"])
def test_ordinary_texts_stay_as_they_are(text):
    assert safe(text) == original(text) == text


def test_safe_texts_of_different_texts_differ():
    assert [safe(text) for text in ("=", "'=", "''=")] == ["'=", "''=", "'''="]


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
    assert encodable(text) == safe(text) == expected
    assert encodable(expected) == expected


@given(st.binary(max_size=6))
def test_bytes_of_file_names_that_are_no_utf8_are_written_one_by_one(name):
    text = name.decode("utf-8", "surrogateescape")
    assert encodable(text) == name.decode("utf-8", "backslashreplace")


@given(st.lists(st.one_of(texts, st.floats(0, 5), st.none()), min_size=2, max_size=4))
def test_every_row_is_read_again(cells):
    file = io.StringIO(newline="")
    row_writer(file)(cells)
    expected = ["" if cell is None else str(cell) for cell in cells]
    assert list(csv.reader([file.getvalue()], strict=True)) == [expected]


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_no_reader_cuts_a_text_whatever_it_takes_for_the_separator(separator):
    file = io.StringIO(newline="")
    row_writer(file)(["a;b\tc,d.jpg", 3.5, None, "awe"])
    assert file.getvalue() == '"a;b\tc,d.jpg",3.5,"","awe"\r\n'
    [row] = csv.reader([file.getvalue()], delimiter=separator)
    assert row[0].startswith("a;b\tc,d.jpg")


def test_numbers_stay_numbers_and_plain_rows_plain():
    file = io.StringIO(newline="")
    row_writer(file)(["a.jpg", -3.5, None])
    assert file.getvalue() == "a.jpg,-3.5,\r\n"


# ---- what the program writes and reads

IDS = ["=1+1.jpg", "'=1+1.jpg", "-x/+y;z.jpg", "@a, b.jpg", "ä.jpg", '"q".jpg', "plain.jpg"]


def rated() -> RatedSet:
    scores = np.linspace(1, 5, len(IDS))
    return RatedSet("csv", "test", "made here", IDS, IDS, scores, Scale("score", 1.0, 5.0, 3.0))


def written(folder: Path) -> Path:
    numbers = np.arange(len(IDS)) / 7
    write_columns(folder / "predictions.csv", {"id": np.array(IDS), "prediction": numbers})
    return folder / "predictions.csv"


def first_cells(path: Path, column: str = "id") -> list[str]:
    return [row[column] for row in read_csv(path)]


def test_ids_in_predictions_are_safe_and_the_referee_reads_them_again(tmp_path):
    path = written(tmp_path)
    assert not [cell for cell in first_cells(path) if cell.startswith(FORMULA)]
    claims = read_claims(path, rated())
    assert claims.ids == IDS
    assert claims.values[:, 0].tolist() == (np.arange(len(IDS)) / 7).tolist()
    matched = match(claims, rated())
    assert (len(matched.rows), matched.missing, matched.extra) == (len(IDS), [], [])


def test_the_tables_read_them_again(tmp_path):
    (tmp_path / "predictions.csv.gz").write_bytes(gzip.compress(written(tmp_path).read_bytes()))
    assert make_tables.read_predictions(tmp_path, rated()).tolist() == (np.arange(len(IDS)) / 7).tolist()


def test_lists_of_pictures_that_are_left_out_are_safe(tmp_path):
    left_out = [LeftOut(i, "=no; picture") for i in IDS]
    write_left_out(tmp_path / "left_out.csv", replace(rated(), left_out=left_out))
    cells = first_cells(tmp_path / "left_out.csv")
    assert not [cell for cell in cells if cell.startswith(FORMULA)]
    assert [original(cell) for cell in cells] == IDS
    assert set(first_cells(tmp_path / "left_out.csv", "reason")) == {"'=no; picture"}


def test_lists_of_pictures_that_are_left_out_name_files_that_are_no_utf8(tmp_path):
    left_out = [LeftOut("a.jpg", "decoding: \udcff/a.jpg cannot be decoded: the file is empty.")]
    write_left_out(tmp_path / "left_out.csv", replace(rated(), left_out=left_out))
    assert first_cells(tmp_path / "left_out.csv", "reason")[0].startswith("decoding: \\xff/a.jpg cannot")


def test_a_semicolon_in_a_path_is_quoted_by_predict_and_taken_up_again():
    columns = ["path", "score", "error"]
    file = io.StringIO(newline="")
    csv_rows(file, columns)({"path": "a;b.jpg", "score": 3.5, "error": None})
    header, row = file.getvalue().splitlines(keepends=True)
    assert row == '"a;b.jpg",3.5,""\r\n'
    assert header.encode() == csv_line(columns)
    assert parse_csv(row.encode(), columns) == {"path": "a;b.jpg", "score": "3.5", "error": ""}
