"""From a picture file to pixels: the one decoder for training, evaluation and prediction.

pixels = decode("photo.jpg", size=224)  # (224, 224, 3) uint8
pixels = decode("photo.jpg", size=224, exact=False)  # large JPEGs several times faster
small, large = decode_views("photo.jpg", [View(224), View(384, crop=True)])  # decoded once
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin
from torch import Tensor

from eamb.readers.camera_files import SHOWN, is_raw, name_other, open_photo, read_raw
from eamb.readers.colour import Conversion, find_conversion
from eamb.readers.endings import AVIF_ENDINGS
from eamb.readers.endings import PICTURE_ENDINGS as PICTURE_ENDINGS  # others import it from here
from eamb.readers.floating import by_range, open_float_tiff


class View(NamedTuple):
    """How a network wants its pictures: `size`, `exif`, `crop` and `icc` of `decode`.

    icc: None if its weights, of before profiles were converted, do not say; not converted by `decode_views`.
    """

    size: int | tuple[int, int] | None = None
    exif: bool = True
    crop: bool = False
    icc: bool | None = True

    @property
    def aspect(self) -> float | None:
        """Width / height of the part in the middle of a picture that the network sees; None: it sees all."""
        if not self.crop or self.size is None:
            return None
        return 1.0 if isinstance(self.size, int) else self.size[1] / self.size[0]


class DecodeError(ValueError):
    """A picture file that cannot be decoded. `reason` is the part of the message after the path."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


# The formats that Pillow may try, whatever a file's name. Others are left out: for EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
if AVIF_ENDINGS:
    FORMATS += ("AVIF",)

# For the EXIF orientations 2 to 8. ImageOps.exif_transpose also rewrites EXIF, which fails if it is damaged.
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
TURNED_BACK = {6: 8, 8: 6}  # the orientation whose turn undoes another's; the other turns undo themselves

# The header of a JPEG's scan: marker, length of the header, channels. Videos and other data that phones
# append to a picture do not match it.
SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")
# The header of its frame: marker, length, 8 bits per sample, height and width, channels.
FRAME = re.compile(rb"\xff[\xc0-\xc2]\x00[\x0b\x0e\x11\x14]\x08.{4}[\x01-\x04]", re.DOTALL)
MOST_SCANS = 100  # real JPEGs have 1 to 10; one megabyte can hold so many that decoding takes an hour

MARGIN = 4  # a JPEG is decoded no smaller than this many times the wanted side
PILLOW_IS_SILENT = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # a warnings filter, for odd files
LARGE = 50_000_000  # pixels; larger pictures are decoded one at a time, so that memory stays bounded
one_large = threading.RLock()

PNG, JPEG, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd9"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of PNG
EMPTY_PROFILE = b"\0\0\0\5iCCPicc\0\0" + zlib.crc32(b"iCCPicc\0\0").to_bytes(4, "big")
# TIFF tags: what a page is (bit 0: a preview, bit 2: a mask), the same in old files, and where a raw file
# keeps its picture.
PAGE_KIND, OLD_PAGE_KIND, INNER_PAGES = 254, 255, 330
BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, PLANES = 258, 259, 262, 266, 284
MOST_PREVIEWS = 100


