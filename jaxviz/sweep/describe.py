"""What a sweep was made with, in words and digests: a store takes no rows of another one."""

import functools
import hashlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
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


def programs(
    apply_fn: Callable, params: Any, x: Any, target: Any, methods: Mapping[str, Callable]
) -> dict[str, str]:
    """Digests of what the user's own functions compute, whose names say too little.

    Two lambdas have one name, and a model has none that could be compared: their jaxprs can, where
    the same version of JAX on the same kind of device made both. Methods of this library are known
    by names and options; another one is traced as a whole. What cannot be traced is left out.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree of arrays.
      x: A batch of inputs.
      target: A function of the outputs, or whatever else a target may be.
      methods: Name -> `(params, x) -> explanation`.

    Returns:
      "where", what made them, and a digest each for "apply_fn", "target" and methods, by name.

    Example:
      >>> one, two = (programs(lambda w, x: x * n, 1.0, np.ones(2), 0, {}) for n in (1, 2))
      >>> sorted(one), one == two
      (['apply_fn', 'where'], False)
    """
    found = {"apply_fn": _program(apply_fn, params, x)}
    if callable(target):
        found["target"] = _program(target, jax.eval_shape(apply_fn, params, x))
    for name, method in methods.items():
        found[f"method {name}"] = _program(method, params, x)
    told = {name: program for name, program in found.items() if program is not None}
    return {"where": f"JAX {jax.__version__} on {jax.default_backend()}", **told}


def _program(function: Callable, *arguments: Any) -> str | None:
    """SHA-256 of the function's jaxpr, its constants included; None where it cannot be traced."""
    try:
        closed = jax.make_jaxpr(function)(*arguments)
    except Exception:  # its own, of whatever kind, which will be told where it is used
        return None
    total = hashlib.sha256(_ADDRESS.sub("", str(closed)).encode())
    for constant in _constants(closed):
        total.update(digest(constant).encode())
    return total.hexdigest()


def _constants(value: Any) -> Iterator[Any]:
    """The numbers that a jaxpr holds, which its text shortens."""
    if hasattr(value, "consts"):
        yield from value.consts
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _constants(part)
    elif hasattr(value, "eqns"):  # a closed jaxpr has them too, and JAX 0.12 knows one kind alone
        for equation in value.eqns:
            yield from (atom.val for atom in equation.invars if hasattr(atom, "val"))
            yield from _constants(tuple(equation.params.values()))


def is_named(value: Any) -> bool:
    """Whether functions in it are all this library's, so that names and options tell all.

    Example:
      >>> is_named(functools.partial(digest, tree=1)), is_named({"f": np.tanh})
      (True, False)
    """
    seen: set[int] = set()  # a function may hold itself

    def look(value: Any) -> bool:
        if isinstance(value, functools.partial):
            return look((value.func, *value.args, *value.keywords.values()))
        if isinstance(value, Mapping):
            return look(tuple(value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(look, value))
        if not callable(value) or id(value) in seen:
            return True
        seen.add(id(value))
        if not inspect.isfunction(value) or value.__module__.split(".")[0] != "jaxviz":
            return False
        wraps = hasattr(value, "__wrapped__")  # a public function: what it wraps is ours too
        return wraps or look(tuple(inspect.getclosurevars(value).nonlocals.values()))

    return look(value)


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _words(value: Any, within: tuple[Any, ...] = ()) -> str:
    """The same words for the same value in another process: arrays by digest, no addresses.

    Of a function of this library what it holds too, for names and options have to tell all of it
    (`is_named`); of those `within` which this one is held, the name.
    """
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"array {digest(value)[:16]}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_words(v, within)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_words(v, within) for v in value) + ")"
    if isinstance(value, functools.partial):
        bound = [f"{k}={_words(v, within)}" for k, v in value.keywords.items()]
        told = ", ".join([*(_words(v, within) for v in value.args), *bound])
        return f"{_words(value.func, within)}({told})"
    if inspect.isfunction(value):
        name, inner = f"{value.__module__}.{value.__qualname__}", inspect.unwrap(value)
        ours = value.__module__.split(".")[0] == "jaxviz" and value not in within
        held = inspect.getclosurevars(inner).nonlocals if ours and inspect.isfunction(inner) else {}
        told = [f"{k}: {_words(v, (*within, value))}" for k, v in sorted(held.items())]
        return f"{name}({', '.join(told)})" if told else name
    return _ADDRESS.sub("", repr(value))


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {
        name: importlib.metadata.version(name) for name in ("jaxviz-xai", "jax", "jaxlib", "numpy")
    }
