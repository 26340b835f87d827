"""Panels: every part is there, lies where it belongs, has the picture's shape, and says what is true."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from small import grey_image, spot_map

from eamb.inference import panels
from eamb.inference.panels import Explanation

EMOTIONS = {"anger": 0.01, "awe": 0.6, "fear": 0.05, "contentment": 0.24, "disgust": 0.1}
STRONGEST = ["awe", "contentment", "disgust"]
RATINGS = np.linspace(2, 4, 101)  # equally many ratings everywhere between 2 and 4
SHARES = {1.0: 0.05, 2.0: 0.15, 3.0: 0.5, 4.0: 0.2, 5.0: 0.1}
SHAPES = [(300, 450), (450, 300), (77, 500), (900, 60), (3, 4)]
BARE = {"class_maps": None, "training_ratings": None, "distribution": {}}


def explanation(**changes):
    """All parts, unless changed."""
    parts = {
        "title": "a.jpg",
        "score": "3.20 of 1 to 5, above 60 % of the training ratings",
        "value": 3.2,
        "ends": (1.0, 5.0),
        "emotion_map": np.zeros((7, 7)),
        "emotions": EMOTIONS,
        "class_maps": np.zeros((5, 7, 7)),
        "training_ratings": RATINGS,
        "distribution": SHARES,
    }
    return Explanation(**(parts | changes))


def draw(shape=(60, 80), **changes):
    return panels.panel(grey_image(*shape), explanation(**changes))


def render(figure):
    """(H, W, 3) uint8 pixels of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def part(figure, label):
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return axes


def labels(figure):
    return [axes.get_label() for axes in figure.axes]


def box(figure, label):
    """Left, top, width and height of the axes with a label, in pixels from the upper left corner."""
    extent = part(figure, label).get_window_extent()
    values = (extent.x0, figure.bbox.height - extent.y1, extent.width, extent.height)
    assert all(abs(value - round(value)) < 1e-6 for value in values), "axes must lie on whole pixels"
    return tuple(round(value) for value in values)


def cut(pixels, area):
    left, top, width, height = area
    return pixels[top : top + height, left : left + width].astype(int)


def assert_hottest(area, row, column):
    """The brightest pixel of a grey picture lies at the centre of cell (row, column) of 28 x 28."""
    hottest = np.unravel_index(area.sum(axis=2).argmax(), area.shape[:2])
    expected = ((row + 0.5) / 28 * area.shape[0], (column + 0.5) / 28 * area.shape[1])
    assert abs(hottest[0] + 0.5 - expected[0]) <= area.shape[0] / 56  # half a cell
    assert abs(hottest[1] + 0.5 - expected[1]) <= area.shape[1] / 56


# ---- maps


@pytest.mark.parametrize(
    ("shape", "row", "column"), [((300, 450), 3, 22), ((450, 300), 27, 0), ((64, 600), 3, 22)]
)
def test_a_hot_spot_of_the_map_lies_there_on_the_panel(shape, row, column):
    figure = draw(shape, **BARE | {"emotion_map": spot_map(row, column)})
    assert_hottest(cut(render(figure), box(figure, "map")), row, column)


@pytest.mark.parametrize("shape", [(300, 450), (450, 300)])
def test_every_class_map_shows_its_own_hot_spot(shape):
    spots = [(0, 0), (3, 22), (1, 1), (20, 5), (27, 27)]  # in the order of EMOTIONS
    figure = draw(shape, class_maps=np.stack([spot_map(*spot) for spot in spots]))
    pixels = render(figure)
    for name in STRONGEST:
        assert_hottest(cut(pixels, box(figure, f"map of {name}")), *spots[list(EMOTIONS).index(name)])


