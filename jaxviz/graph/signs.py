"""Which values of a program are never negative, whatever the input: what follows a ReLU, mostly.

Rules that treat positive and negative numbers apart need not look for negative ones there.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxviz.graph.interpreter import Node, Program, Scalar, Value

_ALWAYS = frozenset(
    "relu relu6 clipped_relu sigmoid hard_sigmoid logistic softplus softmax abs exp exp2 square"
    " erfc sqrt".split()
)
# Of operands that are not negative: sums, products, quotients, and what moves numbers.
_KEPT = frozenset(
    "add add_any mul div min reduce_sum reduce_max reduce_min reduce_prod reduce_window_sum cumsum"
    " cummax cummin cumprod broadcast_in_dim concatenate copy copy_p convert_element_type"
    " expand_dims name optimization_barrier pad reduce_precision reshape rev squeeze stop_gradient"
    " transpose tanh log1p expm1 floor ceil round sign cbrt integer_pow dot_general"
    " conv_general_dilated".split()
)


def nonnegative(program: Program) -> frozenset[Value]:
    """The floating values of a program (groups' results among them) that are 0 or more, or NaN.

    What a loop or branch gives is not known, nor what is inside of it.
    """
    found: set[Value] = {v for v, a in program.avals.items() if _unsigned(a)}
    for node in program.nodes:
        _visit(program, node, found)
    return frozenset(found)


def _visit(program: Program, node: Node, found: set[Value]) -> None:
    for member in node.members:
        _visit(program, member, found)
    floats = all(jnp.issubdtype(program.avals[v].dtype, jnp.floating) for v in node.outputs)
    if not node.bodies and floats and (node.kind in _ALWAYS or _is(node, found)):
        found.update(node.outputs)


def _is(node: Node, found: set[Value]) -> bool:
    """Whether a single equation makes no negative number of what is known of its operands."""
    if node.equation is None:
        return False
    name, options, operands = node.equation.primitive.name, node.equation.params, node.operands

    def holds(operand):
        if not isinstance(operand, Scalar):
            return operand in found
        return not np.iscomplexobj(operand.value) and bool(operand.value >= 0)

    if name == "select_n":
        return all(map(holds, operands[1:]))
    if name == "max":
        return any(map(holds, operands))
    if name in ("clamp", "slice", "dynamic_slice", "split"):
        return holds(operands[0])
    if name == "gather":
        return holds(operands[0]) and options["fill_value"] is None
    if name == "reduce_window_max":
        return holds(operands[0]) and _covers(options)
    if name == "integer_pow" and options["y"] % 2 == 0:
        return True
    return name in _ALWAYS or (name in _KEPT and all(map(holds, operands)))


def _covers(options: Mapping[str, Any]) -> bool:
    """Whether each window of a pooling has a place of the array itself, not of its rim alone."""
    dense = all(d == 1 for d in (*options["window_dilation"], *options["base_dilation"]))
    pairs = zip(options["window_dimensions"], options["padding"], strict=True)
    return dense and all(max(padding) < size for size, padding in pairs)


def _unsigned(aval: Any) -> bool:
    return aval.dtype == jnp.bool_ or jnp.issubdtype(aval.dtype, jnp.unsignedinteger)
