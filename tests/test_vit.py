"""Plain ViTs as backbones: the right tokens in the right maps, positions, rates, weights, export."""

import copy
import re
from functools import partial
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import small
import timm
import torch
import torch.nn.functional as F
from small import BACKBONE, UNTRAINED
from timm.layers import resample_abs_pos_embed

from eamb.evaluation import predicting
from eamb.network.backbones import RESNET50, build_pyramid, imagenet_tensors, normalisation, recompute_blocks
from eamb.network.fast import prepare_for_inference
from eamb.network.outputs import EMOTIONS, Scale
from eamb.network.pair_networks import SeriesNetwork
from eamb.network.vit import ViTPyramid, blocks_of_levels, check_side, nearest_multiple, plain_vit
from eamb.runtime import engine
from eamb.runtime.config import load_config
from eamb.training import run as run_module
from eamb.training.optimizer import make_optimizer
from eamb.training.tasks import choose_task
from eamb.weights import checkpoint
from EAMBNet import EmotionNetwork, LinearNetwork, build_model
from scripts import average_weights, export

TINY = "test_vit"  # timm's own for tests: 64 channels, 6 blocks, a class token, 10 x 10 patches of 16 pixels
SHAPES = {
    "vit_small_patch14_dinov2": (12, 384, 14),
    "vit_small_patch14_reg4_dinov2": (12, 384, 14),  # registers, which have no positions
    "vit_small_patch16_dinov3": (12, 384, 16),  # rotary positions
    "vit_xsmall_patch16_clip_224": (10, 256, 16),  # normalises before the first block
    "vit_base_patch16_siglip_224": (12, 768, 16),  # no class token
    TINY: (6, 64, 16),
}
DINOV3 = "vit_small_patch16_dinov3"


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


def build(backbone=TINY, **changes):
    sizes = {"width": 64, "guided_width": 8, "guided_hidden": 4, "head_width": 8, "dropout": 0.0}
    return build_model(backbone, 1, **{**sizes, "context_scale": 1.0, **changes})


# ---- Maps


