"""Gradients along any path: one that a function draws, and steps weighed by what they gain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attribution.path import Rule, baseline_like, between, quadrature
from jaxviz.calls.options import function
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least_float32,
    fixed_target,
    is_floating,
    running_sum,
    score_of,
    stacked,
)
from jaxviz.parts.gradients import input_gradient


@explanation("num_steps", "rule", "chunk_size", "path_fn", sweeps=True, path_fn=function)
def path_integrated_gradients(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    path_fn: Callable,
    num_steps: int = 50,
    rule: Rule = "gausslegendre",
    chunk_size: int | None = None,
) -> Any:
    """Integrated gradients along a path of your own, from whatever it begins with to the input.

    integral over t in [0, 1] of grad f(path_fn(x, t)) * d path_fn(x, t) / d t.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      path_fn: `(x, t) -> point`, of the shapes of `x`, differentiable in t, a number; the point at
        1 should be `x`. `lambda x, t: t * x` is `integrated_gradients` from zero. The same object
        each time, or the program is compiled anew.
      num_steps: Points on the path, >= 1. Time is linear in it, memory constant.
      rule: Where the points lie, as for `integrated_gradients`.
      chunk_size: Points of the path at once, for all N examples. None goes by `x` and the cores.

    Returns:
      The shape of `x`, in units of the explained output. Sums over an example to the score gained
      on the path, up to the error of the quadrature (`completeness_gap` with the path's beginning
      as the baseline).

    Raises:
      ValueError: A path whose points have other shapes; `num_steps` or `chunk_size` is below 1 (2
        for "trapezoid"); `rule` is unknown.

    Example:
      >>> bent = lambda x, t: x * jnp.array([[t, t**2]])  # the first number leads
      >>> x = jnp.array([[2.0, 5.0]])
      >>> net = lambda _, x: x[:, :1] * x[:, 1:]
      >>> out = path_integrated_gradients(net, None, x, 0, path_fn=bent)
      >>> [round(float(a), 3) for a in out[0]]  # of the product, the straight path gives 5 to each
      [3.333, 6.667]

    Reference:
      Sundararajan et al. 2017, arXiv:1703.01365, section 3.1: path methods.
    """
    name = "path_integrated_gradients"
    points, weights = quadrature(name, rule, num_steps)
    target = fixed_target(apply_fn, params, x, target)
    moves = [is_floating(a) for a in jax.tree.leaves(x)]

    def at(t):
        found = path_fn(x, t)
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (found, x)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name}: path_fn must give points of the shapes of x; got {shapes[0]}, x "
                f"{shapes[1]}. Broadcast t to them."
            )
        leaves = zip(jax.tree.leaves(found), jax.tree.leaves(x), moves, strict=True)
        return [p.astype(a.dtype) for p, a, moving in leaves if moving]

    def term(k):
        t = points[k].astype(jnp.float32)
        point, way = jax.jvp(at, (t,), (jnp.ones_like(t),))
        parts, ways = iter(point), iter(way)
        leaves, structure = jax.tree.flatten(x)
        here = jax.tree.unflatten(
            structure, [next(parts) if m else a for a, m in zip(leaves, moves, strict=True)]
        )
        slopes = jax.tree.leaves(input_gradient(apply_fn, params, here, target))
        shares = []
        for slope, moving in zip(slopes, moves, strict=True):
            wide = at_least_float32(slope)
            rate = next(ways).astype(wide) if moving else 0
            shares.append(slope.astype(wide) * rate * weights[k].astype(wide))
        return jax.tree.unflatten(structure, shares)

    total = running_sum(name, term, num_steps, chunk_size, x)
    return jax.tree.map(lambda t, a: t.astype(a.dtype) if is_floating(a) else t, total, x)


@explanation("num_steps", "chunk_size", sweeps=True)
def idgi(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    baseline: Any = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
) -> Any:
    """Integrated gradients in which each step's gain goes to those inputs that the score follows.

    sum_k g_k^2 / |g_k|^2 * (f(x_{k+1}) - f(x_k)), with g_k = grad f(x_k), x_k on the straight line:
    of each step only the part along the gradient counts, what moves across it is noise.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baseline: `[...]` or `[N, ...]`, or a number: where the path starts; for a pytree `x` a pytree
        of such. None is zeros.
      num_steps: Steps of the path, >= 1. Time is linear in it, memory constant.
      chunk_size: Steps at once, for all N examples. None goes by `x` and the cores.

    Returns:
      The shape of `x`, in units of the explained output; its signs are those of the steps' gains.
      Sums over an example to the score gained, for any number of steps but where a gradient is 0
      (`completeness_gap` measures it). Costs two forward passes and one back a step, one pass more.

    Raises:
      ValueError: `baseline` does not broadcast to `x`; `num_steps` or `chunk_size` is below 1.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> out = idgi(lambda w, x: x @ w, w, x, 0, num_steps=4)
      >>> [round(float(a), 4) for a in out[0]]  # the score falls by 1, and in these shares
      [-0.2, -0.8]

    Reference:
      Yang et al. 2023, arXiv:2303.14242, algorithm 1, on the path of integrated gradients.
    """
    name = "idgi"
    start = baseline_like(name, baseline, x)
    target = fixed_target(apply_fn, params, x, target)
    point = lambda k: between(start, x, k.astype(jnp.float32) / num_steps)
    score = lambda k: score_of(apply_fn, params, point(k), target)
    scores = stacked(name, score, num_steps + 1, chunk_size, x)
    gained = jnp.diff(scores.astype(at_least_float32(scores)), axis=0)

    def term(k):
        slopes = input_gradient(apply_fn, params, point(k), target)
        squares = jax.tree.map(lambda g: jnp.square(g.astype(at_least_float32(g))), slopes)
        parts = [s.reshape(len(s), -1).sum(1) for s in jax.tree.leaves(squares)]
        whole = sum(part.astype(gained.dtype) for part in parts)
        each = gained[k] / jnp.where(whole == 0, 1, whole)
        return jax.tree.map(lambda s: s * each.reshape(-1, *[1] * (s.ndim - 1)), squares)

    total = running_sum(name, term, num_steps, chunk_size, x)
    return jax.tree.map(lambda t, a: t.astype(a.dtype) if is_floating(a) else t, total, x)
