"""Damaged tables, lists, ratings and settings: one clear sentence that names file and row, or right values.

Each example writes a small file from values that are known, damages it up to three times and loads it. `Said`
reads the damaged file again, by itself, line by line: what it says must be what was loaded, for each picture;
if a line says nothing possible, loading must be an error, about a row that is not as it was.

No damage is excused but those that leave a valid file which says something else: a digit that became another,
a line that is gone, a file cut between two lines, a header that became another valid one. Nobody can see it;
then what was loaded must be what stands there, and all other pictures must be as they were.

    EXAMPLES=3000 python -m pytest tests/test_parsers.py    # of each test; a few dozen without it
"""

import codecs
import csv
import gzip
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from small import ROOT

from datasets import load_dataset
from eamb.evaluation.external import read_predictions
from eamb.network.outputs import Scale
from eamb.readers.iae import IAE_EMOTIONS
from eamb.readers.para import PARA_BINS, PARA_EMOTIONS
from eamb.readers.rated import SPLIT_WORDS, SPLITS, DataOptions, RatedSet, emotion_name
from eamb.runtime.config import KEYS, load_config

EXAMPLES = int(os.environ.get("EXAMPLES", "50"))
many = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# ---- what a damaged file says, read once more ------------------------------------------------------


def number(text: str, low: float = -1e15, high: float = 1e15) -> float:
    """Raises ValueError for all that is not a decimal number between the two."""
    text = text.strip()
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None
    if not text.isascii() or "_" in text or not value.is_finite() or not low <= value <= high:
        raise ValueError(text)
    return float(value)


def votes(texts: list[str], most: float) -> np.ndarray:
    """Shares of whole numbers of votes, of `most` at most."""
    counts = np.array([number(text, 0) for text in texts])
    if not 0 < counts.sum() <= most or (counts % 1).any():
        raise ValueError(texts)
    return counts / counts.sum()


