"""Decoding: every kind of picture becomes the same pixels as PIL's, and every other file a clear sentence."""

import itertools
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module

import numpy as np
import pi_heif
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageOps

from eamb.readers import decoding
from eamb.readers.decoding import (
    MOST_SCANS,
    PICTURE_ENDINGS,
    DecodeError,
    View,
    decode,
    decode_views,
    normalise,
    picture_views,
    stack,
)
from eamb.readers.endings import RAW_ENDINGS
from scripts.studies.colour import SPACES, rgb_profile
from tests.stress.images import chunk


def random_image(seed=0, size=(8, 6)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(tmp_path, image, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [None, 5, (7, 3)])
def test_every_mode_comes_out_as_rgb(tmp_path, mode, size):
    image = random_image().convert("I").convert("I;16") if mode == "I;16" else random_image().convert(mode)
    pixels = decode(saved(tmp_path, image, f"picture.{'tif' if mode == 'CMYK' else 'png'}"), size)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    assert pixels.shape == {None: (6, 8, 3), 5: (5, 5, 3), (7, 3): (7, 3, 3)}[size]


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_every_sixteen_bit_value_is_rounded_to_the_nearest(tmp_path, name):
    values = np.arange(65536, dtype=np.uint16).reshape(1024, 64)
    pixels = decode(saved(tmp_path, Image.fromarray(values), name))
    assert (pixels == np.rint(values / 257)[:, :, None]).all()


# ---- TIFF


KINDS = {  # photometric interpretation, channels, what the last of them is
    "grey": ("minisblack", 1, None),
    "white is 0": ("miniswhite", 1, None),
    "grey, transparent": ("minisblack", 2, "unassalpha"),
    "RGB": ("rgb", 3, None),
    "RGB, transparent": ("rgb", 4, "unassalpha"),
    "RGB and more": ("rgb", 4, "unspecified"),
    "CMYK": ("separated", 4, None),
}


def as_shown(values, kind):
    """(H, W, channels) of a TIFF -> (H, W, 3) in levels, by the specification."""
    levels = values.astype(float) * {"u": 1, "i": 1, "f": 65535}[values.dtype.kind]
    levels = levels if values.dtype.itemsize == 1 else levels / 257
    if kind == "white is 0":
        levels = 255 - levels
    if kind == "CMYK":
        return (255 - levels[..., :3]) * (255 - levels[..., 3:]) / 255
    colours = levels[..., :3] if levels.shape[2] > 2 else levels[..., :1]
    opaque = levels[..., -1:] / 255 if "transparent" in kind else 1
    return np.broadcast_to(colours * opaque + 255 * (1 - opaque), (*levels.shape[:2], 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_every_layout_of_a_tiff_is_read_as_it_is_meant_or_refused(tmp_path, kind, dtype):
    (photometric, channels, last), path, read = KINDS[kind], tmp_path / "a.tif", set()
    top = min(65535, np.iinfo(dtype).max) if dtype[0] != "f" else 0
    random = np.random.default_rng(0)
    values = random.integers(0, top + 1, (20, 37, channels)) if top else random.random((20, 37, channels))
    values = values.astype(dtype)
    cuts = ({}, {"rowsperstrip": 7}, {"tile": (16, 16)})
    choices = itertools.product("<>", (None, "zlib"), ("contig", "separate"), cuts)
    for order, compression, planes, cut in choices:
        words = {"photometric": photometric, "compression": compression, "metadata": None, **cut}
        if channels > 1:
            words |= {"planarconfig": planes, "extrasamples": [last] if last else None}
        laid_out = np.moveaxis(values, 2, 0) if channels > 1 and planes == "separate" else values.squeeze()
        tifffile.imwrite(path, laid_out, byteorder=order, **words)
        assert (tifffile.imread(path) == laid_out).all()  # another decoder, which knows all of them
        try:
            pixels = decode(path)
        except DecodeError:
            continue
        # Pillow takes the upper 8 of 16 bits of each colour, before it multiplies.
        assert np.abs(pixels - as_shown(values, kind)).max() < (
            2.6 if dtype == "u2" and channels > 1 else 1.01
        )
        read.add((order, compression, planes))
    always = {"u1": "<>", "u2": "<" if kind in ("white is 0", "CMYK") else "<>"}.get(dtype, "")
    if dtype == "u2" and kind in (
        "grey, transparent",
        "RGB and more",
    ):  # no Pillow, or not every one, reads these
        always = ""
    assert {(order, pressed, "contig") for order in always for pressed in (None, "zlib")} <= read
    if dtype[0] == "f" and kind in ("grey", "RGB"):
        assert {("<", None, "contig"), ("<", "zlib", "contig"), (">", None, "contig")} <= read


def tiff(width, height, pixels, *tags, order="<"):
    """A TIFF with one strip, by hand; tags are (number, 16-bit value)."""
    tags = [(256, width), (257, height), (259, 1), (277, 1), (278, height), *tags]
    rows = [struct.pack(f"{order}HHIHH", number, 3, 1, value, 0) for number, value in tags]
    rows += [
        struct.pack(f"{order}HHII", number, 4, 1, value) for number, value in ((273, 8), (279, len(pixels)))
    ]
    rows.sort(key=lambda row: struct.unpack(f"{order}H", row[:2]))
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(pixels))
    return start + pixels + struct.pack(f"{order}H", len(rows)) + b"".join(rows) + bytes(4)


@pytest.mark.parametrize("bits", [8, 16])
def test_bits_from_behind_and_single_planes_are_read_right_or_refused(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 38), dtype=f"u{bits // 8}")
    backwards = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
    read = 0
    for order, white, fill, planes in itertools.product("<>", (0, 1), (1, 2), (1, 2)):
        content = np.frombuffer(values.astype(values.dtype.newbyteorder(order)).tobytes(), np.uint8)
        content = backwards[content] if fill == 2 else content
        tags = ((258, bits), (262, white), (266, fill), (284, planes))
        (tmp_path / "a.tif").write_bytes(tiff(38, 20, content.tobytes(), *tags, order=order))
        assert (tifffile.imread(tmp_path / "a.tif") == values).all()
        try:
            pixels = decode(tmp_path / "a.tif")[..., 0]
        except DecodeError:
            continue
        levels = values / {8: 1, 16: 257}[bits]
        assert np.abs(pixels - (levels if white else 255 - levels)).max() < 0.51
        read += 1
    assert read == {8: 8, 16: 4}[bits]


def test_twelve_bits_have_4095_levels(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (20, 38))
    digits = "".join(f"{value:012b}" for value in values.ravel())
    content = int(digits, 2).to_bytes(len(digits) // 8, "big")
    for name, turn in (("upright.tif", 1), ("turned.tif", 6)):
        (tmp_path / name).write_bytes(tiff(38, 20, content, (258, 12), (262, 1), (274, turn)))
    pixels = decode(tmp_path / "upright.tif")
    assert np.abs(pixels[..., 0] - values / 4095 * 255).max() < 0.51
    assert (decode(tmp_path / "turned.tif") == np.rot90(pixels, -1)).all()
    assert (decode(tmp_path / "turned.tif", exif=False) == pixels).all()


def test_of_a_tiff_the_first_page_that_is_no_preview_counts(tmp_path):
    path, picture = tmp_path / "pages.tif", np.asarray(random_image(size=(40, 30)))
    for preview, flags in itertools.product((1, 3), ((), (1,), (1, 3))):
        with tifffile.TiffWriter(path) as file:
            for flag in (preview, *flags):
                file.write(picture[:5, :5], subfiletype=flag, photometric="rgb", metadata=None)
            file.write(picture, photometric="rgb", metadata=None, extratags=[(274, "H", 1, 6, True)])
        assert (decode(path) == np.rot90(picture, -1)).all()
        assert (decode(path, exif=False) == picture).all()
    tifffile.imwrite(path, picture[:5, :5], subfiletype=1, photometric="rgb")
    assert decode(path).shape == (5, 5, 3)  # better than nothing
    with tifffile.TiffWriter(path) as file:  # as raw files of cameras are
        file.write(picture[:5, :5], subfiletype=1, photometric="rgb", subifds=1, metadata=None)
        file.write(picture, photometric="rgb", metadata=None)
    with pytest.raises(DecodeError, match="a preview, whose picture is in a form that is not read"):
        decode(path)


# ---- what is no pixel


def png_with(picture, *chunks, after=b""):
    """A PNG with more chunks behind its header."""
    content = picture.read_bytes()
    picture.write_bytes(content[:33] + b"".join(chunks) + content[33:] + after)
    return picture


LONG = zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"Comment\0\0" + LONG)],
        [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)],
        [chunk(b"iCCP", b"profile\0\0" + LONG)],
        [chunk(b"tEXt", b"Comment\0" + bytes(1_000_000))] * 70,
        [chunk(b"tEXt", b"Comment\0damaged")[:-1] + b"!"],
        [chunk(b"eXIf", b"MM\0*damaged")[:-1] + b"!"],
        [chunk(b"gAMA", b"")],
    ],
)
def test_long_and_damaged_chunks_without_pixels_do_not_lose_a_png(tmp_path, chunks):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for image in (random_image(), random_image().quantize(4)):
        path = saved(tmp_path, image, exif=exif if chunks[0][4:8] != b"eXIf" else None)
        expected = decode(path)
        assert (decode(png_with(path, *chunks, after=b"more" * 99)) == expected).all()


