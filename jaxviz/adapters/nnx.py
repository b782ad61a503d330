"""Flax NNX modules as pure functions whose layers have names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxviz.adapters.calls import (
    arguments,
    for_inference,
    has_groups,
    misfit,
    other,
    tagging,
    takes,
    unlike,
    wrong_params,
)
from jaxviz.calls.options import text
from jaxviz.calls.public import public

_CURE = (
    "Put what you have into the module, `nnx.update(module, restored)`, and call `apply_fn, params "
    "= from_nnx(module)`."
)
_REST = "Hand the rest over once: `from_nnx(module, mask=...)`, say."
# Flax's bridge to Linen takes all attributes of its modules for variables, but those named so.
_PATH = "to_nnx__jaxviz_path"


@dataclasses.dataclass(frozen=True)
class NNXApply:
    """`(params, x) -> outputs` of an NNX module; equal for modules of equal structure."""

    graph: Any = dataclasses.field(repr=False)
    paths: tuple = dataclasses.field(repr=False)  # of the variables, as `nnx.merge` takes them
    method: str = "__call__"
    call: Any = None  # what the module is called with after x, as a graph

    def __hash__(self) -> int:
        try:
            return hash((self.graph, self.method, self.call))
        except TypeError:  # a module that keeps a dict or a mutable record of settings
            return hash(NNXApply)

    def __call__(self, params: Any, x: Any) -> Any:
        # A copy, for a merged module shares its variables with the states that it is made of: what
        # a call writes (counters, caches, sown values) would change the caller's params.
        state, given = _parts(self.paths, self.call, params)
        module = nnx.merge(self.graph, state, copy=True)
        module.eval()
        for path, part in nnx.iter_modules(module):
            part.__class__ = tagging(type(part), where=_PATH)
            object.__setattr__(part, _PATH, "/".join(map(str, path)))
        call = module if self.method == "__call__" else getattr(module, self.method)
        args, named = ((), {}) if self.call is None else nnx.merge(self.call, given, copy=True)
        named = {**_made(call, named), **for_inference(call, args, named)}
        args, named = arguments(call, x, args, named)
        misfit("from_nnx", call, args, named, _REST)
        return call(*args, **named)


def _module(who: str, option: str, value: Any) -> nnx.Module:
    if isinstance(value, nnx.Module):
        return value
    otherwise = "Any function `(params, x) -> outputs` needs no adapter."
    raise other(who, f"{option} must be a flax.nnx.Module", value, otherwise)


@public(
    module=_module, method=text, kwargs=lambda who, option, value: value
)  # they are the module's own
def from_nnx(
    module: nnx.Module, *args: Any, method: str = "__call__", **kwargs: Any
) -> tuple[NNXApply, dict[str, Any]]:
    """An NNX module as the pair that every explanation takes: a pure function and its params.

    The module is called in inference mode: a copy is set to `eval()` (no dropout, running
    statistics), and the flags that its call has (`deterministic`, `train`, `training`, ...) are
    set unless they stand in `kwargs`. A call that needs `rngs` (or `rng`, `key`) gets fixed ones.

    Args:
      module: Any `nnx.Module`. It is read, never changed: what a call writes (statistics, counters,
        caches, sown values) goes to a copy, and is lost.
      *args: What its call takes after the input. Arrays, caches and `nnx.Rngs` among them are
        copied into params: others of the same shapes do not compile again.
      method: The name of the method to call.
      **kwargs: The same, by name.

    Returns:
      `(apply_fn, params)`, with `apply_fn(params, x)` the module's output, and params `{"params":
      ..., "state": ...}`: the `nnx.Param`s, and all else that it holds, as they are now; and
      `"call"`, the arrays of further arguments, where there are any. An `x` that is a tuple is
      positional arguments, where the call takes that many; a dict is arguments by name, where its
      call has those names. After more training call it again; nothing compiles again. Nested dicts
      of the same arrays, as a checkpoint restores them, will do for params.

    Raises:
      TypeError: `module` is no NNX module, or has no such method.
      ValueError: When `apply_fn` is called with other params than these.

    Example:
      >>> apply_fn, params = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> apply_fn(params, jnp.ones((1, 2))).shape
      (1, 3)
    """
    if not callable(getattr(module, method, None)):
        has = "no such method" if method != "__call__" else "no __call__"
        raise TypeError(
            f"from_nnx: method must name a method of the module; got {method!r}, and "
            f"{type(module).__name__} has {has}. Pass method=... with one that it has."
        )
    graph, params, state = nnx.split(module, nnx.Param, ...)
    paths = tuple(path for part in (params, state) for path, _ in nnx.to_flat_state(part))
    found, call = {"params": params, "state": state}, None
    if args or kwargs:
        call, given = nnx.split((args, kwargs))
        found |= {"call": given} if jax.tree.leaves(given) else {}
    # Variables of our own, for the module's change as it is trained.
    own = lambda a: jnp.array(a) if isinstance(a, np.ndarray) else a
    return NNXApply(graph, paths, method, call), jax.tree.map(own, found)


def _made(call, given):
    """The random numbers that a call cannot do without; the same in each call."""
    make = {"rngs": lambda: nnx.Rngs(0), "rng": lambda: jax.random.key(0)}
    make["key"] = make["rng"]
    return {
        name: new()
        for name, new in make.items()
        if name not in given and takes(call, name, needs=True)
    }


def _parts(paths: tuple, call: Any, params: Any) -> tuple[Any, Any]:
    """The states of the module and of what it is called with."""
    if not isinstance(params, Mapping) or "call" not in params:
        return _state(paths, params), nnx.State({})
    return _state(paths, {k: v for k, v in params.items() if k != "call"}), params["call"]


def _state(paths: tuple, params: Any) -> nnx.State:
    """A module's whole state, variables found by name: `nnx.merge` goes by their order alone."""
    wanted = {tuple(map(str, path)): path for path in paths}

    def found(tree, path=()):
        if path in wanted or not isinstance(tree, Mapping):
            yield path, tree
            return
        for key, part in tree.items():
            yield from found(part, (*path, str(key)))

    if not has_groups(params):
        raise wrong_params("from_nnx", params, _CURE)
    given = {path: a for part in params.values() for path, a in found(part)}
    if given.keys() != wanted.keys():
        came = unlike(*({"/".join(path) for path in paths} for paths in (wanted, given)))
        raise wrong_params("from_nnx", params, _CURE, came)
    return nnx.from_flat_state([(wanted[path], a) for path, a in given.items()])
