"""Rated sets, several sets as one, the orders of pictures, and batches."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import fraction, make_emoset, make_fi, make_para, refused, write_noise

from datasets import (
    Draw,
    PictureSet,
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
from eamb.readers.decoding import DecodeError, View, decode
from eamb.readers.iae import IAE_EMOTIONS
from eamb.readers.para import PARA_EMOTIONS
from eamb.readers.rated import DataOptions, RatedSet, describe, emotion_name
from eamb.readers.zooming import Zoom, cut

# ---- RatedSet


def rated_set(tmp_path, count=13):
    names = [f"{i}.png" for i in range(count)]
    write_noise(tmp_path, names)
    return RatedSet(
        name="csv",
        split="train",
        protocol="made here",
        ids=names,
        paths=[str(tmp_path / name) for name in names],
        scores=np.linspace(1, 5, count),
        scale=Scale("score", 1, 5, 3, offset=1, factor=4),
        distributions=np.full((count, 4), 0.25),
        bins=(1.0, 2.0, 3.0, 4.0),
        emotions=np.full((count, 2), 0.5),
        emotion_classes=("awe", "fear"),
    )


def test_hashes_are_of_the_ids_alone_whatever_their_order(tmp_path):
    rated = rated_set(tmp_path, 12)
    expected = hashlib.sha256("".join(f"{i}\n" for i in sorted(rated.ids)).encode()).hexdigest()
    turned = rated.take(np.arange(12)[::-1])
    assert rated.sha256 == expected == turned.sha256
    assert turned[0].path == rated.paths[11] and turned.scores.tolist() == rated.scores.tolist()[::-1]
    digests = [hashlib.sha256(f"csv:{i}".encode()).digest()[:8] for i in rated.ids]
    assert rated.id_hashes.dtype == np.int64
    assert rated.id_hashes.tolist() == sorted(int.from_bytes(d, "big", signed=True) for d in digests)


@pytest.mark.parametrize("column", ["scores", "distributions", "emotions"])
def test_the_hash_of_ratings_depends_on_each_and_not_on_the_order(tmp_path, column):
    rated = rated_set(tmp_path)
    hashed, values = rated.labels_sha256, getattr(rated, column).copy()
    assert rated.take(np.random.default_rng(0).permutation(13)).labels_sha256 == hashed
    values[3] *= 1 + 1e-15
    assert replace(rated, **{column: values}).labels_sha256 == hashed
    values[3] = np.nan
    assert replace(rated, **{column: values}).labels_sha256 != hashed


def test_each_emotion_has_one_name():
    words = "sad|sadness, Angry |anger,AWED|awe,content|contentment,scared|fear,Excited|excitement"
    words += ",Neutral|neutral,happy|happy,mixed - feelings|mixed_feelings"
    words += "".join(f",{name}|{name}" for name in (*EMOTIONS, *PARA_EMOTIONS, *IAE_EMOTIONS))
    for text, _, name in (word.partition("|") for word in words.split(",")):
        assert emotion_name(text) == name == emotion_name(name)


def test_a_class_without_a_vote_is_named(tmp_path):
    votes = np.array([[1, 0], [np.nan, np.nan], [1, np.nan], [1, 0]])
    rated = replace(rated_set(tmp_path, 4), emotions=votes)
    refused("the train split of csv has no picture of fear, an empty class. Add", rated, load=check_classes)
    votes[1] = [np.nan, 0.1]
    check_classes(rated)


def test_first_by_hash_is_the_same_whatever_the_order(tmp_path):
    rated = rated_set(tmp_path)
    assert set(first_by_hash(rated, 4).ids) == set(sorted(rated.ids, key=fraction)[:4])
    assert first_by_hash(rated.take(range(12, -1, -1)), 4).sha256 == first_by_hash(rated, 4).sha256
    assert first_by_hash(rated, 4).protocol == "made here, 4 of it by hash of the id"
    assert first_by_hash(rated, 13) is rated


def test_only_training_pictures_with_votes_if_asked_for_and_the_limit_counts_those(tmp_path):
    root, target = make_para(tmp_path, voted=range(0, 60, 2)), {"target": "distribution"}
    whole = load_dataset("para", root, options=DataOptions(**target))
    some = load_dataset("para", root, options=DataOptions(**target, only_with_votes=True))
    voted = [i for i, known in zip(whole["train"].ids, whole["train"].with_votes, strict=True) if known]
    assert some["train"].ids == voted and 20 < len(voted) < len(whole["train"])
    assert some["train"].with_votes.all() and f", {len(voted)} of it with votes" in describe(some["train"])
    for split in ("val", "test"):
        assert some[split].labels_sha256 == whole[split].labels_sha256
    options = DataOptions(**target, only_with_votes=True)
    few = load_datasets(["para"], [root], ("train",), options, limit=7)["train"]
    assert few.ids == first_by_hash(some["train"], 7).ids and few.with_votes.all()
    words = "no votes are known for the train split of para, so data.only_with_votes leaves nothing"
    refused(words, "para", root, only_with_votes=True)


# ---- several sets


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Of a PARA of 65 pictures and of an FI of 40."""
    return [make_para(tmp_path_factory.mktemp("para")), make_fi(tmp_path_factory.mktemp("fi"))]


