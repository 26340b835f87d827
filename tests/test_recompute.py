"""Recomputed blocks: the same numbers to the last bit, and far less kept."""

import copy

import pytest
import small
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eamb.network.backbones import blocks, build_pyramid, recompute_blocks, unchanged_statistics
from eamb.runtime import distributed
from EAMBNet import build_model

WIDTHS = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """A network in training and its copy that recomputes."""
    torch.manual_seed(0)
    network = build_model(small.BACKBONE, 4, dropout=0.3, **WIDTHS).train()
    other = copy.deepcopy(network)
    assert recompute_blocks(other) > 4
    return network, other


def step(network: nn.Module, kept: list[torch.Tensor] | None = None, bf16: bool = False) -> torch.Tensor:
    """A forward and backward pass; the prediction. `kept` takes what is saved for the backward pass."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, 64, 64)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if kept is not None:
            kept.append(tensor)
        return tensor

    network.zero_grad()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), hooks:
        prediction = network(images).prediction
    prediction.float().square().sum().backward()
    return prediction.detach()


@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_gradients_and_statistics_are_the_same_to_the_last_bit(pair, bf16):
    network, other = pair
    assert torch.equal(step(network, bf16=bf16), step(other, bf16=bf16))
    assert_equal(network, other)


def assert_equal(network: nn.Module, other: nn.Module) -> None:
    names = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    assert len(names) > 100
    for name in names:
        assert torch.equal(network.get_parameter(name).grad, other.get_parameter(name).grad), name
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# The tracer looks at what the parts between the blocks are given, and torch warns about that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_too_they_are_the_same(pair):
    plain, recomputed = (copy.deepcopy(network) for network in pair)
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
    assert torch.equal(step(plain), step(recomputed))
    assert_equal(plain, recomputed)


def test_resnets_blocks_are_its_bottlenecks():
    network = build_pyramid("resnet50", 2).train()
    assert {type(block).__name__ for block in blocks(network)} == {"Bottleneck"}
    assert recompute_blocks(network) == 3 + 4
    whole = build_pyramid("resnet50", 2).train()
    whole.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(network(images), whole(images), strict=True):
        assert torch.equal(ours, theirs)


def test_copies_recompute_too_and_names_stay(pair):
    network, other = pair
    whole, few = [], []
    step(network, whole)
    step(copy.deepcopy(other), few)
    assert sum(t.numel() for t in few) < sum(t.numel() for t in whole) / 2
    assert list(network.state_dict()) == list(other.state_dict())


def test_evaluation_runs_each_block_once(pair):
    _, other = pair
    runs = []
    hook = next(blocks(other)).register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        other.eval()(torch.zeros(1, 3, 64, 64))
    hook.remove()
    other.train()
    assert runs == [1]


def test_statistics_come_back_after_an_error():
    block = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, momentum=0.3))
    with pytest.raises(RuntimeError), unchanged_statistics(block):
        block(torch.randn(4, 1, 2, 2))
        raise RuntimeError
    assert block[1].momentum == 0.3
    assert block[1].num_batches_tracked == 0
    assert block[1].running_mean.item() == 0
