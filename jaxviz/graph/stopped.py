"""Values that only a `stop_gradient` reads, as a softmax's maximum: no gradient needs them."""

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