def test_classes_are_united_by_name_and_what_a_set_lacks_is_nan(roots):
    alone = [load_dataset(name, root) for name, root in zip(("para", "fi"), roots, strict=True)]
    sets = load_datasets(["PARA", "fi"], roots)
    assert list(sets) == ["train", "val", "test"]
    for split, rated in sets.items():
        para, fi = (each[split] for each in alone)
        assert rated.name == "para+fi" and rated.emotion_classes == (*EMOTIONS, "neutral")
        assert rated.ids == [*(f"para:{i}" for i in para.ids), *(f"fi:{i}" for i in fi.ids)]
        assert rated.paths == para.paths + fi.paths
        of_para, of_fi = np.split(rated.emotions, [len(para)])
        for k, name in enumerate(para.emotion_classes):
            assert (of_para[:, rated.emotion_classes.index(name)] == para.emotions[:, k]).all()
        assert np.isnan(of_para[:, EMOTIONS.index("anger")]).all() and np.isnan(of_fi[:, 8]).all()
        assert (of_fi[:, :8] == fi.emotions).all() and np.isnan(of_para).sum() == len(para)
        assert np.isnan(rated.scores).all() and rated.distributions is None and rated.scale == para.scale
        assert rated.protocol == f"para {len(para)}: {para.protocol}; fi {len(fi)}: {fi.protocol}"
        # A picture that was trained on is found again in and out of a union.
        assert rated.id_hashes.tolist() == sorted([*para.id_hashes, *fi.id_hashes])
        some = rated.take(range(len(para)))
        assert some.id_hashes.tolist() == para.id_hashes.tolist() and some.parts == () and some.united


def test_repeated_pictures_count_once_in_every_hash(roots):
    once = load_datasets(["para", "fi"], roots)
    sets = load_datasets(["para", "fi"], roots, options=DataOptions(repeat="1, 3"))
    para, fi = (len(part) for part in once["train"].parts)
    train = sets["train"]
    assert len(train) == len(train.paths) == len(train.emotions) == len(train.scores) == para + 3 * fi
    assert {train.ids.count(i) for i in train.ids if i.startswith("fi:")} == {3}
    for sample, same in zip(train.take(range(para + fi, para + 2 * fi)), once["train"].parts[1], strict=True):
        assert sample.path == same.path and (sample.emotion[:8] == same.emotion).all()
    assert train.sha256 == once["train"].sha256
    assert train.id_hashes.tolist() == once["train"].id_hashes.tolist()
    assert f"; fi {fi} x3: folder" in describe(train) and f"(para {para}: official" in describe(train)
    for split in ("val", "test"):
        assert describe(sets[split]) == describe(once[split])


def test_limit_and_repeats_hold_for_each_set_and_folds_for_those_that_can(roots):
    options = DataOptions(repeat="2,1", folds=4, fold=1)
    sets = load_datasets(["para", "fi"], roots, options=options, limit=6)
    assert [len(part) for part in sets["train"].parts] == [6, 6] and len(sets["train"]) == 18
    assert [len(part) for part in sets["test"].parts] == [5, 10]
    assert "fi 10: fold 2 of 4 of folder" in sets["test"].protocol
    assert sets["train"].protocol.count("6 of it by hash of the id") == 2


def test_ids_of_left_out_pictures_say_their_set(roots, tmp_path):
    root = make_emoset(tmp_path)
    words = "para and emoset came with splits; data.folds=3 is for sets without them"
    refused(words, ["para", "emoset"], [roots[0], root], load=load_datasets, folds=3)
    (root / "image/awe/awe_25.jpg").unlink()
    test = load_datasets(["fi", "emoset"], [roots[1], root], ("test",))["test"]
    assert [row.id for row in test.left_out] == ["emoset:awe_25"] and ", 1 left out, " in describe(test)


@pytest.mark.parametrize(
    ("names", "count", "repeat", "words"),
    [
        (["para", "fi"], 1, "", "same order, and no set twice; got 2 of --dataset (para, fi) and 1 of"),
        (["fi", "FI"], 2, "", "same order, and no set twice; got 2 of --dataset (fi, fi)"),
        (["para", "fi"], 2, "10", "for each of several sets, as 1,10; got '10' for 2 (para, fi)"),
        (["para"], 1, "10", "for each of several sets, as 1,10; got '10' for 1 (para)"),
        (["para", "fi"], 2, "1,0", "a whole number from 1 on for each of several sets, as 1,10; got '1,0'"),
    ],
)
def test_sets_that_cannot_be_united(roots, names, count, repeat, words):
    refused(words, names, roots[:count], load=load_datasets, repeat=repeat)
    # Without training pictures nothing is repeated.
    load_datasets(["fi"], roots[1:], ("test",), DataOptions(repeat=repeat))


