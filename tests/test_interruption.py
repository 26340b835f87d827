"""Two processes that hear a signal, lose one or start again; a full disk; locks. With real processes."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from small import ROOT, UNTRAINED, WORDS, command, contents, train

from eamb.training import interruption, tasks
from eamb.weights import checkpoint
from tests.stress.training import END, Trainings, differences, finish, wait_until_written


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


DIES_ONCE = """
import os, signal, sys
from pathlib import Path
from eamb.training import run
from eamb.evaluation import figures
from main import main

save_if_due = run.Run.save_if_due
dead = Path(sys.argv.pop(1))

def die_once(run):
    if (run.epoch, os.environ["RANK"]) == (1, "1") and not dead.exists():
        dead.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    save_if_due(run)

run.Run.save_if_due = die_once
figures.write_figure = lambda figure, path: None
sys.exit(main())
"""


def test_torchrun_starts_anew_without_a_checkpoint_and_goes_on_from_one(pair, undisturbed, tmp_path):
    program, output = tmp_path / "dies_once.py", pair.folder / "restarted"
    program.write_text(DIES_ONCE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    done = command(*launcher, program, tmp_path / "dead", *pair.words, "--output", output)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dead").exists()
    assert [line for line in done.stdout.splitlines() if line.startswith("resumed ")] == [
        f"resumed {output / 'last.pt'} at epoch 2, step 1"
    ]
    assert "process 0 lost another" in done.stderr or "Signal 9 (SIGKILL)" in done.stderr
    assert differences(undisturbed, output) == []


# ---- one process: a full disk, and a signal before the run has begun

LONG = ["train.epochs=3", "train.checkpoint_minutes=0", "train.score_test=false", UNTRAINED]

FILLED_UP = """
import shutil, subprocess, sys
import torch
from main import main

disk, size, copy, *words = sys.argv[1:]
torch.set_num_threads(1)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
first = main([*words, "--output", f"{disk}/run"])
shutil.copytree(f"{disk}/run", f"{copy}/first")
subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
second = main([*words, "--output", f"{disk}/run", "--resume"])
shutil.copytree(f"{disk}/run", f"{copy}/second")
print(first, second)
"""


@pytest.fixture(scope="module")
def whole(scored_set, tmp_path_factory):
    """The folder of a training of one process."""
    output, threads = tmp_path_factory.mktemp("whole") / "run", torch.get_num_threads()
    torch.set_num_threads(1)  # as the process that is compared has it: the last digits depend on it
    assert train("csv", scored_set, output, *LONG) == 0
    torch.set_num_threads(threads)
    return output


def with_own_mounts(*words: object) -> subprocess.CompletedProcess:
    """Runs a command that may mount what nobody else sees, by root's right or a user namespace's."""
    options = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    arguments = ["unshare", *options, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


def test_a_small_disk_that_fills_up_costs_checkpoints_and_not_the_run(whole, scored_set, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "tmpfs", disk)
    if shutil.which("unshare") is None or with_own_mounts(*mount).returncode:
        pytest.skip("nothing can be mounted here; test_records' full disk is one that only says so")
    size = 5 * (whole / "last.pt").stat().st_size // 2  # room for two; while one is written there are three
    words = ["train", *WORDS, "--dataset", "csv", "--data-root", scored_set, *LONG]
    done = with_own_mounts(sys.executable, "-c", FILLED_UP, disk, size, tmp_path, *words)
    assert done.stdout.splitlines()[-1:] == ["2 0"], done.stderr
    warning = f"No space left on device: {disk / 'run' / 'last.pt'} was not written"
    assert done.stderr.count(warning) > 1, done.stderr
    checkpoint.load_training(tmp_path / "first" / "last.pt")  # whole
    assert differences(whole, tmp_path / "second") == []


def test_a_run_that_is_stopped_before_it_began_touches_nothing(whole, scored_set, tmp_path, monkeypatch):
    output = shutil.copytree(whole, tmp_path / "run")
    before = contents(output)
    monkeypatch.setattr(tasks, "load_datasets", lambda *words: os.kill(os.getpid(), signal.SIGINT))
    assert train("csv", scored_set, output, *LONG, "--force") == 130
    assert contents(output) == before


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


def test_a_folder_where_files_cannot_be_locked_keeps_no_lock(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with interruption.locked(tmp_path / "run"):
        assert not (tmp_path / "run" / ".lock").exists()
    assert "cannot lock" in capsys.readouterr().err
