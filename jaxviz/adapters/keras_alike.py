"""What two Keras models that compute the same have in common, to be compared and hashed."""

import functools
import json
import re
import types
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def made_of(keras: Any, model: Any) -> Any:
    """Equal for models that compute the same from their variables; names are part of it.

    Keras' own layers compute by their configuration and the functions that they hold; layers of the
    user's own classes by all their attributes, but those that any layer has.
    """
    try:
        return _Told(keras, model)(model)
    except (TypeError, ValueError, NotImplementedError):  # it holds what has no configuration
        return Same(model)


class Same:
    """What may do anything: equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class _Told:
    """Walks what a model holds; a thing met again is told by its number."""

    def __init__(self, keras: Any, model: Any):
        self.keras = keras
        self.known = {id(v) for v in model.variables}  # their values are params
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no other thing gets the id of one that is gone

    def __call__(self, value: Any) -> Any:
        keras = self.keras
        if isinstance(value, keras.Variable):
            return ("variable", value.path) if id(value) in self.known else Same(value)
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            array = np.asarray(value)
            return type(value), array.shape, str(array.dtype), array.tobytes()
        if isinstance(value, keras.Layer | Mapping | list | tuple | set | types.FunctionType):
            if id(value) in self.numbers:
                return "again", self.numbers[id(value)]
            self.numbers[id(value)] = len(self.numbers)
            self.kept.append(value)
            return type(value), self.inside(value)
        if isinstance(value, keras.random.SeedGenerator):
            return "seeds", self(value.state)
        if isinstance(value, functools.partial):
            return "partial", self(value.func), self(value.args), self(value.keywords)
        if isinstance(value, types.MethodType):
            return "method", self(value.__func__), self(value.__self__)
        if _is_keras_own(value) and not isinstance(value, type) and hasattr(value, "get_config"):
            return type(value), _configuration(keras, value)
        try:
            hash(value)
        except TypeError:
            return Same(value)
        return type(value), value

    def inside(self, value: Any) -> tuple | frozenset:
        if isinstance(value, self.keras.Layer):
            names = sorted(vars(value).keys() - _bookkeeping(self.keras))
            if not _is_keras_own(value):
                held = tuple((name, self(vars(value)[name])) for name in names)
                return value.name, value.dtype_policy.name, value.autocast, held
            functions = [a for a in map(vars(value).get, names) if isinstance(a, _FUNCTIONS)]
            parts = (*functions, *value._flatten_layers(include_self=False, recursive=False))
            return _configuration(self.keras, value), tuple(map(self, parts))
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            given = (value.__defaults__, value.__kwdefaults__, cells)
            return value.__code__, Same(value.__globals__), tuple(map(self, given))
        if isinstance(value, Mapping):
            return tuple((self(k), self(v)) for k, v in value.items())
        return frozenset(map(self, value)) if isinstance(value, set) else tuple(map(self, value))


_FUNCTIONS = types.FunctionType | functools.partial | types.MethodType


def _is_keras_own(value: Any) -> bool:
    return type(value).__module__.startswith("keras.")


@functools.cache
def _bookkeeping(keras: Any) -> frozenset[str]:
    """Attributes that Keras gives any layer or model, and what training adds: none computes."""
    bare = keras.Layer(name="bare"), keras.Model(name="bare")
    return frozenset(name for one in bare for name in vars(one)) | _TRAINED


_TRAINED = frozenset(
    "history optimizer _compile_config _compiled_trainable_state _epoch_iterator"
    " _eval_epoch_iterator _jax_state stop_evaluating stop_predicting stop_training".split()
)


def _configuration(keras: Any, value: Any) -> str:
    """A configuration, without what the layer was built and trained for."""

    def plain(record):
        if isinstance(record, dict):
            left = {k: v for k, v in record.items() if k not in ("build_config", "compile_config")}
            return {k: plain(v) for k, v in left.items()}
        return [plain(one) for one in record] if isinstance(record, list | tuple) else record

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody should load a lambda: nobody does
        told = json.dumps(plain(keras.saving.serialize_keras_object(value)), sort_keys=True)
    names: dict[str, str] = {}  # whatever Keras called inputs that nobody named
    return re.sub(
        r'"(?:input_layer|keras_tensor)(?:_\d+)?"',
        lambda found: names.setdefault(found[0], f'"input#{len(names)}"'),
        told,
    )
