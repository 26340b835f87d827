"""Averaged weights: the mean of networks that started alike, with statistics of its own; else refused."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import UNTRAINED, evaluate, make_para, read_csv, read_json, same, tensors, train
from torch import nn

from datasets import load_dataset
from eamb.files import file_hash
from eamb.weights import checkpoint
from eamb.weights.registry import build_network
from main import main
from scripts import average_weights

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
QUICK = ("train.score_test=false", "optimizer.learning_rate=1e-2")


@pytest.fixture(scope="module")
def soup_runs(scored_set, score_run, tmp_path_factory):
    """The best.pt of two runs that started from `score_run`, with other orders and other pictures."""
    folder = tmp_path_factory.mktemp("soup")
    for seed, words in ((1, ["data.limit=12"]), (2, ["model.dropout=0.1"])):
        start = ["--weights", score_run / "best.pt", *QUICK, f"train.seed={seed}", *words]
        assert train("csv", scored_set, folder / str(seed), *start) == 0
    return [folder / name / "best.pt" for name in ("1", "2")]


def average(*words) -> int:
    return average_weights.main([*map(str, words), "data.workers=0", "train.device=cpu"])


@pytest.fixture(scope="module")
def averaged(soup_runs, scored_set, tmp_path_factory):
    output = tmp_path_factory.mktemp("averaged") / "mean.safetensors"
    words = ["--output", output, "--data-root", scored_set, "train.batch_size=4"]
    assert average(*soup_runs, *words) == 0
    return output


def test_parameters_are_the_mean_and_a_frozen_branch_stays_to_the_last_bit(averaged, soup_runs):
    first, second, mean = (tensors(path) for path in (*soup_runs, averaged))
    assert mean.keys() == first.keys()
    for name in mean:
        if name.startswith("emotion."):
            assert torch.equal(mean[name], first[name])
        elif not name.endswith(STATISTICS):
            assert torch.equal(mean[name], ((first[name].double() + second[name].double()) / 2).float())
            assert mean[name].dtype == torch.float32
    moved = [name for name in mean if not torch.equal(first[name], second[name])]
    assert any(name.endswith("weight") for name in moved)


def test_statistics_are_those_of_training_pictures_in_the_averaged_network(averaged, soup_runs, scored_set):
    """By another route: the inputs of each BatchNorm, with all of them normalising by the batch."""
    weights = checkpoint.load_weights(averaged)
    network, seen = weights.build(), {}
    network.train()
    norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert norms and not any(name.startswith("emotion.") for name in norms)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()

    def note(name):
        return lambda _, inputs: seen.setdefault(name, []).append(
            torch.var_mean(inputs[0].double(), (0, 2, 3))
        )

    for name, norm in norms.items():
        norm.register_forward_pre_hook(note(name))
    rated = load_dataset("csv", scored_set, ("train",))["train"]
    config = average_weights.read_config(weights, ["train.batch_size=4"], [str(scored_set)], 2048)
    batches = [*average_weights.training_batches(rated, config, torch.device("cpu"))]
    assert [len(images) for images in batches] == [4, 4, 4, 4]
    with torch.no_grad():
        for images in batches:
            network(images)
    for name in norms:
        variance, mean = (torch.stack(values).mean(dim=0) for values in zip(*seen[name], strict=True))
        kept = {part: weights.tensors[f"{name}.{part}"] for part in STATISTICS}
        assert torch.allclose(kept["running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        assert torch.allclose(kept["running_var"].double(), variance, rtol=1e-3, atol=1e-5)
        assert kept["num_batches_tracked"] == 4


def test_dropout_is_off_while_statistics_are_measured_and_statistics_are_those_of_all_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    batches = [torch.randn(2, 3, 4, 4) + i for i in range(3)]
    assert average_weights.measure_statistics(network, [network[1]], batches) == 6
    assert torch.allclose(network[1].running_mean, torch.cat(batches).mean((0, 2, 3)), atol=1e-6)
    variances = torch.stack([images.var((0, 2, 3)) for images in batches])
    assert torch.allclose(network[1].running_var, variances.mean(dim=0))
    assert not network[1].training


def test_torch_measures_the_same_where_nothing_is_frozen():
    torch.manual_seed(0)
    ours = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )
    theirs, batches = copy.deepcopy(ours), [torch.randn(5, 3, 9, 9) for _ in range(4)]
    torch.optim.swa_utils.update_bn(batches, theirs)
    average_weights.measure_statistics(ours.eval(), [ours[1], ours[4]], batches)
    assert same(ours.state_dict(), theirs.state_dict())


def test_the_description_names_the_files_and_what_differs_and_keeps_what_they_share(
    averaged, soup_runs, score_run
):
    weights, (first, second) = checkpoint.load_weights(averaged), map(checkpoint.load_weights, soup_runs)
    description, origin = weights.description, weights.description["origin"]
    for name in ("task", "network", "scale", "dataset", "image_size", "exif", "protocol", "training_ratings"):
        assert (
            description.get(name) == second.description[name]
            or first.description[name] != second.description[name]
        )
    assert origin["weights_sha256"] == file_hash(score_run / "best.pt")
    assert origin["emotion_branch"] == "trained"
    assert "best" not in description
    assert "seed" not in description["config"]["train"]
    assert description["config"]["train"]["epochs"] == 1
    for path, run, entry in zip(soup_runs, (first, second), origin["averaged"], strict=True):
        assert (entry["file"], entry["sha256"]) == ("best.pt", file_hash(path))
        assert entry["weights_sha256"] == run.sha256
        assert entry["best"] == run.description["best"]
        assert entry["config"]["train"]["seed"] == run.description["config"]["train"]["seed"]
    ids = np.union1d(first.training_ids, second.training_ids)
    assert len(first.training_ids) <= len(ids)
    assert np.array_equal(weights.training_ids, ids)
    assert np.array_equal(weights.emotion_training_ids, first.emotion_training_ids)


def test_training_ids_are_those_of_all(soup_runs, tmp_path):
    inputs = []
    for path, ids in zip(soup_runs, ([1, 2], [2, 5]), strict=True):
        weights = replace(checkpoint.load_weights(path), training_ids=np.array(ids))
        inputs.append(
            average_weights.Input(path, "", replace(weights, emotion_training_ids=np.array(ids) + 5))
        )
    merged = average_weights.merged(inputs)
    assert merged.training_ids.tolist() == [1, 2, 5]
    assert merged.emotion_training_ids.tolist() == [6, 7, 10]


def test_evaluate_predict_and_train_read_the_result(averaged, scored_set, tmp_path):
    assert evaluate(averaged, "csv", scored_set, tmp_path / "report") == 0
    facts = read_json(tmp_path / "report" / "metrics.json")
    assert len(facts["origin"]["averaged"]) == 2
    assert facts["test_pictures_trained_on"] == 0
    scores = tmp_path / "scores.csv"
    assert (
        main(["predict", str(scored_set / "images"), "--checkpoint", str(averaged), "--output", str(scores)])
        == 0
    )
    assert len(read_csv(scores)) == 24
    assert train("csv", scored_set, tmp_path / "run", "--weights", averaged, *QUICK) == 0


def test_one_file_keeps_its_parameters_and_gets_new_statistics(untrained_run, scored_set, tmp_path):
    best, output = untrained_run / "best.pt", tmp_path / "one.safetensors"
    assert average(best, "--output", output, "--data-root", scored_set) == 0
    before, after = tensors(best), tensors(output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith(STATISTICS) and not name.startswith("emotion.") for name in changed)


@pytest.mark.parametrize("kept", ["train.fixed_batchnorm=true", "train.freeze_backbone=1"])
def test_statistics_that_the_training_kept_stay(kept, scored_set, tmp_path):
    words, output = ["--task", "emotion", UNTRAINED, kept, *QUICK], tmp_path / "one.safetensors"
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    best = tmp_path / "run" / "best.pt"
    assert average(best, "--output", output, "--data-root", scored_set) == 0
    before, after = tensors(best), tensors(output)
    norms = [name for name in before if name.endswith(STATISTICS)]
    still = {name for name in norms if torch.equal(before[name], after[name])}
    assert still == {name for name in norms if name.startswith("emotion.pyramid.")} != set(norms)


def test_only_pictures_that_were_trained_on_are_measured(soup_runs, scored_set, tmp_path, capsys):
    words = ["--output", tmp_path / "a.safetensors", "--data-root", scored_set, "train.batch_size=2"]
    assert average(*soup_runs, *words, "--pictures", 6) == 0
    assert "BatchNorm's statistics from 6 training pictures" in capsys.readouterr().out
    weights = checkpoint.load_weights(soup_runs[0])
    ids = load_dataset("csv", scored_set, ("train",))["train"].id_hashes[:4]
    checkpoint.export_weights(tmp_path / "few.safetensors", replace(weights, training_ids=ids))
    assert average(tmp_path / "few.safetensors", *words, "--force") == 0
    assert "from 4 training pictures" in capsys.readouterr().out
    none = replace(weights, training_ids=np.array([7]))
    checkpoint.export_weights(tmp_path / "none.safetensors", none)
    assert average(tmp_path / "none.safetensors", *words, "--force") == 2
    assert "these networks were trained on no picture of the csv in --data-root" in capsys.readouterr().err


def test_networks_for_votes_are_measured_on_pictures_without_votes_too(tmp_path, capsys):
    root, output = make_para(tmp_path / "set", voted=range(0, 60, 2)), tmp_path / "mean.safetensors"
    words = ["data.target=distribution", "loss.mean_weight=1", UNTRAINED, *QUICK]
    assert train("para", root, tmp_path / "run", *words) == 0
    best = tmp_path / "run" / "best.pt"
    capsys.readouterr()
    assert average(best, "--output", output, "--data-root", root, "train.batch_size=2") == 0
    assert "from 58 training pictures" in capsys.readouterr().out
    assert evaluate(output, "para", root, tmp_path / "report") == 0
    assert "emd2" in read_json(tmp_path / "report" / "metrics.json")["metrics"]


@pytest.mark.parametrize("words", [["--pictures", 1], ["train.batch_size=1"]])
def test_a_picture_alone_has_no_variance(words, soup_runs, scored_set, tmp_path, capsys):
    output = tmp_path / "a.safetensors"
    assert average(*soup_runs, "--output", output, "--data-root", scored_set, *words) == 2
    said = "error: average_weights: no batch of csv has two pictures that can be decoded, and BatchNorm's"
    assert capsys.readouterr().err.startswith(said)
    assert not output.exists()


def test_broken_pictures_are_left_out(soup_runs, scored_set, tmp_path, capsys):
    root = shutil.copytree(scored_set, tmp_path / "set")
    (root / "images" / load_dataset("csv", root, ("train",))["train"].ids[0]).write_bytes(b"no picture")
    words = ["--output", tmp_path / "a.safetensors", "--data-root", root, "train.batch_size=4"]
    assert average(*soup_runs, *words) == 0
    assert "from 15 training pictures" in capsys.readouterr().out


def test_half_precision_is_averaged_without_loss():
    first, second = (
        {"a": torch.tensor([v], dtype=torch.float16), "n": torch.tensor(7)} for v in (1.0, 1 + 2**-10)
    )
    mean = average_weights.mean_of([first, second])
    assert mean["a"].dtype == torch.float32
    assert mean["a"].item() == 1 + 2**-11
    assert mean["n"].item() == 7


def test_in_fp16_the_file_is_half_as_large_and_statistics_are_those_of_the_rounded_weights(
    averaged, soup_runs, scored_set, tmp_path
):
    output = tmp_path / "half.safetensors"
    words = ["--output", output, "--data-root", scored_set, "train.batch_size=4", "--half"]
    assert average(*soup_runs, *words) == 0
    whole, half = tensors(averaged), tensors(output)
    for name in whole:
        if name.startswith("emotion.") or not name.endswith(STATISTICS):
            assert torch.equal(
                half[name], whole[name].half() if whole[name].is_floating_point() else whole[name]
            )
    statistics = [n for n in whole if n.endswith("running_var") and not n.startswith("emotion.")]
    assert any(not torch.equal(half[name], whole[name].half()) for name in statistics)
    assert all(torch.allclose(half[name].float(), whole[name], rtol=0.05, atol=1e-3) for name in statistics)
    assert output.stat().st_size < 0.75 * averaged.stat().st_size
    assert evaluate(output, "csv", scored_set, tmp_path / "report") == 0


def test_a_network_without_batchnorm_needs_no_pictures(scored_set, tmp_path, capsys):
    words = ["model.network=linear", "model.backbone=test_convnext", *QUICK]
    assert train("csv", scored_set, tmp_path / "run", *words) == 0
    best, runs = tmp_path / "run" / "best.pt", [tmp_path / f"{name}.safetensors" for name in "12"]
    for path, shift in zip(runs, (0.5, -0.25), strict=True):
        moved = {name: value + shift for name, value in tensors(best).items()}
        changed(best, path, moved, origin={"weights_sha256": "0"})
    assert average(*runs, "--output", tmp_path / "mean.safetensors") == 0
    assert "mean of 2 networks, no BatchNorm" in capsys.readouterr().out
    first, second, mean = (tensors(path) for path in (*runs, tmp_path / "mean.safetensors"))
    assert all(torch.allclose(mean[name], (first[name] + second[name]) / 2) for name in mean)


# ---- what is refused


def changed(path, output, tensors=None, origin=None, **description):
    """A copy of weights with other tensors or another description."""
    weights = checkpoint.load_weights(path)
    known = weights.description | description
    known["origin"] = known["origin"] | (origin or {})
    weights = replace(weights, tensors=tensors or weights.tensors, description=known)
    checkpoint.export_weights(output, weights)
    return output


def refused(first, other, said, root, folder, capsys):
    """Averaging the two must end in one sentence that names both files."""
    capsys.readouterr()
    output = folder / "mean.safetensors"
    assert average(first, other, "--output", output, "--data-root", root) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: average_weights: {other} ")
    assert said in error
    assert str(first) in error
    assert error.count("\n") == 1
    assert not output.exists()


OTHER = {"kind": "score", "minimum": 0, "maximum": 10, "threshold": 5, "inclusive": False, "bins": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": OTHER | {"offset": 0, "factor": 10}}, "has scale {'kind': 'score', 'minimum': 0"),
        ({"image_size": 96}, "has image_size 96 and "),
        ({"dataset": "para"}, "has dataset para and "),
        ({"config": {"train": {"fixed_batchnorm": True}}}, "has layers with kept BatchNorm statistics "),
        ({"origin": {"weights_sha256": "0"}}, "started from weights_sha256 0 and "),
        ({"origin": {"emotion_checkpoint_sha256": "0"}}, "emotion_checkpoint_sha256 0 and "),
        ({"origin": {"new_layer_seed": 1}}, "new_layer_seed 1 and "),
    ],
)
def test_networks_that_differ_in_what_they_predict_or_started_from_are_refused(
    change, said, soup_runs, scored_set, tmp_path, capsys
):
    other = changed(soup_runs[1], tmp_path / "other.safetensors", **change)
    refused(soup_runs[0], other, said, scored_set, tmp_path, capsys)


def test_a_network_of_another_shape_is_refused(soup_runs, scored_set, tmp_path, capsys):
    wider = checkpoint.load_weights(soup_runs[1]).description["architecture"] | {"width": 24}
    state = build_network("aesthetics", "eambnet", wider).state_dict()
    other = changed(soup_runs[1], tmp_path / "other.safetensors", state, architecture=wider)
    refused(soup_runs[0], other, "has model.width 24 and ", scored_set, tmp_path, capsys)


def test_networks_of_another_task_kind_or_start_are_refused(
    soup_runs, untrained_run, emotion_run, scored_set, tmp_path, capsys
):
    assert train("csv", scored_set, tmp_path / "run", "model.network=linear", *QUICK) == 0
    for run, said in (
        (emotion_run, "has task emotion and "),
        (tmp_path / "run", "has network linear and "),
        (untrained_run, "started from random layers of its own and "),
    ):
        refused(soup_runs[0], run / "best.pt", said, scored_set, tmp_path, capsys)


def test_runs_from_imagenet_share_no_start_even_with_each_other(untrained_run, scored_set, tmp_path, capsys):
    best = untrained_run / "best.pt"
    assert average(best, best, "--output", tmp_path / "a.safetensors", "--data-root", scored_set) == 2
    assert "only if all started from one file, as with --weights FILE" in capsys.readouterr().err


def test_a_replaced_last_layer_is_part_of_the_start(score_run, counts_set, tmp_path):
    words = ["--weights", score_run / "best.pt", "data.target=label", "train.seed=3", *QUICK]
    assert train("csv", counts_set, tmp_path / "run", *words) == 0
    assert checkpoint.load_weights(tmp_path / "run" / "best.pt").description["origin"]["new_layer_seed"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "--output", "mean.pt"], "--output must end|an --output that ends in .safetensors"),
        (["A", "--output", "m.safetensors", "--pictures", "0"], "--pictures of 1 or more; got 1 files"),
        (["data.exif=false", "--output", "m.safetensors"], "got 0 files, m.safetensors and 2048"),
        (
            ["A", "--output", "m.safetensors"],
            "BatchNorm's statistics are measured on training pictures; name the",
        ),
        (["A", "--output", "m.safetensors", "--data-root", "none"], "there is no folder none"),
        (
            ["A", "--output", "m.safetensors", "--data-root", "SET", "data.size=96"],
            "data.size=96 does not go",
        ),
        (["none.pt", "--output", "m.safetensors"], "no file none.pt"),
        (["TABLE", "--output", "m.safetensors"], "is not a weights file"),
    ],
)
def test_bad_input_is_one_sentence(words, said, soup_runs, scored_set, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"A": soup_runs[0], "SET": scored_set, "TABLE": scored_set / "ratings.csv"}
    assert average(*(names.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err
    assert any(each in error for each in said.split("|"))
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_unless_forced(averaged, soup_runs, scored_set, capsys):
    before = averaged.read_bytes()
    assert average(*soup_runs, "--output", averaged, "--data-root", scored_set) == 2
    assert "mean.safetensors already" in capsys.readouterr().err
    assert averaged.read_bytes() == before
