"""Kept emotion maps: the branch's own output, read again, never for another picture or another branch."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import BACKBONE, write_csv

from datasets import PictureSet, load_dataset
from eamb.readers.decoding import View
from eamb.runtime import distributed
from eamb.runtime.config import load_config
from eamb.runtime.engine import Compute
from eamb.training import emotion_maps
from eamb.training.emotion_maps import EmotionMaps, branch_key, prepare
from eamb.weights.checkpoint import weights_hash
from EAMBNet import build_model

COMPUTE = Compute(torch.device("cpu"), "fp32", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SHAPES = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model(BACKBONE, 1, **SHAPES).eval()


@pytest.fixture
def rated(tmp_path):
    root = write_csv(tmp_path / "set", {"score": [1 + i % 5 for i in range(24)]})
    return load_dataset("csv", root, ("train",))["train"]  # 16 pictures


@pytest.fixture
def computed(monkeypatch):
    """Says how many pictures, mirror images counted too, went through the branch since it was asked last."""
    counts = []
    run_branch = emotion_maps.run_branch

    def counting(network, images):
        counts.append(int((images.amax(dim=(1, 2, 3)) > -1).sum()))  # those that fill up a batch are black
        return run_branch(network, images)

    def computed() -> int:
        count = sum(counts)
        counts.clear()
        return count

    monkeypatch.setattr(emotion_maps, "run_branch", counting)
    return computed


@pytest.fixture
def maps_of(network, tmp_path):
    """Prepares the maps of a set, in a folder that stays the same."""
    words = ["data.workers=0", "evaluate.batch_size=4", f"train.emotion_maps={tmp_path / 'maps'}"]

    def maps_of(rated, network=network, size=64):
        return prepare(load_config(words=[*words, f"data.size={size}"]), network, rated, COMPUTE)

    return maps_of


@pytest.mark.parametrize("levels", [3, 4])
def test_kept_maps_are_the_branchs_own_and_stand_in_for_it(levels, rated, maps_of):
    torch.manual_seed(0)
    network = build_model(BACKBONE, 1, emotion_scale=1.0, emotion_levels=levels, **SHAPES).eval()
    maps = maps_of(rated, network)
    images = torch.stack([PictureSet(rated, 64)[i].image for i in range(8)])
    with torch.inference_mode():
        for mirrored in (False, True):
            inputs = (images.flip(3) if mirrored else images).float() / 127.5 - 1
            output, kept = network(inputs), maps.read(range(8), [mirrored] * 8)
            # 1e-5: batches of other sizes add up in another order.
            torch.testing.assert_close(kept, (output.emotion_logits, output.emotion_map), rtol=0, atol=1e-5)
            torch.testing.assert_close(network(inputs, kept), output, rtol=0, atol=1e-5)
        logits, kept_map = maps.read([3], [True])
        without = network(inputs[3:4], (logits, torch.zeros_like(kept_map)))
    difference = (without.prediction - output.prediction[3]).abs().max()
    assert difference > 1e-5  # the map is used, beyond what another order of sums changes


def test_only_what_is_missing_is_computed_and_in_any_company_the_same(rated, maps_of, computed, monkeypatch):
    monkeypatch.setattr(emotion_maps, "CHUNK", 5)
    maps_of(rated.take(np.arange(10, 16)))
    assert computed() == 2 * 6
    parts = maps_of(rated)
    assert computed() == 2 * 10
    again = maps_of(rated)
    assert computed() == 0
    for path in parts.folder.iterdir():
        path.unlink()
    whole = maps_of(rated).read(range(16), [True] * 16)
    for maps in (parts, again):  # in other files, the same bits
        assert all(map(torch.equal, maps.read(range(16), [True] * 16), whole))


def test_a_changed_picture_and_another_branch_are_computed_anew(rated, maps_of, computed, tmp_path):
    before = maps_of(rated).read([2], [False])
    Image.new("RGB", (64, 64), (250, 60, 20)).save(rated.paths[2])
    os.utime(rated.paths[0], ns=(1, 1))  # the same content at another time is not trusted either
    computed()
    after = maps_of(rated).read([2], [False])
    assert computed() == 2 * 2
    assert not torch.equal(before[0], after[0])
    computed()
    torch.manual_seed(1)
    maps_of(rated, build_model(BACKBONE, 1, **SHAPES).eval())
    assert (computed(), len(list((tmp_path / "maps").iterdir()))) == (2 * len(rated), 2)
    maps_of(rated, size=96)
    assert computed() == 2 * len(rated)


def test_the_branch_is_another_with_each_thing_that_decides_its_output(network):
    def key(exif=True, mean=COMPUTE.mean, std=COMPUTE.std, icc=True):
        return branch_key(network, View(64, exif, icc=icc), COMPUTE._replace(mean=mean, std=std))

    keys = [key(), key(exif=False), key(icc=False), key(mean=(0.4, 0.5, 0.5)), key(std=(0.4, 0.5, 0.5))]
    before, network.emotion_scale = network.emotion_scale, 1.0
    keys.append(key())
    network.emotion_scale = before
    assert len(set(keys)) == 6
    assert key() == keys[0]


def test_maps_from_before_profiles_were_converted_count_as_not_converted(network):
    tensors = {name: value for name, value in network.state_dict().items() if name.startswith("emotion.")}
    inputs = [weights_hash(tensors), network.emotion_scale, 64, True, COMPUTE.mean, COMPUTE.std]
    before = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    assert branch_key(network, View(64, icc=False), COMPUTE) == before


def test_the_branch_is_another_where_the_same_weights_see_another_normalisation():
    names = ("efficientnet_lite0", "tf_efficientnet_lite0")
    first, second = (build_model(BACKBONE, 1, emotion_backbone=name, **SHAPES).eval() for name in names)
    second.emotion.load_state_dict(first.emotion.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert not torch.equal(first.emotions(images)[0], second.emotions(images)[0])
    assert branch_key(first, View(64), COMPUTE) != branch_key(second, View(64), COMPUTE)


# ---- damaged files and pictures, full disks, several processes


def another_array(_) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


DAMAGES = [
    lambda content: content[:-100],
    lambda _: b"<html>",
    lambda _: b"",
    lambda _: b"PK\3\4",
    another_array,
]
DAMAGES += [
    lambda content: content.replace(b"'", b"(", 1),
    lambda content: content.replace(b"logits", b"logitz"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_anew(damage, rated, maps_of, tmp_path, computed):
    maps_of(rated)
    [path] = (tmp_path / "maps").rglob("*.npy")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    computed()
    assert len(maps_of(rated).missing) == 0
    assert computed() == 2 * len(rated)
    assert path.read_bytes() == content


def test_a_changed_byte_is_noticed_when_it_is_read(rated, maps_of, tmp_path):
    maps_of(rated)
    [path] = (tmp_path / "maps").rglob("*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"emotion_maps: {path} is damaged; delete it"):
        EmotionMaps(path.parent, rated).read([15], [True])


def test_a_picture_that_cannot_be_decoded_has_no_map_and_stops_nothing(rated, maps_of):
    Path(rated.paths[7]).write_bytes(b"no picture")
    maps = maps_of(rated)
    assert maps.missing.tolist() == [7]
    assert maps.read([6, 8], [False, True])[0].shape == (2, 8)
    with pytest.raises(ValueError, match=rf"there is no map of {rated.ids[7]} \({rated.paths[7]}\)"):
        maps.read([7], [False])


def test_what_cannot_be_written_is_an_error_that_says_what_to_do(rated, maps_of, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(emotion_maps.np, "save", full)
        with pytest.raises(OSError, match=r"No space left .*; make room, or leave out train\.emotion_maps"):
            maps_of(rated)
    assert list((tmp_path / "maps").rglob("*.npy")) == []
    shutil.rmtree(tmp_path / "maps")
    (tmp_path / "maps").write_text("a file, no folder")
    with pytest.raises(OSError, match=r"maps.*; make room, or leave out train\.emotion_maps"):
        maps_of(rated)


def test_a_process_that_comes_late_shares_the_list_of_the_first(rated, maps_of, monkeypatch, computed):
    monkeypatch.setattr(emotion_maps, "CHUNK", 3)  # 6 files for two processes
    told, alone = [], {"world": lambda: 2, "wait_for_all": lambda: None}
    alone["broadcast"] = lambda value: told.append(value) or told[0]
    for rank, missing in ((0, [3, 4, 5, 9, 10, 11, 15]), (1, [])):
        for name, function in {**alone, "rank": lambda rank=rank: rank}.items():
            monkeypatch.setattr(distributed, name, function)
        assert maps_of(rated).missing.tolist() == missing
    assert computed() == 2 * len(rated)  # none twice
