"""Cross-validates an emotion branch on a set without a split of its own, beside a linear probe.

    python scripts/cross_validate.py --config configs/emotion_lite.yaml --dataset para --data-root PARA \
        --dataset fi --data-root FI --folds 5 --output runs/emotion_lite_folds

The last set named is dealt into folds; the others help in training. One training a fold (FOLDER/fold_0 ...),
each resumed where it stopped and not run again when it is done. Every picture of the set is predicted once,
by the network that was not trained on it; intervals are bootstrap ones over all pictures, differences paired.

The linear probe, on the same folds, is logistic regression on the last map of the same backbone with its
ImageNet weights, frozen, averaged over its positions: at the network's input size and at the emotion
branch's. Its regularisation is chosen within the training folds.

Writes cross_validation.json and predictions.csv (ids and predictions, no labels).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from datasets import PictureSet, TestOrder, load_dataset, make_loader
from eamb.evaluation.evaluate import evaluate_checkpoint, with_emotions
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.report import versions, without_nan, write_columns
from eamb.files import original
from eamb.network import backbones
from eamb.readers.decoding import normalise
from eamb.readers.rated import DataOptions, RatedSet
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config
from eamb.training.run import changed_settings, train
from eamb.weights import checkpoint
from EAMBNet import shrink

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse regularisation, scikit-learn's C
INNER_FOLDS = 5
BATCH = 32  # pictures


def main(arguments: list[str] | None = None) -> int:
    return guarded(run, parse(arguments), interrupted="interrupted; the same command goes on")


def run(options: argparse.Namespace) -> int:
    words = [*options.settings, "task=emotion", f"data.dataset={'+'.join(options.dataset)}"]
    words += ["data.root=" + "\n".join(options.data_root), f"data.folds={options.folds}"]
    config = load_config(options.config, [*words, "train.score_test=false"])
    content, columns = cross_validate(config, options.output)
    write_columns(options.output / "predictions.csv", columns)
    text = json.dumps(without_nan(content), indent=1)
    (options.output / "cross_validation.json").write_text(text + "\n", encoding="utf-8")
    print(describe(content))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", action="append", required=True, help="YAML")
    parser.add_argument("--dataset", action="append", required=True, type=str.lower)
    parser.add_argument("--data-root", metavar="DIR", action="append", required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="DIR", required=True)
    parser.add_argument("settings", metavar="key=value", nargs="*", help="as in train.epochs=3")
    return parser.parse_intermixed_args(arguments)


def cross_validate(config: Config, output: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What stands in cross_validation.json, and the columns of predictions.csv."""
    if config.data.folds < 2:
        raise ValueError(f"cross_validate: --folds must be 2 or more, got {config.data.folds}")
    alone(config, fold=0)  # a set that can't be dealt is an error before anything is trained
    parts, shares, classes = [], [], ()
    for fold in range(config.data.folds):
        part, classes, predicted = run_fold(with_fold(config, fold), output / f"fold_{fold}")
        parts.append(part)
        shares.append(predicted)
    features = imagenet_features(config, parts)
    truth = [part.emotions.argmax(axis=1) for part in parts]  # (n_k,) each
    probes = {size: probe(values, truth) for size, values in features.items()}  # (n,) each
    ids, folds = (
        [i for part in parts for i in part.ids],
        np.repeat(range(len(parts)), [len(p) for p in parts]),
    )
    shares, votes = np.concatenate(shares), np.concatenate([part.emotions for part in parts])  # (n, E)
    content = compare(shares, votes, classes, probes, folds)
    content |= {"dataset": parts[0].name, "protocol": [part.protocol for part in parts]}
    content |= {"config": config.without_root(), "versions": versions()}
    names = np.array(classes)
    columns = {"id": np.array(ids), "fold": folds, "prediction": names[shares.argmax(axis=1)]}
    columns |= {f"emotion_{name}": shares[:, i] for i, name in enumerate(classes)}
    return content, columns | {f"probe_{size}": names[found] for size, found in probes.items()}


def with_fold(config: Config, fold: int) -> Config:
    return replace(config, data=replace(config.data, fold=fold))


def alone(config: Config, fold: int) -> tuple[Config, RatedSet]:
    """The config for the last set on its own, and the pictures of a fold of it."""
    name, root = config.data.names[-1], config.data.roots[-1]
    data = replace(config.data, dataset=name, root=root, fold=fold, repeat="")
    rated = load_dataset(name, root, ("test",), data.options(DataOptions))["test"]
    return replace(config, data=data), rated


def run_fold(config: Config, folder: Path) -> tuple[RatedSet, tuple[str, ...], np.ndarray]:
    """Trains and predicts a fold, or reads what was done: held-out pictures, class names, shares (n, E)."""
    done = folder / "evaluation" / "predictions.csv"
    own, rated = alone(config, config.data.fold)
    if done.is_file():
        before = load_config([folder / "config.yaml"]).as_dict()
        if changed := changed_settings(before, config.as_dict()):
            raise ValueError(
                f"cross_validate: {folder} was done with other settings ({'; '.join(changed)}); choose "
                "another --output"
            )
    else:
        train(config, output=folder, resume=True)
        evaluate_checkpoint(folder / "best.pt", own, "test", done.parent)
    with done.open(newline="", encoding="utf-8") as file:
        rows = {original(row["id"]): row for row in csv.DictReader(file)}
    columns = [name for name in next(iter(rows.values())) if name.startswith("emotion_")]
    classes = tuple(name.removeprefix("emotion_") for name in columns)
    rated = with_emotions(rated.take([i in rows for i in rated.ids]), classes)
    return rated, classes, np.array([[float(rows[i][name]) for name in columns] for i in rated.ids])


