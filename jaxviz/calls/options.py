"""Kinds of arguments: a whole number, a share, a key, a layer's name. What is none is refused.

A check is `(who, option, value) -> value`: it gives the value in one form (a Python number for an
array of one) or raises, in words that a newcomer understands.
"""

import functools
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
        if abs(number) >= 2**48:
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
        return value if abs(value) < 2**31 else _as_float(value)
    one = isinstance(value, (np.generic, np.ndarray, jax.Array)) and not isinstance(value, Tracer)
    if one and value.ndim == 0 and _is_real(value.dtype):
        return value.item()
    return None


def _as_float(value):
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


# What keys of `jax.random.PRNGKey` are, whatever kind of key is the default now.
_OLD_KEYS = {(2,): "threefry2x32", (4,): "rbg"}


def key(who: str, option: str, value: Any) -> Any:
    """One key of `jax.random`, of the new kind or of the old (uint32), as one of the new."""
    if is_jax(type(value)) or isinstance(value, np.ndarray):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ():
            return value
        if value.dtype == np.uint32 and value.shape in _OLD_KEYS:
            return jax.random.wrap_key_data(jnp.asarray(value), impl=_OLD_KEYS[value.shape])
    raise refused(who, option, "one key of jax.random", value, "Pass jax.random.key(0), say.")


def array(who: str, option: str, value: Any) -> Any:
    """An array of numbers, or a number; NumPy's foreign byte orders are turned into ours."""
    if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return there(who, option, value)
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        return _as_float(value)  # JAX takes none of more than 32 bits
    if isinstance(value, (bool, int, float, complex)):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise refused(who, option, "an array without a mask", value, "Fill it: x.filled(0.0).")
    if isinstance(value, (np.ndarray, np.generic)):
        if not (value.dtype.kind in "biufc" or jnp.issubdtype(value.dtype, np.number)):
            raise refused(who, option, "an array of numbers", value, _NUMBERS)
        if value.dtype.kind in "fc" and value.dtype.itemsize > (
            8 if value.dtype.kind == "f" else 16
        ):
            raise refused(who, option, "of at most 64 bits a number", value, _NUMBERS)
        return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
    if hasattr(value, "__jax_array__"):
        return jnp.asarray(value)
    advice = _NUMBERS if hasattr(value, "__array__") or hasattr(value, "__len__") else ""
    raise refused(who, option, "an array of numbers", value, advice)


def there(who: str, option: str, value: Any) -> Any:
    """An array of JAX, or what else there is; not one whose memory was given away."""
    if is_jax(type(value)) and not isinstance(value, Tracer) and value.is_deleted():
        raise ValueError(
            f"{who}: {option} must be an array that is still there; the memory of this one of "
            f"{value.dtype} of shape {value.shape} was given away. Take what the function returned "
            "to which it was donated."
        )
    return value


_NUMBERS = "Make it one: np.asarray(value, np.float32)."


def numbers_list(who: str, option: str, value: Any) -> Any:
    """An array of real numbers, or a list or range of numbers, which becomes one."""
    if isinstance(value, (list, tuple, range)):
        try:
            value = np.asarray(value)
        except ValueError:  # of lists of many lengths
            pass
    return real_array(who, option, value)


def real_array(who: str, option: str, value: Any) -> Any:
    """An array of real numbers, or a number."""
    found = array(who, option, value)
    if isinstance(found, complex) or jnp.issubdtype(jnp.result_type(found), jnp.complexfloating):
        raise refused(who, option, "real", value, "Give real and imaginary parts apart.")
    return found


def integers(who: str, option: str, value: Any) -> Any:
    """An array of integers, or a list of them; of 32 bits at least, for they are counted with."""
    found = numbers_list(who, option, value)
    if np.size(found) and not jnp.issubdtype(jnp.result_type(found), jnp.integer):
        raise refused(who, option, "integers", value, "Number them from 0.", ValueError)
    return _widened(found)


def _widened(found: Any) -> Any:
    dtype = jnp.result_type(found)
    narrow = jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4
    return found.astype(np.int32) if narrow else found


def unit(who: str, option: str, value: Any) -> Any:
    """An index from 0, or a list of them; arrays may be traced."""
    if isinstance(value, (bool, np.bool_)):
        raise refused(who, option, "an index or a list of indices", value)
    found = numbers_list(who, option, value)
    if not jnp.issubdtype(jnp.result_type(found), jnp.integer) or np.ndim(found) > 1:
        raise refused(who, option, "an index or a list of indices", value, kind=ValueError)
    if not isinstance(found, Tracer) and (np.size(found) == 0 or np.min(np.asarray(found)) < 0):
        raise refused(who, option, "an index from 0, or a list of them", value, kind=ValueError)
    return _widened(found)


def weights(who: str, option: str, value: Any) -> Any:
    """A finite number, or a list of one for each image; arrays may be traced."""
    if isinstance(value, (bool, np.bool_)):
        raise refused(who, option, "a number, or one for each image", value)
    found = numbers_list(who, option, value)
    known = not isinstance(found, Tracer)
    if np.ndim(found) > 1 or np.size(found) == 0 or (known and not np.isfinite(found).all()):
        must = "a finite number, or one for each image"
        raise refused(who, option, must, value, kind=ValueError)
    return found


def rows(least: int, what: str) -> Check:
    """A real array of at least so many axes, none of them empty, without NaN or infinity."""

    def check(who, option, value):
        found = numbers_list(who, option, value)
        known = not isinstance(found, Tracer)
        if np.ndim(found) < least or np.size(found) == 0:
            raise refused(who, option, what, value, kind=ValueError)
        if known and not np.isfinite(np.asarray(found, np.float64)).all():
            raise refused(who, option, f"{what}, all finite", value, kind=ValueError)
        return found

    return check


def image_list(who: str, option: str, value: Any) -> Any:
    """An array of images, or an iterable of such."""
    listed = hasattr(value, "__iter__") and not isinstance(value, (str, bytes, Mapping, set))
    if hasattr(value, "shape") or not listed:
        return images(who, option, value)
    return value


def images(who: str, option: str, value: Any) -> Any:
    """Images `[M, H, W, C]`, real."""
    found = real_array(who, option, value)
    if np.ndim(found) != 4:
        must = "[M, H, W, C]"
        raise refused(who, option, must, value, "One image is image[None].", ValueError)
    return found


def leaves_of(check: Check) -> Check:
    """A pytree, each leaf of which is what a check says, of one leaf at least."""

    def checked(who, option, value):
        leaves, structure = jax.tree.flatten(value, is_leaf=lambda a: a is None)
        if not leaves:
            raise refused(who, option, "an array or a pytree of arrays", value)
        found = [check(who, option, leaf) for leaf in leaves]
        same = all(a is b for a, b in zip(found, leaves, strict=True))
        return value if same else jax.tree.unflatten(structure, found)

    return checked


tree = leaves_of(real_array)


@functools.cache
def is_jax(kind: type) -> bool:
    """Whether objects of a class are arrays of JAX, keys and traced ones included; remembered."""
    return issubclass(kind, (jax.Array, Tracer))


# A number or an array of numbers that stands for what is not there, or a pytree of such.
fill = leaves_of(numbers_list)
# It may depend on what is hidden.
fill_or_function = either("a number, an array, or a function (x, hidden) -> x", function, fill)


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
