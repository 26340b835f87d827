"""Tortures the program: `torture.py train` kills trainings, `torture.py images` feeds it hostile files.

python scripts/torture.py train --kills 50
python scripts/torture.py images
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

PARTS = {"train": "torture_training", "images": "torture_images"}


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--help"] or not words or words[0] not in PARTS:
        print(f"usage: torture.py {{{','.join(PARTS)}}} ...; each part has its own --help")
        return 0 if words[:1] == ["--help"] else 2
    return import_module(PARTS[words[0]]).main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
