"""Class activation maps without gradients: the layer's maps weighed by what the score does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import (
    at_least_float32,
    check_one_array,
    outputs_of,
    outputs_of_copies,
    score_of,
    stacked,
    stacked_scores,
)
from jaxviz.parts.feature_maps import (
    Layers,
    Resize,
    class_activation_map,
    over_space,
    resized,
)
from jaxviz.parts.regions import blend

_SHARED = ("layer", "relu", "resize", "reshape", "chunk_size")


@explanation(*_SHARED, "num_channels", sweeps=True, places=True)
def score_cam(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    layer: Layers = None,
    num_channels: int | None = None,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Which places of a layer keep the score up when all else of the input is dimmed.

    relu(sum_k w_k A_k), w the softmax over channels of f_target(x * mask_k), mask_k the map A_k
    resized to the input and scaled to [0, 1].

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      layer, relu, resize, reshape: As for `grad_cam`.
      num_channels: How many channels to try, for each example those whose maps vary most (largest
        standard deviation); None is all. Time is linear in it.
      chunk_size: Masked inputs at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, in units of the activations. Costs one forward pass a channel.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent;
        `num_channels` or `chunk_size` is below 1; `x` is no single array.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> score_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[3.0, 1.0], [0.0, 0.0]]]

    Reference:
      Wang et al. 2020, arXiv:1910.01279, algorithm 1; the score of the black image, subtracted
      there, leaves a softmax as it is. The highest-variance channels alone: "Faster Score-CAM" of
      tf-keras-vis. A map that is flat masks everything.
    """
    name = "score_cam"
    check_one_array(name, x)

    def one(cut):
        a = cut.maps(cut.a).astype(at_least_float32(cut.a))
        if num_channels is not None and num_channels < a.shape[-1]:
            most = jax.lax.top_k(a.std(over_space(a)), num_channels)[1]
            a = jnp.take_along_axis(a, most.reshape(len(x), *[1] * (a.ndim - 2), -1), axis=-1)

        def copy(k):
            mask = resized(name, a[..., k], x, True)
            space = tuple(range(1, mask.ndim))
            low, high = mask.min(space, keepdims=True), mask.max(space, keepdims=True)
            mask = (mask - low) / jnp.where(high > low, high - low, 1)
            return blend(jnp.zeros_like(x), mask[..., None], x)

        outputs = outputs_of_copies(apply_fn, params, x, copy)
        scores, _ = stacked_scores(name, outputs, select, a.shape[-1], chunk_size, x, target)
        weights = jax.nn.softmax(scores.astype(at_least_float32(scores)), axis=0)
        return (a * _channels_last(weights, a)).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map(name, one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True)
def ablation_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Which places of a layer the score rests on: channels weighed by the score lost without them.

    relu(sum_k w_k A_k), w_k = (f - f_k) / f, f_k the score with channel k of the layer set to zero.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      layer, relu, resize, reshape: As for `grad_cam`.
      chunk_size: Ablated copies of the layer's output at once, for all N examples. None chooses by
        its size.

    Returns:
      `[N, *space]`, in units of the activations. Its sign is that of f times the evidence: a
      negative score turns the map round, and a score of zero gives infinities, as in the paper.
      Costs what comes before the layer once, and what follows it once a channel.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent; `chunk_size`
        is below 1.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> ablation_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[3.0, 1.0], [0.0, 0.0]]]

    Reference:
      Desai and Ramaswamy 2020, Ablation-CAM, WACV, eq. 3. pytorch-grad-cam sets channels of a layer
      with negative outputs far below zero; here, as in the paper, to zero.
    """
    name = "ablation_cam"

    def one(cut):
        a = cut.maps(cut.a).astype(at_least_float32(cut.a))
        outputs = outputs_of(cut.tail, cut.params, cut.a)
        chosen = jnp.argmax(outputs, axis=1) if target is None else target
        whole = select(outputs, chosen)

        def score(k):
            here = jnp.arange(a.shape[-1], dtype=k.dtype) == k
            here = jnp.broadcast_to(here, a.shape).astype(cut.a.dtype)
            # The numbers of the layer's own output that are put there.
            (here,) = jax.linear_transpose(cut.maps, cut.a)(here)
            without = jnp.where(here == 0, cut.a, 0)
            return score_of(cut.tail, cut.params, without, chosen)

        scores = stacked(name, score, a.shape[-1], chunk_size, cut.a)
        wide = at_least_float32(whole)
        whole, scores = whole.astype(wide), scores.astype(wide)
        weights = (whole[None, :] - scores) / whole[None, :]
        return (a * _channels_last(weights, a)).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map(name, one, apply_fn, params, x, **shared)


def _channels_last(weights, a):
    """`[channels, N]` beside maps `[N, *space, channels]`."""
    weights = weights.T.astype(a.dtype)
    return weights.reshape(len(a), *[1] * (a.ndim - 2), a.shape[-1])
