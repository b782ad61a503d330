"""The largest eigenvalue and its vector: against all of them, in NumPy and in 64 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.parts import leading as part
from jaxviz.parts.leading import leading

SIDE = 50
RANDOM = np.random.RandomState(1)
TURN = np.linalg.qr(RANDOM.standard_normal((SIDE, SIDE)))[0]


def symmetric(values):
    return (TURN * values) @ TURN.T


SPECTRA = {
    "decays": 2.0 ** -np.arange(SIDE),
    "signs": np.linspace(-3, 1, SIDE),
    "near": np.array([1, 0.999, *np.linspace(0.9, 0, SIDE - 2)]),
    "one": np.array([5.0, *np.zeros(SIDE - 1)]),
    "below": -1 - np.arange(SIDE),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vectors_are_those_of_numpy(dtype):
    with jax.enable_x64(dtype == "float64"):
        matrices = np.stack([symmetric(values) for values in SPECTRA.values()])
        value, vector = jax.jit(leading)(jnp.asarray(matrices, dtype))
        assert (value.dtype, vector.dtype) == (dtype, dtype)
        value, vector = np.asarray(value, np.float64), np.asarray(vector, np.float64)
        rounding = np.finfo(dtype).eps * np.linalg.norm(matrices, axis=(1, 2))
        for i, values in enumerate(SPECTRA.values()):
            best, second = np.sort(values)[:-3:-1]
            assert abs(value[i] - best) <= 20 * rounding[i]
            wanted = TURN[:, np.argmax(values)]
            apart = np.linalg.norm(wanted * np.sign(wanted @ vector[i]) - vector[i])
            assert apart <= 40 * rounding[i] / (best - second)


def test_nothing_and_nan_say_so():
    matrices = np.zeros((3, SIDE, SIDE), np.float32)
    matrices[1] = np.nan
    matrices[2] = symmetric(SPECTRA["decays"])
    value, vector = leading(jnp.asarray(matrices))
    assert value[0] == 0
    assert np.isnan(value[1])
    assert np.isnan(vector[1]).all()
    np.testing.assert_allclose(value[2], 1, rtol=1e-6)
    assert np.isfinite(vector[0]).all()


def test_what_is_not_reached_is_found_among_all(monkeypatch):
    monkeypatch.setattr(part, "_TURNS", 1)
    monkeypatch.setattr(part, "_BASIS", 3)
    matrix = jnp.asarray(symmetric(SPECTRA["near"])[None], jnp.float32)
    value, vector = leading(matrix)
    expected = jnp.linalg.eigh(matrix)
    assert value[0] == expected[0][0, -1]
    assert (vector[0] == expected[1][0, :, -1]).all()


def test_it_moves_as_finite_differences_do():
    with jax.enable_x64(True):
        matrix = jnp.asarray(symmetric(SPECTRA["signs"])[None])
        change = RANDOM.standard_normal((1, SIDE, SIDE))
        change = jnp.asarray(change + np.swapaxes(change, 1, 2))
        weights = jnp.asarray(RANDOM.standard_normal(SIDE))

        @jax.jit
        def number(matrix):  # whatever the vector's sign
            value, vector = leading(matrix)
            return value[0] + (vector[0] @ weights) ** 2

        rate = (number(matrix + 1e-6 * change) - number(matrix - 1e-6 * change)) / 2e-6
        slope = jax.jit(jax.grad(number))(matrix)
        np.testing.assert_allclose((slope * change).sum(), rate, rtol=1e-6)
