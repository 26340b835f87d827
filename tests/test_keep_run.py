"""What is published of a run: no labels, no paths, the same bytes each time."""

import gzip

import pytest
import yaml
from small import read_json

from scripts import keep_run


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr("sys.argv", ["keep_run.py", *map(str, words)])
    keep_run.main()


def test_a_run_is_kept_without_its_paths_and_weights(score_run, scored_set, tmp_path, monkeypatch):
    run(monkeypatch, score_run, tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == [
        *("config.yaml", "metrics.json", "metrics.jsonl", "predictions.csv.gz"),
    ]
    content = gzip.decompress((tmp_path / "kept" / "predictions.csv.gz").read_bytes())
    assert content == (score_run / "test" / "predictions.csv").read_bytes()
    assert b"rated" not in content
    assert read_json(tmp_path / "kept" / "metrics.json") == read_json(score_run / "test" / "metrics.json")
    settings = (tmp_path / "kept" / "config.yaml").read_text()
    assert yaml.safe_load(settings)["train"]["epochs"] == 2
    assert str(scored_set) not in settings
    before = (tmp_path / "kept" / "predictions.csv.gz").read_bytes()
    run(monkeypatch, score_run, tmp_path / "kept")
    assert (tmp_path / "kept" / "predictions.csv.gz").read_bytes() == before


def test_each_set_and_each_fold_has_its_folder(tmp_path, monkeypatch):
    for name in ("run/test/para", "run/test/fi", "run/fold_0", "run/fold_0/evaluation"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("test/para/predictions.csv", "test/fi/predictions.csv", "test/fi/metrics.json"):
        (tmp_path / "run" / name).write_text(name)
    for name in ("fold_0/metrics.jsonl", "fold_0/best.pt", "fold_0/evaluation/predictions.csv"):
        (tmp_path / "run" / name).write_text(name)
    (tmp_path / "run" / "cross_validation.json").write_text("{}")
    run(monkeypatch, tmp_path / "run", tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == [
        *("cross_validation.json", "fi/metrics.json", "fi/predictions.csv.gz", "fold_0/metrics.jsonl"),
        "para/predictions.csv.gz",
    ]


def test_a_run_that_was_not_evaluated_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, tmp_path, tmp_path / "kept")
    assert end.value.code == 2
    assert "holds no predictions.csv; has the run been evaluated?" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_of_a_trial_settings_and_log_are_kept(tmp_path, monkeypatch):
    trial = tmp_path / "trial"
    trial.mkdir()
    for name, content in {
        "config.yaml": "data: {root: /home/me}\ntrain: {score_test: false, emotion_maps: /home/me/maps}\n",
        "metrics.jsonl": "{}\n",
        "best.pt": "weights",
    }.items():
        (trial / name).write_text(content)
    run(monkeypatch, trial, tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == ["config.yaml", "metrics.jsonl"]
    assert "/home/me" not in (tmp_path / "kept" / "config.yaml").read_text()
