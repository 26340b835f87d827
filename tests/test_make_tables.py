"""Tables from saved predictions: right figures, strict verdicts, no half-written file; ours made again."""

import gzip
import json
import re
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr
from small import ROOT, contents, read_csv, read_json, write_table

import metrics
from datasets import load_dataset
from eamb.readers.rated import DataOptions
from eamb.runtime.config import Config, Data, Train, as_yaml
from scripts import make_tables

COUNT = 120  # test pictures; the first of them is in training too
OPTIONS = {"minimum": 1.0, "maximum": 5.0, "threshold": 3.0}
CONFIG = Config(data=Data(dataset="csv", **OPTIONS), train=Train(epochs=4))
BRANCH = "test_pictures_that_the_emotion_branch_was_trained_on"
HEAD = "block,method,srcc,plcc,accuracy,source,note\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A csv set of files that are no pictures; nothing needs to be decoded."""
    folder = tmp_path_factory.mktemp("data")
    splits = ["test"] * COUNT + ["train"] * 20 + ["val"] * 5
    scores = np.random.default_rng(1).integers(4, 21, len(splits)) / 4  # 1 to 5, many equal, some exactly 3
    rows = [(f"{i:03d}.png", *row) for i, row in enumerate(zip(splits, scores, strict=True))]
    for i, (name, *_) in enumerate(rows):
        (folder / name).write_text("twin" if i in (0, COUNT) else f"picture {i}")
    write_table(folder / "ratings.csv", [("path", "split", "score"), *rows])
    return folder


@pytest.fixture(scope="module")
def rated(data):
    return load_dataset("csv", data, ("test",), DataOptions(**OPTIONS))["test"]


@pytest.fixture
def made(tmp_path, data, rated):
    return Project(tmp_path, data, rated)


@pytest.fixture
def one(made):
    """With a table of one run."""
    made.run("a", made.noisy(0.5))
    made.tables(A=["a"])
    return made


