"""Whole runs, tiny: what they write, exact resuming, where first weights come from, what is refused."""

import errno
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import (
    BACKBONE,
    ROOT,
    UNTRAINED,
    evaluate,
    read_csv,
    read_json,
    read_log,
    train,
    write_csv,
    write_pairs,
    write_pictures,
)

from datasets import Batch, first_by_hash, load_dataset
from eamb import files
from eamb.evaluation import figures
from eamb.evaluation.predicting import labelled
from eamb.evaluation.preferences import measure_pairs
from eamb.files import file_hash
from eamb.network.outputs import EMOTIONS, Output, Scale
from eamb.readers.pairs import PairedSet
from eamb.readers.rated import RatedSet
from eamb.runtime import distributed, engine
from eamb.runtime.config import load_config
from eamb.training import emotion_maps, interruption, records
from eamb.training import run as run_module
from eamb.training.optimizer import make_optimizer
from eamb.training.run import Best, Run
from eamb.training.starting import build_network, read_sources
from eamb.training.tasks import Aesthetics, choose_task, rating_loss
from eamb.weights import checkpoint
from EAMBNet import build_model
from main import main

COUNTS = {f"score{rating}": [(7 * i + 3 * rating) % 5 + 1 for i in range(24)] for rating in range(1, 5)}
SHORT = ("train.score_test=false", UNTRAINED)


@pytest.fixture(autouse=True)
def without_drawing(monkeypatch):
    """Half of a tiny run's time goes into its curves; the runs that all tests share have them."""
    monkeypatch.setattr(figures, "write_figure", lambda figure, path: Path(path).touch())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(path).tensors


