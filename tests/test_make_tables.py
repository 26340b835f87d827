"""Tables from saved predictions: right figures, strict verdicts, no half-written file; ours made again."""

import csv
import gzip
import io
import json
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr
from small import ROOT, read_csv, read_json

import metrics
from datasets import load_dataset
from eamb.readers.rated import DataOptions
from eamb.runtime.config import Config, Data, Train, as_yaml
from scripts import make_tables

COUNT = 120  # test pictures; the first of them is in training too
OPTIONS = {"dataset": "csv", "minimum": 1.0, "maximum": 5.0, "threshold": 3.0}


@pytest.fixture
def made(tmp_path):
    return Project(tmp_path)


class Project:
    """A csv set of files that are no pictures, a results folder and a README; nothing needs to be decoded."""

    def __init__(self, folder):
        self.data, self.results, self.readme = folder / "data", folder / "results", folder / "README.md"
        self.data.mkdir()
        self.results.mkdir()
        splits = ["test"] * COUNT + ["train"] * 20 + ["val"] * 5
        self.random = np.random.default_rng(1)
        scores = self.random.integers(4, 21, len(splits)) / 4  # 1 to 5, many of them equal, some exactly 3
        names = [f"{i:03d}.png" for i in range(len(splits))]
        for i, name in enumerate(names):
            (self.data / name).write_text("twin" if i in (0, COUNT) else f"picture {i}")
        lines = [
            "path,split,score",
            *(",".join(map(str, row)) for row in zip(names, splits, scores, strict=True)),
        ]
        (self.data / "ratings.csv").write_text("\n".join(lines))
        options = DataOptions(**{key: value for key, value in OPTIONS.items() if key != "dataset"})
        self.rated = load_dataset("csv", self.data, ("test",), options)["test"]
        self.scores = self.rated.scores
        self.published("block,method,srcc,plcc,accuracy,source,note\nothers,NIMA,.7,,89.0,somewhere,\n")
        self.marked("own", "others")

    def published(self, text):
        (self.results / "published.csv").write_text(text)

    def marked(self, *names):
        markers = [f"<!-- table {name} -->\nold\n<!-- end of table {name} -->\n" for name in names]
        self.readme.write_text("\n".join(["# Before", *markers, "after"]))

    def noisy(self, amount, seed=0):
        return self.scores + amount * np.random.default_rng(seed).standard_normal(COUNT)

    def run(self, name, predicted, seed=0, config=None, **facts):
        """A folder of results; facts are entries of metrics.json."""
        folder = self.results / name
        folder.mkdir()
        if "predictions_file" not in facts:
            config = config or Config(data=Data(**OPTIONS), train=Train(seed=seed, epochs=4))
            (folder / "config.yaml").write_text(as_yaml(config))
            (folder / "metrics.jsonl").write_text('{"epoch": 0, "train_pictures": 1600}\n')
            facts = dict.fromkeys(make_tables.TRAINED_ON, 0) | facts
        self.write_predictions(name, predicted)
        content = {"metrics": metrics.aesthetic_metrics(predicted, self.scores, 3.0), "dataset": "csv"}
        content |= {"split": "test", "split_sha256": self.rated.sha256, **facts}
        (folder / "metrics.json").write_text(json.dumps(content))

    def change(self, file, change):
        """Lets `change` work on the content of a json file of results/, and writes it back."""
        content = read_json(self.results / file)
        change(content)
        (self.results / file).write_text(json.dumps(content))

    def write_predictions(self, name, predicted, ids=None):
        file = io.StringIO()
        writer = csv.writer(file)
        rows = zip(ids or self.rated.ids, map(float, predicted), strict=True)
        writer.writerows([("id", "prediction"), *rows])
        (self.results / name / "predictions.csv.gz").write_bytes(
            gzip.compress(file.getvalue().encode(), mtime=0)
        )

    def tables(self, reference="", **rows):
        rows = [{"name": name, "runs": runs} for name, runs in rows.items()]
        own = {"name": "own", "title": "Ours.", "rows": rows, "reference": reference}
        self.write_tables([own, {"name": "others", "title": "Theirs.", "block": "others"}])

    def write_tables(self, tables):
        (self.results / "tables.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))

    def make(self, measure=True, resamples=50):
        words = ["--results", self.results, "--readme", self.readme, "--resamples", resamples]
        words += ["--data-root", f"csv={self.data}"] if measure else []
        return make_tables.main(list(map(str, words)))

    def measured(self, subset="all"):
        return read_json(self.results / "measured.json")["own"][subset]

    def files(self):
        paths = [path for path in self.results.parent.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in paths}


def test_figures_are_those_of_the_predictions_by_another_route(made):
    first, second = made.noisy(0.5, 1), made.noisy(0.5, 2)
    made.run("a", first)
    made.run("b", second, seed=1)
    made.tables(Row=["a", "b"])
    assert made.make() == 0
    row = made.measured()["rows"]["Row"]
    ranks = [spearmanr(predicted, made.scores).statistic for predicted in (first, second)]
    assert row["srcc"]["mean"] == pytest.approx(statistics.mean(ranks), rel=1e-9)
    assert row["srcc"]["sd"] == pytest.approx(statistics.stdev(ranks), rel=1e-6)
    for name, high in (("accuracy", np.greater), ("accuracy_inclusive", np.greater_equal)):
        shares = [np.mean(high(p, 3) == high(made.scores, 3)) for p in (first, second)]
        assert row[name]["mean"] == pytest.approx(np.mean(shares), abs=1e-12)
    text, cell = made.readme.read_text(), f"{row['srcc']['mean']:.3f}".removeprefix("0")
    assert f"| Row | 1,600 x 4 | {cell} ± " in text
    assert text.startswith("# Before") and text.endswith("after") and "\nold\n" not in text


def test_intervals_resample_the_pictures_alike_for_all_runs(made):
    # By hand: the same pictures for both rows, ranks by scipy.
    good, worse = made.noisy(0.3, 1), made.noisy(0.6, 2)
    made.run("a", good)
    made.run("b", worse)
    made.tables("Worse", Good=["a"], Worse=["b"])
    assert made.make() == 0
    random, found = np.random.default_rng(0), []
    for _ in range(50):
        chosen = random.integers(COUNT, size=COUNT)
        found.append([spearmanr(p[chosen], made.scores[chosen]).statistic for p in (good, worse)])
    own, other = np.array(found).T
    for values, entry in (
        (own, made.measured()["rows"]["Good"]["srcc"]),
        (own - other, made.measured()["differences"]["Good"]["srcc"]),
    ):
        assert [entry["low"], entry["high"]] == pytest.approx(np.quantile(values, [0.025, 0.975]), rel=1e-9)


def test_pictures_with_a_twin_in_training_are_left_out_in_figures_of_their_own(made):
    predicted = made.noisy(0.5)
    made.run("a", predicted)
    made.tables(Row=["a"])
    assert made.make() == 0
    rest = made.measured("without_twins")
    assert rest["n"] == COUNT - 1
    assert rest["rows"]["Row"]["srcc"]["mean"] == pytest.approx(
        spearmanr(predicted[1:], made.scores[1:]).statistic, rel=1e-9
    )
    assert "without the 1 twins" in made.readme.read_text()


# ---- verdicts


def test_identical_predictions_differ_by_nothing_and_do_not_count(made):
    predicted = made.noisy(0.5)
    for name in ("a", "b", "c", "d"):
        made.run(name, predicted, seed=ord(name))
    made.tables("Base", Base=["a", "b"], Same=["c", "d"])
    assert made.make() == 0
    for entry in made.measured()["differences"]["Same"].values():
        assert (entry["difference"], entry["low"], entry["high"], entry["counts"]) == (0, 0, 0, False)
    assert (
        "- Same minus Base: SRCC +.000 (paired .000 to .000), within the seed spread of .000: does not"
        in (made.readme.read_text())
    )


def test_a_clearly_better_row_counts(made):
    for seed in (0, 1, 2):
        made.run(f"base_{seed}", made.noisy(1.5, seed), seed=seed)
        made.run(f"better_{seed}", made.noisy(0.1, seed), seed=seed)
    made.tables("Base", Base=[f"base_{i}" for i in range(3)], Better=[f"better_{i}" for i in range(3)])
    assert made.make() == 0
    entry = made.measured()["differences"]["Better"]["srcc"]
    deviations = [made.measured()["rows"][row]["srcc"]["sd"] for row in ("Base", "Better")]
    assert entry["counts"] and entry["low"] > 0
    assert entry["seed_spread"] == pytest.approx(2 * np.hypot(*deviations))
    assert ": counts.\n" in made.readme.read_text() and "does not count" not in made.readme.read_text()


def test_a_difference_beyond_its_interval_but_not_beyond_the_seeds_does_not_count(made):
    for name, amount, seed in (("a", 0.1, 0), ("b", 2.0, 1), ("c", 0.05, 2)):
        made.run(name, made.noisy(amount, seed), seed=seed)
    made.tables("Base", Base=["a", "b"], Better=["c"])
    assert made.make() == 0
    entry = made.measured()["differences"]["Better"]["srcc"]
    assert entry["low"] > 0 and not entry["counts"]
    # One seed: given the deviation of the only row that has one.
    sd = made.measured()["rows"]["Base"]["srcc"]["sd"]
    assert entry["seed_spread"] == pytest.approx(2 * np.hypot(sd, sd))
    text = made.readme.read_text()
    assert "within the seed spread of " in text and "(one seed: the table's largest): does not count." in text


def test_a_difference_beyond_the_seeds_whose_interval_holds_0_does_not_count(made):
    for name, seed in (("a", 1), ("b", 1), ("c", 4), ("d", 4)):
        made.run(name, made.noisy(0.5, seed), seed=ord(name))
    made.tables("Base", Base=["a", "b"], Other=["c", "d"])
    assert made.make() == 0
    entry = made.measured()["differences"]["Other"]["srcc"]
    assert entry["low"] < 0 < entry["high"] and abs(entry["difference"]) > entry["seed_spread"] == 0
    assert not entry["counts"]
    assert "beyond the seed spread of .000: does not count." in made.readme.read_text()


def test_without_any_second_seed_nothing_counts(made):
    made.run("a", made.noisy(2.0))
    made.run("b", made.noisy(0.1))
    made.tables("Base", Base=["a"], Better=["b"])
    assert made.make() == 0
    entry = made.measured()["differences"]["Better"]["srcc"]
    assert entry["low"] > 0 and not entry["counts"] and entry["seed_spread"] is None
    assert "seed spread unknown: does not count." in made.readme.read_text()


# ---- rows of all kinds


def test_pictures_that_were_trained_on_are_told(made):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.5), seed=1, test_pictures_trained_on=1234)
    branch = "test_pictures_that_the_emotion_branch_was_trained_on"
    made.run("c", made.noisy(0.5), **{branch: 7})
    made.run("theirs", made.noisy(0.5), predictions_file="scores.csv")
    made.tables(Row=["a", "b"], Branch=["c"], Clean=["a2"], Theirs=["theirs"])
    made.run("a2", made.noisy(0.4))
    assert made.make() == 0
    text = made.readme.read_text()
    assert "| Row, **contaminated (1,234)** |" in text
    assert "| Branch, **emotion branch contaminated (7)** |" in text
    assert "| Clean |" in text
    counts = {
        line["row"]: (line["trained_on"], line["emotion_branch_trained_on"])
        for line in read_csv(made.results / "tables" / "own.csv")
    }
    assert counts == {"Row": ("1234", "0"), "Branch": ("0", "7"), "Clean": ("0", "0"), "Theirs": ("", "")}


