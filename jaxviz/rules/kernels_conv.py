"""Convolutions spelled so that XLA's CPU backend runs them, and their pullbacks, at full speed.

What it is slow at, and what stands here instead:
- depthwise: it runs one small convolution a channel; here one fused pass of shifted multiply-adds;
- gradients inside a loop: it rearranges only the outermost program's convolutions into a form its
  fast kernels take; here the pullback is a plain convolution from the start, its kernel flipped
  beforehand;
- one to three channels (first layers): no kernel suits them; here shifted multiply-adds forward,
  and backward one matrix product and its columns added in place;
- large strided kernels on few channels (stems): backward, the `stride` phases of the input are
  channels of one convolution of stride 1;
- a kernel's own gradient: one matrix product for each of its places;
- 1x1: a matrix product.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxviz.rules.conv_pullbacks import (
    Geometry,
    add_columns,
    add_taps,
    blocks_as_channels,
    channels_last,
    convolve_back,
    times,
    wide,
)
from jaxviz.rules.windows import materialised, places, with_pullback

FEW_CHANNELS = 3
TAPS = 27  # multiply-adds an output that still beat a convolution's overhead (3 x 3 x 3 channels)
LARGEST_SUM = 64  # places of a kernel up to which its gradient is one matrix product for each
COLUMNS = 9  # places of a kernel up to which adding columns beats phases


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
):
    """Convolution, the same function as the equation `conv_general_dilated`, quick on a CPU.

    Equal up to the order of sums, gradients too. Takes the equation's parameters; `supported` tells
    which it can do. Channels that are not last are moved there and back, as XLA does itself.

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
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    rank = lhs.ndim
    x = lhs.transpose([lhs_spec[0], *lhs_spec[2:], lhs_spec[1]])
    kernel = rhs.transpose([*rhs_spec[2:], rhs_spec[1], rhs_spec[0]])
    geometry = Geometry(
        strides=tuple(window_strides),
        padding=tuple((low, high) for low, high in padding),
        dilation=tuple(rhs_dilation),
        depthwise=feature_group_count > 1,
        precision=precision,
    )
    if geometry.depthwise:
        # Output channel c * multiplier + m reads input channel c.
        x = jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)
    y = _pointwise(geometry, x, kernel) if _is_pointwise(geometry, kernel) else None
    y = _conv(geometry, x, kernel) if y is None else y
    last = (out_spec[0], *out_spec[2:], out_spec[1])
    return y.transpose([last.index(axis) for axis in range(rank)])


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


def _is_pointwise(geometry, kernel):
    plain = math.prod(kernel.shape[:-2]) == 1 and not geometry.depthwise
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
    return _native(geometry, x, kernel)


def _conv_jvp(geometry, primals, tangents):
    x, kernel = primals
    dx, dkernel = tangents
    y = _conv(geometry, x, kernel)
    dy = None
    if not isinstance(dx, SymbolicZero):
        pullback = functools.partial(_pull_back(geometry, x.shape, kernel), x.shape)
        dy = with_pullback(pullback, y, dx)
    if not isinstance(dkernel, SymbolicZero):
        many = math.prod(kernel.shape[:-2]) > LARGEST_SUM
        forward = _taps if geometry.depthwise else _native if many else _products
        part = forward(geometry, x, dkernel)
        dy = part if dy is None else dy + part
    return y, jnp.zeros_like(y) if dy is None else dy


_conv.defjvp(_conv_jvp, symbolic_zeros=True)


def _pull_back(geometry, shape, kernel):
    """The pullback that suits the shapes, `(shape of x, g) -> gradient of x`."""
    places_ = math.prod(kernel.shape[:-2])
    if geometry.depthwise:
        back = add_taps
    elif kernel.shape[-2] > FEW_CHANNELS:
        back = convolve_back
    elif places_ <= COLUMNS:
        back = add_columns
    elif min(geometry.strides) > 1 and max(geometry.dilation) == 1:
        back = blocks_as_channels
    else:
        back = convolve_back
    return functools.partial(back, geometry, kernel)


def _native(geometry, x, kernel):
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=channels_last(x.ndim),
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


def _taps(geometry, x, kernel):
    """Forward: for each place of the kernel, the shifted input times its weights, added up."""
    dtype, x, kernel = x.dtype, wide(x), wide(kernel)
    weights = kernel.reshape(-1, *kernel.shape[-2:])
    total: Any = None
    for number, part in enumerate(places(x, geometry.windows(kernel.shape))):
        # Depthwise: channels of input and output are the same axis, and the weights' other is 1.
        for c in range(weights.shape[1]):
            column = part if geometry.depthwise else part[..., c : c + 1]
            term = times(column, weights[number, c])
            total = term if total is None else total + term
    return total.astype(dtype)
