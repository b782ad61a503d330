"""What in a program is a softmax, proved from its equations.

An exponential, masked or not, divided by its own sum along one axis; or of the scores less the
logarithm of that sum.
"""

from typing import Any

import jax.numpy as jnp

from jaxviz.graph.axes import Axes
from jaxviz.graph.interpreter import Node, Program, Value, equation_of
from jaxviz.graph.roles import leaves

COPIES = frozenset(
    "convert_element_type copy copy_p stop_gradient optimization_barrier name reduce_precision"
    " device_put sharding_constraint reshard pvary".split()
)
SHAPING = frozenset({"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims"})
ROOTS = COPIES | SHAPING | {"abs", "max", "add", "select_n"}


def name_of(node: Node) -> str:
    """Of its primitive; nothing for a loop or branch."""
    return "" if node.bodies else equation_of(node).primitive.name


class Search:
    """A program's operations, who makes and reads each value, and what a softmax looks like.

    `known` are its axes; None of a loop's or branch's body.
    """

    def __init__(self, program: Program, known: Axes | None):
        self.program, self.known = program, known
        self.nodes = list(leaves(program.nodes))
        self.made = {v: n for n in self.nodes for v in n.outputs}
        self.readers: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                self.readers.setdefault(value, []).append(node)

    def shape(self, value: Any) -> tuple[int, ...]:
        return self.program.avals[value].shape

    def labels(self, value: Any) -> tuple:
        """What is known of its axes, None where nothing is."""
        rank = len(self.shape(value))
        return (self.known and self.known.labels.get(value)) or (None,) * rank

    def moving(self, node: Node) -> list[Value]:
        return [v for v in node.inputs if v in self.program.depends]

    def softmax_axis(self, node: Node) -> int | None:
        """The axis along which what a node makes are positive numbers divided by their sum."""
        name = equation_of(node).primitive.name
        if node.bodies or node.outputs[0] not in self.program.depends:
            return None
        if name == "div" and all(isinstance(o, int) for o in node.operands):
            return self.share_of(*node.operands)
        if name == "mul" and len(self.moving(node)) == 2:  # exp(x) * (1 / sum)
            for part, other in (node.operands, node.operands[::-1]):
                divisor = self.inverted(other)
                if divisor is not None:
                    return self.share_of(part, divisor)
        if name in ("exp", "exp2"):  # of the scores less the logarithm of their sum
            return self.log_share(node)
        return None

    def inverted(self, value: Any) -> Any:
        """What a value is one over; None if it is not."""
        inverse = self.made.get(self.root(value))
        if inverse is None:
            return None
        if name_of(inverse) == "div" and self.moving(inverse) == [inverse.operands[1]]:
            return inverse.operands[1]
        if name_of(inverse) == "integer_pow" and equation_of(inverse).params["y"] == -1:
            return inverse.operands[0]
        return None

    def log_share(self, node: Node) -> int | None:
        less = self.made.get(self.copied(node.operands[0]))
        if less is None or less.kind != "sub" or len(self.moving(less)) != 2:
            return None
        scores, taken = less.operands
        shift = None
        log = self.made.get(self.back(taken, COPIES | SHAPING)[0])
        if log is not None and log.kind == "add" and len(self.moving(log)) == 2:
            # The maximum that was taken off ahead of the exponentials comes back.
            ends = [self.back(v, COPIES | SHAPING)[0] for v in log.operands]
            made = [self.made.get(v) for v in ends]
            logs = [i for i, n in enumerate(made) if n is not None and name_of(n) == "log"]
            if len(logs) != 1:
                return None
            log, shift = made[logs[0]], ends[1 - logs[0]]
        if log is None or name_of(log) != "log":
            return None
        total = self.made.get(self.root(log.operands[0]))
        if total is None or name_of(total) != "reduce_sum":
            return None
        exp = self.made.get(self.copied(total.operands[0]))
        gone = equation_of(total).params["axes"]
        if exp is None or name_of(exp) != "exp" or len(gone) != 1:
            return None
        inside = self.copied(exp.operands[0])
        if shift is not None:
            off = self.made.get(inside)
            if off is None or off.kind != "sub" or len(off.operands) != 2:
                return None
            if self.back(off.operands[1], COPIES | SHAPING)[0] != shift:
                return None
            inside = self.copied(off.operands[0])
        return gone[0] if inside == self.copied(scores) else None

    def share_of(self, part: Any, total: Any) -> int | None:
        """The one axis that a value, made by an exponential, is summed over to its divisor."""
        shape = self.program.avals[part].shape
        summed = self.made.get(self.root(total))
        if summed is None or equation_of(summed).primitive.name != "reduce_sum":
            return None
        gone = equation_of(summed).params["axes"]
        whole: Any = summed.operands[0]
        same = {self.copied(part), self.masked(part)} & {self.copied(whole), self.masked(whole)}
        if len(gone) != 1 or not same or self.program.avals[whole].shape != shape:
            return None
        exp = self.made.get(self.masked(part))
        if exp is None or equation_of(exp).primitive.name not in ("exp", "exp2"):
            return None
        return gone[0]

    def copied(self, value: Any) -> Any:
        return self.back(value, COPIES)[0]

    def masked(self, value: Any) -> Any:
        """What was masked, by a choice or zeros and ones, in the places where it was."""
        return self.back(value, COPIES | {"select_n", "mul"})[0]

    def root(self, value: Any) -> Any:
        """What was stretched, and kept above zero."""
        return self.back(value, ROOTS)[0]

    def back(self, value: Any, through: frozenset[str]) -> tuple[Any, list[Node]]:
        """What was made into a value by such operations, and these, the last one first."""
        way = []
        while (node := self.made.get(value)) is not None and not node.bodies:
            name, floats = equation_of(node).primitive.name, self.numbers(node)
            if name not in through:
                break
            if name == "add" and len(floats) == 2:  # a place beside the keys: one exponential more
                floats = [v for v in floats if not self.is_exponential(v)]
            if len(floats) != 1:
                break
            value = floats[0]
            way.append(node)
        return value, way

    def is_exponential(self, value: Value) -> bool:
        made = self.made.get(self.back(value, COPIES | SHAPING)[0])
        return made is not None and name_of(made) in ("exp", "exp2")

    def numbers(self, node: Node) -> list[Value]:
        """What of x a node reads, but for choices: masks, made into zeros and ones or not."""
        found = []
        for value in filter(self.is_float, self.moving(node)):
            start = value
            while (made := self.made.get(start)) is not None and len(made.inputs) == 1:
                if equation_of(made).primitive.name not in SHAPING | {"convert_element_type"}:
                    break
                start = made.inputs[0]
            if self.is_float(start):
                found.append(value)
        return found

    def is_float(self, value: Value) -> bool:
        return jnp.issubdtype(self.program.avals[value].dtype, jnp.inexact)
