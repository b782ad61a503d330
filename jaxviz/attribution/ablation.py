"""Feature ablation: what the score loses when a whole segment of the input is replaced."""

from collections.abc import Callable
from typing import Any

import jax

from jaxviz.calls.public import public
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import at_least_float32
from jaxviz.engine.layout import of_places
from jaxviz.parts.covered import Method, covered
from jaxviz.parts.fills import filling
from jaxviz.parts.places import stretches, where_of
from jaxviz.parts.regions import (
    Segmented,
    each_number,
    laid_out,
    numbered,
    segments_like,
)


@public()
@of_places
def feature_ablation(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    segments: Any = None,
    num_segments: int | None = None,
    fill: Any = 0.0,
    chunk_size: int | None = None,
    method: Method = "auto",
) -> Any:
    """How much of the score is lost when a segment of the input is replaced, each on its own.

    f(x) - f(x with segment g filled), at every place of g.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      segments: Which segment each place belongs to, integers `[*space]`, one map for all, or
        `[N, *space]`, or either with the channel axis at its end. Numbers below 0 are never
        replaced and get 0. None is every number of an example on its own. For a pytree `x` a pytree
        of such in one numbering (places of one number in several leaves are replaced together), or
        one array for all leaves.
      num_segments: An upper bound of their number, which shapes the program; None reads it off
        `segments`. Give it to have maps of different numbers share a program.
      fill: What stands in place of a segment: anything that broadcasts to `x`, whole numbers for
        whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      chunk_size: Segments at once, for all N examples. None goes by `x` and the cores.
      method: As for `occlusion`; where segments are local (a grid, superpixels), evaluating only
        what each changes costs less. Traced segments (under `jit`) are evaluated in full.

    Returns:
      `[N, *space]`, or the shape of `x` where segments have its channel axis, in units of the
      explained output; for a pytree `x` a pytree of such. Costs one forward pass a segment, or
      less.

    Raises:
      ValueError: Segments that are no integers of the shape of `x`; traced ones without
        `num_segments`; a fill that does not broadcast; `chunk_size` below 1; unknown method.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [2.0], [4.0]]), jnp.ones((1, 3))
      >>> feature_ablation(net, w, x, 0, segments=jnp.array([0, 0, 1])).tolist()
      [[3.0, 3.0, 4.0]]
      >>> words = lambda w, ids: w[ids].sum(1)  # token ids, where 0 is padding
      >>> feature_ablation(words, w, jnp.array([[2, 1]]), 0).tolist()
      [[3.0, 1.0]]

    Reference:
      "FeatureAblation" of Captum; there segments have every axis of the input, 1 where shared, and
      of a segment in several inputs only the part in one of them is replaced at a time (0.8.0; its
      Shapley values hide the whole of it, as all methods do here).
    """
    name = "feature_ablation"
    if segments is None:
        segments = numbered(x, each_number)
    found = segments_like(name, segments, x, num_segments)
    return _feature_ablation(
        apply_fn,
        params,
        x,
        target,
        segments=found.numbers,
        **where_of(segments, found, x),
        num_segments=found.count,
        shapes=found.shapes,
        fill=fill,
        chunk_size=chunk_size,
        method=method,
    )


def _ablated(
    apply_fn,
    params,
    x,
    target=None,
    *,
    segments,
    starts,
    num_segments,
    sizes,
    cells,
    shapes,
    fill,
    chunk_size,
    method,
):
    name, found = "feature_ablation", Segmented(segments, num_segments, shapes)
    fills = filling(name, fill, x)
    mask = lambda k: jax.tree.map(lambda numbers: numbers == k, segments)

    scores, clean = covered(
        name,
        apply_fn,
        params,
        x,
        lambda k: fills(mask(k)),
        target,
        select,
        mask=mask,
        spans=stretches(cells, (starts, sizes), found, x),
        num=num_segments,
        chunk_size=chunk_size,
        method=method,
    )
    wide = at_least_float32(scores)
    lost = clean.astype(wide)[:, None] - scores.T.astype(wide)
    return laid_out(lost, found, x)


_ablated.__name__ = "feature_ablation"  # the name that its errors begin with
_static = "num_segments", "sizes", "cells", "shapes", "chunk_size", "method"
_feature_ablation = explanation(*_static, sweeps=True, integers=True)(_ablated)
