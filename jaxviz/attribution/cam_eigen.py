"""Class activation maps from principal components: the strongest pattern of a layer."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.calls.options import maybe, real
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import wide
from jaxviz.parts.feature_maps import Layers, Resize, class_activation_map, map_and_gradient
from jaxviz.parts.leading import leading

_SHARED = ("layer", "relu", "resize", "reshape")


@explanation(*_SHARED, places=True, classless=True)
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


@explanation(*_SHARED, places=True)
def seg_eigen_cam(
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
    """The strongest pattern of a layer where the explained number is steep: for segmentation.

    relu of the first principal component, as in `eigen_cam`, of |g| * A, g = d f_target / d A.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class;
        of outputs with places the class summed over a mask, `jaxviz.targets.masked_sum`.
      layer, relu, resize, reshape: As for `grad_cam`.

    Returns:
      `[N, *space]`, in units of the explained output, with the sign that makes the number farthest
      from 0 positive.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> seg_eigen_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0").tolist()
      [[[0.5, 0.0], [0.0, 0.0]]]

    Reference:
      Chung and Ying 2025, Seg-Eigen-CAM, Applied Sciences 15(13) 7562, eq. 10-13; pytorch-grad-cam
      has the same.
    """

    def one(cut):
        a, g = map_and_gradient(cut, target)
        found = _first_component(jnp.abs(g) * a)
        space = tuple(range(1, found.ndim))
        low, high = found.min(space, keepdims=True), found.max(space, keepdims=True)
        return jnp.where(-low > high, -found, found)

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("seg_eigen_cam", one, apply_fn, params, x, **shared)


@explanation(*_SHARED, "kernel", places=True, classless=True, gamma=maybe(real(0, above=True)))
def kpca_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    kernel: Literal["sigmoid", "rbf"] = "sigmoid",
    gamma: float | None = None,
    relu: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> jax.Array:
    """The strongest pattern of a layer that need not be linear, whatever the class.

    relu of the first kernel principal component of each place's channels, less their mean over
    space: "sigmoid" is tanh(gamma <a, b> + 1), "rbf" exp(-gamma |a - b|^2).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Not used: the map is the same for every class. Taken so that all methods are called
        alike.
      layer, relu, resize, reshape: As for `grad_cam`.
      kernel: "sigmoid" or "rbf".
      gamma: The kernel's scale, > 0; None is 1 / channels.

    Returns:
      `[N, *space]`, without units, with the sign that grows with the sum of the channels. Costs one
      forward pass up to the layer, and some dozens of products of a vector with a matrix of places
      x places; where the second component is nearly as strong, an eigensolver. Take a late layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent; an unknown
        kernel.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> found = kpca_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0", kernel="rbf")
      >>> int(found.argmax())
      0

    Reference:
      Karmani et al. 2024, KPCA-CAM, arXiv:2410.00267; kernels and their defaults are those of
      pytorch-grad-cam (scikit-learn's), whose sign is arbitrary.
    """

    def one(cut):
        rows, precise = _centred(cut.maps(cut.a)), jax.lax.Precision.HIGHEST
        scale = 1 / rows.shape[-1] if gamma is None else jnp.asarray(gamma, rows.dtype)
        gram = jnp.matmul(rows, rows.mT, precision=precise)
        if kernel == "sigmoid":
            gram = jnp.tanh(scale * gram + 1)
        else:
            square = (rows**2).sum(-1)
            gram = jnp.exp(-scale * (square[:, :, None] + square[:, None, :] - 2 * gram))
        gram = gram - gram.mean(1, keepdims=True)
        gram = gram - gram.mean(2, keepdims=True)
        value, vector = leading(gram)
        projection = jnp.sqrt(jnp.maximum(value, 0))[:, None] * vector
        return _with_the_sum(projection, rows).reshape(cut.maps(cut.a).shape[:-1])

    shared = {"layer": layer, "relu": relu, "resize": resize, "reshape": reshape}
    return class_activation_map("kpca_cam", one, apply_fn, params, x, **shared)


def _centred(a: jax.Array) -> jax.Array:
    """`[N, places, channels]`, less the mean over places; in float32 at least."""
    rows = wide(a).reshape(a.shape[0], -1, a.shape[-1])
    return rows - rows.mean(1, keepdims=True)


def _with_the_sum(projection: jax.Array, rows: jax.Array) -> jax.Array:
    """`[N, places]` with the sign that grows with the sum of the channels."""
    agrees = (projection * rows.sum(-1)).sum(1, keepdims=True) >= 0
    return jnp.where(agrees, projection, -projection)


def _first_component(a: jax.Array) -> jax.Array:
    """Projection of `[N, *space, channels]`, centred over space, on its first principal axis.

    In float32 at least, as there is no eigensolver for less.
    """
    rows, precise = _centred(a), jax.lax.Precision.HIGHEST
    if rows.shape[1] <= rows.shape[2]:  # the smaller of the two Gram matrices has the same axis
        gram = jnp.matmul(rows, rows.mT, precision=precise)
        value, vector = leading(gram)
        projection = jnp.sqrt(jnp.maximum(value, 0))[:, None] * vector
    else:
        gram = jnp.matmul(rows.mT, rows, precision=precise)
        axis = leading(gram)[1][..., None]
        projection = jnp.matmul(rows, axis, precision=precise)[..., 0]
    return _with_the_sum(projection, rows).reshape(a.shape[:-1])
