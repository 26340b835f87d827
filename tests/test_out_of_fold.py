"""Out-of-fold predictions: every training picture by a network that was not trained on it."""

import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small import WORDS, command, evaluate, read_csv, train, without_drawing

from datasets import load_dataset
from eamb.readers.splitting import fold_numbers
from eamb.training import run as run_module
from eamb.weights import checkpoint
from scripts import out_of_fold

FOLDS = 3
LINEAR = "model.network=linear"  # trained in half the time, and the folds don't know which network it is


def run(root, output, *words) -> int:
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.parent / "small.yaml"
    config.write_text("task: aesthetics\n")
    options = ["--config", config, "--dataset", "csv", "--data-root", root, "--output", output]
    options += ["--folds", FOLDS, *WORDS, LINEAR, "train.batch_size=4", *words]
    with without_drawing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a handful of pictures is too few for some metrics
        return out_of_fold.main(list(map(str, options)))


@pytest.fixture(scope="module")
def folds(scored_set, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "folds"
    assert run(scored_set, output) == 0
    return output


def fold_weights(folds):
    return [checkpoint.load_weights(folds / f"fold_{fold}" / "best.pt") for fold in range(FOLDS)]


def test_every_training_picture_is_predicted_once_by_a_network_that_has_not_seen_it(folds, scored_set):
    rows, rated = read_csv(folds / "out_of_fold.csv"), load_dataset("csv", scored_set)
    assert [row["id"] for row in rows] == rated["train"].ids
    sizes = pd.Series(row["fold"] for row in rows).value_counts()
    assert sorted(sizes) == [5, 5, 6]
    for fold, weights in enumerate(fold_weights(folds)):
        inside = [row["fold"] == str(fold) for row in rows]
        assert {row["weights_sha256"] for row in rows if row["fold"] == str(fold)} == {weights.sha256}
        assert not np.isin(rated["train"].take(inside).id_hashes, weights.training_ids).any()
        others = rated["train"].take(~np.array(inside))
        assert np.array_equal(others.id_hashes, weights.training_ids)  # and no validation picture
        assert weights.description["splits"] == {"train": others.sha256, "val": rated["val"].sha256}
        assert weights.description["protocol"].endswith(f"without fold {fold + 1} of 3 by hash of the id")


@pytest.mark.slow
def test_two_processes_predict_every_training_picture_too(scored_set, tmp_path):
    (tmp_path / "small.yaml").write_text("task: aesthetics\n")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    options = ["--config", tmp_path / "small.yaml", "--dataset", "csv", "--data-root", scored_set]
    options += ["--output", tmp_path / "folds", "--folds", FOLDS, *WORDS, LINEAR, "train.batch_size=4"]
    done = command(*torchrun, out_of_fold.__file__, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("16 of 16 pictures predicted") == 1
    test_every_training_picture_is_predicted_once_by_a_network_that_has_not_seen_it(
        tmp_path / "folds", scored_set
    )


def test_the_predictions_are_those_of_the_networks_in_the_unit_of_the_ratings(folds, scored_set, tmp_path):
    rows = pd.read_csv(folds / "out_of_fold.csv", index_col="id")
    for fold in range(FOLDS):
        best = folds / f"fold_{fold}" / "best.pt"
        assert evaluate(best, "csv", scored_set, tmp_path / str(fold), "--split", "train") == 0
        theirs = pd.read_csv(tmp_path / str(fold) / "predictions.csv", index_col="id")["prediction"]
        ours = rows.loc[rows["fold"] == fold, "prediction"]
        assert np.allclose(ours, theirs[ours.index], rtol=0, atol=1e-6)
        assert ours.between(1, 5).all()


def test_an_interrupted_fold_is_resumed_and_those_that_are_done_stay(
    folds, scored_set, tmp_path, monkeypatch, capsys
):
    record, recorded = run_module.Run.record, []

    def stop(each, epoch, *figures):
        raise KeyboardInterrupt

    shutil.copytree(folds / "fold_0", tmp_path / "folds" / "fold_0")
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "record", stop)
        assert run(scored_set, tmp_path / "folds") == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "folds").iterdir()} == {"fold_0", "fold_1"}
    first = tmp_path / "folds" / "fold_0" / "best.pt"
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(
        run_module.Run, "record", lambda each, *a: (recorded.append(each.output.name), record(each, *a))[1]
    )
    assert run(scored_set, tmp_path / "folds") == 0
    assert recorded == ["fold_1", "fold_2"]
    assert "fold_1/last.pt at epoch 1, step 3" in capsys.readouterr().out  # not its first step
    assert first.stat().st_mtime_ns == before
    again, once = (path / "out_of_fold.csv" for path in (tmp_path / "folds", folds))
    assert again.read_bytes() == once.read_bytes()


