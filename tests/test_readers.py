"""PARA, AVA, IAE, FI, EmoSet and the demo set, as their files say; missing pictures and damaged labels."""

import io
import sys

import numpy as np
import pytest
import small
from small import AVA_ROWS, fraction, make_ava, make_csv, make_emoset, make_fi, make_iae, make_para, refused

from datasets import SetReader, load_dataset
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers import demo, iae
from eamb.readers.decoding import decode
from eamb.readers.para import PARA_BINS, PARA_TRAINING_VOTES
from eamb.readers.rated import SPLITS, DataOptions, LeftOut, describe, write_left_out

EMOTIONS_ONLY = Scale("score", 0, 1, 0.5, offset=0, factor=1)


MAKERS = {"para": make_para, "ava": make_ava, "csv": make_csv, "iae": make_iae, "emoset": make_emoset}


@pytest.mark.parametrize("name", MAKERS)
def test_each_file_of_labels_is_opened_once(tmp_path, monkeypatch, name):
    opened, whole = [], io.open
    root = MAKERS[name](tmp_path / "set")
    labels = [str(path) for path in root.rglob("*.*") if path.suffix in (".csv", ".txt", ".jpgl", ".json")]
    monkeypatch.setattr(io, "open", lambda path, *a, **b: opened.append(str(path)) or whole(path, *a, **b))
    reader = SetReader(name, root, DataOptions(twins=False))
    for splits in (("test",), ("train", "val"), SPLITS):
        assert [*reader.load(splits)] == [*splits]
    assert sorted(path for path in opened if path in labels) == sorted(labels)


# ---- pictures that are not there


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    ("name", "make", "lost"), [("csv", make_csv, "pics/3.png"), ("fi", make_fi, "awe/1.jpg")]
)
def test_a_link_that_cannot_be_followed_costs_one_picture(tmp_path, name, make, lost, closed):
    """A link in a circle, or into a folder that may not be entered."""
    root, folder = make(tmp_path / "set"), tmp_path / "closed"
    folder.mkdir()
    link = root / lost
    link.rename(folder / link.name)
    link.symlink_to(folder / link.name if closed else link)
    folder.chmod(0)
    try:
        with small.bound_by_permissions():
            sets = load_dataset(name, root).values()
    finally:
        folder.chmod(0o700)
    assert [i for rated in sets for i, _ in rated.left_out] == [lost] and sum(map(len, sets)) == 39


def test_a_missing_training_picture_is_listed_once_on_the_side_of_its_hash(tmp_path):
    whole = load_dataset("para", make_para(tmp_path), ("train", "val"))
    gone = {split: [rated.ids[-1]] for split, rated in whole.items()}
    for [name] in gone.values():
        (tmp_path / "imgs" / name).unlink()
    sets = load_dataset("para", tmp_path, ("train", "val"))
    assert {split: [row.id for row in rated.left_out] for split, rated in sets.items()} == gone


