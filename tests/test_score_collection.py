"""scripts/score_collection.py: a row for each picture, as `predict` has it; interrupted runs go on."""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
from lively import blotches, direct_score
from small import ROOT

from eamb.inference import collection
from eamb.inference.collection import (
    BadShardError,
    Picture,
    Shard,
    decode_pictures,
    find_source,
    read_shard,
)
from eamb.inference.row_filter import parse_filter
from eamb.inference.scored_shards import Output, Scoring, ShardScorer, read_weights
from eamb.readers.decoding import View
from eamb.weights.checkpoint import export_folder, load_weights
from main import main
from scripts import collection_speed, score_collection

NAMES = ["a.png", "b.jpg", "c.webp", "d.png", "e.jpg"]


def encoded(name: str, seed: int) -> bytes:
    file = io.BytesIO()
    blotches(seed).save(file, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.rpartition(".")[2]])
    return file.getvalue()


CONTENTS = {name: encoded(name, seed) for seed, name in enumerate(NAMES)} | {"x.jpg": b"<html>not found"}


def write_tar(path, contents=CONTENTS):
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            for member, data in ((name, content), (f"{name[:-4]}.json", b"{}"), (f"._{name}", b"Mac")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (root / ("sub" if name > "c" else "") / name).write_bytes(content)
    (root / ".hidden.jpg").write_bytes(b"")
    (root / "text.txt").touch()
    return root


@pytest.fixture(scope="module")
def scoring(lively_weights):
    options = {"device": "cpu", "batch_size": 2}
    return Scoring({"0.safetensors": lively_weights.read_bytes()}, options, threads=2, emotions=True)


@pytest.fixture(scope="module")
def shard_scorer(scoring):
    return ShardScorer(scoring)


def pictures(shard):
    return [(picture.name, picture.content) for picture in read_shard(shard)]


def refused(words, call, *arguments, error=ValueError, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert words in text and "\n" not in text
    return text


# ---- sources


def test_a_folder_is_cut_into_shards_of_sorted_files(folder):
    source = find_source(str(folder), shard_size=4)
    found = [(shard.name, [Path(file).name for file in shard.files]) for shard in source.shards]
    assert found == [("000000", NAMES[:2] + NAMES[2:4]), ("000001", ["e.jpg", "x.jpg"])]
    assert [picture.place for picture in read_shard(source.shards[1])] == [*source.shards[1].files]
    before = source.description
    (folder / "z.png").touch()
    after = find_source(str(folder), shard_size=4).description
    assert {name for name in after if after[name] != before[name]} == {"pictures", "names"}


def test_a_tar_gives_its_pictures_without_hidden_ones(tmp_path):
    (tmp_path / "t" / "sub").mkdir(parents=True)
    for name in ("0.tar", "sub/1.tar"):
        write_tar(tmp_path / "t" / name)
    source = find_source(str(tmp_path / "t"))
    assert [shard.name for shard in source.shards] == ["0.tar", "sub/1.tar"]
    for shard in source.shards:
        assert pictures(shard) == [*CONTENTS.items()]
    [single] = find_source(str(tmp_path / "t" / "0.tar")).shards
    assert single.name == "0.tar"
    [matched] = find_source(str(tmp_path / "t" / "s*" / "*.tar")).shards
    assert (matched.name, matched.place) == ("sub/1.tar", source.shards[1].place)


@pytest.mark.parametrize("cut", ["content", "half a header", "header", "zeros"])
def test_a_tar_that_is_cut_or_damaged_is_a_bad_shard_wherever_that_is(cut, tmp_path):
    # Python's tarfile takes a missing or damaged header for the end.
    whole = write_tar(tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        start = tar.getmembers()[4].offset
        end = tar.getmembers()[-1].offset_data + 512
    damaged = {
        "content": whole[:3000],
        "half a header": whole[: start + 100],
        "header": whole[:start] + b"?" * 512 + whole[start + 512 :],
        "zeros": whole[:end],  # the members are all there, only the tar's end is not
    }
    (tmp_path / "cut.tar").write_bytes(damaged[cut])
    refused(
        "is cut off or damaged", pictures, Shard("cut.tar", str(tmp_path / "cut.tar")), error=BadShardError
    )


def test_parquet_has_bytes_or_structs_or_paths(folder, tmp_path):
    names, contents = [*CONTENTS], [*CONTENTS.values()]
    structs = [{"bytes": content, "path": name} for name, content in CONTENTS.items()]
    places = ["a.png", "sub/d.png", None]
    files = {
        "bytes": (contents, [*zip("012345", contents, strict=True)]),
        "struct": (structs, [*zip(names, contents, strict=True)]),
    }
    for name, (column, expected) in files.items():
        [shard] = find_source(str(write_parquet(tmp_path / f"{name}.parquet", image=column))).shards
        assert pictures(shard) == expected
    write_parquet(folder / "paths.parquet", file=places, key=[7, 8, 9])
    [shard] = find_source(str(folder / "*.parquet"), column="file", id_column="key").shards
    read = [*read_shard(shard)]
    assert [picture.name for picture in read] == ["7", "8", "9"]
    assert [picture.place for picture in read] == [str(folder / "a.png"), str(folder / "sub/d.png"), ""]
    assert read[2].content == b""
    decoded = decode_pictures(read, [View(32)], True)
    assert decoded.reasons == [None, None, "the file is empty"]


def test_a_parquet_file_without_the_column_says_what_it_has(tmp_path):
    write_parquet(tmp_path / "p.parquet", jpg=[b""], caption=["x"], width=[1])
    text = refused("has no column 'image'", find_source, str(tmp_path))
    assert "--column; it has jpg (binary), caption (string), width (int64)" in text
    refused("has no column 'url'", find_source, str(tmp_path), column="jpg", id_column="url")
    refused("has no pictures in 'width'", find_source, str(tmp_path), column="width")
    content = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "p.parquet").write_bytes(content[:-20])  # not its pictures' fault: a bad shard
    [shard] = find_source(str(tmp_path)).shards
    refused("is cut off or damaged", pictures, shard, error=BadShardError)


def test_a_source_without_pictures_or_with_several_kinds_is_refused(tmp_path):
    (tmp_path / "note.txt").touch()
    refused("holds no tar files, Parquet files or pictures", find_source, str(tmp_path))
    refused("no such file or folder", find_source, str(tmp_path / "no"), error=FileNotFoundError)
    write_tar(tmp_path / "0.tar")
    write_parquet(tmp_path / "0.parquet", caption=["x"])  # as img2dataset writes them
    refused("holds 1 tar and 1 parquet files", find_source, str(tmp_path))
    assert [shard.name for shard in find_source(f"{tmp_path}/*.tar").shards] == ["0.tar"]
    write_tar(tmp_path / "0.tar", {})
    refused("holds no picture", pictures, Shard("0.tar", str(tmp_path / "0.tar")), error=BadShardError)
    refused("cannot be opened (Protocol not known: nowhere", find_source, "nowhere://bucket")
    refused("--shard-size is at least 1", find_source, str(tmp_path), 0)


def test_a_bucket_gives_the_same_as_a_folder(folder, tmp_path):
    bucket = fsspec.filesystem("memory")
    bucket.put(str(folder), "/bucket/pictures", recursive=True)
    bucket.pipe_file("/bucket/tars/0.tar", write_tar(tmp_path / "0.tar").read_bytes())
    here = [read_shard(shard) for shard in find_source(str(folder), 4).shards]
    there = [read_shard(shard) for shard in find_source("memory://bucket/pictures", 4).shards]
    for ours, theirs in zip(here, there, strict=True):
        ours, theirs = [*ours], [*theirs]
        assert [picture.place for picture in theirs] == [
            f"memory://{picture.place.replace(str(folder), '/bucket/pictures')}" for picture in ours
        ]
        decoded = [decode_pictures(each, [View(32)], False) for each in (ours, theirs)]
        assert decoded[0].reasons == decoded[1].reasons
        assert np.array_equal(decoded[0].images, decoded[1].images)
    for place in ("memory://bucket/tars/*.tar", "memory://bucket/tars/", "memory://bucket/tars/0.tar"):
        [shard] = find_source(place).shards
        assert (shard.name, pictures(shard)) == ("0.tar", [*CONTENTS.items()])
    assert find_source("memory://bucket/tars/") == find_source("memory://bucket/tars")
    gone = decode_pictures([Picture("gone.jpg", "memory://bucket/gone.jpg")], [View(32)], False)
    assert gone.reasons == ["there is no such file"]


def test_whatever_a_bucket_raises_costs_a_picture_or_a_shard(tmp_path, monkeypatch):
    places = ["nowhere://bucket/a.jpg", "memory://bucket/gone.jpg"]
    [shard] = find_source(str(write_parquet(tmp_path / "p.parquet", image=places))).shards
    read = [*read_shard(shard)]
    unknown, gone = decode_pictures(read, [View(32)], False).reasons
    assert unknown.startswith("cannot be read (nowhere://bucket/a.jpg cannot be opened (Protocol not known")
    assert gone == "there is no such file"

    def fails(place):
        raise RuntimeError("no answer\nof the store")

    monkeypatch.setattr(collection, "opened", fails)
    assert decode_pictures(read, [View(32)], False).reasons == ["cannot be read (no answer of the store)"] * 2
    refused("cannot be read (no answer of the store)", pictures, shard, error=BadShardError)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "find", lambda *_: fails(""))
    for call in (find_source, lambda place: Output(place, {})):
        refused("memory://b cannot be listed (no answer of the store)", call, "memory://b", error=OSError)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, capsys):
    scan = os.scandir
    for name in ("open/0.tar", "shut/1.tar"):
        (tmp_path / name).parent.mkdir()
        write_tar(tmp_path / name)

    def scandir(place):
        if str(place).endswith("shut"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [shard.name for shard in find_source(str(tmp_path)).shards] == ["open/0.tar"]
    assert capsys.readouterr().err == f"folder {tmp_path}/shut cannot be listed (Permission denied)\n"


# ---- scores


def rows_of(result):
    return pq.read_table(io.BytesIO(result["file"])).to_pylist()


def test_each_picture_of_a_shard_has_its_score_or_its_reason(shard_scorer, lively_model, folder, tmp_path):
    tar = Shard("0.tar", str(write_tar(tmp_path / "0.tar")))
    files = find_source(str(folder)).shards[0]
    for shard in (tar, files):
        result = shard_scorer({"shard": pickle.dumps(shard)})
        counts = {name: result[name] for name in ("name", "pictures", "failed", "noted", "error")}
        assert counts == {"name": shard.name, "pictures": 6, "failed": 1, "noted": 0, "error": ""}
        *rows, broken = rows_of(result)
        direct = [direct_score(lively_model, file) for file in files.files[:-1]]
        assert [row["score"] for row in rows] == pytest.approx(direct, abs=4e-5)
        assert {row["shard"] for row in rows} == {shard.name}
        assert all(row["emotion_awe"] > 0 and row["emotion"] and row["error"] is None for row in rows)
        assert broken["score"] is None and "web page" in broken["error"]
        assert Path(broken["path"]).name == "x.jpg"


def test_weights_travel_as_files_and_as_folders_of_a_hub(lively_weights, tmp_path):
    export_folder(tmp_path / "hub", load_weights(lively_weights))
    for place in (tmp_path / "hub", tmp_path / "hub" / "model.safetensors"):
        files = read_weights([lively_weights, place])
        assert [*files] == ["0.safetensors", "1/config.json", "1/model.safetensors"]
    first, second = Scoring(files, {"device": "cpu"}).scorer().network.networks
    assert small.same(first.weights.tensors, second.weights.tensors)


def test_decoding_elsewhere_gives_the_same(shard_scorer, scoring, tmp_path):
    elsewhere = ShardScorer(scoring, decode_pictures)
    row = {"shard": pickle.dumps(Shard("0.tar", str(write_tar(tmp_path / "0.tar"))))}
    assert elsewhere(row) == shard_scorer(row)


def test_a_bad_shard_costs_only_itself(shard_scorer, tmp_path):
    write_tar(tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:5000])
    result = shard_scorer({"shard": pickle.dumps(Shard("0.tar", str(tmp_path / "0.tar")))})
    assert result["error"].startswith("is cut off or damaged") and result["file"] == b""


