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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxviz.graph.lift import lift
from jaxviz.graph.rewrite import Op, RuleSet
from jaxviz.rules.kernels_conv import channels_last
from jaxviz.rules.spans import (
    Slide,
    Span,
    Spans,
    cut,
    gathered,
    moved,
    paste,
    slid,
    union,
    widened,
)
from jaxviz.rules.winograd import MOST_SPREAD, filters, spread


class Changed(NamedTuple):
    """A value before and after.

    Attributes:
      clean: Before.
      part: The stretch that changed; None where nothing did.
      spans: Where it lies, one for each axis.
      origin: The same numbers in another shape in which they changed on a stretch, if they are
        whole here; None where that is not known.
    """

    clean: jax.Array
    part: Any
    spans: Spans
    origin: Any = None


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
    return each(_clean), each(after)


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

    own = {"conv_general_dilated": _convolution_by_window, "dot_general": _product_by_row}
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


def unchanged(array: jax.Array) -> Changed:
    """The bundle of a value that no change reaches."""
    return Changed(array, None, (None,) * jnp.ndim(array))


def after(v: Any) -> jax.Array:
    """A value after the change, whole."""
    if not isinstance(v, Changed):
        return v
    return v.clean if v.part is None else paste(v.clean, v.part, v.spans)


def whole(op: Op) -> Callable:
    """Any operation: on whole inputs."""

    def replaced(*inputs):
        clean = op.evaluate(*map(_clean, inputs))
        if not _changes(inputs):
            return jax.tree.map(unchanged, clean)
        changed = op.evaluate(*map(after, inputs))
        if len(op.outputs) == 1:
            return Changed(clean, changed, (None,) * clean.ndim)
        return [Changed(a, b, (None,) * a.ndim) for a, b in zip(clean, changed, strict=True)]

    return replaced


def _locally(op: Op, find: Callable[..., tuple[jax.Array, Spans] | None]) -> Callable:
    """An operation of one output whose changed stretch `find(*inputs)` computes, if it can."""

    def replaced(*inputs):
        changes = _changes(inputs)
        if not changes or not any(any(v.spans) for v in changes):
            return whole(op)(*inputs)
        found = find(*inputs)
        if found is None:
            return whole(op)(*inputs)
        return Changed(op.evaluate(*map(_clean, inputs)), *found)

    return replaced


def pointwise(op: Op) -> Callable | None:
    """Functions of one place: on the stretch that any of their inputs changed on."""
    if op.members:
        return None  # a group is taken apart
    shape = op.outputs[0].shape

    def find(*inputs):
        spans = tuple(
            union([_along(v, axis, size) for v in _changes(inputs)], size)
            for axis, size in enumerate(shape)
        )
        return (
            (op.resized(*(_brought(v, spans, shape) for v in inputs)), spans)
            if any(spans)
            else None
        )

    return _locally(op, find)


def _along(v: Changed, axis: int, size: int) -> Span | None:
    """Where a broadcast operand changes an axis of the result."""
    return v.spans[axis] if v.clean.shape[axis] == size else None


def _brought(v: Any, spans: Spans, shape: Sequence[int]) -> jax.Array:
    """An operand on the stretch `spans` of a result of `shape`, that it is broadcast to."""
    array = _clean(v)
    if jnp.ndim(array) == 0:
        return array
    pairs = zip(array.shape, shape, spans, strict=True)
    spans = tuple(s if size == full else None for size, full, s in pairs)
    if not isinstance(v, Changed) or v.part is None:
        return cut(array, spans)
    return widened(v.clean, v.part, v.spans, spans)


# From which on the difference to before gains: channels of a convolution, rows of a product, and
# the flattened numbers for each that changed.
_LEAST_CHANNELS = 8
_LEAST_ROWS = 8
_LEAST_SAVED = 3
_CONV_OPTIONS = (
    "window_strides",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
)


def convolution(op: Op) -> Callable | None:
    """A convolution of a changed input with a fixed kernel."""
    by_window = _convolution_by_window(op)
    if by_window is None:
        return None
    return lambda v, kernel: _by_difference(op, v, kernel) or by_window(v, kernel)


