"""Masks learned by gradient: what to hide to lose the score, what to see to keep it."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxviz.calls.arrays import fill as array_fill
from jaxviz.calls.options import maybe, real
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least_float32,
    check_one_array,
    fixed_target,
    score_of,
)
from jaxviz.graph.indices import unless
from jaxviz.graph.symmetric import share_above, size
from jaxviz.parts.regions import (
    blend,
    blurred,
    fadeable,
    fill_like,
    over_channels,
    space_of,
)

Goal = Literal["preserve", "delete"]
_FLAT = 0.05  # differences of neighbours below which roughness is priced less and less
_SHARE = real(0, 1, above=True, below=True)
_ADAM = optax.adam(0.1)  # one object, so that calls share a program


class LearnedMask(NamedTuple):
    """A mask and what it does.

    Attributes:
      mask: `[N, *space]` in [0, 1]: 1 is what must be seen ("preserve") or must go ("delete").
      score: `[N]`, the explained output of the input so masked.
      clean_score: `[N]`, that of the whole input.
      filled_score: `[N]`, that of the fill.
      history: `[num_steps, N]`, the score before each step.
    """

    mask: jax.Array
    score: jax.Array
    clean_score: jax.Array
    filled_score: jax.Array
    history: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@explanation(
    "goal",
    "area",
    "cells",
    "num_steps",
    "optimizer",
    places=True,
    area=maybe(_SHARE),
    fill=maybe(array_fill),
)
def learned_mask(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    goal: Goal = "preserve",
    area: float | None = 0.1,
    sparsity: float = 1.0,
    smoothness: float = 1.0,
    cells: int = 28,
    fill: Any = None,
    num_steps: int = 200,
    optimizer: optax.GradientTransformation = _ADAM,
) -> LearnedMask:
    """The part of the input that alone keeps the score up, or whose loss brings it down.

    Climbs s / (f(x) - f(fill)) - penalties, where s is the score of the part seen ("preserve") or
    minus the score of all else ("delete"). With an `area` the penalty is the mean square distance
    of the mask from one that is 1 on that share of places, where it is largest, and 0 elsewhere
    (places that are equal share alike), its weight growing from 0.1 to 100 (extremal perturbation);
    with None it is `sparsity` times the mean of the mask (meaningful perturbation). `smoothness`
    weighs the mean absolute difference of neighbours, one below 0.05 less. No penalty prefers a
    side: a mirrored model and input have the mirrored mask.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. Log
        probabilities (`jaxviz.log_softmax(apply_fn)`) or logits climb better than probabilities.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` or `[N, L]`, floating, one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      goal: "preserve" finds what to see, "delete" what to hide.
      area: Share of the places in the mask, in (0, 1), or None.
      sparsity: Weight of the mask's mean where `area` is None; traced.
      smoothness: Weight of differences between neighbours; traced.
      cells: The mask is learned on at most so many places an axis and stretched bilinearly, so that
        it cannot hold a pattern that fools the net.
      fill: What stands where nothing is seen: anything that broadcasts to `x`; None is `x` blurred
        by a tenth of its smallest side.
      num_steps: Steps of the optimizer, >= 1. Time is linear in it, memory constant.
      optimizer: Any of optax; the same object each time, or the program is compiled anew.

    Returns:
      A `LearnedMask`. Costs `num_steps` gradients; all N masks are learned in one program, each
      from a mask of one half everywhere, without chance. NaN for an example whose fill or one of
      whose scores is not finite.

    Raises:
      ValueError: `x` has no axis of space; `goal`, `area`, `cells` or `num_steps` is out of range;
        a fill that does not broadcast.

    Example:
      >>> net = lambda _, x: x[:, :2, :2].mean((1, 2))  # looks at a quarter
      >>> x = jnp.ones((1, 4, 4, 1))
      >>> out = learned_mask(net, None, x, 0, area=0.25, fill=0.0)
      >>> out.mask[0, 0].round(1).tolist(), out.mask[0, 3].round(1).tolist()
      ([1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])

    Reference:
      Fong and Vedaldi 2017, arXiv:1704.03296, eq. 6; Fong et al. 2019, arXiv:1910.08485, eq. 3 and
      4. There scores are as they are and masks start full, and the 2019 mask is made smooth by a
      max-convolution of 1/12 of the image; here scores are scaled by what can be gained, so that
      weights mean the same on any net, and the mask is coarse and its differences are penalised.
    """
    name = "learned_mask"
    check_one_array(name, x)
    space = space_of(x)
    if not space:
        raise ValueError(
            f"{name}: x must be [N, *space, C] or [N, L]; got {x.shape}. Give it places."
        )
    with_channels = x if x.ndim > 2 else x[..., None]
    blur = lambda: blurred(with_channels, min(space) / 10).reshape(x.shape)
    filled = blur() if fill is None else fill_like(name, fill, x)
    target = fixed_target(apply_fn, params, x, target)
    score = lambda x: score_of(apply_fn, params, x, target)
    clean, nothing = score(x), score(filled)
    wide = at_least_float32(clean)
    gain = jnp.abs(clean - nothing).astype(wide)
    gain = jnp.where(gain > 0, gain, 1)
    grid = tuple(min(cells, n) for n in space)
    count = len(x)

    def masks(logits):
        mask = jax.nn.sigmoid(logits)
        return mask, jax.image.resize(mask, (count, *space), "bilinear", antialias=False)

    def masked(large):
        seen = large if goal == "preserve" else 1 - large
        return blend(filled, over_channels(seen, x), x)

    def loss(logits, progress):
        mask, large = masks(logits)
        found = score(masked(large)).astype(wide)
        reached = (found if goal == "preserve" else -found) / gain
        flat = mask.reshape(count, -1)
        if area is None:
            cost = sparsity * flat.mean(1)
        else:
            largest = functools.partial(share_above, share=area)
            wanted = jax.vmap(largest)(jax.lax.stop_gradient(flat))
            off = jnp.square(flat - wanted).mean(1)
            # Light at first, so that the score and not chance says which places are the largest.
            cost = 10.0 ** (3 * progress - 1) * off
        axes = range(1, mask.ndim)
        rough = sum(
            size(jnp.diff(mask, axis=axis), _FLAT).reshape(count, -1).mean(1)
            for axis in axes
            if mask.shape[axis] > 1
        )
        # A sum over examples: none has a part in another's gradient.
        return (cost + smoothness * rough - reached).sum(), found

    def step(state, progress):
        logits, memory = state
        (_, found), slope = jax.value_and_grad(loss, has_aux=True)(logits, progress)
        # optax is not written for strict promotion, which a user may have set.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, memory = optimizer.update(slope, memory, logits)
            logits = optax.apply_updates(logits, updates)
        return (logits, memory), found

    start = jnp.zeros((count, *grid), wide)
    progress = jnp.linspace(0, 1, num_steps, dtype=wide)
    (logits, _), history = jax.lax.scan(step, (start, optimizer.init(start)), progress)
    large = masks(logits)[1]
    reached = score(masked(large))
    # A NaN score has no slope behind a ReLU: what the penalties alone made of the mask is none.
    known = jnp.isfinite(jnp.stack([clean, nothing, reached])).all(0)
    large = large * (unless(~known, wide) * fadeable(filled)).reshape(-1, *[1] * len(space))
    found = LearnedMask(large, reached, clean, nothing, history)
    return jax.tree.map(lambda a: a.astype(x.dtype), found)
