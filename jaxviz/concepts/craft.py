"""CRAFT: the concepts that a class's crops share, and how much the score depends on each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import maybe, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.dictionary import Dictionary
from jaxviz.concepts.factorization import nmf
from jaxviz.concepts.importance import concept_importance
from jaxviz.concepts.pooled import places_mean
from jaxviz.engine.contract import Target
from jaxviz.engine.layout import ChannelsLast, channels_of
from jaxviz.graph.held import hold
from jaxviz.graph.split import Values

_PAIR = several(whole(1), "two whole numbers, at least 1, (h, w)", count=2)


class Craft(NamedTuple):
    """K concepts of a class, the most important one first.

    Attributes:
      dictionary: The atoms, as `concept_maps` and `through` take it.
      importance: `[K]`, total Sobol indices of the score, mean over images.
      per_image: `[N, K]`, the same of each image.
      stability: `[K]`, mean cosine to the atoms of other seeds; see `nmf`.
      error: What of the crops' activations no concept says, as a share of their length.
      crops: `[K, M, h, w, C]`, the crops with the largest codes, strongest first.
      crop_codes: `[K, M]`, their codes.
      crop_indices: `[K, M]`, which images they are of.
    """

    dictionary: Dictionary
    importance: np.ndarray
    per_image: np.ndarray
    stability: np.ndarray
    error: float
    crops: np.ndarray
    crop_codes: np.ndarray
    crop_indices: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


@public(
    window=_PAIR,
    stride=maybe(_PAIR),
    num_concepts=whole(1),
    num_seeds=whole(1),
    num_crops=whole(1),
)
def craft(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    window: tuple[int, int],
    stride: tuple[int, int] | None = None,
    key: jax.Array,
    num_concepts: int = 10,
    num_seeds: int = 5,
    num_steps: int = 200,
    num_designs: int = 32,
    num_crops: int = 8,
    batch_size: int = 64,
) -> Craft:
    """Which concepts a net has for the images of a class, and how much its score needs each.

    Crops of all images, brought to the images' size, go through the net up to a layer; their means
    over places are factorised by `nmf`, A ~ U W; each image's score is then watched while its
    concepts fade (`concept_importance`).

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, images of the class; `[N, C, H, W]` where the model has them so.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each image's top class.
      layer: A name of `jaxviz.layers(apply_fn, params, x)` that is never negative.
      window: Height and width of a crop, in pixels.
      stride: Steps between crops; None is 0.8 of the window. The last ones end at the edge.
      key: Key of the starts, and of the designs.
      num_concepts: K; no more than there are crops, or channels.
      num_seeds: Starts of the factorisation.
      num_steps: Of the factorisation, at most; it stops as `nmf` does.
      num_designs: Of the importance, a power of two.
      num_crops: M, how many crops are shown for each concept.
      batch_size: Crops at once.

    Returns:
      A `Craft` of NumPy arrays. Costs a pass to the layer for each crop, the factorisation, and
      num_designs * (K + 2) passes from the layer on for each image.

    Raises:
      ValueError: A window larger than the images, fewer crops than concepts, no such layer, or one
        with negative values.

    Example:
      >>> found = craft(
      ...     net, params, zebras, 340, layer="fire9", window=(64, 64), key=key
      ... )  # doctest: +SKIP
      >>> plot.concepts(found)  # doctest: +SKIP

    Reference:
      Fel et al. 2023, arXiv:2211.10154, section 3. One level: its recursion is another call, on an
      earlier layer and the crops of one concept. Here several seeds are factorised, and the best is
      taken; codes are of means over places, as there.
    """
    who = "craft"
    held, arrays = hold(who, apply_fn, params)
    moves = channels_of(held, arrays, x)
    if np.ndim(x) != 4:
        raise ValueError(f"{who}: x must be [N, H, W, C]; got {np.shape(x)}. One is x[None].")
    axis = moves[0] if moves is not None else None  # of the channels, where it is not the last
    if moves is not None and axis is not None:
        held, x = ChannelsLast(held, moves), jnp.moveaxis(jnp.asarray(x), axis, -1)
    steps = stride or [max(1, round(0.8 * n)) for n in window]
    crops, images = _crops(who, np.asarray(x), window, steps)
    if len(crops) < num_concepts:
        raise ValueError(
            f"{who}: num_concepts must be at most the number of crops, {len(crops)}; got "
            f"{num_concepts}. Take a smaller stride or window, or more images."
        )
    values = []
    for start in range(0, len(crops), batch_size):  # the last batch is filled up: one program
        at = np.minimum(np.arange(start, start + batch_size), len(crops) - 1)
        kept = min(batch_size, len(crops) - start)
        run = _values(held, layer, x.shape[1:3], arrays, crops[at])
        values.append(np.asarray(run)[:kept])
    draws, shift = jax.random.split(key)
    factors = nmf(
        np.concatenate(values), num_concepts, key=draws, num_seeds=num_seeds, num_steps=num_steps
    )
    labels: Any = target
    listed = hasattr(target, "__len__") and np.shape(labels) == (len(x),)
    batches = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    importance = functools.partial(
        concept_importance, layer=layer, dictionary=factors.dictionary, key=shift,
        num_designs=num_designs,
    )  # fmt: skip
    shares = np.concatenate(
        [
            np.asarray(importance(held, arrays, x[at], labels[at] if listed else target))
            for at in batches
        ]
    )
    order = np.argsort(-shares.mean(0), kind="stable")
    codes = np.asarray(factors.codes)[:, order].T
    best = np.argsort(-codes, 1, kind="stable")[:, :num_crops]
    shown_crops = crops[best]
    if axis is not None:
        shown_crops = np.moveaxis(shown_crops, -1, axis + 1)
    return Craft(
        Dictionary(factors.dictionary.atoms[order]),
        shares.mean(0)[order],
        shares[:, order],
        factors.stability[order],
        float(np.asarray(factors.errors).min()),
        shown_crops,
        np.take_along_axis(codes, best, 1),
        images[best],
    )


def _crops(who, x, window, stride):
    """All crops `[M, h, w, C]` of images, and the images they are of."""
    size = x.shape[1:3]
    if any(w > n for w, n in zip(window, size, strict=True)):
        raise ValueError(f"{who}: window must fit into the images, {size}; got {tuple(window)}.")
    starts = [
        sorted({*range(0, n - w + 1, s), n - w})
        for n, w, s in zip(size, window, stride, strict=True)
    ]
    h, w = window
    parts = [x[:, i : i + h, j : j + w] for i in starts[0] for j in starts[1]]
    return np.concatenate(parts), np.tile(np.arange(len(x)), len(parts))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _values(apply_fn, layer, size, params, crops):
    """The mean over places of a layer for crops as large as images, `[M, C]`."""
    large = jax.image.resize(crops, (len(crops), *size, crops.shape[-1]), "bilinear")
    found = Values(apply_fn, (layer,), "craft", channels_last=True)(params, large)
    return places_mean(found[layer])
