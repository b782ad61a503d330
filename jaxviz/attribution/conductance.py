"""What the units of a layer pass on, along the path from a baseline to the input."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.attribution.path import (
    Rule,
    baseline_like,
    between,
    layer_on_the_line,
    quadrature,
    quadrature_on_host,
    times_difference,
)
from jaxviz.calls.options import several, whole
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least_float32,
    chunk_length,
    default_chunk,
    fixed_target,
    is_floating,
    outputs_of,
    running_sum,
    times_weights,
)
from jaxviz.graph.split import split, split_where_read
from jaxviz.graph.stopped import stopped
from jaxviz.parts.gradients import input_gradient, plain_gradient
from jaxviz.rules.fast import serving


@explanation("layer", "num_steps", "rule", "speed", "chunk_size")
def layer_conductance(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    baseline: Any = None,
    num_steps: int = 50,
    rule: Rule = "gausslegendre",
    speed: Literal["differences", "exact"] = "differences",
    chunk_size: int | None = None,
) -> jax.Array:
    """How much of the score gained between `baseline` and `x` flows through each unit of a layer.

    sum_k (df / dh)(x_k) * (h(x_(k+1)) - h(x_k)), h the layer's value, x_0, ..., x_n points on the
    straight path.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      baseline: `[...]` or `[N, ...]`, or a number: the input that stands for "nothing there"; for a
        pytree `x` a pytree of such. None is zeros.
      num_steps: Steps along the path, >= 1. Time is linear in it, memory constant. What of the
        model is affine in its input (the first layer, mostly) is run at the path's ends alone, but
        for the exact speed.
      rule: Where the points lie, as for `integrated_gradients`: those of `num_steps + 1`.
      speed: How fast the layer moves: "differences" of its values from point to point, or "exact",
        its derivative along the path at `num_steps` points, weighed by `rule`; that comes nearer to
        the score gained, and takes another forward pass up to the layer.
      chunk_size: Points of the path at once, for all N examples. None goes by `x` and the cores.

    Returns:
      The shape of the layer's value, in units of the explained output: all units at once. Where all
      that the outputs read of `x` goes through the layer it sums over an example to the score
      gained, up to the error of the sum.

    Raises:
      ValueError: No such layer (the nearest are named), or `x` does not reach it; `baseline` does
        not broadcast to `x`; `num_steps` or `chunk_size` is below 1.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w).sum(1, keepdims=True)
      >>> w, x = jnp.array([[1.0, -2.0], [1.0, 1.0]]), jnp.ones((1, 2))
      >>> found = layer_conductance(net, w, x, 0, layer="relu_0", speed="exact")
      >>> found.round(4).tolist()
      [[2.0, 0.0]]

    Reference:
      Dhamdhere et al. 2018, arXiv:1805.12233, eq. 2, as Shrikumar et al. 2018, arXiv:1807.09946,
      compute it, and Captum's `LayerConductance`. Gauss-Legendre points end short of both ends, and
      so then do the differences: take rule="trapezoid", whose do not, where they must add up.
    """
    name = "layer_conductance"
    head, tail = split_where_read(apply_fn, params, x, layer)
    start = baseline_like(name, baseline, x)
    target = fixed_target(apply_fn, params, x, target)

    def slope(a, carry):
        return input_gradient(tail, (params, carry), a, target)

    if speed == "exact":
        points, weights = quadrature(name, rule, num_steps)

        def share(k):
            at = lambda t: head(params, between(start, x, t))
            (a, carry), (moving, _) = jax.jvp(at, (points[k],), (jnp.ones_like(points[k]),))
            return times_weights(moving * slope(a, carry), weights[k])

        total = running_sum(name, share, num_steps, chunk_size, x)
        return total.astype(jax.eval_shape(head, params, x)[0].dtype)

    count = num_steps + 1
    points, _ = quadrature_on_host(name, rule, count)
    layer_at, alive = layer_on_the_line(head, params, x, start, points)
    chunk = chunk_length(name, count, default_chunk(alive) if chunk_size is None else chunk_size)

    def at(k):
        a, carry = layer_at(k)
        with serving(count):
            return a, slope(a, carry)

    # One sweep: each point's value and slope meet the next point's, the last of them in the next
    # chunk; what is past the end stays where it is.
    def one_chunk(before, first):
        k = first + jnp.arange(chunk, dtype=jnp.int32)
        a, g = jax.vmap(at)(jnp.minimum(k, num_steps))
        earlier = lambda last, now: jnp.concatenate([last[None], now[:-1]])
        wide = at_least_float32(a)
        steps = a.astype(wide) - earlier(before[0], a).astype(wide)
        flows = steps * earlier(before[1], g).astype(wide)
        inside = ((k > 0) & (k < count)).reshape(-1, *[1] * (a.ndim - 1))
        return (a[-1], g[-1], before[2] + jnp.where(inside, flows, 0).sum(0)), None

    like, _ = jax.eval_shape(at, jnp.int32(0))
    nothing = jnp.zeros(like.shape, like.dtype)
    begin = nothing, nothing, nothing.astype(at_least_float32(like))
    firsts = jnp.arange(0, count, chunk, dtype=jnp.int32)
    (_, _, total), _ = jax.lax.scan(jax.checkpoint(one_chunk, prevent_cse=False), begin, firsts)
    return total.astype(like.dtype)


@explanation("layer", "num_steps", "rule", "chunk_size", sweeps=True)
def internal_influence(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    baseline: Any = None,
    num_steps: int = 50,
    rule: Rule = "gausslegendre",
    chunk_size: int | None = None,
) -> jax.Array:
    """How much the score moves with each unit of a layer, on average between `baseline` and `x`.

    sum_k w_k (df / dh)(x_k), h the layer's value, a quadrature over the straight path.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      baseline, num_steps, rule, chunk_size: As for `integrated_gradients`.

    Returns:
      The shape of the layer's value, in units of the explained output per unit of the layer's.

    Raises:
      ValueError: No such layer (the nearest are named), or `x` does not reach it; `baseline` does
        not broadcast to `x`; `num_steps` or `chunk_size` is below 1.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w).sum(1, keepdims=True)
      >>> w, x = jnp.array([[1.0, -2.0], [1.0, 1.0]]), jnp.ones((1, 2))
      >>> internal_influence(net, w, x, 0, layer="relu_0").round(4).tolist()
      [[1.0, 1.0]]

    Reference:
      Leino et al. 2018, arXiv:1802.03788, eq. 1, along the straight path; Captum's
      `InternalInfluence`, whose trapezoid weights do not sum to 1.
    """
    name = "internal_influence"
    head, tail = split_where_read(apply_fn, params, x, layer)
    start = baseline_like(name, baseline, x)
    target = fixed_target(apply_fn, params, x, target)
    points, weights = quadrature_on_host(name, rule, num_steps)
    layer_at, alive = layer_on_the_line(head, params, x, start, points)
    weights = jnp.asarray(weights)

    def share(k):
        a, carry = layer_at(k)
        return times_weights(input_gradient(tail, (params, carry), a, target), weights[k])

    total = running_sum(name, share, num_steps, chunk_size, alive)
    return total.astype(jax.eval_shape(head, params, x)[0].dtype)


def a_neuron(who: str, option: str, value: Any) -> tuple[int, ...]:
    """An index in a layer's value without its batch: one number for each axis."""
    if not isinstance(value, (tuple, list)):
        return (whole(0)(who, option, value),)
    return several(whole(0), "indices from 0, one for each axis of the layer")(who, option, value)


