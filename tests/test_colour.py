"""Colour profiles: known colours, unchanged pixels where nothing is to be converted, bad profiles."""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin
from profiles import BLACK, cmyk_corner, cmyk_profile, grey_profile

from datasets import PictureSet, TestOrder, make_loader
from eamb.network.outputs import Scale
from eamb.readers import colour
from eamb.readers.colour import read_profile
from eamb.readers.decoding import FORMATS, View, decode, decode_views
from eamb.readers.rated import RatedSet
from scripts.studies.colour import D65, SPACES, SRGB, Space, rgb_profile, write_profile
from tests.stress.images import chunk

PROFILES = {name: rgb_profile(space) for name, space in SPACES.items()}
# Linear RGB to XYZ under the space's own white, by rows (Lindbloom, "RGB/XYZ matrices"; of Display P3: CSS
# Color 4, section 10.4); of sRGB also under D50, which is ProPhoto's white.
TO_XYZ = {
    "adobe": "0.5767309 0.1855540 0.1881852 0.2973769 0.6273491 0.0752741 0.0270343 0.0706872 0.9911085",
    "p3": "0.4865709 0.2656677 0.1982173 0.2289746 0.6917385 0.0792869 0 0.0451134 1.0439444",
    "prophoto": "0.7976749 0.1351917 0.0313534 0.2880402 0.7118741 0.0000857 0 0 0.8252100",
    "srgb": "0.4124564 0.3575761 0.1804375 0.2126729 0.7151522 0.0721750 0.0193339 0.1191920 0.9503041",
    "srgb D50": "0.4360747 0.3850649 0.1430804 0.2225045 0.7168786 0.0606169 0.0139322 0.0971045 0.7141733",
}
TO_XYZ = {name: np.array(text.split(), float).reshape(3, 3) for name, text in TO_XYZ.items()}
LINEAR = {
    "adobe": lambda v: v ** (563 / 256),
    "p3": lambda v: np.where(v > 0.04045, ((v + 0.055) / 1.055) ** 2.4, v / 12.92),
    "prophoto": lambda v: np.where(v < 1 / 32, v / 16, v**1.8),
}


def encoded(linear):
    """Linear sRGB, of any range, as levels 0 to 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def expected_srgb(levels, space):
    """(..., 3) levels of an RGB space -> the nearest levels of sRGB in each channel, by the definitions."""
    white = "srgb D50" if space == "prophoto" else "srgb"
    matrix = np.linalg.inv(TO_XYZ[white]) @ TO_XYZ[space]
    return encoded(LINEAR[space](levels / 255) @ matrix.T)


def picture(seed=0, size=(60, 50)):
    """Smooth blotches of all colours."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def saved(tmp_path, image, profile, name="a.png", **words):
    image.save(tmp_path / name, icc_profile=profile, **words)
    return tmp_path / name


def distance(a, b):
    return np.abs(a.astype(float) - b).max()


# ---- colours


@pytest.mark.parametrize("space", SPACES)
def test_colours_are_those_of_the_definition(tmp_path, space):
    levels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    levels[0] = np.linspace(0, 255, 100).astype(np.uint8)[:, None]  # greys
    path, notes = saved(tmp_path, Image.fromarray(levels), PROFILES[space]), []
    pixels = decode(path, note=notes.append)
    assert distance(pixels, expected_srgb(levels, space)) < 1.6  # LittleCMS computes in 16 bits
    assert (decode(path, icc=False) == levels).all() and distance(pixels, levels) > 50 and not notes


