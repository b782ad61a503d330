"""What makes training quick on a CPU: gradients of convolutions and pooling that compile well.

Inside a compiled loop XLA's CPU backend runs the two gradients of a convolution 2 to 50 times
slower than outside one, because it rearranges only the convolutions of a program's outermost
computation. So both are spelled here as what needs no rearranging: the input's gradient as a plain
convolution with a kernel flipped beforehand, the kernel's gradient as one matrix product for each
of its places.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxviz.graph.rewrite import Op, RuleSet, rewrite
from jaxviz.rules.kernels_pool import max_pool

_POOL_OPTIONS = (
    "window_dimensions",
    "window_strides",
    "padding",
    "base_dilation",
    "window_dilation",
)


def accelerate(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The same function with gradients that are quick on a CPU; elsewhere returned as it is.

    Args:
      function: `(variables, inputs) -> outputs`.

    Returns:
      The same contract and values, gradients equal up to float rounding; equal for equal functions.

    Example:
      >>> image, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> f = lambda w, x: lax.conv_general_dilated(
      ...     x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> accelerate(f)(kernel, image).tolist() == f(kernel, image).tolist()
      True
    """
    return rewrite(function, _RULES) if jax.default_backend() == "cpu" else function


def _conv_rule(op: Op):
    options = op.options
    numbers = options["dimension_numbers"]
    rank = len(op.outputs[0].shape)
    last = (0, rank - 1, *range(1, rank - 1))  # batch and channel axes, then space: N...C
    plain = (
        len(op.inputs) == 2
        and numbers.lhs_spec == numbers.out_spec == last
        and numbers.rhs_spec == (rank - 1, rank - 2, *range(rank - 2))
        and options["feature_group_count"] == options["batch_group_count"] == 1
        and all(d == 1 for d in options["lhs_dilation"])
        and op.inputs[0].dtype == op.inputs[1].dtype == op.outputs[0].dtype
    )
    if not plain:
        return None
    geometry = (
        tuple(options["window_strides"]),
        tuple(tuple(p) for p in options["padding"]),
        tuple(options["rhs_dilation"]),
        options["precision"],
    )
    return functools.partial(_conv, geometry)


def _pool_rule(op: Op):
    options = {name: op.options[name] for name in _POOL_OPTIONS}
    supported = (
        len(op.inputs) == 1
        and jnp.issubdtype(op.inputs[0].dtype, jnp.floating)
        and all(d == 1 for d in options["base_dilation"])
        and all(min(p) >= 0 for p in options["padding"])
    )
    return functools.partial(max_pool, **options) if supported else None


_RULES = RuleSet(
    "fast_training",
    {"conv_general_dilated": _conv_rule, "reduce_window_max": _pool_rule},
    named=False,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry, x, kernel):
    strides, padding, dilation, precision = geometry
    return _plain_conv(x, kernel, strides, padding, rhs_dilation=dilation, precision=precision)


def _conv_forward(geometry, x, kernel):
    return _conv(geometry, x, kernel), (x, kernel)


def _conv_backward(geometry, saved, g):
    x, kernel = saved
    return _input_gradient(geometry, x, kernel, g), _kernel_gradient(geometry, x, kernel, g)


_conv.defvjp(_conv_forward, _conv_backward)


def _input_gradient(geometry, x, kernel, g):
    strides, padding, dilation, precision = geometry
    space = range(len(strides))
    # The barrier keeps XLA from folding the flip back into the convolution it could not run well.
    flipped = lax.optimization_barrier(jnp.swapaxes(jnp.flip(kernel, tuple(space)), -1, -2))
    pads = []
    for i in space:
        extent = (kernel.shape[i] - 1) * dilation[i] + 1
        before = extent - 1 - padding[i][0]
        spread = (g.shape[1 + i] - 1) * strides[i] + 1
        pads.append((before, x.shape[1 + i] + extent - 1 - spread - before))
    return _plain_conv(
        g,
        flipped,
        (1,) * len(strides),
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilation,
        precision=precision,
    )


def _kernel_gradient(geometry, x, kernel, g):
    strides, padding, dilation, precision = geometry
    edges = ((0, 0), *((max(low, 0), max(high, 0)) for low, high in padding), (0, 0))
    x = jnp.pad(x, edges)
    flat = g.reshape(-1, g.shape[-1])
    places = []
    for place in itertools.product(*map(range, kernel.shape[:-2])):
        start = [
            p * d + max(-low, 0) for p, d, (low, _) in zip(place, dilation, padding, strict=True)
        ]
        stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, g.shape[1:-1], strides, strict=True)]
        seen = lax.slice(
            x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1)
        ).reshape(-1, x.shape[-1])
        places.append(lax.dot_general(seen, flat, (((0,), (0,)), ((), ())), precision=precision))
    return jnp.stack(places).reshape(kernel.shape)


def _plain_conv(x, kernel, strides, padding, **options):
    rank = x.ndim
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(0, rank - 1, *range(1, rank - 1)),
        rhs_spec=(rank - 1, rank - 2, *range(rank - 2)),
        out_spec=(0, rank - 1, *range(1, rank - 1)),
    )
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers, **options
    )
