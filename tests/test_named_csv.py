"""Public sets described by a YAML each: the real columns of their label files, with stand-in pictures."""

import re

import pytest
from small import ROOT, make_csv, write_noise, write_table

from datasets import load_dataset
from eamb.network.outputs import Scale
from eamb.readers.named_csv import parse_named
from eamb.readers.rated import SPLITS, DataOptions
from eamb.readers.registry import DATASETS, NAMED
from eamb.readers.table import Rating

ROWS = {  # as in the sets' own files
    "aadb": (["filename", "score", "newscore"], [["a.jpg", 0.55, 5.5], ["b.jpg", 0.05, 0.5]], (0, 1, 0.5)),
    "tad66k": (["image", "score"], [["1363.jpg", 5.77], ["N03.jpg", 4.63]], (0, 10, 5)),
    "lapis": (
        [
            "Unnamed: 0",
            "image_id",
            "min_response",
            "max_response",
            "mean_response",
            "image_filename",
            "title",
        ],
        [[0, 4926, 0, 87, 41.55172413793103, "shells.jpg", "x"], [1, 4, 0, 100, 33.4, "y-1984.jpg", "z"]],
        (0, 100, 50),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_sets_with_a_table_for_each_split(name, tmp_path):
    header, rows, (low, high, threshold) = ROWS[name]
    place, score = (
        header.index(next(c for c in header if c in names))
        for names in (("filename", "image", "image_filename"), ("score", "mean_response"))
    )
    for split in ("train", "val", "test"):
        split_rows = [[*row[:place], split + row[place], *row[place + 1 :]] for row in rows]
        write_table(tmp_path / f"{split}.csv", [header, *split_rows])
        write_noise(tmp_path / "images", [row[place] for row in split_rows])
    sets = load_dataset(name, tmp_path)
    for split, rated in sets.items():
        assert rated.name == name and rated.ids == [split + row[place] for row in rows]
        assert rated.scores.tolist() == pytest.approx([row[score] for row in rows])
        assert rated.scale == Scale("score", low, high, threshold, offset=low, factor=high - low)
    low_first = DataOptions(threshold=0.1 * high)
    assert load_dataset(name, tmp_path, options=low_first)["train"].scale.threshold == 0.1 * high
    wider = DataOptions(maximum=2 * high)  # as of another column: the threshold is of another scale, too
    assert load_dataset(name, tmp_path, options=wider)["train"].scale.threshold == high


def test_koniq_has_votes_and_its_own_split(tmp_path):
    header = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "set"]
    words = ["training", "validation", "test"]
    rows = [
        [f"{i}.jpg", 0, 0, 25, 73, 7, 105, 3.828571428571428, 0.527277894, words[i % 3]] for i in range(6)
    ]
    write_table(tmp_path / "koniq10k_distributions_sets.csv", [header, *rows])
    write_noise(tmp_path / "1024x768", [row[0] for row in rows])
    sets = load_dataset("koniq", tmp_path)
    assert [rated.ids for rated in sets.values()] == [
        ["0.jpg", "3.jpg"],
        ["1.jpg", "4.jpg"],
        ["2.jpg", "5.jpg"],
    ]
    assert sets["train"].distributions[0].tolist() == pytest.approx([0, 0, 25 / 105, 73 / 105, 7 / 105])
    assert (
        load_dataset("koniq", tmp_path, options=DataOptions(score_column="MOS"))["test"].distributions is None
    )


def test_spaq_is_split_by_hash(tmp_path):
    rows = [[f"{i:05}.jpg", i] for i in range(40)]
    make_csv(tmp_path / "TestImage", ["path", "x"], rows)
    (tmp_path / "TestImage" / "ratings.csv").unlink()
    table = tmp_path / "Annotations" / "MOS and Image attribute scores.csv"
    write_table(table, [["Image name", "MOS"], *rows])
    sets = load_dataset("spaq", tmp_path)
    assert sum(map(len, sets.values())) == 40 and sets["test"].scale.maximum == 100


def test_the_description_in_the_docs_reads_a_set(tmp_path):
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "mine.yaml").write_text(block)
    write_table(
        tmp_path / "labels.csv", [["file", "stars", "part"], ["a.jpg", 4, "train"], ["b.jpg", 2, "test"]]
    )
    table = parse_named(
        tmp_path / "mine.yaml", tmp_path, SPLITS, DataOptions(), lambda kind, path: kind(path)
    )
    assert (table.name, table.ids, [*table.split]) == ("mine", ["a.jpg", "b.jpg"], ["train", "test"])
    assert table.places == [tmp_path / "photographs"] and table.rating == Rating(1, 5, 3)


def test_a_description_with_an_unknown_setting_is_named(tmp_path):
    (tmp_path / "new.yaml").write_text("path_colum: image\n")
    with pytest.raises(ValueError, match=r"new\.yaml describes a set by .*; unknown: path_colum\."):
        parse_named(tmp_path / "new.yaml", tmp_path, ("train",), DataOptions(), None)


def test_every_description_is_a_set():
    assert {file.stem for file in NAMED} == {"aadb", "tad66k", "lapis", "koniq", "spaq"} <= {*DATASETS}
