"""A linear layer with its bias and the batch norm after it as one operation, for rules that ask.

So is the logarithm of a softmax with that softmax, which may be read by others too.

Some propagation rules see a layer's weights by sign, so that bias, scale and shift must be known
together with them. The fold happens in the program, never in the params.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxviz.graph.entropies import with_own_logarithm
from jaxviz.graph.interpreter import Node, Program, Scalar, Value
from jaxviz.graph.logarithms import with_logarithms
from jaxviz.graph.roles import leaves

LINEAR = frozenset({"conv", "dense"})
MOVING = frozenset({"name", "transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim"})
_STEPS = frozenset({"add", "bias", "sub", "mul", "div"})
_ABOVE_ZERO = MOVING | {"add", "bias", "sub", "max", "min", "clamp", "convert_element_type"}


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
    program = dataclasses.replace(program, nodes=_opened(program, names))
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
    makers = {value: node for node in program.nodes for value in node.outputs}
    for position in range(len(nodes)):
        chain = _chain(program, nodes, readers, makers, position)
        if len(chain) < 2:
            continue
        group = _group(program, [nodes[p] for p in chain], nodes[position].kind)  # type: ignore
        names[id(group)] = names.get(id(nodes[position]), "")
        for p in chain:
            nodes[p] = None
        nodes[chain[-1]] = group
    for position, node in enumerate(nodes):
        chain = _to_softmax(program, makers, node)
        if len(chain) > 1:
            group = _group(program, chain, "log_softmax")
            names[id(group)] = names.get(id(node), "")
            nodes[position] = group
    folded = dataclasses.replace(program, nodes=tuple(n for n in nodes if n is not None))
    return with_logarithms(folded, names)


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


def moved_axes(
    name: str, options: Mapping[str, Any], axes: dict[int, int], before: tuple, after: tuple
) -> dict[int, int] | None:
    """Where channel axes are after an operation that moves axes or unit ones in and out."""
    if name == "name":
        return axes
    if name == "transpose":
        order = options["permutation"]
        return {i: axes[a] for i, a in enumerate(order) if a in axes}
    long_before = [a for a, n in enumerate(before) if n != 1]
    long_after = [a for a, n in enumerate(after) if n != 1]
    if [before[a] for a in long_before] != [after[a] for a in long_after]:
        return None
    pairs = zip(long_before, long_after, strict=True)
    return {new: axes[old] for old, new in pairs if old in axes}


def _chain(program: Program, nodes: list, readers: dict, makers: dict, position: int) -> list[int]:
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

    chain, length = [position], 1
    while True:
        value = nodes[chain[-1]].outputs[0]
        users = readers.get(value, [])
        if value in program.outputs or len(users) != 1:
            break
        following = nodes[users[0]]
        parts = following.members or (following,)
        if following.members and following.kind not in ("batch_norm", "affine"):
            break
        for part in parts:
            axes = _after(program, makers, part, value, axes)
            value = part.outputs[0]
            if axes is None:
                return chain[:length]
        chain.append(users[0])
        if following.kind in (*_STEPS, "batch_norm", "affine"):
            length = len(chain)  # what only moves numbers belongs to the layer if a step follows
    return chain[:length]


def _after(
    program: Program, makers: dict, node: Node, value: Value, axes: dict[int, int]
) -> dict | None:
    """The channel axes after a step that belongs to the layer; None where it does not."""
    shape, out = (program.avals[v].shape for v in (value, node.outputs[0]))
    name = node.equation.primitive.name
    if name in MOVING:
        return moved_axes(name, node.equation.params, axes, shape, out)
    if node.kind not in _STEPS or node.operands.count(value) != 1 or shape != out:
        return None
    if node.kind == "div" and node.operands[0] != value:
        return None
    other = node.operands[1 - node.operands.index(value)]
    if not isinstance(other, Value):
        return axes
    size = _varied(program, makers.get(other), program.avals[other].shape)
    along = len(size) == len(out) and all(n == 1 or a in axes for a, n in enumerate(size))
    return axes if other not in program.depends and (not size or along) else None


def _opened(program: Program, names: dict[int, str]) -> tuple[Node, ...]:
    """The nodes; a function of one number that has p log p in it taken apart."""
    found = with_own_logarithm(program)
    nodes: list[Node] = []
    for node in program.nodes:
        members = list(leaves(node.members))
        if node.kind == "pointwise" and any(id(m) in found for m in members):
            names[id(members[-1])] = names.get(id(node), "")
            nodes += members
        else:
            nodes.append(node)
    return tuple(nodes)


def _to_softmax(program: Program, makers: dict, node: Node | None) -> list[Node]:
    """A softmax, what keeps its numbers above zero, and a logarithm; nothing if it is no such."""
    if node is None or node.kind not in ("log", "log2", "log1p"):
        return []
    chain = [node]
    while chain[0].kind != "softmax":
        reads = chain[0].operands if chain[0].equation else ()
        moving = [o for o in reads if isinstance(o, Value) and o in program.depends]
        if len(moving) != 1 or (chain[0].kind == "sub" and chain[0].operands[0] != moving[0]):
            return []
        made = makers.get(moving[0])
        if made is None or made.kind not in (*_ABOVE_ZERO, "softmax"):
            return []
        if program.avals[made.outputs[0]].size != program.avals[node.outputs[0]].size:
            return []
        chain.insert(0, made)
    if node.kind == "log1p":  # of one less
        less = [o.value for o in chain[-2].operands if isinstance(o, Scalar)]
        if [float(c) for c in less] != [{"sub": 1.0, "add": -1.0}.get(chain[-2].kind)]:
            return []
    return chain


def _varied(program: Program, maker: Node | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of an array, 1 along axes where it is one number spread out (Haiku's biases)."""
    if maker is None or maker.equation is None:
        return shape
    if maker.equation.primitive.name != "broadcast_in_dim":
        return shape
    (operand,) = maker.operands
    before = program.avals[operand].shape if isinstance(operand, Value) else ()
    places = maker.equation.params["broadcast_dimensions"]
    sizes = dict(zip(places, before, strict=True))
    return tuple(sizes.get(a, 1) for a in range(len(shape)))


def _group(program: Program, parts: list[Node], kind: str) -> Node:
    whole = kind not in LINEAR
    members = tuple(m for part in parts for m in ((part,) if whole else part.members or (part,)))
    made = {v for m in members for v in m.outputs}
    read = dict.fromkeys(v for m in members for v in m.inputs if v not in made)
    inputs = (
        *(v for v in read if v in program.depends),
        *(v for v in read if v not in program.depends),
    )
    return parts[-1]._replace(
        kind=kind,
        inputs=inputs,
        operands=inputs,
        equation=None,
        members=members,
        scope=parts[0].scope,
    )
