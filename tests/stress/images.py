"""Damaged, odd and hostile files: `predict` and the loader of trainings give each its score or its reason.

    python -m tests.stress.images   # 5,000 files
    python -m tests.stress.images --files 50000 --seed 1

The files are made from the embedded photographs: one of each kind by hand, the rest damaged at random, one in
ten a good picture. `predict` runs twice, with different batches and threads, and the loader of trainings
once, each in its own process, bound by file permissions even if root started it. Each file must have one row,
the same in all three; two scores of one file, and those of good pictures with and without bad neighbours,
must be equal within 1e-5 of the range. No process may take more than --memory.
Exit code 1: something is wrong.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import random
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import numpy as np
from PIL import Image, ImageOps
from pillow_jxl import JpegXLImagePlugin  # noqa: F401 - so that Pillow writes it

from datasets import PictureSet, TestOrder, make_loader
from eamb.files import encodable
from eamb.inference.rows import NOTE
from eamb.network.outputs import Scale
from eamb.readers.demo import PHOTOGRAPHS, open_photograph
from eamb.readers.endings import AVIF_ENDINGS
from eamb.readers.rated import RatedSet
from main import main as eambnet
from scripts.samples import write_dng, write_heic
from tests.small import bound_by_permissions, read_csv

Row = tuple[float | None, str]  # score as a share of its range, reason why there is none
Rows = dict[str, Row]  # by path
# Of files, by name: bytes, or a function that makes the file at a path.
Contents = dict[str | bytes, bytes | Callable[[str], object]]
CAMERAS = ("heic", "avif", "jxl", "dng") if AVIF_ENDINGS else ("heic", "jxl", "dng")
ALONE = "good pictures alone"  # the name of that run
DECODERS = 2  # processes of the loader


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photographs() -> list[Image.Image]:
    """Of even sides, as RAW files need them."""
    pictures = [open_photograph(photograph).convert("RGB") for photograph in PHOTOGRAPHS]
    pictures = [ImageOps.contain(picture, (160, 160)) for picture in pictures]
    return [picture.crop((0, 0, picture.width & ~1, picture.height & ~1)) for picture in pictures]


def refused(picture: Image.Image) -> Contents:
    """Files that are not pictures, or claim to be enormous; those named slow take a second each."""
    jpeg, progressive = encoded(picture, "JPEG"), encoded(picture, "JPEG", progressive=True)
    short, last_scan = zlib.compress(bytes(1000)), progressive[progressive.rindex(b"\xff\xda") : -2]
    bmp, gif = encoded(picture, "BMP"), encoded(picture, "GIF")
    contents = [b"", bytes(5000), random.Random(0).randbytes(5000)]
    contents += [b"<!DOCTYPE html><html><body>404</body></html>", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"]
    contents += [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"]
    contents += [b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', b"PK\3\4" + bytes(200)]
    contents += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print quit\n"]
    contents += [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), b"P5 99999 99999 255\n" + bytes(100)]
    contents += [b"\0\0\0\x14ftypqt  " + bytes(50), b"8BPS\0\1" + bytes(50), b"\xff\x0a" + b"\xff" * 50]
    contents += [png(side, side, 8, 2, short) for side in (0, 100_000, 2**31 - 1)]
    contents += [resized_jpeg(jpeg, 65_500, 65_500), patched(bmp, 18, "<ii", 60_000, 60_000)]
    contents += [patched(gif, 6, "<HH", 65_535, 65_535)]
    contents += [b"RIFF\x7a\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0" * 2 + bytes(100)]
    slow = [png(12_000, 12_000, 8, 6, short), png(12_000, 12_000, 16, 0, short)]
    slow += [patched(bmp, 18, "<ii", 12_000, 12_000)]
    slow += [resized_jpeg(progressive[:-2] + 20_000 * last_scan, 12_000, 12_000)]
    return {
        **{f"refused{number}.jpg": content for number, content in enumerate(contents)},
        **{f"cut{number}.{kind}": cut for kind in CAMERAS for number, cut in enumerate(cuts(kind, picture))},
        **{f"slow{number}.png": content for number, content in enumerate(slow)},
        "loop.jpg": lambda path: Path(path).symlink_to(path),
        "nowhere.jpg": lambda path: Path(path).symlink_to("no such file"),
        "device.png": lambda path: Path(path).symlink_to("/dev/zero"),
        "pipe.jpg": os.mkfifo,
        "unreadable.jpg": lambda path: Path(path).write_bytes(jpeg) and Path(path).chmod(0),
    }


def of_camera(kind: str, picture: Image.Image, preview: bool = True) -> bytes:
    """A HEIC, AVIF, JPEG XL or RAW file."""
    if kind in ("avif", "jxl"):
        return encoded(picture, kind)
    with tempfile.NamedTemporaryFile(suffix=f".{kind}") as file:
        if kind == "heic":
            write_heic(file.name, picture, quality=90)
        else:
            write_dng(file.name, picture, picture if preview else None, Image.Exif())
        return Path(file.name).read_bytes()


def cuts(kind: str, picture: Image.Image) -> Iterator[bytes]:
    """Files that end too early, hold nothing but zeros, or claim enormous sizes."""
    whole = of_camera(kind, picture, preview=False)
    yield from (whole[:kept] for kept in (12, len(whole) // 4, len(whole) // 2, len(whole) - 99))
    yield whole[:12] + bytes(len(whole) - 12)
    place = whole.find(b"ispe") + 8  # of HEIC and AVIF
    if kind in ("heic", "avif"):
        yield from (patched(whole, place, ">II", side, side) for side in (60_000, 2**31 - 1))
    elif kind == "jxl":
        sides = 3 << 1 | (2**30 - 1) << 3 | 1 << 33  # 30 bits of height, and as wide
        yield b"\xff\x0a" + sides.to_bytes(8, "little") + whole[8:]
    else:
        for tag, side in zip((256, 257), picture.size, strict=True):
            whole = whole.replace(*(struct.pack("<HHII", tag, 4, 1, value) for value in (side, 60_000)))
        yield whole


def scored(picture: Image.Image) -> Contents:
    """Pictures of unusual formats, modes and shapes, most with the ending of another format."""
    jpeg, cmyk = encoded(picture, "JPEG"), encoded(picture.convert("CMYK"), "JPEG")
    adobe = cmyk.index(b"Adobe") + 11
    grey, clear, palette = picture.convert("L"), picture.copy(), picture.quantize(16)
    clear.putalpha(grey)
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    shapes = [picture.resize(size) for size in ((1, 1), (1, 20_000), (20_000, 1))]
    contents = [cmyk, cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :], jpeg + b"#!/bin/sh\n" * 500]
    contents += [encoded(picture, kind) for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF")]
    contents += [encoded(picture, kind, **frames) for kind in ("PNG", "WEBP", "GIF", "TIFF")]
    contents += [encoded(one, kind) for one in shapes for kind in ("PNG", "JPEG")]
    contents += [encoded(one, kind) for one in (deep, picture.convert("1")) for kind in ("PNG", "TIFF")]
    contents += [encoded(one, "PNG") for one in (clear, clear.convert("LA"))]
    contents += [encoded(grey, "JPEG"), encoded(picture, "JPEG", progressive=True), encoded(clear, "WEBP")]
    contents += [encoded(picture.convert("F"), "TIFF"), encoded(picture.convert("CMYK"), "TIFF")]
    contents += [encoded(palette, "GIF", transparency=3)]
    contents += [encoded(palette, "PNG", transparency=bytes(range(0, 256, 17)))]
    endless, whole = b"Comment\0\0" + zlib.compress(bytes(200_000_000)), encoded(picture, "PNG")
    contents += [whole[:33] + chunk(b"zTXt", endless) + whole[33:]]
    contents += [jpeg[:-2], encoded(picture, "JPEG", progressive=True)[:-2]]
    files = {f"scored{number}.jpg": content for number, content in enumerate(contents)}
    others = {"ppm": "PPM", "pgm": "PPM", "jp2": "JPEG2000", "mpo": "MPO", "jfif": "JPEG"}
    files |= {f"scored.{ending}": encoded(picture, kind) for ending, kind in others.items()}
    files |= {f"scored.{kind}": of_camera(kind, picture) for kind in CAMERAS}
    files |= {f"scored-{kind}.nef": of_camera(kind, picture) for kind in CAMERAS}  # with a wrong ending
    files["developed.dng"] = of_camera("dng", picture, preview=False)
    for mode in ("1", "LA", "I;16"):
        files[f"slow{len(files)}.gif"] = lambda path, mode=mode: Image.new(mode, (8000, 8000)).save(
            path, "PNG"
        )
    return files


def plain(picture: Image.Image) -> Contents:
    """Plain pictures with odd metadata or an odd name, which are scored."""
    every = [
        b"Exif\0\0" + tags
        for tags in (b"", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\1" * 60)
    ]
    for orientation in (*range(10), 65535):
        every.append(Image.Exif())
        every[-1][0x0112] = orientation
    files = {f"exif{number}.jpg": encoded(picture, "JPEG", exif=tags) for number, tags in enumerate(every)}
    names = [" ", "it's", 'a "b", c', "two\nlines", "two\r\nlines", "tab\there", "😀", "-rf", "--output"]
    names += ["=1+1", "@b", "$(touch x)", "`x`;x|x", "a[1]*?", "a\\b", "%s%n", "\x1b[31m", "\u202e"]
    names += ["\u2028", "x" * 251, "ä" * 125, "folder.jpg/inside"]
    odd = [b"\xff\xfe.jpg", b"\xc3.jpg", b"a\xed\xa0\x80.jpg", "a.JPG", *(f"{name}.jpg" for name in names)]
    return files | dict.fromkeys(odd, encoded(picture, "JPEG"))


def scored_or_refused(picture: Image.Image) -> Contents:
    wholes = {kind: of_camera(kind, picture, preview=False) for kind in CAMERAS}
    return {
        # Decoders take zeros for pixels.
        **{
            f"zeros.{kind}": whole[: len(whole) // 2] + bytes(len(whole) // 2)
            for kind, whole in wholes.items()
        },
        # libjpeg fills the rest with grey.
        "slow.jpg": resized_jpeg(encoded(picture, "JPEG"), 65_500, 2000),
        "slow.jpe": resized_jpeg(encoded(picture, "JPEG"), 16_320, 12_240),
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


def damaged(pictures: list[Image.Image], chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Endless names and contents: bits flipped, pieces blanked, moved or lost, ends cut off."""
    kinds = [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
    ]
    kinds.append(("TIFF", {"compression": "tiff_lzw"}))
    sources = [(kind.lower(), encoded(one, kind, **words)) for one in pictures for kind, words in kinds]
    sources += [(kind, of_camera(kind, one)) for one in pictures[:2] for kind in CAMERAS]
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
            else:
                del content[place + 1 : place + 1 + length if how == "lost" else None]
        yield f"{how}.{ending}", bytes(content)


