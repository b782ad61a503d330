"""Data whose right answer is known by construction: pixels that decide, and all others that do not.

Of a photograph nobody knows what a net ought to look at. Here the label is drawn first, and one
place of the image is made from it; all else is drawn without it. An explanation of a net that has
learned the label has to point there. `jaxviz.data.solved` has models with known attributions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import images as images_check, integers
from jaxviz.calls.options import real, refused, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.data.dataset import Dataset

_HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")


class Planted(NamedTuple):
    """Labelled images, and which of their pixels the label was made into.

    Attributes:
      images: float32 `[N, H, W, C]`.
      labels: int32 `[N]`.
      masks: bool `[N, H, W]`, True where the answer is.
      class_names: One name a class.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    class_names: tuple[str, ...]

    __repr__ = shown
    _repr_html_ = shown_html

    @property
    def dataset(self) -> Dataset:
        """Images and labels alone, as `jaxviz.training.fit` takes them."""
        return Dataset(self.images, self.labels, self.class_names)


@public(size=whole(12), num_classes=whole(2, 6), num_distractors=whole(0, 15))
def planted_mark(
    key: jax.Array,
    num_images: int,
    *,
    size: int = 32,
    num_classes: int = 3,
    num_distractors: int = 3,
) -> Planted:
    """A coloured square decides the class, among squares of colours that no class has.

    Each image is grey noise with `1 + num_distractors` squares at places that do not meet. One of
    them, the mark, has the colour of its class: `num_classes` hues at equal distances. Each of the
    others has a hue half way between two of them, drawn whatever the class is.

    Args:
      key: PRNG key; everything random comes from it.
      num_images: N.
      size: Height and width in pixels, at least 12.
      num_classes: 2 to 6.
      num_distractors: Squares that say nothing, 0 to 15.

    Returns:
      A `Planted`: images `[N, size, size, 3]` in [0, 1]; masks are the mark's pixels.

    Raises:
      ValueError: `size` has no room for the squares, 4 pixels each with what is around it.

    Example:
      >>> data = planted_mark(jax.random.key(0), 8)
      >>> data.images.shape, data.masks.sum((1, 2)).tolist()
      ((8, 32, 32, 3), [25, 25, 25, 25, 25, 25, 25, 25])
    """
    cells = max(3, int(np.ceil(np.sqrt(1 + num_distractors))))
    if size < 4 * cells:
        raise ValueError(
            f"planted_mark: size must be at least {4 * cells} for {1 + num_distractors} squares; "
            f"got {size}. Take larger images, or fewer num_distractors."
        )
    made = _marks(key, num_images, size, num_classes, num_distractors, cells)
    names = _HUES if num_classes == 6 else tuple(f"hue {360 * k // num_classes}" for k in range(6))
    images, labels, masks = map(np.asarray, made)
    return Planted(images, labels, masks, names[:num_classes])


