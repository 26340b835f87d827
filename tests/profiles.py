"""ICC profiles for tests, besides the RGB spaces of scripts/studies/colour.py, made by definition."""

from struct import pack

import numpy as np

from scripts.studies.colour import write_profile

# CIELAB (L from 0 to 100, a, b) of the 16 corners of an invented press: paper, and what its inks absorb.
PAPER, BLACK = np.array([100.0, 0, 0]), np.array([0.0, 0, 0])
INKS = {"c": (55.0, -37, -50), "m": (48.0, 74, -3), "y": (89.0, -5, 93)}


def grey_profile(gamma):
    """A grey space of a power law."""
    return write_profile("Grey", "GRAY", {"kTRC": pack(">4s2IH", b"curv", 0, 1, round(256 * gamma))})


def cmyk_corner(cyan, magenta, yellow, black):
    """CIELAB of inks that are 0 or 1: one ink alone, several as dark as black together."""
    inks = [np.array(INKS[name]) for name, on in zip("cmy", (cyan, magenta, yellow), strict=True) if on]
    if black or len(inks) > 1:
        return BLACK
    return inks[0] if inks else PAPER


def cmyk_profile(**more):
    """A press: a table of 2 x 2 x 2 x 2 corners, between which colours are interpolated (lut8Type).

    Args:
        more: other elements.
    """
    corners = np.array([cmyk_corner(*index) for index in np.ndindex(2, 2, 2, 2)])  # (16, 3)
    coded = np.rint(corners * (2.55, 1, 1) + (0, 128, 128)).clip(0, 255).astype(np.uint8)
    matrix, line = pack(">9i", *(round(65536 * value) for value in np.eye(3).ravel())), bytes(range(256))
    table = pack(">4sI4B", b"mft1", 0, 4, 3, 2, 0) + matrix + 4 * line + coded.tobytes() + 3 * line
    return write_profile("Press", "CMYK", {"A2B0": table, **more}, device="prtr")
