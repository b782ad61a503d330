"""A model's program run with some of its values replaced on the way."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jax.ad_checkpoint import checkpoint_name

from jaxviz.graph.interpreter import Node, Value, run_node
from jaxviz.graph.names import are_wanted
from jaxviz.graph.roles import leaves
from jaxviz.graph.split import environment, needed
from jaxviz.graph.trace import Traced

Change = Mapping[Value, Callable[[Any], Any]]


def run(
    traced: Traced,
    arguments: Sequence[Any],
    change: Change,
    wanted: Sequence[Value] | None = None,
) -> dict[Value, Any]:
    """The values of a model where `change[value](a)` stands for what it computes, `a`.

    Args:
      traced: The model.
      arguments: The leaves of `(params, x)`.
      change: From values to what is made of them. What reads them reads that, and their names are
        its names.
      wanted: What has to be computed; None is everything.

    Returns:
      From value to array.
    """
    env = environment(traced.program, arguments)
    fill(traced, env, change, wanted)
    return env


def fill(
    traced: Traced, env: dict[Value, Any], change: Change, wanted: Sequence[Value] | None = None
) -> None:
    """`run` of an environment that holds the inputs: a change may read what is made ahead of it."""
    env.update({v: change[v](env[v]) for v in traced.program.inputs if v in change})
    nodes = list(leaves(traced.program.nodes))
    nodes = nodes if wanted is None else needed(nodes, wanted)
    own = {v: path for path, kind, v in traced.program.tags if not kind}
    run_changed((_renamed(node, own) for node in nodes), env, change)


def _renamed(node: Node, own: Mapping[Value, str]) -> Node:
    """A name that the user gave inside a scan over layers, with the number of its turn."""
    if not are_wanted() or node.kind != "name" or not node.inputs:
        return node
    name = own.get(node.outputs[0], node.equation.params["name"])
    return node._replace(bound=lambda a: [checkpoint_name(a, name)])


def run_changed(nodes: Iterable[Node], env: dict[Value, Any], change: Change) -> None:
    """Evaluates nodes in order, reading and filling `env`, with some values replaced."""
    for node in nodes:
        if change.keys().isdisjoint(node.outputs):
            run_node(node, env)
            continue
        made = {v: env[v] for v in node.inputs}  # as computed: no name is put on these
        if node.kind == "name" and node.inputs:  # the name is that of what is put there
            (value,) = node.outputs
            env.update({value: node.bound(change[value](made[node.inputs[0]]))[0]})
            continue
        run_node(node, made)
        env.update({v: change[v](made[v]) if v in change else made[v] for v in node.outputs})


def after(traced: Traced, value: Value, wanted: Sequence[Value] | None = None) -> list[Node]:
    """The operations, in order, that make the outputs, or what else is wanted, of a value and what
    is known without it."""
    nodes = list(leaves(traced.program.nodes))
    reached = {value}
    for node in nodes:
        if value not in node.outputs and not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
    every = needed(nodes, traced.program.outputs if wanted is None else wanted, stop={value})
    return [n for n in every if value not in n.outputs and not reached.isdisjoint(n.outputs)]