def test_the_strongest_emotions_stand_in_a_row_with_their_probability():
    figure = draw()
    boxes = [box(figure, f"map of {name}") for name in STRONGEST]
    words = [text for text in figure.texts if text.get_text().endswith(" %")]
    assert [text.get_text() for text in words] == ["awe  60 %", "contentment  24 %", "disgust  10 %"]
    assert [round(text.get_window_extent().x0) for text in words] == pytest.approx(
        [left for left, *_ in boxes], abs=3
    )
    assert len({(top, width, height) for _, top, width, height in boxes}) == 1
    assert boxes == sorted(boxes)
    assert boxes[0][2] < box(figure, "map")[2]


def test_without_class_maps_no_emotion_is_named():
    figure = draw(
        class_maps=None, emotions={}, map_title="map of an emotion branch never trained on emotions"
    )
    assert labels(figure) == ["picture", "map", "colour bar", "training ratings", "predicted ratings"]
    words = " ".join(text.get_text() for text in figure.texts)
    assert "never trained" in words
    assert "strongest" not in words and "emotion-aware" not in words


def test_the_picture_is_shown_pixel_for_pixel():
    _, _, width, height = panels.lay_out(3 / 2, 0, 0).picture
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    figure = panels.panel(image, explanation(**BARE))
    assert np.array_equal(cut(render(figure), box(figure, "picture")), image)


