"""Claim: explaining every class of an input at once costs less than one class after another.

`python benchmarks/all_classes.py`. `jax.vmap` over the target of one call: the forward pass does
not depend on the class, so it is run once and only the pullback is run for each.
"""

import jax
import jax.numpy as jnp

import jaxviz as jv
from benchmarks.timing import json_line, side_by_side
from jaxviz import models


def main():
    for name, shape in (("mnist_a", (8, 28, 28, 1)), ("cifar", (8, 32, 32, 3))):
        net = models.nets[name]()
        x = jax.random.uniform(jax.random.key(0), shape)
        variables = jax.jit(net.init)(jax.random.key(1), x)
        f = models.apply_fn(net)
        for method in (jv.gradient, jv.grad_cam):

            def together(variables, x, method=method, f=f):
                return jax.vmap(lambda k: method(f, variables, x, k))(jnp.arange(10))

            def in_turn(variables, x, method=method, f=f):
                return jnp.stack([method(f, variables, x, k) for k in range(10)])

            flops = {
                g.__name__: jax.jit(g).lower(variables, x).compile().cost_analysis()["flops"]
                for g in (together, in_turn)
            }
            times = side_by_side({"together": together, "in_turn": in_turn}, (variables, x))
            json_line(
                net=name,
                method=method.__name__,
                classes=10,
                together_ms=times["together"][0],
                in_turn_ms=times["in_turn"][0],
                ratio=times["in_turn"][0] / times["together"][0],
                flops_share=flops["together"] / flops["in_turn"],
            )


if __name__ == "__main__":
    main()
