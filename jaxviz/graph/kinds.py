"""What an operation is, however it is spelled: kinds of single equations and recognised groups.

A group is found by its shape in the graph, not by its name: where two paths from one value meet
again and everything between is pointwise, the group is a function of one number, and is told by
its values at a few probes (so `jnp.where(x > 0, x, 0)` is a ReLU). Softmax and normalisations are
told by what lies between, batch norm by its chain of affine steps with params.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

PROBES = np.array([-30.0, -7.5, -3.2, -2.0, -1.0, -0.4, -1e-3, 0.0, 1e-3, 0.3, 1.0, 2.5, 4.0, 9.0])


def _erf(x: Any) -> np.ndarray:
    import math

    return np.vectorize(math.erf)(np.asarray(x, float))


def _sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


# Functions of one number that have a name; `leaky_relu` is told apart by its slope.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * _elu(x)),
    "celu": lambda x: np.maximum(x, 0) + np.minimum(0, np.expm1(np.minimum(x, 0))),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "log_sigmoid": lambda x: -np.logaddexp(-x, 0),
    "soft_sign": lambda x: x / (1 + np.abs(x)),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "squareplus": lambda x: 0.5 * (x + np.sqrt(x * x + 4)),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
}
NORM_KINDS = frozenset({"layer_norm", "rms_norm"})
ACTIVATION_KINDS = frozenset(ACTIVATIONS) | {"leaky_relu", "pointwise"}

# Primitives that act on each number alone, in NumPy, for the probes.
_POINTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.logical_and,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "convert_element_type": lambda x: np.asarray(x, float),
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "cos": np.cos,
    "cosh": np.cosh,
    "div": np.divide,
    "eq": np.equal,
    "erf": _erf,
    "erfc": lambda x: 1 - _erf(x),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": _sigmoid,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "name": lambda x: x,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.logical_not,
    "or": np.logical_or,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: np.choose(np.asarray(which, int), cases),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.logical_xor,
}

# Primitives that carry another name in the field.
_PRIMITIVES = {
    "conv_general_dilated": "conv",
    "reduce_window_max": "max_pool",
    "reduce_window_sum": "sum_pool",
    "reduce_sum": "sum",
    "logistic": "sigmoid",
    "scatter-add": "scatter_add",
}


class _Uses(NamedTuple):
    producer: dict[int, int]  # value -> position of the node that makes it
    consumers: dict[int, list[int]]  # value -> positions of the nodes that read it
    kept: set[int]  # values that must stay values: outputs and tagged ones
    uniform: dict[int, float]  # values that are one number everywhere


def recognise(program: Any) -> tuple[Any, ...]:
    """The program's nodes with their kinds, recognised groups as one node each."""
    nodes = [node._replace(kind=_kind(program, node)) for node in program.nodes]
    for finder in (_meeting, _affine, _averaging, _clipping):
        position, uses = 0, _uses(program, nodes)
        while position < len(nodes):
            found = finder(program, nodes, uses, position)
            if found is None:
                position += 1
                continue
            kind, members = found
            nodes = _grouped(program, nodes, kind, sorted(members))
            uses = _uses(program, nodes)
            position = position - len(members) + 2
    return tuple(nodes)


def activation(program: Any) -> str | None:
    """The kind of a whole program that maps one array pointwise, or None."""
    if len(program.outputs) != 1:
        return None
    source = [v for v in program.inputs if v in program.depends]
    if len(source) != 1 or program.outputs[0] not in program.depends:
        return None
    uniform = _uniform(program, program.nodes)
    values = probe(program.nodes, source[0], uniform)
    return None if values is None else _name(values.get(program.outputs[0]))


