"""The study of maps: curves with a closed form, Grad-CAM by hand, and the command as people call it."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from small import BACKBONE, read_csv, read_json, write_csv
from torch import nn

from eamb.evaluation.intervals import bootstrap_intervals
from eamb.network.outputs import Scale
from eamb.runtime.config import load_config
from eamb.weights import checkpoint
from EAMBNet import build_model
from scripts.studies import explain

pytestmark = pytest.mark.portable

SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the small network's backbone
SCORE = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)
BINS = (1.0, 2.0, 4.0)
DISTRIBUTION = Scale("distribution", 1.0, 4.0, 2.5, bins=BINS)


def checkerboard():
    """(2, 3, 64, 64) uint8 of 0 and 255, whose blurred copy is grey everywhere."""
    down, across = np.indices((SIZE, SIZE))
    board = (255 * ((down + across) % 2)).astype(np.uint8)
    return torch.from_numpy(np.broadcast_to(board, (2, 3, SIZE, SIZE)).copy())


def sharp(images):
    """Where a picture still is the checkerboard: (N, 64, 64) bool."""
    return ((images.float() - 127.5).abs() > 64).all(dim=1)


def measure(score, *maps):
    """`measure_changes` of two checkerboards, ranked by maps (2, 1, 64, 64), for a score of one batch."""
    ties = torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    ranks = explain.rank_pixels(torch.cat(maps, dim=1), ties)
    return explain.measure_changes(checkerboard(), ranks, lambda all_: np.concatenate([*map(score, all_)]), 5)


def small_network(outputs=1):
    """In evaluation mode, with statistics of real activations: without them all maps are nearly constant."""
    torch.manual_seed(0)
    sizes = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8, "dropout": 0.5}
    network = build_model(BACKBONE, outputs, **sizes, emotion_batchnorm="official")
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, SIZE, SIZE))
    return network.eval()


def test_exactly_the_share_of_pixels_is_blurred_for_every_map_and_order():
    # The score is the blurred part of the picture itself, counted; 64 * 64 / 10 is no whole number.
    noise = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    maps = noise, torch.full_like(noise, 0.5), (4 * noise).floor()
    changes = measure(lambda images: 1 - sharp(images).double().mean(dim=(1, 2)).numpy(), *maps)
    assert changes.shape == (2, 3, 2, 11)
    wanted = [0, 410, 819, 1229, 1638, 2048, 2458, 2867, 3277, 3686, 4096]
    assert np.array_equal(np.rint(changes * SIZE * SIZE), np.broadcast_to(wanted, changes.shape))


def test_the_map_of_what_counts_has_the_area_of_the_closed_form_and_its_opposite_minus_that():
    # The score is the sharp share of the left quarter. A map of that quarter loses it within the first 25 %
    # of "most" (0, .4, .8, 1, ..., 1) and the last 25 % of "least" (0, ..., 0, .2, .6, 1): by the trapezoid
    # rule .87 - .13 = .74. What the rest of the map looks like cannot matter.
    region = torch.zeros(2, 1, SIZE, SIZE)
    region[..., :16] = 1
    changes = measure(lambda images: sharp(images)[:, :, :16].double().mean(dim=(1, 2)), region, 1 - region)
    assert explain.map_areas(changes) == pytest.approx(
        np.array([[0.74, -0.74]] * 2), abs=2e-3
    )  # rounded pixels


def test_pixels_are_ranked_by_the_map_then_by_the_ties():
    maps = torch.tensor([[0.2, 0.9], [0.2, 0.5]])[None, None]
    order = torch.tensor([[0.7, 0.0], [0.1, 0.0]])[None]
    most, least = explain.rank_pixels(maps, order)[0, 0].tolist()
    assert most == [[2, 0], [3, 1]]
    assert least == [[1, 3], [0, 2]]


@pytest.mark.parametrize("scale", [SCORE, DISTRIBUTION], ids=lambda scale: scale.kind)
def test_grad_cam_of_a_linear_head_is_its_closed_form(scale):
    # The head W2 W1 x + b (both PReLUs pass everything) sees the mean of Z over h * w positions, so
    # d logit_k / d Z_c = V_kc / (h w), V = W2 W1. The mean rating sum_k b_k p_k adds the derivative of the
    # softmax: sum_k p_k (b_k - mean rating) V_kc.
    network = small_network(scale.outputs)
    first, second = (part for part in network.head if isinstance(part, nn.Linear))
    for part in network.head:
        if isinstance(part, nn.PReLU):
            nn.init.constant_(part.weight, 1.0)
    kept, images = [], torch.randn(3, 3, SIZE, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), network.emotion_merge.register_forward_hook(lambda *values: kept.append(values[2])):
        first.weight -= first.weight.mean(dim=1, keepdim=True)
        slopes = second.weight @ first.weight  # (K, C), rows sum to 0
        output = network(images)
    if scale.kind == "score":
        slope = slopes.expand(3, -1)
    else:
        ratings = torch.tensor(BINS) - output.prediction @ torch.tensor(BINS)[:, None]  # (N, K)
        slope = (output.prediction * ratings) @ slopes
    wanted = torch.einsum("nc,nchw->nhw", slope, kept[0]).clamp(min=0) / kept[0][0, 0].numel()
    emotion_map, found = explain.network_maps(network, images, scale)
    assert wanted.amax() > 0 and (wanted == 0).any()
    assert torch.allclose(found[:, 0], wanted, rtol=1e-4, atol=1e-7)
    assert torch.equal(emotion_map, output.emotion_map)
    assert not network.head._forward_hooks and not network.emotion_merge._forward_hooks


def test_random_maps_depend_on_the_seed_and_the_picture_alone_and_the_centre_map_on_the_distance():
    first = explain.random_maps(["a", "b", "c"], (8, 9), seed=0)
    assert first.shape == (3, 1, 8, 9)
    assert torch.equal(first[[2, 0]], explain.random_maps(["c", "a"], (8, 9), seed=0))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, explain.random_maps(["a", "b", "c"], (8, 9), seed=1))
    down, across = np.indices((7, 7)) - 3
    order = np.argsort(explain.centre_map((7, 7)).numpy(), axis=None)[::-1]
    assert (np.diff((down**2 + across**2).ravel()[order]) >= 0).all()


def test_differences_are_paired_and_changes_are_absolute():
    # The pictures' areas lie far apart, but the EAM's is always larger by as much: no doubt about that.
    changes = np.zeros((20, 4, 2, 11))
    changes[:, :, 0, 5] = np.linspace(1, 50, 20)[:, None] * np.resize([1, -1], 20)[:, None]
    changes[:, 0, 0, 5] += np.resize([1, -1], 20)
    found, intervals = explain.figures(changes), bootstrap_intervals(explain.figures, (changes,), 50)
    difference = (found["random", "eam minus it"], *intervals["random", "eam minus it"])
    assert difference == pytest.approx((0.1,) * 3)
    assert found["eam", "area"] == pytest.approx(0.1 * 26.5)
    assert np.diff(intervals["eam", "area"]) > 0.5
    assert found["eam", "most", 0.5, "mean_change"] == pytest.approx(changes[:, 0, 0, 5].mean())


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    """An untrained network for --dataset csv as a file, and the network."""
    network = small_network()
    description = checkpoint.describe(network, SCORE) | {"dataset": "csv", "image_size": SIZE, "exif": True}
    description["config"] = {"data": load_config().as_dict()["data"]}
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    checkpoint.export_weights(path, checkpoint.Weights(dict(network.state_dict()), description))
    return path, network


def explain_csv(root, output, *words):
    given = ["--dataset", "csv", "--data-root", root, "--output", output, *words]
    return explain.main([str(word) for word in (*given, "train.device=cpu", "data.workers=0")])


def test_a_run_leaves_three_files_and_a_broken_picture_costs_a_note(network_file, tmp_path, capsys):
    path, network = network_file
    root = write_csv(tmp_path / "set", {"score": [f"{1 + i / 6:.2f}" for i in range(24)]})
    (root / "images" / "0_011.png").write_text("no picture")
    changes, output = [], tmp_path / "out"
    for size in (2, 37):
        words = ["--checkpoint", path, "evaluate.bootstrap=20", f"evaluate.batch_size={size}"]
        assert explain_csv(root, output, *words) == 0
        rows = read_csv(output / "explain.csv")
        changes.append([float(row["mean_change"]) for row in rows])
    # Float32 sums in another order, and a score of about 3 is rounded at 2.4e-7.
    assert changes[0] == pytest.approx(changes[1], abs=1e-6)
    found = read_json(output / "explain.json")
    assert sum("0_011.png left out" in note for note in found["notes"]) == 1
    assert (found["n"], found["checkpoint"]) == (3, "small.safetensors")
    assert found["weights_sha256"] == checkpoint.weights_hash(dict(network.state_dict()))
    assert found["sentence"] in capsys.readouterr().out
    assert len(rows) == 4 * 2 * 11 == len(found["curves"])
    assert list(rows[0]) == list(found["curves"][0])
    [end] = {float(row["mean_change"]) for row in rows if row["share"] == "1.0"}
    assert end == pytest.approx(blurred_change(network, root, (5, 17, 23)), abs=1e-6)
    assert abs(end) > 1e-4
    with Image.open(output / "explain.png") as drawn:
        assert drawn.size == (1200, 600)
    for number in (5, 17, 23):
        (root / "images" / f"0_{number:03d}.png").write_text("no picture")
    assert explain_csv(root, tmp_path / "none", "--checkpoint", path) == 2
    assert "intervals need 2 pictures, 4 of the 4 chosen of csv test cannot be" in capsys.readouterr().err


def blurred_change(network, root, numbers):
    """The mean change of the score (1 to 5) when these pictures are wholly blurred, by plain means."""
    names = [root / "images" / f"0_{number:03d}.png" for number in numbers]
    whole = np.stack([np.asarray(Image.open(name), dtype=np.float32) for name in names])
    sigma = 0.05 * SIZE
    pixels = np.concatenate([whole, np.rint(gaussian_filter(whole, (0, sigma, sigma, 0)))])
    with torch.no_grad():
        normalised = torch.from_numpy((pixels / 255 - MEAN) / STD).float().permute(0, 3, 1, 2)
        before, after = 4 * network(normalised).prediction.double().reshape(2, -1).mean(dim=1)
    return (after - before).item()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "none.pt"], "none.pt"),
        (["--pictures", "1"], "explain: at least 2 --pictures"),
        (["--seed", "-1"], "--seed 0 or more"),
        (["evaluate.bootstrap=0"], "evaluate.bootstrap 1 or more"),
        (["--split", "val", "--output", __file__], "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(words, message, network_file, scored_set, tmp_path, capsys):
    assert explain_csv(scored_set, tmp_path / "out", "--checkpoint", network_file[0], *words) == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert printed.startswith("error: ") and message in printed
    assert not (tmp_path / "out").exists()
