"""The gradient by the input that methods are made of, and sums of such along a path."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import (
    chunk_length,
    default_chunk,
    is_floating,
    running_gradients,
    running_sum,
    times_weights,
    zeros_of,
)
from jaxviz.graph.affine import affine_start
from jaxviz.graph.indices import unless
from jaxviz.graph.recompute import copied, recomputed
from jaxviz.graph.rewrite import rewrite
from jaxviz.rules.fast import serving, weighed
from jaxviz.rules.unread import read_only

# FLOPs for each number that the affine start of a model makes, from which on one pullback for all
# gradients saves more than adding up what lies behind it costs: a 7x7 first layer, no 3x3 one.
PULLED = 100


def input_gradient(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """The gradient that every gradient method takes: uncompiled, to be traced inside one.

    The sum over the batch is differentiated: examples do not see each other, so each row is its own
    gradient. Nothing is pulled back to `params` nor to integer leaves of `x`, which get zeros. The
    model's slow operations are replaced by exact fast ones (`jaxviz.rules.fast`). Where a score is
    NaN so is its gradient: a ReLU hands nothing back of a NaN, which would read "nothing matters".
    """
    function = rewrite(read_only(apply_fn, params, x, target), weighed())
    gradients, scores = _with_scores(function, params, x, target)
    known = unless(jnp.isnan(scores), scores.dtype)
    rows = lambda g: g.ndim and len(g) == len(known) and is_floating(g)
    factor = lambda g: known.reshape(-1, *[1] * (g.ndim - 1)).astype(g.dtype)
    return jax.tree.map(lambda g: g * factor(g) if rows(g) else g, gradients)


def plain_gradient(function: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """The gradient of what has the fast operations already: nothing is traced for them."""
    return _with_scores(function, params, x, target)[0]


def _with_scores(function, params, x, target):
    moving, whole = _moving(x)

    def score(moving):
        scores = select(function(params, whole(moving, x)), target)
        return scores.sum(), scores

    gradients, scores = jax.grad(recomputed(score, moving), has_aux=True)(moving)
    return whole(gradients, _nothing(x)), scores


def _moving(x: Any) -> tuple[list, Callable]:
    """The floating leaves of `x`, and what puts such leaves in their places in a tree like it."""
    leaves, structure = jax.tree.flatten(x)
    moves = [is_floating(leaf) for leaf in leaves]

    def whole(moving, others):
        moving = iter(moving)
        pairs = zip(moves, jax.tree.leaves(others), strict=True)
        return jax.tree.unflatten(structure, [next(moving) if m else a for m, a in pairs])

    return [a for a, m in zip(leaves, moves, strict=True) if m], whole


def _nothing(x: Any) -> Any:
    """What integer leaves get, in floating numbers like the others."""
    return jax.tree.map(lambda a: jnp.zeros(jnp.shape(a)), x)


def gradient_sum(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target,
    term: Callable[[Callable], Callable],
    num: int,
    chunk_size: int | None,
    least: float = 0,
) -> Any:
    """`sum_k w_k grad f(x_k)`, k < `num`, `chunk_size` of them alive at once; uncompiled.

    What of the model is affine in the input is not run for each k: its pullback, being the same
    everywhere, is run once on the sum, and points on a line can be found behind it.

    Args:
      name: Of the method, for errors.
      apply_fn, params, x, target: As for every method; the points have the shapes of `x`, where
        the top class is chosen.
      term: From `start`, that takes a point to the values where the affine part ends, to a function
        `k -> (start(x_k), w_k)`.
      num: Number of terms.
      chunk_size: Of them at once; None chooses.
      least: FLOPs for each of these values from which on `start` is kept out of the sum.
    """
    begin, rest, values, pulled = _divided(apply_fn, params, x, target, num, least)
    at = term(begin)

    def one(k):
        values, weight = at(k)
        return times_weights(plain_gradient(rest, params, values, target), weight)

    if target is None:
        run = functools.partial(rest, params)
        return pulled(running_gradients(name, run, at, values, num, chunk_size))
    return pulled(running_sum(name, one, num, chunk_size, values))


def gradient_sums(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target,
    term: Callable[[Callable], Callable],
    lengths: np.ndarray,
    chunk_size: int | None,
) -> Callable[[jax.Array], Any]:
    """From a traced number i to a sum of `lengths[i]` terms, as `gradient_sum` says; one program.

    `target` is told, and `term` gives `(i, k) -> (start(x_k), w_k)`.
    """
    begin, rest, values, pulled = _divided(apply_fn, params, x, target, int(max(lengths)), 0)
    at, counts = term(begin), jnp.asarray(lengths, jnp.int32)
    given = default_chunk(values) if chunk_size is None else chunk_size
    chunk = chunk_length(name, int(max(lengths)), given)

    def one(i, k):
        values, weight = at(i, k)
        return times_weights(plain_gradient(rest, params, values, target), weight)

    def summed(i):
        def more(turn, total):
            k = turn * chunk + jnp.arange(chunk, dtype=jnp.int32)
            with copied(chunk):
                found = jax.vmap(lambda k: one(i, jnp.minimum(k, counts[i] - 1)))(k)
            live = k < counts[i]
            column = lambda a: live.reshape(-1, *[1] * (a.ndim - 1))
            return jax.tree.map(lambda t, a: t + jnp.where(column(a), a, 0).sum(0), total, found)

        nothing = zeros_of(one, jnp.int32(0), jnp.int32(0))
        return pulled(jax.lax.fori_loop(0, -(-counts[i] // chunk), more, nothing))

    return summed


def _divided(apply_fn, params, x, target, num, least):
    """What of a model is affine in `x`, the rest, the values between; the way back from these."""
    with serving(num):
        rules, apply_fn = weighed(), read_only(apply_fn, params, x, target)
    parts = affine_start(apply_fn, params, x, least, rules, weighed())
    begin = lambda x: parts.start(params, x)
    moving, whole = _moving(x)
    values, pull = jax.vjp(lambda moving: begin(whole(moving, x)), moving)

    def pulled(total):
        back = pull(jax.tree.map(lambda t, v: t.astype(v.dtype), total, values))[0]
        return whole(back, _nothing(x))

    return begin, parts.rest, values, pulled
