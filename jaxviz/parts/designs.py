"""Pairs of random masks of a Sobol sequence, and the total indices read off their scores."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.engine.copies import at_least_float32


def check_designs(name: str, num_designs: int) -> None:
    """Refuses what is no power of two."""
    if num_designs < 2 or num_designs & (num_designs - 1):
        raise ValueError(
            f"{name}: num_designs must be a power of two, >= 2, as the Sobol sequence is balanced "
            f"only then; got {num_designs}. Take {2 ** max(1, num_designs.bit_length())}."
        )


def num_masks(count: int, num_designs: int) -> int:
    """How many masks of `count` numbers there are: all a, all b, and each a with one of b's."""
    return num_designs * (count + 2)


def masks(key: jax.Array, count: int, num_designs: int) -> Callable[[jax.Array], jax.Array]:
    """From the number of a mask to the mask, `[count]`, uniform on [0, 1)."""
    points = jnp.asarray(_sequence(2 * count, num_designs), jnp.float32)
    # A random shift modulo 1 keeps the sequence as even as it is and makes it unbiased.
    points = (points + jax.random.uniform(key, (2 * count,), jnp.float32)[None, :]) % 1
    a, b = points[:, :count], points[:, count:]

    def mask(k):
        variant, design = k // num_designs, k % num_designs  # 0: a, 1: b, 2 + i: a with b's i
        swapped = (jnp.arange(count, dtype=jnp.int32) == variant - 2) | (variant == 1)
        return jnp.where(swapped, b[design], a[design])

    return mask


def total_indices(scores: jax.Array, count: int, num_designs: int) -> jax.Array:
    """`[N, count]` of scores `[num_masks, N]`, by Jansen's estimator; 0 where nothing varies."""
    scores = scores.reshape(count + 2, num_designs, -1).astype(at_least_float32(scores))
    variance = scores[:2].reshape(2 * num_designs, -1).var(0)
    total = jnp.square(scores[2:] - scores[:1]).mean(1) / 2
    still = variance == 0  # no variance to share; that of NaN scores is NaN
    return total.T / jnp.where(still, 1, variance)[:, None]


@functools.cache
def _sequence(dimensions: int, count: int) -> np.ndarray:
    """The first points of a Sobol sequence, `[count, dimensions]` in [0, 1)."""
    from scipy.stats import qmc

    return qmc.Sobol(dimensions, scramble=False).random_base2(int(math.log2(count)))
