"""Few codes of many units: what is read and written by them alone, and its gradients."""

import jax
import jax.numpy as jnp

_BLOCK = 16  # values, of which the largest is found first
_ONE_BY_ONE = 16  # so few are taken away one by one, which is faster than a sort


def few_largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest numbers of each row and their places, as `jax.lax.top_k` gives them.

    Args:
      values: `[B, K]`, at least 0; no gradient is taken through the choice.
      count: How many, at most K.

    Returns:
      Numbers and places, `[B, count]` each; what is no number is infinite. One pass over all the
      values, a sort of the largest of their blocks, and two for each over those of `count` blocks.

    Example:
      >>> found, places = few_largest(jnp.array([[3.0, 1.0, 3.0, 5.0]]), 2)
      >>> found.tolist(), places.tolist()
      ([[5.0, 3.0]], [[3, 0]])
    """
    values = jax.lax.stop_gradient(values)
    values = jnp.where(jnp.isnan(values), jnp.inf, values)  # is chosen, and so not hidden
    if count > _ONE_BY_ONE or jax.default_backend() != "cpu":
        return jax.lax.top_k(values, count)
    # As numbers of the values' kind: a processor finds their largest faster.
    places = jnp.broadcast_to(jnp.arange(values.shape[1], dtype=values.dtype)[None], values.shape)
    blocks = -(-values.shape[1] // _BLOCK)
    if blocks > count:
        # They are in the blocks whose largest are largest: each of so many has one at least.
        spare = ((0, 0), (0, blocks * _BLOCK - values.shape[1]))
        wide = jnp.pad(values, spare, constant_values=-jnp.inf).reshape(-1, blocks, _BLOCK)
        _, which = jax.lax.top_k(wide.max(2), count)
        values = jnp.take_along_axis(wide, which[..., None], 1)
        places = which[..., None] * _BLOCK + jnp.arange(_BLOCK, dtype=which.dtype)[None, None]
        values, places = (a.reshape(len(a), -1) for a in (values, places.astype(values.dtype)))
    found, places = _one_by_one(values, places, count)
    return found, places.astype(jnp.int32)


def _one_by_one(values, places, count):
    """The largest of each row and their places, the first of equal ones first."""
    found = []
    for _ in range(count):
        top = values.max(1, keepdims=True)
        first = jnp.where(values >= top, places, jnp.inf).min(1, keepdims=True)
        values = jnp.where(places == first, -jnp.inf, values)
        found.append((top, first))
    tops, firsts = (jnp.concatenate(part, 1) for part in zip(*found, strict=True))
    return tops, firsts


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
    # Not of all atoms and read there: few are wanted, and a product takes eight times as long.
    by_codes = jnp.einsum("bd,bkd->bk", slope, atoms[places])
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
