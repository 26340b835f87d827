"""Files of cameras and phones: the pixels of the same picture as PNG; missing packages, damage."""

import io
import itertools
import struct
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image
from pillow_jxl import JpegXLImagePlugin  # noqa: F401 - so that Pillow writes it

from eamb.readers import camera_files, decoding
from eamb.readers.camera_files import jxl_size, read_exif
from eamb.readers.decoding import DecodeError, decode
from eamb.readers.endings import AVIF_ENDINGS
from eamb.readers.exif import read_taken
from scripts.samples import LOSSLESS, write_dng, write_heic
from tests.test_decoding import landscape, random_image, saved

SIZE = (64, 48)
TAKEN = {
    ExifTags.Base.Make: "Canon",
    ExifTags.Base.Model: "Canon EOS R5",
    ExifTags.Base.DateTime: "2024:05:03 14:03:22",
}
# Made by cjxl 0.7 -d 0 from PNGs of 3 x 2 pixels with EXIF orientations, which are behind ff0a0840.
ORIENTED = "ff0a0840%02x04149704080201004c004b188b15c241c3193e802327e7c69c24601400"
JXL_PIXELS = np.arange(0, 18 * 13, 13, dtype=np.uint8).reshape(2, 3, 3)


AVIF = ("a.avif",) if AVIF_ENDINGS else ()  # of older Pillows


def exif_of(orientation):
    exif = Image.Exif()
    exif.update({**TAKEN, ExifTags.Base.Orientation: orientation})
    return exif


def picture():
    return landscape(SIZE[1], SIZE[0])


def written(path, orientation=1, image=None, preview=None):
    """A file of the kind that its ending says, with what a camera writes into its EXIF."""
    image, exif = image or picture(), exif_of(orientation)
    if path.suffix == ".dng":
        write_dng(path, image, preview, exif)
    elif path.suffix == ".heic":
        write_heic(path, image, exif=exif.tobytes())
    elif path.suffix == ".jxl":  # packed from a JPEG, as the encoder does not write orientations otherwise
        image.save(path.with_suffix(".jpg"), exif=exif, quality=95)
        with Image.open(path.with_suffix(".jpg")) as jpeg:
            jpeg.save(path, lossless_jpeg=True)
    else:
        image.save(
            path, exif=exif, **({"quality": 100, "subsampling": "4:4:4"} if path.suffix == ".avif" else {})
        )
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("a.heic", 0), *((name, 3) for name in AVIF), ("a.jxl", 25), ("a.dng", 20), ("preview.dng", 12)],
)
def test_each_format_is_turned_once_and_has_the_pixels_time_and_camera_of_the_png(
    tmp_path, orientation, name, tolerance
):
    soft = picture().resize((6, 4)).resize(SIZE, Image.Resampling.BICUBIC)  # for the Bayer pattern
    path = written(tmp_path / name, orientation, soft, soft if name == "preview.dng" else None)
    as_png, seen = written(tmp_path / "same.png", orientation, soft), []
    for size in (None, (10, 14)):
        pixels, expected = decode(path, size, look=lambda *both: seen.append(both)), decode(as_png, size)
        if name == "a.dng" and size is None:  # at half size
            expected = decode(as_png, pixels.shape[:2])
            assert sorted(pixels.shape[:2]) == [24, 32]
        assert np.abs(pixels.astype(int) - expected).max() <= tolerance
    assert {read_taken(exif).camera for _, exif in seen} == {"Canon EOS R5"}
    assert {str(read_taken(exif).time) for _, exif in seen} == {"2024-05-03 14:03:22"}
    if path.suffix in (".avif", ".dng"):  # HEIC is always turned
        unturned = decode(path, exif=False)
        assert (
            np.abs(unturned - decode(as_png, unturned.shape[:2], exif=False).astype(int)).max() <= tolerance
        )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("boxed", [False, True])
def test_of_jpeg_xl_the_orientation_of_its_codestream_counts_alone(tmp_path, orientation, boxed):
    content = bytes.fromhex(ORIENTED % (2 * orientation - 1))
    if boxed:
        tags = b"\0\0\0\0" + exif_of(8 if orientation < 8 else 1).tobytes()[6:]
        boxes = ((b"ftyp", b"jxl \0\0\0\0jxl "), (b"Exif", tags), (b"jxlc", content))
        content = camera_files.JXL_BOX + b"".join(
            (len(data) + 8).to_bytes(4, "big") + kind + data for kind, data in boxes
        )
    (tmp_path / "a.jpg").write_bytes(content)  # with a wrong ending
    as_png = saved(tmp_path, Image.fromarray(JXL_PIXELS), exif=exif_of(orientation))
    assert (decode(tmp_path / "a.jpg") == decode(as_png)).all()
    assert jxl_size(content) == (3, 2)


