"""Curves of patches and segments that go one by one: region perturbation, selectivity, IROF."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.engine.contract import Target
from jaxviz.engine.copies import check_one_array
from jaxviz.engine.layout import hint
from jaxviz.metrics.contract import metric
from jaxviz.metrics.curves import Curve, deleted
from jaxviz.metrics.ranked import Order, Units, units_of
from jaxviz.parts.coalitions import CELLS
from jaxviz.parts.regions import grid_segments, space_of


@metric("window", "num_steps", "order", "chunk_size")
def region_perturbation(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    window: tuple[int, ...] | None = None,
    fill: Any = 0.0,
    num_steps: int = 100,
    order: Order = "most_first",
    chunk_size: int | None = None,
) -> Curve:
    """How much of the score is lost while patches go one by one, the most relevant first (MoRF):
    higher is better (lower, for `order="least_first"`, LeRF).

    AOPC = mean over k = 0..L of f(x) - f(x without the first k patches).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target: As for `deletion`; a patch has the sum of what it is given.
      window: Size of a patch along each axis of space; None is an eighth of each, rounded up. The
        patches do not overlap; those at the far edges may be smaller.
      fill: As for `deletion`; the paper takes uniform noise.
      num_steps: L, patches that go; at most as many as there are.
      order, chunk_size: As for `deletion`.

    Returns:
      A `Curve` of the score lost, `[N, L + 1]`, and its mean over the L + 1 points. Costs L + 1
      forward passes; on a CPU, where that is less work and the fill no function, one pass and for
      each patch what it changes.

    Raises:
      ValueError: A window that does not fit, and as for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> out = region_perturbation(net, w, x, jnp.array([[3.0, 1.0]]), 0, window=(1,))
      >>> out.curve.tolist(), round(float(out.area[0]), 5)
      ([[0.0, 3.0, 4.0]], 2.33333)

    Reference:
      Samek et al. 2017, arXiv:1509.06321, eq. 12; 9 x 9 patches, L = 100 there. Quantus gives the
      curve without its first point, and pads images that patches do not fit on both sides.
    """
    name = "region_perturbation"
    units, count = _patches(name, x, attribution, window)
    steps = min(num_steps, count)
    found = deleted(
        name, apply_fn, params, x, units, target, fill, steps, order, chunk_size, each=True
    )
    lost = found.curve[:, :1] - found.curve
    return Curve(lost, lost.mean(1))


@metric("window", "chunk_size")
def selectivity(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    window: tuple[int, ...] | None = None,
    fill: Any = 0.0,
    chunk_size: int | None = None,
) -> Curve:
    """How fast the score falls while patches go one by one until none is left: lower is better.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target, fill, chunk_size: As for `deletion`.
      window: As for `region_perturbation`.

    Returns:
      A `Curve` of the score, a point before and after each patch, and its mean height by
      trapezoids. Costs a forward pass a patch, and one, or less, as `region_perturbation` does.

    Raises:
      ValueError: As for `region_perturbation`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> selectivity(net, w, x, jnp.array([[3.0, 1.0]]), 0, window=(1,)).curve.tolist()
      [[4.0, 1.0, 0.0]]

    Reference:
      Montavon et al. 2018, arXiv:1706.07979, section 7.2. Quantus gives the curve without its first
      point.
    """
    name = "selectivity"
    units, count = _patches(name, x, attribution, window)
    order: Order = "most_first"
    return deleted(name, apply_fn, params, x, units, target, fill, count, order, chunk_size)


@metric("num_segments", "chunk_size")
def irof(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    segments: Any = None,
    num_segments: int | None = None,
    fill: Any = 0.0,
    chunk_size: int | None = None,
) -> Curve:
    """Iterative removal of features, the area over the curve of what is left of the score while
    segments go, the most relevant on average first: higher is better.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        score is a denominator: take probabilities, `jaxviz.softmax(apply_fn)`.
      params: Any pytree, handed on untouched.
      x, attribution, target, chunk_size: As for `deletion`.
      segments: Integers that say which places go together; the paper takes `slic_segments(x, 300)`.
        None is a grid of 7 cells along each axis of space. Images may have different numbers.
      num_segments: Their number, where they are traced.
      fill: As for `deletion`; the paper takes the mean of the pixels.

    Returns:
      A `Curve` of f(x without l segments) / f(x), and the area over it, 1 less its mean height; NaN
      where f(x) is not positive. Costs a forward pass a segment, and one; of the grid less, as
      `region_perturbation` does.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> irof(net, w, x, jnp.array([[3.0, 1.0]]), 0).area.tolist()
      [0.625]

    Reference:
      Rieger and Hansen 2020, arXiv:2003.08747, section 3.1. Quantus leaves l = 0 out, adds up
      instead of averaging, and so gives L - trapz(curve[1:]).
    """
    name = "irof"
    check_one_array(name, x)
    if segments is None:
        space = space_of(x)
        segments = grid_segments(space, tuple(min(CELLS, n) for n in space))
        num_segments = int(segments.max()) + 1
    units = units_of(name, x, attribution, segments=segments, num_segments=num_segments, mean=True)
    count = units.scores.shape[1]
    left = deleted(name, apply_fn, params, x, units, target, fill, count, "most_first", chunk_size)
    whole = left.curve[:, 0]
    whole = jnp.where(whole > 0, whole, jnp.nan)
    return Curve(left.curve / whole[:, None], 1 - left.area / whole)


def _patches(name: str, x: Any, attribution: Any, window: Any) -> tuple[Units, int]:
    """Patches of equal size as units, and their number."""
    check_one_array(name, x)
    space = space_of(x)
    window = window or tuple(-(-n // 8) for n in space)
    fits = len(window) == len(space) and all(w <= n for w, n in zip(window, space, strict=True))
    if not fits:
        raise ValueError(
            f"{name}: window must be at most {space}, one number an axis of space; got {window}, x "
            f"{jnp.shape(x)}. For images pass (h, w).{hint(x)}"
        )
    number = np.zeros(space, np.int32)
    for axis, (size, along) in enumerate(zip(window, space, strict=True)):
        patch = (np.arange(along) // size).reshape(
            [-1 if a == axis else 1 for a in range(len(space))]
        )
        number = number * -(-along // size) + patch
    count = int(number.max()) + 1
    return units_of(name, x, attribution, segments=number, num_segments=count), count
