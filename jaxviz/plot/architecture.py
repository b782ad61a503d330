"""The picture of a model: its layers as boxes, the values that flow between them as arrows."""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from jaxviz.calls.public import public
from jaxviz.graph.layer_graph import Box, LayerGraph
from jaxviz.plot.box_words import Words, batch_of, check_graph, counted, words
from jaxviz.plot.boxes import TEXT, colours, draw_box, fitting, height, wanted_width
from jaxviz.plot.colour import QUIET
from jaxviz.plot.layering import Arrangement, Edge, arrange, crossing, cuts, rows_of
from jaxviz.plot.page import put_title

# Inches.
TOP, EDGE, BETWEEN, LANE, BRACKET, GUTTER = 0.74, 0.2, 0.2, 0.17, 0.2, 0.5
NARROWEST, WIDEST, TALL = 1.7, 3.5, 9.5  # a box, and a column
LINE, MODULE = "#6b7280", "#8c7b55"


class _Bracket(NamedTuple):
    """A module's path beside the rows of its boxes."""

    path: str
    first: int
    last: int
    level: int


class _Column(NamedTuple):
    """One column of the picture, in inches from its trunk and from the top of the picture."""

    boxes: dict[str, Box]
    words: dict[str, Words]
    above: list[str]  # of its boxes those that are drawn in columns before
    at: Arrangement
    tops: list[float]  # of each row, and the bottom
    width: float  # of a box
    left: float
    right: float
    brackets: list[_Bracket]

    def place(self, name: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of a box."""
        tall = height(self.words[name])
        return self.at.x[name] - self.width / 2, self.tops[self.at.row[name]], self.width, tall


@public()
def architecture(graph: LayerGraph, *, title: str | None = None) -> Figure:
    """Draws the layers of a model and what each reads, from the input down.

    The longest chain of layers runs straight down; branches stand beside it and skips pass by. In a
    box stand the layer's name, what it does and what is folded into it, at the right the shape of
    its output for one example and the numbers it trains. Brackets are the user's modules; names
    beside one leave its path out. A model too long for one column goes on in the next, below a
    dashed copy of what it reads from before.

    Args:
      graph: Of `jaxviz.layer_graph`. With its `depth` modules are drawn instead of their layers.
      title: Above everything; None counts layers and parameters.

    Returns:
      A Figure for `savefig`, of a size at which the text can be read.

    Raises:
      ValueError: the graph has no boxes.
      TypeError: it is none.

    Example:
      >>> boxes = Box("<input>", "input", "", (1, 5), 0, ()), Box("a", "dense", "", (1, 3), 15, ())
      >>> architecture(LayerGraph(boxes, (("<input>", "a"),))).get_suptitle()
      '1 layer, 15 parameters'
    """
    check_graph("architecture", graph)
    boxes, batch = {box.name: box for box in graph.boxes}, batch_of(graph)
    row = rows_of(list(boxes), graph.edges)
    tall = {name: height(words(box, batch)) for name, box in boxes.items()}
    starts = cuts(row, graph.edges, _heights(row, tall), TALL)
    columns = [
        _column(boxes, batch, row, graph.edges, start, stop)
        for start, stop in zip(starts, [*starts[1:], len(row)], strict=True)
    ]
    across = sum(c.right - c.left for c in columns) + GUTTER * (len(columns) - 1)
    size = (max(across + 2 * EDGE, 3.5), max(c.tops[-1] for c in columns) - BETWEEN + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
    ax.axis("off")
    left, before = EDGE, None
    for column in columns:
        trunk = left - column.left
        _draw(ax, column, trunk)
        if before is not None:
            _go_on(ax, *before, column, trunk, left - GUTTER / 2)
        before = column, trunk
        left += column.right - column.left + GUTTER
    put_title(figure, counted(graph) if title is None else title, left=EDGE)
    note = "at the right: output for one example, parameters"
    ax.text(EDGE, 0.48, note, fontsize=7.5, color=QUIET, va="center")
    return figure


def _column(boxes: dict[str, Box], batch, row, edges, start: int, stop: int) -> _Column:
    above = crossing(row, edges, start, stop)
    mine = {name: boxes[name] for name in above}
    mine |= {name: box for name, box in boxes.items() if start <= row[name] < stop}
    inner = [(a, b) for a, b in edges if a in mine and b in mine and b not in above]
    names = [name for name in mine if name not in above]
    brackets = _brackets(names, rows_of(list(mine), inner))
    told = {}
    for name, box in mine.items():
        if name in above:
            told[name] = Words(f"from {name}", "", "", "")
            continue
        inside = [b.path for b in brackets if name.startswith(b.path + "/")]
        path = max(inside, key=len) + "/" if inside else ""
        told[name] = words(box, batch, path)
    width = max(NARROWEST, min(WIDEST, max(map(wanted_width, told.values()))))
    at = arrange(list(mine), inner, width, LANE)
    tall = _heights(at.row, {name: height(w) for name, w in told.items()})
    tops = [TOP + sum(tall[:r]) for r in range(len(tall) + 1)]
    levels = 1 + max((b.level for b in brackets), default=-1)
    left = min(min(at.x.values()) - width / 2, *at.lane.values(), 0) - BRACKET * levels
    right = max(max(at.x.values()) + width / 2, *at.lane.values(), 0)
    return _Column(mine, told, above, at, tops, width, left, right, brackets)


def _heights(row: dict[str, int], tall: dict[str, float]) -> list[float]:
    """Of each row, with the space below it."""
    heights = [0.0] * (max(row.values()) + 1)
    for name, r in row.items():
        heights[r] = max(heights[r], tall[name] + BETWEEN)
    return heights


def _brackets(names: list[str], row: dict[str, int]) -> list[_Bracket]:
    """One for each module of two or more boxes in a run, where no other box stands beside it."""
    found: list[_Bracket] = []
    for level in range(2):
        runs: list[tuple[str, list[str]]] = []
        for name in names:
            parts = name.split("/")
            path = "/".join(parts[: level + 1]) if len(parts) > level + 1 else ""
            if not runs or runs[-1][0] != path:
                runs.append((path, []))
            runs[-1][1].append(name)
        for path, members in runs:
            rows = [row[name] for name in members]
            first, last = min(rows), max(rows)
            alone = all(n in members for n in names if first <= row[n] <= last)
            if path and last > first and alone:
                found.append(_Bracket(path, first, last, level))
    levels = sorted({b.level for b in found})
    return [b._replace(level=levels.index(b.level)) for b in found]


def _draw(ax: Axes, column: _Column, trunk: float) -> None:
    """Draws a column with its trunk at that x."""
    for edge, lane in column.at.lane.items():
        _arrow(ax, column, edge, lane, trunk)
    for name, box in column.boxes.items():
        left, *rest = column.place(name)
        faint = name in column.above
        fill, edge = ("#ffffff", QUIET) if faint else colours(box)
        draw_box(ax, column.words[name], fill, edge, (trunk + left, *rest), faint)
    for bracket in column.brackets:
        x = trunk + column.left + BRACKET * (bracket.level + 1) - 0.06
        top, bottom = column.tops[bracket.first], column.tops[bracket.last + 1] - BETWEEN
        ax.plot([x, x], [top, bottom], color=MODULE, linewidth=1.5, solid_capstyle="round")
        outer = [b.path + "/" for b in column.brackets if bracket.path.startswith(b.path + "/")]
        text = bracket.path.removeprefix(outer[-1] if outer else "")
        text = fitting(text, TEXT, bottom - top)
        style = {"rotation": 90, "ha": "right", "va": "center", "rotation_mode": "default"}
        ax.text(x - 0.03, (top + bottom) / 2, text, color=MODULE, font=TEXT, **style)


def _arrow(ax: Axes, column: _Column, edge: Edge, lane: float, trunk: float) -> None:
    """Draws an edge: out of a box at the side or below, down its lane, into the other one."""
    (left_a, top_a, wide, tall_a), (left_b, top_b, _, tall_b) = map(column.place, edge)
    x_a, x_b = left_a + wide / 2, left_b + wide / 2
    points = []
    if abs(lane - x_a) < wide / 2:
        points += [(lane, top_a + tall_a)]
    else:  # low at its side, for what comes in stands above
        side = left_a + (wide if lane > x_a else 0)
        points += [(side, top_a + 0.7 * tall_a), (lane, top_a + 0.7 * tall_a)]
    if abs(lane - x_b) < wide / 2:
        points += [(lane, top_b)]
    else:
        side = left_b + (wide if lane > x_b else 0)
        points += [(lane, top_b + 0.3 * tall_b), (side, top_b + 0.3 * tall_b)]
    _line(ax, [(trunk + x, y) for x, y in points])


def _go_on(
    ax: Axes, before: _Column, trunk: float, after: _Column, next_trunk: float, gutter
) -> None:
    """Draws the way from the foot of a column to the head of the next, where it is one value."""
    if len(after.above) != 1 or after.above[0] not in before.boxes:
        return
    (name,) = after.above
    if name in before.above or before.at.row[name] != max(before.at.row.values()):
        return
    left, top, wide, tall = before.place(name)
    x, bottom = trunk + left + wide / 2, top + tall
    to, _, _, _ = after.place(name)
    to += next_trunk + wide / 2
    low, high = bottom + 0.11, TOP - 0.11
    points = [(x, bottom), (x, low), (gutter, low), (gutter, high), (to, high), (to, TOP)]
    _line(ax, points, linestyle=(0, (2, 1.5)))


def _line(ax: Axes, points: list[tuple[float, float]], **style) -> None:
    """An arrow through points, its corners rounded."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        near = [_towards(corner, other, 0.06) for other in (before, after)]
        vertices += [near[0], corner, near[1]]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*vertices, points[-1]], [*codes, Path.LINETO])
    head = "-|>,head_length=0.35,head_width=0.17"
    patch = FancyArrowPatch(
        path=path, arrowstyle=head, mutation_scale=10, color=LINE, linewidth=0.9, zorder=2,
        capstyle="butt", joinstyle="round", **style,
    )  # fmt: skip
    ax.add_patch(patch)


def _towards(a: tuple[float, float], b: tuple[float, float], most: float) -> tuple[float, float]:
    """The point on the way from `a` to `b` at that distance, or half way."""
    distance = abs(b[0] - a[0]) + abs(b[1] - a[1])
    share = min(most / distance, 0.5) if distance else 0.0
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
