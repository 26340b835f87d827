"""The data sets by name. Imports nothing heavy, so that `main.py --help` stays fast.

    DATASETS["ava"].labels  # "ratings"
    parse = DATASETS["ava"].load_reader()  # eamb.readers.ava.parse_ava

To add a set, write its reader beside the others and enter it here; for one whose labels are plain tables, a
YAML in configs/sets/ is enough (`eamb/readers/named_csv.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

NAMED = sorted((Path(__file__).parents[2] / "configs" / "sets").glob("*.yaml"))


@dataclass(frozen=True)
class DataSet:
    """What the program must know of a data set before it reads it.

    labels: "ratings" of aesthetics, with or without emotions; "emotions" alone; or "pairs".
    reader: module:function that reads its label files into a Table; for pairs, one file into a PairTable.
    recipe, emotion_recipe: the config in configs/ for its own labels and for the task emotion, without .yaml.
    label_files: glob patterns, below the set's folder, of the files that are needed besides the pictures.
    folder: where the set is if --data-root is not given; "" if it must be given.
    description: the file that tells the reader how the set's tables are read.
    """

    labels: str
    reader: str
    recipe: str
    emotion_recipe: str = "emotion"
    label_files: tuple[str, ...] = ()
    folder: str = ""
    description: Path | None = None

    def load_reader(self) -> Callable:
        reader = resolve_name(f"eamb.readers.{self.reader}")
        return partial(reader, self.description) if self.description else reader


AVA_FILES = ("*.txt", "*.csv", "*.jpgl", "splits/*.csv", "aesthetics_image_lists/*")
EMOSET_FILES = ("*.json", "EmoSet-118K/*.json")

DATASETS: dict[str, DataSet] = {
    "ava": DataSet("ratings", "ava:parse_ava", "ava", label_files=AVA_FILES),
    "para": DataSet("ratings", "para:parse_para", "para", label_files=("annotation/*",)),
    "iae": DataSet("ratings", "iae:parse_iae", "iae", label_files=("*.txt", "*.h5")),
    "emoset": DataSet("emotions", "emoset:parse_emoset", "emotion", label_files=EMOSET_FILES),
    "fi": DataSet("emotions", "fi:parse_fi", "emotion"),
    "csv": DataSet("ratings", "own_csv:parse_csv", "csv", label_files=("*.csv", "*.tsv")),
    "demo": DataSet("ratings", "demo:parse_demo", "demo", "demo", ("labels.csv",), folder="data/demo"),
    "phototriage": DataSet("pairs", "pairs:read_phototriage", "series"),
    "pairs": DataSet("pairs", "pairs:read_pairs_csv", "series"),
}
for file in NAMED:
    DATASETS[file.stem] = DataSet(
        "ratings", "named_csv:parse_named", "csv", label_files=("*.csv", "*.tsv", "*/*.csv"), description=file
    )

# The sets whose labels are pairs of photographs, and those of single pictures.
PAIRED = tuple(name for name, data_set in DATASETS.items() if data_set.labels == "pairs")
SINGLE = tuple(name for name in DATASETS if name not in PAIRED)
