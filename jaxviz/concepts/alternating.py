"""Two factors of activations, moved in turn; most of it on a small model of the activations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_SWEEPS = 2  # of a factor's rows for each product
_ONWARD = 0.25  # of its last move each factor goes on by, on the model
# The model is left when it moves by so small a part of the step's move, or after so many rounds.
_WITHIN, _ROUNDS = 0.05, 20


class _State(NamedTuple):
    """Of S starts, after a step."""

    x: jax.Array  # [S, K, n]
    y: jax.Array  # [S, K, C]
    begun: jax.Array  # [S, K, C], the y that the step began with
    missed: tuple[jax.Array, jax.Array]  # what the model lacks of its two products
    objective: jax.Array  # [S]
    moved: jax.Array  # [S], by how much the step's products moved both, in parts of all
    moved_y: jax.Array  # [S], and the second of them, in units of the gradient
    done: jax.Array  # [S]
    rounds: jax.Array  # for which the model is trusted
    number: jax.Array


def alternated(
    a: jax.Array,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    bounds: tuple[bool, bool],
    drawn: bool,
    num_steps: Any,
    tolerance: Any,
) -> tuple[jax.Array, jax.Array]:
    """Makes `|a - x^T y|^2` small, from S starts: x and y in turn, each row in turn (HALS).

    A step makes the two products with `a`, and moves each factor by them. Before it both go on,
    round by round, on a model in the place of `a`: its projection on the 2 K directions where it is
    largest, which all starts share, and what that leaves of the last step's products. So where
    steps move nothing the model moves nothing, and a round costs a small part of a step. What it
    made larger than it was is taken back, and it is then trusted for fewer rounds: no step ends
    where the objective is larger than where the last one did (up to its rounding).

    Args:
      a: `[n, C]`.
      x: `[S, K, n]`, what is moved first.
      y: `[S, K, C]`.
      key: Of the directions from which the largest ones are found.
      bounds: Whether x, and y, must not be negative.
      drawn: Whether the starts were drawn, and the model may move them before the first step.
      num_steps: At most so many.
      tolerance: A start is done, and stays as it is, when a step moves it by so small a part: the
        moves of each factor in units of its gradient, over the gradient of a factor of zeros.

    Returns:
      Both factors.
    """
    whole = jnp.square(a).sum()
    slack = 16 * jnp.finfo(a.dtype).eps * whole
    left, right = _largest(a, min(2 * x.shape[1], *a.shape), key)

    def step(state):
        x0, y0 = _onward(left, right, state, bounds)
        for_x, gram_y = _flat(y0, a.T), _gram(y0, y0)
        x1, one = _swept(x0, for_x, gram_y, bounds[0])
        for_y, gram_x = _flat(x1, a), _gram(x1, x1)
        y1, other = _swept(y0, for_y, gram_x, bounds[1])
        here = whole - 2 * _trace(_gram(x1, for_x)) + (gram_x * gram_y).sum((1, 2))
        worse = ~(here <= state.objective + slack)  # or not a number
        moved = _part(one, for_x) + _part(other, for_y)
        new = _State(
            *(x1, y1, y0),
            (for_x - _flat(_flat(y0, right.T), left), for_y - _flat(_flat(x1, left.T), right)),
            whole - 2 * _trace(_gram(y1, for_y)) + (gram_x * _gram(y1, y1)).sum((1, 2)),
            *(moved, other, moved <= tolerance, state.rounds, state.number),
        )
        stays = state.done | worse
        only = lambda old, new: jnp.where(stays.reshape(-1, *(1,) * (new.ndim - 1)), old, new)
        apart = {"rounds": None, "number": None}  # of all starts together
        new = jax.tree.map(only, state._replace(**apart), new._replace(**apart))
        rises = (worse | (moved > state.moved)) & ~state.done
        fewer, more = state.rounds // 4, jnp.minimum(2 * state.rounds + 1, _ROUNDS)
        rounds = jnp.where(rises.any(), fewer, more)
        return new._replace(rounds=rounds, number=state.number + 1)

    none, zero = jnp.zeros(len(x), a.dtype), jnp.zeros((), jnp.int32)
    most = none + jnp.inf
    missed = jnp.zeros_like(x), jnp.zeros_like(y)
    rounds = zero + (_ROUNDS if drawn else 0)
    state = _State(x, y, y, missed, most, most, none, none > 0, rounds, zero)
    goes_on = lambda state: (state.number < num_steps) & ~state.done.all()
    return jax.lax.while_loop(goes_on, step, state)[:2]


def _onward(left, right, state, bounds):
    """Both factors after some rounds on the model."""
    x0, y0 = state.x, state.begun
    along = lambda one, other: jnp.einsum("skn,skn->sk", one, other)
    size = tuple(jnp.maximum(along(one, one), jnp.finfo(one.dtype).tiny) for one in (x0, y0))

    def wanted(rows, at, size, one, other, missed):
        # As much of what is missed as there is of the row: else it would grow for ever.
        part = along(rows, at) / size
        return _flat(_flat(rows, one.T), other) + part[..., None] * missed

    def further(rows, last, bound):
        rows = rows + _ONWARD * (rows - last)
        return jnp.maximum(rows, 0) if bound else rows

    def turn(held):
        x, y, x_ahead, y_ahead, _, number = held
        for_x = wanted(y_ahead, y0, size[1], right, left, state.missed[0])
        new_x, _ = _swept(x_ahead, for_x, _gram(y_ahead, y_ahead), bounds[0])
        x_ahead = further(new_x, x, bounds[0])
        for_y = wanted(x_ahead, x0, size[0], left, right, state.missed[1])
        new_y, moved = _swept(y_ahead, for_y, _gram(x_ahead, x_ahead), bounds[1])
        return new_x, new_y, x_ahead, further(new_y, y, bounds[1]), moved, number + 1

    leave = jnp.where(state.done, jnp.inf, _WITHIN * state.moved_y)
    goes_on = lambda held: (held[5] < state.rounds) & (held[4] > leave).any()
    most = jnp.full_like(leave, jnp.finfo(leave.dtype).max)
    return jax.lax.while_loop(goes_on, turn, (x0, state.y, x0, state.y, most, 0))[:2]


def _largest(a, count, key):
    """`[count, n]` and `[count, C]`, whose product is `a` along its largest directions, nearly."""
    # As rows: a product with `a` transposed from the left takes five times as long on a processor.
    some = jax.random.normal(key, (count, a.shape[1]), a.dtype) @ a.T
    left = _orthonormal(_orthonormal(some) @ a @ a.T)
    return left, left @ a


def _orthonormal(rows):
    """An orthonormal basis of what rows span: each less its part along those before it, twice.

    Not LAPACK's `qr`: what threads of OpenBLAS it has called wait for more in a loop, which takes
    the cores from XLA's for some milliseconds. Rows that add nothing become 0.
    """

    def one(k, basis):
        whole = row = jax.lax.dynamic_index_in_dim(rows, k, keepdims=False)
        for _ in range(2):
            row = row - (basis @ row) @ basis
        size = jnp.linalg.norm(row)
        new = size > 32 * jnp.finfo(row.dtype).eps * jnp.linalg.norm(whole)  # or only rounding
        row = jnp.where(new, row / jnp.where(new, size, 1), 0)
        return jax.lax.dynamic_update_index_in_dim(basis, row, k, 0)

    return jax.lax.fori_loop(0, len(rows), one, jnp.zeros_like(rows))


def _swept(rows, wanted, gram, bound):
    """Each row in turn at its best value, given the others; and by how much they moved, `[S]`."""
    size = jnp.einsum("skk->sk", gram)
    per = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    row = lambda of, k: jax.lax.dynamic_slice_in_dim(of, k, 1, 1)  # k is inside: no test of that

    def one(k, new):
        way = row(wanted, k) - row(gram, k) @ new
        moved = row(new, k) + way * row(per, k)[..., None]
        moved = jnp.maximum(moved, 0) if bound else moved
        return jax.lax.dynamic_update_slice_in_dim(new, moved, k, 1)

    sweep = lambda _, new: jax.lax.fori_loop(0, rows.shape[1], one, new)
    new = jax.lax.fori_loop(0, _SWEEPS, sweep, rows)
    return new, (jnp.abs(new - rows).sum(2) * size).sum(1)


def _part(moved, wanted):
    return moved / jnp.maximum(jnp.abs(wanted).sum((1, 2)), jnp.finfo(wanted.dtype).tiny)


def _flat(rows, other):
    """Rows of all starts in one product."""
    return (rows.reshape(-1, rows.shape[2]) @ other).reshape(*rows.shape[:2], -1)


def _gram(one, other):
    return one @ jnp.swapaxes(other, 1, 2)


def _trace(a):
    return jnp.trace(a, axis1=1, axis2=2)
