"""Keras models on the JAX backend as pure functions whose layers have Keras' names."""

import contextlib
import contextvars
import dataclasses
import functools
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.adapters.calls import (
    arguments,
    framework,
    has_groups,
    other,
    takes,
    unlike,
    wrong_params,
)
from jaxviz.adapters.keras_alike import made_of
from jaxviz.calls.public import public
from jaxviz.graph.names import mark, tag

_CURE = (
    "After training or loading weights: `apply_fn, params = from_keras(model)`, which compiles "
    "nothing again."
)


@dataclasses.dataclass(frozen=True)
class KerasApply:
    """`(params, x) -> outputs` of a Keras model; equal for models that compute the same."""

    model: Any = dataclasses.field(compare=False, repr=False)
    variables: Sequence[Any] = dataclasses.field(compare=False, repr=False)  # trained, then kept
    made_of: Any = dataclasses.field(repr=False)  # what the model computes by
    trained: tuple[str, ...] = dataclasses.field(repr=False)  # paths of its variables, in its order
    kept: tuple[str, ...] = dataclasses.field(repr=False)

    def __call__(self, params: Any, x: Any) -> Any:
        keras, model = _keras(), self.model
        values = _values(params, self.trained, self.kept)
        # A functional model takes its inputs as one argument; `call` of the user's own class may
        # have several, and need not have the flag.
        whole = _is_functional(model)
        args, named = ((x,), {}) if whole else arguments(model.call, x)
        if whole or takes(model.call, "training"):
            named = {**named, "training": False}
        # Called, for what a layer does to its inputs by its policy is no part of `call`; in its own
        # scope, which it then does not open again: names of what it holds begin below it.
        scope = model._open_name_scope()
        state = keras.StatelessScope(list(zip(self.variables, values, strict=True)))
        with state, _named_layers(), scope, mark(""):
            return model(*args, **named)


@public()
def from_keras(model: Any) -> tuple[KerasApply, dict[str, Any]]:
    """A Keras 3 model as the pair that every explanation takes: a pure function and its params.

    Layers have Keras' names, inside models and layers by path (`backbone/conv1`,
    `attention/query`). The call is for inference: `training=False`, dropout off, running
    statistics. What the model returns is explained: where its last activation is a softmax these
    are probabilities, whose gradients vanish where the model is sure. For its logits make it with
    `classifier_activation=None` (`keras.applications`), or give its last layer the activation
    `keras.activations.linear`.

    Args:
      model: Any built `keras.Model`, or layer, on the JAX backend (`KERAS_BACKEND=jax`, set before
        Keras is imported). It is read, never changed. Channels are where its layers have them.

    Returns:
      `(apply_fn, params)`, with params `{"params": {path: array}, "state": {path: array}}`: the
      trained variables, and all others, as they are now. After more training call it again;
      nothing compiles again, neither for the same model, nor for another one that computes the
      same and whose layers have the same names (built again, cloned, or loaded from a file): of one
      configuration, and where classes are your own, of equal attributes. An `x` for a model of
      several inputs is a list, or a dict by their names; for a class of your own a tuple
      is positional arguments, where its `call` takes that many, and a dict is arguments by name.

    Raises:
      TypeError: `model` is no Keras model or layer.
      ValueError: It, or a layer that its call reaches, is not built, or Keras runs on another
        backend; `apply_fn` is called with other params than these.

    Example:
      >>> apply_fn, params = from_keras(model)  # doctest: +SKIP
      >>> saliency(apply_fn, params, images)  # doctest: +SKIP
    """
    keras = _keras()
    if not isinstance(model, keras.Layer):
        raise other(
            "from_keras",
            "model must be a keras.Model or a keras.Layer",
            model,
            "Any function `(params, x) -> outputs` needs no adapter.",
        )
    if (backend := keras.backend.backend()) != "jax":
        raise ValueError(
            f"from_keras: Keras must run on JAX; its backend is {backend}. Set the environment "
            'variable KERAS_BACKEND to "jax" before Keras is imported, and load the model again.'
        )
    if without := _unbuilt(keras, model):
        raise ValueError(
            f"from_keras: model must be built, so that it has its variables; {without!r} is not. "
            "Call it once on a batch, or `model.build((None, ...))`."
        )
    groups = (model.trainable_variables, model.non_trainable_variables)
    # Copies, for Keras gives its own arrays away: `fit`, and even `predict`, deletes them.
    trained, kept = ({p: jnp.array(v.value) for p, v in _by_path(group)} for group in groups)
    variables, record = [*groups[0], *groups[1]], made_of(keras, model)
    apply_fn = KerasApply(model, variables, record, tuple(trained), tuple(kept))
    return apply_fn, {"params": trained, "state": kept}


