"""EAMB-Net: train, evaluate and predict. `python main.py --help` lists the commands."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eamb.network.names import NETWORKS, TASKS
from eamb.readers.endings import RAW_CHOICES, RAW_HELP
from eamb.readers.registry import DATASETS
from eamb.runtime.command import guarded
from eamb.weights import shipped

if TYPE_CHECKING:
    from eamb.runtime.config import Config


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Exit code: 0 success, 1 pictures failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return guarded(options.run, options)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses a command line; the default command is `train`, as in the paper's released code.

    Paths and key=value words may stand anywhere among the options, which argparse alone does not allow.
    """
    words = list(arguments)
    first = arguments[0] if arguments else ""
    if (first.startswith("-") or "=" in first) and first not in ("-h", "--help"):
        arguments = ["train", *arguments]
    parser = argparse.ArgumentParser(
        prog="main.py", description="Image aesthetics assessment with EAMB-Net.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,evaluate,predict,select}")
    add_train(commands.add_parser("train", help="train on a rated set", allow_abbrev=False))
    add_evaluate(commands.add_parser("evaluate", help="score a rated set and compare", allow_abbrev=False))
    add_predict(commands.add_parser("predict", help="score photographs", allow_abbrev=False))
    add_select(commands.add_parser("select", help="pick the best of each series", allow_abbrev=False))
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") and word != "-"]
    if unknown:
        parser.error(f"unknown option {unknown[0]}; python main.py {options.command} --help lists them")
    (options.paths if options.command in ("predict", "select") else options.settings).extend(rest)
    options.words = words
    return options


def add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    sets = "the data set; may be repeated for --task emotion"
    add("--dataset", type=str.lower, choices=DATASETS, action="append", help=sets)
    add("--data-root", metavar="DIR", action="append", help="its folder (docs/data.md), one per --dataset")
    add("--config", metavar="FILE", action="append", default=[], help="YAML; may be repeated")
    add("--skip-broken", action="store_true", help="leave out files that cannot be decoded")
    add("settings", metavar="key=value", nargs="*", help="settings, as in train.epochs=3")


def add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    networks = "linear: a pooled backbone and one layer; for --task series: resnet (any backbone, pooled) or "
    add("--task", type=str.lower, choices=TASKS)
    add("--network", choices=NETWORKS, help=networks + "paunit (attention units)")
    add_data_options(parser)
    add("--emotion-checkpoint", metavar="FILE", help="weights of the emotion branch")
    add("--weights", metavar="FILE", help="start from this network (fine-tuning)")
    add("--output", metavar="DIR", type=Path, help="default: runs/<task>_<dataset>_<backbone>")
    add("--force", action="store_true", help="start anew over an existing run")
    add("--resume", action="store_true", help="go on where the run in --output stopped")
    parser.set_defaults(run=run_train)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Scores a rated set with a checkpoint, or takes another program's scores, and compares."
    )
    parser.epilog = (
        "The FILE of --predictions is a csv (.gz too) with columns id and prediction, in the unit of the "
        "set's ratings; the columns path and score that predict writes are accepted too. An id is what the "
        "set calls the picture: ava 953619, para session144/iaa_pub10022_.jpg, iae 17668, csv and demo the "
        "path in the table. A longer path that ends in the id is accepted, and so is the file name alone, "
        "with or without its ending, if it is unique in the split."
    )
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--checkpoint", metavar="FILE", action="append", help=shipped.HELP)
    scored.add_argument("--predictions", metavar="FILE", type=Path, help="scores made by any program")
    add_data_options(parser)
    add = parser.add_argument
    add("--split", type=str.lower, choices=("train", "val", "test"), default="test")
    add("--flip", action="store_true", help=shipped.FLIP_HELP)
    add("--output", metavar="DIR", type=Path, help="default: runs/evaluate_<dataset>_<split>_<hash>")
    add("--force", action="store_true", help="overwrite an existing report")
    parser.set_defaults(run=run_evaluate)


