"""The tasks: which settings and sets go with each, their losses, and what is read for them."""

import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small import (
    UNTRAINED,
    WORDS,
    evaluate,
    make_para,
    read_csv,
    read_json,
    read_log,
    train,
    write_csv,
    write_pictures,
)

from datasets import Batch, load_dataset
from eamb.network.names import NETWORKS, PAIR_NETWORKS
from eamb.network.outputs import EMOTIONS, Output, Scale
from eamb.readers.para import PARA_BINS
from eamb.readers.rated import DataOptions, RatedSet
from eamb.runtime.config import load_config
from eamb.training.tasks import choose_task, layer_of_mean
from eamb.weights import checkpoint
from eamb.weights.registry import kind_of, name_of
from main import main
from metrics import compare_distributions, distribution_metrics

SCORES = Scale("score", 1, 5, 3, offset=1, factor=4)

# ---- settings and sets that don't go together

PAIRS = ["--dataset", "pairs", "--task", "series", "--network", "resnet"]
EMOTION = ["--task", "emotion"]
IMPOSSIBLE = [
    ([*EMOTION, "loss.emotion_weight=1"], "loss.emotion_weight=1.0 means nothing for this run of the task"),
    (["loss.class_weights=balanced", UNTRAINED], "loss.class_weights=balanced means nothing"),
    (["model.network=linear", "model.without=emotion"], "model.without=emotion means nothing"),
    ([*EMOTION, "train.emotion_maps=maps"], "train.emotion_maps=maps means nothing"),
    (["train.emotion_maps=maps", "model.emotion_batchnorm=official", UNTRAINED], "emotion_maps=maps means"),
    (["data.crop=true", UNTRAINED], "data.crop=True means nothing"),
    (["model.symmetric=false", UNTRAINED], "model.symmetric=False means nothing"),
    ([*PAIRS, "train.validate_on=test"], "train.validate_on=test means nothing"),
    ([*PAIRS, "data.folds=5"], "data.folds=5 means nothing for this run of the task series; leave it out"),
    ([*EMOTION, "model.emotion_backbone=resnet50"], "model.emotion_backbone=resnet50 means nothing"),
    ([*EMOTION, "model.emotions=awe,bogus"], "names awe, bogus; csv has awe, amuse"),
    (["model.without=detail,contxt", UNTRAINED], "without must name some of .* got 'contxt'"),
    (["model.without=detail,context", UNTRAINED], "needs its detail or its context branch"),
    (["--task", "series", "--network", "resnet"], "--task series takes one set of .*; got csv and resnet"),
    ([*PAIRS, "--network", "linear"], r"a network of resnet, paunit \(--network\); got pairs and linear"),
    ([*PAIRS, "--weights", "SCORE"], "a network for the task aesthetics, which cannot start one for series"),
    (["--weights", "EMOTION"], "cannot start one for aesthetics; an emotion branch alone is given with --em"),
    (["--weights", "SCORE", "model.width=24"], "has model.width=16 and this run model.width=24; give the fo"),
    ([*EMOTION, "--weights", "EMOTION", "model.emotion_levels=4"], "has model.emotion_levels=3 and this run"),
    (
        ["--emotion-checkpoint", "EMOTION", "model.emotion_levels=4"],
        "has the emotion levels 3; the network's",
    ),
    ([*EMOTION, "model.emotion_backbone=x"], "model.emotion_backbone=x means nothing"),
    ([*EMOTION, "model.emotion_levels=5"], "emotion_levels must be 3 or 4, got 5"),
    (["model.network=linear", "model.emotion_levels=4"], "model.emotion_levels=4 means nothing"),
    (["--weights", "SCORE", "model.without=detail"], "has model.without= and this run model.without=detail"),
    ([*EMOTION, "--emotion-checkpoint", "EMOTION"], "-checkpoint is for --task aesthetics and a net"),
]


