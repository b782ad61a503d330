"""Calls with arrays on a mesh whose axes are explicit, as those of `jax.make_mesh` are.

There each operation must say how its result lies, which neither a model's gradient nor what is made
of it does. The compiler finds that out by itself where the axes are automatic: the same arrays on
the same devices, seen so for the time of a call, and what comes out seen as what went in.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding


def on_automatic_axes(function: Callable[[], Any], arguments: MutableMapping[str, Any]) -> Any:
    """`function()`, which reads `arguments`; those on explicit axes are replaced while it runs.

    Under trace nothing is done: shardings are types there, `jax.sharding.auto_axes` changes them.
    """
    # What is read once, as batches are, is no container.
    containers = {k: v for k, v in arguments.items() if not isinstance(v, Iterator)}
    try:
        flat = {name: jax.tree.flatten(value) for name, value in containers.items()}
    except ValueError:  # a dict's keys have no order: the function says so in its own words
        return function()
    leaves = [leaf for leaves, _ in flat.values() for leaf in leaves]
    # Nets have hundreds of leaves: no call of a function for each.
    arrays = [a for a in leaves if isinstance(a, jax.Array) and not isinstance(a, Tracer)]
    named = [a for a in arrays if type(a.sharding) is NamedSharding]
    if not any(map(_is_explicit, named)) and not has_explicit_axes():
        return function()
    if any(isinstance(leaf, Tracer) for leaf in leaves) or isinstance(jnp.zeros(()), Tracer):
        return function()
    before = {}  # from a mesh of automatic axes to what it was

    def automatic(mesh):
        made = _automatic(mesh)
        before[made] = mesh
        return made

    def put(leaf):
        mesh = automatic(leaf.sharding.mesh)
        return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))

    def back(leaf):
        sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
        if not isinstance(sharding, NamedSharding) or sharding.mesh not in before:
            return leaf
        return jax.device_put(leaf, NamedSharding(before[sharding.mesh], sharding.spec))

    with contextlib.ExitStack() as stack:
        if has_explicit_axes():
            stack.enter_context(jax.set_mesh(automatic(jax.sharding.get_mesh())))
        for name, (leaves, structure) in flat.items():
            if any(map(_is_explicit, leaves)):
                moved = [put(leaf) if _is_explicit(leaf) else leaf for leaf in leaves]
                arguments[name] = jax.tree.unflatten(structure, moved)
        result = function()
    return jax.tree.map(back, result)


def has_explicit_axes() -> bool:
    """Whether shardings are types here."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def _is_explicit(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return False
    sharding = leaf.sharding
    return isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types


@functools.lru_cache(maxsize=16)
def _automatic(mesh: Mesh) -> Mesh:
    """The same devices, all explicit axes automatic."""
    kinds = [AxisType.Auto if k == AxisType.Explicit else k for k in mesh.axis_types]
    return Mesh(mesh.devices, mesh.axis_names, axis_types=tuple(kinds))
