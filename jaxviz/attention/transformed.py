"""Which tokens the class is read from, by how much blocks change each token that they move."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attention.found import Attention
from jaxviz.attention.gradients import Read, by_examples, reduced_gradients, weights_shape
from jaxviz.attention.laid import in_turn, laid_out, row_of
from jaxviz.attention.late import attended
from jaxviz.attention.maps import chosen
from jaxviz.attention.projections import of_themselves
from jaxviz.attention.residuals import Residual, residuals
from jaxviz.calls.options import layer_list, maybe, whole
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import stacked
from jaxviz.graph.trace import Traced
from jaxviz.parts.feature_maps import Resize


@explanation(
    "layers", "query", "resize", "chunk_size",
    integers=True, layers=maybe(layer_list), query=maybe(whole()),
)  # fmt: skip
def token_tm(
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
    """Which tokens speak for the explained number, each weighed by how its blocks change it.

    C_0 = diag(||E||) and, for each sum in which a block adds to its tokens E, in order,
    C <- (I + M + diag(w)) C: of attention M = mean_heads(relu(A * d f / d A) diag(w_h)), of dense
    layers w. w = ||F|| / ||E|| times the softmax over tokens of cos(E, F), where F is what is added
    to a token: by dense layers, or by a head of which each token attends to itself alone.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layers: Names of `attentions` to take, with their blocks; None takes all. They must be
        self-attentions over the same tokens that follow one another.
      query: The token that is read (-1: the last); None reads the first where the model shows that
        it is none of an image's (a class token), and else the mean over tokens.
      resize: For images, whether to scale the map to their size, or to which.
      chunk_size: Examples at once; None takes all. Heads are taken some at a time.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the tokens, `[N, rows, columns]`
      with `resize=False`; else `[N, tokens]`, where what a token keeps of itself counts. In units
      of the first tokens' length, non-negative, at least float32. Costs one forward and one
      backward pass, and 2 % more (MiniLM-L6's sizes).

    Raises:
      ValueError: The model has no attention, those taken are not over the same tokens or stand side
        by side, or what their blocks add to which tokens is not plain from the model.

    Example:
      >>> net = lambda w, x: (x + jax.nn.softmax(x @ x.mT) @ x)[:, 0]
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> [round(float(r), 3) for r in token_tm(net, None, x, 0, query=0)[0]]
      [1.366, 0.0]

    Reference:
      Wu et al. 2024, arXiv:2403.14552, equations 12 to 18, as a public reproduction states them:
      the authors' code was not at hand. F of a head is E W_v W_o there; here it is what the
      model itself makes, with its norm, the values' bias and a layer's scale, and no output bias,
      which is no head's; by its derivative where a norm follows. Where a block adds attention and
      dense layers in one sum, both are in one step. Norms of the sums themselves (BERT) do not
      change C. A token of no length carries nothing on, and one that none attends to, padding,
      has no part in the softmax. Layers that mix tokens (convolutions, mixers, loops over them) are
      refused; what else comes from others, a mean or a shift, counts as the token's own.
    """
    name = "token_tm"

    def some(x, target):
        traced = attended(apply_fn, params, x)
        taken = in_turn(name, traced, chosen(name, traced, layers))
        sums = {one.name: residuals(name, traced, one) for one in taken}
        every = [(one, each) for one in taken for each in sums[one.name]]
        later = {
            each.total.value: functools.partial(_weights, name, traced, one, each)
            for one, each in every
        }
        speaks = lambda a, g, w: (jax.nn.relu(a * g) * w[:, :, None, :]).mean(1)
        steps, told = reduced_gradients(traced, taken, params, x, target, speaks, later)
        mixed = {one.name: step for one, step in zip(taken, steps, strict=True)}
        own = jnp.broadcast_to(jnp.eye(steps[0].shape[-1], dtype=steps[0].dtype), steps[0].shape)
        row = row_of(name, taken[-1], own, query)
        # The row that is read alone, from the last sum back to the first.
        for one, each in every[::-1]:
            dense, lengths = told[each.total.value]
            kept = row if dense is None else row + row * dense
            row = kept + jnp.einsum("nq,nqk->nk", row, mixed[one.name]) if each.carries else kept
        row = row * lengths
        return laid_out(name, taken[-1].tokens, row, x, resize)

    return by_examples(name, some, x, target, chunk_size)


def _weights(name: str, traced: Traced, one: Attention, each: Residual, read: Read) -> tuple:
    """w of what attention adds to tokens, `[N, heads, tokens]` by its name; w of what dense layers
    do, or None, and the tokens' lengths, `[N, tokens]`."""
    e, total, heads = each.read(read(each.skip)), each.total.value, {}
    # What no token attends to is padding: how much of it there is must change nothing.
    seen = (one.read(read(one.value)) != 0).any((1, 2))
    if each.carries:
        made = of_themselves(traced, one, total, read)
        weight = lambda h: _transformed(e, each.read(made(h)), seen)
        count = weights_shape(traced, one)[1]
        found = stacked(name, weight, count, None, read(total))
        heads = {one.name: jnp.moveaxis(found, 0, 1)}
    return heads, (_transformed(e, each.added(read), seen) if each.others else None, _length(e))


def _transformed(e: jax.Array, made: jax.Array, seen: jax.Array) -> jax.Array:
    """`[N, tokens]`: w = ||made|| / ||e|| times the softmax over seen tokens of their cosine."""
    length, there = _length(e), _length(made)
    cosine = _share(_share((e * made).sum(-1), length), there)
    shares = jnp.where(seen, jnp.exp(cosine), 0)
    return _share(there, length) * _share(shares, shares.sum(-1, keepdims=True))


def _length(e: jax.Array) -> jax.Array:
    return jnp.sqrt((e**2).sum(-1))


def _share(a: jax.Array, b: jax.Array) -> jax.Array:
    """Their quotient, 0 of nothing: a token of no length carries nothing."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
