"""Cross-validation: every picture predicted once by a network that has not seen it; the probe likewise."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from small import BACKBONE, WORDS, parameters, read_csv, read_json, same, without_drawing, write_pictures

from datasets import load_dataset
from eamb.files import file_hash
from eamb.readers.rated import DataOptions
from eamb.weights import checkpoint
from scripts import cross_validate

KINDS = ("awe", "fear", "sadness")


@pytest.fixture(scope="module")
def fi_set(tmp_path_factory):
    """Eight pictures of each of three emotions, in folders."""
    root = tmp_path_factory.mktemp("fi")
    for seed, kind in enumerate(KINDS):
        write_pictures(root / kind, 8, seed)
    return root


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Stands for the ImageNet weights of the small backbone."""
    path = tmp_path_factory.mktemp("imagenet") / "small.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(BACKBONE).state_dict(), path)
    return path


def run(fi_set, weights_file, output, *words) -> int:
    (output.parent / "small.yaml").write_text("task: emotion\n")
    options = ["--config", output.parent / "small.yaml", "--dataset", "fi", "--data-root", fi_set]
    options += ["--folds", 2, "--output", output, *WORDS, f"model.imagenet={weights_file}"]
    with without_drawing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two validation pictures are too few for some metrics
        return cross_validate.main([str(word) for word in (*options, *words)])


@pytest.fixture(scope="module")
def folds(fi_set, weights_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "folds"
    assert run(fi_set, weights_file, output) == 0
    return output


def test_every_picture_is_predicted_once_by_a_network_that_has_not_seen_it(folds, fi_set):
    rows = read_csv(folds / "predictions.csv")
    assert len({row["id"] for row in rows}) == len(rows) == 24
    for fold in (0, 1):
        test = load_dataset("fi", fi_set, ("test",), DataOptions(folds=2, fold=fold))["test"]
        assert sorted(test.ids) == sorted(row["id"] for row in rows if int(row["fold"]) == fold)
        trained = checkpoint.load_weights(folds / f"fold_{fold}" / "best.pt").training_ids
        assert len(trained) > 0
        assert not np.isin(test.id_hashes, trained).any()


def test_the_figures_are_those_of_the_predictions(folds, fi_set):
    content = read_json(folds / "cross_validation.json")
    rows = pd.read_csv(folds / "predictions.csv")
    truth, accuracies = rows["id"].str.partition("/")[0], content["accuracies"]
    for column, name in (("prediction", "network"), ("probe_64", "probe_64"), ("probe_32", "probe_32")):
        right = rows[column] == truth
        assert accuracies[name] == pytest.approx(right.mean())
        by_fold = [fold[name] for fold in content["accuracies_by_fold"]]
        assert by_fold == pytest.approx(right.groupby(rows["fold"]).mean().tolist())
    difference = accuracies["network"] - accuracies["probe_64"]
    assert accuracies["network - probe_64"] == pytest.approx(difference)
    low, high = content["accuracies_95"]["network - probe_64"]
    assert low <= difference <= high
    assert content["metrics"]["accuracy"] == accuracies["network"]
    assert content["chance"] == pytest.approx(1 / 3)
    assert np.sum(content["confusion"]) == 24
    assert str(fi_set) not in json.dumps(content)


def test_folds_that_are_done_are_not_run_again_nor_taken_for_those_of_another_run(
    folds, fi_set, weights_file, capsys
):
    before = {path: path.stat().st_mtime_ns for path in folds.glob("fold_*/*.pt")}
    assert len(before) == 4
    assert run(fi_set, weights_file, folds) == 0
    assert run(fi_set, weights_file, folds, "train.epochs=2") == 2
    assert "fold_0 was trained with other settings (train.epochs was 1 and is 2)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_every_fold_starts_from_the_given_weights_unless_they_have_seen_its_pictures(
    folds, fi_set, weights_file, emotion_run, tmp_path, capsys
):
    output, branch = tmp_path / "out", emotion_run / "best.pt"
    words = ["--weights", branch, "optimizer.learning_rate=0"]
    assert run(fi_set, weights_file, output, *words) == 0
    given = parameters(branch)
    for fold in (0, 1):
        assert same(given, parameters(output / f"fold_{fold}" / "last.pt"), "emotion.fine.")
    assert run(fi_set, weights_file, output, *words) == 0
    assert run(fi_set, weights_file, output, *words[2:]) == 2
    assert f"the SHA-256 of --weights was {file_hash(branch)} and is None" in capsys.readouterr().err
    seen = folds / "fold_0" / "best.pt"
    assert run(fi_set, weights_file, tmp_path / "other", "--weights", seen) == 2
    count = len(checkpoint.load_weights(seen).training_ids)
    assert f"{seen} was trained on {count} pictures of fi" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_output_that_cannot_be_written_is_found_before_any_picture_is_read(
    fi_set, weights_file, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(cross_validate, "last_set", lambda *_: pytest.fail("the set was read"))
    assert run(fi_set, weights_file, tmp_path / "file") == 2
    assert f"cross_validate: {tmp_path / 'file'} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "csv"], "csv came with splits"),
        (["--folds", "0"], "--folds must be 2 or more, got 0"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_trained(
    words, said, fi_set, weights_file, scored_set, tmp_path, capsys
):
    roots = ["--data-root", scored_set] if "csv" in words else []
    assert run(fi_set, weights_file, tmp_path / "out", *words, *roots) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_probe_separates_what_a_plane_can_and_sees_only_the_other_folds():
    random = np.random.default_rng(0)
    truth = [random.integers(0, 3, 20) for _ in range(3)]
    features = [np.eye(3)[t] + 0.05 * random.standard_normal((20, 3)) for t in truth]
    assert (cross_validate.probe(features, truth) == np.concatenate(truth)).all()
    # In the last fold the classes have other names, which no other fold can tell.
    moved = [truth[0], truth[1], (truth[2] + 1) % 3]
    assert (cross_validate.probe(features, moved)[40:] == truth[2]).all()
