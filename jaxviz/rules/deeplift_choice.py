"""DeepLIFT through comparisons and choices: `where(a > b, u, v)`, masks, hard thresholds.

A truth value is a number, 0 or 1, with a difference of its own: where a - b crosses zero between
baseline and input, a > b changes by one, and a - b carries that change, as the difference quotient
of a step; where both move together and their distance hardly changes, each of them alone does
(`deeplift_integers.stepped`). A choice that is the same at both ends carries the difference of what
it chose; where it is another one, the comparison explains the whole change. So
`where(x > 0, x, 0)` is a ReLU.

A choice between a number and an infinity (the experts of a mixture that are not among the top k,
set to -inf before their softmax) has no finite change to share. There the infinity counts as a
number beyond all others, 2^60, whose exponential is nothing as well. So does the logarithm of a
gate that is closed at one end; where that is an output there are no shares, but NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.interpreter import Scalar
from jaxviz.graph.rewrite import Op
from jaxviz.rules.deeplift_integers import counted, known, number, stepped
from jaxviz.rules.deeplift_order import extreme
from jaxviz.rules.differences import (
    along,
    bundled,
    column,
    divided,
    finite,
    gap,
    halfway,
    is_float,
    truth_dtype,
    within,
)

COMPARISONS = ("gt", "lt", "ge", "le", "eq", "ne")
_STEPS = {
    "gt": jnp.greater,
    "lt": jnp.less,
    "ge": jnp.greater_equal,
    "le": jnp.less_equal,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "convert_element_type": jnp.not_equal,  # a number as the truth that it is not zero
}
LOGIC = ("not", "and", "or", "xor", "reduce_or", "reduce_and", "eq", "ne")


def compared(op: Op) -> Callable | None:
    """a > b and the like: the step function of a - b."""
    if all(jnp.issubdtype(a.dtype, jnp.integer) for a in op.inputs):

        def replaced(*inputs):
            if not known(inputs):
                return *(op.evaluate(*column(inputs, k)) for k in (0, 1)), None
            return _stepped(op, inputs, *map(number, _both(op, inputs)))

        return replaced
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in op.inputs):
        return logical(op)
    return lambda *inputs: _stepped(op, inputs, *_both(op, inputs))


def _both(op: Op, inputs: Any) -> list[Any]:
    like = op.inputs[0].dtype
    return [inputs[o] if isinstance(o, int) else jnp.asarray(o.value, like) for o in op.operands]


def _stepped(op: Op, inputs: Any, left: Any, right: Any) -> tuple:
    """A truth value that changes where left - right crosses zero."""
    here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
    return here, there, stepped(_STEPS[op.primitive], left, right)


def logical(op: Op) -> Callable | None:
    """Logic as arithmetic on 0 and 1; `all` and `any` are a minimum and a maximum."""
    if op.primitive not in LOGIC or any(a.dtype != jnp.bool_ for a in op.inputs):
        return None

    def arithmetic(*given):
        given = iter(given)
        filled = [jnp.asarray(o.value) if isinstance(o, Scalar) else None for o in op.operands]
        a, *b = (_numbers(next(given) if f is None else f) for f in filled)
        match op.primitive:
            case "not":
                return 1 - a
            case "and":
                return a * b[0]
            case "or":
                return a + b[0] - a * b[0]
            case "xor" | "ne":
                return a + b[0] - 2 * a * b[0]
        return 1 - a - b[0] + 2 * a * b[0]

    def replaced(*inputs):
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        if not known(inputs):
            return here, there, None
        numbers = [_numbers(v) for v in inputs]
        if op.primitive.startswith("reduce"):
            falls = op.primitive == "reduce_and"
            axes = op.options["axes"]
            found = lambda a: a.min(axes) if falls else a.max(axes)
            return here, there, extreme(found, numbers, falls)[2]
        spread = [numbers[o] for o in op.operands if isinstance(o, int)]
        return here, there, along(arithmetic, spread, halfway(spread))[1]

    return replaced


def moved(op: Op) -> Callable:
    """Truth values that only change places, counts and indices; of other results nothing."""
    if (found := counted(op)) is not None:
        return found

    def replaced(*inputs):
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        truths = all(a.dtype == jnp.bool_ for a in _moving(op) + list(op.outputs))
        literal = any(isinstance(o, Scalar) for o in op.operands)
        if not truths or literal or len(op.outputs) > 1 or not known(inputs):
            return bundled(op, here, there, [None] * len(op.outputs))
        numbers = [_numbers(v) for v in inputs]
        return here, there, along(op.evaluate, numbers, column(numbers, 0))[1]

    return replaced


def is_finite(op: Op) -> Callable:
    """Whether a number is finite: one that is so at one end only has no difference to share."""

    def replaced(value):
        here, there = (op.evaluate(a) for a in value[:2])
        return here, there, jnp.zeros(here.shape, truth_dtype())

    return replaced


def chosen(op: Op) -> Callable | None:
    """`where` by a condition that depends on the input."""
    which_at = op.operands[0]
    if not isinstance(which_at, int) or not op.depends[which_at]:
        return None

    def replaced(*inputs):
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        which, which0, step = inputs[which_at]
        cases = [
            inputs[o] if isinstance(o, int) else jnp.full(here.shape, o.value, here.dtype)
            for o in op.operands[1:]
        ]
        if step is None or not known(cases):
            if is_float(here):
                no_difference(op)
            return here, there, None
        cases, ends = [number(v) for v in cases], [number(v) for v in (here, there)]
        other = which != which0
        if is_float(here):
            here, there = within(here, there, other)
            ends = [here, there]
        kept = [v[2] if isinstance(v, tuple) else jnp.zeros_like(v) for v in cases]
        change = jnp.where(other, finite(gap(*ends)), 0).astype(kept[0].dtype)
        run = number(which) - number(which0)
        share = divided(step.astype(run.dtype), run)
        same = jnp.where(other, 0, jax.lax.select_n(which, *kept))
        return here, there, same + change * share.astype(change.dtype)

    return replaced


def converted(op: Op) -> Callable | None:
    """Truth values and counts as numbers, and numbers as the truth that they are not zero."""
    before, after = op.inputs[0].dtype, op.outputs[0].dtype
    if not jnp.issubdtype(before, jnp.inexact) and jnp.issubdtype(after, jnp.inexact):

        def replaced(value):
            here, there = (op.evaluate(a) for a in value[:2])
            if value[2] is None:
                no_difference(op)
            return here, there, value[2].astype(after)

        return replaced
    if after == jnp.bool_ and jnp.issubdtype(before, jnp.floating):
        return lambda value: _stepped(op, (value,), value, jnp.zeros_like(value[0]))
    return None


def no_difference(op: Op) -> None:
    raise NotImplementedError(
        f"deep_lift: the operation {op.kind!r} at {op.source} chooses by a number that depends on "
        "the input, so it has no difference to share. Explain a part of the net without it "
        "(`jaxviz.split`)."
    )


def _numbers(value: Any) -> Any:
    """A truth value, or its bundle, as 0 or 1; other values, indices too, as they are."""
    first = value[0] if isinstance(value, tuple) else value
    return number(value) if first.dtype == jnp.bool_ else value


def _moving(op: Op) -> list[Any]:
    return [a for a, d in zip(op.inputs, op.depends, strict=True) if d]
