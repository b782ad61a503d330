"""What DeepLIFT's rules share: bundles of a value at both ends with a carried difference, secants.

A carried difference is linear in those of the input, and comes out as value - baseline. There is no
absolute tolerance here: a net scaled by 1e-8 or 1e8 gives shares scaled alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.rewrite import Op

# (value at the input, value at the baseline, carried difference or None where there is none)
Parts = tuple[jax.Array, jax.Array, jax.Array | None]


def is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def moves(op: Op, operand: Any) -> bool:
    """Whether the explained input reaches an operand."""
    return isinstance(operand, int) and op.depends[operand]


def still(array: jax.Array) -> Parts:
    """The bundle of a value that is the same at the input and the baseline."""
    dtype = array.dtype if is_float(array) else truth_dtype()
    return array, array, jnp.zeros(array.shape, dtype)


def truth_dtype() -> Any:
    """The type in which the difference of a truth value, as 0 or 1, or an index is carried."""
    return jnp.zeros(()).dtype


def column(inputs: Sequence[Any], k: int) -> list[jax.Array]:
    return [v[k] if isinstance(v, tuple) else v for v in inputs]


def along(evaluate: Callable, inputs: Sequence[Any], values: Sequence[jax.Array]):
    """The operation at `values`, and its derivative there along what the inputs carry."""
    moving = [i for i, v in enumerate(inputs) if isinstance(v, tuple) and v[2] is not None]

    def moved(*some):
        given = dict(zip(moving, some, strict=True))
        return evaluate(*(given.get(i, a) for i, a in enumerate(values)))

    if not moving:
        out = evaluate(*values)
        return out, jax.tree.map(jnp.zeros_like, out)
    return jax.jvp(moved, [values[i] for i in moving], [inputs[i][2] for i in moving])


def bundled(op: Op, here: Any, there: Any, carried: Any) -> Any:
    if len(op.outputs) == 1:
        return here, there, carried if is_float(op.outputs[0]) else None
    parts = zip(here, there, carried, op.outputs, strict=True)
    return [(a, b, c if is_float(o) else None) for a, b, c, o in parts]


def gap(a: jax.Array, b: jax.Array) -> jax.Array:
    """a - b, at least in single precision; nothing between equal infinities."""
    a, b = wide(a), wide(b)
    same = a == b
    return jnp.where(same, jnp.zeros_like(a), a - jnp.where(same, a, b))


def within(here: jax.Array, there: jax.Array, which: Any = True) -> list[jax.Array]:
    """Both ends, an infinity that is at one end alone (`which`) as a number beyond all others."""
    most = jnp.asarray(2.0**15 if here.dtype == jnp.float16 else 2.0**60, here.dtype)
    one = which & (jnp.isinf(here) != jnp.isinf(there))
    return [jnp.where(one, jnp.clip(a, -most, most), a) for a in (here, there)]


def listed(outputs: Any) -> list:
    """What an operation gives, as a list, be it one array or several."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def wide(a: jax.Array) -> jax.Array:
    return a.astype(jnp.float32) if is_float(a) and a.dtype.itemsize < 4 else a


def divided(change: jax.Array, by: jax.Array) -> jax.Array:
    """change / by, nothing where `by` is nothing."""
    none = by == 0
    return jnp.where(none, jnp.zeros_like(change), change / jnp.where(none, 1, by))


def finite(a: jax.Array) -> jax.Array:
    """Nothing in place of what is infinite or undefined."""
    return jnp.where(jnp.isfinite(a), a, jnp.zeros_like(a))


def secant(f: Callable, a: jax.Array, b: jax.Array, exact: bool = False, beyond: bool = False):
    """f(a), f(b), and (f(a) - f(b)) / (a - b) in the type of `a`: how much of a - b passes.

    Where `a` and `b` differ in a few digits only, the quotient of two rounded differences is noise,
    and the derivative half way is exact up to the square of their distance. It stands in where it
    makes the change that was seen up to what rounding f(a) and f(b) leaves open; nothing else is
    compared, so a kink or a step between the two, or a derivative that is not the function's own
    (straight-through), is never missed. Where a = b it is the derivative. Nothing passes where f is
    undefined at an end, or infinite, so that a mask behind it can hide that; unless `beyond`.

    Args:
      f: Of each number alone.
      a: Any shape.
      b: Shape of `a`.
      exact: Whether f rounds nothing (ReLU, clamps, |x|), so that the quotient is always exact.
      beyond: Whether an infinity at one end passes as a number beyond all others, as in `within`.
    """
    fa, fb = f(a), f(b)
    if beyond:
        fa, fb = within(fa, fb)
    level = a == b
    run = jnp.where(level, 1, wide(a) - wide(b))
    middle = a if exact else jnp.where(level, a, a / 2 + b / 2)
    slope = wide(jax.jvp(f, (middle,), (jnp.ones_like(middle),))[1])
    if exact:
        return fa, fb, jnp.where(level, slope, (wide(fa) - wide(fb)) / run).astype(a.dtype)
    change = gap(fa, fb)
    rounding = 4 * float(jnp.finfo(fa.dtype).eps) * (jnp.abs(wide(fa)) + jnp.abs(wide(fb)))
    near = level | (jnp.abs(change - slope * run) <= rounding)
    return fa, fb, finite(jnp.where(near, slope, change / run)).astype(a.dtype)


def shrink(size: jax.Array) -> jax.Array:
    """(1 - exp -|t|) / |t|, the logarithmic mean of a and b over the larger one; t = log a / b."""
    size = jnp.abs(size)
    none = size == 0
    return jnp.where(none, 1, -jnp.expm1(-size) / jnp.where(none, 1, size))


def halfway(inputs: Sequence[Any]) -> list[jax.Array]:
    return [v[0] / 2 + v[1] / 2 if isinstance(v, tuple) else v for v in inputs]
