"""The largest eigenvalue of symmetric matrices and its vector, without all the others."""

import jax
import jax.numpy as jnp
import numpy as np

_SMALL = 32  # the longest side of a matrix of which all eigenvectors are found
_BASIS = 16  # vectors of a Krylov basis
_TURNS = 6  # bases, each from the vector that the one before ended with
_NEAR = 16  # roundings of the matrix that may be left of it where its vector is split off


@jax.custom_jvp
def leading(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue of each matrix and a vector of length 1 that belongs to it.

    By Lanczos' method, until what is left is rounding; where it does not get there (the next value
    is as large as the largest but for a thousandth, say), by all eigenvectors.

    Args:
      matrix: `[N, n, n]`, symmetric, in float32 or float64.

    Returns:
      `[N]` and `[N, n]`; the vector's sign is left open. NaN where the matrix holds any.

    Example:
      >>> value, vector = leading(jnp.array([[[2.0, 0.0], [0.0, 1.0]]]))
      >>> value.tolist(), jnp.abs(vector).tolist()
      ([2.0], [[1.0, 0.0]])
    """
    if matrix.shape[-1] <= _SMALL:
        return _among_all(matrix)
    if jax.default_backend() != "cpu" or len(matrix) == 1:
        return _by_lanczos(matrix)
    # One after another: a matrix then stays in the caches for all its products.
    found = jax.lax.map(lambda one: _by_lanczos(one[None]), matrix)
    return found[0][:, 0], found[1][:, 0]


@leading.defjvp
def _moved(primals, tangents):
    (matrix,), (change,) = primals, tangents
    value, vector = leading(matrix)
    column = vector[..., None]
    turned = _product(change, vector)
    rate = (vector * turned).sum(-1)
    # The vector itself, along which it cannot move, is given a value of its own.
    size = jnp.maximum(jnp.abs(value), jnp.finfo(value.dtype).tiny)[:, None, None]
    still = value[:, None, None] * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)[None]
    system = still - matrix + size * column * column.mT
    across = turned - rate[:, None] * vector
    return (value, vector), (rate, jnp.linalg.solve(system, across[..., None])[..., 0])


def _among_all(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    value, vector = values[:, -1], vectors[:, :, -1]
    return value, jnp.where(jnp.isnan(value)[:, None], jnp.nan, vector)


def _product(matrix, vector):
    precise = jax.lax.Precision.HIGHEST
    return jnp.matmul(matrix, vector[..., None], precision=precise)[..., 0]


def _by_lanczos(matrix):
    side, dtype = matrix.shape[-1], matrix.dtype
    rounding = jnp.finfo(dtype).eps
    size = jnp.sqrt(jnp.square(matrix).sum((1, 2)))
    # By chance, so that no matrix of a user's has a pattern that it misses.
    drawn = np.random.RandomState(0).standard_normal(side)
    begin = jnp.zeros_like(matrix[:, 0]) + jnp.asarray(drawn / np.linalg.norm(drawn), dtype)[None]

    def step(carry, _):
        # Three terms alone: what rounding brings back of earlier vectors costs the largest value
        # nothing (Paige 1980), and what is left is looked at in the end.
        before, beside, vector = carry
        turned = _product(matrix, vector)
        along = (vector * turned).sum(-1)
        turned = turned - along[:, None] * vector - beside[:, None] * before
        length = jnp.sqrt(jnp.square(turned).sum(-1))
        # Of a basis that holds all that the matrix makes of it, the rest is zeros.
        ends = length <= _NEAR * rounding * size
        following = jnp.where(ends[:, None], 0, turned / jnp.where(ends, 1, length)[:, None])
        length = jnp.where(ends, 0, length)
        return (vector, length, following), (vector, along, length)

    def turn(carry):
        turns, _, vector, _ = carry
        nothing = jnp.zeros_like(vector)
        start = nothing, nothing[:, 0], vector
        _, (basis, along, beside) = jax.lax.scan(step, start, None, _BASIS)
        off = jax.vmap(lambda b: jnp.diag(b, 1))(beside.T[:, :-1])
        small = jax.vmap(jnp.diag)(along.T) + off + off.mT
        _, shares = _among_all(small)
        vector = _product(basis.transpose(1, 2, 0), shares)
        vector = vector / jnp.sqrt(jnp.square(vector).sum(-1, keepdims=True))
        turned = _product(matrix, vector)
        value = (vector * turned).sum(-1)
        left = jnp.sqrt(jnp.square(turned - value[:, None] * vector).sum(-1))
        return turns + 1, value, vector, ~(left <= _NEAR * rounding * size)

    nothing = jnp.zeros_like(matrix[:, 0, 0])  # all vary inside of shard_map as the matrices do
    carry = jnp.int32(0), nothing, begin, nothing == 0
    unfinished = lambda carry: (carry[0] < _TURNS) & carry[3].any()
    _, value, vector, far = jax.lax.while_loop(unfinished, turn, carry)
    return jax.lax.cond(far.any(), _among_all, lambda _: (value, vector), matrix)
