"""Attribution graphs against weights multiplied by hand, interventions, and the whole score."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.concepts import Dictionary, attribution_graph
from jaxviz.concepts.pruning import influences

LAST = ("NHWC", "HWIO", "NHWC")
LAYERS = ("relu_0", "relu_1", "relu_2")


def conv(x, w, b):
    z = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAST)
    return jax.nn.relu(z + b.reshape(1, 1, 1, -1))


def net(p, x):
    x = nn.max_pool(conv(x, p["w0"], p["b0"]), (2, 2), (2, 2))
    x = conv(x, p["w1"], p["b1"]).reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ p["w2"] + p["b2"].reshape(1, -1))
    return x @ p["w3"] + p["b3"].reshape(1, -1)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(3)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    p = {"w0": drawn(3, 3, 1, 3), "w1": drawn(3, 3, 3, 4), "w2": drawn(16, 5), "w3": drawn(5, 3)}
    p |= {f"b{i}": drawn(n) for i, n in enumerate((3, 4, 5, 3))}
    return p, drawn(2, 4, 4, 1)


def explained(*given, **options):
    """The graph, in NumPy: its numbers are then compared without a program for each step."""
    return jax.tree.map(np.asarray, attribution_graph(*given, **options))


@pytest.fixture(scope="module")
def graph(inputs):
    """Every number of every layer: 16 + 48 + 16 + 5 units."""
    return explained(net, *inputs, 1, layers=LAYERS, by="place", num_units=None)


def nodes(graph, layer, kind="unit"):
    """Where those of a layer stand."""
    of = graph.layers.index(layer)
    both = enumerate(zip(graph.layer_of, graph.kinds, strict=True))
    return np.array([v for v, pair in both if pair == (of, kind)])


def test_what_comes_in_goes_out_and_is_the_logit(graph, inputs):
    scale = np.abs(graph.edges).max()
    np.testing.assert_allclose(graph.edges[:, -1].sum(1), net(*inputs)[:, 1], atol=1e-5 * scale)
    np.testing.assert_allclose(graph.gap, 0, atol=1e-5 * scale)
    np.testing.assert_allclose(
        graph.edges.sum(1)[:, :-1], graph.relevance[:, :-1], atol=1e-5 * scale
    )
    assert (np.triu(graph.edges) == 0).all()  # no way back


def test_edges_are_weights_times_values(graph, inputs):
    p, x = inputs
    a = jv.activations(net, p, x, layers=list(LAYERS[1:]))
    flat = np.asarray(a["relu_1"]).reshape(2, -1)
    slope = np.where(
        np.asarray(a["relu_2"]) > 0, np.asarray(p["w3"])[:, 1], 0
    )  # of the score by what enters
    one, two = nodes(graph, "relu_1"), nodes(graph, "relu_2")
    got = graph.edges[:, two[:, None], one]
    asked = flat[:, None] * np.asarray(p["w2"]).T * slope[:, :, None]
    np.testing.assert_allclose(got, asked, rtol=1e-4, atol=1e-5)
    bias = nodes(graph, "relu_2", "bias")
    np.testing.assert_allclose(
        graph.edges[:, two, bias], np.asarray(p["b2"]) * slope, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        graph.edges[:, -1, -2], np.full(2, np.asarray(p["b3"])[1]), rtol=1e-5
    )
    np.testing.assert_array_equal(graph.units[0, one], np.arange(16))
    np.testing.assert_allclose(graph.activation[:, one], flat, rtol=1e-5)


def test_interventions_do_what_edges_say_where_no_gate_changes(graph, inputs):
    """Each unit of the second layer set to zero: the score, and each unit of the third."""
    p, x = inputs

    mask = np.eye(17, 16, dtype=bool).reshape(17, 1, 2, 2, 4)  # the last one: none of them

    @jax.jit
    @jax.vmap
    def cut(mask):
        changed = jv.patched(net, "relu_1", 0.0, where=jnp.broadcast_to(mask, (2, 2, 2, 4)))
        return changed(p, x)[:, 1], jv.activations(changed, p, x, layers=["relu_2"])["relu_2"]

    score, third = map(np.asarray, cut(mask))
    score, third, whole, before = score[:-1], third[:-1], score[-1], third[-1]
    same = ((third > 0) == (before > 0)).all(2)  # [units, N]
    one, two = nodes(graph, "relu_1"), nodes(graph, "relu_2")
    assert 0.3 < same.mean() < 1
    lost = np.where(same, whole - score, 0).T
    np.testing.assert_allclose(lost, np.where(same.T, graph.relevance[:, one], 0), atol=2e-5)
    effect = np.asarray(graph.effects)[:, two[:, None], one].transpose(2, 0, 1)
    moved = np.where(same[..., None], before - third, 0)
    np.testing.assert_allclose(moved, np.where(same[..., None], effect, 0), atol=2e-5)


def test_channels_are_their_places_together(graph, inputs):
    few = explained(net, *inputs, 1, layers=LAYERS[::-1], num_units=2)
    assert few.layers == graph.layers
    assert few.kinds[:5] == ("unit", "bias", "unit", "unit", "rest")
    for layer, channels in zip(LAYERS, (3, 4, 5), strict=True):
        by_place = np.asarray(graph.relevance)[:, nodes(graph, layer)]
        whole = by_place.reshape(2, -1, channels).sum(1)
        at = nodes(few, layer)
        got = np.asarray(few.relevance)
        np.testing.assert_allclose(
            got[:, at], np.take_along_axis(whole, np.asarray(few.units)[:, at], 1), atol=1e-4
        )
        rest = got[:, nodes(few, layer, "rest")][:, 0]
        np.testing.assert_allclose(rest + got[:, at].sum(1), whole.sum(1), atol=1e-4)
        assert (np.abs(whole).min(1) <= np.abs(got[:, at]).min(1) + 1e-4).all()
    np.testing.assert_allclose(few.gap, 0, atol=1e-4)
    np.testing.assert_allclose(few.edges.sum(1)[:, :-1], few.relevance[:, :-1], atol=1e-4)


def test_influence_and_pruning_are_those_of_the_papers(graph):
    edges = np.asarray(graph.edges[0], np.float64)
    shares = np.abs(edges) / np.maximum(np.abs(edges).sum(1, keepdims=True), 1e-30)
    whole = np.linalg.inv(np.eye(len(edges)) - shares) - np.eye(len(edges))
    np.testing.assert_allclose(graph.influence[0], whole[-1], atol=1e-5)
    ordered = np.argsort(-whole[-1], kind="stable")
    reached = np.cumsum(whole[-1][ordered]) / whole[-1].sum()
    kept = {*ordered[: np.searchsorted(reached, 0.8) + 1].tolist(), len(edges) - 1}
    got = set(np.flatnonzero(graph.kept[0]).tolist())
    assert got <= kept
    assert len(got) > 5
    # What is kept hands on to what is kept, and the edges are most of those between.
    inner = np.asarray(graph.kept_edges[0])
    assert inner[:, sorted(got - {len(edges) - 1})].any(0).all()
    assert not inner[:, [v for v in range(len(edges)) if v not in got]].any()
    among = (
        shares
        * np.isin(np.arange(len(edges)), sorted(kept))
        * np.isin(np.arange(len(edges)), sorted(kept))[:, None]
    )
    among = among / np.maximum(among.sum(1, keepdims=True), 1e-30)
    weights = among * np.linalg.inv(np.eye(len(edges)) - among)[-1][:, None]
    assert 0.9 < (weights * inner).sum() / weights.sum() <= 1


def test_influence_has_a_gradient():
    edges = jnp.tril(jax.random.uniform(jax.random.key(0), (5, 5), minval=0.1), -1)
    start = jnp.array([0.0, 0.0, 0.0, 0.2, 0.8])
    chosen = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0])

    def by_inverse(edges):
        shares = edges / jnp.maximum(edges.sum(1, keepdims=True), 1e-30)
        return (start @ (jnp.linalg.inv(jnp.eye(5) - shares) - jnp.eye(5))) @ chosen

    found = jax.grad(lambda edges: influences(edges, start) @ chosen)(edges)
    np.testing.assert_allclose(found[1:], jax.grad(by_inverse)(edges)[1:], atol=1e-5)


def test_codes_of_dictionaries_are_nodes_with_what_they_leave(graph, inputs):
    p, x = inputs
    rng = np.random.default_rng(1)
    drawn = lambda *shape: rng.normal(size=shape).astype(np.float32)
    options = {"layers": LAYERS}
    # Atoms that are the channels, by least squares; a transcoder that is the layer itself; and
    # before both two of six units that have nothing to do with their layer's channels.
    name = next(layer.name for layer in jv.layers(net, p, x) if layer.shape == (2, 16))
    zeros = np.zeros(5, np.float32)
    layer = Dictionary(np.eye(5, dtype="f4"), p["w2"], p["b2"], zeros, zeros)
    atoms, threshold = drawn(6, 3), np.full(6, 0.3, np.float32)
    few = Dictionary(atoms, atoms.T, drawn(6), drawn(3), threshold, np.asarray(2))
    channels = Dictionary(np.eye(4, dtype="f4"))
    few, channels, layer = jax.device_put((few, channels, layer))
    dictionaries = {"relu_0": few, "relu_1": channels, (name, "relu_2"): layer}
    coded = explained(net, p, x, 1, dictionaries=dictionaries, **options)
    for at in ("relu_1", "relu_2"):
        by_place = graph.relevance[:, nodes(graph, at)]
        whole = by_place.reshape(2, -1, len(nodes(coded, at))).sum(1)
        np.testing.assert_allclose(coded.relevance[:, nodes(coded, at)], whole, atol=1e-4)
    third, bias = nodes(graph, "relu_2"), nodes(graph, "relu_2", "bias")
    got = coded.edges[:, nodes(coded, "relu_2"), nodes(coded, "relu_2", "bias")]
    np.testing.assert_allclose(got, graph.edges[:, third, bias], atol=1e-4)
    scale = np.abs(coded.edges).max()
    np.testing.assert_allclose(coded.gap, 0, atol=1e-5 * scale)
    np.testing.assert_allclose(
        coded.edges.sum(1)[:, :-1], coded.relevance[:, :-1], atol=1e-5 * scale
    )
    assert (np.abs(coded.relevance[:, nodes(coded, "relu_0", "error")]) > 1e-3 * scale).all()
    with pytest.raises(ValueError, match="attribution_graph: dictionaries must be as wide"):
        explained(net, p, x, dictionaries={"relu_2": Dictionary(jnp.eye(4))}, **options)


class Block(nn.Module):
    """A transformer's block with biases, positions, a class token and padding."""

    @nn.compact
    def __call__(self, x):
        first = self.param("class", _some, (1, 1, 4))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, 4)), x], 1)
        x = x + self.param("at", _some, (1, 4, 4))
        y = nn.LayerNorm(name="norm", bias_init=_some)(x)
        x = x + nn.MultiHeadDotProductAttention(2, bias_init=_some, name="attention")(y)
        y = nn.gelu(nn.Dense(6, bias_init=_some, name="up")(nn.RMSNorm()(x)))
        x = x + nn.Dense(4, bias_init=_some, name="down")(y)
        return nn.Dense(3, bias_init=_some)(jax.nn.softplus(x[:, 0]))


_some = nn.initializers.normal(1.0)


def test_a_transformer_is_linear_between_what_is_held():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    shapes = jax.eval_shape(Block().init, jax.random.key(0), x)
    p = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
    graph = explained(Block().apply, p, x, layers=["attention", "gelu_0"], num_units=3)
    logits = np.asarray(jax.jit(Block().apply)(p, x))
    np.testing.assert_allclose(graph.edges[:, -1].sum(1), logits.max(1), rtol=1e-4)
    np.testing.assert_allclose(graph.gap, 0, atol=2e-5 * np.abs(graph.relevance).max())
    np.testing.assert_allclose(graph.edges.sum(1)[:, :-1], graph.relevance[:, :-1], atol=1e-4)


def test_layers_of_one_value_are_refused(inputs):
    with pytest.raises(ValueError, match=r"attribution_graph: .*'relu_9'"):
        attribution_graph(net, *inputs, layers=["relu_9"])
    with pytest.raises(TypeError, match="dictionaries must be a mapping"):
        attribution_graph(net, *inputs, layers=LAYERS, dictionaries=[1])
