"""What ends a training early: signals, which it obeys behind a step, and another run in its folder."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from eamb.runtime import distributed


class Stopped(KeyboardInterrupt):
    """A signal ended the run.

    code: the exit code that shells expect, 143 for SIGTERM, 130 for SIGINT.
    begun: whether the run's own checkpoints may lie in its folder, and none of a run before it.
    """

    def __init__(self, number: int, begun: bool = True):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code, self.begun = 128 + number, begun


ENDING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """SIGTERM and SIGINT while it is entered: they raise Stopped, inside `deferred` only at its end.

    A second one ends the process at once, until `done` says that there is nothing to wait for any more. The
    run sets `begun` as soon as its folder is its own.
    """

    entered: Signals | None = None

    def __init__(self):
        self.number, self.process = 0, os.getpid()
        self.waits = self.done = self.begun = False
        self.before: dict[int, Callable | int] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self.before = {number: signal.signal(number, self.handle) for number in ENDING}
            reader, self.writer = os.pipe()
            if os.name == "posix":
                os.set_blocking(self.writer, False)
            self.wakeup = signal.set_wakeup_fd(self.writer)
            Signals.entered = self
            threading.Thread(target=self.watch, args=[reader], daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self.before:
            signal.set_wakeup_fd(self.wakeup)
            Signals.entered = None
            os.close(self.writer)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, _frame) -> None:
        if self.number or os.getpid() != self.process:  # a forked decoding process is ended by its parent
            return
        self.number = number
        if hasattr(signal, "SIGCHLD"):  # torch's handler raises where a decoding process gets the signal too
            self.before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self.waits:
            raise Stopped(number, self.begun)

    def watch(self, reader: int) -> None:
        """Beside the training, whose own thread hears of a signal only when C++ code of a step returns."""
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


def forget_in_child() -> None:
    """A forked process must not write into its parent's pipe."""
    if Signals.entered:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_in_child)


def outlive_one_signal(_worker: int) -> None:
    """For decoding processes: a signal to all of a group reaches them too, and the last step needs them."""
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C; the parent ends it


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Keeps every other run out of the folder; a folder that is still empty at the end was not there before.

    Raises:
        ValueError: another run is at work in it; names its process.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"interruption: --output must be a folder; {output} is a file")
    lock = None
    if distributed.is_main():
        new = not output.exists()
        output.mkdir(parents=True, exist_ok=True)
        lock = lock_file(output / ".lock")
    holder = distributed.gather(lock if isinstance(lock, str) else "")[0]
    if holder:
        raise ValueError(
            f"interruption: {output} is in use by another run ({holder}); wait for its end or choose another "
            "--output"
        )
    try:
        yield
    finally:
        if lock:
            (output / ".lock").unlink(missing_ok=True)
            lock.close()
            if new:
                with suppress(OSError):  # not empty: the run has begun
                    output.rmdir()


def lock_file(path: Path) -> TextIO | str | None:
    """The file, locked until it is closed or this process ends, however. If another process has it: who.

    None where files cannot be locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by forked processes
    except (BlockingIOError, PermissionError):
        with file:
            file.seek(0)
            return file.read() or "which has just begun"
    except OSError as error:
        file.close()
        path.unlink(missing_ok=True)
        print(
            f"warning: interruption: cannot lock {path} ({error}); start no other run there", file=sys.stderr
        )
        return None
    if not os.fstat(file.fileno()).st_nlink:
        file.close()
        return lock_file(path)  # its holder ended, and removed it, just now
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return file
