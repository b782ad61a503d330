"""DeepLIFT of a difference of two numbers that come from one: h - max h, c_i - c_j of one array.

Each side has a multiplier of 1 for the number they have in common, and 1 - 1 is nothing. But what
is handed back is added up with all else that either side has, and at inputs of 1e8 the last digit
of a sum that holds a 1 is worth 10. So it is said before: what one number alone makes is a function
of that number, and changes by its own difference quotient.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxviz.graph.rewrite import Op
from jaxviz.rules.differences import column, divided, finite, gap, moves

MOVING = frozenset(
    "broadcast_in_dim copy copy_p dynamic_slice expand_dims gather name reshape rev slice squeeze"
    " stop_gradient transpose".split()
)
_WON, _WON_OF_TWO = ("reduce_max", "reduce_min"), ("max", "min")
_MOST_WAYS, _MOST_STEPS = 64, 8  # of maxima of maxima, and of what is written twice
MOST = 2**24  # places that a number in single precision tells apart


class Way(NamedTuple):
    """How an operand came from an earlier value: by moving, or as the largest of a row."""

    value: int
    given: Any  # its bundle
    numbered: Callable  # from a number for each place of the value to those of the operand
    won: bool
    maker: Op | None


def subtracted(op: Op) -> Callable | None:
    """a - b of one origin; None for every other difference."""
    found = one_origin(op)
    if found is None:
        return None
    same, theirs_is_won = found

    def replaced(*inputs):
        (x, x0, d), (y, y0, e) = (inputs[o] for o in op.operands)  # type: ignore[index]
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        alike = same()
        run, whole = (gap(x, x0), d) if theirs_is_won else (gap(y, y0), e)
        own = divided(whole, run.astype(d.dtype)) * finite(gap(here, there)).astype(d.dtype)
        apart = jnp.where(alike, 0, d) - jnp.where(alike, 0, e)
        return here, there, jnp.where(alike, own, apart)

    return replaced


def one_origin(op: Op) -> tuple[Callable, bool] | None:
    """Of a difference of what came from one value: what says which of its numbers are of one place
    of that, and whether the second operand has come as the largest of several."""
    one, other = op.operands
    if op.primitive != "sub" or one == other or not (moves(op, one) and moves(op, other)):
        return None
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in op.inputs):
        return None
    pairs = itertools.product(ways(op, one), list(ways(op, other)))  # type: ignore[arg-type]
    alike = (p for p in pairs if not (p[0].won and p[1].won) and _same(*p, _MOST_STEPS))
    a, b = next(alike, (None, None))
    if a is None or b is None or a.given[0].size >= MOST:
        return None

    def same():
        places = 1 + jnp.arange(a.given[0].size, dtype=jnp.float32).reshape(a.given[0].shape)
        mine, theirs = a.numbered(places), b.numbered(places)
        return (mine == theirs) & (mine > 0)

    return same, b.won


def _same(one: Way, other: Way, steps: int) -> bool:
    """Whether two values are one, or were made from one by the same steps written twice."""
    if one.value == other.value:
        return True
    a, b = one.maker, other.maker
    if a is None or b is None or not steps or a.members or b.members or a.node.bodies:
        return False
    if a.primitive != b.primitive or len(a.outputs) > 1 or len(a.inputs) != len(b.inputs):
        return False
    if a.operands != b.operands or str(a.options) != str(b.options):
        return False
    return all(_same(_input(a, i), _input(b, i), steps - 1) for i in range(len(a.inputs)))


def _input(op: Op, at: int) -> Way:
    maker = op.makers[at] if op.makers else None
    return Way(op.node.inputs[at], op.given[at], lambda numbers: numbers, False, maker)


def ways(op: Op, at: int) -> Iterator[Way]:
    """An operand, and what it was before it was moved or was the largest, nearest first."""
    yield from itertools.islice(_before(_input(op, at)), _MOST_WAYS)


def _before(way: Way) -> Iterator[Way]:
    yield way
    maker = way.maker
    if maker is None or maker.members or len(maker.outputs) != 1:
        return
    moving = [i for i, d in enumerate(maker.depends) if d]
    for i in moving:
        if maker.primitive in _WON or (maker.primitive in _WON_OF_TWO and len(moving) == 2):
            step, won = _winner(maker, i), True
        elif len(moving) == 1 and maker.operands[0] == i and _only_moves(maker):
            step, won = _moved(maker, i), way.won
        else:
            return
        numbered = lambda numbers, step=step: way.numbered(step(numbers))
        yield from _before(
            Way(maker.node.inputs[i], maker.given[i], numbered, won, maker.makers[i])
        )


def _only_moves(op: Op) -> bool:
    same = op.primitive == "convert_element_type" and op.inputs[0].dtype == op.outputs[0].dtype
    return same or op.primitive in MOVING


def _moved(op: Op, at: int) -> Callable:
    if op.primitive in ("convert_element_type", "stop_gradient", "name", "copy", "copy_p"):
        return lambda numbers: numbers
    return lambda numbers: op.evaluate(*op.given[:at], numbers, *op.given[at + 1 :])


def _winner(op: Op, at: int) -> Callable:
    """The number of the place that explains how the largest changed, or 0: several may be it."""
    falls = op.primitive in ("reduce_min", "min")
    y, y0 = (op.evaluate(*column(op.given, k)) for k in (0, 1))
    grew = (y < y0) if falls else (y >= y0)
    (x, x0), axes = op.given[at][:2], op.options.get("axes", ())

    def numbered(numbers):
        wide = lambda a: jnp.expand_dims(a, axes)
        found = jnp.where(wide(grew), x == wide(y), x0 == wide(y0))
        number = jnp.where(found, numbers, 0).max(axes)
        return jnp.where(found.sum(axes) == 1, number, 0)

    return numbered
