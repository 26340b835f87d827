"""Figures: what is drawn lies where it belongs, and a file is written whole or not at all."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import visualize

REPOSITORY = Path(__file__).parent.parent


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey_image(height, width):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def spot_map(row, column, shape=(28, 28)):
    emotion_map = np.zeros(shape)
    emotion_map[row, column] = 1
    return emotion_map


def render(figure):
    """(H, W, 3) uint8 pixels of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def box(figure, label):
    """Left, top, width and height of the axes with a label, in pixels from the upper left corner."""
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    extent = axes.get_window_extent()
    values = (extent.x0, figure.bbox.height - extent.y1, extent.width, extent.height)
    assert all(abs(value - round(value)) < 1e-6 for value in values), "axes must lie on whole pixels"
    return tuple(round(value) for value in values)


def cut(pixels, area):
    left, top, width, height = area
    return pixels[top : top + height, left : left + width].astype(int)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# ---- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 450), (450, 300), (224, 224), (64, 600)])
@pytest.mark.parametrize(("row", "column"), [(3, 22), (20, 5), (0, 0), (27, 27)])
def test_a_hot_spot_of_the_map_lies_there_on_the_panel(shape, row, column):
    figure = visualize.map_panel(grey_image(*shape), spot_map(row, column), "spot.jpg")
    area = cut(render(figure), box(figure, "map"))
    hottest = np.unravel_index(area.sum(axis=2).argmax(), area.shape[:2])
    # The centre of cell (row, column) of 28 x 28, in pixels; half a cell is the tolerance.
    expected = ((row + 0.5) / 28 * area.shape[0], (column + 0.5) / 28 * area.shape[1])
    assert abs(hottest[0] + 0.5 - expected[0]) <= area.shape[0] / 56
    assert abs(hottest[1] + 0.5 - expected[1]) <= area.shape[1] / 56


@pytest.mark.parametrize("shape", [(300, 450), (450, 300), (224, 224), (50, 800), (900, 60), (4000, 3000)])
def test_the_aspect_ratio_is_kept_and_the_panel_is_1200_wide(shape):
    figure = visualize.map_panel(grey_image(*shape), np.zeros((7, 7)), "a.jpg", "6.4 of 10", [("awe", 1.0)])
    assert render(figure).shape[1] == 1200
    for label in ("picture", "map"):
        _, _, width, height = box(figure, label)
        exact = (width * shape[0] / shape[1], height * shape[1] / shape[0])
        assert (
            abs(height - exact[0]) <= 0.5 or abs(width - exact[1]) <= 0.5
        )  # to the pixel, on the shorter side


@pytest.mark.parametrize("shape", [(300, 450), (450, 300), (900, 60)])
def test_nothing_on_the_panel_overlaps(shape):
    figure = visualize.map_panel(grey_image(*shape), np.zeros((7, 7)), "a", "", [("awe", 0.7), ("fear", 0.3)])
    boxes = [box(figure, label) for label in ("picture", "map", "colour bar", "emotions")]
    for i, (left, top, width, height) in enumerate(boxes):
        assert left >= 0 and top >= 0
        assert left + width <= 1200 and top + height <= figure.bbox.height
        for other_left, other_top, other_width, other_height in boxes[i + 1 :]:
            apart = left + width <= other_left or other_left + other_width <= left
            assert apart or top + height <= other_top or other_top + other_height <= top


def test_the_picture_is_shown_pixel_for_pixel():
    image = random_image(*reversed(visualize.picture_size(random_image(30, 40))))
    figure = visualize.map_panel(image, np.zeros((7, 7)), "a.jpg")
    assert np.array_equal(cut(render(figure), box(figure, "picture")), image)


def test_the_overlay_is_colour_and_grey_by_opacity():
    # inferno begins at (0.001462, 0.000466, 0.013866) and ends at (0.988362, 0.998364, 0.644924).
    image = grey_image(8, 8)
    low, high = (visualize.overlay(image, np.full((2, 2), value), 0.25)[4, 4] for value in (0.0, 1.0))
    assert low == pytest.approx(0.25 * np.array([0.4, 0.1, 3.5]) + 0.75 * 128, abs=1)
    assert high == pytest.approx(0.25 * np.array([252.0, 254.6, 164.5]) + 0.75 * 128, abs=1)


def test_the_picture_stays_recognisable_under_the_map():
    image = np.repeat(random_image(64, 64)[..., :1], 3, axis=2)
    for value in (0.0, 0.5, 1.0):
        seen = visualize.overlay(image, np.full((7, 7), value)).sum(axis=2)
        assert np.corrcoef(seen.ravel(), image[..., 0].ravel())[0, 1] > 0.99