class Project:
    """A results folder and a README."""

    def __init__(self, folder, data, rated):
        self.data, self.rated, self.scores = data, rated, rated.scores
        self.results, self.readme = folder / "results", folder / "README.md"
        self.results.mkdir()
        (self.results / "published.csv").write_text(f"{HEAD}others,NIMA,.7,,89.0,somewhere,\n")
        markers = [f"<!-- table {t} -->\nold\n<!-- end of table {t} -->\n" for t in ("own", "others")]
        self.readme.write_text("\n".join(["# Before", *markers, "after"]))

    def noisy(self, amount, seed=0):
        return self.scores + amount * np.random.default_rng(seed).standard_normal(COUNT)

    def run(self, name, predicted, seed=0, config=CONFIG, **facts):
        """A folder of results; facts are entries of metrics.json."""
        folder = self.results / name
        folder.mkdir()
        if "predictions_file" not in facts:
            config = replace(config, train=replace(config.train, seed=seed))
            (folder / "config.yaml").write_text(as_yaml(config))
            (folder / "metrics.jsonl").write_text('{"epoch": 0, "train_pictures": 1600}\n')
            facts = dict.fromkeys(make_tables.TRAINED_ON, 0) | facts
        self.write_predictions(name, predicted)
        content = {"metrics": metrics.aesthetic_metrics(predicted, self.scores, 3.0), "dataset": "csv"}
        content |= {"split": "test", "split_sha256": self.rated.sha256, **facts}
        (folder / "metrics.json").write_text(json.dumps(content))

    def change(self, file, **entries):
        """Changes entries of a json file of results/."""
        content = read_json(self.results / file) | entries
        (self.results / file).write_text(json.dumps(content))

    def write_predictions(self, name, predicted, ids=None):
        table = pd.DataFrame({"id": ids or self.rated.ids, "prediction": predicted})
        content = table.to_csv(index=False, na_rep="nan").encode()
        (self.results / name / "predictions.csv.gz").write_bytes(gzip.compress(content, mtime=0))

    def tables(self, reference="", **rows):
        rows = [{"name": name, "runs": runs} for name, runs in rows.items()]
        own = {"name": "own", "title": "Ours.", "rows": rows, "reference": reference}
        tables = [own, {"name": "others", "title": "Theirs.", "block": "others"}]
        (self.results / "tables.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))

    def make(self, measure=True, resamples=10):
        words = ["--results", self.results, "--readme", self.readme, "--resamples", resamples]
        words += ["--data-root", f"csv={self.data}"] if measure else []
        return make_tables.main(list(map(str, words)))

    def measured(self, subset="all"):
        return read_json(self.results / "measured.json")["own"][subset]


def test_figures_are_those_of_the_predictions_by_another_route(made):
    predictions = [made.noisy(0.5, 1), made.noisy(0.5, 2)]
    for seed, predicted in enumerate(predictions):
        made.run("ab"[seed], predicted, seed=seed)
    made.tables(Row=["a", "b"])
    assert made.make() == 0
    row = made.measured()["rows"]["Row"]
    ranks = [spearmanr(predicted, made.scores).statistic for predicted in predictions]
    assert row["srcc"]["mean"] == pytest.approx(statistics.mean(ranks), rel=1e-9)
    assert row["srcc"]["sd"] == pytest.approx(statistics.stdev(ranks), rel=1e-6)
    for name, high in (("accuracy", np.greater), ("accuracy_inclusive", np.greater_equal)):
        shares = [np.mean(high(p, 3) == high(made.scores, 3)) for p in predictions]
        assert row[name]["mean"] == pytest.approx(np.mean(shares), abs=1e-12)
    text, cell = made.readme.read_text(), f"{row['srcc']['mean']:.3f}".removeprefix("0")
    assert f"| Row | 1,600 x 4 | {cell} ± " in text
    assert text.startswith("# Before") and text.endswith("after") and "\nold\n" not in text
    # The first picture has a twin in training.
    rest = made.measured("without_twins")
    ranks = [spearmanr(predicted[1:], made.scores[1:]).statistic for predicted in predictions]
    assert rest["n"] == COUNT - 1
    assert rest["rows"]["Row"]["srcc"]["mean"] == pytest.approx(statistics.mean(ranks), rel=1e-9)
    assert "without the 1 twins" in text


def test_intervals_resample_the_pictures_alike_for_all_runs(made):
    good, worse = made.noisy(0.3, 1), made.noisy(0.6, 2)
    made.run("a", good)
    made.run("b", worse)
    made.tables("Worse", Good=["a"], Worse=["b"])
    assert made.make(resamples=50) == 0
    random, ranks = np.random.default_rng(0), []
    for _ in range(50):  # by hand: the same pictures for both rows, ranks by scipy
        chosen = random.integers(COUNT, size=COUNT)
        ranks.append([spearmanr(p[chosen], made.scores[chosen]).statistic for p in (good, worse)])
    for part, values in (("rows", np.array(ranks)[:, 0]), ("differences", -np.diff(ranks)[:, 0])):
        entry = made.measured()[part]["Good"]["srcc"]
        assert [entry["low"], entry["high"]] == pytest.approx(np.quantile(values, [0.025, 0.975]), rel=1e-9)


# Of the rows base and other: (noise, random numbers) of each seed.
VERDICTS = {
    "better by far": ([(1.5, 0), (1.5, 1), (1.5, 2)], [(0.1, 0), (0.1, 1), (0.1, 2)], "beyond", True),
    "identical": ([(0.5, 0)] * 2, [(0.5, 0)] * 2, "within the seed spread of .000: does", False),
    "within the seeds": ([(0.1, 0), (2.0, 1)], [(0.05, 2)], "(one seed: the table's largest): does", False),
    "within its interval": ([(0.5, 1)] * 2, [(0.5, 4)] * 2, "beyond the seed spread of .000: does", False),
    "one seed each": ([(2.0, 0)], [(0.1, 0)], "seed spread unknown: does not count", False),
}


@pytest.mark.parametrize(("base", "other", "words", "counts"), VERDICTS.values(), ids=VERDICTS)
def test_a_difference_counts_beyond_its_interval_and_the_spread_of_seeds(made, base, other, words, counts):
    rows = {"Base": base, "Other": other}
    for row, seeds in rows.items():
        for seed, (amount, random) in enumerate(seeds):
            made.run(f"{row}_{seed}", made.noisy(amount, random), seed=seed)
    made.tables("Base", **{row: [f"{row}_{seed}" for seed in range(len(s))] for row, s in rows.items()})
    assert made.make(resamples=50) == 0
    entry = made.measured()["differences"]["Other"]["srcc"]
    assert entry["counts"] is counts
    text = made.readme.read_text()
    verdicts = [f": {verdict}; accuracy > " in text for verdict in ("counts", "does not count")]
    assert words in text and verdicts == [counts, not counts]
    if len(base) == 1:
        assert entry["seed_spread"] is None and entry["low"] > 0
    else:  # a row of one seed is given the deviation of the other
        lent = ("Base", "Other" if len(other) > 1 else "Base")
        deviations = [made.measured()["rows"][row]["srcc"]["sd"] for row in lent]
        assert entry["seed_spread"] == pytest.approx(2 * np.hypot(*deviations))
        assert entry["borrowed"] == (len(other) == 1)
    if words.startswith("beyond the seed"):
        assert entry["low"] < 0 < entry["high"]


# ---- rows of all kinds


def test_pictures_that_were_trained_on_are_told(made):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.5), seed=1, test_pictures_trained_on=1234)
    made.run("c", made.noisy(0.5), **{BRANCH: 7})
    made.run("theirs", made.noisy(0.5), predictions_file="scores.csv")
    made.tables(Row=["a", "b"], Branch=["c"], Clean=["a"], Theirs=["theirs"])
    assert made.make() == 0
    for start in ("Row, **contaminated (1,234)**", "Branch, **emotion branch contaminated (7)**", "Clean"):
        assert f"| {start} |" in made.readme.read_text()
    lines = read_csv(made.results / "tables" / "own.csv")
    counts = {line["row"]: (line["trained_on"], line["emotion_branch_trained_on"]) for line in lines}
    assert counts == {"Row": ("1234", "0"), "Branch": ("0", "7"), "Clean": ("0", "0"), "Theirs": ("", "")}


