"""Finding photographs: each file once, in order, whatever it is called; parts that together are the whole."""

import io
import os
import sys
from pathlib import Path

import pytest
from small import nfd

from eamb.inference.photographs import Shard, choose_shard, find_pictures
from eamb.readers.decoding import PICTURE_ENDINGS

ALBUM = ["a.PNG", "b.jpg", "broken.jpg", "\udcff.jpg", "sub/b.jpg", "sub/c.webp"]
OTHERS = [".hidden.jpg", ".cache/d.jpg", "notes.txt", "clip.MOV"]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def album(tmp_path, monkeypatch):
    """The working folder, as people have them: pictures, hidden and other files, a link to itself."""
    touch(tmp_path, *ALBUM, *OTHERS)
    (tmp_path / "again").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*arguments, shard=None):
    return [picture.path for picture in find_pictures(arguments, shard)]


def test_a_folder_is_sorted_and_what_it_holds_beside_pictures_is_counted(album, capsys):
    assert found(".") == [f"./{name}" for name in ALBUM]
    assert capsys.readouterr().err == "passed over in folders: 2 hidden, 1 linked, 1 .mov, 1 .txt\n"
    assert found("sub") == ["sub/b.jpg", "sub/c.webp"]
    assert capsys.readouterr().err == ""


def test_paths_stay_as_they_were_given_and_a_file_named_twice_is_found_once(album):
    assert found("./b.jpg", "sub/", "broken.jpg") == ["./b.jpg", "sub/b.jpg", "sub/c.webp", "broken.jpg"]
    assert found("sub/b.jpg", "sub", str(album / "sub"), "again/sub/c.webp") == ["sub/b.jpg", "sub/c.webp"]


def test_a_folder_gives_every_kind_that_can_be_decoded(tmp_path, capsys):
    names = sorted(f"a{ending[1:]}{ending}" for ending in PICTURE_ENDINGS)
    assert {"ajfif.jfif", "ajp2.jp2", "ampo.mpo", "aheic.heic", "ajxl.jxl", "anef.nef"} < {*names}
    touch(tmp_path, *names, "a.JP2", "a.pdf")
    assert found(str(tmp_path)) == [f"{tmp_path}/{name}" for name in sorted([*names, "a.JP2"])]
    assert capsys.readouterr().err == "passed over in folders: 1 .pdf\n"


PAIRS = [
    "a.CR2",
    "a.JPG",
    "b.dng",
    "b.heic",
    "c.nef",
    "c.png",
    "d.arw",
    "d.jpg",
    "e.jpg",
    "sub/e.nef",
]


@pytest.mark.parametrize(
    ("raw", "left_out", "said"),
    [
        (
            "jpeg",
            {"a.CR2", "b.dng", "d.arw"},
            "left out: 3 with a JPEG or HEIC of",
        ),
        (
            "raw",
            {"a.JPG", "b.heic", "d.jpg"},
            "left out: 3 with a RAW of",
        ),
        ("both", set(), ""),
    ],
)
def test_a_raw_file_beside_its_jpeg_is_one_photograph(tmp_path, monkeypatch, capsys, raw, left_out, said):
    touch(tmp_path, *PAIRS)
    monkeypatch.chdir(tmp_path)
    pictures = find_pictures([".", str(tmp_path / "d.jpg")], raw=raw)
    assert [picture.path[2:] for picture in pictures] == [name for name in PAIRS if name not in left_out]
    assert capsys.readouterr().err == (said and f"{said} the same name (--raw {raw})\n")
    parts = [find_pictures(["."], Shard(number, 2), raw=raw) for number in (1, 2)]
    assert sorted(parts[0] + parts[1]) == sorted(pictures)
    assert found("a.CR2", "sub") == ["a.CR2", "sub/e.nef"]  # whose JPEG is not among what was named


