"""What an operation is, however it is spelled: kinds of single equations and recognised groups.

A kind is proved from the equations and the values of their constants, for all real inputs
(`jaxviz.graph.pieces`, `jaxviz.graph.norms`), never tried out; what is not proved is an ordinary
operation. A group is found by its shape in the graph, not by its name: where all paths from one
value meet again, and nothing else reads what is between. So it can always stand at the place of its
last member, and taking it apart gives the program back.

What a function with a `stop_gradient` or a derivative of its own inside is, its values do not tell:
it has a kind only where that changes no derivative.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import jaxviz.graph.norms as norms
import jaxviz.graph.pieces as pieces
from jaxviz.graph.activations import NAMED, named
from jaxviz.graph.algebra import Unproved

NORM_KINDS = frozenset({"layer_norm", "rms_norm"})
ACTIVATION_KINDS = NAMED | {"pointwise"}
RELU_KINDS = frozenset({"relu", "relu6", "clipped_relu"})

# What acts on each number alone, whether or not its form is known.
_ELEMENTWISE = pieces.POINTWISE | frozenset(
    "acos acosh asin asinh atan atanh cbrt ceil cos digamma erf_inv floor lgamma round sin"
    " tan".split()
)

# Primitives that carry another name in the field.
_PRIMITIVES = {
    "conv_general_dilated": "conv",
    "reduce_window_max": "max_pool",
    "reduce_window_sum": "sum_pool",
    "reduce_sum": "sum",
    "logistic": "sigmoid",
    "scatter-add": "scatter_add",
}


class _Graph:
    """The nodes of a program by position, and who makes and reads which value.

    A node that is absorbed into a group leaves a gap; the group stands where its last member was.
    """

    def __init__(self, program: Any, nodes: Sequence[Any], through: Callable):
        self.program = program
        self.nodes: list[Any] = list(nodes)
        self.through = through  # what an equation makes of functions of one number
        self.producer: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        # Values that must stay values: outputs and tagged ones.
        self.kept = {*program.outputs, *(value for *_, value in program.tags)}
        self.unread: set[int] = set()  # signs that nobody asked for, as `logsumexp` leaves one
        for position, node in enumerate(nodes):
            self.producer.update(dict.fromkeys(node.outputs, position))
            for value in node.inputs:
                self.readers.setdefault(value, []).append(position)
        for position, node in enumerate(nodes):
            if node.kind == "sign" and self.kept.isdisjoint(node.outputs):
                if not self.readers.get(node.outputs[0]):
                    self.unread.add(position)
        for position in self.unread:
            for value in nodes[position].inputs:
                self.readers[value].remove(position)
        self.uniform = _uniform(program, nodes, self.readers)

    def moving(self, node: Any) -> list[int]:
        return [v for v in node.inputs if v in self.program.depends]

    def made_by(self, value: int) -> int | None:
        return self.producer.get(value)

    def inside(self, value: int, members: set[int]) -> bool:
        """Whether nothing but the members needs a value."""
        return value not in self.kept and members.issuperset(self.readers.get(value, ()))

    def only_reader(self, node: Any) -> int | None:
        """The node that alone reads this one's output, which nothing else needs."""
        if len(node.outputs) != 1 or node.outputs[0] in self.kept:
            return None
        readers = self.readers.get(node.outputs[0], [])
        return readers[0] if len(readers) == 1 else None

    def region(
        self, position: int, members: set[int], allowed: Callable, *, closed: bool = True
    ) -> int | None:
        """Adds to `members` what lies between a node and the nearest value all of it comes from.

        Returns that value, or None where there is none: where a node on the way is not `allowed`,
        or, if it must be `closed`, something else needs what is between.
        """
        members.add(position)
        frontier = set(self.moving(self.nodes[position]))
        while len(frontier) > 1:
            # Step back over the node made last: what it reads is older, so the walk ends.
            newest = max(frontier, key=lambda v: self.producer.get(v, -1))
            made = self.producer.get(newest, -1)
            if made < 0 or len(members) > _LARGEST_GROUP or not allowed(self.nodes[made]):
                return None
            members.add(made)
            frontier -= set(self.nodes[made].outputs)
            frontier |= set(self.moving(self.nodes[made]))
        last = max(members)
        inner = {v for p in members if p != last for v in self.nodes[p].outputs}
        if not frontier or (closed and not all(self.inside(v, members) for v in inner)):
            return None
        return frontier.pop()

    def group(self, kind: str, members: set[int]) -> None:
        """Puts a group in the place of its last member."""
        positions = sorted(members)
        parts = tuple(self.nodes[p] for p in positions)
        made = {v for m in parts for v in m.outputs}
        read = dict.fromkeys(v for m in parts for v in m.inputs if v not in made)
        moving = [v for v in read if v in self.program.depends]
        inputs = (*moving, *(v for v in read if v not in self.program.depends))
        last = positions[-1]
        for p in positions:
            for v in self.nodes[p].inputs:
                self.readers[v] = [q for q in self.readers[v] if q != p]
            self.nodes[p] = None
        for v in inputs:
            self.readers[v] = [*self.readers.get(v, ()), last]
        for v in made:
            self.producer[v] = last
        self.nodes[last] = parts[-1]._replace(
            kind=kind, inputs=inputs, operands=inputs, equation=None, members=parts, bodies=()
        )


