"""Attentions found in a program: a softmax over keys whose weights sum up values.

A weight is proved from the equations: an exponential, masked or not, divided by its own sum along
one axis, which, moved about and joined by nothing, is the one axis that a product with values
contracts. What is not proved is none.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.attention.moves import moved
from jaxviz.graph.axes import axes
from jaxviz.graph.axis_labels import CHANNELS, Tokens
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Scalar, Value, equation_of
from jaxviz.graph.names import join_scope
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced

COPIES = frozenset(
    "convert_element_type copy copy_p stop_gradient optimization_barrier name reduce_precision"
    " device_put sharding_constraint reshard pvary".split()
)
SHAPING = frozenset({"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims"})
ROOTS = COPIES | SHAPING | {"abs", "max", "add", "select_n"}


class Mixed(NamedTuple):
    """What an attention's weights made of the values, head by head: z = A v.

    Attributes:
      value: The product.
      order: Its axes: the batch, those that count as heads, the query's, the width's.
      heads, queries: How many there are.
      count: Examples.
    """

    value: Value
    order: tuple[int, ...]
    heads: int
    queries: int
    count: int

    def read(self, a: jax.Array) -> jax.Array:
        """The product as `[N, heads, queries, width]`."""
        return jnp.transpose(a, self.order).reshape(self.count, self.heads, self.queries, -1)

    def written(self, a: jax.Array, like: jax.Array) -> jax.Array:
        """`[N, heads, queries, width]` as the program has it."""
        return _written(a, self.order, like)


class Attention(NamedTuple):
    """An attention's weights in a program.

    Attributes:
      name: Of its module or scope, or kind and number.
      value: The weights, as they multiply the values.
      order: Their axes: the batch (none where one example was squeezed), those that count as heads,
        the query's, the key's.
      one_query: Whether there is no axis of queries.
      count: Examples.
      tokens: How the keys lie in `x`, where the model shows it.
      keys_of: The (leaf, axis) of x that the keys are, where they are one.
      mixed: The product with the values, where each of its axes is one of the weights' or none.
    """

    name: str
    value: Value
    order: tuple[int, ...]
    one_query: bool
    count: int
    tokens: Tokens | None
    keys_of: tuple[int, int] | None
    mixed: Mixed | None

    def read(self, a: jax.Array) -> jax.Array:
        """The weights as `[N, heads, queries, keys]`."""
        moved = jnp.transpose(a, self.order)
        queries = 1 if self.one_query else moved.shape[-2]
        return moved.reshape(self.count, -1, queries, moved.shape[-1])

    def written(self, a: jax.Array, like: jax.Array) -> jax.Array:
        """`[N, heads, queries, keys]` as the program has its weights."""
        return _written(a, self.order, like)


def _written(a: jax.Array, order: Sequence[int], like: jax.Array) -> jax.Array:
    shape = [like.shape[axis] for axis in order]
    back = sorted(range(len(shape)), key=order.__getitem__)
    return jnp.transpose(a.reshape(shape), back).astype(like.dtype)


@fact
def found(traced: Traced) -> tuple[Attention, ...]:
    """The attentions of a traced model in the order in which they run."""
    search = Search(traced)
    rows = [one for node in search.nodes if (one := search.attention(node)) is not None]
    paths = [path for path, _ in rows]
    numbers: dict[str, int] = {}
    named = []
    for path, attention in rows:
        number = numbers[path] = numbers.get(path, -1) + 1
        stem = f"{path}/attention_{number}" if path else f"attention_{number}"
        named.append(attention._replace(name=path if path and paths.count(path) == 1 else stem))
    return tuple(named)


def name_of(node: Node) -> str:
    """Of its primitive; nothing for a loop or branch."""
    return "" if node.bodies else equation_of(node).primitive.name


class Search:
    """A program's operations, who makes and reads each value, and what attention looks like."""

    def __init__(self, traced: Traced):
        self.program = traced.program
        self.known = axes(traced)
        self.nodes = list(leaves(traced.program.nodes))
        self.made = {v: n for n in self.nodes for v in n.outputs}
        self.readers: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                self.readers.setdefault(value, []).append(node)

    def moving(self, node: Node) -> list[Value]:
        return [v for v in node.inputs if v in self.program.depends]

    def attention(self, node: Node) -> tuple[str, Attention] | None:
        """The attention whose softmax ends at a node, with its path."""
        key = self.softmax_axis(node)
        if key is None or not self.compares(node.outputs[0], key):
            return None
        value = node.outputs[0]
        rank = len(self.program.avals[value].shape)
        met = self.product(value, tuple(frozenset({a}) for a in range(rank)), key)
        if met is None:
            return None
        entering, batched, made = met
        value = value if entering is None else entering
        labels = self.known.labels.get(value) or (None,) * rank
        shape = self.program.avals[value].shape
        batch = self.known.batch(value)
        if batch is None:
            count = self.known.count
            batch = next((a for a in range(rank) if a != key and shape[a] == count), None)
        if batch == key or (batch is None and self.known.count != 1):
            return None
        if batch is not None and shape[batch] % max(self.known.count, 1):
            return None
        rest = [a for a in range(rank) if a not in (batch, key)]
        free = [a for a in rest if a not in batched]
        placed = [a for a in free if isinstance(labels[a], (tuple, Tokens))]
        query = (placed or free or [None])[-1]
        heads = [a for a in rest if a != query]
        # As the model joins them; else heads that share keys follow one another.
        heads = self.joined(made, heads) or sorted(heads, key=lambda a: a not in batched)
        order = tuple(a for a in (batch, *heads, query, key) if a is not None)
        label = labels[key]
        attention = Attention(
            name="",
            value=value,
            order=order,
            one_query=query is None,
            count=self.known.count,
            tokens=label if isinstance(label, Tokens) else None,
            keys_of=label if isinstance(label, tuple) else None,
            mixed=self.mixed(made, (batch, *heads), query, shape),
        )
        return join_scope(node.scope), attention

    def joined(self, made, heads) -> list[int] | None:
        """The weights' axes of heads in the order in which the model makes one axis of them."""
        value, parts = made
        of = lambda sides: [a for p in sides for a in p if len(p) == 1 and a in heads]
        while len(readers := self.readers.get(value, ())) == 1:
            (node,) = readers
            name, params = name_of(node), equation_of(node).params
            if name == "dot_general" and node.operands[0] != node.operands[1]:
                side = node.operands.index(value)
                ours, theirs = (params["dimension_numbers"][0][i] for i in (side, 1 - side))
                pairs = sorted(zip(theirs, ours, strict=True))
                order = of(parts[a] for _, a in pairs)
                return order if set(order) == set(heads) else None
            if name not in COPIES | SHAPING or len(node.outputs) != 1:
                return None
            out = node.outputs[0]
            before, after = (self.program.avals[v].shape for v in (value, out))
            found = parts if name in COPIES else moved(name, params, parts, before, after)
            if found is None:
                return None
            if any(set(heads) <= p for p in found):
                return of(parts)
            value, parts = out, found
        return None

    def mixed(self, made, leading, query, shape) -> Mixed | None:
        """The product with the values, if its axes are those of the weights one by one."""
        value, parts = made
        places = {a: i for i, part in enumerate(parts) if len(part) == 1 for a in part}
        own = [a for a in (*leading, query) if a is not None]
        lost = [a for a in own if a not in places]
        if any(len(part) > 1 for part in parts) or any(shape[a] > 1 for a in lost):
            return None
        order = [places[a] for a in own if a in places]
        width = [i for i in range(len(parts)) if i not in order]
        heads = math.prod(shape[a] for a in leading if a is not None) // self.known.count
        queries = 1 if query is None else shape[query]
        return Mixed(value, (*order, *width), heads, queries, self.known.count)

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

    def compares(self, value: Value, key: int) -> bool:
        """Whether the keys are something of x: not the classes or experts of a dense layer."""
        labels = self.known.labels.get(value)
        return not (labels and labels[key] == CHANNELS)

    def sums_keys(self, node: Node) -> bool:
        """Whether a product sums over the tokens of keys and of values, and no token is left."""
        if name_of(node) != "dot_general" or len(self.moving(node)) != 2:
            return False
        labels = self.known.labels
        (gone, _), made = equation_of(node).params["dimension_numbers"], node.outputs[0]
        told = [
            (labels.get(v) or (None,) * 9)[side[0]] if len(side) == 1 else None
            for v, side in zip(node.operands, gone, strict=True)
        ]
        if not isinstance(told[0], (tuple, Tokens)) or told[0] != told[1]:
            return False
        readers = self.readers.get(made, ())
        multiplied = any(name_of(n) == "dot_general" for n in readers)
        return multiplied and told[0] not in (labels.get(made) or ())

    def product(
        self, value: Value, parts: tuple[frozenset[int], ...], key: int, own: tuple | None = None
    ) -> tuple[Value | None, set[int], tuple[Value, tuple]] | None:
        """Follows weights to their product with values.

        Args:
          value: The weights, or what was made of them by moving them about.
          parts: For each of its axes, of which of the weights' own it is a part or is made.
          key: The weights' axis of keys.
          own: `parts` of the weights themselves.

        Returns:
          `(value, axes, product)`: the weights as they enter the product but for their layout
          (None where nothing from here on has theirs), those of their axes that the values have
          too, and what it makes, with the parts of its axes.
        """
        avals, own = self.program.avals, own or parts
        laid = value if parts == own else None  # as the weights themselves
        for node in self.readers.get(value, ()):
            name, params = equation_of(node).primitive.name, equation_of(node).params
            if name == "dot_general":
                if (found := self.contracted(node, value, parts, key)) is not None:
                    return laid, *found
            if node.bodies or len(node.outputs) != 1 or not self.is_float(node.outputs[0]):
                continue
            out = node.outputs[0]
            if name == "mul" and (found := self.summed(node, value, parts, key)) is not None:
                return laid, *found
            if self.numbers(node) != [value]:
                continue
            # A place that no value is for takes the rest.
            cut = name == "slice" and laid is not None
            nothing = name in ("add", "sub") and _adds_nothing(node)
            if name in COPIES or name in ("mul", "div", "select_n") or cut or nothing:
                sides = zip(avals[out].shape, avals[value].shape, strict=False)
                if [a for a, (n, m) in enumerate(sides) if n != m] not in (
                    [],
                    [key] if cut else [],
                ):
                    continue
                there: Any = parts
            elif name == "dot_general":
                there = self.scaled(node, value, parts)
            else:
                there = moved(name, params, parts, avals[value].shape, avals[out].shape)
            met = None if there is None else self.product(out, there, key, own)
            if met is not None:
                return met if met[0] is not None else (laid, *met[1:])
        return None

    def scaled(self, node, value, parts):
        """The parts of weights after a product that only scales them, as a head by its mask."""
        gone, batched = equation_of(node).params["dimension_numbers"]
        side = node.operands.index(value)
        other = self.program.avals[node.operands[1 - side]].shape
        if gone[0] or len(other) != len(batched[0]):
            return None
        rest = [p for a, p in enumerate(parts) if a not in batched[side]]
        return (*(parts[a] for a in batched[side]), *rest)

    def contracted(self, node, value, parts, key):
        """Of the weights' axes those that a product shares, if it sums over the keys alone, and
        what it makes, with the parts of its axes."""
        gone, batched = equation_of(node).params["dimension_numbers"]
        for side in (0, 1):
            other = node.operands[1 - side]
            if node.operands[side] != value or other == value or other not in self.program.depends:
                continue
            keys = [a for a in gone[side] if parts[a]]
            if len(keys) == 1 and parts[keys[0]] == {key}:
                shared = [parts[a] for a in batched[side]]
                own = [p for a, p in enumerate(parts) if a not in (*gone[side], *batched[side])]
                theirs = len(self.program.avals[other].shape) - len(gone[side]) - len(shared)
                free = [[frozenset()] * theirs, own] if side else [own, [frozenset()] * theirs]
                made = (*shared, *free[0], *free[1])
                return set().union(*shared), (node.outputs[0], made)
        return None

    def summed(self, node, value, parts, key):
        """As `contracted`, of a product written as numbers multiplied one by one, then summed."""
        floats = self.numbers(node)
        readers = self.readers.get(node.outputs[0], ())
        if value not in floats or len(floats) != 2 or len(readers) != 1:
            return None
        (total,) = readers
        gone = equation_of(total).params["axes"] if name_of(total) == "reduce_sum" else ()
        if len(gone) != 1 or parts[gone[0]] != {key}:
            return None
        (other,) = (v for v in floats if v != value)
        maker = self.made.get(other)
        stretched = set()
        if maker is not None and name_of(maker) == "broadcast_in_dim":
            before = self.program.avals[maker.inputs[0]].shape
            own = equation_of(maker).params["broadcast_dimensions"]
            shape = self.program.avals[other].shape
            has = {p for p, n in zip(own, before, strict=True) if n == shape[p]}
            stretched = set(range(len(shape))) - has
        if gone[0] in stretched:
            return None
        kept = [a for a in range(len(parts)) if a != gone[0]]
        shared = [parts[a] for a in kept if a not in stretched]
        return set().union(*shared), (total.outputs[0], tuple(parts[a] for a in kept))


def _adds_nothing(node: Node) -> bool:
    rest = [o.value for o in node.operands if isinstance(o, Scalar)]
    first = not isinstance(node.operands[0], Scalar)
    return len(rest) == 1 and first and not rest[0].any()
