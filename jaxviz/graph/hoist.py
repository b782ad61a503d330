"""What a loop's body computes anew at every turn, told from what is the same at each."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxviz.graph.flops import node_flops
from jaxviz.graph.interpreter import build, run_nodes
from jaxviz.graph.rewrite import RuleSet, replacements


class Hoisted(NamedTuple):
    """A function in two parts.

    Attributes:
      prepare: `() -> (turn, fixed)`: computes what does not depend on the argument; `turn` is the
        same function, and does only the rest; `fixed` is what it returns, None for what depends.
      flops: Floating-point operations of one call of `turn`.
    """

    prepare: Callable
    flops: int


def hoist(
    function: Callable,
    argument: Any,
    rules: RuleSet | None = None,
    once: RuleSet | None = None,
) -> Hoisted:
    """Tells what in `function` does not depend on its argument, to be computed once.

    XLA leaves most of it in a loop, where it is computed again at every turn.

    Args:
      function: Of one pytree; closes over all else.
      argument: Shapes and dtypes it will be called with, arrays or `jax.ShapeDtypeStruct`.
      rules: Replacements, as in `rewrite`; no layer names.
      once: The same, for what is computed once; None is `rules`.

    Returns:
      A `Hoisted`.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.ones((3, 3))
      >>> sums = hoist(lambda k: (w @ w).sum() + k, jax.ShapeDtypeStruct((), jnp.float32))
      >>> float(sums.prepare()[0](jnp.float32(1))), sums.flops
      (28.0, 1)
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(argument)
    program = build(closed.jaxpr, closed.consts, [True] * len(closed.jaxpr.invars), flat=True)
    still = [n for n in program.nodes if program.depends.isdisjoint(n.inputs)]
    rest = [n for n in program.nodes if not program.depends.isdisjoint(n.inputs)]

    def plan(nodes, depends, rules):
        part = dataclasses.replace(program, nodes=tuple(nodes), depends=depends)
        return {} if rules is None else replacements(part, rules, {})

    # As if all of it depended on an argument.
    at_once = plan(still, frozenset(program.avals), once or rules)
    each_time = plan(rest, program.depends, rules)

    def prepare():
        known: dict[int, Any] = dict(program.constants)
        run_nodes(still, known, at_once)

        def turn(argument):
            given = zip(program.inputs, jax.tree.leaves(argument), strict=True)
            values = known | dict(given)
            run_nodes(rest, values, each_time)
            outputs = [values[v] for v in program.outputs]
            return jax.tree.unflatten(jax.tree.structure(shape), outputs)

        fixed = [known.get(v) for v in program.outputs]
        return turn, jax.tree.unflatten(jax.tree.structure(shape), fixed)

    return Hoisted(prepare, sum(node_flops(program, node) for node in rest))
