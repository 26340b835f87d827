"""Draws which part of the program imports which: docs/layers.png.

    python scripts/draw_layers.py [--output layers.png]

Each box is a file at the top or a sub-package of eamb/, in its layer. An arrow leads from the importing box
to the imported one; it is faint if a chain of other arrows leads there too. Imports only for type checkers
don't count. An arrow that does not lead downwards breaks the layers: exit code 1.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (  # lowest first; each imports only from layers below its own
    ("losses", "metrics", "eamb.files"),
    ("eamb.network",),
    ("EAMBNet", "eamb.readers"),
    ("eamb.weights", "datasets"),
    ("eamb.runtime",),
    ("eamb.evaluation",),
    ("eamb.training", "eamb.inference"),
    ("eamb.selection",),
    ("main", "scripts", "hubconf"),
)
BOXES = {box: height for height, layer in enumerate(LAYERS) for box in layer}  # box -> number of its layer
Edges = dict[str, set[str]]  # box -> the boxes that it imports from


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, metavar="FILE", default=ROOT / "docs" / "layers.png")
    output, edges = parser.parse_args(arguments).output, read_edges(ROOT)
    draw(edges, output)
    print(f"{output}: {len(edges)} boxes, {sum(map(len, edges.values()))} arrows")
    for box, other in wrong_edges(edges):
        print(f"{box} imports {other}, which is not below it", file=sys.stderr)
    return 1 if wrong_edges(edges) else 0


def read_edges(root: Path) -> Edges:
    """Which other boxes each box imports from, read from its files."""
    edges = {}
    for box in BOXES:
        place = box.replace(".", "/")
        files = [*root.glob(f"{place}.py"), *root.glob(f"{place}/**/*.py")]
        names = {f"{name}." for file in files for name in imported(file)}
        if files:
            edges[box] = {other for other in BOXES for name in names if name.startswith(f"{other}.")} - {box}
    return edges


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, except those only for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_edges(edges: Edges) -> list[tuple[str, str]]:
    """The imports that do not lead to a lower layer."""
    return [(box, other) for box in edges for other in sorted(edges[box]) if BOXES[other] >= BOXES[box]]


def reachable(edges: Edges, boxes: set[str]) -> set[str]:
    """All boxes that these import from, directly or indirectly."""
    reached: set[str] = set()
    while boxes := {other for box in boxes for other in edges.get(box, ())} - reached:
        reached |= boxes
    return reached


def draw(edges: Edges, output: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 9), ylim=(-0.4, len(LAYERS) - 0.6))
    axes.axis("off")
    names = {}
    for box in edges:
        layer = [other for other in LAYERS[BOXES[box]] if other in edges]
        # A box alone in its layer is shifted left or right in turn, so that arrows can pass.
        shift = 0 if len(layer) > 1 else 0.8 if BOXES[box] % 2 else -0.8
        x = 4.5 + 4 * (layer.index(box) - (len(layer) - 1) / 2) + shift
        text = box.removeprefix("eamb.") + ("/" if (ROOT / box.replace(".", "/")).is_dir() else ".py")
        colour = "#dbe7f5" if box.startswith("eamb.") else "#f7e3c4"
        frame = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#555555"}
        style = {"ha": "center", "va": "center", "fontsize": 11, "zorder": 3}
        names[box] = axes.text(x, BOXES[box], text, bbox=frame, **style)
    figure.draw_without_rendering()  # computes the sizes of the frames, which the arrows need
    arrows = [(box, other) for box in edges for other in sorted(edges[box])]
    for box, other in arrows:
        start, end = names[box].get_position(), names[other].get_position()
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0}
        style |= {"patchA": names[box].get_bbox_patch(), "patchB": names[other].get_bbox_patch()}
        style |= {"color": "#222222", "linewidth": 1.4}
        if other in reachable(edges, edges[box] - {other}):
            bend = "arc3,rad=" + ("0.12" if end[0] <= start[0] else "-0.12")
            style |= {"color": "#bbbbbb", "linewidth": 0.6, "connectionstyle": bend}
        axes.annotate("", end, start, arrowprops=style, zorder=1)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