# ---- output


@pytest.mark.parametrize("place", ["", "memory://"])
def test_an_output_keeps_what_is_whole_and_refuses_what_is_of_others(place, tmp_path):
    place, shards = f"{place}{tmp_path}/out/", [Shard("a/0.tar", "x"), Shard("1.parquet", "x")]
    output = Output(place, {"source": "here", "weights": ["1"]})
    assert output.whole(shards) == set()
    output.write_shard("a/0.tar", b"rows")
    assert Output(place, {"source": "here", "weights": ["1"]}).whole(shards) == {"a/0.tar"}
    assert output.names("") == {"collection.json", "scores/a/0.tar.parquet"}
    for other in ({"source": "there", "weights": ["1"]}, {"source": "here", "weights": ["2"]}):
        text = refused("choose another output", Output, place, other)
        assert json.dumps(other["source"]) in text or '["2"]' in text
    assert output.names("") == {"collection.json", "scores/a/0.tar.parquet"}


def test_weights_that_do_not_work_are_named_and_nothing_is_written(folder, tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(b"?")
    assert (
        score_collection.main([str(folder), str(tmp_path / "out"), "--checkpoint", f"{tmp_path}/w.pt"]) == 2
    )
    assert f"{tmp_path}/w.pt is not a weights file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_inside_its_source_is_refused(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for source, output in ((f"{folder}/", f"{folder}/out"), (".", "out"), (folder, "out"), (".", ".")):
        assert score_collection.main([str(source), output]) == 2
        assert "lies in" in capsys.readouterr().err and not (folder / "out").exists()
    assert not collection.lies_in("../pictures out", ".")
    assert collection.lies_in("s3://bucket/a/out", "s3://bucket/a/")


def test_a_folder_with_other_things_is_no_output(tmp_path):
    (tmp_path / "thesis.doc").touch()
    refused("is not empty", Output, str(tmp_path), {}, error=FileExistsError)
    for content in ("", "{", "[1]", "3"):
        (tmp_path / "collection.json").write_text(content)
        refused("collection.json is damaged or not of this program; choose", Output, str(tmp_path), {})


# ---- filter

SCHEMA = pa.schema(
    [("shard", pa.string()), ("path", pa.string()), ("score", pa.float64()), ("emotion", pa.string())]
)
ROWS = [
    {"shard": "s", "path": "a", "score": 3.0, "emotion": "awe"},
    {"shard": "s", "path": "b", "score": 4.0, "emotion": "disgust"},
    {"shard": "s", "path": "c", "score": 4.5, "emotion": None},
    {"shard": "s", "path": "d", "score": None, "emotion": None},  # could not be decoded
]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("score > 3.5", "bc"),
        ("score > 3.5 and emotion != 'disgust'", ""),
        ("not score > 3.5", "a"),
        ("emotion == 'awe' or score >= 4.5", "ac"),
        ("3 <= score < 4.5", "ab"),
        ("not (emotion == 'awe' or score < 4)", "b"),
        ("score != -1 and path != 'a'", "bc"),
        ("path == 'd'", ""),
        ("shard < path", ""),
    ],
)
def test_a_filter_keeps_rows_for_which_it_is_true(text, kept, tmp_path):
    output = Output(str(tmp_path / "out"), {})
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), file)
    output.write_shard("s", file.getvalue())
    assert output.write_kept(["s"], parse_filter(text, SCHEMA), SCHEMA) == len(kept)
    table = pq.read_table(tmp_path / "out" / "kept.parquet")
    assert table.to_pylist() == [{"shard": "s", "path": letter} for letter in kept]