def test_only_emotions_are_united_and_other_classes_follow_the_common_ones(tmp_path):
    rated = rated_set(tmp_path, 3)
    one, two = (replace(rated, emotion_classes=each) for each in (("tender", "fear"), ("bored", "awe")))
    assert unite([one, two]).emotion_classes == ("awe", "fear", "tender", "bored")
    words = "the train split of csv has no emotions; sets are united for their emotions only"
    refused(words, [one, replace(rated, emotions=None)], load=unite)


# ---- orders


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
    rows = np.array([[coin(s, e, i) for i in range(2000)] for s in (0, 1, 7) for e in range(3)], float)
    assert rows.mean(1) == pytest.approx(0.5, abs=0.05)
    between = np.corrcoef(np.vstack([rows, np.roll(rows[0], 1)]))
    assert np.abs(between[~np.eye(10, dtype=bool)]).max() < 0.08


# ---- pictures and loaders


def test_batch_holds_what_the_set_holds(tmp_path):
    rated = rated_set(tmp_path)
    batch = next(iter(make_loader(PictureSet(rated, (4, 5)), TestOrder(13, 6), workers=0)))
    assert batch.index.tolist() == [0, 1, 2, 3, 4, 5] and batch.index.dtype == torch.int64
    assert batch.images.shape == (6, 3, 4, 5) and batch.images.dtype == torch.uint8
    assert batch.images[2].permute(1, 2, 0).equal(torch.from_numpy(decode(rated.paths[2], (4, 5))))
    assert batch.scores.tolist() == rated.scores[:6].tolist() and batch.scores.dtype == torch.float64
    assert batch.distributions.shape == (6, 4) and batch.emotions.dtype == torch.float32 and not batch.broken


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_its_pictures_in_every_view_and_none_where_all_are_broken(tmp_path, workers):
    rated, views = rated_set(tmp_path), (View(5, crop=True), View((4, 7)))
    (tmp_path / "broken.png").touch()
    rated.paths[2:4] = [str(tmp_path / "broken.png")] * 2
    pictures = PictureSet(rated, 8, skip_broken=True, others=views)
    whole, empty, *_ = make_loader(pictures, TestOrder(13, 2), workers)
    for images, view in zip((whole.images, *whole.others), (View(8), *views), strict=True):
        expected = [decode(path, view.size, crop=view.crop) for path in rated.paths[:2]]
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    shapes = [tuple(images.shape) for images in (empty.images, *empty.others)]
    assert shapes == [(0, 3, 8, 8), (0, 3, 5, 5), (0, 3, 4, 7)]
    assert len(empty.broken) == 2


def test_flips_mirror_half_of_the_pictures_by_seed_epoch_and_index(tmp_path):
    rated = rated_set(tmp_path, 40)
    plain, flipped = PictureSet(rated, 8), PictureSet(rated, 8, flip_seed=5)
    for epoch in (0, 1):
        for index in range(40):
            image, same = flipped[Draw(epoch, index)].image, plain[index].image
            assert image.equal(same.flip(2) if coin(5, epoch, index) else same)


def test_zoomed_pictures_are_parts_of_the_mirrored_ones_by_seed_epoch_and_index(tmp_path):
    rated, zoom = rated_set(tmp_path, 4), Zoom(3, 0.5)
    flipped, zoomed = PictureSet(rated, 8, flip_seed=5), PictureSet(rated, 8, flip_seed=5, zoom=zoom)
    for draw in (Draw(0, 1), Draw(1, 1), Draw(1, 3)):
        assert zoomed[draw].image.equal(cut(flipped[draw].image, zoom.part(*draw)))
        assert not zoomed[draw].image.equal(flipped[draw].image)


def test_workers_give_the_same_batches_and_leave_the_random_state_alone(tmp_path):
    pictures = PictureSet(rated_set(tmp_path), 6, flip_seed=1)
    state = torch.get_rng_state()
    alone = list(make_loader(pictures, TrainOrder(13, 4, 0, 3), workers=0))
    shared = list(make_loader(pictures, TrainOrder(13, 4, 0, 3), workers=2))
    assert torch.get_rng_state().equal(state)
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_files_are_one_clear_sentence_or_left_out_and_listed(tmp_path, workers):
    rated = rated_set(tmp_path, 6)
    for broken in (1, 2, 3):
        (tmp_path / f"{broken}.png").write_text("<html>")
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(DecodeError) as caught:
        list(make_loader(PictureSet(rated.take([0, 2]), 4), TestOrder(2, 2), workers))
    assert str(caught.value) == (
        f"decoding: {tmp_path / '2.png'} cannot be decoded: the file is empty. "
        "Repair it, or leave such files out with --skip-broken."
    )
    first, second, third = make_loader(PictureSet(rated, 4, skip_broken=True), TestOrder(6, 2), workers)
    assert first.index.tolist() == [0] and [row.id for row in first.broken] == ["1.png"]
    assert "web page" in first.broken[0].reason
    assert second.images.shape == (0, 3, 4, 4) and second.index.shape == (0,)
    assert second.distributions.shape == (0, 4) and [row.id for row in second.broken] == ["2.png", "3.png"]
    assert third.index.tolist() == [4, 5] and third.broken == []
