"""From a picture file to pixels: the one decoder for training, evaluation and prediction.

pixels = decode("photo.jpg", size=224)  # (224, 224, 3) uint8
pixels = decode("photo.jpg", size=224, exact=False)  # large JPEGs several times faster
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class DecodeError(ValueError):
    """A picture file that cannot be decoded. `reason` is the part of the message after the path."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


RAW_ENDINGS = (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw", ".nef",
               ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw",
               ".x3f")  # fmt: skip
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
# The formats that Pillow may try, whatever a file's name. Others are left out: for EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
if find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    FORMATS += ("AVIF",)

# For the EXIF orientations 2 to 8. ImageOps.exif_transpose also writes EXIF, which fails for damaged ones.
TURNS = (
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)
TURNS = dict(enumerate(TURNS, 2))

# The header of a JPEG's scan: marker, length of the header, channels. Videos and other data that phones
# append to a picture do not match it.
SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")
MOST_SCANS = 100  # real JPEGs have 1 to 10; a file of a megabyte can hold scans for an hour of work

MARGIN = 4  # a JPEG is decoded no smaller than this many times the wanted side
PILLOW_IS_SILENT = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # a filter of warnings about odd files
LARGE = 50_000_000  # pixels; more are decoded by one thread at a time, so that memory stays bounded
one_large = threading.Lock()


def decode(
    path: str | Path,
    size: int | tuple[int, int] | None = None,
    exif: bool = True,
    exact: bool = True,
    look: Callable[[Image.Image, Image.Exif], object] | None = None,
    crop: bool = False,
) -> np.ndarray:
    """A picture file as RGB; transparency is laid over white, as viewers and web pages show it.

    Args:
        size: side of a square or (height, width); resized with antialiasing exactly as PIL's BILINEAR
            does, whatever the aspect ratio. None keeps the picture's own size.
        exif: turn the picture as its EXIF orientation says.
        exact: False lets a large JPEG be decoded at 1/2, 1/4 or 1/8 of its side, MARGIN times `size` or more,
            before it is resized: several times faster, pixels differ by a few levels.
        look: called with the picture as RGB, before it is resized, and its EXIF. An exception that it raises
            counts as one of decoding.
        crop: keep the aspect ratio: the largest centred part with that of `size` is cut out and resized.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DecodeError: one sentence that names the file and what is wrong with it.
    """
    if str(path).lower().endswith(RAW_ENDINGS):
        # PIL would open many of these as TIFF and return the small preview inside.
        raise _decode_error(path, "a raw camera file; convert it to JPEG first")
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - Path's may raise
        raise _decode_error(path, "a folder, a pipe or a device, not a file")  # a pipe could wait for ever
    # Not by `warnings.catch_warnings`, which is not safe with threads.
    if PILLOW_IS_SILENT not in warnings.filters:
        warnings.filterwarnings("ignore", module=PILLOW_IS_SILENT[3].pattern)
    try:
        with Image.open(path, formats=FORMATS) as image:
            scans = len(SCAN.findall(Path(path).read_bytes())) if image.format in ("JPEG", "MPO") else 0
            if scans > MOST_SCANS:
                raise ValueError(f"a JPEG of more than {MOST_SCANS} scans is refused; it would take minutes")
            if not (exact or size is None):
                # libjpeg leaves out what the resize would average away; other formats ignore it. The longer
                # side for both: whether the picture is turned afterwards is not known yet.
                side = MARGIN * (size if isinstance(size, int) else max(size))
                image.draft(None, (side, side))
            with one_large if image.width * image.height > LARGE else nullcontext():
                image.load()
                picture = _rgb(_upright(image) if exif else image)
                if look:
                    look(picture, _exif(image))
                return _resized(picture, size, crop)
    # PIL raises nearly anything on damaged files, SyntaxError and struct.error included.
    except Exception as error:
        raise _decode_error(path, explain_failure(path, error)) from error


def _exif(image: Image.Image) -> Image.Exif:
    try:
        exif = image.getexif()
        exif.get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF in a picture that is otherwise fine
        return Image.Exif()
    return exif


def _upright(image: Image.Image) -> Image.Image:
    turn = TURNS.get(_exif(image).get(ExifTags.Base.Orientation))
    return image.transpose(Image.Transpose[turn]) if turn else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert it to 8 or 16 bits")
    sixteen_bits = image.mode == "I" or image.mode.startswith("I;16")
    if not (sixteen_bits or image.has_transparency_data):
        return image.convert("RGB")
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, 256):  # by bands, because it takes several times a picture's memory
        band = image.crop((0, top, image.width, min(top + 256, image.height)))
        if sixteen_bits:
            values = np.asarray(band).clip(0, 65535).astype(np.uint32)
            band = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        else:
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band.convert("RGBA"))
        whole.paste(band.convert("RGB"), (0, top))
    return whole


def _resized(image: Image.Image, size: int | tuple[int, int] | None, crop: bool) -> np.ndarray:
    height, width = (size, size) if isinstance(size, int) else size or (image.height, image.width)
    if image.size != (width, height):
        box = None
        if crop:  # the largest part of the shape height x width, in the middle
            scale = min(image.width / width, image.height / height)
            left, upper = (image.width - scale * width) / 2, (image.height - scale * height) / 2
            box = (left, upper, left + scale * width, upper + scale * height)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return np.array(image)  # (H, W, 3), a copy: torch refuses to share PIL's read-only buffer


def _decode_error(path: str | Path, reason: str) -> DecodeError:
    return DecodeError(f"decoding: {path} cannot be decoded: {reason}.", reason)


def explain_failure(path: str | Path, error: Exception) -> str:
    """Why a file cannot be decoded, from its first bytes where they say more than PIL does."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, refused as a decompression bomb"
    try:
        with Path(path).open("rb") as file:
            start = file.read(256)
    except FileNotFoundError:
        return "there is no such file"
    except OSError as failure:
        return failure.strerror or str(failure)
    if not start:
        return "the file is empty"
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        return "a HEIC picture; convert it to JPEG first"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the picture; run git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), not a picture; the download failed"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a known format"
    return str(error).strip().rstrip(".") or type(error).__name__


def stack(images: Sequence[Tensor]) -> Tensor:
    """Decoded pictures, (3, H, W) views of (H, W, 3) uint8 -> (N, 3, H, W), channels last in memory too.

    The network takes them so; converting to channels first here and back there would take as long as ten
    copies.
    """
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, H, W) uint8 -> float32 (x / 255 - mean) / std, on the images' device, in their memory format."""
    mean = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)
