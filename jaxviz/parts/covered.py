"""The model's outputs with one region of the input covered at a time: whole, or what changes."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target
from jaxviz.engine.copies import (
    default_chunk,
    outputs_of_copies,
    stacked,
    stacked_scores,
)
from jaxviz.graph.hoist import hoist
from jaxviz.rules.fast import serving, weighed
from jaxviz.rules.incremental import before_and_after
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
    x: Any,
    fill: Callable[[Any], Any],
    target: Target,
    read: Callable[[Any, Target], Any],
    *,
    mask: Callable[[jax.Array], jax.Array],
    spans: Callable[[jax.Array], Spans] | None,
    num: int,
    chunk_size: int | None,
    method: Method,
) -> tuple[Any, Any]:
    """What is read off the outputs with region k covered, k < num, stacked along a new first axis;
    and what is read with nothing covered.

    Args:
      name: Of the method, for errors.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: One array, or a pytree, of which no stretch is known.
      fill: Of k, in the shapes of `x`, what stands in the place of what is covered.
      target: As for every method.
      read: Of outputs and a target other than None, what to keep of them.
      mask: Of k, what is covered: in the structure of `x` booleans with its axes, each full or 1.
      spans: Of k, a stretch that holds it; None where none is known.
      num: Number of regions.
      chunk_size: Regions at once; None chooses.
      method: "full", "incremental", or "auto": the one with fewer FLOPs.
    """
    if method not in ("auto", "full", "incremental"):
        raise ValueError(
            f"{name}: method must be 'auto', 'full' or 'incremental'; got {method!r}. Leave it out."
        )

    hidden = lambda k: jax.tree.map(jnp.where, mask(k), fill(k), x)
    full = outputs_of_copies(apply_fn, params, x, hidden)

    def local(k):
        assert spans is not None
        where = spans(k)
        own = mask(k)
        sides = zip(own.shape, x.shape, where, strict=True)
        inside = cut(own, tuple(s if size == whole else None for size, whole, s in sides))
        part = jnp.where(inside, cut(fill(k), where), cut(x, where))
        before, after = before_and_after(apply_fn, params, x, part, where)
        chosen = jnp.argmax(before, axis=1) if target is None else target
        return read(after, chosen), read(before, chosen)

    def whole():
        return stacked_scores(name, full, read, num, chunk_size, x, target, clean=True)

    if method == "full" or spans is None or not any(spans(jnp.int32(0))):
        return whole()
    position = jax.ShapeDtypeStruct((), jnp.int32)
    with serving(num):  # as in the loop, where what is traced here of `full` is found again
        rules = weighed()
        every = hoist(full, position).flops if method == "auto" else math.inf
    changes = hoist(local, position, rules, weighed())
    if _OVERHEAD * changes.flops > every:
        return whole()
    turn, (_, clean) = changes.prepare()
    each = lambda k: turn(k)[0]
    return stacked(name, each, num, chunk_size, x, lambda cores: _at_once(x, cores)), clean


def _at_once(x: jax.Array, cores: int) -> int:
    """Copies at once where only what changes is evaluated, and nobody said.

    On windows of one photograph two at a time take twice as long as sixteen; of eight digits more
    than one place at a time takes half as long again, for cutting out many is slow.
    """
    each, together = _EXAMPLES
    if jax.default_backend() != "cpu":
        return default_chunk(x)
    return cores if len(x) >= each else max(together, each * cores) // max(len(x), 1)
