"""Folders as Hugging Face's hub has them; a server that speaks its protocol; torch.hub, from elsewhere."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from lively import SIZE, STARS, blotches
from small import ROOT, read_json

from eamb.inference.scorer import Scorer
from eamb.network import hub
from eamb.network.outputs import Scale
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Weights, load_weights, weights_of
from eamb.weights.shipped import FOLDER, SHIPPED
from EAMBNet import EAMBNet, EmotionNetwork, build_model
from hubconf import dependencies

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHERS = ("datasets", "losses", "metrics", "main", "scripts", "tests", "hubconf")  # packages with our names


@pytest.fixture(scope="module")
def stars(lively_weights, tmp_path_factory):
    """A folder, and the weights that it was made from."""
    folder, weights = tmp_path_factory.mktemp("hub") / "stars", load_weights(lively_weights)
    weights.build().save_pretrained(folder)
    return folder, weights


@pytest.fixture
def copied(stars, tmp_path):
    return shutil.copytree(stars[0], tmp_path / "copied")


def edited(folder, **changes):
    """The folder, with other values in its config.json; None takes a key out."""
    config = read_json(folder / "config.json") | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(function, *arguments, error=ValueError) -> str:
    with pytest.raises(error) as caught:
        function(*arguments)
    text = str(caught.value)
    assert text.startswith("checkpoint: ") and "\n" not in text
    return text


# ---- folders


def test_all_that_travels_with_the_weights_comes_back(stars):
    folder, weights = stars
    network, read = EAMBNet.from_pretrained(folder), load_weights(folder)
    assert not network.training
    for each in (weights_of(network), read):
        assert each.sha256 == weights.sha256
        assert (each.scale, each.emotions, each.view) == (weights.scale, weights.emotions, weights.view)
        assert each.description["training_ratings"] == weights.description["training_ratings"]
    assert network.description["mean"] == [0.485, 0.456, 0.406]
    config = read_json(folder / "config.json")
    assert build_model(**{name: config[name] for name in network.arguments}).arguments == network.arguments
    assert load_weights(folder / "model.safetensors").sha256 == weights.sha256  # its folder is meant


@pytest.mark.parametrize("name", ["eambnet_lite_para", "emotion_lite_para_first"])
def test_the_shipped_networks_come_back_with_the_hashes_of_what_they_were_trained_on(name, tmp_path):
    weights = load_weights(FOLDER / f"{name}.safetensors")
    network = weights.build()
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path)
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again(images).prediction, network(images).prediction)
    read = load_weights(tmp_path)
    assert len(read.training_ids) > 0 and (read.training_ids == weights.training_ids).all()
    assert (read.emotion_training_ids == weights.emotion_training_ids).all()
    card = ModelCard.load(tmp_path / "README.md")
    for said in (
        f"import {type(network).__name__}",
        *(weights.description[name] for name in ("licence", "source")),
    ):
        assert said in card.text


def test_a_network_that_was_never_trained_here_has_weights_and_no_meaning(tmp_path):
    torch.manual_seed(3)
    network = build_model("test_efficientnet", 10, width=8, guided_width=4, guided_hidden=2, head_width=4)
    network.save_pretrained(tmp_path)
    again = EAMBNet.from_pretrained(tmp_path, dropout=0.25)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in network.state_dict().items())
    assert again.arguments == network.arguments | {"dropout": 0.25}
    for source in (tmp_path, again):
        assert "has no description, so that nothing says what its output means" in refused(Scorer, source)


def test_push_to_hub_sends_a_folder_that_can_be_loaded(stars, tmp_path, monkeypatch):
    def upload(self, folder_path, **options):
        shutil.copytree(folder_path, tmp_path / "sent")
        return options["repo_id"]

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id})
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert EAMBNet.from_pretrained(stars[0]).push_to_hub("someone/stars") == "someone/stars"
    assert {path.name for path in (tmp_path / "sent").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert load_weights(tmp_path / "sent").sha256 == stars[1].sha256


def test_a_scorer_takes_folders_and_networks(stars, tmp_path):
    folder, _ = stars
    blotches(1).save(tmp_path / "1.png")
    expected = Scorer(folder, device="cpu").score(tmp_path / "1.png")
    network = EAMBNet.from_pretrained(folder)
    assert Scorer(network, device="cpu").score(tmp_path / "1.png") == expected
    both = Scorer([network, folder], device="cpu").score(tmp_path / "1.png")
    assert both.score == pytest.approx(expected.score) and both.score_model_std == 0
    with torch.no_grad():
        network.head[5].bias.add_(1)  # as they are now
    assert Scorer(network, device="cpu").score(tmp_path / "1.png").score > expected.score


# ---- what does not fit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 24}, "fusion.expand.1.running_mean is (16,), the network's is (24,)"),
        ({"outputs": 10}, "head.5.bias is (1,), the network's is (10,)"),
        ({"emotions": ["joy"]}, "emotion.classifier.bias is (8,), the network's is (1,)"),
        ({"width": 10**9}, "take both from one model"),  # terabytes if they were allocated
        ({"width": "16"}, "take both from one model"),
        ({"widht": 16}, "unexpected keyword argument 'widht'"),
        ({"without": ["everything"]}, "without must name some of emotion, detail"),
        ({"backbone": "no_such_net"}, "backbones: timm cannot give 'no_such_net'"),
        ({"backbone": "hf-hub:someone/evil"}, "hf-hub:someone/evil is no name of a network"),
        ({"backbone": None}, "it has no 'backbone'"),
        ({"architectures": ["BertModel"]}, "holds a network of the class BertModel, not EAMBNet"),
        ({"description": {"mean": [0, 0, 0]}}, "'mean' is [0, 0, 0], and for"),
        ({"description": [1]}, "is damaged, or not of a network of this program"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(changes, said, copied):
    assert said in refused(EAMBNet.from_pretrained, edited(copied, **changes))


def test_a_network_is_built_without_memory_before_it_is_built(stars):
    devices = []

    def build():
        devices.append(torch.empty(1).device.type)
        return EAMBNet(**hub.read_folder(stars[0]).arguments)

    hub.check_fit(build, hub.read_folder(stars[0]).tensors, stars[0])
    assert devices == ["meta"]


def test_weights_by_a_config_of_another_network_are_one_sentence_for_every_command(copied):
    text = refused(load_weights, edited(copied, head_width=9))
    assert "config.json does not fit model.safetensors: head.2.bias is (8,), the network's is (9,)" in text
    scale = STARS.as_dict() | {"kind": "distribution", "bins": [1.0, 2.0, 3.0]}
    description = read_json(copied / "config.json")["description"]
    text = refused(load_weights, edited(copied, head_width=8, description=description | {"scale": scale}))
    assert "3 ratings for 1 outputs" in text
    text = refused(Scorer, edited(copied, description=description | {"image_size": "224"}))
    assert '"image_size" in pixels and "exif" true or false; found 224 and True' in text
    network = EAMBNet.from_pretrained(edited(copied, description={"task": "aesthetics"}))
    assert "the description in this EAMBNet is damaged or of another version" in refused(Scorer, network)


def test_damaged_and_missing_files_are_one_sentence(copied, tmp_path):
    whole = (copied / "model.safetensors").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for content in (b"", pointer, whole[:-9], b"PK\x03\x04"):
        (copied / "model.safetensors").write_bytes(content)
        assert "model.safetensors is not a weights file: it is empty, cut off" in refused(
            EAMBNet.from_pretrained, copied
        )
    for content in ("", "{", "[]", '"config"', "<!doctype html>"):
        (copied / "config.json").write_text(content)
        assert "config.json is damaged, or not of" in refused(EAMBNet.from_pretrained, copied)
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")  # which would be a pickle
    said = refused(EAMBNet.from_pretrained, copied, error=FileNotFoundError)
    assert "has no model.safetensors; a hub's folder holds config.json and model.safetensors" in said
    said = refused(EAMBNet.from_pretrained, tmp_path / "nowhere", error=FileNotFoundError)
    assert "there is no folder" in said and "owner/name" in said


def test_an_emotion_network_is_loaded_by_its_own_class(tmp_path):
    sizes = {"emotion_scale": 1.0, "width": 8}
    EmotionNetwork("test_efficientnet", ("joy", "fear"), **sizes).save_pretrained(tmp_path)
    assert "load it with EmotionNetwork.from_pretrained" in refused(EAMBNet.from_pretrained, tmp_path)
    assert EmotionNetwork.from_pretrained(tmp_path).arguments["emotions"] == ("joy", "fear")


# ---- a hub, and torch.hub, from another folder


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol by which a file of a model is found and downloaded."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path == "/stop":
            threading.Thread(target=self.server.stop).start()
            return self.answer(200, b"", {})
        _, owner, name, _, revision, file = self.path.split("/")
        path = self.server.folder / name / file
        if not path.parent.is_dir() or owner != "someone":
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if not path.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self.answer(200, path.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{name}{file}"'})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content)), "Connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving(folder):
    """A server of a folder's models, for which its attribute `asked` lists the requests."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.asked = folder, []
    server.stop = lambda: (server.shutdown(), server.server_close())
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.stop()


