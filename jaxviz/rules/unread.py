"""A model without what its outputs do not read: of the last block, a class token's row alone.

A transformer that is read at one token computes its last block for all of them; of the others only
keys and values reach the output. Here a program is walked from its outputs back, with the places of
each value that somebody reads (an interval on every axis), and run forward on these alone. Outputs
and derivatives are those of the model, for what is left out reaches no output.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.graph.equations import kept_positions, literal_value, scan_arity
from jaxviz.graph.facts import fact
from jaxviz.graph.flops import node_flops
from jaxviz.graph.interpreter import (
    REMAT,
    Node,
    Program,
    Scalar,
    Tagged,
    Value,
    arguments_of,
    build,
    equation_of,
    evaluate,
    run_node,
)
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced, model, remembered
from jaxviz.rules.boxes import CUTS, RULES, Box, cut, hull, padded, sizes, whole
from jaxviz.rules.fast import served

# Of all floating-point operations, below which a model stays as it is written; seconds saved by
# each that is left out, forward and back; seconds that the program compiles longer for each
# operation of another shape than in the blocks before (MiniLM-L6 and a ViT, JAX 0.10.2 and 0.12,
# one core of an EPYC); and after how many calls this is to have repaid itself: somebody waits for
# the first.
_LEAST = 1 / 64
_SAVED = 2.5e-11
_COMPILED = 0.011
_CALLS = 50


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
      too few for the longer compilation to repay itself, or of a plain function that `model` does
      not know: it may close over values of this trace alone. Else a function with its layers, equal
      (`==`) for equal arguments: from that operation on in parts from which it repays most. Values
      in layers that are read in part are these parts, and outputs that the target does not read
      are zeros.

    Example:
      >>> w, x = jnp.eye(256), jnp.ones((1, 2048, 256))
      >>> first = lambda w, x: (jnp.tanh(x @ w) @ w @ w @ w @ w @ w)[:, 0]
      >>> _ = jax.eval_shape(model(first, w, x), w, x)
      >>> f = read_only(first, w, x)
      >>> bool(jnp.allclose(f(w, x), first(w, x))), f is first
      (True, False)
    """
    if isinstance(apply_fn, ReadOnly):
        return apply_fn
    known = remembered if isinstance(apply_fn, types.FunctionType) else model
    found = known(apply_fn, params, x)
    if found is None:
        return apply_fn
    outs = _read_by(target, found.shape) if callable(target) else None
    first = _first(found.as_written, outs, turns, _CALLS * served())
    return apply_fn if first is None else ReadOnly(apply_fn, outs, turns, first)


@dataclasses.dataclass(frozen=True)
class ReadOnly:
    """`read_only`'s result."""

    apply_fn: Callable
    outs: tuple[Box | None, ...] | None
    turns: bool
    first: int

    def __call__(self, params: Any, x: Any) -> Any:
        traced = model(self.apply_fn, params, x).as_written
        program, read = traced.program, _boxes(traced.program, self.outs, self.first)
        given = dict(zip(program.inputs, jax.tree.leaves((params, x)), strict=True))
        env = _run(program, read, _parts(program, read, given), self.turns, self.first)
        outputs = [_whole_output(program, read, env, v) for v in program.outputs]
        return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs)


def _whole_output(program: Program, read: dict[Value, Box], env: dict, value: Value) -> jax.Array:
    """An output with zeros where nobody reads it."""
    aval = program.avals[value]
    if value not in read:
        return jnp.zeros(aval.shape, aval.dtype)
    return padded(env[value], read[value], aval.shape)


def _read_by(target: Callable, outputs: Any) -> tuple[Box | None, ...] | None:
    """What a target reads of each output; None where that is all."""
    closed = jax.make_jaxpr(target)(outputs)
    program = build(closed.jaxpr, closed.consts, [True] * len(closed.jaxpr.invars), flat=False)
    read = _boxes(program)
    found = tuple(map(read.get, program.inputs))
    return None if found == tuple(_all_of(program, v) for v in program.inputs) else found


def _all_of(program: Program, value: Value) -> Box:
    return whole(getattr(program.avals[value], "shape", ()))  # some are no arrays


