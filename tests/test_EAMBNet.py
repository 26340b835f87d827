"""The network: equal to the official one, every block by an independent formula, any size, nothing dead."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import build_lite, enliven, rule_made
from small import BACKBONE

from eamb.network.backbones import LITE0, build_pyramid, normalisation
from eamb.network.outputs import EMOTIONS, as_prediction
from EAMBNet import (
    PARTS,
    EmotionNetwork,
    Fusion,
    Head,
    LinearNetwork,
    build_model,
    shrink,
)

pytestmark = pytest.mark.portable

GOLDEN = json.loads((Path(__file__).parent / "golden_official.json").read_text())
SMALL = {"backbone": BACKBONE, "outputs": 1, "width": 16, "guided_width": 8, "guided_hidden": 4}


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_small(**changes):
    """The same random weights each time."""
    torch.manual_seed(0)
    return build_model(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def golden_picture() -> torch.Tensor:
    """(1, 3, 512, 512)"""
    blocks = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32))
    return blocks.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)


@pytest.fixture(scope="module")
def golden(paper_network, golden_picture):
    """What the official network for AVA says, and the pooled features (1, 256) that its head gets."""
    pooled = []
    hook = paper_network.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.inference_mode():
        output = paper_network(golden_picture)
    hook.remove()
    return output, pooled[0]


def test_predictions_for_ava_and_para_equal_the_official_networks(golden, official_state):
    output, pooled = golden
    np.testing.assert_allclose(output.prediction[0], GOLDEN["ava"]["prediction"], atol=1e-5)
    # PARA's network is AVA's with another last layer.
    head = Head(256, 128, outputs=1, dropout=0.75).eval()
    last = {"head.5.weight": (1, 128), "head.5.bias": (1,)}
    state = official_state | {name: rule_made(name, shape) for name, shape in last.items()}
    head.load_state_dict({name: state[f"head.{name}"] for name in head.state_dict()})
    with torch.inference_mode():
        prediction = as_prediction(head(pooled))
    np.testing.assert_allclose(prediction[0], GOLDEN["para"]["prediction"], atol=1e-5)


def test_emotion_logits_and_maps_equal_the_official_network(golden, paper_network, golden_picture):
    output, _ = golden
    np.testing.assert_allclose(output.emotion_logits[0], GOLDEN["emotion_logits"], atol=1e-5)
    with torch.inference_mode():
        maps = paper_network.class_activation_maps(golden_picture)
    assert (output.emotion_map.shape, maps.shape) == ((1, 1, 64, 64), (1, 8, 64, 64))
    blocks = output.emotion_map.reshape(8, 8, 8, 8).mean(dim=(1, 3))  # (row, inside, column, inside)
    np.testing.assert_allclose(blocks, GOLDEN["emotion_map_8x8_block_means"], atol=1e-5)
    for values, points in ((output.emotion_map[0, 0], "emotion_map_points"), (maps[0], "class_map_points")):
        for place, value in GOLDEN[points].items():
            assert values[tuple(map(int, place.split(",")))].item() == pytest.approx(value, abs=1e-5), place


def test_the_paper_network_has_the_stated_number_of_parameters(paper_network):
    assert sum(p.numel() for p in paper_network.parameters()) == 44_084_014
    assert sum(p.numel() for p in paper_network.emotion.parameters()) == 15_036_488
    assert sum(p.numel() for p in paper_network.parameters() if p.requires_grad) == 29_047_526


def dead_parameters(network, output: torch.Tensor) -> list[str]:
    """Names of trainable parameters that a random function of the output does not depend on."""
    (output * numbers(*output.shape, seed=5)).sum().backward()
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]


def test_every_trainable_parameter_is_used(paper_network):
    network = copy.deepcopy(paper_network)
    # In evaluation mode: behind a BatchNorm in training the gradient of a bias is zero but for rounding.
    assert dead_parameters(network, network(numbers(2, 3, 64, 64)).prediction) == ["head.0.weight"]
    assert all(parameter.grad is None for parameter in network.emotion.parameters())
    network = build_small(shortcut=True).eval()  # the shortcut has no ReLU before the head
    assert dead_parameters(network, network(numbers(2, 3, 96, 64)).prediction) == []
    for levels in (3, 4):
        network = EmotionNetwork(BACKBONE, EMOTIONS, 0.5, width=64, emotion_levels=levels).eval()
        assert dead_parameters(network, network(numbers(2, 3, 96, 96)).emotion_logits) == []


def test_emotion_convolutions_start_xavier_normal_without_bias():
    branch = build_lite().emotion
    for block in (branch.coarse, branch.middle, branch.fine):
        outputs, inputs = block[0].weight.shape[:2]
        expected = math.sqrt(2 / (9 * inputs + 9 * outputs))
        assert block[0].weight.std().item() == pytest.approx(expected, rel=0.02)
        assert not block[0].bias.any()


@pytest.mark.parametrize("batchnorm", ["frozen", "official"])
def test_a_frozen_emotion_branch_keeps_its_weights_and_its_statistics_drift_as_asked(batchnorm):
    network = build_small(emotion_batchnorm=batchnorm)
    before = copy.deepcopy(network.state_dict())
    # It is given everything, frozen parts too, with a weight decay that would show.
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.5)
    for step in range(2):
        optimizer.zero_grad()
        network(numbers(2, 3, 64, 64, seed=step)).prediction.sum().backward()
        optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    buffers = {f"emotion.{name}" for name, _ in network.emotion.named_buffers()}
    drifted = {name for name in changed if name.startswith("emotion.")}
    assert drifted == (buffers if batchnorm == "official" else set())
    assert {"detail.body.bn1.running_mean", "context.body.conv_stem.weight", "head.5.bias"} <= changed
    before = copy.deepcopy(network.eval().state_dict())
    network(numbers(2, 3, 64, 64))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_a_branch_that_is_trained_too_learns_from_its_logits_and_not_through_the_map():
    network = build_small(train_emotion=True, dropout=0.0)
    output = network(numbers(2, 3, 64, 64))
    output.prediction.sum().backward()
    assert all(parameter.grad is None for parameter in network.emotion.parameters())
    network(numbers(2, 3, 64, 64)).emotion_logits[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in network.emotion.parameters())
    assert network.emotion.training
    assert not network.eval().emotion.training
    with torch.inference_mode():
        assert not network(numbers(2, 3, 64, 64)).emotion_logits.requires_grad


@pytest.mark.parametrize(("levels", "width"), [(3, 0), (4, 0), (4, 8)])
def test_the_emotion_network_trains_its_branch_and_shares_its_names(levels, width):
    network = EmotionNetwork(BACKBONE, EMOTIONS, 0.5, width=width or 16, emotion_levels=levels).train()
    output = network(numbers(2, 3, 64, 64))
    torch.testing.assert_close(output.prediction, output.emotion_logits.softmax(dim=1))
    assert not output.emotion_map.requires_grad
    assert all(parameter.requires_grad for parameter in network.parameters())
    whole = build_small(emotion_levels=levels, emotion_width=width)
    assert network.state_dict().keys() == {n for n in whole.state_dict() if n.startswith("emotion.")}
    whole.load_state_dict(network.state_dict(), strict=False)
    images = numbers(2, 3, 64, 96)
    with torch.inference_mode():
        alone, within = network.eval()(images), whole.eval()(images)
    torch.testing.assert_close(within[1:], alone[1:], rtol=0, atol=1e-6)  # logits and map


@pytest.mark.parametrize("levels", [3, 4])
def test_the_class_maps_before_stretching_add_up_to_the_logits(levels):
    """M_k = sum_c W[k, c] z[c] has the mean logit_k - b_k: CAM is exact, because logits are linear in z."""
    branch = enliven(EmotionNetwork(BACKBONE, EMOTIONS, 1.0, width=64, emotion_levels=levels)).emotion
    with torch.inference_mode():
        logits, features = branch(numbers(2, 3, 96, 128))
        maps = torch.einsum("ec,nchw->nehw", branch.classifier.weight, features)
    assert features.shape[2:] == ((12, 16) if levels == 4 else (24, 32))
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + branch.classifier.bias, logits, rtol=0, atol=1e-4)


def test_four_levels_add_a_linear_view_of_the_map_that_the_backbones_classifier_pools():
    branch = enliven(EmotionNetwork(BACKBONE, EMOTIONS, 1.0, width=64, emotion_levels=4)).emotion
    for value in branch.fine[1].parameters():  # without what the pyramid says
        torch.nn.init.zeros_(value)
    images = numbers(3, 3, 96, 96)
    with torch.inference_mode():
        logits, last = branch(images)[0], branch.tail.last_map(branch.pyramid(images)[3])  # (3, C, 3, 3)
    row = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]), torch.tensor([0, 0, 1.0])
    line = torch.stack([interpolated(each, 12).mean() for each in row])  # what each of three cells counts for
    pooled = torch.einsum("nchw,h,w->nc", last, line, line)
    weight = branch.classifier.weight @ branch.coarse.weight[:, :, 0, 0]
    bias = branch.classifier.weight @ branch.coarse.bias + branch.classifier.bias
    torch.testing.assert_close(logits, pooled @ weight.T + bias, rtol=1e-4, atol=1e-4)


def interpolated(row: torch.Tensor, size: int) -> torch.Tensor:
    """A row of numbers, interpolated to `size` of them between its ends."""
    places = torch.linspace(0, len(row) - 1, size)
    return torch.from_numpy(np.interp(places, np.arange(len(row)), row)).float()


def test_what_the_branch_gave_before_is_used_and_it_does_not_run(lite_network, monkeypatch):
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = lite_network(images)
        before = lite_network.emotions(images)
        monkeypatch.setattr(lite_network.emotion, "forward", lambda images: pytest.fail("the branch was run"))
        torch.testing.assert_close(lite_network(images, before), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (127, 64), (82, 129)])
def test_any_size_from_64_up(lite_network, height, width):
    images = numbers(2, 3, height, width)
    with torch.inference_mode():
        output, maps = lite_network(images), lite_network.class_activation_maps(images)
    size = (math.ceil(math.ceil(height / 2) / 4), math.ceil(math.ceil(width / 2) / 4))
    assert (output.emotion_map.shape, maps.shape) == ((2, 1, *size), (2, 8, *size))
    assert output.prediction.shape == (2, 1)
    assert 0 < output.prediction.min() <= output.prediction.max() < 1


def test_a_backbone_that_rounds_its_maps_down_takes_odd_sizes():
    network = build_model("convnext_atto", outputs=1, width=32).eval()  # its maps are H // 4, H // 8 ...
    with torch.inference_mode():
        assert network(numbers(1, 3, 71, 90)).prediction.isfinite().all()


def test_each_branch_sees_its_own_size():
    network = build_small(context_scale=0.75, emotion_scale=0.5).eval()
    seen = {}
    for name in ("detail", "context", "emotion"):
        getattr(network, name).register_forward_pre_hook(
            lambda _, arguments, name=name: seen.update({name: tuple(arguments[0].shape[2:])})
        )
    network(numbers(1, 3, 65, 128))
    assert seen == {"detail": (65, 128), "context": (49, 96), "emotion": (33, 64)}


def test_the_shrunken_picture_keeps_its_corners_and_samples_between():
    row = torch.arange(9.0).expand(1, 3, 9, 9)
    half = shrink(row, 0.5)
    assert half.shape == (1, 3, 5, 5)
    torch.testing.assert_close(half[0, 0, 0], torch.tensor([0.0, 2, 4, 6, 8]))  # align_corners=True
    assert shrink(row, 1.0) is row


@pytest.mark.parametrize("shape", [(2, 3, 63, 64), (2, 3, 64, 63), (2, 1, 64, 64), (3, 64, 64)])
def test_pictures_of_another_shape_or_type_are_refused(lite_network, shape):
    images = torch.zeros(shape), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    for call in (lite_network, lite_network.class_activation_maps):
        for wrong, told in zip(images, (rf"\({shape[0]}, ", r"torch\.uint8"), strict=True):
            with pytest.raises(ValueError, match=f"EAMBNet: pictures must be .* 64 up.* got .*{told}"):
                call(wrong)


@pytest.mark.parametrize("training", [False, True])
def test_the_convolution_before_the_resize_equals_the_one_behind_it(training):
    fusion = enliven(Fusion(12, (10, 20, 32), width=16, guided=8, hidden=4, plain=False)).train(training)
    maps = [numbers(2, 12, 9, 16), numbers(2, 10, 5, 8), numbers(2, 20, 3, 4), numbers(2, 32, 2, 2)]
    behind = copy.deepcopy(fusion)
    guided = behind.guide_fine(behind.detail(maps[0]), behind.context_fine(maps[1]))
    guided = behind.expand(behind.guide_middle(guided, behind.context_middle(maps[2])))
    large = torch.nn.functional.interpolate(maps[3], size=(9, 16), mode="bilinear", align_corners=True)
    semantic = behind.semantic_norm(behind.semantic_conv(large)).relu()
    expected = behind.merge(torch.cat([guided, semantic], dim=1))
    # Sums in another order; without AVX2 the last digits differ by twice float32's step at these values.
    torch.testing.assert_close(fusion(maps[0], maps[1:]), expected, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(fusion.state_dict(), behind.state_dict(), atol=5e-6, rtol=1e-5)


def test_a_picture_has_the_same_output_alone_and_in_a_batch_and_a_map_of_any_classes():
    network, images = build_small(emotions=("calm", "wild", "sad")).eval(), numbers(3, 3, 64, 128)
    with torch.inference_mode():
        output, maps = network(images), network.class_activation_maps(images)
        alone = network(images[1:2])
    for value, single in zip(output, alone, strict=True):
        torch.testing.assert_close(value[1:2], single, atol=1e-5, rtol=0)  # another batch, other kernels
    weighted = output.emotion_logits.softmax(dim=1)[:, :, None, None] * maps
    torch.testing.assert_close(output.emotion_map[:, 0], weighted.sum(dim=1))
    assert (maps.amin(dim=(2, 3)) == 0).all()
    torch.testing.assert_close(maps.amax(dim=(2, 3)), torch.ones(3, 3))


def test_a_map_on_which_all_classes_agree_does_not_exceed_1_by_rounding(lite_network):
    branch = copy.deepcopy(lite_network.emotion)
    torch.nn.init.ones_(branch.classifier.weight)
    logits = numbers(2000, 8)
    found = branch.emotion_map(logits, numbers(2000, 128, 2, 2))
    assert logits.softmax(dim=1).sum(dim=1).max() > 1  # the rounding that could show
    assert found.max() == 1


def test_maps_are_computed_in_float32_under_autocast_and_a_flat_one_is_zero_and_not_nan(lite_network):
    # 1e-12 is 0 in float16, and 0 / 0 would be NaN.
    features, logits = torch.ones(1, 128, 4, 4).half(), torch.zeros(1, 8).half()
    with torch.autocast("cpu", torch.float16):
        maps = lite_network.emotion.class_activation_maps(features)
        emotion_map = lite_network.emotion.emotion_map(logits, features)
    assert maps.dtype == emotion_map.dtype == torch.float32
    assert not maps.any()


def test_building_a_network_reads_no_file(monkeypatch):
    def build() -> None:
        build_small()
        build_pyramid("resnet50", levels=1)

    build()  # imports what it needs
    for place in ("builtins.open", "io.open", "os.open", "torch.load", "safetensors.torch.load_file"):
        monkeypatch.setattr(place, lambda *arguments, **options: pytest.fail("a file was read"))
    build()


def test_the_paper_is_the_default(paper_network):
    dropouts = [layer.p for layer in paper_network.head if isinstance(layer, torch.nn.Dropout)]
    assert dropouts == [0.75, 0.75]
    names = (
        "amusement awe contentment excitement anger disgust fear sadness"  # as the released files order them
    )
    assert paper_network.arguments == {
        "backbone": "resnet50", "outputs": 10, "emotions": tuple(names.split()), "width": 256,
        "guided_width": 56, "guided_hidden": 16, "head_width": 128, "dropout": 0.75, "context_scale": 0.5,
        "emotion_scale": 0.5, "emotion_batchnorm": "frozen", "train_emotion": False, "without": (),
        "shortcut": False, "share_backbone": False, "emotion_backbone": "", "emotion_levels": 3,
        "emotion_width": 0, "depth": 0, "drop_path": 0.0,
    }  # fmt: skip


WRONG = [
    ({"outputs": 0}, "outputs must be .*got 0"),
    ({"context_scale": 1.5}, "context_scale must be above 0 and at most 1, got 1.5"),
    ({"dropout": 1.0}, "dropout must be .*got 1"),
    ({"emotion_levels": 2}, "emotion_levels must be 3 or 4, got 2"),
    ({"emotion_width": -1}, "emotion_width must be a number of channels, or 0 for width, got -1"),
    ({"drop_path": 1.0}, "drop_path must be .*got 1"),
    ({"depth": -1}, "depth must be a number of blocks, or 0 for all, got -1"),
    ({"emotion_batchnorm": "thawed"}, "emotion_batchnorm must be .*got 'thawed'"),
    ({"emotions": ("awe", "awe")}, "emotions must be different names"),
    ({"emotions": ()}, "emotions must be different names"),
    ({"without": ("emotions",)}, "without must name some of emotion, detail, .*, got 'emotions'"),
    ({"without": ("detail", "context")}, "a network needs its detail or its context branch"),
    ({"without": ("context",), "shortcut": True}, "shortcut needs the context branch"),
    ({"without": ("emotion",), "train_emotion": True}, "train_emotion needs the emotion branch"),
    ({"share_backbone": True}, "share_backbone needs .*context_scale=1, got 0.5"),
]


@pytest.mark.parametrize(("arguments", "reason"), WRONG)
def test_arguments_out_of_range_and_impossible_ablations_are_refused_by_name(arguments, reason):
    with pytest.raises(ValueError, match=f"EAMBNet: {reason}"):
        build_small(**arguments)


@pytest.mark.parametrize("part", PARTS)
def test_an_ablation_lacks_its_part_has_the_rest_and_uses_it(part):
    beginnings = {
        "emotion": ("emotion.",),
        "attention": ("attention.",),
        "guided_fusion": ("fusion.guide_",),
        "detail": ("detail.", "fusion.detail.", "fusion.guide_fine."),
        "context": ("context.", "fusion.context_", "fusion.guide_", "fusion.semantic_"),
    }
    network, whole = build_small(without=(part,), dropout=0).eval(), build_small().state_dict()
    state = network.state_dict()
    assert state.keys() == {name for name in whole if not name.startswith(beginnings[part])}
    other = {name for name in state if state[name].shape != whole[name].shape}
    assert other == ({"fusion.merge.0.weight"} if part == "context" else set())
    output = network(numbers(2, 3, 64, 64))
    assert output.prediction.shape == (2, 1)
    assert dead_parameters(network, output.prediction) == ["head.0.weight"]


def test_one_backbone_for_detail_and_context_equals_two_with_the_same_weights():
    apart = build_small(context_scale=1).eval()
    shared = build_small(context_scale=1, share_backbone=True).eval()
    assert not any(name.startswith("detail.") for name in shared.state_dict())
    apart.load_state_dict(shared.state_dict(), strict=False)
    apart.detail.load_state_dict(shared.context.state_dict(), strict=False)
    images = numbers(2, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(shared(images).prediction, apart(images).prediction)
    for left in ("detail", "context"):
        alone = build_small(context_scale=1, share_backbone=True, without=(left,))
        assert alone.state_dict().keys() == build_small(context_scale=1, without=(left,)).state_dict().keys()
        assert alone.eval()(images).prediction.shape == (2, 1)


def test_the_emotion_branch_may_have_another_backbone_with_its_own_normalisation():
    network = build_small(backbone=LITE0, emotion_backbone=BACKBONE).eval()  # mean .5, and ImageNet's
    alone = EmotionNetwork(BACKBONE, EMOTIONS, emotion_scale=0.5, width=16).eval()
    branch = {name: value for name, value in network.state_dict().items() if name.startswith("emotion.")}
    alone.load_state_dict(branch)
    pixels, inputs = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for name in (LITE0, BACKBONE):
        mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(name))
        inputs.append((pixels - mean) / std)
    with torch.inference_mode():
        theirs, logits = network(inputs[0]), alone(inputs[1]).emotion_logits
        maps = network.class_activation_maps(inputs[0]), alone.class_activation_maps(inputs[1])
    torch.testing.assert_close(theirs.emotion_logits, logits)
    torch.testing.assert_close(*maps, atol=1e-5, rtol=0)  # each map is stretched to [0, 1]


def test_without_emotion_the_map_is_one_and_there_are_no_emotions(lite_network):
    network, images = build_lite(without=("emotion",)).eval(), torch.randn(2, 3, 64, 64)
    state = lite_network.state_dict()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    with torch.inference_mode():
        output = network(images)
        ones = lite_network(images, (torch.zeros(2, 8), torch.ones(2, 1, 16, 16)))
    torch.testing.assert_close(output.prediction, ones.prediction)
    assert torch.equal(output.emotion_map, torch.ones(2, 1, 1, 1))
    assert (output.emotion_logits.shape, network.arguments["emotions"]) == ((2, 0), ())
    assert network.class_activation_maps(images).shape == (2, 0, 1, 1)


def test_the_linear_network_is_the_whole_backbone_and_one_layer():
    torch.manual_seed(0)
    network = LinearNetwork(BACKBONE, 10, dropout=0.5).eval()
    whole = timm.create_model(BACKBONE, num_classes=10).eval()
    state = {name.split("body.")[1]: value for name, value in network.state_dict().items() if "body." in name}
    state |= {f"classifier.{name}": value for name, value in network.head[1].state_dict().items()}
    whole.load_state_dict(state)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        output = network(images)
        torch.testing.assert_close(output.prediction, whole(images).softmax(dim=1))
    assert output.emotion_logits.shape == (2, 0)
    assert dead_parameters(network, network.eval()(images).prediction) == []
