"""Attentions found in a program: weights over keys that sum up values.

Weights are proved from the equations (`softmaxes.py`) and followed to the product with values that
contracts the one axis that is the keys' (`weights.py`). What is not proved is none.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.attention.moves import moved
from jaxviz.attention.softmaxes import COPIES, SHAPING, Search, name_of
from jaxviz.attention.weights import Followed, Met
from jaxviz.graph.axes import axes
from jaxviz.graph.axis_labels import Part, Tokens, of_channels
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Value, equation_of
from jaxviz.graph.names import join_scope
from jaxviz.graph.trace import Traced


class Mixed(NamedTuple):
    """What an attention's weights made of the values, head by head: z = A v.

    Attributes:
      value: The product.
      order: Its axes: the batch, those that count as heads, the query's, the width's.
      heads, queries: How many there are.
      count: Examples.
    """

    value: Value
    order: tuple[int, ...]
    heads: int
    queries: int
    count: int

    def read(self, a: jax.Array) -> jax.Array:
        """The product as `[N, heads, queries, width]`."""
        return jnp.transpose(a, self.order).reshape(self.count, self.heads, self.queries, -1)

    def written(self, a: jax.Array, like: jax.Array) -> jax.Array:
        """`[N, heads, queries, width]` as the program has it."""
        return _written(a, self.order, like)


class Attention(NamedTuple):
    """An attention's weights in a program.

    Attributes:
      name: Of its module or scope, or kind and number.
      value: The weights, as they multiply the values.
      order: Their axes: the batch (none where one example was squeezed), those that count as heads,
        the query's, the key's.
      one_query: Whether there is no axis of queries.
      count: Examples.
      tokens: How the keys lie in `x`, where the model shows it.
      keys_of: The (leaf, axis) of x that the keys are, where they are one.
      mixed: The product with the values, where each of its axes is one of the weights' or none.
      over: What the keys are, as far as the model shows: all tokens there are, those of a window,
        or channels.
      signed: Whether some weights may be below zero: a difference, or a mix by numbers of any sign.
    """

    name: str
    value: Value
    order: tuple[int, ...]
    one_query: bool
    count: int
    tokens: Tokens | None
    keys_of: tuple[int, int] | None
    mixed: Mixed | None
    over: Literal["tokens", "windows", "channels"]
    signed: bool

    def read(self, a: jax.Array) -> jax.Array:
        """The weights as `[N, heads, queries, keys]`."""
        moved = jnp.transpose(a, self.order)
        queries = 1 if self.one_query else moved.shape[-2]
        return moved.reshape(self.count, -1, queries, moved.shape[-1])

    def written(self, a: jax.Array, like: jax.Array) -> jax.Array:
        """`[N, heads, queries, keys]` as the program has its weights."""
        return _written(a, self.order, like)


def _written(a: jax.Array, order: Sequence[int], like: jax.Array) -> jax.Array:
    shape = [like.shape[axis] for axis in order]
    back = sorted(range(len(shape)), key=order.__getitem__)
    return jnp.transpose(a.reshape(shape), back).astype(like.dtype)


@fact
def followed(traced: Traced) -> Followed:
    """All weights of a traced model on their way to values."""
    return Followed(Search(traced.program, axes(traced)))


@fact
def found(traced: Traced) -> tuple[Attention, ...]:
    """The attentions of a traced model in the order in which they run."""
    search = followed(traced).search
    at = {v: i for i, node in enumerate(search.nodes) for v in node.outputs}
    rows: dict[Value, tuple[str, Attention]] = {}
    for met in sorted(followed(traced).met, key=lambda met: at[met.weights.start]):
        one = attention(search, met) if met.weights.value not in rows else None
        if one is not None:
            rows[met.weights.value] = join_scope(search.made[met.weights.start].scope), one
    paths = [path for path, _ in rows.values()]
    numbers: dict[str, int] = {}
    named = []
    for path, one in rows.values():
        number = numbers[path] = numbers.get(path, -1) + 1
        stem = f"{path}/attention_{number}" if path else f"attention_{number}"
        named.append(one._replace(name=path if path and paths.count(path) == 1 else stem))
    return tuple(named)


def attention(search: Search, met: Met) -> Attention | None:
    """What meets values, as an attention; None if its examples cannot be told apart."""
    known, value, key = search.known, met.weights.value, met.key
    assert known is not None
    shape, labels = search.shape(value), search.labels(value)
    rank = len(shape)
    batch = known.batch(value)
    if batch is None:
        batch = next((a for a in range(rank) if a != key and shape[a] == known.count), None)
    if batch == key or (batch is None and known.count != 1):
        return None
    if batch is not None and shape[batch] % max(known.count, 1):
        return None
    rest = [a for a in range(rank) if a not in (batch, key)]
    free = [a for a in rest if a not in met.shared]
    placed = [a for a in free if isinstance(labels[a], (tuple, Tokens))]
    query = (placed or free or [None])[-1]
    heads = [a for a in rest if a != query]
    # As the model joins them; else heads that share keys follow one another.
    heads = _joined(search, met, heads) or sorted(heads, key=lambda a: a not in met.shared)
    label = labels[key]
    leading = (batch, *heads)
    return Attention(
        name="",
        value=value,
        order=tuple(a for a in (*leading, query, key) if a is not None),
        one_query=query is None,
        count=known.count,
        tokens=label if isinstance(label, Tokens) else None,
        keys_of=label if isinstance(label, tuple) else None,
        mixed=_mixed(met, leading, query, shape, known.count),
        over=_over(labels, leading, query, key, shape),
        signed=met.weights.signed,
    )


def _over(labels, leading, query, key, shape) -> Literal["tokens", "windows", "channels"]:
    """What the keys are: of a window, if what counts as heads, or as examples, has places of it."""
    if of_channels(labels[key]):
        return "channels"
    beside = [_places(labels[a]) for a in leading if a is not None and shape[a] > 1]
    asked = frozenset() if query is None else _places(labels[query])
    if any(places & (asked | _places(labels[key])) for places in beside):
        return "windows"
    # Each query has keys of its own: it is one of the heads, and the keys are none of x's places.
    own = query is None and labels[key] is None and any(beside)
    return "windows" if own else "tokens"


def _places(label: Any) -> frozenset:
    """The axes of x that an axis has places of."""
    if isinstance(label, Part):
        return frozenset().union(*map(_places, label.labels))
    if isinstance(label, Tokens):
        return frozenset(label.axes)
    return frozenset({label}) if isinstance(label, tuple) else frozenset()


def _joined(search: Search, met: Met, heads: list[int]) -> list[int] | None:
    """The weights' axes of heads in the order in which the model makes one axis of them."""
    value, parts = met.product, met.parts
    of = lambda sides: [a for p in sides for a in p if len(p) == 1 and a in heads]
    while len(readers := search.readers.get(value, ())) == 1:
        (node,) = readers
        name, params = name_of(node), equation_of(node).params
        if name == "dot_general" and node.operands[0] != node.operands[1]:
            side = node.operands.index(value)
            ours, theirs = (params["dimension_numbers"][0][i] for i in (side, 1 - side))
            pairs = sorted(zip(theirs, ours, strict=True))
            order = of(parts[a] for _, a in pairs)
            return order if set(order) == set(heads) else None
        if name not in COPIES | SHAPING or len(node.outputs) != 1:
            return None
        out = node.outputs[0]
        before, after = search.shape(value), search.shape(out)
        there = parts if name in COPIES else moved(name, params, parts, before, after)
        if there is None:
            return None
        if any(set(heads) <= p for p in there):
            return of(parts)
        value, parts = out, there
    return None


def _mixed(met: Met, leading, query, shape, count) -> Mixed | None:
    """The product with the values, if its axes are those of the weights one by one."""
    parts = met.parts
    places = {a: i for i, part in enumerate(parts) if len(part) == 1 for a in part}
    own = [a for a in (*leading, query) if a is not None]
    lost = [a for a in own if a not in places]
    if any(len(part) > 1 for part in parts) or any(shape[a] > 1 for a in lost):
        return None
    order = [places[a] for a in own if a in places]
    width = [i for i in range(len(parts)) if i not in order]
    heads = math.prod(shape[a] for a in leading if a is not None) // count
    queries = 1 if query is None else shape[query]
    return Mixed(met.product, (*order, *width), heads, queries, count)
