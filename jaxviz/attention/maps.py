"""Every attention of a model by name."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxviz.attention.found import Attention, found
from jaxviz.attention.late import attended
from jaxviz.attention.unread import hidden, unread
from jaxviz.calls.public import public
from jaxviz.graph.changed import run
from jaxviz.graph.held import hold
from jaxviz.graph.trace import Traced


@public()
def attentions(apply_fn: Callable, params: Any, x: Any) -> dict[str, jax.Array]:
    """The weights of every attention in a model, whatever it is written in, in one run.

    An attention is found in the computation: an exponential divided by its own sum along one axis
    (a softmax, masked or not), which a product with values then contracts. So modules of any
    framework are found, `jax.nn.dot_product_attention`, einsums by hand, queries that share keys
    (grouped heads), masks, windows, cross-attention, and the blocks of a scan over layers.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]` or a pytree of such; token ids too.

    Returns:
      From name to `[N, heads, queries, keys]`, in the order in which they run: the weights as they
      multiply the values, so rows sum to 1 where none are masked or dropped afterwards. The name is
      that of the module or scope as in `jaxviz.layers`; `attention_0` and so on where there is
      none, or several in one. Heads are numbered as the model joins them; where it does not show
      that, those that share keys follow one another. Windows count as heads: those of the first
      window come first. One query alone has an axis of 1. Weights that are divided by their sum
      after the product come as if divided before it. Attention inside a loop over time or a branch
      is not found.

    Raises:
      ValueError: There is none. A fused kernel or a loop that may hide it, and linear attention,
        are named with their line.

    Example:
      >>> def net(w, x):  # [N, tokens, width]
      ...     return jax.nn.softmax(x @ x.mT) @ x
      >>> maps = attentions(net, None, jax.numpy.ones((1, 4, 2)))
      >>> maps["attention_0"].shape, float(maps["attention_0"][0, 0, 0, 0])
      ((1, 1, 4, 4), 0.25)
    """
    apply_fn, params = hold("attentions", apply_fn, params)
    return _run(apply_fn, params, x)


@functools.partial(jax.jit, static_argnums=0)
def _run(apply_fn, params, x):
    traced = attended(apply_fn, params, x)
    all_found = chosen("attentions", traced, None)
    env = run(traced, jax.tree.leaves((params, x)), {})
    return {one.name: one.read(env[one.value]) for one in all_found}


def chosen(who: str, traced: Traced, layers: Sequence[str] | None) -> tuple[Attention, ...]:
    """The attentions of these names, in the order in which they run; None is all."""
    every = found(traced)
    if not every:
        kernel = hidden(traced)
        why = (
            f"{kernel} may hide one. Build the model with the plain implementation, "
            'such as jax.nn.dot_product_attention(..., implementation="xla").'
            if kernel
            else "no softmax's axis is the one that a product with values contracts; "
            + unread(traced)
        )
        raise ValueError(f"{who}: the model must have an attention; {why}")
    names = [one.name for one in every]
    for name in layers or ():
        if name not in names:
            raise ValueError(
                f"{who}: layers must be names of attentions; got {name!r}, and there are "
                f"{', '.join(map(repr, names))}. Take some of `jaxviz.attentions(...)`."
            )
    return every if layers is None else tuple(one for one in every if one.name in layers)
