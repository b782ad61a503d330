"""Convolutions spelled so that XLA's CPU backend runs them, and their pullbacks, at full speed.

What it is slow at, and what stands here instead:
- depthwise: it runs one small convolution a channel; here one fused pass of shifted multiply-adds;
- gradients inside a loop: it rearranges only the outermost program's convolutions into a form its
  fast kernels take; here the pullback is a plain convolution from the start, its kernel flipped
  beforehand;
- one to three channels (first layers): no kernel suits them; here shifted multiply-adds forward,
  and backward one matrix product and its columns added in place;
- backward on small maps (turning the kernel round costs more than the convolution), strided (it
  works through zeros) or to far fewer channels: the same matrix product and columns;
- very large strided kernels on few channels: backward, the `stride` phases of the input are
  channels of one convolution of stride 1;
- a kernel's own gradient: one matrix product for each of its places;
- 3x3 on many channels: fewer products than it takes itself, by Winograd's filtering, both ways;
- 1x1: a matrix product.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxviz.graph.materialised import materialised
from jaxviz.rules.windows import Windows, add_places, places, with_pullback
from jaxviz.rules.winograd import filters, winograd

FEW_CHANNELS = 3
TAPS = 27  # multiply-adds an output that still beat a convolution's overhead (3 x 3 x 3 channels)
LARGEST_SUM = 64  # places of a kernel up to which its gradient is one matrix product for each
COLUMNS = 49  # places of a kernel up to which adding columns beats phases
FEW_OUTPUTS = 512  # places of the output, over the batch, up to which columns beat a convolution
MOST_COLUMNS = 2**22  # their numbers, beyond which memory costs more than they save
# Winograd's filtering gains from so many channels, squares of outputs and products at each
# pair of points, and up to so many values there before memory costs more than it saves.
LEAST_CHANNELS = 64
LEAST_SQUARES = 49
LEAST_PRODUCTS = 2**19
MOST_VALUES = 2**23
# Outputs of the squares for each one that is kept: 4x4 on maps of 7x7 or 14x14 come to 1.3.
MOST_OVERHANG = 1.25

# What `lax.conv_general_dilated` has to be told again of an equation.
CONV_OPTIONS = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
)


class Geometry(NamedTuple):
    """A convolution with the batch first and channels last; space in between."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    depthwise: bool
    precision: Any
    filtered: bool

    def windows(self, kernel_shape: tuple[int, ...]) -> Windows:
        """The windows on an input [N, ..., C]."""
        return Windows(
            (1, *kernel_shape[:-2], 1),
            (1, *self.strides, 1),
            ((0, 0), *self.padding, (0, 0)),
            (1, *self.dilation, 1),
        )


def conv(
    lhs,
    rhs,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    precision,
    preferred_element_type,
    filtered=True,
):
    """Convolution, the same function as the equation `conv_general_dilated`, quick on a CPU.

    Equal up to the order of sums, gradients too. Takes the equation's parameters; `supported` tells
    which it can do. Channels that are not last are moved there and back, as XLA does itself. It is
    a `jit` of its own, so layers of the same shape are traced and differentiated once.

    Args:
      lhs: Input, laid out as `dimension_numbers.lhs_spec` says.
      rhs: Kernel, dtype of `lhs`.
      window_strides: Steps, one for each spatial dimension, as all that follow.
      padding: Pairs (low, high); may be negative.
      lhs_dilation: Ones.
      rhs_dilation: Distance between neighbouring places of the kernel.
      dimension_numbers: A `jax.lax.ConvDimensionNumbers`.
      feature_group_count: 1, or the number of input channels (depthwise).
      batch_group_count: 1.
      precision: Handed to products and convolutions.
      preferred_element_type: None or the dtype of `lhs`.
      filtered: Whether Winograd's filtering may be taken where it runs faster; a program with it
        takes longer to compile.

    Returns:
      The convolution, dtype of `lhs`. 16-bit inputs are multiplied and added in 32 bits.

    Raises:
      ValueError: The options are none that `supported` allows.
    """
    options = dict(
        lhs_dilation=lhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        preferred_element_type=preferred_element_type,
    )
    if not supported(lhs, rhs, **options):
        raise ValueError(
            "conv: lhs_dilation and batch_group_count must be 1, groups 1 or the input channels, "
            f"dtypes one floating dtype; got {options}, {lhs.dtype}, {rhs.dtype}. "
            "Use lax.conv_general_dilated for these."
        )
    geometry = Geometry(
        strides=tuple(window_strides),
        padding=tuple((low, high) for low, high in padding),
        dilation=tuple(rhs_dilation),
        depthwise=feature_group_count > 1,
        precision=precision,
        filtered=filtered,
    )
    # 1x1 is an operation or three, for which a call would be one more.
    shape = tuple(rhs.shape[axis] for axis in _last(dimension_numbers.rhs_spec))
    by = _pointwise if _is_pointwise(geometry, shape) else _remembered
    return channels_last(functools.partial(by, geometry), lhs, rhs, dimension_numbers)