def same(first: dict, second: dict, only: str = "") -> bool:
    names = [name for name in first if name.startswith(only)]
    return bool(names) and all(torch.equal(first[name], second[name]) for name in names)


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """Without BatchNorm's statistics, which move even where nothing is learned."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in tensors(path).items() if not name.endswith(statistics)}


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- a whole run


def test_a_run_leaves_everything_one_needs(score_run):
    files = {str(path.relative_to(score_run)) for path in score_run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.")}
    assert len(events) == 1
    assert files - events == {
        *("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "curves.png"),
        *("test/predictions.csv", "test/metrics.json", "test/scatter.png"),
        *("test/confusion.png", "test/emotion_bars.png"),  # the set has emotions too
    }
    assert load_config([score_run / "config.yaml"]).train.epochs == 2
    for name in ("curves.png", "test/scatter.png"):
        with Image.open(score_run / name) as picture:
            assert min(picture.size) > 200


def test_the_log_has_a_line_an_epoch_and_best_is_the_best_of_them(score_run):
    lines = read_log(score_run)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all({"learning_rate", "train_loss", "val_srcc", "val_rmse"} <= set(line) for line in lines)
    assert [(line["train_pictures"], line["train_broken"], line["val_n"]) for line in lines] == [
        (16, 0, 4)
    ] * 2
    chosen = checkpoint.load_weights(score_run / "best.pt").description["best"]
    values = [line["val_srcc"] for line in lines]
    assert chosen == {"measure": "srcc", "value": max(values), "epoch": values.index(max(values))}


def test_tensorboard_gets_the_numbers_of_the_log(score_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(score_run / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_rmse"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(line["epoch"], pytest.approx(line[name])) for line in read_log(score_run)]
        assert found == expected


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


def test_the_emotion_branch_is_the_given_one_to_the_last_bit_and_the_rest_has_moved(score_run, emotion_run):
    given, kept, last = (
        tensors(path) for path in (emotion_run / "best.pt", score_run / "best.pt", score_run / "last.pt")
    )
    assert same(given, kept, "emotion.")
    assert same(given, last, "emotion.")
    for part in ("detail.", "context.", "fusion.", "attention.", "emotion_merge.", "head."):
        moved = [name for name in kept if name.startswith(part) and not torch.equal(kept[name], last[name])]
        assert moved, part


def test_where_weights_came_from_is_told(score_run, emotion_run):
    origin = checkpoint.load_weights(score_run / "best.pt").description["origin"]
    assert origin["emotion_checkpoint"] == "best.pt"
    assert origin["emotion_checkpoint_sha256"] == file_hash(emotion_run / "best.pt")
    assert (origin["emotion_checkpoint_dataset"], origin["emotion_branch"]) == ("csv", "trained")


def test_the_emotion_task_selects_by_divergence_and_scores_emotions(emotion_run):
    lines = read_log(emotion_run)
    chosen = checkpoint.load_weights(emotion_run / "best.pt").description["best"]
    values = [line["val_kl"] for line in lines]
    assert chosen == {"measure": "kl", "value": min(values), "epoch": values.index(min(values))}
    assert read_json(emotion_run / "test" / "metrics.json")["metrics"]["n"] == 4


def test_the_demo_set_trains(tmp_path, capsys):
    few = ("data.limit=16", "evaluate.batch_size=64", *SHORT)
    assert train("DEMO", tmp_path / "demo", tmp_path / "run", *few) == 0
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert weights.scale.bins == tuple(range(1, 11))
    assert weights.description["protocol"].endswith(", 16 of it by hash of the id")
    assert len(weights.training_ids) == 16
    said = capsys.readouterr().out
    assert "demo train: 16 pictures" in said
    assert "epoch 1/1  train_loss" in said
    assert not (tmp_path / "run" / "test").exists()


# ---- resuming


class Stop(BaseException):
    """Something that ends a run from outside, as a power cut does."""


def stop_at(monkeypatch, place: str) -> None:
    """Ends the second epoch: before its first step, behind its third, behind its last, or in validation."""
    save_if_due, train_epoch, validate = Run.save_if_due, run_module.train_epoch, run_module.validate

    def save_and_stop(run):
        save_if_due(run)
        if run.epoch == 1 and str(run.totals.step) == place:
            raise Stop

    def stop(function, word):
        def stopping(run, *arguments):
            if run.epoch == 1 and place == word:
                raise Stop
            return function(run, *arguments)

        return stopping

    monkeypatch.setattr(Run, "save_if_due", save_and_stop)
    monkeypatch.setattr(run_module, "train_epoch", stop(train_epoch, "start"))
    monkeypatch.setattr(run_module, "validate", stop(validate, "validation"))


LONG = [
    *("train.epochs=3", "train.batch_size=4", "train.checkpoint_minutes=0", "train.clip=0.5"),
    *("optimizer.name=adamw", "optimizer.schedule=one_cycle", "optimizer.learning_rate=1e-2"),
]


def assert_same_run(first: Path, second: Path) -> None:
    """Equal in every bit that matters: weights, optimizer, progress, best, log and test predictions."""
    for name in ("last.pt", "best.pt"):
        (weights, state), (others, other_state) = (
            checkpoint.load_training(run / name) for run in (first, second)
        )
        assert same(weights.tensors, others.tensors)
        assert without_versions(weights.description) == without_versions(others.description)
        assert np.array_equal(weights.training_ids, others.training_ids)
        assert np.array_equal(weights.emotion_training_ids, others.emotion_training_ids)
        if "optimizer" in state:
            moments, other_moments = (each.pop("optimizer")["state"] for each in (state, other_state))
            assert moments.keys() == other_moments.keys()
            assert all(same(moments[i], other_moments[i]) for i in moments)
        if "average" in state:
            assert same(state.pop("average"), other_state.pop("average"))
        assert state == other_state
    for name in ("metrics.jsonl", "test/predictions.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    metrics = [without_versions(read_json(run / "test" / "metrics.json")) for run in (first, second)]
    assert metrics[0] == metrics[1]


def without_versions(content: dict) -> dict:
    """A commit may have come between."""
    return {name: value for name, value in content.items() if name != "versions"}


@pytest.fixture(scope="module")
def never_stopped(scored_set, emotion_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "never_stopped"
    assert train("csv", scored_set, output, *LONG, "--emotion-checkpoint", emotion_run / "best.pt") == 0
    return output


@pytest.mark.parametrize("place", ["start", "1", "3", "4", "validation"])
def test_a_resumed_run_equals_one_that_never_stopped(
    place, never_stopped, scored_set, emotion_run, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, place)
        train("csv", scored_set, output, *LONG, "--emotion-checkpoint", emotion_run / "best.pt")
    assert len(read_log(output)) == 1
    torch.manual_seed(12345)
    assert train("csv", scored_set, output, *LONG, "--resume") == 0
    step = {"start": 1, "validation": 5}.get(place) or int(place) + 1
    assert f"at epoch 2, step {step}\n" in capsys.readouterr().out
    assert_same_run(output, never_stopped)


@pytest.mark.parametrize("words", [["--task", "emotion", "train.accumulate=2"], ["loss.emotion_weight=0.1"]])
def test_accumulated_emotion_and_joint_runs_resume_exactly_too(words, scored_set, tmp_path, monkeypatch):
    words = [*LONG, *words]
    assert train("csv", scored_set, tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, "2")
        train("csv", scored_set, tmp_path / "cut", *words)
    assert train("csv", scored_set, tmp_path / "cut", *words, "--resume") == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_lines_of_epochs_behind_the_checkpoint_are_cut_off(never_stopped, scored_set, tmp_path, monkeypatch):
    # A power cut between the line of an epoch and its checkpoint: the epoch is done again.
    output = shutil.copytree(never_stopped, tmp_path / "run")
    log = (output / "metrics.jsonl").read_bytes()
    (output / "metrics.jsonl").write_bytes(log + b'{"epoch": 3}\n')
    assert train("csv", scored_set, output, *LONG, "--resume") == 0
    assert (output / "metrics.jsonl").read_bytes() == log


def test_resume_without_a_run_starts_one(scored_set, tmp_path):
    assert train("csv", scored_set, tmp_path / "run", *SHORT, "--resume") == 0
    assert len(read_log(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["train.seed=5"], "train.seed was 0 and is 5"),
        (["optimizer.learning_rate=0.5"], "optimizer.learning_rate was 3e-05 and is 0.5"),
        (["model.dropout=0.1"], "model.dropout was 0.75 and is 0.1"),
        (["--task", "emotion", UNTRAINED], "task was aesthetics and is emotion"),
        (["data.limit=10"], "data.limit was 0 and is 10"),
    ],
)
def test_resuming_with_other_settings_is_refused_with_both_values(words, said, score_run, scored_set, capsys):
    before = snapshot(score_run)
    assert train("csv", scored_set, score_run, "train.epochs=2", "--resume", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: training: cannot resume {score_run / 'last.pt'}: ")
    assert said in error
    assert snapshot(score_run) == before


def test_resuming_on_other_pictures_is_refused_with_both_hashes(score_run, scored_set, tmp_path, capsys):
    known = load_dataset("csv", scored_set)["train"].sha256
    changed = shutil.copytree(scored_set, tmp_path / "changed")
    table = (changed / "ratings.csv").read_text().splitlines()
    (changed / "ratings.csv").write_text("\n".join([*table[:1], *table[2:]]))
    assert train("csv", changed, score_run, "train.epochs=2", "--resume") == 2
    error = capsys.readouterr().err
    now = load_dataset("csv", changed)["train"].sha256
    assert f"the ids of train had the SHA-256 {known[:12]} and have {now[:12]}" in error
    assert "the ids of val" not in error


@pytest.mark.parametrize("column", ["score", "emotion"])
def test_resuming_on_other_ratings_of_the_same_pictures_is_refused(
    column, score_run, scored_set, tmp_path, capsys
):
    changed = shutil.copytree(scored_set, tmp_path / "changed")
    rows = read_csv(changed / "ratings.csv")
    rows[0][column] = {"score": "4.9", "emotion": rows[1]["emotion"]}[column]
    table = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (changed / "ratings.csv").write_text("\n".join(table))
    assert train("csv", changed, score_run, "train.epochs=2", "--resume") == 2
    hashes = [load_dataset("csv", root)["train"].labels_sha256[:12] for root in (scored_set, changed)]
    said = capsys.readouterr().err
    assert f"the ratings of train had the SHA-256 {hashes[0]} and have {hashes[1]}" in said
    assert "the ids of" not in said
    assert "the ratings of val" not in said


def test_a_checkpoint_from_before_ratings_were_hashed_goes_on(score_run, scored_set, tmp_path):
    output = shutil.copytree(score_run, tmp_path / "run")
    weights, state = checkpoint.load_training(output / "last.pt")
    del weights.description["labels"]
    checkpoint.save_training(output / "last.pt", weights, state)
    assert train("csv", scored_set, output, "train.epochs=2", "--resume") == 0


def test_a_run_on_prepared_copies_is_not_resumed_on_originals(score_run, scored_set, tmp_path, capsys):
    output = shutil.copytree(score_run, tmp_path / "run")
    weights, state = checkpoint.load_training(output / "last.pt")
    assert weights.description["copies"] == {"train": [False], "val": [False], "test": [False]}
    weights.description["copies"]["train"] = [True]
    checkpoint.save_training(output / "last.pt", weights, state)
    assert train("csv", scored_set, output, "train.epochs=2", "--resume") == 2
    said = capsys.readouterr().err
    assert "train was read from prepared copies and is now from originals" in said
    assert "val was read" not in said


def test_resuming_on_other_processes_is_refused_with_both_numbers(score_run, scored_set, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    monkeypatch.setattr(distributed, "gather", lambda value: [value] * 4)
    assert train("csv", scored_set, score_run, "train.epochs=2", "--resume") == 2
    assert "the number of processes was 1 and is 4" in capsys.readouterr().err


def test_resuming_over_another_emotion_branch_is_refused(score_run, emotion_run, scored_set, capsys):
    other = ["--emotion-checkpoint", emotion_run / "last.pt"]
    assert train("csv", scored_set, score_run, "train.epochs=2", "--resume", *other) == 2
    assert "--emotion-checkpoint was another file (best.pt) than" in capsys.readouterr().err


def test_a_finished_run_may_be_resumed_elsewhere_and_with_other_workers(score_run, scored_set, tmp_path):
    output, root = shutil.copytree(score_run, tmp_path / "run"), shutil.copytree(scored_set, tmp_path / "set")
    assert train("csv", root, output, "train.epochs=2", "data.workers=1", "--resume") == 0
    for name in ("metrics.jsonl", "test/predictions.csv"):
        assert (output / name).read_bytes() == (score_run / name).read_bytes()


def test_best_pt_cannot_be_resumed_from(score_run, scored_set, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(score_run / "best.pt", tmp_path / "run" / "last.pt")
    assert train("csv", scored_set, tmp_path / "run", *SHORT, "--resume") == 2
    assert "holds no training state to resume from" in capsys.readouterr().err


# ---- signals, locks, disks


def at_step(monkeypatch, step: int, act) -> None:
    """Calls `act(run)` behind a step of the second epoch."""
    save_if_due = Run.save_if_due

    def acting(run):
        if (run.epoch, run.totals.step) == (1, step):
            act(run)
        save_if_due(run)

    monkeypatch.setattr(Run, "save_if_due", acting)


def position(path: Path) -> tuple[int, int]:
    state = checkpoint.load_training(path)[1]
    return state["epoch"], state["totals"][0]["step"]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_the_step_and_the_command_that_it_prints_goes_on(
    name, code, never_stopped, scored_set, emotion_run, tmp_path, monkeypatch, capsys
):
    words = [*LONG, "train.checkpoint_minutes=1000", "--emotion-checkpoint", emotion_run / "best.pt"]
    handlers = [signal.getsignal(number) for number in interruption.ENDING]
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda run: os.kill(os.getpid(), getattr(signal, name)))
        assert train("csv", scored_set, tmp_path / "a run", *words, "--force") == code
    assert [signal.getsignal(number) for number in interruption.ENDING] == handlers
    assert position(tmp_path / "a run" / "last.pt") == (1, 2)
    stopped, command = capsys.readouterr().err.splitlines()[-2:]
    assert stopped == f"stopped by {name}; go on with"
    python, program, *words = shlex.split(command)
    assert (python, program, words[-1], "--force" in words) == ("python", "main.py", "--resume", False)
    assert main([*words, "train.checkpoint_minutes=0"]) == 0
    assert same(*(tensors(run / "last.pt") for run in (tmp_path / "a run", never_stopped)))
    for file in ("metrics.jsonl", "test/predictions.csv"):
        assert (tmp_path / "a run" / file).read_bytes() == (never_stopped / file).read_bytes()


def test_a_signal_during_validation_need_not_wait(scored_set, tmp_path, monkeypatch):
    def validate(run):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("the signal did not end the validation")

    monkeypatch.setattr(run_module, "validate", validate)
    assert train("csv", scored_set, tmp_path / "run", *SHORT) == 143
    assert position(tmp_path / "run" / "last.pt") == (0, 2)


def test_a_second_signal_ends_at_once(scored_set, tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(interruption.os, "_exit", ended.append)

    def twice(run):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        end = time.monotonic() + 10
        while not ended and time.monotonic() < end:
            time.sleep(0.01)

    at_step(monkeypatch, 1, twice)
    train("csv", scored_set, tmp_path / "run", *SHORT, "train.epochs=2")
    assert ended == [130]
    assert "a second signal ends at once" in capsys.readouterr().err


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on another since noon")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_in_one_folder_are_refused_until_the_first_is_dead(score_run, scored_set, tmp_path, capsys):
    output = shutil.copytree(score_run, tmp_path / "run")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, output / ".lock"], **pipes) as first:
        assert first.stdout.readline() == b"held\n"
        before = snapshot(output)
        for words in ((), ("--resume",), ("--force",)):
            assert train("csv", scored_set, output, "train.epochs=2", UNTRAINED, *words) == 2
            said = f"interruption: {output} is in use by another run (process 7 on another since noon)"
            assert said in capsys.readouterr().err
        assert snapshot(output) == before
        first.kill()
    assert train("csv", scored_set, output, "train.epochs=2", "--resume") == 0
    assert not (output / ".lock").exists()


def test_the_lock_names_its_process(scored_set, tmp_path, monkeypatch):
    found = []
    at_step(monkeypatch, 1, lambda run: found.append((tmp_path / "run" / ".lock").read_text()))
    assert train("csv", scored_set, tmp_path / "run", *SHORT, "train.epochs=2") == 0
    assert f"process {os.getpid()} on {socket.gethostname()} since 20" in found[0]


def full_disk(monkeypatch, first: int, last: int) -> None:
    """Writing checkpoints fails half-way in the run's steps from `first` to before `last`."""
    saved, steps = torch.save, []

    def save(content, file):
        steps.append(content)
        if first <= len(steps) < last:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(content, file)

    monkeypatch.setattr(checkpoint.torch, "save", save)


