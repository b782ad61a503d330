"""Attention divided by its sum after the product with values, as if it had been divided before.

(e v) / sum e is (e / sum e) v: the same numbers, with weights that can be read and replaced. So a
traced model is given a program that divides first. Layers keep the names and values that they have
in the model as it is written: `undivided`.
"""

import dataclasses
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.attention.softmaxes import COPIES, ROOTS, SHAPING, Search, name_of
from jaxviz.attention.weights import Followed, Weights, own
from jaxviz.graph.axes import axes
from jaxviz.graph.axis_labels import CHANNELS
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Scalar, Value, build, equation_of, recognised
from jaxviz.graph.roles import leaves
from jaxviz.graph.trace import Traced, trace


class _Late(NamedTuple):
    """A quotient after a product.

    Attributes:
      weights: The exponentials, masked or not, as they are summed.
      kept: Their shape, 1 along the axis of keys.
      total: What they are divided by, or multiplied with, in their layout.
      inverse: Whether it is one over their sum.
      first: The first operation on the way to the product.
      mixed: What the product made, as it is divided.
      quotient: The division.
      other: What means another thing once weights are divided first, or is read no more: all from
        the weights to `mixed`, and from `total` to the quotient.
    """

    weights: Value
    kept: tuple[int, ...]
    total: Value
    inverse: bool
    first: Node
    mixed: Value
    quotient: Node
    other: frozenset[Value]


@dataclasses.dataclass(frozen=True, eq=False)
class _Divided(Traced):
    """A model whose attention is divided first.

    Attributes:
      as_is: The model as it is written.
      stands: What stands for a value of that one, where it is not the value of that number.
      other: Those that there is nothing for here.
    """

    as_is: Traced
    stands: Mapping[Value, Value]
    other: frozenset[Value]


def undivided(traced: Traced) -> Traced:
    """The model as it is written: the one whose layers have names."""
    return traced.as_is if isinstance(traced, _Divided) else traced


def standing(traced: Traced, value: Value) -> Value | None:
    """What is here the value of the model as it is written; None where there is no such."""
    if not isinstance(traced, _Divided):
        return value
    return None if value in traced.other else traced.stands.get(value, value)


def attended(apply_fn: Any, params: Any, x: Any) -> Traced:
    """`trace`, with every attention divided by its sum ahead of its product with values."""
    return _divided_first(trace(apply_fn, params, x))


@fact
def _divided_first(traced: Traced) -> Traced:
    search = Search(traced.program, axes(traced))
    found = [late for node in search.nodes if (late := _late(search, node)) is not None]
    if not found:
        return traced
    nodes, program = search.nodes, traced.program
    known = dataclasses.replace(
        program, avals=dict(program.avals), constants=dict(program.constants)
    )
    new: dict[Value, Value] = {}  # what stands for what in readers
    depends = set(program.depends)
    for late in found:
        divided, weights = _division(known, late)
        depends.update(v for node in divided for v in node.outputs)
        at = nodes.index(late.first)
        first = _read(late.first, {late.weights: weights})
        nodes = [n for n in (*nodes[:at], *divided, first, *nodes[at + 1 :]) if n != late.quotient]
        new[late.quotient.outputs[0]] = late.mixed
    for old, one in new.items():  # of a block whose values were another one's quotient
        while one in new:
            one = new[one]
        new[old] = one
    stands = lambda v: new.get(v, v)
    nodes = list(_in_order([_read(node, new) for node in nodes]))
    changed = dataclasses.replace(
        known,
        nodes=tuple(nodes),
        outputs=tuple(map(stands, program.outputs)),
        depends=frozenset(depends),
        tags=tuple((path, kind, stands(v)) for path, kind, v in program.tags),
    )
    changed = recognised(changed)
    outputs = jax.tree.map(stands, traced.outputs)
    other = frozenset().union(*(late.other for late in found))
    given = changed, traced.params, traced.x, outputs, traced.channels
    return _Divided(*given, as_is=traced, stands=new, other=other)


def _late(search: Search, node: Node) -> _Late | None:
    """The attention whose exponentials a node sums, if it is divided after its product."""
    if node.bodies or equation_of(node).primitive.name != "reduce_sum":
        return None
    gone = equation_of(node).params["axes"]
    summed: Any = node.operands[0]
    weights = search.copied(summed)
    exp = search.made.get(search.masked(weights))
    if len(gone) != 1 or exp is None or equation_of(exp).primitive.name not in ("exp", "exp2"):
        return None
    (key,) = gone
    to_sum = [*search.back(summed, COPIES)[1], node]
    others = [n for n in search.readers.get(weights, ()) if n not in to_sum]
    channels = search.labels(weights)[key] == CHANNELS
    if len(others) != 1 or weights in search.program.outputs or channels:
        return None
    shape = search.shape(weights)
    given = Weights(weights, own(len(shape)), frozenset({key}), "softmax", False, weights)
    met = Followed(search, {weights: given}).met
    found = _quotient(search, met[0].product) if met else None
    if found is None:
        return None
    mixed, quotient, by, inverse = found
    total, way = search.back(by, COPIES | SHAPING)
    divisor = search.inverted(total) if inverse else total
    source, up = search.back(divisor, ROOTS)
    up = [*up, *search.back(total, ROOTS)[1]]
    if source != node.outputs[0] or any(name_of(n) == "transpose" for n in up):
        return None
    kept = tuple(1 if a == key else n for a, n in enumerate(shape))
    if search.program.avals[total].shape not in (kept, search.shape(source)):
        return None
    between = _between(search, weights, others[0], quotient)
    if between is None:
        return None
    other = between.union(*(n.outputs for n in way))
    return _Late(weights, kept, total, inverse, others[0], mixed, quotient, other)


