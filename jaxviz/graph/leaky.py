"""Leaky ReLUs whose slope is a parameter, as PReLU has one for each channel.

f(x) = x above zero and a x below, for any finite a that does not depend on x. That is proved on
the three parts x > 0, x < 0 and x = 0, on each of which a maximum, a comparison or a choice is
decided by the sign of c x: what is left are sums of monomials in x and params.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxviz.graph.algebra import (
    NONE,
    Sum,
    Unproved,
    constant,
    inverse,
    number,
    plus,
    product,
    scaled,
    symbol,
)
from jaxviz.graph.regions import Graph, elementwise, flat, is_float, number_of, primitive_of

_LAST = frozenset({"add", "sub", "mul", "select_n", "max", "min"})
_PLACES = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims"})
_SAME = frozenset({"copy", "copy_p", "name"})
_X = symbol("x")


def leaky(graph: Graph, position: int) -> None:
    """Groups what is a leaky ReLU whose slope is no number that is known while tracing."""
    node = graph.nodes[position]
    if primitive_of(node) not in _LAST or not is_float(graph.program, node.outputs[0]):
        return
    members: set[int] = set()
    source = graph.region(position, members, elementwise)
    if source is None or len(members) < 2:
        return
    nodes = [m for p in sorted(members) for m in flat(graph.nodes[p])]
    avals, out = graph.program.avals, node.outputs[0]
    shapes = {avals[v].shape for n in nodes for v in (*graph.moving(n), *n.outputs)}
    if len(shapes) > 1 or avals[source].dtype != avals[out].dtype:
        return
    try:
        above, below, at_zero = (_made(graph, nodes, source, out, side) for side in (1, -1, 0))
    except Unproved:
        return
    if above == _X and not at_zero and below and all(map(_is_line, below)):
        graph.group("leaky_relu", members)


def _is_line(monomial: tuple) -> bool:
    exponent, powers = monomial
    return not exponent and dict(powers).get("x") == 1


def _made(graph: Graph, nodes: Sequence[Any], source: int, out: int, side: int) -> Sum:
    """What the nodes make of a source above (1), below (-1) or at zero (0)."""
    env: dict[int, Sum] = {source: _X if side else {}}
    for node in nodes:
        reads = [o for o in node.operands if type(o) is int and o in env]
        if node.kind == "relu":
            name, operands = "max", [env[reads[0]], {}]
        else:
            name = primitive_of(node)
            operands = [
                env[o] if type(o) is int and o in env else _param(graph, o) for o in node.operands
            ]
        if name == "convert_element_type" and not _keeps(graph, node):
            raise Unproved
        env[node.outputs[0]] = _apply(name, operands, side)
    return env[out]


def _keeps(graph: Graph, node: Any) -> bool:
    """Whether a conversion changes no number but by rounding: to floats, or between truths."""
    before, after = (graph.program.avals[v].dtype for v in (node.inputs[0], node.outputs[0]))
    return before == after or jnp.issubdtype(after, jnp.floating)


def _apply(name: str, operands: Sequence[Sum], side: int) -> Sum:
    match name, operands:
        case ("add" | "add_any", [a, b]):
            return plus(a, b)
        case ("sub", [a, b]):
            return plus(a, b, -1.0)
        case ("mul", [a, b]):
            return product(a, b)
        case ("div", [a, b]):
            if constant(b):
                return product(a, inverse(b))
        case ("neg", [a]):
            return scaled(a, -1.0)
        case ("max", [a, b]):
            return a if _sign(plus(a, b, -1.0), side) >= 0 else b
        case ("min", [a, b]):
            return b if _sign(plus(a, b, -1.0), side) >= 0 else a
        case ("abs", [a]):
            return scaled(a, float(_sign(a, side) or 1))
        case ("sign", [a]):
            return number(_sign(a, side))
        case ("gt" | "ge" | "lt" | "le" | "eq" | "ne", [a, b]):
            s = _sign(plus(a, b, -1.0), side)
            answers = {"gt": s > 0, "ge": s >= 0, "lt": s < 0, "le": s <= 0, "eq": s == 0}
            return number(float(answers.get(name, s != 0)))
        case ("not", [a]):
            return plus(number(1.0), a, -1.0)
        case ("select_n", [which, *cases]):
            chosen = constant(which)
            if chosen is not None and chosen in range(len(cases)):
                return cases[int(chosen)]
        case ("convert_element_type", [a]):
            return a
        case (_, [a]) if name in _SAME:
            return a
    raise Unproved


def _sign(a: Sum, side: int) -> int:
    """The sign of c or c x."""
    if not a:
        return 0
    if len(a) > 1:
        raise Unproved
    ((exponent, powers), c) = next(iter(a.items()))
    degree = dict(powers)
    if exponent or degree.keys() - {"x"}:
        raise Unproved
    return (1 if c > 0 else -1) * (side if degree.get("x", 0) % 2 else 1)


def _param(graph: Graph, operand: Any, places: tuple = ()) -> Sum:
    """What the explained input does not reach: a number, or a sum of params as they are laid."""
    known = number_of(operand, graph.uniform)
    if known is not None:
        return number(known)
    if type(operand) is not int or operand in graph.program.depends:
        raise Unproved
    made = graph.made_by(operand)
    node = None if made is None else graph.nodes[made]
    if node is not None and not node.members and not node.bodies:
        name = primitive_of(node)
        if name in _PLACES:
            params = node.equation.params
            how = (name, graph.program.avals[operand].shape, params.get("broadcast_dimensions"))
            return _param(graph, node.operands[0], (how, *places))
        if name in ("add", "sub", "mul", "neg"):
            parts = [_param(graph, o, places) for o in node.operands]
            return _apply(name, parts, 1)
    return {(NONE, frozenset({(("param", operand, places), 1)})): 1.0}