def add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    engines = "openvino runs what scripts/export.py wrote"
    exact = "decode large JPEGs whole, as evaluate does; slower"
    shard = (
        "score part I, from 1, of N equal parts of the pictures; torchrun sets it by itself, and each "
        "process writes a file of its own: scores.IofN.csv"
    )
    add("paths", metavar="PATH", nargs="*", help="files, folders, globs; - reads a list")
    add("--output", metavar="FILE", type=Path, help="scores.csv or scores.jsonl")
    add("--maps", metavar="DIR", type=Path, help="write a panel that explains each score")
    add("--maps-raw", action="store_true", help="with --maps: the maps as .npy files too")
    add("--page", metavar="DIR", type=Path, help="write a page to look through, filter and select")
    add("--emotions", action="store_true", help="one column per emotion")
    add("--resume", action="store_true", help="go on where the run in --output stopped")
    add("--engine", choices=("torch", "openvino"), help=engines)
    add("--exact", action="store_true", help=exact)
    add("--shard", metavar="I/N", help=shard)
    learn = "compare your own stars with the scores, and list the largest differences"
    add("--learn-from-ratings", action="store_true", help=learn)
    add_sidecar_options(parser)
    add_scoring_options(parser)


def add_select(parser: argparse.ArgumentParser) -> None:
    parser.description = "Finds the series in folders of photographs and picks the best of each."
    parser.set_defaults(learn_from_ratings=False)  # an option of `predict`
    add = parser.add_argument
    gap, similarity = "a longer pause ends a series; default 30", "0 to 1, lower ends a series; default 0.6"
    add("paths", metavar="FOLDER", nargs="*", help="or files, globs; - reads a list")
    add("--keep", metavar="N", type=int, default=1, help="how many of each series, default 1")
    add("--output", metavar="FILE", type=Path, default=Path("picks.csv"), help="picks.csv")
    add("--page", metavar="DIR", type=Path, help="write a page to review and change the picks")
    add("--gap", metavar="SECONDS", type=float, default=30, help=gap)
    add("--similarity", metavar="X", type=float, default=0.6, help=similarity)
    add_sidecar_options(parser)
    add_scoring_options(parser)


def add_sidecar_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = "photo.jpg.xmp, the default, or photo.xmp"
    stars = 'percentiles among these photographs for 5, 4, 3 and 2 stars; default "95,80,50,20"'
    add("--xmp", action="store_true", help="write stars into XMP sidecars beside the photographs")
    add("--xmp-names", choices=("darktable", "adobe"), help=names)
    add("--stars", metavar="A,B,C,D", help=stars)
    add("--overwrite-ratings", action="store_true", help="in sidecars replace ratings of yours, too")
    add("--dry-run", action="store_true", help="list the sidecars that --xmp would write, and write none")


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    precision = "auto: bf16 where the device computes it; default: fp32, or the exported file's"
    workers = (
        "threads; on a CPU each decodes and scores with its share of the cores, on a GPU they decode ahead; "
        "-1: chosen for the machine"
    )
    add("--checkpoint", metavar="FILE", action="append", help=f"{shipped.HELP}; default: {shipped.DEFAULT}")
    add("--flip", action="store_true", help=shipped.FLIP_HELP)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--precision", choices=("fp32", "bf16", "fp16", "int8", "auto"), help=precision)
    add("--batch-size", type=int, default=16)
    add("--workers", type=int, default=-1, help=workers)
    add("--raw", choices=RAW_CHOICES, default="jpeg", help=RAW_HELP)
    add("--force", action="store_true", help="overwrite an existing output")
    add(
        "--excel",
        action="store_true",
        help="a csv that Excel opens with all letters right (UTF-8 with a mark)",
    )
    parser.set_defaults(run=run_scoring)


def run_train(options: argparse.Namespace) -> int:
    from eamb.training.interruption import Stopped
    from eamb.training.run import train
    from eamb.training.tasks import choose_task

    task = choose_task(read_config(options)[0])
    names = ("emotion_checkpoint", "weights", "output", "resume", "force")
    try:
        train(task, **{name: getattr(options, name) for name in names})
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"{stopped}; go on with\n{resuming_command(options.words)}", file=sys.stderr, flush=True)
        return stopped.code
    return 0


