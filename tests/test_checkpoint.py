"""Weights files: ours come back as they were, official ones land in place, all others are refused."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_lite, official_shapes, rule_made
from safetensors import safe_open
from safetensors.torch import save_file

from eamb.network.backbones import LITE0
from eamb.network.outputs import EMOTIONS, Scale
from eamb.weights import checkpoint
from eamb.weights.checkpoint import (
    Weights,
    describe,
    export_weights,
    load_emotion_branch,
    load_official_weights,
    load_tensors,
    load_training,
    load_weights,
    read_source,
    save_training,
    weights_hash,
)
from eamb.weights.official import OFFICIAL_UNUSED
from EAMBNet import EmotionNetwork

PARA = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


def snapshot(network) -> str:
    return weights_hash(network.state_dict())


# ---- our own files ------------------------------------------------------------------------------------


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

    network = found.build()
    assert not network.training
    assert network.arguments == lite_network.arguments
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(network(images), lite_network(images), strict=True):
            assert torch.equal(ours, theirs)


def test_an_emotion_network_comes_back(emotion_weights, tmp_path):
    found = load_weights(write(tmp_path / "emotion.safetensors", emotion_weights))
    assert (found.task, found.scale) == ("emotion", None)
    network = found.build()
    assert isinstance(network, EmotionNetwork)
    assert snapshot(network) == weights_hash(emotion_weights.tensors)


def test_exported_metadata_can_be_read_by_any_program(lite_weights, tmp_path):
    export_weights(tmp_path / "lite.safetensors", lite_weights)
    with safe_open(tmp_path / "lite.safetensors", framework="np") as file:
        metadata = file.metadata()
        assert file.get_tensor("training_ids").tolist() == lite_weights.training_ids.tolist()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["eambnet"])["scale"] == PARA.as_dict()


def test_a_training_comes_back_with_its_state(lite_weights, tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    state = {"epoch": 3, "parts": [{"step": 4, "loss": 0.5}], "optimizer": optimizer.state_dict()}
    save_training(tmp_path / "last.pt", lite_weights, state)
    weights, found = load_training(tmp_path / "last.pt")
    assert (found["epoch"], found["parts"]) == (3, state["parts"])
    buffer = found["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(buffer, torch.ones(2))
    assert weights_hash(weights.tensors) == weights_hash(lite_weights.tensors)


def test_resuming_from_a_file_without_training_state_is_refused(emotion_weights, tmp_path):
    content = {"weights": {}, "description": "{}"}
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt holds no training state to resume from"):
        load_training(tmp_path / "weights.pt")


def test_a_state_dict_that_is_not_ours_is_refused_with_the_way_out(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for ending in ("pt", "safetensors"):
        for read in (load_weights, read_source):
            said = rf"other\.{ending} was not written by this program .*--weights"
            with pytest.raises(ValueError, match=said):
                read(tmp_path / f"other.{ending}")


def test_a_file_of_a_later_format_is_refused(emotion_weights, tmp_path):
    later = Weights(emotion_weights.tensors, {**emotion_weights.description, "format": 2})
    with pytest.raises(ValueError, match=r"later\.pt has format 2 and this program reads 1"):
        load_weights(write(tmp_path / "later.pt", later))


def test_weights_that_do_not_fit_their_description_are_refused(emotion_weights):
    tensors = {name: v for name, v in emotion_weights.tensors.items() if name != "emotion.classifier.bias"}
    missing = r"the set of tensors does not fit .*: missing emotion\.classifier\.bias$"
    with pytest.raises(ValueError, match=missing):
        Weights(tensors, emotion_weights.description).build()
    architecture = {**emotion_weights.description["architecture"], "emotions": EMOTIONS[:7]}
    seven = {**emotion_weights.description, "architecture": architecture}
    with pytest.raises(ValueError, match=r"emotion\.classifier\.bias is \(8,\), the network's is \(7,\)"):
        Weights(emotion_weights.tensors, seven).build()


# ---- hashes -------------------------------------------------------------------------------------------


def test_weights_hash_changes_with_one_value_one_name_one_shape():
    tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(0), "c": torch.ones(1, dtype=torch.float16)}
    changed = {name: value.clone() for name, value in tensors.items()}
    changed["a"][1, 2] = 1e-45  # the smallest float32
    others = [
        changed,
        {**tensors, "b": torch.tensor(1)},
        {"z" if name == "c" else name: value for name, value in tensors.items()},
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "b": torch.tensor(0, dtype=torch.int32)},
    ]
    assert len({weights_hash(values) for values in [tensors, *others]}) == 1 + len(others)


def test_weights_hash_is_the_same_whatever_the_order_and_the_layout_in_memory():
    tensors = {"a": torch.randn(2, 3, 4, 4), "b": torch.randn(5)}
    layout = tensors["a"].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert weights_hash({"b": tensors["b"], "a": layout}) == weights_hash(tensors)


# ---- writing whole or not at all ----------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_what_cannot_be_saved_leaves_the_last_file(emotion_weights, tmp_path, ending):
    path = write(tmp_path / f"last.{ending}", emotion_weights)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        if ending == "pt":
            save_training(path, emotion_weights, {"schedule": lambda epoch: epoch})
        else:
            export_weights(path, Weights(emotion_weights.tensors, {"path": tmp_path}))  # no JSON
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fails_is_named_and_keeps_the_last_checkpoint(emotion_weights, tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    path = write(tmp_path / "last.pt", emotion_weights)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):  # torch's own is a RuntimeError
            save_training(path, emotion_weights, {}, tmp_path / "previous.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_bit_anywhere_is_found_or_changes_nothing(tmp_path):
    network = torch.nn.Linear(40, 30)
    description = {"format": 1, "task": "emotion", "architecture": {"emotions": ["awe"]}, "scale": None}
    weights = Weights(network.state_dict(), description)
    save_training(tmp_path / "last.pt", weights, {"epoch": 3})
    content, found = (tmp_path / "last.pt").read_bytes(), 0
    for place in range(0, len(content), len(content) // 75):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "bad.pt").write_bytes(damaged)
        try:
            again, state = load_training(tmp_path / "bad.pt")
        except ValueError as error:
            assert f"{tmp_path / 'bad.pt'} is" in str(error)
            found += 1
        else:  # between the parts of the file
            assert weights_hash(again.tensors) == weights_hash(weights.tensors)
            assert (again.description, state) == (description, {"epoch": 3})
    assert found > 50


# ---- files that are refused ---------------------------------------------------------------------------


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
    said = r"evil\.pt is not a weights file: .*code, which is never executed"
    for read in (checkpoint.read_file, load_weights, load_training, read_source):
        with pytest.raises(ValueError, match=said):
            read(path)
    assert not marker.exists()


UNREADABLE = {
    b"<!DOCTYPE html>\n<html><body>404</body></html>": "it is a web page; download the file itself",
    b"\n <html></html>": "it is a web page",
    b"\xef\xbb\xbf<html></html>": "it is a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n": "a Git LFS pointer; .*lfs pull",
    b"": "it is empty",
    b'{"message": "Not Found"}': "it is cut off, damaged or something else",
}


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("content", UNREADABLE)
def test_what_is_no_weights_file_is_refused_in_one_sentence(tmp_path, content, ending):
    path = tmp_path / f"file.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=UNREADABLE[content]) as error:
        load_weights(path)
    assert str(error.value).startswith(f"checkpoint: {path} is not a weights file: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["pt", "old.pt", "safetensors"])
def test_a_cut_off_file_is_refused_wherever_it_is_cut(tmp_path, kind):
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
    tensors = {"weight": torch.randn(200, 100), "bias": torch.randn(4)}  # torch reads large files otherwise
    if kind == "safetensors":
        save_file(tensors, whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "pt")
    content = whole.read_bytes()
    assert checkpoint.read_file(whole).content.keys() == tensors.keys()
    for length in range(1, len(content), max(1, len(content) // 30)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a weights file: it is cut off"):
            checkpoint.read_file(path)


def test_a_file_that_holds_no_dictionary_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt must hold a dictionary of tensors, got list"):
        load_weights(tmp_path / "list.pt")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_file_that_is_not_there_is_named(tmp_path, lite_network, ending):
    path = tmp_path / f"absent.{ending}"
    for call in (
        load_weights,
        checkpoint.read_file,
        load_training if ending == "pt" else load_weights,
        lambda path: load_official_weights(lite_network, path),
        lambda path: load_emotion_branch(lite_network, read_source(path)),
    ):
        with pytest.raises(FileNotFoundError, match=rf"checkpoint: no file .*absent\.{ending}"):
            call(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value):
    network, tensors = small(), {name: v.clone() for name, v in small().state_dict().items()}
    before = snapshot(network)
    tensors["1.weight"][0, 1] = value
    with pytest.raises(ValueError, match=r"file\.pt .*: 1\.weight holds values that are NaN or infinite$"):
        load_tensors(network, tensors, "file.pt")
    assert snapshot(network) == before


WRONG = {
    "are not different names": {"architecture": {"backbone": "a", "emotions": ["awe", "fear", "awe"]}},
    "1 ratings for 10 outputs": {"architecture": {"backbone": "a", "outputs": 10}, "scale": PARA.as_dict()},
    "is damaged: 'backbone'": {"architecture": {"emotions": []}},
    "is damaged: 'architecture'": {"architecture": None},
    "the task None is no name": {"architecture": {"backbone": "a"}, "task": None},
}


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_description_that_does_not_fit_itself_is_refused(said, ending, tmp_path):
    description = {"format": 1, "task": "aesthetics", "scale": None, **WRONG[said]}
    if description["architecture"] is None:
        del description["architecture"]
    path = write(tmp_path / f"wrong.{ending}", Weights({"x": torch.zeros(1)}, description))
    with pytest.raises(ValueError, match=f"the description in .*wrong.{ending} .*{said}"):
        load_weights(path)


# ---- tensors into networks ----------------------------------------------------------------------------


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))


def test_nothing_is_written_unless_everything_fits():
    network = small()
    before = snapshot(network)
    tensors = {
        "0.weight": torch.zeros(3, 2),
        "0.bias": torch.zeros(4),
        "1.weight": "text",
        "2.bias": torch.zeros(1),
    }
    with pytest.raises(ValueError) as error:
        load_tensors(network, tensors, "file.pt")
    assert str(error.value) == (
        "checkpoint: file.pt does not fit the network: missing 1.bias; unknown 2.bias; "
        "0.bias is (4,), the network's is (3,); 1.weight is no tensor but str, the network's is (1, 3)"
    )
    assert snapshot(network) == before


def test_a_long_list_of_problems_is_cut_and_counted():
    tensors = small().state_dict() | {f"more.{i:02}": torch.zeros(1) for i in range(20)}
    with pytest.raises(ValueError, match=r"unknown more\.11 \(\+8 more\)$"):
        load_tensors(small(), tensors, "file.pt")


def test_a_part_can_be_filled_and_a_part_be_left():
    network, tensors = small(), {name: torch.ones_like(v) for name, v in small().state_dict().items()}
    before = copy.deepcopy(network.state_dict())
    load_tensors(network, {"1.weight": tensors["1.weight"], "1.bias": tensors["1.bias"]}, "x", only="1.")
    assert torch.equal(network[0].weight, before["0.weight"])
    assert (network[1].weight == 1).all()

    network = small()
    before = copy.deepcopy(network.state_dict())
    load_tensors(network, tensors | {"1.bias": torch.zeros(7)}, "x", leave=("1.",))
    assert (network[0].weight == 1).all()
    assert torch.equal(network[1].weight, before["1.weight"])


# ---- state dicts of the official code -----------------------------------------------------------------


@pytest.fixture(scope="module")
def target(paper_network):
    """A paper network to load into; each test that changes it fills it with zeros first."""
    return copy.deepcopy(paper_network)


@pytest.fixture
def blank(target):
    with torch.no_grad():
        for value in target.state_dict().values():
            value.zero_()
    return target


def is_blank(network) -> bool:
    return not any(value.any() for value in network.state_dict().values())


def equal(network, other, only: str = "") -> bool:
    state = other.state_dict()
    return all(torch.equal(v, state[k]) for k, v in network.state_dict().items() if k.startswith(only))


def copies(state: dict) -> dict:
    """The same tensors once more, as the official class registers them."""
    parts = {"0": "conv1", "1": "bn1", "4": "layer1"}
    found = {}
    for branch, layers in (("x", (2,)), ("s", (2, 3, 4))):
        for name, value in state.items():
            stem, _, rest = name.removeprefix(f"feature1_{branch}.").partition(".")
            if name.startswith(f"feature1_{branch}."):
                found[f"model_{branch}.{parts[stem]}.{rest}"] = value
            for layer in layers:
                if name.startswith(f"feature{layer}_{branch}."):
                    found[f"model_{branch}.layer{layer}.{name.partition('.')[2]}"] = value
    unused = {"model_x.layer3.0.conv1.weight": (256, 512, 1, 1), "model_x.layer4.2.bn3.bias": (2048,)}
    unused |= {f"model_{branch}.fc.weight": (1000, 2048) for branch in "xs"}
    return found | {name: torch.zeros(()).expand(shape) for name, shape in unused.items()}


def without_first(state: dict) -> dict:
    return {name: v for name, v in state.items() if not name.startswith(("feature", "emotion_model."))}


@pytest.mark.parametrize("form", ["module.", "both copies", "second copies", "no unused"])
def test_a_whole_official_network_lands_in_every_place(blank, paper_network, official_state, form):
    state = official_state
    if form == "module.":
        state = {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 12}
    elif form == "both copies":
        state = state | copies(state)
    elif form == "second copies":
        emotion = {name: v for name, v in state.items() if name.startswith("emotion_model.")}
        state = without_first(state) | emotion | copies(state)
    elif form == "no unused":
        state = {name: v for name, v in state.items() if not name.startswith(OFFICIAL_UNUSED)}
        assert len(state) < len(official_state)
    load_official_weights(blank, state)
    assert equal(blank, paper_network)


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
    used = {
        name for name in official_state if not name.startswith(("CBR4.", "emotion_model.backbone.feature4."))
    }
    assert len(used) == len(state)


@pytest.mark.parametrize("form", ["path", "bare"])
def test_the_public_emotion_checkpoint_fills_the_emotion_branch_alone(
    blank, paper_network, official_emotion, tmp_path, form
):
    source = official_emotion
    if form == "path":
        names = {f"module.{name}": value for name, value in official_emotion.items()}
        torch.save({"model": names, "epoch": 3, "best": 0.6}, tmp_path / "emotion_model.pth")
        source = tmp_path / "emotion_model.pth"
    load_official_weights(blank, source)
    assert equal(blank, paper_network, only="emotion.")
    assert not blank.detail.conv1.weight.any()
    assert not blank.head[5].weight.any()


def test_both_heads_load_and_neither_into_the_other(blank, official_state):
    para = official_state | {name: rule_made(name, official_shapes(1)[name]) for name in HEAD}
    with pytest.raises(ValueError) as error:
        load_official_weights(blank, para)
    assert str(error.value) == (
        "checkpoint: the given state dict does not fit the network: "
        "head.5.bias is (1,), the network's is (10,); head.5.weight is (1, 128), the network's is (10, 128)"
    )
    assert is_blank(blank)
    blank.head[5], ten = torch.nn.Linear(128, 1), blank.head[5]
    try:
        load_official_weights(blank, para)
        assert torch.equal(blank.head[5].weight, para["head.5.weight"])
    finally:
        blank.head[5] = ten


HEAD = ("head.5.weight", "head.5.bias")


@pytest.mark.parametrize("alone", [False, True], ids=["whole network", "emotion file"])
def test_missing_unknown_and_misshapen_names_are_listed_and_nothing_is_written(
    blank, official_state, official_emotion, alone
):
    state = dict(official_emotion if alone else official_state)
    prefix = "" if alone else "emotion_model."
    missing, misshapen = f"{prefix}backbone.feature1.0.weight", f"{prefix}emotion_module.conv2.0.bias"
    del state[missing]
    state[misshapen] = torch.zeros(3)
    state[f"{prefix}emotion_module.conv4.0.bias"] = torch.zeros(3)
    state[f"{prefix}emotion_module.conv1.7.bias"] = torch.zeros(3)
    state["surprise"] = torch.zeros(3)
    state[f"{prefix}emotion_module.fc_layer.bias"] = [1, 2, 3]
    with pytest.raises(ValueError) as error:
        load_official_weights(blank, {"model": state})
    problems = str(error.value).partition(" does not fit the network: ")[2].split("; ")
    assert sorted(problems) == sorted(
        [
            f"missing {missing}",
            f"unknown {prefix}emotion_module.conv4.0.bias",
            f"unknown {prefix}emotion_module.conv1.7.bias",
            "unknown surprise",
            f"{misshapen} is (3,), the network's is (256,)",
            f"{prefix}emotion_module.fc_layer.bias is no tensor but list, the network's is (8,)",
        ]
    )
    assert is_blank(blank)


def test_names_of_our_own_are_unknown_to_the_official_code(blank, official_state):
    with pytest.raises(ValueError, match=r"unknown emotion\.classifier\.bias$"):
        load_official_weights(blank, official_state | {"emotion.classifier.bias": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"unknown detail\.conv1\.weight"):
        load_official_weights(blank, blank.state_dict())


def test_two_copies_of_one_tensor_must_be_equal(blank, official_state):
    state = official_state | copies(official_state)
    other = state["model_s.bn1.weight"]
    for unequal in (other + 1e-6, other[:3], other.double()):
        with pytest.raises(ValueError, match=r"feature1_s\.1\.weight and model_s\.bn1\.weight .* differ"):
            load_official_weights(blank, state | {"model_s.bn1.weight": unequal})
    assert is_blank(blank)


def test_the_emotion_network_takes_its_part_of_either_file(paper_network, official_state, official_emotion):
    network = EmotionNetwork("resnet50", EMOTIONS, emotion_scale=0.5, width=256)
    for source in (official_state, official_emotion):
        torch.nn.init.zeros_(network.emotion.classifier.weight)
        load_official_weights(network, source)
        assert equal(network.emotion, paper_network.emotion)


# ---- emotion checkpoints ------------------------------------------------------------------------------


def test_our_emotion_network_fills_the_emotion_branch(emotion_weights, tmp_path):
    network = build_lite()
    before = copy.deepcopy(network.state_dict())
    known = load_emotion_branch(network, read_source(write(tmp_path / "emotion.pt", emotion_weights)))
    for name, value in network.state_dict().items():
        expected = emotion_weights.tensors if name.startswith("emotion.") else before
        assert torch.equal(value, expected[name]), name
    assert known.emotion_training_ids.tolist() == [1, 2, 3]
    assert (known.task, known.emotions) == ("emotion", EMOTIONS)


def test_our_whole_network_gives_its_branch_and_the_pictures_that_trained_it(
    lite_network, lite_weights, tmp_path
):
    network = build_lite()
    known = load_emotion_branch(network, read_source(write(tmp_path / "lite.safetensors", lite_weights)))
    assert equal(network.emotion, lite_network.emotion)
    assert known.emotion_training_ids.tolist() == [7, 8]
    assert not equal(network.detail, lite_network.detail)  # its BatchNorm has seen pictures


def test_a_whole_official_network_given_as_emotion_checkpoint_gives_its_branch(
    blank, paper_network, official_state, tmp_path
):
    part = ("emotion_model.", "head.", "CBAM.")  # the rest takes a second to write
    state = {name: v for name, v in official_state.items() if name.startswith(part)}
    torch.save(state, tmp_path / "eambnet.pth")
    known = load_emotion_branch(blank, read_source(tmp_path / "eambnet.pth"))
    assert equal(blank, paper_network, only="emotion.")
    assert not blank.context.conv1.weight.any()
    assert (known.emotions, known.emotion_training_ids.tolist()) == (EMOTIONS, [])


def test_a_branch_of_another_backbone_or_other_emotions_is_refused_before_anything_is_written(
    blank, emotion_weights, official_emotion, tmp_path
):
    branch = read_source(write(tmp_path / "emotion.pt", emotion_weights))
    networks = [blank, build_lite(emotions=("neutral", "disgust")), build_lite(width=32)]
    before = [snapshot(network) for network in networks[1:]]
    said = (
        r"emotion\.pt has the backbone tf_efficientnet_lite0; .* is resnet50",
        r"knows the emotions amusement, .* in this order; the network's are neutral, disgust",
        r"emotion\.classifier\.weight is \(8, 128\), the network's is \(8, 32\)",
    )
    for network, match in zip(networks, said, strict=True):
        with pytest.raises(ValueError, match=match):
            load_emotion_branch(network, branch)
    with pytest.raises(ValueError, match="has the backbone resnet50; the network's is tf_efficientnet_lite0"):
        load_official_weights(networks[1], official_emotion)
    assert is_blank(blank)
    assert [snapshot(network) for network in networks[1:]] == before


@pytest.mark.parametrize(
    "about", [{}, {"image_size": "224", "exif": True}, {"image_size": 224}, {"exif": False}]
)
def test_weights_that_do_not_say_for_which_pictures_are_refused_in_a_sentence(about):
    with pytest.raises(ValueError, match='must say which pictures they are for, "image_size" in pixels'):
        _ = Weights({}, about).pictures
    assert Weights({}, {"image_size": 96, "exif": False}).pictures == (96, False)
