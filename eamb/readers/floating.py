"""Floating-point pixels, which have no agreed range: 0 to 1 if they lie in it, else their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from eamb.readers.camera_files import read_exif

SAMPLE_FORMAT, FLOATING = 339, 3  # a TIFF tag and its value


def by_range(values: np.ndarray, note: Callable[[str], object] | None = None) -> Image.Image:
    """A picture of (H, W) or (H, W, 3) floating-point values, in 8 bits; what is not a number becomes black.

    Args:
        note: told which values became black and white.
    """
    finite = np.isfinite(values)
    low = float(values.min(where=finite, initial=np.inf))
    high = float(values.max(where=finite, initial=-np.inf))
    if low >= high or (low >= 0 and high <= 1):
        low, high = 0.0, 1.0
    if note:
        note(f"floating-point pixels: {low:g} was taken as black and {high:g} as white")
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # in bands, to save memory
        with np.errstate(invalid="ignore"):  # NaN
            band = values[top : top + 256].astype(np.float64)
        band = np.nan_to_num(band, nan=low, posinf=high, neginf=low)
        levels[top : top + 256] = np.rint((band - low) * (255 / (high - low))).clip(0, 255)
    return Image.fromarray(levels)


def open_float_tiff(
    path: str | Path, admit: Callable[[int], object], note: Callable[[str], object] | None
) -> Image.Image | None:
    """The first page of a TIFF of grey or RGB floating-point pixels that Pillow does not open, or None.

    Args:
        admit: told how many pixels of 4 bytes the page takes; raises ValueError if they are too many.
    """
    if FLOATING not in np.atleast_1d(read_exif(path).get(SAMPLE_FORMAT, 0)):
        return None
    import tifffile  # scikit-image needs it

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            colours = {1: 1, 2: 3}.get(int(page.photometric))
            if page.dtype is None or page.dtype.kind != "f" or page.samplesperpixel != colours:
                return None
            admit(page.size * page.dtype.itemsize // 4)
            values = page.asarray()
            orientation, profile = page.tags.get("Orientation"), page.tags.get("InterColorProfile")
    except (
        tifffile.TiffFileError,
        KeyError,
        IndexError,
    ):  # no TIFF, or it needs imagecodecs
        return None
    separate = values.ndim == 3 and page.planarconfig == 2
    image = by_range(np.moveaxis(values, 0, 2) if separate else values, note)  # from (H, W, 3)
    image.getexif()[ExifTags.Base.Orientation] = int(orientation.value) if orientation else 1
    image.info["icc_profile"] = profile and profile.value
    return image
