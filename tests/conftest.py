"""The paper's network with the rule-made official weights, and EAMB-Net Lite: built once for all tests."""

import gc
import shutil
import zlib

import numpy as np
import pytest
import small
import torch
from lively import build_lively, write_weights
from torch import nn
from torchvision.models import resnet50

from eamb.inference.scorer import Scorer
from eamb.network.backbones import LITE0
from eamb.network.outputs import EMOTIONS
from eamb.weights.checkpoint import load_tensors
from eamb.weights.official import translate_official
from EAMBNet import build_model

torch.set_num_threads(1)  # these networks are too small for more, and two processes run at once


# What is imported stays: looking through it for garbage again and again took a fifth of the tests' time.


def pytest_configure():
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


# Files that take long come first: the last one would keep a single core busy.
FIRST = ["test_interruption", "test_resuming", "test_run", "test_distributed", "test_vit", "test_predict"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in FIRST)


CBR = {1: (512, 56), 2: (512, 56), 3: (1024, 56), 4: (2048, 56), 5: (56, 256), 6: (512, 256), 7: (512, 256)}


def shapes_of(name: str, layer: type, *arguments, **options) -> dict[str, tuple[int, ...]]:
    """name.tensor -> shape."""
    with torch.device("meta"):
        tensors = layer(*arguments, **options).state_dict()
    return {f"{name}.{part}": tuple(value.shape) for part, value in tensors.items()}


def resnet_shapes(stem: str, later: dict[str, str]) -> dict:
    """A ResNet's shapes under the official names: conv1, bn1, layer1 by number, later layers by name."""
    names = {"conv1": f"{stem}.0", "bn1": f"{stem}.1", "layer1": f"{stem}.4", **later}
    parts = {tuple(name.split(".", 2)[1:]): shape for name, shape in shapes_of("resnet", resnet50).items()}
    return {f"{names[first]}.{rest}": shape for (first, rest), shape in parts.items() if first in names}


def emotion_shapes() -> dict:
    """The official emotion network, by the names in its own file, the layer that is never used included."""
    shapes = resnet_shapes("backbone.feature1", {f"layer{i}": f"backbone.feature{i}" for i in (2, 3, 4)})
    for i, (inputs, outputs) in enumerate([(1024, 512), (512, 256), (256, 256)], start=1):
        shapes |= shapes_of(f"emotion_module.conv{i}.0", nn.Conv2d, inputs, outputs, 3)
        shapes |= shapes_of(f"emotion_module.conv{i}.1", nn.BatchNorm2d, outputs)
    return shapes | shapes_of("emotion_module.fc_layer", nn.Linear, 256, 8)


def official_shapes(outputs: int) -> dict:
    """Every tensor of the official network by its official name; without the copies `model_x`, `model_s`."""
    shapes = {f"emotion_model.{name}": shape for name, shape in emotion_shapes().items()}
    shapes |= resnet_shapes("feature1_x", {"layer2": "feature2_x"})
    shapes |= resnet_shapes("feature1_s", {f"layer{i}": f"feature{i}_s" for i in (2, 3, 4)})
    layers = {f"CBR{i}": (inputs, width, 3) for i, (inputs, width) in CBR.items()} | {"up1": (2048, 256, 1)}
    for name, arguments in layers.items():
        shapes |= shapes_of(f"{name}.conv", nn.Conv2d, *arguments)
        shapes |= shapes_of(f"{name}.bn", nn.BatchNorm2d, arguments[1])
    for name in ("SADEM1.f_x", "SADEM1.f_y", "SADEM2.f_x", "SADEM2.f_y"):
        shapes |= shapes_of(f"{name}.0", nn.Conv2d, 56, 16, 1, bias=False)
        shapes |= shapes_of(f"{name}.1", nn.BatchNorm2d, 16)
    layers = {"CBAM.mlp.0": (256, 16, 1), "CBAM.mlp.2": (16, 256, 1), "CBAM.conv": (2, 1, 7)}
    for name, arguments in layers.items():
        shapes |= shapes_of(name, nn.Conv2d, *arguments, bias=False)
    for name in ("head.0", "head.3"):
        shapes |= shapes_of(name, nn.PReLU)
    return shapes | shapes_of("head.2", nn.Linear, 256, 128) | shapes_of("head.5", nn.Linear, 128, outputs)


