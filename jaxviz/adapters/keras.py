"""Keras models on the JAX backend as pure functions whose layers have Keras' names."""

import contextlib
import contextvars
import dataclasses
import functools
import json
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
from jaxviz.calls.public import public
from jaxviz.graph.names import tag

_CURE = (
    "After training or loading weights: `apply_fn, params = from_keras(model)`, which compiles "
    "nothing again."
)


@dataclasses.dataclass(frozen=True)
class KerasApply:
    """`(params, x) -> outputs` of a Keras model; equal for models of equal configuration."""

    model: Any = dataclasses.field(compare=False, repr=False)
    made_of: Any  # what the model computes by: its configuration, or itself
    trained: tuple[str, ...]  # paths of its variables, in its order
    kept: tuple[str, ...]

    def __call__(self, params: Any, x: Any) -> Any:
        trained, kept = _values(params, self.trained, self.kept)
        # A functional model takes its inputs as one argument; `call` of the user's own class may
        # have several, and need not have the flag.
        whole = _is_functional(self.model)
        args, named = ((x,), {}) if whole else arguments(self.model.call, x)
        if whole or takes(self.model.call, "training"):
            named = {**named, "training": False}
        with _named_layers():
            outputs, _ = self.model.stateless_call(trained, kept, *args, **named)
        return outputs


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
      nothing compiles again, neither for the same model, nor for another one of Keras' own layers
      and the same configuration, names included (built again, or loaded from a file). An `x` for a
      model of several inputs is a list, or a dict by their names; for a class of your own a tuple
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
    if not model.built:
        raise ValueError(
            f"from_keras: model must be built, so that it has its variables; {model.name!r} is "
            "not. Call it once on a batch, or `model.build((None, ...))`."
        )
    groups = (model.trainable_variables, model.non_trainable_variables)
    # Copies, for Keras gives its own arrays away: `fit`, and even `predict`, deletes them.
    trained, kept = ({p: jnp.array(v.value) for p, v in _by_path(group)} for group in groups)
    apply_fn = KerasApply(model, _made_of(keras, model), tuple(trained), tuple(kept))
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


def _values(params: Any, trained: Sequence[str], kept: Sequence[str]) -> tuple[list, list]:
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
    return [both[path] for path in trained], [both[path] for path in kept]


def _is_functional(model: Any) -> bool:
    keras = _keras()
    return isinstance(model, keras.Sequential) or type(model).__name__ == "Functional"


class _Same:
    """A model of the user's own classes: equal to itself alone, for its fields may do anything."""

    def __init__(self, model: Any):
        self.model = model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.model is self.model

    def __hash__(self) -> int:
        return id(self.model)


def _made_of(keras: Any, model: Any) -> Any:
    """What two models that compute the same have in common."""
    layers = [model, *model._flatten_layers(recursive=True, include_self=False)]
    if all(type(layer).__module__.startswith("keras.") for layer in layers):
        try:
            record = keras.saving.serialize_keras_object(model)
            record.pop("compile_config", None)
            return _with_plain_inputs(json.dumps(record, sort_keys=True))
        except (TypeError, ValueError, NotImplementedError):  # holds what has no configuration
            pass
    return _Same(model)


def _with_plain_inputs(record: str) -> str:
    """The same configuration whatever Keras called inputs that nobody named."""
    names: dict[str, str] = {}
    return re.sub(
        r'"(?:input_layer|keras_tensor)(?:_\d+)?"',
        lambda found: names.setdefault(found[0], f'"input#{len(names)}"'),
        record,
    )


# The layers being called, outermost first; None outside of an `apply_fn` of ours.
_calls: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar(
    "jaxviz_keras", default=None
)
_lock = threading.Lock()


@contextlib.contextmanager
def _named_layers() -> Iterator[None]:
    """Within it layers that are called name their outputs by their place in the model."""
    _listen(_keras())
    before = _calls.set(())
    try:
        yield
    finally:
        _calls.reset(before)


@functools.cache
def _listen(keras: Any) -> None:
    """Has Keras' layers name their outputs where an `apply_fn` of ours calls them.

    Keras has no hook for it, and a model's layers cannot be swapped for others without changing the
    user's model: calls pass through here, and are Keras' own everywhere else.
    """
    with _lock:
        call = keras.Layer.__call__

        @functools.wraps(call)
        def called(self, *args, **kwargs):
            around = _calls.get()
            if around is None:
                return call(self, *args, **kwargs)
            names = (*around, self.name)
            if not self.built and type(self).build is not keras.Layer.build:
                raise ValueError(
                    f"from_keras: model must be built, all of it; layer {'/'.join(names)!r} is "
                    "not, so its weights would be drawn now. Call the model once on a batch."
                )
            token = _calls.set(names)
            try:
                outputs = call(self, *args, **kwargs)  # opens the scope of its name
            finally:
                _calls.reset(token)
            is_traced = all(isinstance(a, jax.Array) for a in jax.tree.leaves(outputs))
            return tag("/".join(names), type(self).__name__, outputs) if is_traced else outputs

        keras.Layer.__call__ = called
