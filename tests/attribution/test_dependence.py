"""Partial dependence and shuffled columns, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4)).astype(np.float32)
W = RNG.normal(size=(4, 3)).astype(np.float32)


def net(w, x):
    return jnp.tanh(x @ w) + x[:, :1] * x[:, 1:2]


def scores(x, target=1):
    return (np.tanh(x @ W) + x[:, :1] * x[:, 1:2])[:, target]


def test_partial_dependence_is_a_loop_over_the_grid():
    out = jv.partial_dependence(net, jnp.asarray(W), X, 1, feature=2, num_points=7)
    low, high = np.percentile(X[:, 2], [5, 95])
    np.testing.assert_allclose(out.grid, np.linspace(low, high, 7), rtol=1e-5)
    for p, value in enumerate(np.linspace(low, high, 7)):
        moved = X.copy()
        moved[:, 2] = value
        np.testing.assert_allclose(out.curves[:, p], scores(moved), atol=1e-5)
    np.testing.assert_allclose(out.mean, out.curves.mean(0), atol=1e-6)
    # Whole numbers, several axes, and the top class chosen at x.
    x = np.array([[[0, 1], [2, 1]], [[1, 1], [5, 0]]], np.int32)
    each = lambda _, x: jnp.stack([x[:, 1, 0], 3 - x[:, 1, 0]], 1).astype(jnp.float32)
    found = jv.partial_dependence(each, None, x, feature=(1, 0))
    assert found.grid.tolist() == [2, 5]
    assert found.curves.tolist() == [[2.0, 5.0], [2.0, 5.0]]
    for feature, told in ((4, r"\(4,\)"), ((0, 0), r"\(0, 0\)")):
        with pytest.raises(ValueError, match=rf"partial_dependence: feature must .* got {told}"):
            jv.partial_dependence(net, jnp.asarray(W), X, 1, feature=feature)


def test_permutation_importance_is_that_of_a_loop_within_its_error():
    params, key = jnp.asarray(W), jax.random.key(1)
    call = lambda **more: jv.permutation_importance(net, params, X, 1, key=key, **more)
    out = call(num_samples=60)
    np.testing.assert_allclose(out.base, scores(X).mean(), atol=1e-5)
    for g in range(4):
        lost = []
        for _ in range(400):
            moved = X.copy()
            moved[:, g] = RNG.permutation(X[:, g])
            lost.append(scores(X).mean() - scores(moved).mean())
        error = np.hypot(out.standard_errors[g], np.std(lost) / 20)
        assert abs(out.values[g] - np.mean(lost)) < 4 * error + 1e-6
    # Features shuffled together keep what they do together: f = x0 x1 has nothing of either alone.
    both = lambda _, x: x[:, :1] * x[:, 1:2] - x[:, 2:3]
    found = jv.permutation_importance(
        both, None, np.abs(X), 0, key=key, segments=np.array([0, 0, 1, -1]), num_samples=60
    )
    np.testing.assert_allclose(found.values, 0, atol=1e-5)  # the set's mean does not change
    with pytest.raises(ValueError, match="permutation_importance: x must be a set"):
        jv.permutation_importance(net, params, X[:1], 1, key=key)
