"""Weights files: ours come back as they were, official ones land in place, all others are refused."""

import argparse
import copy
import json
import os
import pickle
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import build_lite
from safetensors import safe_open
from safetensors.torch import save_file
from small import same

from eamb.network.backbones import LITE0
from eamb.network.outputs import EMOTIONS, Scale
from eamb.weights import checkpoint
from eamb.weights.checkpoint import (
    Source,
    Weights,
    describe,
    export_weights,
    load_emotion_branch,
    load_tensors,
    load_training,
    load_weights,
    read_source,
    save_training,
    weights_hash,
)
from eamb.weights.official import OFFICIAL_UNUSED, translate_official
from EAMBNet import EmotionNetwork

PARA = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)


def snapshot(network) -> str:
    return weights_hash(network.state_dict())


# ---- our own files


@pytest.fixture(scope="module")
def lite_weights(lite_network) -> Weights:
    description = describe(lite_network, PARA) | {"dataset": "para", "image_size": 224, "best": float("nan")}
    ids = np.array([-(2**63), -1, 5, 2**63 - 1])
    ids.setflags(write=False)  # as from a memory map
    return Weights(lite_network.state_dict(), description, ids, np.array([7, 8]))


@pytest.fixture(scope="module")
def emotion_weights() -> Weights:
    torch.manual_seed(1)
    network = EmotionNetwork(LITE0, EMOTIONS, emotion_scale=0.5, width=128)
    return Weights(network.state_dict(), describe(network, None), np.array([1, 2, 3]))


def write(path: Path, weights: Weights) -> Path:
    if path.suffix == ".safetensors":
        export_weights(path, weights)
    else:
        save_training(path, weights, {"epoch": 3})
    return path


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_network_comes_back_with_all_that_belongs_to_it(lite_network, lite_weights, tmp_path, ending):
    found = load_weights(write(tmp_path / f"lite.{ending}", lite_weights))
    assert found.description.pop("best") != found.description  # NaN survives, and is not equal to itself
    assert found.description == {k: v for k, v in lite_weights.description.items() if k != "best"}
    assert (found.task, found.scale, found.emotions) == ("aesthetics", PARA, EMOTIONS)
    np.testing.assert_array_equal(found.training_ids, lite_weights.training_ids)
    np.testing.assert_array_equal(found.emotion_training_ids, [7, 8])
    assert found.training_ids.dtype == np.int64
    assert found.tensors.keys() == lite_weights.tensors.keys()
    assert weights_hash(found.tensors) == weights_hash(lite_weights.tensors)
    network, images = found.build(), torch.randn(2, 3, 64, 64)
    assert not network.training
    assert network.arguments == lite_network.arguments
    with torch.inference_mode():
        for ours, theirs in zip(network(images), lite_network(images), strict=True):
            assert torch.equal(ours, theirs)


def test_an_emotion_network_comes_back_and_any_program_can_read_its_file(emotion_weights, tmp_path):
    path = write(tmp_path / "emotion.safetensors", emotion_weights)
    found, network = load_weights(path), load_weights(path).build()
    assert (found.task, found.scale, type(network)) == ("emotion", None, EmotionNetwork)
    assert snapshot(network) == weights_hash(emotion_weights.tensors)
    with safe_open(path, framework="np") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["eambnet"])["task"] == "emotion"
        assert file.get_tensor("training_ids").tolist() == [1, 2, 3]


def test_a_training_comes_back_with_its_state(lite_weights, tmp_path):
    state = {"epoch": 3, "parts": [{"step": 4, "loss": 0.5}], "optimizer": {0: {"buffer": torch.ones(2)}}}
    save_training(tmp_path / "last.pt", lite_weights, state)
    weights, found = load_training(tmp_path / "last.pt")
    assert torch.equal(found.pop("optimizer")[0]["buffer"], torch.ones(2))
    assert found == {"epoch": 3, "parts": state["parts"]}
    assert weights_hash(weights.tensors) == weights_hash(lite_weights.tensors)


