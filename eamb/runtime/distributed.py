"""The only module that imports torch.distributed. With one process, everything here is a no-op.

Started by torchrun, every process has a rank; gloo connects them on CPU, nccl on CUDA.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


def choose_device(name: str, option: str = "train.device") -> torch.device:
    """'auto', 'cpu', 'cuda', 'cuda:1' or 'mps' -> the device of this process.

    Raises ValueError if it is unknown or missing, and lists the values that `option` can have here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        here = [f"cuda:{i}" if kind == "cuda" else kind for kind, n in count.items() for i in range(n)]
        here = ", ".join(["auto", *here])
        raise ValueError(f"distributed: device '{name}' is unknown or not here; choose {option} from {here}")
    return device


@contextmanager
def session(device_name: str) -> Iterator[torch.device]:
    """Connects the processes that torchrun started, while the context lasts; yields this one's device.

    Raises:
        ValueError: as `choose_device`.
        ConnectionError: the connection to another process is lost.
    """
    device = choose_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            store, rank, world = next(dist.rendezvous("env://"))
            # After a restart torchrun's store still holds the addresses of dead processes (torch 2.14), and
            # connecting to one hangs. torchrun's restart count will not do as a prefix: each machine counts
            # for itself. So the processes themselves count: each adds 1 here at every start.
            start = (store.add("starts", 1) - 1) // world
            store = dist.PrefixStore(f"start {start}", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        yield device
        wait_for_all()  # no process leaves while another still communicates with it
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
    """The model, averaging its gradients over all processes; "bf16" rounds them to bfloat16 first."""
    if world() == 1:
        return model
    wrapped = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    if gradient_precision == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def synchronise_batchnorm(model: nn.Module) -> nn.Module:
    """The model with BatchNorm over the pictures of all processes; trains on CUDA only."""
    if world() == 1:
        return model
    from timm.layers import convert_sync_batchnorm  # torch's own loses the activation inside timm's layers

    return convert_sync_batchnorm(model)


def total(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in place."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def largest(values: list[int], device: torch.device) -> list[int]:
    """The maximum of each value over all processes; waits for them, and for the device."""
    if world() == 1:
        return values
    maxima = torch.tensor(values, device=device)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def share_buffers(model: nn.Module) -> None:
    """Copies the first process's BatchNorm statistics to all, so that all evaluate the same network."""
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
    return gather(value)[0]
