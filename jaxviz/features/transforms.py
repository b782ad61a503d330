"""What is done to an image before the model sees it, so that it excites from every side.

A transform is `(key, images [M, H, W, C]) -> images`, differentiable and on the device. All images
of a step get the same draw. Only the model sees the result: nothing is written into the image.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls import arrays
from jaxviz.calls.options import either, real, several, whole
from jaxviz.calls.public import public
from jaxviz.graph.materialised import materialised

Transform = Callable[[jax.Array, jax.Array], jax.Array]

_PIXELS, _FACTOR = whole(1), real(0, above=True)
_SIZE = several(_PIXELS, "two whole numbers, (height, width)", count=2)


@public(width=whole(0))
def pad(width: int, value: float | None = 0.5) -> Transform:
    """Puts a margin of `width` pixels around.

    Args:
      width: Pixels on each side, >= 0.
      value: Of the margin; None mirrors the image.

    Example:
      >>> pad(2)(jax.random.key(0), jnp.ones((1, 4, 4, 3))).shape
      (1, 8, 8, 3)
    """
    return _Pad(width, value)


@public(amount=real(0))
def jitter(amount: float) -> Transform:
    """Moves by whole pixels, up to `amount` each way; what leaves comes in on the other side.

    Args:
      amount: Pixels as an integer, or a float below 1 as a share of height and width.

    Example:
      >>> moved = jitter(2)(jax.random.key(0), jnp.eye(5).reshape(1, 5, 5, 1))
      >>> float(moved.sum())
      5.0
    """
    return _Jitter(amount)


@public(low=_FACTOR, high=_FACTOR)
def scale(low: float = 0.9, high: float = 1.1) -> Transform:
    """Zooms about the middle by a factor drawn uniformly; the size stays, outside is mirrored.

    Args:
      low: Smallest factor, > 0; below 1 the picture shrinks.
      high: Largest factor.
    """
    if not 0 < low <= high:
        raise ValueError(f"scale: factors must have 0 < low <= high; got {low} and {high}.")
    return _Turn(0.0, math.log(low), math.log(high))


@public(degrees=real(0, 180))
def rotate(degrees: float = 10.0) -> Transform:
    """Turns about the middle by an angle drawn uniformly; the size stays, outside is mirrored.

    Args:
      degrees: Largest angle either way, 0 to 180.
    """
    return _Turn(math.radians(degrees), 0.0, 0.0)


@public()
def blur(sigma: float) -> Transform:
    """A Gaussian blur, edges mirrored.

    Args:
      sigma: Standard deviation in pixels, > 0; cut off at four of them.
    """
    return _Blur(float(sigma))


@public(size=either("a whole number, at least 1, or two, (height, width)", _PIXELS, _SIZE))
def crop(size: int | tuple[int, int], *, random: bool = True) -> Transform:
    """A window of the image.

    Args:
      size: Its height and width, or both in one number.
      random: Whether it is taken anywhere, else in the middle.

    Example:
      >>> crop(2, random=False)(None, jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
      [[5.0, 6.0], [9.0, 10.0]]
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    return _Crop(height, width, random)


@public(low=_FACTOR, high=_FACTOR)
def zoom(low: float, high: float) -> Transform:
    """A square window anywhere, whose side is a share of the image drawn uniformly, at full size.

    Args:
      low: Smallest share, > 0.
      high: Largest share, <= 1.

    Reference:
      Fel et al. 2023, arXiv:2306.06805, section 3: the random crops of MaCo.
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"zoom: shares must have 0 < low <= high <= 1; got {low} and {high}.")
    return _Zoom(float(low), float(high))


def compose(transforms: tuple[Transform, ...], key: jax.Array, images: jax.Array) -> jax.Array:
    """All transforms in order, each with a key of its own."""
    for number, transform in enumerate(transforms):
        images = transform(jax.random.fold_in(key, number), images)
    return images


@public(images=arrays.images)
def gaussian_blur(images: jax.Array, sigma: float) -> jax.Array:
    """`[M, H, W, C]` blurred along both axes: two products with band matrices."""
    rows, columns = (_band(n, sigma).astype(images.dtype) for n in images.shape[1:3])
    blurred = jnp.einsum("ih,mhwc->miwc", rows, images)
    return jnp.einsum("jw,miwc->mijc", columns, blurred)


@functools.cache
def _band(size: int, sigma: float) -> np.ndarray:
    """The matrix of a one-dimensional blur, what is outside being mirrored at the edge."""
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((size, size))
    at = np.arange(size)[:, None] + offsets[None, :]
    at %= 2 * size
    at = np.where(at < size, at, 2 * size - 1 - at)
    shares = np.broadcast_to(weights / weights.sum(), at.shape)
    np.add.at(matrix, (np.arange(size)[:, None], at), shares)
    return matrix


@dataclasses.dataclass(frozen=True)
class _Pad:
    width: int
    value: float | None

    def __call__(self, key: Any, images: Any) -> Any:
        w = self.width
        widths = ((0, 0), (w, w), (w, w), (0, 0))
        if self.value is None:
            return jnp.pad(images, widths, "symmetric")
        return jnp.pad(images, widths, constant_values=self.value)


@dataclasses.dataclass(frozen=True)
class _Jitter:
    amount: float

    def __call__(self, key: Any, images: Any) -> Any:
        for axis in (1, 2):
            size = images.shape[axis]
            share = isinstance(self.amount, float) and self.amount < 1
            most = round(self.amount * size) if share else int(self.amount)
            if not most:
                continue
            shift = jax.random.randint(
                jax.random.fold_in(key, axis), (), -most, most + 1, jnp.int32
            )
            images = _rolled(axis, images, shift)
        return images


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rolled(axis, images, shift):
    """`jnp.roll` by a shift that is not known before, with a pullback that rolls back."""
    size = images.shape[axis]
    at = (jnp.arange(size, dtype=shift.dtype) - shift) % size
    return images.at[(*(slice(None),) * axis, at)].get(mode="promise_in_bounds")


_rolled.defvjp(
    lambda axis, images, shift: (_rolled(axis, images, shift), shift),
    lambda axis, shift, g: (_rolled(axis, g, -shift), None),
)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A rotation and a zoom about the middle."""

    most: float  # radians
    low: float  # logarithms of the factors
    high: float

    def __call__(self, key: Any, images: Any) -> Any:
        if self.most == 0 and self.low == self.high == 0:
            return images
        height, width = images.shape[1:3]
        keys = [jax.random.fold_in(key, number) for number in (0, 1)]
        angle = jax.random.uniform(keys[0], (), jnp.float32, -1.0) * self.most
        log = jax.random.uniform(keys[1], (), jnp.float32, self.low, self.high)
        if self.low == self.high:
            log = jnp.float32(self.low)
        # Pixels beyond the edge that the turned frame reaches.
        farthest = _farthest(height, width, self.most, math.exp(-self.low))
        margins = [
            max(0, math.ceil(f - n / 2) + 1) for f, n in zip(farthest, (height, width), strict=True)
        ]
        grown: Any = _mirrored(images, margins[0], margins[1])
        cosine, sine = jnp.cos(angle) / jnp.exp(log), jnp.sin(angle) / jnp.exp(log)
        matrix = jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])
        middle = [(n - 1) / 2 for n in (height, width)]
        away = jnp.array([m + g for m, g in zip(middle, margins, strict=True)], jnp.float32)
        centre = jnp.array(middle, jnp.float32)
        widest = min(self.most, math.pi / 4)
        reach = math.exp(self.high) * (math.cos(widest) + math.sin(widest))
        return resample(grown, matrix, away - matrix @ centre, (height, width), reach)


