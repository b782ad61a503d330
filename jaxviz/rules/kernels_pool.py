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

from jaxviz.graph.materialised import materialised
from jaxviz.rules.differences import gap
from jaxviz.rules.windows import Windows, add_places, places, with_pullback

# Of the equation `reduce_window_max`, what the functions here take.
POOL_OPTIONS = (
    "window_dimensions",
    "window_strides",
    "padding",
    "base_dilation",
    "window_dilation",
)
_BITS = 32  # of a word that marks winners


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
    return _pool(False, _windows(window_dimensions, window_strides, padding, window_dilation), x)


def shared_max_pool(
    x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
):
    """`max_pool` with another derivative: equal winners of a window share its gradient equally.

    So a mirrored input has the mirrored gradient, where that of `max_pool`, as of XLA, goes to the
    first in row-major order. Where there are no ties both are the same. What is NaN or has a NaN in
    its window counts as a winner.

    Args:
      x: Floating, any rank.
      window_dimensions: As in `max_pool`, like all the others; `base_dilation` is ones.

    Example:
      >>> x = jnp.array([[1.0, 3.0, 3.0, 2.0]])
      >>> options = dict(window_dimensions=(1, 4), window_strides=(1, 4), padding=((0, 0), (0, 0)))
      >>> ones = dict(base_dilation=(1, 1), window_dilation=(1, 1))
      >>> jax.grad(lambda x: shared_max_pool(x, **options, **ones).sum())(x).tolist()
      [[0.0, 0.5, 0.5, 0.0]]
    """
    del base_dilation
    return _pool(True, _windows(window_dimensions, window_strides, padding, window_dilation), x)


def max_pool_difference(
    x, x0, d, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
):
    """The maxima of `x` and of `x0`, and a difference `d` carried linearly from x - x0 to theirs.

    Of each window the place that explains its change carries all: the winner in `x` where the
    maximum grew, in `x0` where it fell. There d is scaled by the maximum's change over that place's
    own, at least as large: at most 1. Equal winners carry the mean of what each would: no side is
    preferred, and wherever the baseline is a constant image all places of a window are equal.

    Args:
      x: Floating, any rank.
      x0: Shape of `x`.
      d: Shape of `x`; the result is linear in it.
      window_dimensions: As in `max_pool`, like all the others.

    Returns:
      `(max_pool(x), max_pool(x0), carried)`; carried is their difference at d = x - x0.
    """
    del base_dilation  # ones
    windows = _windows(window_dimensions, window_strides, padding, window_dilation)
    y, y0 = _pool(False, windows, x), _pool(False, windows, x0)

    def explained(x, x0, y, y0):
        grew = y >= y0
        pairs = zip(places(x, windows, -jnp.inf), places(x0, windows, -jnp.inf), strict=True)
        winners = _marked(jnp.where(grew, a >= y, b >= y0) for a, b in pairs)
        change = gap(y, y0)
        change = jnp.where(jnp.isinf(change), jnp.zeros_like(change), change)
        return winners, change / jnp.maximum(_count(winners, change), 1)

    winners, change = materialised(explained, x, x0, y, y0)
    moved = gap(x, x0)
    still = ~(jnp.abs(moved) >= jnp.finfo(moved.dtype).tiny)
    share = jnp.where(still, 0, d.astype(moved.dtype) / jnp.where(still, 1, moved))
    carried = _take_winners(windows, _among, winners, y.astype(moved.dtype), share) * change
    return y, y0, carried.astype(y.dtype)


def _windows(size, strides, padding, dilation):
    pairs = tuple((low, high) for low, high in padding)
    return Windows(tuple(size), tuple(strides), pairs, tuple(dilation))


