"""Global sensitivity of the score to a grid of masks: total Sobol indices, and HSIC."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import whole
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import (
    check_one_array,
    fixed_target,
    outputs_of_copies,
    stacked_scores,
    wide,
)
from jaxviz.engine.layout import hint
from jaxviz.engine.rounds import solved_in_rounds, stops_early
from jaxviz.parts import designs
from jaxviz.parts.fills import fading
from jaxviz.parts.regions import (
    blend,
    like_input,
    over_channels,
    space_of,
)

_DESIGNS, _MASKS = 8, 64  # in a round


@explanation(
    *("cells", "num_designs", "resize", "chunk_size"),
    nonzero=("tolerance",),
    sweeps=True,
    places=True,
    integers=True,
)
def sobol(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    key: jax.Array,
    cells: int | None = None,
    num_designs: int = 32,
    fill: Any = 0.0,
    resize: Literal["nearest", "bilinear"] = "nearest",
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Which share of the score's variance each cell of a mask has a part in.

    T_i = E[Var(f | all cells but i)] / Var f, where each of the cells' masks is uniform on [0, 1]
    and fades its part of the input to `fill`; by Jansen's estimator
    sum_k (f(a_k) - f(a_k with cell i from b_k))^2 / (2 num_designs Var f).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` or `[N, L]`, floating or whole numbers (token ids), one array. Whole
        numbers do not fade: one is seen where its mask is above one half.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the shift that makes the Sobol sequence random.
      cells: Cells of the grid along each axis, >= 1; all of them together at most 10,000. None is
        8, or as many as the smallest axis has.
      num_designs: Pairs (a, b) of masks, a power of two, >= 2.
      fill: What a mask of 0 shows: anything that broadcasts to `x` (`blurred(x, 8.0)`, say), or a
        function `(x, hidden) -> x` of what is hidden by half or more, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it. One that is not
        finite cannot be faded to and gives NaN.
      resize: How masks become as large as `x`.
      tolerance: Above 0, it stops after a round of 8 pairs when no standard error is above this
        share of its example's range of values, the largest less the smallest; `num_designs` is the
        most. All examples take as many as the slowest of their batch, and cores do not share
        rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Masked inputs at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, shares of the variance of the explained output, >= 0; with interactions they
      sum over cells to more than 1, and they say nothing of the sign. How far chance has moved them
      is their spread over several keys. Costs num_designs * (cells ** axes + 2) forward passes.

    Raises:
      ValueError: `x` has no axis of space, or an option is out of its range.

    Example:
      >>> net = lambda _, x: x[:, 0, 0]
      >>> x = jnp.ones((1, 4, 4, 1))
      >>> out = sobol(net, None, x, 0, key=jax.random.key(0), cells=2)
      >>> bool(out[0, 0, 0] > 0.9), float(out[0, 3, 3])  # all the variance is the first cell's
      (True, 0.0)

    Reference:
      Fel et al. 2021, arXiv:2111.04138, eq. 5 and section 3.2. The variance is that of f at the a
      and b designs together, as in Jansen 1999; in Xplique that of the a designs.
    """
    name = "sobol"
    axes, cells = _check(name, x, cells)
    designs.check_designs(name, num_designs)
    count = cells**axes
    fills = fading(name, fill, x)
    mask = designs.masks(key, count, num_designs)
    stops = stops_early(tolerance)
    if stops:  # of each round, and the same in all
        target = fixed_target(apply_fn, params, x, target)

    def scored(first, size):
        """Of `size` designs, `[count + 2, size, N]`: each in all variants."""

        def masked(k):
            design = jnp.minimum(first + k % size, num_designs - 1)
            return _seen(x, fills, mask(k // size, design), cells, resize)

        outputs = outputs_of_copies(apply_fn, params, x, masked, beside=True)
        num = designs.num_masks(count, size)
        scores, _ = stacked_scores(name, outputs, _known, num, chunk_size, x, target)
        return scores.reshape(count + 2, size, -1)

    if stops:
        size = min(_DESIGNS, num_designs)
        draw = lambda first: scored(first, size).swapaxes(0, 1)
        told = lambda scores, live: designs.total_indices(scores.swapaxes(0, 1), live)
        indices, _ = solved_in_rounds(draw, told, num_designs, size, tolerance)
    else:
        indices, _ = designs.total_indices(scored(0, num_designs), np.ones(num_designs, bool))
    return like_input(_large(indices, x, cells, resize), x)


@explanation(
    *("cells", "num_samples", "resize", "chunk_size"),
    nonzero=("tolerance",),
    sweeps=True,
    places=True,
    integers=True,
    num_samples=whole(2),
)
def hsic(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    key: jax.Array,
    cells: int | None = None,
    num_samples: int = 512,
    fill: Any = 0.0,
    resize: Literal["nearest", "bilinear"] = "nearest",
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """How much the score depends, in any way at all, on whether each cell is hidden.

    HSIC_i = tr(K_i H L H) / (n - 1)^2 over n random binary masks: K_i says which masks agree in
    cell i (a centred kernel of two values), L is a Gaussian kernel of the scores whose width is
    their median distance (the mean where that is 0), H = 1 - 1/n centres.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` or `[N, L]`, floating or whole numbers (token ids), one array. Whole
        numbers do not fade: one is seen where its mask is above one half.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the masks; each cell is seen with probability one half.
      cells: Cells of the grid along each axis, >= 1. None is 8, or as many as the smallest axis
        has.
      num_samples: Masks, >= 2, the same for all N examples. Time is linear in it.
      fill: What a hidden cell shows: anything that broadcasts to `x`, or a function
        `(x, hidden) -> x` of what is hidden by half or more, such as `inpainted`: channels last,
        wherever the model has them; compiled once per function, so keep it. Unless masks are
        "nearest", which select and do not fade, one that is not finite gives NaN.
      resize: How masks become as large as `x`.
      tolerance: Above 0, it stops after a round of 64 masks when no standard error is above this
        share of its example's range of values, the largest less the smallest; `num_samples` is the
        most. All examples take as many as the slowest of their batch, and cores do not share
        rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Masked inputs at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, dependence without a unit, >= 0 up to rounding, no sign; in float32 at least,
      for it is small. Costs one forward pass a mask and `num_samples` squared numbers for each
      example in turn.

    Raises:
      ValueError: `x` has no axis of space, or an option is out of its range.

    Example:
      >>> net = lambda _, x: x[:, 0, 0]
      >>> out = hsic(net, None, jnp.ones((1, 4, 4, 1)), 0, key=jax.random.key(0), cells=2)
      >>> bool(out[0, 0, 0] > 20 * out[0, 3, 3])
      True

    Reference:
      Novello et al. 2022, arXiv:2206.06219, eq. 7 and section 4: there masks come from a Latin
      hypercube, here each is drawn on its own.
    """
    name = "hsic"
    axes, cells = _check(name, x, cells)
    fills = fading(name, fill, x)
    # Nearest masks are 0 or 1: they select.
    read = _score if resize == "nearest" else _known
    masks = jax.random.bernoulli(key, jnp.float32(0.5), (num_samples, cells**axes))
    masks = masks.astype(jnp.float32)
    stops = stops_early(tolerance)
    if stops:  # of each round, and the same in all
        target = fixed_target(apply_fn, params, x, target)

    def scored(first, size):
        masked = lambda k: _seen(
            x, fills, masks[jnp.minimum(first + k, num_samples - 1)], cells, resize
        )
        outputs = outputs_of_copies(apply_fn, params, x, masked, beside=True)
        scores, _ = stacked_scores(name, outputs, read, size, chunk_size, x, target)
        return wide(scores)

    every = lambda scores, live: jax.lax.map(lambda score: dependence(masks, score, live), scores.T)
    if stops:
        size = min(_MASKS, num_samples)
        found = solved_in_rounds(lambda k: scored(k, size), every, num_samples, size, tolerance)
    else:
        found = every(scored(0, num_samples), np.ones(num_samples, bool))
    return _large(found[0], x, cells, resize)


def dependence(masks: jax.Array, score: jax.Array, live: Any) -> tuple[jax.Array, jax.Array]:
    """HSIC of each cell and the score, and standard errors, over the `live` ones of the masks."""
    # With z = mask - 1/2, z z' is 1/4 where two masks agree: K_i = 1/2 + 2 z z'. The constant
    # is centred away, so tr(K H L H) is 2 z' H L H z: no matrix for each cell.
    distance = jnp.abs(score[:, None] - score[None, :])
    drawn = jnp.asarray(live).astype(distance.dtype)
    n = drawn.sum()
    both = drawn[:, None] * drawn[None, :]
    # Where most scores are equal the median is 0, and the mean distance in its stead.
    width = _median(distance, both > 0)
    width = jnp.where(width == 0, (both * distance).sum() / n**2, width)
    width = jnp.where(width == 0, 1, width)
    kernel = both * jnp.exp(-jnp.square(distance / width) / 2)
    seen = masks.astype(kernel.dtype)
    z = drawn[:, None] * (seen - drawn[None] @ seen / n)
    # Each mask's part in the sum; a statistic of pairs varies twice as much as they do.
    near = kernel @ z
    parts = 2 * z * (near - drawn[:, None] * (near.sum(0) / n)[None]) * n / (n - 1) ** 2
    value = parts.sum(0) / n
    around = drawn[:, None] * (parts - value[None])
    return value, 2 * jnp.sqrt(jnp.square(around).sum(0) / (n * (n - 1)))


def _median(a, live):
    """Of the numbers that are `live`; NaN where one of those is."""
    ranked = jnp.sort(jnp.where(live, a, jnp.inf).reshape(-1))  # NaN comes last, behind infinity
    last = live.sum() - 1
    middle = (ranked[last // 2] + ranked[(last + 1) // 2]) / 2
    return jnp.where(jnp.isnan(ranked[-1]), jnp.nan, middle)


def _check(name: str, x: jax.Array, cells: int | None) -> tuple[int, int]:
    """The number of axes of space, and of cells along each."""
    check_one_array(name, x)
    axes, smallest = len(space_of(x)), min(space_of(x), default=0)
    cells = min(8, smallest) if cells is None else cells
    if axes < 1 or not 1 <= cells <= smallest or cells**axes > 10_000:
        advice = f"Take {min(8, smallest)}." if smallest else "Give x all these axes."
        raise ValueError(
            f"{name}: x must be [N, *space, C] or [N, L], and cells 1 to the smallest axis of "
            f"space, at most 10,000 in all; got x {jnp.shape(x)}, cells {cells}. {advice}{hint(x)}"
        )
    return axes, cells


def _seen(x, fills, mask, cells, resize):
    shown = over_channels(_large(mask[None], x, cells, resize), x)
    filled, known = fills(shown)
    return blend(filled, shown, x), known


def _score(found, target):
    return select(found.outputs, target)


def _known(found, target):
    """The score, and NaN where the fill is nothing to be faded to."""
    score = _score(found, target)
    score = wide(score)
    return score * found.of_copy.astype(score.dtype)


def _large(values, x, cells, resize):
    """`[M, cells ** axes]` as maps `[M, *space]`."""
    space = space_of(x)
    grid = values.reshape(len(values), *[cells] * len(space))
    return jax.image.resize(grid, (len(values), *space), resize, antialias=False)
