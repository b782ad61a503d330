"""Class activation maps without gradients: the layer's maps weighed by what the score does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attribution.path import between
from jaxviz.calls.options import real
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import (
    at_least_float32,
    check_one_array,
    fixed_target,
    outputs_of,
    outputs_of_copies,
    score_of,
    stacked,
    stacked_scores,
)
from jaxviz.engine.rounds import FEW, error_shares, mean_until, stops_early
from jaxviz.graph.affine import affine_start
from jaxviz.parts.feature_maps import (
    Layers,
    Resize,
    class_activation_map,
    over_space,
    resized,
)
from jaxviz.parts.regions import blend
from jaxviz.rules.fast import serving, weighed

_SHARED = ("layer", "relu", "resize", "reshape", "chunk_size")
_BY_SCORES = (*_SHARED, "num_channels")


@explanation(*_BY_SCORES, sweeps=True, places=True)
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
        a = _tried(cut, num_channels)
        seen = lambda k, mask: blend(jnp.zeros_like(x), mask, x)
        return _by_scores(name, apply_fn, params, x, target, a, seen, 1, chunk_size)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map(name, one, apply_fn, params, x, **shared)


@explanation(
    *(*_BY_SCORES, "num_samples"), nonzero=("tolerance",), sweeps=True, places=True, std=real(0)
)
def ss_cam(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    key: jax.Array,
    layer: Layers = None,
    num_channels: int | None = None,
    num_samples: int = 35,
    std: float = 2.0,
    tolerance: float = 0.0,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Score-CAM whose scores are means over noisy masks (smoothed Score-CAM).

    relu(sum_k w_k A_k), w the softmax over channels of mean_j f_target(x * (mask_k + s_j)), mask_k
    as in `score_cam`, s_j Gaussian of deviation `std`, drawn anew at each place.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the noise, which is the same whatever `chunk_size` is.
      layer, relu, resize, reshape: As for `grad_cam`.
      num_channels: As for `score_cam`.
      num_samples: Noisy masks a channel, >= 1. Time is linear in it, memory constant.
      std: Standard deviation of the noise, >= 0, where masks go from 0 to 1.
      tolerance: Above 0, it stops after a round of 8 masks of each channel when no standard error
        of the map is above this share of its example's range, the largest less the smallest;
        `num_samples` is the most. The same key draws the same. All examples take as many as the
        slowest of their batch, and cores do not share rounds. 0 takes all; reverse differentiation
        needs that.
      chunk_size: Masked inputs at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, in units of the activations; without noise `score_cam`. Costs `num_samples`
      forward passes a channel.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent;
        `num_channels`, `num_samples` or `chunk_size` is below 1; `x` is no single array.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> draw = dict(layer="relu_0", key=jax.random.key(0), num_samples=2)
      >>> ss_cam(net, jnp.ones((1, 1)), x, 0, **draw).tolist()
      [[[3.0, 1.0], [0.0, 0.0]]]

    Reference:
      Wang et al. 2020, SS-CAM, arXiv:2006.14255, the variant with noise on the maps; its defaults
      are torch-cam's. That scales maps to [0, 1] before they are resized; here after, as in
      `score_cam`.
    """
    name = "ss_cam"
    check_one_array(name, x)

    def one(cut):
        a = _tried(cut, num_channels)

        def seen(k, mask):
            noise = jax.random.normal(jax.random.fold_in(key, k), mask.shape, mask.dtype)
            return ((mask + jnp.asarray(std, mask.dtype) * noise) * x).astype(x.dtype)

        given = (name, apply_fn, params, x, target, a, seen, num_samples, chunk_size)
        return _by_scores(*given, tolerance)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map(name, one, apply_fn, params, x, **shared)


