"""The score of a coalition of segments: these are left as they are, all others are filled."""

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import (
    is_floating,
    outputs_of_copies,
    stacked_scores,
    wide,
)
from jaxviz.parts.fills import filling
from jaxviz.parts.regions import (
    Segmented,
    count_baselines,
    each_number,
    grid_segments,
    laid_out,
    like_input,
    numbered,
    one_baseline,
    per_place,
    segments_like,
)

CELLS = 7  # along each axis of space, where no segments are given


class SegmentScores(NamedTuple):
    """Each segment's part in the score.

    Attributes:
      map: `[N, *space]`, or the shape of `x` where segments have its channel axis: each segment's
        value at every place of it, 0 where no segment is; for a pytree `x` a pytree of such.
      values: `[N, G]`, the values of the G segments, in units of the explained output.
      standard_errors: `[N, G]`, how far values are from those of unlimited samples (one standard
        deviation, estimated from the samples); in float32 at least, for they may be small.
      base: `[N]`, the score at no segment: the surrogate's intercept, or the score of the fill.
    """

    map: Any
    values: jax.Array
    standard_errors: jax.Array
    base: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


def segmented(
    name: str,
    x: Any,
    segments: Any,
    num_segments: int | None,
    *,
    num_samples: int = 0,
    squares: int = 0,
) -> Segmented:
    """The segments that were given, or the usual ones.

    Args:
      name: Of the method, for errors.
      x: One array, or a pytree.
      segments: As the user gave them.
      num_segments: Their number, or None.
      num_samples: How many coalitions are held at once.
      squares: How many matrices of segments by segments are held at once.
    """
    if segments is None:
        segments = usual_segments(x)
    found = segments_like(name, segments, x, num_segments)
    rows = jnp.shape(jax.tree.leaves(x)[0])[0]
    needed = rows * found.count * (5 * num_samples + 4 * squares * found.count)
    if needed > (there := _memory()):
        raise ValueError(
            f"{name}: segments must be few enough to fit the memory; got {found.count}, which with "
            f"{num_samples} samples of {rows} examples need about "
            f"{needed / 2**30:,.0f} GiB of {there / 2**30:,.0f}. Take fewer segments "
            "(`grid_segments`, `slic_segments`) or fewer examples at once."
        )
    return found


def usual_segments(x: Any) -> Any:
    """Those where none are given: of each leaf a grid of 7 cells along each axis of space.

    In rows of numbers, and in tokens of up to two axes, each is its own.
    """
    return numbered(x, _usual)


def _usual(x: Any) -> np.ndarray:
    if jnp.ndim(x) < 3 or (jnp.ndim(x) == 3 and not is_floating(x)):
        return each_number(x)
    space = jnp.shape(x)[1:-1]
    return grid_segments(space, tuple(min(CELLS, n) for n in space))


def _memory() -> int:
    """Bytes of the device, or of the machine where the device is its processor."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if not hasattr(os, "sysconf"):  # Windows: not told, so nothing is refused
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def coalition_scores(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target,
    numbers: Any,
    fill: Any,
    coalition: Callable[[jax.Array], jax.Array],
    num: int,
    chunk_size: int | None,
    baselines: Any = None,
) -> jax.Array:
    """Scores `[num, N]` with the segments of `coalition(k)`, `[N or 1, G]` booleans, left.

    What belongs to no segment is always left. With `baselines` they stand in the place of what is
    hidden, one after another, and scores are their means.
    """
    fills = filling(name, fill, x)
    rows = jnp.shape(jax.tree.leaves(x)[0])[0]
    count = 1 if baselines is None else count_baselines(name, baselines, x)

    def copy(k):
        kept = coalition(k // count)
        kept = jnp.broadcast_to(kept, (rows, kept.shape[1])).astype(jnp.float32)
        hidden = jax.tree.map(lambda numbers: per_place(1 - kept, numbers) > 0.5, numbers)
        if baselines is None:
            return jax.tree.map(jnp.where, hidden, fills(hidden), x)
        other = one_baseline(baselines, x, k % count)
        shown = lambda h, b, a: jnp.where(h, jnp.asarray(b).astype(jnp.result_type(a)), a)
        return jax.tree.map(shown, hidden, other, x)

    outputs = outputs_of_copies(apply_fn, params, x, copy)
    scores, _ = stacked_scores(name, outputs, select, num * count, chunk_size, x, target)
    scores = wide(scores)
    return scores if count == 1 else scores.reshape(num, count, rows).mean(1)


def as_scores(
    values: jax.Array,
    standard_errors: jax.Array,
    base: jax.Array,
    found: Segmented,
    x: Any,
) -> SegmentScores:
    """The result of a method, in the dtype of `x` but for the errors; that of scores, where `x` is
    a pytree or in whole numbers."""
    maps = laid_out(values, found, x)
    # Of what is not known (a class that the outputs lack, under the caller's jit) nor is the error.
    errors = jnp.where(jnp.isnan(values), jnp.nan, standard_errors)
    return SegmentScores(maps, like_input(values, x), errors, like_input(base, x))
