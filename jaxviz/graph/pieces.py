"""Functions of one real number in a form that says what they are, for all numbers.

A `Function` is a sorted list of breaks; between them a quotient of sums of monomials
(`jaxviz.graph.algebra`) in x, exponentials of polynomials, and logarithms, square roots and error
functions of such; at each break a number. Arithmetic, maxima, comparisons and selections lead from
one to the next exactly, over the real numbers and up to the rounding of constants. Where that is
not so - the sign of a difference is not known, a root may be taken of something negative, nobody
wrote the operation down - `Unproved` is raised, and the operation has no name.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxviz.graph.algebra import (
    NONE,
    Sum,
    Unproved,
    constant,
    inverse,
    key,
    number,
    plus,
    power,
    product,
    scaled,
    symbol,
)
from jaxviz.graph.ratios import (
    EXACT,
    ONE,
    Ratio,
    add,
    at_number,
    equal,
    exp,
    ratio,
    signs,
    slope,
    sum_signs,
    times,
    value_of,
)


class Function(NamedTuple):
    """A function of one number, piece by piece.

    Attributes:
      breaks: Where one piece ends and the next begins, ascending.
      pieces: One more than breaks, each on the open interval between its breaks.
      points: The values at the breaks; NaN where there is none.
      boolean: Whether it answers yes or no, as 1 or 0.
      held: Whether a `stop_gradient` took its derivative away.
    """

    breaks: tuple[float, ...]
    pieces: tuple[Ratio, ...]
    points: tuple[float, ...]
    boolean: bool = False
    held: bool = False


Operand = Function | float

X = Function((), ((symbol("x"), ONE),), ())


def same(a: Operand, b: Operand, rounding: float = EXACT) -> bool:
    """Whether two functions are equal everywhere, constants up to `rounding`."""
    a, b, rounding = lift(a), lift(b), max(rounding, EXACT)
    close = lambda p, q: p == q or abs(p - q) <= max(rounding, EXACT) * max(abs(p), abs(q))
    return (
        len(a.breaks) == len(b.breaks)
        and all(map(close, a.breaks, b.breaks))
        and all(
            abs(p - q) <= max(rounding, 1e-9) * (1 + abs(p))
            for p, q in zip(a.points, b.points, strict=True)
        )
        and all(equal(p, q, rounding) for p, q in zip(a.pieces, b.pieces, strict=True))
    )


def has_slopes(f: Operand, of: Operand, rounding: float = EXACT) -> bool:
    """Whether f is the derivative of another function wherever that has one."""
    f, of = lift(f), lift(of)
    every = sorted({*f.breaks, *of.breaks})
    f, of = _broken(f, every), _broken(of, every)
    return all(equal(p, slope(q), rounding) for p, q in zip(f.pieces, of.pieces, strict=True))


def at(f: Function, x: float) -> float:
    """The value at a number."""
    if x in f.breaks:
        return f.points[f.breaks.index(x)]
    return at_number(f.pieces[sum(b < x for b in f.breaks)], x)


def apply(name: str, params: Mapping[str, Any], operands: Sequence[Operand], dtype: Any) -> Operand:
    """What an operation makes of functions and numbers.

    Args:
      name: The primitive.
      params: Its parameters.
      operands: Functions of the one number, and constants.
      dtype: Of the result.

    Raises:
      Unproved: It cannot be said.
    """
    if name in _SAME or (name in _PLACES and not isinstance(operands[0], Function)):
        return operands[0]
    if name == "convert_element_type":
        return _converted(operands[0], dtype)
    rule = _RULES.get(name)
    if rule is None:
        raise Unproved
    try:
        out = rule(params, *operands)
    except ArithmeticError:  # constants too large for floats
        raise Unproved from None
    if isinstance(out, Function):
        held = any(isinstance(o, Function) and o.held for o in operands)
        out = _merged(out._replace(held=(held or out.held) and not out.boolean))
        if not out.breaks and not out.boolean and (c := value_of(out.pieces[0])) is not None:
            return c
    return out


def lift(a: Operand) -> Function:
    """A number as the function that is this number everywhere."""
    return a if isinstance(a, Function) else Function((), ((number(a), ONE),), ())


def _broken(f: Function, breaks: Sequence[float]) -> Function:
    """The same function with more breaks."""
    if tuple(breaks) == f.breaks:
        return f
    pieces = [f.pieces[sum(b <= low for b in f.breaks)] for low in (-math.inf, *breaks)]
    return f._replace(
        breaks=tuple(breaks), pieces=tuple(pieces), points=tuple(at(f, b) for b in breaks)
    )


def _aligned(*operands: Operand, extra: Iterable[float] = ()) -> tuple[Function, ...]:
    functions = [lift(a) for a in operands]
    breaks = sorted({*extra, *(b for f in functions for b in f.breaks)})
    if len(breaks) > 16:
        raise Unproved
    return tuple(_broken(f, breaks) for f in functions)


def _each(piece: Callable, point: Callable, *operands: Operand, **flags: bool) -> Function:
    """A function made piece by piece and point by point."""
    functions = _aligned(*operands)
    ends = (-math.inf, *functions[0].breaks, math.inf)
    pieces = [
        piece(*parts, low, high)
        for *parts, low, high in zip(*(f.pieces for f in functions), ends, ends[1:], strict=False)
    ]
    points = [_safe(point, *values) for values in zip(*(f.points for f in functions), strict=True)]
    return Function(functions[0].breaks, tuple(pieces), tuple(points), **flags)


def _safe(function: Callable, *values: float) -> float:
    if any(math.isnan(v) for v in values):
        return math.nan
    try:
        return float(function(*values))
    except (ArithmeticError, ValueError):
        return math.nan


def _merged(f: Function) -> Function:
    """Without breaks where nothing changes."""
    for i, b in enumerate(f.breaks):
        value = at_number(f.pieces[i], b)
        if abs(value - f.points[i]) <= 1e-12 * (1 + abs(value)) and equal(
            f.pieces[i], f.pieces[i + 1], EXACT
        ):
            without = lambda parts, i=i: parts[:i] + parts[i + 1 :]
            return _merged(
                f._replace(
                    breaks=without(f.breaks), pieces=without(f.pieces), points=without(f.points)
                )
            )
    return f


def _compared(a: Operand, b: Operand) -> tuple[Function, Function, list[int]]:
    """Two functions on common pieces on which their difference has one sign."""
    f, g = _aligned(a, b)
    ends = (-math.inf, *f.breaks, math.inf)
    found = [
        part
        for p, q, low, high in zip(f.pieces, g.pieces, ends, ends[1:], strict=False)
        for part in signs(add(p, q, -1.0), low, high)
    ]
    f, g = _aligned(f, g, extra=[low for low, *_ in found if math.isfinite(low)])
    return f, g, [sign for *_, sign in found]


def _comparison(answers: tuple[int, int, int]) -> Callable:
    """A rule that answers by the sign of the difference: below, equal, above."""

    def rule(params, a, b):
        del params
        for one, two, flip in ((a, b, 1), (b, a, -1)):
            if isinstance(two, float) and math.isinf(two) and not _infinite(one):
                return _boolean([answers[1 - flip * (1 if two > 0 else -1)]])
        f, g, order = _compared(a, b)
        values = [float(answers[1 + s]) for s in order]
        points = [
            math.nan if math.isnan(p - q) else float(answers[1 + (p > q) - (p < q)])
            for p, q in zip(f.points, g.points, strict=True)
        ]
        return _boolean(values, f.breaks, points)

    return rule


def _infinite(a: Operand) -> bool:
    return isinstance(a, float) and not math.isfinite(a)


def _boolean(values: Sequence[float], breaks: Sequence[float] = (), points=()) -> Function:
    pieces = tuple((number(v), ONE) for v in values)
    return Function(tuple(breaks), pieces, tuple(points), boolean=True)


def _extreme(sign: int) -> Callable:
    """The larger (1) or smaller (-1) of two."""

    def rule(params, a, b):
        del params
        for one, two in ((a, b), (b, a)):
            if isinstance(two, float) and two == -sign * math.inf and not _infinite(one):
                return one
        f, g, order = _compared(a, b)
        pieces = [
            p if s * sign >= 0 else q for p, q, s in zip(f.pieces, g.pieces, order, strict=True)
        ]
        points = [
            _safe(max if sign > 0 else min, p, q) for p, q in zip(f.points, g.points, strict=True)
        ]
        return Function(f.breaks, tuple(pieces), tuple(points))

    return rule


def _select(params, which, *cases):
    if not isinstance(which, Function):
        return cases[_index(which, cases)]
    functions = _aligned(which, *(0.0 if _infinite(c) else c for c in cases))
    pieces = []
    for parts in zip(*(f.pieces for f in functions), strict=True):
        chosen = _index(value_of(parts[0]), cases)
        if _infinite(cases[chosen]):
            raise Unproved
        pieces.append(parts[1 + chosen])
    points = [
        math.nan if math.isnan(v) else others[_index(v, cases)]
        for v, *others in zip(*(f.points for f in functions), strict=True)
    ]
    boolean = all(isinstance(c, Function) and c.boolean for c in cases)
    held = any(isinstance(c, Function) and c.held for c in cases)
    return Function(functions[0].breaks, tuple(pieces), tuple(points), boolean, held)


def _index(value: float | None, cases: Sequence) -> int:
    if value is None or value not in range(len(cases)):
        raise Unproved
    return int(value)


def _converted(a: Operand, dtype: Any) -> Operand:
    from_boolean = isinstance(a, Function) and a.boolean
    if dtype.kind == "b":
        if not from_boolean:
            raise Unproved
        return a
    whole = from_boolean or (isinstance(a, float) and a.is_integer())
    if not whole and not (rounding(dtype) <= 2**-7):
        raise Unproved  # to whole numbers, or to too few digits to be the same number
    return a._replace(boolean=False) if isinstance(a, Function) else a


def rounding(dtype: Any) -> float:
    """The spacing of a floating dtype's numbers at 1; infinite for others."""
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else math.inf


