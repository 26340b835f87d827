"""The checks of tests/stress in short, and whether they notice what goes wrong."""

import multiprocessing
import os
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool

import pytest
from test_export import write_checkpoint

from eamb.weights import checkpoint
from tests.small import bound_by_permissions
from tests.stress import images, training


def test_hostile_files_are_scored_or_have_a_reason(tmp_path, monkeypatch):
    def here(function, *arguments, seconds):
        with bound_by_permissions():
            return function(*arguments), 0.0

    monkeypatch.setattr(images, "in_new_process", here)
    monkeypatch.setattr(images, "DECODERS", 0)
    words = ["--checkpoint", str(write_checkpoint(tmp_path))]
    fates = images.make_files(tmp_path / "files", 170, seed=0, large=False)
    assert set(fates.values()) == {"good", "scored", "refused", "either"}
    assert images.hostile(tmp_path, fates, 4.0, words) == []


@pytest.mark.parametrize(
    ("fate", "rows", "said"),
    [
        ("good", [(0.5, ""), (0.500009, ""), (0.5, "")], None),
        ("good", [(0.5, ""), (0.5, ""), (0.500011, "")], "scores are 1.1e-05 of the range apart"),
        ("good", [(None, "no"), (None, "no"), (None, "no")], "should be good"),
        ("scored", [(0.5, ""), (None, "")], None),  # the loader gives no scores
        ("scored", [(0.5, ""), (None, "no")], "should be scored"),
        ("refused", [(0.5, ""), (None, "")], "should be refused"),
        ("either", [(None, "no"), (None, " ")], "should be either"),
        ("either", [(None, "no"), None], "should be either"),
    ],
)
def test_each_row_that_is_wrong_is_told(fate, rows, said):
    names = ("predict", "loader", images.ALONE)
    runs = {name: {"a": row} if row else {} for name, row in zip(names, rows, strict=False)}
    told = images.problems_of({"a": fate}, runs)
    assert len(told) == bool(said) and all(one.startswith(f"a: {said}") for one in told)
    assert images.problems_of({}, {"loader": {"b": (None, "")}}) == ["b: a row that was not asked for"]


def test_a_crash_and_a_hang_are_told(monkeypatch):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)
    with pytest.raises(BrokenProcessPool):
        images.in_new_process(os._exit, 3, seconds=60)
    with pytest.raises(FutureTimeoutError):
        images.in_new_process(time.sleep, 1000, seconds=1)


def test_a_training_that_is_killed_equals_one_that_is_not(capsys):
    words = ["--kills", "1", "--processes", "1", "--epochs", "1"]
    assert training.main([*words, "train.score_test=false", "data.workers=0", "data.limit=32"]) == 0
    assert capsys.readouterr().out.endswith(" 0 differences\ndifferences: 0\n")


def test_one_changed_value_is_told(score_run, copied_run):
    assert training.differences(score_run, copied_run) == []
    for change in ("weights", "optimizer"):
        weights, state = checkpoint.load_training(score_run / "last.pt")
        if change == "weights":
            weights.tensors["head.5.bias"].add_(1e-6)
        else:
            next(iter(state["optimizer"]["state"].values()))["exp_avg"].add_(1e-9)
        checkpoint.save_training(copied_run / "last.pt", weights, state)
        assert training.differences(score_run, copied_run) == [str(copied_run / "last.pt")]
    with (copied_run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    assert len(training.differences(score_run, copied_run)) == 2


@pytest.mark.slow
def test_the_whole_checks():
    assert images.main([]) == 0
    assert training.main([]) == 0
