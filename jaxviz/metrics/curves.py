"""What the model says while the units of its input go, or come, in the order of an attribution."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target
from jaxviz.metrics.contract import metric
from jaxviz.metrics.ranked import (
    Order,
    Unit,
    Units,
    area,
    at_most_one,
    covers,
    one_by_one,
    ranks,
    scores_of,
    thresholds,
    units_of,
)


class Curve(NamedTuple):
    """A curve for each example, and what it comes to.

    Attributes:
      curve: `[N, num_steps + 1]`, before any step and after each.
      area: `[N]`, the mean height, which the metric is.
    """

    curve: jax.Array
    area: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


_STATIC = ("num_steps", "order", "unit", "num_segments", "chunk_size")


@metric(*_STATIC)
def deletion(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    num_steps: int = 20,
    order: Order = "most_first",
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> Curve:
    """How fast the score falls when what the attribution ranks first is taken away: lower is
    better (higher, for `order="least_first"`).

    Units go in equal steps, until none is left; the area is the mean of the score on the way.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        paper takes probabilities: `jaxviz.softmax(apply_fn)`.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` or `[N, F]`, floating or whole numbers (token ids `[N, L]`), one array.
      attribution: The shape of `x`, or `[N, *space]`: signed, as a method returned it. Only its
        order counts; take `abs` where a sign says nothing. Equal values follow one another in a
        fixed random order, so a constant map is a random one. An example with a NaN gets NaN.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      fill: What stands in place of what is gone: anything that broadcasts to `x` (a number, one a
        channel, `x.mean((1, 2), keepdims=True)`, `blurred(x, 8.0)`, noise, other images), or a
        function `(x, hidden) -> x` of the batch and booleans that broadcast to it, such as
        `lambda x, hidden: noisy_linear_imputation(x, hidden, key=key)`; compiled once per function,
        so keep it.
      num_steps: Steps, each of `1 / num_steps` of the units, rounded down. Time is linear in it.
      order: "most_first", or "least_first".
      unit: "place": the channels of a place go together, by the sum of what they are given;
        "number": each number is its own.
      segments: Integers that say which places go together, as `grid_segments` and `slic_segments`
        make them, by the sum of what they are given; below 0 stays. None: `unit` decides.
      num_segments: Their number, where they are traced.
      chunk_size: Masks at once, for all N examples. None goes by `x` and the cores. Where only what
        a step changes is evaluated, each example at work keeps what the net made of it besides.

    Returns:
      A `Curve`, in units of the explained output. Costs `num_steps + 1` forward passes; of as many
      steps as units less where it can, as `region_perturbation` does.

    Raises:
      ValueError: Shapes that do not fit, a fill that does not broadcast, an unknown order or unit.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> out = deletion(net, w, x, jnp.array([[3.0, 1.0]]), 0, num_steps=2)
      >>> out.curve.tolist(), out.area.tolist()
      ([[4.0, 1.0, 0.0]], [1.5])

    Reference:
      Petsiuk et al. 2018, arXiv:1806.07421, section 4.1: probabilities, zeros as fill, the area by
      trapezoids. Xplique takes each step as equally wide where the steps are not; torch-cam and
      Xplique take the mean over channels, which ranks alike.
    """
    units = units_of("deletion", x, attribution, unit=unit, segments=segments,
                     num_segments=num_segments)  # fmt: skip
    return deleted("deletion", apply_fn, params, x, units, target, fill, num_steps, order,
                    chunk_size)  # fmt: skip


@metric(*_STATIC)
def insertion(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    num_steps: int = 20,
    order: Order = "most_first",
    unit: Unit = "place",
    segments: Any = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> Curve:
    """How fast the score rises when what the attribution ranks first is put into an empty input:
    higher is better (lower, for `order="least_first"`).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        paper takes probabilities: `jaxviz.softmax(apply_fn)`.
      params: Any pytree, handed on untouched.
      x, attribution, target: As for `deletion`.
      fill: The empty input, as for `deletion`. The paper takes a blurred one: `blurred(x, 8.0)`.
      num_steps, order, unit, segments, num_segments, chunk_size: As for `deletion`.

    Returns:
      A `Curve` from the score of the fill to that of `x`, in units of the explained output. Costs
      `num_steps + 1` forward passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> out = insertion(net, w, x, jnp.array([[3.0, 1.0]]), 0, num_steps=2)
      >>> out.curve.tolist(), out.area.tolist()
      ([[0.0, 3.0, 4.0]], [2.5])

    Reference:
      Petsiuk et al. 2018, arXiv:1806.07421, section 4.1. See `deletion` for what others do.
    """
    name = "insertion"
    units = units_of(name, x, attribution, unit=unit, segments=segments, num_segments=num_segments)
    steps = thresholds(units.counts, num_steps)
    if at_most_one(units, num_steps):
        scores = one_by_one(
            *(name, apply_fn, params, x, units),
            (order,),
            *(fill, target, num_steps, chunk_size),
            insert=True,
        )
        if scores is not None:
            return as_curve(scores, steps, units)
    rank, cover = units.laid(ranks(units, order)), covers(name, fill, x)
    copy = lambda k: cover(rank > per_example(steps[k], x))
    scores, clean = scores_of(name, apply_fn, params, x, target, copy, num_steps, chunk_size)
    return as_curve(jnp.concatenate([scores, clean[None]]), steps, units)


@metric("num_steps", "order", "chunk_size")
def pixel_flipping(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    num_steps: int = 20,
    order: Order = "most_first",
    chunk_size: int | None = None,
) -> Curve:
    """How fast the score falls when single numbers of the input are flipped, the most relevant
    first: lower is better. It is `deletion` with `unit="number"`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target: As for `deletion`.
      fill: As for `deletion`. The paper turns black into white, `fill=-x` for digits in [-1, 1].
      num_steps: Steps, each of `1 / num_steps` of the numbers; as many as there are flip one each.
      order, chunk_size: As for `deletion`.

    Returns:
      A `Curve`, in units of the explained output. Costs `num_steps + 1` forward passes.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> pixel_flipping(net, w, x, jnp.array([[3.0, 1.0]]), 0, num_steps=2).curve.tolist()
      [[4.0, 1.0, 0.0]]

    Reference:
      Bach et al. 2015, doi:10.1371/journal.pone.0130140, section "Evaluating heatmaps". Quantus
      leaves the score of `x` itself out of the curve, and its area is a sum, not a mean.
    """
    name = "pixel_flipping"
    units = units_of(name, x, attribution, unit="number")
    return deleted(name, apply_fn, params, x, units, target, fill, num_steps, order, chunk_size)


class Gain(NamedTuple):
    """What an order gains over its reverse.

    Attributes:
      curve: `[N, num_steps + 1]`, `least_first` less `most_first`.
      area: `[N]`, its mean height, which the metric is.
      most_first: `[N, num_steps + 1]`, the score while the most relevant go first.
      least_first: `[N, num_steps + 1]`, the score while the least relevant go first.
    """

    curve: jax.Array
    area: jax.Array
    most_first: jax.Array
    least_first: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@metric("num_steps", "unit", "num_segments", "chunk_size")
def srg(
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
) -> Gain:
    """Symmetric relevance gain, the area between deletion of the least and of the most relevant
    first: higher is better; 0 is an order that says nothing.

    What a fill does to the score whatever it hides is in both curves, and cancels.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x, attribution, target, fill, num_steps: As for `deletion`.
      unit, segments, num_segments, chunk_size: As for `deletion`.

    Returns:
      A `Gain`, in units of the explained output; 0 for a constant map, whose two orders are one.
      Costs `2 * num_steps` forward passes; of as many steps as units less where it can, as
      `region_perturbation` does, up to rounding then.

    Raises:
      ValueError: As for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> srg(net, w, x, jnp.array([[3.0, 1.0]]), 0, num_steps=2).area.tolist()
      [1.0]

    Reference:
      Bluecher et al. 2024, arXiv:2401.06654, eq. 4.
    """
    name = "srg"
    units = units_of(name, x, attribution, unit=unit, segments=segments, num_segments=num_segments)
    steps = thresholds(units.counts, num_steps)
    if at_most_one(units, num_steps):
        both: tuple[Order, Order] = ("most_first", "least_first")
        scores = one_by_one(
            name, apply_fn, params, x, units, both, fill, target, num_steps, chunk_size
        )
        if scores is not None:
            most, least = (as_curve(one, steps, units) for one in jnp.split(scores, 2, axis=1))
            return _gain(most, least, steps)
    cover = covers(name, fill, x)
    most, least = (units.laid(ranks(units, order)) for order in ("most_first", "least_first"))

    def copy(k):  # the last step of both is the same
        rank = jnp.where(k < num_steps, most, least)
        step = jnp.where(k < num_steps, k + 1, k + 1 - num_steps)
        return cover((rank > 0) & (rank <= per_example(steps[step], x)))

    num = 2 * num_steps - 1
    scores, clean = scores_of(name, apply_fn, params, x, target, copy, num, chunk_size)
    down = scores[:num_steps]
    most_first = as_curve(jnp.concatenate([clean[None], down]), steps, units)
    last = jnp.concatenate([clean[None], scores[num_steps:], down[-1:]])
    return _gain(most_first, as_curve(last, steps, units), steps)


def _gain(most_first: Curve, least_first: Curve, steps: jax.Array) -> Gain:
    curve = least_first.curve - most_first.curve
    return Gain(curve, area(curve, steps), most_first.curve, least_first.curve)


def deleted(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    units: Units,
    target: Target,
    fill: Any,
    num_steps: int,
    order: Order,
    chunk_size: int | None,
    *,
    each: bool = False,
) -> Curve:
    """The curve of `deletion`, of units that are known; in steps of one unit if `each`."""
    every = jnp.arange(num_steps + 1, dtype=jnp.int32)[:, None]
    steps = every if each else thresholds(units.counts, num_steps)
    if each or at_most_one(units, num_steps):
        scores = one_by_one(
            name, apply_fn, params, x, units, (order,), fill, target, num_steps, chunk_size
        )
        if scores is not None:
            return as_curve(scores, steps, units)
    rank, cover = units.laid(ranks(units, order)), covers(name, fill, x)
    copy = lambda k: cover((rank > 0) & (rank <= per_example(steps[k + 1], x)))
    scores, clean = scores_of(name, apply_fn, params, x, target, copy, num_steps, chunk_size)
    return as_curve(jnp.concatenate([clean[None], scores]), steps, units)


def as_curve(scores: jax.Array, steps: jax.Array, units: Units) -> Curve:
    """Scores `[K + 1, N]` as a result."""
    curve = scores.T * units.known.astype(scores.dtype)[:, None]
    return Curve(curve, area(curve, steps))


def per_example(values: jax.Array, x: jax.Array) -> jax.Array:
    """`[N or 1]` with the axes of `x`."""
    return values.reshape(-1, *[1] * (x.ndim - 1))
