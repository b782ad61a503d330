"""A model whose layer passes through a dictionary: its codes become a layer with a name."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxviz.calls.made import made
from jaxviz.calls.public import public
from jaxviz.concepts.dictionary import Dictionary, decode, encode
from jaxviz.graph.held import Held, as_tree, hold
from jaxviz.interventions.patched import patched
from jaxviz.parts.channels import channel_axis

_NAME = "through"


@jax.tree_util.register_pytree_node_class
class Through:
    """A model with a dictionary in one of its layers; equal (`==`, `hash`) for the same arrays."""

    def __init__(self, apply_fn: Any, layer: str, dictionary: Dictionary):
        self._apply_fn, self.layer, self.dictionary = apply_fn, layer, dictionary
        self.__name__ = f"through({layer})"

    @property
    def apply_fn(self) -> Callable:
        """The model as it was."""
        held = self._apply_fn
        return held.value if isinstance(held, Held) else held

    def tree_flatten(self) -> tuple[tuple, str]:
        return (self._apply_fn, self.dictionary), self.layer

    @classmethod
    def tree_unflatten(cls, layer: str, parts: tuple) -> "Through":
        return cls(parts[0], layer, parts[1])

    def _key(self) -> tuple:
        leaves, structure = jax.tree.flatten(self)
        return structure, tuple(map(id, leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Through) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @made(lambda self: (_NAME, "params and x must be what apply_fn takes"))
    def __call__(self, params: Any, x: Any) -> Any:
        apply_fn, params = hold(_NAME, self.apply_fn, params)
        axis = channel_axis(_NAME, apply_fn, params, x, self.layer)
        step = functools.partial(_passed, axis, f"{self.layer}/codes")
        put = jax.tree_util.Partial(step, self.dictionary)
        return patched(apply_fn, self.layer, put)(params, x)


@public()
def through(apply_fn: Callable, layer: str, dictionary: Dictionary) -> Callable:
    """The same model, with the codes of a dictionary as a layer of its own, `LAYER/codes`.

    The layer's value a is written in the dictionary and read back, and what the dictionary leaves
    out is added as a constant: `decode(codes) + stop_gradient(a - decode(codes))`. The outputs are
    the model's own; the score's gradient goes through the codes alone. So whatever takes a layer
    and a channel takes the dictionary's units: `top_examples(net, params, images,
    layer="LAYER/codes")`, `objectives.channel("LAYER/codes", k)`, `concept_relevance(...,
    channel=k)`, `activations`, `grad_cam`, `patched`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`, whose channels are on any axis: images
        or tokens. The codes are `[N, *space, K]`, on the last one.
      dictionary: Of K atoms in the layer's channels.

    Returns:
      A function `(params, x) -> outputs`, a pytree of the dictionary's arrays: where this library
      compiles it they are arguments, and another dictionary of the same kind compiles nothing.

    Raises:
      ValueError: When called: no such layer, or one with another number of channels.

    Example:
      >>> from jaxviz.graph.split import activations
      >>> net = lambda w, x: jnp.tanh(x) @ w
      >>> half = Dictionary(jnp.array([[1.0, 0.0]]), encoder=jnp.array([[2.0], [0.0]]))
      >>> w, x = jnp.ones((2, 1)), jnp.zeros((1, 2))
      >>> coded = through(net, "tanh_0", half)
      >>> coded(w, x).tolist(), activations(coded, w, x, ["tanh_0/codes"])["tanh_0/codes"].tolist()
      ([[0.0]], [[0.0]])

    Reference:
      The error node of Marks et al. 2024, arXiv:2403.19647, eq. 1.
    """
    # A model that holds arrays is a pytree in this one; any other is one of its fixed parts.
    leaves = jax.tree.leaves(as_tree(apply_fn), is_leaf=lambda a: isinstance(a, Held))
    fixed = any(isinstance(a, Held) for a in leaves)
    return Through(Held(apply_fn) if fixed else apply_fn, layer, dictionary)


def _passed(axis: int, name: str, dictionary: Dictionary, a: jax.Array) -> jax.Array:
    moved = jnp.moveaxis(a, axis, -1)
    codes = checkpoint_name(encode(dictionary, moved), name)
    known = decode(dictionary, codes)
    return jnp.moveaxis(known + jax.lax.stop_gradient(moved - known), -1, axis)
