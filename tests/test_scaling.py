"""The scaling script: the ring's arithmetic in closed form, medians of rounds, the table, refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small import BACKBONE, ROOT, read_json

from scripts import scaling

ROW = {
    "network": "lite",
    "processes": 2,
    "pictures": 3,
    "size": 64,
    "threads": 1,
    "gradient_bytes": 8e6,
    "loader": 0.5,
    "forward": 0.1,
    "backward": 0.2,
    "optimizer": 0.05,
    "all_reduce_fp32": 0.15,
    "all_reduce_bf16": 0.07,
    "sum_fp32": 0.3,
    "sum_bf16": 0.2,
}


def test_a_ring_of_two_sends_all_bytes_once_and_a_large_one_nearly_twice():
    assert scaling.all_reduce_seconds(100e6, 1, 1e9) == 0
    assert scaling.all_reduce_seconds(100e6, 2, 1e9) == pytest.approx(0.1)
    assert scaling.all_reduce_seconds(100e6, 8, 1e9) == pytest.approx(0.175)
    assert scaling.all_reduce_seconds(100e6, 64, 1e9) == pytest.approx(0.196875)


def test_the_expectation_states_bytes_and_assumed_bandwidths():
    text = scaling.expectation("paper", 116e6)
    assert "116 MB of fp32 gradients, 58 MB as bf16" in text
    # 116 MB x 2 x 63 / 64 over 10 GB/s
    assert "64 GPUs, 8 nodes, 100 Gbit/s a node (10 GB/s assumed): 22.84 ms, bf16 11.42 ms" in text


def parts(scale: float) -> dict[str, list[float]]:
    """Three rounds of one process, one of them disturbed."""
    alone, sent = [1.0, 1.0, 9.0], [1.5, 1.25, 9.75]
    values = {
        "loader": [1, 2, 3],
        "forward_alone": [4, 4, 4],
        "optimizer": [1, 1, 7],
        "backward_alone": alone,
    }
    values |= {
        "backward_alone": alone,
        "backward_fp32": sent,
        "backward_bf16": alone,
        "sum_fp32": [2, 2, 2],
        "sum_bf16": [1, 1, 1],
    }
    return {name: [scale * value for value in rounds] for name, rounds in values.items()}


def test_all_reduce_is_what_the_backward_of_the_same_round_took_longer():
    found = scaling.summary([parts(1), parts(3)])
    assert found["loader"] == pytest.approx(2 * 2)  # medians of 2 and 6, their mean
    assert found["optimizer"] == pytest.approx(1 * 2)
    assert found["all_reduce_fp32"] == pytest.approx(0.5 * 2)  # of .5, .25, .75, and of three times that
    assert found["all_reduce_bf16"] == 0
    assert found["sum_fp32"] == pytest.approx(2 * 2)


def test_alone_nothing_is_averaged():
    found = scaling.summary([parts(1)])
    assert set(found) == {"loader", "forward", "backward", "optimizer"}


def test_the_table_is_in_milliseconds_and_counts_all_pictures():
    alone = {name: value for name, value in ROW.items() if not name.startswith(("all_", "sum_"))}
    lines = scaling.as_table([ROW, {**alone, "processes": 1}]).splitlines()
    assert lines[2] == "| lite | 64 | 2 | 500 | 100 | 200 | 50 | 150 | 70 | 300 | 200 | 12.00 |"  # 6 / .5 s
    assert lines[3] == "| lite | 64 | 1 | 500 | 100 | 200 | 50 | - | - | - | - | 8.57 |"  # 3 / .35 s
    assert {line.count("|") for line in lines} == {13}


def test_pictures_are_jpegs_of_800x600_with_a_table(tmp_path):
    scaling.write_set(tmp_path, 2)
    with Image.open(tmp_path / "1.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (800, 600))
        assert np.asarray(picture).std() > 20
    assert (tmp_path / "ratings.csv").read_text().splitlines()[1:] == [
        *("0.jpg,train,0.0", "1.jpg,train,0.5", "2.jpg,val,0.5")
    ]


def test_one_process_measures_every_part_of_a_real_step(tmp_path, monkeypatch):
    monkeypatch.setitem(scaling.NETWORKS, "lite", {"backbone": BACKBONE, "width": 16})
    scaling.write_set(tmp_path / "set", 4)
    words = ["--worker", "lite", "--size", "64", "--pictures", "2", "--rounds", "1", "--device", "cpu"]
    threads = torch.get_num_threads()
    output = tmp_path / "row.json"
    assert scaling.main([*words, "--folder", str(tmp_path / "set"), "--output", str(output)]) == 0
    torch.set_num_threads(threads)
    row = read_json(output)
    network = scaling.build_model(outputs=1, **scaling.NETWORKS["lite"])
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert row["gradient_bytes"] == 4 * trained
    assert all(row[part] > 0 for part in ("loader", "forward", "backward", "optimizer"))


def test_quick_is_lite_on_one_and_two_processes():
    options = scaling.parse(["--quick"])
    assert (options.networks, options.processes, options.rounds) == (["lite"], [1, 2], 3)


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--processes", "1", "0"]])
def test_a_count_below_one_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        scaling.parse(words)
    assert f"{words[0]} must be at least 1, got 0" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused_before_anything_is_measured(capsys):
    assert scaling.main(["--device", "cuda:99"]) == 2
    assert "distributed: device 'cuda:99' is not on this machine" in capsys.readouterr().err


def test_the_table_in_the_readme_is_that_of_the_results():
    rows = json.loads((ROOT / "results" / "scaling.json").read_text(encoding="utf-8"))["rows"]
    assert scaling.as_table(rows) in (ROOT / "README.md").read_text(encoding="utf-8")
