"""Draw EAMB-Net in one figure.

    python scripts/draw_architecture.py [--output scripts/architecture.png]

Channels and sizes are those of ResNet-50. The maps and the votes in it are schematic. Positions are in the
drawing's own units, 1584 x 714, y downwards.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

Point = tuple[float, float]

INK, FAINT = "#202124", "#5f6368"
DETAIL, CONTEXT, EMOTION, FUSION = "#2f6db5", "#2e8b57", "#d9772b", "#6b5b95"
HEIGHT = 60  # of a block
DETAIL_Y, FINE_Y, COARSE_Y, CONTEXT_Y, EMOTION_Y = 128, 222, 316, 418, 652  # middle lines
STAGES = [152 + 96 * layer for layer in range(5)]  # left ends of the stem and the four layers, 84 wide
FUSED, MAP = 690, 1328  # left end of the fusion's blocks, middle of the emotion-aware map
LANES = (  # left, top, right, bottom, name, note, colour
    (136, 62, 442, 178, "Detail branch", "full size", DETAIL),
    (136, 350, 634, 468, "Context branch", "half size", CONTEXT),
    (136, 566, 1414, 752, "Emotion branch", "half size; trained on emotions first, then frozen", EMOTION),
    (664, 62, 1580, 540, "Fusion", "at H/8 × W/8", FUSION),
)


def block(axes: Axes, left: float, middle: float, width: float, name: str, note: str, colour: str) -> None:
    """A part of the network: its name, and under it what comes out."""
    shape, style = (
        "round,pad=0,rounding_size=8",
        {"facecolor": "white", "edgecolor": colour, "linewidth": 1.5},
    )
    axes.add_patch(FancyBboxPatch((left, middle - HEIGHT / 2), width, HEIGHT, shape, zorder=2, **style))
    write(axes, (left + width / 2, middle - 11), name, colour=INK, size=10.5, weight="bold")
    write(axes, (left + width / 2, middle + 13), note)


def node(axes: Axes, centre: Point, sign: str, colour: str) -> None:
    """A round operator: a sum, a product or a concatenation."""
    axes.add_patch(Circle(centre, 15, facecolor="white", edgecolor=colour, linewidth=1.5, zorder=3))
    write(axes, centre, sign, colour=INK, size=13 if len(sign) == 1 else 8)


def arrow(axes: Axes, *points: Point, colour: str = FAINT) -> None:
    """A line through the points that ends in an arrow head."""
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, zorder=1, solid_joinstyle="round")
    head = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0, "color": colour}
    axes.annotate("", points[-1], points[-2], arrowprops=head, zorder=1)


def write(axes: Axes, at: Point, text: str, colour: str = FAINT, size: float = 9.5, **style: str) -> None:
    """Text, centred unless `style` says otherwise."""
    axes.text(*at, text, color=colour, fontsize=size, zorder=4, **{"ha": "center", "va": "center"} | style)


def draw_input(axes: Axes) -> None:
    """The picture, of hills and a sun, and its half-size version for two of the branches."""
    hills = np.array([(0, 1), (0, 0.75), (0.33, 0.38), (0.55, 0.66), (0.72, 0.5), (1, 0.82), (1, 1)])
    for middle, side, name, note in ((DETAIL_Y, 84, "x", "H × W"), (530, 56, "half", "H/2 × W/2")):
        corner = np.array((66 - side / 2, middle - side / 2))
        axes.add_patch(Rectangle(corner, side, side, facecolor="#bcd9f2", zorder=2))
        axes.add_patch(Polygon(corner + side * hills, facecolor="#5a8f69", zorder=2))
        axes.add_patch(
            Circle(corner + side * np.array((0.74, 0.24)), 0.1 * side, facecolor="#f6c445", zorder=2)
        )
        write(axes, (66, middle + side / 2 + 15), name, colour=INK, size=10.5, weight="bold")
        write(axes, (66, middle + side / 2 + 35), note)
    arrow(axes, (66, 218), (66, 498))
    write(axes, (58, 360), "bilinear resize", rotation="vertical", ha="right")
    arrow(axes, (112, DETAIL_Y), (STAGES[0], DETAIL_Y))
    for middle in (CONTEXT_Y, EMOTION_Y):
        arrow(axes, (98, 530), (126, 530), (126, middle), (STAGES[0], middle))


def draw_backbones(axes: Axes) -> None:
    """Detail and context branch, and the stages of the emotion branch: the first ones of a ResNet-50."""
    half = ("64, H/8", "256, H/8", "512, H/16", "1024, H/32", "2048, H/64")
    full = ("64, H/4", "256, H/4", "512, H/8")
    branches = ((DETAIL, DETAIL_Y, full), (CONTEXT, CONTEXT_Y, half), (EMOTION, EMOTION_Y, half[:4]))
    for colour, middle, outputs in branches:
        for layer, output in enumerate(outputs):
            name = f"layer{layer}" if layer else "stem"
            block(axes, STAGES[layer], middle, 84, name, output, colour)
        for left in STAGES[1 : len(outputs)]:
            arrow(axes, (left - 12, middle), (left, middle))


def draw_emotion_module(axes: Axes) -> None:
    """Top-down module, class activation maps, and their mean: the emotion-aware map."""
    y = EMOTION_Y
    for left, note in ((544, "1024 → 512"), (728, "512 → 256"), (912, "256 → 256")):
        block(axes, left, y, 100, "CBR", note, EMOTION)
    for start, end in ((524, 544), (644, 665), (695, 728), (828, 849), (879, 912), (1206, MAP - 38)):
        arrow(axes, (start, y), (end, y))
    for centre, layer, depth in ((680, 2, y + 52), (864, 1, y + 76)):
        node(axes, (centre, y), "+", EMOTION)
        write(axes, (centre, y - 30), "↑ ×2", colour=EMOTION)
        x = STAGES[layer] + 42
        arrow(axes, (x, y + 30), (x, depth), (centre, depth), (centre, y + 15), colour=EMOTION)
    write(axes, (1023, y - 12), "z", colour=INK, size=10, weight="bold")
    axes.plot((1012, 1034), (y, y), color=FAINT, linewidth=1.4)
    for sign, name, note in ((-1, "CAMs", "W · z, in [0, 1]"), (1, "pool, linear", "softmax: p, 8")):
        middle = y + 44 * sign
        arrow(axes, (1034, y), (1034, middle), (1058, middle))
        block(axes, 1058, middle, 114, name, note, EMOTION)
        arrow(axes, (1172, middle), (1206, middle), (1206, y + 15 * sign))
    node(axes, (1206, y), "Σ", EMOTION)
    rows, columns = np.mgrid[0:1:28j, 0:1:28j]
    heat = sum(np.exp(-((columns - a) ** 2 + (rows - b) ** 2) / 0.05) for a, b in ((0.36, 0.42), (0.66, 0.6)))
    axes.imshow(heat, cmap="inferno", extent=(MAP - 38, MAP + 38, y + 38, y - 38), zorder=3)
    axes.add_patch(
        Rectangle((MAP - 38, y - 38), 76, 76, fill=False, edgecolor="white", linewidth=1, zorder=3)
    )
    write(axes, (MAP, y + 55), "emotion-aware map", colour=INK, size=10, weight="bold")
    write(axes, (MAP, y + 77), "EAM = Σ p · CAM")


def draw_context_fusion(axes: Axes) -> None:
    """The branches' outputs: d2, s2 and s3 through three CBRs and two SADEMs, s4 to U."""
    s2, s3, above = STAGES[2] + 42, STAGES[3] + 42, CONTEXT_Y - 30
    outputs = {
        "d2": (DETAIL, (STAGES[2] + 84, DETAIL_Y), (FUSED, DETAIL_Y)),
        "s2": (CONTEXT, (s2, above), (s2, FINE_Y), (FUSED, FINE_Y)),
        "s3": (CONTEXT, (s3, above), (s3, COARSE_Y), (FUSED, COARSE_Y)),
        "s4": (CONTEXT, (STAGES[4] + 84, CONTEXT_Y), (FUSED, CONTEXT_Y)),
    }
    for name, (colour, *points) in outputs.items():
        arrow(axes, *points, colour=colour)
        write(axes, (650, points[-1][1] - 13), name, colour=INK, size=10.5, weight="bold")
    for middle, name in ((DETAIL_Y, "CBR2"), (FINE_Y, "CBR1"), (COARSE_Y, "CBR3")):
        block(axes, FUSED, middle, 78, name, "56", FUSION)
    block(axes, FUSED, CONTEXT_Y, 170, "conv 1×1, ↑ to H/8", "BN, ReLU: U, 256", FUSION)
    block(axes, 812, DETAIL_Y, 94, "SADEM1", "56", FUSION)
    block(axes, 938, FINE_Y, 94, "SADEM2", "56", FUSION)
    arrow(axes, (768, DETAIL_Y), (812, DETAIL_Y))
    arrow(axes, (768, FINE_Y), (859, FINE_Y), (859, DETAIL_Y + 30))
    arrow(axes, (906, DETAIL_Y), (985, DETAIL_Y), (985, FINE_Y - 30))
    arrow(axes, (768, COARSE_Y), (985, COARSE_Y), (985, FINE_Y + 30))


