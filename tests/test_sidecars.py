"""`--xmp` and `--learn-from-ratings`: which sidecar is whose, what is kept, and no photograph is touched."""

import os
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
from PIL import Image, PngImagePlugin
from scipy import stats
from test_picks import OrderScorer
from test_xmp import DARKTABLE, LIGHTROOM, everything_else

from eamb.inference import predict as predict_module
from eamb.inference import sidecars
from eamb.inference.scorer import Scored
from eamb.inference.sidecars import EXIF_RATING, embedded_stars, find_sidecars, read_limits, stars_of
from eamb.inference.xmp import Document
from eamb.network.outputs import Scale
from eamb.selection import picks
from main import main

PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)
PACKET += '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="{}"/></rdf:RDF>'
PACKET += "</x:xmpmeta>"


def photograph(path: Path, rating=None, exif_rating=None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if exif_rating is not None:
        exif[EXIF_RATING] = exif_rating
    xmp = {"xmp": PACKET.format(rating).encode()} if rating is not None else {}
    if xmp and path.suffix == ".png":
        xmp = {"pnginfo": PngImagePlugin.PngInfo()}
        xmp["pnginfo"].add_itxt("XML:com.adobe.xmp", PACKET.format(rating))
    Image.new("RGB", (8, 8)).save(path, exif=exif, **xmp)
    return str(path)


def finish(scores, picked=None, **options) -> int:
    """`scores` by path, or paths from the worst to the best."""
    scores = (
        scores if isinstance(scores, dict) else dict(zip(map(str, scores), range(len(scores)), strict=True))
    )
    given = dict.fromkeys(("xmp_names", "stars", "overwrite_ratings", "dry_run", "learn_from_ratings"))
    return sidecars.finish(Namespace(**{"xmp": True, **given, **options}), scores, picked)


def ratings(folder: Path) -> dict[str, float | None]:
    """The rating in each sidecar, by its name."""
    return {path.name: Document(path.read_bytes()).stars() for path in sorted(folder.glob("*.xmp"))}


def make_five(folder: Path, ending=".jpg") -> list[str]:
    return [photograph(folder / f"{name}{ending}") for name in "abcde"]


# ---- stars


def test_of_a_hundred_photographs_five_get_five_stars_and_so_on():
    scores = np.random.default_rng(0).permutation(100) / 7
    stars = stars_of(scores, read_limits("95,80,50,20"))
    assert [stars.count(number) for number in (5, 4, 3, 2, 1)] == [5, 15, 30, 30, 20]
    assert (np.argsort(stars, kind="stable")[-5:] == np.sort(np.argsort(scores)[-5:])).all()
    assert stars_of([7.0], (95, 80, 50, 20)) == [3]  # in the middle of itself
    assert stars_of([1, 2, 2, 2, 3], (95, 80, 50, 20)) == [1, 3, 3, 3, 4]
    assert stars_of([], (95, 80, 50, 20)) == []


def test_better_scores_never_get_fewer_stars_and_equal_ones_equally_many():
    chance = np.random.default_rng(0)
    for count in range(1, 40):
        scores = np.sort(chance.integers(0, 10, count))
        stars = stars_of(scores, (90, 60, 40.5, 10))
        assert stars == sorted(stars) and len({*zip(scores, stars, strict=True)}) == len({*scores})


NOT_FALLING = ["20,50,80,95", "95,80,80,20", "95,80,50", "95;80;50;20", "101,3,2,1", "nan,3,2,1", "9,8,7,-1"]


@pytest.mark.parametrize("text", [*NOT_FALLING, " "])
def test_percentiles_that_do_not_fall_end_the_run_at_once(text, tmp_path, capsys):
    for command in ("predict", "select"):
        assert main([command, str(tmp_path / "none.jpg"), "--xmp", "--stars", text]) == 2
        assert "--stars has four falling percentiles" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stars 90,80,50,20", "--stars is for sidecars; add --xmp"),
        ("--overwrite-ratings", "--overwrite-ratings is for sidecars; add --xmp"),
        ("--dry-run --learn-from-ratings", "--dry-run is for sidecars; add --xmp"),
        ("--xmp-names adobe", "--xmp-names is for sidecars; add --xmp"),
        ("--xmp --shard 1/2", "compare all photographs with each other; leave out --shard"),
        ("--learn-from-ratings --shard 1/2", "compare all photographs with each other; leave out --shard"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, said, tmp_path, capsys):
    assert main(["predict", str(tmp_path), *words.split()]) == 2
    assert said in capsys.readouterr().err


# ---- names


@pytest.mark.parametrize(
    ("names", "scored", "beside", "expected"),
    [
        ("darktable", "a.jpg", "", "a.jpg.xmp"),
        ("adobe", "a.jpg", "", "a.xmp"),
        ("darktable", "a.jpg", "a.jpg.XMP", "a.jpg.XMP"),
        ("adobe", "a.jpg", "a.XMP", "a.XMP"),
        ("darktable", "a.NEF a.jpg a.png", "", "a.NEF.xmp a.jpg.xmp a.png.xmp"),
        ("adobe", "a.NEF a.jpg", "", "a.xmp None"),  # the RAW has it
        ("adobe", "a.jpg", "a.NEF", "a.xmp"),  # and the JPEG stands for it
        ("adobe", "a.jpg", "a.NEF a.png", "a.xmp"),
        ("adobe", "a.jpg", "a.png", "a.jpg+a.png"),
        ("adobe", "a.jpg a.png", "a.NEF", "a.jpg+a.png a.jpg+a.png"),
        ("adobe", "a.NEF a.jpg", "a.dng", "a.NEF+a.dng a.NEF+a.dng"),
        ("adobe", "a.jpg", "a.txt ab.jpg A.png", "a.xmp"),
    ],
)
def test_each_photograph_has_its_sidecar(names, scored, beside, expected, tmp_path, monkeypatch):
    for name in (*scored.split(), *beside.split()):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for folder in ("", "./", f"{tmp_path}/", f"{tmp_path}//"):
        photographs = find_sidecars([folder + name for name in scored.split()], names)
        for each, wanted in zip(photographs, expected.split(), strict=True):
            if "+" in wanted:
                words = (
                    f"a.xmp would belong to {wanted.replace('+', ' and ')}; --xmp-names darktable gives each"
                )
                assert words in each.error
            else:
                assert not each.error and (each.sidecar and Path(each.sidecar).name) == (
                    None if wanted == "None" else wanted
                )


def test_two_jpeg_like_files_of_one_stem_are_an_error_each_and_the_others_get_their_stars(tmp_path, capsys):
    paths = [*make_five(tmp_path), photograph(tmp_path / "a.png")]
    assert finish(paths, xmp_names="adobe") == 2
    assert ratings(tmp_path) == {"b.xmp": 2, "c.xmp": 2, "d.xmp": 3, "e.xmp": 3}
    lines = capsys.readouterr().err.splitlines()
    assert sum("a.xmp would belong to a.jpg and a.png" in line for line in lines) == 2
    assert "sidecars: 4 written (4 new), 2 failed" in lines


def test_a_linked_sidecar_stays_a_link_and_one_of_two_photographs_is_an_error(tmp_path, capsys):
    paths = make_five(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/a.xmp").write_text(DARKTABLE.format(rating="0"))
    (tmp_path / "a.jpg.xmp").symlink_to(tmp_path / "kept/a.xmp")
    (tmp_path / "b.jpg.xmp").symlink_to(tmp_path / "kept/missing.xmp")
    for name in "de":
        (tmp_path / f"{name}.jpg.xmp").symlink_to(tmp_path / "kept/both.xmp")
    assert finish(paths) == 3
    assert (tmp_path / "a.jpg.xmp").is_symlink() and ratings(tmp_path / "kept") == {"a.xmp": 1}
    said = capsys.readouterr().err
    assert "d.jpg.xmp is a link and belongs to two photographs" in said
    assert "b.jpg.xmp is a folder, a broken link or another thing that is no file; repair it" in said


# ---- merging


def test_edits_of_other_programs_stay_and_a_second_run_changes_nothing(tmp_path, capsys):
    paths = make_five(tmp_path)
    (tmp_path / "a.jpg.xmp").write_text(DARKTABLE.format(rating="0"))
    (tmp_path / "b.jpg.xmp").write_text(LIGHTROOM.format(rating="0"))
    before, pictures = (small.contents(tmp_path) for _ in range(2))
    (tmp_path / "a.jpg.xmp").chmod(0o660)
    assert finish(paths) == 0
    assert ratings(tmp_path) == {
        f"{name}.jpg.xmp": stars for name, stars in zip("abcde", (1, 2, 3, 3, 4), strict=True)
    }
    for name in ("a.jpg.xmp", "b.jpg.xmp"):
        assert everything_else((tmp_path / name).read_bytes()) == everything_else(before[name])
    assert (tmp_path / "a.jpg.xmp").stat().st_mode & 0o777 == 0o660
    first, times = small.contents(tmp_path), [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    assert "exiftool -r -ext jpg -ext jpeg -tagsFromFile %d%f.%e.xmp" in capsys.readouterr().err
    assert finish(paths) == 0
    assert small.contents(tmp_path) == first and len(first) == 10
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())] == times
    assert capsys.readouterr().err == "sidecars: 0 written (0 new), 5 unchanged\n"
    assert {name: first[name] for name in pictures if name.endswith(".jpg")}.items() <= pictures.items()


def test_our_stars_follow_the_scores_and_a_persons_stay_unless_told_otherwise(tmp_path, capsys):
    a, b, c, *_ = paths = make_five(tmp_path)
    assert finish(paths) == 0
    rated = Path(f"{b}.xmp")
    rated.write_bytes(rated.read_bytes().replace(b'xmp:Rating="2"', b'xmp:Rating="5"'))
    Path(f"{c}.xmp").write_text(DARKTABLE.format(rating="-1"))
    capsys.readouterr()
    assert finish(paths[::-1]) == 0  # now a is the best
    assert ratings(tmp_path) == {
        "a.jpg.xmp": 4,
        "b.jpg.xmp": 5,
        "c.jpg.xmp": -1,
        "d.jpg.xmp": 2,
        "e.jpg.xmp": 1,
    }
    said = capsys.readouterr().err
    assert f"{b}: kept yours, 5 stars; the score gives 3 stars\n" in said
    assert f"{c}: kept yours, rejected; the score gives 3 stars\n" in said
    assert "sidecars: 3 written (0 new), 2 unchanged; ratings and flags of yours kept: 2" in said
    for _ in range(2):
        assert finish(paths[::-1], overwrite_ratings=True) == 0
    assert [*ratings(tmp_path).values()] == [4, 3, 3, 2, 1]
    assert capsys.readouterr().err.endswith("sidecars: 0 written (0 new), 5 unchanged\n")
    assert finish(paths) == 0  # what was overwritten is ours
    assert [*ratings(tmp_path).values()] == [1, 2, 3, 3, 4]
    assert a


@pytest.mark.parametrize("names", ["darktable", "adobe"])
def test_a_rating_in_the_file_or_in_the_other_programs_sidecar_is_a_persons_too(names, tmp_path, capsys):
    paths = [
        photograph(tmp_path / "a.jpg", rating=5),
        photograph(tmp_path / "b.jpg", exif_rating=4),
        photograph(tmp_path / "c.jpg", rating=0, exif_rating=0),
        photograph(tmp_path / "d.png"),
        photograph(tmp_path / "e.png"),
    ]
    (tmp_path / {"adobe": "d.png.xmp", "darktable": "d.xmp"}[names]).write_text(LIGHTROOM.format(rating=1))
    before = small.contents(tmp_path)
    assert finish(paths, xmp_names=names) == 0
    added = {"darktable": {"c.jpg.xmp", "e.png.xmp"}, "adobe": {"c.xmp", "e.xmp"}}[names]
    assert small.contents(tmp_path).keys() - before.keys() == added
    assert before.items() <= small.contents(tmp_path).items()
    assert "ratings and flags of yours kept: 3" in capsys.readouterr().err
    assert finish(paths, xmp_names=names, overwrite_ratings=True) == 0
    for _ in range(2):
        assert {path: small.contents(tmp_path)[path] for path in before} == before  # only our own changed
        assert finish(paths, xmp_names=names, overwrite_ratings=True) == 0
    assert "5 unchanged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("names", ["darktable", "adobe"])
@pytest.mark.parametrize("where", ["file", "sidecar"])
def test_a_jpeg_has_the_rating_of_its_raw_file_if_that_is_not_scored_itself(where, names, tmp_path):
    paths, raw = make_five(tmp_path), tmp_path / "a.NEF"
    tags = {700: PACKET.format(5).encode()} if where == "file" else {}
    Image.new("RGB", (8, 8)).save(raw, format="TIFF", tiffinfo=tags)
    if where == "sidecar":
        (tmp_path / "a.NEF.xmp").write_text(DARKTABLE.format(rating="5"))
    assert finish(paths, xmp_names=names) == 0
    ours = ratings(tmp_path).keys() - {"a.NEF.xmp"}
    assert ours == {f"{name}.jpg.xmp" if names == "darktable" else f"{name}.xmp" for name in "bcde"}
    assert finish([str(raw), *paths]) == 0
    assert (ratings(tmp_path).get("a.NEF.xmp"), ratings(tmp_path)["a.jpg.xmp"]) == (
        {"file": None, "sidecar": 5}[where],
        2,
    )


def test_our_rating_copied_into_the_file_does_not_become_a_persons(tmp_path):
    paths = make_five(tmp_path)
    assert finish(paths) == 0
    photograph(tmp_path / "e.jpg", rating=4, exif_rating=4)
    assert finish(paths[::-1]) == 0
    assert ratings(tmp_path)["e.jpg.xmp"] == 1


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_a_rating_in_a_file_is_read_from_its_xmp_and_its_exif(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    if ending == ".tif":  # Pillow writes either
        Image.new("RGB", (8, 8)).save(path, tiffinfo={700: PACKET.format(3).encode()})
        assert embedded_stars(str(path)) == [3, None]
        return
    photograph(path, rating=3, exif_rating=2)
    assert embedded_stars(str(path)) == [3, 2]
    photograph(path)
    assert embedded_stars(str(path)) == [None, None]
    photograph(path, "&evil;", exif_rating=2)
    assert embedded_stars(str(path)) == [2]
    path.write_bytes(path.read_bytes()[:30])
    assert not any(embedded_stars(str(path)))


# ---- what cannot be read or written


def test_what_cannot_be_written_is_named_and_the_run_goes_on(tmp_path, capsys):
    paths = [*make_five(tmp_path), photograph(tmp_path / "f.jpg"), photograph(tmp_path / "g.jpg")]
    (tmp_path / "a.jpg.xmp").write_text("no XML")
    (tmp_path / "b.jpg.xmp").mkdir()
    (tmp_path / "c.jpg.xmp").write_text(DARKTABLE.format(rating="0"))
    (tmp_path / "c.jpg.xmp").chmod(0o444)
    os.mkfifo(tmp_path / "d.jpg.xmp")
    (tmp_path / "e.jpg.xmp").symlink_to(tmp_path / "e.jpg")  # a photograph
    (tmp_path / "f.jpg.xmp").touch()
    before = small.contents(tmp_path)
    for dry_run in (True, False):
        assert finish(paths, dry_run=dry_run) == 6
        said = capsys.readouterr().err.splitlines()
        no_xml = "is no XML (Start tag expected, '<' not found, line 1, column 1); repair it or move it away"
        no_file = "is a folder, a broken link or another thing that is no file; repair it or move it away"
        reasons = [no_xml, no_file, "cannot be written: it is read-only", no_file, "is no XML", "is no XML"]
        for line, name, reason in zip(said, "abcdef", reasons, strict=False):
            assert line.startswith(f"xmp: {tmp_path}/{name}.jpg.xmp {reason}")
        assert said[6].startswith(f"sidecars: 1 {'to write' if dry_run else 'written'} (1 new), 6 failed")
    assert ratings(tmp_path / "none") == {}
    after = small.contents(tmp_path)
    assert after.keys() - before.keys() == {"g.jpg.xmp"} and before.items() <= after.items()


def test_a_folder_without_permission_is_named(tmp_path, capsys):
    paths = make_five(tmp_path / "photos")
    (tmp_path / "photos").chmod(0o555)
    with small.bound_by_permissions():
        assert finish(paths) == 5
    (tmp_path / "photos").chmod(0o755)
    said = capsys.readouterr().err
    assert re.search("a.jpg.xmp cannot be written: (its folder is read-only|Permission denied)", said)
    assert ratings(tmp_path / "photos") == {}


@pytest.mark.parametrize("moment", ["write_bytes", "replace"])
def test_an_interruption_leaves_the_old_sidecar_or_none(moment, tmp_path, monkeypatch):
    paths = make_five(tmp_path)
    (tmp_path / "a.jpg.xmp").write_text(DARKTABLE.format(rating="0"))
    before = small.contents(tmp_path)

    def interrupt(path, content):
        if moment == "write_bytes":
            with path.open("wb") as file:
                file.write(content[:100])
        raise KeyboardInterrupt

    for chosen in (paths[:1], paths[1:]):
        with monkeypatch.context() as patch:
            patch.setattr(Path, moment, interrupt)
            with pytest.raises(KeyboardInterrupt):
                finish(chosen)
        assert small.contents(tmp_path) == before


def test_a_dry_run_lists_what_would_be_written(tmp_path, capsys):
    paths = make_five(tmp_path)
    (tmp_path / "a.jpg.xmp").write_text(DARKTABLE.format(rating="0"))
    (tmp_path / "b.jpg.xmp").write_text(DARKTABLE.format(rating="3"))
    before = small.contents(tmp_path)
    assert finish(paths, dry_run=True) == 0
    assert small.contents(tmp_path) == before
    told = capsys.readouterr()
    listed = dict(line.split(": ") for line in told.out.replace(f"{tmp_path}/", "").splitlines())
    assert listed == {
        "a.jpg.xmp": "1 star (changed)",
        "c.jpg.xmp": "3 stars (new)",
        "d.jpg.xmp": "3 stars (new)",
        "e.jpg.xmp": "4 stars (new)",
    }
    assert "sidecars: 4 to write (3 new), 1 unchanged; ratings and flags of yours kept: 1" in told.err
    assert finish(paths) == 0
    written = {name for name, content in small.contents(tmp_path).items() if before.get(name) != content}
    assert written == listed.keys()


# ---- picks


def flags(folder: Path) -> dict[str, tuple]:
    documents = {path.name: Document(path.read_bytes()) for path in sorted(folder.glob("*.xmp"))}
    names = ("xmp:Rating", "xmpDM:pick", "xmpDM:good")
    return {name: tuple(next(iter(each.values(n)), None) for n in names) for name, each in documents.items()}


def test_only_picks_get_a_flag_and_stars_and_a_flag_of_ours_is_taken_back(tmp_path, capsys):
    a, b, c, d, e = paths = make_five(tmp_path)
    Path(f"{b}.xmp").write_text(
        LIGHTROOM.format(rating=0).replace('pick="0"', 'pick="-1"')
    )  # rejected by hand
    Path(f"{c}.xmp").write_text(LIGHTROOM.format(rating=0).replace('pick="0"', 'pick="1"'))
    assert finish(paths, dict.fromkeys(paths, False)) == 0
    assert set(flags(tmp_path).values()) == {
        ("0", "-1", None),
        ("0", "1", None),
    }  # nothing is written or rejected
    assert finish(paths, {a: True, b: True, c: False, d: False, e: False}) == 0
    kept = {"b.jpg.xmp": ("2", "-1", None), "c.jpg.xmp": ("0", "1", None)}
    assert flags(tmp_path) == {"a.jpg.xmp": ("1", "1", "true"), **kept}
    assert f"{b}: kept yours, flag; the score gives pick" in capsys.readouterr().err
    assert finish(paths, {a: False, b: False, c: False, d: False, e: True}) == 0
    assert flags(tmp_path) == {"a.jpg.xmp": ("1", None, None), **kept, "e.jpg.xmp": ("4", "1", "true")}
    assert finish(paths, dict.fromkeys(paths, True), overwrite_ratings=True) == 0
    assert {values[1:] for values in flags(tmp_path).values()} == {("1", "true")}


def test_select_flags_its_picks(tmp_path, monkeypatch, capsys):
    for name in ("a1.jpg", "a2.jpg", "a3.jpg"):
        photograph(tmp_path / "photos" / name)
    monkeypatch.setattr(picks, "Scorer", lambda *settings, **named: OrderScorer(emotions_trained=False))
    words = ["select", str(tmp_path / "photos"), "--output", str(tmp_path / "picks.csv"), "--force", "--xmp"]
    assert main([*words, "--dry-run"]) == 0 and flags(tmp_path / "photos") == {}
    assert capsys.readouterr().out == f"{tmp_path}/photos/a3.jpg.xmp: 4 stars, pick (new)\n"
    assert main([*words, "--xmp-names", "adobe"]) == 0
    assert flags(tmp_path / "photos") == {"a3.xmp": ("4", "1", "true")}
    (tmp_path / "photos/a3.xmp").write_text("damaged")
    assert main([*words, "--xmp-names", "adobe"]) == 1
    assert "a3.xmp is no XML" in capsys.readouterr().err and (tmp_path / "picks.csv").exists()


# ---- predict


class NameScorer:
    """Scores a photograph by the number that its name begins with."""

    scale, emotions, emotions_trained = Scale("score", 1.0, 5.0, 3.0), (), True
    network = SimpleNamespace(weights=SimpleNamespace(task="aesthetics", path="small"), precision="fp32")

    def score_all(self, paths, first=0, on_decoded=None):
        for path in list(paths)[first:]:
            if os.path.getsize(path):  # noqa: PTH202
                yield Scored(
                    path, score=float(re.match(r"\d+", Path(path).name)[0]), score_min=0, score_max=99
                )
            else:
                yield Scored(path, error="the file is empty")


@pytest.fixture
def predict(tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "Scorer", lambda *settings, **named: NameScorer())
    photos, output = tmp_path / "photos", tmp_path / "scores.csv"
    return lambda *words: main(["predict", str(photos), "--output", str(output), *words])


def test_predict_writes_stars_once_all_are_scored_and_a_resumed_run_for_all(tmp_path, predict):
    photos = tmp_path / "photos"
    for number in (1, 2, 3, 4):
        photograph(photos / f"{number}.jpg")
    (photos / "5.jpg").touch()  # cannot be scored, and does not count
    assert predict("--xmp", "--stars", "80,60,40,20") == 1
    expected = {"1.jpg.xmp": 1, "2.jpg.xmp": 2, "3.jpg.xmp": 4, "4.jpg.xmp": 5}
    assert ratings(photos) == expected
    for path in photos.glob("*.xmp"):
        path.unlink()
    rows = (tmp_path / "scores.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "scores.csv").write_bytes(b"".join(rows[:3]))
    assert predict("--xmp", "--stars", "80,60,40,20", "--resume") == 1
    assert ratings(photos) == expected
    (photos / "5.jpg").unlink()
    assert predict("--xmp", "--force") == 0
    (photos / "2.jpg.xmp").write_text("damaged")
    assert predict("--xmp", "--force") == 1


def test_stars_of_a_person_are_compared_with_the_scores(tmp_path, predict, capsys):
    photos = tmp_path / "photos"
    for number in range(1, 13):
        photograph(
            photos / f"{number}.jpg", rating=1 + number // 3 if number < 12 else -1
        )  # 1, 1, 2, 2, 2, ...
    photograph(photos / "13.jpg", rating=0)
    (photos / "14.jpg").touch()
    before = small.contents(photos)
    assert predict("--learn-from-ratings", "--force") == 1
    assert small.contents(photos) == before
    first, _, header, *lines = capsys.readouterr().out.splitlines()
    words = "12 of 13 photographs have stars of yours; SRCC of score and stars (.*) "
    correlation, low, high = map(
        float, re.fullmatch(words + r"\(95 % interval (.*) to (.*)\)", first).groups()
    )
    expected = stats.spearmanr(range(1, 13), [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, -1]).statistic
    assert correlation == pytest.approx(expected, abs=0.005) and low < correlation < high
    assert header.split() == ["stars", "score", "by", "stars", "by", "score", "path"]
    # The best by score was rejected; the others agree, but each is one place lower by score.
    assert lines[0].split() == ["-1", "12.00", "12", "1", str(photos / "12.jpg")] and len(lines) == 10


def test_stars_that_are_too_few_or_ours_are_not_compared(tmp_path, predict, capsys):
    photos = tmp_path / "photos"
    for number in range(10, 25):
        photograph(photos / f"{number}.jpg", rating=3 if number < 12 else None)
    for number in range(2):
        assert predict("--learn-from-ratings", "--xmp", "--force") == 0
        said = capsys.readouterr()
        few = "2 of 15 photographs have stars of yours; to compare, 10 are needed that don't all have equally"
        assert said.out == f"{few} many\n"
        assert f"sidecars: {0 if number else 13} written" in said.err
    for number in range(10, 25):
        photograph(photos / f"{number}.jpg", rating=-1)
    assert predict("--learn-from-ratings", "--force") == 0
    assert capsys.readouterr().out.startswith("15 of 15 photographs have stars of yours; to compare, 10 are")
    (photos / "12.jpg.xmp").write_text("damaged")
    assert predict("--learn-from-ratings", "--force") == 1
    told = capsys.readouterr()
    assert told.out.startswith("14 of 15") and "12.jpg.xmp is no XML" in told.err
