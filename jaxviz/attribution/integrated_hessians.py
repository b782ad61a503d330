"""Integrated Hessians: the score gained over a baseline, shared among pairs of segments."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.path import baseline_like, gauss_legendre, moved
from jaxviz.calls.public import public
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least_float32,
    fixed_target,
    is_floating,
    rows_of,
    running_sum,
    score_of,
)
from jaxviz.engine.layout import of_places
from jaxviz.graph.recompute import recomputed
from jaxviz.parts.coalitions import segmented
from jaxviz.parts.regions import per_place


@public()
@of_places
def integrated_hessians(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    baseline: Any = None,
    segments: Any = None,
    num_segments: int | None = None,
    num_steps: int = 20,
    chunk_size: int | None = None,
) -> jax.Array:
    """Shares the score gained between `baseline` and `x` among pairs of segments.

    G_gh = iint ab d_g' H(x0 + ab d) d_h da db, and for g = h also iint d_g' grad f(x0 + ab d), with
    d = x - x0, d_g its part in segment g, H the Hessian, a and b from 0 to 1: the integrated
    gradients of integrated gradients. The product ab has the density -ln s on [0, 1], so that the
    double integral is a single one, taken by the Gaussian quadrature of that weight.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        Hessian of a net of ReLUs is 0 almost everywhere, and then so are pairs: explain
        `jaxviz.rewrite(apply_fn, jaxviz.rules.softplus_surrogate(beta))`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baseline: `[...]` or `[N, ...]`, or a number: the input that stands for "nothing there"; for a
        pytree `x` a pytree of such. None is zeros.
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        places of numbers below 0 stay as they are in `x`; for a pytree `x` a pytree of such in one
        numbering, or one array for all leaves. None is a grid of 7 cells along each axis of space,
        or each number of a row `[N, F]` on its own.
      num_segments: Their number G; None reads it off `segments`.
      num_steps: Points on the path, >= 1. Time is linear in it.
      chunk_size: Pairs of a point and a segment at once, for all N examples. None goes by `x` and
        the cores.

    Returns:
      `[N, G, G]`, symmetric, in units of the explained output: a pair's share stands in two places,
      half of it in each, and what a segment does alone on the diagonal. Sums over an example to the
      score gained, up to the error of the quadrature; with the surrogate to what its derivative
      adds up to, which nears that as beta grows. Rows sum to the integrated gradients of segments.
      Costs num_steps * G derivatives of a gradient, in one program.

    Raises:
      ValueError: `baseline` does not broadcast to `x`; segments that are no integers of the shape
        of `x`; traced ones without `num_segments`; `num_steps` or `chunk_size` below 1.

    Example:
      >>> net = lambda w, x: w * x[:, :1] * x[:, 1:] + x[:, 1:]
      >>> out = integrated_hessians(net, 3.0, jnp.array([[2.0, 5.0]]), 0)
      >>> np.asarray(out, float).round(3).tolist()
      [[[7.5, 7.5], [7.5, 12.5]]]

    Reference:
      Janizek et al. 2021, arXiv:2002.04138, eq. 4 and 5, for segments in place of single numbers.
      Its authors' code replaces ReLUs by softplus in the forward pass, too, and draws a and b.
    """
    found = segmented("integrated_hessians", x, segments, num_segments, squares=num_steps)
    return _integrated_hessians(
        apply_fn,
        params,
        x,
        target,
        baseline=baseline,
        numbers=found.numbers,
        count=found.count,
        num_steps=num_steps,
        chunk_size=chunk_size,
    )


def _pairs(apply_fn, params, x, target=None, *, baseline, numbers, count, num_steps, chunk_size):
    name = "integrated_hessians"
    start = baseline_like(name, baseline, x)
    target = fixed_target(apply_fn, params, x, target)
    points, weights = log_weighted(num_steps)
    rows, wide = rows_of(x), _widest(x)

    def at(shares):
        """The input of which each segment has gone a share `[N, G]` of its way."""

        def one(a, b, number):
            if not is_floating(a):
                return a
            here = jnp.where((number >= 0) & (number < count), per_place(shares, number), 1)
            way = moved(a, b)
            return (a.astype(way.dtype) + (here.astype(way.dtype) - 1) * way).astype(a.dtype)

        return jax.tree.map(one, x, start, numbers)

    # Examples do not see each other: the gradient of the sum is that of each row.
    score = lambda shares: score_of(apply_fn, params, at(shares), target).sum().astype(wide)

    def term(k):
        step, segment = k // count, k % count
        s, weight = jnp.asarray(points, wide)[step], jnp.asarray(weights, wide)[step]
        this = jnp.arange(count, dtype=segment.dtype) == segment
        along = jnp.broadcast_to(this[None], (rows, count)).astype(wide)
        here = jnp.full((rows, count), s)
        slopes, curved = jax.jvp(jax.grad(recomputed(score, here)), (here,), (along,))
        row = weight * (s * curved + along * slopes)
        return jnp.where(this[None, :, None], row[:, None], 0)

    total = running_sum(name, term, num_steps * count, chunk_size, x)
    return (total + total.mT) / 2  # which differ by rounding alone


_pairs.__name__ = "integrated_hessians"  # the name that its errors begin with
_integrated_hessians = explanation("count", "num_steps", "chunk_size", sweeps=True)(_pairs)


def _widest(x):
    """In what the shares are reckoned: that of the floating leaves, in float32 at least."""
    return jnp.result_type(*(at_least_float32(a) for a in jax.tree.leaves(x) if is_floating(a)))


@functools.lru_cache(maxsize=32)
def log_weighted(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian points and weights for the integral of `-ln(s) h(s)` over [0, 1].

    By Stieltjes' procedure on a fine quadrature of the weight, with s = t^4, which has no
    singularity to speak of; the points are the eigenvalues of the Jacobi matrix.

    Example:
      >>> points, weights = log_weighted(3)
      >>> [float((weights * points**k).sum().round(6)) for k in range(3)]  # 1 / (k + 1)^2
      [1.0, 0.25, 0.111111]
    """
    t, fine = gauss_legendre(max(400, 8 * num_steps))
    s, fine = t**4, fine * 4 * t**3 * -np.log(t**4)
    fine = fine / fine.sum()
    diagonal, beside = np.zeros(num_steps), np.zeros(num_steps)
    before, here, size = np.zeros_like(s), np.ones_like(s), 1.0
    for k in range(num_steps):
        diagonal[k] = (fine * s * here**2).sum()
        ahead = (s - diagonal[k]) * here - (beside[k - 1] if k else 0) * before
        size = np.sqrt((fine * ahead**2).sum())
        beside[k] = size
        before, here = here, ahead / size
    beside = beside[:-1]
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    points, vectors = np.linalg.eigh(matrix)
    return points, vectors[0] ** 2
