"""DeepLIFT's rules: how a difference from a baseline is carried through each operation.

Every value is a bundle: what it is at the input, what at the baseline, and a difference d that is
carried along linearly, so that d = value - baseline at the input comes out as the same at the
output. The gradient of that linear map is DeepLIFT's multipliers, and input minus baseline times
multipliers adds up to the score gained, exactly, whatever the net is made of:

- linear operations carry d by their own derivative;
- functions of one number (an activation, or a group such as GELU) by their difference quotient;
- maxima by the difference quotient of the place that explains the change: the winner at the input
  where the maximum grew, at the baseline where it fell;
- products of two activations, and anything quadratic, by the derivative half way, which gives each
  factor its Shapley value; a quotient is a product with the reciprocal;
- softmax by logarithmic means, the difference quotients of the exponential.

Rows are as in any `RuleSet`; a function that depends on the input in no row is refused.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.rewrite import Op, Rule, RuleSet, refuse
from jaxviz.rules.fast import fast
from jaxviz.rules.kernels_pool import max_pool_difference

# (value at the input, value at the baseline, carried difference or None where there is none)
Parts = tuple[jax.Array, jax.Array, jax.Array | None]


def still(array: jax.Array) -> Parts:
    """The bundle of a value that is the same at the input and the baseline."""
    moves = jnp.issubdtype(array.dtype, jnp.inexact)
    return array, array, jnp.zeros_like(array) if moves else None


def linear(op: Op) -> Callable:
    """Carries a difference by the operation's own derivative."""
    if any(d and not _is_float(a) for d, a in zip(op.depends, op.inputs, strict=True)) and any(
        _is_float(o) for o in op.outputs
    ):
        raise NotImplementedError(
            f"deep_lift: the operation {op.kind!r} at {op.source} chooses by a number that depends "
            "on the input, so it has no difference to share. Explain a part of the net without it "
            "(`jaxviz.split`)."
        )
    evaluate = fast.find(op)[1] or op.evaluate

    def replaced(*inputs):
        there = evaluate(*_column(op, inputs, 1))
        here, carried = _along(evaluate, op, inputs, _column(op, inputs, 0))
        return _bundle(op, here, there, carried)

    return replaced


def difference_quotient(op: Op) -> Callable:
    """Rescale: d -> d (f(x) - f(x0)) / (x - x0), the derivative where that is 0 / 0."""
    at = _only_moving(op)

    def replaced(*inputs):
        x, x0, d = inputs[at]
        here, there = (op.evaluate(*_column(op, inputs, k)) for k in (0, 1))
        return here, there, d * _quotient(op, inputs, x, x0, here, there)

    return replaced


def maximum(op: Op) -> Callable:
    """Carries the difference of the place that explains how a maximum (or minimum) changed."""
    if len(op.inputs) == 1 or not all(op.depends):
        if op.primitive in ("max", "min"):
            return difference_quotient(op)
    falls = op.primitive in ("min", "reduce_min", "reduce_window_min", "cummin", "scatter-min")
    quick = fast.find(op)[1]
    evaluate = quick or op.evaluate
    if op.primitive == "reduce_window_max" and isinstance(quick, functools.partial):
        difference = functools.partial(max_pool_difference, **quick.keywords)
        return lambda bundle: difference(*bundle)

    def replaced(*inputs):
        values, baselines = _column(op, inputs, 0), _column(op, inputs, 1)

        def ratio(v):  # what is carried, as a share of the difference it stands for
            if not isinstance(v, tuple):
                return v
            gap = v[0] - v[1]
            none = gap == 0
            share = jnp.where(none, jnp.zeros_like(gap), v[2]) / jnp.where(none, 1, gap)
            return v[0], v[1], share

        shares = [ratio(v) for v in inputs]
        here, winner_here = _along(evaluate, op, shares, values)
        there, winner_there = _along(evaluate, op, shares, baselines)
        change = here - there
        grew = (change < 0) if falls else (change >= 0)
        return here, there, change * jnp.where(grew, winner_here, winner_there)

    return replaced


def midpoint(op: Op) -> Callable:
    """Carries a difference by the derivative half way: exact for whatever is quadratic."""

    def replaced(*inputs):
        here, there = (op.evaluate(*_column(op, inputs, k)) for k in (0, 1))
        half = [(v[0] + v[1]) / 2 if isinstance(v, tuple) else v for v in inputs]
        _, carried = _along(op.evaluate, op, inputs, half)
        return here, there, carried

    return replaced


def quotient(op: Op) -> Callable:
    """a / b as the product of a and 1 / b."""
    top, bottom = op.operands
    if not isinstance(bottom, int) or not op.depends[bottom]:
        return linear(op)
    if not isinstance(top, int) or not op.depends[top]:
        return difference_quotient(op)

    def replaced(*inputs):
        (a, a0, da), (b, b0, db) = inputs[top], inputs[bottom]
        half_inverse = (1 / b + 1 / b0) / 2
        return a / b, a0 / b0, da * half_inverse - (a + a0) / 2 * db / (b * b0)

    return replaced


