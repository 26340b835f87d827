"""The embedded data set: it is what its README.txt says, and making it is safe to repeat and to interrupt."""

import hashlib
import itertools
import socket
import sys
from collections import Counter

import numpy as np
import pytest
import small
from PIL import Image

from eamb.readers import demo

# Made by this code with Python 3.11. The votes are a formula, so every machine must arrive at the same bytes.
LABELS_SHA256 = "00f94bbd99a8c3696f4e925ed529a9b9d5fa01b3ddf3786e62d7c8b549f59a59"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The data set, made while any use of the network is an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return demo.make_demo(tmp_path_factory.mktemp("data") / "demo")


def refuse(*arguments, **keywords):
    raise AssertionError("the demo data set must be made offline")


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_every_row_has_its_picture_and_every_picture_its_row(root):
    rows = small.read_csv(root / "labels.csv")
    names = [row["image"] for row in rows]
    assert len(names) == 304 and sorted(names) == sorted(names_in(root / "images"))
    assert Counter(row["split"] for row in rows) == {"train": 190, "val": 38, "test": 76}
    for name in names[::30]:
        with Image.open(root / "images" / name) as picture:
            assert (picture.format, picture.mode, max(picture.size)) == ("JPEG", "RGB", 320)
            assert min(picture.size) >= 200


def test_votes_are_spread_as_the_rating_says():
    # A normal distribution around the middle of the scale: symmetric, and its mean is kept exactly.
    assert demo.vote_counts(5.5) == [0, 2, 6, 16, 26, 26, 16, 6, 2, 0]
    assert np.average(range(1, 11), weights=demo.vote_counts(6.3)) == pytest.approx(6.3, abs=0.05)


def test_labels_are_the_same_bytes_on_every_machine(root):
    assert hashlib.sha256((root / "labels.csv").read_bytes()).hexdigest() == LABELS_SHA256


def roughness(picture):
    """Mean absolute difference of horizontal neighbours, in grey levels."""
    return np.abs(np.diff(picture.mean(axis=2), axis=1)).mean()


MEASURES = {
    "blur": lambda picture, whole: -roughness(picture),
    "noise": lambda picture, whole: roughness(picture),
    "cast": lambda picture, whole: picture[..., 1].mean() - picture[..., [0, 2]].mean(),
    "overexposure": lambda picture, whole: picture.mean(),
    "underexposure": lambda picture, whole: -picture.mean(),
    "compression": lambda picture, whole: np.abs(picture - whole).mean(),
}


@pytest.mark.parametrize("kind", MEASURES)
@pytest.mark.parametrize("source", ["china", "rocket"])
def test_damage_grows_with_severity(root, source, kind):
    names = ("none_0", *(f"{kind}_{severity}" for severity in (1, 2, 3, 4)))
    paths = [root / "images" / f"{source}_whole_{name}.jpg" for name in names]
    pictures = [np.asarray(Image.open(path), dtype=np.float64) for path in paths]
    values = [MEASURES[kind](picture, pictures[0]) for picture in pictures]
    assert values == sorted(values) and len(set(values)) == 5


@pytest.mark.parametrize("kind", MEASURES)
def test_a_damage_is_the_same_each_time(kind):
    picture = demo.open_photograph(demo.PHOTOGRAPHS[0]).resize((64, 64))
    first, second = (demo.KINDS[kind].apply(picture, demo.KINDS[kind].strengths[1]) for _ in range(2))
    assert first.tobytes() == second.tobytes() != picture.tobytes()


def test_exposure_multiplies_linear_light():
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    (level, _, _) = demo.expose(grey, 1.0).getpixel((0, 0))
    assert (level / 255) ** 2.2 == pytest.approx(2 * (100 / 255) ** 2.2, rel=0.01)  # levels are whole
    assert demo.expose(grey, 3.0).getpixel((0, 0)) == (255, 255, 255)  # clipped, as a sensor does


