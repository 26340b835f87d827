"""Damaged, odd and hostile files: `predict` and the loader of trainings give each its score or its reason.

    python -m tests.stress.images   # 5,000 files
    python -m tests.stress.images --files 50000 --seed 1
    python -m tests.stress.images --soak 100000   # links to 300 pictures, 1 in 100 broken

The files are made from the embedded photographs: each kind by hand, the rest damaged by chance, one in ten
a good picture. `predict` runs twice, with other batches and threads, and the loader of a csv set once, each
in a process of its own that may read what any user may, even if root started it. Each file must have one row,
alike in all three; two scores of one file, and those of good pictures with and without bad neighbours, must
be equal within 1e-5 of the range. No process may take more than --memory.

The soak watches one long run: memory may grow by 50 MB after the first 1,000 pictures, and the last tenth may
cost 10 % more processor time than the first. It reads Linux's /proc. Exit code 1: something is wrong.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import numpy as np
from PIL import Image

from datasets import PictureSet, TestOrder, load_dataset, make_loader
from eamb.files import encodable
from eamb.network.outputs import Scale
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.readers.own_csv import native
from eamb.readers.rated import DataOptions, RatedSet
from main import main as eambnet
from tests.small import ROOT, bound_by_permissions

Row = tuple[float | None, str | None]  # score as a share of its range, reason why there is none
Rows = dict[str, Row]  # by path
TOLERANCE = 1e-5 + 1e-9  # of the range, between two scores of one file
DECODERS = 2  # processes of the loader
START, GROWTH, SLOWER = (
    1000,
    50,
    1.1,
)  # of a soak: pictures, MB more than within these, cost of the last tenth


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photographs() -> list[Image.Image]:
    pictures = [open_photograph(photograph).convert("RGB") for photograph in PHOTOGRAPHS]
    for picture in pictures:
        picture.thumbnail((160, 160))
    return pictures


# ---- files made by hand: name -> content, or what makes the file at a path


def refused(picture: Image.Image) -> dict[str, bytes | Callable[[str], object]]:
    """What is no picture, or says that it is enormous."""
    jpeg, progressive = encoded(picture, "JPEG"), encoded(picture, "JPEG", progressive=True)
    short, last_scan = zlib.compress(bytes(1000)), progressive[progressive.rindex(b"\xff\xda") : -2]
    return {
        "empty.jpg": b"",
        "zeros.png": bytes(5000),
        "noise.jpg": random.Random(0).randbytes(5000),
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print quit\n",
        "document.tif": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "archive.webp": b"PK\3\4" + bytes(200),
        "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50),
        "start.jpg": b"\xff\xd8\xff",
        "start.png": b"\x89PNG\r\n\x1a\n",
        "start.gif": b"GIF89a",
        "start.bmp": b"BM",
        "start.tiff": b"II*\0\x08\0\0\0\xff\xff",
        "start.webp": b"RIFF\xff\xff\xff\xffWEBPVP8X",
        "float.tif": encoded(picture.convert("F"), "TIFF"),
        "bomb.png": png(100_000, 100_000, 8, 2, short),
        "largest.png": png(2**31 - 1, 2**31 - 1, 16, 6, short),
        "nothing.png": png(0, 0, 8, 2, short),
        "cut.png": png(12_000, 12_000, 8, 6, short),
        "cut_deep.png": png(12_000, 12_000, 16, 0, short),
        "bomb.jpg": resized_jpeg(jpeg, 65_500, 65_500),
        "bomb.bmp": patched(encoded(picture, "BMP"), 18, "<ii", 60_000, 60_000),
        "cut.bmp": patched(encoded(picture, "BMP"), 18, "<ii", 12_000, 12_000),
        "bomb.gif": patched(encoded(picture, "GIF"), 6, "<HH", 65_535, 65_535),
        "bomb.webp": b"RIFF\x7a\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0" * 2 + bytes(100),
        "bomb.pgm.jpg": b"P5 99999 99999 255\n" + bytes(100),
        "scans.jpg": resized_jpeg(progressive[:-2] + 20_000 * last_scan, 12_000, 12_000),
        "loop.jpg": lambda path: Path(path).symlink_to(path),
        "nowhere.jpg": lambda path: Path(path).symlink_to("no such file"),
        "device.png": lambda path: Path(path).symlink_to("/dev/zero"),
        "pipe.jpg": os.mkfifo,
        "unreadable.jpg": lambda path: Path(path).write_bytes(jpeg) and Path(path).chmod(0),
    }


def scored(picture: Image.Image) -> dict[str, bytes | Callable[[str], object]]:
    """Odd pictures."""
    jpeg, cmyk = encoded(picture, "JPEG"), encoded(picture.convert("CMYK"), "JPEG")
    adobe = cmyk.index(b"Adobe") + 11
    grey, palette, clear = picture.convert("L"), picture.quantize(16), picture.copy()
    clear.putalpha(grey)
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    return {
        "cmyk.jpg": cmyk,
        "ycck.jpg": cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :],
        "cmyk.tif": encoded(picture.convert("CMYK"), "TIFF"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "grey.jpg": encoded(grey, "JPEG"),
        "deep.png": encoded(deep, "PNG"),
        "deep.tif": encoded(deep, "TIFF"),
        "palette.png": encoded(palette, "PNG", transparency=bytes(range(0, 256, 17))),
        "palette.gif": encoded(palette, "GIF", transparency=3),
        "bits.png": encoded(picture.convert("1"), "PNG"),
        "bits.tif": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "clear.png": encoded(clear, "PNG"),
        "clear.webp": encoded(clear, "WEBP"),
        "clear_grey.png": encoded(clear.convert("LA"), "PNG"),
        "moving.gif": encoded(picture, "GIF", **frames),
        "moving.webp": encoded(picture, "WEBP", **frames),
        "moving.png": encoded(picture, "PNG", **frames),
        "pages.tif": encoded(picture, "TIFF", **frames),
        "really_png.jpg": encoded(picture, "PNG"),
        "really_jpg.png": jpeg,
        "really_webp.gif": encoded(picture, "WEBP"),
        "tail.jpg": jpeg + b"#!/bin/sh\n" * 500,
        "1x1.png": encoded(picture.resize((1, 1)), "PNG"),
        "1x1.jpg": encoded(picture.resize((1, 1)), "JPEG"),
        "1x20000.png": encoded(picture.resize((1, 20000)), "PNG"),
        "20000x1.jpg": encoded(picture.resize((20000, 1)), "JPEG"),
        "real_bits.png": lambda path: Image.new("1", (12_000, 12_000)).save(path),
        "real_clear.png": lambda path: Image.new("LA", (8000, 8000)).save(path),
        "real_deep.png": lambda path: Image.new("I;16", (8000, 8000)).save(path),
    }


def plain(picture: Image.Image) -> dict[str | bytes, bytes]:
    """Plain pictures with odd metadata or an odd name, which are scored."""
    files, jpeg = {}, encoded(picture, "JPEG")
    exif = {number: Image.Exif() for number in (*range(10), 65535)}
    for orientation, tags in exif.items():
        tags[0x0112] = orientation
    damaged = [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0" * 9]
    damaged += [b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\xff\xff\xff\xff"]
    damaged += [
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\1" * 60,
        exif[1].tobytes()[:14],
        exif[1].tobytes()[:20],
    ]
    for number, tags in enumerate([*exif.values(), *damaged]):
        files[f"exif{number}.jpg"] = encoded(picture, "JPEG", exif=tags)
    names = [
        " .jpg",
        "it's.jpg",
        'a "b", c.jpg',
        "two\nlines.jpg",
        "two\r\nlines.jpg",
        "tab\there.jpg",
        "😀.jpg",
    ]
    names += ["-rf.jpg", "--output.jpg", "=1+1.jpg", "@b.jpg", "$(touch x).jpg", "`x`;x|x.jpg", "a[1]*?.jpg"]
    names += ["a\\b.jpg", "%s%n.jpg", "\x1b[31m.jpg", "\u202e.jpg", "x" * 251 + ".jpg", "ä" * 125 + ".jpg"]
    names += [
        "\u2028.jpg",
        "a.JPG",
        "folder.jpg/inside.jpg",
        b"\xff\xfe.jpg",
        b"\xc3.jpg",
        b"a\xed\xa0\x80.jpg",
    ]
    return files | dict.fromkeys(names, jpeg)


def scored_or_refused(picture: Image.Image) -> dict[str, bytes]:
    comment = b"Comment\0\0" + zlib.compress(bytes(200_000_000))
    content = encoded(picture, "PNG")
    return {
        "long.jpg": resized_jpeg(encoded(picture, "JPEG"), 65_500, 2000),  # libjpeg fills up with grey
        "text.png": content[:33] + chunk(b"zTXt", comment) + content[33:],
    }


def png(width: int, height: int, bits: int, colours: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def patched(content: bytes, place: int, form: str, *values: int) -> bytes:
    return content[:place] + struct.pack(form, *values) + content[place + struct.calcsize(form) :]


def resized_jpeg(content: bytes, width: int, height: int) -> bytes:
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    return patched(content, frame + 5, ">HH", height, width)


# ---- files damaged by chance


def damaged(pictures: list[Image.Image], chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Names and contents without end: bits flipped, pieces blanked, moved or lost, ends cut off."""
    kinds = {
        "jpg": "JPEG",
        "jpeg": "JPEG",
        "png": "PNG",
        "webp": "WEBP",
        "gif": "GIF",
        "bmp": "BMP",
        "tif": "TIFF",
    }
    options = {"jpeg": {"progressive": True}, "tif": {"compression": "tiff_lzw"}}
    sources = [
        (ending, encoded(picture, kind, **options.get(ending, {})))
        for picture in pictures
        for ending, kind in kinds.items()
    ]
    while True:
        ending, whole = chance.choice(sources)
        content, length = bytearray(whole), chance.choice((1, 4, 40, 4000))
        for _ in range(chance.choice((1, 1, 3))):
            # Half of the damage goes to where headers are.
            place = chance.randrange(min(700, len(content)) if chance.random() < 0.5 else len(content))
            how = chance.choice(("flipped", "blanked", "doubled", "lost", "cut"))
            if how == "flipped":
                content[place] ^= 1 << chance.randrange(8)
            elif how == "blanked":
                content[place : place + length] = bytes(min(length, len(content) - place))
            elif how == "doubled":
                content[place:place] = content[-length:]
            elif how == "lost":
                del content[place : place + length]
            else:
                del content[place + 1 :]
        yield f"{how}.{ending}", bytes(content)


