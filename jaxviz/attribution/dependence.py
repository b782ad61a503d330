"""What a model makes of one feature over a whole set: partial dependence, and shuffled columns."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import (
    check_one_array,
    fixed_target,
    outputs_of_copies,
    rows_of,
    stacked,
    stacked_scores,
    wide,
)
from jaxviz.engine.rounds import FEW, mean_until, stops_early
from jaxviz.parts.regions import each_number, numbered, segments_like


class Dependence(NamedTuple):
    """How the score goes with one feature.

    Attributes:
      grid: `[P]`, the values that the feature was given.
      mean: `[P]`, the mean score of the set with all its examples given them: partial dependence.
      curves: `[N, P]`, that of each example (individual conditional expectation).
    """

    grid: jax.Array
    mean: jax.Array
    curves: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


class Importance(NamedTuple):
    """What a set's mean score loses without each segment.

    Attributes:
      values: `[G]`, in units of the explained output.
      standard_errors: `[G]`, how far they are from those of unlimited shuffles.
      base: The mean score of the set as it is.
    """

    values: jax.Array
    standard_errors: jax.Array
    base: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


_INDEX = whole(0)


def _feature(who: str, option: str, value: Any) -> tuple[int, ...]:
    """One index for each axis after the first."""
    return tuple(
        _INDEX(who, option, one) for one in (value if isinstance(value, tuple | list) else (value,))
    )


@public(feature=_feature, grid=numbers_list, num_points=whole(2))
def partial_dependence(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    feature: Any,
    grid: Any = None,
    num_points: int = 20,
    chunk_size: int | None = None,
) -> Dependence:
    """How the score goes with one feature, for each example and on the mean over the set.

    curves_n(v) = f(x_n with the feature at v); their mean over n is the partial dependence.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, F]` or `[N, ...]`, floating or whole numbers, one array: a set of examples.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      feature: Index of the feature, or for more axes than one a tuple of them.
      grid: `[P]`, the values it is given; None takes `num_points` in equal steps between the 5th
        and the 95th percentile of the set's own, or all its values where they are no more.
      num_points: Values, >= 2, where no grid is given.
      chunk_size: Values at once, for all N examples. None goes by `x` and the cores.

    Returns:
      A `Dependence`. Costs one forward pass an example and value.

    Raises:
      ValueError: A feature that `x` does not have; a grid that is no `[P]`; traced `x` without a
        grid; `num_points` below 2 or `chunk_size` below 1.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [3.0, 1.0]])
      >>> out = partial_dependence(lambda w, x: x[:, :1] * x[:, 1:], None, x, 0, feature=0)
      >>> out.grid.tolist(), out.curves.tolist(), out.mean.tolist()
      ([1.0, 3.0], [[0.0, 0.0], [1.0, 3.0]], [0.5, 1.5])

    Reference:
      Friedman 2001, Annals of Statistics 29, section 8.2; Goldstein et al. 2015, arXiv:1309.6392
      (ICE). Grid and percentiles are scikit-learn's, with 100 points there.
    """
    name = "partial_dependence"
    check_one_array(name, x)
    shape = jnp.shape(x)[1:]
    if len(feature) != len(shape) or any(i >= n for i, n in zip(feature, shape, strict=True)):
        raise ValueError(
            f"{name}: feature must be an index into {shape}, of one example; got {feature}. Give "
            "one number for each of its axes."
        )
    if grid is None:
        if isinstance(x, Tracer):
            raise ValueError(
                f"{name}: grid must be given where x is traced (under jit or vmap), for its length "
                "is read off; got None. Pass jnp.linspace(low, high, 20)."
            )
        grid = _grid(np.asarray(x[(slice(None), *feature)]), num_points)
    if jnp.ndim(grid) != 1 or not jnp.size(grid):
        raise ValueError(
            f"{name}: grid must be [P]; got {jnp.shape(grid)}. Pass a list of values, such as "
            "[0.0, 0.5, 1.0]."
        )
    return _partial_dependence(
        apply_fn, params, x, target, feature=feature, grid=grid, chunk_size=chunk_size
    )


def _grid(own: np.ndarray, num_points: int) -> np.ndarray:
    found = np.unique(own)
    if len(found) <= num_points:
        return found
    low, high = np.percentile(own.astype(np.float64), [5, 95])
    found = np.linspace(low, high, num_points)
    return found if np.issubdtype(own.dtype, np.inexact) else np.unique(found.round())


def _dependence(apply_fn, params, x, target=None, *, feature, grid, chunk_size):
    name = "partial_dependence"
    grid = jnp.asarray(grid).astype(x.dtype)
    copy = lambda k: x.at[(slice(None), *feature)].set(grid[k])
    outputs = outputs_of_copies(apply_fn, params, x, copy)
    scores, _ = stacked_scores(name, outputs, select, len(grid), chunk_size, x, target)
    curves = wide(scores).T
    return Dependence(grid, curves.mean(0), curves)


_dependence.__name__ = "partial_dependence"  # the name that its errors begin with
_partial_dependence = explanation("feature", "chunk_size", sweeps=True, integers=True)(_dependence)


@public(num_samples=whole(2))
def permutation_importance(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    segments: Any = None,
    num_segments: int | None = None,
    num_samples: int = 10,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Importance:
    """What a set's mean score loses when the values of a feature are shuffled among its examples.

    mean_n f(x_n) - mean over shuffles of mean_n f(x_n with the segment of another example).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers, or a pytree of such: the whole set, N >= 2.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`. For accuracy `lambda out: (out.argmax(1) == labels) * 1.0`.
      key: Key of the shuffles.
      segments: Integers `[*space]`, `[F]`, or with the batch's axis: what is shuffled together.
        None is each number of an example on its own; numbers below 0 stay.
      num_segments: Their number G; None reads it off `segments`.
      num_samples: Shuffles of each, >= 2. Time is linear in it.
      tolerance: Above 0, it stops after a round of 8 shuffles of each when no standard error is
        above this share of the range of the values, the largest less the smallest; `num_samples` is
        the most. The same key draws the same. Cores do not share rounds. 0 takes all; reverse
        differentiation needs that.
      chunk_size: Shuffled sets at once. None goes by `x` and the cores.

    Returns:
      An `Importance`. Costs num_samples * G passes of the whole set.

    Raises:
      ValueError: Segments that are no integers of the shape of `x`; fewer than two examples; an
        option out of its range.

    Example:
      >>> x = jnp.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
      >>> fit = lambda out: -jnp.square(out[:, 0] - x[:, 0])  # how well it tells the first
      >>> out = permutation_importance(lambda w, x: x, None, x, fit, key=jax.random.key(0))
      >>> bool(out.values[0] > 0), float(out.values[1])
      (True, 0.0)

    Reference:
      Breiman 2001, Machine Learning 45, section 10; Fisher et al. 2019, arXiv:1801.01489.
    """
    name = "permutation_importance"
    if rows_of(x) < 2:
        raise ValueError(
            f"{name}: x must be a set of at least 2 examples, for they lend one another their "
            f"values; got {rows_of(x)}. For one example take feature_ablation."
        )
    found = segments_like(
        name, numbered(x, each_number) if segments is None else segments, x, num_segments
    )
    return _permutation_importance(
        apply_fn,
        params,
        x,
        target,
        key=key,
        numbers=found.numbers,
        count=found.count,
        num_samples=num_samples,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )


def _shuffled(
    apply_fn, params, x, target=None, *, key, numbers, count, num_samples, tolerance, chunk_size
):
    name, rows = "permutation_importance", rows_of(x)

    def copy(k):
        other = jax.random.permutation(jax.random.fold_in(key, k), rows)
        take = lambda a, number: jnp.where(number == k % count, a[other], a)
        return jax.tree.map(take, x, numbers)

    outputs = outputs_of_copies(apply_fn, params, x, copy)
    mean = lambda outputs, target: select(outputs, target).astype(jnp.float32).mean(keepdims=True)
    if stops_early(tolerance):
        target = fixed_target(apply_fn, params, x, target)
        whole = mean(outputs(jnp.int32(-1)), target)

        def one(turn):
            score = lambda k: mean(outputs(turn * count + k), target)
            return (whole[None] - stacked(name, score, count, chunk_size, x)).T  # [1, G]

        seen = mean_until(name, one, num_samples, 1, x, tolerance, size=FEW)
        return Importance(seen.mean[0], seen.errors[0], whole[0])
    scores, clean = stacked_scores(
        name, outputs, mean, num_samples * count, chunk_size, x, target, clean=True
    )
    lost = clean[0] - scores.reshape(num_samples, count)
    errors = lost.std(0, ddof=1) / math.sqrt(num_samples)
    return Importance(lost.mean(0), errors, clean[0])


_shuffled.__name__ = "permutation_importance"
_permutation_importance = explanation(
    *("count", "num_samples", "chunk_size"), nonzero=("tolerance",), sweeps=True, integers=True
)(_shuffled)