def test_the_colour_bar_has_the_colours_that_maps_have_on_middle_grey():
    figure = draw((300, 450), **BARE | {"emotion_map": np.tile(np.linspace(1, 0, 28)[:, None], (1, 28))})
    pixels = render(figure)
    shown, bar = (cut(pixels, box(figure, label)) for label in ("map", "colour bar"))
    for row in (20, len(bar) // 2, len(bar) - 20):
        assert bar[row, 7] == pytest.approx(shown[row, 100], abs=12)
    assert [tick.get_text() for tick in part(figure, "colour bar").get_yticklabels()] == ["0", "0.5", "1"]


# ---- layout


@pytest.mark.parametrize("shape", [*SHAPES, (224, 224), (4000, 3000), (1, 5000), (5000, 1)])
def test_the_aspect_ratio_is_kept(shape):
    layout = panels.lay_out(shape[1] / shape[0], 2, 3)
    for _, _, width, height in (layout.picture, layout.map, *layout.class_maps):
        exact = (width * shape[0] / shape[1], height * shape[1] / shape[0])
        # To the pixel, on the shorter side; a side that would vanish is one pixel.
        assert abs(height - exact[0]) <= 0.5 or abs(width - exact[1]) <= 0.5 or min(width, height) == 1
        assert min(width, height) >= 1


@pytest.mark.parametrize("shape", [(300, 450), (77, 500), (900, 60)])
def test_nothing_on_the_panel_overlaps_or_leaves_it(shape):
    long_name = "a name too long for the room above its map"
    emotions = dict(zip(["b", long_name, *"cde"], EMOTIONS.values(), strict=True))
    figure = draw(shape, title="x" * 300, emotions=emotions)
    assert figure.bbox.width == 1200
    boxes = [box(figure, label) for label in ("picture", "map", f"map of {long_name}")]
    assert boxes[0][2:] == boxes[1][2:] and boxes[2][2] < boxes[1][2]
    things = [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    things += [(axes.get_label(), axes.get_tightbbox()) for axes in figure.axes]
    for i, (name, area) in enumerate(things):
        assert area.x0 >= 0 and area.y0 >= 0, name
        assert area.x1 <= 1200 and area.y1 <= figure.bbox.height, name
        for other, other_area in things[i + 1 :]:
            apart = area.x1 <= other_area.x0 or other_area.x1 <= area.x0
            assert apart or area.y1 <= other_area.y0 or other_area.y1 <= area.y0, (name, other)


def test_no_letter_is_smaller_than_11_pixels():
    figure = draw()
    sizes = [
        text.get_fontsize() * figure.dpi / 72
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible()
    ]
    assert len(sizes) > 15
    assert min(sizes) >= 11


def test_a_wide_picture_has_its_map_below_and_others_beside():
    for aspect, below in [(500 / 77, True), (3 / 2, False), (2 / 3, False)]:
        layout = panels.lay_out(aspect, 2, 3)
        assert (layout.map.left == layout.picture.left, layout.map.top > layout.picture.top) == (below, below)


@pytest.mark.parametrize("title", ["a$_1$b.jpg", "日本語.jpg", ""])
def test_any_file_name_can_be_a_title(tmp_path, title):
    changes = BARE | {"title": title, "score": "$5 of 10"}
    panels.save_panel(tmp_path / "panel.png", grey_image(60, 80), explanation(**changes))
    with Image.open(tmp_path / "panel.png") as picture:
        assert (picture.format, picture.width) == ("PNG", 1200)


def test_a_long_title_keeps_its_two_ends():
    title = draw(title="first/" + "0" * 200 + "/end.jpg", **BARE).texts[0].get_text()
    assert title.startswith("first/000") and title.endswith("000/end.jpg")
    assert "…" in title


# ---- the score among ratings


@pytest.mark.parametrize(
    ("value", "below"), [(3.2, 0.6), (2.05, 0.025), (1.5, 0), (4.5, 1), (0.5, 0), (5.5, 1)]
)
def test_the_blue_share_of_the_training_ratings_lies_below_the_score(value, below):
    strip = part(draw(**BARE | {"value": value, "training_ratings": RATINGS}), "training ratings")
    whole, blue = (patch.get_data() for patch in strip.patches)
    areas = [(data.values * np.diff(data.edges)).sum() for data in (whole, blue)]
    assert areas[1] / areas[0] == pytest.approx(below, abs=0.02)
    assert blue.edges.max() <= value
    (line,) = strip.lines
    assert list(line.get_xdata()) == [value, value]
    low, high = strip.get_xlim()
    assert low <= min(value, 1) and high >= max(value, 5)  # the whole scale, and the score even beyond it
    assert [text.get_text() for text in strip.texts] == [f"{value:.2f}"]


def test_the_predicted_distribution_is_drawn_as_bars():
    chart = part(draw(**BARE | {"distribution": SHARES}), "predicted ratings")
    bars = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in chart.patches}
    assert bars == pytest.approx(SHARES)
    assert [text.get_text() for text in chart.texts] == ["5", "15", "50", "20", "10"]
    assert [tick.get_text() for tick in chart.get_xticklabels()] == ["1", "2", "3", "4", "5"]


def test_many_bins_are_drawn_without_crowding():
    ratings = np.arange(0, 101, 5.0)
    chart = part(draw(**BARE | {"distribution": dict.fromkeys(ratings, 1 / 21)}), "predicted ratings")
    assert len(chart.patches) == 21
    assert len(chart.get_xticks()) <= 12
    assert not chart.texts


def test_a_chart_that_is_not_known_leaves_its_room_to_the_others():
    both, one, none = draw(), draw(distribution={}), draw(**BARE | {"class_maps": np.zeros((5, 7, 7))})
    assert box(one, "training ratings")[2] > 2 * box(both, "training ratings")[2]
    assert "predicted ratings" not in labels(one)
    assert none.bbox.height < one.bbox.height == both.bbox.height
    assert not {"training ratings", "predicted ratings"} & set(labels(none))


# ---- what is refused


@pytest.mark.parametrize(
    ("image", "changes", "message"),
    [
        (
            np.zeros((8, 8), np.uint8),
            {},
            r"panels: a picture is \(H, W, 3\) uint8; this one is \(8, 8\) uint8",
        ),
        (np.zeros((8, 8, 3)), {}, r"panels: .*this one is \(8, 8, 3\) float64"),
        (grey_image(8, 8), {"class_maps": np.zeros((4, 7, 7))}, "panels: .*4 maps came for 5 emotions"),
        (grey_image(8, 8), {"emotion_map": np.zeros((1, 7, 7))}, r"figures: .*is \(1, 7, 7\) with .*"),
        (grey_image(8, 8), {"emotion_map": np.full((7, 7), 2.0)}, "figures: .*values from 2 to 2"),
    ],
)
def test_wrong_pictures_and_maps_are_refused(image, changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        panels.panel(image, explanation(**changes))