def archive_of_the_program(path):
    """As GitHub makes one: everything in one folder."""
    files = [*ROOT.glob("*.py"), *(ROOT / "eamb").rglob("*.py"), *(ROOT / "checkpoints").glob("*_para.*")]
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("someone-program-0123456/")
        for file in files:
            archive.write(file, f"someone-program-0123456/{file.relative_to(ROOT)}")
    return path


@pytest.fixture(scope="module", params=["local", pytest.param("github", marks=pytest.mark.slow)])
def elsewhere(request, stars, tmp_path_factory):
    """What hub_from_elsewhere.py says, among packages with our names; its folder; what it asked the hub."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in OTHERS:
        (folder / "packages" / name).mkdir(parents=True)
        (folder / "packages" / name / "__init__.py").write_text("OTHERS = True\n")
    shutil.copytree(stars[0], folder / "served" / "stars")
    shutil.copytree(stars[0], folder / "served" / "half", ignore=shutil.ignore_patterns("*.safetensors"))
    blotches(1).save(folder / "picture.png")
    source, archive = ROOT, ""
    if request.param == "github":
        source, archive = "someone/program:main", archive_of_the_program(folder / "program.zip")
    places = {"PYTHONPATH": folder / "packages", "HF_HOME": folder / "hf", "TORCH_HOME": folder / "torch"}
    script = shutil.copy(ROOT / "tests" / "hub_from_elsewhere.py", folder)
    words = [sys.executable, script, source, archive, folder / "picture.png"]
    with serving(folder / "served") as server:
        places["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        environment = os.environ | {name: str(place) for name, place in places.items()}
        options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run([*map(str, words)], **options, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder, server.asked


def test_torch_hub_gives_networks_and_scorers_and_hides_no_package(elsewhere):
    said, folder, _ = elsewhere
    scorer = Scorer("lite", device="cpu", maps=True)
    assert said["score"] == pytest.approx(scorer.score(folder / "picture.png").score, abs=1e-4)
    assert said["scores"] == pytest.approx([said["score"], said["scores"][1]], abs=1e-4)
    assert said["size"] == load_weights(SHIPPED["lite"]).description["image_size"]
    assert sum(said["emotions"].values()) == pytest.approx(1)
    assert said["modules"] == dict.fromkeys(OTHERS, True) and said["metrics"]
    assert said["path"] == []


def test_networks_are_downloaded_once_and_then_loaded_without_a_connection(elsewhere, stars):
    said, _, asked = elsewhere
    with torch.inference_mode():
        expected = stars[1].build()(torch.ones(1, 3, SIZE, SIZE)).prediction.item()
    for name in ("downloaded", "cached", "cached without connection"):
        assert said[name] == pytest.approx(expected, abs=1e-5)
    downloads = [each for each in asked if each.startswith("GET /someone/stars/")]
    # The weights of the commit whose config.json came, whatever main is by then.
    files = [("main", "config.json"), (COMMIT, "model.safetensors")]
    assert downloads == [f"GET /someone/stars/resolve/{r}/{file}" for r, file in files]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "the hub has no such model, or it is private and needs a token"),
        ("revision", "it has no revision old"),
        ("half", "it must have config.json and model.safetensors"),
        ("no connection", "there is no connection, and no copy in the hub's cache"),
    ],
)
def test_what_cannot_be_downloaded_is_one_sentence(elsewhere, name, words):
    said = elsewhere[0][name]
    assert said.startswith("FileNotFoundError: checkpoint: someone/") and words in said and "\n" not in said


# ---- entries of hubconf.py


def enter(entry, **options):
    return torch.hub.load(str(ROOT), entry, source="local", **options)


@pytest.mark.slow  # builds the paper's network three times
def test_the_papers_network_with_official_weights_and_with_ours(official_state, paper_network, tmp_path):
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = paper_network(images).prediction
        torch.save(official_state, tmp_path / "official.pth")
        network = enter("eambnet_resnet50", weights=tmp_path / "official.pth")
        assert torch.equal(network(images).prediction, expected)
        assert "has no description" in refused(network.scorer)
        network.save_pretrained(tmp_path / "paper")
        assert torch.equal(EAMBNet.from_pretrained(tmp_path / "paper")(images).prediction, expected)
        bins = Scale("distribution", 1.0, 10.0, 5.0, bins=tuple(map(float, range(1, 11))))
        described = checkpoint.describe(paper_network, bins) | {"image_size": 96, "exif": True}
        checkpoint.export_weights(tmp_path / "ours.safetensors", Weights(network.state_dict(), described))
        ours = enter("eambnet_resnet50", weights=tmp_path / "ours.safetensors", outputs=10)
        assert torch.equal(ours(images).prediction, expected)
    with pytest.raises(ValueError, match=r"ours\.safetensors has 10 outputs, not 5; leave out outputs"):
        enter("eambnet_resnet50", weights=tmp_path / "ours.safetensors", outputs=5)
    blotches(1).save(tmp_path / "1.png")
    scored = ours.scorer(device="cpu").score(tmp_path / "1.png")
    assert 1 < scored.score < 10 and sum(scored.distribution.values()) == pytest.approx(1)


def test_weights_of_another_network_are_refused(stars):
    with pytest.raises(
        ValueError, match="must hold a whole EAMBNet on resnet50; it is of aesthetics, eambnet, test_"
    ):
        enter("eambnet_resnet50", weights=stars[0])


def test_every_package_that_a_hub_needs_is_listed(elsewhere):
    packages = elsewhere[0]["packages"]
    assert "torch" in packages and {*packages} <= {*dependencies}
