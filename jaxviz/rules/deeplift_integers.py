"""DeepLIFT through whole numbers: counts of truths, rounded numbers, winners and what they pick.

An index is a number like others and has a difference of its own; what is made of it changes as it
does. So `jnp.select`, branches under `vmap`, one-hot vectors of a winner and rows of a table that a
winner picked have shares that are complete. The winner of an `argmax` changes where the new one
overtakes the old one: their distance crosses zero, and carries the change.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.interpreter import Scalar
from jaxviz.graph.rewrite import Op
from jaxviz.rules.differences import (
    along,
    column,
    divided,
    finite,
    gap,
    is_float,
    still,
    truth_dtype,
)

_LINEAR = frozenset(
    "broadcast_in_dim concatenate copy copy_p cumsum expand_dims name pad reduce_sum reshape rev"
    " slice squeeze stack tile transpose".split()
)
_EACH_ALONE = frozenset(
    "abs add and ceil clamp convert_element_type div eq floor ge gt integer_pow le lt max min mul"
    " ne neg not or rem round shift_left shift_right_arithmetic sign sub xor".split()
)


def number(a: Any) -> Any:
    """A truth value or whole number, or its bundle, as one that has differences."""
    if isinstance(a, tuple):
        return *map(number, a[:2]), a[2]
    return a if is_float(a) else a.astype(truth_dtype())


def share(value: Any) -> jax.Array:
    """What is carried, as a part of the difference that it stands for."""
    here, there, carried = number(value)
    run = gap(here, there)
    return divided(carried.astype(run.dtype), run)


def stepped(step: Callable, one: Any, other: Any) -> jax.Array:
    """What is carried of a truth `step(a, b)` that changes where a - b crosses zero.

    The distance carries the change where a and b move apart. The more they move together, which
    leaves a distance of nothing to divide by, the more is theirs alone: each changes once before
    and once after the other, and carries what that changes. So no part is more than the whole.

    Args:
      step: A comparison.
      one, other: Bundles, or numbers that stay.
    """
    (a, a0, d), (b, b0, e) = (v if isinstance(v, tuple) else still(v) for v in (one, other))
    at = lambda a, b: number(step(a, b))
    first, last, alone, after = at(a0, b0), at(a, b), at(a, b0), at(a0, b)
    whole, like = last - first, lambda a: a.astype(first.dtype)
    one_way, other_way, apart = map(like, (gap(a, a0), gap(b, b0), gap(gap(a, b), gap(a0, b0))))
    both, d, e = jnp.abs(one_way) + jnp.abs(other_way), like(d), like(e)
    far = jnp.where(jnp.isfinite(both), divided(jnp.abs(apart), both), 1)
    together = whole * jnp.sign(apart) * divided(d - e, both)
    of_a, of_b = (alone - first + last - after) / 2, (after - first + last - alone) / 2
    each = of_a * divided(d, one_way) + of_b * divided(e, other_way)
    return jnp.where(whole == 0, 0, together + jnp.maximum(1 - far, 0) * each)


def overtakes(one: Any, other: Any) -> jax.Array:
    """What either carries of a's having overtaken b, or fallen behind it; 1 in all."""
    forth = (one[1] <= other[1]) & (one[0] >= other[0])
    tie = one[0] == other[0]

    def step(a, b):
        less, more = jnp.where(forth, b, a), jnp.where(forth, a, b)
        return (less < more) | (tie & (less == more))

    return stepped(step, one, other)


def counted(op: Op) -> Callable | None:
    """What is no floating number, made of such that have differences."""
    at = [i for i, d in enumerate(op.depends) if d]
    if len(op.outputs) != 1:
        return None
    if op.primitive in ("argmax", "argmin") and len(at) == 1:
        return lambda *inputs: _won(op, inputs[at[0]]) if known(inputs) else _nothing(op, inputs)
    shape = op.outputs[0].shape
    one = len(at) == 1 and op.primitive in _EACH_ALONE
    alone = one and jnp.broadcast_shapes(op.inputs[at[0]].shape, shape) == shape
    literal = any(isinstance(o, Scalar) for o in op.operands)
    plain = op.primitive in _LINEAR and not literal
    plain |= op.primitive in ("add", "sub", "neg") and not alone
    plain |= op.primitive == "select_n" and op.operands[0] not in at  # chosen by what stays
    if not (alone or plain):
        return None

    def replaced(*inputs):
        here, there, none = _nothing(op, inputs)
        if not known(inputs):
            return here, there, none
        if alone:
            return here, there, gap(*map(number, (here, there))) * share(inputs[at[0]])
        kept = op.operands[:1] if op.primitive == "select_n" else ()
        numbers = [v if i in kept else number(v) for i, v in enumerate(inputs)]
        return here, there, along(op.evaluate, numbers, column(numbers, 0))[1]

    return replaced


def known(inputs: Any) -> bool:
    """Whether every truth value and number among them has a difference."""
    return not any(isinstance(v, tuple) and v[2] is None for v in inputs)


