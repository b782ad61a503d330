"""Pairs of random masks of a Sobol sequence, and the total indices read off their scores."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.engine.copies import wide


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


def masks(key: jax.Array, count: int, num_designs: int) -> Callable:
    """From the number of a variant and of a design to the mask, `[count]`, uniform on [0, 1).

    Variants: 0 is a, 1 is b, 2 + i is a with b's cell i.
    """
    points = jnp.asarray(_sequence(2 * count, num_designs), jnp.float32)
    # A random shift modulo 1 keeps the sequence as even as it is and makes it unbiased.
    points = (points + jax.random.uniform(key, (2 * count,), jnp.float32)[None, :]) % 1
    a, b = points[:, :count], points[:, count:]

    def mask(variant, design):
        swapped = (jnp.arange(count, dtype=jnp.int32) == variant - 2) | (variant == 1)
        return jnp.where(swapped, b[design], a[design])

    return mask


def total_indices(scores: jax.Array, live: Any) -> tuple[jax.Array, jax.Array]:
    """Total indices by Jansen's estimator, `[N, count]`, 0 where nothing varies; standard errors.

    Args:
      scores: `[count + 2, num_designs, N]`, of each variant of each design.
      live: `[num_designs]`, which of them are there.
    """
    scores = wide(scores)
    drawn = jnp.asarray(live).astype(scores.dtype)[:, None]
    count = drawn.sum()
    mean = (drawn * scores[:2].mean(0)).sum(0) / count
    own = jnp.square(scores[:2] - mean[None, None]).mean(0)  # each design's part in the variance
    variance = (drawn * own).sum(0) / count
    lost = jnp.square(scores[2:] - scores[:1]) / 2
    still = variance == 0  # no variance to share; that of NaN scores is NaN
    shared = jnp.where(still, 1, variance)[None]
    total = (drawn[None] * lost).sum(1) / count / shared
    # To first order, as if designs were drawn one by one: a sequence so even is closer.
    off = drawn[None] * (lost - total[:, None] * own[None]) / shared[:, None]
    errors = jnp.sqrt(jnp.square(off).sum(1) / (count * jnp.maximum(count - 1, 1)))
    return total.T, errors.T


@functools.cache
def _sequence(dimensions: int, count: int) -> np.ndarray:
    """The first points of a Sobol sequence, `[count, dimensions]` in [0, 1)."""
    from scipy.stats import qmc

    return qmc.Sobol(dimensions, scramble=False).random_base2(int(math.log2(count)))
