"""Does the emotion-aware map point at what matters to the score? Measured by blurring what it marks.

    python scripts/studies/explain.py --dataset para --data-root DIR --output DIR

Maps: the network's emotion-aware map (EAM); noise on the EAM's grid, seeded by the picture's id; a Gaussian
around the centre; and Grad-CAM of the same network (Selvaraju et al. 2017): Z = output of `emotion_merge`,
the last map before the pooling, a_c = mean over positions of dy / dZ_c, map = ReLU(sum_c a_c Z_c), where y is
the score's logit, or the mean rating of a network for distributions.

Curves (perturbation curves, Samek et al. 2017; deletion and insertion, RISE, Petsiuk et al. 2018): a map is
resized to the network's input (bilinear, align_corners=False) and the pixels are ranked by it, ties by the
picture's random map. For x = 0, 10, ..., 100 % exactly round(x * H * W) pixels are replaced by those of a
blurred copy (Gaussian, sigma = BLUR times the side, mirrored at the border, rounded to 8 bits). The change is
the score of that picture minus the score of the unblurred one, in the unit of the ratings. "most" blurs the
most important pixels first: deletion. "least" blurs the least important first: insertion read from the right.

Area of a map: integral over x from 0 to 1 of |change| for "most" minus |change| for "least" (trapezoid rule),
averaged over pictures. It is 0 on average for a map without information, below 0 for one that points away
from what matters; a single curve also depends on how many new edges the blurred cells make. Intervals are
95 % bootstrap intervals over the pictures; differences are paired. That blurring also changes the EAM is not
corrected for. Writes explain.json (everything), explain.csv (the curves) and explain.png.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import PictureSet, TestOrder, first_by_hash, load_dataset, make_loader
from eamb.evaluation.evaluate import about, leaks
from eamb.evaluation.figures import BLUE, FAINT, INK, ORANGE, TITLE, clean, new_plot, write_figure
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import as_trained
from eamb.evaluation.report import without_nan, write_columns
from eamb.files import written_whole
from eamb.inference.scorer import check_scores
from eamb.network import backbones
from eamb.network.outputs import Scale
from eamb.readers.rated import RatedSet, describe
from eamb.runtime import engine
from eamb.runtime.command import check_output, guarded
from eamb.runtime.config import Config, load_config
from eamb.runtime.distributed import choose_device
from eamb.runtime.progress import progress
from eamb.weights.checkpoint import load_weights
from eamb.weights.shipped import DEFAULT, FILE_HELP, checkpoint_file
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
BLUR = 0.05  # sigma over the side: 11 pixels of 224
CURVES = ("mean_change", "mean_absolute_change")
STYLES = (  # of the curves, in the order of MAPS
    {"color": ORANGE, "marker": "o"},
    {"color": FAINT, "linestyle": ":"},
    {"color": INK, "linestyle": "--"},
    {"color": BLUE, "marker": "s"},
)

Score = Callable[[Iterable[Tensor]], np.ndarray]  # batches (N, 3, H, W) uint8 -> (all of them,) scores


class Pictures(NamedTuple):
    """A batch as `engine.outputs` takes it: images (N, 3, H, W) uint8."""

    images: Tensor


class Estimate(NamedTuple):
    """A mean over pictures with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "{:.3f} ({:.3f} to {:.3f})".format(*self)


Estimates = dict[tuple, Estimate]  # by (map, order, share, curve), (map, "area") and (map, "eam minus it")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--dataset", type=str.lower, required=True, help="one of main.py's")
    add("--data-root", metavar="DIR", type=Path, required=True, help="its folder")
    add("--checkpoint", metavar="FILE", default=DEFAULT, help=f"{FILE_HELP}; default: {DEFAULT}")
    add("--pictures", type=int, default=300, help="how many, chosen by the hash of their ids")
    add("--split", type=str.lower, default="test", choices=("train", "val", "test"))
    add("--seed", type=int, default=0, help="of the random maps and the intervals")
    add("--output", metavar="DIR", type=Path, required=True, help="for the three files")
    add("settings", metavar="key=value", nargs="*", help="as in evaluate.batch_size=16")
    return guarded(explain, parser.parse_intermixed_args(arguments))


