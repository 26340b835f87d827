"""The stand-in for series: PARA's split kept, order by severity, real votes, and a training can read it."""

import numpy as np
import pytest
from PIL import Image
from small import read_csv, write_table

from eamb.readers.pairs import load_pairs
from eamb.readers.para import PARA_BINS
from scripts import make_series
from scripts.make_series import DAMAGES, Photograph, grouped_pairs, main, preference

VOTES = [f"aestheticScore_{value}" for value in PARA_BINS]


@pytest.fixture(scope="module")
def para(tmp_path_factory):
    """PARA as it is, in small: 40 sessions of 6 photographs for training, 4 with two scenes for test."""
    root = tmp_path_factory.mktemp("para")
    chance = np.random.default_rng(0)
    rows = []
    for session, number in np.ndindex(44, 6):
        folder = root / "imgs" / f"session{session}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64)).save(folder / f"{session}_{number}.jpg")
        votes = np.bincount(chance.integers(0, 9, 2).repeat(10), minlength=9)
        mean = votes @ np.array(PARA_BINS) / 20
        scene = ("=food", "plant")[number % 2]  # a spreadsheet would take the first one for a formula
        rows.append([folder.name, f"{session}_{number}.jpg", scene, f"{mean:.4f}", *votes])
    columns = ["sessionId", "imageName", "semantic", "aestheticScore_mean", *VOTES]
    for part, some, width in (("Train", rows[:240], 4), ("Test", rows[240:], 13)):
        write_table(root / "annotation" / f"PARA-Giaa{part}.csv", [row[:width] for row in (columns, *some)])
    return root


@pytest.fixture(scope="module")
def made(para, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "series"
    words = ["--series", "8", "--test-series", "8", "--pairs", "40"]
    assert main(["--data-root", str(para), "--output", str(output), *words]) == 0
    return output


def test_both_kinds_and_both_together_can_be_read_and_the_splits_are_paras_own(made, para):
    graded, rated, whole = (load_pairs("pairs", made / kind) for kind in ("graded", "rated", "."))
    assert list(whole) == ["train", "val", "test"]
    for split in whole:
        assert len(whole[split].pairs) == len(graded[split].pairs) + len(rated[split].pairs)
    assert len(graded["train"].pairs) == 8 * 6
    tested = {row["sessionId"] for row in read_csv(para / "annotation" / "PARA-GiaaTest.csv")}
    train, val, test = ({i.split("/")[1] for i in rated[split].ids} for split in rated)
    assert test <= tested
    assert not (train & val or (train | val) & tested)


def test_a_graded_series_is_ordered_by_its_damage(made):
    rated = load_pairs("pairs", made / "graded", ("test",))["test"]
    assert set(rated.preference.tolist()) == {0.0, 1.0}  # which of two stands first is chance
    assert {series.rpartition("-")[2] for series in rated.series} == set(DAMAGES)
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
    photograph = {f"imgs/{one.name}": one for one in parts}
    found, series_of = list(grouped_pairs(parts, np.random.default_rng(0))), {}
    assert found
    for series, first, second, share in found:
        a, b = photograph[first], photograph[second]
        assert abs(a.mean - b.mean) > make_series.GAP
        assert a.group == b.group == series.partition("-")[0]
        assert share == float(a.mean > b.mean)
        for name in (first, second):
            assert series_of.setdefault(name, series) == series


def test_a_preference_is_how_often_one_vote_is_higher_than_another():
    a = Photograph("a", "g", 3.0, np.array([0, 0, 0, 0, 2, 0, 0, 0, 2]) / 4)
    b = Photograph("b", "g", 2.0, np.array([0, 1, 0, 0, 1, 0, 0, 0, 0]) / 2)
    # Of the 8 comparisons a wins 2 + 2 + 2, and 2 are equal.
    assert preference(a, b) == pytest.approx((6 + 2 / 2) / 8)
    assert preference(a, b) + preference(b, a) == pytest.approx(1)
    assert preference(a._replace(votes=None), b) == 1.0


def test_what_cannot_be_made_is_said_and_nothing_is_written_over(made, para, tmp_path, monkeypatch, capsys):
    refused = [
        (made, "9", "holds files already; choose another folder"),
        (tmp_path / "new", "9999", "9999 series are asked for and train has"),
        (tmp_path / "new", "9", f"{para} holds prepared copies; series need the photographs themselves"),
    ]
    for output, series, words in refused:
        assert main(["--data-root", str(para), "--output", str(output), "--series", series]) == 2
        assert words in capsys.readouterr().err
        if series == "9999":
            monkeypatch.setattr(make_series, "read_manifest", lambda root: object())
    assert not (tmp_path / "new").exists()
