"""Gradients by attention weights, made small where they arise; examples taken some at a time."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attention.blocks import ways
from jaxviz.attention.found import Attention, found
from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import chunk_length, rows_of
from jaxviz.graph.changed import run_changed
from jaxviz.graph.split import environment
from jaxviz.graph.trace import Traced

# Bytes of weights in a model from which on the way back makes each block's again: all at once would
# be several times that.
_MANY = 2**28


def wide(a: jax.Array) -> jax.Array:
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


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

    def made(one):
        dtype = traced.program.avals[one.value].dtype
        a = jax.ShapeDtypeStruct(weights_shape(traced, one), jnp.promote_types(dtype, jnp.float32))
        return jnp.zeros_like(jax.eval_shape(reduce, a, a))

    def explained(slots):
        change = {
            one.value: lambda a, one=one, slot=slot: _noting(one, reduce)(a, slot)
            for one, slot in zip(taken, slots, strict=True)
        }
        outputs = _run_in_parts(traced, arguments, change)
        return select(jax.tree.map(lambda value: outputs[value], traced.outputs), target).sum()

    return jax.grad(explained)([made(one) for one in taken])


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


def _run_in_parts(traced: Traced, arguments: Sequence[Any], change: dict) -> dict:
    """`changed.run`; where weights are many, a part from one attention to the next is made again
    for its gradients."""
    nodes = ways(traced).nodes
    env = environment(traced.program, arguments)
    parts = _parts(traced)
    read_later = set(jax.tree.leaves(traced.outputs))
    keeps = []
    for start, end in reversed(parts):
        made = {v for node in nodes[start:end] for v in node.outputs}
        keeps.append(sorted(made & read_later))
        read_later |= {v for node in nodes[start:end] for v in node.inputs}
    for (start, end), kept in zip(parts, reversed(keeps), strict=True):

        def part(given, start=start, end=end, kept=kept):
            here = dict(given)
            run_changed(nodes[start:end], here, change)
            return {value: here[value] for value in kept}

        run = part if len(parts) == 1 else jax.checkpoint(part)
        made = {v for node in nodes[start:end] for v in node.outputs}
        reads = {v for node in nodes[start:end] for v in node.inputs} - made
        env.update(run({v: env[v] for v in sorted(reads)}))
    return env


def _parts(traced: Traced) -> list[tuple[int, int]]:
    """Where to cut between attentions: where least is alive; nowhere if weights are few."""
    known, every = ways(traced), found(traced)
    if sum(_bytes(traced, one.value) for one in every) < _MANY:
        return [(0, known.end)]
    last = {v: i for i, node in enumerate(known.nodes) for v in node.inputs}
    moving = traced.program.depends
    alive, now = [], 0
    going: dict[int, int] = {}
    for i, node in enumerate(known.nodes):
        for value in node.outputs:
            if value in moving and value in last:
                now += _bytes(traced, value)
                going[last[value]] = going.get(last[value], 0) + _bytes(traced, value)
        now -= going.get(i, 0)
        alive.append(now)
    at = [known.made[one.value] for one in every]
    cuts = [
        min(range(a + 1, b), key=alive.__getitem__, default=a) + 1
        for a, b in itertools.pairwise(at)
    ]
    return list(zip([0, *cuts], [*cuts, known.end], strict=True))


def _bytes(traced: Traced, value: Any) -> int:
    aval = traced.program.avals[value]
    return math.prod(aval.shape) * jnp.dtype(aval.dtype).itemsize


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
