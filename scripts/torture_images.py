"""Feeds damaged, odd and hostile files to `predict` and to the loader of trainings; none may stop them.

    python scripts/torture_images.py   # 5,000 files
    python scripts/torture_images.py --files 50000 --seed 1
    python scripts/torture_images.py --soak 100000   # links to 300 pictures, 1 in 100 broken

The files are made from the embedded photographs in a temporary folder: each kind by hand, the rest damaged by
chance, one in ten a good picture. `predict` runs twice, with other batches and threads, and the loader
once, each in a process of its own that, if root started it, may read what any user may and no more. Each file
must have its score or its reason, in all three alike; the good pictures' scores must be those that they have
among themselves, within 1e-5 of the range, as must be any file's two scores. Exit code 0: so it was; 1:
something is wrong, and is printed.

The soak measures what a long run takes: memory may grow by 50 MB after the first 1,000 pictures, and the last
tenth may cost 10 % more processor time than the first; the wall time is printed too. It reads /proc, which
Linux has.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import io
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image

from eamb.files import encodable
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.runtime.command import guarded
from main import main as run_main

SIDE = 160  # longer side of the photographs, in pixels
APART = 1e-5 + 1e-9  # of the range, that two scores of one file may be
GROWTH = 50  # MB that a soak may take more
SLOWER = 1.1  # times as long as its first tenth that a soak's last may take


def main(arguments: list[str] | None = None) -> int:
    return guarded(run, parse(arguments))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torture_images.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--files", type=int, default=5000, help="in all (default 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default 0)")
    parser.add_argument("--soak", type=int, metavar="N", help="score N pictures instead, and watch")
    parser.add_argument("--memory", type=float, default=4.0, help="GB a run may take (default 4)")
    parser.add_argument("--checkpoint", metavar="FILE", help="default: the shipped weights")
    parser.add_argument("--output", type=Path, metavar="DIR", help="make the files here and keep them")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError(f"torture_images: {folder} holds files already; choose another folder")
        words = ["--checkpoint", options.checkpoint] if options.checkpoint else []
        problems = soak(folder, options.soak, words) if options.soak else torture(folder, options, words)
    for problem in problems[:50]:
        print(f"WRONG: {printed(problem)}")
    print(f"{len(problems)} wrong")
    return 1 if problems else 0


def printed(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


# ---------------------------------------------------------------------------------------------------
# Files made by hand


class Made(NamedTuple):
    """A file to be: its name, what must become of it ("scored", "refused" or "either"), and what is in it.

    content: bytes, or what makes the file at a path.
    """

    name: str | bytes
    fate: str
    content: bytes | Callable[[str], object]


def photographs() -> list[Image.Image]:
    pictures = [open_photograph(photograph).convert("RGB") for photograph in PHOTOGRAPHS]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    return pictures


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def hand_made(picture: Image.Image) -> Iterator[Made]:
    """Every kind of file that has ever stopped somebody's program, and some more."""
    for kinds in (not_pictures, odd_pictures, orientations, enormous, places, names):
        yield from kinds(picture)


def not_pictures(picture: Image.Image) -> Iterator[Made]:
    contents = {
        "empty.jpg": b"",
        "zeros.png": bytes(5000),
        "noise.jpg": random.Random(0).randbytes(5000),
        "text.jpg": b"holiday, third day\n" * 50,
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
    }
    for name, content in contents.items():
        yield Made(name, "refused", content)


