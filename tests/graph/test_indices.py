"""Indices in few bits, and indices of what is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.graph.indices import at_index, is_channel

CLASSES = 600
W = jax.random.normal(jax.random.key(0), (5, CLASSES))
X = jax.random.normal(jax.random.key(1), (2, 5))
dense = lambda w, x: x @ w
METHODS = {
    "gradient": jv.gradient,
    "integrated_gradients": lambda *a: jv.integrated_gradients(*a, num_steps=2),
    "lrp": lambda *a: jv.lrp(*a) / X,
    "guided_backprop": jv.guided_backprop,
    "feature_ablation": lambda *a: jv.feature_ablation(*a) / X,
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint32, np.int64])
def test_labels_are_counted_in_enough_bits(dtype):  # a uint8 5 is not 261 and 517, too
    found = jv.gradient(dense, W, X, np.array([5, 117], dtype))
    np.testing.assert_array_equal(found, W[:, [5, 117]].T)
    rows = jnp.arange(2.0 * CLASSES).reshape(2, CLASSES)
    np.testing.assert_array_equal(at_index(rows, jnp.asarray(np.array([5, 117], dtype))), [5, 717])


@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_is_not_there_is_nan_where_it_cannot_be_refused(name):
    explain = jax.jit(lambda target: METHODS[name](dense, W, X, target))
    found = explain(jnp.array([CLASSES, 3]))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], METHODS[name](dense, W, X, 3)[1], rtol=1e-4, atol=1e-5)
    assert np.isnan(explain(jnp.array([0, -1]))[1]).all()


def test_one_infinite_score_leaves_the_others_alone():
    rows = jnp.array([[1.0, -jnp.inf, 3.0]])
    assert float(at_index(rows, 2)[0]) == 3
    assert jax.grad(lambda r: at_index(r, 0).sum())(rows).tolist() == [[1, 0, 0]]
    assert at_index(jnp.array([[4, 5]]), jnp.array([1], jnp.uint8)).tolist() == [5]


def test_channels_likewise():
    here, present = is_channel(jnp.zeros((2, 3, 400)), jnp.array([130, 400]))
    assert here.shape == (2, 1, 400)
    assert here[0, 0].nonzero()[0].tolist() == [130]
    np.testing.assert_array_equal(present[:, 0, 0], [1, np.nan])
    net = lambda w, x: jax.nn.relu(x @ w)
    project = jax.jit(lambda c: jv.feature_projection(net, W, X, layer="relu_0", channel=c))
    assert np.isnan(project(CLASSES)).all()
    small = jnp.uint8(7)
    expected = jnp.where((X @ W)[:, 7:8] > 0, (X @ W)[:, 7:8] * W[:, 7][None], 0)
    np.testing.assert_allclose(project(small), expected, rtol=1e-5, atol=1e-6)
    parts = jax.jit(lambda c: jv.concept_relevance(net, W, X, 7, layer="relu_0", channel=c))
    assert np.isnan(parts(-1)).all()
    np.testing.assert_allclose(parts(small), jv.lrp(net, W, X, 7), rtol=1e-4, atol=1e-5)
