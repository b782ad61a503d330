"""What perturbation methods hide and by what: fills, and segments as integer maps."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import real_array
from jaxviz.calls.leaves import ONE, per_leaf
from jaxviz.calls.models import batch
from jaxviz.calls.options import refused, several, whole
from jaxviz.calls.public import public
from jaxviz.engine.copies import at_least_float32, is_floating
from jaxviz.engine.layout import hint
from jaxviz.graph.indices import unless

_SIZES = several(whole(1), "whole numbers, at least 1, one an axis")


def fill_like(name: str, fill: Any, x: Any, option: str = "fill") -> Any:
    """The fill as a tree of the shapes and dtypes of `x`; `fill_for` has looked at its numbers."""
    leaves, structure = jax.tree.flatten(x)
    pairs = zip(per_leaf(name, option, fill, x), leaves, strict=True)
    return jax.tree.unflatten(structure, [_fill_like(name, option, f, a) for f, a in pairs])


def _fill_like(name: str, option: str, fill: Any, x: jax.Array) -> jax.Array:
    shape = jnp.shape(fill)
    try:
        fits = np.broadcast_shapes(shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: {option} must broadcast to x; got {option} {shape}, x {x.shape}. Pass a "
            "number, [C], [..., C], or [N, ..., C] (`x.mean((1, 2), keepdims=True)`, "
            f"`blurred(x, 8.0)`).{hint(x)}"
        )
    fill = jnp.asarray(fill).astype(jnp.result_type(x))  # NumPy's ids are int64, JAX's are not
    return jnp.broadcast_to(fill.reshape((1,) * (x.ndim - fill.ndim) + fill.shape), x.shape)


def count_baselines(name: str, baselines: Any, x: Any) -> int:
    """How many there are: B of `[B, ...]` for all examples, or of `[N, B, ...]`, each one's own."""
    leaves = list(zip(jax.tree.leaves(baselines), jax.tree.leaves(x), strict=False))
    shapes = [(jnp.shape(b), jnp.shape(a)) for b, a in leaves]
    own = [len(b) == len(a) + 1 for b, a in shapes]
    fits = jax.tree.structure(baselines) == jax.tree.structure(x) and all(
        b[2:] == a[1:] and b[0] == a[0] if each else len(b) == len(a) and b[1:] == a[1:]
        for (b, a), each in zip(shapes, own, strict=True)
    )
    counts = {b[1] if each else b[0] for (b, _), each in zip(shapes, own, strict=True) if fits}
    if not fits or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"{name}: baselines must be [B, ...] with B >= 1, or [N, B, ...], for x [N, ...]; got "
            f"baselines {jax.tree.map(jnp.shape, baselines)}, x {jax.tree.map(jnp.shape, x)}. A "
            "single baseline is b[None]."
        )
    return counts.pop()


def one_baseline(baselines: Any, x: Any, which: jax.Array) -> Any:
    """The baseline `which` of all examples, or one for each, `[N]`: `[...]` or `[N, ...]`."""

    def one(b, a):
        b = jnp.asarray(b)
        if b.ndim == jnp.ndim(a):
            return b[which]
        return b[:, which] if which.ndim == 0 else b[jnp.arange(len(b)), which]

    return jax.tree.map(one, baselines, x)


def blend(fill: jax.Array, mask: jax.Array, x: jax.Array) -> jax.Array:
    """`fill + mask * (x - fill)`, in the dtype of `x`: what is seen of `x` through a soft mask.

    Where the mask is 1 that is `x`, where it is 0 it is `fill`, to the bit and whatever the other
    holds, infinities and NaN among it. Whole numbers are not mixed: `x` is seen where the mask is
    more than one half.

    Args:
      fill: The shape and dtype of `x`.
      mask: In [0, 1]; broadcasts to `x`.
      x: What the mask shows.
    """
    mask = jnp.broadcast_to(mask.astype(at_least_float32(mask)), x.shape)
    if not is_floating(x):
        return jnp.where(mask > 0.5, x, fill)
    wide = at_least_float32(x)
    none, whole = mask == 0, mask == 1
    # What is not mixed is kept out of the product: a gradient of 0 times infinity is NaN, too.
    low = jnp.where(whole, x, fill).astype(wide)
    high = jnp.where(none, fill, x).astype(wide)
    mixed = low + mask.astype(wide) * (high - low)
    return jnp.where(none, fill, jnp.where(whole, x, mixed.astype(x.dtype)))