def _polynomial(a: Ratio) -> Sum:
    if a[1] != ONE or any(e or not {s for s, _ in p} <= {"x"} for e, p in a[0]):
        raise Unproved
    return a[0]


def _log(a: Ratio, low: float, high: float) -> Ratio:
    out: Ratio = ({}, ONE)
    for part, sign in zip(a, (1.0, -1.0), strict=True):
        if {s for *_, s in sum_signs(part, low, high)} != {1}:
            raise Unproved
        # The least exponent comes out, so that log(1 + e^x) and x + log(1 + e^-x) are one.
        inner = sorted({p for exponent, _ in part for p, _ in exponent}, key=repr)
        first = min(part, key=lambda m: [dict(m[0]).get(p, 0.0) for p in inner])
        exponent = {(NONE, p): c for p, c in first[0]}
        outside = plus(exponent, number(math.log(part[first]) if part[first] > 0 else math.nan))
        rest = product(part, inverse({(first[0], NONE): part[first]}))
        if rest != ONE:
            outside = plus(outside, symbol(("log", key(rest))))
        out = add(out, (outside, ONE), sign)
    return out


def _sqrt(a: Ratio, low: float, high: float) -> Ratio:
    if a[1] != ONE or {s for *_, s in sum_signs(a[0], low, high)} != {1}:
        raise Unproved
    c = constant(a[0])
    return (number(math.sqrt(c)) if c is not None else symbol(("sqrt", key(a[0]))), ONE)


