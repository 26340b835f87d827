"""The paper's tables for one data set: emotion branch, main network, ablations, linear baseline, table.

    scripts/reproduce_tables.sh para --data-root PARA --dry-run     # commands, what is done, hours, memory
    scripts/reproduce_tables.sh para --data-root PARA
    scripts/reproduce_tables.sh ava --data-root AVA --emotion-checkpoint emotion_model.pth --official
    scripts/reproduce_tables.sh ava --data-root AVA --emotion-data emoset=EmoSet train.precision=bf16

With data.target=distribution a score set that has votes (PARA) is trained on them, by EMD, and its table has
the row of EMD per batch too.

Every network is trained as configs/SET.yaml says (the published recipe) and scored once on test. A step whose
result is in OUTPUT/results with the same settings is not run again, a training that was interrupted goes on.
OUTPUT/tables.md has the table, OUTPUT/results what may be published of the runs, OUTPUT/runs the weights.
With several GPUs, or NPROC=n in the environment, trainings run under torchrun.

Hours and memory are estimates: floating point operations are counted, and divided by an assumed share of a
card's peak; saved activations are counted, and weights, gradients and Adam's two moments added. Lite's
depthwise layers reach a far smaller share: its hours are the least it can take.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from subprocess import Popen

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eamb.files import file_hash, written_whole
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
ROWS = {  # of the table: name, and the config that is laid over the set's
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
DISTRIBUTIONS = ("ava", "demo")  # sets that are trained on votes, by EMD, unless data.target says otherwise
DECIDED = ("task", "data.dataset", "data.root", "model.network", "model.without")  # by the steps themselves
DECIDED += ("train.seed", "train.score_test")

# Pictures of train, val (0: a share of train, `data.validation`) and test; of emoset and fi about.
SETS = {"ava": (235_600, 0, 19_930), "para": (28_220, 0, 3_000)}
SETS |= {"iae": (15_460, 2_208, 4_418), "demo": (190, 38, 76)}
EMOTION_SETS = {name: SETS[name] for name in ("para", "iae", "demo")}
EMOTION_SETS |= {"emoset": (94_480, 5_910, 17_720), "fi": (18_650, 1_170, 3_500)}

CARD = "RTX 3090"  # 24 GB
PEAK = {"fp32": 35.6e12, "bf16": 71e12, "fp16": 71e12}  # FLOP/s; in fp32 convolutions run in TF32
SHARE = 0.25  # of the peak that is reached; assumed
PROGRAMS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}


@dataclass(frozen=True)
class Step:
    """A training with its test.

    row: of the table, or "emotion". words: of `main.py train`. branch: the emotion checkpoint it is given.
    """

    name: str
    row: str
    words: list[str]
    config: Config
    output: Path
    branch: Path | None = None

    @property
    def run(self) -> Path:
        return self.output / "runs" / self.name

    @property
    def result(self) -> Path:
        return self.output / "results" / self.name

    @property
    def title(self) -> str:
        if self.row == "emotion":
            return f"emotion branch on {' and '.join(self.config.data.names)}"
        return f"{ROWS[self.row][0]}, seed {self.config.train.seed}"

    @property
    def commands(self) -> list[list[str]]:
        """The training, which goes on where it was interrupted, and the copy of its small files."""
        count = processes()
        start = ["torchrun", "--standalone", f"--nproc_per_node={count}"] if count > 1 else ["python"]
        train = [*start, program("main.py"), "train", *self.words, "--output", str(self.run), "--resume"]
        return [train, ["python", program("scripts/keep_run.py"), str(self.run), str(self.result)]]


def main(arguments: list[str] | None = None) -> int:
    return guarded(reproduce, parse(arguments), interrupted="interrupted; the same command goes on")


def reproduce(options: argparse.Namespace) -> int:
    steps = plan(options)
    unfinished = [step for step in steps if not is_done(step)]
    table = table_command(steps, options)
    show(steps, unfinished, table, options.dry_run)
    if options.dry_run:
        return 0
    for step in unfinished:
        print(f"\n{step.name}", flush=True)
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
    parser.add_argument("--emotion-checkpoint", metavar="FILE", type=Path, help="weights of a trained branch")
    parser.add_argument(
        "--emotion-data",
        metavar="SET=DIR",
        action="append",
        default=[],
        help=f"what the branch is trained on ({', '.join(EMOTION_SETS)}); default: the set itself",
    )
    parser.add_argument("--official", action="store_true", help="with configs/official.yaml over all")
    parser.add_argument("--lite", action="store_true", help="EAMB-Net Lite at 224 px instead (para)")
    parser.add_argument("--seeds", default="0", help="as in 0,1,2; the branch has one, 0")
    parser.add_argument("--only", metavar="ROW,...", default="", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: runs/tables_<set>")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and run nothing")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="for every training")
    return parser.parse_intermixed_args(arguments)


# ---- What there is to do


def plan(options: argparse.Namespace) -> list[Step]:
    """The trainings in their order. Rows that would repeat the main network are left out, and it is said.

    Raises:
        ValueError, FileNotFoundError: options that are wrong or contradict each other, settings that a
            training would refuse at its start, data that is not there.
    """
    check_options(options)
    main_config = make_step(options, "main").config
    possible = [row for row in ROWS if row != "emd_batch" or predicts_votes(main_config)]
    rows = list(dict.fromkeys(options.only.split(","))) if options.only else possible
    if wrong := [row for row in rows if row not in possible]:
        raise ValueError(
            f"reproduce_tables: --only takes, for {options.dataset}, some of {', '.join(possible)}, "
            f"got '{wrong[0]}'"
        )
    steps = []
    for row in rows:
        if row != "main" and make_step(options, row).config == main_config:
            print(f"{row}: left out, because with these settings it is the main network")
        else:
            steps += [make_step(options, row, int(seed)) for seed in options.seeds.split(",")]
    if not steps:
        raise ValueError("reproduce_tables: no row is left to make; let --only name others")
    if not options.emotion_checkpoint and any(step.branch for step in steps):
        steps.insert(0, make_step(options, "emotion"))
    if not options.dry_run:
        check_files(options)
    from eamb.training.tasks import choose_task

    for step in steps:
        choose_task(step.config).check()
    return steps


def check_options(options: argparse.Namespace) -> None:
    name, seeds = options.dataset, options.seeds.split(",")
    if name not in SETS:
        raise ValueError(f"reproduce_tables: there are recipes for {', '.join(SETS)}, not for '{name}'")
    if (name, options.lite) not in RECIPES:
        where = "its recipe is Lite's already" if name == "demo" else "there is no Lite recipe for it"
        raise ValueError(f"reproduce_tables: --lite is for para; {name}: {where}")
    if not all(seed.isdecimal() for seed in seeds) or len({*seeds}) < len(seeds):
        raise ValueError(
            f"reproduce_tables: --seeds takes different whole numbers, as in 0,1,2, got '{options.seeds}'"
        )
    if options.emotion_checkpoint and options.emotion_data:
        raise ValueError("reproduce_tables: with --emotion-checkpoint the branch needs no --emotion-data")
    if decided := [word for word in options.settings if word.partition("=")[0] in DECIDED]:
        raise ValueError(
            f"reproduce_tables: leave '{decided[0]}' out; sets, seeds and parts of the network are decided "
            "step by step (--data-root, --emotion-data, --seeds, --only)"
        )


def check_files(options: argparse.Namespace) -> None:
    """Raises for the first file or folder that is not given or not there; the demo set makes itself."""
    if not options.data_root and options.dataset != "demo":
        raise ValueError(f"reproduce_tables: where is {options.dataset}? --data-root DIR")
    folders = {options.dataset: data_root(options)} | (emotion_sets(options) if options.emotion_data else {})
    for name, folder in folders.items():
        if name != "demo" and not Path(folder).is_dir():
            raise FileNotFoundError(f"reproduce_tables: there is no folder {folder} for {name}")
    branch = options.emotion_checkpoint
    if branch and not branch.is_file():
        raise FileNotFoundError(f"reproduce_tables: there is no emotion checkpoint {branch}")


def data_root(options: argparse.Namespace) -> str:
    """The set's folder; of the demo there is a usual one, and a dry run needs none."""
    return options.data_root or ("data/demo" if options.dataset == "demo" else "DIR")


