"""The exported network says and computes what its checkpoint does, or is not written."""

import sys

import numpy as np
import pytest
import small
import torch
from conftest import enliven

from eamb.inference.exported import Exported
from eamb.network.backbones import LITE0
from eamb.network.outputs import Output, Scale
from eamb.network.pair_networks import SeriesNetwork
from eamb.weights import checkpoint
from EAMBNet import build_model
from scripts import export

pytestmark = pytest.mark.portable

SCALE = Scale("distribution", 1, 4, 2.5, bins=(1.0, 2.0, 3.0, 4.0))


def write_pair_checkpoint(folder):
    """A small pair network whose odds differ from picture to picture."""
    torch.manual_seed(0)
    model = SeriesNetwork(small.BACKBONE, "paunit").eval()
    model.last.weight.data.normal_(std=1e-3)
    described = {**checkpoint.describe(model, None), "image_size": 64, "exif": True, "crop": True}
    path = folder / "pairs.safetensors"
    checkpoint.export_weights(path, checkpoint.Weights(model.state_dict(), described))
    return path


def write_checkpoint(folder, branch="trained", backbone=small.BACKBONE, **changes):
    """A small network with lively statistics and all that travels with weights, as a safetensors file.

    Its emotion branch is random, whatever `branch` says of it.
    """
    torch.manual_seed(0)
    widths = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}
    model = enliven(build_model(backbone, 4, emotions=("joy", "fear"), **widths, **changes))
    known = {"image_size": 64, "exif": True, "licence": "für alle", "splits": {"train": "ab12"}}
    known["origin"] = {"emotion_branch": branch}
    described = {**checkpoint.describe(model, SCALE), **known, "training_ratings": [1.0, 2.5, 4.0]}
    ids = np.array([-(2**63), 5]), np.array([7])
    path = folder / "small.safetensors"
    checkpoint.export_weights(path, checkpoint.Weights(model.state_dict(), described, *ids))
    return path


@pytest.fixture
def packages():
    for package in ("onnx", "openvino", "nncf"):
        pytest.importorskip(package)


def run(source, target, *words):
    return export.main([str(source), str(target), *map(str, words)])


@pytest.mark.parametrize("branch", [{}, {"emotion_levels": 4, "emotion_scale": 1.0}])
def test_everything_that_travels_with_the_weights_is_in_the_file(branch, packages, tmp_path):
    source = write_checkpoint(tmp_path, **branch)
    pictures = [tmp_path / name for name in small.write_pictures(tmp_path, 3)]
    assert run(source, tmp_path / "small.onnx", "--check", *pictures) == 0
    assert set(tmp_path.iterdir()) == {source, tmp_path / "small.onnx", *pictures}
    exported, weights = Exported(tmp_path / "small.onnx"), checkpoint.load_weights(source)
    assert exported.weights.description == weights.description
    assert exported.weights.training_ids.tolist() == [-(2**63), 5]
    assert exported.weights.emotion_training_ids.tolist() == [7]
    assert exported.export["precision"] == "fp32"
    assert max(exported.export["differences"].values()) < 1e-4