def _erf(a: Ratio, low: float = 0.0, high: float = 0.0) -> Ratio:
    del low, high
    inside = _polynomial(a)
    if not inside:
        return {}, ONE
    highest = max(inside, key=lambda m: dict(m[1]).get("x", 0))
    sign = 1.0 if inside[highest] > 0 else -1.0
    return scaled(symbol(("erf", key(scaled(inside, sign)))), sign), ONE


def _unary(piece: Callable, point: Callable) -> Callable:
    return lambda params, a: _each(piece, point, a)


def _binary(piece: Callable, point: Callable) -> Callable:
    return lambda params, a, b: _each(piece, point, a, b)


def _divided(a: Ratio, b: Ratio, low: float, high: float) -> Ratio:
    if len(signs(b, low, high)) != 1 or not b[0]:
        raise Unproved
    return times(a, ratio(b[1], b[0]))


def _by(formula: Callable[..., Operand]) -> Callable:
    """A rule made of other operations."""
    return lambda params, *operands: formula(*operands)


def do(name: str, *operands: Operand, **params: Any) -> Operand:
    """An operation on functions and numbers, as formulas write it."""
    out = _RULES[name](params, *operands)
    return _merged(out) if isinstance(out, Function) else out


def _integer_power(params, a):
    n = params["y"]
    if n >= 0:
        return _each(lambda p, *_: (power(p[0], n), power(p[1], n)), lambda v: v**n, a)
    return do("div", 1.0, _integer_power({"y": -n}, a))


