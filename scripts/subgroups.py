"""Shows where a network is bad, and where two networks differ: groups of pictures, and the largest errors.

    python scripts/subgroups.py --dataset para --data-root DIR --output DIR \\
        --predictions results/para_lite/predictions.csv.gz [--predictions OTHER.csv.gz ...]

Runs no network: it reads predictions (id, prediction; ids as for `main.py evaluate --predictions`), the
ratings and the pictures. groups.csv, also printed, has the metrics of each file for each group of pictures,
and paired differences between the first file and every other. worst.png and worst.csv show the largest
absolute errors of the first file; they hold pictures and ratings of the set, which may not be yours to
publish.

Groups: semantic class (in PARA's test csv), b/w or colour, dark or bright, thirds by the rating, and thirds
by the standard deviation of a picture's votes, if they are known. Colour and brightness are measured on the
picture resized to SIDE x SIDE pixels.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from eamb.evaluation.external import match_ids, why_correlations_only
from eamb.evaluation.figures import TITLE, new_plot, write_figure
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.ratings import truth
from eamb.evaluation.report import without_nan, write_columns
from eamb.readers.decoding import DecodeError, decode
from eamb.readers.para import PARA_FILES
from eamb.readers.rated import SPLITS, RatedSet
from eamb.readers.table import Sheet
from eamb.runtime.command import check_output, guarded
from eamb.runtime.config import load_config
from eamb.runtime.progress import progress
from eamb.training.tasks import choose_task

FILES = ("groups.csv", "worst.csv", "worst.png")
SMALLEST = 30  # pictures in a group; with fewer, intervals are too wide to be useful
SIDE = 64
GRAY = 2  # of 255: mean difference of a pixel's largest and smallest channel, below which a picture is gray
DARK, BRIGHT = 64, 160  # of 255: limits of the mean luminance
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as in JPEG (ITU-R BT.601)
SHOWN = ("n", "mean_rating", "sd_rating", "srcc", "plcc", "rmse", "bias", "accuracy")
DIFFERENCES = ("srcc_difference", "mae_difference")
ESTIMATED = ("srcc", "mae", "bias", *DIFFERENCES)  # with intervals
PER_ROW = 10  # pictures of the sheet
REMARKS = """\
sd_rating: where the ratings of a group differ less, correlations are lower for any network.
bias: predicted minus rated. A cautious network is too high on low ratings and too low on high ones.
*: the 95 % interval does not contain 0. About one in 20 does so by chance, without any real difference."""


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(show_subgroups, parse(arguments))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--dataset", type=str.lower, metavar="SET", required=True, help="ava, para, iae, csv")
    parser.add_argument("--data-root", metavar="DIR", required=True, help="the set's folder")
    parser.add_argument("--split", type=str.lower, choices=SPLITS, default="test")
    repeated = {"action": "append", "type": Path, "metavar": "FILE", "required": True}
    parser.add_argument("--predictions", **repeated, help="csv of id and prediction; may be given repeatedly")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help=f"for {', '.join(FILES)}")
    parser.add_argument("--worst", metavar="N", type=int, default=50, help="errors shown; default: 50")
    parser.add_argument("--resamples", metavar="N", type=int, default=1000, help="for the intervals")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="as in data.score_column=score")
    return parser.parse_intermixed_args(arguments)


def show_subgroups(options: argparse.Namespace) -> int:
    """Measures everything, then writes."""
    if options.worst < 1 or options.resamples < 1:
        raise ValueError("subgroups: --worst and --resamples are at least 1")
    check_output("subgroups", options.output, FILES, options.force)
    words = [*options.settings, f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
    rated = choose_task(load_config((), words)).load_split(options.split)
    rated, predictions, notes = read_files(options.predictions, rated)
    everything = Group("all", "all", "", np.ones(len(rated), dtype=bool))
    groups = make_groups(rated, Path(options.data_root))
    scores, threshold = truth(rated, rated.scale.kind == "label")
    lines = group_lines(everything, predictions, scores, threshold, options.resamples)
    for group in groups:
        if SMALLEST <= group.member.sum() < len(rated):
            lines += group_lines(group, predictions, scores, threshold, options.resamples)
        else:
            notes.append(f"left out, fewer than {SMALLEST} or all: {group.name} ({group.member.sum():,})")
    name, first = next(iter(predictions.items()))
    # Stable: equal errors stay in the order of the set.
    worst = np.argsort(-np.abs(first - scores), kind="stable")[: options.worst]
    columns = {
        "id": [rated.ids[place] for place in worst],
        "predicted": first[worst].tolist(),
        "rated": scores[worst].tolist(),
        "error": (first - scores)[worst].tolist(),
        "groups": ["; ".join(group.name for group in groups if group.member[place]) for place in worst],
    }
    title = f"{rated.name.upper()} {rated.split}, {name}: the {len(worst)} largest absolute errors"
    figure = draw_sheet([rated.paths[place] for place in worst], columns, title)
    # Four decimals, so that no single rating can be recovered by subtracting groups.
    write_columns(options.output / FILES[0], without_nan(pd.DataFrame(lines).round(4).to_dict("list")))
    write_columns(options.output / FILES[1], columns)
    write_figure(figure, options.output / FILES[2])
    print(as_text(lines), f"accuracy: of ratings above {threshold:g}", *notes, REMARKS, sep="\n")
    print(f"\n{options.output}: {', '.join(FILES)}; only {FILES[0]} is free of pictures and single ratings")
    return 0


def read_files(paths: Sequence[Path], rated: RatedSet) -> tuple[RatedSet, dict[str, np.ndarray], list[str]]:
    """The m pictures that all files predict; file's name -> its predictions (m,); a note on the rest."""
    predictions = {}
    for path in paths:
        name = path.name.partition(".")[0]
        if name == "predictions":  # results/NAME/predictions.csv.gz: named by its folder
            name = path.resolve().parent.name
        if name in predictions:
            raise ValueError(f"subgroups: two files of predictions are called {name}; rename one")
        matched, _ = match_ids(path, rated)
        if reason := why_correlations_only(matched["prediction"].to_numpy(), rated):
            raise ValueError(f"subgroups: {path}: {reason}")
        predictions[name] = np.full(len(rated), np.nan)
        predictions[name][matched["position"]] = matched["prediction"]
    everywhere = ~np.isnan(list(predictions.values())).any(axis=0)  # (n,)
    notes = [f"not predicted in every file, left out: {(~everywhere).sum():,} pictures"]
    return rated.take(everywhere), {name: v[everywhere] for name, v in predictions.items()}, notes


