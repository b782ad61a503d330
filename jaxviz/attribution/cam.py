"""Class activation maps from gradients: which places of a layer speak for the explained number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import check_one_array
from jaxviz.graph.layers import layers
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.stopped import stopped
from jaxviz.parts.feature_maps import (
    Layers,
    Resize,
    class_activation_map,
    map_and_gradient,
    over_space,
)
from jaxviz.parts.gradients import input_gradient
from jaxviz.rules.relu import guided

_SHARED = ("layer", "relu", "resize", "reshape")


# What may stand between the layer of `cam` and the outputs: all of it is affine.
_AFFINE = frozenset(
    {"avg_pool", "mean", "sum", "sum_pool", "dense", "flatten", "affine", "batch_norm"}
)


@explanation(*_SHARED, places=True)
def grad_cam(
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
    """Which places of a layer speak for the explained number.

    relu(sum_k w_k A_k), w_k the mean over space of d f_target / d A_k.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer: Name of a layer with places, `[N, *space, channels]` or with its channels where
        `Layer.channel_axis` says, or of tokens `[N, tokens, channels]` where the model shows how
        they lie (patches of an image; a class token is left out); or several, whose maps are
        averaged. None is the last one, `jaxviz.default_layer`. `jaxviz.layers` lists them. Where
        that is a pooling with few places left (3x3 on a net for digits), the layer before it draws
        finer. Behind a transformer's last attention patches may count no more: maps of 0.
      relu: Whether to keep positive evidence only.
      resize: Whether to bring the map to the spatial size of `x` (or to the size given, `(h, w)`),
        linearly with half-pixel centres; False gives the layer's own resolution.
      reshape: From the layer's output to `[N, *space, channels]`, by moving or dropping numbers:
        tokens to a grid, where the model does not show it; channels to the last axis.

    Returns:
      `[N, *space]`, signed with `relu=False`, in units of the explained output. Costs the head once
      and one forward and backward pass of what follows the layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> grad_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Selvaraju et al. 2017, arXiv:1610.02391, eq. 1-2. No scaling to [0, 1], which other libraries
      add.
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        return (g.mean(over_space(g), keepdims=True) * a).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("grad_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True)
def grad_cam_pp(
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
    """Grad-CAM with each place of a map weighted by its own share: several objects, small ones.

    relu(sum_k w_k A_k), w_k = sum over places of alpha relu(g), g = d f_target / d A_k,
    alpha = 1 / (2 + g sum_space A_k) where g > 0, scaled to sum to 1 over space.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> grad_cam_pp(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Chattopadhay et al. 2018, arXiv:1710.11063, eq. 19 for the score exp(f), whose derivatives are
      closed: g^2 / (2 g^2 + g^3 sum A) is the alpha above. The common factor exp(f) of all weights
      of an example is left out: it overflows and no comparison of places sees it. Alphas sum to 1
      as in the authors' code. pytorch-grad-cam 1.5.5 does not scale the alphas; torch-cam 0.5.0 has
      none, for its division acts on a copy: its weights are sum relu(g) g^2. Xplique 2.0.2 takes
      means over space, tf-keras-vis 0.8.7 keeps exp(f).
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        return weighed_by_alphas(a, g, 2 + g * a.sum(over_space(a), keepdims=True))

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("grad_cam_pp", one, apply_fn, params, x, **shared)


def weighed_by_alphas(
    a: jax.Array, g: jax.Array, divisor: jax.Array, over: jax.Array | float = 1.0
) -> jax.Array:
    """`[N, *space]`: maps `a` weighed by sum over places of alpha relu(g), where alpha is over /
    divisor where g > 0, scaled to sum to 1 over space."""
    space = over_space(a)
    alpha = jnp.where(g > 0, over / jnp.where(divisor == 0, 1, divisor), 0)
    total = alpha.sum(space, keepdims=True)
    weights = (alpha * jnp.maximum(g, 0)).sum(space, keepdims=True)
    return (weights / jnp.where(total == 0, 1, total) * a).sum(-1)


@explanation(*_SHARED, places=True)
def xgrad_cam(
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
    """Grad-CAM that weighs each gradient by the activation at its place.

    relu(sum_k w_k A_k), w_k = sum over places of A_k g_k / sum of A_k.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output. A map that sums to zero has weight zero.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> xgrad_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Fu et al. 2020, arXiv:2008.02312, eq. 7.
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        space = over_space(a)
        total = a.sum(space, keepdims=True)
        weights = (a * g).sum(space, keepdims=True) / jnp.where(total == 0, 1, total)
        return (weights * a).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("xgrad_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True)
def hires_cam(
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
    """What each place of a layer adds to the explained number, to first order.

    relu(sum_k g_k * A_k), g_k = d f_target / d A_k.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output. With `relu=False, resize=False` it sums to
      the score without biases where what follows the layer is piecewise linear.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> hires_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Draelos and Carin 2020, arXiv:2011.08891, section 3.2.
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        return (g * a).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("hires_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True)
def layer_cam(
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
    """Which places of a layer speak for the explained number, sharp in early layers too.

    relu(sum_k relu(g_k) * A_k), g_k = d f_target / d A_k.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> layer_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Jiang et al. 2021, LayerCAM, IEEE TIP 30, eq. 6-8. Several layers are averaged as they are;
      there each is first divided by its maximum and squashed by tanh.
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        return (jnp.maximum(g, 0) * a).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("layer_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True)
def shapley_cam(
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
    """Grad-CAM to second order: the Shapley value of each map, to that order.

    relu(sum_k w_k A_k), w_k the mean over space of g - H A / 2, g and H the gradient and the
    Hessian of f_target by A.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output. Equal to `grad_cam` where what follows the
      layer is piecewise linear; about twice its cost.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> shapley_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Cai 2025, arXiv:2501.06261, eq. 14.
    """

    def one(cut):
        def score_rate(a):
            slope = input_gradient(cut.tail, cut.params, a, target)
            # Rows of a batch do not see each other: this sum's gradient is each row's own H A.
            return (slope * stopped(a)).sum(), slope

        curvature, gradient = jax.grad(score_rate, has_aux=True)(cut.a)
        a, weights = cut.maps(cut.a), cut.maps(gradient - curvature / 2)
        return (weights.mean(over_space(a), keepdims=True) * a).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("shapley_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True)
def cam(
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
    """Which places a net with global average pooling counts for a class.

    sum_k W_k,target A_k, A the maps before the pooling, W the weights of all that comes after it.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output times the number of places: its mean over
      places is the score without biases.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent;
        something other than pooling and dense layers follows it.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[3.0, 1.0], [0.0, 0.0]]]

    Reference:
      Zhou et al. 2016, arXiv:1512.04150, eq. 2. The weights are read off as a gradient, which for
      such a head is the same at every place.
    """

    def one(cut):
        kinds = [one.kind for one in layers(cut.tail, cut.params, cut.a)]
        if unfit := [kind for kind in kinds if kind not in _AFFINE]:
            raise ValueError(
                "cam: after the layer there must be average pooling and dense layers only; found "
                f"{', '.join(unfit)}. Take the last layer before the pooling, or use grad_cam."
            )
        a, g = map_and_gradient(cut, target)
        return (g.sum(over_space(g), keepdims=True) * a).sum(-1)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("cam", one, apply_fn, params, x, **shared)


@explanation("layer", "reshape", places=True)
def guided_grad_cam(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    layer: Layers = None,
    reshape: Callable | None = None,
) -> jax.Array:
    """Guided backpropagation where Grad-CAM finds the class: its lines, in the right place.

    Guided backpropagation * resized relu(Grad-CAM), the same for every channel of `x`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, reshape: As for `grad_cam`.

    Returns:
      The shape of `x`, signed, in the product of the units of both. Costs a Grad-CAM and a
      gradient.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent; `x` is no
        single array `[N, *space, C]`.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> guided_grad_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0")[0, ..., 0].tolist()
      [[0.1875, 0.0625], [0.0, 0.0]]

    Reference:
      Selvaraju et al. 2017, arXiv:1610.02391, section 3.2. Captum resizes by nearest neighbours
      unless told otherwise; here linearly, as in the paper.
    """
    shared = {"layer": layer, "relu": True, "resize": True, "reshape": reshape}
    check_one_array("guided_grad_cam", x)
    place = grad_cam(apply_fn, params, x, target, **shared)
    lines = input_gradient(rewrite(apply_fn, guided), params, x, target)
    return place[..., None] * lines
