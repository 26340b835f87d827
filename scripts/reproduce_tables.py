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
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main as program
from eamb.files import original, write_csv
from eamb.runtime.command import guarded
from eamb.runtime.config import Config, load_config
from scripts import keep_run

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
DISTRIBUTIONS = ("ava", "demo")  # sets that are trained on votes, by EMD, unless data.target says otherwise
DECIDED = ("task", "data.dataset", "data.root", "model.network", "model.without")  # by the steps themselves
DECIDED += ("train.seed", "train.score_test")
RECIPES = {  # set, Lite or not -> configs of the networks and of their emotion branch
    ("ava", False): ("ava", "emotion"),
    ("para", False): ("para", "emotion"),
    ("para", True): ("para_lite", "emotion_para_lite"),
    ("iae", False): ("iae", "emotion"),
    ("demo", False): ("demo", "demo"),
}


class Pictures(NamedTuple):
    """How many a set has. val: 0 where it is a share of train, `data.validation`."""

    train: int
    val: int
    test: int


SETS = {"ava": Pictures(235_600, 0, 19_930), "para": Pictures(28_220, 0, 3_000)}
SETS |= {"iae": Pictures(15_460, 2_208, 4_418), "demo": Pictures(190, 38, 76)}
EMOTION_SETS = {name: SETS[name] for name in ("para", "iae", "demo")}
EMOTION_SETS |= {"emoset": Pictures(94_480, 5_910, 17_720), "fi": Pictures(18_650, 1_170, 3_500)}  # about

CARD = "RTX 3090"  # 24 GB
PEAK = {"fp32": 35.6e12, "bf16": 71e12, "fp16": 71e12}  # FLOP/s; in fp32 convolutions run in TF32
SHARE = 0.25  # of the peak that is reached; assumed


@dataclass(frozen=True)
class Step:
    """A training with its test.

    row: of the table, or "emotion". words: of `main.py train`. branch: the emotion checkpoint it stands on.
    """

    name: str
    row: str
    words: tuple[str, ...]
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


def main(arguments: list[str] | None = None) -> int:
    return guarded(run, parse(arguments), interrupted="interrupted; the same command goes on")


def run(options: argparse.Namespace) -> int:
    check_options(options)
    steps = plan(options)
    if not options.dry_run:
        check_files(options)
    check_networks(steps)
    left = to_do(steps)
    show(steps, left, options)
    if options.dry_run:
        return 0
    for step in left:
        shutil.rmtree(step.result, ignore_errors=True)  # of a branch whose weights are gone
        if code := train(step):
            print(f"reproduce_tables: stopped in {step.name}; the same command goes on", file=sys.stderr)
            return code
        keep_run.keep(step.run, step.run / "test", step.result)
    return make_table(steps, options, bool(left))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="reproduce_tables.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", metavar="{ava,para,iae,demo}", type=str.lower)
    parser.add_argument("--data-root", metavar="DIR", help="the set's folder, as in the README")
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


# ---------------------------------------------------------------------------------------------------
# What there is to do


def check_options(options: argparse.Namespace) -> None:
    """Raises ValueError, in one sentence, for options that are wrong or contradict each other."""
    name = options.dataset
    if name not in SETS:
        raise ValueError(f"reproduce_tables: there are recipes for {', '.join(SETS)}, not for '{name}'")
    if (name, options.lite) not in RECIPES:
        where = "its recipe is Lite's already" if name == "demo" else "there is no Lite recipe for it"
        raise ValueError(f"reproduce_tables: --lite is for para; {name}: {where}")
    if options.emotion_checkpoint and options.emotion_data:
        raise ValueError("reproduce_tables: with --emotion-checkpoint the branch needs no --emotion-data")
    for word in options.settings:
        if word.partition("=")[0] in DECIDED:
            raise ValueError(
                f"reproduce_tables: leave '{word}' out; sets, seeds and parts of the network are decided "
                "step by step (--data-root, --emotion-data, --seeds, --only)"
            )


def chosen_rows(options: argparse.Namespace, config: Config) -> list[str]:
    """Raises ValueError for a row that the set has not, as the main network's config uses it."""
    rows = [row for row in ROWS if row != "emd_batch" or predicts_votes(config)]
    chosen = list(dict.fromkeys(options.only.split(","))) if options.only else rows
    if wrong := [row for row in chosen if row not in rows]:
        raise ValueError(
            f"reproduce_tables: --only takes, for {options.dataset}, some of {', '.join(rows)}, "
            f"got '{wrong[0]}'"
        )
    return chosen


