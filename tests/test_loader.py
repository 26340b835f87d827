"""A loader whose processes die, find no room or fall silent ends with a sentence. With real processes."""

import ctypes
import errno
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SHORT, WORDS, evaluate, train, write_pictures

from datasets import PictureSet, TestOrder, make_loader
from eamb.network.outputs import Scale
from eamb.readers import workers
from eamb.readers.rated import RatedSet
from eamb.training import interruption
from tests.stress.training import forkserver
from tests.stress.training import train as train_in_process

NO_NAMESPACE = 77
NO_ROOM = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(workers, "WATCH", 0.2)
    yield
    gc.collect()  # a loader that died in a test would be cleaned up in a process of the next one


@dataclass(eq=False)
class Troubled(PictureSet):
    """Where a picture is to be decoded in a process, something happens from the picture `start` on."""

    trouble: str = ""
    start: int = 4

    def __getitem__(self, draw):
        if draw >= self.start and multiprocessing.parent_process():
            do(self.trouble)
        return super().__getitem__(draw)


def do(trouble: str) -> None:
    if trouble.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, trouble))
    elif trouble == "sleep":
        time.sleep(1000)
    elif trouble == "slow":
        time.sleep(0.08)
    elif trouble == "exit":
        os._exit(3)
    elif trouble == "bug":
        raise RuntimeError("a bug of ours")
    elif trouble == "no room":
        torch.Tensor.share_memory_ = no_room


def no_room(_tensor):
    raise RuntimeError(NO_ROOM)


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    names = write_pictures(folder, 12)
    paths = [str(folder / name) for name in names]
    scale = Scale("score", 1, 5, 3, offset=1, factor=4)
    return RatedSet("csv", "train", "made here", names, paths, np.linspace(1, 5, 12), scale)


def assert_none_is_left():
    for process in multiprocessing.active_children():
        process.join(10)
    assert multiprocessing.active_children() == []


def troubled(rated, trouble: str, **options):
    """A loader of six batches, and what becomes of it: how many came, and the error."""
    loader = make_loader(Troubled(rated, 32, trouble=trouble), TestOrder(12, 2), 2, **options)
    batches, handler = [], signal.getsignal(signal.SIGCHLD)
    with pytest.raises((ChildProcessError, RuntimeError)) as caught:
        batches.extend(loader)
    assert_none_is_left()
    assert signal.getsignal(signal.SIGCHLD) == handler
    return len(batches), caught.value


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (
            "SIGKILL",
            "one of data.workers=2 decoding processes was ended by SIGKILL, perhaps for want of memory",
        ),
        ("exit", "one of data.workers=2 decoding processes ended with code 3"),
        ("SIGBUS", "hand over their pictures through it: use data.workers=0, or make /dev/shm larger"),
        ("no room", "hand over their pictures through it: use data.workers=0, or make /dev/shm larger"),
    ],
)
def test_a_process_that_dies_or_finds_no_room_is_one_sentence(rated, trouble, words):
    count, error = troubled(rated, trouble)
    assert count <= 2 and isinstance(error, ChildProcessError)
    assert words in str(error) and "data.workers=0" in str(error) and "\n" not in str(error)
    assert str(error).startswith("datasets: ")


def test_a_process_that_is_killed_between_two_batches_is_noticed_before_the_next(rated):
    batches = iter(make_loader(PictureSet(rated, 32), TestOrder(12, 2), 2))
    next(batches)
    victim = multiprocessing.active_children()[0]
    victim.kill()  # nothing is raised here, where a checkpoint may be being written
    victim.join()
    with pytest.raises(ChildProcessError, match="was ended by SIGKILL"):
        next(batches)


def test_silent_processes_are_given_up_after_the_timeout(rated):
    count, error = troubled(rated, "sleep", timeout=1)
    assert (count, type(error)) == (2, ChildProcessError)
    assert str(error) == (
        "datasets: data.workers=2 processes sent nothing for 1 s (data.timeout); check that the disk "
        "with the pictures answers, or allow more time"
    )


def test_a_process_that_is_halted_is_given_up_too(rated):
    """It may have announced a batch already, which this process then asks it for."""
    batches = iter(make_loader(PictureSet(rated, 32), TestOrder(12, 2), 2, timeout=1))
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)
    with pytest.raises(ChildProcessError, match="sent nothing for 1 s"):
        list(batches)
    assert_none_is_left()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("timeout", [30, 0])