def decode(
    path: str | Path,
    size: int | tuple[int, int] | None = None,
    exif: bool = True,
    exact: bool = True,
    look: Callable[[Image.Image, Image.Exif], object] | None = None,
    crop: bool = False,
    note: Callable[[str], object] | None = None,
    icc: bool = True,
) -> np.ndarray:
    """A picture file as RGB; transparency is laid over white, as viewers and web pages show it.

    Of a RAW file the camera's preview is taken, or the RAW at half size if that is smaller than `size`.

    Args:
        size: side of a square or (height, width); resized with antialiasing exactly as PIL's BILINEAR
            does, whatever the aspect ratio. None keeps the picture's own size.
        exif: turn the picture as its EXIF orientation says. HEIC and JPEG XL hold their orientation apart
            from EXIF; it is always applied.
        exact: False lets a large JPEG be decoded at 1/2, 1/4 or 1/8 of its side, MARGIN times `size` or more,
            before it is resized: several times faster, pixels differ by a few levels.
        look: called with the picture as RGB, before it is resized, and its EXIF. An exception that it raises
            counts as a failure to decode.
        crop: keep the aspect ratio: the largest centred part with that of `size` is cut out and resized.
        note: called with a description of what is wrong with a file that can still be decoded.
        icc: convert a picture that has another colour profile to sRGB (`colour`); otherwise ignore profiles.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DecodeError: one sentence that names the file and what is wrong with it.
    """
    [pixels] = decode_views(path, [View(size, exif, crop, icc)], exact, look, note)
    return pixels


