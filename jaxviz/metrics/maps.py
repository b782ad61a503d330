"""What metrics of attributions share: numbers of each example in a row, places, ranks."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import real_array
from jaxviz.calls.models import shapes_of
from jaxviz.calls.options import Check
from jaxviz.calls.public import public
from jaxviz.engine.contract import of_none

P = ParamSpec("P")
R = TypeVar("R")


def measure(*static: str, **checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public metric of a function of attributions alone: no model, compiled once.

    Args:
      *static: Names of the options that shape the program.
      **checks: Of options that mean something else here than `calls.public.OPTIONS` says.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        compiled = jax.jit(function, static_argnames=static)

        signature = inspect.signature(function)

        @functools.wraps(function)
        def called(*args, **kwargs):
            given = signature.bind(*args, **kwargs).arguments
            first = jax.tree.leaves(next(iter(given.values())))
            if first and np.shape(first[0])[:1] == (0,):
                return of_none(compiled, given)
            return compiled(*args, **kwargs)

        return public(**({"mask": real_array} | checks))(called)  # type: ignore[return-value]

    return decorate


def in_rows(attribution: Any) -> jax.Array:
    """All numbers of each example in a row, `[N, D]`, floating; of a pytree leaf after leaf."""
    leaves = [jnp.asarray(a) for a in jax.tree.leaves(attribution)]
    # NumPy's rule, since JAX's own may be strict.
    wide = np.result_type(np.float32, *(a.dtype for a in leaves if _is_wide(a)))
    return jnp.concatenate([a.reshape(len(a), -1).astype(wide) for a in leaves], axis=1)


def _is_wide(a):
    return a.dtype in (jnp.float32, jnp.float64)


def rows_of_each(name: str, attribution: Any) -> jax.Array:
    """`in_rows` of what a user gave: `[N, ...]` with one number an example at least."""
    shapes = [jnp.shape(a) for a in jax.tree.leaves(attribution)]
    if any(len(s) < 2 or 0 in s[1:] for s in shapes) or len({s[0] for s in shapes}) > 1:
        raise ValueError(
            f"{name}: attribution must be [N, ...], a map an example; got "
            f"{shapes_of(attribution)}. One example is attribution[None]."
        )
    return in_rows(attribution)


def on_places(name: str, attribution: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attribution and mask of the same places, both `[N, *space]`; the mask True and False.

    Where the attribution has an axis of channels more than the mask, the last or the one after the
    batch, it is summed up over that.
    """
    if jax.tree.structure(attribution) != jax.tree.structure(0):
        raise ValueError(
            f"{name}: attribution must be one array; got a pytree of "
            f"{len(jax.tree.leaves(attribution))}. Take the leaf that the mask is of."
        )
    a, mask = jnp.asarray(attribution), jnp.asarray(mask)
    a = a if _is_wide(a) else a.astype(jnp.float32)
    shape = mask.shape
    if len(shape) > 1 and 0 not in shape[1:]:
        if a.shape[:-1] == shape:
            a = a.sum(-1)
        elif a.shape != shape and (*a.shape[:1], *a.shape[2:]) == shape:
            a = a.sum(1)
    if a.shape != shape or len(shape) < 2 or 0 in shape[1:]:
        raise ValueError(
            f"{name}: mask must be [N, *space] of the attribution's places; got mask {shape}, "
            f"attribution {jnp.shape(attribution)}. One mask for all is "
            "jnp.broadcast_to(mask, (N, *mask.shape))."
        )
    return a, mask.astype(bool)


def sums(a: jax.Array) -> jax.Array:
    """The sum over each example, `[N]`."""
    return a.reshape(len(a), -1).sum(1)


def scaled(a: jax.Array) -> jax.Array:
    """Rows in units of their largest number, whose square neither over- nor underflows."""
    largest = jnp.abs(a).max(1, keepdims=True)
    return a / jnp.where(largest == 0, 1, largest)


def share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """`part / whole`, NaN where the whole is nothing."""
    return jnp.where(whole == 0, jnp.nan, part / jnp.where(whole == 0, 1, whole))


def ranks(a: jax.Array) -> jax.Array:
    """The ranks 1, 2, ... of each row's numbers, equal ones sharing the mean of theirs."""
    place = jnp.broadcast_to(jnp.arange(a.shape[1], dtype=jnp.int32), a.shape)
    a = jnp.where(a == 0, jnp.zeros_like(a), a)  # sorting puts -0 before 0
    values, order = jax.lax.sort((a, place), dimension=1, num_keys=1)
    new = jnp.concatenate([jnp.ones_like(values[:, :1], bool), values[:, 1:] != values[:, :-1]], 1)
    first = jax.lax.cummax(jnp.where(new, place, 0), axis=1)
    ends = jnp.concatenate([new[:, 1:], jnp.ones_like(new[:, :1])], 1)
    last = jax.lax.cummin(jnp.where(ends, place, a.shape[1]), axis=1, reverse=True)
    mean = (first + last).astype(a.dtype) / 2 + 1
    return jax.lax.sort((order, mean), dimension=1, num_keys=1)[1]


def top_weights(a: jax.Array, count: jax.Array) -> jax.Array:
    """How much of each number is among the `count` largest of its row, `[N, D]`, in [0, 1].

    Numbers equal to the smallest of them share the places that are left: the mean over all ways to
    break the tie.
    """
    falling = -jax.lax.sort(-a, dimension=1)
    at = jnp.clip(count.astype(jnp.int32) - 1, 0, a.shape[1] - 1)
    smallest = jnp.take_along_axis(falling, at[:, None], axis=1)
    above, equal = a > smallest, a == smallest
    left = count.astype(a.dtype) - above.sum(1).astype(a.dtype)
    each = left / jnp.maximum(equal.sum(1), 1).astype(a.dtype)
    return jnp.where(above, 1, jnp.where(equal, each[:, None], 0))


def nan_where_not_finite(value: jax.Array, *arrays: jax.Array) -> jax.Array:
    """`[N]`, NaN for an example of which an array holds NaN: comparisons would hide it."""
    bad = [jnp.isnan(a.reshape(len(a), -1)).any(1) for a in arrays]
    return jnp.where(jnp.stack(bad).any(0), jnp.nan, value)
