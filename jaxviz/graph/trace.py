"""Tracing a model to its program: once, for all that name layers, cut, count and rewrite.

A model's Python runs once for a function, the shapes and dtypes of its arguments and the settings
under which JAX traces (precision, 64 bits, named axes, ...). What comes of it is remembered, with
all that is found out about it (`facts.fact`). As with `jax.jit`, a function that closes over other
values later is the same function: make a new one, or hand the values over as params.
"""

import dataclasses
import functools
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxviz.calls.arrays import is_jax
from jaxviz.calls.models import failed, returned
from jaxviz.graph.called import SEARCH
from jaxviz.graph.equations import closed_function, made
from jaxviz.graph.interpreter import CUSTOM, EXPANDED, Program, build, is_flat
from jaxviz.graph.names import naming, under_names


class Said(NamedTuple):
    """On which axis a model says that channels are.

    Attributes:
      inputs: Of x, or None.
      inside: Of values inside that have as many axes as x, or None. A twin of other inputs has the
        word of the model that it is made of.
    """

    inputs: int | None
    inside: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A model's program, with what turns its flat values back into trees.

    Attributes:
      program: The operations.
      params: The tree of params, as numbered values.
      x: The tree of x, as numbered values.
      outputs: The tree of outputs, as numbered values.
      channels: Which axes the model says have the channels.
      remade: Where some leaves of x are whole numbers and others not: makes `whole`.
      facts: What has been found out about it, for `facts.fact`.
    """

    program: Program
    params: Any
    x: Any
    outputs: Any
    channels: Said
    remade: Callable[[], "Traced"] | None = dataclasses.field(default=None, kw_only=True)
    facts: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def whole(self) -> "Traced":
        """The same with all of x reaching what it reaches: what layers are named and cut by.

        Rules are for what is explained, and where there are floating numbers that is they alone:
        token ids, masks and times beside them are given, as the params are.
        """
        return self if self.remade is None else self.remade()


class Model:
    """What is remembered of a model for arguments of some shapes.

    Attributes:
      shape: The outputs' shapes and dtypes, a tree of `jax.ShapeDtypeStruct`.
    """

    def __init__(self, closed: Any, shape: Any, structure: Any, num_params: int, channels: Said):
        self.shape, self._channels = shape, channels
        self._closed, self._structure, self._num_params = closed, structure, num_params

    @functools.cached_property
    def as_written(self) -> Traced:
        """Its program, `remat`, scans and all."""
        return self._traced(flat=False)

    @functools.cached_property
    def flat(self) -> Traced:
        """Its program without `remat`, which changes memory and no number, all layers in a row:
        scans over layers are written out turn by turn."""
        same = is_flat(self.as_written.program)
        return self.as_written if same else self._traced(flat=True)

    def plain(self, flat: bool = False) -> Traced:
        """Its program as it is computed, whatever derivatives it gives to functions of its own."""
        return self._plain_flat if flat else self._plain

    @functools.cached_property
    def _plain(self) -> Traced:
        return self._traced(False, plain=True) if _customs(self.as_written) else self.as_written

    @functools.cached_property
    def _plain_flat(self) -> Traced:
        return self._traced(True, plain=True) if _customs(self.flat) else self.flat

    @functools.cached_property
    def size(self) -> int:
        """Bytes of all that its operations make, all turns of a scan, one of other loops."""
        return made(self._closed)

    def _traced(self, flat: bool, whole: bool = False, plain: bool = False) -> Traced:
        jaxpr = self._closed.jaxpr
        is_x = [i >= self._num_params for i in range(len(jaxpr.invars))]
        moves = [
            x and jnp.issubdtype(v.aval.dtype, jnp.inexact)
            for x, v in zip(is_x, jaxpr.invars, strict=True)
        ]
        explained = is_x if whole or not any(moves) else moves
        held = [not x for x in is_x] if flat else []
        program = build(jaxpr, self._closed.consts, explained, flat=flat, held=held, plain=plain)
        params, x = jax.tree.unflatten(self._structure, program.inputs)
        outputs = jax.tree.unflatten(jax.tree.structure(self.shape), program.outputs)
        remade = None if explained == is_x else functools.partial(self._traced, flat, True, plain)
        return Traced(program, params, x, outputs, self._channels, remade=remade)

    def __call__(self, params: Any, x: Any) -> Any:
        """The model run, without running its Python again."""
        outputs = closed_function(self._closed)(*jax.tree.leaves((params, x)))
        return jax.tree.unflatten(jax.tree.structure(self.shape), outputs)


def _customs(traced: Traced) -> bool:
    """Whether `build` does something else of it where it is to be `plain`."""

    def inside(nodes):
        return any(
            inside(node.members)
            or any(inside(body.nodes) for body in node.bodies)
            or (bool(node.bodies) and node.equation.primitive.name in CUSTOM)
            or node.kind == EXPANDED
            or any(caller.params.get("name") == SEARCH for caller in node.callers)
            for node in nodes
        )

    return inside(traced.program.nodes)


_MOST = 128  # models and shapes; a program takes some hundred kilobytes

# By what stands for the settings of JAX that shape a trace, models by function and shapes. JAX
# keeps the former, so that `jax.clear_caches()` drops all.
_settings = jax.jit(lambda: None)
_known: Any = weakref.WeakKeyDictionary()


def model(apply_fn: Callable, params: Any, x: Any) -> Model:
    """`apply_fn` as it is for arguments of these shapes, traced the first time.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree of arrays or shapes.
      x: Any pytree of arrays or shapes.

    Returns:
      A `Model`, the same for an equal function and the same shapes, dtypes and settings. One that
      closes over values under the caller's `jit`, `grad` or `vmap` belongs to that call, and is not
      remembered. Memory is bounded: the oldest of 128 is forgotten, and one whose function is gone.

    Raises:
      ValueError, TypeError: The model's own, in the name of the public function called.
    """
    models, key = _place(apply_fn, params, x)
    found = models.get(key)
    if found is not None:
        # The last one used goes last; another thread may have done it already.
        if models.pop(key, None) is not None:
            models[key] = found
        return found
    closed, shape = _traced(apply_fn, params, x)
    structure, num_params = key[1], len(jax.tree.leaves(params))
    found = Model(closed, shape, structure, num_params, declared_channels(apply_fn))
    if not any(isinstance(c, Tracer) for c in closed.consts):
        models[key] = found
        for oldest in list(models)[:-_MOST]:
            models.pop(oldest, None)
    return found


def remembered(apply_fn: Callable, params: Any, x: Any) -> Model | None:
    """What `model` has found for these arguments before, if it has kept it."""
    models, key = _place(apply_fn, params, x)
    return models.get(key)


def _place(apply_fn: Callable, params: Any, x: Any) -> tuple[dict, tuple]:
    """The models of the settings of JAX, and the key of one among them."""
    leaves, structure = jax.tree.flatten((params, x))
    avals = tuple([a.aval if is_jax(type(a)) else jax.typeof(a) for a in leaves])
    with under_names():
        settings = _settings.trace().jaxpr
    return _known.setdefault(settings, {}), (_weak(apply_fn), structure, avals)


def declared_channels(apply_fn: Any) -> Said:
    """What a model says of its channels, or the model that it is made of."""
    inputs, said = None, False
    while not hasattr(apply_fn, "inside_axis"):  # as what was declared itself has
        if not said and hasattr(apply_fn, "channel_axis"):  # a twin, or a tail
            inputs, said = apply_fn.channel_axis, True
        if not hasattr(apply_fn, "apply_fn"):
            return Said(inputs, None)
        apply_fn = apply_fn.apply_fn
    return Said(inputs if said else apply_fn.channel_axis, apply_fn.inside_axis)


def _traced(apply_fn, params, x):
    def run(params, x):
        try:
            outputs = apply_fn(params, x)
        except Exception as error:  # the model's own, of whatever kind
            raise failed(apply_fn, params, x, error) from error
        return returned(apply_fn, outputs)

    linen = "flax.linen" in sys.modules
    with naming():
        found = jax.make_jaxpr(run, return_shape=True)(params, x)
    if not linen and "flax.linen" in sys.modules:  # imported by the model itself: not heard yet
        return _traced(apply_fn, params, x)
    return found


def _weak(apply_fn: Callable) -> Any:
    """A function held weakly: closures may hold much, and die with the call that made them."""
    is_function = isinstance(apply_fn, types.FunctionType)
    return weakref.ref(apply_fn, _forget) if is_function else apply_fn


def _forget(reference: Any) -> None:
    for models in list(_known.values()):
        for key in list(models):
            if key[0] is reference:
                models.pop(key, None)


def trace(apply_fn: Callable, params: Any, x: Any, *, flat: bool = True) -> Traced:
    """The program of `apply_fn(params, x)`, from shapes alone; remembered (`model`).

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree of arrays or shapes.
      x: Any pytree of arrays or shapes.
      flat: Whether to inline `remat` and write out scans over layers.

    Returns:
      A `Traced`, in which all of x moves; for what is explained of it there is `Model`.
    """
    found = model(apply_fn, params, x)
    return (found.flat if flat else found.as_written).whole
