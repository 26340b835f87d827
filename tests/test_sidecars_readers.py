"""Sidecars in the hands of other programs: exiftool and exiv2 read them, and change them without loss.

Needs Debian's libimage-exiftool-perl and exiv2, and is run by hand (-m slow); .ci/run runs it where they are.
"""

import json
import shlex
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from test_sidecars import finish, make_five, photograph
from test_xmp import DARKTABLE, LIGHTROOM, QUICK, RDF, detect, is_ours, merged, sidecars

from eamb.inference.sidecars import embedded_stars
from eamb.inference.xmp import Document

pytestmark = pytest.mark.slow


def call(*words) -> str:
    assert shutil.which(words[0]), (
        "this test needs exiftool and exiv2: apt-get install libimage-exiftool-perl exiv2"
    )
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_exiftool(path) -> dict:
    [values] = json.loads(call("exiftool", "-json", "-G1", "-struct", "-n", path))
    return {key: value for key, value in values.items() if key.startswith("XMP-")}


def by_exiv2(path) -> dict[str, str]:
    lines = call("exiv2", "-Pkv", path).splitlines()
    return dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)


@pytest.fixture
def folder(tmp_path):
    """Five photographs; a and b have sidecars of darktable and Lightroom. All are picks."""
    paths = make_five(tmp_path)
    (tmp_path / "a.jpg.xmp").write_text(DARKTABLE.format(rating="0"))
    (tmp_path / "b.jpg.xmp").write_text(LIGHTROOM.format(rating="0"))
    for name in "ab":
        shutil.copy(tmp_path / f"{name}.jpg.xmp", tmp_path / f"{name} before.xmp")
    assert finish(paths, dict.fromkeys(paths, True)) == 0
    return tmp_path


def test_exiftool_and_exiv2_read_rating_label_and_pick(folder):
    labels = {"a": "Green", "b": "Rot & wichtig"}
    for name, stars in zip("abcde", (1, 2, 3, 3, 4), strict=True):
        values = by_exiftool(folder / f"{name}.jpg.xmp")
        assert values["XMP-xmp:Rating"] == stars and values.get("XMP-xmp:Label") == labels.get(name)
        assert (int(values["XMP-xmpDM:Pick"]), values["XMP-xmpDM:Good"]) == (1, True)
        values = by_exiv2(folder / f"{name}.jpg.xmp")
        assert values["Xmp.xmp.Rating"] == str(stars) and values.get("Xmp.xmp.Label") == labels.get(name)
        assert (values["Xmp.xmpDM.pick"], values["Xmp.xmpDM.good"]) == ("1", "true")
        # Those who ask for a rating of any namespace find one.
        assert call("exiftool", "-s3", "-n", "-Rating", folder / f"{name}.jpg.xmp").split() == [str(stars)]


@pytest.mark.parametrize("name", ["a", "b"])
def test_they_see_the_same_edits_as_before(name, folder):
    for read in (by_exiftool, by_exiv2):
        before, after = read(folder / f"{name} before.xmp"), read(folder / f"{name}.jpg.xmp")
        assert len(before) > 8
        ours = {key for key in after if "eamb" in key or key.lower().endswith(("rating", "pick", "good"))}
        assert {k: v for k, v in after.items() if k not in ours} == {
            k: v for k, v in before.items() if k not in ours
        }


@pytest.mark.parametrize("program", ["exiftool", "exiv2"])
def test_what_they_change_is_a_persons_and_what_they_keep_is_still_ours(program, folder):
    path = folder / "a.jpg.xmp"

    def change(tag, value):
        if program == "exiftool":
            call("exiftool", "-overwrite_original", f"-XMP-{tag}={value}", path)
        else:
            call("exiv2", f"-Mset Xmp.{tag.replace(':', '.')} {value}", path)

    change("dc:source", "mine")
    document = Document(path.read_bytes())
    assert [document.owner(decision) for decision in ("rating", "pick")] == ["us", "us"]
    assert document.stars() == 1
    change("xmp:Rating", "5")
    document = Document(path.read_bytes())
    assert [document.owner(decision) for decision in ("rating", "pick")] == ["a person", "us"]
    assert document.stars() == 5


def test_the_printed_line_copies_stars_into_jpegs_and_they_stay_ours(tmp_path, capsys):
    paths = make_five(tmp_path)
    assert finish(paths) == 0
    line = (
        capsys.readouterr().err.strip().rpartition("JPEGs: ")[2].replace("PHOTOS", shlex.quote(str(tmp_path)))
    )
    call(*shlex.split(line))
    assert [embedded_stars(path)[0] for path in paths] == [1, 2, 3, 3, 4]
    assert finish(paths[::-1]) == 0
    assert [Document((tmp_path / f"{name}.jpg.xmp").read_bytes()).stars() for name in "abcde"] == [
        4,
        3,
        3,
        2,
        1,
    ]


def test_a_rating_that_exiftool_wrote_into_a_file_is_read(tmp_path):
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        path = photograph(tmp_path / name)
        words = ["-XMP-xmp:Rating=3"] + ["-IFD0:Rating=2"] * (name != "a.webp")
        call("exiftool", "-overwrite_original", *words, path)
        assert embedded_stars(path) == [3, 2 if name != "a.webp" else None]


def is_plain(content: bytes) -> bool:
    """Whether exiftool reads it the same way each time: UTF-8, and every property at one place only.

    Of a property that stands twice, which XMP forbids, exiftool shows one in the order of Perl's hashes. It
    takes names without their case, and of different namespaces as equal.
    """
    if detect(content) != "utf-8":
        return False
    names = [
        tag.rpartition("}")[2].lower()
        for element in ElementTree.fromstring(content).iter()  # noqa: S314 - ours
        for tag in (element.tag, *element.attrib)
        if RDF not in tag and not tag.endswith("}lang") and not is_ours(tag)
    ]
    return len(names) == len({*names})


def test_exiftool_sees_the_same_in_random_sidecars(tmp_path):
    cases = []

    @settings(max_examples=200, **QUICK)
    @given(sidecars())
    def collect(sidecar):
        cases.extend([sidecar[1]] * is_plain(sidecar[1]))

    collect()
    assert len(cases) > 20
    for number, content in enumerate(cases):
        (tmp_path / f"{number:03d} a.xmp").write_bytes(content)
        (tmp_path / f"{number:03d} b.xmp").write_bytes(merged(content))
    values = json.loads(call("exiftool", "-json", "-G1", "-struct", "-n", "-XMP:all", tmp_path))
    seen = {each.pop("SourceFile"): each for each in values}
    for number in range(len(cases)):
        before, after = (seen[f"{tmp_path}/{number:03d} {letter}.xmp"] for letter in "ab")
        assert after["XMP-xmp:Rating"] == 4
        ours = {
            key
            for key in {**before, **after}
            if "eamb" in key or key.split(":")[1] in ("Rating", "Pick", "Good")
        }
        assert {k: v for k, v in after.items() if k not in ours} == {
            k: v for k, v in before.items() if k not in ours
        }
