"""Values of a layer at places: their size, their direction, how near they are to a target."""

import jax
import jax.numpy as jnp


def in_places(a: jax.Array) -> jax.Array:
    """`[M, ..., C] -> [M, P, C]`."""
    return a.reshape(a.shape[0], -1, a.shape[-1])


def at_place(a: jax.Array, position: tuple[int, ...] | None) -> jax.Array:
    """`[M, *space, C] -> [M, C]` at a place, by default in the middle."""
    space = a.shape[1:-1]
    where = tuple(n // 2 for n in space) if position is None else position
    if len(where) != len(space) or not all(0 <= i < n for i, n in zip(where, space, strict=True)):
        raise ValueError(
            f"objective: position must be an index for each axis of space {space}; got {where}."
        )
    return a[(slice(None), *where)]


def largest(a: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The size of the largest number along axes, 1 where all are 0: what squares are taken in."""
    found = jax.lax.stop_gradient(jnp.abs(a).max(axes, keepdims=True))
    return jnp.where(found == 0, 1, found)


def unit_length(a: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Over its length along axes, whatever its scale; zeros stay zeros, and have no slope."""
    a = a / largest(a, axes)
    square = (a * a).sum(axes, keepdims=True)
    return a / jnp.sqrt(jnp.where(square == 0, 1, square))


def _cosine(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return (unit_length(a, axes) * unit_length(b, axes)).sum(axes)


def toward(a: jax.Array, target: jax.Array, power: jax.Array) -> jax.Array:
    """`<a, t> cos^power`, for `[M, P, C]`, averaged over places."""
    target = jnp.broadcast_to(target, a.shape)
    closeness = jnp.maximum(_cosine(a, target, (2,)), 0.1)
    power = jnp.broadcast_to(power[:, None].astype(a.dtype), closeness.shape)
    return ((a * target).sum(2) * closeness**power).mean(1)


def weights_of_others(a: jax.Array, decay: jax.Array) -> jax.Array:
    """Weights `[M, M]` of the other images, that sum to at most 1 for each."""
    order = jnp.arange(a.shape[0], dtype=a.dtype)
    apart = jnp.abs(order[:, None] - order[None, :])
    weights = decay[:, None].astype(a.dtype) ** -apart
    return jnp.where(apart > 0, weights, 0) / max(a.shape[0] - 1, 1)
