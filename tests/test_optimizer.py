"""The optimizer: which weights decay, and at which rate each part of a network learns."""

from dataclasses import replace

import pytest
import torch
from small import BACKBONE, ROOT

from eamb.runtime import engine
from eamb.runtime.config import load_config
from eamb.training.optimizer import make_optimizer
from eamb.training.tasks import choose_task
from EAMBNet import build_model


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model(BACKBONE, outputs=1, width=16)


def by_parameter(optimizer: torch.optim.Optimizer, name: str) -> dict[int, float]:
    return {id(p): group[name] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adamw_decays_matrices_only_and_backbones_may_learn_at_a_rate_of_their_own(name, network):
    words = [f"optimizer.name={name}", "optimizer.weight_decay=0.1", "optimizer.backbone_factor=0.1"]
    optimizer = make_optimizer(load_config(words=words), network)
    engine.set_rate(optimizer, 0.5)
    decays, rates = by_parameter(optimizer, "weight_decay"), by_parameter(optimizer, "lr")
    trained = {n: p for n, p in network.named_parameters() if not n.startswith("emotion.")}  # it is frozen
    assert len(decays) == len(trained)
    for parameter_name, parameter in trained.items():
        assert decays[id(parameter)] == (0.1 if name == "adam" or parameter.ndim > 1 else 0.0)
        backbone = parameter_name.startswith(("detail.", "context."))
        assert rates[id(parameter)] == pytest.approx(0.05 if backbone else 0.5)


def test_the_published_recipe_for_pairs_is_the_shipped_one():
    config = load_config([ROOT / "configs" / "series.yaml"], ["data.dataset=pairs", "model.symmetric=false"])
    assert (config.data.size, config.data.crop, config.data.flip) == (224, True, False)
    assert (config.train.epochs, config.train.batch_size, config.optimizer.schedule) == (100, 32, "series")
    network = choose_task(replace(config, model=replace(config.model, backbone=BACKBONE))).build(None, ())
    optimizer = make_optimizer(config, network)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(g["momentum"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.9, 5e-4)}
    engine.set_rate(optimizer, engine.learning_rate("series", config.optimizer.learning_rate, 100, 25, 0.5))
    rates = by_parameter(optimizer, "lr")
    for name, parameter in network.named_parameters():
        fast = ".channel." in name or name.startswith("last.")
        assert rates[id(parameter)] == pytest.approx(0.3 * (1e-4 if fast else 1e-5)), name