@explanation(*_BY_SCORES, "num_steps", sweeps=True, places=True)
def is_cam(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    layer: Layers = None,
    num_channels: int | None = None,
    num_steps: int = 10,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Score-CAM whose scores are means over masks that grow stronger (integrated Score-CAM).

    relu(sum_k w_k A_k), w the softmax over channels of mean_i f_target(c_i x * mask_k), mask_k as
    in `score_cam`, c_i = (1 + ... + i) / num_steps, i from 1 to num_steps.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      layer, relu, resize, reshape: As for `grad_cam`.
      num_channels: As for `score_cam`.
      num_steps: Strengths of each mask, >= 1. Time is linear in it, memory constant.
      chunk_size: Masked inputs at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, in units of the activations; of one step `score_cam`. Costs `num_steps` forward
      passes a channel, of which what is affine in the input (the first layer, mostly) is run once.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent;
        `num_channels`, `num_steps` or `chunk_size` is below 1; `x` is no single array.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> is_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0", num_steps=2).tolist()
      [[[3.0, 1.0], [0.0, 0.0]]]

    Reference:
      Naidu et al. 2020, IS-CAM, arXiv:2010.03023, as torch-cam 0.5 has it: strengths add up from
      step to step, so that the last is (num_steps + 1) / 2, brighter than `x` itself. That scales
      maps to [0, 1] before they are resized; here after, as in `score_cam`.
    """
    name = "is_cam"
    check_one_array(name, x)

    def one(cut):
        a = _tried(cut, num_channels)
        chosen = fixed_target(apply_fn, params, x, target)
        strengths = jnp.cumsum(jnp.arange(1, num_steps + 1, dtype=a.dtype)) / num_steps
        with serving(num_steps * a.shape[-1]):
            parts = affine_start(apply_fn, params, x, rules=weighed(), once=weighed())
        black = parts.start(params, jnp.zeros_like(x))

        def score(k):  # what is affine in the input is run once for all strengths
            whole = parts.start(params, (_mask(name, a, k, x) * x).astype(x.dtype))

            def add(total, strength):
                found = select(parts.rest(params, between(black, whole, strength)), chosen)
                return total + found.astype(total.dtype), None

            return jax.lax.scan(add, jnp.zeros(len(x), a.dtype), strengths)[0] / num_steps

        return _weighed(a, stacked(name, score, a.shape[-1], chunk_size, black))[0]

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


def _tried(cut, num_channels):
    """The layer's maps; of more channels than `num_channels` those that vary most."""
    a = cut.maps(cut.a).astype(at_least_float32(cut.a))
    if num_channels is None or num_channels >= a.shape[-1]:
        return a
    most = jax.lax.top_k(a.std(over_space(a)), num_channels)[1]
    return jnp.take_along_axis(a, most.reshape(len(a), *[1] * (a.ndim - 2), -1), axis=-1)


def _by_scores(name, apply_fn, params, x, target, a, seen, each, chunk_size, tolerance=0.0):
    """Maps `a`, each weighed by the softmax over channels of its mean score.

    `seen(k, mask)` is the input that channel k // each lets through, `[N, *space, 1]` in [0, 1].
    """

    copy = lambda k: seen(k, _mask(name, a, k if each == 1 else k // each, x))
    num, outputs = a.shape[-1], outputs_of_copies(apply_fn, params, x, copy)

    if stops_early(tolerance):
        target = fixed_target(apply_fn, params, x, target)

        def turn(k):  # a mask of each channel
            score = lambda channel: select(outputs(channel * each + k), target)
            return stacked(name, score, num, chunk_size, x).T

        def told(so_far):  # the map's error is that of the scores, to first order
            found, weights = _weighed(a, so_far.mean.T)
            parts = weights * (a - found[..., None]) * _channels_last(so_far.errors.T, a)
            return error_shares(found, jnp.sqrt(jnp.square(parts).sum(-1)))

        drawn = mean_until(name, turn, each, 1, x, tolerance, told, FEW)
        return _weighed(a, drawn.mean.T)[0]
    scores, _ = stacked_scores(name, outputs, select, num * each, chunk_size, x, target)
    scores = scores.astype(at_least_float32(scores)).reshape(-1, each, len(x)).mean(1)
    return _weighed(a, scores)[0]


def _mask(name, a, channel, x):
    """`[N, *space, 1]`: a channel's map at the size of `x`, from 0 to 1."""
    mask = resized(name, a[..., channel], x, True)
    space = tuple(range(1, mask.ndim))
    low, high = mask.min(space, keepdims=True), mask.max(space, keepdims=True)
    return ((mask - low) / jnp.where(high > low, high - low, 1))[..., None]


def _weighed(a, scores):
    """Maps weighed by the softmax over channels of scores `[channels, N]`; and the weights."""
    weights = _channels_last(jax.nn.softmax(scores, axis=0), a)
    return (a * weights).sum(-1), weights


def _channels_last(weights, a):
    """`[channels, N]` beside maps `[N, *space, channels]`."""
    weights = weights.T.astype(a.dtype)
    return weights.reshape(len(a), *[1] * (a.ndim - 2), a.shape[-1])
