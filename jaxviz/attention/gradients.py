"""Gradients by attention weights, made small where they arise; examples taken some at a time."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attention.found import Attention
from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import chunk_length, rows_of, wide
from jaxviz.graph.changed import Change, fill
from jaxviz.graph.interpreter import Value
from jaxviz.graph.recompute import recomputed
from jaxviz.graph.split import environment
from jaxviz.graph.trace import Traced


def weights_shape(traced: Traced, one: Attention) -> tuple[int, ...]:
    """`(N, heads, queries, keys)`."""
    aval = traced.program.avals[one.value]
    return jax.eval_shape(one.read, jax.ShapeDtypeStruct(aval.shape, aval.dtype)).shape


Read = Callable[[Value], jax.Array]
# Of values that were made before: what goes to `reduce` of attentions by name, and what is told.
Later = Callable[[Read], tuple[dict[str, jax.Array], Any]]


def reduced_gradients(
    traced: Traced,
    taken: Sequence[Attention],
    params: Any,
    x: Any,
    target: Target,
    reduce: Callable,
    later: Mapping[Value, Later] | None = None,
) -> tuple[list[jax.Array], dict[Value, Any]]:
    """What `reduce` makes of each attention's A and d f / d A, f the sum of the explained numbers.

    The gradient `[N, heads, queries, keys]` of one attention alone is alive at a time.

    Args:
      traced, params, x, target: What is explained.
      taken: The attentions.
      reduce: `(A, d f / d A, w) -> a`; w is `[N, heads, keys]`, zeros where nobody gives it.
      later: What is made in the same run, once these values are made: w, of attentions ahead.

    Returns:
      `a` of each attention; what `later` tells.
    """
    arguments = jax.tree.leaves((params, x))

    def explained(change, tokens):
        env, told = environment(traced.program, arguments), {}

        def after(value, a):
            given, told[value] = (later or {})[value](lambda v: a if v == value else env[v])
            for name, w in given.items():
                a = _sent(a, tokens[name], w)
            return a

        hooks = {value: functools.partial(after, value) for value in later or ()}
        fill(traced, env, {**change, **hooks}, traced.program.outputs)
        outputs = jax.tree.map(lambda value: env[value], traced.outputs)
        return select(outputs, target).sum(), told

    return gradients_of(explained, traced, taken, reduce)


def gradients_of(
    score: Callable[[Change, dict[str, jax.Array]], tuple[Any, Any]],
    traced: Traced,
    taken: Sequence[Attention],
    reduce: Callable,
) -> tuple[list[jax.Array], Any]:
    """The same of any number made in a run of the model with a change, and what else is told.

    `score` also has where w is to be sent, by attentions' names, once they have run.
    """

    def shapes(one):
        shape, dtype = weights_shape(traced, one), traced.program.avals[one.value].dtype
        a = jax.eval_shape(wide, jax.ShapeDtypeStruct(shape, dtype))
        return a, jax.ShapeDtypeStruct((*shape[:2], shape[3]), a.dtype)

    def made(one):
        a, w = shapes(one)
        return jnp.zeros_like(jax.eval_shape(reduce, a, a, w))

    def explained(slots):
        tokens: dict[str, jax.Array] = {}

        def note(one, slot, a):
            a, tokens[one.name] = _noting(one, shapes(one)[1], reduce)(a, slot)
            return a

        pairs = zip(taken, slots, strict=True)
        change = {one.value: functools.partial(note, one, slot) for one, slot in pairs}
        return score(change, tokens)

    slots = [made(one) for one in taken]
    return jax.grad(recomputed(explained, slots), has_aux=True)(slots)


def _noting(one: Attention, sent: Any, reduce: Callable) -> Callable:
    """`(a, slot) -> (a, token)`, for which the gradient by the slot is what is made of that by `a`
    and of what comes back for the token."""

    @jax.custom_vjp
    def noted(a, slot):
        return a, jnp.zeros(sent.shape, sent.dtype)

    def forward(a, slot):
        return noted(a, slot), a

    def backward(a, back):
        gradient, w = back
        return gradient, reduce(wide(one.read(a)), wide(one.read(gradient)), w)

    noted.defvjp(forward, backward)
    return noted


@jax.custom_vjp
def _sent(a: jax.Array, token: jax.Array, w: jax.Array) -> jax.Array:
    """`a`; on the way back `w` comes to where the token was made."""
    return a


# No gradient comes back through w itself, but who differentiates all of this has its derivative.
_sent.defvjp(lambda a, token, w: (a, w), lambda w, gradient: (gradient, w, None))


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
