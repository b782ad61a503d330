"""What a sweep was made with, in words and digests: a store takes no rows of another one."""

import functools
import hashlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.graph.held import Held


def digest(tree: Any) -> str:
    """SHA-256 over the paths, types, shapes and bytes of a pytree of arrays, and what it holds.

    Example:
      >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(2)})
      True
      >>> digest({"a": np.zeros(2)}) == digest({"b": np.zeros(2)})
      False
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=lambda a: isinstance(a, Held)):
        if isinstance(leaf, Held):
            total.update(f"{jax.tree_util.keystr(path)} {_words(leaf.value)};".encode())
            continue
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def method_words(method: Callable) -> dict[str, Any]:
    """A method's name and every option that a `functools.partial` gave it.

    Example:
      >>> method_words(functools.partial(sorted, reverse=True))
      {'name': 'builtins.sorted', 'options': {'reverse': 'True'}}
    """
    options: dict[str, str] = {}
    while isinstance(method, functools.partial):
        if method.args:
            raise TypeError(
                "sweep: options must be keywords, for positions are the model's; got a partial "
                f"with {len(method.args)} positional argument(s)."
            )
        options = {**{k: _words(v) for k, v in method.keywords.items()}, **options}
        method = method.func
    name = getattr(method, "__qualname__", type(method).__name__)
    if inspect.isfunction(method) and not hasattr(method, "__wrapped__"):
        # What a wrapper holds, such as the method and the number of samples of `smooth_grad`.
        held = inspect.getclosurevars(method).nonlocals
        options.update({f"({k})": _words(v) for k, v in sorted(held.items())})
    return {"name": f"{method.__module__}.{name}", "options": options}


def _words(value: Any) -> str:
    """The same words for the same value in another process: arrays by digest, no addresses."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"array {digest(value)[:16]}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_words(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_words, value)) + ")"
    if inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {
        name: importlib.metadata.version(name) for name in ("jaxviz-xai", "jax", "jaxlib", "numpy")
    }
