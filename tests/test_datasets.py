"""Sets, splits, orders and loaders, on files small enough to be made here."""

import csv
import hashlib
import io
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import (
    Draw,
    PictureSet,
    SetReader,
    TestOrder,
    TrainOrder,
    check_classes,
    coin,
    first_by_hash,
    load_dataset,
    load_datasets,
    make_loader,
    unite,
)
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers import demo, iae, splitting
from eamb.readers.decoding import DecodeError, decode
from eamb.readers.iae import IAE_EMOTIONS
from eamb.readers.own_csv import round_outwards
from eamb.readers.para import PARA_BINS, PARA_EMOTIONS
from eamb.readers.rated import SPLITS, DataOptions, LeftOut, RatedSet, describe, emotion_name, write_left_out
from eamb.readers.splitting import fold_split, hash_split, identical_files

# ---- making sets ----------------------------------------------------------------------------------


def write_pictures(folder, names):
    """A different picture for each name, so that no two are twins by accident."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def edit_cell(path, line, column, value):
    """Sets a cell; `line` as an editor counts, the header is 1."""
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    rows[line - 1][rows[0].index(column)] = value
    write_table(path, rows[0], rows[1:])


def make_para(root, train=60, test=5, bins=False, emotions=True):
    """PARA with `train` + `test` pictures in two sessions; scores 1 + i/100."""
    header = ["imageName", "sessionId", "aestheticScore_mean"]
    header += [f"aestheticScore_{rating:.1f}" for rating in PARA_BINS] * bins
    header += [f"imgEmotion_{emotion}" for emotion in PARA_EMOTIONS] * emotions
    rows = [
        [f"p{i}_.jpg", f"session{i % 2}", f"{1 + i / 100:.2f}"]
        + [i % 3, 0, 0, 1, 2, 0, 0, 0, 0] * bins
        + [3, 0, 0, 0, 1, 0, 0, i % 2] * emotions
        for i in range(train + test)
    ]
    write_table(root / "annotation" / "PARA-GiaaTrain.csv", header, rows[:train])
    write_table(root / "annotation" / "PARA-GiaaTest.csv", header, rows[train:])
    write_pictures(root / "imgs", [f"{session}/{name}" for name, session, *_ in rows])
    return root


AVA_ROWS = [
    "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396",
    "2 953958 10 7 15 26 26 21 10 8 1 2 1 21 1396",
    "3 954184 0 0 4 8 41 56 10 3 4 0 0 0 1396",
    "4 953349 0 0 0 0 5 0 0 0 0 0 0 0 1396",
    *(f"{row} {row} 1 1 1 1 1 1 1 1 1 1 0 0 7" for row in range(5, 60)),
]


def make_ava(root):
    (root / "aesthetics_image_lists").mkdir()
    (root / "AVA.txt").write_text("\n".join(AVA_ROWS) + "\n")
    (root / "aesthetics_image_lists" / "generic_test.jpgl").write_text("954184\n953349\n404\n")
    write_pictures(root / "images", [f"{row.split()[1]}.jpg" for row in AVA_ROWS])
    return root


def make_ava_csv(root, split, ids, ending=".jpg"):
    header = ["image_id", *(f"score{k}" for k in range(2, 12)), "tag1", "tag2", "challenge_id", "MOS"]
    rows = [[f"{i}{ending}", *([1] + [0] * 8 + [3]), 1, 2, 3, 7.75] for i in ids]
    write_table(root / f"{split}.csv", header, rows)


def make_iae(root, labels=(0, 1, 1, 0), emotions=(3, 7, 2, 0)):
    for k, split in enumerate(SPLITS):
        for kind, values in (("aes", labels), ("emo", emotions)):
            if values is not None:
                lines = [f"{i} {value}\n" for i, value in enumerate(values, 4 * k)]
                # The two lists of a split need not have the same order.
                (root / f"{split}_{kind}_list.txt").write_text("".join(lines[:: 1 if kind == "aes" else -1]))
    write_pictures(root / "images", [f"{i}.jpg" for i in range(12)])
    return root


def make_fi(root, name="{emotion}/{i}.jpg", count=5, emotions=EMOTIONS, start=0):
    """`count` pictures of each emotion, all different; `name` says where they lie."""
    numbers = range(start, start + count)
    write_pictures(root, [name.format(emotion=emotion, i=i) for emotion in emotions for i in numbers])
    return root


def emoset_entries(start, count=8):
    """[label, id, picture, annotation], the emotions in turn."""
    pairs = [(i, EMOTIONS[i % 8]) for i in range(start, start + count)]
    return [[e, f"{e}_{i}", f"image/{e}/{e}_{i}.jpg", f"annotation/{e}_{i}.json"] for i, e in pairs]


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def make_emoset(root):
    """16 train, 8 val and 8 test pictures; the codes are not in the order of EMOTIONS."""
    files = {"info": {"label2idx": {label: code for code, label in enumerate(EMOTIONS[::-1])}}}
    files |= {"train": emoset_entries(0, 16), "val": emoset_entries(16), "test": emoset_entries(24)}
    for name, content in files.items():
        write_json(root / f"{name}.json", content)
    write_pictures(root, [entry[2] for split in SPLITS for entry in files[split]])
    return root


def make_csv(root, header=("path", "score"), rows=None, name="ratings.csv", count=40):
    if rows is None:
        rows = [[f"pics/{i}.png", 1.2 + 3.6 * i / (count - 1)] for i in range(count)]
    write_table(root / name, header, rows)
    write_pictures(root, [row[list(header).index("path")] for row in rows])
    return root


def rated_set(tmp_path, count=13, distributions=False, emotions=False):
    names = [f"{i}.png" for i in range(count)]
    write_pictures(tmp_path, names)
    return RatedSet(
        name="csv",
        split="train",
        protocol="made here",
        ids=names,
        paths=[str(tmp_path / name) for name in names],
        scores=np.linspace(1, 5, count),
        scale=Scale("score", 1, 5, 3, offset=1, factor=4),
        distributions=np.full((count, 4), 0.25) if distributions else None,
        bins=(1.0, 2.0, 3.0, 4.0) if distributions else (),
        emotions=np.full((count, 2), 0.5) if emotions else None,
        emotion_classes=("awe", "fear") if emotions else (),
    )


def names(count):
    return [f"session{i % 7}/picture{i}.jpg" for i in range(count)]


def fraction(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def refused(words, *arguments, error=ValueError, load=load_dataset, **options):
    """Loading must raise one sentence that begins with the area and has these words."""
    options = {"options": DataOptions(**options)} if options else {}
    with pytest.raises(error) as caught:
        load(*arguments, **options)
    text = str(caught.value)
    assert text.startswith("datasets: ") and "\n" not in text
    assert words in text


# ---- each file is read once, each folder listed once ------------------------------------------------


def para_with_twins(root):
    make_para(root)
    (root / "annotation" / "identical_images.txt").write_text("p1_.jpg p60_.jpg\n")
    return root


def csv_by_split(root):
    for number, split in enumerate(SPLITS):
        rows = [[f"{number}{i}.png", i, EMOTIONS[i]] for i in range(6)]
        make_csv(root, ["path", "score", "emotion"], rows, f"{split}.csv")


READ = {
    "para": (para_with_twins, 3),
    "CSV": (csv_by_split, 3),
    "csv": (make_csv, 1),
    "ava": (make_ava, 2),
    "iae": (make_iae, 6),
    "emoset": (make_emoset, 4),
}


@pytest.mark.parametrize("name", READ)
def test_each_file_of_labels_is_opened_once(tmp_path, monkeypatch, name):
    make, files = READ[name]
    make(tmp_path)
    counts, whole = Counter(), io.open

    def count(path, *arguments, **keywords):
        counts[Path(path).name] += Path(path).suffix in (".csv", ".txt", ".jpgl", ".json")
        return whole(path, *arguments, **keywords)

    monkeypatch.setattr(io, "open", count)  # pathlib's; tables and JSON are read by it
    reader = SetReader(name, tmp_path, DataOptions(twins=False))
    for splits in (("test",), ("train", "val"), SPLITS):
        assert [*reader.load(splits)] == [*splits]
    reader.twins_in_training()
    opened = [n for n in counts.values() if n]
    assert opened == [1] * files


# ---- RatedSet --------------------------------------------------------------------------------------


def test_hashes_are_of_the_ids_alone_whatever_their_order(tmp_path):
    rated = rated_set(tmp_path, 12)
    expected = hashlib.sha256("".join(f"{i}\n" for i in sorted(rated.ids)).encode()).hexdigest()
    assert rated.sha256 == expected == rated.take(np.random.default_rng(0).permutation(12)).sha256
    assert rated.sha256 != rated.take(range(11)).sha256
    digests = [hashlib.sha256(f"csv:{i}".encode()).digest()[:8] for i in rated.ids]
    assert rated.id_hashes.dtype == np.int64
    assert rated.id_hashes.tolist() == sorted(int.from_bytes(d, "big", signed=True) for d in digests)


@pytest.mark.parametrize("column", ["scores", "distributions", "emotions"])
def test_the_hash_of_ratings_depends_on_each_and_not_on_the_order(tmp_path, column):
    rated = rated_set(tmp_path, distributions=True, emotions=True)
    assert rated.take(np.random.default_rng(0).permutation(13)).labels_sha256 == rated.labels_sha256
    values = getattr(rated, column).copy()
    values[3] *= 1 + 1e-15
    assert replace(rated, **{column: values}).labels_sha256 == rated.labels_sha256
    values[3] = np.nan
    assert replace(rated, **{column: values}).labels_sha256 != rated.labels_sha256


def test_take_keeps_the_columns_together(tmp_path):
    rated = rated_set(tmp_path, 10, emotions=True)
    some = rated.take([7, 2])
    assert some.ids == ["7.png", "2.png"] and some[0].path == rated.paths[7]
    assert some.scores.tolist() == rated.scores[[7, 2]].tolist() and some.emotions.shape == (2, 2)
    assert rated.take(rated.scores > 3).ids == [f"{i}.png" for i in range(5, 10)]


def test_each_emotion_has_one_name():
    words = "sad|sadness, Angry |anger,AWED|awe,content|contentment,scared|fear,Excited|excitement"
    words += ",Neutral|neutral,happy|happy,mixed - feelings|mixed_feelings"
    words += "".join(f",{name}|{name}" for name in (*EMOTIONS, *PARA_EMOTIONS, *IAE_EMOTIONS))
    for text, _, name in (word.partition("|") for word in words.split(",")):
        assert emotion_name(text) == name == emotion_name(name)


def test_a_class_without_a_vote_is_named(tmp_path):
    votes = np.array([[1, 0], [np.nan, np.nan], [1, np.nan], [1, 0]])
    rated = replace(rated_set(tmp_path, 4, emotions=True), emotions=votes)
    refused("the train split of csv has no picture of fear, an empty class. Add", rated, load=check_classes)
    votes[1] = [np.nan, 0.1]
    check_classes(rated)


def test_first_by_hash_is_the_same_whatever_the_order(tmp_path):
    rated = rated_set(tmp_path, 13)
    assert set(first_by_hash(rated, 4).ids) == set(sorted(rated.ids, key=fraction)[:4])
    assert first_by_hash(rated.take(range(12, -1, -1)), 4).sha256 == first_by_hash(rated, 4).sha256
    assert first_by_hash(rated, 4).protocol == "made here, 4 of it by hash of the id"
    assert first_by_hash(rated, 13) is rated


# ---- splitting by hash -----------------------------------------------------------------------------


@given(st.permutations(names(60)), st.integers(10, 60))
@settings(max_examples=15, deadline=None)
def test_the_side_of_a_picture_depends_on_its_id_alone(order, count):
    side = dict(zip(names(60), hash_split(names(60), {"test": 0.2, "val": 0.2}), strict=True))
    shuffled = dict(zip(order[:count], hash_split(order[:count], {"test": 0.2, "val": 0.2}), strict=True))
    # With few pictures a split that would be empty takes one more; all others stay where they are.
    moved = [i for i in shuffled if shuffled[i] != side[i]]
    assert len(moved) <= sum(split not in {side[i] for i in shuffled} for split in ("test", "val"))
    assert {"test", "val", "train"} == set(shuffled.values())


def test_shares_are_met_in_the_long_run_and_known_ids_never_move():
    split = hash_split(names(20_000), {"test": 0.1, "val": 0.05})
    assert (split == "test").mean() == pytest.approx(0.10, abs=0.01)
    assert (split == "val").mean() == pytest.approx(0.05, abs=0.006)
    # By hand from sha256sum: no later version may split PARA or AVA in another way.
    of_val = [i for i, name in enumerate(names(60)) if 0.1 <= fraction(name) < 0.15]
    assert np.flatnonzero(split[:60] == "val").tolist() == of_val == [26, 54]


def test_twins_go_where_the_smallest_id_goes():
    ids = names(2000)
    alone = hash_split(ids, {"val": 0.05})
    groups = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(600)]
    together = hash_split(ids, {"val": 0.05}, groups)
    for group in groups:
        assert set(together[group]) == {alone[min(group, key=lambda i: ids[i])]}
    assert (together[1800:] == alone[1800:]).all()
    # One placeholder for all pictures does not make them one.
    assert (hash_split(ids, {"val": 0.05}, [range(2000)]) == alone).all()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=25), st.data())
@settings(max_examples=15, deadline=None)
def test_identical_files_are_found_as_comparing_everything_finds_them(tmp_path_factory, kinds, data):
    folder = tmp_path_factory.mktemp("twins")
    # Kinds of equal size, with equal heads and middles: only the whole tells some of them apart.
    contents = [b"a" * 9000, b"b" + b"a" * 8999, b"a" * 8999 + b"b", b"a" * 100, b"", b"c" * 100, b"a" * 9001]
    paths = [folder / str(i) for i in range(len(kinds))]
    for path, kind in zip(paths, kinds, strict=True):
        path.write_bytes(contents[kind])
    suspects = np.array(data.draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds))))
    groups = [[i for i, each in enumerate(kinds) if each == kind] for kind in set(kinds) if contents[kind]]
    expected = [group for group in groups if len(group) > 1 and suspects[group].any()]
    assert sorted(identical_files([str(path) for path in paths], suspects)) == sorted(expected)


def test_a_file_that_cannot_be_read_has_no_twin(tmp_path):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_bytes(b"x" * 9000)
    Path(paths[1]).chmod(0)
    with small.bound_by_permissions():
        assert identical_files(paths, np.ones(3, dtype=bool)) == [[0, 2]]


# ---- PARA ------------------------------------------------------------------------------------------


def test_para_columns_become_scores_and_emotion_votes(tmp_path):
    train, val, test = load_dataset("PARA", make_para(tmp_path)).values()
    assert len(train) + len(val) == 60 and len(test) == 5 and not set(train.ids) & set(val.ids)
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
    words = (
        "the train split of para (official PARA-GiaaTrain.csv without 5 %, by hash of the id) has none; use"
    )
    refused(words, "para", root, target="distribution")
    sets = load_dataset(
        "para", make_para(tmp_path / "bins", bins=True), options=DataOptions(target="distribution")
    )
    assert sets["train"].scale.bins == PARA_BINS
    assert sets["test"].distributions[1].tolist() == pytest.approx([1 / 4, 0, 0, 1 / 4, 1 / 2, 0, 0, 0, 0])


@pytest.mark.parametrize("listed", [False, True])
def test_para_twins_stay_on_one_side(tmp_path, listed):
    root = make_para(tmp_path, train=60)
    alone = load_dataset("para", root, ("train", "val"))
    in_val, trained = alone["val"].ids[0], min(alone["train"].ids)
    if listed:
        pair = " ".join(i.split("/")[1] for i in (in_val, trained))
        (root / "annotation" / "identical_images.txt").write_text(f"{pair}\nabsent.jpg p60_.jpg\n")
    else:
        (root / "imgs" / in_val).write_bytes((root / "imgs" / trained).read_bytes())
    # The smaller id was in training, so its twin leaves validation.
    assert {in_val, trained} <= set(load_dataset("para", root, ("train", "val"))["train"].ids)
    apart = load_dataset("para", root, ("train", "val"), DataOptions(twins=False))
    assert apart["val"].sha256 == alone["val"].sha256


@pytest.mark.parametrize("listed", [False, True])
def test_test_pictures_with_an_identical_one_in_training_are_found(tmp_path, monkeypatch, listed):
    root = make_para(tmp_path, train=60, test=6)
    # 61 and 62 are both tested, 6 and 7 both trained on.
    groups = [(60, 3), (61, 62), (65, 4, 5), (6, 7)]
    for first, *others in groups:
        content = (root / f"imgs/session{first % 2}/p{first}_.jpg").read_bytes()
        for other in others:
            (root / f"imgs/session{other % 2}/p{other}_.jpg").write_bytes(content)
    if listed:  # which is enough, for pictures that are not here too
        lines = [" ".join(f"p{i}_.jpg" for i in group) for group in groups]
        (root / "annotation" / "identical_images.txt").write_text("\n".join(lines))
        (root / "imgs/session1/p3_.jpg").unlink()
        monkeypatch.setattr(splitting, "identical_files", None)
    assert SetReader("PARA", root).twins_in_training() == {"session0/p60_.jpg", "session1/p65_.jpg"}


def test_twins_are_not_looked_for_in_huge_sets_and_that_is_said(tmp_path, monkeypatch):
    root = make_para(tmp_path / "para")
    assert "not looked for" not in load_dataset("para", root, ("val",))["val"].protocol
    monkeypatch.setattr(splitting, "identical_files", None)
    monkeypatch.setattr(splitting, "TWIN_LIMIT", 59)  # it has 65, 60 of them not tested
    assert load_dataset("para", root, ("val",))["val"].protocol == (
        "5 % of official PARA-GiaaTrain.csv, by hash of the id, identical pictures not looked for"
    )
    assert SetReader("para", root).twins_in_training() == set()
    assert SetReader("ava", tmp_path / "not opened").twins_in_training() == set()


# ---- pictures that are not there -------------------------------------------------------------------


@pytest.mark.parametrize("closed", [False, True])
def test_a_link_that_cannot_be_followed_costs_one_picture_and_not_its_folder(tmp_path, closed):
    """A link in a circle, or into a folder that may not be entered."""
    root, folder = make_csv(tmp_path / "set"), tmp_path / "closed"
    folder.mkdir()
    link = root / "pics" / "3.png"
    link.rename(folder / "3.png")
    link.symlink_to(folder / "3.png" if closed else link)
    folder.chmod(0)
    try:
        with small.bound_by_permissions():
            sets = load_dataset("csv", root)
    finally:
        folder.chmod(0o700)
    assert [i for rated in sets.values() for i, _ in rated.left_out] == ["pics/3.png"]
    assert sum(map(len, sets.values())) == 39


def test_a_missing_training_picture_is_listed_once_on_the_side_of_its_hash(tmp_path):
    whole = load_dataset("para", make_para(tmp_path), ("train", "val"))
    gone = {split: [rated.ids[-1]] for split, rated in whole.items()}
    for [name] in gone.values():
        (tmp_path / "imgs" / name).unlink()
    sets = load_dataset("para", tmp_path, ("train", "val"))
    assert {split: [row.id for row in rated.left_out] for split, rated in sets.items()} == gone


def test_wrong_folders_sets_splits_and_options_are_refused(tmp_path):
    root = make_para(tmp_path / "para")
    (root / "imgs").rename(root / "pictures")
    words = f"none of the 5 pictures of para exists, e.g. 'session0/p60_.jpg'; looked in {root / 'imgs'}. Is"
    refused(words, "para", root, ("test",), error=FileNotFoundError)
    refused("there is no folder", "para", root / "nowhere", error=FileNotFoundError)
    refused("no set 'coco'; the sets are ava, para, iae, emoset, fi, csv, demo", "coco", tmp_path)
    refused("got valid", "para", root, ("valid",))
    words = "ratings.csv has no column 'beauty' (found: path, score). data.score_column asks for it."
    refused(words, "csv", make_csv(tmp_path), score_column="beauty")


def test_options_that_cannot_be():
    folds = "data.folds is 2 or more, or 0 for none, and data.fold from 0 to one less; got"
    for words, options in {
        "between 0 and 1, got 1.5": {"validation": 1.5},
        "got 'rank'": {"target": "rank"},
        "got 'auto' and 'wide'": {"score_range": "wide"},
        f"{folds} 1 and 0": {"folds": 1},
        f"{folds} -2 and 0": {"folds": -2},
        f"{folds} 5 and 5": {"folds": 5, "fold": 5},
        f"{folds} 0 and 1": {"fold": 1},
    }.items():
        with pytest.raises(ValueError, match=words):
            DataOptions(**options)


# ---- AVA -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("folder", "ending"), [("", ""), ("splits", ".jpg")])
def test_ava_csv_counts_from_score2_and_ids_may_lack_the_ending(tmp_path, folder, ending):
    for split, ids in (("train", range(1, 40)), ("val", range(40, 44)), ("test", range(44, 50))):
        make_ava_csv(tmp_path / folder, split, ids, ending)
    write_pictures(tmp_path / "image", [f"{i}.jpg" for i in range(1, 50)])
    sets = load_dataset("ava", tmp_path)
    assert [len(s) for s in sets.values()] == [39, 4, 6] and sets["val"].ids == ["40", "41", "42", "43"]
    assert sets["val"].scores.tolist() == [(1 + 3 * 10) / 4] * 4
    assert sets["val"].paths[0] == str(tmp_path / "image" / "40.jpg")


def test_ava_needs_its_files_and_takes_validation_from_training(tmp_path):
    refused("neither AVA.txt nor train.csv", "ava", tmp_path, error=FileNotFoundError)
    (tmp_path / "AVA.txt").write_text("\n".join(AVA_ROWS))
    refused("official test split", "ava", tmp_path, error=FileNotFoundError)
    make_ava_csv(tmp_path, "train", range(1, 60))
    make_ava_csv(tmp_path, "test", range(60, 64))
    write_pictures(tmp_path, [f"{i}.jpg" for i in range(1, 64)])  # flat, beside the tables
    sets = load_dataset("ava", tmp_path)
    assert len(sets["train"]) + len(sets["val"]) == 59 and "5 % of train.csv" in sets["val"].protocol


# ---- IAE -------------------------------------------------------------------------------------------


def test_iae_classes_are_labels_and_emotions_go_by_name(tmp_path):
    val = load_dataset("iae", make_iae(tmp_path))["val"]
    assert val.ids == ["4", "5", "6", "7"] and val.scores.tolist() == [0, 1, 1, 0]
    assert val.scale == Scale("label", 0, 1, 0.5) and val.high().tolist() == [False, True, True, False]
    named = [val.emotion_classes[k] for k in val.emotions.argmax(1)]
    assert named == ["contentment", "sadness", "awe", "amusement"]
    refused(
        "data.target=score needs scores or vote counts and the train split of iae",
        "iae",
        tmp_path,
        target="score",
    )
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


@pytest.mark.parametrize("columns", [10, 11])
def test_iae_ratings_of_h5_give_means_and_distributions(tmp_path, monkeypatch, columns):
    h5py = pytest.importorskip("h5py")
    ratings = np.random.default_rng(0).choice([1, 4, 7, 10], (12, 10))
    with h5py.File(make_iae(tmp_path) / "scores.h5", "w") as file:
        file["ratings_of_volunteers"] = np.column_stack([ratings, ratings.sum(1)])[:, :columns]
    val = load_dataset("iae", tmp_path)["val"]
    assert val.scores.tolist() == ratings[4:8].mean(1).tolist()
    assert val.distributions @ val.bins == pytest.approx(val.scores) and val.bins == (1, 4, 7, 10)
    assert val.high().tolist() == (ratings[4:8].mean(1) >= 5).tolist()
    assert "mean ratings of scores.h5" in val.protocol
    monkeypatch.setattr(iae.importlib.util, "find_spec", lambda name: None)
    val = load_dataset("iae", tmp_path)["val"]
    assert "scores.h5 not read (it needs h5py)" in val.protocol and val.scores.tolist() == [0, 1, 1, 0]


# ---- FI --------------------------------------------------------------------------------------------


FI_LAYOUTS = ["{emotion}/{i}.jpg", "{emotion}{i}.jpg", "{emotion}/{i}.png", "{emotion} ({i}).JPG"]


@pytest.mark.parametrize("layout", FI_LAYOUTS)
def test_fi_is_a_folder_a_class_or_a_name_a_class(tmp_path, layout):
    root = make_fi(tmp_path, layout, count=3)
    for name in (".hidden/1.jpg", "notes/read.me"):
        (root / name).parent.mkdir()
        (root / name).write_bytes(b"")
    sets = load_dataset("fi", root)
    assert sum(map(len, sets.values())) == 24 and sets["train"].emotion_classes == EMOTIONS
    for rated in sets.values():
        for sample in rated:
            assert EMOTIONS[sample.emotion.argmax()] in sample.id and sample.emotion.sum() == 1
            assert Path(sample.path).is_file()
        assert np.isnan(rated.scores).all() and rated.distributions is None
        assert rated.scale == Scale("score", 0, 1, 0.5, offset=0, factor=1)


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
    sets = load_dataset("fi", tmp_path)
    assert len(sets["test"]) == 24 and all(i.startswith("test/") for i in sets["test"].ids)
    assert len(sets["train"]) + len(sets["val"]) == 24 and "5 % of" in sets["val"].protocol
    make_fi(tmp_path, "valid/{emotion}/{i}.jpg", count=1, start=20)
    assert [len(rated) for rated in load_dataset("fi", tmp_path).values()] == [24, 8, 24]
    (tmp_path / "test").rename(tmp_path / "later")
    refused("the test split of fi is empty", "fi", tmp_path)
    assert len(load_dataset("fi", tmp_path, ("val",))["val"]) == 8


@pytest.mark.parametrize("name", ["joy/1.jpg", "joy1.jpg", "Joy_1.PNG"])
def test_fi_pictures_of_an_unknown_emotion_are_named(tmp_path, name):
    write_pictures(make_fi(tmp_path, count=1), [name])
    words = f"{tmp_path / name}: 'joy' is not an emotion of this set, which are amusement, awe,"
    refused(words, "fi", tmp_path)


def test_fi_needs_two_classes(tmp_path):
    refused("should hold a folder per emotion (amusement, awe,", "fi", tmp_path)
    make_fi(tmp_path, emotions=["awe"])
    refused("of two emotions or more; it has awe.", "fi", tmp_path)


def test_fi_a_link_that_leads_in_a_circle_costs_what_it_stands_for(tmp_path):
    root = make_fi(tmp_path)
    link = root / "awe" / "1.jpg"
    link.unlink()
    link.symlink_to(link)
    sets = load_dataset("fi", root).values()
    assert [i for rated in sets for i, _ in rated.left_out] == ["awe/1.jpg"] and sum(map(len, sets)) == 39


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names must be UTF-8 here")
def test_fi_names_that_are_no_utf8_are_written_as_text_and_move_no_other_picture(tmp_path):
    root = make_fi(tmp_path)
    before = {i: split for split, rated in load_dataset("fi", root).items() for i in rated.ids}
    (root / "awe" / "1.jpg").rename(root / "awe" / "\udcff.jpg")
    sets = load_dataset("fi", root)
    after = {i: split for split, rated in sets.items() for i in rated.ids}
    rated = sets[after.pop("awe/\\xff.jpg")]
    assert before.pop("awe/1.jpg") and after == before
    assert decode(rated.paths[rated.ids.index("awe/\\xff.jpg")]).shape == (6, 8, 3)
    assert len(rated.sha256) == 64 and len(rated.id_hashes) == len(rated)


# ---- EmoSet ----------------------------------------------------------------------------------------


def test_emoset_labels_go_by_name(tmp_path):
    sets = load_dataset("EmoSet", make_emoset(tmp_path))
    assert [len(rated) for rated in sets.values()] == [16, 8, 8]
    for rated in sets.values():
        assert rated.emotion_classes == EMOTIONS and np.isnan(rated.scores).all()
        assert [EMOTIONS[k] for k in rated.emotions.argmax(1)] == [i.split("_")[0] for i in rated.ids]
        assert rated.scale == Scale("score", 0, 1, 0.5, offset=0, factor=1)
    assert sets["test"].paths[0] == str(tmp_path / "image/amusement/amusement_24.jpg")
    assert sets["test"].protocol == "official test.json"


def test_emoset_reads_the_files_it_needs_and_either_form_of_entry(tmp_path):
    refused("there is no file", "emoset", tmp_path, error=FileNotFoundError)
    whole = load_dataset("emoset", make_emoset(tmp_path), ("test",))["test"]
    (tmp_path / "val.json").unlink()
    write_json(tmp_path / "train.json", emoset_entries(0, 6))
    write_json(tmp_path / "test.json", [[label, *rest] for label, _, *rest in emoset_entries(24)])
    short = load_dataset("emoset", tmp_path, ("test",))["test"]
    assert short.sha256 == whole.sha256 and short.paths == whole.paths
    (tmp_path / "train.json").unlink()
    refused("train.json does not exist", "emoset", tmp_path, ("val",), error=FileNotFoundError)


def test_emoset_text_that_is_no_letter_is_left_out_with_its_reason(tmp_path):
    entries = emoset_entries(24)
    entries[1][1:3] = "half\ud800", "image/\ud800.jpg"
    write_json(make_emoset(tmp_path) / "test.json", entries)
    rated = load_dataset("emoset", tmp_path, ("test",))["test"]
    assert len(rated) == 7
    write_left_out(tmp_path / "left.csv", rated)
    expected = {"id": "half\\ud800", "reason": "no picture file image/\\ud800.jpg"}
    assert small.read_csv(tmp_path / "left.csv") == [expected]


# ---- folds -----------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.lists(st.integers(0, 3), min_size=30, max_size=60), st.randoms())
@settings(max_examples=15, deadline=None)
def test_folds_part_a_set_and_each_class_evenly(folds, kinds, random):
    ids, kinds = names(len(kinds)), np.array(kinds)
    order = list(range(len(ids)))
    random.shuffle(order)
    tested = np.zeros((len(ids), folds), bool)
    for fold in range(folds):
        split = fold_split(ids, kinds, DataOptions(folds=folds, fold=fold))
        tested[:, fold] = split == "test"
        assert {*split} == {"train", "val", "test"}
        shuffled = fold_split([ids[i] for i in order], kinds[order], DataOptions(folds=folds, fold=fold))
        assert (shuffled == split[order]).all()
    assert (tested.sum(1) == 1).all()
    for rows in (tested, *(tested[kinds == kind] for kind in range(4))):
        assert np.ptp(rows.sum(0)) <= 1


def test_folds_of_fi_are_by_emotion_and_keep_twins(tmp_path):
    root, twins = make_fi(tmp_path, count=6), {"fear/5.jpg", "awe/5.jpg", "anger/0.jpg"}
    for name in twins:
        (root / name).write_bytes((root / "anger/0.jpg").read_bytes())
    tested = []
    for fold in range(3):
        sets = load_dataset("fi", root, options=DataOptions(folds=3, fold=fold))
        tested += sets["test"].ids
        assert sorted(len(twins & set(rated.ids)) for rated in sets.values()) == [0, 0, 3]
        counts = dict(zip(EMOTIONS, sets["test"].emotions.sum(0), strict=True))
        assert {counts[name] for name in set(EMOTIONS) - {"fear", "awe", "anger"}} == {2}
    everything = [i for rated in load_dataset("fi", root).values() for i in rated.ids]
    assert sorted(tested) == sorted(everything) and len(everything) == 48
    where = f"folder {root.name} (emotions by name)"
    assert [rated.protocol for rated in sets.values()] == [
        f"{where} without fold 3 of 3 and 5 % of the rest, by emotion and by hash of the id",
        f"5 % of {where} without fold 3 of 3, by emotion and by hash of the id",
        f"fold 3 of 3 of {where}, by emotion and by hash of the id",
    ]


def test_folds_of_a_csv_of_scores_and_of_a_set_with_splits(tmp_path):
    root = make_csv(tmp_path)
    tests = [load_dataset("csv", root, ("test",), DataOptions(folds=4, fold=k))["test"] for k in range(4)]
    assert sorted(i for test in tests for i in test.ids) == sorted(f"pics/{i}.png" for i in range(40))
    assert [len(test) for test in tests] == [10] * 4
    assert tests[1].protocol == "fold 2 of 4 of ratings.csv (scores in score), by hash of the id"
    words = "para came with splits; data.folds=5 is for sets without them (fi, or a csv"
    refused(words, "para", make_para(tmp_path / "para"), folds=5)


# ---- several sets ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def para_and_fi(tmp_path_factory):
    """The roots of a PARA of 65 pictures and of an FI of 40."""
    return [make_para(tmp_path_factory.mktemp("para")), make_fi(tmp_path_factory.mktemp("fi"))]


@pytest.fixture(scope="module")
def alone(para_and_fi):
    return [load_dataset(name, root) for name, root in zip(("para", "fi"), para_and_fi, strict=True)]


def test_classes_are_united_by_name_and_what_a_set_lacks_is_nan(para_and_fi, alone):
    sets = load_datasets(["PARA", "fi"], para_and_fi)
    assert list(sets) == ["train", "val", "test"]
    for split, rated in sets.items():
        para, fi = (each[split] for each in alone)
        assert rated.name == "para+fi" and rated.emotion_classes == (*EMOTIONS, "neutral")
        assert rated.ids == [*(f"para:{i}" for i in para.ids), *(f"fi:{i}" for i in fi.ids)]
        assert rated.paths == para.paths + fi.paths and len(rated) == len(para) + len(fi)
        of_para, of_fi = np.split(rated.emotions, [len(para)])
        for k, name in enumerate(para.emotion_classes):
            assert (of_para[:, rated.emotion_classes.index(name)] == para.emotions[:, k]).all()
        assert np.isnan(of_para[:, EMOTIONS.index("anger")]).all() and np.isnan(of_fi[:, 8]).all()
        assert (of_fi[:, :8] == fi.emotions).all() and np.isnan(of_para).sum() == len(para)
        assert np.isnan(rated.scores).all() and rated.distributions is None and rated.scale == para.scale
        assert rated.protocol == f"para {len(para)}: {para.protocol}; fi {len(fi)}: {fi.protocol}"
        assert [part.sha256 for part in rated.parts] == [para.sha256, fi.sha256]
        # A picture that was trained on is found again in and out of a union.
        assert rated.id_hashes.tolist() == sorted([*para.id_hashes, *fi.id_hashes])
        some = rated.take(range(len(para)))
        assert some.id_hashes.tolist() == para.id_hashes.tolist() and some.parts == () and some.united


def test_repeated_pictures_count_once_in_every_hash(para_and_fi):
    once = load_datasets(["para", "fi"], para_and_fi)
    sets = load_datasets(["para", "fi"], para_and_fi, options=DataOptions(repeat="1, 3"))
    para, fi = (len(part) for part in once["train"].parts)
    train = sets["train"]
    assert len(train) == len(train.paths) == len(train.emotions) == len(train.scores) == para + 3 * fi
    assert {train.ids.count(i) for i in train.ids if i.startswith("fi:")} == {3}
    for sample, same in zip(train.take(range(para + fi, para + 2 * fi)), once["train"].parts[1], strict=True):
        assert sample.path == same.path and (sample.emotion[:8] == same.emotion).all()
    assert train.sha256 == once["train"].sha256
    assert train.id_hashes.tolist() == once["train"].id_hashes.tolist()
    assert f"; fi {fi} x3: folder" in describe(train) and f"(para {para}: official" in describe(train)
    assert [len(part) for part in train.parts] == [para, fi]
    for split in ("val", "test"):
        assert describe(sets[split]) == describe(once[split])


def test_limit_and_repeats_hold_for_each_set_and_folds_for_those_that_can(para_and_fi):
    options = DataOptions(repeat="2,1", folds=4, fold=1)
    sets = load_datasets(["para", "fi"], para_and_fi, options=options, limit=6)
    assert [len(part) for part in sets["train"].parts] == [6, 6] and len(sets["train"]) == 18
    assert [len(part) for part in sets["test"].parts] == [5, 10]
    assert "fi 10: fold 2 of 4 of folder" in sets["test"].protocol
    assert "para 6 x2: official PARA-GiaaTrain.csv without 5 %" in sets["train"].protocol
    assert sets["train"].protocol.count("6 of it by hash of the id") == 2


def test_folds_of_sets_that_all_have_splits_are_refused_and_left_out_ids_say_their_set(para_and_fi, tmp_path):
    root = make_emoset(tmp_path)
    words = "para and emoset came with splits; data.folds=3 is for sets without them"
    refused(words, ["para", "emoset"], [para_and_fi[0], root], load=load_datasets, folds=3)
    (root / "image/awe/awe_25.jpg").unlink()
    test = load_datasets(["fi", "emoset"], [para_and_fi[1], root], ("test",))["test"]
    assert re.fullmatch(r"fi\+emoset test: \d+ pictures \(.*\), 8 emotions, 1 left out, .*", describe(test))
    assert [row.id for row in test.left_out] == ["emoset:awe_25"]


UNITED = "in the same order, and no set twice; got"
REPEAT = "data.repeat is a whole number from 1 on for each of several sets, as 1,10; got"


@pytest.mark.parametrize(
    ("names", "count", "repeat", "words"),
    [
        (["para", "fi"], 1, "", f"{UNITED} 2 of --dataset (para, fi) and 1 of --data-root"),
        ([], 0, "", f"{UNITED} 0 of --dataset"),
        (["fi", "FI"], 2, "", f"{UNITED} 2 of --dataset (fi, fi)"),
        (["para", "fi"], 2, "10", f"{REPEAT} '10' for 2 (para, fi)"),
        (["para"], 1, "10", f"{REPEAT} '10' for 1 (para)"),
        (["para", "fi"], 2, "1,0", f"{REPEAT} '1,0'"),
        (["para", "coco"], 2, "", "there is no set 'coco'"),
    ],
)
def test_sets_that_cannot_be_united(para_and_fi, names, count, repeat, words):
    refused(words, names, para_and_fi[:count], load=load_datasets, repeat=repeat)
    # Without training pictures nothing is repeated.
    load_datasets(["fi"], para_and_fi[1:], ("test",), DataOptions(repeat=repeat))


def test_only_emotions_are_united_and_other_classes_follow_the_common_ones(tmp_path):
    rated = rated_set(tmp_path, 3, emotions=True)
    one, two = (replace(rated, emotion_classes=each) for each in (("tender", "fear"), ("bored", "awe")))
    assert unite([one, two]).emotion_classes == ("awe", "fear", "tender", "bored")
    words = "the train split of csv has no emotions; sets are united for their emotions only"
    refused(words, [one, rated_set(tmp_path)], load=unite)


# ---- csv -------------------------------------------------------------------------------------------


def test_csv_just_works_with_a_path_and_a_score(tmp_path):
    sets = load_dataset("csv", make_csv(tmp_path))
    assert sum(map(len, sets.values())) == 40 and all(len(s) for s in sets.values())
    assert sets["train"].scale == Scale("score", 1, 5, 3, offset=1, factor=4)
    assert sets["train"].paths[0] == str(tmp_path / sets["train"].ids[0])
    assert [rated.protocol for rated in sets.values()] == [
        "ratings.csv (scores in score) without 10 % and 5 %, by hash of the id",
        "5 % of ratings.csv (scores in score), by hash of the id",
        "10 % of ratings.csv (scores in score), by hash of the id",
    ]


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 3), (2, 3)])
def test_csv_twins_stay_together_where_a_split_takes_what_comes_next(tmp_path, pair):
    root = make_csv(tmp_path, count=4)
    first, second = (f"pics/{i}.png" for i in pair)
    (root / first).write_bytes((root / second).read_bytes())
    assert any({first, second} <= set(rated.ids) for rated in load_dataset("csv", root).values())


def test_csv_of_a_few_pictures_has_three_splits(tmp_path):
    refused("split of csv is empty", "csv", make_csv(tmp_path, count=2))
    for rows, expected in ((3, [1, 1, 1]), (4, [2, 1, 1]), (6, None)):
        sizes = [len(s) for s in load_dataset("csv", make_csv(tmp_path, count=rows)).values()]
        assert sum(sizes) == rows and min(sizes) > 0 and sizes == (expected or sizes)


def test_csv_paths_as_people_write_them(tmp_path, monkeypatch):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write_pictures(root, ["a.png", "sub/b.png", "tables/c.png", "images/d.png", "e.jpg"])
    write_pictures(root, ["~office.png", "~root/i.png"])
    write_pictures(elsewhere, ["f.png", "g.png", "h.png"])
    (root / "link.png").symlink_to(elsewhere / "g.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "broken.png").symlink_to(elsewhere / "gone.png")
    monkeypatch.setenv("HOME", str(elsewhere))
    written = ["./a.png", "sub\\b.png", "c.png", "d.png", "e", str(elsewhere / "f.png"), "link.png"]
    written += ["~office.png", "~root/i.png", "~/h.png", "linked/g.png", "../elsewhere/h.png", "broken.png"]
    rows = [[name, 1 + 0.1 * i, "test"] for i, name in enumerate(written)]
    write_table(root / "tables" / "t.csv", ["path", "score", "split"], rows)
    test = load_dataset("csv", root, ("test",), DataOptions(table="tables/t.csv"))["test"]
    assert test.ids == written[:-1] and [row.id for row in test.left_out] == ["broken.png"]
    assert all(Path(path).is_file() for path in test.paths)


def test_csv_counts_become_distributions_over_their_numbers(tmp_path):
    header = ["path", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS"]  # as in KonIQ-10k
    root = make_csv(tmp_path, header, [[f"{i}.png", 0, 0, 1, 2, 1, 4, 4.0] for i in range(30)])
    train = load_dataset("csv", root)["train"]
    assert train.scale == Scale("distribution", 1, 5, 3, bins=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert train.distributions[0].tolist() == [0, 0, 0.25, 0.5, 0.25] and train.scores[0] == 4
    scored = load_dataset("csv", root, options=DataOptions(score_column="MOS"))["train"]
    assert scored.scale.kind == "score" and scored.distributions is None


def test_csv_count_columns_by_option_are_sorted_by_rating(tmp_path):
    root = make_csv(tmp_path, ["path", "good", "bad", "x3"], [[f"{i}.png", 3, 1, 0] for i in range(30)])
    options = DataOptions(count_columns="good=5, bad=1, x3")
    train = load_dataset("csv", root, options=options)["train"]
    assert train.bins == (1, 3, 5) and train.scores[0] == (1 + 15) / 4
    for columns in ("good,bad", "good=1,bad=1", "x3"):
        refused(f"two columns or more, each with another rating, as c1,c2 or low=1,high=5; got {columns}",
                "csv", root, count_columns=columns)  # fmt: skip
    make_csv(tmp_path, ["path", "c1", "c2", "c4"], [[f"{i}.png", 1, 2, 3] for i in range(30)])
    refused(
        "which columns are the counts of votes? (c1, c2, c4 could be.) Set data.count_columns", "csv", root
    )
    named = load_dataset("csv", root, options=DataOptions(count_columns="c1,c2,c4"))["train"]
    assert named.bins == (1, 2, 4)


def test_csv_emotions_by_name_or_by_counts(tmp_path):
    words = ["fear", "AWE", "pure joy", "Sad", "sadness"] * 6
    root = make_csv(tmp_path, ["path", "emotion"], [[f"{i}.png", word] for i, word in enumerate(words)])
    train = load_dataset("csv", root)["train"]
    # The common ones in their order, under their common names, then the others.
    assert train.emotion_classes == ("awe", "fear", "sadness", "pure_joy") and np.isnan(train.scores).all()
    given = [train.emotion_classes[k] for k in train.emotions.argmax(1)]
    assert given == [emotion_name(words[int(i.removesuffix(".png"))]) for i in train.ids]
    rows = [[f"{i}.png", 3, 1, 3] for i in range(30)]
    make_csv(tmp_path, ["path", "score", "emotion_awe", "emotion_Scared"], rows)
    train = load_dataset("csv", root)["train"]
    assert train.emotion_classes == ("awe", "fear") and train.emotions[0].tolist() == [0.25, 0.75]


def test_csv_classes_do_not_depend_on_the_splits_asked_for(tmp_path):
    kinds = {"train": ("awe", "fear", "calm"), "val": ("awe", "sad"), "test": ("fear",)}
    for number, (split, words) in enumerate(kinds.items()):
        rows = [[f"{number}{i}.png", 1, words[i % len(words)]] for i in range(6)]
        make_csv(tmp_path, ["path", "score", "emotion"], rows, name=f"{split}.csv")
    for splits in (SPLITS, ("test",), ("val",)):
        for rated in load_dataset("csv", tmp_path, splits).values():
            assert rated.emotion_classes == ("awe", "fear", "sadness", "calm")


def test_csv_scores_have_the_range_that_is_given_or_that_of_the_data(tmp_path):
    root = make_csv(tmp_path)
    words = "ratings.csv row 33: 'score' is '4.061538461538461', expected a number from 0 to 4."
    refused(words, "csv", root, minimum=0, maximum=4)
    refused("data.minimum must be below", "csv", root, minimum=9)
    wide = load_dataset("csv", root, options=DataOptions(minimum=0, maximum=10, threshold=6))["train"].scale
    assert (wide.minimum, wide.maximum, wide.threshold, wide.factor) == (0, 10, 6, 10)
    cases = {
        (1.3, 4.8): (1, 5),
        (3.9, 88.4): (0, 90),
        (-1.7, 1.2): (-2, 2),
        (3.0,): (3, 4),
        (np.nan,): (0, 1),
    }
    for scores, expected in cases.items():
        assert round_outwards(np.array(scores)) == expected


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_of_a_spreadsheet(tmp_path, separator):
    write_pictures(tmp_path, [f"{i}.png" for i in range(9)])
    lines = [f"{i}.png{separator} {i}" for i in range(9)]
    text = "\n".join([f"Image{separator} Score ", *lines])
    (tmp_path / "r.csv").write_text(text, encoding="utf-8-sig")
    assert sum(len(s) for s in load_dataset("csv", tmp_path).values()) == 9


BAD_TABLES = {
    b"": "r.csv has no rows.",
    b"path,score\n\n": "r.csv has no rows.",
    b'path,score\n\n"a': "row 3: unexpected end of data.",
    b'path,score\na.png,"3"5\n': "row 2: ',' expected after '\"'.",
    b"path,score\na.png,1,2,3\n": "row 2 has 4 cells, expected 2.",
    b"path,score,x\na.png,1\n": "row 2 has 2 cells, expected 3.",
    b"path,score\na.png,1\n\npath, score\n": "row 4: 'score' is 'score', expected a number",
    b"path,score,score\na.png,1,2\n": "its header has 'score' twice.",
    b"path,score\nb\xe4.png,2\n": "can't decode byte 0xe4 in position 12: invalid",
    "path,score\na.png,1\n".encode("utf-16-le"): "it has zero bytes; save it as text in UTF-8.",
    b"path,image_name,score\na,a,1\n": "which column is the path? (path and image_name could be.)",
    b"where,score\na,1\n": "is the path? (found where, score.) Set data.path_column=NAME.",
    b"path,mos,score\na,1,1\n": "which column is the score? (mos and score could be.)",
    b"path,beauty\na,1\n": "is the score? (found path, beauty.) Set data.score_column=NAME.",
    b"path,c1,c2,votes1,votes2\na,1,1,1,1\n": "the counts of votes? (c1, c2, votes1, votes2 could be.)",
    b"path,score,emotion_sad,emotion_sadness\na,1,1,1\n": "emotion_sad, emotion_sadness are one emotion",
    b"path,c1,c2\na,0,0\n": "row 2: 'c1' is '0', expected at least one vote in c1 to c2",
    b"path,score\na,1e30\n": "row 2: 'score' is '1e30', expected a number from -1e+15",
}
for text in ("1_0", "\u0663", "0x3", "infinity", "True", "3,5", "1e309", "3 4"):
    BAD_TABLES[f'path,score\na,"{text}"\n'.encode()] = f"row 2: 'score' is '{text}', expected a number"


def test_csv_that_is_no_table_or_of_unknown_columns(tmp_path):
    refused("found none", "csv", tmp_path, error=FileNotFoundError)
    for content, words in BAD_TABLES.items():
        (tmp_path / "r.csv").write_bytes(content)
        refused(words, "csv", tmp_path)
    make_csv(tmp_path, name="b.csv")
    refused("found b.csv, r.csv. Choose with data.table=NAME", "csv", tmp_path, error=FileNotFoundError)
    assert load_dataset("csv", tmp_path, ("test",), DataOptions(table="b.csv"))
    refused("there is no file", "csv", tmp_path, error=FileNotFoundError, table="c.csv")


# What stands in the correct file, what stands there now, and what is said about it.
CHANGES = {
    "para": ("annotation/PARA-GiaaTest.csv", [
        ("session1,1.61", "session1,5.5", "row 3: 'aestheticScore_mean' is '5.5', expected a number"),
        ("session1,1.61", "session1,", "row 3: 'aestheticScore_mean' is empty, expected a number"),
        ("1.61,3", "1.61,-1", "row 3: 'imgEmotion_neutral' is '-1', expected a whole number from 0 to 100"),
        ("p61_.jpg", "p60_.jpg", "row 3: 'imageName' is 'p60_.jpg', expected each picture once"),
        ("p61_.jpg,session1", "p61_.jpg,", "row 3: 'sessionId' is empty, expected a text"),
        ("Score_mean", "", "no column 'aestheticScore_mean' (found: imageName, sessionId, aesthetic, img"),
        ("Score_mean", "", "For your own columns use --dataset csv data.score_column=NAME."),
    ]),
    "ava": ("AVA.txt", [
        ("8 41 56", "8 4156 56", "row 3: 'votes_5' is '4156', expected a whole number from 0 to 1000"),
        ("8 41 56", "8 900 900", "row 3: 'votes_1' is '0', expected 1 to 1000 votes in votes_1 to votes_10"),
        ("8 41 56", "8 4.5 56", "row 3: 'votes_5' is '4.5', expected a whole number"),
        ("8 41 56", "8 4156", "row 3 has 14 cells, expected 15"),  # joined with the next
    ]),
    "iae": ("test_emo_list.txt", [
        ("11 0", "99 0", "test_emo_list.txt and the aesthetic list of its split must name"),
        ("11 0", "99 0", "2 are in one of them only, first '11'"),
        ("10 2", "10 8", "test_emo_list.txt row 2: 'label' is '8', expected one of 0, 1"),
    ]),
    "emoset": ("test.json", [
        ('["awe", "awe_25", "image/awe/awe_25.jpg", ', '["awe", ', "test.json entry 2 is ["),
        ('"awe_25", ', "7, ", "expected [label, id, picture, annotation] or"),
        ('"awe", "awe_25"', '"joy", "awe_25"', "expected a label of info.json (amusement, "),
        ('"awe", "awe_25"', '"awe", "amusement_24"', "expected each picture once"),
        ("image/awe/awe_25", "image/amusement/amusement_24", "expected each picture once"),
        ("[", "", "test.json is not readable JSON"),
    ]),
    "emoset info": ("info.json", [
        ("{", "", "info.json is not readable JSON: "),
        ("label2idx", "labels", "info.json should name its classes in 'label2idx'"),
        ('"awe"', '"joy"', "info.json: label2idx: 'joy' should be, once, one of amusement, "),
        ('"awe"', '"sad"', "label2idx: 'sadness' should be, once, one of"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_damaged_labels_are_named_by_file_row_and_column(tmp_path, case):
    name, (file, changes) = case.split()[0], CHANGES[case]
    path = READ[name][0](tmp_path) / file
    correct = path.read_text()
    for old, new, words in changes:
        assert old in correct
        path.write_text(correct.replace(old, new, 1))
        refused(words, name, tmp_path)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9))
@example([0.0, 5e-324])
@example([1.0, 1 + 2**-52])
@example([-1e15, 1e15])
@settings(max_examples=40, deadline=None)
def test_rounded_range_holds_all_scores(scores):
    low, high = round_outwards(np.array(scores))
    slack = 1e-9 * max(1.0, *map(abs, scores))
    assert low - slack <= min(scores) and max(scores) <= high + slack and low < high


# ---- demo ------------------------------------------------------------------------------------------


def make_demo(root):
    columns = [f"score{k}" for k in range(1, 11)]
    kinds = [("train", "awe"), ("val", "fear"), ("test", "anger")]
    rows = [[f"{i}.png", *kind, *[0] * 4, 2, 2, *[0] * 4] for i, kind in enumerate(kinds)]
    write_table(root / "labels.csv", ["image", "split", "emotion", *columns], rows)
    write_pictures(root / "images", ["0.png", "1.png", "2.png"])


def test_demo_is_made_when_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "write_data_set", make_demo)
    sets = load_dataset("demo", tmp_path / "new")
    test = sets["test"]
    assert [s.ids for s in sets.values()] == [["0.png"], ["1.png"], ["2.png"]]
    assert test.scores.tolist() == [5.5] and test.scale.bins == tuple(map(float, range(1, 11)))
    assert test.emotion_classes[test.emotions[0].argmax()] == "anger"
    edit_cell(tmp_path / "new" / "labels.csv", 3, "emotion", "joy")
    refused("labels.csv row 3: 'emotion' is 'joy'", "demo", tmp_path / "new")


# ---- orders ----------------------------------------------------------------------------------------


@given(*(st.integers(*ends) for ends in ((1, 200), (1, 8), (1, 4), (0, 5), (0, 9))))
@settings(max_examples=20, deadline=None)
def test_steps_see_the_same_pictures_on_any_number_of_processes(count, per_rank, world, seed, epoch):
    size, count = per_rank * world, max(count, world)
    alone = list(TrainOrder(count, size, seed, epoch))
    for rank in range(world):
        shared = list(TrainOrder(count, size, seed, epoch, rank=rank, world=world))
        assert shared == [batch[rank::world] for batch in alone]
    drawn = [draw.index for batch in alone for draw in batch]
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(count))
    # Only a whole batch counts, unless there is none.
    assert len(drawn) == (count // size * size or count)
    assert len(alone) == len(TrainOrder(count, size, seed, epoch))
    assert all(draw.epoch == epoch for batch in alone for draw in batch)
    # A resumed epoch is the rest of the whole one.
    resumed = TrainOrder(count, size, seed, epoch, start_step=per_rank)
    assert list(resumed) == alone[per_rank:] and len(resumed) == len(alone)


def test_order_changes_with_epoch_and_seed_and_refuses_what_cannot_be_divided():
    orders = [str(list(TrainOrder(50, 10, seed, epoch))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4 and orders[0] == str(list(TrainOrder(50, 10, seed=0, epoch=0)))
    for count, size in ((100, 10), (3, 4)):
        words = f"batches of {size} out of {count} training pictures cannot be divided over 4 processes"
        with pytest.raises(ValueError, match=words):
            TrainOrder(count, size, 0, 0, world=4)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_every_picture_is_evaluated_exactly_once(count, size, world):
    for rank in range(world):
        order = TestOrder(count, size, rank, world)
        assert [index for batch in order for index in batch] == list(range(rank, count, world))
        assert len(list(order)) == len(order) and all(len(batch) <= size for batch in order)


def test_coin_is_fair_and_independent_of_epoch_neighbour_and_seed():
    flips = np.array(
        [[[coin(s, e, i) for i in range(2000)] for e in range(3)] for s in (0, 1, 7)], dtype=float
    )
    assert flips.mean((2,)) == pytest.approx(0.5, abs=0.05)
    rows = flips.reshape(9, -1)
    between = np.corrcoef(np.vstack([rows, np.roll(rows[0], 1)]))
    assert np.abs(between[~np.eye(10, dtype=bool)]).max() < 0.08


# ---- pictures and loaders --------------------------------------------------------------------------


def batches(pictures, order, workers=0):
    return list(make_loader(pictures, order, workers))


def test_batch_holds_what_the_set_holds(tmp_path):
    rated = rated_set(tmp_path, distributions=True, emotions=True)
    (batch, *_) = batches(PictureSet(rated, (4, 5)), TestOrder(13, 6))
    assert batch.index.tolist() == [0, 1, 2, 3, 4, 5] and batch.index.dtype == torch.int64
    assert batch.images.shape == (6, 3, 4, 5) and batch.images.dtype == torch.uint8
    assert batch.images[2].permute(1, 2, 0).equal(torch.from_numpy(decode(rated.paths[2], (4, 5))))
    assert batch.scores.tolist() == rated.scores[:6].tolist() and batch.scores.dtype == torch.float64
    assert batch.distributions.shape == (6, 4) and batch.emotions.dtype == torch.float32 and not batch.broken


def test_flips_mirror_half_of_the_pictures_by_seed_epoch_and_index(tmp_path):
    rated = rated_set(tmp_path, 40)
    plain, flipped = PictureSet(rated, 8), PictureSet(rated, 8, flip_seed=5)
    mirrored = []
    for epoch in (0, 1):
        for index in range(40):
            image, same = flipped[Draw(epoch, index)].image, plain[index].image
            assert image.equal(same) or image.equal(same.flip(2))
            mirrored.append(not image.equal(same))
            assert mirrored[-1] == coin(5, epoch, index)
    assert 20 < sum(mirrored) < 60 and mirrored[:40] != mirrored[40:]


def test_workers_give_the_same_batches_and_leave_the_random_state_alone(tmp_path):
    pictures = PictureSet(rated_set(tmp_path, emotions=True), 6, flip_seed=1)
    state = torch.get_rng_state()
    alone = batches(pictures, TrainOrder(13, 4, 0, 3))
    shared = batches(pictures, TrainOrder(13, 4, 0, 3), 2)
    assert torch.get_rng_state().equal(state)
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        assert one.emotions.equal(other.emotions)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_files_are_one_clear_sentence_or_left_out_and_listed(tmp_path, workers):
    rated = rated_set(tmp_path, 6, distributions=True)
    for broken in (1, 2, 3):
        (tmp_path / f"{broken}.png").write_text("<html>")
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(DecodeError) as caught:
        batches(PictureSet(rated.take([0, 2]), 4), TestOrder(2, 2), workers)
    assert str(caught.value) == (
        f"decoding: {tmp_path / '2.png'} cannot be decoded: the file is empty. "
        "Repair it, or leave such files out with --skip-broken."
    )
    first, second, third = batches(PictureSet(rated, 4, skip_broken=True), TestOrder(6, 2), workers)
    assert first.index.tolist() == [0] and [row.id for row in first.broken] == ["1.png"]
    assert "web page" in first.broken[0].reason
    assert second.images.shape == (0, 3, 4, 4) and second.index.shape == (0,)
    assert second.distributions.shape == (0, 4) and [row.id for row in second.broken] == ["2.png", "3.png"]
    assert third.index.tolist() == [4, 5] and third.broken == []
