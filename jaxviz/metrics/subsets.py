"""Whether the score lost with a set of units is what the attribution gives to the set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.options import real, several
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target
from jaxviz.engine.copies import check_one_array
from jaxviz.metrics.contract import metric
from jaxviz.metrics.correlation import by_rank, linear
from jaxviz.metrics.curves import per_example
from jaxviz.metrics.ranked import Unit, Units, covers, ranks, scores_of, thresholds, units_of
from jaxviz.parts.regions import grid_segments, space_of

_STATIC = ("num_samples", "fraction", "unit", "num_segments", "chunk_size")


@metric(*_STATIC)
def faithfulness_correlation(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    key: jax.Array,
    fraction: float = 0.2,
    num_samples: int = 100,
    fill: Any = 0.0,
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Correlation between what the attribution gives to random sets of units and the score lost
    without them: higher is better, 1 at most.

    corr over S of (sum of a over S, f(x) - f(x without S)), all S of one size.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target: As for `deletion`.
      key: Key of the sets, which are the same for all examples and whatever `chunk_size` is.
      fraction: Of the units, how many a set holds, in (0, 1]; one at least.
      num_samples: Sets, two at least for a correlation.
      fill, unit, segments, num_segments, chunk_size: As for `deletion`.

    Returns:
      `[N]`, Pearson's correlation; NaN where the sums or the score do not change (a constant map, a
      model that ignores its input), or the attribution holds a NaN. Costs `num_samples + 1` forward
      passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0], [2.0]]), jnp.ones((1, 3))
      >>> out = faithfulness_correlation(net, w, x, x * w.T, 0, key=jax.random.key(0))
      >>> round(float(out[0]), 5)
      1.0

    Reference:
      Bhatt et al. 2020, arXiv:2005.00631, eq. 4.
    """
    name = "faithfulness_correlation"
    units = units_of(name, x, attribution, unit=unit, segments=segments, num_segments=num_segments)
    lost, sums = _random(
        name, apply_fn, params, x, target, units, fill, key, (fraction,), num_samples, chunk_size
    )
    return linear(sums, lost) * units.known


@metric(*_STATIC)
def mu_fidelity(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    key: jax.Array,
    fraction: float = 0.2,
    num_samples: int = 200,
    fill: Any = 0.0,
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Rank correlation between what the attribution gives to random sets of cells and the score
    lost without them: higher is better, 1 at most.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target: As for `deletion`.
      key, fraction, num_samples: As for `faithfulness_correlation`.
      fill, chunk_size: As for `deletion`.
      segments: Integers that say which places go together; None is a grid of 9 cells along each
        axis of space, and each number on its own where there is none.
      num_segments: Their number, where they are traced.

    Returns:
      `[N]`, Spearman's correlation; NaN as for `faithfulness_correlation`. Costs `num_samples + 1`
      forward passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0], [2.0]]), jnp.ones((1, 3))
      >>> out = mu_fidelity(net, w, x, x * w.T, 0, key=jax.random.key(0))
      >>> round(float(out[0]), 5)
      1.0

    Reference:
      Bhatt et al. 2020, arXiv:2005.00631, eq. 4, by ranks and on a grid as in Fel et al. 2021,
      arXiv:2111.04138, section 4. Sets have one size, as in both papers; Xplique draws each cell on
      its own, so that a large set loses more whatever the attribution is, and calls NaN 0.
    """
    name = "mu_fidelity"
    check_one_array(name, x)
    if segments is None and x.ndim > 2:
        space = space_of(x)
        segments = grid_segments(space, tuple(min(9, n) for n in space))
        num_segments = int(segments.max()) + 1
    units = units_of(name, x, attribution, segments=segments, num_segments=num_segments)
    lost, sums = _random(
        name, apply_fn, params, x, target, units, fill, key, (fraction,), num_samples, chunk_size
    )
    return by_rank(sums, lost) * units.known


class Correlations(NamedTuple):
    """Correlations for sets of several sizes.

    Attributes:
      curve: `[N, len(fractions)]`, a correlation for each size.
      area: `[N]`, their mean over the sizes, which the metric is.
    """

    curve: jax.Array
    area: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@metric(
    "fractions",
    "num_samples",
    "unit",
    "num_segments",
    "chunk_size",
    fractions=several(real(0, 1, above=True), "shares in (0, 1]"),
)
def sensitivity_n(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    key: jax.Array,
    fractions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8),
    num_samples: int = 100,
    fill: Any = 0.0,
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> Correlations:
    """`faithfulness_correlation` for sets of n units, for several n: higher is better, 1 at most.

    An attribution satisfies sensitivity-n when the sum over any n units is the score lost.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target: As for `deletion`.
      key: As for `faithfulness_correlation`. A draw's sets lie within one another.
      fractions: n as shares of the units, each in (0, 1]; one unit at least.
      num_samples: Sets of each size.
      fill, unit, segments, num_segments, chunk_size: As for `deletion`.

    Returns:
      `Correlations`. Those that are not defined (see `faithfulness_correlation`; all units, of
      which there is one set) are NaN in the curve, and left out of the mean. Costs
      `len(fractions) * num_samples + 1` forward passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0], [2.0]]), jnp.ones((1, 3))
      >>> out = sensitivity_n(net, w, x, x * w.T, 0, key=jax.random.key(0), fractions=(0.3, 0.6))
      >>> round(float(out.area[0]), 5)
      1.0

    Reference:
      Ancona et al. 2018, arXiv:1711.06104, section 4, whose sets are 100 random ones for each n.
      Quantus takes no random sets but the groups of the ranking, one after the other, and
      correlates them over the examples of a batch.
    """
    name = "sensitivity_n"
    units = units_of(name, x, attribution, unit=unit, segments=segments, num_segments=num_segments)
    lost, sums = _random(
        name, apply_fn, params, x, target, units, fill, key, fractions, num_samples, chunk_size
    )
    split = lambda a: a.reshape(len(x) * len(fractions), num_samples)
    curve = linear(split(sums), split(lost)).reshape(len(x), len(fractions))
    defined = ~jnp.isnan(curve)
    count = defined.sum(1).astype(curve.dtype)
    mean = jnp.where(defined, curve, 0).sum(1) / jnp.where(count > 0, count, jnp.nan)
    return Correlations(curve * units.known[:, None], mean * units.known)


@metric("num_steps", "unit", "num_segments", "chunk_size")
def faithfulness_estimate(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    num_steps: int | None = None,
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Correlation between what the attribution gives to each unit and the score lost without it
    alone: higher is better, 1 at most.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target, fill: As for `deletion`.
      num_steps: Takes so many groups of units that follow one another in the attribution's order
        instead of single units; None is a group a unit.
      unit, segments, num_segments, chunk_size: As for `deletion`.

    Returns:
      `[N]`, Pearson's correlation over the groups; NaN as for `faithfulness_correlation`. Costs a
      forward pass a group, and one.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0], [2.0]]), jnp.ones((1, 3))
      >>> round(float(faithfulness_estimate(net, w, x, x * w.T, 0)[0]), 5)
      1.0

    Reference:
      Alvarez-Melis and Jaakkola 2018, arXiv:1806.07538, section 5.1 ("faithfulness"). The groups
      are Quantus' `features_in_step`.
    """
    name = "faithfulness_estimate"
    units = units_of(name, x, attribution, unit=unit, segments=segments, num_segments=num_segments)
    groups = num_steps or units.scores.shape[1]
    rank, steps = ranks(units), thresholds(units.counts, groups)
    scores, clean = scores_of(
        *(name, apply_fn, params, x, target, groups_hidden(name, fill, x, units.laid(rank), steps)),
        *(groups, chunk_size),
    )
    sums, counts = group_sums(units.scores, rank, steps)
    return linear(sums, (clean[None] - scores).T, counts) * units.known


