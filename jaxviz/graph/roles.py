"""What part each value plays in the function that is explained, for rules that hand on relevance.

Two things no operation shows by itself. Whether the explained input reaches a value through
numbers, or only through a choice: a mask `x != 0` made into zeros and ones depends on the input,
but no relevance can go back through the comparison, so it counts as a constant. And what a factor
is to the other one: `c * rsqrt(v)` is the quotient c / sqrt(v), however it is spelled and wherever
a scale was multiplied in; `h * sigmoid(g)` is a signal behind a gate. A gate that is known to be a
sigmoid is told apart from others, since one minus it is the sigmoid of the other sign.
"""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from jaxviz.graph.equations import kept_positions, scan_arity
from jaxviz.graph.interpreter import Node, Program, Scalar, Value
from jaxviz.graph.kinds import ACTIVATION_KINDS

# From what is explained to what only scales it; "" is what no relevance can reach.
ROLES = ("", "signal", "activation", "gate", "sigmoid", "divisor")
REARRANGING = frozenset(
    (
        "broadcast_in_dim concatenate convert_element_type copy copy_p device_put dynamic_slice"
        " expand_dims gather mesh_cast name optimization_barrier pbroadcast pvary reduce_precision"
        " reshape reshard rev sharding_constraint slice split squeeze stack stop_gradient tile"
        " transpose unstack"
    ).split()
)
_SAME = frozenset("neg sqrt cbrt max min clamp real".split())  # of a scale, a scale
_BOUNDED = frozenset("tanh erf erfc atan sin cos".split())
_GATES = frozenset({"sigmoid", "hard_sigmoid"})

Roles = dict[Value, str]


def rank(role: str) -> int:
    """How far a role is from what is explained; a sigmoid is one gate among others."""
    return ROLES.index("gate" if role == "sigmoid" else role)


def roles(program: Program, given: Mapping[Value, str], gates: frozenset[Value] = frozenset()):
    """The role of each value that relevance can reach.

    Args:
      program: Its groups may hold any members.
      given: Roles of its inputs.
      gates: Values that are weights between 0 and 1 for a reason found elsewhere (a softmax).

    Returns:
      From values to one of "signal", "activation" (what a function of one number made), "gate" (a
      weight from 0 to 1), "sigmoid" (a gate that is a sigmoid, plain or hard, or one minus it) or
      "divisor" (one over something, times constants). Others are absent.
    """
    found: Roles = dict(given)
    exponentials: set[Value] = set()  # exp(...) times and plus constants
    for node in program.nodes:
        _visit(program, node, found, exponentials)
        found.update((v, "gate") for v in node.outputs if v in gates and v in found)
    return found


def start(program: Program) -> Roles:
    """The roles of a program's own inputs: the explained ones are signals."""
    return {v: "signal" for v in program.inputs if v in program.depends and _floats(program, v)}


def inner(node: Node, found: Mapping[Value, str]) -> list[Roles]:
    """The roles of the inputs of each body of a higher-order operation."""
    outer = [found.get(o, "") if isinstance(o, Value) else "" for o in node.operands]
    name = node.equation.primitive.name
    if name == "while":
        return [start(body) for body in node.bodies]
    if name == "scan":
        body = node.bodies[0]
        consts, carry, _ = scan_arity(node.equation)
        turns = range(consts, consts + carry)
        flags = ["signal" if i in turns and role else role for i, role in enumerate(outer)]
        while True:
            reached = roles(body, _of(body, flags))
            more = [i for i in turns if body.outputs[i - consts] in reached and not flags[i]]
            if not more:
                return [_of(body, flags)]
            for i in more:
                flags[i] = "signal"
    return [_of(body, outer[len(outer) - len(body.inputs) :]) for body in node.bodies]


def leaves(nodes) -> Iterator[Node]:
    """All operations, those of groups one by one."""
    for node in nodes:
        if node.members:
            yield from leaves(node.members)
        else:
            yield node


def _of(program: Program, flags: list[str]) -> Roles:
    pairs = zip(program.inputs, flags, strict=True)
    return {v: role for v, role in pairs if role and _floats(program, v)}


def _floats(program: Program, value: Value) -> bool:
    return jnp.issubdtype(program.avals[value].dtype, jnp.inexact)


