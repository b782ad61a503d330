"""The deconvnet of Zeiler and Fergus in full: a feature map projected back to the pixels."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import images
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import explanation
from jaxviz.engine.layout import ChannelsLast, channels_of
from jaxviz.graph.held import hold
from jaxviz.graph.indices import is_channel
from jaxviz.graph.receptive import receptive_field
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.split import split
from jaxviz.parts.channels import channel_axis, checked_channel
from jaxviz.parts.gradients import input_gradient
from jaxviz.rules import relu


@public()
def feature_projection(
    apply_fn: Callable,
    params: Any,
    x: Any,
    *,
    layer: str,
    channel: int | jax.Array,
    strongest: bool = True,
) -> Any:
    """Projects one feature map back to the pixels that made it.

    All of the layer but the map is set to zero; then, downwards, each max pooling puts values back
    where its winners stood (the switches), each ReLU keeps what is positive, each convolution is
    applied transposed.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[N, ..., C]`.
      channel: Index along the layer's axis of channels (`Layer.channel_axis`), or one for each
        example `[N]`; new ones do not recompile. One that is not there is refused, or gives NaN
        where it is traced.
      strongest: Whether only the map's largest activation is kept, else all of the map.

    Returns:
      The shape of `x`, signed: activation times weights along the paths. Costs one forward and one
      backward pass of the part before the layer.

    Raises:
      ValueError: No such layer (the nearest are named), or `x` is no batch.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w)
      >>> w, x = jnp.array([[1.0, 5.0], [-2.0, 5.0]]), jnp.array([[4.0, 1.0]])
      >>> feature_projection(net, w, x, layer="relu_0", channel=0).tolist()  # activation 2
      [[2.0, -4.0]]

    Reference:
      Zeiler and Fergus 2013, arXiv:1311.2901, section 2.1. They show single strongest activations.
    """
    checked_channel("feature_projection", apply_fn, params, x, layer, channel)
    options = {"layer": layer, "channel": channel, "strongest": strongest}
    return _projected(apply_fn, params, x, **options)


def _feature_projection(apply_fn, params, x, *, layer, channel, strongest):
    head, _ = split(apply_fn, params, x, layer)
    a, _ = head(params, x)
    kept = _kept(
        a, channel, channel_axis("feature_projection", apply_fn, params, x, layer), strongest
    )
    score = lambda outputs: (outputs[0] * kept).reshape(a.shape[0], -1).sum(1)
    return input_gradient(rewrite(head, relu.deconvnet), params, x, score)


_feature_projection.__name__ = "feature_projection"
_projected = explanation("layer", "strongest")(_feature_projection)


class TopProjections(NamedTuple):
    """The images of a set that excite a feature map most, and why.

    Attributes:
      indices: `[K]`, which images, strongest first.
      scores: `[K]`, their largest activations of the map, in units of the layer.
      boxes: `[K, 4]`, top, left, bottom, right: what of the image that activation sees.
      patches: `[K, h, w, C]`, the images cut there (all one size, moved to lie inside the image).
      projections: `[K, h, w, C]`, their projections cut likewise.
    """

    indices: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    patches: np.ndarray
    projections: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


@public(images=images, channel=whole(0))
def top_projections(
    apply_fn: Callable,
    params: Any,
    images: Any,
    *,
    layer: str,
    channel: int,
    num_images: int = 9,
    batch_size: int = 64,
) -> TopProjections:
    """Finds the images that excite a feature map most and projects each strongest activation back.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      images: `[M, H, W, C]`, floating; an array on the host is sent to the device in batches.
      layer: A name of `jaxviz.layers(apply_fn, params, images[:1])`; its output is `[N, h, w, C]`.
      channel: Index along the layer's last axis.
      num_images: How many, 1 to M.
      batch_size: Images at once.

    Returns:
      A `TopProjections` of NumPy arrays. The whole set costs one forward pass up to the layer.

    Raises:
      ValueError: No such layer, one that is no map `[N, h, w, C]`, no such channel, or `num_images`
        not in 1 to M.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x * w)
      >>> images = jnp.array([[[[1.0], [5.0]]], [[[2.0], [3.0]]]])  # two of 1 x 2 pixels
      >>> top = top_projections(net, 2.0, images, layer="relu_0", channel=0, num_images=1)
      >>> top.indices.tolist(), top.scores.tolist(), top.boxes.tolist()
      ([0], [10.0], [[0, 1, 1, 2]])

    Reference:
      Zeiler and Fergus 2013, arXiv:1311.2901, figure 2: the nine strongest of the validation set.
    """
    apply_fn, params = hold("top_projections", apply_fn, params)
    count = len(images)
    if np.ndim(images) != 4 or not 1 <= num_images <= count:
        raise ValueError(
            "top_projections: images must be [M, H, W, C] and num_images 1 to M; got "
            f"{np.shape(images)} and {num_images}."
        )
    moves = channels_of(apply_fn, params, images[:1])
    if moves and (axis := moves[0]):
        twin = ChannelsLast(apply_fn, moves)
        moved = np.moveaxis(np.asarray(images), axis, -1)
        options = {"num_images": num_images, "batch_size": batch_size}
        top = top_projections(twin, params, moved, layer=layer, channel=channel, **options)
        back = lambda a: np.moveaxis(a, -1, axis)
        return top._replace(patches=back(top.patches), projections=back(top.projections))
    axis = channel_axis("top_projections", apply_fn, params, images[:1], layer)
    field = receptive_field(apply_fn, params, images[:1], layer)
    if field.ndim == 4:
        field = np.moveaxis(field, axis - 1, 2)  # without the batch, and with the edges last
    if field.ndim != 4 or not 0 <= channel < field.shape[2]:
        raise ValueError(
            "top_projections: the layer must be a map [N, h, w, C] and channel 0 to C - 1; got "
            f"{layer!r} of {('N', *field.shape[:-1])} and {channel}. Take a convolution, or "
            "pooling, or an activation after one."
        )
    scores, places = [], []
    for start in range(0, count, batch_size):
        batch = images[start : start + batch_size]
        missing = min(batch_size, count) - len(batch)  # the last batch is filled up: one program
        batch = np.concatenate([batch, *[batch[-1:]] * missing]) if missing else batch
        best, place = _strongest(apply_fn, layer, params, jnp.asarray(batch), channel)
        scores.append(np.asarray(best)[: len(batch) - missing])
        places.append(np.asarray(place)[: len(batch) - missing])
    scores, places = np.concatenate(scores), np.concatenate(places)
    indices = np.argsort(-scores, kind="stable")[:num_images]
    chosen = jnp.asarray(np.stack([images[i] for i in indices]))
    projected = feature_projection(apply_fn, params, chosen, layer=layer, channel=channel)
    boxes = field[:, :, channel].reshape(-1, 4)[places[indices]]
    height, width = (boxes[:, 2:] - boxes[:, :2]).max(0)
    corners = np.minimum(boxes[:, :2], np.array(chosen.shape[1:3]) - [height, width])

    def cut(arrays):
        pairs = zip(np.asarray(arrays), corners, strict=True)
        return np.stack([a[i : i + height, j : j + width] for a, (i, j) in pairs])

    return TopProjections(indices, scores[indices], boxes, cut(chosen), cut(projected))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _strongest(apply_fn, layer, params, x, channel):
    """Of each example the map's largest activation, and its place in the flattened map."""
    head, _ = split(apply_fn, params, x, layer)
    a, _ = head(params, x)
    axis = channel_axis("top_projections", apply_fn, params, x, layer)
    rows = jnp.take(a, channel, axis=axis).reshape(a.shape[0], -1)
    return rows.max(1), jnp.argmax(rows, axis=1)


def _kept(a: jax.Array, channel: int | jax.Array, axis: int, strongest: bool) -> jax.Array:
    """A layer's activation where it is kept, zero elsewhere; NaN for a channel that is absent."""
    here, present = is_channel(a, channel, axis)
    mask = jnp.broadcast_to(here, a.shape)
    if strongest:
        rows = jnp.where(mask, a, -jnp.inf).reshape(a.shape[0], -1)
        best = jnp.argmax(rows, axis=1)
        mask = jax.nn.one_hot(best, rows.shape[1], dtype=bool).reshape(a.shape)
    return jnp.where(mask, a, 0) * present
