"""What commands and scripts do with bad input and with outputs that exist already."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def guarded(
    command: Callable[[argparse.Namespace], int],
    options: argparse.Namespace,
    interrupted: str = "interrupted",
) -> int:
    """Runs a command and returns its exit code; bad input is one sentence and code 2, Ctrl-C is 130.

    The exception of a training that a signal ended has its own code.
    """
    try:
        return command(options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(interrupted, file=sys.stderr)
        return getattr(stopped, "code", 130)


def refuse_existing(script: str, folder: Path, names: Iterable[str]) -> None:
    """Raises FileExistsError where a script would overwrite something and was not given --force."""
    existing = [name for name in names if (folder / name).exists()]
    if existing:
        raise FileExistsError(
            f"{script}: {folder} holds {', '.join(existing)} already; choose another folder, or overwrite "
            "with --force"
        )
