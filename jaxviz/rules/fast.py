"""`fast`: the same function and gradients, at the speed the machine allows.

XLA's CPU backend is slow at the pullback of max pooling, at depthwise convolutions, at gradients of
convolutions inside loops and at first layers, and may lose the gradient of a maximum along an axis
(`kernels_extreme`). `rewrite(apply_fn, fast)` puts kernels without these faults in place, of any
function; elsewhere than on a CPU it changes nothing.

What takes long to compile is weighed against what it saves. All kernels but one compile in about
the time of what they replace. Winograd's filtering of a 3x3 convolution takes 0.3 s more, each way,
and saves some 3.5 ps for each of the sum's floating-point operations (two cores, JAX 0.10.2, within
a factor of two): a 56x56x64 layer of one photograph, 0.23 GFLOP, is 0.8 ms quicker. It is taken
where it has repaid itself after 100 calls: of ResNet-18 with four photographs, not with one. How
often a call runs a layer is known to those who trace it (`serving`), so a saliency map of a
photograph compiles quickly and its integrated gradients run quickly. Only shapes and counts decide,
so the same call is the same program in every process.
"""

import contextlib
import contextvars
import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.rewrite import Op, RuleSet
from jaxviz.rules.kernels_conv import CONV_OPTIONS, conv, supported
from jaxviz.rules.kernels_extreme import extreme
from jaxviz.rules.kernels_pool import POOL_OPTIONS, max_pool

# YNNPACK for matrix products, where XLA's own are up to 16 times slower (a transposed matrix, few
# rows), and not for convolutions, where XLA's own are as fast or up to 6 times faster.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# XLA's own schedule lets small operations run side by side (5 % of SqueezeNet's time) and does
# early what needs the weights alone, which for large nets is all that memory goes to.
_LARGE_NET_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# One core's own program has nobody to divide an operation with.
_ALONE_OPTIONS = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_disable_hlo_passes": "cpu-parallel-task-assigner",
}
_LARGE_NET = 64_000_000  # bytes of weights
CALLS = 100  # after which what took longer to compile is to have repaid itself
_COMPILED = 0.3  # seconds that a filtered convolution's program takes longer to compile
_SAVED = 3.5e-12  # seconds for each floating-point operation of the plain sum
# Larger windows are unrolled into programs that take long to compile.
_LARGEST_WINDOW = 64


def _pool_rule(op: Op):
    options = {name: op.options[name] for name in POOL_OPTIONS}
    suits = (
        jax.default_backend() == "cpu"
        and len(op.inputs) == 1
        and jnp.issubdtype(op.inputs[0].dtype, jnp.floating)
        and all(d == 1 for d in options["base_dilation"])
        and all(min(p) >= 0 for p in options["padding"])
        and math.prod(options["window_dimensions"]) <= _LARGEST_WINDOW
        and 0 not in op.outputs[0].shape
    )
    return functools.partial(max_pool, **options) if suits else None


def _conv_rule(op: Op, passes: float = math.inf):
    options = {name: op.options[name] for name in CONV_OPTIONS}
    suits = (
        jax.default_backend() == "cpu"
        and len(op.inputs) == 2
        and supported(*op.inputs, **options)
        and 0 not in op.outputs[0].shape
        and not (
            options["feature_group_count"] > 1
            and math.prod(op.inputs[1].shape[i] for i in options["dimension_numbers"].rhs_spec[2:])
            > _LARGEST_WINDOW
        )
    )
    if not suits:
        return None
    size = (
        math.prod(op.inputs[1].shape)
        // op.inputs[1].shape[options["dimension_numbers"].rhs_spec[0]]
    )
    flops = 2 * math.prod(op.outputs[0].shape) * size
    repaid = CALLS * passes * flops * _SAVED >= _COMPILED
    return functools.partial(conv, **options, filtered=repaid)


def _extreme_rule(op: Op):
    floats = jnp.issubdtype(op.outputs[0].dtype, jnp.floating)
    suits = jax.default_backend() == "cpu" and floats and not op.stopped
    falls = op.primitive == "reduce_min"
    return functools.partial(extreme, tuple(op.options["axes"]), falls) if suits else None


def _rule_set(conv_rule):
    table = {
        "reduce_window_max": _pool_rule,
        "conv_general_dilated": conv_rule,
        **dict.fromkeys(("reduce_max", "reduce_min"), _extreme_rule),
    }
    return RuleSet("fast", table, named=False, by_primitive=True)


# Of programs that run often: training, climbing.
fast = _rule_set(_conv_rule)

_passes = contextvars.ContextVar("jaxviz_passes", default=1)


@contextlib.contextmanager
def serving(count: int) -> Iterator[None]:
    """Says that what is traced meanwhile runs `count` times where it ran once.

    Numbers are rounded down to a power of two, so that few programs differ by them.
    """
    token = _passes.set(2 ** ((_passes.get() * max(count, 1)).bit_length() - 1))
    try:
        yield
    finally:
        _passes.reset(token)


def served() -> int:
    """How often one call runs what is being traced: a power of two."""
    return _passes.get()


def weighed() -> RuleSet:
    """`fast` for what is being traced, without what one call's passes do not repay.

    Example:
      >>> weighed() is weighed(), weighed() == fast
      (True, False)
    """
    return _weighed(served())


@functools.cache
def _weighed(passes: int) -> RuleSet:
    return _rule_set(functools.partial(_conv_rule, passes=passes))


@functools.cache
def compiler_options(
    backend: str | None = None, large: bool = False, alone: bool = False
) -> dict[str, Any]:
    """Options for `jax.jit(f, compiler_options=...)` with which gradients run best.

    On a CPU they leave the YNNPACK library only the matrix products, and order the work of large
    nets for the least memory, where this JAX knows the options. JAX takes such options for the
    outermost `jit` only and raises a ValueError for one inside another trace.

    Args:
      backend: "cpu", "gpu", ...; None is the default one.
      large: Whether the weights are many, as `is_large` says.
      alone: Whether the program is to run on one core, beside others.

    Returns:
      A dict, empty where there is nothing to set.

    Example:
      >>> f = jax.jit(jnp.sin, compiler_options=compiler_options() or None)
      >>> float(f(0.0))
      0.0
    """
    if (backend or jax.default_backend()) != "cpu":
        return {}
    wanted = [_CPU_OPTIONS, *[_LARGE_NET_OPTIONS] * large, *[_ALONE_OPTIONS] * alone]
    together = functools.reduce(operator.or_, wanted)
    if _compiles(together):  # as a rule: one trial, of some 20 ms
        return together
    return functools.reduce(operator.or_, filter(_compiles, wanted), {})


def alone() -> dict[str, Any]:
    """Those of `compiler_options` for one core alone: XLA's own choices otherwise."""
    return _ALONE_OPTIONS if _compiles(_ALONE_OPTIONS) else {}


def is_large(params: Any) -> bool:
    """Whether the weights are more than 64 MB, so that what is made of them counts in memory."""
    # Not `nbytes`, which an array of JAX computes anew, slowly, each time.
    sizes = (
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
        if hasattr(leaf, "dtype")
    )
    return sum(sizes) > _LARGE_NET


def _compiles(options: dict[str, Any]) -> bool:
    device = jax.local_devices(backend="cpu")[0]
    try:
        with jax.default_device(device):
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except Exception:  # what an unknown option raises is not documented
        return False
    return True
