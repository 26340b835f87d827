"""Whole runs, tiny: what their weights say, signals, chance, averages, kept maps; pairs of photographs."""

import copy
import math
import os
import shlex
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small import LONG, SHORT, evaluate, read_csv, read_json, read_log, same, tensors, train

import datasets
from datasets import load_dataset
from eamb.readers.zooming import cut
from eamb.training import interruption
from eamb.training import run as run_module
from eamb.training.run import Best, Run
from eamb.training.tasks import Aesthetics
from eamb.weights import checkpoint
from main import main

# ---- what the weights say


def test_weights_say_what_they_are(score_run, scored_set):
    known = checkpoint.load_weights(score_run / "best.pt").description
    data = load_dataset("csv", scored_set)
    assert known["task"] == "aesthetics"
    assert (known["dataset"], known["image_size"], known["exif"], known["pictures"]) == ("csv", 64, True, 16)
    assert known["splits"] == {split: rated.sha256 for split, rated in data.items()}
    assert known["scale"]["kind"] == "score"
    assert (known["scale"]["offset"], known["scale"]["factor"]) == (1, 4)
    assert known["config"]["data"]["root"] == ""
    assert torch.__version__.startswith(known["versions"]["torch"])
    ratings = np.quantile(data["train"].scores, [0, 0.5, 1])
    assert [known["training_ratings"][i] for i in (0, 500, 1000)] == pytest.approx(ratings)


def test_ids_of_all_training_pictures_travel_exactly(score_run, emotion_run, scored_set):
    # As 64-bit integers: a detour over float64 would change nearly all of them.
    expected = load_dataset("csv", scored_set, ("train",))["train"].id_hashes
    for run in (score_run, emotion_run):
        for name in ("best.pt", "last.pt"):
            weights = checkpoint.load_weights(run / name)
            for ids in (weights.training_ids, weights.emotion_training_ids):
                assert ids.dtype == np.int64
                assert np.array_equal(ids, expected)


def test_best_is_the_largest_or_the_smallest_divergence_and_something_even_where_it_is_undefined():
    nan = math.nan
    for measure, values, better, expected in (
        ("srcc", [0.2, 0.1, 0.3, 0.3], [True, False, True, False], (0.3, 2)),
        ("kl", [0.2, 0.3, 0.1], [True, False, True], (0.1, 2)),
        ("srcc", [nan, nan, -0.5, nan], [True, False, True, False], (-0.5, 2)),
    ):
        best = Best(measure)
        assert [best.update(i, {measure: value}) for i, value in enumerate(values)] == better
        assert (best.value, best.epoch) == expected


# ---- frozen backbones


