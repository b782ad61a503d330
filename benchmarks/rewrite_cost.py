"""Claim: a rewritten function costs nothing once compiled. Prints the ratio of run times."""

import jax
import jax.numpy as jnp

import jaxviz as jv
from benchmarks.timing import json_line, side_by_side
from jaxviz import models

# Every operation replaced by itself: the interpreter runs over the whole net.
ITSELF = jv.RuleSet("itself", {}, default=lambda op: op.evaluate)


def input_gradient(f):
    return jax.grad(lambda variables, x: jnp.sum(f(variables, x)[:, 0]), argnums=1)


def main():
    for name, shape in (("mnist_a", (64, 28, 28, 1)), ("resnet20", (16, 32, 32, 3))):
        net = models.nets[name]()
        x = jax.random.normal(jax.random.key(0), shape)
        variables = net.init(jax.random.key(1), x)
        apply_fn = models.apply_fn(net)
        rewritten = jv.rewrite(apply_fn, ITSELF)
        for what, of in (("forward", lambda f: f), ("gradient", input_gradient)):
            candidates = {"plain": of(apply_fn), "rewritten": of(rewritten)}
            times = side_by_side(candidates, (variables, x))
            (plain, plain_compile), (other, other_compile) = times["plain"], times["rewritten"]
            json_line(
                claim="rewrite costs nothing",
                net=name,
                what=what,
                plain_ms=plain,
                rewritten_ms=other,
                ratio=other / plain,
                plain_compile_ms=plain_compile,
                rewritten_compile_ms=other_compile,
            )


if __name__ == "__main__":
    main()
