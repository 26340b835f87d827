"""The checks of tests/stress in short, and whether they notice what goes wrong."""

import multiprocessing
import os
import shutil
import time

import pytest
import torch
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
    fates = images.make_files(tmp_path / "files", 130, seed=0, large=False)
    assert set(fates.values()) == {"good", "scored", "refused", "either"}
    assert images.hostile(tmp_path, fates, 4.0, words) == []


@pytest.mark.parametrize(
    ("fate", "rows", "said"),
    [
        ("good", [(0.5, None), (0.500009, None)], None),
        ("good", [(0.5, None), (0.500011, None)], "scores are 1.1e-05 of the range apart"),
        ("good", [(None, "no"), (None, "no")], "should be scored: no"),
        ("scored", [(0.5, None), (None, None)], None),  # the loader gives no scores
        ("scored", [(0.5, None), (None, "no")], "scored in one run, in another no"),
        ("refused", [(0.5, None), (None, None)], "should be refused"),
        ("either", [(None, "no"), (None, " ")], "an empty reason"),
        ("either", [(None, "no"), None], "no row"),
    ],
)
def test_each_row_that_is_wrong_is_told(fate, rows, said):
    runs = {name: {"a": row} if row else {} for name, row in zip(("predict", "loader"), rows, strict=True)}
    told = images.problems_of({"a": fate}, runs, {"a": rows[0]})
    assert told == ([f"a: {said}"] if said else [])


def test_a_good_picture_must_score_as_it_does_alone_and_no_row_may_be_too_many():
    rows = {"a": (0.5, None), "b": (0.5, None)}
    told = images.problems_of({"a": "good"}, {"predict": rows}, {"a": (0.6, None)})
    assert told[0] == "predict: a row for b, which was not asked for"
    assert told[1:] == ["a: scores are 0.1 of the range apart"]


def test_a_crash_and_a_hang_are_told(monkeypatch):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)
    with pytest.raises(RuntimeError, match="crashed"):
        images.in_new_process(os._exit, 3, seconds=60)
    with pytest.raises(RuntimeError, match="hangs; ended after 1 s"):
        images.in_new_process(time.sleep, 1000, seconds=1)


def test_a_short_soak_is_run_and_watched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "SLOWER", 100)  # of so few pictures the time is chance
    words = ["--checkpoint", str(write_checkpoint(tmp_path)), "--workers", "2", "--batch-size", "4"]
    assert images.soak(tmp_path, 200, words, start=50) == []
    assert " MB within 50 pictures, " in capsys.readouterr().out


def test_growth_and_slowdown_are_told():
    flat = [(rows, rows / 50, 800.0) for rows in range(0, 10_001, 100)]
    assert images.slowdown_and_growth(flat, 10_000) == []
    leaking = [(rows, seconds, 800 + rows / 100) for rows, seconds, _ in flat]
    [problem] = images.slowdown_and_growth(leaking, 10_000)
    assert problem == "memory grew by 90 MB after 1,000 pictures, allowed are 50"
    [problem] = images.slowdown_and_growth([(rows, rows**1.1, 800.0) for rows, *_ in flat], 10_000)
    assert problem.startswith("the last tenth took 1.3")


def test_a_training_that_is_killed_equals_one_that_is_not(capsys):
    words = ["--kills", "1", "--processes", "1", "--epochs", "1"]
    assert training.main([*words, "train.score_test=false", "data.workers=0", "data.limit=32"]) == 0
    assert capsys.readouterr().out.endswith(" 0 differences\ndifferences: 0\n")


def test_one_changed_value_is_told(score_run, tmp_path):
    other = shutil.copytree(score_run, tmp_path / "run")
    assert training.differences(score_run, other) == []
    weights, state = checkpoint.load_training(other / "last.pt")
    weights.tensors["head.5.bias"].add_(1e-6)
    next(iter(state["optimizer"]["state"].values()))["exp_avg"].add_(1e-9)
    checkpoint.save_training(other / "last.pt", weights, state)
    (other / "metrics.jsonl").write_text((other / "metrics.jsonl").read_text() + "\n")
    told = training.differences(score_run, other)
    assert len(told) == 3
    assert all(
        name in one for name, one in zip(("head.5.bias", "exp_avg", "metrics.jsonl"), told, strict=True)
    )


@pytest.mark.parametrize("other", [[torch.zeros(2), 0], [torch.zeros(2).double(), 1], [torch.zeros(2)]])
def test_values_of_other_kinds_differ(other):
    one = {"a": [torch.zeros(2), 1]}
    assert training.unequal("x", one, {"a": [torch.zeros(2), 1]}) == []
    assert len(training.unequal("x", one, {"a": other})) == 1


@pytest.mark.slow
@pytest.mark.parametrize("check", [images, training])
def test_the_whole_check(check):
    assert check.main([]) == 0


@pytest.mark.slow
def test_a_long_soak():
    assert images.main(["--soak", "20000"]) == 0