def test_the_budget_of_several_networks_counts_each(made):
    made.run("one", made.noisy(0.5))
    made.run("mean", made.noisy(0.5), checkpoints=[{}, {}, {}])
    made.run("soup", made.noisy(0.5), origin={"averaged": [{}, {}]})
    made.tables(One=["one"], Mean=["mean"], Soup=["soup"])
    assert made.make() == 0
    text = made.readme.read_text()
    for row in ("| One | 1,600 x 4 |", "| Mean | 1,600 x 4 x 3 |", "| Soup | 1,600 x 4 x 2 |"):
        assert row in text


@pytest.mark.parametrize(
    "facts",
    [
        {"checkpoints": [{"training": {"train": {"epochs": epochs}}} for epochs in (4, 2)]},
        {"checkpoints": [{"training": {"data": {"limit": limit}}} for limit in (0, 800)]},
        {"checkpoints": [{"origin": {}}, {"origin": {"weights_sha256": "0"}}]},
        {"origin": {"averaged": [{"config": {"train": {"epochs": epochs}}} for epochs in (4, 2)]}},
    ],
)
def test_networks_with_different_budgets_have_none_together(facts, made):
    made.run("one", made.noisy(0.5))
    made.run("mean", made.noisy(0.4), **facts)
    made.tables("One", One=["one"], Mean=["mean"], Both=["one", "mean"])
    assert made.make() == 0
    text = made.readme.read_text()
    assert "| Mean | - | ." in text and "| Both | - | ." in text and "- Mean minus One: SRCC" in text
    lines = read_csv(made.results / "tables" / "own.csv")
    assert {line["pictures_x_epochs"] for line in lines if line["row"] == "Mean"} == {""}


