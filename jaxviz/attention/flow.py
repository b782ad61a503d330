"""How attention carries tokens from the input to the end: rollout, relevance, and gradients."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxviz.attention.found import Attention
from jaxviz.attention.maps import chosen
from jaxviz.calls.options import layer_list, maybe, real, whole
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.graph.changed import run
from jaxviz.graph.trace import Traced, trace
from jaxviz.parts.feature_maps import Resize, resized

_LAYERS = maybe(layer_list)
_SHARE = real(0, 1, below=True)


@explanation(
    "layers", "fusion", "discard", "query", "resize",
    integers=True, layers=_LAYERS, discard=_SHARE, query=maybe(whole(0)),
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
      query: The token that is read; None reads the first where the model shows that it is none of
        an image's (a class token), and else the mean over tokens.
      resize: For images, whether to scale the map to their size, or to which.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the tokens: linear between
      patches, those of other tokens (class, distillation, registers) left out; `[N, rows, columns]`
      with `resize=False`. Else `[N, tokens]`, all of them, which sums to 1. At least float32. Costs
      one forward pass.

    Raises:
      ValueError: The model has no attention, or those taken are not over the same tokens.

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
    traced = trace(apply_fn, params, x)
    taken = _alike(name, traced, chosen(name, traced, layers))
    env = run(traced, jax.tree.leaves((params, x)), {})
    fuse = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}[fusion]
    total: Any = None
    for one in taken:
        weights = fuse(_wide(one.read(env[one.value])), axis=1)
        if discard:
            weights = _without_lowest(weights, discard)
        mixed = weights + jnp.eye(weights.shape[-1], dtype=weights.dtype)[None]
        mixed = mixed / mixed.sum(-1, keepdims=True)
        total = mixed if total is None else mixed @ total
    return _map(name, taken[-1], total, x, query, resize)


@explanation(
    "layers", "query", "resize", integers=True, layers=_LAYERS, query=maybe(whole(0))
)  # fmt: skip
def attention_relevance(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    query: int | None = None,
    resize: Resize = True,
) -> jax.Array:
    """Which tokens speak for the explained number, through every self-attention.

    R = I; for each attention, in order: R <- R + mean_heads(relu(A * d f / d A)) R.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layers: Names of `attentions` to take; None takes all. They must be self-attentions over the
        same tokens.
      query: The token that is read; None reads the first where the model shows that it is none of
        an image's (a class token), and else the mean over tokens.
      resize: For images, whether to scale the map to their size, or to which.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the tokens, `[N, rows, columns]`
      with `resize=False`; else `[N, tokens]`. Non-negative, at least float32. R's own I is
      taken off, so what no attention carries is 0. Costs one forward and one backward pass.

    Raises:
      ValueError: The model has no attention, or those taken are not over the same tokens (of
        cross-attention, pass the `layers` of one side).

    Example:
      >>> net = lambda w, x: (jax.nn.softmax(x @ x.mT) @ x).sum(1)
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> [round(float(r), 3) for r in attention_relevance(net, None, x, 0, query=0)[0]]
      [0.731, 0.0]

    Reference:
      Chefer, Gur and Wolf 2021, arXiv:2103.15679, equations 5 and 6 (self-attention); the class
      token's row of R less I is read there too.
    """
    name = "attention_relevance"
    traced = trace(apply_fn, params, x)
    taken = _alike(name, traced, chosen(name, traced, layers))
    total: Any = None
    for weights, gradient in _weights_and_gradients(traced, taken, params, x, target):
        step = jax.nn.relu(weights * gradient).mean(1)
        # R less I, so that small relevance is no difference of large numbers.
        total = step if total is None else total + step + step @ total
    return _map(name, taken[-1], total, x, query, resize)


@explanation("layers", "resize", integers=True, layers=_LAYERS)
def attention_x_gradient(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    resize: Resize = True,
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

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the keys, `[N, rows, columns]`
      with `resize=False`; else `[N, keys]`. In units of the explained output, at least float32.
      Costs one forward and one backward pass.

    Raises:
      ValueError: The model has no attention, or those taken have different numbers of keys, or
        windows as well as heads.

    Example:
      >>> net = lambda w, x: (jax.nn.softmax(x @ x.mT) @ x).sum(1)
      >>> attention_x_gradient(net, None, jnp.ones((1, 2, 3)), 0).tolist()
      [[1.0, 1.0]]

    Reference:
      Barkan et al. 2021, "Grad-SAM", arXiv:2204.11073, equation 6, where the product's negative
      part is dropped and heads, queries and layers are averaged; here nothing is dropped.
    """
    name = "attention_x_gradient"
    traced = trace(apply_fn, params, x)
    every = chosen(name, traced, layers)
    taken = every[-1:] if layers is None else every
    shapes = {_shape(traced, one)[-1] for one in taken}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: layers must have as many keys each; got {_told(traced, taken)}. "
            "Take some of one kind."
        )
    pairs = _weights_and_gradients(traced, taken, params, x, target)
    total: Any = sum((a * g).sum((1, 2)) for a, g in pairs)
    return _laid_out(name, taken[-1], total, x, resize)


