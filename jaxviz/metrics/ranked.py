"""Masks ordered by rank, on which the metrics of faithfulness stand.

An example's units (places, numbers, segments) are ranked by their attribution once. Every mask that
a metric needs is `low < rank <= high`; the masks go through the model in chunks, which cores share.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import (
    check_one_array,
    fixed_target,
    outputs_of_copies,
    stacked_scores,
    wide,
)
from jaxviz.engine.layout import hint
from jaxviz.graph.indices import unless
from jaxviz.parts.fills import filling
from jaxviz.parts.places import Places
from jaxviz.parts.regions import fill_like, per_place, segments_like
from jaxviz.parts.successive import successive

Order = Literal["most_first", "least_first"]
Unit = Literal["place", "number"]


class Units(NamedTuple):
    """What is hidden together, and what the attribution says of it.

    Attributes:
      scores: `[N, G]`, in float32 at least.
      counts: Units that an example has: G, or `[N or 1, 1]` integers where some are empty.
      present: `[N or 1, G]`, whether a unit has places at all; None where all do.
      numbers: The unit of each place, with the axes of `x`; None where each place is its own.
      shape: Of one value a place, with the axes of `x`.
      known: `[N]`: 1, and NaN where the attribution holds a NaN, for that has no rank.
      places: Where units lie, if that is known when the program is made and no unit is empty.
    """

    scores: jax.Array
    counts: Any
    present: jax.Array | None
    numbers: jax.Array | None
    shape: tuple[int, ...]
    known: jax.Array
    places: Places | None = None

    def laid(self, values: jax.Array) -> jax.Array:
        """`[N, G]` values of units at their places; 0 where there is no unit."""
        if self.numbers is None:
            return values.reshape(len(values), *self.shape[1:])
        rows = max(len(values), len(self.numbers))
        return per_place(jnp.broadcast_to(values, (rows, values.shape[1])), self.numbers)


def units_of(
    name: str,
    x: jax.Array,
    attribution: Any,
    *,
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    mean: bool = False,
) -> Units:
    """The units of `x` with the sum of the attribution over each.

    Args:
      name: Of the metric, for errors.
      x: `[N, *space, C]` or `[N, F]`, one array.
      attribution: The shape of `x`, or `[N, *space]`.
      unit: "place": all channels of a place are hidden together; "number": each is its own.
      segments: As every method takes them; they decide, whatever `unit` is.
      num_segments: Their number, where they are traced.
      mean: Whether a segment has the mean of what lies in it, not the sum.
    """
    check_one_array(name, x)
    map_of_x = attribution_like(name, attribution, x)
    known = unless(jnp.isnan(map_of_x).reshape(len(x), -1).any(1), map_of_x.dtype)
    with_channels = x.ndim > 2
    if segments is None:
        if unit == "place" and with_channels:
            map_of_x = map_of_x.sum(-1, keepdims=True)
        else:
            map_of_x = jnp.broadcast_to(map_of_x, x.shape)
        scores = map_of_x.reshape(len(x), -1)
        each = np.arange(scores.shape[1]).reshape(1, *map_of_x.shape[1:])
        return Units(scores, scores.shape[1], None, None, map_of_x.shape, known, Places(each))
    found = segments_like(name, segments, x, num_segments)
    numbers, count = found.numbers, found.count
    by_place = with_channels and numbers.shape[-1] == 1 < x.shape[-1]
    if by_place:
        map_of_x = map_of_x.sum(-1, keepdims=True)
    shape = (len(x), *x.shape[1:-1], 1) if by_place else x.shape
    flat = jnp.where(numbers < 0, count, numbers).reshape(len(numbers), -1)
    total = jax.vmap(lambda a, at: jax.ops.segment_sum(a, at, count + 1)[:count])
    each = jnp.broadcast_to(flat, (len(x), flat.shape[1]))
    scores = total(jnp.broadcast_to(map_of_x, shape).reshape(each.shape), each)
    sizes = total(jnp.ones(flat.shape, scores.dtype), flat)
    present = sizes > 0
    if mean:
        scores = scores / jnp.maximum(sizes, 1)
    one_for_all = isinstance(segments, np.ndarray) and len(numbers) == 1
    if one_for_all and set(range(count)) <= set(segments.ravel().tolist()):
        places = Places(segments.reshape(numbers.shape))
        return Units(scores, count, None, numbers, shape, known, places)
    counts = present.sum(1, keepdims=True, dtype=jnp.int32)
    return Units(scores, counts, present, numbers, shape, known)


def attribution_like(name: str, attribution: Any, x: jax.Array) -> jax.Array:
    """An attribution with the axes of `x`, the channels' 1 where it has none; float32 at least."""
    if jax.tree.structure(attribution) != jax.tree.structure(0):
        raise ValueError(
            f"{name}: attribution must be one array; got a pytree of "
            f"{len(jax.tree.leaves(attribution))}. Pass its map: out.map, of scores of segments."
        )
    shape = jnp.shape(attribution)
    without = (*x.shape[:-1], 1) if x.ndim > 2 else x.shape
    if shape not in (x.shape, without, without[:-1] if x.ndim > 2 else x.shape):
        places = f" or {x.shape[:-1]}" if x.ndim > 2 else ""
        raise ValueError(
            f"{name}: attribution must have the shape {x.shape} of x{places}; got {shape}. Pass "
            f"what the method returned for this x.{hint(x)}"
        )
    found = jnp.asarray(attribution)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        found = found.astype(jnp.float32)
    found = wide(found)
    return found if shape == x.shape else found.reshape(without)


