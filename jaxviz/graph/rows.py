"""Which operations of a model are layers, what they are called, and what is part of them."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.graph.axes import Axes, axes
from jaxviz.graph.facts import fact
from jaxviz.graph.flops import node_flops
from jaxviz.graph.fold import MOVING
from jaxviz.graph.interpreter import Node, Program, Scalar, Value, equation_of, opened
from jaxviz.graph.kinds import ACTIVATION_KINDS, SAME_PLACE, primitive_of
from jaxviz.graph.names import join_scope
from jaxviz.graph.trace import Traced
from jaxviz.graph.twins import names_of_twins, twins
from jaxviz.graph.varying import check_numbers


class Layer(NamedTuple):
    """One named value of a model, and what it takes to make it.

    Attributes:
      name: Path of the module (`block1/conv1`), or kind and number inside it (`block1/relu_0`).
      kind: "conv", "dense", "relu", ...; the class name of a module made of several layers.
      shape: Of its output, batch first; inside a loop, that of one turn.
      dtype: Of its output.
      num_params: Numbers trained, under "params" where params has such a key.
      num_state: The other floating numbers it reads, such as running means.
      flops: For the whole batch and all turns of a loop, those of its sublayers included;
        transcendentals are not counted (XLA books them apart).
      turns: How often it runs: 1, or the length of the loop around it.
      can_cut: Whether `split` and `activations` can reach it (not inside a loop or a branch; those
        of a scan over layers can be reached, each by its number: `blocks[2]/mlp`).
      submodules: Whether rows below it are part of it, so that sums would count twice.
      channel_axis: Which axis of its output holds the channels: the one that the convolution or
        dense layer that made it put them on, else that of a model which says so
        (`jaxviz.channels_first`), else the last.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: Any
    num_params: int
    num_state: int
    flops: int
    turns: int
    can_cut: bool
    submodules: bool
    channel_axis: int = -1


class Piece(NamedTuple):
    """What of a leaf of params a value is made of."""

    leaf: int
    slice: Value | None  # the value that is one of a stack, or None for all of it
    size: int


class Row(NamedTuple):
    """A layer with its place in the program."""

    layer: Layer
    value: Value
    position: tuple
    path: str  # of the module that it is, or that it is in
    nodes: tuple[Node, ...]  # the operations that make it up
    batch: int = 0  # the axis of the value that the layer's shape has first
    idle: bool = False  # whether it is a module that hands on what it was given


# Operations that are layers where nobody named them.
LISTED = frozenset(
    "conv conv_product dense matmul batch_norm affine layer_norm rms_norm max_pool avg_pool"
    " sum_pool mean softmax log_softmax concatenate flatten embed select_and_gather_add".split()
) | (ACTIVATION_KINDS - {"pointwise"})
_LOOPS = ("scan", "while")
_BODIES = {
    **{"custom_jvp_call": "custom_jvp", "custom_vjp_call": "custom_vjp", "cond": "cond"},
    **{"scan": "scan", "while": "while", "remat2": "remat", "checkpoint": "remat"},
}


@fact
def rows(traced: Traced) -> tuple[Row, ...]:
    """The layers of a traced model with their values."""
    check_numbers("layers", traced.program)
    if traced.whole is not traced:
        same = twins(traced)
        known = [row for row in rows(traced.whole) if row.value in same or not row.layer.can_cut]
        return tuple(row._replace(value=same.get(row.value, row.value)) for row in known)
    sizes = leaf_sizes(jax.tree.map(traced.program.avals.get, traced.params))
    held = jax.tree.leaves(traced.params)
    origin = {v: frozenset({Piece(i, None, sizes[i][0])}) for i, v in enumerate(held)}
    found = _Namer(sizes).rows(traced.program, origin, (), 1, True)
    known = axes(traced)
    named = {value for *_, value in traced.program.tags}
    return tuple(
        _batch_first(row, known) if row.layer.can_cut else row
        for row in found
        # What nobody named and has no batch, such as the mean of one, is no layer.
        if row.value in named or not row.layer.can_cut or not known.has_none(row.value)
    )