def fadeable(filled: jax.Array) -> jax.Array:
    """`[N]`: 1, and NaN where the fill is not finite: nothing can be faded to that by degrees, and
    a model that takes NaN for missing would find all of its input missing, without a word."""
    finite = jnp.isfinite(filled).reshape(len(filled), -1).all(1)
    return unless(~finite, at_least_float32(filled) if is_floating(filled) else jnp.float32)


def space_of(x: Any) -> tuple[int, ...]:
    """The sizes of the axes of space of `[N, *space, C]`, or of `[N, L]`, without channels."""
    return jnp.shape(x)[1:-1] or jnp.shape(x)[1:]


def over_channels(places: jax.Array, x: jax.Array) -> jax.Array:
    """`[N, *space]`, with an axis for the channels where `x` has one."""
    return places if places.ndim == x.ndim else places[..., None]


def like_input(found: jax.Array, x: Any) -> jax.Array:
    """In the dtype of `x`, where that is one floating array; whole numbers have no part in one."""
    one = jax.tree.structure(x) == ONE and is_floating(x)
    return found.astype(jnp.result_type(x)) if one else found


def _real_batch(who: str, option: str, value: Any) -> Any:
    """A batch of real numbers, whole ones too."""
    return real_array(who, option, batch(who, option, value))


@public(x=_real_batch)
def blurred(x: jax.Array, sigma: float) -> jax.Array:
    """Images out of focus: a fill that keeps colours and brightness and hides what is there.

    Args:
      x: `[N, *space, C]`, in floating or whole numbers.
      sigma: Standard deviation of the Gaussian, in pixels, > 0; cut at four of them.

    Returns:
      The shape of `x`, and its dtype where that is floating; else float32, for a mean of whole
      numbers is none. At the border the image is mirrored.

    Raises:
      ValueError: `x` has no axis of space, or `sigma` is not positive.

    Example:
      >>> float(blurred(jnp.ones((1, 4, 4, 1)), 2.0).std())
      0.0
    """
    if jnp.ndim(x) < 3 or not sigma > 0:
        raise ValueError(
            f"blurred: x must be [N, *space, C] and sigma > 0; got x {jnp.shape(x)}, sigma "
            f"{sigma}. Give an image a channel axis: x[..., None]."
        )
    x = jnp.asarray(x)
    dtype = x.dtype if is_floating(x) else jnp.dtype(jnp.float32)
    x = x.astype(at_least_float32(jax.ShapeDtypeStruct((), dtype)))
    for axis in range(1, x.ndim - 1):
        # One matrix an axis: row i holds what each pixel gives to pixel i, mirrored ones included.
        size = x.shape[axis]
        spread = min(sigma, 16 * size)  # a wider one is the mean of the axis, as this is
        reach = math.ceil(4 * spread)
        bell = np.exp(-((np.arange(-reach, reach + 1) / spread) ** 2) / 2)
        bell /= bell.sum()
        matrix = np.zeros((size, size))
        places = np.arange(size)[:, None] + np.arange(-reach, reach + 1)[None, :]
        places = places % (2 * size)
        places = np.where(places < size, places, 2 * size - 1 - places)
        np.add.at(matrix, (np.arange(size)[:, None], places), bell[None, :])
        weights = jnp.asarray(matrix, x.dtype)
        mixed = jnp.tensordot(x, weights, (axis, 1), precision=jax.lax.Precision.HIGHEST)
        x = jnp.moveaxis(mixed, -1, axis)
    return x.astype(dtype)


