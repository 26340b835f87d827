"""The benchmark: its reference path computes the same, ways take turns, figures follow from the seconds."""

import json
import multiprocessing
import threading
from contextlib import contextmanager
from multiprocessing import Pipe

import numpy as np
import pytest
import small
import torch
from conftest import enliven
from torch import nn

import datasets
from eamb.network.backbones import DepthwiseConv2d, Recomputed
from eamb.runtime import engine
from EAMBNet import Fusion, build_model
from scripts import benchmark
from scripts.benchmark import Result, Scores, Way, as_reference, as_row, as_table, cumulative, flops, measure


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
    result = Result(way, [1.0, 1.0, 2.0], memory=1.5, differences={"score": (0.1, 0.05)})
    row = as_row(result, reference, {"bf16": 16e9})
    assert row["images_per_second"] == 4
    assert row["ratio"] == 4  # of the rounds: 4, 2 and 4
    assert row["spread"] == 1
    assert row["gflop_per_second"] == 4
    assert row["share_of_ceiling"] == 0.25
    assert row["memory_gb"] == 1.5
    assert (row["differences"], row["mean_differences"]) == ({"score": 0.1}, {"score": 0.05})


def test_where_no_pictures_are_counted_seconds_are_told():
    way = Way("start", "predict", "command", (), images=0)
    reference = Result(Way("start", "import", "command", (), images=0), [2.0, 3.0])
    rows = [as_row(result, reference, {}) for result in (reference, Result(way, [4.0, 4.0]))]
    assert rows[1]["ratio"] == 0.625  # of 2 / 4 and 3 / 4
    assert as_table({"job": "start", "rounds": 2, "ceiling": {}, "rows": rows}) == (
        "start (2 rounds)\n\n| | seconds | range | ratio |\n|---|---|---|---|\n"
        "| import | 2.50 | 40% | 1.00 |\n| predict | 4.00 | 0% | 0.62 |"
    )


def test_each_row_adds_one_step_to_the_row_above():
    assert cumulative(("a", "b")) == [("reference", ()), ("+ a", ("a",)), ("+ b", ("a", "b"))]


@pytest.fixture
def tiny(monkeypatch) -> list:
    """Small networks of Lite's kind are built; lists when memory would be kept, and keeps none."""

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        widths = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}
        return enliven(build_model("tf_efficientnet_lite0", 4, **widths))

    kept = []
    monkeypatch.setattr(benchmark, "build", build)
    monkeypatch.setattr(engine, "keep_memory", kept.append)
    return kept


def test_every_way_forward_computes_the_same(tiny):
    expected = benchmark.make_forward("lite", 64, 2, ())()
    for _, on in cumulative(benchmark.FORWARD_STEPS):
        found = benchmark.make_forward("lite", 64, 2, on)()
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 if "bf16" in on else 1e-4)
        assert len(tiny) == ("kept memory" in on)
        tiny.clear()


def test_each_step_is_switched_on_in_its_row_and_below_alone(tiny, monkeypatch):
    seen = {}

    def watch(network: nn.Module, inputs: tuple) -> None:
        layers = list(network.modules())
        seen.update(
            {
                "known maps": len(inputs) > 1,
                "channels last": inputs[0].is_contiguous(memory_format=torch.channels_last),
                "early 1x1 convolution": type(network.fusion) is Fusion,
                "kept memory": bool(tiny),
                "bf16": torch.is_autocast_enabled("cpu"),
                "fast depthwise gradients": any(type(layer) is DepthwiseConv2d for layer in layers),
                "recomputed blocks": any(isinstance(layer, Recomputed) for layer in layers),
            }
        )

    def optimizer(weights, lr: float, fused: bool):
        seen["fused optimizer"] = fused
        return plain(weights, lr=lr, fused=fused)

    def build(name: str) -> nn.Module:
        network = tiny_build(name)
        network.register_forward_pre_hook(watch)
        return network

    plain, tiny_build = torch.optim.AdamW, benchmark.build
    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    monkeypatch.setattr(benchmark, "build", build)
    for _, on in cumulative(benchmark.TRAINING_STEPS):
        tiny.clear()
        benchmark.make_step("lite", 64, 2, on)()
        assert {step for step, switched in seen.items() if switched} == set(on)


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """The runs in the order in which they come; ways are served by threads of this process."""
    runs: list[str] = []

    def make(name: str, value: float):
        def run():
            runs.append(name)
            return Scores(torch.tensor([value, 0.0]))

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
    assert order == [*"aabb", *"ababab"]  # at first each warms up
    assert [len(result.seconds) for result in results] == [3, 3]
    assert [result.differences for result in results] == [{"score": (0, 0)}, {"score": (0.25, 0.125)}]
    assert all(result.memory > 0 for result in results)


def test_many_ways_run_a_few_at_a_time_beside_the_reference(order, monkeypatch):
    monkeypatch.setattr(benchmark, "AT_ONCE", 2)
    ways = [Way("job", name, "forward", (name, 0.0), 1) for name in "abcd"]
    job = benchmark.measure_job(ways, rounds=1, threads=1)
    assert order == [*"aabbcc", *"abc", *"aadd", *"ad"]
    rows = job["rows"]
    assert [row["way"] for row in rows] == [*"abc", *"ad"]
    assert [row["ratio"] for row in rows if row["way"] == "a"] == [1, 1]
    # Each is compared with the reference that ran in turn with it, which stands above it.
    assert rows[4]["ratio"] == rows[3]["seconds"][0] / rows[4]["seconds"][0]


