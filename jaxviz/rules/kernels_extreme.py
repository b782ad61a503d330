"""Maxima and minima along axes whose gradient is that of the winner, whatever XLA fuses.

The gradient of `reduce_max` goes where the operand equals its maximum. An operand that is cheap to
make (a normalised map) XLA computes anew in each loop that reads it, and may round it otherwise
there: then no place equals the maximum, and the gradient is lost without a word (seen on a CPU,
behind a convolution's pullback). Here the winners are found once, from an array in memory.
"""

import functools

import jax

from jaxviz.graph.materialised import materialised


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def extreme(axes: tuple[int, ...], falls: bool, x: jax.Array) -> jax.Array:
    """The maximum along axes, or the minimum if it `falls`; winners alike share the gradient."""
    return x.min(axes) if falls else x.max(axes)


@extreme.defjvp
def _extreme_jvp(axes, falls, primals, tangents):
    (x,), (dx,) = primals, tangents
    parts = materialised(_winners(axes, falls), jax.lax.stop_gradient(x))
    return extreme(axes, falls, x), (parts * dx).sum(axes)


@functools.cache  # one function object each, so that it is traced once
def _winners(axes: tuple[int, ...], falls: bool):
    def winners(x):
        won = (x == (x.min if falls else x.max)(axes, keepdims=True)).astype(x.dtype)
        return won / won.sum(axes, keepdims=True)

    return winners
