"""DAVE: what a transformer is as a matrix for one image, averaged over small shifts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attribution.smooth import low_passed
from jaxviz.calls.options import real, whole
from jaxviz.calls.public import public
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import fixed_target, running_sum, wide
from jaxviz.graph.rewrite import rewrite
from jaxviz.parts.gradients import input_gradient
from jaxviz.rules.constants import constants


@public(radius=whole(0), sigma=real(0, above=True))
def dave(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    radius: int = 2,
    sigma: float = 30.0,
    chunk_size: int | None = None,
) -> Any:
    """What each pixel adds through the matrix that the net is for it, less the grid of its patches.

    With attention, gates, norms and slopes held (`rules.constants`) f(x) = L(x) x + constants. L
    follows the grid of patches as much as the image; its part that moves with the image is the mean
    over shifts t of at most `radius` pixels each way, and of that the low frequencies are kept:

        map = low-passed(x * mean_t t^-1 L(t x)).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, *space, C] -> [N, K]`; a vision transformer, or
        any net of images.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` (or channels first), floating.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class at
        x.
      radius: Largest shift along each axis of space, in pixels: (2 radius + 1)^2 of an image. What
        is shifted in repeats the edge.
      sigma: The highest frequency that is kept, as for `low_passed`: cycles across 224 pixels.
      chunk_size: Shifts at once; None goes by the image's size.

    Returns:
      The shape of `x`, signed, in units of the explained output. Costs a pass forward and one back
      for each shift.

    Raises:
      ValueError: `x` has no axes of space, or as for every method.

    Example:
      >>> net = lambda w, x: (x / jnp.sqrt((x * x).sum((1, 2, 3), keepdims=True))).sum((1, 2))
      >>> x = jnp.ones((1, 4, 4, 1))
      >>> dave(net, None, x, 0, radius=1)[0, 0, :, 0].round(3).tolist()  # 1 / |x|
      [0.25, 0.25, 0.25, 0.25]

    Reference:
      Wrobel et al. 2026, arXiv:2602.06613: the effective transformation L(X), its mean over local
      spatial transformations, low-pass smoothing. No code was out; shifts, their radius and the
      filter's form and width are ours.
    """
    method = low_passed(_averaged, sigma=sigma)
    return method(apply_fn, params, x, target, radius=radius, chunk_size=chunk_size)


def _averaged_over_shifts(apply_fn, params, x, target=None, *, radius, chunk_size=None):
    linear = rewrite(apply_fn, constants())
    target = fixed_target(apply_fn, params, x, target)
    leaves = jax.tree.leaves(x)
    axes = [range(1, leaf.ndim - 1) for leaf in leaves]
    count = max(map(len, axes))
    width = 2 * radius + 1

    def moved(tree, by):
        return jax.tree.map(lambda a: _shifted(a, by), tree)

    def one(k):
        by = [(k // width**i) % width - radius for i in range(count)]
        slope = input_gradient(linear, params, moved(x, by), target)
        return moved(slope, [-d for d in by])

    total = running_sum("dave", one, width**count, chunk_size, x)
    mean = lambda a, t: (wide(a) * t / width**count).astype(a.dtype)
    return jax.tree.map(mean, x, total)


def _shifted(a, by):
    """Along each axis of space; what comes in repeats the edge."""
    for axis, d in zip(range(1, a.ndim - 1), by, strict=False):
        size = a.shape[axis]
        a = jnp.take(a, jnp.clip(jnp.arange(size, dtype=jnp.int32) + d, 0, size - 1), axis)
    return a


_averaged_over_shifts.__name__ = "dave"
_averaged = explanation("radius", "chunk_size", sweeps=True, places=True)(_averaged_over_shifts)
