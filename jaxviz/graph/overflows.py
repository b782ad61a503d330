"""Exponentials that something keeps in bounds, as one function with it: 1 / (1 + exp u).

A float ends long before the function does: exp u is infinite from u = 89 on, and 1 / (1 + exp u)
is 0 there, as it should be. Rules that look at each step by itself see an infinite change; those
that look at the whole do not.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Value
from jaxviz.graph.kinds import ACTIVATION_KINDS

OVER = "over_exponential"  # a group: what moves, its last input, over what an exponential made
_STEEP = frozenset({"exp", "exp2", "expm1", "cosh"})
_BOUNDING = frozenset(
    "atan clamp erf erfc exp exp2 expm1 log log1p logistic min pow rsqrt sigmoid softplus"
    " tanh".split()
)
_STEPS = frozenset(
    "abs add convert_element_type div integer_pow max mul name neg sqrt square sub".split()
)
_MOST_STEPS = 8


@fact
def with_bounds(program: Program) -> Program:
    """The program with each such function as one node: "pointwise", or `OVER`."""
    if not any(_name(node) in _STEEP for node in program.nodes):
        return program
    readers: dict[Value, list[Node]] = {v: [] for v in program.avals}
    for node in program.nodes:
        for value in node.inputs:
            readers[value].append(node)
    groups: dict[int, Node] = {}
    inside: set[int] = set()
    for node in program.nodes:
        if _name(node) not in _STEEP or node.inputs[0] not in program.depends:
            continue
        for chain in _chains(program, readers, (node,)):
            groups.setdefault(id(chain[-1]), _group(program, chain))
            inside.update(map(id, chain[:-1]))
    needed, nodes = set(program.outputs), []
    for node in reversed(program.nodes):
        if id(node) in inside and id(node) not in groups and needed.isdisjoint(node.outputs):
            continue
        nodes.append(groups.get(id(node), node))
        needed.update(nodes[-1].inputs)
    return dataclasses.replace(program, nodes=tuple(reversed(nodes))) if groups else program


def _name(node: Node) -> str:
    if node.members or node.bodies:
        return ""
    return node.kind if node.kind in ACTIVATION_KINDS else node.equation.primitive.name


def _chains(
    program: Program, readers: dict[Value, list[Node]], chain: tuple[Node, ...]
) -> Iterator[tuple[Node, ...]]:
    """From an exponential to the last steps that keep it in bounds; none where nothing does.

    What is between may be read by others too: it stays.
    """
    (value,) = chain[-1].outputs
    for step in readers[value] if len(chain) < _MOST_STEPS else ():
        name, aval = _name(step), program.avals[value]
        out = program.avals[step.outputs[0]] if len(step.outputs) == 1 else None
        if out is None or not jnp.issubdtype(out.dtype, jnp.floating):
            continue
        if out.shape != aval.shape or name not in _BOUNDING | _STEPS:
            continue
        below = name == "div" and step.operands[1] == value and step.operands[0] != value
        others = [v for v in step.inputs if v != value and v in program.depends]
        if others and not below:
            continue
        longer = (*chain, step)
        found = [] if others else list(_chains(program, readers, longer))
        bounds = below or name in _BOUNDING or step.equation.params.get("y", 0) < 0
        if not found and bounds:
            found = [longer]
        yield from found


def _group(program: Program, chain: Sequence[Node]) -> Node:
    made = {v for node in chain for v in node.outputs}
    read = dict.fromkeys(v for node in chain for v in node.inputs if v not in made)
    first = chain[0].inputs[0]
    over = [v for v in chain[-1].inputs if v in program.depends and v not in made and v != first]
    inputs = (first, *(v for v in read if v not in (first, *over)), *over)
    kind = OVER if over else "pointwise"
    return chain[-1]._replace(
        kind=kind, inputs=inputs, operands=inputs, equation=None, members=tuple(chain)
    )