def test_slow_processes_are_waited_for(rated, timeout):
    loader = make_loader(Troubled(rated, 32, trouble="slow"), TestOrder(12, 4), 1, timeout=timeout)
    waited = []
    loader.while_waiting = lambda: waited.append(1)
    assert [batch.index.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert waited


@pytest.mark.parametrize(("batches_of_room", "enough"), [(5, True), (4.9, False)])
def test_too_little_shared_memory_is_noticed_with_the_first_batch(
    rated, monkeypatch, batches_of_room, enough
):
    """Two processes have two batches ready each, while this one uses another."""
    one = 2 * (3 * 32 * 32 + 8 + 8)  # bytes: pixels, index and score of two pictures
    usage = shutil.disk_usage(workers.SHM)._replace(free=batches_of_room * one)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage)
    loader = make_loader(PictureSet(rated, 32), TestOrder(12, 2), 2)
    if enough:
        assert len(list(loader)) == 6
    else:
        with pytest.raises(ChildProcessError, match=r"MB, is too small or full"):
            next(iter(loader))
    few = make_loader(PictureSet(rated, 32), TestOrder(8, 2), 2)
    assert len(list(few)) == 4  # all there are have room


def test_an_error_of_our_own_in_a_process_keeps_its_traceback(rated):
    _, error = troubled(rated, "bug")
    assert isinstance(error, RuntimeError) and "a bug of ours" in str(error) and "__getitem__" in str(error)


def test_processes_that_cannot_be_started_are_one_sentence(rated, monkeypatch):
    def refuse(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workers.DataLoader, "__iter__", refuse)
    with pytest.raises(
        ChildProcessError, match=r"workers=1 processes cannot be started .*No space.* /dev/shm"
    ):
        list(make_loader(PictureSet(rated, 32), TestOrder(12, 2), 1))


# ---- whole commands


def die(pictures, draw):
    """In place of PictureSet.__getitem__."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_command_ends_with_that_sentence(
    score_run, scored_set, emotion_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(PictureSet, "__getitem__", die)
    branch = ["--emotion-checkpoint", emotion_run / "best.pt", "data.workers=1"]
    said = "error: datasets: one of data.workers=1 decoding processes was ended by SIGKILL"
    assert train("csv", scored_set, tmp_path / "run", *branch) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    maps = f"train.emotion_maps={tmp_path / 'maps'}"
    assert train("csv", scored_set, tmp_path / "with maps", *branch, maps) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    assert evaluate(score_run / "best.pt", "csv", scored_set, tmp_path / "report", "data.workers=1") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_a_signal_ends_a_training_that_waits_for_pictures(scored_set, tmp_path, monkeypatch, capsys):
    def hear_and_sleep(pictures, draw):
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)

    monkeypatch.setattr(interruption, "PATIENCE", 0.5)
    monkeypatch.setattr(PictureSet, "__getitem__", hear_and_sleep)
    assert train("csv", scored_set, tmp_path / "run", *SHORT, "data.workers=1") == 143
    said = capsys.readouterr().err
    assert "stopped by SIGTERM while waiting for pictures, without writing last.pt; go on with\n" in said
    assert "--resume" in said
    assert_none_is_left()


def train_in_1_mb(words, log) -> None:
    """A training whose /dev/shm has 1 MB, in a namespace of its own."""
    system, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    # CLONE_NEWUSER and CLONE_NEWNS, on Linux
    if not hasattr(system, "unshare") or system.unshare(0x10020000):
        sys.exit(NO_NAMESPACE)
    for name, line in {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}.items():
        Path("/proc/self", name).write_text(line)
    if system.mount(b"tmpfs", os.fsencode(workers.SHM), b"tmpfs", 0, b"size=1m"):
        sys.exit(NO_NAMESPACE)
    workers.WATCH = 0.2
    train_in_process(words, log, {"WORLD_SIZE": 1})


def test_a_full_shared_memory_ends_a_training(scored_set, tmp_path):
    """A real one: each batch has 1.5 MB."""
    words = [*WORDS, *SHORT, "data.size=256", "data.workers=1", "--dataset", "csv"]
    words = ["train", *words, "--data-root", str(scored_set), "--output", str(tmp_path / "run")]
    process = forkserver().Process(target=train_in_1_mb, args=(words, tmp_path / "log"))
    process.start()
    process.join()
    if process.exitcode == NO_NAMESPACE:
        pytest.skip("this user may not make a namespace")
    assert process.exitcode == 2
    assert (tmp_path / "log").read_text().splitlines()[-1] == (
        "error: datasets: /dev/shm, 1 MB, is too small or full; data.workers=1 processes hand over their "
        "pictures through it: use data.workers=0, or make /dev/shm larger (docker run --shm-size=8g)"
    )
