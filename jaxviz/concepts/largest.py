"""Which numbers are the largest so many, where how many is known at run time alone."""

import jax
import jax.numpy as jnp


def largest(values: jax.Array, count: jax.Array | int, *, exact: bool = False) -> jax.Array:
    """Whether each number is one of the `count` largest of its row, by bisection over its bits.

    Sorting a row takes more, and `jax.lax.top_k` wants the count at compile time: here models that
    keep few and many share a program.

    Args:
      values: `[..., K]`, real; no gradient is taken through the choice.
      count: How many, an integer without axes or one that broadcasts to `[..., 1]`.
      exact: Whether of equal numbers at the border only the first stay; else all of them do.

    Returns:
      Booleans `[..., K]`. Costs as many passes over the values as they have bits, 32 at least, or
      more by log2(K) if exact.

    Example:
      >>> largest(jnp.array([[3.0, -1.0, 3.0, 5.0]]), 2).tolist()
      [[True, False, True, True]]
      >>> largest(jnp.array([[3.0, -1.0, 3.0, 5.0]]), 2, exact=True).tolist()
      [[True, False, False, True]]
    """
    ranks = _ranks(jax.lax.stop_gradient(values))
    count = jnp.asarray(count, jnp.int32)
    bits = jnp.iinfo(ranks.dtype).bits
    border = _last(lambda trial: _many(ranks >= trial) >= count, bits, ranks)
    if not exact:
        return (ranks >= border) & (count > 0)
    above = ranks > border
    size = values.shape[-1]
    place = jnp.arange(size, dtype=jnp.uint32).reshape((1,) * (values.ndim - 1) + (size,))
    # From the end, so that the first of equal ones have the highest places.
    rest = jnp.where(ranks == border, size - place, jnp.uint32(0))
    room = count - _many(above)
    first = _last(lambda trial: _many(rest >= trial) >= room, size.bit_length(), rest)
    return (above | ((rest >= first) & (rest > 0) & (room > 0))) & (count > 0)


def _ranks(values: jax.Array) -> jax.Array:
    """Whole numbers without a sign, in the order of the values."""
    wide = values.dtype == jnp.float64
    values = values.astype(jnp.float64 if wide else jnp.float32)
    values = jnp.where(values == 0, jnp.zeros_like(values), values)  # -0 is 0
    bits = jax.lax.bitcast_convert_type(values, jnp.uint64 if wide else jnp.uint32)
    sign = jnp.asarray(1, bits.dtype) << jnp.asarray(63 if wide else 31, bits.dtype)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _many(chosen: jax.Array) -> jax.Array:
    return chosen.sum(-1, keepdims=True, dtype=jnp.int32)


def _last(holds, bits: int, like: jax.Array) -> jax.Array:
    """The largest whole number of so many bits, for each row, for which something holds."""

    def bit(n, found):
        trial = found | (jnp.asarray(1, like.dtype) << (bits - 1 - n).astype(like.dtype))
        return jnp.where(holds(trial), trial, found)

    return jax.lax.fori_loop(0, bits, bit, jnp.zeros((*like.shape[:-1], 1), like.dtype))
