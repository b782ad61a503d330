"""Which layer reads which parameters, in the order of the computation: read off the jaxpr."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Scalar, Value, equation_of, opened, run_nodes
from jaxviz.graph.kinds import SAME_PLACE
from jaxviz.graph.rows import body_operands, leaf_sizes, operation_names
from jaxviz.graph.split import environment, needed
from jaxviz.graph.trace import Traced


class Part(NamedTuple):
    """What of a leaf of params is read: all of it, or one slice of a stack of layers.

    Attributes:
      leaf: Its number among the leaves.
      axis: The axis of the stack, or None where all of the leaf is read.
      index: The place on that axis.
    """

    leaf: int
    axis: int | None = None
    index: int | None = None


class Reader(NamedTuple):
    """A layer and the parameters that are counted as its own, each with one layer only."""

    name: str
    parts: frozenset[Part]


class _Read(NamedTuple):
    name: str
    parts: frozenset[Part]


@fact
def readers(traced: Traced, last: bool = False) -> tuple[Reader, ...]:
    """The layers that read trained parameters, in the order in which they run.

    Args:
      traced: A model, flat and whole, as `trace` gives it: scans over layers are written out
        turn by turn, and all of x moves.
      last: Whether parameters that several layers read (one layer run twice, an embedding that also
        makes the logits) are counted as the last one's, and not as the first one's.

    Returns:
      A tuple of `Reader`; of the leaves under "params" where params has such a key. Operations that
      belong to no layer have the name of what they read.
    """
    sizes = leaf_sizes(jax.tree.map(traced.program.avals.get, traced.params))
    paths = jax.tree_util.tree_leaves_with_path(traced.params)
    parts, views = {}, {}
    for number, (_, value) in enumerate(paths):
        size, is_state = sizes[number]
        if size and not is_state:
            parts[value] = frozenset({Part(number)})
            ndim = len(traced.program.avals[value].shape)
            views[value] = (number, tuple(range(ndim)))
    names = operation_names(traced)
    moving = set(traced.program.depends)
    reads = list(_reads(traced.program, parts, views, moving, names))
    whole = {part.leaf for read in reads for part in read.parts if part.axis is None}
    whole |= {part.leaf for part in _twice_cut(reads)}
    owner: dict[Part, str] = {}
    for name, found in reads:
        for part in sorted(found, key=lambda part: part.leaf):
            part = Part(part.leaf) if part.leaf in whole else part
            told = name or _path_name(paths[part.leaf][0])
            if last or part not in owner:
                owner.pop(part, None)  # the order is that of the read that counts
                owner[part] = told
    groups: dict[str, set[Part]] = {}
    for part, name in owner.items():
        if last:  # a layer stands where it is last read
            groups[name] = groups.pop(name, set())
        groups.setdefault(name, set()).add(part)
    return tuple(Reader(name, frozenset(found)) for name, found in groups.items())


def _twice_cut(reads: Sequence[_Read]) -> Iterator[Part]:
    """Parts of leaves that are cut along more than one axis, which have no slices in common."""
    axes: dict[int, int | None] = {}
    for part in (part for read in reads for part in read.parts):
        if axes.setdefault(part.leaf, part.axis) != part.axis:
            yield part


def _path_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"


def _reads(
    program: Program,
    parts: dict[Value, frozenset[Part]],
    views: dict[Value, tuple[int, tuple[int, ...]]],
    moving: set[Value],
    names: dict[int, str],
) -> Iterator[_Read]:
    """What each operation that x reaches reads of the params, in order.

    Args:
      program: The operations.
      parts: For values made of params alone, what they are made of; filled in on the way.
      views: Those that are a whole leaf, at most turned: the leaf, and its axes in their order.
      moving: Values that x reaches; filled in on the way.
      names: Of layers, by `id` of the node.
    """
    for node in opened(program.nodes):
        name = names.get(id(node), "")
        if moving.isdisjoint(node.inputs):
            found = frozenset().union(*(parts.get(v, frozenset()) for v in node.inputs))
            if not found:
                continue
            cut = _slice(program, node, views, moving, parts)
            parts.update((v, frozenset({cut}) if cut else found) for v in node.outputs)
            if (view := _view(program, node, views)) is not None:
                views[node.outputs[0]] = view
            continue
        moving.update(node.outputs)
        for number, body in enumerate(node.bodies):
            given = list(zip(body.inputs, body_operands(node, number, list(node.operands))))  # noqa: B905
            known = [(v, o) for v, o in given if not isinstance(o, Scalar)]
            inside = {v: parts[o] for v, o in known if o in parts and v not in body.depends}
            within = body.depends | {v for v, o in known if o in moving}
            yield from _reads(body, inside, {}, set(within), names)
            # A branch that x chooses is read by the choice, though nothing in it depends on x.
            chosen = frozenset().union(*(inside.get(v, frozenset()) for v in body.outputs))
            if chosen:
                yield _Read(name, chosen)
        if not node.bodies:
            found = [parts[v] for v in node.inputs if v in parts and v not in moving]
            if found:
                yield _Read(name, frozenset().union(*found))


def _view(program, node, views):
    """A leaf that is turned, or of another type."""
    if node.members or len(node.inputs) != 1 or node.inputs[0] not in views:
        return None
    leaf, axes = views[node.inputs[0]]
    primitive = equation_of(node).primitive.name
    if primitive == "transpose":
        return leaf, tuple(axes[i] for i in equation_of(node).params["permutation"])
    return (leaf, axes) if primitive in SAME_PLACE else None


def _slice(program, node, views, moving, parts) -> Part | None:
    """The part that one slice along one axis of a whole leaf is."""
    if node.members or not node.operands or node.operands[0] not in views:
        return None
    leaf, axes = views[node.operands[0]]
    equation = equation_of(node)
    kind, p = equation.primitive.name, equation.params
    shape = program.avals[node.operands[0]].shape
    if kind == "slice" and set(p["strides"] or (1,)) == {1}:
        sizes = [b - a for a, b in zip(p["start_indices"], p["limit_indices"], strict=True)]
        start = lambda axis: p["start_indices"][axis]
    elif kind == "dynamic_slice":
        sizes = p["slice_sizes"]
        start = lambda axis: _number(program, node.operands[1 + axis], moving, parts)
    elif kind == "gather" and len(p["dimension_numbers"].start_index_map) == 1:
        sizes = p["slice_sizes"]
        start = lambda axis: _number(program, node.operands[1], moving, parts)
    else:
        return None
    cut = [i for i, (one, all_) in enumerate(zip(sizes, shape, strict=True)) if one != all_]
    if kind == "gather" and cut != list(p["dimension_numbers"].start_index_map):
        return None
    if len(cut) != 1 or sizes[cut[0]] != 1:
        return None
    index = start(cut[0])
    return None if index is None else Part(leaf, axes[cut[0]], index)


def _number(program, operand, moving, parts) -> int | None:
    """An index that is known beforehand, or None."""
    made = not isinstance(operand, Scalar) and (operand in moving or operand in parts)
    return None if made else known_number(program, operand)


def known_number(program: Program, operand: Value | Scalar) -> int | None:
    """A whole number that no input of the program has a part in, or None."""
    return int(operand.value) if isinstance(operand, Scalar) else _of_constants(program, operand)


@fact
def _of_constants(program: Program, made: Value) -> int | None:
    env = environment(program, ())
    if made not in env:
        nodes: list[Node] = needed(program.nodes, [made])
        inside = {v for one in nodes for v in one.outputs}
        if any(v not in inside and v not in env for one in nodes for v in one.inputs):
            return None
        with jax.ensure_compile_time_eval():
            run_nodes(nodes, env, {})
    value = env.get(made)
    if value is None or isinstance(value, Tracer) or np.size(value) != 1:
        return None
    return int(np.asarray(value).reshape(()))
