"""Kinds of arguments: a whole number, a share, a word, a layer's name. What is none is refused.

A check is `(who, option, value) -> value`: it gives the value in one form (a Python number for an
array of one) or raises, in words that a newcomer understands.
"""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Check = Callable[[str, str, Any], Any]


def refused(
    who: str, option: str, must: str, value: Any, advice: str = "", kind: type = TypeError
) -> Exception:
    """The error for an argument that is not what it must be, to be raised."""
    told = f"{who}: {option} must be {must}; got {described(value)}."
    return kind(f"{told} {advice}".rstrip())


def described(value: Any) -> str:
    """A value in words: a short one as it is written, else what it is.

    Example:
      >>> described(np.ones((2, 3))), described(2.5), described(len), described([1, 2])
      ('an array of float64 of shape (2, 3)', '2.5', 'the function len', '[1, 2]')
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, range)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:56]}... ({len(text)} letters)"
    if isinstance(value, np.ma.MaskedArray):
        return f"a masked array of {value.dtype} of shape {value.shape}"
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        traced = "a traced array" if isinstance(value, Tracer) else "an array"
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return "a random key" if value.ndim == 0 else f"random keys of shape {value.shape}"
        if value.ndim == 0 and traced == "an array" and value.dtype.kind in "biufc":
            return f"{value.item()!r} ({value.dtype})"
        return f"{traced} of {value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, list(value)[:4])) + (", ..." if len(value) > 4 else "")
        return f"a dictionary with keys {keys}" if value else "an empty dictionary"
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(v, (int, float, str, type(None))) for v in value)
        if plain and len(repr(value)) <= 60:
            return repr(list(value) if isinstance(value, list) else tuple(value))
        return f"a {'list' if isinstance(value, list) else 'tuple'} of {len(value)}"
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"the shape {value.shape} of {value.dtype}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


# No machine has so many numbers (its addresses have 48 bits), and a count times an array's size
# stays below 64 bits. Past that NumPy and JAX overflow, each in words of its own; bytes of memory,
# which options give too, are more than 32 bits.
_MOST = 2**48


def whole(least: int | None = None, most: int | None = None) -> Check:
    """A whole number: an int, or one of NumPy's or JAX's; no bool, no float, of 48 bits at most.

    Example:
      >>> whole(1)("f", "n", np.int64(3))
      3
      >>> whole(1)("f", "n", 2.5)
      Traceback (most recent call last):
      TypeError: f: n must be a whole number, at least 1; got 2.5.
    """
    limits = _limits(least, most)

    def check(who, option, value):
        number = _as_whole(value)
        if number is None:
            raise refused(who, option, f"a whole number{limits}", value, _traced(value))
        if (least is not None and number < least) or (most is not None and number > most):
            raise refused(who, option, limits.strip(", "), value, kind=ValueError)
        if abs(number) >= _MOST:
            raise refused(who, option, "a whole number of 48 bits", value, kind=ValueError)
        return number

    return check


def _as_whole(value):
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    one = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
    if one and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer):
        return int(value)
    return None


def real(
    least: float | None = None,
    most: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
    traced: bool = False,
) -> Check:
    """A finite number between `least` and `most`.

    Args:
      least: Lower limit, or None.
      most: Upper limit, or None.
      above: Whether `least` itself is too small.
      below: Whether `most` itself is too large.
      traced: Whether an array under trace will do.
    """
    limits = _limits(least, most, above, below)

    def check(who, option, value):
        if traced and isinstance(value, Tracer) and value.ndim == 0 and _is_real(value.dtype):
            return value
        number = _as_real(value)
        if number is None:
            told = "" if traced else _traced(value)
            raise refused(who, option, f"a number{limits}", value, told)
        low = least is not None and (number < least or (above and number == least))
        high = most is not None and (number > most or (below and number == most))
        if not math.isfinite(number):
            raise refused(who, option, f"a finite number{limits}", value, kind=ValueError)
        if low or high:
            raise refused(who, option, limits.strip(", "), value, kind=ValueError)
        return number

    return check


def _is_real(dtype):
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _as_real(value):
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, float)):
        return value if abs(value) < 2**31 else as_float(value)
    one = isinstance(value, (np.generic, np.ndarray, jax.Array)) and not isinstance(value, Tracer)
    if one and value.ndim == 0 and _is_real(value.dtype):
        return value.item()
    return None


def as_float(value: Any) -> float:
    """A number as a float, infinite where it has none."""
    try:
        return float(value)
    except OverflowError:  # of a whole number with hundreds of digits
        return math.inf


def _limits(least, most, above=False, below=False):
    if least is None and most is None:
        return ""
    if most is None:
        return f" above {least}" if above else f", at least {least}"
    if least is None:
        return f" below {most}" if below else f", at most {most}"
    return f" in {'(' if above else '['}{least}, {most}{')' if below else ']'}"


def _traced(value):
    told = "It shapes the program, so it cannot be traced: pass a Python number, or fix it in jit."
    return told if isinstance(value, Tracer) else ""


def several(one: Check, what: str, *, least: int = 1, count: int | None = None) -> Check:
    """A tuple of things that each pass a check; lists and small arrays become tuples.

    Args:
      one: The check of each.
      what: Names them in errors, such as "whole numbers, one an axis".
      least: How many there must be.
      count: How many exactly, or None.
    """

    def check(who, option, value):
        listed = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
        plain = listed and (value.dtype == bool or jnp.issubdtype(value.dtype, np.number))
        if plain and value.ndim:
            value = tuple(value.tolist() if value.ndim == 1 else value)
        letters = isinstance(value, (str, bytes, bytearray, memoryview))
        if letters or not isinstance(value, Sequence):
            raise refused(who, option, what, value)
        if len(value) < least or (count is not None and len(value) != count):
            raise refused(who, option, what, value, kind=ValueError)
        try:
            return tuple(one(who, f"each of {option}", part) for part in value)
        except (TypeError, ValueError) as error:
            if described(value)[0] not in "[(":  # not shown, so the part says more
                raise
            raise refused(who, option, what, value, kind=type(error)) from None

    return check


def maybe(one: Check) -> Check:
    """None, or what passes a check."""

    def check(who, option, value):
        return None if value is None else one(who, option, value)

    return check


def either(what: str, *checks: Check) -> Check:
    """What passes one of several checks."""

    def check(who, option, value):
        refusals = []
        for one in checks:
            try:
                return one(who, option, value)
            except (TypeError, ValueError) as error:
                refusals.append(error)
        out_of_range = [e for e in refusals if isinstance(e, ValueError)]
        raise out_of_range[0] if out_of_range else refused(who, option, what, value) from None

    return check


def choice(*words: Any) -> Check:
    """One of some words."""
    told = " or ".join(filter(None, (", ".join(map(repr, words[:-1])), repr(words[-1]))))

    def check(who, option, value):
        if not isinstance(value, (str, bool, int, float, type(None))) or value not in words:
            kind = ValueError if isinstance(value, type(words[0])) else TypeError
            raise refused(who, option, told, value, kind=kind)
        return value

    return check


def flag(who: str, option: str, value: Any) -> bool:
    """True or False; no number, no word."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer):
        if value.ndim == 0 and value.dtype == bool:
            return bool(value)
    raise refused(who, option, "True or False", value)