def predicts_votes(config: Config) -> bool:
    """Whether EMD is the loss."""
    target = config.data.target
    return target == "distribution" or (target == "auto" and config.data.names[0] in DISTRIBUTIONS)


def seeds(options: argparse.Namespace) -> list[int]:
    words = options.seeds.split(",")
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ValueError(
            f"reproduce_tables: --seeds takes different whole numbers, as in 0,1,2, got '{options.seeds}'"
        )
    return [int(word) for word in words]


def emotion_sets(options: argparse.Namespace) -> dict[str, str]:
    """Set -> folder, what the emotion branch is trained on.

    Raises:
        ValueError: none is given and the set has no emotions, or one that is not known.
    """
    pairs = [word.partition("=") for word in options.emotion_data]
    for name, _, folder in pairs:
        if name.lower() not in EMOTION_SETS or not folder:
            raise ValueError(
                f"reproduce_tables: --emotion-data takes SET=DIR with a set of {', '.join(EMOTION_SETS)}, "
                f"got '{name}={folder}'"
            )
    if pairs:
        return {name.lower(): folder for name, _, folder in pairs}
    if options.dataset not in EMOTION_SETS:
        raise ValueError(
            f"reproduce_tables: {options.dataset} has no emotions; give the branch's weights with "
            "--emotion-checkpoint FILE, or what to train it on with --emotion-data SET=DIR"
        )
    return {options.dataset: data_root(options)}


def data_root(options: argparse.Namespace) -> str:
    """The set's folder; of the demo there is a usual one, and a dry run needs none.

    Raises:
        ValueError: it is not given.
    """
    if options.data_root:
        return options.data_root
    if options.dataset == "demo":
        return "data/demo"
    if options.dry_run:
        return "DIR"
    raise ValueError(f"reproduce_tables: where is {options.dataset}? --data-root DIR")


def prefix(options: argparse.Namespace) -> str:
    """Of the names of all runs."""
    return options.dataset + "_lite" * options.lite + "_official" * options.official


def output_folder(options: argparse.Namespace) -> Path:
    return options.output or Path("runs") / f"tables_{prefix(options)}"


def plan(options: argparse.Namespace) -> list[Step]:
    """The trainings in their order. Rows that would repeat the main network are left out, and it is said."""
    steps, main_config = [], network_step(options, "main", 0).config
    for row in chosen_rows(options, main_config):
        if row != "main" and network_step(options, row, 0).config == main_config:
            print(f"{row}: left out, because with these settings it is the main network")
            continue
        steps += [network_step(options, row, seed) for seed in seeds(options)]
    if not steps:
        raise ValueError("reproduce_tables: no row is left to make; let --only name others")
    if not options.emotion_checkpoint and any(step.branch for step in steps):
        steps.insert(0, emotion_step(options))
    return steps


def network_step(options: argparse.Namespace, row: str, seed: int) -> Step:
    recipe = RECIPES[options.dataset, options.lite][0]
    words = ["--dataset", options.dataset, "--data-root", data_root(options)]
    words += layers(recipe, "official" if options.official else "", ROWS[row][1])
    words += [f"train.seed={seed}", *options.settings]
    if row == "emotion_batchnorm":  # the branch drifts, its maps cannot be kept
        words = without_maps(words)
    config, branch = read_config(words), None
    if config.model.network == "eambnet" and config.model.without != "emotion":
        trained = output_folder(options) / "runs" / f"{prefix(options)}_emotion" / "best.pt"
        branch = options.emotion_checkpoint or trained
        words += ["--emotion-checkpoint", str(branch)]
    name = f"{prefix(options)}_{row}_seed{seed}"
    return Step(name, row, tuple(words), config, output_folder(options), branch)


def emotion_step(options: argparse.Namespace) -> Step:
    words = ["--task", "emotion"]
    for dataset, folder in emotion_sets(options).items():
        words += ["--dataset", dataset, "--data-root", folder]
    words += layers(RECIPES[options.dataset, options.lite][1], "official" if options.official else "")
    settings = [word for word in options.settings if not word.startswith("data.target=")]  # of ratings
    words = without_maps([*words, *settings])
    name = f"{prefix(options)}_emotion"
    return Step(name, "emotion", tuple(words), read_config(words), output_folder(options))


