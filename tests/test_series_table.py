"""The table of several networks: figures are those of evaluate, differences paired, other pairs refused."""

import numpy as np
import pytest
from small import read_json, write_table

from metrics import pair_metrics
from scripts.series_table import PAIR, main

SERIES = [f"test-{number:03d}-{kind}" for number in range(20) for kind in ("blurred", "noisy")]


def write_report(folder, predictions: np.ndarray, preferences: np.ndarray) -> None:
    """Forty series of one pair each."""
    values = zip(SERIES, preferences.tolist(), predictions.tolist(), strict=True)
    rows = [(name, f"{name}/a", f"{name}/b", share, predicted) for name, share, predicted in values]
    write_table(folder / "predictions.csv", [(*PAIR, "prediction"), *rows])


@pytest.fixture
def reports(tmp_path):
    preferences = np.random.default_rng(0).uniform(0, 1, len(SERIES)).round(3)
    bad = np.where(np.arange(len(SERIES)) % 4 == 0, 1 - preferences, preferences)  # half of the blurred wrong
    write_report(tmp_path / "graded" / "bad", bad, preferences)
    write_report(tmp_path / "graded" / "good", preferences, preferences)
    return tmp_path / "graded", bad, preferences


def test_figures_are_those_of_the_pairs_and_differences_are_paired(reports, tmp_path, capsys):
    folder, bad, preferences = reports
    target = tmp_path / "series.json"
    words = [folder / "bad", folder / "good", "--output", target, "--resamples", 50]
    assert main(list(map(str, words))) == 0
    found = read_json(target)["graded"]
    for name, value in pair_metrics(bad, preferences).items():
        assert found["bad"]["metrics"][name] == pytest.approx(value)
    assert found["good"]["metrics"]["accuracy"] == found["good"]["metrics"]["series_best"] == 1.0
    assert found["bad"]["accuracy_by_kind"] == {"blurred": 0.5, "noisy": 1.0}
    assert found["good"]["accuracy_difference"] == pytest.approx(0.25)
    low, high = found["good"]["accuracy_difference_95"]
    assert 0.1 < low < 0.25 < high < 0.45
    assert "accuracy_difference" not in found["bad"]
    said = capsys.readouterr().out
    assert "graded: 40 pairs of 80 photographs" in said
    assert "| bad | 50.0% | 100.0% |" in said
    assert "+25.0% (" in said


def test_other_pairs_and_an_existing_file_are_refused(reports, tmp_path, capsys):
    folder, bad, preferences = reports
    write_report(tmp_path / "graded" / "other", bad, preferences / 2)
    assert main([str(folder / "good"), str(folder / "other")]) == 2
    said = "graded/other is named twice or is not of the same pairs as graded/good; evaluate"
    assert said in capsys.readouterr().err
    (tmp_path / "there.json").touch()
    assert main([str(folder / "good"), "--output", str(tmp_path / "there.json")]) == 2
    assert "overwrite with --force" in capsys.readouterr().err
    (folder / "good" / "predictions.csv").write_text("id,prediction\n1,2\n")
    assert main([str(folder / "good")]) == 2
    assert "is not a report on pairs: Usecols do not match columns" in capsys.readouterr().err
