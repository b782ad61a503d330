"""Polynomials over symbols, with exponentials: the arithmetic in which kinds are proved.

A sum is a dict from monomial to coefficient. A monomial is `(exponent, powers)`: e to the sum
`exponent`, times the product of symbols to integer `powers`. Both parts are frozensets, so that
equal monomials are equal however they came about. A symbol is any hashable object.

Coefficients are Python floats. A coefficient that cancels to within the rounding of the arithmetic
done here is gone; what else is left stays, however small.
"""

import math
from collections.abc import Hashable
from typing import Any

Sum = dict[tuple[frozenset, frozenset], float]

NONE: frozenset = frozenset()
UNIT = (NONE, NONE)  # the monomial 1
ROUNDING = 1e-13  # of sums of a few float64 numbers, relative to the largest
_MOST_TERMS = 64  # what has more is no function with a name


class Unproved(Exception):
    """Raised where nothing can be said; the proof ends there."""


def number(value: float) -> Sum:
    """A constant."""
    if not math.isfinite(value):
        raise Unproved
    return {UNIT: float(value)} if value else {}


def symbol(name: Hashable, power: int = 1) -> Sum:
    """A symbol to a power."""
    return {(NONE, frozenset({(name, power)})): 1.0}


def constant(a: Sum) -> float | None:
    """The number that a sum is, or None."""
    if not a:
        return 0.0
    return a[UNIT] if len(a) == 1 and UNIT in a else None


def plus(a: Sum, b: Sum, times: float = 1.0) -> Sum:
    """a + times b."""
    out = dict(a)
    for monomial, coefficient in b.items():
        before = out.get(monomial, 0.0)
        after = before + times * coefficient
        if not math.isfinite(after):
            raise Unproved
        if abs(after) <= ROUNDING * max(abs(before), abs(times * coefficient)):
            out.pop(monomial, None)
        else:
            out[monomial] = after
    if len(out) > _MOST_TERMS:
        raise Unproved
    return out


def scaled(a: Sum, factor: float) -> Sum:
    return plus({}, a, factor)


def product(a: Sum, b: Sum) -> Sum:
    if len(a) * len(b) > 4 * _MOST_TERMS:
        raise Unproved
    out: Sum = {}
    for (exponent, powers), c in a.items():
        for (exponent2, powers2), d in b.items():
            monomial = (_exponents(exponent, exponent2), _powers(powers, powers2))
            out = plus(out, {monomial: c * d})
    return out


def power(a: Sum, n: int) -> Sum:
    """A sum to a power; a negative one only of a single monomial."""
    if n < 0:
        return power(inverse(a), -n)
    if n > 8:
        raise Unproved
    out = number(1.0)
    for _ in range(n):
        out = product(out, a)
    return out


def inverse(a: Sum) -> Sum:
    """1 / a of a single monomial."""
    if len(a) != 1:
        raise Unproved
    ((exponent, powers), c) = next(iter(a.items()))
    back = frozenset((powers_, -d) for powers_, d in exponent)
    return {(back, frozenset((s, -n) for s, n in powers)): 1.0 / c}


def key(a: Sum) -> frozenset:
    """A sum as a symbol's name."""
    return frozenset(a.items())


def _powers(a: frozenset, b: frozenset) -> frozenset:
    if not a or not b:
        return a or b
    out: dict[Any, int] = dict(a)
    for name, n in b:
        out[name] = out.get(name, 0) + n
    return frozenset((name, n) for name, n in out.items() if n)


def _exponents(a: frozenset, b: frozenset) -> frozenset:
    if not a or not b:
        return a or b
    left = {(NONE, powers): c for powers, c in a}
    right = {(NONE, powers): c for powers, c in b}
    return frozenset((powers, c) for (_, powers), c in plus(left, right).items())
