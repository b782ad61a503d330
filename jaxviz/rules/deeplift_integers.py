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
from jaxviz.rules.differences import along, column, divided, finite, gap, is_float, truth_dtype

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
    if not (alone or plain):
        return None

    def replaced(*inputs):
        here, there, none = _nothing(op, inputs)
        if not known(inputs):
            return here, there, none
        if alone:
            return here, there, gap(*map(number, (here, there))) * share(inputs[at[0]])
        numbers = [number(v) for v in inputs]
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
    run = gap(gap(at(x, here), at(x, there)), gap(at(x0, here), at(x0, there)))
    carried = at(d, here) - at(d, there)
    change = gap(*map(number, (here, there)))
    return here, there, change * divided(carried.astype(change.dtype), run.astype(change.dtype))


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
        index, index0, _ = inputs[indices]
        moved = (index != index0).astype(truth_dtype())
        # Where several of an index' numbers changed each has as much of the change.
        part = (share(inputs[indices]) * moved).sum(-1) / jnp.maximum(moved.sum(-1), 1)
        part, other = (
            jax.lax.broadcast_in_dim(a, here.shape, spread) for a in (part, moved.any(-1))
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
