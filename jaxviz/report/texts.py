"""Texts and wirings as the page shows them: a number a token, a picture and a table a graph."""

from typing import Any

import numpy as np

from jaxviz.concepts.attribution_graph import AttributionGraph
from jaxviz.report.packing import Blocks, packed, parts, rows_of

_DRAWN = 16  # attribution graphs, each a picture of some 50 kB
_EDGES = 40  # of a graph's table


def pairs(words: list[list[str]]) -> list[list[Any]]:
    """Of each text its tokens as they are shown, and "1" for each that goes on with a word.

    Example:
      >>> pairs([["un", "##seen", "\\n"]])
      [[['un', 'seen', '↵'], '010']]
    """
    from jaxviz.plot.tokens import pieces, shown_token  # matplotlib takes its time to import

    found = []
    for example in words:
        cut = pieces(example)
        texts = [shown_token(text) for _, text in cut]
        found.append([texts, "".join("1" if glued else "0" for glued, _ in cut)])
    return found


def packed_tokens(name: str, values: Any, words: list[list[str]]) -> tuple[dict[str, Any], Blocks]:
    """Float32 `[N, L]` of `[N, L]` or `[N, L, D]`, whose last axis is summed.

    What is not finite is NaN, and so are places past a text's end.
    """
    lengths = np.array(list(map(len, words)))
    made = (len(values), int(lengths.max()))
    rows = rows_of(made, "float32")

    def summed(start: int, part: np.ndarray) -> np.ndarray:
        part = np.where(np.isfinite(part), part, np.nan).astype(np.float64)
        part = (part.sum(-1) if part.ndim == 3 else part)[:, : made[1]]
        past = np.arange(made[1]) >= lengths[start : start + len(part), None]
        return np.where(past, np.nan, part).astype(np.float32)

    cut = (summed(rows * i, part) for i, part in enumerate(parts(values, rows)))
    about, blocks = packed(name, made, "float32", cut)
    return {**about, "signed": True}, blocks


def wirings(graph: AttributionGraph, names: list[str] | None) -> list[dict[str, Any]]:
    """Of each input the wiring as a Figure, what it says, and its largest edges; `names` of all."""
    from jaxviz.plot import wiring  # matplotlib takes its time to import

    count = len(graph.relevance)
    if count > _DRAWN:
        raise ValueError(
            f"report: attribution_graph must be of {_DRAWN} inputs at most, for each is a picture; "
            f"got {count}. Pass the graphs of a few: attribution_graph(apply_fn, params, x[:4], "
            "...)."
        )
    found = []
    for n in range(count):
        labels = wiring.node_names(graph, n)
        edges = np.where(graph.kept_edges[n], graph.edges[n], 0)
        order = np.argsort(-np.abs(edges), axis=None, kind="stable")[:_EDGES]
        rows = [
            (labels[source], labels[into], f"{edges[into, source]:+.3g}")
            for into, source in zip(*np.unravel_index(order, edges.shape), strict=True)
            if edges[into, source]
        ]
        kept, total = int(np.sum(graph.kept[n])), len(graph.kinds)
        several = count > 1
        found.append(
            {
                "label": names[n] if names else f"input {n}" if several else "one input",
                "told": f"a score of {graph.relevance[n, -1]:.3g}, {kept} of {total} nodes kept",
                "picture": wiring.attribution_graph(graph, example=n),
                "rows": rows,
            }
        )
    return found
