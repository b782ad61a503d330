"""Mosaics of images of several classes tell where an explanation must point, without boxes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import integers
from jaxviz.calls.models import batch, floating
from jaxviz.calls.options import several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation, same_when_batched
from jaxviz.engine.copies import check_one_array, fixed_target
from jaxviz.metrics.explaining import explainer
from jaxviz.metrics.localization import focus

_grid = several(whole(1), "two whole numbers (rows, columns)", count=2)


class Mosaics(NamedTuple):
    """Mosaics of some images, one of each in one cell and of other classes in the others.

    Attributes:
      x: `[N, *space, C]`, the mosaics.
      mask: `[N, *space]`, True in the cell of the n-th image.
      target: `[N]`, the class of the n-th image.
    """

    x: jax.Array
    mask: jax.Array
    target: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(x=lambda who, option, value: floating(who, option, batch(who, option, value)), grid=_grid)
def mosaics(
    x: jax.Array,
    target: jax.Array,
    *,
    key: jax.Array,
    grid: tuple[int, int] = (2, 2),
    resize: Any = False,
) -> Mosaics:
    """Puts each image into a mosaic among images of other classes: `focus` then needs no boxes.

    The cell of the image and its neighbours are drawn; no neighbour twice, as long as there are
    enough of other classes.

    Args:
      x: `[N, H, W, C]`, floating, channels last; two classes at least.
      target: `[N]`, whole numbers: the classes.
      key: Of the draws.
      grid: Rows and columns of cells.
      resize: False keeps the size of the images, (rows H, columns W); True scales each mosaic down
        to (H, W), for nets that take one size; or its size (h, w).

    Returns:
      `Mosaics`. An image without any other class among the rest has NaN for a mosaic.

    Raises:
      ValueError: `x` are no images, or `target` has not one class an image.

    Example:
      >>> x = jnp.arange(2.0).reshape(2, 1, 1, 1)
      >>> made = mosaics(x, jnp.array([0, 1]), key=jax.random.key(0), grid=(1, 2))
      >>> made.x.shape, made.mask.sum((1, 2)).tolist(), made.x.sum((1, 2, 3)).tolist()
      ((2, 1, 2, 1), [1, 1], [1.0, 1.0])

    Reference:
      Arias-Duart et al. 2022, arXiv:2109.15035, who have two cells of the class; Boehle et al.
      2021, arXiv:2104.00032, section 4.1, who have one, in a 3 x 3 grid of images the net knows.
    """
    name = "mosaics"
    target = integers(name, "target", target)
    if jax.tree.structure(x) != jax.tree.structure(0) or np.ndim(x) != 4:
        raise ValueError(
            f"{name}: x must be images [N, H, W, C]; got {jax.tree.map(np.shape, x)}. One image is "
            "x[None]."
        )
    if np.shape(target) != np.shape(x)[:1]:
        raise ValueError(
            f"{name}: target must be [N] = {np.shape(x)[:1]}, a class an image; got "
            f"{np.shape(target)}."
        )
    return _mosaics(
        x, jnp.asarray(target), same_when_batched(key), grid, _size(name, x, grid, resize)
    )


def _size(name, x, grid, resize):
    height, width = np.shape(x)[1:3]
    if resize is False:
        return grid[0] * height, grid[1] * width
    size = (height, width) if resize is True else tuple(resize)
    if len(size) != 2 or size[0] < grid[0] or size[1] < grid[1]:
        raise ValueError(
            f"{name}: resize must be True, False or a size (h, w), a pixel a cell at least; got "
            f"{resize} for a grid {grid}. Take True for the size of the images."
        )
    return size


@functools.partial(jax.jit, static_argnames=("grid", "size"))
def _mosaics(x, target, key, grid, size):
    rows, columns = grid
    count, cells = len(x), rows * columns
    of_others, of_cells = jax.random.split(key)
    other = target[:, None] != target[None, :]
    drawn = jnp.where(other, jax.random.uniform(of_others, other.shape, jnp.float32), -1)
    order = jnp.argsort(-drawn, axis=1)
    known = other.sum(1)
    number = jnp.arange(cells, dtype=jnp.int32)[None, :]
    turn = number % jnp.maximum(known, 1).astype(jnp.int32)[:, None]
    chosen = jnp.take_along_axis(order, turn, axis=1)  # [N, cells]
    own = jax.random.randint(of_cells, (count,), 0, cells, jnp.int32)
    is_own = own[:, None] == number
    chosen = jnp.where(is_own, jnp.arange(count, dtype=chosen.dtype)[:, None], chosen)
    channels = x.shape[3]

    def laid(cell):  # [N, cells, h, w, ...] -> [N, rows h, columns w, ...]
        h, w, *rest = cell.shape[2:]
        cell = cell.reshape(count, rows, columns, h, w, *rest)
        return jnp.moveaxis(cell, 2, 3).reshape(count, rows * h, columns * w, *rest)

    made = laid(x[chosen])
    made = jnp.where((known > 0).reshape(-1, 1, 1, 1), made, jnp.nan)
    if made.shape[1:3] != tuple(size):
        made = jax.image.resize(made, (count, *size, channels), "bilinear").astype(x.dtype)
    # The mask by the centres of the pixels, so that any size has one.
    row = jnp.asarray((np.arange(size[0]) + 0.5) * rows // size[0], jnp.int32)
    column = jnp.asarray((np.arange(size[1]) + 0.5) * columns // size[1], jnp.int32)
    cell = row[:, None] * columns + column[None, :]
    return Mosaics(made, cell[None] == own[:, None, None], target)


@explanation("method", "grid", "resize", sweeps=True, places=True, grid=_grid)
def grid_pointing_game(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    key: jax.Array,
    grid: tuple[int, int] = (2, 2),
    resize: Any = False,
) -> jax.Array:
    """Which share of the positive attribution is in the class's cell of a mosaic. Higher is better.

    Each image is put into a mosaic among images of other classes (`mosaics`), the mosaic is
    explained for its class, and `focus` is taken. By chance it is 1 / cells.

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, *space]` or the shape of `x`;
        options are bound by `functools.partial`, once.
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`; it must take images as large
        as a mosaic, or have `resize`.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, floating, of two classes at least. Those that the net gets right, and is
        sure of, tell most.
      target: Classes `[N]`, or None for each image's top class.
      key: Of the draws, and of a method that draws.
      grid: Rows and columns of cells.
      resize: As for `mosaics`: True for nets that take one size.

    Returns:
      `[N]`, in [0, 1]; NaN where nothing is positive, or no image of another class is there.

    Raises:
      ValueError: `x` are no images, `target` is no class an image, or the net cannot take mosaics.

    Example:
      >>> from jaxviz.attribution.gradient import input_x_gradient
      >>> net = lambda _, x: x.sum((1, 2))  # a class a channel
      >>> x = jnp.eye(2)[:, None, None, :] * jnp.ones((2, 3, 3, 1))
      >>> out = grid_pointing_game(input_x_gradient, net, None, x, key=jax.random.key(0))
      >>> out.tolist()
      [1.0, 1.0]

    Reference:
      Boehle et al. 2021, arXiv:2104.00032, eq. 10. See `mosaics` for how grids differ.
    """
    name = "grid_pointing_game"
    check_one_array(name, x)
    if x.ndim != 4 or callable(target):
        raise ValueError(
            f"{name}: x must be images [N, H, W, C] and target their classes; got x {x.shape}."
        )
    target = fixed_target(apply_fn, params, x, target)
    target = jnp.broadcast_to(jnp.asarray(target), (len(x),)).astype(jnp.int32)
    size = _size(name, x, grid, resize)
    made = _mosaics(x, target, jax.random.fold_in(key, 0), grid, size)
    explain = explainer(name, method, apply_fn, params, made.x, made.target, key)
    return focus(explain(made.x), made.mask)