def test_runs_that_predict_distributions_have_a_table_of_their_shapes(made, tmp_path, capsys):
    chance = np.random.default_rng(3)
    root, ratings = tmp_path / "votes", np.arange(1, 6)
    splits = ["test"] * COUNT + ["train"] * 20 + ["val"] * 5
    votes = chance.integers(1, 9, (len(splits), 5))
    root.mkdir()
    for i in range(len(splits)):
        (root / f"{i:03d}.png").write_text(f"picture {i}")
    head = ["path", "split", *(f"score{rating}" for rating in ratings)]
    rows = [(f"{i:03d}.png", *row) for i, row in enumerate(zip(splits, *votes.T, strict=True))]
    write_table(root / "ratings.csv", [head, *rows])
    options = DataOptions(target="distribution")
    made.data, made.rated = root, load_dataset("csv", root, ("test",), options)["test"]
    made.scores = made.rated.scores
    config = Config(data=Data(dataset="csv", target="distribution"), train=Train(epochs=4))
    shares = chance.gamma(votes[:COUNT])  # (n, K)
    shares /= shares.sum(axis=1, keepdims=True)
    figures = metrics.aesthetic_metrics(shares @ ratings, made.scores, 3.0)
    compared = metrics.compare_distributions(shares, made.rated.distributions, made.rated.bins)
    figures |= metrics.distribution_metrics(compared)
    made.run("shape", shares @ ratings, config=config, metrics=figures)
    score = Config(data=Data(dataset="csv", target="score"), train=Train(epochs=4))
    made.run("score", made.noisy(0.2), config=score)
    made.tables("Score", Score=["score"], Shape=["shape"])
    refused(made, capsys, "shape was measured on votes, and csv test has none in")
    columns = {"id": made.rated.ids, "prediction": shares @ ratings}
    columns |= {f"p_{rating}": shares[:, i] for i, rating in enumerate(ratings)}
    text = pd.DataFrame(columns).to_csv(index=False)
    (made.results / "shape" / "predictions.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert made.make() == 0
    found = made.measured()["rows"]
    deviations = [np.sqrt(s @ (ratings - s @ ratings) ** 2) for s in (*shares, *made.rated.distributions)]
    spreads = np.array(deviations).reshape(2, COUNT).round(12)  # equal ones may differ in the last bits
    rank = spearmanr(*spreads).statistic
    assert found["Shape"]["std_srcc"]["mean"] == pytest.approx(rank, rel=1e-9)
    assert found["Shape"]["std_mae"]["mean"] == pytest.approx(abs(np.diff(spreads, axis=0)).mean())
    distances = np.diff(np.cumsum([shares, made.rated.distributions], axis=2), axis=0)[0]
    assert found["Shape"]["emd2"]["mean"] == pytest.approx(np.sqrt((distances**2).mean(axis=1)).mean())
    assert found["Score"]["emd2"]["mean"] is None
    page = made.readme.read_text()
    assert "| | EMD (r = 2) | SRCC of the spread | MAE of the spread | votes in the central 50 % |" in page
    [line] = [line for line in page.splitlines() if line.startswith("| Shape | .")]
    assert line.split(" | ")[2].startswith(f"{rank:.3f} (".lstrip("0"))
    assert line.count(" % (") == 2 and page.count("| Score |") == 1
    lines = {
        (r["row"], r["metric"]): r
        for r in read_csv(made.results / "tables" / "own.csv")
        if r["subset"] == "all"
    }
    assert float(lines["Shape", "coverage_80"]["mean"]) == pytest.approx(figures["coverage_80"])
    assert lines["Score", "coverage_80"]["mean"] == ""
    made.change("shape/metrics.json", metrics=figures | {"std_mae": 0.5})
    refused(made, capsys, "shape: std_mae is 0.5 in metrics.json and", measure=False)


def test_predictions_of_another_program_have_only_metrics_that_make_sense_and_unequal_budgets_are_told(made):
    made.run("theirs", 100 * made.noisy(0.5), predictions_file="scores.csv")
    correlations = ("n", "srcc", "plcc", "krcc")
    found = read_json(made.results / "theirs" / "metrics.json")["metrics"]
    made.change("theirs/metrics.json", metrics={name: found[name] for name in correlations})
    for name, epochs in (("a", 4), ("b", 9)):
        made.run(name, made.noisy(0.5), config=replace(CONFIG, train=Train(epochs=epochs)))
    made.tables("A", Theirs=["theirs"], A=["a"], B=["b"], Both=["a", "b"])
    assert made.make() == 0
    text = made.readme.read_text()
    assert "| Both | 1,600 x 4 and 1,600 x 9 | ." in text
    assert "- B minus A (1,600 x 9 pictures against 1,600 x 4): SRCC +.000" in text
    assert "- Theirs minus A: SRCC +.000" in text
    assert "| Theirs, trained on unknown pictures | - | ." in text
    row = next(line for line in text.splitlines() if line.startswith("| Theirs"))
    assert row.split(" | ")[-1] == "`theirs` |" and "%" not in row
    assert made.measured()["rows"]["Theirs"]["rmse"]["mean"] is None


def test_a_set_that_was_read_in_another_way_is_read_so_again(made, capsys):
    made.run("theirs", made.noisy(0.5), predictions_file="scores.csv", data=OPTIONS | {"threshold": 2.0})
    made.tables(Theirs=["theirs"])
    refused(made, capsys, "theirs: accuracy is")  # they were measured at 3
    made.change("theirs/metrics.json", data=OPTIONS)
    assert made.make() == 0


def test_of_labels_the_accuracy_decides(made):
    config = replace(CONFIG, data=replace(CONFIG.data, target="label"))
    high = made.scores > 3
    for name, wrong in (("a", 40), ("b", 2)):
        predicted = np.abs(high - 0.2)
        predicted[:wrong] = 1 - predicted[:wrong]
        figures = metrics.aesthetic_metrics(predicted, high.astype(float), 0.5)
        made.run(name, predicted, config=config, metrics=figures)
    made.tables("A", A=["a"], B=["b"])
    assert made.make() == 0
    assert made.measured("decisive") == "accuracy"
    assert "- B minus A: accuracy +31.7 % (paired " in made.readme.read_text()


def test_a_picture_that_could_not_be_decoded_is_in_no_figure(made):
    predicted, rest = made.noisy(0.5), slice(1, None)
    figures = metrics.aesthetic_metrics(predicted[rest], made.scores[rest], 3.0)
    made.run("a", predicted, metrics=figures, broken=[[made.rated.ids[0], "cut"]])
    made.write_predictions("a", predicted[rest], made.rated.ids[rest])
    made.tables(Row=["a"])
    assert made.make() == 0
    assert made.measured()["n"] == COUNT - 1


# ---- written once, written again


def test_the_tables_are_the_same_every_time_and_without_the_ratings(one):
    assert one.make() == 0
    before = contents(one.results.parent)
    assert one.make() == one.make(measure=False) == 0
    assert contents(one.results.parent) == before
    assert "000.png" not in (one.results / "measured.json").read_text()


def test_the_tables_of_this_project_are_those_of_its_results(tmp_path, capsys):
    results = ROOT / "results"
    tables = make_tables.read_tables(results / "tables.yaml")
    runs = {name: make_tables.read_run(results / name) for table in tables for name in table.runs}
    measured = read_json(results / "measured.json")
    texts = make_tables.written_tables(tables, runs, measured, results, ROOT / "docs" / "results.md")
    assert len(texts) == len(tables) + 1
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python scripts/make_tables.py"
    assert {*(results / "tables").iterdir()} == {*texts} - {ROOT / "docs" / "results.md"}


def test_what_was_measured_for_something_else_is_refused(made, capsys):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.5), seed=1)
    made.tables("A", A=["a"], B=["b"])
    assert made.make() == 0
    stale = "table own: its rows, reference or predictions are not those that were measured; run scripts/"
    made.tables("B", A=["a"], B=["b"])
    refused(made, capsys, stale, measure=False)
    made.tables("A", A=["a"], B=["b"])
    made.write_predictions("a", made.noisy(0.4))
    refused(made, capsys, "--data-root csv=DIR", measure=False)
    refused(made, capsys, "a: srcc is ")  # the predictions are not those of metrics.json


