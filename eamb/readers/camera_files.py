"""What cameras and phones write that Pillow alone does not read: HEIC, JPEG XL and RAW.

Each is read by a package of its own (requirements-photos.txt), imported when the first such file is opened.
Pictures keep their ICC profile in `info["icc_profile"]`; what is developed from a RAW file is sRGB.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from PIL import ExifTags, Image

from eamb.readers.endings import AVIF_ENDINGS, RAW_ENDINGS

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
JXL_CODESTREAM, JXL_BOX = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
# libraw's flip (1: left and right exchanged, 2: top and bottom, 4: rows and columns) -> EXIF's orientation
ORIENTATIONS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}
SHOWN = 512  # pixels: what a preview's shorter side needs where no size is asked for
SRGB_CURVE = (2.4, 12.92)

VIDEO = "a video, not a picture"
# What else lies among photographs: the place of its mark in the file, the mark, what it is.
OTHERS = [
    (0, b"8BPS", "a Photoshop document; export it as JPEG"),
    (0, b"%PDF", "a PDF document, not a picture"),
    *((4, mark, VIDEO) for mark in (b"moov", b"mdat", b"wide", b"G@\0\x10")),  # QuickTime; AVCHD
    *((0, mark, VIDEO) for mark in (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3")),  # Matroska; MPEG
    *((0, b"0&\xb2u\x8ef\xcf\x11", VIDEO), (8, b"AVI ", VIDEO)),  # Windows Media
]

HDR_CURVES = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273

Admit = Callable[[int], object]  # is told how many pixels are to be decoded; raises ValueError if too many
Note = Callable[[str], object]  # is told what is wrong with a file that can still be decoded


def kind_of(start: bytes) -> str:
    """What a file is, by its first 16 bytes: "HEIC", "JPEG XL", "RAW" or ""."""
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        return "HEIC"
    if start.startswith((JXL_CODESTREAM, JXL_BOX)):
        return "JPEG XL"
    return "RAW" if start.startswith(RAW_STARTS) or start[4:12] == b"ftypcrx " else ""


def name_other(start: bytes) -> str:
    """What a file is that no decoder takes, by its first 256 bytes; "" for anything unknown."""
    if kind := kind_of(start):
        return "a RAW file without its ending; rename it" if kind == "RAW" else f"a damaged {kind} picture"
    if start[4:8] == b"ftyp":
        avif = (
            "a damaged AVIF picture" if AVIF_ENDINGS else "an AVIF picture, which needs Pillow 11.3 or newer"
        )
        return avif if start[8:12] in (b"avif", b"avis") else VIDEO
    return next((words for place, mark, words in OTHERS if start.startswith(mark, place)), "")


def open_photo(path: str | Path, admit: Admit, note: Note | None = None) -> Image.Image | None:
    """A HEIC or JPEG XL file, whatever its ending, as Pillow opens files; None if it is neither.

    Its orientation has been applied, or is in its EXIF, never both.

    Raises:
        ValueError: its package is missing, or it has too many pixels.
        UnidentifiedImageError: it is damaged.
    """
    content = Path(path).read_bytes()
    kind = kind_of(content[:16])
    if kind == "HEIC":
        # One thread for each picture: whoever decodes many uses all cores already.
        package("pi_heif", "HEIC").register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
        )
        image = Image.open(io.BytesIO(content), formats=("HEIF",))
        curve = image.info.get("nclx_profile", {}).get("transfer_characteristics")
        if note and curve in HDR_CURVES:
            note(f"an HDR picture ({HDR_CURVES[curve]}), read without tone mapping; it looks flat")
        return image
    if kind == "JPEG XL":
        plugin = package("pillow_jxl.JpegXLImagePlugin", "JPEG XL")
        plugin.DECODE_THREADS = 0
        width, height = jxl_size(content)
        admit(width * height)
        try:
            image = Image.open(io.BytesIO(content), formats=("JXL",))  # decodes all pixels
        except RuntimeError as error:
            raise ValueError("a damaged JPEG XL picture") from error
        if not image.jpeg:  # all but what was packed from a JPEG is turned already; EXIF does not count
            image.getexif().pop(ExifTags.Base.Orientation, None)
        return image
    return None


def package(name: str, kind: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        distribution = {"pi_heif": "pi-heif", "rawpy": "rawpy"}.get(name, "pillow-jxl-plugin")
        raise ValueError(
            f"{kind} files need the package {distribution}: pip install -r requirements-photos.txt"
        ) from error


def jxl_size(content: bytes) -> tuple[int, int]:
    """Width and height by the header (ISO/IEC 18181-1, SizeHeader), possibly exchanged by its orientation.

    Raises ValueError if there is none.
    """
    place = 0
    while not content.startswith(JXL_CODESTREAM, place):
        if place + 16 > len(content):
            raise ValueError("a damaged JPEG XL picture")
        length, kind = struct.unpack_from(">I4s", content, place)
        header = 8
        if length == 1:  # a long box
            length, header = int.from_bytes(content[place + 8 : place + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):  # the codestream, or the first part of it behind the part's number
            place += header + 4 * (kind == b"jxlp")
            content = content[: place + 64]  # no further box
        else:
            place += length or len(content)  # 0: up to the end
    bits = int.from_bytes(content[place + 2 : place + 16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratios = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
    ratio = ratios[take(3)]
    return (height * ratio[0] // ratio[1] if ratio else side()), height


# ---- RAW


def is_raw(path: str | Path) -> bool:
    """Whether a file has a camera's RAW ending, and does not begin like a picture of another kind."""
    if not str(path).lower().endswith(RAW_ENDINGS):
        return False
    try:
        with Path(path).open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG")) or start[4:8] == b"ftyp":
        return kind_of(start) == "RAW"  # a CR3
    return bool(start) and kind_of(start) != "JPEG XL"


