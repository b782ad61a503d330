"""Whether examples have nothing to do with one another, by proof.

The walk of `axes`, which looks at each operation for a way from one example into another.
"""

from collections.abc import Sequence
from typing import Any

import jax

from jaxviz.graph.activations import NAMED
from jaxviz.graph.axes import Walk, axes, given_labels
from jaxviz.graph.axis_labels import Labels, of_batch
from jaxviz.graph.axis_rules import RULES
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Value, equation_of


@fact
def apart(traced: Any) -> bool:
    """Whether no example has a part in the results of another: surely, or else False.

    One axis of each value on the way is then the batch's, and nothing moves along it. That an
    operation counts the examples, and treats them by their number, is not seen.
    """
    known = axes(traced)
    values = jax.tree.leaves(traced.x)
    walk = _Apart(known.count, [len(traced.program.avals[v].shape) for v in values])
    walk.run(traced.program, traced.program.nodes, {v: known.labels[v] for v in values})
    return known.count == 1 or walk.found


class _Apart(Walk):
    """The walk, which looks at each value for an example's way into another."""

    found = True

    def run(self, program: Program, nodes: Sequence[Node], env: dict[Value, Any]) -> None:
        super().run(program, nodes, env)
        for node in nodes:
            reached = [v in env for v in node.inputs]
            if node.members or not any(reached):
                continue
            made = [env[v] for v in node.outputs]
            single = all(labels is not None and sum(map(of_batch, labels)) == 1 for labels in made)
            primitive, params = equation_of(node).primitive.name, equation_of(node).params
            if not single:
                self.found = False
            elif not node.bodies and node.kind not in NAMED:
                given = [given_labels(program, o, env)[1] for o in node.operands]
                self.found &= not _moves_along(primitive, params, given, made, self.count)


def _moves_along(primitive: str, params: dict, given: list, made: list, count: int) -> bool:
    """Whether an operation takes places of the batch's axis for one another, or may do so."""
    if primitive not in RULES and primitive not in _PLACE_BY_PLACE:
        return True
    batches = [_batch_of(labels) for labels in given]
    batch = _batch_of(made[0])
    if primitive == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        if batches[0] is None or given[1]:  # kernels made of x
            return True
        alone = batches[0] == numbers.lhs_spec[0] and params["batch_group_count"] == 1
        groups = params["feature_group_count"] % max(1, count) == 0
        return not alone and not (batches[0] == numbers.lhs_spec[1] and groups)
    if primitive == "dot_general":
        contracted, _ = params["dimension_numbers"]
        return any(b in axes for b, axes in zip(batches, contracted, strict=True))
    if primitive == "gather":
        numbers = params["dimension_numbers"]
        return batches[0] is not None and batches[0] in numbers.start_index_map
    if primitive.startswith("scatter"):
        numbers = params["dimension_numbers"]
        looked_up = numbers.scatter_dims_to_operand_dims
        # Without the batch in what is changed, rows of the updates would be put together there.
        return batches[0] is None or batches[0] in looked_up
    if primitive in ("rev", "sort", *_CUMULATIVE):
        told = params.get("dimensions", params.get("dimension", params.get("axis")))
        return batch in (told if isinstance(told, tuple) else (told,))
    if "window_dimensions" in params:
        return batch is not None and params["window_dimensions"][batch] > 1
    if primitive == "pad":
        return batch is not None and tuple(params["padding_config"][batch]) != (0, 0, 0)
    return primitive in ("fft", "top_k")  # along the last axes, which few batches are


def _batch_of(labels: Labels | None) -> int | None:
    return next((a for a, label in enumerate(labels or ()) if of_batch(label)), None)


# What gives each place a number made of the numbers at that place alone. Proof for `apart`, where
# all else without a rule may do anything with the examples.
_PLACE_BY_PLACE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e"
    " bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos"
    " cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag"
    " integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not"
    " or polygamma population_count pow real reduce_precision regularized_incomplete_beta rem"
    " round rsqrt shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square"
    " stop_gradient sub tan tanh xor zeta".split()
)
_CUMULATIVE = ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum")
