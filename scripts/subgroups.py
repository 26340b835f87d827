"""Shows where a network is bad, and where two networks differ: groups of pictures, and the largest errors.

    python scripts/subgroups.py --dataset para --data-root DIR --output DIR \\
        --predictions results/para_lite/predictions.csv.gz [--predictions OTHER.csv.gz ...]

Needs no network: it reads predictions (id, prediction; ids as `main.py evaluate --predictions` takes them),
the ratings and the pictures. groups.csv, also printed: the figures of each file for each group of pictures,
and how the first file differs from each other one, in pairs. worst.png and worst.csv: the largest absolute
errors of the first file. These two hold pictures and ratings of the set, which may not be yours to publish.

Groups: semantic class (in PARA's test csv), b/w or colour, dark or bright, thirds by the rating, and thirds
by the standard deviation of a picture's votes, if they are known. Colour and brightness are measured on the
picture resized to SIDE x SIDE pixels.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from eamb.evaluation.evaluate import load_split, truth
from eamb.evaluation.external import match, read_claims, why_correlations_only
from eamb.evaluation.figures import FAINT, INK, new_figure, write, write_figure
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.report import without_nan, write_columns
from eamb.files import written_whole
from eamb.inference.panels import Box, fit, resize_image, show
from eamb.readers.decoding import DecodeError, decode
from eamb.readers.para import PARA_FILES
from eamb.readers.rated import SPLITS, RatedSet
from eamb.readers.table import Sheet
from eamb.runtime.command import guarded, refuse_existing
from eamb.runtime.config import load_config

FILES = ("groups.csv", "worst.csv", "worst.png")
SMALLEST = 30  # pictures in a group: fewer have intervals too wide to say anything
SIDE = 64
GRAY = 2  # of 255: mean difference of a pixel's largest and smallest channel, below which a picture is gray
DARK, BRIGHT = 64, 160  # of 255: mean luminance below the one, or from the other on
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as in JPEG (ITU-R BT.601)
REMARKED = ("b/w", "dark", "bright", "raters disagree")  # groups named on the sheet, beside semantic classes


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(run, parse(arguments))


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


def run(options: argparse.Namespace) -> int:
    """Measures everything, then writes.

    Raises:
        ValueError, OSError: bad arguments or data, in one sentence; nothing was written then.
    """
    check_options(options)
    words = [*options.settings, f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
    rated = load_split(load_config((), words), options.split)
    rated, predictions, notes = read_predictions(options.predictions, rated)
    known, undecoded = make_groups(rated, Path(options.data_root).expanduser())
    groups, left_out = choose_groups(known)
    scores, threshold = truth(rated, rated.scale.kind == "label")
    lines = [line for g in groups for line in measure(g, predictions, scores, threshold, options.resamples)]
    name, first = next(iter(predictions.items()))
    # Stable: of equal errors the first in the set stands first.
    worst = np.argsort(-np.abs(first - scores), kind="stable")[: options.worst]
    columns = describe_worst(worst, rated, first, scores, known)
    figure = draw_sheet(worst, rated, columns, known, f"{rated.name.upper()} {rated.split}, {name}")
    write_csv(options.output / FILES[0], {key: [tidy(line[key]) for line in lines] for key in lines[0]})
    write_csv(options.output / FILES[1], columns)
    write_figure(figure, options.output / FILES[2])
    limits = [f"{group.name}: {group.limits}" for group in groups if group.limits]
    print(report(lines, threshold), *limits, *notes, *undecoded, *left_out, REMARKS, sep="\n")
    print(f"\n{options.output}: {', '.join(FILES)}; only {FILES[0]} is free of pictures and single ratings")
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Refuses what cannot work, or would overwrite something, before any work is done."""
    if options.worst < 1 or options.resamples < 1:
        raise ValueError(
            f"subgroups: --worst and --resamples are at least 1, got {options.worst}, {options.resamples}"
        )
    if not options.force:
        refuse_existing("subgroups", options.output, FILES)


# ---------------------------------------------------------------------------------------------------
# Predictions