@fact
def _boxes(
    program: Program, outs: tuple[Box | None, ...] | None = None, first: int = 0
) -> dict[Value, Box]:
    """What of each value is read, if it is; `outs` of the outputs, else all.

    Operations ahead of the `first` are run whole.
    """
    read: dict[Value, Box] = {}

    def reads(value, box):
        if (joined := hull(read.get(value), box)) is not None:
            read[value] = joined

    for i, v in enumerate(program.outputs):
        reads(v, _all_of(program, v) if outs is None else outs[i])
    for place, node in reversed(list(enumerate(leaves(program.nodes)))):
        if _is_left_out(node, read):
            continue
        asked = _asked(program, node, read) if place >= first else None
        for i, operand in enumerate(node.operands):
            if not isinstance(operand, Scalar):
                reads(operand, _all_of(program, operand) if asked is None else asked[i])
    return read


def _is_left_out(node: Node, read: dict[Value, Box]) -> bool:
    return read.keys().isdisjoint(node.outputs) and not equation_of(node).effects


def _first(
    traced: Traced, outs: tuple[Box | None, ...] | None, turns: bool, calls: int
) -> int | None:
    """The operation from which on to compute in parts; None where that does not pay."""
    gains, least = _gains(traced, outs, turns)
    saved, anew, first, most = 0.0, 0, None, 0.0
    for place in reversed(range(len(gains))):
        saved, anew = saved + gains[place].saved, anew + gains[place].anew
        gained = calls * _SAVED * saved - _COMPILED * anew
        if saved >= least and gained >= most:
            first, most = place, gained
    return first


class _Gain(NamedTuple):
    """Of one operation: those in floating point that are left out, and operations of new shapes."""

    saved: float
    anew: int


@fact
def _gains(
    traced: Traced, outs: tuple[Box | None, ...] | None, turns: bool
) -> tuple[list[_Gain], float]:
    """Of each operation, and the least to be saved by all of them."""
    program = traced.program
    flops = sum(node_flops(program, n) for n in program.nodes)
    return _gains_of(program, _boxes(program, outs), turns), max(_LEAST * flops, 1.0)


def _gains_of(program: Program, read: dict[Value, Box], turns: bool) -> list[_Gain]:
    found = []
    for node in leaves(program.nodes):
        name, made = equation_of(node).primitive.name, node.outputs[:1]
        inside = None
        if name in REMAT and not _is_left_out(node, read):
            inside = _inside(node, read)
        elif turns:
            inside = _last_turn(node, read)
        if inside is not None:
            each = _gains_of(node.bodies[0], inside, turns)
            # The last turn of a scan is a program of its own.
            anew = sum(g.anew for g in each) if name in REMAT else len(each)
            found.append(_Gain(sum(g.saved for g in each), anew))
            continue
        if not made or made[0] not in read or read[made[0]] == _all_of(program, made[0]):
            found.append(_Gain(0.0, 0))
            continue
        size, left = (math.prod(sizes(b)) for b in (_all_of(program, made[0]), read[made[0]]))
        flops = node_flops(program, node) if name == "dot_general" else 0.0
        found.append(_Gain(flops * (1 - left / max(size, 1)), 1))
    return found


def _asked(program: Program, node: Node, read: dict[Value, Box]) -> list | None:
    """What of each operand is read for what is read of the output; None where it is all of all."""
    if equation_of(node).primitive.name in REMAT:
        return [_inside(node, read).get(v) for v in node.bodies[0].inputs]
    rule = RULES.get(equation_of(node).primitive.name)
    if rule is None or len(node.outputs) != 1 or node.outputs[0] not in read:
        return None
    (made,) = node.outputs
    if read[made] == _all_of(program, made) and rule not in CUTS:
        return None
    moved = equation_of(node).primitive.name in ("dynamic_slice", "gather")
    if moved and node.operands[0] in {*program.inputs, *program.constants}:
        return None  # what is given costs nothing, and to find the place in it takes time
    asked = rule.asks(program, node, read[made])
    if asked is None:
        return None
    pairs = zip(node.operands, asked, strict=True)
    parts = {pair for pair in pairs if not isinstance(pair[0], Scalar)}
    return asked if len(parts) == len(node.inputs) else None  # a value is read in one part


def _inside(node: Node, read: dict[Value, Box]) -> dict[Value, Box]:
    """What is read of the values in a `remat`, or in the last turn of a scan."""
    outs = dict(zip(kept_positions(equation_of(node)), map(read.get, node.outputs), strict=True))
    (body,) = node.bodies
    return _boxes(body, tuple(outs.get(i) for i in range(len(body.outputs))))


