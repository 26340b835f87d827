"""One training run: data, network, epochs, checkpoints, records; resumes exactly where it stopped."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets import Batch, TrainOrder, coin, make_loader
from eamb.evaluation.evaluate import evaluate, measure, measure_pairs, predict_set, with_emotions
from eamb.evaluation.report import FILES, versions, without_nan
from eamb.files import file_hash, written_whole
from eamb.network import backbones
from eamb.network.backbones import recompute_blocks
from eamb.readers.rated import LeftOut, RatedSet, write_left_out
from eamb.runtime import distributed, engine
from eamb.runtime.config import Config, as_yaml
from eamb.training import emotion_maps
from eamb.training.interruption import Signals, Stopped, held, outlive_one_signal
from eamb.training.starting import build_network, check_sources, rebuild_network
from eamb.training.tasks import (
    best_measure,
    class_shifts,
    has_emotion_branch,
    learns_emotions,
    load_data,
    make_loss,
    training_pictures,
)
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Network, Weights

QUANTILES = 1001  # of the training ratings; predictions are placed among them


def train(
    config: Config,
    emotion_checkpoint: str | None = None,
    weights: str | None = None,
    output: Path | None = None,
    resume: bool = False,
    force: bool = False,
) -> dict[str, float]:
    """Trains as the config says; returns the test metrics, or the best validation's if test is not scored.

    Args:
        emotion_checkpoint: weights of the emotion branch, ours or the official code's.
        weights: a whole network to start from, ours or the official code's.
        output: the run's folder; the default is `default_output`.
        resume: go on where the run in `output` stopped, or start if there is none.
        force: start anew over the run in `output`.

    Raises:
        ValueError, FileNotFoundError: bad settings or data, in one sentence.
        OSError: the run has ended, and the disk took none of its last checkpoints.
        Stopped: SIGTERM or SIGINT came; last.pt holds all that was done.
    """
    output = output or default_output(config)
    with Signals() as signals, distributed.session(config.train.device) as device, held(output):
        engine.keep_memory(device)
        check_output(output, resume, force)
        check_processes(config, device, output)
        if resume and checkpoints(output):
            source, stopped, state = load_stopped(output)
            data = load_data(config)
            files = {"weights": weights, "emotion_checkpoint": emotion_checkpoint}
            check_same_run(source, config, data, stopped, state, files)
            network, origin = rebuild_network(stopped)
        else:
            source = state = None
            check_sources(config, emotion_checkpoint, weights)
            data = load_data(config)
            network, origin = build_network(config, data["train"], emotion_checkpoint, weights)
        run = Run(config, output, device, data, network, origin, signals)
        run.open_records(source, state)
        signals.begun = True
        run.emotion_maps = keep_emotion_maps(run, state)
        try:
            train_epochs(run)
            return finish(run)
        finally:
            run.close_records()


def default_output(config: Config) -> Path:
    """runs/<task>_<dataset>_<backbone>; behind it what kind of pair network."""
    network = f"_{config.model.network}" if config.task == "series" else ""
    return Path("runs") / f"{config.task}_{config.data.dataset}_{config.model.backbone}{network}"


def train_epochs(run: Run) -> None:
    for epoch in range(run.epoch, run.config.train.epochs):
        with run.signals.deferred():
            found = train_epoch(run, epoch)
        validated = validate(run)
        with run.signals.deferred():
            run.record(epoch, found, validated)
    run.check_saved()


def check_output(output: Path, resume: bool, force: bool) -> None:
    if force or (resume and checkpoints(output)):
        return
    kept = [name for name in ("last.pt", PREVIOUS, "best.pt", "metrics.jsonl") if (output / name).exists()]
    if kept:
        raise ValueError(
            f"training: {output} holds a run already ({', '.join(kept)}); go on with --resume (it needs "
            f"last.pt or {PREVIOUS}), choose another --output, or start over it with --force"
        )


def check_processes(config: Config, device: torch.device, output: Path) -> None:
    """Refuses what would fail, or wait for ever, only once several processes train together."""
    if config.train.sync_batchnorm and device.type != "cuda":
        raise ValueError(
            f"training: train.sync_batchnorm needs CUDA, this run is on {device.type}: torch cannot share "
            "BatchNorm between its processes; leave it out, and each uses the statistics of its own pictures"
        )
    if config.train.sync_batchnorm and config.data.skip_broken:
        raise ValueError(
            "training: train.sync_batchnorm does not go with --skip-broken: a process whose pictures are all "
            "broken would keep the others waiting; take the broken files out of the table, or leave out one"
        )
    if len(set(distributed.gather(bool(checkpoints(output))))) > 1:
        raise ValueError(
            f"training: {output / 'last.pt'} is there for some processes and not for others; --output must "
            "be a folder that all machines share"
        )


def checkpoints(output: Path) -> list[Path]:
    """What a run can be resumed from, the newest first; without last.pt it died between two renamings."""
    return [path for path in (output / "last.pt", output / PREVIOUS) if path.is_file()]


def load_stopped(output: Path) -> tuple[Path, Weights, dict]:
    """The newest checkpoint that is whole: its path, weights and training state; damaged ones are named."""
    problems = []
    for path in checkpoints(output):
        try:
            found = path, *checkpoint.load_training(path)
            if "optimizer" not in found[2]:
                raise ValueError(f"training: {path} holds no training state to resume from, like a best.pt")
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems and distributed.is_main():
            print(f"warning: {problems[0]}; the one before it is used, {path}", file=sys.stderr, flush=True)
        return found
    raise ValueError(f"{'; '.join(problems)}; start over with --force")


PREVIOUS = "previous.pt"  # the last.pt before

RECORDS = ("last.pt", PREVIOUS, "best.pt", "metrics.jsonl", "curves.png", "left_out_*.csv", "broken_*.csv")

RECORDS += tuple(f"{test}/{name}" for test in ("test", "test/*") for name in FILES)

RECORDS += ("tensorboard/events.*",)

UNFINISHED = tuple(str(Path(name).with_name(f".{Path(name).name}.*.tmp")) for name in RECORDS)


def clear(output: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in output.glob(pattern):
            path.unlink()


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; AdamW's decay leaves out biases and BatchNorm, the official ones decay all.

    The backbones come first, in groups with `optimizer.backbone_factor` of the rate of the rest.
    """
    settings = config.optimizer
    beginnings = (*checkpoint.pyramids(model), *getattr(model, "backbone_rate", ()))
    fused = next(model.parameters()).device.type in ("cpu", "cuda")  # one kernel for all weights
    groups = []
    for factor, in_backbone in ((settings.backbone_factor, True), (1.0, False)):
        named = [(n, p) for n, p in model.named_parameters() if n.startswith(beginnings) == in_backbone]
        groups.append({"params": [p for _, p in named if p.requires_grad], "factor": factor})
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay, fused=fused
        )
    if settings.name == "adam":
        return torch.optim.Adam(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
        )
    halves = [split_by_decay(group, settings.weight_decay) for group in groups]
    return torch.optim.AdamW(
        [part for half in halves for part in half], lr=settings.learning_rate, fused=fused
    )


