"""Whether outputs may hold what is infinite at one end: a logarithm that no softmax keeps apart."""

from jaxviz.graph.exponentials import KEPT, LOG_OF_QUOTIENT
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Value
from jaxviz.graph.kinds import ACTIVATION_KINDS

LOGS = frozenset("log log2 log1p".split())
# Of these every logarithm is finite, or every result is.
_FINITE = frozenset((*KEPT, LOG_OF_QUOTIENT, *ACTIVATION_KINDS)) - {"pointwise"}


@fact
def may_be_infinite(program: Program) -> bool:
    """Whether a logarithm reaches an output on a way that is not through a softmax."""
    reached: set[Value] = set()
    for node in program.nodes:
        made = not reached.isdisjoint(node.inputs) and node.kind != "softmax"
        if made or (not program.depends.isdisjoint(node.inputs) and has_logarithm(node)):
            reached.update(node.outputs)
    return not reached.isdisjoint(program.outputs)


def has_logarithm(node: Node) -> bool:
    """Whether an operation is, or holds, a logarithm that may be infinite."""
    if node.members:
        return node.kind not in _FINITE and any(map(has_logarithm, node.members))
    if node.bodies:
        return any(has_logarithm(n) for body in node.bodies for n in body.nodes)
    return node.equation is not None and node.equation.primitive.name in LOGS
