"""Where attentions stand in a transformer: the tokens that their blocks hand on.

All ways from a block's attention to the outputs lead through the tokens that the block hands on. So
they are found as what no way passes by, however the block is written.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.attention.found import Attention, found
from jaxviz.graph.axes import Axes, axes
from jaxviz.graph.axis_labels import Tokens
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Value, equation_of
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced


class Stream(NamedTuple):
    """A value of tokens, and its axes: the batch (None where it was squeezed), tokens, numbers."""

    value: Value
    axes: tuple[int | None, int, int]

    def read(self, a: jax.Array) -> jax.Array:
        """`[N, tokens, width]`."""
        batch, *rest = self.axes
        return jnp.transpose(a, self._order) if batch is not None else jnp.transpose(a, rest)[None]

    def written(self, a: jax.Array, like: jax.Array) -> jax.Array:
        """`[N, tokens, width]` as the program has it."""
        a = a if self.axes[0] is not None else a[0]
        order = self._order
        return jnp.transpose(a, sorted(range(len(order)), key=order.__getitem__)).astype(like.dtype)

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple(a for a in self.axes if a is not None)


@fact
def ways(traced: Traced) -> "Ways":
    """What every way through a model leads through."""
    return Ways(traced)


@fact
def blocks(traced: Traced) -> dict[str, Stream | None]:
    """What a model's blocks hand on, by their attentions' names.

    That is what the next attention's block takes; of the last attention, the same in its block.
    """
    known = ways(traced)
    every = found(traced)
    after = {one.name: known.streams(known.made[one.value], one) for one in every}
    ends: dict[str, list[Stream]] = {}
    for one in every:
        later = [known.made[b.value] for b in every if known.follows(one, b)]
        if inside := [s for s in after[one.name] if later and known.made[s.value] < min(later)]:
            ends[one.name] = inside
    whole = list(ends.values())[-1] if ends else None
    given = {name: ends.get(name) or known.last(after[name], whole) for name in after}
    return {name: streams[-1] if streams else None for name, streams in given.items()}


class Ways:
    """What every way from one operation to the outputs leads through."""

    def __init__(self, traced: Traced):
        self.traced, self.program = traced, traced.program
        self.known: Axes = axes(traced)
        self.nodes: list[Node] = list(leaves(traced.program.nodes))
        self.made = {v: i for i, n in enumerate(self.nodes) for v in n.outputs}
        self.end = len(self.nodes)
        readers: dict[Value, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for value in node.inputs:
                readers.setdefault(value, []).append(i)
        self.readers = readers
        self.known_reached: dict[tuple[Value, ...], set[int]] = {}
        outputs = set(self.program.outputs)
        depth = {self.end: 0}
        # From an operation to the next that all its ways meet at; the end is the last.
        self.meets: dict[int, int] = {}
        for i in reversed(range(self.end)):
            met = self._met([v for v in self.nodes[i].outputs], outputs, depth)
            if met is not None:
                self.meets[i], depth[i] = met, depth[met] + 1

    def _met(self, values: Sequence[Value], outputs: set[Value], depth: dict) -> int | None:
        nexts = {i for v in values for i in self.readers.get(v, ()) if i in depth}
        if outputs.intersection(values):
            nexts.add(self.end)
        met: int | None = None
        for i in nexts:
            while met is not None and met != i:
                if depth[met] >= depth[i]:
                    met = self.meets[met]
                else:
                    i = self.meets[i]
            met = i
        return met

    def through(self, start: int | None) -> list[int]:
        """The operations that all ways from one lead through, in order."""
        passed: list[int] = []
        while start is not None and start in self.meets:
            start = self.meets[start]
            passed.append(start)
        return [i for i in passed if i != self.end]

    def follows(self, one: Attention, other: Attention) -> bool:
        """Whether an attention has a part in another."""
        return self.made[other.value] in self.reached(self.made[one.value])

    def reached(self, start: int) -> set[int]:
        """The operations that one has a part in."""
        return self._readers(self.nodes[start].outputs)

    def made_of(self, values: tuple[Value, ...]) -> set[Value]:
        """The values that some have a part in."""
        return {v for i in self._readers(values) for v in self.nodes[i].outputs}

    def _readers(self, values: tuple[Value, ...]) -> set[int]:
        if values not in self.known_reached:
            known, reached = set(values), set()
            for i in range(min(self.made.get(v, -1) for v in values) + 1, self.end):
                if known.intersection(self.nodes[i].inputs):
                    reached.add(i)
                    known.update(self.nodes[i].outputs)
            self.known_reached[values] = reached
        return self.known_reached[values]

    def only_reader(self, value: Value) -> int | None:
        """The one operation on a way to the outputs that reads a value, which is none of them."""
        if value in self.program.outputs:
            return None
        readers = [i for i in self.readers.get(value, ()) if i in self.meets]
        return readers[0] if len(readers) == 1 else None

    def streams(self, start: int | None, one: Attention) -> list[Stream]:
        """The values of an attention's queries' tokens that all ways from one operation lead to."""
        streams = (self.stream(i, one) for i in self.through(start))
        return [s for s in streams if s is not None]

    def alike(self, a: Stream, b: Stream) -> bool:
        shape = lambda s: [self.program.avals[s.value].shape[i] for i in s.axes if i is not None]
        return shape(a) == shape(b)

    def last(self, after: list[Stream], others: list[Stream] | None) -> list[Stream]:
        """What the last attention's block hands on: the same as an earlier block, where there is
        one, and else the last sum of two values of x."""
        name = lambda s: equation_of(self.nodes[self.made[s.value]]).primitive.name
        sums = lambda s: name(s) == "add" and len(self.moving(self.nodes[self.made[s.value]])) == 2
        if others is None:
            return ([s for s in after if sums(s)] or after)[-1:]
        # As far as both do the same, at least to the last sum: a mask may follow in one alone.
        least = max((i + 1 for i, s in enumerate(others) if sums(s)), default=len(others))
        pairs = zip(after, others, strict=False)
        same = itertools.takewhile(lambda p: name(p[0]) == name(p[1]) and self.alike(*p), pairs)
        found = [a for a, _ in same]
        return found[-1:] if len(found) >= least else []

    def moving(self, node: Node) -> list[Value]:
        """Those values of x that an operation reads."""
        return [v for v in node.inputs if v in self.program.depends]

    def stream(self, i: int, one: Attention) -> Stream | None:
        """What an operation makes, if it is `[N, tokens, width]` of an attention's queries."""
        node = self.nodes[i]
        if len(node.outputs) != 1 or node.bodies:
            return None
        return self.tokens(node.outputs[0], one)

    def tokens(self, value: Value, one: Attention) -> Stream | None:
        """A value, if it is `[N, tokens, width]` of an attention's queries."""
        aval = self.program.avals[value]
        if value not in self.program.depends or not jnp.issubdtype(aval.dtype, jnp.floating):
            return None
        weights = self.program.avals[one.value].shape
        places = 1 if one.one_query else weights[one.order[-2]]
        batch = self.known.batch(value)
        count = self.known.count
        if batch is None and not (count == 1 and len(aval.shape) == 2):
            batch = next((a for a, n in enumerate(aval.shape) if n == count), None)
            if batch is None:
                return None
        if batch is not None and aval.shape[batch] != count:
            return None
        rest = [a for a in range(len(aval.shape)) if a != batch]
        if len(rest) != 2:
            return None
        labels = self.known.labels.get(value) or (None,) * len(aval.shape)
        told = [a for a in rest if isinstance(labels[a], Tokens) or _is_place(labels[a])]
        fits = [a for a in (told if len(told) == 1 else rest) if aval.shape[a] == places]
        if not fits:
            return None
        return Stream(value, (batch, fits[0], next(a for a in rest if a != fits[0])))


def _is_place(label: Any) -> bool:
    return isinstance(label, tuple)
