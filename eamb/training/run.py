"""One training run: data, network, epochs, checkpoints, records; resumes exactly where it stopped."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import Batch, TrainOrder, coin, make_loader
from eamb.evaluation.emotions import with_emotions
from eamb.evaluation.evaluate import evaluate
from eamb.evaluation.predicting import predict_set
from eamb.evaluation.report import versions
from eamb.network import backbones
from eamb.network.backbones import recompute_blocks
from eamb.network.names import PAIR_NETWORKS
from eamb.network.vit import ADDED
from eamb.readers.decoding import View
from eamb.readers.rated import SPLITS, LeftOut, RatedSet
from eamb.runtime import distributed, engine
from eamb.runtime.config import Config
from eamb.runtime.networks import Ensemble, TorchNetwork
from eamb.runtime.precision import choose_precision
from eamb.runtime.progress import progress
from eamb.training import emotion_maps
from eamb.training.interruption import Signals, Stopped, ignore_first_signal, locked
from eamb.training.optimizer import make_optimizer
from eamb.training.records import PREVIOUS, Records, checkpoints, refuse_another_run, warn_on_failure
from eamb.training.resuming import check_same_run, load_stopped, which_are_copies
from eamb.training.starting import build_network, read_sources
from eamb.training.tasks import Task, class_shifts
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Weights
from eamb.weights.registry import Network

SHOWN = ("train_loss", "val_srcc", "val_plcc", "val_accuracy", "val_rmse", "val_kl", "val_kl_ratio")
SHOWN += ("val_emotion_kl", "val_emotion_accuracy", "val_auc", "val_log_loss")


def train(
    task: Task,
    emotion_checkpoint: str | None = None,
    weights: str | None = None,
    output: Path | None = None,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Trains as the task's settings say, in the folder `output`.

    Args:
        emotion_checkpoint, weights: files of the emotion branch and of a whole network to start from.
        resume: continue the run in `output` where it stopped, if there is one. force: start over it.

    Raises:
        ValueError, FileNotFoundError: bad settings or data, in one sentence.
        OSError: the run has ended, and its last checkpoint could not be written.
        Stopped: SIGTERM or SIGINT was received; unless the message says otherwise, last.pt was written.
    """
    output = output or default_output(task)
    with distributed.session(task.config.train.device) as device, locked(output):
        engine.keep_memory(device)
        resume = distributed.broadcast(resume and bool(checkpoints(output)))
        if not (force or resume):
            refuse_another_run(output)
        last, stopped, state = load_stopped(output) if resume else (None, None, None)
        config = settle(task, device, state)
        if config.train.sync_batchnorm and (device.type != "cuda" or config.data.skip_broken):
            raise ValueError(
                f"training: train.sync_batchnorm needs CUDA (this run is on {device.type}) and does not go "
                "with --skip-broken: a process whose pictures are all broken would keep the others waiting"
            )
        sources = None if resume else read_sources(task, weights, emotion_checkpoint)
        no_test = not config.train.score_test and config.train.validate_on != "test"
        data = task.load(SPLITS[:2] if no_test else SPLITS)
        if distributed.is_main():
            print(*map(task.describe, data.values()), sep="\n", flush=True)
        if resume:
            files = {"weights": weights, "emotion_checkpoint": emotion_checkpoint}
            check_same_run(last, config, data, stopped, state, files | {"distill": config.data.distill})
            network = stopped.build().to(memory_format=torch.channels_last)
            ids = {"training_ids": stopped.training_ids, "emotion_training_ids": stopped.emotion_training_ids}
            origin = stopped.description["origin"] | ids
        else:
            network, origin = build_network(task, data["train"], sources)
        run = Run(task, output, device, data, network, origin)
        if resume:
            run.resume(last, state)
        if distributed.is_main():
            run.records.open(config, data, last, run.epoch)
        with run.signals, closing(run.records):
            if config.train.emotion_maps and task.has_emotion_branch:
                run.emotion_maps = emotion_maps.prepare(config, run.network, run.data["train"], run.compute)
            for epoch in range(run.epoch, config.train.epochs):
                with run.signals.deferred():
                    trained = train_epoch(run, epoch)
                validated = validate(run)
                with run.signals.deferred():
                    run.record(epoch, trained, validated)
            finish(run)


