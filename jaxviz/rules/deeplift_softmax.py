"""DeepLIFT through a softmax or its logarithm, exact however small or large the logits are.

With L = log sum exp x, dL = sum_j w_j d_j, where w_j is the logarithmic mean of exp x_j at both
ends over that of exp L. Then d log s_i = d_i - dL, and ds_i is the logarithmic mean of s_i times
that. The w_j are at least 0 and sum to at most 1, so nothing blows up however far the ends are.

Logits of 1e8 have shares of that size unless a multiplier of 0 is 0 to the last digit, so no weight
is the rest of a subtraction. With l = -log s, w is a weighted mean of s at both ends,

    log w = -((1 - k) l_near + k l_far),    0 <= k <= 1,

"near" being the end at which x is larger, and k the mean of -(log shrink)' between the distances
that x and L have gone. So 1 - w = -expm1(log w) has as many digits as w. Only one place can have a
w above a half; there the others' sum is taken without it.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxviz.graph.rewrite import Op, refuse
from jaxviz.rules.differences import column, gap, shrink, wide

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
        w, others, (loss, loss0) = _weights_of(x, x0, axes)
        carried = _less_the_mean(d, w, others, axes)
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        if op.kind == "softmax":
            change = jnp.where(loss == loss0, 0, loss - loss0)
            carried = jnp.exp(-jnp.minimum(loss, loss0)) * shrink(change) * carried
        return here, there, turn(after, carried).astype(here.dtype)

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


def _weights_of(x: jax.Array, x0: jax.Array, axes: Sequence[int]):
    """w and 1 - w of each place, and -log s at both ends."""
    (top, rest, losses), (top0, rest0, losses0) = (_losses(a, axes) for a in (x, x0))
    rise = gap(top, top0) + (rest - rest0)
    return *mean_weights(gap(x, x0), rise, losses, losses0), (losses, losses0)


def mean_weights(
    run: jax.Array, rise: jax.Array, losses: jax.Array, losses0: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """w and 1 - w of what went by `run`, of a sum whose logarithm rose by `rise`.

    `losses` are how far each is below that logarithm, at the input and at the baseline.
    """
    grew = run > 0
    near, far = (jnp.where(grew, *pair) for pair in ((losses, losses0), (losses0, losses)))
    both = jnp.isfinite(near) & jnp.isfinite(far)  # else exp x is 0 at an end, and w as well
    near, far = (jnp.where(both, a, 0) for a in (near, far))
    t, end = (jnp.where(both, jnp.where(grew, a, -a), 1) for a in (run, rise))
    k = _mean_fall(t, end, near - far)
    log_w = jnp.where(both, -((1 - k) * near + k * far), -jnp.inf)
    return jnp.exp(log_w), -jnp.expm1(log_w)


def _losses(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest x, log sum exp less that, and -log softmax with all digits where it is small."""
    top = x.max(axes, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0)
    others = jnp.where(_first_largest(x, axes), 0, jnp.exp(x - top)).sum(axes, keepdims=True)
    rest = jnp.log1p(others)
    return top, rest, gap(top, x) + rest


def _less_the_mean(d: jax.Array, w: jax.Array, rest: jax.Array, axes: Sequence[int]) -> jax.Array:
    """d_i - sum_j w_j d_j, with rest = 1 - w."""
    best = _first_largest(w, axes)
    parts = w * d
    others = jnp.where(best, 0, parts).sum(axes, keepdims=True)
    whole = others + jnp.where(best, parts, 0).sum(axes, keepdims=True)
    return jnp.where(best, rest * d - others, d - whole)


def _mean_fall(t: jax.Array, end: jax.Array, step: jax.Array) -> jax.Array:
    """(h(t) - h(end)) / step for h(t) = log((1 - exp -t) / t), t >= 0 and step = end - t.

    It is in [0, 1]. By its series where both are small; where the step is small beside t, and the
    digits of h would cancel, by the quotients of both factors less one.
    """
    small = jnp.maximum(t, jnp.abs(end)) < 0.1
    s, s2, product = t + end, t * t + end * end, t * end
    series = 1 / 2 - s / 24 + s * s2 / 2880 - s * (s2 * s2 - product * product) / 181440
    close = ~small & (jnp.abs(step) <= t / 2)
    t_, end_, step_ = (jnp.where(close, *pair) for pair in ((t, 1), (end, 1), (step, 0)))
    by = jnp.where(step_ == 0, 1, step_)
    fallen = jnp.exp(-jnp.minimum(t_, end_)) * jnp.sign(by) * -jnp.expm1(-jnp.abs(by))
    near = (jnp.log1p(by / t_) + jnp.log1p(fallen / jnp.expm1(-end_))) / by
    near = jnp.where(step_ == 0, 1 / t_ - 1 / jnp.expm1(t_), near)
    h = lambda t: jnp.log(shrink(t)) + jnp.maximum(-t, 0)
    far = (h(t) - h(end)) / jnp.where(step == 0, 1, step)
    return jnp.where(small, series, jnp.where(close, near, far))


def _first_largest(a: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Where the largest number along axes is, one place of each."""
    sizes = [n if i in axes else 1 for i, n in enumerate(a.shape)]
    number = jnp.arange(math.prod(sizes), dtype=jnp.int32).reshape(sizes)
    largest = a == a.max(axes, keepdims=True)
    return number == jnp.where(largest, number, number.size).min(axes, keepdims=True)
