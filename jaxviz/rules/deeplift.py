"""DeepLIFT's rules: how a difference from a baseline is carried through each operation.

Every value is a bundle: what it is at the input, what at the baseline, and a difference d that is
carried along linearly, so that d = value - baseline at the input comes out as the same at the
output. The gradient of that linear map is DeepLIFT's multipliers, and input minus baseline times
multipliers adds up to the score gained, exactly, whatever the net is made of:

- linear operations carry d by their own derivative;
- functions of one number (an activation, or a group such as GELU) by their difference quotient,
  of two numbers (a power) by the mean over which of them changes first;
- maxima, sorting and medians by the place that explains the change (`deeplift_order`);
- products of two activations, and anything quadratic, by the derivative half way, which gives each
  factor its Shapley value; a quotient y = a / b as the product y b = a; a number times its own
  logarithm as a function of that; products of more factors by the mean derivative on the straight
  way;
- softmax by logarithmic means, the difference quotients of the exponential;
- linear systems with their matrices by the equations that they solve (`deeplift_systems`);
- comparisons and choices by what crossed its threshold (`deeplift_choice`), winners and indices by
  what overtook what (`deeplift_integers`).

What is carried is the function's own difference: `stop_gradient`, and a derivative that
`custom_jvp` or `custom_vjp` puts in place of the function's own (straight-through, gradient
reversal), are not seen. All rules are relative: inputs of 1e-8 or 1e8 are as good as those of 1.
Rows are as in any `RuleSet`; a function that depends on the input in no row is refused.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxviz.graph import entropies, overflows, quotients
from jaxviz.graph.beyond import has_logarithm
from jaxviz.graph.rewrite import Op, Rule, RuleSet, refuse
from jaxviz.rules.deeplift_choice import (
    COMPARISONS,
    LOGIC,
    chosen,
    compared,
    converted,
    is_finite,
    logical,
    moved,
    no_difference,
)
from jaxviz.rules.deeplift_exponentials import in_part, in_rows, in_stretches, in_sums
from jaxviz.rules.deeplift_hypot import hypot
from jaxviz.rules.deeplift_integers import picked, placed
from jaxviz.rules.deeplift_null_class import less_softplus
from jaxviz.rules.deeplift_order import FALLS, extreme, log_sums, multiplied, ordered
from jaxviz.rules.deeplift_origins import combined
from jaxviz.rules.deeplift_softmax import softmax
from jaxviz.rules.deeplift_systems import cholesky, factors, system, triangular
from jaxviz.rules.differences import (
    along,
    bundled,
    column,
    divided,
    finite,
    gap,
    halfway,
    is_float,
    moves,
    secant,
    within,
)
from jaxviz.rules.fast import weighed
from jaxviz.rules.kernels_pool import max_pool_difference


def linear(op: Op) -> Callable:
    """Carries a difference by the operation's own derivative."""
    if not any(map(is_float, op.outputs)):
        return moved(op)
    if any(d and not is_float(a) for d, a in zip(op.depends, op.inputs, strict=True)):
        no_difference(op)
    evaluate = weighed().find(op)[1] or op.evaluate

    def replaced(*inputs):
        there = evaluate(*column(inputs, 1))
        here, carried = along(evaluate, inputs, column(inputs, 0))
        return bundled(op, here, there, carried)

    return replaced