@functools.partial(jax.jit, static_argnums=range(1, 6))
def _marks(key, num_images, size, num_classes, num_distractors, cells):
    cell = size // cells
    side = (cell + 1) // 2

    def one(key):
        noise_key, label_key, cell_key, jitter_key, hue_key, shade_key = jax.random.split(key, 6)
        label = jax.random.randint(label_key, (), 0, num_classes)
        count = 1 + num_distractors
        places = jax.random.permutation(cell_key, cells * cells)[:count]
        jitter = jax.random.randint(jitter_key, (count, 2), 0, cell - side + 1)
        corners = jnp.stack([places // cells, places % cells], 1) * cell + jitter
        between = jax.random.randint(hue_key, (num_distractors,), 0, num_classes)
        hues = jnp.concatenate([2 * label[None], 2 * between + 1]) / (2 * num_classes)
        shades = jax.random.uniform(shade_key, (count, 1), minval=0.8)
        noise = 0.5 + 0.1 * jax.random.normal(noise_key, (size, size))
        image = jnp.stack([noise] * 3, 2)
        along = jnp.arange(size)
        squares = [
            (0 <= along - top)[:, None] & (along - top < side)[:, None] & within[None]
            for top, left in corners
            for within in [(0 <= along - left) & (along - left < side)]
        ]
        for square, colour in zip(squares, shades * _rgb(hues), strict=True):
            image = jnp.where(square[..., None], colour[None, None], image)
        return jnp.clip(image, 0, 1), label, squares[0]

    return jax.vmap(one)(jax.random.split(key, num_images))


def _rgb(hues):
    """Full colours `[M, 3]` of hues in [0, 1): 0 red, 1/3 green, 2/3 blue."""
    away = jnp.abs((hues[:, None] * 6 - jnp.array([[0.0, 2.0, 4.0]]) + 3) % 6 - 3)
    return jnp.clip(2 - away, 0, 1)


@public(size=whole(8), noise=real(0))
def planted_blob(key: jax.Array, num_images: int, *, size: int = 28, noise: float = 0.1) -> Planted:
    """A blob in one of the four quadrants; which one is the class.

    The blob is a Gaussian of standard deviation `size / 14` and height 1, the whole of its mask in
    one quadrant; noise lies over everything.

    Args:
      key: PRNG key.
      num_images: N.
      size: Height and width in pixels, at least 8.
      noise: Its standard deviation; the blob's height is 1.

    Returns:
      A `Planted`: images `[N, size, size, 1]`; masks are the pixels within two standard deviations
      of the blob's centre. Classes are upper left, upper right, lower left, lower right.

    Example:
      >>> data = planted_blob(jax.random.key(0), 4, noise=0.0)
      >>> bool((data.images[..., 0][~data.masks] < 0.14).all())
      True
    """
    names = ("upper left", "upper right", "lower left", "lower right")
    images, labels, masks = map(np.asarray, _blobs(key, noise, num_images, size))
    return Planted(images, labels, masks, names)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _blobs(key, noise, num_images, size):
    sigma, half = size / 14, size / 2
    label_key, place_key, noise_key = jax.random.split(key, 3)
    labels = jax.random.randint(label_key, (num_images,), 0, 4)
    inner = jax.random.uniform(
        place_key, (num_images, 2), minval=2 * sigma, maxval=half - 2 * sigma
    )
    centres = inner + half * jnp.stack([labels // 2, labels % 2], 1).astype(inner.dtype)
    along = jnp.arange(0.5, size)
    away = (along[None, None] - centres[..., None]) ** 2
    squared = away[:, 0, :, None] + away[:, 1, None, :]
    blobs = jnp.exp(-squared / (2 * sigma**2))
    noisy = blobs + noise * jax.random.normal(noise_key, blobs.shape)
    return noisy[..., None], labels, squared <= (2 * sigma) ** 2


@public(
    images=images_check,
    labels=integers,
    grid=several(whole(1), "whole numbers, at least 1, (rows, columns)", count=2),
)
def planted_mosaic(
    key: jax.Array,
    images: Any,
    labels: Any,
    num_images: int,
    *,
    grid: tuple[int, int] = (2, 2),
) -> Planted:
    """Mosaics of images, one of which is of the class that is asked for.

    Args:
      key: PRNG key.
      images: `[M, H, W, C]`, any labelled images.
      labels: Integers `[M]`, from 0.
      num_images: How many mosaics, N.
      grid: Rows and columns of tiles.

    Returns:
      A `Planted`: mosaics `[N, rows * H, columns * W, C]`; each has one image of its label's class,
      whose tile is the mask, and elsewhere images of other classes, no image twice.

    Raises:
      ValueError: There are too few images of other classes to fill a mosaic.

    Example:
      >>> digits = np.stack([np.full((2, 2, 1), n, np.float32) for n in range(4)])
      >>> made = planted_mosaic(jax.random.key(0), digits, np.arange(4), 3)
      >>> all((m[k] == n).all() for m, k, n in zip(made.images, made.masks, made.labels))
      True

    Reference:
      Böhle et al. 2021, arXiv:2104.00032, section 4 (the grid pointing game); Arias-Duart et al.
      2022, arXiv:2109.15035 (Focus, whose mosaics have two images of the class).
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if labels.shape != images.shape[:1] or not labels.size or labels.min() < 0:
        raise refused("planted_mosaic", "labels", f"[{len(images)}], from 0", labels)
    tiles = grid[0] * grid[1]
    counts = np.bincount(labels)
    fewest = len(labels) - counts.max()
    if fewest < tiles - 1:
        raise ValueError(
            f"planted_mosaic: images must have {tiles - 1} of other classes for each; got {fewest} "
            f"beside class {counts.argmax()}. Pass more classes, or a smaller grid."
        )
    chosen, place = map(np.asarray, _tiles(key, jnp.asarray(labels), num_images, tiles))
    height, width, channels = images.shape[1:]
    parts = images[chosen].reshape(num_images, *grid, height, width, channels)
    mosaics = parts.swapaxes(2, 3).reshape(num_images, grid[0] * height, grid[1] * width, channels)
    there = (np.arange(tiles) == place[:, None]).reshape(num_images, *grid)
    masks = there.repeat(height, 1).repeat(width, 2)
    asked = labels[chosen[np.arange(num_images), place]].astype(np.int32)
    return Planted(mosaics.astype(np.float32), asked, masks, tuple(map(str, range(len(counts)))))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _tiles(key, labels, num_images, tiles):
    """Indices of images `[N, tiles]`, and the place of the one that is asked for, `[N]`."""

    def one(key):
        own_key, others_key, place_key = jax.random.split(key, 3)
        own = jax.random.randint(own_key, (), 0, len(labels))
        # The largest of independent draws are a draw without repetition.
        draw = jnp.where(labels == labels[own], -1.0, jax.random.uniform(others_key, labels.shape))
        others = jax.lax.top_k(draw, tiles - 1)[1].astype(own.dtype)
        place = jax.random.randint(place_key, (), 0, tiles)
        return jnp.roll(jnp.concatenate([own[None], others]), place), place

    return jax.lax.map(one, jax.random.split(key, num_images))