def settle(task: Task, device: torch.device, state: dict | None) -> Config:
    """The settings with train.precision=auto resolved: for this device, or as in the run being resumed; and
    without data.icc if the run being resumed is older than it."""
    train, data = task.config.train, task.config.data
    if state and "icc" not in state["config"]["data"] and data.icc:
        data = replace(data, icc=False)
        if distributed.is_main():
            print("data.icc=false, because this run began before colour profiles were converted", flush=True)
    asked = state["config"]["train"]["precision"] if state and train.precision == "auto" else train.precision
    precision = distributed.broadcast(choose_precision(asked, device))
    if train.precision == "auto" and distributed.is_main():
        print(f"train.precision=auto: {precision} on {device}", flush=True)
    task.config = replace(task.config, data=data, train=replace(train, precision=precision))
    return task.config


def default_output(task: Task) -> Path:
    """runs/<task>_<dataset>_<backbone>, for pairs with _<network> appended."""
    data, model = task.config.data, task.config.model
    network = f"_{model.network}" if model.network in PAIR_NETWORKS else ""
    return Path("runs") / f"{task.name}_{data.dataset}_{model.backbone}{network}"


@dataclass
class Best:
    """The best validation so far by `measure`; larger is better unless it is a divergence or a loss."""

    measure: str
    value: float = math.nan
    epoch: int = -1

    def update(self, epoch: int, metrics: dict[str, float]) -> bool:
        value = metrics[self.measure]
        better = value < self.value if self.measure in ("kl", "log_loss") else value > self.value
        first = math.isnan(self.value) and (self.epoch < 0 or not math.isnan(value))
        if better or first:
            self.value, self.epoch = value, epoch
        return better or first


