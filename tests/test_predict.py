"""`main.py predict`: each file a row, in order; interrupted runs go on; maps explain the rows."""

import codecs
import io
import json
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
import torch
from lively import RATINGS, SIZE, as_input, blotches, build_lively, direct_score, write_weights
from PIL import Image
from small import contents, read_csv, scorers_built_once

from eamb.files import written_whole
from eamb.inference import panels
from eamb.inference import predict as predict_module
from eamb.inference import scorer as scorer_module
from eamb.inference.maps import MapFolder, panel_drawers
from eamb.inference.photographs import find_pictures
from eamb.inference.scorer import Scorer
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers.decoding import decode, decode_views
from eamb.readers.para import PARA_BINS
from eamb.weights.shipped import SHIPPED
from main import main
from scripts.samples import write_dng, write_heic
from scripts.studies.colour import SPACES, rgb_profile

pytestmark = pytest.mark.portable

TEN_BINS = Scale("distribution", 1.0, 10.0, 5.0, bins=tuple(map(float, range(1, 11))))
PARA_VOTES = Scale("distribution", 1.0, 5.0, 3.0, bins=PARA_BINS)
GOOD = ["a.PNG", "b.jpg", "f\r\n,x.png", "\udcff.jpg", "sub/b.jpg", "sub/c.webp"]
ALBUM = [*GOOD[:2], "broken.jpg", "empty.jpg", *GOOD[2:]]


def save_small_panel(path, image, explanation):
    """In the place of panels.save_panel, which draws for half a second."""
    with written_whole(path) as unfinished:
        unfinished.write_text(f"{image.mean():.4f} {explanation.score}")


built_once = scorers_built_once(predict_module)


@pytest.fixture
def small_panels(monkeypatch):
    monkeypatch.setattr(panels, "save_panel", save_small_panel)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Pictures of several formats, some with odd names, and two files that are none."""
    folder = tmp_path_factory.mktemp("photos") / "album"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(GOOD):
        blotches(seed).save(folder / name)
    (folder / "broken.jpg").write_text("<html>not found</html>")
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def scored(album, lively_weights, tmp_path_factory):
    """What one run over the album wrote: its exit code, the csv's rows, the folder of maps, the messages."""
    folder, messages = tmp_path_factory.mktemp("out"), io.StringIO()
    words = ("--output", folder / "new/scores.csv", "--emotions", "--maps", folder / "maps", "--maps-raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", messages)
        patch.setattr(panels, "save_panel", save_small_panel)
        code = call(album, lively_weights, *words)
    return code, read_csv(folder / "new/scores.csv"), folder / "maps", messages.getvalue()


def call(paths, weights, *options):
    """`main.py predict`; returns the exit code."""
    paths = paths if isinstance(paths, (list, tuple)) else [paths]
    fixed = ["--device", "cpu", "--batch-size", "3", "--workers", "0"]
    return main(["predict", *map(str, paths), "--checkpoint", str(weights), *fixed, *map(str, options)])


def refused(capsys, paths, checkpoint_file, *options):
    """The message of a call that exits with 2."""
    assert call(paths, checkpoint_file, *options) == 2
    return capsys.readouterr().err


# ---- rows


def test_each_file_has_its_score_or_its_reason_in_the_order_of_a_sorted_folder(scored, album, lively_model):
    code, rows, _, messages = scored
    assert code == 1 and "6 of 8 pictures scored" in messages
    assert [row["path"] for row in rows] == [f"{album}/{name}".replace("\udcff", r"\xff") for name in ALBUM]
    direct = [direct_score(lively_model, album / name) for name in GOOD]
    assert [float(row["score"]) for row in rows if not row["error"]] == pytest.approx(direct, abs=4e-5)
    assert np.ptp(direct) > 0.2, "the scores are too alike to tell rows apart"
    assert "web page" in rows[2]["error"] and rows[3]["error"] == "the file is empty"
    assert {value for key, value in rows[2].items() if key not in ("path", "error")} == {""}


def test_a_jpeg_without_its_end_marker_is_scored_with_a_note(album, lively_weights, tmp_path):
    files = [tmp_path / "cut.jpg", tmp_path / "whole.jpg"]
    files[1].write_bytes((album / "b.jpg").read_bytes())
    files[0].write_bytes((album / "b.jpg").read_bytes()[:-2])
    for _ in range(2):
        assert call(files, lively_weights, "--output", tmp_path / "s.csv", "--resume") == 0
        cut, whole = read_csv(tmp_path / "s.csv")
        assert cut["score"] == whole["score"] and whole["error"] == ""
        assert cut["error"] == "note: the file lacks its end marker"


