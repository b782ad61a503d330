"""A model's program run with its factors held and its constants told apart: a linear program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.interpreter import Node, Value, run_node
from jaxviz.graph.rewrite import Op, Rule, RuleSet, replacements
from jaxviz.graph.split import environment
from jaxviz.graph.trace import Traced
from jaxviz.rules.constants import constants, secant, slope_and_start
from jaxviz.rules.lrp_maps import moving

# Operations that are affine in what the input reaches: what they are at 0 is a constant.
_AFFINE = (
    "add add_any sub concatenate pad select_n dynamic_update_slice scatter scatter-add stack"
).split()


def run_held(
    traced: Traced,
    arguments: Sequence[Any],
    one: jax.Array,
    change: Mapping[Value, Callable[[Any], Any]],
) -> dict[Value, Any]:
    """The values of a model whose factors are constant and whose constants are `one` times theirs.

    With `one` at 1 they are the model's. The derivative by it is what biases, positions, padding
    and activations' values at 0 make of a value, on ways that no changed value is on.

    Args:
      traced: The model.
      arguments: The leaves of `(params, x)`.
      one: The number 1.
      change: From values to what stands there, as a function of what is computed.

    Returns:
      From value to array, those inside of recognised activations left out.
    """
    program = traced.program
    env = environment(program, arguments)
    env.update({v: change[v](env[v]) for v in program.inputs if v in change})
    plan = replacements(program, _rules(one), {})
    _run(program.nodes, env, plan, change)
    return env


def _run(nodes: Sequence[Node], env: dict, plan: Mapping[int, Any], change: Mapping) -> None:
    for position, node in enumerate(nodes):
        replacement = plan.get(position)
        if node.members and (replacement is None or isinstance(replacement, dict)):
            _run(node.members, env, replacement or {}, change)
            continue
        run_node(node, env, replacement)
        for value in node.outputs:
            if value in change:
                env[value] = change[value](env[value])


def _rules(one: jax.Array) -> RuleSet:
    base = constants()
    rows = {
        key: _started(one) if rule is secant else rule for key, rule in dict(base.table).items()
    }
    rows |= dict.fromkeys(_AFFINE, _affine(one))
    return RuleSet(
        "attribution_graph", rows, into_custom=True, named=False, functional=True, derivative=True
    )


def _times(one: jax.Array, constant: jax.Array) -> jax.Array:
    """What a constant adds to a value that has it already: nothing, but its derivative by `one`."""
    constant = jax.lax.stop_gradient(constant)
    constant = jnp.where(jnp.isfinite(constant), constant, jnp.zeros_like(constant))
    return constant * (one - 1).astype(constant.dtype)


def _affine(one: jax.Array) -> Rule:
    def rule(op: Op) -> Callable | None:
        at = moving(op)
        apart = [i for i, a in enumerate(op.inputs) if i not in at]
        floats = any(jnp.issubdtype(op.inputs[i].dtype, jnp.inexact) for i in apart)
        if not at or not (floats or any(not isinstance(o, int) for o in op.operands)):
            return None

        def evaluate(*inputs):
            nothing = [jnp.zeros_like(a) if i in at else a for i, a in enumerate(inputs)]
            return op.evaluate(*inputs) + _times(one, op.evaluate(*nothing))

        return evaluate

    return rule


def _started(one: jax.Array) -> Rule:
    def rule(op: Op) -> Callable | None:
        held = secant(op)
        if held is None:
            return None

        def evaluate(*inputs):
            y = held(*inputs)
            return y + _times(one, slope_and_start(op, inputs, y)[1])

        return evaluate

    return rule