def test_a_damaged_png_with_long_text_is_refused_for_its_damage(tmp_path):
    path = png_with(saved(tmp_path, random_image(size=(99, 99))), chunk(b"zTXt", b"Comment\0\0" + LONG))
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(DecodeError, match="image file is truncated"):
        decode(path)


@pytest.mark.parametrize("words", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read_with_a_note(tmp_path, words):
    picture = landscape(64, 80)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    thumbnail = saved(tmp_path, picture, "thumbnail.jpg").read_bytes()
    exif_bytes = exif.tobytes() + thumbnail  # whose scans are not those of the picture
    path, notes = saved(tmp_path, picture, "cut.jpg", exif=exif_bytes, **words), []
    expected, content = decode(path, note=notes.append), path.read_bytes()
    assert notes == [] and content[-2:] == b"\xff\xd9"
    for missing in (2, 1):
        path.write_bytes(content[:-missing])
        assert (decode(path, note=notes.append) == expected).all()
    assert notes == ["the file lacks its end marker"] * 2
    scans = [place for place in range(len(content)) if content.startswith(b"\xff\xda", place)][1:]
    restarts = [
        place for place in range(len(content)) if content[place] == 255 and 0xD0 <= content[place + 1] < 0xD8
    ]
    for cut in (*scans[1:], *restarts, *range(len(content) - 40, len(content) - 5)):
        path.write_bytes(content[:cut])
        with pytest.raises(DecodeError, match="truncated"):
            decode(path)


def test_one_list_of_endings_for_all_that_pillow_knows():
    pi_heif.register_heif_opener()
    import_module("pillow_jxl.JpegXLImagePlugin")
    registered = Image.registered_extensions()
    kinds = (*decoding.FORMATS, "MPO", "HEIF", "JXL")
    known = {ending for ending, kind in registered.items() if kind in kinds}
    assert {*PICTURE_ENDINGS} - {*RAW_ENDINGS} == known - {".pfm"}  # floating point


# ---- modes


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], dtype=np.uint8)
    shown = decode(saved(tmp_path, Image.fromarray(pixels)))[0].tolist()
    assert shown == [[200, 0, 0], [255, 255, 255], [244, 204, 204]]


