"""EAMB-Net: train, evaluate and predict. `python main.py --help` lists the commands."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from eamb.network.names import NETWORKS, TASKS
from eamb.readers.registry import DATASETS
from eamb.runtime.command import guarded


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 all well, 1 some pictures failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return guarded(options.run, options)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Without a command word `train` is meant, as readers of the paper's release expect.

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
    parser.add_argument(
        "--dataset",
        type=str.lower,
        choices=DATASETS,
        action="append",
        help="which set, in any case; --task emotion takes several",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", action="append", help="its folder (docs/data.md); one per --dataset"
    )
    parser.add_argument("--config", metavar="FILE", action="append", default=[], help="YAML; may be repeated")
    parser.add_argument("--skip-broken", action="store_true", help="leave out files that cannot be decoded")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="as in train.epochs=3")


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", type=str.lower, choices=TASKS)
    parser.add_argument("--network", choices=NETWORKS, help="the last two: of --task series")
    add_data_options(parser)
    parser.add_argument("--emotion-checkpoint", metavar="FILE", help="weights of the emotion branch")
    parser.add_argument("--weights", metavar="FILE", help="start from this network (fine-tuning)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="default: runs/<task>_<dataset>_<backbone>"
    )
    parser.add_argument("--force", action="store_true", help="start anew over an existing run")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --output stopped")
    parser.set_defaults(run=run_train)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Scores a rated set with a checkpoint, or takes another program's scores, and compares."
    )
    parser.epilog = (
        "The FILE of --predictions is a csv (.gz too) with columns id and prediction, in the unit of the "
        "set's ratings; path and score, as predict writes them, will do. An id is what the set calls the "
        "picture: ava 953619, para session144/iaa_pub10022_.jpg, iae 17668, csv and demo the path in the "
        "table. A longer path that ends in it will do, and so will the name of the file alone, with or "
        "without its ending, where the split has one such picture."
    )
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--checkpoint", metavar="FILE", type=Path, help="weights that score the pictures")
    scored.add_argument("--predictions", metavar="FILE", type=Path, help="scores made by any program")
    add_data_options(parser)
    parser.add_argument("--split", type=str.lower, choices=("train", "val", "test"), default="test")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="default: runs/evaluate_<dataset>_<split>_<hash>"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing report")
    parser.set_defaults(run=run_evaluate)


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="*", help="files, folders, globs; - reads a list")
    parser.add_argument("--output", metavar="FILE", type=Path, help="scores.csv or scores.jsonl")
    parser.add_argument("--maps", metavar="DIR", type=Path, help="write a panel that explains each score")
    parser.add_argument("--maps-raw", action="store_true", help="with --maps: the maps as .npy files too")
    parser.add_argument("--emotions", action="store_true", help="one column per emotion")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --output stopped")
    parser.add_argument(
        "--engine", choices=("torch", "openvino"), help="openvino runs what scripts/export.py wrote"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="decode large JPEGs whole, as evaluate does; several times slower",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="score part I, from 1, of N equal parts of the pictures; torchrun sets it by itself, and each "
        "process writes a file of its own: scores.IofN.csv",
    )
    add_scoring_options(parser)
    parser.set_defaults(run=run_scoring)


def add_select(parser: argparse.ArgumentParser) -> None:
    parser.description = "Finds the series in folders of photographs and picks the best of each."
    parser.add_argument("paths", metavar="FOLDER", nargs="*", help="or files, globs; - reads a list")
    parser.add_argument("--keep", metavar="N", type=int, default=1, help="how many of each series, default 1")
    parser.add_argument("--output", metavar="FILE", type=Path, default=Path("picks.csv"), help="picks.csv")
    parser.add_argument("--page", metavar="DIR", type=Path, help="write a page to look through and overrule")
    parser.add_argument(
        "--gap", metavar="SECONDS", type=float, default=30, help="a longer pause ends a series; default 30"
    )
    parser.add_argument(
        "--similarity", metavar="X", type=float, default=0.6, help="0 to 1, less ends a series; default 0.6"
    )
    add_scoring_options(parser)
    parser.set_defaults(run=run_scoring)


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="default: the shipped weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16", "int8"), help="default: fp32, or the exported file's"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--workers",
        type=int,
        default=-1,
        help="threads; on a CPU each decodes and scores with its share of the cores, else they decode ahead; "
        "-1: chosen by the machine",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing output")


def run_train(options: argparse.Namespace) -> int:
    from eamb.training.interruption import Stopped
    from eamb.training.run import train
    from eamb.training.tasks import choose_task

    try:
        train(
            choose_task(read_config(options)),
            emotion_checkpoint=options.emotion_checkpoint,
            weights=options.weights,
            output=options.output,
            resume=options.resume,
            force=options.force,
        )
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            how = "go on with" if stopped.begun else "it had not begun; start it with"
            command = command_line(options.words, resume=stopped.begun)
            print(f"{stopped}; {how}\n{command}", file=sys.stderr, flush=True)
        return stopped.code
    return 0


def command_line(words: list[str], resume: bool) -> str:
    """The command line that takes up the training which these words began, or begins it again."""
    program = sys.argv[0] if sys.argv[0].endswith("main.py") else "main.py"
    if resume:
        words = [*(word for word in words if word not in ("--force", "--resume")), "--resume"]
    words = [program, *words]
    here, everywhere = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if everywhere == 1:
        return shlex.join(["python", *words])
    nodes = "--standalone" if here == everywhere else "(--nnodes and the rest as before)"
    return f"torchrun {nodes} --nproc_per_node={here} {shlex.join(words)}"


def run_evaluate(options: argparse.Namespace) -> int:
    from eamb.evaluation.evaluate import evaluate_checkpoint
    from eamb.evaluation.external import evaluate_predictions
    from eamb.evaluation.predicting import as_trained
    from eamb.runtime.config import read_settings
    from eamb.training.tasks import choose_task
    from eamb.weights.checkpoint import load_weights

    config, where = read_config(options), (options.split, options.output, options.force)
    if len(config.data.names) > 1:
        raise ValueError(f"evaluation: one data set at a time, please, not {' and '.join(config.data.names)}")
    if options.predictions:
        evaluate_predictions(options.predictions, choose_task(config), *where)
    else:
        weights = load_weights(options.checkpoint)
        given = read_settings(options.config, as_words(options))
        evaluate_checkpoint(weights, choose_task(as_trained(config, weights, given)), *where)
    return 0


def run_scoring(options: argparse.Namespace) -> int:
    if options.command == "predict":
        from eamb.inference.predict import predict as command
    else:
        from eamb.selection.picks import select as command
    return command(options)


def read_config(options: argparse.Namespace):
    """The set's own config unless others are given, then the command line's words, then its options."""
    from eamb.runtime.config import load_config
    from eamb.training.tasks import choose_task

    if len(options.data_root or ()) > 1 and len(options.data_root) != len(options.dataset or ()):
        raise ValueError(
            f"main: --data-root is given {len(options.data_root)} times and --dataset "
            f"{len(options.dataset or ())} times; give one per set, in the same order"
        )
    words = as_words(options)
    config = load_config(options.config, words)
    for name in config.data.names:
        if name not in DATASETS:
            named = f", not '{name}'" if name else ""
            raise ValueError(f"main: which data set? --dataset {{{','.join(DATASETS)}}}{named}")
    first = DATASETS[config.data.names[0]]
    if not options.config:
        config = load_config(
            [Path(__file__).parent / "configs" / f"{choose_task(config).recipe}.yaml"], words
        )
    dataset, root = config.data.dataset.lower(), config.data.root or first.folder
    if not root:
        raise ValueError(f"main: where is {dataset}? --data-root DIR")
    return replace(config, data=replace(config.data, dataset=dataset, root=root))


def as_words(options: argparse.Namespace) -> list[str]:
    """All that the command line says about settings, as key=value."""
    given = {
        "data.dataset": options.dataset and "+".join(options.dataset),
        "data.root": options.data_root and "\n".join(options.data_root),
        "data.skip_broken": "true" if options.skip_broken else None,
        "task": getattr(options, "task", None),  # of train alone, as is the network
        "model.network": getattr(options, "network", None),
    }
    return [*options.settings, *(f"{key}={value}" for key, value in given.items() if value is not None)]


if __name__ == "__main__":
    sys.exit(main())