def recognise(program: Any, through: Callable) -> tuple[Any, ...]:
    """The program's nodes with their kinds, recognised groups as one node each.

    Args:
      program: Its nodes have the kinds of their primitives, or of activations already known.
      through: `(equation, operands) -> result` over functions of one number, or `Unproved`.
    """
    nodes = [node._replace(kind=_kind(program, node)) for node in program.nodes]
    if program.depends.isdisjoint(v for node in nodes for v in node.inputs):
        return tuple(nodes)
    graph = _Graph(program, nodes, through)
    for finder in (_function, _along_axes, _affine, _averaging):
        for position in range(len(nodes)):
            node = graph.nodes[position]
            if node is not None and not node.bodies and graph.moving(node):
                finder(graph, position)
    inside = {
        v
        for node in graph.nodes
        if node is not None
        for member in node.members
        for v in member.outputs
        if v not in node.outputs
    }
    for position in graph.unread:
        if not inside.isdisjoint(nodes[position].inputs):
            graph.nodes[position] = None
    return tuple(node for node in graph.nodes if node is not None)


def _kind(program: Any, node: Any) -> str:
    if node.kind != node.equation.primitive.name:
        return node.kind  # already known to be an activation
    moving = [v for v in node.inputs if v in program.depends]
    others = [o for o in node.operands if o not in moving]
    if not moving:
        return node.kind
    if node.kind == "dot_general":
        return "dense" if others else "matmul"
    if node.kind == "conv_general_dilated" and not others:
        return "conv_product"
    if node.kind == "add" and others:
        held = [o for o in others if type(o) is int and program.avals[o].ndim]
        return "bias" if held else "add"
    if node.kind == "gather" and node.operands[0] not in moving:
        return "embed"
    if node.kind == "reshape" and node.equation.params["dimensions"] is None:
        before, after = (program.avals[v].shape for v in (node.inputs[0], node.outputs[0]))
        if len(after) == 2 and len(before) > 2 and before[0] == after[0]:
            return "flatten"
    return _PRIMITIVES.get(node.kind, node.kind)


def primitive_of(node: Any) -> str:
    """The JAX primitive of a node; of a group, its kind."""
    return node.equation.primitive.name if node.equation is not None else node.kind


def _number(operand: Any, uniform: dict[int, float]) -> float | None:
    """The one number that a value is everywhere."""
    if type(operand) is int:
        return uniform.get(operand)
    return _real(operand.value)


def _real(value: Any) -> float | None:
    array = np.asarray(value)
    real = array.dtype.kind in "fiub" or jnp.issubdtype(array.dtype, jnp.floating)
    return float(array) if array.ndim == 0 and real else None