def draw_emotion_fusion(axes: Axes) -> None:
    """C and U together, the emotion-aware map on them, CBAM, the head and what is predicted."""
    y = FINE_Y
    for left, name, note in ((1056, "CBR5", "C, 256"), (1198, "CBR6", "F, 256"), (1498, "CBR7", "Z, 256")):
        block(axes, left, y, 72, name, note, FUSION)
    block(axes, 1360, y, 72, "CBAM", "256", FUSION)
    for centre, sign in ((1162, "cat"), (MAP, "×"), (1466, "cat")):
        node(axes, (centre, y), sign, FUSION)
    ends = ((1032, 1056), (1128, 1147), (1177, 1198), (1270, 1313), (1343, 1360), (1432, 1451), (1481, 1498))
    for start, end in ends:
        arrow(axes, (start, y), (end, y))
    arrow(axes, (FUSED + 170, CONTEXT_Y), (1162, CONTEXT_Y), (1162, y + 15))
    arrow(axes, (1290, y), (1290, y - 70), (1466, y - 70), (1466, y - 15))
    arrow(axes, (MAP, EMOTION_Y - 38), (MAP, y + 15), colour=EMOTION)
    arrow(axes, (1534, y + 30), (1534, 316), (1478, 316), (1478, 346))
    block(axes, 1408, 376, 140, "pool, head", "256 → 128 → K", FUSION)
    arrow(axes, (1478, 406), (1478, 438))
    for index, votes in enumerate((1, 2, 5, 12, 22, 26, 18, 9, 4, 1)):
        axes.add_patch(Rectangle((1409 + 14 * index, 494), 12, -1.8 * votes, facecolor=FUSION, zorder=3))
    write(axes, (1478, 515), "10 ratings, or one score")
    write(axes, (FUSED, 476), "CBR: conv 3×3, BN, ReLU.   “512, H/8”: channels, height.", ha="left")
    write(axes, (FUSED, 497), "SADEM(x, y) = a·x + a·y + x   with   a = sigmoid(Σ k·q);", ha="left")
    last = "k, q: conv 1×1, BN, ReLU of x and y, 56 → 16; q, y upsampled to x."
    write(axes, (FUSED, 518), last, ha="left")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw EAMB-Net in one figure.")
    default = Path(__file__).with_name("architecture.png")
    parser.add_argument("--output", type=Path, default=default, help="PNG to write")
    output = parser.parse_args().output
    figure = Figure((15.84, 7.14), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    for left, top, right, bottom, name, note, colour in LANES:  # tinted, with a name in the upper left corner
        shape, style = "round,pad=0,rounding_size=14", {"facecolor": colour, "alpha": 0.10, "linewidth": 0}
        axes.add_patch(FancyBboxPatch((left, top), right - left, bottom - top, shape, zorder=2, **style))
        at, font = (left + 14, top + 20), {"fontsize": 12.5, "weight": "bold", "va": "center"}
        after = {"xycoords": axes.annotate(name, at, color=colour, **font), "textcoords": "offset points"}
        axes.annotate(note, (1, 0.5), (10, 0), color=FAINT, fontsize=10, va="center", **after)
    for draw in (draw_input, draw_backbones, draw_emotion_module, draw_context_fusion, draw_emotion_fusion):
        draw(axes)
    axes.set(xlim=(8, 1592), ylim=(764, 50), aspect="auto")
    axes.set_axis_off()
    FigureCanvasAgg(figure).print_png(output)
    print(output)


if __name__ == "__main__":
    main()