# A `jit` of its own: poolings of the same shape are traced and differentiated once. Where `shared`,
# equal winners share a window's gradient; else the first has it.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _pool(shared, windows, x):
    return _maximum(shared, windows, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _maximum(shared, windows, x):
    return materialised(lambda x: _find_winner(windows, x)[0], x)


@_maximum.defjvp
def _pool_jvp(shared, windows, primals, tangents):
    y, winners = _pool_with_winners(shared, windows, *primals)
    return y, _take(shared, windows, winners, y, *tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _pool_with_winners(shared, windows, x):
    find = _find_winners if shared else _find_winner
    return materialised(functools.partial(find, windows), x)


@_pool_with_winners.defjvp
def _pool_with_winners_jvp(shared, windows, primals, tangents):
    y, winners = _pool_with_winners(shared, windows, *primals)
    no_tangents = tuple(np.zeros(word.shape, jax.dtypes.float0) for word in winners)
    return (y, winners), (_take(shared, windows, winners, y, *tangents), no_tangents)


def _find_winner(windows, x):
    """The pooled array and, of each window, the number of the place that won, in a tuple."""
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
    return y, (winner,)


# Of each window all places that won, as bits of a few unsigned numbers: the first of them places 0
# to 31, the next those after. One small number where there are few places.


def _marked(won):
    """The winners, from whether each place has won, in order."""
    won = list(won)
    size = len(won)
    dtype = jnp.uint8 if size <= 8 else jnp.uint16 if size <= 16 else jnp.uint32
    words = []
    for start in range(0, size, _BITS):
        word = jnp.zeros(won[0].shape, dtype)
        for bit, here in enumerate(won[start : start + _BITS]):
            word |= jnp.where(here, jnp.array(1 << bit, dtype), jnp.array(0, dtype))
        words.append(word)
    return tuple(words)


def _find_winners(windows, x):
    """The pooled array and, of each window, all places that won."""
    each = places(x, windows, -jnp.inf)
    y, words = each[0], list(_marked([jnp.zeros(each[0].shape, bool)] * len(each)))
    for number, value in enumerate(each):
        above, below = value > y, value < y  # neither beside NaN
        words = [jnp.where(above, jnp.zeros_like(word), word) for word in words]
        own = number // _BITS
        dtype = words[own].dtype
        bit = jnp.array(1 << number % _BITS, dtype)
        words[own] |= jnp.where(below, jnp.array(0, dtype), bit)
        y = lax.max(y, value)
    every = _marked([jnp.isnan(y)] * len(each))
    return y, tuple(word | nan for word, nan in zip(words, every, strict=True))


def _count(winners, like):
    return sum(lax.population_count(word).astype(like.dtype) for word in winners)


def _among(winners, number):
    """Whether a place has won: a number, or an array of such."""
    if isinstance(number, int):
        word = winners[number // _BITS]
        return word & jnp.array(1 << number % _BITS, word.dtype) != 0
    found: Any = False
    number = number.astype(jnp.uint32)  # there are vector instructions to shift these
    for start, word in enumerate(winners):
        bits = word.astype(jnp.uint32) >> (number - jnp.uint32(start * _BITS))  # too far: 0
        found |= bits & jnp.uint32(1) != 0
    return found


def _only(winner, number):
    """Whether a place has won where one alone does."""
    return winner[0] == jnp.asarray(number, winner[0].dtype)


def _take(shared, windows, winners, y, dx):
    """The derivative: of each window, the element that won, or the mean of those that did."""
    if not shared:
        return _take_winners(windows, _only, winners, y, dx)
    return _take_winners(windows, _among, winners, y, dx) / _count(winners, y)


def _take_winners(windows, has_won, winners, y, dx):
    """Of each window, the sum of the elements that won: `has_won(winners, number of the place)`."""
    pairs = zip(windows.size, windows.strides, windows.dilation, strict=True)
    disjoint = all(k == 1 or (d == 1 and k <= s) for k, s, d in pairs)
    pullback = _fill_blocks if disjoint else _sum_places
    return with_pullback(functools.partial(pullback, windows, has_won, winners, dx.shape), y, dx)


def _sum_places(windows, has_won, winners, shape, g):
    zero = jnp.zeros((), g.dtype)
    nobody = -1 if jnp.issubdtype(winners[0].dtype, jnp.signedinteger) else 0

    def part(number, shift):
        won = has_won([shift(a, nobody) for a in winners], number)
        return jnp.where(won, shift(g), zero)

    return add_places(part, windows, shape)


def _fill_blocks(windows, has_won, winners, shape, g):
    """Windows that do not overlap: one masked broadcast over blocks of `strides` places."""
    size, strides, padding, _ = windows
    axes = range(g.ndim)
    cut = [a for a in axes if strides[a] > 1]
    inner = [a + 1 + i for i, a in enumerate(cut)]  # the axis of a block's places
    number: Any = None
    outside: Any = None
    dtype = winners[0].dtype
    # Iotas, not a constant array: loads from one would keep XLA from vectorising the loop.
    for a, axis in zip(cut, inner, strict=True):
        along = [1] * (g.ndim + len(cut))
        along[axis] = strides[a]
        place = lax.broadcasted_iota(dtype, along, axis)
        beyond = place >= jnp.array(size[a], dtype)
        number = place if number is None else number * jnp.array(size[a], dtype) + place
        outside = beyond if outside is None else outside | beyond
    if number is None:
        whole = g
    else:
        won = has_won([jnp.expand_dims(a, inner) for a in winners], number) & ~outside
        blocks = jnp.where(won, jnp.expand_dims(g, inner), jnp.zeros((), g.dtype))
        whole = blocks.reshape([n * s for n, s in zip(g.shape, strides, strict=True)])
    fit = [(-padding[a][0], shape[a] + padding[a][0] - whole.shape[a], 0) for a in axes]
    return lax.pad(whole, jnp.zeros((), g.dtype), fit)
