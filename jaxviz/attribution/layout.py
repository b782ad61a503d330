"""Models whose images have channels first, explained as their channels-last twins.

Methods of places (windows, cells, maps brought to the size of the image) see `[N, *space, C]`
alone. Where the convolutions that `x` reaches say that another axis holds its channels, the method
explains the model after that axis was moved, and what has the shape of `x` is moved back.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.graph.axes import axes
from jaxviz.graph.held import hold
from jaxviz.graph.trace import model, trace

# Options that may have the axes of x.
_LIKE_X = ("baseline", "fill", "segments")


@dataclasses.dataclass(frozen=True)
class ChannelsLast:
    """A model of images with channels on `axis`, as one of images with channels last."""

    apply_fn: Callable
    axis: int

    def __call__(self, params: Any, x: jax.Array) -> Any:
        x = jnp.moveaxis(x, -1, self.axis)
        return model(self.apply_fn, params, x)(params, x)

    @property
    def is_tail(self) -> bool:
        return getattr(self.apply_fn, "is_tail", False)


def of_places(method: Callable) -> Callable:
    """A method that knows axes of space, for models with channels on any axis."""

    @functools.wraps(method)
    def called(apply_fn, params, x, *rest, **options):
        held, arrays = hold(method.__name__, apply_fn, params)
        axis = channels_of(held, arrays, x)
        if axis is None:
            return method(apply_fn, params, x, *rest, **options)
        twin, moved, options = channels_last(held, x, options, axis)
        return as_given(method(twin, arrays, moved, *rest, **options), jnp.shape(moved), axis)

    return called


def channels_of(apply_fn: Callable, params: Any, x: Any) -> int | None:
    """The axis of `x` that holds its channels, where convolutions say that it is not the last.

    Only of one array with axes of space.
    """
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1 or np.ndim(leaves[0]) < 3:
        return None
    try:
        found = axes(trace(apply_fn, params, x, flat=False)).input_channels()
    except Exception:  # the model's own, of whatever kind: whoever runs it next will say it better
        return None
    return None if found in (None, np.ndim(leaves[0]) - 1) else found


def channels_last(apply_fn: Callable, x: Any, options: dict[str, Any], axis: int):
    """The twin, its input, and the options that have the axes of `x`."""

    (x,) = jax.tree.leaves(x)
    x = jnp.asarray(x)

    def moved(name):
        value = options[name]
        if isinstance(value, (list, tuple)):
            value = np.asarray(value)
        rank, shape = np.ndim(value), np.shape(value)
        if rank == x.ndim:
            return jnp.moveaxis(jnp.asarray(value), axis, -1)
        # Segments of one number an example have as many axes as those of one number a channel.
        if rank == x.ndim - 1 and (name != "segments" or shape == x.shape[1:]):
            return (
                np.moveaxis(value, axis - 1, -1)
                if isinstance(value, np.ndarray)
                else (jnp.moveaxis(jnp.asarray(value), axis - 1, -1))
            )
        return options[name]

    laid = {name: moved(name) for name in _LIKE_X if _is_array(options.get(name))}
    return ChannelsLast(apply_fn, axis), jnp.moveaxis(x, axis, -1), options | laid


def _is_array(value):
    listed = isinstance(value, (list, tuple)) and np.asarray(value).dtype != object
    return listed or isinstance(value, (np.ndarray, jax.Array))


def as_given(result: Any, shape: tuple[int, ...], axis: int) -> Any:
    """What has the shape of the twin's input, laid out as the model's own."""
    back = lambda a: jnp.moveaxis(a, -1, axis) if np.shape(a) == shape else a
    return jax.tree.map(back, result)