@pytest.mark.parametrize(("words", "said"), IMPOSSIBLE)
def test_what_does_not_go_together_is_refused(
    words, said, series_set, score_run, emotion_run, scored_set, tmp_path, capsys
):
    files = {"SCORE": str(score_run / "best.pt"), "EMOTION": str(emotion_run / "best.pt")}
    words, root = [files.get(word, word) for word in words], series_set
    if "--dataset" not in words:
        words, root = ["--dataset", "csv", *words], scored_set
    assert main(["train", *WORDS, *words, "--data-root", str(root), "--output", str(tmp_path / "run")]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_an_emotion_training_needs_pictures_of_every_emotion(counts_set, tmp_path, capsys):
    votes = {"emotion_awe": [1] * 24, "emotion_fear": [int(i % 6 == 5) for i in range(24)]}  # in test only
    votes_set = write_csv(tmp_path / "set", votes)
    assert train("csv", counts_set, tmp_path / "run", "loss.emotion_weight=1") == 2
    assert "csv train has no emotions; loss.emotion_weight needs them" in capsys.readouterr().err
    assert train("csv", votes_set, tmp_path / "run", *EMOTION) == 2
    assert "fear" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- networks and kinds of ratings


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_kind_and_trains_a_step(name, scored_set, series_set, tmp_path):
    words = ["--network", name, UNTRAINED, "data.limit=8", "train.score_test=false"]
    task, dataset, root = "aesthetics", "csv", scored_set
    if name in PAIR_NETWORKS:
        task, dataset, root = "series", "pairs", series_set
    assert train(dataset, root, tmp_path / "run", "--task", task, *words) == 0
    weights, state = checkpoint.load_training(tmp_path / "run" / "last.pt")
    network = weights.build()
    assert name_of(network) == weights.description["network"] == name
    assert kind_of(network).task == weights.task == task
    assert any(key.startswith(kind_of(network).last_layer) for key in weights.tensors)
    moments = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    assert any(value.any() for value in moments if value.ndim > 1)


@pytest.mark.parametrize("without", ["emotion", "attention,detail"])
def test_ablations_train_and_are_evaluated(without, scored_set, tmp_path, capsys):
    run, words = tmp_path / "run", [f"model.without={without}", UNTRAINED, "data.limit=8"]
    assert train("csv", scored_set, run, *words) == 0
    weights = checkpoint.load_weights(run / "best.pt")
    assert weights.description["architecture"]["without"] == without.split(",")
    assert evaluate(run / "best.pt", "csv", scored_set, tmp_path / "again") == 0
    first, again = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("run/test", "again"))
    assert first == again
    if without == "emotion":
        assert (weights.emotions, weights.emotion_branch) == ((), "none")
        assert b"emotion" not in first.splitlines()[0]
        options = ["predict", str(scored_set / "images"), "--checkpoint", str(run / "best.pt")]
        assert main([*options, "--maps", str(tmp_path / "maps"), "--workers", "0"]) == 2
        assert "maps need a .pt or .safetensors file with an emotion branch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, kind, outputs, offset",
    [
        (["data.target=label"], "label", 1, 0),
        (["data.target=score"], "score", 1, 1),
        (["data.target=distribution"], "distribution", 4, 0),
        (["data.target=score", "data.score_range=official"], "score", 1, 0),
    ],
)
def test_every_kind_of_rating_trains(words, kind, outputs, offset, counts_set, tmp_path):
    assert train("csv", counts_set, tmp_path / "run", *words, UNTRAINED, "data.limit=8") == 0
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert (weights.scale.kind, weights.scale.outputs, weights.scale.offset) == (kind, outputs, offset)
    assert weights.tensors["head.5.bias"].shape == (outputs,)
    metrics = read_json(tmp_path / "run" / "test" / "metrics.json")["metrics"]
    assert ("emd2" in metrics) == (kind == "distribution")


MODES = {
    "votes": ["data.only_with_votes=true"],
    "both": ["loss.emd_weight=0.3", "loss.mean_weight=1", "loss.correlation_weight=0.1"],
}