@pytest.mark.parametrize("again", [12, 1000])
def test_a_full_disk_costs_checkpoints_and_not_the_run(
    again, never_stopped, scored_set, emotion_run, tmp_path, monkeypatch, capsys
):
    # Writings 1 to 4 are of the first epoch's steps, 5 and 6 best.pt and last.pt at its end, 7 is of step 1.
    output, words = tmp_path / "run", [*LONG, "--emotion-checkpoint", emotion_run / "best.pt"]
    with monkeypatch.context() as patch:
        full_disk(patch, 8, again)
        code = train("csv", scored_set, output, *words)
    said = capsys.readouterr().err
    lost = f"warning: training: [Errno 28] No space left on device: {output / 'last.pt'} was not written"
    assert f"{lost}; the newest checkpoint: epoch 2, step 1" in said
    assert not list(output.glob(".*"))
    if again == 1000:
        assert code == 2
        assert f"{output / 'last.pt'} could not be written (the newest checkpoint: epoch 2, step 1)" in said
        assert position(output / "last.pt") == (1, 1)
        assert train("csv", scored_set, output, *words, "--resume") == 0
    # Three steps, before validation and behind it, then the same of the third epoch with four steps.
    assert (said.count(lost), code) == ((4, 0) if again == 12 else (11, 2))
    assert_same_run(output, never_stopped)


def test_a_disk_full_from_the_start_leaves_nothing_that_forbids_another(
    scored_set, tmp_path, monkeypatch, capsys
):
    output, words = tmp_path / "run", [UNTRAINED, "train.epochs=2"]
    assert train("csv", scored_set, tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        full_disk_for(patch, "last.pt")
        assert train("csv", scored_set, output, *words) == 2
    assert "(the newest checkpoint: none is there); make room, then" in capsys.readouterr().err
    assert not [name for name in ("metrics.jsonl", "best.pt", "last.pt") if (output / name).exists()]
    assert train("csv", scored_set, output, *words, "--resume") == 0
    assert_same_run(output, tmp_path / "whole")


def full_disk_for(monkeypatch, ending: str) -> None:
    """No file whose name ends so can be written."""
    writing = files.written_whole

    def written_whole(path, *rest):
        if path.name.endswith(ending):
            raise OSError(errno.ENOSPC, "No space left on device")
        return writing(path, *rest)

    for module in (checkpoint, records, emotion_maps):
        monkeypatch.setattr(module, "written_whole", written_whole)


def test_the_best_weights_outlast_a_log_that_could_not_be_written(
    never_stopped, scored_set, emotion_run, tmp_path, monkeypatch
):
    writing, failed = files.written_whole, []

    def written_whole(path, *rest):
        if path.name == "metrics.jsonl" and not failed:
            failed.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        return writing(path, *rest)

    for module in (checkpoint, records, emotion_maps):
        monkeypatch.setattr(module, "written_whole", written_whole)
    assert (
        train("csv", scored_set, tmp_path / "run", *LONG, "--emotion-checkpoint", emotion_run / "best.pt")
        == 0
    )
    assert failed
    assert_same_run(tmp_path / "run", never_stopped)


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage, never_stopped, scored_set, emotion_run, tmp_path, monkeypatch, capsys
):
    output, words = tmp_path / "run", [*LONG, "--emotion-checkpoint", emotion_run / "best.pt"]
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, "3")
        train("csv", scored_set, output, *words)
    content = bytearray((output / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":  # between the two renamings
        (output / "last.pt").unlink()
    else:
        (output / "last.pt").write_bytes(content if damage == "flipped" else content[:-1000])
    (output / ".last.pt.7.tmp").write_bytes(b"half a checkpoint")
    assert train("csv", scored_set, output, *words, "--resume") == 0
    said = capsys.readouterr()
    assert f"resumed {output / 'previous.pt'} at epoch 2, step 3\n" in said.out
    if damage != "missing":
        reason = {"flipped": "is damaged: the checksum of ", "cut": "is not a weights file: it is cut off"}
        assert f"{output / 'last.pt'} {reason[damage]}" in said.err
        assert f"the one before it is used, {output / 'previous.pt'}" in said.err
    assert not list(output.glob(".*"))
    assert_same_run(output, never_stopped)


def test_without_a_whole_checkpoint_nothing_is_resumed_or_touched(score_run, scored_set, tmp_path, capsys):
    output = shutil.copytree(score_run, tmp_path / "run")
    for name in ("last.pt", "previous.pt"):
        (output / name).write_bytes(b"no checkpoint")
    before = snapshot(output)
    assert train("csv", scored_set, output, "train.epochs=2", "--resume") == 2
    error = capsys.readouterr().err
    assert all(f"{output / name} is not a weights file" in error for name in ("last.pt", "previous.pt"))
    assert snapshot(output) == before


# ---- runs that exist already


def test_an_existing_run_is_refused_and_stays(score_run, scored_set, capsys):
    before = snapshot(score_run)
    assert train("csv", scored_set, score_run, UNTRAINED) == 2
    error = capsys.readouterr().err
    assert f"{score_run} holds a run already" in error
    assert "--resume" in error
    assert "--force" in error
    assert snapshot(score_run) == before


@pytest.mark.parametrize("words", [(), ("--resume",)])
def test_a_kept_best_is_not_deleted_without_force(score_run, scored_set, tmp_path, capsys, words):
    (tmp_path / "run").mkdir()
    shutil.copy(score_run / "best.pt", tmp_path / "run")  # people delete the large last.pt
    assert train("csv", scored_set, tmp_path / "run", UNTRAINED, *words) == 2
    assert "holds a run already (best.pt)" in capsys.readouterr().err
    assert (tmp_path / "run" / "best.pt").read_bytes() == (score_run / "best.pt").read_bytes()


def test_an_output_that_is_a_file_is_refused(scored_set, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert train("csv", scored_set, tmp_path / "notes.txt", UNTRAINED) == 2
    assert "--output must be a folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_starts_over_and_leaves_nothing_of_the_old_run(score_run, scored_set, tmp_path):
    output = shutil.copytree(score_run, tmp_path / "run")
    (output / "notes.txt").write_text("mine")
    assert train("csv", scored_set, output, *SHORT, "--force") == 0
    assert len(read_log(output)) == 1
    assert not (output / "test" / "metrics.json").exists()
    assert len(list((output / "tensorboard").iterdir())) == 1
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ["--emotion-checkpoint", "nowhere.pt"],
        ["data.score_column=beauty"],
        ["model.backbone=resnet5"],
        ["train.device=cuda:77"],
        [],  # the emotion branch would be untrained
    ],
)
def test_bad_input_with_force_overwrites_nothing(words, score_run, scored_set, tmp_path, capsys):
    output = shutil.copytree(score_run, tmp_path / "run")
    before = snapshot(output)
    untrained = [] if not words else [UNTRAINED]
    assert train("csv", scored_set, output, *untrained, *words, "--force") == 2
    assert snapshot(output) == before


def test_a_batch_that_cannot_be_divided_overwrites_nothing(
    score_run, scored_set, tmp_path, monkeypatch, capsys
):
    output = shutil.copytree(score_run, tmp_path / "run")
    before = snapshot(output)
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed, "gather", lambda value: [value] * 3)
    monkeypatch.setattr(distributed, "wrap", lambda model, *_: model)
    assert train("csv", scored_set, output, UNTRAINED, "--force") == 2
    assert "a batch of 8 pictures cannot be divided over 3 processes" in capsys.readouterr().err
    assert snapshot(output) == before


# ---- the emotion branch


def test_an_untrained_emotion_branch_is_refused_with_both_ways_out(scored_set, tmp_path, capsys):
    assert train("csv", scored_set, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "the emotion branch was never trained" in error
    for way_out in ("--emotion-checkpoint FILE", "--task emotion", "model.emotion_weights=none"):
        assert way_out in error
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def untrained_run(scored_set, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "untrained"
    assert train("csv", scored_set, output, *SHORT) == 0
    return output


def test_emotion_weights_none_accepts_it_and_says_so(untrained_run):
    weights = checkpoint.load_weights(untrained_run / "best.pt")
    assert weights.description["origin"]["emotion_branch"] == "never trained"
    assert len(weights.emotion_training_ids) == 0


def test_a_branch_that_was_never_trained_is_not_accepted_by_a_detour(
    untrained_run, scored_set, tmp_path, capsys
):
    for option in ("--weights", "--emotion-checkpoint"):
        assert train("csv", scored_set, tmp_path / "run", option, untrained_run / "best.pt") == 2
        assert "the emotion branch was never trained" in capsys.readouterr().err


def test_a_branch_trained_from_an_untrained_one_is_trained(untrained_run, scored_set, tmp_path):
    start = ["--task", "emotion", "--weights", untrained_run / "best.pt", "train.score_test=false"]
    assert train("csv", scored_set, tmp_path / "emotion", *start) == 0
    branch = ["--emotion-checkpoint", tmp_path / "emotion" / "best.pt", "train.score_test=false"]
    assert train("csv", scored_set, tmp_path / "run", *branch) == 0


def test_the_official_drift_moves_statistics_and_no_parameter(scored_set, emotion_run, tmp_path):
    branch = ["--emotion-checkpoint", emotion_run / "best.pt", "train.score_test=false"]
    assert train("csv", scored_set, tmp_path / "run", *branch, "model.emotion_batchnorm=official") == 0
    given, kept = parameters(emotion_run / "best.pt"), parameters(tmp_path / "run" / "best.pt")
    assert same(given, kept, "emotion.")
    assert not same(tensors(emotion_run / "best.pt"), tensors(tmp_path / "run" / "best.pt"), "emotion.")


def test_emotion_checkpoint_is_not_for_the_emotion_task(scored_set, emotion_run, tmp_path, capsys):
    words = ["--task", "emotion", "--emotion-checkpoint", emotion_run / "best.pt"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 2
    assert "an emotion training starts from given weights with --weights FILE" in capsys.readouterr().err


# ---- starting from given weights

STILL = ("optimizer.learning_rate=0", "train.score_test=false")


def test_fine_tuning_on_the_same_kind_of_rating_keeps_all(score_run, scored_set, tmp_path, capsys):
    assert train("csv", scored_set, tmp_path / "run", "--weights", score_run / "best.pt", *STILL) == 0
    assert same(parameters(score_run / "best.pt"), parameters(tmp_path / "run" / "last.pt"))
    assert "replaced" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["data.target=label"],
            "predicts a score from 1 to 5, this run high or low; its last layer is replaced",
        ),
        (
            ["data.count_columns=score1,score2,score3,score4"],
            "predicts a score from 1 to 5, this run shares of 4 ratings; its last layer is replaced",
        ),
    ],
)
def test_a_head_of_another_kind_is_replaced_and_said(words, said, score_run, tmp_path, capsys):
    root = write_csv(tmp_path / "set", {**COUNTS, "score": list(range(24))}, seed=9)
    words = [*words, "--weights", score_run / "best.pt", *STILL]
    if "data.target=label" in words:
        words.append("data.score_column=score")
    assert train("csv", root, tmp_path / "run", *words) == 0
    before, after = parameters(score_run / "best.pt"), parameters(tmp_path / "run" / "last.pt")
    replaced = {name for name in before if not torch.equal(before[name], after[name])}
    assert replaced == {"head.5.weight", "head.5.bias"}
    assert said in capsys.readouterr().out


