"""Does the emotion-aware map point at what matters to the score? Measured by blurring what it marks.

    python scripts/studies/explain.py --dataset para --data-root DIR --output DIR

Maps: the network's emotion-aware map (EAM); a random map (noise, one value for each cell of the EAM's grid,
seeded by the picture's id); a centre-weighted one (it falls with the distance from the centre; only the order
of its values counts); and Grad-CAM of the same network (Selvaraju et al. 2017): Z = output of
`emotion_merge`, the last map before the pooling, a_c = mean over positions of dy / dZ_c, map = ReLU(sum_c a_c
Z_c), where y is the score's logit, or the mean rating of a network that predicts distributions.

Curves (perturbation curves, Samek et al. 2017; deletion and insertion, RISE, Petsiuk et al. 2018): a map is
resized to the network's input (bilinear, align_corners=False) and the pixels are ranked by it; pixels of
equal value are ranked by the picture's random map, and if equal there too by position. For x = 0, 10, ...,
100 % exactly round(x * H * W) pixels, the same number for every map, are replaced by the same pixels of a
blurred copy (Gaussian, sigma = BLUR times the side, the picture mirrored at its border, rounded to 8 bits).
The change is the score of that picture minus the score of the whole one, in the unit of the ratings the
network was trained on. "most" blurs the most important pixels first: deletion. "least" blurs the least
important first: insertion read from the right, because a blurred picture with its most important x % put
back is the picture with its least important 100 - x % blurred.

Area of a map: integral over x from 0 to 1 of |change| for "most" minus |change| for "least", by the
trapezoid rule, a mean over pictures, in the unit of the score. Absolute, because blur can raise a score as
well as lower it. A map without information has an area of 0 on average; one that points away from what
matters has a negative one. Maps are compared by this area and not by single curves: scattered cells make
many new edges and a compact region few, but the area compares a map with itself. Intervals are 95 %
bootstrap intervals over the pictures; differences are paired.

The EAM is part of the network (F * EAM), so the EAM of a blurred picture differs from that of the whole
one. This is what the network computes; it is not corrected for.

Writes explain.json (everything), explain.csv (the curves) and explain.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import PictureSet, TestOrder, first_by_hash, load_dataset, make_loader
from eamb.evaluation.evaluate import leaks
from eamb.evaluation.figures import BLUE, FAINT, INK, ORANGE, clean, new_plot, write_figure
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import as_trained
from eamb.evaluation.report import versions, without_nan
from eamb.files import written_whole
from eamb.inference.scorer import SHIPPED, check_scores
from eamb.network import backbones
from eamb.network.outputs import Scale
from eamb.readers.rated import LeftOut, RatedSet, describe
from eamb.runtime import engine
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config
from eamb.runtime.distributed import choose_device
from eamb.weights.checkpoint import load_weights, weights_hash
from EAMBNet import EAMBNet, resize

MAPS = {
    "eam": "emotion-aware map",
    "random": "random map",
    "centre": "centre-weighted map",
    "grad_cam": "Grad-CAM map",
}
ORDERS = {
    "most": "most important first (deletion)",
    "least": "least important first (insertion, read from the right)",
}
SHARES = tuple(tenth / 10 for tenth in range(11))
FORWARDS = 2 + len(MAPS) * len(ORDERS) * (len(SHARES) - 2)  # of a picture; all maps share 0 % and 100 %
BLUR = 0.05  # sigma over the side: 11 pixels of 224
CURVES = ("mean_change", "mean_absolute_change")
STYLES = {
    "eam": {"color": ORANGE, "linewidth": 2.6, "marker": "o", "markersize": 5, "zorder": 4},
    "random": {"color": FAINT, "linewidth": 1.8, "linestyle": (0, (2, 1.5))},
    "centre": {"color": INK, "linewidth": 1.8, "linestyle": (0, (5, 2))},
    "grad_cam": {"color": BLUE, "linewidth": 1.8, "marker": "s", "markersize": 4},
}

Score = Callable[[Iterable[Tensor]], np.ndarray]  # batches (N, 3, H, W) uint8 -> (all of them,) scores


class Pictures(NamedTuple):
    """A batch as `engine.outputs` takes it: images (N, 3, H, W) uint8."""

    images: Tensor


class Estimate(NamedTuple):
    """A mean over pictures with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def listed(self) -> str:
        return "{:+.3f}, {:+.3f} to {:+.3f}".format(*self)

    def __str__(self) -> str:
        return "{:.3f} ({:.3f} to {:.3f})".format(*self)