def read_predictions(
    paths: Sequence[Path], rated: RatedSet
) -> tuple[RatedSet, dict[str, np.ndarray], list[str]]:
    """The m pictures that all files predict, name of a file -> its predictions (m,), and what was left out.

    Raises:
        ValueError, FileNotFoundError: files of one name, of other pictures, or in another unit.
    """
    found, notes = {}, []
    for path in paths:
        if (name := short_name(path)) in found:
            raise ValueError(
                f"subgroups: two files of predictions would be called {name}; rename one or its folder"
            )
        claims = read_claims(path, rated)
        matched = match(claims, rated)
        found[name] = np.full(len(rated), np.nan)
        found[name][matched.positions] = claims.values[matched.rows, 0]
        if reason := why_correlations_only(found[name][matched.positions], rated):
            raise ValueError(f"subgroups: {path}: {reason}")
        notes += [f"{name}: {len(matched.extra):,} ids are not in this split, not used"] * bool(matched.extra)
    everywhere = ~np.isnan(list(found.values())).any(axis=0)  # (n,)
    if missing := int((~everywhere).sum()):
        example = rated.ids[int(np.argmin(everywhere))]
        notes.append(f"not predicted in every file, left out: {missing:,} pictures, e.g. {example}")
    return rated.take(everywhere), {name: values[everywhere] for name, values in found.items()}, notes


def short_name(path: Path) -> str:
    """What a file is called: results/NAME/predictions.csv.gz by its folder, others by their own name."""
    name = path.name.partition(".")[0]
    return path.resolve().parent.name if name == "predictions" else name


# ---------------------------------------------------------------------------------------------------
# Groups


@dataclass(frozen=True, eq=False)
class Group:
    """Some pictures of a set: kind and limits say in words what they have in common; member: (n,) bool."""

    kind: str
    name: str
    limits: str
    member: np.ndarray


def make_groups(rated: RatedSet, root: Path) -> tuple[list[Group], list[str]]:
    """All groups of any size, the first of all pictures; and a note on files that cannot be decoded."""
    luminance, gap = measure_pictures(rated.paths)
    middle = (luminance >= DARK) & (luminance < BRIGHT)
    limit = f"{GRAY} of 255 between a pixel's channels, mean over pixels"
    groups = [
        Group("all", "all", "", np.ones(len(rated), dtype=bool)),
        *semantic_groups(rated, root),
        Group("colour", "b/w", f"less than {limit}", gap < GRAY),
        Group("colour", "colour", f"at least {limit}", gap >= GRAY),
        Group("brightness", "dark", f"mean luminance below {DARK} of 255", luminance < DARK),
        Group("brightness", "normal", f"mean luminance from {DARK} to {BRIGHT}", middle),
        Group("brightness", "bright", f"mean luminance from {BRIGHT} on", luminance >= BRIGHT),
        *thirds("rating", ("rated low", "rated middle", "rated high"), rated.scores),
        *thirds("sd of votes", ("raters agree", "raters between", "raters disagree"), vote_deviation(rated)),
    ]
    broken = [i for i, value in zip(rated.ids, luminance, strict=True) if np.isnan(value)]
    words = f"in no group of colour or brightness, cannot be decoded: {len(broken):,} pictures, e.g. "
    return groups, [words + broken[0]] if broken else []


def semantic_groups(rated: RatedSet, root: Path) -> list[Group]:
    """By the classes in PARA's csv; none for other sets, or where the csv has no such column."""
    if rated.name != "para":
        return []
    sheet = Sheet(root / "annotation" / PARA_FILES["test" if rated.split == "test" else "train"])
    if "semantic" not in sheet.columns:
        return []
    rows = zip(*(sheet.texts(name) for name in ("sessionId", "imageName", "semantic")), strict=True)
    found = {f"{session}/{image}": word for session, image, word in rows}
    classes = np.array([found[i] for i in rated.ids])  # (n,)
    return [Group("semantic", name, "", classes == name) for name in np.unique(classes).tolist()]


