"""The engine: learning rates in closed form, seeds, accumulation, errors, exact prediction."""

import copy
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from small import Toy, squared_error
from torch import nn

from datasets import Batch
from eamb.readers.decoding import View
from eamb.readers.rated import LeftOut
from eamb.runtime import engine
from eamb.runtime.engine import Compute, Epoch, Totals, learning_rate, step_seed
from eamb.runtime.networks import Ensemble, TorchNetwork
from EAMBNet import EAMBNet, build_model

pytestmark = pytest.mark.portable

CPU = Compute(torch.device("cpu"), "fp32", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IDS = [f"picture {i}" for i in range(64)]


def test_learning_rates_in_closed_form():
    ava = [learning_rate("ava", 3e-5, 30, epoch, 0.7) for epoch in (0, 1, 2, 3, 4, 5, 29)]
    assert ava == pytest.approx([3e-5] * 3 + [1.5e-5, 0.75e-5, 0.375e-5, 3e-5 * 0.5**27], rel=1e-12)
    para = [learning_rate("para", 3e-5, 100, epoch, 0.0) for epoch in (0, 9, 10, 19, 20, 99)]
    assert para == [3e-5, 3e-5, 1.5e-5, 1.5e-5, 0.75e-5, 3e-5 * 0.5**9]
    assert {learning_rate("constant", 1e-4, 5, epoch, 0.5) for epoch in range(5)} == {1e-4}
    # Half-way up and half-way down the cosine is the mean of its ends.
    one_cycle = {(0, 0.0): 1e-3 / 25, (0, 0.5): (1e-3 / 25 + 1e-3) / 2, (1, 0.0): 1e-3}
    one_cycle |= {(3, 0.0): (1e-3 + 1e-7) / 2, (4, 1.0): 1e-7}
    for (epoch, fraction), rate in one_cycle.items():
        assert learning_rate("one_cycle", 1e-3, 5, epoch, fraction) == pytest.approx(rate)


def test_step_seed_differs_by_seed_epoch_step_and_rank_and_is_repeatable():
    places = [(s, e, t, r) for s in range(3) for e in range(4) for t in range(20) for r in range(4)]
    seeds = [step_seed(*place) for place in places]
    assert seeds == [step_seed(*place) for place in places]
    assert len({seed for seed in seeds if 0 <= seed < 2**63}) == len(places)


def test_ratings_go_to_the_device_as_float32_and_the_index_stays():
    batch = batch_of(pictures(3), broken=[LeftOut("a", "b")])
    found = engine.to_device(batch, torch.device("meta"))
    assert found.index is batch.index  # names rows of tables
    assert (found.images.dtype, found.scores.dtype) == (torch.uint8, torch.float32)
    assert (found.scores.device.type, found.distributions, found.broken) == ("meta", None, batch.broken)


# ---- training


def batch_of(images: torch.Tensor, first: int = 0, broken: tuple = ()) -> Batch:
    count = len(images)
    index = torch.arange(first, first + count)
    return Batch(index, images, torch.linspace(0, 1, count, dtype=torch.float64), None, None, list(broken))


def pictures(count: int, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def cut(batch: Batch, size: int) -> list[Batch]:
    parts = zip(*(value.split(size) for value in batch[:3]), strict=True)
    return [Batch(*part, None, None, []) for part in parts]


def fit(model: nn.Module, batches: list[Batch], optimizer=None, totals=None, **options):
    """One epoch of plain gradient descent at rate 0.1; what the engine returns."""
    scaler = options.pop("scaler", torch.amp.GradScaler("cpu", enabled=False))
    compute, after_step = options.pop("compute", CPU), options.pop("after_step", lambda totals: None)
    usual = {"number": 0, "steps": len(batches), "seed": 0, "loss": squared_error, "ids": IDS}
    epoch = Epoch(**{"rate": lambda fraction: 0.1, **usual, **options})
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=9.0, fused=True)
    totals = totals or Totals()
    return engine.train_one_epoch(model, batches, optimizer, scaler, compute, epoch, totals, after_step)


def predict(model: nn.Module, batches: list[Batch], batch_size: int) -> engine.Predictions:
    return engine.predict(Ensemble([TorchNetwork(model, CPU, View(64))]), batches, batch_size)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_one_step_is_gradient_descent_at_the_given_rate():
    model, batch = Toy(), batch_of(pictures(8))
    x = CPU.images(batch).mean(dim=(2, 3)).double()  # (8, 3)
    w, b = model.linear.weight.detach().double()[0].clone(), model.linear.bias.detach().double().clone()
    error = x @ w + b - batch.scores  # (8,)
    found = fit(model, [batch])
    assert torch.allclose(model.linear.weight[0].double(), w - 0.1 * (2 * error @ x / 8), atol=1e-6)
    assert torch.allclose(model.linear.bias.double(), b - 0.1 * 2 * error.mean(), atol=1e-6)
    assert found["loss"] == pytest.approx((error**2).mean().item(), rel=1e-5)
    assert (found["pictures"], found["broken"], found["learning_rate"]) == (8, 0, 0.1)


def test_accumulated_batches_equal_a_whole_one_and_those_left_at_the_end_count_fully():
    # Five batches of four, two at a time: the last is a step on its own, not half a one.
    whole, steps, asked = batch_of(pictures(20)), [], []
    by_hand, accumulated = Toy(), Toy()
    fit(by_hand, cut(whole, 8))
    options = {"rate": lambda done: asked.append(done) or 0.1, "after_step": lambda t: steps.append(t.step)}
    fit(accumulated, cut(whole, 4), accumulate=2, **options)
    assert not torch.equal(weights(by_hand), weights(Toy()))
    assert torch.allclose(weights(by_hand), weights(accumulated), atol=1e-6)
    assert steps == [2, 4, 5]  # checkpoints are taken behind whole steps only
    assert asked == [0, 0, 0.4, 0.4, 0.8]  # one rate a step


def test_fixed_parts_stay_in_evaluation_mode_even_behind_a_batch_without_pictures():
    class Normalised(Toy):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, images):
            return super().forward(self.second(self.first(images)))

    model, none = Normalised(), batch_of(pictures(0), broken=[LeftOut("a", "b")])
    fit(model, [batch_of(pictures(8)), none, batch_of(pictures(8))], fixed=[model.first])
    assert not model.first.running_mean.any()
    assert (model.first.num_batches_tracked, model.second.num_batches_tracked) == (0, 2)
    assert model.first.bias.any()  # it learns all the same


