"""Which numbers of a layer's value are meant: an index of one example's, or a mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import is_jax
from jaxviz.calls.options import refused
from jaxviz.graph.held import Held

_MUST = (
    "an index of one example's value (whole numbers, slices, lists of numbers, ... ), one part an "
    "axis, or a mask of booleans [N, ...]"
)


def normalised(who: str, option: str, where: Any) -> Any:
    """An index or mask as a pytree: arrays may be traced, the rest is structure.

    Returns:
      `(Held("mask"), array)`, or a tuple of parts, each an array of integers or a `Held` of what
      shapes the program. None is the empty tuple, everything.
    """
    if where is None:
        return ()
    if _is_array(where) and where.dtype == bool:
        if where.ndim == 0:
            raise refused(who, option, _MUST, where)
        return Held("mask"), jnp.asarray(where)
    parts = where if isinstance(where, tuple) else (where,)
    found = tuple(_part(who, option, part, where) for part in parts)
    if found.count(Held("...")) > 1:
        raise refused(who, option, f"{_MUST}, with one ... at most", where, kind=ValueError)
    return found


def _is_array(value: Any) -> bool:
    return is_jax(type(value)) or isinstance(value, (np.ndarray, np.generic))


def _part(who: str, option: str, part: Any, where: Any) -> Any:
    if part is Ellipsis:
        return Held("...")
    if isinstance(part, slice):
        ends = (part.start, part.stop, part.step)
        if all(e is None or isinstance(e, (int, np.integer)) for e in ends) and part.step != 0:
            return Held(("slice", *(e if e is None else int(e) for e in ends)))
        raise refused(who, option, _MUST, where)
    if isinstance(part, Tracer) or (is_jax(type(part)) and part.ndim <= 1):
        if not jnp.issubdtype(part.dtype, jnp.integer) or part.ndim > 1:
            raise refused(who, option, _MUST, where)
        return part
    if isinstance(part, (range, list, np.ndarray, np.integer, int)) and not isinstance(part, bool):
        try:
            numbers = np.asarray(part)
        except ValueError:  # lists of several lengths
            raise refused(who, option, _MUST, where) from None
        if numbers.ndim <= 1 and numbers.dtype.kind in "iu" and numbers.size:
            return Held(("list", *map(int, numbers.reshape(-1))))
    raise refused(who, option, _MUST, where)


def mask_of(who: str, name: str, where: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A normalised index or mask as booleans that broadcast to a layer's value.

    Args:
      who: The public function, for errors.
      name: Of the layer.
      where: What `normalised` gave.
      shape: Of the layer's value, batch first.

    Returns:
      `(mask, inside)`: None for everything; `inside` is whether each traced index is one of its
      axis, None where there are none.
    """
    if where[:1] == (Held("mask"),):
        mask = where[1]
        sides = zip(mask.shape, shape, strict=False)
        if mask.ndim > len(shape) or any(m not in (1, n) for m, n in sides):
            raise ValueError(
                f"{who}: a mask must have the first axes of the value of layer {name!r}, {shape}, "
                f"or 1 in place of one; got {mask.shape}. One of all examples is mask[None]."
            )
        return mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim)), None
    parts, axes = list(where), len(shape) - 1
    given = len(parts) - parts.count(Held("..."))
    if given > axes:
        raise ValueError(
            f"{who}: where must have at most {axes} parts, one for each axis after the batch of "
            f"layer {name!r}, {shape}; got {given}. The batch has none: a mask [N] chooses of it."
        )
    if Held("...") in parts:
        at = parts.index(Held("..."))
        parts[at : at + 1] = [Held(("slice", None, None, None))] * (axes - given)
    mask, inside = None, None
    for axis, part in enumerate(parts, 1):
        along, ok = _along(who, name, part, shape, axis)
        if along is not None:
            along = along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            mask = along if mask is None else mask & along
        if ok is not None:
            inside = ok if inside is None else inside & ok
    return mask, inside


def _along(who, name, part, shape, axis):
    """Of each place of an axis whether it is meant."""
    size = shape[axis]
    if not isinstance(part, Held):
        at = jnp.where(part < 0, part + size, part).reshape(-1, 1)
        return (at == jnp.arange(size, dtype=at.dtype)[None]).any(0), (
            (at >= 0) & (at < size)
        ).all()
    kind, *told = part.value
    if kind == "slice":
        if told == [None, None, None]:
            return None, None
        chosen = range(size)[slice(*told)]
    else:
        wrong = [i for i in told if not -size <= i < size]
        if wrong:
            raise ValueError(
                f"{who}: where must be inside the value of layer {name!r}, {shape}; got {wrong[0]} "
                f"for its axis {axis} of {size}. Count from 0 on, the batch left out."
            )
        chosen = told
    along = np.zeros(size, bool)
    along[list(chosen)] = True
    return jnp.asarray(along), None


def replaced(a: jax.Array, new: jax.Array, mask: Any, inside: Any) -> jax.Array:
    """`a` with `new` where the mask says so; NaN there where a traced index is of no place."""
    new = new.astype(a.dtype)
    if inside is not None and jnp.issubdtype(a.dtype, jnp.inexact):
        nan = jnp.asarray(jnp.nan, a.dtype)
        mask, new = mask | ~inside, jnp.where(inside, new, nan)
    if mask is None:
        return new
    return jnp.where(jnp.broadcast_to(mask, a.shape), new, a)
