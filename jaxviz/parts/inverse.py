"""The inverse of a symmetric matrix that is never negative, without LAPACK where it can be.

LAPACK's eigenvectors leave threads of OpenBLAS behind that wait for more in a loop, a tenth of a
second of each core but one, while the next call's passes want them.
"""

import jax
import jax.numpy as jnp

_LARGEST = 128  # the side from which eigenvectors are found sooner
_ALONE = 1e-3  # so much of each row is left by those before it, or eigenvectors decide


def pseudo_inverse(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pseudo-inverse of a matrix, and how many directions it tells apart.

    By Gauss and Jordan's elimination, which needs no exchange of rows here; where it finds a row
    that is nearly a sum of others, by eigenvectors, of which those are left out whose eigenvalue is
    below 10 n roundings of the largest.

    Args:
      matrix: `[n, n]`, symmetric, positive semi-definite, in float32 or float64. Under `vmap`
        eigenvectors are found only if any of the matrices wants them.

    Returns:
      `[n, n]` and a whole number of at most n.

    Example:
      >>> found, rank = pseudo_inverse(jnp.array([[2.0, 0.0], [0.0, 4.0]]))
      >>> found.tolist(), int(rank)
      ([[0.5, 0.0], [0.0, 0.25]], 2)
      >>> found, rank = pseudo_inverse(jnp.ones((2, 2)))
      >>> found.round(3).tolist(), int(rank)
      ([[0.25, 0.25], [0.25, 0.25]], 1)
    """
    if len(matrix) > _LARGEST:
        return _by_eigenvectors(matrix)
    inverse, apart = _eliminated(matrix)
    # A loop of one turn at most: under `vmap` both sides of a conditional would run. What does not
    # change in it would be computed ahead of it, needed or not: so it is made to.
    state = inverse, jnp.full((), len(matrix), jnp.int32), apart
    here = lambda state: jnp.where(state[2], 0, matrix)
    turn = lambda state: (*_by_eigenvectors(here(state)), jnp.ones_like(state[2]))
    return jax.lax.while_loop(lambda state: ~state[2], turn, state)[:2]


def _eliminated(matrix):
    """The inverse, and whether of each row enough was left when its turn came."""
    numbers = jnp.arange(len(matrix), dtype=jnp.int32)
    least = _ALONE * jnp.diagonal(matrix)

    def one(k, held):
        a, apart = held
        here = numbers == k
        row, column = (jax.lax.dynamic_index_in_dim(a, k, axis, keepdims=False) for axis in (0, 1))
        pivot = jax.lax.dynamic_index_in_dim(row, k, keepdims=False)
        left = pivot > jax.lax.dynamic_index_in_dim(least, k, keepdims=False)
        row = jnp.where(here, 1, row) / jnp.where(left, pivot, 1)
        rest = jnp.where(here[None], 0, a) - column[:, None] * row[None]
        return jnp.where(here[:, None], row[None], rest), apart & left

    return jax.lax.fori_loop(0, len(matrix), one, (matrix, jnp.ones((), bool)))


def exact_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b`, in all digits of their type on any device."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _by_eigenvectors(matrix):
    sizes, axes = jnp.linalg.eigh(matrix)
    told = sizes > 10 * len(matrix) * jnp.finfo(matrix.dtype).eps * sizes[-1]
    inverse = jnp.where(told, 1 / jnp.where(told, sizes, 1), 0)
    return exact_dot(axes * inverse[None], axes.T), told.sum(dtype=jnp.int32)