def test_a_way_that_fails_is_told_by_its_job(monkeypatch):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda kind: fork)
    fails = Way("a job", "a", "table", ("nowhere",), 0)
    with pytest.raises(ValueError, match="benchmark: a job: a way has failed; its own error stands above"):
        measure([fails], rounds=1, threads=1)


def test_shares_of_the_ceiling_are_of_the_one_in_the_heading(order, monkeypatch):
    monkeypatch.setattr(benchmark, "AT_ONCE", 1)
    monkeypatch.setitem(benchmark.MAKERS, "ceiling", lambda kind: lambda: None)
    ways = [Way("job", name, "forward", (name, 0.0), 1, flops=1e9) for name in "abc"]
    job = benchmark.measure_job(ways, rounds=3, threads=1)
    for row in job["rows"]:
        assert row["share_of_ceiling"] == row["gflop_per_second"] * 1e9 / job["ceiling"]["fp32"]


def test_each_table_has_its_ceiling_only_where_operations_are_counted(order, capsys, monkeypatch):
    monkeypatch.setitem(benchmark.MAKERS, "ceiling", lambda kind: lambda: None)
    counted = Way("with", "reference", "forward", ("a", 0.0), 1, flops=1e9)
    jobs = benchmark.measure_all([counted, Way("without", "reference", "forward", ("b", 0.0), 1)], 2, 1)
    assert [job["rows"][0]["share_of_ceiling"] is None for job in jobs] == [False, True]
    text = capsys.readouterr().out
    assert "with (2 rounds; ceiling: fp32" in text
    assert "\nwithout (2 rounds)\n" in text


def test_the_tables_in_the_readme_are_those_of_the_results():
    report = json.loads((small.ROOT / "results" / "benchmark.json").read_text(encoding="utf-8"))
    readme = small.ROOT / "README.md"
    assert len(report["jobs"]) > 4
    assert all(as_table(job) in readme.read_text(encoding="utf-8") for job in report["jobs"])
    assert benchmark.filled(readme, report) == readme.read_text(encoding="utf-8")


def test_saved_figures_are_printed_and_fill_the_readme_between_its_markers(tmp_path, capsys):
    saved, readme = tmp_path / "a.json", tmp_path / "README.md"
    result = Result(Way("start", "import", "command", (), images=0), [2.0])
    job = {"job": "start", "rounds": 1, "ceiling": {}, "rows": [as_row(result, result, {})]}
    about = {"processor": "a processor", "threads": 2, "torch": "9.9"}
    saved.write_text(json.dumps({"machine": about, "jobs": [job]}))
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nbehind\n")
    assert benchmark.main(["--tables", str(saved), "--readme", str(readme)]) == 0
    table = as_table(job)
    assert table in capsys.readouterr().out
    assert readme.read_text() == (
        "before\n<!-- benchmark -->\na processor, 2 threads, torch 9.9 (`results/benchmark.json`):\n\n"
        f"{table}\n<!-- end of benchmark -->\nbehind\n"
    )
    readme.write_text("no markers")
    assert benchmark.main(["--tables", str(saved), "--readme", str(readme)]) == 2
    assert "must hold once, in this order, <!-- benchmark -->" in capsys.readouterr().err


def test_engines_without_onnxruntime_are_left_out_with_a_word(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert benchmark.engine_ways(True, tmp_path) == []
    text = "engines is left out: onnxruntime is not installed (pip install onnxruntime)"
    assert text in capsys.readouterr().out


def test_pictures_of_ones_own_are_enlarged_to_24_megapixels(tmp_path, monkeypatch):
    own = tmp_path / "own"
    small.write_pictures(own, 3)
    (own / "notes.txt").write_text("no picture")
    sides = []
    monkeypatch.setattr(benchmark, "noisy", lambda image, *size: sides.append(size) or image)
    exact, scaled = benchmark.scaled_ways(False, tmp_path, own)
    assert sides == [(4899, 4899)] * 3
    assert exact.images == scaled.images == 3
    assert (exact.arguments[1], scaled.arguments[1]) == (
        ("fast network",),
        ("fast network", "scaled decoding"),
    )
    with pytest.raises(ValueError, match="holds no pictures"):
        benchmark.picture_files(tmp_path / "enlarged" / "..")


def test_the_table_of_avas_size_is_one_that_loads(tmp_path):
    [way] = benchmark.table_ways(True, tmp_path)
    assert way.job == "table, 10,000 rows to a ready data set"
    sets = datasets.load_dataset("ava", *way.arguments)
    assert sum(map(len, sets.values())) == 10_000


def test_the_noisy_photograph_makes_a_long_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    benchmark.photograph(600, 400).save(path, quality=95)
    # 24 megapixels, 100 times as many, will be 7 MB and more.
    assert path.stat().st_size > 70_000
    assert np.ptp(np.asarray(benchmark.photograph(60, 40))) > 200


def test_an_unknown_part_and_an_existing_output_are_refused(tmp_path, capsys):
    assert benchmark.main(["--only", "forward,backward"]) == 2
    assert (
        "--only takes some of forward, step, loader, predict, start, engines, scaled, table, got 'backward'"
        in capsys.readouterr().err
    )
    (tmp_path / "a.json").write_text("{}")
    assert benchmark.main(["--output", str(tmp_path / "a.json")]) == 2
    assert "--force" in capsys.readouterr().err