@pytest.mark.parametrize("name", SHAPES)
def test_maps_have_half_the_patch_half_the_patch_the_patch_and_twice_the_patch_as_strides(name):
    pyramid, (_, width, patch) = build_pyramid(name, levels=4, depth=1).eval(), plain_vit(name)
    assert plain_vit(name) == SHAPES[name]
    assert pyramid.channels == (width,) * 4
    for height, wide in ((5, 7), (4, 6)):
        with torch.inference_mode():
            maps = pyramid(torch.randn(1, 3, height * patch, wide * patch))
        twice, half = (2 * height, 2 * wide), (-(-height // 2), wide // 2 + wide % 2)
        assert [tuple(m.shape[1:]) for m in maps] == [
            (width, *sides) for sides in (twice, twice, (height, wide), half)
        ]


@pytest.mark.parametrize("name", SHAPES)
def test_tokens_are_those_of_timm_and_positions_those_that_timm_resamples(name):
    pyramid = ViTPyramid(name, levels=4, depth=3).eval()
    state, patch = pyramid.body.state_dict(), pyramid.patch
    for sides in (None, (5 * patch, 8 * patch)):  # the grid that the positions were made for, and another
        options = {"img_size": sides} if sides else {}
        whole = timm.create_model(name, depth=3, dynamic_img_size=False, **options).eval()
        resampled = import_module(type(whole).__module__).checkpoint_filter_fn(dict(state), whole)
        assert not whole.load_state_dict(resampled, strict=False).unexpected_keys
        images = torch.randn(1, 3, *whole.patch_embed.img_size)
        with torch.inference_mode():
            expected = whole.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
            found = pyramid.tokens(images)
        for tokens, block in zip(found, (0, 1, 2, 2), strict=True):
            torch.testing.assert_close(tokens, expected[block], rtol=1e-5, atol=1e-5)
        assert not torch.equal(found[0], found[1])


def test_the_blocks_of_the_levels_and_what_depth_takes():
    expected = {12: [4, 6, 9, 12], 9: [3, 5, 7, 9], 24: [8, 12, 18, 24], 2: [1, 1, 2, 2], 1: [1, 1, 1, 1]}
    assert {depth: blocks_of_levels(depth) for depth in expected} == expected
    whole, short = ViTPyramid(TINY, 4).eval(), ViTPyramid(TINY, 4, depth=4).eval()
    state = whole.body.state_dict()
    short.body.load_state_dict({name: state[name] for name in short.body.state_dict()})
    assert len(short.body.blocks) == 4
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        blocks = whole.body.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        for tokens, block in zip(short.tokens(images), (1, 1, 2, 3), strict=True):
            assert torch.equal(tokens, blocks[block])
    assert len(ViTPyramid(TINY, levels=2).body.blocks) == 3  # the detail branch ends at the half


def test_only_vits_whose_tokens_are_patches_and_whose_blocks_are_alike_are_plain():
    assert plain_vit("deit3_small_patch16_224") == (12, 384, 16)
    others = ("deit_tiny_distilled_patch16_224", "vit_small_r26_s32_224", "cait_xxs24_224", BACKBONE, "none")
    assert not any(map(plain_vit, others))


def test_a_new_level_hands_each_channel_on_by_itself():
    pyramid = ViTPyramid(TINY, 4).eval()
    images = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        maps, tokens = pyramid(images), pyramid.tokens(images)
        normed = [
            F.layer_norm(one, (64,), eps=1e-6).unflatten(1, (6, 4)).permute(0, 3, 1, 2) for one in tokens
        ]
        for level in (0, 1):
            torch.testing.assert_close(maps[level], F.interpolate(normed[level], scale_factor=2.0))
        torch.testing.assert_close(maps[2], normed[2])
        blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).expand(64, 1, 3, 3) / 16
        torch.testing.assert_close(maps[3], F.conv2d(normed[3], blur, stride=2, padding=1, groups=64))


# ---- Sizes


@pytest.mark.parametrize(
    ("side", "patch", "nearest"), [(224, 14, 224), (71, 16, 64), (72, 16, 80), (100, 16, 96), (6, 14, 14)]
)
def test_the_nearest_multiple_of_a_patch(side, patch, nearest):
    assert nearest_multiple(side, patch) == nearest


def test_other_sizes_are_resized_and_maps_cover_the_whole_picture():
    network = build(emotion_scale=1.0).eval()
    images = torch.randn(2, 3, 70, 100)
    resized = F.interpolate(images, (64, 96), mode="bilinear")
    with torch.inference_mode():
        output, expected = network(images), network(resized)
        maps = network.class_activation_maps(images), network.class_activation_maps(resized)
    assert output.emotion_map.shape == (2, 1, 8, 12)  # 4 x 6 patches, and strides of half a patch
    for found, wanted in (*zip(output, expected, strict=True), maps):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_size_that_may_not_be_resized_is_refused_with_the_nearest():
    for size, scale in ((448, 1), (448, 0.5), (113 * 14, 1)):
        check_side("vit_small_patch14_dinov2", size, scale)
    check_side(BACKBONE, 225)
    with pytest.raises(
        ValueError, match=r"patch, 14 pixels, .*data\.size=230 gives it 115.* are 224 and 252,"
    ):
        check_side("vit_small_patch14_dinov2", 230, 0.5)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["data.size=72", "model.resize_input=false"],
            "error: backbones: 'test_vit' .* fit are 64 and 96, or let the",
        ),
        (
            ["data.size=80", "model.resize_input=false"],
            "error: backbones: .*data.size=80 gives it 40; .* are 64 and 96",
        ),
        (
            [f"model.backbone={BACKBONE}", "optimizer.layer_decay=0.75"],
            "error: training: optimizer.layer_decay=0.75",
        ),
        (
            ["optimizer.layer_decay=1.5"],
            "error: config: .*'optimizer.layer_decay' must be at most 1, got '1.5'",
        ),
        (["model.depth=7"], "error: backbones: 'test_vit' has 6 blocks, got model.depth=7"),
        (
            [f"model.backbone={BACKBONE}", "model.depth=2"],
            "error: backbones: model.depth=2 counts a ViT's blocks",
        ),
        (
            [f"model.backbone={RESNET50}", "model.drop_path=0.1"],
            "error: backbones: resnet50 has no drop path",
        ),
        (
            ["model.backbone=dla46_c", "model.drop_path=0.1"],
            "error: backbones: 'dla46_c' has no drop path; leave out model.drop_path",
        ),
    ],
)
def test_what_a_backbone_cannot_do_is_one_sentence_and_ends_the_run(
    words, error, scored_set, tmp_path, capfd
):
    words = [f"model.backbone={TINY}", UNTRAINED, *words]
    assert small.train("csv", scored_set, tmp_path / "run", *words) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.search(error, message), message
    assert not list((tmp_path / "run").glob("*.yaml"))