def make_files(folder: Path, count: int, seed: int, large: bool = True) -> dict[str, str]:
    """The files, every tenth a good picture; path -> "good", "scored", "refused" or "either".

    Args:
        large: with those that take a second each.
    """
    pictures, chance = photographs(), random.Random(seed)
    kinds = [(refused, "refused"), (scored, "scored"), (plain, "scored"), (scored_or_refused, "either")]
    made = [(*file, fate) for kind, fate in kinds for file in kind(pictures[0]).items()]
    if not large:
        made = [one for one in made if not os.fsdecode(one[0]).startswith("slow")]
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


def predicted(paths: list[str], output: str, words: list[str]) -> Rows:
    """The rows that main.py predict writes."""
    code = eambnet(["predict", *paths, "--output", output, "--device", "cpu", *words])
    written, rows = read_csv(Path(output)), {}
    for row in written:
        low, high = (float(row[name] or 0) for name in ("score_min", "score_max"))
        reason = "" if row["error"].startswith(NOTE) else row["error"]
        rows[row["path"]] = (None if reason else (float(row["score"]) - low) / (high - low), reason)
    if len(rows) != len(written) or code != any(reason for _, reason in rows.values()):
        raise ValueError(f"{len(written)} rows for {len(rows)} files, exit code {code}")
    return rows


