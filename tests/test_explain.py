"""The study of maps: curves with a closed form, Grad-CAM by hand, and the command as people call it."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from small import BACKBONE, read_csv, read_json, write_csv
from torch import nn

from datasets import load_dataset
from eamb.network.outputs import Scale
from eamb.runtime.config import load_config
from eamb.runtime.engine import Compute
from eamb.weights import checkpoint
from EAMBNet import build_model
from scripts.studies import explain

SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the small network's backbone
SCORE = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)
BINS = (1.0, 2.0, 4.0)
DISTRIBUTION = Scale("distribution", 1.0, 4.0, 2.5, bins=BINS)


def checkerboard(count=2):
    """(N, 3, 64, 64) uint8 of 0 and 255, whose blurred copy is grey everywhere."""
    down, across = np.indices((SIZE, SIZE))
    board = (255 * ((down + across) % 2)).astype(np.uint8)
    return torch.from_numpy(np.broadcast_to(board, (count, 3, SIZE, SIZE)).copy())


def sharp(images):
    """Where a picture still is the checkerboard: (N, 64, 64) bool."""
    return ((images.float() - 127.5).abs() > 64).all(dim=1)


def of_batches(function):
    """A score as `measure_changes` takes it, from a function of one batch."""
    return lambda batches: np.concatenate([function(images) for images in batches])


def some_maps(count=2, seed=0):
    """(N, 3 maps, 64, 64): noise, a constant and one with many equal values."""
    noise = torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return torch.cat([noise, torch.full_like(noise, 0.5), (4 * noise).floor()], dim=1)


def ties(count=2):
    return torch.rand(count, SIZE, SIZE, generator=torch.Generator().manual_seed(9))


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
    score = of_batches(lambda images: 1 - sharp(images).double().mean(dim=(1, 2)).numpy())
    ranks = explain.rank_pixels(some_maps(), ties())
    changes = explain.measure_changes(checkerboard(), ranks, score, batch_size=5)
    assert changes.shape == (2, 3, 2, 11)
    wanted = [0, 410, 819, 1229, 1638, 2048, 2458, 2867, 3277, 3686, 4096]
    assert np.array_equal(np.rint(changes * SIZE * SIZE), np.broadcast_to(wanted, changes.shape))


def test_the_map_of_what_counts_has_the_area_of_the_closed_form_and_its_opposite_minus_that():
    # The score is the sharp share of the left quarter. A map of that quarter loses it within the first 25 %
    # of "most" (0, .4, .8, 1, ..., 1) and the last 25 % of "least" (0, ..., 0, .2, .6, 1): by the trapezoid
    # rule .87 - .13 = .74. What the rest of the map looks like cannot matter.
    score = of_batches(lambda images: sharp(images)[:, :, :16].double().mean(dim=(1, 2)).numpy())
    region = torch.zeros(2, 1, SIZE, SIZE)
    region[..., :16] = 1
    ranks = explain.rank_pixels(torch.cat([region, 1 - region], dim=1), ties())
    areas = explain.map_areas(explain.measure_changes(checkerboard(), ranks, score, batch_size=32))
    assert areas == pytest.approx(np.array([[0.74, -0.74]] * 2), abs=2e-3)  # half pixels are rounded


def test_nothing_blurred_changes_nothing_and_all_blurred_is_the_blurred_picture_whatever_the_map():
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1)).byte()
    seen = []

    def red(batch):
        seen.append(len(batch))
        return batch[:, 0].double().mean(dim=(1, 2)).numpy() ** 2

    changes = explain.measure_changes(images, explain.rank_pixels(some_maps(), ties()), of_batches(red), 8)
    soft = [[gaussian_filter(channel, 0.05 * SIZE) for channel in image] for image in images.float().numpy()]
    wanted = red(torch.from_numpy(np.rint(soft))) - red(images)
    assert (changes[..., 0] == 0).all()
    assert changes[..., -1] == pytest.approx(np.broadcast_to(wanted[:, None, None], (2, 3, 2)), abs=1e-9)
    assert max(seen) <= 8


def test_pixels_are_ranked_by_the_map_then_by_the_ties():
    maps = torch.tensor([[0.2, 0.9], [0.2, 0.5]])[None, None]
    order = torch.tensor([[0.7, 0.0], [0.1, 0.0]])[None]
    most, least = explain.rank_pixels(maps, order)[0, 0].tolist()
    assert most == [[2, 0], [3, 1]]
    assert least == [[1, 3], [0, 2]]


def test_the_curves_of_a_network_do_not_depend_on_the_batch_size(scored_set):
    network, compute = small_network(), Compute(torch.device("cpu"), "fp32", MEAN, STD)
    rated = load_dataset("csv", scored_set, ("test",))["test"].take([0, 3])
    words = [f"data.size={SIZE}", "data.workers=0"]
    configs = (load_config([], [*words, f"evaluate.batch_size={size}"]) for size in (2, 37))
    (one, notes), (many, notes_of_many) = (
        explain.blur_and_score(network, rated, config, SCORE, compute, seed=0) for config in configs
    )
    largest = np.abs(one).max()
    assert one.shape == (2, 4, 2, 11)
    assert largest > 1e-4  # a network without training answers blur faintly, and float32 rounds at 1e-7
    assert one == pytest.approx(many, abs=largest / 100)
    assert notes == notes_of_many
    assert not any("left out" in note for note in notes)


def linear_head(network):
    """Makes the head W2 W1 x + b: both PReLUs pass everything. Returns W2 W1, (K, C), whose rows sum to 0."""
    for part in network.head:
        if isinstance(part, nn.PReLU):
            nn.init.constant_(part.weight, 1.0)
    first, second = (part for part in network.head if isinstance(part, nn.Linear))
    with torch.no_grad():
        first.weight -= first.weight.mean(dim=1, keepdim=True)
        return second.weight @ first.weight


def fused(network, images):
    """Z (N, C, h, w) and the prediction (N, K) of a plain forward pass."""
    kept = []
    hook = network.emotion_merge.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        prediction = network(images).prediction
    hook.remove()
    return kept[0], prediction


@pytest.mark.parametrize("scale", [SCORE, DISTRIBUTION], ids=lambda scale: scale.kind)
def test_grad_cam_of_a_linear_head_is_its_closed_form(scale):
    # The head sees the mean of Z over h * w positions: d logit_k / d Z_c = V_kc / (h w), V = W2 W1. The mean
    # rating sum_k b_k p_k adds the softmax's derivative: sum_k p_k (b_k - mean rating) V_kc.
    network = small_network(scale.outputs)
    slopes = linear_head(network)
    images = torch.randn(3, 3, SIZE, 96, generator=torch.Generator().manual_seed(2))
    features, prediction = fused(network, images)
    if scale.kind == "score":
        slope = slopes.expand(3, -1)
    else:
        ratings = torch.tensor(BINS) - prediction @ torch.tensor(BINS)[:, None]  # (N, K)
        slope = (prediction * ratings) @ slopes
    wanted = torch.einsum("nc,nchw->nhw", slope, features).clamp(min=0) / features[0, 0].numel()
    emotion_map, found = explain.network_maps(network, images, scale)
    assert wanted.amax() > 0 and (wanted == 0).any()
    assert torch.allclose(found[:, 0], wanted, rtol=1e-4, atol=1e-7)
    assert torch.equal(emotion_map, network(images).emotion_map)
    assert not network.head._forward_hooks and not network.emotion_merge._forward_hooks


def test_random_maps_depend_on_the_seed_and_the_picture_alone():
    first = explain.random_maps(["a", "b", "c"], (8, 9), seed=0)
    assert first.shape == (3, 1, 8, 9)
    assert torch.equal(first[[2, 0]], explain.random_maps(["c", "a"], (8, 9), seed=0))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, explain.random_maps(["a", "b", "c"], (8, 9), seed=1))


def test_the_centre_map_falls_with_the_distance_from_the_centre():
    down, across = np.indices((7, 7)) - 3
    distance = down**2 + across**2
    order = np.argsort(explain.centre_map((7, 7)).numpy(), axis=None)[::-1]
    assert (np.diff(distance.ravel()[order]) >= 0).all()


def test_differences_are_paired():
    # The pictures' areas lie far apart, but the EAM's is always larger by as much: no doubt about that.
    changes = np.zeros((20, 4, 2, 11))
    changes[:, :, 0, 5] = np.linspace(1, 50, 20)[:, None]
    changes[:, 0, 0, 5] += 1
    found = explain.summarise(changes, repeats=50, seed=0)
    assert found["random", "eam minus it"] == pytest.approx((0.1, 0.1, 0.1))
    assert found["eam", "area"].high - found["eam", "area"].low > 0.5
    assert found["eam", "area"].mean == pytest.approx(0.1 * 26.5)


def test_absolute_change_is_the_mean_of_absolutes_and_its_sign_is_kept_beside_it():
    changes = np.zeros((2, 4, 2, 11))
    changes[:, 0, 1, 3] = [-3, 1]
    found = explain.figures(changes)
    least = [found["eam", "least", 0.3, curve] for curve in ("mean_change", "mean_absolute_change")]
    assert (*least, found["eam", "area"]) == pytest.approx((-1, 2, -0.2))


def test_the_sentence_says_what_the_intervals_say():
    found = {
        ("eam", "area"): explain.Estimate(-0.2, -0.3, -0.1),
        ("random", "eam minus it"): explain.Estimate(0.2, 0.1, 0.3),
        ("centre", "eam minus it"): explain.Estimate(0.1, -0.1, 0.3),
        ("grad_cam", "eam minus it"): explain.Estimate(-0.2, -0.3, -0.1),
    }
    assert explain.sentence(found, "9 pictures") == (
        "On 9 pictures, blurring what the emotion-aware map marks most changes the score less than blurring "
        "what it marks least (area between its curves -0.200, -0.300 to -0.100); by this area the map is "
        "better than the random map (+0.200, +0.100 to +0.300), cannot be told from the centre-weighted map "
        "(+0.100, -0.100 to +0.300), and is worse than the Grad-CAM map (-0.200, -0.300 to -0.100)."
    )


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    """An untrained network for --dataset csv as a file, and the network."""
    network = small_network()
    description = checkpoint.describe(network, SCORE) | {"dataset": "csv", "image_size": SIZE, "exif": True}
    description["config"] = {"data": load_config().as_dict()["data"]}
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    checkpoint.export_weights(path, checkpoint.Weights(dict(network.state_dict()), description))
    return path, network


def explain_csv(root, output, *words, bootstrap=("evaluate.bootstrap=20",)):
    given = ["--dataset", "csv", "--data-root", root, "--output", output, *words, *bootstrap]
    return explain.main([str(word) for word in (*given, "train.device=cpu", "data.workers=0")])


@pytest.fixture
def new_set(tmp_path):
    return write_csv(tmp_path / "set", {"score": [f"{1 + i / 6:.2f}" for i in range(24)]})


def test_a_run_leaves_three_files_and_a_broken_picture_costs_a_note(network_file, new_set, tmp_path, capsys):
    (path, network), root = network_file, new_set
    (root / "images" / "0_011.png").write_text("no picture")
    assert explain_csv(root, tmp_path / "out", "--checkpoint", path) == 0
    found = read_json(tmp_path / "out" / "explain.json")
    assert sum("0_011.png left out" in note for note in found["notes"]) == 1
    assert (found["n"], found["checkpoint"]) == (3, "small.safetensors")
    assert found["weights_sha256"] == checkpoint.weights_hash(dict(network.state_dict()))
    assert found["sentence"] in capsys.readouterr().out

    rows = read_csv(tmp_path / "out" / "explain.csv")
    assert len(rows) == 4 * 2 * 11 == len(found["curves"])
    names = [f"{curve}{end}" for curve in explain.CURVES for end in ("", "_low", "_high")]
    assert list(rows[0]) == ["map", "order", "share", *names]
    [end] = {float(row["mean_change"]) for row in rows if row["share"] == "1"}
    # Pictures one by one here, in batches there: float32 sums in another order, and a score of about 3 is
    # rounded at 2.4e-7.
    assert end == pytest.approx(blurred_change(network, root, (5, 17, 23)), abs=1e-6)
    assert abs(end) > 1e-4
    with Image.open(tmp_path / "out" / "explain.png") as drawn:
        assert drawn.size == (1200, 600)


def blurred_change(network, root, numbers):
    """The mean change of the score (1 to 5) when these pictures are wholly blurred, by plain means."""
    scores = []
    for number in numbers:
        with Image.open(root / "images" / f"0_{number:03d}.png") as file:
            image = np.asarray(file, dtype=np.float32)
        for pixels in (np.rint(gaussian_filter(image, (0.05 * SIZE, 0.05 * SIZE, 0))), image):
            normalised = torch.from_numpy((pixels / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]
            with torch.no_grad():
                scores.append(1 + 4 * network(normalised).prediction.item())
    return -np.diff(np.reshape(scores, (-1, 2))).mean()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "none.pt"], "none.pt"),
        (["--pictures", "1"], "explain: --pictures must be at least 2, got 1"),
        (["--seed", "-1"], "explain: --seed must be at least 0, got -1"),
        (["evaluate.bootstrap=0"], "explain: evaluate.bootstrap must be at least 1, got 0"),
        (["evaluate.batchsize=4"], "did you mean 'evaluate.batch_size'"),
        (["--split", "val", "--output", __file__], "exists"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(words, message, network_file, scored_set, tmp_path, capsys):
    given = ["--checkpoint", network_file[0], *words]
    assert explain_csv(scored_set, tmp_path / "out", *given, bootstrap=()) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0].startswith("error: ") and message in printed[0]
    assert not (tmp_path / "out").exists()


def test_an_emotion_network_gives_no_score(emotion_run, scored_set, tmp_path, capsys):
    words = ["--checkpoint", emotion_run / "best.pt"]
    assert explain_csv(scored_set, tmp_path / "out", *words) == 2
    assert "was trained with --task emotion and gives a single picture no score" in capsys.readouterr().err


def test_fewer_than_two_pictures_that_can_be_decoded_are_an_error(network_file, new_set, tmp_path, capsys):
    for number in (5, 11, 17, 23):
        (new_set / "images" / f"0_{number:03d}.png").write_text("no picture")
    assert explain_csv(new_set, tmp_path / "out", "--checkpoint", network_file[0], "--pictures", 3) == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "intervals need 2 pictures; of the 3 chosen of csv test 0 can be decoded; " in said
    assert not list((tmp_path / "out").iterdir())