def test_palette_transparency_does_not_warn_in_threads_and_others_are_heard(tmp_path):
    image = random_image(size=(8, 600)).quantize(4)
    path = saved(tmp_path, image, transparency=bytes([0, 255, 255, 255]))
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("error")
        pixels, *_ = pool.map(decode, [path] * 40)
        with pytest.raises(UserWarning, match="heard"):
            warnings.warn("heard", stacklevel=1)
    first = np.asarray(image) == 0
    assert (pixels[first] == 255).all() and (pixels[~first] == np.asarray(image.convert("RGB"))[~first]).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    # PIL writes the Adobe marker, so the file is inverted as Photoshop's are.
    pixels = decode(saved(tmp_path, red.convert("CMYK"), "press.jpg", quality=95))
    assert np.abs(pixels.astype(int) - [200, 30, 40]).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.png", "turned.jpg"])
def test_exif_orientation_is_respected_unless_told_otherwise(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, random_image(), name, exif=exif)
    with Image.open(path) as image:
        assert (decode(path) == np.asarray(ImageOps.exif_transpose(image))).all()
        assert (decode(path, exif=False) == np.asarray(image)).all()
    assert decode(path).shape == ((6, 8, 3) if orientation < 5 else (8, 6, 3))


@pytest.mark.parametrize("name", ["turned.png", "turned.jpg", "turned.tif"])
def test_several_views_are_what_decoding_for_each_gives(tmp_path, monkeypatch, name):
    exif, opened, seen = Image.Exif(), [], []
    exif[0x0112] = 6
    path = saved(tmp_path, random_image(), name, exif=exif)
    views = [View(exif=False), View(5), View((7, 3), crop=True), View(5, exif=False, crop=True)]
    expected = [decode(path, size, exif, crop=crop) for size, exif, crop, _ in views]
    assert [pixels.shape[:2] for pixels in expected] == [(6, 8), (5, 5), (7, 3), (5, 5)]
    open_file = decoding._opened
    monkeypatch.setattr(decoding, "_opened", lambda *words: opened.append(words) or open_file(*words))
    found = decode_views(path, views, look=lambda picture, exif: seen.append(picture.size))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert (len(opened), seen) == (1, [(8, 6)])  # as the first wants it


