"""What a model has in place of an attention that can be read, for errors."""

from jaxviz.attention.found import followed
from jaxviz.attention.softmaxes import Search, name_of
from jaxviz.attention.weights import Followed
from jaxviz.graph.axis_labels import Tokens
from jaxviz.graph.interpreter import Node, Program, equation_of
from jaxviz.graph.lines import source
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced

_FUSED = frozenset({"pallas_call", "custom_call", "ffi_call", "tpu_custom_call", "triton_call"})
_LIBRARY = "dot_product_attention"


def hidden(traced: Traced) -> str | None:
    """Where a kernel may hide an attention: what it is called and its line."""
    for name, node in _kernels(traced.program):
        return f"{name} at {source(node)}"
    return None


def _kernels(program: Program):
    for node in leaves(program.nodes):
        name = equation_of(node).primitive.name
        if name in _FUSED or _LIBRARY in name:
            yield name, node
        for body in node.bodies:
            yield from _kernels(body)


def missed(traced: Traced) -> str | None:
    """An attention, beside those that are found, that surely is one and cannot be read."""
    for name, node in _kernels(traced.program):
        if _LIBRARY in name:
            return f"{name} at {source(node)} is a fused kernel, whose weights are not to be had."
    all_weights = followed(traced)
    for node in all_weights.search.nodes:
        if _sums_keys(all_weights.search, node):
            told = "mixes keys with values over the tokens, as linear attention does"
            return f"the product at {source(node)} {told}: it has no weights to read."
        for body in node.bodies:
            for met in Followed(Search(body, None)).met:
                told = "stands within a loop or branch; write it as a scan over layers, or by vmap."
                return f"the attention at {source(met.node)} {told}"
    for start, node in all_weights.lost.items():
        told = f"are changed by {name_of(node)} at {source(node)}, which is not followed."
        softmax = source(all_weights.search.made[start])
        return f"the weights of the softmax at {softmax} {told}"
    for node in all_weights.bare:
        told = "sums values by products of queries and keys that no softmax, sigmoid or ReLU made"
        return f"the product at {source(node)} {told} weights, as retention does."
    return None


def unread(traced: Traced) -> str:
    """What looks like attention of a kind that has no weights to read, and its line; else which
    kinds there are."""
    if (told := missed(traced)) is not None:
        return told
    nodes = followed(traced).search.nodes
    for node in nodes:
        if node.bodies and {"exp", "dot_general"} <= _inside(node):
            told = "a loop or branch, such as attention over keys a chunk at a time"
            return f"an exponential and a product stand within {told}, at {source(node)}."
    if any(node.bodies for node in nodes):
        return "one in a loop over time or a branch cannot be read. Write it as a scan over layers."
    return (
        "attention without weights (linear, a running sum) is not read. Take a method for any "
        "model, such as jaxviz.gradient."
    )


def _sums_keys(search: Search, node: Node) -> bool:
    """Whether a product sums over the tokens of keys and of values, and queries then multiply."""
    if name_of(node) != "dot_general" or len(search.moving(node)) != 2:
        return False
    (gone, _), made = equation_of(node).params["dimension_numbers"], node.outputs[0]
    told = [
        search.labels(v)[side[0]] if len(side) == 1 else None
        for v, side in zip(node.operands, gone, strict=True)
    ]
    if not isinstance(told[0], (tuple, Tokens)) or told[0] != told[1]:
        return False
    asked = [
        reader
        for reader in search.readers.get(made, ())
        if name_of(reader) == "dot_general" and told[0] in search.labels(reader.outputs[0])
    ]
    return bool(asked) and told[0] not in search.labels(made)


def _inside(node: Node) -> set[str]:
    names = {name_of(n) for body in node.bodies for n in leaves(body.nodes)}
    return names.union(*(_inside(n) for b in node.bodies for n in leaves(b.nodes)))