def probe(
    nodes: Iterable[Any], source: int, uniform: dict[int, float]
) -> dict[int, np.ndarray] | None:
    """Values at the probes of everything computed pointwise from `source`; None if not all is."""
    env: dict[int, Any] = {**uniform, source: PROBES}

    def run(node):
        if all(v in uniform for v in node.outputs):
            return True
        if node.members:
            return all(run(member) for member in node.members)
        operands: list[Any] = [env.get(o) if type(o) is int else o.value for o in node.operands]
        if any(o is None for o in operands):
            return False
        if node.kind in ACTIVATIONS:
            result = ACTIVATIONS[node.kind](operands[0])
        elif node.kind == "integer_pow":
            result = np.power(operands[0], float(node.equation.params["y"]))
        elif node.kind == "leaky_relu" or node.equation.primitive.name not in _POINTWISE:
            return False
        else:
            result = _POINTWISE[node.equation.primitive.name](*operands)
        env[node.outputs[0]] = result
        return True

    with np.errstate(all="ignore"):
        return env if all(run(node) for node in nodes) else None


def _name(values: Any) -> str | None:
    """The activation that has these values at the probes."""
    if values is None or np.shape(values) != PROBES.shape:
        return None
    if values.dtype == bool:  # a comparison, such as the derivative of a clip
        return "pointwise"
    for kind, function in ACTIVATIONS.items():
        with np.errstate(all="ignore"):
            if np.allclose(values, function(PROBES), rtol=2e-6, atol=1e-7):
                return kind
    slope = -values[PROBES == -1.0][0]
    with np.errstate(all="ignore"):
        leaky = np.where(PROBES > 0, PROBES, -slope * -PROBES)
    if slope != 1 and np.allclose(values, leaky, rtol=2e-6, atol=1e-7):
        return "leaky_relu"
    return "pointwise"


def _kind(program: Any, node: Any) -> str:
    if node.members or node.kind != node.equation.primitive.name:
        return node.kind  # already known to be an activation
    moving = [v for v in node.inputs if v in program.depends]
    others = [o for o in node.operands if o not in moving]
    if not moving:
        return node.kind
    if node.kind == "dot_general":
        return "dense" if others else "matmul"
    if node.kind == "conv_general_dilated" and not others:
        return "conv_product"
    if node.kind in ("add", "sub", "mul", "div") and others:
        held = [o for o in others if type(o) is int and program.avals[o].ndim]
        if held and node.kind == "add":
            return "bias"
        return node.kind
    if node.kind == "max" and len(node.operands) == 2:
        uniform = _uniform(program, program.nodes)
        if any(_number(o, uniform) == 0 for o in others):
            return "relu"
    if node.kind == "gather" and node.operands[0] not in moving:
        return "embed"
    if node.kind == "reshape" and len(program.avals[node.outputs[0]].shape) == 2:
        before, after = (program.avals[v].shape for v in (node.inputs[0], node.outputs[0]))
        if len(before) > 2 and before[0] == after[0]:
            return "flatten"
    return _PRIMITIVES.get(node.kind, node.kind)


def _number(operand: Any, uniform: dict[int, float]) -> float | None:
    return uniform.get(operand) if type(operand) is int else operand.value


def _uniform(program: Any, nodes: Iterable[Any]) -> dict[int, float]:
    found = {
        v: float(c)
        for v, c in program.constants.items()
        if isinstance(c, np.ndarray) and c.ndim == 0 and c.dtype.kind in "fiub"
    }
    for node in nodes:
        if node.equation is None or node.equation.primitive.name not in (
            "broadcast_in_dim",
            "convert_element_type",
        ):
            continue
        dtype = program.avals[node.outputs[0]].dtype
        if dtype == jax.dtypes.float0 or dtype.kind == "c":  # no real number
            continue
        number = _number(node.operands[0], found)
        if number is not None and np.ndim(number) == 0:
            found[node.outputs[0]] = float(number)
    return found


def _uses(program: Any, nodes: Sequence[Any]) -> _Uses:
    producer, consumers = {}, {}
    for position, node in enumerate(nodes):
        producer.update(dict.fromkeys(node.outputs, position))
        for value in node.inputs:
            consumers.setdefault(value, []).append(position)
    kept = {*program.outputs, *(value for *_, value in program.tags)}
    return _Uses(producer, consumers, kept, _uniform(program, nodes))


def _moving(program: Any, node: Any) -> list[int]:
    return [v for v in node.inputs if v in program.depends]


