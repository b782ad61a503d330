"""A network with random weights and images for it: what the benchmarks explain."""

import jax


def ready(module, shape, seed=0):
    """`(apply_fn, variables, x)` of a module on random images of `shape` [N, H, W, C]."""
    x = jax.random.normal(jax.random.key(seed), shape)
    variables = jax.jit(module.init)(jax.random.key(seed + 1), x[:1])
    return module.apply, variables, x
