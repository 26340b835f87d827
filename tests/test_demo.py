"""The embedded data set: it is what its README.txt says, and making it is safe to repeat and to interrupt."""

import csv
import hashlib
import itertools
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from eamb.readers import demo

REPOSITORY = Path(__file__).parent.parent
EMOTIONS = {"amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"}
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
    assert sorted(names) == sorted(path.name for path in (root / "images").iterdir())


def test_columns_are_as_documented(root):
    header = (root / "labels.csv").read_text().splitlines()[0]
    scores = ",".join(f"score{rating}" for rating in range(1, 11))
    assert header == f"image,split,source,degradation,severity,emotion,{scores}"


def test_pictures_are_colour_jpegs_of_modest_size(root, rows):
    for row in rows[::10]:
        with Image.open(root / "images" / row["image"]) as picture:
            assert (picture.format, picture.mode, max(picture.size)) == ("JPEG", "RGB", 320)
            assert min(picture.size) >= 200


def test_no_photograph_is_in_two_splits(rows):
    splits = defaultdict(set)
    for row in rows:
        splits[row["source"]].add(row["split"])
        assert row["image"].startswith(row["source"])
    assert len(splits) == 8
    assert all(len(of_source) == 1 for of_source in splits.values())
    assert Counter(row["split"] for row in rows) == {"train": 190, "val": 38, "test": 76}


def test_every_split_has_every_degradation_and_every_emotion(rows):
    for split in ("train", "val", "test"):
        of_split = [row for row in rows if row["split"] == split]
        assert {row["emotion"] for row in of_split} == EMOTIONS
        assert len({(row["degradation"], row["severity"]) for row in of_split}) == 1 + 6 * 4


# ---- the labels follow from the degradation ------------------------------------------------------


def test_every_picture_has_a_hundred_votes(rows):
    assert all(sum(row["votes"]) == 100 and min(row["votes"]) >= 0 for row in rows)


def test_the_rating_falls_with_every_step_of_severity(rows):
    ratings = {(row["degradation"], row["severity"]): mean(row["votes"]) for row in rows}
    clean = ratings.pop(("none", 0))
    for kind in {kind for kind, _ in ratings}:
        steps = [clean, *(ratings[kind, severity] for severity in (1, 2, 3, 4))]
        assert all(better - worse > 0.5 for better, worse in itertools.pairwise(steps)), kind


def test_labels_are_a_function_of_the_degradation_alone(rows):
    labels = defaultdict(set)
    for row in rows:
        labels[row["degradation"], row["severity"]].add((row["emotion"], *row["votes"]))
    assert all(len(of_kind) == 1 for of_kind in labels.values())


def test_votes_are_spread_as_the_rating_says():
    # A normal distribution around the middle of the scale: symmetric, and its mean is kept exactly.
    votes = demo.vote_counts(5.5)
    assert votes == votes[::-1] == [0, 2, 6, 16, 26, 26, 16, 6, 2, 0]
    assert mean(demo.vote_counts(6.3)) == pytest.approx(6.3, abs=0.05)


def test_labels_are_the_same_bytes_on_every_machine(root):
    assert hashlib.sha256((root / "labels.csv").read_bytes()).hexdigest() == LABELS_SHA256


# ---- the pictures are degraded as their rows say -------------------------------------------------


def pixels(root, name):
    with Image.open(root / "images" / name) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64)


def sharpness(picture):
    """Mean absolute difference of horizontal neighbours, in grey levels."""
    return np.abs(np.diff(picture.mean(axis=2), axis=1)).mean()


def graininess(picture):
    """Mean distance from the median of the neighbourhood, in grey levels."""
    smooth = Image.fromarray(picture.astype(np.uint8)).filter(ImageFilter.MedianFilter(3))
    return np.abs(picture - np.asarray(smooth)).mean()


def greenness(picture):
    return picture[..., 1].mean() - picture[..., [0, 2]].mean()


@pytest.mark.parametrize(
    ("kind", "measure", "direction"),
    [
        ("blur", sharpness, -1),
        ("noise", graininess, 1),
        ("overexposure", np.mean, 1),
        ("underexposure", np.mean, -1),
        ("cast", greenness, 1),
    ],
)
@pytest.mark.parametrize("source", ["china", "chelsea", "rocket"])
def test_damage_grows_with_severity(root, source, kind, measure, direction):
    names = [f"{source}_whole_none_0.jpg", *(f"{source}_whole_{kind}_{s}.jpg" for s in (1, 2, 3, 4))]
    values = [direction * measure(pixels(root, name)) for name in names]
    assert values == sorted(values) and len(set(values)) == 5


