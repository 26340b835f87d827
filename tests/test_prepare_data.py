"""Prepared copies: a data root like its source, made once, resumed, and refused when it is out of date."""

import errno
import json
import os
import shutil
import signal
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image
from small import make_ava, make_emoset, make_fi, make_iae, make_para, read_json, write_table

from datasets import PictureSet, load_dataset
from eamb.readers.decoding import View, decode
from eamb.readers.prepared import MANIFEST
from eamb.readers.rated import DataOptions, describe
from scripts import prepare_data as script
from scripts.studies.colour import SPACES, rgb_profile

SIZE = 64


def photograph(path, seed, size=(90, 70), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(path, **options)


@pytest.fixture
def source(tmp_path):
    """A csv set of 12 pictures, in a folder with other files."""
    root = tmp_path / "source"
    names = [f"pics/{i}.{'png' if i % 2 else 'jpg'}" for i in range(12)]
    for seed, name in enumerate(names):
        photograph(root / name, seed)
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    write_table(
        root / "ratings.csv", [("path", "score", "split"), *zip(names, range(12), splits, strict=True)]
    )
    (root / "notes.txt").write_text("mine")
    return root


def prepare(root, output, *words, dataset="csv"):
    options = ["--dataset", dataset, "--data-root", root, "--output", output, "--workers", "0"]
    return script.main([*map(str, options), f"data.size={SIZE}", *words])


def manifest(output):
    return read_json(output / MANIFEST)


def mean_difference(copy, picture):
    return np.abs(decode(copy).astype(int) - decode(picture, SIZE)).mean()


def refused(root, size=SIZE, dataset="csv", **options):
    with pytest.raises(ValueError) as caught:
        PictureSet(load_dataset(dataset, root)["train"], size, **options)
    return str(caught.value)


def test_copies_are_a_data_root_with_the_same_splits_and_nearly_the_same_pixels(source, tmp_path, capsys):
    output = tmp_path / "copies"
    assert prepare(source, output) == 0
    assert "12 copies" in capsys.readouterr().out
    ours, theirs = load_dataset("csv", output), load_dataset("csv", source)
    for split in theirs:
        assert ours[split].ids == theirs[split].ids and ours[split].sha256 == theirs[split].sha256
        assert np.array_equal(ours[split].scores, theirs[split].scores)
        for index, path in enumerate(theirs[split].paths):
            copy = PictureSet(ours[split], SIZE)[index].image.permute(1, 2, 0).numpy()
            assert np.abs(copy.astype(int) - decode(path, SIZE)).max() < 12
            assert mean_difference(ours[split].paths[index], path) < 1.5
    assert not (output / "notes.txt").exists()
    assert "prepared copies of 64 px" in describe(ours["train"])


def test_the_manifest_names_hash_size_and_settings(source, tmp_path):
    prepare(source, tmp_path / "copies", "--quality", "80")
    known, path = manifest(tmp_path / "copies"), source / "pics/3.png"
    assert (known["size"], known["quality"], known["exif"], known["complete"]) == (SIZE, 80, True, True)
    assert set(known["labels"]) == {"ratings.csv"} and len(known["pictures"]) == 12
    expected = {"sha256": script.file_hash(path), "bytes": path.stat().st_size, "error": "", "note": ""}
    assert known["pictures"]["pics/3.png"] == expected | {"mtime_ns": path.stat().st_mtime_ns}


def test_processes_write_what_one_writes_and_pictures_are_turned_once(source, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(source / "pics/0.jpg", 0, exif=exif)
    prepare(source, tmp_path / "one")
    prepare(source, tmp_path / "many", "--workers", "2")
    for path in (tmp_path / "one/pics").iterdir():
        assert path.read_bytes() == (tmp_path / "many/pics" / path.name).read_bytes()
    assert mean_difference(tmp_path / "one/pics/0.jpg", source / "pics/0.jpg") < 1.5


def test_a_process_that_is_killed_ends_the_script_and_the_next_run_goes_on(
    source, tmp_path, monkeypatch, capsys
):
    def die(*words, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(script, "decode", die)  # in the processes, which are forked
        assert prepare(source, tmp_path / "copies", "--workers", "2") == 2
    assert "copies: one of --workers 2 processes was ended, perhaps for want" in capsys.readouterr().err
    assert not manifest(tmp_path / "copies")["complete"]
    assert prepare(source, tmp_path / "copies") == 0


SETS = {"ava": make_ava, "iae": make_iae, "fi": make_fi, "emoset": make_emoset}
SETS["para"] = partial(make_para, voted=range(0, 60, 2))


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read_from_its_copies_as_from_itself(tmp_path, name):
    root, output = SETS[name](tmp_path / "root"), tmp_path / "copies"
    if name == "fi" and sys.platform.startswith("linux"):
        (root / "awe/1.jpg").rename(root / "awe/\udcff.jpg")  # no UTF-8
    assert prepare(root, output, dataset=name) == 0
    options = DataOptions(target="distribution" if name == "para" else "auto")
    ours, theirs = (load_dataset(name, folder, options=options) for folder in (output, root))
    for split in theirs:
        assert ours[split].ids == theirs[split].ids
        assert ours[split].labels_sha256 == theirs[split].labels_sha256
        names = [os.path.relpath(path, root) for path in theirs[split].paths]
        assert [os.path.relpath(path, output) for path in ours[split].paths] == names
        assert {decode(path).shape for path in ours[split].paths} == {(SIZE, SIZE, 3)}


def test_twins_are_those_of_the_sources(tmp_path):
    # Files that differ in nothing one can see: their copies are equal, and must not be taken for twins.
    root = make_fi(tmp_path / "root", count=2)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        photograph(path, 0, comment=str(number % 9))
    prepare(root, tmp_path / "copies", dataset="fi")
    options = DataOptions(validation=0.2)
    ours, theirs = (load_dataset("fi", place, options=options) for place in (tmp_path / "copies", root))
    assert {split: rated.ids for split, rated in ours.items()} == {k: v.ids for k, v in theirs.items()}


def test_a_broken_picture_costs_one_row(source, tmp_path, capsys):
    (source / "pics/4.jpg").write_text("<html>")
    assert prepare(source, tmp_path / "copies") == 1
    assert "no copy of pics/4.jpg: a web page" in capsys.readouterr().err
    known = manifest(tmp_path / "copies")
    assert "web page" in known["pictures"]["pics/4.jpg"]["error"] and known["complete"]
    loaded = load_dataset("csv", tmp_path / "copies")["train"]
    assert len(loaded) == 7 and [row.id for row in loaded.left_out] == ["pics/4.jpg"]


@pytest.fixture
def copied(monkeypatch):
    """Names of the pictures that are decoded."""
    names = []
    whole = script.decode
    monkeypatch.setattr(
        script, "decode", lambda path, *rest, **words: names.append(path[-5:]) or whole(path, *rest, **words)
    )
    return names


def test_only_what_changed_is_made_again(source, tmp_path, copied):
    output = tmp_path / "copies"
    prepare(source, output)
    copied.clear()
    photograph(source / "pics/3.png", 99)
    os.utime(source / "pics/6.jpg")  # touched
    (output / "pics/8.jpg").unlink()
    (source / "ratings.csv").write_text((source / "ratings.csv").read_text() + "\n")
    said = refused(output)
    assert f"{output} holds copies of {source}, and 3 files are not copied or have changed there" in said
    assert f"python scripts/prepare_data.py --dataset csv --data-root {source} --output {output}" in said
    assert prepare(source, output) == 0
    assert sorted(copied) == ["3.png", "6.jpg", "8.jpg"]
    assert mean_difference(output / "pics/3.png", source / "pics/3.png") < 1.5
    assert (output / "ratings.csv").read_text() == (source / "ratings.csv").read_text()
    assert len(load_dataset("csv", output)["train"]) == 8
    copied.clear()
    (output / "pics/.1.png.77.tmp").touch()  # of a run that was killed
    assert prepare(source, output) == 0 and not copied and not list(output.rglob("*.tmp"))


def test_copies_are_of_what_the_set_has_and_of_nothing_else(tmp_path):
    root, output = make_fi(tmp_path / "root", count=2), tmp_path / "copies"
    prepare(root, output, dataset="fi")
    (root / "awe/0.jpg").unlink()
    prepare(root, output, dataset="fi")
    assert not (output / "awe/0.jpg").exists() and (output / "awe/1.jpg").exists()
    assert "awe/0.jpg" not in manifest(output)["pictures"]
    photograph(output / "awe/mine.jpg", 5)
    words = "1 files are not copied or have changed there since, first 'awe/mine.jpg'"
    assert words in refused(output, dataset="fi")


def test_a_full_disk_keeps_what_is_complete_and_the_same_command_goes_on(
    source, tmp_path, monkeypatch, capsys, copied
):
    """The disk is full from a picture on; unfinished copies that are removed make room for the manifest."""
    output, written, filled = tmp_path / "copies", script.written_whole, []

    def full(path):
        if path.name == "5.png":
            filled.append(path)
        if filled and (path.name != MANIFEST or list(output.rglob("*.tmp"))):
            (path.parent / ".another.77.tmp").touch()  # what another process had begun
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return written(path)

    monkeypatch.setattr(script, "written_whole", full)
    assert prepare(source, output) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "No space left on device; the pictures that are done are kept. Run the same command" in said
    assert len(manifest(output)["pictures"]) == 5
    assert "only part of its copies; to go on: python scripts/prepare_data.py --dataset" in refused(output)
    monkeypatch.setattr(script, "written_whole", written)
    copied.clear()
    assert prepare(source, output) == 0
    assert len(copied) == 7 and len(load_dataset("csv", output)["train"]) == 8


def test_copies_are_refused_for_another_size_or_exif(source, tmp_path):
    output = tmp_path / "copies"
    prepare(source, output)
    said = f"datasets: {output} holds copies made with data.size=64 data.exif=true data.icc=true, and data"
    assert refused(output, 96).startswith(f"{said}.size=96 data.exif=true data.icc=true is asked")
    assert f"--output {output} --quality 95 data.size=64" in refused(output, 96)
    assert "data.size=64 data.exif=false data.icc=true is asked" in refused(output, exif=False)
    assert "data.size=None" in refused(output, None)
    assert "data.size=96 data.exif=true data.icc=true is asked" in refused(
        output, others=(View(SIZE), View(96))
    )


def test_copies_say_whether_profiles_were_converted_and_older_ones_count_as_not(source, tmp_path, capsys):
    for name, profile in {"1": rgb_profile(SPACES["prophoto"]), "3": b"none"}.items():
        with Image.open(source / f"pics/{name}.png") as picture:
            picture.save(source / f"pics/{name}.png", icc_profile=profile)
    output, picture = tmp_path / "copies", source / "pics/1.png"
    assert prepare(source, output) == 0
    assert "1 pictures have a defect and were copied all the same; notes in" in capsys.readouterr().out
    known = manifest(output)
    assert known["pictures"]["pics/3.png"]["note"] == "its colour profile is ignored: it is damaged"
    assert known["icc"] and mean_difference(output / "pics/1.png", picture) < 1.5
    assert np.abs(decode(picture, SIZE) - decode(picture, SIZE, icc=False).astype(float)).mean() > 10
    said = refused(output, icc=False)
    assert "data.exif=true data.icc=false is asked for; give data.icc=true, use the pictures" in said

    del known["icc"]  # as written before
    for entry in known["pictures"].values():
        del entry["note"]
    (output / MANIFEST).write_text(json.dumps(known))
    said = refused(output)
    assert "made with data.size=64 data.exif=true data.icc=false, and data.size=64 data.exif=true" in said
    assert "data.icc=true is asked for; give data.icc=false, use" in said
    assert said.endswith("--quality 95 data.size=64 data.icc=false")
    assert len(PictureSet(load_dataset("csv", output)["train"], SIZE, icc=False)) == 8
    assert prepare(source, output) == 2
    assert "copies with icc False, and True is asked for; choose another" in capsys.readouterr().err
    assert prepare(source, output, "data.icc=false") == 0  # goes on


def test_copies_outlive_their_sources_and_a_damaged_manifest_is_named(source, tmp_path):
    prepare(source, tmp_path / "copies")
    for remove in ((source / "pics/2.jpg").unlink, lambda: shutil.rmtree(source)):
        remove()
        assert len(load_dataset("csv", tmp_path / "copies")["train"]) == 8
    (tmp_path / "copies" / MANIFEST).write_text('{"size": 3}')
    assert "prepared.json was not made by scripts/prepare_data.py" in refused(tmp_path / "copies")


def test_other_folders_and_other_copies_are_not_overwritten(source, tmp_path, capsys):
    copies, mine = tmp_path / "copies", tmp_path / "mine"
    mine.mkdir()
    (mine / "a.txt").touch()
    prepare(source, copies)
    outside = tmp_path / "outside"
    write_table(
        outside / "r.csv", [("path", "score"), ("../source/pics/1.png", 1), (source / "pics/3.png", 2)]
    )
    for root, output, words, expected in [
        (source, mine, [], "holds other files"),
        (source, source, [], "must lie beside each other"),
        (source, source / "copies", [], "must lie beside each other"),
        (source, tmp_path, [], "must lie beside each other"),
        (copies, tmp_path / "again", [], "must hold the pictures themselves, not copies"),
        (source, copies, ["data.size=96"], "copies with size 64, and 96 is asked for"),
        (source, copies, ["--quality", "50"], "quality 95, and 50"),
        (outside, tmp_path / "again", ["data.validation=0.3"], f"png lies outside {outside}"),
    ]:
        assert prepare(root, output, *words) == 2
        assert expected in capsys.readouterr().err
