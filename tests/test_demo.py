"""The embedded data set: it is what its README.txt says, and making it is safe to repeat and to interrupt."""

import csv
import hashlib
import itertools
import socket
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import small
from PIL import Image, ImageFilter

from eamb.network.outputs import EMOTIONS
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


@pytest.fixture(scope="module")
def rows(root):
    """labels.csv as dictionaries, votes and severity as whole numbers."""
    with (root / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["severity"] = int(row["severity"])
        row["votes"] = [int(row[f"score{rating}"]) for rating in range(1, 11)]
    return rows


def refuse(*arguments, **keywords):
    raise AssertionError("the demo data set must be made offline")


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def mean(votes):
    return float(np.dot(votes, np.arange(1, 11)) / sum(votes))


# ---- what is in it -------------------------------------------------------------------------------


def test_every_row_has_its_picture_and_every_picture_its_row(root, rows):
    names = [row["image"] for row in rows]
    assert len(names) == len(set(names)) == 304
    assert sorted(names) == sorted(names_in(root / "images"))
    for name in names[::30]:
        with Image.open(root / "images" / name) as picture:
            assert (picture.format, picture.mode, max(picture.size)) == ("JPEG", "RGB", 320)
            assert min(picture.size) >= 200


def test_splits_are_by_photograph_and_each_has_every_degradation_and_emotion(rows):
    splits = defaultdict(set)
    for row in rows:
        splits[row["source"]].add(row["split"])
        assert row["image"].startswith(row["source"])
    assert len(splits) == 8 and all(len(of_source) == 1 for of_source in splits.values())
    assert Counter(row["split"] for row in rows) == {"train": 190, "val": 38, "test": 76}
    for split in ("train", "val", "test"):
        of_split = [row for row in rows if row["split"] == split]
        assert {row["emotion"] for row in of_split} == set(EMOTIONS)
        assert len({(row["degradation"], row["severity"]) for row in of_split}) == 1 + 6 * 4


def test_labels_are_a_function_of_the_degradation_and_fall_with_every_step(rows):
    labels = defaultdict(set)
    for row in rows:
        assert sum(row["votes"]) == 100 and min(row["votes"]) >= 0
        labels[row["degradation"], row["severity"]].add((row["emotion"], *row["votes"]))
    assert all(len(of_kind) == 1 for of_kind in labels.values())
    ratings = {kind: mean(next(iter(of_kind))[1:]) for kind, of_kind in labels.items()}
    clean = ratings.pop(("none", 0))
    for kind in {kind for kind, _ in ratings}:
        steps = [clean, *(ratings[kind, severity] for severity in (1, 2, 3, 4))]
        assert all(better - worse > 0.5 for better, worse in itertools.pairwise(steps)), kind


def test_votes_are_spread_as_the_rating_says():
    # A normal distribution around the middle of the scale: symmetric, and its mean is kept exactly.
    votes = demo.vote_counts(5.5)
    assert votes == votes[::-1] == [0, 2, 6, 16, 26, 26, 16, 6, 2, 0]
    assert mean(demo.vote_counts(6.3)) == pytest.approx(6.3, abs=0.05)


def test_labels_are_the_same_bytes_on_every_machine(root):
    assert hashlib.sha256((root / "labels.csv").read_bytes()).hexdigest() == LABELS_SHA256


# ---- the pictures are degraded as their rows say -------------------------------------------------


def sharpness(picture):
    """Mean absolute difference of horizontal neighbours, in grey levels."""
    return np.abs(np.diff(picture.mean(axis=2), axis=1)).mean()


def graininess(picture):
    """Mean distance from the median of the neighbourhood, in grey levels."""
    smooth = Image.fromarray(picture.astype(np.uint8)).filter(ImageFilter.MedianFilter(3))
    return np.abs(picture - np.asarray(smooth)).mean()


def greenness(picture):
    return picture[..., 1].mean() - picture[..., [0, 2]].mean()


MEASURES = {"blur": (sharpness, -1), "noise": (graininess, 1), "cast": (greenness, 1)}
MEASURES |= {"overexposure": (np.mean, 1), "underexposure": (np.mean, -1)}


@pytest.mark.parametrize("kind", [*MEASURES, "compression"])
@pytest.mark.parametrize("source", ["china", "rocket"])
def test_damage_grows_with_severity(root, source, kind):
    pictures = []
    for name in ("none_0", *(f"{kind}_{severity}" for severity in (1, 2, 3, 4))):
        with Image.open(root / "images" / f"{source}_whole_{name}.jpg") as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float64))
    if kind == "compression":
        values = [np.abs(picture - pictures[0]).mean() for picture in pictures]
        assert values[1] > 1
    else:
        measure, direction = MEASURES[kind]
        values = [direction * measure(picture) for picture in pictures]
    assert values == sorted(values) and len(set(values)) == 5


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
    # China is the second row; column 0 is undamaged, 6 is overexposure 4, 8 is underexposure 4.
    with Image.open(root / "contact_sheet.png") as sheet:
        top = demo.HEADER + demo.CELL_HEIGHT + demo.GAP

        def brightness(column):
            left = demo.column_left(column)
            cell = sheet.crop((left, top, left + demo.CELL_WIDTH, top + demo.CELL_HEIGHT))
            return np.asarray(cell).mean()

        assert brightness(6) > brightness(0) + 40 and brightness(8) < brightness(0) - 40


def test_the_readme_says_that_the_labels_are_synthetic_and_names_every_photograph(root):
    text = (root / "README.txt").read_text()
    assert "THE LABELS ARE SYNTHETIC. Nobody rated these pictures." in text
    assert all(photograph.name in text and photograph.credit in text for photograph in demo.PHOTOGRAPHS)


# ---- making it -----------------------------------------------------------------------------------


def test_the_command_prints_where_things_are(root):
    made = small.command("-m", "eamb.readers.demo", "--root", root)
    assert made.returncode == 0 and str(root / "labels.csv") in made.stdout


def test_pictures_made_twice_are_the_same_to_the_byte(root, tmp_path, monkeypatch):
    some = [variant for variant in demo.plan() if variant.photograph.name == "chelsea"]  # of every kind
    monkeypatch.setattr(demo, "plan", lambda: some)
    monkeypatch.setattr(demo, "draw_contact_sheet", lambda images: Image.new("L", (1, 1)))
    demo.write_data_set(tmp_path / "again")
    for path in (tmp_path / "again" / "images").iterdir():
        assert path.read_bytes() == (root / "images" / path.name).read_bytes(), path.name


def test_the_command_refuses_somebody_elses_folder_in_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    monkeypatch.setattr(sys, "argv", ["demo", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    said = capsys.readouterr().err
    assert said == f"demo: {tmp_path} exists and holds something else; name a new folder with --root\n"
    assert (tmp_path / "holiday.jpg").read_bytes() == b"precious" and names_in(tmp_path) == ["holiday.jpg"]


def test_a_complete_data_set_is_left_alone(root, monkeypatch):
    monkeypatch.setattr(demo, "write_data_set", lambda folder: pytest.fail("made again"))
    assert demo.make_demo(root) == root


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
