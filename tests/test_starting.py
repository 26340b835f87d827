"""First weights: of the emotion branch, of whole networks, of the official code; what cannot start a run."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from small import (
    BACKBONE,
    STILL,
    UNTRAINED,
    evaluate,
    parameters,
    read_csv,
    read_log,
    same,
    tensors,
    train,
    write_csv,
)

from datasets import load_dataset
from eamb.files import file_hash
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers.rated import RatedSet
from eamb.runtime.config import load_config
from eamb.training.starting import build_network, read_sources
from eamb.training.tasks import choose_task, layer_of_mean
from eamb.weights import checkpoint
from eamb.weights.checkpoint import load_weights
from EAMBNet import EmotionNetwork, build_model


@pytest.mark.parametrize("branch", ["emotion_run", "score_run"])
def test_a_training_reads_each_file_once(branch, scored_set, score_run, tmp_path, monkeypatch, request):
    opened, read_file = [], checkpoint.read_file
    monkeypatch.setattr(
        checkpoint, "read_file", lambda path, **o: opened.append(path) or read_file(path, **o)
    )
    files = [request.getfixturevalue(branch) / "best.pt", score_run / "best.pt"]
    words = ["--emotion-checkpoint", files[0], "--weights", files[1], *STILL]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    given = [path for path in opened if tmp_path not in Path(path).parents]
    assert sorted(given) == sorted(map(str, {*files}))


# ---- the emotion branch


def test_an_untrained_emotion_branch_is_refused_with_both_ways_out(scored_set, tmp_path, capsys):
    assert train("csv", scored_set, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "the emotion branch was never trained" in error
    for way_out in ("--emotion-checkpoint FILE", "--task emotion", "model.emotion_weights=none"):
        assert way_out in error
    assert not (tmp_path / "run").exists()


def test_a_branch_that_was_never_trained_is_accepted_by_no_detour_until_it_is_trained(
    untrained_run, scored_set, tmp_path, capsys
):
    best = untrained_run / "best.pt"
    weights = checkpoint.load_weights(best)
    assert weights.description["origin"]["emotion_branch"] == "never trained"
    assert len(weights.emotion_training_ids) == 0
    for option in ("--weights", "--emotion-checkpoint"):
        assert train("csv", scored_set, tmp_path / "run", option, best) == 2
        assert "the emotion branch was never trained" in capsys.readouterr().err
    short = ["train.score_test=false", "train.batch_size=16"]
    emotion = tmp_path / "emotion"
    assert train("csv", scored_set, emotion, "--task", "emotion", "--weights", best, *short) == 0
    branch = ["--emotion-checkpoint", emotion / "best.pt", *short]
    assert train("csv", scored_set, tmp_path / "run", *branch) == 0


def test_the_emotion_branch_is_the_given_one_to_the_last_bit_and_the_rest_has_moved(score_run, emotion_run):
    given, kept, last = (
        tensors(path) for path in (emotion_run / "best.pt", score_run / "best.pt", score_run / "last.pt")
    )
    assert same(given, kept, "emotion.")
    assert same(given, last, "emotion.")
    for part in ("detail.", "context.", "fusion.", "attention.", "emotion_merge.", "head."):
        moved = [name for name in kept if name.startswith(part) and not torch.equal(kept[name], last[name])]
        assert moved, part
    origin = checkpoint.load_weights(score_run / "best.pt").description["origin"]
    assert (origin["emotion_checkpoint"], origin["emotion_checkpoint_dataset"]) == ("best.pt", "csv")
    assert origin["emotion_checkpoint_sha256"] == file_hash(emotion_run / "best.pt")
    assert origin["emotion_branch"] == "trained"


def test_the_official_drift_moves_statistics_and_no_parameter(scored_set, emotion_run, tmp_path):
    branch = ["--emotion-checkpoint", emotion_run / "best.pt", "train.score_test=false", "data.limit=8"]
    assert train("csv", scored_set, tmp_path / "run", *branch, "model.emotion_batchnorm=official") == 0
    given, kept = parameters(emotion_run / "best.pt"), parameters(tmp_path / "run" / "best.pt")
    assert same(given, kept, "emotion.")
    assert not same(tensors(emotion_run / "best.pt"), tensors(tmp_path / "run" / "best.pt"), "emotion.")


# ---- whole networks


@pytest.fixture(scope="module")
def linear_run(scored_set, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "linear"
    assert train("csv", scored_set, output, "model.network=linear", "train.score_test=false") == 0
    return output


@pytest.mark.parametrize("run, words", [("score_run", []), ("linear_run", ["model.network=linear"])])
def test_fine_tuning_keeps_all_but_a_last_layer_for_another_kind_of_rating(
    run, words, scored_set, counts_set, tmp_path, capsys, request
):
    best = request.getfixturevalue(run) / "best.pt"
    before = parameters(best)
    last = {f"head.{1 if words else 5}.{kind}" for kind in ("weight", "bias")}
    for root, target, replaced in (
        (scored_set, "auto", set()),
        (counts_set, "label", last),
        (counts_set, "distribution", last),
    ):
        given = ["--weights", best, "--force", f"data.target={target}", *words, *STILL]
        assert train("csv", root, tmp_path / "run", *given) == 0
        after = parameters(tmp_path / "run" / "last.pt")
        assert {name for name in before if not torch.equal(before[name], after[name])} == replaced
        assert ("its last layer is replaced" in capsys.readouterr().out) == bool(replaced)
    # From the distributions to scores the last layer goes on.
    given = ["--weights", tmp_path / "run" / "last.pt", "data.target=score", *words, *STILL]
    assert train("csv", counts_set, tmp_path / "score", *given) == 0
    assert "replaced" not in capsys.readouterr().out
    old, new = (tensors(tmp_path / name / "last.pt") for name in ("run", "score"))
    names = sorted(last, reverse=True)
    expected = layer_of_mean(*(old[name] for name in names), load_weights(tmp_path / "run" / "last.pt").scale)
    assert same(dict(zip(names, expected, strict=True)), new)


def test_a_fine_tuned_network_remembers_what_it_was_trained_on_before(score_run, counts_set, tmp_path):
    assert train("csv", counts_set, tmp_path / "run", "--weights", score_run / "best.pt", *STILL) == 0
    before = checkpoint.load_weights(score_run / "best.pt")
    after = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    new = load_dataset("csv", counts_set, ("train",))["train"].id_hashes
    assert len(new) == len(before.training_ids) == 16
    assert np.array_equal(after.training_ids, np.unique([*new, *before.training_ids]))
    assert np.array_equal(after.emotion_training_ids, before.emotion_training_ids)
    assert after.description["origin"]["weights_sha256"] == file_hash(score_run / "best.pt")


def test_given_weights_over_another_emotion_branch(score_run, emotion_run, scored_set, tmp_path, capsys):
    weights, branch = score_run / "best.pt", emotion_run / "last.pt"
    both = ["--weights", weights, "--emotion-checkpoint", branch, "model.context_scale=1"]
    both.append("model.emotion_scale=1")
    assert train("csv", scored_set, tmp_path / "run", *both, "data.limit=8", *STILL) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")] == [
        f"note: {file} was trained with model.{name}=0.5, and this run has 1"
        for file, name in ((weights, "context_scale"), (branch, "emotion_scale"))
    ]
    found = parameters(tmp_path / "run" / "last.pt")
    assert same(parameters(emotion_run / "last.pt"), found, "emotion.")
    assert same(parameters(score_run / "best.pt"), found, "fusion.")


def test_given_weights_over_a_branch_of_another_shape(score_run, scored_set, tmp_path):
    branch = EmotionNetwork(BACKBONE, EMOTIONS, 1.0, width=24, emotion_levels=4)
    both = [
        "--weights",
        score_run / "best.pt",
        "--emotion-checkpoint",
        kept(branch, tmp_path / "b.safetensors"),
    ]
    shape = ["model.emotion_scale=1", "model.emotion_levels=4", "model.emotion_width=24"]
    assert train("csv", scored_set, tmp_path / "run", *both, *shape, "data.limit=8", *STILL) == 0
    found = parameters(tmp_path / "run" / "last.pt")
    assert same(found, branch.state_dict(), "emotion.")
    assert same(found, parameters(score_run / "best.pt"), "fusion.")
    # An emotion training over the branch, whose width is that of its own path.
    with pytest.raises(
        ValueError, match=r"path of 24 channels; the network's: 16 \(model.emotion_width=24 fits\)"
    ):
        started(
            [*shape[:2], f"model.backbone={BACKBONE}", "model.width=16", "model.imagenet=none"],
            emotion_checkpoint=both[3],
        )
    words = ["task=emotion", f"model.backbone={BACKBONE}", "model.emotion_levels=4", "model.width=24"]
    path = str(tmp_path / "run" / "best.pt")
    assert sources(path, *words)[0].weights.task == "aesthetics"
    with pytest.raises(
        ValueError, match=r"has model\.width=24 and this run model\.width=16; give the former"
    ):
        sources(path, *words[:-1])


def test_an_emotion_training_starts_from_the_branch_of_a_whole_network(score_run, scored_set, tmp_path):
    words = ["--task", "emotion", "--weights", score_run / "best.pt", *STILL]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    assert same(parameters(tmp_path / "run" / "last.pt"), parameters(score_run / "best.pt"), "emotion.")


# ---- networks with another backbone for the emotion branch, and ViTs

VIT = "test_vit"  # 6 blocks
SIZES = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}


def kept(network, path):
    scale = Scale("score", 1, 5, 3, offset=1, factor=4) if "outputs" in network.arguments else None
    checkpoint.export_weights(
        path, checkpoint.Weights(network.state_dict(), checkpoint.describe(network, scale))
    )
    return str(path)


def sources(path, *words):
    words = ["data.dataset=csv", *(f"model.{name}={size}" for name, size in SIZES.items()), *words]
    return read_sources(choose_task(load_config(words=[*words, UNTRAINED])), path, None)


@pytest.mark.parametrize(
    ("backbone", "emotion_backbone", "seen"),
    [(VIT, BACKBONE, BACKBONE), (BACKBONE, VIT, VIT), (VIT, "", VIT)],
)
def test_an_emotion_training_starts_from_the_branchs_own_backbone(backbone, emotion_backbone, seen, tmp_path):
    depth = 4 if backbone == VIT else 0
    whole = build_model(backbone, 1, emotion_backbone=emotion_backbone, depth=depth, **SIZES)
    path, own = kept(whole, tmp_path / "whole.safetensors"), depth if seen == backbone else 0
    words = ["task=emotion", f"model.backbone={seen}", f"model.depth={own}"]
    task, (source, _) = choose_task(load_config(words=words)), sources(path, *words)
    branch = EmotionNetwork(seen, EMOTIONS, 0.5, 16, depth=own)
    assert task.start_from(branch, source, None, other_branch=False) == ""
    assert same(branch.state_dict(), whole.state_dict(), "emotion.")
    other = BACKBONE if seen == VIT else VIT
    with pytest.raises(ValueError, match=f"has model.backbone={seen}.* and this run model.backbone={other}"):
        sources(path, "task=emotion", f"model.backbone={other}")


def test_a_given_branch_needs_no_imagenet_weights_of_its_backbone(tmp_path, monkeypatch):
    torch.save(timm.create_model(VIT).state_dict(), tmp_path / "vit.pth")
    branch = kept(EmotionNetwork(BACKBONE, EMOTIONS, 0.5, 16), tmp_path / "branch.safetensors")
    words = [f"model.backbone={VIT}", f"model.emotion_backbone={BACKBONE}", "model.width=16", UNTRAINED]
    words.append(f"model.imagenet={tmp_path / 'vit.pth'}")
    monkeypatch.setattr(timm, "create_model", partial(offline, timm.create_model))
    network, origin = started(words, emotion_checkpoint=branch)
    assert same(network.state_dict(), tensors(branch), "emotion.")
    assert origin["imagenet"] == "vit.pth"
    with pytest.raises(ValueError, match=f"no fitting ImageNet weights for timm's '{BACKBONE}'"):
        started(words)


def offline(create_model, name, *arguments, **options):
    if options.get("pretrained"):
        raise ConnectionError("offline")
    return create_model(name, *arguments, **options)


def test_all_blocks_of_a_vit_may_be_named_by_their_number(tmp_path):
    whole = build_model(VIT, 1, share_backbone=True, context_scale=1.0, depth=6, **SIZES)
    path = kept(whole, tmp_path / "whole.safetensors")
    words = [f"model.backbone={VIT}", "model.share_backbone=true", "model.context_scale=1"]
    for same_words in ([], ["model.depth=6"], ["model.depth=0", f"model.emotion_backbone={VIT}"]):
        assert sources(path, *words, *same_words)[0].path == tmp_path / "whole.safetensors"
    with pytest.raises(ValueError, match=r"has model\.depth=6 and this run model\.depth=5; give the former"):
        sources(path, *words, "model.depth=5")
    branch = build_model(VIT, 1, context_scale=1.0, **SIZES)
    checkpoint.load_emotion_branch(branch, checkpoint.read_source(path))
    assert same(branch.state_dict(), whole.state_dict(), "emotion.")


# ---- lists of emotions


def test_emotions_are_matched_by_name_when_fine_tuning(emotion_run, tmp_path, capsys):
    # A set that lists the same emotions in another order: the network keeps its own.
    turned = EMOTIONS[::-1]
    votes = {f"emotion_{name}": [int(i % 8 == k) for i in range(24)] for k, name in enumerate(turned)}
    root = write_csv(tmp_path / "set", votes, seed=3)
    words = ["--task", "emotion", "--weights", emotion_run / "best.pt", *STILL]
    assert train("csv", root, tmp_path / "run", *words) == 0
    assert load_dataset("csv", root, ("val",))["val"].emotion_classes == turned
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    assert weights.emotions == EMOTIONS
    assert "replaced" not in capsys.readouterr().out
    # Pictures 4, 10, 16 and 22 are validation; their one vote is for emotion i % 8 of the set's own order.
    assert evaluate(tmp_path / "run" / "best.pt", "csv", root, tmp_path / "val", "--split", "val") == 0
    rows = read_csv(tmp_path / "val" / "predictions.csv")
    shares = [float(row[f"emotion_{turned[i % 8]}"]) for row, i in zip(rows, (4, 10, 16, 22), strict=True)]
    [line] = read_log(tmp_path / "run")
    assert line["val_kl"] == pytest.approx(-np.log(shares).mean(), rel=1e-6)


def test_a_classifier_keeps_the_emotions_that_both_know_and_says_so(emotion_run, tmp_path, capsys):
    moods = ["calm" if i // 6 % 2 else "sad" for i in range(24)]  # "sad" is "sadness"
    root = write_csv(tmp_path / "set", {"emotion": moods}, seed=3)
    words = ["--task", "emotion", "--weights", emotion_run / "best.pt", *STILL]
    assert train("csv", root, tmp_path / "run", *words) == 0
    assert "best.pt knows other emotions than this run; its last layer keeps" in capsys.readouterr().out
    assert checkpoint.load_weights(tmp_path / "run" / "best.pt").emotions == ("sadness", "calm")
    before, after = parameters(emotion_run / "best.pt"), parameters(tmp_path / "run" / "last.pt")
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"emotion.classifier.weight", "emotion.classifier.bias"}
    old, new = (part["emotion.classifier.weight"] for part in (before, after))
    assert torch.equal(new[0], old[EMOTIONS.index("sadness")])
    assert not any(torch.equal(new[1], row) for row in old)
    assert same(before, after, "emotion.fine.")


# ---- the official code's files


def started(words, weights=None, emotion_checkpoint=None):
    task = choose_task(load_config(words=["data.dataset=csv", *words]))
    scale = Scale("score", 1, 5, 3, offset=1, factor=4)
    rated = RatedSet("csv", "train", "", ["a"], ["a"], np.array([1.0]), scale)
    return build_network(task, rated, read_sources(task, weights, emotion_checkpoint))


def test_official_weights_start_a_training_with_their_head_replaced(official_state, tmp_path, capsys):
    torch.save({"model": official_state}, tmp_path / "ava.pth")
    network, origin = started([], weights=str(tmp_path / "ava.pth"))
    state = network.state_dict()
    for ours, official in {
        "head.2.weight": "head.2.weight",
        "detail.conv1.weight": "feature1_x.0.weight",
        "emotion.classifier.weight": "emotion_model.emotion_module.fc_layer.weight",
    }.items():
        assert torch.equal(state[ours], official_state[official])
    assert state["head.5.bias"].shape == (1,)
    assert "its last layer is replaced" in capsys.readouterr().out
    assert (origin["weights"], origin["emotion_branch"]) == ("ava.pth", "trained")


def test_the_official_emotion_file_is_no_whole_network(tmp_path):
    torch.save({"emotion_module.fc_layer.bias": torch.zeros(8)}, tmp_path / "emotion.pth")
    with pytest.raises(ValueError, match=r"emotion.pth holds a network for the task emotion"):
        started([], weights=str(tmp_path / "emotion.pth"))


def test_an_official_file_with_another_class_list_needs_its_names(official_emotion, tmp_path):
    seven = {name: value[:7] if "fc_layer" in name else value for name, value in official_emotion.items()}
    torch.save({"model": seven}, tmp_path / "emotion_model.pth")
    path, words = str(tmp_path / "emotion_model.pth"), ["model.imagenet=none"]
    with pytest.raises(ValueError, match=r"has 7 emotions, and the list has 8 .*model.emotions=NAME"):
        started(words, emotion_checkpoint=path)
    words.append("model.emotions=Angry, sad,fear,awe,neutral,disgust,amusement")
    network, origin = started(words, emotion_checkpoint=path)
    assert network.arguments["emotions"][:3] == ("anger", "sadness", "fear")
    assert origin["emotion_checkpoint_sha256"] == file_hash(tmp_path / "emotion_model.pth")
