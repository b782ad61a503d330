"""Gradients gathered along paths that bend: guided by small gradients, and out of a blur."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attribution.path import Rule, baseline_like, between, moved as difference_of, quadrature
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import (
    at_least_float32,
    check_one_array,
    fixed_target,
    running_sum,
    stacked,
)
from jaxviz.engine.shares import width
from jaxviz.graph.indices import unless
from jaxviz.graph.recompute import recomputed
from jaxviz.graph.rewrite import rewrite
from jaxviz.parts.gradients import input_gradient
from jaxviz.parts.successive import one_by_one
from jaxviz.rules.fast import serving, weighed
from jaxviz.rules.ties import shared_ties

_PARTS = 16  # of a row
_LONG = 2**15  # numbers of a row that is read some dozens of times
_ALIVE = 2**16  # numbers of the examples on their paths at once
_SHORT = 48  # places of an axis, on which halves cost more to cut than they save
_FEW = 2  # examples, which take less time each than one


@explanation("num_steps", "fraction", "max_distance", sweeps=True)
def guided_integrated_gradients(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    baseline: Any = None,
    num_steps: int = 200,
    fraction: float = 0.25,
    max_distance: float = 0.02,
) -> jax.Array:
    """Integrated gradients along a path that moves first those inputs that hardly matter.

    sum_k g_k * (x_{k+1} - x_k), where step k shortens the L1 distance to `x` by an equal share, in
    the `fraction` of inputs with the smallest |gradient|, next fraction, and so on; no input strays
    more than `max_distance` of its own way from the straight line. g_k lies between the gradients
    at both ends of the step, where it sums to the score gained on it (half way if nowhere). Equal
    winners of a max pooling share its gradient (`rules.shared_ties`).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baseline: `[...]` or `[N, ...]`, or a number: where the path starts. None is zeros.
      num_steps: Steps of the path, >= 1, one gradient each and one more, one after another. On a
        CPU some examples at a time go all the way, which cores share.
      fraction: Share of the inputs that is moved at a time, in (0, 1].
      max_distance: Largest lead or lag of an input, as a share of its whole way, >= 0. At 0 the
        path is straight.

    Returns:
      The shape of `x`, in units of the explained output. Sums over an example to the score gained,
      up to rounding and to steps too long for such a g_k (`completeness_gap` measures it).

    Raises:
      ValueError: `x` is no single array; `baseline` does not broadcast to `x`; an option is out of
        its range.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> guided_integrated_gradients(lambda w, x: x @ w, w, x, 0).round(4).tolist()
      [[1.0, -2.0]]

    Reference:
      Kapishnikov et al. 2021, arXiv:2106.09788, algorithm 1, defaults as in its authors' code. The
      fraction is of all inputs, those that already moved as far as they may counted last, as there.
      The path is theirs; they take the gradient where a step starts. Behind a maximum the path
      moves whoever does not win until it wins, and so on: each step starts where what it moves has
      no gradient, and a part of the score is in no step, however many there are.
    """
    name = "guided_integrated_gradients"
    check_one_array(name, x)
    start = baseline_like(name, baseline, x)
    target = fixed_target(apply_fn, params, x, target)
    path = functools.partial(_along_guided, apply_fn, params, num_steps, fraction, max_distance)
    size = _together(apply_fn, params, x, target)
    if size == len(x):
        return path(x, start, target)
    labels: Any = target  # a class, or one for each example

    def some(k):
        rows = lambda a: jax.lax.dynamic_slice_in_dim(a, k * size, size)
        return path(rows(x), rows(start), rows(labels) if jnp.ndim(labels) else labels)

    work = jax.ShapeDtypeStruct((size * num_steps, *x.shape[1:]), x.dtype)
    found = stacked(name, some, len(x) // size, None, work, lambda cores: cores)
    return found.reshape(x.shape)


def _together(apply_fn, params, x, target):
    """How many examples go along their paths together: as many as fit the caches, where the model
    gives each alone what it gives it among others, and cores share the rest."""
    alone = jax.default_backend() == "cpu" and len(jax.local_devices()) == 1
    if not alone or callable(target) or len(x) == 1:
        return len(x)  # several devices have shares of the batch, mostly
    numbers = x[0].size
    fit = max(_FEW, min(_ALIVE // max(numbers, 1), len(x) // width()))
    sizes = [n for n in range(_FEW, len(x)) if len(x) % n == 0 and n <= fit]
    if fit >= len(x) or not sizes or not one_by_one(apply_fn, params, x):
        return len(x)
    return max(sizes)


def _along_guided(apply_fn, params, num_steps, fraction, max_distance, x, start, target):
    difference = difference_of(x, start)
    way = jnp.abs(difference).reshape(x.shape[0], -1)
    whole = way.sum(1)

    with serving(num_steps):
        fast = weighed()
    # Flat images tie in every window: the path would start towards the first places.
    fair = rewrite(rewrite(apply_fn, shared_ties), fast)

    def ends(moved):  # the share of its way that each input has gone, [N, inputs]
        at = between(start, x, moved.reshape(x.shape))
        score_at = recomputed(lambda at: select(fair(params, at), target), at)
        score, pull = jax.vjp(score_at, at)
        (gradient,) = pull(jnp.ones_like(score))
        return gradient.astype(way.dtype), score.astype(way.dtype)

    def step(carry, k):
        moved, gradient, score, total = carry
        share = k / num_steps
        least, most = jnp.maximum(share - max_distance, 0), jnp.minimum(share + max_distance, 1)
        there = jnp.maximum(moved, least)
        short = jnp.where(k > 0, (way * (1 - there)).sum(1) - whole * (1 - share), 0)
        slope = jnp.abs(gradient).reshape(way.shape)
        there = _advance_rows((there, way, slope, short), most, fraction)
        ahead, reached = ends(there)
        step = (there - moved).reshape(x.shape)
        part = _between_ends(gradient, ahead, difference * step, reached - score)
        return (there, ahead, reached, total + part * step), None

    # At the start, too, the gradient is taken in the loop, by a step of no length: a program of its
    # own would take as long to compile as all the rest.
    begin = (*map(jnp.zeros_like, (way, difference, whole, difference)),)
    (*_, total), _ = jax.lax.scan(step, begin, jnp.arange(num_steps + 1, dtype=way.dtype))
    # Without a finite way there is no path; a ReLU's slope of 0 there would look like one.
    known = unless(~jnp.isfinite(whole), way.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return (difference * total * known).astype(x.dtype)


def _between_ends(gradient, ahead, way, gained):
    """The gradient between those at both ends of a step that makes up the score gained on it.

    With one kink of the net on the step that is the mean along it, wherever the kink is.
    """
    rows = way.reshape(way.shape[0], -1)
    made, turned = ((g.reshape(rows.shape) * rows).sum(1) for g in (gradient, ahead - gradient))
    where = (gained - made) / jnp.where(turned == 0, 1, turned)
    where = jnp.where((turned == 0) | ~jnp.isfinite(where), 0.5, jnp.clip(where, 0, 1))
    where = where.reshape(-1, *[1] * (way.ndim - 1))
    return gradient * (1 - where) + ahead * where


def _advance_rows(rows, most, fraction):
    """`_advance` of the first four arguments; one row after another where many leave the caches."""

    def advance(rows):
        moved, way, slope, short = rows
        return _advance(moved, way, slope, short, most, fraction)

    count, numbers = rows[0].shape
    if jax.default_backend() != "cpu" or count == 1 or numbers < _LONG:
        return advance(rows)
    return jax.lax.map(lambda row: advance([a[None] for a in row])[0], rows)


def _advance(moved, way, slope, short, most, fraction):
    """Moves inputs of small `slope` up to `most` until each L1 distance has shrunk by `short`.

    Groups of the `fraction` smallest slopes (ties together) go all the way, one after another; the
    group that closes the gap goes a part of it. All are `[N, inputs]`, but `short`, `[N]`.
    """
    column = lambda a: a[:, None]
    may = (moved < most) & (way > 0)  # an input with nowhere to go takes no place in a group
    room = jnp.where(may, way * (most - moved), 0)
    ranks = _in_order(jnp.where(may, slope, jnp.inf))
    last = ranks.shape[1] - 1
    group = math.floor(fraction * last)
    floor = jnp.zeros_like(ranks[:, 0])

    def take(carry):
        end, before, full, partial, part, left = carry
        open_ = left > 0
        border, among = _parted(ranks, jnp.minimum(end + group, last))
        within = ranks <= column(border)
        taken = jnp.where(within & ~(column(before) & (ranks <= column(full))), room, 0)
        gain = taken.sum(1)
        enough = gain >= left
        all_of_it, some_of_it = open_ & ~enough, open_ & enough
        part = jnp.where(some_of_it, left / jnp.where(gain > 0, gain, 1), part)
        return (
            among,
            before | all_of_it,
            jnp.where(all_of_it, border, full),
            jnp.where(some_of_it, border, partial),
            part,
            jnp.where(enough, 0, left - gain),
        )

    def turn(carry, _):
        # Mostly the first group is enough.
        return jax.lax.cond((carry[-1] > 0).any(), take, lambda carry: carry, carry), None

    rows = jnp.zeros_like(floor, jnp.int32)  # which vary inside shard_map as the others do
    begin = rows, rows > 0, floor, floor, jnp.zeros_like(short), short
    groups = math.ceil(ranks.shape[1] / (group + 1))
    (_, some, full, partial, part, _), _ = jax.lax.scan(turn, begin, None, groups)
    # A row whose gap was closed has a border of its last group; others went as far as they may.
    closed = part > 0
    here = moved + column(part) * (most - moved)
    moved = jnp.where(column(closed) & (ranks <= column(partial)), here, moved)
    return jnp.where(column(some) & (ranks <= column(full)), most, moved)


def _in_order(a):
    """Whole numbers without a sign in the order of `a`, which has none below 0; NaN comes last."""
    return jax.lax.bitcast_convert_type(a, jnp.dtype(f"uint{8 * a.dtype.itemsize}"))


def _parted(numbers, place):
    """What parts the numbers of each row up to that at `place` of their order from the larger ones:
    the largest that belongs to those, and how many these are, equal ones together.

    The numbers are below half of what their type holds. They are halved bit by bit until no row has
    more between what is and what is not among them (a sort takes 30 times more).
    """
    dtype, bits = numbers.dtype, 8 * numbers.dtype.itemsize - 1
    power = lambda bit: jnp.left_shift(jnp.ones((), dtype), bit.astype(dtype))

    def open_(carry):
        bit, _, among = carry
        return (bit > 0) & (among > place + 1).any()

    def halve(carry):
        bit, least, among = carry  # `among` are below least + 2 ** bit
        middle = least | power(bit - 1)
        fewer = _below(numbers, middle)
        above = fewer <= place
        return bit - 1, jnp.where(above, middle, least), jnp.where(above, among, fewer)

    all_ = jnp.full_like(place, numbers.shape[1])
    begin = jnp.int32(bits), jnp.zeros_like(numbers[:, 0]), all_
    bit, least, among = jax.lax.while_loop(open_, halve, begin)
    return least | (power(bit) - 1), among


def _below(numbers, limit):
    """How many numbers of each row are below a limit.

    XLA's CPU backend counts along a row one by one, and parts of it side by side four times faster.
    """
    size = numbers.shape[1] // _PARTS
    cuts = [slice(i * size, (i + 1) * size) for i in range(_PARTS)]
    found = [(numbers[:, cut] < limit[:, None]).astype(jnp.int32) for cut in cuts]
    rest = (numbers[:, _PARTS * size :] < limit[:, None]).sum(1, dtype=jnp.int32)
    return sum(found[1:], found[0]).sum(1, dtype=jnp.int32) + rest


@explanation("max_sigma", "num_steps", "rule", "chunk_size", sweeps=True, places=True)
def blur_integrated_gradients(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    max_sigma: float = 50.0,
    num_steps: int = 100,
    rule: Rule = "gausslegendre",
    chunk_size: int | None = None,
) -> jax.Array:
    """Integrated gradients along the path on which a blurred image comes into focus: no baseline.

    -integral over s in [0, max_sigma] of grad f(x_s) * d x_s / d s, x_s = x blurred by a Gaussian
    of s pixels; beyond the border the image is 0.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, one array; one to three axes of space.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      max_sigma: Standard deviation of the strongest blur, in pixels, > 0.
      num_steps: Points on the path, >= 1. Time is linear in it, memory constant.
      rule: Where the points lie, as for `integrated_gradients`.
      chunk_size: Points of the path at once, for all N examples. None goes by `x` and the cores.

    Returns:
      The shape of `x`, in units of the explained output. Sums over an example to the score of `x`
      less that of `x` blurred by `max_sigma`, up to the error of the quadrature.

    Raises:
      ValueError: `x` has no axis of space; an option is out of its range; `rule` is unknown.

    Example:
      >>> x = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)
      >>> out = blur_integrated_gradients(lambda _, x: x[:, 2, 2], None, x, 0, max_sigma=9.0)
      >>> float(out.sum().round(2))  # the spot's light, less what is left of it
      1.0

    Reference:
      Xu et al. 2020, arXiv:2004.03383, eq. 7. The authors' code takes left ends of 100 equal steps
      of s, a finite difference for d x_s / d s and a Gaussian cut at 4 s; here the derivative is
      exact, the Gaussian is cut where float32 ends, and points are Gauss-Legendre unless `rule`
      says otherwise.
    """
    name = "blur_integrated_gradients"
    check_one_array(name, x)
    if x.ndim < 3:
        raise ValueError(
            f"{name}: x must be [N, *space, C]; got x {x.shape}. Give an image a channel axis: "
            "x[..., None]."
        )
    points, weights = quadrature(name, rule, num_steps)
    wide = at_least_float32(x)
    target = fixed_target(apply_fn, params, x, target)
    sharp = jnp.moveaxis(x.astype(wide), -1, 1)

    def at(sigma):
        return jnp.moveaxis(_blur(sharp, sigma, max_sigma), 1, -1)

    def term(k):
        sigma = points[k].astype(wide) * max_sigma
        blurred, speed = jax.jvp(at, (sigma,), (jnp.ones_like(sigma),))
        gradient = input_gradient(apply_fn, params, blurred.astype(x.dtype), target)
        return gradient.astype(wide) * speed * weights[k].astype(wide)

    return (-max_sigma * running_sum(name, term, num_steps, chunk_size, x)).astype(x.dtype)


def _blur(x, sigma, max_sigma):
    """Gaussian blur of all axes but the first two, by one matrix an axis."""
    narrow = sigma <= 0
    safe = jnp.where(narrow, 1, sigma)
    reach = math.ceil(9 * max_sigma) + 1

    def bell(offset):
        height = jnp.exp(-((offset / safe) ** 2) / 2)
        return jnp.where(narrow, (offset == 0).astype(x.dtype), height)

    mass = bell(jnp.arange(-reach, reach + 1, dtype=x.dtype)).sum()
    # Each in its turn is the last, where a product of matrices copies nothing.
    for _ in range(2, x.ndim):
        x = jnp.moveaxis(_mixed(x, lambda offset: bell(offset) / mass), -1, 2)
    return x


def _mixed(x, bell):
    """`x @ m` with `m[i, j] = bell(i - j)`, a function of the distance alone.

    Such a matrix keeps what is even about the middle apart from what is odd: two products of half
    the size.
    """
    size = x.shape[-1]
    product = lambda a, m: jnp.matmul(a, m, precision=jax.lax.Precision.HIGHEST)
    if size <= _SHORT:
        place = jnp.arange(size, dtype=x.dtype)
        return product(x, bell(place[None, :] - place[:, None]))
    half = (size + 1) // 2
    place = jnp.arange(half, dtype=x.dtype)
    to, own = place[None, :], place[:, None]
    once = jnp.where(2 * own == size - 1, 0.25, 0.5).astype(x.dtype)  # the middle is its own mirror
    near, far = bell(to - own), bell(size - 1 - to - own)
    one, mirrored = x[..., :half], x[..., ::-1][..., :half]
    even = product(one + mirrored, once * (near + far))
    odd = product(one - mirrored, once * (near - far))
    return jnp.concatenate([even + odd, (even - odd)[..., : size - half][..., ::-1]], -1)
