"""Claim: a second call of an explanation costs under 1 ms above the bare compiled program.

`python_calls` counts the functions that one such call enters, which no other work disturbs.
"""

import cProfile
import pstats

import jax
import jax.numpy as jnp

import jaxviz as jv
from benchmarks.timing import in_turn, json_line
from jaxviz import models
from jaxviz.parts.gradients import input_gradient


def main(repeats=60):
    net = models.nets["mnist_a"]()
    x = jax.random.normal(jax.random.key(0), (1, 28, 28, 1))
    variables = net.init(jax.random.key(1), x)
    apply_fn, target = models.apply_fn(net), jnp.array([3])
    bare = jax.jit(lambda v, x, t: input_gradient(apply_fn, v, x, t))
    calls = {
        "bare": lambda: bare(variables, x, target),
        "jaxviz": lambda: jv.gradient(apply_fn, variables, x, target),
    }
    times = in_turn(calls, repeats)
    bare_ms, ours_ms = times["bare"], times["jaxviz"]
    profile = cProfile.Profile()
    profile.runcall(calls["jaxviz"])
    json_line(
        claim="call overhead", net="mnist_a", bare_ms=bare_ms, jaxviz_ms=ours_ms,
        overhead_ms=ours_ms - bare_ms, python_calls=pstats.Stats(profile).total_calls,
    )  # fmt: skip


if __name__ == "__main__":
    main()