class Run:
    """The state of a run, and how it is saved and resumed."""

    def __init__(
        self,
        task: Task,
        output: Path,
        device: torch.device,
        data: dict[str, RatedSet],
        network: Network,
        origin: dict,
    ):
        config, labels = task.config, {split: rated.labels_sha256 for split, rated in data.items()}
        if task.learns_emotions:
            emotions = network.arguments["emotions"]
            data = {split: with_emotions(rated, emotions) for split, rated in data.items()}
        self.task, self.config, self.output, self.device = task, config, output, device
        self.data, self.origin, self.signals = data, origin, Signals()
        rated = data["train"]
        scores = rated.scores[~np.isnan(rated.scores)]
        quantiles = np.quantile(scores, np.linspace(0, 1, 1001)) if len(scores) else []
        scale = rated.scale if task.name == "aesthetics" else None
        self.description = checkpoint.describe(network, scale) | {  # travels with the weights
            "dataset": rated.name,
            "protocol": rated.protocol,
            "splits": {name: part.sha256 for name, part in data.items()},
            "pictures": len(set(rated.ids)),
            "dealt": [part.name for part in rated.parts or (rated,) if part.dealt],
            "copies": {name: which_are_copies(part) for name, part in data.items()},
            "image_size": config.data.size,
            "exif": config.data.exif,
            "crop": config.data.crop,
            "icc": config.data.icc,
            "class_shift": class_shifts(config.loss, rated),
            "training_ratings": [round(float(value), 6) for value in quantiles],
            "origin": {name: value for name, value in origin.items() if not isinstance(value, np.ndarray)},
            "config": config.without_folders(),
            "versions": versions(),
            "labels": labels,
        }
        if config.train.sync_batchnorm:
            network = distributed.synchronise_batchnorm(network)
        if config.train.recompute:
            recompute_blocks(network)
        self.network = network.to(device)
        self.average = engine.Average(self.network, config.train.average) if config.train.average else None
        self.kept = self.average.network if self.average else self.network  # what is validated and kept
        self.optimizer = make_optimizer(config, self.network)
        self.backbones = checkpoint.learning_pyramids(self.network)
        named = [each for part in self.backbones for each in part.named_parameters()]
        self.pretrained = [p for name, p in named if p.requires_grad and not name.startswith(ADDED)]
        self.set_frozen(config.train.freeze_backbone > 0)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        mean, std = backbones.normalisation(config.model.backbone)
        self.compute = engine.Compute(device, config.train.precision, mean, std)
        self.epoch, self.totals = 0, engine.Totals()
        self.order(epoch=0)  # so that an impossible batch size fails before anything is written
        self.best = Best(task.best_measure(rated.scale))
        self.records, self.saved_at = Records(output), time.monotonic()
        self.emotion_maps: emotion_maps.EmotionMaps | None = None

    def set_frozen(self, frozen: bool) -> None:
        """Freezes the backbones' pretrained weights, or lets them learn."""
        self.frozen = frozen
        for parameter in self.pretrained:
            parameter.requires_grad_(not frozen)
        # Made anew each time: several processes wait for the gradients that were required when it was made.
        self.model = distributed.wrap(self.network, self.device, self.config.train.gradient_precision)
        if self.config.train.compile:
            # Only the training step: checkpoints and scoring use the network itself, under its own names.
            self.model = torch.compile(self.model)

    def order(self, epoch: int) -> TrainOrder:
        """The batches of an epoch that this process still has to train on."""
        draws, settings, done = self.data["train"].draws, self.config.train, self.totals.step
        processes = distributed.rank(), distributed.world()
        return TrainOrder(draws, settings.batch_size, settings.seed, epoch, done, *processes)

    def weights(self, network: Network) -> Weights:
        """Weights of the trained network or of the kept one (`kept`), with description and training ids."""
        ids = np.union1d(self.origin["training_ids"], self.data["train"].id_hashes)
        emotion_ids = self.origin["emotion_training_ids"]
        if self.task.learns_emotions:
            emotion_ids = np.union1d(emotion_ids, self.data["train"].id_hashes)
        description = {**self.description, "best": asdict(self.best)}
        return Weights(network.state_dict(), description, ids, emotion_ids)

    def resume(self, last: Path, state: dict) -> None:
        """Restores optimizer and progress of the run that stopped; the network has its weights already."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            checkpoint.load_tensors(self.average.network, state["average"], str(last))
            self.average.steps = state["average_steps"]
        self.epoch, self.best = state["epoch"], Best(**state["best"])
        self.totals = engine.Totals(**state["totals"][distributed.rank()])
        if distributed.is_main():
            print(f"resumed {last} at epoch {self.epoch + 1}, step {self.totals.step + 1}", flush=True)

    def save(self) -> None:
        """Writes last.pt, with all that resuming needs. No random states: all randomness is a function of
        seed, epoch and step. A full or failing disk does not end the run."""
        self.totals.read()
        totals = distributed.gather(asdict(self.totals))
        self.saved_at = time.monotonic()
        if not distributed.is_main():
            return
        state = {
            "config": self.config.as_dict(),
            "world": distributed.world(),
            "epoch": self.epoch,
            "totals": totals,
            "best": asdict(self.best),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.average:
            state |= {"average": self.average.network.state_dict(), "average_steps": self.average.steps}
        self.records.save(self.weights(self.network), state)

    def save_if_due(self) -> None:
        self.save_or_stop(time.monotonic() - self.saved_at > 60 * self.config.train.checkpoint_minutes)

    def save_or_stop(self, due: bool) -> None:
        """Writes last.pt if it is due, or if any process received a signal, which then ends all of them."""
        due, number = distributed.largest([int(due), self.signals.number], self.device)
        if due or number:
            self.save()
        if number:
            distributed.wait_for_all()  # torchrun kills the others as soon as one process ends
            raise Stopped(number)

    def record(self, epoch: int, trained: dict[str, float], validated: dict[str, float]) -> None:
        """Ends an epoch: writes a line of metrics.jsonl, TensorBoard, last.pt, and best.pt if it improved."""
        improved = self.best.update(epoch, validated)
        line = {"epoch": epoch, "learning_rate": trained.pop("learning_rate")}
        line |= {f"train_{name}": value for name, value in trained.items()}
        line |= {f"val_{name}": value for name, value in validated.items()}
        if distributed.is_main():
            self.records.add_epoch(epoch, line, self.weights(self.kept) if improved else None)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in line.items() if name in SHOWN)
            best = "  (best)" if improved else ""
            print(f"epoch {epoch + 1}/{self.config.train.epochs}  {shown}{best}", flush=True)
        self.epoch, self.totals = epoch + 1, engine.Totals()
        self.save()


def train_epoch(run: Run, epoch: int) -> dict[str, float]:
    """Trains the rest of an epoch, then writes last.pt; returns the means of `engine.train_one_epoch`."""
    config, rated, task = run.config, run.data["train"], run.task
    if run.frozen != (frozen := epoch < config.train.freeze_backbone):
        run.set_frozen(frozen)
    order, on_gpu = run.order(epoch), run.device.type == "cuda"
    workers, timeout = config.data.worker_count(), config.data.timeout
    loader = make_loader(task.pictures(rated), order, workers, pin_memory=on_gpu, timeout=timeout)
    loader.worker_init_fn, loader.while_waiting = ignore_first_signal, run.signals.stop_waiting
    start, started = time.monotonic(), run.totals.step
    schedule, base = config.optimizer.schedule, config.optimizer.learning_rate
    name, hidden = f"epoch {epoch + 1}/{config.train.epochs}", not distributed.is_main()
    with progress(total=len(order), initial=started, desc=name, unit="step", disable=hidden) as bar:

        def after_step(totals: engine.Totals) -> None:
            if run.average:
                run.average.update(run.network)
            if not totals.unread:
                bar.update(totals.step - bar.n)
                bar.set_postfix_str(f"loss {totals.loss / max(1, totals.pictures):.4f}", refresh=False)
            if not totals.unread or distributed.world() == 1:  # several processes check only after reading
                run.save_if_due()

        def kept_maps(batch: Batch) -> tuple[Tensor, Tensor]:
            index = batch.index.tolist()
            flipped = [config.data.flip and coin(config.train.seed, epoch, i) for i in index]
            return run.emotion_maps.read(index, flipped)

        plan = engine.Epoch(
            number=epoch,
            steps=len(order),
            seed=config.train.seed,
            rate=lambda done: engine.learning_rate(schedule, base, config.train.epochs, epoch, done),
            loss=task.loss(rated),
            ids=rated.ids,
            emotions=kept_maps if run.emotion_maps else None,
            accumulate=config.train.accumulate,
            clip=config.train.clip,
            log_every=config.train.log_every if on_gpu else 1,
            fixed=run.backbones if frozen or config.train.fixed_batchnorm else (),
        )
        means = engine.train_one_epoch(
            run.model, loader, run.optimizer, run.scaler, run.compute, plan, run.totals, after_step
        )
    run.save_or_stop(due=True)  # validation changes nothing, so a signal may end it anywhere
    if distributed.is_main() and run.totals.step > started:
        seconds = (time.monotonic() - start) / (run.totals.step - started)
        memory = engine.peak_memory(run.device)
        print(f"{seconds:.2f} s a step of {config.train.batch_size} {task.unit}, {memory:.1f} GB", flush=True)
    for kind in ("broken", "noted"):
        parts = distributed.gather(getattr(run.totals, kind))
        run.records.list_pictures(kind, rated, [LeftOut(*entry) for part in parts for entry in part])
    return means


def validate(run: Run) -> dict[str, float]:
    """Metrics on the validation pictures, without intervals; always in fp32."""
    data, rated = run.config.data, run.data[run.config.train.validate_on]
    compute, view = run.compute._replace(precision="fp32"), View(data.size, data.exif, data.crop, data.icc)
    network = Ensemble([TorchNetwork(run.kept, compute, view)])
    predictions = predict_set(network, rated, run.config)
    run.records.list_pictures("broken", rated, predictions.broken)
    run.records.list_pictures("noted", rated, predictions.noted)
    return run.task.validate(predictions, rated, run.description)


def finish(run: Run) -> None:
    """Draws the curves and evaluates the best weights once on test; with several sets, into test/SET/."""
    from eamb.evaluation.figures import save_curves

    if not distributed.gather(run.records.saved)[0]:
        raise OSError(
            f"training: the run has ended, and {run.records.last} could not be written; make room, then go "
            "on from the one before with --resume"
        )
    if distributed.is_main():
        (run.output / PREVIOUS).unlink(missing_ok=True)
        with warn_on_failure("curves.png was not written"):
            save_curves(run.output / "metrics.jsonl", run.output / "curves.png")
    best = checkpoint.load_weights(run.records.best_file)
    chosen = best.description["best"]
    if distributed.is_main():
        shown = f"epoch {chosen['epoch'] + 1}, {chosen['measure']} {chosen['value']:.4f}"
        print(f"\n{run.output}: best.pt ({shown}) last.pt metrics.jsonl curves.png", flush=True)
    if not run.config.train.score_test:
        return
    test = run.data["test"]
    network = Ensemble([TorchNetwork.load(best, run.device)])
    for rated in test.parts or (test,):
        report = evaluate(network, rated, run.task)
        folder = run.output / "test" / (rated.name if test.parts else "")
        if distributed.is_main():
            report.write(folder)
            print(f"\n{report}\n\n{folder}: {report.files}", flush=True)
