"""Claim: cores that share passes through a net do more than cores that divide every operation.

`python -m benchmarks.shares`. The other side is the same call within a program of the caller's,
which is one program: there XLA divides each operation.
"""

import functools

import jax

import jaxviz as jv
from benchmarks.timing import in_turn, json_line
from jaxviz import models
from jaxviz.rules.fast import compiler_options

SIDE = 224
CASES = (
    ("cifar", (8, 32, 32, 3), functools.partial(jv.occlusion, window=(4, 4), stride=(2, 2))),
    ("squeezenet1_1", (1, SIDE, SIDE, 3), functools.partial(jv.score_cam, num_channels=64)),
    ("mobilenet_v2", (1, SIDE, SIDE, 3), functools.partial(jv.score_cam, num_channels=64)),
    ("resnet18", (1, SIDE, SIDE, 3), functools.partial(jv.score_cam, num_channels=64)),
    ("cifar", (8, 32, 32, 3), jv.integrated_gradients),
    ("squeezenet1_1", (1, SIDE, SIDE, 3), jv.integrated_gradients),
    ("mobilenet_v2", (1, SIDE, SIDE, 3), jv.integrated_gradients),
    ("resnet18", (1, SIDE, SIDE, 3), jv.integrated_gradients),
)


def main():
    jv.keep_memory()
    for name, shape, method in CASES:
        net = models.nets[name]()
        x = jax.random.uniform(jax.random.key(0), shape)
        variables = jax.jit(net.init)(jax.random.key(1), x)
        explain = functools.partial(method, models.apply_fn(net))
        one = jax.jit(explain, compiler_options=compiler_options() or None)
        calls = {
            "shared": functools.partial(explain, variables, x, 0),
            "one_program": functools.partial(one, variables, x, 0),
        }
        times = in_turn(calls, seconds=15)
        json_line(
            claim="cores share passes",
            net=name,
            method=getattr(method, "func", method).__name__,
            shared_ms=times["shared"],
            one_program_ms=times["one_program"],
            ratio=times["one_program"] / times["shared"],
        )


if __name__ == "__main__":
    main()
