"""Gradients gathered along the straight path to the input, from one baseline or from many."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.public import public
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least,
    at_least_float32,
    fixed_target,
    is_floating,
    running_sum,
    score_of,
    with_noise,
    zeros_of,
)
from jaxviz.engine.rounds import error_shares, in_rounds, mean_until, stops_early, told_by_errors
from jaxviz.graph.affine import affine_start
from jaxviz.parts.gradients import PULLED, gradient_sum, gradient_sums, input_gradient
from jaxviz.parts.regions import count_baselines, one_baseline
from jaxviz.rules.fast import serving, weighed

Rule = Literal["gausslegendre", "left", "right", "middle", "trapezoid"]
_FEW, _MORE = 4, 3  # steps to begin with, at least; how many times as many each round has


@explanation("num_steps", "rule", "chunk_size", nonzero=("tolerance",), sweeps=True)
def integrated_gradients(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    baseline: Any = None,
    num_steps: int = 50,
    rule: Rule = "gausslegendre",
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Any:
    """Shares the score gained between `baseline` and `x` among the inputs.

    With d = x - x0: d * sum_k w_k grad f(x0 + t_k d), a quadrature of the integral over t in [0,
    1].

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baseline: `[...]` or `[N, ...]`, or a number: the input that stands for "nothing there"; for a
        pytree `x` a pytree of such. None is zeros.
      num_steps: Points on the path, >= 1. Time is linear in it, memory constant. What of the model
        is affine in its input (the first layer, mostly) is run at the path's ends alone.
      rule: Where the points lie: "gausslegendre", or equal steps at their "left", "right" or
        "middle", or "trapezoid" (`num_steps` points, both ends among them).
      tolerance: Above 0, few points are taken first, and three times as many anew, until what an
        example's attributions miss of the score gained is at most this share of it, and none of
        them has changed by more than this share of their range; or the next were more than
        `num_steps`. All examples go on until the last of them is known, and cores do not share
        rounds. 0 takes `num_steps`; reverse differentiation needs that.
      chunk_size: Points of the path at once, for all N examples. None goes by `x` and the cores.

    Returns:
      The shape of `x`, in units of the explained output. Sums over an example to the score gained,
      up to the error of the quadrature (`completeness_gap` measures it). With a tolerance it costs
      half as much again as the points that were enough, and two forward passes.

    Raises:
      ValueError: `baseline` does not broadcast to `x`; `num_steps` or `chunk_size` is below 1 (2
        for "trapezoid"); `rule` is unknown; `tolerance` is negative.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> integrated_gradients(lambda w, x: x @ w, w, x, 0, rule="middle").round(5).tolist()
      [[1.0, -2.0]]

    Reference:
      Sundararajan et al. 2017, arXiv:1703.01365, eq. 1; equal steps at their right ends there,
      Gauss-Legendre points here unless `rule` says otherwise. Captum's trapezoid weights sum to
      1 - 1 / num_steps; these sum to 1.
    """
    name = "integrated_gradients"
    start = baseline_like(name, baseline, x)
    if stops_early(tolerance):
        given = name, apply_fn, params, x, start, rule, num_steps, tolerance, chunk_size
        return _like(_integrated_until(*given, fixed_target(apply_fn, params, x, target)), x)
    points, weights = quadrature_on_host(name, rule, num_steps)
    term = _on_the_line(start, x, points, weights)
    total = gradient_sum(name, apply_fn, params, x, target, term, num_steps, chunk_size)
    return _like(times_difference(x, start, total), x)


def _on_the_line(start, x, points, weights):
    """For `gradient_sum`, or for several such: the points, those without a weight left out.

    An affine function maps a line to a line. Its ends are the outermost points, not `start` and
    `x`: what is finite at these is so between them, and all that is run is what a sum would run.
    """
    there = points[weights > 0]
    first, last = there.min(), there.max()
    along = jnp.asarray((points - first) / ((last - first) or 1))

    def term(begin):
        one, other = (begin(between(start, x, jnp.asarray(t))) for t in (first, last))
        return lambda *k: (between(one, other, along[k]), jnp.asarray(weights)[k])

    return term


def layer_on_the_line(
    head: Callable, params: Any, x: Any, start: Any, points: np.ndarray
) -> tuple[Callable[[jax.Array], tuple[Any, Any]], list[jax.Array]]:
    """From k to what a cut's head gives at the k-th point between `start` and `x`, `(a, carry)`;
    and values as large as what is alive for each.

    What of the head is affine in the input is run at the path's ends alone.
    """
    with serving(len(points)):
        rules = weighed()
    parts = affine_start(head, params, x, rules=rules, once=weighed())
    at = _on_the_line(start, x, points, np.ones(len(points)))(lambda x: parts.start(params, x))
    return lambda k: parts.rest(params, at(k)[0]), jax.eval_shape(parts.start, params, x)


def _integrated_until(
    name, apply_fn, params, x, start, rule, num_steps, tolerance, chunk_size, target
):
    """By the rule's points for ever more steps, until the gap and the last change are small enough.

    The gap alone would not do: what one input has too much another may have too little.
    """
    times = 0
    while num_steps // _MORE ** (times + 1) >= _FEW:
        times += 1
    lengths = np.array([num_steps // _MORE**k for k in range(times, -1, -1)])
    points, weights = np.zeros((2, len(lengths), num_steps))
    for row, length in enumerate(lengths):
        points[row, :length], weights[row, :length] = quadrature_on_host(name, rule, int(length))
    term = _on_the_line(start, x, points, weights)
    total = gradient_sums(name, apply_fn, params, x, target, term, lengths, chunk_size)
    gained = _gained(name, apply_fn, params, x, target, start)

    def draw(before, turn):
        found = times_difference(x, start, total(turn))
        change = jax.tree.map(lambda a, b: jnp.abs(a - b), found, before[0])
        missed = error_shares(found, change, gained)
        # Never 0, which would say that nothing was seen yet.
        missed = jnp.maximum(missed, jnp.finfo(missed.dtype).tiny)
        return found, jnp.where(turn == 0, jnp.inf, missed)

    nothing = zeros_of(lambda: times_difference(x, start, total(jnp.int32(0))))
    state = nothing, jnp.zeros_like(error_shares(nothing, nothing))
    return in_rounds(state, draw, lambda state: state[1], len(lengths), tolerance)[0]


def _gained(name, apply_fn, params, x, target, start=None, baselines=None):
    """`[N]`: the score at `x` less that at `start`, or less the mean of those at the baselines."""

    def score(x):
        found = score_of(apply_fn, params, x, target)
        return found.astype(at_least_float32(found))

    if baselines is None:
        return score(x) - score(start)
    count = count_baselines(name, baselines, x)
    begin = lambda k: score(baseline_among(name, baselines, x, k))
    return score(x) - running_sum(name, begin, count, None, x) / count


@explanation(
    *("num_samples", "noise_scale", "chunk_size"),
    nonzero=("tolerance",),
    sweeps=True,
)
def expected_gradients(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    baselines: Any,
    key: jax.Array,
    num_samples: int = 50,
    noise_scale: float = 0.0,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Any:
    """Integrated gradients averaged over many baselines (GradientSHAP).

    mean_k (x - b_k) * grad f(b_k + t_k (x - b_k)), b_k drawn from `baselines`, t_k uniform on [0,
    1].

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baselines: `[B, ...]`, a sample of the data, any B >= 1, or `[N, B, ...]`, each example's own;
        for a pytree `x` a pytree of such, drawn from in step.
      key: Key of the draws, which are the same whatever `chunk_size` is.
      num_samples: Draws for each example, >= 1. Time is linear in it, memory constant.
      noise_scale: Standard deviation of Gaussian noise added to each draw's `x`, as a share of the
        example's range (max - min).
      tolerance: Above 0, it stops after a round of 32 draws when no standard error is above this
        share of its example's range of values, the largest less the smallest, and (without noise)
        what an example's values miss of the score gained is at most this share of it (or of a
        hundredth of that range); `num_samples` is the most. N x B forward passes more. The same
        key draws the same. All examples take as many as the slowest of their batch, so an
        example's result depends on what is beside it; cores do not share rounds, as they share
        draws without it. 0 takes all; reverse differentiation needs that.
      chunk_size: Draws at once, for all N examples. None goes by `x` and the cores.

    Returns:
      The shape of `x`, in units of the explained output. Sums over an example, in expectation, to
      the score gained over the mean score of the baselines (`completeness_gap` measures it).

    Raises:
      ValueError: `baselines` is not as above; `num_samples` or `chunk_size` <
        1; `noise_scale` is negative or not finite.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> draw = dict(baselines=jnp.zeros((3, 2)), key=jax.random.key(0), num_samples=4)
      >>> expected_gradients(lambda w, x: x @ w, w, x, 0, **draw).tolist()
      [[1.0, -2.0]]

    Reference:
      Erion et al. 2021, arXiv:1906.10670, eq. 3; with noise, Captum's "GradientShap", made after
      the shap library's GradientExplainer. There the noise is absolute; here it is a share of the
      range, as in `smooth_grad`.
    """
    name = "expected_gradients"
    count = count_baselines(name, baselines, x)
    num_examples = jnp.shape(jax.tree.leaves(x)[0])[0]

    which_key, where_key, noise_key = jax.random.split(key, 3)
    # Of as many bits as the numbers: JAX's setting of 64 bits changes nothing for a net of 32.
    bits = 64 if any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(x)) else 32
    which = jax.random.randint(which_key, (num_samples, num_examples), 0, count, f"int{bits}")
    where = jax.random.uniform(where_key, (num_samples, num_examples), f"float{bits}")

    def ends(k):
        start = one_baseline(baselines, x, which[k])
        end = with_noise(jax.random.fold_in(noise_key, k), x, noise_scale) if noise_scale else x
        return start, end

    def point(k):
        return between(*ends(k), where[k])

    rounds = stops_early(tolerance)
    # Where every draw has the same difference from its baseline.
    if count == 1 and not noise_scale and not rounds:
        along = lambda begin: lambda k: (begin(point(k)), 1 / num_samples)
        given = (name, apply_fn, params, x, target, along, num_samples, chunk_size)
        total = gradient_sum(*given, PULLED)
        return _like(times_difference(x, ends(0)[0], total), x)
    target = fixed_target(apply_fn, params, x, target)

    def share(k):
        start, end = ends(k)
        gradient = input_gradient(apply_fn, params, point(k), target)
        return times_difference(end, start, gradient)  # in float32 at least, to be added up

    if rounds:
        # Noise moves what shares add up to: then their errors alone tell.
        gap = {"baselines": baselines}
        gained = None if noise_scale else _gained(name, apply_fn, params, x, target, **gap)
        told = functools.partial(told_by_errors, gained=gained)
        mean = mean_until(name, share, num_samples, chunk_size, x, tolerance, told).mean
        return _like(mean, x)
    total = running_sum(name, share, num_samples, chunk_size, x)
    return _like(jax.tree.map(lambda t: t / num_samples, total), x)


@public()
def completeness_gap(
    apply_fn: Callable,
    params: Any,
    x: Any,
    baseline: Any,
    attribution: Any,
    target: Target = None,
    *,
    baselines: Any = None,
) -> jax.Array:
    """How far an attribution is from adding up to the score gained between `baseline` and `x`.

    sum attribution - (f(x) - f(x0)); zero for an exact path integral. Of many baselines it is their
    mean score that the gain is over: shap's check of additivity.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such, as it was explained.
      baseline: As it was given to the method; None is zeros.
      attribution: What the method returned, the shape of `x`.
      target: As it was given to the method; None is the top class at `x`.
      baselines: As they were given to `expected_gradients` or `deep_lift_shap`; `baseline` is None.

    Returns:
      `[N]`, in units of the explained output, in float32 at least. Costs two forward passes, or one
      and one a baseline.

    Raises:
      ValueError: `baseline` does not broadcast to `x`; `baselines` is not as above, or both are
        given; `attribution` has another shape than `x`.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> f = lambda w, x: x @ w
      >>> completeness_gap(f, w, x, None, jnp.array([[1.5, -2.0]]), 0).tolist()
      [0.5]

    Reference:
      Sundararajan et al. 2017, arXiv:1703.01365, section 3 (completeness), section 5 (the check).
    """
    if baseline is not None and baselines is not None:
        raise ValueError(
            "completeness_gap: baseline must be None where baselines are given; got both. Pass "
            "what the method was given."
        )
    given = {"baseline": baseline, "baselines": baselines}
    return _completeness_gap(apply_fn, params, x, target, attribution=attribution, **given)


def _measured_gap(apply_fn, params, x, target=None, *, baseline, baselines, attribution):
    name = "completeness_gap"
    start = baseline_like(name, baseline, x) if baselines is None else None
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (attribution, x)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name}: attribution must have the shape of x; got {shapes[0]}, x {shapes[1]}. "
            "Pass what the method returned for this x."
        )
    target = fixed_target(apply_fn, params, x, target)
    gained = _gained(name, apply_fn, params, x, target, start, baselines)
    rows = [jnp.asarray(a).reshape(gained.shape[0], -1) for a in jax.tree.leaves(attribution)]
    return sum(a.astype(at_least_float32(a)).sum(1).astype(gained.dtype) for a in rows) - gained


_measured_gap.__name__ = "completeness_gap"  # the name that its errors begin with
_completeness_gap = explanation()(_measured_gap)


def quadrature(name: str, rule: Rule, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Points, in order, and weights on [0, 1]."""
    points, weights = quadrature_on_host(name, rule, num_steps)
    return jnp.asarray(points), jnp.asarray(weights)


