"""When and with which camera a photograph was taken, according to its EXIF."""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from PIL import Image

from eamb.files import printable

MAKE, MODEL, CHANGED = 0x010F, 0x0110, 0x0132  # EXIF's tags
DETAILS, SERIAL = 0x8769, 0xA431
TAKEN = (
    (0x9003, 0x9291),
    (0x9004, 0x9292),
)  # of exposure, of digitization; each with its fraction of a second
LONGEST_TEXT = 64  # characters
TIME = re.compile(r"(\d{4})[:/.-](\d\d?)[:/.-](\d\d?)[ T](\d\d?):(\d\d)(?::(\d\d))?")


class Taken(NamedTuple):
    """What the EXIF of a photograph says.

    time: of exposure, else of digitization, else of the last change; by the camera's clock, without time
        zone.
    camera: make, model and serial number, as far as they are recorded: "Canon EOS R5, no. 012345".
    """

    time: datetime | None = None
    camera: str = ""


def read_taken(exif: Image.Exif) -> Taken:
    try:
        details = exif.get_ifd(DETAILS)
    except Exception:  # Pillow may raise anything if it is damaged
        details = {}
    times = [parse_time(details.get(time), details.get(fraction)) for time, fraction in TAKEN]
    time = next(filter(None, times), None) or parse_time(exif.get(CHANGED))
    values = (exif.get(MAKE), exif.get(MODEL), details.get(SERIAL))
    make, model, serial = (printable(as_text(value)) for value in values)
    if not (make and make.split()[0].casefold() in model.casefold()):
        model = f"{make} {model}"
    camera = " ".join(model.split())
    return Taken(time, f"{camera}, no. {serial}" if camera and serial else camera)


def parse_time(text: object, fraction: object = None) -> datetime | None:
    """EXIF's "2024:05:03 14:03:22"; `fraction` has the digits after the point. None for anything else."""
    match = TIME.match(as_text(text))
    if not match:
        return None
    digits = as_text(fraction)
    microseconds = int(f"{digits:0<6.6}") if digits.isascii() and digits.isdecimal() else 0
    try:
        return datetime(*(int(part or 0) for part in match.groups()), microseconds)
    except ValueError:  # 0000:00:00, the 31st of February, second 60
        return None


def describe_time(time: datetime | None) -> str | None:
    """As in "2024-05-03 14:03:22.450"; a fraction only if there is one."""
    return time and time.isoformat(" ", "milliseconds" if time.microsecond else "seconds")


def as_text(value: object) -> str:
    """An EXIF value as text; files may hold any type and length."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value.replace("\0", " ").strip()[:LONGEST_TEXT] if isinstance(value, str) else ""
