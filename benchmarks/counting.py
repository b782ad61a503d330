"""FLOPs of a call, counted in its program: loops take all their turns, moves cost nothing."""

import jax

from jaxviz.graph.flops import node_flops
from jaxviz.graph.interpreter import build


def flops(function, *arguments):
    """FLOPs of `function(*arguments)`, which may be arrays or their shapes."""
    closed = jax.make_jaxpr(function)(*arguments)
    depends = [True] * len(closed.jaxpr.invars)
    program = build(closed.jaxpr, closed.consts, depends, flat=True)
    return sum(node_flops(program, node) for node in program.nodes)
