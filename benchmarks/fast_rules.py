"""How much `jaxviz.rules.fast` speeds up gradients on a CPU: single operations and whole nets.

Each line is a ratio plain / fast of median run times, both called in turn in one process; compile
times stand apart. `python benchmarks/fast_rules.py [name ...]`; all of it takes some minutes.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import nets
from benchmarks.timing import json_line, side_by_side
from jaxviz.graph.rewrite import rewrite
from jaxviz.models import registry
from jaxviz.rules.fast import compiler_options, fast


class Operation(NamedTuple):
    shape: tuple[int, ...]
    kernel: tuple[int, ...]  # (h, w) for pooling, (h, w, in, out) for a convolution
    stride: int = 1
    padding: str = "SAME"
    groups: int = 1
    loop: int = 0  # times the pullback is taken in a `lax.scan`; 0 is outside one


OPERATIONS = {
    "max_pool 2x2 stride 2": Operation((256, 28, 28, 24), (2, 2), 2),
    "max_pool 3x3 stride 2": Operation((8, 111, 111, 64), (3, 3), 2, "VALID"),
    "max_pool 3x3 stride 1": Operation((8, 28, 28, 64), (3, 3), 1),
    "depthwise 3x3": Operation((8, 112, 112, 32), (3, 3, 1, 32), groups=32),
    "depthwise 3x3 stride 2": Operation((8, 112, 112, 96), (3, 3, 1, 96), 2, groups=96),
    "depthwise 3x3 small map": Operation((8, 7, 7, 960), (3, 3, 1, 960), groups=960),
    "first layer, 1 channel": Operation((256, 28, 28, 1), (3, 3, 1, 24)),
    "first layer, 3 channels": Operation((128, 32, 32, 3), (3, 3, 3, 32), 1, "VALID"),
    "first layer, 3x3 stride 2": Operation((8, 224, 224, 3), (3, 3, 3, 64), 2, "VALID"),
    "first layer, 5x5": Operation((64, 32, 32, 3), (5, 5, 3, 32)),
    "stem 7x7 stride 2": Operation((4, 224, 224, 3), (7, 7, 3, 64), 2),
    "stem 11x11 stride 4": Operation((4, 224, 224, 3), (11, 11, 3, 64), 4),
    "1x1": Operation((8, 55, 55, 64), (1, 1, 64, 16)),
    "1x1 widening": Operation((8, 112, 112, 16), (1, 1, 16, 96)),
    "1x1 stride 2": Operation((4, 56, 56, 64), (1, 1, 64, 128), 2),
    "3x3, 64 channels": Operation((4, 56, 56, 64), (3, 3, 64, 64)),
    "3x3, 256 channels": Operation((4, 14, 14, 256), (3, 3, 256, 256)),
    "3x3 stride 2": Operation((4, 56, 56, 64), (3, 3, 64, 128), 2),
    "3x3 in a loop": Operation((256, 14, 14, 24), (3, 3, 24, 48), loop=3),
    "3x3 stride 2 in a loop": Operation((4, 56, 56, 64), (3, 3, 64, 128), 2, loop=3),
}
NETS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "mnist_a": (registry.nets["mnist_a"], (256, 28, 28, 1)),
    "mnist_a, 1 image": (registry.nets["mnist_a"], (1, 28, 28, 1)),
    "mnist_b": (registry.nets["mnist_b"], (128, 28, 28, 1)),
    "mnist_c": (registry.nets["mnist_c"], (128, 28, 28, 1)),
    "cifar": (registry.nets["cifar"], (128, 32, 32, 3)),
    "resnet20": (registry.nets["resnet20"], (64, 32, 32, 3)),
    "squeezenet 1.1": (registry.nets["squeezenet1_1"], (8, 224, 224, 3)),
    "mobilenet_v2": (registry.nets["mobilenet_v2"], (8, 224, 224, 3)),
    "resnet18": (registry.nets["resnet18"], (4, 224, 224, 3)),
    "vgg11": (registry.nets["vgg11"], (2, 224, 224, 3)),
}


def as_function(op: Operation) -> tuple[Callable, Any, jax.Array]:
    """The operation as `apply_fn(kernel, x)`, with a kernel and an input."""
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=op.shape), jnp.float32)
    strides = (op.stride, op.stride)
    if len(op.kernel) == 2:
        window, steps = (1, *op.kernel, 1), (1, *strides, 1)
        return (
            lambda _, x: lax.reduce_window(x, -jnp.inf, lax.max, window, steps, op.padding),
            None,
            x,
        )
    kernel = jnp.array(rng.normal(size=op.kernel), jnp.float32)
    return (
        lambda kernel, x: lax.conv_general_dilated(
            x,
            kernel,
            strides,
            op.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=op.groups,
        ),
        kernel,
        x,
    )


def pullback(f: Callable, loop: int) -> Callable:
    """Value and input gradient of `f` along a given output; `loop` times in a scan."""

    def once(params, x, g):
        y, back = jax.vjp(lambda x: f(params, x), x)
        return y, back(g)[0]

    def many(params, x, g):
        def step(total, _):
            y, dx = once(params, x + total, g)
            return (y.mean() + dx.mean()) * 1e-9, None

        return lax.scan(step, jnp.zeros(()), None, length=loop)[0]

    return many if loop else once


def top_gradient(f: Callable) -> Callable:
    """The plain gradient of each example's top score."""
    return lambda params, x: jax.grad(lambda x: f(params, x).max(1).sum())(x)


def report(kind: str, name: str, candidates: dict, args: tuple, **sizes: Any) -> None:
    times = side_by_side(candidates, args)
    plain, faster = times["plain"], times["fast"]
    print(
        f"{name:28}{plain[0]:10.2f} ms{faster[0]:10.2f} ms{plain[0] / faster[0]:8.2f} x"
        f"   compile {plain[1]:6.0f} {faster[1]:6.0f} ms",
        flush=True,
    )
    json_line(
        benchmark=f"fast_rules {kind}",
        name=name,
        plain_ms=plain[0],
        fast_ms=faster[0],
        ratio=plain[0] / faster[0],
        plain_compile_ms=plain[1],
        fast_compile_ms=faster[1],
        **sizes,
    )


def main(names: list[str]) -> None:
    options = compiler_options() or None
    for name, op in OPERATIONS.items():
        if names and name not in names:
            continue
        f, params, x = as_function(op)
        g = jnp.ones(jax.eval_shape(f, params, x).shape)
        candidates = {
            "plain": jax.jit(pullback(f, op.loop)),
            "fast": jax.jit(pullback(rewrite(f, fast), op.loop), compiler_options=options),
        }
        report("operation", name, candidates, (params, x, g), **op._asdict())
    for name, (make, shape) in NETS.items():
        if names and name not in names:
            continue
        apply_fn, variables, x = nets.ready(make(), shape)
        candidates = {
            "plain": jax.jit(top_gradient(apply_fn)),
            "fast": jax.jit(top_gradient(rewrite(apply_fn, fast)), compiler_options=options),
        }
        report("net", name, candidates, (variables, x), shape=shape)


if __name__ == "__main__":
    main(sys.argv[1:])