def test_folds_of_other_settings_or_pictures_are_not_taken_for_these(folds, scored_set, capsys):
    before = (folds / "out_of_fold.csv").read_bytes()
    assert run(scored_set, folds, "optimizer.learning_rate=0.1") == 2
    assert "optimizer.learning_rate was 3e-05 and is 0.1" in capsys.readouterr().err
    assert run(scored_set, folds, "data.limit=12") == 2
    assert "data.limit was 0 and is 12" in capsys.readouterr().err
    assert run(scored_set, folds, "--folds", "2") == 2
    assert "SHA-256 of the ids of train was" in capsys.readouterr().err
    assert (folds / "out_of_fold.csv").read_bytes() == before


def test_weights_that_have_seen_a_picture_of_their_fold_are_refused(folds, scored_set, tmp_path, capsys):
    output = shutil.copytree(folds, tmp_path / "folds")
    (output / "out_of_fold.csv").unlink()
    shutil.copy(output / "fold_1" / "best.pt", output / "fold_0" / "best.pt")
    assert run(scored_set, output) == 2
    said = f"{output / 'fold_0' / 'best.pt'} was trained on 6 of the 6 pictures of csv"
    assert said in capsys.readouterr().err
    assert not (output / "out_of_fold.csv").exists()


@pytest.fixture(scope="module")
def damaged(scored_set, tmp_path_factory):
    """The set with four training pictures that are one, and one that is none; its folds."""
    root = shutil.copytree(scored_set, tmp_path_factory.mktemp("damaged") / "set")
    first, *copies, _, broken = load_dataset("csv", root, ("train",))["train"].ids[:6]
    for copy in copies:
        shutil.copyfile(root / "images" / first, root / "images" / copy)
    (root / "images" / broken).write_bytes(b"no picture")
    output = root.parent / "folds"
    assert run(root, output, "data.skip_broken=true") == 0
    return root, output


def test_identical_pictures_are_in_one_fold(damaged):
    root, output = damaged
    ids = load_dataset("csv", root, ("train",))["train"].ids
    alone = fold_numbers(ids, np.zeros(len(ids)), FOLDS)
    assert len(set(alone[:4])) > 1  # if they were different pictures
    folds = {row["id"]: row["fold"] for row in read_csv(output / "out_of_fold.csv")}
    assert len({folds[name] for name in ids[:4]}) == 1
    assert {*folds.values()} == {"0", "1", "2", ""}


def test_a_picture_that_cannot_be_decoded_costs_its_row_alone_and_a_training_learns_from_the_csv(
    damaged, tmp_path
):
    root, output = damaged
    rated, rows = load_dataset("csv", root, ("train",))["train"], read_csv(output / "out_of_fold.csv")
    assert (rows[5]["fold"], rows[5]["weights_sha256"]) == ("", "")
    assert float(rows[5]["prediction"]) == rated.scores[5]
    assert all(row["weights_sha256"] for row in rows[:5] + rows[6:])
    words = [f"data.distill={output / 'out_of_fold.csv'}", "loss.distill_weight=0.5"]
    words += ["train.score_test=false", LINEAR, "data.skip_broken=true"]
    assert train("csv", root, tmp_path / "run", *words) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folds", "1"], "--folds must be 2 or more, got 1"),
        (["--folds", "17"], "16 pictures cannot be divided into 17 folds"),
        (["task=emotion"], "these networks learn scores, from ratings alone; leave out task=emotion"),
        (["data.distill=t.csv", "loss.distill_weight=1"], "from ratings alone; leave out data.distill=t.csv"),
        (["train.validate_on=test"], "validate_on=test chooses networks by test pictures; leave it out"),
        (["--weights", "UNKNOWN"], "unknown.safetensors does not say which pictures it was trained on, so"),
        (["data.target=label"], "a network trained on csv predicts a label, not a score"),
        (
            ["--weights", "SCORE"],
            "was trained on 16 of the 16 pictures of csv that are to be predicted unseen",
        ),
    ],
)
def test_bad_input_is_an_error_before_anything_is_trained(
    words, said, scored_set, score_run, tmp_path, capsys
):
    weights = checkpoint.load_weights(score_run / "best.pt")
    unknown = tmp_path / "unknown.safetensors"
    checkpoint.export_weights(unknown, replace(weights, training_ids=np.empty(0, np.int64)))
    files = {"SCORE": str(score_run / "best.pt"), "UNKNOWN": str(unknown)}
    words = [files.get(word, word) for word in words]
    assert run(scored_set, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: out_of_fold: ")
    assert not (tmp_path / "out").exists()
