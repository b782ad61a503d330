"""The model's outputs with one region of the input covered at a time: whole, or what changes."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.attribution.copies import default_chunk, outputs_of, stacked
from jaxviz.graph.hoist import hoist
from jaxviz.rules.fast import serving, weighed
from jaxviz.rules.incremental import evaluate_changed
from jaxviz.rules.spans import Spans, cut

Method = Literal["auto", "full", "incremental"]
# FLOPs of incremental evaluation are worth this much more: smaller arrays, and cutting them out.
_OVERHEAD = 1.25
# Examples on whose changes convolutions are quick: on one core, and on all of them together.
_EXAMPLES = 8, 16


def covered(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    filled: jax.Array,
    read: Callable[[Any], Any],
    *,
    mask: Callable[[jax.Array], jax.Array],
    spans: Callable[[jax.Array], Spans] | None,
    num: int,
    chunk_size: int | None,
    method: Method,
) -> Any:
    """What is read off the outputs with region k covered, k < num, stacked along a new first axis.

    Args:
      name: Of the method, for errors.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: One array.
      filled: The shape of `x`: what stands in the place of what is covered.
      read: Of outputs, what to keep of them.
      mask: Of k, what is covered: booleans with the axes of `x`, each full or 1.
      spans: Of k, a stretch that holds it; None where none is known.
      num: Number of regions.
      chunk_size: Regions at once; None chooses.
      method: "full", "incremental", or "auto": the one with fewer FLOPs.
    """
    if method not in ("auto", "full", "incremental"):
        raise ValueError(
            f"{name}: method must be 'auto', 'full' or 'incremental'; got {method!r}. Leave it out."
        )

    def full(k):
        return read(outputs_of(apply_fn, params, jnp.where(mask(k), filled, x)))

    def local(k):
        assert spans is not None
        where = spans(k)
        own = mask(k)
        sides = zip(own.shape, x.shape, where, strict=True)
        inside = cut(own, tuple(s if size == whole else None for size, whole, s in sides))
        part = jnp.where(inside, cut(filled, where), cut(x, where))
        return read(evaluate_changed(apply_fn, params, x, part, where))

    if method == "full" or spans is None or not any(spans(jnp.int32(0))):
        return stacked(name, full, num, chunk_size, x)
    position = jax.ShapeDtypeStruct((), jnp.int32)
    with serving(num):
        each = weighed()
    changes = hoist(local, position, each, weighed())
    if method == "auto" and _OVERHEAD * changes.flops > hoist(full, position).flops:
        return stacked(name, full, num, chunk_size, x)
    return stacked(name, changes.prepare(), num, chunk_size, x, lambda cores: _at_once(x, cores))


def _at_once(x: jax.Array, cores: int) -> int:
    """Copies at once where only what changes is evaluated, and nobody said.

    On windows of one photograph two at a time take twice as long as sixteen; of eight digits more
    than one place at a time takes half as long again, for cutting out many is slow.
    """
    each, together = _EXAMPLES
    if jax.default_backend() != "cpu":
        return default_chunk(x)
    return cores if len(x) >= each else max(together, each * cores) // max(len(x), 1)