def difference_quotient(op: Op) -> Callable | None:
    """Rescale: d -> d (f(x) - f(x0)) / (x - x0), the derivative half way where that is noise.

    Of two numbers that both move each changes once before and once after the other: the mean.
    """
    if len(op.outputs) != 1 or not is_float(op.outputs[0]):
        return None
    moving = [i for i, d in enumerate(op.depends) if d]
    if op.primitive == "abs" and jnp.issubdtype(op.inputs[0].dtype, jnp.complexfloating):
        return modulus
    if op.primitive == "clamp" and (len(moving) > 1 or op.operands[1] != moving[0]):
        return lambda *inputs: clamped(op, inputs)
    if not all(is_float(op.inputs[i]) for i in moving):
        no_difference(op)
    shapes = [op.inputs[i].shape for i in moving]
    if len(moving) > 2 or jnp.broadcast_shapes(op.outputs[0].shape, *shapes) != op.outputs[0].shape:
        refuse(op)

    exact, beyond = rounds_nothing(op), has_logarithm(op.node)

    def replaced(*inputs):
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        if beyond:
            here, there = within(here, there)
        carried = jnp.zeros_like(here)
        for i in moving:
            x, x0, d = (jnp.broadcast_to(a, here.shape) for a in inputs[i])
            others = [column(inputs, k) for k in range(len(moving))]
            slopes = [secant(alone(op, i, c), x, x0, exact, beyond)[2] for c in others]
            carried += (d * (sum(slopes) / len(slopes))).astype(here.dtype)
        return here, there, carried

    return replaced


def alone(op: Op, at: int, inputs: Sequence[jax.Array]) -> Callable:
    """The operation as a function of one of its inputs."""
    return lambda value: op.evaluate(*inputs[:at], value, *inputs[at + 1 :])


def rounds_nothing(op: Op) -> bool:
    """Whether each result is one of the operands, or its negative."""
    return op.kind in ("relu", "relu6", "hard_tanh", "max", "min", "clamp", "abs")


def modulus(bundle: Any) -> Any:
    """|z|, of whose square the difference is that of a product: Re (z + z0)* d / (|z| + |z0|)."""
    z, z0, d = bundle
    here, there = jnp.abs(z), jnp.abs(z0)
    return here, there, divided(jnp.real(jnp.conj(z + z0) * d), here + there)


def clamped(op: Op, inputs: Sequence[Any]) -> Any:
    """A clamp whose bounds move: a maximum, then a minimum."""
    shape, dtype = op.outputs[0].shape, op.outputs[0].dtype
    whole = lambda a: jnp.broadcast_to(jnp.asarray(a, dtype), shape)
    low, x, high = (
        jax.tree.map(whole, inputs[o] if isinstance(o, int) else o.value) for o in op.operands
    )
    return extreme(jnp.minimum, (extreme(jnp.maximum, (low, x), False), high), True)


def maximum(op: Op) -> Callable | None:
    """Carries the difference of the place that explains how a maximum (or minimum) changed."""
    if op.primitive in ("max", "min") and (len(op.inputs) == 1 or not all(op.depends)):
        return difference_quotient(op)
    quick = weighed().find(op)[1]
    if op.primitive == "reduce_window_max" and isinstance(quick, functools.partial):
        difference = functools.partial(max_pool_difference, **quick.keywords)
        return lambda bundle: difference(*bundle)
    return lambda *inputs: extreme(quick or op.evaluate, inputs, op.primitive in FALLS)


def midpoint(op: Op) -> Callable:
    """Carries a difference by the derivative half way: exact for whatever is quadratic."""

    def replaced(*inputs):
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        return here, there, along(op.evaluate, inputs, halfway(inputs))[1]

    return replaced


def product(op: Op) -> Callable:
    """a b by the derivative half way; where b is the reciprocal of something, a quotient."""
    if sum(moves(op, o) for o in op.operands) < 2:
        return linear(op)
    if op.primitive != "mul" or jnp.issubdtype(op.outputs[0].dtype, jnp.complexfloating):
        return midpoint(op)
    inverse = [o for o in op.operands if _is_reciprocal(op, o)]
    if len(inverse) != 1:
        return _halves(op)
    (s_at,) = cast(list[int], inverse)
    (a_at,) = (o for o in cast(tuple[int, ...], op.operands) if o != s_at)

    def replaced(*inputs):
        (a, a0, da), (s, s0, ds) = inputs[a_at], inputs[s_at]
        y, y0 = a * s, a0 * s0
        same = jnp.sign(s) * jnp.sign(s0) > 0
        total = jnp.where(same, s + s0, 1)
        of_a = jnp.where(same, 2 * s * (s0 / total), s / 2 + s0 / 2)
        of_s = jnp.where(same, y / total + y0 / total, a / 2 + a0 / 2)
        return y, y0, finite(of_a) * da + finite(of_s) * ds

    return replaced