def test_a_fine_tuned_network_remembers_what_it_was_trained_on_before(score_run, tmp_path):
    root = write_csv(tmp_path / "set", {"score": list(range(24))}, seed=9)
    assert train("csv", root, tmp_path / "run", "--weights", score_run / "best.pt", *STILL) == 0
    before = checkpoint.load_weights(score_run / "best.pt")
    after = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    new = load_dataset("csv", root, ("train",))["train"].id_hashes
    assert len(new) == len(before.training_ids) == 16
    assert np.array_equal(after.training_ids, np.unique([*new, *before.training_ids]))
    assert np.array_equal(after.emotion_training_ids, before.emotion_training_ids)
    assert after.description["origin"]["weights_sha256"] == file_hash(score_run / "best.pt")


def test_given_weights_over_another_emotion_branch(score_run, emotion_run, scored_set, tmp_path):
    both = ["--weights", score_run / "best.pt", "--emotion-checkpoint", emotion_run / "last.pt"]
    assert train("csv", scored_set, tmp_path / "run", *both, *STILL) == 0
    found = parameters(tmp_path / "run" / "last.pt")
    assert same(parameters(emotion_run / "last.pt"), found, "emotion.")
    assert same(parameters(score_run / "best.pt"), found, "fusion.")


def test_an_emotion_network_is_no_start_for_scores(emotion_run, scored_set, tmp_path, capsys):
    assert train("csv", scored_set, tmp_path / "run", "--weights", emotion_run / "best.pt") == 2
    error = capsys.readouterr().err
    assert "holds an emotion branch alone" in error
    assert "start from it with --emotion-checkpoint" in error
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape_say_which_settings_they_have(score_run, scored_set, tmp_path, capsys):
    words = ["--weights", score_run / "best.pt", "model.width=24", "model.head_width=9"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 2
    said = "has model.width=16 model.head_width=8 and this run model.width=24 model.head_width=9; give the"
    assert said in capsys.readouterr().err


def test_an_emotion_training_starts_from_the_branch_of_a_whole_network(score_run, scored_set, tmp_path):
    words = ["--task", "emotion", "--weights", score_run / "best.pt", *STILL]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    assert same(parameters(tmp_path / "run" / "last.pt"), parameters(score_run / "best.pt"), "emotion.")


def test_emotions_are_matched_by_name_when_fine_tuning(emotion_run, tmp_path, capsys):
    # A set that lists the same emotions in another order: the network keeps its own.
    turned = EMOTIONS[::-1]
    votes = {f"emotion_{name}": [int(i % 8 == k) for i in range(24)] for k, name in enumerate(turned)}
    root = write_csv(tmp_path / "set", votes, seed=3)
    words = ["--task", "emotion", "--weights", emotion_run / "best.pt", *STILL]
    assert train("csv", root, tmp_path / "run", *words) == 0
    assert load_dataset("csv", root, ("val",))["val"].emotion_classes == turned
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert weights.emotions == EMOTIONS
    assert "replaced" not in capsys.readouterr().out
    # Pictures 4, 10, 16 and 22 are validation; their one vote is for emotion i % 8 of the set's own order.
    assert evaluate(tmp_path / "run" / "best.pt", "csv", root, tmp_path / "val", "--split", "val") == 0
    rows = read_csv(tmp_path / "val" / "predictions.csv")
    shares = [float(row[f"emotion_{turned[i % 8]}"]) for row, i in zip(rows, (4, 10, 16, 22), strict=True)]
    [line] = read_log(tmp_path / "run")
    assert line["val_kl"] == pytest.approx(-np.log(shares).mean(), rel=1e-6)


def test_a_classifier_keeps_the_emotions_that_both_know_and_says_so(emotion_run, tmp_path, capsys):
    moods = ["calm" if i // 6 % 2 else "sad" for i in range(24)]  # "sad" is "sadness"
    root = write_csv(tmp_path / "set", {"emotion": moods}, seed=3)
    words = ["--task", "emotion", "--weights", emotion_run / "best.pt", *STILL]
    assert train("csv", root, tmp_path / "run", *words) == 0
    said = f"best.pt knows the emotions {', '.join(EMOTIONS)}, this run sadness, calm; its last layer keeps"
    assert said in capsys.readouterr().out
    assert checkpoint.load_weights(tmp_path / "run" / "best.pt").emotions == ("sadness", "calm")
    before, after = parameters(emotion_run / "best.pt"), parameters(tmp_path / "run" / "last.pt")
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"emotion.classifier.weight", "emotion.classifier.bias"}
    old, new = (part["emotion.classifier.weight"] for part in (before, after))
    assert torch.equal(new[0], old[EMOTIONS.index("sadness")])
    assert not any(torch.equal(new[1], row) for row in old)
    assert same(before, after, "emotion.fine.")


def test_official_weights_start_a_training_with_their_head_replaced(official_state, tmp_path, capsys):
    torch.save({"model": official_state}, tmp_path / "ava.pth")
    config = load_config(words=["data.dataset=csv"])
    rated = replace(some_ratings(), scale=Scale("score", 1, 5, 3, offset=1, factor=4))
    network, origin = started(config, rated, weights=str(tmp_path / "ava.pth"))
    state = network.state_dict()
    assert torch.equal(state["head.2.weight"], official_state["head.2.weight"])
    assert torch.equal(state["detail.conv1.weight"], official_state["feature1_x.0.weight"])
    fc_layer = official_state["emotion_model.emotion_module.fc_layer.weight"]
    assert torch.equal(state["emotion.classifier.weight"], fc_layer)
    assert state["head.5.bias"].shape == (1,)
    assert "predicts 10 value(s), this run a score from 1 to 5" in capsys.readouterr().out
    assert (origin["weights"], origin["emotion_branch"]) == ("ava.pth", "trained")


def started(config, rated, weights=None, emotion_checkpoint=None):
    task = choose_task(config)
    return build_network(task, rated, read_sources(task, weights, emotion_checkpoint))


SCORES = Scale("score", 1, 5, 3, offset=1, factor=4)


def some_ratings():
    scale = Scale("label", 0, 1, 0.5)
    return RatedSet("csv", "train", "", ["a"], ["a"], np.array([1.0]), scale)


def test_the_official_emotion_file_is_no_whole_network(tmp_path):
    torch.save({"emotion_module.fc_layer.bias": torch.zeros(8)}, tmp_path / "emotion.pth")
    config = load_config(words=["model.backbone=test_efficientnet", "model.width=16"])
    with pytest.raises(ValueError, match=r"emotion.pth holds an emotion branch alone.*--emotion-checkpoint"):
        started(config, some_ratings(), weights=str(tmp_path / "emotion.pth"))


# ---- emotions: several sets, class lists, together with scores


@pytest.fixture(scope="module")
def fi_set(tmp_path_factory):
    """Twelve pictures of each of two emotions; the hash of their names splits them."""
    root = tmp_path_factory.mktemp("fi")
    for seed, kind in enumerate(("awe", "fear")):
        write_pictures(root / kind, 12, seed=50 + seed)
    return root


@pytest.fixture(scope="module")
def united_run(votes_set, fi_set, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "united"
    second = ["--dataset", "fi", "--data-root", fi_set, "data.repeat=1,3"]
    assert train("csv", votes_set, output, "--task", "emotion", *second) == 0
    return output


@pytest.fixture(scope="module")
def votes_set(tmp_path_factory):
    """Votes for two emotions: one that FI has, and one that it has not."""
    votes = {"emotion_neutral": [i % 5 + 1 for i in range(24)], "emotion_awe": [i % 3 for i in range(24)]}
    return write_csv(tmp_path_factory.mktemp("votes"), votes, seed=6)


def test_several_sets_train_one_branch_and_are_tested_each_on_its_own(
    united_run, votes_set, fi_set, tmp_path
):
    weights = checkpoint.load_weights(united_run / "best.pt")
    assert weights.description["dataset"] == "csv+fi"
    assert weights.emotions == ("awe", "fear", "neutral")
    for name, classes, root in (("csv", ["awe", "neutral"], votes_set), ("fi", ["awe", "fear"], fi_set)):
        rows = read_csv(united_run / "test" / name / "predictions.csv")
        assert sorted(list(rows[0])[2:]) == [f"emotion_{c}" for c in classes]
        test = load_dataset(name, root, ("test",))["test"]
        assert [row["id"] for row in rows] == test.ids
        assert not np.isin(test.id_hashes, weights.training_ids).any()
        train_ids = load_dataset(name, root, ("train",))["train"].id_hashes
        assert np.isin(train_ids, weights.training_ids).all()
        # The same report as `evaluate` gives, which does not take it for another set.
        assert evaluate(united_run / "best.pt", name, root, tmp_path / name) == 0
        found, before = (read_json(f / "metrics.json") for f in (tmp_path / name, united_run / "test" / name))
        assert found["metrics"] == before["metrics"]
    [line] = read_log(united_run)
    fi_train = len(load_dataset("fi", fi_set, ("train",))["train"])
    assert line["train_pictures"] == (16 + 3 * fi_train) // 8 * 8


def test_each_sets_own_shares_of_the_classes_travel_with_the_weights(united_run, votes_set, fi_set):
    shift = checkpoint.load_weights(united_run / "best.pt").description["class_shift"]
    assert shift["csv"] == {"awe": 0, "neutral": 0}
    ours, fi = (load_dataset(n, r, ("train",))["train"] for n, r in (("csv", votes_set), ("fi", fi_set)))
    of_awe = [part.emotions[:, part.emotion_classes.index("awe")].mean() for part in (ours, fi)]
    assert shift["fi"]["awe"] == shift["fi"]["fear"] == pytest.approx(math.log(of_awe[1] / of_awe[0]))


def test_a_set_is_measured_with_its_own_shares(united_run, fi_set, tmp_path):
    weights = checkpoint.load_weights(united_run / "best.pt")
    shares = {}
    for name, shift in (("as it was", weights.description["class_shift"]), ("without", {})):
        changed = replace(weights, description={**weights.description, "class_shift": shift})
        checkpoint.export_weights(tmp_path / f"{name}.safetensors", changed)
        assert evaluate(tmp_path / f"{name}.safetensors", "fi", fi_set, tmp_path / name) == 0
        rows = read_csv(tmp_path / name / "predictions.csv")
        shares[name] = np.array([[float(r["emotion_awe"]), float(r["emotion_fear"])] for r in rows])
    # Both classes have the same shift here, so only a change of one of them shows.
    assert np.allclose(shares["as it was"], shares["without"], atol=1e-6)
    tilted = {"fi": {"awe": 1.0, "fear": 0.0}}
    changed = replace(weights, description={**weights.description, "class_shift": tilted})
    checkpoint.export_weights(tmp_path / "tilted.safetensors", changed)
    assert evaluate(tmp_path / "tilted.safetensors", "fi", fi_set, tmp_path / "tilted") == 0
    rows = read_csv(tmp_path / "tilted" / "predictions.csv")
    odds = np.array([float(r["emotion_awe"]) / float(r["emotion_fear"]) for r in rows])
    assert np.allclose(odds, math.e * shares["without"][:, 0] / shares["without"][:, 1], rtol=1e-4)


def test_evaluate_takes_one_set(united_run, votes_set, fi_set, tmp_path, capsys):
    second = ["--dataset", "fi", "--data-root", fi_set]
    assert evaluate(united_run / "best.pt", "csv", votes_set, tmp_path / "out", *second) == 2
    assert "evaluation: one data set at a time" in capsys.readouterr().err


def test_an_emotion_without_a_picture_is_refused_by_name(tmp_path, capsys):
    votes = {"emotion_awe": [1] * 24, "emotion_fear": [int(i % 6 == 5) for i in range(24)]}  # in test only
    root = write_csv(tmp_path / "set", votes)
    assert train("csv", root, tmp_path / "run", "--task", "emotion") == 2
    assert "fear" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_branch_can_be_trained_with_the_rest(scored_set, emotion_run, tmp_path):
    branch = ["--emotion-checkpoint", emotion_run / "best.pt", "loss.emotion_weight=0.5"]
    assert train("csv", scored_set, tmp_path / "run", *branch, "train.score_test=false") == 0
    [line] = read_log(tmp_path / "run")
    assert {"val_srcc", "val_emotion_kl", "val_emotion_accuracy"} <= line.keys()
    before, after = parameters(emotion_run / "best.pt"), parameters(tmp_path / "run" / "last.pt")
    assert not same(before, after, "emotion.fine.0.weight")
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert np.array_equal(weights.emotion_training_ids, weights.training_ids)
    assert weights.description["architecture"]["train_emotion"] is True


def test_a_branch_that_is_trained_with_the_rest_needs_no_training_before(scored_set, tmp_path):
    assert train("csv", scored_set, tmp_path / "run", "loss.emotion_weight=1", *STILL) == 0
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert (weights.emotion_branch, weights.emotions) == ("trained", EMOTIONS)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--task", "emotion", "loss.emotion_weight=1"], "loss.emotion_weight is for --task aesthetics"),
        (
            ["loss.class_weights=balanced"],
            "loss.class_weights weighs emotions, which this run does not learn",
        ),
        (["--task", "emotion", "model.emotions=awe,bogus"], "model.emotions names awe, bogus; csv has amuse"),
    ],
)
def test_settings_without_a_meaning_here_are_refused(words, said, scored_set, tmp_path, capsys):
    assert train("csv", scored_set, tmp_path / "run", UNTRAINED, *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_emotions_along_needs_emotions(tmp_path, capsys):
    root = write_csv(tmp_path / "set", {"score": [1 + i % 5 for i in range(24)]})
    assert train("csv", root, tmp_path / "run", "loss.emotion_weight=1") == 2
    assert "csv train has no emotions; loss.emotion_weight needs them" in capsys.readouterr().err


def test_an_official_file_with_another_class_list_needs_its_names(official_emotion, tmp_path):
    seven = {name: value[:7] if "fc_layer" in name else value for name, value in official_emotion.items()}
    torch.save({"model": seven}, tmp_path / "emotion_model.pth")
    path, words = str(tmp_path / "emotion_model.pth"), ["data.dataset=csv", "model.imagenet=none"]
    with pytest.raises(ValueError, match=r"tells 7 emotions apart, and the list has 8 .*model.emotions=NAME"):
        started(load_config(words=words), some_ratings(), emotion_checkpoint=path)
    words.append("model.emotions=Angry, sad,fear,awe,neutral,disgust,amusement")
    network, origin = started(load_config(words=words), some_ratings(), emotion_checkpoint=path)
    assert network.arguments["emotions"][:3] == ("anger", "sadness", "fear")
    assert origin["emotion_checkpoint_sha256"] == file_hash(tmp_path / "emotion_model.pth")


# ---- targets and losses


@pytest.mark.parametrize(
    "words, kind, outputs",
    [
        (["data.target=label"], "label", 1),
        (["data.target=score"], "score", 1),
        (["data.target=distribution"], "distribution", 4),
        (["data.target=score", "data.score_range=official"], "score", 1),
    ],
)
def test_every_kind_of_rating_trains(words, kind, outputs, tmp_path):
    root = write_csv(tmp_path / "set", COUNTS)
    assert train("csv", root, tmp_path / "run", *words, UNTRAINED) == 0
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert (weights.scale.kind, weights.scale.outputs) == (kind, outputs)
    assert weights.tensors["head.5.bias"].shape == (outputs,)
    assert weights.scale.offset == (1 if words[-1] == "data.target=score" else 0)
    assert math.isfinite(read_log(tmp_path / "run")[0]["train_loss"])
    metrics = read_json(tmp_path / "run" / "test" / "metrics.json")["metrics"]
    assert ("emd2" in metrics) == (kind == "distribution")


def make_iae(root: Path) -> Path:
    """IAE's own layout: lists of `ID LABEL`, the labels 0 and 1."""
    names = write_pictures(root / "images", 24)
    for i, name in enumerate(names):
        (root / "images" / name).rename(root / "images" / f"{i}.png")
    for split, rows in {"train": range(16), "val": range(16, 20), "test": range(20, 24)}.items():
        (root / f"{split}_aes_list.txt").write_text("".join(f"{i} {i % 2}\n" for i in rows))
        (root / f"{split}_emo_list.txt").write_text("".join(f"{i} {i % 8}\n" for i in rows))
    return root


def test_iae_over_a_branch_that_knows_more_emotions_predicts_both(tmp_path):
    nine = (*EMOTIONS, "neutral")
    votes = {f"emotion_{name}": [int(i // 6 % 4 == k % 4) for i in range(24)] for k, name in enumerate(nine)}
    branch = tmp_path / "branch"
    words = ["--task", "emotion", "train.score_test=false"]
    assert train("csv", write_csv(tmp_path / "votes", votes), branch, *words) == 0
    root = make_iae(tmp_path / "iae")
    run = tmp_path / "run"
    assert train("iae", root, run, "--emotion-checkpoint", branch / "best.pt") == 0
    found = read_json(run / "test" / "metrics.json")
    assert found["positive_emotion_accuracy"] == 0.5
    assert found["emotions"]["metrics"]["chance"] == 1 / 8  # neutral does not compete
    assert np.sum(found["emotions"]["confusion"]) == np.sum(found["emotions"]["high_and_low"]["labels"]) == 4
    names = {path.name for path in (run / "test").iterdir()}
    assert names == {"predictions.csv", "metrics.json", "confusion.png", "emotion_bars.png"}
    row = read_csv(run / "test" / "predictions.csv")[0]
    assert 0 < float(row["prediction"]) < 1
    assert row["emotion"] in EMOTIONS
    (root / "val_emo_list.txt").unlink()  # pictures without an emotion still have their high or low
    again = ["--emotion-checkpoint", branch / "best.pt", "loss.emotion_weight=1", "train.score_test=false"]
    assert train("iae", root, tmp_path / "again", *again) == 0


def test_iae_trains_on_high_and_low_and_is_selected_by_accuracy(tmp_path):
    root = make_iae(tmp_path / "iae")
    assert train("IAE", root, tmp_path / "run", UNTRAINED) == 0
    assert checkpoint.load_weights(tmp_path / "run" / "best.pt").description["best"]["measure"] == "accuracy"
    found = read_json(tmp_path / "run" / "test" / "metrics.json")
    assert {"accuracy", "auc"} <= set(found["metrics"])
    assert (found["majority_accuracy"], found["positive_emotion_accuracy"]) == (0.5, 0.5)
    assert any("accuracy of the rule 'positive emotion = high'" in note for note in found["notes"])
    for row in read_csv(tmp_path / "run" / "test" / "predictions.csv"):
        assert 0 < float(row["prediction"]) < 1


def loss_of(scale: Scale, prediction: list, words=(), **labels) -> float:
    count = len(prediction)
    fields = {"scores": None, "distributions": None, "emotions": None, **labels}
    fields = {name: torch.tensor(value) if value else None for name, value in fields.items()}
    batch = Batch(torch.arange(count), torch.zeros(count), broken=[], **fields)
    output = Output(torch.tensor(prediction), torch.tensor(prediction), torch.zeros(count))
    return rating_loss(load_config(words=words).loss, scale)(output, batch).item()


def test_scores_are_trained_by_squared_error_of_p():
    scale = Scale("score", 1, 5, 3, offset=1, factor=4)
    # 5 is p = 1 and 3 is p = 0.5
    assert loss_of(scale, [[0.5], [0.25]], scores=[5.0, 3.0]) == pytest.approx((0.25 + 0.0625) / 2)


def test_labels_are_trained_by_cross_entropy_at_the_threshold():
    def loss(inclusive):
        return loss_of(Scale("label", 1, 10, 5, inclusive), [[0.9], [0.9]], scores=[5.0, 7.0])

    assert loss(True) == pytest.approx(-math.log(0.9))
    assert loss(False) == pytest.approx(-(math.log(0.9) + math.log(0.1)) / 2)


def test_distributions_are_trained_by_emd_as_the_config_says():
    scale = Scale("distribution", 1, 2, 1.5, bins=(1.0, 2.0))
    p, q = [[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]
    # The first picture's cumulative gap is (1, 0), the second's (0, 0).
    assert loss_of(scale, p, distributions=q) == pytest.approx(math.sqrt(0.5) / 2)
    assert loss_of(scale, p, ["loss.emd_r=1"], distributions=q) == pytest.approx(0.25)
    assert loss_of(scale, p, ["loss.emd_reduction=batch"], distributions=q) == pytest.approx(0.5)


def emotion_loss_of(logits: list, votes: list, scale: Scale, *words: str, **labels) -> float:
    votes = np.array(votes)
    rated = replace(some_ratings(), scale=scale, emotions=votes, emotion_classes=EMOTIONS[: votes.shape[1]])
    batch = Batch(
        torch.arange(2), torch.zeros(2), torch.tensor(labels.get("scores", [])), None, torch.tensor(votes), []
    )
    output = Output(torch.tensor(labels.get("prediction", [])), torch.tensor(logits), torch.zeros(2))
    return choose_task(load_config(words=words)).loss(rated)(output, batch).item()


def test_emotions_are_trained_by_cross_entropy_of_votes():
    found = emotion_loss_of([[0.0, math.log(3)]], [[0.5, 0.5]], SCORES, "task=emotion")
    assert found == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2)


def test_balanced_class_weights_let_every_emotion_count_alike():
    votes = [[1.0, 0.0]] * 3 + [[0.0, 1.0]]
    logits = [[0.0, math.log(3)]] * 4  # p is 1/4 and 3/4
    found = emotion_loss_of(logits, votes, SCORES, "task=emotion", "loss.class_weights=balanced")
    assert found == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2)
    found = emotion_loss_of(logits, votes, SCORES, "task=emotion")
    assert found == pytest.approx(-(3 * math.log(0.25) + math.log(0.75)) / 4)


def test_the_emotion_loss_is_added_with_its_weight():
    arguments = {"scores": [5.0, 3.0], "prediction": [[0.5], [0.25]]}
    logits, votes = [[0.0, math.log(3)]] * 2, [[1.0, 0.0], [1.0, 0.0]]
    found = emotion_loss_of(logits, votes, SCORES, "loss.emotion_weight=0.1", **arguments)
    assert found == pytest.approx((0.25 + 0.0625) / 2 + 0.1 * math.log(4))
    alone = emotion_loss_of(logits, votes, SCORES, **arguments)
    assert alone == pytest.approx((0.25 + 0.0625) / 2)


# ---- optimizer and schedule


def small_network():
    torch.manual_seed(0)
    return build_model(BACKBONE, outputs=1, width=16)


def test_adamw_decays_matrices_only_and_adam_everything():
    network = small_network()
    words = ["optimizer.weight_decay=0.1", "optimizer.learning_rate=0.5"]
    for name in ("adam", "adamw"):
        optimizer = make_optimizer(load_config(words=[*words, f"optimizer.name={name}"]), network)
        decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        trained = [p for p in network.parameters() if p.requires_grad]
        assert len(decays) == len(trained)
        for parameter in trained:
            assert decays[id(parameter)] == (0.1 if name == "adam" or parameter.ndim > 1 else 0.0)
        assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_backbones_may_learn_at_a_rate_of_their_own():
    network = small_network()
    for name in ("adam", "adamw"):
        words = [f"optimizer.name={name}", "optimizer.backbone_factor=0.1"]
        optimizer = make_optimizer(load_config(words=words), network)
        engine.set_rate(optimizer, 0.5)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.startswith(("detail.", "context.")):
                assert rates.pop(id(parameter)) == pytest.approx(0.05)
            elif not parameter_name.startswith("emotion."):  # frozen
                assert rates.pop(id(parameter)) == 0.5
        assert not rates


def test_the_schedule_of_the_config_is_the_one_that_runs(scored_set, tmp_path):
    words = [
        "optimizer.schedule=ava",
        "optimizer.learning_rate=8e-4",
        "train.epochs=5",
        "train.batch_size=16",
    ]
    assert train("csv", scored_set, tmp_path / "run", *words, *SHORT) == 0
    assert [line["learning_rate"] for line in read_log(tmp_path / "run")] == [8e-4, 8e-4, 8e-4, 4e-4, 2e-4]


# ---- randomness


def test_a_run_is_a_function_of_its_seed_alone(untrained_run, scored_set, tmp_path):
    first = tensors(untrained_run / "last.pt")
    torch.manual_seed(999)
    np.random.seed(999)
    assert train("csv", scored_set, tmp_path / "again", *SHORT, "data.workers=1") == 0
    assert same(first, tensors(tmp_path / "again" / "last.pt"))
    assert train("csv", scored_set, tmp_path / "other", *SHORT, "train.seed=1") == 0
    other = tensors(tmp_path / "other" / "last.pt")
    assert not torch.equal(first["head.2.weight"], other["head.2.weight"])


# ---- data


def test_validate_on_test_trains_on_the_validation_pictures_too(scored_set, tmp_path):
    words = ["train.validate_on=test", "train.score_test=false", UNTRAINED, "train.batch_size=20"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    data = load_dataset("csv", scored_set)
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    expected = np.union1d(data["train"].id_hashes, data["val"].id_hashes)
    assert np.array_equal(weights.training_ids, expected)
    assert set(weights.description["splits"]) == {"train", "test"}
    assert weights.description["splits"]["test"] == data["test"].sha256
    [line] = read_log(tmp_path / "run")
    assert (line["train_pictures"], line["val_n"]) == (20, 4)


def test_a_limit_takes_the_same_pictures_whatever_the_order_of_the_table(scored_set):
    rated = load_dataset("csv", scored_set, ("train",))["train"]
    chosen = first_by_hash(rated, 5)
    turned = first_by_hash(rated.take(np.arange(len(rated))[::-1]), 5)
    assert len(chosen) == 5
    assert set(chosen.ids) == set(turned.ids)
    assert set(chosen.ids) <= set(first_by_hash(rated, 9).ids)
    assert first_by_hash(rated, 16) is rated


@pytest.fixture
def damaged_set(scored_set, tmp_path):
    """`scored_set` with a broken picture in train and in val, and one of test missing."""
    root = shutil.copytree(scored_set, tmp_path / "damaged")
    for number in (0, 4):
        (root / "images" / f"0_{number:03d}.png").write_bytes(b"<html>not found</html>")
    (root / "images" / "0_005.png").unlink()
    return root


def test_a_broken_picture_is_an_error_that_names_it(damaged_set, tmp_path, capsys):
    assert train("csv", damaged_set, tmp_path / "run", UNTRAINED) == 2
    error = capsys.readouterr().err
    assert "0_000.png cannot be decoded: a web page (HTML)" in error
    assert "--skip-broken" in error


def test_skipped_pictures_are_counted_and_listed(damaged_set, tmp_path, capsys):
    output = tmp_path / "run"
    assert train("csv", damaged_set, output, UNTRAINED, "--skip-broken", "train.epochs=2") == 0
    for line in read_log(output):
        assert (line["train_pictures"], line["train_broken"], line["val_n"]) == (15, 1, 3)
    for split, name in {"train": "0_000.png", "val": "0_004.png"}.items():
        [row] = read_csv(output / f"broken_{split}.csv")
        assert row["id"] == name
        assert "a web page (HTML)" in row["reason"]
    [row] = read_csv(output / "left_out_test.csv")
    assert row == {"id": "0_005.png", "reason": "no picture file 0_005.png"}
    assert not (output / "left_out_train.csv").exists()
    said = capsys.readouterr().out
    assert said.count("1 pictures of train cannot be decoded and are left out:") == 1
    assert "csv test: 3 pictures" in said


def test_pictures_without_a_label_for_the_task_are_left_out_by_name(scored_set):
    rated = load_dataset("csv", scored_set, ("train",))["train"]
    rated.scores[3] = np.nan
    kept = labelled(rated, "aesthetics")
    assert (len(kept), kept.left_out[-1].id) == (15, rated.ids[3])
    assert kept.left_out[-1].reason == "no label for the task aesthetics"
    assert len(labelled(rated, "emotion")) == 16


# ---- the best and the worst


def test_best_is_the_largest_and_the_smallest_divergence():
    best = Best("srcc")
    assert [best.update(i, {"srcc": v}) for i, v in enumerate([0.2, 0.1, 0.3, 0.3])] == [
        True,
        False,
        True,
        False,
    ]
    assert (best.value, best.epoch) == (0.3, 2)
    best = Best("kl")
    assert [best.update(i, {"kl": v}) for i, v in enumerate([0.2, 0.3, 0.1])] == [True, False, True]


def test_best_takes_something_even_where_the_measure_is_undefined():
    best = Best("srcc")
    nan = math.nan
    assert [best.update(i, {"srcc": v}) for i, v in enumerate([nan, nan, -0.5, nan])] == [
        True,
        False,
        True,
        False,
    ]
    assert (best.value, best.epoch) == (-0.5, 2)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    scored_set, tmp_path, monkeypatch, capsys
):
    def nan_in_the_second_epoch(config, scale):
        return lambda output, batch: output.prediction.sum() * (math.nan if config_epoch(tmp_path) else 1)

    monkeypatch.setattr(Aesthetics, "loss", nan_in_the_second_epoch)
    assert train("csv", scored_set, tmp_path / "run", "train.epochs=2", *SHORT) == 2
    error = capsys.readouterr().err
    assert "the loss is nan at step 1 of epoch 2, learning rate 3e-05 (pictures 0_0" in error
    weights, state = checkpoint.load_training(tmp_path / "run" / "last.pt")
    assert (state["epoch"], state["totals"][0]["step"]) == (1, 0)
    assert all(torch.isfinite(value).all() for value in weights.tensors.values())


def config_epoch(folder: Path) -> int:
    log = folder / "run" / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


# ---- ablations, baseline, averaged weights, kept maps


@pytest.mark.parametrize(
    "words", [["train.average=0.9"], ["train.emotion_maps=MAPS"], ["model.network=linear"]]
)
def test_these_resume_exactly_too(words, scored_set, emotion_run, tmp_path, monkeypatch):
    branch = () if "model.network=linear" in words else ("--emotion-checkpoint", emotion_run / "best.pt")
    words = [*LONG, *(word.replace("MAPS", str(tmp_path / "maps")) for word in words)]
    assert train("csv", scored_set, tmp_path / "whole", *words, *branch) == 0
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, "2")
        train("csv", scored_set, tmp_path / "cut", *words, *branch)
    assert train("csv", scored_set, tmp_path / "cut", *words, "--resume") == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_run_with_kept_maps_equals_one_without(scored_set, emotion_run, tmp_path):
    # At a small rate; a large one makes much of the last digits.
    words = [*LONG, "--emotion-checkpoint", emotion_run / "best.pt", "optimizer.learning_rate=1e-5"]
    maps = tmp_path / "maps"
    assert train("csv", scored_set, tmp_path / "computed", *words) == 0
    assert train("csv", scored_set, tmp_path / "kept", *words, f"train.emotion_maps={maps}") == 0
    lines, others = (read_log(tmp_path / name) for name in ("computed", "kept"))
    for line, other in zip(lines, others, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
    assert list(maps.rglob("*.npy"))


def test_what_is_kept_of_an_averaged_run_is_the_average(scored_set, tmp_path):
    words = [UNTRAINED, "train.average=0.99", "optimizer.learning_rate=1e-2"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    last, state = checkpoint.load_training(tmp_path / "run" / "last.pt")
    best = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert state["average_steps"] == 2
    assert same(best.tensors, state["average"])
    moved = [name for name in best.tensors if not torch.equal(best.tensors[name], last.tensors[name])]
    assert "head.5.weight" in moved


@pytest.mark.parametrize(
    ("words", "description"),
    [
        (["model.network=linear"], {"network": "linear"}),
        (["model.without=emotion"], {"network": "eambnet"}),
        (["model.without=attention,detail", UNTRAINED], {"network": "eambnet"}),
    ],
)
def test_ablations_and_the_baseline_train_and_are_evaluated(words, description, scored_set, tmp_path, capsys):
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert weights.description["network"] == description["network"]
    without = weights.description["architecture"].get("without", [])
    assert without == (["attention", "detail"] if UNTRAINED in words else ["emotion"][: len(without)])
    capsys.readouterr()
    found = evaluate(tmp_path / "run" / "best.pt", "csv", scored_set, tmp_path / "again")
    assert found == 0
    first, again = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("run/test", "again"))
    assert first == again
    if UNTRAINED not in words:
        assert weights.emotions == ()
        assert weights.emotion_branch == "none"
        assert b"emotion" not in first.splitlines()[0]
        options = ["predict", str(scored_set / "images"), "--checkpoint", str(tmp_path / "run" / "best.pt")]
        assert main([*options, "--output", str(tmp_path / "scores.csv"), "--workers", "0"]) == 0
        assert "emotion branch" not in capsys.readouterr().err
        assert main([*options, "--maps", str(tmp_path / "maps"), "--workers", "0"]) == 2
        assert "have no emotion branch, so there are no maps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.network=linear", "model.without=emotion"], "are for model.network=eambnet, not linear"),
        (["model.without=emotion", "loss.emotion_weight=0.1"], "loss.emotion_weight is given, but"),
        (["model.without=detail,contxt", UNTRAINED], "without must name some of .* got 'contxt'"),
        (["model.without=detail,context", UNTRAINED], "needs its detail or its context branch"),
        (
            ["train.emotion_maps=maps", "model.emotion_batchnorm=official", UNTRAINED],
            "train.emotion_maps keeps the maps of a frozen branch; this run's changes",
        ),
    ],
)
def test_impossible_ablations_are_refused(words, said, scored_set, tmp_path, capsys):
    assert train("csv", scored_set, tmp_path / "run", *words) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_an_emotion_checkpoint_for_a_network_without_the_branch_is_refused(
    scored_set, emotion_run, tmp_path, capsys
):
    words = ["model.network=linear", "--emotion-checkpoint", emotion_run / "best.pt"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 2
    assert "--emotion-checkpoint is given, but this network has no emotion branch" in capsys.readouterr().err


def test_weights_of_another_ablation_are_no_start(score_run, scored_set, tmp_path, capsys):
    words = ["--weights", score_run / "best.pt", "model.without=detail", UNTRAINED]
    assert train("csv", scored_set, tmp_path / "run", *words) == 2
    assert "has model.without= and this run model.without=detail" in capsys.readouterr().err


def test_correlation_is_added_with_its_weight():
    config = load_config(words=["loss.correlation_weight=0.5"])
    scale = Scale("score", 1, 5, 3, offset=1, factor=4)
    p, scores = torch.tensor([[0.2], [0.9], [0.4]]), torch.tensor([1.0, 4.0, 5.0])
    output = Output(p, torch.zeros(3, 0), torch.ones(3, 1, 1, 1))
    batch = Batch(torch.arange(3), torch.zeros(3, 3, 8, 8), scores, None, None, [])
    target = scale.probability(scores)
    expected = ((p[:, 0] - target) ** 2).mean() + 0.5 * (1 - np.corrcoef(p[:, 0], target)[0, 1])
    found = rating_loss(config.loss, scale)(output, batch)
    assert found.item() == pytest.approx(float(expected), abs=1e-6)


def test_recomputing_blocks_changes_nothing_else(scored_set, emotion_run, tmp_path):
    words = [*LONG, "--emotion-checkpoint", emotion_run / "best.pt"]
    assert train("csv", scored_set, tmp_path / "a", *words) == 0
    assert train("csv", scored_set, tmp_path / "b", *words, "train.recompute=true") == 0
    for file in ("metrics.jsonl", "test/predictions.csv"):
        assert (tmp_path / "a" / file).read_text() == (tmp_path / "b" / file).read_text()


# ---- pairs


def train_pairs(root: Path, output: Path, *words: str) -> int:
    """One tiny run on pairs; its exit code."""
    return train(
        "pairs", root, output, "--task", "series", "data.size=64", "optimizer.learning_rate=1e-3", *words
    )


@pytest.fixture(scope="module")
def series_set(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("series"))


@pytest.mark.parametrize("network", ["resnet", "paunit"])
def test_a_pair_network_learns_which_photograph_is_the_brighter(series_set, tmp_path, network):
    words = ("--network", network, "train.epochs=8", "optimizer.schedule=constant", "evaluate.bootstrap=20")
    assert train_pairs(series_set, tmp_path / "run", *words) == 0
    metrics = read_json(tmp_path / "run" / "test" / "metrics.json")
    assert metrics["metrics"]["accuracy"] > 0.8
    assert metrics["metrics"]["series_krcc"] > 0.5
    low, high = metrics["intervals_95"]["accuracy"]
    assert low <= metrics["metrics"]["accuracy"] <= high
    assert metrics["test_pictures_trained_on"] == 0
    rows = read_csv(tmp_path / "run" / "test" / "predictions.csv")
    right = [(float(row["prediction"]) > 0.5) == (float(row["preference"]) > 0.5) for row in rows]
    assert np.mean(right) == metrics["metrics"]["accuracy"]
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert (weights.task, weights.description["network"], weights.description["crop"]) == (
        "series",
        network,
        True,
    )


def test_a_stopped_run_on_pairs_goes_on_as_if_it_had_not(series_set, tmp_path, monkeypatch):
    words = ("--network", "paunit", "train.epochs=2", "train.score_test=false", "model.symmetric=false")
    assert train_pairs(series_set, tmp_path / "whole", *words) == 0
    validate, calls = run_module.validate, []

    def stop_once(run):
        calls.append(run)
        if len(calls) == 1:
            raise ValueError("stopped")
        return validate(run)

    monkeypatch.setattr(run_module, "validate", stop_once)
    assert train_pairs(series_set, tmp_path / "stopped", *words) == 2
    assert train_pairs(series_set, tmp_path / "stopped", *words, "--resume") == 0
    assert same(tensors(tmp_path / "whole" / "last.pt"), tensors(tmp_path / "stopped" / "last.pt"))
    table = (series_set / "train.csv").read_text()
    (series_set / "train.csv").write_text(table.replace(",1\n", ",0.9\n", 1))
    try:
        assert train_pairs(series_set, tmp_path / "stopped", *words, "--resume") == 2  # other preferences
    finally:
        (series_set / "train.csv").write_text(table)


def test_a_sure_pair_loses_the_same_whichever_is_named_first():
    scale, odds = Scale("label", 0.0, 1.0, 0.5), np.array([[20.0], [0.0]])  # sure of a, and people prefer b
    found = engine.Predictions(np.arange(2), odds, np.empty((2, 0)), [])
    pair = {"series": np.array(["s", "s"]), "pairs": np.array([[1, 0]]), "preference": np.array([1.0])}
    rated = PairedSet("x", "test", "made", ["a", "b"], ["a", "b"], np.full(2, np.nan), scale, **pair)
    turned = replace(rated, pairs=rated.pairs[:, ::-1], preference=1 - rated.preference)
    with pytest.warns(UserWarning, match="AUC is undefined"):  # of one pair
        losses = [measure_pairs(found, each).metrics["log_loss"] for each in (rated, turned)]
    assert losses == pytest.approx([20.0, 20.0], rel=1e-6)


def test_the_published_recipe_is_the_default(series_set, tmp_path):
    words = ("--network", "paunit", "model.symmetric=false", "train.score_test=false")
    shipped = load_config([ROOT / "configs" / "series.yaml"], ["data.dataset=pairs", "model.symmetric=false"])
    assert (shipped.data.size, shipped.data.crop, shipped.data.flip) == (224, True, False)
    assert (shipped.train.epochs, shipped.train.batch_size, shipped.optimizer.schedule) == (100, 32, "series")
    network = choose_task(replace(shipped, model=replace(shipped.model, backbone=BACKBONE))).build(None, ())
    optimizer = make_optimizer(shipped, network)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(g["momentum"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.9, 5e-4)}
    engine.set_rate(optimizer, engine.learning_rate("series", shipped.optimizer.learning_rate, 100, 25, 0.5))
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in network.named_parameters():
        fast = ".channel." in name or name.startswith("last.")
        assert rates[id(parameter)] == pytest.approx(0.3 * (1e-4 if fast else 1e-5)), name
    assert train_pairs(series_set, tmp_path / "run", *words) == 0
    assert "flip: false" in (tmp_path / "run" / "config.yaml").read_text()


def test_pairs_are_scored_by_a_network_that_knows_single_photographs_only(series_set, score_run, tmp_path):
    assert evaluate(score_run / "best.pt", "pairs", series_set, tmp_path / "out") == 0
    report = read_json(tmp_path / "out" / "metrics.json")
    assert report["odds_of_a_point"] > 0
    assert "fitted" in " ".join(report["notes"])
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "p").symlink_to(series_set / "p")
    shutil.copy(series_set / "test.csv", alone)
    assert evaluate(score_run / "best.pt", "pairs", alone, tmp_path / "out2") == 0
    rest = read_json(tmp_path / "out2" / "metrics.json")
    assert "not fitted" in " ".join(rest["notes"])
    for name in ("accuracy", "auc", "series_krcc", "series_best"):
        assert rest["metrics"][name] == report["metrics"][name]
    assert "test_pictures_trained_on" not in report  # ids of a set of ratings say nothing about these


