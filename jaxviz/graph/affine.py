"""The beginning of a model that is affine in its input, told from the rest."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxviz.graph.flops import node_flops
from jaxviz.graph.interpreter import Node, Program, Value, run_nodes
from jaxviz.graph.rewrite import RuleSet, replacements
from jaxviz.graph.split import environment, needed
from jaxviz.graph.trace import model


class Affine(NamedTuple):
    """A model in two parts: `apply_fn(params, x) == rest(params, start(params, x))`.

    Attributes:
      start: `(params, x) -> values`, a list of arrays, each affine in the floating leaves of `x`.
      rest: `(params, values) -> outputs`.
    """

    start: Callable
    rest: Callable


def affine_start(
    apply_fn: Callable,
    params: Any,
    x: Any,
    least: float = 0,
    rules: RuleSet | None = None,
    once: RuleSet | None = None,
) -> Affine:
    """Cuts a model where it stops being affine: mostly after its first layer and batch norm.

    Of many inputs on one line only two need the start, and a sum of their gradients needs its
    pullback once. Where no layer is affine, or `least` says so, `start` gives the floating leaves
    of `x` themselves.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]` or a pytree of such; `rest` holds its integer leaves.
      least: FLOPs of the start for each number that it makes below which nothing is cut off.
      rules: Replacements, as in `rewrite`; no layer names.
      once: The same, for the start; None is `rules`.

    Returns:
      An `Affine`, of plain functions for use in the trace that it was made in.

    Example:
      >>> import jax.numpy as jnp
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.array([[3.0, 1.0]])
      >>> cut = affine_start(lambda w, x: jnp.tanh(x @ w + 1), w, x)
      >>> values = cut.start(w, x)
      >>> values[0].tolist(), bool(cut.rest(w, values) == jnp.tanh(2.0))
      ([[2.0]], True)
    """
    traced = model(apply_fn, params, x).as_written
    program = traced.program
    affine = {v for v in program.inputs if v in program.depends}
    for node in program.nodes:
        affine |= affine_outputs(program, node, affine)
    border = _border(program, affine)
    before = needed(program.nodes, border)
    made = sum(math.prod(program.avals[v].shape) for v in border)
    flops = sum(node_flops(program, n) for n in before if _has_layer(n))
    if flops == 0 or flops < least * made:
        border, before = [v for v in program.inputs if v in program.depends], []
    after = needed(program.nodes, program.outputs, stop=set(border))
    leaves = jax.tree.leaves(x)

    def plan(nodes, rules):
        part = dataclasses.replace(program, nodes=tuple(nodes))
        return {} if rules is None else replacements(part, rules, {})

    plans = plan(before, once or rules), plan(after, rules)

    def start(params, x):
        env = environment(program, jax.tree.leaves((params, x)))
        run_nodes(before, env, plans[0])
        return [env[v] for v in border]

    def rest(params, values):
        env = environment(program, [*jax.tree.leaves(params), *leaves])
        env.update(zip(border, values, strict=True))
        run_nodes(after, env, plans[1])
        return jax.tree.map(lambda value: env[value], traced.outputs)

    return Affine(start, rest)


# Linear in all operands together, in any one of them with the others fixed, in the first alone.
_JOINTLY = frozenset(
    "add sub add_any neg reshape transpose squeeze expand_dims broadcast_in_dim slice pad rev copy"
    " copy_p concatenate reduce_sum reduce_window_sum cumsum name convert_element_type".split()
)
_LAYERS = frozenset({"dot_general", "conv_general_dilated"})
_ONE = _LAYERS | {"mul"}
_FIRST = frozenset({"div", "dynamic_slice", "gather"})


def affine_outputs(program: Program, node: Node, affine: set[Value]) -> set[Value]:
    """A node's outputs, and those inside a group, if they are affine in the input; else none."""
    if node.members:
        known = set(affine)
        for member in node.members:
            found = affine_outputs(program, member, known)
            known |= found
            if not found and any(v in program.depends for v in member.inputs):
                return set()
        return known - affine
    moves = [v for v in node.operands if type(v) is int and v in program.depends]
    name = _primitive(node)
    first = len(moves) == 1 and node.operands[0] == moves[0]
    suits = (
        name in _JOINTLY
        or (name in _ONE and len(moves) == 1)
        or (name in _FIRST and first)
        or (name == "select_n" and node.operands[0] not in moves)
    )
    dtypes = {program.avals[v].dtype for v in (*moves, *node.outputs)}
    if moves and suits and affine.issuperset(moves) and len(dtypes) == 1:
        return set(node.outputs)
    return set()


def _border(program: Program, affine: set[Value]) -> list[Value]:
    """The affine values that anything else reads."""
    rest = [n for n in program.nodes if not affine.issuperset(n.outputs)]
    return sorted(affine & {*program.outputs, *(v for n in rest for v in n.inputs)})


def _has_layer(node: Node) -> bool:
    return _primitive(node) in _LAYERS or any(map(_has_layer, node.members))


def _primitive(node: Node) -> str:
    return "" if node.equation is None else node.equation.primitive.name
