"""Where segments lie, as far as a program is made for it: cells of a grid, boxes of one size."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.leaves import ONE
from jaxviz.parts.regions import Segmented, grid_segments
from jaxviz.rules.spans import Spans, span


class Places(NamedTuple):
    """Units of the input whose places are known when the program is made.

    Attributes:
      numbers: The unit of each place, integers with the axes of `x`, 1 long where it is the same
        along one; on the host. Each of 0, 1, ... has a place at least; below 0 is no unit.
    """

    numbers: np.ndarray

    def stretch(self, unit: jax.Array) -> tuple:
        """The spans that hold a unit, each traced at `unit`."""
        found = []
        for axis, size in enumerate(self.numbers.shape):
            if axis == 0 or size == 1:
                found.append(None)
                continue
            along = np.broadcast_to(
                np.arange(size).reshape([-1 if a == axis else 1 for a in range(self.numbers.ndim)]),
                self.numbers.shape,
            )
            there, count = self.numbers >= 0, int(self.numbers.max()) + 1
            first, last = np.full(count, size), np.full(count, -1)
            np.minimum.at(first, self.numbers[there], along[there])
            np.maximum.at(last, self.numbers[there], along[there])
            found.append(span(first, last - first + 1, size, unit))
        return tuple(found)


def cells_of(segments: Any, found: Segmented, x: Any) -> tuple[int, ...] | None:
    """The cells along each axis of a grid that all examples share, such as `grid_segments` makes;
    None where segments lie otherwise, or nobody knows yet how.

    Args:
      segments: As they were given.
      found: The same, as `segments_like` reads them.
      x: One array, or a pytree, of which no grid is known.
    """
    if jax.tree.structure(x) != ONE or isinstance(segments, Tracer) or len(found.numbers) != 1:
        return None
    numbers = np.asarray(segments).reshape(found.numbers.shape[1:])
    line = lambda axis: tuple(slice(None) if a == axis else 0 for a in range(numbers.ndim))
    cells = tuple(len(np.unique(numbers[line(axis)])) for axis in range(numbers.ndim))
    if math.prod(cells) != found.count or not numbers.size or not cells:
        return None
    return cells if np.array_equal(numbers, grid_segments(numbers.shape, cells)) else None


def grid_of(cells: tuple[int, ...], found: Segmented) -> Places:
    """Where the cells of a grid lie that `cells_of` told."""
    return Places(grid_segments(found.numbers.shape[1:], cells)[None])


def boxes_of(segments: Any, found: Segmented, x: Any) -> tuple[jax.Array, tuple[int, ...]] | None:
    """For each segment where a box begins that holds it in all examples, `[G, axes]`, and the
    boxes' size; None as for `cells_of`."""
    if jax.tree.structure(x) != ONE or isinstance(segments, Tracer):
        return None
    shape, count = jnp.shape(x), found.count
    numbers = np.asarray(segments).reshape(found.numbers.shape)
    axes = len(shape) - 1
    low = np.full((count, axes), np.iinfo(np.int32).max)
    high = np.full((count, axes), -1)
    used = (numbers >= 0) & (numbers < count)
    places = np.nonzero(used)
    for axis in range(axes):
        at = places[axis + 1]
        np.minimum.at(low[:, axis], numbers[places], at)
        np.maximum.at(high[:, axis], numbers[places], at)
    sizes = np.maximum((high - low + 1).max(0), 1)
    # A few sizes only, so that segments of other images mostly find a program compiled for them.
    sizes = [min(-(-int(s) // 4) * 4, n) for s, n in zip(sizes, shape[1:], strict=True)]
    sizes = [n if numbers.shape[a + 1] == 1 else sizes[a] for a, n in enumerate(shape[1:])]
    low = np.clip(low, 0, np.asarray(shape[1:]) - sizes)
    return jnp.asarray(low, jnp.int32), tuple(sizes)


def where_of(segments: Any, found: Segmented, x: Any) -> dict[str, Any]:
    """Where segments lie, as `stretches` takes it: cells of a grid, or else boxes of one size."""
    cells = cells_of(segments, found, x)
    starts, sizes = (None if cells else boxes_of(segments, found, x)) or (None, ())
    return {"cells": cells, "starts": starts, "sizes": sizes}


def stretches(
    cells: tuple[int, ...] | None,
    boxes: tuple[jax.Array | None, tuple[int, ...]],
    found: Segmented,
    x: Any,
) -> Callable[[jax.Array], Spans] | None:
    """From a segment's number to a stretch that holds it; None where none is known.

    Args:
      cells: Of a grid, or None.
      boxes: As `boxes_of` gives them, or `(None, ())`.
      found: The segments.
      x: What they are of.
    """
    if cells is not None:
        return grid_of(cells, found).stretch
    starts, sizes = boxes
    if starts is None:
        return None

    def stretch(k):
        sides = enumerate(zip(sizes, x.shape[1:], strict=True))
        whole = lambda size, n: (np.arange(n - size + 1), np.full(n - size + 1, size), n)
        return (None, *(span(*whole(size, n), starts[k, axis]) for axis, (size, n) in sides))

    return stretch
