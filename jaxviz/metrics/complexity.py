"""How few numbers of an attribution say most of it: sparseness, entropy, count."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import real
from jaxviz.metrics.maps import measure, nan_where_not_finite, rows_of_each


@measure()
def sparseness(attribution: Any) -> jax.Array:
    """How unevenly an attribution is spread: its Gini index. Higher is better: fewer places matter.

    sum_i (2 i - D - 1) a_i / (D sum_i a_i), a the absolute values in rising order.

    Args:
      attribution: `[N, ...]`, or a pytree of such; D numbers an example.

    Returns:
      `[N]`, from 0 (all equal) to 1 - 1 / D (one place has all). A map of zeros is one of equal
      numbers: 0. NaN where it holds NaN.

    Raises:
      ValueError: No map an example.

    Example:
      >>> sparseness(jnp.array([[0.0, 0.0, 0.0, -2.0], [1.0, 1.0, 1.0, 1.0]])).tolist()
      [0.75, 0.0]

    Reference:
      Chalasani et al. 2020, arXiv:1810.06583, section 4; Hurley and Rickard 2009. Quantus adds 1e-7
      to each value first, which moves the result by about that much over the mean.
    """
    a = jnp.abs(rows_of_each("sparseness", attribution))
    a = _share_of_largest(a)
    count = a.shape[1]
    weights = 2 * jnp.arange(1, count + 1, dtype=a.dtype) - (count + 1)
    total = a.sum(1)
    found = (weights[None, :] * jax.lax.sort(a, dimension=1)).sum(1)
    found = found / (count * jnp.where(total == 0, 1, total))
    return nan_where_not_finite(jnp.where(a.min(1) == a.max(1), 0, found), a)


@measure()
def complexity(attribution: Any) -> jax.Array:
    """Over how many places an attribution is spread: its entropy. Lower is better.

    -sum_i p_i log p_i, p_i = |a_i| / sum_j |a_j|, in nats.

    Args:
      attribution: `[N, ...]`, or a pytree of such; D numbers an example.

    Returns:
      `[N]`, from 0 (one place has all) to log D (all equal). A map of zeros is one of equal
      numbers: log D. NaN where it holds NaN. exp of it is a number of places.

    Raises:
      ValueError: No map an example.

    Example:
      >>> complexity(jnp.array([[0.0, 0.0, -2.0], [1.0, 1.0, 0.0]])).tolist()
      [0.0, 0.6931471824645996]

    Reference:
      Bhatt et al. 2020, arXiv:2005.00631, section 2.4. Quantus gives NaN for a map of zeros.
    """
    a = jnp.abs(rows_of_each("complexity", attribution))
    a = _share_of_largest(a)
    total = a.sum(1, keepdims=True)
    p = jnp.where(total == 0, 1 / a.shape[1], a / jnp.where(total == 0, 1, total))
    log_p = jnp.log(jnp.where(p == 0, 1, p))
    return jnp.maximum(-(p * log_p).sum(1), 0)  # rounding makes it -0 or just below


@measure(threshold=real(0, traced=True))
def effective_complexity(attribution: Any, threshold: float = 1e-5) -> jax.Array:
    """How many numbers of an attribution are not negligible. Lower is better.

    #{i: |a_i| > threshold max_j |a_j|}

    Args:
      attribution: `[N, ...]`, or a pytree of such.
      threshold: As a share of the largest absolute value of the example, >= 0.

    Returns:
      `[N]`, a count, floating as other metrics are; 0 for a map of zeros, NaN where it holds NaN.

    Raises:
      ValueError: No map an example, or a negative threshold.

    Example:
      >>> effective_complexity(jnp.array([[0.0, 1.0, -2.0]])).tolist()
      [2.0]

    Reference:
      Nguyen and Martinez 2020, arXiv:2007.07584, section 3: there the smallest number of features
      whose replaced rest costs less than a threshold, which needs the model (`insertion` shows it).
      This is what Quantus counts under the name, of the
      largest number of the batch.
    """
    a = jnp.abs(rows_of_each("effective_complexity", attribution))
    a = _share_of_largest(a)
    found = (a > jnp.asarray(threshold, a.dtype)).sum(1).astype(a.dtype)
    return nan_where_not_finite(found, a)


def _share_of_largest(a):
    """Absolute values in units of the largest, so that no scale under- or overflows."""
    largest = a.max(1, keepdims=True)
    return a / jnp.where(largest == 0, 1, largest)
