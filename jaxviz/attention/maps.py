"""Every attention of a model by name."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxviz.attention.found import Attention, found
from jaxviz.attention.late import attended
from jaxviz.attention.unread import hidden, missed, unread
from jaxviz.calls.options import layer_list, maybe
from jaxviz.calls.public import public
from jaxviz.graph.changed import run
from jaxviz.graph.held import hold
from jaxviz.graph.trace import Traced


@public(layers=maybe(layer_list))
def attentions(
    apply_fn: Callable, params: Any, x: Any, *, layers: Sequence[str] | None = None
) -> dict[str, jax.Array]:
    """The weights of every attention in a model, whatever it is written in, in one run.

    An attention is found in the computation: weights over keys that a product with values then
    contracts. Weights are an exponential divided by its own sum along one axis (a softmax, masked
    or not), or a sigmoid or ReLU of the products of queries and keys. So modules of any framework
    are found, `jax.nn.dot_product_attention`, einsums by hand, queries that share keys (grouped
    heads), masks, windows, cross-attention, and the blocks of a scan over layers.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]` or a pytree of such; token ids too.
      layers: Names of those to take; None takes all, and refuses a model that also has one that
        cannot be read.

    Returns:
      From name to `[N, heads, queries, keys]`, in the order in which they run: the weights as they
      multiply the values. So rows sum to 1 where none are masked or dropped afterwards and nothing
      stands beside the keys, and for talking heads they are those after the last mix, for
      differential attention the difference, for gated ones the gated: rows sum to anything, and
      some weights may be negative. The name is that of the module or scope as in `jaxviz.layers`;
      `attention_0` and so on where there is none, or several in one. Heads are numbered as the
      model joins them; where it does not show that, those that share keys follow one another.
      Windows count as heads: those of the first window come first. Where each query has keys of its
      own (a neighbourhood gathered for it), queries count as heads. One query alone has an axis of
      1. Weights that are divided by their sum after the product come as if divided before it.
      Attention over channels (XCiT) is `[N, heads, channels, channels]`.

    Raises:
      ValueError: There is none, or one that cannot be read stands beside others. A fused kernel, a
        loop over time or a branch, linear attention, and what becomes of weights that cannot be
        followed, are named with their line.

    Example:
      >>> def net(w, x):  # [N, tokens, width]
      ...     return jax.nn.softmax(x @ x.mT) @ x
      >>> maps = attentions(net, None, jax.numpy.ones((1, 4, 2)))
      >>> maps["attention_0"].shape, float(maps["attention_0"][0, 0, 0, 0])
      ((1, 1, 4, 4), 0.25)

    Reference:
      Talking heads: Shazeer et al. 2020, arXiv:2003.02436; differential: Ye et al. 2024,
      arXiv:2410.05258; sigmoid: Ramapuram et al. 2024, arXiv:2409.04431.
    """
    apply_fn, params = hold("attentions", apply_fn, params)
    return _run(apply_fn, None if layers is None else tuple(layers), params, x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(apply_fn, layers, params, x):
    traced = attended(apply_fn, params, x)
    taken = chosen("attentions", traced, layers)
    env = run(traced, jax.tree.leaves((params, x)), {})
    return {one.name: one.read(env[one.value]) for one in taken}


def chosen(who: str, traced: Traced, layers: Sequence[str] | None) -> tuple[Attention, ...]:
    """The attentions of these names, in the order in which they run; None is all."""
    every = found(traced)
    if not every:
        kernel = hidden(traced)
        why = (
            f"{kernel} may hide one. Build the model with the plain implementation, "
            'such as jax.nn.dot_product_attention(..., implementation="xla").'
            if kernel
            else "no weights over keys are found that a product with values contracts; "
            + unread(traced)
        )
        raise ValueError(f"{who}: the model must have an attention; {why}")
    names = [one.name for one in every]
    if layers is None and (told := missed(traced)) is not None:
        raise ValueError(
            f"{who}: every attention must be one that can be read; {told} Pass `layers`, names of "
            f"those to take: {', '.join(map(repr, names))}."
        )
    for name in layers or ():
        if name not in names:
            raise ValueError(
                f"{who}: layers must be names of attentions; got {name!r}, and there are "
                f"{', '.join(map(repr, names))}. Take some of `jaxviz.attentions(...)`."
            )
    return every if layers is None else tuple(one for one in every if one.name in layers)
