"""p log p: a product of a number and its own logarithm, in whatever steps that was taken."""

import dataclasses
from collections.abc import Iterable, Iterator

from jaxviz.graph.beyond import LOGS
from jaxviz.graph.exponentials import LOG_OF_QUOTIENT
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Value
from jaxviz.graph.quotients import ROWS
from jaxviz.graph.roles import leaves

# A product whose first, or second, factor is the logarithm of the other one.
LOG_FIRST, LOG_SECOND = "log_p_p", "p_log_p"
_LOGARITHMS = ("log_softmax", LOG_OF_QUOTIENT, ROWS)
# What keeps a number from zero before its logarithm is taken, or moves it.
_KEPT = frozenset(
    "add broadcast_in_dim clamp convert_element_type copy copy_p div max min mul name neg reshape"
    " select_n squeeze stop_gradient sub transpose".split()
)


@fact
def with_entropies(program: Program) -> Program:
    """The program with each such product under the kind that says which factor is the logarithm."""
    found = with_own_logarithm(program)
    return dataclasses.replace(program, nodes=_marked(program.nodes, found)) if found else program


def _marked(nodes: Iterable[Node], found: dict[int, Value]) -> tuple[Node, ...]:
    def marked(node: Node) -> Node:
        if node.members:
            return node._replace(members=_marked(node.members, found))
        if id(node) not in found:
            return node
        return node._replace(kind=LOG_SECOND if node.operands[0] == found[id(node)] else LOG_FIRST)

    return tuple(map(marked, nodes))


def with_own_logarithm(program: Program) -> dict[int, Value]:
    """The products of a number and its logarithm, by `id` of the node, and which value is p."""
    nodes = list(leaves(program.nodes))
    products = [n for n in nodes if n.equation is not None and _name(n) == "mul"]
    if not products or not any(_name(n) in LOGS | {"sub"} for n in nodes):
        return {}
    made = {v: n for n in nodes for v in n.outputs}
    groups = {v: n for n in _groups(program.nodes) for v in n.outputs}
    found = {}
    for node in products:
        one, other = node.operands
        if not isinstance(one, Value) or not isinstance(other, Value):
            continue
        for p, log in ((one, other), (other, one)):
            if {p, log} <= program.depends and _is_logarithm(program, made, groups, log, p):
                found[id(node)] = p
                break
    return found


def _name(node: Node) -> str:
    return "" if node.equation is None or node.bodies else node.equation.primitive.name


def _groups(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        if node.members:
            yield node
            yield from _groups(node.members)


def _ways(program: Program, made: dict[Value, Node], value: Value) -> Iterator[Value]:
    """A value and those that it was before it was moved, scaled or kept from zero."""
    yield value
    while (node := made.get(value)) is not None and _name(node) in _KEPT:
        read = [o for o in node.operands if isinstance(o, Value) and o in program.depends]
        floats = [o for o in read if program.avals[o].dtype == program.avals[value].dtype]
        if len(floats) != 1 or (_name(node) == "div" and floats[0] != node.operands[0]):
            return
        value = floats[0]
        yield value


def _is_logarithm(program, made, groups, log: Value, p: Value) -> bool:
    numbers = set(_ways(program, made, p))
    for value in _ways(program, made, log):
        if (node := made.get(value)) is not None and _name(node) in LOGS:
            (of,) = node.operands
            return isinstance(of, Value) and not numbers.isdisjoint(_ways(program, made, of))
        if any(
            _name(made[v]) == "exp" and made[v].operands[0] == value for v in numbers if v in made
        ):
            return True
        if (group := groups.get(value)) is not None:
            alike = [groups[v] for v in numbers if v in groups]
            return any(_same_softmax(program, one, group) for one in alike)
    return False


def _same_softmax(program: Program, softmax: Node, logarithm: Node) -> bool:
    """Whether the one is a softmax of what the other is the logarithm of a softmax of."""
    if softmax.kind not in ("softmax", ROWS) or logarithm.kind not in _LOGARITHMS:
        return False
    if ROWS in (softmax.kind, logarithm.kind):
        ends = [_name(n.members[-1]) for n in (softmax, logarithm)]
        if ends[0] == "sub" or (logarithm.kind == ROWS and ends[1] != "sub"):
            return False
    read = [{v for v in n.inputs if v in program.depends} for n in (softmax, logarithm)]
    axes = [
        [n.equation.params["axes"] for n in leaves(g.members) if _name(n) == "reduce_sum"]
        for g in (softmax, logarithm)
    ]
    return read[0] == read[1] and axes[0] == axes[1]
