"""Trainings that are killed, in short, and whether scripts/torture_training.py would see a difference."""

import shutil
import sys

import pytest
import torch
from small import ROOT

from eamb.weights import checkpoint

sys.path.insert(0, str(ROOT / "scripts"))

import torture
import torture_training


def test_a_training_that_is_killed_twice_equals_one_that_is_not(tmp_path, capfd):
    words = ["train", "--kills", "2", "--processes", "1", "--epochs", "2", "--output", str(tmp_path)]
    words += ["train.score_test=false", "data.workers=0", "data.limit=32"]
    assert torture.main(words) == 0
    said = capfd.readouterr().out
    assert "1 process(es): 2 kills (" in said
    assert said.endswith(" 0 differences\ndifferences: 0\n")


@pytest.mark.parametrize("change", ["weights", "optimizer", "metrics.jsonl", "nothing"])
def test_one_changed_value_is_seen(change, score_run, tmp_path):
    other = shutil.copytree(score_run, tmp_path / "run")
    weights, state = checkpoint.load_training(other / "last.pt")
    if change == "weights":
        weights.tensors["head.5.bias"].add_(1e-6)
    if change == "optimizer":
        next(iter(state["optimizer"]["state"].values()))["exp_avg"].add_(1e-9)
    if change == "metrics.jsonl":
        with (other / change).open("a") as file:
            file.write("\n")
    checkpoint.save_training(other / "last.pt", weights, state)
    found = torture_training.differences(score_run, other)
    assert len(found) == (change != "nothing")
    assert all(
        {"weights": "head.5.bias", "optimizer": "exp_avg"}.get(change, change) in line for line in found
    )


def test_values_of_other_kinds_differ():
    one = {"a": [torch.zeros(2), 1, None]}
    assert torture_training.unequal("x", one, {"a": [torch.zeros(2), 1, None]}) == []
    for other in ([torch.zeros(2), 1, 0], [torch.zeros(2).double(), 1, None], [torch.zeros(2), 1]):
        assert len(torture_training.unequal("x", one, {"a": other})) == 1
    assert torture_training.unequal("x", one, {"b": 1}) == ["x"]


def test_what_cannot_be_asked_for_is_told(capsys):
    assert torture.main(["trian"]) == 2
    assert "usage: torture.py {train,images}" in capsys.readouterr().out