# ---------------------------------------------------------------------------------------------------
# The linear probe


def probe_sizes(config: Config) -> list[int]:
    """Pixels a side: what the network is given, and what its emotion branch sees."""
    return [config.data.size, round(config.data.size * config.model.emotion_scale)]


def imagenet_features(config: Config, parts: list[RatedSet]) -> dict[int, list[np.ndarray]]:
    """size -> (n_k, C) for each fold: the backbone's last map, averaged over its positions."""
    network = imagenet_network(config.model.backbone, config.model.imagenet)
    mean, std = backbones.normalisation(config.model.backbone)
    found = {size: [] for size in probe_sizes(config)}
    for part in parts:
        pictures = PictureSet(part, config.data.size, exif=config.data.exif)
        loader = make_loader(pictures, TestOrder(len(part), BATCH), config.data.worker_count())
        rows = {size: [] for size in found}
        with torch.inference_mode():
            for batch in loader:
                images = normalise(batch.images, mean, std)  # (N, 3, H, W)
                for size, pooled in rows.items():
                    pooled.append(network(shrink(images, size / config.data.size)).mean(dim=(2, 3)))
        for size, pooled in rows.items():
            found[size].append(torch.cat(pooled).double().numpy())
    return found


def imagenet_network(name: str, source: str) -> Callable[[Tensor], Tensor]:
    """A backbone with its ImageNet weights: pictures (N, 3, H, W) -> last map (N, C, H/32, W/32)."""
    file = backbones.imagenet_file(name) if source == "auto" else Path(source)
    state = checkpoint.imagenet_state(name, file)
    if name != backbones.LITE0:
        pyramid = backbones.build_pyramid(name, levels=4).eval()
        tensors = {key: state[key] for key in pyramid.state_dict()}
        checkpoint.load_tensors(pyramid, tensors, str(file or name))
        return lambda images: pyramid(images)[-1]
    import timm

    network = timm.create_model(name).eval()  # whole, because its last convolution stands behind the pyramid
    tensors = {key.removeprefix("body."): value for key, value in state.items()}
    checkpoint.load_tensors(network, tensors, str(file))
    return network.forward_features


def probe(features: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """(n,) class numbers: each fold's pictures, predicted from the other folds'; features (n_k, C) each."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model, found = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), []
    for fold, held_out in enumerate(features):
        others = [k for k in range(len(features)) if k != fold]
        labels = np.concatenate([truth[k] for k in others])  # (n - n_fold,)
        inner = min(INNER_FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
        search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=inner)
        search.fit(np.concatenate([features[k] for k in others]), labels)
        found.append(search.predict(held_out))
    return np.concatenate(found)


# ---------------------------------------------------------------------------------------------------
# The comparison


def compare(
    shares: np.ndarray, votes: np.ndarray, classes: tuple[str, ...], probes: dict, folds: np.ndarray
) -> dict:
    """Metrics of the network with intervals, of the probes, and the paired differences of their accuracies.

    Args:
        shares, votes: (n, E). probes: size -> class numbers (n,). folds: (n,) fold of each picture.
    """

    def figures(shares: np.ndarray, votes: np.ndarray) -> dict[str, float]:
        return metrics.emotion_metrics(shares, votes, classes)

    predicted, truth = metrics.top_classes(shares, votes)  # (n,) each
    right = {"network": predicted == truth} | {f"probe_{size}": p == truth for size, p in probes.items()}
    names = list(right)
    table = np.stack([right[name] for name in names], axis=1).astype(np.float64)  # (n, 1 + probes)

    def accuracies(table: np.ndarray) -> dict[str, float]:
        means = dict(zip(names, table.mean(axis=0).tolist(), strict=True))
        return means | {f"network - {name}": means["network"] - means[name] for name in names[1:]}

    by_fold = [table[folds == fold].mean(axis=0).tolist() for fold in np.unique(folds)]
    return {
        "metrics": figures(shares, votes),
        "intervals_95": bootstrap_intervals(figures, (shares, votes)),
        "accuracies": accuracies(table),
        "accuracies_95": bootstrap_intervals(accuracies, (table,)),
        "accuracies_by_fold": [dict(zip(names, values, strict=True)) for values in by_fold],
        "chance": 1 / len(classes),
        "emotions": list(classes),
        "confusion": metrics.confusion_matrix(shares, votes, classes).tolist(),
    }


def describe(content: dict) -> str:
    head = f"{content['dataset']}, {len(content['accuracies_by_fold'])} folds, emotions"
    lines = [head, metrics.table(content["metrics"], content["intervals_95"]), "", "accuracy"]
    for name, value in content["accuracies"].items():
        low, high = content["accuracies_95"][name]
        lines.append(f"{name:<24} {value:+.4f}  {low:+.4f} to {high:+.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
