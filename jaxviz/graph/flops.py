"""Floating-point operations of a program's nodes, counted as XLA's cost analysis counts them."""

import math
from collections.abc import Callable
from typing import Any

import jax

from jaxviz.graph.interpreter import CUSTOM, Node, Program, build, equation_of

# XLA books these apart, as transcendentals.
TRANSCENDENTAL = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1"
    " lgamma log log1p logistic pow rsqrt sin sinh sqrt tan tanh".split()
)
_MOVES = frozenset(
    "argmax argmin broadcast_in_dim concatenate copy copy_p device_put dynamic_slice"
    " dynamic_update_slice expand_dims gather iota name optimization_barrier pad reshape rev"
    " scatter select_and_gather_add slice split squeeze stop_gradient transpose"
    " bitcast_convert_type sort top_k create_token after_all".split()
)
_REDUCTIONS = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or cumsum".split()
)


def call_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of `function(*arguments)`, any function of arrays (or of their shapes), as it stands.

    Unlike XLA's analysis of the compiled program, this counts all turns of a `scan`; a `while`,
    whose turns are not known, counts once.

    Example:
      >>> x = jax.ShapeDtypeStruct((2, 3), jax.numpy.float32)
      >>> call_flops(lambda x: jax.lax.map(lambda row: 2 * row, x), x)
      6
    """
    closed = jax.make_jaxpr(function)(*arguments)
    depends = [True] * len(closed.jaxpr.invars)
    program = build(closed.jaxpr, closed.consts, depends, flat=True)
    return sum(node_flops(program, node) for node in program.nodes)


def node_flops(program: Program, node: Node) -> int:
    """FLOPs of one node; a loop's are those of all its turns, a branch's those of the dearest."""
    if node.members:
        return sum(node_flops(program, member) for member in node.members)
    equation = equation_of(node)
    name = equation.primitive.name
    bodies = [sum(node_flops(body, n) for n in body.nodes) for body in node.bodies]
    if bodies:
        if name == "scan":
            return bodies[0] * equation.params["length"]
        return max(bodies) if name == "cond" else sum(bodies)
    if not node.outputs:
        return 0
    if name in CUSTOM:  # a recognised activation: what it is made of
        inner = equation.params[CUSTOM[name]]
        body = build(inner.jaxpr, inner.consts, [False] * len(inner.jaxpr.invars), flat=True)
        return sum(node_flops(body, n) for n in body.nodes)
    return _primitive(name, equation, [v.aval for v in equation.invars], node, program)


def _primitive(name: str, equation: Any, inputs: list, node: Node, program: Program) -> int:
    if name in _MOVES or name in TRANSCENDENTAL:
        return 0
    output = math.prod(program.avals[node.outputs[0]].shape)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * output * math.prod(inputs[0].shape[d] for d in contracted)
    if name == "conv_general_dilated":
        return _conv(equation.params, inputs, program.avals[node.outputs[0]].shape)
    if name in _REDUCTIONS:
        return math.prod(inputs[0].shape) - output
    if name.startswith("reduce_window"):
        return output * (math.prod(equation.params["window_dimensions"]) - 1)
    if name.startswith("select_and_scatter"):
        window = math.prod(equation.params["window_dimensions"])
        return math.prod(inputs[0].shape) * (window + 1)
    if name == "integer_pow":
        power = abs(equation.params["y"])
        return output * max(power.bit_length() - 1 + power.bit_count() - 1, 0)
    if name.startswith("scatter"):
        return math.prod(inputs[-1].shape)
    return output


def _conv(params: dict, inputs: list, output: tuple[int, ...]) -> int:
    """Two for each product of a kernel element with a pixel; padding and holes cost nothing."""
    numbers = params["dimension_numbers"]
    lhs, rhs = inputs[0].shape, inputs[1].shape
    products = 1
    for i, axis in enumerate(numbers.lhs_spec[2:]):
        size, window = lhs[axis], rhs[numbers.rhs_spec[2 + i]]
        count = output[numbers.out_spec[2 + i]]
        stride, low = params["window_strides"][i], params["padding"][i][0]
        hole, spread = params["lhs_dilation"][i], params["rhs_dilation"][i]
        products *= sum(
            0 <= (position := at * stride - low + k * spread) <= (size - 1) * hole
            and position % hole == 0
            for at in range(count)
            for k in range(window)
        )
    batch = output[numbers.out_spec[0]] // params["batch_group_count"]
    features = output[numbers.out_spec[1]]
    per_group = rhs[numbers.rhs_spec[1]]
    return 2 * products * batch * features * per_group * params["batch_group_count"]
