"""Draw EAMB-Net in one figure.

    python scripts/draw_architecture.py [--output scripts/architecture.png]

Channels and sizes are those of ResNet-50. The maps and the votes in it are schematic.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

Point = tuple[float, float]

LEFT, TOP, RIGHT, BOTTOM = 8, 50, 1592, 764  # the drawing's own units, y downwards
DOTS_PER_INCH = 150
INK, FAINT = "#202124", "#5f6368"
DETAIL, CONTEXT, EMOTION, FUSION = "#2f6db5", "#2e8b57", "#d9772b", "#6b5b95"

BOX_HEIGHT, STAGE_WIDTH, STAGE_STEP, STAGES_LEFT = 60, 84, 96, 152
DETAIL_Y, CONTEXT_Y, EMOTION_Y = 128, 418, 652  # middle lines of the branches
FINE_Y, COARSE_Y, FUSION_Y = 222, 316, 222  # middle lines of s2, s3 and the fusion
FUSION_LEFT, MODULE_WIDTH, MAP_X = 690, 100, 1328


def lane(axes: Axes, box: tuple[float, float, float, float], name: str, note: str, colour: str) -> None:
    """A tinted area (left, top, right, bottom) with its name in the upper left corner."""
    left, top, right, bottom = box
    add_rounded(axes, (left, top, right - left, bottom - top), 14, facecolor=colour, alpha=0.10)
    at = (left + 14, top + 20)
    label = axes.annotate(name, at, color=colour, fontsize=12.5, weight="bold", va="center")
    after = {"xycoords": label, "xytext": (10, 0), "textcoords": "offset points"}
    axes.annotate(note, (1, 0.5), color=FAINT, fontsize=10, va="center", **after)


def block(axes: Axes, left: float, middle: float, width: float, name: str, note: str, colour: str) -> None:
    """A part of the network: its name, and under it what comes out."""
    box = (left, middle - BOX_HEIGHT / 2, width, BOX_HEIGHT)
    add_rounded(axes, box, 8, facecolor="white", edgecolor=colour, linewidth=1.5)
    write(axes, (left + width / 2, middle - 11), name, colour=INK, size=10.5, weight="bold")
    write(axes, (left + width / 2, middle + 13), note)


def add_rounded(axes: Axes, box: tuple[float, float, float, float], radius: float, **style: object) -> None:
    """A rectangle (left, top, width, height) with round corners."""
    left, top, width, height = box
    shape = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(FancyBboxPatch((left, top), width, height, shape, **{"linewidth": 0, "zorder": 2} | style))


def node(axes: Axes, centre: Point, sign: str, colour: str) -> None:
    """A round operator: a sum, a product or a concatenation."""
    axes.add_patch(Circle(centre, 15, facecolor="white", edgecolor=colour, linewidth=1.5, zorder=3))
    write(axes, centre, sign, colour=INK, size=13 if len(sign) == 1 else 8)


def arrow(axes: Axes, *points: Point, colour: str = FAINT) -> None:
    """A line through the points that ends in an arrow head."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color=colour, linewidth=1.4, zorder=1, solid_joinstyle="round")
    head = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0, "color": colour}
    axes.annotate("", points[-1], points[-2], arrowprops=head, zorder=1)


def write(axes: Axes, at: Point, text: str, colour: str = FAINT, size: float = 9.5, **style: str) -> None:
    """Text, centred unless `style` says otherwise."""
    axes.text(*at, text, color=colour, fontsize=size, zorder=4, **{"ha": "center", "va": "center"} | style)


def draw_input(axes: Axes) -> None:
    """The picture, of hills and a sun, and its half-size version for two of the branches."""
    hills = np.array([(0, 1), (0, 0.75), (0.33, 0.38), (0.55, 0.66), (0.72, 0.5), (1, 0.82), (1, 1)])
    for middle, side, name, note in ((DETAIL_Y, 84, "x", "H × W"), (530, 56, "half", "H/2 × W/2")):
        left, top = corner = np.array((66 - side / 2, middle - side / 2))
        sun = (left + 0.74 * side, top + 0.24 * side)
        axes.add_patch(Rectangle(corner, side, side, facecolor="#bcd9f2", zorder=2))
        axes.add_patch(Polygon(corner + side * hills, facecolor="#5a8f69", zorder=2))
        axes.add_patch(Circle(sun, 0.1 * side, facecolor="#f6c445", zorder=2))
        write(axes, (66, middle + side / 2 + 15), name, colour=INK, size=10.5, weight="bold")
        write(axes, (66, middle + side / 2 + 35), note)
    arrow(axes, (66, 218), (66, 498))
    write(axes, (58, 360), "bilinear resize", rotation="vertical", ha="right")
    arrow(axes, (112, DETAIL_Y), (STAGES_LEFT, DETAIL_Y))
    for middle in (CONTEXT_Y, EMOTION_Y):
        arrow(axes, (98, 530), (126, 530), (126, middle), (STAGES_LEFT, middle))