def test_damaged_exif_does_not_lose_the_picture(tmp_path):
    path = saved(tmp_path, random_image(), "odd.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\1" * 20)
    assert decode(path).shape == (6, 8, 3)


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (17, 31), (33, 7), (5, 32)])
def test_resizing_is_exactly_pils(tmp_path, size):
    image = random_image(3, (31, 17))
    expected = image.resize(size, Image.Resampling.BILINEAR)
    assert (decode(saved(tmp_path, image), size[::-1]) == np.asarray(expected)).all()


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", b"", "the file is empty"),
        ("a.jpg", b"  <!DOCTYPE html><html>", "a web page (HTML), not a picture; the download failed"),
        ("a.jpg", b"version https://git-lfs.github.com/", "a git-lfs pointer, not the picture; run git lfs"),
        ("a.heic", HEIC, "a damaged HEIC picture"),
        ("a.jpg", HEIC, "a damaged HEIC picture"),
        ("a.jxl", b"\xff\x0a" + b"\1" * 99, "a damaged JPEG XL picture"),
        ("a.NEF", b"II*\0", "a RAW file that LibRaw cannot read"),
        ("a.jpg", b"FUJIFILMCCD-RAW 0201", "a RAW file without its ending; rename it"),
        ("a.mov", b"\0\0\0\x14ftypqt  ", "a video, not a picture"),
        ("a.mp4", b"\0\0\0\x18ftypmp42", "a video, not a picture"),
        ("a.avi", b"RIFF\0\0\0\0AVI LIST", "a video, not a picture"),
        ("a.psd", b"8BPS\0\1", "a Photoshop document; export it as JPEG"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF document, not a picture"),
        ("a.jpg", b"hello", "not a picture in a known format"),
        # It would start another program.
        ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture in a known format"),
        ("a.jpg", None, "there is no such file"),
        ("x" * 300 + ".jpg", None, "File name too long"),
    ],
)
def test_files_that_are_no_pictures_are_named_with_their_reason(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        decode(tmp_path / name)
    assert str(caught.value).startswith(f"decoding: {tmp_path / name} cannot be decoded: {reason}")
    assert caught.value.reason.startswith(reason) and "\n" not in str(caught.value)


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    path = saved(tmp_path, random_image(), "scans.jpg", progressive=True)
    content = path.read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + 80 * last + content[-2:])
    assert decode(path).shape == (6, 8, 3)
    path.write_bytes(content[:-2] + MOST_SCANS * last + content[-2:])
    with pytest.raises(DecodeError, match="a JPEG of more than 100 scans is refused"):
        decode(path)


def test_what_phones_put_behind_a_picture_is_no_scan(tmp_path):
    path = saved(tmp_path, random_image(), "motion.jpg")
    alone = decode(path)
    tail = np.random.default_rng(0).integers(0, 256, 12_000_000, dtype=np.uint8).tobytes()
    assert tail.count(b"\xff\xda") > 100  # by chance
    path.write_bytes(path.read_bytes() + tail)
    assert np.array_equal(decode(path), alone)


def test_a_pipe_and_a_folder_are_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", ""):
        with pytest.raises(DecodeError, match=f"{name} cannot be decoded: a folder, a pipe or"):
            decode(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "large", "seconds", "meets"),
    [
        ("a.png", 64 * 64 - 1, 0.2, False),
        ("a.png", 64 * 64, 60, True),
        ("a.jpg", 64 * 64 // 4, 60, True),  # decoded at half its side
        ("progressive.jpg", 64 * 64 - 1, 0.2, False),  # libjpeg holds it whole
    ],
)
def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch, name, large, seconds, meets):
    path = saved(tmp_path, random_image(size=(64, 64)), name, progressive=name.startswith("p"))
    together = threading.Barrier(2, timeout=seconds)

    def meet(image, tags):
        together.wait()
        return image

    monkeypatch.setattr(decoding, "_upright", meet)
    monkeypatch.setattr(decoding, "LARGE", large)
    with nullcontext() if meets else pytest.raises(DecodeError), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: decode(path, 8, exact=False), [path] * 2))


