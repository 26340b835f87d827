"""Scores collections of any size, on a laptop or a Ray cluster, into Parquet files.

    python scripts/score_collection.py SOURCE OUTPUT [--filter "score > 3.5 and emotion != 'disgust'"]

SOURCE: a folder or bucket prefix (s3://...) with WebDataset tars, Parquet files or pictures; a glob; a file.
Run again after an interruption, it goes on with the shards that are missing. Needs requirements-cluster.txt;
more in docs/scale.md.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eamb.files import printable
from eamb.runtime.command import guarded
from eamb.weights import shipped


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 success, 1 pictures or shards failed, 2 bad input, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, bucket prefix, glob or file: tars, Parquet or pictures")
    add("output", metavar="OUTPUT", help="folder or bucket prefix for the scores")
    add("--filter", metavar="EXPRESSION", help="write the ids of the pictures that it is true for")
    add("--address", metavar="HOST:PORT", help="join this Ray cluster; auto: the one on this machine")
    add("--column", default="image", help="of Parquet files, with bytes or paths; default: image")
    add("--id-column", metavar="NAME", help="of Parquet files; default: the path, or the row's number")
    add("--shard-size", metavar="N", type=int, default=1000, help="files a shard in folders; default: 1000")
    add("--checkpoint", metavar="FILE", action="append", help=f"{shipped.HELP}; default: {shipped.DEFAULT}")
    add("--emotions", action="store_true", help="one column per emotion")
    add("--flip", action="store_true", help=shipped.FLIP_HELP)
    add("--exact", action="store_true", help="decode large JPEGs whole; slower")
    add("--precision", choices=("fp32", "bf16", "fp16", "int8", "auto"), help="as in predict")
    add("--batch-size", metavar="N", type=int, default=16, help="default: 16")
    add("--cores", metavar="N", type=int, help="of each actor without a GPU; default: a node's, at most 8")
    options = parser.parse_args(arguments)
    return guarded(score_collection, options, interrupted="interrupted; the same command goes on")


def score_collection(options: argparse.Namespace) -> int:
    if missing := [name for name in ("ray", "pyarrow", "fsspec") if not find_spec(name)]:
        raise ValueError(
            f"collection: {', '.join(missing)} is not installed; pip install -r requirements-cluster.txt"
        )
    from eamb.inference.collection import find_source, lies_in
    from eamb.inference.predict import announce
    from eamb.inference.row_filter import parse_filter
    from eamb.inference.scored_shards import Output, Scoring, read_weights, schema_of
    from eamb.inference.scorer import Scorer, check_scores, is_exported

    if options.cores is not None and options.cores < 1:
        raise ValueError(f"collection: --cores is at least 1, got {options.cores}")
    if lies_in(options.output, options.source):
        raise ValueError(
            f"collection: {options.output} lies in {options.source} and would be searched by the next run; "
            "choose another output"
        )
    files = shipped.checkpoint_files(options.checkpoint or [shipped.DEFAULT])
    settings = {name: getattr(options, name) for name in ("precision", "flip", "exact")}
    scorer_options = settings | {"batch_size": options.batch_size}
    scorer = Scorer(files, device="cpu", **scorer_options)  # here only to see that the weights work
    check_scores(scorer.network.weights)
    announce(scorer, None)
    schema = schema_of(scorer, options.emotions)
    del scorer
    scorer_options["device"] = "cpu" if any(map(is_exported, files)) else "auto"
    scoring = Scoring(read_weights(files), scorer_options, emotions=options.emotions)
    expression = parse_filter(options.filter, schema) if options.filter else None
    source = find_source(options.source, options.shard_size, options.column, options.id_column)
    hashes = [hashlib.sha256(content).hexdigest() for content in scoring.files.values()]
    weights = {"weights": hashes, "emotions": options.emotions}
    output = Output(options.output, source.description | weights | settings)
    report = score_missing(source.shards, scoring, output, options)
    print(summary(report, options.output), file=sys.stderr)
    for name, reason in report["bad_shards"].items():
        print(f"shard {printable(name)} {reason}", file=sys.stderr)
    if expression is not None:
        whole = [shard.name for shard in source.shards if shard.name not in report["bad_shards"]]
        kept = output.write_kept(whole, expression, schema)
        print(
            f"pictures that --filter keeps: {kept:,}, {options.output}/kept.parquet written", file=sys.stderr
        )
    return 1 if report["failed"] or report["bad_shards"] else 0


def score_missing(shards: list, scoring, output, options: argparse.Namespace) -> dict:
    """Scores the shards that the output lacks, and writes each when it is whole; what the report says."""
    from eamb.runtime.progress import progress

    whole = output.whole(shards)
    missing = [shard for shard in shards if shard.name not in whole]
    report = {"shards": len(shards), "skipped": len(whole), "pictures": 0, "failed": 0, "noted": 0}
    bad: dict[str, str] = {}
    if missing:
        from eamb.inference.cluster import score_shards, started

        bar = progress(desc="score", total=len(shards), initial=len(whole), unit=" shards")
        with started(options.address), bar:
            for result in score_shards(missing, scoring, options.cores):
                if result["error"]:
                    bad[result["name"]] = result["error"]
                else:
                    output.write_shard(result["name"], result["file"])
                    for count in ("pictures", "failed", "noted"):
                        report[count] += result[count]
                bar.set_postfix_str(f"{report['pictures']:,} pictures", refresh=False)
                bar.update()
    report["bad_shards"] = {name: bad[name] for name in sorted(bad)}
    output.write_report(report)
    return report


def summary(report: dict, output: str) -> str:
    if report["skipped"] == report["shards"]:
        return f"nothing left to score: all shards are in {output}/scores"
    scored = report["pictures"] - report["failed"]
    words = [f"{scored:,} of {report['pictures']:,} pictures scored"]
    words += [f"{report['noted']:,} with a note"] if report["noted"] else []
    words += [f"{report['skipped']:,} of {report['shards']:,} shards skipped"] if report["skipped"] else []
    bad = len(report["bad_shards"])
    words += [f"{bad:,} shard{'s' * (bad > 1)} failed"] if bad else []
    return ", ".join([*words, f"{output}/scores written"])


if __name__ == "__main__":
    sys.exit(main())