def test_profiles_are_converted_unless_the_weights_were_trained_without(
    album, lively_model, tmp_path, capsys
):
    wide, plain, cut = (tmp_path / name for name in ("wide.png", "plain.png", "cut.png"))
    with Image.open(album / "a.PNG") as picture:
        for path, profile in ((wide, rgb_profile(SPACES["prophoto"])), (plain, None), (cut, b"cut")):
            picture.save(path, icc_profile=profile)
    converted, ignored = direct_score(lively_model, wide), direct_score(lively_model, plain)
    assert abs(converted - ignored) > 0.01
    for number, (known, expected) in enumerate(
        [({}, converted), ({"icc": True}, converted), ({"icc": False}, ignored)]
    ):
        weights = write_weights(tmp_path / f"{number}.safetensors", lively_model, **known)
        assert Scorer(weights).score(wide).score == pytest.approx(expected, abs=4e-5)
    for words in ((), ("--resume",)):
        assert call([wide, cut], tmp_path / "0.safetensors", "--output", tmp_path / "s.csv", *words) == 0
        assert "2 of 2 pictures scored, 1 with a note, " in capsys.readouterr().err
        assert (
            read_csv(tmp_path / "s.csv")[1]["error"] == "note: its colour profile is ignored: it is damaged"
        )


def test_columns_are_as_documented_and_the_named_emotion_is_the_most_probable_one(scored):
    rows = [row for row in scored[1] if not row["error"]]
    documented = "path score score_min score_max score_std percentile emotion emotion_probability error"
    assert list(rows[0]) == documented.split() + [f"emotion_{name}" for name in EMOTIONS]
    assert (rows[0]["score_min"], rows[0]["score_max"], rows[0]["score_std"]) == ("1.0", "5.0", "")
    for row in rows:
        probabilities = {name: float(row[f"emotion_{name}"]) for name in EMOTIONS}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert (
            probabilities[row["emotion"]] == max(probabilities.values()) == float(row["emotion_probability"])
        )
    assert len({row["emotion"] for row in rows}) > 1


def test_json_lines_say_the_same_as_csv(scored, album, lively_weights, tmp_path):
    assert call(album, lively_weights, "--output", tmp_path / "scores.JSONL", "--emotions") == 1
    lines = (tmp_path / "scores.JSONL").read_text(encoding="utf-8").splitlines()
    for line, row in zip(map(json.loads, lines), scored[1], strict=True):
        assert {key: "" if value is None else str(value) for key, value in line.items()} == row


@pytest.mark.parametrize("scale", [TEN_BINS, PARA_VOTES])
def test_rating_bins_become_columns_that_give_score_and_deviation(scale, album, tmp_path, capsys, drawn):
    file = write_weights(tmp_path / "bins.safetensors", build_lively(outputs=scale.outputs), scale)
    assert call(album / "b.jpg", file, "--output", tmp_path / "scores.csv", "--maps", tmp_path / "maps") == 0
    [row] = read_csv(tmp_path / "scores.csv")
    assert list(row)[9:] == [f"p_{rating:g}" for rating in scale.bins]
    shares, bins = np.array(list(row.values())[9:], dtype=float), np.array(scale.bins)
    mean = (shares * bins).sum()
    deviation = np.sqrt((shares * (bins - mean) ** 2).sum())
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert [float(row["score"]), float(row["score_std"])] == pytest.approx([mean, deviation], abs=1e-4)
    [(_, _, explanation)] = drawn
    assert explanation.deviation == pytest.approx(deviation, abs=1e-4)
    assert [*explanation.distribution.values()] == pytest.approx(shares, abs=1e-5)
    capsys.readouterr()
    assert call(album / "b.jpg", file) == 0
    header, line = (text.split() for text in capsys.readouterr().out.splitlines())
    assert header == ["score", "score_std", "percentile", "emotion", "path"]
    assert line[:2] == [f"{float(row[name]):.2f}" for name in header[:2]]


