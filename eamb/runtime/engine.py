"""Training one epoch, predicting a set, and the learning rate as a pure function.

Every random choice is a function of (seed, epoch, step or index), so a resumed training equals one that never
stopped; every picture is predicted once, in batches of one shape, so one process and many agree exactly.
"""

from __future__ import annotations

import copy
import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eamb.network.outputs import PRECISIONS, Output
from eamb.readers.decoding import normalise
from eamb.runtime import distributed

if TYPE_CHECKING:  # these load pandas, which scoring pictures does not need
    from datasets import Batch
    from eamb.readers.rated import LeftOut
    from eamb.runtime.networks import Ensemble


class Compute(NamedTuple):
    """Where and how a network runs: the device, "fp32", "bf16" or "fp16", and its backbone's mean and std."""

    device: torch.device
    precision: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def autocast(self):
        kind = PRECISIONS[self.precision]
        return nullcontext() if kind == torch.float32 else torch.autocast(self.device.type, kind)

    def images(self, batch: Batch) -> Tensor:
        """The loader's uint8 (N, 3, H, W) -> normalised float32 on the device, channels last in memory."""
        images = batch.images.to(self.device, non_blocking=True)
        return normalise(images.contiguous(memory_format=torch.channels_last), self.mean, self.std)


def learning_rate(schedule: str, base: float, epochs: int, epoch: int, fraction: float) -> float:
    """The learning rate at `fraction` (0 to 1) of an epoch (from 0).

    ava, para and series are the official recipes, which fall in steps; constant is base.
    one_cycle: from base / 25 up to base over the first fifth of the training, then a half cosine down to
        base / 1e4.
    """
    if schedule == "one_cycle":
        done, warmup = (epoch + fraction) / epochs, 0.2
        low, position = base / 1e4, (done - warmup) / (1 - warmup)
        if done < warmup:
            low, position = base / 25, 1 - done / warmup
        return low + (base - low) * (1 + math.cos(math.pi * position)) / 2
    power = {"ava": max(0, epoch - 2), "para": epoch // 10, "series": epoch // 25}.get(schedule, 0)
    return base * (0.3 if schedule == "series" else 0.5) ** power


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("factor", 1.0)


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """One seed for the random numbers (dropout) of one step of one process."""
    return int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1, np.uint64)[0]) >> 1


@dataclass(frozen=True)
class Epoch:
    """What stays the same during an epoch.

    emotions: the emotion branch's logits (N, E) and maps (N, 1, h, w) for a batch, if already computed.
    """

    number: int  # from 0
    steps: int  # batches of the whole epoch, even if part of it was trained before an interruption
    seed: int
    rate: Callable[[float], float]  # the learning rate at a fraction (0 to 1) of the epoch
    loss: Callable[[Output, Batch], Tensor]  # a scalar from the network's output, on the device
    ids: Sequence[str]  # of all pictures by index, for an error
    emotions: Callable[[Batch], tuple[Tensor, Tensor]] | None = None
    accumulate: int = 1  # batches per optimizer step; the last step of an epoch takes what is left
    clip: float = 0.0  # largest gradient norm; 0: no clipping
    log_every: int = 1  # optimizer steps between two readings of the loss, each of which waits for the device
    fixed: Sequence[nn.Module] = ()  # parts of the network that stay in evaluation mode


