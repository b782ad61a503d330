"""Attribution graphs as pictures: layers as columns, what flows between their units as lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxviz.calls.options import real, whole
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET, SIGNED
from jaxviz.plot.inputs import check_array
from jaxviz.plot.page import fitting_points, titled

_COLUMN, _ROW = 1.9, 0.42  # inches
_LARGEST = 0.17  # radius of a node in inches
_FADED = 0.04  # edges fainter than this part of the largest are not drawn


@public(example=whole(0), least=real(0, 1))
def attribution_graph(
    graph: Any,
    *,
    example: int = 0,
    names: Mapping[str, Sequence[str]] | None = None,
    least: float = _FADED,
    title: str | None = None,
) -> Figure:
    """Draws the wiring of one prediction, as `jaxviz.concepts.attribution_graph` found it.

    A column for each layer, from the input to the score; in it the nodes that pruning kept, those
    that raise the score most on top, as circles as large (by area) as their influence. A line is
    what goes from one to the next: red what raises the score, blue what lowers it, as wide as there
    is much of it. Squares are biases, diamonds a dictionary's errors, the hollow circle is all
    units that are no nodes of their own.

    Args:
      graph: The graph.
      example: Which of its inputs.
      names: From a layer to the names of its units; numbers where it has none.
      least: Lines below this part of the widest are left out.
      title: Above everything; None says the score and how much of the graph is shown.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: `example` is not there, or a layer has units without a name.
      TypeError: `graph` is no attribution graph.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxviz.concepts import attribution_graph as wiring
      >>> net = lambda w, x: jnp.maximum(x @ w, 0).sum(1, keepdims=True)
      >>> graph = wiring(net, jnp.eye(2), jnp.ones((1, 2)), 0, layers=["relu_0"])
      >>> [text.get_text() for text in attribution_graph(graph).axes[0].texts][:2]
      ['<input>', 'relu_0']
    """
    who = "attribution_graph"
    fields = "edges relevance units influence kept kept_edges layers layer_of kinds".split()
    if not all(hasattr(graph, field) for field in fields):
        raise TypeError(
            f"{who}: graph must be an attribution graph; got {type(graph).__name__}. Make one with "
            "jaxviz.concepts.attribution_graph."
        )
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(
            f"{who}: names must be a mapping from layers to names of units; got "
            f"{type(names).__name__}. Pass {{'layer': ['a', 'b']}}."
        )
    edges, relevance, influence = (
        check_array(who, field, getattr(graph, field)) for field in fields[:2] + fields[3:4]
    )
    if example >= len(relevance):
        raise ValueError(
            f"{who}: example must be in [0, {len(relevance)}), for the graph has so many; got "
            f"{example}."
        )
    kept, lines = np.asarray(graph.kept)[example], np.asarray(graph.kept_edges)[example]
    edges, relevance = np.where(lines, edges[example], 0), relevance[example]
    labels = _labels(who, graph, np.asarray(graph.units)[example], names or {})
    columns = [
        sorted(
            (v for v in np.flatnonzero(kept).tolist() if graph.layer_of[v] == i),
            key=lambda v: (graph.kinds[v] == "bias", -relevance[v]),
        )
        for i in range(len(graph.layers))
    ]
    tallest = max(map(len, columns))
    told = title
    if told is None:
        told = (
            f"A score of {relevance[-1]:.3g}: {kept.sum()} of {len(kept)} nodes, "
            f"{lines.sum()} edges"
        )
    figure = titled(_COLUMN * len(columns) + 0.6, _ROW * max(tallest, 4) + 1.5, told)
    ax = figure.subplots()
    at = _placed(columns, tallest)
    _draw_edges(ax, edges, at, least)
    for i in range(len(columns)):
        width = 2 * (_COLUMN - 0.2)
        size = fitting_points(graph.layers[i], width, 9, "bold")
        ax.text(
            i * _COLUMN, _ROW * 1.1, graph.layers[i], ha="center", color=INK, fontsize=size,
            weight="bold", parse_math=False,
        )  # fmt: skip
    for column in columns:
        for v in column:
            radius = _draw_node(ax, graph.kinds[v], at[v], influence[example], relevance, v)
            ax.text(
                at[v][0], at[v][1] - radius - 0.03, labels[v], ha="center", va="top", fontsize=6.5,
                color=INK, parse_math=False,
            )  # fmt: skip
    _legend(ax)
    ax.set_xlim(-0.5 * _COLUMN, (len(columns) - 0.5) * _COLUMN)
    ax.set_ylim(-_ROW * (max(tallest, 4)) - 0.1, _ROW * 1.9)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return figure


def node_names(graph: Any, example: int) -> list[str]:
    """Of each node its layer and what it is there: "relu_0 3", "relu_0 bias", "score"."""
    units = np.asarray(graph.units)[example]
    return [
        label if kind == "score" else f"{graph.layers[i]} {label}"
        for label, kind, i in zip(
            _labels("attribution_graph", graph, units, {}), graph.kinds, graph.layer_of, strict=True
        )
    ]


def _labels(who: str, graph: Any, units: np.ndarray, names: Mapping[str, Sequence[str]]) -> list:
    labels = []
    for v, kind in enumerate(graph.kinds):
        layer = graph.layers[graph.layer_of[v]]
        known = names.get(layer)
        if kind != "unit":
            labels.append({"rest": "others", "score": "score"}.get(kind, kind))
        elif known is None:
            labels.append(str(units[v]))
        elif units[v] < len(known):
            labels.append(str(known[units[v]]))
        else:
            raise ValueError(
                f"{who}: names must be as many as units; layer {layer!r} has one of number "
                f"{units[v]}, and {len(known)} names."
            )
    return labels


def _placed(columns: list[list[int]], tallest: int) -> dict[int, tuple[float, float]]:
    at = {}
    for i, column in enumerate(columns):
        spread = max(tallest, 4) / max(len(column), 1)
        for k, v in enumerate(column):
            at[v] = (i * _COLUMN, -_ROW * spread * (k + 0.5))
    return at


def _draw_edges(ax: Axes, edges: np.ndarray, at: Mapping, least: float) -> None:
    largest = np.abs(edges).max(initial=0) or 1.0
    order = np.argsort(np.abs(edges), axis=None)
    for into, origin in zip(*np.unravel_index(order, edges.shape), strict=True):
        strength = float(edges[into, origin] / largest)
        if abs(strength) < max(least, 1e-9) or into not in at or origin not in at:
            continue
        (x, y), (u, w) = at[origin], at[into]
        t = np.linspace(0, 1, 24)
        rise = t * t * (3 - 2 * t)  # leaves and arrives level
        ax.plot(
            x + (u - x) * t, y + (w - y) * rise, color=_colour(strength), zorder=1,
            linewidth=0.4 + 5.6 * abs(strength), alpha=0.35 + 0.55 * abs(strength),
            solid_capstyle="round",
        )  # fmt: skip


def _colour(strength: float) -> Any:
    return SIGNED(0.5 + np.sign(strength) * (0.28 + 0.2 * abs(strength)))


def _draw_node(ax, kind, place, influence, relevance, v) -> float:
    """Draws one; returns its radius."""
    largest = influence[influence < np.inf].max(initial=1e-12)
    part = 1.0 if kind == "score" else influence[v] / largest
    radius = _LARGEST * max(np.sqrt(part), 0.28)
    sizes = np.abs(relevance[:-1]).max(initial=1e-12)
    colour = _colour(float(np.clip(relevance[v] / sizes, -1, 1))) if relevance[v] else QUIET
    ax.plot(
        *place, marker={"bias": "s", "error": "D"}.get(kind, "o"), markersize=2 * 72 * radius,
        zorder=3, color=colour, markerfacecolor="white" if kind == "rest" else colour,
        markeredgecolor=colour if kind == "rest" else "white", markeredgewidth=1.2,
    )  # fmt: skip
    return radius


def _legend(ax: Axes) -> None:
    lines = [
        Line2D([], [], color=_colour(1), linewidth=3, label="raises the score"),
        Line2D([], [], color=_colour(-1), linewidth=3, label="lowers it"),
    ]
    ax.legend(
        handles=lines, loc="lower center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=8,
        frameon=False, labelcolor=INK,
    )  # fmt: skip
