"""Panels: every part is there, lies where it belongs, has the picture's shape, and says what is true."""

import functools
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from small import grey_image, spot_map

from eamb.inference import panels
from eamb.inference.panels import Explanation
from eamb.readers.para import PARA_BINS

EMOTIONS = {"anger": 0.01, "awe": 0.6, "fear": 0.05, "contentment": 0.24, "disgust": 0.1}
STRONGEST = ["awe", "contentment", "disgust"]
RATINGS = np.linspace(2, 4, 101)  # equally many ratings everywhere between 2 and 4
SHARES = {1.0: 0.05, 2.0: 0.15, 3.0: 0.5, 4.0: 0.2, 5.0: 0.1}
BARE = {"class_maps": None, "training_ratings": None, "distribution": {}}


def draw(image, **changes):
    """A panel with all parts, unless changed."""
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
        "deviation": 0.96,
    }
    return panels.panel(image, Explanation(**(parts | changes)))


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


@functools.lru_cache(maxsize=1)
def rendered(figure):
    """(H, W, 4) pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def pixels(figure, label):
    """(H, W, 3) pixels of the axes with a label, as they are on the panel."""
    left, top, width, height = box(figure, label)
    return rendered(figure)[top : top + height, left : left + width, :3].astype(int)


def assert_hottest(area, row, column):
    """The brightest pixel of a grey picture lies at the centre of cell (row, column) of 28 x 28."""
    hottest = np.unravel_index(area.sum(axis=2).argmax(), area.shape[:2])
    for place, cell, side in zip(hottest, (row, column), area.shape, strict=False):
        assert abs(place + 0.5 - (cell + 0.5) / 28 * side) <= side / 56  # half a cell


# ---- pictures and maps


@pytest.mark.parametrize("shape", [(300, 450), (450, 300), (64, 600)])
def test_a_hot_spot_of_each_map_lies_there_on_the_panel(shape):
    spots = [(0, 0), (3, 22), (1, 1), (20, 5), (27, 27)]  # in the order of EMOTIONS
    class_maps = np.stack([spot_map(*spot) for spot in spots])
    figure = draw(grey_image(*shape), emotion_map=spot_map(27, 0), class_maps=class_maps)
    assert_hottest(pixels(figure, "map"), 27, 0)
    for name in STRONGEST:
        assert_hottest(pixels(figure, f"map of {name}"), *spots[list(EMOTIONS).index(name)])


def test_maps_of_the_middle_lie_there_and_leave_the_rest_grey():
    figure = draw(
        grey_image(300, 450), emotion_map=np.ones((7, 7)), class_maps=np.ones((5, 7, 7)), aspect=1.0
    )
    for label in ("map", *(f"map of {name}" for name in STRONGEST)):
        area = pixels(figure, label)
        coloured = np.flatnonzero((area[area.shape[0] // 2] != 128).any(axis=1))  # columns
        third = area.shape[1] / 6
        assert abs(coloured[0] - third) <= 1 and abs(coloured[-1] + 1 - 5 * third) <= 1


def test_the_strongest_emotions_stand_in_a_row_with_their_probability():
    figure = draw(grey_image(60, 80))
    boxes = [box(figure, f"map of {name}") for name in STRONGEST]
    words = [text for text in figure.texts if text.get_text().endswith(" %")]
    assert [text.get_text() for text in words] == ["awe 60 %", "contentment 24 %", "disgust 10 %"]
    lefts = [round(text.get_window_extent().x0) for text in words]
    assert lefts == pytest.approx([left for left, *_ in boxes], abs=3)
    assert len({(top, width, height) for _, top, width, height in boxes}) == 1
    assert boxes == sorted(boxes)


def test_without_class_maps_no_emotion_is_named():
    title = "map of an emotion branch never trained on emotions"
    figure = draw(grey_image(60, 80), class_maps=None, emotions={}, map_title=title)
    assert labels(figure) == ["picture", "map", "colour bar", "training ratings", "predicted ratings"]
    words = [text.get_text() for text in figure.texts]
    assert title in words
    assert not any("strongest" in word or "emotion-aware" in word for word in words)


@pytest.mark.parametrize("size", [(450, 300), (700, 1100), (5000, 3), (1, 90), (1600, 1200), (1357, 531)])
def test_a_shrunk_picture_keeps_its_aspect_and_is_shown_pixel_for_pixel(size):
    picture = Image.effect_noise(size, 99).convert("RGB")
    small = panels.shrink(picture)
    figure = draw(small, **BARE | {"class_maps": np.zeros((5, 7, 7))})
    assert np.array_equal(pixels(figure, "picture"), small)
    for label in ("picture", "map", "map of awe"):
        _, _, width, height = box(figure, label)
        exact = (width * size[1] / size[0], height * size[0] / size[1])
        # To the pixel, on the shorter side (of a small map: of its rounded picture); it does not vanish.
        assert abs(height - exact[0]) <= 1 or abs(width - exact[1]) <= 1 or min(width, height) == 1


def test_the_colour_bar_has_the_colours_that_maps_have_on_middle_grey():
    ramp = np.tile(np.linspace(1, 0, 28)[:, None], (1, 28))
    figure = draw(grey_image(300, 450), **BARE | {"emotion_map": ramp})
    shown, bar = (pixels(figure, label) for label in ("map", "colour bar"))
    for row in (20, len(bar) // 2, len(bar) - 20):
        assert bar[row, 7] == pytest.approx(shown[row, 100], abs=12)


# ---- layout


@pytest.mark.parametrize("shape", [(300, 450), (450, 300), (77, 500), (900, 60)])
def test_nothing_on_the_panel_overlaps_or_leaves_it_and_all_can_be_read(shape):
    figure = draw(grey_image(*shape))
    things = [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    things += [(axes.get_label(), axes.get_tightbbox()) for axes in figure.axes]
    for name, area in things:
        assert area.x0 >= 0 and area.y0 >= 0, name
        assert area.x1 <= 1200 == figure.bbox.width and area.y1 <= figure.bbox.height, name
    for (name, a), (other, b) in itertools.combinations(things, 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, (name, other)
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(sizes) > 15
    assert min(sizes) * figure.dpi / 72 >= 11  # pixels


@pytest.mark.parametrize("title", ["a$_1$b.jpg", "日本語.jpg", ""])
def test_any_file_name_can_be_a_title(tmp_path, title):
    explanation = Explanation(title, "$5 of 10", 5.0, (1.0, 10.0), np.zeros((7, 7)))
    panels.save_panel(tmp_path / "panel.png", grey_image(60, 80), explanation)
    with Image.open(tmp_path / "panel.png") as picture:
        assert (picture.format, picture.width) == ("PNG", 1200)


# ---- the score among ratings


@pytest.mark.parametrize(
    ("value", "below"), [(3.2, 0.6), (2.05, 0.025), (1.5, 0), (4.5, 1), (0.5, 0), (5.5, 1)]
)
def test_the_blue_share_of_the_training_ratings_lies_below_the_score(value, below):
    figure = draw(grey_image(60, 80), **BARE | {"value": value, "training_ratings": RATINGS})
    strip = part(figure, "training ratings")
    whole, blue = (patch.get_data() for patch in strip.patches)
    areas = [(data.values * np.diff(data.edges)).sum() for data in (whole, blue)]
    assert areas[1] / areas[0] == pytest.approx(below, abs=0.02)
    assert blue.edges.max() <= value
    (line,) = strip.lines
    assert list(line.get_xdata()) == [value, value]
    low, high = strip.get_xlim()
    assert low <= min(value, 1) and high >= max(value, 5)  # the whole scale, and the score even beyond it
    assert [text.get_text().strip() for text in strip.texts] == [f"{value:.2f}"]


def test_the_predicted_distribution_is_drawn_as_bars():
    chart = part(draw(grey_image(60, 80), **BARE | {"distribution": SHARES}), "predicted ratings")
    bars = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in chart.patches}
    assert bars == pytest.approx(SHARES)
    assert [text.get_text() for text in chart.texts] == ["5", "15", "50", "20", "10"]
    figure = draw(grey_image(60, 80), **BARE | {"distribution": SHARES, "value": 3.15})
    assert "predicted ratings in %: mean 3.15, SD 0.96" in [text.get_text() for text in figure.texts]
    assert [tick.get_text() for tick in chart.get_xticklabels()] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("shape", [(300, 450), (450, 300)])
def test_the_votes_of_para_fit_beside_the_training_ratings(shape):
    shares = dict(zip(PARA_BINS, [0.01, 0.02, 0.05, 0.1, 0.24, 0.3, 0.2, 0.07, 0.01], strict=True))
    figure = draw(grey_image(*shape), distribution=shares)
    bars = [text.get_window_extent() for text in part(figure, "predicted ratings").texts]
    ticks = [tick.get_window_extent() for tick in part(figure, "predicted ratings").get_xticklabels()]
    assert len(bars) == len(ticks) == 9
    for row in (bars, ticks):
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(row))
    words = [text.get_window_extent() for text in figure.texts if " in %: mean " in text.get_text()]
    assert words[0].x1 <= part(figure, "predicted ratings").get_window_extent().x1


def test_a_chart_that_is_not_known_leaves_its_room_to_the_others():
    changes = ({}, {"distribution": {}}, BARE | {"class_maps": np.zeros((5, 7, 7))})
    both, one, none = (draw(grey_image(60, 80), **change) for change in changes)
    assert box(one, "training ratings")[2] > 2 * box(both, "training ratings")[2]
    assert "predicted ratings" not in labels(one)
    assert none.bbox.height < one.bbox.height == both.bbox.height
    assert not {"training ratings", "predicted ratings"} & set(labels(none))


@pytest.mark.parametrize(
    ("emotion_map", "message"),
    [(np.zeros((1, 7, 7)), r"is \(1, 7, 7\) with .*"), (np.full((7, 7), 2.0), "values from 2 to 2")],
)
def test_wrong_maps_are_refused(emotion_map, message):
    with pytest.raises(ValueError, match=f"^figures: .*{message}$"):
        draw(grey_image(8, 8), emotion_map=emotion_map)
