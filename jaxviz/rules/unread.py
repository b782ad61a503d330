"""A model without what its outputs do not read: of the last block, a class token's row alone.

A transformer that is read at one token computes its last block for all of them; of the others only
keys and values reach the output. Here a program is walked from its outputs back, with the places of
each value that somebody reads (an interval on every axis), and run forward on these alone. Outputs
and derivatives are those of the model, for what is left out reaches no output.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.graph.equations import kept_positions, literal_value, scan_arity
from jaxviz.graph.facts import fact
from jaxviz.graph.flops import node_flops
from jaxviz.graph.interpreter import (
    CUSTOM,
    REMAT,
    Node,
    Program,
    Scalar,
    Tagged,
    Value,
    build,
    equation_of,
    evaluate,
    run_node,
)
from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.pieces import POINTWISE
from jaxviz.graph.reads import known_number
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced, model, remembered
from jaxviz.rules.fast import CALLS, served

Interval = tuple[int, int]
Box = tuple[Interval, ...]

# Of all floating-point operations, below which a model stays as it is written; and seconds saved by
# each, forward and back, and for which the program compiles longer: a block of other shapes
# (MiniLM-L6, JAX 0.10.2 and 0.12, one core of an EPYC).
_LEAST = 1 / 64
_SAVED = 2.5e-11
_COMPILED = 0.7


def read_only(
    apply_fn: Callable, params: Any, x: Any, target: Any = None, turns: bool = True
) -> Callable:
    """A function that stands for `apply_fn` and does not compute what nobody reads.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree of arrays or shapes.
      x: Any pytree of arrays or shapes.
      target: What reads the outputs, `outputs -> [N]`; else all of them are read.
      turns: Whether the last turn of a scan over layers is taken out of it. Each turn then takes
        its weights from the stack again on the way back, which pays where `jax.checkpoint` does.

    Returns:
      `apply_fn` itself where less than a 64th of the floating-point operations would be saved, or
      too few for the longer compilation to repay itself (`rules.fast`), or where it has not been
      traced so far; else a function with its layers, equal (`==`) for equal arguments. Values in
      layers that are read in part are these parts, and outputs that the target does not read are
      zeros.

    Example:
      >>> w, x = jnp.eye(256), jnp.ones((1, 512, 256))
      >>> first = lambda w, x: (jnp.tanh(x @ w) @ w @ w @ w @ w @ w)[:, 0]
      >>> _ = jax.eval_shape(model(first, w, x), w, x)
      >>> f = read_only(first, w, x)
      >>> bool(jnp.allclose(f(w, x), first(w, x))), f is first
      (True, False)
    """
    if isinstance(apply_fn, ReadOnly):
        return apply_fn
    found = remembered(apply_fn, params, x)
    if found is None:
        return apply_fn
    outs = _read_by(target, found.shape) if callable(target) else None
    saved = _saved(found.as_written, outs, turns)
    repaid = saved and saved * CALLS * served() * _SAVED >= _COMPILED
    return ReadOnly(apply_fn, outs, turns) if repaid else apply_fn


@dataclasses.dataclass(frozen=True)
class ReadOnly:
    """`read_only`'s result."""

    apply_fn: Callable
    outs: tuple[Box | None, ...] | None
    turns: bool

    def __call__(self, params: Any, x: Any) -> Any:
        traced = model(self.apply_fn, params, x).as_written
        program, read = traced.program, _boxes(traced.program, self.outs)
        given = dict(zip(program.inputs, jax.tree.leaves((params, x)), strict=True))
        env = _run(program, read, _parts(program, read, given), self.turns)
        outputs = [_whole_output(program, read, env, v) for v in program.outputs]
        return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs)


def _whole_output(program: Program, read: dict[Value, Box], env: dict, value: Value) -> jax.Array:
    """An output with zeros where nobody reads it."""
    aval = program.avals[value]
    if value not in read:
        return jnp.zeros(aval.shape, aval.dtype)
    around = [(a, n - b, 0) for (a, b), n in zip(read[value], aval.shape, strict=True)]
    if not any(low or high for low, high, _ in around):
        return env[value]
    return jax.lax.pad(env[value], jnp.zeros((), aval.dtype), around)


