"""What metrics share that explain again: a method as a function of the input, and moved inputs."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.models import shapes_of
from jaxviz.engine.contract import Target
from jaxviz.engine.copies import at_least_float32, is_floating, rows_of
from jaxviz.metrics.maps import in_rows

Perturb = Callable[[jax.Array, Any], Any] | None

_OWN = 0x7FFFFFFF  # of the method's key: no sample has this number


def explainer(
    name: str,
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target,
    key: jax.Array | None,
) -> Callable[[Any], Any]:
    """From an input to its explanation, traced once.

    A method that draws gets the same key each time: what changes is the input's doing alone.
    """
    options = {}
    if "key" in inspect.signature(method).parameters and key is not None:
        options["key"] = jax.random.fold_in(key, _OWN)

    def explain(x):
        return method(apply_fn, params, x, target, **options)

    _check(name, method, x, jax.eval_shape(explain, x))
    return jax.jit(explain)


def _check(name, method, x, found):
    count, shapes = rows_of(x), [a.shape for a in jax.tree.leaves(found)]
    if not shapes or any(len(s) < 2 or s[0] != count for s in shapes):
        told = getattr(method, "__name__", type(method).__name__)
        raise ValueError(
            f"{name}: method must give an attribution [N, ...] for each of the {count} examples; "
            f"{told} gives {shapes_of(found)}. Wrap it in a function that returns that part."
        )


def moved(name: str, radius: float, perturb: Perturb, key: jax.Array, x: Any) -> Any:
    """A neighbour of each example: uniform in the box of a radius, or what a function makes."""
    if perturb is not None:
        found = perturb(key, x)
        same = jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), (found, x))
        if jax.tree.structure(found) != jax.tree.structure(x) or same[0] != same[1]:
            raise ValueError(
                f"{name}: perturb must be a function (key, x) -> x of the same shapes and types; "
                f"it made {shapes_of(found)} of {shapes_of(x)}. Keep them as they are."
            )
        return found

    def one(number, a):
        if not is_floating(a):
            return a
        wide = at_least_float32(a)
        noise = jax.random.uniform(jax.random.fold_in(key, number), a.shape, wide, -1, 1)
        return (a.astype(wide) + jnp.asarray(radius, wide) * noise).astype(a.dtype)

    leaves, structure = jax.tree.flatten(x)
    return jax.tree.unflatten(structure, [one(i, jnp.asarray(a)) for i, a in enumerate(leaves)])


def numbers(x: Any) -> jax.Array:
    """All floating numbers of each example of the input in a row, `[N, D]`."""
    return in_rows([a for a in jax.tree.leaves(x) if is_floating(a)])


def norm(a: jax.Array) -> jax.Array:
    """The Euclidean length of each row; its squares neither over- nor underflow."""
    largest = jax.lax.stop_gradient(jnp.abs(a).max(1, keepdims=True))
    largest = jnp.where((largest == 0) | ~jnp.isfinite(largest), 1, largest)
    square = jnp.square(a / largest).sum(1)
    root = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    return root * largest[:, 0]
