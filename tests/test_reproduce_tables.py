"""The paper's tables by one command: configs that change one thing, steps that go on, counted costs."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import BACKBONE, ROOT, WORDS, read_json
from torch import nn

import main
from eamb.evaluation.report import Report
from eamb.files import file_hash
from eamb.readers import demo
from eamb.runtime.config import Config, Data, load_config
from eamb.training import run as run_module
from eamb.training.tasks import choose_task
from scripts import keep_run, make_tables
from scripts import reproduce_tables as script

CONFIGS = ROOT / "configs"
BASES = ("ava", "para", "iae", "csv", "demo", "para_lite", "csv_lite")
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


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", CHANGES)
def test_an_ablation_changes_one_setting_of_any_config(base, name):
    before, after = settings(base), settings(base, name)
    expected = dict(CHANGES[name])
    if before["model.shortcut"] and name in ("ablation_no_context", "linear"):
        expected["model.shortcut"] = False  # a part of what is left out
    assert {key: value for key, value in after.items() if value != before[key]} == expected


def test_every_ablation_is_a_row_and_every_row_has_its_config():
    assert {file for _, file in script.ROWS.values() if file} == set(CHANGES)
    assert {path.stem for path in CONFIGS.glob("ablation_*.yaml")} < set(CHANGES)


# ---- what there is to do


@pytest.mark.parametrize("name", script.SETS)
def test_each_set_has_its_rows_and_only_networks_with_a_branch_are_given_one(name):
    steps = planned(name, "--dry-run", "--emotion-checkpoint", "branch.pt")
    rows = [step.row for step in steps]
    assert rows == [row for row in script.ROWS if row != "emd_batch" or name in ("ava", "demo")]
    for step in steps:
        assert (step.branch is not None) == choose_task(step.config).has_emotion_branch
        assert ("--emotion-checkpoint" in step.words) == (step.branch is not None)
        assert step.config.data.dataset == name
        assert step.config.task == "aesthetics"
    sizes = {step.config.data.size for step in steps}, {step.config.model.backbone for step in steps}
    assert sizes == (({224}, {"tf_efficientnet_lite0"}) if name == "demo" else ({512}, {"resnet50"}))


def test_the_branch_is_trained_first_on_what_was_named_and_only_if_a_row_needs_it():
    first, *rest = planned("ava", "--dry-run", "--emotion-data", "EmoSet=E", "--emotion-data", "fi=F")
    assert (first.row, first.config.task, first.config.data.dataset) == ("emotion", "emotion", "emoset+fi")
    assert first.words[:6] == ["--task", "emotion", "--dataset", "emoset", "--data-root", "E"]
    assert {step.branch for step in rest if step.branch} == {first.run / "best.pt"}
    assert planned("para", "--dry-run", "--data-root", "P")[0].words[4:6] == ["--data-root", "P"]
    assert [step.row for step in planned("para", "--dry-run", "--only", "linear,no_emotion")] == [
        "linear",
        "no_emotion",
    ]


def test_official_lies_over_all_and_leaves_out_the_rows_it_makes_equal(capsys):
    steps = planned("ava", "--dry-run", "--official", "--emotion-data", "fi=F")
    assert {step.config.data.exif for step in steps} == {False}
    assert {step.config.loss.emd_reduction for step in steps} == {"batch"}
    assert not {"emotion_batchnorm", "emd_batch"} & {step.row for step in steps}
    said = capsys.readouterr().out
    assert said.count("left out, because with these settings it is the main network") == 2


def test_a_score_set_with_votes_may_be_trained_on_them():
    words = (f"model.backbone={BACKBONE}", "model.width=16", "data.target=distribution")
    branch, *steps = planned("para", "--dry-run", "--only", "main,emd_batch", *words)
    assert [step.row for step in steps] == ["main", "emd_batch"]
    assert branch.config.data.target == "auto"  # of ratings, which the branch has none of
    for step in steps:
        assert script.build_network(step.config)[0].head[-1].out_features == 9  # 1, 1.5 ... 5
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


def test_counts_of_the_papers_network_are_the_known_ones():
    [step] = planned("ava", "--dry-run", "--emotion-checkpoint", "branch.pt", "--only", "main")
    forward, _, activations, parameters, trained_parameters = script.count_network(step.config)
    assert forward == pytest.approx(71.25e9, rel=1e-3)
    assert (parameters, trained_parameters) == (44_084_014, 29_047_526)
    # 223,820 of 235,600 pictures are trained on, 11,780 validated in each of 30 epochs, 19,930 tested.
    passes = 223_820 * 30 * (3 * 53.0e9 + 18.24e9) + (11_780 * 30 + 19_930) * 71.25e9
    hours, gigabytes = script.estimate(step.config)
    assert hours == pytest.approx(passes / (0.25 * 35.6e12) / 3600, rel=1e-3)
    state = 4 * (44_084_014 + 3 * 29_047_526)
    assert gigabytes == pytest.approx((state + 24 * activations) / 1e9)


def test_operations_are_those_of_the_layers_counted_one_by_one():
    config = load_config([], [*WORDS, "data.dataset=iae"])
    network, has_frozen_branch = script.build_network(config)
    operations = {True: 0, False: 0}

    def add(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        multiplications = output[0].numel() * module.weight[0].numel()
        operations[next(module.parameters()).requires_grad] += 2 * multiplications

    for module in network.eval().modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    network(torch.rand(1, 3, 64, 64))
    forward, frozen, *_ = script.count_network(config)
    assert has_frozen_branch and forward - frozen == operations[True]
    class_maps = 2 * 8 * 8 * network.emotion.classifier.weight.numel()  # at each of 8 x 8 positions
    assert frozen == operations[False] + class_maps


def test_activations_are_what_the_layers_of_a_small_network_keep(monkeypatch):
    def small(config: Config) -> tuple[nn.Module, bool]:
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8 * 64**2, 1)), False

    monkeypatch.setattr(script, "build_network", small)
    config = Config(data=Data(dataset="ava", size=64))
    # The picture; what BatchNorm is given; what ReLU gives. Of two pictures BatchNorm's mean and deviation.
    maps = 4 * 64**2 * (3 + 8 + 8)
    assert script.count_network(config)[2] == pytest.approx(maps + 4 * 2 * 8 / 2, abs=64)


def test_half_precision_takes_half_the_time_and_less_memory():
    words = ("para", "--dry-run", "--only", "linear", f"model.backbone={BACKBONE}", "data.size=64")
    [full], [half] = (planned(*words, f"train.precision={name}") for name in ("fp32", "bf16"))
    (full_hours, full_memory), (hours, memory) = script.estimate(full.config), script.estimate(half.config)
    assert 0.5 < hours / full_hours < 0.55  # validation stays in fp32
    assert memory < full_memory
    assert [script.duration(h) for h in (293.4, 1.94, 1e-5)] == ["293 h", "1.9 h", "under 0.001 h"]


def test_pictures_of_several_sets_limits_and_repeats():
    words = ["data.dataset=para+fi", "data.limit=20000", "data.repeat=1,4"]
    assert script.pictures(load_config([], words)) == [20_000 + 4 * 18_650, 1_411 + 1_170, 3_000 + 3_500]


# ---- doing it


class InProcess:
    """Runs main.py and the scripts in this process, in place of Popen; wait() gives the exit code."""

    def __init__(self, command):
        program = Path(command[1])
        assert command[0] == sys.executable and program.exists()
        run = {"main.py": main.main, "keep_run.py": keep_run.main, "make_tables.py": make_tables.main}
        self.code = run[program.name](command[2:])

    def wait(self):
        return self.code


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

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", "1")
        patch.setattr(script, "Popen", InProcess)
        patch.setattr(Report, "all_pictures", {})  # drawn elsewhere
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
    assert len(lines) == len(ROWS)
    for row, line in zip(ROWS, lines, strict=True):
        figures = read_json(made.output / "results" / f"demo_{row}_seed0" / "metrics.json")["metrics"]
        name = script.ROWS[row][0]
        assert line.startswith(f"| {name} | 48 x 1 | {figures['srcc']:.3f} (".replace("0.", ".", 1))
        assert (f"- {name} minus EAMB-Net: SRCC" in text) == (row != "main")


def test_rows_stand_on_the_trained_branch_and_are_what_they_are_called(made):
    branch = file_hash(made.output / "runs" / "demo_emotion" / "best.pt")
    facts = {row: read_json(made.output / "results" / f"demo_{row}_seed0" / "metrics.json") for row in ROWS}
    assert facts["main"]["origin"]["emotion_checkpoint_sha256"] == branch
    assert facts["linear"]["origin"]["emotion_branch"] == "none"
    assert facts["linear"]["training"]["model"]["network"] == "linear"
    emotions = read_json(made.output / "results" / "demo_emotion" / "metrics.json")
    assert (emotions["task"], "kl" in emotions["metrics"]) == ("emotion", True)
    assert not (made.output / "results" / "demo_main_seed0" / "best.pt").exists()


def test_what_is_done_is_not_run_again_and_fewer_rows_make_another_table(made, words, capsys, monkeypatch):
    monkeypatch.setattr(script, "Popen", InProcess)
    runs, table = times(made.output / "runs"), (made.output / "tables.md").read_bytes()
    only = [ROWS[0] if word == ",".join(ROWS) else word for word in words]
    assert run(*only) == 0
    assert "linear" not in (made.output / "tables.md").read_text()
    assert capsys.readouterr().out.count("): done already") == 2
    assert run(*words) == 0
    assert (made.output / "tables.md").read_bytes() == table
    assert times(made.output / "runs") == runs
    assert capsys.readouterr().out.count("): done already") == len(ROWS) + 1


def test_where_maps_are_kept_changes_no_result_but_whether_may(made, words, tmp_path):
    step = planned(*words, "train.emotion_maps=M")[1]
    with pytest.raises(ValueError, match=r"made with other settings \(train.emotion_maps was  and is M\)"):
        script.is_done(step)
    kept = replace(step, output=tmp_path)
    shutil.copytree(step.result, kept.result)
    settings = (kept.result / "config.yaml").read_text()
    (kept.result / "config.yaml").write_text(settings.replace("emotion_maps: ''", "emotion_maps: kept"))
    assert script.is_done(kept)


def test_without_the_weights_of_the_runs_all_is_still_done(made, words, tmp_path, capsys):
    shutil.copytree(made.output / "results", tmp_path / "results")
    assert run(*(tmp_path if word == made.output else word for word in words), "--dry-run") == 0
    assert capsys.readouterr().out.count("): done already") == len(ROWS) + 1


def test_figures_of_others_stand_below_ours(tmp_path):
    options = script.parse(["para", "--dry-run", "--output", str(tmp_path), "--only", "main"])
    steps = script.plan(options)
    script.describe_table(steps, options)
    blocks = make_tables.read_published(tmp_path / "results" / "published.csv")
    assert blocks == {
        "para_official": make_tables.read_published(ROOT / "results" / "published.csv")["para_official"]
    }
    tables = make_tables.read_tables(tmp_path / "results" / "tables.yaml")
    assert [table.name for table in tables] == ["para_reproduced", "para_official"]
    assert "<!-- table para_official -->\n<!-- end of table" in (tmp_path / "tables.md").read_text()


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
    assert commands[5].endswith(
        "keep_run.py runs/tables_para/runs/para_linear_seed0 runs/tables_para/results/para_linear_seed0"
    )
    assert commands[-1].endswith("--readme runs/tables_para/tables.md --resamples 2 --data-root para=DIR")
    assert "on one RTX 3090 (24 GB): counted operations, at an assumed 25% of its peak" in said
    assert "Estimates, not measured." in said


def test_a_failure_ends_all_and_a_signal_is_left_to_the_training(demo_set, tmp_path, monkeypatch, capsys):
    class Failing:
        commands, interrupts = [], 2

        def __init__(self, command):
            self.commands.append(command)

        def wait(self):
            Failing.interrupts -= 1
            if Failing.interrupts >= 0:
                raise KeyboardInterrupt
            return 7

    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(script, "Popen", Failing)
    assert run("demo", "--data-root", demo_set, "--output", tmp_path, "--only", "main", *TINY) == 7
    [command] = Failing.commands
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
    said = capsys.readouterr().err
    assert (
        f"demo_main_seed0 was made with other settings (the emotion checkpoint was another file than {other})"
        in (said)
    )
    assert times(made.output) == before


WRONG = {
    "unknown set": (["coco"], "there are recipes for ava, para, iae, demo, not for 'coco'"),
    "no folder given": (["para"], "where is para? --data-root DIR"),
    "no such folder": (["iae", "--data-root", "none"], "there is no folder none for iae"),
    "no such emotion folder": (
        ["demo", "--emotion-data", "fi=none"],
        "there is no folder none for fi",
    ),
    "no such branch": (
        ["demo", "--emotion-checkpoint", "none.pt"],
        "there is no emotion checkpoint none.pt",
    ),
    "a branch and what to train it on": (
        ["demo", "--emotion-checkpoint", "a.pt", "--emotion-data", "fi=F"],
        "with --emotion-checkpoint the branch needs no --emotion-data",
    ),
    "no emotions": (["ava", "--data-root", "."], "ava has no emotions; give the branch's weights with"),
    "an unknown emotion set": (
        ["ava", "--data-root", ".", "--emotion-data", "ava=."],
        "--emotion-data takes SET=DIR with a set of para, iae, demo, emoset, fi, got 'ava=.'",
    ),
    "no Lite": (["iae", "--lite"], "--lite is for para; iae: there is no Lite recipe for it"),
    "EMD of scores": (["para", "--data-root", ".", "--only", "emd_batch"], "got 'emd_batch'"),
    "a row twice main": (
        ["demo", "--official", "--only", "emd_batch"],
        "no row is left to make; let --only name others",
    ),
    "seeds": (["demo", "--seeds", "0,0"], "--seeds takes different whole numbers, as in 0,1,2, got '0,0'"),
    "a seed as a word": (["demo", "train.seed=1"], "leave 'train.seed=1' out; sets, seeds and parts"),
    "unknown key": (["demo", "train.epoch=1"], "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
    "maps of a branch that drifts": (
        ["demo", "--official", "train.emotion_maps=M"],
        "train.emotion_maps keeps the maps of a frozen branch; this run's changes",
    ),
}


@pytest.mark.parametrize("words, said", WRONG.values(), ids=WRONG)
def test_bad_input_is_one_sentence_before_anything_runs(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.startswith("error: ")
    assert found.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_number_of_processes_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", "none")
    assert run("demo", "--only", "linear", *TINY) == 2
    assert "NPROC is the number of processes, from 1 up, got 'none'" in capsys.readouterr().err


def test_the_shell_script_hands_on_options_and_exit_code(tmp_path):
    command = ["bash", ROOT / "scripts" / "reproduce_tables.sh", "coco", "--dry-run", "train.epochs=1"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: reproduce_tables: there are recipes for ava, para, iae, demo")
