"""The logarithm of a quotient of exponentials as one operation, for rules that share its value.

log softmax behind a mask, over segments, with a sink; log(e / sum e) written out; the logarithm of
probabilities that were picked or added up. As one function of the exponents it is a difference of
two log-sum-exps, whatever steps it was written in.
"""

import dataclasses
from collections.abc import Mapping

from jaxviz.graph.exponentials import LINEAR, LOG_OF_QUOTIENT, Search
from jaxviz.graph.interpreter import Node, Program, Value
from jaxviz.graph.quotients import group
from jaxviz.graph.roles import roles, start

QUOTIENT = "quotient"
_LOGS = ("log", "log2", "log1p")


def with_logarithms(program: Program, names: Mapping[int, str]) -> tuple[Program, dict[int, str]]:
    """The program with such logarithms as one node each, and names of its nodes."""
    if not any(node.kind in (*_LOGS, "sub") for node in program.nodes):
        return program, dict(names)
    search = Search(program, roles(program, start(program)))
    standing = {id(node) for node in program.nodes}
    groups: dict[int, Node] = {}
    gone: set[Value] = set()
    for ids, quotient, _ in search.leaving:
        if quotient.equation.primitive.name == "sub":
            ends = {id(quotient): (quotient, frozenset[Value]())}
        else:
            ends = _logarithms_of(search, quotient)
        for end, steps in ends.values():
            if id(end) not in standing or id(end) in groups:
                continue
            found = group(program, search, quotient, ids, masks=True)
            if found is None:
                continue
            later = [n for n in search.nodes if steps.intersection(n.outputs)]
            if end is not quotient:
                found = _longer(program, found, [*later, end])
            groups[id(end)] = found._replace(kind=LOG_OF_QUOTIENT)
            gone.update(v for member in found.members for v in member.outputs)
    if not groups:
        return program, dict(names)
    named = {**names, **{id(g): names.get(i, "") for i, g in groups.items()}}
    nodes = [groups.get(id(node), node) for node in program.nodes]
    return dataclasses.replace(program, nodes=_read(program, nodes, gone)), named


def _logarithms_of(search: Search, quotient: Node) -> dict[int, tuple[Node, frozenset[Value]]]:
    """The logarithms of what a quotient made, moved, picked or added up, and what is between."""
    ways: dict[Value, frozenset[Value]] = {quotient.outputs[0]: frozenset()}
    found = {}
    for node in search.nodes:
        read = [o for o in search.carrying(node) if o in ways]
        if len(read) != 1 or node.equation is None or node.bodies:
            continue
        name, way = node.equation.primitive.name, ways[read[0]]
        if name in _LOGS:
            found[id(node)] = node, way
        elif name in LINEAR | {"sub", "clamp"} and len(search.carrying(node)) == 1:
            ways[node.outputs[0]] = way | {node.outputs[0]}
    return found


def _longer(program: Program, quotient: Node, later: list[Node]) -> Node:
    """The group with the steps after the quotient."""
    *before, end = quotient.members
    members = (*before, end._replace(kind=QUOTIENT), *later)
    made = {v for m in members for v in m.outputs}
    read = dict.fromkeys(v for m in members for v in m.inputs if v not in made)
    inputs = tuple(sorted(read, key=lambda v: v not in program.depends))
    return later[-1]._replace(inputs=inputs, operands=inputs, equation=None, members=members)


def _read(program: Program, nodes: list[Node], gone: set[Value]) -> tuple[Node, ...]:
    """Without what only the steps of a group read."""
    needed, kept = set(program.outputs), []
    for node in reversed(nodes):
        if not gone.isdisjoint(node.outputs) and needed.isdisjoint(node.outputs):
            continue
        needed.update(node.inputs)
        kept.append(node)
    return tuple(reversed(kept))