def _read_by(target: Callable, outputs: Any) -> tuple[Box | None, ...] | None:
    """What a target reads of each output; None where that is all."""
    closed = jax.make_jaxpr(target)(outputs)
    program = build(closed.jaxpr, closed.consts, [True] * len(closed.jaxpr.invars), flat=False)
    read = _boxes(program)
    found = tuple(map(read.get, program.inputs))
    whole = tuple(_whole(program.avals[v].shape) for v in program.inputs)
    return None if found == whole else found


def _whole(shape: Sequence[int]) -> Box:
    return tuple((0, n) for n in shape)


def _sizes(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def _hull(a: Box | None, b: Box | None) -> Box | None:
    if a is None or b is None:
        return b if a is None else a
    return tuple((min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b, strict=True))


def _cut(array: jax.Array, has: Box, wants: Box) -> jax.Array:
    """Part of an array that is part of a value."""
    if has == wants:
        return array
    starts = [w[0] - h[0] for h, w in zip(has, wants, strict=True)]
    stops = [w[1] - h[0] for h, w in zip(has, wants, strict=True)]
    return jax.lax.slice(array, starts, stops)


@fact
def _boxes(program: Program, outs: tuple[Box | None, ...] | None = None) -> dict[Value, Box]:
    """What of each value is read, if it is; `outs` of the outputs, else all."""
    shape = lambda v: getattr(program.avals[v], "shape", ())
    read: dict[Value, Box] = {}

    def reads(value, box):
        if (joined := _hull(read.get(value), box)) is not None:
            read[value] = joined

    for i, v in enumerate(program.outputs):
        reads(v, _whole(shape(v)) if outs is None else outs[i])
    for node in reversed(list(leaves(program.nodes))):
        if _is_left_out(node, read):
            continue
        asked = _asked(program, node, read)
        for i, operand in enumerate(node.operands):
            if not isinstance(operand, Scalar):
                reads(operand, _whole(shape(operand)) if asked is None else asked[i])
    return read


def _is_left_out(node: Node, read: dict[Value, Box]) -> bool:
    return read.keys().isdisjoint(node.outputs) and not equation_of(node).effects


@fact
def _saved(traced: Traced, outs: tuple[Box | None, ...] | None, turns: bool) -> float:
    """Floating-point operations of products that nobody reads; 0 if these are few of all."""
    program = traced.program
    saved = _spared(program, _boxes(program, outs), turns)
    few = saved == 0 or saved < _LEAST * sum(node_flops(program, n) for n in program.nodes)
    return 0.0 if few else saved


def _spared(program: Program, read: dict[Value, Box], turns: bool) -> float:
    saved = 0.0
    for node in leaves(program.nodes):
        name, made = equation_of(node).primitive.name, node.outputs[:1]
        if name in REMAT and not _is_left_out(node, read):
            saved += _spared(node.bodies[0], _inside(node, read), turns)
        elif turns and (last := _last_turn(node, read)) is not None:
            saved += _spared(node.bodies[0], last, turns)
        elif name == "dot_general" and made[0] in read:
            size, left = math.prod(program.avals[made[0]].shape), math.prod(_sizes(read[made[0]]))
            saved += node_flops(program, node) * (1 - left / size) if left < size else 0.0
    return saved


class _Rule(NamedTuple):
    """An operation of which parts can be computed.

    Attributes:
      asks: `(program, node, box) -> boxes`: what of each operand a box of the output takes; None
        where it is all of all.
      run: `(program, node, values, box) -> array`: that box, of operands so cut.
    """

    asks: Callable
    run: Callable


def _asked(program: Program, node: Node, read: dict[Value, Box]) -> list | None:
    """What of each operand is read for what is read of the output; None where it is all of all."""
    if equation_of(node).primitive.name in REMAT:
        return [_inside(node, read).get(v) for v in node.bodies[0].inputs]
    rule = _RULES.get(equation_of(node).primitive.name)
    if rule is None or len(node.outputs) != 1 or node.outputs[0] not in read:
        return None
    (made,) = node.outputs
    if read[made] == _whole(program.avals[made].shape) and rule not in _CUTS:
        return None
    asked = rule.asks(program, node, read[made])
    if asked is None:
        return None
    pairs = zip(node.operands, asked, strict=True)
    parts = {pair for pair in pairs if not isinstance(pair[0], Scalar)}
    return asked if len(parts) == len(node.inputs) else None  # a value is read in one part


def _inside(node: Node, read: dict[Value, Box]) -> dict[Value, Box]:
    """What is read of the values in a `remat`."""
    outs = dict(zip(kept_positions(equation_of(node)), map(read.get, node.outputs), strict=True))
    (body,) = node.bodies
    return _boxes(body, tuple(outs.get(i) for i in range(len(body.outputs))))


def _parts(program: Program, read: dict[Value, Box], values: dict[Value, Any]) -> dict[Value, Any]:
    """Of whole values what is read."""
    whole = lambda v: _whole(getattr(program.avals[v], "shape", ()))
    return {v: _cut(a, whole(v), read[v]) for v, a in values.items() if v in read}


def _run(
    program: Program, read: dict[Value, Box], given: dict[Value, Any], turns: bool
) -> dict[Value, Any]:
    """What is read of each value, of that of the inputs."""
    env = Tagged(program)
    env.update(_parts(program, read, program.constants) | given)
    for node in leaves(program.nodes):
        if _is_left_out(node, read):
            continue
        asked, equation = _asked(program, node, read), equation_of(node)
        if turns and (last := _last_turn(node, read)) is not None:
            env.update(_run_turns(node, last, {v: env[v] for v in node.inputs}))
            continue
        if asked is None:
            whole = {v: env[v] for v in node.inputs}
            run_node(node, whole)
            env.update(_parts(program, read, {v: whole[v] for v in node.outputs}))
            continue
        values = []
        for operand, atom, box in zip(node.operands, equation.invars, asked, strict=True):
            if isinstance(operand, Scalar):
                values.append(literal_value(atom))
            else:
                values.append(None if box is None else _cut(env[operand], read[operand], box))
        if node.bodies and equation.primitive.name in REMAT:
            env.update(_run_again(node, read, values, turns))
        else:
            rule = _RULES[equation.primitive.name]
            made = rule.run(program, node, values, read[node.outputs[0]])
            env.update({node.outputs[0]: made})
    return env


def _run_again(node: Node, read: dict[Value, Box], values: list, turns: bool) -> dict[Value, Any]:
    (body,), inside, p = node.bodies, _inside(node, read), equation_of(node).params
    kept = [body.outputs[i] for i in kept_positions(equation_of(node))]
    given = {v: a for v, a in zip(body.inputs, values, strict=True) if v in inside}

    def run(given):
        env = _run(body, inside, given, turns)
        return {v: env[w] for v, w in zip(node.outputs, kept, strict=True) if v in read}

    again = jax.checkpoint(run, prevent_cse=p["prevent_cse"], policy=p["policy"])
    return again(given)


def _last_turn(node: Node, read: dict[Value, Box]) -> dict[Value, Box] | None:
    """What is read of the values in the last turn of a scan over layers, if that is not all."""
    equation = equation_of(node)
    if equation.primitive.name != "scan" or equation.params["length"] < 2:
        return None
    (body,), (_, carried, _) = node.bodies, scan_arity(equation)
    outs = dict(zip(kept_positions(equation), map(read.get, node.outputs), strict=True))
    if any(outs.get(i) is not None for i in range(carried, len(body.outputs))):
        return None  # what each turn gives
    inside = _boxes(body, tuple(outs.get(i) for i in range(len(body.outputs))))
    return inside if _spared(body, inside, True) else None


def _run_turns(node: Node, inside: dict[Value, Box], values: dict[Value, Any]) -> dict[Value, Any]:
    """A scan whose last turn is computed where it is read.

    What each turn takes of a stack of weights is taken again on the way back: nothing is copied.
    """
    equation, (body,) = equation_of(node), node.bodies
    consts, carried, _ = scan_arity(equation)
    given = [
        literal_value(atom) if isinstance(o, Scalar) else values[o]
        for o, atom in zip(node.operands, equation.invars, strict=True)
    ]
    fixed, carry, stacks = (
        given[:consts],
        given[consts : consts + carried],
        given[consts + carried :],
    )
    length, reverse = equation.params["length"], equation.params["reverse"]

    def turn(carry, i):
        own = [jax.lax.dynamic_index_in_dim(a, i, 0, keepdims=False) for a in stacks]
        return evaluate(body, [*fixed, *carry, *own])[:carried], None

    again = jax.checkpoint(turn, prevent_cse=False, policy=_but_slices)
    order = jnp.arange(1, length) if reverse else jnp.arange(length - 1)
    carry, _ = jax.lax.scan(again, carry, order, reverse=reverse, unroll=equation.params["unroll"])
    own = [a[0 if reverse else length - 1] for a in stacks]
    whole = dict(zip(body.inputs, [*fixed, *carry, *own], strict=True))
    env = _run(body, inside, _parts(body, inside, whole), True)
    kept = [body.outputs[i] for i in kept_positions(equation)]
    return {v: env[w] for v, w in zip(node.outputs, kept, strict=True) if w in env}


def _but_slices(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in ("dynamic_slice", "squeeze")


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
        own = list(_whole(shape))
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
    return jax.lax.broadcast_in_dim(values[0], _sizes(box), dims)


def _transpose(program: Program, node: Node, box: Box) -> list[Box]:
    order = equation_of(node).params["permutation"]
    return [tuple(box[order.index(a)] for a in range(len(order)))]


def _reduce(program: Program, node: Node, box: Box) -> list[Box]:
    gone, shape, left = equation_of(node).params["axes"], _shapes(program, node)[0], iter(box)
    return [tuple((0, n) if a in gone else next(left) for a, n in enumerate(shape))]


def _along(program: Program, node: Node, box: Box) -> list[Box]:
    axis, shape = equation_of(node).params["axis"], _shapes(program, node)[0]
    return [tuple((0, n) if a == axis else box[a] for a, n in enumerate(shape))]


def _squeeze(program: Program, node: Node, box: Box) -> list[Box]:
    gone, shape, left = equation_of(node).params["dimensions"], _shapes(program, node)[0], iter(box)
    return [tuple((0, 1) if a in gone else next(left) for a, _ in enumerate(shape))]


def _concatenate(program: Program, node: Node, box: Box) -> list[Box | None]:
    axis, at, asked = equation_of(node).params["dimension"], 0, []
    for shape in _shapes(program, node):
        low, high = (min(max(end - at, 0), shape[axis]) for end in box[axis])
        asked.append((*box[:axis], (low, high), *box[axis + 1 :]) if low < high else None)
        at += shape[axis]
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
    asked = list(_whole(shape))
    for before, after in _groups(shape, out):
        if len(before) == len(after) == 1:
            asked[before[0]] = box[after[0]]
    return [tuple(asked), *[()] * (len(node.operands) - 1)]


def _groups(shape: Sequence[int], out: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes before and after a reshape that hold the same numbers, as short as can be."""
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
        found.append((before[first:i], after[second:j]))
    return found


def _run_reshape(program: Program, node: Node, values: list, box: Box) -> jax.Array:
    shape, out = _shapes(program, node)[0], program.avals[node.outputs[0]].shape
    made = list(_whole(out))
    for before, after in _groups(shape, out):
        if len(before) == len(after) == 1:
            made[after[0]] = box[after[0]]
    return _cut(jax.lax.reshape(values[0], _sizes(tuple(made))), tuple(made), box)


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
    around = [(a, n - b, 0) for (a, b), n in zip(box, shape, strict=True)]
    whole = [jax.lax.pad(v, v.dtype.type(0), around) for v in values]
    return _cut(node.bound(*whole)[0], _whole(shape), box)


_POINTWISE = POINTWISE | frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt ceil cos digamma erf_inv floor lgamma nextafter"
    " rem round sin tan".split()
)
_SLICE = _Rule(_slice, lambda program, node, values, box: values[0])
_GATHER = _Rule(_gather, lambda program, node, values, box: values[0].reshape(_sizes(box)))
_CUTS = (_SLICE, _GATHER)  # which read in part what is given to them, whatever is read of theirs
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_POINTWISE, _Rule(_pointwise, _as_it_stands)),
    **dict.fromkeys(CUSTOM, _Rule(_custom, _run_custom)),
    **dict.fromkeys(("slice", "dynamic_slice"), _SLICE),
    "gather": _GATHER,
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split(),
        _Rule(_reduce, _as_it_stands),
    ),
    **dict.fromkeys(
        "cumlogsumexp cummax cummin cumprod cumsum".split(), _Rule(_along, _as_it_stands)
    ),
    "broadcast_in_dim": _Rule(_broadcast, _run_broadcast),
    "concatenate": _Rule(_concatenate, _run_concatenate),
    "dot_general": _Rule(_dot, _as_it_stands),
    "reshape": _Rule(_reshape, _run_reshape),
    "squeeze": _Rule(_squeeze, _as_it_stands),
    "transpose": _Rule(_transpose, _as_it_stands),
}
