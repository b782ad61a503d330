"""Equinox modules as pure functions of batches whose layers have names."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.adapters.calls import (
    arguments,
    for_inference,
    framework,
    has_groups,
    misfit,
    other,
    tagging_class,
    takes,
    wrong_params,
)
from jaxviz.calls.public import public
from jaxviz.graph.names import tag

_REST = "Bind the rest: a module whose call takes x alone."
_CURE = (
    "After training or restoring: `apply_fn, params = from_equinox(model)`, which compiles nothing "
    "again."
)


@dataclasses.dataclass(frozen=True)
class EquinoxApply:
    """`(params, x) -> outputs` of an Equinox module; equal for modules of equal structure."""

    structure: Any = dataclasses.field(repr=False)  # of the module
    # Its leaves that are no arrays, None for those that are.
    static: tuple = dataclasses.field(repr=False)
    arrays: Any = dataclasses.field(repr=False)  # the structure of the module with its arrays alone

    def __hash__(self) -> int:
        try:
            return hash((self.structure, self.static))
        except TypeError:  # a static field that holds a dict or a list
            return hash(EquinoxApply)

    def __call__(self, params: Any, x: Any) -> Any:
        arrays, state = _parts(self.arrays, params)
        leaves = [next(arrays) if leaf is None else leaf for leaf in self.static]
        model = _named(_eqx(), jax.tree.unflatten(self.structure, leaves), "")
        named = for_inference(model)
        if takes(model, "key"):
            named["key"] = jax.random.key(0)
        if state is not None and takes(model, "state"):
            named["state"] = state

        def one(x):
            rest = () if state is None or "state" in named else (state,)
            args, given = arguments(model, x, rest, named)
            misfit("from_equinox", model, args, given, _REST)
            outputs: Any = model(*args, **given)
            return outputs if state is None else outputs[0]

        return jax.vmap(one)(x)


@public()
def from_equinox(model: Any, state: Any = None) -> tuple[EquinoxApply, dict[str, Any]]:
    """An Equinox module as the pair that every explanation takes: a pure function and its params.

    Equinox's modules take one example; `apply_fn` takes a batch of them, by `jax.vmap`. Layers are
    named by attribute, as `layers/0/conv`. The module is called in inference mode:
    `eqx.nn.inference_mode` is set on a copy, so are the flags that its call has (`inference`,
    `deterministic`, `training`, ...), and a call with a `key` gets a fixed one. Images are `[N, C,
    H, W]`, as Equinox has them; methods of places see it by its convolutions.

    Args:
      model: Any `eqx.Module` called with one example. It is read, never changed. Functions and
        flags among its leaves belong to `apply_fn`, its arrays to params. One that takes a batch
        itself needs no adapter: `params, static = eqx.partition(model, eqx.is_array)`, and
        `apply_fn = lambda params, x: eqx.combine(params, static)(x)`.
      state: The `eqx.nn.State` that `eqx.nn.make_with_state` gave, after training, for a model that
        has one (batch normalisation, say). It is given to the call by the name `state`, or after
        `x`; what the call makes of it is lost.

    Returns:
      `(apply_fn, params)`, with `apply_fn(params, x)` the outputs of the batch, and params
      `{"params": ..., "state": ...}`: the module with its arrays alone, and the state. An `x` that
      is a tuple is positional arguments, where the call takes that many; a dict is arguments by
      name, where its call has those names. Modules of one structure give equal functions: nothing
      compiles again.

    Raises:
      TypeError: `model` is no Equinox module, or cannot be called.
      ValueError: It needs a state and got none, or the other way round; `apply_fn` is called with
        other params than these.

    Example:
      >>> import equinox as eqx
      >>> apply_fn, params = from_equinox(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
      >>> apply_fn(params, jnp.ones((1, 2))).shape
      (1, 3)
    """
    eqx = _eqx()
    if not isinstance(model, eqx.Module) or not callable(model):
        raise other(
            "from_equinox",
            "model must be an equinox.Module that can be called",
            model,
            "Any function `(params, x) -> outputs` needs no adapter.",
        )
    is_index = lambda a: isinstance(a, eqx.nn.StateIndex)
    needs = any(map(is_index, jax.tree.leaves(model, is_leaf=is_index)))
    if needs and state is None:
        raise ValueError(
            "from_equinox: a model with state needs it; got none. `model, state = "
            "eqx.nn.make_with_state(Model)(...)`, and from_equinox(model, state) after training."
        )
    if state is not None and not (needs and isinstance(state, eqx.nn.State)):
        must = "must be an eqx.nn.State" if needs else "must be None, for the model has none"
        raise ValueError(
            f"from_equinox: state {must}; got {type(state).__name__}. "
            "`eqx.nn.make_with_state(Model)(...)` gives a model and its state."
        )
    leaves, structure = jax.tree.flatten(eqx.nn.inference_mode(model))
    static = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    arrays = [jnp.asarray(leaf) if _is_array(leaf) else None for leaf in leaves]
    params = jax.tree.unflatten(structure, arrays)
    apply_fn = EquinoxApply(structure, static, jax.tree.structure(params))
    return apply_fn, {"params": params, "state": state}


def _eqx():
    return framework("from_equinox", "equinox", "equinox")


def _is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray))


def _parts(structure, params):
    """The module's arrays, in order, and its state."""
    if not has_groups(params):
        raise wrong_params("from_equinox", params, _CURE)
    leaves, given = jax.tree.flatten(params["params"])
    if given != structure:
        found = f"a {type(params['params']).__name__} of another structure"
        raise wrong_params("from_equinox", params, _CURE, found)
    return iter(leaves), params["state"]


def _named(eqx, node, path):
    """The same tree, whose modules name their outputs by their path in it."""
    children, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda a: a is not node
    )
    if structure == _LEAF:
        return node
    step = lambda keys: jax.tree_util.keystr(keys, simple=True)  # as `layers` or `0`
    parts = [
        _named(eqx, child, f"{path}/{step(keys)}" if path else step(keys))
        for keys, child in children
    ]
    node, kind = jax.tree.unflatten(structure, parts), type(node)
    # Equinox's own wrappers of functions and methods, and what ties weights, are no layers.
    is_wrapper = f"{kind.__module__}.".startswith("equinox.") and (
        not kind.__module__.startswith("equinox.nn")
    )
    is_layer = isinstance(node, eqx.Module) and not isinstance(node, eqx.nn.Shared)
    if is_layer and callable(node) and not is_wrapper:
        object.__setattr__(node, "__class__", _tagging(eqx, kind))
        object.__setattr__(node, "_jaxviz_path", path)
    return node


_LEAF = jax.tree.structure(0)


@functools.cache
def _tagging(eqx, kind):
    # The path is a field of the module's structure, so that it outlives Equinox's transformations.
    field = eqx.field(static=True, default=None)
    named = {"__annotations__": {"_jaxviz_path": Any}, "_jaxviz_path": field}

    def name(path, class_name, outputs):
        is_state = lambda a: isinstance(a, eqx.nn.State)
        outputs = jax.tree.map(_first, outputs, is_leaf=is_state)
        return tag(path, class_name, outputs, skip=eqx.nn.State)

    return tagging_class(kind, name, **named)


def _first(a):
    """The same array, whose axes that `jax.vmap` added are moved to the front, as vmap's own result
    has them: batched, this operation has its result there."""
    if not isinstance(a, jax.Array) or not jnp.issubdtype(a.dtype, jnp.inexact):
        return a
    return jax.lax.broadcast_in_dim(a, a.shape, range(a.ndim))