def _power(params, a, b):
    if not isinstance(b, float) or not b.is_integer():
        if isinstance(b, float) and b == 0.5:
            return do("sqrt", a)
        raise Unproved
    return _integer_power({"y": int(b)}, a)


def _logical(function: Callable) -> Callable:
    def rule(params, *operands):
        if not all(isinstance(a, Function) and a.boolean for a in operands):
            raise Unproved

        def piece(*parts):
            return number(float(function(*(bool(value_of(p)) for p in parts[:-2])))), ONE

        return _each(piece, function, *operands, boolean=True)

    return rule


def _held(params, a):
    moves = isinstance(a, Function) and any(value_of(p) is None for p in a.pieces)
    return a._replace(held=True) if moves else a


_SAME = frozenset({"copy", "copy_p", "name"})
_PLACES = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose"})
_RULES: dict[str, Callable] = {
    "add": _binary(lambda p, q, *_: add(p, q), lambda a, b: a + b),
    "sub": _binary(lambda p, q, *_: add(p, q, -1.0), lambda a, b: a - b),
    "mul": _binary(lambda p, q, *_: times(p, q), lambda a, b: a * b),
    "div": _binary(_divided, lambda a, b: a / b),
    "neg": _unary(lambda p, *_: (scaled(p[0], -1.0), p[1]), lambda a: -a),
    "exp": _unary(exp, math.exp),
    "log": _unary(_log, math.log),
    "sqrt": _unary(_sqrt, math.sqrt),
    "erf": _unary(_erf, math.erf),
    "max": _extreme(1),
    "min": _extreme(-1),
    "gt": _comparison((0, 0, 1)),
    "ge": _comparison((0, 1, 1)),
    "lt": _comparison((1, 0, 0)),
    "le": _comparison((1, 1, 0)),
    "eq": _comparison((0, 1, 0)),
    "ne": _comparison((1, 0, 1)),
    "and": _logical(lambda a, b: a and b),
    "or": _logical(lambda a, b: a or b),
    "xor": _logical(lambda a, b: a != b),
    "not": _logical(lambda a: not a),
    "select_n": _select,
    "integer_pow": _integer_power,
    "pow": _power,
    "stop_gradient": _held,
    "is_finite": lambda params, a: _boolean([1.0 if not _infinite(a) else 0.0]),
    "add_any": _by(lambda a, b: do("add", a, b)),
    "square": _by(lambda a: do("mul", a, a)),
    "abs": _by(lambda a: do("max", a, do("neg", a))),
    "sign": _by(lambda a: do("sub", do("gt", a, 0.0), do("lt", a, 0.0))),
    "clamp": _by(lambda low, a, high: do("min", do("max", a, low), high)),
    "exp2": _by(lambda a: do("exp", do("mul", a, math.log(2)))),
    "expm1": _by(lambda a: do("sub", do("exp", a), 1.0)),
    "log1p": _by(lambda a: do("log", do("add", a, 1.0))),
    "erfc": _by(lambda a: do("sub", 1.0, do("erf", a))),
    "rsqrt": _by(lambda a: do("div", 1.0, do("sqrt", a))),
    "logistic": _by(lambda a: do("div", 1.0, do("add", 1.0, do("exp", do("neg", a))))),
    "tanh": _by(lambda a: do("sub", do("mul", 2.0, do("logistic", do("mul", 2.0, a))), 1.0)),
    "sinh": _by(lambda a: do("mul", 0.5, do("sub", do("exp", a), do("exp", do("neg", a))))),
    "cosh": _by(lambda a: do("mul", 0.5, do("add", do("exp", a), do("exp", do("neg", a))))),
}
POINTWISE = frozenset(_RULES) | _SAME | {"convert_element_type"}
PRIMITIVES = POINTWISE | _PLACES