def _between(
    search: Search, weights: Value, first: Node, quotient: Node
) -> frozenset[Value] | None:
    """What is made of weights ahead of the quotient; None if it is not all in proportion to them,
    or is seen: an output, or a value with a name."""
    program = search.program
    found = {weights}
    for node in search.nodes[search.nodes.index(first) :]:
        if node == quotient or (node != first and found.isdisjoint({*node.inputs} - {weights})):
            continue
        at = [i for i, o in enumerate(node.operands) if isinstance(o, Value) and o in found]
        name = name_of(node)
        if len(at) != 1 or node.bodies or (name == "div" and at != [0]):
            return None
        if name == "select_n" and not all(
            _is_zero(search, o) for i, o in enumerate(node.operands) if i and i not in at
        ):
            return None
        found.update(node.outputs)
    found -= {weights}
    seen = {*program.outputs, *(v for *_, v in program.tags)}
    return None if found & seen else frozenset(found)


def _is_zero(search: Search, operand: Any) -> bool:
    while not isinstance(operand, Scalar) and (node := search.made.get(operand)) is not None:
        if len(node.operands) != 1 or name_of(node) not in COPIES | SHAPING:
            return False
        (operand,) = node.operands
    held = operand.value if isinstance(operand, Scalar) else search.program.constants.get(operand)
    return held is not None and not isinstance(held, Tracer) and not np.any(held)


def _quotient(search: Search, value: Value) -> tuple[Value, Node, Value, bool] | None:
    """Where a product is divided, if nothing else is made of it: the value, by which node, by what,
    and whether it is multiplied with one over that."""
    while value not in search.program.outputs:
        readers = search.readers.get(value, ())
        if len(readers) != 1 or readers[0].bodies:
            return None
        (node,) = readers
        name = name_of(node)
        if name == "div" and node.operands[0] == value and isinstance(node.operands[1], Value):
            return value, node, node.operands[1], False
        if name == "mul" and len(search.moving(node)) == 2:
            (other,) = (v for v in node.inputs if v != value)
            return None if search.inverted(other) is None else (value, node, other, True)
        if name not in COPIES | SHAPING:
            return None
        value = node.outputs[0]
    return None


def _division(program: Program, late: _Late) -> tuple[list[Node], Value]:
    """The operations that divide weights by their sum, their values made known in the program."""
    avals: dict[Value, Any] = program.avals
    given = (late.weights, late.total)

    def divided(weights, total):
        wide = jnp.promote_types(weights.dtype, total.dtype)  # a sum may be past the weights' range
        whole, total = weights.astype(wide), total.reshape(late.kept).astype(wide)
        return (whole * total if late.inverse else whole / total).astype(weights.dtype)

    shapes = [jax.ShapeDtypeStruct(avals[v].shape, avals[v].dtype) for v in given]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        closed = jax.make_jaxpr(divided)(*shapes)
    made = build(closed.jaxpr, closed.consts, (True, True), flat=True)
    new = dict(zip(made.inputs, given, strict=True))
    for value, aval in made.avals.items():
        if value not in new:
            new[value] = len(avals)
            avals[new[value]] = aval
    named = late.quotient.scope
    nodes = [_read(n, new)._replace(scope=named, callers=late.quotient.callers)
             for n in leaves(made.nodes)]  # fmt: skip
    return nodes, new[made.outputs[0]]


def _read(node: Node, new: dict[Value, Value]) -> Node:
    """A node of other values."""
    if new.keys().isdisjoint((*node.inputs, *node.outputs)):
        return node
    stands = lambda o: new.get(o, o) if isinstance(o, Value) else o
    return node._replace(
        operands=tuple(map(stands, node.operands)),
        inputs=tuple(map(stands, node.inputs)),
        outputs=tuple(map(stands, node.outputs)),
    )


def _in_order(nodes: Sequence[Node]) -> Iterator[Node]:
    """Each after what it reads, else as they stand."""
    made = {v: i for i, node in enumerate(nodes) for v in node.outputs}
    waits = [{made[v] for v in node.inputs if v in made} for node in nodes]
    then: dict[int, list[int]] = {}
    for i, before in enumerate(waits):
        for j in before:
            then.setdefault(j, []).append(i)
    ready = [i for i, before in enumerate(waits) if not before]
    while ready:
        i = heapq.heappop(ready)
        yield nodes[i]
        for j in then.get(i, ()):
            waits[j].discard(i)
            if not waits[j]:
                heapq.heappush(ready, j)