@public(shape=_SIZES, cells=_SIZES)
def grid_segments(shape: tuple[int, ...], cells: tuple[int, ...]) -> np.ndarray:
    """An image cut into equal cells, numbered row by row.

    Args:
      shape: Sizes of the axes to cut, `(H, W)`.
      cells: Cells along each axis, `(rows, columns)`, at most one a pixel.

    Returns:
      Integers of `shape`, 0 to prod(cells) - 1. Sizes of cells differ by one pixel at most.

    Raises:
      ValueError: `cells` does not fit `shape`.

    Example:
      >>> grid_segments((2, 4), (1, 2)).tolist()
      [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    if len(cells) != len(shape) or any(not 1 <= c <= n for c, n in zip(cells, shape, strict=True)):
        raise ValueError(
            f"grid_segments: cells must be 1 to {shape}, one number an axis; got {cells}. "
            "Take fewer cells."
        )
    number = np.zeros(shape, np.int32)
    for axis, (count, size) in enumerate(zip(cells, shape, strict=True)):
        along = np.arange(size) * count // size
        number = number * count + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return number.astype(np.int32)


def _finite(who, option, value):
    found = real_array(who, option, value)
    if 0 in np.shape(found)[1:] or not np.isfinite(np.asarray(found, np.float32)).all():
        must = "images [N, H, W, C] of finite numbers"
        raise refused(who, option, must, value, "Replace what is none: nan_to_num.", ValueError)
    return found


@public(x=_finite)
def slic_segments(x: Any, num_segments: int = 50, *, compactness: float = 10.0) -> np.ndarray:
    """Superpixels: patches of similar colour that follow the edges of an image.

    Args:
      x: `[N, H, W, C]`, any range; each image is scaled to [0, 1] first.
      num_segments: About how many an image; there may be fewer.
      compactness: How much nearness counts beside colour: larger is squarer.

    Returns:
      Integers `[N, H, W]` from 0. Computed on the host by scikit-image.

    Raises:
      ModuleNotFoundError: scikit-image is absent.
      ValueError: `x` is not `[N, H, W, C]`.

    Reference:
      Achanta et al. 2012, SLIC superpixels, IEEE PAMI 34.
    """
    images = np.asarray(x, np.float64)
    if images.ndim != 4:
        raise ValueError(
            f"slic_segments: x must be images [N, H, W, C]; got {images.shape}. One is x[None]."
        )
    try:
        from skimage.segmentation import slic  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "slic_segments: needs scikit-image, and it is not installed. Install "
            '"jaxviz-xai[segments]", or take `grid_segments`.'
        ) from error
    found = []
    for image in images:
        low, high = image.min(), image.max()
        image = (image - low) / (high - low if high > low else 1)
        colour = image.shape[-1] == 3
        labels = slic(
            image if colour else image.mean(-1),
            n_segments=num_segments,
            compactness=compactness if colour else compactness / 100,
            channel_axis=-1 if colour else None,
            start_label=0,
        )
        found.append(labels)
    return np.array(found, np.int32).reshape(images.shape[:3])


class Segmented(NamedTuple):
    """Segments as the methods hand them to their compiled part.

    Attributes:
      numbers: In the structure of `x`, integers with the axes of each leaf, 1 where all share them.
      count: How many segments there are, which shapes the program.
      shapes: Of the map of each leaf.
    """

    numbers: Any
    count: int
    shapes: tuple[tuple[int, ...], ...]


def segments_like(name: str, segments: Any, x: Any, count: int | None) -> Segmented:
    """Segments as every method takes them.

    Args:
      name: Of the method, for errors.
      segments: Integers `[*space]`, `[N, *space]`, or either with the channel axis at its end; for
        `x` `[N, F]`, `[F]` or `[N, F]`. Numbers below 0 belong to no segment. For a pytree `x` a
        pytree of such, in one numbering, or one array for all leaves.
      x: `[N, *space, C]` or `[N, F]`, or a pytree of such.
      count: Their number, which shapes the program; None reads it off concrete segments.
    """
    leaves, structure = jax.tree.flatten(x)
    given = per_leaf(name, "segments", segments, x)
    traced = any(isinstance(one, Tracer) for one in given)
    read = [_numbers(name, one, leaf) for one, leaf in zip(given, leaves, strict=True)]
    if traced and count is None:
        raise ValueError(
            f"{name}: num_segments must be given where segments are traced (under jit or "
            "vmap), for it shapes the program; got None. Pass an upper bound of their number."
        )
    filled = [] if traced else [one for one in map(np.asarray, given) if one.size]
    top = max((int(one.max()) for one in filled), default=-1)
    if count is None:
        count = max(top, -1) + 1
        places = sum(
            math.prod(np.shape(one)[np.ndim(one) == np.ndim(leaf) :])
            for one, leaf in zip(given, leaves, strict=True)
        )
        if count > max(places, 1):
            raise ValueError(
                f"{name}: segments must be numbered without large gaps; got numbers up to "
                f"{count - 1} for {places} places. Number them anew: "
                "np.unique(segments, return_inverse=True)[1].reshape(segments.shape)."
            )
    elif top >= count:
        raise ValueError(
            f"{name}: num_segments must be more than every number of segments; got {count}, and "
            f"the number {top}. Leave it out to have it read off."
        )
    if count < 1:
        raise ValueError(
            f"{name}: segments must name one at least; got {count}. Number them from 0."
        )
    numbers = jax.tree.unflatten(structure, [number for number, _ in read])
    return Segmented(numbers, count, tuple(shape for _, shape in read))


def present_segments(numbers: Any, count: int) -> jax.Array:
    """`[N or 1, count]`: whether an example has a segment, for images have different numbers."""

    def one(numbers):
        flat = jnp.where(numbers < 0, count, numbers).reshape(len(numbers), -1)
        nothing = jnp.zeros((len(flat), count), bool)
        return jax.vmap(lambda there, at: there.at[at].set(True, mode="drop"))(nothing, flat)

    return functools.reduce(jnp.logical_or, map(one, jax.tree.leaves(numbers)))


def _numbers(name: str, segments: Any, x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """The numbers with the axes of one leaf (1 where all share them), and the shape of its map:
    `[N, *space]`, or that of the leaf where segments have its channel axis."""
    dims, shape = jnp.shape(x), jnp.shape(segments)
    readings = {dims[1:]: (1, *dims[1:]), dims: dims}
    if len(dims) > 2:  # where two readings fit (N = H, say) the one without channels counts
        readings |= {dims[1:-1]: (1, *dims[1:-1], 1), dims[:-1]: (*dims[:-1], 1)}
    if shape not in readings or not jnp.issubdtype(jnp.result_type(segments), jnp.integer):
        raise ValueError(
            f"{name}: segments must be integers {' or '.join(map(str, readings))} for x {dims}; "
            f"got {jnp.result_type(segments)} {shape}. Number them from 0: "
            f"grid_segments((H, W), (7, 7)), say.{hint(x)}"
        )
    if not isinstance(segments, jax.Array):  # of 64 bits, or in another byte order
        segments = np.maximum(segments, np.zeros((), np.int8) - 1).astype(np.int32)
    # Known segments stay numbers inside of a caller's `jit` too: where they lie shapes programs.
    known = contextlib.nullcontext if isinstance(segments, Tracer) else jax.ensure_compile_time_eval
    with known():
        numbers = jnp.asarray(segments).reshape(readings[shape]).astype(jnp.int32)
    without_channels = len(dims) > 2 and len(shape) < len(dims) and shape in (dims[1:-1], dims[:-1])
    return numbers, dims[:-1] if without_channels else dims


def numbered(x: Any, own: Callable[[Any], np.ndarray]) -> Any:
    """Segments for each leaf of `x`, in one numbering: `own` numbers those of a leaf from 0."""
    leaves, structure = jax.tree.flatten(x)
    found, first = [], 0
    for leaf in leaves:
        found.append(own(leaf) + np.int32(first))
        first = int(found[-1].max(initial=first - 1)) + 1
    return jax.tree.unflatten(structure, found)


def each_number(x: Any) -> np.ndarray:
    """Every number of an example as a segment of its own."""
    shape = jnp.shape(x)[1:]
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)


def laid_out(values: jax.Array, found: Segmented, x: Any) -> Any:
    """`[N, G]` values of segments as maps in the structure of `x`, in its floating dtypes."""
    numbers, structure = jax.tree.flatten(found.numbers)
    maps = []
    for number, shape, leaf in zip(numbers, found.shapes, jax.tree.leaves(x), strict=True):
        laid = per_place(values, number).reshape(len(values), *shape[1:])
        maps.append(like_input(laid, leaf))
    return jax.tree.unflatten(structure, maps)


def per_place(values: jax.Array, segments: jax.Array) -> jax.Array:
    """`[N, G]` values of segments laid out on their places; 0 where no segment is.

    Args:
      values: `[N, G]`.
      segments: Integers with the axes of `x`, the first N or 1.
    """
    inside = (segments >= 0) & (segments < values.shape[1])
    places = jnp.broadcast_to(jnp.where(inside, segments, 0), (len(values), *segments.shape[1:]))
    taken = jnp.take_along_axis(values, places.reshape(len(values), -1), axis=1)
    return jnp.where(inside, taken.reshape(places.shape), 0).astype(values.dtype)