def test_the_table_on_standard_output_is_aligned_and_on_one_line_a_picture(lively_weights, tmp_path, capsys):
    blotches(0).save(tmp_path / "two\nlines.jpg")
    (tmp_path / "z.jpg").touch()
    assert call(tmp_path, lively_weights) == 1
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["score", "percentile", "emotion", "path"]
    assert first.index(f"{tmp_path}/two\\nlines.jpg") == header.index("path")
    assert second.split()[:3] == ["-", "-", "-"]
    assert second.endswith("z.jpg: the file is empty")


def test_no_text_is_a_formula_and_pandas_reads_the_same_paths_again(lively_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["-x.jpg", "=1+1.jpg", "+a.jpg", "@b.jpg", "\tc.jpg", "plain.jpg", "ä.jpg", "😀.jpg"]
    names += ['a "b", c.jpg', "'.jpg", " =.jpg", "sub,;\t.jpg"]
    broken = ["\rd.jpg", "\n=e.jpg", "two\r\nlines.jpg"]  # found by the globs
    for name in names + broken:
        blotches(len(name)).save(tmp_path / name)
    listed = io.BytesIO("".join(f"{name}\n" for name in names).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed, encoding="utf-8"))
    assert call(["-", "*[de].jpg", "two*"], lively_weights, "--output", "scores.csv") == 0
    for row in read_csv(Path("scores.csv")):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in row.values())
    table = pd.read_csv("scores.csv")
    assert sorted(path.removeprefix("./") for path in table.path) == sorted(names + broken)
    assert (table.path[0], table.score.dtype) == ("./-x.jpg", float)


def test_large_jpegs_are_decoded_whole_only_if_asked(lively_weights, lively_model, tmp_path):
    large = tmp_path / "large.jpg"
    blotches(1).resize((8 * 4 * SIZE, 8 * 4 * SIZE)).save(large, quality=60)
    differences = []
    for words in ((), ("--exact",)):
        assert call(large, lively_weights, "--output", tmp_path / "s.csv", "--force", *words) == 0
        score = float(read_csv(tmp_path / "s.csv")[0]["score"])
        differences.append(abs(score - direct_score(lively_model, large)))
    assert differences[1] < 4e-5 < 1e-4 < differences[0] < 0.2


# ---- several networks, mirrored pictures


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """A second network on the same scale, for larger pictures of another shape."""
    path = tmp_path_factory.mktemp("weights") / "another.safetensors"
    return write_weights(path, build_lively(seed=1), image_size=2 * SIZE, crop=True, exif=False)


def rows_of(paths, weights, output, *words, code=1):
    assert call(paths, weights, "--output", output, "--force", *words) == code
    return read_csv(output)


def test_several_networks_give_their_mean_and_how_much_they_differ(
    album, lively_weights, another, tmp_path, monkeypatch
):
    output, maps = tmp_path / "s.csv", ("--emotions", "--maps", tmp_path / "maps", "--maps-raw")
    monkeypatch.setattr(panels, "save_panel", save_small_panel)
    alone = [rows_of(album, weights, output) for weights in (lively_weights, another)]
    decoded = []
    count = lambda *words: decoded.append(words[0]) or decode_views(*words)  # noqa: E731
    monkeypatch.setattr(scorer_module, "decode_views", count)
    together = rows_of(album, lively_weights, output, "--checkpoint", another, *maps)
    assert len(decoded) == len(set(decoded)) == len(ALBUM)  # each file once, however many networks
    names = "path score score_min score_max score_std score_model_std percentile emotion"
    assert list(together[0])[:8] == names.split()
    first = rows_of(album, lively_weights, tmp_path / "first.csv", "--emotions", "--maps", tmp_path / "one")
    for both, one, *rows in zip(together, first, *alone, strict=True):
        assert (both["error"], both["path"]) == (one["error"], one["path"])
        if not both["error"]:
            scores = [float(row["score"]) for row in rows]
            assert float(both["score"]) == pytest.approx(np.mean(scores), abs=2e-5)
            assert float(both["score_model_std"]) == pytest.approx(np.std(scores), abs=2e-5)
            assert np.std(scores) > 1e-3
            assert {n: both[n] for n in both if "emotion" in n} == {n: one[n] for n in one if "emotion" in n}
    assert "score_model_std" not in first[0]
    with torch.no_grad():
        expected = build_lively()(as_input(decode(album / "b.jpg", SIZE))).emotion_map[0, 0]
    assert np.abs(np.load(tmp_path / "maps/b.jpg.eam.npy") - expected.numpy()).max() < 1e-5


