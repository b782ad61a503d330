"""Scores while units of the input are replaced one after another: only what changes is evaluated.

After a few steps the input differs from `x` everywhere, but each step from the one before by one
unit alone. What the net made of the step before is kept (`graph.chain`), and where the next
unit lies is each example's own, so examples go through the net one by one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import stacked
from jaxviz.graph.apart import apart
from jaxviz.graph.chain import chain
from jaxviz.graph.flops import call_flops
from jaxviz.graph.trace import trace
from jaxviz.parts.places import Places
from jaxviz.rules.fast import serving, weighed
from jaxviz.rules.incremental import every_change
from jaxviz.rules.spans import cut

# FLOPs of incremental evaluation are worth this much more: smaller arrays, and cutting them out.
_OVERHEAD = 1.25
# What it costs to start an operation, in FLOPs: small nets take longer for that than for its work.
_START = 100_000
_STEPS = 4  # of one example that are finished at once: weights are read once for them
_ALIVE = 2**16  # numbers of the inputs that a core has at once


def successive(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    filled: jax.Array,
    target: Target,
    places: Places,
    order: jax.Array,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array] | None:
    """The score after each of many steps that replace a unit, and before.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: One array, as it is at the beginning.
      filled: The same shape: what stands in the place of what is replaced.
      target: As for every method; None is the top class at `x`.
      places: The units.
      order: `[N, K]`, the unit that goes at each step; one that is no unit's number is none. With
        `[M * N, K]` each example goes M times: row i is of example i % N, and cores share all rows.
      chunk_size: Inputs at once, for all N examples; None chooses. Each example at work has what
        the net made of it in memory, too.

    Returns:
      `[K, M * N]` and `[M * N]`; None where whole passes are as cheap, or examples not known to
      have nothing to do with one another. Backends but the CPU want many inputs at once, not steps.
    """
    if callable(target) or jax.default_backend() != "cpu" or not one_by_one(apply_fn, params, x):
        return None
    example = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    argument = jnp.zeros((), jnp.int32), example(filled)
    numbers = jnp.asarray(places.numbers, jnp.int32)

    def one_step(x, argument):
        unit, filled = argument
        where = places.stretch(jnp.maximum(unit, 0))
        sides = zip(numbers.shape, where, strict=True)
        found = cut(numbers, tuple(None if size == 1 else s for size, s in sides))
        inside = (found == unit) & (unit >= 0)  # places of no unit are below 0, too
        part = jnp.where(inside, cut(filled, where), cut(x, where))
        return every_change(apply_fn, params, x, part, where)

    if not any(places.stretch(jnp.int32(0))):
        return None
    rows, steps = order.shape
    with serving(rows * steps):
        rules = weighed()
    with serving(rows):
        once = weighed()
    links = chain(one_step, example(x), argument, rules, once)
    together = max(1, min(rows, _ALIVE // max(1, x[0].size)))
    # About N examples are at work at most, on all cores together: so many copies of each.
    several = max(1, min(_STEPS // together, steps, chunk_size or steps))
    passes = call_flops(apply_fn, params, example(x))
    if _OVERHEAD * links.flops + _START * links.operations / together > passes:
        return None

    def one(i):
        row = lambda a: jax.lax.dynamic_slice_in_dim(a, i % len(x), 1)
        fill, chosen = row(filled), target
        if chosen is not None and jnp.ndim(chosen):
            chosen = row(jnp.asarray(chosen))
        begin, step, finish = links.prepare()
        state, outputs = begin(row(x))
        if chosen is None:
            chosen = jnp.argmax(outputs, axis=1)

        def some(state, units):
            state, made = jax.lax.scan(lambda state, k: step(state, (k, fill)), state, units)
            return state, jax.vmap(lambda one: select(finish(one), chosen)[0])(made)

        # What no later step waits for is done for several at once.
        units = jnp.pad(order[i], (0, -steps % several), constant_values=-1)
        scores = jax.lax.scan(some, state, units.reshape(-1, several))[1]
        return scores.reshape(-1)[:steps], select(outputs, chosen)[0]

    # As large as what a core has to do for an example: that decides whether cores share them.
    work = jax.ShapeDtypeStruct((steps, *x.shape[1:]), x.dtype)
    each = lambda cores: cores * max(1, min(together, -(-rows // cores)))
    scores, clean = stacked("successive", one, rows, None, work, each)
    return scores.T, clean


def one_by_one(apply_fn: Callable, params: Any, x: jax.Array) -> bool:
    """Whether the model gives an example alone what it gives it among others."""
    if not apart(trace(apply_fn, params, x, flat=False)):
        return False
    single = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    try:
        outputs = jax.eval_shape(apply_fn, params, single)
    except Exception:  # the model's own, of any kind: params may hold an entry for each example
        return False
    return getattr(outputs, "shape", (0,))[0] == 1