def _convolution_by_window(op: Op) -> Callable | None:
    numbers = op.options["dimension_numbers"]
    if op.operands != (0, 1) or op.depends != (True, False) or op.options["batch_group_count"] > 1:
        return None
    space, out_space = numbers.lhs_spec[2:], numbers.out_spec[2:]

    def find(v, kernel):
        slides = _slides(op, kernel)
        v = _whole_on(v, [a for a in range(v.clean.ndim) if a not in slides])
        zero = jnp.zeros((), v.clean.dtype)
        region, results = gathered(v.clean, v.part, v.spans, slides, zero)
        if not results:
            return None
        padding = [
            (0, 0) if axis in results else op.options["padding"][i] for i, axis in enumerate(space)
        ]
        spans: list[Span | None] = [None] * v.clean.ndim
        for i, axis in enumerate(space):
            spans[out_space[i]] = results.get(axis)
        options = {k: op.options[k] for k in _CONV_OPTIONS}
        return lax.conv_general_dilated(region, kernel, padding=padding, **options), tuple(spans)

    return _locally(op, find)


def _slides(op: Op, kernel: Any) -> dict[int, Slide]:
    """How a convolution's windows lie, for each axis of its input that has no holes."""
    _, kernel_spec, out_spec = op.options["dimension_numbers"]
    return {
        axis: Slide(
            (kernel.shape[kernel_spec[2 + i]] - 1) * op.options["rhs_dilation"][i] + 1,
            op.options["window_strides"][i],
            op.options["padding"][i],
            op.outputs[0].shape[out_spec[2 + i]],
        )
        for i, axis in enumerate(op.options["dimension_numbers"].lhs_spec[2:])
        if op.options["lhs_dilation"][i] == 1
    }


def _by_difference(op: Op, v: Changed, kernel: jax.Array) -> Changed | None:
    """A convolution by what the difference to before adds; None where that saves no products.

    Measured on a CPU in 32 bits alone. Of 4x4 changed numbers a 3x3 kernel makes 6x6, for which
    the sum reads 8x8. On larger ones Winograd's filtering of what is read is as quick.
    """
    options, numbers = op.options, op.options["dimension_numbers"]
    space = numbers.lhs_spec[2:]
    size = [kernel.shape[a] for a in numbers.rhs_spec[2:]]
    steps = (*options["window_strides"], *options["lhs_dilation"], *options["rhs_dilation"])
    suits = (
        v.part is not None
        and jax.default_backend() == "cpu"
        and filters(size, steps, kernel.dtype, options["precision"])
        and options["feature_group_count"] == 1
        and min(kernel.shape[a] for a in numbers.rhs_spec[:2]) >= _LEAST_CHANNELS
        and kernel.dtype == v.clean.dtype
        and all(v.spans[a] and v.part.shape[a] <= MOST_SPREAD for a in space)
    )
    if not suits:
        return None
    v, slides = _whole_on(v, numbers.lhs_spec[:2]), _slides(op, kernel)
    reached: list[Span | None] = [None] * 4
    kept: list[Span | None] = [None] * 4
    for axis, out_axis in zip(space, numbers.out_spec[2:], strict=True):
        slide, found = slides[axis], v.spans[axis]
        assert found is not None
        # It hangs over the edge where the convolution pads less than the kernel reaches.
        start = found.starts + slide.padding[0] - (slide.reach - 1)
        reached[out_axis] = Span(start, found.size + slide.reach - 1, found.at)
        kept[out_axis] = slid(found, slide)
    if not all(kept[a] for a in numbers.out_spec[2:]):
        return None
    difference = v.part - cut(v.clean, v.spans)
    added = channels_last(
        lambda x, kernel: spread(x, kernel, options["precision"]), difference, kernel, numbers
    )
    clean = op.evaluate(v.clean, kernel)
    part = cut(clean, tuple(kept)) + moved(added, tuple(reached), tuple(kept))
    return Changed(clean, part, tuple(kept))


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

    return _locally(op, find)


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

    return _locally(op, find)


def padding(op: Op) -> Callable | None:
    """Padding shifts a stretch; what is padded did not change."""
    config = op.options["padding_config"]
    number: Any = op.operands[1]
    if op.operands[0] != 0 or any(op.depends[1:]):
        return None

    def find(v, *value):
        plain = [low >= 0 and high >= 0 and not hole for low, high, hole in config]
        v = _whole_on(v, [axis for axis, fine in enumerate(plain) if not fine])
        if not any(v.spans):
            return None
        fill = value[0] if value else jnp.asarray(number.value, v.clean.dtype)
        pairs = list(zip(v.spans, config, strict=True))
        part = lax.pad(v.part, fill, [(0, 0, 0) if s else tuple(c) for s, c in pairs])
        return part, tuple(s and Span(s.starts + c[0], s.size, s.at) for s, c in pairs)

    return _locally(op, find)


