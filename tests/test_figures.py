"""Figures: what is drawn lies where it belongs, and a file is written whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from small import grey_image, spot_map

from eamb.evaluation import figures
from eamb.evaluation.figures import (
    overlay,
    resize_map,
    save_confusion,
    save_curves,
    save_emotion_bars,
    save_reliability,
    save_scatter,
)

UNUSED = Path("unused.png")
COUNTS = np.array([[30, 9, 1], [0, 0, 0], [2, 0, 1234]])
NAMES = ("awe", "fear", "sadness")


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were about to be written."""
    kept = []
    monkeypatch.setattr(figures, "write_figure", lambda figure, path: kept.append(figure))
    return kept


def texts(labels):
    return [label.get_text() for label in labels]


@pytest.mark.parametrize("shape", [(300, 450), (64, 600), (20, 14)])
@pytest.mark.parametrize("cell", [(3, 22), (27, 27)])
def test_a_hot_cell_of_the_map_lies_at_its_pixels_of_the_picture(shape, cell):
    laid = overlay(grey_image(*shape), spot_map(*cell)).astype(int).sum(axis=2)
    hottest = np.unravel_index(laid.argmax(), shape)
    far = np.zeros(shape, dtype=bool)
    for axis, (side, place) in enumerate(zip(shape, cell, strict=True)):
        # The centre of one of 28 cells, in pixels; half a cell is the tolerance, or half a pixel.
        assert abs(hottest[axis] + 0.5 - (place + 0.5) / 28 * side) <= max(side / 56, 0.5)
        far |= np.abs(np.indices(shape)[axis] - hottest[axis]) > max(2 * side / 28, 2)
    # Further away than one cell from the hot one nothing is lit.
    assert len(np.unique(laid[far])) == 1 and laid[far].max() < laid.max()


@pytest.mark.parametrize(
    ("shape", "aspect", "covered"),
    [((60, 90), 1.0, (0, 15, 60, 60)), ((90, 60), 2.0, (30, 0, 30, 60)), ((60, 90), 0.5, (0, 30, 60, 30))],
)
def test_a_map_of_the_middle_leaves_the_rest_grey(shape, aspect, covered):
    top, left, height, width = covered
    inside = np.s_[top : top + height, left : left + width]
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    chance_map = np.random.default_rng(1).random((7, 7))
    laid = overlay(image, chance_map, aspect)
    np.testing.assert_array_equal(laid[inside], overlay(np.ascontiguousarray(image[inside]), chance_map))
    outside = np.ones(shape, bool)
    outside[inside] = False
    grey = np.asarray(Image.fromarray(image).convert("L"))
    assert (laid[outside] == grey[outside][:, None]).all()


def test_the_overlay_is_three_parts_of_colour_and_two_of_grey():
    # inferno begins at (0.001462, 0.000466, 0.013866) and ends at (0.988362, 0.998364, 0.644924).
    image = grey_image(8, 8)
    low, high = (overlay(image, np.full((2, 2), value))[4, 4] for value in (0.0, 1.0))
    assert low == pytest.approx(0.6 * np.array([0.4, 0.1, 3.5]) + 0.4 * 128, abs=1)
    assert high == pytest.approx(0.6 * np.array([252.0, 254.6, 164.5]) + 0.4 * 128, abs=1)


def test_a_map_is_resized_with_aligned_pixel_centres():
    # Twice as large: the new centres lie a quarter and three quarters of the way between the old ones.
    assert resize_map(np.array([[0.0, 1.0]]), 1, 4)[0] == pytest.approx([0, 0.25, 0.75, 1])


@pytest.mark.parametrize("wrong", [np.zeros((1, 7, 7)), np.full((7, 7), np.nan), np.full((7, 7), 1.1)])
def test_wrong_maps_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^figures: an emotion map is \(h, w\) in \[0, 1\]; this one is"):
        overlay(grey_image(8, 8), wrong)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_train_and_val_number_is_drawn_and_nothing_else(tmp_path, drawn):
    rest = {"learning_rate": 1e-3, "seconds": 9, "val_n": 5, "val_recall_awe": 0.5}
    records = [
        {"epoch": 0, "train_loss": 0.3, "val_loss": 0.4, "val_srcc": 0.5, "val_kl": None, **rest},
        {"epoch": 1, "train_loss": 0.2, "val_loss": 0.3, "val_srcc": [0.6], "val_kl": 0.6, **rest},
    ]
    save_curves(write_lines(tmp_path / "metrics.jsonl", records), UNUSED)
    curves = {}
    for axes in drawn[0].axes:
        lines = {line.get_label(): tuple(map(list, line.get_data())) for line in axes.get_lines()}
        curves[axes.get_title(loc="left")] = lines
    assert curves == {
        "loss": {"train": ([0, 1], [0.3, 0.2]), "val": ([0, 1], [0.4, 0.3])},
        "SRCC": {"val": ([0], [0.5])},
        "KL": {"val": ([1], [0.6])},
        "learning rate": {"learning": ([0, 1], [1e-3, 1e-3])},
    }