@pytest.mark.parametrize("key", make_tables.TRAINED_ON)
def test_a_run_of_ours_that_does_not_say_what_it_was_trained_on(made, capsys, key):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    made.change("a/metrics.json", lambda content: content.pop(key))
    refused(made, capsys, f"metrics.json has no '{key}'; evaluate the run again", measure=False)


def test_predictions_of_another_program_have_no_budget_and_only_the_metrics_that_make_sense(made):
    predicted = 100 * made.noisy(0.5)
    made.run("theirs", predicted, predictions_file="scores.csv")
    content = read_json(made.results / "theirs" / "metrics.json")
    content["metrics"] = {name: content["metrics"][name] for name in ("n", "srcc", "plcc", "krcc")}
    (made.results / "theirs" / "metrics.json").write_text(json.dumps(content))
    made.run("ours", made.noisy(0.5))
    made.tables("Ours", Theirs=["theirs"], Ours=["ours"])
    assert made.make() == 0
    text = made.readme.read_text()
    assert "| Theirs, trained on unknown pictures | | ." in text
    row = next(line for line in text.splitlines() if line.startswith("| Theirs"))
    assert row.split(" | ")[-1] == "`theirs` |" and "%" not in row
    assert made.measured()["rows"]["Theirs"]["rmse"]["mean"] is None