class Group(NamedTuple):
    """Some pictures of a set. kind, limits: what they have in common, in words. member: (n,) bool."""

    kind: str
    name: str
    limits: str
    member: np.ndarray


def make_groups(rated: RatedSet, root: Path) -> list[Group]:
    """All groups of any size; a file that cannot be decoded is in no group of colour or brightness."""
    semantic, deviation = [], np.full(len(rated), np.nan)  # (n,) of votes, as aestheticScore_std
    if rated.name == "para":
        sheet = Sheet(root / "annotation" / PARA_FILES["test" if rated.split == "test" else "train"])
        if "semantic" in sheet.columns:
            rows = zip(*(sheet.texts(name) for name in ("sessionId", "imageName", "semantic")), strict=True)
            class_of = {f"{session}/{image}": word for session, image, word in rows}
            classes = np.array([class_of[i] for i in rated.ids])  # (n,)
            semantic = [Group("semantic", n, "", classes == n) for n in np.unique(classes).tolist()]
    if rated.distributions is not None:
        deviation = metrics.spread(rated.distributions, rated.bins)
    luminance, gap = measure_pictures(rated.paths)
    middle = (luminance >= DARK) & (luminance < BRIGHT)
    limit = f"{GRAY} of 255 between a pixel's channels, mean over pixels"
    return [
        *semantic,
        Group("colour", "b/w", f"less than {limit}", gap < GRAY),
        Group("colour", "colour", f"at least {limit}", gap >= GRAY),
        Group("brightness", "dark", f"mean luminance below {DARK} of 255", luminance < DARK),
        Group("brightness", "normal", f"mean luminance from {DARK} to {BRIGHT}", middle),
        Group("brightness", "bright", f"mean luminance from {BRIGHT} on", luminance >= BRIGHT),
        *thirds("rating", ("rated low", "rated middle", "rated high"), rated.scores),
        *thirds("sd of votes", ("raters agree", "raters between", "raters disagree"), deviation),
    ]


