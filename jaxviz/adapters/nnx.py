"""Flax NNX modules as pure functions whose layers have names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxviz.adapters.calls import arguments, tagging
from jaxviz.calls.public import public


@dataclasses.dataclass(frozen=True)
class NNXApply:
    """`(params, x) -> outputs` of an NNX module; equal for modules of equal structure."""

    graph: Any
    paths: tuple  # of the variables, as `nnx.merge` takes them

    def __hash__(self) -> int:
        try:
            return hash(self.graph)
        except TypeError:  # a module that keeps a dict or a mutable record of settings
            return hash(NNXApply)

    def __call__(self, params: Any, x: Any) -> Any:
        # A copy, for a merged module shares its variables with the states that it is made of: what
        # a call writes (counters, caches, sown values) would change the caller's params.
        module = nnx.merge(self.graph, _state(self.paths, params), copy=True)
        module.eval()
        for path, part in nnx.iter_modules(module):
            part.__class__ = tagging(type(part))
            object.__setattr__(part, "_jaxviz_path", "/".join(map(str, path)))
        given, named = arguments(module, x)
        return module(*given, **named)


@public()
def from_nnx(module: nnx.Module) -> tuple[NNXApply, dict[str, Any]]:
    """An NNX module as the pair that every explanation takes: a pure function and its params.

    Args:
      module: Any `nnx.Module` called with one argument. It is read, never changed: what a call
        writes (statistics, counters, caches, sown values) goes to a copy, and is lost.

    Returns:
      `(apply_fn, params)`, with `apply_fn(params, x)` the module's output in inference mode (a copy
      is set to `eval()`: no dropout, running statistics), and params `{"params": ..., "state":
      ...}`: the `nnx.Param`s, and all else that it holds, as they are now. After more training call
      it again; nothing compiles again. Nested dicts of the same arrays, as a checkpoint restores
      them, will do for either.

    Raises:
      TypeError: `module` is no NNX module.
      ValueError: When `apply_fn` is called with other params than these.

    Example:
      >>> apply_fn, params = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> apply_fn(params, jnp.ones((1, 2))).shape
      (1, 3)
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"from_nnx: module must be a flax.nnx.Module; got {type(module).__name__}. A Linen "
            "module needs no adapter: pass `module.apply` and its variables."
        )
    graph, params, state = nnx.split(module, nnx.Param, ...)
    paths = tuple(path for part in (params, state) for path, _ in nnx.to_flat_state(part))
    # Variables of our own, for the module's change as it is trained.
    own = lambda a: jnp.array(a) if isinstance(a, np.ndarray) else a
    return NNXApply(graph, paths), jax.tree.map(own, {"params": params, "state": state})


def _state(paths: tuple, params: Any) -> nnx.State:
    """A module's whole state, variables found by name: `nnx.merge` goes by their order alone."""
    wanted = {tuple(map(str, path)): path for path in paths}

    def found(tree, path=()):
        if path in wanted or not isinstance(tree, Mapping):
            yield path, tree
            return
        for key, part in tree.items():
            yield from found(part, (*path, str(key)))

    if isinstance(params, Mapping) and set(params) == {"params", "state"}:
        given = {path: a for part in params.values() for path, a in found(part)}
        if given.keys() == wanted.keys():
            return nnx.from_flat_state([(wanted[path], a) for path, a in given.items()])
        missing, unknown = wanted.keys() - given.keys(), given.keys() - wanted.keys()
        came = " and ".join(
            f"{word} {', '.join(sorted('/'.join(path) for path in names)[:3])}"
            for word, names in (("none for", missing), ("unknown", unknown))
            if names
        )
    elif isinstance(params, Mapping):
        came = f"{type(params).__name__} of {', '.join(map(repr, list(params)[:4])) or 'nothing'}"
    else:
        came = type(params).__name__
    raise ValueError(
        'from_nnx: params of its apply_fn must be the {"params": ..., "state": ...} that it '
        f"returns; got {came}. Put what you have into the module, `nnx.update(module, restored)`, "
        "and call `apply_fn, params = from_nnx(module)`."
    )
