"""Groups of pictures: who belongs where, figures of a group by another route, errors; a made-up PARA."""

import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from small import read_csv, write_csv

from scripts import subgroups
from scripts.subgroups import measure_pictures, thirds

COUNT = 120
NUMBERS = np.arange(COUNT)
RATED = 1.8 + 2.4 * (7 * NUMBERS % COUNT) / COUNT  # each once, in no order
CLASSES = np.array(["cat"] * 60 + ["dog"] * 50 + ["owl"] * 10)
LIGHT = np.array([20, 110, 220])[NUMBERS // 2 % 3]
GRAY = NUMBERS % 2 == 0
SPREAD = np.array([0.0, 0.5, 1.0])[NUMBERS // 4 % 3]  # sd of the two votes, at 3 - SPREAD and 3 + SPREAD
IDS = [f"s{i % 3}/p{i}_.jpg" for i in NUMBERS]
BINS = np.arange(1, 5.5, 0.5)


@pytest.fixture(scope="module")
def para(tmp_path_factory):
    root = tmp_path_factory.mktemp("para")
    (root / "annotation").mkdir()
    counts = [f"aestheticScore_{value:.1f}" for value in BINS]
    lines = [",".join(["imageName", "sessionId", "semantic", "aestheticScore_mean", *counts])]
    for i in NUMBERS:
        votes = [str(int(value == 3 - SPREAD[i]) + int(value == 3 + SPREAD[i])) for value in BINS]
        lines.append(",".join([f"p{i}_.jpg", f"s{i % 3}", CLASSES[i], repr(float(RATED[i])), *votes]))
        path = root / "imgs" / IDS[i]
        path.parent.mkdir(parents=True, exist_ok=True)
        # One level apart, as rounding leaves a gray picture, is gray still.
        colour = (LIGHT[i], LIGHT[i] + 1, LIGHT[i]) if GRAY[i] else (LIGHT[i], LIGHT[i] + 9, LIGHT[i])
        Image.new("RGB", (8, 6), tuple(map(int, colour))).save(path, "PNG")
    (root / "annotation" / "PARA-GiaaTest.csv").write_text("\n".join(lines))
    return root


def noisy(amount, seed):
    return (RATED + amount * np.random.default_rng(seed).standard_normal(COUNT)).clip(1, 5)


def predictions(path, values, ids=IDS):
    rows = [f"{i},{float(value)!r}" for i, value in zip(ids, values, strict=True)]
    path.write_text("\n".join(["id,prediction", *rows]))
    return path


def show(root, output, *files, dataset="para", words=("--worst", "3")):
    options = ["--dataset", dataset, "--data-root", root, "--output", output, "--resamples", 40, *words]
    options += [word for file in files for word in ("--predictions", file)]
    return subgroups.main(list(map(str, options)))


def groups(output, file):
    """Name of a group -> its line about one file of predictions."""
    return {line["group"]: line for line in read_csv(output / "groups.csv") if line["predictions"] == file}


MEMBERS = {
    "all": NUMBERS >= 0,
    "cat": CLASSES == "cat",
    "dog": CLASSES == "dog",
    "b/w": GRAY,
    "colour": ~GRAY,
    "dark": LIGHT == 20,
    "normal": LIGHT == 110,
    "bright": LIGHT == 220,
    "rated low": stats.rankdata(RATED) <= 40,
    "rated middle": (stats.rankdata(RATED) > 40) & (stats.rankdata(RATED) <= 80),
    "rated high": stats.rankdata(RATED) > 80,
    "raters agree": SPREAD == 0.0,
    "raters between": SPREAD == 0.5,
    "raters disagree": SPREAD == 1.0,
}
FIRST, SECOND = noisy(0.3, 1), noisy(0.5, 2)


def test_figures_of_a_group_are_those_of_its_pictures_alone(para, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    files = [predictions(tmp_path / "a.csv", FIRST), predictions(tmp_path / "b" / "predictions.csv", SECOND)]
    assert show(para, tmp_path, *files) == 0
    found = {"a": groups(tmp_path, "a"), "b": groups(tmp_path, "b")}
    assert list(found["a"]) == list(found["b"]) == list(MEMBERS)  # ten owls are too few
    assert "left out, fewer than 30 or all: owl (10)" in capsys.readouterr().out
    for group, member in MEMBERS.items():
        rated, ranks = RATED[member], {}
        for name, values in (("a", FIRST[member]), ("b", SECOND[member])):
            ranks[name] = stats.spearmanr(values, rated).statistic
            expected = {
                "n": member.sum(),
                "mean_rating": rated.mean(),
                "srcc": ranks[name],
                "plcc": np.corrcoef(values, rated)[0, 1],
                "rmse": np.sqrt(((values - rated) ** 2).mean()),
                "mae": abs(values - rated).mean(),
                "bias": values.mean() - rated.mean(),
                "accuracy": ((values > 3) == (rated > 3)).mean(),
            }
            line = found[name][group]
            assert {key: float(line[key]) for key in expected} == pytest.approx(expected, abs=6e-5)
        difference = float(found["b"][group]["srcc_difference"])
        assert difference == pytest.approx(ranks["a"] - ranks["b"], abs=6e-5)
        assert found["a"][group]["srcc_difference"] == ""
    text = (tmp_path / "groups.csv").read_text()
    assert not [i for i in IDS if i in text]  # no picture is named


def test_a_difference_is_starred_where_two_networks_differ_and_only_there(para, tmp_path, capsys):
    worse = RATED + np.where(CLASSES == "dog", 0.5, 0.1)
    files = [predictions(tmp_path / "good.csv", RATED + 0.1), predictions(tmp_path / "worse.csv", worse)]
    assert show(para, tmp_path / "out", *files) == 0
    line = groups(tmp_path / "out", "worse")["dog"]
    assert [float(line[f"bias{side}"]) for side in ("", "_low", "_high")] == [0.5] * 3
    assert [float(line[f"mae_difference{side}"]) for side in ("", "_low", "_high")] == [-0.4] * 3
    starred = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" *")}
    assert starred & {"cat", "dog"} == {"dog"}


def test_worst_holds_the_largest_errors_with_all_their_groups(para, tmp_path):
    predicted = RATED.copy()
    predicted[[4, 115, 30]] += (-0.5, 0.7, 0.6)
    assert show(para, tmp_path, predictions(tmp_path / "a.csv", predicted)) == 0
    found = read_csv(tmp_path / "worst.csv")
    assert [line["id"] for line in found] == [IDS[115], IDS[30], IDS[4]]
    assert [float(line["error"]) for line in found] == pytest.approx([0.7, 0.6, -0.5])
    third = "rated low" if MEMBERS["rated low"][115] else "rated high"
    assert found[0]["groups"] == f"owl; colour; dark; {third}; raters between"
    with Image.open(tmp_path / "worst.png") as image:
        pixels = np.array(image.convert("RGB")).reshape(-1, 3)
    for place in (115, 30, 4):  # the pictures themselves are there
        light = LIGHT[place]
        assert (pixels == (light, light + (1 if GRAY[place] else 9), light)).all(axis=1).sum() > 10_000


def test_files_that_are_no_pictures_are_named_and_in_no_group_of_colour(para, tmp_path, capsys):
    root = shutil.copytree(para, tmp_path / "para")
    (root / "imgs" / IDS[0]).write_text("no picture")  # it was dark and b/w
    predicted = RATED + 0.5 * (NUMBERS == 0)
    assert show(root, tmp_path, predictions(tmp_path / "a.csv", predicted)) == 0
    found = groups(tmp_path, "a")
    assert [found[name]["n"] for name in ("all", "b/w", "colour", "dark")] == ["120", "59", "60", "39"]
    assert "in no group of colour or brightness: " in capsys.readouterr().err
    assert read_csv(tmp_path / "worst.csv")[0]["id"] == IDS[0]  # it is shown as words


def test_pictures_that_a_file_does_not_predict_are_left_out_of_all(para, tmp_path, capsys):
    a = predictions(tmp_path / "a.csv", noisy(0.3, 1)[:-1], IDS[:-1])
    b = predictions(tmp_path / "b.csv", [*noisy(0.3, 2), 3], [*IDS, "s9/other.jpg"])
    assert show(para, tmp_path, a, b) == 0
    assert groups(tmp_path, "a")["all"]["n"] == groups(tmp_path, "b")["all"]["n"] == "119"
    assert "left out: 1 pictures" in capsys.readouterr().out


def test_a_set_without_classes_and_votes_has_the_other_groups(tmp_path):
    count = 150  # 100 of them are for training
    scores = [round(1 + 4 * (7 * i % count) / count, 3) for i in range(count)]
    root = write_csv(tmp_path / "set", {"score": scores}, count)
    rows = [line for line in read_csv(root / "ratings.csv") if line["split"] == "train"]
    file = predictions(tmp_path / "a.csv", [row["score"] for row in rows], [row["path"] for row in rows])
    assert show(root, tmp_path, file, dataset="csv", words=("--split", "train", "--worst", "3")) == 0
    kinds = {line["kind"] for line in read_csv(tmp_path / "groups.csv")}
    assert {"all", "rating"} <= kinds <= {"all", "rating", "brightness", "colour"}


def test_colour_and_brightness_are_those_of_the_decoded_picture(tmp_path):
    Image.new("L", (30, 20), 70).save(tmp_path / "gray.png")
    Image.new("RGB", (30, 20), (200, 100, 0)).save(tmp_path / "orange.png")
    (tmp_path / "no.png").write_text("")
    luminance, gap = measure_pictures([str(tmp_path / f"{name}.png") for name in ("gray", "orange", "no")])
    assert luminance == pytest.approx([70, 0.299 * 200 + 0.587 * 100, np.nan], nan_ok=True)
    assert gap == pytest.approx([0, 200, np.nan], nan_ok=True)


def test_thirds_leave_unknown_values_out_and_a_limit_belongs_to_the_third_below_it():
    def split(*values):
        found = thirds("rating", ("low", "middle", "high"), np.array(values, dtype=float))
        return {group.limits: np.flatnonzero(group.member).tolist() for group in found}

    middle = "rating above 2.67, up to 4.33"
    expected = {"rating up to 2.67": [0, 2], middle: [3, 4], "rating above 4.33": [5, 6]}
    assert split(1, np.nan, 2, 3, 4, 5, 6) == expected
    assert list(split(1, 2, 3, 4).values()) == [[0, 1], [2], [3]]  # limits are 2 and 3
    assert split(0, 1, 1, 0, 1) == split(*[np.nan] * 5) == split(*[2] * 5) == {}  # they hardly differ


def test_bad_input_is_one_sentence_and_nothing_is_written(para, tmp_path, capsys):
    file = predictions(tmp_path / "a.csv", RATED)
    other_split = predictions(tmp_path / "other.csv", RATED, [f"t/{i}.jpg" for i in NUMBERS])
    other_unit = predictions(tmp_path / "unit.csv", RATED / 5)
    cases = [
        ([tmp_path / "no.csv"], (), "there is no file"),
        ([other_split], (), "other.csv predicts 0 of the 120 pictures of para test"),
        ([other_unit], (), "predictions are outside 1 to 5"),
        ([file, file], (), "two files of predictions are called a"),
        ([file], ("--worst", "0"), "--worst and --resamples are at least 1"),
    ]
    for files, words, said in cases:
        assert show(para, tmp_path / "out", *files, words=words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
        assert not (tmp_path / "out").exists()


def test_files_are_only_overwritten_by_force(para, tmp_path, capsys):
    file = predictions(tmp_path / "a.csv", noisy(0.3, 1))
    (tmp_path / "worst.csv").write_text("mine")
    assert show(para, tmp_path, file) == 2
    assert "holds worst.csv already" in capsys.readouterr().err
    assert (tmp_path / "worst.csv").read_text() == "mine"
    assert show(para, tmp_path, file, words=("--worst", "3", "--force")) == 0