@dataclass
class Totals:
    """The sums of an epoch so far; plain values, so that a checkpoint in mid-epoch can keep them."""

    step: int = 0
    loss: float = 0.0
    pictures: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    noted: list[tuple[str, str]] = field(default_factory=list)  # damaged files that were read all the same

    def __post_init__(self):
        self.unread: list[tuple[str, Tensor, int, str]] = []  # what, its value, number of pictures, where

    def add(self, batch: Batch) -> None:
        self.pictures += len(batch.images)
        self.broken += [tuple(entry) for entry in batch.broken]
        self.noted += [tuple(entry) for entry in batch.noted]

    def read(self) -> None:
        """Adds the losses that are still on the device; FloatingPointError: one, or a norm, is not finite."""
        unread, self.unread = self.unread, []
        for what, tensor, pictures, where in unread:
            if not math.isfinite(value := tensor.item()):
                raise FloatingPointError(
                    f"engine: the {what} is {value} {where}; the weights stay as they were. A lower "
                    "optimizer.learning_rate, train.clip=1 or train.precision=fp32 usually helps"
                )
            self.loss += value * pictures  # in float64, batch by batch

    def means(self) -> dict[str, float]:
        """Over all processes: mean loss (NaN without pictures), number of pictures and of broken ones."""
        self.read()
        parts = distributed.gather((self.loss, self.pictures, len(self.broken)))
        loss, pictures, broken = (sum(values) for values in zip(*parts, strict=True))
        return {"loss": loss / pictures if pictures else math.nan, "pictures": pictures, "broken": broken}


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    compute: Compute,
    epoch: Epoch,
    totals: Totals,
    after_step: Callable[[Totals], None] = lambda totals: None,
) -> dict[str, float]:
    """Trains on what the loader gives, from the epoch's batch number `totals.step` on; changes `totals`.

    Args:
        after_step: called after each optimizer step; at each `epoch.log_every`-th, all losses have been read.

    Returns:
        loss (mean over the pictures of all processes), pictures, broken, learning_rate (the last).

    Raises:
        FloatingPointError: a loss or gradient is NaN or infinite; the weights are those before that step.
    """
    set_training(model, epoch)
    log_every = epoch.log_every if optimizer.defaults.get("fused") else 1  # others cannot skip a step
    # A GPU waits when Python reads a number from it. Between two readings `finite` guards the weights: a bad
    # loss or gradient makes it and all later gradients NaN, and where `found_inf` is 1 no step is made.
    finite = torch.ones((), device=compute.device)
    for batch in loader:
        step, position = totals.step, totals.step % epoch.accumulate
        group = min(epoch.accumulate, position + epoch.steps - step)  # batches in this optimizer step
        set_rate(optimizer, rate := epoch.rate((step - position) / epoch.steps))
        torch.manual_seed(step_seed(epoch.seed, epoch.number, step, distributed.rank()))
        last, count = position + 1 == group, len(batch.images)
        with model.no_sync() if distributed.world() > 1 and not last else nullcontext():
            loss = forward_loss(model, batch, compute, epoch)
            finite = finite + 0 * loss.detach()
            # Broken files leave processes with unequal numbers of pictures; each picture counts the same.
            everywhere = distributed.total(torch.full((), float(count), device=compute.device))
            weight = count * distributed.world() / everywhere.clamp(min=1)
            scaler.scale(loss * finite * weight / group).backward()
        names = ", ".join(epoch.ids[i] for i in batch.index.tolist())
        where = f"at step {step + 1} of epoch {epoch.number + 1}, learning rate {rate:g} (pictures {names})"
        totals.unread.append(("loss", loss.detach(), count, where))
        totals.step = step + 1
        totals.add(batch)
        if not last:
            continue
        if epoch.clip or not scaler.is_enabled():
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), epoch.clip or math.inf)
        if not scaler.is_enabled():  # fp16's scaler skips steps with infinite gradients itself
            totals.unread.append(("norm of the gradients", norm, 0, where))
            finite = finite + 0 * norm
            optimizer.found_inf = finite.isnan().float() if log_every > 1 else None
        if math.ceil(totals.step / epoch.accumulate) % log_every == 0 or totals.step == epoch.steps:
            totals.read()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        after_step(totals)
    return totals.means() | {"learning_rate": optimizer.param_groups[-1]["lr"]}


def set_training(model: nn.Module, epoch: Epoch) -> None:
    model.train()
    for part in epoch.fixed:
        part.eval()


