"""Two processes that hear a signal, lose one or start again; locks. With real processes."""

import ctypes
import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from small import UNTRAINED, contents, train
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from eamb.training import interruption, tasks
from eamb.training.run import Run
from eamb.weights import checkpoint
from tests.stress.training import END, Trainings, differences, finish, wait_until_written
from tests.stress.training import train as train_in_process


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Trainings of two gloo processes, each with one that decodes; a checkpoint after each step."""
    return Trainings(tmp_path_factory.mktemp("pair"), 2, ["train.epochs=3", "train.score_test=false"])


@pytest.fixture(scope="module")
def undisturbed(pair):
    """The folder of a training that was left alone."""
    finish(pair.start(pair.folder / "undisturbed"))
    return pair.folder / "undisturbed"


def start(pair: Trainings, output: Path) -> list:
    """The processes of a training that has just written a checkpoint."""
    processes = pair.start(output)
    assert wait_until_written(processes, output / "last.pt")
    return processes


def exit_codes(processes: list) -> list[int]:
    for process in processes:
        process.join(END)
    return [process.exitcode for process in processes]


def decoders(number: int) -> list[int]:
    """Of a process, by its number: those that decode for it."""
    folders = Path(f"/proc/{number}/task").iterdir()
    return [int(word) for folder in folders for word in (folder / "children").read_text().split()]


def test_a_pair_that_is_stopped_then_loses_a_process_ends_as_if_nothing_had_happened(pair, undisturbed):
    output, log = pair.folder / "disturbed", pair.folder / "disturbed.log"
    processes = start(pair, output)
    for number in (processes[1].pid, *decoders(processes[1].pid)):
        os.kill(number, signal.SIGTERM)
    assert exit_codes(processes) == [143, 143]
    said = "stopped by SIGTERM; go on with\ntorchrun --standalone --nproc_per_node=2"
    assert log.read_text().count(said) == 1
    state = checkpoint.load_training(output / "last.pt")[1]
    assert (state["world"], state["epoch"] < 3) == (2, True)

    processes = start(pair, output)
    processes[1].kill()
    killed = time.monotonic()
    assert exit_codes(processes) == [2, -9]
    assert time.monotonic() - killed < END
    said = "error: distributed: process 0 lost another, whose own error says why it has ended"
    assert said in log.read_text()

    finish(pair.start(output))
    assert differences(undisturbed, output) == []


def train_and_die_once(words: list[str], log: Path, dead: Path) -> None:
    """One process of a training, of which the second dies in its second epoch, the first time."""
    save_if_due = Run.save_if_due

    def die_once(run: Run) -> None:
        if (run.epoch, os.environ["RANK"]) == (1, "1") and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        save_if_due(run)

    Run.save_if_due = die_once
    train_in_process(words, log, {"WORLD_SIZE": 2})


def test_torchrun_starts_anew_without_a_checkpoint_and_goes_on_from_one(pair, undisturbed, tmp_path):
    # What torchrun --standalone --nproc_per_node=2 --max-restarts=1 does; its own processes would import all
    # modules five times.
    output, log, dead = pair.folder / "restarted", tmp_path / "log", tmp_path / "dead"
    settings = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 1}
    settings |= {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
    launch = elastic_launch(LaunchConfig(**settings, start_method="forkserver"), train_and_die_once)
    with ThreadPoolExecutor(1) as thread:  # the main thread's signal handlers would be replaced
        thread.submit(launch, [*pair.words, "--output", str(output)], log, dead).result()
    assert dead.exists()
    resumed = [line for line in log.read_text().splitlines() if line.startswith("resumed ")]
    assert resumed == [f"resumed {output / 'last.pt'} at epoch 2, step 1"]
    assert differences(undisturbed, output) == []


def test_a_run_that_is_stopped_before_it_began_touches_nothing(copied_run, scored_set, monkeypatch):
    before = contents(copied_run)
    # As Ctrl-C raises it; in a background process of a shell the signal itself would be ignored.
    monkeypatch.setattr(tasks, "load_datasets", mock.Mock(side_effect=KeyboardInterrupt))
    assert train("csv", scored_set, copied_run, UNTRAINED, "--force") == 130
    assert contents(copied_run) == before


def wait_in_c_for_ever(ready) -> None:
    """Locks a mutex twice inside `deferred`: like a long step, it lets no signal handler of Python run."""
    signals, mutex = interruption.Signals(), ctypes.create_string_buffer(128)
    with signals, signals.deferred():
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ready.set()
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def test_a_second_signal_ends_a_process_that_waits_in_c_code_for_ever(capfd):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=wait_in_c_for_ever, args=[ready])
    process.start()
    assert ready.wait(END)
    os.kill(process.pid, signal.SIGTERM)
    process.join(0.5)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGINT)
    process.join(END)
    process.kill()
    assert process.exitcode == 128 + signal.SIGINT
    assert capfd.readouterr().err.count("a second signal ends at once") == 1


def test_signals_to_a_decoding_process_are_not_taken_for_its_parents():
    context = multiprocessing.get_context("fork")
    with interruption.Signals() as signals:
        ready = context.Event()
        process = context.Process(target=lambda: ready.set() or time.sleep(0.5))
        process.start()
        assert ready.wait(END)
        for number in interruption.ENDING:
            os.kill(process.pid, number)
        assert exit_codes([process]) == [0]
        assert signals.number == 0
    assert signal.set_wakeup_fd(-1) == -1


# ---- locks


def lock_and_wait(output: Path, ready) -> None:
    """Locks the folder, and leaves a process behind when this one is killed."""
    with interruption.locked(output):
        multiprocessing.Process(target=time.sleep, args=[END]).start()
        ready.set()
        time.sleep(END)


def test_a_lock_holds_between_threads_and_processes_and_ends_with_its_process_however(tmp_path):
    output, refused = tmp_path / "runs" / "run", []

    def try_to_lock() -> None:
        try:
            with interruption.locked(output):
                refused.append("")
        except ValueError as error:
            refused.append(str(error))

    with interruption.locked(output):
        thread = threading.Thread(target=try_to_lock)
        thread.start()
        thread.join()
    assert not output.parent.exists()  # both were new and stay empty
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=lock_and_wait, args=[output, ready])
    process.start()
    assert ready.wait(END)
    try_to_lock()
    process.kill()
    process.join()
    try_to_lock()
    said = f"interruption: {output} is in use by another run (process %d on "
    assert refused[0].startswith(said % os.getpid())
    assert refused[1].startswith(said % process.pid)
    assert refused[2] == ""


def test_the_lock_of_another_user_is_left_alone(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(interruption.FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match="belongs to another user"), interruption.locked(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()


def test_a_folder_where_files_cannot_be_locked_keeps_no_lock(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with interruption.locked(tmp_path / "run"):
        assert not (tmp_path / "run" / ".lock").exists()
    assert "cannot lock" in capsys.readouterr().err