def _concrete(value: Any) -> Any:
    """An array whose numbers can be read while tracing; None for others."""
    if isinstance(value, np.ndarray):
        return value
    known = isinstance(value, jax.Array) and not isinstance(value, Tracer)
    whole = known and value.is_fully_addressable and not value.is_deleted()
    return value if whole and not jnp.issubdtype(value.dtype, jax.dtypes.extended) else None


_COPIES = frozenset({"broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "copy"})
_SUMS = frozenset({"add", "sub", "mul", "div", "neg", "max", "min", "sqrt", "rsqrt", "gt"})


# What an array of one number everywhere is read for: sums and products with one stay layers of
# their own, whatever numbers training has left in them.
_DECIDING = frozenset({"max", "min", "clamp", "select_n", "gt", "ge", "lt", "le", "eq", "ne"})
_LARGEST_READ = 2**16  # numbers of a constant array


def _uniform(program: Any, nodes: Sequence[Any], readers: dict[int, list[int]]) -> dict[int, float]:
    """The values that are one real number everywhere, with it."""
    found = {}

    def decides(value: int) -> bool:
        reading = [nodes[p] for p in readers.get(value, ())]
        return bool(reading) and all(
            primitive_of(node) in _DECIDING
            or (primitive_of(node) in _COPIES and decides(node.outputs[0]))
            for node in reading
        )

    for value, held in program.constants.items():
        array = _concrete(held)
        if array is None or array.size > _LARGEST_READ or not (array.ndim == 0 or decides(value)):
            continue
        numbers = np.asarray(jax.device_get(array)).reshape(-1)
        if numbers.size and (numbers == numbers[0]).all() and (c := _real(numbers[0])) is not None:
            found[value] = c
    for node in nodes:
        name = primitive_of(node)
        if name not in _COPIES and name not in _SUMS:
            continue
        numbers = [_number(o, found) for o in node.operands]
        dtype = program.avals[node.outputs[0]].dtype
        if any(c is None for c in numbers) or dtype == jax.dtypes.float0 or dtype.kind == "c":
            continue
        if name in _COPIES:
            found[node.outputs[0]] = numbers[0]  # type: ignore[assignment]
            continue
        try:
            made = pieces.apply(name, {}, numbers, dtype)  # type: ignore[arg-type]
        except Unproved:
            continue
        if not isinstance(made, pieces.Function) or not made.breaks:
            found[node.outputs[0]] = pieces.at(pieces.lift(made), 0.0)
    return found


_LARGEST_GROUP = 40
_MOST_STEPS = 6  # back from where a function ends: 1 / (1 + exp(-x)) has four


def _is_float(program: Any, value: int) -> bool:
    return jnp.issubdtype(program.avals[value].dtype, jnp.floating)


def _elementwise(node: Any) -> bool:
    if node.members or node.kind in NAMED:
        return node.kind in ACTIVATION_KINDS
    return not node.bodies and len(node.outputs) == 1 and primitive_of(node) in _ELEMENTWISE


def _function(graph: _Graph, position: int) -> None:
    """An activation, or what else is a function of one number between two places."""
    node = graph.nodes[position]
    if not _elementwise(node) or not _is_float(graph.program, node.outputs[0]):
        return
    if node.kind in NAMED:
        return
    members: set[int] = set()
    source = graph.region(position, members, _elementwise)
    if source is None or not _places(graph, members, source, node.outputs[0]):
        return
    nearest = set(members)
    kind = _named(graph, members, source, node.outputs[0])
    best = (kind, set(members)) if kind else None
    for _ in range(_MOST_STEPS if primitive_of(node) in _LAST else 0):
        before = graph.made_by(source)
        if before is None or not _elementwise(graph.nodes[before]):
            break
        if not graph.inside(source, members) or (kind and graph.nodes[before].kind in NAMED):
            break
        further = graph.region(before, members, _elementwise)
        if further is None or not _places(graph, members, further, node.outputs[0]):
            break
        source = further
        if found := _named(graph, members, source, node.outputs[0]):
            best = (found, set(members))
    if best is None:
        if len(nearest) > 1 and not _holds(graph, nearest):
            graph.group("pointwise", nearest)
        return
    kind, members = best
    if len(members) > 1:
        graph.group(kind, members)
    elif kind != "relu" or not _only_guards(graph, position):
        graph.nodes[position] = node._replace(kind=kind)


def _only_guards(graph: _Graph, position: int) -> bool:
    """Whether a maximum with 0 keeps rounding from taking a root of less than nothing."""
    node = graph.nodes[position]
    (value,) = graph.moving(node)
    if _clamps_a_spread(graph, value):
        return True
    # A squared distance, of sums of squares and products; what one layer makes may be a ReLU's.
    made = graph.made_by(value)
    several = made is not None and len(graph.moving(graph.nodes[made])) > 1
    return several and primitive_of(node) == "max" and _under_a_root(graph, node)


def _under_a_root(graph: _Graph, node: Any) -> bool:
    """Whether all that reads a value, but for a number added or multiplied, takes its root."""
    readers = [graph.nodes[p] for p in graph.readers.get(node.outputs[0], ())]
    if not readers or node.outputs[0] in graph.kept:
        return False
    steps = ("add", "mul", "div", "broadcast_in_dim", "reshape", "squeeze")
    return all(
        primitive_of(r) in ("sqrt", "rsqrt")
        or (primitive_of(r) in steps and len(graph.moving(r)) == 1 and _under_a_root(graph, r))
        for r in readers
    )


def _places(graph: _Graph, members: set[int], source: int, out: int) -> bool:
    """Whether each place of the output is made from the same place of the source alone."""
    avals = graph.program.avals
    shape = avals[source].shape
    if avals[out].shape != shape or avals[out].dtype != avals[source].dtype:
        return False
    for p in members:
        node = graph.nodes[p]
        if node.members:
            continue  # its operands were looked at when it was made
        for o in node.operands:
            if type(o) is int and o in graph.program.depends:
                if avals[o].shape != shape:
                    return False
            elif _number(o, graph.uniform) is None:
                return False
    return True


def _holds(graph: _Graph, members: Iterable[int]) -> bool:
    """Whether a gradient is stopped inside."""
    return any(
        primitive_of(graph.nodes[p]) == "stop_gradient"
        and _is_float(graph.program, graph.nodes[p].inputs[0])
        for p in members
    )


def _named(graph: _Graph, members: set[int], source: int, out: int) -> str | None:
    """The activation that leads from a value to another."""
    if len(members) == 1 and primitive_of(graph.nodes[min(members)]) not in _ALONE:
        return None

    def prove():
        env: dict[int, Any] = {source: pieces.X}
        for node in nodes:
            operands = [
                env[o] if type(o) is int and o in env else _number(o, graph.uniform)
                for o in node.operands
            ]
            if any(o is None for o in operands):
                raise Unproved
            env[node.outputs[0]] = graph.through(node.equation, operands)
        return named(env[out], pieces.rounding(graph.program.avals[out].dtype))

    nodes = [m for p in sorted(members) for m in _flat(graph.nodes[p])]
    return _remembered("function", prove, _signature(graph, nodes, source))


# What alone can be an activation, and what can be the last step of one that is not.
_ALONE = frozenset({"max", "clamp"})
_LAST = _ALONE | frozenset("min mul div add sub neg select_n log log1p".split())

# Proofs by what they are of: the same block comes many times in a net.
_PROVED: dict[Any, Any] = {}
_MOST_PROVED = 4096
_TOLD = ("y", "axes", "broadcast_dimensions", "dimensions", "permutation")


def _remembered(what: str, prove: Callable[[], Any], signature: tuple | None) -> Any:
    """What a proof comes to, None where there is none; done once for each signature."""
    if signature is not None and (what, signature) in _PROVED:
        return _PROVED[what, signature]
    try:
        found = prove()
    except Unproved:
        found = None
    if signature is not None:
        if len(_PROVED) >= _MOST_PROVED:
            _PROVED.clear()
        _PROVED[what, signature] = found
    return found


def _signature(graph: _Graph, nodes: Sequence[Any], source: int) -> tuple | None:
    """All that a proof about these nodes looks at; None for what has a body."""
    avals = graph.program.avals
    codes: dict[int, Any] = {source: ("value", -1)}
    steps: list[Any] = [(avals[source].shape, str(avals[source].dtype))]
    for i, node in enumerate(nodes):
        if primitive_of(node) == "custom_jvp_call":
            return None
        operands = []
        for o in node.operands:
            number = None if type(o) is int and o in codes else _number(o, graph.uniform)
            if type(o) is int and number is None:
                moves = o in graph.program.depends
                operands.append(codes.setdefault(o, (moves, len(codes), avals[o].shape)))
            else:
                operands.append(number)
        params, out = node.equation.params, node.outputs[0]
        told = tuple((k, params[k]) for k in _TOLD if k in params)
        codes[out] = ("value", i)
        aval = avals[out]
        steps.append((primitive_of(node), told, tuple(operands), aval.shape, str(aval.dtype)))
    return tuple(steps)


def _allowed_along(node: Any) -> bool:
    if node.members:
        return node.kind == "pointwise" and all(map(_allowed_along, node.members))
    return not node.bodies and primitive_of(node) in norms.PRIMITIVES


def _along_axes(graph: _Graph, position: int) -> None:
    """Softmax, its logarithm, and normalisations."""
    node = graph.nodes[position]
    if primitive_of(node) not in ("add", "sub", "mul", "div") or len(graph.moving(node)) < 2:
        return
    members: set[int] = set()
    source = graph.region(position, members, _allowed_along)
    best = None
    while source is not None:
        if kind := _along(graph, members, source, node.outputs[0], norms.kind):
            best = (kind, set(members))
        before = graph.made_by(source)
        if before is None or not graph.inside(source, members):
            break
        first = graph.nodes[before]
        steps = ("sub",) if best else ("sub", "exp")
        if primitive_of(first) not in steps or not _allowed_along(first):
            break
        source = graph.region(before, members, _allowed_along)
    if best is not None:
        graph.group(*best)


def _along(graph: _Graph, members: set[int], source: int, out: int, say: Callable) -> Any:
    """What `say` says of what the members make of an array along its axes; None if unknown."""
    avals = graph.program.avals
    nodes = [m for p in sorted(members) for m in _flat(graph.nodes[p])]

    def prove():
        size = math.prod(avals[source].shape)
        reshaped = [n for n in nodes if primitive_of(n) == "reshape"]
        values = {v for node in reshaped for v in (*node.inputs, *node.outputs)}
        alike = [avals[v].shape for v in values if math.prod(avals[v].shape) == size]
        env: dict[int, Any] = {source: norms.array(avals[source].shape, alike)}

        def operand(o):
            if type(o) is int and o in env:
                return env[o]
            number = _number(o, graph.uniform)
            if number is not None:
                return number
            if type(o) is not int or o in graph.program.depends:
                raise Unproved
            return norms.param(o, avals[o].shape)

        for node in nodes:
            operands = [operand(o) for o in node.operands]
            aval = avals[node.outputs[0]]
            env[node.outputs[0]] = norms.apply(
                primitive_of(node), node.equation.params, operands, aval.shape, aval.dtype
            )
        return say(env[out])

    return _remembered(say.__name__, prove, _signature(graph, nodes, source))


def _flat(node: Any) -> list[Any]:
    return [m for part in node.members for m in _flat(part)] if node.members else [node]


def _clamps_a_spread(graph: _Graph, value: int) -> bool:
    """Whether a value is a variance, which rounding alone takes below zero."""
    made = graph.made_by(value)
    if made is None or not _allowed_along(graph.nodes[made]):
        return False
    members: set[int] = set()
    source = graph.region(made, members, _allowed_along, closed=False)
    return source is not None and bool(_along(graph, members, source, value, norms.is_spread))


def _affine(graph: _Graph, position: int) -> None:
    """A chain of sums and products with params: batch norm in inference, or scale and shift."""
    depends = graph.program.depends

    def step(node):
        if node.kind not in ("add", "bias", "sub", "mul", "div") or node.equation is None:
            return False
        moving = graph.moving(node)
        held = [o for o in node.operands if type(o) is int and o not in depends]
        if node.kind == "div" and node.operands[0] not in moving:
            return False
        if len({graph.program.avals[v].shape for v in (*moving, *node.outputs)}) > 1:
            return False
        return len(moving) == 1 and len(held) == 1 and held[0] not in graph.uniform

    node = graph.nodes[position]
    if not step(node):
        return
    before = graph.made_by(graph.moving(node)[0])
    if node.kind == "bias" and before is not None and graph.nodes[before].kind in ("conv", "dense"):
        return
    chain = [position]
    while (following := graph.only_reader(graph.nodes[chain[-1]])) is not None:
        if not step(graph.nodes[following]):
            break
        chain.append(following)
    if len(chain) < 2 or not any(graph.nodes[p].kind in ("mul", "div") for p in chain):
        return
    held = {o for p in chain for o in graph.nodes[p].inputs if o not in depends}
    graph.group("batch_norm" if _takes_root(graph, held) else "affine", set(chain))


def _takes_root(graph: _Graph, values: Iterable[int]) -> bool:
    """Whether a square root was taken to make one of these params-only values."""
    todo, seen = list(values), set()
    while todo:
        made = graph.made_by(todo.pop())
        if made is None or made in seen:
            continue
        seen.add(made)
        if primitive_of(graph.nodes[made]) in ("rsqrt", "sqrt"):
            return True
        todo.extend(graph.nodes[made].inputs)
    return False


def _averaging(graph: _Graph, position: int) -> None:
    """A sum over windows or axes, then divided by how many there are."""
    node = graph.nodes[position]
    kind = {"sum_pool": "avg_pool", "sum": "mean"}.get(node.kind)
    following = graph.only_reader(node) if kind else None
    if following is None:
        return
    divided = graph.nodes[following]
    if divided.kind not in ("div", "mul") or len(graph.moving(divided)) != 1:
        return
    if divided.equation is None or (
        divided.kind == "div" and divided.operands[0] != node.outputs[0]
    ):
        return
    held = next(o for o in divided.operands if o != node.outputs[0])
    if _counts(graph, node, held, reciprocal=divided.kind == "mul"):
        graph.group(kind, {position, following})  # type: ignore[arg-type]


def _counts(graph: _Graph, node: Any, held: Any, reciprocal: bool) -> bool:
    """Whether a value is how many numbers each sum of a node has (or one over that)."""
    params = node.equation.params
    avals = graph.program.avals
    if node.kind == "sum":
        count = math.prod(avals[node.inputs[0]].shape[a] for a in params["axes"])
    else:
        count = math.prod(params["window_dimensions"])
    number = _number(held, graph.uniform)
    if number is not None:
        dtype = avals[node.outputs[0]].dtype
        true = np.asarray(1 / count if reciprocal else count, dtype) if count else math.nan
        return float(np.asarray(number, dtype)) == float(true)
    # The count of each window, padding left out: the same sum over ones.
    made = None if type(held) is not int else graph.made_by(held)
    if made is None or reciprocal or node.kind != "sum_pool":
        return False
    other = graph.nodes[made]
    while primitive_of(other) in ("broadcast_in_dim", "reshape") and other.inputs:
        made = graph.made_by(other.inputs[0])
        if made is None:
            return False
        other = graph.nodes[made]
    same = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    shape, ones = avals[node.inputs[0]].shape, avals[other.outputs[0]].shape
    return (
        primitive_of(other) == primitive_of(node)
        and _number(other.operands[0], graph.uniform) == 1
        and all(tuple(other.equation.params[k]) == tuple(params[k]) for k in same)
        and len(shape) == len(ones)
        and all(w == 1 or _size(avals, other, a) == shape[a] for a, w in enumerate(params[same[0]]))
    )


def _size(avals: dict, node: Any, axis: int) -> int:
    return avals[node.inputs[0]].shape[axis] if node.inputs else 0
