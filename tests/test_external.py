"""The referee: our own files score as we do, ids are found as people write them, what does not fit is named.

The pictures here are no pictures: nothing is decoded, and no weights are read.
"""

import gzip
import hashlib

import numpy as np
import pytest
from scipy import stats
from small import read_csv, read_json, write_csv

from datasets import load_dataset
from eamb.evaluation import report as report_module
from eamb.evaluation.evaluate import measure
from eamb.evaluation.external import Finder
from eamb.readers.rated import DataOptions
from eamb.runtime.engine import Predictions
from main import main
from scripts import keep_run

TESTED = range(30, 50)
BINS = [f"p_{value:g}" for value in np.arange(1, 5.5, 0.5)]


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """The plot is the same as a checkpoint's evaluation draws, and takes longer than all else here."""
    monkeypatch.setattr(report_module, "draw_scatter", lambda report, rated, path: path.touch())


@pytest.fixture(scope="module")
def para(tmp_path_factory):
    """PARA with 30 training and 20 test pictures; test picture 35 is training picture 3 again."""
    root = tmp_path_factory.mktemp("para")
    (root / "annotation").mkdir()
    columns = [f"aestheticScore_{value:.1f}" for value in np.arange(1, 5.5, 0.5)]
    header = ",".join(["imageName", "sessionId", "aestheticScore_mean", *columns])
    for split, members in {"Train": range(30), "Test": TESTED}.items():
        lines = [f"p{i}_.jpg,s{i % 3},{score(i)},2,{i % 4},0,1,0,{i % 3},0,1,1" for i in members]
        (root / "annotation" / f"PARA-Giaa{split}.csv").write_text("\n".join([header, *lines]))
    for i in range(50):
        (root / "imgs" / f"s{i % 3}").mkdir(parents=True, exist_ok=True)
        (root / "imgs" / f"s{i % 3}" / f"p{i}_.jpg").write_text(f"picture {3 if i == 35 else i}")
    return root


def score(i: int) -> float:
    """What picture i is rated."""
    return round(1 + 4 * (7 * i % 50) / 50, 2)


def guess(i: int) -> float:
    """What it is predicted."""
    return round(1.1 + 3.8 * (7 * i % 50 + 9 * np.sin(i)) / 70 + 0.5, 9)


def name(i: int) -> str:
    return f"s{i % 3}/p{i}_.jpg"


