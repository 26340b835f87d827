"""The command line: what words mean, which config counts; bad input ends in one sentence and exit 2."""

import argparse
import importlib
import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from small import UNTRAINED, bound_by_permissions, command, read_csv, train

import main as program
from eamb.evaluation import evaluate as evaluate_module
from eamb.evaluation import external, predicting
from eamb.inference import predict
from eamb.runtime.command import guarded
from eamb.training import interruption, run
from eamb.weights import checkpoint
from main import main, parse, read_config, resuming_command


def settings(*words: str):
    return read_config(parse(list(words)))[0]


@pytest.fixture
def calls(monkeypatch):
    """What would be run, instead of running it."""
    made = []
    monkeypatch.setattr(run, "train", lambda task, **options: made.append((task.config, options)))
    monkeypatch.setattr(checkpoint, "load_weights", lambda path: path)
    monkeypatch.setattr(predicting, "as_trained", lambda config, weights, given: config)
    monkeypatch.setattr(evaluate_module, "evaluate_checkpoints", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(external, "evaluate_predictions", lambda *a: made.append(("external", *a)))
    monkeypatch.setattr(predict, "predict", lambda options: made.append(options) or 1)
    return made


# ---- commands and words


def test_importing_and_help_load_nothing_heavy():
    code = (
        "import sys, main\n"
        "for words in (['--help'], ['train', '--help'], ['evaluate', '--help'], ['predict', '--help']):\n"
        "    try: main.main(words)\n"
        "    except SystemExit as end: assert not end.code, words\n"
        "heavy = {'torch', 'numpy', 'yaml', 'timm', 'pandas', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = command("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("train", "evaluate", "predict", "--emotion-checkpoint", "--maps", "key=value"):
        assert word in done.stdout


@pytest.mark.parametrize("words", [["--dataset", "PARA"], ["data.dataset=para"]])
def test_without_a_command_word_train_is_meant(words, calls):
    assert main([*words, "--data-root", "somewhere"]) == 0
    [(config, options)] = calls
    assert (config.data.dataset, config.data.root, config.task) == ("para", "somewhere", "aesthetics")
    assert not any(options.values())


def test_names_are_taken_in_any_case(calls):
    assert main(["train", "--task", "Emotion", "--dataset", "Iae", "--data-root", "x"]) == 0
    words = ["--dataset", "AVA", "--data-root", "x", "--split", "VAL"]
    assert main(["evaluate", "--checkpoint", "f", *words]) == 0
    assert main(["evaluate", "--predictions", "f.csv", "--output", "o", *words, "evaluate.bootstrap=7"]) == 0
    (config, _), (weights, task, *target), (_, path, external_task, *external_target) = calls
    assert (config.task, config.data.dataset) == ("emotion", "iae")
    assert (weights, task.config.data.dataset, target) == ([Path("f")], "ava", ["val", None, False, False])
    assert (path, external_task.config.evaluate.bootstrap) == (Path("f.csv"), 7)
    assert external_target == ["val", Path("o"), False]


def test_options_reach_the_training_settings_and_paths_stand_anywhere_and_the_later_wins(calls):
    words = ["--emotion-checkpoint", "e.pt", "--weights", "w.pt", "--output", "o", "--resume", "--force"]
    words = ["train.epochs=2", "--dataset", "demo", "train.epochs=3", "--skip-broken", *words]
    assert main(["train", *words, "train.seed=9"]) == 0
    assert main(["predict", "a.jpg", "--emotions", "b.jpg", "--output", "s.csv", "-", "c d.jpg"]) == 1
    (config, given), options = calls
    assert (config.train.epochs, config.train.seed, config.data.skip_broken) == (3, 9, True)
    names = {"emotion_checkpoint": "e.pt", "weights": "w.pt", "output": Path("o")}
    assert given == {**names, "resume": True, "force": True}
    assert (options.paths, options.emotions) == (["a.jpg", "b.jpg", "-", "c d.jpg"], True)


@pytest.mark.parametrize(
    "words, said",
    [
        (["trian", "--dataset", "demo"], "invalid choice: 'trian'"),
        (["train", "--datset", "demo"], "unknown option --datset; python main.py train --help lists them"),
        (["--dataset", "coco"], "argument --dataset: invalid choice: 'coco'"),
        (["evaluate", "--dataset", "demo"], "one of the arguments --checkpoint --predictions is required"),
        (["evaluate", "--checkpoint", "a", "--predictions", "b"], "--predictions: not allowed with argument"),
        (["train", "--outp", "x"], "unknown option --outp"),
        ([], "the following arguments are required"),
    ],
)
def test_wrong_options_exit_2_and_are_named(words, said, capsys, calls):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not calls


# ---- which config counts


@pytest.mark.parametrize(
    "name, size, epochs", [("ava", 512, 30), ("para", 512, 100), ("demo", 160, 3), ("pairs", 224, 100)]
)
def test_a_set_comes_with_its_own_config(name, size, epochs):
    config = settings("train", "--dataset", name, "--data-root", "x")
    assert (config.data.dataset, config.data.size, config.train.epochs) == (name, size, epochs)
    assert settings("train", f"data.dataset={name.upper()}", "data.root=x") == config


@pytest.mark.parametrize(
    "words, size, schedule",
    [
        (["--dataset", "para", "--task", "emotion"], 512, "one_cycle"),
        (["--dataset", "EmoSet"], 512, "one_cycle"),
        (["--dataset", "demo", "--task", "emotion"], 160, "one_cycle"),
    ],
)
def test_emotions_have_one_recipe_for_all_sets_but_the_demo(words, size, schedule):
    config = settings("train", "--data-root", "x", *words)
    assert (config.task, config.data.size, config.optimizer.schedule) == ("emotion", size, schedule)


def test_several_sets_are_named_each_with_its_root():
    words = ["--dataset", "para", "--data-root", f"a{os.pathsep}b", "--dataset", "FI", "--data-root", "c"]
    config = settings("train", "--task", "emotion", *words)
    assert (config.data.names, config.data.roots) == (["para", "fi"], [f"a{os.pathsep}b", "c"])
    alone = settings("--dataset", "para", "--data-root", f"a{os.pathsep}b")  # of one set any name will do
    assert alone.data.roots == [f"a{os.pathsep}b"]


def test_other_configs_replace_it_and_lie_over_each_other(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 7, seed: 1}")
    (tmp_path / "b.yaml").write_text("train: {epochs: 8}")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    train = settings("--dataset", "para", "--data-root", "x", *files, "train.batch_size=3").train
    assert (train.epochs, train.seed, train.batch_size) == (8, 1, 3)


def test_options_win_over_words():
    config = settings(
        "--dataset", "para", "data.root=a", "--data-root", "b", "task=emotion", "--task", "aesthetics"
    )
    assert (config.data.root, config.task) == ("b", "aesthetics")
    assert settings("--dataset", "para", "data.dataset=ava", "data.root=a").data.dataset == "para"


def test_the_demo_needs_no_folder(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 7}")
    for words in ([], ["--config", str(tmp_path / "a.yaml")]):
        assert settings("--dataset", "demo", *words).data.root == "data/demo"
    assert settings("--dataset", "demo", "--data-root", "d").data.root == "d"


# ---- bad input


def assert_one_sentence(said: str, expected: str) -> None:
    lines = [line for line in said.splitlines() if line]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    assert expected in lines[0]


BAD_WORDS = [
    (["data.score_column=mos"], "has no column 'mos' (found: path, split, score"),
    (["data.target=distribution"], "data.target=distribution needs vote counts"),
    (["train.epoch=3"], "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
    (["fast"], "'fast' is neither an option nor key=value"),
    (["model.backbone=resnet5"], "timm cannot give 'resnet5' as a feature pyramid: Unknown model"),
    (["model.backbone=test_mambaout"], "backbones: "),
    (["model.context_scale=0"], "context_scale must be above 0 and at most 1, got 0"),
    (["train.device=gpu"], "device 'gpu' is unknown or not here; choose train.device from auto, cpu"),
    (["--config", "mine.yaml"], "no file mine.yaml; the shipped ones are in configs/"),
    (["--weights", "mine.pt"], "checkpoint: no file mine.pt"),
    (["--emotion-checkpoint", "mine.pt"], "checkpoint: no file mine.pt"),
    (["model.imagenet=mine.pth"], "no file mine.pth"),
]
BAD_SETS = [  # --dataset and --data-root are s and r here
    ("-s csv -r nowhere", "there is no folder nowhere; --data-root must name the csv folder"),
    ("-s para -r a -r b", "main: --data-root is given 2 times and --dataset 1 times; give one per set"),
    ("-s para -s fi -r a --task emotion", "--data-root must be given once per --dataset, in the same order"),
    ("-s para -s iae -r a -r b", "training: --task aesthetics takes one set of ava, para,"),
    ("-r . data.dataset=coco", "which data set? --dataset {ava,para,iae,"),
    ("-r .", "which data set? --dataset {ava,para,iae,"),
    ("-s para", "main: where is para? --data-root DIR"),
]


@pytest.mark.parametrize(("words", "said"), BAD_WORDS)
def test_bad_words_are_one_sentence_and_leave_no_trace(
    words, said, scored_set, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert train("csv", scored_set, tmp_path / "runs" / "run", UNTRAINED, *words) == 2
    assert_one_sentence(capsys.readouterr().err, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "said"), BAD_SETS)
def test_bad_sets_are_one_sentence_and_leave_no_trace(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"-s": "--dataset", "-r": "--data-root"}
    assert main(["train", UNTRAINED, *(options.get(word, word) for word in words.split())]) == 2
    assert_one_sentence(capsys.readouterr().err, said)
    assert not list(tmp_path.iterdir())


def test_from_a_shell_bad_input_is_one_line_and_status_2_and_a_link_to_the_program_finds_its_configs(
    tmp_path,
):
    (tmp_path / "eamb").symlink_to(program.__file__)
    words = ["--dataset", "CSV", "--data-root", "nowhere", "--output", "run"]
    done = command(tmp_path / "eamb", *words, folder=tmp_path)
    assert done.returncode == 2
    assert_one_sentence(done.stderr, "the emotion branch was never trained")  # as the config of csv needs it
    assert [path.name for path in tmp_path.iterdir()] == ["eamb"]


# ---- how a command ends


@pytest.mark.parametrize(
    "error, code, said",
    [
        (KeyboardInterrupt(), 130, "stopped here"),
        (interruption.Stopped(15), 143, "stopped here"),
        (PermissionError(13, "Permission denied", "run"), 2, "error: [Errno 13] Permission denied: 'run'"),
        (FloatingPointError("the loss is nan"), 2, "error: the loss is nan"),
    ],
)
def test_what_a_user_did_or_can_mend_is_a_sentence(error, code, said, capsys):
    def command(raised):
        raise raised

    assert guarded(command, error, "stopped here") == code
    assert capsys.readouterr().err == f"{said}\n"
    with pytest.raises(TypeError, match="ours"):
        guarded(command, TypeError("ours"))


def test_letters_that_the_terminal_lacks_are_written_out(monkeypatch):
    for encoding, shown in (
        ("ascii", r"\xfc \u1ec1 \udcff"),
        ("cp1252", r"ü \u1ec1 \udcff"),
        ("utf-8", r"ü ề \udcff"),
    ):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, write_through=True))
        assert guarded(lambda _: print("ü ề \udcff") or 0, argparse.Namespace()) == 0
        assert sys.stdout.buffer.getvalue() == f"{shown}\n".encode(encoding)


def test_a_tilde_in_an_option_is_a_home(calls, monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--dataset", "para", "--data-root=~/PARA", "--output=~/run", "train.emotion_maps=~/maps"]
    assert main([*words, "--weights=~/w.pt"]) == 0
    [(config, options)] = calls
    assert (config.data.root, config.train.emotion_maps) == ("/home/me/PARA", "/home/me/maps")
    assert (options["output"], options["weights"]) == (Path("/home/me/run"), "/home/me/w.pt")
    assert main([*words, "--output=~nobody-here/run"]) == 2
    assert_one_sentence(capsys.readouterr().err, "~nobody-here/run: this home folder is not known")


SCORED = ("--checkpoint", "none.pt")
WRITING = [  # a program and its words, in which OUT is where nothing can be written; nothing else exists
    ("main", "predict", "a.jpg", *SCORED, "--output", "OUT/s.csv"),
    ("main", "predict", "a.jpg", *SCORED, "--maps", "OUT"),
    ("main", "select", "a.jpg", *SCORED, "--output", "OUT/s.csv"),
    ("main", "select", "a.jpg", *SCORED, "--page", "OUT/page"),
    ("main", "train", "--dataset", "csv", "--data-root", "SET", "--output", "OUT", UNTRAINED),
    ("main", "evaluate", "--dataset", "csv", "--data-root", "SET", "--checkpoint", "RUN", "--output", "OUT"),
    ("scripts.benchmark", "--output", "OUT/b.json"),
    ("scripts.export", "none.pt", "OUT/e.onnx"),
    ("scripts.make_series", "--data-root", "none", "--output", "OUT"),
    ("scripts.measure_picks", "speed", "--output", "OUT"),
    ("scripts.prepare_data", "--dataset", "csv", "--data-root", "SET", "--output", "OUT"),
    ("scripts.scaling", "--output", "OUT/s.json"),
    ("scripts.series_table", "none", "--output", "OUT/s.json"),
    ("scripts.studies.colour", "--dataset", "demo", "--data-root", "none", *SCORED, "--output", "OUT"),
    ("scripts.studies.explain", "--dataset", "demo", "--data-root", "none", *SCORED, "--output", "OUT"),
    ("scripts.subgroups", "--dataset", "csv", "--data-root", "SET", "--predictions", "n", "--output", "OUT"),
    ("scripts.visualize_emotion", "--folder", ".", *SCORED, "--output", "OUT"),
]


@pytest.mark.parametrize("words", WRITING, ids=lambda words: " ".join(words[:2]))
def test_what_cannot_be_written_is_said_before_any_work(
    words, score_run, scored_set, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "open", None)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "read_only").mkdir(mode=0o555)
    run_words = importlib.import_module(words[0]).main
    for place in ("file", "file/new", "read_only", "read_only/new"):
        known = {"SET": str(scored_set), "RUN": str(score_run / "best.pt")}
        filled = [known.get(word, word.replace("OUT", place)) for word in words[1:]]
        with bound_by_permissions():
            assert run_words(filled) == 2
        assert "cannot be written (" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "read_only"]


