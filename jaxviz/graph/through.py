"""Equations, and the jaxprs inside them, as functions of one number; and their derivatives.

A `custom_jvp` may say anything of its derivative. Only where that is proved to be the derivative of
its values is it the function that its values are.
"""

import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.graph.activations import named
from jaxviz.graph.algebra import Unproved
from jaxviz.graph.pieces import PRIMITIVES, Function, Operand, X, apply, has_slopes, rounding

INLINED = {"jit", "pjit", "closed_call", "core_call", "eval_jaxpr"}


def _is_literal(atom: Any) -> bool:
    return hasattr(atom, "val")


def activation(equation: Any, bind: Callable) -> str | None:
    """The kind of a `custom_jvp` that is an activation function, as some of `jax.nn` are."""
    if equation.primitive.name != "custom_jvp_call" or len(equation.outvars) != 1:
        return None
    moving = [not _is_literal(a) for a in equation.invars]
    if sum(moving) != 1:
        return None
    aval, out = equation.invars[moving.index(True)].aval, equation.outvars[0].aval
    floating = jnp.issubdtype(aval.dtype, jnp.floating)
    if out.shape != aval.shape or out.dtype != aval.dtype or not floating:
        return None
    operands = [X if m else _literal(a) for m, a in zip(moving, equation.invars, strict=True)]
    numbers = tuple(None if m else o for m, o in zip(moving, operands, strict=True))
    known, key = _known(equation), (_rule(equation), str(aval), numbers)
    if key not in known:
        try:
            known[key] = named(through(equation, operands, bind), rounding(out.dtype))
        except Unproved:
            known[key] = None
    return known[key]


def _known(equation: Any) -> dict:
    """What was found of a `custom_jvp` that only calls one `jit`, whose body is kept by JAX."""
    body = equation.params["call_jaxpr"].jaxpr
    if _rule(equation) is None or len(body.eqns) != 1:
        return {}
    (call,) = body.eqns
    whole = list(call.invars) == list(body.invars) and list(call.outvars) == list(body.outvars)
    if call.primitive.name not in INLINED or not whole or "jaxpr" not in call.params:
        return {}
    return _KNOWN.setdefault(call.params["jaxpr"], {})


_KNOWN: weakref.WeakKeyDictionary[Any, dict] = weakref.WeakKeyDictionary()
_LARGEST_FUNCTION = 40  # equations
# What a derivative's rule says, by the rule: it is traced once for all calls on arrays like these.
_SLOPES: weakref.WeakKeyDictionary[Any, dict] = weakref.WeakKeyDictionary()


def _literal(atom: Any) -> float:
    number = np.asarray(atom.val, atom.aval.dtype)
    if number.ndim or not (
        number.dtype.kind in "iub" or jnp.issubdtype(number.dtype, jnp.floating)
    ):
        return float("nan")
    return float(number)


def through(
    equation: Any, operands: Sequence[Operand], bind: Callable, values_only: bool = False
) -> Operand:
    """What an equation makes of functions of one number and of constants.

    `bind` is `(equation, values) -> outputs`, of the interpreter.

    Raises:
      Unproved: It cannot be said, or the derivative is not that of the values (which does not
        matter if `values_only`).
    """
    name = equation.primitive.name
    if name in INLINED or name == "custom_jvp_call":
        inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        inner = getattr(inner, "jaxpr", inner)
        if name == "custom_jvp_call" and not values_only:
            _check_derivative(equation, inner, operands, bind)
        return _walked(inner, operands, bind, values_only or name == "custom_jvp_call")
    if len(equation.outvars) != 1 or name not in PRIMITIVES:
        raise Unproved
    return apply(name, equation.params, operands, equation.outvars[0].aval.dtype)


