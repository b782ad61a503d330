"""A function of a large value that changes little from call to call: what is kept, what is anew."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from jaxviz.graph.flops import node_flops
from jaxviz.graph.interpreter import Node, build, run_nodes
from jaxviz.graph.rewrite import RuleSet, replacements


class Chain(NamedTuple):
    """Calls that follow one another.

    Attributes:
      prepare: `() -> (begin, step, finish)`, computes what depends on neither argument. `begin(x)`
        gives `(state, first)`, `step(state, argument)` gives `(state, made)`, `finish(made)` gives
        the outputs: what no later step waits for, and many steps may do at once.
      flops: Floating-point operations of a step, finished.
      operations: Their number.
    """

    prepare: Callable
    flops: int
    operations: int


def chain(
    function: Callable,
    x: Any,
    argument: Any,
    rules: RuleSet | None = None,
    once: RuleSet | None = None,
) -> Chain:
    """Steps that each begin with the values at which the step before ended.

    A step that had to compute the values before its change would be no cheaper than a whole pass.
    So those that it reads are its state, and those after the change the next step's: no others
    are kept, and what only gave them is not run.

    Args:
      function: `(x, argument) -> (first, outputs, pairs)`: what is to be known at `x`, what is to
        be known after the change that `argument` tells, and pairs of a value before it and the same
        after it, `x` itself among them. What comes before depends on `x` alone.
      x: Shapes and dtypes, arrays or `jax.ShapeDtypeStruct`.
      argument: The same, a pytree.
      rules: Replacements in a step, as in `rewrite`; no layer names.
      once: The same, for what is computed once; None is `rules`.

    Example:
      >>> import jax.numpy as jnp
      >>> def total(x, change):
      ...     at, to = change
      ...     squares, after = x**2, x.at[at].set(to)
      ...     made = squares.at[at].set(to**2)
      ...     return squares.sum(), made.sum(), [(x, after), (squares, made)]
      >>> begin, step, finish = chain(total, jnp.ones(3), (0, 0.0)).prepare()
      >>> state, first = begin(jnp.ones(3))
      >>> state, second = step(state, (0, 3.0))
      >>> state, third = step(state, (1, 0.0))
      >>> float(first), float(finish(second)), float(finish(third))
      (3.0, 11.0, 10.0)
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(x, argument)
    program = build(closed.jaxpr, closed.consts, [True] * len(closed.jaxpr.invars), flat=True)
    structure = jax.tree.structure(shape)
    first, outputs, pairs = jax.tree.unflatten(structure, program.outputs)
    moving, nodes = program.depends, list(_members(program.nodes))
    maker = {v: i for i, node in enumerate(nodes) for v in node.outputs}
    after = {before: now for before, now in pairs if before in moving}

    def behind(values: Iterable[Any], known: dict[Any, Any]) -> tuple[set[int], list[Any]]:
        """The nodes that make the values, and those of `known` that they stop at and lead on to."""
        todo, seen, chosen = list(values), set(), set()
        while todo:
            value = todo.pop()
            if value in seen or value not in moving:
                continue
            seen.add(value)
            if value in known:
                todo.append(known[value])
            elif value in maker:
                chosen.add(maker[value])
                todo.extend(nodes[maker[value]].inputs)
        return chosen, sorted(seen & known.keys())

    ordered = lambda chosen: [nodes[i] for i in sorted(chosen)]
    every, kept = behind(jax.tree.leaves(outputs), after)
    waited, _ = behind([after[v] for v in kept], after)
    made, last = ordered(waited), ordered(every - waited)
    begun = ordered(behind([*jax.tree.leaves(first), *kept], {})[0])
    still = [node for node in nodes if moving.isdisjoint(node.inputs)]
    read = {v for node in last for v in node.inputs} | {v for v in jax.tree.leaves(outputs)}
    own = {v for node in last for v in node.outputs}
    handed = sorted(v for v in read - own if v in moving)

    def plan(some, depends, rules):
        part = dataclasses.replace(program, nodes=tuple(some), depends=depends)
        return {} if rules is None else replacements(part, rules, {})

    everything = frozenset(program.avals)
    plans = plan(still, everything, once or rules), plan(begun, moving, once or rules)
    each_time = plan(made, moving, rules), plan(last, moving, rules)
    num_x = len(jax.tree.leaves(x))
    inputs = program.inputs[:num_x], program.inputs[num_x:]

    def prepare():
        fixed: dict[int, Any] = dict(program.constants)
        run_nodes(still, fixed, plans[0])

        def begin(x):
            env = fixed | dict(zip(inputs[0], jax.tree.leaves(x), strict=True))
            run_nodes(begun, env, plans[1])
            return [env[v] for v in kept], jax.tree.map(env.__getitem__, first)

        def step(state, argument):
            env = fixed | dict(zip(inputs[1], jax.tree.leaves(argument), strict=True))
            env.update(zip(kept, state, strict=True))
            run_nodes(made, env, each_time[0])
            return [env[after[v]] for v in kept], [env[v] for v in handed]

        def finish(made):
            env = fixed | dict(zip(handed, made, strict=True))
            run_nodes(last, env, each_time[1])
            return jax.tree.map(env.__getitem__, outputs)

        return begin, step, finish

    return Chain(prepare, sum(node_flops(program, nodes[i]) for i in every), len(every))


def _members(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes, groups taken apart: a value inside one may be kept."""
    for node in nodes:
        if node.members:
            yield from _members(node.members)
        else:
            yield node