# ---- Training


FORMS = {
    "shared": partial(build, share_backbone=True, depth=5),
    "apart": partial(build, context_scale=0.5),
    "with the emotion branch": partial(build, train_emotion=True),
    "another emotion backbone": partial(build, share_backbone=True, emotion_backbone=BACKBONE),
    "no detail": partial(build, without=("detail", "emotion")),
    "no context": partial(build, without=("context", "emotion")),
    "shortcut": partial(build, shortcut=True),
    "linear": lambda: LinearNetwork(TINY, 1, 0.0, depth=5),
    "emotion": lambda: EmotionNetwork(TINY, EMOTIONS, 1.0, 16, depth=5),
    "emotion, 4 levels": lambda: EmotionNetwork(TINY, EMOTIONS, 1.0, 16, emotion_levels=4, depth=5),
    "pairs": lambda: SeriesNetwork(TINY, "paunit", depth=5),
    "pairs, pooled": lambda: SeriesNetwork(TINY, "resnet"),
    **{name: partial(build, name, share_backbone=True, depth=2, without=("emotion",)) for name in SHAPES},
}


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_trained_parameter(form):
    network = FORMS[form]().eval()
    for layer in network.modules():
        if isinstance(layer, SeriesNetwork):
            layer.last.weight.data.normal_()  # starts with zeros
    output = network(torch.randn(2, 3, 96, 96))
    weights = torch.randn_like(output.prediction)  # of a distribution the plain sum is 1
    (output.prediction * weights).sum().add(output.emotion_logits.sum()).backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    unreached = {name for name, p in trained.items() if p.grad is None or not p.grad.any()}
    assert unreached <= {"head.0.weight"}  # PReLU's slope for negative values, of which it gets none
    assert any("body.pos_embed" in name or "body.blocks.0.norm1" in name for name in trained)


def test_a_step_changes_all_that_is_trained_and_leaves_the_frozen_branch():
    network = build(depth=4).train()
    optimizer = make_optimizer(load_config(words=["optimizer.layer_decay=0.75"]), network)
    engine.set_rate(optimizer, 1e-2)
    before = copy.deepcopy(network.state_dict())
    network(torch.randn(4, 3, 64, 64)).prediction.square().sum().backward()
    optimizer.step()
    for name, value in network.state_dict().items():
        frozen = name.startswith("emotion.") or name == "head.0.weight"
        assert torch.equal(value, before[name]) == frozen, name


