"""Which files --checkpoint means; the names of the shipped networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "checkpoints"
SHIPPED = {name: FOLDER / f"eambnet_{name}_para.safetensors" for name in ("lite", "small")}
DEFAULT = "lite"
FILE_HELP = "weights: a file, or lite for the shipped network (./lite is a file)"
HELP = f"{FILE_HELP}; repeated: mean of their scores"
FLIP_HELP = "also score mirrored pictures, and take the mean"


def checkpoint_file(given: str | Path) -> Path:
    """The file of the shipped network of that name, or else the path that is given.

    A Path is never a name; nor is "./lite".

    Raises:
        FileNotFoundError: the network of that name is not shipped with this version.
    """
    file = SHIPPED.get(given) if isinstance(given, str) else None
    if file is None:
        return Path(given)
    if not file.is_file():
        there = [name for name, each in SHIPPED.items() if each.is_file()]
        raise FileNotFoundError(
            f"checkpoint: the network '{given}' is not shipped with this version, which has "
            f"{' and '.join(there) or 'none'}; a file of that name is ./{given}"
        )
    return file


def checkpoint_files(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of one network, or of several that are averaged; raises as `checkpoint_file`.

    Raises:
        ValueError: none, or one is given twice.
    """
    files = [checkpoint_file(each) for each in ([given] if isinstance(given, str | Path) else given)]
    if not files:
        raise ValueError("checkpoint: give at least one file of weights, or the name of a shipped network")
    for number, file in enumerate(files):
        if file.resolve() in [each.resolve() for each in files[:number]]:
            raise ValueError(
                f"checkpoint: {file} is given twice, and each network counts once; leave one out"
            )
    return files
