"""Rules that hold factors constant: what is left of a net is linear in its input, and exactly so.

A transformer weighs values by attention, scales by norms, gates by sigmoids; a ReLU lets through or
not. With all these held at what they are for one input, the rest is sums and matrix products. Its
gradient is then a matrix W(x), and where there are no biases f(x) = W(x) x.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxviz.calls.options import choice, either, several
from jaxviz.calls.public import public
from jaxviz.graph import exponentials
from jaxviz.graph.kinds import RELU_KINDS
from jaxviz.graph.rewrite import Op, Rule, RuleSet
from jaxviz.graph.roles import rank
from jaxviz.rules.lrp_maps import derivative, moving, replaced

HELD = ("attention", "gates", "norms", "activations")
_TOLD = f"one or several of {', '.join(HELD)}"
_WORDS = either(_TOLD, choice(*HELD), several(choice(*HELD), _TOLD))
# Functions of one number that may stand alone. Not those that have no slope (rounding, signs).
_POINTWISE = (
    "acos acosh asin asinh atan atanh cbrt clamp cos cosh digamma erf erfc exp exp2 expm1"
    " integer_pow lgamma log log1p logistic pow sin sinh sqrt square tan tanh"
).split()
# A softmax hands back what it does, weights or outputs; its quotient is no norm.
_SOFTMAX = (
    exponentials.IN,
    exponentials.INSIDE,
    exponentials.OUT,
    exponentials.SHIFT,
    exponentials.ALONE,
    exponentials.LOGGED,
)


@public(what=_WORDS)
def constants(what: str | Sequence[str] = HELD) -> RuleSet:
    """Factors held constant: the same function, whose derivative takes no notice of them.

    `f = rewrite(apply_fn, rules.constants())` has the outputs of the model, and the gradients of
    the same model with `stop_gradient` around each of these:

    | word | held | so the rest is |
    |---|---|---|
    | "attention" | softmax weights, and any gate, in a matrix product with values | A v |
    | "gates" | sigmoids, softmax weights, activations and magnitudes that multiply a signal | g h |
    | "norms" | what a signal is divided by: a deviation, a length, a sum | x / s |
    | "activations" | the slope s = (a(x) - a(0)) / x of each function of one number | a(0) + s x |

    Of two factors that are alike (two signals, two gates) none is held, nor is a softmax or sigmoid
    that multiplies nothing, such as a net's last: of "activations", its slope is. A ReLU and its
    kin keep their own derivative, which is that slope. Magnitudes are |h| and even powers, so the
    |cos| of a B-cos net is a gate. What a comparison chose, and a `stop_gradient` of the model, is
    held already. A layer held besides is `patched(apply_fn, layer, jax.lax.stop_gradient)`.

    With it `gradient` is the matrix W(x) of the linear reading of a B-cos net or of a bias-free
    ReLU net, and `input_x_gradient`, W(x) x, sums to the output. In a transformer it is CP-LRP
    without epsilon (`lrp(rules="cp_lrp")`), up to what biases take there; a bias is no factor of
    the input, so here it takes its part.

    Args:
      what: One word of the table, or several.

    Returns:
      A `RuleSet` for `rewrite`. Values are to the bit those of the model; a second derivative takes
      what is held for constant as well. Functions with a derivative of their own keep it if nothing
      inside is held. A `while` loop that the input passes through is refused, as reverse-mode
      differentiation does.

    Raises:
      ValueError: Another word.

    Example:
      >>> from jaxviz import gradient, rewrite
      >>> unit = lambda w, x: (x / jnp.sqrt((x * x).sum(1, keepdims=True))) @ w
      >>> w, x = 5 * jnp.eye(2), jnp.array([[3.0, 4.0]])
      >>> jnp.rint(100 * gradient(unit, w, x, 0)).tolist()  # longer is not larger
      [[64.0, -48.0]]
      >>> jnp.rint(100 * gradient(rewrite(unit, constants()), w, x, 0)).tolist()  # 5 / |x|
      [[100.0, 0.0]]

    Reference:
      Ali et al. 2022, arXiv:2202.07304, section 4 (attention and norms); Boehle et al. 2022,
      arXiv:2205.10268, section 3.2 (B-cos, W(x)); Ameisen et al. 2025, "Circuit tracing"
      (attribution graphs). Secants of activations from a(0): ours; with a(0) = 0 they are the
      a(x) / x of Arras et al. 2025, arXiv:2502.15886.
    """
    return _constants(frozenset((what,) if isinstance(what, str) else what))


@functools.cache
def _constants(what: frozenset[str]) -> RuleSet:
    table: dict[str, Rule] = {
        **dict.fromkeys(_SOFTMAX, _left),
        **dict.fromkeys(("softmax", "log_softmax"), _whole),
        **dict.fromkeys(("matmul", "conv_product"), _factors("attention" in what, "norms" in what)),
        "mul": _factors("gates" in what, "norms" in what),
    }
    if "attention" in what:
        table |= dict.fromkeys(exponentials.WEIGHS.values(), _weighing)
        table |= dict.fromkeys(exponentials.WEIGHED.values(), _denominator)
    else:
        table |= dict.fromkeys(
            (*exponentials.WEIGHS.values(), *exponentials.WEIGHED.values()), _left
        )
    if "norms" in what:
        table["div"] = _denominator
    if "activations" in what:
        table |= dict.fromkeys(("activation", "max", "min", *_POINTWISE), secant)
        table |= dict.fromkeys((*RELU_KINDS - {"relu"}, "sigmoid"), secant)
        table |= dict.fromkeys(("relu", "leaky_relu"), _whole)
    return RuleSet(
        "constants", table, into_custom=True, named=False, functional=True, derivative=True
    )


def _left(op: Op) -> None:
    return None


def _whole(op: Op) -> Callable:
    """As it stands, and not its members one by one."""
    return op.evaluate


@functools.cache
def _factors(weights: bool, divisors: bool) -> Rule:
    gates = ("activation", "gate", "sigmoid") if weights else ()
    governed = {*gates, *(("divisor",) if divisors else ())}

    def rule(op: Op) -> Callable | None:
        at = moving(op)
        ranks = {i: rank(op.roles[i]) * (op.roles[i] in governed) for i in at}
        held = [i for i in at if ranks[i] > min(ranks.values())]
        return _holding(op, held) if held else None

    return rule


def _weighing(op: Op) -> Callable:
    return _holding(op, [i for i in moving(op) if op.roles[i] == "weights"])


def _denominator(op: Op) -> Callable | None:
    """Of a quotient of two that depend on the input, what it is divided by."""
    at = moving(op)
    if op.primitive == "div":
        below = op.operands[1]
        return _holding(op, [below]) if len(at) == 2 and isinstance(below, int) else None
    return _holding(op, [i for i in at if not op.roles[i].startswith(exponentials.NUMERATOR)])


def _holding(op: Op, held: Sequence[int]) -> Callable:
    """The operation with some inputs constant."""

    def evaluate(*inputs):
        stopped = [jax.lax.stop_gradient(a) if i in held else a for i, a in enumerate(inputs)]
        return op.evaluate(*stopped)

    return evaluate


def secant(op: Op) -> Callable | None:
    """A function of one number as a(0) + s x with the slope s held."""
    at = moving(op)
    if len(at) != 1 or op.inputs[at[0]].shape != op.outputs[0].shape or len(op.outputs) != 1:
        return None

    def tangent(inputs, tangents):
        y = op.evaluate(*inputs)
        slope, _ = slope_and_start(op, inputs, y)
        return y, jax.lax.stop_gradient(slope) * tangents[at[0]].astype(y.dtype)

    return replaced(op, tangent)


def slope_and_start(op: Op, inputs: Sequence[jax.Array], y: jax.Array):
    """The slope s of a(x) = a(0) + s x, and a(0); where that is not finite, the own slope, and 0.

    Near 0, where rounding would be all that a(x) - a(0) has, the derivative half way.
    """
    (at,) = moving(op)
    x = inputs[at]
    given = lambda a: [a if i == at else other for i, other in enumerate(inputs)]
    start = op.evaluate(*given(jnp.zeros_like(x)))
    known = jnp.isfinite(start)
    start = jnp.where(known, start, jnp.zeros_like(start))
    tiny, unit = jnp.finfo(x.dtype).tiny, jnp.finfo(x.dtype).eps
    near = jnp.abs(x) < jnp.where(start == 0, tiny, (24 * unit) ** (1 / 3)).astype(x.dtype)
    middle = jnp.where(known, x / 2, x)
    one = [jnp.ones_like(x) if i == at else None for i in range(len(inputs))]
    own = derivative(op, given(middle), one)[1]
    far = (y - start) / jnp.where(near, jnp.ones_like(x), x).astype(y.dtype)
    own_counts = near | ~known | ~jnp.isfinite(far)
    return jnp.where(own_counts, own, far), start
