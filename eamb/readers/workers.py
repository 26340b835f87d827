"""The processes that decode pictures for a loader: how they are watched, hand over batches, and end."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, get_worker_info

SHM = "/dev/shm"  # noqa: S108
SHM_FULL = 28  # exit code of a decoding process that finds no room there
WAYS_OUT = f"use data.workers=0, or make {SHM} larger (docker run --shm-size=8g)"
WATCH = 5  # seconds without a batch after which a loader checks its processes


class WatchedLoader(DataLoader):
    """A DataLoader that watches its processes; torch's own waits without end for a batch that is lost.

    Args:
        workers: processes; 0: none, this one decodes.
        patience: seconds without a batch after which silent processes are given up; 0: never.
        options: of DataLoader.
    """

    def __init__(self, dataset: Dataset, collate: Callable, workers: int, patience: int, **options):
        shared, timeout = partial(collate_and_share, collate), WATCH if workers else 0
        super().__init__(dataset, num_workers=workers, collate_fn=shared, timeout=timeout, **options)
        self.patience = patience
        self.while_waiting: Callable[[], None] = lambda: None  # called every WATCH seconds without a batch

    def __iter__(self) -> Iterator[Any]:
        # Forked workers would share the memory that `engine.keep_memory` has kept, and this process would
        # copy each page before it writes there: gigabytes, and seconds, in the first step of each epoch.
        libc = ctypes.CDLL(None) if self.num_workers and sys.platform.startswith("linux") else None
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        yield from self.watched() if self.num_workers else super().__iter__()

    def watched(self) -> Iterator[Any]:
        """The batches of the processes; ChildProcessError: one has died, or all are silent for too long."""
        handler = signal.getsignal(signal.SIGCHLD) if signals_work() else None
        # Pinned batches leave shared memory at once; others fill it while the network computes, and a step
        # on a CPU may take longer than anyone should wait for the error.
        room = shutil.disk_usage(SHM).free if Path(SHM).exists() and not self.pin_memory else math.inf
        try:
            batches = super().__iter__()
        except OSError as error:
            raise ChildProcessError(
                f"datasets: data.workers={self.num_workers} processes cannot be started ({error}); {WAYS_OUT}"
            ) from error
        # torch's handler would raise the death of a process anywhere, even while a file is written.
        if signals_work():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        try:
            while True:
                try:
                    batch = self.receive(batches)
                except StopIteration:
                    return
                size = sum(value.nbytes for value in tree_leaves(batch) if isinstance(value, Tensor))
                if min(len(self), self.prefetch_factor * self.num_workers + 1) * size > room:
                    raise no_room(self.num_workers)
                room = math.inf
                yield batch
        finally:
            for worker in batches._workers:  # those that hang would not end otherwise
                worker.kill()

    def receive(self, batches: Iterator[Any]) -> Any:
        """The next batch; errors as `watched`."""
        workers, since = batches._workers, time.monotonic()

        def look(*_) -> None:
            check_alive(workers)
            self.while_waiting()
            if 0 < self.patience < time.monotonic() - since:
                raise ChildProcessError(
                    f"datasets: data.workers={len(workers)} processes sent nothing for {self.patience} s "
                    "(data.timeout); check that the disk with the pictures answers, or allow more time"
                )

        check_alive(workers)
        # A process that is stopped while it hands over a batch blocks this one.
        with called_every(WATCH, look):
            while True:
                try:
                    return next(batches)
                except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
                    if not str(error).startswith("DataLoader timed out"):
                        dying = connection.wait([worker.sentinel for worker in workers], timeout=1)
                        for worker in (each for each in workers if each.sentinel in dying):
                            worker.join()
                        check_alive(workers)
                        raise
                look()


def signals_work() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


@contextmanager
def called_every(seconds: float, function: Callable) -> Iterator[None]:
    """Calls the function every `seconds`, even while a system call blocks; never if signals do not work."""
    if not signals_work():
        yield
        return
    before = signal.signal(signal.SIGALRM, function)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_alive(workers: Sequence[BaseProcess]) -> None:
    """ChildProcessError: one of a loader's processes has failed."""
    code = next((worker.exitcode for worker in workers if worker.exitcode), 0)
    if not code:  # all are running (None) or have ended normally (0)
        return
    if code in (SHM_FULL, -getattr(signal, "SIGBUS", 0)) and Path(SHM).exists():
        raise no_room(len(workers))
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    raise ChildProcessError(
        f"datasets: one of data.workers={len(workers)} decoding processes {how}, perhaps for want of memory; "
        "try again with fewer, or with data.workers=0"
    )


def no_room(workers: int) -> ChildProcessError:
    size = shutil.disk_usage(SHM).total / 2**20
    return ChildProcessError(
        f"datasets: {SHM}, {size:,.0f} MB, is too small or full; data.workers={workers} processes hand over "
        f"their pictures through it: {WAYS_OUT}"
    )


def collate_and_share(collate: Callable, drawn: Sequence) -> Sequence:
    """The batch that `collate` makes; a decoding process also moves it to shared memory.

    torch would do that in a thread that loses the batch if there is no room.
    """
    batch = collate(drawn)
    for value in tree_leaves(batch) if get_worker_info() else ():
        if isinstance(value, Tensor) and value.numel():
            try:
                value.share_memory_()
            except RuntimeError as error:
                if f"({errno.ENOSPC})" not in str(error):
                    raise
                os._exit(SHM_FULL)  # unlike an error, noticed before the batches that are ready
    return batch
