"""DeepLIFT of h - softplus(logsumexp h): the logarithm of a softmax with one more logit of 0.

Of each by itself the softplus has a slope of nearly 1, and at logits of 1e8 what is left of 1 less
that is noise. With the logit that is not there written out it is a `log_softmax`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxviz.graph import quotients
from jaxviz.graph.rewrite import Op
from jaxviz.rules.deeplift_exponentials import Sums
from jaxviz.rules.deeplift_origins import MOST, MOVING, Way, ways
from jaxviz.rules.deeplift_softmax import less_the_mean, log_mean, losses_of
from jaxviz.rules.differences import column, finite, moves, wide

_PLAIN = MOVING | frozenset("abs add exp log reduce_sum select_n sign sub".split())


def less_softplus(op: Op) -> Callable | None:
    """h less the softplus of its log-sum-exp along an axis; None for every other difference."""
    one, other = op.operands
    if op.primitive != "sub" or one == other or not (moves(op, one) and moves(op, other)):
        return None
    made = _log_sum(op, other)
    if made is None:
        return None
    total, h, axis = made
    shape = op.outputs[0].shape
    if h != op.node.inputs[one] or math.prod(shape) >= MOST:  # type: ignore[index]
        return None

    def replaced(*inputs):
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        bundle = [wide(a) for a in inputs[one]]  # type: ignore[index]
        nothing = jnp.zeros_like(jnp.take(bundle[0], jnp.array([0]), axis))
        x, x0, d = (jnp.concatenate([a, nothing], axis) for a in bundle)
        mean = log_mean(*(losses_of(a, (axis,)) for a in (x, x0)))
        less = less_the_mean(d, mean, lambda a: a.sum(axis, keepdims=True))
        own = finite(jnp.take(less, jnp.arange(shape[axis]), axis)).astype(here.dtype)
        rows = jnp.arange(nothing.size, dtype=jnp.float32).reshape(nothing.shape)
        same = rows == total.numbered(rows.reshape(total.given[0].shape))
        a, b = (inputs[o][2] for o in op.operands)  # type: ignore[index]
        apart = jnp.where(same, 0, a) - jnp.where(same, 0, b)
        return here, there, jnp.where(same, own, apart)

    return replaced


def _log_sum(op: Op, at: Any) -> tuple | None:
    """How an operand came from L, of which it is the softplus, what L is the log-sum-exp of, and
    along which axis."""
    softplus = _furthest(op, at)
    maker = softplus.maker
    if softplus.won or maker is None or maker.kind != "softplus" or sum(maker.depends) != 1:
        return None
    total = _furthest(maker, maker.depends.index(True))
    group = total.maker
    if total.won or group is None or group.kind != quotients.SUMS or len(group.outputs) != 1:
        return None
    sums = Sums(group)
    members = dict(enumerate(group.members, sums.first))
    summed = [
        (reads[0], m.options["axes"])
        for m, reads in members.values()
        if m.primitive == "reduce_sum"
    ]
    if sums.how != "add" or len(sums.places) != 1 or len(summed) != 1:
        return None
    if any(m.primitive not in _PLAIN for m, _ in members.values()):
        return None
    (own,), ((read, axes),) = sums.places, summed
    shift, reads = members.get(sums.exponent(own), (None, ()))
    if read != own or shift is None or shift.kind != quotients.SHIFTED or len(axes) != 1:
        return None
    h = reads[shift.operands[0]]  # type: ignore[index]
    if h >= sums.first or not group.depends[h]:
        return None
    numbered = lambda rows: softplus.numbered(total.numbered(rows))
    return total._replace(numbered=numbered), group.node.inputs[h], axes[0]


def _furthest(op: Op, at: Any) -> Way:
    """Where an operand was first."""
    *_, way = ways(op, at)
    return way
