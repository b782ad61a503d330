"""The kernels of a convolution, found by its layer's name whatever the model is written in."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.public import public
from jaxviz.graph.held import hold
from jaxviz.graph.interpreter import Node, Scalar, equation_of, evaluate
from jaxviz.graph.layers import find
from jaxviz.graph.rows import operation_names, rows
from jaxviz.graph.split import needed
from jaxviz.graph.trace import trace


@public()
def filters(apply_fn: Callable, params: Any, x: Any, layer: str) -> jax.Array:
    """The kernels that a convolution slides over its input.

    Read off the computation, not out of `params`: a kernel that the model makes itself (normalised,
    masked, transposed) comes as it is applied.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree of arrays.
      x: `[N, ...]` or a pytree of such; arrays or shapes, of which only the shapes are used.
      layer: A name of `jaxviz.layers(apply_fn, params, x)` of kind "conv" (or "dense").

    Returns:
      `[*window, in, out]`: height, width, input channels (of one group), units; `[in, out]` for a
      dense layer.

    Raises:
      ValueError: No such layer (the nearest are named), or one without exactly one convolution.

    Example:
      >>> net = lambda w, x: jax.lax.conv(x, w["k"], (1, 1), "SAME")  # NCHW, OIHW
      >>> w, x = {"k": jnp.ones((8, 3, 5, 5))}, jnp.ones((1, 3, 9, 9))
      >>> filters(net, w, x, "conv_0").shape
      (5, 5, 3, 8)
    """
    who = "filters"
    apply_fn, params = hold(who, apply_fn, params)
    traced = trace(apply_fn, params, x)
    row = find(rows(traced), layer, who)
    names = operation_names(traced)
    program = traced.program
    nodes = [n for n in program.nodes if names.get(id(n)) == layer and n.kind in ("conv", "dense")]
    if len(nodes) != 1:
        raise ValueError(
            f"{who}: layer must be one convolution or dense layer; {layer!r} is of kind "
            f"{row.layer.kind!r} with {len(nodes)} of them that can be reached. "
            "`jaxviz.layers(apply_fn, params, x)` lists all."
        )
    (node,) = nodes
    side, order = _kernel(node, program.depends)
    value = node.operands[side]
    if isinstance(value, Scalar):
        raise ValueError(f"{who}: the kernel of {layer!r} is a constant of the program.")
    kernel = dataclasses.replace(
        program, nodes=tuple(needed(program.nodes, [value])), outputs=(value,)
    )
    blank = jax.tree.map(lambda a: jnp.zeros(jnp.shape(a), jnp.result_type(a)), x)
    (found,) = evaluate(kernel, jax.tree.leaves((params, blank)))
    return jnp.transpose(found, order)


def _kernel(node: Node, depends: frozenset) -> tuple[int, tuple[int, ...]]:
    """Which operand is the kernel, and the order of axes that puts input and output last."""
    options = equation_of(node).params
    if node.kind == "conv":
        out, into, *space = options["dimension_numbers"].rhs_spec
        return 1, (*space, into, out)
    side = 0 if node.operands[1] in depends else 1
    ((left, right), _) = options["dimension_numbers"]
    contracted = (left, right)[side]
    other = [a for a in range(2) if a not in contracted]
    return side, (*contracted, *other)
