"""Predictions of other programs: our own files score as we do, ids are matched, what does not fit is named.

The pictures here are no pictures: nothing is decoded, and no weights are read.
"""

import gzip
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from small import nfd, read_csv, read_json, without_drawing

from datasets import load_dataset
from eamb.evaluation.external import find_pictures, match_ids
from eamb.evaluation.ratings import measure_scores
from eamb.evaluation.report import versions
from eamb.files import file_hash
from eamb.readers.rated import DataOptions
from eamb.runtime.engine import Predictions
from main import main

TESTED = range(30, 50)
BINS = [f"p_{value:g}" for value in np.arange(1, 5.5, 0.5)]


def score(i: int) -> float:
    """What picture i is rated."""
    return round(1 + 4 * (7 * i % 50) / 50, 2)


def guess(i: int) -> float:
    """What it is predicted."""
    return round(1.1 + 3.8 * (7 * i % 50 + 9 * np.sin(i)) / 70 + 0.5, 9)


def name(i: int) -> str:
    return f"s{i % 3}/p{i}_.jpg"


ROWS = [(name(i), guess(i)) for i in TESTED]
HEADER = "id,prediction"


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
        (root / "imgs" / name(i)).write_text(f"picture {3 if i == 35 else i}")
    return root


def write_table(path, rows=ROWS, header=HEADER):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    return path


def evaluate(file, root, output, *words) -> int:
    options = ["--predictions", str(file), "--dataset", "para", "--data-root", str(root)]
    with without_drawing():
        return main(["evaluate", *options, "--output", str(output), "evaluate.bootstrap=0", *words])


def evaluated(file, root, output, *words) -> dict:
    assert evaluate(file, root, output, *words) == 0
    return read_json(output / "metrics.json")


@pytest.mark.parametrize("target", ["score", "distribution", "label"])
def test_our_own_predictions_get_our_own_figures_to_the_last_digit(target, para, tmp_path):
    rated = load_dataset("para", para, ("test",), DataOptions(target=target))["test"]
    raw = np.random.default_rng(0).dirichlet(np.ones(9), 20)[:, : rated.scale.outputs]
    predictions = Predictions(np.arange(20), raw, np.empty((20, 0)), [])
    with without_drawing():
        measure_scores(predictions, rated, bootstrap=5, twins={"s2/p35_.jpg"}).write(tmp_path / "own")
    file = tmp_path / "own" / "predictions.csv"
    found = evaluated(file, para, tmp_path / "out", "evaluate.bootstrap=5", f"data.target={target}")
    own = read_json(tmp_path / "own" / "metrics.json") | {"notes": found["notes"]}
    assert found.items() >= own.items()
    assert ("emd2" in own["metrics"]) == (target == "distribution")
    assert ("auc" in own["metrics"]) == (target == "label")
    assert file.read_bytes() == (tmp_path / "out" / "predictions.csv").read_bytes()
    assert found["data"] == {"target": target}  # make_tables reads the set again


def test_figures_are_of_the_numbers_in_the_file_and_metrics_json_says_of_what(para, tmp_path, capsys):
    file, out = write_table(tmp_path / "g.csv"), tmp_path / "out"
    found = evaluated(file, para, out, "evaluate.bootstrap=9")
    predicted, truth = ([function(i) for i in TESTED] for function in (guess, score))
    assert found["metrics"]["srcc"] == pytest.approx(stats.spearmanr(predicted, truth).statistic, abs=1e-12)
    rest = found["without_twins"]  # test picture 35 has an identical one in training
    assert (rest["count"], rest["metrics"]["n"]) == (1, 19)
    assert rest["intervals_95"]["mae"] != found["intervals_95"]["mae"]
    assert f"in training (1): n 19, SRCC {rest['metrics']['srcc']:.4f}, PLCC" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"predictions.csv", "metrics.json", "scatter.png"}
    rated = load_dataset("para", para, ("test",))["test"]
    expected = {"task": "aesthetics", "dataset": "para", "split": "test", "protocol": rated.protocol}
    expected |= {"split_sha256": rated.sha256, "predictions_file": "g.csv", "versions": versions()}
    expected |= {"predictions_sha256": file_hash(file), "data": {}}
    expected |= dict.fromkeys(("missing_ids", "extra_ids", "duplicate_ids", "left_out"), 0)
    assert found.items() >= expected.items()
    assert str(tmp_path) not in (out / "metrics.json").read_text()