# ---- large JPEGs, not exactly -----------------------------------------------------------------------


def landscape(height, width):
    """Soft colours with some grain, as a photograph has; no two of its quarters are alike."""
    random = np.random.default_rng(0)
    soft = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + random.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8))


SMALL, BIG = 16, 512  # BIG: 8 times 4 times as large


@pytest.fixture
def decoded_sides(monkeypatch):
    """The shorter side of each picture as libjpeg gave it."""
    sides = []
    noted = lambda image, tags: sides.append(min(image.size)) or image  # noqa: E731
    monkeypatch.setattr(decoding, "_upright", noted)
    return sides


@pytest.mark.parametrize(
    ("times", "expected"),
    [(32, 4), (31, 31 / 4), (7, 7), (1, 1)],  # four times the wanted side is kept, or more
)
def test_a_jpeg_is_decoded_as_small_as_the_margin_allows(tmp_path, decoded_sides, times, expected):
    path = saved(tmp_path, landscape(times * SMALL, times * SMALL + 40), "large.jpg")
    for size, exact in ((SMALL, True), (SMALL, False), ((SMALL, SMALL // 2), False), (None, False)):
        decode(path, size, exact=exact)
    assert decoded_sides == [times * SMALL, expected * SMALL, expected * SMALL, times * SMALL]


def test_for_several_views_a_jpeg_is_decoded_once_as_the_largest_needs_it(tmp_path, decoded_sides):
    path = saved(tmp_path, landscape(BIG, BIG + 40), "large.jpg")
    views = [View(SMALL // 2), View((SMALL, SMALL // 4)), View(SMALL // 4, crop=True)]
    small, largest, _ = decode_views(path, views, exact=False)
    assert decoded_sides == [4 * SMALL]
    assert np.array_equal(largest, decode(path, views[1].size, exact=False))
    assert np.abs(small.astype(int) - decode(path, views[0].size)).max() < 8
    assert decode_views(path, [View(SMALL), View()], exact=False)[1].shape == (BIG, BIG + 40, 3)


@pytest.mark.parametrize(("orientation", "mode"), [(1, "RGB"), (3, "L"), (6, "CMYK"), (7, "RGB"), (8, "L")])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_of_large_jpegs_are_nearly_the_exact_ones(tmp_path, orientation, mode, progressive):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = landscape(BIG, BIG + 64).convert(mode)
    path = saved(tmp_path, picture, "large.jpg", exif=exif, quality=95, progressive=progressive)
    for shape in (SMALL, (SMALL, SMALL + 8)):
        exact, near = decode(path, shape).astype(int), decode(path, shape, exact=False)
        assert 0 < np.abs(near - exact).max() < 8  # 0: nothing was left out, and nothing saved
        assert np.abs(near - exact).mean() < 1
    turned = np.abs(decode(path, SMALL) - decode(path, SMALL, exif=False).astype(int)).max() > 30
    assert turned or orientation == 1


def test_other_formats_are_always_exact(tmp_path):
    path = saved(tmp_path, landscape(BIG, BIG), compress_level=1)
    assert (decode(path, SMALL, exact=False) == decode(path, SMALL)).all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["cut.jpg", "progressive.jpg", "cut.png"])
def test_truncated_files_and_bombs_are_errors_not_gray_pictures(tmp_path, monkeypatch, name, exact):
    path = saved(tmp_path, landscape(BIG, BIG), name, progressive=name == "progressive.jpg")
    times = 2 if name == "cut.png" else 3  # a phone's 200 megapixels are more than 2 times Pillow's limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", BIG * BIG // times + 1)
    assert decode(path, SMALL, exact=exact).shape == (SMALL, SMALL, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", BIG * BIG // times - 1)
    with pytest.raises(DecodeError, match=f"more than {times * (BIG * BIG // times - 1):,} pixels"):
        decode(path, SMALL, exact=exact)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DecodeError, match=f"{name} cannot be decoded: .*truncated"):
        decode(path, SMALL, exact=exact)


# ---- batches ---------------------------------------------------------------------------------------


def test_a_stack_holds_each_picture_and_normalise_is_its_formula_in_the_same_memory_format():
    pictures = [torch.randint(0, 256, (4, 5, 3), dtype=torch.uint8).permute(2, 0, 1) for _ in range(3)]
    batch = stack(pictures)
    assert batch.shape == (3, 3, 4, 5) and batch.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(one, other) for one, other in zip(batch, pictures, strict=True))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    m, d = (torch.tensor(each).double().view(3, 1, 1) for each in (mean, std))
    expected, before = (batch.double() / 255 - m) / d, batch.clone()
    last, first = normalise(batch, mean, std), normalise(batch.contiguous(), mean, std)
    assert last.dtype == torch.float32 and torch.allclose(last.double(), expected, atol=1e-6)
    assert batch.equal(before) and last.equal(first)
    assert last.is_contiguous(memory_format=torch.channels_last) and first.is_contiguous()


@pytest.mark.parametrize("size", [(40, 20), (20, 40)])
def test_a_crop_is_the_middle_of_the_resized_picture(tmp_path, size):
    image = random_image(size=size).resize((size[0] * 8, size[1] * 8), Image.Resampling.BICUBIC)
    pixels = decode(saved(tmp_path, image), 10, crop=True)
    scale = 10 / min(size)
    whole = image.resize([round(side * scale) for side in size], Image.Resampling.BILINEAR)
    left, upper = ((side - 10) // 2 for side in whole.size)
    expected = np.asarray(whole.crop((left, upper, left + 10, upper + 10)), int)
    assert abs(pixels.astype(int) - expected).max() <= 1


def test_a_crop_of_another_shape_is_of_that_shape(tmp_path):
    image = Image.new("RGB", (100, 60), "black")
    image.paste("white", (36, 0, 64, 60))
    pixels = decode(saved(tmp_path, image), (30, 10), crop=True)  # 60 by 20 of the middle
    assert pixels.shape == (30, 10, 3) and (pixels == 255).all()
    assert (decode(tmp_path / "picture.png", (30, 10)) == 0).any()


# ---- pictures in memory


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_picture_in_memory_gives_the_pixels_of_its_file_and_stays_as_it_is(tmp_path, mode, loaded):
    exif, views = Image.Exif(), [View(5), View((7, 4), exif=False, crop=True, icc=False)]
    exif[ExifTags.Base.Orientation] = 6
    image = random_image()
    if mode in ("I;16", "F"):
        pixels = np.random.default_rng(0).integers(0, 1000, (6, 8))
        image = Image.fromarray(pixels.astype(np.uint16 if mode == "I;16" else np.float32))
    profile = rgb_profile(SPACES["adobe"]) if mode in ("RGB", "RGBA", "P") else None
    options = {} if loaded else {"exif": exif}  # a loaded TIFF is turned already
    path = saved(
        tmp_path,
        image.convert(mode) if image.mode == "RGB" else image,
        "a.tif",
        icc_profile=profile,
        **options,
    )
    with Image.open(path) as picture, Image.open(path) as again:
        if loaded:
            picture.load()
        for some in (views, views[:1]):
            for ours, files in zip(picture_views(picture, some), decode_views(path, some), strict=True):
                assert (ours == files).all()
        assert (np.asarray(picture) == np.asarray(again)).all() and picture.info == again.info


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_pixels_are_grey_rgb_or_rgba(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, *channels), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels))
    for given in (pixels, torch.from_numpy(pixels), pixels[::-1].copy()[::-1]):
        assert (picture_views(given, [View()])[0] == decode(path)).all()


@pytest.mark.parametrize(
    "pixels", [np.zeros((3, 9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 2), np.uint8), b"jpeg"]
)
def test_other_pixels_are_refused_by_shape_and_type(pixels):
    words = r"this picture cannot be decoded: pixels must be \(H, W\), \(H, W, 3\) or \(H, W, 4\) uint8, got "
    with pytest.raises(DecodeError, match=words):
        picture_views(pixels, [View(5)])


def test_a_picture_that_pillow_cannot_load_is_a_reason(tmp_path):
    path = saved(tmp_path, random_image(size=(99, 99)), "cut.jpg")
    path.write_bytes(path.read_bytes()[:-900])
    with Image.open(path) as cut, pytest.raises(DecodeError, match=r"this picture cannot be .* truncated"):
        picture_views(cut, [View(5)])
