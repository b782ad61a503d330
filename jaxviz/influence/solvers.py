"""Ways to divide by the curvature: all of it at once, step by step, or in a few directions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import maybe, real, whole
from jaxviz.calls.public import public
from jaxviz.influence.curvature import Operator

# Parameters from which on a matrix of all pairs is refused: 1.6 GB.
_MOST = 20_000


@dataclasses.dataclass(frozen=True)
class Solver:
    """`(operator, vectors [T, P], key) -> [T, P]`; equal for equal options."""

    function: Callable
    options: tuple
    needs_key: bool = False

    def __call__(self, operator: Operator, vectors: jax.Array, key: Any) -> jax.Array:
        return self.function(operator, vectors, key, *self.options)


@public()
def explicit() -> Solver:
    """The whole matrix, solved: exact, for at most 20,000 parameters.

    Returns:
      A solver for `influence`. Costs P products with the curvature, and P^3.

    Example:
      >>> explicit() == explicit()
      True
    """
    return Solver(_explicit, ())


def _explicit(operator, vectors, key):
    if operator.size > _MOST:
        raise ValueError(
            f"influence: solver must be another one for {operator.size} parameters; explicit() "
            f"takes at most {_MOST}. Take conjugate_gradients(), arnoldi(), or `ek_fac`."
        )
    eye = jnp.eye(operator.size, dtype=vectors.dtype)
    matrix = jax.lax.map(operator.matvec, eye, batch_size=64)
    return jnp.linalg.solve((matrix + matrix.T) / 2, vectors.T).T


@public()
def conjugate_gradients(*, num_steps: int = 100, tolerance: float = 1e-6) -> Solver:
    """Conjugate gradients on each test gradient: for a positive definite curvature.

    A Hessian away from a minimum is not: damp it, or take the Gauss-Newton curvature.

    Args:
      num_steps: At most so many, one product with the curvature each.
      tolerance: Of the residual, by the length of the gradient, at which to stop.

    Returns:
      A solver for `influence`.

    Example:
      >>> conjugate_gradients(num_steps=10) == conjugate_gradients(num_steps=10)
      True

    Reference:
      Martens 2010, section 4; Koh and Liang 2017, arXiv:1703.04730, section 3. dattri: 10 steps.
    """
    return Solver(_conjugate_gradients, (num_steps, tolerance))


def _conjugate_gradients(operator, vectors, key, num_steps, tolerance):
    def solved(vector):
        found, _ = jax.scipy.sparse.linalg.cg(
            operator.matvec, vector, tol=tolerance, maxiter=num_steps
        )
        return found

    return jax.vmap(solved)(vectors)


@public(scale=real(0, above=True), batch_size=maybe(whole(1)))
def lissa(
    *,
    num_steps: int = 1000,
    scale: float = 10.0,
    batch_size: int | None = None,
    num_samples: int = 1,
) -> Solver:
    """A Neumann series, v <- g + v - H v / scale, over random batches: v / scale is its limit.

    It converges where `scale` is above the largest eigenvalue of each batch's damped curvature, and
    none is below 0; where it does not, what comes out is huge or not finite.

    Args:
      num_steps: Terms of the series: several times scale over the smallest eigenvalue (the
        damping).
      scale: What the curvature is divided by.
      batch_size: Training examples drawn for each step; None takes all of them, and no key.
      num_samples: Runs with batches of their own, averaged.

    Returns:
      A solver for `influence`.

    Example:
      >>> lissa(scale=5.0).options
      (1000, 5.0, None, 1)

    Reference:
      Agarwal et al. 2017, arXiv:1602.03943, algorithm 1, as in Koh and Liang 2017,
      arXiv:1703.04730, section 3.
    """
    return Solver(_lissa, (num_steps, scale, batch_size, num_samples), batch_size is not None)


def _lissa(operator, vectors, key, num_steps, scale, batch_size, num_samples):
    def run(key):
        def step(found, number):
            matvec = operator.matvec
            if batch_size is not None:
                matvec = operator.sampled(jax.random.fold_in(key, number), batch_size)
            return vectors + found - jax.vmap(matvec)(found) / scale, None

        return jax.lax.scan(step, vectors, jnp.arange(num_steps))[0] / scale

    if batch_size is None:
        return run(key)
    return jax.lax.map(run, jax.random.split(key, num_samples)).mean(0)


@public(rank=whole(1))
def arnoldi(*, rank: int = 50, num_steps: int = 100) -> Solver:
    """In the directions of largest curvature alone, found by Arnoldi's iteration.

    What of a gradient lies outside of them counts nothing, so it is an inverse of low rank. The
    curvature being symmetric, the iteration is Lanczos', each vector made orthogonal to all.

    Args:
      rank: Directions kept, those of the largest absolute eigenvalues.
      num_steps: Products with the curvature, from a random vector; at most P count.

    Returns:
      A solver for `influence`, which needs a key. Holds `num_steps` vectors of P numbers.

    Example:
      >>> arnoldi(rank=10).needs_key
      True

    Reference:
      Schioppa et al. 2022, arXiv:2112.03052, section 3; its own defaults are 200 steps, and ranks
      of 10 to 100. dattri: 100 and 100.
    """
    return Solver(_arnoldi, (rank, num_steps), True)


def _arnoldi(operator, vectors, key, rank, num_steps):
    size, dtype = operator.size, vectors.dtype
    steps = min(num_steps, size)
    rank = min(rank, steps)
    first = jax.random.normal(key, (size,), dtype)
    basis = jnp.zeros((steps, size), dtype).at[0].set(first / jnp.linalg.norm(first))

    def step(carry, k):
        basis, products = carry
        product = operator.matvec(basis[k])
        rest = product
        for _ in range(2):  # once is not enough in float32
            rest = rest - basis.T @ (basis @ rest)
        length = jnp.linalg.norm(rest)
        # An invariant subspace: what is left is rounding, and nothing follows.
        known = length > 1e-5 * jnp.linalg.norm(product)
        rest = jnp.where(known, rest / jnp.where(known, length, 1), 0)
        basis = basis.at[k + 1].set(rest, mode="drop")
        return (basis, products.at[k].set(product)), None

    start = basis, jnp.zeros_like(basis)
    (basis, products), _ = jax.lax.scan(step, start, jnp.arange(steps))
    small = basis @ products.T
    values, directions = jnp.linalg.eigh((small + small.T) / 2)
    most = jnp.argsort(-jnp.abs(values))[:rank]
    values, directions = values[most], directions[:, most].T @ basis
    there = jnp.abs(values) > 1e-6 * jnp.abs(values).max()
    inverse = jnp.where(there, 1 / jnp.where(there, values, 1), 0)
    return ((vectors @ directions.T) * inverse[None]) @ directions
