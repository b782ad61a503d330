"""Correlation over samples, example by example, where some samples may not count."""

import jax
import jax.numpy as jnp

from jaxviz.metrics.maps import nan_where_not_finite, ranks

_ROUNDING = 16  # units in the last place, below which a spread is none


def linear(a: jax.Array, b: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """Pearson's correlation of rows `[N, S]`, `[N]`; NaN where one is constant up to rounding.

    Args:
      a, b: `[N, S]`, floating.
      counts: `[N or 1, S]`, which samples count; None is all.
    """
    w = jnp.ones((1, a.shape[1]), a.dtype) if counts is None else counts.astype(a.dtype)
    total = w.sum(1, keepdims=True)

    def centred(v):
        v = v.astype(a.dtype)
        largest = jnp.where(w > 0, jnp.abs(v), 0).max(1, keepdims=True)
        v = v / jnp.where(largest == 0, 1, largest)
        v = jnp.where(w > 0, v - (w * v).sum(1, keepdims=True) / total, 0)
        spread = jnp.sqrt((v * v).sum(1) / total[:, 0])
        return v, spread

    (a, spread_a), (b, spread_b) = centred(a), centred(b)
    found = (a * b).sum(1) / total[:, 0] / (spread_a * spread_b)
    least = _ROUNDING * jnp.finfo(a.dtype).eps
    defined = (spread_a > least) & (spread_b > least)  # of NaN, too, it is not
    return jnp.where(defined, jnp.clip(found, -1, 1), jnp.nan)


def by_rank(a: jax.Array, b: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """Spearman's correlation, `[N]`: that of ranks, equal numbers sharing the mean of theirs."""
    if counts is not None:  # the others come last, whatever they are
        a, b = (jnp.where(counts, v, jnp.inf) for v in (a, b))
    return nan_where_not_finite(linear(ranks(a), ranks(b), counts), a, b)