def _only_consumer(uses: _Uses, node: Any) -> int | None:
    """The node that alone reads this one's output, which nothing else needs."""
    if len(node.outputs) != 1 or node.outputs[0] in uses.kept:
        return None
    readers = uses.consumers.get(node.outputs[0], [])
    return readers[0] if len(readers) == 1 else None


def _grouped(program: Any, nodes: list, kind: str, positions: list[int]) -> list:
    members = tuple(nodes[p] for p in positions)
    if kind in NORM_KINDS:  # a variance kept from falling below zero is no ReLU
        members = tuple(m._replace(kind="max") if m.kind == "relu" else m for m in members)
    made = {v for m in members for v in m.outputs}
    read = dict.fromkeys(v for m in members for v in m.inputs if v not in made)
    moving = [v for v in read if v in program.depends]
    inputs = (*moving, *(v for v in read if v not in program.depends))
    last = members[-1]
    group = last._replace(
        kind=kind, inputs=inputs, operands=inputs, equation=None, members=members, bodies=()
    )
    rest = [n for p, n in enumerate(nodes) if p not in positions[:-1]]
    rest[rest.index(last)] = group
    return rest


def _meeting(program, nodes, uses, position):
    """A group between one value and the place where all paths from it meet again."""
    exit_node = nodes[position]
    if exit_node.members or len(exit_node.outputs) != 1 or exit_node.equation is None:
        return None
    primitive = exit_node.equation.primitive.name
    if primitive not in _POINTWISE or len(_moving(program, exit_node)) < 2:
        return None
    region = _region(program, nodes, uses, position)
    if region is None:
        return None
    source, members = region
    inside = [nodes[p] for p in sorted(members)]
    shape = program.avals[exit_node.outputs[0]].shape
    names = {_spelled(n) for n in inside}
    if program.avals[source].shape == shape:
        values = probe(inside, source, uses.uniform)
        if values is not None:
            return _name(values[exit_node.outputs[0]]) or "pointwise", members
    if primitive in ("mul", "div") and "reduce_sum" in names and names & {"rsqrt", "sqrt"}:
        if names <= _NORM:
            return ("layer_norm" if "sub" in names else "rms_norm"), members
    if "reduce_sum" in names and names <= _SOFTMAX and primitive in ("div", "sub"):
        # exp(x - max) is used above and below the line, x - max on both sides of the difference.
        before = uses.producer.get(source)
        if primitive == "div" and "exp" not in names:
            if before is None or nodes[before].kind != "exp" or not _inside(uses, source, members):
                return None
            members, source = members | {before}, nodes[before].inputs[0]
        elif primitive == "sub" and not {"exp", "log"} <= names:
            return None
        return {"div": "softmax", "sub": "log_softmax"}[primitive], _shifted(
            program, nodes, uses, source, members
        )
    return None


def _spelled(node: Any) -> str:
    return node.kind if node.members or node.kind in ACTIVATION_KINDS else _primitive(node)


def _primitive(node: Any) -> str:
    return node.equation.primitive.name if node.equation is not None else node.kind


def _inside(uses: _Uses, value: int, members: set[int]) -> bool:
    return value not in uses.kept and set(uses.consumers.get(value, [])) <= members


def _shifted(program, nodes, uses, source: int, members: set[int]) -> set[int]:
    """A softmax's members with those that subtract the largest logit first."""
    made = uses.producer.get(source)
    if made is None or nodes[made].kind != "sub" or not _inside(uses, source, members):
        return members
    region = _region(program, nodes, uses, made)
    if region is None or not {_spelled(nodes[p]) for p in region[1]} <= _SOFTMAX:
        return members
    return members | region[1]


_SOFTMAX = {
    *("reduce_max", "max", "stop_gradient", "broadcast_in_dim", "reshape", "sub", "exp"),
    *("reduce_sum", "div", "log", "select_n", "squeeze", "convert_element_type", "is_finite"),
}
_NORM = {
    *("reduce_sum", "div", "mul", "sub", "add", "integer_pow", "square", "rsqrt", "sqrt", "max"),
    *("broadcast_in_dim", "reshape", "convert_element_type", "stop_gradient", "abs", "squeeze"),
    *("mean", "pointwise", "relu", "copy"),
}
_LARGEST_GROUP = 40