def emotion_sets(options: argparse.Namespace) -> dict[str, str]:
    """Set -> folder, what the emotion branch is trained on.

    Raises:
        ValueError: none is given and the set has no emotions, or one that is not known.
    """
    if not options.emotion_data and options.dataset not in EMOTION_SETS:
        raise ValueError(
            f"reproduce_tables: {options.dataset} has no emotions; give the branch's weights with "
            "--emotion-checkpoint FILE, or what to train it on with --emotion-data SET=DIR"
        )
    pairs = [word.partition("=") for word in options.emotion_data]
    for name, _, folder in pairs:
        if name.lower() not in EMOTION_SETS or not folder:
            raise ValueError(
                f"reproduce_tables: --emotion-data takes SET=DIR with a set of {', '.join(EMOTION_SETS)}, "
                f"got '{name}={folder}'"
            )
    return {name.lower(): folder for name, _, folder in pairs} or {options.dataset: data_root(options)}


def predicts_votes(config: Config) -> bool:
    """Whether EMD is the loss."""
    target = config.data.target
    return target == "distribution" or (target == "auto" and config.data.names[0] in DISTRIBUTIONS)


def make_step(options: argparse.Namespace, row: str, seed: int = 0) -> Step:
    emotion = row == "emotion"
    prefix = options.dataset + "_lite" * options.lite + "_official" * options.official
    output = options.output or Path("runs") / f"tables_{prefix}"
    sets = emotion_sets(options) if emotion else {options.dataset: data_root(options)}
    names = [RECIPES[options.dataset, options.lite][emotion], "official" * options.official]
    names += [] if emotion else [ROWS[row][1]]
    configs = [program(f"configs/{name}.yaml") for name in names if name]
    # Maps are kept of a branch that stays as it is; how ratings are read says nothing about emotions.
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
    return Step(name, row, words, config, output, branch)