def stage_centre(layer: int) -> float:
    """Horizontal centre of the block of a layer; 0 is the stem."""
    return STAGES_LEFT + layer * STAGE_STEP + STAGE_WIDTH / 2


def draw_backbones(axes: Axes) -> None:
    """Detail and context branch, and the stages of the emotion branch: the first ones of a ResNet-50."""
    full, half = ("64, H/4", "256, H/4", "512, H/8"), ("64, H/8", "256, H/8", "512, H/16", "1024, H/32")
    note = "half size; trained on emotions first, then frozen"
    branches = (
        ((136, 62, 442, 178), "Detail branch", "full size", DETAIL, DETAIL_Y, full),
        ((136, 350, 634, 468), "Context branch", "half size", CONTEXT, CONTEXT_Y, (*half, "2048, H/64")),
        ((136, 566, 1414, 752), "Emotion branch", note, EMOTION, EMOTION_Y, half),
    )
    for box, name, note, colour, middle, outputs in branches:
        lane(axes, box, name, note, colour)
        for index, output in enumerate(outputs):
            left = STAGES_LEFT + index * STAGE_STEP
            if index:
                arrow(axes, (left - STAGE_STEP + STAGE_WIDTH, middle), (left, middle))
            block(axes, left, middle, STAGE_WIDTH, f"layer{index}" if index else "stem", output, colour)


def draw_emotion_module(axes: Axes) -> None:
    """Top-down module, class activation maps, and their mean: the emotion-aware map."""
    lefts, sums = (544, 728, 912), (680, 864)
    blocks = ("1024 → 512", "512 → 256", "256 → 256")
    arrow(axes, (stage_centre(3) + STAGE_WIDTH / 2, EMOTION_Y), (lefts[0], EMOTION_Y))
    for left, note in zip(lefts, blocks, strict=True):
        block(axes, left, EMOTION_Y, MODULE_WIDTH, "CBR", note, EMOTION)
    for left, centre, following, layer in zip(lefts, sums, lefts[1:], (2, 1), strict=False):
        arrow(axes, (left + MODULE_WIDTH, EMOTION_Y), (centre - 15, EMOTION_Y))
        arrow(axes, (centre + 15, EMOTION_Y), (following, EMOTION_Y))
        node(axes, (centre, EMOTION_Y), "+", EMOTION)
        write(axes, (centre, EMOTION_Y - 30), "↑ ×2", colour=EMOTION)
        depth = EMOTION_Y + 52 + 24 * (2 - layer)
        start = (stage_centre(layer), EMOTION_Y + BOX_HEIGHT / 2)
        arrow(axes, start, (start[0], depth), (centre, depth), (centre, EMOTION_Y + 15), colour=EMOTION)

    left = lefts[-1] + MODULE_WIDTH  # of what follows the module's output z
    write(axes, (left + 11, EMOTION_Y - 12), "z", colour=INK, size=10, weight="bold")
    split = left + 22
    axes.plot((left, split), (EMOTION_Y, EMOTION_Y), color=FAINT, linewidth=1.4)
    right, total = split + 138, (split + 172, EMOTION_Y)
    for sign, name, note in ((-1, "CAMs", "W · z, in [0, 1]"), (1, "pool, linear", "softmax: p, 8")):
        middle = EMOTION_Y + 44 * sign
        arrow(axes, (split, EMOTION_Y), (split, middle), (split + 24, middle))
        block(axes, split + 24, middle, 114, name, note, EMOTION)
        arrow(axes, (right, middle), (total[0], middle), (total[0], EMOTION_Y + 15 * sign))
    node(axes, total, "Σ", EMOTION)
    arrow(axes, (total[0] + 15, EMOTION_Y), (MAP_X - 38, EMOTION_Y))
    y, x = np.mgrid[0:1:28j, 0:1:28j]
    heat = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.05) for a, b in ((0.36, 0.42), (0.66, 0.6)))
    left, top = MAP_X - 38, EMOTION_Y - 38
    axes.imshow(heat, cmap="inferno", extent=(left, left + 76, top + 76, top), zorder=3)
    axes.add_patch(Rectangle((left, top), 76, 76, fill=False, edgecolor="white", linewidth=1, zorder=3))
    write(axes, (MAP_X, EMOTION_Y + 55), "emotion-aware map", colour=INK, size=10, weight="bold")
    write(axes, (MAP_X, EMOTION_Y + 77), "EAM = Σ p · CAM")


