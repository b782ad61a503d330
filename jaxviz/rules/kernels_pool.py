"""Max pooling that keeps the winner's place instead of looking for it again.

XLA's own pullback (`select_and_scatter`) walks every window once more, one element at a time.
Here the forward pass, where it is differentiated, also stores which place of the window won; the
pullback is then a masked sum over the places. The derivative is its transpose, an ordinary map,
so reverse and forward mode, `vmap` and higher orders all follow.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxviz.rules.windows import Windows, add_places, materialised, places, with_pullback


def max_pool(x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
    """Maximum over sliding windows, the same function as the equation `reduce_window_max`.

    The first of equal elements in row-major order wins the whole gradient, as in XLA; so does the
    element XLA picks where NaN or infinity is about. Where windows do not overlap the pullback is
    equal to the last bit, else up to the order of at most `prod(window)` additions. Dilated
    windows, whose pullback JAX lacks, have one too.

    Args:
      x: Floating, any rank.
      window_dimensions: Window along each axis of `x`; 1 where it does not slide.
      window_strides: Step along each axis.
      padding: Pairs (low, high) for each axis, non-negative; filled with -inf.
      base_dilation: Ones.
      window_dilation: Distance between neighbours of a window, along each axis.

    Returns:
      The pooled array, dtype of `x`. Differentiated, it also keeps an int8 array of the output's
      size (wider for windows of more than 127 places).

    Raises:
      ValueError: `base_dilation` is not all ones, or padding is negative.

    Example:
      >>> x = jnp.array([[1.0, 3.0, 3.0, 2.0]])
      >>> options = dict(window_dimensions=(1, 2), window_strides=(1, 2), padding=((0, 0), (0, 0)))
      >>> ones = dict(base_dilation=(1, 1), window_dilation=(1, 1))
      >>> max_pool(x, **options, **ones).tolist()
      [[3.0, 3.0]]
      >>> jax.grad(lambda x: max_pool(x, **options, **ones).sum())(x).tolist()
      [[0.0, 1.0, 1.0, 0.0]]
    """
    if any(d != 1 for d in base_dilation) or any(min(p) < 0 for p in padding):
        raise ValueError(
            "max_pool: base_dilation must be ones and padding non-negative; got base_dilation "
            f"{base_dilation}, padding {padding}. Use lax.reduce_window for these."
        )
    padding = tuple((low, high) for low, high in padding)
    return _pool(
        Windows(tuple(window_dimensions), tuple(window_strides), padding, tuple(window_dilation)), x
    )


def max_pool_difference(
    x, x0, d, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
):
    """The maxima of `x` and of `x0`, and a difference `d` carried linearly from x - x0 to theirs.

    Of each window the place that explains its change carries all: the winner in `x` where the
    maximum grew, in `x0` where it fell. There d is scaled by the maximum's change over that place's
    own, at least as large: at most 1.

    Args:
      x: Floating, any rank.
      x0: Shape of `x`.
      d: Shape of `x`; the result is linear in it.
      window_dimensions: As in `max_pool`, like all the others.

    Returns:
      `(max_pool(x), max_pool(x0), carried)`; carried is their difference at d = x - x0.
    """
    del base_dilation  # ones
    padding = tuple((low, high) for low, high in padding)
    windows = Windows(
        tuple(window_dimensions), tuple(window_strides), padding, tuple(window_dilation)
    )
    y, here = _pool_with_winner(windows, x)
    y0, there = _pool_with_winner(windows, x0)

    def scale(x, x0, y, y0, here, there):
        winner = jnp.where(y >= y0, here, there)
        gap = jnp.zeros_like(y)
        for number, value in enumerate(places(x - x0, windows)):
            gap = jnp.where(winner == jnp.array(number, winner.dtype), value, gap)
        none = ~(jnp.abs(gap) > 0)  # between equal infinities too
        ratio = (y - y0) / jnp.where(none, jnp.ones_like(gap), gap)
        return winner, jnp.where(none, jnp.zeros_like(ratio), ratio)

    winner, ratio = materialised(scale, x, x0, y, y0, here, there)
    return y, y0, _take_winner(windows, winner, y, d) * ratio


# A `jit` of its own: poolings of the same shape are traced and differentiated once.
@functools.partial(jax.jit, static_argnums=0)
def _pool(windows, x):
    return _maximum(windows, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _maximum(windows, x):
    return materialised(lambda x: _find_winner(windows, x)[0], x)


@_maximum.defjvp
def _pool_jvp(windows, primals, tangents):
    y, winner = _pool_with_winner(windows, *primals)
    return y, _take_winner(windows, winner, y, *tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pool_with_winner(windows, x):
    return materialised(functools.partial(_find_winner, windows), x)


@_pool_with_winner.defjvp
def _pool_with_winner_jvp(windows, primals, tangents):
    y, winner = _pool_with_winner(windows, *primals)
    no_tangent = np.zeros(winner.shape, jax.dtypes.float0)
    return (y, winner), (_take_winner(windows, winner, y, *tangents), no_tangent)


def _find_winner(windows, x):
    """The pooled array and, of each window, the number of the place that won."""
    size = math.prod(windows.size)
    dtype = jnp.int8 if size <= 127 else jnp.int16 if size <= 32767 else jnp.int32
    first, *others = places(x, windows, -jnp.inf)
    y, best, winner = first, first, jnp.zeros(first.shape, dtype)
    for number, value in enumerate(others, start=1):
        # "Not >=" as in select_and_scatter: NaN beats what came before and loses to what follows,
        # so `best` is not always the maximum, where NaN stays.
        take = ~(best >= value)
        y = lax.max(y, value)
        best = jnp.where(take, value, best)
        winner = jnp.where(take, jnp.array(number, dtype), winner)
    return y, winner


def _take_winner(windows, winner, y, dx):
    """The derivative: of each window, the element that won."""
    pairs = zip(windows.size, windows.strides, windows.dilation, strict=True)
    disjoint = all(k == 1 or (d == 1 and k <= s) for k, s, d in pairs)
    pullback = _fill_blocks if disjoint else _sum_places
    return with_pullback(functools.partial(pullback, windows, winner, dx.shape), y, dx)


def _sum_places(windows, winner, shape, g):
    zero = jnp.zeros((), g.dtype)

    def part(number, shift):
        won = shift(winner, -1) == jnp.array(number, winner.dtype)
        return jnp.where(won, shift(g), zero)

    return add_places(part, windows, shape)


def _fill_blocks(windows, winner, shape, g):
    """Windows that do not overlap: one masked broadcast over blocks of `strides` places."""
    size, strides, padding, _ = windows
    axes = range(g.ndim)
    cut = [a for a in axes if strides[a] > 1]
    inner = [a + 1 + i for i, a in enumerate(cut)]  # the axis of a block's places
    number: Any = None
    gap: Any = None
    # Iotas, not a constant array: loads from one would keep XLA from vectorising the loop.
    for a, axis in zip(cut, inner, strict=True):
        along = [1] * (g.ndim + len(cut))
        along[axis] = strides[a]
        place = lax.broadcasted_iota(winner.dtype, along, axis)
        outside = place >= jnp.array(size[a], place.dtype)
        number = place if number is None else number * jnp.array(size[a], place.dtype) + place
        gap = outside if gap is None else gap | outside
    if number is None:
        whole = g
    else:
        won = (jnp.expand_dims(winner, inner) == number) & ~gap
        blocks = jnp.where(won, jnp.expand_dims(g, inner), jnp.zeros((), g.dtype))
        whole = blocks.reshape([n * s for n, s in zip(g.shape, strides, strict=True)])
    fit = [(-padding[a][0], shape[a] + padding[a][0] - whole.shape[a], 0) for a in axes]
    return lax.pad(whole, jnp.zeros((), g.dtype), fit)
