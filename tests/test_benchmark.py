"""The benchmark: its reference path computes the same, variants take turns, figures follow from seconds."""

import copy
import re

import numpy as np
import pytest
import small
import torch
from conftest import enliven
from torch import nn

from eamb.network.backbones import DepthwiseConv2d, Recomputed
from eamb.runtime import engine
from EAMBNet import Fusion, build_model
from scripts import benchmark
from scripts.benchmark import Variant, as_row, as_table, cumulative

WIDTHS = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}


def test_the_figures_follow_from_the_seconds_and_the_operations():
    assert benchmark.flops(nn.Conv2d(3, 8, 3, padding=1), 32) == 2 * 3 * 8 * 9 * 32 * 32
    reference, variant = (Variant(name, None, (), images=4, flops=1e9) for name in ("reference", "other"))
    scores, other = {"score": np.array([0.5, 0.5])}, {"score": np.array([0.5, 0.75]), "more": np.zeros(1)}
    beside = [(seconds, scores, 2.0) for seconds in (4.0, 2.0, 8.0)]
    row = as_row(variant, [(seconds, other, 1.5) for seconds in (1.0, 1.0, 2.0)], reference, beside)
    assert row["images_per_second"] == row["gflop_per_second"] == 4
    assert row["ratio"] == 4  # of the rounds: 4, 2 and 4
    assert (row["spread"], row["memory_gb"]) == (1, 1.5)
    assert (row["differences"], row["mean_differences"]) == ({"score": 0.25}, {"score": 0.125})


def test_where_no_pictures_are_counted_seconds_are_told():
    import_, predict = (Variant(name, benchmark.make_command, ()) for name in ("import", "predict"))
    turns = {import_: [(2.0, {}, 0.0), (3.0, {}, 0.0)], predict: [(4.0, {}, 0.0)] * 2}
    rows = [as_row(one, own, import_, turns[import_]) for one, own in turns.items()]
    assert rows[1]["ratio"] == 0.625  # of 2 / 4 and 3 / 4
    assert as_table({"job": "start", "rounds": 2, "ceiling": {}, "rows": rows}) == (
        "start (2 rounds)\n\n| | seconds | range | ratio |\n|---|---|---|---|\n"
        "| import | 2.50 | 40% | 1.00 |\n| predict | 4.00 | 0% | 0.62 |"
    )


@pytest.fixture
def tiny(monkeypatch) -> list:
    """Small networks of Lite's kind are built; lists when memory would be kept, and keeps none."""
    torch.manual_seed(0)
    network, kept = enliven(build_model("tf_efficientnet_lite0", 4, **WIDTHS)), []
    monkeypatch.setattr(benchmark, "build", lambda name: copy.deepcopy(network))
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
    switched, network, optimizer = {}, benchmark.build("lite"), torch.optim.AdamW

    def watch(network: nn.Module, inputs: tuple) -> None:
        layers = list(network.modules())
        switched["known maps"] = len(inputs) > 1
        switched["channels last"] = inputs[0].is_contiguous(memory_format=torch.channels_last)
        switched["early 1x1 convolution"] = type(network.fusion) is Fusion
        switched["kept memory"] = bool(tiny)
        switched["bf16"] = torch.is_autocast_enabled("cpu")
        switched["fast depthwise gradients"] = any(type(layer) is DepthwiseConv2d for layer in layers)
        switched["recomputed blocks"] = any(isinstance(layer, Recomputed) for layer in layers)

    def watched_optimizer(weights, lr: float, fused: bool):
        switched["fused optimizer"] = fused
        return optimizer(weights, lr=lr, fused=fused)

    network.register_forward_pre_hook(watch)
    monkeypatch.setattr(torch.optim, "AdamW", watched_optimizer)
    monkeypatch.setattr(benchmark, "build", lambda name: copy.deepcopy(network))
    monkeypatch.setattr(benchmark, "computes_bf16", lambda device: True)
    rows = cumulative(benchmark.TRAINING_STEPS)
    assert [len(steps) for steps in rows.values()] == list(range(9))
    for steps in rows.values():
        tiny.clear()
        benchmark.make_step("lite", 64, 2, steps)()
        assert {step for step, on in switched.items() if on} == set(steps)


def test_rows_in_bf16_are_left_out_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr(benchmark, "computes_bf16", lambda device: False)
    assert list(cumulative(("a", "bf16", "fast depthwise gradients", "b"))) == ["reference", "+ a", "+ b"]