def test_a_set_that_was_read_in_another_way_is_read_so_again(made, capsys):
    made.run("theirs", made.noisy(0.5), predictions_file="scores.csv")
    made.tables(Theirs=["theirs"])
    known = {key: value for key, value in OPTIONS.items() if key != "dataset"}
    made.change("theirs/metrics.json", lambda content: content.update(data=known | {"threshold": 2.0}))
    refused(made, capsys, "theirs: metrics, accuracy is")  # they were measured at 3
    made.change("theirs/metrics.json", lambda content: content.update(data=known))
    assert made.make() == 0
    made.change("theirs/metrics.json", lambda content: content.update(data={"colour": 1}))
    refused(made, capsys, "theirs/metrics.json: 'data' has ")


def test_of_labels_the_accuracy_decides(made):
    config = Config(data=Data(**OPTIONS, target="label"), train=Train(epochs=4))
    high = made.scores > 3
    for name, wrong in (("a", 40), ("b", 2)):
        predicted = np.abs(high - 0.2)
        predicted[:wrong] = 1 - predicted[:wrong]
        figures = metrics.aesthetic_metrics(predicted, high.astype(float), 0.5)
        made.run(name, predicted, config=config, metrics=figures)
    made.tables("A", A=["a"], B=["b"])
    assert made.make() == 0
    assert read_json(made.results / "measured.json")["own"]["decisive"] == "accuracy"
    assert "- B minus A: accuracy +31.7 % (paired " in made.readme.read_text()


