"""DeepLIFT: the difference from a baseline, handed down through every operation."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.attribution.path import baseline_among, baseline_like
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import fixed_target, is_floating, running_sum
from jaxviz.graph.beyond import may_be_infinite
from jaxviz.graph.lift import lift
from jaxviz.graph.trace import model
from jaxviz.parts.gradients import plain_gradient
from jaxviz.parts.regions import count_baselines
from jaxviz.rules import deeplift, reveal_cancel
from jaxviz.rules.differences import still
from jaxviz.rules.unread import read_only

DifferenceRule = Literal["rescale", "reveal_cancel"]


@explanation("rule")
def deep_lift(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    baseline: Any = None,
    rule: DifferenceRule = "rescale",
) -> Any:
    """Shares the score gained between `baseline` and `x`, by difference quotients of activations.

    (x - x0) * m, where m is the gradient with every nonlinear function's derivative replaced by its
    difference quotient between baseline and input: for a ReLU (max(z, 0) - max(z0, 0)) / (z - z0).

    Works on any net: a maximum (pooling, a median) carries the difference of the place that
    explains its change; a product of two activations gives each factor its Shapley value; softmax
    is exact too, and linear systems and inverses whose matrix depends on the input.
    `jaxviz.rules.deeplift` has the rules. They are relative, so inputs of 1e-8 or 1e8 are explained
    as exactly as those of 1. But where large numbers leave next to nothing in a way that has no
    rule of its own (`logsumexp(h) - max(h)`, `hypot(x, 1) - abs(x)`, a root found by bisection),
    single precision may lose it here, even where the function keeps it: from 1e3 on by parts of
    1e-5 to 1e-2, at 1e8 all of it. Look at `completeness_gap` there, or take float64.

    It is the function's own difference that is shared: `stop_gradient`, and what a `custom_jvp` or
    `custom_vjp` puts in place of the derivative (straight-through, gradient reversal), change
    nothing.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baseline: `[...]` or `[N, ...]`, or a number: the input that stands for "nothing there"; for a
        pytree `x` a pytree of such. None is zeros.
      rule: "rescale", or "reveal_cancel", which keeps positive and negative differences apart at
        activations, so that what cancels is seen; it costs two to three times as much.

    Returns:
      The shape of `x`, in units of the explained output. Sums over an example to the score gained
      up to rounding, with max pooling, products and softmax too (`completeness_gap` measures it).
      Costs two forward passes and one backward pass.

    Raises:
      NotImplementedError: An operation without a rule; named with the user's file and line.
      ValueError: `baseline` does not broadcast to `x`, or `rule` is unknown.

    Example:
      >>> net = lambda w, x: jnp.maximum(x @ w, 0)
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.array([[4.0, 0.5]])
      >>> deep_lift(net, w, x, 0, baseline=jnp.array([1.0, 1.0])).tolist()  # 3/4 of it passes
      [[2.25, 0.75]]

    Reference:
      Shrikumar et al. 2017, arXiv:1704.02685, section 3.5. Captum's DeepLift is not complete with
      max pooling and reads only certain modules; with average pooling the two agree.
    """
    start = baseline_like("deep_lift", baseline, x)
    return _multiplied(apply_fn, params, x, start, target, rule)


@explanation("rule", "chunk_size", sweeps=True)
def deep_lift_shap(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    baselines: Any,
    rule: DifferenceRule = "rescale",
    chunk_size: int | None = None,
) -> Any:
    """DeepLIFT averaged over many baselines: an estimate of Shapley values.

    mean_k deep_lift(x, baselines[k]).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves stay as they are.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baselines: `[B, ...]`, any B >= 1, each used for each example, or `[N, B, ...]`, each
        example's own; for a pytree `x` a pytree of such.
      rule: As in `deep_lift`.
      chunk_size: Baselines at once, for all N examples. None goes by `x` and the cores.

    Returns:
      The shape of `x`, in units of the explained output. Sums over an example to its score less the
      mean score of the baselines, up to rounding (`completeness_gap` measures it).

    Raises:
      NotImplementedError: An operation without a rule; named with the user's file and line.
      ValueError: `baselines` is not as above, or `chunk_size` is below 1.

    Example:
      >>> net = lambda w, x: jnp.maximum(x @ w, 0)
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.array([[4.0, 1.0]])
      >>> deep_lift_shap(net, w, x, 0, baselines=jnp.array([[1.0, 1.0], [1.0, 0.0]])).tolist()
      [[2.5, -1.0]]

    Reference:
      Lundberg and Lee 2017, arXiv:1705.07874, section 4.2.
    """
    name = "deep_lift_shap"
    count = count_baselines(name, baselines, x)
    target = fixed_target(apply_fn, params, x, target)

    def term(k):
        start = baseline_among(name, baselines, x, k)
        return _multiplied(apply_fn, params, x, start, target, rule)

    total = running_sum(name, term, count, chunk_size, x)
    return jax.tree.map(lambda t, a: (t / count).astype(jnp.result_type(a)), total, x)


def _multiplied(apply_fn, params, x, start, target, rule):
    if rule not in _RULES:
        raise ValueError(
            f"deep_lift: rule must be one of {', '.join(_RULES)}; got {rule!r}. Take 'rescale'."
        )
    return _RULES[rule](apply_fn, params, x, start, target)


def _scored(apply_fn: Callable, params: Any, x: Any, target: Target) -> Callable:
    """The function to carry differences through: a target that is a function is part of it."""
    read = read_only(apply_fn, params, x, target, turns=False)
    return (lambda params, x: select(read(params, x), target)) if callable(target) else read


def _rescaled(apply_fn, params, x, start, target):
    explained = _scored(apply_fn, params, x, target)
    starts = jax.tree.leaves(start)

    def carried(given, d):
        params, x = given
        along = jax.tree.leaves(d)
        outputs = lift(
            explained,
            deeplift.rescale,
            params,
            x,
            bundle=lambda i, leaf: (leaf, starts[i], along[i]),
            still=still,
            each=deeplift.linear,
        )
        return _ended(explained, params, x, start, outputs)

    gap = _difference(x, start)
    multipliers = plain_gradient(carried, (params, x), gap, _score(target))
    return jax.tree.map(lambda m, g: m * g, multipliers, gap)


def _revealed(apply_fn, params, x, start, target):
    explained = _scored(apply_fn, params, x, target)
    starts = jax.tree.leaves(start)
    gap = _difference(x, start)
    up = jax.tree.map(lambda g: jnp.maximum(g, 0), gap)
    down = jax.tree.map(lambda g: jnp.minimum(g, 0), gap)
    ups = jax.tree.leaves(up)

    def carried(given, d):
        params, x = given
        along = list(zip(jax.tree.leaves(d[0]), jax.tree.leaves(d[1]), strict=True))
        outputs = lift(
            explained,
            reveal_cancel.reveal_cancel,
            params,
            x,
            bundle=lambda i, leaf: (leaf, starts[i], ups[i], *along[i]),
            still=reveal_cancel.still,
            each=reveal_cancel.each,
        )
        here, there, _, positive, negative = outputs
        outputs = here, there, positive + negative
        return _ended(explained, params, x, start, outputs)

    by_sign = plain_gradient(carried, (params, x), (up, down), _score(target))
    return jax.tree.map(lambda p, n, u, d: p * u + n * d, *by_sign, up, down)


def _ended(explained, params, x, start, outputs):
    """The outputs' bundle, with what they are where an infinity was carried as a number."""
    if not may_be_infinite(model(explained, params, x).plain().program):
        return outputs
    return explained(params, x), explained(params, start), outputs[2]


_RULES = {"rescale": _rescaled, "reveal_cancel": _revealed}


def _score(target: Target) -> Callable:
    """Of the bundle of all outputs, the carried difference of each example's explained number."""

    def score(outputs):
        if not callable(target):
            top = jnp.argmax(outputs[0], axis=1) if target is None else target
            outputs = [select(output, top) for output in outputs]
        here, there, along = outputs
        # A number that is infinite or undefined at an end has no shares: 0 * inf is NaN.
        return along * (1 + 0 * (here - there))

    return score


def _difference(x, start):
    """Input minus baseline; zero for integer leaves, which stay."""

    def gap(a, b):
        return a - b if is_floating(a) else jnp.zeros(jnp.shape(a))

    return jax.tree.map(gap, x, start)
