"""Edges between layers against nets drawn by hand, and what holds of every net's graph."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from zoo import BUILDERS

import jaxviz as jv


@functools.cache
def build(name):
    """A net of the zoo in shapes alone, which is all that its graph needs."""
    made = []

    def make():
        apply_fn, *arrays = BUILDERS[name]()
        made.append(apply_fn)
        return arrays

    arrays = jax.eval_shape(make)
    return made[0], *arrays


def edges(graph):
    """The edges as text, without the inputs' and outputs' brackets."""
    return {f"{a.strip('<>')} > {b.strip('<>')}" for a, b in graph.edges}


def test_a_chain_folds_what_follows_a_layer_into_its_box():
    graph = jv.layer_graph(*build("nested"))
    chain = ["<input>", "block1/Conv_0", "block1/max_pool_0", "block2/Conv_0", "block2/max_pool_0"]
    chain += ["flatten_0", "out", "<output>"]
    assert [box.name for box in graph.boxes] == chain
    assert list(graph.edges) == list(itertools.pairwise(chain))
    box = graph.boxes[1]
    assert [layer.name.split("/")[1] for layer in box.layers] == ["Conv_0", "BatchNorm_0", "relu_0"]
    assert (box.kind, box.detail, box.shape) == ("conv", "3 x 3", (2, 8, 8, 4))
    assert box.num_params == 112 + 8
    assert graph.boxes[2].detail == "2 x 2, stride 2"


def test_a_skip_is_an_edge_past_the_layers_between():
    graph = jv.layer_graph(*build("residual"))
    assert edges(graph) == {
        *("input > stem", "stem > relu_0", "relu_0 > conv1", "conv1 > conv2", "conv2 > add_0"),
        *("stem > add_0", "add_0 > mean_0", "mean_0 > out", "out > output"),
    }  # two read the stem, so its ReLU is a box of its own


def test_branches_meet_in_a_concatenation():
    graph = jv.layer_graph(*build("concatenating"))
    assert edges(graph) == {
        *("input > stem", "stem > left", "stem > right", "stem > concatenate_0"),
        *("left > concatenate_0", "right > concatenate_0", "concatenate_0 > avg_pool_0"),
        *("avg_pool_0 > mean_0", "mean_0 > out", "out > output"),
    }


def test_attention_reads_three_projections():
    graph = jv.layer_graph(*build("attention"))
    products = [box.name for box in graph.boxes if box.kind == "matmul"]
    found = set(graph.edges)
    for name, product in (("query", 0), ("key", 0), ("value", 1)):
        assert ("norm", f"attention/{name}") in found
        assert (f"attention/{name}", products[product]) in found
    assert (products[0], "attention/softmax_0") in found
    assert ("attention/softmax_0", products[1]) in found
    assert ("norm", "add_0") in found


def test_several_inputs_and_outputs_have_their_keys():
    graph = jv.layer_graph(*build("mixed"))
    assert edges(graph) == {
        *("input dense > concatenate_0", "input ids > embed_0", "embed_0 > mean_0"),
        *("mean_0 > concatenate_0", "concatenate_0 > dense_0"),
        *("dense_0 > dense_1", "dense_0 > output hidden", "dense_1 > output logits"),
    }


def test_a_loop_over_time_is_one_box_with_its_turns():
    def recurrent(w, x):
        return jax.lax.scan(lambda h, row: (h @ w + row, None), x[:, 0], x.swapaxes(0, 1))[0]

    boxes = {
        box.name: box for box in jv.layer_graph(recurrent, jnp.eye(6), jnp.ones((2, 3, 6))).boxes
    }
    loop = boxes["scan_0"]
    assert (loop.detail, loop.num_params) == ("3 turns", 6 * 6)
    assert [layer.name for layer in loop.layers] == ["scan_0/dense_0", "scan_0/add_0"]


def test_a_scan_over_layers_has_boxes_of_its_turns():
    boxes = {box.name: box for box in jv.layer_graph(*build("linen_scan")).boxes}
    assert {f"stack[{i}]/add_0" for i in range(3)} <= set(boxes)


class Part(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="second")(nn.relu(nn.Dense(4, name="first")(x)))


class Twice(nn.Module):
    """A module of several layers, called twice, with a skip over the second call."""

    @nn.compact
    def __call__(self, x):
        part = Part(name="part")
        x = nn.Dense(4, name="into")(x)
        a = part(x)
        return part(jnp.tanh(a)) + a


def test_depth_makes_a_box_of_each_call_of_a_module():
    x = jnp.ones((2, 3))
    net = Twice()
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    graph = jv.layer_graph(net.apply, variables, x, depth=1)
    # tanh follows the first call, which the sum reads too, so that it is not folded.
    assert edges(graph) == {
        *("input > into", "into > part", "part > tanh_0", "tanh_0 > part_1"),
        *("part > add_0", "part_1 > add_0", "add_0 > output"),
    }
    assert {box.name: box.kind for box in graph.boxes}["part_1"] == "Part"
    deep = jv.layer_graph(net.apply, variables, x)
    assert {"part/first", "part/second", "part/first_1"} <= {b.name for b in deep.boxes}


def test_what_is_no_layer_is_seen_through():
    def net(w, x):
        h = x @ w
        return h.T[:2].T.sum(1) + jnp.pad(h, ((0, 0), (1, 1)))[:, 0]

    graph = jv.layer_graph(net, jnp.ones((3, 3)), jnp.ones((4, 3)))
    assert edges(graph) == {"input > dense_0", "dense_0 > add_0", "add_0 > output"}


def test_unfolded_every_layer_is_a_box():
    apply_fn, params, x = build("nested")
    graph = jv.layer_graph(apply_fn, params, x, fold=False)
    leaves = [layer.name for layer in jv.layers(apply_fn, params, x) if not layer.submodules]
    assert [box.name for box in graph.boxes[1:-1]] == leaves


NETS = (
    "nested residual concatenating attention mixed linen_scan shared plain scan cond while".split()
)


@pytest.mark.parametrize("net", [*NETS, "custom_vjp", "remat"])
def test_edges_lead_forward_and_no_parameter_is_lost(net):
    apply_fn, params, x = build(net)
    listed = jv.layers(apply_fn, params, x)
    for depth in (None, 1):
        graph = jv.layer_graph(apply_fn, params, x, depth=depth)
        order = {box.name: n for n, box in enumerate(graph.boxes)}
        assert len(order) == len(graph.boxes)
        assert all(order[a] < order[b] for a, b in graph.edges)
        read = {b for _, b in graph.edges}
        made = {a for a, _ in graph.edges}
        assert all(box.kind == "input" or box.name in read for box in graph.boxes)
        assert all(box.kind == "output" or box.name in made for box in graph.boxes)
        leaves = sum(layer.num_params for layer in listed if not layer.submodules)
        assert sum(box.num_params for box in graph.boxes) == leaves


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="depth must be at least 1; got 0"):
        jv.layer_graph(*build("plain"), depth=0)
