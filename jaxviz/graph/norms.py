"""Softmax and normalisations, proved from the equations along some axes of one array.

A value is a sum of monomials (`jaxviz.graph.algebra`) in x, the array's number at each place, and
in what is the same along the reduced axes: means of monomials in x, exponentials, roots, logarithms
and reciprocals of these, and params. Each value knows which of its axes is which of the array's, so
that a mean never meets a row that is not its own. What nobody wrote down is `Unproved`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxviz.graph.algebra import (
    NONE,
    UNIT,
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
from jaxviz.graph.pieces import rounding

# An axis is a tuple of factors (name, size): parts of the array's axes, or None where nothing
# changes along it. Axes of length 1 are empty.
Axes = tuple[tuple[tuple[int | None, int], ...], ...]


class Rows(NamedTuple):
    """A value: its sum of monomials, and which factors of the array its axes are."""

    sum: Sum
    axes: Axes


Operand = Rows | float


def array(shape: Sequence[int], others: Sequence[Sequence[int]]) -> Rows:
    """The array itself, with axes as fine as its reshapes (`others`) ask for."""
    ends = {
        math.prod(shape[i:])
        for s in (shape, *others)
        for i, shape in [(k, s) for k in range(len(s) + 1)]
    }
    steps = sorted(ends)
    if any(b % a for a, b in itertools.pairwise(steps) if a):
        raise Unproved
    axes = []
    for i, size in enumerate(shape):
        low, high = math.prod(shape[i + 1 :]), math.prod(shape[i:])
        inner = [s for s in steps if low <= s <= high]
        parts = [(b, b // a) for a, b in itertools.pairwise(inner) if a]
        axes.append(tuple(reversed(parts)) if size > 1 else ())
    return Rows(symbol("x"), tuple(axes))


def param(name: int, shape: Sequence[int]) -> Rows:
    """A value that the array does not reach."""
    return Rows(symbol(("param", name)), tuple(((None, n),) if n > 1 else () for n in shape))


def apply(
    name: str,
    params: Mapping[str, Any],
    operands: Sequence[Operand],
    shape: Sequence[int],
    dtype: Any,
) -> Operand:
    """What an operation makes of rows and constants, of the given shape and dtype.

    Raises:
      Unproved: It cannot be said.
    """
    rule = _RULES.get(name)
    if name == "select_n" and not isinstance(operands[0], Rows) and operands[0] in (0, 1):
        return operands[1 + int(operands[0])]
    if name in _SAME:
        if name == "convert_element_type" and not rounding(dtype) <= 2**-7:
            raise Unproved
        return operands[0]
    if name in _PLACES:
        if not isinstance(operands[0], Rows):
            return operands[0]
        return _PLACES[name](params, operands[0], tuple(shape))
    moving = [o for o in operands if isinstance(o, Rows)]
    if name == "reduce_sum" or name in _PICKS:
        (a,) = operands
        if not isinstance(a, Rows):
            raise Unproved
        return _reduced(a, params["axes"], None if name == "reduce_sum" else name)
    axes = _together([o.axes for o in moving], shape)
    if rule is not None:
        try:
            return Rows(
                rule(params, *(o.sum if isinstance(o, Rows) else number(o) for o in operands)), axes
            )
        except (Unproved, ArithmeticError):
            pass
    if all(_still(o.sum) for o in moving) and name in _OPAQUE:
        made_of = tuple(key(o.sum) if isinstance(o, Rows) else o for o in operands)
        along = set().union(*(_rows(o.sum) for o in moving))
        if len(along) == 1 and not any(s[0] == "param" for o in moving for s in _atoms(o.sum)):
            return Rows(symbol(("opaque", along.pop(), name, made_of)), axes)
    raise Unproved


def kind(a: Operand) -> str | None:
    """What a value is of its array: softmax, log_softmax, layer_norm, rms_norm, or none of them."""
    if not isinstance(a, Rows) or len(_rows(a.sum)) > 1:
        return None
    terms = list(a.sum.items())
    x, ex = frozenset({("x", 1)}), frozenset({(frozenset({("x", 1)}), 1.0)})
    if len(terms) == 1 and terms[0][0][0] == ex and _near(terms[0][1], 1):
        ((name, n),) = terms[0][0][1] if len(terms[0][0][1]) == 1 else ((None, 0),)
        return "softmax" if n == -1 and _sum_of_exp(name) else None
    if len(terms) == 2 and _near(a.sum.get((NONE, x), 0.0), 1):
        ((_, powers), c) = next(t for t in terms if t[0] != (NONE, x))
        ((name, n),) = powers if len(powers) == 1 else ((None, 0),)
        logged = isinstance(name, tuple) and name[0] == "log" and n == 1 and _near(c, -1)
        return "log_softmax" if name and logged and _sum_of_exp(name[1]) else None
    if any(exponent for exponent, _ in a.sum):
        return None
    with_x = [(powers - x, c) for (_, powers), c in terms if ("x", 1) in powers]
    if len(with_x) != 1 or not _near(with_x[0][1], 1) or len(terms) > 2:
        return None
    ((rest, c),) = with_x
    scale = [(s, n) for s, n in rest if not (isinstance(s, tuple) and s[0] == "param" and n == 1)]
    if len(scale) != 1:
        return None
    spread = _spread(*scale[0])
    if len(terms) == 1:
        return "rms_norm" if spread == "square" else None
    ((_, powers), d) = next(t for t in terms if ("x", 1) not in t[0][1])
    mean = powers - rest
    if spread == "variance" and len(powers) == len(rest) + 1 and rest <= powers and _near(d, -c):
        ((name, n),) = mean
        return "layer_norm" if n == 1 and _moment(name) == 1 else None
    return None


def is_spread(a: Operand) -> bool:
    """Whether a value is a variance or a mean square, which no clamp at zero changes."""
    return isinstance(a, Rows) and _spread_of(a.sum) is not None


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)  # float32 counts, and their reciprocals


def _atoms(a: Sum) -> set:
    """All means, opaque rows and params that a value is made of, however deep."""
    found, todo = set(), [a]
    while todo:
        for exponent, powers in todo.pop():
            for name, _ in (*powers, *(part for inner, _ in exponent for part in inner)):
                if not isinstance(name, tuple):
                    continue
                if name[0] == "log":
                    todo.append(symbol(name[1]))
                elif name[0] in ("sqrt", "inverse"):
                    todo.append(dict(name[1]))
                else:
                    found.add(name)
    return found


def _rows(a: Sum) -> set:
    """Along which factors the means of a value were taken."""
    return {s[1] for s in _atoms(a) if s[0] in ("mean", "opaque")}


def _moment(name: Any) -> int:
    """k where a symbol is the mean of x to the k-th; 0 for others."""
    if not isinstance(name, tuple) or name[0] != "mean" or name[2]:
        return 0
    return dict(name[3]).get("x", 0)


def _sum_of_exp(name: Any) -> bool:
    return (
        isinstance(name, tuple)
        and name[0] == "mean"
        and name[2] == frozenset({(frozenset({("x", 1)}), 1.0)})
        and not name[3]
    )


def _spread(name: Any, n: int) -> str | None:
    """Of what a symbol to a power is the reciprocal deviation."""
    if not isinstance(name, tuple):
        return None
    inside = dict(name[1]) if name[0] in ("sqrt", "inverse") else {}
    if name[0] == "sqrt" and n == -1:
        return _spread_of(inside)
    if name[0] == "inverse" and n == 1:  # 1 / (deviation + epsilon)
        rest = {m: c for m, c in inside.items() if m != UNIT}
        if len(rest) == 1 and inside.get(UNIT, 0.0) >= 0:
            ((exponent, powers), c) = next(iter(rest.items()))
            if not exponent and len(powers) == 1 and c > 0:
                ((inner, m),) = powers
                if isinstance(inner, tuple) and inner[0] == "sqrt" and m == 1:
                    return _spread_of(dict(inner[1]))
    return None


def _spread_of(a: Sum) -> str | None:
    """Whether a sum is c > 0 times a variance or a mean square, plus a number >= 0."""
    rest = {m: c for m, c in a.items() if m != UNIT}
    if a.get(UNIT, 0.0) < 0 or any(exponent for exponent, _ in rest):
        return None
    squares = {powers: c for (_, powers), c in rest.items()}
    (second,) = [p for p in squares if len(p) == 1 and _moment(next(iter(p))[0]) == 2] or [None]
    if second is None or next(iter(second))[1] != 1 or squares[second] <= 0:
        return None
    if len(squares) == 1:
        return "square"
    name = next(iter(second))[0]
    first = frozenset({(("mean", name[1], NONE, frozenset({("x", 1)})), 2)})
    if len(squares) == 2 and _near(squares.get(first, 0.0), -squares[second]):
        return "variance"
    return None


def _still(a: Sum) -> bool:
    """Whether a value is the same along the reduced axes, as far as the array goes."""
    return not any(
        s == "x"
        for exponent, powers in a
        for part in (powers, *(p for p, _ in exponent))
        for s, _ in part
    )


def _reduced(a: Rows, axes: Sequence[int], picked: str | None) -> Rows:
    """A sum over axes; or what was `picked` of each row."""
    along = [f for i in axes for f in a.axes[i]]
    names = frozenset(f for f in along if f[0] is not None)
    left = tuple(axis for i, axis in enumerate(a.axes) if i not in axes)
    if picked is not None:
        if not names:
            raise Unproved
        if any(s[0] == "param" or s[1] != names for s in _atoms(a.sum)):
            raise Unproved
        return Rows(symbol(("opaque", names, picked, key(a.sum))), left)
    count = math.prod(n for _, n in along)
    out: Sum = {}
    for (exponent, powers), c in a.sum.items():
        inner = frozenset(t for t in exponent if ("x", 1) in t[0] or any(s == "x" for s, _ in t[0]))
        moving = frozenset(p for p in powers if p[0] == "x")
        if any(len(p) != 1 for p, _ in inner):
            raise Unproved
        rest = {(exponent - inner, powers - moving): c * count}
        if any(s[0] == "param" or s[1] != names for s in _atoms(rest)):
            raise Unproved
        if inner or moving:
            if not names:
                raise Unproved
            rest = product(rest, symbol(("mean", names, inner, moving)))
            if inner:  # of exponentials it is the sum
                rest = scaled(rest, 1 / math.prod(n for _, n in names))
        out = plus(out, rest)
    return Rows(out, left)


def _together(found: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """The axes of what is made of several values place by place."""
    out = []
    for i, size in enumerate(shape):
        parts = [axes[i] for axes in found if len(axes) == len(shape) and axes[i]]
        if len([1 for axes in found if len(axes) == len(shape)]) != len(found):
            raise Unproved
        named = {p for p in parts if any(name is not None for name, _ in p)}
        if not named:
            out.append(((None, size),) if size > 1 else ())
            continue
        finest = max(named, key=len)
        merged = list(finest)
        for p in parts:
            if len(p) == 1 and p[0][0] is None:
                continue
            if [n for _, n in p] != [n for _, n in finest]:
                raise Unproved
            for k, (name, n) in enumerate(p):
                if name is not None and merged[k][0] not in (None, name):
                    raise Unproved
                merged[k] = (name if name is not None else merged[k][0], n)
        out.append(tuple(merged))
    return tuple(out)


def _broadcast(params, a: Rows, shape) -> Rows:
    axes: list = [((None, n),) if n > 1 else () for n in shape]
    for i, to in enumerate(params["broadcast_dimensions"]):
        if a.axes[i]:
            axes[to] = a.axes[i]
    return Rows(a.sum, tuple(axes))


def _reshaped(params, a: Rows, shape) -> Rows:
    if params.get("dimensions") is not None:
        raise Unproved
    factors = [f for axis in a.axes for f in axis]
    axes = []
    for size in shape:
        axis, have = [], 1
        while have < size:
            if not factors:
                raise Unproved
            name, n = factors.pop(0)
            if have * n > size and name is None and size % have == 0 and n % (size // have) == 0:
                factors.insert(0, (None, n * have // size))
                n = size // have
            axis.append((name, n))
            have *= n
        if have != size:
            raise Unproved
        axes.append(tuple(axis))
    if factors or 0 in shape:
        raise Unproved
    return Rows(a.sum, tuple(axes))


def _squeezed(params, a: Rows, shape) -> Rows:
    return Rows(a.sum, tuple(x for i, x in enumerate(a.axes) if i not in params["dimensions"]))


def _expanded(params, a: Rows, shape) -> Rows:
    rest = iter(a.axes)
    new = {d % len(shape) for d in params["dimensions"]}
    return Rows(a.sum, tuple(() if i in new else next(rest) for i in range(len(shape))))


def _transposed(params, a: Rows, shape) -> Rows:
    return Rows(a.sum, tuple(a.axes[i] for i in params["permutation"]))


def _divided(params, a: Sum, b: Sum) -> Sum:
    del params
    return product(a, _inverse(b))


def _inverse(a: Sum) -> Sum:
    """1 / a of a product of deviations and sums of exponentials, or of one with a number added."""
    if not _still(a):
        raise Unproved
    if len(a) == 1:
        ((_, powers), c) = next(iter(a.items()))
        positive = all(
            _sum_of_exp(s) or (isinstance(s, tuple) and s[0] == "sqrt") for s, _ in powers
        )
        if positive and c:
            return inverse(a)
    if not a:
        raise Unproved
    return symbol(("inverse", key(a)))


def _size(params, a: Sum) -> Sum:
    """|a| of a sum of exponentials, maybe times such."""
    del params
    if len(a) != 1:
        raise Unproved
    ((_, powers), c) = next(iter(a.items()))
    if c < 0 or not all(_sum_of_exp(name) for name, _ in powers):
        raise Unproved
    return a


def _exp(params, a: Sum) -> Sum:
    del params
    exponent, factor = {}, number(1.0)
    for (inner, powers), c in a.items():
        names = dict(powers)
        ((name, n),) = names.items() if len(names) == 1 else ((None, 0),)
        if inner:
            raise Unproved
        if isinstance(name, tuple) and name[0] == "log" and n == 1 and c in (1, -1):
            factor = product(factor, symbol(name[1], int(c)))
        else:
            exponent[powers] = c
    return product(factor, {(frozenset(exponent.items()), NONE): 1.0})


def _log(params, a: Sum) -> Sum:
    del params
    if len(a) != 1:
        raise Unproved
    ((exponent, powers), c) = next(iter(a.items()))
    out = plus({(NONE, p): d for p, d in exponent}, number(math.log(c) if c > 0 else math.nan))
    for name, n in powers:
        if not _sum_of_exp(name):
            raise Unproved
        out = plus(out, scaled(symbol(("log", name)), float(n)))
    return out


def _sqrt(params, a: Sum) -> Sum:
    del params
    if _spread_of(a) is None:
        raise Unproved
    return symbol(("sqrt", key(a)))


def _power(params, a: Sum, b: Sum) -> Sum:
    n = constant(b)
    if n == 0.5:
        return _sqrt(params, a)
    if n == -0.5:
        return inverse(_sqrt(params, a))
    if n is None or n != int(n):
        raise Unproved
    return power(a, int(n))


def _extreme(sign: int):
    def rule(params, a: Sum, b: Sum) -> Sum:
        for one, two in ((a, b), (b, a)):
            c = constant(two)
            if c is not None and sign > 0 >= c and _spread_of(one) is not None:
                return one  # a variance is not below zero
        raise Unproved

    return rule


_SAME = frozenset({"copy", "copy_p", "name", "convert_element_type"})
_PICKS = frozenset({"reduce_max", "reduce_min"})
_OPAQUE = frozenset(
    {
        "max",
        "min",
        "stop_gradient",
        "select_n",
        "is_finite",
        "add",
        "sub",
        "mul",
        "ne",
        "eq",
        "gt",
        "lt",
    }
)
_PLACES = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "expand_dims": _expanded,
    "transpose": _transposed,
}
_RULES = {
    "add": lambda params, a, b: plus(a, b),
    "add_any": lambda params, a, b: plus(a, b),
    "sub": lambda params, a, b: plus(a, b, -1.0),
    "mul": lambda params, a, b: product(a, b),
    "div": _divided,
    "neg": lambda params, a: scaled(a, -1.0),
    "square": lambda params, a: product(a, a),
    "integer_pow": lambda params, a: (
        power(a, params["y"]) if params["y"] > 0 else power(_inverse(a), -params["y"])
    ),
    "pow": _power,
    "abs": _size,
    "exp": _exp,
    "expm1": lambda params, a: plus(_exp(params, a), number(1.0), -1.0),
    "log": _log,
    "log1p": lambda params, a: _log(params, plus(a, number(1.0))),
    "sqrt": _sqrt,
    "rsqrt": lambda params, a: inverse(_sqrt(params, a)),
    "max": _extreme(1),
    "min": _extreme(-1),
}
PRIMITIVES = frozenset(_RULES) | _SAME | _PICKS | _OPAQUE | frozenset(_PLACES) | {"reduce_sum"}
