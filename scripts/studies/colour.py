"""How much a score changes when a photograph is stored in another colour space, with and without conversion.

    python scripts/studies/colour.py --dataset para --data-root DIR --output DIR

Test pictures, those with the smallest hashes of their ids, are decoded, converted to each of three other
spaces, stored there without loss (PNG, 8 bits) and scored as `predict` does: once with the space's profile in
the file, so that it is converted back to sRGB, and once without, so that its numbers count as sRGB. The
change is the difference from the score of the same picture in sRGB, in the unit of the ratings; what is left
with conversion comes from rounding to 8 bits. Writes colour.json (figures, every score), prints the table.

Spaces: Display P3 has the primaries and white of SMPTE EG 432-1 with the curve of sRGB (IEC 61966-2-1); Adobe
RGB (1998), version 2005-05, section 4.3; ProPhoto RGB is ROMM RGB, ISO 22028-2.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from struct import pack
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import first_by_hash, load_dataset
from eamb.evaluation.predicting import as_trained
from eamb.files import written_whole
from eamb.inference.scorer import Scorer, check_scores
from eamb.readers.decoding import DecodeError, decode
from eamb.runtime.command import check_output, guarded
from eamb.runtime.config import load_config
from eamb.runtime.progress import progress
from eamb.weights.shipped import DEFAULT, FILE_HELP

D50 = (0.3457, 0.3585)
D65 = (0.3127, 0.3290)
CONNECTION_WHITE = (0.9642, 1.0, 0.8249)  # XYZ of the white to which profiles refer (ICC.1:2022, 7.2.16)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


class Space(NamedTuple):
    """An RGB space.

    primaries: x, y of red, green and blue. white: x, y.
    curve: g, a, b, c, d: level v is linear light (a v + b)^g, and c v below d (ICC.1:2022, table 68, type 3).
    """

    name: str
    primaries: tuple[tuple[float, float], ...]
    white: tuple[float, float]
    curve: tuple[float, ...]


SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
SRGB = Space("sRGB", ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, SRGB_CURVE)
ADOBE_CURVE, ROMM_CURVE = (563 / 256, 1, 0, 0, 0), (1.8, 1, 0, 1 / 16, 1 / 32)
ROMM_PRIMARIES = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
SPACES = {
    "p3": Space("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, SRGB_CURVE),
    "adobe": Space("Adobe RGB (1998)", ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, ADOBE_CURVE),
    "prophoto": Space("ProPhoto RGB", ROMM_PRIMARIES, D50, ROMM_CURVE),
}


# ---- profiles


def to_connection_space(space: Space) -> np.ndarray:
    """The matrix (3, 3) from linear RGB to XYZ under the profiles' white, adapted by Bradford's method."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    primaries, white = np.stack([xyz(*point) for point in space.primaries], axis=1), xyz(*space.white)
    matrix = primaries * np.linalg.solve(primaries, white)  # white is where all three are 1
    scale = (BRADFORD @ CONNECTION_WHITE) / (BRADFORD @ white)
    return np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD @ matrix


def rgb_profile(space: Space) -> bytes:
    """The ICC profile (version 4) of an RGB space."""
    curve = b"para" + pack(">IHH5i", 0, 3, 0, *(round(65536 * value) for value in space.curve))
    tags = {f"{name}TRC": curve for name in "rgb"}
    tags |= {
        f"{name}XYZ": xyz(*column) for name, column in zip("rgb", to_connection_space(space).T, strict=True)
    }
    return write_profile(space.name, "RGB ", tags)


