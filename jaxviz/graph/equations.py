"""One equation of a jaxpr: what it reads and keeps, and itself as a function.

An equation is re-bound through a jaxpr of that one equation. Its parameters are never taken apart,
so an operation that nobody wrote a rule for works in every version of JAX.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_context
from jax.extend import core as jex

Literal, DropVar = jex.Literal, jex.DropVar


def literal_value(literal: Any) -> np.ndarray:
    """A literal's number, in its own type."""
    return np.asarray(literal.val, literal.aval.dtype)


def inner_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """What an equation wraps, open, and the values of its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def variables(atoms: Iterable[Any]) -> list[Any]:
    """Those of an equation's operands that are no literals, each once."""
    return list(dict.fromkeys(a for a in atoms if not isinstance(a, jex.Literal)))


def read_results(equation: Any) -> list[Any]:
    """The variables that a node has for outputs."""
    return [equation.outvars[i] for i in kept_positions(equation)]


def kept_positions(equation: Any) -> list[int]:
    """Which of the equation's results a node has for outputs: those that are read."""
    return [i for i, v in enumerate(equation.outvars) if not isinstance(v, jex.DropVar)]


def bytes_of(aval: Any) -> int:
    """Bytes of an array; about those of keys; none of what is no array."""
    if not hasattr(aval, "shape"):
        return 0
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)


def made(jaxpr: Any) -> int:
    """Bytes of all that the equations of a jaxpr make; a scan's are those of all its turns."""
    total = 0
    for equation in inner_jaxpr(jaxpr)[0].eqns:
        total += sum(bytes_of(v.aval) for v in equation.outvars)
        inner = [p for v in equation.params.values() for p in (v if isinstance(v, tuple) else (v,))]
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += turns * sum(made(j) for j in inner if hasattr(inner_jaxpr(j)[0], "eqns"))
    return total


def scan_arity(equation: Any) -> tuple[int, int, int]:
    """How many inputs of a scan are constants, carried, scanned: read off the shapes."""
    body = getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])

    def sliced(outer, inner):
        return sum(o.aval.ndim != i.aval.ndim for o, i in zip(outer, inner, strict=True))

    scanned = sliced(equation.invars, body.invars)
    carried = len(body.outvars) - sliced(equation.outvars, body.outvars)
    return len(body.invars) - scanned - carried, carried, scanned


def operands(equation: Any, env: dict[Any, Any]) -> list[Any]:
    """What the equation reads, in order, where `env` has the values of variables."""
    return [literal_value(a) if isinstance(a, jex.Literal) else env[a] for a in equation.invars]


def called(equation: Any) -> Callable:
    """The function that a `jit` equation calls, of its operands in order."""
    return jex.jaxpr_as_fun(equation.params["jaxpr"])


def closed_function(closed: Any) -> Callable:
    """A closed jaxpr as a function of flat values, bound as it stands."""
    return jex.jaxpr_as_fun(closed)


class Section(NamedTuple):
    """Some equations as a function of flat values: which it reads, and which it makes."""

    function: Callable
    reads: list[Any]
    makes: list[Any]


def section(equations: Sequence[Any], makes: Sequence[Any]) -> Section:
    """Equations of a jaxpr, in order, as a function that makes the given variables."""
    own = {v for e in equations for v in e.outvars}
    atoms = [a for e in equations for a in e.invars] + list(makes)
    reads = variables([a for a in atoms if isinstance(a, jex.Literal) or a not in own])
    effects = set().union(*(e.effects for e in equations))
    names = jex.DebugInfo("jaxviz", "bind", ("",) * len(reads), ("",) * len(makes))
    one = jex.Jaxpr((), reads, makes, equations, effects, names)
    closed = jex.ClosedJaxpr(one, ())  # pyright: ignore[reportPrivateImportUsage]
    return Section(jex.jaxpr_as_fun(closed), reads, list(makes))


def bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    """The equation applied to other values of the same shapes."""
    return Bound(equation)(*values)


class Bound:
    """An equation as a function of the values it reads; made into one when it is first called."""

    __slots__ = ("equation", "function")

    def __init__(self, equation: Any):
        self.equation, self.function = equation, None

    def __call__(self, *values: Any) -> list[Any]:
        if self.function is None:
            self.function = section([self.equation], read_results(self.equation)).function
        return self.function(*values)


def bind_resized(equation: Any, values: Sequence[Any]) -> Any:
    """The equation of a function of each place alone, applied to values of other sizes."""
    env = dict(zip(variables(equation.invars), values, strict=True))
    _run_resized(equation, env)
    return env[read_results(equation)[0]]


def _run_resized(equation: Any, env: dict) -> None:
    """Runs one equation; what it wraps is taken apart, for its body is of the old sizes."""
    name = equation.primitive.name
    wrapped = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    if wrapped is not None:
        inner, consts = inner_jaxpr(wrapped)
        given = operands(equation, env)
        inside = dict(zip(inner.constvars, consts, strict=True))
        inside.update(zip(inner.invars, given, strict=True))
        for one in inner.eqns:
            _run_resized(one, inside)
        value = lambda a: literal_value(a) if isinstance(a, jex.Literal) else inside[a]
        env.update(zip(equation.outvars, map(value, inner.outvars), strict=True))
        return
    values = [env[v] for v in variables(equation.invars)]
    if name == "broadcast_in_dim" and jnp.ndim(values[0]) == 0:  # one number stays one
        env[equation.outvars[0]] = values[0]
        return
    shape = jnp.broadcast_shapes(*map(jnp.shape, values)) if values else ()
    spread = [jnp.broadcast_to(a, shape) if jnp.ndim(a) == 0 else a for a in values]
    env.update(zip(read_results(equation), bind(equation, spread), strict=True))


_state = functools.partial(jex.get_opaque_trace_state, convention="nnx")  # Flax's word, unused
with eval_context():
    _OUTSIDE = _state()


def tracing() -> bool:
    """Whether what is computed here goes into a program that JAX traces."""
    # The first is nearly always so, and quicker by far than to make an array.
    return _state() != _OUTSIDE and isinstance(jnp.zeros(()), Tracer)