def decode_views(
    path: str | Path,
    views: Sequence[View],
    exact: bool = True,
    look: Callable[[Image.Image, Image.Exif], object] | None = None,
    note: Callable[[str], object] | None = None,
) -> list[np.ndarray]:
    """A picture file in several sizes, decoded only once: what `decode` gives for each view, in order.

    Args:
        exact: False lets a large JPEG be decoded no larger than the largest view needs it; for smaller views
            `decode` would then have decoded it smaller still.
        look: called once, with the picture as the first view turns it.

    Raises:
        DecodeError: as `decode`.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - Path's may raise
        raise _decode_error(path, "a folder, a pipe or a device, not a file")  # a pipe could wait for ever
    # Not by `warnings.catch_warnings`, which is not safe with threads.
    if PILLOW_IS_SILENT not in warnings.filters:
        warnings.filterwarnings("ignore", module=PILLOW_IS_SILENT[3].pattern)
    sizes = [view.size for view in views]
    # The longer side for both, because EXIF may still turn the picture and swap width and height.
    least = max(SHOWN if size is None else int(np.max(size)) for size in sizes)
    side = None if exact or None in sizes else MARGIN * least
    try:
        with ExitStack() as opened:
            try:
                image, tags, turned = _loaded(path, side, least, opened, note=note)
            except Exception as error:
                opened.close()
                image, tags, turned = _loaded(path, side, least, opened, _mended(path, error))
            return _as_views(image, tags, turned, views, look, note)
    # PIL raises nearly anything on damaged files, SyntaxError and struct.error included.
    except Exception as error:
        raise _decode_error(path, explain_failure(path, error)) from error


def picture_views(
    picture: Image.Image | np.ndarray, views: Sequence[View], note: Callable[[str], object] | None = None
) -> list[np.ndarray]:
    """What `decode_views` gives for a file, of a picture in memory, which is not changed.

    Args:
        picture: one of Pillow's, with its EXIF and colour profile; or sRGB pixels, (H, W), (H, W, 3) or
            (H, W, 4) uint8: grey, RGB, RGBA.

    Raises:
        DecodeError: Pillow cannot load it, or the pixels are of another shape or type.
    """
    try:
        if not isinstance(picture, Image.Image):
            pixels = np.asarray(picture)
            if (
                pixels.dtype != np.uint8
                or pixels.ndim not in (2, 3)
                or pixels.shape[2:] not in ((), (3,), (4,))
            ):
                words = "pixels must be (H, W), (H, W, 3) or (H, W, 4) uint8"
                raise ValueError(f"{words}, got {pixels.shape} {pixels.dtype}")
            picture = Image.fromarray(pixels)
        orientation = _exif(picture).get(ExifTags.Base.Orientation) if picture.format == "TIFF" else None
        picture.load()  # also applies a TIFF's orientation
        image, tags = picture, _exif(picture)
        if image.mode == "F":
            image = by_range(np.asarray(image), note)
            image.info = picture.info
        return _as_views(image, tags, orientation, views, None, note, ours=False)
    except Exception as error:  # as of files
        raise _decode_error("this picture", str(error).strip().rstrip(".") or type(error).__name__) from error


def _as_views(
    image: Image.Image,
    tags: Image.Exif,
    turned: int | None,
    views: Sequence[View],
    look: Callable[[Image.Image, Image.Exif], object] | None,
    note: Callable[[str], object] | None,
    ours: bool = True,
) -> list[np.ndarray]:
    """A loaded picture as each view wants it; `ours`: it is not needed as it was."""
    conversion = find_conversion(image, note) if any(view.icc for view in views) else None
    ways = [(view.exif, conversion if view.icc else None) for view in views]
    alone = ours and len({*ways}) == 1
    pictures = {
        (exif, convert): _rgb(_upright(image, tags) if exif else _as_stored(image, turned), convert, alone)
        for exif, convert in dict.fromkeys(ways)
    }
    if look:
        look(pictures[ways[0]], tags)
    return [_resized(pictures[way], view.size, view.crop) for view, way in zip(views, ways, strict=True)]


def _loaded(
    path: str | Path,
    side: int | None,
    least: int,
    opened: ExitStack,
    content: bytes | None = None,
    note: Callable[[str], object] | None = None,
) -> tuple[Image.Image, Image.Exif, int | None]:
    """The pixels and tags of a file, or of `content` instead; valid until `opened` is closed.

    Args:
        side: a JPEG may be decoded as small as this.
        least: pixels that the shorter side of a RAW file's preview needs.

    Returns:
        The third value is the EXIF orientation by which Pillow has turned a TIFF already, or None.
    """

    def admit(pixels: int) -> None:
        _check_pixels(pixels)
        if pixels > LARGE:
            opened.enter_context(one_large)

    tags = None
    if content is None and is_raw(path):  # before Pillow, which opens many as TIFF and finds a small preview
        content, tags = read_raw(path, least, admit, note)
    image = content if isinstance(content, Image.Image) else _opened(path, content, admit, note)
    opened.callback(image.close)
    if image.format == "TIFF":
        _choose_page(image)
        _check_layout(image)
    pixels = image.width * image.height
    # A higher limit for JPEG, whose pixels take a third of the memory of the largest others.
    _check_pixels(pixels, 3 if image.format in ("JPEG", "MPO") else 2)
    if image.format in ("JPEG", "MPO"):
        data = content or Path(path).read_bytes()
        scans = [scan.end() for scan in SCAN.finditer(data)]
        if note and data.rfind(JPEG_END) < max(scans, default=0):
            note("the file lacks its end marker")
        if len(scans) > MOST_SCANS:
            raise ValueError(f"a JPEG of more than {MOST_SCANS} scans is refused; it would take minutes")
        if side:  # libjpeg leaves out what the resize would average away
            image.draft(None, (side, side))
        # For a progressive JPEG libjpeg holds every coefficient, however small the decoded picture is.
        pixels = pixels if "progressive" in image.info else image.width * image.height
    if pixels > LARGE:
        opened.enter_context(one_large)
    orientation = _exif(image).get(ExifTags.Base.Orientation) if image.format == "TIFF" else None
    image.load()  # also applies a TIFF's orientation
    tags = _exif(image) if tags is None else tags
    if image.format == "TIFF" and image.mode == "I;16":
        if image.tag_v2.get(BITS) == (12,):
            image = image.point(lambda value: value * (65535 / 4095) + 0)
        elif image.tag_v2.get(PHOTOMETRIC) == 0:  # 0 is white
            image = image.point(lambda value: value * -1 + 65535)
    if image.mode == "F":
        info, image = image.info, by_range(np.asarray(image), note)
        image.info = info
    return image, tags, orientation


def _check_pixels(pixels: int, times: int = 2) -> None:
    """Refuses decompression bombs: pictures of so many times Pillow's limit."""
    limit = times * (Image.MAX_IMAGE_PIXELS or pixels)
    if pixels > limit:
        raise ValueError(f"more than {limit:,} pixels, refused as a decompression bomb")