def test_rows_of_unequal_budgets_are_told_so(made):
    for name, epochs in (("a", 4), ("b", 9), ("c", 4)):
        made.run(name, made.noisy(0.5), config=Config(data=Data(**OPTIONS), train=Train(epochs=epochs)))
    made.tables("A", A=["a"], B=["b"], C=["c"])
    assert made.make() == 0
    text = made.readme.read_text()
    assert "- B minus A (1,600 x 9 pictures against 1,600 x 4): SRCC +.000" in text
    assert "- C minus A: SRCC +.000" in text


def test_a_picture_that_could_not_be_decoded_is_in_no_figure(made):
    predicted, rest = made.noisy(0.5), slice(1, None)
    figures = metrics.aesthetic_metrics(predicted[rest], made.scores[rest], 3.0)
    made.run("a", predicted, metrics=figures, broken=[[made.rated.ids[0], "cut"]])
    made.write_predictions("a", predicted[rest], made.rated.ids[rest])
    made.tables(Row=["a"])
    assert made.make() == 0
    assert made.measured()["n"] == COUNT - 1


def test_tables_of_sets_that_are_not_given_keep_their_figures(made):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    assert made.make() == 0
    before = read_json(made.results / "measured.json")["own"]
    made.run("b", made.noisy(0.4), dataset="para")
    other = {"name": "other", "title": "Another set.", "rows": [{"name": "B", "runs": ["b"]}]}
    tables = make_tables.read_tables(made.results / "tables.yaml")
    tables.append(make_tables.as_table(other, made.results / "tables.yaml"))
    runs = make_tables.read_runs(tables, made.results)
    kept = {"own": before, "gone": {}, "other": {"figures": "old"}}
    found = make_tables.measure_tables(tables, runs, {"csv": made.data}, kept, 50)
    assert found == {"own": before, "other": {"figures": "old"}}


