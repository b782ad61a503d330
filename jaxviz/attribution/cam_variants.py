"""Class activation maps of other scores, of noisy inputs, and without a class."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attribution.cam import weighed_by_alphas
from jaxviz.calls.options import real, whole
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least_float32,
    fixed_target,
    noisy_where_finite,
    outputs_of,
    running_sum,
    wide,
    with_noise,
)
from jaxviz.engine.rounds import error_shares, mean_until, stops_early
from jaxviz.parts.feature_maps import (
    Layers,
    Resize,
    class_activation_map,
    map_and_gradient,
    over_space,
)
from jaxviz.parts.gradients import input_gradient
from jaxviz.parts.picking import contrast

_SHARED = ("layer", "relu", "resize", "reshape")


@explanation(*_SHARED, places=True)
def elementwise_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> jax.Array:
    """What of a place speaks for the explained number, without what speaks against it.

    sum_k relu(g_k * A_k), g_k = d f_target / d A_k.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`. No number is negative, with `relu` or
        without.

    Returns:
      `[N, *space]`, in units of the explained output. Costs the head once and one forward and
      backward pass of what follows the layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> elementwise_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      pytorch-grad-cam, "GradCAMElementWise"; there is no paper. `hires_cam` with the ReLU inside of
      the sum over channels; where activations are not negative (after a ReLU) it is `layer_cam`.
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        return jnp.maximum(g * a, 0).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("elementwise_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, "num_references", places=True, alpha=real(0), num_references=whole(1))
def finer_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    alpha: float = 0.6,
    num_references: int = 3,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> jax.Array:
    """What tells a class from those that are most like it: Grad-CAM of their difference.

    `grad_cam` of f_c - alpha * mean_t f_t, t the classes whose scores are nearest to f_c at `x`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.
      alpha: How much of the others is taken off, >= 0; with 0 it is `grad_cam`.
      num_references: How many classes to compare with, or all others where there are fewer.

    Returns:
      `[N, *space]`, in units of the explained output.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent; fewer than
        two classes; `target` is a function.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> finer_cam(net, jnp.array([[1.0, 0.5]]), x, 0, layer="relu_0", alpha=1.0).tolist()
      [[[0.375, 0.125], [0.0, 0.0]]]

    Reference:
      Zhang et al. 2025, Finer-CAM, arXiv:2501.11309; alpha and the number as there, and as in
      torch-cam 0.5. pytorch-grad-cam 1.5.7 takes alpha 1 and weighs the others by their
      probabilities, which it differentiates too. Any other method gives the same contrast with the
      target `jaxviz.targets.finer`.
    """
    name = "finer_cam"
    if callable(target):
        raise ValueError(
            f"{name}: target must be a class, whose like are looked for; got a function. Pass "
            "an index, or take `grad_cam`, whose target may be any function."
        )

    def one(cut):
        chosen = fixed_target(cut.tail, cut.params, cut.a, target)
        score = lambda outputs: contrast(name, outputs, chosen, alpha, num_references)
        a, g = map_and_gradient(cut, score)
        return (g.mean(over_space(g), keepdims=True) * a).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map(name, one, apply_fn, params, x, **shared)


@explanation(
    *(*_SHARED, "num_samples", "chunk_size"), nonzero=("tolerance",), sweeps=True, places=True
)
def smooth_grad_cam_pp(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    layer: Layers = None,
    num_samples: int = 25,
    noise_scale: float = 0.15,
    tolerance: float = 0.0,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Grad-CAM++ whose derivatives are means over noisy inputs.

    relu(sum_k w_k A_k), w_k = sum over places of alpha relu(D1), alpha = D2 / (2 D2 + D3 sum_space
    A_k) where D1 > 0, scaled to sum to 1 over space; Dp = mean_j (d f_target / d A_k at x + s_j)^p.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the noise, which is the same whatever `chunk_size` is.
      layer, relu, resize, reshape: As for `grad_cam`.
      num_samples: Noisy copies of each example, >= 1. Time is linear in it, memory constant.
      noise_scale: Standard deviation of the noise as a share of each example's range (max - min).
      tolerance: Above 0, it stops after a round of 32 copies when no standard error of a mean
        derivative D1 is above this share of its example's range of them, the largest less the
        smallest; `num_samples` is the most. All examples take as many as the slowest of their
        batch, and cores do not share rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Copies at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, in units of the explained output; without noise `grad_cam_pp`. NaN for an
      example that holds NaN or infinity.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent;
        `num_samples` or `chunk_size` is below 1; `noise_scale` is negative or not finite.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> draw = dict(layer="relu_0", key=jax.random.key(0), num_samples=2)
      >>> smooth_grad_cam_pp(net, jnp.ones((1, 1)), x, 0, **draw).tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Omeiza et al. 2019, arXiv:1908.01224, eq. 4-7. The numerator of alpha is printed as D1 there;
      D2 stands in Grad-CAM++, which this is without noise, and in torch-cam 0.5. That takes relu of
      the last sample's gradient in place of D1, and does not scale the alphas. Derivatives are
      those of exp(f) without the factor exp(f), as in `grad_cam_pp`. `smooth_grad(grad_cam_pp)`
      averages maps.
    """
    name = "smooth_grad_cam_pp"
    chosen = target if callable(target) else fixed_target(apply_fn, params, x, target)

    def one(cut):
        def powers(k):
            noisy = with_noise(jax.random.fold_in(key, k), x, noise_scale)
            a, carry = outputs_of(cut.head, params, noisy)
            g = cut.maps(input_gradient(cut.tail, (params, carry), a, chosen))
            g = wide(g)
            return g, g**2, g**3

        if stops_early(tolerance):
            told = lambda so_far: error_shares(so_far.mean[0], so_far.errors[0])
            seen = mean_until(name, powers, num_samples, chunk_size, x, tolerance, told)
            first, second, third = seen.mean
        else:
            total = running_sum(name, powers, num_samples, chunk_size, x)
            first, second, third = (d / num_samples for d in total)
        a = cut.maps(cut.a).astype(first.dtype)
        summed = a.sum(over_space(a), keepdims=True)
        found = weighed_by_alphas(a, first, 2 * second + third * summed, second)
        marks = noisy_where_finite(x).astype(found.dtype)
        return found * marks.reshape(-1, *[1] * (found.ndim - 1))

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map(name, one, apply_fn, params, x, **shared)


@explanation(*_SHARED, "num_deviations", places=True, classless=True, num_deviations=real(0))
def fem(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    num_deviations: float = 2.0,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> jax.Array:
    """Where channels stand out from themselves, whatever the class (feature explanation method).

    sum_k mean(A_k) [A_k >= mean(A_k) + num_deviations * std(A_k)], mean and std over space.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Not used: the map is the same for every class. Taken so that all methods are called
        alike.
      layer, relu, resize, reshape: As for `grad_cam`.
      num_deviations: From how many standard deviations above its mean a channel counts at a place,
        >= 0.

    Returns:
      `[N, *space]`, in units of the activations. A channel that is the same at every place stands
      out nowhere. Costs one forward pass up to the layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> fem(net, jnp.ones((1, 1)), x, 0, layer="relu_0", num_deviations=1.0).tolist()
      [[[1.0, 0.0], [0.0, 0.0]]]

    Reference:
      Fuad et al. 2020, Features understanding in 3D CNNs for actions recognition in video, IPTA;
      Xplique has the same. pytorch-grad-cam 1.5.7 turns it round: the share of places that stand
      out weighs the activations.
    """

    def one(cut):
        a = cut.maps(cut.a).astype(at_least_float32(cut.a))
        space = over_space(a)
        mean, spread = a.mean(space, keepdims=True), a.std(space, keepdims=True)
        outstanding = (a >= mean + num_deviations * spread) & (spread > 0)
        return jnp.where(outstanding, mean, 0 * mean).sum(-1)  # NaN where a mean is no number

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("fem", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True, classless=True)
def random_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    layer: Layers = None,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> jax.Array:
    """Channels weighed by chance: what any class activation map must do better than.

    relu(sum_k u_k A_k), u_k uniform on [-1, 1], drawn anew for each example.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Not used: the map is the same for every class. Taken so that all methods are called
        alike.
      key: Key of the draws.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the activations. Costs one forward pass up to the layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> draw = dict(layer="relu_0", key=jax.random.key(0), relu=False)
      >>> found = random_cam(net, jnp.ones((1, 1)), x, 0, **draw)
      >>> bool(abs(found[0, 0, 0]) <= 3), bool(found[0, 0, 0] == 3 * found[0, 0, 1])
      (True, True)

    Reference:
      pytorch-grad-cam, "RandomCAM"; there is no paper.
    """

    def one(cut):
        a = cut.maps(cut.a).astype(at_least_float32(cut.a))
        # Several layers have draws of their own, whatever their order.
        seed = jax.random.fold_in(key, sum(map(ord, cut.head.layer)))
        weights = jax.random.uniform(seed, (len(a), a.shape[-1]), a.dtype, -1, 1)
        return (a * weights.reshape(len(a), *[1] * (a.ndim - 2), -1)).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("random_cam", one, apply_fn, params, x, **shared)
