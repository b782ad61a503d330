"""DeepLIFT through linear systems whose matrix moves, and Cholesky's factors.

From A x = b and A0 x0 = b0 follow A dx = db - dA x0 and A0 dx = db - dA x: the difference of the
solution, exactly, once with what was solved before and once with what is solved now. Each is linear
in what is carried; the rule is their mean, in which neither end comes first.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxviz.graph.equations import Literal, closed_function
from jaxviz.graph.lift import Unknown
from jaxviz.graph.rewrite import Op, refuse
from jaxviz.rules.differences import along, column, listed, moves, still

_SAME_DEGREE = frozenset(
    "add add_any broadcast_in_dim concatenate convert_element_type copy copy_p gather neg pad"
    " reduce_sum reshape rev select_n slice squeeze stop_gradient sub transpose".split()
)


def system(op: Op, otherwise: Callable) -> Callable:
    """`jax.lax.custom_linear_solve`, and so `jnp.linalg.solve` and `inv`."""
    lengths = op.options["const_lengths"]
    count, first = lengths[0], sum(lengths)
    if not any(moves(op, o) for o in op.operands[:first]):
        return otherwise(op)
    matrix, sides = op.operands[:count], op.operands[first:]
    body = op.options["jaxprs"].matvec
    apart = set(op.operands[:first]).isdisjoint(o for o in sides if isinstance(o, int))
    given = [moves(op, o) for o in matrix] + [False] * len(sides)
    if not apart or len(op.outputs) != len(sides) or not _is_linear(body.jaxpr, given):
        refuse(op)
    times = closed_function(body)

    def replaced(*inputs):
        for o in (*matrix, *sides):
            if isinstance(o, int) and isinstance(inputs[o], tuple):
                if isinstance(inputs[o][2], Unknown):
                    refuse(inputs[o][2].op)
        values = [column(inputs, k) for k in (0, 1)]
        ends = [listed(op.evaluate(*v)) for v in values]
        of = lambda o: inputs[o] if isinstance(o, int) else jnp.asarray(o.value)
        bundles = [of(o) for o in matrix]
        carried = []
        for k, before in enumerate(reversed(ends)):
            change = along(lambda *a, x=before: times(*a, *x), bundles, column(bundles, 0))[1]
            moved = list(values[k])
            for o, part, end in zip(sides, change, before, strict=True):
                side = of(o)
                d = side[2] if isinstance(side, tuple) else jnp.zeros_like(end)
                moved[o] = d - part  # type: ignore[call-overload]
            carried.append(listed(op.evaluate(*moved)))
        halves = [a / 2 + b / 2 for a, b in zip(*carried, strict=True)]
        outputs = list(zip(*ends, halves, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    return replaced


def triangular(op: Op, otherwise: Callable) -> Callable:
    """A system of a triangular matrix."""
    matrix, side = op.operands
    if not moves(op, matrix):
        return otherwise(op)
    if matrix == side:
        refuse(op)
    options = op.options

    def times(a, x):
        """The system's matrix, of which one triangle is read, by a solution."""
        triangle = jnp.tril if options["lower"] else jnp.triu
        a = triangle(a, (-1 if options["lower"] else 1) if options["unit_diagonal"] else 0)
        a = jnp.conj(a) if options["conjugate_a"] else a
        a = jnp.swapaxes(a, -1, -2) if options["transpose_a"] else a
        left, right = (a, x) if options["left_side"] else (x, a)
        return jnp.matmul(left, right, precision="highest")

    def replaced(*inputs):
        bundle = lambda v: v if isinstance(v, tuple) else still(v)
        places: Any = matrix, side
        (a, a0, da), (_, _, db) = (cast(Any, bundle(inputs[o])) for o in places)
        x, x0 = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        solve = lambda a, b: op.evaluate(*(a if i == matrix else b for i in range(2)))
        carried = solve(a, db - times(da, x0)) / 2 + solve(a0, db - times(da, x)) / 2
        return x, x0, carried

    return replaced


def cholesky(op: Op) -> Callable:
    """L of L L^T = A: the change of L solves S dL^T + dL S^T = dA, with S half way between both."""
    if jnp.issubdtype(op.inputs[0].dtype, jnp.complexfloating):
        refuse(op)

    def replaced(bundle):
        a, a0, da = bundle
        one, other = op.evaluate(a), op.evaluate(a0)
        half = jnp.tril(one / 2 + other / 2)
        solve = lambda b, left: jax.lax.linalg.triangular_solve(
            half, b, left_side=left, lower=True, transpose_a=not left
        )
        inner = jnp.tril(solve(solve(da, False), True))
        twice = 1 + jnp.eye(a.shape[-1], dtype=a.dtype)
        inner /= jnp.broadcast_to(jnp.expand_dims(twice, range(a.ndim - 2)), a.shape)
        return one, other, jnp.matmul(half, inner, precision="highest")

    return replaced


def factors(op: Op) -> Callable:
    """What is known at both ends, and has no difference that a rule here would give."""

    def replaced(*inputs):
        ends = [listed(op.evaluate(*column(inputs, k))) for k in (0, 1)]
        return [(a, b, Unknown(op)) for a, b in zip(*ends, strict=True)]

    return replaced


def _is_linear(jaxpr: Any, moving: Sequence[bool]) -> bool:
    """Whether what a body makes is of first degree in those of its inputs that move."""
    degrees = {v: int(m) for v, m in zip(jaxpr.invars, moving, strict=True)}
    of = lambda atom: 0 if isinstance(atom, Literal) else degrees.get(atom, 0)
    for equation in jaxpr.eqns:
        name, read = equation.primitive.name, [of(a) for a in equation.invars]
        inner = equation.params.get("jaxpr") if name in ("jit", "pjit") else None
        if inner is not None:
            if not _is_linear(inner.jaxpr, [bool(d) for d in read]):
                return False
            degree = max(read, default=0)
        elif name in ("mul", "dot_general"):
            degree = sum(read)
        elif name == "div":
            degree = read[0] + 2 * read[1]
        elif name in _SAME_DEGREE:
            degree = max(read, default=0)
        else:
            degree = 2 * max(read, default=0)
        if degree > 1:
            return False
        degrees.update((v, degree) for v in equation.outvars)
    return True