def read_raw(
    path: str | Path, least: int, admit: Admit, note: Note | None = None
) -> tuple[bytes | Image.Image, Image.Exif]:
    """The preview in a RAW file; if its shorter side is below `least` pixels, the RAW developed at half size.

    Returns:
        A JPEG file or a picture, both as the sensor stored it; and the EXIF, whose orientation turns it.

    Raises:
        ValueError: its package is missing, it has too many pixels, or libraw cannot read it.
    """
    rawpy = package("rawpy", "RAW")
    exif = read_exif(path)
    with rawpy.RawPy() as raw:
        try:
            try:
                raw.open_file(str(path))
            except UnicodeEncodeError:  # a name that is not UTF-8
                with Path(path).open("rb") as file:
                    raw.open_buffer(file)
            sizes, developed = raw.sizes, None
            jpeg, preview = read_preview(raw)
            if ExifTags.Base.Model not in exif:
                if not preview:
                    raise ValueError("a damaged RAW file: it names no camera")
                exif = preview.getexif()  # LibRaw adds one where the camera has not
            if not preview or min(preview.size) < min(least, sizes.iwidth // 2, sizes.iheight // 2):
                admit(sizes.raw_width * sizes.raw_height)
                developed = develop(raw, preview, note)
        except rawpy.LibRawError as error:
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
            raise ValueError(f"a RAW file that LibRaw cannot read ({reason})") from error
    exif[ExifTags.Base.Orientation] = ORIENTATIONS.get(sizes.flip, 1)
    return developed or jpeg or preview, exif


def read_preview(raw) -> tuple[bytes | None, Image.Image | None]:
    """The largest preview of an open RawPy: as a JPEG file, None if it is none; and as an opened picture."""
    import rawpy

    try:
        thumbnail = raw.extract_thumb()
        if thumbnail.format == rawpy.ThumbFormat.JPEG:
            return thumbnail.data, Image.open(io.BytesIO(thumbnail.data), formats=("JPEG",))
        return None, Image.fromarray(thumbnail.data.copy())  # the array belongs to LibRaw
    except Exception:  # none, damaged, or of a kind that LibRaw or Pillow does not read
        return None, None


def develop(raw, preview: Image.Image | None, note: Note | None) -> Image.Image | None:
    """At half size, with the camera's white balance, in sRGB; None if only the preview can be read."""
    import rawpy

    failure = ValueError("a damaged RAW file: all pixels are zero")
    try:
        if raw.raw_image_visible.any():  # of zeros LibRaw makes noise
            pixels = raw.postprocess(half_size=True, use_camera_wb=True, user_flip=0, gamma=SRGB_CURVE)
            return Image.fromarray(pixels)  # from (h, w, 3)
    except rawpy.LibRawError as error:
        failure = error
    if not preview:
        raise failure
    if note:
        note(f"scored by its preview of {preview.width}x{preview.height}; LibRaw cannot develop the rest")
    return None


def read_exif(path: str | Path) -> Image.Exif:
    """The EXIF and TIFF tags of a TIFF or a RAW file built like one, or of a CR3; empty if it has none."""
    exif = Image.Exif()
    try:
        with Path(path).open("rb") as file:
            start = file.read(65536)
            if start[4:12] == b"ftypcrx ":  # Canon keeps each directory in a TIFF of its own
                first, details = (start.partition(name)[2] for name in (b"CMT1", b"CMT2"))
                exif.load(b"Exif\0\0" + first)
                more = Image.Exif()
                more.load(b"Exif\0\0" + details)
                exif.get_ifd(ExifTags.IFD.Exif).update(more)
            else:
                exif.endian = {b"II": "<", b"MM": ">"}[start[:2]]
                exif.load_from_fp(file, struct.unpack_from(f"{exif.endian}I", start, 4)[0])
                exif.get_ifd(ExifTags.IFD.Exif)  # reads it while the file is open
            dict(exif)  # decodes each value
    except Exception:  # Pillow raises nearly anything on damaged files
        return Image.Exif()
    return exif
