"""Fills that depend on what is hidden: each hidden place a weighted mean of its neighbours."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.arrays import real_array
from jaxviz.calls.models import moving
from jaxviz.calls.public import public
from jaxviz.engine.copies import at_least_float32, is_floating
from jaxviz.parts.regions import space_of

_TOLERANCE = 1e-6  # of the residual, relative to the right-hand side
_MOST = 20  # steps for each place along the axes of space together; a fifth is the rule


@public(x=moving, hidden=real_array)
def noisy_linear_imputation(
    x: jax.Array, hidden: Any, *, key: jax.Array, noise: float = 0.01
) -> jax.Array:
    """What stands in hidden places if each is the weighted mean of its neighbours, and some noise.

    A fill that leaves no edges from which a model could read what was hidden. The weights are 1/6
    for a neighbour along an axis and 1/12 for one across; hidden neighbours count too, so that the
    values solve a linear system, by conjugate gradients.

    Args:
      x: `[N, H, W, C]`, or `[N, L, C]` with weights 1/2, floating.
      hidden: Booleans `[N, *space]`, or with the axes of `x`, each full or 1.
      key: Of the noise.
      noise: Its standard deviation, in units of `x`.

    Returns:
      The shape of `x`: what is not hidden is as it was. Where nothing is left to be seen, 0 and the
      noise.

    Raises:
      ValueError: Shapes that do not fit.

    Example:
      >>> x = jnp.array([1.0, 9.0, 3.0]).reshape(1, 3, 1)
      >>> hidden = jnp.array([[False, True, False]])
      >>> noisy_linear_imputation(x, hidden, key=jax.random.key(0), noise=0.0)[0, :, 0].tolist()
      [1.0, 2.0, 3.0]

    Reference:
      Rong et al. 2022, arXiv:2202.00449, section 4.2 and appendix.
    """
    x = jnp.asarray(x)
    found, hidden = _imputed("noisy_linear_imputation", x, hidden)
    drawn = jax.random.normal(key, x.shape[1:], found.dtype)[None]
    return jnp.where(hidden, (found + noise * drawn).astype(x.dtype), x)


@public(x=moving, hidden=real_array)
def inpainted(x: jax.Array, hidden: Any) -> jax.Array:
    """What stands in hidden places if each is the weighted mean of its neighbours: a smooth patch.

    A fill for `occlusion`, `rise`, `kernel_shap` and all who hide: `fill=jaxviz.inpainted`. It is
    `metrics.noisy_linear_imputation` without noise, which says how.

    Args:
      x: `[N, H, W, C]`, or `[N, L, C]`, floating.
      hidden: Booleans `[N, *space]`, or with the axes of `x`, each full or 1.

    Returns:
      The shape of `x`: what is not hidden is as it was. Where nothing is left to be seen, 0. Costs
      some hundred sums over neighbours, far less than a pass of most nets; gradients go through it.

    Raises:
      ValueError: Shapes that do not fit.

    Example:
      >>> x = jnp.array([1.0, 9.0, 3.0]).reshape(1, 3, 1)
      >>> inpainted(x, jnp.array([[False, True, False]]))[0, :, 0].tolist()
      [1.0, 2.0, 3.0]

    Reference:
      Rong et al. 2022, arXiv:2202.00449, section 4.2 and appendix.
    """
    x = jnp.asarray(x)
    found, hidden = _imputed("inpainted", x, hidden)
    return jnp.where(hidden, found.astype(x.dtype), x)


def _imputed(name: str, x: jax.Array, hidden: Any) -> tuple[jax.Array, jax.Array]:
    """Values of hidden places, in float32 at least, and `hidden` with the axes of `x`."""
    space = space_of(x)
    if x.ndim not in (3, 4) or not is_floating(x):
        raise ValueError(
            f"{name}: x must be floating, [N, H, W, C] or [N, L, C]; got {x.dtype} {x.shape}. Give "
            "an image a channel axis: x[..., None]."
        )
    shape = jnp.shape(hidden)
    fits = len(shape) == x.ndim and all(a in (1, b) for a, b in zip(shape, x.shape, strict=True))
    if shape != x.shape[:-1] and not fits:
        raise ValueError(
            f"{name}: hidden must be booleans {x.shape[:-1]}, or with the axes of x, {x.shape}; "
            f"got {shape}. Pass one for each place."
        )
    wide = at_least_float32(x)
    hidden = jnp.asarray(hidden).astype(bool).reshape(shape if fits else (*shape, 1))
    one = jnp.broadcast_to(hidden, jnp.broadcast_shapes(hidden.shape, (len(x), *space, 1)))
    mask = one.astype(wide)
    # What is hidden may be anything, NaN too, and is not looked at.
    seen = jnp.where(hidden, 0, x).astype(wide)
    return _solved(mask, mask * _neighbours(seen), seen), hidden


def _neighbours(v: jax.Array) -> jax.Array:
    """The weighted sum of each place's neighbours; there are none outside."""

    def both(v, axis):
        ahead = jax.lax.slice_in_dim(v, 1, None, axis=axis)
        behind = jax.lax.slice_in_dim(v, 0, v.shape[axis] - 1, axis=axis)
        pad = lambda a, sides: jnp.pad(a, [sides if i == axis else (0, 0) for i in range(v.ndim)])
        return pad(ahead, (0, 1)) + pad(behind, (1, 0))

    if v.ndim == 3:
        return both(v, 1) / 2
    along = both(v, 1)
    return along / 6 + both(v / 6 + along / 12, 2)


def _solved(mask: jax.Array, known: jax.Array, like: jax.Array) -> jax.Array:
    """Hidden values v with w v = what neighbours give, w the sum of a place's weights.

    The matrix is symmetric and positive definite unless nothing is seen at all, where 0 solves it.
    """
    weights = _neighbours(jnp.ones((1, *like.shape[1:-1], 1), like.dtype))
    system = lambda v: mask * (weights * v - _neighbours(mask * v))
    solve = functools.partial(_conjugate_gradients, weights=weights)
    return jax.lax.custom_linear_solve(system, known, solve, symmetric=True)


def _conjugate_gradients(apply: Callable, known: jax.Array, weights: jax.Array) -> jax.Array:
    axes = tuple(range(1, known.ndim - 1))
    dot = lambda a, b: (a * b).sum(axes, keepdims=True)  # each example and channel is its own
    enough = _TOLERANCE**2 * dot(known, known)
    start = jnp.zeros_like(known)
    direction = known / weights

    def unsolved(state):
        step, _, left, *_ = state
        return (step < _MOST * sum(known.shape[1:-1])) & (dot(left, left) > enough).any()

    def improve(state):
        step, v, left, direction, size = state
        image = apply(direction)
        length = dot(direction, image)
        # A channel that is solved stays as it is.
        going = (dot(left, left) > enough) & (length > 0)
        by = jnp.where(going, size / jnp.where(going, length, 1), 0)
        v, left = v + by * direction, left - by * image
        scaled = left / weights
        new = dot(left, scaled)
        ratio = jnp.where(going, new / jnp.where(going, size, 1), 0)
        return step + 1, v, left, scaled + ratio * direction, new

    state = (jnp.int32(0), start, known, direction, dot(known, direction))
    return jax.lax.while_loop(unsolved, improve, state)[1]
