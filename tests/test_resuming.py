"""A run that stopped goes on as if it had not, from its newest whole checkpoint; another run is refused."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small import (
    LONG,
    SHORT,
    UNTRAINED,
    assert_same_run,
    contents,
    parameters,
    read_log,
    same,
    train,
    train_and_copy,
)

from datasets import load_dataset
from eamb.runtime import distributed
from eamb.runtime.config import load_config, read_settings
from eamb.training.resuming import changed_settings
from eamb.training.run import settle
from eamb.weights import checkpoint

PLACES = {"start": 1, "step 2": 3, "validation": 5}  # of a stop -> the step at which the run goes on


@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_run_equals_one_that_never_stopped(place, stopped_runs, scored_set, tmp_path, capsys):
    output = shutil.copytree(stopped_runs[place], tmp_path / "run")
    assert len(read_log(output)) == 1
    torch.manual_seed(12345)
    assert train("csv", scored_set, output, *LONG, "--resume") == 0
    assert f"at epoch 2, step {PLACES[place]}\n" in capsys.readouterr().out
    assert_same_run(output, stopped_runs["whole"])


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "emotion", "train.accumulate=2", "train.freeze_backbone=1", "train.fixed_batchnorm=true"],
        ["loss.emotion_weight=0.1"],
        ["model.network=linear"],
        ["train.average=0.9", "train.emotion_maps={maps}", "--emotion-checkpoint", "{branch}"],
        ["--task", "series", "--network", "paunit", "model.symmetric=false"],
    ],
)
def test_every_kind_of_run_resumes_exactly(words, scored_set, series_set, emotion_run, tmp_path):
    dataset, root = ("pairs", series_set) if "series" in words else ("csv", scored_set)
    paths = {"maps": tmp_path / "maps", "branch": emotion_run / "best.pt"}
    words = [*LONG, *(word.format(**paths) for word in words)]
    runs = train_and_copy(dataset, root, tmp_path / "run", *words)
    assert train(dataset, root, runs["step 2"], *words, "--resume") == 0
    assert_same_run(runs["step 2"], runs["whole"])


def test_at_a_constant_rate_a_run_may_be_made_longer_but_not_shorter_than_it_is(scored_set, tmp_path, capsys):
    words = [UNTRAINED, "data.limit=8", "optimizer.schedule=constant", "optimizer.learning_rate=1e-3"]
    longer, whole = tmp_path / "longer", tmp_path / "whole"
    assert train("csv", scored_set, longer, *words, "train.epochs=1") == 0
    assert train("csv", scored_set, longer, *words, "train.epochs=2", "--resume") == 0
    assert train("csv", scored_set, whole, *words, "train.epochs=2") == 0
    assert same(parameters(longer / "last.pt"), parameters(whole / "last.pt"))
    for name in ("metrics.jsonl", "test/predictions.csv"):
        assert (longer / name).read_bytes() == (whole / name).read_bytes()
    assert read_settings([longer / "config.yaml"], [])["train.epochs"] == 2
    assert train("csv", scored_set, longer, *words, "train.epochs=1", "--resume") == 2
    assert "it has trained 2 epochs, and train.epochs is 1" in capsys.readouterr().err


def test_lines_of_epochs_behind_the_checkpoint_are_cut_off(stopped_runs, scored_set, tmp_path):
    # A power cut between the line of an epoch and its checkpoint: the epoch is done again.
    output = shutil.copytree(stopped_runs["whole"], tmp_path / "run")
    log = (output / "metrics.jsonl").read_bytes()
    (output / "metrics.jsonl").write_bytes(log + b'{"epoch": 2}\n')
    assert train("csv", scored_set, output, *LONG, "--resume") == 0
    assert (output / "metrics.jsonl").read_bytes() == log


def test_a_run_from_before_profiles_were_converted_goes_on_without(capsys):
    task, cpu = SimpleNamespace(config=load_config()), torch.device("cpu")
    stopped = task.config.as_dict()
    assert changed_settings(stopped, settle(task, cpu, {"config": stopped}).as_dict()) == []
    assert task.config.data.icc and not capsys.readouterr().out
    del stopped["data"]["icc"]
    assert changed_settings(stopped, task.config.as_dict()) == ["data.icc was False and is True"]
    assert changed_settings(stopped, settle(task, cpu, {"config": stopped}).as_dict()) == []
    assert not task.config.data.icc
    assert capsys.readouterr().out.startswith("data.icc=false, because this run began before")


def test_resume_without_a_run_starts_one(scored_set, tmp_path):
    assert train("csv", scored_set, tmp_path / "run", *SHORT, "data.limit=8", "--resume") == 0
    assert len(read_log(tmp_path / "run")) == 1


def test_a_finished_run_may_be_resumed_elsewhere_and_with_other_workers(
    copied_run, score_run, scored_set, tmp_path
):
    root = shutil.copytree(scored_set, tmp_path / "set")
    assert (
        train("csv", root, copied_run, "train.epochs=2", "data.workers=1", "data.timeout=60", "--resume") == 0
    )
    for name in ("metrics.jsonl", "test/predictions.csv"):
        assert (copied_run / name).read_bytes() == (score_run / name).read_bytes()


# ---- damaged checkpoints


# tests/test_checkpoint.py has damage of every kind.
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage, stopped_runs, scored_set, tmp_path, capsys
):
    output = shutil.copytree(stopped_runs["step 4"], tmp_path / "run")
    content = bytearray((output / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":  # between the two renamings
        (output / "last.pt").unlink()
    else:
        (output / "last.pt").write_bytes(content)
    (output / ".last.pt.7.tmp").write_bytes(b"half a checkpoint")
    assert train("csv", scored_set, output, *LONG, "--resume") == 0
    said = capsys.readouterr()
    assert f"resumed {output / 'previous.pt'} at epoch 2, step 4\n" in said.out
    if damage != "missing":
        assert f"{output / 'last.pt'} is not a weights file: it is empty, cut off, damaged" in said.err
        assert f"the one before it is used, {output / 'previous.pt'}" in said.err
    assert not list(output.glob(".*"))
    assert_same_run(output, stopped_runs["whole"])


@pytest.mark.parametrize("content", ["no checkpoint", "best.pt"])
def test_without_a_whole_checkpoint_nothing_is_resumed_or_touched(content, copied_run, scored_set, capsys):
    for name in ("last.pt", "previous.pt"):
        (copied_run / name).write_bytes(content.encode())
        if content == "best.pt":
            shutil.copy(copied_run / "best.pt", copied_run / name)
    before = contents(copied_run)
    assert train("csv", scored_set, copied_run, "train.epochs=2", "--resume") == 2
    error = capsys.readouterr().err
    said = "holds no training state to resume from" if content == "best.pt" else "is not a weights file"
    assert all(f"{copied_run / name} {said}" in error for name in ("last.pt", "previous.pt"))
    assert contents(copied_run) == before


# ---- other settings, pictures, ratings, processes, weights


def refused(root, output, capsys, *words) -> str:
    """Why a run is not resumed, which leaves it as it is."""
    before = contents(output)
    assert train("csv", root, output, "train.epochs=2", "--resume", *words) == 2
    assert contents(output) == before
    error = capsys.readouterr().err
    assert error.startswith(f"error: training: cannot resume {output / 'last.pt'}: ")
    return error


@pytest.mark.parametrize(
    "words, said",
    [
        (["train.seed=5", "data.limit=10"], "data.limit was 0 and is 10; train.seed was 0 and is 5"),
        (["optimizer.learning_rate=0.5"], "optimizer.learning_rate was 3e-05 and is 0.5"),
        (["--task", "emotion"], "task was aesthetics and is emotion"),
    ],
)
def test_resuming_with_other_settings_is_refused_with_both_values(words, said, score_run, scored_set, capsys):
    assert said in refused(scored_set, score_run, capsys, *words)


@pytest.mark.parametrize("change", ["path", "score", "emotion"])
def test_resuming_on_other_pictures_or_ratings_is_refused_with_both_hashes(
    change, score_run, scored_set, tmp_path, capsys
):
    changed = shutil.copytree(scored_set, tmp_path / "changed")
    table = pd.read_csv(changed / "ratings.csv", dtype=str)
    table.loc[0, change] = {"path": table.path[4], "score": "4.9", "emotion": table.emotion[1]}[change]
    table.drop_duplicates("path").to_csv(changed / "ratings.csv", index=False)
    error = refused(changed, score_run, capsys)
    for what, name in (("ids", "sha256"), ("ratings", "labels_sha256")):
        before, now = (getattr(load_dataset("csv", root)["train"], name) for root in (scored_set, changed))
        said = f"SHA-256 of the {what} of train was {before} and is {now}"
        assert (said in error) == (before != now)
    assert "SHA-256 of the" in error


def test_a_checkpoint_from_before_ratings_were_hashed_goes_on(copied_run, scored_set):
    weights, state = checkpoint.load_training(copied_run / "last.pt")
    del weights.description["labels"]
    checkpoint.save_training(copied_run / "last.pt", weights, state)
    assert train("csv", scored_set, copied_run, "train.epochs=2", "--resume") == 0


def test_a_run_on_prepared_copies_is_not_resumed_on_originals(copied_run, scored_set, capsys):
    weights, state = checkpoint.load_training(copied_run / "last.pt")
    weights.description["copies"]["train"] = [True]
    checkpoint.save_training(copied_run / "last.pt", weights, state)
    error = refused(scored_set, copied_run, capsys)
    assert error.endswith(": prepared copies of train was [True] and is [False]\n")


def test_resuming_on_other_processes_is_refused_with_both_numbers(score_run, scored_set, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    monkeypatch.setattr(distributed, "gather", lambda value: [value] * 4)
    monkeypatch.setattr(distributed, "broadcast", lambda value: value)
    assert "the number of processes was 1 and is 4" in refused(scored_set, score_run, capsys)


def test_resuming_over_another_emotion_branch_is_refused(score_run, emotion_run, scored_set, capsys):
    error = refused(scored_set, score_run, capsys, "--emotion-checkpoint", emotion_run / "last.pt")
    assert "--emotion-checkpoint had the SHA-256" in error