@pytest.mark.parametrize("mode", MODES)
def test_votes_of_some_pictures_train_alone_or_with_means_and_count_where_known(mode, tmp_path, capsys):
    root, run = make_para(tmp_path / "set", voted=range(0, 60, 2)), tmp_path / "run"
    words = [*MODES[mode], "data.target=distribution", UNTRAINED]
    assert train("para", root, run, *words) == 0
    weights = checkpoint.load_weights(run / "best.pt")
    assert (weights.scale.bins, weights.tensors["head.5.bias"].shape) == (PARA_BINS, (9,))
    splits = load_dataset("para", root, options=DataOptions(target="distribution"))
    learned = splits["train"].take(splits["train"].with_votes) if mode == "votes" else splits["train"]
    assert np.array_equal(weights.training_ids, learned.id_hashes)
    [line] = read_log(run)
    assert line["train_pictures"] == len(learned) // 8 * 8 and math.isfinite(line["train_loss"])
    found = read_json(run / "test" / "metrics.json")["metrics"]
    assert {"emd1", "emd2", "std_srcc", "std_mae", "coverage_50", "coverage_80"} < set(found)
    capsys.readouterr()
    # Without data.target: the weights say that votes are to be read.
    assert evaluate(run / "best.pt", "para", root, tmp_path / "out", "--split", "train") == 0
    kept, known = read_json(tmp_path / "out" / "metrics.json"), splits["train"].with_votes
    said = f"pictures with votes, for EMD, spread and central shares: {known.sum()}"
    assert said in kept["notes"] and said in capsys.readouterr().out
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    shares = [[float(row[f"p_{value:g}"]) for value in PARA_BINS] for row in rows]
    votes = splits["train"].distributions[known]
    expected = distribution_metrics(compare_distributions(np.array(shares)[known], votes, PARA_BINS))
    assert expected == {name: kept["metrics"][name] for name in expected}
    assert kept["metrics"]["n"] == len(known) > known.sum()


def test_validating_on_test_leaves_out_pictures_without_votes_from_both_other_splits(tmp_path):
    root, run = make_para(tmp_path / "set", voted=range(0, 60, 2)), tmp_path / "run"
    words = ["data.target=distribution", "data.only_with_votes=true", UNTRAINED]
    words += ["train.validate_on=test", "train.score_test=false"]
    assert train("para", root, run, *words) == 0
    sets = load_dataset("para", root, options=DataOptions(target="distribution"))
    voted = [sets[split].take(sets[split].with_votes).id_hashes for split in ("train", "val")]
    assert np.array_equal(checkpoint.load_weights(run / "best.pt").training_ids, np.union1d(*voted))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data.target=distribution", r"the votes of \d+ of \d+ training pictures of para are not known"),
        ("data.target=distribution loss.emd_weight=0", "loss.mean_weight=0 nothing is learned"),
        ("loss.mean_weight=1", "networks that predict distributions, and this one predicts a score; set"),
        ("loss.emd_weight=0", "networks that predict distributions, and this one predicts a score; set"),
        (
            "data.target=distribution data.only_with_votes=true data.distill=t.csv loss.distill_weight=1",
            "data.distill is for scores, or means with loss.mean_weight above 0",
        ),
        ("data.only_with_votes=true", "datasets: no votes are known for the train split of para, so"),
    ],
)
def test_weights_of_the_loss_that_would_teach_nothing_are_refused(words, said, tmp_path, capsys):
    root = make_para(tmp_path / "set", voted=range(0, 60, 2))
    assert train("para", root, tmp_path / "run", UNTRAINED, *words.split()) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_the_advice_for_a_set_without_votes_works(tmp_path, capsys):
    root = make_para(tmp_path / "set")
    words = [
        "data.target=distribution",
        "loss.mean_weight=1",
        "loss.emd_weight=0.1",
        UNTRAINED,
        "train.score_test=false",
    ]
    assert train("para", root, tmp_path / "run", *words) == 2
    said = capsys.readouterr().err
    assert "(there is no PARA-GiaaTrain-distributions.csv beside it)" in said
    advice = said.partition(" has none; use ")[2].strip().removesuffix(".").split()
    assert train("para", root, tmp_path / "run", *words, *advice) == 0
    assert checkpoint.load_weights(tmp_path / "run" / "best.pt").scale.kind == "score"


