"""How attention carries tokens from the input to the end: rollout, relevance, and gradients."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.attention.gradients import by_examples, reduced_gradients, weights_shape
from jaxviz.attention.laid import in_turn, laid_out, map_of, over_tokens, told
from jaxviz.attention.late import attended
from jaxviz.attention.maps import chosen
from jaxviz.calls.options import layer_list, maybe, real, whole
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import wide
from jaxviz.graph.changed import run
from jaxviz.parts.feature_maps import Resize

_LAYERS = maybe(layer_list)
_SHARE = real(0, 1, below=True)


@explanation(
    "layers", "fusion", "discard", "query", "resize", "chunk_size",
    integers=True, classless=True, layers=_LAYERS, discard=_SHARE, query=maybe(whole()),
)  # fmt: skip
def attention_rollout(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    fusion: Literal["mean", "max", "min"] = "mean",
    discard: float = 0.0,
    query: int | None = None,
    resize: Resize = True,
    chunk_size: int | None = None,
) -> jax.Array:
    """How much of each token reaches another one through all attentions: the same for any class.

    R = prod_l norm(A_l + I), heads fused in A_l and rows normalised to 1, the residual connection
    counting as much as the attention beside it.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Not used: the map is the same for every class. Taken so that all methods are called
        alike.
      layers: Names of `attentions` to take; None takes all. They must be self-attentions over the
        same tokens.
      fusion: How heads become one.
      discard: Share of each example's fused weights that are set to 0, the lowest; that of the
        first token to itself is kept. Rows are normalised after it.
      query: The token that is read (-1: the last); None reads the first where the model shows that
        it is none of an image's (a class token), and else the mean over tokens.
      resize: For images, whether to scale the map to their size, or to which.
      chunk_size: Examples at once; None takes all.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the tokens: linear between
      patches, those of other tokens (class, distillation, registers) left out; `[N, rows, columns]`
      with `resize=False`. Else `[N, tokens]`, all of them, which sums to 1. At least float32. Costs
      one forward pass.

    Raises:
      ValueError: The model has no attention, or one that cannot be read; those taken are not over
        the same tokens, stand side by side, or have weights that may be negative (a difference, as
        of differential attention, or heads mixed by numbers of any sign), which are no shares.

    Example:
      >>> net = lambda w, x: (jax.nn.softmax(x @ x.mT) @ x).sum(1)
      >>> attention_rollout(net, None, jnp.ones((1, 2, 3)), query=0).tolist()
      [[0.75, 0.25]]

    Reference:
      Abnar and Zuidema 2020, arXiv:2005.00928, equation 1 and section 3. Fusion other than the mean
      and `discard`: vit-explain (Gildenblat 2020), which drops 0.9 and divides columns, where the
      paper divides rows, as here.
    """
    name = "attention_rollout"
    fuse = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}[fusion]

    def some(x, _):
        traced = attended(apply_fn, params, x)
        taken = in_turn(name, traced, chosen(name, traced, layers))
        for one in taken:
            if one.signed:
                raise ValueError(
                    f"{name}: the weights must be shares, none below 0; those of {one.name!r} may "
                    "be, for they are a difference or a sum by numbers of any sign. Take "
                    "jaxviz.attention_relevance, or `layers`, names of others."
                )
        env = run(traced, jax.tree.leaves((params, x)), {})
        total: Any = None
        for one in taken:
            weights = fuse(wide(one.read(env[one.value])), axis=1)
            if discard:
                weights = _without_lowest(weights, discard)
            mixed = weights + jnp.eye(weights.shape[-1], dtype=weights.dtype)[None]
            mixed = mixed / mixed.sum(-1, keepdims=True)
            total = mixed if total is None else mixed @ total
        return map_of(name, taken[-1], total, x, query, resize)

    return by_examples(name, some, x, None, chunk_size)


@explanation("layers", "resize", "chunk_size", integers=True, layers=_LAYERS)
def attention_x_gradient(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    resize: Resize = True,
    chunk_size: int | None = None,
) -> jax.Array:
    """What the attention paid to each token adds to the explained number, to first order.

    sum over heads and queries of A * d f / d A, weights being moved one by one: signed.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layers: Names of `attentions`, of as many keys each, whose maps are added up; None takes the
        last one. Cross-attention will do.
      resize: For images, whether to scale the map to their size, or to which.
      chunk_size: Examples at once; None takes all.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the keys, `[N, rows, columns]`
      with `resize=False`; else `[N, keys]`. In units of the explained output, at least float32.
      Costs one forward and one backward pass.

    Raises:
      ValueError: The model has no attention, or those taken have different numbers of keys, or
        keys that are a window's or channels.

    Example:
      >>> net = lambda w, x: (jax.nn.softmax(x @ x.mT) @ x).sum(1)
      >>> attention_x_gradient(net, None, jnp.ones((1, 2, 3)), 0).tolist()
      [[1.0, 1.0]]

    Reference:
      Barkan et al. 2021, "Grad-SAM", arXiv:2204.11073, equation 6, where the product's negative
      part is dropped and heads, queries and layers are averaged; here nothing is dropped.
    """
    name = "attention_x_gradient"

    def some(x, target):
        traced = attended(apply_fn, params, x)
        every = chosen(name, traced, layers)
        taken = over_tokens(name, traced, every[-1:] if layers is None else every)
        if len({weights_shape(traced, one)[-1] for one in taken}) > 1:
            raise ValueError(
                f"{name}: layers must have as many keys each; got {told(traced, taken)}. "
                "Take some of one kind."
            )
        moved = lambda a, g, w: (a * g).sum((1, 2))
        parts, _ = reduced_gradients(traced, taken, params, x, target, moved)
        total: Any = sum(parts)
        return laid_out(name, taken[-1].tokens, total, x, resize)

    return by_examples(name, some, x, target, chunk_size)


def _without_lowest(weights: jax.Array, share: float) -> jax.Array:
    """`[N, T, T]` with a share of each example's numbers set to 0, the lowest; not the first."""
    flat = weights.reshape(len(weights), -1)
    order = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)
    kept = (order >= int(flat.shape[1] * share)).at[:, 0].set(True)
    return jnp.where(kept, flat, 0).reshape(weights.shape)
