"""Cross-validates an emotion branch on a set without a split of its own, beside a linear probe.

    python scripts/cross_validate.py --config configs/emotion_lite.yaml --dataset para --data-root PARA \
        --dataset fi --data-root FI --folds 5 --output runs/emotion_lite_folds

The last set named is divided into folds; the others are used in every training, and with --weights each
training starts from that file, which must not have seen the divided set. There is one training per
fold (OUTPUT/fold_0 ...); one that was stopped is resumed, and one that is done is not repeated. Every picture
of the set is predicted once, by the network that was not trained on it.

The linear probe, on the same folds, is logistic regression on the frozen ImageNet features of the same
backbone (its last map, averaged over positions), at the input size of the network and at that of the emotion
branch. Its regularisation is chosen within the training folds. Writes cross_validation.json (intervals over
all pictures; differences are paired) and predictions.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from datasets import PictureSet, TestOrder, load_dataset, make_loader
from eamb.evaluation.emotions import with_emotions
from eamb.evaluation.evaluate import evaluate_checkpoints
from eamb.evaluation.intervals import bootstrap_intervals
from eamb.evaluation.predicting import as_trained
from eamb.evaluation.report import table, versions, without_nan, write_columns
from eamb.files import file_hash, original
from eamb.network import backbones
from eamb.readers.decoding import normalise
from eamb.readers.rated import RatedSet
from eamb.runtime.command import check_output, guarded
from eamb.runtime.config import Config, load_config
from eamb.training.resuming import changed_settings
from eamb.training.run import train
from eamb.training.tasks import choose_task
from eamb.weights import checkpoint
from EAMBNet import shrink


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--config", metavar="FILE", action="append", required=True, help="YAML")
    add("--dataset", action="append", required=True, type=str.lower)
    add("--data-root", metavar="DIR", action="append", required=True)
    add("--folds", type=int, default=5)
    add("--weights", metavar="FILE", help="a branch that every fold starts from, as in train")
    add("--output", type=Path, metavar="DIR", required=True)
    add("settings", metavar="key=value", nargs="*", help="as in train.epochs=3")
    options = parser.parse_intermixed_args(arguments)
    return guarded(cross_validate, options, interrupted="interrupted; the same command goes on")


def cross_validate(options: argparse.Namespace) -> int:
    """Trains the folds that are not done yet, compares, writes and prints."""
    words = [*options.settings, "task=emotion", f"data.dataset={'+'.join(options.dataset)}"]
    words += ["data.root=" + "\n".join(options.data_root), f"data.folds={options.folds}"]
    config = load_config(options.config, [*words, "train.score_test=false"])
    if options.folds < 2:
        raise ValueError(f"cross_validate: --folds must be 2 or more, got {options.folds}")
    check_output("cross_validate", options.output)
    parts = [last_set(config, fold)[1] for fold in range(options.folds)]  # refuses a set that has splits
    if options.weights:
        refuse_trained_on(options.weights, parts)
    folders = [options.output / f"fold_{fold}" for fold in range(options.folds)]
    done = [train_fold(config, fold, folder, options.weights) for fold, folder in enumerate(folders)]
    parts, shares = [part for part, _ in done], np.concatenate([predicted for _, predicted in done])
    classes, names = parts[0].emotion_classes, np.array(parts[0].emotion_classes)
    votes = np.concatenate([part.emotions for part in parts])  # (n, E)
    folds = np.repeat(range(len(parts)), [len(part) for part in parts])  # (n,)
    truth = [part.emotions.argmax(axis=1) for part in parts]  # (n_k,) each
    features = imagenet_features(config, parts)
    probes = {f"probe_{size}": probe(values, truth) for size, values in features.items()}  # (n,) each
    predicted, true = metrics.top_classes(shares, votes)  # (n,) each
    correct = pd.DataFrame({"network": predicted, **probes}).eq(true, axis=0).astype(float)
    figures = partial(metrics.emotion_metrics, classes=classes)

    def accuracies(correct: np.ndarray) -> dict[str, float]:
        means = dict(zip(("network", *probes), correct.mean(axis=0).tolist(), strict=True))
        return means | {f"network - {name}": means["network"] - means[name] for name in probes}

    content = {
        "metrics": figures(shares, votes),
        "intervals_95": bootstrap_intervals(figures, (shares, votes)),
        "accuracies": accuracies(correct.to_numpy()),
        "accuracies_95": bootstrap_intervals(accuracies, (correct,)),
        "accuracies_by_fold": correct.groupby(folds).mean().to_dict("records"),
        "chance": 1 / len(classes),
        "emotions": list(classes),
        "confusion": metrics.confusion_matrix(shares, votes, classes).tolist(),
        "dataset": parts[0].name,
        "protocol": [part.protocol for part in parts],
        "config": config.without_folders(),
        "versions": versions(),
    }
    columns = {"id": np.concatenate([part.ids for part in parts]), "fold": folds}
    columns |= {"prediction": names[shares.argmax(axis=1)]}
    columns |= {f"emotion_{name}": shares[:, i] for i, name in enumerate(names)}
    columns |= {name: names[numbers] for name, numbers in probes.items()}
    write_columns(options.output / "predictions.csv", columns)
    text = json.dumps(without_nan(content), indent=1)
    (options.output / "cross_validation.json").write_text(text + "\n", encoding="utf-8")
    print(f"{content['dataset']}, {len(parts)} folds, emotions")
    print(table(content["metrics"], content["intervals_95"]), "\naccuracy", sep="\n")
    for name, value in content["accuracies"].items():
        low, high = content["accuracies_95"][name]
        print(f"{name:<24} {value:+.4f}  {low:+.4f} to {high:+.4f}")
    return 0


def last_set(config: Config, fold: int) -> tuple[Config, RatedSet]:
    """The config for the last set on its own, and the pictures of a fold of it."""
    name, root = config.data.names[-1], config.data.roots[-1]
    data = replace(config.data, dataset=name, root=root, fold=fold, repeat="")
    rated = load_dataset(name, root, ("test",), data.options())["test"]
    return replace(config, data=data), rated


def refuse_trained_on(weights: str, parts: list[RatedSet]) -> None:
    """Raises ValueError if the weights were trained on pictures that are to be predicted."""
    known = checkpoint.read_source(weights).weights
    trained = np.union1d(known.training_ids, known.emotion_training_ids)
    if count := sum(int(np.isin(part.id_hashes, trained).sum()) for part in parts):
        raise ValueError(
            f"cross_validate: {weights} was trained on {count} pictures of {parts[0].name}, which the folds "
            "are to predict; choose weights that have not seen them"
        )


def train_fold(
    config: Config, fold: int, folder: Path, weights_file: str | None
) -> tuple[RatedSet, np.ndarray]:
    """Trains and predicts a fold, or reads its predictions: the pictures and their shares (n, E)."""
    done = folder / "evaluation" / "predictions.csv"
    config = replace(config, data=replace(config.data, fold=fold))
    test_config, rated = last_set(config, fold)
    if done.is_file():
        before = load_config([folder / "config.yaml"]).as_dict()
        changed = changed_settings(before, config.as_dict())
        started = json.loads((done.parent / "metrics.json").read_text(encoding="utf-8"))["origin"]
        hashes = started.get("weights_sha256"), file_hash(Path(weights_file)) if weights_file else None
        if hashes[0] != hashes[1]:
            changed.append(f"the SHA-256 of --weights was {hashes[0]} and is {hashes[1]}")
        if changed:
            what = f"{folder} was trained with other settings ({'; '.join(changed)})"
            raise ValueError(f"cross_validate: {what}; choose another --output")
    else:
        train(choose_task(config), weights=weights_file, output=folder, resume=True)
        weights = checkpoint.load_weights(folder / "best.pt")
        task = choose_task(as_trained(test_config, weights))
        evaluate_checkpoints([weights], task, "test", done.parent, force=True)
    rows = pd.read_csv(done, dtype={"id": str}, keep_default_na=False, float_precision="round_trip")
    rows = rows.set_index(rows["id"].map(original)).filter(regex="^emotion_")
    rated = rated.take([i in rows.index for i in rated.ids])
    classes = tuple(name.removeprefix("emotion_") for name in rows)
    return with_emotions(rated, classes), rows.loc[rated.ids].to_numpy(np.float64)


def imagenet_features(config: Config, parts: list[RatedSet]) -> dict[int, list[np.ndarray]]:
    """Side in pixels (of the network's and of the emotion branch's input) -> for each fold (n_k, C): the
    backbone's last map, averaged over its positions."""
    network = imagenet_network(config.model.backbone, config.model.imagenet)
    mean, std = backbones.normalisation(config.model.backbone)
    full = config.data.size
    features = {size: [] for size in (full, round(full * config.model.emotion_scale))}
    for part in parts:
        rows = {size: [] for size in features}
        pictures, order = (
            PictureSet(part, full, exif=config.data.exif, icc=config.data.icc),
            TestOrder(len(part), 32),
        )
        for batch in make_loader(pictures, order, config.data.worker_count(), timeout=config.data.timeout):
            images = normalise(batch.images, mean, std)  # (N, 3, H, W)
            with torch.inference_mode():
                for size, pooled in rows.items():
                    pooled.append(network(shrink(images, size / full)).mean(dim=(2, 3)))  # (N, C)
        for size, pooled in rows.items():
            features[size].append(torch.cat(pooled).double().numpy())
    return features


