"""What ends a training early: signals, which it obeys after a step, and another run in its folder."""

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

ENDING = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal ended the run.

    code: the exit code that shells expect, 143 for SIGTERM, 130 for SIGINT.
    begun: whether the run's own checkpoints may lie in its folder, and none of a run before it.
    """

    def __init__(self, number: int, begun: bool = True):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code, self.begun = 128 + number, begun


class Signals:
    """Turns SIGTERM and SIGINT into Stopped while it is entered; inside `deferred` only at its end.

    A second signal ends the process at once, until the run sets `done`: nothing is left to wait for then. The
    run sets `begun` as soon as its folder is its own.
    """

    def __init__(self):
        self.number = 0  # of the signal that came
        self.waits = self.done = self.begun = False
        self.handlers: dict[int, Callable | int] = {}  # of before

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self.handlers = {number: signal.signal(number, self.handle) for number in ENDING}
            reader, self.writer = os.pipe()
            if os.name == "posix":
                os.set_blocking(self.writer, False)
            self.wakeup = signal.set_wakeup_fd(self.writer)
            register_after_fork(self, leave_signals_to_parent)
            threading.Thread(target=self.watch, args=[reader], daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self.handlers:
            signal.set_wakeup_fd(self.wakeup)
            os.close(self.writer)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def handle(self, number: int, _frame) -> None:
        if self.number:
            return
        self.number = number
        if hasattr(signal, "SIGCHLD"):  # torch's handler raises where a decoding process gets the signal too
            self.handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self.waits:
            raise Stopped(number, self.begun)

    def watch(self, reader: int) -> None:
        """In a thread of its own: the training's hears of a signal only when C++ code of a step returns."""
        first = 0.0
        while got := os.read(reader, 1):
            if got[0] not in ENDING or self.done:
                continue
            if first:
                # torchrun sends on what it gets, and a scheduler may have sent it to all processes itself.
                if distributed.world() == 1 or time.monotonic() > first + 1:
                    os._exit(128 + got[0])
                continue
            first = time.monotonic()
            if self.waits and distributed.is_main():
                text = "\nfinishing this step, then writing last.pt; a second signal ends at once"
                print(text, file=sys.stderr, flush=True)
        os.close(reader)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        if self.number:
            raise Stopped(self.number, self.begun)


def leave_signals_to_parent(_signals: Signals) -> None:
    """For each process that multiprocessing forks: its signals are not its parent's, which ends it itself."""
    signal.set_wakeup_fd(-1)  # the parent's pipe
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def ignore_first_signal(_worker: int) -> None:
    """For decoding processes: a signal to all of a group reaches them too, and the last step needs them."""
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C; the parent ends it


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps every other run out of the folder, until this process ends, however; leaves no new folder empty.

    Raises:
        ValueError: another run is at work in it; names its process.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"interruption: --output must be a folder; {output} is a file")
    new, path, holder = not output.exists(), output / ".lock", ""
    lock = FileLock(path, fallback_to_soft=False)  # a soft one would outlast a killed process
    if distributed.is_main():
        output.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with suppress(OSError):  # it has just ended
                holder = path.read_text(encoding="utf-8")
            holder = holder or "which has just begun"
        except OSError as error:
            if isinstance(error, PermissionError) or not path.exists():
                raise  # the folder cannot be written to
            path.unlink()
            text = f"warning: interruption: cannot lock {path} ({error}); start no other run there"
            print(text, file=sys.stderr)
        else:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            path.write_text(
                f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8"
            )
    if holder := distributed.gather(holder)[0]:
        raise ValueError(
            f"interruption: {output} is in use by another run ({holder}); wait for its end or choose another "
            "--output"
        )
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)
            lock.release()
        if new and distributed.is_main():
            with suppress(OSError):  # not empty: the run has begun
                output.rmdir()
