"""Convolutions and matrix products of which a stretch of the input changes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxviz.graph.rewrite import Op
from jaxviz.rules.bundles import Changed, locally, whole_on
from jaxviz.rules.kernels_conv import CONV_OPTIONS, channels_last
from jaxviz.rules.spans import Slide, Span, cut, gathered, moved, slid
from jaxviz.rules.winograd import MOST_SPREAD, filters, spread

# From which on the difference to before gains: channels of a convolution, rows of a product, and
# the flattened numbers for each that changed.
_LEAST_CHANNELS = 8
_LEAST_ROWS = 8
_LEAST_SAVED = 3


def convolution(op: Op) -> Callable | None:
    """A convolution of a changed input with a fixed kernel."""
    by_window = convolution_by_window(op)
    if by_window is None:
        return None
    return lambda v, kernel: _by_difference(op, v, kernel) or by_window(v, kernel)


def convolution_by_window(op: Op) -> Callable | None:
    numbers = op.options["dimension_numbers"]
    if op.operands != (0, 1) or op.depends != (True, False) or op.options["batch_group_count"] > 1:
        return None
    space, out_space = numbers.lhs_spec[2:], numbers.out_spec[2:]

    def find(v, kernel):
        slides = _slides(op, kernel)
        v = whole_on(v, [a for a in range(v.clean.ndim) if a not in slides])
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
        options = {k: op.options[k] for k in CONV_OPTIONS if k != "padding"}
        return lax.conv_general_dilated(region, kernel, padding=padding, **options), tuple(spans)

    return locally(op, find)


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
    v, slides = whole_on(v, numbers.lhs_spec[:2]), _slides(op, kernel)
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


def product(op: Op) -> Callable | None:
    """A matrix product with fixed weights that contracts axes the stretch has whole."""
    by_row = product_by_row(op)
    if by_row is None:
        return None
    return lambda v, weights: _product_by_difference(op, v, weights) or by_row(v, weights)


def product_by_row(op: Op) -> Callable | None:
    (contracted, _), (batch, _) = op.options["dimension_numbers"]
    if op.operands != (0, 1) or op.depends != (True, False) or batch:
        return None
    options = {k: op.options[k] for k in ("precision", "preferred_element_type")}

    def find(v, weights):
        v = whole_on(v, contracted)
        if not any(v.spans):
            return None
        free = [a for a in range(v.clean.ndim) if a not in contracted]
        spans = tuple(v.spans[a] for a in free)
        part = lax.dot_general(v.part, weights, op.options["dimension_numbers"], **options)
        return part, spans + (None,) * (part.ndim - len(spans))

    return locally(op, find)


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
