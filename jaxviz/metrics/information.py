"""PIC: how much of the score comes back with how much of the image's information."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import real, several, whole
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import at_least_float32, check_one_array
from jaxviz.engine.targets import output_shape
from jaxviz.metrics.contract import metric
from jaxviz.metrics.ranked import covers, ranks, scores_of, units_of
from jaxviz.parts.regions import blurred

_LEVELS = 256
_BLUR = 16  # the shorter side of an image is so many standard deviations of the blur

# Those of the authors' examples.
_FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.21, 0.34, 0.5, 0.75)


class InformationCurve(NamedTuple):
    """A performance information curve for each example.

    Attributes:
      curve: `[N, num_points + 1]`, the share of the score that is back at evenly spaced shares of
        the information, from 0 to 1.
      area: `[N]`, its mean height, which the metric is.
      information: `[N, len(fractions)]`, the share of the information in each partly shown image.
      performance: `[N, len(fractions)]`, the share of the score there.
    """

    curve: jax.Array
    area: jax.Array
    information: jax.Array
    performance: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@metric(
    *("fractions", "accuracy", "num_points", "chunk_size"),
    integers=False,
    fractions=several(real(0, 1, above=True), "growing shares in (0, 1]"),
    num_points=whole(1),
)
def pic(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = None,
    fractions: tuple[float, ...] = _FRACTIONS,
    accuracy: bool = False,
    num_points: int = 100,
    chunk_size: int | None = None,
) -> InformationCurve:
    """Performance information curve: how much of the score a blurred image gets back with how much
    of the information, the most relevant places sharpened first: higher is better.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        paper takes probabilities: `jaxviz.softmax(apply_fn)` (SIC).
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, one array.
      attribution: As for `deletion`; the channels of a place go together.
      target: As for `deletion`; a class, for `accuracy`.
      fill: The image without information, as for `deletion`; None is
        `blurred(x, min(space) / 16)`.
      fractions: Shares of the places shown, growing, in (0, 1]; rounded down.
      accuracy: Takes whether the class has the largest output for the score (AIC).
      num_points: Points of the curve, and one.
      chunk_size: As for `deletion`.

    Returns:
      An `InformationCurve`: information and score less those of the fill, in units of what `x` has
      more, kept in [0, 1], the curve never falling. NaN for examples whose fill has as much
      information, or as high a score, as they have; leave them out, as the authors do. Costs
      `len(fractions) + 2` forward passes.

    Raises:
      ValueError: `x` has no axis of space, fractions that do not grow, and as for `deletion`.

    Example:
      >>> net = lambda _, x: x[:, :1, 0, 0]
      >>> x = jax.random.uniform(jax.random.key(0), (1, 8, 8, 1)).at[0, 0, 0].set(9.0)
      >>> mark = jnp.zeros((1, 8, 8)).at[0, 0, 0].set(1.0)
      >>> bool(pic(net, None, x, mark, 0).area[0] > 0.9)
      True

    Reference:
      Kapishnikov et al. 2019, arXiv:1906.02825, section 4.2. The authors take the size of a WebP
      file for the information; here it is the entropy of what each place's neighbours before it do
      not tell, in 256 levels of the example's range, which a program can compute. Their score never
      falls from step to step; here from less information to more, which may be another order.
    """
    name = "pic"
    check_one_array(name, x)
    if x.ndim < 3:
        raise ValueError(
            f"{name}: x must be [N, *space, C]; got {x.shape}. Give an image a channel axis."
        )
    if any(a >= b for a, b in itertools.pairwise(fractions)):
        raise ValueError(f"{name}: fractions must grow; got {fractions}. Sort them.")
    outputs = output_shape(apply_fn, params, x)
    if accuracy and (callable(target) or len(getattr(outputs, "shape", ())) != 2):
        raise ValueError(
            f"{name}: target must be a class of outputs [N, K], for the accuracy is whether it "
            "wins; got a function. Leave accuracy out."
        )
    units = units_of(name, x, attribution)
    rank = units.laid(ranks(units))
    count = units.scores.shape[1]
    steps = np.array([0, *(int(share * count) for share in fractions)], np.int32)
    cover = covers(name, blurred(x, min(x.shape[1:-1]) / _BLUR) if fill is None else fill, x)
    copy = lambda k: cover(rank > jnp.asarray(steps)[k])

    def wins(outputs, target):
        found = jnp.argmax(outputs, axis=1) == jnp.broadcast_to(target, outputs.shape[:1])
        return found.astype(outputs.dtype)

    read = wins if accuracy else select
    (scores, bits), (clean, _) = scores_of(
        *(name, apply_fn, params, x, target, copy, len(steps), chunk_size, read),
        of_copy=lambda made: _bits(made, x),
    )
    bits = bits.astype(scores.dtype)
    known = units.known.astype(scores.dtype)

    def shares(values, whole):
        gained = whole - values[0]
        gained = jnp.where(gained > 0, gained, jnp.nan) * known
        return jnp.clip((values[1:] - values[:1]) / gained[None], 0, 1).T

    information = shares(bits, _bits(x, x).astype(scores.dtype))
    performance = shares(scores, clean)
    points = jnp.linspace(0, 1, num_points + 1, dtype=scores.dtype)
    ends = lambda a: jnp.pad(jnp.pad(a, ((0, 0), (1, 0))), ((0, 0), (0, 1)), constant_values=1)
    order = jnp.argsort(ends(information), axis=1, stable=True)
    along, height = (jnp.take_along_axis(ends(a), order, 1) for a in (information, performance))
    height = jax.lax.cummax(height, axis=1)
    curve = jax.vmap(lambda a, h: jnp.interp(points, a, h))(along, height)
    bad = jnp.isnan(along).any(1) | jnp.isnan(height).any(1)
    curve = jnp.where(bad[:, None], jnp.nan, curve)
    mean = ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1)
    return InformationCurve(curve, mean, information, performance)


def _bits(image: jax.Array, x: jax.Array) -> jax.Array:
    """`[N]`: bits that an image takes beyond what the neighbours before each place tell."""
    wide, axes = at_least_float32(x), tuple(range(1, x.ndim))
    x = x.astype(wide)
    low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    scale = (_LEVELS - 1) / jnp.where(high > low, high - low, 1)
    levels = jnp.clip(jnp.round((image.astype(wide) - low) * scale), 0, _LEVELS - 1)
    levels = levels.astype(jnp.int32)
    before = 0
    for axis in axes[:-1]:
        pad = [(1, 0) if i == axis else (0, 0) for i in range(x.ndim)]
        before += jax.lax.slice_in_dim(jnp.pad(levels, pad), 0, x.shape[axis], axis=axis)
    left = (levels - before // len(axes[:-1])) % _LEVELS
    left = left.reshape(len(x), -1)
    count = jax.vmap(lambda a: jnp.bincount(a, length=_LEVELS))(left).astype(wide)
    share = count / left.shape[1]
    return -(count * jnp.log2(jnp.where(count > 0, share, 1))).sum(1)
