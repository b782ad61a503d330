"""What tokens' values do for one another: an experiment in each block."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attention.blocks import Stream, blocks
from jaxviz.attention.found import Attention
from jaxviz.attention.gradients import weights_shape
from jaxviz.attention.laid import in_turn, map_of
from jaxviz.attention.late import attended
from jaxviz.attention.maps import chosen
from jaxviz.calls.options import layer_list, maybe, whole
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import stacked, wide
from jaxviz.graph.changed import after, run, run_changed
from jaxviz.parts.feature_maps import Resize


@explanation(
    "layers", "query", "resize", "chunk_size", sweeps=True,
    integers=True, classless=True, layers=maybe(layer_list), query=maybe(whole()),
)  # fmt: skip
def value_zeroing(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    query: int | None = None,
    resize: Resize = True,
    chunk_size: int | None = None,
) -> jax.Array:
    """How far each token moves when another one's value is zeroed, through all blocks: no class.

    C_l[i, j] = 1 - cos(z_i, z_i without j's value in block l), rows divided by their sums;
    R = prod_l C_l. z is what the block hands on, so its residual, norms and dense layers count.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Not used: the map is the same for every class. Taken so that all methods are called
        alike.
      layers: Names of `attentions` to take; None takes all, one the experiment in its block alone.
        They must be self-attentions over the same tokens.
      query: The token that is read (-1: the last); None reads the first where the model shows that
        it is none of an image's (a class token), and else the mean over tokens.
      resize: For images, whether to scale the map to their size, or to which.
      chunk_size: Tokens zeroed at once, for all N examples. None chooses by the weights' size.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the tokens, `[N, rows, columns]`
      with `resize=False`. Else `[N, tokens]`, all of them, which sums to 1. At least float32. A
      token that no value moves keeps itself. Costs one forward pass, and a block's product and
      dense layers once a token.

    Raises:
      ValueError: The model has no attention, those taken are not over the same tokens or stand side
        by side, or the tokens that a block hands on are not plain from the model.

    Example:
      >>> net = lambda w, x: (x + jax.nn.softmax(x @ x.mT) @ x)[:, 0]
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> [round(float(r), 2) for r in value_zeroing(net, None, x, query=0)[0]]
      [0.33, 0.67]

    Reference:
      Mohebbi et al. 2023, arXiv:2301.12971, equations 3 to 5; their rollout adds no I either, for
      the residual is in C. inseq's `value_zeroing` gives C of each block; heads are zeroed
      together, as there. With one attention alone, z is the last sum of two values behind it.
    """
    name = "value_zeroing"
    traced = attended(apply_fn, params, x)
    taken = in_turn(name, traced, chosen(name, traced, layers))
    env = run(traced, jax.tree.leaves((params, x)), {})
    around = blocks(traced)
    total: Any = None
    for one in taken:
        given = handed_on(name, one, around[one.name])
        rest = after(traced, one.value, (given.value,))
        own, clean = env[one.value], _directions(given.read(env[given.value]))
        count = weights_shape(traced, one)[-1]

        def moved(j, one=one, rest=rest, own=own, clean=clean, given=given, count=count):
            kept = (jnp.arange(count, dtype=j.dtype) != j).astype(own.dtype)
            here = dict(env)
            here[one.value] = one.written(one.read(own) * kept[None, None, None, :], own)
            run_changed(rest, here, {})
            # Half the squared distance of directions: 1 - cos, without its cancellation.
            return ((_directions(given.read(here[given.value])) - clean) ** 2).sum(-1) / 2

        found = jnp.moveaxis(stacked(name, moved, count, chunk_size, own), 0, -1)
        sums = found.sum(-1, keepdims=True)
        itself = jnp.eye(count, dtype=found.dtype)[None]
        found = jnp.where(sums > 0, found / jnp.where(sums > 0, sums, 1), itself)
        total = found if total is None else found @ total
    return map_of(name, taken[-1], total, x, query, resize)


def handed_on(name: str, one: Attention, given: Stream | None) -> Stream:
    """What a block hands on; refused where the model does not show it."""
    if given is None:
        raise ValueError(
            f"{name}: what the block of {one.name!r} hands on must be [N, tokens, width], with no "
            "way past it, as in the blocks before; no such value was found. Pass `layers`, names "
            "of attentions whose blocks are alike."
        )
    return given


def _directions(z: jax.Array) -> jax.Array:
    z = wide(z)
    length = jnp.sqrt((z**2).sum(-1, keepdims=True))
    return z / jnp.where(length > 0, length, 1)
