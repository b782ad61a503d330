"""DeepLIFT's RevealCancel: positive and negative differences kept apart through activations.

A bundle holds the value at the input, the one at the baseline, the positive part of their
difference, and two carried differences p and n, linear in those of the input, which come out as the
positive and the negative part. A linear layer sorts its contributions by sign; an activation scales
p and n by what each alone, before or after the other, adds to it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.beyond import has_logarithm
from jaxviz.graph.lift import Unknown
from jaxviz.graph.rewrite import Op, Rule, RuleSet, refuse
from jaxviz.rules import deeplift
from jaxviz.rules.deeplift import GROUPS, LAYERS, LUMPED, MOVES, POINTWISE, SUMS
from jaxviz.rules.deeplift_null_class import less_softplus
from jaxviz.rules.deeplift_origins import combined, one_origin
from jaxviz.rules.differences import (
    along,
    column,
    gap,
    is_float,
    listed,
    moves,
    secant,
    truth_dtype,
    within,
)
from jaxviz.rules.lrp_maps import quick

_STEEP = ("exp", "exp2", "expm1", "sinh", "cosh")


def still(array: jax.Array) -> tuple:
    """The bundle of a value that is the same at the input and the baseline."""
    zero = jnp.zeros(array.shape, array.dtype if is_float(array) else truth_dtype())
    return array, array, zero, zero, zero


def linear(op: Op) -> Callable:
    """Moves, or scales by a number of known sign: each part goes its way."""
    return _with(op, lambda inputs: lambda p, n: (_carry(op, inputs, p), _carry(op, inputs, n)))


def scaling(op: Op) -> Callable | None:
    """A scale for each number: a negative one makes the positive part the negative one."""
    if sum(isinstance(o, int) and op.depends[o] for o in op.operands) != 1:
        return lumped(op)

    def split(inputs):
        ones = [jnp.ones_like(v[0]) if isinstance(v, tuple) else None for v in inputs]
        positive = _carry(op, inputs, ones) >= 0

        def carry(p, n):
            p, n = _carry(op, inputs, p), _carry(op, inputs, n)
            return jnp.where(positive, p, n), jnp.where(positive, n, p)

        return carry

    return _with(op, split)


def weighted(op: Op) -> Callable:
    """A convolution or dense layer: contributions by the sign of weight times difference."""
    at = op.depends.index(True)

    def split(inputs):
        x, x0 = inputs[at][:2]
        grew, level = x > x0, x == x0

        def carry(p, n):
            whole = p[at] + n[at]
            zero = jnp.zeros_like(whole)
            rose = jnp.where(grew, whole, jnp.where(level, whole / 2, zero))
            fell = whole - rose

            def out(for_rose, for_fell):
                def layer(d, sign):
                    given = [sign(a) if i != at else d for i, a in enumerate(inputs)]
                    return quick(op)(*given)

                return layer(rose, for_rose) + layer(fell, for_fell)

            up, down = (lambda w: jnp.maximum(w, 0)), (lambda w: jnp.minimum(w, 0))
            return out(up, down), out(down, up)

        return carry

    return _with(op, split)


def summed(op: Op) -> Callable:
    """A sum or difference: of each summand the whole difference, by its sign in the sum."""
    taken = op.operands[-1] if op.primitive in ("sub", "scatter-sub") else None

    def split(inputs):
        def carry(p, n):
            rose, fell = [], []
            for i, (v, a, b) in enumerate(zip(inputs, p, n, strict=True)):
                if a is None:
                    rose.append(None)
                    fell.append(None)
                    continue
                grew = v[0] <= v[1] if isinstance(taken, int) and i == taken else v[0] >= v[1]
                rose.append(jnp.where(grew, a + b, jnp.zeros_like(a)))
                fell.append(jnp.where(grew, jnp.zeros_like(a), a + b))
            return _carry(op, inputs, rose), _carry(op, inputs, fell)

        return carry

    return _with(op, split)


def activation(op: Op) -> Callable | None:
    """Of f(x0 + p + n) - f(x0) to p: what it adds, averaged over coming before and after n.

    As difference quotients over p's own way, before n and after. Rescale's quotient for both where
    x0 + p or x0 + n is outside the domain of f (a square root below zero), which x and x0 are not,
    where one of the parts is nothing but rounding, and where an exponential is so much larger there
    than at x and x0 that the parts would leave only rounding of its change.
    """
    known = deeplift.difference_quotient(op)
    if known is None or sum(op.depends) > 1:
        return known and lumped(op)
    at = op.depends.index(True)
    beyond = has_logarithm(op.node)

    def split(inputs):
        x, x0, up = (jnp.broadcast_to(a, op.outputs[0].shape) for a in inputs[at][:3])
        f = deeplift.alone(op, at, column(inputs, 0))
        exact = deeplift.rounds_nothing(op)
        with_up, with_down = x0 + up, x - up
        first, there, up_first = secant(f, with_up, x0, exact)
        here, second, up_last = secant(f, x, with_down, exact)
        _, _, down_first = secant(f, with_down, x0, exact)
        _, _, down_last = secant(f, x, with_up, exact)
        size = jnp.abs(x) + jnp.abs(x0) + jnp.abs(up)
        least = jnp.minimum(jnp.abs(up), jnp.abs(gap(x, x0).astype(up.dtype) - up))
        # Of half precision, a few roundings are a third of the value: parts that small are kept.
        finest = min(float(jnp.finfo(dtype).eps) for dtype in (x.dtype, jnp.float32))
        rounding = 32 * finest * size
        inside = (least > rounding) & jnp.isfinite(first) & jnp.isfinite(second)
        if op.kind in _STEEP:
            most, ends = (
                jnp.maximum(jnp.abs(a), jnp.abs(b)) for a, b in ((first, second), (here, there))
            )
            inside &= most * 2.0**-12 <= ends
        plain = secant(f, x, x0, exact, beyond)[2]
        m_up = jnp.where(inside, up_first / 2 + up_last / 2, plain)
        m_down = jnp.where(inside, down_first / 2 + down_last / 2, plain)
        return lambda p, n: (p[at] * m_up, n[at] * m_down)

    replaced = _with(op, split)
    if not beyond:
        return replaced

    def ended(*inputs):
        here, there, *parts = replaced(*inputs)
        return *within(here, there), *parts

    return ended


def lumped(op: Op) -> Callable | None:
    """By the rule of Rescale, sorted by the sign of what comes out (complex: not sorted)."""
    found = deeplift.rescale.find(op)[1]
    return found and _as_rescale(found)


def each(op: Op) -> Callable:
    """What has no rule: by its own derivative, refused where its result is no real number."""
    return linear(op) if _is_real(op) else _as_rescale(deeplift.linear(op))


def _as_rescale(found: Callable) -> Callable:

    def replaced(*inputs):
        def through(carried):
            bundles = [
                (*v[:2], c) if isinstance(v, tuple) else v
                for v, c in zip(inputs, carried, strict=True)
            ]
            outputs = found(*bundles)
            return [outputs] if isinstance(outputs, tuple) else outputs

        moving = [v if isinstance(v, tuple) and v[2] is not None else None for v in inputs]
        total = [None if v is None else _change(v) for v in moving]
        whole = [None if v is None else _whole(v) for v in moving]
        pairs = zip(through(total), through(whole), strict=True)
        outputs = [_sorted(a, b, change, d) for (a, b, change), (_, _, d) in pairs]
        return outputs[0] if len(outputs) == 1 else outputs

    return replaced


def _sorted(here: Any, there: Any, change: Any, d: Any) -> tuple:
    if change is None or isinstance(change, Unknown):
        return here, there, change, change, change
    zero = jnp.zeros_like(change)
    if jnp.iscomplexobj(change):
        return here, there, change, d, zero
    grew = change >= 0
    parts = jnp.where(grew, d, zero), jnp.where(grew, zero, d)
    return here, there, jnp.maximum(change, 0), *parts


def _whole(value: tuple) -> Any:
    return value[2] if isinstance(value[2], Unknown) else value[3] + value[4]


def _change(value: tuple) -> Any:
    here, there, up = value[:3]
    if isinstance(up, Unknown):
        return up
    if not is_float(here):
        return here.astype(up.dtype) - there.astype(up.dtype)
    return gap(here, there).astype(up.dtype)


def _with(op: Op, split: Callable) -> Callable:
    """The operation on bundles, from how it carries (p, n): the numbers too go that way."""

    def replaced(*inputs):
        evaluate = quick(op)
        columns = zip(*(listed(evaluate(*column(inputs, k))) for k in (0, 1)), strict=True)
        carry = split(inputs)
        moving = [v if isinstance(v, tuple) and v[2] is not None else None for v in inputs]
        up = [None if v is None else v[2] for v in moving]
        down = [None if v is None else _change(v) - v[2] for v in moving]
        p, n = ([None if v is None else v[k] for v in moving] for k in (3, 4))
        carried = zip(*map(listed, (carry(up, down)[0], *carry(p, n))), strict=True)
        outputs = [
            (*ends, *(parts if is_float(ends[0]) else (None, None, None)))
            for ends, parts in zip(columns, carried, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else outputs

    return replaced


def _carry(op: Op, inputs: Any, d: Any) -> Any:
    """The operation's own derivative at the input along `d`."""
    bundles = [
        (v[0], v[1], c) if isinstance(v, tuple) else v for v, c in zip(inputs, d, strict=True)
    ]
    return along(quick(op), bundles, column(inputs, 0))[1]


