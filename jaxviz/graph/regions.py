"""A program's nodes by place, who reads what, and the regions that may be one function or norm."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import jaxviz.graph.pieces as pieces
from jaxviz.graph.activations import NAMED
from jaxviz.graph.algebra import Unproved

NORM_KINDS = frozenset({"layer_norm", "rms_norm"})
ACTIVATION_KINDS = NAMED | {"pointwise"}
RELU_KINDS = frozenset({"relu", "relu6", "clipped_relu"})

# What acts on each number alone, whether or not its form is known.
_ELEMENTWISE = pieces.POINTWISE | frozenset(
    "acos acosh asin asinh atan atanh cbrt ceil cos digamma erf_inv floor lgamma round sin"
    " tan".split()
)
_LARGEST_GROUP = 40


class Graph:
    """The nodes of a program by position, and who makes and reads which value.

    A node that is absorbed into a group leaves a gap; the group stands where its last member was.
    """

    def __init__(self, program: Any, nodes: Sequence[Any], through: Callable):
        self.program = program
        self.nodes: list[Any] = list(nodes)
        self.through = through  # what an equation makes of functions of one number
        self.producer: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        # Values that must stay values: outputs and tagged ones.
        self.kept = {*program.outputs, *(value for *_, value in program.tags)}
        self.unread: set[int] = set()  # signs that nobody asked for, as `logsumexp` leaves one
        for position, node in enumerate(nodes):
            self.producer.update(dict.fromkeys(node.outputs, position))
            for value in node.inputs:
                self.readers.setdefault(value, []).append(position)
        for position, node in enumerate(nodes):
            if node.kind == "sign" and self.kept.isdisjoint(node.outputs):
                if not self.readers.get(node.outputs[0]):
                    self.unread.add(position)
        for position in self.unread:
            for value in nodes[position].inputs:
                self.readers[value].remove(position)
        self.uniform = uniform_values(program, nodes, self.readers)

    def moving(self, node: Any) -> list[int]:
        return [v for v in node.inputs if v in self.program.depends]

    def made_by(self, value: int) -> int | None:
        return self.producer.get(value)

    def inside(self, value: int, members: set[int]) -> bool:
        """Whether nothing but the members needs a value."""
        return value not in self.kept and members.issuperset(self.readers.get(value, ()))

    def only_reader(self, node: Any) -> int | None:
        """The node that alone reads this one's output, which nothing else needs."""
        if len(node.outputs) != 1 or node.outputs[0] in self.kept:
            return None
        readers = self.readers.get(node.outputs[0], [])
        return readers[0] if len(readers) == 1 else None

    def region(
        self, position: int, members: set[int], allowed: Callable, *, closed: bool = True
    ) -> int | None:
        """Adds to `members` what lies between a node and the nearest value all of it comes from.

        Returns that value, or None where there is none: where a node on the way is not `allowed`,
        or, if it must be `closed`, something else needs what is between.
        """
        members.add(position)
        frontier = set(self.moving(self.nodes[position]))
        while len(frontier) > 1:
            # Step back over the node made last: what it reads is older, so the walk ends.
            newest = max(frontier, key=lambda v: self.producer.get(v, -1))
            made = self.producer.get(newest, -1)
            if made < 0 or len(members) > _LARGEST_GROUP or not allowed(self.nodes[made]):
                return None
            members.add(made)
            frontier -= set(self.nodes[made].outputs)
            frontier |= set(self.moving(self.nodes[made]))
        last = max(members)
        inner = {v for p in members if p != last for v in self.nodes[p].outputs}
        if not frontier or (closed and not all(self.inside(v, members) for v in inner)):
            return None
        return frontier.pop()

    def group(self, kind: str, members: set[int]) -> None:
        """Puts a group in the place of its last member."""
        positions = sorted(members)
        parts = tuple(self.nodes[p] for p in positions)
        made = {v for m in parts for v in m.outputs}
        read = dict.fromkeys(v for m in parts for v in m.inputs if v not in made)
        moving = [v for v in read if v in self.program.depends]
        inputs = (*moving, *(v for v in read if v not in self.program.depends))
        last = positions[-1]
        for p in positions:
            for v in self.nodes[p].inputs:
                self.readers[v] = [q for q in self.readers[v] if q != p]
            self.nodes[p] = None
        for v in inputs:
            self.readers[v] = [*self.readers.get(v, ()), last]
        for v in made:
            self.producer[v] = last
        self.nodes[last] = parts[-1]._replace(
            kind=kind, inputs=inputs, operands=inputs, equation=None, members=parts, bodies=()
        )