def split_by_decay(group: dict, weight_decay: float) -> list[dict]:
    """A group as two: matrices and kernels, which decay, and vectors, which do not."""
    matrices = {"params": [p for p in group["params"] if p.ndim > 1], "weight_decay": weight_decay}
    vectors = {"params": [p for p in group["params"] if p.ndim <= 1], "weight_decay": 0.0}
    return [{**group, **matrices}, {**group, **vectors}]


@dataclass
class Best:
    """The best validation so far: of `measure`, larger is better unless it is a divergence or a loss."""

    measure: str
    value: float = math.nan
    epoch: int = -1

    def update(self, epoch: int, metrics: dict[str, float]) -> bool:
        value = metrics[self.measure]
        better = value < self.value if self.measure in ("kl", "log_loss") else value > self.value
        if better or (math.isnan(self.value) and not (math.isnan(value) and self.epoch >= 0)):
            self.value, self.epoch = value, epoch
            return True
        return False


class Run:
    """What a run consists of, what it writes, and how it is taken up again."""

    def __init__(
        self,
        config: Config,
        output: Path,
        device: torch.device,
        data: dict[str, RatedSet],
        network: Network,
        origin: dict,
        signals: Signals,
    ):
        labels = {split: rated.labels_sha256 for split, rated in data.items()}
        if learns_emotions(config):
            emotions = network.arguments["emotions"]
            data = {split: with_emotions(rated, emotions) for split, rated in data.items()}
        self.config, self.output, self.device, self.data, self.origin = config, output, device, data, origin
        if config.train.sync_batchnorm:
            network = distributed.synchronise_batchnorm(network)
        if config.train.recompute:
            recompute_blocks(network)
        self.network = network.to(device)
        self.model = distributed.wrap(self.network, device, config.train.gradient_precision)
        if config.train.compile:
            # Only the training step: checkpoints and scoring use the network itself, under its own names.
            self.model = torch.compile(self.model)
        decay = config.train.average
        self.average = engine.Average(self.network, decay) if decay else None
        self.optimizer = make_optimizer(config, self.network)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        mean, std = backbones.normalisation(config.model.backbone)
        self.compute = engine.Compute(device, config.train.precision, mean, std)
        self.epoch, self.totals = 0, engine.Totals()
        self.order(epoch=0)  # a batch size that cannot be had is an error before anything is written
        self.best = Best(best_measure(config, data["train"].scale))
        self.broken: dict[str, set[LeftOut]] = {}
        self.last, self.best_file = output / "last.pt", output / "best.pt"
        self.signals, self.saved = signals, time.monotonic()
        self.log: list[str] = []
        self.log_grew = False
        self.new_best: Weights | None = None  # not on the disk yet
        self.unsaved, self.newest = False, "none is there"
        self.emotion_maps: emotion_maps.EmotionMaps | None = None
        self.writer = None
        self.description = describe_run(config, network, data, origin) | {"labels": labels}

    def order(self, epoch: int) -> TrainOrder:
        """The batches of an epoch that this process has still to do."""
        settings = self.config.train
        return TrainOrder(
            self.data["train"].draws,
            settings.batch_size,
            settings.seed,
            epoch,
            start_step=self.totals.step,
            rank=distributed.rank(),
            world=distributed.world(),
        )

    @property
    def kept(self) -> Network:
        """The network that is validated and kept: the average of the weights if there is one."""
        return self.average.network if self.average else self.network

    @property
    def place(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.totals.step}"

    def weights(self, network: Network) -> Weights:
        """Of the network in training or of the kept one, with all that travels with them."""
        ids = np.union1d(self.origin["training_ids"], self.data["train"].id_hashes)
        emotion_ids = self.origin["emotion_training_ids"]
        if learns_emotions(self.config):
            emotion_ids = np.union1d(emotion_ids, self.data["train"].id_hashes)
        description = {**self.description, "best": asdict(self.best)}
        return Weights(network.state_dict(), description, ids, emotion_ids)

    def save(self) -> None:
        """Writes last.pt: everything that resuming needs. Random states are none of it: all randomness is a
        function of seed, epoch and step. A disk that is full or fails does not end the run."""
        self.totals.read()
        parts = distributed.gather(asdict(self.totals))
        self.saved = time.monotonic()
        if not distributed.is_main():
            return
        state = {
            "config": self.config.as_dict(),
            "world": distributed.world(),
            "epoch": self.epoch,
            "totals": parts,
            "best": asdict(self.best),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "emotion_maps": self.emotion_maps is not None,
        }
        if self.average:
            state |= {"average": self.average.network.state_dict(), "average_steps": self.average.steps}
        self.unsaved = True
        with self.surviving(f"{self.last} was not written; the newest checkpoint: {self.newest}"):
            self.write(state)
            self.unsaved, self.newest = False, self.place

    def write(self, state: dict) -> None:
        """The log, best.pt and then last.pt, which must never be ahead of the others.

        Without any last.pt they are taken back: nothing could go on from them, and they would forbid a start.
        """
        first, best = not checkpoints(self.output), self.new_best
        try:
            if self.log_grew:
                with written_whole(self.output / "metrics.jsonl") as temporary:
                    temporary.write_text("".join(self.log))
                self.log_grew = False
            if self.new_best:
                checkpoint.save_training(self.best_file, self.new_best, {"epoch": self.best.epoch})
                self.new_best = None
            checkpoint.save_training(self.last, self.weights(self.network), state, self.output / PREVIOUS)
        except OSError:
            back = first and not checkpoints(
                self.output
            )  # last.pt may be there, and only its folder not synced
            if back:
                self.log_grew, self.new_best = bool(self.log), best
            if self.new_best:  # kept in memory, as training goes on
                tensors = {name: value.clone() for name, value in self.new_best.tensors.items()}
                self.new_best = replace(self.new_best, tensors=tensors)
            if back:
                clear(self.output, ("metrics.jsonl", "best.pt"))
            raise

    @contextmanager
    def surviving(self, loss: str) -> Iterator[None]:
        """Turns a failure to write into a warning that says what was lost."""
        try:
            yield
        except OSError as error:
            print(f"warning: training: {error}: {loss}", file=sys.stderr, flush=True)

    def check_saved(self) -> None:
        if any(distributed.gather(self.unsaved)):
            raise OSError(
                f"training: the run has ended, and {self.last} could not be written (the newest checkpoint: "
                f"{self.newest}); make room, then go on from there with --resume"
            )

    def save_if_due(self) -> None:
        """Behind each optimizer step."""
        self.save_or_stop(time.monotonic() - self.saved > 60 * self.config.train.checkpoint_minutes)

    def save_or_stop(self, due: bool) -> None:
        """Writes last.pt where it is due, or a signal came, to whichever process; all end the run then."""
        due = due and distributed.is_main() and self.newest != self.place
        due, number = distributed.largest([int(due), self.signals.number], self.device)
        if due or number:
            self.save()
        if number:
            distributed.wait_for_all()  # torchrun ends the rest as soon as one has ended
            self.signals.done = True
            raise Stopped(number)

    def open_records(self, source: Path | None, state: dict | None) -> None:
        """Opens the run's folder: cleared for a new run, else taken up where `source` was saved."""
        if distributed.is_main():
            clear(self.output, UNFINISHED)
        if state:
            self.resume(source, state)
        elif distributed.is_main():
            clear(self.output, RECORDS)
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter

            (self.output / "config.yaml").write_text(as_yaml(self.config), encoding="utf-8")
            for split, rated in self.data.items():
                if rated.left_out:
                    write_left_out(self.output / f"left_out_{split}.csv", rated)
            self.writer = SummaryWriter(self.output / "tensorboard", purge_step=self.epoch)

    def close_records(self) -> None:
        if self.writer:
            with self.surviving("TensorBoard lacks the last epochs"):
                self.writer.close()

    def resume(self, source: Path, state: dict) -> None:
        """Takes up optimizer, progress and log; the weights are in the network already."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            checkpoint.load_tensors(self.average.network, state["average"], str(source))
            self.average.steps = state["average_steps"]
        self.epoch, self.best = state["epoch"], Best(**state["best"])
        self.totals = engine.Totals(**state["totals"][distributed.rank()])
        self.newest = self.place
        if distributed.is_main():
            print(f"resumed {source} at epoch {self.epoch + 1}, step {self.totals.step + 1}", flush=True)
            if source != self.last:
                source.replace(self.last)  # the next writing would keep the damaged one as the previous
            log = self.output / "metrics.jsonl"
            self.log = log.read_text().splitlines(keepends=True)[: self.epoch] if log.exists() else []
            with written_whole(log) as temporary:
                temporary.write_text("".join(self.log))

    def list_broken(self, split: str, broken: list[LeftOut]) -> None:
        """Keeps broken_<split>.csv, which names each picture that could not be decoded."""
        known = self.broken.setdefault(split, set())
        if distributed.is_main() and not known.issuperset(broken):
            path, listed = self.output / f"broken_{split}.csv", known | set(broken)
            with self.surviving(f"{path} was not written"):
                write_left_out(path, replace(self.data[split], left_out=sorted(listed)))
                known.update(broken)
            print(f"{len(listed)} pictures of {split} cannot be decoded and are left out: {path}", flush=True)

    def record(self, epoch: int, trained: dict[str, float], validated: dict[str, float]) -> None:
        """Ends an epoch: one line of metrics.jsonl, TensorBoard, last.pt, and best.pt if it is the best."""
        improved = self.best.update(epoch, validated)
        line = {"epoch": epoch, "learning_rate": trained.pop("learning_rate")}
        line |= {f"train_{name}": value for name, value in trained.items()}
        line |= {f"val_{name}": value for name, value in validated.items()}
        if distributed.is_main():
            self.log.append(json.dumps(without_nan(line)) + "\n")
            self.log_grew = True
            with self.surviving("TensorBoard lacks this epoch"):
                for name, value in line.items():
                    self.writer.add_scalar(name, value, epoch)
                self.writer.flush()
            if improved:
                self.new_best = self.weights(self.kept)
            shown = "  ".join(f"{k} {v:.4f}" for k, v in line.items() if k in SHOWN)
            print(
                f"epoch {epoch + 1}/{self.config.train.epochs}  {shown}{'  (best)' if improved else ''}",
                flush=True,
            )
        self.epoch, self.totals = epoch + 1, engine.Totals()
        self.save()


SHOWN = ("train_loss", "val_srcc", "val_plcc", "val_accuracy", "val_rmse", "val_kl", "val_kl_ratio")

SHOWN += ("val_emotion_kl", "val_emotion_accuracy", "val_auc", "val_log_loss")

SETTLED = ("task", "data", "model", "loss", "optimizer", "train")  # sections that a resumed run must share

FREE = ("data.root", "data.workers", "train.device", "train.checkpoint_minutes", "train.log_every")


def check_same_run(
    last: Path, config: Config, data: dict[str, RatedSet], stopped: Weights, state: dict, files: dict
) -> None:
    """A resumed run must be the one that stopped.

    Args:
        files: "weights" and "emotion_checkpoint", as on the command line; None needs no repeating.
    """
    differences = changed_settings(state["config"], config.as_dict())
    if state["world"] != distributed.world():
        differences.append(f"the number of processes was {state['world']} and is {distributed.world()}")
    splits, origin = stopped.description["splits"], stopped.description["origin"]
    differences += [
        f"the ids of {name} had the SHA-256 {splits.get(name, 'none')[:12]} and have {rated.sha256[:12]}"
        for name, rated in data.items()
        if splits.get(name) != rated.sha256
    ]
    labels = stopped.description.get("labels", {})  # older checkpoints have none
    differences += [
        f"the ratings of {name} had the SHA-256 {labels[name][:12]} and have {rated.labels_sha256[:12]}"
        for name, rated in data.items()
        if name in labels and splits.get(name) == rated.sha256 and labels[name] != rated.labels_sha256
    ]
    copies = stopped.description.get("copies", {})
    differences += [
        f"{name} was read from {copies_or_originals(copies[name])} and is now from "
        f"{copies_or_originals(which_are_copies(rated))}"
        for name, rated in data.items()
        if name in copies and copies[name] != which_are_copies(rated)
    ]
    differences += [
        f"--{what.replace('_', '-')} was another file ({origin.get(what, 'none')}) than {file}"
        for what, file in files.items()
        if file and file_hash(Path(file)) != origin.get(f"{what}_sha256")
    ]
    if differences:
        raise ValueError(f"training: cannot resume {last}: {'; '.join(differences)}")


def which_are_copies(rated: RatedSet) -> list[bool]:
    """Of each set that it is made of, whether its pictures are copies of scripts/prepare_data.py."""
    return [bool(part.copies) for part in rated.parts or (rated,)]


def copies_or_originals(copies: list[bool]) -> str:
    return " and ".join("prepared copies" if copy else "originals" for copy in copies)


def changed_settings(before: dict, now: dict) -> list[str]:
    differences, defaults = [], Config().as_dict()  # a run that stopped before a key came had its default
    for section in SETTLED:
        if not isinstance(before[section], dict):
            pairs = [(section, before[section], now[section])]
        else:
            values = now[section].items()
            old = defaults[section] | before[section]
            pairs = [(f"{section}.{key}", old[key], value) for key, value in values]
        # Where emotion maps are kept is free, whether they are is not: in bf16 it changes figures.
        pairs = [pair for pair in pairs if pair[0] != "train.emotion_maps" or not (pair[1] and pair[2])]
        differences += [f"{key} was {a} and is {b}" for key, a, b in pairs if a != b and key not in FREE]
    return differences


def describe_run(config: Config, network, data: dict[str, RatedSet], origin: dict) -> dict:
    """The description that travels with the weights."""
    rated = data["train"]
    scores = rated.scores[~np.isnan(rated.scores)]
    quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES)) if len(scores) else []
    return checkpoint.describe(network, rated.scale if config.task == "aesthetics" else None) | {
        "dataset": rated.name,
        "protocol": rated.protocol,
        "splits": {name: part.sha256 for name, part in data.items()},
        "pictures": len(set(rated.ids)),
        "dealt": [part.name for part in rated.parts or (rated,) if part.dealt],
        "copies": {name: which_are_copies(part) for name, part in data.items()},
        "image_size": config.data.size,
        "exif": config.data.exif,
        "crop": config.data.crop,
        "class_shift": class_shifts(config, rated),
        "training_ratings": [round(float(value), 6) for value in quantiles],
        "origin": {name: value for name, value in origin.items() if not isinstance(value, np.ndarray)},
        "config": config.without_root(),
        "versions": versions(),
    }


def keep_emotion_maps(run: Run, state: dict | None) -> emotion_maps.EmotionMaps | None:
    """The training pictures' maps in `train.emotion_maps`, computed if need be; None: not wanted.

    Args:
        state: of the run that is resumed; it goes on without maps if it did without them for a full disk.

    Raises:
        OSError: the run had maps, they cannot be had any more, and without them its figures would change.
    """
    config = run.config
    had = (state or {}).get("emotion_maps")
    if not config.train.emotion_maps or not has_emotion_branch(config):
        return None
    if had is False:
        if distributed.is_main():
            print("training: the run stopped without kept emotion maps and goes on without", flush=True)
        return None
    maps = emotion_maps.prepare(
        Path(config.train.emotion_maps),
        run.network,
        run.data["train"],
        run.compute,
        size=config.data.size,
        exif=config.data.exif,
        workers=config.data.worker_count(),
        batch_size=config.evaluate.batch_size,
    )
    if had and maps is None and config.train.precision != "fp32":
        raise OSError(
            f"training: the run stopped with emotion maps from {config.train.emotion_maps}, which cannot be "
            f"kept now; in {config.train.precision} it would go on with others: make room and resume again"
        )
    return maps


def train_epoch(run: Run, epoch: int) -> dict[str, float]:
    """Trains what is left of an epoch, then writes last.pt; the means of `engine.train_one_epoch`."""
    config, rated = run.config, run.data["train"]
    flips = config.train.seed
    pictures = training_pictures(config, rated)
    order = run.order(epoch)
    loader = make_loader(pictures, order, config.data.worker_count(), pin_memory=run.device.type == "cuda")
    loader.worker_init_fn = outlive_one_signal
    start, started = time.monotonic(), run.totals.step
    schedule, base = config.optimizer.schedule, config.optimizer.learning_rate
    with progress(order, run, epoch) as bar:

        def after_step(totals: engine.Totals) -> None:
            if run.average:
                run.average.update(run.network)
            if not totals.unread:
                bar.update(totals.step - bar.n)
                bar.set_postfix_str(f"loss {totals.loss / max(1, totals.pictures):.4f}", refresh=False)
            if not totals.unread or distributed.world() == 1:  # processes agree where all have read
                run.save_if_due()

        def emotions(batch: Batch) -> tuple[Tensor, Tensor]:
            index = batch.index.tolist()
            return run.emotion_maps.of(index, [config.data.flip and coin(flips, epoch, i) for i in index])

        fixed = engine.Epoch(
            number=epoch,
            steps=len(order),
            seed=config.train.seed,
            rate=lambda done: engine.learning_rate(schedule, base, config.train.epochs, epoch, done),
            loss=make_loss(config, rated),
            ids=rated.ids,
            emotions=emotions if run.emotion_maps else None,
            accumulate=config.train.accumulate,
            clip=config.train.clip,
            log_every=config.train.log_every if run.device.type == "cuda" else 1,
        )
        found = engine.train_one_epoch(
            run.model, loader, run.optimizer, run.scaler, run.compute, fixed, run.totals, after_step
        )
    run.save_or_stop(due=True)  # validation changes nothing, so that a signal may end it anywhere
    if distributed.is_main() and run.totals.step > started:
        seconds = (time.monotonic() - start) / (run.totals.step - started)
        memory = engine.peak_memory(run.device)
        what = "pairs" if config.task == "series" else "pictures"
        print(f"{seconds:.2f} s a step of {config.train.batch_size} {what}, {memory:.1f} GB", flush=True)
    parts = distributed.gather(run.totals.broken)
    run.list_broken("train", [LeftOut(*entry) for part in parts for entry in part])
    return found


def progress(order: TrainOrder, run: Run, epoch: int) -> tqdm:
    return tqdm(
        total=len(order),
        initial=run.totals.step,
        desc=f"epoch {epoch + 1}/{run.config.train.epochs}",
        unit="step",
        disable=not distributed.is_main(),
        mininterval=2,
    )


def validate(run: Run) -> dict[str, float]:
    """Metrics on the validation pictures, without intervals."""
    split = run.config.train.validate_on
    found = predict_set(run.kept, run.data[split], run.config, run.compute)
    run.list_broken(split, found.broken)
    if run.config.task == "series":
        return measure_pairs(found, run.data[split]).metrics
    branch = run.description if learns_emotions(run.config) else None
    report = measure(found, run.data[split], run.config.task, branch=branch)
    if run.config.task == "emotion" or not report.emotions:
        return report.metrics
    return report.metrics | {f"emotion_{name}": report.emotions.metrics[name] for name in ("kl", "accuracy")}


def finish(run: Run) -> dict[str, float]:
    """Draws the curves and scores the best weights once on test."""
    from eamb.evaluation.figures import save_curves

    if distributed.is_main():
        (run.output / PREVIOUS).unlink(missing_ok=True)
        run.close_records()
        with run.surviving("curves.png was not written"):
            save_curves(run.output / "metrics.jsonl", run.output / "curves.png")
    best = checkpoint.load_weights(run.best_file)
    chosen = best.description["best"]
    if distributed.is_main():
        shown = f"epoch {chosen['epoch'] + 1}, {chosen['measure']} {chosen['value']:.4f}"
        print(f"\n{run.output}: best.pt ({shown}) last.pt metrics.jsonl curves.png", flush=True)
    if not run.config.train.score_test:
        return chosen
    checkpoint.load_tensors(run.network, best.tensors, str(run.best_file))
    return score_test(run, best)


def score_test(run: Run, best: Weights) -> dict[str, float]:
    """The report on test, in test/; of several sets one each, in test/SET/, and SET_ before its metrics."""
    test, metrics = run.data["test"], {}
    for rated in test.parts or (test,):
        report = evaluate(run.network, best, rated, run.config, run.compute)
        folder = run.output / "test" / (rated.name if test.parts else "")
        if distributed.is_main():
            report.write(folder)
            print(f"\n{report}\n\n{folder}: {report.files}", flush=True)
        metrics |= {f"{rated.name}_{name}" if test.parts else name: v for name, v in report.metrics.items()}
    return metrics