def _region(program, nodes, uses, position):
    """The nearest value that all moving inputs of a node come from, and the nodes between."""
    members, frontier = {position}, set(_moving(program, nodes[position]))
    while len(frontier) > 1:
        # Step back over the node made last: what it reads is older, so the walk ends at a meeting.
        made = {v: uses.producer.get(v, -1) for v in frontier}
        newest = max(made, key=lambda v: made[v])
        if made[newest] < 0 or len(members) > _LARGEST_GROUP:
            return None
        members.add(made[newest])
        frontier -= set(nodes[made[newest]].outputs)
        frontier |= set(_moving(program, nodes[made[newest]]))
    inner = [nodes[p] for p in members if p != position]
    for node in inner:
        if node.bodies or any(v in uses.kept for v in node.outputs):
            return None
        if any(set(uses.consumers.get(v, [])) - members for v in node.outputs):
            return None
    return frontier.pop(), members


def _affine(program, nodes, uses, position):
    """A chain of sums and products with params: batch norm in inference, or scale and shift."""

    def step(node):
        if node.kind not in ("add", "bias", "sub", "mul", "div") or node.equation is None:
            return False
        moving = _moving(program, node)
        held = [o for o in node.operands if type(o) is int and o not in program.depends]
        if node.kind == "div" and node.operands[0] not in moving:
            return False
        return len(moving) == 1 and len(held) == 1 and held[0] not in uses.uniform

    node = nodes[position]
    if not step(node):
        return None
    before = uses.producer.get(_moving(program, node)[0])
    if node.kind == "bias" and before is not None and nodes[before].kind in ("conv", "dense"):
        return None
    chain = [position]
    while (following := _only_consumer(uses, nodes[chain[-1]])) is not None:
        if not step(nodes[following]):
            break
        chain.append(following)
    if len(chain) < 2 or not any(nodes[p].kind in ("mul", "div") for p in chain):
        return None
    held = {o for p in chain for o in nodes[p].inputs if o not in program.depends}
    return ("batch_norm" if _takes_root(nodes, uses, held) else "affine"), set(chain)


def _takes_root(nodes, uses, values: set[int]) -> bool:
    """Whether a square root was taken to make one of these params-only values."""
    todo, seen = list(values), set()
    while todo:
        value = todo.pop()
        made = uses.producer.get(value)
        if made is None or made in seen:
            continue
        seen.add(made)
        if nodes[made].equation is not None and nodes[made].equation.primitive.name in (
            "rsqrt",
            "sqrt",
        ):
            return True
        todo.extend(nodes[made].inputs)
    return False


def _averaging(program, nodes, uses, position):
    """A sum over windows or axes, then divided by a count."""
    kind = {"sum_pool": "avg_pool", "sum": "mean"}.get(nodes[position].kind)
    following = _only_consumer(uses, nodes[position]) if kind else None
    if following is None or nodes[following].kind not in ("div", "mul"):
        return None
    if len(_moving(program, nodes[following])) != 1 or nodes[following].equation is None:
        return None
    held = [o for o in nodes[following].operands if o not in nodes[position].outputs]
    number = _number(held[0], uses.uniform) if held else None
    if number is None and kind == "mean":
        return None
    return kind, {position, following}


def _clipping(program, nodes, uses, position):
    """Two pointwise steps in a row that only together have a name (ReLU6; half of x + |x|)."""
    node = nodes[position]
    following = _only_consumer(uses, node)
    if following is None or len(_moving(program, node)) != 1 or node.bodies:
        return None
    pair = [node, nodes[following]]
    if pair[1].kind not in ("min", "max", "mul", "div") or len(_moving(program, pair[1])) != 1:
        return None
    if node.kind not in ("relu", "min", "pointwise"):
        return None
    values = probe(pair, _moving(program, node)[0], uses.uniform)
    kind = None if values is None else _name(values[pair[1].outputs[0]])
    return None if kind in (None, "pointwise") else (kind, {position, following})