def _batch_first(row: Row, known: Axes) -> Row:
    """The row as users see its value: the batch first, wherever the program has it."""
    batch, channels = known.batch(row.value) or 0, known.channels(row.value)
    shape = row.layer.shape
    if channels is None:  # the last, of the axes beside the batch
        channels = len(shape) - 1 - (batch == len(shape) - 1)
    moved = (shape[batch], *shape[:batch], *shape[batch + 1 :]) if batch else shape
    axis = channels + (channels < batch)
    last = axis == len(shape) - 1 or not shape
    return row._replace(
        layer=row.layer._replace(shape=moved, channel_axis=-1 if last else axis), batch=batch
    )


@fact
def operation_names(traced: Traced) -> dict[int, str]:
    """For each node, by `id`, its own layer name or that of the layer it is part of."""
    if traced.whole is not traced:
        return names_of_twins(traced, operation_names(traced.whole))
    namer = _Namer([])
    namer.rows(traced.program, {}, (), 1, True)
    return namer.names


class _Namer:
    """Walks programs, giving names; what it has named so far is its state."""

    def __init__(self, sizes: list[tuple[int, bool]]):
        self.sizes = sizes
        self.taken: dict[str, int] = {}
        self.names: dict[int, str] = {}

    def unique(self, name: str) -> str:
        """The name, numbered from the second time on."""
        count = self.taken.get(name, 0)
        self.taken[name] = count + 1
        return self.unique(f"{name}_{count}") if count else name

    def numbers(self, pieces: Iterable[Piece]) -> dict[int, int]:
        """For each leaf of params how many of its numbers there are in some pieces of it."""
        found: dict[int, int] = {}
        for piece in pieces if self.sizes else ():
            found[piece.leaf] = found.get(piece.leaf, 0) + piece.size
        return {leaf: min(size, self.sizes[leaf][0]) for leaf, size in found.items()}

    def skip_turns(self, program: Program) -> None:
        """Scans that are written out have their numbers already (`scan_0[2]`)."""
        marks = {part for node in program.nodes for part in node.scope if part.startswith("<<")}
        for mark in marks:
            for found in re.finditer(r"scan_(\d+)\[", mark):
                key = f"{mark[2 : found.start()]}scan_#"
                self.taken[key] = max(self.taken.get(key, 0), int(found[1]) + 1)

    def numbered(self, path: str, kind: str) -> str:
        stem = f"{path}/{kind}" if path else kind
        key = f"{stem}_#"
        count = self.taken.get(key, 0)
        self.taken[key] = count + 1
        return f"{stem}_{count}"

    def rows(
        self,
        program: Program,
        origin: dict[Value, frozenset[Piece]],
        outer: tuple[str, ...],
        turns: int,
        can_cut: bool,
    ) -> list[Row]:
        origin, whole = dict(origin), program.nodes
        self.skip_turns(program)
        program = dataclasses.replace(program, nodes=tuple(opened(whole)))
        for node in program.nodes:
            if not any(v in program.depends for v in node.inputs):
                pieces = frozenset().union(*(origin.get(v, frozenset()) for v in node.inputs))
                origin.update((v, _one_of_stack(program, node, v, pieces)) for v in node.outputs)
        paths = {id(node): join_scope(outer + node.scope) for node in program.nodes}
        made = {v: i for i, node in enumerate(program.nodes) for v in node.outputs}
        readers: dict[Value, list[Node]] = {}
        for node in program.nodes:
            for value in node.inputs:
                readers.setdefault(value, []).append(node)
        tagged = {v for *_, v in program.tags} | set(program.outputs)
        absorbing = self._leaf_modules(program, paths)
        found: list[Row] = []

        def row(name, kind, value, nodes, position, path, submodules=False, idle=False):
            aval = program.avals[value]
            read = [v for node in nodes for v in node.inputs if v not in program.depends]
            pieces = frozenset().union(*(origin.get(v, frozenset()) for v in read))
            held = self.numbers(pieces)
            layer = Layer(
                name=name,
                kind=kind,
                shape=tuple(aval.shape),
                dtype=aval.dtype,
                num_params=sum(n for i, n in held.items() if not self.sizes[i][1]),
                num_state=sum(n for i, n in held.items() if self.sizes[i][1]),
                flops=turns * sum(node_flops(program, node) for node in nodes),
                turns=turns,
                can_cut=can_cut,
                submodules=submodules,
            )
            found.append(Row(layer, value, position, path, tuple(nodes), idle=idle))

        for i, node in enumerate(program.nodes):
            path = paths[id(node)]
            self._name_members(node, path)
            if node.bodies:
                kind = _BODIES.get(node.kind, node.kind)
                name = self.numbered(path, kind)
                self.names[id(node)] = name
                for row_ in self._body_rows(program, node, origin, outer, name, turns):
                    found.append(row_._replace(position=(i, 0, row_.position)))
                if node.outputs:
                    row(name, kind, node.outputs[0], [node], (i, 1), path, submodules=True)
                continue
            for part in _listed(program, node):
                if path in absorbing:
                    continue
                name = self.numbered(path, part.kind)
                self.names[id(part)] = name
                value, nodes = _with_bias(part, paths, readers, tagged)
                for extra in nodes:
                    self.names[id(extra)] = name
                row(name, part.kind, value, nodes, (max(made[value], i), 0), path)
        self._tags(program, paths, made, absorbing, row)
        for node in whole:
            self._name_unnamed(node)
        return sorted(found, key=lambda r: _sort_key(r.position))

    def _tags(self, program, paths, made, absorbing, row) -> None:
        """A row for each named value: the modules' and the user's own."""
        last: dict[str, int] = {}
        around = {outer for path, *_ in program.tags for outer in _around(path)}
        for order, (path, class_name, value) in enumerate(program.tags):
            if not path:
                continue  # the root's output is the model's
            position = made.get(value, -1)
            start = last.get(path, -1)
            last[path] = position
            stem = path.split("#")[0] + "/"
            nodes = [
                node
                for node in (program.nodes[start + 1 : position + 1] if class_name else ())
                if (paths[id(node)] + "/").startswith(stem)
                and any(v in program.depends for v in node.inputs)
            ]
            inside = stem[:-1] in around or any(node.kind in _LOOPS for node in nodes)
            kinds = [part.kind for node in nodes for part in _listed(program, node)]
            submodules = inside or len(kinds) > 1
            kind = kinds[0] if len(kinds) == 1 and not inside else class_name
            if not class_name:
                producer = program.nodes[position] if position >= 0 else None
                kind = "value"
                if producer is not None and producer.kind == "name":
                    before = made.get(producer.inputs[0])
                    kind = program.nodes[before].kind if before is not None else kind
            name = self.unique(path)
            for node in nodes:
                self.names.setdefault(id(node), name)
                self._name_members(node, name, own=False)
            # A dropout that drops nothing, an identity, a cast.
            idle = bool(class_name) and all(map(_hands_on, nodes))
            row(name, kind, value, nodes, (position, 2, order), path, submodules, idle)

    def _name_unnamed(self, node: Node) -> None:
        """A group without a name has that of its last member."""
        if node.kind == "pointwise":
            for member in node.members:
                self._name_unnamed(member)
            self.names.setdefault(id(node), self.names.get(id(node.members[-1]), ""))

    def _name_members(self, node: Node, path: str, *, own: bool = False) -> None:
        for member in node.members:
            self.names.setdefault(id(member), path)
            self._name_members(member, path)

    def _leaf_modules(self, program, paths) -> set[str]:
        """Modules that are one layer: no module and no loop inside, one listed operation a call."""
        calls: dict[str, int] = {}
        for path, class_name, _ in program.tags:
            if class_name and "#" not in path:
                calls[path] = calls.get(path, 0) + 1
        listed: dict[str, int] = {}
        for node in program.nodes:
            if not node.bodies:
                path = paths[id(node)]
                listed[path] = listed.get(path, 0) + len(list(_listed(program, node)))
        around = {outer for path in calls for outer in _around(path)}
        looping = {paths[id(node)] for node in program.nodes if node.kind in _LOOPS}
        return {
            path
            for path, count in calls.items()
            if path and listed.get(path, 0) <= count and path not in around | looping
        }

    def _body_rows(self, program, node, origin, outer, name, turns) -> Iterator[Row]:
        equation = equation_of(node)
        if node.kind == "scan":
            turns = turns * equation.params["length"]
        operands = list(node.operands)
        for number, body in enumerate(node.bodies):
            inner = outer + node.scope
            if not any(class_name for _, class_name, _ in body.tags):
                branch = f"{name}/branch_{number}" if node.kind == "cond" else name
                inner = (f"<<{branch}>>",)
            given = body_operands(node, number, operands)
            inside = {
                v: origin[o]
                for v, o in zip(body.inputs, given, strict=False)
                if not isinstance(o, Scalar) and o in origin
            }
            yield from self.rows(body, inside, inner, turns, False)