@pytest.mark.parametrize(("epochs", "fixed"), [(0, False), (0, True), (1, False), (1, True), (2, False)])
def test_backbones_learn_nothing_for_the_first_epochs(epochs, fixed, scored_set, tmp_path, monkeypatch):
    states, train_epoch = [], run_module.train_epoch

    def recording(run, epoch):
        branch = run.network.emotion
        state = {kind: [*getattr(branch.pyramid, kind)()] for kind in ("parameters", "buffers")}
        states.append(copy.deepcopy(state | {"others": [*branch.fine.parameters()]}))
        return train_epoch(run, epoch)

    monkeypatch.setattr(run_module, "train_epoch", recording)
    words = ["--task", "emotion", "train.epochs=3", f"train.freeze_backbone={epochs}", *SHORT[:1]]
    words += [f"train.fixed_batchnorm={fixed}", "optimizer.learning_rate=1e-3", "train.average=0.5"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    for epoch, (before, after) in enumerate(pairwise(states)):  # the first two epochs
        still = {"parameters": epoch < epochs, "buffers": epoch < epochs or fixed, "others": False}
        for kind, expected in still.items():
            assert all(map(torch.equal, before[kind], after[kind])) == expected, (epoch, kind)


# ---- signals


def at_step(monkeypatch, epoch: int, step: int, act) -> None:
    """Calls `act()` behind a step of an epoch, both from 0 and 1 on."""
    save_if_due = Run.save_if_due

    def acting(run):
        if (run.epoch, run.totals.step) == (epoch, step):
            act()
        save_if_due(run)

    monkeypatch.setattr(Run, "save_if_due", acting)


def position(path: Path) -> tuple[int, int]:
    state = checkpoint.load_training(path)[1]
    return state["epoch"], state["totals"][0]["step"]


def test_a_signal_ends_the_step_and_the_command_that_it_prints_goes_on(
    stopped_runs, scored_set, emotion_run, tmp_path, monkeypatch, capsys
):
    output, whole = tmp_path / "a run", stopped_runs["whole"]
    words = [*LONG, "train.checkpoint_minutes=1000", "--emotion-checkpoint", emotion_run / "best.pt"]
    handlers = [signal.getsignal(number) for number in interruption.ENDING]
    with monkeypatch.context() as patch:
        at_step(patch, 1, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train("csv", scored_set, output, *words, "--force") == 143
    assert [signal.getsignal(number) for number in interruption.ENDING] == handlers
    assert position(output / "last.pt") == (1, 2)
    stopped, command = capsys.readouterr().err.splitlines()[-2:]
    assert stopped == "stopped by SIGTERM; go on with"
    python, program, *words = shlex.split(command)
    assert (python, program, words[-1], "--force" in words) == ("python", "main.py", "--resume", False)
    assert main(words) == 0
    assert same(tensors(output / "last.pt"), tensors(whole / "last.pt"))
    for file in ("metrics.jsonl", "test/predictions.csv"):
        assert (output / file).read_bytes() == (whole / file).read_bytes()


def test_a_signal_during_validation_need_not_wait(scored_set, tmp_path, monkeypatch, capsys):
    def validate(run):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        raise AssertionError("the signal did not end the validation")

    monkeypatch.setattr(run_module, "validate", validate)
    assert train("csv", scored_set, tmp_path / "run", *SHORT, "data.limit=8") == 130
    assert position(tmp_path / "run" / "last.pt") == (0, 1)
    assert capsys.readouterr().err.splitlines()[-2] == "stopped by SIGINT; go on with"


def test_a_second_signal_ends_at_once(scored_set, tmp_path, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(interruption.os, "_exit", ended.append)

    def twice():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    at_step(monkeypatch, 0, 1, twice)
    train("csv", scored_set, tmp_path / "run", *SHORT, "data.limit=8")
    assert ended == [130]
    assert "a second signal ends at once" in capfd.readouterr().err


# ---- epochs


def test_the_schedule_of_the_config_is_the_one_that_runs(scored_set, tmp_path):
    words = ["optimizer.schedule=ava", "optimizer.learning_rate=8e-4", "train.epochs=5", "data.limit=8"]
    assert train("csv", scored_set, tmp_path / "run", *words, *SHORT) == 0
    assert [line["learning_rate"] for line in read_log(tmp_path / "run")] == [8e-4, 8e-4, 8e-4, 4e-4, 2e-4]


def test_a_run_is_a_function_of_its_seed_alone(scored_set, tmp_path):
    def weights_after_a_step(name, *words):
        assert train("csv", scored_set, tmp_path / name, *SHORT, "data.limit=8", *words) == 0
        return tensors(tmp_path / name / "last.pt")

    first = weights_after_a_step("first")
    torch.manual_seed(999)
    np.random.seed(999)
    assert same(first, weights_after_a_step("again", "data.workers=1"))
    other = weights_after_a_step("other", "train.seed=1")
    assert not torch.equal(first["head.2.weight"], other["head.2.weight"])


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    scored_set, tmp_path, monkeypatch, capsys
):
    log = tmp_path / "run" / "metrics.jsonl"

    def nan_in_the_second_epoch(task, rated):
        return lambda output, batch: output.prediction.sum() * (math.nan if log.exists() else 1)

    monkeypatch.setattr(Aesthetics, "loss", nan_in_the_second_epoch)
    words = ["train.epochs=2", "data.limit=8", *SHORT]
    assert train("csv", scored_set, tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert "the loss is nan at step 1 of epoch 2, learning rate 3e-05 (pictures 0_0" in error
    assert position(tmp_path / "run" / "last.pt") == (1, 0)
    weights = tensors(tmp_path / "run" / "last.pt")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_what_is_kept_of_an_averaged_run_is_the_average(scored_set, tmp_path):
    words = [*SHORT, "train.average=0.99", "optimizer.learning_rate=1e-2"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    last, state = checkpoint.load_training(tmp_path / "run" / "last.pt")
    best = tensors(tmp_path / "run" / "best.pt")
    assert state["average_steps"] == 2
    assert same(best, state["average"])
    assert not torch.equal(best["head.5.weight"], last.tensors["head.5.weight"])


def test_recomputing_blocks_changes_nothing_else(stopped_runs, scored_set, emotion_run, tmp_path):
    words = [*LONG, "--emotion-checkpoint", emotion_run / "best.pt", "train.recompute=true"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    for file in ("metrics.jsonl", "test/predictions.csv"):
        assert (tmp_path / "run" / file).read_text() == (stopped_runs["whole"] / file).read_text()


def test_a_run_with_kept_maps_equals_one_without(scored_set, emotion_run, tmp_path):
    # At a small rate; a large one makes much of the last digits.
    words = ["--emotion-checkpoint", emotion_run / "best.pt", "train.score_test=false"]
    words += ["optimizer.learning_rate=1e-5", "train.batch_size=4"]
    maps = tmp_path / "maps"
    assert train("csv", scored_set, tmp_path / "computed", *words) == 0
    assert train("csv", scored_set, tmp_path / "kept", *words, f"train.emotion_maps={maps}") == 0
    [line], [other] = (read_log(tmp_path / name) for name in ("computed", "kept"))
    assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
    assert list(maps.rglob("*.npy"))


def test_kept_maps_are_cut_as_the_pictures_are(scored_set, emotion_run, tmp_path, monkeypatch):
    parts = {"pictures": [], "maps": []}
    for name, module in (("pictures", datasets), ("maps", run_module)):
        keep = parts[name].append
        monkeypatch.setattr(module, "cut", lambda one, part, keep=keep: keep(part) or cut(one, part))
    words = ["--emotion-checkpoint", emotion_run / "best.pt", f"train.emotion_maps={tmp_path / 'maps'}"]
    assert train("csv", scored_set, tmp_path / "run", *words, "data.zoom=0.4", "train.score_test=false") == 0
    assert parts["pictures"] == parts["maps"] and len(set(parts["maps"])) > 8


def test_the_branch_can_be_trained_with_the_rest(scored_set, emotion_run, tmp_path):
    branch = ["--emotion-checkpoint", emotion_run / "best.pt", "loss.emotion_weight=0.5"]
    assert train("csv", scored_set, tmp_path / "run", *branch, "train.score_test=false") == 0
    [line] = read_log(tmp_path / "run")
    assert {"val_srcc", "val_emotion_kl", "val_emotion_accuracy"} <= line.keys()
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert not same(tensors(emotion_run / "best.pt"), weights.tensors, "emotion.fine.0.weight")
    assert weights.description["origin"]["emotion_branch"] == "trained"
    assert weights.description["architecture"]["train_emotion"] is True


# ---- pairs


@pytest.fixture(scope="module")
def pair_run(series_set, tmp_path_factory):
    """A pair network that has learned which of two photographs is the brighter."""
    output = tmp_path_factory.mktemp("runs") / "pairs"
    words = ["--task", "series", "--network", "paunit", "optimizer.learning_rate=1e-3", "train.epochs=8"]
    words += ["optimizer.schedule=constant", "evaluate.bootstrap=20"]
    assert train("pairs", series_set, output, *words, draw=True) == 0
    return output


def test_a_pair_network_learns_which_photograph_is_the_brighter(pair_run):
    report = read_json(pair_run / "test" / "metrics.json")
    assert report["metrics"]["accuracy"] > 0.8
    assert report["metrics"]["series_krcc"] > 0.5
    low, high = report["intervals_95"]["accuracy"]
    assert low <= report["metrics"]["accuracy"] <= high
    assert report["test_pictures_trained_on"] == 0
    rows = read_csv(pair_run / "test" / "predictions.csv")
    right = [(float(row["prediction"]) > 0.5) == (float(row["preference"]) > 0.5) for row in rows]
    assert np.mean(right) == report["metrics"]["accuracy"]
    weights = checkpoint.load_weights(pair_run / "best.pt")
    known = weights.task, weights.description["network"], weights.description["crop"]
    assert known == ("series", "paunit", True)


def test_pair_weights_are_refused_where_single_photographs_are_scored(
    pair_run, series_set, scored_set, tmp_path, capsys
):
    best, photographs = str(pair_run / "best.pt"), str(series_set / "p")
    assert main(["predict", photographs, "--checkpoint", best]) == 2
    assert "scoring needs weights of --task aesthetics" in capsys.readouterr().err
    assert evaluate(Path(best), "csv", scored_set, tmp_path / "out") == 2
    assert "do not go together" in capsys.readouterr().err
    words = ["--checkpoint", best, "--output", str(tmp_path / "picks.csv")]
    words += ["--gap", "inf", "--similarity", "0", "--page", str(tmp_path / "page")]
    assert main(["select", photographs, *words]) == 0
    rows = read_csv(tmp_path / "picks.csv")
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 36
    assert scores == sorted(scores, reverse=True)  # one series, ranked by odds
