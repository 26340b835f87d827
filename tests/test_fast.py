"""The fast form for inference: BatchNorm folded into convolutions, only where it may be; the same numbers."""

import pytest
import torch
from conftest import enliven
from small import BACKBONE
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eamb.network.backbones import DepthwiseConv2d
from eamb.network.fast import fold_batchnorm, prepare_for_inference
from eamb.network.pair_networks import SeriesNetwork
from EAMBNet import EmotionNetwork, LinearNetwork, build_model

pytestmark = pytest.mark.portable

LITE = {"backbone": "tf_efficientnet_lite0", "width": 32}
FORMS = {
    "lite": lambda: build_model(**LITE, outputs=1, context_scale=1.0, shortcut=True),
    "plain": lambda: build_model(BACKBONE, width=16, without=("guided_fusion", "attention")),
    "no context": lambda: build_model(BACKBONE, width=16, without=("context", "emotion")),
    "no detail": lambda: build_model(BACKBONE, width=16, without=("detail",)),
    "linear": lambda: LinearNetwork(BACKBONE, 1, 0.2),
    "pairs": lambda: SeriesNetwork(BACKBONE, "paunit", symmetric=False),
    "emotion": lambda: EmotionNetwork(BACKBONE, ("a", "b", "c"), 0.5, 16),
    "emotion, 4 levels": lambda: EmotionNetwork(BACKBONE, ("a", "b", "c"), 1.0, 16, emotion_levels=4),
}


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, _BatchNorm) for layer in network.modules())


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
    with torch.no_grad():
        before = network(images)
        fold_batchnorm(network, images)
        torch.testing.assert_close(network(images), before, rtol=1e-5, atol=1e-5)
    assert norms(network) == 3
    assert isinstance(network.norm4, nn.Identity)


@pytest.mark.parametrize("form", FORMS)
def test_the_fast_form_gives_the_same_output_in_float32(form):
    torch.manual_seed(0)
    network = enliven(FORMS[form]())
    fast, images = prepare_for_inference(network), torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for found, expected in zip(fast(images), network(images), strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert norms(fast) == 0
    layers = [layer for layer in fast.modules() if isinstance(layer, DepthwiseConv2d)]
    assert all(layer.bias is not None for layer in layers)  # the layers that train fast are folded too


def test_the_fast_form_is_a_copy_that_cannot_be_trained(lite_network):
    before = {name: value.clone() for name, value in lite_network.state_dict().items()}
    fast = prepare_for_inference(lite_network)
    assert all(torch.equal(value, before[name]) for name, value in lite_network.state_dict().items())
    assert any(parameter.requires_grad for parameter in lite_network.parameters())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert fast.arguments == lite_network.arguments
    with pytest.raises(ValueError, match="precision must be fp32, bf16, fp16, got 'int8'"):
        prepare_for_inference(lite_network, "int8")


@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.02), ("fp16", 0.004)])
def test_the_fast_form_in_half_precision_takes_and_gives_float32(lite_network, precision, near):
    fast = prepare_for_inference(lite_network, precision)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = fast(images), lite_network(images)
        maps = fast.class_activation_maps(images)
    assert {value.dtype for value in (*found, maps)} == {torch.float32}
    difference = (found.prediction - expected.prediction).abs().max()
    assert 0 < difference < near
    assert maps.shape == lite_network.class_activation_maps(images).shape
