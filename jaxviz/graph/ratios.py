"""Quotients of sums of monomials in x: arithmetic, equality, slopes and signs."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from jaxviz.graph.algebra import (
    NONE,
    UNIT,
    Sum,
    Unproved,
    constant,
    inverse,
    number,
    plus,
    power,
    product,
    scaled,
    symbol,
)

Ratio = tuple[Sum, Sum]
ONE: Sum = {UNIT: 1.0}
EXACT = 1e-12


def ratio(top: Sum, bottom: Sum = ONE) -> Ratio:
    if len(bottom) == 1 and bottom != ONE:
        return product(top, inverse(bottom)), ONE
    return top, bottom


def value_of(a: Ratio) -> float | None:
    return constant(a[0]) if a[1] == ONE else None


def add(a: Ratio, b: Ratio, times: float = 1.0) -> Ratio:
    if a[1] == b[1]:
        return ratio(plus(a[0], b[0], times), a[1])
    return ratio(plus(product(a[0], b[1]), product(b[0], a[1]), times), product(a[1], b[1]))


def times(a: Ratio, b: Ratio) -> Ratio:
    return ratio(product(a[0], b[0]), product(a[1], b[1]))


def equal(a: Ratio, b: Ratio, rounding: float) -> bool:
    """Whether two quotients are one: a's top times b's bottom is b's top times a's bottom."""
    if a == b:
        return True
    try:
        left, right = product(a[0], b[1]), product(b[0], a[1])
    except Unproved:  # too many terms to tell
        return False
    terms: list[list[Any]] = []  # monomial, sum, sum of sizes
    for side, sign in ((left, 1), (right, -1)):
        for monomial, c in side.items():
            for term in terms:
                if _alike(term[0], monomial, rounding):
                    term[1] += sign * c
                    term[2] += abs(c)
                    break
            else:
                terms.append([monomial, sign * c, abs(c)])
    return all(abs(total) <= rounding * size for _, total, size in terms)


def _alike(a: tuple, b: tuple, rounding: float) -> bool:
    if a == b:
        return True
    exponent, powers = dict(a[0]), dict(a[1])
    exponent2, powers2 = dict(b[0]), dict(b[1])
    if exponent.keys() != exponent2.keys() or len(powers) != len(powers2):
        return False
    for monomial, c in exponent.items():
        if abs(c - exponent2[monomial]) > 2 * rounding * abs(c):
            return False
    for name, n in powers.items():
        if powers2.get(name) == n:
            continue
        others = (s for s, m in powers2.items() if m == n and isinstance(s, tuple))
        if not isinstance(name, tuple) or not any(
            s[0] == name[0] and equal((dict(name[1]), ONE), (dict(s[1]), ONE), rounding)
            for s in others
        ):
            return False
    return True


def at_number(a: Ratio, x: float) -> float:
    try:
        return _sum_value(a[0], x) / _sum_value(a[1], x)
    except (ArithmeticError, ValueError):
        return math.nan


def _sum_value(a: Sum, x: float) -> float:
    return math.fsum(
        c
        * math.exp(math.fsum(d * _powers_value(p, x) for p, d in exponent))
        * _powers_value(powers, x)
        for (exponent, powers), c in a.items()
    )


def _powers_value(powers: Iterable, x: float) -> float:
    return math.prod(_symbol_value(name, x) ** n for name, n in powers)


def _symbol_value(name: Any, x: float) -> float:
    if name == "x":
        return x
    return {"log": math.log, "sqrt": math.sqrt, "erf": math.erf}[name[0]](
        _sum_value(dict(name[1]), x)
    )


def slope(a: Ratio) -> Ratio:
    top, bottom = a
    first = times(_sum_slope(top), (ONE, bottom) if bottom != ONE else (ONE, ONE))
    if bottom == ONE:
        return first
    second = times(_sum_slope(bottom), (top, power(bottom, 2)))
    return add(first, second, -1.0)


def _sum_slope(a: Sum) -> Ratio:
    out: Ratio = ({}, ONE)
    for (exponent, powers), c in a.items():
        whole: Sum = {(exponent, powers): c}
        inner: Sum = {(NONE, p): d for p, d in exponent}
        if inner:
            out = add(out, times((whole, ONE), _sum_slope(inner)))
        for name, n in powers:
            rest = scaled(product(whole, symbol(name, -1)), float(n))
            out = add(out, times((rest, ONE), _symbol_slope(name)))
    return out


def _symbol_slope(name: Any) -> Ratio:
    if name == "x":
        return ONE, ONE
    inside = dict(name[1])
    slope = _sum_slope(inside)
    if name[0] == "log":
        return times(slope, ratio(ONE, inside))
    if name[0] == "sqrt":
        return times(slope, (scaled(symbol(name, -1), 0.5), ONE))
    bell = exp((scaled(product(inside, inside), -1.0), ONE))
    return times(times(slope, bell), (number(2 / math.sqrt(math.pi)), ONE))


def signs(a: Ratio, low: float, high: float) -> list[tuple[float, float, int]]:
    """The open intervals between `low` and `high` on which a has one sign, with it."""
    bottom = {s for *_, s in sum_signs(a[1], low, high)}
    if bottom not in ({1}, {-1}):
        raise Unproved
    sign = bottom.pop()
    return [(p, q, s * sign) for p, q, s in sum_signs(a[0], low, high)]


def sum_signs(a: Sum, low: float, high: float) -> list[tuple[float, float, int]]:
    if not a:
        return [(low, high, 0)]
    found = {_term_sign(monomial, c, low, high) for monomial, c in a.items()}
    if found in ({1}, {-1}):
        return [(low, high, found.pop() or 0)]
    inner = sorted(r for r in _roots(a) if low < r < high)
    ends = [low, *inner, high]
    pairs = list(itertools.pairwise(ends))
    values = [at_number((a, ONE), _between(p, q)) for p, q in pairs]
    if not all(math.isfinite(v) and v for v in values):
        raise Unproved
    return [(p, q, 1 if v > 0 else -1) for (p, q), v in zip(pairs, values, strict=True)]


def _term_sign(monomial: tuple, c: float, low: float, high: float) -> int | None:
    sign = 1 if c > 0 else -1
    for name, n in monomial[1]:
        if n % 2 == 0 or (isinstance(name, tuple) and name[0] == "sqrt"):
            continue
        if name != "x" or low < 0 < high:
            return None
        sign = sign if low >= 0 else -sign
    return sign


def _between(low: float, high: float) -> float:
    if math.isinf(low) and math.isinf(high):
        return 0.0
    if math.isinf(low):
        return high - 1 - abs(high) / 2
    if math.isinf(high):
        return low + 1 + abs(low) / 2
    return (low + high) / 2


def _roots(a: Sum) -> list[float]:
    """All real zeros of a polynomial of degree up to 2, or of two exponentials of lines."""
    if all(not exponent and {s for s, _ in powers} <= {"x"} for exponent, powers in a):
        degrees = {dict(powers).get("x", 0): c for (_, powers), c in a.items()}
        if not degrees.keys() <= {0, 1, 2}:
            raise Unproved
        c, b, a_ = (degrees.get(d, 0.0) for d in (0, 1, 2))
        if not a_:
            return [-c / b] if b else []
        square = b * b - 4 * a_ * c
        if square < 0:
            return []
        return sorted({(-b + s * math.sqrt(square)) / (2 * a_) for s in (-1, 1)})
    if len(a) != 2 or any(powers for _, powers in a):
        raise Unproved
    ((first, _), c), ((second, _), d) = a.items()
    line = dict(plus({(NONE, p): v for p, v in first}, {(NONE, p): v for p, v in second}, -1.0))
    slope = line.pop((NONE, frozenset({("x", 1)})), 0.0)
    if line or not slope:
        raise Unproved
    return [math.log(-d / c) / slope] if c * d < 0 else []


def exp(a: Ratio, low: float = 0.0, high: float = 0.0) -> Ratio:
    del low, high
    if a[1] != ONE:
        raise Unproved
    out: Ratio = (ONE, ONE)
    exponent, factor = {}, 0.0
    for (inner, powers), c in a[0].items():
        names = dict(powers)
        ((name, n),) = names.items() if len(names) == 1 else (("x", 0),)
        if inner:
            raise Unproved
        if not powers:
            factor = c
        elif isinstance(name, tuple) and name[0] == "log" and n == 1 and c in (-2, -1, 1, 2):
            part = power(dict(name[1]), abs(int(c)))
            out = times(out, (part, ONE) if c > 0 else ratio(ONE, part))
        elif names.keys() <= {"x"} and all(n > 0 for n in names.values()):
            exponent[powers] = c
        else:
            raise Unproved
    if abs(factor) > 300:
        raise Unproved
    return times(out, ({(frozenset(exponent.items()), NONE): math.exp(factor)}, ONE))
