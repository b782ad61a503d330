"""The pseudo-inverse is NumPy's, whether elimination finds it or eigenvectors do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.parts.inverse import pseudo_inverse

RNG = np.random.default_rng(0)


def gram(rows, size, scale=1.0):
    z = RNG.normal(size=(rows, size)) * scale
    return z.T @ z / rows


KINDS = {
    "even": gram(200, 12),
    "scales apart": gram(200, 12, np.logspace(0, 1.2, 12)),
    "too few rows": gram(7, 12),
    "one alike": np.pad(gram(200, 11), (0, 1), "symmetric"),
    "one of zeros": np.pad(gram(200, 11), (0, 1)),
    "zeros": np.zeros((12, 12)),
}


def test_alone_and_beside_others_it_is_numpys():
    every = jnp.asarray(np.stack(list(KINDS.values())), jnp.float32)
    together = jax.jit(jax.vmap(pseudo_inverse))(every)
    for number, (kind, matrix) in enumerate(KINDS.items()):
        expected = np.linalg.pinv(matrix, rcond=1e-5, hermitian=True)
        rank = np.linalg.matrix_rank(matrix, tol=1e-5 * max(matrix.max(), 1e-9))
        for found, told in (
            jax.tree.map(lambda a, n=number: a[n], together),
            pseudo_inverse(every[number]),
        ):
            bound = 1e-4 * max(abs(expected).max(), 1)
            np.testing.assert_allclose(found, expected, atol=bound, err_msg=kind)
            assert told == rank, kind


def test_large_ones_and_double_precision():
    matrix = gram(600, 150)
    for dtype, bound in ((np.float32, 1e-3), (np.float64, 1e-10)):
        with jax.enable_x64(dtype == np.float64):
            found, rank = pseudo_inverse(jnp.asarray(matrix, dtype))
            small, _ = pseudo_inverse(jnp.asarray(matrix[:60, :60], dtype))
        np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=bound, atol=bound)
        np.testing.assert_allclose(small, np.linalg.inv(matrix[:60, :60]), rtol=bound, atol=bound)
        assert rank == 150 and found.dtype == dtype  # noqa: PT018


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(hole):
    matrix = gram(40, 4)
    matrix[1, 2] = matrix[2, 1] = hole
    assert not np.isfinite(np.asarray(pseudo_inverse(jnp.asarray(matrix, jnp.float32))[0])).all()
