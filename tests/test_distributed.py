"""One process and two agree: pictures predicted bit for bit, gradients averaged, one log. And devices.

Run as a script, this file is what each of the two gloo processes does.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import ROOT, UNTRAINED, WORDS, command, read_log, write_pictures
from torch import nn

import distributed
import engine
from datasets import DataOptions, PictureSet, RatedSet, TestOrder, TrainOrder, load_dataset, make_loader
from EAMBNet import Output, build_model

COUNT = 13  # pictures: two processes get 7 and 6, the last batches are not full
COMPUTE = engine.Compute(torch.device("cpu"), "fp32", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Toy(nn.Module):
    """Without BatchNorm, so that the mean of two halves' gradients is the gradient of the whole batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(3, 1)

    def forward(self, images):
        pooled = images.mean(dim=(2, 3))  # (N, 3)
        return Output(self.linear(pooled), pooled, pooled)


def lite() -> nn.Module:
    """EAMB-Net Lite with random weights whose scores differ; statistics differ between the processes."""
    torch.manual_seed(4)
    model = build_model("tf_efficientnet_lite0", outputs=10, width=16, context_scale=1.0)
    torch.manual_seed(4 + distributed.rank())  # predicting shares the first process's statistics
    with torch.no_grad():
        model(torch.rand(6, 3, 64, 64))
        model.head[5].weight.mul_(20)
    return model.to(memory_format=torch.channels_last)


def predict(rated: RatedSet) -> dict[str, np.ndarray]:
    order = TestOrder(len(rated), 4, distributed.rank(), distributed.world())
    pictures = PictureSet(rated, 64, skip_broken=True)
    found = engine.predict(lite(), make_loader(pictures, order, workers=0), COMPUTE, batch_size=4)
    broken = np.array([entry.id for entry in found.broken])
    return {"index": found.index, "prediction": found.prediction, "emotion": found.emotion, "broken": broken}


def fit(rated: RatedSet, accumulate: int) -> dict[str, np.ndarray]:
    """Two epochs of gradient descent on a global batch of 4."""
    model = Toy()
    wrapped = distributed.wrap(model, COMPUTE.device)
    for epoch in range(2):
        order = TrainOrder(len(rated), 4, 0, epoch, rank=distributed.rank(), world=distributed.world())
        found = engine.train_one_epoch(
            wrapped,
            make_loader(PictureSet(rated, 64, flip_seed=0, skip_broken=True), order, workers=0),
            loss_function=lambda output, batch: ((output.prediction[:, 0] - batch.scores) ** 2).mean(),
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            rate=lambda fraction: 0.05,
            compute=COMPUTE,
            steps=len(order),
            epoch=epoch,
            seed=0,
            totals=engine.Totals(),
            ids=rated.ids,
            accumulate=accumulate,
        )
    assert distributed.unwrap(wrapped) is model
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    return {"weights": weights, "loss": np.float64(found["loss"]), "pictures": np.int64(found["pictures"])}


def read_set(root: Path) -> RatedSet:
    return load_dataset("csv", root, ("train",), DataOptions(twins=False))["train"]


def results(root: Path) -> dict[str, np.ndarray]:
    rated = read_set(root)
    found = predict(rated)
    good = rated.take(found["index"])
    found |= fit(good, accumulate=1)
    found |= {f"accumulated_{name}": value for name, value in fit(good, accumulate=2).items()}
    said = distributed.broadcast(f"from {distributed.rank()}")
    found["ranks"] = np.array(distributed.gather((distributed.rank(), said)))
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = results(root)
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def two(root, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What each of two processes found."""
    output = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(root), str(output / f"{rank}.npz")],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [dict(np.load(output / f"{rank}.npz")) for rank in range(2)]


def test_two_processes_predict_thirteen_pictures_exactly_as_one(one, two):
    assert one["prediction"].shape == (COUNT, 10)
    assert len(np.unique(one["prediction"], axis=0)) == COUNT
    for found in two:
        for name in ("index", "prediction", "emotion", "broken"):
            assert np.array_equal(found[name], one[name]), name


def test_a_broken_picture_is_left_out_and_listed_by_both(one, two):
    assert [found["broken"].tolist() for found in (one, *two)] == [["0_005.png"]] * 3
    assert 5 not in two[0]["index"]


@pytest.mark.parametrize("prefix", ["", "accumulated_"])
def test_two_halves_of_a_batch_train_as_the_whole(one, two, prefix):
    start = torch.cat([p.detach().flatten() for p in Toy().parameters()]).numpy()
    expected = one[f"{prefix}weights"]
    assert np.abs(expected - start).max() > 0.01
    assert np.array_equal(two[0][f"{prefix}weights"], two[1][f"{prefix}weights"])
    assert np.allclose(two[0][f"{prefix}weights"], expected, atol=1e-6)
    assert two[0][f"{prefix}loss"] == pytest.approx(one[f"{prefix}loss"], rel=1e-5)
    assert two[0][f"{prefix}pictures"] == one[f"{prefix}pictures"] == 12


def test_values_are_gathered_in_the_order_of_ranks_and_told_by_the_first(one, two):
    assert one["ranks"].tolist() == [["0", "from 0"]]
    for found in two:
        assert found["ranks"].tolist() == [["0", "from 0"], ["1", "from 0"]]


def test_training_runs_through_torchrun_and_writes_one_log(root, tmp_path):
    words = ["--dataset", "csv", "--data-root", root, "--output", tmp_path / "run", "--skip-broken"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "main.py"]
    few = ["train.batch_size=6", "train.score_test=false", "data.twins=false", UNTRAINED]
    done = command(*launcher, "train", *words, *WORDS, *few, PYTHONWARNINGS="error::UserWarning")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1 ") == 1
    [line] = read_log(tmp_path / "run")
    assert (line["train_pictures"] + line["train_broken"], line["val_n"]) == (12, 5)
    assert {path.name for path in (tmp_path / "run").glob("*.pt")} == {"last.pt", "best.pt"}
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["state"]
    assert (state["world"], len(state["totals"]), state["epoch"]) == (2, 2, 1)


# ---- alone


def test_alone_everything_is_a_no_op():
    model = nn.Linear(2, 2)
    with distributed.session("cpu") as device:
        assert device == torch.device("cpu")
        assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
        assert distributed.wrap(model, device) is distributed.unwrap(model) is model
        assert (distributed.gather(3), distributed.broadcast(3)) == ([3], 3)
        distributed.share_buffers(model)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_an_unknown_device_is_answered_with_the_known(name):
    with pytest.raises(ValueError, match=f"unknown device '{name}'; use auto, cpu, cuda, cuda:1 or mps"):
        distributed.choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "cpu:1", "meta"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"device '{name}' is not on this machine; train.device=cpu"):
        distributed.choose_device(name)


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert distributed.choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.choose_device("auto") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.choose_device("auto") == torch.device("cuda:1")
    assert distributed.choose_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="is not on this machine"):
        distributed.choose_device("cuda")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.session("cpu"):
        np.savez(sys.argv[2], **results(Path(sys.argv[1])))