def resuming_command(words: list[str]) -> str:
    """The command line that resumes the training started with these words."""
    program = sys.argv[0] if Path(sys.argv[0]).resolve().name == "main.py" else "main.py"
    words = [program, *(word for word in words if word not in ("--force", "--resume")), "--resume"]
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if world == 1:
        return shlex.join(["python", *words])
    nodes = "--standalone" if local == world else "(--nnodes and the rest as before)"
    return f"torchrun {nodes} --nproc_per_node={local} {shlex.join(words)}"


def run_evaluate(options: argparse.Namespace) -> int:
    from eamb.evaluation.evaluate import evaluate_checkpoints
    from eamb.evaluation.external import evaluate_predictions
    from eamb.evaluation.predicting import as_trained
    from eamb.training.tasks import choose_task
    from eamb.weights.checkpoint import load_weights

    config, given = read_config(options)
    target = (options.split, options.output, options.force)
    if len(config.data.names) > 1:
        raise ValueError(f"evaluation: one data set at a time, not {' and '.join(config.data.names)}")
    if options.predictions:
        if options.flip:
            raise ValueError("evaluation: --flip is for a --checkpoint; --predictions are taken as they are")
        evaluate_predictions(options.predictions, choose_task(config), *target)
    else:
        several = [load_weights(file) for file in shipped.checkpoint_files(options.checkpoint)]
        configs = [as_trained(config, weights, given) for weights in several]  # all must allow `given`
        # The config's data.icc is for older weights, which do not say it: what was given, or false.
        data = replace(configs[0].data, icc=all(each.data.icc for each in configs))
        evaluate_checkpoints(several, choose_task(replace(configs[0], data=data)), *target, options.flip)
    return 0


def run_scoring(options: argparse.Namespace) -> int:
    options.checkpoint = options.checkpoint or [shipped.DEFAULT]
    if options.command == "predict":
        from eamb.inference.predict import predict as command
    else:
        from eamb.selection.picks import select as command
    return command(options)


def read_config(options: argparse.Namespace) -> tuple[Config, dict[str, object]]:
    """The config: the data set's own, or the --config files, overridden by the command line.

    Returns also what the user set, by flat key, as in "train.epochs".
    """
    from eamb.runtime.config import from_settings, read_settings
    from eamb.training.tasks import recipe

    sets, roots = options.dataset or (), options.data_root or ()
    if len(roots) > 1 and len(roots) != len(sets):
        raise ValueError(
            f"main: --data-root is given {len(roots)} times and --dataset {len(sets)} times; give one per "
            "set, in the same order"
        )
    words = {
        "data.dataset": "+".join(sets) or None,
        "data.root": "\n".join(roots) if roots else None,
        "data.skip_broken": "true" if options.skip_broken else None,
        "task": getattr(options, "task", None),  # only `train` has this option and the next
        "model.network": getattr(options, "network", None),
    }
    words = [*options.settings, *(f"{key}={value}" for key, value in words.items() if value is not None)]
    given = read_settings(options.config, words)
    dataset = given.get("data.dataset", "").lower()
    for name in dataset.split("+"):
        if name not in DATASETS:
            raise ValueError(f"main: which data set? --dataset {{{','.join(DATASETS)}}}, got '{name}'")
    first = dataset.split("+")[0]
    own = Path(__file__).resolve().parent / "configs" / f"{recipe(given.get('task'), first)}.yaml"
    config = from_settings(given if options.config else read_settings([own], ()) | given)
    root = config.data.root or DATASETS[first].folder
    if not root:
        raise ValueError(f"main: where is {dataset}? --data-root DIR")
    return replace(config, data=replace(config.data, dataset=dataset, root=root)), given


if __name__ == "__main__":
    sys.exit(main())