def test_a_close_view_beyond_the_border_is_moved_inward():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1))).convert("RGB")
    close = demo.take_view(ramp, "close", (1.0, 0.5))
    assert close.size == (320, 160)
    assert close.getpixel((319, 80))[0] >= 198  # reaches the right border, and not beyond it


def test_the_contact_sheet_shows_the_pictures_in_their_cells(root):
    top = demo.HEADER + demo.CELL_HEIGHT + demo.GAP  # China is the second row
    with Image.open(root / "contact_sheet.png") as sheet:
        lefts = [
            demo.column_left(column) for column in (8, 0, 6)
        ]  # underexposure 4, undamaged, overexposure 4
        cells = [sheet.crop((left, top, left + demo.CELL_WIDTH, top + demo.CELL_HEIGHT)) for left in lefts]
        dark, whole, light = (np.asarray(cell).mean() for cell in cells)
    assert dark + 40 < whole < light - 40


def test_the_readme_says_that_the_labels_are_synthetic_and_names_every_photograph(root):
    text = (root / "README.txt").read_text()
    assert "THE LABELS ARE SYNTHETIC. Nobody rated these pictures." in text
    assert all(photograph.credit in text for photograph in demo.PHOTOGRAPHS)


def test_the_command_leaves_a_complete_data_set_alone_and_prints_where_it_is(root, monkeypatch, capsys):
    monkeypatch.setattr(demo, "write_data_set", lambda folder: pytest.fail("made again"))
    monkeypatch.setattr(sys, "argv", ["demo", "--root", str(root)])
    demo.main()
    assert str(root / "labels.csv") in capsys.readouterr().out


def test_the_command_refuses_somebody_elses_folder_in_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    monkeypatch.setattr(sys, "argv", ["demo", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    said = capsys.readouterr().err
    assert said == f"demo: {tmp_path} exists and holds something else; name a new folder with --root\n"
    assert (tmp_path / "holiday.jpg").read_bytes() == b"precious" and names_in(tmp_path) == ["holiday.jpg"]


def small_data_set(folder):
    """Stands in for write_data_set where only the handling of folders is tested."""
    (folder / "images").mkdir(parents=True)
    for variant in demo.plan():
        (folder / "images" / variant.image).touch()
    (folder / "labels.csv").touch()
    (folder / "README.txt").write_text(demo.readme())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(demo, "plan", lambda whole=demo.plan: itertools.islice(whole(), 5))
    monkeypatch.setattr(demo, "write_data_set", small_data_set)


def test_an_empty_a_damaged_and_an_older_data_set_is_made_anew(quick, tmp_path):
    (tmp_path / "demo").mkdir()
    root = demo.make_demo(tmp_path / "demo")
    lost = next((root / "images").iterdir())
    lost.unlink()
    assert demo.make_demo(root) == root and lost.exists()
    (root / "README.txt").write_text(demo.readme().replace("version 1", "version 0"))
    demo.make_demo(root)
    assert (root / "README.txt").read_text() == demo.readme()
    assert names_in(tmp_path) == ["demo"]


def test_an_interrupted_run_leaves_nothing(quick, tmp_path, monkeypatch):
    def interrupted(folder):
        small_data_set(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_data_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo(tmp_path / "demo")
    assert names_in(tmp_path) == []


def test_two_processes_at_once_agree(quick, tmp_path, monkeypatch):
    def overtaken(folder):
        small_data_set(folder)
        small_data_set(tmp_path / "demo")  # the other process finishes first

    monkeypatch.setattr(demo, "write_data_set", overtaken)
    assert demo.is_complete(demo.make_demo(tmp_path / "demo"))
    assert names_in(tmp_path) == ["demo"]


def test_a_photograph_that_is_not_installed_is_named():
    lost = demo.PHOTOGRAPHS[0]._replace(file="data/unicorn.png")
    missing = r"data/unicorn\.png is missing from the installed package skimage"
    with pytest.raises(FileNotFoundError, match=missing):
        demo.open_photograph(lost)
