"""Class activation maps of several layers made into one: their product, or their maximum."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attribution.cam import grad_cam_pp, layer_cam
from jaxviz.calls.options import maybe, real, refused, with_parameters
from jaxviz.engine.contract import Target, explanation
from jaxviz.parts.feature_maps import Layers, Resize, resized, spatial_stages

_TAKEN = {"layer", "relu", "resize", "reshape"}


def _method(who: str, option: str, value: Any) -> Callable:
    known = inspect.signature(with_parameters(who, option, value)).parameters
    open_ones = {k for k, p in known.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    if not set(known) >= _TAKEN or open_ones:
        told = f", which also needs {', '.join(sorted(open_ones))}" if open_ones else ""
        must = f"a class activation map such as jaxviz.grad_cam{told}"
        raise refused(who, option, must, value, "Give what is missing by functools.partial.")
    return value


@explanation("layer", "resize", "reshape", places=True, method=_method)
def refine_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    method: Callable = grad_cam_pp,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> jax.Array:
    """Where all of several layers agree: the product of their maps, each of maximum 1.

    prod_l M_l / max M_l, M_l the map of layer l, without what is negative, at the size of `x`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer: Names of layers with places, early ones for detail and late ones for the class. None is
        the last layer of each of the last three resolutions, or of as many as there are.
      method: The map of a layer: `grad_cam`, `layer_cam`, ..., or `functools.partial` of one.
      resize, reshape: As for `grad_cam`; of several sizes maps are resized before they are
        multiplied.

    Returns:
      `[N, *space]`, from 0 to 1, without units. A map without anything positive makes it 0. Costs
      one map a layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent; maps of
        several sizes with `resize=False`.
      TypeError: `method` is no class activation map, or needs more than a layer.

    Example:
      >>> net = lambda w, x: jax.nn.relu(2 * jax.nn.relu(x)).mean((1, 2)) @ w
      >>> x = jnp.array([4.0, 2.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> refine_cam(net, jnp.ones((1, 1)), x, 0, layer=["relu_0", "relu_1"]).tolist()
      [[[1.0, 0.25], [0.0, 0.0]]]

    Reference:
      "RefineCAM" of torch-cam 0.5 and pytorch-grad-cam 1.5.7, arXiv:2605.14641. They also take the
      smallest number of each map off, before (both) and after (both, unless told otherwise): where
      that is 0, as mostly, it is the same.
    """
    name, whole = "refine_cam", None
    for found in _maps(name, apply_fn, params, x, target, layer, method, resize, reshape):
        whole = found if whole is None else whole * found
    assert whole is not None
    return whole


@explanation(
    "layer", "resize", "reshape", places=True, method=_method, gamma=maybe(real(0, above=True))
)
def fused_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    method: Callable = layer_cam,
    gamma: float | None = 2.0,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> jax.Array:
    """What any of several layers shows: the maximum of their maps, each of maximum 1.

    max_l tanh(gamma M_l / max M_l), M_l the map of layer l, without what is negative.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer: Names of layers with places. None is the last layer of each of the last three
        resolutions, or of as many as there are.
      method: The map of a layer: `grad_cam`, `layer_cam`, ..., or `functools.partial` of one.
      gamma: How much weak places are lifted, > 0; None leaves maps as they are.
      resize, reshape: As for `grad_cam`; maps are lifted, then resized, then compared.

    Returns:
      `[N, *space]`, from 0 to 1, without units. Costs one map a layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent; maps of
        several sizes with `resize=False`.
      TypeError: `method` is no class activation map, or needs more than a layer.

    Example:
      >>> net = lambda w, x: jax.nn.relu(2 * jax.nn.relu(x)).mean((1, 2)) @ w
      >>> x = jnp.array([4.0, 2.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> two = ["relu_0", "relu_1"]
      >>> fused_cam(net, jnp.ones((1, 1)), x, 0, layer=two, gamma=None).tolist()
      [[[1.0, 0.5], [0.0, 0.0]]]

    Reference:
      Jiang et al. 2021, LayerCAM, IEEE TIP 30, eq. 9. "fuse_cams" of torch-cam 0.5, which lifts
      LayerCAM's maps alone (gamma None is what it does with the others), and takes the smallest
      number of each map off first. Every method with several layers, `layer_cam(layer=[...])`,
      gives their mean in units of the output.
    """
    name, whole = "fused_cam", None
    for found in _maps(name, apply_fn, params, x, target, layer, method, resize, reshape, gamma):
        whole = found if whole is None else jnp.maximum(whole, found)
    assert whole is not None
    return whole


def _maps(
    name, apply_fn, params, x, target, layer, method, resize, reshape, gamma=None
) -> Iterator[jax.Array]:
    """Each layer's map, of maximum 1 or lifted, resized."""
    if layer is None:
        layer = spatial_stages(name, apply_fn, params, x)[-3:]
    shapes = set()
    for one in (layer,) if isinstance(layer, str) else layer:
        own = {"layer": one, "relu": True, "resize": False, "reshape": reshape}
        a = method(apply_fn, params, x, target, **own)
        most = a.max(tuple(range(1, a.ndim)), keepdims=True)
        a = a / jnp.where(most > 0, most, 1)
        a = a if gamma is None else jnp.tanh(jnp.asarray(gamma, a.dtype) * a)
        a = resized(name, a, x, resize)
        shapes.add(a.shape)
        if len(shapes) > 1:
            raise ValueError(
                f"{name}: several layers must have maps of one size; got {sorted(shapes)}. Leave "
                "resize=True, or name layers of one size."
            )
        yield a