def table(path, rows, header="id,prediction"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    return path


def guesses(path, change=lambda value: value):
    return table(path, [(name(i), change(guess(i))) for i in TESTED])


def judge(file, root, output, *words, dataset="para") -> int:
    options = ["--predictions", str(file), "--dataset", dataset, "--data-root", str(root)]
    return main(["evaluate", *options, "--output", str(output), "evaluate.bootstrap=0", *map(str, words)])


def judged(file, root, output, *words, dataset="para") -> dict:
    assert judge(file, root, output, *words, dataset=dataset) == 0
    return read_json(output / "metrics.json")


@pytest.fixture(scope="module")
def refereed(para, tmp_path_factory):
    """metrics.json on the usual file."""
    folder = tmp_path_factory.mktemp("refereed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_module, "draw_scatter", lambda report, rated, path: path.touch())
        return judged(guesses(folder / "own.csv"), para, folder / "own")


# ---- our own predictions


def test_what_a_checkpoint_predicted_gets_the_same_figures_to_the_last_digit(score_run, scored_set, tmp_path):
    own = read_json(score_run / "test" / "metrics.json")
    file = score_run / "test" / "predictions.csv"
    found = judged(file, scored_set, tmp_path, "evaluate.bootstrap=20", dataset="csv")
    same = ("metrics", "intervals_95", "majority_accuracy", "split_sha256", "protocol", "dataset", "split")
    assert {key: found[key] for key in same} == {key: own[key] for key in same}
    assert list(read_csv(tmp_path / "predictions.csv")[0]) == ["id", "prediction"]
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "metrics.json", "scatter.png"}


@pytest.mark.parametrize("target", ["distribution", "label"])
def test_so_do_distributions_and_labels(target, para, tmp_path):
    rated = load_dataset("para", para, ("test",), DataOptions(target=target))["test"]
    raw = np.random.default_rng(0).dirichlet(np.ones(rated.scale.outputs + (target == "label")), 20)
    own = measure(
        Predictions(np.arange(20), raw[:, : rated.scale.outputs], np.empty((20, 0)), []), rated, "aesthetics",
        bootstrap=5, twins={"s2/p35_.jpg"},
    )  # fmt: skip
    own.write(tmp_path / "own")
    words = ("evaluate.bootstrap=5", f"data.target={target}")
    found = judged(tmp_path / "own" / "predictions.csv", para, tmp_path / "out", *words)
    own = read_json(tmp_path / "own" / "metrics.json")
    assert {key: found[key] for key in own if key != "notes"} == {k: own[k] for k in own if k != "notes"}
    assert ("emd2" in own["metrics"], "auc" in own["metrics"]) == (
        target == "distribution",
        target == "label",
    )
    files = [tmp_path / folder / "predictions.csv" for folder in ("own", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_refereed_file_is_kept_as_a_run_is(para, tmp_path, monkeypatch):
    judged(guesses(tmp_path / "g.csv"), para, tmp_path / "out")
    monkeypatch.setattr("sys.argv", ["keep_run.py", str(tmp_path / "out"), str(tmp_path / "kept")])
    keep_run.main()
    assert keep_run.names(tmp_path / "kept") == ["metrics.json", "predictions.csv.gz"]
    again = judged(tmp_path / "kept" / "predictions.csv.gz", para, tmp_path / "again")
    assert again["metrics"] == read_json(tmp_path / "kept" / "metrics.json")["metrics"]


# ---- figures


def test_figures_are_of_the_numbers_in_the_file(para, tmp_path, capsys):
    file = guesses(tmp_path / "g.csv")
    found = judged(file, para, tmp_path / "out", "evaluate.bootstrap=9")
    truth, predicted = np.array([[score(i), guess(i)] for i in TESTED]).T
    assert found["metrics"]["srcc"] == pytest.approx(stats.spearmanr(predicted, truth).statistic, abs=1e-12)
    assert found["metrics"]["plcc"] == pytest.approx(stats.pearsonr(predicted, truth).statistic, abs=1e-12)
    assert found["metrics"]["rmse"] == pytest.approx(np.sqrt(((predicted - truth) ** 2).mean()), abs=1e-12)
    assert found["metrics"]["accuracy"] == np.mean((predicted > 3) == (truth > 3))
    low, high = found["intervals_95"]["srcc"]
    assert low < found["metrics"]["srcc"] < high
    assert [float(row["prediction"]) for row in read_csv(tmp_path / "out" / "predictions.csv")] == [
        *predicted
    ]
    assert "SRCC" in capsys.readouterr().out


def test_metrics_json_says_what_was_compared_with_what(para, tmp_path):
    file = guesses(tmp_path / "g.csv")
    found = judged(file, para, tmp_path / "out")
    rated = load_dataset("para", para, ("test",))["test"]
    assert (found["predictions_file"], found["task"]) == ("g.csv", "aesthetics")
    assert found["predictions_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (found["dataset"], found["split"]) == ("para", "test")
    assert (found["protocol"], found["split_sha256"]) == (rated.protocol, rated.sha256)
    assert found["data"] == {}  # as usual
    counts = ("missing_ids", "extra_ids", "duplicate_ids", "left_out")
    assert [found[key] for key in counts] == [0, 0, 0, 0]
    assert "numpy" in found["versions"]
    assert not {"training", "weights_sha256", "trained_on"} & set(found)
    assert str(tmp_path) not in (tmp_path / "out" / "metrics.json").read_text()


def test_pictures_with_an_identical_one_in_training_are_left_out_once_more(para, tmp_path, capsys):
    found = judged(guesses(tmp_path / "g.csv"), para, tmp_path / "out", "evaluate.bootstrap=9")
    rest = found["without_twins"]
    assert (rest["count"], rest["metrics"]["n"]) == (1, 19)
    gaps = [abs(guess(i) - score(i)) for i in TESTED if i != 35]
    assert rest["metrics"]["mae"] == pytest.approx(np.mean(gaps), abs=1e-12)
    assert rest["intervals_95"]["mae"] != found["intervals_95"]["mae"]
    assert f"in training (1): n 19, SRCC {rest['metrics']['srcc']:.4f}, PLCC" in capsys.readouterr().out


def test_shares_of_the_ratings_are_compared_too(para, tmp_path):
    shares = np.random.default_rng(1).dirichlet(np.ones(9), 20)
    rows = [(name(i), guess(i), *own) for i, own in zip(TESTED, shares, strict=True)]
    found = judged(
        table(tmp_path / "g.csv", rows, ",".join(["id,prediction", *BINS])), para, tmp_path / "out"
    )
    rated = load_dataset("para", para, ("test",))["test"].distributions
    gap = np.abs((shares - rated).cumsum(axis=1))
    assert found["metrics"]["emd1"] == pytest.approx(gap.mean(), abs=1e-12)


@pytest.mark.parametrize("factor, shift", [(0.01, 0), (1, 3)])
def test_of_another_unit_only_correlations_count_and_why_is_said(
    factor, shift, para, refereed, tmp_path, capsys
):
    own = refereed["metrics"]
    other = guesses(tmp_path / "g.csv", lambda value: factor * value + shift)
    found = judged(other, para, tmp_path / "out", "evaluate.bootstrap=9")["metrics"]
    assert found == {key: pytest.approx(own[key], abs=1e-12) for key in ("n", "srcc", "plcc", "krcc")}
    said = capsys.readouterr().out
    assert "correlations only: " in said
    assert "of 20 predictions are outside 1 to 5, where the set's ratings are; they go from" in said
    assert "accuracy (" not in said
    assert not (tmp_path / "out" / "scatter.png").exists()


def test_ratings_where_a_probability_is_due_are_told_the_remedy(para, tmp_path, capsys):
    file = guesses(tmp_path / "g.csv")
    assert "accuracy" not in judged(file, para, tmp_path / "out", "data.target=label")["metrics"]
    assert "where the probability of 'high' is" in (said := capsys.readouterr().out)
    assert "data.target=score" in said
    found = judged(file, para, tmp_path / "out", "data.target=score", "data.threshold=3.5")
    assert "accuracy" in found["metrics"]
    assert found["data"] == {"target": "score", "threshold": 3.5}  # what make_tables reads the set with


# ---- ids


@pytest.mark.parametrize(
    "header, row, packed",
    [
        ("id,prediction", "s{0}/p{1}_.jpg,{2}", True),
        ("Image,MOS", "p{1}_.jpg,{2}", False),
        ("prediction,path,score", "{2},data\\PARA\\imgs\\s{0}\\p{1}_.jpg,9", False),
        ("image_name;pred", "p{1}_;{2}", False),
        ("image_name;pred", "p{1}_;{2}", True),
        ("path\tscore\tscore_min", "/data/imgs/s{0}/p{1}_.JPEG\t{2}\t1", False),
    ],
)
def test_files_as_people_write_them_are_the_same(header, row, packed, para, refereed, tmp_path):
    lines = [header, *(row.format(i % 3, i, guess(i)) for i in reversed(TESTED))]
    text = "\n".join(lines).encode()
    file = tmp_path / ("g.csv.gz" if packed else "g.csv")
    file.write_bytes(gzip.compress(text) if packed else text)
    assert judged(file, para, tmp_path / "out")["metrics"] == refereed["metrics"]
    assert [row["id"] for row in read_csv(tmp_path / "out" / "predictions.csv")] == [name(i) for i in TESTED]


@pytest.mark.parametrize(
    "text, position",
    [
        ("a/1.jpg", 0),
        ("x/y/a/1.jpg", 0),
        ("1.jpg", None),  # two of them
        ("2.jpg", 2),
        ("2", 2),
        ("2.PNG", 2),
        ("3.jpg", 3),  # itself, and the end of another
        ("4", None),  # 4.jpg or 4.png
        ("4.png", 6),
        ("imgs/4.png", 6),
        ("b/2.jpg", None),  # in another folder
        ("v1.5", 7),  # .5 is no picture's ending
        ("v1", None),
        ("", None),
    ],
)
def test_an_id_means_the_one_picture_that_fits(text, position):
    ids = ["a/1.jpg", "b/1.jpg", "a/2.jpg", "3.jpg", "a/3.jpg", "4.jpg", "4.png", "v1.5"]
    assert Finder(ids).find(text) == position


def test_ids_without_endings_are_found_by_files(para):
    # As of AVA and IAE, whose ids are numbers.
    assert [Finder(["17", "7"]).find(text) for text in ("7.jpg", "images/17.jpg", "27.jpg")] == [1, 0, None]


def test_missing_extra_and_duplicate_ids_are_counted_and_named(para, tmp_path, capsys):
    rows = [(name(i), guess(i)) for i in TESTED if i not in (31, 40)]
    rows += [
        ("s9/else.jpg", 3),
        (name(3), 2),
        ("p45_", guess(45)),
        (name(33), guess(33)),
        (name(45), guess(45)),
    ]
    found = judged(table(tmp_path / "g.csv", rows), para, tmp_path / "out", "evaluate.bootstrap=3")
    assert [found[key] for key in ("missing_ids", "extra_ids", "duplicate_ids")] == [2, 2, 2]
    known = [i for i in TESTED if i not in (31, 40)]
    assert found["metrics"]["n"] == 18
    gaps = [abs(guess(i) - score(i)) for i in known]
    assert found["metrics"]["mae"] == pytest.approx(np.mean(gaps), abs=1e-12)
    assert found["split_sha256"] == load_dataset("para", para, ("test",))["test"].sha256  # of the whole split
    said = capsys.readouterr().out
    assert "para test (18 of 20: incomplete)\n" in said
    assert "without a prediction, not in the figures: 2 (s1/p31_.jpg, s1/p40_.jpg; id_check.csv)" in said
    assert "ids that para test does not have, not used: 2 (s9/else.jpg, s0/p3_.jpg; id_check.csv)" in said
    assert "counted once: 2 (s0/p33_.jpg, s0/p45_.jpg; id_check.csv)" in said
    assert [tuple(row.values()) for row in read_csv(tmp_path / "out" / "id_check.csv")] == [
        ("s1/p31_.jpg", "missing: no prediction"),
        ("s1/p40_.jpg", "missing: no prediction"),
        ("s9/else.jpg", "extra: not in para test, row 20"),
        ("s0/p3_.jpg", "extra: not in para test, row 21"),
        ("s0/p33_.jpg", "duplicate: rows 4 and 23"),
        ("s0/p45_.jpg", "duplicate: rows 15 and 22 and 24"),
    ]
    judged(guesses(tmp_path / "whole.csv"), para, tmp_path / "out")  # in the same folder, with all ids
    assert not (tmp_path / "out" / "id_check.csv").exists()


def test_only_the_first_ids_are_in_the_message(para, tmp_path, capsys):
    judged(table(tmp_path / "g.csv", [(name(i), guess(i)) for i in TESTED[:10]]), para, tmp_path / "out")
    assert "10 (s1/p40_.jpg, s2/p41_.jpg, s0/p42_.jpg, ...; id_check.csv)" in capsys.readouterr().out
    assert len(read_csv(tmp_path / "out" / "id_check.csv")) == 10


def test_a_missing_picture_is_no_missing_id(para, tmp_path):
    root = tmp_path / "part"
    root.mkdir()
    (root / "annotation").symlink_to(para / "annotation")
    for i in range(49):
        (root / "imgs" / f"s{i % 3}").mkdir(parents=True, exist_ok=True)
        (root / "imgs" / name(i)).symlink_to(para / "imgs" / name(i))
    found = judged(guesses(tmp_path / "g.csv"), root, tmp_path / "out")
    assert [found[key] for key in ("missing_ids", "extra_ids", "left_out")] == [0, 1, 1]
    assert read_csv(tmp_path / "out" / "left_out.csv")[0]["id"] == "s1/p49_.jpg"


# ---- bad input

ROWS = [(name(i), guess(i)) for i in TESTED]
BAD_FILES = {
    "other values": (
        [*ROWS, (name(32), 4.5)],
        f"referee: g.csv rows 4 and 22: 's2/p32_.jpg' is predicted 2 times, as {guess(32)} and 4.5; keep one",
    ),
    "another split": (
        [(name(i), 3) for i in range(30)],
        "g.csv predicts 0 of the 20 pictures of para test; are these predictions of another set, or another "
        "--split? It has 's0/p0_.jpg', and lacks 's0/p30_.jpg'",
    ),
    "fewer than half": (
        ROWS[:9],
        "g.csv predicts 9 of the 20 pictures of para test; are these predictions of another set, or another "
        "--split? It has 's0/p30_.jpg', and lacks 's0/p39_.jpg'",
    ),
    "nan": ([*ROWS, ("else", "nan")], "g.csv row 22: 'prediction' is 'nan', expected a number"),
    "infinite": ([(name(30), "inf"), *ROWS[1:]], "g.csv row 2: 'prediction' is 'inf', expected a number"),
    "text": ([(name(30), "good"), *ROWS[1:]], "g.csv row 2: 'prediction' is 'good', expected a number"),
    "empty": (
        [*ROWS[:3], (name(33), ""), *ROWS[4:]],
        "g.csv row 5: 'prediction' is empty, expected a number",
    ),
    "no id": ([("", 3), *ROWS[1:]], "g.csv row 2: 'id' is empty, expected a text"),
    "nothing": ([], "g.csv has no rows"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_rows_are_one_sentence_and_nothing_is_written(case, para, tmp_path, capsys):
    rows, said = BAD_FILES[case]
    assert_refused(judge(table(tmp_path / "g.csv", rows), para, tmp_path / "out"), said, tmp_path, capsys)


@pytest.mark.parametrize(
    "header, said",
    [
        ("id,guess", "g.csv: which column is the prediction? (found id, guess.) Call it 'prediction'."),
        ("score,mos", "which column is the prediction? (score and mos could be.) Call it 'prediction'."),
        ("number,pred", "which column is the id? (found number, pred.) Call it 'id'."),
    ],
)
def test_columns_that_nobody_can_tell_are_asked_for(header, said, para, tmp_path, capsys):
    file = table(tmp_path / "g.csv", ROWS, header)
    assert_refused(judge(file, para, tmp_path / "out"), said, tmp_path, capsys)


@pytest.mark.parametrize("shares", [[0.1] * 9, [-0.5, 1.5, *[0] * 7]])
def test_shares_that_are_no_distribution_are_refused(shares, para, tmp_path, capsys):
    rows = [(name(i), guess(i), 1, *[0] * 8) for i in TESTED[:-1]] + [(name(49), 3, *shares)]
    file = table(tmp_path / "g.csv", rows, ",".join(["id,prediction", *BINS]))
    said = f"row 21: 'p_1' is '{shares[0]}', expected shares, 0 or more, that sum to 1 over p_1 to p_5"
    assert_refused(judge(file, para, tmp_path / "out"), said, tmp_path, capsys)


def test_a_distribution_that_lacks_a_rating_is_refused(para, tmp_path, capsys):
    rows = [(name(i), guess(i), 1, *[0] * 7) for i in TESTED]
    file = table(tmp_path / "g.csv", rows, ",".join(["id,prediction", *BINS[:-1]]))
    assert_refused(judge(file, para, tmp_path / "out"), "g.csv has no column 'p_5'", tmp_path, capsys)


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("none.csv", None, "none.csv; --predictions is a csv of id and prediction"),
        ("g.csv.gz", b"id,prediction\n", "datasets: g.csv.gz is no readable table: Not a gzipped file"),
        (
            "g.csv.gz",
            gzip.compress(b"id,prediction\n" * 900, mtime=0)[:-9],
            "g.csv.gz is no readable table: Compressed file ended before",
        ),
        ("g.csv", gzip.compress(b"id,prediction\n", mtime=0), "g.csv is no readable table"),
    ],
)
def test_files_that_cannot_be_read_are_one_sentence(file, content, said, para, tmp_path, capsys):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    assert_refused(judge(tmp_path / file, para, tmp_path / "out"), said, tmp_path, capsys)


def test_the_file_itself_is_not_written_over(para, tmp_path, capsys):
    file = guesses(tmp_path / "predictions.csv")
    before = file.read_bytes()
    assert judge(file, para, tmp_path) == 2
    assert "predictions.csv would be written over; choose another --output" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_emotions_are_not_refereed(para, tmp_path, capsys):
    file = guesses(tmp_path / "g.csv")
    ended = judge(file, para, tmp_path / "out", "task=emotion")
    assert_refused(ended, "task=emotion has none. Emotions are evaluated from a", tmp_path, capsys)
    root = write_csv(tmp_path / "set", {"emotion": ["awe", "fear"] * 12})
    ended = judge(file, root, tmp_path / "out", dataset="csv")
    assert_refused(ended, "no picture of csv test has a label for the task aesthetics", tmp_path, capsys)


def assert_refused(ended: int, said: str, folder, capsys) -> None:
    error = capsys.readouterr().err
    assert ended == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (folder / "out").exists()
