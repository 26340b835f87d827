"""Depthwise convolutions: equal to timm's and to torch's gradients, by whatever way they are computed."""

import pytest
import timm
import torch
import torch.nn.functional as F

from eamb.network import backbones
from eamb.network.backbones import (
    Depthwise,
    DepthwiseConv2d,
    convolve,
    convolve_without_copy,
    becomes_faster,
    same_padding,
    use_fast_gradients,
)

# size of the kernel, stride
CASES = [(5, 1), (3, 2), (5, 2)]


@pytest.mark.parametrize(("size", "stride"), CASES)
@pytest.mark.parametrize("sides", [(12, 12), (13, 8), (7, 10), (1, 2), (2, 1)])
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


def test_only_the_gradients_that_are_asked_for_are_computed():
    weight = torch.ones(2, 1, 5, 5, requires_grad=True)
    result = Depthwise.apply(torch.ones(1, 2, 8, 8), weight, 1, (2, 2, 2, 2))
    result.sum().backward()
    # Each tap sees the ones that it meets on an 8 x 8 picture: 6 or 7 or 8 in each direction.
    ends = torch.tensor([6.0, 7.0, 8.0, 7.0, 6.0])
    assert torch.equal(weight.grad, (ends[:, None] * ends[None]).expand(2, 1, 5, 5))


def test_same_padding_gives_as_many_results_as_tensorflow_does():
    for side in range(1, 40):
        for size, stride in CASES:
            before, behind = same_padding(side, size, stride)
            assert (side + before + behind - size) // stride + 1 == -(-side // stride)
            assert 0 <= behind - before <= 1


@pytest.fixture(scope="module")
def networks():
    """EfficientNet-Lite0's pyramid as timm builds it, and the same with our layers."""
    torch.manual_seed(0)
    plain, ours = (timm.create_model("tf_efficientnet_lite0", features_only=True) for _ in range(2))
    use_fast_gradients(ours)
    ours.load_state_dict(plain.state_dict())  # the names are the same
    return plain, ours


def test_every_layer_that_gains_is_replaced_and_no_other(networks):
    plain, ours = (dict(network.named_modules()) for network in networks)
    changed = {name for name in plain if type(plain[name]) is not type(ours[name])}
    gains = {
        name
        for name, layer in plain.items()
        if isinstance(layer, torch.nn.Conv2d)
        and layer.groups > 1
        and (layer.kernel_size[0], layer.stride[0]) in CASES
    }
    assert changed == gains
    assert len(changed) == 11
    assert not any(becomes_faster(layer) for layer in ours.values())


def test_replacing_layers_draws_no_random_numbers():
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    use_fast_gradients(network)
    assert type(network[0]) is DepthwiseConv2d
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("side", [64, 97])
def test_the_network_computes_the_same_in_evaluation(networks, side):
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        for a, b in zip(*(network.eval()(images) for network in networks), strict=True):
            assert torch.equal(a, b)


def test_in_bfloat16_the_gradients_are_as_near_to_float32_as_torchs(networks):
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


def test_convolve_is_a_convolution():
    images, weight, bias = torch.randn(1, 3, 9, 9), torch.randn(3, 1, 3, 3), torch.randn(3)
    assert torch.equal(
        convolve(images, weight, bias, 1, (1, 1, 1, 1)),
        F.conv2d(images, weight, bias, padding=1, groups=3),
    )
    assert convolve(images, weight, None, 2, (0, 1, 0, 1)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(("size", "stride"), CASES)
@pytest.mark.parametrize("sides", [(12, 12), (13, 8), (7, 9), (2, 2)])
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
