"""Explanations that change what the backward pass lets through: one rule set each."""

from collections.abc import Callable
from typing import Any

import jax  # noqa: F401  (the examples use them)
import jax.numpy as jnp  # noqa: F401

from jaxviz.attribution.contract import Target, explanation
from jaxviz.attribution.gradient import input_gradient
from jaxviz.graph.rewrite import rewrite
from jaxviz.rules import relu


@explanation()
def guided_backprop(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """What in the input excites the explained number, through live units and for it only.

    The gradient, where every ReLU y = max(x, 0) passes g * 1[x > 0] * 1[g > 0] instead of
    g * 1[x > 0].

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      The shape of `x`, signed, in units of the explained output per unit of the input. Not a
      derivative of anything: it sharpens edges and depends little on `target` (Adebayo et al.
      2018). Costs a forward and a backward pass, like `saliency`.

    Raises:
      ValueError: `x` is no batch, or `target` names no output.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w = {"a": jnp.array([[1.0, 1.0]]), "b": jnp.array([[2.0], [-3.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> guided_backprop(net, w, jnp.ones((1, 1)), 0).tolist()  # the gradient is 2 - 3
      [[2.0]]

    Reference:
      Springenberg et al. 2014, arXiv:1412.6806, section 3.4. ReLU6 is treated likewise; activations
      that are no ReLU keep their own derivative (`rules.guided` takes a row for them).
    """
    return input_gradient(rewrite(apply_fn, relu.guided), params, x, target)


@explanation()
def deconvnet(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """What in the input would excite the explained number, whatever was live in the forward pass.

    The gradient, where every ReLU passes max(g, 0) instead of g * 1[x > 0]. Max pooling gives to
    the place that won: Zeiler's unpooling by switches.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      The shape of `x`, signed, in units of the explained output per unit of the input. Costs a
      forward and a backward pass. `jaxviz.feature_projection` starts from a feature map instead.

    Raises:
      ValueError: `x` is no batch, or `target` names no output.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array([[2.0], [3.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> deconvnet(net, w, jnp.ones((1, 1)), 0).tolist()  # the second unit is dead, yet counts
      [[-1.0]]

    Reference:
      Zeiler and Fergus 2013, arXiv:1311.2901, section 2.1; as a pullback from an output:
      Simonyan et al. 2013, arXiv:1312.6034, section 4. ReLU6 is treated likewise.
    """
    return input_gradient(rewrite(apply_fn, relu.deconvnet), params, x, target)
