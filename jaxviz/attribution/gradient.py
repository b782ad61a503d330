"""Gradients of the explained number by the input: signed, absolute, and times the input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target, explanation
from jaxviz.parts.gradients import input_gradient


@explanation()
def gradient(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """How the explained number changes as each input number grows: signed.

    d f_target(x) / d x.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      The shape of `x`, in units of the explained output per unit of the input. Zeros for integer
      leaves, which cannot be moved by a little. Costs one forward and one backward pass.

    Raises:
      ValueError: `x` is no batch, or `target` names no output.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> gradient(lambda w, x: x @ w, w, x, 0).tolist()
      [[1.0, -2.0]]

      Every class at once, one forward pass for all (so for any method, by its target):

      >>> every = jax.vmap(lambda k: gradient(lambda w, x: x @ w.T, w, x[:, :1], k))
      >>> every(jnp.arange(2))[:, 0, 0].tolist()
      [1.0, -2.0]

    Reference:
      Simonyan et al. 2013, arXiv:1312.6034, section 3 (there followed by `saliency`'s absolute
      value and a maximum over colours, which belong to `plot`).
    """
    return input_gradient(apply_fn, params, x, target)


@explanation()
def saliency(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """How strongly the explained number answers to each input number, whatever the direction.

    |d f_target(x) / d x|.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      The shape of `x`, non-negative, in units of the explained output per unit of the input. Costs
      one forward and one backward pass.

    Raises:
      ValueError: `x` is no batch, or `target` names no output.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> saliency(lambda w, x: x @ w, w, x, 0).tolist()
      [[1.0, 2.0]]

    Reference:
      Simonyan et al. 2013, arXiv:1312.6034, section 3.1. There the maximum over the colours is
      taken; here every channel is kept, and `plot` reduces.
    """
    return jax.tree.map(jnp.abs, input_gradient(apply_fn, params, x, target))


@explanation()
def input_x_gradient(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """What each input number adds to the explained number, to first order.

    x * d f_target(x) / d x. For a net of ReLUs without biases it sums to the output exactly.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      The shape of `x`, in units of the explained output. Costs one forward and one backward pass.

    Raises:
      ValueError: `x` is no batch, or `target` names no output.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.full((1, 2), 3.0)
      >>> input_x_gradient(lambda w, x: x @ w, w, x, 0).tolist()
      [[3.0, -6.0]]

    Reference:
      Shrikumar et al. 2016, arXiv:1605.01713, section 1.
    """
    gradients = input_gradient(apply_fn, params, x, target)
    return jax.tree.map(lambda a, g: jnp.asarray(a).astype(g.dtype) * g, x, gradients)