def test_a_published_cell_that_is_unknown_stays_empty(made):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    made.published(
        "block,method,srcc,plcc,accuracy,source,note\nothers,X,.701,,,paper,\nothers,Y,,.8,,thesis,\n"
    )
    assert made.make() == 0
    assert "| X | .701 | | paper |\n| Y | | .8 | thesis |" in made.readme.read_text()
    lines = read_csv(made.results / "tables" / "others.csv")
    assert [line["srcc"] for line in lines] == [".701", ""]


# ---- written once, written again


def test_the_tables_are_the_same_every_time_and_without_the_ratings(made):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.4))
    made.tables("A", A=["a"], B=["b"])
    assert made.make() == 0
    before = made.files()
    assert made.make() == 0
    assert made.files() == before
    (made.data / "ratings.csv").unlink()
    assert made.make(measure=False) == 0
    del before[made.data / "ratings.csv"]
    assert made.files() == before
    assert "000.png" not in (made.results / "measured.json").read_text()


def test_the_tables_of_this_project_are_those_of_its_results():
    results = ROOT / "results"
    tables = make_tables.read_tables(results / "tables.yaml")
    runs, measured = make_tables.read_runs(tables, results), read_json(results / "measured.json")
    texts = make_tables.written_tables(tables, runs, measured, results, ROOT / "README.md")
    assert len(texts) == len(tables) + 1
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python scripts/make_tables.py"
    assert {*(results / "tables").iterdir()} == {*texts} - {ROOT / "README.md"}


def test_a_table_that_was_measured_for_other_predictions_is_refused(made, capsys):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    refused(made, capsys, "table own: the predictions of a were not measured yet; run", measure=False)
    assert made.make() == 0
    made.write_predictions("a", made.noisy(0.4))
    refused(made, capsys, "predictions of a are not those that were measured; run", measure=False)
    refused(made, capsys, "--data-root csv=DIR", measure=False)


def test_another_reference_has_to_be_measured(made, capsys):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.4))
    made.tables("A", A=["a"], B=["b"])
    assert made.make() == 0
    made.tables("B", A=["a"], B=["b"])
    refused(made, capsys, "table own: rows or reference are not those measured", measure=False)


@pytest.mark.parametrize("place", ["runs", "rows", "without_twins", "differences"])
def test_figures_that_were_changed_by_hand_are_found(made, capsys, place):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.5), seed=1)
    made.tables("A", A=["a"], B=["b"])
    assert made.make() == 0

    def change(content):
        own = content["own"]["without_twins" if place == "without_twins" else "all"]
        if place in ("runs", "without_twins"):
            own["runs"]["a"]["plcc"] += 0.01
        elif place == "rows":
            own["rows"]["A"]["plcc"]["mean"] += 0.01
        else:
            own["differences"]["B"]["plcc"]["difference"] += 0.01

    made.change("measured.json", change)
    part = "without_twins" if place == "without_twins" else "all"
    refused(made, capsys, f"table own: {part}: plcc of ", measure=False)
    assert made.make() == 0  # measured again


# ---- bad input: named, and nothing is written


def refused(made, capsys, message, measure=True):
    before = made.files()
    assert made.make(measure=measure) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert made.files() == before


def test_predictions_are_found_by_their_id(made):
    predicted = made.noisy(0.5)
    made.run("a", predicted)
    made.tables(Row=["a"])
    made.write_predictions("a", predicted[::-1], made.rated.ids[::-1])
    assert made.make() == 0  # the metrics are still those in metrics.json