def test_scores_that_are_damaged_since_are_named(tmp_path):
    output = Output(str(tmp_path / "out"), {})
    output.write_shard("s", b"PAR1")
    text = refused(
        "delete it and run again", output.write_kept, ["s"], parse_filter("score > 1", SCHEMA), SCHEMA
    )
    assert f"{tmp_path}/out/scores/s.parquet cannot be read" in text
    assert not (tmp_path / "out" / "kept.parquet").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rating > 3", "no column 'rating'; the columns are shard, path, score, emotion"),
        ("__import__('os').system('touch pwned')", "is not a comparison"),
        ("score > len('abc')", "'len('abc')' is not allowed"),
        ("score.__class__ == 1", "'score.__class__' is not allowed"),
        ("(lambda: 1)() > score", "is not allowed"),
        ("score + 1 > 3", "'score + 1' is not allowed"),
        ("score in (1, 2)", "is not a comparison"),
        ("score > True", "'True' is not allowed"),
        ("score", "'score' is not a comparison"),
        ("score > 'high'", "compares a number with a text"),
        ("score >", "invalid syntax"),
        ("score = 3", "invalid syntax"),
        ("", "invalid syntax"),
        ("not " * 5000 + "score > 1", "--filter"),
        ("score > 1" + "0" * 400, "too large"),
    ],
)
def test_a_filter_that_is_no_comparison_of_columns_is_refused(text, words):
    assert refused(words, parse_filter, text, SCHEMA).startswith("filter: --filter")


