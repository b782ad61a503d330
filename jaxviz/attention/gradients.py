"""Gradients by attention weights, made small where they arise; examples taken some at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attention.found import Attention
from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import chunk_length, rows_of, wide
from jaxviz.graph.changed import Change, run
from jaxviz.graph.recompute import recomputed
from jaxviz.graph.trace import Traced


def weights_shape(traced: Traced, one: Attention) -> tuple[int, ...]:
    """`(N, heads, queries, keys)`."""
    aval = traced.program.avals[one.value]
    return jax.eval_shape(one.read, jax.ShapeDtypeStruct(aval.shape, aval.dtype)).shape


def reduced_gradients(
    traced: Traced,
    taken: Sequence[Attention],
    params: Any,
    x: Any,
    target: Target,
    reduce: Callable,
) -> list[jax.Array]:
    """`reduce(A, d f / d A)` of each attention, f the sum of the explained numbers.

    The gradient `[N, heads, queries, keys]` of one attention alone is alive at a time.
    """
    arguments = jax.tree.leaves((params, x))

    def explained(change):
        outputs = run(traced, arguments, change, traced.program.outputs)
        return select(jax.tree.map(lambda value: outputs[value], traced.outputs), target).sum()

    return gradients_of(explained, traced, taken, reduce)


def gradients_of(
    score: Callable[[Change], Any], traced: Traced, taken: Sequence[Attention], reduce: Callable
) -> list[jax.Array]:
    """The same of any number made in a run of the model with a change of its values."""

    def made(one):
        dtype = traced.program.avals[one.value].dtype
        a = jax.eval_shape(wide, jax.ShapeDtypeStruct(weights_shape(traced, one), dtype))
        return jnp.zeros_like(jax.eval_shape(reduce, a, a))

    def explained(slots):
        return score(
            {
                one.value: lambda a, one=one, slot=slot: _noting(one, reduce)(a, slot)
                for one, slot in zip(taken, slots, strict=True)
            }
        )

    slots = [made(one) for one in taken]
    return jax.grad(recomputed(explained, slots))(slots)


def _noting(one: Attention, reduce: Callable) -> Callable:
    """`(a, slot) -> a`, for which the gradient by the slot is what is made of that by `a`."""

    @jax.custom_vjp
    def noted(a, slot):
        return a

    def forward(a, slot):
        return a, a

    def backward(a, gradient):
        return gradient, reduce(wide(one.read(a)), wide(one.read(gradient)))

    noted.defvjp(forward, backward)
    return noted


def by_examples(
    name: str,
    method: Callable[[Any, Target], Any],
    x: Any,
    target: Target,
    chunk_size: int | None,
) -> Any:
    """`method(x, target)`, of `chunk_size` examples at a time; None takes all."""
    count = rows_of(x)
    if chunk_size is None or chunk_size >= count:
        return method(x, target)
    size = chunk_length(name, count, chunk_size)
    chunks = -(-count // size)
    # The last example stands in where the last chunk has none.
    rows = jnp.minimum(jnp.arange(chunks * size), count - 1).reshape(chunks, size)
    labels: Any = None if callable(target) else target
    each = labels is not None and jnp.shape(labels) == (count,)
    given = (x, target) if each else x

    def one(rows):
        here = jax.tree.map(lambda a: jnp.asarray(a)[rows], given)
        return method(*here) if each else method(here, target)

    found = jax.lax.map(one, rows)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)
