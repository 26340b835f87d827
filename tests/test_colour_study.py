"""The study of colour spaces: figures by hand, files that hold what they say, and the command itself."""

import numpy as np
import pytest
from PIL import Image
from small import read_json

from eamb.readers.decoding import decode
from scripts.studies import colour


def test_figures_and_table():
    rows = {name: colour.figures([2.0, 3.5], [2.5, 3.25]) for name in colour.names(colour.SPACES)}
    assert rows["p3"] == {"mean": -0.125, "mean_size": 0.375, "largest": 0.5}
    lines = colour.as_table(rows).splitlines()
    assert len(lines) == 2 + 2 * len(colour.SPACES)
    assert lines[3] == "| Display P3 | ignored | -0.1250 | 0.3750 | 0.500 |"


def test_stored_pictures_come_back_and_their_numbers_are_others(tmp_path):
    pixels = np.random.default_rng(0).integers(40, 216, (20, 30, 3), dtype=np.uint8)
    files = colour.store(Image.fromarray(pixels), tmp_path)
    assert [*files] == colour.names(colour.SPACES) and (decode(files["srgb"]) == pixels).all()
    for space in colour.SPACES:
        back, ignored = decode(files[space]).astype(int), decode(files[f"{space} ignored"])
        assert (ignored == decode(files[space], icc=False)).all()
        errors = np.abs(back - pixels).mean(), np.abs(ignored.astype(int) - pixels).mean()
        assert errors[0] < 2 < 4 < errors[1]


def test_the_command_scores_pictures_that_can_be_decoded(lively_weights, scored_set, tmp_path, capsys):
    words = ["--dataset", "csv", "--data-root", scored_set, "--checkpoint", lively_weights, "--pictures", 3]
    assert colour.main([*map(str, words), "--output", str(tmp_path / "out")]) == 0
    found = read_json(tmp_path / "out" / "colour.json")
    assert found["pictures"] == 3 and [*found["scores"]] == colour.names(colour.SPACES)
    for name, row in found["changes"].items():
        expected = colour.figures(found["scores"][name], found["scores"]["srgb"])
        assert row == pytest.approx(expected, abs=1e-4)
    assert colour.as_table(found["changes"]) in capsys.readouterr().out
    assert colour.main([*map(str, words), "--output", str(tmp_path), "--pictures", "0"]) == 2
    assert "at least 1 of --pictures" in capsys.readouterr().err