# ---- the command


def test_without_ray_one_sentence_says_what_to_install(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score_collection, "find_spec", lambda name: None if name == "ray" else name)
    assert score_collection.main([str(folder), str(tmp_path / "out")]) == 2
    assert "ray is not installed; pip install -r requirements-cluster.txt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_page_of_scale_gets_the_figures_between_its_markers(tmp_path):
    rates = {"decode": 500.0, "decode_800x600": 100.0, "network": 20.0, "bytes_800x600": 125_000}
    row = {"seconds": 200.0, "processor": 400.0, "others": 0.0, "memory": [900.0, 900.0, 900.0, 900.0]}
    rows = {"predict": row, "score_collection": row | {"seconds": 220.0, "others": 20.0}}
    compared = {"count": 20000, "rounds": 1, "rows": rows, "difference": 0.0}
    machine = {"processor": "a CPU", "cores": 2, "ray": "ray 2.60.0"}
    model = collection_speed.model(rates)
    assert [rate for _, rate in model] == [64 * 16 * 100, 64 * 31220 / 17, 25e9 / 125_000]
    report = {"machine": machine, "rates": rates, "model": model, "compared": compared}
    small.write_json(tmp_path / "speed.json", report)
    page = shutil.copy(ROOT / "docs" / "scale.md", tmp_path)
    options = ["--tables", str(tmp_path / "speed.json"), "--readme", str(page)]
    assert collection_speed.main(options) == collection_speed.main(options) == 0
    text = Path(page).read_text(encoding="utf-8")
    for line in (
        "| score_collection | 90.9 | 220 | 400 | 20 | 900, 900, 900, 900 |",
        "| difference | | +10% | +0% | | |",
        "| decoding, 16 cores a GPU | 102,400 | 0.27 | 17 |",  # 1e8 / 102,400 / 3600 h
    ):
        assert text.splitlines().count(line) == 1


