"""Params that hold more than arrays, as a module with its activation function does.

And models that hold arrays, as one with a value set in it does: those become params.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import flattened


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """A leaf that is no array; of a tree it is structure, so what is compiled knows its value."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))


@dataclasses.dataclass(frozen=True)
class Given:
    """A model that gets its params as the user has them; equal for the same model."""

    apply_fn: Callable

    def __call__(self, params: Any, x: Any) -> Any:
        return self.apply_fn(as_given(params), x)

    @property
    def is_tail(self) -> bool:
        return getattr(self.apply_fn, "is_tail", False)


@dataclasses.dataclass(frozen=True)
class Lifted:
    """A model whose arrays come with its params: `((params, arrays), x)`."""

    structure: Any
    kind: type

    def __call__(self, given: tuple[Any, Any], x: Any) -> Any:
        params, arrays = given
        return jax.tree.unflatten(self.structure, arrays)(params, x)


def hold(who: str, apply_fn: Callable, params: Any) -> tuple[Callable, Any]:
    """The same model with params whose leaves are arrays; the rest of them is their structure.

    JAX traces arrays alone. A module as params (Equinox: a pytree) also holds functions, strings
    and flags; these shape the program as a module's own fields do, and another value of one is
    another program. Then so do Python's numbers beside them: a pool starts from one, a dropout asks
    for one. Params of arrays and numbers alone are returned as they are. A model that is a pytree
    of arrays (`jax.tree_util.Partial`, what `patched` gives) hands them over to the params: others
    of the same shapes are the same program.

    Args:
      who: The public function, for errors.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; arrays, shapes, and what is hashable.

    Returns:
      `(apply_fn, params)`. Equal (`==`, `hash`) models and structures for equal arguments, so
      nothing compiles twice; given again they are returned as they are.

    Raises:
      TypeError: A leaf is an array of another library, of numbers that JAX has not, or is not
        hashable.
      ValueError: A leaf is a whole number that is too large, or an array that was given away.

    Example:
      >>> apply_fn, params = hold("f", lambda p, x: p["act"](x * p["w"]), {"act": abs, "w": 2.0})
      >>> jax.jit(apply_fn)(params, -3.0).item(), jax.tree.leaves(params)
      (6.0, [])
    """
    own, structure = jax.tree.flatten(apply_fn)
    if own and all(map(_is_array, own)):
        apply_fn, params = Lifted(structure, type(apply_fn)), (params, own)
    leaves, _ = flattened(who, "params", params)
    if not all(map(_is_usable, leaves)):
        params = jax.tree_util.tree_map_with_path(functools.partial(_usable, who), params)
    if all(_is_array(leaf) or _is_number(leaf) for leaf in leaves):
        return apply_fn, params

    def held(path, leaf):
        if _is_array(leaf):
            return leaf
        _check(who, path, leaf)
        return Held(leaf)

    return Given(apply_fn), jax.tree_util.tree_map_with_path(held, params)


def _is_usable(leaf: Any) -> bool:
    """Whether JAX takes an array or a number as it is; what is neither is not asked."""
    if isinstance(leaf, np.ndarray):
        plain = not isinstance(leaf, np.ma.MaskedArray)
        return plain and leaf.dtype.isnative and leaf.dtype.itemsize <= 8
    if isinstance(leaf, int):
        return -(2**31) <= leaf < 2**31
    return not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or not leaf.is_deleted()


def _usable(who: str, path: Any, leaf: Any) -> Any:
    """A leaf in a form that JAX takes: in this machine's order of bytes."""
    if _is_usable(leaf):
        return leaf
    at = jax.tree_util.keystr(path) or "their root"
    if isinstance(leaf, jax.Array):
        raise ValueError(
            f"{who}: params must hold arrays that are still there; the memory of that at {at} was "
            "given away. Take what the function returned to which it was donated."
        )
    if isinstance(leaf, int):
        whole = jnp.iinfo(jnp.result_type(int))
        if whole.min <= leaf <= whole.max:
            return leaf
        raise ValueError(
            f"{who}: params must hold whole numbers of {whole.bits} bits; got {leaf} at {at}. Take "
            "it out of params, into apply_fn."
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"{who}: params must hold arrays without a mask; got one of {leaf.dtype} of shape "
            f"{leaf.shape} at {at}. Fill it: a.filled(0.0)."
        )
    if not _is_array(leaf):
        return leaf
    if leaf.dtype.itemsize > (16 if leaf.dtype.kind == "c" else 8):
        raise TypeError(
            f"{who}: params must hold arrays of at most 64 bits a number; got {leaf.dtype} at {at}."
            " Make it one: np.asarray(value, np.float32)."
        )
    return leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))


def as_tree(value: Any) -> Any:
    """A pytree whose leaves are arrays; functions and all else in it are its structure."""
    return jax.tree.map(lambda leaf: leaf if _is_array(leaf) else Held(leaf), value)


def as_given(tree: Any) -> Any:
    """What `as_tree` was given."""
    is_held = lambda leaf: isinstance(leaf, Held)
    return jax.tree.map(lambda a: a.value if is_held(a) else a, tree, is_leaf=is_held)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        # Objects, text, dates and records are no numbers; bfloat16 and its like are.
        return leaf.dtype.kind in "biufc" or jnp.issubdtype(leaf.dtype, np.number)
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (int, float, complex)) and not isinstance(leaf, bool)


def _check(who: str, path: Any, leaf: Any) -> None:
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
    at = jax.tree_util.keystr(path) or "their root"
    if isinstance(leaf, getattr(jax, "Ref", ())):
        raise TypeError(
            f"{who}: params must hold arrays; got one that is written to (jax.new_ref) at {at}. "
            "Pass what it holds now: ref[...]."
        )
    foreign = ("__array__", "__jax_array__", "__dlpack__")
    is_object = not isinstance(leaf, (type, np.ndarray, np.generic))
    if is_object and any(hasattr(leaf, way) for way in foreign):
        raise TypeError(
            f"{who}: params must hold arrays of JAX or NumPy; got a {kind} at {at}. Convert it "
            "once, before: `jax.numpy.asarray(a)`."
        )
    try:
        if isinstance(leaf, Iterator):  # it is another one as soon as it was read
            raise TypeError
        hash(leaf)
    except TypeError:
        if isinstance(leaf, np.ndarray):
            kind = f"{kind} of {leaf.dtype}"
        raise TypeError(
            f"{who}: params must hold arrays, and beside them only what can be hashed (functions, "
            f"strings, flags), for it shapes the program; got a {kind} at {at}. Take it out of "
            "params, into apply_fn."
        ) from None
