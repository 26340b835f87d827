"""The exported network says and computes what its checkpoint does, or is not written."""

import numpy as np
import pytest
import small
import torch
from torch import nn

import checkpoint
import engines
from EAMBNet import Scale, build_model
from scripts import export

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # that its backbone expects
SCALE = Scale("distribution", 1, 4, 2.5, bins=(1.0, 2.0, 3.0, 4.0))


def write_checkpoint(folder, **changes):
    """A small network with lively statistics and all that travels with weights, as a safetensors file."""
    torch.manual_seed(0)
    widths = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}
    model = build_model(small.BACKBONE, 4, emotions=("joy", "fear"), **widths, **changes)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    known = {"image_size": 64, "exif": True, "licence": "für alle", "splits": {"train": "ab12"}}
    described = {**checkpoint.describe(model, SCALE), **known, "training_ratings": [1.0, 2.5, 4.0]}
    ids = np.array([-(2**63), 5]), np.array([7])
    path = folder / "small.safetensors"
    checkpoint.export_weights(path, checkpoint.Weights(model.state_dict(), described, *ids))
    return path


def needs(*packages):
    for package in packages:
        pytest.importorskip(package)


def photographs(folder, count=3):
    return [folder / name for name in small.write_pictures(folder, count)]


def run(source, target, *words):
    return export.main([str(source), str(target), *map(str, words)])


def test_everything_that_travels_with_the_weights_is_in_the_file(tmp_path, capsys):
    needs("onnx", "openvino")
    source = write_checkpoint(tmp_path)
    pictures = photographs(tmp_path)
    assert run(source, tmp_path / "small.onnx", "--check", *pictures) == 0
    assert "fp32" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir() if path not in pictures) == [
        ".onnx",
        ".safetensors",
    ]
    exported, weights = engines.Exported(tmp_path / "small.onnx"), checkpoint.load_weights(source)
    assert exported.weights.description == weights.description
    assert exported.weights.scale == SCALE
    assert exported.weights.training_ids.tolist() == [-(2**63), 5]
    assert exported.weights.emotion_training_ids.tolist() == [7]
    assert exported.export["precision"] == "fp32"
    assert max(exported.export["differences"].values()) < 1e-4


def test_a_network_without_emotions_can_be_exported(tmp_path):
    needs("onnx", "openvino")
    assert run(write_checkpoint(tmp_path, without=("emotion",)), tmp_path / "small.onnx") == 0
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    output = engines.Exported(tmp_path / "small.onnx").run(images)
    assert [tuple(value.shape) for value in output] == [(3, 4), (3, 0), (3, 1, 1, 1)]


def test_a_graph_that_computes_something_else_is_refused_and_not_written(tmp_path, monkeypatch, capsys):
    needs("onnx", "openvino")
    trace = export.trace

    def tampered(whole, pictures):
        graph = trace(whole, pictures)
        whole.model.head[-1].bias.data[0] += 0.01  # after the graph was made: now they disagree a little
        return graph

    monkeypatch.setattr(export, "trace", tampered)
    source, target = write_checkpoint(tmp_path), tmp_path / "small.onnx"
    assert run(source, target) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: export: the exported network's prediction differs from PyTorch's by ")
    assert "nothing was written" in error
    assert list(tmp_path.iterdir()) == [source]


def test_int8_stays_close_and_is_not_fp32(tmp_path, capsys):
    needs("onnx", "openvino", "nncf")
    source, pictures = write_checkpoint(tmp_path), photographs(tmp_path / "pictures", 8)
    target = tmp_path / "small.int8"
    assert run(source, target, "--int8", "--calibrate", *pictures, "--check", *pictures) == 0
    exported = engines.Exported(target, "int8")
    assert 0 < exported.export["differences"]["score"] < export.INT8_TOLERANCE
    assert exported.export["differences"]["prediction"] > 1e-5  # fp32 gives less
    assert exported.weights.description == checkpoint.load_weights(source).description
    content = target.read_bytes()
    middle = len(content) // 2  # among the weights
    target.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ValueError, match=r"small\.int8 is no exported network, is cut off or damaged"):
        engines.Exported(target)


@pytest.mark.parametrize(
    ("found", "precision", "error"),
    [
        (
            {"prediction": 2e-4},
            "fp32",
            "prediction differs from PyTorch's by 2.0e-04, allowed is 1e-04 in fp32",
        ),
        ({"emotion_map": float("nan")}, "fp32", "emotion_map differs from PyTorch's by nan"),
        ({"score": 0.5}, "int8", "score differs from PyTorch's by 5.0e-01"),
    ],
)
def test_differences_above_the_tolerance_are_refused(found, precision, error):
    small_ones = {"prediction": 0.0, "emotion_logits": 0.0, "emotion_map": 0.0, "score": 0.0}
    with pytest.raises(ValueError, match=error):
        export.refuse_different(small_ones | found, precision)


def test_differences_within_it_pass():
    differences = {"prediction": 9e-5, "emotion_logits": 0.0, "emotion_map": 9e-5, "score": 0.0}
    export.refuse_different(differences, "fp32")
    export.refuse_different({**differences, "prediction": 0.05, "emotion_logits": 1.0}, "int8")


def test_a_value_that_is_no_number_differs_infinitely():
    ours, theirs = torch.zeros(2, 1), torch.tensor([[0.0], [float("nan")]])
    assert export.largest(ours, theirs) == float("inf")
    assert export.largest(ours, theirs[:1]) == float("inf")
    assert export.largest(ours, ours + 0.25) == 0.25
    assert export.largest(ours[:, :0], ours[:, :0]) == 0  # the logits of a network without emotions


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["out.pt"], "the output must end in .onnx, got out.pt"),
        (["out.onnx", "--int8"], "the output must end in .int8, got out.onnx"),
        (["out.int8", "--int8"], "--int8 and --calibrate PHOTOS belong together"),
        (["out.onnx", "--calibrate", "a.jpg"], "--int8 and --calibrate PHOTOS belong together"),
    ],
)
def test_bad_options_are_one_sentence(words, error, tmp_path, capsys):
    assert run("none.pt", tmp_path / words[0], *words[1:]) == 2
    assert f"error: export: {error}" in capsys.readouterr().err


def test_an_existing_file_is_kept(tmp_path, capsys):
    (tmp_path / "out.onnx").write_text("mine")
    assert run("none.pt", tmp_path / "out.onnx") == 2
    assert "out.onnx exists; --force overwrites it" in capsys.readouterr().err
    assert (tmp_path / "out.onnx").read_text() == "mine"


def test_a_package_that_is_not_installed_is_named_with_its_command():
    with pytest.raises(ValueError, match=r"^export: not_there is not installed; pip install here$"):
        export.needed("not_there", "here")


def test_lite_can_be_exported_and_its_depthwise_layers_compute_the_same(tmp_path):
    # Scoring on a CPU pads depthwise layers in a way that ONNX cannot express; tracing must not see it.
    needs("onnx", "openvino")
    target = tmp_path / "lite.onnx"
    assert export.main([str(small.ROOT / "checkpoints" / "eambnet_lite_para.safetensors"), str(target)]) == 0
    assert engines.Exported(target).export["differences"]["prediction"] < 1e-4