Estimates = dict[tuple, Estimate]  # by (map, order, share, curve), (map, "area") and (map, "eam minus it")


def main(arguments: list[str] | None = None) -> int:
    return guarded(explain, parse(arguments))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--dataset", type=str.lower, required=True, help="one of main.py's")
    parser.add_argument("--data-root", metavar="DIR", type=Path, required=True, help="its folder")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="default: the shipped weights")
    parser.add_argument("--pictures", type=int, default=300, help="how many, chosen by the hash of their ids")
    parser.add_argument("--split", type=str.lower, default="test", choices=("train", "val", "test"))
    parser.add_argument("--seed", type=int, default=0, help="of the random maps and the intervals")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="for the three files")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="as in evaluate.batch_size=16")
    return parser.parse_intermixed_args(arguments)


def explain(options: argparse.Namespace) -> int:
    words = [f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
    config = load_config([], [*options.settings, *words])
    given = (
        ("--pictures", options.pictures, 2),  # one picture has no interval
        ("--seed", options.seed, 0),
        ("evaluate.bootstrap", config.evaluate.bootstrap, 1),
    )
    for name, value, smallest in given:
        if value < smallest:
            raise ValueError(f"explain: {name} must be at least {smallest}, got {value}")
    weights = load_weights(options.checkpoint or SHIPPED)
    check_scores(weights, options.checkpoint)
    config = as_trained(config, weights)
    data = config.data
    whole_split = load_dataset(data.dataset, data.root, (options.split,), data.options())[options.split]
    rated = first_by_hash(whole_split, options.pictures)
    device = choose_device(config.train.device)
    options.output.mkdir(parents=True, exist_ok=True)
    print(describe(rated))

    network = weights.build().to(device, memory_format=torch.channels_last)
    compute = engine.Compute(device, "fp32", *backbones.normalisation(config.model.backbone))
    changes, notes = blur_and_score(network, rated, config, weights.scale, compute, options.seed)
    estimates = summarise(changes, config.evaluate.bootstrap, options.seed)

    pictures = f"{len(changes):,} pictures of {rated.name} {rated.split}"
    checkpoint, scale = (options.checkpoint or SHIPPED).name, weights.scale
    unit = f"ratings from {scale.minimum:g} to {scale.maximum:g}"
    if scale.kind == "label":
        unit = "probability of high, 0 to 1"
    facts = {
        "sentence": sentence(estimates, pictures),
        "notes": notes,
        "n": len(changes),
        "checkpoint": checkpoint,
        "weights_sha256": weights_hash(weights.tensors),
        "dataset": rated.name,
        "split": rated.split,
        "protocol": rated.protocol,
        "split_sha256": whole_split.sha256,
        "pictures_sha256": rated.sha256,
        **leaks(rated, weights),
        "picture_size": data.size,
        "sigma_pixels": BLUR * data.size,
        "seed": options.seed,
        "bootstrap": config.evaluate.bootstrap,
        "unit": unit,
        "versions": versions(),
    }
    write(options.output, estimates, facts)
    write_figure(draw(estimates, f"{checkpoint} on {pictures}", unit), options.output / "explain.png")
    files = f"{options.output}: explain.json explain.csv explain.png"
    print("\n".join(["", table(estimates), "", *notes, facts["sentence"], "", files]))
    return 0


def all_maps(
    network: EAMBNet, images: Tensor, ids: Sequence[str], scale: Scale, compute: engine.Compute, seed: int
) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 4, H, W) on the CPU, in the order of MAPS."""
    emotion, grad_cam = network_maps(network, compute.images(Pictures(images)), scale)
    shape, size = tuple(emotion.shape[2:]), tuple(images.shape[2:])
    centre = centre_map(shape).expand(len(images), 1, *shape)
    maps = {"eam": emotion, "random": random_maps(ids, shape, seed), "centre": centre, "grad_cam": grad_cam}
    return torch.cat([resize(maps[name].cpu(), size, align_corners=False) for name in MAPS], dim=1)


def network_maps(network: EAMBNet, images: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Normalised pictures (N, 3, H, W) -> the EAM (N, 1, h, w) and Grad-CAM (N, 1, h', w').

    If the network's parameters require no gradient, only what comes after Z is differentiated.
    """
    captured = {}

    def begin_graph(module, inputs, output: Tensor) -> Tensor:
        captured["features"] = output.detach().requires_grad_()  # Z, (N, C, h', w')
        return captured["features"]

    def keep_logits(module, inputs, output: Tensor) -> None:
        captured["logits"] = output  # (N, K)

    hooks = [
        network.emotion_merge.register_forward_hook(begin_graph),
        network.head.register_forward_hook(keep_logits),
    ]
    try:
        emotion_map = network(images).emotion_map
    finally:
        for hook in hooks:
            hook.remove()
    logits = captured["logits"]
    if scale.kind == "distribution":  # y is the mean rating
        explained = logits.softmax(dim=1) @ logits.new_tensor(scale.bins)  # (N,)
    else:
        explained = logits[:, 0]
    [gradient] = torch.autograd.grad(explained.sum(), captured["features"])
    importance = gradient.mean(dim=(2, 3), keepdim=True)  # a_c, (N, C, 1, 1)
    grad_cam = (importance * captured["features"].detach()).sum(dim=1, keepdim=True).relu()  # (N, 1, h', w')
    return emotion_map, grad_cam


