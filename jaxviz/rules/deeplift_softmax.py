"""DeepLIFT through a softmax or its logarithm, exact however small or large the logits are.

With m_j the logarithmic mean of s_j at both ends, s_j - s0_j = m_j (d_j - dL), where L = log sum
exp x. As all s_j sum to 1 at both ends, dL = sum_j w_j d_j for w_j = m_j / sum_k m_k: then
d log s_i = d_i - dL, and ds_i is m_i times that. The w_j sum to 1, so that a number added to all
logits has no share in a softmax, and no |m_i w_j (d_i - d_j)| is above 2, however far the ends are.

Logits of 1e8 have shares of that size unless a multiplier of 0 is 0 to the last digit, so no weight
is the rest of a subtraction: only one place can have a w above a half, and there 1 - w is the sum
of the others.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.rewrite import Op, refuse
from jaxviz.rules.differences import divided, gap, shrink, wide

TURNS = ("transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "rev")


def softmax(op: Op) -> Callable | None:
    """Softmax or its logarithm, over any axes and with the axes in any order, as `vmap` writes."""
    at = op.depends.index(True)
    if sum(op.depends) > 1:
        refuse(op)
    found = layout(op, at)
    if found is None:
        return None
    before, axes, after = found
    turn = lambda steps, a: functools.reduce(lambda a, step: step.evaluate(a), steps, a)

    def replaced(*inputs):
        x, x0, d = (turn(before, wide(a)) for a in inputs[at])
        losses = [losses_of(a, axes) for a in (x, x0)]
        mean = log_mean(*losses)
        carried = less_the_mean(d, mean, lambda a: a.sum(axes, keepdims=True))
        ends = [-loss for loss in losses]
        if op.kind == "softmax":
            carried, ends = mean * carried, [jnp.exp(log) for log in ends]
        defined = [jnp.isfinite(a.max(axes, keepdims=True)) for a in (x, x0)]
        ends = [jnp.where(at, a, jnp.nan) for at, a in zip(defined, ends, strict=True)]
        here, there, carried = (
            turn(after, a).astype(op.outputs[0].dtype) for a in (*ends, carried)
        )
        return here, there, carried

    return replaced


def layout(op: Op, at: int) -> tuple[Sequence[Op], tuple[int, ...], Sequence[Op]] | None:
    """What turns the input to where its exponentials are summed, over which axes, and back."""
    size = op.inputs[at].size
    turned: dict[int, tuple[Op, ...]] = {at: ()}
    summed = None
    for i, (member, reads) in enumerate(op.members, len(op.inputs)):
        steps = next((turned[r] for r in reads if r in turned), None)
        if steps is None:
            continue
        if member.primitive == "reduce_sum":
            summed = steps, tuple(member.options["axes"])
        elif not member.primitive.startswith("reduce") and member.outputs[0].size == size:
            turned[i] = (*steps, member) if member.primitive in TURNS else steps
    whole = turned.get(len(op.inputs) + len(op.members) - 1)
    if summed is None or whole is None or whole[: len(summed[0])] != summed[0]:
        return None
    return *summed, whole[len(summed[0]) :]


def log_mean(loss: jax.Array, loss0: jax.Array) -> jax.Array:
    """The logarithmic mean of exp -loss and exp -loss0; nothing where one of them is nothing."""
    change = jnp.where(loss == loss0, 0, loss - loss0)
    return jnp.exp(-jnp.minimum(loss, loss0)) * shrink(change)


def less_the_mean(
    d: jax.Array,
    mean: jax.Array,
    total: Callable,
    counted: Any = 1,
    beside: tuple[Any, Any] = (0, 0),
) -> jax.Array:
    """d_i - (sum_j m_j d_j + b) / (sum_j m_j + a) for (a, b) = `beside`, with all digits.

    `total` is the sum of each place's row, in which a place is `counted` so often.
    """
    whole = total(mean) + beside[0]
    big = mean * counted > whole / 2
    parts = mean * d
    rest, others = (
        total(jnp.where(big, 0, a)) + b for a, b in zip((mean, parts), beside, strict=True)
    )
    less = d - divided(others + total(jnp.where(big, parts, 0)), whole)
    return jnp.where(big, divided(rest, whole) * d - divided(others, whole), less)


def losses_of(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """-log softmax, with all digits where it is small.

    Where XLA makes x twice, rounded in two ways, none may equal its maximum, or one be above it.
    """
    first = _first_largest(x, axes)
    top = jnp.where(first, x, -jnp.inf).max(axes, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0)
    below = jnp.where(first, 0, jnp.maximum(gap(top, x), 0))
    others = jnp.where(first, 0, jnp.exp(-below)).sum(axes, keepdims=True)
    return below + jnp.log1p(others)


def _first_largest(a: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Where the largest number along axes is, one place of each."""
    sizes = [n if i in axes else 1 for i, n in enumerate(a.shape)]
    number = jnp.arange(math.prod(sizes), dtype=jnp.int32).reshape(sizes)
    number = jnp.broadcast_to(number, a.shape)

    def larger(one, other):
        (a, i), (b, j) = one, other
        mine = (a > b) | ((a == b) & (i < j))
        return jnp.where(mine, a, b), jnp.where(mine, i, j)

    given = jax.lax.stop_gradient(a), number
    least = jnp.asarray(-jnp.inf, a.dtype), jnp.int32(math.prod(sizes))
    _, found = jax.lax.reduce(given, least, larger, tuple(axes))
    return number == jnp.expand_dims(found, tuple(axes))
