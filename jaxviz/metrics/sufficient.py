"""Sufficiency: whether examples with the same explanation have the same prediction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import real
from jaxviz.engine.copies import check_one_array, outputs_of
from jaxviz.engine.targets import output_shape
from jaxviz.metrics.contract import metric
from jaxviz.metrics.ranked import attribution_like


@metric(threshold=real(0))
def sufficiency(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    *,
    threshold: float = 0.6,
) -> jax.Array:
    """How often other examples of the batch with a near attribution get the same top class: higher
    is better.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers, one array: the batch is the population.
      attribution: The shape of `x`, or `[N, *space]`.
      threshold: How far apart near attributions are at most, as a share of the largest distance in
        the batch. Distances are Euclidean, each number in units of its standard deviation over the
        batch; a number that does not vary has no part in it.

    Returns:
      `[N]`, the share of the others that are near and have the same class; 0 where none is near,
      NaN where the attribution holds one. Costs one forward pass.

    Raises:
      ValueError: Outputs that are not `[N, K]`, and as for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> x = jnp.array([[1.0, 0.0], [0.9, 0.0], [0.0, 1.0], [0.1, 1.0]])
      >>> sufficiency(net, jnp.eye(2), x, x, threshold=0.3).tolist()
      [1.0, 1.0, 1.0, 1.0]

    Reference:
      Dasgupta et al. 2022, arXiv:2202.00734, section 3, with Quantus' distance and threshold.
    """
    name = "sufficiency"
    check_one_array(name, x)
    outputs = output_shape(apply_fn, params, x)
    if len(getattr(outputs, "shape", ())) != 2:
        raise ValueError(
            f"{name}: apply_fn must return outputs [N, K], for the class that wins; got "
            f"{jax.tree.map(jnp.shape, outputs)}. Wrap it in a function that does."
        )
    given = attribution_like(name, attribution, x).reshape(len(x), -1)
    known = ~jnp.isnan(given).any(1)
    given = jnp.where(known[:, None], given, 0)
    count = jnp.maximum(known.sum(), 2).astype(given.dtype)
    mean = given.sum(0, keepdims=True) / count
    off = jnp.where(known[:, None], given - mean, 0)
    spread = jnp.sqrt(jnp.square(off).sum(0, keepdims=True) / (count - 1))
    scaled = off / jnp.where(spread > 0, spread, 1)
    # Differences, not a product of matrices: near ones would lose their digits.
    distance = jax.lax.map(lambda row: jnp.sqrt(jnp.square(scaled - row[None]).sum(1)), scaled)
    both = known[:, None] & known[None, :]
    largest = jnp.where(both, distance, 0).max()
    near = both & (distance <= threshold * largest) & ~jnp.eye(len(x), dtype=bool)
    top = jnp.argmax(outputs_of(apply_fn, params, x), axis=1)
    same = near & (top[:, None] == top[None, :])
    found = near.sum(1)
    share = same.sum(1).astype(given.dtype) / jnp.maximum(found, 1).astype(given.dtype)
    return jnp.where(known, share, jnp.nan)
