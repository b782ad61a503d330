"""Composites of LRP: which rule each kind of operation gets."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxviz.calls.options import described, either, real, several
from jaxviz.calls.public import public
from jaxviz.graph.rewrite import Rule, RuleSet, refuse
from jaxviz.rules.lrp import (
    STABILIZER,
    alpha_beta,
    epsilon as epsilon_rule,
    extremum,
    flat,
    gamma as gamma_rule,
    keep,
    norm,
    pass_through,
    product,
    quotient,
    z_box,
    z_plus,
)

_RANGE = either("a number, or one a channel", real(), several(real(), "numbers, one a channel"))
# Each number of the output is one of the input: relevance goes where the gradient goes.
_MOVES = (
    "broadcast_in_dim concatenate convert_element_type copy copy_p device_put dynamic_slice"
    " dynamic_update_slice expand_dims flatten gather name optimization_barrier pad"
    " reduce_precision reshape rev scatter select_n slice split squeeze transpose"
    # Each is the winner among several: it takes all.
    " max_pool reduce_max reduce_min cummax cummin sort top_k reduce_window_min"
    # The winners' places in a max pooling that keeps them.
    " select_and_gather_add"
).split()
_SUMS = (
    "add add_any bias sub sum mean sum_pool avg_pool cumsum scatter_add scatter-sub reduce_sum"
).split()
_POINTWISE = (
    "abs acos acosh asin asinh atan atanh cbrt clamp cos cosh erf erfc exp exp2 expm1 integer_pow"
    " log log1p logistic neg pow round rsqrt sign sin sinh sqrt square tan tanh"
).split()


@public()
def composite(
    name: str, rows: Mapping[str, Rule], *, stabilizer: float = STABILIZER, default: Rule = refuse
) -> RuleSet:
    """A rule set of LRP: some rows over the ones that every net needs.

    Underneath: activations and scalings pass relevance on; sums and averages share it by
    contribution; max pooling gives it to the winner; reshapes, slices and the like move it; a
    product of two activations halves it, a quotient gives it to the numerator; a normalisation
    without running statistics (layer norm) passes it on; softmax shares it by gradient times input.

    Args:
      name: Said in errors.
      rows: From a layer's name, "first" or a kind to a rule; see `RuleSet`.
      stabilizer: Of the shares among summands.
      default: For operations that are in no row. `refuse` raises; `epsilon()` falls back to the
        operation's own gradient times its input.

    Returns:
      A `RuleSet`.
    """
    shared = norm(stabilizer=stabilizer)
    table: dict[str, Rule] = {
        **dict.fromkeys(_MOVES, keep),
        **dict.fromkeys(_SUMS, shared),
        **dict.fromkeys(_POINTWISE, pass_through),
        **dict.fromkeys(("activation", "layer_norm", "rms_norm"), pass_through),
        **dict.fromkeys(("batch_norm", "affine"), pass_through),
        **dict.fromkeys(("softmax", "log_softmax"), shared),
        **dict.fromkeys(("mul", "matmul", "conv_product"), product(stabilizer)),
        **dict.fromkeys(("max", "min", "scatter-max", "scatter-min"), extremum),
        "scatter-mul": pass_through,
        "div": quotient,
    }
    return RuleSet(
        name, table | dict(rows), default=default, into_custom=True, named=True, folded=True
    )


def epsilon(epsilon: float = STABILIZER) -> RuleSet:
    """The epsilon rule everywhere, for batch norm that follows no linear layer as well."""
    rule = epsilon_rule(epsilon)
    rows: dict[str, Rule] = dict.fromkeys(("conv", "dense", "batch_norm", "affine"), rule)
    return composite("epsilon", rows, stabilizer=epsilon)


@public()
def epsilon_plus(epsilon: float = STABILIZER, *, stabilizer: float = STABILIZER) -> RuleSet:
    """Positive contributions in convolutions, epsilon in dense layers."""
    rows = {"conv": z_plus(stabilizer=stabilizer), "dense": epsilon_rule(epsilon)}
    return composite("epsilon_plus", rows, stabilizer=stabilizer)


@public(low=_RANGE, high=_RANGE)
def epsilon_gamma_box(
    low: float | Sequence[float],
    high: float | Sequence[float],
    *,
    epsilon: float = STABILIZER,
    gamma: float = 0.25,
    stabilizer: float = STABILIZER,
) -> RuleSet:
    """The box rule in the first layer, gamma in convolutions, epsilon in dense layers."""
    rows = {
        "first": z_box(low, high, stabilizer=stabilizer),
        "conv": gamma_rule(gamma, stabilizer=stabilizer),
        "dense": epsilon_rule(epsilon),
    }
    return composite("epsilon_gamma_box", rows, stabilizer=stabilizer)


@public()
def epsilon_alpha2_beta1(epsilon: float = STABILIZER, *, stabilizer: float = STABILIZER) -> RuleSet:
    """Alpha-beta (2, 1) in convolutions, epsilon in dense layers."""
    rows = {
        "conv": alpha_beta(2.0, 1.0, stabilizer=stabilizer),
        "dense": epsilon_rule(epsilon),
    }
    return composite("epsilon_alpha2_beta1", rows, stabilizer=stabilizer)


@public()
def with_flat(rules: RuleSet, *, stabilizer: float = STABILIZER) -> RuleSet:
    """A composite whose first layer shares evenly."""
    rows = dict(rules.table) | {"first": flat(stabilizer=stabilizer)}
    return composite(f"{rules.name}_flat", rows, stabilizer=stabilizer, default=rules.default)  # type: ignore[arg-type]


@public()
def excitation_backprop(*, stabilizer: float = STABILIZER) -> RuleSet:
    """Positive contributions in convolutions and dense layers, without biases.

    Reference:
      Zhang et al. 2016, arXiv:1608.00507, section 3.2: probabilities that winners pass down.
    """
    rule = z_plus(bias=False, stabilizer=stabilizer)
    rows: dict[str, Rule] = dict.fromkeys(("conv", "dense"), rule)
    return composite("excitation_backprop", rows, stabilizer=stabilizer)


COMPOSITES = {
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
