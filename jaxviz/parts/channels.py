"""Which axis of a layer holds its channels, and channels that it has."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import is_jax
from jaxviz.calls.options import described
from jaxviz.graph.held import hold
from jaxviz.graph.layers import layer_named
from jaxviz.graph.rows import Layer


def checked_channel(
    name: str, apply_fn: Callable, params: Any, x: Any, layer: str, channel: Any
) -> Any:
    """Refuses a channel that the layer does not have; one under trace gives NaN later."""
    found = _layer(name, apply_fn, params, x, layer)
    count, rows = found.shape[found.channel_axis], found.shape[:1]
    index = channel if is_jax(type(channel)) else np.asarray(channel)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.shape not in ((), rows):
        raise TypeError(
            f"{name}: channel must be a whole number, or whole numbers [N] = {rows}; got "
            f"{described(channel)}."
        )
    if not isinstance(index, Tracer):
        values = np.asarray(index).ravel()
        wrong = values[(values < 0) | (values >= count)]
        if wrong.size:
            raise ValueError(
                f"{name}: channel must be in [0, {count}), for layer {layer!r} has shape "
                f"{found.shape} with its channels on axis {found.channel_axis % len(found.shape)}; "
                f"got {wrong[0]}."
            )
    return channel


def channel_axis(name: str, apply_fn: Callable, params: Any, x: Any, layer: str) -> int:
    """The axis of a layer's output, batch first, that holds its channels."""
    return _layer(name, apply_fn, params, x, layer).channel_axis


def _layer(name, apply_fn, params, x, layer) -> Layer:
    return layer_named(name, *hold(name, apply_fn, params), x, layer)
