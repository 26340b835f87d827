"""Sets of pairs: what is read, what is refused, how it is split, and how pairs become batches."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small import nfd, write_table

from datasets import Draw, PairPictures, PictureSet, TrainOrder, make_loader
from eamb.readers import pairs
from eamb.readers.decoding import DecodeError
from eamb.readers.pairs import PAIR_COLUMNS, describe_pairs, load_pairs
from eamb.readers.rated import DataOptions, LeftOut

LIST = "1 1 2 0.949 1 4\n1 1 3 0.5 1 2\n7 1 2 0.086 4 2\n"  # as Photo Triage's lists are


@pytest.fixture(scope="module")
def root(series_set):
    return series_set


def test_a_split_has_each_photograph_once_and_its_pairs(root):
    rated = load_pairs("pairs", root)["train"]
    assert (len(rated), len(rated.pairs), rated.draws, len(set(rated.series))) == (12, 12, 12, 4)
    assert len(set(rated.ids)) == 12
    assert [rated.ids[i] for i in rated.pairs[0]] == ["p/00_a.png", "p/00_b.png"]
    assert set(rated.preference) == {0.0, 1.0}
    assert np.isnan(rated.scores).all()
    assert "12 pairs of 12 photographs in 4 series (train.csv), 0 undecided" in describe_pairs(rated)


def test_photo_triage_is_read_by_its_own_rules(tmp_path):
    folder = tmp_path / "train_val" / "train_val_imgs"
    folder.mkdir(parents=True)
    names = ["000001-01.JPG", "000001-02.JPG", "000001-03.JPG", "000007-01.JPG", "000007-02.JPG"]
    for name in names:
        (folder / name).touch()
    (tmp_path / "val_pairlist.txt").write_text(LIST)
    rated = load_pairs("PhotoTriage", tmp_path, ("test",))["test"]
    assert rated.ids == names
    assert rated.pairs.tolist() == [[0, 1], [0, 2], [3, 4]]
    assert rated.preference.tolist() == [0.949, 0.5, 0.086]
    assert rated.pair_series.tolist() == ["1", "1", "7"]
    assert "the published val_pairlist.txt" in rated.protocol
    with pytest.raises(FileNotFoundError, match=r"there is no file .*train_pairlist\.txt"):
        load_pairs("phototriage", tmp_path, ("train",))


ROWS = [("s", "p/00_a.png", "p/00_b.png", 1), ("s", "p/00_a.png", "p/00_c.png", 0)]
BAD = [  # a row behind ROWS, and what is said of it
    ("t 3 4 1.5", "'preference' is '1.5', expected a number from 0 to 1"),
    ("t 3 4 yes", "'preference' is 'yes', expected a number"),
    ("t 3 3 1", "'second' is 'p/01_a.png', expected another"),
    ("s 1 0 1", "'first' is 'p/00_b.png', expected each pair"),
    ("t 3 1 1", "'series' is 't', expected each photograph in one series only"),
    (" 3 4 1", "'series' is empty, expected a text"),
]


@pytest.mark.parametrize(("row", "words"), BAD)
def test_bad_rows_are_named(row, words, root, tmp_path):
    series, first, second, preference = row.split(" ")
    row = (series, *(f"p/{int(i) // 3:02d}_{'abc'[int(i) % 3]}.png" for i in (first, second)), preference)
    write_table(tmp_path / "train.csv", [PAIR_COLUMNS, *ROWS, row])
    (tmp_path / "p").symlink_to(root / "p")
    with pytest.raises(ValueError, match="train.csv row 4: .*" + re.escape(words)):
        load_pairs("pairs", tmp_path, ("train",))


def test_bad_folders_are_named(root, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "read_manifest", lambda folder: folder == tmp_path)  # copies by prepare_data
    for name, folder in (("ava", root), ("pairs", tmp_path)):
        with pytest.raises(ValueError, match=f"the folder of a set of pairs .*; got {name} in {folder}"):
            load_pairs(name, folder)
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'nowhere'}"):
        load_pairs("pairs", tmp_path / "nowhere")


@pytest.mark.parametrize("other", ["./p/00_b.png", "p/../p/00_b.png", "p\\00_b.png"])
def test_another_spelling_is_the_same_photograph(root, tmp_path, other):
    write_table(tmp_path / "test.csv", [PAIR_COLUMNS, *ROWS, ("s", "p/00_b.png", other, 1)])
    (tmp_path / "p").symlink_to(root / "p")
    with pytest.raises(ValueError, match="another photograph than the first"):
        load_pairs("pairs", tmp_path, ("test",))


def test_missing_photographs_take_their_pairs_with_them_and_all_is_said(root, tmp_path):
    gone = [("s", "p/00_b.png", "p/none.png", 1), ("t", "p/a.png", "p/b.png", 1)]
    gone += [("u", "p/01_c.png", "p/c.png", 0)]
    write_table(tmp_path / "test.csv", [PAIR_COLUMNS, *ROWS, *gone])
    with pytest.raises(
        FileNotFoundError, match=r"none of the 8 photographs of pairs exists \(no picture file p/00_"
    ):
        load_pairs("pairs", tmp_path, ("test",))
    (tmp_path / "p").symlink_to(root / "p")
    rated = load_pairs("pairs", tmp_path, ("test",))["test"]
    assert len(rated.pairs) == 2
    missing = {name: f"no picture file {name}" for name in ("p/none.png", "p/a.png", "p/b.png", "p/c.png")}
    assert dict(rated.left_out) == missing | {"p/01_c.png": "no pair that it is in is left"}
    assert set(rated.series) == {"s"}  # a series without pairs is none
    assert "3 of its pairs lost with missing photographs" in describe_pairs(rated)


@pytest.mark.parametrize("name", ["phototriage", "pairs"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_whole_series_are_held_out_by_hash_whatever_the_order_of_the_rows(tmp_path, name, share):
    series = range(60, 0, -1)
    rows = [(s, f"{s:06d}-01.JPG", f"{s:06d}-02.JPG", 0.8) for s in series]
    for photograph in (each for _, *pair, _ in rows for each in pair):
        (tmp_path / photograph).touch()
    (tmp_path / "train_pairlist.txt").write_text("".join(f"{s} 1 2 0.8 1 2\n" for s in series))
    write_table(tmp_path / "train.csv", [PAIR_COLUMNS, *rows])
    loaded = load_pairs(name, tmp_path, ("train", "val"), DataOptions(validation=share))
    hashes = {str(s): int(hashlib.sha256(str(s).encode()).hexdigest()[:8], 16) / 2**32 for s in series}
    assert set(loaded["val"].series) == {s for s in hashes if hashes[s] < share}
    assert set(loaded["train"].series) == {s for s in hashes if hashes[s] >= share}
    (tmp_path / "train_pairlist.txt").write_text("1 1 2 0.8 1 2\n")
    write_table(tmp_path / "train.csv", [PAIR_COLUMNS, *rows[-1:]])
    with pytest.raises(ValueError, match="if its series are too few to hold some out by hash, raise"):
        load_pairs(name, tmp_path, ("val",), DataOptions(validation=0.01))


def test_a_limit_takes_whole_series_first_and_is_the_same_each_time(root):
    whole = load_pairs("pairs", root, ("train",))["train"]
    some, again, filled, all_of_it = (
        load_pairs("pairs", root, ("train",), limit=limit)["train"] for limit in (6, 6, 4, 99)
    )
    assert (len(some.pairs), len(set(some.series))) == (6, 2)
    assert some.sha256 == again.sha256 == filled.sha256 != whole.sha256 == all_of_it.sha256


def test_taking_pairs_or_photographs_keeps_them_together_and_the_hash_is_of_both(root):
    rated = load_pairs("pairs", root, ("train",))["train"]
    assert rated.take_pairs(np.arange(len(rated.pairs))[::-1]).sha256 == rated.sha256
    part = rated.take([2, 0, 5, 3])  # two of the first series, turned round, and two of the second
    assert part.ids == [rated.ids[i] for i in (2, 0, 5, 3)]
    assert part.pairs.tolist() == [[1, 0], [3, 2]]
    assert part.preference.tolist() == rated.preference[[1, 4]].tolist()
    assert part.series.tolist() == ["s0", "s0", "s3", "s3"]
    before = part.sha256
    part.preference[0] = 0.1
    assert part.sha256 != before


def test_a_batch_has_first_photographs_then_second_ones(root):
    rated = load_pairs("pairs", root, ("train",))["train"]
    pictures = PairPictures(rated, 64)
    order = TrainOrder(rated.draws, batch_size=4, seed=0, epoch=0)
    for draws, batch in zip(order, make_loader(pictures, order, workers=0), strict=True):
        pairs = rated.pairs[[draw.index for draw in draws]]  # (4, 2)
        assert batch.index.tolist() == [*pairs[:, 0], *pairs[:, 1]]
        assert batch.images.shape == (8, 3, 64, 64)
        assert batch.scores.tolist() == rated.preference[[draw.index for draw in draws]].tolist()
        single = PictureSet(rated, 64)[Draw(0, int(pairs[2, 1]))]
        assert torch.equal(batch.images[6], single.image)


def test_a_broken_photograph_takes_its_pairs_out_of_the_batch(root, tmp_path):
    shutil.copytree(root, tmp_path / "set")
    rated = load_pairs("pairs", tmp_path / "set", ("train",))["train"]
    Path(rated.paths[1]).write_bytes(b"no picture")
    pictures = PairPictures(rated, 64, skip_broken=True)
    order = TrainOrder(rated.draws, 12, seed=0, epoch=0)
    [batch] = make_loader(pictures, order, workers=0)
    whole = sorted(map(tuple, rated.pairs[(rated.pairs != 1).all(axis=1)].tolist()))
    count = len(batch.scores)
    assert sorted(zip(batch.index[:count].tolist(), batch.index[count:].tolist(), strict=True)) == whole
    assert {type(one) for one in batch.broken} == {LeftOut}
    assert {one.id for one in batch.broken} == {rated.ids[1]}
    with pytest.raises(DecodeError, match="leave such files out with --skip-broken"):
        list(make_loader(PairPictures(rated, 64), order, workers=0))
    empty = pictures.collate([pictures[0]])  # its first pair has the broken one
    assert (len(empty.images), len(empty.scores), len(empty.broken)) == (0, 0, 1)


def test_accents_are_one_photograph_however_they_are_composed(root, tmp_path):
    shutil.copytree(root / "p", tmp_path / "p")
    disk, written = nfd("p/é.png"), "p/é.png"
    (tmp_path / "p/00_c.png").rename(tmp_path / disk)
    rows = [("s", "p/00_a.png", written, 1), ("s", "p/00_b.png", disk, 0)]
    write_table(tmp_path / "test.csv", [PAIR_COLUMNS, *rows])
    rated = load_pairs("pairs", tmp_path, ("test",))["test"]
    assert (len(rated), len(rated.pairs), rated.paths[1]) == (3, 2, str(tmp_path / disk))
    write_table(tmp_path / "test.csv", [PAIR_COLUMNS, *rows, ("s", written, disk, 1)])
    with pytest.raises(ValueError, match="another photograph than the first"):
        load_pairs("pairs", tmp_path, ("test",))