def test_a_metric_that_the_predictions_do_not_give_is_named_with_both_values(made, capsys):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    content = read_json(made.results / "a" / "metrics.json")
    right, content["metrics"]["plcc"] = content["metrics"]["plcc"], 0.5
    (made.results / "a" / "metrics.json").write_text(json.dumps(content))
    refused(made, capsys, "a: metrics, plcc is 0.5 in metrics.json and")
    assert made.make() == 2
    assert f"{right:.6f}" in capsys.readouterr().err
    content["metrics"]["plcc"] = right
    content["without_twins"] = {"metrics": {"srcc": 0.25}}
    (made.results / "a" / "metrics.json").write_text(json.dumps(content))
    refused(made, capsys, "a: without_twins, srcc is 0.25 in metrics.json")


def test_the_emotions_recorded_are_compared_too(made):
    shares = np.random.default_rng(0).dirichlet(np.ones(2), COUNT)
    votes = np.random.default_rng(1).dirichlet(np.ones(2), COUNT)
    rated = replace(made.rated, emotions=votes, emotion_classes=("awe", "fear"))
    predicted = made.noisy(0.5)
    columns = {"id": np.array(rated.ids), "prediction": predicted}
    columns |= {"emotion_awe": shares[:, 0], "emotion_fear": shares[:, 1]}
    found = metrics.emotion_metrics(shares, votes, ["awe", "fear"])
    content = {"metrics": metrics.aesthetic_metrics(predicted, made.scores, 3.0)}
    content["emotions"] = {"emotions": ["awe", "fear"], "metrics": found}
    run = make_tables.Run(made.results / "a", content, None, "", None)
    make_tables.check_recorded(run, columns, rated, set())
    content["emotions"] = {"emotions": ["awe", "fear"], "metrics": found | {"kl": found["kl"] + 0.01}}
    with pytest.raises(ValueError, match="a: emotions, kl is "):
        make_tables.check_recorded(run, columns, rated, set())


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tables.yaml", "- name: [own", "tables.yaml is not YAML: "),
        ("tables.yaml", "own\n", "tables.yaml must be a list of tables"),
        ("tables.yaml", "- own\n", "tables.yaml: table own is a str; it takes name, title, rows"),
        ("tables.yaml", "- {name: own, title: T, rows: []}", "tables.yaml: table own has no rows"),
        ("tables.yaml", "- {name: own, title: T, rows: }", "tables.yaml: table own has no rows"),
        (
            "tables.yaml",
            "- {name: own, title: T, rows: [A]}",
            "table own, row A is a str; it takes name, runs",
        ),
        ("tables.yaml", "- {name: own, title: T, rows: A}", "table own has rows that are no list, as in"),
        ("a/metrics.json", '{"metrics": {"n"', "a/metrics.json is no whole JSON file ("),
        ("a/metrics.json", "[]", "a/metrics.json holds no {...} but []; evaluate the run again"),
        ("a/metrics.jsonl", "", "the first line of RESULTS/a/metrics.jsonl does not say train_pictures"),
        ("a/metrics.jsonl", "{}\n", "the first line of RESULTS/a/metrics.jsonl does not say train_pictures"),
        ("measured.json", '{"own": ', "measured.json is no whole JSON file ("),
    ],
)
@pytest.mark.parametrize("measure", [False, True])
def test_a_file_that_is_cut_or_holds_something_else(made, capsys, file, text, message, measure):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    (made.results / file).write_text(text)
    refused(made, capsys, message.replace("RESULTS", str(made.results)), measure)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "metrics.jsonl", "predictions.csv.gz"])
def test_a_folder_without_one_of_its_files(made, capsys, name):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    (made.results / "a" / name).unlink()
    refused(made, capsys, f"a (table own) has no {name}; scripts/keep_run.py fills it", measure=False)


def test_an_unknown_run(made, capsys):
    made.tables(Row=["nowhere"])
    refused(made, capsys, "table own names the run nowhere, but there is no folder", measure=False)


