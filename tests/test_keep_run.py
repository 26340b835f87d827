"""What is published of a run: no labels, no paths, the same bytes each time."""

import gzip
from unittest.mock import Mock

import pytest
import yaml
from small import read_json

from scripts import keep_run


def run(*words) -> None:
    assert keep_run.main(list(map(str, words))) == 0


def test_a_run_is_kept_without_its_paths_and_weights(score_run, scored_set, tmp_path):
    run(score_run, tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == sorted({*keep_run.KEPT} - {"cross_validation.json"})
    content = gzip.decompress((tmp_path / "kept" / "predictions.csv.gz").read_bytes())
    assert content == (score_run / "test" / "predictions.csv").read_bytes()
    assert b"rated" not in content
    assert read_json(tmp_path / "kept" / "metrics.json") == read_json(score_run / "test" / "metrics.json")
    settings = (tmp_path / "kept" / "config.yaml").read_text()
    assert yaml.safe_load(settings)["train"]["epochs"] == 2
    assert str(scored_set) not in settings
    before = (tmp_path / "kept" / "predictions.csv.gz").read_bytes()
    run(score_run, tmp_path / "kept")
    assert (tmp_path / "kept" / "predictions.csv.gz").read_bytes() == before


def test_each_set_and_each_fold_has_its_folder(tmp_path):
    for name in ("run/test/para", "run/test/fi", "run/fold_0", "run/fold_0/evaluation"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("test/para/predictions.csv", "test/fi/predictions.csv", "test/fi/metrics.json"):
        (tmp_path / "run" / name).write_text(name)
    for name in ("fold_0/metrics.jsonl", "fold_0/best.pt", "fold_0/evaluation/predictions.csv"):
        (tmp_path / "run" / name).write_text(name)
    (tmp_path / "run" / "cross_validation.json").write_text("{}")
    run(tmp_path / "run", tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == [
        "cross_validation.json",
        "fi/metrics.json",
        "fi/predictions.csv.gz",
        "fold_0/metrics.jsonl",
        "para/predictions.csv.gz",
    ]


def test_a_run_that_was_not_evaluated_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, tmp_path / "kept")
    assert end.value.code == 2
    assert "holds no predictions.csv; has the run been evaluated?" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_of_a_trial_settings_and_log_are_kept(tmp_path):
    settings = "data: {root: /home/me}\ntrain: {score_test: false, emotion_maps: /home/me/maps}\n"
    settings += "model: {imagenet: /home/me/vit.pth}\n"
    (tmp_path / "trial").mkdir()
    for name, content in {"config.yaml": settings, "metrics.jsonl": "{}\n", "best.pt": "weights"}.items():
        (tmp_path / "trial" / name).write_text(content)
    run(tmp_path / "trial", tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == ["config.yaml", "metrics.jsonl"]
    text = (tmp_path / "kept" / "config.yaml").read_text()
    assert "/home/me" not in text
    assert yaml.safe_load(text)["train"]["emotion_maps"] == "kept"  # whether, not where
    assert yaml.safe_load(text)["model"]["imagenet"] == "vit.pth"


def test_a_second_run_replaces_the_first_whole_or_not_at_all(tmp_path, monkeypatch):
    for name in ("first/test/para/predictions.csv", "first/test/metrics.json", "second/test/predictions.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    run(tmp_path / "first", tmp_path / "kept")
    before = keep_run.names(tmp_path / "kept")
    assert before == ["metrics.json", "para/predictions.csv.gz"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(keep_run.gzip, "compress", Mock(side_effect=OSError("full")))
        run(tmp_path / "second", tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == before
    run(tmp_path / "second", tmp_path / "kept")
    assert keep_run.names(tmp_path / "kept") == ["predictions.csv.gz"]
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "kept"}


@pytest.mark.parametrize("there", ["README.md", "metrics.json notes.txt", "trial/metrics.jsonl"])
def test_a_folder_of_something_else_is_not_replaced(there, score_run, tmp_path, capsys):
    for name in there.split():
        (tmp_path / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kept" / name).write_text("")
    with pytest.raises(SystemExit):
        run(score_run, tmp_path / "kept")
    assert "and is not a run that was kept; choose another folder" in capsys.readouterr().err
    assert keep_run.names(tmp_path / "kept") == there.split()
