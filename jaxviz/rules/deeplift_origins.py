"""DeepLIFT of sums of what comes from one number: h - max h, c_i - c_j, x - softplus x.

Each side has a multiplier of 1 for the number they have in common, and 1 - 1 is nothing. But what
is handed back is added up with all else that either side has, and at inputs of 1e8 the last digit
of a sum that holds a 1 is worth 10. So it is said before: what one number alone makes is a function
of that number, and changes by its own difference quotient.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.leads import MOVED
from jaxviz.graph.rewrite import Op
from jaxviz.graph.summed_rows import STILL
from jaxviz.rules.differences import column, divided, finite, gap, is_float, moves

# Changes of type are looked at apart; a barrier has as many outputs as inputs.
MOVING = (MOVED | STILL) - {"convert_element_type", "optimization_barrier"}
_WON, _WON_OF_TWO = ("reduce_max", "reduce_min"), ("max", "min")
_POINTWISE = frozenset(
    "abs add div exp expm1 integer_pow log log1p logistic max min mul neg sqrt square sub"
    " tanh".split()
)
_DEEP = 2.0**-10  # what is left of what a number changed by, where a multiplier has no digits
_MOST_WAYS, _MOST_STEPS = 64, 8  # of maxima of maxima, and of what is written twice
MOST = 2**24  # places that a number in single precision tells apart


class Way(NamedTuple):
    """How an operand came from an earlier value: by moving, as the largest of a row, as a function
    of each number."""

    value: int
    given: Any  # its bundle
    numbered: Callable  # from a number for each place of the value to those of the operand
    maker: Op | None
    won: bool = False
    changed: bool = False  # by a function


def combined(op: Op) -> Callable | None:
    """a - b, or a + b, of one origin; None for all else."""
    mask = one_origin(op)
    if mask is None:
        return None

    def replaced(*inputs):
        (x, x0, d), (y, y0, e) = (inputs[o] for o in op.operands)  # type: ignore[index]
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        same, runs = mask(inputs), (gap(x, x0), gap(y, y0))
        parts = [divided(c, run.astype(c.dtype)) for c, run in zip((d, e), runs, strict=True)]
        part = jnp.where(jnp.abs(runs[0]) >= jnp.abs(runs[1]), *parts)  # as both are, or one is not
        own = part * finite(gap(here, there)).astype(d.dtype)
        d, e = (jnp.where(same, 0, a) for a in (d, e))
        return here, there, jnp.where(same, own, d - e if op.primitive == "sub" else d + e)

    return replaced


def one_origin(op: Op) -> Callable | None:
    """From inputs to which of a sum's or a difference's numbers are better told as one function.

    Those are of one place of an earlier value, and either cancel there by definition or, made by
    functions of it (x - softplus x), nearly do.
    """
    one, other = op.operands
    if op.primitive not in ("sub", "add") or one == other:
        return None
    if not (moves(op, one) and moves(op, other)):
        return None
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in op.inputs):
        return None
    a, b = _common(op)
    if a is None or b is None or a.given[0].size >= MOST:
        return None
    exact = op.primitive == "sub" and not a.changed and not b.changed

    def mask(inputs):
        places = 1 + jnp.arange(a.given[0].size, dtype=jnp.float32).reshape(a.given[0].shape)
        mine, theirs = a.numbered(places), b.numbered(places)
        same = (mine == theirs) & (mine > 0)
        if exact:
            return same
        run, other_run = (gap(*inputs[o][:2]) for o in (one, other))  # type: ignore[index]
        change = run - other_run if op.primitive == "sub" else run + other_run
        return same & (jnp.abs(change) <= _DEEP * jnp.maximum(jnp.abs(run), jnp.abs(other_run)))

    return mask


def _common(op: Op) -> tuple[Way | None, Way | None]:
    """The nearest value that both operands came from, as either did."""
    one, other = (list(ways(op, o, functions=True)) for o in op.operands)  # type: ignore[arg-type]
    known = {way.value: way for way in reversed(other)}
    pairs = [(a, known[a.value]) for a in one if a.value in known]
    if not pairs and op.primitive == "sub":
        pairs = [p for p in itertools.product(one, other) if _same(*p, _MOST_STEPS)]
    return next(((a, b) for a, b in pairs if not (a.won and b.won)), (None, None))


def _same(one: Way, other: Way, steps: int) -> bool:
    """Whether two values are one, or were made from one by the same steps written twice."""
    if one.value == other.value:
        return True
    a, b = one.maker, other.maker
    if a is None or b is None or not steps or a.node.bodies or len(a.members) != len(b.members):
        return False
    for (m, reads), (other_m, other_reads) in zip(a.members, b.members, strict=True):
        told = reads == other_reads and m.operands == other_m.operands and not m.node.bodies
        if not told or not _alike(m, other_m):
            return False
    if len(a.outputs) > 1 or len(a.inputs) != len(b.inputs) or a.operands != b.operands:
        return False
    return _alike(a, b) and all(
        _same(_input(a, i), _input(b, i), steps - 1) for i in range(len(a.inputs))
    )


def _alike(a: Op, b: Op) -> bool:
    return a.primitive == b.primitive and str(a.options) == str(b.options)


def _input(op: Op, at: int) -> Way:
    maker = op.makers[at] if op.makers else None
    return Way(op.node.inputs[at], op.given[at], lambda numbers: numbers, maker)


def ways(op: Op, at: int, functions: bool = False) -> Iterator[Way]:
    """An operand, and what it was before it was moved or was the largest, nearest first."""
    yield from itertools.islice(_before(_input(op, at), functions), _MOST_WAYS)


def _before(way: Way, functions: bool) -> Iterator[Way]:
    yield way
    maker = way.maker
    if maker is None or len(maker.outputs) != 1:
        return
    moving = [i for i, d in enumerate(maker.depends) if d]
    for i in moving:
        won, changed = way.won, way.changed
        if functions and len(moving) == 1 and _is_pointwise(maker, i):
            step, changed = (lambda numbers: numbers), True
        elif maker.members:
            return
        elif maker.primitive in _WON or (maker.primitive in _WON_OF_TWO and len(moving) == 2):
            step, won = _winner(maker, i), True
        elif len(moving) == 1 and maker.operands[0] == i and _only_moves(maker):
            step = _moved(maker, i)
        else:
            return
        numbered = lambda numbers, step=step: way.numbered(step(numbers))
        before = _input(maker, i)._replace(numbered=numbered, won=won, changed=changed)
        yield from _before(before, functions)


def _is_pointwise(op: Op, at: int) -> bool:
    """Whether each number is a function of the one that is at its place."""
    known = op.kind in ACTIVATION_KINDS if op.members else op.primitive in _POINTWISE
    return known and op.inputs[at].shape == op.outputs[0].shape and is_float(op.inputs[at])


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
