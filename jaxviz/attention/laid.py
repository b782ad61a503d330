"""What methods of attentions share: which can follow one another, and how a map is laid out."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax

from jaxviz.attention.blocks import ways
from jaxviz.attention.found import Attention
from jaxviz.attention.gradients import weights_shape
from jaxviz.graph.trace import Traced
from jaxviz.parts.feature_maps import Resize, resized


def told(traced: Traced, taken: Sequence[Attention]) -> str:
    return ", ".join(f"{one.name!r} {weights_shape(traced, one)}" for one in taken)


def over_tokens(name: str, traced: Traced, taken: tuple[Attention, ...]) -> tuple[Attention, ...]:
    """Refuses attentions whose keys are not the model's tokens."""
    for one in taken:
        if one.over != "tokens":
            kind = "keys of a window" if one.over == "windows" else "channels"
            raise ValueError(
                f"{name}: the attentions must be over the model's tokens; the keys of "
                f"{told(traced, [one])} are {kind}. Pass `layers`, names of others, or take "
                "jaxviz.gradient."
            )
    return taken


def alike(name: str, traced: Traced, taken: tuple[Attention, ...]) -> tuple[Attention, ...]:
    """Refuses attentions that cannot be read together: of other sizes, or within windows."""
    sizes = {weights_shape(traced, one)[2:] for one in taken}
    if len(sizes) > 1 or any(q != k for q, k in sizes):
        raise ValueError(
            f"{name}: the attentions must be over the same tokens, [N, heads, tokens, tokens]; got "
            f"{told(traced, taken)}. Pass `layers`, names of those that are."
        )
    return over_tokens(name, traced, taken)


def in_turn(name: str, traced: Traced, taken: tuple[Attention, ...]) -> tuple[Attention, ...]:
    """Those `alike`, but for attentions side by side, which do not follow one another."""
    known = ways(traced)
    for one, other in itertools.pairwise(alike(name, traced, taken)):
        if not known.follows(one, other):
            raise ValueError(
                f"{name}: the attentions must follow one another; {one.name!r} and {other.name!r} "
                "stand side by side. Pass `layers`, names of those that do."
            )
    return taken


def row_of(name: str, one: Attention, total: jax.Array, query: int | None) -> jax.Array:
    """The row of `[N, tokens, ...]` that is read: the one named, a class token's, or their mean."""
    count = total.shape[1]
    if query is not None and not -count <= query < count:
        raise ValueError(
            f"{name}: query must be one of {count} tokens, from 0 to {count - 1}, or counted from "
            f"the end, down to -{count}; got {query}."
        )
    if query is None and one.tokens is not None and one.tokens.before:
        query = 0
    return total.mean(1) if query is None else total[:, query]


def map_of(
    name: str, one: Attention, total: jax.Array, x: Any, query: int | None, resize: Resize
) -> jax.Array:
    """The chosen row of `[N, tokens, tokens]`, laid out."""
    return laid_out(name, one.tokens, row_of(name, one, total, query), x, resize)


def laid_out(name: str, tokens: Any, row: jax.Array, x: Any, resize: Resize) -> jax.Array:
    """`[N, keys]` as a map of the image where they are its patches."""
    if tokens is None or len(tokens.sizes) < 2:
        return row
    patches = row[:, tokens.before : row.shape[1] - tokens.after]
    if resize is True:  # the image's axes where it has them: its channels may come first
        leaves = jax.tree.leaves(x)
        resize = tuple(leaves[n if len(leaves) > 1 else 0].shape[a] for n, a in tokens.axes)
    return resized(name, patches.reshape(len(row), *tokens.sizes), x, resize)
