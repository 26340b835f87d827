"""The benchmark: its reference path computes the same, ways take turns, figures follow from the seconds."""

import json
import threading
from contextlib import contextmanager
from multiprocessing import Pipe

import numpy as np
import pytest
import small
import torch
from conftest import enliven
from torch import nn

from EAMBNet import build_model
from scripts import benchmark
from scripts.benchmark import Result, Way, as_reference, as_row, as_table, flops, measure


def test_the_reference_path_computes_the_same():
    torch.manual_seed(0)
    widths = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}
    network = enliven(build_model(small.BACKBONE, 4, **widths))
    reference = as_reference(network)
    images = torch.randn(2, 3, 128, 160)
    with torch.inference_mode():
        for ours, theirs in zip(network(images), reference(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert type(reference.fusion).__name__ == "ReferenceFusion"
    assert type(network.fusion).__name__ == "Fusion"


def test_operations_of_a_convolution_by_hand():
    assert flops(nn.Conv2d(3, 8, 3, padding=1), 32) == 2 * 3 * 8 * 9 * 32 * 32


def test_the_figures_follow_from_the_seconds():
    way = Way("forward", "bf16", "forward", (), images=4, flops=1e9, kind="bf16")
    reference = Result(Way("forward", "reference", "forward", (), images=4, flops=1e9), [4.0, 2.0, 8.0])
    row = as_row(Result(way, [1.0, 1.0, 2.0], memory=1.5, differences=(0.1,)), reference, {"bf16": 16e9})
    assert row["images_per_second"] == 4
    assert row["ratio"] == 4  # of the rounds: 4, 2 and 4
    assert row["spread"] == 1
    assert row["gflop_per_second"] == 4
    assert row["share_of_ceiling"] == 0.25
    assert (row["memory_gb"], row["differences"]) == (1.5, [0.1])


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """The runs in the order in which they come; ways are served by threads of this process."""
    runs: list[str] = []

    def make(name: str, value: float):
        def run():
            runs.append(name)
            return (torch.tensor([value]),)

        return run

    @contextmanager
    def served(way, threads):
        ours, theirs = Pipe()
        thread = threading.Thread(target=benchmark.serve, args=(way, threads, theirs))
        thread.start()
        yield ours
        thread.join()

    monkeypatch.setitem(benchmark.MAKERS, "forward", make)
    monkeypatch.setattr(benchmark, "served", served)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return runs


def test_ways_take_turns_and_are_compared_with_the_first(order):
    ways = [Way("job", name, "forward", (name, value), 1) for name, value in (("a", 1.0), ("b", 1.25))]
    results = measure(ways, rounds=3, threads=1)
    assert sorted(order[:2]) == ["a", "b"]  # to warm up
    assert order[2:] == ["a", "b"] * 3
    assert [len(result.seconds) for result in results] == [3, 3]
    assert [result.differences for result in results] == [(0.0,), (0.25,)]
    assert all(result.memory > 0 for result in results)


def test_each_table_has_its_ceiling_only_where_operations_are_counted(order, capsys, monkeypatch):
    monkeypatch.setitem(benchmark.MAKERS, "ceiling", lambda kind: lambda: None)
    counted = Way("with", "reference", "forward", ("a", 0.0), 1, flops=1e9)
    jobs = benchmark.measure_all([counted, Way("without", "reference", "forward", ("b", 0.0), 1)], 2, 1)
    assert [job["rows"][0]["share_of_ceiling"] is None for job in jobs] == [False, True]
    text = capsys.readouterr().out
    assert "with (ceiling: fp32" in text
    assert "\nwithout\n" in text


def test_the_tables_in_the_readme_are_those_of_the_results():
    measured = json.loads((small.ROOT / "results" / "benchmark.json").read_text(encoding="utf-8"))
    readme = (small.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(measured["jobs"]) > 4
    for job in measured["jobs"]:
        assert as_table(job) in readme


def test_the_noisy_photograph_makes_a_long_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    benchmark.photograph(600, 400).save(path, quality=95)
    # 24 megapixels, 100 times as many, will be 7 MB and more.
    assert path.stat().st_size > 70_000
    assert np.ptp(np.asarray(benchmark.photograph(60, 40))) > 200


def test_an_unknown_part_and_an_existing_output_are_refused(tmp_path, capsys):
    assert benchmark.main(["--only", "forward,backward"]) == 2
    assert "--only takes some of forward, step, loader, predict, got 'backward'" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("{}")
    assert benchmark.main(["--output", str(tmp_path / "a.json")]) == 2
    assert "--force" in capsys.readouterr().err
