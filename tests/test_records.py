"""The folder of a run: what it holds, what a full disk costs, and when another run may be in it."""

import errno
import math
import shutil
from contextlib import contextmanager

import pytest
from PIL import Image
from small import LONG, SHORT, UNTRAINED, assert_same_run, contents, read_csv, read_json, read_log, train

from eamb import files
from eamb.runtime import distributed
from eamb.runtime.config import load_config
from eamb.training import records
from eamb.weights import checkpoint

# ---- what a run leaves


def test_a_run_leaves_everything_one_needs(score_run):
    files = set(contents(score_run))
    events = {name for name in files if name.startswith("tensorboard/events.")}
    assert len(events) == 1
    assert files - events == {
        *("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "curves.png"),
        *("test/predictions.csv", "test/metrics.json", "test/scatter.png"),
        *("test/confusion.png", "test/emotion_bars.png"),  # the set has emotions too
    }
    assert load_config([score_run / "config.yaml"]).train.epochs == 2
    for name in files:
        if name.endswith(".png"):
            with Image.open(score_run / name) as picture:
                assert min(picture.size) > 200


def test_the_log_has_a_line_an_epoch_and_best_is_the_best_of_them(score_run, emotion_run):
    lines = read_log(score_run)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all({"learning_rate", "train_loss", "val_srcc", "val_rmse"} <= set(line) for line in lines)
    counts = [(line["train_pictures"], line["train_broken"], line["val_n"]) for line in lines]
    assert counts == [(16, 0, 4)] * 2
    for run, measure, best in ((score_run, "srcc", max), (emotion_run, "kl", min)):
        values = [line[f"val_{measure}"] for line in read_log(run)]
        chosen = checkpoint.load_weights(run / "best.pt").description["best"]
        assert chosen == {"measure": measure, "value": best(values), "epoch": values.index(best(values))}


def test_tensorboard_gets_the_numbers_of_the_log(score_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(score_run / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_rmse"):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(line["epoch"], pytest.approx(line[name])) for line in read_log(score_run)]


DAMAGED_PROFILES = {"train": 1, "val": 10, "test": 11}


@pytest.fixture
def damaged_set(scored_set, tmp_path):
    """`scored_set` with a broken picture in train and in val, one of test missing, and a damaged profile in
    one of each."""
    root = shutil.copytree(scored_set, tmp_path / "damaged")
    for number in (0, 4):
        (root / "images" / f"0_{number:03d}.png").write_bytes(b"<html>not found</html>")
    (root / "images" / "0_005.png").unlink()
    for number in DAMAGED_PROFILES.values():
        path = root / "images" / f"0_{number:03d}.png"
        Image.open(path).save(path, icc_profile=b"damaged")
    return root


def test_a_broken_picture_is_an_error_or_counted_and_listed(damaged_set, tmp_path, capsys):
    output = tmp_path / "run"
    assert train("csv", damaged_set, output, UNTRAINED) == 2
    error = capsys.readouterr().err
    assert "0_000.png cannot be decoded: a web page (HTML)" in error
    assert "--skip-broken" in error
    words = ["--force", "--skip-broken", "train.epochs=2"]
    assert train("csv", damaged_set, output, UNTRAINED, *words) == 0
    for line in read_log(output):
        assert (line["train_pictures"], line["train_broken"], line["val_n"]) == (15, 1, 3)
    for split, name in {"train": "0_000.png", "val": "0_004.png"}.items():
        [row] = read_csv(output / f"broken_{split}.csv")
        assert row["id"] == name
        assert "a web page (HTML)" in row["reason"]
    for split in ("train", "val"):
        [row] = read_csv(output / f"noted_{split}.csv")
        assert row["id"] == f"0_{DAMAGED_PROFILES[split]:03d}.png"
        assert row["reason"] == "its colour profile is ignored: it is damaged"
    found = read_json(output / "test" / "metrics.json")
    assert found["noted"] == [["0_011.png", row["reason"]]]
    assert "pictures with a defect, read all the same: 1" in found["notes"]
    [row] = read_csv(output / "left_out_test.csv")
    assert row == {"id": "0_005.png", "reason": "no picture file 0_005.png"}
    assert not (output / "left_out_train.csv").exists()
    said = capsys.readouterr().out
    assert said.count("1 pictures of train cannot be decoded and are left out:") == 1
    assert said.count("1 pictures of train have a defect and are read all the same:") == 1


# ---- a full disk


def full_disk(monkeypatch, ending: str, first: int, last: float) -> None:
    """Writing files whose names end so fails half-way, from the `first` (1) of a run to before the `last`."""
    writing, tried = files.written_whole, []

    @contextmanager
    def written_whole(path, *rest):
        with writing(path, *rest) as temporary:
            yield temporary
            tried.extend([path] if path.name.endswith(ending) else [])
            if path.name.endswith(ending) and first <= len(tried) < last:
                raise OSError(errno.ENOSPC, "No space left on device")

    for module in (checkpoint, records):
        monkeypatch.setattr(module, "written_whole", written_whole)


@pytest.mark.parametrize(
    ("file", "first", "last", "lost"),
    [("last.pt", 7, 9, 2), ("last.pt", 7, math.inf, 6), ("metrics.jsonl", 6, 7, 1), ("best.pt", 1, 2, 1)],
)
def test_a_full_disk_costs_checkpoints_and_not_the_run(
    file, first, last, lost, stopped_runs, scored_set, emotion_run, tmp_path, monkeypatch, capsys
):
    # An epoch writes last.pt behind each of four steps, before validation and behind it; 7 is of step 1.
    output, words = tmp_path / "run", [*LONG, "--emotion-checkpoint", emotion_run / "best.pt"]
    with monkeypatch.context() as patch:
        full_disk(patch, file, first, last)
        code = train("csv", scored_set, output, *words)
    said = capsys.readouterr().err
    warning = f"warning: training: [Errno 28] No space left on device: {output / 'last.pt'} was not written"
    assert said.count(warning) == lost
    assert not list(output.glob(".*"))
    if last == math.inf:
        assert code == 2
        assert f"{output / 'last.pt'} could not be written; make room, then go on" in said
        state = checkpoint.load_training(output / "last.pt")[1]
        assert (state["epoch"], state["totals"][0]["step"]) == (1, 0)
        code = train("csv", scored_set, output, *words, "--resume")
    assert code == 0
    assert_same_run(output, stopped_runs["whole"])


def test_a_disk_full_from_the_start_leaves_nothing_that_forbids_another(
    scored_set, tmp_path, monkeypatch, capsys
):
    output, words = tmp_path / "run", [*SHORT, "data.limit=8"]
    with monkeypatch.context() as patch:
        full_disk(patch, "last.pt", 1, math.inf)
        assert train("csv", scored_set, output, *words) == 2
    assert not [name for name in ("metrics.jsonl", "best.pt", "last.pt") if (output / name).exists()]
    assert train("csv", scored_set, output, *words, "--resume") == 0
    assert len(read_log(output)) == 1


# ---- runs that are there already


@pytest.mark.parametrize("words", [(), ("--resume",)])
@pytest.mark.parametrize("kept", ["all", "best.pt"])  # people delete the large last.pt
def test_an_existing_run_is_not_deleted_without_force(kept, words, copied_run, scored_set, capsys):
    if kept == "best.pt":
        for path in copied_run.iterdir():
            if path.name != kept:
                path.unlink() if path.is_file() else shutil.rmtree(path)
    before = contents(copied_run)
    assert train("csv", scored_set, copied_run, UNTRAINED, *words) == 2
    error = capsys.readouterr().err
    if kept == "best.pt" or not words:
        assert f"{copied_run} holds a run already (" in error
        assert "--resume" in error
        assert "--force" in error
    assert contents(copied_run) == before


def test_an_output_that_is_a_file_is_refused(scored_set, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert train("csv", scored_set, tmp_path / "notes.txt", UNTRAINED) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_starts_over_and_leaves_nothing_of_the_old_run(copied_run, scored_set):
    (copied_run / "notes.txt").write_text("mine")
    (copied_run / ".last.pt.77.tmp").touch()
    assert train("csv", scored_set, copied_run, *SHORT, "data.limit=8", "--force") == 0
    assert len(read_log(copied_run)) == 1
    names = {"config.yaml", "metrics.jsonl", "last.pt", "best.pt", "curves.png", "notes.txt"}
    assert {name for name in contents(copied_run) if not name.startswith("tensorboard/")} == names
    assert len(list((copied_run / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["--emotion-checkpoint", "nowhere.pt"], "checkpoint: no file nowhere.pt"),
        (["data.score_column=beauty"], "has no column 'beauty'"),
        (["model.backbone=resnet5"], "timm cannot give 'resnet5'"),
    ],
)
def test_bad_input_with_force_overwrites_nothing(words, said, copied_run, scored_set, capsys):
    before = contents(copied_run)
    assert train("csv", scored_set, copied_run, UNTRAINED, *words, "--force") == 2
    assert said in capsys.readouterr().err
    assert contents(copied_run) == before


def test_a_batch_that_cannot_be_divided_overwrites_nothing(copied_run, scored_set, monkeypatch, capsys):
    before = contents(copied_run)
    alone = {"world": lambda: 3, "gather": lambda value: [value] * 3, "broadcast": lambda value: value}
    for name, function in {**alone, "wrap": lambda model, *_: model}.items():
        monkeypatch.setattr(distributed, name, function)
    assert train("csv", scored_set, copied_run, UNTRAINED, "--force") == 2
    assert (
        "batches of 8 out of 16 training pictures cannot be divided over 3 processes"
        in capsys.readouterr().err
    )
    assert contents(copied_run) == before