PAIR_ERRORS = {
    "ratings": (["--dataset", "csv", "--task", "series", "--network", "resnet"], "goes with a set of pairs"),
    "no pair network": (
        ["--dataset", "pairs", "--task", "series", "--network", "linear"],
        "and a network for them",
    ),
    "no task": (
        ["--dataset", "pairs", "--task", "aesthetics", "--network", "resnet"],
        "got --task aesthetics",
    ),
    "crop": (["--dataset", "csv", "data.crop=true", UNTRAINED], "data.crop is for the task series"),
    "test": (
        ["--dataset", "pairs", "--task", "series", "--network", "resnet", "train.validate_on=test"],
        "train.validate_on=test is for ratings",
    ),
    "folds": (
        ["--dataset", "pairs", "--task", "series", "--network", "resnet", "data.folds=5"],
        "data.folds means nothing for the task series",
    ),
    "symmetric": (["--dataset", "csv", "model.symmetric=false", UNTRAINED], "model.symmetric means nothing"),
    "weights": (
        ["--dataset", "pairs", "--task", "series", "--network", "resnet", "--weights", "SCORE"],
        "holds a network for the task aesthetics, which cannot start one for series",
    ),
}


@pytest.mark.parametrize("case", PAIR_ERRORS)
def test_what_does_not_go_with_pairs_is_one_sentence(
    case, series_set, score_run, scored_set, tmp_path, capsys
):
    words, said = PAIR_ERRORS[case]
    words = [str(score_run / "best.pt") if word == "SCORE" else word for word in words]
    root = scored_set if "csv" in words else series_set
    fixed = ["--data-root", str(root), "--output", str(tmp_path / "run"), f"model.backbone={BACKBONE}"]
    assert main(["train", *words, *fixed, "model.imagenet=none", "train.device=cpu"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_share_of_people_can_be_learned_instead_of_the_majority():
    batch = Batch(torch.arange(4), torch.empty(4, 3, 1, 1), torch.tensor([0.8, 0.5]), None, None, [])
    output = Output(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), None, None)

    def expected(first: float, second: float) -> float:
        odds = torch.tensor([1.0, 0.0])
        target = torch.tensor([first, second])
        return torch.nn.functional.binary_cross_entropy_with_logits(odds, target).item()

    def series_loss(preference: str):
        config = load_config(words=["task=series", f"loss.preference={preference}"])
        return choose_task(config).loss(some_ratings())

    assert series_loss("share")(output, batch).item() == pytest.approx(expected(0.8, 0.5))
    assert series_loss("majority")(output, batch).item() == pytest.approx(expected(1.0, 0.5))


def test_pair_weights_are_refused_where_single_photographs_are_scored(
    series_set, scored_set, tmp_path, capsys
):
    assert train_pairs(series_set, tmp_path / "run", "--network", "resnet", "train.score_test=false") == 0
    best, photographs = str(tmp_path / "run" / "best.pt"), str(series_set / "p")
    assert main(["predict", photographs, "--checkpoint", best]) == 2
    assert "use it with python main.py select" in capsys.readouterr().err
    assert evaluate(Path(best), "csv", scored_set, tmp_path / "out") == 2
    assert "do not go together" in capsys.readouterr().err
    words = [
        "--checkpoint",
        best,
        "--output",
        str(tmp_path / "picks.csv"),
        "--gap",
        "inf",
        "--similarity",
        "0",
    ]
    assert main(["select", photographs, *words, "--page", str(tmp_path / "page")]) == 0
    rows = read_csv(tmp_path / "picks.csv")
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 36
    assert scores == sorted(scores, reverse=True)  # one series, ranked by odds