def test_rates_fall_from_block_to_block_and_new_layers_learn_at_the_full_rate():
    network = build(depth=4)  # detail has the first two of its blocks
    words = ["optimizer.name=adamw", "optimizer.layer_decay=0.5", "optimizer.backbone_factor=0.1"]
    optimizer = make_optimizer(load_config(words=words), network)
    engine.set_rate(optimizer, 2.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in network.named_parameters() if p.requires_grad}
    assert len(found) == len(rates)
    for branch, blocks in (("context", 4), ("detail", 2)):
        embedding = ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token")
        expected = {f"{branch}.body.{name}": 0.2 * 0.5**4 for name in embedding}
        inside = {
            name: int(name.split(".")[3]) for name in found if name.startswith(f"{branch}.body.blocks.")
        }
        assert set(inside.values()) == set(range(blocks))
        expected |= {name: 0.2 * 0.5 ** (3 - block) for name, block in inside.items()}
        body = {name: rate for name, rate in found.items() if name.startswith(f"{branch}.body.")}
        assert body == pytest.approx(expected)
    assert {rate for name, rate in found.items() if ".body." not in name} == {2.0}
    assert found["context.maps.0.conv.weight"] == optimizer.param_groups[-1]["lr"] == 2.0


def test_a_frozen_vit_keeps_its_blocks_while_its_new_layers_learn(scored_set, tmp_path, monkeypatch):
    states, train_epoch = [], run_module.train_epoch

    def recording(run, epoch):
        states.append(copy.deepcopy(dict(run.network.emotion.pyramid.named_parameters())))
        return train_epoch(run, epoch)

    monkeypatch.setattr(run_module, "train_epoch", recording)
    words = ["--task", "emotion", f"model.backbone={TINY}", "train.epochs=3", "train.freeze_backbone=1"]
    assert small.train("csv", scored_set, tmp_path / "run", *words, *small.SHORT[:1]) == 0
    for still, (before, after) in zip((True, False), pairwise(states), strict=True):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in before if name.startswith("maps.") or not still}


@pytest.mark.parametrize("backbone", [TINY, DINOV3, "convnext_atto", "tf_efficientnet_lite0"])
def test_drop_path_leaves_blocks_out_in_training_only(backbone):
    depth = {} if plain_vit(backbone) is None else {"depth": 3}
    plain, dropped = (build(backbone, drop_path=rate, without=("emotion",), **depth) for rate in (0.0, 0.5))
    dropped.load_state_dict(plain.state_dict())
    images, body = torch.randn(8, 3, 64, 64), dropped.context.body
    with torch.no_grad():
        assert torch.equal(plain.eval()(images).prediction, dropped.eval()(images).prediction)
        body.train()
        for layer in body.modules():
            if "Norm" in type(layer).__name__ or "Rotary" in type(layer).__name__:
                layer.eval()  # so that nothing but drop path tells two passes apart
        first, second = (dropped.context(images)[-1] for _ in range(2))
    assert not torch.equal(first, second)
    rates = [layer.drop_prob for layer in body.modules() if type(layer).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert plain.arguments | {"drop_path": 0.5} == dropped.arguments


def test_a_frozen_branch_drops_nothing_even_where_its_statistics_are_trained():
    network = build(drop_path=0.5, emotion_batchnorm="official").train()
    layers = [type(layer).__name__ for layer in network.emotion.modules()]
    assert "DropPath" not in layers
    assert "DropPath" in [type(layer).__name__ for layer in network.context.modules()]


@pytest.mark.parametrize("name", [TINY, DINOV3])
def test_recomputed_blocks_give_the_same_output_and_gradients_and_keep_less(name):
    changes = {"width": 16, "share_backbone": True, "emotion_backbone": BACKBONE}
    network = build(name, depth=4, drop_path=0.3, **changes).train()
    other = copy.deepcopy(network)
    cnn = sum(any(layer.children()) for stage in network.emotion.pyramid.body.blocks for layer in stage)
    assert recompute_blocks(other) == 4 + cnn
    sums = []
    for each in (network, other):
        torch.manual_seed(1)
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t) or t, lambda t: t
        )
        with hooks:
            prediction = each(torch.randn(4, 3, 64, 64)).prediction
        prediction.square().sum().backward()
        sums.append((prediction, sum(t.numel() for t in kept)))
    assert torch.equal(sums[0][0], sums[1][0])
    assert sums[1][1] < sums[0][1] / 2
    gradients = [[p.grad for p in each.parameters() if p.requires_grad] for each in (network, other)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_run_and_its_file_which_builds_the_same_network_again(scored_set, tmp_path):
    words = [f"model.backbone={TINY}", f"model.emotion_backbone={BACKBONE}", "model.share_backbone=true"]
    words += ["model.depth=4", "model.drop_path=0.2", "optimizer.layer_decay=0.75", "optimizer.name=adamw"]
    words += ["model.context_scale=1", "train.recompute=true", "data.size=70", UNTRAINED]
    assert small.train("csv", scored_set, tmp_path / "run", *words) == 0
    weights = checkpoint.load_weights(tmp_path / "run" / "best.pt")
    architecture = weights.description["architecture"]
    assert (architecture["depth"], architecture["drop_path"]) == (4, 0.2)
    assert "resize_input" not in architecture
    checkpoint.export_weights(tmp_path / "again.safetensors", weights)
    first, again = weights.build(), checkpoint.load_weights(tmp_path / "again.safetensors").build()
    images = torch.randn(2, 3, 70, 70)
    with torch.inference_mode():
        for found, expected in zip(again(images), first(images), strict=True):
            assert torch.equal(found, expected)
    assert small.evaluate(tmp_path / "again.safetensors", "csv", scored_set, tmp_path / "report") == 0
    rows = [small.read_csv(tmp_path / place / "predictions.csv") for place in ("report", "run/test")]
    assert [row["prediction"] for row in rows[0]] == [row["prediction"] for row in rows[1]]


def test_the_small_recipe_is_nine_blocks_for_both_branches_and_fits_40_mb_in_fp16():
    plain_vit("vit_small_patch14_dinov2")  # timm is imported before a network is built without memory
    config = load_config([small.ROOT / "configs" / "para_small.yaml"])
    scale = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)
    with torch.device("meta"):
        network = choose_task(config).build(scale, EMOTIONS)
    assert (len(network.context.body.blocks), network.detail) == (9, None)
    assert "conv_stem.weight" in network.emotion.pyramid.body.state_dict()
    assert sum(2 * value.numel() for value in network.state_dict().values()) < 40e6


