"""Anyone's csv: columns by their usual names or by options, paths as people write them, damaged tables."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small import make_csv, nfd, refused, write_noise, write_table

from datasets import load_dataset
from eamb.network.outputs import Scale
from eamb.readers.own_csv import round_outwards
from eamb.readers.rated import SPLITS, DataOptions, emotion_name


def load_train(root, **options):
    return load_dataset("csv", root, options=DataOptions(**options))["train"]


def test_a_path_and_a_score_are_enough(tmp_path):
    sets = load_dataset("csv", make_csv(tmp_path))
    assert sum(map(len, sets.values())) == 40 and all(len(s) for s in sets.values())
    assert sets["train"].scale == Scale("score", 1, 5, 3, offset=1, factor=4)
    assert sets["train"].paths[0] == str(tmp_path / sets["train"].ids[0])
    assert [rated.protocol for rated in sets.values()] == [
        "ratings.csv (scores in score) without 10 % and 5 %, by hash of the id",
        "5 % of ratings.csv (scores in score), by hash of the id",
        "10 % of ratings.csv (scores in score), by hash of the id",
    ]


def test_a_few_pictures_have_three_splits(tmp_path):
    refused("split of csv is empty", "csv", make_csv(tmp_path, count=2))
    for rows, expected in ((3, [1, 1, 1]), (4, [2, 1, 1])):
        sets = load_dataset("csv", make_csv(tmp_path, count=rows))
        assert [len(rated) for rated in sets.values()] == expected


def test_paths_as_people_write_them(tmp_path, monkeypatch):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write_noise(root, ["a.png", "sub/b.png", "tables/c.png", "images/d.png", "e.jpg"])
    write_noise(root, ["~office.png", "~root/i.png"])
    write_noise(elsewhere, ["f.png", "g.png", "h.png"])
    (root / "link.png").symlink_to(elsewhere / "g.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "broken.png").symlink_to(elsewhere / "gone.png")
    monkeypatch.setenv("HOME", str(elsewhere))
    written = ["./a.png", "sub\\b.png", "c.png", "d.png", "e", str(elsewhere / "f.png"), "link.png"]
    written += ["~office.png", "~root/i.png", "~/h.png", "linked/g.png", "../elsewhere/h.png", "broken.png"]
    rows = [[name, 1 + 0.1 * i, "test"] for i, name in enumerate(written)]
    write_table(root / "tables" / "t.csv", [["path", "score", "split"], *rows])
    test = load_dataset("csv", root, ("test",), DataOptions(table="tables/t.csv"))["test"]
    assert test.ids == written[:-1] and [row.id for row in test.left_out] == ["broken.png"]
    assert all(Path(path).is_file() for path in test.paths)


def test_counts_become_distributions_over_their_numbers(tmp_path):
    header = ["path", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS"]  # as in KonIQ-10k
    root = make_csv(tmp_path, header, [[f"{i}.png", 0, 0, 1, 2, 1, 4, 4.0] for i in range(30)])
    train = load_train(root)
    assert train.scale == Scale("distribution", 1, 5, 3, bins=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert train.distributions[0].tolist() == [0, 0, 0.25, 0.5, 0.25] and train.scores[0] == 4
    assert load_train(root, score_column="MOS").distributions is None


def test_count_columns_by_option_are_sorted_by_rating(tmp_path):
    root = make_csv(tmp_path, ["path", "good", "bad", "x3"], [[f"{i}.png", 3, 1, 0] for i in range(30)])
    train = load_train(root, count_columns="good=5, bad=1, x3")
    assert train.bins == (1, 3, 5) and train.scores[0] == (1 + 15) / 4
    for columns in ("good,bad", "good=1,bad=1", "x3"):
        words = f"two columns or more, each with another rating, as c1,c2 or low=1,high=5; got {columns}"
        refused(words, "csv", root, count_columns=columns)
    make_csv(tmp_path, ["path", "c1", "c2", "c4"], [[f"{i}.png", 1, 2, 3] for i in range(30)])
    refused("counts of votes? (c1, c2, c4 could be.) Set data.count_columns", "csv", root)
    assert load_train(root, count_columns="c1,c2,c4").bins == (1, 2, 4)


def test_emotions_by_name_or_by_counts(tmp_path):
    words = ["fear", "AWE", "pure joy", "Sad", "sadness"] * 6
    root = make_csv(tmp_path, ["path", "emotion"], [[f"{i}.png", word] for i, word in enumerate(words)])
    train = load_train(root)
    # The common ones in their order, under their common names, then the others.
    assert train.emotion_classes == ("awe", "fear", "sadness", "pure_joy") and np.isnan(train.scores).all()
    given = [train.emotion_classes[k] for k in train.emotions.argmax(1)]
    assert given == [emotion_name(words[int(i.removesuffix(".png"))]) for i in train.ids]
    rows = [[f"{i}.png", 3, 1, 3] for i in range(30)]
    train = load_train(make_csv(tmp_path, ["path", "score", "emotion_awe", "emotion_Scared"], rows))
    assert train.emotion_classes == ("awe", "fear") and train.emotions[0].tolist() == [0.25, 0.75]


def test_classes_do_not_depend_on_the_splits_asked_for(tmp_path):
    kinds = {"train": ("awe", "fear", "calm"), "val": ("awe", "sad"), "test": ("fear",)}
    for number, (split, words) in enumerate(kinds.items()):
        rows = [[f"{number}{i}.png", 1, words[i % len(words)]] for i in range(6)]
        make_csv(tmp_path, ["path", "score", "emotion"], rows, name=f"{split}.csv")
    for splits in (SPLITS, ("test",), ("val",)):
        for rated in load_dataset("csv", tmp_path, splits).values():
            assert rated.emotion_classes == ("awe", "fear", "sadness", "calm")


SPREADSHEETS = {  # as spreadsheets of other countries save "path, score" and 40 rows
    "semicolons and decimal commas": lambda text: (
        text.replace(",", ";").replace(".", ",").replace(",png", ".png")
    ),
    "a line that names the separator": lambda text: "sep=;\r\n" + text.replace(",", ";"),
    "the line in quotes": lambda text: '"sep=\t"\n' + text.replace(",", "\t"),
    "UTF-16 with tabs": lambda text: text.replace(",", "\t").encode("utf-16"),
    "UTF-16, the other way round": lambda text: ("\ufeff" + text).encode("utf-16-be"),
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
}


@pytest.mark.parametrize("change", SPREADSHEETS.values(), ids=SPREADSHEETS)
def test_a_table_is_the_same_however_a_spreadsheet_saves_it(tmp_path, change):
    path = make_csv(tmp_path) / "ratings.csv"
    expected = load_train(tmp_path)
    content = change(path.read_text(encoding="utf-8"))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    train = load_train(tmp_path)
    assert train.ids == expected.ids and train.scores.tolist() == expected.scores.tolist()


def test_a_folder_with_nothing_but_a_spreadsheet_is_told_to_save_it_as_csv(tmp_path):
    (tmp_path / "Ratings.XLSX").write_bytes(b"PK\3\4")
    refused("Ratings.XLSX is not a readable table: it is a spreadsheet; save it as text", "csv", tmp_path)
    make_csv(tmp_path)
    assert len(load_train(tmp_path))  # the csv beside it


def test_scores_have_the_range_that_is_given_or_that_of_the_data(tmp_path):
    root = make_csv(tmp_path)
    words = "ratings.csv row 33: 'score' is '4.061538461538461', expected a number from 0 to 4."
    refused(words, "csv", root, minimum=0, maximum=4)
    refused("data.minimum must be below", "csv", root, minimum=9)
    wide = load_train(root, minimum=0, maximum=10, threshold=6).scale
    assert (wide.minimum, wide.maximum, wide.threshold, wide.factor) == (0, 10, 6, 10)
    ends = [((1.3, 4.8), (1, 5)), ((3.9, 88.4), (0, 90)), ((-1.7, 1.2), (-2, 2)), ((3,), (3, 4))]
    for scores, expected in [*ends, ((np.nan,), (0, 1))]:
        assert round_outwards(np.array(scores)) == expected


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9))
@example([0.0, 5e-324])
@example([1.0, 1 + 2**-52])
@example([-1e15, 1e15])
@settings(max_examples=40, deadline=None)
def test_rounded_range_holds_all_scores(scores):
    low, high = round_outwards(np.array(scores))
    slack = 1e-9 * max(1.0, *map(abs, scores))
    assert low - slack <= min(scores) and max(scores) <= high + slack and low < high


BAD_TABLES = {
    b"path,score\n\n": "r.csv has no rows.",
    b'path,score\n\n"a': "row 3: unexpected end of data.",
    b"path,score\na.png,3,5\n": "row 2 has 3 cells, expected 2; decimals need a point, texts with commas",
    b"path,score\na.png\n": "row 2 has 1 cells, expected 2.",
    b"path\tscore\na.png\t1\t2\n": "row 2 has 3 cells, expected 2.",
    b'path,score\na.png,"3,5"\n': "row 2: 'score' is '3,5', expected a number with a decimal point from",
    b"path;score\na.png;3.5\nb.png;4,5\n": "row 3: 'score' is '4,5', expected a number with a decimal point",
    b"path;score\na.png;1,234,567\n": "row 2: 'score' is '1,234,567', expected a number",
    b"sep=;\npath;score\n\na.png;x\n": "row 4: 'score' is 'x', expected a number from",
    b"sep=;\npath,score\na.png,1\n": "which column is the path? (found path,score.)",
    b"sep=;\n": "r.csv has no rows.",
    b"PK\3\4\x14\0": "it is a spreadsheet; save it as text in UTF-8 (CSV UTF-8 in Excel).",
    b"\xd0\xcf\x11\xe0\xa1": "it is a spreadsheet; save it as text in UTF-8 (CSV UTF-8 in Excel).",
    b"\xff\xfep\0a": "truncated data; save it as text in UTF-8 (CSV UTF-8 in Excel).",
    b"path,score\na.png,1\n\nb.png,1_0\n": "row 4: 'score' is '1_0', expected a number",
    b"path,score,score\na.png,1,2\n": "its header has 'score' twice.",
    b"path,score\nb\xe4.png,2\n": "can't decode byte 0xe4 in position 12: invalid",
    "path,score\na.png,1\n".encode(
        "utf-16-le"
    ): "it has zero bytes, as UTF-16 has; save it as text in UTF-8 (CSV UTF-8 in Excel).",
    b"path,image_name,score\na,a,1\n": "which column is the path? (path and image_name could be.)",
    b"path,beauty\na,1\n": "is the score? (found path, beauty.) Set data.score_column=NAME.",
    b"path,c1,c2,votes1,votes2\na,1,1,1,1\n": "the counts of votes? (c1, c2, votes1, votes2 could be.)",
    b"path,score,emotion_sad,emotion_sadness\na,1,1,1\n": "emotion_sad, emotion_sadness are one emotion",
    b"path,c1,c2\na,0,0\n": "row 2: 'c1' is '0', expected at least one vote in c1 to c2",
    b"path,score\na,1e30\n": "row 2: 'score' is '1e30', expected a number from -1e+15",
}


def test_what_is_no_table_or_has_unknown_columns_is_named(tmp_path):
    refused("found none", "csv", tmp_path, error=FileNotFoundError)
    for content, words in BAD_TABLES.items():
        (tmp_path / "r.csv").write_bytes(content)
        refused(words, "csv", tmp_path)
    make_csv(tmp_path, name="b.csv")
    refused("found b.csv, r.csv. Choose with data.table=NAME", "csv", tmp_path, error=FileNotFoundError)
    words = "b.csv has no column 'beauty' (found: path, score). data.score_column asks for it."
    refused(words, "csv", tmp_path, table="b.csv", score_column="beauty")
    refused("there is no file", "csv", tmp_path, error=FileNotFoundError, table="c.csv")


def test_accents_are_found_however_they_are_composed(tmp_path):
    disk = [nfd("Bücher/é.png"), nfd("ü.png"), "ö.png", nfd("ö.png"), nfd("ế.png"), "ê\u0301.png"]
    write_noise(tmp_path, disk)
    found = ["Bücher/é.png", "ü", "ö.png", nfd("ö.png")]
    make_table(tmp_path, [*found, nfd("ü.png"), "ế.png"])
    test = load_dataset("csv", tmp_path, ("test",))["test"]
    assert test.ids == [found[0], *found[2:], nfd("ü.png")]  # each file once, for the row that has its name
    expected = [disk[0], *disk[2:4], disk[1]]
    assert test.paths == [str(tmp_path / name) for name in expected]
    two = r"'e\u0302\u0301.png' or '\xea\u0301.png'"
    assert dict(test.left_out) == {
        "ü": f"ü: its file {tmp_path / disk[1]} is that of another row",
        "ế.png": f"ế.png may be {two} in {tmp_path}; remove one, or name it in full",
    }


def test_of_several_endings_none_is_taken_and_another_one_is_a_hint(tmp_path):
    write_noise(tmp_path, ["a.jpg", "b.png", "b.jpg", "c.JPG"])
    refused(
        "none of the 1 pictures of csv exists (no picture file a.JPG; there is a.jpg); looked in",
        "csv",
        make_table(tmp_path, ["a.JPG"]),
        error=FileNotFoundError,
    )
    make_table(tmp_path, ["a.JPG", "a", "b", "b.png", "c", "c.png"])
    test = load_dataset("csv", tmp_path, ("test",))["test"]
    assert (test.ids, test.paths) == (
        ["a", "b.png", "c"],
        [str(tmp_path / n) for n in ("a.jpg", "b.png", "c.JPG")],
    )
    assert dict(test.left_out) == {
        "a.JPG": "no picture file a.JPG; there is a.jpg",
        "b": f"b may be 'b.jpg' or 'b.png' in {tmp_path}; remove one, or name it in full",
        "c.png": "no picture file c.png; there is c.JPG",
    }


def test_a_name_without_ending_means_the_jpeg_beside_a_raw_file(tmp_path):
    write_noise(tmp_path, ["a.jpg", "c.jpg"])
    for name in ("a.CR2", "b.nef", "c.heic"):
        (tmp_path / name).touch()
    make_table(tmp_path, ["a", "a.CR2", "b", "c"])
    test = load_dataset("csv", tmp_path, ("test",))["test"]
    assert dict(zip(test.ids, test.paths, strict=True)) == {
        name: str(tmp_path / file) for name, file in (("a", "a.jpg"), ("a.CR2", "a.CR2"), ("b", "b.nef"))
    }
    assert dict(test.left_out)["c"].startswith("c may be 'c.heic' or 'c.jpg'")


def make_table(root: Path, names: list[str]) -> Path:
    rows = [[name, 1 + i, "test"] for i, name in enumerate(names)]
    write_table(root / "t.csv", [["path", "score", "split"], *rows])
    return root