# ---- on Ray, whose start alone takes ten seconds


@pytest.fixture(scope="module")
def ray_started():
    """Ray on this machine, with a GPU that it only believes to be there; commands use it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: 1)
        from eamb.inference import cluster

        with cluster.started(None):
            yield cluster


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """12 tars of 6 pictures each."""
    folder = tmp_path_factory.mktemp("tars")
    for number in range(12):
        contents = {f"{number}_{i}.jpg": encoded("a.jpg", 10 * number + i) for i in range(6)}
        write_tar(folder / f"{number:02d}.tar", contents)
    return folder


def call(source, output, weights, *options):
    words = [source, output, "--checkpoint", weights, "--batch-size", 2, *options]
    return score_collection.main([str(word) for word in words])


def workers(kind="ShardActor"):
    """The processes of this one's Ray that run the network, or a function of that name."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if kind in " ".join(each.cmdline())]


@pytest.mark.slow
def test_a_folder_is_scored_as_by_predict(ray_started, folder, lively_weights, tmp_path, capsys):
    words = ["predict", folder, "--checkpoint", lively_weights, "--output", tmp_path / "s.csv", "--emotions"]
    assert main([str(word) for word in words]) == 1
    theirs = pd.read_csv(tmp_path / "s.csv")
    middle = theirs["score"].median()
    options = ["--shard-size", 4, "--emotions", "--filter", f"score > {middle}"]
    assert call(folder, tmp_path / "out", lively_weights, *options) == 1
    assert "5 of 6 pictures scored, " in capsys.readouterr().err
    ours = pd.read_parquet(tmp_path / "out" / "scores")
    assert [*ours.columns] == ["shard", *theirs.columns]
    for name in theirs.columns:
        if name in ("path", "emotion", "error"):
            assert ours[name].fillna("").tolist() == theirs[name].fillna("").tolist()
        else:
            assert ours[name].to_numpy(float) == pytest.approx(
                theirs[name].to_numpy(float), abs=1e-5, nan_ok=True
            )
    kept = pd.read_parquet(tmp_path / "out" / "kept.parquet")
    assert kept["path"].tolist() == theirs[theirs["score"] > middle]["path"].tolist() and len(kept) == 2


