"""The deconvnet of Zeiler and Fergus in full: a feature map projected back to the pixels."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.contract import explanation
from jaxviz.attribution.gradient import input_gradient
from jaxviz.graph.rewrite import Op, rewrite
from jaxviz.graph.split import split
from jaxviz.rules import lrp, relu
from jaxviz.rules.lrp_composites import composite


@explanation("layer", "strongest")
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
      channel: Index along the layer's last axis, or one for each example `[N]`; new ones do not
        recompile.
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
    head, _ = split(apply_fn, params, x, layer)
    a, _ = head(params, x)
    kept = a * _kept(a, channel, strongest)
    score = lambda outputs: (outputs[0] * kept).reshape(a.shape[0], -1).sum(1)
    return input_gradient(rewrite(head, relu.deconvnet), params, x, score)


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
      ValueError: No such layer, one that is no map `[N, h, w, C]`, or `num_images` not in 1 to M.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x * w)
      >>> images = jnp.array([[[[1.0], [5.0]]], [[[2.0], [3.0]]]])  # two of 1 x 2 pixels
      >>> top = top_projections(net, 2.0, images, layer="relu_0", channel=0, num_images=1)
      >>> top.indices.tolist(), top.scores.tolist(), top.boxes.tolist()
      ([0], [10.0], [[0, 1, 1, 2]])

    Reference:
      Zeiler and Fergus 2013, arXiv:1311.2901, figure 2: the nine strongest of the validation set.
    """
    count = len(images)
    if np.ndim(images) != 4 or not 1 <= num_images <= count:
        raise ValueError(
            "top_projections: images must be [M, H, W, C] and num_images 1 to M; got "
            f"{np.shape(images)} and {num_images}."
        )
    scores = []
    for start in range(0, count, batch_size):
        batch = images[start : start + batch_size]
        missing = min(batch_size, count) - len(batch)  # the last batch is filled up: one program
        batch = np.concatenate([batch, *[batch[-1:]] * missing]) if missing else batch
        found = _scores(apply_fn, layer, params, jnp.asarray(batch), channel)
        scores.append(np.asarray(found)[: len(batch) - missing])
    scores = np.concatenate(scores)
    indices = np.argsort(-scores, kind="stable")[:num_images]
    chosen = jnp.asarray(np.stack([images[i] for i in indices]))
    projected = feature_projection(apply_fn, params, chosen, layer=layer, channel=channel)
    seen = np.asarray(_seen(apply_fn, layer, params, chosen, channel))
    boxes = np.array([_box(mask) for mask in seen])
    height, width = (boxes[:, 2:] - boxes[:, :2]).max(0)
    corners = np.minimum(boxes[:, :2], np.array(seen.shape[1:]) - [height, width])

    def cut(arrays):
        pairs = zip(np.asarray(arrays), corners, strict=True)
        return np.stack([a[i : i + height, j : j + width] for a, (i, j) in pairs])

    return TopProjections(indices, scores[indices], boxes, cut(chosen), cut(projected))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(apply_fn, layer, params, x, channel):
    head, _ = split(apply_fn, params, x, layer)
    a, _ = head(params, x)
    if a.ndim != 4:
        raise ValueError(
            f"top_projections: the layer must be a map [N, h, w, C]; {layer!r} is {a.shape}. "
            "Take a convolution, or pooling, or an activation after one."
        )
    return jnp.take(a, channel, axis=-1).reshape(a.shape[0], -1).max(1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _seen(apply_fn, layer, params, x, channel):
    """Which pixels the strongest activation of the map sees, `[N, H, W]`."""
    head, _ = split(apply_fn, params, x, layer)
    a, _ = head(params, x)
    kept = _kept(a, channel, True)
    score = lambda outputs: (outputs[0] * kept).reshape(a.shape[0], -1).sum(1)
    return (input_gradient(rewrite(head, _sight), params, x, score) != 0).any(-1)


def _kept(a: jax.Array, channel: int | jax.Array, strongest: bool) -> jax.Array:
    """One where a layer's activation is kept, zero elsewhere."""
    index = jnp.broadcast_to(jnp.asarray(channel), a.shape[:1]).reshape(-1, *(1,) * (a.ndim - 1))
    every = jnp.arange(a.shape[-1], dtype=index.dtype).reshape(*(1,) * (a.ndim - 1), -1)
    mask = jnp.broadcast_to(index == every, a.shape)
    if strongest:
        rows = jnp.where(mask, a, -jnp.inf).reshape(a.shape[0], -1)
        best = jnp.argmax(rows, axis=1)
        mask = jax.nn.one_hot(best, rows.shape[1], dtype=a.dtype).reshape(a.shape)
    return mask.astype(a.dtype)


def _spread(op: Op) -> Callable:
    """Every place of a window is seen, not the winner alone."""
    options = op.options

    @jax.custom_jvp
    def replaced(x):
        return op.evaluate(x)

    @replaced.defjvp
    def tangent(primals, tangents):
        zero = jnp.zeros((), tangents[0].dtype)
        seen = jax.lax.reduce_window(
            tangents[0],
            zero,
            jax.lax.add,
            options["window_dimensions"],
            options["window_strides"],
            options["padding"],
            options["base_dilation"],
            options["window_dilation"],
        )
        return op.evaluate(*primals), seen

    return replaced


_sight = composite(
    "receptive_field",
    {
        "conv": lrp.flat(),
        "dense": lrp.flat(),
        "max_pool": _spread,
        **dict.fromkeys(("add", "bias", "sum", "mean", "sum_pool", "avg_pool", "mul"), lrp.keep),
    },
    default=lrp.keep,
)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        return 0, 0, *mask.shape
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
