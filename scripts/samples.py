"""Pictures to measure and test with: large ones, and the HEIC and RAW files that cameras would make of them.

The packages that write them are in requirements-dev.txt.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from eamb.readers.demo import PHOTOGRAPHS, open_photograph

LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
# XYZ to linear sRGB (IEC 61966-2-1), in 1/10,000: a camera whose colours are those of sRGB.
TO_CAMERA = (32405, -15371, -4985, -9693, 18760, 416, 556, -2040, 10572)
BAYER = [np.s_[row::2, column::2] for row in (0, 1) for column in (0, 1)]  # R, G, G, B


def noisy(image: Image.Image, width: int, height: int) -> Image.Image:
    """A picture enlarged, with sensor-like noise, so that its JPEG is as large as a camera's."""
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = np.random.default_rng(0).normal(0, 5, pixels.shape).astype(np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def photograph(width: int, height: int) -> Image.Image:
    return noisy(open_photograph(PHOTOGRAPHS[0]), width, height)


def write_heic(path: Path, picture: Image.Image, **options) -> None:
    """`options` are those of pillow_heif's save, as exif and quality; lossless without a quality."""
    import pillow_heif

    pillow_heif.from_pillow(picture).save(path, **(options if "quality" in options else LOSSLESS | options))


def write_dng(path: Path, picture: Image.Image, preview: Image.Image | None, exif: Image.Exif) -> None:
    """A RAW file of what a Bayer sensor would see of a picture with even sides, linear in 16 bits.

    Args:
        preview: stored as a JPEG before the RAW.
        exif: of which orientation, make, model and time are stored.
    """
    import tifffile

    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)  # (256,)
    pixels, sensor = np.asarray(picture), np.empty((picture.height, picture.width), np.uint16)
    for place, colour in zip(BAYER, (0, 1, 1, 2), strict=True):
        sensor[place] = np.rint(65535 * linear)[pixels[place][..., colour]]
    camera = [(tag, "s", 0, exif.get(tag, "none"), True) for tag in (271, 272, 306)]
    camera += [(ExifTags.Base.Orientation, "H", 1, exif.get(ExifTags.Base.Orientation, 1), True)]
    camera += [(50706, "B", 4, (1, 4, 0, 0), True), (50708, "s", 0, "none", True)]  # version, unique model
    camera += [(50721, "2i", 9, [part for value in TO_CAMERA for part in (value, 10000)], True)]
    camera += [(50728, "2I", 3, (1, 1) * 3, True), (50778, "H", 1, 21, True)]  # white balance, in daylight
    bayer = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]
    words = {"metadata": None, "software": False}
    with tifffile.TiffWriter(path, byteorder="<") as file:
        if preview:
            jpeg, shape = io.BytesIO(), (preview.height, preview.width, 3)
            preview.save(jpeg, "JPEG", quality=95)
            as_is = {"compression": "zlib", "rowsperstrip": preview.height, "photometric": "ycbcr"}
            kind = {"subfiletype": 1, "subifds": 1, "dtype": np.uint8, "shape": shape}
            file.write(iter([jpeg.getvalue()]), **kind, **as_is, extratags=camera, **words)
        file.write(sensor, photometric="cfa", extratags=bayer if preview else camera + bayer, **words)
    if preview:
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["Compression"].overwrite(7)  # JPEG, which tifffile alone does not write


def write_each(folder: Path, picture: Image.Image) -> dict[str, Path]:
    """A picture as cameras and phones store it: what kind of file -> the file."""
    kinds = ("JPEG", "HEIC", "RAW with a preview", "RAW without, developed at half size")
    names = ("a.jpg", "a.heic", "preview.dng", "a.dng")
    files = {kind: folder / name for kind, name in zip(kinds, names, strict=True)}
    picture.save(folder / "a.jpg", quality=95)
    write_heic(folder / "a.heic", picture, quality=60, enc_params={"preset": "ultrafast"})
    write_dng(folder / "preview.dng", picture, picture, Image.Exif())
    write_dng(folder / "a.dng", picture, None, Image.Exif())
    return files