def _keras() -> Any:
    return framework("from_keras", "keras", "keras")


def _by_path(variables: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Variables by their path; Keras lets several have the same, and counts its seeds' on."""
    taken: dict[str, int] = {}
    for variable in variables:
        path = re.sub(r"\bseed_generator_\d+/", "seed_generator/", variable.path)
        count = taken[path] = taken.get(path, -1) + 1
        yield (f"{path}#{count}" if count else path), variable


def _values(params: Any, trained: Sequence[str], kept: Sequence[str]) -> list:
    """The values of a model's variables, in its order."""
    if not has_groups(params):
        raise wrong_params("from_keras", params, _CURE)
    groups = (params["params"], params["state"])
    if not all(isinstance(group, Mapping) for group in groups):
        found = " and ".join(type(group).__name__ for group in groups)
        raise wrong_params("from_keras", params, _CURE, found)
    both = {**groups[0], **groups[1]}
    if found := unlike((*trained, *kept), both):
        raise wrong_params("from_keras", params, _CURE, found)
    return [both[path] for path in (*trained, *kept)]


def _is_functional(model: Any) -> bool:
    keras = _keras()
    return isinstance(model, keras.Sequential) or type(model).__name__ == "Functional"


def _unbuilt(keras: Any, model: Any) -> str | None:
    """The name of a model, or of a layer in one none of whose layers have their variables yet.

    Where some have, the others may be those that the call does not reach.
    """
    if not model.built:
        return model.name
    inside = model._flatten_layers(include_self=False)
    wanting = [one for one in inside if type(one).build is not keras.Layer.build]
    return wanting[0].name if wanting and not any(one.built for one in wanting) else None


_ROOT = ("",)
# The layers being called, outermost first; None outside of an `apply_fn` of ours.
_calls: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar(
    "jaxviz_keras", default=None
)


@dataclasses.dataclass
class _Hearing:
    """Who listens to Keras' layers."""

    lock: Any = dataclasses.field(default_factory=threading.Lock)
    count: int = 0  # of calls of ours under way, in all threads
    ours: Any = None  # what stands for `Layer.__call__`, or None
    theirs: Any = None


_hearing = _Hearing()


@contextlib.contextmanager
def _named_layers() -> Iterator[None]:
    """Within it layers that are called name their outputs by their place in the model.

    Keras has no hook for it, and a model's layers cannot be swapped for others without changing the
    user's model: while a call of ours is under way, those of all layers pass through here, and are
    Keras' own in any other thread. Where somebody has replaced `Layer.__call__` meanwhile, ours
    stays below theirs.
    """
    layer = _keras().Layer
    with _hearing.lock:
        _hearing.count += 1
        if _hearing.ours is None:
            _hearing.theirs, _hearing.ours = layer.__call__, _naming(layer, layer.__call__)
            layer.__call__ = _hearing.ours
    before = _calls.set(_ROOT)
    try:
        yield
    finally:
        _calls.reset(before)
        with _hearing.lock:
            _hearing.count -= 1
            if not _hearing.count and layer.__call__ is _hearing.ours:
                layer.__call__, _hearing.ours, _hearing.theirs = _hearing.theirs, None, None


def _naming(layer: Any, call: Any) -> Any:
    """`Layer.__call__`, which names what comes of it."""

    @functools.wraps(call)
    def called(self, *args, **kwargs):
        around = _calls.get()
        if around is None:
            return call(self, *args, **kwargs)
        names = () if around is _ROOT else (*around, self.name)
        if not self.built and type(self).build is not layer.build:
            error = ValueError(
                f"from_keras: model must be built, all of it; layer {'/'.join(names)!r} is "
                "not, so its weights would be drawn now. Call the model once on a batch."
            )
            error._keras_call_info_injected = True  # type: ignore[attr-defined]  # none of Keras'
            raise error
        token = _calls.set(names)
        try:
            outputs = call(self, *args, **kwargs)  # opens the scope of its name
        finally:
            _calls.reset(token)
        is_traced = all(isinstance(a, jax.Array) for a in jax.tree.leaves(outputs))
        return (
            tag("/".join(names), type(self).__name__, outputs) if names and is_traced else outputs
        )

    return called