@pytest.mark.parametrize("factor, target", [(0.01, "score"), (4, "score"), (1, "label")])
def test_of_another_unit_only_correlations_count_and_why_is_said(factor, target, para, tmp_path, capsys):
    file = write_table(tmp_path / "g.csv", [(name(i), factor * guess(i)) for i in TESTED])
    found = evaluated(file, para, tmp_path / "out", f"data.target={target}")["metrics"]
    assert list(found) == ["n", "srcc", "plcc", "krcc"]
    expected = stats.pearsonr([guess(i) for i in TESTED], [score(i) for i in TESTED]).statistic
    assert found["plcc"] == pytest.approx(expected, abs=1e-12)
    said = capsys.readouterr().out
    assert "correlations only: " in said and "of 20 predictions are outside" in said
    assert ("data.target=score" in said) == (target == "label")
    assert not (tmp_path / "out" / "scatter.png").exists()


@pytest.mark.parametrize(
    "header, row, packed",
    [
        (HEADER, "s{0}/p{1}_.jpg,{2}", True),
        ("prediction,id,score", "{2},data\\PARA\\imgs\\s{0}\\p{1}_.jpg,9", False),
        ("path;score", "p{1}_;{2}", True),
        ("sep=;\nid;prediction", "s{0}/p{1}_.jpg;{3}", False),
        ("path\tscore\tscore_min", "/data/imgs/s{0}/p{1}_.JPEG\t{2}\t1", False),
    ],
)
def test_files_as_people_write_them_are_the_same(header, row, packed, para, tmp_path):
    lines = [
        header,
        *(row.format(i % 3, i, guess(i), str(guess(i)).replace(".", ",")) for i in reversed(TESTED)),
    ]
    text = "\n".join(lines).encode()
    file = tmp_path / ("g.csv.gz" if packed else "g.csv")
    file.write_bytes(gzip.compress(text) if packed else text)
    assert evaluate(file, para, tmp_path / "out") == 0
    rows = [(row["id"], row["prediction"]) for row in read_csv(tmp_path / "out" / "predictions.csv")]
    assert rows == [(name, str(value)) for name, value in ROWS]


def test_files_with_other_accents_are_told_apart(para, tmp_path, capsys):
    rated = load_dataset("para", para, ("test",))["test"]
    rated = replace(rated, ids=[f"ü{i}" for i in rated.ids])
    file = write_table(tmp_path / "g.csv", [(nfd(f"ü{i}"), value) for i, value in ROWS])
    predictions, misfits = match_ids(file, rated)
    assert len(predictions) == 20 and not any(misfits.values())
    twice = replace(rated, ids=[nfd(i) for i in rated.ids[:10]] + rated.ids[:10])
    file = write_table(tmp_path / "g.csv", [(twice.ids[10], 3)])
    with pytest.raises(ValueError, match=r"It has '\\xfcs0/p30_.jpg', and lacks 'u\\u0308s0/p30_.jpg'"):
        match_ids(file, twice)


def test_an_id_means_the_one_picture_that_fits():
    ids = ["a/1.jpg", "b/1.jpg", "a/2.jpg", "3.jpg", "a/3.jpg", "4.jpg", "4.png", "v1.5", "17", "7"]
    fitting = {"a/1.jpg": "a/1.jpg", "x/y/a/1.jpg": "a/1.jpg", "2.jpg": "a/2.jpg", "2": "a/2.jpg"}
    fitting |= {"2.PNG": "a/2.jpg", "4.png": "4.png", "images/17.jpg": "17"}  # AVA's and IAE's are numbers
    fitting |= {"3.jpg": "3.jpg", "v1.5": "v1.5"}  # the end of another too; .5 is no picture's ending
    assert find_pictures(fitting, ids) == [ids.index(name) for name in fitting.values()]
    ids += [nfd("é/ö.jpg"), "ü/ö.jpg", nfd("ü/ö.jpg")]
    for text, meant in {"x/é/ö.jpg": -3, "é/ö": -3, ids[-1]: -1, ids[-2]: -2, "ü/ö": 0, "ö": 0}.items():
        assert find_pictures([text], ids) == [len(ids) + meant if meant else -1]
    # Two of them, 4.jpg or 4.png, in another folder, no such one
    assert find_pictures(["1.jpg", "4", "b/2.jpg", "v1", "27.jpg", ""], ids) == [-1] * 6