def test_a_map_is_resized_with_aligned_pixel_centres():
    # Twice as large: the new centres lie a quarter and three quarters of the way between the old ones.
    resized = visualize.resize_map(np.array([[0.0, 1.0]]), 1, 4)
    assert resized[0] == pytest.approx([0, 0.25, 0.75, 1])


def test_the_strongest_emotions_are_named_with_their_probability():
    emotions = [("anger", 0.01), ("awe", 0.6), ("fear", 0.05), ("contentment", 0.24), ("disgust", 0.1)]
    figure = visualize.map_panel(grey_image(60, 80), np.zeros((7, 7)), "a.jpg", emotions=emotions)
    (axes,) = [axes for axes in figure.axes if axes.get_label() == "emotions"]
    words = [text.get_text() for text in axes.texts]
    assert words == ["awe", "60 %", "contentment", "24 %", "disgust", "10 %", "fear", "5 %"]
    assert [bar.get_width() for bar in axes.patches] == [0.6, 0.24, 0.1, 0.05]


@pytest.mark.parametrize("title", ["a$_1$b.jpg", "$", "日本語.jpg", "long/" * 60 + "end.jpg", ""])
def test_any_file_name_can_be_a_title(tmp_path, title):
    visualize.save_map_panel(tmp_path / "panel.png", grey_image(60, 80), np.zeros((7, 7)), title, "$5 of 10")
    assert read(tmp_path / "panel.png").shape[1] == 1200


def test_a_long_title_keeps_its_two_ends_and_stays_on_the_panel():
    figure = visualize.map_panel(grey_image(60, 80), np.zeros((7, 7)), "first/" + "0" * 200 + "/end.jpg")
    render(figure)
    title = figure.texts[0]
    assert title.get_text().startswith("first/000") and title.get_text().endswith("000/end.jpg")
    assert title.get_window_extent().x1 <= 1200


@pytest.mark.parametrize(
    ("image", "emotion_map", "message"),
    [
        (
            np.zeros((8, 8), np.uint8),
            np.zeros((7, 7)),
            r"a picture is \(H, W, 3\) uint8; this one is \(8, 8\) uint8",
        ),
        (np.zeros((8, 8, 3)), np.zeros((7, 7)), r"this one is \(8, 8, 3\) float64"),
        (grey_image(8, 8), np.zeros((1, 7, 7)), r"map has the shape \(h, w\); this one has \(1, 7, 7\)"),
        (grey_image(8, 8), np.full((7, 7), 2.0), r"lies in \[0, 1\]; this one spans 2 to 2"),
        (grey_image(8, 8), np.full((7, 7), np.nan), r"lies in \[0, 1\]; this one spans nan to nan"),
    ],
)
def test_wrong_pictures_and_maps_are_refused(image, emotion_map, message):
    with pytest.raises(ValueError, match=f"^visualize: .*{message}$"):
        visualize.map_panel(image, emotion_map, "a.jpg")