def test_predictions_of_another_split(made, capsys):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.4), split_sha256="0" * 64)
    made.tables(A=["a"], B=["b"])
    refused(made, capsys, "table own: split_sha256 of b is 0000", measure=False)
    made.tables(B=["b"])
    refused(made, capsys, "b (table own) predicts another split than csv test")


def test_predictions_that_lack_a_picture_or_are_no_numbers(made, capsys):
    made.run("a", made.noisy(0.5))
    made.tables(Row=["a"])
    ids = [*made.rated.ids[:-1], "other.png"]
    made.write_predictions("a", made.noisy(0.5), ids)
    refused(
        made, capsys, "a: predictions.csv.gz must have each of the 120 pictures of csv test; 2 are missing"
    )
    made.write_predictions("a", np.full(COUNT, np.nan))
    refused(made, capsys, "a: datasets: predictions.csv.gz row 2: 'prediction' is 'nan', expected a number")
    (made.results / "a" / "predictions.csv.gz").write_bytes(gzip.compress(b"id,prediction\n")[:-9])
    refused(made, capsys, "results/a: ")


def test_runs_of_a_row_that_are_not_seeds_of_one_network(made, capsys):
    config = Config(data=Data(**OPTIONS), train=Train(epochs=4))
    made.run("a", made.noisy(0.5), config=config)
    made.run("b", made.noisy(0.4), config=replace(config, model=replace(config.model, width=64)))
    made.tables(Row=["a", "b"])
    refused(
        made, capsys, "row Row: b is not a with another seed: model.width was 256 and is 64; make it a row"
    )
    made.run("c", made.noisy(0.4), config=config)
    made.tables(Row=["a", "c"])
    refused(made, capsys, "row Row: two runs have 'train.seed=0'")


def test_names_that_are_there_twice(made, capsys):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.4))
    rows = [{"name": "Row", "runs": [name]} for name in ("a", "b")]
    own = {"name": "own", "title": "Ours.", "rows": rows}
    made.write_tables([own])
    refused(made, capsys, "table own: two rows are named 'Row'", measure=False)
    made.write_tables([{**own, "rows": rows[:1]}] * 2)
    refused(made, capsys, "two tables are named 'own'", measure=False)
    made.tables(A=["a"], B=["a"])
    refused(made, capsys, "two rows or seeds are the run 'a'", measure=False)
    made.tables(A=["a"])
    made.published("block,method,srcc,plcc,accuracy,source,note\n" + 2 * "others,X,.7,,,paper,\n")
    refused(made, capsys, "published.csv row 3: others, X is in row 2 too", measure=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("others,X,.7,,, ,", "published.csv row 2: others, X has no source"),
        ("others,,.7,,,paper,", "published.csv row 2: others,  has no block or no method"),
        ("others,X,1.7,,,paper,", "others, X: srcc is '1.7', not a figure up to 1"),
        ("others,X,about .7,,,paper,", "srcc is 'about .7', not a figure"),
        (
            "others,X,.7,,,Smith, Table 1,",
            "published.csv is no readable table: row 2 has 8 cells, expected 7",
        ),
        ("alone,X,.7,,,paper,", "must be both in published.csv and in a table"),
    ],
)
def test_a_published_row_that_is_wrong(made, capsys, row, message):
    made.run("a", made.noisy(0.5))
    made.tables(A=["a"])
    made.published(f"block,method,srcc,plcc,accuracy,source,note\n{row}\n")
    refused(made, capsys, message, measure=False)