# ---- bad input: named, and nothing is written


def refused(made, capsys, message, measure=True):
    before = contents(made.results.parent)
    assert made.make(measure=measure) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(made.results.parent) == before


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tables.yaml", "- name: [own", "tables.yaml is not a list of tables as its head describes: while"),
        ("tables.yaml", "- {name: own, title: T, titel: T}", "unexpected keyword argument 'titel'"),
        ("tables.yaml", "- {name: own, title: T, rows: []}", "table own needs either a block or rows, each"),
        ("tables.yaml", "- {name: own, title: T, rows: [{name: A}]}", "head describes: 'runs'"),
        ("a/metrics.json", '{"metrics": {"n"', "a/metrics.json is not a complete JSON file"),
        ("a/metrics.jsonl", "{}\n", "a: metrics.json and the head of metrics.jsonl have no 'train_pictures'"),
        ("published.csv", f"{HEAD}others,X,.7,,, ,\n", "published.csv row 2 must have the cells block"),
        ("published.csv", f"{HEAD}others,X,.7,,,A, Table 1,\n", "published.csv row 2 must have the cells"),
        ("published.csv", f"{HEAD}alone,X,.7,,,paper,\n", "published.csv has no row of block 'others'"),
        ("published.csv", "block,method\n", "published.csv row 1 must have the cells block, method, srcc"),
        (
            "../README.md",
            "<!-- table own -->",
            "must hold <!-- table NAME --> and <!-- end of table NAME -->",
        ),
    ],
)
def test_a_file_that_is_cut_or_holds_something_else(one, capsys, file, text, message):
    (one.results / file).write_text(text)
    refused(one, capsys, message)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "metrics.jsonl", "predictions.csv.gz"])
