"""A linear layer with its bias and the batch norm after it as one operation, for rules that ask.

Some propagation rules see a layer's weights by sign, so that bias, scale and shift must be known
together with them. The fold happens in the program, never in the params.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxviz.graph.interpreter import Node, Program, Value

LINEAR = frozenset({"conv", "dense"})
_STEPS = frozenset({"add", "bias", "sub", "mul", "div"})


def fold(program: Program, names: Mapping[int, str]) -> tuple[Program, dict[int, str]]:
    """The program with each linear layer and the affine steps after it as one node.

    A step belongs to the layer if nothing else reads what is between, and if what it adds or
    multiplies by differs along the layer's output channels only. Layers' own values that vanish
    into a group have no name in it any more.

    Args:
      program: As traced.
      names: For each node, by `id`, its layer's name.

    Returns:
      The program, and names of its nodes; a group is named like its linear operation.
    """
    names = dict(names)
    nodes: list[Node | None] = []
    for node in program.nodes:
        kept = node
        if node.bodies:
            bodies = []
            for body in node.bodies:
                folded, names = fold(body, names)
                bodies.append(folded)
            kept = node._replace(bodies=tuple(bodies))
            names[id(kept)] = names.get(id(node), "")
        nodes.append(kept)
    readers: dict[Value, list[int]] = {}
    for position, node in enumerate(nodes):
        for value in node.inputs:  # type: ignore[union-attr]
            readers.setdefault(value, []).append(position)
    for position in range(len(nodes)):
        chain = _chain(program, nodes, readers, position)
        if len(chain) < 2:
            continue
        group = _group(program, [nodes[p] for p in chain])  # type: ignore[misc]
        names[id(group)] = names.get(id(nodes[position]), "")
        for p in chain:
            nodes[p] = None
        nodes[chain[-1]] = group
    return dataclasses.replace(program, nodes=tuple(n for n in nodes if n is not None)), names


def kernel_axes(
    kind: str, options: Mapping[str, Any], kernel: int, shape: tuple[int, ...], rank: int
) -> dict[int, int]:
    """Which axis of the kernel each channel axis of the output is.

    Args:
      kind: "conv" or "dense".
      options: The equation's parameters.
      kernel: Which of the two operands the kernel is.
      shape: Of the kernel.
      rank: Number of axes of the output.
    """
    if kind == "conv":
        numbers = options["dimension_numbers"]
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if kernel == 1 else {}
    contracted, batch = options["dimension_numbers"]
    free = [a for a in range(len(shape)) if a not in (*contracted[kernel], *batch[kernel])]
    # The output has the batch axes, then the free ones of the first operand, then the second's.
    first = len(batch[kernel]) if kernel == 0 else rank - len(free)
    return dict(enumerate(batch[kernel])) | {first + i: axis for i, axis in enumerate(free)}


def _chain(program: Program, nodes: list, readers: dict, position: int) -> list[int]:
    """Positions of a linear operation and the steps that belong to it."""
    node = nodes[position]
    if node is None or node.kind not in LINEAR or node.members:
        return []
    held = [v for v in node.inputs if v not in program.depends]
    if len(held) != 1 or len(node.inputs) != 2:
        return []
    out = program.avals[node.outputs[0]]
    kernel = node.operands.index(held[0])
    shape = program.avals[held[0]].shape
    axes = kernel_axes(node.kind, node.equation.params, kernel, shape, out.ndim)
    if not axes:
        return []

    def step(node: Node, value: Value) -> bool:
        if node.members:
            return node.kind in ("batch_norm", "affine") and all(
                step(m, value if i == 0 else node.members[i - 1].outputs[0])
                for i, m in enumerate(node.members)
            )
        if node.kind == "name":
            return True
        if node.kind not in _STEPS or node.operands.count(value) != 1:
            return False
        if node.kind == "div" and node.operands[0] != value:
            return False
        other = node.operands[1 - node.operands.index(value)]
        if not isinstance(other, Value):
            return True
        size = program.avals[other].shape
        same = program.avals[node.outputs[0]].shape == out.shape
        return (
            other not in program.depends
            and same
            and all(n == 1 or (len(size) == out.ndim and a in axes) for a, n in enumerate(size))
        )

    chain = [position]
    while True:
        value = nodes[chain[-1]].outputs[0]
        users = readers.get(value, [])
        if value in program.outputs or len(users) != 1 or not step(nodes[users[0]], value):
            return chain
        chain.append(users[0])


def _group(program: Program, parts: list[Node]) -> Node:
    members = tuple(m for part in parts for m in (part.members or (part,)))
    made = {v for m in members for v in m.outputs}
    read = dict.fromkeys(v for m in members for v in m.inputs if v not in made)
    inputs = (
        *(v for v in read if v in program.depends),
        *(v for v in read if v not in program.depends),
    )
    return parts[-1]._replace(
        kind=parts[0].kind,
        inputs=inputs,
        operands=inputs,
        equation=None,
        members=members,
        scope=parts[0].scope,
    )
