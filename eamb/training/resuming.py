"""Going on with a run that stopped: its newest whole checkpoint, and whether the run is still the same."""

from __future__ import annotations

import sys
from pathlib import Path

from eamb.files import file_hash
from eamb.readers.rated import RatedSet
from eamb.runtime import distributed
from eamb.runtime.config import Config
from eamb.training.records import checkpoints
from eamb.weights.checkpoint import Weights, load_training

SETTLED = ("task", "data", "model", "loss", "optimizer", "train")  # sections that a resumed run must share
FREE = ("data.root", "data.workers", "train.device", "train.checkpoint_minutes", "train.log_every")


def load_stopped(output: Path) -> tuple[Path, Weights, dict]:
    """The newest checkpoint that is whole: its path, weights and training state; damaged ones are named."""
    problems = []
    for path in checkpoints(output):
        try:
            found = path, *load_training(path)
            if "optimizer" not in found[2]:
                raise ValueError(f"training: {path} holds no training state to resume from, like a best.pt")
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems and distributed.is_main():
            print(f"warning: {problems[0]}; the one before it is used, {path}", file=sys.stderr, flush=True)
        return found
    raise ValueError(f"{'; '.join(problems)}; start over with --force")


def check_same_run(
    last: Path, config: Config, data: dict[str, RatedSet], stopped: Weights, state: dict, files: dict
) -> None:
    """Refuses to go on with other settings, processes, pictures, ratings, copies or first weights.

    Args:
        files: "weights" and "emotion_checkpoint", as on the command line; None needs no repeating.
    """
    differences = changed_settings(state["config"], config.as_dict())
    if state["world"] != distributed.world():
        differences.append(f"the number of processes was {state['world']} and is {distributed.world()}")
    description = stopped.description
    splits, labels, copies = (description.get(name, {}) for name in ("splits", "labels", "copies"))
    for name, rated in data.items():
        before, copied, digest = splits.get(name, "none"), which_are_copies(rated), rated.labels_sha256
        if before != rated.sha256:
            differences.append(
                f"the ids of {name} had the SHA-256 {before[:12]} and have {rated.sha256[:12]}"
            )
        elif (before := labels.get(name, digest)) != digest:  # older checkpoints have none
            differences.append(f"the ratings of {name} had the SHA-256 {before[:12]} and have {digest[:12]}")
        if copies.get(name, copied) != copied:
            was, now = (
                " and ".join("prepared copies" if copy else "originals" for copy in each)
                for each in (copies[name], copied)
            )
            differences.append(f"{name} was read from {was} and is now from {now}")
    origin = description["origin"]
    for what, file in files.items():
        if file and file_hash(Path(file)) != origin.get(f"{what}_sha256"):
            option = f"--{what.replace('_', '-')}"
            differences.append(f"{option} was another file ({origin.get(what, 'none')}) than {file}")
    if differences:
        raise ValueError(f"training: cannot resume {last}: {'; '.join(differences)}")


def which_are_copies(rated: RatedSet) -> list[bool]:
    """Of each set that it is made of, whether its pictures are copies of scripts/prepare_data.py."""
    return [bool(part.copies) for part in rated.parts or (rated,)]


def changed_settings(before: dict, now: dict) -> list[str]:
    differences, defaults = [], Config().as_dict()  # a run that stopped before a key came had its default
    for section in SETTLED:
        if section == "task":
            pairs = [(section, before[section], now[section])]
        else:
            old = defaults[section] | before[section]
            pairs = [(f"{section}.{key}", old[key], value) for key, value in now[section].items()]
        # Where emotion maps are kept is free, whether they are is not: in bf16 it changes figures.
        pairs = [pair for pair in pairs if pair[0] != "train.emotion_maps" or not (pair[1] and pair[2])]
        differences += [f"{key} was {a} and is {b}" for key, a, b in pairs if a != b and key not in FREE]
    return differences