def quadrature_on_host(name, rule, num_steps):
    at_least(name, "num_steps", num_steps, 2 if rule == "trapezoid" else 1)
    equal = np.full(num_steps, 1 / num_steps)
    steps = np.arange(num_steps)
    if rule == "gausslegendre":
        points, weights = gauss_legendre(num_steps)
    elif rule == "left":
        points, weights = steps / num_steps, equal
    elif rule == "right":
        points, weights = (steps + 1) / num_steps, equal
    elif rule == "middle":
        points, weights = (steps + 0.5) / num_steps, equal
    else:  # "trapezoid"
        points, weights = steps / (num_steps - 1), np.full(num_steps, 1 / (num_steps - 1))
        weights[[0, -1]] /= 2
    return points, weights


@functools.lru_cache(maxsize=32)
def gauss_legendre(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights on [0, 1], by Newton's steps to a polynomial's roots.

    In time quadratic in `num_steps`; the eigenvalues that NumPy takes cost cubic time.

    Example:
      >>> points, weights = gauss_legendre(2)
      >>> points.round(4).tolist(), weights.round(4).tolist()
      ([0.2113, 0.7887], [0.5, 0.5])
    """
    n, half = num_steps, (num_steps + 1) // 2
    angles = np.pi * (np.arange(1, half + 1) - 0.25) / (n + 0.5)
    roots = (1 - (n - 1) / (8 * n**3)) * np.cos(angles)  # Tricomi's estimate, of order n ** -4
    for _ in range(4):  # each step doubles the digits
        before, here = np.ones(half), roots
        for k in range(2, n + 1):
            before, here = here, ((2 * k - 1) * roots * here - (k - 1) * before) / k
        slope = n * (roots * here - before) / (roots**2 - 1)
        roots = roots - here / slope
    weights = 1 / ((1 - roots**2) * slope**2)  # of the interval [0, 1], half as long as [-1, 1]
    weights_again, again = weights[::-1][n % 2 :], roots[::-1][n % 2 :]  # the middle one only once
    points = np.concatenate([(1 - roots) / 2, (1 + again) / 2])
    return points, np.concatenate([weights, weights_again])


def baseline_like(name: str, baseline: Any, x: Any) -> Any:
    """The baseline as a tree of the shapes and dtypes of `x`; integer leaves are those of `x`."""
    if baseline is None:
        return jax.tree.map(lambda a: jnp.zeros_like(a) if is_floating(a) else a, x)
    if jax.tree.structure(baseline) != jax.tree.structure(x):
        if jax.tree.structure(baseline) != jax.tree.structure(0):
            raise ValueError(
                f"{name}: baseline must be a pytree like x; got {jax.tree.structure(baseline)}, x "
                f"{jax.tree.structure(x)}. Pass one leaf for each of x, a number for all, or None."
            )
        baseline = jax.tree.map(lambda a: jax.tree.leaves(baseline)[0], x)

    def like(a, b):
        shape = jnp.shape(b)
        if shape not in ((), a.shape, a.shape[1:], (1, *a.shape[1:])):
            raise ValueError(
                f"{name}: baseline must broadcast to x; got baseline {shape}, x {a.shape}. "
                "Pass [...] or [N, ...]."
            )
        if not is_floating(a):
            return a
        b = jnp.asarray(b).astype(a.dtype)
        return jnp.broadcast_to(b.reshape((1,) * (a.ndim - b.ndim) + b.shape), a.shape)

    return jax.tree.map(like, x, baseline)


def baseline_among(name: str, baselines: Any, x: Any, k: jax.Array) -> Any:
    """That with the number `k`, as `baseline_like` has it."""
    start = one_baseline(baselines, x, k)
    start = jax.tree.map(lambda b, a: b if is_floating(a) else a, start, x)
    return baseline_like(name, start, x)


def between(start: Any, end: Any, where: jax.Array) -> Any:
    """The points at `where` on the way from `start` to `end`.

    A number that does not move stays what it is, infinite as it may be, and one that moves may do
    so between numbers whose difference overflows.

    Args:
      start, end: Trees alike; integer leaves are those of `end`.
      where: In [0, 1]: one for all, `[N]`, or of the shape of the leaf.
    """

    def one(a, b):
        if not is_floating(b):
            return b
        wide = at_least_float32(b)
        t = where.astype(wide).reshape(where.shape + (1,) * ((b.ndim - 1) * (where.ndim == 1)))
        t = jnp.broadcast_to(t, b.shape)
        a, b, dtype = a.astype(wide), b.astype(wide), b.dtype
        way = b - a
        near = jnp.isfinite(way)
        far = jnp.where(t == 0, a, jnp.where(t == 1, b, (1 - t) * a + t * b))
        return jnp.where(near, a + t * jnp.where(near, way, 0), far).astype(dtype)

    return jax.tree.map(one, start, end)


def moved(end: jax.Array, start: jax.Array) -> jax.Array:
    """`end - start` in float32 at least, 0 where both are the same infinity."""
    wide = at_least_float32(end)
    still = (end == start) & ~jnp.isfinite(end)
    return jnp.where(still, 0, end.astype(wide) - start.astype(wide))


def times_difference(end, start, gradient):
    """`(end - start) * gradient`, in float32 at least; zeros for integer leaves."""

    def times(a, b, g):
        if not is_floating(a):
            return g
        difference = moved(a, b)
        return difference * g.astype(difference.dtype)

    return jax.tree.map(times, end, start, gradient)


def _like(values, x):
    return jax.tree.map(lambda v, a: v.astype(a.dtype) if is_floating(a) else v, values, x)