def test_a_network_of_lite_without_emotions_computes_the_same(packages, tmp_path):
    # Scoring on a CPU pads depthwise layers in a way that ONNX cannot express; tracing must not see it.
    assert run(write_checkpoint(tmp_path, backbone=LITE0, without=("emotion",)), tmp_path / "lite.onnx") == 0
    exported = Exported(tmp_path / "lite.onnx")
    assert exported.export["differences"]["prediction"] < 1e-4
    output = exported.run(torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
    assert [tuple(value.shape) for value in output] == [(3, 4), (3, 0), (3, 1, 1, 1)]


def test_a_graph_that_computes_something_else_is_not_written(packages, tmp_path, monkeypatch, capsys):
    trace = export.trace

    def tampered(whole, pictures):
        graph = trace(whole, pictures)
        whole.model.head[-1].bias.data[0] += 0.01  # after the graph was made: now they disagree a little
        return graph

    monkeypatch.setattr(export, "trace", tampered)
    source = write_checkpoint(tmp_path)
    assert run(source, tmp_path / "small.onnx") == 2
    assert "the exported network's prediction differs from PyTorch's by " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_int8_stays_close_and_is_not_fp32(packages, tmp_path):
    # The maps of a random branch are little but noise, stretched to 0 to 1, and int8 has a noise of its own.
    source, target = write_checkpoint(tmp_path, "never trained"), tmp_path / "small.int8"
    pictures = [tmp_path / name for name in small.write_pictures(tmp_path, 8)]
    assert run(source, target, "--int8", "--calibrate", *pictures, "--check", *pictures) == 0
    exported = Exported(target, "int8")
    differences = exported.export["differences"]
    assert 0 < differences["score"] < export.INT8_LIMITS["score"]
    assert 0 < differences["emotion_probability"] < export.INT8_LIMITS["emotion_probability"]
    assert differences["prediction"] > 1e-5  # fp32 gives less
    assert exported.weights.description == checkpoint.load_weights(source).description
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1  # among the weights
    target.write_bytes(content)
    with pytest.raises(ValueError, match=r"small\.int8 was not written by .*, is cut off or damaged"):
        Exported(target)


def flat(value):
    """Two maps of one value."""
    return torch.full((2, 1, 3, 3), value)


def differences(precision, branch="trained", task="aesthetics", **changes):
    """Of a network that says of two pictures what PyTorch does, but for the changes."""
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    usual = {"prediction": torch.full((2, 4), 0.25), "emotion_logits": logits, "emotion_map": flat(0.5)}
    description = {"task": task, "scale": SCALE.as_dict() if task == "aesthetics" else None}
    weights = checkpoint.Weights({}, description | {"origin": {"emotion_branch": branch}})
    return export.differences(weights, Output(**usual), Output(**usual | changes), precision)


@pytest.mark.parametrize(
    ("field", "value", "precision", "error"),
    [
        ("prediction", torch.full((2, 4), 0.2502), "fp32", "prediction .* by 2.0e-04, allowed is 1e-04"),
        ("emotion_map", flat(0.6), "fp32", "emotion_map .* by 1.0e-01, allowed is 1e-04"),
        ("prediction", torch.eye(4)[:2], "int8", "score .* by 5.0e-01, allowed is 1e-01"),
        ("emotion_logits", torch.eye(2), "int8", "emotion_probability .*, allowed is 2e-01"),
        ("emotion_map", flat(0.0), "int8", "mean_map .* by 5.0e-01, allowed is 1e-01"),
        ("emotion_map", flat(0.5)[..., :2], "int8", "emotion_map .* by inf"),
        ("prediction", torch.tensor([[0.25] * 4, [np.nan] * 4]), "int8", "prediction .* by inf"),
        ("emotion_logits", torch.tensor([[np.inf, 0], [3, 0]]), "int8", "emotion_logits .* by inf"),
    ],
)
def test_differences_above_the_limits_and_what_is_no_number_are_refused(field, value, precision, error):
    with pytest.raises(ValueError, match=f"^export: the exported network's {error}"):
        differences(precision, **{field: value})


def test_differences_within_the_limits_pass():
    differences("fp32", prediction=torch.full((2, 4), 0.25 + 9e-5), emotion_map=flat(0.5 + 9e-5))
    # The logit of a sure network may be further off: its probability hardly changes. So may places of a map.
    emotion_map = flat(0.54)
    emotion_map[..., 0, 0] = 0.6
    near = {"emotion_logits": torch.tensor([[0.1, 0.0], [4.0, 0.0]]), "emotion_map": emotion_map}
    assert differences("int8", **near)["emotion_logits"] == 1
    # Of an emotion branch that was never trained only the score counts, but all must be numbers.
    differences("int8", "never trained", emotion_logits=torch.eye(2), emotion_map=flat(0.0))
    with pytest.raises(ValueError, match=r"emotion_map differs .* by inf"):
        differences("int8", "never trained", emotion_map=flat(np.nan))
    # Of a pair network half the difference of odds: sigmoid's slope is 1/4 at most, and both odds of a pair
    # may be off by as much, in opposite directions.
    values = differences("int8", task="series", prediction=torch.full((2, 4), 0.25 + 0.1))
    assert values["score"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["out.pt"], "the output must end in .onnx, got out.pt"),
        (["out.onnx", "--int8"], "the output must end in .int8, got out.onnx"),
        (["out.int8", "--int8"], "--int8 and --calibrate PHOTOS belong together"),
        (["out.onnx", "--calibrate", "a.jpg"], "--int8 and --calibrate PHOTOS belong together"),
        (["mine.onnx"], ". holds mine.onnx already; choose another folder, or overwrite with --force"),
        (["out.onnx"], "a package is missing; pip install onnx openvino nncf"),
    ],
)
def test_bad_options_are_one_sentence_and_nothing_is_written(words, error, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "mine.onnx").write_text("mine")
    assert run("none.pt", *words) == 2
    assert f"error: export: {error}" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
