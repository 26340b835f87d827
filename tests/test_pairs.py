"""Sets of pairs: what is read, what is refused, how it is split, and how pairs become batches."""

import csv
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small import write_pictures

from datasets import Draw, PairPictures, PictureSet, TrainOrder, make_loader
from eamb.readers import pairs
from eamb.readers.decoding import DecodeError
from eamb.readers.pairs import PAIR_COLUMNS, describe_pairs, load_pairs
from eamb.readers.rated import DataOptions, LeftOut

LIST = "1 1 2 0.949 1 4\n1 1 3 0.5 1 2\n7 1 2 0.086 4 2\n"  # as Photo Triage's lists are


def write_table(path: Path, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([PAIR_COLUMNS, *rows])


def write_set(root: Path, series: int = 12, size: int = 3) -> Path:
    """Series of `size` photographs, all pairs, the first of each the best; a third for each split."""
    names = write_pictures(root / "p", series * size)
    tables = {"train": [], "val": [], "test": []}
    for number in range(series):
        own = [f"p/{name}" for name in names[number * size : (number + 1) * size]]
        pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
        rows = [(f"s{number}", own[a], own[b], f"{0.6 + 0.1 * (b - a):.1f}") for a, b in pairs]
        tables[("train", "val", "test")[number % 3]] += rows
    for split, rows in tables.items():
        write_table(root / f"{split}.csv", rows)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("pairs"))


def test_a_split_has_each_photograph_once_and_its_pairs(root):
    rated = load_pairs("pairs", root)["train"]
    assert (len(rated), len(rated.pairs), rated.draws, len(set(rated.series))) == (12, 12, 12, 4)
    assert len(set(rated.ids)) == 12
    assert [rated.ids[i] for i in rated.pairs[0]] == ["p/0_000.png", "p/0_001.png"]
    assert rated.preference[:3].tolist() == [0.7, 0.8, 0.7]
    assert np.isnan(rated.scores).all()
    assert "12 pairs of 12 photographs in 4 series (train.csv), 0 undecided" in describe_pairs(rated)


def test_photo_triage_is_read_by_its_own_rules(tmp_path):
    folder = tmp_path / "train_val" / "train_val_imgs"
    folder.mkdir(parents=True)
    source = tmp_path / write_pictures(tmp_path, 1)[0]
    for name in ("000001-01", "000001-02", "000001-03", "000007-01", "000007-02"):
        shutil.copy(source, folder / f"{name}.JPG")
    (tmp_path / "val_pairlist.txt").write_text(LIST)
    rated = load_pairs("PhotoTriage", tmp_path, ("test",))["test"]
    assert rated.ids == ["000001-01.JPG", "000001-02.JPG", "000001-03.JPG", "000007-01.JPG", "000007-02.JPG"]
    assert rated.pairs.tolist() == [[0, 1], [0, 2], [3, 4]]
    assert rated.preference.tolist() == [0.949, 0.5, 0.086]
    assert rated.pair_series.tolist() == ["1", "1", "7"]
    assert "the published val_pairlist.txt" in rated.protocol
    with pytest.raises(FileNotFoundError, match=r"there is no train_pairlist\.txt"):
        load_pairs("phototriage", tmp_path, ("train",))


ROWS = [("s", "p/0_000.png", "p/0_001.png", 1), ("s", "p/0_000.png", "p/0_002.png", 0)]
BAD = [  # a row behind ROWS, and what is said of it
    ("t 3 4 1.5", "'preference' is '1.5', expected a number from 0 to 1"),
    ("t 3 4 yes", "'preference' is 'yes', expected a number"),
    ("t 3 3 1", "'second' is 'p/0_003.png', expected another"),
    ("s 1 0 1", "'first' is 'p/0_001.png', expected each pair"),
    ("t 3 1 1", "expected a photograph that is in one series only"),
    (" 3 4 1", "'series' is empty, expected a text"),
]


@pytest.mark.parametrize(("row", "words"), BAD)
def test_bad_rows_are_named(row, words, root, tmp_path):
    series, first, second, preference = row.split(" ")
    row = (series, f"p/0_00{first}.png", f"p/0_00{second}.png", preference)
    write_table(tmp_path / "train.csv", [*ROWS, row])
    (tmp_path / "p").symlink_to(root / "p")
    with pytest.raises(ValueError, match="train.csv row 4: .*" + re.escape(words)):
        load_pairs("pairs", tmp_path, ("train",))