def test_random_numbers_of_a_step_depend_on_seed_epoch_and_step_only():
    class Noisy(Toy):
        def forward(self, images):
            drawn.append(torch.rand(1).item())
            return super().forward(images)

    drawn: list[float] = []
    batches = cut(batch_of(pictures(12)), 4)
    torch.manual_seed(77)
    fit(Noisy(), batches)
    torch.manual_seed(78)
    fit(Noisy(), batches[1:], steps=3, totals=Totals(step=1))
    assert drawn[3:] == drawn[1:3]
    assert len(set(drawn[:3])) == 3
    fit(Noisy(), batches, number=1)
    assert not set(drawn[5:]) & set(drawn[:5])


def test_without_a_fused_optimizer_a_loss_that_is_no_number_is_found_at_once():
    model, after_first, batches = Toy(), Toy(), cut(batch_of(pictures(22)), 11)
    batches[1].scores[2] = math.nan
    fit(after_first, batches[:1])
    names = r"\(pictures picture 11, (picture \d+, ){9}picture 21\);"
    with pytest.raises(FloatingPointError, match=rf"loss is nan at step 2 of epoch 4, .* [\d.e-]+ {names}"):
        fit(model, batches, torch.optim.SGD(model.parameters(), lr=1.0), number=3, log_every=10)
    assert torch.equal(weights(model), weights(after_first))


