"""Targets for distillation: read by id, refused unless they fit, and learned beside the ratings."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small import UNTRAINED, parameters, same, train, write_table

from datasets import Batch, load_dataset
from eamb.files import file_hash, safe
from eamb.network.outputs import Output, Scale
from eamb.readers.distilled import read_targets
from eamb.readers.rated import RatedSet
from eamb.runtime.config import load_config
from eamb.training.tasks import choose_task
from eamb.weights import checkpoint

STARS = Scale("score", 1, 5, 3, offset=1, factor=4)
IDS = ["=a.jpg", "b.jpg", "c.jpg"]
RATED = RatedSet("csv", "train", "", IDS, IDS, np.array([1.0, 4.0, 5.0]), STARS)


def write(path, rows, header=("id", "prediction")):
    write_table(path, [header, *rows])
    return path


def targets_for(root, path, shift=0.0):
    """A file with a target for each training picture of a csv set, from its place in the list."""
    ids = load_dataset("csv", root, ("train",))["train"].ids
    return write(path, [(name, 2 + i / len(ids) + shift) for i, name in enumerate(ids)])


def test_targets_are_matched_by_id_whatever_their_order_and_the_other_columns(tmp_path):
    rows = [("c.jpg", 0, 1.25), (safe("=a.jpg"), 1, 5), ("b.jpg", 2, 1)]
    path = write(tmp_path / "targets.csv", rows, ("id", "fold", "prediction"))
    assert read_targets(path, RATED).tolist() == [5, 1, 1.25]
    assert read_targets(path, RATED.take([2, 0, 1])).tolist() == [1.25, 5, 1]


GOOD = [("'=a.jpg", 2), ("b.jpg", 3), ("c.jpg", 4)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*GOOD, ("d.jpg", 2)], "t.csv row 5: 'id' is 'd.jpg', expected one of the 3 pictures of csv train"),
        ([*GOOD, ("b.jpg", 3)], "t.csv row 5: 'id' is 'b.jpg', expected each picture once"),
        (
            GOOD[:1],
            "t.csv lacks 2 of the 3 pictures of csv train, e.g. 'b.jpg'; make it with scripts/out_of_f",
        ),
        ([*GOOD[:2], ("c.jpg", 5.01)], "t.csv row 4: 'prediction' is '5.01', expected a number from 1 to 5"),
        ([*GOOD[:2], ("c.jpg", 0.99)], "t.csv row 4: 'prediction' is '0.99', expected a number from 1 to 5"),
        ([*GOOD[:2], ("c.jpg", "nan")], "t.csv row 4: 'prediction' is 'nan', expected a number from 1 to 5"),
        ([*GOOD[:2], ("c.jpg", "")], "t.csv row 4: 'prediction' is empty, expected a number from 1 to 5"),
        ([], "t.csv has no rows"),
        (None, "there is no file .*t.csv, data.distill; scripts/out_of_fold.py makes one"),
    ],
)
def test_what_does_not_fit_the_training_pictures_is_refused_by_row(rows, said, tmp_path):
    if rows is not None:
        write(tmp_path / "t.csv", rows)
    with pytest.raises((ValueError, FileNotFoundError), match=f"^datasets: .*{said}"):
        read_targets(tmp_path / "t.csv", RATED)


def test_a_network_that_learns_no_scores_takes_no_targets(tmp_path):
    path = write(tmp_path / "t.csv", GOOD)
    with pytest.raises(ValueError, match="from csv train this run learns a label"):
        read_targets(path, replace(RATED, scale=Scale("label", 1, 5, 3)))


def test_the_range_of_targets_is_what_the_network_can_say(tmp_path):
    official = replace(RATED, scale=replace(STARS, offset=0.0, factor=5.0))  # data.score_range=official
    path = write(tmp_path / "t.csv", [*GOOD[:2], ("c.jpg", 0.5)])
    assert read_targets(path, official).tolist() == [2, 3, 0.5]
    votes = replace(RATED, scale=Scale("distribution", 0.5, 3, 1, bins=(0.5, 3.0)))
    assert read_targets(path, votes).tolist() == [2, 3, 0.5]


# ---- the loss


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_mixture_is_the_target_of_the_error_and_of_the_correlation(weight):
    distilled = np.array([2.0, 3.0, 4.5])
    words = [f"loss.distill_weight={weight}", "data.distill=t.csv", "loss.correlation_weight=0.5"]
    loss = choose_task(load_config(words=words)).loss(replace(RATED, distilled=distilled))
    index = [2, 0, 1]  # a batch in another order than the set
    scores = torch.tensor(RATED.scores[index], dtype=torch.float32)
    batch = Batch(torch.tensor(index), torch.zeros(3), scores, None, None, [])
    p = np.array([0.2, 0.9, 0.4])
    output = Output(torch.tensor(p, dtype=torch.float32)[:, None], torch.zeros(3, 0), torch.ones(3, 1, 1, 1))
    target = ((1 - weight) * RATED.scores + weight * distilled - 1) / 4
    target = target[index]
    expected = np.mean((p - target) ** 2) + 0.5 * (1 - np.corrcoef(p, target)[0, 1])
    assert loss(output, batch).item() == pytest.approx(expected, abs=1e-6)
    # The same as the mean of a distribution over 1 and 5, of which no votes are known.
    rated = replace(RATED, distilled=distilled, scale=Scale("distribution", 1, 5, 3, bins=(1.0, 5.0)))
    loss = choose_task(load_config(words=[*words, "loss.mean_weight=1"])).loss(rated)
    output = output._replace(prediction=torch.cat([1 - output.prediction, output.prediction], dim=1))
    batch = batch._replace(distributions=torch.full((3, 2), torch.nan))
    assert loss(output, batch).item() == pytest.approx(expected, abs=1e-6)


def test_targets_stay_with_their_pictures():
    rated = replace(RATED, distilled=np.array([2.0, 3.0, 4.5]))
    assert rated.take([2, 0]).distilled.tolist() == [4.5, 2]
    assert rated.take([False, True, False]).distilled.tolist() == [3]
    assert rated.labels_sha256 == RATED.labels_sha256


# ---- trainings


def test_targets_alone_train_as_ratings_of_the_same_value_would(scored_set, tmp_path):
    root = shutil.copytree(scored_set, tmp_path / "set")
    path = targets_for(scored_set, tmp_path / "targets.csv")
    targets = pd.read_csv(path, index_col="id")["prediction"]
    table = pd.read_csv(root / "ratings.csv", dtype=str)
    table["score"] = table["path"].map(targets.astype(str)).fillna(table["score"])
    table.to_csv(root / "ratings.csv", index=False)
    words = [
        "train.score_test=false",
        UNTRAINED,
        "optimizer.learning_rate=1e-2",
        "loss.correlation_weight=0.5",
    ]
    words += ["data.minimum=1", "data.maximum=5"]
    distilled = [f"data.distill={path}", "loss.distill_weight=1"]
    assert train("csv", scored_set, tmp_path / "plain", *words) == 0
    assert train("csv", scored_set, tmp_path / "distilled", *words, *distilled) == 0
    assert train("csv", root, tmp_path / "rated", *words) == 0
    plain, learned, rated = (
        parameters(tmp_path / name / "last.pt") for name in ("plain", "distilled", "rated")
    )
    assert same(learned, rated)
    assert not same(learned, plain)


@pytest.fixture(scope="module")
def distilled_run(scored_set, tmp_path_factory):
    """A run over half the ratings and half of targets.csv, which lies beside it; the words that made it."""
    folder = tmp_path_factory.mktemp("distilled")
    path = targets_for(scored_set, folder / "targets.csv")
    words = [UNTRAINED, "train.score_test=false", "loss.distill_weight=0.5"]
    assert train("csv", scored_set, folder / "run", *words, f"data.distill={path}") == 0
    return folder / "run", words


def test_the_weights_say_which_targets_they_learned_and_keep_the_ratings_of_people(distilled_run, scored_set):
    run, _ = distilled_run
    description = checkpoint.load_weights(run / "best.pt").description
    origin, settings = description["origin"], description["config"]
    assert origin["distill"] == settings["data"]["distill"] == "targets.csv"  # no folder
    assert origin["distill_sha256"] == file_hash(run.parent / "targets.csv")
    assert settings["loss"]["distill_weight"] == 0.5
    rated = load_dataset("csv", scored_set, ("train",))["train"]
    assert description["labels"]["train"] == rated.labels_sha256
    assert description["training_ratings"][-1] == rated.scores.max()


def test_a_run_is_resumed_with_the_same_targets_only(distilled_run, scored_set, tmp_path, capsys):
    run, words = distilled_run
    moved = shutil.copy(run.parent / "targets.csv", tmp_path / "moved.csv")
    other = targets_for(scored_set, tmp_path / "other.csv", shift=0.5)
    output = shutil.copytree(run, tmp_path / "run")
    assert train("csv", scored_set, output, *words, f"data.distill={moved}", "--resume") == 0
    capsys.readouterr()
    assert train("csv", scored_set, output, *words, f"data.distill={other}", "--resume") == 2
    assert re.search(rf"data.distill had the SHA-256 \w+, {other} has another$", capsys.readouterr().err)
    assert train("csv", scored_set, output, *words, "--resume") == 2
    assert "data.distill was targets.csv and is " in capsys.readouterr().err.replace(f"{run.parent}/", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.distill=FILE"], "data.distill=FILE and loss.distill_weight, above 0, need each other; got '"),
        (["loss.distill_weight=0.5"], "need each other; got '' and 0.5"),
        (
            ["data.distill=FILE", "loss.distill_weight=1.01"],
            "'loss.distill_weight' must be at most 1, got '1.",
        ),
        (
            ["data.distill=FILE", "loss.distill_weight=-1"],
            "'loss.distill_weight' must be at least 0, got '-1'",
        ),
        (["data.distill=FILE", "loss.distill_weight=1", "data.limit=8"], "expected one of the 8 pictures of"),
        (["data.distill=FILE", "loss.distill_weight=1", "data.target=label"], "this run learns a label"),
        (["--task", "emotion", "data.distill=FILE"], "FILE means nothing for this run of the task emotion"),
        (
            ["--task", "emotion", "loss.distill_weight=1"],
            "loss.distill_weight=1.0 means nothing for this run",
        ),
        (["data.distill=none.csv", "loss.distill_weight=1"], "there is no file none.csv, data.distill"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused_before_anything_is_trained(
    words, said, scored_set, tmp_path, capsys
):
    path = str(targets_for(scored_set, tmp_path / "targets.csv"))
    assert (
        train("csv", scored_set, tmp_path / "run", UNTRAINED, *(w.replace("FILE", path) for w in words)) == 2
    )
    error = capsys.readouterr().err
    assert said in error.replace(path, "FILE")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