def centre_map(shape: tuple[int, int]) -> Tensor:
    """(h, w), a Gaussian of the distance from the centre, in shares of each side."""
    down, across = (((torch.arange(side) + 0.5) / side - 0.5) ** 2 for side in shape)
    return torch.exp(-8 * (down[:, None] + across[None, :]))  # sigma is a quarter of the side


def random_maps(ids: Sequence[str], shape: tuple[int, int], seed: int) -> Tensor:
    """(N, 1, h, w) of noise in [0, 1), a function of the seed and each picture's id alone."""
    noise = [np.random.default_rng((seed, zlib.crc32(name.encode()))).random(shape) for name in ids]
    return torch.from_numpy(np.stack(noise)).float()[:, None]


def blur_and_score(
    network: EAMBNet, rated: RatedSet, config: Config, scale: Scale, compute: engine.Compute, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Scores every picture of the set that can be decoded, whole and blurred by each map.

    Returns:
        The changes (n, maps, orders, shares), score of the blurred minus score of the whole picture; and
        notes on pictures that cannot be decoded and on constant maps, as a Grad-CAM of 0 everywhere.

    Raises:
        ValueError: fewer than two pictures can be decoded, or a score is not a number.
    """
    network.requires_grad_(False)
    size, batch_size = config.data.size, config.evaluate.batch_size
    pictures = PictureSet(rated, size, exif=config.data.exif, skip_broken=True)
    order = TestOrder(len(rated), batch_size)
    loader = make_loader(pictures, order, config.data.worker_count(), compute.device.type == "cuda")
    parts: list[np.ndarray] = []
    broken: list[LeftOut] = []
    flat = np.zeros(len(MAPS), dtype=int)
    with tqdm(total=FORWARDS * len(rated), desc="blurred", unit="picture", mininterval=2) as bar:

        def score(batches: Iterable[Tensor]) -> np.ndarray:
            scores = []
            for _, output in engine.outputs(network, map(Pictures, batches), compute, batch_size):
                scores.append(scale.value(output.prediction.numpy()))
                bar.update(len(scores[-1]))
            return np.concatenate(scores)

        for batch in loader:
            broken += batch.broken
            bar.update(FORWARDS * len(batch.broken))
            if len(batch.images):
                ids = [rated.ids[i] for i in batch.index.tolist()]
                maps = all_maps(network, batch.images, ids, scale, compute, seed)  # (N, maps, H, W)
                flat += (maps.amax(dim=(2, 3)) == maps.amin(dim=(2, 3))).sum(dim=0).numpy()
                ties = maps[:, list(MAPS).index("random")]  # (N, H, W)
                parts.append(measure_changes(batch.images, rank_pixels(maps, ties), score, batch_size))
    count = sum(map(len, parts))
    if count < 2:
        raise ValueError(
            f"explain: intervals need 2 pictures; of the {len(rated)} chosen of {rated.name} {rated.split} "
            f"{count} can be decoded{f'; {broken[0].reason}' if broken else ''}"
        )
    changes = np.concatenate(parts)
    if not np.isfinite(changes).all():
        raise ValueError("explain: the network's score of a picture is not a number; are its weights whole?")
    notes = [f"{name} left out: {reason}" for name, reason in broken]
    without_order = zip(MAPS.values(), flat.tolist(), strict=True)
    return changes, notes + [f"{name} without any order: {count}" for name, count in without_order if count]


def rank_pixels(maps: Tensor, ties: Tensor) -> Tensor:
    """The place of each pixel, from 0, when the most important come first and when the least important do.

    Args:
        maps: (N, maps, H, W).
        ties: (N, H, W), orders pixels of equal value.

    Returns:
        (N, maps, orders, H, W) int32; the second order is the first one reversed.
    """
    count, kinds, height, width = maps.shape
    values, ties = maps.reshape(count, kinds, -1).numpy(), ties.reshape(count, -1).numpy()
    most = np.empty(values.shape, dtype=np.int32)
    for i, j in np.ndindex(count, kinds):
        ascending = np.lexsort((ties[i], values[i, j]))  # (H * W,) positions, the least important first
        most[i, j, ascending[::-1]] = np.arange(height * width)
    orders = np.stack([most, height * width - 1 - most], axis=2)
    return torch.from_numpy(orders.reshape(count, kinds, len(ORDERS), height, width))


def measure_changes(images: Tensor, ranks: Tensor, score: Score, batch_size: int) -> np.ndarray:
    """The change of the score at each share, for each map and order.

    Args:
        images: (N, 3, H, W) uint8.
        ranks: (N, maps, orders, H, W), of `rank_pixels`.
        score: of batches of at most `batch_size` pictures.

    Returns:
        (N, maps, orders, shares) float64.
    """
    sigma = BLUR * images.shape[3]
    soft = gaussian_filter(images.numpy().astype(np.float32), (0, 0, sigma, sigma), mode="reflect")
    soft = torch.from_numpy(np.rint(soft).astype(np.uint8))

    def damaged() -> Iterator[Tensor]:
        """Each picture with each share between 0 % and 100 % blurred by each map and order, shares fastest;
        (batch_size or fewer, 3, H, W) uint8."""
        pixels = images.shape[2] * images.shape[3]
        counts = torch.tensor([round(share * pixels) for share in SHARES[1:-1]])  # (shares - 2,)
        variants = torch.cartesian_prod(*(torch.arange(n) for n in (*ranks.shape[:3], len(counts))))
        for part in variants.split(batch_size):
            picture, kind, order, share = part.T  # (V,) each
            first = ranks[picture, kind, order] < counts[share, None, None]  # (V, H, W)
            yield torch.where(first[:, None], soft[picture], images[picture])

    ends = score([*images.split(batch_size), *soft.split(batch_size)])  # (2N,)
    whole, blurred = ends.reshape(2, len(images), 1, 1)  # (N, 1, 1) each
    changes = np.zeros((*ranks.shape[:3], len(SHARES)))
    changes[..., 1:-1] = score(damaged()).reshape(*ranks.shape[:3], -1)
    changes[..., 1:-1] -= whole[..., None]
    changes[..., -1] = blurred - whole
    return changes


def summarise(changes: np.ndarray, repeats: int, seed: int) -> Estimates:
    """Every figure with its interval, from (n, maps, orders, shares) changes."""
    intervals = bootstrap_intervals(figures, (changes,), repeats, seed)
    return {name: Estimate(value, *intervals[name]) for name, value in figures(changes).items()}


def figures(changes: np.ndarray) -> dict[tuple, float]:
    """The means over pictures: the points of the curves, the areas, and the EAM's area minus each other."""
    means = np.stack([changes.mean(axis=0), np.abs(changes).mean(axis=0)], axis=-1)
    names = product(MAPS, ORDERS, SHARES, CURVES)
    values = dict(zip(names, means.ravel().tolist(), strict=True))
    areas = dict(zip(MAPS, map_areas(changes).mean(axis=0).tolist(), strict=True))
    values |= {(kind, "area"): area for kind, area in areas.items()}
    return values | {(k, "eam minus it"): areas["eam"] - area for k, area in areas.items() if k != "eam"}


def map_areas(changes: np.ndarray) -> np.ndarray:
    """(n, maps, orders, shares) -> (n, maps), the area between the two orders' curves of absolute change."""
    most, least = np.moveaxis(np.abs(changes), 2, 0)  # (n, maps, shares) each
    return trapezoid(most - least, SHARES, axis=-1)


def sentence(estimates: Estimates, pictures: str) -> str:
    """The result in words, which depend on the intervals alone.

    Args:
        pictures: how many of what, as in "300 pictures of para test".
    """

    def verdict(estimate: Estimate, above: str, below: str, unclear: str) -> str:
        return above if estimate.low > 0 else below if estimate.high < 0 else unclear

    area = estimates["eam", "area"]
    first = verdict(area, "more than", "less than", "neither measurably more nor less than")
    others = []
    for kind, name in MAPS.items():
        if kind != "eam":
            difference = estimates[kind, "eam minus it"]
            words = verdict(difference, "is better than", "is worse than", "cannot be told from")
            others.append(f"{words} the {name} ({difference.listed})")
    return (
        f"On {pictures}, blurring what the emotion-aware map marks most changes the score {first} blurring "
        f"what it marks least (area between its curves {area.listed}); by this area the map "
        f"{', '.join(others[:-1])}, and {others[-1]}."
    )


def table(estimates: Estimates) -> str:
    """Areas, differences and the curves of absolute change, for people."""
    width = max(map(len, MAPS.values()))
    lines = [f"{'':{width}}  {'area (95 % interval)':26}  EAM's area minus it"]
    for kind, name in MAPS.items():
        difference = estimates.get((kind, "eam minus it"), "")
        lines.append(f"{name:{width}}  {estimates[kind, 'area']!s:26}  {difference!s}".rstrip())
    for order, words in ORDERS.items():
        lines += ["", f"mean |change of the score|, {words}"]
        lines.append("blurred" + "".join(f"{name:>{width + 2}}" for name in MAPS.values()))
        for share in SHARES[1:]:
            values = [estimates[kind, order, share, CURVES[1]].mean for kind in MAPS]
            lines.append(f"{share:7.0%}" + "".join(f"{value:{width + 2}.4f}" for value in values))
    return "\n".join(lines)


def write(folder: Path, estimates: Estimates, facts: dict) -> None:
    """explain.json, and explain.csv with one row a map, order and share."""
    rows = []
    for kind, order, share in product(MAPS, ORDERS, SHARES):
        row = {"map": kind, "order": order, "share": share}
        for curve in CURVES:
            ends = zip(("", "_low", "_high"), estimates[kind, order, share, curve], strict=True)
            row |= {f"{curve}{end}": value for end, value in ends}
        rows.append(row)
    areas = {kind: estimates[kind, "area"]._asdict() for kind in MAPS}
    differences = {kind: estimates[kind, "eam minus it"]._asdict() for kind in MAPS if kind != "eam"}
    content = {**facts, "areas": areas, "eam_area_minus": differences, "curves": rows}
    text = json.dumps(without_nan(content), indent=1, allow_nan=False)
    with written_whole(folder / "explain.json") as path:
        path.write_text(text + "\n", encoding="utf-8")
    with written_whole(folder / "explain.csv") as path:
        curves = pd.DataFrame(rows)
        curves.to_csv(path, index=False, float_format="%.6g", na_rep="nan", lineterminator="\r\n")


def draw(estimates: Estimates, heading: str, scores: str) -> Figure:
    """The curves of absolute change with bands of their intervals, a panel an order; areas in the legend.

    Args:
        heading: what was measured on what.
        scores: the unit of the score.
    """
    figure = new_plot(1200, 600)
    whole = estimates["eam", "most", 1, "mean_absolute_change"]
    heading += f"\nwith the whole picture blurred the score changes by {whole}, whatever the map"
    figure.suptitle(heading, x=0.012, ha="left", fontsize=13, color=INK, parse_math=False)
    panels = figure.subplots(1, 2, sharey=True)
    # Without 100 %, where all maps are equal: the change there is so large that it would flatten the rest.
    percent = [100 * share for share in SHARES[:-1]]
    for axes, order in zip(panels, ORDERS, strict=True):
        for kind, name in MAPS.items():
            points = [estimates[kind, order, share, "mean_absolute_change"] for share in SHARES[:-1]]
            mean, low, high = zip(*points, strict=True)
            axes.plot(percent, mean, label=f"{name}: {estimates[kind, 'area']}", **STYLES[kind])
            axes.fill_between(percent, low, high, color=STYLES[kind]["color"], alpha=0.13, linewidth=0)
        axes.set_title(ORDERS[order], fontsize=12, loc="left", color=INK)
        axes.set_xlabel("blurred part of the picture (%)", color=FAINT)
        axes.set(xlim=(0, 92), xticks=range(0, 91, 10))
        axes.set_ylim(bottom=0)
        clean(axes)
    panels[0].set_ylabel(f"mean |change of the score|\n({scores})", color=INK, fontsize=11)
    title = "area between the two curves of a map, 95 % interval (larger: it points at what matters)"
    style = {"loc": "outside lower center", "ncols": 2, "frameon": False, "fontsize": 11}
    figure.legend(*panels[0].get_legend_handles_labels(), title=title, **style)
    return figure


if __name__ == "__main__":
    sys.exit(main())
