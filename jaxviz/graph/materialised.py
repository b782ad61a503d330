"""A computation that XLA keeps apart from what is around it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def materialised(f: Callable, *args: Any) -> Any:
    """`f(*args)` with arguments and results written to memory once, and nothing in it shared.

    XLA fuses cheap work into each consumer and would do it again for every element there (the
    winner of a window for each element of its gradient), and takes what is made twice for one
    (what is made again on the way back). It does neither across a conditional; the predicate is
    true, which the barrier hides until after those decisions. Were it seen through one day, time
    and memory would be lost here, but right gradients in `kernels_extreme`: an operand that is made
    anew beside its maximum may be rounded otherwise and equal it nowhere.

    Args:
      f: Of pytrees of arrays of numbers or truth values, to such.
      args: Its arguments.
    """
    # Its own jaxpr is traced once for the shapes, the conditional, and the next one like it: also
    # for one in a derivative's rule, which JAX traces under a mesh without axes and not without.
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        return _kept_apart(*_remembered(f), *args)


def _kept_apart(f, fixed, *args):
    f = functools.partial(f, *fixed)
    shapes = jax.eval_shape(f, *args)

    def skip(*args):
        # Made from the arguments, so that inside `shard_map` it varies over the devices as they do.
        some = [jnp.reshape(a, -1)[:1].sum() for a in jax.tree.leaves(args)]
        made = lambda out: sum((a.astype(out.dtype) for a in some), jnp.zeros((), out.dtype))
        return jax.tree.map(lambda out: jnp.broadcast_to(made(out), out.shape), shapes)

    return lax.cond(lax.optimization_barrier(jnp.array(True)), f, skip, *args)


def _remembered(f: Callable) -> tuple[Callable, tuple[Any, ...]]:
    """`jax.jit(f)` and its first arguments; partials of a function with equal ones are one."""
    if isinstance(f, functools.partial) and not f.keywords:
        return _jitted(f.func, len(f.args)), f.args
    return jax.jit(f), ()


@functools.cache
def _jitted(function: Callable, fixed: int) -> Callable:
    return jax.jit(function, static_argnums=tuple(range(fixed)))