def _halves(op: Op, log: int | None = None) -> Callable:
    """a b by the derivative half way; where the factor `log` is the other's own logarithm, and far
    from where it was, by the quotient of the changes."""
    places = cast(tuple[int, int], op.operands)

    def replaced(*inputs):
        (a, a0, da), (b, b0, db) = (inputs[i] for i in places)
        y, y0 = a * b, a0 * b0
        of_a, of_b = b / 2 + b0 / 2, a / 2 + a0 / 2
        if log is not None:
            one, other = inputs[places[log]][:2]
            run = gap(one, other)
            far = jnp.abs(run) > 1
            slope = divided(gap(y, y0), jnp.where(far, run, 1)).astype(y.dtype)
            of_a, of_b = (
                jnp.where(far, slope if i == log else 0, of) for i, of in enumerate((of_a, of_b))
            )
        return y, y0, finite(of_a) * da + finite(of_b) * db

    return replaced


def own_logarithm(op: Op) -> Callable:
    """y = p log p as a function of log p: d -> (y - y0) / (log p - log p0) d.

    As a product of two it would be by the derivative half way, which is the same; far from the
    baseline, where p is nothing and its logarithm is -1e8, that leaves the difference of two large
    numbers for none.
    """
    return _halves(op, (entropies.LOG_FIRST, entropies.LOG_SECOND).index(op.kind))


def over_exponential(op: Op) -> Callable:
    """a / (1 + exp u) and the like, as the product of a and a function of u."""

    def replaced(*inputs):
        (u, u0, du), (a, a0, da) = inputs[0], inputs[-1]
        turned = lambda u: op.evaluate(u, *inputs[1:-1], jnp.ones_like(a))
        s, s0, slope = secant(turned, u, u0)
        here, there = (op.evaluate(*column(inputs, k)) for k in (0, 1))
        carried = finite(s / 2 + s0 / 2) * da + finite(a / 2 + a0 / 2) * (slope * du)
        return here, there, carried.astype(here.dtype)

    return replaced


def quotient(op: Op) -> Callable | None:
    """y = a / b by the product y b = a: d -> (da - db (y + y0) / 2) / ((b + b0) / 2).

    As a product with the reciprocal the multipliers would be as large as the larger of 1 / b and
    1 / b0, however small the quotient itself: a norm at a baseline of zeros has 1 / b0 = 1000, and
    a few of them in a row leave no digit. That is only done where b and b0 differ in sign.
    """
    top, bottom = cast(tuple[int, int], op.operands)
    if not moves(op, bottom):
        return linear(op)
    if not moves(op, top):
        return difference_quotient(op)

    def replaced(*inputs):
        (a, a0, da), (b, b0, db) = inputs[top], inputs[bottom]
        y, y0 = a / b, a0 / b0
        same = jnp.zeros(b.shape, bool)
        if not jnp.iscomplexobj(b):
            same = jnp.sign(b) * jnp.sign(b0) > 0
        half = 1 / jnp.where(same, b / 2 + b0 / 2, 1)
        of_a = jnp.where(same, half, 1 / b / 2 + 1 / b0 / 2)
        of_b = jnp.where(same, (y / 2 + y0 / 2) * half, (a / 2 + a0 / 2) / b / b0)
        return y, y0, finite(of_a) * da - finite(of_b) * db

    return replaced


def _is_reciprocal(op: Op, operand: Any) -> bool:
    """Whether an operand is 1 / b or 1 / sqrt b, moved or scaled by what stays."""
    maker = op.makers[operand] if op.makers else None
    while maker is not None and (maker.kind in MOVES or maker.primitive in ("mul", "div")):
        moving = [i for i, d in enumerate(maker.depends) if d]
        if maker.primitive == "div" and not moves(maker, maker.operands[0]):
            return True
        if len(moving) != 1 or sum(o == moving[0] for o in maker.operands) != 1:
            return False
        maker = maker.makers[moving[0]]
    if maker is None:
        return False
    if maker.primitive == "pow":
        power = maker.operands[1]
        return not isinstance(power, int) and power.value < 0
    return maker.primitive == "rsqrt" or maker.options.get("y", 0) < 0


