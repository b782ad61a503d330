"""Options that stand in places of the input: one for all of it, or a pytree like it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.options import described, refused

ONE = jax.tree.structure(0)  # of a single array


def per_leaf(who: str, option: str, value: Any, x: Any) -> list:
    """What an option says of each leaf of `x`, in order: the same of all, or one of each.

    Args:
      who: The public function, for errors.
      option: Its name.
      value: A number or an array, which is for every leaf; or a pytree of the structure of `x`.
        Lists and tuples of numbers are arrays where the structure has a leaf.
      x: One array, or a pytree of such.

    Example:
      >>> per_leaf("f", "fill", {"a": [1, 2], "b": 0}, {"a": np.ones(2), "b": np.ones(1)})
      [array([1, 2]), 0]
    """
    leaves, structure = jax.tree.flatten(x)
    if structure == ONE:
        return [_one(who, option, value)]
    if jax.tree.structure(value) == ONE:
        return [value] * len(leaves)
    try:
        found = structure.flatten_up_to(value)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{who}: {option} must be one for all leaves of x, or a pytree like x, "
            f"{_like(x, structure)}; got {described(value)}. Give each leaf its own."
        ) from None
    return [_one(who, option, one) for one in found]


def _like(x, structure):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(x)]
    return f"with {', '.join(names)}" if names else structure


def _one(who, option, value):
    if jax.tree.structure(value) == ONE:
        return value
    try:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))
        return jnp.asarray(value) if traced else np.asarray(value)
    except (TypeError, ValueError):  # no list of numbers, or lists of several lengths
        must = "an array of numbers where x is one array, or a pytree like x"
        raise refused(who, option, must, value, kind=ValueError) from None


def fill_for(who: str, fill: Any, x: Any, option: str = "fill") -> Any:
    """The fill in the structure of `x`; what is to stand among whole numbers must be such."""
    found = per_leaf(who, option, fill, x)
    for one, (path, leaf) in zip(found, jax.tree.leaves_with_path(x), strict=True):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating) and not _fits(one, dtype):
            at = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ValueError(
                f"{who}: {option} must be whole numbers that {dtype} holds, for x is {dtype}{at}; "
                f"got {described(one)}. Pass an id that says nothing, such as that of padding."
            )
    return jax.tree.unflatten(jax.tree.structure(x), found)


def _fits(value: Any, dtype: Any) -> bool:
    if isinstance(value, Tracer):
        return not jnp.issubdtype(value.dtype, jnp.inexact)
    value = np.asarray(value)
    low, high = (
        (0, 1) if jnp.issubdtype(dtype, jnp.bool_) else (jnp.iinfo(dtype).min, jnp.iinfo(dtype).max)
    )
    return bool(((value == np.floor(value)) & (value >= low) & (value <= high)).all())
