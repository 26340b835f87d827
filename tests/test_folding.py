"""BatchNorm folded into convolutions: the same numbers, and only where it may be."""

import pytest
import torch
from conftest import enliven
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eamb.network.backbones import DepthwiseConv2d, build_pyramid
from eamb.network.fast import fold, fold_batchnorm, folding_pairs


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, _BatchNorm) for layer in network.modules())


def test_folding_by_hand():
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0).eval()
    for values, number in (
        *((conv.weight.data, 3.0), (conv.bias.data, 1.0), (norm.running_mean, 5.0)),
        *((norm.running_var, 4.0), (norm.weight.data, 10.0), (norm.bias.data, 7.0)),
    ):
        values.fill_(number)
    rest = fold(conv, norm)
    # (3 x + 1 - 5) / 2 * 10 + 7 = 15 x - 13
    assert (conv.weight.item(), conv.bias.item()) == (15, -13)
    assert isinstance(rest, nn.Identity)


@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite0", "test_efficientnet"])
def test_a_folded_pyramid_has_no_batchnorm_and_gives_the_same_maps(name):
    torch.manual_seed(0)
    network = enliven(build_pyramid(name, levels=2))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = network(images)
        fold_batchnorm(network, torch.zeros(1, 3, 64, 64))
        after = network(images)
    assert norms(network) == 0
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def test_the_layers_that_train_fast_are_folded_too():
    network = build_pyramid("tf_efficientnet_lite0", levels=4).eval()
    fold_batchnorm(network, torch.zeros(1, 3, 64, 64))
    fast = [layer for layer in network.modules() if isinstance(layer, DepthwiseConv2d)]
    assert fast
    assert all(layer.bias is not None for layer in fast)


class Odd(nn.Module):
    """Convolutions that may not be folded: `twice` runs twice, `shared` is read by something else too."""

    def __init__(self):
        super().__init__()
        self.twice, self.shared, self.plain = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x):
        x = self.norm1(self.twice(x)) + self.norm2(self.twice(x + 1))
        y = self.shared(x)
        largest = torch.cat([y, x]).amax()
        return self.norm4(self.plain(self.norm3(y) + largest))


def test_what_may_not_be_folded_stays():
    network, images = enliven(Odd()), torch.randn(2, 3, 8, 8)
    assert folding_pairs(network, images) == [(network.plain, network.norm4)]
    with torch.no_grad():
        before = network(images)
        fold_batchnorm(network, images)
        torch.testing.assert_close(network(images), before, rtol=1e-5, atol=1e-5)
    assert norms(network) == 3


def test_looking_leaves_no_hooks_even_after_an_error():
    network = enliven(Odd())
    with pytest.raises(RuntimeError):
        folding_pairs(network, torch.randn(1, 4, 8, 8))
    assert not any(layer._forward_hooks for layer in network.modules())