def test_depth_0_is_all_blocks_and_so_is_their_number():
    files = []
    for depth in (0, 6, 5):
        network = build(depth=depth, without=("emotion",))
        described = checkpoint.describe(network, None) | {"dataset": "csv", "image_size": 64, "exif": True}
        files.append(checkpoint.Weights(network.state_dict(), described))
    facts = [average_weights.facts(weights) for weights in files]
    assert facts[0] == facts[1] != facts[2]
    for weights, fitting in ((files[0], (0, 6)), (files[1], (0, 6)), (files[2], (5,))):
        for depth in (0, 5, 6):
            given = {"model.depth": depth}
            if depth in fitting:
                predicting.as_trained(load_config(), weights, given)
            else:
                with pytest.raises(ValueError, match=rf"model\.depth={depth or 6} does not go with"):
                    predicting.as_trained(load_config(), weights, given)


def test_files_from_before_these_settings_load(lively_weights):
    weights = checkpoint.load_weights(lively_weights)
    del weights.description["architecture"]["depth"], weights.description["architecture"]["drop_path"]
    assert weights.build().arguments["depth"] == 0


def test_an_emotion_branch_of_another_depth_is_refused_and_one_on_its_own_backbone_has_none(tmp_path):
    branch = EmotionNetwork(TINY, EMOTIONS, 0.5, 64, depth=4)
    weights = checkpoint.Weights(branch.state_dict(), checkpoint.describe(branch, None))
    checkpoint.export_weights(tmp_path / "branch.safetensors", weights)
    source = checkpoint.read_source(tmp_path / "branch.safetensors")
    network = build(depth=4)
    checkpoint.load_emotion_branch(network, source)
    torch.testing.assert_close(network.emotion.state_dict(), branch.emotion.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"has the model\.depth 4; the network's: 5"):
        checkpoint.load_emotion_branch(build(depth=5), source)
    assert checkpoint.emotion_depth(build(depth=5, emotion_backbone=BACKBONE).arguments) == 0


# ---- Weights