def explain(options: argparse.Namespace) -> int:
    words = [f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
    config = load_config([], [*options.settings, *words])
    if options.pictures < 2 or options.seed < 0 or config.evaluate.bootstrap < 1:
        raise ValueError("explain: at least 2 --pictures, --seed 0 or more, evaluate.bootstrap 1 or more")
    check_output("explain", options.output)
    file = checkpoint_file(options.checkpoint)
    weights = load_weights(file)
    check_scores(weights)
    config = as_trained(config, weights)
    data, scale = config.data, weights.scale
    whole_split = load_dataset(data.dataset, data.root, (options.split,), data.options())[options.split]
    rated = first_by_hash(whole_split, options.pictures)
    device = choose_device(config.train.device)
    options.output.mkdir(parents=True, exist_ok=True)
    print(describe(rated))

    network = weights.build().to(device, memory_format=torch.channels_last)
    compute = engine.Compute(device, "fp32", *backbones.normalisation(config.model.backbone))
    changes, notes = blur_and_score(network, rated, config, scale, compute, options.seed)
    intervals = bootstrap_intervals(figures, (changes,), config.evaluate.bootstrap, options.seed)
    estimates = {name: Estimate(value, *intervals[name]) for name, value in figures(changes).items()}

    pictures = f"{len(changes):,} pictures of {rated.name} {rated.split}"
    on_scale = f"ratings from {scale.minimum:g} to {scale.maximum:g}"
    unit = "probability of high" if scale.kind == "label" else on_scale
    others = [f"{estimates[k, 'eam minus it']} more than the {MAPS[k]}'s" for k in MAPS if k != "eam"]
    area = f"the area of the emotion-aware map is {estimates['eam', 'area']}"
    facts = {
        "sentence": f"On {pictures} {area}, {', '.join(others)} (means, 95 % intervals).",
        "notes": notes,
        "n": len(changes),
        "checkpoint": file.name,
        "weights_sha256": weights.sha256,
        **about(rated, "aesthetics"),
        "split_sha256": whole_split.sha256,
        "pictures_sha256": rated.sha256,
        **leaks(rated, weights),
        "picture_size": data.size,
        "sigma_pixels": BLUR * data.size,
        "seed": options.seed,
        "bootstrap": config.evaluate.bootstrap,
        "unit": unit,
    }
    rows = []  # of explain.csv: one per map, order and share
    for kind, order, share in product(MAPS, ORDERS, SHARES):
        rows.append({"map": kind, "order": order, "share": share})
        for curve in CURVES:
            names = (curve, f"{curve}_low", f"{curve}_high")
            rows[-1] |= zip(names, estimates[kind, order, share, curve], strict=True)
    areas = {kind: estimates[kind, "area"]._asdict() for kind in MAPS}
    differences = {kind: estimates[kind, "eam minus it"]._asdict() for kind in MAPS if kind != "eam"}
    content = {**facts, "areas": areas, "eam_area_minus": differences, "curves": rows}
    with written_whole(options.output / "explain.json") as path:
        path.write_text(json.dumps(without_nan(content), indent=1) + "\n", encoding="utf-8")
    write_columns(options.output / "explain.csv", pd.DataFrame(rows).to_dict("list"))
    figure = draw(estimates, f"{file.name} on {pictures}", unit)
    write_figure(figure, options.output / "explain.png")
    print(*notes, facts["sentence"], f"{options.output}: explain.json explain.csv explain.png", sep="\n")
    return 0


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

    merge = network.emotion_merge.register_forward_hook(begin_graph)
    with merge, network.head.register_forward_hook(keep_logits):  # removed at the end
        emotion_map = network(images).emotion_map
    features, logits = captured["features"], captured["logits"]
    explained = logits[:, 0]  # (N,)
    if scale.kind == "distribution":  # y is the mean rating
        explained = logits.softmax(dim=1) @ logits.new_tensor(scale.bins)
    [gradient] = torch.autograd.grad(explained.sum(), features)
    importance = gradient.mean(dim=(2, 3), keepdim=True)  # a_c, (N, C, 1, 1)
    return emotion_map, (importance * features.detach()).sum(dim=1, keepdim=True).relu()


def centre_map(shape: tuple[int, int]) -> Tensor:
    """(h, w), a Gaussian of the distance from the centre, relative to each side."""
    down, across = (((torch.arange(side) + 0.5) / side - 0.5) ** 2 for side in shape)
    return torch.exp(-8 * (down[:, None] + across[None, :]))  # sigma is a quarter of the side


def random_maps(ids: Sequence[str], shape: tuple[int, int], seed: int) -> Tensor:
    """(N, 1, h, w) of noise in [0, 1), a function of the seed and each picture's id alone."""
    noise = [np.random.default_rng((seed, zlib.crc32(name.encode()))).random(shape) for name in ids]
    return torch.from_numpy(np.stack(noise)).float()[:, None]


def blur_and_score(
    network: EAMBNet, rated: RatedSet, config: Config, scale: Scale, compute: engine.Compute, seed: int
) -> tuple[np.ndarray, list[str]]:
    """The changes (n, maps, orders, shares) of every picture that can be decoded, and notes on the others.

    Raises:
        ValueError: fewer than two pictures can be decoded, or a score is not a number.
    """
    network.requires_grad_(False)
    batch_size = config.evaluate.batch_size
    pictures = PictureSet(
        rated, config.data.size, exif=config.data.exif, skip_broken=True, icc=config.data.icc
    )
    order, workers = TestOrder(len(rated), batch_size), config.data.worker_count()
    on_gpu, timeout = compute.device.type == "cuda", config.data.timeout
    loader = make_loader(pictures, order, workers, on_gpu, timeout)
    parts, notes = [], []

    def score(batches: Iterable[Tensor]) -> np.ndarray:
        outputs = engine.outputs(network, map(Pictures, batches), compute, batch_size)
        return np.concatenate([scale.value(output.prediction.numpy()) for _, output in outputs])

    for batch in progress(loader, desc="blurred", unit="batch"):
        notes += [f"{name} left out: {reason}" for name, reason in batch.broken]
        if len(batch.images):
            ids = [rated.ids[i] for i in batch.index.tolist()]
            emotion, grad_cam = network_maps(network, compute.images(Pictures(batch.images)), scale)
            noise = random_maps(ids, emotion.shape[2:], seed)
            centre = centre_map(emotion.shape[2:]).expand_as(noise)
            side = batch.images.shape[2:]
            coarse = (emotion.cpu(), noise, centre, grad_cam.cpu())  # as MAPS
            maps = torch.cat([resize(each, side, align_corners=False) for each in coarse], dim=1)
            ranks = rank_pixels(maps, ties=maps[:, 1])
            parts.append(measure_changes(batch.images, ranks, score, batch_size))
    if sum(map(len, parts)) < 2:
        raise ValueError(
            f"explain: intervals need 2 pictures, {len(notes)} of the {len(rated)} chosen of {rated.name} "
            f"{rated.split} cannot be decoded, e.g. {notes[0]}"
        )
    changes = np.concatenate(parts)
    if not np.isfinite(changes).all():
        raise ValueError("explain: the network's score of a picture is not a number; are its weights whole?")
    return changes, notes


def rank_pixels(maps: Tensor, ties: Tensor) -> Tensor:
    """The rank of each pixel, from 0, with the most important first and with the least important first.

    Args:
        maps: (N, maps, H, W).
        ties: (N, H, W), orders pixels of equal value.

    Returns:
        (N, maps, orders, H, W) int64; the second order is the first one reversed.
    """
    values, ties = maps.flatten(2).numpy(), ties[:, None].expand_as(maps).flatten(2).numpy()
    least = np.argsort(np.lexsort((ties, values), axis=-1), axis=-1)  # (N, maps, H * W)
    orders = np.stack([values.shape[2] - 1 - least, least], axis=2)
    return torch.from_numpy(orders).unflatten(3, maps.shape[2:])


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
    pixels = images.shape[2] * images.shape[3]
    counts = torch.tensor([round(share * pixels) for share in SHARES[1:-1]])  # (shares - 2,)
    # 0 % and 100 % are the same for all maps; every other share is blurred by each map and order.
    variants = torch.cartesian_prod(*(torch.arange(n) for n in (*ranks.shape[:3], len(counts))))

    def damaged() -> Iterator[Tensor]:
        for part in variants.split(batch_size):
            picture, kind, order, share = part.T  # (V,) each
            first = ranks[picture, kind, order] < counts[share, None, None]  # (V, H, W)
            yield torch.where(first[:, None], soft[picture], images[picture])  # (V, 3, H, W)

    ends = score([*images.split(batch_size), *soft.split(batch_size)])  # (2N,)
    whole, blurred = ends.reshape(2, len(images), 1, 1, 1)
    inner = score(damaged()).reshape(*ranks.shape[:3], -1)
    zeros = np.zeros((*ranks.shape[:3], 1))
    return np.concatenate([zeros, inner - whole, zeros + blurred - whole], axis=3)


def figures(changes: np.ndarray) -> dict[tuple, float]:
    """Means over pictures of (n, maps, orders, shares) changes, named as in `Estimates`."""
    means = np.stack([changes.mean(axis=0), np.abs(changes).mean(axis=0)], axis=-1)
    values = dict(zip(product(MAPS, ORDERS, SHARES, CURVES), means.ravel().tolist(), strict=True))
    areas = dict(zip(MAPS, map_areas(changes).mean(axis=0).tolist(), strict=True))
    values |= {(kind, "area"): area for kind, area in areas.items()}
    return values | {(k, "eam minus it"): areas["eam"] - area for k, area in areas.items() if k != "eam"}


def map_areas(changes: np.ndarray) -> np.ndarray:
    """(n, maps, orders, shares) -> (n, maps), the area between the two orders' curves of absolute change."""
    most, least = np.moveaxis(np.abs(changes), 2, 0)  # (n, maps, shares) each
    return trapezoid(most - least, SHARES, axis=-1)


def draw(estimates: Estimates, heading: str, scores: str) -> Figure:
    """The curves of absolute change with interval bands, one panel per order; areas in the legend."""
    figure = new_plot(1200, 600)
    whole = estimates["eam", "most", 1, "mean_absolute_change"]
    heading += f"\nwith the whole picture blurred the score changes by {whole}, whatever the map"
    figure.suptitle(heading, x=0.012, ha="left", **TITLE)
    panels = figure.subplots(1, 2, sharey=True)
    # Without 100 %, where all maps are equal and the change so large that it would flatten the rest.
    shares = SHARES[:-1]
    for axes, (order, title) in zip(panels, ORDERS.items(), strict=True):
        for (kind, name), style in zip(MAPS.items(), STYLES, strict=True):
            points = [estimates[kind, order, share, "mean_absolute_change"] for share in shares]
            mean, low, high = zip(*points, strict=True)
            axes.plot(shares, mean, label=f"{name}: {estimates[kind, 'area']}", linewidth=2, **style)
            axes.fill_between(shares, low, high, color=style["color"], alpha=0.13, linewidth=0)
        axes.set_title(title, fontsize=12, loc="left", color=INK)
        axes.set_xlabel("blurred part of the picture", color=FAINT)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.set_ylim(bottom=0)
        clean(axes)
    panels[0].set_ylabel(f"mean |change of the score|\n({scores})", color=INK, fontsize=11)
    title = "area between the two curves of a map, 95 % interval (larger: it points at what matters)"
    labels = panels[0].get_legend_handles_labels()
    figure.legend(*labels, title=title, loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
