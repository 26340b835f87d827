"""Shared weights: the same network in half the bytes, with licence and source inside."""

import sys

import pytest
import torch
from lively import build_lively, write_weights

from eamb.weights import checkpoint
from scripts import export_weights


def export(monkeypatch, *words) -> int:
    monkeypatch.setattr(
        sys, "argv", ["export_weights.py", *map(str, words), "--licence", "L", "--source", "S"]
    )
    return export_weights.main()


def test_half_of_the_bytes_give_the_same_score(tmp_path, monkeypatch):
    path, whole, half = (
        tmp_path / name for name in ("best.safetensors", "whole.safetensors", "half.safetensors")
    )
    write_weights(path, build_lively())
    assert export(monkeypatch, path, whole) == export(monkeypatch, path, half, "--half") == 0
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    exact, close = checkpoint.load_weights(whole), checkpoint.load_weights(half)
    assert (close.description["licence"], close.description["source"]) == ("L", "S")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # float16 has 11 significant bits: each weight is off by up to 5e-4 of itself.
        torch.testing.assert_close(
            close.build()(images).prediction, exact.build()(images).prediction, atol=5e-3, rtol=0
        )


def test_weights_too_large_for_half_precision_are_refused_by_name(tmp_path, monkeypatch, capsys):
    network = build_lively()
    with torch.no_grad():
        next(iter(network.parameters())).fill_(1e6)
    name = next(name for name, _ in network.named_parameters())
    write_weights(tmp_path / "best.safetensors", network)
    assert export(monkeypatch, tmp_path / "best.safetensors", tmp_path / "half.safetensors", "--half") == 2
    assert f"{name} in " in capsys.readouterr().err
    assert not (tmp_path / "half.safetensors").exists()


@pytest.mark.parametrize("words", [("--force",), ()])
def test_a_file_that_is_there_is_only_overwritten_when_asked(words, tmp_path, monkeypatch):
    write_weights(tmp_path / "best.safetensors", build_lively())
    (tmp_path / "out.safetensors").write_bytes(b"old")
    done = export(monkeypatch, tmp_path / "best.safetensors", tmp_path / "out.safetensors", *words)
    assert done == (0 if words else 2)
    assert ((tmp_path / "out.safetensors").read_bytes() == b"old") == (not words)
