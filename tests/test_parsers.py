"""Damaged tables, lists and ratings: one clear sentence that names the file, or right values.

Each example writes a small file from values that are known, damages it up to three times and loads it. `said`
reads the damaged file again, by itself, line by line: what it says must be what was loaded, for each picture;
if a line says nothing possible, loading must be an error. A damage that leaves a valid file, as a digit that
became another, changes what was said, and so what must be loaded.

    EXAMPLES=3000 python -m pytest tests/test_parsers.py    # of each test; a few dozen without it
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import make_para, write_noise

from datasets import load_dataset
from eamb.readers.iae import IAE_EMOTIONS
from eamb.readers.para import PARA_EMOTIONS
from eamb.readers.rated import SPLIT_WORDS, SPLITS, DataOptions, emotion_name

many = settings(
    max_examples=int(os.environ.get("EXAMPLES", "50")),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
COUNT = 14

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

    lines: cells as they stand in the correct file. read: cells by name -> (id, values), or ValueError.
    load: folder -> {id: values}. separator: "" for blanks, and then there is no header.
    guessed: which column is what follows from the header alone.
    """

    file: str
    columns: tuple[str, ...]
    lines: list[list[str]]
    read: Callable[[dict[str, str]], tuple[str, np.ndarray]]
    load: Callable[[object], dict[str, np.ndarray]]
    separator: str = ","
    guessed: bool = False

    def text(self, lines: list[list[str]] | None = None) -> str:
        header = [list(self.columns)] if self.separator and not lines else []
        return "".join((self.separator or " ").join(cells) + "\n" for cells in header + (lines or self.lines))


def said(content: bytes, form: Format) -> dict[str, np.ndarray] | None:
    """id -> values; None if another header leaves open what is meant. ValueError: nothing possible."""
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if form.separator:
        header = next((line for line in re.split("[\r\n]", text) if line.strip()), "")
        separator = max(",;\t", key=header.count)  # of spreadsheets in other countries
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    else:
        rows = [list(form.columns), *(line.split() for line in re.split("[\r\n]", text))]
    names, *rows = [cells for cells in rows if any(cell.strip() for cell in cells)]
    names = [name.strip() for name in names]
    if form.guessed and names != list(form.columns):
        return None
    named = [name for name in names if name]
    if "\0" in text or not rows or len({*named}) < len(named) or {*form.columns} - {*names}:
        raise ValueError(names)
    values = {}
    for cells in rows:
        key, value = form.read(dict(zip(names, cells, strict=True)))
        if key in values:
            raise ValueError(f"{key} twice")
        values[key] = value
    return values


OF_WHOLE_FILES = r"must name the same|more than one of|split of \w+ is empty|none of the \d+ pictures of"


def check(form: Format, content: bytes, folder) -> None:
    """Writes the damaged file, loads it, and compares with what it says."""
    (folder / form.file).write_bytes(content)
    try:
        loaded = form.load(folder)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert text.startswith("datasets: ") and "\n" not in text and len(text) < 1000, text
        assert form.file.rpartition("/")[2] in text or re.search(OF_WHOLE_FILES, text), text
        return
    values = said(content, form)
    if values is not None:
        assert all(np.allclose(loaded[key], values[key], rtol=1e-12, atol=0) for key in loaded)
        assert not (said(form.text().encode(), form).keys() & values.keys()) - loaded.keys()


# ---- damages ---------------------------------------------------------------------------------------


CELLS = ("", " ", "-1", "0", "nan", "inf", "1e309", "1e30", "1_0", "0x10", "\u0663", "\u00bd", "3,5", "3.5.1",
         "--", "True", "+3", "3e0", "-0", "1e15", '"', '"3"', '"3', '3"5', "3\0005", "9" * 20, "\ufeff3",
         "3\r", "3\n", "\u20283", "\x1c3", "~x", "../x")  # fmt: skip
TEXTS = st.text(
    st.sampled_from("0139 .,;-+e\"'#\t\n\r\0/~aZ\u00e9\u0663\u00bd\u2028\x1c\x85\ufeff\U0001f600"), max_size=4
)
BYTES = (*b"0195 ,;\t\n\r\"'.-+e:#&*!~/\\", 0, 0x0B, 0x1A, 0x80, 0xA0, 0xC3, 0xFF)
WHOLES = [
    lambda content: codecs.BOM_UTF8 + content,
    lambda content: content.replace(b"\n", b"\r\n"),
    lambda content: content.decode(errors="replace").encode("utf-16-le"),
    lambda content: content.decode(errors="replace").encode("utf-16"),
    lambda content: content.replace(b"a", b"\xe4"),  # latin-1
    lambda content: content + content,
    lambda content: content.replace(b"\n", b"\n\n"),
    lambda content: content.replace(b",", b";"),
    lambda content: b"",
    bytes.upper,
]


