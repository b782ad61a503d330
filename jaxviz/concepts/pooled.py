"""The values of layers with their channels last, place by place, or the mean over places."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.copies import at_least_float32, is_floating
from jaxviz.graph.held import hold
from jaxviz.graph.split import Values, run_values


def layer_values(
    who: str, apply_fn: Callable, params: Any, x: Any, layers: Sequence[str], pooled: bool
) -> dict[str, jax.Array]:
    """The values of layers by name: `[N, C]`, means over places; or as the model has them."""
    apply_fn, params = hold(who, apply_fn, params)
    found = run_values(Values(apply_fn, tuple(layers), who, channels_last=pooled), params, x)
    return {k: places_mean(a) for k, a in found.items()} if pooled else found


def wide(a: Any) -> jax.Array:
    """Floating numbers, in float32 at least."""
    a = jnp.asarray(a)
    a = a if is_floating(a) else a.astype(jnp.float32)
    return a.astype(at_least_float32(a))


def places_mean(a: jax.Array) -> jax.Array:
    """`[N, ..., C] -> [N, C]`."""
    return a.mean(tuple(range(1, a.ndim - 1)))


def places_summed(a: jax.Array, axis: int) -> jax.Array:
    """`[N, ..., C]`, channels on an axis, `-> [N, C]`."""
    a = jnp.moveaxis(a, axis, -1)
    return a.reshape(a.shape[0], -1, a.shape[-1]).sum(1)
