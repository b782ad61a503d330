"""Attribution graphs of nets whose wiring is known: planted paths, and what only looks like one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxviz.concepts import Dictionary, attribution_graph

LAYERS = ("relu_0", "relu_1")
# Of the first of two scores: x0 and x1 -> h0 -> g1, and x2 -> h2 -> g4. What is no part of it: h5
# is h0's twin, number for number, and leads nowhere; x3 -> h4 -> g5 makes the other score; h1 is
# off, and would be heavy; g0 is on, and nobody reads it.
FIRST = {("x0", "h0"): 2.0, ("x1", "h0"): -1.0, ("x2", "h2"): 1.0}
PLANTED = {**FIRST, ("h0", "g1"): 1.5, ("h2", "g4"): 2.0, ("g1", "y0"): 3.0, ("g4", "y0"): -1.0}
OTHERS = {
    **{("x0", "h5"): 2.0, ("x1", "h5"): -1.0, ("x3", "h4"): 1.0, ("x4", "h1"): -1.0},
    **{("h4", "g5"): 2.0, ("h1", "g1"): 10.0, ("h5", "g0"): 1.0, ("g5", "y1"): 1.0},
}
SIZES = {"x": 5, "h": 6, "g": 6, "y": 2}
X = np.float32([[3, 1, 2, 4, 5]])
# By hand: h0 = 6 - 1, g1 = 7.5 + 0.25, g4 = 4, y0 = 23.25 - 4. Of what goes along each edge, in
# units of the later unit, and of the score: times 4.5 from h0 on, -2 from h2 on, 3 and -1 later.
EFFECTS = {
    **{("x0", "h0"): 6.0, ("x1", "h0"): -1.0, ("x2", "h2"): 2.0, ("h0", "g1"): 7.5},
    **{("bias", "g1"): 0.25, ("h2", "g4"): 4.0, ("g1", "y0"): 23.25, ("g4", "y0"): -4.0},
}
EDGES = {
    **{("x0", "h0"): 27.0, ("x1", "h0"): -4.5, ("x2", "h2"): -4.0, ("h0", "g1"): 22.5},
    **{("bias", "g1"): 0.75, ("h2", "g4"): -4.0, ("g1", "y0"): 23.25, ("g4", "y0"): -4.0},
}


def net(p, x):
    h = jax.nn.relu(x @ p["xh"])
    return jax.nn.relu(h @ p["hg"] + p["b"][None]) @ p["gy"]


def weights(noise=0.0):
    rng = np.random.default_rng(0)
    p = {
        one + other: noise * rng.normal(size=(SIZES[one], SIZES[other])).astype(np.float32)
        for one, other in ("xh", "hg", "gy")
    }
    for (one, other), weight in (PLANTED | OTHERS).items():
        p[one[0] + other[0]][int(one[1]), int(other[1])] = weight
    return p | {"b": np.float32([0, 0.25, 0, 0, 0, 0])}


def graph(p, x, **thresholds):
    return jax.tree.map(np.asarray, attribution_graph(net, p, x, 0, layers=LAYERS, **thresholds))


def named(found, edges, there):
    """The numbers of those edges that are there, by the names of their ends."""
    names = [
        {"unit": f"{'xhgy'[layer]}{unit}", "score": "y0"}.get(kind, kind)
        for layer, kind, unit in zip(found.layer_of, found.kinds, found.units[0], strict=True)
    ]
    ends = zip(*np.nonzero(there), strict=True)
    return {(names[one], names[other]): edges[other, one] for other, one in ends}


def test_the_graph_is_the_planted_wiring_with_its_effects_by_hand():
    found = graph(weights(), X, node_threshold=1.0, edge_threshold=1.0)
    for there in (found.edges[0] != 0, found.kept_edges[0]):
        assert named(found, found.edges[0], there) == pytest.approx(EDGES, rel=1e-6)
        assert named(found, found.effects[0], there) == pytest.approx(EFFECTS, rel=1e-6)
    np.testing.assert_allclose(found.edges[0, -1].sum(), 19.25, rtol=1e-6)
    # The twin has the same value, and no part in anything.
    units = found.units[0], np.array(found.layer_of)
    h0, h5 = (np.flatnonzero((units[0] == k) & (units[1] == 1))[0] for k in (0, 5))
    assert found.activation[0, h0] == found.activation[0, h5] == 5
    assert found.relevance[0, h5] == 0
    assert found.relevance[0, h0] == pytest.approx(22.5)


def test_among_noise_the_pruned_graph_is_the_planted_wiring():
    """Every weight that was zero is noise, of a thousandth of the planted ones' size."""
    x = np.float32(np.random.default_rng(1).uniform(2, 4, (6, 5)) * [1.5, 0.5, 1, 1, 1])
    p = weights(1e-3)
    found = graph(p, x, node_threshold=0.99, edge_threshold=0.99)
    h = np.maximum(x @ p["xh"], 0)
    g = np.maximum(h @ p["hg"] + p["b"], 0)
    assert (found.edges != 0).sum() > 3 * found.kept_edges.sum()  # the rest is there, and small
    for n in range(len(x)):
        kept = named(found, found.effects[n], found.kept_edges[n])
        assert set(kept) - {("bias", "g1")} == set(PLANTED)  # the bias is small, and may be left
        for (one, other), effect in kept.items():
            if one != "bias":
                value = {"x": x, "h": h, "g": g}[one[0]][n, int(one[1])]
                weight = p[one[0] + other[0]][int(one[1]), int(other[1])]
                assert effect == pytest.approx(value * weight, rel=1e-5)


def test_random_concepts_are_insignificant_at_the_stated_level_and_the_planted_one_is_not():
    """A layer of 24 channels, whose score is made along one direction; concepts are directions.

    What passes through a concept is compared with what passes through 79 random ones: p-values are
    ranks among those, so of others that are random, too, one of 20 has p <= 0.05.
    """
    rng = np.random.default_rng(2)
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    planted = unit(rng.normal(size=24))
    p = {"w": np.float32(planted)}
    # Values along the direction, and as large ones across it.
    x = np.float32(3 * planted + rng.normal(size=24))[None]
    read = lambda p, x: jax.nn.relu(jnp.tanh(0.1 * x) @ p["w"])[:, None]

    def through(direction):
        atom = jnp.asarray(direction[None], jnp.float32)
        dictionaries = {"tanh_0": Dictionary(atom, encoder=atom.T)}
        found = attribution_graph(read, p, x, 0, layers=["tanh_0"], dictionaries=dictionaries)
        at = [found.layer_of[v] == 1 and found.kinds[v] == "unit" for v in range(len(found.kinds))]
        return abs(float(found.relevance[0, at.index(True)]))

    size = np.array([through(d) for d in unit(rng.normal(size=(179, 24)))])
    null, fresh = size[:79], size[79:]
    p_value = lambda value: (1 + (null >= value).sum()) / 80
    assert p_value(through(planted)) == 1 / 80
    false = sum(p_value(value) <= 0.05 for value in fresh)
    assert false <= stats.binom.ppf(0.999, 100, 0.05)
