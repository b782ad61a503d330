"""Whether the score rises with what the attribution says is more important."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.models import shapes_of
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target
from jaxviz.engine.copies import is_floating
from jaxviz.metrics.contract import metric
from jaxviz.metrics.correlation import by_rank
from jaxviz.metrics.curves import as_curve, per_example
from jaxviz.metrics.ranked import Unit, covers, ranks, scores_of, thresholds, units_of
from jaxviz.metrics.subsets import group_sums

_ROUNDING = 8  # units in the last place, by which a score may fall and still not fall


class Monotonicity(NamedTuple):
    """Whether, and how far, a score rises as units come, the least important first.

    Attributes:
      holds: `[N]`, 1 where it never falls, 0 where it does: the metric.
      share: `[N]`, the share of steps in which it does not fall.
      curve: `[N, num_steps + 1]`, the score before any unit and after each step.
    """

    holds: jax.Array
    share: jax.Array
    curve: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@metric("num_steps", "unit", "num_segments", "chunk_size")
def monotonicity(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    num_steps: int = 20,
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> Monotonicity:
    """Whether the score never falls while units are put into an empty input, the least important
    first: higher is better, 1 or 0.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target, num_steps: As for `insertion`, least first. As many steps as there are
        units is the paper's.
      fill: The empty input.
      unit, segments, num_segments, chunk_size: As for `deletion`.

    Returns:
      A `Monotonicity`; NaN where the attribution holds one. The first step, from the empty input,
      is not judged, as in the authors' code; a fall within rounding is none, so that a constant
      score holds. Costs `num_steps + 1` forward passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [-1.0], [2.0]]), jnp.ones((1, 3))
      >>> out = monotonicity(net, w, x, x * w.T, 0, num_steps=3)
      >>> out.curve.tolist(), out.holds.tolist()
      ([[0.0, -1.0, 1.0, 4.0]], [1.0])

    Reference:
      Arya et al. 2019, arXiv:1909.03012, section 5 (AIX360's `monotonicity_metric`). Quantus 0.6.0
      puts the fill in place of the fill, never x, so that all inputs are equal and it is always
      true.
    """
    name = "monotonicity"
    units = units_of(name, x, attribution, unit=unit, segments=segments, num_segments=num_segments)
    steps, cover = thresholds(units.counts, num_steps), covers(name, fill, x)
    rank = units.laid(ranks(units, "least_first"))
    copy = lambda k: cover(rank > per_example(steps[k], x))
    scores, clean = scores_of(name, apply_fn, params, x, target, copy, num_steps, chunk_size)
    curve = as_curve(jnp.concatenate([scores, clean[None]]), steps, units).curve
    scale = jnp.abs(curve).max(1, keepdims=True)
    judged = jnp.diff(curve[:, 1:], axis=1)
    rises = judged >= -_ROUNDING * jnp.finfo(curve.dtype).eps * scale
    known = units.known.astype(curve.dtype)
    as_number = lambda a: a.astype(curve.dtype) * known
    share = rises.astype(curve.dtype).mean(1) if num_steps > 1 else jnp.ones_like(known)
    return Monotonicity(as_number(rises.all(1)), as_number(share), curve)


@metric("num_samples", "num_steps", "unit", "num_segments", "chunk_size", integers=False)
def monotonicity_correlation(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    key: jax.Array,
    baselines: Any = None,
    num_samples: int = 10,
    num_steps: int | None = None,
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Rank correlation between the size of what each unit is given and how far the score is from
    itself where the unit is not known: higher is better, 1 at most.

    spearman over units i of (|a_i|, mean over samples of (f(x) - f(x with i drawn anew))^2).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: As for `deletion`, floating.
      attribution, target: As for `deletion`.
      key: Of the draws, the same for every unit.
      baselines: `[M, ...]`, inputs from which a unit's values are drawn, one of them at a time.
        None draws each number evenly between the least and the largest of the example.
      num_samples: Draws a unit.
      num_steps: As for `faithfulness_estimate`.
      unit, segments, num_segments, chunk_size: As for `deletion`.

    Returns:
      `[N]`; NaN as for `faithfulness_correlation`. Costs `num_samples` forward passes a group, and
      one.

    Raises:
      ValueError: `baselines` are not `[M, ...]`, and as for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0], [-2.0]]), jnp.array([[1.0, 0.5, 0.0]])
      >>> out = monotonicity_correlation(net, w, x, w.T, 0, key=jax.random.key(0), num_samples=99)
      >>> round(float(out[0]), 5)
      1.0

    Reference:
      Nguyen and Martinez 2020, arXiv:2007.07584, section 3.1.1. It and Quantus divide by f(x)^2,
      which no rank correlation sees; Quantus draws one number for all of a group.
    """
    name = "monotonicity_correlation"
    units = units_of(name, x, attribution, unit=unit, segments=segments, num_segments=num_segments)
    groups = num_steps or units.scores.shape[1]
    rank, steps = ranks(units), thresholds(units.counts, groups)
    laid = units.laid(rank)
    low = lambda k: per_example(steps[k], x)
    draw = _draws(name, baselines, key, x)

    def copy(k):
        group, sample = k // num_samples, k % num_samples
        unknown = (laid > low(group)) & (laid <= low(group + 1))
        return jnp.where(unknown, draw(sample), x)

    num = groups * num_samples
    scores, clean = scores_of(name, apply_fn, params, x, target, copy, num, chunk_size)
    away = jnp.square(clean[None] - scores).reshape(groups, num_samples, len(x)).mean(1).T
    given, counts = group_sums(jnp.abs(units.scores), rank, steps)
    return by_rank(given, away, counts) * units.known


def _draws(name, baselines, key, x) -> Callable[[jax.Array], jax.Array]:
    """From a sample's number to inputs like `x`."""
    own = lambda k: jax.random.fold_in(key, k)
    if baselines is None:
        axes = tuple(range(1, x.ndim))
        least, most = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
        return lambda k: (
            least + (most - least) * jax.random.uniform(own(k), x.shape[1:], x.dtype)[None]
        )
    one = jax.tree.structure(baselines) == jax.tree.structure(0)
    shape = jnp.shape(baselines) if one else ()
    if shape[1:] != x.shape[1:] or not shape or not shape[0] or not is_floating(baselines):
        raise ValueError(
            f"{name}: baselines must be floating, [M, ...] like x, {x.shape}; got "
            f"{shapes_of(baselines)}. One is baseline[None]."
        )
    pool = jnp.asarray(baselines).astype(x.dtype)
    return lambda k: pool[jax.random.randint(own(k), (), 0, shape[0], jnp.int32)][None]