@st.composite
def broken_lines(draw, form: Format) -> list[list[str]]:
    """One damage to cells, lines or columns."""
    lines = [list(form.columns)] * bool(form.separator) + [list(cells) for cells in form.lines]
    at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    cell, second = (draw(st.integers(0, len(form.columns) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(["cell", "line", "column", "none"]))
    if kind == "cell":
        new = draw(st.sampled_from(CELLS) | TEXTS | st.just(lines[other][cell]))
        cells = draw(st.sampled_from([[new], [new], [], [new, new], [lines[at][second]]]))
        lines[at] = [*lines[at][:cell], *cells, *lines[at][cell + 1 :]]
    elif kind == "line":
        odd = list(draw(st.sampled_from([[""], ["garbage"], ["# 3"], ["", "", ""], lines[0], lines[other]])))
        lines[at : at + 1] = draw(st.sampled_from([[], [odd], [odd, lines[at]], [lines[at] + lines[other]]]))
    elif kind == "column":
        change = draw(st.sampled_from([[], [cell, cell], [second]]))
        lines = [[*line[:cell], *(line[i] for i in change), *line[cell + 1 :]] for line in lines]
    return lines


@st.composite
def broken_bytes(draw, content: bytes) -> bytes:
    """One damage to bytes, or to the file as a whole."""
    kind = draw(st.sampled_from(["delete", "insert", "replace", "flip", "cut", "zeros", "whole", "none"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    before, byte, after = content[:at], content[at : at + 1], content[at + 1 :]
    if kind in ("insert", "replace"):
        new = bytes([draw(st.sampled_from(BYTES) | st.integers(0, 255))])
        return before + new + (byte if kind == "insert" else b"") + after
    if kind == "flip":
        return before + bytes(b ^ 1 << draw(st.integers(0, 7)) for b in byte) + after
    if kind == "whole":
        return draw(st.sampled_from(WHOLES))(content)
    zeros = before + bytes(20) + content[at + 20 :]
    return {"delete": before + after, "cut": before, "zeros": zeros, "none": content}[kind]


@st.composite
def damages(draw, content: bytes, least: int = 0) -> bytes:
    for _ in range(draw(st.integers(least, 2))):
        content = draw(broken_bytes(content))
    return content


# ---- tables ----------------------------------------------------------------------------------------


def pictures_of(root, name: str, classes: tuple[str, ...], of_split: bool = False, **options) -> dict:
    """Each picture's score, shares of votes and shares of emotions by class, and perhaps its split."""
    pictures = {}
    for number, rated in enumerate(load_dataset(name, root, SPLITS, DataOptions(**options)).values()):
        assert len(rated) == len(rated.paths) == len(rated.scores)
        for sample in rated:
            emotion = [] if sample.emotion is None else sample.emotion
            shares = dict(zip(rated.emotion_classes, emotion, strict=False))
            assert not shares or abs(sum(shares.values()) - 1) < 1e-9
            values = [sample.score, *(() if sample.distribution is None else sample.distribution)]
            values += [shares.get(name, 0.0) for name in classes] + [number] * of_split
            pictures[sample.id] = np.array(values)
    return pictures


def para(root) -> Format:
    make_para(root, bins=True)
    header, *rows = csv.reader((root / "annotation/PARA-GiaaTrain.csv").read_text().splitlines())
    bins, emotions = header[3:12], header[12:]

    def read(cells: dict[str, str]) -> tuple[str, np.ndarray]:
        name = f"{word(cells['sessionId'])}/{word(cells['imageName'])}"
        if name in TESTED:
            raise ValueError("a test picture")
        shares = [votes([cells[name] for name in names], 100) for names in (bins, emotions)]
        return name, np.array([number(cells["aestheticScore_mean"], 1, 5), *shares[0], *shares[1]])

    def load(root) -> dict[str, np.ndarray]:
        pictures = pictures_of(root, "para", PARA_EMOTIONS)
        return {name: values for name, values in pictures.items() if name not in TESTED}

    return Format("annotation/PARA-GiaaTrain.csv", tuple(header), rows[:COUNT], read, load)


TESTED = {f"session{i % 2}/p{i}_.jpg" for i in range(60, 65)}


def own_csv(root) -> Format:
    names = [f"a {i}, b.png" if i % 3 else f"{i}.png" for i in range(COUNT)]
    write_noise(root, names)
    words, known = ["train", "Training", "dev", "test"], ("awe", "fear", "sadness")
    lines = [
        [f'"{name}"', f"{1 + 0.29 * i:.2f}", words[i % 4], ["awe", "Sad", "fear"][i % 3], f'"say ""{i}"""']
        for i, name in enumerate(names)
    ]

    def read(cells: dict[str, str]) -> tuple[str, np.ndarray]:
        split, emotion = word(cells["split"]).lower(), emotion_name(word(cells["emotion"]))
        if split not in SPLIT_WORDS:
            raise ValueError(split)
        shares = [float(emotion == name) for name in known]
        place = SPLITS.index(SPLIT_WORDS[split])
        return word(cells["path"]), np.array([number(cells["score"], 1, 5), *shares, place])

    def load(root) -> dict[str, np.ndarray]:
        return pictures_of(root, "csv", known, of_split=True, minimum=1, maximum=5)

    return Format(
        "ratings.csv", ("path", "score", "split", "emotion", "remark"), lines, read, load, guessed=True
    )


def iae(root) -> Format:
    write_noise(root / "images", [f"{i}.jpg" for i in range(COUNT + 8)])
    for split, start, end in (("train", 0, COUNT), ("val", COUNT, COUNT + 4), ("test", COUNT + 4, COUNT + 8)):
        (root / f"{split}_aes_list.txt").write_text("".join(f"{i} {i % 2}\n" for i in range(start, end)))
        (root / f"{split}_emo_list.txt").write_text("".join(f"{i} {3 * i % 8}\n" for i in range(start, end)))

    def read(cells: dict[str, str]) -> tuple[str, np.ndarray]:
        name = cells["id"].removesuffix(".jpg")
        if name not in map(str, range(COUNT)) or number(cells["label"]) not in (0, 1):
            raise ValueError(cells)
        return name, np.array([number(cells["label"]), *np.eye(8)[3 * int(name) % 8]])

    def load(root) -> dict[str, np.ndarray]:
        pictures = pictures_of(root, "iae", IAE_EMOTIONS)
        return {name: values for name, values in pictures.items() if int(name) < COUNT}

    lines = [[f"{i}.jpg", str(i % 2)] for i in range(COUNT)]
    return Format("train_aes_list.txt", ("id", "label"), lines, read, load, separator="")


@pytest.fixture(scope="module", params=[para, own_csv, iae], ids=lambda make: make.__name__)
def table(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    return request.param(folder), folder


@many
@given(data=st.data())
def test_a_damaged_table_is_an_error_or_right(table, data):
    form, folder = table
    content = form.text(data.draw(broken_lines(form))).encode(errors="replace")
    check(form, data.draw(damages(content)), folder)


def test_an_undamaged_table_says_what_was_written(table):
    form, folder = table
    (folder / form.file).write_text(form.text())
    assert form.load(folder).keys() == said(form.text().encode(), form).keys()
    check(form, form.text().encode(), folder)


# ---- scores.h5 -------------------------------------------------------------------------------------


RATINGS = np.random.default_rng(0).choice([1, 4, 7, 10], (COUNT + 8, 10))


@pytest.fixture(scope="module")
def rated_iae(tmp_path_factory):
    """IAE with its lists, and the bytes of the correct scores.h5."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("iae")
    iae(folder)
    with h5py.File(folder / "scores.h5", "w") as file:
        file["ratings"] = np.column_stack([RATINGS, RATINGS.sum(1)]).astype(np.float32)
    return folder, (folder / "scores.h5").read_bytes()


@many
@given(data=st.data())
def test_damaged_ratings_are_an_error_or_right(rated_iae, data):
    folder, content = rated_iae
    (folder / "scores.h5").write_bytes(data.draw(damages(content, least=1)))
    try:
        sets = load_dataset("iae", folder)
    except ValueError as error:
        assert str(error).startswith("datasets: scores.h5 ") and "\n" not in str(error), error
        return
    for rated in sets.values():
        ratings = RATINGS[[int(name) for name in rated.ids]]
        assert rated.scores.tolist() == ratings.mean(1).tolist()
        assert np.allclose(rated.distributions, (ratings[:, :, None] == [1, 4, 7, 10]).mean(1))


ODD_TABLES = [
    (np.array([b"four"] * 10 * 22).reshape(22, 10), "cannot be read: could not convert"),
    (np.where(RATINGS == 7, np.nan, RATINGS), "should be ten ratings of 1, 4, 7 or 10"),
    (np.column_stack([RATINGS, RATINGS.sum(1) + (RATINGS[:, 0] == 7)]), "or with their total; found"),
    (RATINGS[:9], "has 9 rows, too few for the ids of the lists"),
    (None, "should hold one table of pictures x 10 ratings; found /ratings (1099511627776, 10)"),
]


@pytest.mark.parametrize(("values", "words"), ODD_TABLES)
def test_ratings_of_another_kind_are_refused(rated_iae, values, words):
    h5py = pytest.importorskip("h5py")
    with h5py.File(rated_iae[0] / "scores.h5", "w") as file:
        if values is None:  # it claims terabytes and takes no room
            file.create_dataset("ratings", (2**40, 10), "f8", chunks=(1024, 10))
        else:
            file["ratings"] = values
    with pytest.raises(ValueError, match=r"^datasets: scores.h5 .*" + re.escape(words)):
        load_dataset("iae", rated_iae[0])