def make_noted(path, name, value):
    """Notes in a file that it has run."""

    def run():
        with path.open("a") as file:
            file.write(name)
        return {"score": torch.tensor([value, 0.0])}

    return run


def test_variants_take_turns_a_few_beside_the_reference(tmp_path, monkeypatch):
    ceiling = Variant("fp32", make_noted, (tmp_path / "c", "c", 0.0), 1, 2e9)
    for name, value in {"AT_ONCE": 2, "START": "fork", "CEILINGS": [ceiling]}.items():
        monkeypatch.setattr(benchmark, name, value)
    values = {"w": 1.0, "x": 1.25, "y": 1.0, "z": 1.0}
    variants = [Variant(n, make_noted, (tmp_path / "runs", n, value), 1, 1e9) for n, value in values.items()]
    job = benchmark.measure_job("job", variants, rounds=2, threads=1)
    # In each round two runs to warm up and the one that is timed.
    assert (tmp_path / "runs").read_text() == 2 * "wwwxxxyyy" + 2 * "wwwzzz"
    rows = job["rows"]
    assert [row["variant"] for row in rows] == [*"wxy", *"wz"]
    assert [row["differences"]["score"] for row in rows] == [0, 0.25, 0, 0, 0]
    # Each is compared with the reference that ran in turn with it, which stands above it.
    ratios = np.divide(rows[3]["seconds"], rows[4]["seconds"])
    assert rows[4]["ratio"] == pytest.approx(np.median(ratios))
    for row in rows:
        assert row["share_of_ceiling"] == row["gflop_per_second"] * 1e9 / job["ceiling"]["fp32"]
        assert row["memory_gb"] > 0.05


@pytest.mark.parametrize("name", ["benchmark.json", "benchmark_avx2.json", "benchmark_photos.json"])
def test_the_tables_in_the_documents_are_those_of_the_results_and_can_be_put_in_again(name, tmp_path, capsys):
    results, page = small.ROOT / "results" / name, tmp_path / "page.md"
    text = (small.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    words = ["--tables", str(results), "--readme", str(page)]
    page.write_text(re.sub(f"(?s)(<!-- {name} -->).*(<!-- end of {name} -->)", r"\1\n\2", text))
    assert page.read_text() != text
    assert benchmark.main(words) == 0
    assert page.read_text(encoding="utf-8") == text
    jobs = small.read_json(results)["jobs"]
    assert capsys.readouterr().out == "\n\n".join(map(as_table, jobs)) + "\n"
    page.write_text("no markers")
    assert benchmark.main(words) == 2
    assert f"must hold <!-- {name} -->" in capsys.readouterr().err


def test_quick_measures_the_reference_and_all_steps_together(monkeypatch, tmp_path, capsys):
    steps = benchmark.with_steps(cumulative(("a", "b", "c")), make_noted, (tmp_path / "runs", "r"), 1)
    monkeypatch.setattr(benchmark, "measure", lambda variants, *_: [[(1.0, {}, 0.1)] * 2] * len(variants))
    monkeypatch.setitem(benchmark.PARTS, "forward", lambda options, folder: [("forward", steps)])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    output = tmp_path / "a.json"
    assert benchmark.main(["--quick", "--only", "forward", "--output", str(output)]) == 0
    report = small.read_json(output)
    [job] = report["jobs"]
    assert ([row["variant"] for row in job["rows"]], job["rounds"]) == (["reference", "+ c"], 2)
    instructions = f"{torch.backends.cpu.get_cpu_capability()} (oneDNN: AVX2)"
    assert report["machine"]["instructions"] == instructions
    assert capsys.readouterr().out.splitlines()[0].endswith(f"torch {torch.__version__}, {instructions}")
    assert benchmark.main(["--output", str(output)]) == 2  # there already
    assert benchmark.main(["--only", "forward,backward"]) == 2
    assert "--only takes some of forward, step, loader," in capsys.readouterr().err


def test_the_sets_of_avas_size_and_of_ones_own_pictures(tmp_path, monkeypatch):
    [(title, [variant])] = benchmark.table_jobs(benchmark.argparse.Namespace(quick=True), tmp_path)
    assert title == "table, 1,000 rows to a ready data set"
    assert sum(benchmark.take_turn(variant, threads=1)[1].values()) == 1_000
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