def softmax(op: Op) -> Callable:
    """Softmax or its logarithm, by logarithmic means.

    With L = log sum exp x, dL = sum_j w_j dx_j, where w_j is the logarithmic mean of exp x_j at
    both ends over that of exp L; then d log s = d - dL, and ds is the logarithmic mean of s times
    that. The w_j are at least 0 and sum to at most 1, so nothing blows up however far the ends are.
    """
    sums = [member for member, _ in op.members if member.primitive == "reduce_sum"]
    axes = tuple(sums[-1].options["axes"])
    at = _only_moving(op)

    def replaced(*inputs):
        x, x0, d = inputs[at]
        top, top0 = (jax.nn.logsumexp(a, axes, keepdims=True) for a in (x, x0))
        log_w = jnp.maximum(x, x0) - jnp.maximum(top, top0)
        w = jnp.exp(log_w) * _shrink(_gap(x, x0)) / _shrink(top - top0)
        carried = d - (w * d).sum(axes, keepdims=True)
        here, there = (op.evaluate(*_column(op, inputs, k)) for k in (0, 1))
        if op.kind == "log_softmax":
            return here, there, carried
        mean = jnp.maximum(here, there) * _shrink(_gap(x, x0) - (top - top0))
        return here, there, mean * carried

    return replaced


def through(op: Op) -> Callable:
    """`stop_gradient` stops gradients; the difference is there all the same."""
    return lambda *inputs: next(v for v in inputs if isinstance(v, tuple))


def product(op: Op) -> Callable:
    moving = sum(isinstance(o, int) and op.depends[o] for o in op.operands)
    return midpoint(op) if moving > 1 else linear(op)


# One place for both of DeepLIFT's rules to know what kind of operation they have.
POINTWISE = (
    "activation abs acos acosh asin asinh atan atanh cbrt clamp cos cosh erf erfc exp exp2 expm1"
    " integer_pow log log1p logistic pow rsqrt sin sinh sqrt square tan tanh erf_inv lgamma digamma"
    " sign floor ceil round"
).split()
MAXIMA = "max_pool reduce_max reduce_min reduce_window_min max min scatter-max scatter-min".split()
MOVES = (
    "broadcast_in_dim concatenate convert_element_type copy copy_p device_put dynamic_slice"
    " dynamic_update_slice expand_dims flatten gather name optimization_barrier pad"
    " reduce_precision reshape rev scatter select_n slice split squeeze transpose bias"
).split()
SUMS = (
    "add add_any sub sum mean sum_pool avg_pool cumsum scatter_add scatter-sub reduce_sum neg real"
    " reduce_window_sum"
).split()
PRODUCTS = "mul matmul conv_product scatter-mul".split()
LAYERS = ["conv", "dense"]
_GROUPS = ["batch_norm", "affine", "layer_norm", "rms_norm"]


def _taken_apart(op: Op) -> None:
    """Groups whose members have rules of their own."""


def _rows(rule: Rule, names: Sequence[str]) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


rescale = RuleSet(
    "deep_lift",
    {
        **_rows(linear, [*MOVES, *SUMS, *LAYERS]),
        **_rows(difference_quotient, POINTWISE),
        **_rows(maximum, MAXIMA),
        **_rows(product, PRODUCTS),
        **_rows(softmax, ["softmax", "log_softmax"]),
        **_rows(_taken_apart, [*_GROUPS, "avg_pool", "mean"]),
        "div": quotient,
        "stop_gradient": through,
    },
    default=refuse,
    named=False,
)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def _only_moving(op: Op) -> int:
    moving = [i for i, d in enumerate(op.depends) if d]
    if len(moving) != 1 or op.inputs[moving[0]].shape != op.outputs[0].shape:
        refuse(op)
    return moving[0]


def _column(op: Op, inputs: Sequence[Any], k: int) -> list[jax.Array]:
    return [v[k] if isinstance(v, tuple) else v for v in inputs]


def _along(evaluate: Callable, op: Op, inputs: Sequence[Any], values: Sequence[jax.Array]):
    """The operation at `values`, and its derivative there along what the inputs carry."""
    moving = [i for i, v in enumerate(inputs) if isinstance(v, tuple) and v[2] is not None]

    def moved(*some):
        given = dict(zip(moving, some, strict=True))
        return evaluate(*(given.get(i, a) for i, a in enumerate(values)))

    if not moving:
        out = evaluate(*values)
        return out, jax.tree.map(jnp.zeros_like, out)
    return jax.jvp(moved, [values[i] for i in moving], [inputs[i][2] for i in moving])


def _bundle(op: Op, here: Any, there: Any, carried: Any) -> Any:
    if len(op.outputs) == 1:
        return here, there, carried if _is_float(op.outputs[0]) else None
    parts = zip(here, there, carried, op.outputs, strict=True)
    return [(a, b, c if _is_float(o) else None) for a, b, c, o in parts]


def _near(x: jax.Array) -> float:
    """Below this a difference is lost in rounding and the derivative serves."""
    return 1e-10 if x.dtype == jnp.float64 else 1e-6


def _quotient(op, inputs, x, x0, here, there):
    """(f(x) - f(x0)) / (x - x0), at least in single precision."""
    wide = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
    gap = x.astype(wide) - x0.astype(wide)
    near = jnp.abs(gap) <= _near(gap)
    ones = [
        (a, a, jnp.ones_like(a)) if isinstance(v, tuple) else v
        for v, a in zip(inputs, _column(op, inputs, 0), strict=True)
    ]
    _, slope = _along(op.evaluate, op, ones, _column(op, inputs, 0))
    change = here.astype(wide) - there.astype(wide)
    ratio = change / jnp.where(near, 1, gap)
    return jnp.where(near, slope.astype(wide), ratio).astype(x.dtype)


def _gap(a: jax.Array, b: jax.Array) -> jax.Array:
    """a - b; nothing between equal infinities."""
    return jnp.where(a == b, jnp.zeros_like(a), a - b)


def _shrink(gap: jax.Array) -> jax.Array:
    """(1 - exp -|gap|) / |gap|: the logarithmic mean of two numbers over the larger one."""
    size = jnp.abs(gap)
    near = size <= _near(gap)
    return jnp.where(near, 1, -jnp.expm1(-size) / jnp.where(near, 1, size))
