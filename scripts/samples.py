"""Writes HEIC and RAW files for the benchmark and the tests, with packages of requirements-dev.txt."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pillow_heif
import tifffile
from PIL import ExifTags, Image

LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
# XYZ to linear sRGB (IEC 61966-2-1), in 1/10,000: a camera whose colours are those of sRGB.
TO_CAMERA = (32405, -15371, -4985, -9693, 18760, 416, 556, -2040, 10572)
BAYER = (
    np.s_[0::2, 0::2],
    np.s_[0::2, 1::2],
    np.s_[1::2, 0::2],
    np.s_[1::2, 1::2],
)  # R, G, G, B


def write_heic(path: Path, picture: Image.Image, **options) -> None:
    """`options` are those of pillow_heif's save, as exif and quality; lossless without a quality."""
    pillow_heif.from_pillow(picture).save(path, **(options if "quality" in options else LOSSLESS | options))


def write_dng(path: Path, picture: Image.Image, preview: Image.Image | None, exif: Image.Exif) -> None:
    """A RAW file of what a Bayer sensor would see of a picture with even sides, linear in 16 bits.

    Args:
        preview: stored as a JPEG before the RAW.
        exif: of which orientation, make, model and time are stored.
    """
    levels = np.asarray(picture) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)  # (H, W, 3)
    sensor = np.empty(linear.shape[:2], np.uint16)
    for place, colour in zip(BAYER, (0, 1, 1, 2), strict=True):
        sensor[place] = np.rint(65535 * linear[place][..., colour])
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