def concatenation(op: Op) -> Callable:
    """Side by side along an axis that is whole."""
    axis = op.options["dimension"]

    def find(*inputs):
        shape = op.outputs[0].shape
        spans = tuple(
            None if a == axis else union([v.spans[a] for v in _changes(inputs)], size)
            for a, size in enumerate(shape)
        )
        if not any(spans):
            return None
        same = [size for a, size in enumerate(shape) if a != axis]
        parts = []
        for v in (inputs[o] for o in op.operands):  # type: ignore[index]
            own = list(same)
            own.insert(axis, _clean(v).shape[axis])
            parts.append(_brought(v, spans, own))
        return lax.concatenate(parts, axis), spans

    return _locally(op, find)


def transposition(op: Op) -> Callable:
    order = op.options["permutation"]
    return _locally(op, lambda v: (v.part.transpose(order), tuple(v.spans[a] for a in order)))


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

    local = _locally(op, find)

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

    return _locally(op, find)


_REDUCTIONS = {
    "reduce_sum": lambda a, axes: a.sum(axes),
    "reduce_max": lambda a, axes: a.max(axes),
    "reduce_min": lambda a, axes: a.min(axes),
}


def product(op: Op) -> Callable | None:
    """A matrix product with fixed weights that contracts axes the stretch has whole."""
    by_row = _product_by_row(op)
    if by_row is None:
        return None
    return lambda v, weights: _product_by_difference(op, v, weights) or by_row(v, weights)


def _product_by_row(op: Op) -> Callable | None:
    (contracted, _), (batch, _) = op.options["dimension_numbers"]
    if op.operands != (0, 1) or op.depends != (True, False) or batch:
        return None
    options = {k: op.options[k] for k in ("precision", "preferred_element_type")}

    def find(v, weights):
        v = _whole_on(v, contracted)
        if not any(v.spans):
            return None
        free = [a for a in range(v.clean.ndim) if a not in contracted]
        spans = tuple(v.spans[a] for a in free)
        part = lax.dot_general(v.part, weights, op.options["dimension_numbers"], **options)
        return part, spans + (None,) * (part.ndim - len(spans))

    return _locally(op, find)


def _product_by_difference(op: Op, v: Changed, weights: jax.Array) -> Changed | None:
    """A product with the flattened image by what its changed stretch adds; None if that is much.

    The weights of the stretch are cut out for each place, which pays only from some rows on.
    """
    (contracted, against), _ = op.options["dimension_numbers"]
    origin = v.origin
    if origin is None or len(contracted) != 1 or jax.default_backend() != "cpu":
        return None
    (axis,), (row,), shape, whole_shape = contracted, against, v.clean.shape, origin.clean.shape
    last = len(whole_shape) - (len(shape) - 1 - axis)  # behind the axes that were flattened
    inner, places = whole_shape[axis:last], origin.spans[axis:last]
    outer = (*origin.spans[:axis], *origin.spans[last:])
    suits = (
        (*whole_shape[:axis], math.prod(inner), *whole_shape[last:]) == shape
        and not any(outer)
        and v.clean.dtype == weights.dtype == jnp.float32
        and math.prod(shape) >= _LEAST_ROWS * shape[axis]
        and _LEAST_SAVED * origin.part.size <= v.clean.size
    )
    if not suits:
        return None
    split = weights.reshape(*weights.shape[:row], *inner, *weights.shape[row + 1 :])
    around = (None,) * row, (None,) * (weights.ndim - row - 1)
    added = lax.dot_general(
        origin.part - cut(origin.clean, origin.spans),
        cut(split, (*around[0], *places, *around[1])),
        ((range(axis, last), range(row, row + len(inner))), ((), ())),
        op.options["precision"],
        op.options["preferred_element_type"],
    )
    clean = op.evaluate(v.clean, weights)
    return Changed(clean, clean + added, (None,) * clean.ndim)


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


def _whole_on(v: Changed, axes: Sequence[int]) -> Changed:
    """The same change, its stretch all of the given axes."""
    assert v.part is not None
    spans = tuple(None if axis in axes else s for axis, s in enumerate(v.spans))
    return Changed(v.clean, widened(v.clean, v.part, v.spans, spans), spans)


def _clean(v: Any) -> jax.Array:
    return v.clean if isinstance(v, Changed) else v


def _changes(inputs: Sequence[Any]) -> list[Changed]:
    return [v for v in inputs if isinstance(v, Changed) and v.part is not None]


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)
