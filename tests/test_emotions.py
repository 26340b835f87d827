"""Predicted emotions against votes: by name, among those of the set, and when they are not measured."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import BACKBONE, evaluate, read_csv, read_json, write_csv

from datasets import PictureSet, load_dataset
from eamb.evaluation import emotions as emotions_module
from eamb.evaluation import evaluate as evaluate_module
from eamb.evaluation import ratings
from eamb.network.backbones import normalisation
from eamb.network.outputs import EMOTIONS
from eamb.readers.decoding import View, normalise
from eamb.runtime.config import Config, Data, Evaluate
from eamb.runtime.engine import Predictions
from eamb.runtime.networks import Ensemble
from eamb.training.tasks import choose_task
from eamb.weights import checkpoint


def emotion_votes(root: Path) -> dict[str, str]:
    return {row["path"]: row["emotion"] for row in read_csv(root / "ratings.csv")}


def test_emotions_are_reported_by_name(emotion_run, scored_set):
    path = emotion_run / "test" / "predictions.csv"
    rows = read_csv(path)
    assert list(rows[0]) == ["id", "prediction", *(f"emotion_{name}" for name in EMOTIONS)]
    for row in rows:
        shares = {name: float(row[f"emotion_{name}"]) for name in EMOTIONS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == max(shares, key=shares.get)
    truth = emotion_votes(scored_set)
    metrics = read_json(emotion_run / "test" / "metrics.json")["metrics"]
    assert metrics["accuracy"] == np.mean([row["prediction"] == truth[row["id"]] for row in rows])
    own = [float(row[f"emotion_{truth[row['id']]}"]) for row in rows]
    assert metrics["cross_entropy"] == pytest.approx(-np.log(own).mean(), abs=1e-4)


def test_the_order_in_which_a_set_lists_its_emotions_does_not_matter(emotion_run, scored_set, tmp_path):
    (tmp_path / "images").symlink_to(scored_set / "images")
    turned = EMOTIONS[::-1]
    lines = [["path", "split", *(f"emotion_{name}" for name in turned)]]
    for row in read_csv(scored_set / "ratings.csv"):
        lines.append([row["path"], row["split"], *(str(int(row["emotion"] == name)) for name in turned)])
    (tmp_path / "ratings.csv").write_text("\n".join(map(",".join, lines)))
    assert evaluate(emotion_run / "best.pt", "csv", tmp_path, tmp_path / "out") == 0
    expected = read_json(emotion_run / "test" / "metrics.json")["metrics"]
    assert read_json(tmp_path / "out" / "metrics.json")["metrics"] == expected


def test_a_set_without_labels_that_the_network_knows_is_refused_before_anything_is_predicted(
    emotion_run, score_run, counts_set, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(emotions_module, "predict_set", None)
    monkeypatch.setattr(ratings, "predict_set", None)
    other = write_csv(tmp_path / "other", {"emotion": ["calm" if i % 3 else "wild" for i in range(24)]})
    known = write_csv(tmp_path / "known", {"emotion": [EMOTIONS[i % 8] for i in range(24)]})
    for run, root, words in (
        (emotion_run, other, f"the network knows {', '.join(EMOTIONS)}; csv has calm, wild too"),
        (emotion_run, counts_set, "no picture of csv test has a label for the task emotion"),
        (score_run, known, "no picture of csv test has a label for the task aesthetics"),
    ):
        assert evaluate(run / "best.pt", "csv", root, tmp_path / "out") == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scores_and_emotions_come_from_one_run_of_the_network(score_run, scored_set, tmp_path, capsys):
    assert evaluate(score_run / "best.pt", "csv", scored_set, tmp_path / "out", "evaluate.bootstrap=9") == 0
    rows, truth = read_csv(tmp_path / "out" / "predictions.csv"), emotion_votes(scored_set)
    found = read_json(tmp_path / "out" / "metrics.json")
    emotions = found["emotions"]
    right = [row["emotion"] == truth[row["id"]] for row in rows]
    assert emotions["metrics"]["accuracy"] == np.mean(right) == np.trace(emotions["confusion"]) / 4
    assert "accuracy" in emotions["intervals_95"]
    assert "srcc" in found["metrics"]
    said = capsys.readouterr().out
    assert said.index("SRCC") < said.index("csv test, emotions") < said.index("calibration error")
    high = {row["path"]: float(row["score"]) > 3 for row in read_csv(scored_set / "ratings.csv")}
    by_label = [[sum(truth[r["id"]] == n and high[r["id"]] == side for r in rows) for n in EMOTIONS]
                for side in (True, False)]  # fmt: skip
    by_prediction = [[sum(r["emotion"] == n and (float(r["prediction"]) > 3) == side for r in rows)
                      for n in EMOTIONS] for side in (True, False)]  # fmt: skip
    assert emotions["high_and_low"] == {"labels": by_label, "predictions": by_prediction}


def test_what_cannot_be_measured_is_not_and_this_is_said(
    untrained_run, score_run, scored_set, tmp_path, capsys
):
    words = ["calm" if i % 3 else "awe" for i in range(24)]
    calm = write_csv(tmp_path / "set", {"score": [1 + i % 5 for i in range(24)], "emotion": words})
    for run, root, said in (
        (untrained_run, scored_set, "emotions not measured: the emotion branch was never trained"),
        (score_run, calm, "emotions not measured: the network does not know calm"),
    ):
        assert evaluate(run / "best.pt", "csv", root, tmp_path / "out") == 0
        assert said in capsys.readouterr().out
        assert "emotions" not in read_json(tmp_path / "out" / "metrics.json")
    assert "emotions" not in read_json(untrained_run / "test" / "metrics.json")
    assert list(read_csv(untrained_run / "test" / "predictions.csv")[0]) == ["id", "prediction"]


def test_a_set_with_fewer_emotions_is_measured_among_its_own(emotion_run, tmp_path):
    three = ("awe", "fear", "sad")
    votes = {f"emotion_{name}": [int(i // 6 % 3 == k) for i in range(24)] for k, name in enumerate(three)}
    root = write_csv(tmp_path / "set", votes, seed=4)
    assert evaluate(emotion_run / "best.pt", "csv", root, tmp_path / "out") == 0
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert list(rows[0])[2:] == ["emotion_awe", "emotion_fear", "emotion_sadness"]
    network = checkpoint.load_weights(emotion_run / "best.pt").build()
    rated = load_dataset("csv", root, ("test",))["test"]
    images = PictureSet(rated, 64).collate([PictureSet(rated, 64)[i] for i in range(4)]).images
    with torch.no_grad():
        logits = network(normalise(images, *normalisation(BACKBONE))).emotion_logits
    expected = logits[:, [EMOTIONS.index(name) for name in ("awe", "fear", "sadness")]].softmax(dim=1)
    shares = [[float(row[column]) for column in list(row)[2:]] for row in rows]
    assert np.allclose(shares, expected, atol=1e-5)
    metrics = read_json(tmp_path / "out" / "metrics.json")["metrics"]
    assert metrics["chance"] == pytest.approx(1 / 3)
    own = [shares[j][j % 3] for j in range(4)]  # test pictures are 5, 11, 17 and 23
    assert metrics["cross_entropy"] == pytest.approx(-np.log(own).mean(), abs=1e-5)


def test_a_network_without_emotions_is_measured_without_them(scored_set, tmp_path, monkeypatch):
    rated = load_dataset("csv", scored_set, ("test",))["test"]
    architecture = {"backbone": BACKBONE, "emotions": []}
    description = {"task": "aesthetics", "dataset": "csv", "architecture": architecture}
    weights = checkpoint.Weights({}, description | {"scale": rated.scale.as_dict()})
    none = Predictions(np.arange(4), np.full((4, 1), 0.5), np.empty((4, 0)), [])
    monkeypatch.setattr(ratings, "predict_set", lambda *a, **k: none)
    config = Config(data=Data(dataset="csv", root=str(scored_set)), evaluate=Evaluate(bootstrap=0))
    network = Ensemble([SimpleNamespace(weights=weights, view=View(64))])
    with pytest.warns(UserWarning, match="(SRCC|PLCC|KRCC) is undefined"):
        report = evaluate_module.evaluate(network, rated, choose_task(config))
    report.write(tmp_path)
    found = read_json(tmp_path / "metrics.json")
    assert found["metrics"]["mae"] == pytest.approx(np.abs(rated.scores - 3).mean())
    assert [name for name in found if "emotion" in name] == []
    said = [note for note in found["notes"] if "emotion" in note]
    assert said == ["emotions not measured: the network has no emotion branch"]
