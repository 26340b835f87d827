"""The pair networks against their definition, written down a second time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import enliven
from small import BACKBONE

from eamb.network.backbones import RESNET50
from eamb.network.names import PAIR_NETWORKS
from eamb.network.pair_networks import PAUnit, SeriesNetwork
from metrics import pair_probability


def build(network: str, symmetric: bool = True, backbone: str = BACKBONE) -> SeriesNetwork:
    torch.manual_seed(0)
    model = SeriesNetwork(backbone, network, symmetric)
    torch.nn.init.normal_(model.last.weight)  # odds that differ
    return enliven(model)


def photographs(count: int = 4, side: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def all_pairs(count: int) -> np.ndarray:
    return np.array([(a, b) for a in range(count) for b in range(count) if a != b])


def test_a_unit_is_what_the_paper_defines():
    torch.manual_seed(0)
    unit, x = PAUnit(32), torch.randn(3, 32, 5, 7)
    first, second = unit.gate[0], unit.gate[2]
    v = x * F.conv2d(F.relu(F.conv2d(x, first.weight, first.bias)), second.weight, second.bias)
    down, up = unit.channel[0].weight, unit.channel[2].weight
    assert (down.shape, up.shape) == ((2, 32), (32, 2))  # C -> C/16 -> C, no biases
    pooled = F.adaptive_max_pool2d(v, 1).flatten(1) + F.adaptive_avg_pool2d(v, 1).flatten(1)
    c = F.linear(F.relu(F.linear(pooled, down)), up)[:, :, None, None]  # (N, C, 1, 1), no sigmoid
    s = F.relu(v.mean(1, keepdim=True) + v.max(1, keepdim=True).values)  # (N, 1, h, w)
    expected = torch.cat([F.adaptive_avg_pool2d(part * x, 1).flatten(1) for part in (c, s)], dim=1)
    torch.testing.assert_close(unit(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", PAIR_NETWORKS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_odds_of_single_photographs_give_the_published_answer_for_pairs(network, symmetric):
    model, images = build(network, symmetric), photographs()
    with torch.no_grad():
        odds = model(images).prediction.double().numpy()  # (n, 2)
        maps = model.context(images)
        if network == "resnet":
            first = second = model.tail(maps[-1])
        else:
            first, second = model.units(maps[1:]), (model.second_units or model.units)(maps[1:])
        pairs = all_pairs(len(images))
        difference = first[pairs[:, 0]] - second[pairs[:, 1]]  # (m, F): the published order of operations
        published = model.last(difference).double().softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(pair_probability(odds, pairs), published, atol=1e-5)
    assert published.std() > 0.01  # something to be right about


@pytest.mark.parametrize("network", PAIR_NETWORKS)
def test_a_symmetric_network_is_sure_of_one_of_two(network):
    pairs = all_pairs(4)
    with torch.no_grad():
        odds = build(network)(photographs()).prediction.numpy()
        published = build(network, symmetric=False)(photographs()).prediction.numpy()
    both = pair_probability(odds, pairs) + pair_probability(odds, pairs[:, ::-1])
    np.testing.assert_allclose(both, 1, rtol=1e-14)
    assert np.array_equal(odds[:, 0], odds[:, 1])
    both = pair_probability(published, pairs) + pair_probability(published, pairs[:, ::-1])
    assert abs(both - 1).max() > 1e-3  # the published one is not, for its bias alone


def test_the_published_networks_have_the_published_sizes():
    def size(network: str, symmetric: bool) -> int:
        with torch.device("meta"):
            model = SeriesNetwork(RESNET50, network, symmetric)
        return sum(parameter.numel() for parameter in model.parameters())

    backbone = 23_508_032  # ResNet-50 without its last layer
    unit = sum(2 * (c * c + c) + 2 * c * (c // 16) for c in (512, 1024, 2048))
    assert size("resnet", False) == backbone + 2048 * 2 + 2
    assert size("paunit", False) == backbone + 2 * unit + 7168 * 2 + 2
    assert size("paunit", True) == backbone + unit + 7168 * 2


def test_the_published_recipe_trains_the_gates_as_slowly_as_the_backbone():
    model = build("paunit", symmetric=False)
    slow = {name for name, _ in model.named_parameters() if name.startswith(model.slow_prefixes)}
    assert slow == {name for name, _ in model.named_parameters() if ".gate." in name}
    assert build("resnet").slow_prefixes == ()
    with pytest.raises(ValueError, match="the pair networks are resnet and paunit, got 'vgg'"):
        build("vgg")
