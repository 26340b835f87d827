"""What runs exported networks: it agrees with PyTorch, fills batches up, refuses what it cannot run."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import small
import torch
from conftest import enliven
from test_export import SCALE, write_checkpoint, write_pair_checkpoint

from eamb.inference.exported import Exported, metadata, parse_metadata
from eamb.inference.scorer import Decoded
from eamb.network.backbones import normalisation
from eamb.runtime.engine import Compute, outputs
from eamb.weights import checkpoint
from EAMBNet import build_model
from main import main as program
from scripts.export import main

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network as ONNX; its checkpoint lies beside it."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("exported")
    assert main([str(write_checkpoint(folder)), str(folder / "small.onnx")]) == 0
    return folder / "small.onnx"


ARCHITECTURE = {"backbone": "resnet50", "outputs": 1, "emotions": ["joy", "fear"]}
DESCRIPTION = {"format": 1, "task": "emotion", "architecture": ARCHITECTURE, "scale": None, "licence": "für"}
IDS = np.array([-(2**63), 5]), np.array([7])
WEIGHTS = checkpoint.Weights({"head": torch.ones(1)}, DESCRIPTION, *IDS)


def changed(precision="fp32", **changes):
    description = {**DESCRIPTION, "architecture": ARCHITECTURE | changes.pop("architecture", {}), **changes}
    return metadata(replace(WEIGHTS, description=description), {"precision": precision})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the metadata of x.onnx are damaged"),
        ("[]", "the metadata of x.onnx are damaged"),
        ("{}", "the metadata of x.onnx are damaged"),
        (changed("fp4"), r"the metadata of x.onnx are damaged \(precision fp4\)"),
        (
            changed(format=2),
            "x.onnx is damaged or of another version: its format is 2 and this program reads 1",
        ),
        (changed(architecture={"backbone": None}), "the task, the backbone and the emotions must be names"),
    ],
)
def test_damaged_metadata_are_refused(text, error):
    with pytest.raises(ValueError, match=error):
        parse_metadata(text, "x.onnx")


def test_without_openvino_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    path = tmp_path / "x.onnx"
    with pytest.raises(FileNotFoundError, match="exported: no file"):
        Exported(path)
    path.touch()
    with pytest.raises(ValueError, match=r"which is not installed; pip install openvino$"):
        Exported(path)


def of_another(graph):
    del graph.metadata_props[:]


def described(**changes):
    def describe(graph):
        values = json.loads(graph.metadata_props[0].value)
        values["description"]["architecture"]["emotions"] = changes.pop("emotions", ["joy", "fear"])
        values["description"] |= changes
        graph.metadata_props[0].value = json.dumps(values)

    return describe


def without_map(graph):
    """The emotion map gets another name."""
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "emotion_map" else name for name in names]
    [output] = [output for output in graph.graph.output if output.name == "emotion_map"]
    output.name = "other"


def overflowing(graph):
    import onnx

    [tensor] = [one for one in graph.graph.initializer if one.name == "model.emotion.classifier.weight"]
    values = np.full_like(onnx.numpy_helper.to_array(tensor), 3e38)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def with_nan(graph):
    """In a layer that is followed by a ReLU, which hides it."""
    import onnx

    tensor = next(one for one in graph.graph.initializer if "fusion" in one.name and one.data_type == 1)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (of_another, r"was not written by scripts/export\.py"),
        (
            described(emotions=["joy", "fear", "awe"]),
            r"cannot score .*emotion_logits.* \(1, 2\) and not \(1, 3\)",
        ),
        (described(scale=None), r"cannot score .*prediction .* \(1, 4\) and not \(1, 2\)"),
        (described(image_size=0), "cannot score .*found 0"),
        (overflowing, "cannot score .*emotion_logits is not a number"),
        (without_map, "cannot score .*emotion_map"),
        (with_nan, "holds values that are NaN or infinite"),
    ],
)
def test_a_graph_that_does_not_fit_its_description_is_refused(exported, change, error, tmp_path):
    graph = pytest.importorskip("onnx").load(exported)
    change(graph)
    (tmp_path / "x.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ValueError, match=rf"exported: .*x\.onnx {error}"):
        Exported(tmp_path / "x.onnx")


@pytest.mark.parametrize("end", [0, 50_000])
def test_a_file_that_was_cut_off_is_refused(exported, end, tmp_path):
    (tmp_path / "x.onnx").write_bytes(exported.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"exported: \S*x\.onnx was not written .*, is cut off or damaged"):
        Exported(tmp_path / "x.onnx")


@pytest.mark.parametrize("count", [3, 4])
def test_a_batch_gives_what_pytorch_gives(exported, count):
    torch.manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    batch = Decoded([""] * count, [None] * count, images, {})
    [(same, output)] = Exported(exported).outputs([batch], batch_size=4)
    compute = Compute(torch.device("cpu"), "fp32", *normalisation(small.BACKBONE))
    network = checkpoint.load_weights(exported.with_name("small.safetensors")).build()
    [(_, expected)] = outputs(network, [batch], compute, batch_size=4)
    assert same is batch
    for ours, theirs in zip(expected, output, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def table(command, folder, checkpoint_file, *words):
    """The rows of `main.py predict` or `select`."""
    output = checkpoint_file.with_name(f"{checkpoint_file.name}.csv")
    fixed = ["--checkpoint", str(checkpoint_file), "--output", str(output), "--workers", "0"]
    assert program([command, str(folder), *fixed, *words]) == 0
    return small.read_csv(output)


def test_predict_gives_the_same_scores_on_either_engine(exported, tmp_path):
    small.write_pictures(tmp_path, 3)
    ours = table("predict", tmp_path, exported.with_name("small.safetensors"), "--emotions")
    theirs = table("predict", tmp_path, exported, "--precision", "auto", "--emotions")
    assert len(ours) == 3
    assert {"emotion_joy", "emotion_fear", "p_1", "p_4"} <= ours[0].keys()
    texts = {"path", "emotion", "error"}
    # Of the training ratings 1, 2.5 and 4 a third lies in each unit of the score.
    tolerance = dict.fromkeys(ours[0].keys() - texts, 1e-4) | {"percentile": 1e-4 * 100 / 3}
    for a, b in zip(ours, theirs, strict=True):
        assert a["emotion"] in ("joy", "fear")
        assert {name: a[name] for name in texts} == {name: b[name] for name in texts}
        for name, allowed in tolerance.items():
            assert float(a[name]) == pytest.approx(float(b[name]), abs=allowed), name


def test_an_exported_network_is_one_of_several(exported, tmp_path):
    small.write_pictures(tmp_path, 3)
    torch.manual_seed(1)
    widths = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}
    other = enliven(build_model(small.BACKBONE, 4, emotions=("awe",), **widths))
    known = {"image_size": 96, "exif": True, "training_ratings": [1.0, 4.0]}
    described = checkpoint.describe(other, SCALE) | known
    file = exported.with_name("other.safetensors")
    checkpoint.export_weights(file, checkpoint.Weights(other.state_dict(), described))
    alone = [table("predict", tmp_path, each, "--force") for each in (exported, file)]
    both = table("predict", tmp_path, exported, "--checkpoint", str(file), "--force")
    for row, *rows in zip(both, *alone, strict=True):
        scores = [float(each["score"]) for each in rows]
        assert float(row["score"]) == pytest.approx(np.mean(scores), abs=2e-5)
        assert float(row["score_model_std"]) == pytest.approx(np.std(scores), abs=2e-5)
        assert row["emotion"] == rows[0]["emotion"] in ("joy", "fear")


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("small.safetensors", ["--engine", "openvino"], "openvino runs what scripts/export.py writes"),
        ("small.onnx", ["--engine", "torch"], "--engine torch cannot run"),
        ("small.onnx", ["--device", "cuda"], "run on the CPU, not on cuda"),
        ("small.onnx", ["--precision", "bf16"], "computes in fp32, asked for was bf16"),
        ("small.safetensors", ["--precision", "int8"], "precision must be fp32, bf16, fp16, got 'int8'"),
        ("small.onnx", ["--maps", "maps"], "maps need a .pt or .safetensors file"),
    ],
)
def test_predict_refuses_what_does_not_go_together(
    exported, name, words, reason, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small.write_pictures(tmp_path, 1)
    assert program(["predict", ".", "--checkpoint", str(exported.with_name(name)), *words]) == 2
    assert reason in capsys.readouterr().err


def test_an_exported_pair_network_picks_as_its_checkpoint_does(tmp_path, capsys):
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    source, target = write_pair_checkpoint(tmp_path), tmp_path / "pairs.onnx"
    assert main([str(source), str(target)]) == 0
    small.write_pictures(tmp_path / "photos", 4)
    tables = [table("select", tmp_path / "photos", file, "--similarity", "0") for file in (source, target)]
    for ours, theirs in zip(*tables, strict=True):
        assert all(ours[name] == theirs[name] for name in ("path", "rank", "picked"))
        assert float(ours["score"]) == pytest.approx(float(theirs["score"]), abs=1e-4)
    assert len({row["score"] for row in tables[0]}) == 4
    assert program(["predict", str(tmp_path / "photos"), "--checkpoint", str(target)]) == 2
    assert (
        "was trained with --task series; scoring needs weights of --task aesthetics"
        in capsys.readouterr().err
    )
