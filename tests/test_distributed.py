"""One process, two and four agree: pictures predicted bit for bit, gradients averaged, one log. And devices.

Four gloo processes are started once: all four, then the first two of them, do what `one` does alone.
"""

import copy
import gc
import io
import math
import os
import socket
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from small import BACKBONE, UNTRAINED, Toy, read_log, squared_error, train, write_pictures
from torch import distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from datasets import Batch, PictureSet, TestOrder, TrainOrder, load_dataset, make_loader
from eamb.readers.decoding import View
from eamb.readers.rated import DataOptions, LeftOut, RatedSet
from eamb.runtime import distributed, engine
from eamb.runtime.networks import Ensemble, TorchNetwork
from eamb.training.run import Run
from EAMBNet import build_model
from tests.stress.training import forkserver

COUNT = 13  # pictures: two processes get 7 and 6, the last batches are not full
COMPUTE = engine.Compute(torch.device("cpu"), "fp32", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def small_network() -> nn.Module:
    """An EAMB-Net with random weights whose scores differ; statistics differ between the processes."""
    torch.manual_seed(4)
    model = build_model(BACKBONE, outputs=10, width=16, context_scale=1.0)
    torch.manual_seed(4 + distributed.rank())  # predicting shares the first process's statistics
    with torch.no_grad():
        model(torch.rand(6, 3, 64, 64))
        model.head[5].weight.mul_(20)
    return model.to(memory_format=torch.channels_last)


def predict(rated: RatedSet) -> dict[str, np.ndarray]:
    order = TestOrder(len(rated), 4, distributed.rank(), distributed.world())
    loader = make_loader(PictureSet(rated, 64, skip_broken=True), order, workers=0)
    found = engine.predict(Ensemble([TorchNetwork(small_network(), COMPUTE, View(64))]), loader, batch_size=4)
    return vars(found) | {"broken": np.array([entry.id for entry in found.broken])}


def train_toy(
    model: nn.Module, batches, epoch: dict, optimizer=None, precision: str = "fp32"
) -> dict[str, float]:
    settings = {"number": 0, "steps": len(batches), "seed": 0, "loss": squared_error, "ids": list("abcdefgh")}
    epoch = engine.Epoch(**settings | {"rate": lambda fraction: 0.05} | epoch)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    wrapped = distributed.wrap(model, COMPUTE.device, precision)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return engine.train_one_epoch(wrapped, batches, optimizer, scaler, COMPUTE, epoch, engine.Totals())


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def fit(rated: RatedSet, accumulate: int) -> dict[str, np.ndarray]:
    """Two epochs of gradient descent on a global batch of 4."""
    model = Toy()
    for number in range(2):
        order = TrainOrder(len(rated), 4, 0, number, rank=distributed.rank(), world=distributed.world())
        loader = make_loader(PictureSet(rated, 64, flip_seed=0, skip_broken=True), order, workers=0)
        epoch = {"number": number, "ids": rated.ids, "accumulate": accumulate, "steps": len(order)}
        means = train_toy(model, loader, epoch)
    return {"weights": flat(model), "loss": means["loss"], "pictures": means["pictures"]}


def spoilt() -> dict[str, np.ndarray]:
    """Of five steps in which one process's second loss is no number: the weights then, and the error."""
    model, share = Toy(), share_of_eight(())
    wrong = share._replace(scores=share.scores + (math.inf if distributed.is_main() else 0))
    with pytest.raises(FloatingPointError) as error:
        train_toy(model, [share, wrong, share, share, share], {"log_every": 4})
    return {"spoilt": flat(model), "said": str(error.value)}


class Recorder(torch.optim.SGD):
    """Keeps the gradients of its last step and leaves the weights alone."""

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.gradient = torch.cat([p.grad.flatten() for p in parameters])


EIGHT = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
SCORES = torch.linspace(0, 1, 8, dtype=torch.float64)
BROKEN = {"none": (), "unequal": (2, 3, 7), "one process has none": (1, 5)}  # of the eight pictures


def share_of_eight(broken: tuple[int, ...]) -> Batch:
    """The pictures of this process, every world-th of those eight, without the broken ones."""
    own = [i for i in range(distributed.rank(), 8, distributed.world()) if i not in broken]
    lost = [LeftOut(str(i), "broken") for i in broken if i % distributed.world() == distributed.rank()]
    return Batch(torch.tensor(own), EIGHT[own], SCORES[own], None, None, lost)


def gradients() -> dict[str, np.ndarray]:
    """Of one step of the engine on this process's share, as the optimizer sees it."""
    found = {}
    cases = {name: (broken, 0.0, "fp32") for name, broken in BROKEN.items()}
    cases |= {"bf16": ((), 0.0, "bf16"), "clipped": (BROKEN["unequal"], 0.01, "fp32")}
    for name, (broken, clip, precision) in cases.items():
        optimizer = Recorder((model := Toy()).parameters(), lr=1.0)
        train_toy(model, [share_of_eight(broken)], {"clip": clip}, optimizer, precision)
        found[name] = optimizer.gradient.numpy()
    return found


def summed_gradient(broken: tuple[int, ...]) -> np.ndarray:
    """Of the mean error of all good pictures in one batch, by autograd alone."""
    good, model = [i for i in range(8) if i not in broken], Toy()
    images = (EIGHT[good].float() / 255 - 0.5) / 0.5
    (model(images).prediction[:, 0] - SCORES[good].float()).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()


def results(root: Path) -> dict[str, np.ndarray]:
    rated = load_dataset("csv", root, ("train",), DataOptions(twins=False))["train"]
    found = predict(rated)
    good = rated.take(found["index"])
    for name, accumulate in (("", 1), ("accumulated_", 2)):
        found |= {f"{name}{what}": value for what, value in fit(good, accumulate).items()}
    found["largest"] = distributed.largest([distributed.rank(), 5 - distributed.rank()], COMPUTE.device)
    found["ranks"] = distributed.gather((distributed.rank(), distributed.broadcast(distributed.rank())))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thirteen")
    names = write_pictures(folder / "images", COUNT + 1)
    (folder / "images" / names[5]).write_bytes(b"no picture")
    rows = [f"{name},train,{i / 13:.2f}" for i, name in enumerate(names)]
    rows += [f"{name},val,0.{i}" for i, name in enumerate(write_pictures(folder / "images", 5, seed=1))]
    (folder / "ratings.csv").write_text("\n".join(["path,split,score", *rows]))
    return folder


@pytest.fixture(scope="module")
def one(root):
    return results(root)


def train_run(root: Path) -> dict[str, object]:
    """A training through main.py; its exit code, what it prints, and this process's weights at its end."""
    words = ["--skip-broken", "train.batch_size=6", "train.score_test=false", "data.twins=false", UNTRAINED]
    words += ["train.gradient_precision=bf16", "train.epochs=2", "train.freeze_backbone=1"]
    weights, record = [], Run.record

    def recording(run: Run, *arguments) -> None:
        record(run, *arguments)
        weights.append(flat(run.network))

    patched = mock.patch.object(Run, "record", recording)
    with redirect_stdout(io.StringIO()) as said, warnings.catch_warnings(), patched:
        warnings.filterwarnings("error", category=UserWarning, module="torch|eamb")
        code = train("csv", root, root / "run", *words)
    return {"code": code, "printed": said.getvalue(), "weights": weights}


def work(rank: int, root: Path, ports: list[int]) -> dict[str, dict[str, np.ndarray]]:
    """What one of the four processes finds: in a group of four, and the first two again in two of two."""
    gc.freeze()  # what was imported
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    found = {}
    for name, world, port in zip((4, 2, "run"), (4, 2, 2), ports, strict=True):
        os.environ |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        if rank < world and name == "run":
            found[name] = train_run(root)
        elif rank < world:
            with distributed.session("cpu"):
                found[name] = gradients() | (results(root) | spoilt() if world == 2 else {})
    return found


@pytest.fixture(scope="module")
def together(root) -> list[dict[int, dict[str, np.ndarray]]]:
    """What each of four processes found, by the number of processes at work."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    with ProcessPoolExecutor(4, forkserver()) as pool:
        at_work = [pool.submit(work, rank, root, ports) for rank in range(4)]
        return [each.result(timeout=300) for each in at_work]


@pytest.fixture(scope="module")
def two(together) -> list[dict[str, np.ndarray]]:
    return [found[2] for found in together[:2]]


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_of_several_processes_are_those_of_the_summed_batch(together, world):
    expected = {name: (summed_gradient(broken), 0, 2e-6) for name, broken in BROKEN.items()}
    whole = expected["unequal"][0]
    expected["bf16"] = (expected["none"][0], 1e-4, 2**-8)  # its rounding
    expected["clipped"] = (whole * 0.01 / np.linalg.norm(whole), 0, 1e-4)
    assert np.linalg.norm(whole) > 0.02
    for found in (each[world] for each in together[:world]):
        for name, (gradient, least, most) in expected.items():
            distance = np.linalg.norm(found[name] - gradient) / np.linalg.norm(gradient)
            assert least <= distance < most, name
            assert np.array_equal(found[name], together[0][world][name]), name


def test_two_processes_predict_thirteen_pictures_exactly_as_one_and_both_list_the_broken_one(one, two):
    assert one["prediction"].shape == (COUNT, 10)
    assert len(np.unique(one["prediction"], axis=0)) == COUNT
    assert 5 not in one["index"]
    assert one["broken"].tolist() == ["0_005.png"]
    for found in two:
        for name in ("index", "prediction", "emotion", "broken"):
            assert np.array_equal(found[name], one[name]), name


@pytest.mark.parametrize("prefix", ["", "accumulated_"])
def test_two_halves_of_a_batch_train_as_the_whole(one, two, prefix):
    expected, first = one[f"{prefix}weights"], two[0]
    assert np.abs(expected - flat(Toy())).max() > 0.01
    assert np.array_equal(first[f"{prefix}weights"], two[1][f"{prefix}weights"])
    assert np.allclose(first[f"{prefix}weights"], expected, atol=1e-6)
    assert first[f"{prefix}loss"] == pytest.approx(one[f"{prefix}loss"], rel=1e-5)
    assert first[f"{prefix}pictures"] == one[f"{prefix}pictures"] == 12


def test_values_are_gathered_by_rank_and_a_loss_that_is_no_number_reaches_the_weights_of_none(one, two):
    assert [found["ranks"] for found in (one, *two)] == [[(0, 0)], [(0, 0), (1, 0)], [(0, 0), (1, 0)]]
    assert [found["largest"] for found in (one, *two)] == [[0, 5], [1, 5], [1, 5]]
    assert np.array_equal(two[0]["spoilt"], two[1]["spoilt"])
    assert np.isfinite(two[0]["spoilt"]).all()
    assert two[0]["said"].startswith("engine: the loss is inf at step 2 of epoch 1")
    assert two[1]["said"].startswith("engine: the norm of the gradients is nan at step 2 of epoch 1")


def test_a_training_of_two_processes_writes_one_log_and_one_checkpoint(root, together):
    first, second = (found["run"] for found in together[:2])
    assert (first["code"], second["code"]) == (0, 0)
    assert ([first["printed"].count(f"epoch {n}/2 ") for n in (1, 2)], second["printed"]) == ([1, 1], "")
    for ours, theirs in zip(first["weights"], second["weights"], strict=True):
        assert np.array_equal(ours, theirs)
    for line in read_log(root / "run"):
        assert (line["train_pictures"] + line["train_broken"], line["val_n"]) == (12, 5)
    assert {path.name for path in (root / "run").glob("*.pt")} == {"last.pt", "best.pt"}
    state = torch.load(root / "run" / "last.pt", weights_only=True)["state"]
    assert (state["world"], len(state["totals"]), state["epoch"]) == (2, 2, 2)


def test_synchronised_batchnorm_has_the_same_weights_names_and_activations(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    model = small_network().eval()
    converted = distributed.synchronise_batchnorm(copy.deepcopy(model))
    layers = [module for module in converted.modules() if isinstance(module, _BatchNorm)]
    assert len(layers) > 20 and all(isinstance(layer, nn.SyncBatchNorm) for layer in layers)
    assert list(converted.state_dict()) == list(model.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():  # timm's layers hold an activation, which torch's own conversion loses
        assert torch.equal(converted(images).prediction, model(images).prediction)


def test_synchronised_batchnorm_is_refused_on_a_cpu(root, tmp_path, capsys):
    words = ["data.twins=false", UNTRAINED, "train.sync_batchnorm=true"]
    assert train("csv", root, tmp_path / "run", *words) == 2
    said = capsys.readouterr().err
    assert "train.sync_batchnorm needs CUDA (this run is on cpu) and does not go with --skip-broken" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cuda:99", "cpu:1", "meta"])
def test_a_device_that_is_unknown_or_not_there_is_refused(name):
    words = f"device '{name}' is unknown or not here; choose --device from auto, cpu"
    with pytest.raises(ValueError, match=words):
        distributed.choose_device(name, "--device")


def test_auto_takes_what_is_there(monkeypatch):
    for there, local_rank, device in ((False, "0", "cpu"), (True, "0", "cuda:0"), (True, "1", "cuda:1")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert distributed.choose_device("auto") == torch.device(device)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"choose train\.device from auto, cpu, cuda:0, cuda:1$"):
        distributed.choose_device("cuda")


def test_the_loss_of_another_process_is_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "rendezvous", lambda address: iter([(dist.HashStore(), 0, 1)]))
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *arguments, **options: None)
    said = "process 0 lost another, whose own error says why it has ended .*gloo.* reset by peer"
    with pytest.raises(ConnectionError, match=said), distributed.session("cpu"):
        raise RuntimeError("[/gloo/pair.cc:545] Read error:\n Connection reset by peer")
    with pytest.raises(RuntimeError, match=r"^something else$"), distributed.session("cpu"):
        raise RuntimeError("something else")
