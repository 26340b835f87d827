"""The embedded data set: it is what its README.txt says, and making it is safe to repeat and to interrupt."""

import hashlib
import socket
import sys
from collections import Counter

import numpy as np
import pytest
import small
from PIL import Image

from eamb.readers import demo
from eamb.training.starting import build_network, read_sources
from eamb.training.tasks import choose_task, layer_of_mean
from eamb.weights.checkpoint import load_weights
from eamb.weights.shipped import SHIPPED
from main import parse, read_config

# Made by this code with Python 3.11. The votes are a formula, so every machine must arrive at the same bytes.
LABELS_SHA256 = "00f94bbd99a8c3696f4e925ed529a9b9d5fa01b3ddf3786e62d7c8b549f59a59"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The data set, made while any use of the network is an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", None)
        patch.setattr(socket, "getaddrinfo", None)
        return demo.make_demo(tmp_path_factory.mktemp("data") / "demo")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_row_has_its_picture_and_every_picture_its_row(root):
    rows = small.read_csv(root / "labels.csv")
    names = [row["image"] for row in rows]
    assert len(names) == 304 and sorted(names) == names_in(root / "images")
    assert Counter(row["split"] for row in rows) == {"train": 190, "val": 38, "test": 76}
    for name in names[::30]:
        with Image.open(root / "images" / name) as picture:
            assert (picture.format, picture.mode, max(picture.size)) == ("JPEG", "RGB", 320)
            assert min(picture.size) >= 200
    text = (root / "README.txt").read_text()
    assert "THE LABELS ARE SYNTHETIC. Nobody rated these 304 pictures." in text
    assert all(photograph.credit in text for photograph in demo.PHOTOGRAPHS)


def test_labels_are_the_same_bytes_on_every_machine_and_votes_are_spread_as_the_rating_says(root):
    assert hashlib.sha256((root / "labels.csv").read_bytes()).hexdigest() == LABELS_SHA256
    _, emotion, votes = demo.degrade(Image.new("RGB", (8, 8)), "blur", 2)
    assert (emotion, sum(votes), len(votes)) == ("contentment", 100, 10)
    assert np.average(range(1, 11), weights=votes) == pytest.approx(8 - 2 * 1.3, abs=0.05)


@pytest.mark.parametrize("kind", demo.KINDS)
@pytest.mark.parametrize("source", ["china", "rocket"])
def test_damage_grows_with_severity_and_is_the_same_each_time(root, source, kind):
    names = ("none_0", *(f"{kind}_{severity}" for severity in (1, 2, 3, 4)))
    whole, *damaged = (Image.open(root / "images" / f"{source}_whole_{name}.jpg") for name in names)
    away = [np.abs(np.asarray(each, float) - np.asarray(whole, float)).mean() for each in damaged]
    assert 0.5 < away[0] < away[1] < away[2] < away[3]
    assert demo.degrade(whole, kind, 2)[0].tobytes() == demo.degrade(whole, kind, 2)[0].tobytes()


def test_exposure_multiplies_linear_light():
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    (level, _, _) = demo.expose(grey, 1.0).getpixel((0, 0))
    assert (level / 255) ** 2.2 == pytest.approx(2 * (100 / 255) ** 2.2, rel=0.01)  # levels are whole
    assert demo.expose(grey, 3.0).getpixel((0, 0)) == (255, 255, 255)  # clipped, as a sensor does


def test_the_contact_sheet_shows_the_pictures_in_their_cells(root):
    with Image.open(root / "contact_sheet.png") as sheet:  # China, underexposed, undamaged, overexposed
        cells = [sheet.crop((132 * column, 150, 132 * column + 128, 196)) for column in (8, 0, 6)]
    dark, whole, light = (np.asarray(cell).mean() for cell in cells)
    assert dark + 40 < whole < light - 20


def test_the_command_leaves_a_data_set_alone_and_refuses_somebody_elses_folder(
    root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(demo, "write_data_set", lambda folder: pytest.fail("made again"))
    monkeypatch.setattr(sys, "argv", ["demo", "--root", str(root)])
    demo.main()
    assert f"{root}: labels.csv, images" in capsys.readouterr().out
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    monkeypatch.setattr(sys, "argv", ["demo", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    said = capsys.readouterr().err
    assert said == f"demo: {tmp_path} exists and holds something else; name a new folder with --root\n"
    assert (tmp_path / "holiday.jpg").read_bytes() == b"precious" and names_in(tmp_path) == ["holiday.jpg"]


def test_an_interrupted_run_leaves_nothing_and_two_processes_at_once_agree(tmp_path, monkeypatch):
    def make(folder):
        folder.mkdir(exist_ok=True)
        (folder / "labels.csv").touch()

    def interrupted(folder):
        make(folder)
        raise KeyboardInterrupt

    def overtaken(folder):
        make(folder)
        make(tmp_path / "demo")  # the other process finishes first

    monkeypatch.setattr(demo, "write_data_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo(tmp_path / "demo")
    assert names_in(tmp_path) == []
    (tmp_path / "demo").mkdir()  # an empty folder is filled
    monkeypatch.setattr(demo, "write_data_set", overtaken)
    assert names_in(demo.make_demo(tmp_path / "demo")) == ["labels.csv"]
    assert names_in(tmp_path) == ["demo"]


def test_a_training_on_it_starts_with_all_that_the_shipped_network_knows(root, capsys):
    config, _ = read_config(parse(["train", "--dataset", "demo", "--data-root", str(root)]))
    task, shipped = choose_task(config), load_weights(SHIPPED["lite"])
    network, _ = build_network(
        task, task.load(("train", "val"))["train"], read_sources(task, str(SHIPPED["lite"]), None)
    )
    assert capsys.readouterr().out == ""  # no layer is replaced by a random one
    tensors = {
        n: value.float() if value.is_floating_point() else value for n, value in shipped.tensors.items()
    }
    # Its last layer gives a distribution; here one score goes on from it.
    last = [tensors.pop(f"head.5.{name}") for name in ("weight", "bias")]
    scores = dict(zip(("head.5.weight", "head.5.bias"), layer_of_mean(*last, shipped.scale), strict=True))
    assert small.same(network.state_dict(), tensors | scores)