@pytest.mark.parametrize("size", [(8, 8), (256, 192), (160, 120), (300, 200), (4000, 9), (513, 77), (1, 1)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "JXL")
    assert jxl_size(file.getvalue()) == size


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16", "F"])
def test_grey_transparent_and_deep_jpeg_xl_are_as_their_png(tmp_path, mode):
    values, notes = np.random.default_rng(0).integers(20000, 65536, (6, 8)).astype(np.uint16), []
    deep = Image.fromarray(values)
    image = deep if mode in ("I;16", "F") else random_image().convert(mode)
    as_float = Image.fromarray((values / 65535).astype(np.float32))
    path = saved(tmp_path, as_float if mode == "F" else image, "a.jxl", lossless=True)
    pixels = decode(path, note=notes.append)
    with Image.open(path) as opened:
        as_png = saved(tmp_path, image, icc_profile=opened.info["icc_profile"])  # deep ones are linear
    assert np.abs(pixels - decode(as_png).astype(int)).max() <= 3 * (mode == "F")
    assert notes == ["floating-point pixels: 0 was taken as black and 1 as white"] * (mode == "F")


def test_heic_of_ten_bits_and_of_hdr_is_read_in_eight_bits(tmp_path):
    values, notes = np.random.default_rng(0).integers(0, 1024, (48, 64, 3)), []
    ten = pillow_heif.from_bytes("RGB;10", SIZE, values.astype(np.uint16).tobytes())
    ten.save(tmp_path / "a.heic", **LOSSLESS)
    assert np.abs(decode(tmp_path / "a.heic", note=notes.append) - values / 1023 * 255).max() < 1.1
    ten.save(tmp_path / "hdr.heic", **LOSSLESS, color_primaries=9, transfer_characteristics=16)
    decode(tmp_path / "hdr.heic", note=notes.append)
    assert notes == ["an HDR picture (PQ), read without tone mapping; it looks flat"]


def test_the_first_picture_counts_not_its_gain_map_or_thumbnail(tmp_path):
    first, other = random_image(size=SIZE), random_image(1, (16, 12))
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[other], quality=95)  # as Ultra HDR is stored
    first.save(tmp_path / "alone.jpg", quality=95)
    assert (decode(tmp_path / "a.mpo") == decode(tmp_path / "alone.jpg")).all()
    several = pillow_heif.from_pillow(other)
    several.add_from_pillow(first)
    several.save(tmp_path / "a.heic", primary_index=1, **LOSSLESS)
    assert (decode(tmp_path / "a.heic") == np.asarray(first)).all()