def _farthest(height: int, width: int, angle: float, shrink: float) -> tuple[float, float]:
    """How far from the middle, along each axis, the corners of the turned frame can lie."""
    angles = np.linspace(0, angle, 64)
    tall = (height * np.cos(angles) + width * np.sin(angles)).max() / 2
    wide = (width * np.cos(angles) + height * np.sin(angles)).max() / 2
    return tall * shrink, wide * shrink


def _symmetric(images, tall, wide):
    return jnp.pad(images, ((0, 0), (tall, tall), (wide, wide), (0, 0)), "symmetric")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _mirrored(images: Any, tall: int, wide: int) -> Any:
    """A margin of the image's mirror image; JAX's own pullback is ten times slower on a CPU."""
    return _symmetric(images, tall, wide)


def _folded(tall, wide, shape, g):
    if tall > shape[1] or wide > shape[2]:  # mirrored more than once
        return jax.linear_transpose(lambda x: _symmetric(x, tall, wide), jnp.zeros(shape))(g)
    for axis, m in ((1, tall), (2, wide)):
        n = shape[axis]
        part = functools.partial(jax.lax.slice_in_dim, axis=axis)
        inner = part(g, m, m + n)
        for start, stop, at in ((0, m, 0), (m + n, n + 2 * m, n - m)):
            where = (*(slice(None),) * axis, slice(at, at + m))
            inner = inner.at[where].add(jnp.flip(part(g, start, stop), axis))
        g = inner
    return (g,)


_mirrored.defvjp(lambda images, tall, wide: (_mirrored(images, tall, wide), images.shape), _folded)


@dataclasses.dataclass(frozen=True)
class _Blur:
    sigma: float

    def __call__(self, key: Any, images: Any) -> Any:
        return gaussian_blur(images, self.sigma)