def odd_pictures(picture: Image.Image) -> Iterator[Made]:
    cmyk = encoded(picture.convert("CMYK"), "JPEG")
    adobe = cmyk.index(b"Adobe")
    grey, palette = picture.convert("L"), picture.quantize(16)
    deep = grey.convert("I").point(lambda value: value * 257)
    clear = picture.copy()
    clear.putalpha(grey)
    frames = [picture.rotate(angle) for angle in (90, 180)]
    together = {"save_all": True, "append_images": frames}
    contents = {
        "cmyk.jpg": cmyk,
        "ycck.jpg": cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :],
        "cmyk.tif": encoded(picture.convert("CMYK"), "TIFF"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "grey.jpg": encoded(grey, "JPEG"),
        "deep.png": encoded(deep.convert("I;16"), "PNG"),
        "deep.tif": encoded(deep.convert("I;16"), "TIFF"),
        "palette.png": encoded(palette, "PNG", transparency=bytes(range(0, 256, 17))),
        "palette.gif": encoded(palette, "GIF", transparency=3),
        "bits.png": encoded(picture.convert("1"), "PNG"),
        "bits.tif": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "clear.png": encoded(clear, "PNG"),
        "clear.webp": encoded(clear, "WEBP"),
        "clear_grey.png": encoded(clear.convert("LA"), "PNG"),
        "moving.gif": encoded(picture, "GIF", **together),
        "moving.webp": encoded(picture, "WEBP", **together),
        "moving.png": encoded(picture, "PNG", **together),
        "pages.tif": encoded(picture, "TIFF", **together),
        "really_png.jpg": encoded(picture, "PNG"),
        "really_jpg.png": encoded(picture, "JPEG"),
        "really_webp.gif": encoded(picture, "WEBP"),
        "tail.jpg": encoded(picture, "JPEG") + b"#!/bin/sh\n" * 500,
        "1x1.png": encoded(picture.resize((1, 1)), "PNG"),
        "1x1.jpg": encoded(picture.resize((1, 1)), "JPEG"),
        "1x20000.png": encoded(picture.resize((1, 20000)), "PNG"),
        "20000x1.jpg": encoded(picture.resize((20000, 1)), "JPEG"),
    }
    for name, content in contents.items():
        yield Made(name, "scored", content)


