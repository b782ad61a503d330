"""Activation atlases: what a layer knows, laid out in a plane and made visible cell by cell."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import image_list
from jaxviz.calls.options import flag, function, maybe, real, refused, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.factorization import pca
from jaxviz.concepts.pooled import wide
from jaxviz.engine.contract import program, same_when_batched
from jaxviz.engine.layout import ChannelsLast, channels_of
from jaxviz.engine.targets import check_target, output_shape, with_classes
from jaxviz.features.activation_grid import climbed_along
from jaxviz.features.examples import filled, numbered
from jaxviz.graph.held import hold
from jaxviz.graph.split import split_where_read
from jaxviz.parts.channels import channel_axis
from jaxviz.parts.gradients import input_gradient
from jaxviz.rules.fast import is_large

_OUTSIDE = 1.0  # percent of points at either end of an axis, which lie on the edge


class ActivationAtlas(NamedTuple):
    """M cells of a plane on which values of a layer lie, and an image for each.

    Attributes:
      images: `[M, H, W, C]`, or in the layout that the model has: what excites the cell's values.
      cells: `[M, 2]`, row and column of the grid, from its top left.
      grid: `(rows, columns)`.
      counts: `[M]`, how many values lie in the cell.
      directions: `[M, C]`, their mean.
      effects: `[M, K]`, mean share of the values in each class's score: gradient x value.
      classes: `[K]`, which classes.
      points: `[n, 2]`, where each value lies, across and down, from 0 to 1.
      members: `[n]`, its cell, or -1 where that has too few.
      count: n, of how many images values were taken, one of each.
    """

    images: np.ndarray
    cells: np.ndarray
    grid: tuple[int, int]
    counts: np.ndarray
    directions: np.ndarray
    effects: np.ndarray
    classes: np.ndarray
    points: np.ndarray
    members: np.ndarray
    count: int

    __repr__ = shown
    _repr_html_ = shown_html


def _labels(who: str, option: str, value: Any) -> np.ndarray:
    must = "a list of classes, each once"
    found = several(whole(), must, least=0)(who, option, value)
    if len(set(found)) < len(found):
        raise refused(who, option, must, value, kind=ValueError)
    return np.array(found, int)


@public(
    images=image_list,
    layout=maybe(function),
    grid=several(whole(1), "two whole numbers, at least 1, (rows, columns)", count=2),
    classes=maybe(_labels),
    pooled=flag,
    min_count=whole(1),
    cosine_power=real(0),
    batch_size=whole(1),
    chunk_size=maybe(whole(1)),
)
def activation_atlas(
    apply_fn: Callable,
    params: Any,
    images: Any,
    *,
    layer: str,
    key: jax.Array,
    grid: tuple[int, int] = (10, 10),
    layout: Callable | None = None,
    classes: Sequence[int] | None = None,
    pooled: bool = False,
    min_count: int = 5,
    cosine_power: float = 4.0,
    batch_size: int = 64,
    chunk_size: int | None = None,
    **options: Any,
) -> ActivationAtlas:
    """Lays values of a layer out in a plane, and shows what each part of the plane stands for.

    One place of each image is drawn, and its value taken. `layout` puts the values into a plane,
    which a grid divides. For each cell of `min_count` values at least an image is climbed
    (`maximize_activation`) whose layer has the direction of their mean, all cells in one program:
    `objectives.direction`, of the mean times the inverse of the values' second moments, so that
    channels that are large everywhere do not drown what tells cells apart.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      images: As for `top_examples`: `[n, H, W, C]` (or channels first), or an iterable of batches,
        which is read once.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[N, *space, C]`.
      key: Key of the places, and of where climbs begin.
      grid: `(rows, columns)` of the plane.
      layout: `[n, C] -> [n, 2]`, across and up, of any scale: `umap.UMAP().fit_transform`, where it
        is installed. None is the first two principal components, which are quick, keep what is far
        apart apart, and crowd the middle. Of each axis the outermost hundredths lie on the edge.
      classes: Whose scores `effects` has; None is all. Of outputs that are not `[N, K]` there are
        none: ().
      pooled: Whether means over places are taken in place of one place each.
      min_count: Of values in a cell, >= 1.
      cosine_power: As for `objectives.direction`.
      batch_size: Images at once.
      chunk_size: Cells that climb at once, at most; None as for `maximize_activation`.
      **options: Further ones of `maximize_activation`: `num_steps`, `transforms`, ...

    Returns:
      An `ActivationAtlas` of NumPy arrays; `plot.activation_atlas` draws it. Costs a pass over all
      images, a pullback to the layer for each class, the layout, and a climb of all cells, by far
      the most.

    Raises:
      ValueError: No such layer, no images, a layout of another shape, or no cell with enough.

    Example:
      >>> found = activation_atlas(
      ...     net, params, images, layer="relu_1", key=key, num_steps=128
      ... )  # doctest: +SKIP
      >>> plot.activation_atlas(found)  # doctest: +SKIP

    Reference:
      Carter et al. 2019, "Activation Atlas", Distill, doi:10.23915/distill.00015. There the layout
      is UMAP, and an icon is the middle of a larger image; here a direction is followed at all
      places.
    """
    who = "activation_atlas"
    apply_fn, params = hold(who, apply_fn, params)
    draw, climb = jax.random.split(same_when_batched(key))
    seen, moves, size, chosen, shape = [], None, 0, None, ()
    for first, batch in numbered(who, images, batch_size):
        if chosen is None:
            shape, size, given = batch.shape[1:], len(batch), apply_fn
            if moves := channels_of(apply_fn, params, batch):
                apply_fn = ChannelsLast(apply_fn, moves)
        batch = np.moveaxis(batch, moves[0], -1) if moves and moves[0] else batch
        if chosen is None:
            apply_fn = with_classes(apply_fn, params, batch)
            chosen = _classes(who, apply_fn, params, batch, classes)
            taken = functools.partial(_taken, apply_fn, layer, pooled)
            jax.eval_shape(taken, params, batch, draw, first, chosen)
        run = program(_taken, (0, 1, 2), nested=False, large=is_large(params))
        found = run(*(apply_fn, layer, pooled, params, filled(batch, size), draw), first, chosen)
        seen.append([np.asarray(a)[: len(batch)] for a in found])
    if chosen is None:
        raise ValueError(f"{who}: images must hold at least one image; got none.")
    values, effects = (np.concatenate(a) for a in zip(*seen, strict=True))
    if unknown := len(values) - np.isfinite(values).all(1).sum():
        raise ValueError(
            f"{who}: the values of layer {layer!r} must be finite; {unknown} of {len(values)} have "
            "NaN or infinity. Leave those images out, or take a layer before it."
        )
    points = _plane(who, values, layout)
    rows, columns = grid
    at = np.minimum((points * [columns, rows]).astype(int), [columns - 1, rows - 1])
    at = at[:, 1] * columns + at[:, 0]
    counts = np.bincount(at, minlength=rows * columns)
    kept = np.flatnonzero(counts >= min_count)
    if not len(kept):
        raise ValueError(
            f"{who}: min_count must leave a cell; the fullest of {rows} x {columns} has "
            f"{counts.max()} of {len(values)} values. Take a coarser grid, or more images."
        )
    mean = lambda a: np.stack([a[at == cell].mean(0) for cell in kept])
    directions = mean(values)
    pictures = climbed_along(
        given, params, shape, layer, _told_apart(directions, values), key=climb,
        cosine_power=cosine_power, chunk_size=chunk_size, options=options,
    )  # fmt: skip
    number = np.full(rows * columns, -1)
    number[kept] = np.arange(len(kept))
    return ActivationAtlas(
        pictures,
        np.stack(np.divmod(kept, columns), 1),
        (rows, columns),
        counts[kept],
        directions,
        mean(effects),
        np.asarray(chosen),
        points,
        number[at],
        len(values),
    )


def _classes(who, apply_fn, params, x, classes) -> np.ndarray:
    outputs = output_shape(apply_fn, params, x)
    shape = getattr(outputs, "shape", ())
    if classes is None:
        if len(shape) != 2:
            raise ValueError(
                f"{who}: classes must be given for outputs that are not [N, K]; they are {outputs}."
                " Pass classes=() for none."
            )
        return np.arange(shape[1])
    for one in classes:
        check_target(who, apply_fn, params, x, outputs, int(one))
    return classes


def _taken(apply_fn, layer, pooled, params, x, key, first, classes):
    """Of each image a layer's value `[N, C]` at a place, and its share in scores `[N, K]`."""
    head, tail = split_where_read(apply_fn, params, x, layer)
    a, carry = head(params, x)
    axis = channel_axis("activation_atlas", apply_fn, params, x, layer)
    laid = lambda a: jnp.moveaxis(a, axis, -1).reshape(a.shape[0], -1, a.shape[axis])
    values = wide(laid(a))  # NumPy adds bfloat16 up in bfloat16, where means of many stall
    numbers = first + jnp.arange(len(values))
    # Of an image's own number, so that the size of batches changes nothing.
    draw = lambda n: jax.random.randint(
        jax.random.fold_in(key, n), (), 0, values.shape[1], jnp.int32
    )
    places = jax.vmap(draw)(numbers)[:, None, None]
    one = lambda a: jnp.take_along_axis(a, places, 1)[:, 0]

    def effect(label):
        share = values * wide(laid(input_gradient(tail, (params, carry), a, label)))
        return (share.sum(1) if pooled else one(share)).sum(-1)

    effects = jnp.zeros((len(values), 0), values.dtype)
    if len(classes):
        effects = jax.lax.map(effect, classes).T
    return values.mean(1) if pooled else one(values), effects


def _plane(who, values, layout) -> np.ndarray:
    """Where values lie, across and down, from 0 to 1."""
    if layout is None:
        found = np.asarray(pca(values, 2).codes) if min(values.shape) > 1 else None
        points = np.zeros((len(values), 2)) if found is None else found
    else:
        points = np.asarray(layout(values), np.float64)
    if points.shape != (len(values), 2) or not np.isfinite(points).all():
        raise ValueError(
            f"{who}: layout must give finite points [{len(values)}, 2], one a value; got "
            f"{points.shape}."
        )
    low, high = np.percentile(points, [_OUTSIDE, 100 - _OUTSIDE], axis=0)
    points = np.clip((points - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.stack([points[:, 0], 1 - points[:, 1]], 1)


def _told_apart(directions, values):
    """Directions times the inverse of the values' second moments (Carter et al.'s whitening)."""
    moments = values.T.astype(np.float64) @ values / len(values)
    floor = 1e-2 * np.trace(moments) / len(moments) + 1e-12
    return np.linalg.solve(moments + floor * np.eye(len(moments)), directions.T).T
