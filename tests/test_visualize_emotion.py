"""scripts/visualize_emotion.py: the right pictures, each in its own shape, with the numbers of Scorer."""

import io
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import small
from lively import STARS, build_lively, write_weights
from PIL import Image

from eamb.evaluation.figures import overlay, write_figure
from eamb.files import as_cell
from eamb.inference.scorer import Scored, Scorer
from eamb.network.outputs import Scale
from eamb.readers.rated import RatedSet
from scripts import visualize_emotion as script

SHAPES = [(96, 64), (64, 96), (64, 64), (120, 40)]  # width, height
COUNT = 12  # pictures of the set that can be decoded; number 12 is broken


built_once = small.scorers_built_once(script)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A csv set, all of it test: pictures of several shapes, and a file that is none."""
    root = tmp_path_factory.mktemp("album")
    names = [*small.write_pictures(root / "images", COUNT), "broken.png"]
    for number, name in enumerate(names[:COUNT]):
        with Image.open(root / "images" / name) as picture:
            picture.resize(SHAPES[number % len(SHAPES)]).save(root / "images" / name)
    (root / "images" / "broken.png").write_text("<html>not found</html>")
    rows = [(name, f"{1 + 4 * (7 * number % 13) / 12:.3f}", "test") for number, name in enumerate(names)]
    small.write_table(root / "ratings.csv", [("path", "score", "split"), *rows])
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
    keep = lambda figure, path: figures.update({path.name: figure})  # noqa: E731
    monkeypatch.setattr(script.figures, "write_figure", keep)
    for name in ("show", "draw_score"):
        monkeypatch.setattr(script, name, lambda *_: None)
    return figures


def texts(figure):
    return [text.get_text() for text in figure.texts]


def entry(rank=1, shape=(60, 90), emotions=None, shares=None, rated=3.5):
    """A picture with random maps, predicted on a scale to 5 and rated on one to 10."""
    random = np.random.default_rng(rank)
    emotions = {"awe": 0.6, "fear": 0.3, "anger": 0.1} if emotions is None else emotions
    emotion_map, *maps = random.random((1 + len(emotions), 7, 7), dtype=np.float32)
    strongest = next(iter(emotions), None)
    named = {"emotion": strongest, "emotion_probability": emotions.get(strongest), "emotions": emotions}
    scores = [("predicted 2.25", 2.25, (1.0, 5.0), {})]
    scores += [(f"rated {rated:.2f}", rated, (1.0, 10.0), shares or {})] if rated else []
    image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    class_maps = dict(zip(emotions, maps, strict=True))
    scored = Scored(f"{rank}.jpg", 2.25, **named)
    return script.Entry(rank, f"{rank}.jpg", scored, scores, image, emotion_map, class_maps)


SUBJECT = script.Subject("PARA test", "9 pictures by rating", "emotion-aware map", ["Predicted: 1 to 5."])


# ---- which pictures


@pytest.mark.parametrize(
    ("ids", "ratings", "scores", "by", "ranking"),
    [  # no score: a file that cannot be decoded
        ("abcd", [1, 2, 3, 4], [2.0, 3.5, None, 1.5], "score", [1, 0, 3]),
        ("abcd", [1, 2, 3, 4], [2.0, 3.5, None, 1.5], "rating", [3, 1, 0]),
        ("dbca", [0] * 4, [2.0, 2.0, 3.0, 2.0], "score", [2, 3, 1, 0]),  # of equals the smaller id
        ("abc", [math.nan, 2, 3], [1.0, 2.0, 3.0], "rating", [2, 1]),
        ("abc", [math.nan, 2, 3], [1.0, 2.0, 3.0], "score", [2, 1, 0]),
    ],
)
def test_the_ranking_goes_from_the_highest_to_the_lowest(ids, ratings, scores, by, ranking):
    scored = [Scored("", score=score, error=None if score else "no picture") for score in scores]
    rated = RatedSet("para", "test", "", list(ids), list(ids), np.array(ratings, dtype=float), STARS)
    assert script.rank(rated, scored, by) == ranking
    with pytest.raises(ValueError, match="no picture of para can be ranked, as none has a rating; use --by"):
        script.rank(replace(rated, scores=np.full(len(ids), math.nan)), scored, "rating")


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
        patch.setattr(script.figures, "write_figure", write_and_keep)
        code = call(weights, output, "--dataset", "csv", "--data-root", album, "--count", "4")
    return code, output, said.getvalue(), figures


def test_a_run_writes_two_figures_and_the_numbers_and_names_broken_files_in_one_line(finished):
    code, output, said, _ = finished
    assert (code, {path.name for path in output.iterdir()}) == (1, set(script.FILES))
    for name in script.FILES[:2]:
        with Image.open(output / name) as figure:
            assert figure.width == script.WIDTH
    [line] = [line for line in said.splitlines() if "broken.png" in line]
    assert "is left out: a web page (HTML), not a picture" in line


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
    paths = {row["rank"]: album / "images" / row["id"] for row in small.read_csv(output / "pictures.csv")}
    scorer = Scorer(weights, device="cpu", maps=True)
    measured = {rank: scorer.score(path) for rank, path in paths.items()}
    shown = {rank: [] for rank in paths}
    drawn = []
    for figure in (figures["most_least.png"], figures["page.png"]):
        boxes = [
            axes for axes in figure.axes if axes.get_label().startswith(("colour bar", "picture", "map"))
        ]
        drawn += list(zip(boxes, figure.images, strict=True))[1:]  # the first is the colour bar
    for axes, image in drawn:
        kind, _, rank = axes.get_label().rpartition(" ")
        shown[rank].append(kind)
        found = np.asarray(image.get_array()).astype(int)
        height, width = found.shape[:2]
        box = axes.get_window_extent()
        assert (box.width, box.height) == pytest.approx((width, height))
        with Image.open(paths[rank]) as image:
            exact = (height * image.width / image.height, width * image.height / image.width)
            picture = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
        assert abs(width - exact[0]) <= 0.5 or abs(height - exact[1]) <= 0.5
        scored = measured[rank]
        maps = dict(zip([f"map of {name}" for name in scorer.emotions], scored.class_maps, strict=True))
        maps["map"] = scored.emotion_map
        expected = picture if kind == "picture" else overlay(picture, maps[kind])
        # One picture alone and in a batch differ in the last digits of their maps.
        assert np.abs(found - expected).max() <= 4
    assert sum(map(len, shown.values())) == 2 * (4 + 4) + (2 + 3) * script.PAGE_ROWS
    for rank, result in measured.items():
        strongest = sorted(result.emotions, key=lambda name: -result.emotions[name])[:3]
        named = [kind for kind in shown[rank] if kind.startswith("map of ")]
        assert named in ([], [f"map of {name}" for name in strongest])


def test_by_rating_the_ends_are_the_highest_and_the_lowest_rated_whatever_the_networks_unit(
    album, drawn, tmp_path
):
    scale = Scale("score", 1, 10, 5, offset=1, factor=9)
    foreign = export(tmp_path / "ava.safetensors", scale, dataset="ava")
    call(foreign, tmp_path, "--dataset", "csv", "--data-root", album, "--count", "1", "--by", "rating")
    ratings = [float(row["score"]) for row in small.read_csv(album / "ratings.csv")[:COUNT]]
    rows = small.read_csv(tmp_path / "pictures.csv")
    assert [float(rows[0]["rating"]), float(rows[-1]["rating"])] == [max(ratings), min(ratings)]
    assert rows[-1]["rank"] == str(COUNT)
    words = "The 1 highest and the 1 lowest of 12 pictures by rating, each above its emotion-aware map."
    assert texts(drawn["most_least.png"])[:2] == ["CSV test", words]
    words = "Predicted: 1 to 10, in the network's own unit (trained on AVA). Rated: 1 to 5."
    assert words in texts(drawn["most_least.png"])


def test_a_folder_has_scores_only_and_a_branch_that_was_never_trained_names_no_emotion(
    album, drawn, tmp_path
):
    weights = export(tmp_path / "raw.safetensors", origin={"emotion_branch": "never trained"})
    assert call(weights, tmp_path / "out", "--folder", album) == 1
    assert texts(drawn["most_least.png"])[1].startswith("The 6 highest and the 6 lowest of 12 pictures by")
    assert len(drawn) == 2
    for figure in drawn.values():
        words = texts(figure)
        assert "Predicted: 1 to 5, in the network's own unit (trained on CSV)." in words
        assert any("was never trained on emotions" in word for word in words)
        assert not [word for word in words if word.endswith("%") or "rated" in word]
        assert "emotion-aware map" not in words
    rows = small.read_csv(tmp_path / "out" / "pictures.csv")
    assert {(row["rating"], row["emotion"], row["emotion_probability"]) for row in rows} == {("", "", "")}
    assert all((album / row["id"]).is_file() for row in rows)


def test_the_page_names_emotions_and_scores_lie_on_their_own_scales():
    figure = script.draw_page([entry(shares={1.0: 0.25, 7.0: 0.75}, rated=7.0)], SUBJECT)
    assert [text for text in texts(figure) if text.endswith("%")] == ["awe 60 %", "fear 30 %", "anger 10 %"]
    axes = {axes.get_label(): axes for axes in figure.axes}
    predicted, rated = axes["scale of predicted 2.25"], axes["scale of rated 7.00"]
    for scale, value, ends in ((predicted, 2.25, (1, 5)), (rated, 7.0, (1, 10))):
        assert [line.get_xdata() for line in scale.lines] == [[value]]
        assert tuple(scale.get_xticks()) == ends
        assert scale.get_xlim()[0] < ends[0] and ends[1] < scale.get_xlim()[1]
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in rated.patches]
    assert bars == [(pytest.approx(1.0), 0.25), (pytest.approx(7.0), 0.75)]
    assert not predicted.patches
    assert any("Bars: share of each rating." in text for text in texts(figure))


# ---- errors


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--folder ALBUM --by rating", "--by rating, --data-root and key=value words go with"),
        ("--folder ALBUM data.size=64", "key=value words go with --dataset, not --folder"),
        ("--folder EMPTY", "no picture of empty can be ranked, as none has a score"),
        ("--folder ALBUM/nothing", "no such file or folder"),
        ("--dataset para", "where is para? --data-root DIR"),
        ("--dataset csv --data-root ALBUM --split val", "the val split of csv is empty"),
        ("--dataset csv --data-root ALBUM data.sise=64", "did you mean 'data.size'?"),
        ("--folder ALBUM --count 0", "--count and --limit are at least 1, got 0, None"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(words, reason, album, weights, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.jpg").touch()
    words = words.replace("ALBUM", str(album)).replace("EMPTY", str(tmp_path / "empty"))
    assert call(weights, tmp_path / "out", *words.split()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and reason in said
    assert not (tmp_path / "out").exists()


def test_existing_files_are_overwritten_by_force_only(album, weights, drawn, tmp_path, capsys):
    (tmp_path / "page.png").write_bytes(b"old")
    assert call(weights, tmp_path, "--folder", album) == 2
    assert "holds page.png already; choose another folder" in capsys.readouterr().err
    assert not drawn
    assert call(weights, tmp_path, "--folder", album, "--force") == 1
    assert set(drawn) == {"most_least.png", "page.png"}
