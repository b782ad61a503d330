"""Kinds of arguments that are arrays: numbers, indices, images, a random key, pytrees of such.

Checks as those of `options` are; traced arrays pass where their numbers do not matter.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.options import Check, as_float, described, either, function, refused

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


def array(who: str, option: str, value: Any, kind: type = np.float32) -> Any:
    """An array of numbers, or a number; NumPy's foreign byte orders are turned into ours."""
    if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return there(who, option, value)
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        return as_float(value)  # JAX takes none of more than 32 bits
    if isinstance(value, (bool, int, float, complex)):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise refused(who, option, "an array without a mask", value, "Fill it: x.filled(0.0).")
    if isinstance(value, (np.ndarray, np.generic)):
        if not (value.dtype.kind in "biufc" or jnp.issubdtype(value.dtype, np.number)):
            raise refused(who, option, "an array of numbers", value, _made(value, kind))
        if value.dtype.kind in "fc" and value.dtype.itemsize > (
            8 if value.dtype.kind == "f" else 16
        ):
            raise refused(who, option, "of at most 64 bits a number", value, _made(value, kind))
        return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
    if hasattr(value, "__jax_array__"):
        return jnp.asarray(value)
    raise refused(who, option, "an array of numbers", value, _made(value, kind))


def there(who: str, option: str, value: Any) -> Any:
    """An array of JAX, or what else there is; not one whose memory was given away."""
    if is_jax(type(value)) and not isinstance(value, Tracer) and value.is_deleted():
        raise ValueError(
            f"{who}: {option} must be an array that is still there; the memory of this one of "
            f"{value.dtype} of shape {value.shape} was given away. Take what the function returned "
            "to which it was donated."
        )
    return value


def _made(value: Any, kind: type) -> str:
    """How an array of numbers is made of a value, where it can be."""
    if not (hasattr(value, "__array__") or hasattr(value, "__len__")):
        return ""
    try:
        np.asarray(value, kind)
    except Exception:  # of what libraries call an array there is no end
        return ""
    return f"Make it one: np.asarray(value, np.{kind.__name__})."


def on_device(who: str, option: str, value: Any) -> None:
    """Refuses arrays of NumPy under `jax.transfer_guard`, which is there to find them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if isinstance(leaf, np.ndarray):
            at = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ValueError(
                f"{who}: {option} must be on a device where jax.transfer_guard forbids transfers; "
                f"got NumPy's {leaf.dtype} of shape {leaf.shape}{at}. Pass "
                f"jax.device_put({option})."
            )


def numbers_list(who: str, option: str, value: Any, kind: type = np.float32) -> Any:
    """An array of real numbers, or a list or range of numbers, which becomes one."""
    if isinstance(value, (list, tuple, range)):
        try:
            value = np.asarray(value)
        except ValueError:  # of lists of many lengths
            pass
    return real_array(who, option, value, kind)


def real_array(who: str, option: str, value: Any, kind: type = np.float32) -> Any:
    """An array of real numbers, or a number."""
    found = array(who, option, value, kind)
    if isinstance(found, complex) or jnp.issubdtype(jnp.result_type(found), jnp.complexfloating):
        raise refused(who, option, "real", value, "Give real and imaginary parts apart.")
    return found


def integers(who: str, option: str, value: Any) -> Any:
    """An array of integers, or a list of them; of 32 bits at least, for they are counted with."""
    found = numbers_list(who, option, value, np.int32)
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
    found = numbers_list(who, option, value, np.int32)
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
        leaves, structure = flattened(who, option, value, is_leaf=lambda a: a is None)
        if not leaves:
            raise refused(who, option, "an array or a pytree of arrays", value)
        found = [check(who, option, leaf) for leaf in leaves]
        same = all(a is b for a, b in zip(found, leaves, strict=True))
        return value if same else jax.tree.unflatten(structure, found)

    return checked


tree = leaves_of(real_array)


def flattened(who: str, option: str, value: Any, **how: Any) -> tuple[list, Any]:
    """`jax.tree.flatten(value)`; refuses dictionaries whose keys have no order."""
    try:
        return jax.tree.flatten(value, **how)
    except ValueError as error:
        if "pytree dictionary keys" not in str(error):
            raise
        raise ValueError(
            f"{who}: {option} must hold dictionaries with keys of one kind, for JAX sorts them; "
            f"got {described(value)}. Name all by text."
        ) from None


@functools.cache
def is_jax(kind: type) -> bool:
    """Whether objects of a class are arrays of JAX, keys and traced ones included; remembered."""
    return issubclass(kind, (jax.Array, Tracer))


# A number or an array of numbers that stands for what is not there, or a pytree of such.
fill = leaves_of(numbers_list)
# It may depend on what is hidden.
fill_or_function = either("a number, an array, or a function (x, hidden) -> x", function, fill)
