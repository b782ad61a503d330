"""A function run on several values at once: rules see, at each operation, all that it works on.

Where `rewrite` replaces an operation on arrays, `lift` replaces it by one on bundles: the value at
the input and at a baseline, say, and a small difference to be carried along.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.graph.entropies import with_entropies
from jaxviz.graph.equations import scan_arity
from jaxviz.graph.interpreter import (
    CUSTOM,
    REMAT,
    Node,
    Program,
    arguments_of,
    equation_of,
    run_node,
)
from jaxviz.graph.lines import source
from jaxviz.graph.overflows import with_bounds
from jaxviz.graph.quotients import with_quotients
from jaxviz.graph.rewrite import Op, RuleSet, make_op, refuse
from jaxviz.graph.trace import model
from jaxviz.graph.varying import check_numbers

Bundle = tuple


class Unknown(NamedTuple):
    """In a bundle, for a difference that an operation does not give; who asks for it is refused.

    What only solves a system with factors needs none, so they may be made (`jnp.linalg.solve`).
    """

    op: Op


SOLVES = ("custom_linear_solve",)  # whose rules look at such differences themselves


def lift(
    apply_fn: Callable,
    rules: RuleSet,
    params: Any,
    x: Any,
    *,
    bundle: Callable[[int, jax.Array], Bundle],
    still: Callable[[jax.Array], Bundle],
    each: Callable[[Op], Callable],
) -> Any:
    """Runs `apply_fn` with a bundle of arrays in place of every value that `x` reaches.

    A rule answers with a function of the operation's inputs that returns bundles (one where the
    operation has one output); inputs that `x` reaches are bundles, the others arrays. Groups of
    which the table has no row are taken apart; loops and branches are gone through, unless the
    path taken depends on `x`, which is refused.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      rules: Rows for operations that need their own treatment; its `default` is asked about the
        others, and may refuse.
      params: Any pytree.
      x: Any pytree; its shapes are traced.
      bundle: From the number of a leaf of `x` and the leaf to its bundle.
      still: The bundle of an array that `x` does not reach after all (in a loop, say).
      each: For operations that a row or the default leaves as they are: the rule of these.

    Returns:
      The outputs, each leaf a bundle.
    """
    traced = model(apply_fn, params, x).plain()
    program = traced.program
    check_numbers(rules.name, program)
    moving = [
        bundle(i, leaf) if value in program.depends else leaf
        for i, (value, leaf) in enumerate(
            zip(jax.tree.leaves(traced.x), jax.tree.leaves(x), strict=True)
        )
    ]
    runner = _Runner(rules, still, each)
    try:
        outputs = runner.run(program, [*jax.tree.leaves(params), *moving])
        if (missing := unknown(outputs)) is not None:
            refuse(missing.op)
    except NotImplementedError as error:
        if str(error).startswith(rules.name):
            raise
        raise NotImplementedError(f"{rules.name}: {error}") from None
    outputs = [o if isinstance(o, Bundle) else still(o) for o in outputs]
    return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs)


class _Runner:
    """Evaluates programs on bundles; holds what is the same at every operation."""

    def __init__(self, rules: RuleSet, still: Callable, each: Callable):
        self.rules = rules
        self.still = still
        self.each = each

    def run(self, program: Program, arguments: Sequence[Any]) -> list[Any]:
        program = with_bounds(with_entropies(with_quotients(program)))
        env: dict[int, Any] = dict(program.constants)
        makers: dict[int, Op] = {}
        for value, argument in zip(program.inputs, arguments, strict=True):
            env[value] = self.as_needed(argument, value in program.depends)
        for node in program.nodes:
            self.step(program, node, env, makers)
        return [env[value] for value in program.outputs]

    def as_needed(self, value: Any, moving: bool) -> Any:
        return self.still(jnp.asarray(value)) if moving and not isinstance(value, Bundle) else value

    def step(
        self, program: Program, node: Node, env: dict[int, Any], makers: dict[int, Op]
    ) -> None:
        if not any(v in program.depends for v in node.inputs):
            run_node(node, env)
            return
        values = [env[v] for v in node.inputs]
        made = tuple(map(makers.get, node.inputs))
        op = make_op(program, node, {})._replace(makers=made, given=tuple(values))
        if op.primitive not in SOLVES and (missing := unknown(values)) is not None:
            env.update(zip(node.outputs, _ends(op, values, missing), strict=True))
            return
        known, replacement = self.rules.find(op)
        if replacement is None and node.members:
            for member in node.members:
                self.step(program, member, env, makers)
            return
        if replacement is None and node.bodies:
            outputs = [self.as_needed(o, True) for o in self.higher(node, values)]
        else:
            floats = any(jnp.issubdtype(o.dtype, jnp.inexact) for o in op.outputs)
            if replacement is None and not known and self.rules.default is not None and floats:
                replacement = self.rules.default(op)
            outputs = (replacement or self.each(op))(*values)
            outputs = [outputs] if isinstance(outputs, Bundle) else outputs
        env.update(zip(node.outputs, outputs, strict=True))
        makers.update(dict.fromkeys(node.outputs, op))

    def higher(self, node: Node, values: Sequence[Any]) -> list[Any]:
        """The outputs of an operation with bodies, those that are kept."""
        equation = equation_of(node)
        arguments = arguments_of(node, dict(zip(node.inputs, values, strict=True)))
        name = equation.primitive.name
        if name in CUSTOM or name in REMAT:
            outputs = self.run(node.bodies[0], arguments)
        elif name == "scan":
            outputs = self.scan(node, arguments)
        elif name == "cond" and not isinstance(arguments[0], Bundle):
            branches = [
                lambda *xs, body=body: [
                    settled(self.as_needed(o, True)) for o in self.run(body, xs)
                ]
                for body in node.bodies
            ]
            outputs = jax.lax.switch(arguments[0], branches, *arguments[1:])
        else:
            raise NotImplementedError(
                f"{self.rules.name}: the operation {name!r} at {source(node)} takes a path that "
                "depends on the input (or turns an unknown number of times), so input and baseline "
                "have no common one. Explain a part of the net without it (`jaxviz.split`)."
            )
        dropped = [type(v).__name__ == "DropVar" for v in equation.outvars]
        return [o for o, drop in zip(outputs, dropped, strict=True) if not drop]

    def scan(self, node: Node, arguments: Sequence[Any]) -> list[Any]:
        equation, body = equation_of(node), node.bodies[0]
        consts, carried, _ = scan_arity(equation)
        cut = consts + carried
        moves = [v in body.depends for v in body.inputs]

        def step(carry, xs):
            outputs = self.run(body, [*arguments[:consts], *carry, *xs])
            pairs = zip(outputs[:carried], moves[consts:cut], strict=True)
            seen = outputs[carried:]
            if (missing := unknown(seen)) is not None:
                refuse(missing.op)
            return [settled(self.as_needed(o, m)) for o, m in pairs], seen

        p = equation.params
        pairs = zip(arguments[consts:cut], moves[consts:cut], strict=True)
        last, stacked = jax.lax.scan(
            step,
            [settled(self.as_needed(a, m)) for a, m in pairs],
            list(arguments[cut:]),
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*last, *stacked]


def unknown(values: Sequence[Any]) -> Unknown | None:
    """The first difference among bundles that is not known."""
    parts = (part for v in values if isinstance(v, Bundle) for part in v)
    return next((part for part in parts if isinstance(part, Unknown)), None)


def _ends(op: Op, values: Sequence[Any], missing: Unknown) -> list[Bundle]:
    """An operation at both ends alone."""
    columns = [[v[k] if isinstance(v, Bundle) else v for v in values] for k in (0, 1)]
    ends = [op.evaluate(*column) for column in columns]
    if len(op.outputs) == 1:
        ends = [[end] for end in ends]
    rest = max(len(v) for v in values if isinstance(v, Bundle)) - 2
    return [(*pair, *([missing] * rest)) for pair in zip(*ends, strict=True)]


def settled(value: Any) -> Any:
    """A whole number's bundle as it is in each turn and branch: without differences."""
    if (missing := unknown([value])) is not None:
        refuse(missing.op)
    if not isinstance(value, Bundle) or not jnp.issubdtype(value[0].dtype, jnp.integer):
        return value
    return *value[:2], *(None for _ in value[2:])
