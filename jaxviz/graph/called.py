"""JAX's own functions that keep a derivative of theirs, told by what they call."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


def is_hypot(equation: Any) -> bool:
    """Whether it is `jnp.hypot`, where that is one equation."""
    return _calls(equation, jnp.hypot, "sqrt")


def is_logaddexp(equation: Any) -> bool:
    """Whether it is `jnp.logaddexp`."""
    return _calls(equation, jnp.logaddexp, "log1p")


def searched(equation: Any) -> str | None:
    """On which side `jnp.searchsorted` looks, if it is that."""
    if equation.params.get("name") != SEARCH or len(equation.invars) != 2:
        return None
    body = equation.params["jaxpr"]
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
    if len(avals[0].shape) != 1:
        return None
    for side in ("left", "right"):
        for method in ("scan", "compare_all"):
            search = functools.partial(jnp.searchsorted, side=side, method=method)
            (call,) = jax.make_jaxpr(search)(*avals).jaxpr.eqns
            if str(call.params["jaxpr"]) == str(body):
                return side
    return None


SEARCH = "searchsorted"


def _calls(equation: Any, function: Callable, step: str) -> bool:
    body = equation.params.get("call_jaxpr")
    if body is None or len(equation.invars) != 2 or len({a.dtype for a in body.in_avals}) != 1:
        return False
    if all(inner.primitive.name != step for inner in body.jaxpr.eqns):
        return False
    traced = jax.make_jaxpr(function)(
        *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals)
    )
    return any(str(body) == text for text in _bodies(traced.jaxpr))


def _bodies(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        inner = equation.params.get("call_jaxpr")
        if inner is not None:
            yield str(inner)
        inner = equation.params.get("jaxpr")
        if inner is not None:
            yield from _bodies(inner.jaxpr)
