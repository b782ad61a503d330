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

from jaxviz.graph.axes import CHANNELS, Tokens, axes
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Value, equation_of, source
from jaxviz.graph.names import join_scope
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced

_COPIES = frozenset(
    "convert_element_type copy copy_p stop_gradient optimization_barrier name reduce_precision"
    " device_put sharding_constraint reshard pvary".split()
)
_SHAPING = frozenset({"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims"})
_FUSED = frozenset({"pallas_call", "custom_call", "ffi_call", "tpu_custom_call", "triton_call"})


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
    search = _Search(traced)
    rows = [one for node in search.nodes if (one := search.attention(node)) is not None]
    paths = [path for path, _ in rows]
    numbers: dict[str, int] = {}
    named = []
    for path, attention in rows:
        number = numbers[path] = numbers.get(path, -1) + 1
        stem = f"{path}/attention_{number}" if path else f"attention_{number}"
        named.append(attention._replace(name=path if path and paths.count(path) == 1 else stem))
    return tuple(named)


def hidden(traced: Traced) -> str | None:
    """Where a kernel may hide an attention: what it is called and its line."""
    for name, node in _kernels(traced.program):
        return f"{name} at {source(node)}"
    return None


def _kernels(program: Program):
    for node in leaves(program.nodes):
        name = equation_of(node).primitive.name
        if name in _FUSED or "dot_product_attention" in name:
            yield name, node
        for body in node.bodies:
            yield from _kernels(body)


class _Search:
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
        value, batched, made = met
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
        # Heads that share keys follow one another, as they do in what the queries were cut from.
        heads = sorted((a for a in rest if a != query), key=lambda a: a not in batched)
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
                inverse = self.made.get(self.root(other))
                if inverse is None:
                    continue
                made, params = equation_of(inverse).primitive.name, equation_of(inverse).params
                if made == "div" and isinstance(inverse.operands[1], int):
                    if self.moving(inverse) == [inverse.operands[1]]:
                        return self.share_of(part, inverse.operands[1])
                if made == "integer_pow" and params["y"] == -1:
                    return self.share_of(part, inverse.operands[0])
        if name in ("exp", "exp2"):  # of the scores less the logarithm of their sum
            return self.log_share(node)
        return None

    def log_share(self, node: Node) -> int | None:
        less = self.made.get(self.copied(node.operands[0]))
        if less is None or less.kind != "sub" or len(self.moving(less)) != 2:
            return None
        scores, log = less.operands[0], self.made.get(self.root(less.operands[1]))
        if log is None or equation_of(log).primitive.name != "log":
            return None
        total = self.made.get(self.root(log.operands[0]))
        if total is None or equation_of(total).primitive.name != "reduce_sum":
            return None
        exp = self.made.get(self.copied(total.operands[0]))
        gone = equation_of(total).params["axes"]
        if exp is None or equation_of(exp).primitive.name != "exp" or len(gone) != 1:
            return None
        return gone[0] if self.copied(exp.operands[0]) == self.copied(scores) else None

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
        return self._back(value, _COPIES)

    def masked(self, value: Any) -> Any:
        """What was masked, by a choice or zeros and ones, in the places where it was."""
        return self._back(value, _COPIES | {"select_n", "mul"})

    def root(self, value: Any) -> Any:
        """What was stretched, and kept above zero."""
        return self._back(value, _COPIES | _SHAPING | {"max", "add", "select_n"})

    def _back(self, value: Any, through: frozenset[str]) -> Any:
        while (node := self.made.get(value)) is not None and not node.bodies:
            floats = self.numbers(node)
            if equation_of(node).primitive.name not in through or len(floats) != 1:
                break
            value = floats[0]
        return value

    def numbers(self, node: Node) -> list[Value]:
        """What of x a node reads, but for choices: masks, made into zeros and ones or not."""
        found = []
        for value in filter(self.is_float, self.moving(node)):
            start = value
            while (made := self.made.get(start)) is not None and len(made.inputs) == 1:
                if equation_of(made).primitive.name not in _SHAPING | {"convert_element_type"}:
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

    def product(
        self, value: Value, parts: tuple[frozenset[int], ...], key: int, whole: bool = True
    ) -> tuple[Value, set[int], tuple[Value, tuple]] | None:
        """Follows weights to their product with values.

        Args:
          value: The weights, or what was made of them by moving them about.
          parts: For each of its axes, of which of the weights' own it is a part or is made.
          key: The weights' axis of keys.
          whole: Whether it still has the weights' own axes.

        Returns:
          `(value, axes, product)`: the weights as they enter the product but for their layout,
          those of their axes that the values have too, and what it makes, with the parts of its
          axes.
        """
        avals = self.program.avals
        for node in self.readers.get(value, ()):
            name, params = equation_of(node).primitive.name, equation_of(node).params
            if name == "dot_general":
                if (found := self.contracted(node, value, parts, key)) is not None:
                    return value, *found
                continue
            if node.bodies or len(node.outputs) != 1 or not self.is_float(node.outputs[0]):
                continue
            out = node.outputs[0]
            if self.numbers(node) != [value]:
                continue
            cut = name == "slice" and whole  # a place that no value is for, which takes the rest
            if name in _COPIES or name in ("mul", "div", "select_n") or cut:
                sides = zip(avals[out].shape, avals[value].shape, strict=False)
                if [a for a, (n, m) in enumerate(sides) if n != m] not in (
                    [],
                    [key] if cut else [],
                ):
                    continue
                met = self.product(out, parts, key, whole)
                if met is not None:
                    return met if whole else (value, *met[1:])
                continue
            moved = _moved(name, params, parts, avals[value].shape, avals[out].shape)
            if moved is None:
                continue
            met = self.product(out, moved, key, False)
            if met is not None:
                return value, *met[1:]
        return None

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


def _moved(name, params, parts, before, after):
    """The parts of a value's axes after it was moved about; None where that is not known."""
    if name == "transpose":
        return tuple(parts[a] for a in params["permutation"])
    if name == "squeeze":
        return tuple(p for a, p in enumerate(parts) if a not in params["dimensions"])
    if name == "broadcast_in_dim":
        found = [frozenset()] * len(after)
        for a, place in enumerate(params["broadcast_dimensions"]):
            found[place] = parts[a] if before[a] == after[place] else frozenset()
        return tuple(found)
    if name == "reshape" and params.get("dimensions") is None:
        return _regrouped(parts, before, after)
    return None


def _regrouped(parts, before, after):
    """Axes joined or divided by a reshape: each has a part of all that were joined."""
    found = [frozenset()] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        first, start, a, b = i, j, before[i], after[j]
        while a != b:
            if a < b:
                i += 1
                a *= before[i]
            else:
                j += 1
                b *= after[j]
        i, j = i + 1, j + 1
        joint = frozenset().union(*parts[first:i])
        for k in range(start, j):
            if j - start == 1 or after[k] > 1:
                found[k] = joint
    return tuple(found)