def layers(*names: str) -> list[str]:
    """Options for these files of configs/, seen from where we are."""
    files = [os.path.relpath(ROOT / "configs" / f"{name}.yaml") for name in names if name]
    return [word for file in files for word in ("--config", file)]


def without_maps(words: Iterable[str]) -> list[str]:
    return [word for word in words if not word.startswith("train.emotion_maps=")]


def read_config(words: list[str]) -> Config:
    return program.read_config(program.parse(["train", *words]))


def check_files(options: argparse.Namespace) -> None:
    """Raises FileNotFoundError for the first file or folder that is not there; the demo set makes itself."""
    folders = {} if options.emotion_checkpoint or not options.emotion_data else emotion_sets(options)
    folders[options.dataset] = data_root(options)
    for name, folder in folders.items():
        if name != "demo" and not Path(folder).is_dir():
            raise FileNotFoundError(f"reproduce_tables: there is no folder {folder} for {name}")
    if options.emotion_checkpoint and not options.emotion_checkpoint.is_file():
        raise FileNotFoundError(
            f"reproduce_tables: there is no emotion checkpoint {options.emotion_checkpoint}"
        )


def check_networks(steps: list[Step]) -> None:
    """What a training refuses at its start, for all of them before the first."""
    from eamb.training.tasks import check_losses, check_parts

    for step in steps:
        check_losses(step.config)
        check_parts(step.config, str(step.branch or ""))


# ---------------------------------------------------------------------------------------------------
# Doing it


def to_do(steps: list[Step]) -> list[Step]:
    """The steps that have no result yet; the emotion branch too, if a row is left and its weights are gone.

    Raises:
        ValueError: a result is not what these steps would make, or stands on a branch that is gone.
    """
    left = [step for step in steps if not is_done(step)]
    on_branch = [step for step in steps if step.branch]
    for step in steps:
        needed = step.row == "emotion" and any(other in left for other in on_branch)
        if not needed or (step.run / "best.pt").is_file():
            continue
        if done := [other.name for other in on_branch if other not in left]:
            raise ValueError(
                f"reproduce_tables: {done[0]} stands on {step.run / 'best.pt'}, which is gone; trained again "
                "it would be another branch. Put it back, or choose another --output"
            )
        left = [step, *(other for other in left if other != step)]
    return left


def is_done(step: Step) -> bool:
    """Whether its result is there.

    Raises:
        ValueError: the result was made with other settings or on another emotion branch.
    """
    if not step.result.is_dir():
        return False
    from eamb.files import file_hash
    from eamb.training.run import changed_settings

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


def train(step: Step) -> int:
    """The exit code. In this process if one is enough, else under torchrun."""
    print(f"\n{step.name}", flush=True)
    if processes() == 1:
        return program.main(train_words(step))
    command = [sys.executable, *launcher(), str(ROOT / "main.py"), *train_words(step)]
    return subprocess.run(command, check=False).returncode


def train_words(step: Step) -> list[str]:
    return ["train", *step.words, "--output", str(step.run), "--resume"]


def launcher() -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes()}"]


@cache
def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def processes() -> int:
    """NPROC, or one for each GPU, at least one.

    Raises:
        ValueError: NPROC is no number of processes.
    """
    wanted = os.environ.get("NPROC", "")
    if not wanted:
        return max(1, gpus())
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"reproduce_tables: NPROC is the number of processes, from 1 up, got '{wanted}'")
    return int(wanted)


def make_table(steps: list[Step], options: argparse.Namespace, again: bool) -> int:
    """Writes tables.yaml, published.csv and tables.md, which make_tables.py fills; the exit code.

    Args:
        again: results have changed.
    """
    from eamb.files import written_whole
    from scripts import make_tables

    results, readme = steps[0].output / "results", steps[0].output / "tables.md"
    tables, published = table_entries(steps, options)
    description = yaml.safe_dump(tables, sort_keys=False, allow_unicode=True)
    if not again and is_filled(readme, results / "tables.yaml", description):
        print(f"{readme}: done already")
        return 0
    markers = [f"<!-- table {table['name']} -->\n<!-- end of table {table['name']} -->" for table in tables]
    rows = [make_tables.PUBLISHED, *([row[key] for key in make_tables.PUBLISHED] for row in published)]
    with written_whole(results / "published.csv") as path:
        write_texts(path, rows)
    for target, text in (
        (readme, "\n\n".join([f"# {options.dataset.upper()}", *markers]) + "\n"),
        (results / "tables.yaml", description),
    ):
        with written_whole(target) as path:
            path.write_text(text, encoding="utf-8")
    return make_tables.main(table_words(steps, options))


