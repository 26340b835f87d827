"""A short torture with hostile files, and whether scripts/torture_images.py would see what goes wrong."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from small import read_csv
from test_export import write_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import torture_images
from torture_images import Moment


def here(function, *arguments, seconds):
    with torture_images.bound_by_permissions():
        return function(*arguments), 0.0


def without_large_ones(picture):
    slow = ("real_", "long", "text", "cut")
    return [made for made in ENORMOUS(picture) if not made.name.startswith(slow)]


ENORMOUS = torture_images.enormous


@pytest.fixture
def torture(monkeypatch, tmp_path):
    """Runs the script with a small network, in this process, without the pictures that take a second each."""
    monkeypatch.setattr(torture_images, "apart", here)
    monkeypatch.setattr(torture_images, "enormous", without_large_ones)
    weights = write_checkpoint(tmp_path)
    return lambda *words: torture_images.main([*words, "--checkpoint", str(weights)])


def test_nothing_stops_a_run(torture, capsys):
    assert torture("--files", "200") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("200 files made: ")
    assert [line.split(":")[0] for line in lines[1:-1]] == [
        *("good pictures alone", "predict", "predict, in other batches", "loader")
    ]
    assert all(": 200 rows, " in line for line in lines[2:-1])
    assert lines[-1] == "0 wrong"


def test_a_file_that_should_have_been_refused_is_seen(torture, capsys, monkeypatch):
    def harmless(picture):
        return [torture_images.Made("fine.jpg", "refused", torture_images.encoded(picture, "JPEG"))]

    monkeypatch.setattr(torture_images, "hand_made", harmless)
    assert torture("--files", "20") == 1
    assert capsys.readouterr().out.count("fine.jpg: should be refused, and was not") == 3


def test_a_used_folder_is_refused(torture, tmp_path, capsys):
    assert torture("--output", str(tmp_path)) == 2
    assert "holds files already; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fate", "row", "wrong"),
    [
        ("good", (0.5, None), []),
        ("good", (0.500011, None), ["+1.1e-05 of the range among bad neighbours"]),
        ("good", (None, "no"), ["should be scored, got: no"]),
        ("scored", (None, "no"), ["should be scored, got: no"]),
        ("refused", (0.5, None), ["should be refused, and was not"]),
        ("refused", (None, "no"), []),
        ("either", (0.9, None), []),
        ("either", (None, " "), ["an empty reason"]),
    ],
)
def test_each_row_is_judged(fate, row, wrong):
    assert torture_images.judge(fate, row, (0.5, None)) == wrong


@pytest.mark.parametrize(("alone", "said"), [(None, "no row"), ((None, "closed"), "closed")])
def test_a_good_picture_without_a_score_alone_is_wrong_and_stops_nothing(alone, said):
    results = {"predict": {"a": (0.5, None)}}
    if alone:
        results["good pictures alone"] = {"a": alone}
    assert torture_images.compare({"a": "good"}, results) == [
        f"predict: a: no score among the good pictures alone to compare with: {said}"
    ]


def test_rows_that_are_missing_too_many_or_different_are_seen():
    fates = {"a": "either", "b": "either"}
    rows = {
        "good pictures alone": {},
        "one": {"a": (0.5, None)},
        "two": {"a": (None, "no"), "b": (1.0, None)},
    }
    assert torture_images.compare(fates, rows | {"three": {"c": (1.0, None), **rows["two"]}}) == [
        "one: no row for b",
        "three: a row for c, which was not asked for",
        "a: once 0.5, once no",
        "a: once 0.5, once no",
    ]


def test_two_scores_of_one_file_must_be_equal():
    fates = dict.fromkeys("abc", "either")
    rows = {
        "one": {"a": (0.5, None), "b": (0.5, None), "c": (None, "no")},
        "two": {"a": (0.500009, None), "b": (0.500011, None), "c": (None, "never")},
        "loader": {"a": (None, None), "b": (None, None), "c": (None, "no")},
    }
    assert torture_images.compare(fates, rows) == ["b: once 0.5, once 0.500011"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names must be UTF-8 here")
def test_the_loader_reads_a_table_of_all_files_that_one_can_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torture_images, "WORKERS", 0)
    names = ["a.jpg", "two\r\nlines.jpg", 'a "b", c.jpg', "=1.jpg", "gone.jpg"]
    odd = ["a\\b.jpg", "\udcff.jpg", " .jpg"]
    picture = torture_images.photographs()[0]
    for number, name in enumerate([*names[:-1], *odd]):
        picture.rotate(90 * (number % 4)).save(tmp_path / name, quality=90 - number)
    paths = [str(tmp_path / name) for name in (*names, *odd)]
    rows = torture_images.loaded_rows(paths, str(tmp_path / "files.csv"), [])
    assert list(rows) == [torture_images.encodable(path) for path in paths]
    assert [row[1] for row in rows.values()] == [*[None] * 4, "no picture file gone.jpg", None, None, None]
    assert [row["path"] for row in read_csv(tmp_path / "files.csv")] == names


def test_root_reads_what_permissions_allow_and_then_all_again(tmp_path):
    path = tmp_path / "mine.jpg"
    path.touch(mode=0o000)
    with torture_images.bound_by_permissions():
        assert not readable(path)
        with ThreadPoolExecutor(1) as pool:  # as predict's threads
            assert not pool.submit(readable, path).result()
        tmp_path.chmod(0o700)
        (tmp_path / "own.jpg").touch()  # its own files are as before
    assert readable(path) == (os.geteuid() == 0)


def readable(path):
    try:
        with path.open():
            return True
    except PermissionError:
        return False


def test_memory_of_decoding_processes_counts(monkeypatch):
    def usage(who):
        mebibytes = {torture_images.resource.RUSAGE_SELF: 1000, torture_images.resource.RUSAGE_CHILDREN: 300}
        return SimpleNamespace(ru_maxrss=1024 * mebibytes[who])

    monkeypatch.setattr(torture_images.sys, "platform", "linux")
    monkeypatch.setattr(torture_images.resource, "getrusage", usage)
    assert torture_images.most_memory(children=2) == pytest.approx((1000 + 2 * 300) * 1024**2 / 1e9)
    assert torture_images.most_memory(children=0) == pytest.approx(1000 * 1024**2 / 1e9)


def test_a_crash_and_a_hang_are_sentences():
    assert torture_images.apart(os.abort, seconds=300)[0] == "crashed (exit code -6)"
    assert torture_images.apart(time.sleep, 1000, seconds=1)[0] == "hangs; ended after 1 s"


def test_a_soak_is_judged_by_growth_and_by_cost(capsys):
    # Twice as long on the clock in the last tenth, which is told and no fault.
    clock = [rows / 25 + max(0, rows - 9000) / 25 for rows in range(0, 10_001, 100)]
    flat = [Moment(100 * i, 2 * i, 800, seconds) for i, seconds in enumerate(clock)]
    assert torture_images.judge_soak(flat, 10_000) == []
    said = capsys.readouterr().out
    assert "processor time a picture: 20.0 ms in the first tenth, 20.0 ms in the last" in said
    assert "wall time a picture: 40.0 ms in the first tenth, 80.0 ms in the last" in said
    leaking = [moment._replace(memory=800 + moment.rows / 100) for moment in flat]
    assert torture_images.judge_soak(leaking, 10_000) == [
        "memory grew by 90 MB behind the first 1,000, allowed are 50"
    ]
    slowing = [moment._replace(seconds=moment.rows**1.1) for moment in flat]
    [problem] = torture_images.judge_soak(slowing, 10_000)
    assert problem.startswith("the last tenth took 1.3")


def test_a_short_soak_is_run_and_watched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torture_images, "SLOWER", 100)  # of so few pictures the time is chance
    words = ["--checkpoint", str(write_checkpoint(tmp_path)), "--workers", "2", "--batch-size", "4"]
    assert torture_images.soak(tmp_path, 400, words, start=100) == []
    said = capsys.readouterr().out
    assert " MB within the first 100 of 400 pictures, " in said and "wall time a picture: " in said
    with pytest.raises(ValueError, match="--soak needs 2000 pictures at least"):
        torture_images.soak(tmp_path, 400, words)


def test_a_soak_that_lacks_a_row_or_ends_wrongly_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torture_images, "run_and_exit", write_one_row_less)
    monkeypatch.setattr(torture_images, "judge_soak", lambda *_: [])
    assert torture_images.soak(tmp_path, 20, [], start=10) == [
        "19 rows of 20, or wrong ones",
        "exit code 1",
    ]


def write_one_row_less(words):
    links = sorted(Path(words[1]).iterdir())[1:]
    Path(words[3]).write_text("\n".join(["path,error", *(f"{link}," for link in links)]) + "\n")
    sys.exit(1)
