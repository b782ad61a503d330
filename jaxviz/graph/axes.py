"""What the axes of a value are: the batch, the channels, or an axis of the input, moved on.

One walk over a program follows each axis of `x` through the operations: `jax.vmap` may put the
batch anywhere, and a convolution says by its dimension numbers which axis holds channels. What no
rule follows is not known (None), never guessed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxviz.graph.axis_labels import (
    BATCH,
    CHANNELS,
    Label,
    Labels,
    Part,
    Tokens,
    of_batch,
    of_channels,
    source,
)
from jaxviz.graph.axis_rules import RULES, alike
from jaxviz.graph.equations import kept_positions, scan_arity
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import CUSTOM, REMAT, Node, Program, Scalar, Value, equation_of


class Axes(NamedTuple):
    """The axes of a program's values.

    Attributes:
      labels: By value, a label for each axis; values that `x` does not reach are not in it, and
        None stands for those made by an operation without a rule.
      fed: For each leaf of `x` its axes that convolutions, or the model's word, take for channels.
      count: The number of examples.
      beside: For each leaf of `x` its axis that is left over where convolutions go over all others.
      parts: The labels of axes that reshapes made, and that convolutions take for channels.
      declared: By how many axes a leaf of `x` has, the one that the model says has its channels.
      avals: Shapes by value.
    """

    labels: dict[Value, Labels | None]
    fed: dict[int, set[int]]
    count: int
    beside: dict[int, set[int]]
    parts: set[Part]
    declared: dict[int, int]
    avals: Mapping[Value, Any]

    def batch(self, value: Value) -> int | None:
        """The axis of the batch, or of rows that are a multiple of it; None where there is none."""
        return self.batch_of(self.labels.get(value) or ())

    @staticmethod
    def batch_of(found: Labels) -> int | None:
        """The axis of the batch among some labels."""
        if BATCH in found:
            return found.index(BATCH)
        return next((a for a, label in enumerate(found) if of_batch(label)), None)

    def has_none(self, value: Value) -> bool:
        """Whether the value is surely none of a batch; one example alone may be squeezed away."""
        if value not in self.labels:  # made of params alone
            return True
        known = self.labels[value] is not None
        return known and self.batch(value) is None and self.count > 1

    def channels(self, value: Value) -> int | None:
        """The axis that has the channels: as a convolution or dense layer put them there, or as
        convolutions take them; else as the model says of an input of as many axes. None where that
        is not known."""
        found = self.labels.get(value) or ()
        given = [a for a, label in enumerate(found) if self._of_input_channels(label)]
        made = [a for a, label in enumerate(found) if label == CHANNELS]
        taken = [a for a, label in enumerate(found) if label in self.parts]
        divided = [a for a, label in enumerate(found) if of_channels(label)]
        if len(divided) == len(found) - 1:  # into channels and places: which is which is not told
            divided = []
        told = (given, made, taken, self._left_over(found), divided, self._as_declared(value))
        return next((axes[-1] for axes in told if axes), None)

    def _as_declared(self, value: Value) -> list[int]:
        """The axis of a value that nothing else is known of, where the model has a word for it."""
        rank = len(self.avals[value].shape) if value in self.avals else 0
        if rank not in self.declared:
            return []
        found, axis = self.labels.get(value) or (), self.declared[rank]
        beside = [a for a in range(rank) if a != (self.batch(value) or 0)][axis - 1]
        of_places = bool(found) and isinstance(found[beside], (tuple, Tokens))
        return [] if of_places else [beside]

    def _left_over(self, found: Labels) -> list[int]:
        """The one axis that is no place, beside all axes of space of an image."""
        places = [label for label in found if isinstance(label, tuple)]
        rest = [
            a
            for a, label in enumerate(found)
            if not isinstance(label, (tuple, Tokens)) and not of_batch(label)
        ]
        if len(rest) != 1 or len(found) != len(places) + 2 or self.batch_of(found) is None:
            return []
        whole = {leaf for leaf, _ in places}
        (leaf,) = whole if len(whole) == 1 else (-1,)
        channels, axes = self.input_channels(leaf), {axis for _, axis in places}
        every = set(range(1, len(places) + 2))
        return rest if channels is not None and axes == every - {channels} else []

    def _of_input_channels(self, label: Label) -> bool:
        label = source(label)
        return isinstance(label, tuple) and self.input_channels(label[0]) == label[1]

    def tokens(self, value: Value) -> tuple[int, Tokens] | None:
        """The axis that has several axes of x in a row, and what is known of it; None for none."""
        found = self.labels.get(value) or ()
        joint = [(a, label) for a, label in enumerate(found) if isinstance(label, Tokens)]
        return joint[0] if len(joint) == 1 else None

    def input_channels(self, leaf: int = 0) -> int | None:
        """The axis of a leaf of `x` that every convolution it reaches takes for channels.

        Where none takes one of its axes so, such as of grey images that are made coloured ones, it
        is the only one that they do not go over.
        """
        found = self.fed.get(leaf) or self.beside.get(leaf) or set()
        return min(found) if len(found) == 1 else None


@fact
def axes(traced: Any) -> Axes:
    """The axes of all values of a traced model (`trace.trace`)."""
    labels: dict[Value, Labels | None] = {}
    leaves = jax.tree.leaves(traced.x)
    for leaf, value in enumerate(leaves):
        rank = len(traced.program.avals[value].shape)
        labels[value] = tuple((leaf, a) if a else BATCH for a in range(rank))
    shapes = [traced.program.avals[v].shape for v in leaves]
    count = shapes[0][0] if shapes and shapes[0] else 0
    ranks = [len(shape) for shape in shapes]
    walk = Walk(count, ranks)
    walk.run(traced.program, traced.program.nodes, labels)
    said, images = traced.channels, {r for r in ranks if r > 2}
    if said.inputs is not None:
        walk.fed.update({i: {said.inputs % r} for i, r in enumerate(ranks) if r in images})
    inside = {} if said.inside is None else {r: said.inside % r for r in images}
    avals = traced.program.avals
    return Axes(labels, walk.fed, count, walk.beside, walk.parts, inside, avals)


class Walk:
    """The walk: how many examples there are, and what convolutions have said of `x`."""

    def __init__(self, count: int, ranks: Sequence[int]):
        self.count, self.ranks = count, ranks
        self.fed: dict[int, set[int]] = {leaf: set() for leaf in range(len(ranks))}
        self.beside: dict[int, set[int]] = {leaf: set() for leaf in range(len(ranks))}
        self.parts: set[Part] = set()

    def run(self, program: Program, nodes: Sequence[Node], env: dict[Value, Any]) -> None:
        """Labels what each node makes."""
        for node in nodes:
            if not any(v in env for v in node.inputs):
                continue
            if node.members:
                self.run(program, node.members, env)
                continue
            shapes = [program.avals[v].shape for v in node.outputs]
            if any(v in env and env[v] is None for v in node.inputs):
                found = [None] * len(shapes)
            elif node.bodies:
                found = self.bodies(program, node, env)
            else:
                given = [given_labels(program, o, env) for o in node.operands]
                rule = RULES.get(equation_of(node).primitive.name, alike)
                found = [rule(self, equation_of(node).params, given, s) for s in shapes]
            env.update(zip(node.outputs, found, strict=True))

    def bodies(self, program: Program, node: Node, env: dict[Value, Any]) -> list:
        """Labels of the outputs of an operation that calls functions."""
        name, equation = equation_of(node).primitive.name, equation_of(node)
        kept = kept_positions(equation)
        given = [env.get(o, ()) if not isinstance(o, Scalar) else () for o in node.operands]
        if name == "scan":
            consts, carried, _ = scan_arity(equation)
            rest = [labels[1:] if labels else labels for labels in given[consts + carried :]]
            carry = given[consts : consts + carried]
            made = self.turns(node.bodies[0], given[:consts], carry, rest)
            made = [*made[:carried], *((None, *m) if m is not None else m for m in made[carried:])]
        elif name == "while":
            c, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
            made = self.turns(node.bodies[1], given[c : c + b], given[c + b :], [])
            carry = [m if m is None or any(m) else () for m in made]
            self.call(node.bodies[0], [*given[:c], *carry])  # what is done there counts, too
        elif name == "cond":
            made = _agreed([self.call(body, given[1:]) for body in node.bodies])
        elif name in CUSTOM or name in REMAT:
            made = self.call(node.bodies[0], given)
        else:
            return [None] * len(node.outputs)
        return [made[i] for i in kept]

    def call(self, body: Program, given: Sequence[Any]) -> list:
        """Labels of a function's outputs, given those of its inputs; () is of no label."""
        inside = {v: labels for v, labels in zip(body.inputs, given, strict=True) if labels != ()}
        self.run(body, body.nodes, inside)
        return [_filled(inside, body, v) for v in body.outputs]

    def turns(self, body: Program, fixed: list, carry: list, rest: list) -> list:
        """Labels of a loop's outputs: what is carried keeps those that no turn changes."""
        made = self.call(body, [*fixed, *carry, *rest])
        grown = [m if g == () else g for g, m in zip(carry, made, strict=False)]
        made = self.call(body, [*fixed, *grown, *rest])
        same = _agreed([grown, made[: len(grown)]])
        return [*same, *made[len(grown) :]]


def given_labels(program, operand, env):
    """The shape and labels of an operand; None for one that `x` does not reach."""
    if isinstance(operand, Scalar):
        return (), None
    return program.avals[operand].shape, env.get(operand)


def _filled(env, program, value):
    return env.get(value, (None,) * len(program.avals[value].shape))


def _agreed(found: list[list]) -> list:
    """For each output the labels that all ways to make it agree on."""

    def one(ways):
        if any(labels is None for labels in ways):
            return None
        return tuple(
            labels[0] if len(set(labels)) == 1 else None for labels in zip(*ways, strict=True)
        )

    return [one(ways) for ways in zip(*found, strict=True)]
