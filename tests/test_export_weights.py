"""Shared weights: the same network in half the bytes, with licence and source inside; folders for a hub."""

import sys

import pytest
import small
import torch
from huggingface_hub import ModelCard
from lively import build_lively, write_weights

from eamb.weights import checkpoint
from EAMBNet import EAMBNet, LinearNetwork
from scripts import export_weights, model_card

GIVEN = ("--licence", "L", "--source", "S")


def export(monkeypatch, *words, given=GIVEN) -> int:
    monkeypatch.setattr(sys, "argv", ["export_weights.py", *map(str, words), *given])
    return export_weights.main()


def test_half_of_the_bytes_give_the_same_score(tmp_path, monkeypatch):
    path, whole, half = (
        tmp_path / name for name in ("best.safetensors", "whole.safetensors", "half.safetensors")
    )
    write_weights(path, build_lively())
    assert export(monkeypatch, path, whole) == export(monkeypatch, path, half, "--half") == 0
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    (tmp_path / "other").touch()
    assert whole.stat().st_mode == (tmp_path / "other").stat().st_mode  # who may read it
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


# ---- folders for a hub


@pytest.fixture
def weights(lively_model, tmp_path):
    return write_weights(
        tmp_path / "best.safetensors", lively_model, licence="mit", source="Pictures of ours"
    )


def test_a_folder_for_a_hub_has_the_weights_as_they_were_stored_and_a_card_that_can_be_completed(
    weights, tmp_path, monkeypatch
):
    folder = tmp_path / "new" / "hub"
    assert export(monkeypatch, weights, "--hub", folder, "--half", given=()) == 0
    read = checkpoint.load_weights(folder)
    assert {value.dtype for value in read.tensors.values()} == {torch.float16, torch.int64}
    assert EAMBNet.from_pretrained(folder).description["source"] == "Pictures of ours"
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.datasets, card.data.library_name) == ("mit", ["para"], "pytorch")
    report = {"task": "aesthetics", "dataset": "para", "protocol": "p", "split": "test", "intervals_95": {}}
    report |= {"weights_sha256": read.sha256, "metrics": {"srcc": 0.9}}
    small.write_json(tmp_path / "metrics.json", report)
    assert (
        model_card.main([*map(str, (folder, folder / "README.md", "--metrics", tmp_path / "metrics.json"))])
        == 0
    )
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_value == 0.9 and "| SRCC | 0.9000 |" in card.text
    assert export(monkeypatch, weights, "--hub", folder, "--force", given=GIVEN) == 0  # the card stays
    assert "| SRCC | 0.9000 |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("begins", "licence"), [("", "mit"), ("---\nlicense: other\n---\n\n", "other")])
def test_a_card_that_is_given_becomes_the_readme_and_gets_a_head_if_it_has_none(
    begins, licence, weights, tmp_path, monkeypatch
):
    (tmp_path / "card.md").write_text(
        f"{begins}# Mine\n![a](../b.png) [a](../b.md#c) [`d`](#d) [e](https://e.org)\n"
    )
    assert (
        export(monkeypatch, weights, "--hub", tmp_path / "hub", "--card", tmp_path / "card.md", given=()) == 0
    )
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license == licence and card.text.strip() == "# Mine\na a [`d`](#d) [e](https://e.org)"


def test_what_gives_no_folder_is_one_sentence_and_writes_nothing(weights, tmp_path, monkeypatch, capsys):
    write_weights(bare := tmp_path / "bare.safetensors", build_lively())
    linear = LinearNetwork(small.BACKBONE, 1, 0.0)
    write_weights(pooled := tmp_path / "pooled.safetensors", linear, licence="mit", source="ours")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    hub = ("--hub", tmp_path / "hub")
    refused = [
        ((bare, *hub), "bare.safetensors carries no licence; give --licence TEXT"),
        ((pooled, *hub), "is of a 'linear' network; a hub's folder holds an eambnet"),
        ((weights,), "give FILE.safetensors, or --hub FOLDER"),
        ((weights, tmp_path / "a.safetensors", *hub), "give FILE.safetensors, or --hub FOLDER"),
        ((weights, *hub, "--card", tmp_path / "none.md"), "none.md"),
        ((weights, "--hub", tmp_path / "full"), "full holds config.json already"),
    ]
    for words, said in refused:
        assert export(monkeypatch, *words, given=()) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "hub").exists() and (tmp_path / "full" / "config.json").read_text() == "mine"
