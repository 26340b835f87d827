"""The Scorer: each picture its own figures or its reason, in order, the same in any company."""

import copy
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from lively import RATINGS, SIZE, as_input, blotches, direct_score, write_weights
from PIL import Image

from eamb.inference.scorer import Scorer, in_threads, percentile
from eamb.network.outputs import Scale
from eamb.readers.decoding import DecodeError, decode
from eamb.weights.shipped import SHIPPED
from EAMBNet import EmotionNetwork

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures, and two files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        blotches(seed).save(folder / f"{seed}.png")
    (folder / "2b.png").touch()
    (folder / "3b.png").write_text("<html>not found</html>")
    return sorted(map(str, folder.iterdir()))


@pytest.mark.parametrize(
    ("value", "share"),
    [(0, 0), (1, 0), (1.5, 12.5), (2, 25), (3, 62.5), (4, 75), (4.5, 87.5), (5, 100), (6, 100)],
)
def test_percentile_is_the_share_of_ratings_below(value, share):
    # Of RATINGS' quarters one lies between 1 and 2, one on 2 itself, one in 2 to 4, one in 4 to 5.
    assert percentile(value, np.array(RATINGS)) == share


def test_three_lines_of_python(pictures, lively_weights, lively_model, monkeypatch):
    monkeypatch.setitem(SHIPPED, "lite", lively_weights)
    result = Scorer().score(pictures[1])
    assert result.score == pytest.approx(direct_score(lively_model, pictures[1]), abs=1e-4)
    assert result.emotion_map.shape == (SIZE // 8, SIZE // 8)
    assert result.distribution == {} and result.class_maps is None


def test_no_percentile_without_training_ratings(lively_model, pictures, tmp_path):
    file = write_weights(tmp_path / "w.safetensors", lively_model, training_ratings=[])
    assert Scorer(file, device="cpu").score(pictures[0]).percentile is None


def test_a_high_or_low_network_gives_a_probability_whatever_the_ratings_were(
    lively_model, pictures, tmp_path
):
    high = Scale("label", 1.0, 10.0, threshold=5.0, inclusive=True)  # IAE's ratings run from 1 to 10
    file = write_weights(tmp_path / "high.safetensors", lively_model, high)
    scored = Scorer(file, device="cpu").score(pictures[0])
    assert scored.score == pytest.approx((direct_score(lively_model, pictures[0]) - 1) / 4, abs=1e-5)
    assert (scored.score_min, scored.score_max, scored.percentile) == (0.0, 1.0, None)


def test_score_raises_where_score_all_reports(lively_scorer, tmp_path):
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    paths = [tmp_path / "empty.jpg", tmp_path / "missing.jpg", tmp_path / "pipe.jpg", tmp_path]
    reasons = [result.error for result in lively_scorer.score_all(paths)]
    assert reasons == [
        "the file is empty",
        "there is no such file",
        *["a folder, a pipe or a device, not a file"] * 2,
    ]
    with pytest.raises(DecodeError, match=r"empty\.jpg cannot be decoded: the file is empty"):
        lively_scorer.score(tmp_path / "empty.jpg")
    assert list(lively_scorer.score_all([])) == []


def test_a_picture_is_scored_as_a_file_as_pillows_and_as_pixels(lively_scorer, pictures):
    expected = lively_scorer.score(pictures[0])
    with Image.open(pictures[0]) as picture:
        for given in (picture, np.asarray(picture)):
            scored = lively_scorer.score(given)
            assert scored.path == "" and replace(scored, path=pictures[0]) == expected
            assert (scored.emotion_map == expected.emotion_map).all()


def test_many_pictures_come_as_they_are_taken_each_with_its_result_or_reason(lively_scorer, pictures):
    taken = []

    def without_end():
        for number in itertools.count():
            taken.append(number)
            yield [pictures[0], blotches(1), pictures[3], np.zeros(3)][number % 4]

    for batch_size, workers in ((1, 0), (3, 0), (4, 2)):
        taken.clear()
        results = with_workers(lively_scorer, 16, workers).score_many(without_end(), batch_size)
        found = [*itertools.islice(results, 8)]
        results.close()
        assert len(taken) <= 8 + batch_size * (workers + 2)
        assert [each.path for each in found] == [pictures[0], "", pictures[3], ""] * 2
        scores = [lively_scorer.score(picture).score for picture in (pictures[0], blotches(1))]
        assert [each.score for each in found[:2]] == pytest.approx(scores, abs=4e-5)
        assert found[2].error == "the file is empty"
        assert found[3].error.startswith("pixels must be (H, W)")
    several = np.stack([np.array(blotches(seed)) for seed in range(3)])
    assert [each.score for each in lively_scorer.score_many(several)] == pytest.approx(
        [lively_scorer.score(pixels).score for pixels in several], abs=4e-5
    )
    assert [*lively_scorer.score_many([])] == []


@pytest.mark.parametrize("one", ["photo.jpg", Path("photo.jpg"), blotches(1), np.zeros((9, 9, 3), np.uint8)])
def test_one_picture_in_place_of_many_is_refused(one, lively_scorer):
    with pytest.raises(ValueError, match="score_many takes several pictures"):
        lively_scorer.score_many(one)
    with pytest.raises(ValueError, match="a batch size of at least 1"):
        lively_scorer.score_many([one], batch_size=0)


def test_an_emotion_network_gives_emotions_and_maps_and_no_score(pictures, tmp_path):
    torch.manual_seed(0)
    network = EmotionNetwork(small.BACKBONE, ("joy", "fear", "awe"), emotion_scale=1.0, width=8).eval()
    file = write_weights(tmp_path / "emotions.safetensors", network, None)
    scorer = Scorer(file, device="cpu", maps=True)
    scored = scorer.score(pictures[0])
    with torch.inference_mode():
        expected = network(as_input(decode(pictures[0], SIZE))).prediction[0].tolist()
    assert [*scored.emotions.values()] == pytest.approx(expected, abs=1e-5)
    assert scored.emotion == max(scored.emotions, key=scored.emotions.get)
    assert scored.class_maps.shape == (3, *scored.emotion_map.shape)
    assert (scored.score, scored.score_min, scored.percentile, scored.error) == (None,) * 4
    assert (
        scorer.scale is None and next(scorer.score_many(pictures)).emotions.keys() == scored.emotions.keys()
    )


def test_a_network_that_gives_no_number_is_a_reason(lively_weights, pictures):
    scorer = Scorer(lively_weights, device="cpu")
    scorer.network.networks[0].model.network.head[5].bias.fill_(float("nan"))
    [result] = scorer.score_all(pictures[:1])
    assert result.score is None and "not a number" in result.error


# ---- the same score in any company


def with_workers(scorer, batch_size, workers):
    """A Scorer with the same network, which takes a while to build."""
    other = copy.copy(scorer)
    other.batch_size, other.workers = batch_size, workers
    return other


def scores_of(scorer, paths):
    return {result.path: result.score for result in scorer.score_all(paths) if not result.error}


def test_a_score_is_the_same_in_any_company(lively_scorer, pictures):
    expected = scores_of(with_workers(lively_scorer, 1, 0), pictures)
    assert len(expected) == 5 and np.ptp(list(expected.values())) > 0.2
    for batch_size, workers in ((1, 2), (2, 1), (3, 0), (3, 2), (16, 4)):
        other = with_workers(lively_scorer, batch_size, workers)
        for order in (pictures, pictures[::-1], pictures[3:]):
            wanted = {path: expected[path] for path in order if path in expected}
            # Kernels of another batch size may add in another order: the last digits of float32.
            assert scores_of(other, order) == pytest.approx(wanted, abs=1e-5 * 4)


def test_class_maps_come_only_when_asked_for_and_do_not_depend_on_neighbours(lively_weights, pictures):
    a, b, c, _, d = pictures[:5]
    mapped = Scorer(lively_weights, device="cpu", batch_size=3, maps=True)
    *_, alone = mapped.score_all([a, b, c, d])  # its batch is filled up with black
    among, _, _, other = mapped.score_all([d, c, a, b])
    assert np.array_equal(alone.class_maps, among.class_maps)
    assert np.array_equal(alone.emotion_map, among.emotion_map)
    assert np.abs(other.class_maps - among.class_maps).max() > 0.1


# ---- threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_scoring_leaves_torchs_threads_as_they_were(lively_scorer, pictures, two_threads):
    results = with_workers(lively_scorer, 1, 2).score_all(pictures)
    next(results)
    assert torch.get_num_threads() == 2
    results.close()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_workers_are_one_per_core_unless_told_otherwise(two_threads, lively_weights):
    scorers = [Scorer(lively_weights, device="cpu", workers=workers) for workers in (-1, 0, 5)]
    assert [scorer.workers for scorer in scorers] == [2, 0, 5]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_work_in_threads_comes_back_in_order_and_runs_no_further_ahead_than_one_item_each(threads):
    asked = []
    items = (asked.append(number) or number for number in range(20))
    results = in_threads(lambda number: (time.sleep(0.002 * (number % 3)), number)[1], items, threads)
    assert next(results) == 0
    assert len(asked) == threads + 1
    assert list(results) == list(range(1, 20))
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [1, 0, 1], threads))
