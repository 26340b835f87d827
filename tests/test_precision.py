"""Which precision "auto" means: bf16 only where the hardware computes it."""

import pytest
import torch
from small import ROOT, SHORT, train

from eamb.runtime import precision
from eamb.runtime.config import load_config
from eamb.runtime.precision import choose_precision, computes_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ("fpu avx2 avx512f avx512_bf16", None, True),
        ("fpu avx2 amx_bf16", "DEFAULT", True),
        ("fpu avx512_bf16", "avx512_core_amx", True),
        ("fpu avx512_bf16", "AVX2", False),
        ("fpu avx512_bf16", "AVX512_CORE_VNNI", False),
        ("fpu avx2 avx512f", None, False),  # oneDNN would convert
        ("", None, False),  # no Linux
    ],
)
def test_a_cpu_computes_bf16_if_it_has_it_and_onednn_may_use_it(monkeypatch, flags, limit, expected):
    monkeypatch.setattr(precision, "cpu_flags", lambda: set(flags.split()))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert computes_bf16(CPU) is expected
    assert choose_precision("auto", CPU) == ("bf16" if expected else "fp32")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_on_cuda_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda:0")) == expected


def test_other_devices_compute_in_fp32():
    assert choose_precision("auto", torch.device("mps")) == "fp32"


def test_emulated_bf16_is_warned_of_and_kept(monkeypatch, capsys):
    monkeypatch.setattr(precision, "cpu_flags", set)
    assert choose_precision("bf16", CPU) == "bf16"
    assert "cpu emulates bf16" in capsys.readouterr().err
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("fp16", CPU) == "fp16"
    assert capsys.readouterr().err == ""


def test_flags_are_read_from_where_linux_lists_them(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "model name\t: x\nflags\t\t: fpu avx2 amx_bf16\nmodel name\t: x\nflags\t\t: fpu\n"
    )
    monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "cpuinfo")
    assert precision.cpu_flags() == {"fpu", "avx2", "amx_bf16"}
    monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "missing")
    assert precision.cpu_flags() == set()


def test_a_run_keeps_what_auto_chose_and_resumes_in_it_on_any_machine(
    scored_set, tmp_path, monkeypatch, capsys
):
    output, words = tmp_path / "run", [*SHORT, "data.limit=8", "train.precision=auto"]
    for native, options in ((False, []), (True, ["--resume"])):
        monkeypatch.setattr(precision, "computes_bf16", lambda device, native=native: native)
        assert train("csv", scored_set, output, *words, *options) == 0
        assert "train.precision=auto: fp32 on cpu\n" in capsys.readouterr().out
        assert load_config([output / "config.yaml"]).train.precision == "fp32"


def test_the_recipes_of_lite_take_what_the_machine_computes_and_the_papers_stay_in_fp32():
    for path in (ROOT / "configs").glob("*.yaml"):
        lite = {"lite", "small", "demo"} & set(path.stem.split("_"))
        assert load_config([path]).train.precision == ("auto" if lite else "fp32"), path