def measure_pictures(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean luminance, and mean difference of a pixel's largest and smallest channel: (n,) each, 0 to 255; NaN
    for a file that cannot be decoded."""
    values = np.full((2, len(paths)), np.nan)
    for place, path in enumerate(progress(paths, unit=" images")):
        try:
            pixels = decode(path, SIDE)  # (SIDE, SIDE, 3)
        except DecodeError as error:
            tqdm.write(f"in no group of colour or brightness: {error}", file=sys.stderr)
            continue
        values[:, place] = (pixels @ np.array(LUMINANCE)).mean(), np.ptp(pixels, axis=2).mean()
    return values[0], values[1]


def thirds(kind: str, names: Sequence[str], values: np.ndarray) -> list[Group]:
    """Low, middle and high values (n,); no groups if they are unknown or hardly differ, like labels."""
    numbers = values[~np.isnan(values)]
    low, high = np.quantile(numbers, [1 / 3, 2 / 3]) if len(numbers) else (np.nan, np.nan)
    if not low < high < numbers.max():
        return []
    limits = (f"up to {low:.2f}", f"above {low:.2f}, up to {high:.2f}", f"above {high:.2f}")
    members = (values <= low, (values > low) & (values <= high), values > high)
    parts = zip(names, limits, members, strict=True)
    return [Group(kind, name, f"{kind} {limit}", member) for name, limit, member in parts]


def group_lines(
    group: Group, predictions: dict[str, np.ndarray], scores: np.ndarray, threshold: float, resamples: int
) -> list[dict]:
    """The lines of groups.csv for a group, one for each file of predictions (n,); NaN: undefined."""

    def estimates(rated: np.ndarray, *arrays: np.ndarray) -> dict[tuple[str, str], float]:
        """(file, figure) -> value; a difference is the first file's figure minus this one's."""
        values, first = {}, {}
        for name, predicted in zip(predictions, arrays, strict=True):
            figures = {"srcc": metrics.srcc(predicted, rated), "mae": metrics.mae(predicted, rated)}
            first = first or figures
            figures["bias"] = float((predicted - rated).mean())
            for key in ("srcc", "mae") if first is not figures else ():
                figures[f"{key}_difference"] = first[key] - figures[key]
            values |= {(name, key): value for key, value in figures.items()}
        return values

    arrays = tuple(values[group.member] for values in (scores, *predictions.values()))  # (members,) each
    rated, lines = arrays[0], []
    common = {"kind": group.kind, "group": group.name, "limits": group.limits, "n": len(rated)}
    common |= {"mean_rating": rated.mean(), "sd_rating": rated.std()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # undefined correlations become empty cells
        figures, intervals = estimates(*arrays), bootstrap_intervals(estimates, arrays, resamples)
        for name, values in zip(predictions, arrays[1:], strict=True):
            plcc, rmse = metrics.plcc(values, rated), metrics.rmse(values, rated)
            accuracy = metrics.accuracy(values, rated, threshold)
            line = common | {"predictions": name, "plcc": plcc, "rmse": rmse, "accuracy": accuracy}
            for key in ESTIMATED:
                low, high = intervals.get((name, key), (np.nan, np.nan))
                line |= {key: figures.get((name, key), np.nan), f"{key}_low": low, f"{key}_high": high}
            lines.append(line)
    return lines


def as_text(lines: Sequence[dict]) -> str:
    """The figures of each group and file; a star marks a difference whose interval does not contain 0."""
    table = pd.DataFrame(lines)
    for key in DIFFERENCES:
        sure = (table[f"{key}_low"] > 0) | (table[f"{key}_high"] < 0)
        table[key] = table[key].map("{:.3f}".format).mask(table[key].isna(), "") + np.where(sure, " *", "")
    return table[["group", "predictions", *SHOWN, *DIFFERENCES]].to_string(index=False, float_format="%.3f")


def draw_sheet(paths: Sequence[str], columns: dict[str, list], title: str) -> Figure:
    """The pictures of worst.csv in rows, each below its scores."""
    rows = -(-len(paths) // PER_ROW)
    figure = new_plot(180 * PER_ROW, 60 + 220 * rows)
    figure.suptitle(title, x=0.01, ha="left", **TITLE)
    places = figure.subplots(rows, PER_ROW, squeeze=False).ravel()
    for axes in places:
        axes.axis("off")
    for axes, path, predicted, real in zip(
        places, paths, columns["predicted"], columns["rated"], strict=False
    ):
        axes.set_title(f"predicted {predicted:.2f}\nrated {real:.2f}", fontsize=9)
        try:
            image = Image.fromarray(decode(path))
        except DecodeError:
            axes.text(0.5, 0.5, "cannot be decoded", ha="center")
        else:
            image.thumbnail((360, 360))
            axes.imshow(image)
    return figure


if __name__ == "__main__":
    sys.exit(main())