def groups_hidden(
    name: str, fill: Any, x: jax.Array, rank: jax.Array, steps: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """From k to `x` without the units between step k and k + 1."""
    cover = covers(name, fill, x)
    low = lambda k: per_example(steps[k], x)
    return lambda k: cover((rank > low(k)) & (rank <= low(k + 1)))


def group_sums(scores: jax.Array, rank: jax.Array, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `[N, G]` scores of units add up to in each group, and which groups have units at all."""
    num = len(steps) - 1
    steps = jnp.broadcast_to(steps.T, (len(scores), num + 1))
    find = lambda steps, rank: jnp.searchsorted(steps, rank, side="left")
    group = jnp.clip(jax.vmap(find)(steps, rank) - 1, 0, num - 1)
    total = jax.vmap(lambda a, at: jax.ops.segment_sum(a, at, num))
    return total(scores, group), jnp.diff(steps, axis=1) > 0


def _random(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target,
    units: Units,
    fill: Any,
    key: jax.Array,
    fractions: tuple[float, ...],
    num_samples: int,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """What is lost without random sets of units, and what these are given, both
    `[N, len(fractions) * num_samples]`: a random order's first units, of each size."""
    count = units.scores.shape[1]
    bits = lambda k: jax.random.bits(jax.random.fold_in(key, k), (count,), jnp.uint32)
    order = jnp.argsort(jax.vmap(bits)(jnp.arange(num_samples, dtype=jnp.uint32)), axis=1)
    order = order.astype(jnp.int32)
    sized = lambda count: [max(1, round(share * count)) for share in fractions]
    cover, num = covers(name, fill, x), len(fractions) * num_samples
    if units.present is None:
        sizes = jnp.asarray(sized(count), jnp.int32)[:, None, None]
        rank = lambda k: order[k][None]
    else:  # an example's sets are of the units that it has
        sizes = jnp.asarray([sized(n) for n in range(count + 1)], jnp.int32).T[:, units.counts]
        last = jnp.where(units.present, 0, count)
        rank = lambda k: jnp.argsort(jnp.argsort(order[k][None] + last, axis=1), axis=1)

    def hidden(k):
        return (rank(k % num_samples) < sizes[k // num_samples]).astype(jnp.int32)

    copy = lambda k: cover(units.laid(hidden(k)) > 0)
    scores, clean = scores_of(name, apply_fn, params, x, target, copy, num, chunk_size)
    if units.present is None:
        held = (order[None] < sizes).reshape(num, count).astype(units.scores.dtype)
        sums = jnp.matmul(units.scores, held.T, precision=jax.lax.Precision.HIGHEST)
    else:
        given = jnp.where(units.present, units.scores, 0)
        of_sizes = lambda k: jnp.where(rank(k)[None] < sizes, given[None], 0).sum(2)
        sums = jax.lax.map(of_sizes, jnp.arange(num_samples, dtype=jnp.int32))
        sums = sums.transpose(2, 1, 0).reshape(len(given), num)
    return (clean[None] - scores).T, sums
