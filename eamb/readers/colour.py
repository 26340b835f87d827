"""Embedded ICC profiles: pictures in another colour space than sRGB are converted to it.

By LittleCMS (Pillow's ImageCms), relative colorimetric with black point compensation, in 8 bits; colours that
sRGB does not have become the nearest in each channel.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space -> the pictures it converts
GREYS = ("1", "L", "LA", "La", "I")  # modes of grey pictures; also those that begin with I;16
ROUNDING = 2  # levels of 255 by which files of the sRGB profile itself differ; gamma 2.2 differs by 9
LARGEST_KEPT = 4 << 20  # bytes; larger profiles are read anew for each picture


class Conversion(NamedTuple):
    """Calling it gives a picture in sRGB, as RGB; `mode` is the picture's: RGB, L or CMYK.

    An RGB picture serves as L too, if its three channels are equal. With `in_place`, which saves memory, an
    RGB picture may itself be changed and returned.
    """

    mode: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, picture: Image.Image, in_place: bool = False) -> Image.Image:
        if self.mode == "RGB" and in_place and not picture.readonly:
            return self.transform.apply_in_place(picture)
        grey = self.mode == "L" and picture.mode == "RGB"
        return self.transform.apply(picture.getchannel(0) if grey else picture)


def find_conversion(image: Image.Image, note: Callable[[str], object] | None = None) -> Conversion | None:
    """What converts a picture to sRGB, by the profile in its `info`; None: nothing has to be converted.

    A profile that is damaged, or of another kind of picture than this one, is ignored.

    Args:
        note: called with a description of what is wrong with the profile.
    """
    if "icc_profile" not in image.info:
        return None
    profile, grey = image.info["icc_profile"], image.mode in GREYS or image.mode.startswith("I;16")
    try:
        if profile is None:  # Pillow could not put its parts together
            raise ValueError("it is damaged")
        read = read_profile if len(profile) <= LARGEST_KEPT else read_profile.__wrapped__
        conversion, mode = read(profile)
        if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and not grey):
            raise ValueError(f"it is for {'grey' if mode == 'L' else mode} pictures, which this one is not")
    except Exception as error:  # of LittleCMS, with words about its functions
        if note:
            said = str(error) if isinstance(error, ValueError | ImportError) else "it is damaged"
            note(f"its colour profile is ignored: {said}")
        return None
    return conversion


@lru_cache(maxsize=32)
def read_profile(profile: bytes) -> tuple[Conversion | None, str]:
    """The conversion from a profile to sRGB, None if it is sRGB itself; and the mode of its pictures.

    Raises:
        ValueError: its colour space is an unusual one.
        OSError, TypeError, ImageCms.PyCMSError: it is damaged.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space not in MODES:
        raise ValueError(f"its colour space is {space}")
    mode = MODES[space]
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    conversion = Conversion(mode, transform)
    return None if mode != "CMYK" and changes_nothing(conversion) else conversion, mode


def changes_nothing(conversion: Conversion) -> bool:
    """Whether every grey and 18 x 18 x 18 colours over the whole cube stay the same but for rounding."""
    steps, ramp = np.arange(0, 256, 15), np.arange(256)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    greys = np.stack([ramp] * 3, axis=-1)
    colours = greys if conversion.mode == "L" else np.concatenate([greys, cube])
    picture = Image.fromarray(colours[None].astype(np.uint8))  # one row
    moved = np.asarray(conversion(picture)).astype(int) - colours
    return bool(np.abs(moved).max() <= ROUNDING)
