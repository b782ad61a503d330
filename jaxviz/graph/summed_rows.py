"""Which axis of an exponential each axis of what is made from it is, through sums and segments.

So it is known whether each exponential is divided by the sum of its own row and of no other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from jaxviz.graph.exponentials import Search
from jaxviz.graph.interpreter import Node, Program, Scalar, Value

STILL = frozenset(
    "name copy copy_p convert_element_type stop_gradient optimization_barrier".split()
)
_PLACE_BY_PLACE = frozenset(
    "abs add add_any clamp div exp exp2 integer_pow log max min mul neg select_n sub".split()
)
_PLACED = frozenset("reshape squeeze expand_dims".split())
_LARGEST_READ = 2**16  # numbers of a constant array

Axes = tuple[Any, ...]


class Labels:
    """Which axis of a first value each axis of what is made from it is; None where it is the same.

    Where `rows` are looked for, sums drop axes, which `summed` then has, and `whole` says whether
    there is one sum, in which each number counts. Else no axis is summed along which the first
    value differs. Axes of numbers that were fetched by ids are (axis, ids).
    """

    def __init__(self, program: Program, search: Search, first: Value, *, rows: bool):
        self.program, self.search, self.first, self.rows = program, search, first, rows
        self.starts: dict[Value, Value] = {}  # what takes the first value off, and how it reads it
        self.summed: set[int] = set()
        self.sums = 0
        self.whole = True
        self.plain = True  # nothing clipped, nothing weighed by what moves
        self.found: dict[Value, Axes | None] = {}

    def shape(self, value: Any) -> tuple[int, ...]:
        return self.program.avals[value].shape

    def of(self, value: Any) -> Axes | None:
        """The labels of a value's axes; None where nobody knows."""
        if not isinstance(value, Value):
            return None
        if value not in self.found:
            first = value == self.first
            axes = tuple(range(len(self.shape(value)))) if first else self.labels(value)
            self.found[value] = None if axes is None else self.told(axes, value)
        return self.found[value]

    def told(self, axes: Axes, value: Value) -> Axes:
        """Along one place nothing differs."""
        pairs = zip(axes, self.shape(value), strict=True)
        return tuple(None if n == 1 else a for a, n in pairs)

    def labels(self, value: Value) -> Axes | None:
        made = self.search.made.get(value)
        if made is None or made.equation is None or made.bodies:
            return None
        if value in self.starts:
            read = [self.starts[value]]
        elif self.rows or value in self.search.sets:
            read = [o for o in made.operands if isinstance(o, Value) and self.search.within(o)]
            if made.kind in ("exp", "exp2"):
                read = [] if self.rows else list(made.operands)
        else:
            read = self.search.carrying(made)
        if self.rows:
            read = [o for o in read if isinstance(o, Value) and self.reads(o)]
        if made.equation.primitive.name == "select_n" and value in self.search.log_sums:
            read = [o for o in read if o not in self.search.signs]
        carrying = self.search.carrying(made)
        self.plain &= all(o in read for o in carrying)
        known = [self.of(o) for o in dict.fromkeys(read)]
        if not known or any(axes is None for axes in known):
            return None
        shape = self.shape(value)
        pairs = zip(dict.fromkeys(read), known, strict=True)
        steps = [self.step(made, o, axes, shape) for o, axes in pairs]  # type: ignore[arg-type]
        self.whole &= len(read) == 1
        if any(axes is None for axes in steps):
            return None
        same = {self.told(axes, value) for axes in steps if axes is not None}
        return same.pop() if len(same) == 1 else None

    def reads(self, value: Value) -> bool:
        """Whether a value is made from the first one."""
        if value == self.first:
            return True
        made = self.search.made.get(value) if self.search.within(value) else None
        if made is None or made.kind in ("exp", "exp2"):
            return False
        return any(map(self.reads, made.inputs))

    def step(self, made: Node, value: Value, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
        name, params = made.equation.primitive.name, made.equation.params
        before = self.shape(value)
        if name in STILL:
            return axes
        if name in _PLACE_BY_PLACE or value == self.starts.get(made.outputs[0]):
            self.plain &= name not in ("max", "min", "clamp", "abs", "log")
            turned = name == "integer_pow" and params["y"] == -1
            turned |= name == "div" and made.operands[0] == Scalar(1.0)
            plain = turned or made.outputs[0] in self.search.log_sums
            plain |= name == "add" or (name in ("abs", "log") and self.sums > 0)
            grows = self.sums == 0 and weighs(self.program, self.search, made, value)
            self.whole &= plain or grows
            if len(before) != len(shape):
                return None
            pairs = zip(axes, before, shape, strict=True)
            return tuple(a if n == m else None for a, n, m in pairs)
        if name == "broadcast_in_dim":
            places = dict(zip(params["broadcast_dimensions"], range(len(axes)), strict=True))
            return tuple(
                axes[places[i]] if i in places and before[places[i]] == n else None
                for i, n in enumerate(shape)
            )
        if name in _PLACED:
            long = [(a, n) for a, n in zip(axes, before, strict=True) if n != 1]
            if [n for _, n in long] != [n for n in shape if n != 1]:
                return None
            rest = iter(a for a, _ in long)
            return tuple(None if n == 1 else next(rest) for n in shape)
        if name == "slice" and self.rows:
            self.whole = False
            cut = [i for i, (n, m) in enumerate(zip(before, shape, strict=True)) if n != m]
            self.summed.update(axes[i] for i in cut if isinstance(axes[i], int))
            return axes
        if name == "transpose":
            return tuple(axes[i] for i in params["permutation"])
        if name == "reduce_sum":
            return self.without(axes, params["axes"])
        if name == "dot_general":
            return self.contracted(made, value, axes)
        if name == "scatter-add":
            return self.scattered(made, value, axes)
        if name == "gather":
            return self.gathered(made, value, axes, shape)
        return None

    def without(self, axes: Axes, gone: Sequence[int]) -> Axes | None:
        """After a sum over axes."""
        if self.rows:
            self.whole &= self.sums == 0
            self.sums += 1
            self.summed.update(axes[i] for i in gone if isinstance(axes[i], int))
        elif any(axes[i] is not None for i in gone):
            return None
        return tuple(a for i, a in enumerate(axes) if i not in gone)

    def contracted(self, made: Node, value: Value, axes: Axes) -> Axes | None:
        if made.operands.count(value) > 1:
            return None
        self.whole = False
        contracted, batch = made.equation.params["dimension_numbers"]
        at = made.operands.index(value)
        if not self.rows and any(axes[i] is not None for i in contracted[at]):
            return None
        free = lambda k: [
            i
            for i in range(len(self.shape(made.operands[k])))
            if i not in (*contracted[k], *batch[k])
        ]
        mine = [axes[i] for i in free(at)]
        others = [None] * len(free(1 - at))
        sides = (mine, others) if at == 0 else (others, mine)
        return (*(axes[i] for i in batch[at]), *sides[0], *sides[1])

    def scattered(self, made: Node, value: Value, axes: Axes) -> Axes | None:
        """Sums over segments: one axis becomes the segments'."""
        operand, indices, updates = made.operands
        numbers, shape = made.equation.params["dimension_numbers"], self.shape(value)
        windows = tuple(numbers.update_window_dims)
        along = [i for i in range(len(shape)) if i not in windows]
        at = tuple(numbers.inserted_window_dims)
        whole = self.shape(made.outputs[0])
        if updates != value or len(along) != 1 or len(at) != 1:
            return None
        if not _known(self.program, self.search, operand, False):
            return None
        if tuple(numbers.scatter_dims_to_operand_dims) != at or numbers.operand_batching_dims:
            return None
        ids, own = self.id_root(indices), axes[along[0]]
        if self.rows:
            self.whole &= self.sums == 0
            self.sums += 1
            own = ("segments", own, ids)
        elif own is not None:
            if not isinstance(own, tuple) or own[1] != ids:
                return None
            own = own[0]
        places = iter(windows)
        out = tuple(own if i == at[0] else axes[next(places)] for i in range(len(whole)))
        sizes = [n for i, n in enumerate(whole) if i != at[0]]
        return out if sizes == [shape[i] for i in windows] else None

    def gathered(self, made: Node, value: Value, axes: Axes, shape: Sequence[int]) -> Axes | None:
        """Each place gets what its segment has."""
        params, before = made.equation.params, self.shape(value)
        numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
        at, offsets = tuple(numbers.collapsed_slice_dims), tuple(numbers.offset_dims)
        if made.operands[0] != value or len(at) != 1 or tuple(numbers.start_index_map) != at:
            return None
        full = all(n == (1 if i in at else m) for i, (n, m) in enumerate(zip(sizes, before)))  # noqa: B905
        if not full or numbers.operand_batching_dims or len(offsets) + 1 != len(shape):
            return None
        ids, own = self.id_root(made.operands[1]), axes[at[0]]
        if self.rows:
            if not isinstance(own, tuple) or own[0] != "segments" or own[2] != ids:
                return None
            own = own[1]
        elif own is not None:
            own = (own, ids)
        rest = iter(a for i, a in enumerate(axes) if i not in at)
        return tuple(next(rest) if i in offsets else own for i in range(len(shape)))

    def id_root(self, operand: Any) -> Any:
        """Where ids come from; that negative ones count from the end changes nothing."""
        while (made := self.search.made.get(operand)) is not None and made.equation is not None:
            name, operands = made.equation.primitive.name, made.operands
            if name in (*_PLACED, "broadcast_in_dim", "convert_element_type"):
                operand = operands[0]
                continue
            if name != "select_n" or len(operands) != 3:
                break
            least, added = (self.search.made.get(o) for o in operands[::2])  # type: ignore[arg-type]
            wraps = (
                least is not None
                and added is not None
                and least.kind == "lt"
                and added.kind == "add"
                and least.operands[0] == operands[1] == added.operands[0]
                and isinstance(least.operands[1], Scalar)
                and least.operands[1].value == 0
            )
            if not wraps:
                break
            operand = operands[1]
        return operand


def weighed(program: Program, search: Search, value: Any) -> Any:
    """The exponential that a value is, times numbers >= 0."""
    while value in search.sets:
        made = search.made[value]
        if made.kind in ("exp", "exp2"):
            return value
        reading = [o for o in made.operands if isinstance(o, Value) and o in search.sets]
        if len(reading) != 1 or not weighs(program, search, made, reading[0]):
            return None
        value = reading[0]
    return None


def weighs(program: Program, search: Search, made: Node, value: Value) -> bool:
    """Whether a step multiplies a value by numbers >= 0 that stay."""
    name = made.equation.primitive.name if made.equation is not None else ""
    others = [o for o in made.operands if o != value]
    if name in STILL:
        return True
    if len(others) != len(made.operands) - 1:
        return False
    known = lambda operand, least: _known(program, search, operand, least)
    if name == "select_n":
        return made.operands[0] != value and len(others) == 2 and known(others[1], False)
    return name == "mul" and known(others[0], True)


def _known(program: Program, search: Search, operand: Any, positive: bool) -> bool:
    """Whether an operand is 0 everywhere, or may be positive but nowhere below."""
    allowed = lambda a: bool(np.all(a >= 0 if positive else a == 0))
    while isinstance(operand, Value):
        made = search.made.get(operand)
        if made is None:
            held = program.constants.get(operand)
            if held is None or isinstance(held, Tracer) or held.size > _LARGEST_READ:
                return False
            return allowed(np.asarray(held))
        name = made.equation.primitive.name if made.equation is not None else ""
        if name not in ("broadcast_in_dim", "convert_element_type", "reshape", "expand_dims"):
            return False
        operand = made.operands[0]
        if isinstance(operand, Value) and program.avals[operand].dtype == bool:
            return positive
    return allowed(np.asarray(operand.value))