def test_weights_hash_changes_with_one_value_one_name_one_shape_and_with_nothing_else():
    tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(0), "c": torch.ones(1, dtype=torch.float16)}
    others = [
        {**tensors, "a": torch.tensor([[0, 0, 0], [0, 0, 1e-45]])},  # the smallest float32
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "b": torch.tensor(0, dtype=torch.int32)},
        {"z" if name == "c" else name: value for name, value in tensors.items()},
    ]
    assert len({weights_hash(values) for values in [tensors, *others]}) == 1 + len(others)
    tensors = {"a": torch.randn(2, 3, 4, 4), "b": torch.randn(5)}
    layout = tensors["a"].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert weights_hash({"b": tensors["b"], "a": layout}) == weights_hash(tensors)


@pytest.mark.parametrize("about", [{}, {"image_size": 224}, {"exif": False}])
def test_weights_that_do_not_say_for_which_pictures_are_refused_in_a_sentence(about):
    with pytest.raises(ValueError, match='must say which pictures they are for, "image_size" in pixels'):
        _ = Weights({}, about).size_and_exif
    about = {"image_size": 96, "exif": False}
    assert Weights({}, about).size_and_exif == (96, False)
    assert Weights({}, about).view == (96, False, False, None)  # older than data.icc
    assert Weights({}, about | {"crop": True, "icc": True}).view == (96, False, True, True)


# ---- writing whole or not at all


