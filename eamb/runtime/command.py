"""What commands and scripts do with bad input and with outputs that exist already."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from eamb.files import home


def guarded(
    command: Callable[[argparse.Namespace], int],
    options: argparse.Namespace,
    interrupted: str = "interrupted",
) -> int:
    """Runs a command and returns its exit code; bad input prints one sentence and gives 2, Ctrl-C gives 130.

    A training that a signal stopped returns a code of its own. ~ in the options is the user's home, and
    letters that the terminal's encoding lacks are written like \\xe9.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        vars(options).update({name: at_home(value) for name, value in vars(options).items()})
        return command(options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(interrupted, file=sys.stderr)
        return getattr(stopped, "code", 130)


def at_home(value: object) -> object:
    """An option's value with `home` for its texts and paths."""
    if isinstance(value, list):
        return [at_home(each) for each in value]
    return type(value)(home(str(value))) if isinstance(value, str | Path) else value


def check_output(area: str, folder: Path, names: Iterable[str] = (), force: bool = True) -> None:
    """Raises OSError if nothing can be written in a folder, or without `force` if it has such files already.

    To be called before the work begins; makes no folder.
    """
    place = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder)
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        reason = f"{folder} cannot be written ({place}: {error.strerror})"
        raise type(error)(f"{area}: {reason}; choose another folder for the output") from error
    existing = [name for name in names if (folder / name).exists()]
    if existing and not force:
        raise FileExistsError(
            f"{area}: {folder} holds {', '.join(existing)} already; choose another folder, or overwrite with "
            "--force"
        )
    if folders := [name for name in existing if (folder / name).is_dir()]:
        raise IsADirectoryError(f"{area}: {folder / folders[0]} is a folder, but must be a file")