@functools.partial(jax.jit, static_argnums=0)
def _remembered(geometry, x, kernel):
    """A convolution with the batch first, channels last; what JAX traces of it, it keeps."""
    if geometry.depthwise:
        # Output channel c * multiplier + m reads input channel c.
        x = jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)
    return _conv(geometry, x, kernel)


def channels_last(function, lhs, rhs, numbers):
    """`function(x, kernel)` of `[N, ..., C]` and `[..., C, O]`, for arrays laid out as a
    `ConvDimensionNumbers` says."""
    order = lambda spec: (spec[0], *spec[2:], spec[1])
    kernel = rhs.transpose(_last(numbers.rhs_spec))
    y = function(lhs.transpose(order(numbers.lhs_spec)), kernel)
    return y.transpose([order(numbers.out_spec).index(axis) for axis in range(y.ndim)])


def _last(spec):
    """The axes of a kernel in the order `[..., C, O]`."""
    return (*spec[2:], spec[1], spec[0])


def supported(
    lhs,
    rhs,
    *,
    lhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    preferred_element_type,
    **_,
) -> bool:
    """Whether `conv` takes these arrays (or their shapes) and parameters of the equation."""
    channels = lhs.shape[dimension_numbers.lhs_spec[1]]
    return (
        all(d == 1 for d in lhs_dilation)
        and batch_group_count == 1
        and feature_group_count in (1, channels)
        and lhs.dtype == rhs.dtype
        and preferred_element_type in (None, lhs.dtype)
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lhs.ndim > 2
        and 0 not in (*lhs.shape, *rhs.shape)
    )


def _is_pointwise(geometry, shape):
    plain = math.prod(shape[:-2]) == 1 and not geometry.depthwise
    return plain and all(p == (0, 0) for p in geometry.padding)


