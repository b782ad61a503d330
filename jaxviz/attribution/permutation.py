"""Feature permutation: what the score loses when a segment is taken from another example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.public import public
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import (
    at_least_float32,
    fixed_target,
    outputs_of_copies,
    rows_of,
    stacked,
)
from jaxviz.engine.layout import of_places
from jaxviz.engine.rounds import FEW, mean_until, stops_early
from jaxviz.parts.covered import covered
from jaxviz.parts.places import stretches, where_of
from jaxviz.parts.regions import Segmented, each_number, laid_out, numbered, segments_like


@public()
@of_places
def feature_permutation(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    segments: Any = None,
    num_segments: int | None = None,
    num_samples: int = 5,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Any:
    """How much of the score is lost when a segment of the input is that of another example.

    f(x) - mean_j f(x with segment g from example p_j(n)), at every place of g; p_j sends each of
    the N examples to another one, a random order taken round by one.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such; N >= 2, for the
        batch is what values are drawn from: what a segment replaces is as usual as the batch is.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the draws, which are the same whatever `chunk_size` is.
      segments, num_segments: As for `feature_ablation`: None is every number on its own, and the
        columns of a table are `x` `[N, F]`, for which that is right.
      num_samples: Orders a segment, >= 1. Time is linear in it, memory constant.
      tolerance: Above 0, it stops after a round of 8 orders a segment when no standard error is
        above this share of its example's range of values, the largest less the smallest;
        `num_samples` is the most. The same key draws the same. All examples take as many as the
        slowest of their batch, and cores do not share rounds. 0 takes all; reverse differentiation
        needs that.
      chunk_size: Changed batches at once. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, or the shape of `x` where segments have its channel axis, in units of the
      explained output; for a pytree `x` a pytree of such. Its mean over examples is a segment's
      permutation importance (`permutation_importance`, with standard errors). Costs
      `num_samples` forward passes a segment, or as many times what of one changes with it, as
      `feature_ablation` has it.

    Raises:
      ValueError: One example alone; segments that are no integers of the shape of `x`; traced ones
        without `num_segments`; `num_samples` or `chunk_size` below 1.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [0.0]]), jnp.array([[3.0, 1.0], [1.0, 2.0]])
      >>> feature_permutation(net, w, x, 0, key=jax.random.key(0)).tolist()
      [[2.0, 0.0], [-2.0, 0.0]]

    Reference:
      Breiman 2001, Random forests, section 10; "FeaturePermutation" of Captum, which draws one
      order a feature, in which an example may keep its own.
    """
    name = "feature_permutation"
    if rows_of(x) == 1:
        raise ValueError(
            f"{name}: x must hold two examples or more, for values are drawn from the others; got "
            "one. Explain it within a batch, or take `feature_ablation`."
        )
    if segments is None:
        segments = numbered(x, each_number)
    found = segments_like(name, segments, x, num_segments)
    return _feature_permutation(
        apply_fn,
        params,
        x,
        target,
        key=key,
        segments=found.numbers,
        **where_of(segments, found, x),
        num_segments=found.count,
        shapes=found.shapes,
        num_samples=num_samples,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )


def _permuted(
    apply_fn,
    params,
    x,
    target=None,
    *,
    key,
    segments,
    starts,
    num_segments,
    sizes,
    cells,
    shapes,
    num_samples,
    tolerance,
    chunk_size,
):
    name, count = "feature_permutation", rows_of(x)
    found = Segmented(segments, num_segments, shapes)

    def others(k):
        order = jax.random.permutation(jax.random.fold_in(key, k), count)
        donors = jnp.zeros_like(order).at[order].set(jnp.roll(order, -1))
        return jax.tree.map(lambda a: a[donors], x)

    def mask(k):
        return jax.tree.map(lambda numbers: numbers == k // num_samples, segments)

    if stops_early(tolerance):
        target = fixed_target(apply_fn, params, x, target)
        copy = lambda k: jax.tree.map(jnp.where, mask(k), others(k), x)
        outputs = outputs_of_copies(apply_fn, params, x, copy)

        def score(k):
            found = select(outputs(k), target)
            return found.astype(at_least_float32(found))

        whole = score(jnp.int32(-1))

        def one(order):  # of all segments, with the draws that they have in any case
            here = lambda k: score(k * num_samples + order)
            return (whole[None] - stacked(name, here, num_segments, chunk_size, x)).T

        return laid_out(
            mean_until(name, one, num_samples, 1, x, tolerance, size=FEW).mean, found, x
        )
    stretch = stretches(cells, (starts, sizes), found, x)
    scores, clean = covered(
        name,
        apply_fn,
        params,
        x,
        others,
        target,
        select,
        mask=mask,
        spans=stretch and (lambda k: stretch(k // num_samples)),
        num=num_segments * num_samples,
        chunk_size=chunk_size,
        method="auto",
    )
    wide = at_least_float32(scores)
    means = scores.astype(wide).reshape(num_segments, num_samples, count).mean(1)
    lost = clean.astype(wide)[:, None] - means.T
    return laid_out(lost, found, x)


_permuted.__name__ = "feature_permutation"  # the name that its errors begin with
_static = "num_segments", "sizes", "cells", "shapes", "num_samples", "chunk_size"
_feature_permutation = explanation(*_static, nonzero=("tolerance",), sweeps=True, integers=True)(
    _permuted
)