def neuron_of(who: str, a: jax.Array, neuron: tuple[int, ...]) -> jax.Array:
    """`[N]`: one number of a layer's value."""
    sizes = a.shape[1:]
    if len(neuron) != len(sizes) or any(i >= n for i, n in zip(neuron, sizes, strict=True)):
        raise ValueError(
            f"{who}: neuron must be an index for each axis of the layer's value, {sizes} without "
            f"the batch; got {neuron}. Count from 0."
        )
    return a[(slice(None), *neuron)]


@explanation("layer", "num_steps", "rule", "chunk_size", "neuron", sweeps=True, neuron=a_neuron)
def neuron_conductance(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    neuron: int | tuple[int, ...],
    baseline: Any = None,
    num_steps: int = 50,
    rule: Rule = "gausslegendre",
    chunk_size: int | None = None,
) -> Any:
    """Which inputs the score owes to one neuron: what of the path's gain flows through it.

    (x - x0) * sum_k w_k (df / dh_j)(x_k) (dh_j / dx)(x_k), h_j the neuron, a quadrature over the
    straight path.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      neuron: Which number of the layer's value: its index in it without the batch, such as
        `(row, column, channel)`; a number for a layer `[N, K]`.
      baseline, num_steps, rule, chunk_size: As for `integrated_gradients`.

    Returns:
      The shape of `x`, in units of the explained output. Summed over the inputs it is the neuron's
      own `layer_conductance`, up to the errors of both sums.

    Raises:
      ValueError: No such layer (the nearest are named), or `x` does not reach it; no such neuron;
        `baseline` does not broadcast to `x`; `num_steps` or `chunk_size` is below 1.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w).sum(1, keepdims=True)
      >>> w, x = jnp.array([[1.0, -2.0], [3.0, 1.0]]), jnp.ones((1, 2))
      >>> neuron_conductance(net, w, x, 0, layer="relu_0", neuron=0).round(4).tolist()
      [[1.0, 3.0]]

    Reference:
      Dhamdhere et al. 2018, arXiv:1805.12233, eq. 1 for one neuron; Captum's `NeuronConductance`.
    """
    name = "neuron_conductance"
    assert isinstance(neuron, tuple)
    head, tail = split(apply_fn, params, x, layer)
    start = baseline_like(name, baseline, x)
    target = fixed_target(apply_fn, params, x, target)
    points, weights = quadrature(name, rule, num_steps)

    def passed_on(params, x):
        a, carry = outputs_of(head, params, x)
        still = stopped((a, carry))
        slope = input_gradient(tail, (params, still[1]), still[0], target)
        return neuron_of(name, a, neuron) * neuron_of(name, slope, neuron)

    def share(k):
        point = between(start, x, points[k])
        return times_weights(
            plain_gradient(passed_on, params, point, lambda score: score), weights[k]
        )

    total = times_difference(x, start, running_sum(name, share, num_steps, chunk_size, x))
    return jax.tree.map(lambda v, a: v.astype(a.dtype) if is_floating(a) else v, total, x)
