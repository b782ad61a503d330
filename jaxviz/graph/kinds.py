"""What an operation is, however it is spelled: kinds of single equations and recognised groups.

A kind is proved from the equations and the values of their constants, for all real inputs
(`jaxviz.graph.pieces`, `jaxviz.graph.norms`), never tried out; what is not proved is an ordinary
operation. A group is found by its shape in the graph, not by its name: where all paths from one
value meet again, and nothing else reads what is between. So it can always stand at the place of its
last member, and taking it apart gives the program back.

What a function with a `stop_gradient` or a derivative of its own inside is, its values do not tell:
it has a kind only where that changes no derivative.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jaxviz.graph.norms as norms
import jaxviz.graph.pieces as pieces
from jaxviz.graph.activations import NAMED, named
from jaxviz.graph.algebra import Unproved
from jaxviz.graph.averages import affine, averaging
from jaxviz.graph.leaky import leaky
from jaxviz.graph.regions import (
    ACTIVATION_KINDS as ACTIVATION_KINDS,
    NORM_KINDS as NORM_KINDS,
    RELU_KINDS as RELU_KINDS,
    Graph,
    elementwise,
    flat,
    is_float,
    number_of,
    primitive_of as primitive_of,
)

# Primitives that leave every number of an array where it is.
SAME_PLACE = frozenset(
    "convert_element_type copy copy_p name optimization_barrier reduce_precision"
    " sharding_constraint".split()
)
# Primitives that carry another name in the field.
_PRIMITIVES = {
    "conv_general_dilated": "conv",
    "reduce_window_max": "max_pool",
    "reduce_window_sum": "sum_pool",
    "reduce_sum": "sum",
    "logistic": "sigmoid",
    "scatter-add": "scatter_add",
}


def recognise(program: Any, through: Callable) -> tuple[Any, ...]:
    """The program's nodes with their kinds, recognised groups as one node each.

    Args:
      program: Its nodes have the kinds of their primitives, or of activations already known.
      through: `(equation, operands) -> result` over functions of one number, or `Unproved`.
    """
    nodes = [node._replace(kind=_kind(program, node)) for node in program.nodes]
    if program.depends.isdisjoint(v for node in nodes for v in node.inputs):
        return tuple(nodes)
    graph = Graph(program, nodes, through)
    for finder in (_function, leaky, _along_axes, affine, averaging):
        for position in range(len(nodes)):
            node = graph.nodes[position]
            if node is not None and not node.bodies and graph.moving(node):
                finder(graph, position)
    inside = {
        v
        for node in graph.nodes
        if node is not None
        for member in node.members
        for v in member.outputs
        if v not in node.outputs
    }
    for position in graph.unread:
        if not inside.isdisjoint(nodes[position].inputs):
            graph.nodes[position] = None
    return tuple(node for node in graph.nodes if node is not None)


def _kind(program: Any, node: Any) -> str:
    if node.kind != node.equation.primitive.name:
        return node.kind  # already known to be an activation
    moving = [v for v in node.inputs if v in program.depends]
    others = [o for o in node.operands if o not in moving]
    if not moving:
        return node.kind
    if node.kind == "dot_general":
        return "dense" if others else "matmul"
    if node.kind == "conv_general_dilated" and not others:
        return "conv_product"
    if node.kind == "add" and others:
        held = [o for o in others if type(o) is int and program.avals[o].ndim]
        return "bias" if held else "add"
    if node.kind == "gather" and node.operands[0] not in moving:
        return "embed"
    if node.kind == "reshape" and node.equation.params["dimensions"] is None:
        before, after = (program.avals[v].shape for v in (node.inputs[0], node.outputs[0]))
        if len(after) == 2 and len(before) > 2 and before[0] == after[0]:
            return "flatten"
    return _PRIMITIVES.get(node.kind, node.kind)


_MOST_STEPS = 6  # back from where a function ends: 1 / (1 + exp(-x)) has four


def _function(graph: Graph, position: int) -> None:
    """An activation, or what else is a function of one number between two places."""
    node = graph.nodes[position]
    if not elementwise(node) or not is_float(graph.program, node.outputs[0]):
        return
    if node.kind in NAMED:
        return
    members: set[int] = set()
    source = graph.region(position, members, elementwise)
    if source is None or not _places(graph, members, source, node.outputs[0]):
        return
    nearest = set(members)
    kind = _named(graph, members, source, node.outputs[0])
    best = (kind, set(members)) if kind else None
    for _ in range(_MOST_STEPS if primitive_of(node) in _LAST else 0):
        before = graph.made_by(source)
        if before is None or not elementwise(graph.nodes[before]):
            break
        if not graph.inside(source, members) or (kind and graph.nodes[before].kind in NAMED):
            break
        further = graph.region(before, members, elementwise)
        if further is None or not _places(graph, members, further, node.outputs[0]):
            break
        source = further
        if found := _named(graph, members, source, node.outputs[0]):
            best = (found, set(members))
    if best is None:
        if len(nearest) > 1 and not _holds(graph, nearest):
            graph.group("pointwise", nearest)
        return
    kind, members = best
    if len(members) > 1:
        graph.group(kind, members)
    elif kind != "relu" or not _only_guards(graph, position):
        graph.nodes[position] = node._replace(kind=kind)


def _only_guards(graph: Graph, position: int) -> bool:
    """Whether a maximum with 0 keeps rounding from taking a root of less than nothing."""
    node = graph.nodes[position]
    (value,) = graph.moving(node)
    if _clamps_a_spread(graph, value):
        return True
    # A squared distance, of sums of squares and products; what one layer makes may be a ReLU's.
    made = graph.made_by(value)
    several = made is not None and len(graph.moving(graph.nodes[made])) > 1
    return several and primitive_of(node) == "max" and _under_a_root(graph, node)


def _under_a_root(graph: Graph, node: Any) -> bool:
    """Whether all that reads a value, but for a number added or multiplied, takes its root."""
    readers = [graph.nodes[p] for p in graph.readers.get(node.outputs[0], ())]
    if not readers or node.outputs[0] in graph.kept:
        return False
    steps = ("add", "mul", "div", "broadcast_in_dim", "reshape", "squeeze")
    return all(
        primitive_of(r) in ("sqrt", "rsqrt")
        or (primitive_of(r) in steps and len(graph.moving(r)) == 1 and _under_a_root(graph, r))
        for r in readers
    )


def _places(graph: Graph, members: set[int], source: int, out: int) -> bool:
    """Whether each place of the output is made from the same place of the source alone.

    Params may take part, laid out as the source (the slope of a learned Swish, for each channel),
    where there is more than sums, products and choices: those are layers, or leaky.
    """
    avals = graph.program.avals
    shape, learned = avals[source].shape, False
    if avals[out].shape != shape or avals[out].dtype != avals[source].dtype:
        return False
    for p in members:
        node = graph.nodes[p]
        if node.members:
            continue  # its operands were looked at when it was made
        for o in node.operands:
            if type(o) is int and o in graph.program.depends:
                if avals[o].shape != shape:
                    return False
            elif number_of(o, graph.uniform) is None:
                held = avals[o].shape if type(o) is int else None
                if held and any(m not in (1, n) for m, n in zip(held, shape, strict=True)):
                    return False
                if held is None:
                    return False
                learned = True
    return not learned or any(_bends(graph.nodes[p]) for p in members)


def _bends(node: Any) -> bool:
    """Whether an operation is none of those that lines are made of."""
    return any(m.kind in _BENT or primitive_of(m) in _BENDING for m in (node, *flat(node)))


def _holds(graph: Graph, members: Iterable[int]) -> bool:
    """Whether a gradient is stopped inside."""
    return any(
        primitive_of(graph.nodes[p]) == "stop_gradient"
        and is_float(graph.program, graph.nodes[p].inputs[0])
        for p in members
    )


def _named(graph: Graph, members: set[int], source: int, out: int) -> str | None:
    """The activation that leads from a value to another."""
    if len(members) == 1 and primitive_of(graph.nodes[min(members)]) not in _ALONE:
        return None

    def prove():
        env: dict[int, Any] = {source: pieces.X}
        for node in nodes:
            operands = [
                env[o] if type(o) is int and o in env else number_of(o, graph.uniform)
                for o in node.operands
            ]
            if any(o is None for o in operands):
                raise Unproved
            env[node.outputs[0]] = graph.through(node.equation, operands)
        return named(env[out], pieces.rounding(graph.program.avals[out].dtype))

    nodes = [m for p in sorted(members) for m in flat(graph.nodes[p])]
    return _remembered("function", prove, _signature(graph, nodes, source))


_BENT = NAMED - RELU_KINDS - {"leaky_relu", "hard_tanh", "hard_sigmoid"}
_BENDING = frozenset(
    "cos erf erfc exp exp2 expm1 log log1p logistic pow rsqrt sin sinh sqrt tan tanh".split()
)

# What alone can be an activation, and what can be the last step of one that is not.
_ALONE = frozenset({"max", "clamp"})
_LAST = _ALONE | frozenset("min mul div add sub neg select_n log log1p".split())

# Proofs by what they are of: the same block comes many times in a net.
_PROVED: dict[Any, Any] = {}
_MOST_PROVED = 4096
_TOLD = ("y", "axes", "broadcast_dimensions", "dimensions", "permutation")


def _remembered(what: str, prove: Callable[[], Any], signature: tuple | None) -> Any:
    """What a proof comes to, None where there is none; done once for each signature."""
    if signature is not None and (what, signature) in _PROVED:
        return _PROVED[what, signature]
    try:
        found = prove()
    except Unproved:
        found = None
    if signature is not None:
        if len(_PROVED) >= _MOST_PROVED:
            _PROVED.clear()
        _PROVED[what, signature] = found
    return found


def _signature(graph: Graph, nodes: Sequence[Any], source: int) -> tuple | None:
    """All that a proof about these nodes looks at; None for what has a body."""
    avals = graph.program.avals
    codes: dict[int, Any] = {source: ("value", -1)}
    steps: list[Any] = [(avals[source].shape, str(avals[source].dtype))]
    for i, node in enumerate(nodes):
        if primitive_of(node) == "custom_jvp_call":
            return None
        operands = []
        for o in node.operands:
            number = None if type(o) is int and o in codes else number_of(o, graph.uniform)
            if type(o) is int and number is None:
                moves = o in graph.program.depends
                operands.append(codes.setdefault(o, (moves, len(codes), avals[o].shape)))
            else:
                operands.append(number)
        params, out = node.equation.params, node.outputs[0]
        told = tuple((k, params[k]) for k in _TOLD if k in params)
        codes[out] = ("value", i)
        aval = avals[out]
        steps.append((primitive_of(node), told, tuple(operands), aval.shape, str(aval.dtype)))
    return tuple(steps)


def _allowed_along(node: Any) -> bool:
    if node.members:
        return node.kind == "pointwise" and all(map(_allowed_along, node.members))
    return not node.bodies and primitive_of(node) in norms.PRIMITIVES


def _along_axes(graph: Graph, position: int) -> None:
    """Softmax, its logarithm, and normalisations."""
    node = graph.nodes[position]
    if primitive_of(node) not in ("add", "sub", "mul", "div") or len(graph.moving(node)) < 2:
        return
    members: set[int] = set()
    source = graph.region(position, members, _allowed_along)
    best = None
    while source is not None:
        if kind := _along(graph, members, source, node.outputs[0], norms.kind):
            best = (kind, set(members))
        before = graph.made_by(source)
        if before is None or not graph.inside(source, members):
            break
        first = graph.nodes[before]
        steps = ("sub",) if best else ("sub", "exp")
        if primitive_of(first) not in steps or not _allowed_along(first):
            break
        source = graph.region(before, members, _allowed_along)
    if best is not None:
        graph.group(*best)


def _along(graph: Graph, members: set[int], source: int, out: int, say: Callable) -> Any:
    """What `say` says of what the members make of an array along its axes; None if unknown."""
    avals = graph.program.avals
    nodes = [m for p in sorted(members) for m in flat(graph.nodes[p])]

    def prove():
        size = math.prod(avals[source].shape)
        reshaped = [n for n in nodes if primitive_of(n) == "reshape"]
        values = {v for node in reshaped for v in (*node.inputs, *node.outputs)}
        alike = [avals[v].shape for v in values if math.prod(avals[v].shape) == size]
        env: dict[int, Any] = {source: norms.array(avals[source].shape, alike)}

        def operand(o):
            if type(o) is int and o in env:
                return env[o]
            number = number_of(o, graph.uniform)
            if number is not None:
                return number
            if type(o) is not int or o in graph.program.depends:
                raise Unproved
            return norms.param(o, avals[o].shape)

        for node in nodes:
            operands = [operand(o) for o in node.operands]
            aval = avals[node.outputs[0]]
            env[node.outputs[0]] = norms.apply(
                primitive_of(node), node.equation.params, operands, aval.shape, aval.dtype
            )
        return say(env[out])

    return _remembered(say.__name__, prove, _signature(graph, nodes, source))


def _clamps_a_spread(graph: Graph, value: int) -> bool:
    """Whether a value is a variance, which rounding alone takes below zero."""
    made = graph.made_by(value)
    if made is None or not _allowed_along(graph.nodes[made]):
        return False
    members: set[int] = set()
    source = graph.region(made, members, _allowed_along, closed=False)
    return source is not None and bool(_along(graph, members, source, value, norms.is_spread))
