"""Few codes of many units: what is read and written by them alone, and its gradients."""

import jax
import jax.numpy as jnp

_ONE_BY_ONE = 16  # so few are taken away one by one, which is faster than a sort


def few_largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest numbers of each row and their places, as `jax.lax.top_k` gives them.

    Args:
      values: `[B, K]`, at least 0; no gradient is taken through the choice.
      count: How many, at most K.

    Returns:
      Numbers and places, `[B, count]` each; what is no number is infinite. Two passes over the
      values for each.

    Example:
      >>> found, places = few_largest(jnp.array([[3.0, 1.0, 3.0, 5.0]]), 2)
      >>> found.tolist(), places.tolist()
      ([[5.0, 3.0]], [[3, 0]])
    """
    values = jax.lax.stop_gradient(values)
    values = jnp.where(jnp.isnan(values), jnp.inf, values)  # is chosen, and so not hidden
    if count > _ONE_BY_ONE or jax.default_backend() != "cpu":
        return jax.lax.top_k(values, count)
    # Places as numbers of the values' kind: a processor finds their largest faster.
    places = -jnp.broadcast_to(jnp.arange(values.shape[1], dtype=values.dtype)[None], values.shape)
    found = []
    for _ in range(count):
        top = values.max(1, keepdims=True)
        first = jnp.where(values >= top, places, -jnp.inf).max(1, keepdims=True)
        values = jnp.where(places == first, -jnp.inf, values)
        found.append((top, first))
    tops, firsts = (jnp.concatenate(part, 1) for part in zip(*found, strict=True))
    return tops, -firsts.astype(jnp.int32)


@jax.custom_vjp
def read_at(a: jax.Array, encoder: jax.Array, places: jax.Array) -> jax.Array:
    """`a @ encoder` at some places of each row; without a gradient by `a`, which none asks for.

    Args:
      a: `[B, C]`.
      encoder: `[C, K]`.
      places: `[B, k]`, of each row different ones.

    Returns:
      `[B, k]`.
    """
    return jnp.take_along_axis(a @ encoder, places, 1)


def _read(a, encoder, places):
    return read_at(a, encoder, places), (a, encoder.shape[1], places)


def _read_back(held, slope):
    a, count, places = held
    return None, _added(slope, places, a, count).T, None


read_at.defvjp(_read, _read_back)


@jax.custom_vjp
def write_at(codes: jax.Array, places: jax.Array, atoms: jax.Array) -> jax.Array:
    """Sums of few atoms: `[B, k]` codes, of units at `[B, k]` places, of `[K, D]` atoms."""
    parts = (codes[:, j, None] * atoms[places[:, j]] for j in range(codes.shape[1]))
    return sum(parts, jnp.zeros((len(codes), atoms.shape[1]), codes.dtype))


def _write(codes, places, atoms):
    return write_at(codes, places, atoms), (codes, places, atoms)


def _write_back(held, slope):
    codes, places, atoms = held
    by_codes = jnp.take_along_axis(slope @ atoms.T, places, 1)
    return by_codes, None, _added(codes, places, slope, len(atoms))


write_at.defvjp(_write, _write_back)


def _added(codes, places, rows, count):
    """`[count, C]`: to each unit the rows that have a code of it, times the code."""
    if jax.default_backend() == "cpu":
        each = (codes[:, :, None] * rows[:, None]).reshape(-1, rows.shape[1])
        return jnp.zeros((count, rows.shape[1]), rows.dtype).at[places.reshape(-1)].add(each)
    # Elsewhere rows would be added in any order: other bytes each time; and products are quick.
    return at_places(codes, places, count).T @ rows


def at_places(codes: jax.Array, places: jax.Array, count: int) -> jax.Array:
    """`[B, count]`, 0 but at `[B, k]` places."""
    rows = jnp.broadcast_to(jnp.arange(len(codes))[:, None], places.shape)
    return jnp.zeros((len(codes), count), codes.dtype).at[rows, places].set(codes)