def test_wrong_folders_sets_and_splits_are_refused(tmp_path):
    root = make_para(tmp_path / "para")
    (root / "imgs").rename(root / "pictures")
    words = "none of the 5 pictures of para exists (no picture file session0/p60_.jpg); looked in "
    words += f"{root / 'imgs'}. Is"
    refused(words, "para", root, ("test",), error=FileNotFoundError)
    refused("there is no folder", "para", root / "nowhere", error=FileNotFoundError)
    refused("no set 'coco'; the sets are ava, para, iae, emoset, fi, csv, demo", "coco", tmp_path)
    refused("got valid", "para", root, ("valid",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": 1.5}, "between 0 and 1, got 1.5"),
        ({"target": "rank"}, "got 'rank'"),
        ({"score_range": "wide"}, "got 'auto' and 'wide'"),
        ({"folds": 5, "fold": 5}, "data.folds is 2 or more, .* data.fold from 0 to one less; got 5 and 5"),
        ({"fold": 1}, "got 0 and 1"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        DataOptions(**options)


# ---- PARA


def test_para_columns_become_scores_and_emotion_votes(tmp_path):
    train, val, test = load_dataset("PARA", make_para(tmp_path)).values()
    assert len({*train.ids, *val.ids}) == len(train) + len(val) == 60 and len(test) == 5
    assert test.ids[0] == "session0/p60_.jpg" and test.paths[0] == str(tmp_path / "imgs" / test.ids[0])
    assert test.scores.tolist() == [1.6, 1.61, 1.62, 1.63, 1.64]
    assert test.scale == Scale("score", 1, 5, 3, offset=1, factor=4)
    assert test.emotions[1].tolist() == [0.6, 0, 0, 0, 0.2, 0, 0, 0.2] and test.distributions is None
    assert "PARA-GiaaTest.csv" in test.protocol and "5 % of" in val.protocol
    start = "para test: 5 pictures (official PARA-GiaaTest.csv), scores 1.6 to 1.64, mean 1.62, 8 emotions, 0"
    assert describe(test).startswith(start)
    (tmp_path / "annotation" / "PARA-GiaaTrain.csv").unlink()  # which the test split does not need
    assert len(load_dataset("para", tmp_path, ("test",))["test"]) == 5
    refused("PARA-GiaaTrain.csv", "para", tmp_path, ("val",), error=FileNotFoundError)


def test_para_targets(tmp_path):
    root = make_para(tmp_path / "plain", emotions=False)
    official = load_dataset("para", root, ("test",), DataOptions(score_range="official"))["test"]
    assert (official.scale.offset, official.scale.factor) == (0, 5)
    assert official.emotions is None and official.emotion_classes == ()
    words = "official PARA-GiaaTrain.csv (there is no PARA-GiaaTrain-distributions.csv beside it) without 5 %"
    refused(f"and the train split of para ({words}", "para", root, target="distribution")
    root = make_para(tmp_path / "bins", bins=True)
    sets = load_dataset("para", root, options=DataOptions(target="distribution"))
    assert sets["train"].scale.bins == PARA_BINS
    assert sets["test"].distributions[1].tolist() == pytest.approx([1 / 4, 0, 0, 1 / 4, 1 / 2, 0, 0, 0, 0])


VOTED = range(0, 60, 2)  # of the training pictures, 0 to 59


def test_votes_of_some_training_pictures_come_from_the_csv_beside(tmp_path):
    plain = load_dataset("para", make_para(tmp_path / "plain"))
    root = make_para(tmp_path / "votes", voted=VOTED)
    usual = load_dataset("para", root)  # scores, with nothing read from that csv
    for split in ("train", "val"):
        assert usual[split].labels_sha256 == plain[split].labels_sha256 and not usual[split].with_votes.any()
        assert usual[split].scale.kind == "score"
    sets = load_dataset("para", root, options=DataOptions(target="distribution"))
    train, val, test = sets.values()
    assert train.scale.bins == PARA_BINS and test.with_votes.all()
    assert train.ids == usual["train"].ids and (train.scores == usual["train"].scores).all()
    known = [i for rated in (train, val) for i in rated.take(rated.with_votes).ids]
    assert sorted(known) == sorted(f"session0/p{i}_.jpg" for i in VOTED)
    for sample in train:
        share, voted = sample.score - 1, sample.id.startswith("session0")
        expected = [1 - share, 0, share, *[0] * 6] if voted else [np.nan] * 9
        assert sample.distribution.tolist() == pytest.approx(expected, nan_ok=True)
    few = train.take(~train.with_votes)
    assert few.distributions.shape == (len(few), 9) and not few.with_votes.any()
    assert "official PARA-GiaaTrain.csv with the votes in PARA-GiaaTrain-distributions.csv" in train.protocol
    assert f", votes of {train.with_votes.sum()}, 8 emotions" in describe(train)
    assert "votes of" not in describe(test)
    assert train.labels_sha256 != usual["train"].labels_sha256


def test_votes_in_the_training_csv_itself_come_first(tmp_path):
    root = make_para(tmp_path, bins=True)
    (root / "annotation" / PARA_TRAINING_VOTES).write_text("nonsense")
    assert load_dataset("para", root, options=DataOptions(target="distribution"))["train"].with_votes.all()


FIRST = "p0_.jpg,session0,100,0,0"  # its row of votes
WRONG_VOTES = [
    ("p0_.jpg", "p60_.jpg", "row 2: 'imageName' is 'p60_.jpg', expected no picture of PARA-GiaaTest.csv"),
    ("p0_.jpg", "p99_.jpg", "row 2: 'imageName' is 'p99_.jpg', expected a picture of PARA-GiaaTrain.csv"),
    ("session0", "session1", "row 2: 'imageName' is 'p0_.jpg', expected a picture of PARA-Gi"),
    ("p0_.jpg", "p2_.jpg", "row 3: 'imageName' is 'p2_.jpg', expected each picture once"),
    ("100,0,0", "99,1,0", "row 2: the votes of session0/p0_.jpg have the mean 1.0050, and its mean in"),
    ("100,0,0", "0,0,0", "row 2: 'aestheticScore_1.0' is '0', expected 1 to 100 votes in"),
    ("100,0,0", "9.5,0,0", "row 2: 'aestheticScore_1.0' is '9.5', expected a whole number from 0 to 100"),
    ("aestheticScore_1.5", "x", "PARA-GiaaTrain-distributions.csv has no column 'aestheticScore_1.5'"),
]


def test_votes_of_other_pictures_or_with_another_mean_are_refused(tmp_path):
    path = make_para(tmp_path, voted=VOTED) / "annotation" / PARA_TRAINING_VOTES
    correct = path.read_text()
    for old, new, words in WRONG_VOTES:
        assert FIRST in correct and old in correct
        path.write_text(correct.replace(old, new, 1))
        refused(words, "para", tmp_path, ("train",), target="distribution")
    path.write_text(correct.replace("100,0,0", "1,0,0", 1))  # of one person, with the same mean
    load_dataset("para", tmp_path, ("train",), DataOptions(target="distribution"))


# ---- AVA


def make_ava_csv(root, split, ids, ending=".jpg"):
    header = ["image_id", *(f"score{k}" for k in range(2, 12)), "tag1", "tag2", "challenge_id", "MOS"]
    rows = [[f"{i}{ending}", *([1] + [0] * 8 + [3]), 1, 2, 3, 7.75] for i in ids]
    small.write_table(root / f"{split}.csv", [header, *rows])


def test_ava_text_votes_and_official_test_list(tmp_path):
    train, val, test = load_dataset("ava", make_ava(tmp_path)).values()
    assert test.ids == ["954184", "953349"] and len(train) + len(val) == len(AVA_ROWS) - 2
    votes = np.array([0, 0, 4, 8, 41, 56, 10, 3, 4, 0])
    assert test.distributions[0] == pytest.approx(votes / 126)
    assert test.scores[0] == (votes * np.arange(1, 11)).sum() / 126
    assert test.scores[1] == 5 and not test.high()[1]  # exactly 5 is not above 5
    assert test.scale == Scale("distribution", 1, 10, 5, bins=tuple(map(float, range(1, 11))))
    assert test.protocol == "official test list"
    assert test.left_out == [LeftOut("404", "in generic_test.jpgl but not rated in AVA.txt")]
    (tmp_path / "aesthetics_image_lists" / "generic_test.jpgl").unlink()
    refused("official test split", "ava", tmp_path, error=FileNotFoundError)


@pytest.mark.parametrize(("folder", "ending"), [("", ""), ("splits", ".jpg")])
def test_ava_csv_counts_from_score2_and_ids_may_lack_the_ending(tmp_path, folder, ending):
    refused("neither AVA.txt nor train.csv", "ava", tmp_path, error=FileNotFoundError)
    small.write_noise(tmp_path / "image", [f"{i}.jpg" for i in range(1, 64)])
    for split, ids in (("train", range(1, 60)), ("test", range(60, 64))):
        make_ava_csv(tmp_path / folder, split, ids, ending)
    sets = load_dataset("ava", tmp_path)
    assert len(sets["train"]) + len(sets["val"]) == 59 and "5 % of train.csv" in sets["val"].protocol
    make_ava_csv(tmp_path / folder, "train", range(1, 58), ending)
    make_ava_csv(tmp_path / folder, "val", range(58, 60), ending)
    train, val, test = load_dataset("ava", tmp_path).values()
    assert (len(train), val.ids, len(test)) == (57, ["58", "59"], 4)
    assert val.scores.tolist() == [(1 + 3 * 10) / 4] * 2
    assert val.paths[0] == str(tmp_path / "image" / "58.jpg")


# ---- IAE


def test_iae_classes_are_labels_and_emotions_go_by_name(tmp_path):
    val = load_dataset("iae", make_iae(tmp_path))["val"]
    assert val.ids == ["4", "5", "6", "7"] and val.scores.tolist() == [0, 1, 1, 0]
    assert val.scale == Scale("label", 0, 1, 0.5) and val.high().tolist() == [False, True, True, False]
    named = [val.emotion_classes[k] for k in val.emotions.argmax(1)]
    assert named == ["contentment", "sadness", "awe", "amusement"]
    words = "data.target=score needs scores or vote counts and the train split of iae"
    refused(words, "iae", tmp_path, target="score")
    (tmp_path / "test_aes_list.txt").unlink()  # which the task emotion does not need
    test = load_dataset("iae", tmp_path, ("test",))["test"]
    assert np.isnan(test.scores).all() and test.ids == ["11", "10", "9", "8"]
    assert test.emotion_classes[test.emotions[0].argmax()] == "amusement"


def test_iae_mean_scores_are_high_from_five_on(tmp_path):
    root = make_iae(tmp_path, labels=(4.9, 5.0, 7.3, 1.0))
    val = load_dataset("iae", root)["val"]
    assert val.scale == Scale("label", 1, 10, 5, inclusive=True)
    assert val.high().tolist() == [False, True, True, False] and val.scores[2] == 7.3
    scored = load_dataset("iae", root, options=DataOptions(target="score"))["val"]
    assert scored.scale == Scale("score", 1, 10, 5, inclusive=True, offset=1, factor=9)


def test_iae_ratings_of_h5_need_h5py(tmp_path, monkeypatch):
    (make_iae(tmp_path) / "scores.h5").touch()
    monkeypatch.setattr(iae.importlib.util, "find_spec", lambda name: None)
    val = load_dataset("iae", tmp_path)["val"]
    assert "scores.h5 not read (it needs h5py)" in val.protocol and val.scores.tolist() == [0, 1, 1, 0]


# ---- FI


@pytest.mark.parametrize("layout", ["{emotion}/{i}.jpg", "{emotion}{i}.png", "{emotion} ({i}).JPG"])
def test_fi_is_a_folder_a_class_or_a_name_a_class(tmp_path, layout):
    root = make_fi(tmp_path, layout, count=3)
    small.write_noise(root, [".hidden/1.jpg"])
    (root / "notes.txt").touch()
    sets = load_dataset("fi", root)
    assert sum(map(len, sets.values())) == 24 and sets["train"].emotion_classes == EMOTIONS
    for rated in sets.values():
        for sample in rated:
            assert EMOTIONS[sample.emotion.argmax()] in sample.id and sample.emotion.sum() == 1
        assert np.isnan(rated.scores).all() and rated.distributions is None
        assert rated.scale == EMOTIONS_ONLY


def test_fi_counts_what_class_folders_hold_beside_pictures(tmp_path):
    root = make_fi(tmp_path / "set", count=3)
    for name in ("awe/1.mov", "awe/notes.txt", "sadness/2.jfif", "list.txt"):
        (root / name).write_bytes((root / "awe/1.jpg").read_bytes())
    sets = load_dataset("fi", root).values()
    left_out = sorted(row for rated in sets for row in rated.left_out)
    assert left_out == [(f"awe/{name}", "no picture, by its ending") for name in ("1.mov", "notes.txt")]
    assert "sadness/2.jfif" in {i for rated in sets for i in rated.ids}


def test_fi_is_split_80_5_15_by_the_hash_of_the_id(tmp_path):
    sets = load_dataset("fi", make_fi(tmp_path / "set", "{emotion}{i}.jpg", count=9))
    ids = [i for rated in sets.values() for i in rated.ids]
    assert len(ids) == 72 and set(sets["test"].ids) == {i for i in ids if fraction(i) < 0.15}
    assert set(sets["val"].ids) == {i for i in ids if 0.15 <= fraction(i) < 0.2}
    assert [rated.protocol for rated in sets.values()] == [
        "folder set (emotions by name) without 15 % and 5 %, by hash of the id",
        "5 % of folder set (emotions by name), by hash of the id",
        "15 % of folder set (emotions by name), by hash of the id",
    ]


def test_fi_may_have_splits_of_its_own(tmp_path):
    for start, split in ((0, "Train"), (10, "test")):
        make_fi(tmp_path, f"{split}/{{emotion}}/{{i}}.jpg", count=3, start=start)
    train, val, test = load_dataset("fi", tmp_path).values()
    assert len(test) == 24 and all(i.startswith("test/") for i in test.ids)
    assert len(train) + len(val) == 24 and "5 % of" in val.protocol
    make_fi(tmp_path, "valid/{emotion}/{i}.jpg", count=1, start=20)
    assert [len(rated) for rated in load_dataset("fi", tmp_path).values()] == [24, 8, 24]
    (tmp_path / "test").rename(tmp_path / "later")
    refused("the test split of fi is empty", "fi", tmp_path)
    assert len(load_dataset("fi", tmp_path, ("val",))["val"]) == 8


def test_fi_needs_two_classes_and_names_pictures_of_an_unknown_emotion(tmp_path):
    refused("should hold a folder per emotion (amusement, awe,", "fi", tmp_path)
    make_fi(tmp_path, emotions=["awe"])
    refused("of two emotions or more; it has awe.", "fi", tmp_path)
    make_fi(tmp_path, count=1)
    for name in ("joy/1.jpg", "Joy_1.PNG"):
        small.write_noise(tmp_path, [name])
        words = f"{tmp_path / name}: 'joy' is not an emotion of this set, which are amusement, awe,"
        refused(words, "fi", tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names must be UTF-8 here")
def test_fi_names_that_are_no_utf8_are_written_as_text(tmp_path):
    (make_fi(tmp_path) / "awe" / "1.jpg").rename(tmp_path / "awe" / "\udcff.jpg")
    [rated] = [each for each in load_dataset("fi", tmp_path).values() if "awe/\\xff.jpg" in each.ids]
    assert decode(rated.paths[rated.ids.index("awe/\\xff.jpg")]).shape == (6, 8, 3)
    assert len(rated.sha256) == 64 and len(rated.id_hashes) == len(rated)


# ---- EmoSet and the demo set


def test_emoset_labels_go_by_name(tmp_path):
    sets = load_dataset("EmoSet", make_emoset(tmp_path))
    assert [len(rated) for rated in sets.values()] == [16, 8, 8]
    for rated in sets.values():
        assert rated.emotion_classes == EMOTIONS and rated.scale == EMOTIONS_ONLY
        assert np.isnan(rated.scores).all()
        assert [EMOTIONS[k] for k in rated.emotions.argmax(1)] == [i.split("_")[0] for i in rated.ids]
    assert sets["test"].paths[0] == str(tmp_path / "image/amusement/amusement_24.jpg")
    assert sets["test"].protocol == "official test.json"


def test_emoset_reads_the_files_it_needs_and_either_form_of_entry(tmp_path):
    refused("there is no file", "emoset", tmp_path, error=FileNotFoundError)
    whole = load_dataset("emoset", make_emoset(tmp_path), ("test",))["test"]
    (tmp_path / "val.json").unlink()
    small.write_json(tmp_path / "test.json", [[e[0], *e[2:]] for e in small.emoset_entries(24)])
    short = load_dataset("emoset", tmp_path, ("test",))["test"]
    assert short.sha256 == whole.sha256 and short.paths == whole.paths
    (tmp_path / "train.json").unlink()
    refused("train.json does not exist", "emoset", tmp_path, ("val",), error=FileNotFoundError)


def test_emoset_text_that_is_no_letter_is_left_out_with_its_reason(tmp_path):
    entries = small.emoset_entries(24)
    entries[1][1:3] = "half\ud800", "image/\ud800.jpg"
    small.write_json(make_emoset(tmp_path) / "test.json", entries)
    write_left_out(tmp_path / "left.csv", load_dataset("emoset", tmp_path, ("test",))["test"])
    expected = {"id": "half\\ud800", "reason": "no picture file image/\\ud800.jpg"}
    assert small.read_csv(tmp_path / "left.csv") == [expected]


def test_the_demo_is_made_when_it_is_not_there(tmp_path, monkeypatch):
    def write(root):
        header = ["image", "split", "emotion", *(f"score{k}" for k in range(1, 11))]
        rows = [[f"{split}.png", split, "anger", *[0] * 4, 2, 2, *[0] * 4] for split in SPLITS]
        small.write_table(root / "labels.csv", [header, *rows])
        small.write_noise(root / "images", [row[0] for row in rows])

    monkeypatch.setattr(demo, "write_data_set", write)
    sets = load_dataset("demo", tmp_path / "new")
    assert [rated.ids for rated in sets.values()] == [["train.png"], ["val.png"], ["test.png"]]
    test = sets["test"]
    assert test.scores.tolist() == [5.5] and test.scale.bins == tuple(map(float, range(1, 11)))
    assert test.emotion_classes[test.emotions[0].argmax()] == "anger"


# What stands in the correct file, what stands there now, and what is said about it.
CHANGES = {
    "para": ("annotation/PARA-GiaaTest.csv", [
        ("session1,1.61", "session1,5.5", "row 3: 'aestheticScore_mean' is '5.5', expected a number"),
        ("1.61,3", "1.61,-1", "row 3: 'imgEmotion_neutral' is '-1', expected a whole number from 0 to 100"),
        ("p61_.jpg", "p60_.jpg", "row 3: 'imageName' is 'p60_.jpg', expected each picture once"),
        ("p61_.jpg,session1", "p61_.jpg,", "row 3: 'sessionId' is empty, expected a text"),
        ("Score_mean", "", "For your own columns use --dataset csv data.score_column=NAME."),
    ]),
    "ava": ("AVA.txt", [
        ("8 41 56", "8 4156 56", "row 1: 'votes_5' is '4156', expected a whole number from 0 to 1000"),
        ("8 41 56", "8 900 900", "row 1: 'votes_1' is '0', expected 1 to 1000 votes in votes_1 to votes_10"),
        ("8 41 56", "8 4156", "row 1 has 14 cells, expected 15"),  # joined with the next
    ]),
    "iae": ("test_emo_list.txt", [
        ("11 0", "99 0", "2 are in one of them only, first '11'"),
        ("10 2", "10 8", "test_emo_list.txt row 2: 'label' is '8', expected one of 0, 1"),
    ]),
    "emoset": ("test.json", [
        ('["awe", "awe_25", "image/awe/awe_25.jpg", ', '["awe", ', "test.json entry 2 is ["),
        ('"awe", "awe_25"', '"joy", "awe_25"', "expected a label of info.json (amusement, "),
        ("image/awe/awe_25", "image/amusement/amusement_24", "expected each picture once"),
        ("[", "", "test.json is not readable JSON"),
    ]),
    "emoset info": ("info.json", [
        ("label2idx", "labels", "info.json should name its classes in 'label2idx'"),
        ('"awe"', '"joy"', "info.json: label2idx: 'joy' should be, once, one of amusement, "),
        ('"awe"', '"sad"', "label2idx: 'sadness' should be, once, one of"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_damaged_labels_are_named_by_file_row_and_column(tmp_path, case):
    name, (file, changes) = case.split()[0], CHANGES[case]
    MAKERS[name](tmp_path)
    correct = (tmp_path / file).read_text()
    for old, new, words in changes:
        assert old in correct
        (tmp_path / file).write_text(correct.replace(old, new, 1))
        refused(words, name, tmp_path)