def test_a_link_to_a_picture_is_a_picture_of_its_own_and_files_come_before_folders(album):
    Path("sub/x.jpg").symlink_to(album / "b.jpg")
    Path("sub/y.jpg").symlink_to(album / "sub/y.jpg")
    touch(album, "sub/d/z.jpg", "sub/d/a/y.jpg", "sub/a.b/w.jpg")
    names = ["b.jpg", "c.webp", "x.jpg", "y.jpg", "a.b/w.jpg", "d/z.jpg", "d/a/y.jpg"]
    assert found("sub") == [f"sub/{name}" for name in names]


def test_globs_are_read_as_a_shell_reads_them(album):
    assert found("*b.jpg", "**/c.*") == ["b.jpg", "sub/c.webp"]
    assert found("[s]ub") == ["sub/b.jpg", "sub/c.webp"]
    assert found(".c*/*") == [".cache/d.jpg"]
    touch(album, "a[1].jpg", "a1.jpg")
    assert found("a[1].jpg") == ["a[1].jpg"]  # there is such a file
    assert found("notes.txt", ".hidden.jpg", "missing.jpg") == ["notes.txt", ".hidden.jpg", "missing.jpg"]


def test_a_glob_does_not_go_round_in_linked_folders(tmp_path):
    for name in ("one", "two"):  # each way round opens two more
        (tmp_path / name).symlink_to(tmp_path)
    touch(tmp_path, "a.jpg")
    assert found(f"{tmp_path}/**/*.jpg") == [f"{tmp_path}/a.jpg"]


def test_a_list_on_standard_input_may_hold_any_name(album, monkeypatch):
    content = io.BytesIO(b"b.jpg\r\n\n\xff.jpg\nsub\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content, encoding="utf-8"))
    assert found("-") == ["b.jpg", "\udcff.jpg", "sub/b.jpg", "sub/c.webp"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.jpg\0b.jpg\0")))
    with pytest.raises(
        ValueError, match=r"zero bytes, as UTF-16 .* write them; give one path a line, in UTF-8"
    ):
        found("-")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # of Windows' editor and PowerShell
def test_a_list_may_begin_with_a_byte_order_mark(album, monkeypatch, encoding):
    touch(album, "\u0130 \u4e2d\x85.jpg")  # one of UTF-16's bytes is a line end
    content = io.BytesIO("b.jpg\r\n\u0130 \u4e2d\x85.jpg\r\n".encode(encoding))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    assert found("-") == ["b.jpg", "\u0130 \u4e2d\x85.jpg"]


def test_folders_that_the_run_writes_into_hold_no_pictures_to_score(album):
    pictures = find_pictures(["."], maps=[Path("sub")])
    assert [picture.path for picture in pictures] == [f"./{name}" for name in ALBUM[:4]]


# ---- parts for several processes


def real(paths):
    return [os.path.realpath(path) for path in paths]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_are_disjoint_and_complete_and_do_not_depend_on_the_order(album, count):
    named = ["b.jpg", "sub", ".", str(album / "sub/b.jpg")]
    whole, parts = real(found(*named)), []
    for number in range(1, count + 1):
        shard = Shard(number, count)
        part = real(found(*named, shard=shard))
        assert set(part) == set(real(found("./sub/..", *named[::-1], shard=shard)))
        assert part == [place for place in whole if place in part], "they stay in the order of naming"
        parts.append(part)
    assert sorted(place for part in parts for place in part) == sorted(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/0", "1.5/2"])
def test_bad_parts_are_one_sentence(text):
    with pytest.raises(ValueError, match=f"^predict: --shard is i/n with i from 1 to n.*; got '{text}'$"):
        choose_shard(text)


def test_named_files_and_lists_are_spelled_as_the_disk_has_them_and_may_begin_with_a_tilde(
    album, monkeypatch
):
    disk = nfd("Bücher/é.jpg")
    touch(album, disk, "~a.jpg")
    monkeypatch.setenv("HOME", str(album))
    content = io.BytesIO("Bücher/é.jpg\n~/b.jpg\n~a.jpg\nü.jpg\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    assert found("-") == [disk, f"{album}/b.jpg", "~a.jpg", "ü.jpg"]
    assert found("Bücher", "Bücher/é.jpg") == [disk]