def test_iae_over_a_branch_that_knows_more_emotions_predicts_high_and_low_and_emotions(tmp_path):
    nine = (*EMOTIONS, "neutral")
    votes = {f"emotion_{name}": [int(i // 6 % 4 == k % 4) for i in range(24)] for k, name in enumerate(nine)}
    words = [*EMOTION, "train.score_test=false", "train.batch_size=16"]
    assert train("csv", write_csv(tmp_path / "votes", votes), tmp_path / "branch", *words) == 0
    root, run = tmp_path / "iae", tmp_path / "run"
    given = ["--emotion-checkpoint", tmp_path / "branch/best.pt"]
    for i, name in enumerate(write_pictures(root / "images", 24)):
        (root / "images" / name).rename(root / "images" / f"{i}.png")
    for split, rows in {"train": range(16), "val": range(16, 20), "test": range(20, 24)}.items():
        for kind, classes in (("aes", 2), ("emo", 8)):
            (root / f"{split}_{kind}_list.txt").write_text("".join(f"{i} {i % classes}\n" for i in rows))
    assert train("IAE", root, run, *given) == 0
    assert checkpoint.load_weights(run / "best.pt").description["best"]["measure"] == "accuracy"
    found = read_json(run / "test" / "metrics.json")
    assert {"accuracy", "auc"} <= set(found["metrics"])
    assert (found["majority_accuracy"], found["positive_emotion_accuracy"]) == (0.5, 0.5)
    assert any("accuracy of the rule 'positive emotion = high'" in note for note in found["notes"])
    assert found["emotions"]["metrics"]["chance"] == 1 / 8  # neutral does not compete
    assert np.sum(found["emotions"]["confusion"]) == np.sum(found["emotions"]["high_and_low"]["labels"]) == 4
    assert not (run / "test" / "scatter.png").exists()
    for row in read_csv(run / "test" / "predictions.csv"):
        assert 0 < float(row["prediction"]) < 1
        assert row["emotion"] in EMOTIONS
    (root / "val_emo_list.txt").unlink()  # pictures without an emotion still have their high or low
    again = [*given, "loss.emotion_weight=1", "train.score_test=false"]
    assert train("iae", root, tmp_path / "again", *again) == 0


# ---- emotions of several sets


@pytest.fixture(scope="module")
def united_run(tmp_path_factory):
    """The folders of two sets, named with the separator of paths, and of a run on both.

    The first has votes for an emotion that FI has and for one that it has not. The second is like FI: twelve
    pictures of each of two emotions, split by the hash of their names.
    """
    votes = {"emotion_neutral": [i % 5 + 1 for i in range(24)], "emotion_awe": [i % 3 for i in range(24)]}
    votes_set = write_csv(tmp_path_factory.mktemp("votes") / f"c{os.pathsep}d", votes, seed=6)
    fi_set = tmp_path_factory.mktemp("fi") / f"a{os.pathsep}b"
    for seed, kind in enumerate(("awe", "fear")):
        write_pictures(fi_set / kind, 12, seed=50 + seed)
    output = tmp_path_factory.mktemp("runs") / "united"
    second = ["--dataset", "fi", "--data-root", fi_set, "data.repeat=1,3"]
    assert train("csv", votes_set, output, *EMOTION, *second) == 0
    return votes_set, fi_set, output


def test_several_sets_train_one_branch_and_are_tested_each_on_its_own(united_run, tmp_path, capsys):
    votes_set, fi_set, run = united_run
    weights = checkpoint.load_weights(run / "best.pt")
    assert weights.description["dataset"] == "csv+fi"
    assert weights.emotions == ("awe", "fear", "neutral")
    for name, classes, root in (("csv", ["awe", "neutral"], votes_set), ("fi", ["awe", "fear"], fi_set)):
        rows = read_csv(run / "test" / name / "predictions.csv")
        assert sorted(list(rows[0])[2:]) == [f"emotion_{c}" for c in classes]
        data = load_dataset(name, root, ("train", "test"))
        assert [row["id"] for row in rows] == data["test"].ids
        assert not np.isin(data["test"].id_hashes, weights.training_ids).any()
        assert np.isin(data["train"].id_hashes, weights.training_ids).all()
        # The same report as `evaluate` gives, which does not take it for another set.
        assert evaluate(run / "best.pt", name, root, tmp_path / name) == 0
        found, before = (read_json(f / "metrics.json") for f in (tmp_path / name, run / "test" / name))
        assert found["metrics"] == before["metrics"]
    [line] = read_log(run)
    assert line["train_pictures"] == (16 + 3 * len(data["train"])) // 8 * 8
    second = ["--dataset", "fi", "--data-root", fi_set]
    assert evaluate(run / "best.pt", "csv", votes_set, tmp_path / "out", *second) == 2
    assert "evaluation: one data set at a time" in capsys.readouterr().err


def test_each_set_is_measured_with_its_own_shares_of_the_classes(united_run, tmp_path):
    votes_set, fi_set, run = united_run
    weights = checkpoint.load_weights(run / "best.pt")
    shift = weights.description["class_shift"]
    assert shift["csv"] == {"awe": 0, "neutral": 0}
    ours, fi = (load_dataset(n, r, ("train",))["train"] for n, r in (("csv", votes_set), ("fi", fi_set)))
    of_awe = [part.emotions[:, part.emotion_classes.index("awe")].mean() for part in (ours, fi)]
    assert shift["fi"]["awe"] == shift["fi"]["fear"] == pytest.approx(math.log(of_awe[1] / of_awe[0]))
    odds = []
    for folder, given in (("without", {}), ("tilted", {"fi": {"awe": 1.0, "fear": 0.0}})):
        changed = replace(weights, description={**weights.description, "class_shift": given})
        checkpoint.export_weights(tmp_path / f"{folder}.safetensors", changed)
        assert evaluate(tmp_path / f"{folder}.safetensors", "fi", fi_set, tmp_path / folder) == 0
        rows = read_csv(tmp_path / folder / "predictions.csv")
        odds.append([float(r["emotion_awe"]) / float(r["emotion_fear"]) for r in rows])
    assert np.allclose(odds[1], math.e * np.array(odds[0]), rtol=1e-4)


# ---- what is read


def test_validate_on_test_trains_on_the_validation_pictures_too(scored_set, tmp_path):
    words = ["train.validate_on=test", "train.score_test=false", UNTRAINED, "train.batch_size=20"]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    data = load_dataset("csv", scored_set)
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert np.array_equal(weights.training_ids, np.union1d(data["train"].id_hashes, data["val"].id_hashes))
    assert set(weights.description["splits"]) == {"train", "test"}
    assert weights.description["splits"]["test"] == data["test"].sha256
    [line] = read_log(tmp_path / "run")
    assert (line["train_pictures"], line["val_n"]) == (20, 4)


# ---- losses


def loss_of(prediction=(), scale: Scale = SCORES, words=(), logits=(), votes=(), **labels) -> torch.Tensor:
    """The loss of a task; the words of its config name it."""
    count, votes = len(prediction) or len(logits), np.array(votes)
    fields = {name: torch.tensor(value) for name, value in labels.items()}
    fields = {"scores": None, "distributions": None, "emotions": torch.tensor(votes), **fields}
    batch = Batch(torch.arange(count), torch.zeros(count), broken=[], **fields)
    rated = RatedSet("csv", "train", "", ["a"], ["a"], np.array([1.0]), scale)
    if len(votes):
        rated = replace(rated, emotions=votes, emotion_classes=EMOTIONS[: votes.shape[1]])
    output = Output(torch.as_tensor(prediction), torch.tensor(logits), torch.zeros(count))
    return choose_task(load_config(words=words)).loss(rated)(output, batch)


P = {"prediction": [[0.5], [0.25]], "scores": [5.0, 3.0]}  # 5 is p = 1 and 3 is p = 0.5
GUESSED, TRUE = np.array([0.2, 0.9, 0.4]), np.array([0.0, 0.75, 1.0])
CORRELATION = np.corrcoef(GUESSED, TRUE)[0, 1]
P3 = {"prediction": [[0.2], [0.9], [0.4]], "scores": [1.0, 4.0, 5.0]}
LABELS = {"prediction": [[0.9], [0.9]], "scores": [5.0, 7.0]}
BINS = {"scale": Scale("distribution", 1, 2, 1.5, bins=(1.0, 2.0)), "prediction": [[1.0, 0.0], [0.5, 0.5]]}
BINS["distributions"] = [[0.0, 1.0], [0.5, 0.5]]  # cumulative gaps of (1, 0) and (0, 0)
VOTES = {"logits": [[0.0, math.log(3)]] * 4, "votes": [[0.0, 1.0]] + [[1.0, 0.0]] * 3}  # p is 1/4 and 3/4
PAIRED = {"prediction": [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], "scores": [0.8, 0.5]}
BOTH = P | {name: values[:2] for name, values in VOTES.items()}


@pytest.mark.parametrize(
    ("words", "arguments", "expected"),
    [
        ("", P, (0.25 + 0.0625) / 2),
        ("loss.correlation_weight=0.5", P3, np.mean((GUESSED - TRUE) ** 2) + 0.5 * (1 - CORRELATION)),
        ("", {"scale": Scale("label", 1, 10, 5, inclusive=True), **LABELS}, -math.log(0.9)),
        ("", {"scale": Scale("label", 1, 10, 5), **LABELS}, -(math.log(0.9) + math.log(0.1)) / 2),
        ("", BINS, math.sqrt(0.5) / 2),
        ("loss.emd_r=1", BINS, 0.25),
        ("loss.emd_reduction=batch", BINS, 0.5),
        ("task=emotion", VOTES, -(3 * math.log(0.25) + math.log(0.75)) / 4),
        ("task=emotion loss.class_weights=balanced", VOTES, -(math.log(0.25) + math.log(0.75)) / 2),
        ("loss.emotion_weight=0.1", BOTH, (0.25 + 0.0625) / 2 - 0.1 * (math.log(0.25) + math.log(0.75)) / 2),
        ("", BOTH, (0.25 + 0.0625) / 2),
        # The odds that the first photograph is preferred are 1 and 0: softplus(odds) - share * odds.
        ("task=series loss.preference=share", PAIRED, (math.log(1 + math.e) - 0.8 + math.log(2)) / 2),
        ("task=series loss.preference=majority", PAIRED, (math.log(1 + math.e) - 1 + math.log(2)) / 2),
    ],
)
def test_each_kind_of_rating_has_its_loss_as_the_config_says(words, arguments, expected):
    assert loss_of(words=words.split(), **arguments).item() == pytest.approx(expected, abs=1e-6)


def test_the_mean_is_learned_from_all_pictures_and_the_shape_where_votes_are_known():
    nobody = [math.nan, math.nan]
    known = {**BINS, "scores": [2.0, 1.0], "distributions": [[0.0, 1.0], nobody]}  # predicted: 1.0 and 1.5
    logits = torch.tensor([[0.4, 0.1], [0.2, -0.3]])
    for words, of_votes, of_means in (("1 0", 1, 0), ("0 1", 0, 1), ("0.5 2", 0.5, 2)):
        emd, mean = words.split()
        words = [f"loss.emd_weight={emd}", f"loss.mean_weight={mean}"]
        expected = of_votes * math.sqrt(0.5) + of_means * (1 + 0.25) / 2
        assert loss_of(words=words, **known).item() == pytest.approx(expected)
        leaf = logits.clone().requires_grad_()
        loss_of(words=words, **known | {"prediction": leaf.softmax(dim=1)}).backward()
        assert leaf.grad.isfinite().all() and leaf.grad[0].any()
        assert bool(leaf.grad[1].any()) == bool(of_means)
    words = ["loss.emd_weight=0", "loss.mean_weight=0.5", "loss.correlation_weight=2"]  # PLCC -1
    assert loss_of(words=words, **known).item() == pytest.approx(0.5 * (0.625 + 2 * 2))


def test_a_layer_for_the_mean_of_distributions_is_exact_around_a_bell_and_keeps_the_order_of_tilted_ones():
    bins, generator = torch.tensor(PARA_BINS, dtype=torch.float64), torch.Generator().manual_seed(0)
    bell, h = (
        torch.softmax(-((bins - 3) ** 2) / (2 * 0.8**2), dim=0),
        torch.randn(200, 6, generator=generator),
    )
    scale, h = Scale("distribution", 1, 5, 3, bins=PARA_BINS), h.double()

    def both(weight):  # (9, 6) -> the sigmoids of the new layer and the means of the old one, (200,) each
        new, bias = layer_of_mean(weight, bell.log(), scale)
        return torch.sigmoid(h @ new.T + bias)[:, 0], (
            torch.softmax(h @ weight.T + bell.log(), 1) @ bins - 1
        ) / 4

    near = 1e-3 * torch.randn(9, 6, generator=generator).double()
    torch.testing.assert_close(
        *both(near), rtol=0, atol=1e-5
    )  # the error grows with the square of the logits
    assert both(near)[1].std() > 5e-5
    tilted = torch.outer(bins, torch.randn(6, generator=generator).double())
    assert spearmanr(*both(tilted)).statistic == pytest.approx(1)