def imagenet_network(name: str, source: str) -> Callable[[Tensor], Tensor]:
    """A backbone with its ImageNet weights: pictures (N, 3, H, W) -> last map (N, C, H/32, W/32)."""
    file = backbones.imagenet_file(name) if source == "auto" else Path(source)
    state = checkpoint.imagenet_state(name, file)
    if name == backbones.LITE0:
        network = timm.create_model(name).eval()  # whole: its last convolution comes after the pyramid
        state = {key.removeprefix("body."): value for key, value in state.items()}
        checkpoint.load_tensors(network, state, str(file))
        return network.forward_features
    pyramid = backbones.build_pyramid(name, levels=4).eval()
    checkpoint.load_pyramid(pyramid, state, str(file or name))
    return lambda images: pyramid(images)[-1]


def probe(features: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """(n,) class numbers: each fold's pictures, predicted from the other folds'; features (n_k, C) each."""
    model, predicted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), []
    for fold, values in enumerate(features):
        others = [k for k in range(len(features)) if k != fold]
        labels = np.concatenate([truth[k] for k in others])  # (n - n_fold,)
        inner = min(5, int(np.unique(labels, return_counts=True)[1].min()))
        search = GridSearchCV(model, {"logisticregression__C": (1e-4, 1e-3, 1e-2, 1e-1)}, cv=inner)
        search.fit(np.concatenate([features[k] for k in others]), labels)
        predicted.append(search.predict(values))
    return np.concatenate(predicted)


if __name__ == "__main__":
    sys.exit(main())