@pytest.mark.parametrize(
    ("space", "levels"),  # of the red, green and blue of sRGB, as every colour picker shows them
    [
        ("p3", [(234, 51, 35), (117, 251, 76), (0, 0, 245)]),
        ("adobe", [(219, 0, 0), (144, 255, 60), (0, 0, 250)]),
        ("prophoto", [(179, 70, 26), (138, 237, 78), (86, 35, 236)]),
    ],
)
def test_the_primaries_of_srgb_come_back_from_every_space(tmp_path, space, levels):
    path = saved(tmp_path, Image.fromarray(np.array([levels], np.uint8)), PROFILES[space])
    assert distance(decode(path)[0], 255 * np.eye(3)) < 25  # one level of P3 or ProPhoto is many near 0
    assert np.abs(decode(path)[0].diagonal() - 255.0).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_pictures_of_a_grey_profile(tmp_path, mode):
    ramp = np.tile(np.arange(256, dtype=np.uint16), (4, 1))
    image = Image.fromarray(257 * ramp) if mode == "I;16" else Image.fromarray(ramp.astype(np.uint8))
    if mode == "LA":
        image.putalpha(255)
    elif mode == "1":
        image = image.convert("1")
    path = saved(tmp_path, image, grey_profile(1.8))
    levels = decode(path, icc=False)
    assert mode == "1" or (levels == ramp[..., None]).all()  # 16 bits are first rounded to 8
    assert distance(decode(path), encoded((levels / 255) ** 1.8)) < 1.6


def test_grey_pictures_of_a_colour_profile_and_transparent_ones(tmp_path):
    grey = picture().convert("L")
    levels = np.asarray(grey.convert("RGB"))
    path = saved(tmp_path, grey, PROFILES["prophoto"])
    assert distance(decode(path), expected_srgb(levels, "prophoto")) < 1.6
    clear = picture()
    clear.putalpha(grey.point(lambda value: 255 * (value > 128)))
    pixels, opaque = decode(saved(tmp_path, clear, PROFILES["p3"])), np.asarray(clear)[..., 3] == 255
    assert (pixels[~opaque] == 255).all() and 0 < opaque.mean() < 1
    assert distance(pixels[opaque], expected_srgb(np.asarray(clear)[opaque][:, :3], "p3")) < 1.6
    palette = picture().quantize(16)
    expected = expected_srgb(np.asarray(palette.convert("RGB")), "adobe")
    assert distance(decode(saved(tmp_path, palette, PROFILES["adobe"])), expected) < 1.6


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_inks_of_a_press(tmp_path, name):
    inks = np.array([*np.ndindex(2, 2, 2, 2)], np.uint8)  # (16, 4)
    pixels = np.repeat(np.repeat(255 * inks.reshape(2, 8, 4), 8, 0), 8, 1)
    image = Image.fromarray(pixels, mode="CMYK")
    path = saved(tmp_path, image, cmyk_profile(), name, **{"quality": 100} if name == "a.jpg" else {})
    lab = np.array([cmyk_corner(*index) for index in inks])
    y = (lab[:, 0] + 16) / 116
    roots = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    ratios = np.where(
        roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)
    )  # CIE 15, inverse of CIELAB
    linear = ratios * (0.9642, 1, 0.8249) @ np.linalg.inv(TO_XYZ["srgb D50"]).T
    found = decode(path)[4::8, 4::8].reshape(16, 3)
    assert distance(found, encoded(linear)) < 4  # L is kept in 255 steps
    assert (found[(lab == BLACK).all(axis=1)] == 0).all()
    assert distance(decode(path, icc=False)[4::8, 4::8].reshape(16, 3), found) > 30


# ---- the order of steps


def test_colours_are_converted_before_a_picture_is_resized_and_shown(tmp_path):
    exif, seen = Image.Exif(), []
    exif[0x0112] = 6
    path = saved(tmp_path, picture(), PROFILES["prophoto"], exif=exif)
    (tmp_path / "converted").mkdir()
    upright = Image.fromarray(decode(path))
    converted, ignored = (
        saved(tmp_path, Image.fromarray(decode(path, icc=icc)), None, f"{icc}.png") for icc in (True, False)
    )
    views = [View(20, crop=True), View(20, icc=False), View(30, False), View(icc=None)]
    found = decode_views(path, views, look=lambda shown, tags: seen.append(shown))
    assert (found[0] == decode(converted, 20, crop=True)).all()
    assert (found[1] == decode(ignored, 20)).all()
    assert (found[2] == decode(path, 30, exif=False)).all()
    assert (found[3] == decode(ignored)).all()
    assert (np.asarray(seen[0]) == np.asarray(upright)).all()


def test_a_large_jpeg_is_decoded_small_and_then_converted(tmp_path):
    path = saved(tmp_path, picture(size=(1600, 1200)), PROFILES["adobe"], "a.jpg", quality=95)
    exact, fast = decode(path, 64), decode(path, 64, exact=False)
    assert 0 < distance(exact, fast) < 12 < 30 < distance(decode(path, 64, exact=False, icc=False), fast)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", *["avif"] * ("AVIF" in FORMATS)])
