"""What an image should not have too much of: penalties on the image itself, as objectives.

Each is a mean over an image's numbers, so that a weight means the same at every size. They are
subtracted from what climbs and see the image as it is kept, before any transform.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.arrays import weights
from jaxviz.calls.options import real
from jaxviz.calls.public import public
from jaxviz.features.objectives import IMAGE, Objective
from jaxviz.features.transforms import gaussian_blur
from jaxviz.graph.symmetric import size


@public(weight=weights, beta=real(0, above=True))
def total_variation(weight: Any = 1.0, *, beta: float = 2.0) -> Objective:
    """Differences of neighbours: `weight * mean (dx^2 + dy^2)^(beta / 2)`.

    The mean is over places and over the four pairs of a difference to the right or left and one
    down or up, zero beyond the edge: an image and its mirror image cost the same.

    Args:
      weight: One number, or one for each image.
      beta: 1 favours flat patches with sharp edges, 2 smooth slopes.

    Example:
      >>> image = jnp.array([[0.0, 3.0], [4.0, 0.0]]).reshape(1, 2, 2, 1)
      >>> total_variation(1.0)({IMAGE: image}).tolist()  # (25 + 9 + 16 + 0) / 4
      [12.5]

    Reference:
      Mahendran and Vedaldi 2014, arXiv:1412.0035, section 3 (there a sum, not a mean, and to the
      right and down only, which is the same for a `beta` of 2).
    """
    return _penalty(_TotalVariation(float(beta)), weight)


@public(weight=weights, p=real(1))
def lp(weight: Any = 1.0, *, p: float = 6.0, centre: float = 0.0) -> Objective:
    """Distance from one value: `weight * mean |x - centre|^p`.

    Args:
      weight: One number, or one for each image.
      p: >= 1; the larger, the less anything but extremes counts.
      centre: What costs nothing.

    Example:
      >>> lp(0.5, p=3)({IMAGE: jnp.full((1, 1, 1, 1), 2.0)}).tolist()
      [4.0]
    """
    return _penalty(_Lp(float(p), float(centre)), weight)


@public(weight=weights)
def l2(weight: Any = 1.0, *, centre: float = 0.0) -> Objective:
    """Squared distance from one value: `weight * mean (x - centre)^2`.

    Args:
      weight: One number, or one for each image.
      centre: What costs nothing.
    """
    return lp(weight, p=2.0, centre=centre)


@public(weight=weights)
def blur(weight: Any = 1.0, *, sigma: float = 1.0) -> Objective:
    """Distance from the image's own blur, which is held fixed: `weight * mean (x - blur(x))^2`.

    Args:
      weight: One number, or one for each image.
      sigma: Standard deviation of the blur in pixels, > 0.

    Reference:
      Nguyen et al. 2014, arXiv:1412.1897 and Yosinski et al. 2015, arXiv:1506.06579 blur the image
      between steps; as a penalty it does so by degrees.
    """
    return _penalty(_Blur(float(sigma)), weight)


def _penalty(function: Any, weight: Any) -> Objective:
    return Objective(function, (IMAGE,), (jnp.atleast_1d(jnp.asarray(weight, float)),))


def _weighted(weight: jax.Array, numbers: jax.Array) -> jax.Array:
    means = numbers.reshape(numbers.shape[0], -1).mean(1)
    return jnp.broadcast_to(weight.astype(means.dtype), means.shape) * means


@dataclasses.dataclass(frozen=True)
class _TotalVariation:
    beta: float

    def __call__(self, values, weight):
        x = values[IMAGE]
        right = jnp.square(jnp.diff(x, axis=2, append=x[:, :, -1:]))
        down = jnp.square(jnp.diff(x, axis=1, append=x[:, -1:]))
        if self.beta == 2:
            return _weighted(weight, right + down)
        left = jnp.roll(right, 1, axis=2)  # the last difference is 0 and becomes the first
        up = jnp.roll(down, 1, axis=1)
        squares = jnp.stack([a + b for a in (right, left) for b in (down, up)], 1)
        # The root's slope at zero is infinite: a flat image must not get a NaN from it.
        flat = squares == 0
        power = jnp.where(flat, jnp.ones_like(squares), squares) ** (self.beta / 2)
        return _weighted(weight, jnp.where(flat, jnp.zeros_like(power), power))


@dataclasses.dataclass(frozen=True)
class _Lp:
    p: float
    centre: float

    def __call__(self, values, weight):
        return _weighted(weight, size(values[IMAGE] - self.centre) ** self.p)


@dataclasses.dataclass(frozen=True)
class _Blur:
    sigma: float

    def __call__(self, values, weight):
        x = values[IMAGE]
        off = x - jax.lax.stop_gradient(gaussian_blur(x, self.sigma))
        return _weighted(weight, off * off)