def test_bad_folders_are_named(root, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the sets of pairs are phototriage and pairs, got 'ava'"):
        load_pairs("ava", root)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_pairs("pairs", tmp_path / "nowhere")
    for split in ("train", "val"):
        write_table(tmp_path / f"{split}.csv", ROWS)
    with pytest.raises(FileNotFoundError, match=r"none of the 3 photographs of pairs exists, e\.g\. 'p/0_0"):
        load_pairs("pairs", tmp_path, ("train",))
    monkeypatch.setattr(pairs, "read_manifest", lambda root: object())  # copies that prepare_data made
    with pytest.raises(ValueError, match="holds prepared copies, which are squashed"):
        load_pairs("pairs", root)


@pytest.mark.parametrize("other", ["p/0_001", "./p/0_001.png", "p/../p/0_001.png", "p\\0_001.png"])
def test_another_spelling_is_the_same_photograph(root, tmp_path, other):
    for split in ("train", "val"):
        write_table(tmp_path / f"{split}.csv", [*ROWS, ("s", "p/0_001.png", other, 1)])
    (tmp_path / "p").symlink_to(root / "p")
    with pytest.raises(ValueError, match=r"another photograph than the first|names the file .* in one way"):
        load_pairs("pairs", tmp_path, ("train",))


def test_missing_photographs_take_their_pairs_with_them_and_all_is_said(root, tmp_path):
    gone = [("s", "p/0_001.png", "p/none.png", 1), ("t", "p/a.png", "p/b.png", 1)]
    gone += [("u", "p/0_005.png", "p/c.png", 0)]
    write_table(tmp_path / "train.csv", [*ROWS, *gone])
    write_table(tmp_path / "val.csv", ROWS)
    (tmp_path / "p").symlink_to(root / "p")
    rated = load_pairs("pairs", tmp_path, ("train",))["train"]
    assert len(rated.pairs) == 2
    missing = {name: f"no picture file {name}" for name in ("p/none.png", "p/a.png", "p/b.png", "p/c.png")}
    assert dict(rated.left_out) == missing | {"p/0_005.png": "no pair that it is in is left"}
    assert set(rated.series) == {"s"}  # a series without pairs is none
    assert "3 of its pairs lost with missing photographs" in describe_pairs(rated)


def test_whole_series_are_held_out_whatever_the_order_of_the_rows(tmp_path):
    write_set(tmp_path, series=60, size=2)
    (tmp_path / "val.csv").unlink()
    parts = []
    for _ in range(2):
        loaded = load_pairs("pairs", tmp_path, ("train", "val"))
        parts.append([set(loaded[split].series) for split in ("train", "val")])
        lines = (tmp_path / "train.csv").read_text().splitlines()
        (tmp_path / "train.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    train, val = parts[0]
    assert train.isdisjoint(val)
    assert (len(train) + len(val), len(val) > 0) == (20, True)
    assert parts[0] == parts[1]
    write_table(tmp_path / "train.csv", [("s1", "p/0_000.png", "p/0_001.png", 1)])
    with pytest.raises(ValueError, match="1 series are too few to hold some out for"):
        load_pairs("pairs", tmp_path, ("val",))


@pytest.mark.parametrize("name", ["phototriage", "pairs"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_share_of_series_held_out_is_data_validation(tmp_path, name, share):
    series = range(1, 61)
    rows = [(s, f"{s:06d}-01.JPG", f"{s:06d}-02.JPG", 0.8) for s in series]
    for photograph in (each for _, *pair, _ in rows for each in pair):
        (tmp_path / photograph).touch()
    (tmp_path / "train_pairlist.txt").write_text("".join(f"{s} 1 2 0.8 1 2\n" for s in series))
    write_table(tmp_path / "train.csv", rows)
    loaded = load_pairs(name, tmp_path, ("train", "val"), DataOptions(validation=share))
    hashes = {str(s): int(hashlib.sha256(str(s).encode()).hexdigest()[:8], 16) / 2**32 for s in series}
    assert set(loaded["val"].series) == {s for s in hashes if hashes[s] < share}
    assert set(loaded["train"].series) == {s for s in hashes if hashes[s] >= share}


def test_a_limit_takes_whole_series_first_and_is_the_same_each_time(root):
    whole = load_pairs("pairs", root, ("train",))["train"]
    some, again, filled, all_of_it = (
        load_pairs("pairs", root, ("train",), limit=limit)["train"] for limit in (6, 6, 4, 99)
    )
    assert (len(some.pairs), len(set(some.series))) == (6, 2)
    assert some.sha256 == again.sha256 == filled.sha256 != whole.sha256 == all_of_it.sha256


def test_the_hash_tells_pairs_and_preferences_apart_and_not_their_order(root):
    rated = load_pairs("pairs", root, ("train",))["train"]
    turned = rated.take_pairs(np.arange(len(rated.pairs))[::-1])
    assert turned.sha256 == rated.sha256
    changed = rated.take(range(len(rated)))
    changed.preference[0] = 0.1
    assert changed.sha256 != rated.sha256


def test_taking_photographs_keeps_the_pairs_between_them(root):
    rated = load_pairs("pairs", root, ("train",))["train"]
    part = rated.take([2, 0, 5, 3])  # two of the first series, turned round, and two of the second
    assert part.ids == [rated.ids[i] for i in (2, 0, 5, 3)]
    assert part.pairs.tolist() == [[1, 0], [3, 2]]
    assert part.preference.tolist() == [0.8, 0.8]
    assert part.series.tolist() == ["s0", "s0", "s3", "s3"]


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
    [batch] = make_loader(pictures, TrainOrder(rated.draws, 12, seed=0, epoch=0), workers=0)
    whole = sorted(map(tuple, rated.pairs[(rated.pairs != 1).all(axis=1)].tolist()))
    count = len(batch.scores)
    assert sorted(zip(batch.index[:count].tolist(), batch.index[count:].tolist(), strict=True)) == whole
    assert {type(one) for one in batch.broken} == {LeftOut}
    assert {one.id for one in batch.broken} == {rated.ids[1]}
    with pytest.raises(DecodeError, match="leave such files out with --skip-broken"):
        list(make_loader(PairPictures(rated, 64), TrainOrder(rated.draws, 12, seed=0, epoch=0), workers=0))
    empty = pictures.collate([pictures[0]])  # its first pair has the broken one
    assert (len(empty.images), len(empty.scores), len(empty.broken)) == (0, 0, 1)