def ranks(units: Units, order: Order = "most_first") -> jax.Array:
    """The place of each unit in the order, `[N, G]` from 1.

    Equal attributions follow one another in a fixed random order of the units, the same for both
    orders and for every example: no side of an image comes first. Units without places are last.
    """
    scores = units.scores if order == "least_first" else -units.scores
    if units.present is not None:
        scores = jnp.where(units.present, scores, jnp.inf)
    count = scores.shape[1]
    # The generator of old, whose numbers are the same in every version of NumPy.
    ties = np.random.RandomState(0).permutation(count).astype(np.int32)
    found = jnp.asarray(ties)[jnp.argsort(scores[:, ties], axis=1, stable=True)]
    rows = jnp.arange(len(scores))[:, None]
    places = jnp.arange(1, count + 1, dtype=jnp.int32)[None, :]
    return jnp.zeros(scores.shape, jnp.int32).at[rows, found].set(places)


def thresholds(counts: Any, num_steps: int) -> Any:
    """How many units are changed after each of `num_steps` equal steps, `[num_steps + 1, N or 1]`.

    `k * count // num_steps`, in 32 bits for any count.
    """
    k = np.arange(num_steps + 1, dtype=np.int64)[:, None]
    if isinstance(counts, int):
        return jnp.asarray(k * counts // num_steps, jnp.int32)
    k = jnp.asarray(k, jnp.int32)
    counts = counts.reshape(1, -1)
    return k * (counts // num_steps) + k * (counts % num_steps) // num_steps


def at_most_one(units: Units, num_steps: int) -> bool:
    """Whether each of `num_steps` equal steps changes one unit or none."""
    return isinstance(units.counts, int) and num_steps >= units.counts


def one_by_one(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    units: Units,
    orders: tuple[Order, ...],
    fill: Any,
    target: Target,
    num_steps: int,
    chunk_size: int | None,
    *,
    insert: bool = False,
) -> jax.Array | None:
    """The score before any step and after each, `[num_steps + 1, M * N]`.

    By what each step changes; None where a step changes more than one unit, where nobody knows
    when the program is made what it changes, or where whole passes are as cheap.

    Args:
      name, apply_fn, params, x, units, fill, target: As for the metrics.
      orders: M, in which units go: the rows of all examples in the first, then in the next.
      num_steps: Units, or more steps, of which some change nothing; or so many units.
      chunk_size: As for the metrics.
      insert: Whether `x` comes into the fill, not the fill into `x`.
    """
    if units.places is None or callable(fill):
        return None
    count = units.counts
    steps = np.arange(num_steps + 1, dtype=np.int64)
    steps = steps if num_steps <= count else steps * count // num_steps
    ranked = jnp.concatenate([ranks(units, order) for order in orders])
    found = jnp.argsort(ranked, axis=1).astype(jnp.int32)
    none = jnp.full((len(found), 1), -1, jnp.int32)
    at = np.where(np.diff(steps) > 0, steps[:-1], count)
    units_in_turn = jnp.concatenate([found, none], axis=1)[:, at]
    filled = fill_like(name, fill, x)
    if insert:
        target, x, filled = fixed_target(apply_fn, params, x, target), filled, x
    found = successive(apply_fn, params, x, filled, target, units.places, units_in_turn, chunk_size)
    if found is None:
        return None
    scores, clean = found
    scores = jnp.concatenate([clean[None], scores])
    return wide(scores)


def area(curve: jax.Array, steps: jax.Array) -> jax.Array:
    """`[N]`: the mean height of curves `[N, K + 1]` over the share of units, by trapezoids.

    Args:
      curve: `[N, K + 1]`.
      steps: As `thresholds` gives them, from 0 to all.
    """
    widths = jnp.diff(steps, axis=0).T.astype(curve.dtype)
    heights = (curve[:, 1:] + curve[:, :-1]) / 2
    total = jnp.maximum(widths.sum(1, keepdims=True), 1)
    return (heights * (widths / total)).sum(1)


def covers(name: str, fill: Any, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """From what is hidden, booleans that broadcast to `x`, to `x` with the fill there."""
    fills = filling(name, fill, x)
    return lambda hidden: jnp.where(hidden, fills(hidden), x)


def scores_of(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target,
    copy: Callable[[jax.Array], jax.Array],
    num: int,
    chunk_size: int | None,
    read: Callable[[Any, Target], Any] = select,
    of_copy: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[Any, Any]:
    """What is read off the outputs at `copy(k)`, k < `num`, `[num, N]`, and at `x`, `[N]`.

    With `of_copy` each is a pair: that, and what `of_copy` gives of the copy (of none, at `x`).
    """
    if of_copy is None:
        outputs = outputs_of_copies(apply_fn, params, x, copy)
    else:
        both = lambda k: (made := copy(k), of_copy(made))
        outputs = outputs_of_copies(apply_fn, params, x, both, beside=True)
        said = read
        read = lambda found, target: (said(found.outputs, target), found.of_copy)
    found = stacked_scores(name, outputs, read, num, chunk_size, x, target, clean=True)
    return wide(found)
