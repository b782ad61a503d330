"""Sizes and ranks that prefer no side: against their definitions, and mirrored."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.graph.symmetric import share_above, size


def test_size_is_the_absolute_value_with_no_slope_at_zero():
    x = jnp.array([-3.0, -0.005, 0.0, 0.005, 2.0, -jnp.inf])
    np.testing.assert_array_equal(size(x), np.abs(x))
    slope = jax.grad(lambda x, **options: size(x, **options).sum())
    np.testing.assert_array_equal(slope(x), [-1, -1, 0, 1, 1, -1])
    np.testing.assert_allclose(slope(x, within=0.01), [-1, -0.5, 0, 0.5, 1, -1], rtol=1e-6)


def test_without_ties_the_largest_share_is_a_sort():
    x = np.random.default_rng(0).permutation(20) / 20
    wanted = np.zeros(20)
    wanted[np.argsort(x)[14:]] = 1
    np.testing.assert_array_equal(share_above(jnp.asarray(x, jnp.float32), 0.3), wanted)


def test_ties_share_what_is_left():
    x = jnp.array([0.5, 0.2, 0.5, 0.9, 0.5 + 1e-7, 0.1])  # three tied for the second place
    expected = [1 / 3, 0, 1 / 3, 1, 1 / 3, 0]
    np.testing.assert_allclose(share_above(x, 2 / 6), expected, rtol=1e-6)
    np.testing.assert_allclose(share_above(x[::-1], 2 / 6), expected[::-1], rtol=1e-6)
    np.testing.assert_allclose(share_above(jnp.zeros(8), 0.25), np.full(8, 0.25), rtol=1e-6)