def test_the_profile_of_every_format_is_used(tmp_path, ending):
    path = saved(tmp_path, picture(), PROFILES["prophoto"], f"a.{ending}")
    assert distance(decode(path), expected_srgb(decode(path, icc=False), "prophoto")) < 1.6


# ---- nothing to convert


def table_curve(steps):
    """sRGB with its curve as a table, as in the profile of 1998 that most files have."""
    values = np.linspace(0, 1, steps)
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    curve = b"curv" + np.array([0, steps], ">u4").tobytes() + np.rint(65535 * linear).astype(">u2").tobytes()
    source = ImageCms.ImageCmsProfile(io.BytesIO(rgb_profile(SRGB))).profile
    tags = {f"{name}TRC": curve for name in "rgb"}
    for name in "rgb":
        values = getattr(source, {"r": "red", "g": "green", "b": "blue"}[name] + "_colorant")[0]
        tags[f"{name}XYZ"] = b"XYZ " + np.array([0, *np.rint(65536 * np.array(values))], ">i4").tobytes()
    return write_profile("sRGB, table", "RGB ", tags)


SAME = {
    "by formula": rgb_profile(SRGB),
    "by table": table_curve(1024),
    "by a short table": table_curve(26),
    "of LittleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pictures_with_an_srgb_profile_keep_their_pixels(tmp_path, name, mode):
    assert read_profile(SAME[name]) == (None, "RGB")
    notes, path = [], saved(tmp_path, picture().convert(mode), SAME[name])
    plain = saved(tmp_path, picture().convert(mode), None, "plain.png")
    assert (decode(path, note=notes.append) == decode(plain)).all() and not notes
    assert (decode(path, 20) == decode(path, 20, icc=False)).all()


def test_a_profile_that_is_only_nearly_srgb_is_converted():
    gamma = Space("Gamma 2.2", SRGB.primaries, D65, (2.2, 1, 0, 0, 0))
    assert read_profile(rgb_profile(gamma))[0] and read_profile(grey_profile(2.2))[0]


def test_a_picture_without_profile_costs_nothing_and_a_profile_is_read_once(tmp_path, monkeypatch):
    none, grey = saved(tmp_path, picture(), None), saved(tmp_path, picture(), grey_profile(1.8), "g.png")
    read, srgb = [], ImageCms.createProfile
    monkeypatch.setattr(ImageCms, "createProfile", lambda name: read.append(1) or srgb(name))
    read_profile.cache_clear()
    for name in ("p3", "adobe", "p3"):
        for seed in range(3):
            decode(saved(tmp_path, picture(seed), PROFILES[name]))
    assert len(read) == 2
    decode(none)
    decode(grey, icc=False)
    decode(tmp_path / "a.png", icc=False)
    assert len(read) == 2
    large = cmyk_profile(more=bytes(colour.LARGEST_KEPT))
    for _ in range(2):  # is not kept
        decode(saved(tmp_path, picture().convert("CMYK"), large, "a.tif"))
    assert len(read) == 4 and read_profile.cache_info().currsize == 2


# ---- bad profiles


LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
BAD = {
    "empty": (b"", "it is damaged"),
    "cut": (PROFILES["p3"][:300], "it is damaged"),
    "noise": (bytes(range(256)) * 3, "it is damaged"),
    "no curves": (write_profile("Nothing", "RGB ", {}), "it is damaged"),
    "CIELAB": (LAB, "its colour space is Lab"),
    "CMYK": (cmyk_profile(), "it is for CMYK pictures, which this one is not"),
    "grey": (grey_profile(1.8), "it is for grey pictures, which this one is not"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_a_bad_profile_is_ignored_with_a_note(tmp_path, kind, ending):
    (profile, reason), notes = BAD[kind], []
    path = saved(tmp_path, picture(), profile, f"a.{ending}")
    if not profile:
        path = with_empty_profile(path)
    assert (decode(path, note=notes.append) == decode(path, icc=False)).all()
    assert notes == [f"its colour profile is ignored: {reason}"]


def with_empty_profile(path):
    """Pillow writes none."""
    if path.suffix == ".jpg":  # the second of two parts, of which the first is missing
        content = path.read_bytes()
        part = b"ICC_PROFILE\0\2\2" + PROFILES["p3"]
        path.write_bytes(content[:2] + b"\xff\xe2" + (len(part) + 2).to_bytes(2, "big") + part + content[2:])
        return path
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[TiffImagePlugin.ICCPROFILE] = 4  # numbers, where bytes belong
    tags[TiffImagePlugin.ICCPROFILE] = (7, 8, 9)
    picture().save(path, tiffinfo=tags)
    return path


def test_a_cmyk_picture_ignores_a_profile_for_rgb(tmp_path):
    notes, image = [], picture().convert("CMYK")
    path = saved(tmp_path, image, PROFILES["p3"], "a.tif")
    assert (decode(path, note=notes.append) == np.asarray(image.convert("RGB"))).all()
    assert notes == ["its colour profile is ignored: it is for RGB pictures, which this one is not"]


def test_no_damage_to_a_profile_costs_the_picture(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "a.tif"
    for profile in (PROFILES["p3"], cmyk_profile(), grey_profile(1.8)):
        image = picture(size=(8, 8)).convert(
            {"RGB ": "RGB", "CMYK": "CMYK", "GRAY": "L"}[profile[16:20].decode()]
        )
        for _ in range(15):
            damaged = np.frombuffer(profile, np.uint8).copy()
            places = random.integers(0, 300, random.integers(1, 6))
            damaged[places] = random.integers(0, 256, len(places))
            image.save(path, icc_profile=damaged.tobytes())
            assert decode(path).shape == (8, 8, 3)


def test_a_png_that_needs_repair_keeps_its_profile_if_that_is_sound(tmp_path):
    path = saved(tmp_path, picture(), PROFILES["prophoto"])
    content, long = path.read_bytes(), zlib.compress(bytes(2 << 20))
    expected, plain = decode(path), decode(path, icc=False)
    text = chunk(b"zTXt", b"text\0\0" + long)  # Pillow refuses more than a megabyte
    profile = content[content.index(b"iCCP") - 4 :][
        : 12 + int.from_bytes(content[content.index(b"iCCP") - 4 :][:4])
    ]
    flipped = profile[:-1] + bytes([profile[-1] ^ 1])
    endless = chunk(b"iCCP", b"icc\0\0" + long)
    for changed, pixels, count in [
        (content[:33] + text + content[33:], expected, 0),
        (content.replace(profile, flipped), plain, 1),
        (content.replace(profile, endless), plain, 1),
    ]:
        notes = []
        path.write_bytes(changed)
        assert (decode(path, note=notes.append) == pixels).all()
        assert notes == ["its colour profile is ignored: it is damaged"] * count


# ---- threads and processes


def mixed_files(tmp_path):
    profiles = [*PROFILES.values(), None, SAME["by table"], BAD["cut"][0]]
    return [
        str(saved(tmp_path, picture(seed, (200, 150)), profiles[seed % 6], f"{seed}.png"))
        for seed in range(12)
    ]


def test_threads_decode_as_one_does(tmp_path):
    paths = mixed_files(tmp_path)
    expected = [decode(path, 32) for path in paths]
    read_profile.cache_clear()
    with ThreadPoolExecutor(6) as pool:
        found = [*pool.map(lambda path: decode(path, 32), paths * 4)]
    assert all((a == b).all() for a, b in zip(expected * 4, found, strict=True))


def test_processes_decode_as_one_does_and_count_bad_profiles(tmp_path):
    paths = mixed_files(tmp_path)
    scale = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)
    rated = RatedSet("csv", "test", "", [f"p{i}" for i in range(12)], paths, np.zeros(12), scale)
    order = TestOrder(12, 4)
    for icc in (True, False):
        batches = [*make_loader(PictureSet(rated, 32, icc=icc), order, workers=2)]
        images = np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches])
        assert all(
            (image == decode(path, 32, icc=icc)).all() for image, path in zip(images, paths, strict=True)
        )
        noted = [tuple(entry) for batch in batches for entry in batch.noted]
        reason = "its colour profile is ignored: it is damaged"
        assert noted == ([(f"p{i}", reason) for i in (5, 11)] if icc else [])
