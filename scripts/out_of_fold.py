"""Predicts each training picture by a network that was not trained on it: targets for distillation.

    python scripts/out_of_fold.py --config configs/para_lite.yaml --dataset para --data-root PARA --folds 4 \
        --emotion-checkpoint checkpoints/emotion_lite_para.safetensors --output runs/para_lite_folds

Divides the training split into folds by the hash of the ids, identical pictures together (looked for in up to
100,000). There is one training per fold (OUTPUT/fold_0 ...), on the training pictures of the others; one that
was stopped is resumed, and one that is done is not repeated. Validation pictures stay validation pictures.

Writes OUTPUT/out_of_fold.csv, a row for each training picture: id, prediction in the unit of the ratings,
fold, and the SHA-256 of the weights that predict it. A picture that cannot be decoded (data.skip_broken=true)
has its rating as prediction and no fold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eamb.evaluation.predicting import predict_set
from eamb.evaluation.ratings import compare_scores
from eamb.evaluation.report import write_columns
from eamb.readers.rated import SPLITS, RatedSet
from eamb.readers.splitting import TWIN_LIMIT, find_twins, fold_numbers
from eamb.runtime import distributed
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config
from eamb.runtime.networks import Ensemble, TorchNetwork
from eamb.training.run import train
from eamb.training.tasks import Aesthetics
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Weights

FILE = "out_of_fold.csv"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--config", metavar="FILE", action="append", required=True, help="YAML; may be repeated")
    add("--dataset", required=True, type=str.lower)
    add("--data-root", metavar="DIR", required=True)
    add("--emotion-checkpoint", metavar="FILE", help="weights of the emotion branch")
    add("--weights", metavar="FILE", help="start each network from this one, never trained on these pictures")
    add("--folds", type=int, default=4)
    add("--output", type=Path, metavar="DIR", required=True)
    add("settings", metavar="key=value", nargs="*", help="as in train.epochs=3")
    options = parser.parse_intermixed_args(arguments)
    return guarded(out_of_fold, options, interrupted="interrupted; the same command goes on")


class WithoutPictures(Aesthetics):
    """A training on the training split without some of its pictures."""

    def __init__(self, config: Config, excluded: Collection[str], words: str):
        super().__init__(config)
        self.excluded, self.words = set(excluded), words

    def load(self, splits: tuple[str, ...]) -> dict[str, RatedSet]:
        loaded = super().load(splits)
        rated = loaded["train"]
        kept = rated.take([i not in self.excluded for i in rated.ids])
        return loaded | {"train": replace(kept, protocol=f"{rated.protocol}, without {self.words}")}


def out_of_fold(options: argparse.Namespace) -> int:
    """Trains the networks that are not done yet, predicts every fold, writes and prints."""
    words = [*options.settings, f"data.dataset={options.dataset}", f"data.root={options.data_root}"]
    config = load_config(options.config, [*words, "train.score_test=false"])
    folders = [options.output / f"fold_{fold}" for fold in range(options.folds)]
    whole, folds = divide(config, options.folds)
    if options.weights:
        check_unseen(whole, checkpoint.read_source(options.weights).weights, options.weights)
    files = {"emotion_checkpoint": options.emotion_checkpoint, "weights": options.weights}
    for fold, folder in enumerate(folders):
        excluded = [whole.ids[i] for i in np.flatnonzero(folds == fold)]
        task = WithoutPictures(config, excluded, f"fold {fold + 1} of {len(folders)} by hash of the id")
        train(task, output=folder, resume=True, **files)  # a run that is done is only checked
    columns = {"id": np.array(whole.ids), "prediction": whole.scores.copy()}
    columns |= {name: np.full(len(whole), None) for name in ("fold", "weights_sha256")}
    done = np.zeros(len(whole), bool)
    with distributed.session(config.train.device) as device:
        for fold, folder in enumerate(folders):
            rows = np.flatnonzero(folds == fold)
            index, values, sha256 = predict_fold(config, whole.take(rows), folder / "best.pt", device)
            for name, value in (("prediction", values), ("fold", fold), ("weights_sha256", sha256)):
                columns[name][rows[index]] = value
            done[rows[index]] = True
        if distributed.is_main():
            write_columns(options.output / FILE, columns)
            predicted = {name: columns[name][done] for name in ("id", "prediction")}
            report = compare_scores(predicted, whole.take(done))
            counts = f"{done.sum():,} of {len(whole):,} pictures predicted"
            print(f"\n{report}\n\n{options.output / FILE}: {counts}", flush=True)
    return 0


def divide(config: Config, folds: int) -> tuple[RatedSet, np.ndarray]:
    """The training split and the fold of each picture, (n,), from 0; refuses what cannot be divided."""
    if folds < 2:
        raise ValueError(f"out_of_fold: --folds must be 2 or more, got {folds}")
    if config.task != "aesthetics" or config.data.distill:
        wrong = f"data.distill={config.data.distill}" if config.data.distill else f"task={config.task}"
        raise ValueError(f"out_of_fold: these networks learn scores, from ratings alone; leave out {wrong}")
    if config.train.validate_on == "test":
        raise ValueError(
            "out_of_fold: train.validate_on=test chooses networks by test pictures; leave it out"
        )
    task = Aesthetics(config)
    whole = task.load(SPLITS[:2])["train"]
    if whole.scale.kind == "label":
        raise ValueError(f"out_of_fold: a network trained on {whole.name} predicts a label, not a score")
    table, _ = task.reader.table(SPLITS[:2])
    twins = []
    if config.data.twins and (table.twins is not None or len(whole) <= TWIN_LIMIT):
        twins = find_twins(table, whole.paths, whole.ids, np.ones(len(whole), bool))
    numbers = fold_numbers(whole.ids, np.zeros(len(whole)), folds, twins)
    if len(np.unique(numbers)) < folds:
        raise ValueError(f"out_of_fold: {len(whole)} pictures cannot be divided into {folds} folds")
    return whole, numbers


def predict_fold(
    config: Config, part: RatedSet, path: Path, device: torch.device
) -> tuple[np.ndarray, np.ndarray, str]:
    """Positions in `part` of the pictures that can be decoded, (m,), their predictions in the unit of the
    ratings, (m,), and the hash of the weights."""
    weights = checkpoint.load_weights(path)
    check_unseen(part, weights, path)
    network = Ensemble([TorchNetwork.load(weights, device)])
    predictions = predict_set(network, part, config, show=True)
    return predictions.index, weights.scale.value(predictions.prediction), weights.sha256


def check_unseen(rated: RatedSet, weights: Weights, path: Path | str) -> None:
    """Refuses weights that were trained on one of the pictures, or on nobody knows which."""
    if not len(weights.training_ids):
        raise ValueError(
            f"out_of_fold: {path} does not say which pictures it was trained on, so it may know those of "
            f"{rated.name} already; give other weights, or none"
        )
    seen = int(np.isin(rated.id_hashes, weights.training_ids).sum())
    if seen:
        raise ValueError(
            f"out_of_fold: {path} was trained on {seen:,} of the {len(rated):,} pictures of {rated.name} "
            "that are to be predicted unseen; give other weights, or none"
        )


if __name__ == "__main__":
    sys.exit(main())