def test_broken_pictures_are_counted_and_an_empty_batch_changes_nothing():
    lost = (LeftOut("a", "empty"), LeftOut("b", "no picture"))
    empty = batch_of(torch.zeros(0, 3, 64, 64, dtype=torch.uint8), broken=lost)
    torch.manual_seed(0)
    model = build_model("test_efficientnet", outputs=1, width=16)
    before, totals = copy.deepcopy(model.state_dict()), Totals()
    found = fit(model, [empty], totals=totals, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert (found["pictures"], found["broken"], math.isnan(found["loss"])) == (0, 2, True)
    assert totals.broken == [("a", "empty"), ("b", "no picture")]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training


def test_half_precision_scales_its_loss_and_still_learns():
    model, batch = Toy(), batch_of(pictures(8))
    start = weights(model).clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    found = fit(model, [batch], scaler=scaler, compute=CPU._replace(precision="fp16"), clip=1.0)
    reference = Toy()
    expected = fit(reference, [batch], clip=1.0)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert torch.allclose(weights(model) - start, weights(reference) - start, rtol=0.05, atol=1e-4)


def test_cuda_rounds_products_in_training_and_never_in_scoring(monkeypatch, lite):
    asked = []
    monkeypatch.setattr(engine, "allow_tf32", lambda allowed, device: asked.append((allowed, device.type)))
    fit(Toy(), [batch_of(pictures(4))])
    predict(lite, [batch_of(pictures(2, 64))], batch_size=2)
    assert asked == [(True, "cpu"), (False, "cpu")]


def test_a_compiled_run_has_the_weights_of_an_eager_one(scored_set, tmp_path, monkeypatch):
    compiled, compiler = [], torch.compile

    def compile_eagerly(model):
        compiled.append(type(model))
        return compiler(model, backend="eager")  # traced and guarded as any, without minutes of C++

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    words = [small.UNTRAINED, "data.limit=16", "train.score_test=false", "data.twins=false"]
    assert small.train("csv", scored_set, tmp_path / "eager", *words) == 0
    assert small.train("csv", scored_set, tmp_path / "compiled", *words, "train.compile=true") == 0
    assert compiled == [EAMBNet]
    found, expected = (small.tensors(tmp_path / name / "last.pt") for name in ("compiled", "eager"))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, fused=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1.0, fused=True),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1, fused=True),
}


@pytest.mark.parametrize("name, accumulate", [("sgd", 1), ("adam", 2), ("adamw", 1)])
def test_losses_that_are_read_later_give_the_same_numbers_to_the_last_digit(name, accumulate):
    batches = cut(batch_of(pictures(28)), 4)
    once, later = Toy(), Toy()
    expected = fit(once, batches, OPTIMIZERS[name](once), accumulate=accumulate)
    totals, unread = Totals(), []
    options = {"accumulate": accumulate, "log_every": 3, "after_step": lambda t: unread.append(len(t.unread))}
    assert fit(later, batches, OPTIMIZERS[name](later), totals, **options) == expected
    assert torch.equal(weights(once), weights(later))
    assert [count == 0 for count in unread] == [step % 3 == 0 for step in range(1, len(unread))] + [True]


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_no_number_is_found_later_and_has_not_reached_the_weights(name, what, clip):
    batches, after_second, model, asked = cut(batch_of(pictures(28)), 4), Toy(), Toy(), []
    fit(after_second, batches[:2], OPTIMIZERS[name](after_second), clip=clip)
    if what == "loss":
        batches[2].scores[1] = math.inf
    else:
        spoil = lambda gradient: gradient * (math.nan if len(asked) == 3 else 1)  # noqa: E731
        model.linear.bias.register_hook(spoil)
    rate = lambda fraction: asked.append(fraction) or 0.1  # noqa: E731
    found = "loss is inf" if what == "loss" else "norm of the gradients is nan"
    with pytest.raises(FloatingPointError, match=rf"{found} at step 3 of epoch 1, .*picture 8, .*picture 11"):
        fit(model, batches, OPTIMIZERS[name](model), rate=rate, log_every=6, clip=clip)
    assert len(asked) == 6  # three steps more had been given to the device
    assert torch.equal(weights(model), weights(after_second))