def test_a_folder_without_one_of_its_files(one, capsys, name):
    (one.results / "a" / name).unlink()
    refused(one, capsys, str(one.results / "a" / name), measure=False)


@pytest.mark.parametrize("key", make_tables.TRAINED_ON)
def test_a_run_of_ours_that_does_not_say_what_it_was_trained_on(one, capsys, key):
    path = one.results / "a" / "metrics.json"
    path.write_text(path.read_text().replace(key, "other"))
    refused(one, capsys, f"metrics.jsonl have no '{key}'; evaluate the run again", measure=False)


def test_predictions_of_another_split(made, capsys):
    made.run("a", made.noisy(0.5))
    made.run("b", made.noisy(0.4), split_sha256="0" * 64)
    made.tables(A=["a"], B=["b"])
    refused(made, capsys, "b predicts other pictures than csv test in")


def test_predictions_that_lack_a_picture_or_are_no_numbers(one, capsys):
    values, ids = one.noisy(0.5), one.rated.ids
    one.write_predictions("a", values, [*ids[:-1], "other.png"])
    refused(one, capsys, f"once; 2 are missing, unknown or there twice, e.g. ['{ids[-1]}', 'other.png']")
    one.write_predictions("a", np.full(COUNT, np.nan))
    refused(one, capsys, "predictions.csv.gz row 2")
    (one.results / "a" / "predictions.csv.gz").write_bytes(gzip.compress(b"id,prediction\n")[:-9])
    refused(one, capsys, "predictions.csv.gz")
    one.write_predictions("a", values[::-1], ids[::-1])
    assert one.make() == 0  # matched by their ids


def test_a_set_that_no_table_is_on(made, capsys):
    made.run("a", made.noisy(0.5), dataset="para")
    made.tables(A=["a"])
    refused(made, capsys, f"SET=DIR with the set of a table, as in para=PARA, not 'csv={made.data}")


# ---- what stands in the documents by hand


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


def cell(value: float, interval: list[float]) -> str:
    """-.109 (-.149 to -.068)"""
    shown = [f"{number:.3f}".replace("0.", ".", 1) for number in (value, *interval)]
    return "{} ({} to {})".format(*shown)


def recorded(report: dict, name: str) -> str:
    return cell(report["metrics"][name], report["intervals_95"][name])


PAGES = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
DOCUMENTS = "".join(path.read_text(encoding="utf-8") for path in PAGES)


def document_line(start: str) -> list[str]:
    """The cells of the one table row that begins so."""
    [line] = [line for line in DOCUMENTS.splitlines() if line.startswith(f"| {start} |")]
    return line.strip("| ").split(" | ")


def test_the_emotion_table_in_the_documents_is_that_of_the_results():
    names = ("PARA's votes, the whole picture (**shipped**)", "PARA's votes, 112 px (first)")
    shipped, first, both = map(document_line, (*names, "PARA's votes and FI's labels"))
    results = ROOT / "results"
    folders = (shipped, "para_lite_emotion"), (first, "para_lite_emotion_first")
    for line, folder in (*folders, (both, "emotion_lite_para_fi/para")):
        report = read_json(results / folder / "metrics.json")
        assert line[1:3] == [recorded(report, "kl"), recorded(report, "kl_ratio")]
        assert line[-1] == f"`results/{folder.removesuffix('/para')}`"
    fi = read_json(results / "emotion_lite_para_fi" / "fi" / "metrics.json")
    assert both[3] == recorded(fi, "accuracy")
    # Of those trained together the table of scores does not have it.
    joint = read_json(results / "para_lite_3000_joint" / "metrics.json")["emotions"]
    assert recorded(joint, "kl") in DOCUMENTS


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("emotion branch of the first EAMB-Net Lite (sees 112 px)", "network"),
        ("linear probe, same backbone, ImageNet features, 112 px", "probe_112"),
        ("linear probe, the same at 224 px", "probe_224"),
    ],
)
def test_the_fi_table_in_the_documents_is_that_of_the_results(start, name):
    found = read_json(ROOT / "results" / "emotion_lite_folds" / "cross_validation.json")
    names = [name] if name == "network" else [name, f"network - {name}"]
    cells = [cell(found["accuracies"][n], found["accuracies_95"][n]) for n in names]
    assert document_line(start)[1:] == cells
