"""Where along an axis a changed stretch lies, and how operations that slide windows move it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Span(NamedTuple):
    """A stretch of one size along an axis, at one of several known places.

    All places are known beforehand, so sizes are exact at every layer; which of them it is, is not.

    Attributes:
      starts: `[places]`, integers on the host: where it begins, for each place it may have.
      size: Its length, the same for all.
      at: Which place it is, a traced integer.
    """

    starts: np.ndarray
    size: int
    at: jax.Array

    @property
    def start(self) -> jax.Array:
        """Where it begins, traced."""
        if (self.starts == self.starts[0]).all():
            return jnp.int32(self.starts[0])
        if (self.starts == np.arange(len(self.starts))).all():
            return self.at.astype(jnp.int32)
        return jnp.asarray(self.starts, jnp.int32)[self.at]


Spans = tuple[Span | None, ...]  # one for each axis of an array; None is the whole axis


def cut(array: jax.Array, spans: Spans) -> jax.Array:
    """The stretch of an array that `spans` say."""
    if not any(spans):
        return array
    starts = [jnp.int32(0) if s is None else s.start for s in spans]
    sizes = [n if s is None else s.size for n, s in zip(array.shape, spans, strict=True)]
    return lax.dynamic_slice(array, starts, sizes)


def paste(array: jax.Array, part: jax.Array, spans: Spans) -> jax.Array:
    """The array with the stretch that `spans` say replaced."""
    if not any(spans):
        return part
    starts = [jnp.int32(0) if s is None else s.start for s in spans]
    return lax.dynamic_update_slice(array, part, starts)


def span(starts: np.ndarray, sizes: np.ndarray, axis: int, at: jax.Array) -> Span | None:
    """The span that covers stretches of different sizes on an axis; None where it fills that."""
    size = max(int(sizes.max()), 1)
    if size >= axis:
        return None
    return Span(np.clip(starts, 0, axis - size), size, at)


def union(some: list[Span | None], axis: int) -> Span | None:
    """The span that covers several; None where that is all of the axis or their places differ."""
    first = some[0]
    if first is None or any(s is None or s.at is not first.at for s in some):
        return None
    spans = [s for s in some if s is not None]
    low = np.min([s.starts for s in spans], axis=0)
    high = np.max([s.starts + s.size for s in spans], axis=0)
    return span(low, high - low, axis, first.at)


def inside(part: Span, whole: Span) -> Span:
    """A span as seen from the beginning of another that contains it."""
    return Span(part.starts - whole.starts, part.size, part.at)


class Slide(NamedTuple):
    """How an operation's windows lie along one axis.

    Attributes:
      reach: Places from the first to the last that a window reads.
      stride: From window to window.
      padding: Places before and behind the axis; negative ones crop.
      count: Number of windows.
    """

    reach: int
    stride: int
    padding: tuple[int, int]
    count: int


def slid(s: Span, slide: Slide) -> Span | None:
    """Which windows read any of a span."""
    starts = s.starts + slide.padding[0]
    first = -((slide.reach - 1 - starts) // slide.stride)  # rounded up
    last = (starts + s.size - 1) // slide.stride
    first, last = np.maximum(first, 0), np.minimum(last, slide.count - 1)
    return span(first, last - first + 1, slide.count, s.at)


def gathered(
    clean: jax.Array, part: jax.Array, spans: Spans, slides: dict[int, Slide], fill: jax.Array
) -> tuple[jax.Array, dict[int, Span]]:
    """What the windows that a span reaches read, and which windows these are.

    Args:
      clean: The whole array as it was.
      part: Its changed stretch.
      spans: Where that is.
      slides: How windows lie, for each axis that they slide on.
      fill: The number the operation pads with.

    Returns:
      The array to apply the operation to, without padding on the axes that still have a span; and
      the spans of the result on these axes. The others are whole, their padding is left to do.
    """
    results = {}
    for axis, slide in slides.items():
        found = spans[axis]
        result = None if found is None else slid(found, slide)
        if result is not None:
            results[axis] = result
    # An axis that ends up whole must be whole already.
    kept = tuple(s if a in results or a not in slides else None for a, s in enumerate(spans))
    part, spans = widened(clean, part, spans, kept), kept
    padding, regions, places, trims = [], [], [], []
    for axis, found in enumerate(spans):
        if axis not in results:
            padding.append((0, 0, 0))
            regions.append(found)
            places.append(None if found is None else inside(found, found))
            trims.append(None)
            continue
        slide, result = slides[axis], results[axis]
        assert found is not None
        begin = result.starts * slide.stride  # of what is read, in the padded array
        length = (result.size - 1) * slide.stride + slide.reach
        offset = found.starts + slide.padding[0] - begin
        # Changed numbers that no window reads may stick out; a margin keeps them in place.
        before = max(0, -int(offset.min()))
        behind = max(0, int(offset.max()) + found.size - length)
        low, high = slide.padding
        padding.append((low + before, high + behind, 0))
        regions.append(Span(begin, length + before + behind, found.at))
        places.append(Span(offset + before, found.size, found.at))
        trims.append((before, before + length) if before or behind else None)
    padded = lax.pad(clean, fill, padding) if any(any(p) for p in padding) else clean
    region = paste(cut(padded, tuple(regions)), part, tuple(places))
    for axis, trim in enumerate(trims):
        if trim is not None:
            region = lax.slice_in_dim(region, *trim, axis=axis)
    return region, results


def widened(clean: jax.Array, part: jax.Array, spans: Spans, wider: Spans) -> jax.Array:
    """A changed stretch with what lies around it, up to `wider` spans."""
    same = [
        a is b or (a and b and a.size == b.size and (a.starts == b.starts).all())
        for a, b in zip(spans, wider, strict=True)
    ]
    if all(same):
        return part
    places = tuple(
        s if w is None else (None if s is None else inside(s, w))
        for s, w in zip(spans, wider, strict=True)
    )
    return paste(cut(clean, wider), part, places)


def moved(part: jax.Array, spans: Spans, wanted: Spans) -> jax.Array:
    """Numbers on spans that may hang over the array's ends, on others: zeros beside them."""
    before, behind, places = [], [], []
    for s, w in zip(spans, wanted, strict=True):
        if s is None or w is None:
            low, high, place = 0, 0, None
        else:
            offset = s.starts - w.starts
            low, high = max(0, -int(offset.min())), max(0, int(offset.max()) + s.size - w.size)
            place = Span(offset + low, s.size, s.at)
        before.append(low)
        behind.append(high)
        places.append(place)
    sizes = [n if w is None else w.size for n, w in zip(part.shape, wanted, strict=True)]
    room = [b + n + a for b, n, a in zip(before, sizes, behind, strict=True)]
    laid = paste(jnp.zeros(room, part.dtype), part, tuple(places))
    return lax.slice(laid, before, [b + n for b, n in zip(before, sizes, strict=True)])