def _weights_and_gradients(
    traced: Traced, taken: Sequence[Attention], params: Any, x: Any, target: Target
) -> list[tuple[jax.Array, jax.Array]]:
    """For each attention its weights and the gradient of the explained number by them, alike."""
    arguments = jax.tree.leaves((params, x))

    def explained(added):
        change = {
            one.value: (lambda a, one=one, extra=extra: a + one.written(extra, a))
            for one, extra in zip(taken, added, strict=True)
        }
        env = run(traced, arguments, change)
        outputs = jax.tree.map(lambda value: env[value], traced.outputs)
        weights = [_wide(one.read(env[one.value])) for one in taken]
        return select(outputs, target).sum(), weights

    dtypes = [traced.program.avals[one.value].dtype for one in taken]
    nothing = [
        jnp.zeros(_shape(traced, one), dtype) for one, dtype in zip(taken, dtypes, strict=True)
    ]
    gradients, weights = jax.grad(explained, has_aux=True)(nothing)
    return [(a, _wide(g)) for a, g in zip(weights, gradients, strict=True)]


def _shape(traced: Traced, one: Attention) -> tuple[int, ...]:
    """`(N, heads, queries, keys)`."""
    aval = traced.program.avals[one.value]
    return jax.eval_shape(one.read, jax.ShapeDtypeStruct(aval.shape, aval.dtype)).shape


def _told(traced: Traced, taken: Sequence[Attention]) -> str:
    return ", ".join(f"{one.name!r} {_shape(traced, one)}" for one in taken)


def _alike(name: str, traced: Traced, taken: tuple[Attention, ...]) -> tuple[Attention, ...]:
    """Refuses attentions that cannot follow one another: of other sizes, or within windows."""
    sizes = {_shape(traced, one)[2:] for one in taken}
    if len(sizes) > 1 or any(q != k for q, k in sizes):
        raise ValueError(
            f"{name}: the attentions must be over the same tokens, [N, heads, tokens, tokens]; got "
            f"{_told(traced, taken)}. Pass `layers`, names of those that are."
        )
    return taken


def _without_lowest(weights: jax.Array, share: float) -> jax.Array:
    """`[N, T, T]` with a share of each example's numbers set to 0, the lowest; not the first."""
    flat = weights.reshape(len(weights), -1)
    order = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)
    kept = (order >= int(flat.shape[1] * share)).at[:, 0].set(True)
    return jnp.where(kept, flat, 0).reshape(weights.shape)


def _wide(a: jax.Array) -> jax.Array:
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def _map(
    name: str, one: Attention, total: jax.Array, x: Any, query: int | None, resize: Resize
) -> jax.Array:
    """The chosen row of `[N, tokens, tokens]`, laid out."""
    if query is not None and query >= total.shape[1]:
        raise ValueError(
            f"{name}: query must be one of {total.shape[1]} tokens, from 0; got {query}."
        )
    if query is None and one.tokens is not None and one.tokens.before:
        query = 0
    row = total.mean(1) if query is None else total[:, query]
    return _laid_out(name, one, row, x, resize)


def _laid_out(name: str, one: Attention, row: jax.Array, x: Any, resize: Resize) -> jax.Array:
    """`[N, keys]` as a map of the image where they are its patches."""
    tokens = one.tokens
    if tokens is None or len(tokens.sizes) < 2:
        return row
    patches = row[:, tokens.before : row.shape[1] - tokens.after]
    return resized(name, patches.reshape(len(row), *tokens.sizes), x, resize)