def forward_loss(model: nn.Module, batch: Batch, compute: Compute, epoch: Epoch) -> Tensor:
    allow_tf32(True, compute.device)
    if not len(batch.images):  # all broken; other processes still expect this one's gradients
        model.eval()  # a black picture must not enter BatchNorm's statistics
        output = model(compute.images(filled_up(batch, 1)))
        set_training(model, epoch)
        return 0 * (output.prediction.sum() + output.emotion_logits.sum())
    emotions = ()
    if epoch.emotions:
        emotions = (tuple(v.to(compute.device, non_blocking=True) for v in epoch.emotions(batch)),)
    batch = to_device(batch, compute.device)
    with compute.autocast():
        return epoch.loss(model(compute.images(batch), *emotions), batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with images and ratings on the device; ratings as float32, which all devices support."""

    for name, value in batch._asdict().items():
        if isinstance(value, Tensor) and name != "index":
            value = value.float() if value.dtype == torch.float64 else value
            batch = batch._replace(**{name: value.to(device, non_blocking=True)})
    return batch


def allow_tf32(allowed: bool, device: torch.device) -> None:
    """Whether CUDA may multiply float32 values in TF32, which is less exact: only training may."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


class Average:
    """A moving average of a network's weights and statistics over the optimizer's steps (Polyak averaging).

    Each step keeps the share `decay` of the average, but at most (1 + step) / (10 + step): otherwise the
    initial random weights would dominate it for a long time.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay, self.steps = copy.deepcopy(network).eval(), decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        average = self.network.state_dict()
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)


@dataclass(frozen=True)
class Predictions:
    """The predictions of a set, one row per picture that could be read, in the order of the set.

    members: (n, M, K) float64, of each of M networks, of which `prediction` is the mean; None if unknown.
    noted: the pictures whose files have a defect that did not prevent decoding, sorted by id.
    """

    index: np.ndarray  # (n,) int64 rows of the RatedSet
    prediction: np.ndarray  # (n, K) float64, raw as in `Output`; `Scale.value` reads it
    emotion: np.ndarray  # (n, E) float64, probabilities
    broken: list[LeftOut]  # the pictures that could not be decoded, sorted by id
    members: np.ndarray | None = None
    noted: Sequence[LeftOut] = ()


def predict(network: Ensemble, loader: Iterable[Batch], batch_size: int) -> Predictions:
    """Predicts every picture of the loader once; gathered over all processes, however many."""
    rows = []
    for batch, output in network.outputs(loader, batch_size):
        emotion = output.emotion_logits.softmax(dim=1)
        arrays = (batch.index, output.prediction, emotion, output.members)
        rows.append((*(array.numpy() for array in arrays), batch.broken, batch.noted))
    rows = [row for part in distributed.gather(rows) for row in part]
    index, prediction, emotion, members = (np.concatenate([row[i] for row in rows]) for i in range(4))
    order = np.argsort(index)
    broken, noted = (sorted(entry for row in rows for entry in row[i]) for i in (4, 5))
    return Predictions(
        index[order], prediction[order], emotion[order].astype(float), broken, members[order], noted
    )


def outputs(
    model: nn.Module, loader: Iterable[Batch], compute: Compute, batch_size: int
) -> Iterator[tuple[Batch, Output]]:
    """Each batch with the network's output for it, float32 on the CPU."""
    model.eval()
    allow_tf32(False, compute.device)
    for batch in loader:
        count = len(batch.images)
        with torch.inference_mode(), compute.autocast():
            output = model(compute.images(filled_up(batch, batch_size)))
        yield batch, Output(*(value[:count].float().cpu() for value in output))


def filled_up(batch: Batch, batch_size: int) -> Batch:
    """The batch padded with black pictures to (batch_size, 3, H, W).

    A batch's shape decides which kernels run, and with them the last digits; a picture's score should not
    depend on how many others are in its batch.
    """
    empty = batch.images.new_zeros(batch_size - len(batch.images), *batch.images.shape[1:])
    return batch._replace(images=torch.cat([batch.images, empty]))


def keep_memory(device: torch.device) -> None:
    """On a CPU makes glibc keep freed memory, instead of returning each large tensor to the kernel, which
    would take up to half of a training step (docs/performance.md)."""
    if device.type == "cpu" and sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor is mapped on its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        mallopt(-8, 1)  # M_ARENA_MAX


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process so far, in GB: the GPU's if it runs on one; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