def _opened(
    path: str | Path,
    content: bytes | None,
    admit: Callable[[int], object],
    note: Callable[[str], object] | None,
) -> Image.Image:
    def source() -> str | Path | io.BytesIO:
        return path if content is None else io.BytesIO(content)

    try:
        try:
            return Image.open(source(), formats=FORMATS)
        except Image.UnidentifiedImageError:
            image = None
            if content is None:
                image = open_photo(path, admit, note) or open_float_tiff(path, admit, note)
            if image is None:
                raise
            return image
    except Image.DecompressionBombError as error:
        try:
            return JpegImagePlugin.JpegImageFile(source())  # without that limit; `_loaded` has its own
        except SyntaxError:
            words = f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, refused as a decompression bomb"
            raise ValueError(words) from error


def _choose_page(image: Image.Image) -> None:
    """Goes to a TIFF's first page that is neither preview nor mask; if all are, stays at the first."""
    for page in range(1, MOST_PREVIEWS):
        kind, old_kind = image.tag_v2.get(PAGE_KIND), image.tag_v2.get(OLD_PAGE_KIND)
        if old_kind != 2 and not (isinstance(kind, int) and kind & 5):
            return
        if INNER_PAGES in image.tag_v2:
            raise ValueError(
                "a preview, whose picture is in a form that is not read; convert it to JPEG first"
            )
        try:
            image.seek(page)
        except EOFError:
            break
    image.seek(0)


def _check_layout(image: Image.Image) -> None:
    """Refuses TIFF pixel layouts that Pillow would silently misread."""
    tags = image.tag_v2
    separate, plain = tags.get(PLANES) == 2, tags.get(COMPRESSION, 1) == 1
    if separate and plain:
        bits = {*tags.get(BITS, (1,))}
        wrong = bits not in ({1}, {8}) or tags.get(PHOTOMETRIC) == 0 or tags.get(FILL_ORDER) == 2
    else:
        wrong = separate and image.mode in ("LA", "La", "PA")
    if wrong:
        raise ValueError("its channels lie in separate planes of a kind that is not read; interleave them")
    if image.mode in ("I", "F") and tags.prefix == b"MM" and not plain:
        raise ValueError("big-endian pixels of this kind are not read; convert it to 8 or 16 bits")
    if image.mode == "F" and tags.get(PHOTOMETRIC) == 0:
        raise ValueError("floating-point pixels with white as 0 are not read; convert it to 16 bits")


def _mended(path: str | Path, error: Exception) -> bytes:
    """A file's content, repaired so that its pixels can be read; raises `error` if there is no repair.

    A PNG loses the chunks that hold no pixels: Pillow refuses files where they are damaged or too long. A
    JPEG gets its missing end marker, if its pixels are complete and so do not depend on what follows them.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(len(PNG))
            content = start + file.read() if start.startswith((PNG, JPEG)) else b""
    except (OSError, ValueError):
        raise error from None
    if content.startswith(PNG):
        bare = _bare_png(content)
        if bare != content and b"IDAT" in bare:
            return bare
    elif content.startswith(JPEG) and "truncated" in str(error) and _has_all_scans(content):
        noise = np.random.default_rng(0).integers(0, 255, (9, 64), dtype=np.uint8)  # 255 begins markers
        after = b"".join(bytes((255, 207 + k)) * (k > 0) + row.tobytes() for k, row in enumerate(noise))
        content = content.rstrip(b"\0").removesuffix(b"\xff")  # zeros: a download that was never finished
        sums = set()
        for followed in (content, content + after):
            with ExitStack() as opened:
                sums.add(zlib.crc32(_loaded(path, None, 0, opened, followed + JPEG_END)[0].tobytes()))
        if len(sums) == 1:
            return content + JPEG_END
    raise error


def _has_all_scans(content: bytes) -> bool:
    """Whether a JPEG has each channel's lowest and highest coefficients to their last bit."""
    *_, frame = [None, *FRAME.finditer(content)]  # those before it are of thumbnails
    complete = set()
    for scan in SCAN.finditer(content, frame.end()) if frame else ():
        channels = 2 * scan[0][4]  # and the tables of each
        header = content[scan.end() : scan.end() + channels + 3]  # ..., first, last coefficient, bits to come
        if len(header) == channels + 3 and header[-1] & 15 == 0:
            complete |= {(channel, "lowest") for channel in header[:channels:2] if header[-3] == 0}
            complete |= {(channel, "highest") for channel in header[:channels:2] if header[-2] == 63}
    return bool(frame) and len(complete) == 2 * frame[0][-1]


