"""Turns a run's best.pt into a safetensors file to share, with its licence and provenance inside.

    python scripts/export_weights.py runs/para_lite/best.pt checkpoints/eambnet_lite_para.safetensors \
        --licence "research and learning only" --source "PARA 224-px copies" [--half]

--half stores 16-bit numbers, half the size; the network computes in 32 bits all the same.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eamb.runtime.command import check_output, guarded
from eamb.weights import checkpoint
from eamb.weights.official import Tensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, metavar="BEST.PT")
    parser.add_argument("output", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--licence", required=True, help="what users may do with the weights")
    parser.add_argument("--source", required=True, help="the pictures and ratings they were trained on")
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    return guarded(export, parser.parse_args())


def export(options: argparse.Namespace) -> int:
    check_output("export_weights", options.output.parent, [options.output.name], options.force)
    weights = checkpoint.load_weights(options.checkpoint)
    description = {**weights.description, "licence": options.licence, "source": options.source}
    tensors = halved(weights.tensors, options.checkpoint) if options.half else weights.tensors
    weights = replace(weights, tensors=tensors, description=description)
    checkpoint.export_weights(options.output, weights)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")
    print(f"weights sha256 {checkpoint.weights_hash(weights.tensors)}")
    return 0


def halved(tensors: Tensors, path: Path) -> Tensors:
    """The tensors with float16 in place of float32; whole numbers stay."""
    result = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    if wrong := [name for name, value in result.items() if not value.isfinite().all()]:
        raise ValueError(f"checkpoint: {wrong[0]} in {path} does not fit into float16; leave out --half")
    return result


if __name__ == "__main__":
    sys.exit(main())
