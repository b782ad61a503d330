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

from jaxviz.graph.rewrite import Op, RuleSet, refuse
from jaxviz.rules import deeplift
from jaxviz.rules.deeplift import LAYERS, MAXIMA, MOVES, POINTWISE, PRODUCTS, SUMS


def still(array: jax.Array) -> tuple:
    """The bundle of a value that is the same at the input and the baseline."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array, array, None, None, None
    zero = jnp.zeros_like(array)
    return array, array, zero, zero, zero


def linear(op: Op) -> Callable:
    """Moves, or scales by a number of known sign: each part goes its way."""
    return _with(op, lambda inputs: lambda p, n: (_carry(op, inputs, p), _carry(op, inputs, n)))


def scaling(op: Op) -> Callable:
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
        gap = x - x0

        def carry(p, n):
            whole = p[at] + n[at]
            zero = jnp.zeros_like(whole)
            rose = jnp.where(gap > 0, whole, jnp.where(gap == 0, whole / 2, zero))
            fell = whole - rose

            def out(for_rose, for_fell):
                def layer(d, sign):
                    given = [sign(a) if i != at else d for i, a in enumerate(inputs)]
                    return op.evaluate(*given)

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


def activation(op: Op) -> Callable:
    """Of f(x0 + p + n) - f(x0) to p: what it adds, averaged over coming before and after n."""
    at = deeplift._only_moving(op)

    def split(inputs):
        x, x0, up = inputs[at][:3]
        down = (x - x0) - up

        def f(value):
            return op.evaluate(*(value if i == at else a for i, a in enumerate(inputs)))

        by_up = ((f(x0 + up) - f(x0)) + (f(x) - f(x0 + down))) / 2
        by_down = ((f(x0 + down) - f(x0)) + (f(x) - f(x0 + up))) / 2
        slope = jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

        def ratio(change, gap):
            near = jnp.abs(gap) <= deeplift._near(gap)
            return jnp.where(near, slope, change / jnp.where(near, 1, gap))

        m_up, m_down = ratio(by_up, up), ratio(by_down, down)
        return lambda p, n: (p[at] * m_up, n[at] * m_down)

    return _with(op, split)


def lumped(op: Op) -> Callable:
    """By the rule of Rescale, sorted by the sign of what comes out."""
    found = deeplift.rescale.find(op)[1] or deeplift.linear(op)

    def replaced(*inputs):
        def through(carried):
            bundles = [
                (*v[:2], c) if isinstance(v, tuple) else v
                for v, c in zip(inputs, carried, strict=True)
            ]
            return found(*bundles)

        total = [
            None if v is None else v[0] - v[1] if v[2] is not None else None
            for v in (v if isinstance(v, tuple) else None for v in inputs)
        ]
        whole = [None if not isinstance(v, tuple) or v[2] is None else v[3] + v[4] for v in inputs]
        here, there, change = through(total)
        d = through(whole)[2]
        grew = change >= 0
        zero = jnp.zeros_like(change)
        parts = jnp.where(grew, d, zero), jnp.where(grew, zero, d)
        return here, there, jnp.maximum(change, 0), *parts

    return replaced


def _with(op: Op, split: Callable) -> Callable:
    """The operation on bundles, from how it carries (p, n): the numbers too go that way."""

    def replaced(*inputs):
        columns = [[v[k] if isinstance(v, tuple) else v for v in inputs] for k in (0, 1)]
        here, there = (op.evaluate(*column) for column in columns)
        if not jnp.issubdtype(op.outputs[0].dtype, jnp.inexact):
            return here, there, None, None, None
        carry = split(inputs)
        moving = [v if isinstance(v, tuple) and v[2] is not None else None for v in inputs]
        up = [None if v is None else v[2] for v in moving]
        down = [None if v is None else v[0] - v[1] - v[2] for v in moving]
        p, n = ([None if v is None else v[k] for v in moving] for k in (3, 4))
        return here, there, carry(up, down)[0], *carry(p, n)

    if len(op.outputs) != 1:
        refuse(op)
    return replaced


def _carry(op: Op, inputs: Any, d: Any) -> jax.Array:
    """The operation's own derivative at the input along `d`."""
    bundles = [
        (v[0], v[1], c) if isinstance(v, tuple) else v for v, c in zip(inputs, d, strict=True)
    ]
    values = [v[0] if isinstance(v, tuple) else v for v in inputs]
    return deeplift._along(op.evaluate, op, bundles, values)[1]


def _apart(op: Op) -> None:
    """Groups whose members have rules of their own."""


def _quotient(op: Op) -> Callable:
    bottom = op.operands[1]
    moves = isinstance(bottom, int) and op.depends[bottom]
    return lumped(op) if moves else scaling(op)


reveal_cancel = RuleSet(
    "deep_lift",
    {
        **dict.fromkeys(MOVES, linear),
        **dict.fromkeys((*SUMS, "matmul", "conv_product"), summed),
        **dict.fromkeys(LAYERS, weighted),
        **dict.fromkeys(POINTWISE, activation),
        **dict.fromkeys((*MAXIMA, *PRODUCTS, "softmax", "log_softmax"), lumped),
        **dict.fromkeys(("mul", "neg"), scaling),
        **dict.fromkeys((*deeplift._GROUPS, "avg_pool", "mean"), _apart),
        "div": _quotient,
        "stop_gradient": deeplift.through,
    },
    default=refuse,
    named=False,
)