def make_files(folder: Path, count: int, seed: int, large: bool = True) -> dict[str, str]:
    """The files, every tenth a good picture; path -> "good", "scored", "refused" or "either".

    Args:
        large: with those that take a second each.
    """
    pictures, chance = photographs(), random.Random(seed)
    made = [(name, content, "refused") for name, content in refused(pictures[0]).items()]
    made += [
        (name, content, "scored") for kind in (scored, plain) for name, content in kind(pictures[0]).items()
    ]
    if large:
        made += [(name, content, "either") for name, content in scored_or_refused(pictures[0]).items()]
    else:
        made = [one for one in made if not os.fsdecode(one[0]).startswith(("real_", "cut", "scans"))]
    more = damaged(pictures, chance)
    made += [(*next(more), "either") for _ in range(count * 9 // 10 - len(made))]
    chance.shuffle(made)
    fates = {}
    for number, (name, content, fate) in enumerate(made):
        # Each in a folder of its own, so that the names made by hand stay as they are.
        path = f"{folder}/{number:06d}/{os.fsdecode(name)}"
        Path(path).parent.mkdir(parents=True)
        content(path) if callable(content) else Path(path).write_bytes(content)
        fates[path] = fate
        if number % 9 == 0:
            pictures[number // 9 % len(pictures)].save(f"{folder}/{number:06d}/good.jpg", quality=90)
            fates[f"{folder}/{number:06d}/good.jpg"] = "good"
    return fates


# ---- what becomes of them


def predicted(paths: list[str], output: str, words: list[str]) -> Rows:
    """From a run of main.py predict."""
    code = eambnet(["predict", *paths, "--output", output, "--device", "cpu", *words])
    text = Path(output).read_bytes().decode()
    if output.endswith(".jsonl"):
        read = [json.loads(line) for line in text.split("\n")[:-1]]
    else:
        read = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    rows = {}
    for row in read:
        low, high = (float(row[name] or 0) for name in ("score_min", "score_max"))
        share = None if row["error"] else (float(row["score"]) - low) / (high - low)
        rows[row["path"]] = (share, row["error"] or None)
    if len(rows) != len(read) or code != any(reason for _, reason in rows.values()):
        raise ValueError(f"{len(read)} rows for {len(rows)} files, exit code {code}")
    return rows


def loaded(paths: list[str], table: str) -> Rows:
    """From the loader of trainings, without scores: a csv set, and those files that no table can name."""
    folder = Path(table).parent
    names = {os.path.relpath(path, folder): path for path in paths}
    fit = [name for name in names if name == encodable(name) == native(name).strip()]
    with open(table, "w", newline="", encoding="utf-8") as file:  # noqa: PTH123
        csv.writer(file).writerows([("path", "score", "split"), *((name, 3, "train") for name in fit)])
    options = DataOptions(table=Path(table).name, minimum=1.0, maximum=5.0)
    sets = [*load_dataset("csv", folder, ("train", "val"), options).values()]
    odd = [name for name in names if name not in set(fit)]
    odd_paths, scores = [names[name] for name in odd], np.full(len(odd), 3.0)
    sets.append(RatedSet("odd", "train", "made", odd, odd_paths, scores, Scale("score", 1.0, 5.0, 3.0)))
    rows = {}
    for rated in sets:
        rows |= {name: (None, reason) for name, reason in rated.left_out}
        pictures = PictureSet(rated, 224, flip_seed=0, skip_broken=True)
        for batch in make_loader(pictures, TestOrder(len(rated), 16), DECODERS):
            rows |= {rated.ids[index]: (None, None) for index in batch.index.tolist()}
            rows |= {name: (None, reason) for name, reason in batch.broken}
    return {encodable(path): rows[name] for name, path in names.items() if name in rows}


def with_peak(function: Callable, arguments: tuple) -> tuple[object, float]:
    """What a function gives, and the most GB that this process or one of its children held."""
    multiprocessing.set_start_method("fork", force=True)  # of decoding processes; others would be root again
    with bound_by_permissions():
        result = function(*arguments)
    unit = 1 if sys.platform == "darwin" else 1024
    return result, max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) * unit / 1e9


def apart(function: Callable, *arguments, seconds: float) -> tuple[object, float]:
    """As `with_peak`, in a process of its own.

    Raises:
        RuntimeError: it crashed or failed, or took longer.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        return pool.submit(with_peak, function, arguments).result(seconds)
    except BrokenProcessPool as error:
        raise RuntimeError("crashed") from error
    except FutureTimeoutError as error:
        raise RuntimeError(f"hangs; ended after {seconds:.0f} s") from error
    except (ValueError, OSError) as error:
        raise RuntimeError(str(error)) from error
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown()


def problems_of(fates: dict[str, str], runs: dict[str, Rows], alone: Rows) -> list[str]:
    """What is wrong with the rows: of each run, and of the good pictures among themselves."""
    problems = []
    for name, rows in runs.items():
        problems += [
            f"{name}: a row for {path}, which was not asked for" for path in rows.keys() - fates.keys()
        ]
    for path, fate in fates.items():
        rows = [rows.get(path) for rows in runs.values()]
        if fate == "good":
            rows.append(alone.get(path))
        if None in rows:
            problems.append(f"{path}: no row")
            continue
        shares = [share for share, _ in rows if share is not None]
        reasons = [reason for _, reason in rows if reason is not None]
        if len(reasons) not in (0, len(rows)):
            problems.append(f"{path}: scored in one run, in another {reasons[0]}")
        elif reasons and fate in ("good", "scored"):
            problems.append(f"{path}: should be scored: {reasons[0]}")
        elif not reasons and fate == "refused":
            problems.append(f"{path}: should be refused")
        elif not all(map(str.strip, reasons)):
            problems.append(f"{path}: an empty reason")
        elif shares and max(shares) - min(shares) > TOLERANCE:
            problems.append(f"{path}: scores are {max(shares) - min(shares):.2g} of the range apart")
    return problems

    return problems


def hostile(folder: Path, fates: dict[str, str], memory: float, words: list[str]) -> list[str]:
    """What is wrong when the files (path -> fate) are scored and loaded."""
    everything, good = [str(folder / "files")], [path for path, fate in fates.items() if fate == "good"]
    rows, problems = {}, []
    for name, function, *arguments in (
        ("good pictures alone", predicted, good, f"{folder}/good.csv", words),
        ("predict", predicted, everything, f"{folder}/a.jsonl", ["--workers", "2", *words]),
        (
            "predict again",
            predicted,
            everything,
            f"{folder}/b.csv",
            ["--workers", "3", "--batch-size", "5", *words],
        ),
        ("loader", loaded, list(fates), f"{folder}/files.csv"),
    ):
        started = time.monotonic()
        try:
            rows[name], peak = apart(function, *arguments, seconds=120 + len(fates))
        except RuntimeError as error:
            problems.append(f"{name}: {error}")
            continue
        reasons = sum(reason is not None for _, reason in rows[name].values())
        took = f"{time.monotonic() - started:.0f} s, {peak:.2f} GB at most"
        print(f"{name}: {len(rows[name])} rows, {reasons} with a reason, {took}", flush=True)
        if peak > memory:
            problems.append(f"{name}: took {peak:.2f} GB, allowed are {memory:g}")
    alone = rows.pop("good pictures alone", {})
    return problems + problems_of({encodable(path): fate for path, fate in fates.items()}, rows, alone)


# ---- a long run


def soak(folder: Path, count: int, words: list[str], start: int = START) -> list[str]:
    """What is wrong with a run over `count` links to 300 pictures, three of them broken."""
    if count < 2 * start:
        raise ValueError(f"stress: --soak needs {2 * start} pictures at least")
    pictures = photographs()
    for name in ("targets", "links"):
        (folder / name).mkdir()
    for number in range(300):
        content = encoded(pictures[number % len(pictures)].rotate(number), "JPEG", quality=90)
        target = folder / "targets" / f"{number}.jpg"
        target.write_bytes(content[: len(content) // 2] if number % 100 == 50 else content)
    for number in range(count):
        (folder / "links" / f"{number:07d}.jpg").symlink_to(folder / "targets" / f"{number % 300}.jpg")
    output = folder / "scores.csv"
    command = ["predict", folder / "links", "--output", output, "--device", "cpu", *words]
    process = subprocess.Popen([sys.executable, ROOT / "main.py", *map(str, command)])
    moments = list(watched(process, output, count))
    code = process.wait()
    with output.open(newline="", encoding="utf-8") as file:
        rows = [(Path(row["path"]).name, bool(row["error"])) for row in csv.DictReader(file, strict=True)]
    if rows != [(f"{number:07d}.jpg", number % 100 == 50) for number in range(count)] or code != 1:
        return [f"{len(rows)} rows of {count}, or wrong ones; exit code {code}"]
    return slowdown_and_growth(moments, count, start)


def watched(process: subprocess.Popen, output: Path, count: int) -> Iterator[tuple[int, float, float]]:
    """Rows, processor seconds and MB of memory until all rows are there.

    Not later: when the process ends, torch's own cleaning up reads 110 MB more of its library.
    """
    rows, place = -1, 0  # the header is no row
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    while process.poll() is None and rows < count:
        time.sleep(0.05)
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page / 1e6
        if output.exists():
            with output.open("rb") as file:
                file.seek(place)
                new = file.read()
            rows, place = rows + new.count(b"\n"), place + len(new)
        if rows > 0 and memory:
            yield rows, sum(map(int, ticks)) / tick, memory


def slowdown_and_growth(moments: list[tuple[int, float, float]], count: int, start: int = START) -> list[str]:
    """What is wrong with processor time and memory; prints both."""

    def milliseconds(begin: float, end: float) -> float:
        """A picture's, between two shares of the run."""
        first = next(moment for moment in moments if moment[0] >= begin * count)
        last = next((moment for moment in moments if moment[0] >= end * count), moments[-1])
        return 1000 * (last[1] - first[1]) / max(1, last[0] - first[0])

    before = max(memory for rows, _, memory in moments if rows <= start)
    growth = max(memory for *_, memory in moments) - before
    first, last = milliseconds(0, 0.1), milliseconds(0.9, 1)
    print(
        f"memory: {before:.0f} MB within {start:,} pictures, {growth:+.0f} MB in the other {count - start:,}"
    )
    print(f"processor time a picture: {first:.1f} ms in the first tenth, {last:.1f} ms in the last")
    problems = []
    if growth > GROWTH:
        problems.append(f"memory grew by {growth:.0f} MB after {start:,} pictures, allowed are {GROWTH}")
    if first and last > SLOWER * first:  # 0: the first tenth was over before it was looked at twice
        problems.append(f"the last tenth took {last / first:.2f} times as long as the first")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", type=int, default=5000, help="in all (default 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default 0)")
    parser.add_argument("--soak", type=int, metavar="N", help="score N pictures instead, and watch")
    parser.add_argument("--memory", type=float, default=4.0, help="GB a process may take (default 4)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.soak:
            problems = soak(folder, options.soak, [])
        else:
            fates = make_files(folder / "files", options.files, options.seed)
            problems = hostile(folder, fates, options.memory, [])
    for problem in problems[:50]:
        print("WRONG:", ascii(problem))
    print(f"{len(problems)} wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