def primitive_of(node: Any) -> str:
    """The JAX primitive of a node; of a group, its kind."""
    return node.equation.primitive.name if node.equation is not None else node.kind


def number_of(operand: Any, uniform: dict[int, float]) -> float | None:
    """The one number that a value is everywhere."""
    if type(operand) is int:
        return uniform.get(operand)
    return _real(operand.value)


def _real(value: Any) -> float | None:
    array = np.asarray(value)
    real = array.dtype.kind in "fiub" or jnp.issubdtype(array.dtype, jnp.floating)
    return float(array) if array.ndim == 0 and real else None


def _concrete(value: Any) -> Any:
    """An array whose numbers can be read while tracing; None for others."""
    if isinstance(value, np.ndarray):
        return value
    known = isinstance(value, jax.Array) and not isinstance(value, Tracer)
    whole = known and value.is_fully_addressable and not value.is_deleted()
    return value if whole and not jnp.issubdtype(value.dtype, jax.dtypes.extended) else None


_COPIES = frozenset({"broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "copy"})
_SUMS = frozenset({"add", "sub", "mul", "div", "neg", "max", "min", "sqrt", "rsqrt", "gt"})


# What an array of one number everywhere is read for: sums and products with one stay layers of
# their own, whatever numbers training has left in them.
_DECIDING = frozenset({"max", "min", "clamp", "select_n", "gt", "ge", "lt", "le", "eq", "ne"})
_LARGEST_READ = 2**16  # numbers of a constant array


def uniform_values(
    program: Any, nodes: Sequence[Any], readers: dict[int, list[int]]
) -> dict[int, float]:
    """The values that are one real number everywhere, with it."""
    found = {}

    def decides(value: int) -> bool:
        reading = [nodes[p] for p in readers.get(value, ())]
        return bool(reading) and all(
            primitive_of(node) in _DECIDING
            or (primitive_of(node) in _COPIES and decides(node.outputs[0]))
            for node in reading
        )

    for value, held in program.constants.items():
        array = _concrete(held)
        if array is None or array.size > _LARGEST_READ or not (array.ndim == 0 or decides(value)):
            continue
        numbers = np.asarray(jax.device_get(array)).reshape(-1)
        if numbers.size and (numbers == numbers[0]).all() and (c := _real(numbers[0])) is not None:
            found[value] = c
    for node in nodes:
        name = primitive_of(node)
        if name not in _COPIES and name not in _SUMS:
            continue
        numbers = [number_of(o, found) for o in node.operands]
        dtype = program.avals[node.outputs[0]].dtype
        if any(c is None for c in numbers) or dtype == jax.dtypes.float0 or dtype.kind == "c":
            continue
        if name in _COPIES:
            found[node.outputs[0]] = numbers[0]  # type: ignore[assignment]
            continue
        try:
            made = pieces.apply(name, {}, numbers, dtype)  # type: ignore[arg-type]
        except Unproved:
            continue
        if not isinstance(made, pieces.Function) or not made.breaks:
            found[node.outputs[0]] = pieces.at(pieces.lift(made), 0.0)
    return found


def is_float(program: Any, value: int) -> bool:
    return jnp.issubdtype(program.avals[value].dtype, jnp.floating)


def elementwise(node: Any) -> bool:
    if node.members or node.kind in NAMED:
        return node.kind in ACTIVATION_KINDS
    return not node.bodies and len(node.outputs) == 1 and primitive_of(node) in _ELEMENTWISE


def flat(node: Any) -> list[Any]:
    return [m for part in node.members for m in flat(part)] if node.members else [node]