def _signed(rule: Rule) -> Rule:
    """The rule where all that moves are real numbers, whose differences have a sign."""

    def signed(op):
        return rule(op) if _is_real(op) else lumped(op)

    return signed


def _is_real(op: Op) -> bool:
    moving = [a for a, d in zip(op.inputs, op.depends, strict=True) if d]
    return all(jnp.issubdtype(a.dtype, jnp.floating) for a in [*moving, *op.outputs])


def _divided(op: Op) -> Callable | None:
    return lumped(op) if moves(op, op.operands[1]) else scaling(op)


def _combined(op: Op) -> Callable | None:
    if op.primitive == "sub" and less_softplus(op):
        return lumped(op)
    mask, found = one_origin(op), combined(op)
    if mask is None or found is None:
        return summed(op)
    of_one, apart = _as_rescale(found), summed(op)

    def replaced(*inputs):
        (here, there, *own), (_, _, *parts) = of_one(*inputs), apart(*inputs)
        same = mask(inputs)
        return here, there, *(jnp.where(same, a, b) for a, b in zip(own, parts, strict=True))

    return replaced


_ROWS = {
    **dict.fromkeys((*MOVES, "embed"), linear),
    **dict.fromkeys((*SUMS, "matmul", "conv_product"), summed),
    **dict.fromkeys(LAYERS, weighted),
    **dict.fromkeys(POINTWISE, activation),
    **dict.fromkeys(LUMPED, lumped),
    **dict.fromkeys(("mul", "neg"), scaling),
    "div": _divided,
    **dict.fromkeys(("sub", "add"), _combined),
}

reveal_cancel = RuleSet(
    "deep_lift",
    {
        **{kind: _signed(rule) for kind, rule in _ROWS.items()},
        **dict.fromkeys(GROUPS, lambda op: None),  # taken apart, as in Rescale
        "stop_gradient": deeplift.through,
    },
    default=refuse,
    named=False,
)
