"""scripts/visualize_emotion.py: the right pictures, each in its own shape, with the numbers of Scorer."""

import functools
import io
import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import small
from lively import SIZE, STARS, build_lively, write_weights
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from eamb.evaluation.figures import overlay, write_figure
from eamb.files import as_cell
from eamb.inference.scorer import Scored, Scorer
from eamb.network.outputs import Scale
from eamb.weights import checkpoint
from scripts import prepare_data
from scripts import visualize_emotion as script

SHAPES = [(96, 64), (64, 96), (64, 64), (120, 40)]  # width, height
COUNT = 12  # pictures of the set that can be decoded; number 12 is broken


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """Spares the time in which each run builds its network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "Scorer", functools.cache(Scorer))
        yield


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A csv set, all of it test: pictures of several shapes, and a file that is none."""
    root = tmp_path_factory.mktemp("album")
    names = small.write_pictures(root / "images", COUNT)
    for number, name in enumerate(names):
        with Image.open(root / "images" / name) as picture:
            picture.resize(SHAPES[number % len(SHAPES)]).save(root / "images" / name)
    (root / "images" / "broken.png").write_text("<html>not found</html>")
    names = [*names, "broken.png"]
    ratings = [f"{1 + 4 * (7 * number % 13) / 12:.3f}" for number in range(len(names))]
    rows = [f"{name},{rating},test" for name, rating in zip(names, ratings, strict=True)]
    (root / "ratings.csv").write_text("\n".join(["path,score,split", *rows]))
    return root


