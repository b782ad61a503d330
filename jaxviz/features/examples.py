"""The images of a data set that excite each unit of a layer most, and what of them it sees."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxviz.calls.arrays import image_list
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import program
from jaxviz.engine.layout import ChannelsLast, channels_of
from jaxviz.graph.held import hold
from jaxviz.graph.layers import layer_named
from jaxviz.graph.receptive import receptive_field
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.split import Values
from jaxviz.rules.fast import fast, is_large


class TopExamples(NamedTuple):
    """For each of U units of a layer, the K places in a data set that excite it most.

    Attributes:
      scores: `[U, K]`, the activations there, largest first: the strongest place of each image.
      indices: `[U, K]`, which images; -1 (and a score of minus infinity) where there were fewer.
      boxes: `[U, K, 4]`, top, left, bottom, right: what of the image the place can see.
      patches: `[U, K, h, w, C]`, or with channels first as the images have them: the images cut
        there, all of the size of the layer's largest receptive field, moved to lie inside.
      means: `[U]`, mean activation over all images and places.
      count: How many images there were.
    """

    scores: np.ndarray
    indices: np.ndarray
    boxes: np.ndarray
    patches: np.ndarray
    means: np.ndarray
    count: int

    __repr__ = shown
    _repr_html_ = shown_html


@public(images=image_list)
def top_examples(
    apply_fn: Callable,
    params: Any,
    images: Any,
    *,
    layer: str,
    num_images: int = 9,
    batch_size: int = 64,
) -> TopExamples:
    """Streams a data set through a layer once and keeps what excites each unit most.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      images: `[M, H, W, C]`, or `[M, C, H, W]` as the model has it, floating (anything with a
        length that slices, so a memory map too), or an iterable of such batches, which is read once
        and never held.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[N, *space, U]`.
      num_images: K, how many images for each unit, >= 1.
      batch_size: Images at once.

    Returns:
      A `TopExamples` of NumPy arrays. Costs one forward pass of the part of the model up to the
      layer over all images; memory is that of a batch and of the patches.

    Raises:
      ValueError: No such layer, no images, or images of differing shapes.

    Example:
      >>> import jax
      >>> net = lambda w, x: jax.nn.relu(x * w)
      >>> images = np.array([[[[1.0], [5.0]]], [[[2.0], [3.0]]]], "f4")  # two of 1 x 2 pixels
      >>> top = top_examples(net, 2.0, images, layer="relu_0", num_images=2)
      >>> top.indices.tolist(), top.scores.tolist(), top.patches.ravel().tolist()
      ([[0, 1]], [[10.0, 6.0]], [5.0, 3.0])
    """
    who = "top_examples"
    apply_fn, params = hold(who, apply_fn, params)
    found, moves, size = None, None, 0
    for first, batch in numbered(who, images, batch_size):
        if found is None and (moves := channels_of(apply_fn, params, batch)):
            apply_fn = ChannelsLast(apply_fn, moves)
        batch = np.moveaxis(batch, moves[0], -1) if moves and moves[0] else batch
        if found is None:
            # First, for it tells of a wrong layer in this function's name.
            jax.eval_shape(functools.partial(_strongest, apply_fn, layer), params, batch)
            found, size = Collection(who, apply_fn, params, batch, layer, num_images), len(batch)
        compiled = program(_strongest, (0, 1), nested=False, large=is_large(params))
        found.add(first, batch, compiled(apply_fn, layer, params, filled(batch, size)))
    if found is None:
        raise ValueError(f"{who}: images must hold at least one image; got none.")
    top = found.result()
    if not moves or not moves[0]:
        return top
    return top._replace(patches=np.moveaxis(top.patches, -1, moves[0] + 1))


def numbered(who: str, images: Any, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of at most `size` images, with the number of the first."""
    whole = hasattr(images, "shape")
    batches: Iterable = [images] if whole else images
    start, shape = 0, None
    for batch in batches:
        if np.ndim(batch) != 4 or shape not in (None, np.shape(batch)[1:]):
            raise ValueError(
                f"{who}: images must be [M, H, W, C], all of one size; got {np.shape(batch)}"
                + (f" after {shape}." if shape else ". One image is image[None].")
            )
        shape = np.shape(batch)[1:]
        for at in range(0, len(batch), size):
            part = np.asarray(batch[at : at + size])
            yield start, part
            start += len(part)


class Collection:
    """What the pass over a data set has found so far."""

    def __init__(self, who, apply_fn, params, batch, layer, num):
        self.num = num
        axis = layer_named(who, apply_fn, params, batch, layer).channel_axis
        # Without the batch, and with the four edges last.
        self.fields = np.moveaxis(receptive_field(apply_fn, params, batch, layer), axis - 1, -2)
        units = self.fields.shape[-2]
        self.fields = self.fields.reshape(-1, *self.fields.shape[-2:])  # [places, U, 4]
        spans = self.fields[..., 2:] - self.fields[..., :2]
        self.patch = spans.reshape(-1, 2).max(0)
        self.room = np.array(batch.shape[1:3]) - self.patch
        self.scores = np.full((units, num), -np.inf, np.float32)
        self.indices = np.full((units, num), -1)
        self.boxes = np.zeros((units, num, 4), int)
        self.patches = np.zeros((units, num, *self.patch, batch.shape[3]), batch.dtype)
        self.total, self.count = np.zeros(units), 0

    def add(self, first: int, batch: np.ndarray, found: tuple) -> None:
        """Takes in a batch: of each image and unit a score, a place and a mean, `[N, U]` each."""
        length = len(batch)
        strongest, places, means = (np.asarray(a)[:length] for a in found)
        self.total += means.sum(0, dtype=np.float64)  # bfloat16 would stall in its own
        self.count += length
        scores = np.concatenate([self.scores, strongest.T], 1)
        order = np.argsort(-scores, 1, kind="stable")[:, : self.num]  # [U, K]
        for unit in np.flatnonzero((order >= self.num).any(1)):
            old = [getattr(self, name)[unit].copy() for name in ("indices", "boxes", "patches")]
            for rank, at in enumerate(order[unit]):
                if at < self.num:
                    new = [a[at] for a in old]
                else:
                    n = at - self.num
                    box = self.fields[places[n, unit], unit]
                    i, j = np.minimum(box[:2], self.room)
                    height, width = self.patch
                    new = [first + n, box, batch[n, i : i + height, j : j + width]]
                for name, value in zip(("indices", "boxes", "patches"), new, strict=True):
                    getattr(self, name)[unit, rank] = value
        self.scores = np.take_along_axis(scores, order, 1)

    def result(self) -> TopExamples:
        means = (self.total / self.count).astype(np.float32)
        return TopExamples(self.scores, self.indices, self.boxes, self.patches, means, self.count)


def filled(batch: np.ndarray, size: int) -> np.ndarray:
    """A last batch filled up: one program."""
    fill = [batch[-1:]] * (size - len(batch))
    return np.concatenate([batch, *fill]) if fill else batch


def _strongest(apply_fn, layer, params, x):
    """Of each image and unit the largest activation, its place, and the mean."""
    model = rewrite(Values(apply_fn, (layer,), "top_examples", True), fast)
    a = model(params, x)[layer]
    a = a.reshape(a.shape[0], -1, a.shape[-1])
    return a.max(1), a.argmax(1), a.mean(1)