def rule_made(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that golden_official.json's rule gives to an official name."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith(("running_mean", "bias")):
        value = 0.1 * noise
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif len(shape) > 1:
        value = noise * np.sqrt(2 / np.prod(shape[1:]))
    else:
        value = np.full(shape, 0.25) if shape == (1,) else 0.5 + 0.1 * noise
    return torch.from_numpy(value.astype(np.float32))


@pytest.fixture(scope="session")
def official_state() -> dict[str, torch.Tensor]:
    """A whole official network for AVA (10 bins), rule-made; unused layers are there and empty of memory."""
    unused = ("CBR4", "emotion_model.backbone.feature4")
    return {
        name: torch.zeros(()).expand(shape) if name.startswith(unused) else rule_made(name, shape)
        for name, shape in official_shapes(10).items()
    }


@pytest.fixture(scope="session")
def official_emotion(official_state) -> dict[str, torch.Tensor]:
    """The state dict of the official emotion network on its own."""
    return {
        name.removeprefix("emotion_model."): value
        for name, value in official_state.items()
        if name.startswith("emotion_model.")
    }


@pytest.fixture(scope="session")
def paper_network(official_state):
    """The paper's network with the official weights, in evaluation mode. Copy it to change it."""
    network = build_model("resnet50", outputs=10)
    load_tensors(network, translate_official(official_state, "official"), "official")
    return network.eval()


def enliven(network: torch.nn.Module) -> torch.nn.Module:
    """Statistics, factors and shifts that a wrong folding could not hide behind; evaluation mode."""
    torch.manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.uniform_(-0.5, 0.5)
    return network.eval()


def build_lite(**changes):
    """EAMB-Net Lite for one score, the same random weights each time."""
    torch.manual_seed(0)
    arguments = {"backbone": LITE0, "outputs": 1, "width": 128, "context_scale": 1.0}
    return build_model(**{**arguments, **changes})


@pytest.fixture(scope="session")
def lite_network():
    """EAMB-Net Lite in evaluation mode, with statistics of real activations. Copy it to change it."""
    network = build_lite(dropout=0.0, emotion_batchnorm="official")
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 96, 96))
    return network.eval()


@pytest.fixture(scope="session")
def lively_model():
    """`lively.build_lively`, which must not be changed."""
    return build_lively()


@pytest.fixture(scope="session")
def lively_weights(lively_model, tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "stars.safetensors", lively_model)


@pytest.fixture(scope="session")
def lively_scorer(lively_weights):
    return Scorer(lively_weights, device="cpu")


# ---- tiny sets, and runs on them that are trained once through main.py and must not be changed


@pytest.fixture(scope="session")
def scored_set(tmp_path_factory):
    """24 pictures with scores from 1 to 5 and an emotion each: 16 train, 4 val, 4 test."""
    scores = [f"{1 + 4 * i / 23:.2f}" for i in range(24)]
    columns = {"score": scores, "emotion": [EMOTIONS[5 * i % 8] for i in range(24)]}
    return small.write_csv(tmp_path_factory.mktemp("scored"), columns)


@pytest.fixture(scope="session")
def counts_set(tmp_path_factory):
    """24 pictures with how many people gave each of 4 ratings."""
    counts = {f"score{rating}": [(7 * i + 3 * rating) % 5 + 1 for i in range(24)] for rating in range(1, 5)}
    return small.write_csv(tmp_path_factory.mktemp("counts"), counts, seed=2)


@pytest.fixture(scope="session")
def series_set(tmp_path_factory):
    """12 series of three photographs, each of which is better than the darker ones."""
    return small.write_pairs(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="session")
def emotion_run(scored_set, tmp_path_factory):
    """The folder of a finished --task emotion run on `scored_set`."""
    output = tmp_path_factory.mktemp("runs") / "emotion"
    assert small.train("csv", scored_set, output, "--task", "emotion", "train.epochs=2") == 0
    return output


@pytest.fixture(scope="session")
def score_run(scored_set, emotion_run, tmp_path_factory):
    """The folder of a finished run on `scored_set`, over the branch of `emotion_run`, with its figures."""
    output = tmp_path_factory.mktemp("runs") / "score"
    words = ["--emotion-checkpoint", emotion_run / "best.pt", "train.epochs=2", "evaluate.bootstrap=20"]
    assert small.train("csv", scored_set, output, *words, draw=True) == 0
    return output


@pytest.fixture
def copied_run(score_run, tmp_path):
    """A copy of `score_run`, which may be changed."""
    return shutil.copytree(score_run, tmp_path / "copied run")


@pytest.fixture(scope="session")
def untrained_run(scored_set, tmp_path_factory):
    """The folder of a run of one epoch whose emotion branch was never trained."""
    output = tmp_path_factory.mktemp("runs") / "untrained"
    assert small.train("csv", scored_set, output, small.UNTRAINED) == 0
    return output


@pytest.fixture(scope="session")
def stopped_runs(scored_set, emotion_run, tmp_path_factory):
    """`small.train_and_copy` of a LONG run over the branch of `emotion_run`."""
    output = tmp_path_factory.mktemp("runs") / "long"
    branch = ["--emotion-checkpoint", emotion_run / "best.pt"]
    return small.train_and_copy("csv", scored_set, output, *small.LONG, *branch)
