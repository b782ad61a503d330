"""Unused inputs and shifts of the input: nets whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import metrics

X = jax.random.normal(jax.random.key(0), (3, 6)) + 3.0
W = jax.random.normal(jax.random.key(1), (6, 2)).at[4:].set(0.0)  # the last two inputs are unused


def net(w, x):
    return jnp.tanh(x @ w / 8)  # not flat, where both sides would be rounding


def test_non_sensitivity_counts_both_kinds_of_fault():
    net = lambda w, x: x @ w
    exact = jv.input_x_gradient(net, W, X, 0)
    assert metrics.non_sensitivity(net, W, X, exact, 0).tolist() == [0, 0, 0]
    blind = exact.at[:, 0].set(0.0)  # one that matters got nothing
    assert metrics.non_sensitivity(net, W, X, blind, 0).tolist() == [1, 1, 1]
    loud = blind.at[:, 5].set(1.0)  # and one that does not matter got something
    assert metrics.non_sensitivity(net, W, X, loud, 0).tolist() == [2, 2, 2]
    # An input that is the fill already does not matter.
    assert metrics.non_sensitivity(net, W, X, exact, 0, fill=X).tolist() == [4, 4, 4]
    assert np.isnan(metrics.non_sensitivity(net, W, X, exact * jnp.nan, 0)).all()
    zero = metrics.non_sensitivity(net, W, X, jnp.zeros_like(X), 0)
    assert zero.tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match=r"^non_sensitivity: attribution must have the shape of x"):
        metrics.non_sensitivity(net, W, X, exact[:, :3], 0)


def test_gradients_are_invariant_to_a_shift_and_products_with_the_input_are_not():
    found = metrics.input_invariance(jv.gradient, net, W, X, 0, shift=-2.0)
    np.testing.assert_allclose(found, 0, atol=1e-5)
    gradient = np.asarray(jv.gradient(net, W, X, 0))
    x = np.asarray(X)
    by_hand = np.linalg.norm(-2.0 * gradient, axis=1) / np.linalg.norm(gradient * x, axis=1)
    found = metrics.input_invariance(jv.input_x_gradient, net, W, X, 0, shift=-2.0)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4)
    # The same net with the shift in its first bias, as in the paper, has the same relevance.
    folded = lambda w, x: x @ w + 2.0 * w.sum(0)[None]
    line = lambda w, x: x @ w
    ours = metrics.input_invariance(jv.lrp, line, W, X, 0, shift=-2.0)
    here, there = jv.lrp(line, W, X, 0), jv.lrp(folded, W, X - 2.0, 0)
    by_hand = jnp.linalg.norm(there - here, axis=1) / jnp.linalg.norm(here, axis=1)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-3)
    with pytest.raises(ValueError, match=r"^input_invariance: shift must broadcast to x"):
        metrics.input_invariance(jv.gradient, net, W, X, 0, shift=jnp.ones(5))


def test_the_shift_of_one_model_is_compiled_once():
    traces = []

    def counted(w, x):
        traces.append(1)
        return net(w, x)

    metrics.input_invariance(jv.gradient, counted, W, X, 0)
    first = len(traces)
    metrics.input_invariance(jv.gradient, counted, W, X + 1, 1, shift=0.5)
    assert len(traces) == first
