"""Resuming a run: finding its newest undamaged checkpoint, and checking that it is the same run."""

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
OLDER = {"data": {"icc": False}}  # what runs did before there was a setting, where its default is another
FREE = ("data.root", "data.workers", "data.timeout", "train.device", "train.checkpoint_minutes")
FREE += ("train.log_every",)
MOVABLE = ("train.emotion_maps", "data.distill")  # may lie elsewhere, but are used or not


def load_stopped(output: Path) -> tuple[Path, Weights, dict]:
    """The newest undamaged checkpoint: its path, weights and training state; warns of damaged ones."""
    problems = []
    for path in checkpoints(output):
        try:
            weights, state = load_training(path)
            if "optimizer" not in state:
                raise ValueError(f"training: {path} holds no training state to resume from, like a best.pt")
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems and distributed.is_main():
            print(f"warning: {problems[0]}; the one before it is used, {path}", file=sys.stderr, flush=True)
        return path, weights, state
    why = "; ".join(problems) or f"training: {output} holds no checkpoint for this process; all must share it"
    raise ValueError(f"{why}; start over with --force")


def check_same_run(
    last: Path, config: Config, data: dict[str, RatedSet], stopped: Weights, state: dict, files: dict
) -> None:
    """Refuses to resume with other settings, processes, pictures, ratings, copies or first weights.

    `files` are "weights" and "emotion_checkpoint", as on the command line, and "distill", as in data.distill;
    empty if not given again.
    """
    before = state["config"]
    if config.optimizer.schedule == "constant":  # then the number of epochs changes none of them
        before = before | {"train": before["train"] | {"epochs": config.train.epochs}}
    differences = changed_settings(before, config.as_dict())
    if config.train.epochs < state["epoch"] and not differences:
        done, asked = state["epoch"], config.train.epochs
        differences.append(f"it has trained {done} epochs, and train.epochs is {asked}")
    if state["world"] != distributed.world():
        differences.append(f"the number of processes was {state['world']} and is {distributed.world()}")
    description = stopped.description
    for name, rated in data.items():
        now = {"splits": rated.sha256, "labels": rated.labels_sha256, "copies": which_are_copies(rated)}
        words = {
            "splits": "SHA-256 of the ids",
            "labels": "SHA-256 of the ratings",
            "copies": "prepared copies",
        }
        for key, value in now.items():
            before = description.get(key, {}).get(name, value)  # older checkpoints lack some keys
            if before != value:
                differences.append(f"{words[key]} of {name} was {before} and is {value}")
    for what, file in files.items():
        option = "data.distill" if what == "distill" else f"--{what.replace('_', '-')}"
        before = description["origin"].get(f"{what}_sha256")
        if file and not Path(file).is_file():
            raise FileNotFoundError(f"training: no file {file}, {option}")
        if file and file_hash(Path(file)) != before:
            had = (
                f"had the SHA-256 {before}, {file} has another"
                if before
                else f"was not given, now it is {file}"
            )
            differences.append(f"{option} {had}")
    if differences:
        raise ValueError(f"training: cannot resume {last}: {'; '.join(differences)}")


def which_are_copies(rated: RatedSet) -> list[bool]:
    """For each data set in it, whether its pictures are copies made by scripts/prepare_data.py."""
    return [bool(part.copies) for part in rated.parts or (rated,)]


def changed_settings(before: dict, now: dict) -> list[str]:
    differences, defaults = [], Config().as_dict()  # for newer keys, which older runs lack
    for section in SETTLED:
        if section == "task":
            pairs = [(section, before[section], now[section])]
        else:
            old = defaults[section] | OLDER.get(section, {}) | before[section]
            pairs = [(f"{section}.{key}", old[key], value) for key, value in now[section].items()]
        pairs = [pair for pair in pairs if (pair[0], pair[2]) != ("train.precision", "auto")]
        # Using kept emotion maps or not may not change: in bf16 results differ.
        pairs = [pair for pair in pairs if pair[0] not in MOVABLE or not (pair[1] and pair[2])]
        differences += [f"{key} was {a} and is {b}" for key, a, b in pairs if a != b and key not in FREE]
    return differences