def loaded(paths: list[str]) -> Rows:
    """The rows of what the loader of trainings reads, without scores."""
    scale, zeros = Scale("score", 1.0, 5.0, 3.0), np.zeros(len(paths))
    pictures = PictureSet(RatedSet("odd", "train", "", paths, paths, zeros, scale), 224, skip_broken=True)
    rows = {}
    for batch in make_loader(pictures, TestOrder(len(paths), 16), DECODERS):
        rows |= {encodable(paths[index]): (None, "") for index in batch.index.tolist()}
        rows |= {encodable(path): (None, reason) for path, reason in batch.broken}
    return rows


def with_peak(function: Callable, arguments: tuple) -> tuple[object, float]:
    """What a function returns, and the peak memory in GB of this process or a child."""
    # Of decoding processes: spawned ones would be root again.
    multiprocessing.set_start_method("fork", force=True)
    with bound_by_permissions():
        result = function(*arguments)
    unit = 1 if sys.platform == "darwin" else 1024
    return result, max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) * unit / 1e9


def in_new_process(function: Callable, *arguments, seconds: float) -> tuple[object, float]:
    """As `with_peak`, in a new process; raises its exception, BrokenProcessPool or TimeoutError."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        return pool.submit(with_peak, function, arguments).result(seconds)
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown()


def problems_of(fates: dict[str, str], runs: dict[str, Rows]) -> list[str]:
    """What is wrong with the rows of all runs; a run on the good pictures alone has rows of those only."""
    extra = {path for rows in runs.values() for path in rows} - fates.keys()
    problems = [f"{path}: a row that was not asked for" for path in sorted(extra)]
    for path, fate in fates.items():
        rows = [rows.get(path) for name, rows in runs.items() if fate == "good" or name != ALONE]
        reasons = [row[1] for row in rows if row and row[1]]
        shares = [row[0] for row in rows if row and row[0] is not None]
        wanted = {"good": [0], "scored": [0], "refused": [len(rows)], "either": [0, len(rows)]}[fate]
        if None in rows or len(reasons) not in wanted or not all(map(str.strip, reasons)):
            problems.append(f"{path}: should be {fate} in all runs: {rows}")
        elif shares and max(shares) - min(shares) > 1e-5 + 1e-9:
            problems.append(f"{path}: scores are {max(shares) - min(shares):.2g} of the range apart")
    return problems


def hostile(folder: Path, fates: dict[str, str], memory: float, words: list[str]) -> list[str]:
    """What is wrong when the files (path -> fate) are scored and loaded."""
    everything, good = [str(folder / "files")], [path for path, fate in fates.items() if fate == "good"]
    others = ["--workers", "3", "--batch-size", "5", *words]
    runs = {
        ALONE: (predicted, good, f"{folder}/good.csv", words),
        "predict": (predicted, everything, f"{folder}/a.csv", ["--workers", "2", *words]),
        "predict again": (predicted, everything, f"{folder}/b.csv", others),
        "loader": (loaded, list(fates)),
    }
    rows, problems = {}, []
    for name, run in runs.items():
        try:
            rows[name], peak = in_new_process(*run, seconds=120 + len(fates))
        except Exception as error:
            problems.append(f"{name}: {error!r}")
            continue
        reasons = sum(bool(reason) for _, reason in rows[name].values())
        print(f"{name}: {len(rows[name])} rows, {reasons} with a reason, {peak:.2f} GB", flush=True)
        if peak > memory:
            problems.append(f"{name}: took {peak:.2f} GB, allowed are {memory:g}")
    return problems + problems_of({encodable(path): fate for path, fate in fates.items()}, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", type=int, default=5000, help="in all (default 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default 0)")
    parser.add_argument("--memory", type=float, default=4.0, help="GB a process may take (default 4)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        fates = make_files(Path(name, "files"), options.files, options.seed)
        problems = hostile(Path(name), fates, options.memory, [])
    for problem in problems[:50]:
        print("WRONG:", ascii(problem))
    print(f"{len(problems)} wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
