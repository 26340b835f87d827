"""Signals that end training after the current step, and the lock on a run's folder against other runs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import register_after_fork
from pathlib import Path

from filelock import FileLock, Timeout

from eamb.runtime import distributed
from eamb.runtime.command import check_output

ENDING = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 15  # seconds that a step may wait for pictures after a signal; many schedulers kill after 30


class Stopped(KeyboardInterrupt):
    """A signal ended the run; `code` is the exit code that shells expect, 143 for SIGTERM, 130 for SIGINT."""

    def __init__(self, number: int, how: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{how}")
        self.code = 128 + number


class Signals:
    """A context in which SIGTERM and SIGINT raise Stopped; inside `deferred` only when that block ends.

    A second signal ends the process at once, even inside C++ code that never returns.
    """

    def __init__(self):
        self.number = 0  # of the first signal received, or 0
        self.waits = False
        self.handlers: dict[int, Callable | int] = {}  # to be restored

    def __enter__(self) -> Signals:
        self.process = os.getpid()
        self.handlers = {number: signal.signal(number, self.handle) for number in ENDING}
        reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.wakeup = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        register_after_fork(self, lambda _: signal.set_wakeup_fd(-1))  # not in decoding processes
        threading.Thread(target=self.watch, args=[reader], daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        signal.set_wakeup_fd(self.wakeup)
        self.writer.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def handle(self, number: int, _frame) -> None:
        if self.number or os.getpid() != self.process:
            return  # the parent ends its decoding processes
        self.number, self.since = number, time.monotonic()
        if not self.waits:
            raise Stopped(number)

    def watch(self, reader: socket.socket) -> None:
        """Runs in its own thread, because Python calls `handle` only when a step's C++ code returns."""
        first = 0.0
        with reader:
            while got := reader.recv(1):  # the number of any signal
                if got[0] not in ENDING:
                    continue
                if not first:
                    first = time.monotonic()
                    if self.waits and distributed.is_main():
                        os.write(
                            2, b"\nfinishing this step, then writing last.pt; a second signal ends at once\n"
                        )
                # torchrun forwards signals, and a scheduler may have sent the same one to all processes.
                elif distributed.world() == 1 or time.monotonic() > first + 1:
                    os._exit(128 + got[0])

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        if self.number:
            raise Stopped(self.number)

    def stop_waiting(self) -> None:
        """Called while a step waits for pictures: after a signal ends the run, as they may never come."""
        if self.number and time.monotonic() > self.since + PATIENCE:
            raise Stopped(self.number, " while waiting for pictures, without writing last.pt")


def ignore_first_signal(_worker: int) -> None:
    """Run in each decoding process: a signal to the process group reaches it, but the last step needs it."""
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C; the parent ends it


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Locks the folder against other runs; on leaving, removes folders it made that are still empty.

    Raises:
        ValueError: another run uses the folder; the message names its process.
        OSError: nothing can be written there.
    """
    check_output("interruption", output)
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    path, holder = output / ".lock", ""
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlast a killed process
    if distributed.is_main():
        output.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", "utf-8")
        except Timeout:
            holder = path.read_text("utf-8") or "which has just begun"
        except PermissionError as error:
            raise ValueError(
                f"interruption: {path} belongs to another user, whose run may be using the folder; choose "
                "another --output"
            ) from error
        except OSError as error:  # some file systems have no locks
            path.unlink(missing_ok=True)
            print(
                f"warning: interruption: cannot lock {path} ({error}); start no other run there",
                file=sys.stderr,
            )
    if holder := distributed.gather(holder)[0]:
        raise ValueError(
            f"interruption: {output} is in use by another run ({holder}); wait until it ends, or choose "
            "another --output"
        )
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)
            lock.release()
        if distributed.is_main():
            with suppress(OSError):  # not empty: the run has begun
                for folder in new:
                    folder.rmdir()
