"""Where a model can be changed: its layers, and the heads and weights of its attentions."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxviz.attention.found import found
from jaxviz.attention.late import attended, standing, undivided
from jaxviz.attention.maps import chosen
from jaxviz.graph.interpreter import Value
from jaxviz.graph.rows import Row, rows
from jaxviz.graph.split import batch_moved, reachable, reaches, rows_named
from jaxviz.graph.towers import turns_of, without_turns
from jaxviz.graph.trace import Traced, trace

HEADS, WEIGHTS = ":heads", ":weights"


class Place(NamedTuple):
    """A value of a model that can be read and replaced.

    Attributes:
      name: Of the layer, or of the attention with what of it is meant.
      value: In the program.
      shape, dtype: As it is read, batch first.
      read: Of the value, as users see it.
      written: Of what users see, and of the value that it replaces.
    """

    name: str
    value: Value
    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[jax.Array], jax.Array]
    written: Callable[[jax.Array, jax.Array], jax.Array]


def program(apply_fn: Callable, params: Any, x: Any, names: Sequence[str]) -> Traced:
    """The model as it is written; with attention divided by its sum ahead of the product with
    values where a name is of heads or weights."""
    traced = trace(apply_fn, params, x)
    known = {row.layer.name for row in rows(traced)}
    parts = any(_part(name, known) is not None for name in names)
    return attended(apply_fn, params, x) if parts else traced


_OF_A_NAME = re.compile(r"[^:]:\w+$")  # torch's "aten::add" is another thing


def _part(name: str, known: set[str]) -> tuple[str, str] | None:
    """An attention's name and what of it is meant."""
    stem, colon, part = name.rpartition(":")
    is_part = name not in known and colon + part in (HEADS, WEIGHTS)
    return (stem, colon + part) if is_part else None


def places(who: str, traced: Traced, names: Sequence[str]) -> tuple[Place, ...]:
    """The places of these names in order; a name without the numbers of its turns is all of them.

    Names of layers are those of the model as it is written, and mean its values.

    Raises:
      ValueError: There is no such layer or attention, it cannot be reached, or `x` does not reach
        it; or a name twice; or a layer that heads and weights cannot stand beside.
    """
    every = rows(undivided(traced))
    known = {row.layer.name for row in every}
    result: list[Place] = []
    for name in names:
        if (part := _part(name, known)) is not None:
            result += _of_attention(who, traced, *part)
        elif name not in known and _OF_A_NAME.search(name):
            raise ValueError(
                f"{who}: what follows the name of an attention must be {HEADS} or {WEIGHTS}; got "
                f"{name!r}. Names of attentions: `jaxviz.attentions(apply_fn, params, x)`."
            )
        else:
            result += [_of_layer(who, traced, row) for row in rows_named(every, name, who)]
    twice = [p.name for i, p in enumerate(result) if p.name in {q.name for q in result[:i]}]
    if twice:
        raise ValueError(f"{who}: layers must differ; got {twice[0]!r} twice. Name it once.")
    return tuple(result)


def _of_layer(who: str, traced: Traced, row: Row) -> Place:
    layer = reachable(row, who).layer
    if not reaches(undivided(traced), layer.name):
        raise ValueError(
            f"{who}: layer {layer.name!r} does not depend on x, only on params. Change params."
        )
    value = standing(traced, row.value)
    if value is None:
        raise ValueError(
            f"{who}: layers must not be both of heads or weights and of what lies between an "
            f"attention's exponentials and the division by their sum; got {layer.name!r}, which "
            "stands ahead of that division. Take one or the other, or a layer after it."
        )
    return Place(
        layer.name,
        value,
        layer.shape,
        layer.dtype,
        functools.partial(_first, row.batch),
        functools.partial(_back, row.batch),
    )


def _first(batch: int, a: jax.Array) -> jax.Array:
    return batch_moved(a, batch, 0)


def _back(batch: int, a: jax.Array, like: jax.Array) -> jax.Array:
    return batch_moved(a, 0, batch).astype(like.dtype)


def heads_of_all(who: str, traced: Traced) -> tuple[str, ...]:
    """The names of all attentions' heads."""
    return tuple(one.name + HEADS for one in chosen(who, traced, None))


def _of_attention(who: str, traced: Traced, stem: str, part: str) -> list[Place]:
    every = found(traced)
    named = [one for one in every if one.name == stem]
    if not named and not turns_of(stem):
        named = [one for one in every if without_turns(one.name) == stem]
    if not named:
        chosen(who, traced, (stem,))  # says which there are
    result = []
    for one in named:
        what = one if part == WEIGHTS else one.mixed
        if what is None:
            raise ValueError(
                f"{who}: the heads of {one.name!r} cannot be told apart, for the model joins them "
                f"with another axis before it multiplies them with values. Take "
                f"{one.name + WEIGHTS!r}, its weights, or a layer after it."
            )
        aval = traced.program.avals[what.value]
        shape = jax.eval_shape(what.read, jax.ShapeDtypeStruct(aval.shape, aval.dtype)).shape
        result.append(
            Place(one.name + part, what.value, shape, aval.dtype, what.read, what.written)
        )
    return result