def text(who: str, option: str, value: Any) -> str:
    """A word that is not empty."""
    if not isinstance(value, str) or not value:
        kind = ValueError if isinstance(value, str) else TypeError
        raise refused(who, option, "a text", value, kind=kind)
    return value


def path(who: str, option: str, value: Any) -> str | os.PathLike:
    """A place in the file system, in text or as a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise refused(who, option, "a path", value)
    if not os.fspath(value) or "\0" in str(value):
        raise refused(who, option, "a path of one letter or more", value, kind=ValueError)
    return value


def title(who: str, option: str, value: Any) -> str:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise refused(who, option, "a text", value)
    return value


def layer(who: str, option: str, value: Any) -> str:
    """The name of a layer."""
    if not isinstance(value, str) or not value:
        kind = ValueError if isinstance(value, str) else TypeError
        raise refused(who, option, "the name of a layer", value, _LISTED, kind)
    return value


def layers(who: str, option: str, value: Any) -> Any:
    """The name of a layer, or several of them."""
    return value if isinstance(value, str) else _layers(who, option, value)


_LISTED = "`jaxviz.layers(apply_fn, params, x)` lists them."


def _layers(who, option, value):
    names = isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value)
    if not names or not value:
        kind = ValueError if names else TypeError
        must = "a layer's name, or a tuple of one name or more"
        raise refused(who, option, must, value, _LISTED, kind)
    return tuple(value)


def layer_list(who: str, option: str, value: Any) -> tuple[str, ...]:
    """A list of names of layers."""
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
        raise refused(who, option, "a list of names of layers", value, _LISTED)
    return _layers(who, option, value)


def function(who: str, option: str, value: Any) -> Callable:
    """A function."""
    if not callable(value):
        raise refused(who, option, "a function", value)
    return value


def with_parameters(who: str, option: str, value: Any) -> Callable:
    """A function whose parameters can be told; those of some of Python's own cannot."""
    function(who, option, value)
    try:
        inspect.signature(value)
    except (TypeError, ValueError):
        must = "a function whose parameters are known"
        raise refused(who, option, must, value, "Put a function of your own around it.") from None
    return value


def instance(*kinds: type) -> Check:
    """An object of one of some classes."""

    def told(kind: type) -> str:
        return _NAMED.get(f"{kind.__module__}.{kind.__qualname__}", kind.__name__)

    names = " or ".join(dict.fromkeys(map(told, kinds)))
    places = [_WHERE[kind.__name__] for kind in kinds if kind.__name__ in _WHERE]
    advice = " or ".join(dict.fromkeys(places))

    def check(who, option, value):
        if not isinstance(value, kinds):
            article = "an" if names[:1].lower() in "aeiou" else "a"
            raise refused(who, option, f"{article} {names}", value, advice)
        return value

    return check


# Classes whose own name says too little.
_NAMED = {"flax.linen.module.Module": "Flax Linen module"}
# Where objects that an option takes come from.
_WHERE = {
    "Objective": "Take one of jaxviz.objectives or jaxviz.regularizers.",
    "Parametrization": "Call the factory: jaxviz.parametrizations.pixels().",
    "GradientTransformation": "Call the factory: optax.adam(0.05), say.",
    "LayerGraph": "Pass what `jaxviz.layer_graph` returned.",
    "History": "Pass the history of a fit.",
}


def size(who: str, option: str, value: Any) -> Any:
    """True, False, or the size of a map, one whole number an axis of space."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return several(whole(1), "True, False or a size (h, w) of whole numbers, at least 1")(
        who, option, value
    )


def interval(who: str, option: str, value: Any) -> tuple[float, float]:
    """Two finite numbers, the second larger."""
    low, high = several(real(), "two numbers, (low, high)", count=2)(who, option, value)
    if not low < high:
        raise refused(who, option, "(low, high), low below high", value, kind=ValueError)
    return low, high
