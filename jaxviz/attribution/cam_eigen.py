"""Class activation maps from principal components: the strongest pattern of a layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import at_least_float32
from jaxviz.parts.feature_maps import Layers, Resize, class_activation_map, map_and_gradient

_SHARED = ("layer", "relu", "resize", "reshape")


@explanation(*_SHARED, places=True)
def eigen_cam(
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
    """The strongest pattern of a layer, whatever the class.

    relu of the projection of each place's channels, less their mean over space, on the first
    principal axis.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Not used: the map is the same for every class. Taken so that all methods are called
        alike.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the activations. The sign, which the axis leaves open, is such that
      the map grows with the sum of the channels.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> eigen_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[2.0, 0.0], [0.0, 0.0]]]

    Reference:
      Muhammad and Yeasin 2020, arXiv:2008.00299, section 3; centred first, as in pytorch-grad-cam
      (whose sign is arbitrary).
    """

    def one(cut):
        return _first_component(cut.maps(cut.a))

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("eigen_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, places=True)
def eigen_grad_cam(
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
    """The strongest pattern in what the places of a layer add to the explained number.

    relu of the first principal component, as in `eigen_cam`, of g * A, g = d f_target / d A.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output, with the sign that grows with the sum over
      channels of g * A.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> eigen_grad_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.5, 0.0], [0.0, 0.0]]]

    Reference:
      pytorch-grad-cam, "EigenGradCAM"; there is no paper. The sign is arbitrary there.
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        return _first_component(g * a)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("eigen_grad_cam", one, apply_fn, params, x, **shared)


def _first_component(a: jax.Array) -> jax.Array:
    """Projection of `[N, *space, channels]`, centred over space, on its first principal axis.

    In float32 at least, as there is no eigensolver for less.
    """
    rows = a.astype(at_least_float32(a)).reshape(a.shape[0], -1, a.shape[-1])
    rows = rows - rows.mean(1, keepdims=True)
    precise = jax.lax.Precision.HIGHEST
    if rows.shape[1] <= rows.shape[2]:  # the smaller of the two Gram matrices has the same axis
        gram = jnp.matmul(rows, rows.mT, precision=precise)
        values, vectors = jnp.linalg.eigh(gram)
        length = jnp.sqrt(jnp.maximum(values[:, -1:], 0))
        projection = length * vectors[:, :, -1]
    else:
        gram = jnp.matmul(rows.mT, rows, precision=precise)
        axis = jnp.linalg.eigh(gram)[1][:, :, -1:]
        projection = jnp.matmul(rows, axis, precision=precise)[..., 0]
    agrees = (projection * rows.sum(-1)).sum(1, keepdims=True) >= 0
    return jnp.where(agrees, projection, -projection).reshape(a.shape[:-1])
