"""What a model has in place of an attention that can be read, for errors."""

from jaxviz.attention.found import Search, name_of
from jaxviz.graph.interpreter import Node, Program, equation_of
from jaxviz.graph.lines import source
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced

_FUSED = frozenset({"pallas_call", "custom_call", "ffi_call", "tpu_custom_call", "triton_call"})


def hidden(traced: Traced) -> str | None:
    """Where a kernel may hide an attention: what it is called and its line."""
    for name, node in _kernels(traced.program):
        return f"{name} at {source(node)}"
    return None


def _kernels(program: Program):
    for node in leaves(program.nodes):
        name = equation_of(node).primitive.name
        if name in _FUSED or "dot_product_attention" in name:
            yield name, node
        for body in node.bodies:
            yield from _kernels(body)


def unread(traced: Traced) -> str:
    """What looks like attention of a kind that has no weights to read, and its line; else which
    kinds there are."""
    search = Search(traced)
    for node in search.nodes:
        if search.sums_keys(node):
            told = "mixes keys with values over the tokens, as linear attention does"
            return f"the product at {source(node)} {told}: it has no weights to read."
        if node.bodies and {"exp", "dot_general"} <= _inside(node):
            told = "a loop or branch, such as attention over keys a chunk at a time"
            return f"an exponential and a product stand within {told}, at {source(node)}."
    if any(node.bodies for node in search.nodes):
        return "one in a loop over time or a branch cannot be read. Write it as a scan over layers."
    return (
        "heads mixed after the softmax and the difference of two softmaxes are not read. Without "
        "weights to read, take a method for any model, such as jaxviz.gradient."
    )


def _inside(node: Node) -> set[str]:
    names = {name_of(n) for body in node.bodies for n in leaves(body.nodes)}
    return names.union(*(_inside(n) for b in node.bodies for n in leaves(b.nodes)))