def write_profile(name: str, colour_space: str, tags: dict[str, bytes], device: str = "mntr") -> bytes:
    """A profile with the given elements and those that all need (ICC.1:2022, 7.2, 8.2).

    Args:
        colour_space, device: four letters each, as "RGB " and the class "mntr", a monitor.
        tags: by name; with a table A2B0 the connection space is Lab, else XYZ.
    """

    def text(words: str) -> bytes:
        coded = words.encode("utf-16-be")
        return pack(">4s3I4s2I", b"mluc", 0, 1, 12, b"enUS", len(coded), 28) + coded

    white = xyz(*CONNECTION_WHITE)
    tags = {"desc": text(name), "cprt": text("no rights reserved"), "wtpt": white, **tags}
    start, table, data = 128 + 4 + 12 * len(tags), pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += pack(">4s2I", tag.encode(), start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    kinds = (device.encode(), colour_space.encode(), b"Lab " if "A2B0" in tags else b"XYZ ")
    header = pack(">2I", start + len(data), 0) + pack(">I4s4s4s", 0x04400000, *kinds)
    header += pack(">6H4s28x", 2026, 1, 1, 0, 0, 0, b"acsp") + white[8:] + bytes(48)
    return header + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ " + pack(">4i", 0, *(round(65536 * value) for value in values))


# ---- the study


def study(options: argparse.Namespace) -> int:
    if options.pictures < 1:
        raise ValueError(f"colour: at least 1 of --pictures, got {options.pictures}")
    check_output("colour", options.output)
    scorer = Scorer(options.checkpoint)
    check_scores(scorer.network.weights, ("aesthetics", "series"))
    words = [*options.settings, f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
    data = as_trained(load_config((), words), scorer.network.weights).data.options()
    rated = load_dataset(options.dataset, options.data_root, (options.split,), data)[options.split]
    rated = first_by_hash(rated, options.pictures)
    scores = {name: [] for name in names(SPACES)}
    for path in progress(rated.paths, unit=" pictures"):
        try:
            picture = Image.fromarray(decode(path))
        except DecodeError as error:
            print(error, file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = store(picture, Path(folder))
            for name, scored in zip(files, scorer.score_all(files.values()), strict=True):
                scores[name].append(scored.score)
    if not scores["srgb"]:
        raise ValueError(f"colour: none of the {len(rated)} pictures can be decoded")
    rows = {name: figures(values, scores["srgb"]) for name, values in scores.items() if name != "srgb"}
    facts = {"dataset": rated.name, "split": rated.split, "pictures": len(scores["srgb"])}
    facts |= {"weights_sha256": scorer.network.weights.sha256, "changes": rows}
    facts["scores"] = {name: [round(score, 5) for score in values] for name, values in scores.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    with written_whole(options.output / "colour.json") as path:
        path.write_text(json.dumps(facts, indent=1), "utf-8")
    print(as_table(rows), f"{options.output}: colour.json", sep="\n\n")
    return 0


def names(spaces: Sequence[str]) -> list[str]:
    """What is scored of each picture: "srgb", and of each space "p3", with its profile, and "p3 ignored"."""
    return ["srgb", *spaces, *(f"{space} ignored" for space in spaces)]


def store(picture: Image.Image, folder: Path) -> dict[str, Path]:
    """Writes an RGB picture in each space, with and without its profile; returns the files, by `names`."""
    files = {name: folder / f"{name}.png" for name in names(SPACES)}
    picture.save(files["srgb"])
    for key, space in SPACES.items():
        profile = rgb_profile(space)
        target, intent = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.Intent.RELATIVE_COLORIMETRIC
        stored = ImageCms.profileToProfile(picture, ImageCms.createProfile("sRGB"), target, intent)
        stored.save(files[key], icc_profile=profile)
        stored.save(files[f"{key} ignored"], icc_profile=None)
    return files


def figures(scores: Sequence[float], srgb: Sequence[float]) -> dict[str, float]:
    """Mean change, mean and largest absolute change."""
    changes = np.subtract(scores, srgb)
    sizes = np.abs(changes)
    return {"mean": float(changes.mean()), "mean_size": float(sizes.mean()), "largest": float(sizes.max())}


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """A table in Markdown, one row a space."""
    lines = ["| stored in | profile | mean change | mean size | largest |", "|---|---|---:|---:|---:|"]
    for key, space in SPACES.items():
        for name, what in ((key, "converted"), (f"{key} ignored", "ignored")):
            row = rows[name]
            cells = f"{row['mean']:+.4f} | {row['mean_size']:.4f} | {row['largest']:.3f}"
            lines.append(f"| {space.name} | {what} | {cells} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--dataset", type=str.lower, required=True, help="one of main.py's")
    add("--data-root", metavar="DIR", type=Path, required=True, help="its folder")
    add("--checkpoint", metavar="FILE", default=DEFAULT, help=f"{FILE_HELP}; default: {DEFAULT}")
    add("--pictures", type=int, default=200, help="how many, chosen by the hash of their ids")
    add("--split", type=str.lower, default="test", choices=("train", "val", "test"))
    add("--output", metavar="DIR", type=Path, required=True, help="for colour.json")
    add("settings", metavar="key=value", nargs="*", help="as in data.table=ratings.csv")
    return guarded(study, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
