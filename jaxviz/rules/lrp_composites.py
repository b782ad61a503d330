"""Composites of LRP: which rule each kind of operation gets."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxviz.calls.options import described, either, function, maybe, real, several
from jaxviz.calls.public import public
from jaxviz.graph import exponentials
from jaxviz.graph.rewrite import Rule, RuleSet, refuse
from jaxviz.graph.roles import REARRANGING
from jaxviz.rules.lrp import (
    alpha_beta,
    epsilon as epsilon_rule,
    flat,
    gamma as gamma_rule,
    norm,
    z_box,
    z_plus,
)
from jaxviz.rules.lrp_logarithms import log_of_quotient
from jaxviz.rules.lrp_maps import holds_traced, number
from jaxviz.rules.lrp_operations import (
    complement,
    extremum,
    factors,
    keep,
    log_softmax,
    logits,
    modulus,
    normalised,
    pass_through,
    product,
    quotient,
    scattered_extremum,
    scattered_product,
    shifted,
    signal_takes_all,
    solved,
    unnormalised,
    weighed,
)

_RANGE = either("a number, or one a channel", real(), several(real(), "numbers, one a channel"))
# Each number of the output is one of the input: relevance goes where the gradient goes.
_MOVES = (
    "dynamic_update_slice flatten pad scatter select_n"
    # Each is the winner among several: it takes all.
    " max_pool reduce_max reduce_min cummax cummin sort top_k approx_top_k reduce_window_min"
    # The winners' places in a max pooling that keeps them.
    " select_and_gather_add"
    # Of a running log-sum-exp its derivative is each exponential's part of the sum.
    " cumlogsumexp"
    # Two real numbers are one complex number, and its parts again.
    " complex real imag"
).split()
_SUMS = (
    "add add_any bias sub sum mean sum_pool avg_pool cumsum scatter_add scatter-sub reduce_sum fft"
).split()
# Groups whose operations have rules of their own: no matter how a norm is spelled.
_APART = "layer_norm rms_norm affine".split()
_POINTWISE = (
    "acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil clamp conj cos cosh digamma"
    " erf erf_inv erfc exp exp2 expm1 floor integer_pow lgamma log log1p log2 logistic neg pow"
    " round rsqrt sign sin sinh sqrt square stop_gradient tan tanh"
).split()


@public(default=maybe(function), stabilizer=number)
def composite(
    name: str, rows: Mapping[str, Rule], *, stabilizer: float = 0.0, default: Rule = refuse
) -> RuleSet:
    """A rule set of LRP: some rows over the ones that every net needs.

    Underneath, the function is explained as it is computed, whatever derivative the model gives it:
    `stop_gradient`, a straight-through estimator or a reversed gradient change nothing. Activations
    and scalings pass relevance on; sums and averages share it by contribution; max pooling gives it
    to the winner, as its gradient does (of equal ones in a window the first, of equal ones along an
    axis each its part); reshapes, slices and the like move it; of a product of activations each
    factor gets the same part, of a quotient the numerator gets all, one minus a sigmoid (plain
    or hard) passes on as the sigmoid of the other sign, and a product with one over something
    is a quotient: layer norm and its kin are centred, their deviation held, scaled and shifted,
    however they are spelled. Softmax shares by gradient times input (weights that are divided
    by their sum only after they weighed something as well), log-sum-exp by the parts of its
    sum, and the logarithm of a softmax is a number less its log-sum-exp. What was chosen by a
    comparison (a mask) is a constant: nothing goes back through it. A complex number (a
    spectrum) is two real ones: Fourier transforms and filters share by contribution between all
    parts, a magnitude by its parts' squares, a product half to each factor.

    Args:
      name: Said in errors.
      rows: From a layer's name, "first" or a kind to a rule; see `RuleSet`.
      stabilizer: Added to the magnitude of those sums, in their units; 0 is exact at any scale.
      default: For operations that are in no row. `refuse` raises; `epsilon()` falls back to the
        operation's own gradient times its input.

    Returns:
      A `RuleSet`.

    Raises:
      ValueError: `stabilizer` is negative or not finite.
    """
    shared = norm(stabilizer=stabilizer)
    table: dict[str, Rule] = {
        **dict.fromkeys((*REARRANGING, *_MOVES, *_APART), keep),
        **dict.fromkeys(_SUMS, shared),
        **dict.fromkeys((*_POINTWISE, "activation", "batch_norm"), pass_through),
        **dict.fromkeys(("softmax", exponentials.LOGGED), shared),
        "log_softmax": log_softmax(stabilizer),
        exponentials.LOG_OF_QUOTIENT: log_of_quotient(stabilizer),
        **dict.fromkeys(("mul", "matmul", "conv_product"), product(stabilizer)),
        **dict.fromkeys(("max", "min"), extremum),
        "abs": modulus(stabilizer),
        "sub": complement(shared),
        **dict.fromkeys(("scatter-max", "scatter-min"), scattered_extremum),
        **dict.fromkeys(("reduce_prod", "cumprod"), factors),
        "scatter-mul": scattered_product,
        "div": quotient,
        "triangular_solve": solved,
        exponentials.IN: logits,
        exponentials.INSIDE: keep,
        exponentials.OUT: normalised,
        exponentials.SHIFT: shifted,
        exponentials.ALONE: unnormalised,
    }
    table["stop_gradient"] = pass_through  # it moves nothing, but its derivative is not its own
    table |= rows
    for name_, kind in (("mul", "mul"), ("dot_general", "matmul")):
        weighs, after = weighed(table[kind])
        table |= {exponentials.WEIGHS[name_]: weighs, exponentials.WEIGHED[name_]: after}
    return RuleSet(
        name,
        table,
        default=default,
        into_custom=True,
        named=True,
        folded=True,
        functional=True,
    )


@public(epsilon=number)
def epsilon(epsilon: float = 0.0) -> RuleSet:
    """The epsilon rule everywhere, for batch norm that follows no linear layer as well."""
    rows: dict[str, Rule] = dict.fromkeys(("conv", "dense", "batch_norm"), epsilon_rule(epsilon))
    return composite("epsilon", rows, stabilizer=epsilon)


@public(epsilon=number, stabilizer=number)
def epsilon_plus(epsilon: float = 0.0, *, stabilizer: float = 0.0) -> RuleSet:
    """Positive contributions in convolutions, epsilon in dense layers."""
    rows = {"conv": z_plus(stabilizer=stabilizer), "dense": epsilon_rule(epsilon)}
    return composite("epsilon_plus", rows, stabilizer=stabilizer)


@public(low=_RANGE, high=_RANGE, epsilon=number, gamma=number, stabilizer=number)
def epsilon_gamma_box(
    low: float | Sequence[float],
    high: float | Sequence[float],
    *,
    epsilon: float = 0.0,
    gamma: float = 0.25,
    stabilizer: float = 0.0,
) -> RuleSet:
    """The box rule in the first layer, gamma in convolutions, epsilon in dense layers."""
    rows = {
        "first": z_box(low, high, stabilizer=stabilizer),
        "conv": gamma_rule(gamma, stabilizer=stabilizer),
        "dense": epsilon_rule(epsilon),
    }
    return composite("epsilon_gamma_box", rows, stabilizer=stabilizer)


@public(epsilon=number, stabilizer=number)
def epsilon_alpha2_beta1(epsilon: float = 0.0, *, stabilizer: float = 0.0) -> RuleSet:
    """Alpha-beta (2, 1) in convolutions, epsilon in dense layers."""
    rows = {
        "conv": alpha_beta(2.0, 1.0, stabilizer=stabilizer),
        "dense": epsilon_rule(epsilon),
    }
    return composite("epsilon_alpha2_beta1", rows, stabilizer=stabilizer)


@public(stabilizer=number)
def with_flat(rules: RuleSet, *, stabilizer: float = 0.0) -> RuleSet:
    """A composite whose first layer shares evenly."""
    rows = dict(rules.table) | {"first": flat(stabilizer=stabilizer)}
    return composite(f"{rules.name}_flat", rows, stabilizer=stabilizer, default=rules.default)  # type: ignore[arg-type]


@public(stabilizer=number)
def excitation_backprop(*, stabilizer: float = 0.0) -> RuleSet:
    """Positive contributions in convolutions and dense layers, without biases.

    Reference:
      Zhang et al. 2016, arXiv:1608.00507, section 3.2: probabilities that winners pass down.
    """
    rule = z_plus(bias=False, stabilizer=stabilizer)
    rows: dict[str, Rule] = dict.fromkeys(("conv", "dense"), rule)
    return composite("excitation_backprop", rows, stabilizer=stabilizer)


@public(epsilon=number, gamma=number, conv_gamma=number)
def attn_lrp(epsilon: float = 0.0, *, gamma: float = 0.0, conv_gamma: float = 0.0) -> RuleSet:
    """AttnLRP: relevance goes through a transformer's attention weights as well.

    Layers by epsilon (or gamma), sums by contribution, of a product half to each factor (queries
    and keys, weights and values, both sides of a gated unit), softmax by its gradient times input,
    activations pass on, norms hold their deviation. These are the rows of every composite here;
    the others differ in their layers.

    All of it is conserved but for what biases keep, and but for a softmax, whose logits get
    x_i (R_i - s_i sum R): what they do not get is lost, as the paper has it (proposition 3.1).

    Args:
      epsilon: Added to |z| in layers, sums and matrix products, in units of z.
      gamma: Of the gamma rule in dense layers, which quiets vision transformers; 0 is epsilon.
      conv_gamma: The same in convolutions (the patch embedding).

    Raises:
      ValueError: A number is negative or not finite.

    Reference:
      Achtibat et al. 2024, arXiv:2402.05602, section 3.3. LXT 2.1, by the same authors, adds its
      stabilisers to z as it is (ours go by z's sign, and are 0 unless given) and sums a softmax's
      relevance over the last axis, whichever the softmax is over (ours over its own, as in the
      paper); without those two it gives the same numbers.
    """
    return _transformer("attn_lrp", epsilon, gamma, conv_gamma, product(epsilon))


@public(epsilon=number, gamma=number, conv_gamma=number)
def cp_lrp(epsilon: float = 0.0, *, gamma: float = 0.0, conv_gamma: float = 0.0) -> RuleSet:
    """CP-LRP: attention weights, gates and norms are constants, and nothing goes through them.

    As `attn_lrp`, but a product gives all to its signal (`lrp.signal_takes_all`): nothing to
    queries and keys, nothing to the gate of a SwiGLU. So it is conserved but for what biases keep
    (a norm's shift among them), and but for a softmax that weighs nothing, such as a net's last:
    explain its logits. For vision transformers take `gamma=0.05, conv_gamma=0.25`, say.

    Args:
      epsilon: Added to |z| in layers, sums and matrix products, in units of z.
      gamma: Of the gamma rule in dense layers; 0 is epsilon.
      conv_gamma: The same in convolutions (the patch embedding).

    Raises:
      ValueError: A number is negative or not finite.

    Reference:
      Ali et al. 2022, arXiv:2202.07304, section 4; with gamma: Achtibat et al. 2024,
      arXiv:2402.05602, appendix A.2.3.
    """
    return _transformer("cp_lrp", epsilon, gamma, conv_gamma, signal_takes_all(epsilon))


def _transformer(name: str, epsilon, gamma, conv_gamma, products: Rule) -> RuleSet:
    def layer(gamma):
        if holds_traced(gamma) or gamma:
            return gamma_rule(gamma, stabilizer=epsilon)
        return epsilon_rule(epsilon)

    rows = dict.fromkeys(("mul", "matmul", "conv_product"), products)
    rows |= {"dense": layer(gamma), "conv": layer(conv_gamma), "batch_norm": epsilon_rule(epsilon)}
    return composite(name, rows, stabilizer=epsilon)


COMPOSITES = {
    "attn_lrp": attn_lrp(),
    "cp_lrp": cp_lrp(),
    "epsilon": epsilon(),
    "epsilon_plus": epsilon_plus(),
    "epsilon_plus_flat": with_flat(epsilon_plus()),
    "epsilon_alpha2_beta1": epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": with_flat(epsilon_alpha2_beta1()),
    "excitation_backprop": excitation_backprop(),
}


def resolve(who: str, rules: Any) -> RuleSet:
    """The rule set that a name, a table or a rule set stands for."""
    if isinstance(rules, RuleSet):
        return rules
    if isinstance(rules, Mapping):
        rows = dict(rules)
        if odd := [name for name, rule in rows.items() if not callable(rule)]:
            raise TypeError(
                f"{who}: rules must be a table from a layer's kind or name to a rule; got "
                f"{described(rows[odd[0]])} for {odd[0]!r}. Take one of jaxviz.rules.lrp."
            )
        default = rows.pop("default", refuse)
        return composite("lrp", dict(epsilon().table) | rows, default=default)
    if isinstance(rules, str) and rules in COMPOSITES:
        return COMPOSITES[rules]
    extra = ""
    if isinstance(rules, str) and rules == "epsilon_gamma_box":
        extra = " It needs the inputs' range: pass rules.epsilon_gamma_box(low, high)."
    raise ValueError(
        f"{who}: rules must be one of {', '.join(COMPOSITES)}, a table from a layer's kind or name "
        f"to a rule, or a RuleSet; got {described(rules)}.{extra}"
    )
