"""`main.py evaluate`: predicts a set with the weights of checkpoints and reports it, with provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eamb.evaluation.report import FILES, Report, versions
from eamb.readers.pairs import PairedSet
from eamb.readers.rated import RatedSet, write_left_out
from eamb.runtime import distributed
from eamb.runtime.command import check_output
from eamb.runtime.networks import Ensemble, TorchNetwork, check_averaged
from eamb.weights.checkpoint import Weights

if TYPE_CHECKING:
    from eamb.training.tasks import Task


def evaluate_checkpoints(
    several: Sequence[Weights],
    task: Task,
    split: str,
    output: Path | None = None,
    force: bool = False,
    flip: bool = False,
) -> Report:
    """Evaluates weights, or several together, on one split of a set; prints and writes the report.

    Args:
        several: of one or more checkpoints, whose predictions are averaged.
        task: the task of the weights, with the settings that `as_trained` gives for the first, and data.icc
            for those that do not say it.
        output: the report's folder; the default is below runs/.
        flip: also average with the predictions for mirrored pictures.

    Raises:
        ValueError, OSError: no such data, data that don't fit the weights, weights that cannot be averaged,
            or a report exists and no `force`.
    """
    check_averaged(several, flip)
    rated = task.load_split(split)
    hashes = [weights.sha256 for weights in several] + ["flip"] * flip
    together = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    folder = report_folder(output, rated, together, force)
    with distributed.session(task.config.train.device) as device:
        network = Ensemble([TorchNetwork.load(weights, device) for weights in several], flip)
        report = evaluate(network, rated, task)
        if distributed.is_main():
            publish(report, rated, task, folder)
    return report


def report_folder(output: Path | None, rated: RatedSet, sha256: str, force: bool) -> Path:
    """`output`, or a folder named for the set and the hash; an error if nothing can be written there, or if
    it has a report and `force` is not set."""
    folder = output or Path("runs") / f"evaluate_{rated.name}_{rated.split}_{sha256[:8]}"
    check_output("evaluation", folder, FILES, force)
    return folder


def publish(report: Report, rated: RatedSet, task: Task, folder: Path) -> None:
    """Writes the report's files into the folder and prints it."""
    report.write(folder)
    if rated.left_out:
        write_left_out(folder / "left_out.csv", rated)
    print(f"{task.describe(rated)}\n\n{report}\n\n{folder}: {report.files}")


def evaluate(network: Ensemble, rated: RatedSet, task: Task) -> Report:
    """Predicts every picture of the set once; the report has intervals, a leak check and the provenance.
    Raises ValueError if an emotion network does not know all of the set's emotions."""
    report, predictions = task.evaluate(network, rated)
    if words := averaged(network):
        report.notes.insert(0, words)
    if predictions.broken:
        report.notes.append(f"pictures that cannot be decoded, left out: {len(predictions.broken)}")
    if predictions.noted:
        report.notes.append(f"pictures with a defect, read all the same: {len(predictions.noted)}")
    leaked = leaks(rated, network.weights)
    report.notes += [f"{name.replace('_', ' ')}: {count}" for name, count in leaked.items()]
    report.facts |= {
        **leaked,
        **about(rated, task.name),
        **provenance(network),
        "broken": [list(entry) for entry in predictions.broken],
        "noted": [list(entry) for entry in predictions.noted],
    }
    return report


def averaged(network: Ensemble) -> str:
    """What the report says about the predictions of several networks, or of mirrored pictures; else ""."""
    count = len(network.networks)
    words = f" of {count} networks" * (count > 1) + " for each picture and its mirror image" * network.flip
    return f"mean predictions{words}" if words else ""


def provenance(network: Ensemble) -> dict:
    """What metrics.json says about the weights: of several, the same of each under "checkpoints"."""

    def of(weights: Weights) -> dict:
        described = weights.description
        return {
            "weights_sha256": weights.sha256,
            "trained_on": described["dataset"],
            "origin": described.get("origin", {}),
            "training": described.get("config", {}),
        }

    several = [member.weights for member in network.networks]
    flip = {"flip": True} if network.flip else {}
    if len(several) == 1:
        return of(several[0]) | flip
    each = [{"checkpoint": Path(weights.path).name, **of(weights)} for weights in several]
    return {"trained_on": network.weights.description["dataset"], "checkpoints": each, **flip}


def about(rated: RatedSet, task: str) -> dict:
    """What metrics.json says about the set, and the versions of packages and program."""
    described = {"task": task, "dataset": rated.name, "split": rated.split, "protocol": rated.protocol}
    counted = {"split_sha256": rated.sha256, "left_out": len(rated.left_out)}
    return {**described, **counted, "versions": versions()}


def leaks(rated: RatedSet, weights: Weights) -> dict[str, int]:
    """How many of the pictures the network, or its emotion branch, was trained on, found by id hashes; {} for
    pairs with a network trained on ratings, because their ids cannot be compared."""
    if isinstance(rated, PairedSet) and weights.scale:
        return {}
    trained = {"test_pictures_trained_on": weights.training_ids}
    if weights.emotions or len(weights.emotion_training_ids):
        trained["test_pictures_that_the_emotion_branch_was_trained_on"] = weights.emotion_training_ids
    return {name: int(np.isin(rated.id_hashes, ids).sum()) for name, ids in trained.items()}