def measure_pictures(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean luminance, and mean difference of a pixel's largest and smallest channel: (n,) each, 0 to 255.

    NaN for a file that cannot be decoded.
    """
    found = np.full((len(paths), 2), np.nan)
    for row, path in zip(found, tqdm(paths, unit=" images", disable=None), strict=True):
        try:
            pixels = decode(path, SIDE)  # (SIDE, SIDE, 3)
        except DecodeError:
            continue
        row[:] = (pixels @ np.array(LUMINANCE)).mean(), np.ptp(pixels, axis=2).mean()
    return found[:, 0], found[:, 1]


def vote_deviation(rated: RatedSet) -> np.ndarray:
    """(n,) standard deviation of each picture's votes, as PARA's aestheticScore_std; NaN where unknown."""
    if rated.distributions is None:
        return np.full(len(rated), np.nan)
    bins = np.array(rated.bins)  # (K,)
    distance = bins - (rated.distributions @ bins)[:, None]  # (n, K)
    return np.sqrt((rated.distributions * distance**2).sum(axis=1))


def thirds(kind: str, names: Sequence[str], values: np.ndarray) -> list[Group]:
    """Low, middle and high values (n,); none where they are unknown or too few differ, as of labels."""
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else (np.nan, np.nan)
    if not low < high < known.max():
        return []
    limits = (f"up to {low:.2f}", f"above {low:.2f}, up to {high:.2f}", f"above {high:.2f}")
    members = (values <= low, (values > low) & (values <= high), values > high)
    parts = zip(names, limits, members, strict=True)
    return [Group(kind, name, f"{kind} {limit}", member) for name, limit, member in parts]


def choose_groups(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """The groups of a size that says something, and a note on the others.

    Raises:
        ValueError: there is nothing beside the group of all.
    """
    total = len(groups[0].member)
    counts = [int(group.member.sum()) for group in groups]
    kept = [g for g, count in zip(groups, counts, strict=True) if g is groups[0] or SMALLEST <= count < total]
    if len(kept) < 2:
        raise ValueError(
            f"subgroups: no group of pictures has {SMALLEST} or more of the {total} that are predicted and "
            "rated (all of them are no group); take a larger split"
        )
    rest = [f"{g.name} ({count:,})" for g, count in zip(groups, counts, strict=True) if g not in kept]
    words = f"left out, fewer than {SMALLEST} pictures or all: {', '.join(rest)}"
    return kept, [words] if rest else []


# ---------------------------------------------------------------------------------------------------
# Figures


def measure(
    group: Group, predictions: dict[str, np.ndarray], scores: np.ndarray, threshold: float, resamples: int
) -> list[dict]:
    """The lines of groups.csv for one group, one a file; what does not exist is NaN.

    Args:
        predictions: name of a file -> (n,). scores: (n,).
    """
    names = list(predictions)
    arrays = tuple(values[group.member] for values in (scores, *predictions.values()))  # (members,) each
    rated, *predicted = arrays
    common = {"kind": group.kind, "group": group.name, "limits": group.limits, "n": len(rated)}
    common |= {"mean_rating": rated.mean(), "sd_rating": rated.std()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a correlation that does not exist is an empty cell
        found = estimates(names, *arrays)
        intervals = bootstrap_intervals(lambda *a: estimates(names, *a), arrays, resamples)
        lines = []
        for name, values in zip(names, predicted, strict=True):
            line = common | {"predictions": name, "plcc": metrics.plcc(values, rated)}
            line |= {"rmse": metrics.rmse(values, rated)}
            line |= {"accuracy": metrics.accuracy(values, rated, threshold)}
            for key in ESTIMATED:
                low, high = intervals.get((name, key), (np.nan, np.nan))
                line |= {key: found.get((name, key), np.nan), f"{key}_low": low, f"{key}_high": high}
            lines.append(line)
    return lines


ESTIMATED = ("srcc", "mae", "bias", "srcc_difference", "mae_difference")  # with intervals


def estimates(names: Sequence[str], rated: np.ndarray, *arrays: np.ndarray) -> dict[tuple[str, str], float]:
    """(file, figure) -> value of what has an interval; a difference is the first file's minus this one's."""
    found = {}
    for name, predicted in zip(names, arrays, strict=True):
        found[name, "srcc"] = metrics.srcc(predicted, rated)
        found[name, "mae"] = metrics.mae(predicted, rated)
        found[name, "bias"] = float((predicted - rated).mean())
    for name in names[1:]:
        for key in ("srcc", "mae"):
            found[name, f"{key}_difference"] = found[names[0], key] - found[name, key]
    return found


REMARKS = """\
sd: of the ratings in the group; where they differ less, correlations are lower for any network.
bias: predicted minus rated. A cautious network is above what is rated low and below what is rated high.
*: the 95 % interval does not hold 0. Of 20 differences without any cause about one has it by chance."""


def report(lines: Sequence[dict], threshold: float) -> str:
    """A table for each file, and one for each comparison with the first."""
    parts = []
    names = list(dict.fromkeys(line["predictions"] for line in lines))
    for name in names:
        own = [line for line in lines if line["predictions"] == name]
        groups = [line["group"] for line in own]
        table = pd.DataFrame([own_cells(line, threshold) for line in own], groups)
        parts.append(f"{name}\n{table.to_string()}\n")
        if name != names[0]:
            table = pd.DataFrame([difference_cells(line) for line in own], groups)
            parts.append(f"{names[0]} minus {name}, in pairs\n{table.to_string()}\n")
    return "\n".join(parts)


def own_cells(line: dict, threshold: float) -> dict[str, str]:
    return {
        "n": f"{line['n']:,}",
        "rated": f"{line['mean_rating']:.3f}",
        "sd": f"{line['sd_rating']:.3f}",
        "SRCC": estimate(line, "srcc"),
        "PLCC": f"{line['plcc']:.3f}",
        "RMSE": f"{line['rmse']:.3f}",
        "bias": estimate(line, "bias", "+"),
        f"accuracy > {threshold:g}": f"{100 * line['accuracy']:.1f} %",
    }


def difference_cells(line: dict) -> dict[str, str]:
    cells = {"n": f"{line['n']:,}"}
    for name, key in (("SRCC", "srcc_difference"), ("MAE", "mae_difference")):
        beyond = line[f"{key}_low"] > 0 or line[f"{key}_high"] < 0
        cells[name] = estimate(line, key, "+") + (" *" if beyond else "  ")
    return cells


def estimate(line: dict, key: str, sign: str = "") -> str:
    """0.860 (0.848 to 0.872)"""
    value, low, high = (f"{line[name]:{sign}.3f}" for name in (key, f"{key}_low", f"{key}_high"))
    return f"{value} ({low} to {high})"


def tidy(value):
    """Four decimals: intervals are wider, and nobody can subtract groups to find a single rating."""
    return round(float(value), 4) if isinstance(value, float) else value


def write_csv(path: Path, columns: dict[str, Sequence]) -> None:
    with written_whole(path) as unfinished:
        write_columns(unfinished, without_nan(columns))


# ---------------------------------------------------------------------------------------------------
# The largest errors. Sizes are pixels; those of letters are points.

PER_ROW, CELL, GAP, MARGIN, LINE = 10, 168, 14, 30, 19
TITLE, TEXT, LETTERS = 15, 10, 23  # LETTERS of TEXT have room below a picture


def describe_worst(
    worst: np.ndarray, rated: RatedSet, predicted: np.ndarray, scores: np.ndarray, groups: Sequence[Group]
) -> dict[str, list]:
    """Columns of worst.csv; `groups` there are the names of all groups that a picture is in."""
    return {
        "id": [rated.ids[place] for place in worst],
        "predicted": predicted[worst].tolist(),
        "rated": scores[worst].tolist(),
        "error": (predicted - scores)[worst].tolist(),
        "groups": ["; ".join(g.name for g in groups[1:] if g.member[place]) for place in worst],
    }


def draw_sheet(
    worst: np.ndarray, rated: RatedSet, columns: dict[str, list], groups: Sequence[Group], name: str
) -> Figure:
    """The pictures of worst.csv in rows, each with its scores and what is remarkable about it below."""
    top, height = MARGIN + 3 * LINE, CELL + 4 * LINE + GAP
    rows = math.ceil(len(worst) / PER_ROW)
    figure = new_figure(2 * MARGIN + PER_ROW * (CELL + GAP) - GAP, top + rows * height + MARGIN)
    title = f"{name}: the {len(worst)} largest absolute errors among {len(rated):,} pictures"
    write(figure, MARGIN, MARGIN + LINE, title, size=TITLE, weight="bold")
    marked = [group for group in groups if group.kind == "semantic" or group.name in REMARKED]
    for number, place in enumerate(worst):
        row, column = divmod(number, PER_ROW)
        box = Box(MARGIN + column * (CELL + GAP), top + row * height, CELL, CELL)
        draw_picture(figure, box, rated.paths[place])
        words = ", ".join(group.name for group in marked if group.member[place])
        lines = [(f"{key} {columns[key][number]:.2f}", INK) for key in ("predicted", "rated")]
        lines += [(text, FAINT) for text in textwrap.wrap(words, LETTERS)]
        for count, (text, colour) in enumerate(lines, start=1):
            write(figure, box.left, box.bottom + LINE * count, text, TEXT, color=colour)
    return figure


def draw_picture(figure: Figure, box: Box, path: str) -> None:
    """As large as the box allows, at its bottom; words instead of a file that cannot be decoded."""
    try:
        image = decode(path)
    except DecodeError:
        write(figure, box.left, box.bottom, "cannot be decoded", TEXT, color=FAINT)
        return
    width, height = fit(image.shape[1] / image.shape[0], box.width, box.height)
    box = Box(box.left, box.bottom - height, width, height)
    show(figure, box, resize_image(image, box), f"picture at {box.left}, {box.top}")


if __name__ == "__main__":
    sys.exit(main())