@dataclasses.dataclass(frozen=True)
class _Crop:
    height: int
    width: int
    random: bool

    def __call__(self, key: Any, images: Any) -> Any:
        size = (self.height, self.width)
        room = [n - s for n, s in zip(images.shape[1:3], size, strict=True)]
        if min(*room, *size) < 0:
            raise ValueError(
                f"crop: the window {size} must fit into the image {images.shape[1:3]}."
            )
        if not self.random:
            i, j = (r // 2 for r in room)
            return images[:, i : i + self.height, j : j + self.width]
        keys = [jax.random.fold_in(key, axis) for axis in (0, 1)]
        i, j = (
            jax.random.randint(k, (), 0, r + 1, jnp.int32) for k, r in zip(keys, room, strict=True)
        )
        shape = (images.shape[0], *size, images.shape[3])
        return jax.lax.dynamic_slice(images, (jnp.int32(0), i, j, jnp.int32(0)), shape)


@dataclasses.dataclass(frozen=True)
class _Zoom:
    low: float
    high: float

    def __call__(self, key: Any, images: Any) -> Any:
        height, width = images.shape[1:3]
        keys = [jax.random.fold_in(key, number) for number in range(3)]
        share = jax.random.uniform(keys[0], (), jnp.float32, self.low, self.high)
        corner = jnp.stack(
            [
                jax.random.uniform(k, (), jnp.float32) * (n - 1)
                for k, n in zip(keys[1:], (height, width), strict=True)
            ]
        ) * (1 - share)
        matrix = share * jnp.eye(2, dtype=jnp.float32)
        return resample(images, matrix, corner, (height, width), 1 / self.low)


def resample(
    images: jax.Array,
    matrix: jax.Array,
    offset: jax.Array,
    size: tuple[int, int],
    reach: float,
) -> jax.Array:
    """Bilinear values at `matrix @ (row, column) + offset` for each pixel of a new image.

    Args:
      images: `[M, H, W, C]`.
      matrix: `[2, 2]`, invertible.
      offset: `[2]`.
      size: Height and width of the new image.
      reach: Upper bound on the maximum norm (largest row sum) of the inverse of `matrix`: how far
        apart in the new image those pixels are that one old pixel is shared by.

    Returns:
      `[M, *size, C]`. Nothing (zero) is outside the old image. The pullback gathers as well, where
      that of an indexing operation would scatter, 20 times slower on a CPU; matrix and offset get
      no gradient.
    """
    return _resample(tuple(size), float(reach), images, matrix, offset)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _resample(size, reach, images, matrix, offset):
    def plan(matrix, offset):
        at = _moved(matrix, offset, _grid(size, matrix.dtype))
        corners = _around(map(jnp.floor, at), 2)
        return _addresses(corners, _shares(at, corners), images.shape[1:3])

    return _gathered(images, *materialised(plan, matrix, offset))


def _forward(size, reach, images, matrix, offset):
    return _resample(size, reach, images, matrix, offset), (images.shape[1:3], matrix, offset)


def _backward(size, reach, kept, g):
    old, matrix, offset = kept

    def plan(matrix, offset):
        inverse = jnp.linalg.inv(matrix)
        pixels = _grid(old, matrix.dtype)
        middle = _moved(inverse, -inverse @ offset, pixels)  # where they lie in the new image
        corners = _around((jnp.ceil(m - reach) for m in middle), math.floor(2 * reach) + 1)
        return _addresses(corners, _shares(pixels, _moved(matrix, offset, corners)), size)

    g = materialised(_gathered, g, *materialised(plan, matrix, offset))
    return g, jnp.zeros_like(matrix), jnp.zeros_like(offset)


_resample.defvjp(_forward, _backward)


# Places are pairs (rows, columns) of arrays: an axis of two would be the innermost of all loops.


def _grid(size, dtype):
    """Each pixel's place, `[H, 1]` and `[1, W]`."""
    rows, columns = (jnp.arange(n, dtype=dtype) for n in size)
    return rows[:, None], columns[None, :]


def _moved(matrix, offset, places):
    """`matrix @ (row, column) + offset`."""
    rows, columns = places
    return tuple(matrix[a, 0] * rows + matrix[a, 1] * columns + offset[a] for a in range(2))


def _around(corner, count):
    """The `count ** 2` places from a corner on, `[count ** 2, H, W]`."""
    steps = np.indices((count, count)).reshape(2, -1, 1, 1)
    return tuple(c[None] + jnp.asarray(s, c.dtype) for c, s in zip(corner, steps, strict=True))


def _shares(at, neighbours):
    """How much of a bilinear value at a place is that of each neighbour."""
    rows, columns = (
        jnp.maximum(0, 1 - jnp.abs(a[None] - n)) for a, n in zip(at, neighbours, strict=True)
    )
    return rows * columns


def _addresses(corners, weights, size):
    """Places in a flattened image, and weights that are zero for those outside of it."""
    inside = [(c >= 0) & (c < n) for c, n in zip(corners, size, strict=True)]
    rows, columns = (
        jnp.clip(c, 0, n - 1).astype(jnp.int32) for c, n in zip(corners, size, strict=True)
    )
    return rows * size[1] + columns, jnp.where(inside[0] & inside[1], weights, 0)


def _gathered(images, at, weights):
    """The sum over k of `weights[k] * images[at[k]]`: `[M, *at.shape[1:], C]`."""
    flat = images.reshape(images.shape[0], -1, images.shape[3])
    # One term after the other: taken together they would be stored before they are summed.
    terms = (
        w[None, :, :, None].astype(images.dtype) * flat.at[:, i].get(mode="promise_in_bounds")
        for i, w in zip(at, weights, strict=True)
    )
    return functools.reduce(jnp.add, terms)
