"""RISE: the mean of random masks, each weighed by the score that the masked input still gets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least_float32,
    check_one_array,
    fixed_target,
    is_floating,
    running_sum,
    score_of,
)
from jaxviz.engine.rounds import mean_until, stops_early
from jaxviz.parts.fills import fading
from jaxviz.parts.regions import (
    blend,
    like_input,
    over_channels,
    space_of,
)


@explanation(
    *("num_samples", "cells", "keep", "chunk_size"),
    nonzero=("tolerance",),
    sweeps=True,
    places=True,
    integers=True,
)
def rise(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    key: jax.Array,
    num_samples: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    fill: Any = 0.0,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Where the score is high on average when a place is left to be seen through a random mask.

    sum_k f(x seen through m_k) m_k / (num_samples * keep). A mask is a coarse grid of zeros and
    ones, stretched bilinearly and shifted by less than a cell, its own for each example and sample.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        paper explains probabilities: `jaxviz.softmax(apply_fn)`.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` or `[N, L]`, floating or whole numbers (token ids), one array. Whole
        numbers do not fade: their masks are stretched without blending.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the masks, which are the same whatever `chunk_size` is.
      num_samples: Masks for each example, >= 1. Time is linear in it, memory constant.
      cells: Cells of the coarse grid along each axis, >= 1.
      keep: Probability that a cell is left to be seen, in (0, 1).
      fill: What stands where the mask hides: anything that broadcasts to `x`, or a function
        `(x, hidden) -> x` of what is hidden by half or more, such as `inpainted`: channels last,
        wherever the model has them; compiled once per function, so keep it. Masks fade, so one that
        is not finite gives NaN; `occlusion` and `kernel_shap` hide by selecting.
      tolerance: Above 0, it stops after a round of 32 masks when no standard error is above this
        share of its example's range of values, the largest less the smallest; `num_samples` is the
        most. The same key draws the same. All examples take as many as the slowest of their batch,
        so an example's result depends on what is beside it; cores do not share rounds, as they
        share draws without it. 0 takes all; reverse differentiation needs that.
      chunk_size: Masks at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N, *space]`, in units of the explained output: an estimate of the score expected, given that
      the place is seen. Its differences between places are what says something; their standard
      error, the spread over several keys, falls with the square root of `num_samples`.

    Raises:
      ValueError: `x` has no axis of space, or an option is out of its range.

    Example:
      >>> net = lambda _, x: x[:, 0, 0]
      >>> x = jnp.ones((1, 4, 4, 1))
      >>> out = rise(net, None, x, 0, key=jax.random.key(0), cells=2, num_samples=99)
      >>> bool(out[0, 0, 0] > out[0, 3, 3] + 0.1)
      True

    Reference:
      Petsiuk et al. 2018, arXiv:1806.07421, eq. 6, and section 3.2 for the masks. Xplique shifts
      all masks of a batch alike and divides by each place's own sum of masks.
    """
    name = "rise"
    check_one_array(name, x)
    space = space_of(x)
    if not space:
        raise ValueError(
            f"{name}: x must be [N, *space, C] or [N, L]; got {x.shape}. Give it places."
        )
    fills = fading(name, fill, x)
    target = fixed_target(apply_fn, params, x, target)
    fades = is_floating(x)
    resize, wide = ("bilinear", at_least_float32(x)) if fades else ("nearest", jnp.float32)

    def term(k):
        own = jax.random.fold_in(key, k)
        masks = random_masks(own, (len(x), *space), cells, keep, wide, resize)
        shown = over_channels(masks, x)
        filled, known = fills(shown)
        score = score_of(apply_fn, params, blend(filled, shown, x), target)
        return masks * _per_example(score.astype(wide) * known, masks)

    if stops_early(tolerance):
        mean = mean_until(name, term, num_samples, chunk_size, x, tolerance).mean
    else:
        mean = running_sum(name, term, num_samples, chunk_size, x) / num_samples
    return like_input(mean / keep, x)


def _per_example(a, like):
    return a.reshape(-1, *[1] * (like.ndim - 1))


def random_masks(
    key: jax.Array,
    shape: tuple[int, ...],
    cells: int,
    keep: float,
    dtype: Any,
    resize: str = "bilinear",
) -> jax.Array:
    """Coarse random grids, stretched bilinearly and shifted, one for each example.

    Args:
      key: Of the draws.
      shape: `[N, *space]` of the masks.
      cells: Cells that fit along an axis; one more is drawn, for the shift.
      keep: Probability of a one.
      dtype: Of the masks.
      resize: How they are stretched; "nearest" leaves them zeros and ones.
    """
    grid_key, shift_key = jax.random.split(key)
    count, space = shape[0], shape[1:]
    drawn = jnp.float32(keep), (count, *[cells + 1] * len(space))
    grids = jax.random.bernoulli(grid_key, *drawn).astype(dtype)
    sizes = [-(-n // cells) for n in space]  # of a cell, in pixels
    large = jax.image.resize(
        grids, (count, *[(cells + 1) * size for size in sizes]), resize, antialias=False
    )
    shifts = jax.random.randint(
        shift_key, (count, len(space)), 0, jnp.array(sizes, jnp.int32)[None], jnp.int32
    )
    return jax.vmap(lambda mask, shift: lax.dynamic_slice(mask, list(shift), space))(large, shifts)