def _nothing(op: Op, inputs: Any) -> tuple:
    return *(op.evaluate(*column(inputs, k)) for k in (0, 1)), None


def _won(op: Op, value: Any) -> tuple:
    """The place of the largest number: the new one's distance from the old one crossed zero."""
    x, x0, d = number(value)
    (axis,) = op.options["axes"]
    here, there = (op.evaluate(a) for a in value[:2])
    at = lambda a, i: jnp.squeeze(
        jnp.take_along_axis(a, jnp.expand_dims(i, axis), axis, mode="clip"), axis
    )
    new, old = (tuple(at(a, i) for a in (x, x0, d)) for i in (here, there))
    change = gap(*map(number, (here, there)))
    return here, there, change * overtakes(new, old).astype(change.dtype)


def picked(op: Op, otherwise: Callable[[Op], Any]) -> Any:
    """Rows of an array at indices that depend on the input: changes of row are the indices'."""
    operand, indices = op.operands
    if not isinstance(indices, int) or not op.depends[indices]:
        return otherwise(op)
    numbers, rank = op.options["dimension_numbers"], len(op.outputs[0].shape)
    spread = [i for i in range(rank) if i not in numbers.offset_dims]

    def replaced(*inputs):
        here, there, none = _nothing(op, inputs)
        if inputs[indices][2] is None or not known(inputs):
            otherwise(op)  # which refuses it
            return here, there, none
        index = inputs[indices][0]
        part, other = (
            jax.lax.broadcast_in_dim(a, here.shape, spread) for a in _changed(inputs[indices])
        )
        change = finite(gap(*map(number, (here, there))))
        carried = jnp.where(other, change * part, 0)
        if isinstance(operand, int) and op.depends[operand]:
            still = [index if i == indices else v for i, v in enumerate(inputs)]
            own = along(
                op.evaluate,
                [number(v) if v is not index else v for v in still],
                [
                    index if i == indices else number(v)[0] if isinstance(v, tuple) else v
                    for i, v in enumerate(inputs)
                ],
            )[1]
            carried += jnp.where(other, 0, own).astype(carried.dtype)
        like = here.dtype if is_float(here) else carried.dtype
        return here, there, carried.astype(like)

    return replaced


def _changed(index: Any) -> tuple[jax.Array, jax.Array]:
    """Of each row of indices the part of its change that is carried, and whether it changed."""
    moved = (index[0] != index[1]).astype(truth_dtype())
    # Where several of an index' numbers changed each has as much of the change.
    part = (share(index) * moved).sum(-1) / jnp.maximum(moved.sum(-1), 1)
    return part, moved.any(-1)


def placed(op: Op, otherwise: Callable[[Op], Any]) -> Any:
    """Rows put, or added, at indices that depend on the input: their weights there are 0 or 1.

    Where rows are put on one another none knows which stays, and what is carried is NaN.
    """
    operand, indices, updates = op.operands
    if not isinstance(indices, int) or not op.depends[indices]:
        return otherwise(op)
    names = "dimension_numbers indices_are_sorted unique_indices mode".split()
    options = {name: op.options[name] for name in names}
    windows = options["dimension_numbers"].update_window_dims
    dtype = op.outputs[0].dtype

    def replaced(*inputs):
        here, there, none = _nothing(op, inputs)
        if inputs[indices][2] is None or not known(inputs):
            otherwise(op)  # which refuses it
            return here, there, none
        whole = lambda o: inputs[o] if isinstance(o, int) else jnp.asarray(o.value, dtype)
        full = lambda v: v if isinstance(v, tuple) else (v, v, jnp.zeros_like(v))
        (base, base0, d), (u, u0, du) = (full(whole(o)) for o in (operand, updates))
        spread = [i for i in range(u.ndim) if i not in windows]
        part, other = (
            jax.lax.broadcast_in_dim(a, u.shape, spread) for a in _changed(inputs[indices])
        )

        def added(at_new, at_old):
            zero = jnp.zeros(here.shape, dtype)
            return sum(
                jax.lax.scatter_add(zero, index, a.astype(dtype), **options)
                for index, a in zip(inputs[indices][:2], (at_new, at_old), strict=True)
            )

        gone = jnp.where(other, part * (u / 2 + u0 / 2), 0)
        half = jnp.where(other, du / 2, 0)
        carried = added(du - half + gone, half - gone)
        if op.primitive == "scatter":
            one, none = jnp.ones_like(u), jnp.zeros_like(u)
            holds, held = added(one, none), added(none, one)
            of_change = jnp.where(other, part, 0)
            d = d * (1 - holds / 2 - held / 2) - (base / 2 + base0 / 2) * added(
                of_change, -of_change
            )
            carried *= jnp.where(jnp.maximum(holds, held) > 1, jnp.nan, 1).astype(dtype)
        return here, there, d + carried

    return replaced