def test_a_checkpoint_between_two_readings_holds_what_is_pending_and_the_epoch_goes_on_from_it():
    batches, model, other = cut(batch_of(pictures(20)), 4), Toy(), Toy()
    saved, fused = {}, torch.optim.SGD(model.parameters(), lr=1.0, fused=True)

    def save(totals):
        if totals.step == 2:
            assert totals.unread
            totals.read()
            saved.update(asdict(totals))

    whole = fit(model, batches, fused, log_every=4, after_step=save)
    fit(other, batches[:2], steps=5, totals=(half := Totals()))
    assert saved == asdict(half)
    assert fit(other, batches[2:], steps=5, totals=Totals(**saved)) == whole
    assert torch.equal(weights(other), weights(model))


# ---- predicting


@pytest.fixture(scope="module")
def lite():
    """A small network, its BatchNorm fed with real statistics."""
    torch.manual_seed(3)
    model = build_model(small.BACKBONE, outputs=5, width=16, context_scale=1.0)
    with torch.no_grad():
        model(CPU.images(batch_of(pictures(8, 64))))
        model.head[5].weight.mul_(20)
    return model.to(memory_format=torch.channels_last)


def test_a_pictures_output_does_not_depend_on_its_neighbours(lite):
    images = pictures(7, 64)
    together = predict(lite, [batch_of(images)], batch_size=8)
    assert len({tuple(row) for row in together.prediction.tolist()}) == 7
    alone = [predict(lite, [batch_of(images[i : i + 1], i)], batch_size=8) for i in range(7)]
    for part in ("prediction", "emotion"):
        expected = np.concatenate([getattr(each, part) for each in alone])
        assert np.array_equal(getattr(together, part), expected)


def test_predictions_come_in_the_order_of_the_set_with_what_was_broken(lite):
    images, before = pictures(6, 64), copy.deepcopy(lite.state_dict())
    broken = [LeftOut("y", "is no picture"), LeftOut("z", "is empty")]
    batches = [
        batch_of(images[4:], 4, broken=broken[1:]),
        batch_of(images[:0], 0, broken=broken[:1]),
        batch_of(images[:4], 0),
    ]
    found = predict(lite, batches, batch_size=4)
    in_order = predict(lite, [batch_of(images[:4]), batch_of(images[4:], 4)], batch_size=4)
    assert (found.index.tolist(), found.broken) == ([0, 1, 2, 3, 4, 5], broken)
    assert np.array_equal(found.prediction, in_order.prediction)
    for shares in (found.prediction, found.emotion):
        assert shares.dtype == np.float64
        assert np.allclose(shares.sum(axis=1), 1)
    torch.testing.assert_close(lite.state_dict(), before, rtol=0, atol=0)


def test_average_is_the_weighted_sum_of_all_weights_so_far_and_follows_batchnorm():
    network, expected = nn.Linear(1, 1, bias=False), 4.0
    nn.init.constant_(network.weight, expected)
    average = engine.Average(network, decay=0.3)
    for step, value in enumerate([1.0, -2.0, 5.0, 3.0], start=1):
        nn.init.constant_(network.weight, value)
        average.update(network)
        decay = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13 (above 0.3), ...
        expected = decay * expected + (1 - decay) * value
        assert average.network.weight.item() == pytest.approx(expected, rel=1e-6)
    assert network.weight.item() == 3.0

    network = nn.BatchNorm1d(2).train()
    average = engine.Average(network, decay=0.0)
    network(torch.randn(8, 2) + 3)
    average.update(network)
    torch.testing.assert_close(average.network.state_dict(), network.state_dict())
    assert (average.network.training, network.training) == (False, True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="another route to the figure is needed")
def test_the_peak_of_memory_is_what_the_kernel_says_in_gb():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    expected = int(line.split()[1]) * 1024 / 1e9
    # The kernel counts pages by processor and adds them up now and then.
    assert engine.peak_memory(torch.device("cpu")) == pytest.approx(expected, rel=0.05)
