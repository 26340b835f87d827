"""The file name endings of pictures: the one list for folders, data sets and tables."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
# Of the other formats that Pillow reads by itself; .pfm, of floating point, is left out.
PILLOW_ENDINGS = (".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".apng", ".ppm", ".pgm", ".pbm", ".pnm",
                  ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")  # fmt: skip
PILLOW = Path(find_spec("PIL").origin).parent  # not imported, so that --help stays fast
AVIF_ENDINGS = (".avif", ".avifs") if (PILLOW / "AvifImagePlugin.py").exists() else ()  # since 11.3
HEIC_ENDINGS = (".heic", ".heics", ".heif", ".heifs", ".hif")
JXL_ENDINGS = (".jxl",)
RAW_ENDINGS = (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw", ".nef",
               ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw",
               ".x3f")  # fmt: skip
PICTURE_ENDINGS = (*JPEG_ENDINGS, *PILLOW_ENDINGS, *AVIF_ENDINGS, *HEIC_ENDINGS, *JXL_ENDINGS, *RAW_ENDINGS)
RAW_CHOICES = ("jpeg", "raw", "both")
RAW_HELP = "of a photograph that is there as RAW and as JPEG (or HEIC), score this; default: jpeg"


def extra_shots(paths: Iterable[str], raw: str = "jpeg") -> set[str]:
    """Of photographs that were stored twice, as RAW and as JPEG or HEIC, the files that are not wanted.

    The two differ only in their endings.

    Args:
        raw: what is wanted: "jpeg" (or HEIC), "raw" or "both".
    """
    raws, others = defaultdict(list), defaultdict(list)
    for path in paths:
        stem, ending = os.path.splitext(path)  # noqa: PTH122 - names that are not UTF-8 stay unchanged
        if ending.lower() in RAW_ENDINGS:
            raws[stem].append(path)
        elif ending.lower() in (*JPEG_ENDINGS, *HEIC_ENDINGS):
            others[stem].append(path)
    extra = {"jpeg": raws, "raw": others, "both": {}}[raw]
    return {path for stem in raws.keys() & others.keys() for path in extra.get(stem, ())}
