"""Sizes and ranks that prefer no side, for use under a gradient."""

import jax
import jax.numpy as jnp

# How far apart numbers of [0, 1] must be to have ranks of their own, rounding being less.
_TIE = 1e-5


def size(x: jax.Array, within: float = 0.0) -> jax.Array:
    """|x|, whose slope at 0 is 0. That of `jnp.abs` is 1 there: what is flat is pushed to one side.

    Args:
      x: Any numbers.
      within: How far from 0 the slope is in proportion to x, and the value less than |x|, so that
        an optimizer that scales slopes does not make whole steps of a rounding error's sign.

    Example:
      >>> jax.grad(lambda x: size(x).sum())(jnp.array([-2.0, 0.0, 3.0])).tolist()
      [-1.0, 0.0, 1.0]
    """
    fixed = jax.lax.stop_gradient(x)
    return (jnp.clip(fixed / within, -1, 1) if within else jnp.sign(fixed)) * x


def share_above(x: jax.Array, share: float) -> jax.Array:
    """For each of `x` `[M]` 1 where it belongs to the largest `share`, 0 elsewhere; ties share.

    Numbers within 1e-5 count as tied. Those tied across the border have between them what the
    places up to it leave: a stable sort would give it all to those that stand last.

    Example:
      >>> share_above(jnp.array([0.5, 0.9, 0.5, 0.1]), 0.5).tolist()
      [0.5, 1.0, 0.5, 0.0]
    """
    ordered = jnp.sort(x)
    border = round((1 - share) * x.size)
    low = jnp.searchsorted(ordered, x - jnp.asarray(_TIE, x.dtype), side="left")
    high = jnp.searchsorted(ordered, x + jnp.asarray(_TIE, x.dtype), side="right")
    above = jnp.clip(high - jnp.maximum(low, border), 0)
    return above.astype(x.dtype) / jnp.maximum(high - low, 1).astype(x.dtype)