def _walked(jaxpr: Any, operands: Sequence[Operand], bind: Callable, values_only: bool) -> Operand:
    """The one output of a jaxpr; what cannot be said matters only where it is needed."""
    if len(jaxpr.eqns) > _LARGEST_FUNCTION or len(jaxpr.outvars) != 1:
        raise Unproved
    env: dict[Any, Operand] = dict(zip(jaxpr.invars, operands, strict=True))
    # How the axes of a value lie, where `jax.vmap` has turned them: numbers meet at one place.
    turned: dict[Any, tuple[int, ...]] = {}

    def read(atom):
        if _is_literal(atom):
            return _literal(atom)
        if atom not in env:  # not proved, or a constant array
            raise Unproved
        return env[atom]

    for equation in jaxpr.eqns:
        out, straight = (
            equation.outvars[0],
            tuple(range(getattr(equation.outvars[0].aval, "ndim", 0))),
        )
        try:
            given = [read(a) for a in equation.invars]
            ways = {
                turned.get(a, straight)
                for a, o in zip(equation.invars, given, strict=True)
                if isinstance(o, Function)
            }
            if equation.primitive.name == "transpose":
                made, order = given[0], equation.params["permutation"]
                ways = {tuple(way[a] for a in order) for way in ways}
            else:
                made = through(equation, given, bind, values_only)
        except Unproved:
            continue
        if len(ways) > 1:
            continue
        env[out], turned[out] = made, next(iter(ways), straight)
    out = jaxpr.outvars[0]
    if not _is_literal(out) and turned.get(out, ()) != tuple(range(len(turned.get(out, ())))):
        raise Unproved
    return read(out)


def _check_derivative(
    equation: Any, body: Any, operands: Sequence[Operand], bind: Callable
) -> None:
    """Raises `Unproved` unless a `custom_jvp` was given the derivative of its values."""
    moving = [i for i, o in enumerate(operands) if isinstance(o, Function)]
    if len(moving) != 1 or _is_literal(equation.invars[moving[0]]):
        raise Unproved
    x = equation.invars[moving[0]]
    operands = [X if i == moving[0] else o for i, o in enumerate(operands)]
    rule = _rule(equation)
    known = {} if rule is None else _SLOPES.setdefault(rule, {})
    key = tuple(
        (str(a.aval), o) for a, o in zip(equation.invars, operands, strict=True) if o is not X
    )
    key = (moving[0], str(x.aval), key)
    if key not in known:
        known[key] = _slope(equation, x, operands, bind)
    values = _walked(body, operands, bind, True)
    if known[key] is None or not has_slopes(known[key], values, rounding(x.aval.dtype)):
        raise Unproved


def _slope(equation: Any, x: Any, operands: Sequence[Operand], bind: Callable) -> Operand | None:
    """What a `custom_jvp` says its derivative is."""
    reads = list(dict.fromkeys(a for a in equation.invars if not _is_literal(a)))

    def along(*values):
        given = dict(zip(reads, values, strict=True))
        one = jnp.ones(x.aval.shape, x.aval.dtype)
        moved = lambda value: bind(equation, [{**given, x: value}[v] for v in reads])[0]
        return jax.jvp(moved, (given[x],), (one,))[1]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in reads]
    try:
        closed = jax.make_jaxpr(along)(*shapes)
    except (
        Exception
    ):  # the user's own rule: what it raises is heard where a derivative is asked for
        return None
    pairs = zip(equation.invars, operands, strict=True)
    given = {a: o for a, o in pairs if not _is_literal(a)}
    try:
        return _walked(closed.jaxpr, [given[v] for v in reads], bind, True)
    except Unproved:
        return None


def _rule(equation: Any) -> Any:
    """The function that was given as a `custom_jvp`'s derivative; None if it cannot be seen."""
    found = equation.params.get("jvp_jaxpr_fun")
    for name in ("f", "fn", "jvp"):
        function = getattr(found, "f", found)
        if name != "f":
            found = _cell(function, name)
    steps = getattr(found, "transforms", ())
    plain = len(steps) == 1 and getattr(steps[0][0], "__name__", "") == "_flatten_jvp"
    rule = getattr(found, "f", None)
    return rule if plain and isinstance(rule, types.FunctionType) else None


def _cell(function: Any, name: str) -> Any:
    """A value that a function closes over."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    if name not in names:
        return None
    try:
        return function.__closure__[names.index(name)].cell_contents
    except ValueError:  # not filled in yet
        return None
