"""Progress on standard error: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

SECONDS = 30  # at least, between two lines of a log


def progress(items: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm's bar; where standard error is no terminal, a line every 30 seconds, and none in the first 30."""
    if sys.stderr.isatty():
        return tqdm(items, mininterval=1, **options)
    log = SimpleNamespace(write=write_line)
    return tqdm(items, file=log, mininterval=SECONDS, delay=SECONDS, miniters=1, **options)


def write_line(text: str) -> None:
    """Writes tqdm's text, without the line ends and blanks around it, as a line of its own."""
    if text.strip():
        print(text.strip(), file=sys.stderr, flush=True)
