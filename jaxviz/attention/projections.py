"""What each head of an attention adds of a token that attends to itself alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attention.blocks import Ways, ways
from jaxviz.attention.found import Attention, Mixed
from jaxviz.attention.gradients import Read, weights_shape
from jaxviz.attention.softmaxes import COPIES, SHAPING, name_of
from jaxviz.graph.changed import after
from jaxviz.graph.interpreter import CUSTOM, Node, Value, equation_of, run_node
from jaxviz.graph.trace import Traced


def of_themselves(
    traced: Traced, one: Attention, total: Value, read: Read
) -> Callable[[jax.Array], jax.Array]:
    """`h -> a`: what head h adds to a value, where each token attends to itself alone.

    By the derivative along such weights, which is exact as far as the value is affine in them. It
    is taken in one product with the values for all heads, and one with each head's own part of
    the output projection where the program shows which that is.

    Args:
      traced: The model.
      one: The attention.
      total: The value, made of it.
      read: The values of a run of the model.
    """
    known = ways(traced)
    aval = known.program.avals[one.value]
    shape = _, count, _, tokens = weights_shape(traced, one)
    itself = jnp.broadcast_to(jnp.eye(tokens, dtype=aval.dtype), shape)
    alone, made, value = one.written(itself, aval), one, one.value
    met = known.through(known.made[one.value])
    if one.mixed is not None and known.made[one.mixed.value] in met:
        product = _projection(known, one.mixed)
        value = one.mixed.value if product is None else product.joined
        # Linear in the weights: those of a run are not needed for it.
        alone, made = _made_again(known, read, one.value, alone, value), one.mixed
        if product is not None:
            (out,) = product.node.outputs
            ahead, weights = _derivative(known, read, out, total), read(product.weights)
            return lambda h: ahead(product.of_head(alone, weights, h))
    ahead, alone = _derivative(known, read, value, total), made.read(alone)
    like = known.program.avals[value]

    def head(h):
        here = (jnp.arange(count, dtype=h.dtype) == h).astype(like.dtype)
        return ahead(made.written(alone * here[None, :, None, None], like))

    return head


class _Product(NamedTuple):
    """An output projection.

    Attributes:
      node: A product with params.
      joined: What it takes of the heads.
      weights: The params.
      side: Which operand `joined` is.
      places: `[heads, width]`, where each head is along the axes that are contracted.
    """

    node: Node
    joined: Value
    weights: Value
    side: int
    places: np.ndarray

    def of_head(self, joined: jax.Array, weights: jax.Array, h: jax.Array) -> jax.Array:
        """The product of one head's part of both, as the whole product is laid out."""
        params = equation_of(self.node).params
        (axes, _), ours = params["dimension_numbers"], self.side
        a, w = self._by_head(joined, axes[ours], h), self._by_head(weights, axes[1 - ours], h)
        first, second = (w, a) if ours else (a, w)
        return jax.lax.dot_general(
            first, second, (((0,), (0,)), ((), ())),
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )  # fmt: skip

    def _by_head(self, a: jax.Array, axes: tuple[int, ...], h: jax.Array) -> jax.Array:
        """`[width, ...]`: one head's part of the contracted axes, then the others."""
        a = jnp.moveaxis(a, axes, range(len(axes)))
        a = a.reshape(-1, *a.shape[len(axes) :])
        if (self.places.reshape(-1) != np.arange(self.places.size)).any():
            a = a[self.places.reshape(-1)]
        a = a.reshape(*self.places.shape, *a.shape[1:])
        return jax.lax.dynamic_index_in_dim(a, h, keepdims=False)


def _projection(known: Ways, mixed: Mixed) -> _Product | None:
    """The product with params that heads are joined for, if they are apart until then."""
    value, avals = mixed.value, known.program.avals
    inner = [avals[value].shape[a] for a in mixed.order]
    # Each number's head, followed to the product.
    of = np.arange(mixed.heads, dtype=np.int32)[:, None]
    each = math.prod(inner) // (mixed.count * mixed.heads)
    of = np.broadcast_to(of, (mixed.count, mixed.heads, each))
    of = of.reshape(inner).transpose(np.argsort(mixed.order))
    while (reader := known.only_reader(value)) is not None:
        node = known.nodes[reader]
        if name_of(node) not in COPIES | SHAPING:
            break
        value = node.outputs[node.inputs.index(value)]
        params = equation_of(node).params
        if name_of(node) == "transpose":
            of = of.transpose(params["permutation"])
        elif of.size == math.prod(avals[value].shape) and not params.get("dimensions"):
            of = of.reshape(avals[value].shape)
        else:
            return None
    else:
        return None
    weights = [v for v in node.inputs if v not in known.program.depends]
    if name_of(node) != "dot_general" or len(weights) != 1 or len(node.inputs) != 2:
        return None
    side = node.operands.index(value)
    contracted, batch = equation_of(node).params["dimension_numbers"]
    if batch[0]:
        return None
    of = np.moveaxis(of, contracted[side], range(len(contracted[side])))
    of = of.reshape(-1, math.prod(of.shape[len(contracted[side]) :]))
    if (of != of[:, :1]).any() or len(of) % mixed.heads:
        return None
    places = np.argsort(of[:, 0], kind="stable").reshape(mixed.heads, -1)
    whole = (of[places, 0] == np.arange(mixed.heads)[:, None]).all()
    return _Product(node, value, weights[0], side, places) if whole else None


def _derivative(known: Ways, read: Read, start: Value, end: Value) -> Callable:
    """Of a value by another one, along a change of that."""
    return jax.linearize(lambda a: _made_again(known, read, start, a, end), read(start))[1]


def _made_again(known: Ways, read: Read, start: Value, a: jax.Array, end: Value) -> jax.Array:
    """A value of a run of the model with another one in it, by operations as they are computed."""
    here = {start: a}
    for node in after(known.traced, start, (end,)):
        here.update({v: read(v) for v in node.inputs if v not in here})
        custom = bool(node.bodies) and equation_of(node).primitive.name in CUSTOM
        run_node(node, here, ({},) * len(node.bodies) if custom else None)
    return here[end]