def test_missing_extra_and_duplicate_ids_are_counted_and_named(para, tmp_path, capsys):
    known = [i for i in TESTED if i not in (31, 40, 41, 42)]
    rows = [(name(i), guess(i)) for i in known]
    rows += [("s9/else.jpg", 3), (name(3), 2)]
    rows += [("p45_", guess(45)), (name(33), guess(33)), (name(45), guess(45))]
    found = evaluated(write_table(tmp_path / "g.csv", rows), para, tmp_path / "out", "evaluate.bootstrap=3")
    assert [found[key] for key in ("missing_ids", "extra_ids", "duplicate_ids")] == [4, 2, 2]
    gaps = [abs(guess(i) - score(i)) for i in known]
    assert (found["metrics"]["n"], found["metrics"]["mae"]) == (16, pytest.approx(np.mean(gaps), abs=1e-12))
    assert found["split_sha256"] == load_dataset("para", para, ("test",))["test"].sha256  # of the whole split
    said = capsys.readouterr().out
    assert "para test (16 of 20: incomplete)\n" in said
    assert "missing ids: 4, e.g. s1/p31_.jpg; see id_check.csv" in said
    assert [tuple(row.values()) for row in read_csv(tmp_path / "out" / "id_check.csv")] == [
        *((name(i), "missing: no prediction") for i in (31, 40, 41, 42)),
        ("s9/else.jpg", "extra: not in para test, row 18"),
        ("s0/p3_.jpg", "extra: not in para test, row 19"),
        ("s0/p33_.jpg", "duplicate: rows 4 and 21"),
        ("s0/p45_.jpg", "duplicate: rows 13 and 20 and 22"),
    ]
    evaluated(write_table(tmp_path / "all.csv"), para, tmp_path / "out", "--force")
    assert not (tmp_path / "out" / "id_check.csv").exists()


SHARES = ",".join([HEADER, *BINS])
SURE = [(*row, 1, *[0] * 8) for row in ROWS]  # all votes on the lowest rating
SUM = "expected shares, 0 or more, that sum to 1 up to p_5"


@pytest.mark.parametrize(
    "said, header, rows",
    [
        ("rows 4 and 22: 's2/p32_.jpg' has several predictions", HEADER, [*ROWS, (name(32), 4.5)]),
        ("predicts 0 of the 20 pictures of para test", HEADER, [(name(i), 3) for i in range(30)]),
        ("predicts 9 of the 20 pictures", HEADER, ROWS[:9]),
        ("row 22: 'prediction' is 'nan', expected a", HEADER, [*ROWS, ("else", "nan")]),
        ("row 2: 'id' is empty, expected a text", HEADER, [("", 3), *ROWS[1:]]),
        ("has no column 'prediction' (found: id, guess)", "id,guess", ROWS),
        (f"row 21: 'p_1' is '0.1', {SUM}", SHARES, [*SURE[:-1], (*ROWS[-1], *[0.1] * 9)]),
        (f"row 21: 'p_1' is '-0.5', {SUM}", SHARES, [*SURE[:-1], (*ROWS[-1], -0.5, 1.5, *[0] * 7)]),
        ("has no column 'p_5'", SHARES.removesuffix(",p_5"), [row[:-1] for row in SURE]),
        ("has no rows", HEADER, []),
    ],
)
def test_a_bad_file_is_one_sentence_and_nothing_is_written(said, header, rows, para, tmp_path, capsys):
    file = write_table(tmp_path / "g.csv", rows, header)
    assert evaluate(file, para, tmp_path / "out") == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and f"g.csv {said}" in error
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_evaluated_is_refused(para, tmp_path, capsys):
    file = write_table(tmp_path / "predictions.csv")
    no_emotions = "task=emotion has none. Emotions are evaluated from a"
    for words, said in (
        ((tmp_path / "no.csv", para, tmp_path / "out"), "there is no file"),
        ((file, para, tmp_path, "--force"), "predictions.csv would be overwritten; choose another --output"),
        ((file, para, tmp_path / "out", "task=emotion"), no_emotions),
    ):
        assert evaluate(*words) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]