def test_the_terminal_shows_how_much_several_networks_differ(album, lively_weights, another, capsys):
    assert call(album / "b.jpg", lively_weights, "--checkpoint", another) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["score", "score_model_std", "percentile", "emotion", "path"]
    assert float(row.split()[1]) >= 0


def test_several_networks_go_on_where_they_were_interrupted(album, lively_weights, another, tmp_path, capsys):
    output, words = tmp_path / "s.jsonl", ("--checkpoint", another, "--output", tmp_path / "s.jsonl")
    assert call(album, lively_weights, *words) == 1
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    assert call(album, lively_weights, *words, "--resume") == 1 and output.read_bytes() == whole
    output.write_bytes(
        whole[: len(whole) // 2]
    )  # the mean is the same in any order, maps and emotions are not
    message = refused(capsys, album, another, "--checkpoint", lively_weights, "--output", output, "--resume")
    assert "another probability of its emotion than now; go on with the networks in the same order" in message
    message = refused(capsys, album, lively_weights, "--output", output, "--resume")
    assert "has other columns than this run would write; go on with the same --checkpoint" in message


def test_a_flipped_score_is_the_mean_of_a_picture_and_its_mirror_image(lively_weights, another, tmp_path):
    picture = blotches(3, 2 * SIZE, 2 * SIZE)
    picture.resize((SIZE, SIZE)).save(tmp_path / "a.png")
    picture.resize((SIZE, SIZE)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    for words in ((), ("--checkpoint", another)):
        plain = rows_of(tmp_path, lively_weights, tmp_path / "s.csv", *words, code=0)
        flipped = rows_of(tmp_path, lively_weights, tmp_path / "s.csv", "--flip", *words, code=0)
        scores = [float(row["score"]) for row in plain]
        assert abs(scores[0] - scores[1]) > 1e-3
        assert [float(row["score"]) for row in flipped] == pytest.approx([np.mean(scores)] * 2, abs=1e-5)
        same = ("path", "emotion", "emotion_probability", "error")
        assert [[row[name] for name in same] for row in flipped] == [
            [r[name] for name in same] for r in plain
        ]
        assert ("score_model_std" in flipped[0]) == bool(words)


def test_networks_that_do_not_go_together_are_named(album, lively_weights, tmp_path, capsys, monkeypatch):
    ten = write_weights(tmp_path / "ten.safetensors", build_lively(outputs=10), TEN_BINS)
    message = refused(capsys, album, lively_weights, "--checkpoint", ten)
    assert re.search(r"ten\.safetensors predicts on another scale than .*stars\.safetensors \(kind", message)
    message = refused(capsys, album, lively_weights, "--checkpoint", lively_weights)
    assert "stars.safetensors is given twice" in message
    monkeypatch.setitem(SHIPPED, "small", tmp_path / "none.safetensors")
    assert "the network 'small' is not shipped" in refused(capsys, album, "small")


def test_without_a_checkpoint_the_shipped_lite_scores(album, lively_weights, tmp_path, monkeypatch):
    monkeypatch.setitem(SHIPPED, "lite", lively_weights)
    expected = rows_of(album / "a.PNG", lively_weights, tmp_path / "s.csv", code=0)
    assert rows_of(album / "a.PNG", "lite", tmp_path / "s.csv", code=0) == expected
    words = ["--output", str(tmp_path / "s.csv"), "--force", "--device", "cpu", "--batch-size", "3"]
    assert main(["predict", str(album / "a.PNG"), *words, "--workers", "0"]) == 0
    assert read_csv(tmp_path / "s.csv") == expected


# ---- parts for several processes


@pytest.mark.parametrize("by_torchrun", [False, True])
def test_the_rows_of_all_parts_are_those_of_the_whole(
    scored, album, lively_weights, tmp_path, monkeypatch, capsys, by_torchrun
):
    rows = []
    for number in (1, 2):
        output = tmp_path / f"scores.{number}of2.csv"
        words = ("--output", output, "--shard", f"{number}/2")
        if by_torchrun:
            words = ("--output", tmp_path / "scores.csv")
            monkeypatch.setenv("WORLD_SIZE", "2")
            monkeypatch.setenv("RANK", str(number - 1))
        # A broken picture must not end the process with 1: torchrun would end the others.
        assert call(album, lively_weights, *words, "--emotions") == (not by_torchrun)
        rows += read_csv(output)
    expected = {row["path"]: (row["error"], float(row["score"] or 0)) for row in scored[1]}
    assert len(rows) == len(expected)
    for row in rows:
        error, score = expected.pop(row["path"])
        assert row["error"] == error
        # Kernels of another batch size may add in another order.
        assert float(row["score"] or 0) == pytest.approx(score, abs=1e-5 * 4)
    for words in ([album, "--shard", "1/2"], ["-"]) if by_torchrun else ():
        assert "torchrun gives each of 2 processes its part" in refused(capsys, words, lively_weights)


# ---- going on where a run was interrupted


@pytest.fixture(scope="module", params=["csv", "jsonl"])
def uninterrupted(request, album, lively_weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / f"scores.{request.param}"
    assert call(album, lively_weights, "--output", output, "--emotions") == 1
    return output


def resume(album, weights, output, rows):
    """Goes on with a file of these bytes; returns those it holds then."""
    output.write_bytes(rows)
    assert call(album, weights, "--output", output, "--emotions", "--resume") == 1
    return output.read_bytes()


def test_a_run_cut_at_any_byte_goes_on_to_the_same_bytes(uninterrupted, album, lively_weights, tmp_path):
    whole, output = uninterrupted.read_bytes(), tmp_path / uninterrupted.name
    cuts = [0, 1, 50, *range(200, len(whole), 1399), len(whole) - 1, len(whole)]
    lines = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for cut in sorted({*cuts, *lines}):
        assert resume(album, lively_weights, output, whole[:cut]) == whole, cut
    output.unlink()
    assert call(album, lively_weights, "--output", output, "--emotions", "--resume") == 1
    assert output.read_bytes() == whole


def test_a_csv_for_excel_is_the_same_behind_a_byte_order_mark(
    uninterrupted, album, lively_weights, tmp_path, capsys
):
    output = tmp_path / uninterrupted.name
    if output.suffix != ".csv":
        message = refused(capsys, album, lively_weights, "--output", output, "--excel")
        assert "predict: --excel is for a csv; add --output FILE.csv" in message
        return
    plain, words = uninterrupted.read_bytes(), ("--output", output, "--emotions", "--excel")
    assert call(album, lively_weights, *words) == 1
    marked = output.read_bytes()
    assert marked == codecs.BOM_UTF8 + plain
    for cut in (0, 1, 3, 50, len(marked) // 2, len(marked)):
        output.write_bytes(marked[:cut])
        assert call(album, lively_weights, *words, "--resume") == 1 and output.read_bytes() == marked
    # It goes on as the file began, whatever is said then.
    half = len(plain) // 2
    assert resume(album, lively_weights, output, marked[:half]) == marked
    output.write_bytes(plain[:half])
    assert call(album, lively_weights, *words, "--resume") == 1 and output.read_bytes() == plain


def test_only_the_rest_is_computed(uninterrupted, album, lively_weights, tmp_path, monkeypatch, capsys):
    lines, decoded = uninterrupted.read_bytes().splitlines(keepends=True), []
    count = lambda *words: decoded.append(1) or decode_views(*words)  # noqa: E731
    monkeypatch.setattr(scorer_module, "decode_views", count)
    resume(album, lively_weights, tmp_path / uninterrupted.name, b"".join(lines[:-2]))
    assert 0 < len(decoded) <= 2 * 3  # the batch of the last row with a score, and the last one
    assert "6 of 8 pictures scored" in capsys.readouterr().err


def fail_for(name, error):
    def save(path, *rest):
        if path.name == name:
            path.with_name(f".{path.name}.1.tmp").touch()
            raise error
        save_small_panel(path, *rest)

    return save


def test_maps_are_gone_on_with_too(album, lively_weights, tmp_path, monkeypatch, small_panels):
    def run(folder, *options):
        words = ("--output", folder / "s.csv", "--maps", folder / "maps", "--maps-raw", "--emotions")
        return call(album, lively_weights, *words, *options)

    assert run(tmp_path / "whole") == 1
    with monkeypatch.context() as patch:
        patch.setattr(panels, "save_panel", fail_for("\udcff.jpg.png", KeyboardInterrupt()))
        assert run(tmp_path / "cut") == 130
    # A row is on the disk, and so is its panel, before the next picture is asked for.
    assert [Path(row["path"]).name for row in read_csv(tmp_path / "cut/s.csv")] == ALBUM[:5]
    assert run(tmp_path / "cut", "--resume") == 1
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


TOO = ("--emotions",)


@pytest.mark.parametrize(
    ("uninterrupted", "change", "options", "words"),
    [
        ("csv", lambda rows: [b"my,own,table"], TOO, "row 1 of .* has other columns"),
        ("csv", lambda rows: rows[:3] + rows[4:], TOO, "row 3 of .* is of .*empty.jpg, and picture 3 is"),
        ("csv", lambda rows: rows + rows[-1:], TOO, "row 9 of .* is of .*, and picture 9 is none"),
        ("csv", lambda rows: rows, ("--force",), "--resume goes on with the rows in --output"),
        ("csv", lambda rows: rows, ("--emotions", "--maps", "maps"), "is missing, though its picture has"),
        ("csv", lambda rows: [rows[0], rows[1].replace(b",1.", b",x.", 1)], TOO, "row 1 .* is damaged"),
        ("jsonl", lambda rows: [*rows, b'{"path": "0.png", "score": 1}\n'], TOO, "row 9 .* other columns"),
        ("jsonl", lambda rows: [b"[1, 2]\n", *rows], TOO, "row 1 of .* is damaged"),
    ],
    indirect=["uninterrupted"],
)
def test_rows_of_another_run_are_refused_and_stay(
    uninterrupted, album, lively_weights, tmp_path, capsys, monkeypatch, change, options, words
):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / uninterrupted.name
    rows = re.split(rb"(?<=\n)(?!,x)", uninterrupted.read_bytes())[:-1]
    output.write_bytes(b"".join(change(rows)))
    before = output.read_bytes()
    assert re.search(words, refused(capsys, album, lively_weights, "--output", output, "--resume", *options))
    assert output.read_bytes() == before


def test_rows_of_other_weights_are_refused(uninterrupted, album, tmp_path, capsys):
    output, model = tmp_path / uninterrupted.name, build_lively()
    output.write_bytes(uninterrupted.read_bytes())
    model.head[5].bias.data += 1
    file = write_weights(tmp_path / "other.safetensors", model)
    message = refused(capsys, album, file, "--output", output, "--emotions", "--resume")
    assert re.search(r"gives .*c\.webp the score .*, and now it is .*; go on with the same weights", message)
    assert output.read_bytes() == uninterrupted.read_bytes()


def test_a_device_that_is_not_there_is_refused_with_predicts_own_option(album, lively_weights, capsys):
    message = refused(capsys, album, lively_weights, "--device", "cuda:99")
    assert "device 'cuda:99' is unknown or not here; choose --device from auto, cpu" in message


# ---- maps


def test_raw_maps_are_the_networks_own_in_the_pictures_sub_folders(scored, album, lively_model):
    maps, endings = scored[2], ("png", "eam.npy", "cam.npy")
    assert contents(maps).keys() == {"emotions.txt", *(f"{name}.{end}" for name in GOOD for end in endings)}
    assert (maps / "emotions.txt").read_text() == "".join(f"{name}\n" for name in EMOTIONS)
    for name in GOOD:
        image = as_input(decode(album / name, SIZE))
        with torch.no_grad():
            expected = lively_model(image).emotion_map[0, 0], lively_model.class_activation_maps(image)[0]
        for ending, values in zip(("eam", "cam"), expected, strict=True):
            written = torch.from_numpy(np.load(maps / f"{name}.{ending}.npy"))
            torch.testing.assert_close(written, values, atol=1e-5, rtol=0)
            assert written.max() - written.min() > 0.1


@pytest.fixture
def drawn(monkeypatch):
    """What panels were about to be written: path, picture, explanation."""
    calls = []
    monkeypatch.setattr(panels, "save_panel", lambda *arguments: calls.append(arguments))
    return calls


def test_a_panel_explains_the_row(album, lively_weights, tmp_path, drawn):
    options = ("--maps", tmp_path / "maps", "--output", tmp_path / "s.csv", "--emotions")
    assert call(album / "sub/b.jpg", lively_weights, *options) == 0
    [(path, image, explanation)] = drawn
    [row] = read_csv(tmp_path / "s.csv")
    assert (path, image.shape) == (tmp_path / "maps" / "b.jpg.png", (448, 538, 3))  # as large as it is shown
    assert (explanation.title, explanation.map_title) == ("b.jpg", "emotion-aware map")
    score, share = float(row["score"]), float(row["percentile"])
    assert explanation.score == f"{score:.2f} of 1 to 5, above {share:.0f} % of the training ratings"
    assert explanation.value == pytest.approx(score, abs=1e-5)
    assert (explanation.ends, list(explanation.training_ratings)) == ((1, 5), RATINGS)
    emotions = {name: float(row[f"emotion_{name}"]) for name in EMOTIONS}
    assert explanation.emotions == pytest.approx(emotions, abs=1e-6)
    total = np.tensordot(list(explanation.emotions.values()), explanation.class_maps, 1)
    assert np.abs(total - explanation.emotion_map).max() < 1e-5
    assert not explanation.distribution


def test_a_panel_that_cannot_be_drawn_is_a_note_in_its_row_and_a_full_disk_ends_the_run(
    album, lively_weights, tmp_path, monkeypatch, capsys
):
    words = ("--output", tmp_path / "s.csv", "--maps", tmp_path / "maps")
    files = [album / "a.PNG", album / "b.jpg"]
    monkeypatch.setattr(panels, "save_panel", fail_for("b.jpg.png", OSError("no space left")))
    assert refused(capsys, files, lively_weights, *words).endswith("no space left\n")
    assert [Path(row["path"]).name for row in read_csv(tmp_path / "s.csv")] == ["a.PNG"]
    monkeypatch.setattr(panels, "save_panel", fail_for("b.jpg.png", ValueError("no map")))
    for _ in range(2):
        assert call(files, lively_weights, *words, "--resume") == 1
        good, bad = read_csv(tmp_path / "s.csv")
        assert (good["error"], bad["error"]) == ("", "its panel could not be drawn: no map")
        assert float(bad["score"]) > 0


def test_processes_draw_what_a_thread_draws_survive_ctrl_c_and_end(album, lively_weights, tmp_path):
    scorer = Scorer(lively_weights, device="cpu", maps=True)
    pictures = find_pictures([str(album / name) for name in ("a.PNG", "empty.jpg")])
    for processes in (1, 2):
        maps = MapFolder(tmp_path / str(processes), scorer, raw=False)
        results = list(scorer.score_all([picture.path for picture in pictures], on_decoded=maps.keep))
        assert list(maps.write_all(zip(pictures, results, strict=True), processes)) == results
        assert not maps.pictures
    assert contents(tmp_path / "1").keys() == {"a.PNG.png"}
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    with panel_drawers(2) as drawers:
        os.kill(drawers.submit(os.getpid).result(), signal.SIGINT)
        assert drawers.submit(int).result() == 0
    assert not multiprocessing.active_children()


def test_a_branch_that_was_never_trained_names_no_emotion(lively_model, album, tmp_path, drawn, capsys):
    origin = {"emotion_branch": "never trained"}
    file = write_weights(tmp_path / "w.safetensors", lively_model, origin=origin)
    options = ("--maps", tmp_path / "maps", "--maps-raw", "--output", tmp_path / "s.csv", "--emotions")
    assert call(album / "b.jpg", file, *options) == 0
    assert capsys.readouterr().err.count("was never trained on emotions; its emotions are left out") == 1
    [row] = read_csv(tmp_path / "s.csv")
    assert row["score"] and {row[name] for name in row if name.startswith("emotion")} == {""}
    [(_, _, explanation)] = drawn
    assert explanation.class_maps is None and not explanation.emotions
    assert explanation.map_title == "map of an emotion branch never trained on emotions"
    assert contents(tmp_path / "maps").keys() == {"b.jpg.eam.npy"}  # those of classes would have no meaning


@pytest.mark.parametrize(("crop", "aspect"), [(False, None), (True, 1.0)])
def test_panels_know_the_part_of_the_picture_that_the_network_sees(
    crop, aspect, lively_model, album, tmp_path, drawn
):
    file = write_weights(tmp_path / "w.safetensors", lively_model, crop=crop)
    assert call(album / "b.jpg", file, "--maps", tmp_path / "maps") == 0
    [(_, _, explanation)] = drawn
    assert explanation.aspect == aspect


def test_pictures_of_one_name_and_the_longest_names_get_maps_of_their_own_which_are_no_pictures(
    lively_weights, tmp_path, small_panels
):
    names = ["x" * 246 + "0.jpg", "x" * 246 + "1.jpg", "ä" * 125 + ".jpg", "b.jpg", "sub/b.jpg", "sub/c.jpg"]
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(names):
        blotches(seed).save(tmp_path / name)
    words = ("--maps", tmp_path / "maps", "--maps-raw", "--output", tmp_path / "s.csv")
    for more in ((), ("--resume",)):
        assert call([tmp_path / "b.jpg", tmp_path / "sub", tmp_path], lively_weights, *words, *more) == 0
        assert len(read_csv(tmp_path / "s.csv")) == len(names)
    stems = ["x" * 230, "x" * 230 + ".2", "ä" * 115, "b.jpg", "b.jpg.2", "c.jpg"]
    endings = ("png", "eam.npy", "cam.npy")
    expected = {f"{stem}.{ending}" for stem in stems for ending in endings}
    assert contents(tmp_path / "maps").keys() == {"emotions.txt", *expected}


# ---- bad arguments


def test_what_exists_is_refused_before_any_work(album, lively_weights, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    output.write_text("precious")
    # The weights do not exist either: a message about them would mean that work had begun.
    assert "--force" in refused(capsys, album, "no.safetensors", "--output", output)
    assert "--force" in refused(capsys, album, "no.safetensors", "--maps", tmp_path)
    assert "no file" in refused(capsys, album, "no.safetensors", "--output", output, "--force")
    assert output.read_text() == "precious"
    assert call(album / "b.jpg", lively_weights, "--output", output, "--force") == 0
    assert len(read_csv(output)) == 1


@pytest.mark.parametrize(
    ("paths", "options", "words"),
    [
        ([], (), "which pictures"),
        (["missing.jpg"], (), "no such file or folder: missing.jpg"),
        ([".cache/.."], ("--output", "scores.tsv"), "must end in .csv or .jsonl, got scores.tsv"),
        (["empty"], (), "no picture (.jpg .jpeg"),
        (["b.jpg"], ("--batch-size", "0"), "batch size at least 1"),
        (["b.jpg"], ("--workers", "-2"), "workers at least -1"),
        (["b.jpg"], ("--maps", "broken.jpg"), "broken.jpg cannot be written (broken.jpg: Not a directory)"),
        (["b.jpg"], ("--maps-raw",), "--maps-raw writes beside the panels of --maps; add --maps DIR"),
    ],
)
def test_bad_arguments_are_a_sentence(album, lively_weights, capsys, monkeypatch, paths, options, words):
    monkeypatch.chdir(album)
    (album / "empty").mkdir(exist_ok=True)
    before = sorted(album.rglob("*"))
    assert words in refused(capsys, paths, lively_weights, *options)
    assert sorted(album.rglob("*")) == before


def test_scoring_and_drawing_load_only_what_they_need():
    needless = {"predict": {"matplotlib", "pandas", "scipy", "sklearn", "openvino"}, "panels": {"torch"}}
    needless["predict"] |= {"pi_heif", "pillow_jxl", "rawpy", "tifffile"}  # until such a file comes
    needless["predict"] |= {"jinja2"}  # without --page
    for module, names in needless.items():
        code = f"import sys, eamb.inference.{module}; sys.exit(bool({names} & sys.modules.keys()))"
        assert small.command("-c", code, folder=small.ROOT).returncode == 0


def test_raw_and_heic_without_their_packages_have_rows_that_say_so(tmp_path, lively_weights, monkeypatch):
    exif, photos, table = Image.Exif(), tmp_path / "photos", tmp_path / "scores.csv"
    photos.mkdir()
    blotches(0).save(photos / "a.jpg")
    write_heic(photos / "b.heic", blotches(0))
    for name in ("a.dng", "c.dng"):  # a: beside its JPEG
        write_dng(photos / name, blotches(0), blotches(0), exif)
    words = ["predict", str(photos), "--checkpoint", str(lively_weights), "--device", "cpu", "--workers", "0"]
    assert main([*words, "--output", str(table)]) == 0
    assert [Path(row["path"]).name for row in read_csv(table)] == ["a.jpg", "b.heic", "c.dng"]
    scores = {Path(row["path"]).name: float(row["score"]) for row in read_csv(table)}
    assert max(scores.values()) - min(scores.values()) < 0.1
    for name in ("pi_heif", "rawpy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*words, "--output", str(table), "--force", "--raw", "raw"]) == 1
    rows = {Path(row["path"]).name: (row["score"], row["error"]) for row in read_csv(table)}
    install = "pip install -r requirements-photos.txt"
    raw = ("", f"RAW files need the package rawpy: {install}")
    assert rows == {
        "a.dng": raw,
        "b.heic": ("", f"HEIC files need the package pi-heif: {install}"),
        "c.dng": raw,
    }
