"""Sparseness, entropy and count: formulas, scale, zeros, NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from jaxviz import metrics

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(4, 5, 6)).astype(np.float32)


def gini(a):
    """By its definition: the mean absolute difference of each two, over twice the mean."""
    a = np.abs(a.ravel()).astype(np.float64)
    return np.abs(a[:, None] - a[None, :]).mean() / (2 * a.mean())


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_formulas_at_any_scale(scale):
    a = MAPS * np.float32(scale)
    np.testing.assert_allclose(metrics.sparseness(a), [gini(m) for m in MAPS], rtol=1e-5)
    theirs = [entropy(np.abs(m.ravel())) for m in MAPS]
    np.testing.assert_allclose(metrics.complexity(a), theirs, rtol=1e-5)
    large = [(np.abs(m) > 0.5 * np.abs(m).max()).sum() for m in MAPS]
    np.testing.assert_array_equal(metrics.effective_complexity(a, threshold=0.5), large)


def test_maps_of_64_bits_keep_them():  # promotion is strict in all tests
    with jax.enable_x64(True):
        a = jnp.asarray(MAPS, jnp.float64)
        np.testing.assert_allclose(metrics.sparseness(a), [gini(m) for m in a], rtol=1e-12)
        found = metrics.relevance_mass(jnp.abs(a), a > 0)
        whole = np.abs(MAPS.astype(np.float64))
        expected = (whole * (MAPS > 0)).sum((1, 2)) / whole.sum((1, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_constants_zeros_and_one_place():
    one = np.zeros((1, 10), np.float32)
    one[0, 3] = -5
    for flat in (np.zeros_like(one), np.full_like(one, -0.1)):
        assert metrics.sparseness(flat).tolist() == [0.0]
        np.testing.assert_allclose(metrics.complexity(flat), np.log(10), rtol=1e-6)
    assert metrics.effective_complexity(np.zeros_like(one)).tolist() == [0.0]
    np.testing.assert_allclose(metrics.sparseness(one), 0.9, rtol=1e-6)
    assert metrics.complexity(one).tolist() == [0.0]
    assert metrics.effective_complexity(one).tolist() == [1.0]


@pytest.mark.parametrize("name", ["sparseness", "complexity", "effective_complexity"])
def test_nan_stays_nan_for_its_example_alone(name):
    spoilt = MAPS.copy()
    spoilt[2, 0, 0] = np.nan
    found = getattr(metrics, name)(spoilt)
    assert np.isnan(found).tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match=f"^{name}: attribution must be"):
        getattr(metrics, name)(MAPS[0, 0])
