"""What the model still says of the input seen through the map: average drop, and its reverse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.arrays import fill as array_fill
from jaxviz.engine.contract import Target
from jaxviz.engine.copies import check_one_array
from jaxviz.metrics.contract import metric
from jaxviz.metrics.ranked import scores_of, units_of
from jaxviz.parts.regions import blend, fadeable, fill_like


@metric("chunk_size", integers=False, fill=array_fill)
def average_drop(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Which share of the confidence is lost when only what the map marks is seen: lower is better.

    max(0, f(x) - f(x seen through the map)) / f(x).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        score is a denominator: take probabilities, `jaxviz.softmax(apply_fn)`.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` or `[N, F]`, floating, one array.
      attribution: The shape of `x`, which is summed over channels, or `[N, *space]`. Scaled to
        [0, 1] for each example, its least number to 0; clip or take `abs` first where a negative
        one says something else. A constant map marks nothing, and all is hidden.
      target: As for `deletion`.
      fill: What is seen where the map is 0; anything that broadcasts to `x`.
      chunk_size: As for `deletion`.

    Returns:
      `[N]`, in [0, 1]; the paper's is its mean over examples, in percent. NaN where f(x) is not
      positive, or the map holds a NaN. Costs two forward passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> average_drop(net, w, x, jnp.array([[2.0, 0.0]]), 0).tolist()
      [0.25]

    Reference:
      Chattopadhay et al. 2018, arXiv:1710.11063, section 5.1.1. Xplique takes the absolute values.
    """
    seen, whole = _seen("average_drop", apply_fn, params, x, attribution, target, fill, chunk_size)
    return jnp.maximum(whole - seen, 0) / jnp.where(whole > 0, whole, jnp.nan)


@metric("chunk_size", integers=False, fill=array_fill)
def increase_in_confidence(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Whether the confidence rises when only what the map marks is seen: higher is better, 1 or 0.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        paper takes probabilities: `jaxviz.softmax(apply_fn)`.
      params: Any pytree, handed on untouched.
      x, attribution, target, fill, chunk_size: As for `average_drop`.

    Returns:
      `[N]`, 1 or 0; the paper's is its mean over examples, in percent. NaN where the score or the
      map holds one. Costs two forward passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [-1.0]]), jnp.ones((1, 2))
      >>> increase_in_confidence(net, w, x, jnp.array([[2.0, 0.0]]), 0).tolist()
      [1.0]

    Reference:
      Chattopadhay et al. 2018, arXiv:1710.11063, section 5.1.2.
    """
    name = "increase_in_confidence"
    seen, whole = _seen(name, apply_fn, params, x, attribution, target, fill, chunk_size)
    rises = (seen > whole).astype(seen.dtype)
    return jnp.where(jnp.isnan(seen + whole), jnp.nan, rises)


def _seen(name, apply_fn, params, x, attribution, target, fill, chunk_size):
    """The score through the map, and that of all, `[N]` each."""
    check_one_array(name, x)
    units = units_of(name, x, attribution)
    values = units.scores
    least, most = (values.min(1, keepdims=True), values.max(1, keepdims=True))
    spread = most - least
    mask = units.laid(jnp.where(spread > 0, (values - least) / jnp.where(spread > 0, spread, 1), 0))
    filled = fill_like(name, fill, x)
    copy = lambda k: blend(filled, mask, x)
    scores, clean = scores_of(name, apply_fn, params, x, target, copy, 1, chunk_size)
    known = units.known.astype(scores.dtype) * fadeable(filled).astype(scores.dtype)
    return scores[0] * known, clean