def _parts(program: Program, read: dict[Value, Box], values: dict[Value, Any]) -> dict[Value, Any]:
    """Of whole values what is read."""
    return {v: cut(a, _all_of(program, v), read[v]) for v, a in values.items() if v in read}


def _run(
    program: Program, read: dict[Value, Box], given: dict[Value, Any], turns: bool, first: int = 0
) -> dict[Value, Any]:
    """What is read of each value, of that of the inputs."""
    env = Tagged(program)
    env.update(_parts(program, read, program.constants) | given)
    for place, node in enumerate(leaves(program.nodes)):
        if _is_left_out(node, read):
            continue
        equation, is_whole = equation_of(node), place < first
        asked = None if is_whole else _asked(program, node, read)
        if turns and not is_whole and (last := _last_turn(node, read)) is not None:
            env.update(_run_turns(node, last, {v: env[v] for v in node.inputs}))
            continue
        if asked is None:
            values = {v: env[v] for v in node.inputs}
            run_node(node, values)
            env.update(_parts(program, read, {v: values[v] for v in node.outputs}))
            continue
        values = []
        for operand, atom, box in zip(node.operands, equation.invars, asked, strict=True):
            if isinstance(operand, Scalar):
                values.append(literal_value(atom))
            else:
                values.append(None if box is None else cut(env[operand], read[operand], box))
        if node.bodies and equation.primitive.name in REMAT:
            env.update(_run_again(node, read, values, turns))
        else:
            rule = RULES[equation.primitive.name]
            made = rule.run(program, node, values, read[node.outputs[0]])
            env.update({node.outputs[0]: made})
    return env


def _run_again(node: Node, read: dict[Value, Box], values: list, turns: bool) -> dict[Value, Any]:
    (body,), inside, p = node.bodies, _inside(node, read), equation_of(node).params
    given = {v: a for v, a in zip(body.inputs, values, strict=True) if v in inside}

    def run(given):
        return _handed_on(node, _run(body, inside, given, turns))

    again = jax.checkpoint(run, prevent_cse=p["prevent_cse"], policy=p["policy"])
    return again(given)


def _handed_on(node: Node, env: dict[Value, Any]) -> dict[Value, Any]:
    """A node's outputs, as far as its body has made them."""
    made = [node.bodies[0].outputs[i] for i in kept_positions(equation_of(node))]
    return {v: env[w] for v, w in zip(node.outputs, made, strict=True) if w in env}


def _last_turn(node: Node, read: dict[Value, Box]) -> dict[Value, Box] | None:
    """What is read of the values in the last turn of a scan over layers, if that is not all."""
    equation = equation_of(node)
    if equation.primitive.name != "scan" or equation.params["length"] < 2:
        return None
    _, carried, _ = scan_arity(equation)
    places = zip(node.outputs, kept_positions(equation), strict=True)
    if any(i >= carried and v in read for v, i in places):
        return None  # what each turn gives
    inside = _inside(node, read)
    each = _gains_of(node.bodies[0], inside, True)
    return inside if any(gain.saved for gain in each) else None


def _run_turns(node: Node, inside: dict[Value, Box], values: dict[Value, Any]) -> dict[Value, Any]:
    """A scan whose last turn is computed where it is read.

    What each turn takes of a stack of weights is taken again on the way back: nothing is copied.
    """
    equation, (body,) = equation_of(node), node.bodies
    consts, carried, _ = scan_arity(equation)
    given = arguments_of(node, values)
    end = consts + carried
    fixed, carry, stacks = given[:consts], given[consts:end], given[end:]
    length, reverse = equation.params["length"], equation.params["reverse"]

    def turn(carry, i):
        own = [jax.lax.dynamic_index_in_dim(a, i, 0, keepdims=False) for a in stacks]
        return evaluate(body, [*fixed, *carry, *own])[:carried], None

    again = jax.checkpoint(turn, prevent_cse=False, policy=_but_slices)
    order = jnp.arange(1, length) if reverse else jnp.arange(length - 1)
    carry, _ = jax.lax.scan(again, carry, order, reverse=reverse, unroll=equation.params["unroll"])
    own = [a[0 if reverse else length - 1] for a in stacks]
    begun = dict(zip(body.inputs, [*fixed, *carry, *own], strict=True))
    return _handed_on(node, _run(body, inside, _parts(body, inside, begun), True))


def _but_slices(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in ("dynamic_slice", "squeeze")
