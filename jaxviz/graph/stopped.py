"""Gradients that are stopped: for one of them alone, or for all, as of a softmax's maximum."""

from typing import Any

import jax

from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Value


@fact
def not_stopped(program: Program) -> frozenset[Value]:
    """The values from which a way leads to the outputs that no gradient is stopped on."""
    found = set(program.outputs)

    def visit(node: Node) -> None:
        for member in reversed(node.members):
            visit(member)
        stops = node.equation is not None and node.equation.primitive.name == "stop_gradient"
        if not node.members and not stops and not found.isdisjoint(node.outputs):
            found.update(node.inputs)

    for node in reversed(program.nodes):
        visit(node)
    return frozenset(found)


@jax.custom_vjp
def stopped(a: Any) -> Any:
    """A constant for the gradient that is taken next; not for who differentiates that again, as
    behind `jax.lax.stop_gradient`, which would lose a part of an explanation's own derivative."""
    return a


stopped.defvjp(lambda a: (a, None), lambda _, gradient: (None,))