# ---- curves --------------------------------------------------------------------------------------


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines_of(figure):
    """{title: {label: (epochs, values)}} of a figure of curves."""
    return {
        axes.get_title(loc="left"): {
            line.get_label(): tuple(map(list, line.get_data())) for line in axes.get_lines()
        }
        for axes in figure.axes
    }


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were about to be written."""
    figures = []
    monkeypatch.setattr(visualize, "write_figure", lambda figure, path: figures.append(figure))
    return figures


def test_every_train_and_val_number_is_drawn_and_nothing_else(tmp_path, drawn):
    records = [
        {
            "epoch": 0,
            "train_loss": 0.3,
            "val_loss": 0.4,
            "val_srcc": 0.5,
            "learning_rate": 1e-3,
            "seconds": 9,
        },
        {
            "epoch": 1,
            "train_loss": 0.2,
            "val_loss": 0.3,
            "val_srcc": 0.6,
            "learning_rate": 5e-4,
            "seconds": 9,
        },
    ]
    visualize.save_curves(write_lines(tmp_path / "metrics.jsonl", records), tmp_path / "curves.png")
    assert lines_of(drawn[0]) == {
        "loss": {"train": ([0, 1], [0.3, 0.2]), "val": ([0, 1], [0.4, 0.3])},
        "SRCC": {"val": ([0, 1], [0.5, 0.6])},
        "learning rate": {"learning": ([0, 1], [1e-3, 5e-4])},
    }


def test_emotion_runs_gaps_repeats_and_lists_are_understood(tmp_path, drawn):
    # Of an epoch that stands twice the later line counts. A NaN, a null or a list is no point of a curve.
    records = [
        {"epoch": 1, "val_kl": 0.9, "val_accuracy": 0.1},
        {"epoch": 0, "val_kl": None, "val_accuracy": 0.2},
        {"epoch": 1, "val_kl": 0.4, "val_accuracy": float("nan"), "val_kl_interval": [0.3, 0.5]},
    ]
    visualize.save_curves(write_lines(tmp_path / "metrics.jsonl", records), tmp_path / "curves.png")
    assert lines_of(drawn[0]) == {"accuracy": {"val": ([0], [0.2])}, "KL": {"val": ([1], [0.4])}}


def test_curves_are_written_as_png_for_one_epoch_too(tmp_path):
    metrics = write_lines(tmp_path / "metrics.jsonl", [{"epoch": 0, "train_loss": 0.3, "val_srcc": -0.1}])
    visualize.save_curves(metrics, tmp_path / "new" / "curves.png")
    assert read(tmp_path / "new" / "curves.png").shape == (300, 800, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no number named train_\*, val_\* or learning_rate"),
        ('{"epoch": 0, "seconds": 3}\n', r"has no number named train_\*, val_\* or learning_rate"),
        ('{"epoch": 0}\n{"epoch": 1, "tra', r"line 2 of .*metrics.jsonl is no JSON object with \"epoch\""),
        ('{"train_loss": 1}\n', r"line 1 of .*metrics.jsonl is no JSON object with \"epoch\""),
    ],
)
def test_unusable_metrics_are_named(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"^visualize: .*{message}"):
        visualize.save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


# ---- predicted against rated ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 76, 3000])
def test_scatter_has_equal_axes_that_hold_every_pair(drawn, count):
    generator = np.random.default_rng(0)
    rated = generator.uniform(1, 5, count)
    predicted = rated + generator.normal(0, 0.5, count)
    visualize.save_scatter(predicted, rated, Path("unused.png"), "mean rating, 1 to 5", "SRCC .85")
    axes = drawn[0].axes[0]
    assert axes.get_xlim() == axes.get_ylim() and axes.get_aspect() == 1
    low, high = axes.get_xlim()
    assert low < min(rated.min(), predicted.min()) and high > max(rated.max(), predicted.max())
    assert (axes.get_xlabel(), axes.get_ylabel()) == tuple(
        f"{w} (mean rating, 1 to 5)" for w in ("rated", "predicted")
    )
    assert axes.get_title(loc="left") == "SRCC .85"


def test_scatter_puts_ratings_across_and_predictions_up(drawn):
    visualize.save_scatter([2.0, np.nan, 3.0], [4.0, 1.0, 5.0], Path("unused.png"), "unit", "")
    (dots,) = drawn[0].axes[0].collections
    assert dots.get_offsets().tolist() == [[4.0, 2.0], [5.0, 3.0]]


def test_the_density_counts_every_pair(drawn):
    values = np.random.default_rng(0).normal(3, 0.5, 2500)
    visualize.save_scatter(values, values[::-1], Path("unused.png"), "unit", "")
    assert drawn[0].axes[0].collections[0].get_array().sum() == 2500


@pytest.mark.parametrize("count", [5, 2000])
def test_scatter_is_written_as_png(tmp_path, count):
    values = np.linspace(1, 10, count)
    visualize.save_scatter(values, values, tmp_path / "scatter.png", "rating", "n = $5$")
    assert read(tmp_path / "scatter.png").shape == (700, 700, 3)


def test_scatter_refuses_what_cannot_be_paired(tmp_path):
    with pytest.raises(ValueError, match=r"two lists of equal length; these are \(3,\) and \(2,\)"):
        visualize.save_scatter([1, 2, 3], [1, 2], tmp_path / "s.png", "rating", "")
    with pytest.raises(ValueError, match="none of the 2 pairs has both a prediction and a rating"):
        visualize.save_scatter([1, np.nan], [np.nan, 1], tmp_path / "s.png", "rating", "")


# ---- files ---------------------------------------------------------------------------------------


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    def full_disk(self, file, **keywords):
        Path(file).write_bytes(b"half a file")
        raise OSError("No space left on device")

    (tmp_path / "panel.png").write_bytes(b"old")
    monkeypatch.setattr(FigureCanvasAgg, "print_png", full_disk)
    with pytest.raises(OSError, match="No space left"):
        visualize.save_map_panel(tmp_path / "panel.png", grey_image(60, 80), np.zeros((7, 7)), "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"panel.png": b"old"}


@pytest.mark.parametrize(
    "start",
    [
        lambda: runpy.run_path(str(REPOSITORY / "scripts/draw_architecture.py"), run_name="__main__"),
        lambda: runpy.run_module("scripts.draw_architecture", run_name="__main__"),
    ],
    ids=["path", "module"],
)
def test_the_architecture_is_drawn_in_both_ways_of_starting_the_script(tmp_path, monkeypatch, start):
    output = tmp_path / "architecture.png"
    monkeypatch.setattr(sys, "argv", ["draw_architecture", "--output", str(output)])
    start()
    assert output.stat().st_size < 300_000
    assert read(output).shape[1] > 2000
