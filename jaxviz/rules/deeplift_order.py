"""DeepLIFT through maxima, sorting and medians: who explains that an order statistic changed.

A maximum that grew belongs to the place that is largest now, one that fell to the place that was
largest. In general, where the k-th smallest number grew from y0 to y, at least one place went from
y0 or less to y or more (k places were at y0 or less, n - k + 1 are at y or more): it moved at least
as far, and explains the change. Where there are several they share it equally. So no multiplier is
larger than 1, and sorting, top k, medians and maxima have one rule.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.graph.rewrite import Op, refuse
from jaxviz.rules.deeplift_integers import known, number, overtakes
from jaxviz.rules.differences import along, bundled, column, divided, finite, gap, is_float, shrink

FALLS = ("min", "reduce_min", "reduce_window_min", "cummin", "scatter-min")


def extreme(evaluate: Callable, inputs: Sequence[Any], falls: bool):
    """A maximum (minimum if it `falls`) by the winner at the input or at the baseline."""

    def share(v):  # what is carried, as a part of the difference it stands for
        if not isinstance(v, tuple):
            return v
        return v[0], v[1], divided(v[2], gap(v[0], v[1]).astype(v[2].dtype))

    shares = [share(v) for v in inputs]
    here, winner_here = along(evaluate, shares, column(inputs, 0))
    there, winner_there = along(evaluate, shares, column(inputs, 1))
    change = finite(gap(here, there)).astype(here.dtype)
    grew = (change < 0) if falls else (change >= 0)
    return here, there, change * jnp.where(grew, winner_here, winner_there)


def ordered(op: Op) -> Callable | None:
    """Sorting and top k. Costs the square of the length: each place against each rank.

    Whole numbers that come along (the places of the largest) change as `_overtaken` says.
    """
    moving = [i for i, d in enumerate(op.depends) if d]
    key: Any = op.operands[0]
    keys = op.options.get("num_keys", 1)
    if not op.operands[:keys] or not any(o in moving for o in op.operands[:keys]):
        return None  # sorted by what stays where it is: places move, no more
    floats = [i for i, a in enumerate(op.inputs) if is_float(a)]
    if keys > 1 or floats != [
        op.operands[0]
    ]:  # the order of one thing by another has no difference
        refuse(op)
    axis = op.options["dimension" if op.primitive == "sort" else "axis"]
    falls = op.primitive == "top_k"

    def replaced(*inputs):
        x, x0, d = (jnp.moveaxis(a, axis, -1)[..., None, :] for a in inputs[key])
        one = len(op.outputs) == 1
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        y, y0 = (jnp.moveaxis(v if one else v[0], axis, -1)[..., None] for v in (here, there))
        rose, fell = (x0 <= y0) & (x >= y), (x0 >= y0) & (x <= y)
        explains = jnp.where(y >= y0, rose, fell).astype(d.dtype)
        explains /= jnp.maximum(explains.sum(-1, keepdims=True), 1)
        change = finite(gap(y, y0)).astype(d.dtype)
        share = divided(d, gap(x, x0).astype(d.dtype))
        carried = jnp.moveaxis((change * explains * share).sum(-1), -1, axis)
        if one:
            return here, there, carried
        if not known(inputs) or any(op.depends[i] for i in moving if i != key):
            return bundled(op, here, there, [carried, *here[1:]])
        part = jnp.moveaxis(_overtaken(x, x0, d, y.shape[-2], falls), -1, axis)
        along = [gap(*map(number, pair)) for pair in zip(here[1:], there[1:], strict=True)]
        rest = [change * part.astype(change.dtype) for change in along]
        return list(zip(here, there, [carried, *rest], strict=True))

    return replaced


def _overtaken(x: jax.Array, x0: jax.Array, d: jax.Array, ranks: int, falls: bool) -> jax.Array:
    """Of each rank, the part of its change of place that is carried; `[..., ranks]`.

    The place that had the rank has lost it because others overtook it, or fell behind it, as
    `overtakes` says. That is the new place of the rank, if it is among them; else all of them in
    equal parts. Places alike keep their order.

    Args:
      x, x0, d: `[..., 1, places]`.
      ranks: How many ranks are asked for.
      falls: Whether the largest comes first.
    """
    first, last = (1,) * (x.ndim - 2), x.shape[-1]
    place = jnp.arange(last, dtype=jnp.int32)
    earlier = (place[None, :] < place[:, None]).reshape(*first, last, last)
    asked = jnp.arange(ranks, dtype=jnp.int32).reshape(*first, ranks, 1)

    def before(a: jax.Array) -> jax.Array:  # [..., i, j]: whether j comes before i
        mine = jnp.swapaxes(a, -1, -2)
        return (a > mine if falls else a < mine) | ((a == mine) & earlier)

    here, there = before(x), before(x0)
    rank, rank0 = (a.sum(-1, keepdims=True, dtype=jnp.int32) for a in (here, there))
    new, old = (jnp.swapaxes(r, -1, -2) == asked for r in (rank, rank0))  # [..., ranks, places]
    which = jnp.argmax(old, -1)[..., None]
    of_old = lambda a: jnp.take_along_axis(a, which, -2)
    crossed = jnp.where(of_old(rank) > asked, of_old(here & ~there), of_old(there & ~here))
    explains = jnp.where((crossed & new).any(-1, keepdims=True), crossed & new, crossed)
    part = overtakes((x, x0, d), tuple(of_old(jnp.swapaxes(a, -1, -2)) for a in (x, x0, d)))
    count = jnp.maximum(explains.sum(-1, dtype=part.dtype), 1)
    return jnp.where(explains, part, 0).sum(-1) / count


def multiplied(op: Op) -> Callable:
    """Products of many numbers: the mean derivative on the straight way between both ends.

    Gauss and Legendre's points make it exact, for it is a polynomial; with two factors it is the
    derivative half way. Costs half as many evaluations as there are factors.
    """
    axes = op.options["axes"] if op.primitive == "reduce_prod" else (op.options["axis"],)
    factors = math.prod(op.inputs[0].shape[axis] for axis in axes)
    points, weights = np.polynomial.legendre.leggauss(max(1, (factors + 1) // 2))

    def replaced(bundle):
        x, x0, d = bundle
        here, there = op.evaluate(x), op.evaluate(x0)

        def add(total, point):
            t, weight = point
            _, part = jax.jvp(op.evaluate, (x0 * (1 - t) + x * t,), (d,))
            return total + weight * part, None

        given = tuple(jnp.asarray(a / 2, x.dtype) for a in (points + 1, weights))
        carried, _ = jax.lax.scan(add, jnp.zeros_like(here), given)
        return here, there, carried

    return replaced


def log_sums(op: Op) -> Callable:
    """The running logarithm of a sum of exponentials, by logarithmic means as in softmax."""
    axis, reverse = op.options["axis"], op.options["reverse"]

    def both(left, right):
        ends = [jnp.logaddexp(a, b) for a, b in zip(left[:2], right[:2], strict=True)]
        top = jnp.maximum(*ends)

        def part(x, x0, d):
            weight = jnp.exp(gap(jnp.maximum(x, x0), top).astype(d.dtype))
            return d * weight * shrink(gap(x, x0)).astype(d.dtype)

        carried = (part(*left) + part(*right)) / shrink(gap(*ends)).astype(top.dtype)
        return *ends, carried

    return lambda bundle: tuple(jax.lax.associative_scan(both, bundle, reverse, axis))