def through(op: Op) -> Callable:
    """`stop_gradient` stops gradients; the difference is there all the same."""
    return lambda *inputs: next(v for v in inputs if isinstance(v, tuple))


# One place for both of DeepLIFT's rules to know what kind of operation they have.
POINTWISE = (
    "activation abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp"
    " cos cosh digamma erf erfc erf_inv exp exp2 expm1 floor igamma igammac integer_pow lgamma log"
    " log1p log2 logistic one_minus_square polygamma pow regularized_incomplete_beta rem round"
    " rsqrt sign sin sinh sqrt square tan tanh"
).split()
MAXIMA = (
    "max_pool reduce_max reduce_min reduce_window_min max min cummax cummin scatter-max scatter-min"
).split()
MOVES = (
    "all_gather broadcast_in_dim concatenate convert_element_type copy copy_p device_put"
    " dynamic_slice dynamic_update_slice expand_dims flatten gather layout_constraint name"
    " optimization_barrier pad ppermute pvary reduce_precision reshape reshard rev scatter select_n"
    " sharding_constraint slice split squeeze stack tile transpose unstack bias"
).split()
SUMS = (
    "add add_any sub sum mean sum_pool avg_pool cumsum scatter_add scatter-sub reduce_sum neg real"
    " reduce_window_sum psum"
).split()
COMPLEX = "fft complex imag conj".split()
PRODUCTS = "mul matmul conv_product scatter-mul ragged_dot ragged_dot_general".split()
LAYERS = ["conv", "dense"]
GROUPS = ["batch_norm", "affine", "layer_norm", "rms_norm", "avg_pool", "mean"]


def _rows(rule: Rule, names: Sequence[str]) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


# Rules of which each does one thing for both of DeepLIFT's rules.
LUMPED = {
    **_rows(maximum, MAXIMA),
    **_rows(product, PRODUCTS),
    overflows.OVER: over_exponential,
    **_rows(own_logarithm, [entropies.LOG_FIRST, entropies.LOG_SECOND]),
    **_rows(softmax, ["softmax", "log_softmax"]),
    quotients.ROWS: in_rows,
    quotients.SUMS: in_sums,
    quotients.PART: in_part,
    quotients.STRETCHES: in_stretches,
    **_rows(compared, COMPARISONS),
    **_rows(logical, [name for name in LOGIC if name not in COMPARISONS]),
    **_rows(ordered, ["sort", "top_k"]),
    **_rows(multiplied, ["reduce_prod", "cumprod"]),
    **_rows(linear, COMPLEX),
    "custom_linear_solve": lambda op: system(op, linear),
    "is_finite": is_finite,
    "cumlogsumexp": log_sums,
    "triangular_solve": lambda op: triangular(op, linear),
    "cholesky": cholesky,
    "lu": factors,
    "custom_jvp_call": hypot,
}

rescale = RuleSet(
    "deep_lift",
    {
        **_rows(linear, [*MOVES, *SUMS, *LAYERS]),
        **_rows(difference_quotient, POINTWISE),
        **LUMPED,
        "sub": lambda op: less_softplus(op) or combined(op) or linear(op),
        **_rows(lambda op: combined(op) or linear(op), ["add", "add_any"]),
        **_rows(lambda op: None, GROUPS),  # taken apart: their members have rules of their own
        "select_n": lambda op: chosen(op) or linear(op),
        "convert_element_type": lambda op: converted(op) or linear(op),
        **_rows(lambda op: picked(op, linear), ["gather", "embed"]),
        **_rows(lambda op: placed(op, linear), ["scatter", "scatter_add"]),
        "div": quotient,
        "stop_gradient": through,
    },
    default=refuse,
    named=False,
)
