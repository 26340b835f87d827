"""The scaling script: medians of rounds, the table, refusals."""

import pytest
from small import BACKBONE, ROOT, read_json

from scripts import scaling

ALONE = {"network": "lite", "processes": 1, "pictures": 3, "size": 64, "threads": 1, "gradient_bytes": 8e6}
ALONE |= {"loader": 0.5, "forward": 0.1, "backward": 0.2, "optimizer": 0.05}
PAIR = ALONE | {"processes": 2, "sum_fp32": 0.3, "sum_bf16": 0.2}
PAIR |= {"all_reduce_fp32": 0.15, "all_reduce_bf16": 0.07}


def parts(scale: float) -> dict[str, list[float]]:
    """Three rounds of one process, one of them disturbed."""
    values = {"loader": [1, 2, 3], "forward_alone": [4, 4, 4], "optimizer": [1, 1, 7]}
    values |= {"backward_alone": [1.0, 1.0, 9.0], "backward_fp32": [1.5, 1.25, 9.75]}
    values |= {"backward_bf16": [1.0, 1.0, 9.0], "forward_fp32": [4, 4, 4], "forward_bf16": [4, 4, 4]}
    values |= {"sum_fp32": [2, 2, 2], "sum_bf16": [1, 1, 1]}
    return {name: [scale * value for value in rounds] for name, rounds in values.items()}


def test_all_reduce_is_what_the_backward_of_the_same_round_took_longer():
    seconds = scaling.summary([parts(1), parts(3)])
    assert set(seconds) == set(PAIR) - set(ALONE) | {"loader", "forward", "backward", "optimizer"}
    assert seconds["loader"] == pytest.approx(2 * 2)  # medians of 2 and 6, their mean
    assert seconds["optimizer"] == pytest.approx(1 * 2)
    assert seconds["all_reduce_fp32"] == pytest.approx(0.5 * 2)  # of .5, .25, .75, and of three times that
    assert seconds["all_reduce_bf16"] == 0
    assert seconds["sum_fp32"] == pytest.approx(2 * 2)


def test_the_table_is_in_milliseconds_and_counts_all_pictures():
    lines = scaling.as_table([PAIR, ALONE]).splitlines()
    assert lines[2] == "| lite | 64 | 2 | 500 | 100 | 200 | 50 | 150 | 70 | 300 | 200 | 12.00 |"  # 6 / .5 s
    assert lines[3] == "| lite | 64 | 1 | 500 | 100 | 200 | 50 | - | - | - | - | 8.57 |"  # 3 / .35 s


def test_one_process_measures_every_part_of_a_real_step(tmp_path, monkeypatch, capsys):
    def here(config, function):
        return lambda *arguments: {0: function(*arguments)}

    monkeypatch.setattr(scaling, "elastic_launch", here)
    monkeypatch.setitem(scaling.NETWORKS, "lite", {"backbone": BACKBONE, "width": 16})
    words = ["--networks", "lite", "--processes", "1", "--size", "64", "--rounds", "1", "--device", "cpu"]
    assert scaling.main([*words, "--output", str(tmp_path / "rows.json")]) == 0
    [row] = read_json(tmp_path / "rows.json")["rows"]
    network = scaling.build_model(outputs=1, **scaling.NETWORKS["lite"])
    assert row["gradient_bytes"] == 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert set(row) == set(ALONE)
    assert all(row[part] > 0 for part in ("loader", "forward", "backward", "optimizer"))
    assert scaling.as_table([row]) in capsys.readouterr().out


def test_a_count_below_one_and_a_device_that_is_not_there_are_refused(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--processes", "1", "0"])
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err
    assert scaling.main(["--device", "cuda:99"]) == 2
    assert (
        "distributed: device 'cuda:99' is unknown or not here; choose --device from auto, cpu"
        in capsys.readouterr().err
    )


def test_the_table_in_the_documents_is_that_of_the_results():
    rows = read_json(ROOT / "results" / "scaling.json")["rows"]
    assert scaling.as_table(rows) in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
