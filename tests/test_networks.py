"""An ensemble is used as one network: mean predictions, the first's emotions, each its own pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets import Batch
from eamb.network.outputs import Output, Scale
from eamb.readers.decoding import View
from eamb.runtime.networks import Ensemble, check_averaged, disagreement
from eamb.weights.checkpoint import Weights

pytestmark = pytest.mark.portable

STARS = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)
BINS = Scale("distribution", 1.0, 3.0, 2.0, bins=(1.0, 2.0, 3.0))


class Left:
    """A network whose prediction is the brightness of a picture's left half, 0 to 1, times `factor`."""

    precision = "fp32"

    def __init__(self, view, factor=1.0):
        self.view, self.factor, self.sizes = view, factor, []

    def outputs(self, batches, batch_size):
        for batch in batches:
            self.sizes.append(tuple(batch.images.shape[2:]))
            left = batch.images[..., : batch.images.shape[3] // 2].float().mean(dim=(1, 2, 3)) / 255
            yield batch, Output(self.factor * left[:, None], self.factor * left[:, None], left[:, None, None])

    def class_maps(self, batch, batch_size):
        return np.full(len(batch.images), self.factor)


def batch_of(*sizes, count=3):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (count, 3, n, n), dtype=torch.uint8, generator=generator) for n in sizes]
    return Batch(torch.arange(count), images[0], torch.zeros(count), None, None, [], tuple(images[1:]))


def left_half(images):
    return images[..., : images.shape[3] // 2].double().mean(dim=(1, 2, 3)) / 255


def test_the_mean_of_all_and_the_emotions_and_maps_of_the_first():
    views = View(8), View(4)
    networks = [Left(views[0]), Left(views[1], 0.25), Left(views[0], 0.5)]
    together, batch = Ensemble(networks), batch_of(8, 4)
    assert together.views == list(views)
    [(same, output)] = together.outputs([batch], batch_size=4)
    large, small = left_half(batch.images), left_half(batch.others[0])
    members = torch.stack([large, small / 4, large / 2], dim=1)[..., None]  # (3, 3, 1)
    assert same is batch and output.prediction.dtype == torch.float64
    torch.testing.assert_close(output.members, members, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.prediction, members.mean(dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(output.emotion_logits[:, 0].double(), large, atol=1e-6, rtol=0)
    assert [network.sizes for network in networks] == [[(8, 8)], [(4, 4)], [(8, 8)]]
    assert together.class_maps(batch, 4).tolist() == [1.0] * 3


def test_a_single_network_is_unchanged_to_the_last_bit():
    batch, network = batch_of(8), Left(View(8), 1 / 3)
    [(_, output)] = Ensemble([network]).outputs([batch], batch_size=4)
    [(_, expected)] = network.outputs([batch], batch_size=4)
    assert torch.equal(output.prediction.float(), expected.prediction)
    assert torch.equal(output.emotion_map, expected.emotion_map)


def test_flipped_predictions_are_averaged_and_the_rest_stays_that_of_the_picture():
    batch = batch_of(8)
    [(_, output)] = Ensemble([Left(View(8))], flip=True).outputs([batch], batch_size=4)
    left, right = left_half(batch.images), left_half(batch.images.flip(3))
    assert (left - right).abs().min() > 1e-3
    torch.testing.assert_close(output.prediction[:, 0], (left + right) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.emotion_logits[:, 0].double(), left, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.emotion_map[:, 0, 0].double(), left, atol=1e-6, rtol=0)


def test_the_disagreement_is_the_standard_deviation_of_the_scores():
    # Scores 1 + 4p: 2, 3 and 4 for the first picture, three times 5 for the second.
    members = np.array([[[0.25], [0.5], [0.75]], [[1.0], [1.0], [1.0]]])
    assert disagreement(members, STARS) == pytest.approx([np.sqrt(2 / 3), 0])
    shares = np.array([[[1.0, 0, 0], [0, 0, 1.0]]])  # means 1 and 3
    assert disagreement(shares, BINS) == pytest.approx([1.0])
    assert disagreement(shares[:, :1], BINS) is None


def weights(path, scale=STARS, task="aesthetics", dataset="para", ids=(), emotion_ids=()):
    known = {"task": task, "scale": scale and scale.as_dict(), "dataset": dataset}
    return Weights({}, known, np.array(ids, np.int64), np.array(emotion_ids, np.int64), path)


def test_together_they_have_seen_what_any_of_them_has_and_come_from_all_their_sets():
    several = [
        weights("a", ids=[1, 5], emotion_ids=[9]),
        weights("b", ids=[2, 5]),
        weights("c", dataset="csv"),
    ]
    networks = [Left(View(8)) for _ in several]
    for network, each in zip(networks, several, strict=True):
        network.weights = each
    found = Ensemble(networks).weights
    assert (found.training_ids.tolist(), found.emotion_training_ids.tolist()) == ([1, 2, 5], [9])
    assert found.description["dataset"] == "para and csv" and found.scale == STARS
    assert Ensemble(networks[:2]).weights.description["dataset"] == "para"
    assert Ensemble(networks[:1]).weights is several[0]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"scale": BINS},
            r"b\.pt predicts on another scale than a\.pt \(kind score and distribution\), so they",
        ),
        (
            {"scale": replace(STARS, maximum=10.0)},
            r"than a\.pt \(maximum 5\.0 and 10\.0\), so they cannot be ",
        ),
        (
            {"scale": replace(STARS, offset=0.0, factor=5.0)},
            r"\(offset 1\.0 and 0\.0; factor 4\.0 and 5\.0\)",
        ),
        (
            {"task": "emotion", "scale": None},
            r"a\.pt was trained with --task aesthetics, b\.pt with --task emo",
        ),
    ],
)
def test_networks_that_cannot_be_averaged_are_named(other, words):
    with pytest.raises(ValueError, match=words):
        check_averaged([weights("a.pt"), weights("a2.pt"), weights("b.pt", **other)])


def test_only_scores_are_averaged():
    emotion = weights("e.pt", None, "emotion")
    check_averaged([emotion])
    with pytest.raises(ValueError, match=r"only scores are averaged, and e\.pt predicts emotions only; give"):
        check_averaged([emotion, replace(emotion, path="f.pt")])
    with pytest.raises(ValueError, match=r"--flip averages scores, and e\.pt predicts emotions only"):
        check_averaged([emotion], flip=True)
    check_averaged([weights("a", None, "series"), weights("b", None, "series")], flip=True)


def test_the_threshold_matters_only_to_those_who_predict_what_lies_above_it():
    label = Scale("label", 1.0, 10.0, 5.0)
    check_averaged([weights("a"), weights("b", replace(STARS, threshold=2.0, inclusive=True))])
    with pytest.raises(ValueError, match=r"\(threshold 5\.0 and 6\.0\)"):
        check_averaged([weights("a", label), weights("b", replace(label, threshold=6.0))])