def draw_context_fusion(axes: Axes) -> None:
    """The branches' outputs: d2, s2 and s3 through three CBRs and two SADEMs, s4 to U."""
    lane(axes, (664, 62, 1580, 540), "Fusion", "at H/8 × W/8", FUSION)
    above = CONTEXT_Y - BOX_HEIGHT / 2
    starts = {
        "d2": [(stage_centre(2) + STAGE_WIDTH / 2, DETAIL_Y)],
        "s2": [(stage_centre(2), above), (stage_centre(2), FINE_Y)],
        "s3": [(stage_centre(3), above), (stage_centre(3), COARSE_Y)],
        "s4": [(stage_centre(4) + STAGE_WIDTH / 2, CONTEXT_Y)],
    }
    for name, points in starts.items():
        middle = points[-1][1]
        arrow(axes, *points, (FUSION_LEFT, middle), colour=DETAIL if name == "d2" else CONTEXT)
        write(axes, (650, middle - 13), name, colour=INK, size=10.5, weight="bold")
    for middle, name in ((DETAIL_Y, "CBR2"), (FINE_Y, "CBR1"), (COARSE_Y, "CBR3")):
        block(axes, FUSION_LEFT, middle, 78, name, "56", FUSION)
    block(axes, FUSION_LEFT, CONTEXT_Y, 170, "conv 1×1, ↑ to H/8", "BN, ReLU: U, 256", FUSION)
    block(axes, 812, DETAIL_Y, 94, "SADEM1", "56", FUSION)
    block(axes, 938, FUSION_Y, 94, "SADEM2", "56", FUSION)
    right, first, second = FUSION_LEFT + 78, 859, 985
    arrow(axes, (right, DETAIL_Y), (812, DETAIL_Y))
    arrow(axes, (right, FINE_Y), (first, FINE_Y), (first, DETAIL_Y + BOX_HEIGHT / 2))
    arrow(axes, (first + 47, DETAIL_Y), (second, DETAIL_Y), (second, FUSION_Y - BOX_HEIGHT / 2))
    arrow(axes, (right, COARSE_Y), (second, COARSE_Y), (second, FUSION_Y + BOX_HEIGHT / 2))


def draw_emotion_fusion(axes: Axes) -> None:
    """C and U together, the emotion-aware map on them, and CBAM."""
    y, both, gate, last = FUSION_Y, 1162, MAP_X, 1466  # the three round operators
    blocks = {"CBR5": (1056, "C"), "CBR6": (1198, "F"), "CBAM": (1360, ""), "CBR7": (1498, "Z")}
    edges = [1032]  # of SADEM2, then of every block and operator: arrows run from right edges to left edges
    for name, (left, note) in blocks.items():
        block(axes, left, y, 72, name, f"{note}, 256" if note else "256", FUSION)
        edges += [left, left + 72]
    for centre, sign in ((both, "cat"), (gate, "×"), (last, "cat")):
        node(axes, (centre, y), sign, FUSION)
        edges += [centre - 15, centre + 15]
    edges.sort()
    for start, end in zip(edges[0::2], edges[1::2], strict=False):
        arrow(axes, (start, y), (end, y))
    arrow(axes, (FUSION_LEFT + 170, CONTEXT_Y), (both, CONTEXT_Y), (both, y + 15))
    arrow(axes, (1290, y), (1290, y - 70), (last, y - 70), (last, y - 15))
    arrow(axes, (gate, EMOTION_Y - 38), (gate, y + 15), colour=EMOTION)


def draw_head(axes: Axes) -> None:
    """Pooling, the two linear layers, and what is predicted; below, what the abbreviations mean."""
    centre = 1478
    arrow(axes, (1534, FUSION_Y + BOX_HEIGHT / 2), (1534, 316), (centre, 316), (centre, 346))
    block(axes, centre - 70, 376, 140, "pool, head", "256 → 128 → K", FUSION)
    arrow(axes, (centre, 406), (centre, 438))
    for index, votes in enumerate((1, 2, 5, 12, 22, 26, 18, 9, 4, 1)):
        left = centre - 69 + 14 * index
        axes.add_patch(Rectangle((left, 494), 12, -1.8 * votes, facecolor=FUSION, zorder=3))
    write(axes, (centre, 515), "10 ratings, or one score")
    lines = (
        "CBR: conv 3×3, BN, ReLU.   “512, H/8”: channels, height.",
        "SADEM(x, y) = a·x + a·y + x   with   a = sigmoid(Σ k·q);",
        "k, q: conv 1×1, BN, ReLU of x and y, 56 → 16; q, y upsampled to x.",
    )
    for index, line in enumerate(lines):
        write(axes, (FUSION_LEFT, 476 + 21 * index), line, ha="left")


def draw_architecture() -> Figure:
    """The whole figure."""
    figure = Figure(((RIGHT - LEFT) / 100, (BOTTOM - TOP) / 100), dpi=DOTS_PER_INCH, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_backbones(axes)
    draw_input(axes)
    draw_emotion_module(axes)
    draw_context_fusion(axes)
    draw_emotion_fusion(axes)
    draw_head(axes)
    axes.set(xlim=(LEFT, RIGHT), ylim=(BOTTOM, TOP), aspect="auto")
    axes.set_axis_off()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw EAMB-Net in one figure.")
    default = Path(__file__).with_name("architecture.png")
    parser.add_argument("--output", type=Path, default=default, help="PNG to write")
    output = parser.parse_args().output
    FigureCanvasAgg(draw_architecture()).print_png(output)
    print(output)


if __name__ == "__main__":
    main()
