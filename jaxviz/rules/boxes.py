"""Parts of values: which part of its operands an operation takes for a part of its result.

A part is a box, an interval on every axis. What has a row in `RULES` can be computed for a box
alone; all else is computed as it stands.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jaxviz.graph.interpreter import CUSTOM, Node, Program, Scalar, equation_of
from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.pieces import POINTWISE
from jaxviz.graph.reads import known_number

Interval = tuple[int, int]
Box = tuple[Interval, ...]


def whole(shape: Sequence[int]) -> Box:
    return tuple((0, n) for n in shape)


def sizes(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def hull(a: Box | None, b: Box | None) -> Box | None:
    if a is None or b is None:
        return b if a is None else a
    return tuple((min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b, strict=True))


def cut(array: jax.Array, has: Box, wants: Box) -> jax.Array:
    """Part of an array that is part of a value."""
    if has == wants:
        return array
    starts = [w[0] - h[0] for h, w in zip(has, wants, strict=True)]
    stops = [w[1] - h[0] for h, w in zip(has, wants, strict=True)]
    return jax.lax.slice(array, starts, stops)


def padded(array: jax.Array, box: Box, shape: Sequence[int]) -> jax.Array:
    """A value that is zeros beside a part."""
    around = [(a, n - b, 0) for (a, b), n in zip(box, shape, strict=True)]
    beside = any(low or high for low, high, _ in around)
    return jax.lax.pad(array, array.dtype.type(0), around) if beside else array


class Rule(NamedTuple):
    """An operation of which parts can be computed.

    Attributes:
      asks: `(program, node, box) -> boxes`: what of each operand a box of the output takes; None
        where it is all of all.
      run: `(program, node, values, box) -> array`: that box, of operands so cut.
    """

    asks: Callable
    run: Callable


def _as_it_stands(program: Program, node: Node, values: list, box: Box) -> jax.Array:
    """An operation whose parameters say nothing of the sizes."""
    pairs = zip(node.operands, values, strict=True)
    given = {o: v for o, v in pairs if not isinstance(o, Scalar)}
    return node.bound(*(given[v] for v in node.inputs))[0]


def _shapes(program: Program, node: Node) -> list[tuple[int, ...]]:
    return [() if isinstance(o, Scalar) else program.avals[o].shape for o in node.operands]


def _pointwise(program: Program, node: Node, box: Box) -> list[Box]:
    fits = lambda shape: tuple((0, 1) if n == 1 else b for n, b in zip(shape, box, strict=True))
    return [fits(shape) if shape else () for shape in _shapes(program, node)]


def _dot(program: Program, node: Node, box: Box) -> list[Box]:
    contracted, batch = equation_of(node).params["dimension_numbers"]
    at, asked = len(batch[0]), []
    for shape, gone, common in zip(_shapes(program, node), contracted, batch, strict=True):
        own = list(whole(shape))
        for place, axis in enumerate(common):
            own[axis] = box[place]
        for axis in range(len(shape)):
            if axis not in (*gone, *common):
                own[axis] = box[at]
                at += 1
        asked.append(tuple(own))
    return asked


def _broadcast(program: Program, node: Node, box: Box) -> list[Box]:
    dims, shape = equation_of(node).params["broadcast_dimensions"], _shapes(program, node)[0]
    return [
        tuple(box[d] if shape[i] > 1 else (0, shape[i]) for i, d in enumerate(dims)),
        *[()] * (len(node.operands) - 1),
    ]


def _run_broadcast(program: Program, node: Node, values: list, box: Box) -> jax.Array:
    dims = equation_of(node).params["broadcast_dimensions"]
    return jax.lax.broadcast_in_dim(values[0], sizes(box), dims)


def _transpose(program: Program, node: Node, box: Box) -> list[Box]:
    order = equation_of(node).params["permutation"]
    return [tuple(box[order.index(a)] for a in range(len(order)))]


def _reduce(program: Program, node: Node, box: Box) -> list[Box]:
    gone, shape, left = equation_of(node).params["axes"], _shapes(program, node)[0], iter(box)
    return [tuple((0, n) if a in gone else next(left) for a, n in enumerate(shape))]


def _along(program: Program, node: Node, box: Box) -> list[Box]:
    axis, shape = equation_of(node).params["axis"], _shapes(program, node)[0]
    return [tuple((0, n) if a == axis else box[a] for a, n in enumerate(shape))]


def _run_along(program: Program, node: Node, values: list, box: Box) -> jax.Array:
    """Along its axis it is made whole, of which some may be read."""
    axis, made = equation_of(node).params["axis"], _as_it_stands(program, node, values, box)
    has = tuple((0, n) if a == axis else box[a] for a, n in enumerate(made.shape))
    return cut(made, has, box)


def _squeeze(program: Program, node: Node, box: Box) -> list[Box]:
    gone, shape, left = equation_of(node).params["dimensions"], _shapes(program, node)[0], iter(box)
    return [tuple((0, 1) if a in gone else next(left) for a, _ in enumerate(shape))]


def _concatenate(program: Program, node: Node, box: Box) -> list[Box | None]:
    axis, at, asked = equation_of(node).params["dimension"], 0, []
    for shape in _shapes(program, node):
        low, high = (min(max(end - at, 0), shape[axis]) for end in box[axis])
        asked.append((*box[:axis], (low, high), *box[axis + 1 :]) if low < high else None)
        at += shape[axis]
    if all(part is None for part in asked):  # of an empty part, an empty one
        asked[0] = (*box[:axis], (0, 0), *box[axis + 1 :])
    return asked


def _run_concatenate(program: Program, node: Node, values: list, box: Box) -> jax.Array:
    parts = [v for v in values if v is not None]
    axis = equation_of(node).params["dimension"]
    return parts[0] if len(parts) == 1 else jax.lax.concatenate(parts, axis)


def _reshape(program: Program, node: Node, box: Box) -> list[Box] | None:
    """Axes that a reshape leaves alone; of the others all is read."""
    shape, out = _shapes(program, node)[0], program.avals[node.outputs[0]].shape
    if equation_of(node).params["dimensions"] is not None:
        return None
    asked = list(whole(shape))
    for before, after in _kept_axes(shape, out):
        asked[before] = box[after]
    return [tuple(asked), *[()] * (len(node.operands) - 1)]


def _kept_axes(shape: Sequence[int], out: Sequence[int]) -> list[tuple[int, int]]:
    """The axes before and after a reshape that it leaves alone, but those of size 1."""
    if 0 in shape:
        return []
    before, after = ([a for a, n in enumerate(sizes) if n != 1] for sizes in (shape, out))
    found, i, j = [], 0, 0
    while i < len(before):
        first, second, a, b = i, j, shape[before[i]], out[after[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * shape[before[i]], i + 1
            else:
                b, j = b * out[after[j]], j + 1
        if i == first + 1 and j == second + 1:
            found.append((before[first], after[second]))
    return found


def _run_reshape(program: Program, node: Node, values: list, box: Box) -> jax.Array:
    shape, out = _shapes(program, node)[0], program.avals[node.outputs[0]].shape
    made = list(whole(out))
    for _, after in _kept_axes(shape, out):
        made[after] = box[after]
    return cut(jax.lax.reshape(values[0], sizes(tuple(made))), tuple(made), box)


def _starts(program: Program, node: Node) -> list[int] | None:
    """Where a slice begins on each axis, if that is known and each place is read."""
    name, p = equation_of(node).primitive.name, equation_of(node).params
    shape = _shapes(program, node)[0]
    if name == "slice":
        return list(p["start_indices"]) if set(p["strides"] or (1,)) == {1} else None
    at = [n for n in (known_number(program, o) for o in node.operands[1:]) if n is not None]
    room = [size - n for size, n in zip(shape, p["slice_sizes"], strict=True)]
    inside = len(at) == len(room) and all(0 <= n <= r for n, r in zip(at, room, strict=True))
    return at if inside else None


def _slice(program: Program, node: Node, box: Box) -> list[Box] | None:
    starts = _starts(program, node)
    if starts is None:
        return None
    moved = tuple((a + s, b + s) for (a, b), s in zip(box, starts, strict=True))
    return [moved, *[()] * (len(node.operands) - 1)]


def _gather(program: Program, node: Node, box: Box) -> list[Box] | None:
    """One slice along one axis, at a place that is known: `jnp.take(x, 3, axis=1)`."""
    p, (shape, indices) = equation_of(node).params, _shapes(program, node)
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    if indices != (1,) or len(numbers.start_index_map) != 1:
        return None
    (axis,), at = numbers.start_index_map, known_number(program, node.operands[1])
    if at is None or not 0 <= at <= shape[axis] - sizes[axis]:
        return None
    left = iter(box)
    own = [(0, 1) if a in numbers.collapsed_slice_dims else next(left) for a in range(len(shape))]
    own[axis] = own[axis][0] + at, own[axis][1] + at
    return [tuple(own), ((0, 1),)]


def _custom(program: Program, node: Node, box: Box) -> list[Box] | None:
    """An activation; what else has a derivative of its own may mix places there."""
    same = _shapes(program, node) == [program.avals[node.outputs[0]].shape]
    return [box] if same and node.kind in ACTIVATION_KINDS else None


def _run_custom(program: Program, node: Node, values: list, box: Box) -> jax.Array:
    """Its derivative is of the size that it was traced for: what is left out is zeros there."""
    shape = program.avals[node.outputs[0]].shape
    return cut(node.bound(padded(values[0], box, shape))[0], whole(shape), box)


_POINTWISE = POINTWISE | frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt ceil cos digamma erf_inv floor lgamma nextafter"
    " rem round sin tan".split()
)
_SLICE = Rule(_slice, lambda program, node, values, box: values[0])
_GATHER = Rule(_gather, lambda program, node, values, box: values[0].reshape(sizes(box)))
CUTS = (_SLICE, _GATHER)  # which read in part what is given to them, whatever is read of theirs
RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, Rule(_pointwise, _as_it_stands)),
    **dict.fromkeys(CUSTOM, Rule(_custom, _run_custom)),
    **dict.fromkeys(("slice", "dynamic_slice"), _SLICE),
    "gather": _GATHER,
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split(),
        Rule(_reduce, _as_it_stands),
    ),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum".split(), Rule(_along, _run_along)),
    "broadcast_in_dim": Rule(_broadcast, _run_broadcast),
    "concatenate": Rule(_concatenate, _run_concatenate),
    "dot_general": Rule(_dot, _as_it_stands),
    "reshape": Rule(_reshape, _run_reshape),
    "squeeze": Rule(_squeeze, _as_it_stands),
    "transpose": Rule(_transpose, _as_it_stands),
}
