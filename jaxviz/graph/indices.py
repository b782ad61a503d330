"""Numbers picked by index: wide enough to count with, and NaN where there is no such number."""

from typing import Any

import jax
import jax.numpy as jnp


def widened(index: Any) -> jax.Array:
    """Integers in 32 bits at least: `arange(1000)` in uint8, as data sets store labels, is not."""
    if not isinstance(index, jax.Array):
        index = jnp.asarray(index)
    narrow = jnp.issubdtype(index.dtype, jnp.integer) and index.dtype.itemsize < 4
    return index.astype(jnp.int32) if narrow else index


def at_index(rows: jax.Array, index: Any) -> jax.Array:
    """One entry of each row `[N, K]`, `[N]`.

    Args:
      rows: `[N, K]`.
      index: Integers `[N]`, `[1]` or one for all. What is concrete is checked by whoever takes it;
        one outside of 0 to K - 1 under the caller's own `jit` gives NaN, and a gradient of NaN.
    """
    index = jnp.broadcast_to(widened(index), rows.shape[:1])[:, None]
    every = jnp.arange(rows.shape[1], dtype=index.dtype)[None, :]
    # A masked sum, not a gather: its pullback is elementwise; `where` keeps infinities apart.
    outside = (index < 0) | (index >= rows.shape[1])
    chosen = jnp.where((index == every) | outside, rows, jnp.zeros_like(rows))
    return (chosen * unless(outside, rows.dtype)).sum(axis=1)


def is_channel(a: jax.Array, channel: Any, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Where `a` `[N, ...]` is the given channel, one for all or one an example, as booleans that
    broadcast to it; and `unless` that channel is outside, likewise."""
    index = jnp.broadcast_to(widened(channel), a.shape[:1]).reshape(-1, *(1,) * (a.ndim - 1))
    along = [1] * a.ndim
    along[axis] = a.shape[axis]
    every = jnp.arange(a.shape[axis], dtype=index.dtype).reshape(along)
    return index == every, unless((index < 0) | (index >= a.shape[axis]), a.dtype)


def unless(outside: jax.Array, dtype: Any) -> jax.Array:
    """A factor of 1, and NaN where an index is outside; whole numbers have no NaN and stay."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.ones(outside.shape, dtype)
    full = lambda value: jnp.full(outside.shape, value, dtype)
    return jax.lax.select(outside, full(jnp.nan), full(1))