def _hands_on(node: Node) -> bool:
    """Whether an operation leaves every number what it is and where it is, gradients too (what
    stops them is a place of its own: behind it alone they are not zero)."""
    if node.members:
        return all(map(_hands_on, node.members))
    return not node.bodies and primitive_of(node) in SAME_PLACE


def _one_of_stack(
    program: Program, node: Node, value: Value, pieces: frozenset[Piece]
) -> frozenset[Piece]:
    """What a value made of params is made of: one of a stack of layers is that layer's own."""
    if node.members or equation_of(node).primitive.name not in ("slice", "dynamic_slice", "gather"):
        return pieces
    (length, *one), made = program.avals[node.inputs[0]].shape or (0,), program.avals[value].shape
    if length < 2 or tuple(n for n in made if n != 1) != tuple(n for n in one if n != 1):
        return pieces
    return frozenset(Piece(p.leaf, value, p.size // length) for p in pieces)


def _around(path: str) -> Iterator[str]:
    """The paths that a path is inside of."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def body_operands(node: Node, number: int, operands: list) -> list:
    """The operands that a body's inputs stand for."""
    if node.kind == "cond":
        return operands[1:]
    if node.kind == "while":
        params = equation_of(node).params
        c, b = params["cond_nconsts"], params["body_nconsts"]
        return operands[:c] + operands[c + b :] if number == 0 else operands[c:]
    return operands


def _listed(program: Program, node: Node) -> Iterator[Node]:
    """The node, if it is a layer."""
    if not any(v in program.depends for v in node.inputs):
        return
    if node.kind in LISTED:
        yield node
    elif node.kind in ("add", "mul", "sub") and not node.members:
        moving = [v for v in node.inputs if v in program.depends]
        if len(moving) > 1:
            yield node


def _with_bias(node, paths, readers, tagged) -> tuple[Value, list[Node]]:
    """The value of an unnamed layer: its output, or the sum where only a bias follows.

    `jax.vmap` leaves axes to be moved between the two, which belong to the layer then.
    """
    nodes, value = [node], node.outputs[0]
    if node.kind not in ("conv", "dense"):
        return value, nodes
    while value not in tagged:
        found = readers.get(value, ())
        if len(found) != 1 or paths[id(found[0])] != paths.get(id(node)):
            break
        (reader,) = found
        nodes, value = [*nodes, reader], reader.outputs[0]
        if reader.kind == "bias":
            return value, nodes
        if reader.members or equation_of(reader).primitive.name not in MOVING:
            break
    return node.outputs[0], [node]


def _sort_key(position: tuple) -> tuple:
    """Flattens nested positions, so that rows of a body come where the body is."""
    flat: list[int] = []
    for part in position:
        flat.extend(_sort_key(part) if isinstance(part, tuple) else (part,))
    return tuple(flat)


def leaf_sizes(params: Any) -> list[tuple[int, bool]]:
    """For each leaf of params its count of floating numbers, and whether it is state."""
    has_params = isinstance(params, Mapping) and "params" in params
    sizes = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        is_state = has_params and getattr(path[0], "key", None) != "params"
        sizes.append((math.prod(jnp.shape(leaf)) if is_float else 0, is_state))
    return sizes
