"""The paper's tables for one data set: emotion branch, main network, ablations, linear baseline, table.

    scripts/reproduce_tables.sh para --data-root PARA --dry-run     # commands, what is done, hours, memory
    scripts/reproduce_tables.sh para --data-root PARA
    scripts/reproduce_tables.sh ava --data-root AVA --emotion-checkpoint emotion_model.pth --official
    scripts/reproduce_tables.sh ava --data-root AVA --emotion-data emoset=EmoSet train.precision=bf16

With data.target=distribution, a set of scores that also has votes (PARA) is trained on the votes with EMD,
and its table also has the row of EMD per batch.

Every network is trained as configs/SET.yaml says (the published recipe) and scored once on test. A step whose
result is in OUTPUT/results with the same settings is not repeated; an interrupted training is resumed.
OUTPUT/tables.md has the table, OUTPUT/results the publishable files of the runs, OUTPUT/runs the weights.
With several GPUs, or NPROC=n in the environment, trainings run under torchrun.

Hours and memory are estimates. Hours: counted operations at an assumed share of a card's peak; Lite's
depthwise layers reach far less, so its hours are a lower bound. Memory: saved activations, weights, gradients
and Adam's two moments.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eamb.files import file_hash, written_whole
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
ROWS = {  # of the table: title, and the config that is laid over the set's own
    "main": ("EAMB-Net", ""),
    "no_emotion": ("without the emotion branch (map = 1)", "ablation_no_emotion"),
    "no_detail": ("without the detail branch", "ablation_no_detail"),
    "no_context": ("without the context branch", "ablation_no_context"),
    "no_guided_fusion": ("without guided fusion", "ablation_no_guided_fusion"),
    "no_attention": ("without CBAM", "ablation_no_attention"),
    "emotion_batchnorm": ("emotion BatchNorm as in the official code", "ablation_emotion_batchnorm"),
    "emd_batch": ("EMD per batch as in the official code", "ablation_emd_batch"),
    "linear": ("same backbone, linear head (NIMA style)", "linear"),
}
RECIPES = {  # set, Lite or not -> configs of the networks and of their emotion branch
    ("ava", False): ("ava", "emotion"),
    ("para", False): ("para", "emotion"),
    ("para", True): ("para_lite", "emotion_para_lite"),
    ("iae", False): ("iae", "emotion"),
    ("demo", False): ("demo", "demo"),
}
EMOTION_SETS = ("para", "iae", "demo", "emoset", "fi")
DECIDED = ("task", "data.dataset", "data.root", "model.network", "model.without")  # by this script
DECIDED += ("train.seed", "train.score_test")
PROGRAMS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}

PICTURES = {  # of train, val (0: `data.validation` of train) and test; of emoset and fi approximately
    "ava": (235_600, 0, 19_930),
    "para": (28_220, 0, 3_000),
    "iae": (15_460, 2_208, 4_418),
    "demo": (190, 38, 76),
    "emoset": (94_480, 5_910, 17_720),
    "fi": (18_650, 1_170, 3_500),
}
# FLOP/s; in fp32 convolutions run in TF32.
PEAK = {"fp32": 35.6e12, "bf16": 71e12, "fp16": 71e12, "auto": 71e12}
SHARE = 0.25  # of the peak that training reaches; assumed
# Backbone -> picture side for which the rest holds; row (missing ones as "main") -> GFLOP (multiply-add: 2)
# of a picture's forward pass in the trained part and in the frozen emotion branch, MB kept per picture for
# the backward pass in fp32, millions of trained parameters.
COSTS = {
    "resnet50": {
        "size": 512,
        "emotion": (18.24, 0, 124, 15.0),
        "main": (53.01, 18.24, 518, 29.0),
        "no_emotion": (53.00, 0, 518, 29.0),
        "no_detail": (16.64, 18.24, 128, 27.3),
        "no_context": (36.61, 18.24, 383, 3.6),
        "linear": (42.71, 0, 449, 23.5),
    },
    "tf_efficientnet_lite0": {
        "size": 224,
        "emotion": (0.91, 0, 81, 3.6),
        "main": (1.86, 0.91, 86, 3.8),
        "no_emotion": (1.86, 0, 86, 3.8),
        "no_detail": (1.82, 0.91, 86, 3.8),
        "no_context": (1.06, 0.91, 58, 0.6),
        "linear": (0.77, 0, 80, 3.4),
    },
}


@dataclass(frozen=True)
class Step:
    """A training and its test.

    row: that of the table, or "emotion". words: for `main.py train`. branch: its emotion checkpoint.
    run, result: folders of the run, and of its publishable files.
    """

    name: str
    row: str
    words: list[str]
    config: Config
    run: Path
    result: Path
    branch: Path | None = None

    @property
    def commands(self) -> list[list[str]]:
        """The training, which resumes if it was interrupted, and the copy of its publishable files."""
        import torch

        count = os.environ.get("NPROC") or str(torch.cuda.device_count())
        start = ["torchrun", "--standalone", f"--nproc_per_node={count}"]
        if count in ("0", "1"):
            start = ["python"]
        train = [*start, program("main.py"), "train", *self.words, "--output", str(self.run), "--resume"]
        return [train, ["python", program("scripts/keep_run.py"), str(self.run), str(self.result)]]


def main(arguments: list[str] | None = None) -> int:
    return guarded(reproduce, parse(arguments), interrupted="interrupted; the same command goes on")


def reproduce(options: argparse.Namespace) -> int:
    steps = plan(options)
    unfinished = [step for step in steps if not is_done(step)]
    output, resamples = options.output, steps[-1].config.evaluate.bootstrap
    table = ["python", program("scripts/make_tables.py"), "--results", str(output / "results")]
    table += ["--readme", str(output / "tables.md"), *(["--resamples", str(resamples)] if resamples else [])]
    table += ["--data-root", f"{options.dataset}={options.data_root}"]
    show(steps, unfinished, table, options.dry_run)
    if options.dry_run:
        return 0
    for step in unfinished:
        print(f"\n{step.name}")
        for command in step.commands:
            if code := execute(command):
                print(f"reproduce_tables: stopped in {step.name}; the same command goes on", file=sys.stderr)
                return code
    describe_table(steps, options)
    return execute(table)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="reproduce_tables.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", metavar="{ava,para,iae,demo}", type=str.lower)
    parser.add_argument("--data-root", metavar="DIR", help="the set's folder, as in docs/data.md")
    branch = parser.add_mutually_exclusive_group()
    branch.add_argument("--emotion-checkpoint", metavar="FILE", type=Path, help="weights of a trained branch")
    what = f"what the branch is trained on ({', '.join(EMOTION_SETS)}); default: the set itself"
    branch.add_argument("--emotion-data", metavar="SET=DIR", action="append", default=[], help=what)
    parser.add_argument("--official", action="store_true", help="with configs/official.yaml over all")
    parser.add_argument("--lite", action="store_true", help="EAMB-Net Lite at 224 px instead (para)")
    parser.add_argument("--seeds", default="0", help="as in 0,1,2; the branch has one, 0")
    parser.add_argument("--only", metavar="ROW,...", default="", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: runs/tables_<set>")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and run nothing")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="for every training")
    return parser.parse_intermixed_args(arguments)


# ---- What is to be done


def plan(options: argparse.Namespace) -> list[Step]:
    """The trainings in order. Rows that would repeat the main network are left out with a printed note.

    Raises:
        ValueError, FileNotFoundError: wrong or contradictory options, settings that a training would
            refuse, missing data.
    """
    check_options(options)
    name, branch = options.dataset, options.emotion_checkpoint
    options.prefix = name + "_lite" * options.lite + "_official" * options.official
    options.output = options.output or Path("runs") / f"tables_{options.prefix}"
    options.data_root = options.data_root or ("data/demo" if name == "demo" else "DIR")
    sets, emotions = {name: options.data_root}, {}
    main_config = make_step(options, "main", sets).config
    target = main_config.data.target
    votes = target == "distribution" or (target == "auto" and name in ("ava", "demo"))  # EMD is the loss
    possible = [row for row in ROWS if row != "emd_batch" or votes]
    rows = list(dict.fromkeys(options.only.split(","))) if options.only else possible
    if wrong := [row for row in rows if row not in possible]:
        raise ValueError(
            f"reproduce_tables: --only takes, for {name}, some of {', '.join(possible)}, got '{wrong[0]}'"
        )
    steps = []
    for row in rows:
        if row != "main" and make_step(options, row, sets).config == main_config:
            print(f"{row}: left out, because with these settings it is the main network")
        else:
            steps += [make_step(options, row, sets, int(seed)) for seed in options.seeds.split(",")]
    if not steps:
        raise ValueError("reproduce_tables: no row is left to make; let --only name others")
    if not branch and any(step.branch for step in steps):
        pairs = [word.partition("=") for word in options.emotion_data]
        emotions = {key.lower(): folder for key, _, folder in pairs} or sets
        if wrong := [key for key, folder in emotions.items() if key not in EMOTION_SETS or not folder]:
            raise ValueError(
                f"reproduce_tables: {wrong[0]} has no emotions, or no folder; give the branch's weights "
                "with --emotion-checkpoint FILE, or what to train it on with --emotion-data SET=DIR, of "
                f"{', '.join(EMOTION_SETS)}"
            )
        steps.insert(0, make_step(options, "emotion", emotions))
    needed = [
        folder for key, folder in (*sets.items(), *emotions.items()) if key != "demo"
    ]  # it makes itself
    missing = [path for path in (*needed, branch) if path and not Path(path).exists()]
    if missing and not options.dry_run:
        raise FileNotFoundError(
            f"reproduce_tables: there is no {missing[0]}; give what is there with --data-root, "
            "--emotion-data or --emotion-checkpoint"
        )
    from eamb.training.tasks import choose_task

    for step in steps:
        choose_task(step.config).check()
    return steps


def check_options(options: argparse.Namespace) -> None:
    name, seeds = options.dataset, options.seeds.split(",")
    if (name, options.lite) not in RECIPES:
        sets = ", ".join(name + " --lite" * lite for name, lite in RECIPES)
        raise ValueError(f"reproduce_tables: there are recipes for {sets}, not for '{name}'")
    if not all(seed.isdecimal() for seed in seeds) or len({*seeds}) < len(seeds):
        raise ValueError(
            f"reproduce_tables: --seeds takes different whole numbers, as in 0,1,2, got '{options.seeds}'"
        )
    if decided := [word for word in options.settings if word.partition("=")[0] in DECIDED]:
        raise ValueError(
            f"reproduce_tables: leave '{decided[0]}' out; sets, seeds and parts of the network are decided "
            "step by step (--data-root, --emotion-data, --seeds, --only)"
        )


def make_step(options: argparse.Namespace, row: str, sets: dict[str, str], seed: int = 0) -> Step:
    """The training of a row of the table, or of the "emotion" branch, on sets (name -> folder)."""
    emotion = row == "emotion"
    prefix, output = options.prefix, options.output
    names = [RECIPES[options.dataset, options.lite][emotion], "official" * options.official]
    names += [] if emotion else [ROWS[row][1]]
    configs = [program(f"configs/{name}.yaml") for name in names if name]
    # Maps can be kept only of a frozen branch; data.target concerns ratings, not emotions.
    dropped = ("train.emotion_maps",) if row in ("emotion", "emotion_batchnorm") else ()
    dropped += ("data.target",) if emotion else ()
    settings = [] if emotion else [f"train.seed={seed}"]
    settings += [word for word in options.settings if word.partition("=")[0] not in dropped]
    task = "emotion" if emotion else "aesthetics"
    config = load_config(configs, [*settings, f"task={task}", f"data.dataset={'+'.join(sets)}"])
    words = ["--task", "emotion"] if emotion else []
    for dataset, folder in sets.items():
        words += ["--dataset", dataset, "--data-root", folder]
    words += [word for file in configs for word in ("--config", file)] + settings
    branch = None
    if not emotion and config.model.network == "eambnet" and config.model.without != "emotion":
        branch = options.emotion_checkpoint or output / "runs" / f"{prefix}_emotion" / "best.pt"
        words += ["--emotion-checkpoint", str(branch)]
    name = f"{prefix}_emotion" if emotion else f"{prefix}_{row}_seed{seed}"
    return Step(name, row, words, config, output / "runs" / name, output / "results" / name, branch)


# ---- Doing it


def is_done(step: Step) -> bool:
    """Whether its result exists.

    Raises:
        ValueError: the result was made with other settings or with another emotion branch.
    """
    if not step.result.is_dir():
        return False
    from eamb.training.resuming import changed_settings

    before = load_config([step.result / "config.yaml"]).as_dict()
    differences = changed_settings(before, step.config.as_dict())
    if step.branch and step.branch.is_file():
        origin = json.loads((step.result / "metrics.json").read_text(encoding="utf-8"))["origin"]
        if origin["emotion_checkpoint_sha256"] != file_hash(step.branch):
            differences.append(f"the emotion checkpoint was another file than {step.branch}")
    if differences:
        raise ValueError(
            f"reproduce_tables: {step.result} was made with other settings ({'; '.join(differences)}); "
            "choose another --output"
        )
    return True


def execute(command: list[str]) -> int:
    """Runs a command; returns its exit code. Signals are left to the training, which saves and ends."""
    sys.stdout.flush()  # before the command prints
    process = Popen([*PROGRAMS[command[0]], *command[1:]])
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the training too
            continue


def program(name: str) -> str:
    return os.path.relpath(ROOT / name)


def describe_table(steps: list[Step], options: argparse.Namespace) -> None:
    """Writes what make_tables.py needs: tables.md with markers to fill, and tables.yaml."""
    config, rows = steps[-1].config, {}
    for step in steps:
        if step.row != "emotion":
            rows.setdefault(ROWS[step.row][0], []).append(step.name)
    title = f"{options.dataset.upper()}, test pictures; {config.model.backbone}, {config.data.size} px, "
    title += f"{config.train.epochs} epoch{'s' * (config.train.epochs > 1)}"
    title += ", with the official code's quirks" * options.official
    table = {"name": f"{options.dataset}_reproduced", "title": f"{title}."}
    table["rows"] = [{"name": name, "runs": runs} for name, runs in rows.items()]
    if ROWS["main"][0] in rows and len(rows) > 1:
        table["reference"] = ROWS["main"][0]
    markers = f"<!-- table {table['name']} -->\n<!-- end of table {table['name']} -->"
    for path, text in {
        options.output / "results" / "tables.yaml": yaml.safe_dump(
            [table], sort_keys=False, allow_unicode=True
        ),
        options.output / "tables.md": f"# {options.dataset.upper()}\n\n{markers}\n",
    }.items():
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


# ---- Printing the steps and their cost


def show(steps: list[Step], unfinished: list[Step], table: list[str], commands: bool) -> None:
    known = steps[0].config.model.backbone in COSTS
    costs = {step.name: estimate(step) if known else (0.0, 0.0) for step in steps}
    for step in steps:
        hours, gigabytes = costs[step.name]
        cost = f"{duration(hours)}, {gigabytes:.1f} GB" if known else "cost not known"
        title = f"emotion branch on {' and '.join(step.config.data.names)}"
        if step.row != "emotion":
            title = f"{ROWS[step.row][0]}, seed {step.config.train.seed}"
        print(f"{step.name} ({title}): {cost if step in unfinished else 'done already'}")
        for command in step.commands if commands else ():
            print(f"  {shlex.join(command)}")
    if commands:
        print(f"table\n  {shlex.join(table)}")
    if known:
        total, remaining = (sum(costs[step.name][0] for step in part) for part in (steps, unfinished))
        print(
            f"\n{duration(total)} in all, {duration(remaining)} still to do, on one RTX 3090 (24 GB): "
            f"counted operations, at an assumed {SHARE:.0%} of its peak (35.6 TFLOP/s in fp32, whose "
            "convolutions run in TF32, 71 in bf16 and fp16), if pictures are decoded fast enough.\n"
            f"At most {max(memory for _, memory in costs.values()):.1f} GB on one GPU: weights, gradients, "
            "Adam, saved activations; passing values and cuDNN's workspace come on top. Estimates, not "
            "measured."
        )


def duration(hours: float) -> str:
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.2g} h"


def estimate(step: Step) -> tuple[float, float]:
    """Hours and gigabytes of a training on one card, with its validations and its test.

    A step costs 3 forward passes of the trained part (backward is twice forward) and 1 of the frozen branch;
    validation and test cost 1 of everything, in fp32. Memory: weights, gradients and Adam's two moments,
    4 bytes each, and what the batch keeps for the backward pass (in half precision about 0.6 of it).
    """
    config, costs = step.config, COSTS[step.config.model.backbone]
    trained, frozen, kept, parameters = costs.get(step.row, costs["main"])
    area = (config.data.size / costs["size"]) ** 2
    operations = 0.0
    for train, val, test in (PICTURES[name] for name in config.data.names):
        if not val:
            val = round(train * config.data.validation)
            train -= val
        shown = min(train, config.data.limit or train) * config.train.epochs
        operations += shown * (3 * trained + frozen) / PEAK[config.train.precision]
        operations += (val * config.train.epochs + test) * (trained + frozen) / PEAK["fp32"]
    half = 1 if config.train.precision == "fp32" else 0.6
    memory = 16 * parameters / 1e3 + config.train.batch_size * kept * area * half / 1e3
    return operations * 1e9 * area / SHARE / 3600, memory


if __name__ == "__main__":
    sys.exit(main())