def _bare_png(content: bytes) -> bytes:
    """A PNG's pixels, and its EXIF and colour profile where they are intact; a damaged profile is emptied."""
    kept, start = [PNG], len(PNG)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind, check = content[start + 4 : start + 8], content[end - 4 : end]
        intact = check == zlib.crc32(content[start + 4 : end - 4]).to_bytes(4, "big")
        if kind == b"iCCP" and not (intact and _is_short(content[start + 8 : end - 4])):
            kept.append(EMPTY_PROFILE)
        elif kind in PIXEL_CHUNKS or (kind in (b"eXIf", b"iCCP") and intact):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _is_short(profile: bytes) -> bool:
    """Whether Pillow does not refuse a PNG's compressed profile, which follows its name, for its length."""
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(profile.partition(b"\0")[2][1:], PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _exif(image: Image.Image) -> Image.Exif:
    try:
        exif = image.getexif()
        exif.get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF in a picture that is otherwise fine
        return Image.Exif()
    return exif


def _upright(image: Image.Image, tags: Image.Exif) -> Image.Image:
    turn = TURNS.get(tags.get(ExifTags.Base.Orientation))
    return image.transpose(Image.Transpose[turn]) if turn else image


def _as_stored(image: Image.Image, turned: int | None) -> Image.Image:
    """Undoes the turn that Pillow has made by the EXIF orientation `turned`."""
    turn = TURNS.get(TURNED_BACK.get(turned, turned))
    return image.transpose(Image.Transpose[turn]) if turn else image


def _rgb(image: Image.Image, convert: Conversion | None, alone: bool) -> Image.Image:
    """A picture as RGB, converted to sRGB; `alone`: it is not needed as it was."""
    if convert and convert.mode == "CMYK":
        return convert(image)
    flat = _as_rgb(image)
    return convert(flat, in_place=alone or flat is not image) if convert else flat


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    sixteen_bits = image.mode == "I" or image.mode.startswith("I;16")
    if not (sixteen_bits or image.has_transparency_data):
        return image.convert("RGB")
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, 256):  # in bands: converting takes several times the memory
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
    try:
        with Path(path).open("rb") as file:
            start = file.read(256)
    except FileNotFoundError:
        return "there is no such file"
    except OSError as failure:
        return failure.strerror or str(failure)
    if not start:
        return "the file is empty"
    unread = (Image.UnidentifiedImageError, EOFError, RuntimeError)
    if isinstance(error, unread) and (words := name_other(start)):
        return words
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the picture; run git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), not a picture; the download failed"
    if isinstance(error, Image.UnidentifiedImageError) and start.startswith(
        (b"II*\0", b"MM\0*", b"II+", b"MM\0+")
    ):
        return "a damaged TIFF, or one with pixels of a kind that is not read; convert it to 8 bits"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a known format"
    return str(error).strip().rstrip(".") or type(error).__name__


def stack(images: Sequence[Tensor]) -> Tensor:
    """Decoded pictures, (3, H, W) views of (H, W, 3) uint8 -> (N, 3, H, W), channels last in memory too.

    The network uses this layout; converting to channels first here and back again there would take as long as
    ten copies.
    """
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, H, W) uint8 -> float32 (x / 255 - mean) / std, on the images' device, in their memory format."""
    mean = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)
