"""Which part of the input each place of a layer sees: receptive fields read off the jaxpr."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxviz.calls.models import batch_or_shapes
from jaxviz.calls.public import public
from jaxviz.graph.axes import axes
from jaxviz.graph.equations import scan_arity
from jaxviz.graph.held import hold
from jaxviz.graph.interpreter import CUSTOM, Node, Program, Scalar, Value, equation_of
from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.layers import find
from jaxviz.graph.rows import rows
from jaxviz.graph.split import needed, reachable
from jaxviz.graph.trace import trace


@public(x=batch_or_shapes)
def receptive_field(apply_fn: Callable, params: Any, x: Any, layer: str) -> np.ndarray:
    """The box of the input that each number of a layer can depend on.

    Found by walking the computation with one interval of input places for each place of a value:
    convolutions, pooling, padding, slicing and the like widen or move it; an operation without a
    rule sees whatever its inputs see, and what branches see together is put in one
    box, so a box may be too large and is never too small. Boxes do not depend on the numbers.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; arrays or shapes.
      x: `[N, *space, C]`, one array or its shape; `[N, C, *space]` where the model's convolutions
        take it so. Nothing is computed.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`, with output `[N, ...]`.

    Returns:
      NumPy integers `[..., 2 * S]` for the layer's shape without its batch and the S axes of
      space of `x`: first where the box starts along each of them, then where it stops (for images
      top, left, bottom, right), in pixels and inside the image. Where only padding is seen, and
      for a layer that `x` does not reach, start and stop are 0. A read-only view that takes no
      memory for axes along which nothing changes, such as channels.

    Raises:
      ValueError: No such layer (the nearest are named), one inside a loop or branch, or an `x`
        without axes of space.

    Example:
      >>> net = lambda w, x: jax.lax.conv(x.transpose(0, 3, 1, 2), w, (2, 2), "VALID")
      >>> x, w = np.zeros((1, 7, 7, 1), "f4"), np.zeros((4, 1, 3, 3), "f4")
      >>> receptive_field(net, w, x, "conv_0")[0, 1, 2].tolist()  # channel 0, row 1, column 2
      [2, 4, 5, 7]
    """
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1 or np.ndim(leaves[0]) < 3:
        raise ValueError(
            "receptive_field: x must be one array [N, *space, C]; got "
            f"{jax.tree.map(np.shape, x)}. Fix other inputs inside apply_fn."
        )
    apply_fn, params = hold("receptive_field", apply_fn, params)
    traced = trace(apply_fn, params, x)
    known = axes(traced)
    found = rows(traced)
    row = reachable(find(found, layer, "receptive_field"), "receptive_field")
    shape = np.shape(leaves[0])
    places = [a for a in range(1, len(shape)) if a != (known.input_channels() or len(shape) - 1)]
    space = [shape[a] for a in places]
    (given,) = jax.tree.leaves(traced.x)
    env: dict[Value, Sight] = {
        given: {
            k: Interval(a, np.arange(shape[a]), np.arange(shape[a]) + 1)
            for k, a in enumerate(places)
        }
    }
    _walk(traced.program, needed(traced.program.nodes, [row.value]), env)
    shape = row.layer.shape[1:]
    edges = []
    for edge in ("start", "stop"):
        for k, size in enumerate(space):
            seen = env.get(row.value, {}).get(k) or _nothing(size)
            along = [1] * len(shape)
            if seen.axis not in (None, row.batch):
                along[seen.axis - (seen.axis > row.batch)] = -1
            edges.append(getattr(seen, edge).reshape(along))
    boxes = np.stack(np.broadcast_arrays(*edges), -1)
    boxes *= (boxes[..., : len(space)] < boxes[..., len(space) :]).all(-1, keepdims=True)
    return np.broadcast_to(boxes, (*shape, 2 * len(space)))


class Interval(NamedTuple):
    """Input places along one axis of `x`, for each place along one axis of a value.

    `start` and `stop` have an entry for each place along `axis`, or one entry where `axis` is None
    and all places see the same. Empty is `start >= stop`.
    """

    axis: int | None
    start: np.ndarray
    stop: np.ndarray


Sight = dict[int, Interval]  # by axis of space of x; a value that x does not reach has none


def _nothing(size: int) -> Interval:
    return Interval(None, np.array([size]), np.array([0]))


def _walk(program: Program, nodes: Sequence[Node], env: dict[Value, Sight]) -> None:
    """Fills in what each node's outputs see."""
    for node in nodes:
        sights = [env[v] for v in node.inputs if v in env]
        if not sights:
            continue
        if node.members:
            _walk(program, node.members, env)
            continue
        shapes = [program.avals[v].shape for v in node.outputs]
        name = equation_of(node).primitive.name
        if node.bodies and name in CUSTOM:
            (body,) = node.bodies
            inner = {
                inside: env[o]
                for inside, o in zip(body.inputs, node.operands, strict=True)
                if isinstance(o, Value) and o in env
            }
            _walk(body, body.nodes, inner)
            seen = [inner.get(v, {}) for v in body.outputs[: len(node.outputs)]]
        elif name == "scan" and not _read_in_turn(node, env):
            seen = _looped(node, env)
        elif not node.bodies and name in _RULES:
            seen = [_RULES[name](node, program, env)] * len(shapes)
        elif node.kind in ACTIVATION_KINDS or _placewise(node, program, name):
            seen = [_union([_stretched(v, node, program, env) for v in node.inputs if v in env])]
            seen *= len(shapes)
        else:
            seen = [_union([_whole(s) for s in sights])] * len(shapes)
        env.update(zip(node.outputs, seen, strict=True))


def _read_in_turn(node: Node, env: dict[Value, Sight]) -> bool:
    """Whether a loop takes apart what sees `x`, or stacks what it makes."""
    consts, carried, _ = scan_arity(equation_of(node))
    apart = [o for o in node.operands[consts + carried :] if isinstance(o, Value) and o in env]
    return bool(apart) or len(node.outputs) > carried


def _looped(node: Node, env: dict[Value, Sight]) -> list[Sight]:
    """What the values see that a loop of so many turns hands on."""
    (body,) = node.bodies
    equation = equation_of(node)
    first, *_ = scan_arity(equation)
    inner = {i: _at(o, env) for i, o in zip(body.inputs, node.operands, strict=True)}
    carried = body.inputs[first : first + len(node.outputs)]
    seen = [inner[v] for v in carried]
    for _ in range(equation.params["length"]):
        before = seen
        _walk(body, body.nodes, inner)
        seen = [_union([_at(v, inner), s]) for v, s in zip(body.outputs, before, strict=True)]
        if all(map(_same, seen, before)):  # no more comes
            break
        inner = {i: inner[i] for i in body.inputs} | dict(zip(carried, seen, strict=True))
    return seen


def _same(one: Sight, other: Sight) -> bool:
    alike = lambda a, b: a.axis == b.axis and all(map(np.array_equal, a[1:], b[1:]))
    return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)


# Of operations whose output has the shape of their inputs, those that do move places.
_MIXES = frozenset(
    "cumsum cumprod cummax cummin cumlogsumexp sort rev scan while cond triangular_solve fft"
    " dynamic_update_slice scatter scatter-add scatter_add gather dot_general cholesky"
    " custom_call pure_callback all_to_all reshape approx_top_k reduce_precision_window".split()
)


def _placewise(node: Node, program: Program, name: str) -> bool:
    """Whether an operation can be taken to act on each place alone."""
    out = program.avals[node.outputs[0]].shape
    shapes = [s for v in (*node.inputs, *node.outputs[1:]) if (s := program.avals[v].shape)]
    fit = all(
        len(s) == len(out) and all(a in (1, b) for a, b in zip(s, out, strict=True)) for s in shapes
    )
    return fit and name not in _MIXES and not node.bodies


def _stretched(value: Value, node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    """What a value sees, repeated along the axes of size 1 that an operation stretches."""
    old, new = (program.avals[v].shape for v in (value, node.outputs[0]))
    return _moved(env[value], lambda axis: axis if old[axis] == new[axis] else None)


def _union(sights: Sequence[Sight]) -> Sight:
    """What several values of one shape see together, place by place."""
    found: Sight = {}
    for sight in sights:
        for k, new in sight.items():
            old = found.get(k, new)
            if old.axis != new.axis and None not in (old.axis, new.axis):
                old, new = _flat(old), _flat(new)
            axis = new.axis if old.axis is None else old.axis
            starts, stops = _emptied(old, new)
            found[k] = Interval(axis, np.minimum(*starts), np.maximum(*stops))
    return found


def _emptied(*intervals: Interval):
    """Starts and stops, with those of empty intervals where they change no union."""
    far = np.iinfo(np.int64).max
    empty = [i.start >= i.stop for i in intervals]
    starts = [np.where(e, far, i.start) for e, i in zip(empty, intervals, strict=True)]
    stops = [np.where(e, 0, i.stop) for e, i in zip(empty, intervals, strict=True)]
    return starts, stops


def _flat(interval: Interval) -> Interval:
    """The same for all places: what any of them sees."""
    (start,), (stop,) = _emptied(interval)
    return Interval(None, start.min(keepdims=True), stop.max(keepdims=True))


def _whole(sight: Sight) -> Sight:
    return {k: _flat(i) for k, i in sight.items()}


def _moved(sight: Sight, places: Callable[[int], int | None]) -> Sight:
    """The intervals with their axes renumbered; those whose axis is gone see the same all over."""
    found = {}
    for k, i in sight.items():
        axis = None if i.axis is None else places(i.axis)
        found[k] = _flat(i) if axis is None else i._replace(axis=axis)
    return found


def _at(operand: Value | Scalar, env: dict[Value, Sight]) -> Sight:
    """What an operand sees."""
    return env.get(operand, {}) if isinstance(operand, Value) else {}


def _shape(operand: Value | Scalar, program: Program) -> tuple[int, ...]:
    return program.avals[operand].shape if isinstance(operand, Value) else ()


def _others(node: Node, env: dict[Value, Sight]) -> list[Sight]:
    """What all other operands see, taken whole: kernels made of the input, padding values."""
    return [_whole(_at(o, env)) for o in node.operands[1:]]


class _Window(NamedTuple):
    """A window sliding along one axis, as XLA describes it."""

    size: int
    stride: int
    low: int  # padding before, negative where it cuts
    hole: int  # spread of the input (base or lhs dilation)
    spread: int  # spread of the window


def _slid(interval: Interval, window: _Window, count: int) -> Interval:
    """What `count` windows see."""
    taps = (
        np.arange(count)[:, None] * window.stride
        - window.low
        + np.arange(window.size)[None, :] * window.spread
    )
    at, off = np.divmod(taps, window.hole)
    real = (off == 0) & (at >= 0) & (at < len(interval.start))
    at = np.clip(at, 0, max(len(interval.start) - 1, 0))
    (starts,), (stops,) = _emptied(interval)
    far = np.iinfo(np.int64).max
    return interval._replace(
        start=np.where(real, starts[at], far).min(1, initial=far),
        stop=np.where(real, stops[at], 0).max(1, initial=0),
    )


def _convolution(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    p = equation_of(node).params
    numbers = p["dimension_numbers"]
    kernel = _shape(node.operands[1], program)
    output = program.avals[node.outputs[0]].shape
    found = {}
    for k, interval in _at(node.operands[0], env).items():
        if interval.axis is None:
            found[k] = interval
        elif interval.axis not in numbers.lhs_spec[2:]:
            found[k] = _flat(interval)  # mixed like channels
        else:
            i = numbers.lhs_spec[2:].index(interval.axis)
            window = _Window(
                kernel[numbers.rhs_spec[2 + i]],
                p["window_strides"][i],
                p["padding"][i][0],
                p["lhs_dilation"][i],
                p["rhs_dilation"][i],
            )
            axis = numbers.out_spec[2 + i]
            found[k] = _slid(interval, window, output[axis])._replace(axis=axis)
    return _union([found, *_others(node, env)])


def _pooling(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    p = equation_of(node).params
    output = program.avals[node.outputs[0]].shape
    ones = (1,) * len(output)

    def slid(i: Interval) -> Interval:
        if i.axis is None:
            return i
        a = i.axis
        window = _Window(
            p["window_dimensions"][a],
            p["window_strides"][a],
            p["padding"][a][0],
            p.get("base_dilation", ones)[a],
            p.get("window_dilation", ones)[a],
        )
        return _slid(i, window, output[a])

    every = [env[v] for v in node.inputs if v in env]
    return _union([{k: slid(i) for k, i in sight.items()} for sight in every])


def _padded(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    output = program.avals[node.outputs[0]].shape
    config = equation_of(node).params["padding_config"]

    def slid(i: Interval) -> Interval:
        if i.axis is None:
            return i
        low, _, inner = config[i.axis]
        return _slid(i, _Window(1, 1, low, inner + 1, 1), output[i.axis])

    moved = {k: slid(i) for k, i in _at(node.operands[0], env).items()}
    return _union([moved, *_others(node, env)])


def _sliced(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    p = equation_of(node).params
    strides = p["strides"] or (1,) * len(p["start_indices"])

    def cut(i: Interval) -> Interval:
        if i.axis is None:
            return i
        where = slice(p["start_indices"][i.axis], p["limit_indices"][i.axis], strides[i.axis])
        return i._replace(start=i.start[where], stop=i.stop[where])

    return {k: cut(i) for k, i in _at(node.operands[0], env).items()}


def _reversed(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    flipped = equation_of(node).params["dimensions"]
    return {
        k: i._replace(start=i.start[::-1], stop=i.stop[::-1]) if i.axis in flipped else i
        for k, i in _at(node.operands[0], env).items()
    }


def _joined(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    along = equation_of(node).params["dimension"]
    parts = [(_shape(o, program)[along], _at(o, env)) for o in node.operands]
    found: list[Sight] = []
    for k in {k for _, sight in parts for k in sight}:
        tracked = [sight[k] for _, sight in parts if k in sight]
        if not any(i.axis == along for i in tracked):
            found.append(_union([{k: i} for i in tracked]))
            continue
        if any(i.axis not in (along, None) for i in tracked):
            found.append(_union([{k: _flat(i)} for i in tracked]))
            continue
        pieces = [(size, sight.get(k, _nothing(0))) for size, sight in parts]
        start = [np.broadcast_to(_emptied(i)[0][0], size) for size, i in pieces]
        stop = [np.broadcast_to(_emptied(i)[1][0], size) for size, i in pieces]
        found.append({k: Interval(along, np.concatenate(start), np.concatenate(stop))})
    return {k: i for sight in found for k, i in sight.items()}


def _parted(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    along = equation_of(node).params["axis"]
    return _moved(_at(node.operands[0], env), lambda axis: None if axis == along else axis)


def _transposed(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    order = equation_of(node).params["permutation"]
    return _moved(_at(node.operands[0], env), lambda axis: order.index(axis))


def _broadcast(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    p = equation_of(node).params
    old = _shape(node.operands[0], program)

    def places(axis):
        stretched = old[axis] != p["shape"][p["broadcast_dimensions"][axis]]
        return None if stretched else p["broadcast_dimensions"][axis]

    return _moved(_at(node.operands[0], env), places)


def _reduced(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    gone = equation_of(node).params["axes"]

    def places(axis):
        return None if axis in gone else axis - sum(g < axis for g in gone)

    return _union([_moved(env[v], places) for v in node.inputs if v in env])


def _reshaped(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    """An axis is followed where it stays whole: as many numbers before it and after it."""
    old = _shape(node.operands[0], program)
    new = program.avals[node.outputs[0]].shape
    params = equation_of(node).params
    order = params.get("dimensions") if "new_sizes" in params else None  # transposed first
    order = tuple(order or range(len(old)))
    old = tuple(old[axis] for axis in order)

    def places(axis):
        axis = order.index(axis)
        before = int(np.prod(old[:axis]))
        for other, size in enumerate(new):
            if size == old[axis] > 1 and int(np.prod(new[:other])) == before:
                return other
        return None

    return _moved(_at(node.operands[0], env), places)


def _product(node: Node, program: Program, env: dict[Value, Sight]) -> Sight:
    contracted, batched = equation_of(node).params["dimension_numbers"]
    sights = []
    free = len(batched[0])  # where the free axes of this side begin in the output
    for side, operand in enumerate(node.operands):
        rank = len(_shape(operand, program))
        own = [a for a in range(rank) if a not in (*contracted[side], *batched[side])]
        order = {a: i for i, a in enumerate(batched[side])}
        order |= {a: free + i for i, a in enumerate(own)}
        sights.append(_moved(_at(operand, env), order.get))
        free += len(own)
    return _union(sights)


_RULES: dict[str, Callable[[Node, Program, dict[Value, Sight]], Sight]] = {
    "conv_general_dilated": _convolution,
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window"), _pooling
    ),
    "pad": _padded,
    "slice": _sliced,
    "rev": _reversed,
    "concatenate": _joined,
    "split": _parted,
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split(),
        _reduced,
    ),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshaped),
    "dot_general": _product,
}