@pytest.mark.parametrize("source", ["china", "chelsea", "rocket"])
def test_compression_moves_away_from_the_original(root, source):
    clean = pixels(root, f"{source}_whole_none_0.jpg")
    errors = [
        np.abs(pixels(root, f"{source}_whole_compression_{s}.jpg") - clean).mean() for s in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors) and errors[0] > 1


def test_exposure_multiplies_linear_light():
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    (level, _, _) = demo.expose(grey, 1.0).getpixel((0, 0))
    assert (level / 255) ** 2.2 == pytest.approx(2 * (100 / 255) ** 2.2, rel=0.01)
    assert demo.expose(grey, 3.0).getpixel((0, 0)) == (255, 255, 255)  # clipped, as a sensor does


def test_a_close_view_beyond_the_border_is_moved_inward():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1))).convert("RGB")
    close = demo.take_view(ramp, "close", (1.0, 0.5))
    assert close.size == (320, 160)
    assert close.getpixel((319, 80))[0] >= 198  # reaches the right border, and not beyond it


# ---- making it -----------------------------------------------------------------------------------


def test_made_twice_it_is_the_same_to_the_byte(root, tmp_path):
    again = demo.make_demo(tmp_path / "elsewhere")
    for path in sorted(root.rglob("*.*")):
        assert path.read_bytes() == (again / path.relative_to(root)).read_bytes(), path.name


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
    monkeypatch.setattr(demo, "write_data_set", small_data_set)


def test_a_damaged_or_older_data_set_is_made_anew(quick, tmp_path):
    root = demo.make_demo(tmp_path / "demo")
    lost = next((root / "images").iterdir())
    lost.unlink()
    assert demo.make_demo(root) == root and lost.exists()
    (root / "README.txt").write_text(demo.readme().replace("version 1", "version 0"))
    demo.make_demo(root)
    assert (root / "README.txt").read_text() == demo.readme()
    assert names_in(tmp_path) == ["demo"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder):
        small_data_set(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_data_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo(tmp_path / "demo")
    assert names_in(tmp_path) == []


def test_two_processes_at_once_agree(tmp_path, monkeypatch):
    def overtaken(folder):
        small_data_set(folder)
        small_data_set(tmp_path / "demo")  # the other process finishes first

    monkeypatch.setattr(demo, "write_data_set", overtaken)
    assert demo.is_complete(demo.make_demo(tmp_path / "demo"))
    assert names_in(tmp_path) == ["demo"]


def test_somebody_elses_folder_is_refused_and_kept(quick, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(
        FileExistsError, match=r"^demo: .* holds something else; name a new folder with --root$"
    ):
        demo.make_demo(tmp_path)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"precious"
    assert names_in(tmp_path) == ["holiday.jpg"]


def test_an_empty_folder_is_filled(quick, tmp_path):
    (tmp_path / "demo").mkdir()
    assert demo.is_complete(demo.make_demo(tmp_path / "demo"))


def test_a_photograph_that_is_not_installed_is_named():
    lost = demo.PHOTOGRAPHS[0]._replace(file="data/unicorn.png")
    with pytest.raises(
        FileNotFoundError, match=r"data/unicorn\.png is missing from the installed package skimage"
    ):
        demo.open_photograph(lost)


def test_the_readme_says_that_the_labels_are_synthetic_and_names_every_photograph(root):
    text = (root / "README.txt").read_text()
    assert "THE LABELS ARE SYNTHETIC. Nobody rated these pictures." in text
    assert all(photograph.name in text and photograph.credit in text for photograph in demo.PHOTOGRAPHS)


def test_the_contact_sheet_shows_the_pictures_in_their_cells(root):
    # China is the second row; column 0 is undamaged, 6 is overexposure 4, 8 is underexposure 4.
    with Image.open(root / "contact_sheet.png") as sheet:
        top = demo.HEADER + demo.CELL_HEIGHT + demo.GAP

        def brightness(column):
            left = demo.column_left(column)
            cell = sheet.crop((left, top, left + demo.CELL_WIDTH, top + demo.CELL_HEIGHT))
            return np.asarray(cell).mean()

        assert brightness(6) > brightness(0) + 40
        assert brightness(8) < brightness(0) - 40


def test_the_command_prints_where_things_are_and_refuses_with_one_sentence(root, tmp_path):
    def run(folder):
        command = [sys.executable, "-m", "eamb.readers.demo", "--root", str(folder)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    made = run(root)
    assert made.returncode == 0 and str(root / "labels.csv") in made.stdout
    (tmp_path / "mine").touch()
    refused = run(tmp_path)
    assert refused.returncode == 2 and refused.stderr.startswith("demo: ") and refused.stderr.count("\n") == 1
