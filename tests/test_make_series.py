"""The stand-in for series: PARA's split kept, order by severity, real votes, and a training can read it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from small import read_csv

from eamb.readers.pairs import load_pairs, read_pair_sheet
from eamb.readers.para import PARA_BINS, PARA_EMOTIONS
from eamb.readers.prepared import MANIFEST
from eamb.readers.table import Sheet
from scripts import make_series
from scripts.make_series import DAMAGES, Photograph, grouped_pairs, main, preference

VOTES = [f"aestheticScore_{value}" for value in PARA_BINS]
EMOTIONS = [f"imgEmotion_{emotion}" for emotion in PARA_EMOTIONS]


@pytest.fixture(scope="module")
def para(tmp_path_factory):
    """PARA as it is, in small: 40 sessions of 6 photographs for training, 4 with two scenes for test."""
    root = tmp_path_factory.mktemp("para")
    (root / "annotation").mkdir()
    chance = np.random.default_rng(0)
    tables = {"Train": [], "Test": []}
    for session, number in np.ndindex(44, 6):
        name = f"session{session}/iaa_pub{6 * session + number}_.jpg"
        (root / "imgs" / name).parent.mkdir(parents=True, exist_ok=True)
        noise = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64)).save(root / "imgs" / name)
        votes = np.bincount(chance.integers(0, 9, 2).repeat(10), minlength=9)
        row = dict(zip(("sessionId", "imageName"), name.split("/"), strict=True))
        row |= {"semantic": ("food", "plant")[number % 2], **dict.fromkeys(EMOTIONS, 3)}
        row["aestheticScore_mean"] = f"{votes @ np.array(PARA_BINS) / 20:.4f}"
        row |= dict(zip(VOTES, votes.tolist(), strict=True)) if session >= 40 else {}
        tables["Train" if session < 40 else "Test"].append(row)
    for part, rows in tables.items():
        with (root / "annotation" / f"PARA-Giaa{part}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def made(para, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "series"
    words = ["--series", "8", "--test-series", "8", "--pairs", "40"]
    assert main(["--data-root", str(para), "--output", str(output), *words]) == 0
    return output


def test_both_kinds_and_both_together_can_be_read(made):
    graded, rated, whole = (load_pairs("pairs", made / kind) for kind in ("graded", "rated", "."))
    assert set(whole) == {"train", "val", "test"}
    for split in whole:
        assert len(whole[split].pairs) == len(graded[split].pairs) + len(rated[split].pairs)
    assert len(graded["train"].pairs) == 8 * 6


def test_the_splits_are_paras_own(made, para):
    test = {row["imageName"] for row in read_csv(para / "annotation" / "PARA-GiaaTest.csv")}
    parts = load_pairs("pairs", made / "rated")
    names = {split: {i.rpartition("/")[2] for i in rated.ids} for split, rated in parts.items()}
    assert names["test"] <= test
    assert (names["train"] | names["val"]).isdisjoint(test)
    sessions = [{i.split("/")[1] for i in parts[split].ids} for split in ("train", "val")]
    assert sessions[0].isdisjoint(sessions[1])


def test_a_graded_series_is_ordered_by_its_damage(made):
    rated = load_pairs("pairs", made / "graded", ("test",))["test"]
    assert set(rated.preference.tolist()) == {0.0, 1.0}  # which of two stands first is chance
    for series in sorted(set(rated.series)):
        rows = np.flatnonzero(rated.pair_series == series)
        wins = np.zeros(len(rated))
        for (a, b), share in zip(rated.pairs[rows], rated.preference[rows], strict=True):
            wins[a if share else b] += 1
        ranked = sorted(np.flatnonzero(rated.series == series), key=lambda i: -wins[i])
        assert [wins[i] for i in ranked] == [3, 2, 1, 0]
        images = [np.asarray(Image.open(rated.paths[i]), float) for i in ranked]
        away = [abs(image - images[0]).mean() for image in images]
        assert away == sorted(away)
        assert away[1] > 0.5


def test_rated_pairs_lie_apart_within_one_group_and_groups_are_disjoint():
    chance = np.random.default_rng(1)
    parts = [Photograph(f"{i}.jpg", f"g{i % 3}", chance.uniform(1, 5), None) for i in range(60)]
    mean = {f"imgs/{one.name}": one.mean for one in parts}
    group = {f"imgs/{one.name}": one.group for one in parts}
    found, series_of = list(grouped_pairs(parts, np.random.default_rng(0))), {}
    assert found
    for series, first, second, share in found:
        assert abs(mean[first] - mean[second]) > make_series.GAP
        assert group[first] == group[second] == series.partition("-")[0]
        assert share == float(mean[first] > mean[second])
        for name in (first, second):
            assert series_of.setdefault(name, series) == series


def test_a_preference_is_how_often_one_vote_is_higher_than_another():
    a = Photograph("a", "g", 3.0, np.array([0, 0, 0, 0, 2, 0, 0, 0, 2]))
    b = Photograph("b", "g", 2.0, np.array([0, 1, 0, 0, 1, 0, 0, 0, 0]))
    # Of the 8 comparisons a wins 2 + 2 + 2, and 2 are equal.
    assert preference(a, b) == pytest.approx((6 + 2 / 2) / 8)
    assert preference(a, b) + preference(b, a) == pytest.approx(1)
    assert preference(a._replace(votes=None), b) == 1.0


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_degree_of_damage_is_further_away(damage):
    noise = np.random.default_rng(0).integers(40, 216, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)
    worse = [damage(image, degree, np.random.default_rng(3)) for degree in (1, 2, 3)]
    away = [abs(np.asarray(one, float) - np.asarray(image, float)).mean() for one in worse]
    assert 0.1 < away[0] < away[1] < away[2]
    assert {one.size for one in worse} == {image.size}


def test_a_scene_that_would_be_a_formula_is_a_text_and_the_pairs_are_read_again(tmp_path):
    make_series.write_pairs(tmp_path / "train.csv", [("=1-0000", "imgs/a;b.jpg", "imgs/=c.jpg", 1.0)])
    assert '"\'=1-0000","imgs/a;b.jpg"' in (tmp_path / "train.csv").read_text(encoding="utf-8")
    table = read_pair_sheet(Sheet(tmp_path / "train.csv"), [tmp_path])
    assert (table.first, table.second) == (["imgs/a;b.jpg"], ["imgs/=c.jpg"])


def test_prepared_copies_are_refused(tmp_path, capsys):
    known = {"dataset": "para", "source": "PARA", "words": [], "size": 64, "exif": True, "quality": 95}
    (tmp_path / MANIFEST).write_text(json.dumps(known | {"program": {}, "complete": True}))
    assert main(["--data-root", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert f"make_series: {tmp_path} holds prepared copies, which are squashed; series need" in said
    assert "--data-root PARA" in said and not (tmp_path / "new").exists()


def test_nothing_is_written_over_and_too_few_photographs_are_said(made, para, tmp_path, capsys):
    assert main(["--data-root", str(para), "--output", str(made)]) == 2
    assert "holds files already; choose another folder" in capsys.readouterr().err
    assert main(["--data-root", str(para), "--output", str(tmp_path / "new"), "--series", "9999"]) == 2
    assert "9999 series are asked for and train has" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
