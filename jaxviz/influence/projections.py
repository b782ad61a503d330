"""Random projections of long vectors, drawn from a key piece by piece and never held whole."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.engine.copies import wide

Projection = Literal["rademacher", "sjlt"] | None

# Numbers of a projection matrix that are alive at once.
_PIECE = 2**22


def projected(
    vectors: Sequence[jax.Array],
    places: Sequence[int],
    projection: Projection,
    dim: int | None,
    key: jax.Array | None,
) -> list[jax.Array]:
    """Vectors, one a leaf, as one vector `[dim]`; as they are, flat, where `projection` is None.

    Inner products are kept on average: the matrix P of `dim` columns has E[P P^T] = 1. What a leaf
    is multiplied by depends on the key and on its place alone, so vectors of other leaves, other
    examples or other chunks are projected alike.

    Args:
      vectors: Of any shapes, floating.
      places: The number of each, among all leaves.
      projection: "rademacher": signs over sqrt(dim). "sjlt": each number is added to one random
        place, with a random sign.
      dim: Length of what comes out.
      key: PRNG key.
    """
    flat = [wide(a).reshape(-1) for a in vectors]
    if projection is None:
        return flat
    assert dim is not None
    assert key is not None
    one = _rademacher if projection == "rademacher" else _sjlt
    keys = [jax.random.fold_in(key, place) for place in places]
    each = [one(a, k, dim) for a, k in zip(flat, keys, strict=True)]
    return [sum(each[1:], each[0])]


def _rademacher(vector: jax.Array, key: jax.Array, dim: int) -> jax.Array:
    rows = 32 * max(1, min(_PIECE // dim, vector.size) // 32)
    count = -(-vector.size // rows)
    vector = jnp.pad(vector, (0, count * rows - vector.size)).reshape(count, rows)
    bit = jnp.arange(32, dtype=jnp.uint32)[None, :, None]

    def add(i, total):
        words = jax.random.bits(jax.random.fold_in(key, i), (rows // 32, 1, dim), jnp.uint32)
        signs = ((words >> bit) & jnp.uint32(1)).reshape(rows, dim).astype(vector.dtype) * 2 - 1
        return total + vector[i] @ signs

    zeros = jnp.zeros(dim, vector.dtype)
    return jax.lax.fori_loop(0, count, add, zeros) / jnp.sqrt(jnp.asarray(dim, vector.dtype))


def _sjlt(vector: jax.Array, key: jax.Array, dim: int) -> jax.Array:
    place_key, sign_key = jax.random.split(key)
    places = jax.random.randint(place_key, vector.shape, 0, dim, jnp.int32)
    signs = random_signs(sign_key, vector.shape, vector.dtype)
    return jnp.zeros(dim, vector.dtype).at[places].add(vector * signs)


def random_signs(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """1 or -1: `jax.random.rademacher`, whose draws are others where 64 bits are enabled."""
    return 2 * jax.random.bernoulli(key, jnp.float32(0.5), shape).astype(dtype) - 1