def test_a_local_file_of_timms_names_fills_the_blocks_and_resamples_positions_of_another_grid(tmp_path):
    state = timm.create_model(TINY, img_size=(96, 64)).state_dict()  # positions of 6 x 4 patches
    torch.save(state, tmp_path / "other grid.pth")
    square = timm.create_model(TINY, img_size=96).state_dict()
    torch.save(square | {"mask_token": torch.zeros(1, 64)}, tmp_path / "authors.pth")  # as in DINOv2's own
    network = build(depth=4, share_backbone=True, emotion_backbone=BACKBONE, without=("emotion",))
    new = {name: value.clone() for name, value in network.state_dict().items() if ".body." not in name}
    checkpoint.load_imagenet(network, str(tmp_path / "authors.pth"))
    found = network.state_dict()
    for name, value in found.items():
        if name.endswith("pos_embed"):
            table = resample_abs_pos_embed(square["pos_embed"], (10, 10), (6, 6), num_prefix_tokens=1)
            torch.testing.assert_close(value, table)
        elif ".body." in name:
            assert torch.equal(value, square[name.removeprefix("context.body.")]), name
        else:
            assert torch.equal(value, new[name]), name
    del square["blocks.2.attn.qkv.weight"]
    torch.save(square, tmp_path / "less.pth")
    with pytest.raises(
        ValueError, match=r"less\.pth does not fit .*: missing body\.blocks\.2\.attn\.qkv\.weight$"
    ):
        checkpoint.load_imagenet(network, str(tmp_path / "less.pth"))
    torch.testing.assert_close(network.state_dict(), found, rtol=0, atol=0)


def test_offline_and_without_a_file_it_says_what_to_do(monkeypatch):
    plain_vit(TINY)

    def fail(name, **options):
        raise ConnectionError("offline")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"weights for timm's 'test_vit' \(offline\).*model\.imagenet=FILE"):
        imagenet_tensors(TINY)


def test_each_vit_knows_its_mean_and_deviation():
    assert normalisation("vit_small_patch14_dinov2")[0] == normalisation(RESNET50)[0]
    assert normalisation("vit_base_patch16_siglip_224") == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation("vit_base_patch16_clip_224.openai")[1] == pytest.approx(
        (0.2686, 0.2613, 0.2758), abs=1e-4
    )


# ---- Scoring


@pytest.mark.parametrize("name", [TINY, DINOV3])
def test_the_fast_form_gives_the_same_output(name):
    network = build(name, depth=3, share_backbone=True, emotion_scale=1.0).eval()
    images = torch.randn(2, 3, 70, 96)
    with torch.inference_mode():
        expected = network(images)
        for precision, near in (("fp32", 1e-4), ("bf16", 0.05)):
            fast = prepare_for_inference(network, precision)
            assert (fast(images).prediction - expected.prediction).abs().max() < near
        same = prepare_for_inference(network)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(same.emotion_map, expected.emotion_map, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [TINY, DINOV3])
def test_an_exported_network_computes_the_same(name, tmp_path):
    for package in ("onnx", "openvino"):
        pytest.importorskip(package)
    network = build(
        name, depth=2, share_backbone=True, emotions=("joy", "fear"), emotion_backbone=BACKBONE
    ).eval()
    scale = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)
    described = checkpoint.describe(network, scale) | {"image_size": 70, "exif": True}  # no multiple of 16
    source, target = tmp_path / "vit.safetensors", tmp_path / "vit.onnx"
    checkpoint.export_weights(source, checkpoint.Weights(network.state_dict(), described))
    assert export.main([str(source), str(target)]) == 0
    exported = export.Exported(target)
    assert exported.export["differences"]["prediction"] < 1e-4
    assert exported.weights.description["architecture"]["depth"] == 2
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 70, 70), dtype=np.uint8))
    with torch.inference_mode():
        expected = export.Whole(network, name)(pictures)[0]
    torch.testing.assert_close(exported.run(pictures).prediction, expected, rtol=0, atol=1e-4)