def test_a_disk_that_fails_is_named_and_keeps_the_last_checkpoint(emotion_weights, tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    path, limits = write(tmp_path / "last.pt", emotion_weights), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):  # torch's own is a RuntimeError
            save_training(path, emotion_weights, {}, tmp_path / "previous.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (list(tmp_path.iterdir()), path.read_bytes()) == ([path], before)


@pytest.fixture
def linear_training(tmp_path):
    """A small last.pt, and a check that a file with these bytes is refused or gives just what was saved."""
    network = torch.nn.Linear(40, 30)
    architecture = {"backbone": LITE0, "emotions": ["awe"]}
    description = {"format": 1, "task": "emotion", "architecture": architecture, "scale": None}
    save_training(tmp_path / "last.pt", Weights(network.state_dict(), description), {"epoch": 3})

    def refused(damaged: bytes) -> bool:
        (tmp_path / "bad.pt").write_bytes(damaged)
        try:
            again, state = load_training(tmp_path / "bad.pt")
        except ValueError as error:
            assert f"{tmp_path / 'bad.pt'} is not a weights file" in str(error)
            return True
        assert weights_hash(again.tensors) == snapshot(network)
        assert (again.description, state) == (description, {"epoch": 3})
        return False  # between the parts of the file

    return (tmp_path / "last.pt").read_bytes(), refused


def test_a_changed_bit_anywhere_is_found_or_changes_nothing(linear_training):
    content, refused = linear_training
    rng, end, found = np.random.default_rng(0), len(content) - 200, 0
    for place in (*rng.choice(end, 500, replace=False), *range(end, len(content))):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        found += refused(damaged)
    assert found > 500


@pytest.mark.parametrize("part", range(3))
def test_a_part_of_a_file_that_is_marked_as_a_folder_is_damage(linear_training, part):
    # torch takes such a part for empty, and returns whatever the memory held instead of its 40 x 30 weights.
    content, refused = linear_training
    entry = content.index(f"archive/data/{part}".encode(), content.index(b"PK\x01\x02")) - 46
    damaged = bytearray(content)
    damaged[entry + 38] ^= 0x10  # in the external attributes
    assert refused(damaged)


# ---- files that are refused


class Payload:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["torch.save", "pickle.dump"])
def test_code_in_a_file_is_refused_and_not_executed(tmp_path, save):
    marker, path = tmp_path / "executed", tmp_path / "evil.pt"
    if save == "torch.save":
        torch.save({"weights": Payload(marker)}, path)
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps({"weights": Payload(marker)}))
        pickle.loads(path.read_bytes())
    assert marker.exists()  # the payload works where it is let loose
    marker.unlink()
    for read in (load_weights, load_training, read_source):
        with pytest.raises(ValueError, match=r"evil\.pt .*code.* never executed") as error:
            read(path)
        assert save == "pickle.dump" or re.search(r"evil.pt holds \S*getattr", str(error.value))
    assert not marker.exists()


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("content", [b"<html></html>", b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_what_is_no_weights_file_or_not_there_is_refused_in_one_sentence(tmp_path, content, ending):
    path = tmp_path / f"file.{ending}"
    for read in (load_weights, read_source):
        with pytest.raises(FileNotFoundError, match=rf"checkpoint: no file .*file\.{ending}"):
            read(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^checkpoint: \S+ is not a weights file: .* a web page") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["pt", "old.pt", "safetensors"])
def test_a_cut_off_file_is_refused_wherever_it_is_cut(tmp_path, kind):
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
    tensors = {"weight": torch.randn(200, 100), "bias": torch.randn(4)}  # torch reads large files otherwise
    if kind == "safetensors":
        save_file(tensors, whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "pt")
    found, content = checkpoint.read_file(whole)
    assert (found.keys(), content) == (tensors.keys(), whole.read_bytes())
    for length in range(1, len(content), max(1, len(content) // 30)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a weights file: it is empty, cut off"):
            checkpoint.read_file(path)


def test_a_file_of_tensors_that_is_not_ours_is_refused_with_the_way_out(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt is not a weights file"):
        load_weights(tmp_path / "list.pt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for ending in ("pt", "safetensors"):
        for read in (load_weights, read_source):
            with pytest.raises(ValueError, match=rf"other\.{ending} was .*\(keys found: fc\.weight\); give"):
                read(tmp_path / f"other.{ending}")
    with pytest.raises(ValueError, match=r"other\.pt holds no training state to resume from"):
        load_training(tmp_path / "other.pt")


WRONG = {
    "each emotion another": {"architecture": {"backbone": "a", "emotions": ["awe", "fear", "awe"]}},
    "1 ratings for 10 outputs": {"architecture": {"backbone": "a", "outputs": 10}, "scale": PARA.as_dict()},
    "'backbone'": {"architecture": {"emotions": []}},
    "the task, the backbone and the emotions must be": {"architecture": {"backbone": "a"}, "task": None},
    "its format is 2 and this program reads 1": {"format": 2, "architecture": {"backbone": "a"}},
}


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_description_that_does_not_fit_itself_or_is_of_a_later_format_is_refused(said, ending, tmp_path):
    description = {"format": 1, "task": "aesthetics", "scale": None, **WRONG[said]}
    path = write(tmp_path / f"wrong.{ending}", Weights({"x": torch.zeros(1)}, description))
    with pytest.raises(ValueError, match=f"description in .*wrong.{ending} is damaged or of another.*{said}"):
        load_weights(path)


# ---- tensors into networks


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_is_written_unless_everything_fits(value):
    network = small()
    before = snapshot(network)
    tensors = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(4), "1.weight": "x", "2": torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        load_tensors(network, tensors, "file.pt")
    assert str(error.value) == (
        "checkpoint: file.pt does not fit the network: missing 1.bias; unknown 2; "
        "0.bias is (4,), the network's is (3,); 1.weight is not a tensor but str, the network's is (1, 3)"
    )
    tensors = small().state_dict() | {"1.weight": torch.tensor([[0, value, 0]])}
    with pytest.raises(ValueError, match=r"file\.pt .*: 1\.weight holds values that are NaN or infinite$"):
        load_tensors(network, tensors, "file.pt")
    assert snapshot(network) == before


def test_a_part_can_be_filled_and_a_part_be_left():
    ones = {name: torch.ones_like(value) for name, value in small().state_dict().items()}
    second = {name: value for name, value in ones.items() if name.startswith("1.")}
    for tensors, options in (
        (second, {"only": "1."}),
        (ones | {"0.bias": torch.zeros(7)}, {"leave": ("0.",)}),
    ):
        network = small()
        before = copy.deepcopy(network.state_dict())
        load_tensors(network, tensors, "x", **options)
        assert same(network.state_dict(), before, only="0.")
        assert same(network.state_dict(), ones, only="1.")


# ---- state dicts of the official code


def copies(state: dict) -> dict:
    """The same tensors once more, as the official class registers them."""
    names = {f"feature{i}_{x}": f"model_{x}.layer{i}" for i, x in ((2, "x"), (2, "s"), (3, "s"), (4, "s"))}
    for i, ours in ((0, "conv1"), (1, "bn1"), (4, "layer1")):
        names |= {f"feature1_{x}.{i}": f"model_{x}.{ours}" for x in "xs"}
    found = {"model_x.layer4.2.bn3.bias": torch.zeros(2048), "model_s.fc.bias": torch.zeros(1000)}  # unused
    for old, new in names.items():
        found |= {new + name[len(old) :]: v for name, v in state.items() if name.startswith(f"{old}.")}
    return found


@pytest.mark.parametrize("form", ["module.", "both copies", "second copies", "no unused"])
def test_a_whole_official_network_lands_in_every_place(paper_network, official_state, form):
    state = official_state
    if form == "module.":
        state = {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 12}
    elif form == "both copies":
        state = state | copies(state)
    elif form == "second copies":
        state = {name: value for name, value in state.items() if not name.startswith("feature")}
        state |= copies(official_state)
    elif form == "no unused":
        state = {name: v for name, v in state.items() if not name.startswith(OFFICIAL_UNUSED)}
        assert len(state) < len(official_state)
    found = translate_official(state, "x")
    assert found.keys() == paper_network.state_dict().keys()
    assert same(found, paper_network.state_dict())


def test_each_official_tensor_has_a_place_of_its_own(paper_network, official_state):
    # paper_network was filled through the same table: values prove that the table mixes nothing up.
    state = paper_network.state_dict()
    places = {
        "CBR1.conv.bias": "fusion.context_fine.0.bias",
        "CBR2.bn.running_mean": "fusion.detail.1.running_mean",
        "SADEM1.f_y.0.weight": "fusion.guide_fine.query.0.weight",
        "feature1_s.4.2.conv3.weight": "context.layer1.2.conv3.weight",
        "emotion_model.emotion_module.conv3.1.weight": "emotion.fine.1.weight",
        "up1.bn.running_var": "fusion.semantic_norm.running_var",
    }
    for official, ours in places.items():
        assert torch.equal(state[ours], official_state[official]), official
    unused = ("CBR4.", "emotion_model.backbone.feature4.")
    assert len([name for name in official_state if not name.startswith(unused)]) == len(state)


def test_unknown_names_values_that_are_no_tensors_and_unequal_copies_are_listed(official_state):
    state = official_state | copies(official_state)
    other = state["model_s.bn1.weight"]
    for unequal in (other + 1e-6, other[:3], other.double()):
        with pytest.raises(ValueError, match=r"model_s\.bn1\.weight differs from another copy of context\.b"):
            translate_official(state | {"model_s.bn1.weight": unequal}, "x")
    wrong = {"surprise": other, "emotion.classifier.bias": other, "CBR11.conv.bias": other, "CBR1.bn": [1]}
    with pytest.raises(ValueError) as error:
        translate_official(official_state | wrong, "official.pth")
    assert str(error.value) == (
        "checkpoint: official.pth does not fit the official network: unknown surprise; unknown "
        "emotion.classifier.bias; unknown CBR11.conv.bias; CBR1.bn is not a tensor"
    )


# ---- what other programs put around official weights


class Custom:
    """Stands for a class of another program."""


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("before", ["", "module.", "model.module."])
def test_official_emotion_weights_are_read_beside_whatever_a_program_keeps(
    emotion_in_small, tmp_path, key, before, old
):
    names = {before + name: value for name, value in emotion_in_small.items()}
    beside = {
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "best": np.float64(0.6),
        "epoch": np.int64(3),
    }
    beside |= {"list": [Custom(), np.zeros(2)], "bool": np.bool_(True)}
    path = tmp_path / "emotion.pth"
    torch.save(beside | ({key: names} if key else names), path, _use_new_zipfile_serialization=not old)
    found = read_source(path).weights
    assert (found.task, found.emotions) == ("emotion", EMOTIONS)
    assert same(found.tensors, translate_official(emotion_in_small, "x"))
    with pytest.raises(ValueError, match=r"emotion\.pth has the official code's names .* train from it"):
        load_weights(path)


@pytest.fixture(scope="module")
def emotion_in_small(official_emotion) -> dict:
    """The official emotion network's last layers, which stand for all."""
    return {name: value for name, value in official_emotion.items() if name.startswith("emotion_module.")}


class Dictionary(dict):
    """Like those of easydict or addict, which torch can't read without their code."""


@pytest.mark.parametrize(
    "content, said",
    [
        (
            {"network": Custom(), "epoch": 3},
            r"holds \S*Custom, which is code .*\(keys found: network, epoch\)",
        ),
        (Custom(), r"holds \S*Custom, which is code .*read without it; save"),
        ({"config": Dictionary(a=1)}, r"holds \S*Dictionary, which is code .*without it; save"),
        (
            {"run": os.system, "backbone.feature1.0.weight": torch.ones(1)},
            r"holds \S+\.system, which is code",
        ),
        (
            {"args": argparse.Namespace(), "weights": {"x": torch.ones(1)}},
            "holds argparse.Namespace, which is",
        ),
    ],
)
def test_what_cannot_be_read_without_code_is_named_with_the_keys_found(content, said, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    for read in (load_weights, load_training, read_source):
        with pytest.raises(
            ValueError, match=rf"file\.pth {said}.*torch\.save\(network\.state_dict\(\), FILE\)$"
        ):
            read(tmp_path / "file.pth")


@pytest.mark.parametrize("form", ["whole", "without its last layer", "state_dict", "of timm"])
def test_a_classifier_is_for_model_imagenet(form, tmp_path):
    state = {
        "conv1.weight": torch.ones(64, 3, 7, 7),
        "fc.weight": torch.ones(1000, 8),
        "fc.bias": torch.ones(1000),
    }
    if form == "without its last layer":
        state = {"conv1.weight": state["conv1.weight"]}
    if form == "of timm":
        state = {"conv_stem.weight": torch.ones(2, 3, 3, 3), "classifier.bias": torch.ones(1000)}
    content = {"state_dict": state, "args": argparse.Namespace()} if form == "state_dict" else state
    torch.save(content, tmp_path / "resnet50.pth")
    for read in (load_weights, read_source):
        with pytest.raises(
            ValueError, match=r"resnet50\.pth holds a classifier.* with model\.imagenet=FILE$"
        ):
            read(tmp_path / "resnet50.pth")


# ---- emotion checkpoints


def official(state: dict) -> Source:
    """What a file with this state dict is read as."""
    with mock.patch.object(checkpoint, "read_file", lambda path: (state, b"")):
        return read_source("official.pth")


def test_the_public_emotion_checkpoint_and_the_whole_network_fill_the_emotion_branch_alone(
    paper_network, official_state, official_emotion, tmp_path
):
    names = {f"module.{name}": value for name, value in official_emotion.items()}
    torch.save({"model": names, "epoch": 3, "best": 0.6}, tmp_path / "emotion_model.pth")
    network = copy.deepcopy(paper_network)
    for value in network.state_dict().values():
        value.zero_()
    branch = EmotionNetwork("resnet50", EMOTIONS, emotion_scale=0.5, width=256)
    load_emotion_branch(network, read_source(tmp_path / "emotion_model.pth"))
    found = load_emotion_branch(branch, official(official_state))
    for each in (network, branch):
        assert same(each.state_dict(), paper_network.state_dict(), only="emotion.")
    assert not any(v.any() for name, v in network.state_dict().items() if not name.startswith("emotion."))
    assert (found.emotions, found.emotion_training_ids.tolist()) == (EMOTIONS, [])


@pytest.mark.parametrize("kind, ids", [("emotion", [1, 2, 3]), ("whole", [7, 8])])
def test_our_networks_give_their_branch_and_the_pictures_that_trained_it(
    kind, ids, emotion_weights, lite_weights, tmp_path
):
    weights = emotion_weights if kind == "emotion" else lite_weights
    network = build_lite()
    before = copy.deepcopy(network.state_dict())
    found = load_emotion_branch(network, read_source(write(tmp_path / "file.pt", weights)))
    for name, value in network.state_dict().items():
        expected = weights.tensors if name.startswith("emotion.") else before
        assert torch.equal(value, expected[name]), name
    assert (found.emotion_training_ids.tolist(), found.emotions) == (ids, EMOTIONS)


def test_a_branch_of_another_backbone_or_other_emotions_is_refused_before_anything_is_written(
    emotion_weights, official_emotion, tmp_path
):
    ours = read_source(write(tmp_path / "emotion.pt", emotion_weights))
    for network, source, said in (
        (build_lite(), official(official_emotion), "the emotion backbone resnet50; the network's: tf_eff"),
        (build_lite(emotions=("neutral", "awe")), ours, r"emotions \['amuse.*; the network's: \['neutral'"),
        (build_lite(width=32), ours, "an emotion path of 128 channels; the network's: 32"),
    ):
        before = snapshot(network)
        with pytest.raises(ValueError, match=said):
            load_emotion_branch(network, source)
        assert snapshot(network) == before