# ---- Doing it


def is_done(step: Step) -> bool:
    """Whether its result is there.

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
    """The exit code. A signal is for the training, which saves where it is and ends; we wait for it."""
    process = Popen([*PROGRAMS[command[0]], *command[1:]])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # Ctrl-C reaches the training too
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def processes() -> int:
    """NPROC, or one for each GPU, at least one.

    Raises:
        ValueError: NPROC is no number of processes.
    """
    wanted = os.environ.get("NPROC", "")
    if not wanted:
        import torch

        return max(1, torch.cuda.device_count())
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"reproduce_tables: NPROC is the number of processes, from 1 up, got '{wanted}'")
    return int(wanted)


def describe_table(steps: list[Step], options: argparse.Namespace) -> None:
    """Writes what make_tables.py fills and reads: tables.md with markers, tables.yaml, published.csv."""
    output, config = steps[0].output, steps[-1].config
    rows: dict[str, list[str]] = {}
    for step in steps:
        if step.row != "emotion":
            rows.setdefault(ROWS[step.row][0], []).append(step.name)
    epochs = config.train.epochs
    title = f"{options.dataset.upper()}, test pictures; {config.model.backbone}, {config.data.size} px, "
    title += f"{epochs} epoch{'s' * (epochs > 1)}"
    title += ", with the official code's quirks" * options.official
    ours = {"name": f"{options.dataset}_reproduced", "title": f"{title}."}
    ours["rows"] = [{"name": name, "runs": runs} for name, runs in rows.items()]
    if ROWS["main"][0] in rows and len(rows) > 1:
        ours["reference"] = ROWS["main"][0]
    # Below ours stand the figures of others on the same test pictures.
    shipped = yaml.safe_load((ROOT / "results" / "tables.yaml").read_text(encoding="utf-8"))
    blocks = [t for t in shipped if t.get("block") in (options.dataset, f"{options.dataset}_official")]
    tables = [ours, *blocks]
    published = pd.read_csv(ROOT / "results" / "published.csv", dtype=str, keep_default_na=False)
    published = published[published["block"].isin([table["block"] for table in blocks])]
    markers = [f"<!-- table {t['name']} -->\n<!-- end of table {t['name']} -->" for t in tables]
    for path, text in {
        output / "results" / "published.csv": published.to_csv(index=False, lineterminator="\n"),
        output / "results" / "tables.yaml": yaml.safe_dump(tables, sort_keys=False, allow_unicode=True),
        output / "tables.md": "\n\n".join([f"# {options.dataset.upper()}", *markers]) + "\n",
    }.items():
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def table_command(steps: list[Step], options: argparse.Namespace) -> list[str]:
    output, resamples = steps[0].output, steps[-1].config.evaluate.bootstrap
    words = ["--results", str(output / "results"), "--readme", str(output / "tables.md")]
    words += ["--resamples", str(resamples)] if resamples else []
    words += ["--data-root", f"{options.dataset}={data_root(options)}"]
    return ["python", program("scripts/make_tables.py"), *words]


def program(name: str) -> str:
    return os.path.relpath(ROOT / name)


# ---- Saying what it is and what it costs


def show(steps: list[Step], unfinished: list[Step], table: list[str], commands: bool) -> None:
    costs = {
        step.name: estimate(replace(step.config, train=replace(step.config.train, seed=0))) for step in steps
    }
    for step in steps:
        hours, gigabytes = costs[step.name]
        said = f"{duration(hours)}, {gigabytes:.1f} GB" if step in unfinished else "done already"
        print(f"{step.name} ({step.title}): {said}")
        for command in step.commands if commands else ():
            print(f"  {shlex.join(command)}")
    if commands:
        print(f"table\n  {shlex.join(table)}")
    total, remaining = (sum(costs[step.name][0] for step in part) for part in (steps, unfinished))
    print(
        f"\n{duration(total)} in all, {duration(remaining)} still to do, on one {CARD} (24 GB): counted "
        f"operations, at an assumed {SHARE:.0%} of its peak ({PEAK['fp32'] / 1e12:g} TFLOP/s in fp32, whose "
        f"convolutions run in TF32, {PEAK['bf16'] / 1e12:g} in bf16 and fp16), if pictures are decoded fast "
        "enough.\n"
        f"At most {max(memory for _, memory in costs.values()):.1f} GB on one GPU: weights, gradients, Adam, "
        "saved activations; passing values and cuDNN's workspace come on top. Estimates, not measured.",
        flush=True,
    )


def duration(hours: float) -> str:
    """With two digits, or all before the point."""
    if 0 < hours < 0.001:  # of the demo
        return "under 0.001 h"
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.2g} h"


def estimate(config: Config) -> tuple[float, float]:
    """Hours and gigabytes of a training on one card, its validations and its test included.

    A step costs 3 forward passes of what is trained (backward is twice forward), 1 of the frozen branch;
    validation and test cost 1 of all, in fp32. Memory: weights of all, gradients and Adam's two moments of
    what is trained, 4 bytes each, and what the batch keeps for the backward pass.
    """
    forward, frozen, activations, parameters, trained_parameters = count_network(
        replace(config, train=replace(config.train, seed=0))  # the same for all seeds
    )
    train, val, test = pictures(config)
    steps = train * config.train.epochs * (3 * (forward - frozen) + frozen)
    passes = (val * config.train.epochs + test) * forward
    seconds = (steps / PEAK[config.train.precision] + passes / PEAK["fp32"]) / SHARE
    state = 4 * (parameters + 3 * trained_parameters)
    return seconds / 3600, (state + config.train.batch_size * activations) / 1e9


def pictures(config: Config) -> list[int]:
    """How many an epoch shows, how many each validation and the test."""
    repeats = config.data.repeat.split(",") if config.data.repeat else ["1"] * len(config.data.names)
    counts = []
    for name, repeat in zip(config.data.names, repeats, strict=True):
        train, val, test = (SETS | EMOTION_SETS)[name]
        if not val:
            val = round(train * config.data.validation)
            train -= val
        counts.append((min(train, config.data.limit or train) * int(repeat), val, test))
    return [sum(column) for column in zip(*counts, strict=True)]


@cache
def count_network(config: Config) -> tuple[float, float, float, int, int]:
    """Counted at the config's own size, on tensors that have shapes and no values.

    Returns:
        FLOP (2 a multiply-add) of a picture's forward pass, and those in the frozen emotion branch; bytes
        kept of one picture for the backward pass; parameters of all and of what is trained.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from eamb.network.outputs import PRECISIONS

    batch, precision = 2, PRECISIONS[config.train.precision]
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        saved[memory._cdata] = memory  # referenced, or another could get its number
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with FakeTensorMode(), nullcontext() if precision == torch.float32 else torch.autocast("cpu", precision):
        network, frozen_branch = build_network(config)
        images = torch.empty(batch, 3, config.data.size, config.data.size)
        with FlopCounterMode(display=False) as whole, hooks:
            network(images)
        with FlopCounterMode(display=False) as frozen:
            if frozen_branch:
                network.emotions(images)
    weights = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}
    return (
        whole.get_total_flops() / batch,
        frozen.get_total_flops() / batch,
        sum(memory.nbytes() for number, memory in saved.items() if number not in weights) / batch,
        sum(p.numel() for p in network.parameters()),
        sum(p.numel() for p in network.parameters() if p.requires_grad),
    )


def build_network(config: Config):
    """The config's network, and whether a frozen emotion branch is in it."""
    from eamb.network.outputs import EMOTIONS, Scale
    from eamb.readers.ava import AVA_BINS
    from eamb.readers.para import PARA_BINS
    from eamb.training.tasks import choose_task

    ratings = PARA_BINS if config.data.names[0] == "para" else AVA_BINS
    bins = ratings if predicts_votes(config) else ()
    scale = Scale("distribution" if bins else "score", ratings[0], ratings[-1], ratings[4], bins=bins)
    task = choose_task(config)
    network = task.build(scale, EMOTIONS if task.has_emotion_branch else ())
    return network, task.has_emotion_branch and not task.learns_emotions


if __name__ == "__main__":
    sys.exit(main())