def _visit(program: Program, node: Node, found: Roles, exponentials: set[Value]) -> None:
    if node.members:
        for member in node.members:
            _visit(program, member, found, exponentials)
    outputs = [v for v in node.outputs if _floats(program, v)]
    here = [found.get(o, "") if isinstance(o, Value) else "" for o in node.operands]
    if not outputs or not any(here):
        return
    if node.kind in ACTIVATION_KINDS:
        is_clip = node.kind in ("relu", "pointwise") and "divisor" in here
        role = "divisor" if is_clip else "sigmoid" if node.kind in _GATES else "activation"
        found.update(dict.fromkeys(outputs, role))
    elif node.kind == "softmax":
        found.update(dict.fromkeys(outputs, "gate"))
    elif node.members:
        pass  # as the members found it
    elif node.bodies:
        found.update(_after_bodies(node, outputs, found))
    else:
        role = _made(program, node, here, exponentials)
        found.update(dict.fromkeys(outputs, role))


def _after_bodies(node: Node, outputs: list[Value], found: Mapping[Value, str]) -> Roles:
    results = list[str]()
    for body, given in zip(node.bodies, inner(node, found), strict=True):
        if node.kind == "while" and body is node.bodies[0]:
            continue
        reached = roles(body, given)
        after = [reached.get(v, "") for v in body.outputs]
        results = [_weakest(pair) for pair in zip(results or after, after, strict=True)]
    kept = [results[i] for i in kept_positions(node.equation)]
    if node.kind in ("scan", "while"):
        kept = ["signal" if role else "" for role in kept]
    pairs = zip(node.outputs, kept, strict=True)
    return {v: role for v, role in pairs if role and v in outputs}


def _weakest(several) -> str:
    """The role that is most like a signal among those that relevance can reach."""
    reached = [r for r in several if r]
    return min(reached, key=ROLES.index) if reached else ""


def _made(program: Program, node: Node, here: list[str], exponentials: set[Value]) -> str:
    """The role of what an operation makes of operands of such roles."""
    name = node.equation.primitive.name
    if name == "logistic" or (_of_sigmoids(here) and (name in REARRANGING or _from_one(node))):
        return "sigmoid"
    here = ["gate" if r == "sigmoid" else r for r in here]  # what else is made of it is none
    reached = [r for r in here if r]
    of_exponential = any(o in exponentials for o in node.operands if isinstance(o, Value))
    kept = name in REARRANGING or (len(reached) == 1 and name in ("add", "mul", "div"))
    if name in ("exp", "exp2") or (of_exponential and kept and here[0] + here[-1]):
        exponentials.update(node.outputs)
    exponent = _power(program, node)
    if name == "rsqrt" or exponent < 0:
        return "divisor"
    even = name in ("abs", "square") or (name == "integer_pow" and not exponent % 2)
    if name in _BOUNDED or (even and reached == ["signal"]):
        return "activation"  # how large something is, whichever way it points: |cos| in a B-cos net
    if name == "div" and not here[0]:
        return "gate" if of_exponential else "divisor"
    if name == "div":
        return here[0] if not here[1] or here[0] in ("activation", "divisor") else "signal"
    if name == "mul" and len(reached) == 2 and "divisor" in reached:
        return _weakest(reached)
    if name == "sub" and here[1] == "gate" and not here[0]:
        return "gate"
    if node.kind == "add" and reached == ["activation"]:  # and a number, as in 1 + erf
        return "activation"
    if name in REARRANGING or name in _SAME or even or name in ("mul", "select_n") or exponent > 0:
        return reached[0] if len(set(reached)) == 1 else "signal"
    return "signal"


def _of_sigmoids(here: list[str]) -> bool:
    return {r for r in here if r} == {"sigmoid"}


def _from_one(node: Node) -> bool:
    one = node.operands[0]
    return node.equation.primitive.name == "sub" and isinstance(one, Scalar) and one.value == 1


def _power(program: Program, node: Node) -> float:
    """The constant exponent of a power; 0 where there is none."""
    name = node.equation.primitive.name
    if name == "integer_pow":
        return node.equation.params["y"]
    exponent = node.operands[1] if name == "pow" else None
    known = program.constants
    value = exponent.value if isinstance(exponent, Scalar) else known.get(exponent)  # type: ignore
    return (
        float(value)
        if isinstance(value, (float, np.generic, np.ndarray)) and np.ndim(value) == 0
        else 0.0
    )