def word(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return text.strip()


@dataclass(frozen=True)
class Format:
    """A table of one kind.

    lines: cells as they stand in the correct file, the header among them if it has one.
    read: cells by name -> (id, values); raises ValueError if they say nothing possible.
    load: folder -> {id: values}.
    optional: columns that may be missing. guessed: which column is what follows from the header alone.
    """

    file: str
    columns: tuple[str, ...]
    lines: list[list[str]]
    read: Callable[[dict[str, str]], tuple[str, tuple]]
    load: Callable[[object], dict[str, tuple]]
    separator: str = ","
    header: bool = True
    prefix: tuple[str, ...] = ("datasets: ",)
    optional: tuple[str, ...] = ()
    guessed: bool = False

    def text(self, lines: list[list[str]] | None = None) -> str:
        return "".join((self.separator or " ").join(cells) + "\n" for cells in lines or self.lines)

    @cached_property
    def correct(self) -> dict[str, list[str]]:
        """id -> cells of the correct file."""
        rows = [cells for _, _, cells in records(self.text(), self)][self.header :]
        return {self.read(dict(zip(self.columns, cells, strict=True)))[0]: cells for cells in rows}


def records(text: str, form: Format) -> list[tuple[int, int, list[str]]]:
    """(first line, last line, cells) of all lines that are not blank."""
    lines = re.split("\r\n|\r|\n", text)
    if not form.separator:
        found = [(i, i, line.split()) for i, line in enumerate(lines, 1)]
    else:
        header = next((line for line in lines if line.strip()), "")
        separator = max(",;\t", key=header.count)  # of spreadsheets in other countries
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        found, last = [], 0
        for cells in reader:
            found.append((last + 1, reader.line_num, cells))
            last = reader.line_num
    return [record for record in found if any(cell.strip() for cell in record[2])]


class Said:
    """What a damaged file says.

    values: {id: values} of the lines that can be read; None if the file as a whole is none of its kind.
    touched: rows that are not one of the correct lines, or one of several that are the same.
    bad: rows that say nothing possible.
    same_header: the header, if there is one, is as it was.
    """

    def __init__(self, content: bytes, form: Format):
        self.values, self.touched, self.bad, self.same_header = None, set(), set(), False
        try:
            text = content.decode("utf-8-sig")
            found = records(text, form)
        except (UnicodeDecodeError, csv.Error):
            return
        head, rows = (found[0][2], found[1:]) if form.header and found else (list(form.columns), found)
        names = [name.strip() for name in head]
        self.same_header = names == list(form.columns)
        named = [name for name in names if name]
        lacks = {*form.columns} - {*names, *form.optional}
        if "\0" in text or not rows or len({*named}) < len(named) or lacks:
            return
        self.values = {}
        for first, last, cells in rows:
            if cells not in form.correct.values() or last > first:
                self.touched |= {*range(first, last + 1)}
            same = {row for row, _, other in rows if other == cells}
            self.touched |= same if len(same) > 1 else set()
            try:
                key, values = form.read(dict(zip(names, cells, strict=True)))
                if key in self.values:
                    raise ValueError("twice")
                self.values[key] = values
            except ValueError:
                self.bad.add(first)


def equal(one: tuple, other: tuple) -> bool:
    return all(np.allclose(a, b, rtol=1e-12, atol=0, equal_nan=True) for a, b in zip(one, other, strict=True))


OF_WHOLE_FILES = r"must name the same|more than one of|split of \w+ is empty|none of the \d+ pictures of"


def check(form: Format, content: bytes, folder) -> None:
    """Writes the damaged file, loads it, and compares with what it says."""
    said = Said(content, form)
    (folder / form.file).write_bytes(content)
    try:
        loaded = form.load(folder)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert text.startswith(form.prefix) and "\n" not in text and len(text) < 1000, text
        assert form.file.rpartition("/")[2] in text or re.search(OF_WHOLE_FILES, text), text
        rows = {int(row) for row in re.findall(r" row (\d+)", text)}
        event("refused")
        if said.values is not None and said.same_header and not re.search(OF_WHOLE_FILES, text):
            assert rows & said.touched or not (rows or said.bad), (text, said.touched)
        return
    event("loaded")
    if form.guessed and not said.same_header:
        return
    assert said.values is not None and not said.bad, f"loaded what says nothing: {said.bad}"
    wrong = [key for key, values in loaded.items() if not equal(values, said.values[key])]
    assert not wrong, [(key, loaded[key], said.values[key]) for key in wrong]
    lost = (form.correct.keys() & said.values.keys()) - loaded.keys()
    assert not lost, f"says nothing about {lost}"


# ---- damages ---------------------------------------------------------------------------------------


CELLS = ("", " ", "-1", "0", "nan", "inf", "1e309", "1e30", "1_0", "0x10", "\u0663", "\u00bd", "3,5", "3.5.1",
         "--", "True", "None", "+3", "3e0", "-0", "1e15", '"', '"3"', '"3', '3"5', '"3"5', "3\0005", "9" * 20,
         "=1+1", "0.5", "\ufeff3", "3 ", "3\r", "3\n", "\u20283", "\x1c3", "~x", "~root", "../x")  # fmt: skip
TEXTS = st.text(
    st.sampled_from("0139 .,;-+e\"'#\t\n\r\0/~aZ\u00e9\u0663\u00bd\u2028\x1c\x85\ufeff\U0001f600"), max_size=4
)
LINES = ([""], [" "], ["garbage"], ["<html>"], ["# 3"], ["", "", ""], ["version https://git-lfs.github.com"])


@st.composite
def broken_lines(draw, form: Format) -> list[list[str]]:
    """One damage to cells, lines or columns."""
    lines = [list(cells) for cells in form.lines]
    at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    cell, second = (draw(st.integers(0, len(form.columns) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(["cell", "cells", "line", "column", "none"]))
    if kind == "cell":
        lines[at][cell] = draw(st.sampled_from(CELLS) | TEXTS | st.just(lines[other][cell]))
    elif kind == "cells":
        copy = lines[at][cell]
        lines[at][cell : cell + 1] = draw(st.sampled_from([[], [copy, copy], [lines[at][second]]]))
        if draw(st.booleans()):
            lines[at].insert(second, copy)
    elif kind == "line":
        odd = list(draw(st.sampled_from([*LINES, form.lines[0], lines[other]])))
        joined = lines[at] + lines[other]
        lines[at : at + 1] = draw(st.sampled_from([[], [odd], [odd, lines[at]], [joined]]))
        if draw(st.booleans()) and len(lines) == len(form.lines):
            lines[other] = form.lines[at]
    elif kind == "column":
        change = draw(st.sampled_from(["lost", "twice", "swapped"]))
        for line in lines:
            if change == "swapped":
                line[cell], line[second] = line[second], line[cell]
            else:
                line[cell : cell + 1] = [line[cell]] * 2 if change == "twice" else []
    return lines


BYTES = (*b"0195 ,;\t\n\r\"'.-+e:#&*!~/\\", 0, 0x0B, 0x1A, 0x80, 0xA0, 0xC3, 0xFF)


@st.composite
def broken_bytes(draw, content: bytes) -> bytes:
    """One damage to bytes, or to the file as a whole."""
    kind = draw(st.sampled_from(["delete", "insert", "replace", "flip", "cut", "block", "whole", "none"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    before, byte, after = content[:at], content[at : at + 1], content[at + 1 :]
    if kind == "delete":
        return before + after
    if kind in ("insert", "replace"):
        new = bytes([draw(st.sampled_from(BYTES) | st.integers(0, 255))])
        return before + new + (byte if kind == "insert" else b"") + after
    if kind == "flip":
        return before + bytes(b ^ 1 << draw(st.integers(0, 7)) for b in byte) + after
    if kind == "cut":
        return before
    if kind == "block":
        size = draw(st.integers(1, 40))
        zeros = before + bytes(size) + content[at + size :]
        return draw(st.sampled_from([content[: at + size] + content[at:], zeros]))
    if kind == "whole":
        return draw(st.sampled_from(WHOLES))(content)
    return content


WHOLES = [
    lambda content: codecs.BOM_UTF8 + content,
    lambda content: content.replace(b"\n", b"\r\n"),
    lambda content: content.replace(b"\n", b"\r"),
    lambda content: content.decode(errors="replace").encode("utf-16"),
    lambda content: content.decode(errors="replace").encode("utf-16-le"),
    lambda content: content.replace(b"a", b"\xe4"),  # latin-1
    lambda content: content.replace(b"e", "\u00e9".encode()),
    lambda content: content + content,
    lambda content: content.replace(b"\n", b"\n\n"),
    lambda content: content.replace(b",", b";"),
    lambda content: content.replace(b".", b","),
    lambda content: content.replace(b" ", b"\t"),
    lambda content: b"\n\n" + content,
    lambda content: b"",
    bytes.upper,
    gzip.compress,
    bytes.rstrip,
]


@st.composite
def damages(draw, form: Format) -> bytes:
    """The content of a file with up to three damages."""
    content = form.text(draw(broken_lines(form))).encode(errors="replace")
    for _ in range(draw(st.integers(0, 2))):
        content = draw(broken_bytes(content))
    return content


# ---- tables ----------------------------------------------------------------------------------------


COUNT = 14


def tables_of(name: str, **options) -> Callable:
    """Loads all splits and gives each picture's score, shares of votes and shares of emotions by class."""

    def load(root) -> dict[str, tuple]:
        found = {}
        for rated in load_dataset(name, root, SPLITS, DataOptions(**options)).values():
            assert len(rated) == len(rated.paths) == len(rated.scores)
            for sample in rated:
                parts = [np.array([sample.score])]
                parts += [part for part in (sample.distribution, sample.emotion) if part is not None]
                assert all(abs(part.sum() - 1) < 1e-9 and (part >= 0).all() for part in parts[1:])
                found[sample.id] = tuple(parts)
        return found

    return load


def touch(root, names) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


PARA_COUNTS = [f"aestheticScore_{rating:.1f}" for rating in PARA_BINS]
PARA_VOTES = [f"imgEmotion_{name}" for name in PARA_EMOTIONS]


def para(root) -> Format:
    touch(root, [f"imgs/s{i % 2}/p{i}_.jpg" for i in range(COUNT + 4)])
    columns = ("imageName", "sessionId", "semantic", "aestheticScore_mean", *PARA_COUNTS, *PARA_VOTES)

    def line(i: int) -> list[str]:
        counts = [str((5 * i + k) % 4) for k in range(9)]
        emotions = [str((3 * i + 2 * k) % 5) for k in range(8)]
        return [f"p{i}_.jpg", f"s{i % 2}", '"still life, table"', f"{1 + i / 7:.4f}", *counts, *emotions]

    lines = [list(columns), *map(line, range(COUNT + 4))]
    (root / "annotation").mkdir()
    (root / "annotation" / "PARA-GiaaTest.csv").write_text(
        "".join(",".join(row) + "\n" for row in [columns, *lines[-4:]])
    )
    tested = {f"s{i % 2}/p{i}_.jpg" for i in range(COUNT, COUNT + 4)}

    def read(cells: dict[str, str]) -> tuple[str, tuple]:
        shares = votes([cells[name] for name in PARA_COUNTS], 100)
        emotions = votes([cells[name] for name in PARA_VOTES], 100)
        score = np.array([number(cells["aestheticScore_mean"], 1, 5)])
        name = f"{word(cells['sessionId'])}/{word(cells['imageName'])}"
        if name in tested:
            raise ValueError("a test picture")
        return name, (score, shares, emotions)

    def load(root) -> dict[str, tuple]:
        return {name: values for name, values in tables_of("para")(root).items() if name not in tested}

    file, lines = "annotation/PARA-GiaaTrain.csv", lines[: 1 + COUNT]
    return Format(file, columns, lines, read, load, optional=("semantic",))


def own_csv(root) -> Format:
    names = [f"a {i}, b.png" if i % 3 else f"{i}.png" for i in range(COUNT)]
    touch(root, names)
    columns = ("path", "score", "split", "emotion", "remark")
    words = ["train", "Training", "dev", "test"]
    lines = [
        [f'"{name}"', f"{1 + 0.29 * i:.2f}", words[i % 4], ["awe", "Sad", "fear"][i % 3], f'"say ""{i}"""']
        for i, name in enumerate(names)
    ]
    known = ("awe", "fear", "sadness")

    def read(cells: dict[str, str]) -> tuple[str, tuple]:
        if word(cells["split"]).lower() not in SPLIT_WORDS:
            raise ValueError(cells["split"])
        emotion_of = emotion_name(word(cells["emotion"]))
        emotion = np.array([float(emotion_of == name) for name in known])
        split = SPLIT_WORDS[word(cells["split"]).lower()]
        score = np.array([number(cells["score"], 1, 5), SPLITS.index(split)])
        return word(cells["path"]), (score, emotion)

    def load(root) -> dict[str, tuple]:
        found = {}
        options = DataOptions(minimum=1, maximum=5)
        for split, rated in load_dataset("csv", root, SPLITS, options).items():
            assert (rated.scale.minimum, rated.scale.maximum) == (1, 5)
            assert not ((rated.scores < 1) | (rated.scores > 5)).any()
            for sample in rated:
                shares = {}
                if sample.emotion is not None:
                    shares = dict(zip(rated.emotion_classes, sample.emotion, strict=True))
                emotion = np.array([shares.get(name, 0.0) for name in known])
                found[sample.id] = np.array([sample.score, SPLITS.index(split)]), emotion
        return found

    lines = [list(columns), *lines]
    return Format("ratings.csv", columns, lines, read, load, optional=("remark",), guessed=True)


def predictions(root) -> Format:
    columns = ("id", "prediction", "p_1", "p_2", "p_3")
    scale = Scale("score", 1, 3, 2)
    rated = RatedSet("csv", "test", "", [], [], np.array([]), scale, bins=(1.0, 2.0, 3.0))
    lines = [[f"s/p{i}_.jpg", f"{1 + i / 9}", f"{i / 20}", *2 * [f"{0.5 - i / 40}"]] for i in range(COUNT)]

    def read(cells: dict[str, str]) -> tuple[str, tuple]:
        shares = np.array([number(cells[name], 0) for name in columns[2:]])
        if abs(shares.sum() - 1) > 1e-3:
            raise ValueError("no distribution")
        return word(cells["id"]), (np.array([number(cells["prediction"])]), shares)

    def load(root) -> dict[str, tuple]:
        table = read_predictions(root / "scores.csv", rated)
        if table["id"].duplicated().any():  # which `match_ids` finds
            raise ValueError(f"evaluation: scores.csv{''.join(f' row {row}' for row in table['row'])}")
        values = table.drop(columns=["row", "id"]).to_numpy()
        return {i: (row[:1], row[1:]) for i, row in zip(table["id"], values, strict=True)}

    lines = [list(columns), *lines]
    return Format(
        "scores.csv", columns, lines, read, load, prefix=("datasets: ", "evaluation: "), guessed=True
    )


def iae(root) -> Format:
    touch(root, [f"images/{i}.jpg" for i in range(COUNT + 8)])
    for split, ids in zip(
        SPLITS, (range(COUNT), range(COUNT, COUNT + 4), range(COUNT + 4, COUNT + 8)), strict=True
    ):
        (root / f"{split}_aes_list.txt").write_text("".join(f"{i} {i % 2}\n" for i in ids))
        (root / f"{split}_emo_list.txt").write_text("".join(f"{i} {3 * i % 8}\n" for i in ids))
    lines = [[f"{i}.jpg", str(i % 2)] for i in range(COUNT)]

    def read(cells: dict[str, str]) -> tuple[str, tuple]:
        name = cells["id"].removesuffix(".jpg")
        if name not in map(str, range(COUNT)) or number(cells["label"]) not in (0, 1):
            raise ValueError(cells)
        return name, (np.array([number(cells["label"])]), np.eye(8)[3 * int(name) % 8])

    def load(root) -> dict[str, tuple]:
        rated = load_dataset("iae", root)["train"]
        codes = [rated.emotion_classes.index(name) for name in IAE_EMOTIONS]
        rows = zip(rated.scores[:, None], rated.emotions[:, codes], strict=True)
        return dict(zip(rated.ids, rows, strict=True))

    return Format("train_aes_list.txt", ("id", "label"), lines, read, load, separator="", header=False)


FORMATS = {function.__name__: function for function in (para, own_csv, predictions, iae)}


@pytest.fixture(scope="module", params=FORMATS)
def table(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return FORMATS[request.param](folder), folder


@many
@given(data=st.data())
def test_a_damaged_table_is_an_error_or_right(table, data):
    form, folder = table
    check(form, data.draw(damages(form)), folder)


def test_an_undamaged_table_says_what_was_written(table):
    form, folder = table
    said = Said(form.text().encode(), form)
    assert len(said.values) == len(form.lines) - form.header and not said.bad and not said.touched
    (folder / form.file).write_text(form.text())
    loaded = form.load(folder)
    assert loaded.keys() == said.values.keys()
    assert all(equal(values, said.values[key]) for key, values in loaded.items())


# ---- scores.h5 -------------------------------------------------------------------------------------


RATINGS = np.random.default_rng(0).choice([1, 4, 7, 10], (COUNT + 8, 10))


@pytest.fixture(scope="module")
def rated_iae(tmp_path_factory):
    """IAE with its lists, and the bytes of the correct scores.h5."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("iae")
    form = iae(folder)
    (folder / form.file).write_text(form.text())
    with h5py.File(folder / "scores.h5", "w") as file:
        file["ratings"] = np.column_stack([RATINGS, RATINGS.sum(1)]).astype(np.float32)
    return folder, (folder / "scores.h5").read_bytes()


def check_ratings(folder, content: bytes) -> None:
    (folder / "scores.h5").write_bytes(content)
    try:
        sets = load_dataset("iae", folder)
    except ValueError as error:
        event("refused")
        text = str(error)
        assert text.startswith("datasets: scores.h5 ") and "\n" not in text, text
        return
    event("loaded")
    for rated in sets.values():
        ratings = RATINGS[[int(name) for name in rated.ids]]
        assert rated.scores.tolist() == ratings.mean(1).tolist()
        assert np.allclose(rated.distributions, (ratings[:, :, None] == [1, 4, 7, 10]).mean(1))


@many
@given(data=st.data())
def test_damaged_ratings_are_an_error_or_right(rated_iae, data):
    folder, content = rated_iae
    for _ in range(data.draw(st.integers(1, 2))):
        content = data.draw(broken_bytes(content))
    check_ratings(folder, content)


ODD_TABLES = {
    "texts": (np.array([b"four"] * 10 * 22).reshape(22, 10), "cannot be read: could not convert"),
    "not a number": (np.where(RATINGS == 7, np.nan, RATINGS), "should be ten ratings of 1, 4, 7 or 10"),
    "nearly": (RATINGS + 1e-9 * (RATINGS == 7), "should be ten ratings of 1, 4, 7 or 10"),
    "another total": (
        np.column_stack([RATINGS, RATINGS.sum(1) + (RATINGS[:, 0] == 7)]),
        "or with their total; found",
    ),
    "few": (RATINGS[:9], "has 9 rows, too few for the ids of the lists"),
    "many": (None, "should hold one table of pictures x 10 ratings; found /ratings (1099511627776, 10)"),
    "one number": (np.float64(4), "should hold one table of pictures x 10 ratings; found /ratings ()"),
}


@pytest.mark.parametrize("case", ODD_TABLES)
def test_ratings_of_another_kind_are_refused(rated_iae, case):
    h5py = pytest.importorskip("h5py")
    values, words = ODD_TABLES[case]
    with h5py.File(rated_iae[0] / "scores.h5", "w") as file:
        if values is None:  # it claims terabytes and takes no room
            file.create_dataset("ratings", (2**40, 10), "f8", chunks=(1024, 10))
        else:
            file["ratings"] = values
    with pytest.raises(ValueError, match=r"^datasets: scores.h5 ") as caught:
        load_dataset("iae", rated_iae[0])
    assert words in str(caught.value)


# ---- configs ---------------------------------------------------------------------------------------


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
VALUES = (
    *(*CELLS, "[1, 2]", "{a: 1}", "&a 3", "*a", "!!python/object/apply:os.system [ls]", "!!bool maybe"),
    *("2024-13-45", "2024-01-01", "1:30", "010", "0o7", "0b1", "|", ">", "yes", "no", "~", "null", ".nan"),
    *(".inf", "!!int x", "- 3", "'3'", "3 # x", "%", "@", "? a", "<<: 3", "9" * 5000, "1e400", "-3", "true"),
)
SETTING_DAMAGES = ("value", "value", "no line", "twice", "swapped", "indent", "other line", "none")
OTHER_SETTINGS = ("---", "...", "%YAML 9.9", "garbage", "  garbage", "\t", "}", "? x")


@st.composite
def broken_settings(draw, text: str) -> bytes:
    lines = text.splitlines()
    at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(SETTING_DAMAGES))
    if kind == "value":
        lines[at] = f"{lines[at].partition(':')[0]}: {draw(st.sampled_from(VALUES) | TEXTS)}"
    elif kind == "no line":
        del lines[at]
    elif kind == "twice":
        lines.insert(other, lines[at])
    elif kind == "swapped":
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == "indent":
        lines[at] = " " * draw(st.integers(0, 5)) + lines[at].strip()
    elif kind == "other line":
        lines.insert(at, draw(st.sampled_from(OTHER_SETTINGS)))
    content = "".join(f"{line}\n" for line in lines).encode(errors="replace")
    for _ in range(draw(st.integers(0, 2))):
        content = draw(broken_bytes(content))
    return content


def check_settings(content: bytes, path) -> None:
    """What loads is what YAML has as texts, each read here once more; what it does not have is as always."""
    path.write_bytes(content)
    try:
        config = load_config([path])
    except ValueError as error:
        text = str(error)
        assert text.startswith("config: ") and path.name in text, text
        assert "\n" not in text and len(text) < 1000, text
        return
    written = {}
    texts = yaml.load(content, yaml.BaseLoader)  # noqa: S506 - texts alone, no objects
    for name, value in (texts or {}).items():
        inner = {f"{name}.{key}": text for key, text in value.items()} if isinstance(value, dict) else {}
        written |= inner or {name: value} if value else {}
    defaults = load_config()
    for key in KEYS:
        value = value_of(config, key)
        limits = KEYS[key].metadata
        assert value in limits.get("choices", [value])
        assert not isinstance(value, float) or np.isfinite(value)
        assert "least" not in limits or value >= limits["least"]
        assert value == (setting(key, written[key]) if key in written else value_of(defaults, key)), key


def setting(key: str, text: str):
    """What a value means, as a reader who does not know YAML would say; raises ValueError if nothing."""
    kind = KEYS[key].type
    if kind == "bool":
        return {**dict.fromkeys(("true", "yes", "on"), True), "false": False, "no": False, "off": False}[
            text.lower()
        ]
    if kind == "int":
        if not re.fullmatch("[+-]?(0|[1-9][0-9]*)", text):
            raise ValueError(text)
        return int(text)
    if kind == "str":
        return text
    if text.lower() in ("null", "~", "") and kind != "float":
        return None
    return number(text, -1e308, 1e308)


def value_of(config, key: str):
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


@many
@given(data=st.data())
def test_damaged_settings_are_an_error_or_right(tmp_path_factory, data):
    original = data.draw(st.sampled_from(CONFIGS)).read_text()
    check_settings(data.draw(broken_settings(original)), tmp_path_factory.getbasetemp() / "mine.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_undamaged_settings_say_what_is_written(path, tmp_path):
    load_config([path])
    check_settings(path.read_bytes(), tmp_path / path.name)
