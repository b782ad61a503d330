"""The picture of a layer graph: what stands where, and the same graph as Graphviz source."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import matplotlib
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import jaxviz as jv
from jaxviz import plot
from jaxviz.graph.layer_graph import Box, LayerGraph
from jaxviz.plot.layering import arrange, crossing, cuts, rows_of


def fire(w, x):
    """A squeeze, two branches that meet, and a skip around all of it."""
    h = jax.nn.relu(x @ w)
    return jnp.concatenate([h @ w, jax.nn.relu(h @ w)], 1) + jnp.concatenate([x, x], 1)


GRAPH = jv.layer_graph(fire, jnp.ones((3, 3)), jnp.ones((2, 3)))


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_box_and_every_edge_is_drawn_once():
    ax = plot.architecture(GRAPH).axes[0]
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    assert (len(boxes), len(arrows)) == (len(GRAPH.boxes), len(GRAPH.edges))
    overlaps = [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a.get_bbox().x0 < b.get_bbox().x1
        and b.get_bbox().x0 < a.get_bbox().x1
        and a.get_bbox().y0 < b.get_bbox().y1
        and b.get_bbox().y0 < a.get_bbox().y1
    ]
    assert not overlaps


def test_a_box_says_name_work_output_and_parameters():
    shown = texts(plot.architecture(GRAPH))
    assert {"input", "dense_0", "relu", "3", "9", "concatenate_0", "6", "output"} <= set(shown)
    assert "<input>" not in shown


def test_the_title_counts_and_can_be_given():
    assert plot.architecture(GRAPH).get_suptitle() == "8 layers, 27 parameters"
    assert plot.architecture(GRAPH, title="a net").get_suptitle() == "a net"


def test_every_text_lies_inside_the_picture():
    figure = plot.architecture(GRAPH)
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.axes[0].texts:
        corner = text.get_window_extent()
        assert corner.x0 >= 0, text
        assert corner.x1 <= width, text
        assert corner.y0 >= 0, text
        assert corner.y1 <= height, text


def test_the_trunk_is_straight_and_branches_stand_beside_it():
    names = ["a", "b1", "c1", "c2", "d"]
    edges = [("a", "b1"), ("a", "c1"), ("c1", "c2"), ("b1", "d"), ("c2", "d"), ("a", "d")]
    at = arrange(names, edges, width=2.0, gap=0.5)
    assert at.row == {"a": 0, "b1": 1, "c1": 1, "c2": 2, "d": 3}
    assert {at.x[name] for name in ("a", "c1", "c2", "d")} == {0.0}
    assert at.x["b1"] == 2.5  # half a trunk, the gap, half a box
    assert at.lane["a", "b1"] == at.lane["b1", "d"] == 2.5
    assert at.lane["a", "d"] == -1.5  # the skip passes on the side that is free


def test_skips_that_follow_each_other_share_a_lane_and_nested_ones_do_not():
    names = [str(n) for n in range(7)]
    chain = [(str(n), str(n + 1)) for n in range(6)]
    lane = arrange(names, [*chain, ("0", "3"), ("3", "6"), ("1", "6")], 2.0, 0.5).lane
    assert lane["0", "3"] == lane["3", "6"] == 1.5
    assert abs(lane["1", "6"]) >= 1.5
    assert lane["1", "6"] != 1.5


def test_a_long_graph_is_cut_where_one_value_crosses():
    names = [str(n) for n in range(20)]
    edges = [(str(n), str(n + 1)) for n in range(19)] + [("6", "11"), ("11", "16")]
    row = rows_of(names, edges)
    starts = cuts(row, edges, [1.0] * 20, tall=10.0)
    assert starts == [0, 12]  # below 11, which alone is read from there on
    assert crossing(row, edges, 12, 20) == ["11"]
    assert crossing(row, edges, 10, 20) == ["6", "9"]


def long_graph(blocks):
    ends = Box("<input>", "input", "", (1, 8), 0, ()), Box("<output>", "output", "", (1, 8), 0, ())
    parts = [[f"block{n}/{name}" for name in ("dense", "other", "add_0")] for n in range(blocks)]
    boxes = [Box(name, "dense", "", (1, 8), 72, ()) for group in parts for name in group]
    names = ["<input>", *(box.name for box in boxes), "<output>"]
    skips = [(names[3 * n], names[3 * n + 3]) for n in range(blocks)]
    edges = (*itertools.pairwise(names), *skips)
    return LayerGraph((ends[0], *boxes, ends[1]), edges)


def test_a_long_net_goes_on_below_a_copy_of_what_it_reads():
    figure = plot.architecture(long_graph(12))
    copies = [text for text in texts(figure) if text.startswith("from block")]
    assert len(copies) == 1
    assert copies[0].endswith("/add_0")
    assert texts(figure).count("add_0") == 12  # the bracket beside it says the block
    assert {f"block{n}" for n in range(12)} <= set(texts(figure))


def test_graphviz_source_has_the_boxes_and_edges():
    source = plot.graphviz(GRAPH)
    nodes = re.findall(r'^ +("[^"]+") \[label', source, re.MULTILINE)
    arrows = re.findall(r'^ +("[^"]+") -> ("[^"]+");', source, re.MULTILINE)
    assert [json.loads(node) for node in nodes] == [box.name for box in GRAPH.boxes]
    assert [(json.loads(a), json.loads(b)) for a, b in arrows] == list(GRAPH.edges)
    assert source.count("{") == source.count("}")
    assert r'label="dense_0\nrelu\n3, 9 parameters"' in source


def test_graphviz_source_has_modules_as_clusters():
    source = plot.graphviz(long_graph(2))
    assert source.count("subgraph cluster_") == 2
    assert 'label="block1";' in source


def test_an_empty_graph_is_refused():
    with pytest.raises(ValueError, match="graph must have boxes"):
        plot.architecture(LayerGraph((), ()))


def test_no_window_is_opened():
    before = matplotlib.get_backend()
    plot.architecture(GRAPH)
    assert matplotlib.get_backend() == before
    assert not matplotlib._pylab_helpers.Gcf.get_all_fig_managers()  # type: ignore[attr-defined]