def _pointwise(geometry, x, kernel):
    """A 1x1 convolution as a matrix product; JAX's own derivatives of it are quick."""
    x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *geometry.strides, 1))
    matrix = kernel.reshape(kernel.shape[-2:])
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(x, matrix, axes, geometry.precision, x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _conv(geometry, x, kernel):
    channels, outputs = kernel.shape[-2:]
    taps = math.prod(kernel.shape[:-2]) * channels
    if geometry.depthwise or (channels <= FEW_CHANNELS and taps <= TAPS and outputs > 1):
        return materialised(functools.partial(_taps, geometry), x, kernel)
    side = _square(geometry, x, kernel)
    if side:
        return winograd(x, kernel, geometry.padding, side, geometry.precision)
    return _native(geometry, x, kernel)


def _conv_jvp(geometry, primals, tangents):
    x, kernel = primals
    dx, dkernel = tangents
    y = _conv(geometry, x, kernel)
    dy = None
    if not isinstance(dx, SymbolicZero):
        pullback = functools.partial(_pull_back(geometry, x.shape, y, kernel), x.shape)
        dy = with_pullback(pullback, y, dx)
    if not isinstance(dkernel, SymbolicZero):
        many = math.prod(kernel.shape[:-2]) > LARGEST_SUM
        forward = _taps if geometry.depthwise else _native if many else _products
        part = forward(geometry, x, dkernel)
        dy = part if dy is None else dy + part
    return y, jnp.zeros_like(y) if dy is None else dy


_conv.defjvp(_conv_jvp, symbolic_zeros=True)


def _pull_back(geometry, shape, y, kernel):
    """The pullback that suits the shapes, `(shape of x, g) -> gradient of x`."""
    places_ = math.prod(kernel.shape[:-2])
    channels, outputs = kernel.shape[-2:]
    strided = min(geometry.strides) > 1
    positions = math.prod(y.shape[:-1])
    if geometry.depthwise:
        back = _add_taps
    elif channels <= FEW_CHANNELS:
        phased = strided and max(geometry.dilation) == 1
        many = _phases_as_channels if phased else _convolve_back
        back = _add_columns if places_ <= COLUMNS else many
    elif side := _square(geometry, y, kernel):
        back = functools.partial(_filter_back, side)
    elif (
        places_ <= COLUMNS
        and positions * places_ * channels <= MOST_COLUMNS
        and (positions <= FEW_OUTPUTS or strided or outputs >= 4 * channels)
    ):
        back = _add_columns
    else:
        back = _convolve_back
    return functools.partial(back, geometry, kernel)


def _square(geometry, x, kernel):
    """Side of the squares with which Winograd's filtering is quickest; 0 where the plain sum is."""
    *size, channels, outputs = kernel.shape
    steps = (*geometry.strides, *geometry.dilation)
    if (
        not filters(size, steps, x.dtype, geometry.precision)
        or geometry.depthwise
        or not geometry.filtered
        or min(channels, outputs) < LEAST_CHANNELS
    ):
        return 0
    for side in (4, 2):
        squares = len(x) * math.prod(-(-n // side) for n in x.shape[1:3])
        values = squares * (side + 2) ** 2 * (channels + outputs)
        many = squares >= LEAST_SQUARES and squares * channels * outputs >= LEAST_PRODUCTS
        overhang = squares * side**2 / math.prod(x.shape[:3])
        if many and values <= MOST_VALUES and overhang <= MOST_OVERHANG:
            return side
    return 0


def _native(geometry, x, kernel):
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_channels_last(x.ndim),
        feature_group_count=x.shape[-1] if geometry.depthwise else 1,
        precision=geometry.precision,
        preferred_element_type=x.dtype,
    )


def _products(geometry, x, kernel):
    """Forward: one matrix product for each place of the kernel. Never run but transposed, as the
    kernel's gradient, where it needs no convolution of a form that XLA is slow at inside a loop."""
    matrices = kernel.reshape(-1, *kernel.shape[-2:])
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    total = None
    for number, part in enumerate(places(x, geometry.windows(kernel.shape))):
        term = lax.dot_general(part, matrices[number], axes, geometry.precision, x.dtype)
        total = term if total is None else total + term
    return total


def _channels_last(rank):
    last = (0, rank - 1, *range(1, rank - 1))
    return lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)


def _wide(x):
    """16-bit floats in 32 bits, for sums; others as they are."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def _taps(geometry, x, kernel):
    """Forward: for each place of the kernel, the shifted input times its weights, added up."""
    dtype, x, channels = x.dtype, _wide(x), kernel.shape[-2]
    weights = _wide(kernel).reshape(-1, kernel.shape[-1])
    total: Any = None
    for number, part in enumerate(places(x, geometry.windows(kernel.shape))):
        # Depthwise: channels of input and output are the same axis, and the weights' other is 1.
        for c in range(channels):
            column = part if geometry.depthwise else lax.slice_in_dim(part, c, c + 1, axis=-1)
            term = _times(column, weights, number * channels + c)
            total = term if total is None else lax.add(total, term)
    return total.astype(dtype)


def _times(x, weights, row):
    """`x` [..., C or 1] times a row of `weights` [M, C], broadcast over all but the last axis.

    By `lax` alone: there are dozens, and operators take several times as long to trace.
    """
    shape = (*x.shape[:-1], weights.shape[1])
    if x.shape != shape:
        x = lax.broadcast_in_dim(x, shape, range(x.ndim))
    weights = lax.index_in_dim(weights, row, keepdims=False)
    return lax.mul(x, lax.broadcast_in_dim(weights, shape, (x.ndim - 1,)))


def _add_taps(geometry, kernel, shape, g):
    """Backward, depthwise: for each place, the weighted gradient where it came from."""
    weights = _wide(kernel).reshape(-1, kernel.shape[-1])
    wide_g = _wide(g)
    part = lambda number, shift: _times(shift(wide_g), weights, number)
    return add_places(part, geometry.windows(kernel.shape), shape).astype(g.dtype)


def _add_columns(geometry, kernel, shape, g):
    """Backward: one matrix product gives every place's part; each is added where it came from."""
    channels, outputs = kernel.shape[-2:]
    matrix = _wide(kernel).reshape(-1, outputs)
    axes = (((g.ndim - 1,), (1,)), ((), ()))
    columns = lax.dot_general(_wide(g), matrix, axes, geometry.precision)

    def part(number, shift):
        return shift(columns)[..., number * channels : (number + 1) * channels]

    return add_places(part, geometry.windows(kernel.shape), shape).astype(g.dtype)


def _convolve_back(geometry, kernel, shape, g):
    """Backward: a plain convolution with the kernel flipped and its channels swapped beforehand.

    The barrier keeps XLA from folding that back into a convolution it has no fast kernel for.
    """
    pads = _pads_back(geometry, kernel, shape, g)
    return lax.conv_general_dilated(
        g,
        lax.optimization_barrier(_turned(kernel)),
        (1,) * len(pads),
        pads,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_channels_last(g.ndim),
        precision=geometry.precision,
        preferred_element_type=g.dtype,
    )


def _filter_back(side, geometry, kernel, shape, g):
    """Backward, 3x3: the same convolution as `_convolve_back` by Winograd's filtering."""
    pads = _pads_back(geometry, kernel, shape, g)
    return winograd(g, kernel, pads, side, geometry.precision, turned=True)


def _turned(kernel):
    return jnp.flip(kernel, tuple(range(kernel.ndim - 2))).swapaxes(-1, -2)


def _pads_back(geometry, kernel, shape, g):
    """Of the convolution that leads from `g` back to an input of `shape`."""
    space = range(g.ndim - 2)
    pads = []
    for i in space:
        reach = (kernel.shape[i] - 1) * geometry.dilation[i]
        low = reach - geometry.padding[i][0]
        spread = (g.shape[1 + i] - 1) * geometry.strides[i] + 1
        pads.append((low, shape[1 + i] + reach - spread - low))
    return pads


def _phases_as_channels(geometry, kernel, shape, g):
    """Backward, strided: a convolution of stride 1 whose channels are the phases of the input."""
    strides, space = geometry.strides, range(g.ndim - 2)
    *size, channels, outputs = kernel.shape
    blocks = [-(-k // s) for k, s in zip(size, strides, strict=True)]
    room = [(0, b * s - k) for b, s, k in zip(blocks, strides, size, strict=True)]
    whole = jnp.pad(kernel, [*room, (0, 0), (0, 0)])
    halves = itertools.chain.from_iterable(zip(blocks, strides, strict=True))
    whole = jnp.flip(whole.reshape(*halves, channels, outputs), tuple(2 * i for i in space))
    n = len(strides)
    order = [*range(0, 2 * n, 2), 2 * n + 1, *range(1, 2 * n, 2), 2 * n]
    flipped = whole.transpose(order).reshape(*blocks, outputs, -1)
    pads = [(b - 1, b - 1) for b in blocks]
    z = lax.conv_general_dilated(
        g,
        lax.optimization_barrier(flipped),
        (1,) * n,
        pads,
        dimension_numbers=_channels_last(g.ndim),
        precision=geometry.precision,
        preferred_element_type=g.dtype,
    )
    z = z.reshape(*z.shape[:-1], *strides, channels)
    order = itertools.chain.from_iterable((1 + i, 1 + n + i) for i in space)
    out = [m * s for m, s in zip(z.shape[1 : n + 1], strides, strict=True)]
    z = z.transpose([0, *order, 2 * n + 1]).reshape(z.shape[0], *out, channels)
    fit = [
        (-low, m + low - o, 0)
        for (low, _), m, o in zip(geometry.padding, shape[1:-1], out, strict=True)
    ]
    return lax.pad(z, jnp.zeros((), z.dtype), [(0, 0, 0), *fit, (0, 0, 0)])
