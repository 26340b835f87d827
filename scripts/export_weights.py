"""Turns a run's best.pt into a safetensors file to share, with its licence and provenance inside.

    python scripts/export_weights.py runs/para_lite/best.pt checkpoints/eambnet_lite_para.safetensors \
        --licence "research and learning only" --source "PARA 224-px copies" [--half]
    python scripts/export_weights.py checkpoints/eambnet_lite_para.safetensors --hub FOLDER [--card CARD.md]

--half stores 16-bit numbers, half the size; the network computes in 32 bits all the same.
--hub writes a folder that can be uploaded to Hugging Face's hub, for EAMBNet.from_pretrained: config.json,
model.safetensors, and README.md, the model card. Without --card one is begun, to be completed by hand and by
scripts/model_card.py, unless there is one already.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eamb.files import written_whole
from eamb.network import hub
from eamb.network.card import begun_card, card_head, with_head
from eamb.runtime.command import check_output, guarded
from eamb.weights import checkpoint
from eamb.weights.checkpoint import Weights
from eamb.weights.official import Tensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, metavar="BEST.PT")
    parser.add_argument("output", type=Path, metavar="FILE.safetensors", nargs="?")
    parser.add_argument("--hub", type=Path, metavar="FOLDER", help="write a folder for Hugging Face's hub")
    parser.add_argument("--card", type=Path, metavar="CARD.md", help="the model card of --hub")
    parser.add_argument("--licence", help="what users may do with the weights, if they do not carry it")
    parser.add_argument("--source", help="pictures and ratings that they were trained on, likewise")
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    return guarded(export, parser.parse_args())


def export(options: argparse.Namespace) -> int:
    if (options.output is None) == (options.hub is None) or (options.card and not options.hub):
        raise ValueError("export_weights: give FILE.safetensors, or --hub FOLDER, with which --card goes")
    folder, names = options.hub, [hub.CONFIG, hub.WEIGHTS] + [hub.CARD] * bool(options.card)
    if options.output:
        folder, names = options.output.parent, [options.output.name]
    check_output("export_weights", folder, names, options.force)
    weights = checkpoint.load_weights(options.checkpoint)
    given = {name: getattr(options, name) for name in ("licence", "source") if getattr(options, name)}
    description = weights.description | given
    if missing := [name for name in ("licence", "source") if not description.get(name)]:
        words = f"{options.checkpoint} carries no {missing[0]}; give --{missing[0]} TEXT"
        raise ValueError(f"export_weights: {words}")
    tensors = halved(weights.tensors, options.checkpoint) if options.half else weights.tensors
    weights = replace(weights, tensors=tensors, description=description)
    if options.hub:
        write_hub_folder(options.hub, weights, options.card)
    else:
        checkpoint.export_weights(options.output, weights)
        print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")
    print(f"weights sha256 {checkpoint.weights_hash(weights.tensors)}")
    return 0


def write_hub_folder(folder: Path, weights: Weights, given: Path | None) -> None:
    card = given.read_text(encoding="utf-8") if given else ""
    network = checkpoint.export_folder(folder, weights)
    if given and not card.startswith("---\n"):
        card = with_head(card_head(weights.description), card)
    if given or not (folder / hub.CARD).exists():
        with written_whole(folder / hub.CARD) as temporary:
            text = without_files(card) or begun_card(network, weights.travelling)
            temporary.write_text(text, encoding="utf-8", newline="\n")
    print(f"{folder}: {hub.CONFIG}, {hub.WEIGHTS}, {hub.CARD}")


def without_files(card: str) -> str:
    """The card with the words alone of links to files and of pictures, which do not travel with it."""
    return re.sub(r"!?\[([^\]]*)\]\((?![a-z]+:|#)[^)]*\)", r"\1", card)


def halved(tensors: Tensors, path: Path) -> Tensors:
    """The tensors with float16 in place of float32; whole numbers stay."""
    result = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    if wrong := [name for name, value in result.items() if not value.isfinite().all()]:
        raise ValueError(f"checkpoint: {wrong[0]} in {path} does not fit into float16; leave out --half")
    return result


if __name__ == "__main__":
    sys.exit(main())
