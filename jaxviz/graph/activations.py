"""The activation functions that have a name, and which of them a function is."""

import functools
import math
from collections.abc import Callable

from jaxviz.graph.pieces import Function, Operand, X, at, do, same


def _sigmoid(x: Operand) -> Operand:
    return do("logistic", x)


def _elu(x: Operand) -> Operand:
    return do("select_n", do("gt", x, 0.0), do("expm1", x), x)


def _clip(x: Operand, low: float, high: float) -> Operand:
    return do("clamp", low, x, high)


def _softplus(x: Operand) -> Operand:
    return do("log1p", do("exp", x))


def _half(x: Operand, factor: Operand) -> Operand:
    return do("mul", do("mul", 0.5, x), do("add", 1.0, factor))


def _gelu(x: Operand) -> Operand:
    inside = do("add", x, do("mul", 0.044715, do("integer_pow", x, y=3)))
    return _half(x, do("tanh", do("mul", math.sqrt(2 / math.pi), inside)))


def _hard_sigmoid(x: Operand) -> Operand:
    return do("div", _clip(do("add", x, 3.0), 0.0, 6.0), 6.0)


# Those whose constants are exact in every dtype. `celu` is `elu` at its default.
_PLAIN: dict[str, Callable[[Operand], Operand]] = {
    "relu": lambda x: do("max", x, 0.0),
    "relu6": lambda x: _clip(x, 0.0, 6.0),
    "elu": _elu,
    "sigmoid": _sigmoid,
    "tanh": lambda x: do("tanh", x),
    "silu": lambda x: do("mul", x, _sigmoid(x)),
    "softplus": _softplus,
    "log_sigmoid": lambda x: do("neg", _softplus(do("neg", x))),
    "soft_sign": lambda x: do("div", x, do("add", 1.0, do("abs", x))),
    "hard_tanh": lambda x: _clip(x, -1.0, 1.0),
    "squareplus": lambda x: do(
        "mul", 0.5, do("add", x, do("sqrt", do("add", do("square", x), 4.0)))
    ),
    "mish": lambda x: do("mul", x, do("tanh", _softplus(x))),
}
# Those with constants that a dtype rounds.
_ROUNDED: dict[str, Callable[[Operand], Operand]] = {
    "selu": lambda x: do(
        "mul",
        1.0507009873554805,
        do("select_n", do("gt", x, 0.0), do("mul", 1.6732632423543772, do("expm1", x)), x),
    ),
    "gelu": _gelu,
    "gelu_exact": lambda x: _half(x, do("erf", do("mul", math.sqrt(0.5), x))),
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda x: do("mul", x, _hard_sigmoid(x)),
}
# Those with constants of their own: `leaky_relu` any slope > 0 other than 1 below zero,
# `clipped_relu` any ceiling but 6, `hard_sigmoid` any line from 0 to 1 that begins below zero,
# `celu` any alpha > 0 but 1, where it is `elu`.
_FAMILIES = ("leaky_relu", "clipped_relu", "celu")

NAMED = frozenset((*_PLAIN, *_ROUNDED, *_FAMILIES))
_SAMPLES = (-2.3, 0.37, 4.1)  # they only spare proofs that must fail


@functools.cache
def _forms() -> dict[str, tuple[Function, tuple[float, ...]]]:
    forms = {kind: formula(X) for kind, formula in {**_PLAIN, **_ROUNDED}.items()}
    return {
        kind: (form, tuple(at(form, s) for s in _SAMPLES))
        for kind, form in forms.items()
        if isinstance(form, Function)
    }


def named(f: Operand, rounding: float) -> str | None:
    """The activation that a function is, for all real numbers; None if it has no name.

    Args:
      f: The function.
      rounding: The spacing of the dtype's numbers at 1. Constants that no dtype holds exactly, as
        GELU's, are told within it; all others must be as they are.
    """
    if not isinstance(f, Function) or f.held or f.boolean:
        return None
    values = [at(f, s) for s in _SAMPLES]
    for kind, (form, samples) in _forms().items():
        near = (abs(v - s) <= 0.03 * (abs(s) + 0.01) for v, s in zip(values, samples, strict=True))
        if all(near) and same(f, form, rounding if kind in _ROUNDED else 0.0):
            return kind
    return _family(f)


def _family(f: Function) -> str | None:
    if len(f.breaks) == 1 and (slope := -at(f, -1.0)) > 0:
        form = do("select_n", do("gt", X, 0.0), do("mul", slope, X), X)
        return "leaky_relu" if same(f, form) else _celu(f)
    if len(f.breaks) == 2 and f.breaks[1] > 0:
        low, high = f.breaks
        if low < 0:
            line = do("div", do("sub", X, low), high - low)
            return "hard_sigmoid" if same(f, _clip(line, 0.0, 1.0)) else None
        return "clipped_relu" if same(f, _clip(X, 0.0, high)) else None
    return None


def _celu(f: Function) -> str | None:
    """Linear above zero; below, alpha (exp(x / alpha) - 1), which tends to -alpha."""
    try:
        alpha = -at(f, -700.0)
        below = do("mul", alpha, do("expm1", do("div", X, alpha)))
        return "celu" if same(f, do("select_n", do("gt", X, 0.0), below, X)) else None
    except ArithmeticError:  # it tends to no number
        return None