def orientations(picture: Image.Image) -> Iterator[Made]:
    for orientation in (*range(10), 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Made(f"turned{orientation}.jpg", "scored", encoded(picture, "JPEG", exif=exif))
    whole = Image.Exif()
    whole[0x010E] = "x" * 200
    for number, content in enumerate(
        (
            *(b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\1" * 60),
            *(whole.tobytes()[:cut] for cut in (8, 14, 20, 30)),
            *(b"Exif\0\0II*\0\x08\0\0\0" * 9, b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\xff\xff\xff\xff"),
        )
    ):
        yield Made(f"exif{number}.jpg", "scored", encoded(picture, "JPEG", exif=content))


def enormous(picture: Image.Image) -> Iterator[Made]:
    """Small files that say to be large, and small files that are."""
    short = zlib.compress(bytes(1000))
    jpeg, progressive = encoded(picture, "JPEG"), encoded(picture, "JPEG", progressive=True)
    yield Made("bomb.png", "refused", png(100_000, 100_000, 8, 2, short))
    yield Made("largest.png", "refused", png(2**31 - 1, 2**31 - 1, 16, 6, short))
    yield Made("nothing.png", "refused", png(0, 0, 8, 2, short))
    yield Made("cut.png", "refused", png(12_000, 12_000, 8, 6, short))
    yield Made("cut_deep.png", "refused", png(12_000, 12_000, 16, 0, short))
    yield Made("bomb.jpg", "refused", resized_jpeg(jpeg, 65_500, 65_500))
    yield Made("long.jpg", "either", resized_jpeg(jpeg, 65_500, 2000))  # libjpeg fills up with grey
    yield Made("bomb.bmp", "refused", enlarged(encoded(picture, "BMP"), 18, "<ii", 60_000, 60_000))
    yield Made("cut.bmp", "refused", enlarged(encoded(picture, "BMP"), 18, "<ii", 12_000, 12_000))
    yield Made("bomb.gif", "refused", enlarged(encoded(picture, "GIF"), 6, "<HH", 65_535, 65_535))
    yield Made("bomb.webp", "refused", b"RIFF" + webp_header(16_384, 16_384) + bytes(100))
    yield Made("bomb.pgm.jpg", "refused", b"P5 99999 99999 255\n" + bytes(100))
    yield Made("text.png", "either", with_text(encoded(picture, "PNG"), 200_000_000))
    yield Made("real_bits.png", "scored", lambda path: Image.new("1", (12_000, 12_000)).save(path))
    yield Made("real_clear.png", "scored", lambda path: Image.new("LA", (8000, 8000)).save(path))
    yield Made("real_deep.png", "scored", lambda path: Image.new("I;16", (8000, 8000)).save(path))
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield Made("scans.jpg", "refused", resized_jpeg(progressive[:-2] + 20_000 * last, 12_000, 12_000))


def png(width: int, height: int, bits: int, colours: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_text(content: bytes, length: int) -> bytes:
    """A PNG with a comment that unpacks to so many bytes, behind its header."""
    return content[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(length))) + content[33:]


def enlarged(content: bytes, place: int, form: str, *size: int) -> bytes:
    return content[:place] + struct.pack(form, *size) + content[place + struct.calcsize(form) :]


def resized_jpeg(content: bytes, width: int, height: int) -> bytes:
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    return enlarged(content, frame + 5, ">HH", height, width)


def webp_header(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return struct.pack("<I", 122) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides


def places(picture: Image.Image) -> Iterator[Made]:
    """What is no plain file."""
    content = encoded(picture, "JPEG")

    def forbid(path: str) -> None:
        write(path, content)
        Path(path).chmod(0)

    yield Made("loop.jpg", "refused", lambda path: Path(path).symlink_to(path))
    yield Made("nowhere.jpg", "refused", lambda path: Path(path).symlink_to("no such file"))
    yield Made("pipe.jpg", "refused", os.mkfifo)
    yield Made("device.png", "refused", lambda path: Path(path).symlink_to("/dev/zero"))
    yield Made("folder.jpg/inside.jpg", "scored", content)
    yield Made("unreadable.jpg", "refused", forbid)


def names(picture: Image.Image) -> Iterator[Made]:
    content = encoded(picture, "JPEG")
    spellings = [
        *("two words.jpg", " .jpg", "it's.jpg", 'a "b", c.jpg', "two\nlines.jpg", "two\r\nlines.jpg"),
        *("tab\there.jpg", "😀.jpg", "ä.jpg", "-rf.jpg", "--output.jpg", "=1+1.jpg", "@b.jpg", "+c.jpg"),
        *(
            "$(touch x).jpg",
            "`x`;x|x.jpg",
            "a[1]*?.jpg",
            "a\\b.jpg",
            "%s%n.jpg",
            "\x1b[31m.jpg",
            "\u202e.jpg",
        ),
        *("x" * 251 + ".jpg", "ä" * 125 + ".jpg", "CON.jpg", "a.JPG", "\u2028.jpg"),
    ]
    for name in (*spellings, b"\xff\xfe.jpg", b"\xc3.jpg", b"a\xed\xa0\x80.jpg"):
        yield Made(name, "scored", content)


# ---------------------------------------------------------------------------------------------------
# Files made by chance

WORKERS = 2  # processes of the loader
KINDS = {
    "jpg": ("JPEG", {"quality": 90}),
    "jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff": ("TIFF", {"compression": "jpeg"}),
}


def mutated(pictures: list[Image.Image], chance: random.Random) -> Iterator[Made]:
    """Damaged pictures without end: each kind cut at each tenth, then as chance will have it."""
    sources = [
        (ending, encoded(picture, kind, **options))
        for picture in pictures
        for ending, (kind, options) in KINDS.items()
    ]
    for ending, content in sources:
        for tenth in range(1, 10):
            yield Made(f"cut{tenth}.{ending}", "either", content[: len(content) * tenth // 10])
    while True:
        ending, content = chance.choice(sources)
        damage = chance.choice((flip_bits, blank, splice, shorten))
        yield Made(f"{damage.__name__}.{ending}", "either", damage(bytearray(content), chance))


def somewhere(content: bytearray, chance: random.Random) -> int:
    """A place: half of the damage goes to the first 700 bytes, where headers are."""
    return chance.randrange(min(700, len(content)) if chance.random() < 0.5 else len(content))


def flip_bits(content: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 3, 30))):
        content[somewhere(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(content)


def blank(content: bytearray, chance: random.Random) -> bytes:
    start, length = somewhere(content, chance), chance.choice((1, 4, 40, 4000))
    content[start : start + length] = chance.choice((b"\0", b"\xff")) * len(content[start : start + length])
    return bytes(content)


def splice(content: bytearray, chance: random.Random) -> bytes:
    """A piece stands a second time in another place."""
    start, place = somewhere(content, chance), somewhere(content, chance)
    return bytes(content[:place] + content[start : start + 500] + content[place:])


def shorten(content: bytearray, chance: random.Random) -> bytes:
    start = somewhere(content, chance)
    return bytes(content[:start] + content[start + chance.choice((1, 2, 100)) :])


# ---------------------------------------------------------------------------------------------------
# Torture


def write(path: str, content: bytes | Callable[[str], object]) -> None:
    if callable(content):
        content(path)
    else:
        Path(path).write_bytes(content)


def make_files(folder: Path, count: int, seed: int) -> dict[str, str]:
    """The files, every tenth a good picture; path -> "good", "scored", "refused" or "either"."""
    pictures, fates = photographs(), {}
    good = [encoded(picture, "JPEG", quality=90) for picture in pictures]
    made = [*hand_made(pictures[0])]
    damaged = mutated(pictures, random.Random(seed))
    while len(made) < count * 9 // 10:
        one = next(damaged)
        made.append(one._replace(name=f"{len(made):06d}_{one.name}"))
    random.Random(seed).shuffle(made)
    for number, one in enumerate(made):
        # The names made by hand stay as they are, each in a folder of its own.
        place = folder / f"{number:06d}"
        path = os.path.join(os.fsencode(place), os.fsencode(one.name))  # noqa: PTH118
        Path(os.fsdecode(path)).parent.mkdir(parents=True)
        write(os.fsdecode(path), one.content)
        fates[os.fsdecode(path)] = one.fate
        if number % 9 == 0:
            (place / "good.jpg").write_bytes(good[number // 9 % len(good)])
            fates[str(place / "good.jpg")] = "good"
    return fates


def torture(folder: Path, options: argparse.Namespace, words: list[str]) -> list[str]:
    """What is wrong."""
    fates = make_files(folder / "files", options.files, options.seed)
    print(f"{len(fates)} files made: " + ", ".join(f"{n} {fate}" for fate, n in tally(fates.values())))
    alone = [path for path, fate in fates.items() if fate == "good"]
    seconds = 120 + len(fates)
    results, problems = {}, []
    ways = {
        "good pictures alone": (scored_rows, alone, "alone.csv", words),
        "predict": (scored_rows, [str(folder / "files")], "a.jsonl", ["--workers", "2", *words]),
        "predict, in other batches": (
            *(scored_rows, [str(folder / "files")], "b.csv"),
            ["--workers", "3", "--batch-size", "5", *words],
        ),
        "loader": (loaded_rows, list(fates), "files.csv", []),
    }
    for name, (function, paths, output, more) in ways.items():
        started = time.monotonic()
        result, peak = apart(function, paths, str(folder / output), more, seconds=seconds)
        if isinstance(result, str):
            problems.append(f"{name}: {result}")
            continue
        results[name] = result
        failed = Counter(error for _, error in result.values() if error)
        print(
            f"{name}: {len(result)} rows, {len(result) - failed.total()} scored, {failed.total()} with a "
            f"reason, {time.monotonic() - started:.0f} s, peak {peak:.2f} GB",
            flush=True,
        )
        if peak > options.memory:
            problems.append(f"{name}: took {peak:.2f} GB, allowed are {options.memory:g}")
    shown = {encodable(path): fate for path, fate in fates.items()}
    return problems + compare(shown, results)


def tally(values) -> list[tuple[str, int]]:
    return Counter(values).most_common()


def compare(fates: dict[str, str], results: dict[str, dict[str, tuple]]) -> list[str]:
    """What is wrong with the rows: path -> (score or None, reason or None)."""
    alone = results.pop("good pictures alone", {})
    problems = []
    for name, rows in results.items():
        problems += [f"{name}: no row for {path}" for path in fates.keys() - rows.keys()]
        problems += [
            f"{name}: a row for {path}, which was not asked for" for path in rows.keys() - fates.keys()
        ]
        for path in fates.keys() & rows.keys():
            problems += [
                f"{name}: {path}: {wrong}" for wrong in judge(fates[path], rows[path], alone.get(path))
            ]
    first, *others = results.values() or [{}]
    for path, row in first.items():
        for other in others:
            if path in other and differ(row, other[path]):
                problems.append(f"{path}: once {row[1] or row[0]}, once {other[path][1] or other[path][0]}")
    return problems


def differ(row: tuple[float | None, str | None], other: tuple[float | None, str | None]) -> bool:
    """Whether only one of two rows of a file has a reason, or their scores are apart."""
    if row[1] or other[1]:
        return not (row[1] and other[1])
    return None not in (row[0], other[0]) and abs(row[0] - other[0]) > APART  # the loader gives no scores


def judge(fate: str, row: tuple[float | None, str | None], alone: tuple | None) -> list[str]:
    """What is wrong with a row: (position in the range or None, reason or None).

    Args:
        alone: the row of a good picture among its like; None: it has none, or no such run ended well.
    """
    score, reason = row
    if reason is not None and fate in ("good", "scored"):
        return [f"should be scored, got: {reason}"]
    if reason is None and fate == "refused":
        return ["should be refused, and was not"]
    if fate == "good" and score is not None:
        return judge_good(score, alone)
    return [] if reason is None or reason.strip() else ["an empty reason"]


def judge_good(score: float, alone: tuple | None) -> list[str]:
    if alone is None or alone[0] is None:
        return [f"no score among the good pictures alone to compare with: {alone[1] if alone else 'no row'}"]
    change = score - alone[0]
    return [f"{change:+.2g} of the range among bad neighbours"] if abs(change) > APART else []


def scored_rows(paths: list[str], output: str, words: list[str]) -> dict[str, tuple] | str:
    """path -> (position in the range, reason), from a run of main.py predict."""
    code = run_main(["predict", *paths, "--output", output, "--device", "cpu", *words])
    rows = read_rows(Path(output))
    failed = any(row["error"] for row in rows)
    if code != (1 if failed else 0):
        return f"exit code {code}"
    if len({row["path"] for row in rows}) != len(rows):
        return "a file has several rows"
    return {row["path"]: (position(row), row["error"] or None) for row in rows}


def position(row: dict) -> float | None:
    """The score between the ends of its range, 0 to 1."""
    if row["error"]:
        return None
    low, high = float(row["score_min"]), float(row["score_max"])
    return (float(row["score"]) - low) / (high - low)


def read_rows(output: Path) -> list[dict]:
    """What predict wrote, as strictly as can be."""
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_bytes().decode().split("\n")[:-1]]
    with output.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def loaded_rows(paths: list[str], output: str, words: list[str]) -> dict[str, tuple]:
    """path -> (None, reason), from a table as trainings read it, and from their loader.

    Args:
        output: the table to be, in a folder above all files.
    """
    import numpy as np

    from datasets import PictureSet, TestOrder, load_dataset, make_loader
    from eamb.network.outputs import Scale
    from eamb.readers.rated import DataOptions, RatedSet

    folder = Path(output).parent
    names = {path: os.path.relpath(path, folder) for path in paths}
    odd = [path for path, name in names.items() if not fits_table(name)]
    write_table(Path(output), [name for name in names.values() if fits_table(name)])
    options = DataOptions(table=Path(output).name, minimum=1.0, maximum=5.0)
    scores, scale = np.full(len(odd), 3.0), Scale("score", 1.0, 5.0, 3.0)
    sets = [*load_dataset("csv", folder, ("train", "val"), options).values()]
    sets.append(RatedSet("odd", "train", "made", [names[path] for path in odd], odd, scores, scale))
    found = {}
    for rated in sets:
        found |= {name: (None, reason) for name, reason in rated.left_out}
        pictures = PictureSet(rated, 224, flip_seed=0, skip_broken=True)
        for batch in make_loader(pictures, TestOrder(len(rated), 16), WORKERS):
            found |= {rated.ids[index]: (None, None) for index in batch.index.tolist()}
            found |= {name: (None, reason) for name, reason in batch.broken}
    return {encodable(path): found[name] for path, name in names.items() if name in found}


def fits_table(name: str) -> bool:
    """Whether a table can name the file: UTF-8, no blanks at its ends, and no backslash, which there parts
    folders."""
    from eamb.readers.own_csv import native

    return name == encodable(name) == native(name).strip()


def write_table(path: Path, names: list[str]) -> None:
    """All of the training files: a part of them becomes the validation split, by what is in them too."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "score", "split"), *((name, 3, "train") for name in names)])


# ---------------------------------------------------------------------------------------------------
# A process of its own


def apart(function: Callable, *arguments, seconds: float) -> tuple[object, float]:
    """What a function gives in a process of its own, and its peak of memory in GB, that of its children too.

    Of a process that crashes, fails or takes longer, a sentence that says so.
    """
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        if not receiving.poll(seconds):
            return f"hangs; ended after {seconds:.0f} s", 0.0
        result = receiving.recv()
        process.join(60)
        return result
    except EOFError:
        process.join()
        return f"crashed (exit code {process.exitcode})", 0.0
    finally:
        process.kill()
        process.join()


def answer(pipe: Connection, function: Callable, arguments: tuple) -> None:
    # Decoding processes as trainings have them, forked; others would be root again, with all its rights.
    multiprocessing.set_start_method("fork", force=True)
    with bound_by_permissions():
        result = function(*arguments)
    pipe.send((result, most_memory(WORKERS if function is loaded_rows else 0)))


def most_memory(children: int) -> float:
    """GB that this process and so many children can have taken, if all took their most at the same time."""
    own, largest = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return (own + children * largest) * (1 if sys.platform == "darwin" else 1024) / 1e9


class Header(ctypes.Structure):
    """Linux's cap_user_header_t."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class Powers(ctypes.Structure):
    """Linux's cap_user_data_t, half of a thread's capabilities."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


READS_ALL = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """What this thread, and those that it starts, may read is what the files' permissions say, even for root.

    Raises:
        OSError: root's power cannot be taken away here.
    """
    if os.geteuid():
        yield
        return
    system, header, powers = ctypes.CDLL(None, use_errno=True), Header(0x20080522, 0), (Powers * 2)()
    if not hasattr(system, "capset"):
        raise OSError("torture_images: root can read every file here; run it as another user")
    system.capget(ctypes.byref(header), powers)
    before = powers[0].effective

    def allow(effective: int) -> None:
        powers[0].effective = effective
        if system.capset(ctypes.byref(header), powers):
            raise OSError(ctypes.get_errno(), "torture_images: root's power to read all was not taken away")

    allow(before & ~READS_ALL)
    try:
        yield
    finally:
        allow(before)


# ---------------------------------------------------------------------------------------------------
# Soak


class Moment(NamedTuple):
    """How far a run is: rows, processor seconds, MB of memory, seconds on the clock."""

    rows: int
    seconds: float
    memory: float
    clock: float


def soak(folder: Path, count: int, words: list[str], start: int = 1000) -> list[str]:
    """What is wrong with a long run.

    Args:
        start: pictures within which memory may grow as it likes.
    """
    if count < 2 * start or not Path("/proc/self/statm").exists():
        raise ValueError(f"torture_images: --soak needs {2 * start} pictures at least, and Linux's /proc")
    expected = make_links(folder, count)
    output = folder / "scores.csv"
    target = ["predict", str(folder / "links"), "--output", str(output), "--device", "cpu", *words]
    process = multiprocessing.get_context("spawn").Process(target=run_and_exit, args=(target,))
    process.start()
    moments = list(watch(process, output, count))
    process.join()
    with output.open(newline="", encoding="utf-8") as file:
        found = [(row["path"], bool(row["error"])) for row in csv.DictReader(file, strict=True)]
    problems = [] if found == expected else [f"{len(found)} rows of {count}, or wrong ones"]
    if process.exitcode != any(bad for _, bad in expected):
        problems.append(f"exit code {process.exitcode}")
    return problems + judge_soak(moments, count, start)


def run_and_exit(words: list[str]) -> None:
    sys.exit(run_main(words))


def judge_soak(moments: list[Moment], count: int, start: int = 1000) -> list[str]:
    """What is wrong with memory and speed; prints both."""
    before = max(moment.memory for moment in moments if moment.rows <= start)
    growth = max(moment.memory for moment in moments) - before
    costs = {name: tenths(moments, name, count) for name in ("seconds", "clock")}
    first, last = costs["seconds"]
    print(
        f"memory: {before:.0f} MB within the first {start:,} of {count:,} pictures, {growth:+.0f} MB behind"
    )
    print(f"processor time a picture: {first:.1f} ms in the first tenth, {last:.1f} ms in the last")
    # Not judged: any other work on the machine makes it longer.
    print("wall time a picture: {:.1f} ms in the first tenth, {:.1f} ms in the last".format(*costs["clock"]))
    problems = []
    if growth > GROWTH:
        problems.append(f"memory grew by {growth:.0f} MB behind the first {start:,}, allowed are {GROWTH}")
    if first and last > SLOWER * first:  # 0: the first tenth was over before it was looked at twice
        problems.append(f"the last tenth took {last / first:.2f} times as long as the first")
    return problems


def make_links(folder: Path, count: int) -> list[tuple[str, bool]]:
    """Links to 300 pictures, 3 of them broken; path and whether it is broken, in order."""
    pictures, targets, expected = photographs(), [], []
    (folder / "targets").mkdir()
    (folder / "links").mkdir()
    for number in range(300):
        content = encoded(pictures[number % len(pictures)].rotate(number), "JPEG", quality=90)
        bad = number % 100 == 50
        targets.append((folder / "targets" / f"{number}.jpg", bad))
        targets[-1][0].write_bytes(content[: len(content) // 2] if bad else content)
    for number in range(count):
        target, bad = targets[number % len(targets)]
        link = folder / "links" / f"{number:07d}.jpg"
        link.symlink_to(target)
        expected.append((str(link), bad))
    return expected


def watch(process: multiprocessing.Process, output: Path, count: int) -> Iterator[Moment]:
    """The run's moments until all rows are there.

    Not later: when the process ends, torch's own cleaning up reads 110 MB more of its library, which count as
    this process's memory.
    """
    rows, place = -1, 0  # the header is no row
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    while process.is_alive() and rows < count:
        time.sleep(0.05)
        try:
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page / 1e6
        except OSError:  # it has just ended
            return
        if output.exists():
            with output.open("rb") as file:
                file.seek(place)
                new = file.read()
            rows, place = rows + new.count(b"\n"), place + len(new)
        if rows > 0 and memory:
            yield Moment(rows, sum(map(int, ticks)) / tick, memory, time.monotonic())


def tenths(moments: list[Moment], field: str, count: int) -> tuple[float, float]:
    """Milliseconds that a picture took in the first tenth of a run and in the last, by a field of Moment."""
    return cost(moments, field, 0.0, 0.1, count), cost(moments, field, 0.9, 1.0, count)


def cost(moments: list[Moment], field: str, start: float, end: float, count: int) -> float:
    """As `tenths`, in a part of the run, 0 to 1."""
    first = next(moment for moment in moments if moment.rows >= start * count)
    last = next((moment for moment in moments if moment.rows >= end * count), moments[-1])
    return 1000 * (getattr(last, field) - getattr(first, field)) / max(1, last.rows - first.rows)


if __name__ == "__main__":
    sys.exit(main())