def export(path, scale=STARS, **changes):
    known = {"dataset": "csv", "config": {"data": {}}, "training_ratings": []}
    return write_weights(path, build_lively(scale.outputs), scale, **known | changes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return export(tmp_path_factory.mktemp("weights") / "stars.safetensors")


def call(weights, output, *words):
    words = ["--checkpoint", weights, "--output", output, "--device", "cpu", "--workers", "0", *words]
    return script.main([*map(str, words)])


@pytest.fixture
def drawn(monkeypatch):
    """File name -> figure of a run that writes and shows no pixels, only words."""
    figures = {}

    def keep(figure, path):
        figures[path.name] = figure
        path.parent.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(script, "write_figure", keep)
    monkeypatch.setattr(script, "show", lambda *_: None)
    monkeypatch.setattr(script, "draw_scores", lambda *_: None)
    return figures


def texts(figure):
    return [text.get_text() for text in figure.texts]


def boxes(figure):
    """Label -> extent of the axes in pixels."""
    return {axes.get_label(): axes.get_window_extent() for axes in figure.axes}


def entry(rank=1, shape=(60, 90), rating=3.5, emotions=None, distribution=None, shares=None):
    """A picture with random maps."""
    random = np.random.default_rng(rank)
    emotions = {"awe": 0.6, "fear": 0.3, "anger": 0.1} if emotions is None else emotions
    strongest = max(emotions, key=emotions.get, default=None)
    named = {"emotion": strongest, "emotion_probability": emotions.get(strongest), "emotions": emotions}
    emotion_map, *maps = random.random((1 + len(emotions), 7, 7), dtype=np.float32)
    scored = Scored(f"{rank}.jpg", 2.25, distribution=distribution or {}, emotion_map=emotion_map, **named)
    image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    class_maps = dict(zip(emotions, maps, strict=True))
    return script.Entry(rank, f"{rank}.jpg", scored, rating, shares or {}, image, class_maps)


def subject(**changes):
    values = {
        "name": "PARA test",
        "count": 3000,
        "by": "score",
        "predicted": "mean rating, 1 to 5",
        "rated": "mean rating, 1 to 5",
        "predicted_ends": (1.0, 5.0),
        "rated_ends": (1.0, 5.0),
        "labels": False,
        "knows_emotions": True,
    }
    return script.Subject(**values | changes)


# ---- which pictures


class Ranked:
    """As much of a set as ranking reads."""

    name, split = "para", "test"

    def __init__(self, ids, scores):
        self.ids, self.scores = list(ids), np.array(scores, dtype=np.float64)


def scored(*scores):
    """None: a file that cannot be decoded."""
    return [Scored("", score=score, error=None if score else "no picture") for score in scores]


def test_the_ranking_goes_from_the_highest_to_the_lowest_and_leaves_out_broken_files():
    rated = Ranked("abcd", [1, 2, 3, 4])
    assert script.rank(rated, scored(2.0, 3.5, None, 1.5), "score") == [1, 0, 3]
    assert script.rank(rated, scored(2.0, 3.5, None, 1.5), "rating") == [3, 1, 0]
    # Equal scores are ranked by id, whatever the order of the files.
    assert script.rank(Ranked("dbca", [0] * 4), scored(2.0, 2.0, 3.0, 2.0), "score") == [2, 3, 1, 0]


def test_by_rating_what_has_no_rating_is_left_out():
    rated = Ranked("abc", [math.nan, 2, 3])
    assert script.rank(rated, scored(1.0, 2.0, 3.0), "rating") == [2, 1]
    assert script.rank(rated, scored(1.0, 2.0, 3.0), "score") == [2, 1, 0]
    with pytest.raises(ValueError, match="no picture of para test has a rating to rank by; use --by score"):
        script.rank(Ranked("abc", [math.nan] * 3), scored(1.0, 2.0, 3.0), "rating")


@pytest.mark.parametrize(
    ("size", "count", "most", "least"),
    [
        (9, 3, [0, 1, 2], [8, 7, 6]),
        (6, 3, [0, 1, 2], [5, 4, 3]),
        (5, 8, [0, 1, 2], [4, 3]),  # no picture is both
        (1, 8, [0], []),
    ],
)
def test_both_ends_of_the_ranking_are_chosen(size, count, most, least):
    assert script.choose_ends(range(size), count) == (most, least)


def test_the_rows_of_the_page_are_spread_over_the_ranks():
    assert script.choose_spread(range(21), 6) == [0, 4, 8, 12, 16, 20]
    assert script.choose_spread(range(3), 6) == [0, 1, 2]
    assert script.choose_spread([7], 6) == [7]


# ---- the whole command


@pytest.fixture(scope="module")
def finished(album, weights, tmp_path_factory):
    """A run over the album: its exit code, its folder, what it said, and its figures by file name."""
    output = tmp_path_factory.mktemp("out") / "new"
    said, figures = io.StringIO(), {}

    def write_and_keep(figure, path):
        figures[path.name] = figure
        write_figure(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", said)
        patch.setattr(script, "write_figure", write_and_keep)
        code = call(weights, output, "--dataset", "csv", "--data-root", album, "--count", "4")
    return code, output, said.getvalue(), figures


def test_a_run_writes_two_figures_and_the_numbers(finished):
    _, output, _, _ = finished
    assert sorted(path.name for path in output.iterdir()) == sorted(script.FILES)
    for name in ("most_least.png", "page.png"):
        with Image.open(output / name) as figure:
            assert figure.width == script.WIDTH
            # 4 pictures an end in a row of at least LOWEST, each with a map; 6 rows of at least 90 pixels.
            assert figure.height > (4 * script.LOWEST if name == "most_least.png" else 6 * 90)


def test_broken_files_are_named_in_one_line_and_do_not_stop_the_run(finished):
    code, _, said, _ = finished
    lines = [line for line in said.splitlines() if "broken.png" in line]
    assert len(lines) == 1
    assert "is left out: a web page (HTML), not a picture" in lines[0]
    assert code == 1


def test_the_numbers_are_those_of_the_scorer_and_of_the_table(finished, album, weights):
    ratings = {row["path"]: row["score"] for row in small.read_csv(album / "ratings.csv")}
    paths = sorted((album / "images").glob("0_*.png"))
    ranked = sorted(Scorer(weights, device="cpu").score_all(paths), key=lambda row: -row.score)
    rows = small.read_csv(finished[1] / "pictures.csv")
    # 4 from each end, and the page's 6 of 12 ranks at even distances: round(11 i / 5), counted from 1.
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    for row in rows:
        picture = ranked[int(row["rank"]) - 1]
        assert picture.path.endswith(row["id"])
        assert (row["emotion"], float(row["rating"])) == (picture.emotion, float(ratings[row["id"]]))
        values = float(row["prediction"]), float(row["emotion_probability"])
        assert values == (as_cell(picture.score), as_cell(picture.emotion_probability))


def test_the_figures_show_each_picture_in_its_own_shape_beside_its_own_maps(finished, album, weights):
    _, output, _, figures = finished
    paths = {
        int(row["rank"]): album / "images" / row["id"] for row in small.read_csv(output / "pictures.csv")
    }
    scorer = Scorer(weights, device="cpu", maps=True)
    measured = {rank: scorer.score(path) for rank, path in paths.items()}
    shown = []
    for axes in figures["most_least.png"].axes + figures["page.png"].axes:
        kind, _, rank = axes.get_label().rpartition(" ")
        if not kind.startswith(("picture", "map")):
            continue
        shown.append((int(rank), kind))
        found = np.asarray(axes.images[0].get_array()).astype(int)
        height, width = found.shape[:2]
        box = axes.get_window_extent()
        assert (box.width, box.height) == pytest.approx((width, height))
        with Image.open(paths[int(rank)]) as image:
            exact = (height * image.width / image.height, width * image.height / image.width)
            picture = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
        assert abs(width - exact[0]) <= 0.5 or abs(height - exact[1]) <= 0.5
        # One picture alone and in a batch differ in the last digits of their maps.
        assert np.abs(found - expected(kind, picture, measured[int(rank)], scorer.emotions)).max() <= 4
    assert len(shown) == 2 * (4 + 4) + (2 + 3) * script.PAGE_ROWS
    for rank, result in measured.items():
        strongest = sorted(result.emotions, key=lambda name: -result.emotions[name])[:3]
        named = [kind for of, kind in shown if of == rank and kind.startswith("map of ")]
        assert named in ([], [f"map of {name}" for name in strongest])


def expected(kind, picture, measured, emotions):
    """The pixels of "picture", "map" or "map of awe"."""
    if kind == "picture":
        return picture
    if kind == "map":
        return overlay(picture, measured.emotion_map)
    return overlay(picture, measured.class_maps[emotions.index(kind.removeprefix("map of "))])


def test_the_page_names_the_three_strongest_emotions_first_to_third():
    figure = script.draw_page([entry(4)], subject())
    labels = [axes.get_label() for axes in figure.axes if axes.get_label().startswith("map of ")]
    assert labels == ["map of awe 4", "map of fear 4", "map of anger 4"]
    assert [text for text in texts(figure) if text.endswith("%")] == ["awe 60 %", "fear 30 %", "anger 10 %"]


def test_by_rating_the_ends_are_the_highest_and_the_lowest_rated(album, weights, drawn, tmp_path):
    call(weights, tmp_path, "--dataset", "csv", "--data-root", album, "--count", "1", "--by", "rating")
    ratings = [float(row["score"]) for row in small.read_csv(album / "ratings.csv")[:COUNT]]
    rows = small.read_csv(tmp_path / "pictures.csv")
    assert [float(rows[0]["rating"]), float(rows[-1]["rating"])] == [max(ratings), min(ratings)]
    assert rows[-1]["rank"] == str(COUNT)
    assert texts(drawn["most_least.png"])[:2] == [
        "CSV test",
        "The 1 highest and the 1 lowest of 12 pictures by rating, each above its emotion-aware map.",
    ]


def test_a_folder_has_scores_only(album, weights, drawn, tmp_path):
    assert call(weights, tmp_path, "--folder", album, "--count", "2") == 1
    rows = small.read_csv(tmp_path / "pictures.csv")
    assert {row["rating"] for row in rows} == {""}
    assert all((album / row["id"]).is_file() for row in rows)
    words = " ".join(texts(drawn["most_least.png"]) + texts(drawn["page.png"]))
    assert "rated" not in words
    assert "Predicted: mean rating, 1 to 5, in the network's own unit (trained on CSV)." in words


def test_a_name_that_is_no_text_is_an_id_all_the_same(tmp_path):
    (tmp_path / "\udcff.png").touch()
    (tmp_path / "b.png").touch()
    rated = script.read_folder(tmp_path, STARS)
    assert rated.ids == ["b.png", "\\xff.png"]
    assert len(script.first_by_hash(rated, 1)) == 1


def test_no_cell_of_the_numbers_is_a_formula_or_cut_in_two(tmp_path):
    first = replace(entry(1, emotions={"-awe": 1.0}), id="=1+1;2.jpg")
    script.write_numbers(tmp_path / "pictures.csv", [replace(entry(2), id="\udcff.jpg"), first])
    rows = small.read_csv(tmp_path / "pictures.csv")
    assert [row["id"] for row in rows] == ["'=1+1;2.jpg", "\\xff.jpg"]
    assert rows[0]["emotion"] == "'-awe" and float(rows[0]["rating"]) == 3.5
    assert '"\'=1+1;2.jpg"' in (tmp_path / "pictures.csv").read_text(encoding="utf-8")


def test_copies_made_for_another_size_are_refused(album, weights, tmp_path, capsys):
    for size in (96, SIZE):
        words = ["--dataset", "csv", "--data-root", album, "--output", tmp_path / f"{size}"]
        words += ["--workers", "0", "--splits", "test", f"data.size={size}"]
        assert prepare_data.main([*map(str, words)]) == 1  # one picture is broken
    words = ["--dataset", "csv", "--data-root"]
    assert call(weights, tmp_path / "out", *words, tmp_path / "96") == 2
    said = capsys.readouterr().err
    have, want = (f"data.size={size} data.exif=true" for size in (96, 64))
    assert f"{tmp_path / '96'} holds copies made with {have}, and {want} is asked for" in said
    options = script.parse([*words, str(tmp_path / f"{SIZE}"), "--output", str(tmp_path / "out")])
    _, rated = script.read_set(options, checkpoint.load_weights(weights))
    assert len(rated) == COUNT


def test_another_sets_ratings_and_the_networks_own_unit_are_told_apart(album, drawn, tmp_path):
    foreign = export(
        tmp_path / "ava.safetensors", Scale("score", 1, 10, 5, offset=1, factor=9), dataset="ava"
    )
    call(foreign, tmp_path / "out", "--dataset", "csv", "--data-root", album)
    assert (
        "Predicted: mean rating, 1 to 10, in the network's own unit (trained on AVA). "
        "Rated: mean rating, 1 to 5." in texts(drawn["most_least.png"])
    )


def test_a_branch_that_was_never_trained_names_no_emotion(album, drawn, tmp_path):
    weights = export(tmp_path / "raw.safetensors", origin={"emotion_branch": "never trained"})
    call(weights, tmp_path / "out", "--folder", album)
    for figure in drawn.values():
        words = texts(figure)
        assert any("was never trained on emotions" in word for word in words)
        assert not [word for word in words if word.endswith("%")]
        assert "emotion-aware map" not in words
    rows = small.read_csv(tmp_path / "out" / "pictures.csv")
    assert {(row["emotion"], row["emotion_probability"]) for row in rows} == {("", "")}


def test_the_maps_of_a_whole_set_are_not_kept(album, weights):
    paths = sorted((album / "images").glob("0_*.png"))
    rated = script.read_folder(album, STARS).take(range(len(paths)))
    assert all(row.emotion_map is None for row in script.score_set(Scorer(weights, device="cpu"), rated))


# ---- layout

CROWDS = {
    "squares": [1.0] * 8,
    "landscape and portrait": [1.5, 1.5, 0.67, 1.33, 0.67, 1.5, 1.0, 0.75],
    "strips and panoramas": [0.02] * 10 + [9.0, 16.0, 1.5],
    "strips that fill one row too much": [0.02] * 9 + [1.5545] * 12,
    "one": [1.5],
    "many": [1.5, 0.67] * 20,
}


@pytest.mark.parametrize("aspects", CROWDS.values(), ids=CROWDS)
def test_rows_of_the_sheet_are_equally_high_in_order_and_within_the_sheet(aspects):
    rows = script.place_in_rows(aspects)
    places = [place for row in rows for place in row]
    assert len(places) == len(aspects)
    for place, aspect in zip(places, aspects, strict=True):
        assert place.width == max(round(aspect * place.height), 1)
        assert place.height <= script.TALLEST
        assert place.left >= script.MARGIN
    for row in rows:
        assert len({place.height for place in row}) == 1
        assert row[-1].left + row[-1].width <= script.WIDTH - script.MARGIN + 1
        for place, following in itertools.pairwise(row):
            # A thin picture still leaves the room that the text below it takes.
            room = max(place.width, script.NARROWEST) + script.GAP - 1
            assert following.left - place.left >= room
    assert np.median([place.height for place in places]) >= script.LOWEST


LONG = {"a feeling without a short name": 0.6, "mono no aware": 0.3, "schadenfreude and more of it": 0.1}
VOTES = {1.0: 0.1, 2.0: 0.2, 3.0: 0.4, 4.0: 0.2, 5.0: 0.1}
PAIR, DOUBLE = [1, 2], [(60, 90), (90, 60)]
SUBJECTS = {
    "with emotions": (subject(), [entry(i, shape, shares=VOTES) for i, shape in enumerate(DOUBLE)]),
    "distributions": (subject(), [entry(i, (40, 90), distribution=VOTES, shares=VOTES) for i in PAIR]),
    "long names": (
        subject(name="M" * script.LONGEST_NAME + ", a sample"),
        [entry(i, (90, 60), emotions=LONG) for i in PAIR],
    ),
    "no emotions": (subject(knows_emotions=False), [entry(i, emotions={}) for i in PAIR]),
    "no ratings": (subject(rated=""), [entry(i, (20, 90), rating=math.nan) for i in PAIR]),
    "labels": (subject(labels=True, rated_ends=(0, 1)), [entry(i, rating=float(i - 1)) for i in PAIR]),
}


def written(figure):
    """(left, bottom, right, top) in pixels of all that was written or shown, and of the figure."""
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    extents = {f"text {i}: {t.get_text()}": t.get_window_extent(renderer) for i, t in enumerate(figure.texts)}
    extents |= {f"axes: {label}": box for label, box in boxes(figure).items()}
    return {name: box.extents for name, box in extents.items() if box.width}, figure.bbox.extents


@pytest.mark.parametrize(("about", "entries"), SUBJECTS.values(), ids=SUBJECTS)
@pytest.mark.parametrize("draw", ["sheet", "page"])
def test_nothing_overlaps_or_leaves_the_figure(about, entries, draw):
    figure = (
        script.draw_page(entries, about)
        if draw == "page"
        else script.draw_sheet(*[[e] for e in entries], about)
    )
    things, whole = written(figure)
    assert len(things) > 8
    for name, (left, bottom, right, top) in things.items():
        assert left >= 0 and bottom >= 0 and right <= whole[2] and top <= whole[3], name
    for (name, a), (other, b) in itertools.combinations(things.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{name} overlaps {other}"


def test_scores_lie_on_their_own_scales():
    about = subject(predicted_ends=(1.0, 5.0), rated_ends=(1.0, 10.0))
    figure = script.draw_page([entry(rating=7.0, shares={1.0: 0.25, 7.0: 0.75})], about)
    axes = {axes.get_label(): axes for axes in figure.axes}
    predicted, rated = axes["scale of predicted 2.25"], axes["scale of rated 7.00"]
    for scale, value, ends in ((predicted, 2.25, (1, 5)), (rated, 7.0, (1, 10))):
        line, dot = scale.lines
        assert tuple(line.get_xdata()) == ends
        assert dot.get_xdata() == [value]
        low, high = scale.get_xlim()
        assert low < ends[0] and ends[1] < high
    assert not predicted.patches
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in rated.patches] == [
        (pytest.approx(1.0), 0.25),
        (pytest.approx(7.0), 0.75),
    ]
    assert rated.get_ylim() == (0, 0.75)
    assert any("Bars: share of each rating." in text for text in texts(figure))


def test_labels_are_written_as_words():
    words = [subject(labels=True).rated_text(entry(rating=rating)) for rating in (1.0, 0.0, math.nan)]
    assert words == ["rated high", "rated low", ""]


# ---- errors


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--folder", "ALBUM", "--by", "rating"], "a folder has no ratings; use --by score, or --dataset"),
        (["--folder", "ALBUM", "data.size=64"], "key=value words go with --dataset, not --folder"),
        (["--folder", "ALBUM/images/broken.png"], "there is no folder"),
        (["--dataset", "para"], "where is para? --data-root DIR"),
        (["--dataset", "csv", "--data-root", "ALBUM", "--split", "val"], "the val split of csv is empty"),
        (["--dataset", "csv", "--data-root", "ALBUM", "data.sise=64"], "did you mean 'data.size'?"),
        (["--folder", "ALBUM", "--count", "0"], "--count and --limit are at least 1, got 0, None"),
        (["--folder", "ALBUM", "--limit", "0"], "--count and --limit are at least 1, got 8, 0"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(words, reason, album, weights, tmp_path, capsys):
    words = [word.replace("ALBUM", str(album)) for word in words]
    assert call(weights, tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert reason in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_broken_files_is_an_error(weights, tmp_path, capsys):
    (tmp_path / "a.jpg").touch()
    assert call(weights, tmp_path / "out", "--folder", tmp_path) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        f"none of the 1 pictures can be scored, e.g. {tmp_path / 'a.jpg'}: the file is empty"
    )


def test_existing_files_are_overwritten_by_force_only(album, weights, drawn, tmp_path, capsys):
    (tmp_path / "page.png").write_bytes(b"old")
    assert call(weights, tmp_path, "--folder", album) == 2
    assert (
        "holds page.png already; choose another folder, or overwrite with --force" in capsys.readouterr().err
    )
    assert not drawn
    assert call(weights, tmp_path, "--folder", album, "--force") == 1
    assert set(drawn) == {"most_least.png", "page.png"}
