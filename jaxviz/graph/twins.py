"""Two programs of one model: as it is explained, and with all of x moving.

Where token ids stand beside floating numbers, the ids are not explained: for rules they are given.
Layers are named and cut with both, so what is known there has to be found in the other program.
The operations are the same equations of one jaxpr; how they are grouped may differ.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Value
from jaxviz.graph.trace import Traced


def _key(node: Node) -> tuple:
    """The same for one operation of the model in each of its programs."""
    return id(node.equation), tuple(map(id, node.callers)), node.scope


def _leaves(nodes: Iterable[Node], around: tuple[Node, ...] = ()) -> Iterator[tuple[Node, ...]]:
    """Each operation, bodies' too, after the groups that it is in, the widest first."""
    for node in nodes:
        if node.members:
            yield from _leaves(node.members, (*around, node))
            continue
        yield (*around, node)
        for body in node.bodies:
            yield from _leaves(body.nodes)


@fact
def twins(traced: Traced) -> dict[Value, Value]:
    """From values of `traced.whole` to those of `traced`, of all operations that both have."""
    whole, here = traced.whole.program, traced.program
    found = dict(zip(whole.inputs, here.inputs, strict=True))
    made = {_key(leaf): leaf.outputs for *_, leaf in _leaves(here.nodes)}
    for *_, leaf in _leaves(whole.nodes):
        found.update(zip(leaf.outputs, made.get(_key(leaf), ()), strict=False))
    return found


def names_of_twins(traced: Traced, names: Mapping[int, str]) -> dict[int, str]:
    """The names of operations of `traced`, by `id`, from those of `traced.whole`.

    An operation has its own there; a group has that of the narrowest one around all that it is of.
    """
    around = {_key(leaf): (*groups, leaf) for *groups, leaf in _leaves(traced.whole.program.nodes)}
    parts: dict[int, list[tuple]] = {}  # of each node, by id
    for chain in _leaves(traced.program.nodes):
        for node in chain:
            parts.setdefault(id(node), []).append(_key(chain[-1]))
    found: dict[int, str] = {}
    for number, keys in parts.items():
        chains: list[tuple[Any, ...]] = [around.get(key, ()) for key in keys]
        shared = set.intersection(*({id(node) for node in chain} for chain in chains))
        last = chains[-1][::-1]  # where nothing is around all, the last operation stands for them
        near = next((node for node in last if id(node) in shared), *last[:1] or [None])
        if near is not None and id(near) in names:
            found[number] = names[id(near)]
    return found
