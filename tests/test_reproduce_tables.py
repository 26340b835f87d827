"""The paper's tables by one command: configs that change one thing, steps that go on, costs."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from small import ROOT, WORDS, read_json, without_drawing
from torch.utils.flop_counter import FlopCounterMode

import main
from eamb.files import file_hash
from eamb.network.backbones import LITE0
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers import demo
from eamb.runtime.config import load_config
from eamb.training import run as run_module
from eamb.training.tasks import choose_task
from scripts import keep_run, make_tables
from scripts import reproduce_tables as script

CONFIGS = ROOT / "configs"
CHANGES = {
    "ablation_no_emotion": {"model.without": "emotion"},
    "ablation_no_detail": {"model.without": "detail"},
    "ablation_no_context": {"model.without": "context"},
    "ablation_no_guided_fusion": {"model.without": "guided_fusion"},
    "ablation_no_attention": {"model.without": "attention"},
    "ablation_emotion_batchnorm": {"model.emotion_batchnorm": "official"},
    "ablation_emd_batch": {"loss.emd_reduction": "batch"},
    "linear": {"model.network": "linear"},
}
ROWS = ("main", "linear")
TINY = [*WORDS, "train.batch_size=24", "data.limit=48", "evaluate.bootstrap=2"]  # 2 steps; 32 lack emotions
TINY += ["train.checkpoint_minutes=0"]


def settings(*names: str) -> dict:
    """Flat: key -> value."""
    content = load_config([CONFIGS / f"{name}.yaml" for name in names]).as_dict()
    sections = {name: values for name, values in content.items() if isinstance(values, dict)}
    return {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}


def planned(*words: object) -> list[script.Step]:
    return script.plan(script.parse(list(map(str, words))))


def run(*words: object) -> int:
    return script.main(list(map(str, words)))


# ---- the configs


@pytest.mark.parametrize(
    "base", ["ava", "para", "iae", "csv", "demo", "para_lite", "para_lite_first", "csv_lite"]
)
def test_an_ablation_changes_one_setting_of_any_config(base):
    before = settings(base)
    for name, change in CHANGES.items():
        expected = dict(change)
        if before["model.shortcut"] and name in ("ablation_no_context", "linear"):
            expected["model.shortcut"] = False  # a part of what is left out
        if before["model.share_backbone"] and name == "linear":
            expected |= {"model.share_backbone": False, "model.emotion_levels": 3, "model.emotion_width": 0}
        assert {key: now for key, now in settings(base, name).items() if now != before[key]} == expected


def test_every_ablation_is_a_row_and_every_row_has_its_config():
    assert {file for _, file in script.ROWS.values() if file} == set(CHANGES)
    assert {path.stem for path in CONFIGS.glob("ablation_*.yaml")} < set(CHANGES)


# ---- what there is to do


@pytest.mark.parametrize("name", ["ava", "para", "iae", "demo"])
def test_each_set_has_its_rows_and_only_networks_with_a_branch_are_given_one(name):
    steps = planned(name, "--dry-run", "--emotion-checkpoint", "branch.pt")
    rows = [step.row for step in steps]
    assert rows == [row for row in script.ROWS if row != "emd_batch" or name == "ava"]
    for step in steps:
        assert (step.branch is not None) == choose_task(step.config).has_emotion_branch
        assert ("--emotion-checkpoint" in step.words) == (step.branch is not None)
        assert step.config.data.dataset == name
        assert step.config.task == "aesthetics"
    sizes = {step.config.data.size for step in steps}, {step.config.model.backbone for step in steps}
    assert sizes == (({160}, {"tf_efficientnet_lite0"}) if name == "demo" else ({512}, {"resnet50"}))


def test_the_branch_is_trained_first_on_what_was_named_and_only_if_a_row_needs_it():
    first, *rest = planned("ava", "--dry-run", "--emotion-data", "EmoSet=E", "--emotion-data", "fi=F")
    assert (first.row, first.config.task, first.config.data.dataset) == ("emotion", "emotion", "emoset+fi")
    assert first.words[:6] == ["--task", "emotion", "--dataset", "emoset", "--data-root", "E"]
    assert {step.branch for step in rest if step.branch} == {first.run / "best.pt"}
    assert planned("para", "--dry-run", "--data-root", "P")[0].words[4:6] == ["--data-root", "P"]
    without = planned("para", "--dry-run", "--only", "linear,no_emotion")
    assert [step.row for step in without] == ["linear", "no_emotion"]


def test_official_lies_over_all_and_leaves_out_the_rows_it_makes_equal(capsys):
    steps = planned("ava", "--dry-run", "--official", "--emotion-data", "fi=F")
    assert {step.config.data.exif for step in steps} == {False}
    assert {step.config.loss.emd_reduction for step in steps} == {"batch"}
    assert not {"emotion_batchnorm", "emd_batch"} & {step.row for step in steps}
    said = capsys.readouterr().out
    assert said.count("left out, because with these settings it is the main network") == 2


def test_a_score_set_with_votes_may_be_trained_on_them():
    words = ("--only", "main,emd_batch", "data.target=distribution")
    branch, *steps = planned("para", "--dry-run", *words)
    assert [step.row for step in steps] == ["main", "emd_batch"]
    assert branch.config.data.target == "auto"  # of ratings, which the branch has none of
    assert {step.config.data.target for step in steps} == {"distribution"}
    with pytest.raises(ValueError, match=r"--only takes, for ava, some of .*, got 'emd_batch'"):
        planned("ava", "--dry-run", "--emotion-data", "fi=F", "--only", "emd_batch", "data.target=score")


def test_seeds_are_trained_one_by_one_on_one_branch():
    steps = planned("iae", "--dry-run", "--seeds", "0,3", "--only", "main,linear")
    names = ["iae_emotion", *(f"iae_{row}_seed{seed}" for row in ("main", "linear") for seed in (0, 3))]
    assert [step.name for step in steps] == names
    assert [step.config.train.seed for step in steps] == [0, 0, 3, 0, 3]


def test_kept_maps_are_for_branches_that_do_not_move():
    steps = planned("para", "--dry-run", "train.emotion_maps=M")
    kept = {step.row: step.config.train.emotion_maps for step in steps}
    assert [row for row, folder in kept.items() if not folder] == ["emotion", "emotion_batchnorm"]


# ---- what it costs


@pytest.mark.parametrize("backbone, config", [("resnet50", "para"), (LITE0, "para_lite")])
def test_costs_are_those_of_the_networks(backbone, config):
    task = choose_task(load_config([CONFIGS / f"{config}.yaml"], ["model.imagenet=none"]))
    network = task.build(Scale("score", 1, 5, 3, offset=1, factor=4), EMOTIONS).eval()
    costs = script.COSTS[backbone]
    trained, frozen, _, parameters = costs["main"]
    area = (64 / costs["size"]) ** 2
    for part, expected in ((network, trained + frozen), (network.emotions, frozen)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            part(torch.zeros(1, 3, 64, 64))
        counted = counter.get_total_flops() / 1e9
        assert counted == pytest.approx(expected * area, rel=0.01)  # not all layers grow with the area
    counted = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("emotion."))
    assert counted / 1e6 == pytest.approx(parameters, abs=0.05)


def test_hours_and_memory_of_a_training():
    [step] = planned("ava", "--dry-run", "--emotion-checkpoint", "branch.pt", "--only", "main")
    # 223,820 of 235,600 pictures are trained on, 11,780 validated in each of 30 epochs, 19,930 tested.
    operations = 223_820 * 30 * (3 * 53.01e9 + 18.24e9) + (11_780 * 30 + 19_930) * 71.25e9
    hours, gigabytes = script.estimate(step)
    assert hours == pytest.approx(operations / (0.25 * 35.6e12) / 3600)
    assert gigabytes == pytest.approx(16 * 0.0290 + 24 * 0.518)
    words = ["train.precision=bf16", "data.size=256", "data.limit=1000", "train.batch_size=6"]
    [small] = planned("ava", "--dry-run", "--emotion-checkpoint", "branch.pt", "--only", "main", *words)
    operations = 1000 * 30 * (3 * 53.01e9 + 18.24e9) / 71e12 + (11_780 * 30 + 19_930) * 71.25e9 / 35.6e12
    hours, gigabytes = script.estimate(small)
    assert hours == pytest.approx(operations / 4 / 0.25 / 3600)  # a quarter of the area
    assert gigabytes == pytest.approx(16 * 0.0290 + 6 / 4 * 0.6 * 0.518)


# ---- doing it


def in_process(command: list[str]) -> SimpleNamespace:
    """Runs main.py and the scripts in this process, in place of Popen; wait() gives the exit code."""
    assert command[0] == sys.executable and Path(command[1]).exists()
    run = {"main.py": main.main, "keep_run.py": keep_run.main, "make_tables.py": make_tables.main}
    code = run[Path(command[1]).name](command[2:])
    return SimpleNamespace(wait=lambda: code)


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory):
    return demo.make_demo(tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture(scope="module")
def words(demo_set, tmp_path_factory):
    output = tmp_path_factory.mktemp("tables")
    options = ["demo", "--data-root", demo_set, "--output", output, "--only", ",".join(ROWS)]
    return [*options, *TINY]


@pytest.fixture(scope="module")
def made(words):
    """All made once, in two calls; the first is interrupted after the last step of main.

    output: the folder. code, files: of the first call, and what it left.
    started: name of each training of the second call -> steps that it had done already.
    """
    output, validate, train_epoch, started = words[4], run_module.validate, run_module.train_epoch, {}

    def interrupted(run):
        if run.output.name == "demo_main_seed0":
            raise KeyboardInterrupt
        return validate(run)

    def watched(run, epoch):
        started[run.output.name] = run.totals.step
        return train_epoch(run, epoch)

    with pytest.MonkeyPatch.context() as patch, without_drawing():
        patch.setenv("NPROC", "1")
        patch.setattr(script, "Popen", in_process)
        patch.setattr(run_module, "validate", interrupted)
        code = run(*words)
        files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
        patch.setattr(run_module, "validate", validate)
        patch.setattr(run_module, "train_epoch", watched)
        assert run(*words) == 0
    return SimpleNamespace(output=output, code=code, files=files, started=started)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("NPROC", "1")


def times(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_step_that_was_interrupted_goes_on_where_it_stopped(made):
    assert made.code == 130
    assert {"runs/demo_main_seed0/last.pt", "results/demo_emotion/metrics.json"} <= made.files
    assert not any(name.startswith(("results/demo_main", "runs/demo_linear")) for name in made.files)
    assert not {"tables.md", "runs/demo_main_seed0/test/metrics.json"} & made.files
    assert made.started == {"demo_main_seed0": 2, "demo_linear_seed0": 0}


def test_the_table_holds_the_figures_of_the_runs(made):
    text = (made.output / "tables.md").read_text()
    assert "DEMO, test pictures; test_efficientnet, 64 px, 1 epoch." in text
    lines = [line for line in text.splitlines() if "`demo_" in line]
    facts = [read_json(made.output / "results" / f"demo_{row}_seed0" / "metrics.json") for row in ROWS]
    for row, line, found in zip(ROWS, lines, facts, strict=True):
        name, srcc = script.ROWS[row][0], f"{found['metrics']['srcc']:.3f}".replace("0.", ".", 1)
        assert line.startswith(f"| {name} | 48 x 1 | {srcc} (")
        assert (f"- {name} minus EAMB-Net: SRCC" in text) == (row != "main")
        assert found["training"]["model"]["network"] == ("eambnet" if row == "main" else "linear")
    branch = file_hash(made.output / "runs" / "demo_emotion" / "best.pt")
    assert facts[0]["origin"]["emotion_checkpoint_sha256"] == branch
    assert facts[1]["origin"]["emotion_branch"] == "none"
    emotions = read_json(made.output / "results" / "demo_emotion" / "metrics.json")
    assert (emotions["task"], "kl" in emotions["metrics"]) == ("emotion", True)


def test_what_is_done_is_not_run_again_and_fewer_rows_make_another_table(made, words, capsys, monkeypatch):
    monkeypatch.setattr(script, "Popen", in_process)
    runs, table = times(made.output / "runs"), (made.output / "tables.md").read_bytes()
    assert run(*(ROWS[0] if word == ",".join(ROWS) else word for word in words)) == 0
    assert "linear" not in (made.output / "tables.md").read_text()
    assert capsys.readouterr().out.count("): done already") == 2
    assert run(*words) == 0
    assert (made.output / "tables.md").read_bytes() == table
    assert times(made.output / "runs") == runs
    assert capsys.readouterr().out.count("): done already") == len(ROWS) + 1


def test_a_dry_run_names_every_command_in_order_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", "4")
    assert run("para", "--dry-run", "--only", ",".join(ROWS), *TINY) == 0
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    commands = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    starts = ["torchrun --standalone --nproc_per_node=4 ", "python "] * (len(ROWS) + 1) + ["python "]
    for command, start in zip(commands, starts, strict=True):
        assert command.startswith(start)
    base, over = (os.path.relpath(CONFIGS / f"{name}.yaml") for name in ("para", "linear"))
    train = f" train --dataset para --data-root DIR --config {base} --config {over} train.seed=0 "
    assert train in commands[4]
    assert commands[4].endswith("--output runs/tables_para/runs/para_linear_seed0 --resume")
    kept = "runs/tables_para/runs/para_linear_seed0 runs/tables_para/results/para_linear_seed0"
    assert commands[5].endswith(f"keep_run.py {kept}")
    assert commands[-1].endswith("--readme runs/tables_para/tables.md --resamples 2 --data-root para=DIR")
    assert said.count(": cost not known") == len(ROWS) + 1  # of the backbone that is for tests
    assert run("para", "--dry-run", "--only", "linear") == 0
    said = capsys.readouterr().out
    assert "seed 0): 11 h, 11.2 GB" in said
    assert "11 h in all, 11 h still to do, on one RTX 3090 (24 GB): counted operations, at an assumed" in said


def test_a_failure_ends_all_and_a_signal_is_left_to_the_training(demo_set, tmp_path, monkeypatch, capsys):
    popen = Mock()
    popen.return_value.wait.side_effect = [KeyboardInterrupt, KeyboardInterrupt, 7]
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(script, "Popen", popen)
    assert run("demo", "--data-root", demo_set, "--output", tmp_path, "--only", "main", *TINY) == 7
    [((command,), _)] = popen.call_args_list
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert command[5:9] == [os.path.relpath(ROOT / "main.py"), "train", "--task", "emotion"]
    assert "stopped in demo_emotion; the same command goes on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- errors


def test_results_of_other_settings_are_not_taken_for_these(made, words, tmp_path, capsys):
    before = times(made.output)
    assert run(*words, "train.epochs=2") == 2
    said = capsys.readouterr().err
    assert "demo_emotion was made with other settings (train.epochs was 1 and is 2); choose another" in said
    other = tmp_path / "other.pt"
    other.write_bytes(b"another branch")
    assert run(*words, "--emotion-checkpoint", other) == 2
    said = f"main_seed0 was made with other settings (the emotion checkpoint was another file than {other})"
    assert said in capsys.readouterr().err
    assert times(made.output) == before


@pytest.mark.parametrize(
    "words, said",
    [
        ("coco", "there are recipes for ava, para, para --lite, iae, demo, not for 'coco'"),
        ("iae --lite", "not for 'iae'"),
        ("iae --data-root none", "there is no none; give what is there with --data-root"),
        ("demo --emotion-data fi=none", "there is no none; give"),
        ("demo --emotion-checkpoint none.pt", "there is no none.pt; give"),
        ("ava --data-root .", "ava has no emotions, or no folder; give the branch's"),
        ("para --data-root . --only emd_batch", "got 'emd_batch'"),
        ("demo data.target=auto --official --only emd_batch", "no row is left to make; let --only name"),
        ("demo --seeds 0,0", "--seeds takes different whole numbers, as in 0,1,2, got '0,0'"),
        ("demo train.seed=1", "leave 'train.seed=1' out; sets, seeds and parts"),
        ("demo --official train.emotion_maps=M", "train.emotion_maps=M means nothing"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words.split()) == 2
    found = capsys.readouterr().err
    assert said in found and found.startswith("error: ") and found.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_shell_script_hands_on_options_and_exit_code(tmp_path):
    words = ["bash", ROOT / "scripts" / "reproduce_tables.sh", "coco", "--dry-run", "train.epochs=1"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: reproduce_tables: there are recipes for ava")