def test_profiles_stay_with_their_pictures(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    write_heic(tmp_path / "a.heic", picture(), icc_profile=profile)
    for name in AVIF:
        picture().save(tmp_path / name, icc_profile=profile)
    for name in ("a.heic", *AVIF):
        with decoding.ExitStack() as opened:
            image, _, _ = decoding._loaded(tmp_path / name, None, 0, opened)
            assert image.info["icc_profile"] == profile


# ---- RAW


@pytest.mark.parametrize(("side", "from_preview"), [(16, True), (32, True), (33, False), ((32, 33), False)])
def test_a_raw_preview_is_taken_unless_it_is_smaller_than_asked_for(tmp_path, side, from_preview):
    preview = Image.new("RGB", (44, 32), (200, 0, 0))
    path = written(tmp_path / "a.dng", preview=preview, image=Image.new("RGB", (88, 72), (0, 0, 200)))
    red, _, blue = decode(path, side).mean(axis=(0, 1))
    assert (red > 190 and blue < 10) if from_preview else (red < 10 and blue > 190)


def test_a_small_preview_is_better_than_nothing_and_a_cut_raw_is_no_black_picture(tmp_path):
    path, notes = written(tmp_path / "a.dng", preview=picture().resize((24, 16)), image=picture()), []
    content = path.read_bytes()
    path.write_bytes(content[:-3000])
    assert decode(path, 64, note=notes.append).shape == (64, 64, 3)
    assert notes == ["scored by its preview of 24x16; LibRaw cannot develop the rest"]
    path = written(tmp_path / "b.dng")
    content = path.read_bytes()
    path.write_bytes(content[:-3000])
    with pytest.raises(DecodeError, match="a RAW file that LibRaw cannot read"):
        decode(path, 64)
    path.write_bytes(content[: -2 * SIZE[0] * SIZE[1]] + bytes(2 * SIZE[0] * SIZE[1]))
    with pytest.raises(DecodeError, match="a damaged RAW file: all pixels are zero"):
        decode(path, 64)
    path.write_bytes(content.replace(struct.pack("<HH", 272, 2), struct.pack("<HH", 269, 2)))
    with pytest.raises(DecodeError, match="a damaged RAW file: it names no camera"):
        decode(path, 64)


def tiff_of(tags, start=b"MM\0*"):
    """EXIF as bytes, which begin as a RAW file does."""
    exif = Image.Exif()
    exif.update(tags)
    return start + exif.tobytes()[10:]


def test_exif_is_found_in_every_make_of_raw_file(tmp_path):
    details = {0x9003: "2021:05:12 12:21:21", 0x9291: "92", 0xA431: "0930"}
    whole = Image.Exif()
    whole.update({0x010F: "Canon", 0x0110: "Canon EOS R6"})
    whole.get_ifd(ExifTags.IFD.Exif).update(details)
    like_tiff = whole.tobytes()[6:]
    canon = b"\0\0\0\x18ftypcrx " + bytes(40) + b"CMT1" + tiff_of({0x010F: "Canon", 0x0110: "Canon EOS R6"})
    files = {
        "a.nef": like_tiff,
        "a.orf": like_tiff[:2] + b"OR" + like_tiff[4:],
        "a.cr3": canon + b"CMT2" + tiff_of(details),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        taken = read_taken(read_exif(tmp_path / name))
        assert (taken.camera, str(taken.time)) == ("Canon EOS R6, no. 0930", "2021-05-12 12:21:21.920000")
        for cut in range(0, len(content), 31):  # damaged in any way, it is an EXIF still
            (tmp_path / name).write_bytes(content[:cut])
            assert isinstance(read_exif(tmp_path / name), Image.Exif)


# ---- missing packages, hostile files


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("a.heic", "pi_heif", "pi-heif"),
        ("a.jxl", "pillow_jxl.JpegXLImagePlugin", "pillow-jxl-plugin"),
        ("a.dng", "rawpy", "rawpy"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(tmp_path, monkeypatch, name, module, package):
    path = written(tmp_path / name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        DecodeError, match=f"need the package {package}: pip install -r requirements-photos.txt"
    ):
        decode(path)


@pytest.mark.parametrize("name", ["a.heic", *AVIF, "a.jxl", "a.dng", "preview.dng"])
def test_cut_and_blanked_files_are_errors_in_one_line(tmp_path, name):
    path = written(tmp_path / name, preview=picture() if name == "preview.dng" else None)
    content = path.read_bytes()
    for cut, zeros in itertools.product((0, 3, 20, len(content) // 4), (0, 3000)):
        path.write_bytes(content[:cut] + bytes(zeros))
        with pytest.raises(DecodeError) as caught:
            decode(path, 16)
        assert caught.value.reason and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "ending"), [*itertools.product(("a.heic", "a.jxl", "a.png", *AVIF), (".jpg", ".nef"))]
)
def test_the_content_counts_not_the_ending(tmp_path, content, ending):
    path = written(tmp_path / content)
    expected = decode(path)
    assert (decode(path.rename(path.with_suffix(ending))) == expected).all()


@pytest.mark.parametrize("name", ["a.heic", *AVIF, "a.jxl", "a.dng"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch, name):
    path, pixels = written(tmp_path / name), SIZE[0] * SIZE[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2)
    decode(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2 - 1)
    with pytest.raises(
        DecodeError, match=f"more than {pixels - 2:,} pixels, refused as a decompression bomb"
    ):
        decode(path)


def test_a_jpeg_xl_that_claims_the_largest_size_is_refused(tmp_path):
    sides = 0b0 | (3 << 1) | ((2**30 - 1) << 3) | (1 << 33)  # not small, 30 bits of height, ratio 1
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + sides.to_bytes(8, "little") + bytes(99))
    with pytest.raises(DecodeError, match="refused as a decompression bomb"):
        decode(tmp_path / "a.jxl")