def write_texts(path: Path, rows: Iterable[Iterable[str]]) -> None:
    write_csv(path, rows)


def read_texts(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: original(text) for name, text in row.items()} for row in csv.DictReader(file)]


def is_filled(readme: Path, wanted: Path, description: str) -> bool:
    """Whether the tables were made as described; make_tables.py writes after `wanted` was written."""
    if not readme.is_file() or not wanted.is_file() or wanted.read_text(encoding="utf-8") != description:
        return False
    return readme.stat().st_mtime_ns > wanted.stat().st_mtime_ns


def table_words(steps: list[Step], options: argparse.Namespace) -> list[str]:
    output, resamples = steps[0].output, steps[-1].config.evaluate.bootstrap
    words = ["--results", str(output / "results"), "--readme", str(output / "tables.md")]
    words += ["--resamples", str(resamples)] if resamples else []
    return [*words, "--data-root", f"{options.dataset}={data_root(options)}"]


def table_entries(steps: list[Step], options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Of tables.yaml and of published.csv: our rows, and the figures of others on the same test pictures."""
    rows: dict[str, list[str]] = {}
    for step in steps:
        if step.row != "emotion":
            rows.setdefault(ROWS[step.row][0], []).append(step.name)
    config = steps[-1].config
    epochs = config.train.epochs
    how = f"{config.model.backbone}, {config.data.size} px, {epochs} epoch{'s' * (epochs > 1)}"
    how += ", with the official code's quirks" if options.official else ""
    own = {"name": f"{options.dataset}_reproduced"}
    own["title"] = f"{options.dataset.upper()}, test pictures; {how}."
    own["rows"] = [{"name": name, "runs": runs} for name, runs in rows.items()]
    if ROWS["main"][0] in rows and len(rows) > 1:
        own["reference"] = ROWS["main"][0]
    known = yaml.safe_load((ROOT / "results" / "tables.yaml").read_text(encoding="utf-8"))
    blocks = [t for t in known if t.get("block") in (options.dataset, f"{options.dataset}_official")]
    named = {table["block"] for table in blocks}
    published = read_texts(ROOT / "results" / "published.csv")
    return [own, *blocks], [row for row in published if row["block"] in named]


# ---------------------------------------------------------------------------------------------------
# Saying what it is and what it costs


def show(steps: list[Step], left: list[Step], options: argparse.Namespace) -> None:
    remaining, total, largest = 0.0, 0.0, 0.0
    python = os.path.relpath(ROOT / "main.py")
    start = ["torchrun", *launcher()[2:]] if processes() > 1 else ["python"]
    for step in steps:
        cost = estimate(step.config)
        total, largest = total + cost.hours, max(largest, cost.gigabytes)
        remaining += cost.hours if step in left else 0
        said = f"{duration(cost.hours)}, {cost.gigabytes:.1f} GB" if step in left else "done already"
        print(f"{step.name} ({step.title}): {said}")
        if options.dry_run:
            print(f"  {shlex.join([*start, python, *train_words(step)])}")
            print(f"  {script('keep_run', str(step.run), str(step.result))}")
    if options.dry_run:
        print(f"table\n  {script('make_tables', *table_words(steps, options))}")
    print(
        f"\n{duration(total)} in all, {duration(remaining)} still to do, on one {CARD} (24 GB): counted "
        f"operations, at an assumed {SHARE:.0%} of its peak ({PEAK['fp32'] / 1e12:g} TFLOP/s in fp32, whose "
        f"convolutions run in TF32, {PEAK['bf16'] / 1e12:g} in bf16 and fp16), if pictures are decoded fast "
        "enough.\n"
        f"At most {largest:.1f} GB on one GPU: weights, gradients, Adam, saved activations; passing values "
        "and cuDNN's workspace come on top. Estimates, not measured.",
        flush=True,
    )


def duration(hours: float) -> str:
    """With two digits, or all before the point."""
    if 0 < hours < 0.001:  # of the demo
        return "under 0.001 h"
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.2g} h"


def script(name: str, *words: str) -> str:
    return shlex.join(["python", os.path.relpath(ROOT / "scripts" / f"{name}.py"), *words])


class Cost(NamedTuple):
    """Of a training on one card, its validations and its test included."""

    hours: float
    gigabytes: float


class Count(NamedTuple):
    """Of a network.

    frozen, trained: FLOP (2 a multiply-add) of a picture's forward pass in the frozen branch and in the rest.
    activations: bytes kept of one picture for the backward pass.
    trained_parameters, parameters: numbers in them.
    """

    frozen: float
    trained: float
    activations: float
    trained_parameters: int
    parameters: int


def estimate(config: Config) -> Cost:
    """A step costs 3 forward passes of what is trained (backward is twice forward), 1 of the frozen branch;
    validation and test cost 1 of all, in fp32."""
    count = count_network(replace(config, train=replace(config.train, seed=0)))
    train, val, test = pictures(config)
    steps = train * config.train.epochs * (3 * count.trained + count.frozen)
    passes = (val * config.train.epochs + test) * (count.trained + count.frozen)
    seconds = (steps / PEAK[config.train.precision] + passes / PEAK["fp32"]) / SHARE
    # Weights of all, gradients and Adam's two moments of what is trained: 4 bytes each.
    state = 4 * (count.parameters + 3 * count.trained_parameters)
    return Cost(seconds / 3600, (state + config.train.batch_size * count.activations) / 1e9)


def pictures(config: Config) -> Pictures:
    """How many an epoch shows, how many each validation and the test."""
    names = config.data.names
    repeats = config.data.repeat.split(",") if config.data.repeat else ["1"] * len(names)
    total = [0, 0, 0]
    for name, repeat in zip(names, repeats, strict=True):
        size = (SETS | EMOTION_SETS)[name]
        val = size.val or round(size.train * config.data.validation)
        train = size.train if size.val else size.train - val
        shown = min(train, config.data.limit or train) * int(repeat)
        total = [a + b for a, b in zip(total, (shown, val, size.test), strict=True)]
    return Pictures(*total)


@cache
def count_network(config: Config) -> Count:
    """Counted at the config's own size, on tensors that have shapes and no values."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from eamb.network.outputs import PRECISIONS

    batch, kind = 2, PRECISIONS[config.train.precision]
    kept: dict[int, torch.UntypedStorage] = {}

    def keep_saved(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        kept[memory._cdata] = memory  # held, or another could get its number
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep_saved, lambda tensor: tensor)
    with FakeTensorMode(), nullcontext() if kind == torch.float32 else torch.autocast("cpu", kind):
        network = build_network(config)
        images = torch.empty(batch, 3, config.data.size, config.data.size)
        with FlopCounterMode(display=False) as whole, hooks:
            network(images)
        with FlopCounterMode(display=False) as frozen:
            if has_frozen_branch(config):
                network.emotions(images)
    weights = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}
    sizes = [p.numel() for p in network.parameters()]
    trained_sizes = [p.numel() for p in network.parameters() if p.requires_grad]
    of_branch = frozen.get_total_flops()
    return Count(
        of_branch / batch,
        (whole.get_total_flops() - of_branch) / batch,
        sum(memory.nbytes() for number, memory in kept.items() if number not in weights) / batch,
        sum(trained_sizes),
        sum(sizes),
    )


def build_network(config: Config):
    from eamb.network.outputs import EMOTIONS, Scale
    from eamb.readers.ava import AVA_BINS
    from eamb.readers.para import PARA_BINS
    from eamb.training.tasks import has_emotion_branch, new_network

    ratings = PARA_BINS if config.data.names[0] == "para" else AVA_BINS
    bins = ratings if predicts_votes(config) else ()
    scale = Scale("distribution" if bins else "score", ratings[0], ratings[-1], ratings[4], bins=bins)
    return new_network(config, scale, EMOTIONS if has_emotion_branch(config) else ())


def has_frozen_branch(config: Config) -> bool:
    from eamb.training.tasks import has_emotion_branch, learns_emotions

    return has_emotion_branch(config) and not learns_emotions(config)


if __name__ == "__main__":
    sys.exit(main())
