"""Shapley values of segments: exact by all coalitions, or sampled by permutations."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import fixed_target, is_floating, rows_of, wide
from jaxviz.engine.layout import of_places
from jaxviz.engine.rounds import (
    Moments,
    in_rounds,
    merged,
    moments,
    stops_early,
    told_by_errors,
)
from jaxviz.parts.coalitions import (
    SegmentScores,
    as_scores,
    coalition_scores,
    segmented,
    usual_segments,
)
from jaxviz.parts.places import cells_of, grid_of
from jaxviz.parts.regions import Segmented, fill_like
from jaxviz.parts.successive import successive

_ROUND = 4  # pairs of orders, between which it may stop
_LARGEST = 20  # segments of which all coalitions are evaluated: a million forward passes


@public()
@of_places
def shapley_values(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    segments: Any = None,
    num_segments: int | None = None,
    fill: Any = 0.0,
    baselines: Any = None,
    chunk_size: int | None = None,
) -> SegmentScores:
    """Each segment's fair share of the score gained over the fill: exact, for few segments.

    sum over coalitions S without g of |S|! (G - |S| - 1)! / G! * (f(S and g) - f(S)).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        numbers below 0 are never hidden; for a pytree `x` a pytree of such in one numbering, or one
        array for all leaves. None is each number of a row `[N, F]`, or token, on its own.
      num_segments: Their number, at most 20; None reads it off `segments`.
      fill: What stands in place of a hidden segment: anything that broadcasts to `x`, whole numbers
        for whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      baselines: `[B, ...]`, a sample of the data, or `[N, B, ...]`, each example's own: a hidden
        segment is theirs in turn, and a coalition's score the mean over all B, in place of `fill`;
        for a pytree a pytree of such. B times the cost.
      chunk_size: Coalitions at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `SegmentScores`; values sum to the score less that of the filled input, which is `base`;
      standard errors are 0. Costs 2 ** G forward passes.

    Raises:
      ValueError: More than 20 segments; segments that are no integers of the shape of `x`; traced
        ones without `num_segments`; a fill that does not broadcast; `chunk_size` below 1.

    Example:
      >>> net = lambda w, x: w * x[:, :1] * x[:, 1:]
      >>> shapley_values(net, 3.0, jnp.array([[2.0, 5.0]]), 0).values.tolist()
      [[15.0, 15.0]]

    Reference:
      Shapley 1953; Lundberg and Lee 2017, arXiv:1705.07874, eq. 4. "ShapleyValues" of Captum goes
      through all orders instead, G! of them.
    """
    name = "shapley_values"
    found = segmented(name, x, segments, num_segments)
    if found.count > _LARGEST:
        raise ValueError(
            f"{name}: segments must be {_LARGEST} at most, for all their coalitions are evaluated; "
            f"got {found.count}. Take fewer (`grid_segments((H, W), (4, 4))`), `shapley_sampling` "
            "or `kernel_shap`."
        )
    return _shapley_values(
        apply_fn,
        params,
        x,
        target,
        numbers=found.numbers,
        count=found.count,
        shapes=found.shapes,
        fill=fill,
        baselines=baselines,
        chunk_size=chunk_size,
    )


def _exact(
    apply_fn, params, x, target=None, *, numbers, count, shapes, fill, baselines, chunk_size
):
    name = "shapley_values"
    bits = jnp.arange(count, dtype=jnp.int32)
    coalition = lambda k: ((k >> bits) & 1).astype(bool)[None]
    arguments = (apply_fn, params, x, target, numbers, fill, coalition)
    scores = coalition_scores(name, *arguments, 2**count, chunk_size, baselines)
    # Bit g of a coalition's number says whether g is in it: halves along its axis are S, S and g.
    sizes = np.array([bin(k).count("1") for k in range(2 ** (count - 1))])
    weight = [1 / (count * math.comb(count - 1, s)) for s in range(count)]
    weights = jnp.asarray(np.asarray(weight)[sizes], scores.dtype)

    def value(g):
        halves = scores.reshape(2 ** (count - 1 - g), 2, 2**g, -1)
        gains = (halves[:, 1] - halves[:, 0]).reshape(2 ** (count - 1), -1)
        return jnp.tensordot(weights, gains, 1, precision=jax.lax.Precision.HIGHEST)

    values = jnp.stack([value(g) for g in range(count)], 1)
    return as_scores(
        values, jnp.zeros_like(values), scores[0], Segmented(numbers, count, shapes), x
    )


_exact.__name__ = "shapley_values"  # the name that its errors begin with
_shapley_values = explanation("count", "shapes", "chunk_size", sweeps=True, integers=True)(_exact)


@public(num_samples=whole(2))
@of_places
def shapley_sampling(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    segments: Any = None,
    num_segments: int | None = None,
    num_samples: int = 25,
    fill: Any = 0.0,
    baselines: Any = None,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> SegmentScores:
    """Each segment's fair share of the score gained over the fill, estimated from random orders.

    mean over orders of f(with g and all before it) - f(with all before it). Every order is walked
    forwards and backwards, which evens out much of the chance.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the orders, of which each example has its own.
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        numbers below 0 are never hidden; for a pytree `x` a pytree of such in one numbering, or one
        array for all leaves. None is a grid of 7 cells along each axis of space, or
        each number of a row `[N, F]`, or token, on its own.
      num_segments: Their number; None reads it off `segments`.
      num_samples: Pairs of orders, >= 2. Time is linear in it.
      fill: What stands in place of a hidden segment: anything that broadcasts to `x`, whole numbers
        for whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      baselines: `[B, ...]`, a sample of the data, or `[N, B, ...]`, each example's own: a hidden
        segment is theirs in turn, and a coalition's score the mean over all B, in place of `fill`;
        for a pytree a pytree of such. B times the cost.
      tolerance: Above 0, it stops after a round of 4 pairs when no standard error is above this
        share of its example's range of values, the largest less the smallest; `num_samples` is the
        most. The same key draws the same. All examples take as many as the slowest of their batch,
        so an example's result depends on what is beside it; cores do not share rounds, as they
        share draws without it. 0 takes all; reverse differentiation needs that.
      chunk_size: Coalitions at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `SegmentScores`; values sum to the score less that of the filled input, which is `base`, for
      any number of samples; standard errors are those of the mean over pairs of orders. Costs 2 *
      num_samples * (G - 1) + 2 forward passes; on a CPU, where the segments of one array are a grid
      and a fill and not a function hides them, only what each step of an order changes is run, if
      that takes fewer FLOPs.

    Raises:
      ValueError: Segments that are no integers of the shape of `x`; traced ones without
        `num_segments`; a fill that does not broadcast; `num_samples` below 2, `chunk_size` below 1.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> shapley_sampling(lambda w, x: x @ w, w, x, 0, key=jax.random.key(0)).values.tolist()
      [[1.0, -2.0]]

    Reference:
      Castro et al. 2009, Computers & Operations Research 36; the backward walk: Mitchell et al.
      2022, arXiv:2104.12199, section 4.1. Captum's "ShapleyValueSampling" walks forwards only.
    """
    name = "shapley_sampling"
    given = usual_segments(x) if segments is None else segments
    found = segmented(name, x, given, num_segments, num_samples=2 * num_samples)
    in_turn = baselines is None and not callable(fill) and not stops_early(tolerance)
    return _shapley_sampling(
        apply_fn,
        params,
        x,
        target,
        key=key,
        numbers=found.numbers,
        count=found.count,
        cells=cells_of(given, found, x) if in_turn else None,
        shapes=found.shapes,
        num_samples=num_samples,
        fill=fill,
        baselines=baselines,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )


def _sampled(
    apply_fn,
    params,
    x,
    target=None,
    *,
    key,
    numbers,
    count,
    cells,
    shapes,
    num_samples,
    fill,
    baselines,
    tolerance,
    chunk_size,
):
    name, rows = "shapley_sampling", rows_of(x)
    if stops_early(tolerance):  # of each round, and the same in all
        target = fixed_target(apply_fn, params, x, target)
    keys = jax.random.split(key, num_samples * rows).reshape(num_samples, rows)
    order = jnp.arange(count, dtype=jnp.int32)
    ranks = jax.vmap(jax.vmap(lambda k: jax.random.permutation(k, order)))(keys)  # [S, N, G]
    ranks = jnp.stack([ranks, count - 1 - ranks], 1).reshape(2 * num_samples, rows, count)
    inner = count - 1  # coalitions between the empty and the full one, which all orders share

    found = Segmented(numbers, count, shapes)

    def scored(own, first, num):
        """Scores of coalitions from `first` on: none, all, then those of the orders `own`."""

        def coalition(k):
            k = k + first
            order, size = (k - 2) // max(inner, 1), (k - 2) % max(inner, 1) + 1
            some = own[jnp.maximum(order, 0)] < size
            return jnp.where(k < 2, jnp.broadcast_to(k == 1, some.shape), some)

        arguments = (apply_fn, params, x, target, numbers, fill, coalition)
        return coalition_scores(name, *arguments, num, chunk_size, baselines)

    def gained(own, ends, walks):
        """By pairs of orders, `[P, N, G]`."""
        none, every = (jnp.broadcast_to(s, (len(own), 1, rows)) for s in ends)
        walks = walks.reshape(len(own), inner, rows)
        gains = jnp.diff(jnp.concatenate([none, walks, every], 1), axis=1)  # by place in the order
        gains = jnp.take_along_axis(gains.swapaxes(1, 2), own, axis=2)  # by segment
        return gains.reshape(-1, 2, rows, count).mean(1)

    def walked():
        """All that `scored` gives, each order walked from `x` on by what its steps change."""
        if cells is None or not is_floating(x):
            return None
        order = jnp.argsort(-ranks, axis=2).reshape(-1, count).astype(jnp.int32)
        filled, places = fill_like(name, fill, x), grid_of(cells, found)
        steps = successive(apply_fn, params, x, filled, target, places, order, chunk_size)
        if steps is None:
            return None
        hidden, clean = wide(steps)  # after each step, and before any
        walks = hidden[:-1][::-1].reshape(inner, -1, rows).swapaxes(0, 1)
        return jnp.concatenate([hidden[-1:, :rows], clean[None, :rows], walks.reshape(-1, rows)])

    if not stops_early(tolerance) or not inner:
        scores = walked()
        if scores is None:
            scores = scored(ranks, 0, 2 + 2 * num_samples * inner)
        pairs = gained(ranks, scores[:2], scores[2:])
        errors = pairs.std(0, ddof=1) / math.sqrt(num_samples)
        return as_scores(pairs.mean(0), errors, scores[0], found, x)
    ends, at_once = scored(ranks, 0, 2), min(_ROUND, num_samples)

    def draw(so_far, turn):
        pair = turn * at_once + jnp.arange(at_once, dtype=jnp.int32)
        own = ranks.reshape(num_samples, 2, rows, count)[jnp.minimum(pair, num_samples - 1)]
        own = own.reshape(-1, rows, count)
        gains = gained(own, ends, scored(own, 2, len(own) * inner))
        return merged(so_far, moments(gains, pair < num_samples))

    nothing = jnp.zeros((rows, count), ends.dtype)
    rounds, start = -(-num_samples // at_once), Moments(jnp.int32(0), nothing, nothing)
    seen = in_rounds(start, draw, told_by_errors, rounds, tolerance)
    return as_scores(seen.mean, seen.errors, ends[0], found, x)


_sampled.__name__ = "shapley_sampling"
_shapley_sampling = explanation(
    *("count", "cells", "shapes", "num_samples", "chunk_size"),
    nonzero=("tolerance",),
    sweeps=True,
    integers=True,
)(_sampled)
