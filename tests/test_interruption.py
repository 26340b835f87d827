"""Two processes that lose one, hear a signal or start again; a full disk; locks. With real processes."""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small import ROOT, UNTRAINED, WORDS, command, train
from test_training import snapshot

from eamb.training import interruption, run
from eamb.weights import checkpoint
from tests.stress.training import END, Trainings, differences, finish, wait_until_written

# As the stress test trains: with a decoding process, and a checkpoint behind each step.
SETTINGS = ["train.epochs=3", "train.score_test=false"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Trainings of two gloo processes; `pair.folder / "whole"` is one that was left alone."""
    trainings = Trainings(tmp_path_factory.mktemp("pair"), 2, SETTINGS)
    finish(trainings.start(trainings.folder / "whole"))
    return trainings


def started(pair, output: Path) -> list:
    """The processes of a training that has written a checkpoint."""
    processes = pair.start(output)
    assert wait_until_written(processes, output / "last.pt")
    return processes


def codes(processes: list) -> list[int]:
    for process in processes:
        process.join(END)
    return [process.exitcode for process in processes]


def children(number: int) -> list[int]:
    """Of a process, by its number: those that decode for it."""
    folders = Path(f"/proc/{number}/task").iterdir()
    return [int(word) for folder in folders for word in (folder / "children").read_text().split()]


def assert_goes_on_as_if_nothing_had_been(pair, output: Path) -> None:
    finish(pair.start(output))
    assert differences(pair.folder / "whole", output) == []


def test_a_signal_to_one_process_and_its_decoders_stops_both_and_loses_nothing(pair):
    output = pair.folder / "one signal"
    processes = started(pair, output)
    for number in (processes[1].pid, *children(processes[1].pid)):
        os.kill(number, signal.SIGTERM)
    assert codes(processes) == [143, 143]
    said = output.with_name("one signal.log").read_text()
    assert said.count("stopped by SIGTERM; go on with\ntorchrun --standalone --nproc_per_node=2") == 1
    state = checkpoint.load_training(output / "last.pt")[1]
    assert (state["world"], state["epoch"] < 3) == (2, True)
    assert_goes_on_as_if_nothing_had_been(pair, output)


def test_a_dead_process_ends_the_other_within_a_minute_which_says_why(pair):
    output = pair.folder / "one dead"
    processes = started(pair, output)
    processes[1].kill()
    killed = time.monotonic()
    assert codes(processes) == [2, -9]
    assert time.monotonic() - killed < END
    said = output.with_name("one dead.log").read_text()
    assert "error: distributed: process 0 lost another, whose own error says why it has ended" in said
    assert_goes_on_as_if_nothing_had_been(pair, output)


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


def test_torchrun_starts_anew_without_a_checkpoint_and_goes_on_behind_one(pair, tmp_path):
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
    assert differences(pair.folder / "whole", output) == []


# ---- a full disk


def private_disk(script: str, *words: object) -> subprocess.CompletedProcess:
    """Runs a shell script that may mount what nobody else sees, by root's right or a user namespace's."""
    way = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*way, "sh", "-c", script, "sh", *map(str, words)]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return private_disk('mount -t tmpfs tmpfs "$1"', folder).returncode == 0


TWICE = """
disk=$1 size=$2 result=$3
shift 3
mount -t tmpfs -o size=$size tmpfs "$disk" || exit 99
"$@" --output "$disk/run"
echo "first: $?"
mkdir "$result"
cp "$disk/run/last.pt" "$result/first.pt"
mount -o remount,size=100m "$disk"
"$@" --output "$disk/run" --resume
echo "second: $?"
cp -r "$disk/run" "$result/run"
"""


@pytest.fixture
def one_thread():
    """As the processes that are compared have it: the last digits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_small_disk_that_fills_up_costs_checkpoints_and_not_the_run(one_thread, scored_set, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("nothing can be mounted here; test_training's full disk is one that only says so")
    words = [*WORDS, "train.epochs=3", "train.checkpoint_minutes=0", "train.score_test=false", UNTRAINED]
    words = ["--dataset", "csv", "--data-root", str(scored_set), *words]
    whole = tmp_path / "whole"
    assert train("csv", scored_set, whole, *words[4:]) == 0
    size = (
        5 * (whole / "last.pt").stat().st_size // 2
    )  # room for two, and while one is written there are three
    python = [sys.executable, ROOT / "main.py", "train"]
    done = private_disk(TWICE, disk, size, tmp_path / "result", *python, *words)
    assert re.findall(r"^(?:first|second): \d+$", done.stdout, re.MULTILINE) == ["first: 2", "second: 0"]
    warning = f"No space left on device: {disk / 'run' / 'last.pt'} was not written; the newest checkpoint: "
    assert done.stderr.count(warning) > 1, done.stderr
    assert "make room, then go on from there with --resume" in done.stderr
    checkpoint.load_training(tmp_path / "result" / "first.pt")  # whole
    assert differences(whole, tmp_path / "result" / "run") == []


# ---- before a run has begun; locks


@pytest.mark.parametrize("words", [("--force",), ("--resume",)])
def test_a_run_that_is_stopped_before_it_began_touches_nothing_and_says_how_to_begin_it(
    words, score_run, scored_set, tmp_path, monkeypatch, capsys
):
    output = shutil.copytree(score_run, tmp_path / "run")
    before = snapshot(output)
    monkeypatch.setattr(run, "load_data", lambda config: os.kill(os.getpid(), signal.SIGINT))
    assert train("csv", scored_set, output, "train.epochs=2", UNTRAINED, *words) == 130
    assert snapshot(output) == before
    how, line = capsys.readouterr().err.splitlines()[-2:]
    assert how == "stopped by SIGINT; it had not begun; start it with"
    assert [word for word in shlex.split(line) if word in ("--force", "--resume")] == list(words)


def test_a_folder_where_files_cannot_be_locked_keeps_no_lock(scored_set, tmp_path, monkeypatch, capsys):
    import fcntl

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with interruption.held(tmp_path / "run"):
        assert not (tmp_path / "run" / ".lock").exists()
    assert "cannot lock" in capsys.readouterr().err
