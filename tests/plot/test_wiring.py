"""Pictures of attribution graphs: what is drawn is what was kept."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxviz.concepts import AttributionGraph
from jaxviz.plot import attribution_graph


def graph(**changes):
    """Two inputs, a unit, the score: 3 and -1 come in, 0.5 by the bias, which is cut."""
    edges = np.zeros((1, 6, 6))
    edges[0, 3, :3], edges[0, 5, 3] = (3.0, -1.0, 0.5), 2.5
    kept = np.array([[True, True, False, True, False, True]])
    parts = {
        "edges": edges,
        "relevance": np.array([[3.0, -1.0, 0.5, 2.5, 0.0, 2.5]]),
        "activation": np.ones((1, 6)),
        "units": np.array([[0, 1, -1, 0, -1, -1]]),
        "gap": np.zeros((1, 6)),
        "influence": np.array([[0.6, 0.2, 0.1, 1.0, 0.0, 0.0]]),
        "kept": kept,
        "kept_edges": (edges != 0) & kept[:, None] & kept[..., None],
        "layers": ("<input>", "relu", "<score>"),
        "layer_of": (0, 0, 1, 1, 2, 2),
        "kinds": ("unit", "unit", "bias", "unit", "bias", "score"),
    }
    return AttributionGraph(**(parts | changes))


def test_lines_are_the_edges_that_were_kept_red_up_blue_down():
    figure = attribution_graph(graph(), names={"<input>": ["ink", "paper"]})
    (ax,) = figure.axes
    assert figure.get_suptitle() == "A score of 2.5: 4 of 6 nodes, 3 edges"
    assert {"ink", "paper", "score", "relu"} <= {text.get_text() for text in ax.texts}
    lines = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert len(lines) == 3
    widths = sorted(line.get_linewidth() for line in lines)
    np.testing.assert_allclose(widths, [0.4 + 5.6 * part for part in (1 / 3, 2.5 / 3, 1)])
    thin = min(lines, key=lambda line: line.get_linewidth())
    red, _, blue = to_rgb(thin.get_color())
    assert blue > red
    up = [to_rgb(line.get_color()) for line in lines if line is not thin]
    assert all(red > blue for red, _, blue in up)
    # Those of the first layer stand in its column, the larger above.
    nodes = {tuple(np.ravel(line.get_data())): line for line in ax.lines if line not in lines}
    first = sorted(place for place in nodes if place[0] == 0)
    sizes = [nodes[place].get_markersize() for place in first]
    assert first[1][1] > first[0][1]
    assert sizes[1] > sizes[0]


def test_what_is_no_graph_or_not_there_is_refused():
    with pytest.raises(TypeError, match="attribution_graph: graph must be an attribution graph"):
        attribution_graph([1])
    with pytest.raises(ValueError, match=r"example must be in \[0, 1\)"):
        attribution_graph(graph(), example=1)
    with pytest.raises(ValueError, match="layer 'relu' has one of number 0, and 0 names"):
        attribution_graph(graph(), names={"relu": []})