@pytest.mark.parametrize("count", [1, 76, 1500])
def test_scatter_has_equal_axes_that_hold_every_pair(drawn, count):
    generator = np.random.default_rng(0)
    rated = generator.uniform(1, 5, count)
    predicted = rated + generator.normal(0, 0.5, count)
    save_scatter(predicted, rated, UNUSED, "mean rating, 1 to 5", "SRCC .85")
    axes = drawn[0].axes[0]
    assert axes.get_xlim() == axes.get_ylim() and axes.get_aspect() == 1
    low, high = axes.get_xlim()
    assert low < min(rated.min(), predicted.min()) and high > max(rated.max(), predicted.max())
    across, up = "rated (mean rating, 1 to 5)", "predicted (mean rating, 1 to 5)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == (across, up)
    assert axes.get_title(loc="left") == "SRCC .85"
    [dots] = axes.collections
    if count > 1000:  # a density counts every pair
        assert dots.get_array().sum() == count
    else:
        assert np.array_equal(dots.get_offsets(), np.stack([rated, predicted], axis=1))


def test_every_cell_of_a_confusion_matrix_says_its_share_of_the_row_and_its_count(drawn):
    save_confusion(COUNTS, NAMES, UNUSED, "FI: accuracy .96")
    axes = drawn[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row)
    assert [[cells[column, row] for column in range(3)] for row in range(3)] == [
        ["75 %\n30", "22 %\n9", "2 %\n1"],
        ["0", "0", "0"],
        ["0 %\n2", "0", "100 %\n1,234"],
    ]
    colours = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert colours[[0, 2]] == pytest.approx(COUNTS[[0, 2]] / COUNTS[[0, 2]].sum(1, keepdims=True))
    assert np.isnan(colours[1]).all()
    assert texts(axes.get_yticklabels()) == ["awe (40)", "fear (0)", "sadness (1,236)"]
    assert texts(axes.get_xticklabels()) == list(NAMES)
    assert drawn[0].get_suptitle() == "FI: accuracy .96"


def test_a_confusion_matrix_has_readable_cells(drawn):
    save_confusion(np.full((10, 10), 12345), ["contentment"] * 10, UNUSED, "")
    FigureCanvasAgg(drawn[0]).draw()
    cell = drawn[0].axes[0].get_window_extent().width / 10
    assert max(text.get_window_extent().width for text in drawn[0].axes[0].texts) < 0.9 * cell


def test_emotion_bars_count_high_and_low_pictures_of_every_emotion(drawn):
    groups = {"labels": ([5, 20, 0], [1, 2, 1300]), "predictions": ([6, 19, 1], [0, 3, 1299])}
    save_emotion_bars(groups, NAMES, UNUSED, "IAE test")
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["labels (1,328 pictures)", "predictions (1,328 pictures)"]
    for axes, numbers in zip(drawn[0].axes, groups.values(), strict=True):
        high, low = axes.containers
        assert ([bar.get_height() for bar in high], [bar.get_height() for bar in low]) == numbers
        for place, (left, right) in enumerate(zip(high, low, strict=True)):
            assert place - 0.5 < left.get_x() < left.get_x() + left.get_width() <= right.get_x()
            assert right.get_x() + right.get_width() < place + 0.5
        assert set(texts(axes.texts)) == {f"{n:,}" for part in numbers for n in part}
    first, last = drawn[0].axes
    assert texts(first.get_legend().get_texts()) == ["high", "low"]
    assert texts(last.get_xticklabels()) == list(NAMES)
    assert first.get_ylim() == last.get_ylim()  # so that the panels can be compared


def test_a_reliability_figure_has_a_dot_where_people_agree_with_the_prediction(drawn):
    probability = np.array([0.85, 0.85, 0.15, 0.55])
    save_reliability(probability, np.array([1.0, 0.5, 0.25, 0.6]), UNUSED, "pairs")
    dots = drawn[0].axes[0].collections[0].get_offsets()
    # 0.15 from the other side is 0.85: three pairs at each of the two, and 0.55 with its own other side.
    np.testing.assert_allclose(dots, [[0.15, 0.25], [0.45, 0.4], [0.55, 0.6], [0.85, 0.75]])


def test_figures_are_written_as_png_whatever_their_titles_hold(tmp_path):
    log = write_lines(tmp_path / "metrics.jsonl", [{"epoch": 0, "train_loss": 0.3, "val_srcc": -0.1}])
    save_curves(log, tmp_path / "new" / "curves.png")
    save_scatter([1.0, 2.0], [1.0, 2.0], tmp_path / "scatter.png", "rating", "n = $5$")
    save_reliability(np.array([0.5]), np.array([1.0]), tmp_path / "r.png", "a $ title")
    save_confusion(COUNTS, ["$", "a_b", "日"], tmp_path / "c.png", "$x")
    save_emotion_bars({"$": ([1, 0], [0, 0])}, ["$", "a"], tmp_path / "b.png", "$x")
    sizes = {"new/curves.png": (800, 300), "scatter.png": (700, 700), "r.png": (700, 700)}
    for name, size in (sizes | {"c.png": (700, 454), "b.png": (700, 340)}).items():
        with Image.open(tmp_path / name) as picture:
            assert (picture.size, picture.format) == (size, "PNG")
