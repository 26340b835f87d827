"""The benchmark: its reference path computes the same, variants take turns, figures follow from seconds."""

import json
import os
from functools import partial
from pathlib import Path

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
from scripts.benchmark import CPU, Scores, Variant, as_row, as_table, cumulative

WIDTHS = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}


def test_the_reference_path_computes_the_same():
    torch.manual_seed(0)
    network = enliven(build_model(small.BACKBONE, 4, **WIDTHS))
    reference, images = benchmark.as_reference(network), torch.randn(2, 3, 128, 160)
    with torch.inference_mode():
        for ours, theirs in zip(network(images), reference(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # another order of sums
    assert type(reference.fusion).__name__ == "ReferenceFusion"
    assert type(network.fusion).__name__ == "Fusion"


def test_operations_of_a_convolution_by_hand():
    assert benchmark.flops(nn.Conv2d(3, 8, 3, padding=1), 32) == 2 * 3 * 8 * 9 * 32 * 32


def test_the_figures_follow_from_the_seconds():
    reference = Variant("reference", None, (), images=4, flops=1e9)
    variant = Variant("bf16", None, (), images=4, flops=1e9, precision="bf16")
    outputs = ({"score": np.array([0.5, 0.5])}, {"score": np.array([0.5, 0.75]), "more": np.zeros(1)})
    row = as_row(variant, outputs[1], [1.0, 1.0, 2.0], 1.5, reference, outputs[0], [4.0, 2.0, 8.0])
    assert row["images_per_second"] == 4
    assert row["ratio"] == 4  # of the rounds: 4, 2 and 4
    assert row["spread"] == 1
    assert row["gflop_per_second"] == 4
    assert row["memory_gb"] == 1.5
    assert (row["differences"], row["mean_differences"]) == ({"score": 0.25}, {"score": 0.125})


def test_where_no_pictures_are_counted_seconds_are_told():
    first, second = (Variant(name, benchmark.make_command, ()) for name in ("import", "predict"))
    reference = (first, {}, [2.0, 3.0])
    rows = [as_row(*reference, 0.0, *reference), as_row(second, {}, [4.0, 4.0], 0.0, *reference)]
    assert rows[1]["ratio"] == 0.625  # of 2 / 4 and 3 / 4
    assert as_table({"job": "start", "rounds": 2, "ceiling": {}, "rows": rows}) == (
        "start (2 rounds)\n\n| | seconds | range | ratio |\n|---|---|---|---|\n"
        "| import | 2.50 | 40% | 1.00 |\n| predict | 4.00 | 0% | 0.62 |"
    )


# ---- what is switched on


@pytest.fixture
def tiny(monkeypatch) -> list:
    """Small networks of Lite's kind are built; lists when memory would be kept, and keeps none."""

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        return enliven(build_model("tf_efficientnet_lite0", 4, **WIDTHS))

    kept = []
    monkeypatch.setattr(benchmark, "build", build)
    monkeypatch.setattr(engine, "keep_memory", kept.append)
    return kept


def test_every_variant_of_forward_computes_the_same(tiny):
    expected = benchmark.make_forward("lite", 64, 2, ())()
    for steps in cumulative(benchmark.FORWARD_STEPS).values():
        output = benchmark.make_forward("lite", 64, 2, steps)()
        for ours, theirs in zip(output, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 if "bf16" in steps else 1e-4)
        assert len(tiny) == ("kept memory" in steps)
        tiny.clear()


def test_each_step_is_switched_on_in_its_row_and_below_alone(tiny, monkeypatch):
    switched = {}

    def watch(network: nn.Module, inputs: tuple) -> None:
        layers = list(network.modules())
        switched["known maps"] = len(inputs) > 1
        switched["channels last"] = inputs[0].is_contiguous(memory_format=torch.channels_last)
        switched["early 1x1 convolution"] = type(network.fusion) is Fusion
        switched["kept memory"] = bool(tiny)
        switched["bf16"] = torch.is_autocast_enabled("cpu")
        switched["fast depthwise gradients"] = any(type(layer) is DepthwiseConv2d for layer in layers)
        switched["recomputed blocks"] = any(isinstance(layer, Recomputed) for layer in layers)

    def optimizer(weights, lr: float, fused: bool):
        switched["fused optimizer"] = fused
        return plain(weights, lr=lr, fused=fused)

    def build(name: str) -> nn.Module:
        network = tiny_build(name)
        network.register_forward_pre_hook(watch)
        return network

    plain, tiny_build = torch.optim.AdamW, benchmark.build
    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    monkeypatch.setattr(benchmark, "build", build)
    rows = cumulative(benchmark.TRAINING_STEPS)
    assert [len(steps) for steps in rows.values()] == list(range(9))
    for steps in rows.values():
        tiny.clear()
        benchmark.make_step("lite", 64, 2, steps)()
        assert {step for step, on in switched.items() if on} == set(steps)


# ---- measuring, in real processes


def make_noted(path, name, value):
    """Notes in a file that it has run."""

    def run():
        with path.open("a") as file:
            file.write(name)
        return Scores(torch.tensor([value, 0.0]))

    return run


def make_dying():
    return partial(os._exit, 1)


def test_variants_take_turns_a_few_beside_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "AT_ONCE", 2)
    monkeypatch.setattr(
        benchmark, "CEILINGS", [Variant("fp32", make_noted, (tmp_path / "c", "c", 0.0), 1, 2e9)]
    )
    values = {"w": 1.0, "x": 1.25, "y": 1.0, "z": 1.0}
    variants = [Variant(n, make_noted, (tmp_path / "runs", n, value), 1, 1e9) for n, value in values.items()]
    job = benchmark.measure_job("job", variants, rounds=2, threads=1, start="fork")
    # Once for its output, then in each round two runs to warm up and the one that is timed.
    assert (tmp_path / "runs").read_text() == "wxy" + 2 * "wwwxxxyyy" + "wz" + 2 * "wwwzzz"
    rows = job["rows"]
    assert [row["variant"] for row in rows] == [*"wxy", *"wz"]
    assert [row["differences"]["score"] for row in rows] == [0, 0.25, 0, 0, 0]
    # Each is compared with the reference that ran in turn with it, which stands above it.
    ratios = np.divide(rows[3]["seconds"], rows[4]["seconds"])
    assert rows[4]["ratio"] == pytest.approx(np.median(ratios))
    assert all(row["ratio"] == 1 for row in rows if row["variant"] == "w")
    for row in rows:
        assert row["share_of_ceiling"] == row["gflop_per_second"] * 1e9 / job["ceiling"]["fp32"]
        assert row["memory_gb"] > 0.05
    assert "job (2 rounds; ceiling: fp32" in as_table(job)


def test_a_process_that_dies_is_told():
    with pytest.raises(ValueError, match="a variant's process has died"):
        benchmark.measure([Variant("dies", make_dying, ())], rounds=1, threads=1, start="fork")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says how much memory a process has")
def test_the_peak_of_memory_is_at_least_what_is_held_and_at_most_what_there_is():
    page = os.sysconf("SC_PAGE_SIZE") / 1e9
    held = int(Path("/proc/self/statm").read_text().split()[1]) * page
    # The kernel's two counts are up to some pages apart.
    assert 0.95 * held < engine.peak_memory(CPU) < os.sysconf("SC_PHYS_PAGES") * page


# ---- tables and the command


def test_the_tables_in_the_documents_are_those_of_the_results():
    report = json.loads((small.ROOT / "results" / "benchmark.json").read_text(encoding="utf-8"))
    page = small.ROOT / "docs" / "performance.md"
    assert len(report["jobs"]) > 4
    assert benchmark.filled(page, report) == page.read_text(encoding="utf-8")


def test_saved_figures_are_printed_and_fill_a_page_between_its_markers(tmp_path, capsys):
    saved, page = tmp_path / "a.json", tmp_path / "page.md"
    only = (Variant("import", benchmark.make_command, ()), {}, [2.0])
    job = {"job": "start", "rounds": 1, "ceiling": {}, "rows": [as_row(*only, 0.0, *only)]}
    about = {"processor": "a processor", "threads": 2, "torch": "9.9"}
    saved.write_text(json.dumps({"machine": about, "jobs": [job]}))
    page.write_text("before\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nbehind\n")
    assert benchmark.main(["--tables", str(saved), "--readme", str(page)]) == 0
    assert as_table(job) in capsys.readouterr().out
    assert page.read_text() == (
        "before\n<!-- benchmark -->\na processor, 2 threads, torch 9.9 (`results/benchmark.json`):\n\n"
        f"{as_table(job)}\n<!-- end of benchmark -->\nbehind\n"
    )
    page.write_text("no markers")
    assert benchmark.main(["--tables", str(saved), "--readme", str(page)]) == 2
    assert "must hold once, in this order, <!-- benchmark -->" in capsys.readouterr().err


def test_quick_measures_the_reference_and_all_steps_together(monkeypatch, tmp_path):
    steps = benchmark.with_steps(cumulative(("a", "b", "c")), make_noted, (), 1)
    measured = []

    def measure_job(title, variants, rounds, threads):
        measured.extend(variant.name for variant in variants)
        return {
            "job": title,
            "rounds": rounds,
            "ceiling": {},
            "rows": [as_row(steps[0], {}, [1.0], 0.0, steps[0], {}, [1.0])],
        }

    monkeypatch.setattr(benchmark, "measure_job", measure_job)
    monkeypatch.setitem(benchmark.PARTS, "forward", lambda options, folder: [("forward", steps)])
    output = tmp_path / "a.json"
    assert benchmark.main(["--quick", "--only", "forward", "--output", str(output)]) == 0
    assert measured == ["reference", "+ c"]
    assert [job["rounds"] for job in small.read_json(output)["jobs"]] == [2]
    assert benchmark.main(["--output", str(output)]) == 2  # there already


def test_an_unknown_part_is_refused(capsys):
    assert benchmark.main(["--only", "forward,backward"]) == 2
    assert "--only takes some of forward, step, loader," in capsys.readouterr().err


def test_the_table_of_avas_size_is_one_that_loads(tmp_path):
    options = benchmark.argparse.Namespace(quick=True)
    [(title, [variant])] = benchmark.table_jobs(options, tmp_path)
    assert title == "table, 1,000 rows to a ready data set"
    sets = datasets.load_dataset("ava", *variant.arguments)
    assert sum(map(len, sets.values())) == 1_000


def test_pictures_of_ones_own_are_enlarged_to_24_megapixels(tmp_path, monkeypatch):
    small.write_pictures(tmp_path / "own", 3)
    (tmp_path / "own" / "notes.txt").write_text("no picture")
    sides = []
    monkeypatch.setattr(benchmark, "noisy", lambda image, *size: sides.append(size) or image)
    options = benchmark.argparse.Namespace(quick=False, pictures=tmp_path / "own")
    [(_, (exact, scaled))] = benchmark.scaled_jobs(options, tmp_path)
    assert sides == [(4899, 4899)] * 3
    assert exact.images == scaled.images == 3
    assert exact.arguments[1] == ("fast network",)
    assert scaled.arguments[1] == ("fast network", "scaled decoding")


def test_the_noisy_photograph_makes_a_long_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    benchmark.photograph(600, 400).save(path, quality=95)
    # 24 megapixels, 100 times as many, will be 7 MB and more.
    assert path.stat().st_size > 70_000
