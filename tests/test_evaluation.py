"""Reports: files in the set's unit, provenance, leaks, other sets marked as such, emotions by name."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image
from small import evaluate, read_csv, read_json, write_csv

import datasets
from datasets import SetReader, load_dataset
from eamb.evaluation.predicting import as_trained, labelled, predict_set
from eamb.evaluation.preferences import measure_pairs
from eamb.evaluation.ratings import compare_scores, find_twins, measure_scores
from eamb.evaluation.report import Report, versions, without_nan
from eamb.network.outputs import EMOTIONS, Output, Scale
from eamb.readers.decoding import View, decode
from eamb.readers.pairs import PairedSet
from eamb.readers.rated import RatedSet
from eamb.runtime.config import load_config
from eamb.runtime.engine import Predictions
from eamb.runtime.networks import Ensemble
from eamb.weights import checkpoint
from main import main
from metrics import emotion_metrics
from scripts.studies.colour import SPACES, rgb_profile

pytestmark = pytest.mark.portable

BINS = (1.0, 2.0, 3.0, 4.0)  # of `counts_set`


def column(path: Path, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in read_csv(path)])


@pytest.fixture(scope="module")
def bins_run(counts_set, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "bins"
    assert small.train("csv", counts_set, output, small.UNTRAINED) == 0
    return output


def test_a_distribution_has_a_column_for_each_bin_and_its_mean_and_is_compared_by_emd(bins_run, counts_set):
    path = bins_run / "test" / "predictions.csv"
    assert list(read_csv(path)[0]) == ["id", "prediction", "p_1", "p_2", "p_3", "p_4"]
    shares = np.stack([column(path, f"p_{value:g}") for value in BINS], axis=1)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(shares @ BINS, column(path, "prediction"), atol=1e-4)
    rated = load_dataset("csv", counts_set, ("test",))["test"].distributions
    gap = np.abs((shares - rated).cumsum(axis=1))
    metrics = read_json(bins_run / "test" / "metrics.json")["metrics"]
    assert metrics["emd1"] == pytest.approx(gap.mean(), abs=1e-5)
    assert metrics["emd2"] == pytest.approx(np.sqrt((gap**2).mean(axis=1)).mean(), abs=1e-5)


@pytest.mark.parametrize("export", [False, True])
def test_evaluating_a_checkpoint_repeats_the_training_runs_test(export, score_run, scored_set, tmp_path):
    first, file = score_run / "test", score_run / "best.pt"
    if export:
        file = tmp_path / "shared.safetensors"
        checkpoint.export_weights(file, checkpoint.load_weights(score_run / "best.pt"))
    assert evaluate(file, "CSV", scored_set, tmp_path / "again", "evaluate.bootstrap=20") == 0
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (first / "predictions.csv").read_bytes()
    found, before = (read_json(folder / "metrics.json") for folder in (tmp_path / "again", first))
    assert small.without_versions(found) == small.without_versions(before)


def test_metrics_json_says_where_everything_comes_from_and_all_can_be_had_again_from_the_files(
    score_run, scored_set
):
    found, path = read_json(score_run / "test" / "metrics.json"), score_run / "test" / "predictions.csv"
    rated = load_dataset("csv", scored_set, ("test",))["test"]
    sha256 = checkpoint.load_weights(score_run / "best.pt").sha256
    expected = {"task": "aesthetics", "dataset": "csv", "split": "test", "protocol": rated.protocol}
    expected |= {"split_sha256": rated.sha256, "weights_sha256": sha256, "versions": versions()}
    expected |= {"broken": [], "left_out": 0, "trained_on": "csv"}
    expected["majority_accuracy"] = max(np.mean(rated.scores > 3), np.mean(rated.scores <= 3))
    assert {key: found[key] for key in expected} == expected
    assert {"srcc", "plcc", "krcc", "rmse", "mae", "accuracy"} <= set(found["intervals_95"])

    emotions = [f"emotion_{name}" for name in EMOTIONS]  # the set has them too
    assert list(read_csv(path)[0]) == ["id", "prediction", "emotion", *emotions]
    assert [row["id"] for row in read_csv(path)] == list(rated.ids)
    predicted = column(path, "prediction")  # in the set's unit
    assert ((predicted > 1) & (predicted < 5)).all() and len(set(predicted)) == 4
    digits = [row["prediction"].replace(".", "").strip("0") for row in read_csv(path)]
    assert max(map(len, digits)) <= 8  # short, though nothing is lost
    columns = {"id": np.array(rated.ids), "prediction": predicted}
    again = compare_scores(columns, rated, 20)
    assert again.metrics == found["metrics"]
    assert {name: list(ends) for name, ends in again.intervals.items()} == found["intervals_95"]
    shares = np.stack([column(path, f"emotion_{name}") for name in rated.emotion_classes], axis=1)
    emotions = emotion_metrics(shares, rated.emotions, rated.emotion_classes)
    assert without_nan(emotions) == found["emotions"]["metrics"]


def test_what_is_undefined_becomes_null(tmp_path):
    undefined = {"srcc": math.nan, "n": 2, "kl": math.inf}
    facts = {"nested": [{"a": math.nan}, (1.5, math.nan)]}
    Report("t", undefined, {"id": np.array(["a"])}, {"srcc": (math.nan, 1.0)}, facts).write(tmp_path)
    found = read_json(tmp_path / "metrics.json")
    assert found["metrics"] == {"srcc": None, "n": 2, "kl": None}
    assert found["intervals_95"] == {"srcc": [None, 1.0]}
    assert found["nested"] == [{"a": None}, [1.5, None]]


def test_one_table_is_printed_whatever_the_batches_and_workers(score_run, scored_set, tmp_path, capsys):
    tables, out = [], tmp_path / "out"
    for words in ("evaluate.batch_size=1", "evaluate.batch_size=3 data.workers=1"):
        words = [*words.split(), "evaluate.bootstrap=9"]
        assert evaluate(score_run / "best.pt", "csv", scored_set, out, *words) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and tables[0].startswith("csv test: 4 pictures (ratings.csv")
    srcc = f"SRCC             {read_json(out / 'metrics.json')['metrics']['srcc']:.4f}"
    for words in (srcc, "95 % interval", "accuracy (> 3)", "always naming the majority: 0.5000"):
        assert words in tables[0]
    files = "predictions.csv metrics.json scatter.png confusion.png emotion_bars.png"
    assert tables[0].endswith(f"{out}: {files}\n")
    assert {path.name for path in out.iterdir()} == set(files.split())


@pytest.mark.parametrize("split, leaked", [("test", 0), ("TRAIN", 16)])
def test_pictures_that_were_trained_on_are_counted(split, leaked, score_run, scored_set, tmp_path, capsys):
    assert evaluate(score_run / "best.pt", "csv", scored_set, tmp_path, "--split", split) == 0
    report, said = read_json(tmp_path / "metrics.json"), capsys.readouterr().out
    for what in ("trained on", "that the emotion branch was trained on"):
        assert report[f"test_pictures_{what.replace(' ', '_')}"] == leaked
        assert f"test pictures {what}: {leaked}\n" in said


@pytest.fixture(scope="module")
def several(score_run, scored_set, tmp_path_factory):
    """Three checkpoints on one scale; the second is for larger pictures, and has seen a test picture in its
    training, and its emotion branch another one."""
    folder, tested = tmp_path_factory.mktemp("several"), load_dataset("csv", scored_set, ("test",))["test"]
    own = checkpoint.load_weights(score_run / "best.pt")
    paths = [folder / f"{name}.safetensors" for name in ("a", "b", "c")]
    for number, path in enumerate(paths):
        tensors = {name: value.clone() for name, value in own.tensors.items()}
        last = tensors["head.5.bias"]
        last += number
        description = own.description | {"image_size": 96 if path.stem == "b" else 64}
        weights = replace(own, tensors=tensors, description=description)
        if path.stem == "b":
            ids = [np.union1d(own.training_ids, tested.take([i]).id_hashes) for i in (0, 1)]
            weights = replace(weights, training_ids=ids[0], emotion_training_ids=ids[1])
        checkpoint.export_weights(path, weights)
    return paths


def more(paths) -> list:
    return [word for path in paths for word in ("--checkpoint", path)]


def test_several_checkpoints_are_evaluated_by_their_mean(several, scored_set, tmp_path, monkeypatch, capsys):
    alone = []
    for path in several:
        assert evaluate(path, "csv", scored_set, tmp_path / path.stem) == 0
        alone.append(column(tmp_path / path.stem / "predictions.csv", "prediction"))
    decoded, decode_views = [], datasets.decode_views
    count = lambda *words, **named: decoded.append(words[0]) or decode_views(*words, **named)  # noqa: E731
    monkeypatch.setattr(datasets, "decode_views", count)
    capsys.readouterr()
    assert evaluate(several[0], "csv", scored_set, tmp_path / "all", *more(several[1:])) == 0
    assert len(decoded) == len(set(decoded)) == 4  # each picture once
    path, found = tmp_path / "all/predictions.csv", read_json(tmp_path / "all/metrics.json")
    assert np.allclose(column(path, "prediction"), np.mean(alone, axis=0), atol=1e-6)
    assert np.allclose(column(path, "score_model_std"), np.std(alone, axis=0), atol=1e-6)
    assert np.std(alone, axis=0).min() > 0.01
    first = read_csv(tmp_path / "a/predictions.csv")
    assert list(read_csv(path)[0]) == ["id", "prediction", "score_model_std", *list(first[0])[2:]]
    emotions = [{name: row[name] for name in row if "emotion" in name} for row in read_csv(path)]
    assert emotions == [{name: row[name] for name in row if "emotion" in name} for row in first]
    hashes = [checkpoint.load_weights(each).sha256 for each in several]
    assert [each["weights_sha256"] for each in found["checkpoints"]] == hashes and len(set(hashes)) == 3
    assert [each["checkpoint"] for each in found["checkpoints"]] == [path.name for path in several]
    said = capsys.readouterr().out
    assert "\nmean predictions of 3 networks\n" in said and "mean predictions of 3 networks" in found["notes"]
    for what in ("trained on", "that the emotion branch was trained on"):
        assert found[f"test_pictures_{what.replace(' ', '_')}"] == 1
        assert f"test pictures {what}: 1\n" in said
    single = read_json(tmp_path / "a/metrics.json")
    assert single["weights_sha256"] == hashes[0] and not {"checkpoints", "flip"} & single.keys()


def test_mirrored_pictures_are_evaluated_too(several, scored_set, tmp_path):
    mirrored = shutil.copytree(scored_set, tmp_path / "mirrored")
    for path in (mirrored / "images").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    alone = []
    for root in (scored_set, mirrored):
        assert evaluate(several[0], "csv", root, tmp_path / "one") == 0
        alone.append(column(tmp_path / "one/predictions.csv", "prediction"))
    assert evaluate(several[0], "csv", scored_set, tmp_path / "both", "--flip") == 0
    assert np.abs(alone[0] - alone[1]).min() > 1e-6
    assert np.allclose(
        column(tmp_path / "both/predictions.csv", "prediction"), np.mean(alone, axis=0), atol=1e-6
    )
    found = read_json(tmp_path / "both/metrics.json")
    assert found["flip"] is True
    assert "mean predictions for each picture and its mirror image" in found["notes"]
    assert not any("mean" in note for note in read_json(tmp_path / "one/metrics.json")["notes"])


def test_reports_of_several_and_of_flipped_networks_have_folders_of_their_own(
    several, scored_set, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "--dataset", "csv", "--data-root", str(scored_set), "data.workers=0"]
    words += ["evaluate.bootstrap=0", "train.device=cpu"]
    runs = [more(several[:1]), more(several[:2]), [*more(several[:2]), "--flip"], more(several[1:2])]
    with small.without_drawing():
        assert [main([*words, *map(str, extra)]) for extra in runs] == [0, 0, 0, 0]
    assert len(list(tmp_path.glob("runs/evaluate_csv_test_*"))) == 4


def test_checkpoints_that_do_not_go_together_are_refused_by_name(
    several, bins_run, emotion_run, scored_set, tmp_path, capsys
):
    for other, words in (
        ([bins_run / "best.pt"], "best.pt predicts on another scale than"),
        ([emotion_run / "best.pt"], "best.pt with --task emotion"),
        ([several[0]], "a.safetensors is given twice"),
        (several[1:2], "b.safetensors, whose data.size is 96; leave it out"),
    ):
        assert evaluate(several[0], "csv", scored_set, tmp_path / "out", *more(other), "data.size=64") == 2
        assert words in capsys.readouterr().err
    assert evaluate(emotion_run / "best.pt", "csv", scored_set, tmp_path / "out", "--flip") == 2
    assert "--flip averages scores, and " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_figures_are_given_without_the_pictures_that_are_in_training_too(score_run, scored_set, tmp_path):
    root = shutil.copytree(scored_set, tmp_path / "set")
    for copy, original in ((5, 0), (17, 11)):  # 5, 11 and 17 are tested, 0 is trained on
        shutil.copyfile(root / "images" / f"0_{original:03d}.png", root / "images" / f"0_{copy:03d}.png")
    assert evaluate(score_run / "best.pt", "csv", root, tmp_path / "out", "evaluate.bootstrap=9") == 0
    found = read_json(tmp_path / "out" / "metrics.json")
    rest = found["without_twins"]
    assert (found["metrics"]["n"], rest["count"], rest["metrics"]["n"]) == (4, 1, 3)
    rated = load_dataset("csv", root, ("test",))["test"].scores[1:]
    gaps = column(tmp_path / "out" / "predictions.csv", "prediction")[1:] - rated
    assert rest["metrics"]["mae"] == pytest.approx(np.abs(gaps).mean(), rel=1e-12)
    assert "without_twins" not in read_json(score_run / "test" / "metrics.json")
    sets, reader = load_dataset("csv", root), SetReader("csv", root)
    twins = [find_twins(sets[split], reader) for split in ("test", "train", "val")]
    assert twins == [({"0_005.png"}, []), (set(), []), (set(), [])]


def test_another_range_makes_another_set_of_which_only_correlations_count(score_run, tmp_path, capsys):
    best = score_run / "best.pt"
    part = write_csv(tmp_path / "part", {"score": [2 + i // 8 for i in range(24)]}, seed=8)
    assert evaluate(best, "csv", part, tmp_path / "out") == 0  # inside the range: the same set
    assert read_json(tmp_path / "out" / "metrics.json")["metrics"]["threshold"] == 3
    assert "accuracy" in capsys.readouterr().out
    other = write_csv(tmp_path / "other", {"score": [4 * i for i in range(24)]}, seed=8)
    assert evaluate(best, "csv", other, tmp_path / "cross", "evaluate.bootstrap=9") == 0
    found = read_json(tmp_path / "cross" / "metrics.json")
    assert list(found["metrics"]) == ["n", *found["intervals_95"]] == ["n", "srcc", "plcc", "krcc"]
    assert "majority_accuracy" not in found
    said = capsys.readouterr().out
    assert "csv test (cross-set: trained on csv, correlations only)" in said
    assert not any(word in said for word in ("accuracy", "RMSE", "MAE", "EMD"))
    assert not (tmp_path / "cross" / "scatter.png").exists()
    predicted = column(tmp_path / "cross" / "predictions.csv", "prediction")
    assert ((predicted > 1) & (predicted < 5)).all()  # in the unit of the network's own set


def test_how_a_csv_is_read_is_known_and_that_nobody_looked_for_twins_is_said(
    score_run, scored_set, tmp_path, capsys
):
    weights = checkpoint.load_weights(score_run / "best.pt")
    weights.description["config"]["data"]["score_column"] = "beauty"
    checkpoint.export_weights(tmp_path / "w.safetensors", weights)
    root = shutil.copytree(scored_set, tmp_path / "set")
    header, *lines = (root / "ratings.csv").read_text().replace("score", "beauty", 1).splitlines()
    (root / "test.csv").write_text("\n".join([header, *(line for line in lines if ",test," in line)]))
    (root / "ratings.csv").unlink()
    assert evaluate(tmp_path / "w.safetensors", "csv", root, tmp_path / "out") == 0
    assert "identical pictures in training were not looked for: datasets:" in capsys.readouterr().out


def scores(values, scale: Scale, name: str = "csv") -> RatedSet:
    ids = [f"{i}" for i in range(len(values))]
    return RatedSet(name, "test", "by hand", ids, ids, np.array(values, dtype=float), scale)


def found(values) -> Predictions:
    prediction = np.array(values, dtype=float)[:, None]
    return Predictions(np.arange(len(values)), prediction, np.full((len(values), 8), 1 / 8), [])


def test_a_high_low_network_is_correlated_with_the_scores_of_another_set():
    label = checkpoint.Weights({}, {"dataset": "iae", "scale": Scale("label", 0, 1, 0.5).as_dict()})
    five = Scale("score", 1, 5, 3, offset=1, factor=4)
    report = measure_scores(found([0.1, 0.2, 0.9, 0.3]), scores([1.0, 2.0, 2.5, 5.0], five), weights=label)
    assert report.metrics["srcc"] == pytest.approx(0.8)  # against high or low it would be .2582
    assert "threshold" not in report.metrics


def test_high_and_low_are_decided_by_exact_ratings():
    scale = Scale("label", 1, 10, 5, inclusive=True)
    report = measure_scores(found([0.6, 0.4, 0.6]), scores([5.0, 4.9999999999, 7.0], scale, "iae"))
    assert (report.metrics["accuracy"], report.metrics["threshold"], report.metrics["auc"]) == (1.0, 0.5, 1.0)
    assert report.predictions["prediction"].tolist() == [0.6, 0.4, 0.6]
    assert not report.plots  # no scatter plot of labels


FIXED = [
    ("data.size", "512", "64"),
    ("data.exif", "False", "True"),
    ("data.icc", "False", "True"),
    ("model.backbone", "resnet50", small.BACKBONE),
    ("model.network", "linear", "eambnet"),
    ("model.width", "24", "16"),
    ("task", "emotion", "aesthetics"),
]


@pytest.mark.parametrize("key, other, fixed", FIXED)
def test_a_setting_that_the_weights_fix_is_refused_where_it_differs(
    key, other, fixed, score_run, scored_set, tmp_path, capsys
):
    assert evaluate(score_run / "best.pt", "csv", scored_set, tmp_path / "out", f"{key}={other}") == 2
    said = f"does not go with {score_run}/best.pt, whose {key} is {fixed}; leave it out"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_as_the_weights_fix_them_are_accepted(score_run, scored_set, tmp_path):
    words = [f"{key}={fixed}" for key, _, fixed in FIXED]
    assert evaluate(score_run / "best.pt", "csv", scored_set, tmp_path / "out", *words) == 0


class Brightness:
    """A network whose prediction is the mean of a picture, 0 to 1."""

    device = torch.device("cpu")

    def __init__(self, icc):
        self.view = View(8, icc=icc)

    def outputs(self, batches, batch_size):
        for batch in batches:
            mean = batch.images.float().mean(dim=(1, 2, 3))[:, None] / 255
            yield batch, Output(mean, mean, mean[..., None, None])


def test_weights_from_before_profiles_were_converted_ignore_them_unless_told_otherwise(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (9, 9), (128, 128, 128)).save(path, icc_profile=rgb_profile(SPACES["prophoto"]))
    scale = Scale("score", 1, 5, 3, offset=1, factor=4)
    rated = RatedSet("csv", "test", "", ["a"], [str(path)], np.ones(1), scale)
    known = {"task": "aesthetics", "dataset": "csv", "image_size": 64, "exif": True}
    known["architecture"] = {"backbone": small.BACKBONE}
    default = load_config([], ["data.workers=0"])
    cases = [({}, None, False), ({"data.icc": True}, None, True), ({}, True, True), ({}, False, False)]
    for given, icc, expected in cases:
        about = known if icc is None else known | {"icc": icc}
        config = as_trained(default, checkpoint.Weights({}, about), given)
        assert config.data.icc is expected
        found = predict_set(Ensemble([Brightness(icc)]), rated, config)
        assert found.prediction[0, 0] == pytest.approx(decode(path, 8, icc=expected).mean() / 255, abs=1e-6)
    both = predict_set(Ensemble([Brightness(True), Brightness(False)]), rated, config)  # each in its own way
    means = [decode(path, 8, icc=icc).mean() / 255 for icc in (True, False)]
    assert both.members[0, :, 0] == pytest.approx(means, abs=1e-6) and means[0] > means[1] + 0.05


def test_older_weights_ignore_profiles_unless_told_otherwise_whichever_come_first(
    score_run, scored_set, tmp_path
):
    root, weights = (
        shutil.copytree(scored_set, tmp_path / "set"),
        checkpoint.load_weights(score_run / "best.pt"),
    )
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            image.save(path, icc_profile=rgb_profile(SPACES["prophoto"]))
    rest = {key: value for key, value in weights.description.items() if key != "icc"}
    for name, icc in {"new": {"icc": True}, "ignoring": {"icc": False}, "old": {}}.items():
        checkpoint.export_weights(tmp_path / f"{name}.safetensors", replace(weights, description=rest | icc))

    def predicted(names, *words):
        first, *others = (tmp_path / f"{name}.safetensors" for name in names.split())
        more = [word for other in others for word in ("--checkpoint", other)]
        assert evaluate(first, "csv", root, tmp_path / "out", *more, *words) == 0
        return column(tmp_path / "out" / "predictions.csv", "prediction")

    new, ignoring = predicted("new"), predicted("ignoring")
    assert abs(new - ignoring).max() > 1e-4
    for words, expected in (([], (new + ignoring) / 2), (["data.icc=true"], new)):
        found = predicted("new old", *words)
        assert found == pytest.approx(expected, abs=2e-6)
        assert np.array_equal(found, predicted("old new", *words))


@pytest.mark.parametrize("source", ["--checkpoint best.pt", "--predictions test/predictions.csv"])
def test_an_existing_report_is_kept_unless_force_is_given(source, score_run, scored_set, tmp_path, capsys):
    option, file = source.split()
    output = shutil.copytree(score_run / "test", tmp_path / "out")
    (output / "metrics.json").write_text("mine")
    before = small.contents(output)
    words = ["evaluate", option, score_run / file, "--dataset", "csv", "--data-root", scored_set]
    words += ["--output", output, "evaluate.bootstrap=0", "data.workers=0", "train.device=cpu"]
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert f"{output} holds predictions.csv, metrics.json" in error and "--force" in error
    assert small.contents(output) == before
    with small.without_drawing():
        assert main([*map(str, words), "--force"]) == 0
    assert read_json(output / "metrics.json")["metrics"]["n"] == 4


def test_the_threshold_travels_with_the_weights_unless_another_is_asked_for(scored_set, tmp_path):
    words = (*small.SHORT, "data.threshold=2.25", "data.limit=8")
    assert small.train("csv", scored_set, tmp_path / "run", *words) == 0
    for extra, expected in {"": 2.25, "data.threshold=4": 4.0}.items():
        best = tmp_path / "run" / "best.pt"
        assert evaluate(best, "csv", scored_set, tmp_path / "out", *extra.split()) == 0
        assert read_json(tmp_path / "out" / "metrics.json")["metrics"]["threshold"] == expected


def test_a_sure_pair_loses_the_same_whichever_is_named_first():
    scale, odds = Scale("label", 0.0, 1.0, 0.5), np.array([[20.0], [0.0]])  # sure of a, and people prefer b
    predictions = Predictions(np.arange(2), odds, np.empty((2, 0)), [])
    pair = {"series": np.array(["s", "s"]), "pairs": np.array([[1, 0]]), "preference": np.array([1.0])}
    rated = PairedSet("x", "test", "made", ["a", "b"], ["a", "b"], np.full(2, np.nan), scale, **pair)
    turned = replace(rated, pairs=rated.pairs[:, ::-1], preference=1 - rated.preference)
    with pytest.warns(UserWarning, match="AUC is undefined"):  # of one pair
        losses = [measure_pairs(predictions, each).metrics["log_loss"] for each in (rated, turned)]
    assert losses == pytest.approx([20.0, 20.0], rel=1e-6)


def test_pairs_are_scored_by_a_network_that_knows_single_photographs_only(series_set, score_run, tmp_path):
    assert evaluate(score_run / "best.pt", "pairs", series_set, tmp_path / "out") == 0
    report = read_json(tmp_path / "out" / "metrics.json")
    assert report["odds_of_a_point"] > 0
    assert "fitted" in " ".join(report["notes"])
    alone = shutil.copytree(series_set, tmp_path / "alone", ignore=shutil.ignore_patterns("train*", "val*"))
    assert evaluate(score_run / "best.pt", "pairs", alone, tmp_path / "out2") == 0
    rest = read_json(tmp_path / "out2" / "metrics.json")
    assert "not fitted" in " ".join(rest["notes"])
    for name in ("accuracy", "auc", "series_krcc", "series_best"):
        assert rest["metrics"][name] == report["metrics"][name]
    assert "test_pictures_trained_on" not in report  # ids of a set of ratings say nothing about these


def test_pictures_without_a_label_for_the_task_are_left_out_by_name(scored_set):
    rated = load_dataset("csv", scored_set, ("train",))["train"]
    rated.scores[3] = np.nan
    kept = labelled(rated, "aesthetics")
    assert (len(kept), kept.left_out[-1].id) == (15, rated.ids[3])
    assert kept.left_out[-1].reason == "no label for the task aesthetics"
    assert len(labelled(rated, "emotion")) == 16


def test_broken_and_missing_pictures_are_counted_and_listed(score_run, scored_set, tmp_path, capsys):
    best, split, out = score_run / "best.pt", ("--split", "train"), tmp_path / "out"
    assert evaluate(best, "csv", scored_set, tmp_path / "whole", *split) == 0
    rows = read_csv(tmp_path / "whole" / "predictions.csv")
    assert [row["id"] for row in rows[:2]] == ["0_000.png", "0_001.png"]
    root = shutil.copytree(scored_set, tmp_path / "set")
    (root / "images" / "0_000.png").write_bytes(b"")
    (root / "images" / "0_001.png").unlink()
    assert evaluate(best, "csv", root, out, *split) == 2
    assert "0_000.png cannot be decoded: the file is empty. Repair it" in capsys.readouterr().err
    assert not out.exists()
    assert evaluate(best, "csv", root, out, *split, "--skip-broken") == 0
    found = read_json(out / "metrics.json")
    assert (found["metrics"]["n"], found["left_out"]) == (14, 1)
    [[name, reason]] = found["broken"]
    assert name == "0_000.png" and "the file is empty" in reason
    assert "pictures that cannot be decoded, left out: 1" in capsys.readouterr().out
    assert [row["id"] for row in read_csv(out / "left_out.csv")] == ["0_001.png"]
    assert read_csv(out / "predictions.csv") == rows[2:]
    for number in (5, 11, 17, 23):
        (root / "images" / f"0_{number:03d}.png").write_bytes(b"x")
    assert evaluate(best, "csv", root, out, "--skip-broken") == 2
    assert "none of the 4 pictures of csv test can be decoded, e.g." in capsys.readouterr().err
