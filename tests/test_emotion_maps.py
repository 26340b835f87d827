"""Kept emotion maps: what the branch says, found again, never for another picture or another branch."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import BACKBONE, write_csv

from datasets import PictureSet, load_dataset
from eamb.readers.rated import DataOptions
from eamb.runtime import distributed
from eamb.runtime.engine import Compute
from eamb.training import emotion_maps
from eamb.training.emotion_maps import EmotionMaps, branch_key, prepare, read_chunk
from EAMBNet import build_model

COMPUTE = Compute(torch.device("cpu"), "fp32", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SETTINGS = {"size": 64, "exif": True, "workers": 0, "batch_size": 4}
SHAPES = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model(BACKBONE, 1, **SHAPES).eval()


@pytest.fixture
def rated(tmp_path):
    root = write_csv(tmp_path / "set", {"score": [1 + i % 5 for i in range(24)]})
    return load_dataset("csv", root, ("train",), DataOptions())["train"]  # 16 pictures


@pytest.fixture
def computed(monkeypatch):
    """Pictures, mirror images counted too, that the branch was asked about, filled-up ones left out."""
    counts = []
    answer = emotion_maps.answer

    def counting(network, images):
        counts.append(int((images.amax(dim=(1, 2, 3)) > -1).sum()))  # those that fill up a batch are black
        return answer(network, images)

    monkeypatch.setattr(emotion_maps, "answer", counting)
    return counts


def test_kept_maps_are_the_branchs_own_of_pictures_and_mirror_images(network, rated, tmp_path):
    maps = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    pictures = PictureSet(rated, 64)
    images = torch.stack([pictures[i].image for i in range(len(rated))])
    with torch.inference_mode():
        for mirrored in (False, True):
            seen = images.flip(3) if mirrored else images
            output = network(seen.float() / 127.5 - 1)
            logits, found = maps.of(range(len(rated)), [mirrored] * len(rated))
            torch.testing.assert_close(logits, output.emotion_logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(found, output.emotion_map, rtol=0, atol=1e-5)


def test_a_network_given_the_maps_predicts_as_if_it_had_computed_them(network, rated, tmp_path):
    maps = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    images = PictureSet(rated, 64)[3].image[None].float() / 127.5 - 1
    with torch.inference_mode():
        known, own = network(images, maps.of([3], [False])), network(images)
        other = network(images, maps.of([4], [False]))
    torch.testing.assert_close(known, own, rtol=0, atol=1e-5)
    assert (other.prediction - own.prediction).abs().max() > 1e-7  # it is the map that is looked at


def test_the_second_time_nothing_is_computed(network, rated, tmp_path, computed):
    first = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    assert sum(computed) == 2 * len(rated)
    computed.clear()
    again = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    assert computed == []
    for a, b in zip(again.of([5, 2], [True, False]), first.of([5, 2], [True, False]), strict=True):
        assert torch.equal(a, b)


def test_a_larger_part_of_a_set_computes_what_it_has_more(network, rated, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(emotion_maps, "CHUNK", 5)
    prepare(tmp_path / "maps", network, rated.take(np.arange(10, 16)), COMPUTE, **SETTINGS)
    computed.clear()
    maps = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    assert sum(computed) == 2 * 10
    whole = prepare(tmp_path / "other", network, rated, COMPUTE, **SETTINGS)
    # In other company and other files, the same bits.
    for a, b in zip(maps.of(range(16), [True] * 16), whole.of(range(16), [True] * 16), strict=True):
        assert torch.equal(a, b)


def test_a_changed_picture_and_another_branch_are_computed_anew(network, rated, tmp_path, computed):
    prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    before = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS).of([2], [False])
    Image.new("RGB", (64, 64), (250, 60, 20)).save(rated.paths[2])
    computed.clear()
    after = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS).of([2], [False])
    assert sum(computed) == 2
    assert not torch.equal(before[0], after[0])
    computed.clear()
    torch.manual_seed(1)
    prepare(tmp_path / "maps", build_model(BACKBONE, 1, **SHAPES).eval(), rated, COMPUTE, **SETTINGS)
    assert sum(computed) == 2 * len(rated)
    assert len(list((tmp_path / "maps").iterdir())) == 2
    computed.clear()
    prepare(tmp_path / "maps", network, rated, COMPUTE, **{**SETTINGS, "size": 96})
    assert sum(computed) == 2 * len(rated)


def test_a_picture_touched_but_equal_is_recomputed_not_trusted(network, rated, tmp_path, computed):
    prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    computed.clear()
    os.utime(rated.paths[0], ns=(1, 1))
    prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    assert sum(computed) == 2


def test_a_file_that_is_no_whole_one_is_computed_anew(network, rated, tmp_path, computed):
    prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    [path] = (tmp_path / "maps").rglob("*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    computed.clear()
    maps = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    assert sum(computed) == 2 * len(rated)
    assert len(maps.missing) == 0
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"<html>", b""])
def test_a_file_that_holds_no_maps_is_none(content, tmp_path):
    (tmp_path / "maps.npy").write_bytes(content)
    assert read_chunk(tmp_path / "maps.npy") is None


def test_a_changed_byte_is_found_when_it_is_read(network, rated, tmp_path):
    prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    [path] = (tmp_path / "maps").rglob("*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    [folder] = (tmp_path / "maps").iterdir()
    with pytest.raises(ValueError, match=rf"emotion_maps: {path} is damaged; delete it"):
        EmotionMaps(folder, rated).of([15], [True])


def test_a_picture_that_cannot_be_decoded_has_no_map_and_stops_nothing(network, rated, tmp_path):
    Path(rated.paths[7]).write_bytes(b"no picture")
    maps = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    assert maps.missing.tolist() == [7]
    assert maps.of([6, 8], [False, True])[0].shape == (2, 8)
    with pytest.raises(
        ValueError, match=rf"there is no map of {rated.ids[7]} \({rated.paths[7]}\); it could not"
    ):
        maps.of([7], [False])


def as_process(monkeypatch, rank: int, told: list) -> None:
    """As one of two processes; `told` keeps what the first says to all."""
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, value])

    def broadcast(value):
        if rank == 0:
            told.append(value)
        return told[-1]

    monkeypatch.setattr(distributed, "broadcast", broadcast)


def test_a_process_that_comes_late_shares_the_list_of_the_first(
    network, rated, tmp_path, monkeypatch, computed
):
    monkeypatch.setattr(emotion_maps, "CHUNK", 3)  # 6 files for two processes
    told = []
    as_process(monkeypatch, 0, told)
    assert prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS).missing.tolist() == [
        *(3, 4, 5, 9, 10, 11, 15)
    ]
    as_process(monkeypatch, 1, told)
    maps = prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)
    assert maps.missing.tolist() == []
    assert sum(computed) == 2 * len(rated)  # none twice


def test_a_folder_that_machines_do_not_share_is_refused(network, rated, tmp_path, monkeypatch):
    as_process(monkeypatch, 0, [])
    others = np.arange(4).tobytes()  # another machine lacks four
    monkeypatch.setattr(
        distributed, "gather", lambda value: [value, others if isinstance(value, bytes) else value]
    )
    with pytest.raises(
        ValueError, match=r"other maps for some processes than for others; train\.emotion_maps"
    ):
        prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS)


def test_a_folder_that_cannot_be_made_is_said_to_all_processes(
    network, rated, tmp_path, monkeypatch, computed
):
    (tmp_path / "maps").write_text("a file, no folder")
    told = []
    for rank in (0, 1):
        as_process(monkeypatch, rank, told)
        assert prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS) is None
    assert "maps" in told[0][1]
    assert computed == []


def test_a_branch_is_another_with_each_thing_that_decides_its_answer(network):
    def key(exif=True, mean=COMPUTE.mean, std=COMPUTE.std):
        return branch_key(network, 64, exif, COMPUTE._replace(mean=mean, std=std))

    keys = [key(), key(exif=False), key(mean=(0.4, 0.5, 0.5)), key(std=(0.4, 0.5, 0.5))]
    before, network.emotion_scale = network.emotion_scale, 1.0
    keys.append(key())
    network.emotion_scale = before
    assert len(set(keys)) == 5
    assert key() == keys[0]


def test_a_full_disk_leaves_the_run_without_maps(network, rated, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(emotion_maps.np, "save", full)
    assert prepare(tmp_path / "maps", network, rated, COMPUTE, **SETTINGS) is None
    assert "No space left on device; training goes on without kept maps" in capsys.readouterr().err
    assert list((tmp_path / "maps").rglob("*.npy")) == []