def test_what_was_trained_scores_photographs(score_run, scored_set, tmp_path):
    words = ["--checkpoint", str(score_run / "best.pt"), "--output", str(tmp_path / "scores.csv")]
    pictures = [str(scored_set / "images" / f"0_{number:03d}.png") for number in (5, 11)]
    assert main(["predict", *pictures, *words, "--workers", "0", "--device", "cpu"]) == 0
    found = {Path(row["path"]).name: float(row["score"]) for row in read_csv(tmp_path / "scores.csv")}
    tested = read_csv(score_run / "test" / "predictions.csv")
    expected = {row["id"]: float(row["prediction"]) for row in tested if row["id"] in found}
    assert found == pytest.approx(expected, abs=1e-4)


# ---- the command that resumes


@pytest.mark.parametrize(
    ("world", "local", "started"),
    [
        (1, 1, "python main.py"),
        (2, 2, "torchrun --standalone --nproc_per_node=2 main.py"),
        (16, 8, "torchrun (--nnodes and the rest as before) --nproc_per_node=8 main.py"),
    ],
)
def test_the_command_that_resumes_is_the_one_that_began(world, local, started, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    options = parse(["train", "--force", "--output", "a run", "train.epochs=3", "--dataset", "demo"])
    expected = f"{started} train --output 'a run' train.epochs=3 --dataset demo --resume"
    assert resuming_command(options.words) == expected