def test_markers_and_tables_belong_together(made, capsys):
    made.run("a", made.noisy(0.5))
    made.tables(A=["a"])
    assert made.make() == 0
    order = "must hold once, in this order, <!-- table others --> and <!-- end of table others -->"
    made.marked("own")
    refused(made, capsys, order, measure=False)
    made.marked("own")
    turned = "<!-- end of table others -->\n<!-- table others -->"
    made.readme.write_text(f"{made.readme.read_text()}\n{turned}")
    refused(made, capsys, order, measure=False)
    made.marked("own", "others", "third")
    refused(made, capsys, "has markers of 'third', a table that tables.yaml lacks", measure=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "Ours."}, "table own has the unknown key 'titel'"),
        ({"title": ""}, "table own has no title"),
        ({"reference": "B"}, "table own: its reference 'B' is none of its rows: ['A']"),
        ({"block": "others"}, "table own needs either rows (ours) or block"),
        ({"rows": [{"name": "A", "runs": "a"}]}, "table own, row A has runs that are no list"),
        ({"rows": [{"name": "A"}]}, "table own, row A has no runs; it takes name, runs"),
    ],
)
def test_a_table_that_is_described_wrongly(made, capsys, change, message):
    made.run("a", made.noisy(0.5))
    made.write_tables([{"name": "own", "title": "Ours.", "rows": [{"name": "A", "runs": ["a"]}]} | change])
    refused(made, capsys, message, measure=False)


def test_a_set_that_no_table_is_on(made, capsys):
    made.run("a", made.noisy(0.5), dataset="para")
    made.tables(A=["a"])
    refused(made, capsys, "--data-root csv=...: no table is on this set")


def test_the_trials_in_the_results_readme_are_those_of_the_logs():
    results = ROOT / "results"
    line = r"^\| (\w+) \|.*\| (\S+) \| (\S+) \| (\S+) \| (\S+) % \|$"
    rows = re.findall(line, (results / "README.md").read_text(encoding="utf-8"), re.M)
    assert {row[0] for row in rows} == {path.name for path in (results / "trials").iterdir()}
    for name, *figures in rows:
        last = json.loads((results / "trials" / name / "metrics.jsonl").read_text().splitlines()[-1])
        logged = [last[f"val_{metric}"] for metric in ("srcc", "plcc", "rmse")]
        assert figures[:3] == [f"{value:.4f}".lstrip("0") for value in logged], name
        assert figures[3] == f"{100 * last['val_accuracy']:.1f}", name


# ---- what stands in the README by hand


def cell(value: float, interval: list[float]) -> str:
    """-.109 (-.149 to -.068)"""
    shown = [f"{number:.3f}".replace("0.", ".", 1) for number in (value, *interval)]
    return "{} ({} to {})".format(*shown)


def recorded(report: dict, name: str) -> str:
    return cell(report["metrics"][name], report["intervals_95"][name])


def readme_lines(*starts: str) -> list[list[str]]:
    """The cells of the README's table rows that begin so, one each."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[line for line in lines if line.startswith(f"| {start} |")] for start in starts]
    assert [len(found) for found in rows] == [1] * len(starts)
    return [found[0].strip("| ").split(" | ") for found in rows]


def test_the_emotion_table_in_the_readme_is_that_of_the_results():
    shipped, both = readme_lines("PARA's votes (**shipped**)", "PARA's votes and FI's labels")
    results = ROOT / "results"
    for line, folder in ((shipped, "para_lite_emotion"), (both, "emotion_lite_para_fi/para")):
        report = read_json(results / folder / "metrics.json")
        assert line[1:3] == [recorded(report, "kl"), recorded(report, "kl_ratio")]
        assert line[-1] == f"`results/{folder.removesuffix('/para')}`"
    fi = read_json(results / "emotion_lite_para_fi" / "fi" / "metrics.json")
    assert both[3] == recorded(fi, "accuracy")
    # Of those trained together the table of scores does not have it.
    joint = read_json(results / "para_lite_3000_joint" / "metrics.json")["emotions"]
    assert recorded(joint, "kl") in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_fi_table_in_the_readme_is_that_of_the_results():
    found = read_json(ROOT / "results" / "emotion_lite_folds" / "cross_validation.json")
    lines = readme_lines(
        "emotion branch of EAMB-Net Lite (sees 112 px)",
        "linear probe, same backbone, ImageNet features, 112 px",
        "linear probe, the same at 224 px",
    )
    for line, name in zip(lines, ("network", "probe_112", "probe_224"), strict=True):
        names = [name] if name == "network" else [name, f"network - {name}"]
        assert line[1:] == [cell(found["accuracies"][n], found["accuracies_95"][n]) for n in names]
