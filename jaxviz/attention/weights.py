"""Attention weights followed through a program to the products with values that they are for.

Weights begin as a softmax, or as a sigmoid or ReLU of the products of queries and keys. On the way
they may be moved about, masked and scaled; mixed with those of other heads, added to or taken from
others of the same keys, gated, divided by their sum, cut. What then multiplies the values counts.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxviz.attention.moves import moved
from jaxviz.attention.softmaxes import COPIES, Search, name_of
from jaxviz.graph.axis_labels import CHANNELS, Part, Tokens, of_batch, of_channels
from jaxviz.graph.interpreter import Node, Scalar, Value, equation_of
from jaxviz.graph.signs import nonnegative

# Functions of each weight by itself, of two weights of the same place, and what weights are lost in
# that may still be a part of attention: it makes other weights of them, or picks some.
_EACH = frozenset({"add", "sub", "neg", "max", "min", "clamp", "integer_pow", "square"})
_PAIRED = frozenset({"add", "sub", "mul", "max", "min"})
LOSING = frozenset({"conv_general_dilated", "gather", "top_k", "sort", "cumsum", "dynamic_slice"})

Parts = tuple[frozenset[int], ...]


class Weights(NamedTuple):
    """Weights at some value on their way.

    Attributes:
      value: The last on the way that has their own axes, in order.
      parts: For each axis of the value reached, of which of those it is a part or is made.
      keys: Which of those may be the keys': the softmax's, or all that the scores have.
      kind: What they are so far; scores are not yet weights.
      signed: Whether some may be below zero.
      start: The first of them.
    """

    value: Value
    parts: Parts
    keys: frozenset[int]
    kind: Literal["softmax", "each", "scores"]
    signed: bool
    start: Value


class Met(NamedTuple):
    """Weights, and a product with values that they meet.

    Attributes:
      weights: As they enter it but for their layout.
      key: Their axis of keys.
      shared: Those of their axes that the values have too.
      product: What it makes.
      parts: Of which of the weights' axes each of its axes is.
      node: The product.
    """

    weights: Weights
    key: int
    shared: frozenset[int]
    product: Value
    parts: Parts
    node: Node


def own(rank: int) -> Parts:
    return tuple(frozenset({a}) for a in range(rank))


class Followed:
    """All weights of a program on their way.

    Attributes:
      met: Those that meet values, in order of the products.
      lost: Softmaxes, and where each was lost to an operation that is not followed.
      bare: Products of scores with values, with neither softmax nor a function of each between.
    """

    def __init__(self, search: Search, given: Mapping[Value, Weights] | None = None):
        """`given` are weights that are moved, masked and scaled alone; None finds all."""
        self.search, self.alone = search, given is not None
        self.at: dict[Value, Weights] = dict(given or {})
        self.met: list[Met] = []
        self.lost: dict[Value, Node] = {}
        self.bare: list[Node] = []
        self.unsigned = frozenset() if self.alone else nonnegative(search.program)
        for node in search.nodes:
            self._visit(node)
        met = {one.weights.start for one in self.met}
        self.lost = {start: at for start, at in self.lost.items() if start not in met}

    def _visit(self, node: Node) -> None:
        search, out = self.search, node.outputs[0]
        key = None if self.alone else search.softmax_axis(node)
        if key is not None:
            # Classes or experts of a dense layer are no keys; those that share may be (slots).
            keys = frozenset({key} if search.labels(out)[key] != CHANNELS else ())
            parts = own(len(search.shape(out)))
            self.at[out] = Weights(out, parts, keys, "softmax", False, out)
            return
        given = [(v, self.at[v]) for v in node.inputs if v in self.at and not node.bodies]
        met = [m for v, w in given if (m := self._product(node, v, w)) is not None]
        if met:
            best = min(met, key=lambda m: ("softmax", "each", "scores").index(m.weights.kind))
            self.bare.append(node) if best.weights.kind == "scores" else self.met.append(best)
            return
        for value, weights in given:
            step = self._moved(node, value, weights)
            if step is None and not self.alone:
                step = self._changed(node, value, weights)
            if step is not None:
                self.at[out] = step
                return
            if name_of(node) == "split" and not self.alone:
                for part in node.outputs:
                    if (cut := self._cut(part, weights)) is not None:
                        self.at[part] = cut
                return
            placed = [a for a in self._keys(weights) if _is_place(search.labels(value)[a])]
            if weights.kind == "softmax" and placed and name_of(node) in LOSING:
                self.lost.setdefault(weights.start, node)
        if not self.alone and (begun := self._scores(node)) is not None:
            self.at[out] = begun

    def _scores(self, node: Node) -> Weights | None:
        """Products of two values of x with places of x on either side: queries and keys."""
        search, moves = self.search, self.search.program.depends
        if name_of(node) != "dot_general" or not all(o in moves for o in node.operands):
            return None
        out, ends = node.outputs[0], [len(search.shape(o)) for o in node.operands]
        gone, batched = equation_of(node).params["dimension_numbers"]
        first = len(batched[0])
        cut = first + ends[0] - len(gone[0]) - first
        labels = search.labels(out)
        placed = [a for a in range(first, len(labels)) if _is_place(labels[a])]
        if not (any(a < cut for a in placed) and any(a >= cut for a in placed)):
            return None
        return Weights(out, own(len(labels)), frozenset(placed), "scores", True, out)

    def _product(self, node: Node, value: Value, weights: Weights) -> Met | None:
        if name_of(node) == "dot_general":
            return self._contracted(node, value, weights)
        return self._summed(node, value, weights) if name_of(node) == "mul" else None

    def _contracted(self, node: Node, value: Value, weights: Weights) -> Met | None:
        """A product that sums over the keys."""
        gone, batched = equation_of(node).params["dimension_numbers"]
        parts = weights.parts
        for side in (0, 1):
            other = node.operands[1 - side]
            known = other in self.search.program.depends
            if node.operands[side] != value or other == value or not known:
                continue
            keys = [a for a in gone[side] if len(parts[a]) == 1 and parts[a] <= weights.keys]
            rest = [p for a, p in enumerate(parts) if a not in (*gone[side], *batched[side])]
            shared = [parts[a] for a in batched[side]]
            theirs = len(self.search.shape(other)) - len(gone[side]) - len(shared)
            # Heads may be added up beside the keys, but something has to be left to ask or answer.
            if len(keys) != 1 or not (theirs or any(rest)):
                continue
            free = [[frozenset()] * theirs, rest] if side else [rest, [frozenset()] * theirs]
            (key,) = parts[keys[0]]
            made = (*shared, *free[0], *free[1])
            return Met(weights, key, frozenset().union(*shared), node.outputs[0], made, node)
        return None

    def _summed(self, node: Node, value: Value, weights: Weights) -> Met | None:
        """As `_contracted`, of a product written as numbers multiplied one by one, then summed."""
        search, parts = self.search, weights.parts
        floats, readers = search.numbers(node), search.readers.get(node.outputs[0], ())
        if value not in floats or len(floats) != 2 or len(readers) != 1:
            return None
        (total,) = readers
        gone = equation_of(total).params["axes"] if name_of(total) == "reduce_sum" else ()
        if len(gone) != 1 or len(parts[gone[0]]) != 1 or not parts[gone[0]] <= weights.keys:
            return None
        stretched = self._stretched(node, next(v for v in floats if v != value))
        if gone[0] in stretched:
            return None
        kept = [a for a in range(len(parts)) if a != gone[0]]
        shared = frozenset().union(*(parts[a] for a in kept if a not in stretched))
        (key,) = parts[gone[0]]
        made = tuple(parts[a] for a in kept)
        return Met(weights, key, shared, total.outputs[0], made, total)

    def _stretched(self, node: Node, value: Value) -> set[int]:
        """The axes of what a node makes along which one of its values repeats itself."""
        search, after = self.search, self.search.shape(node.outputs[0])
        shape, maker = list(search.shape(value)), search.made.get(value)
        if maker is not None and name_of(maker) == "broadcast_in_dim":
            shape = [1] * len(after)
            places = equation_of(maker).params["broadcast_dimensions"]
            for place, n in zip(places, search.shape(maker.inputs[0]), strict=True):
                shape[place] = n
        return {a for a, n in enumerate(after) if n > 1 and shape[a] == 1}

    def _moved(self, node: Node, value: Value, weights: Weights) -> Weights | None:
        """Weights after what moves, masks or scales them, or takes off a place without a value."""
        search, parts, rank = self.search, weights.parts, len(self.search.shape(weights.value))
        out, name, params = node.outputs[0], name_of(node), equation_of(node).params
        floats = search.is_float(out) and search.numbers(node) == [value]
        if len(node.outputs) != 1 or not floats:
            return None
        before, after = search.shape(value), search.shape(out)
        differ = [a for a, (n, m) in enumerate(zip(before, after, strict=False)) if n != m]
        there: Any = None
        if name in COPIES or name in ("mul", "select_n") or _adds_nothing(node):
            there = None if differ else parts
        elif name == "div":
            there = parts if node.operands[0] == value and not differ else None
        elif name == "slice" and parts == own(rank):
            there = parts if len(differ) == 1 and parts[differ[0]] <= weights.keys else None
        elif name == "dot_general":
            there = self._scaled(node, value, parts)
        else:
            there = moved(name, params, parts, before, after)
        if there is None:
            return None
        negative = any(isinstance(o, Scalar) and np.any(o.value < 0) for o in node.operands)
        signed = weights.signed or (name in ("mul", "div") and negative)
        value = out if there == own(rank) else weights.value
        return weights._replace(parts=there, value=value, signed=signed)

    def _scaled(self, node: Node, value: Value, parts: Parts) -> Parts | None:
        """The parts of weights after a product that only scales them, as a head by its mask."""
        gone, batched = equation_of(node).params["dimension_numbers"]
        side = node.operands.index(value)
        other = self.search.shape(node.operands[1 - side])
        if gone[0] or len(other) != len(batched[0]):
            return None
        rest = [p for a, p in enumerate(parts) if a not in batched[side]]
        return (*(parts[a] for a in batched[side]), *rest)

    def _changed(self, node: Node, value: Value, weights: Weights) -> Weights | None:
        """Weights after what makes others of them, over the same keys."""
        search, name, out = self.search, name_of(node), node.outputs[0]
        if len(node.outputs) != 1 or not search.is_float(out):
            return None
        others = [v for v in search.numbers(node) if v != value]
        same = {a: a for a in range(len(search.shape(value)))}
        if name == "dot_general":
            return self._mixed(node, value, weights)
        if name == "reduce_sum":
            gone = equation_of(node).params["axes"]
            if any(weights.parts[a] & weights.keys for a in gone):
                return None
            rest = [a for a in same if a not in gone]
            return self._anew(out, weights, {a: i for i, a in enumerate(rest)})
        if name == "slice" and not others:
            return self._cut(out, weights)
        if search.shape(out) != search.shape(value):
            return None
        if not others and (name in _EACH or node.kind in ("relu", "sigmoid")):
            is_each = node.kind in ("relu", "sigmoid") or (name == "max" and _is_zero(node))
            kind = "each" if is_each and weights.kind == "scores" else weights.kind
            return self._anew(out, weights, same, kind)
        inverse = name == "div" and isinstance(node.operands[0], Scalar)
        if not others and weights.kind == "scores" and (name == "exp" or inverse):
            # A sigmoid written out is 1 / (1 + exp(-scores)); exponentials alone are no weights.
            return self._anew(out, weights, same, "each" if inverse else "scores")
        if len(others) != 1:
            return None
        (other,) = others
        if name in _PAIRED and (beside := self.at.get(other)) is not None:
            mine, theirs = self._keys(weights), self._keys(beside)
            order = sorted((weights.kind, beside.kind), key=("scores", "each", "softmax").index)
            if mine & theirs and search.shape(other) == search.shape(value):
                return self._anew(
                    out, weights, {a: a for a in same if a in mine & theirs}, order[0]
                )
            return None
        if name == "div" and node.operands[0] == value and weights.kind != "scores":
            summed = search.made.get(search.root(other))
            if summed is not None and name_of(summed) == "reduce_sum":
                gone = equation_of(summed).params["axes"]
                whole = search.copied(summed.operands[0])
                if len(gone) == 1 and whole == search.copied(value):
                    if search.labels(out)[gone[0]] == CHANNELS:
                        return None
                    anew = self._anew(out, weights, same, "softmax")
                    return anew and anew._replace(keys=frozenset(gone))
        gate = name == "mul" or (name == "div" and node.operands[0] == value)
        # What differs from place to place along every axis is no gate of weights, but may be
        # values that the weights are spread over.
        return self._anew(out, weights, same) if gate and self._stretched(node, other) else None

    def _mixed(self, node: Node, value: Value, weights: Weights) -> Weights | None:
        """Weights of heads that are sums of other heads', by numbers that x has no part in."""
        side = node.operands.index(value)
        other = node.operands[1 - side]
        gone, batched = equation_of(node).params["dimension_numbers"]
        summed = any(weights.parts[a] & weights.keys for a in gone[side])
        if other in self.search.program.depends or summed:
            return None
        theirs = len(self.search.shape(other)) - len(gone[side]) - len(batched[side])
        rest = [a for a in range(len(weights.parts)) if a not in (*gone[side], *batched[side])]
        first = len(batched[side]) + (theirs if side else 0)
        places = {a: i for i, a in enumerate(batched[side])}
        places |= {a: first + i for i, a in enumerate(rest)}
        return self._anew(node.outputs[0], weights, places)

    def _cut(self, out: Value, weights: Weights) -> Weights | None:
        return self._anew(out, weights, {a: a for a in range(len(weights.parts))})

    def _keys(self, weights: Weights) -> set[int]:
        """Which axes of the value reached may be the keys'."""
        return {a for a, p in enumerate(weights.parts) if len(p) == 1 and p <= weights.keys}

    def _anew(
        self, out: Value, weights: Weights, places: Mapping[int, int], kind: Any = None
    ) -> Weights | None:
        """Weights with axes of their own from here on; `places` is where those before went."""
        keys = frozenset(places[a] for a in self._keys(weights) if a in places)
        keeps = places == {a: a for a in range(len(weights.parts))}
        if not keys and (weights.keys or not keeps):
            return None
        signed, parts = out not in self.unsigned, own(len(self.search.shape(out)))
        return Weights(out, parts, keys, kind or weights.kind, signed, weights.start)


def _is_place(label: Any) -> bool:
    if isinstance(label, Part):
        return not of_channels(label) and not of_batch(label)
    return isinstance(label, (tuple, Tokens))


def _is_zero(node: Node) -> bool:
    rest = [o.value for o in node.operands if isinstance(o, Scalar)]
    return len(rest) == 1 and not np.any(rest[0])


def _adds_nothing(node: Node) -> bool:
    adds = name_of(node) in ("add", "sub") and not isinstance(node.operands[0], Scalar)
    return adds and _is_zero(node)
