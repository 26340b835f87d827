"""The only file that imports torch.distributed. Alone, everything here is a no-op.

Started by torchrun, every process has a rank; gloo joins them on CPU, nccl on CUDA.
"""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def choose_device(name: str) -> torch.device:
    """'auto', 'cpu', 'cuda', 'cuda:1' or 'mps' -> the device of this process.

    Raises:
        ValueError: the name is unknown or the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"distributed: unknown device '{name}'; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ValueError(
            f"distributed: device '{name}' is not on this machine; train.device=cpu always works"
        )
    return device


def name_of_this_start(store: dist.Store, rank: int, world: int) -> str:
    """A name that the processes of this start share and no earlier start had, for the prefix of all keys.

    Where torchrun starts anew, its store still holds the addresses of processes that have died (torch 2.14),
    and who connects to one of those fails or waits. torchrun's own count of restarts will not do: each
    machine counts for itself. Process 0 draws the name and answers the others' questions. A question is a
    number that was just drawn, so that nobody takes an old answer for the one to it; but the store may also
    hold the question of a process that has died, and so process 0 goes on until its answer is confirmed.

    Raises:
        ConnectionError: a process does not come within the store's time.
    """
    drawn = uuid.uuid4().hex
    if rank:
        store.set(f"question/{rank}", drawn)
        store.add(f"asked/{rank}", 1)
        name = store.get(f"answer/{drawn}").decode()  # waits
        store.add(f"{name}/confirmed/{rank}", 1)
        return name
    end = time.monotonic() + store.timeout.total_seconds()
    for other in range(1, world):
        while not store.add(f"{drawn}/confirmed/{other}", 0):
            if store.add(f"asked/{other}", 0):
                store.set(f"answer/{store.get(f'question/{other}').decode()}", drawn)
            if time.monotonic() > end:
                raise ConnectionError(
                    f"distributed: process {other} of {world} never came; start it, or look for its own error"
                )
            time.sleep(0.02)
    return drawn


@contextmanager
def session(device_name: str) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, while the context lasts; gives this one's device.

    Raises:
        ValueError: as `choose_device`.
        ConnectionError: another process has ended.
    """
    device = choose_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            store, rank, world = next(dist.rendezvous("env://"))
            store = dist.PrefixStore(name_of_this_start(store, rank, world), store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        yield device
        wait_for_all()  # none leaves while another still talks to it
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        lost = f"process {os.environ.get('RANK', 0)} lost another, whose own error says why it has ended"
        raise ConnectionError(f"distributed: {lost} ({' '.join(str(error).split())})") from error
    finally:
        if dist.is_initialized():
            gc.collect()  # a DDP model is a reference cycle; freed after its group, it can abort the process
            dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device, gradient_precision: str = "fp32") -> nn.Module:
    """The model, averaging its gradients over all processes.

    Args:
        gradient_precision: "bf16" sends half the bytes; gradients are rounded to 8 bits before the sum, the
            weights and the optimizer stay in float32.
    """
    if world() == 1:
        return model
    wrapped = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    if gradient_precision == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def synchronise_batchnorm(model: nn.Module) -> nn.Module:
    """The model with BatchNorm layers that use the statistics of all processes' pictures; the same weights.

    Trains on CUDA only: torch has no such layer for a CPU.
    """
    if world() == 1:
        return model
    from timm.layers import convert_sync_batchnorm  # torch's own loses the activation inside timm's layers

    return convert_sync_batchnorm(model)


def without_sync(model: nn.Module, last: bool) -> AbstractContextManager:
    """A context in which gradients stay with their process, unless this is the last of several batches."""
    return model.no_sync() if world() > 1 and not last else nullcontext()


def total(values: Tensor) -> Tensor:
    """The sum of every process's values, in place."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def largest(values: list[int], device: torch.device) -> list[int]:
    """Of each value the largest that any process gives; waits for all of them, and for the device."""
    if world() == 1:
        return values
    maxima = torch.tensor(values, device=device)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def share_buffers(model: nn.Module) -> None:
    """Gives every process the BatchNorm statistics of the first, so that all evaluate the same network."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wait_for_all() -> None:
    if world() > 1:
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks, on every process."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """The first process's value, on every process."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]
