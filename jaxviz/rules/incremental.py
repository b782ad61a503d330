"""Exact evaluation of only what changes when a stretch of the input does.

Every value is a bundle: what it was before the change, its changed stretch, and where that lies.
Operations that read a neighbourhood (convolutions, poolings, slices) or a place (activations, sums)
are applied to the stretch with as much around it as they read, cut from the value before; any other
operation gets its whole inputs, the stretch pasted in. Where that saves products, a linear
operation gets the difference to before, and what it makes of that is added. The results are those
of the whole net to the last bits, which depend on the order of sums.

The values before the change do not depend on where it is: `jaxviz.graph.hoist` takes them out of
the loop over places.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxviz.graph.lift import lift
from jaxviz.graph.rewrite import Op, RuleSet
from jaxviz.rules.bundles import (
    Changed,
    after,
    before,
    brought,
    changing,
    locally,
    unchanged,
    whole,
    whole_on,
)
from jaxviz.rules.incremental_linear import (
    convolution,
    convolution_by_window,
    product,
    product_by_row,
)
from jaxviz.rules.spans import (
    Slide,
    Span,
    Spans,
    gathered,
    union,
)


def evaluate_changed(
    apply_fn: Callable, params: Any, x: jax.Array, part: jax.Array, spans: Spans
) -> Any:
    """`apply_fn(params, x)` with a stretch of `x` replaced.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: One array, as it was before.
      part: What stands in the stretch instead.
      spans: The stretch, one `Span` (or None: all of it) for each axis of `x`.

    Returns:
      The outputs. Differentiable; nothing of it but the spans' places is traced for.
    """
    return before_and_after(apply_fn, params, x, part, spans)[1]


def before_and_after(
    apply_fn: Callable, params: Any, x: jax.Array, part: jax.Array, spans: Spans
) -> tuple[Any, Any]:
    """`apply_fn(params, x)` as it is and, as `evaluate_changed`, with a stretch replaced."""
    outputs = lift(
        apply_fn,
        incremental,
        params,
        x,
        bundle=lambda i, leaf: Changed(leaf, part, spans),
        still=unchanged,
        each=whole,
    )
    return _both(outputs)


def _both(outputs: Any) -> tuple[Any, Any]:
    each = lambda take: jax.tree.map(take, outputs, is_leaf=lambda v: isinstance(v, Changed))
    return each(before), each(after)


def every_change(
    apply_fn: Callable, params: Any, x: jax.Array, part: jax.Array, spans: Spans
) -> tuple[Any, Any, list[tuple[jax.Array, jax.Array]]]:
    """`before_and_after`, and both for each value on the way, `x` first: a link of a `graph.chain`.

    Differences are not added up: over many steps their rounding would, and a NaN would stay.
    """
    found: list[Changed] = []

    def noting(rule):
        def noted(op):
            replaced = rule(op)
            return replaced and (lambda *inputs: note(replaced(*inputs)))

        return noted

    def note(made):
        found.extend([made] if isinstance(made, Changed) else made)
        return made

    own = {"conv_general_dilated": convolution_by_window, "dot_general": product_by_row}
    rows = {kind: noting(own.get(kind, rule)) for kind, rule in incremental.table}
    outputs = lift(
        apply_fn,
        RuleSet("incremental", rows, named=False),
        params,
        x,
        bundle=lambda i, leaf: note(Changed(leaf, part, spans)),
        still=unchanged,
        each=noting(whole),
    )
    return *_both(outputs), [(v.clean, after(v)) for v in found]


def pointwise(op: Op) -> Callable | None:
    """Functions of one place: on the stretch that any of their inputs changed on."""
    if op.members:
        return None  # a group is taken apart
    shape = op.outputs[0].shape

    def find(*inputs):
        spans = tuple(
            union([_along(v, axis, size) for v in changing(inputs)], size)
            for axis, size in enumerate(shape)
        )
        return (
            (op.resized(*(brought(v, spans, shape) for v in inputs)), spans) if any(spans) else None
        )

    return locally(op, find)


def _along(v: Changed, axis: int, size: int) -> Span | None:
    """Where a broadcast operand changes an axis of the result."""
    return v.spans[axis] if v.clean.shape[axis] == size else None


_POOLS = {
    "reduce_window_max": (lax.max, -math.inf),
    "reduce_window_min": (lax.min, math.inf),
    "reduce_window_sum": (lax.add, 0.0),
}


def pooling(op: Op) -> Callable | None:
    """Maxima, minima and sums over windows."""
    p = op.options
    if any(d > 1 for d in p["base_dilation"]) or not _is_float(op.inputs[0]):
        return None
    combine, neutral = _POOLS[op.primitive]

    def find(v):
        slides = {
            axis: Slide(
                (size - 1) * p["window_dilation"][axis] + 1,
                p["window_strides"][axis],
                p["padding"][axis],
                op.outputs[0].shape[axis],
            )
            for axis, size in enumerate(p["window_dimensions"])
        }
        fill = jnp.asarray(neutral, v.clean.dtype)
        region, results = gathered(v.clean, v.part, v.spans, slides, fill)
        if not results:
            return None
        part = lax.reduce_window(
            region,
            np.asarray(neutral, v.clean.dtype)[()],
            combine,
            p["window_dimensions"],
            p["window_strides"],
            [(0, 0) if axis in results else pair for axis, pair in enumerate(p["padding"])],
            window_dilation=p["window_dilation"],
        )
        return part, tuple(results.get(axis) for axis in range(v.clean.ndim))

    return locally(op, find)


def slicing(op: Op) -> Callable:
    """A strided slice: a window of one place."""
    p = op.options
    strides = p["strides"] or (1,) * len(p["start_indices"])

    def find(v):
        slides = {
            axis: Slide(1, stride, (-start, limit - size), out)
            for axis, (stride, start, limit, size, out) in enumerate(
                zip(
                    strides,
                    p["start_indices"],
                    p["limit_indices"],
                    v.clean.shape,
                    op.outputs[0].shape,
                    strict=True,
                )
            )
        }
        zero = jnp.zeros((), v.clean.dtype)
        region, results = gathered(v.clean, v.part, v.spans, slides, zero)
        if not results:
            return None
        axes = range(region.ndim)
        part = lax.slice(
            region,
            [0 if a in results else p["start_indices"][a] for a in axes],
            [region.shape[a] if a in results else p["limit_indices"][a] for a in axes],
            strides,
        )
        return part, tuple(results.get(axis) for axis in axes)

    return locally(op, find)


def padding(op: Op) -> Callable | None:
    """Padding shifts a stretch; what is padded did not change."""
    config = op.options["padding_config"]
    number: Any = op.operands[1]
    if op.operands[0] != 0 or any(op.depends[1:]):
        return None

    def find(v, *value):
        plain = [low >= 0 and high >= 0 and not hole for low, high, hole in config]
        v = whole_on(v, [axis for axis, fine in enumerate(plain) if not fine])
        if not any(v.spans):
            return None
        fill = value[0] if value else jnp.asarray(number.value, v.clean.dtype)
        pairs = list(zip(v.spans, config, strict=True))
        part = lax.pad(v.part, fill, [(0, 0, 0) if s else tuple(c) for s, c in pairs])
        return part, tuple(s and Span(s.starts + c[0], s.size, s.at) for s, c in pairs)

    return locally(op, find)


def concatenation(op: Op) -> Callable:
    """Side by side along an axis that is whole."""
    axis = op.options["dimension"]

    def find(*inputs):
        shape = op.outputs[0].shape
        spans = tuple(
            None if a == axis else union([v.spans[a] for v in changing(inputs)], size)
            for a, size in enumerate(shape)
        )
        if not any(spans):
            return None
        same = [size for a, size in enumerate(shape) if a != axis]
        parts = []
        for v in (inputs[o] for o in op.operands):  # type: ignore[index]
            own = list(same)
            own.insert(axis, before(v).shape[axis])
            parts.append(brought(v, spans, own))
        return lax.concatenate(parts, axis), spans

    return locally(op, find)


def transposition(op: Op) -> Callable:
    order = op.options["permutation"]
    return locally(op, lambda v: (v.part.transpose(order), tuple(v.spans[a] for a in order)))


def reshaping(op: Op) -> Callable:
    """A reshape (or squeeze, or new axes) that leaves the axes of the stretch as they are."""

    def find(v):
        before, shape = v.clean.shape, op.outputs[0].shape
        spans: list[Span | None] = [None] * len(shape)
        sizes = list(shape)
        for axis, s in enumerate(v.spans):
            if s is None:
                continue
            ahead = math.prod(before[:axis])
            places = [
                b
                for b, size in enumerate(shape)
                if size == before[axis] and math.prod(shape[:b]) == ahead
            ]
            if not places:
                return None
            spans[places[0]], sizes[places[0]] = s, s.size
        return v.part.reshape(sizes), tuple(spans)

    local = locally(op, find)

    def replaced(v):
        found = local(v)
        return found if any(found.spans) else found._replace(origin=v if any(v.spans) else v.origin)

    return replaced


def reduction(op: Op) -> Callable | None:
    """A sum or extreme over axes that the stretch has whole."""
    axes = op.options["axes"]
    reduce = _REDUCTIONS[op.primitive]

    def find(v):
        kept = [a for a in range(v.clean.ndim) if a not in axes]
        if any(v.spans[a] for a in axes):
            return None
        return reduce(v.part, tuple(axes)), tuple(v.spans[a] for a in kept)

    return locally(op, find)


_REDUCTIONS = {
    "reduce_sum": lambda a, axes: a.sum(axes),
    "reduce_max": lambda a, axes: a.max(axes),
    "reduce_min": lambda a, axes: a.min(axes),
}


_POINTWISE = (
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp copy copy_p cos"
    " cosh convert_element_type digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt"
    " integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not"
    " or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub"
    " tan tanh xor activation"
).split()

incremental = RuleSet(
    "incremental",
    {
        **dict.fromkeys(_POINTWISE, pointwise),
        **dict.fromkeys(_POOLS, pooling),
        **dict.fromkeys(_REDUCTIONS, reduction),
        **dict.fromkeys(("reshape", "squeeze", "expand_dims"), reshaping),
        **dict.fromkeys(("scan", "while", "cond"), whole),
        "conv_general_dilated": convolution,
        "slice": slicing,
        "pad": padding,
        "concatenate": concatenation,
        "transpose": transposition,
        "dot_general": product,
    },
    named=False,
)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)