@pytest.mark.slow
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_killed_worker_costs_nothing(device, ray_started, tars, scoring, shard_scorer):
    # auto: the believed GPU, for which other processes decode.
    scoring = scoring._replace(options=scoring.options | {"device": device})
    shards = find_source(str(tars)).shards
    expected = {shard.name: shard_scorer({"shard": pickle.dumps(shard)}) for shard in shards}
    results, killed = {}, 0
    for result in ray_started.score_shards(shards, scoring, 1):
        assert result["name"] not in results
        results[result["name"]] = result
        if killed < 2:
            for each in (*workers()[:1], *workers("decode_remotely")):
                each.kill()
            killed += 1
    assert killed == 2 and results == expected


@pytest.mark.slow
def test_the_process_that_counts_attempts_may_be_killed(ray_started):
    attempts = ray_started.Attempts.remote(9)
    for _ in range(3):
        assert ray_started.ray.get(attempts.begin.remote("0.tar"))
        for each in workers("Attempts"):
            each.kill()


@pytest.mark.slow
def test_a_shard_that_kills_its_actors_is_given_up(ray_started, tars, scoring, monkeypatch):
    monkeypatch.setattr(ray_started, "TRIES", 1)
    scoring = scoring._replace(options=scoring.options | {"device": "cpu"})
    pipe = tars.parent / "pipe.tar"  # reading it waits
    os.mkfifo(pipe)
    shards = [Shard("pipe.tar", str(pipe)), *find_source(str(tars)).shards]

    def reads(process):
        opened = Path(f"/proc/{process.pid}/fd").iterdir()
        return any(file.readlink() == pipe for file in opened)

    def kill_reader():
        with pipe.open("wb"):  # waits for the reader
            while not (readers := [each for each in workers() if reads(each)]):
                time.sleep(0.05)
            readers[0].kill()

    thread = threading.Thread(target=kill_reader)
    thread.start()
    results = {result["name"]: result for result in ray_started.score_shards(shards, scoring, 1)}
    thread.join()
    assert results["pipe.tar"]["error"].startswith("was given up: the process that had it died")
    assert [name for name, result in results.items() if result["error"]] == ["pipe.tar"]
    assert len(results) == len(shards)


@pytest.mark.slow
def test_an_actor_that_dies_while_it_loads_the_network_ends_the_run(ray_started, tars, scoring, monkeypatch):
    class Dying(Scoring):
        def scorer(self):
            os._exit(1)

    monkeypatch.setattr(ray_started, "TRIES", 2)
    scoring = Dying(*scoring)._replace(options={"device": "cpu"})
    with pytest.raises(ChildProcessError, match="died while it loaded the network, again and again"):
        [*ray_started.score_shards(find_source(str(tars)).shards, scoring, 1)]


@pytest.mark.slow
def test_a_bad_shard_is_named_and_scored_once_it_is_whole(
    ray_started, tars, lively_weights, tmp_path, capsys
):
    source = shutil.copytree(tars, tmp_path / "tars")
    whole = (source / "03.tar").read_bytes()
    (source / "03.tar").write_bytes(whole[:5000])
    assert call(source, tmp_path / "out", lively_weights) == 1
    messages = capsys.readouterr().err
    assert "66 of 66 pictures scored, 1 shard failed, " in messages
    assert "shard 03.tar is cut off or damaged" in messages
    assert [*small.read_json(tmp_path / "out" / "report.json")["bad_shards"]] == ["03.tar"]
    (source / "03.tar").write_bytes(whole)
    before = small.contents(tmp_path / "out" / "scores")
    assert call(f"file://{source}", tmp_path / "out", lively_weights) == 2
    assert "holds scores of a run with source" in capsys.readouterr().err
    assert call(source, tmp_path / "out", lively_weights) == 0
    assert "6 of 6 pictures scored, 11 of 12 shards skipped" in capsys.readouterr().err
    after = small.contents(tmp_path / "out" / "scores")
    assert {*after} - {*before} == {"03.tar.parquet"} and before.items() <= after.items()
    remote = f"file://{tmp_path}/remote"
    assert call(f"file://{source}/*.tar", remote, lively_weights) == 0
    assert small.contents(tmp_path / "remote" / "scores") == after


@pytest.mark.slow
def test_a_cluster_is_joined_and_may_lose_a_machine(
    ray_started, tars, lively_weights, shard_scorer, tmp_path
):
    from ray.cluster_utils import Cluster

    output = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        machine = cluster.add_node(num_cpus=1)
        words = [ROOT / "scripts" / "score_collection.py", tars, output, "--address", cluster.address]
        words += ["--checkpoint", lively_weights, "--emotions", "--batch-size", 2]
        process = subprocess.Popen([sys.executable, *map(str, words)])
        while process.poll() is None and not [*output.glob("scores/*.parquet")]:
            time.sleep(0.01)
        there = len([*output.glob("scores/*.parquet")])
        cluster.remove_node(machine, allow_graceful=False)
        assert process.wait() == 0 and there < 12
    finally:
        cluster.shutdown()
    for shard in find_source(str(tars)).shards:
        expected = shard_scorer({"shard": pickle.dumps(shard)})["file"]
        assert (output / "scores" / f"{shard.name}.parquet").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:9", "refused"), ("ray://127.0.0.1:9", "refused"), ("head", "HOST:PORT")],
)
def test_a_cluster_that_does_not_answer_is_one_sentence(address, reason, monkeypatch):
    from eamb.inference import cluster

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    words = f"cannot join the Ray cluster at {address} .*{reason}"
    with pytest.raises(ConnectionError, match=words), cluster.started(address):
        pass


@pytest.mark.slow
def test_ten_runs_that_are_killed_with_all_their_processes_end_as_an_undisturbed_one(
    tars, lively_weights, tmp_path
):
    """Takes minutes: by hand."""
    program = [ROOT / "scripts" / "score_collection.py", tars, "--checkpoint", lively_weights, "--emotions"]

    def start(output):
        words = [sys.executable, *map(str, program), str(output)]
        return subprocess.Popen(words, stderr=subprocess.DEVNULL)

    def whole_files(output):
        files = small.contents(output / "scores") if output.exists() else {}
        return {name: content for name, content in files.items() if not name.startswith(".")}

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    lasts = time.monotonic() - begun
    expected = small.contents(tmp_path / "whole" / "scores")
    chance, found, outputs = random.Random(0), [], [tmp_path / "killed 0"]  # noqa: S311
    while len(found) < 10:
        # In turn at a moment of the whole time, which is mostly that of starting, and among the shards.
        early, there = len(found) % 2 == 0, len(whole_files(outputs[-1]))
        wanted, end = there + chance.randrange(1, 4), time.monotonic() + chance.uniform(0, lasts)
        process = start(outputs[-1])
        while process.poll() is None and not (early and time.monotonic() > end):
            if not early and len([*outputs[-1].glob("scores/*.parquet")]) >= wanted:
                break
            time.sleep(0.01)
        if process.poll() is not None:  # it has reached its end, and the next ones begin anew
            outputs.append(tmp_path / f"killed {len(outputs)}")
            continue
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        psutil.wait_procs(family, timeout=30)
        found.append(len(whole_files(outputs[-1])))
        assert whole_files(outputs[-1]).items() <= expected.items()
    print("shards after each kill:", found)
    assert len({*found}) > 2
    for output in outputs:
        assert start(output).wait() == 0
        assert whole_files(output) == expected
